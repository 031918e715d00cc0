"""What a run survives: kills at any moment, a SIGTERM, an app that restarts, disks that take no more; and training longer."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.small_run import adapter_hash, events, losses, notes, small_run
from tuner import checkpoints, lease, report, train
from tuner import run as runs
from tuner.errors import UserError
from tuner.home import write_json

ROOT = Path(__file__).resolve().parent.parent


def test_twelve_kills_at_random_moments_change_nothing():
    done = subprocess.run([sys.executable, "-m", "tests.torture", "--kills", "12", "--seed", "1"], cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "12 of 12 resumed" in done.stdout


# A SIGTERM ----------------------------------------------------------------------------------------------------------


def term_when(patch, owner, name: str, at: int):
    """Let this process get a SIGTERM just before the `at`-th call of a method."""
    plain, calls = getattr(owner, name), []

    def asked(*arguments, **named):
        calls.append(1)
        if len(calls) == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(*arguments, **named)

    patch.setattr(owner, name, asked)


@pytest.fixture
def signals(monkeypatch):
    """The signal's own answer is put back, and nothing of one test is asked of the next."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(train._leaving, "is_asked", False)
    yield
    signal.signal(signal.SIGTERM, before)
    train._leaving.is_held = train._leaving.is_asked = False


@pytest.mark.parametrize(
    "name, at, kept",
    [("gradients", 5 + 2, 4), ("log", 6, 6), ("_save_checkpoint", 2, 4), ("_note", 3, 4)],
    ids=["in a step", "while a step is taken over", "while saving", "after measuring"],
)
def test_a_sigterm_keeps_the_last_whole_step_and_changes_nothing(base, home, quick, signals, name, at, kept):
    whole = small_run(base)
    train.train(whole)
    run = small_run(base)
    with pytest.MonkeyPatch.context() as patch:
        term_when(patch, train.Tuning, name, at)
        runs.claim(run)
        with pytest.raises(SystemExit) as end:
            train.main(run)
    assert end.value.code == 143 and checkpoints.steps(run.folder / "checkpoints")[-1] == kept
    train._leaving.is_held = train._leaving.is_asked = False
    train.train(run)
    assert losses(run) == losses(whole) and adapter_hash(run.adapter_dir) == adapter_hash(whole.adapter_dir)
    measured = lambda its: {event["step"]: event["loss"] for event in events(its, "eval")}  # noqa: E731
    assert measured(run) == measured(whole)
    first = [event["step"] for event in events(run, "step")]
    assert first == sorted(set(first)), "a step was done twice"


def test_patience_that_ran_out_in_the_last_moment_is_remembered(base, home, quick, signals):
    """The machine goes away between the last measurement and the end that it decided."""
    settings = dict(learning_rate=5e-2, patience=1, epochs=8.0, evaluations=16)
    whole = small_run(base, **settings)
    train.train(whole)
    assert "training ends early" in notes(whole)
    stopped_at = losses(whole)
    run = small_run(base, **settings)
    with pytest.MonkeyPatch.context() as patch:
        saved = train.Tuning._save_checkpoint

        def gone(self, *_):
            if self.is_over:
                os.kill(os.getpid(), signal.SIGTERM)
            return saved(self, *_)

        patch.setattr(train.Tuning, "_save_checkpoint", gone)
        runs.claim(run)
        with pytest.raises(SystemExit):
            train.main(run)
    train._leaving.is_held = train._leaving.is_asked = False
    train.train(run)
    assert losses(run) == stopped_at and adapter_hash(run.adapter_dir) == adapter_hash(whole.adapter_dir)


def test_a_run_killed_in_its_report_after_patience_ran_out_takes_no_further_step(base, home, quick):
    settings = dict(learning_rate=5e-2, patience=1, epochs=8.0, evaluations=16)
    run = small_run(base, **settings)
    with pytest.MonkeyPatch.context() as patch:
        def gone(*_, **__):
            raise KeyboardInterrupt

        patch.setattr(report, "make", gone)
        with pytest.raises(KeyboardInterrupt):
            train.train(run)
    assert "training ends early" in notes(run)
    before = losses(run)
    train.train(run)
    assert losses(run) == before and run.read("done")["state"] == "done"


