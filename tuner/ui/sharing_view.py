"""A shared run on the page: the button that makes its link, and what whoever opens the link sees."""

from types import SimpleNamespace

import gradio as gr

from tuner import figures, sharing, tasks
from tuner import run as runs
from tuner.errors import UserError
from tuner.events import latest
from tuner.ui import drawing, label_view, report_view
from tuner.ui.my_runs import require_chosen

_WHAT = (
    "Whoever has this link sees the run's curve, its answers and its report, with the held-out rows in it, and can chat with "
    "the tuned model. They can change nothing."
)


def draw(page, browser, shared_key) -> SimpleNamespace:
    """The panel of a run that somebody else shares, above the visitor's own; empty without a link."""
    from tuner.ui.app import in_words

    its = SimpleNamespace(page=page, browser=browser, key=shared_key)
    its.head = gr.HTML("", visible=False, elem_id="shared-run")
    its.chat = gr.Button("Chat with it", visible=False, variant="primary", elem_id="shared-chat")
    its.course = gr.HTML("", visible=False, elem_id="shared-course")
    its.seen, its.timer = gr.State(""), gr.Timer(2.0, active=False)
    its.fills = [its.head, its.chat, its.course, its.timer, its.seen]
    its.arrive = dict(fn=in_words(_arrive), inputs=[its.key], outputs=its.fills, show_progress="hidden", api_visibility="private")
    return its


def draw_buttons(its) -> None:
    """The link to a run of one's own, under the list of them."""
    with gr.Row(elem_id="share-actions"):
        its.share = gr.Button("Share a link", elem_id="share-run", min_width=150, scale=0)
        its.unshare = gr.Button("Stop sharing", visible=False, elem_id="unshare-run", min_width=150, scale=0)
        its.link = gr.Textbox(
            visible=False, label="Link", interactive=False, buttons=["copy"], info=_WHAT, elem_id="share-link", scale=3, min_width=260,
        )


def wire(its, train, talk, tabs) -> None:
    """Connect both; the run is the one chosen in the list."""
    from tuner.ui.app import in_words

    page = its.page
    quiet = dict(show_progress="hidden", api_visibility="private")

    def shown(key: str, request: gr.Request) -> list:
        return [gr.update(visible=bool(key), value=page.link(key, request, "run") if key else ""), gr.update(visible=bool(key))]

    @in_words
    def share(chosen, browser_id, request: gr.Request, token: gr.OAuthToken | None):
        return shown(sharing.share(page.visitor(browser_id, token).owner, require_chosen(chosen)), request)

    @in_words
    def unshare(chosen, browser_id, request: gr.Request, token: gr.OAuthToken | None):
        sharing.unshare(page.visitor(browser_id, token).owner, str(chosen))
        return shown("", request)

    @in_words
    def choose(chosen, browser_id, request: gr.Request, token: gr.OAuthToken | None):
        """Whether the run that is chosen now is shared."""
        owner = page.visitor(browser_id, token).owner
        mine = bool(chosen) and runs.is_of(owner, str(chosen))
        return shown(sharing.key_of(runs.find(owner, str(chosen))) if mine else "", request)

    @in_words
    def poll(key, seen):
        its_view = _arrive(key)
        return [gr.skip()] * 4 + [seen] if its_view[-1] == seen else its_view

    asked = dict(inputs=[train.chosen, its.browser], outputs=[its.link, its.unshare], **quiet)
    its.share.click(share, **asked)
    its.unshare.click(unshare, **asked)
    train.chosen.change(choose, **asked)
    its.timer.tick(poll, [its.key, its.seen], its.fills, concurrency_limit=None, trigger_mode="once", **quiet)
    its.chat.click(lambda: gr.Tabs(selected="chat"), None, [tabs], queue=False, **quiet).then(**talk.take_shared)


def _arrive(key: str) -> list:
    """What the page shows of the run behind a link: how it stands, whether it can be asked, how it went, whether to look again, and what was seen."""
    if not key:
        return ["", gr.update(visible=False), "", gr.Timer(active=False), ""]
    try:
        its = sharing.find(key)
    except UserError as error:
        said = gr.update(value=drawing.notice(str(error), "warning"), visible=True)
        return [said, gr.update(visible=False), gr.update(value="", visible=False), gr.Timer(active=False), "gone"]
    run = its.look()
    events, size = run.events()
    live, ended = its.state in runs.LIVE, its.state in ("done", "stopped")
    return [
        gr.update(value=_draw_head(its, events), visible=True), gr.update(visible=ended, value=tasks.get(run.recipe.task).LEAD), gr.update(value=_draw_course(its, run, events), visible=True),
        gr.Timer(active=live), f"{key}/{size}/{its.state}",
    ]


def _draw_head(its: sharing.Shared, events: list[dict]) -> str:
    """What it is, and how it stands."""
    steps = latest(events, "step")
    last = steps[-1] if steps else {}
    said = [event["message"] for event in events if event["kind"] == "status"]
    message = said[-1] if said and its.state not in ("failed", "interrupted") else ""
    return (
        '<section class="shared-run" aria-label="A shared run">'
        f'<p class="quiet">Shared with you, to look at: tuned from {drawing.text(its.base_model)}. Your own runs are below.</p>'
        f'{drawing.status(its.title, its.state, message, last.get("step", 0), last.get("steps", 0), last.get("eta_s"))}</section>'
    )


def _draw_course(its: sharing.Shared, run: runs.Run, events: list[dict]) -> str:
    """Its curve, answers and report, and nothing to press."""
    steps, evals, told = latest(events, "step"), latest(events, "eval"), latest(events, "sample")
    report = run.read("report") if its.state in ("done", "stopped") else None
    made, task = report and figures.of(run), tasks.get(run.recipe.task)
    return "".join([
        '<section class="shared-run" aria-label="How the shared run went">',
        drawing.curve(steps, evals, steps[-1].get("steps", 0) if steps else 0, run.read("data/receipt", {}).get("held_out_rows")),
        label_view.curve(evals, steps[-1].get("steps", 0) if steps else 0), drawing.stats(task.tiles(report)) if report else "",
        "<h3>What it answered</h3>", drawing.samples(told), report_view.whole(made, task, pressable=False) if made else "", "</section>",
    ])
