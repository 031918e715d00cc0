"""A finished run measured on all its held-out rows, where its report had time for some: in a child of its own.

It begins by itself in the time to spare once the run is over (see `lease`), or by a click in its turn.
"""

import logging
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psutil

from tuner import child, cost, figures, identity, lease, limits, machine, quote, room
from tuner import plan as plans
from tuner import run as runs
from tuner.errors import UserError
from tuner.home import disk_error, private_dir, write_json, write_whole
from tuner.sizes import Sizes

log = logging.getLogger(__name__)

# How often one that goes by itself looks whether the machine is wanted, and how long it has to end when its run goes on.
LOOK_S, ENDS_S = 1.0, 10.0
# So long after a run's end it may be about to begin.
SOON_S = 10.0


@dataclass(frozen=True)
class Measurement(runs.Run):
    """The latest measurement of a run, in its folder: what a run has there but rows, checkpoints and an adapter."""

    WORD, PLACE, VERB = "measurement", "measurements", "report"
    DOES = "measuring"
    # Of its id; the rest is the run's, which it has no second one of.
    END = "-all"

    @property
    def run(self) -> runs.Run:
        """The run that is measured."""
        return runs.Run(self.owner, self.id.removesuffix(self.END))

    @property
    def is_spare(self) -> bool:
        """Whether it began by itself: it gives way to whoever needs the machine."""
        return (self.folder / "by-itself").exists()

    @property
    def stands_still(self) -> bool:
        """Whether it has the machine and leaves it to a chat for a moment."""
        return self.is_spare and room.is_answering()

    def out_of_memory(self, why: str) -> str:
        return f"{why} The report is as it was. Try again when less is going on here."

    def left_s(self) -> float | None:
        """About how long it will still take; None where nobody knows, or it waits."""
        began = next((its.began for its in lease.tickets() if its.run == self.id), None)
        quoted = (self.read("quoted") or {}).get("seconds")
        return None if began is None or quoted is None else max(0.0, quoted - (time.time() - began))


def of(run: runs.Run) -> Measurement | None:
    """The run's latest measurement; None where there is none."""
    its = Measurement(run.owner, run.id + Measurement.END)
    return its if (its.folder / its.MARK).is_file() else None


def is_going(run: runs.Run) -> bool:
    return (its := of(run)) is not None and its.state() in runs.LIVE


def left_out(run: runs.Run) -> tuple[int, int]:
    """How many held-out rows the run's report did not measure, and not answer, for want of time; none where there is no report yet."""
    made = figures.of(run) if run.state() in ("done", "stopped") else None
    if not made:
        return 0, 0
    count = made.get("held_out_of", made["held_out_rows"])
    return count - made["held_out_rows"], count - made.get("answers", {}).get("asked", count)


def left_out_words(run: runs.Run) -> str:
    """The same in words; "" where nothing was left out."""
    rows, answers = left_out(run)
    if not rows and not answers:
        return ""
    made = figures.of(run)
    whole = f"{made.get('held_out_of', made['held_out_rows']):,} held-out rows were"
    return " and ".join(filter(None, (
        f"{rows:,} of {whole} not measured" if rows else "", f"{answers:,}{'' if rows else f' of {whole}'} not answered in full" if answers else "",
    )))


def can_start(run: runs.Run) -> bool:
    """Whether there are rows left out, and it is not being measured, nor was in all the time that it may have."""
    its, now = of(run), limits.run_seconds()
    state, limit = (its.state(), (its.read("limit") or {}).get("seconds", math.inf)) if its else ("", 0.0)
    had_all = state in ("done", "failed") and now is not None and limit >= now and not its.is_spare  # which may have stood still
    return any(left_out(run)) and state not in runs.LIVE and not had_all


def is_about_to_begin(run: runs.Run) -> bool:
    """Whether the run has only just ended, and its app is about to measure what was left out."""
    try:
        ago = time.time() - (run.folder / "done").stat().st_mtime
    except FileNotFoundError:
        return False
    its = of(run)
    begun = its is not None and (its.state() != "new" or its.stop_asked())  # new and not stopped: its folder is being made
    return ago < SOON_S and not begun and not limits.is_paused() and any(left_out(run)) and _quoted(run) is not None


