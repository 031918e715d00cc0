"""The log of a run: one JSON object a line, appended whole, and read without parsing a line twice."""

import json
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

# Logs that stay parsed; a page shows one run a visitor, and a log of 10,000 steps takes about 10 MiB.
_KEPT = 8
_known: OrderedDict[Path, "_Log"] = OrderedDict()
_lock = threading.Lock()


@dataclass
class _Log:
    """A log as far as it has been read."""

    inode: int
    place: int = 0
    events: list[dict] = field(default_factory=list)


def append(path: Path, event: dict) -> None:
    """Add one event in one write call, so that the lines of two processes never interleave."""
    with open(path, "ab") as file:
        file.write((json.dumps(event, ensure_ascii=False) + "\n").encode())


def read(path: Path, start: int = 0, kind: str = "") -> tuple[list[dict], int]:
    """Events from a byte offset on, and the offset to go on from. A half-written last line waits for its end.

    Args:
        kind: only these, found before anything is parsed: a log of thousands of steps has few lines of another kind.
    """
    try:
        with open(path, "rb") as file:
            file.seek(start)
            block = file.read()
    except FileNotFoundError:
        return [], start
    whole = block.rfind(b"\n") + 1
    # Inside a JSON string the quotes would be escaped, so a text that says the same is no match.
    mark = f'"kind": "{kind}"'.encode()
    found = []
    for line in block[:whole].splitlines():
        if kind and mark not in line:
            continue
        try:
            found.append(json.loads(line))
        except ValueError:  # a line that a crash cut, perhaps inside a letter
            continue
    return found, start + whole


def latest(events: list[dict], kind: str) -> list[dict]:
    """The events of one kind in the order of steps; a step done again after a resume counts once, as it went last.

    Of samples each fixed prompt's, by its number.
    """
    by_step = {(event["step"], event.get("number", 0)): event for event in events if event["kind"] == kind}
    return [by_step[place] for place in sorted(by_step)]


def read_all(path: Path) -> tuple[list[dict], int]:
    """All events and the offset to go on from; of a log that was read before only what came since is parsed."""
    try:
        now = path.stat()
    except FileNotFoundError:
        return [], 0
    with _lock:
        log = _known.get(path)
        if log is None or log.inode != now.st_ino or log.place > now.st_size:  # another file by now
            log = _known[path] = _Log(now.st_ino)
        _known.move_to_end(path)
        more, log.place = read(path, log.place)
        log.events += more
        while len(_known) > _KEPT:
            _known.popitem(last=False)
        return list(log.events), log.place
