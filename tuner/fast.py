"""The speed: recognised decoders run over rows laid end to end, part by part; everything else takes the plain path.

Everything that makes a run fast can be turned off here, in `Fast`; each run writes what it used to its plan.
"""

import types
from dataclasses import asdict, dataclass

import psutil
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tuner import attention, batching, blocks, cost, loss, native, packed, prepack


@dataclass(frozen=True)
class Fast:
    """What is on. Each switch changes the speed and, within rounding, nothing else.

    Args:
        blocks: recognised decoders run as `blocks`, without padding; else the model's own forward, padded.
        rows: attention by our own products (`attention._Rows`) where torch's kernel is slower: on a CPU.
        slices: the head runs only where something is learned, in slices, its gradient taken on the way.
        lora: without `blocks`, LoRA layers compute in the base's precision instead of fp32.
        passes: the passes between products are compiled, where there is a compiler: `native` on a CPU, `triton_passes` on a card.
        whole: with `passes`, attention is one routine over all rows: on a CPU (with `rows`) compiled, where the processor has
            bf16 dot products; on a card torch's flash kernel, where it takes the heads.
        prepacked: with `blocks`, dense frozen weights lie as oneDNN's products want them, where there is room.
    """

    blocks: bool = True
    rows: bool = True
    slices: bool = True
    lora: bool = True
    passes: bool = True
    whole: bool = True
    prepacked: bool = True


# Tokens at once are rounded up to a multiple of this. Each new shape costs oneDNN half a millisecond and half a MiB for
# each of forty products, and leaves holes in the heap that the next one does not fit.
TOKENS_STEP = 64
# Decoders whose parts are known, by class: each has q, k, v, o, gate, up and down projections and RMS norms.
RECOGNISED = (
    "LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "SmolLM3ForCausalLM",
    "Gemma3ForCausalLM",
)


