"""How quick the page stays: when it is served, whether it holds torch, and how soon it answers a poll beside a training.

    make bench-page
    python -m tests.bench.page --seconds 60 --runs 50 --events 2000

The real app.py serves, in a home with earlier runs; a visitor without a browser opens the page, presses Start and polls
once a second, by the requests that the browser's own client sends (join the queue, read the stream until the answer).
The training is the page's own child and uses both cores. The log of the run is as long as that of a run of so many steps.
"""

import argparse
import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

from tests.bench.machine import Quiet, describe
from tests.visitor import Visitor

ROOT = Path(__file__).resolve().parent.parent.parent
# Importing gradio is not ours to make quicker, so the clock begins when that is done; the rest is what app.py does.
_SERVE = """
import os, runpy, sys, time
sys.path.insert(0, os.getcwd())
began = time.time()
import gradio
print("imported", began, time.time(), flush=True)
runpy.run_path("app.py", run_name="__main__")
"""
SERVED_WITHIN_S, MEDIAN_MS, P95_MS = 3.0, 100, 500


class App:
    """The page in a process of its own."""

    def __init__(self, home: Path):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        environment = {
            **os.environ, "TUNER_HOME": str(home), "GRADIO_SERVER_PORT": str(self.port), "GRADIO_TEMP_DIR": str(home / "gradio"),
            # What app.py sets before it imports gradio, which happens earlier here.
            "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1", "GRADIO_ANALYTICS_ENABLED": "False", "USE_TORCH": "0",
        }
        self.process = subprocess.Popen([sys.executable, "-c", _SERVE], cwd=ROOT, stdout=subprocess.PIPE, env=environment, text=True)

    def wait(self) -> tuple[float, float]:
        """Seconds that importing gradio took, and from then until the page was served."""
        _, began, imported = self.process.stdout.readline().split()
        while True:
            try:
                if httpx.get(self.url, timeout=5).status_code == 200:
                    return float(imported) - float(began), time.time() - float(imported)
            except httpx.TransportError:
                pass
            if self.process.poll() is not None:
                raise SystemExit("The app ended instead of serving the page.")
            time.sleep(0.01)

    def holds(self, library: str) -> bool:
        """Whether the process has this library loaded, by any route."""
        return library in Path(f"/proc/{self.process.pid}/maps").read_text()

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


# What stood there before ------------------------------------------------------------------------------------------


def make_history(count: int, steps: int) -> None:
    """So many finished runs of the visitor, each with a log as long as that of so many steps."""
    from tuner import data
    from tuner import run as runs
    from tuner.cli import LOCAL_OWNER
    from tuner.home import write_json
    from tuner.recipe import Recipe

    records = [{"prompt": f"Say {number}", "completion": f"It is {number}"} for number in range(40)]
    dataset = data.keep(LOCAL_OWNER, "Earlier", records, {"kind": "paste"})
    first = runs.create(LOCAL_OWNER, Recipe(), dataset)
    (first.folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in log_of(steps)), "utf-8")
    write_json(first.folder / "done", {"state": "done"})
    for number in range(count - 1):
        shutil.copytree(first.folder, first.folder.parent / f"20200101-{number:06d}-00000000")


