"""Trials on the Fine-tune tab: their buttons, and their pictures: the loss over the learning rate or the number of rows, and what they say."""

import math
from collections.abc import Callable
from contextlib import suppress

import gradio as gr

from tuner import data, identity, limits, trials
from tuner import run as runs
from tuner.errors import UserError
from tuner.run import LIVE
from tuner.ui import drawing
from tuner.ui.drawing import about, notice, scale, text


def draw_controls(its) -> None:
    """A fold with both trials, what they cost, and what came out."""
    with gr.Accordion("Try before you train", open=False, elem_id="trials"):
        its.trial_quote = gr.HTML(drawing.empty("What they take appears with the dataset."), elem_id="trial-quote")
        with gr.Row():
            its.try_rate = gr.Button("Find a learning rate", elem_id="try-rate", min_width=130)
            its.try_enough = gr.Button("Is the data enough?", elem_id="try-enough", min_width=130)
        its.trial = gr.HTML("", elem_id="trial", js_on_load=drawing.LISTEN)
        its.cancel_trial = gr.Button("Cancel", visible=False, elem_id="cancel-trial")
    its.trial_id, its.trying = gr.State(""), gr.Timer(1.0, active=False)


def wire(its, to_quote: Callable) -> None:
    """Connect them; `its.reattach_trial` is then what is to happen when a page opens.

    Args:
        to_quote: the base's sizes and the rows of a dataset, a recipe and a visitor; see `train_tab.to_quote`.
    """
    from tuner.ui.app import in_words

    page, who = its.page, [its.browser]
    quiet = dict(show_progress="hidden", api_visibility="private")

    def shown(trial: trials.Trial | None, owner: str) -> list:
        live = trial is not None and trial.state() in LIVE
        can = not live and identity.may_start(owner) and not limits.is_paused()
        return [
            whole(trial) if trial else "", gr.update(visible=live), gr.Timer(active=live), gr.update(interactive=can), gr.update(interactive=can),
        ]

    def try_it(kind, dataset_id, browser_id, token, form):
        visitor = page.visitor(browser_id, token)
        recipe = its.strict(form)
        dataset = data.find(visitor.owner, dataset_id)
        trial = trials.create(visitor.owner, kind, recipe, dataset)
        quoted = None
        with suppress(UserError):  # what is wrong, the start itself says
            quoted = {"seconds": trials.seconds(kind, recipe, *to_quote(dataset, recipe, visitor))}
        runs.start(trial, visitor.token, quoted)
        return [trial.id, *shown(trial, visitor.owner)]

    @in_words
    def try_rate(dataset_id, browser_id, token: gr.OAuthToken | None, *form):
        return try_it(trials.RATE, dataset_id, browser_id, token, form)

    @in_words
    def try_enough(dataset_id, browser_id, token: gr.OAuthToken | None, *form):
        return try_it(trials.ENOUGH, dataset_id, browser_id, token, form)

    @in_words
    def poll_trial(trial_id, browser_id, token: gr.OAuthToken | None):
        owner = page.visitor(browser_id, token).owner
        mine = bool(trial_id) and runs.is_of(owner, trial_id, trials.Trial)
        return shown(runs.find(owner, trial_id, trials.Trial) if mine else None, owner)

    @in_words
    def cancel_trial(trial_id, browser_id, token: gr.OAuthToken | None):
        owner = page.visitor(browser_id, token).owner
        trial = runs.find(owner, trial_id, trials.Trial)
        trial.ask_stop()
        return shown(trial, owner)

    @in_words
    def reattach_trial(browser_id, token: gr.OAuthToken | None):
        owner = page.visitor(browser_id, token).owner
        newest = next(iter(runs.mine(owner, trials.Trial)), None)
        return [newest.id if newest else "", *shown(newest, owner)]

    fills = [its.trial, its.cancel_trial, its.trying, its.try_rate, its.try_enough]
    for button, fn in ((its.try_rate, try_rate), (its.try_enough, try_enough)):
        button.click(
            fn, [its.dataset_id, *who, *its.form], [its.trial_id, *fills], show_progress="minimal", show_progress_on=[its.trial],
            api_visibility="private", concurrency_limit=4,
        )
    its.trying.tick(poll_trial, [its.trial_id, *who], fills, concurrency_limit=None, trigger_mode="once", **quiet)
    its.cancel_trial.click(cancel_trial, [its.trial_id, *who], fills, **quiet)
    its.reattach_trial = dict(fn=reattach_trial, inputs=who, outputs=[its.trial_id, *fills], **quiet)


# As pictures ------------------------------------------------------------------------------------------------------


def costs(seconds: dict[str, float]) -> str:
    """What each trial takes, before it is begun."""
    said = "; ".join(f"{text(trials.TITLES[kind])} about <b class=figures>{about(its)}</b>" for kind, its in seconds.items())
    return f'<p class="quiet small">{said}, on this machine. They change nothing: the settings stay yours.</p>'


