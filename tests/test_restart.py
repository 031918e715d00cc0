"""The app is killed with one run going and two waiting, and started again: the queue is the same, and all three end."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import psutil
import pytest

from tests.small_run import events, notes, small_run
from tuner import lease
from tuner import run as runs
from tuner.child import PROJECT_ROOT

STEPS = 240
# The app as app.py serves it, in which three people press Start one after the other.
WITH_STARTS = """
import sys, app
from pathlib import Path
from tuner import run as runs
for folder in sys.argv[1:]:
    runs.start(runs.from_folder(Path(folder)))
app.serve()
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def serve(home, tmp_path):
    """Start an app on this home; what it leaves is ended."""
    started = []

    def start(*command: str) -> subprocess.Popen:
        port = str(free_port())
        env = {**os.environ, "GRADIO_SERVER_PORT": port, "OMP_NUM_THREADS": "1", "GRADIO_TEMP_DIR": str(tmp_path / "gradio")}
        with open(tmp_path / "app.log", "ab") as log:
            process = subprocess.Popen([sys.executable, *command], cwd=PROJECT_ROOT, env=env, stdout=log, stderr=log)
        process.url = f"http://127.0.0.1:{port}"
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            kill_all(process)


def kill_all(process: subprocess.Popen) -> None:
    """As a container goes: no process of it has time for a last word."""
    its = psutil.Process(process.pid)
    for one in [its, *its.children(recursive=True)]:
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait(10)


def until(true, what: str, seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def test_the_app_is_killed_with_one_run_going_and_two_waiting(base, home, serve, tmp_path):
    settings = dict(evaluations=3, batch_size=2, patience=0, schedule="constant")
    going, second, third = (
        small_run(base, owner=owner, max_steps=steps, **settings) for owner, steps in (("cleo", STEPS), ("anna", 2), ("bob", 2))
    )
    order = [going.id, second.id, third.id]
    app = serve("-c", WITH_STARTS, *(str(run.folder) for run in (going, second, third)))
    until(lambda: list(going.folder.glob("checkpoints/checkpoint-*")), (tmp_path / "app.log").read_text)
    assert [run.state() for run in (going, second, third)] == ["training", "waiting", "waiting"]
    before = [(its.run, its.round, its.asked) for its in lease.tickets()]
    assert [its[0] for its in before] == order
    its_child = psutil.Process(going.read("process")["pid"])
    kill_all(app)
    until(lambda: not its_child.is_running() or its_child.status() == psutil.STATUS_ZOMBIE, "the training outlived its machine")
    reached = max(event["step"] for event in events(going, "step"))
    assert [run.state() for run in (going, second, third)] == ["interrupted"] * 3 and lease.waiting() == []
    assert [its.run for its in lease.left_behind()] == order

    app = serve("app.py")
    until(lambda: lease.waiting() == order, "the queue is not what it was")
    assert [(its.run, its.round, its.asked) for its in lease.tickets()] == before
    wait_for_page(app)
    until(lambda: all(run.state() not in runs.LIVE for run in (going, second, third)), "they did not all end", 120)
    log = (tmp_path / "app.log").read_text()
    assert [run.state() for run in (going, second, third)] == ["done"] * 3, [log, *(run.error() for run in (going, second, third))]
    assert "Going on from the checkpoint of step" in notes(going) and "goes on by itself" in notes(going)
    assert all("keeps its place" in notes(run) for run in (second, third))
    steps = [event["step"] for event in events(going, "step")]
    assert steps.count(1) == 1 and max(steps) == STEPS > reached
    first_steps = [events(run, "step")[0]["t"] for run in (second, third)]
    assert events(going, "step")[-1]["t"] < first_steps[0] < first_steps[1]
    until(lambda: lease.waiting() == [], "a place was left in the queue", 20)  # `done` is there a moment before its process is gone
    assert lease.left_behind() == []
    app.send_signal(signal.SIGTERM)
    app.wait(20)


def wait_for_page(app: subprocess.Popen) -> None:
    """The page is up seconds after the queue is."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            urllib.request.urlopen(app.url, timeout=2).read()
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError("the app did not come up in a minute")
