"""The parts of a decoder layer as autograd functions that keep little and compute in the base's own precision.

What is frozen gets no gradient. What is cheap is made again in the backward pass instead of being kept: norms and the
product of the gate. LoRA's thin products are added into the wide ones' results, and its fp32 weights are cast once, so
that they stay fp32 masters for the optimiser.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from tuner import native, prepack


@dataclass
class Norm:
    """An RMS norm with a frozen weight.

    Args:
        one_more: Gemma's kind, x * (1 + w) in fp32; else Llama's, x in the base's precision times w.
        passes: the compiled passes, where they are used; else torch's own.
    """

    weight: torch.Tensor
    eps: float
    one_more: bool
    passes: native.Passes | None = None

    def __post_init__(self):
        self.scale = self.weight.float() + 1 if self.one_more else self.weight.float()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, D) -> the normed rows in x's dtype, and each row's 1 / rms as (N, 1) fp32."""
        if self.passes:
            return self.passes.norm(x, self.scale, self.eps, not self.one_more)
        wide = x.float() if x.dtype != torch.float32 else x.clone()
        inverse = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(self.eps).rsqrt_()
        return self.again(x, inverse, wide), inverse

    def again(self, x: torch.Tensor, inverse: torch.Tensor, wide: torch.Tensor | None = None) -> torch.Tensor:
        """The normed rows, from the 1 / rms that is already known."""
        if self.passes:
            return self.passes.norm(x, self.scale, self.eps, not self.one_more, inverse)[0]
        wide = (x.float() if x.dtype != torch.float32 else x.clone()) if wide is None else wide
        wide.mul_(inverse)
        if not self.one_more and x.dtype != torch.float32:
            wide = wide.to(x.dtype).float()  # transformers rounds here; two casts of 0.04 ms keep to it
        return wide.mul_(self.scale).to(x.dtype)

    def backward(self, d_normed: torch.Tensor, x: torch.Tensor, inverse: torch.Tensor, rest: torch.Tensor | None = None) -> torch.Tensor:
        """The gradient of x, (N, D), plus `rest`; d_normed may be written over."""
        if self.passes:
            return self.passes.norm_back(d_normed, x, self.scale, inverse, rest)
        hat = (x.float() if x.dtype != torch.float32 else x.clone()).mul_(inverse)
        d_hat = (d_normed.float() if d_normed.dtype != torch.float32 else d_normed.clone()).mul_(self.scale)
        shared = (d_hat * hat).mean(-1, keepdim=True)
        d_x = d_hat.addcmul_(hat, shared, value=-1).mul_(inverse)
        return (d_x if rest is None else d_x.add_(rest)).to(x.dtype)


