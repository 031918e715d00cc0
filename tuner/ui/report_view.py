"""A run's report on the page: what came out in words, before and after as bars, and rows side by side."""

from tuner import figures
from tuner.ui import drawing, label_view
from tuner.ui.drawing import text

# What each bar of a measure is called; where there are labels, "base" is a classifier on the untouched base.
_SIDES = {"base": "base", "tuned": "tuned"}
_SIDES_OF_LABELS = {"majority": "largest", "base": "frozen", "tuned": "tuned"}


def whole(report: dict, task, pressable: bool = True) -> str:
    """Everything a report says, in the words of its task; see `figures`.

    Args:
        pressable: with buttons, for whoever's run it is.
    """
    loud = report["probe"]["says"] if report["probe"]["fell"] else ""
    said = "".join(f"<li>{text(words)}</li>" for words in report["says"] if words != loud)
    advice = "".join(drawing.notice(words, "warning") for words in filter(None, [loud, *task.advice(report)]))
    sides = _SIDES_OF_LABELS if task.LABELLED else _SIDES
    bars = "".join(_measure(its, sides) for its in task.measures(report))
    shown = {"improved": "Rows that improved most, side by side", "worsened": "Rows that worsened most, side by side"}
    rows = "".join(_rows(title, report["rows"][name]) for name, title in shown.items() if name in report["rows"])
    return (
        f'<section class="report" aria-label="Before and after"><h3>Before and after</h3><ul class="says">{said}</ul>{advice}'
        f'<div class="measures">{bars}</div><p class="quiet small">The line across the lower bar is the 95 % interval of the change '
        f"(paired bootstrap over rows). {_ON_LABELS if task.LABELLED else _ON_ANSWERS}</p>{rows}{label_view.report(report, pressable) if task.LABELLED else ''}</section>"
    )


_ON_ANSWERS = "General questions and texts come with Tuner; no run learns from them."
_ON_LABELS = (
    "Largest: always the class with most training rows. Frozen: a logistic regression on the untouched base’s own features, which is what to try "
    "before any tuning. The change is against that. Probe texts come with Tuner; no run learns from them."
)


def _measure(its: dict, sides: dict[str, str]) -> str:
    """One figure: its bars on one scale, the tuned one with the interval of the change.

    Args:
        sides: the figure's key -> what the bar is called.
    """
    shown, verdict = figures.shown(its), figures.verdict(its)
    top = 1.0 if its["unit"] == "share" else max(its["base"], its["tuned"], its["base"] + (its["high"] or 0.0)) or 1.0
    percent = lambda value: 100 * min(max(value / top, 0.0), 1.0)  # noqa: E731
    whisker = ""
    if its["low"] is not None:
        low, high = percent(its["base"] + its["low"]), percent(its["base"] + its["high"])
        whisker = f'<i class="whisker" style="left:{low:.2f}%;width:{max(high - low, 0.4):.2f}%"></i>'
    value = lambda who: shown[who] if who in shown else figures.shown({**its, "base": its[who]})["base"]  # noqa: E731
    bars = "".join(
        f'<div class="pair {who}"><span>{name}</span><span class="bar-track" aria-hidden="true"><span style="width:{percent(its[who]):.2f}%"></span>'
        f'{whisker if who == "tuned" else ""}</span><b class="figures">{value(who)}</b></div>'
        for who, name in sides.items() if its.get(who) is not None
    )
    tag = f'<span class="tag {verdict.split()[-1]}">{verdict}</span>' if verdict else ""
    return (
        f'<div class="measure"><div class="measure-head"><h4>{text(shown["name"])}</h4>{tag}</div>'
        f'<p class="quiet small">{text(shown["of"])} · {its["better"]} is better</p>{bars}'
        f'<p class="figures small change">change {text(shown["change"])}</p></div>'
    )


def _rows(title: str, rows: list[dict]) -> str:
    """Rows with both answers beside each other."""
    if not rows:
        return f'<p class="quiet changed">{text(title)}: there are none.</p>'
    shown = "".join(f"<li>{_row(its)}</li>" for its in rows)
    return f'<details class="changed"><summary><h4>{text(title)}</h4> <span class="quiet">{len(rows)} {"row" if len(rows) == 1 else "rows"}</span></summary><ol>{shown}</ol></details>'


def _row(its: dict) -> str:
    def side(who: str) -> str:
        told = its[who]
        if told["text"] is None:
            words = '<i class="quiet">Not answered: there was no time for it.</i>'
        else:
            words = text(told["text"] or "(nothing)") + ("" if told["ended"] else f'<i class="quiet"> … {"was cut here, to keep to the time" if told.get("cut") else "did not stop"}</i>')
        return f'<div><p class="quiet small figures">{who}, loss {told["loss"]:.3f}</p><div class="answer">{words}</div></div>'

    wanted = f'<details class="wanted"><summary class="quiet small">the row’s own answer</summary><div class="answer">{text(its["wanted"])}</div></details>' if its["wanted"] else ""
    return f'<p class="asked"><span class="quiet figures">Row {its["row"]}</span> {text(drawing.shorten(its["prompt"], 300))}</p><div class="beside">{side("base")}{side("tuned")}</div>{wanted}'
