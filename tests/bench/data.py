"""What bringing and checking a large dataset costs: rows a second, peak memory, and the time until the first preview.

    make bench-data
    python -m tests.bench.data --rows 10000,100000
"""

import argparse
import json
import os
import platform
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
import psutil

SEED = 20261124
ROWS = (10_000, 100_000, 1_000_000)
OWNER = "bench"
# Shares of the rows that are copies, and of those with a fault of their own. Broken lines stay below the 1 % of a broken file.
EXACT, NEAR = 0.02, 0.02
FAULTS = {
    "broken line": 0.002, "empty answer": 0.003, "question last": 0.002, "wrong encoding": 0.003, "address": 0.003, "HTML": 0.002,
    "control token": 0.001, "refusal": 0.002,
}
_AT_ONCE = 2_000
_LINE = "{:>9}  {:>5}  {:>7}  {:>7}  {:>8}  {:>6}  {:>6}  {:>6}  {:>8}  {:>14}  {:>16}  {:>12}  {:>7}"
_HEADS = (
    ("rows", "MiB", "preview", "reading", "checking", "asking", "rows/s", "rows/s", "reader", "check", "each helper", "all at once", "equal /"),
    ("", "", "s", "s", "s", "s", "check", "all", "peak MiB", "peak (own) MiB", "peak (own) MiB", "private MiB", "near"),
)


# Rows -------------------------------------------------------------------------------------------------------------


def common_words(tokenizer) -> list[str]:
    """English words, frequent ones first: those that are one token of the vocabulary, whose order is about that."""
    known = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return [token[1:] for token, _ in known if token[:1] == "Ġ" and len(token) > 3 and token[1:].isascii() and token[1:].islower() and token[1:].isalpha()]


def lines(count: int, words: list[str], seed: int = SEED) -> Iterator[str]:
    """Chat rows as JSONL, about a kilobyte each: one to three questions and answers of random words, no two alike by chance."""
    rng = np.random.default_rng(seed)
    words = np.array(words, object)
    share = np.cumsum(1 / (np.arange(len(words)) + 200.0))  # flatter than a language's, so that rows differ
    share /= share[-1]
    faults, limits = list(FAULTS), np.cumsum([EXACT, NEAR, *FAULTS.values()])
    known: list[dict] = []
    for start in range(0, count, _AT_ONCE):
        size = min(_AT_ONCE, count - start)
        kinds = np.searchsorted(limits, rng.random(size), side="right")
        turns = rng.choice([1, 2, 3], size, p=[0.7, 0.2, 0.1])
        asked = rng.lognormal(3.2, 0.5, (size, 3)).astype(int) + 4
        answered = (rng.lognormal(4.3, 0.6, (size, 3)) / np.array([1, 1.6, 2.2])[turns - 1, None]).astype(int) + 8
        drawn = iter(words[np.searchsorted(share, rng.random(int((asked + answered).sum())))].tolist())
        for index in range(size):
            kind = kinds[index]
            if kind < 2 and known:
                row = json.loads(json.dumps(known[rng.integers(len(known))]))
                if kind == 1:  # one word of the longest answer
                    longest = max(row["messages"], key=lambda message: len(message["content"]))
                    said = longest["content"].split(" ")
                    said[rng.integers(len(said))] = words[rng.integers(len(words))]
                    longest["content"] = " ".join(said)
            else:
                row = {"messages": []}
                for turn in range(turns[index]):
                    row["messages"].append({"role": "user", "content": _sentences(drawn, asked[index, turn]) + "?"})
                    row["messages"].append({"role": "assistant", "content": _sentences(drawn, answered[index, turn]) + "."})
                if len(known) < 5_000 and kind >= len(limits):
                    known.append(row)
            yield _spoilt(row, faults[kind - 2]) if 2 <= kind < len(limits) else json.dumps(row, ensure_ascii=False)


def _sentences(drawn: Iterator[str], count: int) -> str:
    said = [next(drawn) for _ in range(count)]
    for place in range(0, count, 12):
        said[place] = said[place].capitalize()
        if place:
            said[place - 1] += "."
    return " ".join(said)


