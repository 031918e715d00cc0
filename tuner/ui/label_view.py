"""What the page shows of labels: classes as a chart, scores over the steps, a classifier's report, and what it says of something tried."""

import math
import re

from tuner import scores
from tuner.errors import shorten
from tuner.ui import drawing, picture_view
from tuner.ui.drawing import text

# More classes than this nobody reads as a matrix, nor as bars.
MOST_IN_A_MATRIX, MOST_IN_A_CHART = 30, 40
# Labels shown of one thing that was tried, and the least fall of a probability that is called mattering.
MOST_LABELS, LEAST_DROP = 5, 0.02
_PICTURE = re.compile(r"data:image/(png|jpeg|webp);base64,[A-Za-z0-9+/]+={0,2}")


def percent(share: float | None) -> str:
    return "—" if share is None else f"{100 * share:.1f} %"


def thing(its: dict) -> str:
    """What a label is of, as a task's `thing` gives it: a text, a picture as a data address, or both."""
    picture = its.get("picture") or ""
    shown = f'<img src="{picture}" alt="{text(its.get("text") or "the picture")}">' if _PICTURE.fullmatch(picture) else ""
    return shown + (f'<div class="answer">{text(its["text"])}</div>' if its.get("text") and not shown else "")


# The dataset ------------------------------------------------------------------------------------------------------


def classes(counts: list[tuple[str, int, int]]) -> str:
    """Rows of each class as bars, the largest first.

    Args:
        counts: (class, training rows, held-out rows).
    """
    if not counts:
        return ""
    counts = sorted(counts, key=lambda its: -its[1] - its[2])
    top = max(train + held for _, train, held in counts)
    bars = "".join(
        f'<li><span class="name">{drawing.long_name(name, 34)}</span><span class="track" aria-hidden="true">'
        f'<i class="of-train" style="width:{100 * train / top:.2f}%"></i><i class="of-held" style="width:{100 * held / top:.2f}%"></i></span>'
        f'<b class="figures">{train:,} + {held:,}</b></li>'
        for name, train, held in counts[:MOST_IN_A_CHART]
    )
    rest = counts[MOST_IN_A_CHART:]
    more = f'<p class="quiet small">{len(rest):,} smaller classes with {sum(train + held for _, train, held in rest):,} rows are not drawn.</p>' if rest else ""
    return (
        f'<section class="classes" aria-label="Rows of each class"><h4>{len(counts):,} classes</h4>'
        f'<p class="quiet small"><i class="swatch of-train"></i> to learn from + <i class="swatch of-held"></i> held out</p><ol>{bars}</ol>{more}</section>'
    )


def offer(why: str, words: str, setting: str) -> str:
    """A note with a button that sets "name=value" on the form."""
    return (
        f'<div class="notice note" role="status"><b>Note</b><span>{drawing.text(why)} '
        f'<button type="button" class="mini strong" data-do="set:{drawing.text(setting)}">{drawing.text(words)}</button></span></div>'
    )


# While it learns --------------------------------------------------------------------------------------------------

_SCORES = (("macro_f1", "macro-F1", "held"), ("accuracy", "accuracy", "train"))


def curve(evals: list[dict], total: int) -> str:
    """Macro-F1 and accuracy on held-out rows over the steps; "" where evaluations have no such figures."""
    evals = [its for its in evals if isinstance(its.get("macro_f1"), (int, float))]
    if not evals:
        return ""
    wide, narrow = (_curve(evals, total, *size) for size in ((760, 220), (360, 200)))
    return f'<div class="curve scores"><div class="wide">{wide}</div><div class="narrow">{narrow}</div></div>'


