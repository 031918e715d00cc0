"""Keeping a run's checkpoints in a private repository of its owner while it trains, so that a machine that is emptied loses nothing.

The token stays in the thread that keeps the run, until the run ends; it is in no file, event or argument of a process.
"""

import hashlib
import json
import os
import re
import shutil
import threading
import time
from pathlib import Path

from tuner import hub, lease, redaction, tasks, transfer
from tuner import run as runs
from tuner.errors import UserError, shorten
from tuner.home import read_json, write_json
from tuner.transfer import Transient

PREFIX = "tuner-kept-"
TAG = "tuner-kept-run"
VERSION = 1
NAME = re.compile(re.escape(PREFIX) + runs.ID.pattern, re.ASCII)
CHECKPOINT_FILES = (
    "adapter.safetensors", "optimizer.safetensors", "optimizer.json", "scheduler.json", "random.json", "trainer_state.json",
    "tuning.json", "scaler.json", "manifest.json",
)
RUN_FILES = ("base.json", "plan.json", "events.jsonl", "data/train.jsonl", "data/held_out.jsonl", "data/receipt.json")
LOOK_S = 2.0
# After an upload that failed for good, the next try is with the next checkpoint, or so much later.
AGAIN_S = 120.0

CONSENT = (
    "Checkpoints, settings and the run's own rows, with their pictures, go to a private repository of yours while it trains. Until it ends this app holds "
    "your sign-in in its memory for that, nowhere else."
)

_CARD = """---
title: {title}
tags:
- {tag}
---

# A run of Tuner, kept

Checkpoints, settings and rows of the run `{run}`, put here by Tuner as it trained, so that it can go on on another machine: sign in
there with this account and choose *Find my kept runs*. Nothing else needs this repository; delete it when the run has ended.
"""


def card(run: runs.Run) -> str:
    """The repository's README; a list of kept runs has their titles from its head."""
    return _CARD.format(title=json.dumps(run.title, ensure_ascii=False), tag=TAG, run=run.id)


def its_files(task: str) -> tuple[str, ...]:
    """What a run of this task has besides RUN_FILES, since its rows point into it."""
    return tuple(f"data/{name}" for name in tasks.get(task).FILES)


def repo_name(run: runs.Run) -> str:
    return PREFIX + run.id


def state(run: runs.Run) -> dict:
    """What is kept of a run: {"state": none, keeping, waiting, kept, failed or let go; "repo_id", "step", "reason"}.

    "let go" is of an app that restarted since: the sign-in it held is gone, and so is the keeping until its owner asks again.
    """
    try:
        its = read_json(run.folder / "kept.json", {"state": "none"})
    except ValueError:
        its = {"state": "none"}
    if its["state"] in ("keeping", "waiting") and not lease.is_alive(its.get("process")):
        its |= {"state": "let go", "reason": "The app restarted and holds no sign-in any more. Sign in, then keep it again."}
    return its


def words(run: runs.Run) -> str:
    """The state in a sentence for the page; "" where nobody asked for it."""
    its = state(run)
    if its["state"] == "none":
        return ""
    where = f"{its['repo_id']} holds step {its['step']:,}." if its.get("step") else f"{its['repo_id']} holds its settings and rows."
    return f"{where if its.get('commit') else 'Nothing is kept yet.'} {its.get('reason', '')}".strip()


# Up ---------------------------------------------------------------------------------------------------------------


def begin(run: runs.Run, token: str | None) -> threading.Thread:
    """Keep this run, which has been started, until it ends; see `prepare`."""
    return prepare(run, token).follow()