def seconds(run: runs.Run) -> float | None:
    """About how long it takes on this machine; None where the run noted too little to tell."""
    noted, plan = run.read("quote"), run.read("plan")
    if not noted or not plan or not noted.get("rows"):
        return None
    its = Sizes(**noted["sizes"])
    return quote.whole_report_s(run.recipe, its, quote.Rows(**noted["rows"]), plans.Plan.of_run(plan), machine.reach(cost.kind(run.recipe, its)))


def go_on(run: runs.Run) -> None:
    """Measure a run that has just ended on the held-out rows that its report had no time for, if there are any."""
    if not any(left_out(run)) or _quoted(run) is None:  # where nobody knows what it takes, somebody is to ask for it
        return
    try:
        start(run, is_spare=True)
    except (UserError, OSError) as error:  # new runs are paused, it was deleted meanwhile, the disk is full: the button stays
        log.warning("%s was not measured on all its rows: %s", run.id, error)


def start(run: runs.Run, token: str | None = None, is_spare: bool = False) -> Measurement:
    """Measure the run when its turn comes; returns at once, the measurement's folder tells the rest.

    Args:
        token: the visitor's own, for a gated base that is not here any more.
        is_spare: only in the time to spare.

    Raises:
        UserError: the run is not finished, nothing was left out, it is being measured, or what `run.start` raises.
    """
    identity.require_start(run.owner)
    limits.require_open()
    with _prepared(run, is_spare) as its:
        runs.start(its, token, _quoted(run))
    return its


def here(run: runs.Run) -> int:
    """Measure the run in this process, in its turn; gives what `main` gives.

    Raises:
        UserError: see `start`.
    """
    with _prepared(run, False) as its:
        runs.claim(its, seconds(run))
    try:
        return main(its)
    finally:
        lease.leave(its.id)  # whoever interrupts it goes on here


@contextmanager
def _prepared(run: runs.Run, is_spare: bool) -> Iterator[Measurement]:
    """The folder of a new measurement, which goes again if it does not begin."""
    its = Measurement(run.owner, run.id + Measurement.END)
    with run.held_still():
        if run.state() not in ("done", "stopped"):
            raise UserError(f"This run is {run.state()} and has no tuned model to measure. Let it end first.")
        if is_going(run):
            raise UserError("This run is being measured already. Let that end, or cancel it first.")
        if not can_start(run):
            raise UserError("No held-out row was left out that there would be time for, so measuring again would give the same numbers.")
        try:
            shutil.rmtree(its.folder, ignore_errors=True)
            private_dir(its.folder.parent)
            its.folder.mkdir(mode=0o700)
            for name in ("recipe.toml", "base.json"):
                shutil.copyfile(run.folder / name, its.folder / name)
            if is_spare:
                (its.folder / "by-itself").touch()
            yield its
        except BaseException as error:
            shutil.rmtree(its.folder, ignore_errors=True)
            if isinstance(error, OSError):
                raise disk_error(error, its.folder) from error
            raise


def _quoted(run: runs.Run) -> dict | None:
    """What it is said to take, as a run's start wants it; no more memory than its training took."""
    noted, taken = run.read("quote"), seconds(run)
    if taken is None:
        return None
    limit = limits.run_seconds()
    memory = noted["memory_gib"] - noted["memory"].get("files being read", 0.0)
    return {"seconds": taken if limit is None else min(taken, limit), "memory_gib": memory}


def cancel(its: Measurement) -> None:
    """End it; the run's report stays as it is.

    Raises:
        UserError: it is not going.
    """
    its.ask_stop()
    process = its.read("process")
    with suppress(KeyError, TypeError, psutil.Error):  # where it only waits, or is another app's, what was asked is seen soon enough
        if lease.is_alive(process) and (going := psutil.Process(process["pid"])).ppid() == os.getpid():
            going.terminate()


def make_way(run: runs.Run, ask_only: bool = False) -> None:
    """Remove what is known of a run's last measurement, before the run goes on or is deleted; one that began by itself is ended.

    Args:
        ask_only: only see whether it may.

    Raises:
        UserError: it is being measured now, because somebody asked for it.
    """
    its = Measurement(run.owner, run.id + Measurement.END)
    if its.state() in runs.LIVE and not its.is_spare:
        raise UserError("This run is being measured. Cancel that first, or let it end.")
    if ask_only:
        return
    with suppress(UserError):  # it does not go
        cancel(its)
    until = time.monotonic() + ENDS_S
    while its.state() in runs.LIVE:
        if time.monotonic() > until:
            raise UserError("This run is still being measured, and that is ending now. Try again in a moment.")
        time.sleep(0.05)
    shutil.rmtree(its.folder, ignore_errors=True)


