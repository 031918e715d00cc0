"""A run is a folder: create it, read it, log to it, start, stop, resume and list it by its owner."""

import fcntl
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from tuner import check, child, data, encode, events, identity, lease, limits, machine, proposals, receipt, redaction, room, starter, tasks
from tuner import recipe as recipes
from tuner.errors import Hint, UserError, shorten
from tuner.home import disk_error, private_dir, read_json, require_free, safe_name, tuner_home, write_json, write_whole
from tuner.recipe import STARTER_MODEL, Recipe

log = logging.getLogger(__name__)

LIVE = ("waiting", "rehearsing", "training", "checking")
ENDED = ("done", "stopped", "failed", "interrupted")


@dataclass(frozen=True)
class Run:
    """One run, owned by one person. All of it is in its folder; state is derived from there, never kept twice."""

    owner: str
    id: str

    # What it is called, where its folder is, which file is there once it is whole, and what the child is asked to do with it;
    # see `tuner.trials` for another.
    WORD, PLACE, MARK, VERB = "run", "runs", "recipe.toml", "train"
    # What its child does, in a word.
    DOES = "training"
    # Whether it is only done in the time to spare; see `lease`.
    is_spare = False

    @property
    def folder(self) -> Path:
        return self.place_of(self.owner) / self.id

    @classmethod
    def place_of(cls, owner: str) -> Path:
        return tuner_home() / cls.PLACE / safe_name(owner, "The owner")

    @property
    def adapter_dir(self) -> Path:
        return self.folder / "adapter"

    @cached_property
    def recipe(self) -> Recipe:
        return recipes.load(self.folder / "recipe.toml")

    @property
    def title(self) -> str:
        try:
            return (self.folder / "title.txt").read_text("utf-8").strip() or self.id
        except FileNotFoundError:
            return self.recipe.title or self.id

    def read(self, name: str, default=None):
        """A JSON file of the run: "plan", "base", "report", "done", "process", or "data/receipt"."""
        return read_json(self.folder / f"{name}.json" if name != "done" else self.folder / "done", default)

    def rows(self, part: str) -> list[dict]:
        """The run's own rows: "train" or "held_out"."""
        with open(self.folder / "data" / f"{part}.jsonl", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        task = tasks.get(self.recipe.task)
        return [task.placed(row, self.folder / "data") for row in rows]

    def count_rows(self) -> int:
        """How many rows the run has, held out ones among them."""
        return count_lines(self.folder / "data" / "train.jsonl") + count_lines(self.folder / "data" / "held_out.jsonl")

    # Events ---------------------------------------------------------------------------------------------------

    def log(self, kind: str, **fields) -> None:
        """Append one event. `t` is in seconds since 1970."""
        events.append(self.folder / "events.jsonl", {"t": round(time.time(), 3), "kind": kind, **fields})

    def events(self, start: int = 0, kind: str = "") -> tuple[list[dict], int]:
        """Events from a byte offset on, perhaps of one kind only, and the offset to go on from; see `events.read`."""
        path = self.folder / "events.jsonl"
        return events.read(path, start, kind) if start or kind else events.read_all(path)

    # State ----------------------------------------------------------------------------------------------------

    def state(self) -> str:
        """One of waiting, rehearsing, training, checking, done, stopped, failed, interrupted; "new" before its start."""
        if done := self.read("done"):
            return done["state"]
        if (self.folder / "error.txt").exists():
            return "failed"
        process = self.read("process")
        if process is None:  # with checkpoints: it left the queue, or was brought here from elsewhere
            return "interrupted" if list((self.folder / "checkpoints").glob("checkpoint-*")) else "new"
        if not lease.is_alive(process):
            return "interrupted"
        status, _ = self.events(kind="status")
        return status[-1]["state"] if status else "waiting"

    def error(self) -> str:
        try:
            return (self.folder / "error.txt").read_text("utf-8")
        except FileNotFoundError:
            return ""

    def stop_asked(self) -> bool:
        return (self.folder / "stop").exists()

    def ask_stop(self) -> None:
        """Ask the run to end at its next step and keep what was learned so far; while it waits, to leave the queue."""
        if self.state() not in LIVE:
            raise UserError(f"This run is {self.state()}, so there is nothing to stop.")
        write_whole(self.folder / "stop", "asked\n")

    def out_of_memory(self, why: str) -> str:
        """What to say where memory did not suffice; of a run also what would fit, noted for its page."""
        return str(proposals.refuse(self, why))

    def cannot_write(self) -> str:
        """Why nothing can be written into its folder, in words; "" where it can be. A full disk has room for the words themselves."""
        return "" if os.access(self.folder, os.W_OK) else "Its folder is read-only, so it could not say why."

    def kept_step(self) -> int | None:
        """The step of the best version so far, if it is better than the base and its checkpoint is there."""
        best = next((event["step"] for event in reversed(self.events(kind="eval")[0]) if event["best"]), None)
        return best if best and (self.folder / "checkpoints" / f"checkpoint-{best}").is_dir() else None

    @contextmanager
    def held_still(self) -> Iterator[None]:
        """Nobody else starts it, nor what is done with it, meanwhile."""
        with open(self.folder / "start.lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def rename(self, title: str) -> None:
        title = " ".join(str(title).split())
        if not 1 <= len(title) <= 120:
            raise UserError(f"A name has 1 to 120 characters; this one has {len(title)}.")
        write_whole(self.folder / "title.txt", title)

    def delete(self) -> None:
        """Remove the folder and all in it.

        Raises:
            UserError: it is still going.
        """
        if self.state() in LIVE:
            raise UserError("This run is still going. Stop it first, then delete it.")
        with self.held_still():
            _make_way(self)
            shutil.rmtree(self.folder)

    def summary(self) -> dict:
        """What a list shows: title, state, when, dataset, steps, losses and how many held-out rows they are of.

        While a run goes its losses are of the rows that it measures on; once there is a report, of all that are held out.
        """
        evals, _ = self.events(kind="eval")
        state = self.state()
        best = next((event for event in reversed(evals) if event.get("best")), None)
        receipt = self.read("data/receipt", {})
        report = self.read("report", {}) if state in ("done", "stopped") else {}
        first_loss, best_loss, rows = evals[0]["loss"] if evals else None, best["loss"] if best else None, evals[-1].get("rows") if evals else None
        if all("loss" in report.get(who, {}) for who in ("base", "tuned")):
            first_loss, best_loss, rows = report["base"]["loss"], report["tuned"]["loss"], report["held_out_rows"]
        return {
            "id": self.id, "title": self.title, "state": state, "base_model": self.recipe.base_model,
            "dataset": receipt.get("source", {}).get("name", ""),
            "created": (self.folder / "recipe.toml").stat().st_mtime,
            "first_loss": first_loss, "best_loss": best_loss, "rows": rows, "held_out_rows": receipt.get("held_out_rows"),
            "curve": [(event["step"], event["loss"]) for event in evals],
        }


def create(owner: str, recipe: Recipe, dataset: data.Dataset, kind: type[Run] = Run) -> Run:
    """A new run of this owner, not yet started: its recipe, its rows and their receipt.

    Args:
        kind: Run, or what keeps its folder elsewhere.

    Raises:
        UserError: the recipe has problems, the dataset is another's or has nothing to learn, or the disk is full; or on a
            Space, nobody is signed in.
    """
    identity.require_start(owner)
    limits.require_open()
    recipe.check()
    require_task(recipe, dataset)
    if dataset.owner != owner:
        raise UserError(f"Dataset {shorten(dataset.id, 20)} is not among yours. Choose it again.")
    require_free(200 * 2**20, "A run")
    rows = check.whole(dataset)
    chosen = receipt.choose(rows, recipe)
    limits.spend(owner, limits.ROWS, len(chosen.train) + len(chosen.held_out))
    # Told by number, so that it can be repeated on a machine whose report has other time.
    recipe = replace(recipe, held_out_rows=len(chosen.held_out))
    run = kind(owner, _new_id())
    private_dir(run.folder.parent)
    run.folder.mkdir(mode=0o700)  # exist_ok stays False: two runs never share a folder
    write_whole(run.folder / "recipe.toml", recipe.to_toml())
    (run.folder / "data").mkdir()
    for name in tasks.get(recipe.task).FILES:
        _link(dataset.folder / name, run.folder / "data" / name)
    for part, its in (("train", chosen.train), ("held_out", chosen.held_out)):
        _write_rows(run.folder / "data" / f"{part}.jsonl", (rows.row(index) for index in its))
    write_json(run.folder / "data" / "receipt.json", receipt.make({**dataset.source, "name": dataset.name}, rows, chosen))
    title = recipe.title or dataset.name
    write_whole(run.folder / "title.txt", title)
    return run


def _link(source: Path, target: Path) -> None:
    """The same file under another name, which stays when the first one goes; a copy where the disk has no links."""
    try:
        os.link(source, target)
    except OSError:
        try:
            shutil.copyfile(source, target)
        except OSError as error:
            raise disk_error(error, target) from error


def require_task(recipe: Recipe, dataset: data.Dataset) -> None:
    """Raise unless the settings are for the task that the rows are read for.

    Raises:
        UserError: saying both.
    """
    if dataset.task != recipe.task:
        raise UserError(
            f"The rows are read as {tasks.get(dataset.task).WHAT}, and the recipe wants {tasks.get(recipe.task).WHAT}. "
            "Choose another preset, or say which column is which."
        )


def _write_rows(path: Path, rows) -> None:
    """Rows as JSON lines, one at a time: a run may have a million."""
    try:
        with open(path, "wb") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise disk_error(error, path) from error


def again(run: Run, settings: dict) -> Run:
    """A new run on the same rows and base with some settings changed, not yet started; the rows are not read again.

    Raises:
        UserError: the settings cannot be, its owner has had this hour's rows, or the disk is full.
    """
    identity.require_start(run.owner)
    limits.require_open()
    recipe = recipes.from_dict({**run.recipe.changed(), **settings})
    size = sum(path.stat().st_size for path in (run.folder / "data").iterdir())
    require_free(size + 200 * 2**20, "A run")
    limits.spend(run.owner, limits.ROWS, run.count_rows())
    new = Run(run.owner, _new_id())
    new.folder.mkdir(mode=0o700)
    write_whole(new.folder / "recipe.toml", recipe.to_toml())
    try:
        shutil.copytree(run.folder / "data", new.folder / "data", copy_function=_link)  # rows and pictures are never written into
    except OSError as error:
        shutil.rmtree(new.folder, ignore_errors=True)
        raise disk_error(error, new.folder) from error
    if recipe.base_model == run.recipe.base_model and (base := run.read("base")):
        write_json(new.folder / "base.json", base)
    write_whole(new.folder / "title.txt", run.title)
    return new


def count_lines(path: Path) -> int:
    with open(path, "rb") as file:
        return sum(1 for _ in file)


def _new_id() -> str:
    return time.strftime("%Y%m%d-%H%M%S-", time.gmtime()) + secrets.token_hex(4)


ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{8}", re.ASCII)


def is_id(text) -> bool:
    """Whether this could be a run's id: what others wrote is asked here before a path is made of it."""
    return isinstance(text, str) and bool(ID.fullmatch(text))


def find(owner: str, run_id: str, kind: type[Run] = Run) -> Run:
    """The owner's run of this id.

    Raises:
        UserError: there is none, whoever else may have one.
    """
    if not is_of(owner, run_id, kind):
        raise UserError(f"{kind.WORD.capitalize()} {shorten(run_id, 40)} is not among yours. Choose one from your list.")
    return kind(owner, run_id)


def is_of(owner: str, run_id: str, kind: type[Run] = Run) -> bool:
    """Whether `find` would find it."""
    return (kind(owner, safe_name(run_id, kind.WORD.capitalize())).folder / kind.MARK).is_file()


def from_folder(folder: Path, kind: type[Run] = Run) -> Run:
    """The run in a folder of TUNER_HOME; for the training child and the command line."""
    folder = Path(folder).resolve()
    run = kind(folder.parent.name, folder.name)
    if run.folder != folder or not (folder / kind.MARK).is_file():
        raise UserError(f"{shorten(folder)} is not a {kind.WORD}'s folder under {shorten(tuner_home())}.")
    return run


def mine(owner: str, kind: type[Run] = Run) -> list[Run]:
    """The owner's runs, newest first."""
    folder = kind.place_of(owner)
    if not folder.is_dir():
        return []
    ids = [path.name for path in folder.iterdir() if (path / kind.MARK).is_file()]
    return [kind(owner, run_id) for run_id in sorted(ids, reverse=True)]


# Starting ---------------------------------------------------------------------------------------------------------


def claim(run: Run, seconds: float | None = None) -> None:
    """Mark the run as this process's, once, and take its place in the queue; a second start of it is refused, by whomever.

    Args:
        seconds: how long it is said to take, for those who wait behind it.

    Raises:
        UserError: it is going already, it is done, or its owner has as many in the queue as one person may.
    """
    with run.held_still():
        state = run.state()
        if state in LIVE:
            raise UserError("This run has been started already. Watch it here, or stop it first.")
        if state == "done":
            raise UserError("This run is done. Start a new one with other settings to learn more.")
        limit_s = limits.run_seconds()
        check = (lambda others: None) if run.is_spare else (lambda others: _require_turn(run.owner, others))
        lease.line_up(run.id, run.owner, str(run.folder), seconds, check=check, spare=run.is_spare)
        with _place_given_up(run):
            _make_way(run)  # only for a run that has its place
            if limit_s and not (run.folder / "limit.json").exists():
                write_json(run.folder / "limit.json", {"seconds": limit_s})  # its child sees no variables of the app
            for name in ("error.txt", "stop", "done", "proposals.json", "removal.json"):
                (run.folder / name).unlink(missing_ok=True)
            _end_cut_line(run.folder / "events.jsonl")
            write_json(run.folder / "process.json", lease.this_process())
            # For its card, which may be made elsewhere and later.
            write_json(run.folder / "hardware.json", {"name": machine.name(), "versions": machine.versions()})


def _make_way(run: Run, ask_only: bool = False) -> None:
    """See `measuring.make_way`."""
    from tuner import measuring

    measuring.make_way(run, ask_only)


@contextmanager
def _place_given_up(run: Run) -> Iterator[None]:
    """If this does not come to its end, on a full disk for one, nobody is to wait behind a run that never begins."""
    try:
        yield
    except BaseException:
        lease.leave(run.id)
        raise


def _require_turn(owner: str, others: list[lease.Ticket]) -> None:
    """Refuse a run of somebody who has one going and as many waiting as one person may.

    Raises:
        Hint: saying how many there are.
    """
    most = limits.WAITING.value()
    mine = [its for its in others if its.owner == owner]
    # Where nothing trains, the first of them is about to.
    wait = len([its for its in mine if its.began is None]) - (0 if any(its.began for its in others) else 1)
    if most is not None and wait >= most:
        raise Hint(
            f"{len(mine)} of your runs are in the queue; one going and {most:g} waiting are the most for one person here. "
            "Let one end, or cancel one that waits."
        )


def _end_cut_line(path: Path) -> None:
    """End a line that a crash cut, so that the next event has a line of its own."""
    with open(path, "ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                file.write(b"\n")


def start(run: Run, token: str | None = None, quoted: dict | None = None, keeping: bool = False) -> threading.Thread:
    """Fetch the base model, wait for the run's turn, then train in a child process; returns at once, the folder tells the rest.

    Args:
        token: the visitor's own, for a gated base. It never reaches the child.
        quoted: {"seconds", "memory_gib"} as the visitor was told, if they were.
        keeping: take no further step, only end with what there is; see `keep`.

    Raises:
        UserError: see `claim`.
    """
    identity.require_start(run.owner)
    claim(run, (quoted or {}).get("seconds"))
    with _place_given_up(run):
        if quoted:
            write_json(run.folder / "quoted.json", quoted)
        run.log("status", state="waiting", message="Getting the base model ready")
        thread = threading.Thread(target=_fetch_and_train, args=(run, [token], keeping), name=f"start-{run.id}", daemon=True)
        thread.start()
    return thread


# A second Start of the same form within this time is the same click.
_SAME_CLICK_S = 15.0


def start_once(owner: str, form: str, make: Callable[[], Run], begin: Callable[[Run], object]) -> Run:
    """A new run of this owner, made and begun; for the same form twice in a moment it is one run.

    Args:
        form: what tells this form from another: everything that was chosen on it.
        make, begin: create the run, and start it.
    """
    key = hashlib.sha256(form.encode()).hexdigest()
    folder = private_dir(Run.place_of(owner))
    with open(folder / ".start.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the second click waits here until the first has made its run
        last = read_json(folder / ".started.json", {})
        if last.get("form") == key and 0 <= time.time() - last["t"] < _SAME_CLICK_S:
            with suppress(UserError):  # deleted since
                return find(owner, last["run"])
        run = make()
        try:
            begin(run)
        except UserError:
            if run.state() == "new":  # nobody asks for a run that was not to be
                shutil.rmtree(run.folder, ignore_errors=True)
            raise
        write_json(folder / ".started.json", {"form": key, "run": run.id, "t": time.time()})
    return run


def keep(run: Run, token: str | None = None) -> threading.Thread:
    """End a run that failed or was interrupted with the best version that it has, without going on.

    Raises:
        UserError: it has none, or it is going.
    """
    if run.kept_step() is None:
        raise UserError("This run has no version yet that is better than its base model, so there is nothing to keep.")
    return start(run, token, keeping=True)


def longer(run: Run, epochs: float, token: str | None = None) -> threading.Thread:
    """Go on from a run's newest checkpoint for so many epochs more; with a schedule that falls, its rate is the longer run's.

    Raises:
        UserError: it is going, it has no checkpoint, or so many epochs cannot be.
    """
    if run.state() in LIVE:
        raise UserError(f"This run is {run.state()}. Stop it first, or let it end.")
    if not list((run.folder / "checkpoints").glob("checkpoint-*")):
        raise UserError("This run has no checkpoint to go on from. Start a new one with more epochs.")
    identity.require_start(run.owner)
    _make_way(run, ask_only=True)  # its end is about to be another
    if not epochs > 0:
        raise UserError(f"{epochs:g} epochs more is not longer. Choose more than 0.")
    old = run.recipe
    settings = {**old.changed(), "epochs": old.epochs + epochs}
    plan = run.read("plan")
    if old.max_steps and plan:
        settings["max_steps"] = plan["steps"] + max(1, round(plan["steps"] * epochs / old.epochs))
    changed = recipes.from_dict(settings)  # which names what cannot be
    before = {name: (run.folder / name).read_bytes() for name in ("recipe.toml", "limit.json", "done") if (run.folder / name).exists()}
    if (limit_s := limits.run_seconds()) is not None:
        write_json(run.folder / "limit.json", {"seconds": limit_s + _elapsed_s(run)})  # what it has had does not count
    write_whole(run.folder / "recipe.toml", changed.to_toml())
    (run.folder / "done").unlink(missing_ok=True)
    try:
        return start(Run(run.owner, run.id), token)
    except (UserError, OSError):  # no place in the queue, or no room on the disk: it is what it was
        for name, content in before.items():
            write_whole(run.folder / name, content)
        raise


def _elapsed_s(run: Run) -> float:
    """How long the run has trained so far."""
    steps, _ = run.events(kind="step")
    return max((event["elapsed_s"] for event in steps), default=0.0)


# So often a run is taken up by itself from one and the same checkpoint: what ends a machine three times would end it again.
_TAKEN_UP_AT_MOST = 3


def take_up() -> list[Run]:
    """Go on with the runs that were going or waiting when this app's machine went away, each in its place; gives those taken up.

    A run that its owner asked to stop is left, and so is one that has got no further in several starts.
    """
    behind = {its.folder: its for its in lease.left_behind()}
    folders = [*behind, *(str(path) for path in sorted((tuner_home() / "runs").glob("*/*"), key=lambda path: path.name))]
    taken = []
    for folder in dict.fromkeys(folders):
        try:
            run = from_folder(Path(folder), kind_of(Path(folder)))
            if run.state() != "interrupted" or run.stop_asked() or run.read("process") is None:
                continue
            waited = folder in behind and behind[folder].began is None
            if not waited and not _may_try_again(run):
                continue
            start(run)
            where = "before this run's turn, which keeps its place" if waited else "in the middle of this run, which goes on by itself"
            run.log("note", message=f"The app was restarted {where}.")
        except (UserError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:  # one that is damaged, or was started by somebody else meanwhile
            log.warning("%s was not taken up: %s", Path(folder).name, error)
            continue
        taken.append(run)
    return taken


def kinds() -> tuple[type[Run], ...]:
    """Run, and what else is kept in such a folder and waits in the same queue."""
    from tuner.measuring import Measurement
    from tuner.trials import Trial

    return Run, Trial, Measurement


def kind_of(folder: Path) -> type[Run]:
    """Which of `kinds` a folder holds."""
    return next((kind for kind in kinds() if kind.PLACE == folder.parent.parent.name), Run)


def _may_try_again(run: Run) -> bool:
    """Count one more start from the run's newest checkpoint; False if there were enough."""
    at = max((int(path.name.rpartition("-")[2]) for path in (run.folder / "checkpoints").glob("checkpoint-*")), default=0)
    before = run.read("taken_up", {"step": -1, "times": 0})
    times = before["times"] + 1 if before["step"] == at else 1
    if times > _TAKEN_UP_AT_MOST:
        return False
    write_json(run.folder / "taken_up.json", {"step": at, "times": times})
    return True


# So long something waits for time to spare, in seconds; and what is said where a chat or want of memory keeps it from that.
SPARE_WAITS_S = 6 * 3600.0
NO_ROOM = "Waits until a chat has its answer and there is memory for it"


def _fetch_and_train(run: Run, token: list[str | None], keeping: bool = False) -> None:
    """See `start`; the token is taken out of its list, so that it is gone once the base is here."""
    asked, code = time.monotonic(), child.GAVE_WAY
    gave_up = lambda: (not keeping and run.stop_asked()) or (run.is_spare and time.monotonic() - asked > SPARE_WAITS_S)  # noqa: E731
    while code == child.GAVE_WAY:
        try:
            if token:
                fetch_base(run, token.pop())
            if not lease.wait(
                run.id, lambda ahead: log_wait(run, ahead), gave_up, owner=run.owner, folder=str(run.folder),
                spare=run.is_spare, may_begin=lambda: not run.is_spare or _has_room(run),
            ):
                return _never_begun(run)
            if keeping:
                run.ask_stop()
            room.make(run)
            killed_before = machine.oom_kills()
            process = spawn(run)
        except UserError as error:
            return _fail(run, str(error))
        except OSError as error:
            return _fail(run, f"The run could not be started: {error.strerror or error}. Try again.")
        except Exception as error:  # a fault of ours: the page must not show it as waiting for ever
            _fail(run, f"The run could not be started ({type(error).__name__}). Try again.")
            raise
        try:
            code = watch(run, process, killed_before)
        except (OSError, UserError) as error:  # a disk that is full or read-only takes no words; the page calls it interrupted
            log.warning("A run ended, and why could not be written: %s", error)
            return
    _measure_the_rest(run)


def _has_room(run: Run) -> bool:
    """Whether what is done in the time to spare may begin: nobody waits for a chat's answer, and there is memory for it."""
    if not room.is_answering() and room.is_enough(run):
        return True
    if (said := run.events(kind="status")[0]) and said[-1]["message"] != NO_ROOM:
        run.log("status", state="waiting", message=NO_ROOM)
    return False


def _measure_the_rest(run: Run) -> None:
    """See `measuring.go_on`."""
    from tuner import measuring

    measuring.go_on(run)


def log_wait(run: Run, ahead: int) -> None:
    """Note in the run how many are before it."""
    run.log("status", state="waiting", message=f"{ahead} run{'s' if ahead > 1 else ''} ahead on this machine")


def _never_begun(run: Run) -> None:
    """Be again what it was before its start: it was taken out of the queue, and nothing was spent."""
    run.log("note", message="Taken out of the queue. Nothing was spent; start it again when you like.")
    (run.folder / "process.json").unlink(missing_ok=True)  # last: from now on it may be deleted


def _fail(run: Run, words: str) -> None:
    lease.leave(run.id)
    write_whole(run.folder / "error.txt", words)


def fetch_base(run: Run, token: str | None = None) -> dict:
    """Bring the run's base model to this machine and note in the run which one it is; see `hub.fetch_base`."""
    from tuner import hub

    known = run.read("base")
    if known and known.get("dir") and Path(known["dir"]).is_dir():
        return known
    if known and known["id"] == STARTER_MODEL and known["what"] == starter.WHAT_IT_IS and starter.is_installed():
        base = {**known, "dir": str(starter.prepare())}  # brought back from elsewhere, where it was the same copy
        write_json(run.folder / "base.json", base)
        return base
    recipe = run.recipe
    revision = (known or {}).get("revision") or recipe.base_revision  # what it began with, if it was cleared away since
    if limits.MODEL.value() is not None:  # also of one that is here already, when the Hub is away
        limits.require_model(hub.sizes_of(recipe.base_model, revision, token).weights / 1e9, recipe.base_model)

    said = [0.0]

    def on_progress(done: int, total: int) -> None:
        if time.monotonic() - said[0] < 1.0:  # files arrive in thousands of pieces
            return
        said[0] = time.monotonic()
        run.log("status", state="waiting", message=f"Downloading the base model: {done / 2**20:,.0f} of {total / 2**20:,.0f} MiB")

    base = hub.fetch_base(recipe.base_model, revision, token, on_progress)
    write_json(run.folder / "base.json", base)
    return base


def spawn(run: Run) -> subprocess.Popen:
    """Start the training child in a session of its own."""
    process = child.spawn("tuner", run.VERB, str(run.folder), folder=run.folder, log=run.folder / "log.txt")
    child.offer_to_the_kernel(process.pid)
    its = child.stamp(process.pid)
    write_json(run.folder / "process.json", its)
    lease.hand_over(run.id, its)
    return process


def watch(run: Run, process: subprocess.Popen, killed_before: int | None = None) -> int:
    """Wait for the child and say what happened if it ended without saying so itself; gives its exit code.

    Args:
        killed_before: `machine.oom_kills()` when the child was started.
    """
    code = child.reap(process)
    if code in (0, child.GAVE_WAY) or (run.folder / "done").exists() or (run.folder / "error.txt").exists():
        return code
    if code == -signal.SIGKILL and killed_before is not None and (machine.oom_kills() or 0) > killed_before:
        # How the kernel ends what takes the last of the memory: no word from the process itself.
        write_whole(run.folder / "error.txt", run.out_of_memory(f"The machine ran out of memory and its kernel ended the {run.DOES}."))
        return code
    if code == child.OUT_OF_TIME:
        write_whole(run.folder / "error.txt", encode.ENDLESS)
        return code
    # 143 is how the child itself ends at a SIGTERM; see train.main.
    if code in (-signal.SIGTERM, -signal.SIGKILL, -signal.SIGINT, 128 + signal.SIGTERM):
        run.log("note", message="The training process was ended from outside. Resume to go on from the last checkpoint.")
        return code
    write_whole(run.folder / "error.txt", f"The {run.DOES} ended with exit code {code}. Its last words:\n{last_words(run)}")
    return code


def last_words(run: Run, lines: int = 8) -> str:
    """The end of the run's log, without paths of this machine and without tokens, which a row may hold."""
    try:
        text = (run.folder / "log.txt").read_text("utf-8", "replace")
    except FileNotFoundError:
        return "(the log is empty)"
    kept = [redaction.without_tokens(line)[:300] for line in text.strip().splitlines()[-lines:]]
    return "\n".join(kept).replace(str(tuner_home()), "~").replace(str(child.PROJECT_ROOT), "") or "(the log is empty)"
