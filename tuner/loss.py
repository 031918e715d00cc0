"""Cross-entropy where something is learned, in slices, with the gradient taken in the forward pass."""

import torch
from torch.nn import functional as F

from tuner import blocks, native
from tuner.cost import SLICE_BYTES

# Tokens whose logits are made at once, where a slice's bytes would allow more.
MOST_ROWS = {"cpu": 256, "cuda": 4096}
# The last slice is rounded up to a multiple of this.
STEP = 64


def slice_rows(vocab: int, itemsize: int, device: str = "cpu") -> int:
    """Tokens whose logits are made at once: a power of two between 64 and MOST_ROWS."""
    rows = MOST_ROWS[device]
    while rows > STEP and rows * vocab * itemsize > SLICE_BYTES[device] * 1.1:
        rows //= 2
    return rows


def cross_entropy(
    hidden: torch.Tensor, head: blocks.Linear, targets: torch.Tensor, passes: native.Passes | None = None, hits: torch.Tensor | None = None
) -> torch.Tensor:
    """-log softmax(hidden head^T)[target] of each token; the head is frozen.

    Args:
        hidden: (N, D), normed.
        head: (D) -> (V) without a bias.
        targets: (N,).
        passes: the compiled passes, where they are used.
        hits: (N,) bool, filled with whether the target is the likeliest token; only where no gradient is wanted.

    Returns:
        (N,) in fp32. Where a gradient is wanted it is made here, slice by slice, so that no logits are kept.
    """
    if hidden.requires_grad and torch.is_grad_enabled():
        return _CrossEntropy.apply(hidden, head, targets, passes)
    count, rows = len(targets), slice_rows(head.base.out_features, 4, hidden.device.type)
    losses = torch.empty(count, dtype=torch.float32, device=hidden.device)
    # In one place for all slices: made anew for each, the allocator finds no room for it among what the last ones left, and grows.
    room = hidden.new_empty((min(rows, count), head.base.out_features), dtype=torch.float32)
    for start in range(0, count, rows):
        wanted = targets[start : start + rows]
        logits = room[: len(wanted)].copy_(head.rows_through(hidden[start : start + rows]))
        losses[start : start + rows] = F.cross_entropy(logits, wanted, reduction="none")
        if hits is not None:
            torch.eq(logits.argmax(1), wanted, out=hits[start : start + rows])
    return losses


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, head, targets, passes):
        count, rows = len(targets), slice_rows(head.base.out_features, hidden.element_size(), hidden.device.type)
        losses = torch.empty(count, dtype=torch.float32, device=hidden.device)
        # Of each token's own loss, not of a sum: what the caller does with the losses comes later, as a factor.
        d_hidden = torch.empty_like(hidden)
        for start in range(0, count, rows):
            wanted = targets[start : start + rows].unsqueeze(1)
            rest = -len(wanted) % STEP  # few shapes instead of many: see fast.TOKENS_STEP
            its = F.pad(hidden[start : start + rows], (0, 0, 0, rest))
            logits = head.rows_through(its, head.room(rows)[: len(its)] if passes else None)
            if passes:
                losses[start : start + rows] = passes.cross_entropy(logits, F.pad(wanted, (0, 0, 0, rest), value=-1))[: len(its) - rest]
                d_hidden[start : start + rows] = head.back(logits)[: len(its) - rest]
                continue
            shares = torch.softmax(logits, 1)
            wanted = F.pad(wanted, (0, 0, 0, rest))
            # In fp16 small probabilities vanish, so the losses are made from the logits; in bf16 and fp32 they are kept,
            # and one of 0 is below 1e-38: its loss is told as 87, its gradient is right.
            if logits.dtype == torch.float16:
                its = torch.logsumexp(logits.float(), 1, keepdim=True) - logits.gather(1, wanted).float()
            else:
                its = shares.gather(1, wanted).float().clamp_(min=1e-38).log_().neg_()
            losses[start : start + rows] = its[: len(shares) - rest, 0]
            shares[torch.arange(len(wanted), device=wanted.device), wanted[:, 0]] -= 1  # scatter_add_ takes as long as the softmax
            d_hidden[start : start + rows] = head.back(shares)[: len(shares) - rest]
        ctx.save_for_backward(d_hidden)
        return losses

    @staticmethod
    def backward(ctx, d_losses):
        (d_hidden,) = ctx.saved_tensors
        return (d_hidden * d_losses.unsqueeze(1)).to(d_hidden.dtype), None, None, None
