"""Exact causal attention over rows laid end to end: never across rows, and never a whole T x T matrix of a long one."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch.nn import functional as F

from tuner import native

# Rows whose lengths differ by no more than this share are padded to one block, for the attention alone.
PADDING = 0.125
# A block's length is rounded up to a multiple of this: the same few shapes again and again, in vector widths.
LENGTH_STEP = 16
# Queries at once: above it a row's upper triangle is skipped block by block.
QUERIES = 256
# The widest head that torch's flash kernel takes on a card.
MOST_FLASH = 256
# Up to this length the probabilities are kept for the backward pass; above it they are made again from queries and keys.
KEPT = 128


@dataclass
class Block:
    """Rows of like length, padded to (B, T) for the attention alone.

    Args:
        start, end: which tokens of the flat order these rows are.
        rows: (B * T,) for each place of the block its token in the flat order; padding repeats a row's last.
        places: (end - start,) for each flat token its place in the block.
        real: (B, 1, T, 1), 1 where there is a token; None where no row is shorter than T.
    """

    start: int
    end: int
    size: int
    length: int
    rows: torch.Tensor
    places: torch.Tensor
    real: torch.Tensor | None

    def spread(self, flat: torch.Tensor, heads: int) -> torch.Tensor:
        """(N, heads * D) in flat order -> (B, heads, T, D)."""
        width = flat.shape[1] // heads
        picked = flat.reshape(-1, width).index_select(0, self._index("_to", self.rows, heads))
        return picked.view(self.size, heads, self.length, width)

    def gather(self, block: torch.Tensor) -> torch.Tensor:
        """(B, heads, T, D) -> (end - start, heads * D) in flat order."""
        heads, width = block.shape[1], block.shape[3]
        return block.reshape(-1, width).index_select(0, self._index("_from", self.places, heads)).view(-1, heads * width)

    def _index(self, way: str, places: torch.Tensor, heads: int) -> torch.Tensor:
        """The same index with the heads unfolded; made once, used by every layer."""
        known = self.__dict__.setdefault(way, {})
        if heads not in known:
            head = torch.arange(heads, device=places.device)
            if way == "_to":  # flat is (N, heads, D), the block (B, heads, T, D)
                known[heads] = (places.view(self.size, 1, self.length) * heads + head.view(1, heads, 1)).flatten()
            else:
                row, place = places.div(self.length, rounding_mode="floor"), places % self.length
                known[heads] = ((row * heads).unsqueeze(1).add(head).mul(self.length) + place.unsqueeze(1)).flatten()
        return known[heads]


class Laid:
    """How rows lie end to end, in the forms that the routines want; each is made once, for all layers.

    Args:
        lengths: tokens in each row, in flat order.
        tokens: how many there are in all, those at the end that belong to no row included.
    """

    def __init__(self, lengths: list[int], tokens: int, device):
        self.lengths, self.tokens, self.device = lengths, tokens, device
        self._turns: dict[int, tuple] = {}

    @cached_property
    def blocks(self) -> list[Block]:
        return _in_blocks(self.lengths, self.device)

    @property
    def longest(self) -> int:
        """Places that rotary tables need."""
        return -(-max(self.lengths) // LENGTH_STEP) * LENGTH_STEP

    @cached_property
    def starts(self) -> torch.Tensor:
        """(rows + 1,) where each row begins, and where the last ends."""
        return F.pad(torch.tensor(self.lengths).cumsum(0), (1, 0))

    @cached_property
    def flash_starts(self) -> tuple[torch.Tensor, int]:
        """`starts` as int32 on the device, what belongs to no row being one more row, and the longest of all."""
        rest = self.tokens - sum(self.lengths)
        lengths = [*self.lengths, rest] if rest else self.lengths
        return F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).to(self.device, torch.int32), max(lengths)

    @cached_property
    def places(self) -> torch.Tensor:
        """(tokens,) each token's place in its row; -1 where it belongs to none."""
        rest = torch.full((self.tokens - sum(self.lengths),), -1)
        return torch.cat([*(torch.arange(length) for length in self.lengths), rest]).to(self.device)

    def turned(self, turns: tuple | None) -> tuple | None:
        """cos and sin in fp32."""
        if turns is None:
            return None
        table = turns[0].data_ptr()  # the tables live as long as the batch
        if table not in self._turns:
            self._turns[table] = tuple(its.float().contiguous() for its in turns)
        return self._turns[table]


