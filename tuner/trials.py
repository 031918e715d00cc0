"""Trials: short trainings whose result is a picture, not an adapter; what they cost, started and found again like runs."""

import shutil
from dataclasses import dataclass, replace

from tuner import data, enough, finder, identity, quote
from tuner import plan as plans
from tuner import run as runs
from tuner.errors import UserError, shorten
from tuner.home import write_json
from tuner.recipe import Recipe

RATE, ENOUGH = "rate", "enough"
TITLES = {RATE: "Learning-rate finder", ENOUGH: "Enough data?"}
# Of one person; older ones are deleted when another begins.
KEPT = 4
# A pass forward that learns nothing, as a share of a step over the same tokens; measured rows have a step's tokens at most.
MEASURING = 1 / 3


@dataclass(frozen=True)
class Trial(runs.Run):
    """A trial in its folder: what a run has there but checkpoints and an adapter, and trial.json with its kind and result."""

    WORD, PLACE, MARK, VERB = "trial", "trials", "trial.json", "try"

    @property
    def kind(self) -> str:
        return self.read("trial")["kind"]


def seconds(kind: str, recipe: Recipe, its, rows: quote.Rows) -> float:
    """About how long a trial takes on this machine.

    Args:
        its: the base's sizes.
    """
    steps = steps_of(kind, recipe, rows.count)
    made = quote.here(replace(recipe, max_steps=steps), its, rows)
    times = len(enough.sizes(rows.count, recipe.batch_size, steps)) if kind == ENOUGH else 1
    per_step = made.time["training"] / steps
    measured = enough.MEASURED * 4 if kind == ENOUGH else steps  # of a step's tokens each; enough measures on more rows
    return made.time["getting ready"] + times * per_step * (steps + MEASURING * measured)


def steps_of(kind: str, recipe: Recipe, rows: int) -> int:
    """Optimiser steps of a trial, or of each of its trainings."""
    return finder.STEPS if kind == RATE else min(enough.MOST_STEPS, max(8, plans.steps(recipe, rows)))


def create(owner: str, kind: str, recipe: Recipe, dataset: data.Dataset) -> Trial:
    """A new trial of this owner, not yet started.

    Raises:
        UserError: what `run.create` raises; or another trial of theirs is going.
    """
    if kind not in TITLES:
        raise UserError(f"There is no trial {shorten(kind, 20)!r}. Choose one of {', '.join(TITLES)}.")
    identity.require_start(owner)
    mine = runs.mine(owner, Trial)
    if going := next((trial for trial in mine if trial.state() in runs.LIVE), None):
        raise UserError(f"“{TITLES[going.kind]}” is still going. Let it end, or cancel it first.")
    for old in mine[KEPT - 1 :]:
        shutil.rmtree(old.folder, ignore_errors=True)
    trial = runs.create(owner, recipe, dataset, Trial)
    write_json(trial.folder / "trial.json", {"kind": kind})
    return trial


def points(trial: Trial) -> list[tuple[float, float]]:
    """What it has measured so far: (learning rate, loss) or (rows, loss)."""
    name = "learning_rate" if trial.kind == RATE else "rows"
    return [(event[name], event["loss"]) for event in trial.events()[0] if event["kind"] == "point"]


def result(trial: Trial) -> dict:
    """What it says, for the page and the command line: points, words, and the settings that a click takes over."""
    its = points(trial)
    if trial.kind == RATE:
        said = finder.suggest(its)
        rate = said.learning_rate
        return {"kind": RATE, "points": its, "words": said.reason, "settings": {"learning_rate": rate} if rate else {}}
    said = {"kind": ENOUGH, "points": its, "words": enough.in_words(its, trial.read("data/receipt")["train_rows"]), "settings": {}}
    if len(its) >= 3:
        most = max(size for size, _ in its)
        shown = sorted({size for size, _ in its} | {factor * most for factor in enough.MORE})
        said["forecast"] = [one.__dict__ for one in enough.forecast(sorted(its), shown)]
    return said