def _curve(evals: list[dict], total: int, width: int, height: int) -> str:
    left, right, top, bottom = 44, 14, 26, 30
    values = [its[name] for its in evals for name, _, _ in _SCORES if name in its]
    low, high, ticks = drawing.scale(max(0.0, min(values) - 0.02), min(1.0, max(values) + 0.02))
    last = max([total, 1, *(its["step"] for its in evals)])
    x = lambda step: left + (width - left - right) * step / last  # noqa: E731
    y = lambda share: height - bottom - (height - top - bottom) * (share - low) / (high - low)  # noqa: E731
    drawn = "".join(
        f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        f'<text class="tick" x="{left - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{100 * tick:.0f} %</text>' for tick in ticks if tick <= 1
    )
    for name, words, kind in _SCORES:
        points = [(its["step"], its[name]) for its in evals if name in its]
        drawn += f'<polyline class="{kind}" points="{" ".join(f"{x(step):.1f},{y(share):.1f}" for step, share in points)}"/>'
        drawn += "".join(f'<circle class="{kind}-dot" cx="{x(step):.1f}" cy="{y(share):.1f}" r="3.5"><title>Step {step:,}: {words} {percent(share)}</title></circle>' for step, share in points)
    if best := next((its for its in reversed(evals) if its.get("best") and its["step"]), None):
        anchor = "end" if x(best["step"]) > width - 110 else "middle"
        drawn += f'<text class="best" x="{x(best["step"]):.1f}" y="{y(best["macro_f1"]) - 10:.1f}" text-anchor="{anchor}">best {percent(best["macro_f1"])}</text>'
    drawn += (
        f'<text class="tick" x="{left}" y="{height - 8}">0</text><text class="tick" x="{width - right}" y="{height - 8}" text-anchor="end">step {last:,}</text>'
        f'<line class="held" x1="{left}" x2="{left + 22}" y1="12" y2="12"/><text class="tick" x="{left + 28}" y="16">macro-F1</text>'
        f'<line class="train" x1="{left + 98}" x2="{left + 120}" y1="12" y2="12"/><text class="tick" x="{left + 126}" y="16">accuracy, held-out rows</text>'
    )
    said = f"Macro-F1 on held-out rows went from {percent(evals[0]['macro_f1'])} to {percent(evals[-1]['macro_f1'])}."
    return f'<svg class="chart" role="img" aria-label="{said}" viewBox="0 0 {width} {height}">{drawn}</svg>'


# The report -------------------------------------------------------------------------------------------------------


def report(made: dict, pressable: bool = True) -> str:
    """What a classifier's report has besides its words and measures: classes, confusion, calibration, rows.

    Args:
        pressable: the matrix leads to its rows; not where somebody only looks on.
    """
    return _own_intervals(made) + _by_class(made) + _matrix(made, pressable) + _reliability(made) + "".join(
        _rows(title, made["rows"].get(name, []))
        for name, title in (("most_wrong", "Wrong, and most sure of it"), ("surest", "Right, and most sure of it"))
    )


def _own_intervals(made: dict) -> str:
    """Each classifier's own figures with their 95 % intervals; those of the changes stand with the bars."""
    lines = "".join(
        f'<tr><td>{name}</td>' + "".join(
            f'<td class="figures">{percent(its[key])}{f" ({100 * wide[0]:.1f} to {100 * wide[1]:.1f})" if (wide := its.get(f"{key}_interval")) else ""}</td>'
            for key in ("macro_f1", "accuracy")
        ) + "</tr>"
        for name, its in (("largest", made["majority"]), ("frozen", made["base"]), ("tuned", made["tuned"]))
    )
    return (
        '<section class="by-class" aria-label="Each by itself"><h4>Each by itself, with its 95 % interval</h4><div class="table-wrap"><table class="scored"><thead><tr>'
        f"<th>Classifier</th><th>Macro-F1</th><th>Accuracy</th></tr></thead><tbody>{lines}</tbody></table></div></section>"
    )


def _by_class(made: dict) -> str:
    lines = "".join(
        f'<tr><td>{drawing.long_name(name, 40)}</td><td class="figures">{its["rows"]:,}</td><td class="figures">{percent(its["precision"])}</td>'
        f'<td class="figures">{percent(its["recall"])}</td><td class="figures">{percent(its["f1"])}</td><td class="figures quiet">{percent(frozen["f1"])}</td></tr>'
        for name, its, frozen in zip(made["classes"], made["tuned"]["by_class"], made["base"]["by_class"])
    )
    return (
        '<section class="by-class" aria-label="Class by class"><h4>Class by class</h4><div class="table-wrap"><table class="scored"><thead><tr>'
        "<th>Class</th><th>Rows</th><th>Precision</th><th>Recall</th><th>F1</th><th>F1, frozen</th>"
        f'</tr></thead><tbody>{lines}</tbody></table></div><p class="quiet small">Precision: of what it called so, how much was. Recall: of what was so, how much it found.</p></section>'
    )


