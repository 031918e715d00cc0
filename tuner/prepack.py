"""Frozen weights prepacked for oneDNN, once for each direction; a product with them gives the same bits in less time.

A plain product lays its weight out anew at every call, which costs a sixth of it at a thousand rows.
"""

import types

import torch
from torch import nn

# What the layout is chosen for; other numbers of rows take it as well.
ROWS, HEAD_ROWS = 1024, 256


def is_possible(weight: torch.Tensor) -> bool:
    """Whether oneDNN has such products for weights like this one: bf16 on a CPU that computes in it."""
    return (
        weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and torch.backends.mkldnn.is_available()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


class Prepacked:
    """One frozen weight, (D_out, D_in), for products from D_in to D_out and back.

    Args:
        forth: None for a head, whose weight is the embedding's and stays as it is.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, is_head: bool):
        pack, rows = torch.ops.mkldnn._reorder_linear_weight, HEAD_ROWS if is_head else ROWS
        self.bias = bias
        self.forth = None if is_head else pack(weight.detach().contiguous(), rows)
        self.back = pack(weight.detach().t().contiguous(), rows)

    def rows_through(self, x: torch.Tensor) -> torch.Tensor:
        """x W^T + b: (..., D_in) -> (..., D_out)."""
        return torch.ops.mkldnn._linear_pointwise(x, self.forth, self.bias, "none", [], "")

    def rows_added(self, x: torch.Tensor, to: torch.Tensor) -> torch.Tensor:
        """to + x W^T + b."""
        return torch.ops.mkldnn._linear_pointwise.binary(x, to, self.forth, self.bias, "add")

    def rows_back(self, d_out: torch.Tensor, to: torch.Tensor | None = None) -> torch.Tensor:
        """d_out W: (..., D_out) -> (..., D_in); plus `to`, where there is one."""
        if to is None:
            return torch.ops.mkldnn._linear_pointwise(d_out, self.back, None, "none", [], "")
        return torch.ops.mkldnn._linear_pointwise.binary(d_out, to, self.back, None, "add")


def take(linear: nn.Linear) -> None:
    """Let a frozen layer compute with prepacked weights from now on, its own forward too; the plain weight is given up.

    Its `weight` keeps type and device, since PEFT asks for them, and holds nothing.
    """
    linear.prepacked = Prepacked(linear.weight, linear.bias, is_head=False)
    linear.weight.data = linear.weight.new_empty(0)
    linear.forward = types.MethodType(_forward, linear)


def take_head(head: nn.Linear) -> None:
    """The same for the way back through a head; the weight stays, the embedding needs it."""
    head.prepacked = Prepacked(head.weight, None, is_head=True)


def _forward(self, x: torch.Tensor) -> torch.Tensor:
    return _Through.apply(x, self.prepacked)


class _Through(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, its):
        ctx.its = its
        return its.rows_through(x)

    @staticmethod
    def backward(ctx, d_out):
        return ctx.its.rows_back(d_out.contiguous()), None