def log_of(steps: int) -> list[dict]:
    """The events of a run of so many steps, as the trainer writes them."""
    rng, events = random.Random(0), []
    for step in range(1, steps + 1):
        events.append({
            "t": 1.7e9 + step, "kind": "step", "step": step, "epoch": step / 100, "loss": 3 + rng.random(), "learning_rate": 2e-4,
            "grad_norm": rng.random(), "tokens": 800, "labelled_tokens": 600, "tokens_per_s": 500.5, "elapsed_s": step * 1.5,
            "eta_s": 100.0, "memory_gib": 1.234, "steps": steps,
        })
        if step % max(1, steps // 10) == 0:
            events.append({"t": 1.7e9 + step, "kind": "eval", "step": step, "loss": 3 + rng.random(), "perplexity": 20.0, "rows": 16, "best": True})
            events.append({"t": 1.7e9 + step, "kind": "sample", "step": step, "prompt": "A question", "text": "An answer. " * 15, "ended": True})
    return events


# The measurement --------------------------------------------------------------------------------------------------


def start_training(visitor: Visitor, home: Path, events: int, settings: dict):
    """Open the page, press Start, and wait until both cores train; then make the run's log as long as wanted."""
    from tuner import run as runs
    from tuner.cli import LOCAL_OWNER

    visitor.do("open_page")
    visitor.do("use_demo")
    visitor.do("reattach")
    for name, value in settings.items():
        visitor.put(f"knob-{name}", value)
    took = visitor.do("start", "click").took_s
    run = runs.mine(LOCAL_OWNER)[0]
    deadline = time.monotonic() + 120
    while not any(event["kind"] == "step" and event["step"] >= 2 for event in run.events()[0]):
        if run.state() not in runs.LIVE or time.monotonic() > deadline:
            raise SystemExit(f"The run is {run.state()}: {run.error() or runs.last_words(run)}")
        time.sleep(0.2)
    if events:
        with open(run.folder / "events.jsonl", "ab") as file:  # as if it had been resumed after so many steps
            file.write("".join(json.dumps(event) + "\n" for event in log_of(events)).encode())
    return run, took


def polls(visitor: Visitor, seconds: float, every_s: float = 1.0) -> list[float]:
    """Milliseconds of each poll, one a second, as the page's timer asks."""
    found, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        began = time.monotonic()
        found.append(visitor.do("poll").took_s * 1000)
        time.sleep(max(0.0, every_s - (time.monotonic() - began)))
    return found


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def rate_of(run) -> str:
    steps = [event for event in run.events()[0] if event["kind"] == "step" and event["memory_gib"] != 1.234]
    return f"{steps[-1]['tokens_per_s']:,.0f} tokens/s over its last steps"


def main() -> None:
    """Print the three figures, and whether they hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="how long to poll")
    parser.add_argument("--runs", type=int, default=50, help="earlier runs on the page")
    parser.add_argument("--events", type=int, default=2000, help="steps in the log of each run")
    parser.add_argument("--starts", type=int, default=3)
    asked = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1")
    from tuner import starter

    models, quiet = starter.prepare().parent, Quiet()
    with tempfile.TemporaryDirectory(prefix="tuner-bench-") as folder:
        home = Path(folder)
        os.environ["TUNER_HOME"] = folder
        (home / "models").symlink_to(models)
        if asked.runs:
            make_history(asked.runs, asked.events)
        print(f"{time.strftime('%Y-%m-%d')}, {describe(('gradio', 'torch'))}; {asked.runs} earlier runs of {asked.events} steps\n", flush=True)
        quiet.look()
        served = []
        for number in range(asked.starts):
            app = App(home)
            served.append(app.wait())
            if number < asked.starts - 1:
                app.stop()
        run = None
        try:
            visitor = Visitor(app.url)
            # Long enough that it still trains when the last poll is answered.
            run, start_s = start_training(visitor, home, asked.events, {"epochs": 50, "patience": 0, "evaluations": 1})
            found = polls(visitor, asked.seconds)
            rate, torch = rate_of(run), app.holds("libtorch")
        finally:
            if run is not None and (process := run.read("process")) and process["pid"] != app.process.pid:
                subprocess.run(["kill", str(process["pid"])], check=False)
            app.stop()
        after = statistics.median(its for _, its in served)
        print("| | measured | must |\n|---|---:|---:|")
        print(f"| served after the end of `import gradio`, s (that import: {served[-1][0]:.1f}) | {after:.2f} | {SERVED_WITHIN_S:.0f} |")
        print(f"| torch in the page's process | {'yes' if torch else 'no'} | no |")
        print(f"| poll beside a training, median, ms | {statistics.median(found):.0f} | {MEDIAN_MS} |")
        print(f"| poll beside a training, 95 %, ms | {percentile(found, 0.95):.0f} | {P95_MS} |")
        print(f"\n{len(found)} polls, slowest {max(found):.0f} ms; Start answered after {start_s:.2f} s; the training went at {rate}.")
        print(quiet.warning())


if __name__ == "__main__":
    main()
