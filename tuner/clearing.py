"""What is removed from this machine, and when: old runs, datasets, trials, models and left-overs; never what is in use."""

import logging
import math
import os
import shutil
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from tuner import lease, limits, room
from tuner import run as runs
from tuner.home import on_a_space, read_json, tuner_home, write_json
from tuner.measuring import Measurement
from tuner.recipe import STARTER_MODEL

log = logging.getLogger(__name__)

DAY_S = 86_400.0
EVERY_S = 1800.0
# The owner of a run is told so long before it is removed.
NOTICE_DAYS = 2.0
# What was touched within this time may be in somebody's hands, whatever else is said.
IN_HAND_S = 3600.0
# Unfinished files of processes that were killed, and what visitors sent that nobody has in hand any more.
_LEFTOVERS = ("uploads/*/*", "*/*/*/.*.tmp", "*/*/*/.tmp-*", "*/*/*/checkpoints/.tmp-*", "models/packed/.packed-*", "*/*/*/.published-*", "*/*/*/.kept-*")


def size_bytes(folder: Path) -> int:
    """Of all files below; a file with two names counts once."""
    seen, total = set(), 0
    for path in folder.rglob("*"):
        try:
            its = path.lstat()
        except OSError:  # removed meanwhile
            continue
        if not path.is_dir() and (its.st_dev, its.st_ino) not in seen:
            seen.add((its.st_dev, its.st_ino))
            total += its.st_size
    return total


# What is in use ---------------------------------------------------------------------------------------------------


def _in_queue() -> set[str]:
    """Folders of runs that go or wait, of those that a restart will go on with, and of those that are being measured."""
    found = {its.folder for its in (*lease.tickets(), *lease.left_behind())}
    measured = [Path(its) for its in found if its and runs.kind_of(Path(its)) is Measurement]
    return found | {str(Measurement(path.parent.name, path.name).run.folder) for path in measured}


def _models_in_use() -> set[str]:
    """Folders of base models that a run in the queue or a chat worker has, and what belongs to them."""
    bases = [read_json(Path(folder) / "base.json", {}) for folder in _in_queue() if folder]
    wanted = {its["dir"] for its in bases if its.get("dir")}
    ids = {its["base"] for its in room.workers()}
    fetched = _read(tuner_home() / "models" / "fetched.json")
    wanted |= {its["base"]["dir"] for its in fetched.values() if its.get("base", {}).get("id") in ids}
    return {str(Path(its).resolve()) for its in wanted}


def _read(path: Path) -> dict:
    try:
        found = read_json(path, {})
    except ValueError:
        found = {}
    return found if isinstance(found, dict) else {}


# Runs -------------------------------------------------------------------------------------------------------------


def ended_at(run: runs.Run) -> float:
    """When something last happened in the run, or its owner last did something with it."""
    moments = [0.0]
    for name in ("recipe.toml", "events.jsonl", "report.json", "publish.json", "votes.jsonl", "title.txt"):
        try:
            moments.append((run.folder / name).stat().st_mtime)
        except FileNotFoundError:
            continue
    return max(moments)


def is_published(run: runs.Run) -> bool:
    """Whether its adapter is on the Hub, so that nothing would be lost."""
    its = _read(run.folder / "publish.json")
    return its.get("state") in ("verified", "unverified") or bool(its.get("before"))


def removed_at(run: runs.Run) -> float | None:
    """When an ended run will be removed, in seconds since 1970; None where it will not be."""
    if run.state() in runs.LIVE or is_published(run):
        return None
    due, told = _due(run), _told(run)
    return told["at"] if told and (due is None or told["at"] >= due) else due


def _due(run: runs.Run) -> float | None:
    days = limits.RUN_DAYS.value()
    return None if days is None else ended_at(run) + days * DAY_S


