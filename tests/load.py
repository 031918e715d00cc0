"""Many visitors on the three tabs while a run trains: how soon a click is answered, and whether anything leaks or is mixed up.

    make load
    python -m tests.load --visitors 50 --minutes 10

The real app serves on loopback; each visitor speaks to it as the page's own client does, in rounds: open the page, paste
rows of their own, look at them, ask for a quote, look at the run, chat with the base model. A round is the same each time
and begins a new visit, as when somebody reloads the page.
"""

import argparse
import math
import os
import random
import re
import sys
import tempfile
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.served import Served
from tests.visitor import Answer, QueueFull, Visitor

# What `make load` holds the page to: clicks, whole answers of the chat, memory.
P95_S, WHOLE_P95_S, FLAT = 1.0, 30.0, 0.10
_MARK = re.compile(rb"mark-[a-z]{12}")
# Grow by design: the log of the run that goes on, parsed as far as it came; the threads that answer, up to their limits;
# timers of the event loop, of which each ends within seconds; what is said of a click that is being answered right now.
GROWS = re.compile(r"tuner\.events\._known|thread AnyIO worker thread$|\._loop\.|\.request\b|event_ids_to_events\[\*\]\.")
MOST_WORKERS = 80  # AnyIO's own forty, and Gradio's
# Beside containers: what the process as a whole has.
WHOLE = ("rss_mib", "threads", "files", "objects")


@dataclass
class Seen:
    """What a visitor met.

    Args:
        took_s: handler -> seconds of each click until its first answer was here.
        whole_s: seconds of each chat answer from Send to its last word, which is the machine's pace and no click's.
        wrong: what must not happen, in words.
        full: how often the page said that its queue is full.
    """

    took_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    whole_s: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    full: int = 0


class Person:
    """Somebody with rows of their own, who comes back with the same browser; a word marks all that is theirs."""

    def __init__(self, url: str, number: int, base: str, think_s: float):
        self.url, self.base, self.think_s, self.seen = url, base, think_s, Seen()
        rng = random.Random(number)
        self.mark = "mark-" + "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=12))
        self.browser_id, self.rng = f"{rng.getrandbits(128):032x}", rng
        self.rows = "".join(f'{{"prompt": "What is {self.mark} {n}?", "completion": "It is {self.mark} of {n}."}}\n' for n in range(30))

    def _received(self, body: bytes) -> None:
        others = set(_MARK.findall(body)) - {self.mark.encode()}
        if others:
            self.seen.wrong.append(f"{self.mark} was sent what belongs to {sorted(others)}")

    def _click(self, visitor: Visitor, name: str, target: str | None = None) -> list:
        time.sleep(self.rng.uniform(0.5, 1.5) * self.think_s)
        its = self._do(visitor, name, target)
        self.seen.took_s[name].append(its.first_s)
        return its.data

    def _do(self, visitor: Visitor, name: str, target: str | None = None) -> Answer:
        for _ in range(20):
            try:
                return visitor.do(name, target)
            except QueueFull:  # said in words, and the next try may do
                self.seen.full += 1
                time.sleep(1.0)
        return visitor.do(name, target)

    def _expect(self, what: list, where: str) -> None:
        if self.mark not in str(what):
            self.seen.wrong.append(f"{self.mark}: {where} does not show its own: {str(what)[:200]}")

    def round(self) -> None:
        """One visit."""
        try:
            with httpx.Client(timeout=120) as client:
                self._visit(Visitor(self.url, self.browser_id, self._received, client))
        except Exception as error:  # whatever it is, the page was to give an answer
            self.seen.wrong.append(f"{self.mark}: {type(error).__name__}: {str(error)[:300]}")

    def _visit(self, visitor: Visitor) -> None:
        visitor.put("knob-base_model", self.base)
        self._click(visitor, "open_page")
        self._click(visitor, "reattach")
        visitor.put("pasted", self.rows)
        self._expect(self._click(visitor, "read_pasted"), "what was pasted")
        visitor.put("search-rows", f"{self.mark} of 7")
        self._expect(self._click(visitor, "choose_rows", "search-rows"), "what was searched for")
        visitor.put("search-rows", "")
        self._expect(self._click(visitor, "turned", "next-row"), "the next row")
        self._click(visitor, "requote")
        visitor.put("knob-learning_rate", 1e-3)
        self._click(visitor, "requote")
        self._click(visitor, "poll")
        self._click(visitor, "refresh")
        self._click(visitor, "meet")
        visitor.put("longest", 24)  # else fifty conversations on two cores are all that is measured
        visitor.put("message", f"Tell me of {self.mark}")
        self._expect(self._click(visitor, "say"), "the chat")  # what Send does first: the message stands there, and what it waits for is told
        began = time.perf_counter()
        self._expect(self._do(visitor, "answer").data, "the answer")
        self.seen.whole_s.append(time.perf_counter() - began)
        self._click(visitor, "poll")


