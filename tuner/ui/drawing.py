"""Pictures and texts as HTML and SVG; every text that came from outside is escaped here."""

import difflib
import html
import json
import math
import re
import time

import numpy as np

from tuner import figures
from tuner.errors import shorten

# Buttons inside our own HTML speak through their data-do.
LISTEN = "element.addEventListener('click', event => { const its = event.target.closest('[data-do]'); if (its && !its.disabled) trigger('click', {do: its.dataset.do}); });"


def text(value: object) -> str:
    """Any text, safe inside HTML and inside Gradio's own templates ($ and braces have power there)."""
    return html.escape(str(value), quote=True).replace("$", "&#36;").replace("{", "&#123;").replace("}", "&#125;").replace("`", "&#96;")


# So many letters of a title are shown, wherever it stands.
TITLE_LETTERS = 40


def short(title: object) -> str:
    """A title as plain text, cut in the middle where it is long."""
    return shorten(title, TITLE_LETTERS)


def long_name(value: object, most: int = TITLE_LETTERS) -> str:
    """A title or name cut in the middle, with the whole of it in a tooltip."""
    value = str(value)
    return f'<span title="{text(value)}">{text(shorten(value, most))}</span>' if len(value) > most else text(value)


def run_label(title: object, state: str, seconds: float) -> str:
    """A run as a line of a list: its title, its state (or another word), and when."""
    return " · ".join([short(title), STATE_WORDS.get(state, state), when(seconds)])


def empty(words: str, more: str = "") -> str:
    """What stands where nothing is yet."""
    return f'<div class="empty"><p>{text(words)}</p>{f"<p class=quiet>{text(more)}</p>" if more else ""}</div>'


def notice(words: str, kind: str = "note") -> str:
    """A sentence that stays: kind is note, warning or error; the word itself says it too."""
    label = {"note": "Note", "warning": "Mind", "error": "Error"}[kind]
    lines = "<br>".join(text(line) for line in str(words).split("\n"))
    return f'<div class="notice {kind}" role="{"alert" if kind == "error" else "status"}"><b>{label}</b><span>{lines}</span></div>'


def duration(seconds: float) -> str:
    """Seconds as a person says them: 40 s, 2 min 10 s, 1 h 05 min."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def about(seconds: float) -> str:
    """An estimate as a person says it after "about": 40 s, 3 min, 25 min, 1 h 30 min, 5 h. What was measured is told by `duration`."""
    steps = ((15, 5), (55, 10), (570, 60), (3300, 300), (10_800, 1800))  # below so many seconds, in steps of so many
    unit = next((unit for below, unit in steps if seconds < below), 3600)
    whole = max(unit, unit * math.floor(seconds / unit + 0.5))
    if whole < 60:
        return f"{whole} s"
    hours, minutes = divmod(whole // 60, 60)
    return " ".join([f"{hours} h"] * (hours > 0) + [f"{minutes} min"] * (minutes > 0))


def stats(pairs: list[tuple[str, str, str]]) -> str:
    """A strip of numbers: (value, unit or name, tooltip)."""
    tiles = "".join(
        f'<div class="stat" title="{text(tip)}"><b>{text(value)}</b><span>{text(name)}</span></div>' for value, name, tip in pairs
    )
    return f'<div class="stats">{tiles}</div>'


# The row as the model sees it --------------------------------------------------------------------------------------

_LEGEND = (
    '<div class="legend" aria-hidden="true"><span class="piece learned">learned</span>'
    '<span class="piece seen">seen, not learned</span><span class="piece cut">cut off</span>'
    '<span class="piece seen"><span class="control">control token</span></span></div>'
)


def row_head(title: str, where: str, said: str) -> str:
    return f'<div class="row-head"><h3>{text(title)}</h3><span class="tag">{text(where)}</span><span class="quiet">{text(said)}</span></div>'


def token_counts(sequences: list) -> str:
    total = sum(len(sequence.offsets) for sequence in sequences)
    cut = sum(sequence.cut for sequence in sequences)
    learned = sum(sequence.learned for sequence in sequences)
    return f"{total:,} tokens · {learned:,} learned" + (f" · {cut:,} cut off" if cut else "")


def row(sequences: list, control, head: str) -> str:
    """One row's sequences, exactly as the model meets them: learned, seen and cut apart by colour and by line."""
    blocks = []
    for index, sequence in enumerate(sequences):
        pieces = "".join(
            f'<span class="piece {state}">{f"<span class=control>{_visible(part)}</span>" if armed else _visible(part)}</span>'
            for part, state, armed in sequence.pieces(control)
        )
        title = f"<h4>Part {index + 1} of {len(sequences)}</h4>" if len(sequences) > 1 else ""
        blocks.append(f'{title}<div class="tokens" tabindex="0" role="region" aria-label="The exact text">{pieces}</div>')
    how = f'<p class="quiet small">Learned part found by {text(sequences[0].how)}.</p>' if sequences else ""
    return f'<div class="row-view">{head}{_LEGEND}{"".join(blocks)}{how}</div>'