def _told(run: runs.Run) -> dict:
    """{"at", "told"} if its owner was told since something last happened in it, else {}."""
    its = _read(run.folder / "removal.json")
    return its if its.get("told", 0.0) >= ended_at(run) - 1 else {}


def day(moment: float) -> str:
    return f"{datetime.fromtimestamp(moment, UTC):%-d %B}"


def words(run: runs.Run, at: float) -> str:
    """When it will be removed, and what keeps it."""
    return f"This run will be removed on {day(at)} unless you {'publish it' if run.read('done') else 'go on with it'}."


def _tell(run: runs.Run, at: float, now: float) -> None:
    """Tell the owner that the run will be removed unless they publish it; that is nothing that happened in the run."""
    before = ended_at(run)
    run.log("note", message=words(run, at))
    write_json(run.folder / "removal.json", {"at": at, "told": max(now, before)})
    os.utime(run.folder / "events.jsonl", (before, before))


def _all_runs() -> Iterator[runs.Run]:
    for path in sorted((tuner_home() / "runs").glob("*/*/recipe.toml")):
        try:
            yield runs.Run(path.parent.parent.name, path.parent.name)
        except OSError:
            continue


def _clear_runs(now: float, short: bool) -> int:
    """Remove runs whose time has come and whose owners were told; tell those of whom it comes soon, or at once where it is short."""
    gone, queue = 0, _in_queue()
    idle = [run for run in _all_runs() if str(run.folder) not in queue and run.state() not in runs.LIVE and now - ended_at(run) > IN_HAND_S]
    for run in sorted(idle, key=ended_at):
        due = _due(run)
        if is_published(run):  # the adapter is small, and on the Hub
            gone += _remove(run.folder / "checkpoints") if short or (due is not None and now >= due) else 0
            continue
        told = _told(run)
        if short:
            due = min(due or math.inf, told["at"] if told else now + DAY_S)
        if due is None or now < due - NOTICE_DAYS * DAY_S:
            continue
        if not told or told["at"] < due:
            _tell(run, max(due, now + DAY_S), now)
        elif now >= told["at"]:
            gone += _remove(run.folder)
    return gone


def _remove(folder: Path) -> int:
    """Out of sight in one step, so that nobody meets half of it; gives the bytes that came free."""
    if not folder.is_dir():
        return 0
    size, aside = size_bytes(folder), folder.with_name(f".gone-{folder.name}")
    try:
        folder.rename(aside)
    except OSError as error:
        log.warning("%s was not removed: %s", folder.name, error)
        return 0
    shutil.rmtree(aside, ignore_errors=True)
    return size


# Datasets, trials, models -----------------------------------------------------------------------------------------


def _clear_datasets(now: float, short: bool) -> int:
    """Uploads and streams that nobody has used for long, and those of formats that are not read any more; a run has its own rows."""
    days, gone = limits.DATA_DAYS.value(), 0
    for source in (tuner_home() / "datasets").glob("*/*/source.json"):
        folder, known = source.parent, _read(source)
        used = max(path.stat().st_mtime for path in (folder, *folder.glob("*.json")))
        if now - used < IN_HAND_S or lease.is_alive(_read(folder / "process.json") or None):
            continue
        if "steps" not in known or short or (days is not None and now - used > days * DAY_S):
            gone += _remove(folder)
    return gone


def _clear_trials(now: float, short: bool) -> int:
    """Trials, and what is known of measurements that have ended."""
    days, gone, queue = limits.RUN_DAYS.value(), 0, _in_queue()
    for mark in (path for kind in runs.kinds() if kind is not runs.Run for path in (tuner_home() / kind.PLACE).glob(f"*/*/{kind.MARK}")):
        used = max(mark.stat().st_mtime, mark.parent.stat().st_mtime)
        if str(mark.parent) in queue or now - used < IN_HAND_S or lease.is_alive(_read(mark.parent / "process.json") or None):
            continue
        if short or (days is not None and now - used > days * DAY_S):
            gone += _remove(mark.parent)
    return gone


