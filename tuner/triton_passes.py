"""The passes between products on a card, in Triton: the functions of `native.Passes`, so that `blocks` and `loss` call either.

Imported only where there is a card: torch's CPU builds come without Triton.
"""

import os
from functools import cache

import torch
import triton
import triton.language as tl

ACTS = {"silu": 0, "gelu_pytorch_tanh": 1}
# The widest row that a norm holds at once.
MOST_WIDTH = 32_768
_ELEMENTS, _LOGITS = 1024, 4096


@cache
def load() -> "TritonPasses | None":
    """The passes, once one of them has run on this card; Triton compiles with a C compiler that may be missing."""
    if os.environ.get("TUNER_NATIVE") == "0":
        return None
    try:
        passes, x = TritonPasses(), torch.ones(2, 64, device="cuda", dtype=torch.float16)
        passes.norm(x, torch.ones(64, device="cuda"), 1e-5, True)
        torch.cuda.synchronize()
    except Exception:  # whatever Triton, its compiler or the driver raise: torch's own passes are there
        return None
    return passes


def fits(tensor: torch.Tensor) -> bool:
    """Whether the passes take rows of this one's width, on a card."""
    return tensor.device.type == "cuda" and tensor.shape[-1] <= MOST_WIDTH


class TritonPasses:
    """Each kernel below on tensors of a card; see `native.Native` for what each gives."""

    def takes_thin(self, x: torch.Tensor, rank: int) -> bool:
        """Never: a card's own products are as good at LoRA's thin ones."""
        return False

    def norm(self, x: torch.Tensor, scale: torch.Tensor, eps: float, twice: bool, inverse: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows of (N, D) over their rms, times the fp32 scale; and each row's 1 / rms, (N, 1) fp32, made unless given."""
        x, known = x.contiguous(), inverse is not None
        out = torch.empty_like(x)
        inverse = inverse if known else x.new_empty(len(x), 1, dtype=torch.float32)
        _norm[(len(x),)](x, scale, out, inverse, x.shape[1], eps, twice, known, **_row(x.shape[1]))
        return out, inverse

    def norm_back(self, d_y: torch.Tensor, x: torch.Tensor, scale: torch.Tensor, inverse: torch.Tensor, rest: torch.Tensor | None) -> torch.Tensor:
        """The gradient of x in the place of d_y, plus `rest`."""
        d_y, x, rest = d_y.contiguous(), x.contiguous(), d_y if rest is None else rest.contiguous()
        _norm_back[(len(x),)](d_y, x, scale, inverse, rest, x.shape[1], rest is not d_y, **_row(x.shape[1]))
        return d_y

    def gate(self, gate: torch.Tensor, up: torch.Tensor, act: str) -> torch.Tensor:
        """act(gate) * up."""
        out = torch.empty_like(gate)
        _gate[(triton.cdiv(gate.numel(), _ELEMENTS),)](gate, up, out, gate.numel(), ACTS[act], _ELEMENTS)
        return out

    def gate_back(self, d_middle: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, act: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """d_gate in the place of d_middle, d_up in that of up, act(gate) * up once more in that of gate."""
        _gate_back[(triton.cdiv(gate.numel(), _ELEMENTS),)](d_middle, gate, up, gate.numel(), ACTS[act], _ELEMENTS)
        return d_middle, up, gate

    def turn(self, x: torch.Tensor, places: torch.Tensor, turns: tuple, heads: int, back: bool = False) -> torch.Tensor:
        """(N, heads * D) turned by the fp32 cos and sin, (T, D), of each token's place, or back; 0 where that is below 0."""
        x, out = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
        width = x.shape[1] // heads
        _turn[(len(x),)](x, places, *turns, out, heads, width, back, triton.next_power_of_2(heads), triton.next_power_of_2(width // 2))
        return out

    def cross_entropy(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """-log softmax(logits)[target], (N,) fp32; the logits, (N, V), become their gradient; a target below 0 has no loss."""
        losses = logits.new_empty(len(logits), dtype=torch.float32)
        _cross_entropy[(len(logits),)](logits, targets.flatten(), losses, logits.shape[1], _LOGITS, num_warps=8)
        return losses


def _row(width: int) -> dict:
    block = triton.next_power_of_2(width)
    return {"block": block, "num_warps": max(1, min(16, block // 512))}


# Kernels ----------------------------------------------------------------------------------------------------------

@triton.jit
def _norm(x, scale, out, inverses, width, eps, twice: tl.constexpr, known: tl.constexpr, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, block)
    there = place < width
    its = tl.load(x + row * width + place, there, 0.0)
    wide = its.to(tl.float32)
    if known:
        inverse = tl.load(inverses + row)
    else:
        inverse = 1.0 / tl.sqrt(tl.sum(wide * wide, 0) / width + eps)
        tl.store(inverses + row, inverse)
    wide = wide * inverse
    if twice:  # transformers rounds here
        wide = wide.to(its.dtype).to(tl.float32)
    tl.store(out + row * width + place, (wide * tl.load(scale + place, there, 0.0)).to(its.dtype), there)


@triton.jit
def _norm_back(d_y, x, scale, inverses, rest, width, has_rest: tl.constexpr, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, block)
    there = place < width
    d_its = tl.load(d_y + row * width + place, there, 0.0)
    inverse = tl.load(inverses + row)
    hat = tl.load(x + row * width + place, there, 0.0).to(tl.float32) * inverse
    d_hat = d_its.to(tl.float32) * tl.load(scale + place, there, 0.0)
    d_x = (d_hat - hat * (tl.sum(d_hat * hat, 0) / width)) * inverse
    if has_rest:
        d_x += tl.load(rest + row * width + place, there, 0.0).to(tl.float32)
    tl.store(d_y + row * width + place, d_x.to(d_its.dtype), there)


@triton.jit
def _act(x, act: tl.constexpr):
    """The activation and its slope, in fp32."""
    if act == 0:
        share = tl.sigmoid(x)
        return x * share, share * (1.0 + x * (1.0 - share))
    inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
    tanh = 2.0 * tl.sigmoid(2.0 * inner) - 1.0
    slope = 0.7978845608028654 * (1.0 + 3.0 * 0.044715 * x * x)
    return 0.5 * x * (1.0 + tanh), 0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh * tanh) * slope


@triton.jit
def _gate(gate, up, out, count, act: tl.constexpr, block: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    there = place < count
    its = tl.load(gate + place, there, 0.0)
    acted, _ = _act(its.to(tl.float32), act)
    tl.store(out + place, (acted * tl.load(up + place, there, 0.0).to(tl.float32)).to(its.dtype), there)


@triton.jit
def _gate_back(d_middle, gate, up, count, act: tl.constexpr, block: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    there = place < count
    its = tl.load(gate + place, there, 0.0)
    d, upper = tl.load(d_middle + place, there, 0.0).to(tl.float32), tl.load(up + place, there, 0.0).to(tl.float32)
    acted, slope = _act(its.to(tl.float32), act)
    tl.store(d_middle + place, (d * upper * slope).to(its.dtype), there)
    tl.store(up + place, (d * acted).to(its.dtype), there)
    tl.store(gate + place, (acted * upper).to(its.dtype), there)


@triton.jit
def _turn(x, places, cos, sin, out, heads, width, back: tl.constexpr, heads_block: tl.constexpr, half_block: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    place = tl.load(places + token)
    half = width // 2
    at = tl.arange(0, half_block)
    table, in_half = tl.maximum(place, 0) * width + at, at < half
    cos_1, cos_2 = tl.load(cos + table, in_half, 0.0)[None, :], tl.load(cos + table + half, in_half, 0.0)[None, :]
    sin_1, sin_2 = tl.load(sin + table, in_half, 0.0)[None, :], tl.load(sin + table + half, in_half, 0.0)[None, :]
    head = tl.arange(0, heads_block)
    where = token * heads * width + head[:, None] * width + at[None, :]
    there = (head[:, None] < heads) & in_half[None, :]
    its = tl.load(x + where, there, 0.0)
    first, second = its.to(tl.float32), tl.load(x + where + half, there, 0.0).to(tl.float32)
    if back:
        one, two = first * cos_1 + second * sin_2, second * cos_2 - first * sin_1
    else:
        one, two = first * cos_1 - second * sin_1, second * cos_2 + first * sin_2
    real = place >= 0
    tl.store(out + where, tl.where(real, one, 0.0).to(its.dtype), there)
    tl.store(out + where + half, tl.where(real, two, 0.0).to(its.dtype), there)


@triton.jit
def _cross_entropy(logits, targets, losses, width: tl.constexpr, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + row)
    most, total = float("-inf"), 0.0
    for start in range(0, width, block):
        place = start + tl.arange(0, block)
        its = tl.load(logits + row * width + place, place < width, float("-inf")).to(tl.float32)
        higher = tl.maximum(most, tl.max(its, 0))
        total = total * tl.exp(most - higher) + tl.sum(tl.exp(its - higher), 0)
        most = higher
    whole = most + tl.log(total)
    wanted = tl.load(logits + row * width + tl.maximum(target, 0)).to(tl.float32)
    tl.store(losses + row, tl.where(target >= 0, tl.where(whole < wanted, 0.0, whole - wanted), 0.0))
    tl.debug_barrier()  # the target's logit is read before it is written over
    for start in range(0, width, block):
        place = start + tl.arange(0, block)
        here = tl.load(logits + row * width + place, place < width, 0.0)
        share = tl.exp(here.to(tl.float32) - whole) - tl.where(place == target, 1.0, 0.0)
        tl.store(logits + row * width + place, tl.where(target >= 0, share, 0.0).to(here.dtype), place < width)
