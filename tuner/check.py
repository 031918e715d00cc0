"""The check of a dataset from reading to findings: here where it is small, in a child of its own where it is not."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from tuner import child, data, encode, eyes, fixes, lease, limits, pictures, redaction, scan, tasks
from tuner.errors import Hint, UserError, shorten
from tuner.findings import Rows
from tuner.home import private_dir, read_json, write_json, write_whole
from tuner.recipe import Recipe

# Up to here a check takes about a second, less than starting a process for it.
SMALL_ROWS, SMALL_BYTES = 1_500, 3 * 2**20
# Pasted text up to here is read by this process, in some hundredths of a second: it is JSON, a table or plain text and nothing
# that unpacks. What has more rows than a small check, or more text by the names that each row repeats, is the child's again.
SMALL_PASTE_BYTES, SMALL_PASTE_TEXT = 256 * 2**10, 4 * 2**20
# What reading a stranger's file may allocate: several times what a million rows need.
MEMORY_BYTES = 3 * 2**30
# Children that read and check at once, of everybody together; of one person see `limits.CHECKS`. Whoever comes later waits so long.
MOST_CHILDREN = max(4, os.cpu_count() or 1)
WAIT_S = 30.0
_POSITION = np.uint64((1 << 40) - 1)


@dataclass(frozen=True)
class Progress:
    """How far a check in another process is.

    Args:
        phase: in words.
        share: 0 to 1 within the phase.
        left_s: seconds to the phase's end; None while nobody can tell.
    """

    phase: str
    share: float
    left_s: float | None


Report = Callable[[str, float], None]


# The work ---------------------------------------------------------------------------------------------------------


def first_part(dataset: data.Dataset) -> scan.Part:
    """The records under the dataset's mapping."""
    return scan.Part(dataset.folder / "records.arrow", dataset.mapping, dataset.task)


def _state_dir(dataset: data.Dataset, steps: int) -> Path:
    taken = [{name: value for name, value in its.items() if name not in ("t", "taken")} for its in dataset.steps[:steps]]
    return dataset.folder / "states" / scan.short_hash([scan.VERSION, first_part(dataset).folder.name, taken])


def work(dataset: data.Dataset, look: scan.Look | None, report: Report = lambda phase, share: None) -> Rows:
    """Do all that is not done yet, and give the rows as they stand after the dataset's fixes.

    Args:
        look: the eyes of a base model; None where no tokenizer can be had, or none is needed.

    Raises:
        UserError: the records cannot be read, none of them gives a row, or a fix has nothing left to do; then that fix
            is taken back first.
    """
    with _alone(dataset):
        part = first_part(dataset)
        _scan(part, look, report, "Looking at every row")
        state = _first_state(part)
        if len(state.places) == 0:
            raise data.no_rows(_first_left_out(part), len(data.Texts(part.path)))
        for number in range(len(dataset.steps)):
            its = dataset.steps[number]
            folder = _state_dir(dataset, number + 1)
            known = fixes.State.load(folder, part)
            if known is None:
                rows = _gather(dataset, number, state, _look_of(its, dataset.task), report)
                try:
                    known = fixes.apply(
                        rows, its, part.folder, lambda done, total: report("Putting right", done / max(1, total))
                    )
                except UserError:
                    del dataset.steps[number:]
                    dataset.save()
                    raise
                known.save(folder)
                its["taken"] = True
                dataset.save()
            state = known
        return _gather(dataset, len(dataset.steps), state, look, report)


