"""What the Fine-tune tab shows of a run: its state, curve, numbers, answers and report, and what can be done with it."""

import gradio as gr

from tuner import figures, identity, limits, tasks
from tuner import run as runs
from tuner.events import latest
from tuner.ui import drawing, label_view, queue_view, quote_view, report_view

# In the order of what `of` gives.
PARTS = ("status", "curve", "numbers", "samples", "report", "cell_rows", "start", "stop", "resume", "longer_row", "to_chat", "timer", "seen")

SIGN_IN, PAUSED = "Sign in to start", "New runs are paused"
# The button then leads where the sign-in button does. The click itself is refused by the engine.
LEAD_TO_SIGN_IN = f"""(label) => {{
    if (label === {SIGN_IN!r}) window.location.assign("/login/huggingface?_target_url=/" + encodeURIComponent(window.location.search));
}}"""


def draw_state(its) -> None:
    """How it stands, and how it is stopped; above everything, so that it is seen on a narrow page too."""
    its.status = gr.HTML("", elem_id="run-status", js_on_load=drawing.LISTEN)
    its.stop = gr.Button("Stop and keep what was learned", visible=False, elem_id="stop")
    its.resume = gr.Button("Resume this run", visible=False, elem_id="resume")


def draw_course(its) -> None:
    """How it goes: the curve, the numbers, the answers."""
    its.curve = gr.HTML(drawing.curve([], [], 0), elem_id="curve")
    its.numbers = gr.HTML("", elem_id="numbers")
    with gr.Row(visible=False, elem_id="longer-row") as its.longer_row:
        its.more = gr.Number(1, label="Epochs more", minimum=0.1, maximum=100, elem_id="more-epochs", min_width=100)
        its.longer = gr.Button("Train longer", elem_id="longer", min_width=130)
    its.to_chat = gr.Button(tasks.get(tasks.DEFAULT).LEAD, variant="primary", visible=False, elem_id="to-chat")
    gr.HTML("<h3>Watch it learn</h3>")
    its.samples = gr.HTML(drawing.samples([]), elem_id="samples")


def draw_report(its) -> None:
    its.report = gr.HTML("", elem_id="report", js_on_load=drawing.LISTEN)
    its.cell_rows = gr.HTML("", elem_id="cell-rows")
    its.timer = gr.Timer(1.0, active=False)
    its.seen = gr.State("")  # what was drawn


def parts(its) -> list:
    """The components that `of` fills."""
    return [getattr(its, name) for name in PARTS]


def start_button(owner: str, live: bool = False) -> dict:
    """What stands on the Start button for this owner, and whether it can be pressed, so that both are known before a click."""
    if limits.is_paused():
        return gr.update(interactive=False, value=PAUSED)
    return gr.update(interactive=True, value=SIGN_IN if not identity.may_start(owner) else "Start another" if live else "Start")


def how_to_start(owner: str) -> str:
    """What somebody without a run does first, in the words of their button."""
    if limits.is_paused():
        return limits.PAUSED
    begin = "Press Start" if identity.may_start(owner) else "Sign in, then press Start"
    return f"{begin}; the quote beside it says about how long that takes."


def stop_label(state: str) -> str:
    """What the button beside a live run does."""
    return "Leave the queue" if state == "waiting" else "Stop and keep what was learned"


def of(run: runs.Run | None, owner: str = "") -> list:
    """Everything the tab shows of a run; of none, to this owner."""
    owner = run.owner if run else owner
    if run is None:
        return [
            "", drawing.curve([], [], 0), "", drawing.samples([]), "", "", start_button(owner), gr.update(visible=False), gr.update(visible=False),
            gr.update(visible=False), gr.update(visible=False), gr.Timer(active=False), "",
        ]
    events, size = run.events()
    state = run.state()
    live = state in runs.LIVE
    steps, evals, told = latest(events, "step"), latest(events, "eval"), latest(events, "sample")
    total = steps[-1].get("steps", 0) if steps else 0
    report = run.read("report") if state in ("done", "stopped") else None
    made, task = report and figures.of(run), tasks.get(run.recipe.task)
    drawn = drawing.curve(steps, evals, total, run.read("data/receipt", {}).get("held_out_rows")) + label_view.curve(evals, total)
    return [
        _status(run, state, events, steps), drawn, _numbers(task, steps, evals, report),
        drawing.samples(told), report_view.whole(made, task) if made else "", "", start_button(owner, live), gr.update(visible=live, value=stop_label(state)),
        gr.update(visible=state in ("new", "interrupted", "failed", "stopped")),
        gr.update(visible=state in ("done", "stopped", "interrupted") and run.read("plan") is not None), gr.update(visible=state in ("done", "stopped"), value=task.LEAD),
        gr.Timer(active=live), f"{seen_as(run, size)}/{len(told)}",
    ]


def seen_as(run: runs.Run, size: int) -> str:
    """What tells a run that moved from one that was drawn already.

    Args:
        size: of its events, in bytes.
    """
    return f"{run.id}/{size}/{run.state()}/{run.stop_asked()}/{queue_view.moment(run)}"


def _status(run: runs.Run, state: str, events: list[dict], steps: list[dict]) -> str:
    said = [event["message"] for event in events if event["kind"] == "status"]
    notes = list(dict.fromkeys(event["message"] for event in events if event["kind"] == "note" and "rule" not in event))
    seen = [event for event in events if event["kind"] == "note" and "rule" in event]
    last = steps[-1] if steps else {}
    if run.stop_asked() and state in runs.LIVE:
        message = "Leaving the queue" if state == "waiting" else "Stopping after this step"
    elif state == "waiting" and (place := queue_view.waiting(run)):
        message = place
    elif state == "new":
        message = "Not started; nothing was spent. Resume puts it into the queue."
    elif state == "interrupted":
        message = " ".join(filter(None, ("It was ended in the middle. Resume goes on from the last checkpoint.", run.cannot_write())))
    elif state == "failed":
        message = "See below what went wrong"
    else:
        message = said[-1] if said else "Starting"
    top = drawing.status(run.title, state, message, last.get("step", 0), last.get("steps", 0), last.get("eta_s"))
    if state == "failed":
        top += drawing.notice(run.error(), "error") + quote_view.retry(run.read("proposals", []), run.kept_step())
    if tried := next((event for event in reversed(events) if event["kind"] == "status" and "rehearsed" in event), None):
        result = next((event for event in reversed(events) if event["kind"] == "status" and event["state"] in ("done", "stopped")), None)
        first = events[0]["t"] if events else 0
        top += quote_view.rehearsed(tried["quoted"], tried["rehearsed"], result["t"] - first if result else None)
    return top + "".join(drawing.notice(note) for note in notes[-3:]) + drawing.watched(seen) + queue_view.around(run)


def _numbers(task, steps: list[dict], evals: list[dict], report: dict | None) -> str:
    if report:
        return drawing.stats(task.tiles(report))
    if not steps:
        return ""
    last = steps[-1]
    return drawing.stats([
        *task.tiles_of(evals[-1] if evals else {}),
        (f"{last['tokens_per_s']:,.0f}", f"{task.COUNTED} / s", "Over the last 20 steps"),
        (f"{last['memory_gib']:.2f} GiB", "memory", "What the training process holds now"),
        (f"{last['loss']:.3f}", "training loss", "Of the last step"),
        (f"{last['learning_rate']:.1e}", "learning rate", "At the last step"),
    ])