class Linear:
    """A frozen linear layer, 4-bit or dense, and the LoRA on it, if any."""

    def __init__(self, module: nn.Module):
        from peft.tuners.lora.layer import LoraLayer

        self.module = module
        self.base = module.base_layer if isinstance(module, LoraLayer) else module
        self.is_tuned = isinstance(module, LoraLayer)
        self.is_4bit = hasattr(self.base.weight, "quant_state")
        self.bias = self.base.bias
        self.prepacked: prepack.Prepacked | None = getattr(self.base, "prepacked", None)
        self._room: torch.Tensor | None = None

    def rows_through(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """x W^T + b: (N, D_in) -> (N, D_out); into `out`, where there is one and no bias."""
        if self.prepacked and self.prepacked.forth is not None:
            return self.prepacked.rows_through(x)
        if out is not None and self.bias is None:
            return torch.mm(x, self.weight().t(), out=out)
        return F.linear(x, self.weight(), self.bias)

    def room(self, rows: int) -> torch.Tensor:
        """A place for so many rows of results that is the same each time: new pages for logits take longer than their product."""
        if self._room is None or len(self._room) < rows:
            self._room = self.base.weight.new_empty(rows, self.base.out_features)
        return self._room

    def rows_added(self, x: torch.Tensor, to: torch.Tensor) -> torch.Tensor:
        """to + x W^T + b."""
        if self.prepacked and self.prepacked.forth is not None:
            return self.prepacked.rows_added(x, to)
        out = torch.addmm(to, x, self.weight().t())
        return out if self.bias is None else out.add_(self.bias)

    def back(self, d_out: torch.Tensor, to: torch.Tensor | None = None) -> torch.Tensor:
        """d_out W: (N, D_out) -> (N, D_in); plus `to`, which may be written over, where there is one."""
        if self.prepacked:
            return self.prepacked.rows_back(d_out, to)
        return d_out @ self.weight() if to is None else to.addmm_(d_out, self.weight())

    def weight(self) -> torch.Tensor:
        """(D_out, D_in) in the precision that is computed in; a 4-bit one is unpacked anew each time."""
        weight = self.base.weight
        if not self.is_4bit:
            return weight
        state = weight.quant_state
        absmax = state.absmax
        if state.nested:
            absmax = torch.ops.bitsandbytes.dequantize_blockwise(
                absmax, state.state2.absmax, state.state2.code, state.state2.blocksize, torch.float32
            ) + state.offset
        return torch.ops.bitsandbytes.dequantize_4bit(
            weight.data, absmax, state.blocksize, state.quant_type, state.shape, self.base.compute_dtype
        )

    def lora(self) -> tuple[torch.Tensor, torch.Tensor, float] | None:
        """A (R, D_in), B (D_out, R) and the scale of the adapter in use; None without one."""
        if not self.is_tuned or self.module.disable_adapters:
            return None
        name = self.module.active_adapters[0]
        if name not in self.module.lora_A:
            return None
        return self.module.lora_A[name].weight, self.module.lora_B[name].weight, self.module.scaling[name]

    def unusual(self) -> str:
        """Why this layer cannot be computed here; "" if it can."""
        if not isinstance(self.base, nn.Linear):
            return f"a {type(self.base).__name__}"
        if not self.is_tuned:
            return ""
        its = self.module
        if getattr(its, "merged", False) or len(its.active_adapters) != 1:
            return "several adapters, or a merged one"
        if any(getattr(its, "use_dora", {}).values()) or any(getattr(its, "lora_bias", {}).values()) or its.fan_in_fan_out:
            return "an adapter that is not plain LoRA"
        if any(not isinstance(drop, nn.Identity) for drop in its.lora_dropout.values()):
            return "dropout"
        return ""


def project(x: torch.Tensor, into: list[Linear], passes: native.Passes | None = None) -> list[torch.Tensor]:
    """x W^T + b + s (x A^T) B^T for each layer, (N, D_in) -> (N, D_out); x is not normed here."""
    return list(_Project.apply(x, None, into, passes, *_weights(into)))


def norm_project(x: torch.Tensor, norm: Norm, into: list[Linear]) -> list[torch.Tensor]:
    """`project` of the normed rows; only x itself and each row's 1 / rms are kept."""
    return list(_Project.apply(x, norm, into, norm.passes, *_weights(into)))


def project_add(x: torch.Tensor, residual: torch.Tensor, into: Linear, passes: native.Passes | None = None) -> torch.Tensor:
    """residual + `project`, without a pass of its own for the sum."""
    return _ProjectAdd.apply(x, residual, into, passes, *_weights([into]))


def mlp(x: torch.Tensor, norm: Norm, gate: Linear, up: Linear, down: Linear, act: str, add: bool) -> torch.Tensor:
    """down(act(gate(n)) * up(n)) of the normed rows n, plus x itself if `add`; (N, D) -> (N, D)."""
    return _Mlp.apply(x, norm, (gate, up, down), act, add, *_weights([gate, up, down]))


def norm_rows(x: torch.Tensor, norm: Norm) -> torch.Tensor:
    """The norm alone, over the last dimension of (N, D)."""
    return _NormRows.apply(x, norm)


def _weights(layers: list[Linear]) -> list[torch.Tensor]:
    """A and B of the layers that have LoRA, as autograd must see them: as arguments."""
    found = []
    for layer in layers:
        its = layer.lora()
        if its is not None:
            found += its[:2]
    return found


class _Thin:
    """The LoRA side of several layers that read the same rows: one product for all A, one for each B."""

    def __init__(self, layers: list[Linear], dtype: torch.dtype, passes: native.Passes | None = None):
        self.passes = passes
        self.loras = [layer.lora() for layer in layers]
        with_lora = [its for its in self.loras if its is not None]
        self.down = torch.cat([a for a, _, _ in with_lora]).to(dtype) if with_lora else None  # (sum R, D_in)
        self.slices, place = [], 0
        for its in self.loras:
            rank = 0 if its is None else its[0].shape[0]
            self.slices.append(slice(place, place + rank))
            place += rank
        # The scale rides on B: products of rank width, not passes over the wide result.
        self.ups = [None if its is None else (its[1] * its[2]).to(dtype) for its in self.loras]

    def rows(self, x: torch.Tensor) -> torch.Tensor | None:
        """(N, D_in) -> (N, sum R)."""
        if self.down is None:
            return None
        if not (self.passes and self.passes.takes_thin(x, len(self.down))):
            return x @ self.down.t()
        x = x.contiguous()
        out = x.new_empty(len(x), len(self.down))
        self.passes.thin_rows(x, self.down, out, turned=True)
        return out

    def add(self, out: torch.Tensor, thin: torch.Tensor | None, index: int) -> torch.Tensor:
        """Add layer `index`'s share to its result, in place."""
        up = self.ups[index]
        if up is not None and self.passes and self.passes.takes_thin(out, up.shape[1]):
            self.passes.thin_add(out, thin[:, self.slices[index]], up, turned=True)
        elif up is not None:
            out.addmm_(thin[:, self.slices[index]], up.t())
        return out

    def backward(self, d_outs: list[torch.Tensor], thin: torch.Tensor, d_x: torch.Tensor | None, rows) -> list[torch.Tensor]:
        """Gradients of A and B, layer by layer; x's own is added into d_x, in place.

        Args:
            d_outs: each layer's (N, D_out).
            rows: gives the rows that the layers read; asked once d_x is whole.
        """
        if self.down is None:
            return []
        d_thin = torch.empty_like(thin)
        d_ups = []
        for index, (d_out, its) in enumerate(zip(d_outs, self.loras)):
            if its is None:
                d_ups.append(None)
                continue
            where = self.slices[index]
            if self.passes and self.passes.takes_thin(d_out, its[0].shape[0]):
                d_out = d_out.contiguous()
                self.passes.thin_rows(d_out, self.ups[index], d_thin[:, where])
                d_ups.append(self.passes.thin_sum(d_out, thin[:, where], its[2]))
            else:
                d_thin[:, where] = d_out @ self.ups[index]
                d_ups.append((d_out.t() @ thin[:, where]).to(its[1].dtype).mul_(its[2]))
        if d_x is not None and self.passes and self.passes.takes_thin(d_x, len(self.down)):
            self.passes.thin_add(d_x, d_thin, self.down)
        elif d_x is not None:
            d_x.addmm_(d_thin, self.down)
        read = rows()
        if self.passes and self.passes.takes_thin(read, d_thin.shape[1]):
            d_down = self.passes.thin_sum(read.contiguous(), d_thin, by_rank=True)
        else:
            d_down = d_thin.t() @ read
        found = []
        for index, its in enumerate(self.loras):
            if its is not None:
                found += [d_down[self.slices[index]].to(its[0].dtype), d_ups[index]]
        return found


def _d_wide(d_outs: list[torch.Tensor], layers: list[Linear]) -> torch.Tensor:
    """The gradient of the rows that several layers read, through their frozen weights."""
    d_x = None
    for d_out, layer in zip(d_outs, layers):
        d_x = layer.back(d_out, d_x)
    return d_x


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, norm, layers, passes, *weights):
        thin_side = _Thin(layers, x.dtype, passes)
        rows, inverse = (x, None) if norm is None else norm.forward(x)
        thin = thin_side.rows(rows)
        outs = [thin_side.add(layer.rows_through(rows), thin, index) for index, layer in enumerate(layers)]
        ctx.save_for_backward(x, inverse, thin)
        ctx.norm, ctx.layers, ctx.thin_side = norm, layers, thin_side
        return tuple(outs)

    @staticmethod
    def backward(ctx, *d_outs):
        x, inverse, thin = ctx.saved_tensors
        rows = (lambda: x) if ctx.norm is None else (lambda: ctx.norm.again(x, inverse))
        d_rows = _d_wide(d_outs, ctx.layers) if ctx.needs_input_grad[0] else None
        d_weights = ctx.thin_side.backward(d_outs, thin, d_rows, rows)
        if d_rows is not None and ctx.norm is not None:
            d_rows = ctx.norm.backward(d_rows, x, inverse)
        return d_rows, None, None, None, *d_weights


