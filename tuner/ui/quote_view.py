"""The quote as a picture: three numbers, what the memory is made of, what makes it fit, what hired hardware would take."""

from tuner import limits
from tuner.plan import ROOM
from tuner.quote import Hired, Quote, held_out_words
from tuner.recipe import KNOBS
from tuner.ui.drawing import about, duration, notice, text


def dollars(amount: float) -> str:
    """An amount as a person says it; &#36; since a bare one has power in Gradio's templates."""
    if amount == 0:
        return "&#36;0"
    return "&lt; &#36;0.01" if amount < 0.01 else f"&#36;{amount:,.2f}"


def gib(size: float) -> str:
    return f"{size:,.0f} GiB" if size >= 100 else f"{size:.1f} GiB"


def line(made: Quote) -> str:
    """The quote in one line, beside the Start button."""
    fits = "" if made.fits else " That is more than is free."
    return (
        f'<p class="figures quiet">About {about(made.seconds)} and {gib(made.memory_gib)} on this machine, '
        f'{made.steps:,} {"step" if made.steps == 1 else "steps"}.{fits}</p>'
    )


def whole(made: Quote, hired: list[Hired], offered: list, measuring: bool, runs_known: int) -> str:
    """Everything about the cost of a run, before it starts.

    Args:
        offered: proposals, where it does not fit.
        measuring: whether this machine is being measured at this moment.
        runs_known: how many finished runs on this machine the time rests on.
    """
    tiles = "".join(
        f'<div class="stat" title="{tip}"><b>{value}</b><span>{words}</span></div>' for value, words, tip in (
            (about(made.seconds), "about, here", text("; ".join(f"{name} {about(seconds)}" for name, seconds in made.time.items()))),
            (gib(made.memory_gib), "memory, about", f"{gib(made.free_gib)} are free"),
            (dollars(made.dollars), "on this machine", "Its price by the hour, for that time"),
            (f"{made.steps:,}", "step" if made.steps == 1 else "steps", f"{made.tokens:,} tokens"),
        )
    )
    if not made.measured:
        basis = f"A first estimate: this machine {'is being measured now' if measuring else 'has not been measured yet'}."
    else:
        basis = "From this machine's measured speed" + (f" and {runs_known} finished {'run' if runs_known == 1 else 'runs'}." if runs_known else ".")
    return (
        f'<div class="quote"><div class="stats">{tiles}</div>{_bar(made)}'
        f'<p class="quiet small">{_plan(made)} {basis}</p>{_report(made)}{_offers(made, offered)}{_table(made, hired)}</div>'
    )


def _plan(made: Quote) -> str:
    rows = f"At most {made.at_once} {'row' if made.at_once == 1 else 'rows'} at once"
    return f"{rows}, {'with' if made.plan.checkpointing else 'without'} gradient checkpointing, {made.evaluations} evaluations."


def _report(made: Quote) -> str:
    """What the report's time means for the held-out rows: how many there are, and what nobody waits for and is told all the same."""
    said = held_out_words(made)
    if not made.afterwards_s and not said:
        return ""
    said = f" {said} “{KNOBS['held_out_rows'].label}” under More settings takes another number." if said else ""
    most = limits.run_seconds()
    takes = f"about {about(made.afterwards_s)}" if most is None or made.afterwards_s <= most else f"at most {about(most)}, as far as that goes"
    afterwards = f" What it has no time for is done afterwards, while nobody else needs the machine, in {takes}." if made.afterwards_s else ""
    return f'<p class="quiet small">The report at the end keeps to a quarter of the training\'s time, at least a minute.{said}{afterwards}</p>'


def _bar(made: Quote) -> str:
    """What the memory is made of, each part as wide as it is large, in the order of the list below; then what is free."""
    parts = "".join(
        f'<span class="part p{index}" style="width:{100 * size / made.memory_gib:.2f}%" title="{text(name)}: {size:.2f} GiB"></span>'
        for index, (name, size) in enumerate(made.memory.items())
    )
    said = f"{gib(made.memory_gib)}: " + ", ".join(f"{name} {size:.2f}" for name, size in made.memory.items())
    # Where it ends that can be had, when that is inside the bar.
    end = "" if made.free_gib >= made.memory_gib else f'<i style="left:{100 * made.free_gib / made.memory_gib:.2f}%"></i>'
    share = min(100.0, 100 * made.memory_gib / max(made.free_gib, 1e-6))
    word = "fits" if made.fits else "does not fit"
    return (
        f'<div class="memory-bar" role="img" aria-label="{text(said)}">{parts}{end}</div>{_made_of(made)}'
        f'<div class="of-free{"" if made.fits else " over"}"><div class="track"><span style="width:{share:.1f}%"></span></div>'
        f'<span><b>{word}</b>: {gib(made.memory_gib)} of {gib(made.free_gib)} free here</span></div>'
    )


def _made_of(made: Quote) -> str:
    items = "".join(
        f'<li><span class="swatch p{index}"></span><span>{text(name)}</span><b class="figures">{size:.2f}</b></li>'
        for index, (name, size) in enumerate(made.memory.items())
    )
    return f'<ul class="made-of" aria-label="What the memory is made of, in GiB">{items}</ul>'


