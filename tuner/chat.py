"""Messages in, pieces of text out: base, tuned, or both, through a worker process of their own."""

import json
import math
import queue
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import date as calendar
from pathlib import Path

from tuner import child, eyes, hub, identity, room, starter, tasks
from tuner import run as runs
from tuner.errors import UserError, shorten
from tuner.home import LOCAL_OWNER, private_dir, read_json, tuner_home
from tuner.recipe import HUB_ID, STARTER_MODEL

MAX_CHARACTERS = 100_000
MAX_TURNS = 200
IDLE_S = 600


@dataclass(frozen=True)
class Subject:
    """Who is talked to: a base model, and perhaps an adapter on it.

    Args:
        base: {"id", "revision", "dir", "what"}.
        adapter_dir: "" for the base alone.
        base_sha256: the weights the adapter was trained on; "" where nobody noted them.
        plan: the choices that alter arithmetic, as the run that made the adapter took them.
        note: what a visitor should know, such as that the base is another copy.
    """

    label: str
    base: dict
    adapter_dir: str = ""
    base_sha256: str = ""
    quantisation: str = "nf4"
    plan: dict = field(default_factory=dict)
    system_prompt: str = ""
    template_date: str = "2026-01-01"
    keep_control_tokens: bool = False
    note: str = ""
    task: str = tasks.DEFAULT
    max_tokens: int = 1024


# Of a run's plan: what alters arithmetic, and what a classifier's head is.
_ARITHMETIC = ("precision", "attention", "dequantised", "kept_16bit", "device", "labels", "heads")


def of_base(base_id: str, token: str | None, owner: str = LOCAL_OWNER) -> Subject:
    """The base model alone.

    Raises:
        UserError: it cannot be had, or is too large for this owner; see `identity.require_chat`.
    """
    identity.require_chat(owner, base_id, token)
    return Subject(base_id, hub.fetch_base(base_id, "", token))


def of_run(run: runs.Run) -> Subject:
    """A finished run's tuned model, on exactly its own base.

    Raises:
        UserError: the run has no adapter yet.
    """
    if not run.read("done"):
        raise UserError(f"“{shorten(run.title)}” is {run.state()} and has no tuned model yet. Wait for its end, then chat.")
    base, plan, recipe = runs.fetch_base(run), run.read("plan"), run.recipe  # it may have been cleared away since
    return Subject(
        run.title, base, str(run.adapter_dir), plan["base_sha256"], recipe.quantisation,
        {name: plan[name] for name in _ARITHMETIC if name in plan}, recipe.system_prompt, recipe.template_date, recipe.keep_control_tokens,
        task=recipe.task, max_tokens=recipe.max_tokens,
    )


def of_adapter(repo_id: str, token: str | None, owner: str = LOCAL_OWNER) -> Subject:
    """A published adapter by its Hub id, on the base that it names.

    Raises:
        UserError: no such adapter, not LoRA, or its base cannot be had or is too large for this owner.
    """
    folder, config = hub.fetch_adapter(repo_id, "", token)
    known = _record_in(folder)
    base_id = config["base_model_name_or_path"]
    text = lambda name, default: known[name] if isinstance(known.get(name), str) else default  # noqa: E731
    revision = config["revision"] if isinstance(config.get("revision"), str) else text("base_revision", "")
    identity.require_chat(owner, base_id, token, revision)
    stands_in = starter.of(base_id)
    if stands_in and known.get("base_what") == stands_in.what and stands_in.is_installed():
        base = {"id": base_id, "revision": "", "dir": str(stands_in.prepare()), "what": stands_in.what}
    else:
        base = hub.fetch_base(base_id, revision, token)
    note, sha256 = "", text("base_sha256", "")
    if sha256:
        from tuner import bases

        if bases.weights_hash(Path(base["dir"])) != sha256:
            note = f"It was trained on another copy of the base ({shorten(text('base_what', 'unknown'), 100)}), so answers may differ a little."
            sha256 = ""
    task, plan = tasks.of_record(known, config.get("task_type"))
    try:
        date = calendar.fromisoformat(text("template_date", "")).isoformat()
    except ValueError:
        date = Subject.template_date
    return Subject(
        repo_id, base, str(folder), sha256,
        text("quantisation", "nf4") if text("quantisation", "nf4") in ("nf4", "none") else "nf4", plan,
        text("system_prompt", "")[:20_000], date, known.get("keep_control_tokens") is True, note, task,
    )