def _spoilt(row: dict, fault: str) -> str:
    """The row's line with that fault."""
    last = row["messages"][-1]
    if fault == "empty answer":
        last["content"] = ""
    elif fault == "question last":
        row["messages"].append({"role": "user", "content": "And then?"})
    elif fault == "wrong encoding":
        last["content"] += " " + "Das Café ist schön, naïve Gäste hören zu.".encode().decode("cp1252")
    elif fault == "address":
        last["content"] += f" Write to {last['content'].split()[0].lower()}@mail.example.org or call +49 30 901820."
    elif fault == "HTML":
        last["content"] = f"<p>{last['content']}</p><br>"
    elif fault == "control token":
        last["content"] += "<|im_end|>"
    elif fault == "refusal":
        last["content"] = "I'm sorry, but I can't help with that."
    line = json.dumps(row, ensure_ascii=False)
    return line[: len(line) // 2] if fault == "broken line" else line


# Memory -----------------------------------------------------------------------------------------------------------


@dataclass
class Peak:
    """The most that one process took, in bytes: resident, with mapped files; and of its own, without."""

    resident: int = 0
    own: int = 0


@dataclass
class Watch:
    """What a dataset's child and its helpers take, looked at all the time.

    Args:
        main: the child's peak.
        helpers: each helper's, by process id.
        together: the largest sum of what is private to them (USS, one look a second).
    """

    folder: Path
    main: Peak = field(default_factory=Peak)
    helpers: dict[int, Peak] = field(default_factory=dict)
    together: int = 0

    def __enter__(self) -> "Watch":
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.ended.set()
        self.thread.join()

    def _look(self) -> None:
        summed = 0.0
        while not self.ended.wait(0.1):
            try:
                main = psutil.Process(json.loads((self.folder / "process.json").read_text())["pid"])
                # Not the process that multiprocessing keeps beside them to tidy up.
                helpers = [its for its in main.children() if any("spawn_main" in part for part in its.cmdline())]
                _raise(self.main, main.pid)
                for its in helpers:
                    _raise(self.helpers.setdefault(its.pid, Peak()), its.pid)
                if time.monotonic() - summed > 1:
                    summed = time.monotonic()
                    self.together = max(self.together, sum(its.memory_full_info().uss for its in (main, *helpers)))
            except (OSError, ValueError, psutil.Error):  # it has not begun, or has just ended
                pass


def _raise(peak: Peak, pid: int) -> None:
    seen = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    if "VmHWM" in seen:
        peak.resident = max(peak.resident, int(seen["VmHWM"].split()[0]) * 1024)
        peak.own = max(peak.own, int(seen["RssAnon"].split()[0]) * 1024)


# The page's way ---------------------------------------------------------------------------------------------------


@dataclass
class Result:
    """What one size cost: seconds, and bytes."""

    rows: int
    size_bytes: int
    preview_s: float
    reading_s: float
    checking_s: float
    asking_s: float
    reader: Peak
    check: Watch
    equal: int
    near: int

    @property
    def all_s(self) -> float:
        return self.reading_s + self.checking_s + self.asking_s

    def cells(self) -> tuple:
        both = lambda peak: f"{_mib(peak.resident)} ({_mib(peak.own)})"  # noqa: E731
        return (
            f"{self.rows:,}", _mib(self.size_bytes), f"{self.preview_s:.2f}", f"{self.reading_s:.1f}", f"{self.checking_s:.1f}",
            f"{self.asking_s:.2f}", f"{self.rows / self.checking_s:,.0f}", f"{self.rows / self.all_s:,.0f}", _mib(self.reader.resident),
            both(self.check.main), ", ".join(map(both, self.check.helpers.values())) or "none", _mib(self.check.together),
            f"{self.equal:,} / {self.near:,}",
        )


def _mib(count: int) -> str:
    return f"{count / 2**20:,.0f}"


def measure(count: int, words: list[str], look, recipe, folder: Path) -> Result:
    """Bring that many rows as the page does, wait for its child, and ask what the page asks; nothing is left behind."""
    from tuner import check, data, findings

    path = folder / "rows.jsonl"
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(line + "\n" for line in lines(count, words))
    size, began = path.stat().st_size, time.monotonic()
    dataset = data.create(OWNER, "rows.jsonl", {"kind": "file"}, [(path, "rows.jsonl")])
    try:
        with Watch(dataset.folder) as reader:
            check.wait_for_head(dataset)
            data.settle(dataset)
            check.glimpse(dataset, look)
            preview_s = time.monotonic() - began
            _wait(lambda: check.progress(dataset))
        reading_s, began = time.monotonic() - began, time.monotonic()
        with Watch(dataset.folder) as checker:
            check.begin(dataset, look)
            _wait(lambda: check.progress(dataset))
        checking_s, began = time.monotonic() - began, time.monotonic()
        found = {its.name: its.rows for its in findings.find(check.rows_of(dataset, look), recipe)}
        asking_s = time.monotonic() - began
        return Result(
            count, size, preview_s, reading_s, checking_s, asking_s, reader.main, checker,
            found.get("duplicate", 0), found.get("near_duplicate", 0),
        )
    finally:
        check.stop(dataset)
        shutil.rmtree(dataset.folder, ignore_errors=True)  # gone already where the reading failed


def _wait(going: Callable[[], object]) -> None:
    while going() is not None:
        time.sleep(0.05)


def machine() -> str:
    """This machine and what is measured on it, in one line."""
    found = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    names = ", ".join(f"{name} {version(name)}" for name in ("numpy", "pyarrow", "datasets", "transformers", "tokenizers"))
    cores = len(os.sched_getaffinity(0))
    memory = psutil.virtual_memory().total / 2**30
    return f"{found[0] if found else platform.machine()}, {cores} cores, {memory:.0f} GiB; Python {platform.python_version()}, {names}"


def main() -> None:
    """Print the table, a line as soon as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default=",".join(map(str, ROWS)), help="sizes, with commas between them")
    sizes = sorted(int(size) for size in parser.parse_args().rows.split(","))
    with tempfile.TemporaryDirectory(prefix="tuner-bench-") as home:
        os.environ.update(TUNER_HOME=home, HF_HUB_OFFLINE="1")  # before huggingface_hub is imported, which keeps what it saw
        from tuner import check, encode, hub, scan  # noqa: F401
        from tuner.recipe import Recipe

        recipe = Recipe()
        look = scan.Look.of(recipe, hub.tokenizer_dir(recipe.base_model, "", None))
        tokenizer = encode.load_tokenizer(look.tokenizer_dir)  # as on a page that has shown a row before
        words = common_words(tokenizer)
        print(f"{time.strftime('%Y-%m-%d')}, {machine()}", flush=True)
        for head in _HEADS:
            print(_LINE.format(*head), flush=True)
        results = []
        for size in sizes:
            results.append(measure(size, words, look, recipe, Path(home)))
            print(_LINE.format(*results[-1].cells()), flush=True)
        first, last = results[0], results[-1]
        print(f"cost per row, {last.rows:,} / {first.rows:,}: {last.all_s / last.rows / (first.all_s / first.rows):.2f}")


if __name__ == "__main__":
    main()
