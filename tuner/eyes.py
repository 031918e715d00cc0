"""Rows seen through a base model's tokenizer and template, in small processes that can be killed: both are strangers' work.

A template may count to 10^12, a tokenizer's pattern may never end, and neither can be interrupted from Python. So the page
asks a process without torch, which is kept for the next question and replaced when it dies. Children of one person's own
(a run, the check of a large dataset) look for themselves; they can be killed anyway.

`python -m tuner.eyes` is such a process: it answers one line of JSON with another.
"""

import json
import queue
import re
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

from tuner import child, encode, redaction, tasks
from tuner.errors import UserError
from tuner.home import private_dir, tuner_home

# What one may allocate, and how long it may take by the clock; its computing time is bounded row by row, see `encode`.
MEMORY_BYTES = 2 * 2**30
MOST_S = 60.0
# Processes for all visitors; one that chokes on a bomb for two seconds leaves another.
MOST = 2
IDLE_S = 900.0
# A model with more control tokens than this in characters is none.
_MOST_PATTERN = 200_000
_PLAIN = [{"role": "user", "content": "Hello, who are you?"}, {"role": "assistant", "content": "I am a model. Ask me something."}]


# Asking -----------------------------------------------------------------------------------------------------------


def tokenised(rows: list, look):
    """See `scan.tokenise`."""
    from tuner import scan

    if child.is_child():
        return scan.tokenise(rows, look)
    return scan.Tokens.of_lists(_ask({"do": "rows", "rows": rows, "look": asdict(look)})) if rows else scan.tokenise([], look)


def show(row: dict, recipe, tokenizer_dir: str, turns: bool) -> tuple[list, re.Pattern, list[int | None]]:
    """One row for the page: its sequences as the task's `Encoded`, what matches a control token in it, and the tokens of each turn if asked.

    Raises:
        UserError: the template refuses the row, or does not end.
    """
    seen = _ask({"do": "show", "row": row, "dir": tokenizer_dir, "turns": turns, "recipe": _settings(recipe)})
    sequence = tasks.get(recipe.task).Encoded
    return [sequence(**its) for its in seen["sequences"]], re.compile(seen["control"]), seen["counts"]


def fits(row: dict, recipe, tokenizer_dir: str) -> bool:
    """Whether no sequence of the row is cut; a row that the template refuses does not fit."""
    if child.is_child():
        return _fits(row, recipe, tasks.get(recipe.task).load_tokenizer(tokenizer_dir))
    return _ask({"do": "fits", "row": row, "dir": tokenizer_dir, "recipe": _settings(recipe)})["fits"]


def control_tokens(tokenizer_dir: str, task: str) -> re.Pattern:
    """See `encode.control_tokens`; of the tokenizer as that task loads it."""
    if child.is_child():
        return tasks.get(task).control_tokens(tasks.get(task).load_tokenizer(tokenizer_dir))
    return re.compile(_ask({"do": "control", "dir": tokenizer_dir, "task": task})["control"])


def try_prompt(messages: list[dict], tokenizer_dir: str, keep_control_tokens: bool = False, date: str = "2026-01-01") -> None:
    """Encode a conversation as a chat would, for nothing but to see that it ends.

    Raises:
        UserError: the template refuses it, or does not end.
    """
    _ask({"do": "prompt", "dir": tokenizer_dir, "messages": messages, "keep": keep_control_tokens, "date": date})


def try_out(tokenizer_dir: str) -> None:
    """Try a base model's tokenizer and template on a plain conversation, once for each folder.

    Raises:
        UserError: it refuses the simplest conversation, or does not end.
    """
    _try_out(str(tokenizer_dir), _stamp(Path(tokenizer_dir)))


@lru_cache(maxsize=256)
def _try_out(tokenizer_dir: str, _stamp: tuple) -> None:
    _ask({"do": "try", "dir": tokenizer_dir})


