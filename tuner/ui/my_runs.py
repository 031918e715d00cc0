"""My runs on the Fine-tune tab: the list, what can be done with the one that is chosen, and those kept in my account."""

import gradio as gr

from tuner import homecoming, keeping
from tuner import run as runs
from tuner.errors import Hint
from tuner.identity import Visitor
from tuner.ui import drawing, run_view

# In the order of what `of` gives.
PARTS = ("table", "chosen", "chat_run", "publish_run", "find_kept")


def draw(its) -> None:
    """The list and its buttons. The style sheet hides them while the list is empty: what Gradio hides misses what is said to it."""
    gr.HTML("<h3>My runs</h3>")
    its.table = gr.HTML(drawing.runs_table([]), elem_id="runs")
    with gr.Row(elem_id="run-actions"):
        its.chosen = gr.Dropdown([], label="Run", elem_id="chosen-run", filterable=False, scale=3, min_width=220)
        its.open_run = gr.Button("Open", elem_id="open-run", min_width=80)
        its.chat_run = gr.Button("Chat", interactive=False, elem_id="chat-run", min_width=80)
        its.publish_run = gr.Button("Publish", interactive=False, elem_id="publish-run", min_width=80)
    with gr.Row(elem_id="kept-row"):
        its.find_kept = gr.Button("Find my kept runs", visible=False, elem_id="find-kept", scale=0, min_width=180)
        its.kept = gr.Dropdown([], label="Kept in my account", elem_id="kept", filterable=False, visible=False, scale=3, min_width=220)
        its.bring_back = gr.Button("Bring it back", elem_id="bring-back", visible=False, min_width=90)
    with gr.Row(elem_id="name-row"):
        its.new_title = gr.Textbox(label="New name", max_length=120, scale=3, elem_id="new-title", min_width=220)
        its.rename = gr.Button("Rename", elem_id="rename-run", min_width=80)
        its.delete = gr.Button("Delete", elem_id="delete-run", min_width=80)
        its.delete_sure = gr.Button("Really delete it", variant="stop", visible=False, elem_id="delete-sure", min_width=80)
    its.doomed = gr.State("")  # the run that a second click deletes


def parts(its) -> list:
    """The components that `of` fills."""
    return [getattr(its, name) for name in PARTS]


def of(visitor: Visitor, shown: str = "") -> list:
    """The list as this visitor has it, and which of its buttons there is something for.

    Args:
        shown: the run that the tab shows, which is then the chosen one.
    """
    mine = [run.summary() for run in runs.mine(visitor.owner)[:100]]
    choices = [(drawing.run_label(its["title"], its["state"], its["created"]), its["id"]) for its in mine]
    chosen = shown if any(value == shown for _, value in choices) else (choices[0][1] if choices else None)
    can = next((its["state"] in ("done", "stopped") for its in mine if its["id"] == chosen), False)
    return [
        drawing.runs_table(mine, shown, run_view.how_to_start(visitor.owner)), gr.update(choices=choices, value=chosen),
        gr.update(interactive=can), gr.update(interactive=can), gr.update(visible=bool(visitor.token)),
    ]


def require_chosen(chosen) -> str:
    """The id of the run that is chosen in the list.

    Raises:
        Hint: none is.
    """
    if not chosen:
        raise Hint("No run is chosen. Choose one from the list.")
    return str(chosen)


