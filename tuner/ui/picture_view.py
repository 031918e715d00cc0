"""Pictures on the page: a gallery by class, one picture as it came and as the model sees it, how it is varied, and what of it mattered."""

import numpy as np
from PIL import Image

from tuner import pictures, seeing, tasks, variation
from tuner.errors import UserError
from tuner.tasks import image_labels
from tuner.ui import drawing
from tuner.ui.drawing import text

# Pictures on a page of the gallery, and their longest side in pixels.
SHOWN, SIDE = 36, 112
# Variations of a picture that are shown, of so many pictures.
VARIATIONS, PICTURES = 5, 3
# The least fall of a probability that is called mattering, as for words.
LEAST_DROP = 0.02


def gallery(rows, chosen: np.ndarray, numbers: np.ndarray, held: np.ndarray, at: int, page: int) -> tuple[str, int]:
    """A page of the rows chosen, class by class, and where it is.

    Args:
        chosen, numbers: indices of rows, and their numbers in the source; see `row_view`.
        held: (N,) which rows are held out.
        at: in steps of `page`, which the buttons make.
    """
    task = tasks.get(rows.task)
    places = np.flatnonzero(chosen >= 0)
    labels = rows.seen["label"][chosen[places]]
    kinds, first, which = np.unique(labels, return_index=True, return_inverse=True)
    names = [task.answer(rows.row(int(chosen[places[place]])))[0] for place in first]
    rank = np.empty(len(kinds), np.int64)
    rank[sorted(range(len(kinds)), key=lambda kind: names[kind])] = np.arange(len(kinds))
    order = np.argsort(rank[which], kind="stable")
    turn = min(max(0, at // page), max(0, (len(order) - 1) // SHOWN))
    sizes = np.bincount(which, minlength=len(kinds))
    shown, open_kind = [], -1
    for place in order[turn * SHOWN : (turn + 1) * SHOWN]:
        kind, index = int(which[place]), int(chosen[places[place]])
        if kind != open_kind:
            shown.append(f'{"</div>" if shown else ""}<h4>{drawing.long_name(names[kind], 60)} <span class="quiet figures">{int(sizes[kind]):,}</span></h4><div class="thumbs">')
            open_kind = kind
        row = rows.row(index)
        number = int(numbers[places[place]])
        words = f"Row {number:,}, {task.describe(row)}, labelled {names[kind]}, {'held out' if held[index] else 'training'}"
        mark = '<span class="tag">held out</span>' if held[index] else ""
        shown.append(f'<button type="button" data-do="open:{int(places[place])}" title="{text(words)}" aria-label="{text(words)}">{picture(rows, row)}{mark}</button>')
    last = (len(order) - 1) // SHOWN
    turns = "".join(
        f'<button type="button" class="mini" data-do="page:{by}" {"" if can else "disabled"}>{words}</button>'
        for by, words, can in ((-1, "← Page before", turn > 0), (1, "Next page →", turn < last))
    )
    head = drawing.row_head("Gallery", "by class", f"{turn * SHOWN + 1:,}–{min((turn + 1) * SHOWN, len(order)):,} of {len(order):,}")
    return f'<div class="row-view">{head}<div class="gallery">{"".join(shown)}</div></div><div class="pages">{turns}</div></div>', turn * page


def folder_of(rows):
    """Where the pictures of a dataset's rows lie."""
    return rows.parts[0].path.parent


def picture(rows, row: dict, side: int = SIDE) -> str:
    """A row's picture, small."""
    try:
        return f'<img src="{image_labels.address(pictures.content(folder_of(rows), row["picture"]), side)}" alt="" loading="lazy">'
    except (OSError, ValueError):
        return '<span class="quiet">not read yet</span>'


_FAULTS = {name: its.title for name, its in image_labels.FAULTS.items()}


def one(rows, row: dict, recipe, look, head: str, as_seen: bool) -> str:
    """One row: the picture with what is known of it; or as the model sees it, with how it is varied in training.

    Args:
        look: the base's eyes; None where there are none.
    """
    try:
        kept = pictures.content(folder_of(rows), row["picture"])
    except OSError:
        return f'<div class="row-view">{head}{drawing.empty("This picture is still being read.")}</div>'
    if as_seen and look is not None:
        try:
            sight = seeing.load(look.tokenizer_dir)
        except UserError as error:
            return f'<div class="row-view">{head}{drawing.notice(str(error), "error")}</div>'
        height, width = sight.size
        plain = _address(sight.framed(seeing.opened(kept)))
        return (
            f'<div class="row-view">{head}<div class="one-picture"><figure><img src="{plain}" alt="{text(image_labels.describe(row))} as the model sees it">'
            f'<figcaption class="quiet small">As {text(recipe.base_model)} sees it: {width} × {height} pixels</figcaption></figure></div>{varied(kept, sight, recipe)}</div>'
        )
    its = row["picture"]
    wide, tall = its.get("original", (its["width"], its["height"]))
    facts = [f"{wide:,} × {tall:,} pixels, {text(its.get('format', ''))}", *(text(_FAULTS[name]) for name in its.get("faults", ()) if name in _FAULTS)]
    if [wide, tall] != [its["width"], its["height"]]:
        facts.insert(1, f"kept here as {its['width']:,} × {its['height']:,}")
    return (
        f'<div class="row-view">{head}<div class="one-picture"><figure><img src="{image_labels.address(kept, 420)}" alt="{text(image_labels.describe(row))}">'
        f'<figcaption><b>{text(image_labels.shown_label(row))}</b> <span class="quiet">{text(image_labels.describe(row))}</span></figcaption></figure>'
        f'<ul class="quiet small">{"".join(f"<li>{fact}</li>" for fact in facts)}</ul></div></div>'
    )


def varied(kept: bytes, sight: seeing.Sight, recipe, row: int = 0) -> str:
    """A picture as training shows it the first few times, by the very code that training calls."""
    if recipe.augmentation == variation.NONE:
        return '<p class="quiet small">Training shows it as it is every time (augmentation is none).</p>'
    opened = seeing.opened(kept)
    shown = "".join(
        f'<img src="{_address(variation.varied(opened, sight, recipe.augmentation, recipe.seed, epoch, row))}" alt="variation {epoch + 1}">' for epoch in range(VARIATIONS)
    )
    return f'<p class="quiet small">How training varies it, epoch by epoch (augmentation: {text(recipe.augmentation)}):</p><div class="thumbs varied">{shown}</div>'


def preview(rows, recipe, look) -> str:
    """What augmentation does to the first pictures of different classes, for the settings."""
    if look is None:
        return ""
    try:
        sight = seeing.load(look.tokenizer_dir)
    except UserError:
        return ""
    _, first = np.unique(rows.seen["label"], return_index=True)
    shown = []
    for index in sorted(first.tolist())[:PICTURES]:
        try:
            shown.append(varied(pictures.content(folder_of(rows), rows.row(index)["picture"]), sight, recipe, index))
        except OSError:
            continue
        if recipe.augmentation == variation.NONE:
            break
    return f'<section class="preview" aria-label="Augmentation"><h4>What training shows</h4>{"".join(shown)}</section>' if shown else ""


def regions(its: dict, parts: list[dict]) -> str:
    """A picture with the regions that mattered framed: the thicker the frame, the more; the figure is in a tooltip."""
    frames = ""
    for part in parts:
        if part["drop"] < LEAST_DROP:
            continue
        level = 1 + min(3, int(10 * part["drop"]))
        place = ";".join(f"{name}:{100 * part[key]:.2f}%" for name, key in (("left", "x"), ("top", "y"), ("width", "width"), ("height", "height")))
        frames += f'<i class="m{level}" style="{place}" title="−{100 * part["drop"]:.0f} points when covered"></i>'
    return f'<div class="regions"><img src="{its["picture"]}" alt="{text(its["text"])}">{frames}</div>'


def _address(picture: Image.Image) -> str:
    """A framed picture as a data address."""
    import io

    out = io.BytesIO()
    picture.save(out, "PNG")
    return image_labels.address(out.getvalue(), 150)