def _record_in(folder: Path) -> dict:
    """What a published adapter's own record says; nothing where it has none that can be read."""
    try:
        known = read_json(folder / "tuner.json", {})
    except ValueError:
        known = {}
    return known if isinstance(known, dict) else {}


def task_of_adapter(folder: Path, config: dict) -> tuple[str, dict]:
    """The task of a published adapter that was fetched, and what its plan keeps for it; see `tasks.of_record`."""
    return tasks.of_record(_record_in(folder), config.get("task_type"))


def resolve(owner: str, what: str, token: str | None) -> Subject:
    """A Subject of a run's id or folder, an adapter's Hub id, or a base model's Hub id.

    Raises:
        UserError: it is none of these.
    """
    what = what.strip()
    if not what:
        raise UserError("Nothing to talk to was named. Choose the base model, one of your runs, or an adapter's Hub id.")
    if (runs.Run.place_of(owner) / Path(what).name / "recipe.toml").is_file() and ("/" not in what or Path(what).is_dir()):
        return of_run(runs.find(owner, Path(what).name))
    if not HUB_ID.fullmatch(what.removeprefix("https://huggingface.co/")):
        raise UserError(f"{shorten(what)!r} is neither one of your runs nor a Hub id such as user/name.")
    return of_adapter(what, token, owner)


def check_messages(messages: list[dict]) -> list[dict]:
    """The messages as plain text turns; they come from a browser, so nothing about them is believed.

    Raises:
        UserError: empty, too long, or not turns of text.
    """
    kept = []
    for message in messages:
        role, content = message.get("role"), message.get("content")
        if role not in ("system", "user", "assistant") or not isinstance(content, str):
            raise UserError("The conversation holds something that is not text. Clear it and write again.")
        kept.append({"role": role, "content": content})
    total = sum(len(message["content"]) for message in kept)
    if len(kept) > MAX_TURNS or total > MAX_CHARACTERS:
        raise UserError(
            f"The conversation has {len(kept):,} turns and {total:,} characters; the most is {MAX_TURNS} and "
            f"{MAX_CHARACTERS:,}. Clear it, or write less."
        )
    if not kept or kept[-1]["role"] != "user" or not kept[-1]["content"].strip():
        raise UserError("The message is empty. Write something first.")
    return kept


def check_sampling(max_new_tokens=256, temperature=0.0, top_p=1.0, seed=0) -> dict:
    """The sampling settings, if each is in its range; all problems at once."""
    problems = []
    for name, value, low, high in (
        ("Longest answer", max_new_tokens, 1, 4096), ("Temperature", temperature, 0, 2), ("Top-p", top_p, 0.01, 1),
        ("Seed", seed, 0, 2**31 - 1),
    ):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or not low <= value <= high:
            problems.append(f"{name} is {shorten(value, 20)}; it must be between {low} and {high}.")
    if problems:
        raise UserError(*problems)
    return {"max_new_tokens": int(max_new_tokens), "temperature": float(temperature), "top_p": float(top_p), "seed": int(seed)}


class Workers:
    """What the page talks through: a process for the starter, which stays while somebody trains, and one for any other base.

    Args:
        idle_s: how long one is kept that nobody asks anything.
    """

    def __init__(self, idle_s: int = IDLE_S):
        self._starter, self._other = Worker(idle_s), Worker(idle_s)

    def answers(self, asked: dict[str, tuple[Subject, list[dict], bool]], **options) -> Iterator[tuple[str, str]]:
        """See `Worker.answers`."""
        is_starter = all(subject.base["id"] == STARTER_MODEL for subject, _, _ in asked.values())
        return (self._starter if is_starter else self._other).answers(asked, **options)

    def close(self) -> None:
        """End both."""
        self._starter.close()
        self._other.close()


