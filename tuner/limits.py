"""What one person may take of a machine that others share: each limit once, with its variable, default, unit and words."""

import fcntl
import os
import time
from dataclasses import dataclass
from pathlib import Path

from tuner.errors import Hint, UserError, shorten
from tuner.home import on_a_space, private_dir, read_json, safe_name, tuner_home, write_json

HOUR_S = 3600.0
PAUSED = "New runs are paused by the owner of this machine."


@dataclass(frozen=True)
class Limit:
    """One limit.

    Args:
        name: the environment variable that changes it; 0 there turns it off.
        default: where strangers share the machine. On one's own machine there is no limit but what is set.
        words: what it does, for the page and the README.
        everywhere: it has its default on one's own machine too.
    """

    name: str
    default: float
    unit: str
    words: str
    everywhere: bool = False

    def value(self) -> float | None:
        """What holds here now; None where there is no limit.

        Raises:
            UserError: the variable holds what is no number.
        """
        said = os.environ.get(self.name, "").strip()
        if not said:
            return self.default if self.everywhere or is_shared() else None
        try:
            number = float(said)
        except ValueError:
            number = -1.0
        if not 0 <= number < 1e15:
            raise UserError(f"{self.name} is {shorten(said, 30)!r}; it must be a number of {self.unit}, or 0 for no limit. Correct the variable.")
        return number or None


WAITING = Limit("TUNER_WAITING_RUNS", 2, "runs", "Runs of one person that may wait, beside one that is going.")
RUN_MINUTES = Limit("TUNER_RUN_MINUTES", 60, "minutes", "Longest training; at its end the run keeps the best version so far and is done.")
MODEL = Limit("TUNER_MODEL_BILLIONS", 4, "billion parameters", "Largest base model.")
ANONYMOUS_CHAT = Limit(
    "TUNER_ANONYMOUS_CHAT_BILLIONS", 2, "billion parameters", "Largest base model that somebody without an account may chat with; the starter always.",
)
ROWS = Limit("TUNER_ROWS_PER_HOUR", 200_000, "rows", "Rows that one person's new runs may bring in an hour.")
UPLOAD = Limit("TUNER_UPLOAD_MIB_PER_HOUR", 2048, "MiB", "What one person may upload in an hour.")
CHECKS = Limit("TUNER_CHECKS", 2, "datasets", "Datasets of one person that may be read and checked at once.")
RUN_DAYS = Limit("TUNER_RUN_DAYS", 14, "days", "Ended runs are removed so long after their last step; of published ones only the checkpoints.")
DATA_DAYS = Limit("TUNER_DATASET_DAYS", 3, "days", "Uploaded and streamed datasets are removed so long after their last use.")
MODEL_DAYS = Limit("TUNER_MODEL_DAYS", 7, "days", "Downloaded and packed base models are removed so long after their last use.")
FREE_GIB = Limit("TUNER_FREE_GIB", 5, "GiB", "Where less of the disk is free, what can be had again is removed before its time.")

ALL = (WAITING, RUN_MINUTES, MODEL, ANONYMOUS_CHAT, ROWS, UPLOAD, CHECKS, RUN_DAYS, DATA_DAYS, MODEL_DAYS, FREE_GIB)


def require_numbers() -> None:
    """Look at every limit once.

    Raises:
        UserError: naming each variable that holds what is no number.
    """
    problems = []
    for its in ALL:
        try:
            its.value()
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(*problems)


def is_shared() -> bool:
    """Whether strangers use this machine: a Space, or a page with a public link."""
    return on_a_space() or os.environ.get("TUNER_SHARED") == "1"


def table() -> str:
    """The limits as the README shows them."""
    lines = ["| variable | on a shared machine | what it does |", "|---|---:|---|"]
    lines += [f"| `{its.name}` | {its.default:,g} {its.unit} | {its.words} |" for its in ALL]
    return "\n".join(lines)


def said() -> list[str]:
    """What holds for a run here, in sentences for the page; nothing where nothing is limited."""
    told = [PAUSED] if is_paused() else []
    if (minutes := RUN_MINUTES.value()) is not None:
        told.append(f"A run trains for at most {minutes:g} minutes, then keeps its best version and is done.")
    if (waiting := WAITING.value()) is not None:
        told.append(f"One run of yours may go and {waiting:g} may wait.")
    if (billions := MODEL.value()) is not None:
        told.append(f"Base models have at most {billions:g} billion parameters.")
    hourly = []
    if (rows := ROWS.value()) is not None:
        hourly.append(f"runs on {rows:,.0f} rows")
    if (mib := UPLOAD.value()) is not None:
        hourly.append(f"{mib:,.0f} MiB of uploads")
    if hourly:
        told.append(f"In an hour you have {' and '.join(hourly)}.")
    if (days := RUN_DAYS.value()) is not None:
        told.append(f"Ended runs are kept for {days:g} days.")
    return told


def require_model(billions: float, base_id: str) -> None:
    """Refuse a base model above the limit.

    Raises:
        UserError: saying both numbers.
    """
    most = MODEL.value()
    if most is not None and billions > most:
        raise UserError(
            f"{shorten(base_id)} has {billions:.1f} billion parameters, and {most:g} is the most here. Choose a smaller base model, "
            "or duplicate this Space and set your own limit."
        )


def run_seconds() -> float | None:
    """How long a training may take here."""
    minutes = RUN_MINUTES.value()
    return None if minutes is None else minutes * 60


# Pausing ----------------------------------------------------------------------------------------------------------


def _pause_path() -> Path:
    return tuner_home() / "paused.json"


def is_paused() -> bool:
    """Whether the machine's owner takes no new runs at the moment."""
    return _pause_path().exists()


def pause(paused: bool) -> None:
    """See `stewardship.pause`, which asks who may."""
    if paused:
        private_dir(tuner_home())
        write_json(_pause_path(), {"since": round(time.time())})
    else:
        _pause_path().unlink(missing_ok=True)


def require_open() -> None:
    """Refuse a new run while they are paused.

    Raises:
        Hint: saying that what goes and waits is not touched.
    """
    if is_paused():
        raise Hint(
            "The owner of this machine takes no new runs at the moment. Runs that go or wait are not touched. Come back later."
        )


# What a person has had in the last hour ---------------------------------------------------------------------------


def spend(owner: str, limit: Limit, amount: float) -> None:
    """Count what this person takes against an hourly limit, once it is theirs to take.

    Raises:
        Hint: it is more than is left of this hour; then nothing is counted.
    """
    most = limit.value()
    if most is None:
        return
    folder = private_dir(tuner_home() / "spent")
    path, now = folder / f"{safe_name(owner, 'The owner')}.json", time.time()
    with open(folder / ".lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            had = [entry for entry in read_json(path, []) if now - HOUR_S < entry[0] <= now]
        except (ValueError, TypeError, IndexError):  # damaged: an hour's count is no reason to refuse anybody
            had = []
        mine = [entry for entry in had if entry[1] == limit.name]
        spent = sum(entry[2] for entry in mine)
        if spent + amount > most:
            free_at = min((entry[0] for entry in mine), default=now) + HOUR_S
            wait = f"In {max(1, round((free_at - now) / 60))} minutes there is more" if mine else "Take fewer at a time"
            raise Hint(
                f"This takes {amount:,.0f} {limit.unit}; {max(0, most - spent):,.0f} of {most:,.0f} are left of this hour. {wait}."
            )
        write_json(path, [*had, [now, limit.name, amount]])
