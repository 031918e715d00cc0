"""What the Dataset tab shows of the rows: one of them in three views, and the figures of all."""

import numpy as np

from tuner import eyes, findings, tasks
from tuner.errors import UserError, shorten
from tuner.recipe import Recipe
from tuner.ui import drawing, label_view, picture_view

# Rows on a page of the table.
PAGE = 12


def numbers_of(rows: findings.Rows, chosen: np.ndarray) -> np.ndarray:
    """The numbers in the source of the rows chosen; see `findings.choose`."""
    if len(chosen) and chosen[0] < 0:
        return -chosen
    return rows.origins[chosen] + 1


def draw_row(rows: findings.Rows, recipe: Recipe, look, view: str, show: str, search: str | None, at: int) -> list:
    """The row, or the page of rows, that is shown; where it is among those chosen; its number in the source."""
    chosen = findings.choose(rows, show, search or "", recipe)
    if len(chosen) == 0:
        words = f"No row holds “{shorten(search, 40)}”." if search else "No row is left here."
        return [drawing.empty(words, "Show all rows, or search for something else."), 0, 1]
    numbers = numbers_of(rows, chosen)
    at = at % len(chosen) if view != "table" else min(max(0, at), len(chosen) - 1)
    number = int(numbers[at])
    many = f"{at + 1:,} of {len(chosen):,}" + (" found" if search else "")
    task, index = tasks.get(rows.task), int(chosen[at])
    if index < 0:
        head = drawing.row_head(f"Row {number:,}", "left out", many)
        return [drawing.left_out_record(number, rows.why_left_out(-1 - index), rows.parts[0].text(-1 - index).removeprefix("!"), head), at, number]
    try:
        held, _ = rows.held_out(recipe.held_out_share, recipe.seed)
    except UserError:
        held = np.zeros(len(rows), bool)
    if task.SHOWS == "pictures":
        if view == "table":
            drawn, at = picture_view.gallery(rows, chosen, numbers, held, at, PAGE)
            return [drawn, at, number]
        row, where = rows.row(index), "held out" if held[index] else "training"
        return [picture_view.one(rows, row, recipe, look, drawing.row_head(f"Row {number:,}", where, many), view == "turns"), at, number]
    if view == "table":
        at -= at % PAGE
        lines = []
        for place in range(at, min(at + PAGE, len(chosen))):
            its = int(chosen[place])
            row = rows.row(its)
            tokens = f"{int(rows.lengths[its]):,}" if rows.tokens is not None else "—"
            lines.append({
                "index": place, "number": int(numbers[place]), "where": "held out" if held[its] else "training", "tokens": tokens,
                "asked": task.describe(row), "answered": shorten(task.answer(row)[0], 100),
            })
        head = drawing.row_head(f"Rows {lines[0]['number']:,} to {lines[-1]['number']:,}", show if show in ("training", "held out") else "table", f"{at + 1:,}–{at + len(lines):,} of {len(chosen):,}")
        return [drawing.rows_table(lines, head, at + PAGE < len(chosen), at > 0), at, int(numbers[at])]
    row = rows.row(index)
    where = "held out" if held[index] else "training"
    if look is None:
        head = drawing.row_head(f"Row {number:,}", where, many)
        return [drawing.conversation(task.turns_of(row), [None] * 999, row.get("tools"), head), at, number]
    try:
        sequences, control, counts = eyes.show(row, recipe, look.tokenizer_dir, turns=view == "turns")
    except UserError as error:
        head = drawing.row_head(f"Row {number:,}", where, many)
        return [drawing.notice(str(error), "error") + drawing.conversation(task.turns_of(row), [None] * 999, row.get("tools"), head), at, number]
    head = drawing.row_head(f"Row {number:,}", where, f"{many} · {drawing.token_counts(sequences)}")
    if view == "turns":
        return [drawing.conversation(task.turns_of(row), counts, row.get("tools"), head), at, number]
    return [drawing.row(sequences, control, head), at, number]


def draw_figures(rows: findings.Rows, recipe: Recipe, partial: bool) -> str:
    """The figures of all rows, and how long they are."""
    its = rows.figures(recipe)
    classes = rows.class_counts(recipe) if tasks.get(rows.task).LABELLED else []
    if tasks.get(rows.task).SHOWS == "pictures":
        return _figures_of_pictures(rows, its, recipe, classes, partial)
    tiles = drawing.stats([
        (f"{its.train_rows:,}", "rows to learn from", "Training rows"),
        (f"{min(its.held_out_rows, recipe.most_held_out):,}", "held out", its.split),
        (f"{its.tokens:,}", "tokens", "In the training rows, after any cut"),
        (f"{len(classes):,}", "classes", "Different labels") if classes
        else (f"{its.learned / max(1, its.tokens):.0%}", "learned", "Share of the tokens on which the loss is taken"),
        (f"{int(its.uncut.max(initial=0)):,}", "longest row", "Tokens, before any cut"),
    ])
    said = [f"The figures are of the first {len(rows):,} rows; the rest is being checked."] if partial else []
    if rows.tokens is not None and np.any(rows.tokens.flags & 4):
        whole = int(np.count_nonzero(rows.tokens.flags & 4))
        said.append(f"{whole:,} rows are learned whole, prompts too: this model's chat template does not show where an answer begins.")
    notes = "".join(drawing.notice(words, "note") for words in said)
    return f"{tiles}{notes}{label_view.classes(classes)}{drawing.histogram(its.uncut, recipe.max_tokens)}"


def _figures_of_pictures(rows: findings.Rows, its: findings.Figures, recipe: Recipe, classes: list, partial: bool) -> str:
    """The same of pictures, which all cost alike."""
    counts = [train + held for _, train, held in classes]
    tiles = drawing.stats([
        (f"{its.train_rows:,}", "pictures to learn from", "Training rows"),
        (f"{min(its.held_out_rows, recipe.most_held_out):,}", "held out", its.split),
        (f"{len(classes):,}", "classes", "Different labels"),
        (f"{min(counts, default=0):,} to {max(counts, default=0):,}", "pictures a class", "Of the smallest and the largest class"),
    ])
    note = drawing.notice(f"The figures are of the first {len(rows):,} rows; the rest is being checked.", "note") if partial else ""
    return f"{tiles}{note}{label_view.classes(classes)}"