def prepare(run: runs.Run, token: str | None) -> "_Keeper":
    """Make the private repository that a run is kept in; `follow` of what this gives then keeps it.

    Args:
        token: its owner's own. It goes no further than what this gives, and its thread.

    Raises:
        UserError: the repository cannot be had.
    """
    from huggingface_hub import HfApi

    user = hub.whoami(token)
    if state(run)["state"] in ("keeping", "waiting"):
        raise UserError(f"This run is kept already, in {state(run)['repo_id']}.")
    repo_id = f"{user}/{repo_name(run)}"
    with hub.in_words(repo_id, True):
        HfApi().create_repo(repo_id, private=True, exist_ok=True, token=token)
    with hub.in_words(repo_id, True):
        there = HfApi().model_info(repo_id, token=token, timeout=hub.TIMEOUT_S)
    if not there.private:
        raise UserError(f"{repo_id} is public, and rows of yours would be for everybody to read. Make it private or delete it, then try again.")
    keeper = _Keeper(run, repo_id, token)
    keeper.sent = {its.rfilename: "" for its in there.siblings or [] if its.rfilename.startswith("checkpoints/")}  # of an earlier machine
    return keeper


class _Keeper:
    """Sends what is new in a run until it has ended."""

    def __init__(self, run: runs.Run, repo_id: str, token: str):
        self.run, self.repo_id, self._token = run, repo_id, token
        self.known = {"repo_id": repo_id, "process": lease.this_process()}
        self.sent: dict[str, str] = {}  # path there -> sha256
        self.step: int | None = None

    def follow(self) -> threading.Thread:
        """Send what is new from now until the run has ended."""
        self.say(state="keeping", reason="")
        thread = threading.Thread(target=self.go, name=f"keep-{self.run.id}", daemon=True)
        thread.start()
        return thread

    def say(self, **changes) -> None:
        if "reason" in changes:
            changes["reason"] = redaction.without_tokens(changes["reason"], self._token)
        self.known |= changes
        if self.run.folder.is_dir():
            write_json(self.run.folder / "kept.json", self.known)

    def go(self) -> None:
        try:
            tried, failed_at = -1, 0.0
            while self.run.folder.is_dir():
                ended = self.run.state() not in runs.LIVE
                newest = max(_steps(self.run), default=0)
                if newest != tried or (failed_at and time.monotonic() - failed_at > AGAIN_S) or (ended and failed_at):
                    tried, failed_at = newest, 0.0 if self._send_in_words(newest) else time.monotonic()
                if ended:
                    return self.say(state="failed" if failed_at else "kept")
                time.sleep(LOOK_S)
        except (OSError, UserError) as error:  # a disk that is full or read-only; the training says so itself
            runs.log.warning("A run is not kept any more: %s", type(error).__name__)
        finally:
            self._token = ""

    def _send_in_words(self, step: int) -> bool:
        """Send what is new; False, and said in the run, if that did not work."""
        try:
            commit = transfer.patiently(lambda: self._send(step), lambda seconds, why: self.say(state="waiting", reason=f"{why} Trying again in {seconds:.0f} s."))
        except UserError as error:
            self.run.log("note", message=redaction.without_tokens(f"Step {step:,} could not be kept in {self.repo_id}: {error.problems[0]}", self._token))
            self.say(state="waiting", reason=f"Step {step:,} could not be kept: {error}")
            return False
        if commit:
            self.say(state="keeping", reason="", step=step, commit=commit, t=round(time.time()))
        return True

    def _send(self, step: int) -> str | None:
        """One commit with all that is new at this step; its id."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

        with _held_still(self.run) as (folder, files):
            # The rows and pictures of a run never change, and may be gigabytes.
            hashes = {path: path.startswith("data/") and self.sent.get(path) or _sha256(folder / path) for path in files}
            told = {
                "version": VERSION, "run": self.run.id, "title": self.run.title, "recipe": self.run.recipe.to_toml(), "step": step,
                "files": {path: {"bytes": (folder / path).stat().st_size, "sha256": hashes[path]} for path in files},
            }
            new = [path for path in files if self.sent.get(path) != hashes[path]]
            if not new:
                return None
            gone = sorted({path.rpartition("/")[0] for path in self.sent if path.startswith("checkpoints/")} - {path.rpartition("/")[0] for path in files})
            operations = [
                *(CommitOperationAdd(path, str(folder / path)) for path in new),
                CommitOperationAdd("kept.json", json.dumps(told, ensure_ascii=False, indent=1).encode()),
                CommitOperationAdd("README.md", card(self.run).encode()),
                *(CommitOperationDelete(f"{path}/", is_folder=True) for path in gone),
            ]
            with hub.in_words(self.repo_id, True):
                try:
                    done = HfApi().create_commit(self.repo_id, operations, commit_message=f"Step {step}", token=self._token)
                except (RuntimeError, PermissionError):  # an upload that broke off
                    raise Transient("The upload broke off. It is tried again.") from None
        self.sent, self.step = hashes, step
        return done.oid


def _steps(run: runs.Run) -> list[int]:
    """Of the checkpoints that are whole: they are renamed into place."""
    names = (path.name.rpartition("-")[2] for path in (run.folder / "checkpoints").glob("checkpoint-*"))
    return [int(name) for name in names if name.isdigit()]


class _held_still:
    """A run's newest and best checkpoint and its small files as they are at this moment, under links: training prunes and appends."""

    def __init__(self, run: runs.Run):
        self.run, self.folder = run, run.folder / f".kept-{os.getpid()}-{threading.get_ident()}"

    def __enter__(self) -> tuple[Path, list[str]]:
        shutil.rmtree(self.folder, ignore_errors=True)
        files = [name for name in (*RUN_FILES, *its_files(self.run.recipe.task)) if self._hold(name)]
        wanted = sorted(_steps(self.run))[-1:] + [self.run.kept_step() or 0]
        for step in dict.fromkeys(its for its in wanted if its):
            place = f"checkpoints/checkpoint-{step}"
            held = {name for name in CHECKPOINT_FILES if self._hold(f"{place}/{name}")}
            if held - {"manifest.json"} == set(read_json(self.folder / place / "manifest.json", {}).get("files", ())):  # not being pruned now
                files += [f"{place}/{name}" for name in sorted(held)]
        return self.folder, files

    def _hold(self, name: str) -> bool:
        source, target = self.run.folder / name, self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            if name == "events.jsonl":  # it grows; a half line stays behind
                text = source.read_bytes()
                target.write_bytes(text[: text.rfind(b"\n") + 1])
            elif name == "base.json":  # where it lies here is nobody's business elsewhere
                target.write_text(json.dumps({key: its for key, its in read_json(source).items() if key != "dir"}, ensure_ascii=False))
            else:
                os.link(source, target)
        except (FileNotFoundError, AttributeError):
            return False
        except OSError:  # a volume without links
            shutil.copyfile(source, target)
        return True

    def __exit__(self, *_) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Found again ------------------------------------------------------------------------------------------------------


