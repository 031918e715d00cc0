"""The receipt: how many rows came in, what each step did to them, how many came out, and a hash of these."""

import hashlib
from dataclasses import dataclass

import numpy as np

from tuner.findings import Rows, faults_of
from tuner.recipe import MOST_HELD_OUT, Recipe

# Up to here all training rows are encoded, also where the steps see fewer.
ENOUGH_AT_ONCE = 5_000


@dataclass
class Chosen:
    """Which rows a run takes: indices into Rows, in their order, and in words how they were chosen."""

    train: np.ndarray
    held_out: np.ndarray
    split: str
    steps: list[dict]


def choose(rows: Rows, recipe: Recipe) -> Chosen:
    """The rows of a run: all of them, or as many as its steps can see where that is far fewer, and as many held out as it says.

    Raises:
        UserError: fewer than two different rows.
    """
    held, words = rows.held_out(recipe.held_out_share, recipe.seed)
    train, held_out, steps = np.flatnonzero(~held), np.flatnonzero(held), []
    if len(held_out) > (most := recipe.most_held_out):
        why = "fewer show as much" if most == MOST_HELD_OUT else f"the run holds out {most:,}"
        steps.append({"step": f"rows kept aside, neither trained on nor measured, since {why}", "rows": len(held_out) - most})
        words = f"{words}; {most:,} of them by the seed"
        # In an order of its own: how many are held out must not depend on what is trained on, nor the other way round.
        held_out = np.sort(np.random.default_rng((recipe.seed, 1)).permutation(held_out)[:most])
    order, needed = np.random.default_rng(recipe.seed), recipe.max_steps * recipe.batch_size
    if needed and len(train) > max(4 * needed, ENOUGH_AT_ONCE):
        # Encoding a million rows for thirty steps would take longer than the steps.
        steps.append({"step": f"training rows that {recipe.max_steps:,} steps cannot reach", "rows": len(train) - 2 * needed})
        train = np.sort(order.choice(train, 2 * needed, replace=False))
    return Chosen(train, held_out, words, steps)


def left_out(rows: Rows) -> list[dict]:
    """The records that give no row, a step for each reason."""
    faults = faults_of(rows.task)
    return [{"step": f"{faults[name].title}: left out", "rows": len(places)} for name, places in rows.left_out.items() if len(places)]


def make(source: dict, rows: Rows, chosen: Chosen) -> dict:
    """The receipt of a run.

    Returns:
        source, rows_in, steps ({"step", "rows"} each, in order), rows_out, train_rows, held_out_rows, split, and sha256:
        over the 16-byte BLAKE2b hash of each row's content (see `scan.content`), training rows first.
    """
    digest = hashlib.sha256()
    for its in (chosen.train, chosen.held_out):
        digest.update(np.ascontiguousarray(rows.seen["same"][its]).tobytes())
    steps = [*left_out(rows), *({name: step[name] for name in ("step", "rows", "rows_out")} for step in rows.steps), *chosen.steps]
    return {
        "source": source, "rows_in": rows.came_in, "steps": steps, "rows_out": len(chosen.train) + len(chosen.held_out),
        "train_rows": len(chosen.train), "held_out_rows": len(chosen.held_out), "split": chosen.split, "sha256": digest.hexdigest(),
    }