_ROLE_WORDS = {"system": "System", "user": "User", "assistant": "Assistant", "tool": "Tool result", "text": "Text", "label": "Label"}


def conversation(turns: list[dict], counts: list, tools: list | None, head: str) -> str:
    """One row as the people and tools in it spoke; each turn with its tokens. Calls and results are drawn as such."""
    shown = []
    if tools:
        names = ", ".join(str(tool.get("function", tool).get("name", "?")) for tool in tools)
        whole = text(json.dumps(tools, ensure_ascii=False, indent=1)[:20_000])
        shown.append(f'<details class="tools"><summary>{len(tools)} {"tool" if len(tools) == 1 else "tools"}: {text(shorten(names, 80))}</summary><pre>{whole}</pre></details>')
    for turn, count in zip(turns, counts):
        size = f'<span class="figures quiet">{count:,} tokens</span>' if count is not None else ""
        body = f'<div class="said">{_visible(turn["content"])}</div>' if turn.get("content") else ""
        if turn.get("reasoning_content"):
            body = f'<details><summary>Reasoning</summary><div class="said">{_visible(turn["reasoning_content"])}</div></details>' + body
        for call in turn.get("tool_calls", ()):
            function = call["function"]
            arguments = function["arguments"] if isinstance(function["arguments"], str) else json.dumps(function["arguments"], ensure_ascii=False, indent=1)
            body += f'<div class="call"><b>calls {text(function["name"])}</b><pre>{_visible(arguments)}</pre></div>'
        role = _ROLE_WORDS.get(turn["role"], turn["role"])
        shown.append(f'<div class="turn {text(turn["role"])}"><div class="turn-head"><b>{text(role)}</b>{size}</div>{body or "<i>(nothing)</i>"}</div>')
    return f'<div class="row-view">{head}<div class="turns" tabindex="0" role="region" aria-label="The conversation">{"".join(shown)}</div></div>'


def rows_table(lines: list[dict], head: str, more: bool, before: bool) -> str:
    """Rows as a table, a page of it: number, side of the split, tokens, what is asked, what is answered."""
    body = "".join(
        f'<tr><td><button type="button" class="link" data-do="open:{its["index"]}">{its["number"]:,}</button></td><td>{text(its["where"])}</td>'
        f'<td class="figures">{its["tokens"]}</td><td><div class="clamp">{_visible(its["asked"])}</div></td><td><div class="clamp">{_visible(its["answered"])}</div></td></tr>'
        for its in lines
    )
    turn = "".join(
        f'<button type="button" class="mini" data-do="page:{by}" {"" if can else "disabled"}>{words}</button>'
        for by, words, can in ((-1, "← Page before", before), (1, "Next page →", more))
    )
    return (
        f'<div class="row-view">{head}<div class="table-wrap"><table class="rows"><thead><tr><th>Row</th><th>Part</th><th>Tokens</th>'
        f'<th>Asked</th><th>Answered</th></tr></thead><tbody>{body}</tbody></table></div><div class="pages">{turn}</div></div>'
    )


def left_out_record(number: int, why: str, record: str, head: str) -> str:
    """A record that gives no row, as it came."""
    shown = record[:20_000]
    return f'<div class="row-view">{head}{notice(f"Row {number:,} {why}", "warning")}<div class="tokens" tabindex="0"><span class="piece seen">{_visible(shown)}</span></div></div>'


# What the check found ------------------------------------------------------------------------------------------------

_LEVEL_WORDS = {"stop": "stops a run", "harm": "harms", "mind": "mind", "note": "note"}