def _matrix(made: dict, pressable: bool) -> str:
    matrix, names = made.get("confusion", {}).get("tuned"), made["classes"]
    if not matrix:
        return ""
    if len(names) > MOST_IN_A_MATRIX:
        pairs = sorted(((matrix[i][j], i, j) for i in range(len(names)) for j in range(len(names)) if i != j and matrix[i][j]), reverse=True)[:15]
        lines = "".join(f"<li>{_cell(count, i, j, names, pressable)} {drawing.long_name(names[i], 40)} for {drawing.long_name(names[j], 40)}</li>" for count, i, j in pairs)
        return f'<section class="matrix"><h4>Most often taken for another</h4><ol>{lines}</ol></section>'
    head = "".join(f'<th scope="col"><span>{drawing.long_name(name, 18)}</span></th>' for name in names)
    body = "".join(
        f'<tr><th scope="row">{drawing.long_name(names[i], 24)}</th>'
        + "".join(
            f'<td class="{"right" if i == j else "wrong"}" style="--share:{45 * count / max(1, sum(line)):.0f}%">{_cell(count, i, j, names, pressable)}</td>'
            for j, count in enumerate(line)
        ) + "</tr>"
        for i, line in enumerate(matrix)
    )
    how = "Press a number to see its rows." if pressable else ""
    return (
        f'<section class="matrix" aria-label="Confusion matrix"><h4>What it takes for what</h4><p class="quiet small">Lines: the rows’ own class. Columns: what the tuned model says. {how}</p>'
        f'<div class="table-wrap"><table><thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table></div></section>'
    )


def _cell(count: int, given: int, guessed: int, names: list[str], pressable: bool) -> str:
    if not count:
        return '<span class="quiet" aria-label="0">·</span>'
    words = f"{count} rows of {names[given]} called {names[guessed]}"
    if not pressable:
        return f'<b class="figures" title="{text(words)}">{count}</b>'
    return f'<button type="button" class="figures" data-do="cell:{given}:{guessed}" title="{text(words)}" aria-label="{text(words)}">{count}</button>'


def cell_rows(made: dict, given: int, guessed: int, things: list[tuple[int, dict]]) -> str:
    """The rows behind one cell of the matrix.

    Args:
        things: (the row's number, what its task's `thing` gives of it).
    """
    names = made["classes"]
    what = "called so, rightly" if given == guessed else f"called {text(shorten(names[guessed], 40))}"
    rows = "".join(f'<li><span class="quiet figures">Row {number:,}</span> {thing(its)}</li>' for number, its in things)
    return (
        f'<section class="cell-rows" role="status"><h4>{text(shorten(names[given], 40))}, {what}: {len(things)} {"row" if len(things) == 1 else "rows"}</h4>'
        f"<ol>{rows}</ol></section>"
    )


def _reliability(made: dict) -> str:
    tuned, base = made["tuned"]["calibration"], made["base"]["calibration"]
    size, edge = 260, 34
    place = lambda share: edge + (size - edge - 10) * share  # noqa: E731
    down = lambda share: size - place(share)  # noqa: E731
    grid = "".join(
        f'<line class="grid" x1="{place(0):.1f}" x2="{place(1):.1f}" y1="{down(share):.1f}" y2="{down(share):.1f}"/>'
        f'<text class="tick" x="{place(0) - 5:.1f}" y="{down(share) + 4:.1f}" text-anchor="end">{100 * share:.0f}</text>'
        f'<text class="tick" x="{place(share):.1f}" y="{size - 16}" text-anchor="middle">{100 * share:.0f}</text>' for share in (0.0, 0.5, 1.0)
    )
    bars = "".join(
        f'<rect class="bar" x="{place(its["low"]) + 1:.1f}" y="{down(its["right"]):.1f}" width="{place(1 / scores.BINS) - place(0) - 2:.1f}" '
        f'height="{down(0) - down(its["right"]):.1f}"><title>{its["rows"]} rows, {percent(its["sure"])} sure, {percent(its["right"])} right</title></rect>'
        for its in tuned["bins"]
    )
    dots = "".join(
        f'<circle class="frozen-dot" cx="{place(its["sure"]):.1f}" cy="{down(its["right"]):.1f}" r="{3 + math.log1p(its["rows"]) / 2:.1f}">'
        f'<title>Frozen: {its["rows"]} rows, {percent(its["sure"])} sure, {percent(its["right"])} right</title></circle>' for its in base["bins"]
    )
    said = f"Calibration error {percent(tuned['ece'])} tuned, {percent(base['ece'])} frozen."
    return (
        f'<section class="reliability" aria-label="Calibration"><h4>How far its probabilities can be believed</h4><div class="beside-picture">'
        f'<svg class="chart" role="img" aria-label="{said}" viewBox="0 0 {size} {size}">{grid}<line class="limit" x1="{place(0)}" y1="{down(0)}" x2="{place(1)}" y2="{down(1)}"/>'
        f'{bars}{dots}<text class="tick" x="{size / 2}" y="{size - 2}" text-anchor="middle">how sure it is, %</text></svg>'
        f'<div><p>When it says 80 %, is it right in 8 of 10? Bars on the dashed line would be perfect; below it, it is surer than it should be.</p>'
        f'<p class="figures">Calibration error (ECE): <b>{percent(tuned["ece"])}</b> tuned, {percent(base["ece"])} frozen (the rings).</p></div></div></section>'
    )