def find(token: str | None, most: int = 50) -> list[dict]:
    """The kept runs of this account, newest first: {"repo_id", "run", "title", "changed"}; "" for no title. Nothing is downloaded.

    Raises:
        UserError: nobody is signed in, or the Hub cannot be asked.
    """
    from huggingface_hub import HfApi

    user = hub.whoami(token)
    with hub.in_words("your repositories", True):
        found = list(HfApi().list_models(author=user, search=PREFIX, limit=most, full=True, cardData=True, token=token))
    kept = []
    for its in found:
        owner, _, name = its.id.partition("/")
        if owner == user and NAME.fullmatch(name) and its.private:
            title = its.card_data.get("title") if its.card_data else None
            kept.append({
                "repo_id": its.id, "run": name.removeprefix(PREFIX), "title": shorten(title, 120) if isinstance(title, str) else "",
                "changed": its.last_modified.timestamp() if its.last_modified else 0.0,
            })
    return sorted(kept, key=lambda its: its["run"], reverse=True)


def require_kept_id(repo_id: str, user: str) -> str:
    """The id, if it names a kept run of this user.

    Raises:
        UserError: it does not.
    """
    owner, _, name = str(repo_id).partition("/")
    if owner != user or not NAME.fullmatch(name):
        raise UserError(f"{shorten(repo_id)} is not a kept run of {user}. Choose one from the list.")
    return repo_id


