"""A run is a folder: its state, its owner, its process, and its turn on the machine."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from tests.small_run import events, losses, notes, small_run
from tuner import child, data, lease
from tuner import run as runs
from tuner.errors import UserError
from tuner.home import write_json
from tuner.recipe import Recipe
from tuner.ui import run_view

RECORDS = [{"prompt": f"Say {n}", "completion": f"It is {n}"} for n in range(5)]


def new_run(owner="anna", **settings) -> runs.Run:
    """A run whose base is on this machine, or so it says."""
    run = runs.create(owner, Recipe(**settings), data.keep(owner, "Numbers", RECORDS, {"kind": "paste"}))
    write_json(run.folder / "base.json", {"id": "test/small", "dir": str(run.folder)})
    return run


def wait_until(true, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


def buttons(run) -> list[dict]:
    """Resume and Train longer, as the page shows them of the run."""
    shown = dict(zip(run_view.PARTS, run_view.of(run)))
    return [shown["resume"], shown["longer_row"]]


class Child:
    """Stands for a training process that lives until it is told to end."""

    def __init__(self, code: int = 0):
        self.code, self.ended = code, threading.Event()

    def wait(self) -> int:
        assert self.ended.wait(30)
        return self.code


# State ------------------------------------------------------------------------------------------------------------


def dead_process() -> dict:
    return {"pid": os.getpid(), "started": psutil.Process().create_time() - 100}  # the pid was given to another since


@pytest.mark.parametrize("word", ["waiting", "rehearsing", "training", "checking"])
def test_a_live_run_s_state_is_its_last_status(home, word):
    run = new_run()
    assert run.state() == "new"
    write_json(run.folder / "process.json", lease.this_process())
    assert run.state() == "waiting"
    for state in ("waiting", word):
        run.log("status", state=state, message="")
        run.log("step", step=1)
    assert run.state() == word
    write_json(run.folder / "process.json", dead_process())
    assert run.state() == "interrupted"


@pytest.mark.parametrize("word", ["done", "stopped"])
def test_done_says_how_the_run_ended_whatever_else_is_there(home, word):
    run = new_run()
    write_json(run.folder / "process.json", lease.this_process())
    write_json(run.folder / "done", {"state": word})
    assert run.state() == word


def test_an_error_is_a_failed_run(home):
    run = new_run()
    write_json(run.folder / "process.json", lease.this_process())
    (run.folder / "error.txt").write_text("The gradient stopped being a number at step 3.")
    assert run.state() == "failed" and run.error().startswith("The gradient")


def test_a_process_that_is_a_zombie_is_not_alive(home):
    process = subprocess.Popen(["true"])
    wait_until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE)
    assert not lease.is_alive({"pid": process.pid, "started": psutil.Process(process.pid).create_time()})
    process.wait()
    assert not lease.is_alive({"pid": process.pid, "started": time.time()})
    assert not lease.is_alive(None) and not lease.is_alive({})


def test_a_child_that_computes_for_minutes_gives_way_to_the_page(home):
    process = child.spawn("timeit", "-n1", "-r1", "import time; time.sleep(60)", folder=home, log=home / "log.txt")
    try:
        assert psutil.Process(process.pid).nice() == min(19, psutil.Process().nice() + child.NICE)
    finally:
        process.kill()
        process.wait()


def test_half_a_line_waits_for_its_end(home):
    run = new_run()
    run.log("note", message="Schöne Grüße")
    whole = (run.folder / "events.jsonl").read_bytes()
    for cut in (1, len(whole) // 2, whole.index("ö".encode()) + 1, len(whole) - 1):
        (run.folder / "events.jsonl").write_bytes(whole + whole[:cut])
        found, place = run.events()
        assert len(found) == 1 and place == len(whole)
        assert run.events(place) == ([], place)
        (run.folder / "events.jsonl").write_bytes(whole + whole)
        assert [event["message"] for event in run.events(place)[0]] == ["Schöne Grüße"]


@pytest.mark.parametrize("cut", ["middle", "inside a letter"])
def test_after_a_crash_the_next_event_is_not_lost_in_the_half_line(home, cut):
    run = new_run()
    run.log("note", message="Grüße")
    whole = (run.folder / "events.jsonl").read_bytes()
    half = whole[: 9 if cut == "middle" else whole.index("ü".encode()) + 1]
    (run.folder / "events.jsonl").write_bytes(whole + half)
    runs.claim(run)
    run.log("status", state="rehearsing", message="")
    assert [event["kind"] for event in run.events()[0]] == ["note", "status"] and run.state() == "rehearsing"


# Owners -----------------------------------------------------------------------------------------------------------


def test_another_owner_cannot_find_a_run(home):
    run = new_run("anna")
    assert runs.find("anna", run.id) == run and runs.mine("anna") == [run]
    assert runs.mine("bert") == [] and runs.mine("nobody") == []
    for owner, run_id in (("bert", run.id), ("bert", f"../anna/{run.id}"), ("anna", ".."), ("anna", ""), ("anna", None)):
        with pytest.raises(UserError, match="is not among yours|is not known here"):
            runs.find(owner, run_id)
    for owner in ("../runs/anna", "", ".", "a/b", "-rf"):
        with pytest.raises(UserError, match="is not known here"):
            runs.mine(owner)
    with pytest.raises(UserError, match="is not a run's folder under"):
        runs.from_folder(home / "runs" / "anna")


def test_another_owner_s_dataset_makes_no_run(home):
    dataset = data.keep("anna", "Numbers", RECORDS, {"kind": "paste"})
    with pytest.raises(UserError, match="is not among yours"):
        runs.create("bert", Recipe(), dataset)
    assert runs.mine("bert") == []


def test_a_run_s_folder_is_for_its_account_alone(home):
    run = new_run()
    assert run.folder.stat().st_mode & 0o777 == 0o700 and runs.Run.place_of("anna").stat().st_mode & 0o777 == 0o700


def test_a_run_is_renamed(home):
    run = new_run()
    assert run.title == "Numbers"
    run.rename("  My \n headlines ")
    assert runs.find("anna", run.id).title == "My headlines"
    for title in ("", " \n", "x" * 121):
        with pytest.raises(UserError, match="A name has 1 to 120 characters; this one has"):
            run.rename(title)
    assert run.title == "My headlines"


def test_a_run_is_deleted_but_not_while_it_is_going(home):
    run = new_run()
    runs.claim(run)
    with pytest.raises(UserError, match="still going. Stop it first"):
        run.delete()
    assert (run.folder / "recipe.toml").is_file()
    write_json(run.folder / "process.json", dead_process())
    run.delete()
    assert not run.folder.exists() and runs.mine("anna") == []


def test_an_interrupted_run_whose_disk_takes_nothing_says_so(home, monkeypatch):
    run = new_run()
    write_json(run.folder / "process.json", {"pid": 2**22 + 1, "started": 0.0, "boot": "another"})
    assert run.state() == "interrupted" and run.cannot_write() == ""
    assert "Resume goes on from the last checkpoint" in run_view.of(run)[0] and "read-only" not in run_view.of(run)[0]

    monkeypatch.setattr(os, "access", lambda path, mode: (path, mode) != (run.folder, os.W_OK))
    assert "Its folder is read-only, so it could not say why." in run_view.of(run)[0]


def test_only_a_live_run_is_stopped(home):
    run = new_run()
    with pytest.raises(UserError, match="This run is new, so there is nothing to stop"):
        run.ask_stop()
    runs.claim(run)
    run.ask_stop()
    assert run.stop_asked()


# Starting ---------------------------------------------------------------------------------------------------------


def test_start_pressed_twice_starts_one_process(home, monkeypatch):
    child, spawned, fetching = Child(), [], threading.Event()

    def spawn(run):
        spawned.append(run)
        return child

    def fetch(run, token):
        assert fetching.wait(30)  # the base is still on its way while somebody clicks again

    monkeypatch.setattr(runs, "spawn", spawn)
    monkeypatch.setattr(runs, "fetch_base", fetch)
    run = new_run()
    threads, refused = [], []

    def press():
        try:
            threads.append(runs.start(run))
        except UserError as error:
            refused.append(str(error))

    presses = [threading.Thread(target=press) for _ in range(5)]
    for thread in presses:
        thread.start()
    for thread in presses:
        thread.join()
    fetching.set()
    wait_until(lambda: spawned)
    press()
    child.ended.set()
    threads[0].join(30)
    assert len(threads) == len(spawned) == 1 and len(refused) == 5
    assert set(refused) == {"This run has been started already. Watch it here, or stop it first."}


def test_a_done_run_is_not_started_again(home):
    run = new_run()
    write_json(run.folder / "done", {"state": "done"})
    with pytest.raises(UserError, match="This run is done. Start a new one"):
        runs.start(run)


def test_a_base_that_cannot_be_had_is_a_failed_run_in_words(home, monkeypatch):
    def fetch(run, token):
        raise UserError("someone/base is gated. Accept its terms.")

    monkeypatch.setattr(runs, "fetch_base", fetch)
    run = new_run()
    runs.start(run).join(30)
    assert run.state() == "failed" and run.error() == "someone/base is gated. Accept its terms."


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_fault_of_ours_before_training_does_not_leave_the_run_waiting(home, monkeypatch):
    monkeypatch.setattr(runs, "fetch_base", lambda run, token: {}["no such key"])
    run = new_run()
    runs.start(run).join(30)
    assert run.state() == "failed" and run.error() == "The run could not be started (KeyError). Try again."


def with_command(monkeypatch, tmp_path: Path, script: str) -> None:
    """Let the training child be this shell script."""
    command = tmp_path / "command"
    command.write_text(f"#!/bin/sh\n{script}\n")
    command.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(command))


def test_a_child_that_dies_is_a_failed_run_with_its_last_words(home, monkeypatch, tmp_path):
    with_command(monkeypatch, tmp_path, f'for n in $(seq 20); do echo "line $n of {home}/secret place" >&2; done; exit 3')
    run = new_run()
    runs.start(run).join(30)
    assert run.state() == "failed"
    first, *words = run.error().splitlines()
    assert first == "The training ended with exit code 3. Its last words:"
    assert words == [f"line {n} of ~/secret place" for n in range(13, 21)]


@pytest.mark.parametrize("ending", ["kill -KILL $$", "kill -TERM $$", "exit 143"])
def test_a_child_ended_from_outside_is_an_interrupted_run(home, monkeypatch, tmp_path, ending):
    with_command(monkeypatch, tmp_path, ending)
    run = new_run()
    runs.start(run).join(30)
    assert run.state() == "interrupted" and run.error() == ""
    assert "ended from outside. Resume to go on from the last checkpoint" in notes(run)


def test_the_child_gets_a_folder_and_no_secret(home, monkeypatch, tmp_path):
    secrets = {"HF_TOKEN": "hf_canary", "HUGGING_FACE_HUB_TOKEN": "hf_canary", "OAUTH_CLIENT_SECRET": "canary",
               "AWS_SECRET_ACCESS_KEY": "canary", "HF_ENDPOINT": "http://user:canary@example.com"}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    kept = child.environment()
    assert "canary" not in str(kept) and not set(secrets) & set(kept)
    assert kept["HF_HUB_OFFLINE"] == "1" and kept["TUNER_HOME"] == str(home)


def test_a_real_child_is_killed_and_resumed(base, home, monkeypatch):
    """Once through `python -m tuner train DIR`: no token reaches it, killed it is interrupted, started again it goes on."""
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    run = small_run(base, max_steps=3000, schedule="constant", evaluations=100, batch_size=2, patience=0)
    thread = runs.start(run, "hf_visitor")
    wait_until(lambda: (run.read("process") or {}).get("pid") != os.getpid())
    pid = run.read("process")["pid"]
    wait_until(lambda: str(run.folder).encode() in Path(f"/proc/{pid}/cmdline").read_bytes())
    command, environment = Path(f"/proc/{pid}/cmdline").read_bytes(), Path(f"/proc/{pid}/environ").read_bytes()
    command_line = command.rstrip(b"\0").split(b"\0")
    assert command_line[1:3] == [b"-m", b"tuner.child"] and command_line[5:] == [b"tuner", b"train", str(run.folder).encode()]
    assert b"hf_" not in command + environment and b"TUNER_HOME" in environment
    assert os.getsid(pid) == pid  # a session of its own: what ends the app does not end it
    with pytest.raises(UserError, match="started already"):
        runs.start(run)
    wait_until(lambda: run.state() == "training" and list(run.folder.glob("checkpoints/checkpoint-*")))
    with pytest.raises(UserError, match="still going"):
        run.delete()
    assert [its["visible"] for its in buttons(run)] == [False, False]
    os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    wait_until(lambda: run.state() == "interrupted")
    assert time.monotonic() - killed < 10 and not run.adapter_dir.exists()
    assert [its["visible"] for its in buttons(run)] == [True, True], "offered for resume, and to train longer"
    thread.join(30)
    before = len(losses(run))
    assert 0 < before < 3000

    thread = runs.start(run)
    wait_until(lambda: "Going on from the checkpoint of step" in notes(run) and run.state() == "training" and len(losses(run)) > before)
    run.ask_stop()
    thread.join(60)
    assert run.state() == "stopped" and run.error() == "" and [its["visible"] for its in buttons(run)] == [True, True]
    steps = [event["step"] for event in events(run, "step")]
    # Killed right behind a checkpoint it does nothing again; else at most what came after it, and never the beginning.
    again = [steps[n] for n in range(1, len(steps)) if steps[n] <= steps[n - 1]]
    assert steps.count(1) == 1 and len(again) <= 1 and len(losses(run)) == max(steps) > before
    files = [path for path in home.rglob("*") if path.is_file()]
    assert not [path for path in files if b"hf_canary" in path.read_bytes() or b"hf_visitor" in path.read_bytes()]


# The lease --------------------------------------------------------------------------------------------------------

HOLDER = """
import sys
from tuner import lease
with lease.hold(sys.argv[1], lambda ahead: print("ahead", ahead, flush=True), lambda: False, 0.05) as held:
    print("held", held, flush=True)
    sys.stdin.readline()