def whole(trial: trials.Trial) -> str:
    """A trial as far as it is: its state, its picture, and at its end what it says, with a button that takes it over."""
    state, told = trial.state(), trials.result(trial)
    title = f"<h4>{text(trials.TITLES[trial.kind])}</h4>"
    picture = draw(told) if len(told["points"]) > 1 else ""
    if state in LIVE:
        statuses = [event["message"] for event in trial.events(kind="status")[0]]
        words = "Cancelling after this step" if trial.stop_asked() else statuses[-1] if statuses else "Starting"
        return f'<div class="trial">{title}<p class="quiet" role="status">{text(words)} …</p>{picture}</div>'
    if state == "failed":
        return f'<div class="trial">{title}{notice(trial.error(), "error")}{picture}</div>'
    if state != "done":
        return f'<div class="trial">{title}<p class="quiet">Cancelled: it says nothing.</p>{picture}</div>'
    buttons = "".join(
        f'<button type="button" class="mini strong" data-do="set:{name}={value:g}">Use {value:g}</button>' for name, value in told["settings"].items()
    )
    return f'<div class="trial">{title}{picture}<p>{text(told["words"])}</p>{buttons}</div>'


def draw(told: dict) -> str:
    """The picture of a result as `trials.result` gives it; the horizontal axis is logarithmic."""
    if told["kind"] == trials.RATE:
        points = [(rate, loss) for rate, loss in told["points"] if rate]
        marks = [(rate, f"{rate:g}") for rate in told["settings"].values()]
        return _chart(points, [], marks, [10.0**power for power in range(-6, 0)], lambda rate: f"1e{round(math.log10(rate))}", "learning rate")
    band = [(one["rows"], one["low"], one["loss"], one["high"]) for one in told.get("forecast", ())]
    ticks = sorted({rows for rows, _ in told["points"]} | {rows for rows, *_ in band})
    return _chart(told["points"], band, [], ticks, lambda rows: f"{rows:,}", "rows")


def _chart(points, band, marks, ticks, in_words, axis: str) -> str:
    width, height, left, right, top, bottom = 360, 220, 44, 12, 12, 40
    if not points:
        return ""
    places = [place for place, _ in points] + [place for place, *_ in band]
    first, last = math.log(min(places)), math.log(max(places))
    # A loss that ran away would press the rest flat.
    most = min(max(loss for _, loss in points), points[0][1] + 1.5 * max(points[0][1] - min(loss for _, loss in points), 0.05))
    values = [min(loss, most) for _, loss in points] + [value for _, *bounds in band for value in bounds]
    low, high, levels = scale(min(values), max(values))

    def x(place: float) -> float:
        return left + (width - left - right) * (math.log(place) - first) / max(last - first, 1e-9)

    def y(loss: float) -> float:
        return height - bottom - (height - top - bottom) * (min(max(loss, low), high) - low) / (high - low)

    grid = "".join(
        f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y(level):.1f}" y2="{y(level):.1f}"/>'
        f'<text class="tick" x="{left - 6}" y="{y(level) + 4:.1f}" text-anchor="end">{level:g}</text>' for level in levels
    )
    free = left - 30.0
    for place in ticks:
        if first - 1e-9 <= math.log(place) <= last + 1e-9 and x(place) > free + 34:
            free = x(place)
            grid += f'<text class="tick" x="{free:.1f}" y="{height - 24}" text-anchor="middle">{in_words(place)}</text>'
    grid += f'<text class="tick" x="{(left + width - right) / 2}" y="{height - 6}" text-anchor="middle">{axis}</text>'
    drawn = ""
    if band:
        upper = [f"{x(place):.1f},{y(above):.1f}" for place, _, _, above in band]
        lower = [f"{x(place):.1f},{y(below):.1f}" for place, below, _, _ in reversed(band)]
        drawn += f'<polygon class="band" points="{" ".join(upper + lower)}"><title>9 times of 10 it lies in here</title></polygon>'
        drawn += f'<polyline class="expected" points="{" ".join(f"{x(place):.1f},{y(middle):.1f}" for place, _, middle, _ in band)}"/>'
    drawn += f'<polyline class="held" points="{" ".join(f"{x(place):.1f},{y(loss):.1f}" for place, loss in points)}"/>'
    if axis == "rows":
        drawn += "".join(f'<circle class="dot" cx="{x(place):.1f}" cy="{y(loss):.1f}" r="4"><title>{place:,} rows: {loss:.4f}</title></circle>' for place, loss in points)
    for place, words in marks:
        drawn += (
            f'<line class="limit" x1="{x(place):.1f}" x2="{x(place):.1f}" y1="{top}" y2="{height - bottom}"/>'
            f'<text class="tick" x="{x(place) - 5:.1f}" y="{top + 10}" text-anchor="end">{words}</text>'
        )
    said = f"Held-out loss over the {axis}: {points[0][1]:.3f} at {in_words(points[0][0])}, {points[-1][1]:.3f} at {in_words(points[-1][0])}"
    return f'<svg class="chart" role="img" aria-label="{said}" viewBox="0 0 {width} {height}">{grid}{drawn}</svg>'
