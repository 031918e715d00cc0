"""Under a report that left rows out to keep to its time: the button that measures all of them, what that takes, and how it goes."""

import gradio as gr

from tuner import identity, limits, measuring, publish
from tuner import run as runs
from tuner.ui import my_runs, run_view
from tuner.ui.drawing import about, notice, text

LABEL = "Measure all held-out rows"
REST = "To keep to the time, not every held-out row was measured and answered."


def draw(its) -> None:
    its.measured = gr.HTML("", elem_id="measured")
    with gr.Row(elem_id="measure-row"):
        its.measure_all = gr.Button(LABEL, visible=False, elem_id="measure-all", min_width=200)
        its.cancel_measuring = gr.Button("Cancel", visible=False, elem_id="cancel-measuring", min_width=90)
    its.measure_timer = gr.Timer(1.0, active=False)


def of(run: runs.Run | None) -> list:
    """What stands there for a run: where its measurement is and what it would take, the buttons, and whether to look again."""
    its = measuring.of(run) if run else None
    live = its is not None and its.state() in runs.LIVE
    soon = run is not None and not live and measuring.is_about_to_begin(run)
    # While it goes the report is not read: this is asked every second then.
    can = run is not None and not live and not soon and measuring.can_start(run) and identity.may_start(run.owner) and not limits.is_paused()
    rows, answers = measuring.left_out(run) if run and not live else (0, 0)
    return [
        "" if run is None else _going(its) if live else _quiet(f"{REST} That is done now …") if soon else _ended(run, rows, answers) + (_offer(run) if can else ""),
        gr.update(visible=can, value=LABEL if rows else "Answer all held-out rows"),
        gr.update(visible=live), gr.Timer(active=live or soon),
    ]


def _going(its: measuring.Measurement) -> str:
    if its.stop_asked():
        return _quiet("Cancelling …")
    said = [event["message"] for event in its.events(kind="status")[0]]
    left_s = its.left_s()
    if its.is_spare and its.state() == "waiting":
        return _quiet(f"{REST} That is done when nobody else needs the machine: {said[-1] if said else 'Starting'} … The report stays as it is until then.")
    why = f"{REST} That is done now, while nobody else needs the machine: " if its.is_spare else ""
    left = " It stands still while a chat answers." if its.stands_still else f" About {about(left_s)} left." if left_s else ""
    return _quiet(f"{why}{said[-1] if said else 'Starting'} …{left} The report stays as it is until then.")


def _ended(run: runs.Run, rows: int, answers: int) -> str:
    """How the last measurement ended."""
    its = measuring.of(run)
    state = its.state() if its else ""
    if state == "failed":
        return notice(its.error(), "error")
    if state == "interrupted" and not its.stop_asked():
        return _quiet("Measuring was ended from outside. The report is as it was.")
    if state != "done":
        return ""
    how_many = "as many held-out rows as there was time for" if rows or answers else "all held-out rows"
    again = " What is published has the figures of before: publish it again to bring these into its card." if _published_before(run) else ""
    return _quiet(f"Measured again: the report above is of {how_many}.{again}")


def _published_before(run: runs.Run) -> bool:
    """Whether the card that is published was made of an earlier report than that of now."""
    try:
        return publish.state(run)["state"] in ("verified", "unverified") and (run.folder / "publish.json").stat().st_mtime < (run.folder / "report.json").stat().st_mtime
    except FileNotFoundError:
        return False


def _offer(run: runs.Run) -> str:
    """What was left out, and what measuring it takes."""
    seconds, limit = measuring.seconds(run), limits.run_seconds()
    if seconds is None:
        takes = ""
    elif limit is not None and seconds > limit:
        takes = f"All of them would take about {about(seconds)}; here there is time for {about(limit)}, and for as many rows as that allows. "
    else:
        takes = f"That takes about <b class=figures>{about(seconds)}</b> on this machine, in its turn. "
    return f'<p class="quiet">To keep to the time, {measuring.left_out_words(run)}. {takes}The report stays as it is until the new one is whole.</p>'


def _quiet(words: str) -> str:
    return f'<p class="quiet" role="status">{text(words)}</p>'


def wire(its) -> None:
    """Connect the buttons; whatever is drawn of a run brings this along."""
    from tuner.ui.app import in_words

    page, who = its.page, [its.browser]
    quiet = dict(show_progress="hidden", api_visibility="private")
    fills = [its.measured, its.measure_all, its.cancel_measuring, its.measure_timer]
    drawn = [*run_view.parts(its), *my_runs.parts(its)]

    def mine(run_id, browser_id, token) -> runs.Run | None:
        owner = page.visitor(browser_id, token).owner
        return runs.find(owner, run_id) if run_id and runs.is_of(owner, run_id) else None

    @in_words
    def show_measuring(run_id, browser_id, token: gr.OAuthToken | None):
        return of(mine(run_id, browser_id, token))

    @in_words
    def measure_all(run_id, browser_id, token: gr.OAuthToken | None):
        visitor = page.visitor(browser_id, token)
        run = runs.find(visitor.owner, run_id)
        if not measuring.is_going(run):  # begun in another tab
            measuring.start(run, visitor.token)
        return of(run)

    @in_words
    def cancel_measuring(run_id, browser_id, token: gr.OAuthToken | None):
        run = runs.find(page.visitor(browser_id, token).owner, run_id)
        if its_own := measuring.of(run):
            measuring.cancel(its_own)
        return of(run)

    @in_words
    def poll_measuring(run_id, browser_id, token: gr.OAuthToken | None):
        run = mine(run_id, browser_id, token)
        ended = run is not None and (its_own := measuring.of(run)) is not None and its_own.state() == "done"
        shown = [*run_view.of(run), *my_runs.of(page.visitor(browser_id, token), run.id)] if ended else [gr.skip()] * len(drawn)
        return [*of(run), *shown]

    its.report.change(show_measuring, [its.run_id, *who], fills, concurrency_limit=None, trigger_mode="always_last", **quiet)
    its.measure_all.click(measure_all, [its.run_id, *who], fills, concurrency_limit=4, **quiet)
    its.cancel_measuring.click(cancel_measuring, [its.run_id, *who], fills, **quiet)
    its.measure_timer.tick(poll_measuring, [its.run_id, *who], [*fills, *drawn], concurrency_limit=None, trigger_mode="once", **quiet)
