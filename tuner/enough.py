"""Enough data? What a learning curve over fractions of the rows says, and what more rows would likely bring."""

import math
from dataclasses import dataclass

import numpy as np

# Of the rows: each is trained on by itself, with as many steps, and measured on the same held-out rows.
FRACTIONS = (1 / 8, 1 / 4, 1 / 2, 1.0)
# Steps of each training, at most; and how often it is measured, the best of which counts.
MOST_STEPS, MEASURED = 120, 4
# Fewer rows in the smallest fraction are no training.
FEWEST_ROWS = 8
# How far a point of the curve is from what another seed would give, as a share of the loss, at least.
NOISE = 0.005
# How many times the rows the curve is drawn for.
MORE = (2, 4)
# More rows are called worth it where twice as many likely bring at least this share.
WORTH = 0.02
# Exponents of the power law that are thought possible. Measured ones lie between 0.05 and 0.5 (Hestness et al. 2017, arXiv:1712.00409).
_EXPONENTS = np.linspace(0.05, 1.0, 39)


@dataclass(frozen=True)
class Forecast:
    """The loss that is to be expected with so many rows, and between what bounds 9 of 10 times."""

    rows: int
    loss: float
    low: float
    high: float


def sizes(rows: int, batch_size: int, steps: int) -> list[int]:
    """How many rows each training has, the smallest first; no more than its steps can read once.

    Args:
        rows: training sequences there are.
        steps: optimiser steps of each training.
    """
    most = min(rows, batch_size * steps)
    found = sorted({math.ceil(share * most) for share in FRACTIONS})
    return [size for size in found if size >= FEWEST_ROWS] or [most]


def forecast(points: list[tuple[int, float]], rows: list[int]) -> list[Forecast]:
    """What a power law a + b rows^-c through the points says of other numbers of rows.

    Every law that is not ruled out by the points counts, by how well it fits them: few points leave wide bounds, as they should.

    Args:
        points: (rows, held-out loss), at least three.
    """
    n, losses = np.array([size for size, _ in points], float), np.array([loss for _, loss in points])
    sigma = NOISE * losses.mean()
    # Floors from 0 up to the loss itself, which is a curve that is flat already, densely where they lie close under it; for
    # each floor and exponent the best factor, and its own spread.
    under = np.concatenate([np.linspace(0.1, 1, 30), np.geomspace(0.001, 0.1, 30), np.linspace(-3, 3, 13) * sigma / losses.min()])
    a, c = (grid.ravel() for grid in np.meshgrid(losses.min() * (1 - under), _EXPONENTS, indexing="ij"))
    basis = (n[None, :] / n.min()) ** -c[:, None]
    weight = (basis**2).sum(1)
    b = (basis * (losses - a[:, None])).sum(1) / weight  # below 0 too: a flat curve's noise may rise
    wrong = ((losses - a[:, None] - b[:, None] * basis) ** 2).sum(1)
    # What the best law leaves unexplained is noise too.
    sigma = max(sigma, math.sqrt(wrong.min() / max(1, len(points) - 2)))
    likely = np.exp(-(wrong - wrong.min()) / (2 * sigma**2)) / np.sqrt(weight)
    pick = np.random.default_rng(0)
    drawn = pick.choice(len(a), 20_000, p=likely / likely.sum())
    factors = b[drawn] + pick.normal(0, 1, len(drawn)) * sigma / np.sqrt(weight[drawn])
    found = []
    for count in rows:
        its = a[drawn] + factors * (count / n.min()) ** -c[drawn]
        low, middle, high = np.quantile(its, [0.05, 0.5, 0.95])
        found.append(Forecast(count, float(middle), float(low), float(high)))
    return found


def in_words(points: list[tuple[int, float]], all_rows: int) -> str:
    """What the curve says, in two or three sentences."""
    points = sorted(points)
    if len(points) < 3:
        return f"{all_rows:,} rows are too few to try fractions of. Any more rows will help to tell."
    (small, before), (most, now) = points[-2:]
    here, twice = forecast(points, [most, 2 * most])
    share = (here.loss - twice.loss) / here.loss
    spread = f"{2 * most:,} rows would likely bring {twice.loss:.3f} (9 times of 10 between {twice.low:.3f} and {twice.high:.3f})"
    gain = before - now
    if gain <= 2 * NOISE * now and share < WORTH:
        verdict = "That is enough: more rows of this kind would bring little."
    elif share >= WORTH:
        verdict = f"More rows would help: twice as many likely lower the loss by {share:.0%}."
    else:
        verdict = "More rows would help a little."
    read = f" The curve was made with {most:,} of the {all_rows:,} rows." if most < all_rows else ""
    return f"{verdict} From {small:,} to {most:,} rows the held-out loss went from {before:.3f} to {now:.3f}; {spread}.{read}"