def _in_blocks(lengths: list[int], device) -> list[Block]:
    """As blocks of like length; neighbours share a block, so rows sorted by length pad least."""
    blocks, first, start = [], 0, 0
    while first < len(lengths):
        low = high = lengths[first]
        last = first + 1
        while last < len(lengths):
            new_low, new_high = min(low, lengths[last]), max(high, lengths[last])
            if new_low < new_high * (1 - PADDING):
                break
            low, high, last = new_low, new_high, last + 1
        its = torch.tensor(lengths[first:last])
        starts = start + its.cumsum(0) - its
        high = -(-high // LENGTH_STEP) * LENGTH_STEP
        place = torch.arange(high)
        rows = starts.unsqueeze(1) + torch.minimum(place, its.unsqueeze(1) - 1)
        is_real = place < its.unsqueeze(1)
        end = start + int(its.sum())
        real = None if bool(is_real.all()) else is_real.view(last - first, 1, high, 1).to(device)
        blocks.append(
            Block(start, end, last - first, high, rows.flatten().to(device), is_real.flatten().nonzero()[:, 0].to(device), real)
        )
        first, start = last, end
    return blocks


def takes_flash(weight: torch.Tensor, width: int) -> bool:
    """Whether torch's flash kernel takes heads of this width, computed where and as this weight is: on a card, in 16 bits."""
    return (
        weight.device.type == "cuda" and weight.dtype in (torch.bfloat16, torch.float16) and width % 8 == 0 and width <= MOST_FLASH
        and torch.cuda.get_device_capability(weight.device)[0] >= 8
    )


@dataclass(frozen=True)
class Kind:
    """What one layer's attention is.

    Args:
        window: keys that a query sees, itself among them; 0 sees all before it.
        routine: "rows" (ours), "flash" (torch's kernel over all rows at once, on a card that has it) or "sdpa" (torch's, block
            by block).
        passes: the compiled passes around our products, where they are used.
        whole: "rows" in one compiled routine of `passes`.
    """

    heads: int
    kv_heads: int
    scaling: float
    window: int = 0
    routine: str = "rows"
    passes: native.Passes | None = None
    whole: bool = False


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, laid: Laid, turns: tuple | None, kind: Kind) -> torch.Tensor:
    """Causal softmax attention of each row with itself alone.

    Args:
        q: (N, heads * D); k, v: (N, kv_heads * D), rows end to end.
        turns: cos and sin, each (T, D), of the rotary positions; None turns nothing.

    Returns:
        (N, heads * D); 0 for tokens that are in no row.
    """
    if kind.routine == "flash":
        return _Flash.apply(q, k, v, laid, turns, kind)
    if kind.routine == "rows":
        return (_Whole if kind.whole else _Rows).apply(q, k, v, laid, turns, kind)
    blocks = laid.blocks
    told = [_with_sdpa(q, k, v, block, turns, kind) for block in blocks]
    rest = len(q) - blocks[-1].end
    return torch.cat([*told, q.new_zeros(rest, q.shape[1])] if rest else told)