def main(its: Measurement) -> int:
    """Measure, and put every ending into its folder; the exit code is 0 only when it is done or cancelled."""
    from tuner import rehearsal, report

    def on_term(*_):
        raise SystemExit(128 + signal.SIGTERM)

    def on_status(said: str) -> None:
        if its.stop_asked():
            on_term()
        its.log("status", state="checking", message=said)

    signal.signal(signal.SIGTERM, on_term)
    run, limit, made, gave_way = its.run, its.read("limit") or {}, None, threading.Event()
    try:
        on_status("Loading the tuned model")
        if not (run.read("base") or {}).get("dir") or not os.path.isdir(run.read("base")["dir"]):  # it was cleared away since, and is here again
            write_json(run.folder / "base.json", its.read("base"))
        hold = lease.hold(its.id, lambda ahead: runs.log_wait(its, ahead), its.stop_asked, owner=its.owner, folder=str(its.folder), spare=its.is_spare)
        with hold as held:
            if held and not its.stop_asked():
                with _giving_way(its, gave_way):
                    made = report.remake(run, on_status, seconds=limit.get("seconds", math.inf))
        return _end(its, "done" if made else "stopped")
    except SystemExit:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends, and what is left to be written is not to be cut in two
        if not made and gave_way.is_set():
            return _wait_again(its)  # where it is asked to stop by now, the app sees that
        if not its.stop_asked() and not made:
            raise
        return _end(its, "done" if made else "stopped")
    except KeyboardInterrupt:
        _end(its, "stopped")
        raise
    except UserError as error:
        write_whole(its.folder / "error.txt", str(error))
        return 1
    except Exception as error:
        if not rehearsal.is_out_of_memory(error):
            raise
        write_whole(its.folder / "error.txt", its.out_of_memory("Measuring ran out of memory."))
        return 1


@contextmanager
def _giving_way(its: Measurement, gave_way: threading.Event) -> Iterator[None]:
    """Stand still while a chat answers; end this process as at a SIGTERM, and say why, once somebody waits for the machine.

    By signals, since a batch of rows may take a minute; and standing still, since on a machine that gives each session
    its share (Linux's autogroup) a lower priority leaves the chat no more than half (tests/bench/DIARY.md).
    """
    if not its.is_spare:
        yield
        return
    # What a signal's handler reads takes no lock: the thread that it interrupts may have that.
    is_over, stands, lock = False, False, threading.Lock()

    def stand_still(*_) -> None:
        while stands and not is_over:
            time.sleep(0.05)

    def signal_unless_over(number: int) -> None:
        with lock:
            if not is_over:
                os.kill(os.getpid(), number)

    def look() -> None:
        nonlocal stands
        try:
            while not is_over:
                if lease.is_wanted(its.id):
                    gave_way.set()
                    signal_unless_over(signal.SIGTERM)  # again if it is lost, in what Python calls by itself
                elif not room.is_answering():
                    stands = False
                elif not stands:
                    stands = True
                    signal_unless_over(signal.SIGUSR1)
                time.sleep(LOOK_S)
        finally:
            stands = False

    signal.signal(signal.SIGUSR1, stand_still)
    threading.Thread(target=look, name="giving-way", daemon=True).start()
    try:
        yield
    finally:
        is_over = True
        with lock:  # who was about to signal has done so
            pass


def _wait_again(its: Measurement) -> int:
    """Leave the machine to whoever needs it, and the waiting to the app."""
    its.log("status", state="waiting", message="Waits until nobody else needs the machine")
    app = child.stamp(os.getppid())
    write_json(its.folder / "process.json", app)
    lease.give_back(its.id, app)
    return child.GAVE_WAY


def _end(its: Measurement, state: str) -> int:
    its.log("status", state=state, message="Cancelled" if state == "stopped" else "Done")
    write_json(its.folder / "done", {"state": state})
    return 0