def _stamp(folder: Path) -> tuple:
    return tuple(sorted((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in folder.glob("*.j*")))


def _settings(recipe) -> dict:
    names = ("system_prompt", "learn", "keep_control_tokens", "template_date", "max_tokens", "task")
    return {name: getattr(recipe, name) for name in names}


def warm() -> None:
    """Start one, so that the first look need not wait for it."""
    with _one():
        pass


_idle: queue.LifoQueue = queue.LifoQueue()
_places = threading.BoundedSemaphore(MOST)


@contextmanager
def _one() -> Iterator[subprocess.Popen]:
    """One of the processes, to itself; it is put back if it lives."""
    with _places:
        process = None
        while process is None or process.poll() is not None:
            try:
                process = _idle.get_nowait()
            except queue.Empty:
                private_dir(tuner_home())
                process = child.converse("tuner.eyes", log=tuner_home() / "eyes.log", most_bytes=2**20)
        try:
            yield process
        except BaseException:
            child.end(process)
            raise
        _idle.put(process)


def _ask(question: dict) -> dict:
    """One question's answer.

    Raises:
        UserError: as the engine said there, or because it had to be killed.
    """
    line = ""
    for _ in range(2):  # one may have ended by itself just now, having been idle for long
        line, code = _ask_one(json.dumps(question))
        if code != 0:
            break
    if not line:
        raise died(code)
    answer = json.loads(line)
    if "refused" in answer:
        raise UserError(*answer["refused"])
    return answer


def _ask_one(question: str) -> tuple[str, int | None]:
    """The answer's line, or "" and the exit code of the process that gave none."""
    with _one() as process:
        return child.ask(process, question, MOST_S)


def died(code: int) -> UserError:
    """Why an encoding process ended, by its exit code."""
    if code in (child.OUT_OF_TIME, -signal.SIGKILL):
        return UserError(encode.ENDLESS)
    return UserError(
        f"The model's tokenizer or chat template took more than {MEMORY_BYTES / 2**30:.0f} GiB of memory for this, or broke its process. "
        "Choose another base model."
    )


# Answering --------------------------------------------------------------------------------------------------------


def _answer(asked: dict) -> dict:
    from tuner import scan
    from tuner.recipe import Recipe

    if asked["do"] == "rows":
        return scan.tokenise(asked["rows"], scan.Look(**asked["look"])).to_lists()
    if asked["do"] == "control":
        return {"control": _control(tasks.get(asked["task"]).load_tokenizer(asked["dir"]), asked["task"])}
    if asked["do"] == "prompt":
        tokenizer = encode.load_tokenizer(asked["dir"])
        encode.prompt_ids(asked["messages"], tokenizer, keep_control_tokens=asked["keep"], date=asked["date"])
        return {}
    if asked["do"] == "try":
        _try(encode.load_tokenizer(asked["dir"]))
        return {}
    recipe = Recipe(**asked["recipe"])
    tokenizer = tasks.get(recipe.task).load_tokenizer(asked["dir"])
    if asked["do"] == "fits":
        return {"fits": _fits(asked["row"], recipe, tokenizer)}
    task, row = tasks.get(recipe.task), asked["row"]
    sequences = task.encode_row(row, tokenizer, recipe)
    counts = task.turn_tokens(row, tokenizer, recipe) if asked["turns"] else [len(sequences[0].offsets)]
    return {"sequences": [asdict(its) for its in sequences], "control": _control(tokenizer, recipe.task), "counts": counts}


def _fits(row: dict, recipe, tokenizer) -> bool:
    try:
        return all(not sequence.cut for sequence in tasks.get(recipe.task).encode_row(row, tokenizer, recipe))
    except UserError:  # a template may refuse a part of what it accepts whole; then that part is not made
        return False


def _control(tokenizer, task: str = tasks.DEFAULT) -> str:
    pattern = tasks.get(task).control_tokens(tokenizer).pattern
    if len(pattern) > _MOST_PATTERN:
        raise UserError(f"The model's tokenizer has {len(pattern):,} characters of control tokens, which no model needs. Choose another base model.")
    return pattern


def _try(tokenizer) -> None:
    """The template has to take the simplest conversation, say what was said in it, and tell two apart."""
    _control(tokenizer)
    sequences = [encode.encode(messages, tokenizer, 100_000)[-1] for messages in (_PLAIN, [{**_PLAIN[0], "content": "What is a tree?"}, _PLAIN[1]])]
    with child.within(encode.MOST_S):
        tokenizer.decode(sequences[0].ids, skip_special_tokens=True)
    texts = [sequence.text for sequence in sequences]
    if texts[0] == texts[1] or "who are you" not in texts[0].lower():
        raise UserError("The model's chat template leaves out what the user says, so nothing can be learned with it. Choose another base model.")


def serve() -> None:
    """Answer until nothing was asked for a while, or standard input closes."""
    child.limit_memory(MEMORY_BYTES)
    answers, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no answer
    while select.select([sys.stdin], [], [], IDLE_S)[0]:
        line = sys.stdin.readline()
        if not line:
            return
        try:
            answer = _answer(json.loads(line))
        except UserError as error:
            answer = {"refused": error.problems}
        except MemoryError:
            answer = {"refused": died(0).problems}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    redaction.install()
    serve()
