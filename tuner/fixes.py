"""What can be done about a finding: each fix is a step from one state of the rows to the next, and can be taken back."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tuner import damage, data, eyes, personal, scan, split, tasks
from tuner.errors import UserError, shorten
from tuner.findings import Rows, faults_of
from tuner.home import private_dir, read_json, write_json
from tuner.recipe import Recipe
from tuner.tasks import NoRow

# name -> (what the button says, what the receipt says was done)
FIXES = {
    "drop": ("Drop these rows", "dropped"),
    "deduplicate": ("Keep the first of each", "dropped, the first of each kept"),
    "to_training": ("Move them to training", "moved to training"),
    "mask": ("Mask them", "masked"),
    "repair": ("Repair the text", "repaired"),
    "trim": ("Trim it away", "trimmed"),
    "join": ("Join the turns", "turns joined"),
    "split": ("Split at a turn", "split at a turn"),
    "merge": ("Merge the spellings", "labels merged to the usual spelling"),
}
# The settings that a step was taken under; with them it can be taken again after an earlier one is taken back.
SETTINGS = ("system_prompt", "max_tokens", "learn", "keep_control_tokens", "template_date", "held_out_share", "seed")


@dataclass
class State:
    """The rows after some steps: where each stands, and on which side of the split it was put."""

    parts: list[scan.Part]
    places: np.ndarray
    own: np.ndarray
    steps: list[dict]

    def save(self, folder: Path) -> None:
        private_dir(folder)
        scan.save(folder / "places.npy", self.places)
        scan.save(folder / "own.npy", self.own)
        write_json(folder / "state.json", {"parts": [part.path.name for part in self.parts[1:]], "steps": self.steps})

    @classmethod
    def load(cls, folder: Path, first: scan.Part) -> "State | None":
        known = read_json(folder / "state.json")
        if known is None:
            return None
        parts = [first, *(scan.Part(first.folder / name, None, first.task) for name in known["parts"])]
        return cls(parts, scan.load(folder / "places.npy"), scan.load(folder / "own.npy"), known["steps"])


def step(finding: str, fix: str, recipe: Recipe, tokenizer_dir: str) -> dict:
    """A step as it is kept with the dataset.

    Raises:
        UserError: there is no such finding, or that fix is not one of its.
    """
    faults = faults_of(recipe.task)
    if finding not in faults:
        raise UserError(f"There is no finding {shorten(finding, 40)!r}. There are: {', '.join(faults)}.")
    if fix not in faults[finding].fixes:
        can = ", ".join(faults[finding].fixes) or "nothing; such rows are left out by themselves or only told"
        raise UserError(f"{finding} cannot be put right by {shorten(fix, 40)!r}. What can be done: {can}.")
    settings = {name: getattr(recipe, name) for name in SETTINGS}
    return {"finding": finding, "fix": fix, "settings": settings, "tokenizer_dir": str(tokenizer_dir), "t": round(time.time())}


def apply(rows: Rows, its: dict, folder: Path, on_progress: Callable[[int, int], None] | None = None) -> State:
    """Take one step.

    Args:
        rows: the rows before it.
        its: see `step`.
        folder: the first part's own; rows that the step changes are written to a file of their own there.

    Raises:
        UserError: no row has that fault, or no row would be left.
    """
    recipe = Recipe(**its["settings"], task=rows.task)
    hit = rows.mask(its["finding"], recipe)
    title = faults_of(rows.task)[its["finding"]].title
    count = int(np.count_nonzero(hit))
    told = {"finding": its["finding"], "fix": its["fix"], "step": f"{title}: {FIXES[its['fix']][1]}", "rows": count}
    if not count and its.get("taken"):  # an earlier step was taken back, and with it what this one was for
        return State(rows.parts, rows.places, rows.own, [*rows.steps, {**told, "rows_out": len(rows)}])
    if not count:
        raise UserError(f"No row has that ({title}). Nothing was changed.")
    if its["fix"] in ("drop", "deduplicate"):
        state = State(rows.parts, rows.places[~hit], rows.own[~hit], rows.steps)
    elif its["fix"] == "to_training":
        if not np.any(rows.own == split.TEST):
            raise UserError(
                "All rows are nearly alike, so whichever are held out are nearly the same as training rows. Nothing was changed; "
                "bring rows that differ."
            )
        own = np.array(rows.own)
        own[hit] = split.TRAIN
        if not np.any(own == split.TEST):  # nothing was left to measure on; then a part is chosen anew
            own[:] = 0
        state = State(rows.parts, rows.places, own, rows.steps)
    else:
        state = _edit(rows, hit, its, recipe, folder, on_progress)
    if len(state.places) == 0:
        raise UserError(f"That would leave no row ({title}). Nothing was changed.")
    told |= {"rows": int(np.count_nonzero(hit)), "rows_out": len(state.places)}
    if not told["rows"] and not its.get("taken"):
        raise UserError(f"None of the {count:,} rows can be put right so ({title}: {FIXES[its['fix']][0].lower()}). Nothing was changed.")
    return State(state.parts, state.places, state.own, [*rows.steps, told])


def _edit(rows: Rows, hit: np.ndarray, its: dict, recipe: Recipe, folder: Path, on_progress) -> State:
    """The state in which the rows hit stand in a new file, each as what became of it: none, one or several rows.

    Those that the fix leaves as they were are taken out of `hit`.
    """
    change = _changes(rows, its, recipe)
    origins, counts = rows.origins, np.ones(len(rows), np.int64)
    path = folder / f"edits-{scan.short_hash([its, [told['step'] for told in rows.steps], len(rows)])}.arrow"
    from_: list[int] = []

    def texts() -> Iterator[str]:
        every = np.flatnonzero(hit)
        for done, index in enumerate(every):
            if on_progress and done % 200 == 0:
                on_progress(done, len(every))
            row = rows.row(int(index))
            try:
                made = [its for its in change(row, int(index)) if its is not None]
            except NoRow:
                made = []
            if made == [row]:  # it cannot be helped, as a row without a turn to split at; it stays where it is
                hit[index] = False
                continue
            counts[index] = len(made)
            for row in made:
                from_.append(int(origins[index]))
                yield json.dumps(row, ensure_ascii=False).encode("utf-8", "replace").decode()

    data.write_texts(path, texts())
    scan.save(path.with_suffix(".origins.npy"), np.array(from_, np.int64))
    parts = [*rows.parts, scan.Part(path, None, rows.task)]
    places, own = np.repeat(rows.places, counts), np.repeat(rows.own, counts)
    changed = np.repeat(hit, counts)
    places[changed] = np.arange(len(from_), dtype=np.uint64) | np.uint64((len(parts) - 1) << 40)
    return State(parts, places, own, rows.steps)


def _changes(rows: Rows, its: dict, recipe: Recipe):
    """(row, its index) -> the rows that it becomes."""
    task, finding, fix = tasks.get(rows.task), its["finding"], its["fix"]
    if fix == "mask":
        return lambda row, _: [task.map_texts(row, personal.mask, named=True)]
    if fix == "repair":
        return lambda row, _: [_if_learnable(task.map_texts(row, lambda text: damage.repair(text, finding)), task)]
    if fix == "join":
        return lambda row, _: [task.join(row)]
    if fix == "trim" and finding == "control_tokens":
        control = eyes.control_tokens(its["tokenizer_dir"], rows.task)

        def without(text: str) -> str:
            while control.search(text):  # again, because what stands on both sides of one may be one itself now
                text = control.sub("", text)
            return text

        return lambda row, _: [_if_learnable(task.map_texts(row, without), task)]
    if fix == "trim":
        return lambda row, _: [task.trim(row, finding)]
    if fix == "merge":
        usual = _usual_texts(rows)
        return lambda row, index: [task.with_answer(row, usual[int(rows.usual_spelling[index])])]
    if fix == "split":
        most = min(recipe.max_tokens, rows.context or recipe.max_tokens)
        within = Recipe(**{**its["settings"], "max_tokens": most}, task=rows.task)
        fits = lambda row: eyes.fits(row, within, its["tokenizer_dir"])  # noqa: E731

        return lambda row, _: task.split(row, fits)
    raise UserError(f"There is no fix {shorten(fix, 40)!r}. There are: {', '.join(FIXES)}.")


def _if_learnable(row: dict, task) -> dict | None:
    """The row, unless what was taken out was all there was to learn."""
    return row if task.learnable(row) else None


def _usual_texts(rows: Rows) -> dict[int, str]:
    """Hash of a spelling -> its text, for the usual spelling of each label."""
    task, found = tasks.get(rows.task), {}
    spelled, first = np.unique(rows.seen["answer"], return_index=True)
    where = dict(zip(spelled.tolist(), first.tolist()))
    for wanted in np.unique(rows.usual_spelling).tolist():
        found[wanted] = task.answer(rows.row(where[wanted]))[0]
    return found
