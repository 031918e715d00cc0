"""A lean forward pass for answers on a CPU: the model's own weights and roundings, without the layers of calls around them.

`generate` spends most of a small model's token on Python: modules, hooks, masks, caches that are copied to grow by one.
Here a token is about forty calls a block. What is computed, and in what order it is rounded, is as in transformers 5.23
and, for the 4-bit products, as in bitsandbytes' evaluation path; in fp32 a few tokens' sums have an order of their own
(native_rows.c), which is off by less than the library's. tests/test_decode.py compares them. A model that is
not known here is not guessed at: `build` gives None, and the caller takes the model's own forward.
"""

import ctypes
import math
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import nn
from torch.nn import functional as F

from tuner import native

# transformers' classes whose blocks are known here: RMS norms, rotated queries and keys, a gated MLP.
KNOWN = {
    "LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "SmolLM3ForCausalLM", "Gemma3ForCausalLM",
}
_FIXED_ROPE = {"default", "linear", "llama3", "yarn"}  # angles that do not depend on the length of the row
_SCALES = ("logit_scale", "logits_scaling", "lm_head_multiplier")  # known where they are 1
_ODD = ("final_logit_softcapping", "attn_logit_softcapping", "use_bidirectional_attention")
# Tokens of a prompt taken in at once: other answers wait that long for their next token.
PREFILL_TOKENS = 512
# Up to the second number tokens are rounded up to multiples of the first, then of the second.
ROUND = (8, 64)
# In fp32 a product of so few tokens is our own: a library lays the weights out anew for each, and takes two to five times as long.
FEW_TOKENS = 16