# Out of time --------------------------------------------------------------------------------------------------------


def test_a_run_out_of_time_keeps_its_best_version_and_is_done_and_can_be_trained_longer(base, home, quick, monkeypatch):
    monkeypatch.setenv("TUNER_RUN_MINUTES", "1")
    run = small_run(base, evaluations=2)
    runs.claim(run)
    assert run.read("limit") == {"seconds": 60.0}
    with pytest.MonkeyPatch.context() as patch:
        plain = train.telling.Meter.log_step

        def slow(self, step, *rest):
            self.elapsed_s += 30 if step == 3 else 15 if step == 4 else 0
            self.elapsed_s += 20 if step == 5 else 0
            plain(self, step, *rest)

        patch.setattr(train.telling.Meter, "log_step", slow)
        assert train.main(run) == 0
    assert run.read("done") == {"state": "done"} and run.read("report") and run.adapter_dir.is_dir()
    assert 6 not in run.read("plan")["evaluate_at"] and 6 in [event["step"] for event in events(run, "eval")]
    assert len(losses(run)) == 6 and "(1 min) is over, so training ends at step 6 of 8" in notes(run)
    taken = []
    monkeypatch.setattr(runs, "start", lambda its, token=None: taken.append(its.read("limit")["seconds"]))
    runs.longer(run, 1.0)
    assert taken[0] > 60 + 65, "what it has had does not count"


def test_a_run_killed_in_its_report_after_its_time_takes_no_further_step(base, home, quick):
    run = small_run(base)
    write_json(run.folder / "limit.json", {"seconds": 0.0})
    with pytest.MonkeyPatch.context() as patch:
        def gone(*_, **__):
            raise KeyboardInterrupt

        patch.setattr(report, "make", gone)
        with pytest.raises(KeyboardInterrupt):
            train.train(run)
    assert len(losses(run)) == 1
    train.train(run)
    assert len(losses(run)) == 1 and run.read("done")["state"] == "done"


# The app goes and comes ---------------------------------------------------------------------------------------------


@pytest.fixture
def started(monkeypatch):
    """The runs that are started, instead of starting them."""
    found = []
    monkeypatch.setattr(runs, "start", lambda run, token=None: found.append(run.id))
    return found


def gone(run, **files) -> None:
    """The run as a machine that went away leaves it."""
    write_json(run.folder / "process.json", {"pid": 2**22 + 5, "started": 0.0})
    for name in files:
        (run.folder / name).write_text("asked\n")


def test_after_a_restart_runs_go_on_by_themselves_unless_their_owner_stopped_them(base, home, started):
    first, stopped, second, never, other = (small_run(base, owner=owner) for owner in ("local", "local", "local", "local", "anna"))
    for run in (first, second, other):
        gone(run)
    gone(stopped, stop=True)
    failed = small_run(base)
    gone(failed, **{"error.txt": True})
    live = small_run(base)
    write_json(live.folder / "process.json", lease.this_process())
    assert [run.id for run in runs.take_up()] == started
    assert set(started) == {first.id, second.id, other.id}
    assert "restarted in the middle" in notes(first) and never.state() == "new" and stopped.state() == "interrupted"


def test_a_damaged_run_keeps_no_other_from_being_taken_up(base, home, started):
    first, second = small_run(base), small_run(base)
    for run in (first, second):
        gone(run)
    (first.folder / "process.json").write_text("{")
    runs.take_up()
    assert started == [second.id]


def test_a_run_that_gets_no_further_is_not_taken_up_for_ever(base, home, started):
    run = small_run(base)
    gone(run)
    for _ in range(5):
        runs.take_up()
    assert len(started) == 3
    (run.folder / "checkpoints" / "checkpoint-4").mkdir(parents=True)  # it got further after all
    runs.take_up()
    assert len(started) == 4


