"""A run's report on the page: what came out in words, before and after as bars, and rows side by side."""

from tuner import figures, tasks
from tuner.ui import drawing
from tuner.ui.drawing import text


def whole(report: dict, task=tasks.get(tasks.DEFAULT)) -> str:
    """Everything a report says, in the words of its task; see `figures`."""
    loud = report["probe"]["says"] if report["probe"]["fell"] else ""
    said = "".join(f"<li>{text(words)}</li>" for words in report["says"] if words != loud)
    advice = "".join(drawing.notice(words, "warning") for words in filter(None, [loud, *task.advice(report)]))
    bars = "".join(map(_measure, task.measures(report)))
    shown = {"improved": "Rows that improved most, side by side", "worsened": "Rows that worsened most, side by side"}
    rows = "".join(_rows(title, report["rows"][name]) for name, title in shown.items() if name in report["rows"])
    return (
        f'<section class="report" aria-label="Before and after"><h3>Before and after</h3><ul class="says">{said}</ul>{advice}'
        f'<div class="measures">{bars}</div><p class="quiet small">The line across the lower bar is the 95 % interval of the change '
        f"(paired bootstrap over rows). General questions and texts come with Tuner; no run learns from them.</p>{rows}</section>"
    )


def _measure(its: dict) -> str:
    """One figure: two bars on one scale, the tuned one with the interval of the change."""
    shown, verdict = figures.shown(its), figures.verdict(its)
    top = 1.0 if its["unit"] == "share" else max(its["base"], its["tuned"], its["base"] + (its["high"] or 0.0)) or 1.0
    percent = lambda value: 100 * min(max(value / top, 0.0), 1.0)  # noqa: E731
    whisker = ""
    if its["low"] is not None:
        low, high = percent(its["base"] + its["low"]), percent(its["base"] + its["high"])
        whisker = f'<i class="whisker" style="left:{low:.2f}%;width:{max(high - low, 0.4):.2f}%"></i>'
    bar = lambda who, more="": (  # noqa: E731
        f'<div class="pair {who}"><span>{who}</span><span class="bar-track" aria-hidden="true"><span style="width:{percent(its[who]):.2f}%"></span>{more}</span>'
        f'<b class="figures">{shown[who]}</b></div>'
    )
    tag = f'<span class="tag {verdict.split()[-1]}">{verdict}</span>' if verdict else ""
    return (
        f'<div class="measure"><div class="measure-head"><h4>{text(shown["name"])}</h4>{tag}</div>'
        f'<p class="quiet small">{text(shown["of"])} · {its["better"]} is better</p>{bar("base")}{bar("tuned", whisker)}'
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
            words = text(told["text"] or "(nothing)") + ("" if told["ended"] else '<i class="quiet"> … did not stop</i>')
        return f'<div><p class="quiet small figures">{who}, loss {told["loss"]:.3f}</p><div class="answer">{words}</div></div>'

    wanted = f'<details class="wanted"><summary class="quiet small">the row’s own answer</summary><div class="answer">{text(its["wanted"])}</div></details>' if its["wanted"] else ""
    return f'<p class="asked"><span class="quiet figures">Row {its["row"]}</span> {text(drawing.shorten(its["prompt"], 300))}</p><div class="beside">{side("base")}{side("tuned")}</div>{wanted}'
