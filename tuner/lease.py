"""Who may train now, who waits, and why: one training at a time on this machine, in turns that go round between people.

The order, in one sentence: a new run joins the round that is being served, or the round after its owner's latest one;
rounds are served one after the other, and within a round who asked first goes first. So nobody passes a person's first
run, and however many runs another starts, one of them at most passes a second run, and two a third.
What nobody asked for is done in the time to spare: behind all others, and giving way to who comes while it goes.
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil

from tuner.home import private_dir, read_json, tuner_home, write_json

POLL_S = 0.5


@dataclass(frozen=True)
class Ticket:
    """One run's place in the queue.

    Args:
        folder: the run's; "" where there is none.
        round: see the order above.
        asked: when, in seconds since 1970.
        seconds: how long it is said to take; None where nobody knows.
        process: who waits or trains for it; see `this_process`.
        began: when its turn came; None while it waits.
        spare: done in the time to spare.
        wanted: somebody needs what it has now, though nobody waits for a turn.
    """

    run: str
    owner: str
    folder: str
    round: int
    asked: float
    seconds: float | None
    process: dict
    began: float | None = None
    spare: bool = False
    wanted: bool = False

    @property
    def is_live(self) -> bool:
        return is_alive(self.process)

    @property
    def is_over(self) -> bool:
        """Whether it came to an end that nobody noted here: what was only interrupted keeps its place."""
        if self.is_live:
            return False
        folder = Path(self.folder)
        return not self.folder or not folder.is_dir() or any((folder / name).exists() for name in ("done", "error.txt", "stop"))


def is_alive(process: dict | None) -> bool:
    """Whether the process {"pid", "started"} still runs; a pid that was given to another process does not count."""
    if not process:
        return False
    try:
        its = psutil.Process(process["pid"])
        return its.status() != psutil.STATUS_ZOMBIE and abs(its.create_time() - process["started"]) < 2
    except (psutil.NoSuchProcess, psutil.AccessDenied, KeyError):
        return False


def this_process() -> dict:
    """{"pid", "started"} of this process, for `is_alive`."""
    return {"pid": os.getpid(), "started": psutil.Process().create_time()}


# The queue on disk ------------------------------------------------------------------------------------------------


def _path() -> Path:
    return tuner_home() / "queue.json"


def _read() -> tuple[list[Ticket], dict[str, int], int]:
    """The tickets in their order, the round of each person's latest turn, and the round being served."""
    try:
        kept = read_json(_path(), {})
        tickets = [Ticket(**its) for its in kept.get("tickets", [])]
        turns, served = dict(kept.get("turns", {})), int(kept.get("round", 0))
    except (ValueError, TypeError, AttributeError):  # damaged from outside: every waiting process puts itself in again
        return [], {}, 0
    return sorted(tickets, key=lambda its: (its.began is None, its.spare, its.round, its.asked)), turns, served


class _Queue:
    """The queue while nobody else may change it."""

    def __init__(self):
        tickets, self.turns, self.served = _read()
        self.tickets = [its for its in tickets if not its.is_over]

    def of(self, run_id: str) -> Ticket | None:
        return next((its for its in self.tickets if its.run == run_id), None)

    def put(self, ticket: Ticket) -> None:
        self.tickets = [its for its in self.tickets if its.run != ticket.run] + [ticket]

    def drop(self, run_id: str) -> None:
        self.tickets = [its for its in self.tickets if its.run != run_id]

    def next_round(self, owner: str) -> int:
        latest = max([self.turns.get(owner, -1), *(its.round for its in self.tickets if its.owner == owner and not its.spare)])
        return max(self.served, latest + 1)

    def save(self) -> None:
        if all(its.spare for its in self.tickets):  # nobody is passed by anybody any more
            self.turns, self.served = {}, 0
        # A turn in a round before the one that is served gives nobody a later place.
        self.turns = {owner: number for owner, number in self.turns.items() if number >= self.served}
        write_json(_path(), {"tickets": [asdict(its) for its in self.tickets], "turns": self.turns, "round": self.served})