@contextmanager
def _alone(dataset: data.Dataset) -> Iterator[None]:
    """One process at a time works on a dataset; the next finds the work done."""
    with open(dataset.folder / "check.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _look_of(step: dict, task: str) -> scan.Look | None:
    if not step["tokenizer_dir"]:
        return None
    its = step["settings"]
    return scan.Look(
        step["tokenizer_dir"], its["system_prompt"], its["learn"], its["keep_control_tokens"], its["template_date"], task
    )


def _scan(part: scan.Part, look: scan.Look | None, report: Report, phase: str) -> None:
    scan.part(part, look, lambda done, total: report(phase, done / max(1, total)))
    if look:
        kept = sorted(part.folder.glob("tokens-*"), key=lambda path: path.stat().st_mtime)
        for old in kept[:-4]:
            shutil.rmtree(old, ignore_errors=True)


def _no_row_bits(task: str) -> dict[str, int]:
    bits = scan.bits(task)
    return {name: bits[name] for name in ("unreadable", *(name for name, its in tasks.get(task).FAULTS.items() if its.left_out))}


def _first_state(part: scan.Part) -> fixes.State:
    seen = scan.rows_of(part)
    out = np.uint64(sum(_no_row_bits(part.task).values()))
    places = np.flatnonzero((seen["flags"] & out) == 0).astype(np.uint64)
    return fixes.State([part], places, np.array(seen["split"][places] if len(places) < len(seen) else seen["split"]), [])


def _first_left_out(part: scan.Part) -> list[dict]:
    found = []
    for place in range(min(3, len(data.Texts(part.path)))):
        try:
            part.row(place)
        except tasks.NoRow as problem:
            found.append({"n": place + 1, "why": str(problem)})
    return found


def _gather(dataset: data.Dataset, steps: int, state: fixes.State, look: scan.Look | None, report: Report) -> Rows:
    """The rows of a state with all that was seen of them; what was not seen yet is looked at now."""
    for part in state.parts:  # the first one too: a step may have been taken with other eyes than today's
        _scan(part, look, report, "Looking at the changed rows")
    folder = private_dir(_state_dir(dataset, steps))
    part_of = (state.places >> np.uint64(40)).astype(np.int64)
    within = (state.places & _POSITION).astype(np.int64)
    whole = len(state.parts) == 1 and len(within) == len(scan.rows_of(state.parts[0]))
    if whole:
        seen = scan.rows_of(state.parts[0])
    else:
        seen = np.empty(len(within), scan.ROW)
        for number, part in enumerate(state.parts):
            chosen = np.flatnonzero(part_of == number)
            seen[chosen] = scan.rows_of(part)[within[chosen]]
    tokens = None
    if look:
        tokens = scan.Tokens.joined([scan.Tokens.load(scan.tokens_dir(part, look)) for part in state.parts]) if not whole else (
            scan.Tokens.load(scan.tokens_dir(state.parts[0], look))
        )
        if not whole:
            starts = np.cumsum([0, *(len(scan.rows_of(part)) for part in state.parts)])
            tokens = tokens.of(starts[part_of] + within)
    first = scan.rows_of(state.parts[0])["flags"]
    left_out = {name: np.flatnonzero(first & np.uint64(bit)) for name, bit in _no_row_bits(dataset.task).items()}
    rows = Rows(
        dataset.task, state.parts, state.places, seen, state.own, np.zeros(0, np.int64), np.zeros(0, np.int64), tokens,
        read_json(Path(look.tokenizer_dir) / "config.json", {}) if look else {}, left_out, len(first), state.steps,
    )
    if not (folder / "near.npy").exists():
        _find_like_rows(rows, part_of, within, whole, folder, report)
    rows.same, rows.near = scan.load(folder / "same.npy"), scan.load(folder / "near.npy")
    return rows


def _find_like_rows(rows: Rows, part_of, within, whole: bool, folder: Path, report: Report) -> None:
    """Keep, for each row, the first that says the same and the first that nearly does."""
    count, module = len(rows), tasks.get(rows.task)
    alike = module.ALIKE
    report("Looking for near duplicates", 0.0)
    pairs = np.ascontiguousarray(rows.seen["same"])
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    new = np.concatenate(([True], (pairs[order][1:] != pairs[order][:-1]).any(axis=1))) if count else np.zeros(0, bool)
    same = np.empty(count, np.int64)
    starts = np.flatnonzero(new)
    # lexsort is stable, so the first of each run of equal rows is the earliest.
    same[order] = np.repeat(order[starts], np.diff(np.append(starts, count)))
    hidden = folder / f".keys.{os.getpid()}.npy"
    try:
        if whole:
            keys = scan.keys_of(rows.parts[0])
        else:
            keys = np.lib.format.open_memmap(hidden, "w+", np.uint64, (alike.BANDS, count))
            for band in range(alike.BANDS):
                for number, part in enumerate(rows.parts):
                    chosen = np.flatnonzero(part_of == number)
                    keys[band, chosen] = scan.keys_of(part)[band][within[chosen]]
        found = alike.groups(
            keys, lambda index: module.said(rows.row(index)), scan.without_of(rows.parts[0]), same,
            lambda share: report("Looking for near duplicates", share),
        )
    finally:
        hidden.unlink(missing_ok=True)
    scan.save(folder / "same.npy", same)
    scan.save(folder / "near.npy", found)  # last: its presence means that both are whole


# Whoever asks -----------------------------------------------------------------------------------------------------


def is_done(dataset: data.Dataset, look: scan.Look | None) -> bool:
    """Whether `work` would find everything done."""
    if not dataset.ready:
        return False
    part = first_part(dataset)
    folder = _state_dir(dataset, len(dataset.steps))
    state = fixes.State.load(folder, part) if dataset.steps else True
    if not state or not (folder / "near.npy").exists():
        return False
    parts = [part] if state is True else state.parts
    return all((its.folder / "rows.npy").exists() and (look is None or scan.tokens_dir(its, look).exists()) for its in parts)


@lru_cache(maxsize=4)
def _kept(folder: Path, state: str, look: scan.Look | None, dataset_key: str) -> Rows:
    known = data.find(folder.parent.name, folder.name)
    return work(known, look)


def rows_of(dataset: data.Dataset, look: scan.Look | None) -> Rows:
    """The rows of a finished check, held in memory for the next question about them; what is not done yet is done here.

    Raises:
        UserError: see `work`; the dataset's steps are then those that could be taken.
    """
    try:
        return _kept(dataset.folder, _state_dir(dataset, len(dataset.steps)).name, look, repr(dataset.mapping))
    except UserError:
        dataset.steps = data.find(dataset.owner, dataset.id).steps
        raise


def is_small(dataset: data.Dataset) -> bool:
    """Whether a check of it takes about a second."""
    return dataset.ready and dataset.count <= SMALL_ROWS and (dataset.folder / "records.arrow").stat().st_size <= SMALL_BYTES


def look_at(dataset: data.Dataset, look: scan.Look | None) -> tuple[Rows, Progress | None]:
    """The rows as far as they are known, at once: all of them, or the head while a child looks at the rest.

    Raises:
        UserError: the records cannot be read, none gives a row, or a fix had nothing to do (and was taken back).
    """
    if is_done(dataset, look) or is_small(dataset):
        return rows_of(dataset, look), None
    going = progress(dataset)
    if going is not None and dataset.ready and not _looks_so(dataset, look):
        stop(dataset)  # a setting changed; what it would find is not asked for any more
        going = None
    if going is None:
        going = Progress("Starting", 0.0, None)
        try:
            begin(dataset, look, 0.0)
        except Busy as busy:  # whoever looks next tries again
            going = Progress(busy.waiting, 0.0, None)
    return glimpse(dataset, look), going


def whole(dataset: data.Dataset, look: scan.Look | None = None) -> Rows:
    """All rows, for a run.

    Raises:
        UserError: the check of a large dataset is still going in a child.
    """
    if not child.is_child() and not is_done(dataset, look) and not is_small(dataset):
        if going := progress(dataset):
            left = f", about {going.left_s:.0f} s left" if going.left_s else ""
            raise UserError(f"The rows are still being checked ({going.phase.lower()}, {going.share:.0%}{left}). Start when that is done.")
    return rows_of(dataset, look)


def glimpse(dataset: data.Dataset, look: scan.Look | None) -> Rows:
    """The rows of the head alone, kept nowhere.

    Raises:
        UserError: none of them gives a row.
    """
    return _glimpse(dataset.folder, dataset.task, repr(dataset.mapping), look)


@lru_cache(maxsize=6)
def _glimpse(folder: Path, task: str, mapping: str, look: scan.Look | None) -> Rows:
    dataset = data.find(folder.parent.name, folder.name)
    texts = data.read_head(dataset.folder / "head.json")
    seen, _, rows = scan.describe(texts, 0, dataset.mapping, task, np.zeros(0, np.uint32))
    places = np.array([place for place, row in enumerate(rows) if row is not None], np.uint64)
    if len(places) == 0:
        data.to_rows(dataset.head(), dataset.mapping, task)  # says why none of them gives one
    kept = places.astype(np.int64)
    tokens = eyes.tokenised(rows, look).of(kept) if look else None
    left_out = {
        name: np.flatnonzero(seen["flags"] & np.uint64(bit)) for name, bit in _no_row_bits(task).items()
    }
    alone = np.arange(len(places))
    return Rows(
        task, [_Head(dataset.folder / "head.json", dataset.mapping, task)], places, seen[kept], np.array(seen["split"][kept]), alone,
        alone, tokens, read_json(Path(look.tokenizer_dir) / "config.json", {}) if look else {}, left_out, len(texts),
    )


class _Head(scan.Part):
    """The head of a dataset whose records are still being read."""

    def text(self, place: int) -> str:
        return data.read_head(self.path)[place]

    def texts(self):
        import pyarrow as pa

        return pa.array(data.read_head(self.path), pa.large_string())


# A child of its own -----------------------------------------------------------------------------------------------


class Busy(Hint):
    """As many datasets are being read and checked as may be at once.

    Args:
        waiting: the same for whoever waits instead, as the phase of a `Progress`.
    """

    def __init__(self, words: str, waiting: str):
        super().__init__(words)
        self.waiting = waiting


def begin(dataset: data.Dataset, look: scan.Look | None, wait_s: float = WAIT_S) -> None:
    """Start a child that reads and checks what is not yet; at once back, unless all places are taken.

    Args:
        wait_s: how long to wait for a place then; a person who has as many as one may does not wait.

    Raises:
        Busy: there was none.
    """
    deadline = time.monotonic() + wait_s
    while True:
        with _starting:
            try:
                _require_place(dataset.owner)
            except Busy as busy:
                if busy.waiting == _OWN_FIRST or time.monotonic() >= deadline:
                    raise
            else:
                return _spawn(dataset, look)
        time.sleep(0.1)


def _spawn(dataset: data.Dataset, look: scan.Look | None) -> None:
    for name in ("refused.json", "progress.json", "ended"):
        (dataset.folder / name).unlink(missing_ok=True)
    write_json(dataset.folder / "todo.json", {"look": look.__dict__ if look else None})
    process = child.spawn("tuner.check", str(dataset.folder), folder=dataset.folder, log=dataset.folder / "log.txt")
    _children[process.pid], _folders[process.pid] = process, dataset.folder
    _out_of_time.discard(process.pid)
    write_json(dataset.folder / "process.json", child.stamp(process.pid))


_children: dict[int, subprocess.Popen] = {}  # so that ended ones are waited for and leave no zombies
_folders: dict[int, Path] = {}  # pid -> of the dataset that it looks at
_out_of_time: set[int] = set()  # those that were ended for their time, until that is told
_starting = threading.Lock()  # so that two who come at once do not take the same place
_OWN_FIRST = "Waiting for your other datasets"


def _require_place(owner: str) -> None:
    """Refuse a child of this owner where there is no place for it.

    Raises:
        Busy: see there.
    """
    going = [_folders.get(pid) for pid, process in list(_children.items()) if process.poll() is None]
    most, mine = limits.CHECKS.value(), sum(folder is not None and folder.parent == data.datasets_dir(owner) for folder in going)
    if most is not None and mine >= most:
        raise Busy(
            f"{mine} of your datasets are being read and checked at this moment, and {most:g} at once are the most for one person here. "
            "Wait for one to end, then bring this again.", _OWN_FIRST,
        )
    if len(going) >= MOST_CHILDREN:
        raise Busy("Many datasets are being read and checked just now. Bring this again in a minute.", "Waiting for a place: many datasets are being checked")


def _forget(pid: int) -> subprocess.Popen | None:
    _folders.pop(pid, None)
    return _children.pop(pid, None)


def progress(dataset: data.Dataset) -> Progress | None:
    """How far the dataset's child is; None if there is none.

    Raises:
        UserError: the last one ended with these words, or without any.
    """
    # Whether it lives is asked first: what a dead one left, its code and its words, is whole by then. A child of ours lives
    # until it was waited for: the system calls it dead as soon as its first thread is, while its code cannot be had yet.
    process = read_json(dataset.folder / "process.json")
    for pid, its in list(_children.items()):
        if (code := its.poll()) is not None:
            if code == child.OUT_OF_TIME:  # kept until its own dataset is asked for, whoever was asked about now
                _out_of_time.add(pid)
            _forget(pid)
    is_alive = bool(process) and (_folders.get(process["pid"]) == dataset.folder or lease.is_alive(process))
    refused = read_json(dataset.folder / "refused.json")
    if refused:
        (dataset.folder / "refused.json").unlink(missing_ok=True)
        fresh = data.find(dataset.owner, dataset.id)
        dataset.steps = fresh.steps
        raise UserError(*refused["problems"])
    if not process:
        return None
    if not is_alive:
        (dataset.folder / "process.json").unlink(missing_ok=True)
        if (dataset.folder / "ended").exists():
            (dataset.folder / "ended").unlink()
            return None
        if process["pid"] in _out_of_time:
            _out_of_time.discard(process["pid"])
            raise UserError(encode.ENDLESS if dataset.ready else pictures.ENDLESS)
        raise UserError("The check ended early, perhaps for want of memory. Try again, or bring fewer rows.")
    its = read_json(dataset.folder / "progress.json")
    if not its:
        return Progress("Starting", 0.0, None)
    gone = time.time() - its["since"]
    left = gone * (1 - its["share"]) / its["share"] if its["share"] > 0.02 and gone > 2 else None
    return Progress(its["phase"], its["share"], left)


def _looks_so(dataset: data.Dataset, look: scan.Look | None) -> bool:
    """Whether the dataset's child looks through these eyes, at these steps."""
    todo = read_json(dataset.folder / "todo.json", {})
    return todo.get("look") == (look.__dict__ if look else None)


def stop(dataset: data.Dataset) -> None:
    """End the dataset's child and its helpers, if there is one."""
    import signal

    process = read_json(dataset.folder / "process.json")
    if process and lease.is_alive(process) and process["pid"] != os.getpid():  # a stream from the Hub is taken here
        with suppress(ProcessLookupError):  # it ended by itself meanwhile
            os.killpg(process["pid"], signal.SIGKILL)
        if ended := _forget(process["pid"]):
            ended.wait()
    (dataset.folder / "process.json").unlink(missing_ok=True)


def main(folder: str) -> int:
    """The child: read the records if that is still to be done, then check them."""
    os.nice(10)
    child.limit_memory(MEMORY_BYTES)
    folder = Path(folder)
    dataset = data.find(folder.parent.name, folder.name)
    todo, parent, said = read_json(folder / "todo.json"), os.getppid(), {"phase": "", "since": 0.0, "t": 0.0}

    def report(phase: str, share: float) -> None:
        now = time.time()
        if os.getppid() != parent:  # the page is gone; another one begins anew
            os._exit(1)
        if phase == said["phase"] and now - said["t"] < 0.3:
            return
        if phase != said["phase"]:
            said.update(phase=phase, since=now)
        said["t"] = now
        temporary = folder / ".progress"
        temporary.write_text(json.dumps({"phase": phase, "share": round(share, 4), "since": said["since"]}))
        os.replace(temporary, folder / "progress.json")

    try:
        if not dataset.ready:
            report("Reading the rows", 0.0)
            data.read_files(dataset, on_progress=lambda share: report("Reading the rows", share))
        else:
            work(dataset, scan.Look(**todo["look"]) if todo["look"] else None, report)
    except UserError as error:
        write_json(folder / "refused.json", {"problems": error.problems})
    except BrokenProcessPool:  # a helper was ended, as this process would have been; see `child.within`
        write_json(folder / "refused.json", {"problems": [encode.ENDLESS]})
    except MemoryError:
        write_json(folder / "refused.json", {"problems": [
            f"{shorten(dataset.name, 40)} unpacks to more memory than there is ({MEMORY_BYTES / 2**30:.0f} GiB). Bring a part of it."
        ]})
    write_whole(folder / "ended", "")
    return 0


def wait_for_head(dataset: data.Dataset, seconds: float = 60.0) -> None:
    """Start reading the dataset's files in a child, and wait until its first rows can be shown.

    Raises:
        UserError: the files cannot be read, or too many are being read (see `Busy`); the dataset is deleted.
    """
    if dataset.ready:  # the same files were read before
        return
    try:
        if _read_here(dataset):
            return
        begin(dataset, None)
        deadline = time.monotonic() + seconds
        while not (dataset.folder / "head.json").exists():
            if progress(dataset) is None and not (dataset.folder / "head.json").exists():
                raise UserError(f"{shorten(dataset.name, 40)} has no rows. Choose a file that has rows in it.")
            if time.monotonic() > deadline:
                stop(dataset)
                raise UserError(f"{shorten(dataset.name, 40)} gave no row within {seconds:.0f} seconds. Bring a part of it, or another format.")
            time.sleep(0.03)
        # A small file is read whole in the next moment; then everything can be shown at once.
        until = time.monotonic() + 0.7
        while not dataset.ready and time.monotonic() < until:
            progress(dataset)
            time.sleep(0.03)
        if dataset.ready:
            _wait_for_end(dataset)
    except UserError:
        stop(dataset)  # a child that writes its last word would bring the folder back
        shutil.rmtree(dataset.folder, ignore_errors=True)
        raise


def _read_here(dataset: data.Dataset) -> bool:
    """Read a small paste at once, instead of waiting for a process to begin; whether that was it.

    Raises:
        UserError: it cannot be read.
    """
    if dataset.source.get("kind") != "paste" or not dataset.files or (dataset.folder / dataset.files[0][0]).stat().st_size > SMALL_PASTE_BYTES:
        return False
    try:
        data.read_files(dataset, most=(SMALL_ROWS, SMALL_PASTE_TEXT))
    except UserError:
        raise
    except Exception:  # whatever it was, the child meets it again, behind its limits
        (dataset.folder / "head.json").unlink(missing_ok=True)
        data.read_head.cache_clear()
        return False
    return True


def stream(dataset: data.Dataset, records: Iterator[dict], notes: list[str], seconds: float = 60.0) -> None:
    """Take records that arrive over the network, here, since the visitor's token stays in this process; back with the head.

    Raises:
        UserError: the stream broke before the head was there; the dataset is deleted.
    """
    ready, told = threading.Event(), []
    started = time.time()

    def take() -> None:
        def counted() -> Iterator[dict]:
            for number, record in enumerate(records, 1):
                if number % 500 == 0:
                    write_json(dataset.folder / "progress.json", {"phase": f"Streaming from the Hub: {number:,} rows", "share": 0.0, "since": started})
                yield record

        try:
            data.take(dataset, counted(), notes, ready.set)
        except UserError as error:
            told.append(error)
            if dataset.folder.exists():
                write_json(dataset.folder / "refused.json", {"problems": error.problems})
        except Exception as error:  # a fault of ours must not look like a stream that goes on for ever
            told.append(UserError(f"The stream broke ({type(error).__name__}). Try again."))
            raise
        finally:
            (dataset.folder / "process.json").unlink(missing_ok=True)
            ready.set()

    write_json(dataset.folder / "process.json", lease.this_process())
    thread = threading.Thread(target=take, name=f"stream-{dataset.id}", daemon=True)
    thread.start()
    ready.wait(seconds)
    thread.join(0.5)  # a short one is whole in the next moment
    if not (dataset.folder / "head.json").exists():
        (dataset.folder / "process.json").unlink(missing_ok=True)
        shutil.rmtree(dataset.folder, ignore_errors=True)
        raise told[0] if told else UserError(f"{shorten(dataset.name, 40)} gave no row within {seconds:.0f} seconds. Try again later.")


def _wait_for_end(dataset: data.Dataset) -> None:
    while progress(dataset) is not None:
        time.sleep(0.02)


# Fixes ------------------------------------------------------------------------------------------------------------


def _still_going(dataset: data.Dataset) -> bool:
    """Whether the dataset's child goes on; one that has done all it was asked for is waited for, a moment."""
    until = time.monotonic() + 2
    while (going := progress(dataset)) is not None and going.share >= 0.99 and time.monotonic() < until:
        time.sleep(0.02)
    return going is not None


def fix(dataset: data.Dataset, finding: str, name: str, recipe: Recipe, tokenizer_dir: str) -> data.Dataset:
    """Add a fix to the dataset's steps; the next look takes it. The records stay as they are.

    Raises:
        UserError: no such finding or fix, or the check is still going.
    """
    if not dataset.ready or _still_going(dataset):
        raise UserError("The rows are still being checked. Put them right when that is done.")
    dataset.steps = [*dataset.steps, fixes.step(finding, name, recipe, tokenizer_dir)]
    dataset.save()
    return dataset


def undo(dataset: data.Dataset, number: int) -> data.Dataset:
    """Take back the fix of that number, counted from 0; later ones are taken again without it.

    Raises:
        UserError: there is none of that number.
    """
    if not 0 <= number < len(dataset.steps):
        raise UserError(f"There is no step {number + 1} to take back; there are {len(dataset.steps)}.")
    if _still_going(dataset):
        raise UserError("The rows are still being checked. Take it back when that is done.")
    dataset.steps = [its for place, its in enumerate(dataset.steps) if place != number]
    dataset.save()
    return dataset


if __name__ == "__main__":
    redaction.install()
    sys.exit(main(sys.argv[1]))