class Worker:
    """The chat's own process: started at first use, restarted after a crash, ended when idle.

    It holds one base and the adapters asked for, and advances all answers in turn, token by token.
    """

    def __init__(self, idle_s: int = IDLE_S):
        self.idle_s = idle_s
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None
        self._waiting: dict[int, tuple[subprocess.Popen, queue.Queue]] = {}  # number -> who answers it, where to
        self._next = 0

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def answer(self, subject: Subject, messages: list[dict], *, tuned: bool = True, on_status=lambda text: None, **sampling) -> Iterator[str]:
        """One answer's pieces as they come; see `answers`."""
        for _, piece in self.answers({"it": (subject, messages, tuned)}, on_status=on_status, **sampling):
            yield piece

    def answers(self, asked: dict[str, tuple[Subject, list[dict], bool]], *, on_status=lambda text: None, **sampling) -> Iterator[tuple[str, str]]:
        """Several answers in turn, as (who, piece) while they come. Closing the iterator ends them all.

        Args:
            asked: who -> (subject, messages, whether with its adapter; else the base alone).
            on_status: called with words while a model is loaded.
            sampling: see `check_sampling`.

        Raises:
            UserError: bad messages or settings, a model that cannot be loaded, or a worker that died.
        """
        sampling = check_sampling(**sampling)
        requests = {}
        for who, (subject, messages, tuned) in asked.items():
            if not tasks.get(subject.task).ANSWERS:
                raise UserError(
                    f"“{shorten(subject.label, 60)}” gives labels, not answers. Choose it again, so that the tab shows what it takes in."
                )
            messages = check_messages(messages)
            room.require_for_chat(subject.base, subject.quantisation)
            if subject.system_prompt and messages[0]["role"] != "system":
                messages = [{"role": "system", "content": subject.system_prompt}, *messages]
            # First where it can be killed alone: the worker answers others meanwhile.
            eyes.try_prompt(messages, subject.base["dir"], subject.keep_control_tokens, subject.template_date)
            requests[who] = {
                "do": "answer", "subject": asdict(subject), "messages": messages,
                "tuned": tuned and bool(subject.adapter_dir), **sampling,
            }
        replies: queue.Queue = queue.Queue()
        numbers: dict[int, str] = {}
        with self._lock:
            process = self._alive()
            for who, request in requests.items():
                number = self._next = self._next + 1
                numbers[number] = who
                self._waiting[number] = process, replies
                self._send(process, {**request, "id": number})
        open_answers = set(numbers)
        try:
            while open_answers:
                reply = replies.get()
                if "piece" in reply:
                    yield numbers[reply["id"]], reply["piece"]
                elif "status" in reply:
                    on_status(reply["status"])
                else:
                    open_answers.discard(reply["id"])
                    if "error" in reply:
                        raise UserError(reply["error"])
        finally:
            with self._lock:
                for number in numbers:
                    self._waiting.pop(number, None)
                    if number in open_answers and self._process is process and process.poll() is None:
                        self._send(process, {"do": "cancel", "id": number})

    def _send(self, process: subprocess.Popen, message: dict) -> None:
        try:
            process.stdin.write(json.dumps(message) + "\n")
            process.stdin.flush()
        except (BrokenPipeError, OSError):  # it has just died; its reader tells everybody who waits
            pass

    def _alive(self) -> subprocess.Popen:
        if self._process is None or self._process.poll() is not None:
            log = private_dir(tuner_home()) / "chat.log"
            self._process = child.converse("tuner.chat_worker", str(self.idle_s), log=log)
            threading.Thread(target=self._read, args=(self._process,), daemon=True).start()
        return self._process

    def _read(self, process: subprocess.Popen) -> None:
        for line in process.stdout:
            try:
                reply = json.loads(line)
            except json.JSONDecodeError:
                continue
            if waiting := self._waiting.get(reply.get("id")):
                waiting[1].put(reply)
        child.reap(process)
        with self._lock:
            if self._process is process:
                self._process = None
            # Another process may have taken its place by now; those who wait for this one are told all the same.
            base = room.gave_way(process.pid)
            why = (
                f"The chat with {shorten(base)} was closed to make room for a run that trains now. Chat with the starter meanwhile, or send again later."
                if base else "The chat process ended in the middle (it may have run out of memory). Send again; it starts anew."
            )
            for number, (its, waiting) in self._waiting.items():
                if its is process:
                    waiting.put({"id": number, "error": why})

    def close(self) -> None:
        """End the process; what it was answering ends with it."""
        with self._lock:
            process, self._process = self._process, None
        if process and process.poll() is None:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                child.end(process)