def _with_sdpa(q, k, v, block: Block, turns, kind: Kind) -> torch.Tensor:
    """One block through torch's own attention; padding stands after each row, so the causal order hides it."""
    q, k, v = block.spread(q, kind.heads), block.spread(k, kind.kv_heads), block.spread(v, kind.kv_heads)
    if turns is not None:
        q, k = (x * turns[0][: block.length] + _half_turned(x) * turns[1][: block.length] for x in (q, k))
    mask = None
    if kind.window and block.length > kind.window:
        far = torch.ones(block.length, block.length, dtype=torch.bool, device=q.device)
        mask = far.tril().triu(1 - kind.window)
        k, v = (x.repeat_interleave(kind.heads // kind.kv_heads, 1) for x in (k, v))
    out = F.scaled_dot_product_attention(
        q, k, v, mask, is_causal=mask is None, scale=kind.scaling, enable_gqa=mask is None and kind.heads != kind.kv_heads
    )
    return block.gather(out)


def _half_turned(x: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat((-second, first), -1)


def _turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, back: bool = False) -> torch.Tensor:
    """Rotate (..., T, D) by its positions as transformers does, or back again (the transpose)."""
    half = x.shape[-1] // 2
    out = x * cos
    first, second = (sin[:, half:], sin[:, :half]) if back else (sin[:, :half], sin[:, half:])
    out[..., :half].addcmul_(x[..., half:], first, value=1 if back else -1)
    out[..., half:].addcmul_(x[..., :half], second, value=-1 if back else 1)
    return out


class _Whole(torch.autograd.Function):
    """The same in one compiled routine, without blocks or padding; the probabilities are made again in the backward pass."""

    @staticmethod
    def forward(ctx, q, k, v, laid, turns, kind):
        passes, turns = kind.passes, laid.turned(turns)
        if turns is not None:
            q, k = (passes.turn(x, laid.places, turns, heads) for x, heads in ((q, kind.heads), (k, kind.kv_heads)))
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        out, lse = passes.attention(q, k, v, laid.starts, kind.heads, kind.kv_heads, kind.scaling, kind.window)
        ctx.save_for_backward(q, k, v, lse)
        ctx.laid, ctx.turns, ctx.kind = laid, turns, kind
        return out

    @staticmethod
    def backward(ctx, d_out):
        (q, k, v, lse), laid, turns, kind, passes = ctx.saved_tensors, ctx.laid, ctx.turns, ctx.kind, ctx.kind.passes
        d_q, d_k, d_v = passes.attention_back(q, k, v, d_out, lse, laid.starts, kind.heads, kind.kv_heads, kind.scaling, kind.window)
        if turns is not None:
            d_q = passes.turn(d_q, laid.places, turns, kind.heads, back=True)
        d_k = passes.sum_heads(d_k, laid.places, turns, k, kind.heads, kind.kv_heads)
        return d_q, d_k, passes.sum_heads(d_v, laid.places, None, v, kind.heads, kind.kv_heads), None, None, None


class _Flash(torch.autograd.Function):
    """The same through torch's flash kernel on a card, each row by itself, without padding."""

    @staticmethod
    def forward(ctx, q, k, v, laid, turns, kind):
        turns, (starts, longest) = laid.turned(turns), laid.flash_starts
        if turns is not None:
            q, k = (kind.passes.turn(x, laid.places, turns, heads) for x, heads in ((q, kind.heads), (k, kind.kv_heads)))
        q, k, v = (x.contiguous().view(len(x), heads, -1) for x, heads in ((q, kind.heads), (k, kind.kv_heads), (v, kind.kv_heads)))
        out, lse, random, unused, _ = torch.ops.aten._flash_attention_forward(
            q, k, v, starts, starts, longest, longest, 0.0, True, False, **_seen(kind)
        )
        ctx.save_for_backward(q, k, v, out, lse, random, unused)
        ctx.laid, ctx.turns, ctx.kind = laid, turns, kind
        return out.view(len(out), -1)

    @staticmethod
    def backward(ctx, d_out):
        q, k, v, out, lse, random, unused = ctx.saved_tensors
        laid, turns, kind = ctx.laid, ctx.turns, ctx.kind
        starts, longest = laid.flash_starts
        found = torch.ops.aten._flash_attention_backward(
            d_out.contiguous().view(out.shape), q, k, v, out, lse, starts, starts, longest, longest, 0.0, True, random, unused, **_seen(kind)
        )
        d_q, d_k, d_v = (its.reshape(len(its), -1) for its in found)
        if turns is not None:
            d_q, d_k = (kind.passes.turn(x, laid.places, turns, heads, back=True) for x, heads in ((d_q, kind.heads), (d_k, kind.kv_heads)))
        return d_q, d_k, d_v, None, None, None


def _seen(kind: Kind) -> dict:
    """What torch's flash kernel is told of scaling and window: keys before the query's own."""
    return {"scale": kind.scaling, **({"window_size_left": kind.window - 1, "window_size_right": 0} if kind.window else {})}


class _Rows(torch.autograd.Function):
    """softmax(q k^T s + mask) v by plain matrix products, block by block.

    On a CPU torch's flash kernel takes ten times as long on rows of a hundred tokens (tests/bench/DIARY.md). Heads that
    share a key are one product: (B * kv_heads, group * T, D) by (B * kv_heads, D, T).
    """

    @staticmethod
    def forward(ctx, q, k, v, laid, turns, kind):
        blocks, fine = laid.blocks, laid.turned(turns) if kind.passes else turns
        out = torch.empty_like(q)
        out[blocks[-1].end :] = 0
        saved, kept = [], []
        for block in blocks:
            its_q, its_k = (_spread_turned(x, block, heads, fine, kind) for x, heads in ((q, kind.heads), (k, kind.kv_heads)))
            its_v = _spread_turned(v, block, kind.kv_heads, None, kind)
            its_k, its_v = its_k.flatten(0, 1), its_v.flatten(0, 1)
            made = torch.empty_like(its_q)
            for part in _parts(block.length, kind.window):
                p = _probabilities(its_q, its_k, block, part, kind)
                answer = torch.bmm(p, its_v[:, part.keys])
                _queries(made, part, kind).copy_(answer.view(_shape(made, part, kind)))
                if block.length <= KEPT:
                    kept.append(p)
            _gather_turned(made, block, None, kind, out)
            saved += [its_q, its_k, its_v]
        ctx.save_for_backward(*saved, *kept)
        ctx.blocks, ctx.kind, ctx.turns, ctx.flat = blocks, kind, fine, (q.shape, k.shape)
        return out

    @staticmethod
    def backward(ctx, d_out):
        blocks, kind, turns, tensors = ctx.blocks, ctx.kind, ctx.turns, ctx.saved_tensors
        kept = iter(tensors[3 * len(blocks) :])
        d_q, d_k, d_v = d_out.new_empty(ctx.flat[0]), d_out.new_empty(ctx.flat[1]), d_out.new_empty(ctx.flat[1])
        for d in (d_q, d_k, d_v):
            d[blocks[-1].end :] = 0
        for index, block in enumerate(blocks):
            q, k, v = tensors[3 * index : 3 * index + 3]
            d_block = _spread_turned(d_out, block, kind.heads, None, kind, empty=True)
            its_d_q = torch.empty_like(q)
            its_d_k = its_d_v = None
            parts = _parts(block.length, kind.window)
            if len(parts) > 1:
                its_d_k, its_d_v = torch.zeros_like(k), torch.zeros_like(v)
            for part in parts:
                p = next(kept) if block.length <= KEPT else _probabilities(q, k, block, part, kind)
                d_answer = _queries(d_block, part, kind).reshape(p.shape[0], -1, q.shape[-1])
                d_p = torch.bmm(d_answer, v[:, part.keys].transpose(1, 2))
                d_s = _scores_back(p, d_p, part, kind)
                turned_q = _queries(q, part, kind).reshape(d_answer.shape)
                if its_d_k is None:
                    its_d_v = torch.bmm(p.transpose(1, 2), d_answer)
                    its_d_k = torch.bmm(d_s.transpose(1, 2), turned_q)
                else:
                    its_d_v[:, part.keys] += torch.bmm(p.transpose(1, 2), d_answer)
                    its_d_k[:, part.keys] += torch.bmm(d_s.transpose(1, 2), turned_q)
                _queries(its_d_q, part, kind).copy_(torch.bmm(d_s, k[:, part.keys]).view(_shape(q, part, kind)))
            _gather_turned(its_d_q, block, turns, kind, d_q)
            _gather_turned(its_d_k.view(block.size, kind.kv_heads, block.length, -1), block, turns, kind, d_k)
            _gather_turned(its_d_v.view(block.size, kind.kv_heads, block.length, -1), block, None, kind, d_v)
        return d_q, d_k, d_v, None, None, None


def _spread_turned(flat: torch.Tensor, block: Block, heads: int, turns: tuple | None, kind: Kind, empty: bool = False) -> torch.Tensor:
    """A block of the flat rows, turned to its positions.

    Args:
        empty: padding is 0, so that a row's last token, which it repeats, has its gradient counted once.
    """
    if kind.passes:
        return kind.passes.spread(flat, block.rows, block.size, heads, turns, empty)
    picked = block.spread(flat, heads)
    if empty and block.real is not None:
        picked.mul_(block.real)
    return picked if turns is None else _turn(picked, turns[0][: block.length], turns[1][: block.length])


def _gather_turned(picked: torch.Tensor, block: Block, turns: tuple | None, kind: Kind, out: torch.Tensor) -> None:
    """The block's rows into their places of the flat order, turned back."""
    if kind.passes:
        kind.passes.gather(picked.contiguous(), block.places, turns, out[block.start : block.end])
        return
    if turns is not None:
        picked = _turn(picked, turns[0][: block.length], turns[1][: block.length], back=True)
    out[block.start : block.end] = block.gather(picked)


@dataclass(frozen=True)
class _Part:
    """Some queries of a row and the keys that any of them sees."""

    queries: slice
    keys: slice

    def seen(self, kind: Kind) -> tuple[int, int, int]:
        """How many queries, how many keys stand before the first of them, and the window."""
        return self.queries.stop - self.queries.start, self.queries.start - self.keys.start, kind.window


def _parts(length: int, window: int) -> list[_Part]:
    found = []
    for start in range(0, length, QUERIES):
        end = min(length, start + QUERIES)
        found.append(_Part(slice(start, end), slice(max(0, start - window + 1) if window else 0, end)))
    return found


def _queries(x: torch.Tensor, part: _Part, kind: Kind) -> torch.Tensor:
    """A view (B, kv_heads, group, queries, D) of (B, heads, T, D)."""
    return x.unflatten(1, (kind.kv_heads, kind.heads // kind.kv_heads))[:, :, :, part.queries]


def _shape(x: torch.Tensor, part: _Part, kind: Kind) -> tuple:
    return x.shape[0], kind.kv_heads, kind.heads // kind.kv_heads, part.queries.stop - part.queries.start, x.shape[3]


def _probabilities(q: torch.Tensor, k: torch.Tensor, block: Block, part: _Part, kind: Kind) -> torch.Tensor:
    """(B * kv_heads, group * queries, keys) of (B, heads, T, D) queries and (B * kv_heads, T, D) keys."""
    asked = _queries(q, part, kind)
    asked = asked.reshape(k.shape[0], -1, k.shape[2])
    keys = k[:, part.keys].transpose(1, 2)
    if kind.passes:
        return kind.passes.softmax(torch.bmm(asked, keys), *part.seen(kind), kind.scaling)
    mask, before = _mask(block, part, kind, q)
    if before == 0:
        scores = torch.baddbmm(mask, asked, keys, alpha=kind.scaling)
    else:
        scores = torch.baddbmm(mask[:, :1, :1], asked, keys, beta=0, alpha=kind.scaling)
        scores[:, :, before:] += mask
    return torch.softmax(scores, -1)


def _scores_back(p: torch.Tensor, d_p: torch.Tensor, part: _Part, kind: Kind) -> torch.Tensor:
    """The gradient of the products of queries and keys, before their scaling."""
    if kind.passes:
        return kind.passes.softmax_back(p, d_p, *part.seen(kind), kind.scaling)
    return torch._softmax_backward_data(d_p, p, -1, p.dtype).mul_(kind.scaling)


def _mask(block: Block, part: _Part, kind: Kind, like: torch.Tensor) -> tuple[torch.Tensor, int]:
    """What is added to the scores, (1, group * queries, keys), and how many keys before it every query sees.

    It lives as long as its block, and every layer asks for the same.
    """
    group = kind.heads // kind.kv_heads
    window = kind.window if kind.window and part.queries.stop > kind.window else 0
    first = part.keys.start if window else part.queries.start
    known = block.__dict__.setdefault("_masks", {})
    key = (part.queries.start - first, part.queries.stop - first, window, group)
    if key not in known:
        query = torch.arange(part.queries.start, part.queries.stop).unsqueeze(1)
        seen = torch.arange(first, part.keys.stop)
        hidden = seen > query
        if window:
            hidden |= seen <= query - window
        mask = torch.zeros(hidden.shape).masked_fill_(hidden, torch.finfo(like.dtype).min)
        known[key] = mask.to(like.device, like.dtype).repeat(group, 1).unsqueeze(0)
    return known[key], first - part.keys.start
