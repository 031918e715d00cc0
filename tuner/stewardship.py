"""The view of whoever answers for this machine: its queue, disk, memory and failures; pausing new runs, and making room."""

import os
import shutil
import time
from pathlib import Path

from tuner import clearing, identity, lease, limits, machine, places, room
from tuner import run as runs
from tuner.errors import UserError, shorten
from tuner.home import on_a_space, tuner_home

# Further owners of a Space, separated by commas: the members of an organisation who look after it.
OWNERS = "TUNER_OWNERS"
FAILURES_SHOWN = 10
FAILURES_DAYS = 7


def is_owner(name: str) -> bool:
    """Whether this person answers for the machine: on a Space its author, elsewhere whoever sits at it.

    Args:
        name: the owner that the Hub's word for a token gives; see `hub.whoami`.
    """
    if on_a_space():
        author = os.environ.get("SPACE_AUTHOR_NAME") or os.environ.get("SPACE_ID", "").partition("/")[0]
        return bool(name) and name in {author, *(its.strip() for its in os.environ.get(OWNERS, "").split(","))} - {""}
    return not identity.is_anonymous(name)


def _require(name: str) -> None:
    if not is_owner(name):
        raise UserError("Only the owner of this Space may see or do that.")


def pause(name: str, paused: bool) -> None:
    """Take no new runs, or take them again; those that go or wait are not touched.

    Raises:
        UserError: this person is not the owner.
    """
    _require(name)
    limits.pause(paused)


# Looking ----------------------------------------------------------------------------------------------------------


def view(name: str) -> dict:
    """What there is to know of the machine, without anybody's rows, texts or names of runs.

    Returns:
        {"paused", "queue": [{"owner", "kind", "state", "left_s"}], "disk": {"free_gib", "total_gib", "floor_gib", "by"},
        "memory": {"free_gib", "total_gib", "card", "reserved_gib", "workers"}, "failures": [{"owner", "t", "why"}]}

    Raises:
        UserError: this person is not the owner.
    """
    _require(name)
    seen, disk = machine.memory(), shutil.disk_usage(tuner_home())
    return {
        "paused": limits.is_paused(),
        "queue": [
            {
                "owner": _who(its.owner), "kind": runs.kind_of(Path(its.folder)).WORD if its.folder else "run",
                "state": "waiting" if its.began is None else "going", "left_s": places.left_s(its),
            }
            for its in lease.tickets()
        ],
        "disk": {
            "free_gib": disk.free / 2**30, "total_gib": disk.total / 2**30, "floor_gib": limits.FREE_GIB.value() or 0.0,
            "by": {place: clearing.size_bytes(tuner_home() / place) / 2**30 for place in ("datasets", "models", *(kind.PLACE for kind in runs.kinds()))},
        },
        "memory": {
            "free_gib": seen.free_gib, "total_gib": seen.total_gib, "card": seen.card, "reserved_gib": room.reserved_gib(),
            "workers": [{"base": its["base"], "gib": its["gib"]} for its in room.workers()],
        },
        "failures": failures(),
    }


def failures() -> list[dict]:
    """The latest failed runs, newest first: whose, when, and the first sentence of why, which holds no visitor's data."""
    found = []
    for kind in runs.kinds():
        for path in (tuner_home() / kind.PLACE).glob("*/*/error.txt"):
            try:
                found.append((path.stat().st_mtime, path))
            except OSError:  # deleted meanwhile
                continue
    recent = sorted((its for its in found if its[0] > time.time() - FAILURES_DAYS * 86_400), reverse=True)[:FAILURES_SHOWN]
    return [{"owner": _who(path.parent.parent.name), "t": moment, "why": _why(path)} for moment, path in recent]


def _why(path: Path) -> str:
    try:
        text = path.read_text("utf-8", "replace")
    except OSError:
        return ""
    # What follows a colon or stands in quotation marks may be of the visitor's own rows, files or names.
    first = text.splitlines()[0] if text else ""
    return shorten(first.split(":")[0].split("“")[0].split("'")[0], 160)


def _who(owner: str) -> str:
    """A user's name; of an anonymous browser's id, which opens its things, only that it is one."""
    return "somebody without an account" if identity.is_anonymous(owner) else owner


def free_space(name: str) -> dict:
    """Remove now what is old or can be had again; see `clearing.sweep`.

    Raises:
        UserError: this person is not the owner.
    """
    _require(name)
    return clearing.sweep(thorough=True)