print("let go", flush=True)
"""


@pytest.fixture
def holder(home):
    """Start a process that waits for the machine, holds it, and lets it go at a line."""
    started = []

    def start(name: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
            cwd=child.PROJECT_ROOT,
        )
        watch = threading.Timer(30, process.kill)  # a wait for ever is a failure, not a test without end
        watch.daemon = True
        watch.start()
        started.append((process, watch))
        return process

    yield start
    for process, watch in started:
        watch.cancel()
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def test_one_run_at_a_time_first_come_first_served(holder):
    first = holder("run-one")
    assert first.stdout.readline() == "held True\n"
    second = holder("run-two")
    assert second.stdout.readline() == "ahead 1\n"
    third = holder("run-three")
    assert third.stdout.readline() == "ahead 2\n"
    assert lease.waiting() == ["run-one", "run-two", "run-three"]
    first.stdin.write("\n")
    assert first.stdout.readline() == "let go\n"
    assert second.stdout.readline() == "held True\n" and third.stdout.readline() == "ahead 1\n"
    second.kill()  # the machine is free at once, and its ticket does not block
    assert third.stdout.readline() == "held True\n"
    assert lease.waiting() == ["run-three"]


def test_a_wait_can_be_given_up(holder):
    first = holder("run-one")
    assert first.stdout.readline() == "held True\n"
    told = []
    with lease.hold("run-two", told.append, lambda: bool(told), 0.01) as held:
        assert held is False
    assert told == [1] and lease.waiting() == ["run-one"]


def test_a_run_that_waits_says_so_and_is_stopped_there(base, holder, quick):
    from tuner import train

    first = holder("run-one")
    assert first.stdout.readline() == "held True\n"
    run = small_run(base)
    runs.claim(run)
    (run.folder / "stop").write_text("asked")
    assert train.main(run) == 1
    assert "stopped while it waited for its turn" in run.error() and not events(run, "step")
    (run.folder / "stop").unlink()
    quick.setattr(run.__class__, "stop_asked", lambda self: bool(events(self, "status")))
    assert train.main(run) == 1
    assert events(run, "status")[-1]["message"] == "1 run ahead on this machine"
    assert json.loads((run.folder / "process.json").read_text()) == lease.this_process()
