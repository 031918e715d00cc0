"""What a visitor reads of turns, limits, keeping and removal; and the panel of whoever answers for the machine."""

from types import SimpleNamespace

import gradio as gr

from tuner import clearing, keeping, limits, places, stewardship
from tuner import run as runs
from tuner.home import survives_restart
from tuner.ui import drawing
from tuner.ui.drawing import about, duration, text, when


def said_before() -> str:
    """What holds for a run here, to be read before Start; "" on one's own machine."""
    told = [its for its in limits.said() if its != limits.PAUSED]
    paused = drawing.notice(limits.PAUSED, "warning") if limits.is_paused() else ""
    return paused + (f'<p class="quiet small">{text(" ".join(told))}</p>' if told else "")


def too_long(seconds: float) -> str:
    """A warning where a run is said to take longer than runs may here."""
    most = limits.run_seconds()
    if most is None or seconds <= most:
        return ""
    return drawing.notice(
        f"This is said to train for about {about(seconds)}, and {duration(most)} is the most here. It then ends with the best version "
        "so far; fewer epochs or rows fit the learning rate to the time there is.", "warning",
    )


def waiting(run: runs.Run) -> str:
    """The place of a run that waits, in a sentence; "" for one that has none."""
    place = places.of(run.id)
    return place.words if place else ""


def around(run: runs.Run) -> str:
    """What else its owner should know of a run: where it is kept, and when it will be removed."""
    told = [keeping.words(run)]
    if survives_restart() and (at := clearing.removed_at(run)) is not None:
        told.append(clearing.words(run, at))
    return "".join(f'<p class="quiet small">{text(its)}</p>' for its in told if its)


def moment(run: runs.Run) -> str:
    """What changes in all this without an event in the run, so that a page knows when to draw again."""
    its = places.of(run.id) if run.state() == "waiting" else None
    kept = keeping.state(run)
    return f"{its.ahead}-{round(its.at_least_s / 30)}" if its else f"{kept['state']}-{kept.get('step')}"


# The owner's panel ------------------------------------------------------------------------------------------------


def draw_panel(page, browser) -> SimpleNamespace:
    """A fold at the bottom that only the machine's owner is shown; each call is checked by the engine."""
    its = SimpleNamespace(page=page, browser=browser)
    with gr.Accordion("This machine (its owner only)", open=False, visible=False, elem_id="steward") as its.fold:
        its.seen = gr.HTML("", elem_id="steward-view")
        with gr.Row():
            its.look = gr.Button("Look again", elem_id="steward-look", min_width=90)
            its.pause = gr.Button("Pause new runs", elem_id="steward-pause", min_width=90)
            its.free = gr.Button("Free space", elem_id="steward-free", min_width=90)
    return its


def wire_panel(its, starts: list) -> dict:
    """Connect it; gives what is to happen when a page opens.

    Args:
        starts: the buttons that cannot be pressed while new runs are paused.
    """
    from tuner.ui import run_view
    from tuner.ui.app import in_words

    page, quiet = its.page, dict(show_progress="hidden", api_visibility="private")

    def shown(owner: str, said: str = "") -> list:
        view = stewardship.view(owner)
        return [panel(view) + (drawing.notice(said) if said else ""), gr.update(value="Take new runs again" if view["paused"] else "Pause new runs")]

    @in_words
    def open_panel(browser_id, token: gr.OAuthToken | None):
        owner = page.visitor(browser_id, token).owner
        return gr.update(visible=stewardship.is_owner(owner))  # what is in it is looked up once it is unfolded: that walks the disk

    @in_words
    def look(browser_id, token: gr.OAuthToken | None):
        return shown(page.visitor(browser_id, token).owner)

    @in_words
    def pause(browser_id, token: gr.OAuthToken | None):
        owner = page.visitor(browser_id, token).owner
        stewardship.pause(owner, not limits.is_paused())
        return [*shown(owner), *(run_view.start_button(owner) for _ in starts)]

    @in_words
    def free(browser_id, token: gr.OAuthToken | None):
        owner = page.visitor(browser_id, token).owner
        done = stewardship.free_space(owner)
        return shown(owner, f"{done['freed_gib']:.2f} GiB came free; {done['free_gib']:.1f} GiB are free now. Owners of old runs were told first.")

    for happens, fn in ((its.fold.expand, look), (its.look.click, look), (its.free.click, free)):
        happens(fn, [its.browser], [its.seen, its.pause], **quiet)
    its.pause.click(pause, [its.browser], [its.seen, its.pause, *starts], **quiet)
    return dict(fn=open_panel, inputs=[its.browser], outputs=[its.fold], **quiet)


def panel(view: dict) -> str:
    """The owner's view in a few lines."""
    queue = "".join(
        f"<li>{text(its['kind'])} of {drawing.long_name(its['owner'])}: {its['state']}{_how_long(its)}</li>" for its in view["queue"]
    ) or "<li>nobody trains or waits</li>"
    disk, memory = view["disk"], view["memory"]
    by = ", ".join(f"{name} {size:.1f}" for name, size in disk["by"].items())
    chats = ", ".join(f"{text(its['base'])} {its['gib']:.1f}" for its in memory["workers"]) or "none"
    failed = "".join(f"<li>{when(its['t'])}, {drawing.long_name(its['owner'])}: {text(its['why'])}</li>" for its in view["failures"]) or "<li>none in a week</li>"
    return (
        f"<div class=steward>{drawing.notice('New runs are paused.', 'warning') if view['paused'] else ''}"
        f"<h4>Queue</h4><ol>{queue}</ol>"
        f"<h4>Disk</h4><p class=figures>{disk['free_gib']:.1f} of {disk['total_gib']:.1f} GiB free, {disk['floor_gib']:g} GiB to be kept free; in GiB: {by}</p>"
        f"<h4>Memory</h4><p class=figures>{memory['free_gib']:.1f} of {memory['total_gib']:.1f} GiB free{' on ' + text(memory['card']) if memory['card'] else ''}; "
        f"{memory['reserved_gib']:.1f} GiB reserved for the starter's chat; chats, in GiB: {chats}</p>"
        f"<h4>Failures</h4><ul>{failed}</ul></div>"
    )


def _how_long(its: dict) -> str:
    if its["left_s"] is None:
        return ""
    return f", about {about(its['left_s'])} left" if its["state"] == "going" else f", needs about {about(its['left_s'])}"
