"""The learning-rate finder: which rates a sweep tries, which one its losses speak for, and why."""

import math
from dataclasses import dataclass
from statistics import median

# Rates from the first to the last, each higher than the one before by the same factor, one optimiser step each.
LOWEST, HIGHEST, STEPS = 1e-6, 3e-2, 48
# The sweep ends where the loss stands so much above its lowest, as a share of what it had fallen by or of the loss itself.
OVER = 0.25
# A step too far shows only in the steps after it, so the rate stays below that of the lowest loss by this factor.
BELOW_LOWEST = 3.0
# The loss must fall by at least this share, else the sweep says nothing.
FELL = 0.01


@dataclass(frozen=True)
class Suggestion:
    """What a sweep speaks for.

    Args:
        learning_rate: rounded to one digit; None where it speaks for none.
        reason: in a sentence or two.
    """

    learning_rate: float | None
    reason: str


def rates() -> list[float]:
    """The learning rate of each step of a sweep."""
    factor = (HIGHEST / LOWEST) ** (1 / (STEPS - 1))
    return [LOWEST * factor**step for step in range(STEPS)]


def is_over(points: list[tuple[float, float]]) -> bool:
    """Whether a sweep has seen enough: its loss is no number, or far above its lowest.

    Args:
        points: (learning rate, loss of the same held-out rows after a step at that rate), rates rising.
    """
    losses = [loss for _, loss in points]
    if not math.isfinite(losses[-1]):
        return True
    fallen = losses[0] - min(losses)
    return losses[-1] > min(losses) + max(OVER * losses[0], OVER * fallen) and len(points) > 5


def suggest(points: list[tuple[float, float]]) -> Suggestion:
    """The rate at which the loss fell fastest, or a third of that with the lowest loss, whichever is lower.

    The same rows are measured after each step, so the curve is smooth but for the sweep's own roughness, which a median
    of three takes away (Smith 2015, arXiv:1506.01186, for the sweep).

    Args:
        points: as in `is_over`; the first at a rate of 0, before any step.
    """
    finite = [(rate, loss) for rate, loss in points if math.isfinite(loss)]
    if len(finite) < 8:
        return Suggestion(None, f"Only {len(finite)} learning rates were tried, too few to say anything. Let it go on for longer.")
    rates_, losses = [rate for rate, _ in finite[1:]], [loss for _, loss in finite]
    smooth = [median(losses[max(0, index - 1) : index + 2]) for index in range(len(losses))][1:]
    lowest = min(range(len(smooth)), key=smooth.__getitem__)
    fall = losses[0] - smooth[lowest]
    if fall < FELL * losses[0]:
        return Suggestion(
            None,
            f"At no learning rate the held-out loss fell clearly ({losses[0]:.3f} before, {smooth[lowest]:.3f} at best), so the sweep speaks for none. "
            "Are there enough rows, and do they have something in common?",
        )
    # Between neighbours two apart, so that one rough step is no slope; each step multiplies the rate by the same factor.
    steepest = max(range(1, max(2, lowest)), key=lambda index: smooth[index - 1] - smooth[min(index + 1, len(smooth) - 1)])
    by_slope, by_lowest = rates_[steepest], rates_[lowest] / BELOW_LOWEST
    chosen = float(f"{min(by_slope, by_lowest):.1g}")
    if by_slope <= by_lowest:
        reason = f"The held-out loss falls fastest near {by_slope:.1e}, and is lowest near {rates_[lowest]:.1e}, behind which steps go too far."
    else:
        reason = f"The held-out loss is lowest near {rates_[lowest]:.1e}; a third of that leaves room, since a step too far shows only later."
    return Suggestion(chosen, f"{reason} It fell from {losses[0]:.3f} to {smooth[lowest]:.3f} on the way.")