class _ProjectAdd(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, residual, layer, passes, *weights):
        thin_side = _Thin([layer], x.dtype, passes)
        thin = thin_side.rows(x)
        out = layer.rows_added(x, residual)
        ctx.save_for_backward(x, thin)
        ctx.layer, ctx.thin_side = layer, thin_side
        return thin_side.add(out, thin, 0)

    @staticmethod
    def backward(ctx, d_out):
        x, thin = ctx.saved_tensors
        d_x = ctx.layer.back(d_out)
        d_weights = ctx.thin_side.backward([d_out], thin, d_x, lambda: x)
        return d_x, d_out, None, None, *d_weights


_ACT = {"silu": F.silu, "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh")}
_D_ACT = {
    "silu": lambda d_out, x: torch.ops.aten.silu_backward.grad_input(d_out, x, grad_input=d_out),
    "gelu_pytorch_tanh": lambda d_out, x: torch.ops.aten.gelu_backward.grad_input(d_out, x, approximate="tanh", grad_input=d_out),
}
ACTS = tuple(_ACT)


class _Mlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, norm, layers, act, add, *weights):
        gate, up, down = layers
        wide_side, thin_side = _Thin([gate, up], x.dtype, norm.passes), _Thin([down], x.dtype, norm.passes)
        rows, inverse = norm.forward(x)
        thin = wide_side.rows(rows)
        gated, upper = (wide_side.add(layer.rows_through(rows), thin, index) for index, layer in enumerate((gate, up)))
        middle = norm.passes.gate(gated, upper, act) if norm.passes else _ACT[act](gated).mul_(upper)
        down_thin = thin_side.rows(middle)
        out = thin_side.add(down.rows_added(middle, x) if add else down.rows_through(middle), down_thin, 0)
        ctx.save_for_backward(x, inverse, thin, gated, upper, down_thin)
        ctx.norm, ctx.layers, ctx.act, ctx.add, ctx.sides = norm, layers, act, add, (wide_side, thin_side)
        return out

    @staticmethod
    def backward(ctx, d_out):
        x, inverse, thin, gated, upper, down_thin = ctx.saved_tensors
        gate, up, down = ctx.layers
        wide_side, thin_side = ctx.sides
        d_middle = down.back(d_out)
        made: dict[str, torch.Tensor] = {}

        def back_through_gate() -> torch.Tensor:
            made["gated"], made["upper"], middle = _gate_back(d_middle, gated, upper, ctx.act, ctx.norm.passes)
            return middle

        d_down = thin_side.backward([d_out], down_thin, d_middle, back_through_gate)
        if not made:  # no LoRA on it
            back_through_gate()
        d_rows = _d_wide([made["gated"], made["upper"]], [gate, up])
        d_wide = wide_side.backward([made["gated"], made["upper"]], thin, d_rows, lambda: ctx.norm.again(x, inverse))
        d_x = ctx.norm.backward(d_rows, x, inverse, d_out if ctx.add else None)
        return d_x, None, None, None, None, *d_wide, *d_down


def _gate_back(d_middle: torch.Tensor, gated: torch.Tensor, upper: torch.Tensor, act: str, passes: native.Passes | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of both sides of act(gated) * upper, and that product again; all three are written over."""
    if passes:
        return passes.gate_back(d_middle, gated, upper, act)
    d_upper = _ACT[act](gated)
    middle = d_upper * upper
    d_upper.mul_(d_middle)
    return _D_ACT[act](d_middle.mul_(upper), gated), d_upper, middle


class _NormRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, norm):
        rows, inverse = norm.forward(x)
        ctx.save_for_backward(x, inverse)
        ctx.norm = norm
        return rows

    @staticmethod
    def backward(ctx, d_rows):
        x, inverse = ctx.saved_tensors
        return ctx.norm.backward(d_rows.clone(), x, inverse), None