def findings(found: list, examples: dict[str, list[str]], fixes: dict[str, tuple[str, str]], shown: str, partial: bool) -> str:
    """Each finding: how many rows, what, why, the rows one click away, the fixes as buttons."""
    title = "Found in the first rows" if partial else "What the check found"
    if not found:
        words = "Nothing in the first rows so far." if partial else "Nothing found that could go wrong."
        return f'<div class="findings"><h3>{title}</h3>{empty(words)}</div>'
    cards = []
    for its in found:
        buttons = []
        if its.name not in ("few_rows", "nothing_to_learn"):
            pressed = "true" if its.name == shown else "false"
            buttons.append(f'<button type="button" class="mini" aria-pressed="{pressed}" data-do="show:{its.name}">Show rows</button>')
        if its.left_out:
            buttons.append('<span class="tag">left out already</span>')
        if not partial:
            buttons += [f'<button type="button" class="mini strong" data-do="fix:{its.name}:{fix}">{text(fixes[fix][0])}</button>' for fix in its.fixes]
        few = examples.get(its.name)
        masked = "".join(f" <code>{text(one)}</code>" for one in few or ())
        rows = f'<b class="figures">{its.rows:,}</b> <span class="quiet">{"row" if its.rows == 1 else "rows"}</span>' if its.rows else ""
        cards.append(
            f'<li class="finding {its.level}"><div class="finding-head"><span class="tag">{_LEVEL_WORDS[its.level]}</span>'
            f'<h4>{text(its.title)}</h4><span>{rows}</span></div><p>{text(" ".join(filter(None, [its.more, its.why])))}{masked}</p>'
            f'<div class="finding-does">{"".join(buttons)}</div></li>'
        )
    return f'<div class="findings"><h3>{title}</h3><ul>{"".join(cards)}</ul></div>'


def receipt(made: dict | None, steps: list[dict], note: str = "") -> str:
    """Rows in, each step, rows out; the fixes (`steps`, as Rows has them) with a button that takes them back; and what else is to be known."""
    if made is None:
        return ""
    fixed = 0
    lines = [f'<li><span>Rows that came in</span><b class="figures">{made["rows_in"]:,}</b></li>']
    for step in made["steps"]:
        button = ""
        if fixed < len(steps) and step["step"] == steps[fixed]["step"]:
            button = f'<button type="button" class="mini" data-do="undo:{fixed}">Undo</button>'
            fixed += 1
        lines.append(f'<li><span>{text(step["step"])}</span>{button}<b class="figures">{step["rows"]:,}</b></li>')
    lines.append(f'<li><span>To train on</span><b class="figures">{made["train_rows"]:,}</b></li>')
    lines.append(f'<li><span>Held out <span class="quiet">({text(made["split"])})</span></span><b class="figures">{made["held_out_rows"]:,}</b></li>')
    return (
        f'<details class="receipt" {"open" if steps else ""}><summary><h3>Receipt</h3></summary><ol>{"".join(lines)}</ol>'
        f'<p class="quiet small">SHA-256 of what comes out: <code>{made["sha256"][:16]}…</code>{" " + text(note) if note else ""}</p></details>'
    )


def checking(phase: str, share: float, left_s: float | None) -> str:
    """How far a check in another process is."""
    left = f"about {about(left_s)} left" if left_s else ""
    busy = " busy" if share == 0 else ""
    return (
        f'<div class="run-status" role="status"><div class="run-head"><h3>{text(phase)}</h3><span class="quiet figures">{share:.0%}{" · " + left if left else ""}</span></div>'
        f'<div class="progress{busy}" role="progressbar" aria-label="{text(phase)}" aria-valuemin="0" aria-valuemax="100" aria-valuenow="{round(100 * share)}">'
        f'<span style="width:{round(100 * share)}%"></span></div></div>'
    )


def _visible(part: str) -> str:
    """The text with control characters made visible and directions isolated, so that nothing hides in it."""
    shown = "".join("␀" if char == "\0" else char for char in part)
    return f"<bdi>{text(shown)}</bdi>" if any(ord(char) >= 0x590 for char in shown) else text(shown)