def wire(its, talk, tabs) -> None:
    """Connect the list."""
    from tuner.ui.app import in_words

    page, who = its.page, [its.browser]
    quiet = dict(show_progress="hidden", api_visibility="private")
    view, lists = run_view.parts(its), parts(its)

    @in_words
    def find_kept(browser_id, token: gr.OAuthToken | None):
        found = keeping.find(page.visitor(browser_id, token).token)
        if not found:
            raise Hint("Your account keeps no runs of Tuner. Tick “Keep checkpoints in my account” before a Start.")
        choices = [(drawing.run_label(kept["title"] or kept["run"], "kept", kept["changed"]), kept["repo_id"]) for kept in found]
        return gr.update(choices=choices, value=choices[0][1], visible=True), gr.update(visible=True)

    @in_words
    def bring_back(repo_id, browser_id, token: gr.OAuthToken | None):
        visitor = page.visitor(browser_id, token)
        run = homecoming.bring_back(visitor.owner, str(repo_id or ""), visitor.token)
        return [run.id, *run_view.of(run), *of(visitor, run.id)]

    @in_words
    def open_run(chosen, browser_id, token: gr.OAuthToken | None):
        visitor = page.visitor(browser_id, token)
        run = runs.find(visitor.owner, require_chosen(chosen))
        return [run.id, *run_view.of(run), *of(visitor, run.id), gr.update(value=run.title)]

    @in_words
    def choose(chosen, browser_id, token: gr.OAuthToken | None):
        """Another run is chosen: nothing is about to be deleted, and there may be a model to talk to."""
        owner = page.visitor(browser_id, token).owner
        can = bool(chosen) and runs.is_of(owner, str(chosen)) and runs.find(owner, str(chosen)).state() in ("done", "stopped")
        return gr.update(visible=True), gr.update(visible=False), "", gr.update(interactive=can), gr.update(interactive=can)

    @in_words
    def rename(chosen, title, run_id, browser_id, token: gr.OAuthToken | None):
        visitor = page.visitor(browser_id, token)
        runs.find(visitor.owner, require_chosen(chosen)).rename(title or "")
        return of(visitor, chosen)

    @in_words
    def ask_delete(chosen, browser_id, token: gr.OAuthToken | None):
        run = runs.find(page.visitor(browser_id, token).owner, require_chosen(chosen))
        return gr.update(visible=False), gr.update(visible=True, value=f"Really delete “{drawing.short(run.title)}”"), run.id

    @in_words
    def delete(chosen, doomed, run_id, browser_id, token: gr.OAuthToken | None):
        visitor = page.visitor(browser_id, token)
        if chosen != doomed:
            raise Hint("Another run is chosen now than the one that was to be deleted. Press Delete once more.")
        runs.find(visitor.owner, require_chosen(chosen)).delete()
        kept = "" if run_id == chosen else run_id
        shown = run_view.of(runs.find(visitor.owner, kept) if kept else None, visitor.owner)
        return [kept, *shown, *of(visitor, kept), gr.update(visible=True), gr.update(visible=False)]

    @in_words
    def done_run(chosen, browser_id, token: gr.OAuthToken | None):
        run = runs.find(page.visitor(browser_id, token).owner, require_chosen(chosen))
        if run.state() not in ("done", "stopped"):
            raise Hint(f"“{drawing.short(run.title)}” is {run.state()} and has no tuned model yet.")
        return run.id, gr.Tabs(selected="chat")

    its.find_kept.click(find_kept, who, [its.kept, its.bring_back], **quiet)
    its.bring_back.click(bring_back, [its.kept, *who], [its.run_id, *view, *lists], show_progress="minimal", show_progress_on=[its.status], api_visibility="private")
    its.open_run.click(open_run, [its.chosen, *who], [its.run_id, *view, *lists, its.new_title], **quiet)
    its.chosen.change(choose, [its.chosen, *who], [its.delete, its.delete_sure, its.doomed, its.chat_run, its.publish_run], **quiet)
    renamed = its.rename.click(rename, [its.chosen, its.new_title, its.run_id, *who], lists, **quiet)
    its.delete.click(ask_delete, [its.chosen, *who], [its.delete, its.delete_sure, its.doomed], **quiet)
    deleted = its.delete_sure.click(delete, [its.chosen, its.doomed, its.run_id, *who], [its.run_id, *view, *lists, its.delete, its.delete_sure], **quiet)
    its.chat_run.click(done_run, [its.chosen, *who], [its.run_id, tabs], **quiet).success(**talk.take_run)
    its.publish_run.click(done_run, [its.chosen, *who], [its.run_id, tabs], **quiet).success(**talk.take_run).success(**talk.open_publish)
    for changed in (renamed, deleted):
        changed.then(**talk.refresh)