def test_an_app_that_ends_lets_its_trainings_keep_their_last_step(tmp_path):
    """Its children get a SIGTERM and the time for it; one that takes no notice is not waited for without end."""
    minds = "import signal, sys, time, pathlib; signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.5), pathlib.Path(sys.argv[1]).touch(), sys.exit(143))); print('up', flush=True); time.sleep(60)"
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(20)"
    app = """
import subprocess, sys, time
from tuner import child
for code in sys.argv[2:]:
    subprocess.Popen([sys.executable, "-c", code, sys.argv[1]], stdout=subprocess.PIPE).stdout.readline()
began = time.monotonic()
child.put_down(2.0)
print(time.monotonic() - began)
"""
    kept = tmp_path / "kept"
    for codes, low, high in (([minds], 0.4, 1.9), ([deaf], 1.9, 5.0)):
        done = subprocess.run([sys.executable, "-c", app, str(kept), *codes], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert low < float(done.stdout) < high, done.stderr
    assert kept.exists()


# Disks that take no more --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code, words", [(errno.ENOSPC, "The disk is full"), (errno.EROFS, "read-only")])
def test_a_disk_that_takes_no_events_ends_the_run_in_words_and_it_goes_on_later(base, home, quick, code, words):
    whole = small_run(base)
    train.train(whole)
    run = small_run(base)
    with pytest.MonkeyPatch.context() as patch:
        plain = runs.Run.log

        def full(self, kind, **fields):
            if kind == "step" and fields["step"] == 5:
                raise OSError(code, os.strerror(code))
            plain(self, kind, **fields)

        patch.setattr(runs.Run, "log", full)
        runs.claim(run)
        assert train.main(run) == 1
    assert words in run.error() and run.state() == "failed"
    assert checkpoints.newest(run.folder / "checkpoints").name == "checkpoint-4"
    train._leaving.is_held = False
    runs.claim(run)
    assert train.main(run) == 0 and adapter_hash(run.adapter_dir) == adapter_hash(whole.adapter_dir)


def test_a_disk_too_full_for_the_words_leaves_the_checkpoint_and_no_traceback(base, home, quick, capsys):
    run = small_run(base)
    with pytest.MonkeyPatch.context() as patch:
        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(train, "write_whole", full)
        patch.setattr(checkpoints, "save_file", full)
        runs.claim(run)
        assert train.main(run) == 1
    said = capsys.readouterr().err
    assert "The disk is full" in said and "Traceback" not in said
    assert not list((run.folder / "checkpoints").glob(".tmp-*"))


# Longer -------------------------------------------------------------------------------------------------------------


def train_here(patch) -> None:
    """What `runs.start` starts, in this process."""
    def start(run, token=None):
        runs.claim(run)
        assert train.main(run) == 0, run.error()

    patch.setattr(runs, "start", start)


@pytest.mark.parametrize("settings", [{}, {"max_steps": 8}], ids=["epochs", "steps"])
def test_a_finished_run_is_trained_longer(base, home, quick, settings):
    run = small_run(base, **settings)
    train.train(run)
    before, measured = losses(run), run.read("plan")["evaluated_rows"]
    train_here(quick)
    runs.longer(run, 1.0)
    longer = runs.find(run.owner, run.id)
    assert longer.recipe.epochs == 3.0 and longer.state() == "done"
    assert losses(longer)[:8] == before and len(losses(longer)) == 12
    plan = longer.read("plan")
    assert plan["steps"] == 12 == plan["evaluate_at"][-1] and plan["evaluated_rows"] == measured
    assert "12 steps instead of 8" in notes(longer)


def test_a_short_run_that_is_trained_longer_is_measured_on_more_rows(base, home, quick):
    """What was best by the few rows that it had work for does not count by the many; killed on the way, it ends the same."""
    from tests.test_train import Killed, at_step, killed

    records = [{"prompt": f"Count {n}.", "completion": f"{n} {n + 1}"} for n in range(80)]
    quick.setattr(runs, "start", lambda run, token=None: runs.claim(run))
    quick.setattr(train.plans, "EVALUATION_SHARE", 0.1)
    ended = []
    for kill_at in (None, 10, 20):
        run = small_run(base, records=records, held_out_share=0.3, max_steps=8, patience=0, evaluations=3)
        train.train(run)
        few = run.read("plan")["evaluated_rows"]
        best = [event for event in events(run, "eval") if event["best"]][-1]
        assert len(few) < 5 and (run.folder / "checkpoints" / "checkpoint-8").exists()
        runs.longer(run, 8.0)
        run = runs.find(run.owner, run.id)
        if kill_at:
            with quick.context() as here:
                at_step(here, kill_at, killed)
                with pytest.raises(Killed):
                    train.train(run)
        train.train(run)
        plan, later = run.read("plan"), [event for event in events(run, "eval") if event["rows"] > len(few)]
        assert plan["rows_from"] == plan["longer_from"] == 8 and len(plan["evaluated_rows"]) > 2 * len(few)
        assert f"measured on {len(plan['evaluated_rows'])} held-out rows from step 8 on, where the shorter run had work for {len(few)}" in notes(run)
        assert later[0]["step"] == 8 and later[0]["best"] and best["rows"] == len(few)
        assert {event["step"] for event in later} == {8, *(step for step in plan["evaluate_at"] if step > 8)}
        assert run.read("report")["best_step"] == min(later, key=lambda event: event["loss"])["step"]
        ended.append((losses(run), adapter_hash(run.adapter_dir), run.read("report")["best_step"]))
    assert ended[0] == ended[1] == ended[2]


def test_what_is_stopped_before_it_goes_on_longer_stays_what_it_was(base, home, quick):
    records = [{"prompt": f"Count {n}.", "completion": f"{n} {n + 1}"} for n in range(80)]
    quick.setattr(runs, "start", lambda run, token=None: runs.claim(run))
    quick.setattr(train.plans, "EVALUATION_SHARE", 0.1)
    run = small_run(base, records=records, held_out_share=0.3, max_steps=8, patience=0, evaluations=3)
    plain = train.Tuning._note
    quick.setattr(train.Tuning, "_note", lambda self, step, measured: plain(self, step, {**measured, "loss": 2 + abs(step - 5) / 10}))
    train.train(run)
    before = adapter_hash(run.adapter_dir), run.read("report")["best_step"]
    assert before[1] < 8, "the last version is the best: nothing can be lost"
    runs.longer(run, 8.0)
    run = runs.find(run.owner, run.id)
    load = train.models.load_base
    quick.setattr(train.models, "load_base", lambda *rest, **more: ((run.folder / "stop").touch(), load(*rest, **more))[1])
    train.train(run)
    assert run.read("plan")["rows_from"] == 8 and len(losses(run)) == 8 and "None" not in notes(run)
    assert (adapter_hash(run.adapter_dir), run.read("report")["best_step"]) == before


def test_patience_does_not_end_at_once_what_was_asked_to_go_on(base, home, quick):
    run = small_run(base, learning_rate=5e-2, patience=1, epochs=8.0, evaluations=16)
    train.train(run)
    stopped_at = len(losses(run))
    assert stopped_at < 32
    train_here(quick)
    runs.longer(run, 1.0)
    assert len(losses(runs.find(run.owner, run.id))) > stopped_at


def test_what_cannot_be_trained_longer_says_why(base, home):
    run = small_run(base)
    with pytest.raises(UserError, match="no checkpoint to go on from"):
        runs.longer(run, 1.0)
    (run.folder / "checkpoints" / "checkpoint-4").mkdir(parents=True)
    write_json(run.folder / "done", {"state": "done"})
    for epochs in (-5.0, 0.0, float("nan")):
        with pytest.raises(UserError, match="epochs more is not longer"):
            runs.longer(run, epochs)
    with pytest.raises(UserError, match="epochs is 1002"):
        runs.longer(run, 1000.0)
    assert run.state() == "done"  # nothing of it was undone
    (run.folder / "done").unlink()
    write_json(run.folder / "process.json", lease.this_process())
    with pytest.raises(UserError, match="Stop it first"):
        runs.longer(run, 1.0)