def _rows(title: str, rows: list[dict]) -> str:
    if not rows:
        return f'<p class="quiet changed">{text(title)}: there are none.</p>'
    side = lambda who, its: f'<div><p class="quiet small">{who}</p><p><b>{text(its["label"] or "(none)")}</b> <span class="figures">{percent(its["probability"])}</span></p></div>'  # noqa: E731
    shown = "".join(
        f'<li><p class="asked"><span class="quiet figures">Row {its["row"]:,}</span> labelled {text(its["wanted"])}</p>{thing(its)}'
        f'<div class="beside">{side("frozen", its["base"])}{side("tuned", its["tuned"])}</div></li>' for its in rows
    )
    return f'<details class="changed"><summary><h4>{text(title)}</h4> <span class="quiet">{len(rows)} {"row" if len(rows) == 1 else "rows"}</span></summary><ol>{shown}</ol></details>'


# Trying -----------------------------------------------------------------------------------------------------------


def tried(things: list[dict], found: list[dict]) -> str:
    """What the classifier says of each thing, beside the classifier on the untouched base; see `labelling.Labeller.look`."""
    return f'<div class="tried">{"".join(map(_tried, things, found))}</div>'


def _tried(its: dict, said: dict) -> str:
    top = next(iter(said["tuned"]))
    cut = f'<p class="quiet small">{said["cut"]:,} tokens at its end were not read.</p>' if said["cut"] else ""
    base = _bars("frozen features", said["base"]) if said["base"] else '<div><p class="quiet small">frozen features</p><p class="quiet">Kept only with the run itself.</p></div>'
    how = ""
    if said["parts"] is not None:
        how = (
            f'<p class="quiet small">What mattered, by occlusion: each {its.get("part", "word")} was {"covered" if its.get("picture") else "left out"} in turn. Marked is what lowers the probability of '
            f"“{text(top)}” by at least {100 * LEAST_DROP:.0f} points; the thicker the line, the more.</p>"
            if any(one["drop"] >= LEAST_DROP for one in said["parts"]) else f'<p class="quiet small">No single {its.get("part", "word")} mattered (by occlusion: each was {"covered" if its.get("picture") else "left out"} in turn).</p>'
        )
    shown = thing(its)
    if said["parts"]:
        shown = marked(its, said["parts"]) if its.get("texts") else picture_view.regions(its, said["parts"]) if its.get("picture") else shown
    return f'<article class="one-tried">{shown}{how}{cut}<div class="beside">{_bars("tuned", said["tuned"])}{base}</div></article>'


def marked(its: dict, parts: list[dict]) -> str:
    """The texts with the words that mattered marked: by a wash, by the thickness of a line, and by the figure in a tooltip."""
    shown = []
    for name, words in its["texts"].items():
        place, pieces = 0, ""
        for one in sorted((part for part in parts if part["of"] == name), key=lambda part: part["start"]):
            if one["drop"] < LEAST_DROP:
                continue
            level = 1 + min(3, int(10 * one["drop"]))
            pieces += f'{text(words[place : one["start"]])}<mark class="m{level}" title="−{100 * one["drop"]:.0f} points without it">{text(words[one["start"] : one["end"]])}</mark>'
            place = one["end"]
        shown.append(f'<div class="answer">{pieces}{text(words[place:])}</div>')
    return "".join(shown)


def _bars(who: str, probabilities: dict[str, float]) -> str:
    lines = "".join(
        f'<li><span class="name">{drawing.long_name(name, 34)}</span><span class="track" aria-hidden="true"><i class="of-train" style="width:{100 * its:.1f}%"></i></span>'
        f'<b class="figures">{percent(its)}</b></li>' for name, its in list(probabilities.items())[:MOST_LABELS]
    )
    rest = len(probabilities) - MOST_LABELS
    more = f'<p class="quiet small">and {rest:,} less likely</p>' if rest > 0 else ""
    return f'<div class="classes"><p class="quiet small">{who}</p><ol>{lines}</ol>{more}</div>'