def start_training(url: str, base: str) -> Visitor:
    """Somebody whose run trains until the app ends."""
    visitor = Visitor(url, "f" * 32)
    visitor.put("knob-base_model", base)
    visitor.do("open_page")
    visitor.do("use_demo")
    for name, value in {"epochs": 100, "patience": 0, "evaluations": 1, "learning_rate": 1e-5}.items():
        visitor.put(f"knob-{name}", value)
    visitor.do("start", "click")
    deadline = time.monotonic() + 120
    while "state-training" not in str(visitor.shown("run-status")):
        if time.monotonic() > deadline:
            raise AssertionError(f"The run does not train: {visitor.shown('run-status')}")
        time.sleep(0.5)
        visitor.do("poll")
    return visitor


@dataclass
class Outcome:
    """What was measured.

    Args:
        seen: of each visitor.
        held: what the app's process held before the first batch and after each.
        trained: whether the run trained to the end.
    """

    seen: list[Seen]
    held: list[dict[str, int]]
    trained: bool

    @property
    def took_s(self) -> dict[str, list[float]]:
        """handler -> seconds of all visitors' clicks."""
        found = defaultdict(list)
        for seen in self.seen:
            for name, took in seen.took_s.items():
                found[name] += took
        return found

    @property
    def whole_s(self) -> list[float]:
        return [took for seen in self.seen for took in seen.whole_s]

    @property
    def wrong(self) -> list[str]:
        return [words for seen in self.seen for words in seen.wrong]

    @property
    def p95_s(self) -> float:
        return percentile([took for its in self.took_s.values() for took in its], 0.95)

    def grown(self) -> dict[str, tuple[int, int]]:
        """The containers that are longer after the last batch than after the one before.

        What leaks with each click or visit adds one for every visitor; a few more or less are connections that are open now.
        """
        before, after = self.held[-2:]
        return {
            way: (before.get(way, 0), count) for way, count in after.items()
            if way not in WHOLE and not GROWS.search(way) and count - before.get(way, 0) >= max(2, len(self.seen) // 2)
        }

    def table(self) -> str:
        lines = ["| click | answers | median, ms | 95 %, ms | slowest, ms |", "|---|---:|---:|---:|---:|"]
        for name, took in sorted({**self.took_s, "all": [its for some in self.took_s.values() for its in some]}.items()):
            lines.append(f"| {name} | {len(took):,} | {percentile(took, 0.5) * 1e3:,.0f} | {percentile(took, 0.95) * 1e3:,.0f} | {percentile(took, 1) * 1e3:,.0f} |")
        whole = self.whole_s
        lines += ["", f"Chat answers, from Send to the last word: {len(whole):,}, median {percentile(whole, 0.5):.1f} s, 95 % {percentile(whole, 0.95):.1f} s, slowest {percentile(whole, 1):.1f} s"]
        lines += ["", "| after batch | " + " | ".join(WHOLE) + " |", "|---|" + "---:|" * len(WHOLE)]
        lines += [f"| {number} | " + " | ".join(f"{its[name]:,}" for name in WHOLE) + " |" for number, its in enumerate(self.held)]
        return "\n".join([*lines, "", f"queue full: {sum(its.full for its in self.seen)}; wrong: {len(self.wrong)}"])


def percentile(values: list[float], share: float) -> float:
    """NaN where there are none: nothing is held to be good by them."""
    ordered = sorted(values) or [math.nan]
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def go(app: Served, visitors: int, batches: int, rounds: int, base: str, think_s: float = 0.5, on_batch=lambda number: None, most_s: float = math.inf) -> Outcome:
    """So many visitors, each so many rounds a batch, while a run trains.

    Args:
        batches: the most; three at least, then none is begun after `most_s` seconds.
        base: the base model that is trained and chatted with, by its Hub id.
        think_s: about how long a visitor waits between two clicks.
    """
    trainer = start_training(app.url, base)
    ended = threading.Event()

    def watch() -> None:  # as that person's page does
        while not ended.wait(1.0):
            trainer.do("poll")

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    people = [Person(app.url, number, base, think_s) for number in range(visitors)]
    held, began = [app.holds()], time.monotonic()
    try:
        with ThreadPoolExecutor(visitors) as pool:
            for number in range(batches):
                list(pool.map(lambda person: [person.round() for _ in range(rounds)], people))
                held.append(_settled(app, held[-1]["files"]))
                on_batch(number)
                if number >= 2 and time.monotonic() - began >= most_s:
                    break
    finally:
        ended.set()
        watcher.join()
    trainer.do("poll")
    return Outcome([person.seen for person in people], held, "state-training" in str(trainer.shown("run-status")))


def _settled(app: Served, files: int) -> dict[str, int]:
    """What the process holds once a batch's connections are closed, for which it has five seconds: what leaks stays."""
    for _ in range(10):
        time.sleep(0.5)
        holds = app.holds()
        if holds["files"] <= files:
            break
    return holds


def main() -> int:
    """Print the tables, and whether they hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--visitors", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--think", type=float, default=3.0, help="seconds that a visitor looks at an answer before the next click")
    asked = parser.parse_args()
    from tuner import starter
    from tuner.recipe import STARTER_MODEL

    clicks = 12
    batches = max(3, round(asked.minutes * 60 / (clicks * asked.think)))
    with tempfile.TemporaryDirectory(prefix="tuner-load-") as folder:
        os.environ["TUNER_HOME"] = f"{folder}/tuner"
        starter.prepare()
        # A bound on visits that is reached within two batches; from then on nothing may grow.
        with Served(Path(folder), shared=True, sessions=2 * asked.visitors, waits_s=None, HF_HUB_OFFLINE="1") as app:
            began = time.monotonic()
            told = lambda number: print(f"{time.monotonic() - began:.0f} s: batch {number + 1} of {batches}", file=sys.stderr, flush=True)  # noqa: E731
            found = go(app, asked.visitors, batches, 1, STARTER_MODEL, asked.think, told, asked.minutes * 60)
            said = app.log.read_text()[-3000:] if found.wrong else ""
    print(f"{asked.visitors} visitors, {(time.monotonic() - began) / 60:.1f} minutes\n\n{found.table()}\n")
    warm, last = found.held[max(1, len(found.held) // 5)]["rss_mib"], found.held[-1]["rss_mib"]
    must = {
        "no error but a full queue, no mix-up": not found.wrong,
        f"95 % of clicks are answered within {P95_S:.0f} s ({found.p95_s:.2f} s)": found.p95_s < P95_S,
        f"95 % of chat answers are whole within {WHOLE_P95_S:.0f} s ({percentile(found.whole_s, 0.95):.1f} s)": percentile(found.whole_s, 0.95) < WHOLE_P95_S,
        f"memory is flat within {FLAT:.0%} ({warm:,} to {last:,} MiB)": abs(last - warm) <= FLAT * warm,
        "no container grew in the last batch": not found.grown(),
        "the run trained all the while": found.trained,
    }
    print("\n".join(f"{'yes' if holds else 'NO '}  {words}" for words, holds in must.items()))
    for words in [*found.wrong[:10], *[f"{way}: {a} -> {b}" for way, (a, b) in found.grown().items()][:10]]:
        print(f"     {words}")
    if said:
        print(f"\nThe app's log ends with:\n{said}")
    return 0 if all(must.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