def _clear_models(now: float, short: bool) -> int:
    """4-bit copies, and on a Space downloaded repositories too, that nothing has used for long; the starter stays."""
    days, gone, in_use = limits.MODEL_DAYS.value(), 0, _models_in_use()
    packed_is_in_use = bool(_in_queue() or room.workers())  # which copy belongs to which base is known to torch's side only
    for folder in (tuner_home() / "models" / "packed").glob("[!.]*"):
        used = _last_read(folder)
        old = days is not None and now - used > days * DAY_S
        if not packed_is_in_use and now - used > IN_HAND_S and (short or old):
            gone += _remove(folder)
    for snapshots in _downloaded():
        used = _last_read(snapshots)
        mine = any(its.startswith(str(snapshots.resolve()) + "/") for its in in_use)
        old = days is not None and now - used > days * DAY_S
        if not mine and now - used > IN_HAND_S and (short or old):
            gone += _remove(snapshots)
    return gone


def _downloaded() -> Iterator[Path]:
    """Repositories in the Hub's cache, but the starters; on one's own machine that cache is other programs' too."""
    if not on_a_space():
        return
    from huggingface_hub import constants

    kept = {f"models--{STARTER_MODEL.replace('/', '--')}", "models--sentence-transformers--all-MiniLM-L6-v2"}
    for folder in Path(constants.HF_HUB_CACHE).glob("*--*"):
        if folder.is_dir() and not folder.is_symlink() and folder.name not in kept:
            yield folder


def _last_read(folder: Path) -> float:
    """When a file below was last read or written."""
    moments = [folder.stat().st_mtime]
    for path in folder.rglob("*"):
        try:
            its = path.stat()
        except OSError:
            continue
        moments.append(max(its.st_atime, its.st_mtime) if path.is_file() else its.st_mtime)
    return max(moments)


def _clear_leftovers(now: float) -> int:
    gone = 0
    for pattern in (*_LEFTOVERS, "*/*/.gone-*", "models/packed/.gone-*", "models/.gone-*"):
        for path in tuner_home().glob(pattern):
            try:
                if now - path.stat().st_mtime < IN_HAND_S:
                    continue
                gone += size_bytes(path) if path.is_dir() else path.stat().st_size
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            except OSError:
                continue
    return gone


# All of it --------------------------------------------------------------------------------------------------------


def is_short() -> bool:
    """Whether less of the disk is free than is to be kept free."""
    floor = limits.FREE_GIB.value()
    return floor is not None and shutil.disk_usage(tuner_home()).free < floor * 2**30


def sweep(thorough: bool = False, now: float | None = None) -> dict:
    """Remove what is old; where the disk is short, first what can be had again at once, then what its owner was told of.

    Args:
        thorough: as if the disk were short: its owner asked for room.

    Returns:
        {"freed_gib", "free_gib"}
    """
    now = time.time() if now is None else now
    home = tuner_home()
    home.mkdir(parents=True, exist_ok=True)
    gone = _clear_leftovers(now)
    # What can be had again goes first; nobody's work is touched while there is anything of the kind.
    in_order = (_clear_models, _clear_trials, _clear_datasets, _clear_runs)
    gone += sum(clear(now, False) for clear in in_order)
    for clear in in_order:
        if thorough or is_short():
            gone += clear(now, True)
    return {"freed_gib": gone / 2**30, "free_gib": shutil.disk_usage(home).free / 2**30}


def keep_sweeping() -> threading.Thread:
    """Sweep now and then for as long as this process lives."""

    def go() -> None:
        while True:
            try:
                sweep()
            except Exception as error:  # the next time may go well, and nobody waits for this one
                log.warning("Clearing failed: %s: %s", type(error).__name__, error)
            time.sleep(EVERY_S)

    thread = threading.Thread(target=go, name="clearing", daemon=True)
    thread.start()
    return thread