def _offers(made: Quote, offered: list) -> str:
    if made.fits:
        return ""
    short = made.needed_gib - ROOM * made.free_gib
    if not offered:
        return notice(
            f"This needs {gib(made.needed_gib)}, {gib(short)} more than can be used here, and no setting makes it fit. Choose a "
            "smaller base model, or hardware below that fits.", "warning",
        )
    buttons = "".join(
        f'<li><button type="button" class="mini{" strong" if index == 0 else ""}" data-do="set:{text(settings_text(its.settings))}">{text(its.words)}</button>'
        f'<span class="quiet">{text(cost_words(its.harm, its.quote.memory_gib, its.quote.seconds))}</span></li>'
        for index, its in enumerate(offered[:3])
    )
    words = notice(f"This needs {gib(made.needed_gib)}, {gib(short)} more than can be used here. What makes it fit:", "warning")
    return f'<div class="offers">{words}<ul>{buttons}</ul></div>'


def settings_text(settings: dict) -> str:
    """Settings as a button carries them; `recipe.from_text` reads the values."""
    return ";".join(f"{name}={value}" for name, value in settings.items())


def cost_words(harm: str, memory_gib: float, seconds: float) -> str:
    """What a proposal costs."""
    return f"{harm or 'the same result'}; {gib(memory_gib)}, about {about(seconds)}"


def _table(made: Quote, hired: list[Hired]) -> str:
    fitting = [one for one in hired if one.quote.fits]
    cheapest = min(fitting, key=lambda one: (one.dollars, one.seconds), default=None)
    fastest = min(fitting, key=lambda one: (one.seconds, one.dollars), default=None)

    def row(name: str, small: str, seconds: float, price: str, quote: Quote, tags: list[str]) -> str:
        short = "" if quote.fits else f'<br><span class="lacks">{gib(quote.needed_gib - ROOM * quote.free_gib)} too little</span>'
        mark = '<span class="fits" title="fits">✓</span>' if quote.fits else '<span class="lacks" title="does not fit">✗</span>'
        marks = "".join(f'<span class="tag">{tag}</span>' for tag in tags)
        return (
            f'<tr><td>{mark}</td><td><b>{text(name)}</b>{marks}<br><span class="quiet">{text(small)}</span>{short}</td>'
            f'<td class="figures">{about(seconds)}</td><td class="figures">{price}</td></tr>'
        )

    lines = [row("This machine", f"{gib(made.free_gib)} free", made.seconds, dollars(made.dollars), made, [])]
    for one in hired:
        its = one.its
        small = f"{its.flavour}, {its.card_gib or its.memory_gib:.0f} GiB"
        if its.cards > 1:
            small += f", 1 of its {its.cards} cards used"
        if its.space_dollars is None:
            small += ", Jobs only"
        tags = [word for word, best in (("cheapest", cheapest), ("fastest", fastest)) if best is one]
        lines.append(row(its.name, small, one.seconds, dollars(one.dollars), one.quote, tags))
    best = f"cheapest that fits: {text(cheapest.its.name)}, {dollars(cheapest.dollars)}" if cheapest else "none of it fits"
    return (
        f'<details><summary>On a Space or a Job: {best}</summary><div class="hired-wrap" tabindex="0" role="region" aria-label="Hardware">'
        f'<table class="hired"><thead><tr><th>Fits</th><th>Hardware</th><th>About</th><th>Cost</th></tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
        '<p class="quiet small">Prices of 22 August 2026, billed by the minute with a minute to start; speeds there are expected, not '
        "measured. ZeroGPU is left out: it lends a card for minutes only.</p></details>"
    )


# Beside a run -------------------------------------------------------------------------------------------------------


def rehearsed(quoted: dict, measured: dict, taken_s: float | None) -> str:
    """What was quoted, what the rehearsal measured, and, once it is over, what the run took."""
    cells = [("Quoted", gib(quoted["memory_gib"]), f"about {about(quoted['seconds'])}"), ("Rehearsed", gib(measured["memory_gib"]), f"about {about(measured['seconds'])}")]
    if taken_s is not None:
        cells.append(("Took", "", duration(taken_s)))
    inner = "".join(f"<span><i>{name}</i> <b class=figures>{', '.join(filter(None, (size, time)))}</b></span>" for name, size, time in cells)
    return f'<div class="rehearsed">{inner}</div>'


def retry(offered: list[dict], kept_step: int | None = None) -> str:
    """What a run that failed may try, each with a button that starts it; and its best version, where it has one."""
    if not offered and not kept_step:
        return ""
    keep = (
        f'<li><button type="button" class="mini" data-do="keep:">Keep the version of step {kept_step:,}</button>'
        '<span class="quiet">ends this run with the best it had</span></li>' if kept_step else ""
    )
    buttons = "".join(
        f'<li><button type="button" class="mini{" strong" if index == 0 else ""}" data-do="again:{index}">Use this and start: {text(its["words"])}</button>'
        f'<span class="quiet">{text(cost_words(its["harm"], its["memory_gib"], its["seconds"]))}</span></li>'
        for index, its in enumerate(offered[:3])
    )
    return f'<div class="offers"><ul>{buttons}{keep}</ul></div>'
