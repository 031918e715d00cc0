"""Who may train now, who waits, and why: one training at a time on this machine, first come first served."""

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tuner.home import private_dir, read_json, tuner_home, write_json


def _queue() -> Path:
    return private_dir(tuner_home() / "queue")


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


def waiting() -> list[str]:
    """The run ids that hold or want the machine, in their order."""
    tickets = []
    for path in sorted(_queue().glob("*.json")):
        try:
            ticket = read_json(path)
        except json.JSONDecodeError:
            continue
        if not ticket or not is_alive(ticket["process"]):
            path.unlink(missing_ok=True)
            continue
        tickets.append(ticket["run"])
    return tickets


@contextmanager
def hold(run_id: str, on_wait: Callable[[int], None], gave_up: Callable[[], bool], poll_s: float = 0.5) -> Iterator[bool]:
    """Wait for the machine, then hold it; the operating system takes it back if this process dies.

    Args:
        on_wait: called with the number of runs ahead whenever that changes.
        gave_up: asked while waiting; True ends the wait.

    Yields:
        True while the machine is held; False if the wait was given up.
    """
    ticket = _queue() / f"{time.time_ns():020d}-{run_id}.json"
    write_json(ticket, {"run": run_id, "process": this_process()})
    lock = open(tuner_home() / "lease.lock", "a")
    said = None
    try:
        while True:
            ahead = waiting().index(run_id) if run_id in waiting() else 0
            if ahead == 0:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    ahead = 1
            if gave_up():
                yield False
                return
            if ahead != said:
                on_wait(ahead)
                said = ahead
            time.sleep(poll_s)
        yield True
    finally:
        ticket.unlink(missing_ok=True)
        lock.close()