class Path:
    """How one model's losses are computed.

    Args:
        plan: what an earlier start of the same run used; None decides by the model and `switches`.
        checkpointing: keep only each layer's input and compute the layer again in the backward pass.
    """

    def __init__(self, model: nn.Module, pad_id: int, switches: Fast | dict | None = None, checkpointing: bool = False):
        asked = switches if isinstance(switches, dict) else {}
        # A run that began before these were there goes on without them.
        switches = Fast(**{"passes": False, "whole": False, "prepacked": False, **switches}) if isinstance(switches, dict) else switches or Fast()
        self.model, self.pad_id, self.checkpointing = model, pad_id, checkpointing
        self.decoder, self.why_plain = None, "turned off"
        if switches.blocks:
            passes = compiled_passes(plain_model(model).get_input_embeddings().weight) if switches.passes else None
            self.decoder, self.why_plain = recognise(model, switches.rows, passes, switches.whole)
        self.slices = switches.slices and can_split_head(model)
        if self.decoder is None and switches.lora:
            speed_up_lora(model)
        # What is used, not what was asked for: a resumed run must compute the same.
        self.passes = self.decoder and self.decoder.norm.passes
        whole = self.decoder is not None and all(layer.kind.whole for layer in self.decoder.layers)
        prepacked = switches.prepacked and self.decoder is not None and self.decoder.prepack(wanted=bool(asked))
        self.plan = asdict(Fast(self.decoder is not None, switches.rows, self.slices, switches.lora, self.passes is not None, whole, prepacked))
        # An earlier start of the run computed with what this machine does not have: the result will differ in rounding.
        self.lost = [name for name in ("passes", "whole", "prepacked") if asked.get(name) and not self.plan[name]]

    collate = staticmethod(batching.collate)
    parts = staticmethod(batching.micro_batches)

    def varied(self, rows: list, indices: list[int], epoch: int) -> list:
        """Training rows as they are met in an epoch: as they are."""
        return rows

    def losses(self, batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
        """Cross-entropy of each learned token, with gradients.

        Args:
            batch: rows as `batching.collate` lays them.

        Returns:
            losses: (n,) fp32, in the order of rows, then positions.
            rows: (n,) the row that each loss belongs to.
        """
        return self._losses(batch, *batching.learned(batch))

    @torch.no_grad()
    def judge(self, batch: dict) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`losses` without gradients, and whether each token was the likeliest: (n,) bool."""
        places, targets, rows = batching.learned(batch)
        hits = torch.empty_like(targets, dtype=torch.bool)
        return *self._losses(batch, places, targets, rows, hits), hits

    def _losses(self, batch, places, targets, rows, hits=None) -> tuple[torch.Tensor, torch.Tensor]:
        # The parts below choose their precision themselves; the Trainer's autocast (fp16 on old cards) would undo it.
        with torch.autocast(batch["input_ids"].device.type, enabled=False):
            if self.decoder is None:
                return self._plain(batch, targets, hits), rows
            hidden = self.decoder.hidden(batch, self.checkpointing and torch.is_grad_enabled())[places]
            hidden = blocks.norm_rows(hidden, self.decoder.norm)
            if self.slices:
                return loss.cross_entropy(hidden, self.decoder.head, targets, self.passes, hits), rows
            return _whole(self.decoder.head.base(hidden), targets, hits), rows

    def _plain(self, batch: dict, targets: torch.Tensor, hits: torch.Tensor | None) -> torch.Tensor:
        """The model's own forward on padded rows."""
        ids, mask, labels = batching.pad(batch, self.pad_id)
        chosen = labels[:, 1:] != batching.IGNORE  # rows, then positions: the order of `places`
        if not self.slices:
            logits = self.model(input_ids=ids, attention_mask=mask).logits[:, :-1][chosen]
            return _whole(logits, targets, hits)
        plain = plain_model(self.model)
        hidden = plain.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        return loss.cross_entropy(hidden[:, :-1][chosen], blocks.Linear(plain.lm_head), targets, hits=hits)


def compiled_passes(weight: torch.Tensor) -> native.Passes | None:
    """The compiled passes for what is computed where and as this weight is; None where there are none."""
    if native.fits(weight):
        return native.load()
    if weight.device.type != "cuda":
        return None
    try:
        from tuner import triton_passes
    except ImportError:
        return None
    return triton_passes.load() if triton_passes.fits(weight) else None


def _whole(logits: torch.Tensor, targets: torch.Tensor, hits: torch.Tensor | None) -> torch.Tensor:
    """Cross-entropy from all logits at once, see `loss.cross_entropy`: (n,)."""
    if hits is not None:
        torch.eq(logits.argmax(-1), targets, out=hits)
    return F.cross_entropy(logits.float(), targets, reduction="none")


def plain_model(model: nn.Module) -> nn.Module:
    """The transformers model inside a PeftModel, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def can_split_head(model: nn.Module) -> bool:
    """Whether decoder and head can be run apart with nothing in between: no soft-capping, no scaling of logits."""
    plain = plain_model(model)
    config = plain.config.get_text_config() if hasattr(plain.config, "get_text_config") else plain.config
    odd = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier", "mup_width_scale")
    if any(getattr(config, name, None) not in (None, 1, 1.0) for name in odd):
        return False
    head = getattr(plain, "lm_head", None)
    return type(head) is nn.Linear and head.bias is None and hasattr(plain, "model")


# Recognised decoders ------------------------------------------------------------------------------------------------


@dataclass
class Layer:
    """One decoder layer's parts. `after_attention` and `after_mlp` are Gemma's norms of what is added."""

    before_attention: blocks.Norm
    q: blocks.Linear
    k: blocks.Linear
    v: blocks.Linear
    o: blocks.Linear
    q_norm: blocks.Norm | None
    k_norm: blocks.Norm | None
    after_attention: blocks.Norm | None
    before_mlp: blocks.Norm
    gate: blocks.Linear
    up: blocks.Linear
    down: blocks.Linear
    after_mlp: blocks.Norm | None
    act: str
    kind: attention.Kind
    turns: str | None  # which rotary table; None turns nothing

    def linears(self) -> list[blocks.Linear]:
        return [self.q, self.k, self.v, self.o, self.gate, self.up, self.down]

    def forward(self, x: torch.Tensor, laid: attention.Laid, tables: dict) -> torch.Tensor:
        """(N, D) -> (N, D), rows laid end to end."""
        q, k, v = blocks.norm_project(x, self.before_attention, [self.q, self.k, self.v])
        if self.q_norm is not None:
            q, k = (blocks.norm_rows(its.reshape(-1, norm.weight.shape[0]), norm).view(its.shape) for its, norm in ((q, self.q_norm), (k, self.k_norm)))
        told = attention.attend(q, k, v, laid, tables.get(self.turns), self.kind)
        if self.after_attention is None:
            x = blocks.project_add(told, x, self.o, self.kind.passes)
            return blocks.mlp(x, self.before_mlp, self.gate, self.up, self.down, self.act, add=True)
        x = x + blocks.norm_rows(blocks.project(told, [self.o], self.kind.passes)[0], self.after_attention)
        return x + blocks.norm_rows(blocks.mlp(x, self.before_mlp, self.gate, self.up, self.down, self.act, add=False), self.after_mlp)


@dataclass
class Decoder:
    """A recognised model's parts in order."""

    plain: nn.Module
    layers: list[Layer]
    norm: blocks.Norm
    head: blocks.Linear

    def hidden(self, batch: dict, checkpointing: bool) -> torch.Tensor:
        """(N or a few more, D): what the last layer gives, before the last norm."""
        device = batch["input_ids"].device
        ids = batch["input_ids"]
        # A few tokens that belong to no row: they see nothing, nothing sees them, and no loss is taken on them.
        ids = torch.cat([ids, ids[-1:].expand(-len(ids) % TOKENS_STEP)])
        laid = attention.Laid(batch["lengths"], len(ids), device)
        x = self.plain.model.embed_tokens(ids)
        tables = self._tables(x, laid.longest)
        for layer in self.layers:
            x = checkpoint(layer.forward, x, laid, tables, use_reentrant=False) if checkpointing else layer.forward(x, laid, tables)
        return x

    def prepack(self, wanted: bool) -> bool:
        """Prepack every frozen weight, if all are dense and there is room; whether it was done, now or before.

        Args:
            wanted: whatever the room: an earlier start of the run had it so.
        """
        linears = [linear for layer in self.layers for linear in layer.linears()]
        if all(its.prepacked for its in [*linears, self.head]):
            return True
        if any(its.is_4bit or not prepack.is_possible(its.base.weight) for its in [*linears, self.head]):
            return False
        size = cost.prepacked_bytes(sum(its.base.weight.numel() for its in linears), self.head.base.weight.numel())
        if not wanted and not cost.is_ample(size, psutil.virtual_memory().available):
            return False
        for its in linears:
            prepack.take(its.base)
        prepack.take_head(self.head.base)
        for its in [*linears, self.head]:
            its.prepacked = its.base.prepacked
        packed.give_back()
        return True

    def _tables(self, x: torch.Tensor, longest: int) -> dict:
        """cos and sin by kind of layer, (T, D) each, from the model's own rotary module."""
        places = torch.arange(longest, device=x.device).unsqueeze(0)
        tables = {}
        for name in {layer.turns for layer in self.layers} - {None}:
            cos, sin = self.plain.model.rotary_emb(x, places, *([name] if name else []))
            tables[name] = cos[0], sin[0]
        return tables


def recognise(model: nn.Module, rows: bool = True, passes: native.Passes | None = None, whole: bool = True) -> tuple[Decoder | None, str]:
    """The model's parts; or None, and why not."""
    plain = plain_model(model)
    name = type(plain).__name__
    if name not in RECOGNISED:
        return None, f"{name} is not among the models whose parts are known"
    config = plain.config
    head = plain.lm_head
    odd = [key for key in ("attn_logit_softcapping", "use_bidirectional_attention", "attention_dropout") if getattr(config, key, None)]
    if odd:
        return None, f"its config sets {', '.join(odd)}"
    if type(head) is not nn.Linear or head.bias is not None or not can_split_head(model):
        return None, "its head is not a plain one"
    layers = []
    for index, its in enumerate(plain.model.layers):
        layer = _read_layer(its, index, config, rows, passes, whole)
        if layer.act not in blocks.ACTS:
            return None, f"its activation {layer.act!r} is not known"
        for linear in layer.linears():
            if why := linear.unusual():
                return None, f"a layer of it is {why}" if why != "dropout" else "LoRA dropout is on"
        layers.append(layer)
    return Decoder(plain, layers, _read_norm(plain.model.norm, config, passes), blocks.Linear(head)), ""


def _read_norm(norm: nn.Module, config, passes: native.Passes | None) -> blocks.Norm:
    return blocks.Norm(norm.weight, getattr(norm, "variance_epsilon", None) or norm.eps, config.model_type.startswith("gemma"), passes)


def _read_layer(layer: nn.Module, index: int, config, rows: bool, passes: native.Passes | None, whole: bool) -> Layer:
    """The layer's parts under one set of names."""
    its, mlp = layer.self_attn, layer.mlp
    gemma = config.model_type.startswith("gemma")
    window = getattr(config, "sliding_window", None) if config.model_type == "mistral" else getattr(its, "sliding_window", None)
    weight = layer.input_layernorm.weight
    ours = rows and weight.device.type == "cpu"
    flash = whole and passes is not None and attention.takes_flash(weight, its.head_dim)
    kind = attention.Kind(
        config.num_attention_heads, config.num_key_value_heads, its.scaling, window or 0,
        "rows" if ours else "flash" if flash else "sdpa", passes,
        flash or ours and whole and passes is not None and passes.attends(weight.dtype, its.head_dim),
    )
    norm = lambda name: _read_norm(getattr(layer, name), config, passes)  # noqa: E731
    inner = lambda name: _read_norm(getattr(its, name), config, passes) if hasattr(its, name) else None  # noqa: E731
    linear = blocks.Linear
    return Layer(
        norm("input_layernorm"), linear(its.q_proj), linear(its.k_proj), linear(its.v_proj), linear(its.o_proj), inner("q_norm"), inner("k_norm"),
        norm("post_attention_layernorm") if gemma else None, norm("pre_feedforward_layernorm" if gemma else "post_attention_layernorm"),
        linear(mlp.gate_proj), linear(mlp.up_proj), linear(mlp.down_proj), norm("post_feedforward_layernorm") if gemma else None,
        getattr(config, "hidden_activation", None) or config.hidden_act, kind,
        None if not getattr(its, "use_rope", True) else config.layer_types[index] if gemma else "",
    )


# The plain path's LoRA ----------------------------------------------------------------------------------------------


def speed_up_lora(model: nn.Module) -> int:
    """Let recognised LoRA layers compute in the base's precision instead of fp32; returns how many were changed.

    PEFT casts each input to the adapter's fp32, which doubles memory traffic and, on a CPU, runs the two thin
    products at a third of the speed. Here the fp32 weights are cast instead: they stay fp32 masters for the
    optimiser. A layer with anything unusual (DoRA, several adapters, merged) keeps PEFT's own forward.
    """
    from peft.tuners.lora import Linear
    from peft.tuners.lora.layer import LoraLayer

    kinds: tuple = (Linear,)
    try:
        from peft.tuners.lora.bnb import Linear4bit

        kinds += (Linear4bit,)
    except ImportError:  # bitsandbytes is not installed
        pass
    changed = 0
    for module in model.modules():
        if hasattr(module, "_plain_forward"):
            continue
        if isinstance(module, LoraLayer) and isinstance(module, kinds) and not any(getattr(module, "use_dora", {}).values()):
            module._plain_forward = module.forward
            module.forward = types.MethodType(_lora_forward, module)
            changed += 1
    return changed


def restore_lora(model: nn.Module) -> None:
    """Undo `speed_up_lora`: PEFT's own forward again, for comparison."""
    for module in model.modules():
        if hasattr(module, "_plain_forward"):
            module.forward = module._plain_forward
            del module._plain_forward


def _lora_forward(self, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
    """(..., D_in) -> (..., D_out): W x + scale B A x, with A and B cast to x's dtype."""
    if args or kwargs or self.merged or len(self.active_adapters) != 1:
        return self._plain_forward(x, *args, **kwargs)
    result = self.base_layer(x)
    if self.disable_adapters:
        return result
    name = self.active_adapters[0]
    if name not in self.lora_A:
        return result
    down, up = self.lora_A[name].weight.to(x.dtype), self.lora_B[name].weight.to(x.dtype)
    thin = F.linear(self.lora_dropout[name](x), down)
    return result + F.linear(thin * self.scaling[name], up)


