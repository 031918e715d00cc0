"""Memory shared between training and chat: what the starter's chat keeps, and who makes room when a run needs it.

Each chat worker notes in $TUNER_HOME/workers which base it holds and what it takes, so that every process here, also one at
a terminal, counts and asks in the same way.
"""

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil

from tuner import lease, limits, machine
from tuner.errors import UserError, shorten
from tuner.home import private_dir, read_json, tuner_home, write_json
from tuner.machine import Memory
from tuner.plan import ROOM
from tuner.recipe import STARTER_MODEL

# What the starter's chat is taken to need on a shared machine before it was measured there once.
STARTER_GIB = 0.8
# The most that is remembered of it: a worker that read one enormous conversation does not shrink all later runs.
MOST_GIB = 2.0
GIVES_WAY_S = 5.0
# A worker that answers says so each second; one that begins may load its base first.
ANSWERS_S, LOADS_S = 3.0, 60.0


def _folder() -> Path:
    return tuner_home() / "workers"


def note(base_id: str, gib: float) -> None:
    """Say which base this process's chat holds and how much memory it takes; of the starter's the most is remembered."""
    folder = private_dir(_folder())
    write_json(folder / f"{os.getpid()}.json", {"process": lease.this_process(), "base": base_id, "gib": round(gib, 3)})
    if base_id == STARTER_MODEL and _starter_gib() < gib:
        write_json(folder / "starter", {"gib": round(min(gib, MOST_GIB), 3)})


def say_answering(seconds: float = ANSWERS_S) -> None:
    """Say that a chat answers, or loads its base, for at most so long from now on."""
    with suppress(OSError):  # on a full disk it answers all the same
        path = private_dir(_folder()) / "answering"
        path.touch()
        os.utime(path, (time.time() + seconds,) * 2)


def is_answering() -> bool:
    """Whether somebody waits for an answer of a chat here."""
    try:
        return time.time() < (_folder() / "answering").stat().st_mtime
    except FileNotFoundError:
        return False


def workers() -> list[dict]:
    """{"process", "base", "gib"} of each chat worker that lives; notes of others are removed."""
    found = []
    for path in _folder().glob("*.json"):
        try:
            its = read_json(path)
        except ValueError:
            its = None
        if its and lease.is_alive(its["process"]):
            found.append(its)
        elif its and its.get("gives_way"):
            continue  # read once more by whoever started it; see `gave_way`
        else:
            path.unlink(missing_ok=True)
    return found


def _starter_gib() -> float:
    try:
        return float(read_json(_folder() / "starter", {"gib": 0.0})["gib"])
    except (ValueError, KeyError, TypeError):
        return 0.0


def reserved_gib() -> float:
    """What is kept free of the memory that is free now, so that the starter can be talked to while a run trains."""
    wanted = _starter_gib() or (STARTER_GIB if limits.is_shared() else 0.0)
    return max(0.0, wanted - sum(its["gib"] for its in workers() if its["base"] == STARTER_MODEL))


def for_a_run() -> Memory:
    """Memory that a run may count on when its turn comes.

    What is free, with what the run before it will have given back and what makes room for it, less what the starter's chat needs.
    """
    now = machine.memory()
    free = now.free_gib + _training_gib(on_card=bool(now.card)) + sum(its["gib"] for its in workers() if its["base"] != STARTER_MODEL)
    return replace(now, free_gib=max(0.0, min(now.total_gib, free) - reserved_gib()))


def _training_gib(on_card: bool) -> float:
    """What another process that trains now takes."""
    holder = next((its for its in lease.tickets() if its.began is not None), None)
    if holder is None or holder.process["pid"] == os.getpid():
        return 0.0
    if on_card:
        from tuner import events

        if holder.spare:
            return read_json(Path(holder.folder) / "quoted.json", {}).get("memory_gib", 0.0)
        steps, _ = events.read(Path(holder.folder) / "events.jsonl", kind="step")
        return steps[-1]["memory_gib"] if steps else 0.0
    if _is_an_app(holder):
        return 0.0
    try:
        return psutil.Process(holder.process["pid"]).memory_info().rss / 2**30
    except psutil.Error:  # it ended just now
        return 0.0


def _is_an_app(ticket: lease.Ticket) -> bool:
    """Whether the turn has come and the child is not there yet, so that the process is the page's own."""
    return any(its.process["pid"] == ticket.process["pid"] and its.began is None for its in lease.tickets())


def is_enough(run) -> bool:
    """Whether the run finds the memory that it was said to take without anybody's making room."""
    needed = (run.read("quoted") or {}).get("memory_gib")
    return needed is not None and needed <= ROOM * (machine.memory().free_gib - reserved_gib())


def make(run) -> None:
    """Have workers on other bases than the starter end, if this run, whose turn has come, needs their memory."""
    others = [its for its in workers() if its["base"] != STARTER_MODEL]
    if not others or run.is_spare or is_enough(run):
        return
    for its in others:
        write_json(_folder() / f"{its['process']['pid']}.json", {**its, "gives_way": True})
        with suppress(ProcessLookupError):
            os.kill(its["process"]["pid"], signal.SIGTERM)
    _wait_while(lambda: any(lease.is_alive(its["process"]) for its in others))
    for its in others:
        if lease.is_alive(its["process"]):
            with suppress(ProcessLookupError):
                os.kill(its["process"]["pid"], signal.SIGKILL)
    bases = ", ".join(sorted({shorten(its["base"]) for its in others}))
    run.log("note", message=f"The chat with {bases} was closed to make room for this run.")


def _wait_while(goes_on: Callable[[], bool]) -> None:
    until = time.monotonic() + GIVES_WAY_S
    while goes_on() and time.monotonic() < until:
        time.sleep(0.02)


def gave_way(pid: int) -> str:
    """The base whose chat in this process was closed to make room; "" if that is not why it ended. The note is removed."""
    path = _folder() / f"{pid}.json"
    try:
        its = read_json(path, {})
    except ValueError:
        its = {}
    path.unlink(missing_ok=True)
    return its.get("base", "") if its.get("gives_way") else ""


def require_for_chat(base: dict, quantisation: str) -> None:
    """Refuse to load a base beside a training that it would push out of memory; the starter has its room.

    What is only done in the time to spare gives way.

    Raises:
        UserError: saying what can be done meanwhile.
    """
    if base["id"] == STARTER_MODEL or any(its["base"] == base["id"] for its in workers()):
        return
    going = next((its for its in lease.tickets() if its.began is not None), None)
    if going is None:
        return
    weights = sum(path.stat().st_size for path in Path(base["dir"]).glob("*.safetensors")) / 2**30
    needed = 0.6 + weights * (0.5 if quantisation == "nf4" else 1.1)
    free_gib = lambda: machine.memory().free_gib - reserved_gib()  # noqa: E731
    if needed > free_gib() and going.spare:
        say_answering(LOADS_S)  # it does not begin again before that
        lease.want(going.run)
        _wait_while(lambda: lease.is_alive(going.process))
    if needed > (free := free_gib()) and going.spare and lease.is_alive(going.process):
        raise UserError("The measuring of a run that has ended is giving its memory back at this moment. Send it again.")
    if needed > free:
        raise UserError(
            f"A run is training here and leaves {max(0.0, free):.1f} GiB; chatting with {shorten(base['id'])} needs about {needed:.1f} GiB. "
            "Chat with the starter meanwhile, or come back when the run has ended."
        )