@contextmanager
def _changing() -> Iterator[_Queue]:
    private_dir(tuner_home())
    with open(tuner_home() / "queue.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        queue = _Queue()
        yield queue
        queue.save()


def tickets() -> list[Ticket]:
    """Who holds the machine, then who waits, in their order; those whose process went away are left out."""
    return _live(_read()[0])


def _live(of: list[Ticket]) -> list[Ticket]:
    """Those whose process lives; each process is looked at once, since an app waits for many."""
    alive = {process: is_alive(dict(process)) for process in {tuple(its.process.items()) for its in of}}
    return [its for its in of if alive[tuple(its.process.items())]]


def left_behind() -> list[Ticket]:
    """Those whose process went away in the middle, in their order: what a restart goes on with."""
    return [its for its in _read()[0] if not its.is_live and not its.is_over]


def waiting() -> list[str]:
    """The run ids that hold or want the machine, in their order."""
    return [its.run for its in tickets()]


def is_busy() -> bool:
    """Whether something goes, or is about to."""
    return any(its.began is not None or not its.spare for its in tickets())


def line_up(
    run_id: str, owner: str = "", folder: str = "", seconds: float | None = None, process: dict | None = None,
    check: Callable[[list[Ticket]], None] = lambda others: None, spare: bool = False,
) -> Ticket:
    """Take a place in the queue; one that was kept, by a run that was interrupted, is taken again.

    Args:
        seconds: how long the run is said to take.
        process: who waits for it; this one.
        check: called with the live tickets of others, but those in the time to spare, before anything is changed; it may raise.
        spare: only in the time to spare; it has to look at `is_wanted` while it goes.
    """
    process = process or this_process()
    with _changing() as queue:
        check([its for its in queue.tickets if its.is_live and its.run != run_id and not its.spare])
        if kept := queue.of(run_id):
            began = kept.began if kept.is_live else None  # another may have the machine by now
            ticket = replace(kept, process=process, began=began, seconds=seconds if seconds is not None else kept.seconds)
        else:
            ticket = Ticket(run_id, owner, folder, queue.next_round(owner), time.time(), seconds, process, spare=spare)
        queue.put(ticket)
    return ticket


def leave(run_id: str) -> None:
    """Give the place up."""
    with _changing() as queue:
        queue.drop(run_id)


def hand_over(run_id: str, process: dict) -> None:
    """Let another process have this run's place: the child that trains, from the app that waited for it."""
    with _changing() as queue:
        if its := queue.of(run_id):
            queue.put(replace(its, process=process))


def give_back(run_id: str, process: dict) -> None:
    """Wait again, in the same place but after whoever waits: what is done in the time to spare, when it is wanted.

    Args:
        process: who waits for it; its app.
    """
    with _changing() as queue:
        if its := queue.of(run_id):
            queue.put(replace(its, process=process, began=None, wanted=False))


def is_wanted(run_id: str) -> bool:
    """Whether what is done in the time to spare is to give the machine back: somebody waits, or needs what it has."""
    order = tickets()
    its = next((its for its in order if its.run == run_id), None)
    return its is not None and its.spare and (its.wanted or any(other.began is None and not other.spare for other in order))


def want(run_id: str) -> None:
    """Have what is done in the time to spare give the machine back."""
    with _changing() as queue:
        if (its := queue.of(run_id)) and its.spare and its.began is not None:
            queue.put(replace(its, wanted=True))


def has_begun(run_id: str) -> bool:
    """Whether this run's turn has come."""
    return any(its.run == run_id and its.began is not None for its in tickets())


def before(run_id: str) -> list[Ticket] | None:
    """Who comes before this run, in their order, without what gives way to it; None where it has no place."""
    order = tickets()
    place = next((number for number, its in enumerate(order) if its.run == run_id), None)
    return None if place is None else [its for its in order[:place] if order[place].spare or not its.spare]


def _ahead(run_id: str) -> int:
    """How many runs are before this one; 0 when its turn has come, or comes once what goes in the time to spare has given way."""
    its = before(run_id)
    return len(tickets()) if its is None else len(its)


def wait(
    run_id: str, on_wait: Callable[[int], None], gave_up: Callable[[], bool], poll_s: float = POLL_S, owner: str = "", folder: str = "",
    spare: bool = False, may_begin: Callable[[], bool] = lambda: True,
) -> bool:
    """Wait for this run's turn, which then stays its own; False if the wait was given up. Without `may_begin` no more than a file is read meanwhile.

    Args:
        on_wait: called with the number of runs ahead whenever that changes.
        gave_up: asked while waiting; True ends the wait, and the place is lost.
        owner, folder, spare: the run's, for a new place where the queue was damaged.
        may_begin: asked when nobody is before it; False lets it wait on.
    """
    said = None
    while True:
        ahead = _ahead(run_id)
        if not ahead and has_begun(run_id):  # whoever started this process waited for it
            return True
        if gave_up():
            leave(run_id)
            return False
        if not ahead and may_begin() and _begin(run_id, owner, folder, spare):
            return True
        if ahead and ahead != said:
            on_wait(ahead)
            said = ahead
        time.sleep(poll_s * min(4, max(1, ahead)))  # of many who wait, those far behind look less often


def _begin(run_id: str, owner: str = "", folder: str = "", spare: bool = False) -> bool:
    """Note that this run's turn has come, unless another was faster."""
    with _changing() as queue:
        live = _live(queue.tickets)
        its = queue.of(run_id)
        if its is None:  # the file was damaged, or its process was taken for dead: at the end again
            queue.put(Ticket(run_id, owner, folder, queue.served, time.time(), None, this_process(), spare=spare))
            return False
        if any(other.began is not None and other.run != run_id for other in live):
            return False
        if its.began is None:
            queue.put(replace(its, began=time.time()))
            if not its.spare:
                queue.served = max(queue.served, its.round)
                queue.turns[its.owner] = its.round
        return True


@contextmanager
def hold(
    run_id: str, on_wait: Callable[[int], None], gave_up: Callable[[], bool], poll_s: float = POLL_S, owner: str = "", folder: str = "",
    spare: bool = False,
) -> Iterator[bool]:
    """Wait for the machine, then hold it; the operating system takes it back if this process dies.

    A run that ends, well or not, gives its place up; one whose process is ended from outside keeps it for a restart.

    Args:
        on_wait, gave_up: see `wait`; spare: see `line_up`.

    Yields:
        True while the machine is held; False if the wait was given up.
    """
    line_up(run_id, owner, folder, spare=spare)
    if not wait(run_id, on_wait, gave_up, poll_s, owner, folder, spare):
        yield False
        return
    with open(tuner_home() / "lease.lock", "a") as lock:
        # Held already only by one that ends right now, or whose ticket somebody removed by hand.
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(min(poll_s, 0.05))
        try:
            yield True
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException:
            leave(run_id)
            raise
        leave(run_id)