class Cache:
    """One answer's keys and values: (blocks, 2, key heads, room, head size), `length` tokens of the room in use."""

    ROOM = 256  # grown to double when it is full

    def __init__(self):
        self.store: torch.Tensor | None = None
        self.length = 0

    def make_room(self, tokens: int, decoder: "Decoder") -> None:
        """Room for so many more tokens."""
        room = 0 if self.store is None else self.store.shape[3]
        if self.length + tokens <= room:
            return
        room = max(2 * room, -(-(self.length + tokens + 1) // self.ROOM) * self.ROOM)
        store = torch.empty(len(decoder.blocks), 2, decoder.key_heads, room, decoder.head_size, dtype=decoder.dtype)
        if self.length:
            store[:, :, :, : self.length] = self.store[:, :, :, : self.length]
        self.store = store

    def copy(self, tokens: int, decoder: "Decoder") -> "Cache":
        """One of its own that has read the same, with room for so many tokens in all."""
        made = Cache()
        made.store = torch.empty(len(decoder.blocks), 2, decoder.key_heads, max(tokens, self.length), decoder.head_size, dtype=decoder.dtype)
        if self.length:
            made.store[:, :, :, : self.length] = self.store[:, :, :, : self.length]
        made.length = self.length
        return made


# Products ---------------------------------------------------------------------------------------------------------


class _Packed:
    """Several 4-bit layers in bitsandbytes' evaluation format as one product; a single token's holds until the next.

    The kernel is called directly: the way to it through torch's dispatcher costs twice what the product itself takes.
    """

    def __init__(self, layers: list[nn.Module]):
        state = layers[0].weight.quant_state
        self.rows, self.width, self.block = sum(its.out_features for its in layers), layers[0].in_features, state.blocksize
        # Blocks of 32 rows follow one another, so rows can be stacked; each layer keeps working on its part of them.
        self.weight = torch.cat([its.weight.data for its in layers])
        self.scales = torch.cat([its.weight.quant_state.absmax for its in layers], 1).contiguous()
        start = 0
        for its in layers:
            its.weight.data = self.weight[start : start + its.out_features]
            start += its.out_features
        self.bias = _stacked([its.bias for its in layers])
        if self.bias is not None:
            self.bias = self.bias.to(torch.bfloat16)
        self._weight_at, self._scales_at = self.weight.data_ptr(), self.scales.data_ptr()
        self.one = torch.empty(1, self.rows, dtype=torch.bfloat16)  # where the product of a single token always goes
        self._kernel = _kernel()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        tokens, rows, width = x.shape[0], self.rows, self.width
        y = self.one if tokens == 1 else torch.empty(tokens, rows, dtype=torch.bfloat16)
        self._kernel(tokens, rows, width, x.data_ptr(), self._weight_at, self._scales_at, y.data_ptr(), self.block, width, rows)
        return y if self.bias is None else y.add_(self.bias)


class _Dense:
    """Several plain linear layers as one product."""

    def __init__(self, layers: list[nn.Module]):
        self.weight = layers[0].weight.data
        if len(layers) > 1:
            self.weight, start = torch.cat([its.weight.data for its in layers]), 0
            for its in layers:
                its.weight.data = self.weight[start : start + its.out_features]
                start += its.out_features
        self.bias = _stacked([its.bias for its in layers])
        self.native = native.load() if native.fits(self.weight) and self.weight.dtype == torch.float32 and self.weight.is_contiguous() else None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self.native is None or x.shape[0] > FEW_TOKENS:
            return F.linear(x, self.weight, self.bias)
        y = self.native.few_rows(x, self.weight)
        return y if self.bias is None else y.add_(self.bias)


class _Blocked:
    """A plain linear layer in oneDNN's own order of weights: a copy, for the head, twice as fast at one token."""

    def __init__(self, layer: nn.Module):
        self.weight, self.bias = torch.ops.mkldnn._reorder_linear_weight(layer.weight.data, 1), layer.bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")

    @classmethod
    def of(cls, layer: nn.Module) -> "_Blocked | None":
        """None where torch or this CPU has no such product, its results differ, or the copy would crowd the memory."""
        import psutil

        size = layer.weight.numel() * layer.weight.element_size()
        if type(layer) is not nn.Linear or layer.weight.dtype != torch.bfloat16 or size > psutil.virtual_memory().available / 8:
            return None
        x = torch.randn(2, layer.in_features, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(0))
        try:
            made = cls(layer)
            same = torch.equal(made(x), F.linear(x, layer.weight, layer.bias))
        except (AttributeError, RuntimeError, NotImplementedError):
            return None
        return made if same else None


class _Apart:
    """Linear layers of any kind, one after another."""

    def __init__(self, layers: list[nn.Module]):
        self.layers = layers

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if len(self.layers) == 1:
            return self.layers[0](x)
        return torch.cat([its(x) for its in self.layers], -1)


def _stacked(parts: list) -> torch.Tensor | None:
    """Biases as one; None where there are none."""
    return None if parts[0] is None else torch.cat([its.data for its in parts])


def _kernel():
    """bitsandbytes' 4-bit product of its evaluation path; None where this build or this CPU has none."""
    try:
        from bitsandbytes.cextension import lib
        from bitsandbytes.functional import has_avx512bf16

        if not has_avx512bf16():
            return None
        address = ctypes.cast(lib.gemv_4bit_inference_cpu_nf4_bf16, ctypes.c_void_p).value
    except (ImportError, AttributeError, RuntimeError, TypeError, ctypes.ArgumentError):
        return None
    count, pointer = ctypes.c_int64, ctypes.c_void_p
    return ctypes.CFUNCTYPE(None, count, count, count, pointer, pointer, pointer, pointer, count, count, count)(address)


def can_pack() -> bool:
    """Whether 4-bit products can be computed here on the packed weights themselves."""
    return _kernel() is not None


@torch.no_grad()
def pack(model: nn.Module) -> None:
    """Turn every 4-bit layer into bitsandbytes' evaluation format, for good: such a model can never be trained.

    Scales lose their second quantisation and are rounded to bf16. What is in no block of 64 inputs and 32 outputs was
    left in 16 bits when it was loaded (`models.unfit_for_4bit`).
    """
    from tuner.models import linears_4bit

    def save_nothing(*_args, **_more) -> None:
        """PEFT asks for the whole state when it loads an adapter; bitsandbytes would unpack, round and copy the base for that."""

    for _, _, layer in linears_4bit(model):
        layer.eval()
        layer.support_avx512bf16_for_cpu = True  # `models.guard_4bit` had kept it from this
        layer(torch.zeros(1, layer.in_features, dtype=torch.bfloat16))
        layer._save_to_state_dict = save_nothing


def _is_packed(layer: nn.Module) -> bool:
    return getattr(getattr(layer.weight, "quant_state", None), "packing_format_for_cpu", False)


class _Thin:
    """One adapter's LoRA of a product: y += scale B A x, in fp32 and rounded as PEFT does it.

    A's are stacked to one product; B's are few columns wide each and stay apart.
    """

    def __init__(self, found: list, name: str, sizes: list[int], own: bool):
        """`found`: each part's LoRA layer, or None."""
        have = [its for its in found if its is not None]
        downs = [its.lora_A[name].weight for its in have]
        self.down = torch.cat([its.data.float() for its in downs])
        self.ranks = [len(its) for its in downs]
        if own:  # PEFT's own forward goes on with the same memory
            for its, part in zip(downs, self.down.split(self.ranks)):
                its.data = part
        self.ups = [its.lora_B[name].weight.data.float() for its in have]
        self.scales = [its.scaling[name] for its in have]
        # On a 4-bit layer PEFT rounds what LoRA adds before adding it; on a plain one only the sum.
        self.rounds_first = type(have[0]) is not lora_kinds()[0]
        # The columns of the product that each is added to; all at once where none is missing and none differs.
        self.columns = [(end - size, end) for its, size, end in zip(found, sizes, accumulate(sizes)) if its is not None]
        self.whole = len(have) == len(found) and len(set(self.scales)) == 1
        # For one token at a time: places to write to, cut up once.
        self._thin, self._added = torch.empty(sum(self.ranks)), torch.empty(sum(map(len, self.ups)))
        self._steps = list(zip(self.ups, self._thin.split(self.ranks), self._added.split([len(its) for its in self.ups])))

    def __call__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Add to y (tokens, outputs), in place."""
        if self.whole and x.shape[0] == 1:
            torch.mv(self.down, x[0].float(), out=self._thin)
            for up, thin, added in self._steps:
                torch.mv(up, thin, out=added)
            return self._add(y[0], self._added, self.scales[0])
        thin = F.linear(x.float(), self.down)
        thins = (thin,) if len(self.ups) == 1 else thin.split(self.ranks, -1)
        added = [F.linear(its, up) for its, up in zip(thins, self.ups)]
        if self.whole:
            whole = added[0] if len(added) == 1 else torch.cat(added, -1)
            self._add(y, whole, self.scales[0])
        else:
            for (start, end), part, scale in zip(self.columns, added, self.scales):
                self._add(y[:, start:end], part, scale)

    def _add(self, y: torch.Tensor, part: torch.Tensor, scale: float) -> None:
        if math.frexp(scale)[0] != 0.5:  # else it is a power of two, before and after rounding the same
            part.mul_(scale)
            scale = 1.0
        y.add_(part.to(y.dtype) if self.rounds_first else part, alpha=scale)


class _Product:
    """Linear layers that read one input, with the LoRA of each adapter beside them.

    Args:
        places: (module, attribute) of each layer; PEFT puts its own layer there when an adapter comes.
        own: weights may be moved in memory, so that the layers' lie one behind the other.
    """

    def __init__(self, places: list[tuple[nn.Module, str]], own: bool):
        self.places, self.own = places, own
        layers = [_without_lora(getattr(module, name)) for module, name in places]
        self.layers = layers
        self.sizes = [its.out_features for its in layers]
        self.thin: dict[str, _Thin] = {}
        with_bias = {its.bias is not None for its in layers}
        plain = all(type(its) is nn.Linear and its.weight.numel() for its in layers)  # a prepacked one has no weight of its own
        if len(with_bias) == 1 and plain and (own or len(layers) == 1):
            self.base = _Dense(layers)
        elif len(with_bias) == 1 and own and _kernel() is not None and all(_is_packed(its) for its in layers):
            self.base = _Packed(layers)
        else:
            self.base = _Apart([_Dense([its]) for its in layers] if plain else layers)

    def take(self, name: str) -> set[nn.Module]:
        """Prepare an adapter; the LoRA layers that it was found in."""
        here = [getattr(module, attribute) for module, attribute in self.places]
        found = [its if name in getattr(its, "lora_A", ()) else None for its in here]
        if any(its is not None for its in found):
            self.thin[name] = _Thin(found, name, self.sizes, self.own)
        return {its for its in found if its is not None}

    def __call__(self, x: torch.Tensor, adapters: list[tuple[str, slice | None]]) -> torch.Tensor:
        """(tokens, inputs) -> (tokens, outputs), with each adapter on its rows."""
        y = self.base(x)
        for name, rows in adapters:
            if thin := self.thin.get(name):
                if rows is None:
                    thin(x, y)
                else:
                    thin(x[rows], y[rows])
        return y


def _without_lora(layer: nn.Module) -> nn.Module:
    return layer.base_layer if hasattr(layer, "base_layer") else layer


# The decoder ------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Block:
    """One block's products and norms.

    Args:
        norms: before attention, after it, before the MLP, after it; None where the family has none there.
        head_norm: (query and key heads, head size), of queries and keys; None where they have none.
        rope: which table of angles; None where positions are not rotated in.
        window: how many tokens back a token sees; None for all.
    """

    qkv: _Product
    out: _Product
    gate_up: _Product
    down: _Product
    norms: list[torch.Tensor | None]
    head_norm: torch.Tensor | None
    rope: str | None
    window: int | None
    views: "_Views | None" = None


class Decoder:
    """The forward pass over a model's weights, with a cache for each answer and an adapter for each row."""

    def __init__(self, model: nn.Module, own: bool):
        """`model` is one that `build` has found to be known."""
        config, inner = model.config, model.model
        self.model, self.inner = model, inner
        self.dtype = inner.embed_tokens.weight.dtype
        first = inner.layers[0].self_attn
        self.head_size, self.scale = first.head_dim, first.scaling
        self.heads, self.key_heads = config.num_attention_heads, config.num_key_value_heads
        self.eps = config.rms_norm_eps
        self.gemma = type(model).__name__.startswith("Gemma3")
        self.act = F.silu if type(inner.layers[0].mlp.act_fn) is nn.SiLU else inner.layers[0].mlp.act_fn
        self.blocks = [self._block(layer, index, config, own) for index, layer in enumerate(inner.layers)]
        self.windows = {its.window for its in self.blocks}
        self.norm = self._weight(inner.norm)
        self.head = _Product([(model, "lm_head")], own=False)
        if own:
            self.head.base = _Blocked.of(self.head.layers[0]) or self.head.base
        self.angles: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self.adapters: dict[str, bool] = {}
        # Whether products are of round numbers of tokens, where many answers come and go: oneDNN keeps up to 0.7 MiB for each shape.
        self.rounds_up = False

    def _block(self, layer, index: int, config, own: bool) -> _Block:
        attention, mlp = layer.self_attn, layer.mlp
        if self.gemma:
            norms = [layer.input_layernorm, layer.post_attention_layernorm, layer.pre_feedforward_layernorm, layer.post_feedforward_layernorm]
        else:
            norms = [layer.input_layernorm, None, layer.post_attention_layernorm, None]
        head_norm = None
        if hasattr(attention, "q_norm"):
            head_norm = torch.cat([
                self._weight(attention.q_norm).expand(self.heads, -1), self._weight(attention.k_norm).expand(self.key_heads, -1),
            ])
        window = getattr(attention, "sliding_window", None)
        if type(self.model).__name__ == "MistralForCausalLM":
            window = config.sliding_window
        return _Block(
            _Product([(attention, name) for name in ("q_proj", "k_proj", "v_proj")], own), _Product([(attention, "o_proj")], own),
            _Product([(mlp, name) for name in ("gate_proj", "up_proj")], own), _Product([(mlp, "down_proj")], own),
            [None if its is None else self._weight(its) for its in norms], head_norm,
            (attention.layer_type if self.gemma else "") if getattr(attention, "use_rope", True) else None, window,
        )

    def _weight(self, norm: nn.Module) -> torch.Tensor:
        """Gemma multiplies by 1 + w, in fp32, before it rounds."""
        return 1.0 + norm.weight.data.float() if self.gemma else norm.weight.data

    def _normed(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """torch's fused norm rounds as transformers' steps do, if the weight is kept out of it."""
        if self.gemma:
            return (torch.rms_norm(x.float(), weight.shape[-1:], None, self.eps) * weight).to(self.dtype)
        return torch.rms_norm(x, weight.shape[-1:], None, self.eps).mul_(weight)

    def _turned(self, length: int) -> None:
        """Make the tables of cosines and signed sines reach so far.

        rotate_half(x) * sin is (second half, first half) * (-sin, sin): the sign is moved into the table.
        """
        for name in {its.rope for its in self.blocks if its.rope is not None}:
            if name in self.angles and len(self.angles[name][0]) >= length:
                continue
            places = torch.arange(-(-length // 1024) * 1024)[None]
            like = torch.empty(0, dtype=self.dtype)
            cos, sin = self.inner.rotary_emb(like, places, *([name] if name else []))
            half = sin.shape[-1] // 2
            self.angles[name] = cos[0][:, None].contiguous(), torch.cat((-sin[0][:, :half], sin[0][:, half:]), -1)[:, None].contiguous()

    def take(self, name: str) -> bool:
        """Prepare an adapter that PEFT holds on the model; False where its kind is not known, and PEFT's own forward has to do."""
        from peft.tuners.tuners_utils import BaseTunerLayer
        from peft.utils.other import AuxiliaryTrainingWrapper

        has = {
            its for its in self.model.modules()
            if (isinstance(its, BaseTunerLayer) and any(name in getattr(its, kind, ()) for kind in its.adapter_layer_names))
            or (isinstance(its, AuxiliaryTrainingWrapper) and name in its._adapters)
        }
        known = all(_is_plain_lora(its, name) for its in has)
        found: set[nn.Module] = set()
        if known:
            for product in self._products():
                found |= product.take(name)
        self.adapters[name] = known and found == has
        return self.adapters[name]

    def drop(self, name: str) -> None:
        """Forget an adapter."""
        self.adapters.pop(name, None)
        for product in self._products():
            product.thin.pop(name, None)

    def _products(self):
        for block in self.blocks:
            yield from (block.qkv, block.out, block.gate_up, block.down)
        yield self.head

    @torch.inference_mode()
    def forward(self, rows: list[list[int]], caches: list[Cache], adapters: list[str | None]) -> torch.Tensor:
        """The next token's logits of each row, (rows, V); the caches take in what was fed.

        Args:
            rows: new tokens of each answer: its prompt, or the one token that was chosen.
            adapters: each row's, by name; None for the base. Rows of one adapter should stand together.
        """
        lengths = [len(its) for its in rows]
        for cache, length in zip(caches, lengths):
            cache.make_room(length, self)
        self._turned(max(cache.length + length for cache, length in zip(caches, lengths)))
        places = [cache.length + step for cache, length in zip(caches, lengths) for step in range(length)]
        ends = list(accumulate(lengths))
        more = self._rounding(ends[-1])  # tokens that nobody reads
        turns, spans = self._turns(places + [0] * more), _spans(adapters, lengths)
        fed = [_Row(cache, end - length, length, self) for cache, length, end in zip(caches, lengths, ends)]
        x = self.inner.embed_tokens(torch.tensor([token for its in rows for token in its] + [0] * more))
        for index, block in enumerate(self.blocks):
            before, after, before_mlp, after_mlp = block.norms
            y = block.out(self._attend(index, block, self._normed(x, before), turns, fed, spans), spans)
            x += y if after is None else self._normed(y, after)
            gate, up = block.gate_up(self._normed(x, before_mlp), spans).chunk(2, -1)
            y = block.down(self.act(gate).mul_(up), spans)
            x += y if after_mlp is None else self._normed(y, after_mlp)
        for cache, length in zip(caches, lengths):
            cache.length += length
        if len(ends) < x.shape[0]:
            x = x[[end - 1 for end in ends] + [0] * self._rounding(len(ends))]
            spans = _spans(adapters, [1] * len(rows))
        return self.head(self._normed(x, self.norm), spans)[: len(ends)]

    def _rounding(self, tokens: int) -> int:
        """How many tokens are missing to a round number of them."""
        if not self.rounds_up or tokens <= ROUND[0]:
            return 0
        return -tokens % ROUND[0 if tokens <= ROUND[1] else 1]

    def _turns(self, places: list[int]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Each table's rows of these positions: (tokens, 1, head size)."""
        first, count = places[0], len(places)
        if places == list(range(first, first + count)):
            return {name: (cos[first : first + count], sin[first : first + count]) for name, (cos, sin) in self.angles.items()}
        return {name: (cos[places], sin[places]) for name, (cos, sin) in self.angles.items()}

    def _attend(self, index: int, block: _Block, x: torch.Tensor, turns: dict, rows: list["_Row"], spans: list) -> torch.Tensor:
        """(tokens, D) -> (tokens, heads x head size); keys and values go into the caches."""
        mixed = block.qkv(x, spans)
        views = block.views
        if views is None or views.mixed is not mixed:
            views = _Views(mixed, self)
            if x.shape[0] == 1:
                block.views = views
        if block.head_norm is None:
            normed, halves = views.turned, views.halves
        else:
            normed = self._normed(views.turned, block.head_norm)
            halves = normed.chunk(2, -1)
        if block.rope is not None:
            cos, sin = turns[block.rope]
            other = torch.cat((halves[1], halves[0]), -1).mul_(sin)
            torch.add(normed * cos, other, out=views.turned)
        elif normed is not views.turned:
            views.turned.copy_(normed)
        out = []
        for row in rows:
            keys, values, mask = row.seen[block.window]
            if row.length == 1:
                query, new = views.first if row.start == 0 else views.at(row.start)
                row.spots[index].copy_(new)
                # A key head and the queries that share it as a batch of their own: no key is repeated, and each query is
                # computed alone, as `generate` computes it. All of a key head's queries in one product would take a
                # quarter of the time at 200 tokens, but round otherwise, and one answer in two would part from `generate`'s.
                out.append(F.scaled_dot_product_attention(query, keys[index], values[index], scale=self.scale).view(1, -1))
            else:
                its = views.heads[row.start : row.start + row.length]
                row.spots[index].copy_(its[:, self.heads :].view(row.length, 2, self.key_heads, self.head_size).permute(1, 2, 0, 3))
                query = its[:, : self.heads].transpose(0, 1)[None]
                got = F.scaled_dot_product_attention(
                    query, keys[index], values[index], attn_mask=mask, is_causal=mask is None, scale=self.scale, enable_gqa=True
                )
                out.append(got[0].transpose(0, 1).reshape(row.length, -1))
        if (more := x.shape[0] - rows[-1].start - rows[-1].length) > 0:
            out.append(out[0].new_zeros(more, out[0].shape[1]))
        return out[0] if len(out) == 1 else torch.cat(out)


class _Views:
    """Views of one product of queries, keys and values: taken once where a single token's always lies in one place."""

    __slots__ = ("mixed", "heads", "turned", "halves", "first", "_queries", "_keys")

    def __init__(self, mixed: torch.Tensor, decoder: "Decoder"):
        self._queries, self._keys = decoder.heads, decoder.key_heads
        self.mixed, self.heads = mixed, mixed.view(mixed.shape[0], -1, decoder.head_size)
        self.turned = self.heads[:, : decoder.heads + decoder.key_heads]
        self.halves = self.turned.chunk(2, -1)
        self.first = self.at(0)

    def at(self, place: int) -> tuple[torch.Tensor, torch.Tensor]:
        """One token's queries, (key heads, queries that share one, 1, head size), and its keys and values, (2, key heads, head size)."""
        its = self.heads[place]
        return its[: self._queries].view(self._keys, -1, 1, its.shape[-1]), its[self._queries :].view(2, self._keys, its.shape[-1])


class _Row:
    """The new tokens of one answer in one pass, and views of its cache for every block, taken once for all of them.

    Args:
        spots: each block's place for the new keys and values.
        seen: window -> each block's keys, its values, and which of them each token sees (None: all that came before it).
    """

    __slots__ = ("start", "length", "spots", "seen")

    def __init__(self, cache: Cache, start: int, length: int, decoder: Decoder):
        self.start, self.length = start, length
        past, end = cache.length, cache.length + length
        new = slice(past, end) if length > 1 else past
        self.spots = cache.store[:, :, :, new].unbind(0)
        self.seen = {}
        for window in decoder.windows:
            first = max(0, end - window) if window and length == 1 else 0
            kept = cache.store[:, :, :, first:end]
            if length == 1:
                kept = kept[:, :, :, None].expand(-1, -1, -1, decoder.heads // decoder.key_heads, -1, -1)
            else:
                kept = kept[:, :, None]
            mask = None if length == 1 else _mask(past, length, window)
            self.seen[window] = kept[:, 0].unbind(0), kept[:, 1].unbind(0), mask


def _spans(adapters: list[str | None], lengths: list[int]) -> list[tuple[str, slice | None]]:
    """The stretches of tokens of one adapter: its name, and where they are; None for all tokens there are."""
    spans: list[tuple[str, slice | None]] = []
    for name, length, end in zip(adapters, lengths, accumulate(lengths)):
        if name is None:
            continue
        if spans and spans[-1][0] == name and spans[-1][1].stop == end - length:
            spans[-1] = name, slice(spans[-1][1].start, end)
        else:
            spans.append((name, slice(end - length, end)))
    return [(name, None if (its.start, its.stop) == (0, sum(lengths)) else its) for name, its in spans]


def _mask(past: int, length: int, window: int | None) -> torch.Tensor | None:
    """(length, past + length), True where a token is seen; None where that is plain causality from the first token on."""
    if past == 0 and (window is None or length <= window):
        return None
    own = torch.arange(past, past + length)[:, None]
    seen = torch.arange(past + length)[None]
    mask = seen <= own
    return mask if window is None else mask & (seen > own - window)


def lora_kinds() -> tuple[type, ...]:
    """PEFT's LoRA layers known here: around a plain linear layer, and around a 4-bit one."""
    from peft.tuners.lora import Linear

    try:
        from peft.tuners.lora.bnb import Linear4bit
    except ImportError:  # bitsandbytes is not installed
        return (Linear,)
    return Linear, Linear4bit


def _is_plain_lora(layer: nn.Module, name: str) -> bool:
    return (
        type(layer) in lora_kinds() and not layer.merged and name in layer.lora_A and name not in getattr(layer, "lora_variant", {})
        and not layer.lora_bias.get(name) and not getattr(layer, "fan_in_fan_out", False)
    )


def is_known(model: nn.Module) -> bool:
    """Whether the model (without PEFT around it) is one whose every step is known here."""
    kind = type(model)
    if kind.__name__ not in KNOWN or not kind.__module__.startswith("transformers.models."):
        return False
    config, weight = model.config, model.get_input_embeddings().weight
    if weight.device.type != "cpu" or weight.dtype not in (torch.bfloat16, torch.float32):
        return False
    if any(getattr(config, name, None) for name in _ODD) or any(getattr(config, name, 1) not in (None, 1) for name in _SCALES):
        return False
    ropes = model.model.rotary_emb.rope_type
    return set(ropes.values() if isinstance(ropes, dict) else [ropes]) <= _FIXED_ROPE


def build(model: nn.Module, own: bool = False) -> Decoder | None:
    """A decoder over the model's weights; None where the model is not known, and its own forward has to do.

    Args:
        model: as loaded, or with PEFT around it.
        own: the model serves answers only, and has no adapter yet: layers of one input are moved together in memory, and
            it is made sure that the logits are those of the model's own forward.
    """
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not is_known(plain):
        return None
    decoder = Decoder(plain, own)
    return decoder if not own or _agrees(decoder, plain) else None


@torch.no_grad()
def _agrees(decoder: Decoder, model: nn.Module) -> bool:
    """Whether a short prompt and a token after it give the logits of the model's own forward, but for last bits."""
    probe = [(7 + 97 * place) % model.config.vocab_size for place in range(9)]
    cache = Cache()
    ours = torch.cat([decoder.forward([probe[:8]], [cache], [None]), decoder.forward([probe[8:]], [cache], [None])]).float()
    theirs = model(input_ids=torch.tensor([probe]), use_cache=False).logits[0, 7:].float()
    return bool(((ours - theirs).abs().max() < 0.05 * theirs.abs().max()).item())


def over(model: nn.Module) -> tuple[Decoder | None, str | None]:
    """A decoder over a model as it stands, which somebody else trains or holds, and the adapter that is switched on.

    Nothing is moved and nothing kept; the adapter's weights are those of this moment. (None, None) where the model's own
    forward has to do.
    """
    decoder = build(model)
    if decoder is None or not hasattr(model, "peft_config"):
        return decoder, None
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [its for its in model.modules() if isinstance(its, BaseTunerLayer)]
    if all(its.disable_adapters for its in layers):
        return decoder, None
    names = {tuple(its.active_adapters) for its in layers}
    if any(its.disable_adapters for its in layers) or len(names) != 1 or len(next(iter(names))) != 1:
        return None, None
    name = next(iter(names))[0]
    return (decoder, name) if decoder.take(name) else (None, None)
