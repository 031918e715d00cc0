"""Which is better? Two answers without names, one from the base and one from the tuned model; the votes stay with the run."""

import fcntl
import hashlib
import secrets
import time
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from tuner import events, figures
from tuner import run as runs
from tuner.errors import UserError, shorten

SIDES, SAME = ("left", "right"), "same"
_FILE = "votes.jsonl"


def begin(owner: str, run_id: str) -> str:
    """A new comparison's id. Which side is the tuned model's is drawn here, before there is an answer, and told to nobody.

    Raises:
        UserError: no such run of this owner, or it has no tuned model.
    """
    run = _done(owner, run_id)
    test_id = secrets.token_hex(8)
    _append(run, {"kind": "test", "id": test_id, "tuned": secrets.choice(SIDES), "adapter": _adapter(run)})
    return test_id


def answers(owner: str, run_id: str, test_id: str, worker, prompt: str, system: str = "", **sampling) -> Iterator[tuple[str, str]]:
    """Both answers while they come, as ("left" or "right", piece); kept with the comparison once they are whole.

    Args:
        worker: a `chat.Worker`.
        system: a system prompt; "" takes the run's own.
        sampling: see `chat.check_sampling`; the same for both.
    """
    from tuner import chat  # it imports the card, which imports this for the tally

    run = _done(owner, run_id)
    test = _test(run, test_id)
    subject = chat.of_run(run)
    messages = [*([{"role": "system", "content": system}] if system.strip() else []), {"role": "user", "content": prompt}]
    said = dict.fromkeys(SIDES, "")
    told = False
    # Left first, whoever it is, and nothing before both have begun: a model that has to load its adapter begins later, and
    # when which piece comes must not give anything away.
    for side, piece in worker.answers({side: (subject, messages, side == test["tuned"]) for side in SIDES}, **sampling):
        said[side] += piece
        if told:
            yield side, piece
        elif all(said.values()):
            told = True
            yield from said.items()
    if not told:
        yield from said.items()
    _append(run, {"kind": "answers", "id": test_id, "prompt": prompt, **{side: text.strip() for side, text in said.items()}})


def vote(owner: str, run_id: str, test_id: str, better: str) -> dict[str, str]:
    """Take a vote, once, and only then say who was who: {"left": "base" or "tuned", "right": the other}.

    Args:
        better: "left", "right" or "same".

    Raises:
        UserError: no such comparison, answers that are not whole, or a second vote.
    """
    run = _done(owner, run_id)
    if better not in (*SIDES, SAME):
        raise UserError(f"{shorten(better, 20)!r} is no vote. Choose the left one, the right one, or that they are the same.")
    with open(run.folder / _FILE, "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        test = _test(run, test_id)
        if not _of(run, "answers", test_id):
            raise UserError("The two answers are not whole yet. Wait for their ends, then vote.")
        if _of(run, "vote", test_id):
            raise UserError("You have voted on these two answers already. Ask something else for another vote.")
        names = {side: "tuned" if side == test["tuned"] else "base" for side in SIDES}
        _append(run, {"kind": "vote", "id": test_id, "side": better, "better": names.get(better, SAME)})
    return names


def tally(run: runs.Run) -> dict:
    """The votes on the run's adapter as it is now; those on what it was before it was trained further do not count.

    Returns:
        {"tuned", "base", "same": counts, "share": of the decided votes that went to the tuned model (None without any),
        "low", "high": its 95 % Wilson interval}.
    """
    found, _ = events.read(run.folder / _FILE)
    now = _adapter(run)
    counted = {event["id"] for event in found if event.get("kind") == "test" and event["adapter"] == now}
    votes = Counter(event["better"] for event in found if event.get("kind") == "vote" and event["id"] in counted)
    decided = votes["tuned"] + votes["base"]
    low, high = figures.wilson(votes["tuned"], decided)
    share = votes["tuned"] / decided if decided else None
    return {"tuned": votes["tuned"], "base": votes["base"], "same": votes[SAME], "share": share, "low": low, "high": high}


def words(counted: dict) -> str:
    """The tally in a sentence; "" without votes."""
    total = counted["tuned"] + counted["base"] + counted["same"]
    if not total:
        return ""
    said = (
        f"In {total:,} blind comparison{'' if total == 1 else 's'} the tuned model was better {_times(counted['tuned'])}, the base model "
        f"{_times(counted['base'])}, and they were the same {_times(counted['same'])}."
    )
    if counted["share"] is None:
        return said
    verdict = " The tuned model is preferred." if counted["low"] > 0.5 else " The base model is preferred." if counted["high"] < 0.5 else " That is too few votes, or too even, to tell."
    return f"{said} Of those decided, {100 * counted['share']:.0f} % went to the tuned model (95 % interval {100 * counted['low']:.0f} to {100 * counted['high']:.0f} %).{verdict}"


def show_in_card(owner: str, run_id: str, shown: bool) -> None:
    """Whether the card of this run tells the tally; kept with the votes."""
    _append(_done(owner, run_id), {"kind": "card", "shown": bool(shown)})


def is_in_card(run: runs.Run) -> bool:
    """What was last chosen in `show_in_card`; not before."""
    chosen, _ = events.read(run.folder / _FILE, kind="card")
    return bool(chosen) and chosen[-1]["shown"]


def _times(count: int) -> str:
    return {0: "never", 1: "once", 2: "twice"}.get(count, f"{count:,} times")


def _done(owner: str, run_id: str) -> runs.Run:
    run = runs.find(owner, run_id)
    if not run.read("done"):
        raise UserError(f"“{shorten(run.title)}” is {run.state()} and has no tuned model yet. Wait for its end, then compare.")
    return run


def _append(run: runs.Run, event: dict) -> None:
    events.append(run.folder / _FILE, {"t": round(time.time(), 3), **event})


def _of(run: runs.Run, kind: str, test_id: str) -> list[dict]:
    return [event for event in events.read(run.folder / _FILE, kind=kind)[0] if event["id"] == test_id]


def _test(run: runs.Run, test_id: str) -> dict:
    if found := _of(run, "test", str(test_id)):
        return found[0]
    raise UserError("There is no such comparison in this run. Ask something first, then vote.")


def _adapter(run: runs.Run) -> str:
    path = run.adapter_dir / "adapter_model.safetensors"
    return _hash(path, path.stat().st_mtime_ns) if path.is_file() else ""


@lru_cache(maxsize=64)
def _hash(path: Path, _changed: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
