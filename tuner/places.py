"""A waiting run's place in the queue, told to its owner: how many are ahead, and about when its turn comes."""

import time
from dataclasses import dataclass
from pathlib import Path

from tuner import events, lease
from tuner.home import read_json


@dataclass(frozen=True)
class Place:
    """Where a run stands.

    Args:
        ahead: runs before it, the one that is going among them.
        going: whether one is.
        wait_s: about how long until its turn; None where nobody can know.
        at_least_s: what is known of it.
    """

    ahead: int
    going: bool
    wait_s: float | None
    at_least_s: float

    @property
    def words(self) -> str:
        """For the page; nobody is named."""
        if not self.ahead:
            return "It is your turn; the run begins now."
        count = "1 run is" if self.ahead == 1 else f"{self.ahead} runs are"
        who = "training now" if self.going else "about to begin"
        why = f"{count} ahead: it is {who}" if self.ahead == 1 else f"{count} ahead: one is {who}, {self.ahead - 1} wait{'s' if self.ahead == 2 else ''}"
        if self.wait_s is not None:
            when = f"Your turn comes {about(self.wait_s)}"
        else:
            when = f"Your turn comes in {minutes(self.at_least_s)} at the earliest" if self.at_least_s > 90 else "How long that takes is not known yet"
        return f"{why}. {when}. Leaving the queue costs nothing."


def minutes(seconds: float) -> str:
    whole = max(1, round(seconds / 60))
    return f"{whole} minute{'s' if whole > 1 else ''}" if whole < 120 else f"{seconds / 3600:.1f} hours"


def about(seconds: float) -> str:
    return "within a minute" if seconds < 60 else f"in about {minutes(seconds)}"


def of(run_id: str) -> Place | None:
    """The run's place; None when it is not in the queue."""
    order = lease.before(run_id)
    if order is None:
        return None
    known = [left_s(its) for its in order]
    at_least = sum(seconds for seconds in known if seconds is not None)
    going = bool(order) and order[0].began is not None
    return Place(len(order), going, at_least if None not in known else None, at_least)


def left_s(ticket: lease.Ticket) -> float | None:
    """About how long a run will still have the machine; None where nobody has said."""
    folder = Path(ticket.folder) if ticket.folder else None
    limit = _read(folder, "limit.json").get("seconds")
    quoted = _read(folder, "quote.json")
    noted = {**quoted, **quoted.get("rehearsed", {})}
    total = noted.get("seconds", ticket.seconds)
    report = noted.get("time", {}).get("before and after", 0.0)
    if total is not None and limit is not None:
        total = min(total, limit + report)
    if ticket.began is None:
        steps = _steps(folder) if total is not None else []
        return total * (1 - 0.9 * steps[-1]["step"] / max(1, steps[-1]["steps"])) if steps else total  # it goes on from there
    gone = time.time() - ticket.began
    now = [its for its in _steps(folder) if its["t"] >= ticket.began]
    if now:  # what it measures of itself is nearer than what was said beforehand
        last = now[-1]
        training = max(0.0, last["eta_s"] - (time.time() - last["t"]))
        if limit is not None:
            training = min(training, max(0.0, limit - last["elapsed_s"]))
        behind = max(0.0, time.time() - last["t"] - last["eta_s"])  # of the report, which comes after the last step
        return training + max(0.0, report - behind)
    return None if total is None else max(0.0, total - gone)


def _steps(folder: Path | None) -> list[dict]:
    """Its steps so far; what was read before is not parsed again, since each page of somebody who waits asks this every second."""
    return [its for its in events.read_all(folder / "events.jsonl")[0] if its["kind"] == "step"] if folder else []


def _read(folder: Path | None, name: str) -> dict:
    try:
        return (read_json(folder / name, {}) if folder else {}) or {}
    except ValueError:
        return {}