def histogram(lengths, limit: int) -> str:
    """How many rows have how many tokens, with the place where rows are cut; for wide pages and for narrow ones."""
    if not len(lengths):
        return ""
    wide, narrow = _histogram(lengths, limit, 780, 170), _histogram(lengths, limit, 340, 140)
    return f'<div class="chart-box"><div class="wide">{wide}</div><div class="narrow">{narrow}</div></div>'


def _histogram(lengths: list[int], limit: int, width: int, height: int) -> str:
    most = max(int(lengths.max()), 1)
    bins = 24
    size = max(1, math.ceil((most + 1) / bins))
    counts = np.bincount(lengths // size, minlength=most // size + 1).tolist()
    top = max(counts)
    left, bottom, inner = 8, 24, width - 16
    step = inner / len(counts)
    bars = "".join(
        f'<rect class="bar{" over" if index * size >= limit else ""}" x="{left + index * step + 1:.1f}" '
        f'y="{height - bottom - (height - bottom - 18) * count / top:.1f}" width="{max(1, step - 2):.1f}" '
        f'height="{(height - bottom - 18) * count / top:.1f}"><title>{index * size:,} to {index * size + size - 1:,} tokens: '
        f"{count:,} rows</title></rect>"
        for index, count in enumerate(counts) if count
    )
    mark = ""
    if limit <= most:
        x = left + limit / size * step
        mark = f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="8" y2="{height - bottom}"/><text class="tick" x="{min(x + 4, width - 90):.1f}" y="14">cut at {limit:,}</text>'
    axis = (
        f'<line class="axis" x1="{left}" x2="{width - left}" y1="{height - bottom}" y2="{height - bottom}"/>'
        f'<text class="tick" x="{left}" y="{height - 8}">0</text>'
        f'<text class="tick" x="{width - left}" y="{height - 8}" text-anchor="end">{most:,} tokens</text>'
        f'<text class="tick" x="{width / 2}" y="{height - 8}" text-anchor="middle">tokens per row</text>'
    )
    label = f"Tokens per row: {len(lengths):,} rows, shortest {lengths.min():,}, longest {most:,}"
    return f'<svg class="chart" role="img" aria-label="{label}" viewBox="0 0 {width} {height}">{bars}{mark}{axis}</svg>'


# The curve ----------------------------------------------------------------------------------------------------------


def curve(steps: list[dict], evals: list[dict], total: int, held_out: int | None = None) -> str:
    """Training loss and held-out loss over the steps; once for wide pages and once for narrow ones.

    Args:
        held_out: how many rows are held out; while it trains a part of them may be measured.
    """
    if not steps and not evals:
        words = empty("The curve appears with the first step.", "Two lines: what it learns from, and what it is measured on.")
        return f'<div class="curve">{words}</div>'
    measured = figures.rows_measured(evals[-1].get("rows") if evals else None, held_out)
    wide = _curve(steps, evals, total, measured, 760, 340)
    narrow = _curve(steps, evals, total, measured, 360, 260)
    return f'<div class="curve"><div class="wide">{wide}</div><div class="narrow">{narrow}</div></div>'


def _curve(steps, evals, total, measured, width, height) -> str:
    left, right, top, bottom = 44, 14, 26, 34
    points = [(event["step"], event["loss"]) for event in steps if math.isfinite(event["loss"])]
    held = [(event["step"], event["loss"], event.get("best")) for event in evals]
    values = [loss for _, loss in points] + [loss for _, loss, _ in held]
    low, high, ticks = scale(min(values), max(values))
    last = max([total, 1, *(step for step, _ in points), *(step for step, _, _ in held)])

    def x(step: float) -> float:
        return left + (width - left - right) * step / last

    def y(loss: float) -> float:
        return height - bottom - (height - top - bottom) * (loss - low) / (high - low)

    grid = "".join(
        f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        f'<text class="tick" x="{left - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>' for tick in ticks
    )
    grid += "".join(
        f'<text class="tick" x="{x(step):.1f}" y="{height - 12}" text-anchor="{"start" if step == 0 else "end" if step == last else "middle"}">{step:,}</text>'
        for step in sorted({round(last * part / 4) for part in range(5)})  # a short run has fewer steps than ticks
    )
    drawn = ""
    if points:
        thinned = points[:: max(1, len(points) // 400)]
        raw = " ".join(f"{x(step):.1f},{y(loss):.1f}" for step, loss in thinned)
        smooth, mean = [], points[0][1]
        for step, loss in points:
            mean += 0.2 * (loss - mean)
            smooth.append((step, mean))
        smooth = smooth[:: max(1, len(smooth) // 400)]
        line = " ".join(f"{x(step):.1f},{y(loss):.1f}" for step, loss in smooth)
        drawn += f'<polyline class="train raw" points="{raw}"/><polyline class="train" points="{line}"/>'
    if held:
        line = " ".join(f"{x(step):.1f},{y(loss):.1f}" for step, loss, _ in held)
        drawn += f'<polyline class="held" points="{line}"/>'
        drawn += "".join(
            f'<rect class="held-dot" x="{x(step) - 4:.1f}" y="{y(loss) - 4:.1f}" width="8" height="8" transform="rotate(45 {x(step):.1f} {y(loss):.1f})">'
            f"<title>Step {step:,}: held-out loss {loss:.4f}</title></rect>" for step, loss, _ in held
        )
        best = next(((step, loss) for step, loss, its in reversed(held) if its), None)
        if best and best[0]:
            anchor = "end" if x(best[0]) > width - 110 else "middle"
            drawn += f'<text class="best" x="{x(best[0]):.1f}" y="{y(best[1]) - 12:.1f}" text-anchor="{anchor}">best {best[1]:.3f}</text>'
    key = left if width > 500 else 4  # a narrow one needs its whole width
    legend = (
        f'<g class="key"><line class="train" x1="{key}" x2="{key + 22}" y1="12" y2="12"/><text class="tick" x="{key + 28}" y="16">training loss</text>'
        f'<line class="held" x1="{key + 118}" x2="{key + 140}" y1="12" y2="12"/><text class="tick" x="{key + 146}" y="16">held-out loss{f", {measured}" if measured else ""}</text></g>'
    )
    said = f"Loss over {last:,} steps." + (f" Held-out loss{f' on {measured}' if measured else ''} went from {held[0][1]:.3f} to {held[-1][1]:.3f}." if held else "")
    return f'<svg class="chart" role="img" aria-label="{said}" viewBox="0 0 {width} {height}">{grid}{drawn}{legend}</svg>'


def scale(low: float, high: float) -> tuple[float, float, list[float]]:
    """Bounds and round tick values around a range."""
    span = max(high - low, 0.1)
    raw = span / 4
    size = 10 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= raw)
    first, last = math.floor(low / step) * step, math.ceil(high / step) * step
    if first == last:  # one value, right on a tick
        last += step
    count = round((last - first) / step)
    return first, last, [round(first + step * index, 6) for index in range(count + 1)]


def sparkline(points: list[tuple[int, float]]) -> str:
    """A held-out curve as small as a word."""
    if len(points) < 2:
        return '<span class="quiet">—</span>'
    low, high = min(loss for _, loss in points), max(loss for _, loss in points)
    span, last = max(high - low, 1e-6), max(points[-1][0], 1)
    line = " ".join(f"{2 + 76 * step / last:.1f},{3 + 18 * (high - loss) / span:.1f}" for step, loss in points)
    return f'<svg class="spark" viewBox="0 0 80 24" role="img" aria-label="from {points[0][1]:.2f} to {points[-1][1]:.2f}"><polyline class="held" points="{line}"/></svg>'


# A run ---------------------------------------------------------------------------------------------------------------

STATE_WORDS = {
    "new": "not started", "waiting": "waiting", "rehearsing": "rehearsing", "training": "training", "checking": "checking",
    "done": "done", "stopped": "stopped, result kept", "failed": "failed", "interrupted": "interrupted",
}


def status(title: str, state: str, message: str, step: int, total: int, eta_s: float | None) -> str:
    """The state in words, a progress bar and the time left."""
    share = {"done": 1.0, "stopped": 1.0}.get(state, step / total if total else 0.0)
    percent = round(100 * share)
    left = f"about {about(eta_s)} left" if eta_s and state == "training" else ""
    counted = f"step {step:,} of {total:,}" if total else ""
    busy = " busy" if state in ("waiting", "rehearsing", "checking") else ""
    return (
        f'<div class="run-status state-{state}"><div class="run-head"><h3>{long_name(title)}</h3>'
        f'<span class="tag">{STATE_WORDS[state]}</span></div>'
        f'<div class="progress{busy}" role="progressbar" aria-label="Training progress" aria-valuemin="0" aria-valuemax="100" '
        f'aria-valuenow="{percent}"><span style="width:{percent}%"></span></div>'
        f'<div class="run-foot"><span>{text(message)}</span><span class="figures">{" · ".join(filter(None, [counted, left]))}</span></div></div>'
    )


# Rules of `tuner.watch` whose sentence asks for a change.
_MIND = ("memorising", "rate_too_high", "rate_too_low", "spike")


def watched(notes: list[dict]) -> str:
    """What the run saw in its own curves, in the order in which it saw it."""
    return "".join(notice(its["message"], "warning" if its["rule"] in _MIND else "note") for its in notes)


def samples(events: list[dict]) -> str:
    """The answers to the fixed prompts through the evaluations, the newest first; what an answer has that the one before had not is marked."""
    if not events:
        return empty("Its answers appear here while it learns.", "The same prompts, asked again after each evaluation.")
    prompts: dict[int, list[dict]] = {}
    for event in events:
        prompts.setdefault(event.get("number", 0), []).append(event)
    parts = []
    for number, told in sorted(prompts.items()):
        asked = text(shorten(told[-1]["prompt"], 160))
        lines = "".join(_sample(told, index) for index in range(len(told) - 1, -1, -1))
        parts.append(f'<details {"open" if number == 0 else ""}><summary class="asked">“{asked}”</summary><ol>{lines}</ol></details>')
    return f'<div class="samples">{"".join(parts)}</div>'


def _sample(told: list[dict], index: int) -> str:
    event, before = told[index], told[index - 1]["text"] if index else None
    moment = "before" if event["step"] == 0 else f"step {event['step']:,}"
    unended = "" if event.get("ended") else "<i> … did not stop</i>"
    if before is not None and before == event["text"]:
        said = f'<span class="quiet">the same</span> {text(event["text"] or "(nothing)")}'
    else:
        said = text(event["text"] or "(nothing)") if before is None else changed_words(before, event["text"])
    return f'<li><span class="when">{moment}</span><span class="said">{said}{unended}</span></li>'


def changed_words(before: str, after: str) -> str:
    """The second text with its words that the first has not, at that place, as insertions."""
    old, new = re.findall(r"\s+|\S+\s?", before), re.findall(r"\s+|\S+\s?", after)
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    shown = "".join(
        text("".join(new[start:end])) if what == "equal" else f'<ins>{text("".join(new[start:end]))}</ins>'
        for what, _, _, start, end in matcher.get_opcodes() if end > start
    )
    return shown or "(nothing)"


def runs_table(summaries: list[dict], shown: str = "", how: str = "Press Start; the quote beside it says about how long that takes.") -> str:
    """My runs, each with its curve and result.

    Args:
        how: what to do where there are none.
    """
    if not summaries:
        return empty("No runs yet.", how)
    lines = "".join(
        f'<tr{" class=shown" if its["id"] == shown else ""}><td>{long_name(its["title"])}<br><span class="quiet">{when(its["created"])}</span></td>'
        f'<td><span class="tag">{STATE_WORDS[its["state"]]}</span></td><td>{sparkline(its["curve"])}</td>'
        f'<td class="figures">{losses(its)}</td><td class="quiet base">{long_name(its["base_model"].split("/")[-1], 26)}</td></tr>'
        for its in summaries
    )
    return (
        '<div class="table-wrap"><table class="runs"><thead><tr><th>Run</th><th>State</th><th>Held-out curve</th>'
        f'<th>Held-out loss before → best</th><th class="base">Base</th></tr></thead><tbody>{lines}</tbody></table></div>'
    )


def losses(its: dict) -> str:
    """Before and best, and on which rows: a report measures all of them, a run that goes perhaps a part."""
    if not its.get("best_loss"):
        return "—"
    return f"{its['first_loss']:.3f} → {its['best_loss']:.3f}<br><span class=quiet>{figures.rows_measured(its.get('rows'), its.get('held_out_rows'))}</span>"


def when(seconds: float) -> str:
    """A moment in this machine's zone, which is named: a Space's is not its visitors'."""
    return time.strftime("%d %b, %H:%M %Z", time.localtime(seconds))
