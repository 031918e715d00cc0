"""A finished run measured on all its held-out rows: the run stays what it is meanwhile, and the report changes whole or not at all."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from tests import clicks
from tests.small_run import small_run
from tuner import clearing, cli, lease, machine, measuring, places, publish, report, room, survey
from tuner import run as runs
from tuner.errors import UserError
from tuner.home import write_json

RECORDS = [{"prompt": f"Count {n}.", "completion": f"{n} {n + 1}"} for n in range(80)]


@pytest.fixture(scope="module")
def finished(base, tmp_path_factory):
    """A TUNER_HOME with a run that has 40 held-out rows and a report on 16 of them, and the report on all; to be copied."""
    from tests.conftest import make_quick
    from tuner import train

    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNER_HOME", str(folder))
        with pytest.MonkeyPatch.context() as training:
            make_quick(training)
            run = small_run(base, records=RECORDS, held_out_share=0.5, max_steps=1)
            runs.claim(run)
            assert train.main(run) == 0
        model, tokenizer, its = report.load_tuned(run)
        rows = run.rows("held_out")
        made = [report.make(run, its, model, tokenizer, rows, survey.of(rows, tokenizer, run.recipe), 1, **more) for more in ({"seconds": 0}, {})]
        write_json(run.folder / "report.json", made[0])
    return folder, run.id, *made


@pytest.fixture
def run(finished, home):
    folder, run_id, *_ = finished
    shutil.copytree(folder, home, dirs_exist_ok=True)
    run = runs.Run("local", run_id)
    (run.folder / "process.json").unlink()  # this process's, which lives
    return run


@pytest.fixture(autouse=True)
def one_thread_there_too(monkeypatch):
    """The report that is compared with was made with one."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def kept_signals():
    """`measuring.main` in this process answers SIGTERM in its own way."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def copied(run: runs.Run) -> measuring.Measurement:
    """A measurement as its child finds it."""
    its = measuring.Measurement("local", run.id + measuring.Measurement.END)
    its.folder.mkdir(parents=True)
    for name in ("recipe.toml", "base.json"):
        shutil.copyfile(run.folder / name, its.folder / name)
    return its


def until(what, seconds: float = 60.0):
    ends = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < ends, "nothing came"
        time.sleep(0.02)
    return found


def child_of(its: measuring.Measurement) -> psutil.Process:
    """The process that measures, once it has begun."""
    return psutil.Process(until(lambda: (process := its.read("process")) and process["pid"] != os.getpid() and lease.is_alive(process) and process)["pid"])


def test_all_rows_are_measured_in_a_child_and_the_run_is_done_all_the_while(run, finished):
    short, whole = finished[2:]
    assert measuring.left_out(run) == (24, 40) and (run.read("report"), short["held_out_rows"]) == (short, 16)
    its = measuring.start(run)
    with pytest.raises(UserError, match="being measured already"):
        measuring.start(run)
    seen = {run.state()}
    while its.state() in runs.LIVE:
        seen.add(run.state())
        time.sleep(0.05)
    assert (its.state(), its.error(), seen) == ("done", "", {"done"})
    assert run.read("report") == whole and measuring.left_out(run) == (0, 0) and measuring.of(run) == its
    said = [event["message"] for event in its.events(kind="status")[0]]
    assert "Answering held-out rows: 32 of 40" in said and said[-1] == "Done"
    assert not lease.waiting() and runs.mine("local") == [run]


def test_cancelled_in_the_middle_or_killed_the_report_stays(run, finished):
    short = finished[2]
    its = measuring.start(run)
    child = child_of(its)
    until(lambda: "Loading" in str(its.events()))
    measuring.cancel(its)
    child.wait(20)
    assert until(lambda: its.state() not in runs.LIVE) and its.state() == "stopped" and run.read("report") == short and measuring.left_out(run) == (24, 40)
    with pytest.raises(UserError, match="nothing to stop"):
        measuring.cancel(its)
    its = measuring.start(run)
    child = child_of(its)
    child.kill()
    until(lambda: its.state() == "interrupted")
    assert run.state() == "done" and run.read("report") == short


def test_one_that_was_going_when_the_app_went_away_is_taken_up(run, finished, monkeypatch):
    its = measuring.start(run)
    child = child_of(its)
    child.send_signal(signal.SIGTERM)  # as a Space that restarts
    until(lambda: its.state() == "interrupted")
    assert runs.take_up() == [its]
    until(lambda: its.state() not in runs.LIVE)
    assert its.state() == "done" and run.read("report") == finished[3]


def test_a_run_that_is_measured_is_not_deleted_or_trained_longer_and_afterwards_takes_what_is_known_of_it_along(run, finished):
    (run.folder / "checkpoints" / "checkpoint-9").mkdir(exist_ok=True)
    its, before = measuring.start(run), (run.folder / "done").stat()
    for act in (run.delete, lambda: runs.longer(run, 1.0), lambda: measuring.start(run)):
        with pytest.raises(UserError, match="being measured"):
            act()
    assert (run.folder / "done").stat() == before
    child = child_of(its)
    measuring.cancel(its)
    child.wait(20)
    until(lambda: its.state() not in runs.LIVE)  # ended before it could say that it was stopped, perhaps
    run.delete()
    assert not its.folder.exists() and not run.folder.exists() and measuring.of(run) is None


def test_one_that_waits_in_the_queue_is_cancelled_there(run):
    lease.line_up("other", "bob", seconds=600.0)
    assert lease._begin("other")
    its = measuring.start(run)
    until(lambda: "ahead" in str(its.events()))
    measuring.cancel(its)
    until(lambda: its.state() not in runs.LIVE)
    assert lease.waiting() == ["other"] and run.state() == "done"


def test_one_that_is_cancelled_before_its_child_can_be_reached_ends_before_it_measures(run, finished, kept_signals):
    its = copied(run)
    (its.folder / "stop").write_text("asked")
    assert cli.main(["report", str(its.folder)]) == 0 and its.state() == "stopped" and run.read("report") == finished[2]


def test_a_run_that_goes_on_meanwhile_keeps_the_report_of_its_new_end(run, finished, monkeypatch):
    def on_status(_):
        (run.folder / "done").unlink()
        write_json(run.folder / "done", {"state": "done"})

    with pytest.raises(UserError, match="trained on while it was measured"):
        report.remake(run, on_status, seconds=60.0)
    assert run.read("report") == finished[2]


def test_what_is_not_finished_or_stands_in_the_queue_is_refused_and_leaves_nothing(run, finished, monkeypatch):
    monkeypatch.setattr(measuring.runs, "start", lambda *_: (_ for _ in ()).throw(UserError("The queue is full.")))
    with pytest.raises(UserError, match="The queue is full"):
        measuring.start(run)
    assert measuring.of(run) is None
    (run.folder / "done").unlink()
    with pytest.raises(UserError, match="no tuned model to measure"):
        measuring.start(run)
    assert measuring.left_out(run) == (0, 0)
    write_json(run.folder / "done", {"state": "done"})
    write_json(run.folder / "report.json", finished[3])
    with pytest.raises(UserError, match="would give the same numbers"):
        measuring.start(run)


def test_a_run_that_is_measured_is_in_use_and_what_is_known_of_old_measurements_goes(run, monkeypatch):
    monkeypatch.setenv("TUNER_RUN_DAYS", "1")
    monkeypatch.setattr(runs, "_fetch_and_train", lambda *_: None)  # it waits
    its = measuring.start(run)
    later = time.time() + 10 * clearing.DAY_S
    for _ in range(2):
        clearing.sweep(now=later)
    assert run.folder.is_dir() and its.folder.is_dir()
    lease.leave(its.id)
    (its.folder / "process.json").unlink()
    clearing.sweep(now=later)
    assert not its.folder.exists()


def test_where_a_run_may_take_so_long_a_measurement_may_not_take_longer(run, finished, kept_signals, monkeypatch):
    """Nor does it replace a report with one of fewer rows."""
    its = copied(run)
    write_json(its.folder / "limit.json", {"seconds": 0.0})
    assert cli.main(["report", str(its.folder)]) == 0 and (its.state(), its.error()) == ("done", "")
    assert run.read("report") == finished[2] and any(measuring.left_out(run))
    write_json(its.folder / "limit.json", {"seconds": 60.0})
    for minutes, can in (("1", False), ("5", True), ("0", True)):  # with more time than it had, or no limit, there is more to be had
        monkeypatch.setenv("TUNER_RUN_MINUTES", minutes)
        assert measuring.can_start(run) is can
    write_json(run.folder / "report.json", finished[3])
    write_json(its.folder / "limit.json", {"seconds": 0.0})
    (its.folder / "done").unlink()
    assert cli.main(["report", str(its.folder)]) == 1 and "there was time for fewer rows" in its.error()
    assert run.read("report") == finished[3]


def test_answers_are_counted_as_left_out_too(run, finished):
    whole = finished[3]
    write_json(run.folder / "report.json", {**whole, "answers": {**whole["answers"], "asked": 24}})
    assert measuring.left_out(run) == (0, 16) and measuring.can_start(run)
    write_json(run.folder / "report.json", whole)
    assert measuring.left_out(run) == (0, 0) and not measuring.can_start(run)


# By itself ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def by_itself(run):
    """A measurement that has begun by itself, to be ended whatever happens."""
    measuring.go_on(run)
    its = measuring.of(run)
    assert its.is_spare
    yield its
    if its.state() in runs.LIVE:
        measuring.make_way(run)


def test_a_run_that_ends_is_measured_on_what_was_left_out_without_being_asked(run, finished, monkeypatch):
    """Whatever becomes of its process; what a report that left nothing out leads to is nothing."""
    monkeypatch.setattr(runs, "fetch_base", lambda *_: None)
    spawn = runs.spawn
    monkeypatch.setattr(runs, "spawn", lambda its: subprocess.Popen([sys.executable, "-c", ""]) if its.id == run.id else spawn(its))
    lease.line_up(run.id, run.owner, str(run.folder))
    runs._fetch_and_train(run, [None])
    its = measuring.of(run)
    assert its.is_spare
    lease.leave(run.id)
    until(lambda: its.state() not in runs.LIVE)
    assert its.state() == "done" and run.read("report") == finished[3] and not lease.waiting()
    done = its.read("done")
    runs._fetch_and_train(run, [None])
    assert its.read("done") == done and not measuring.is_about_to_begin(run)


def test_nothing_begins_by_itself_where_new_runs_are_paused_or_nobody_knows_what_it_takes(run, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("tuner.limits.is_paused", lambda: True)
        measuring.go_on(run)
    assert measuring.of(run) is None
    (run.folder / "quote.json").unlink()
    measuring.go_on(run)
    assert measuring.of(run) is None


def test_it_gives_way_to_a_run_and_goes_on_when_that_is_over(run, finished, by_itself):
    child_of(by_itself)
    first = by_itself.read("process")
    lease.line_up("other", "bob")
    until(lambda: not lease.is_alive(first))  # waited for by the app alone: its exit code is told once
    assert until(lambda: lease.before("other") == []) and lease._begin("other")
    assert by_itself.state() == "waiting" and lease.waiting() == ["other", by_itself.id] and run.read("report") == finished[2]
    assert "until nobody else needs the machine" in str(by_itself.events())
    lease.line_up("next", "cleo")
    assert lease.waiting() == ["other", "next", by_itself.id], "whoever comes goes first"
    lease.leave("other")
    assert until(lambda: lease._begin("next"))
    lease.leave("next")
    until(lambda: by_itself.state() not in runs.LIVE)
    assert by_itself.state() == "done" and run.read("report") == finished[3]


def test_it_gives_way_in_the_middle_of_a_batch_but_not_once_all_is_measured(run, kept_signals):
    its = copied(run)
    (its.folder / "by-itself").touch()
    lease.line_up(its.id, spare=True)
    assert lease._begin(its.id)
    made_way = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    threading.Timer(0.3, lease.line_up, ("other", "bob")).start()
    with pytest.raises(SystemExit), measuring._giving_way(its, made_way):
        time.sleep(30)
    assert made_way.is_set()
    lease.leave("other")
    with measuring._giving_way(its, late := threading.Event()):
        pass
    lease.line_up("other", "bob")
    time.sleep(1.5 * measuring.LOOK_S)
    assert not late.is_set()


def test_it_stands_still_while_a_chat_answers_and_can_be_ended_then(run, kept_signals, monkeypatch):
    monkeypatch.setattr(measuring, "LOOK_S", 0.05)
    its = copied(run)
    (its.folder / "by-itself").touch()
    lease.line_up(its.id, spare=True)
    assert lease._begin(its.id)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    def rows() -> int:
        ends, count = time.monotonic() + 0.5, 0
        while time.monotonic() < ends:  # what stands still loses the rest of its half a second
            time.sleep(0.005)
            count += 1
        return count

    with measuring._giving_way(its, threading.Event()):
        alone = rows()
        room.say_answering(1.0)
        beside, began = rows(), time.monotonic()
        while room.is_answering():
            time.sleep(0.01)
        after = rows()
    assert beside < alone / 2 and after > alone / 2 and time.monotonic() - began < 5
    with pytest.raises(SystemExit), measuring._giving_way(its, made_way := threading.Event()):
        room.say_answering()
        monkeypatch.setattr(room, "is_answering", lambda: True)
        threading.Timer(0.5, lease.line_up, ("other", "bob")).start()
        while True:
            time.sleep(0.01)
    assert made_way.is_set()


def test_a_chat_that_needs_its_memory_has_it_and_it_begins_again_only_beside_no_chat_and_where_there_is_room(run, by_itself, tmp_path, monkeypatch):
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.truncate(8 * 2**30)
    child_of(by_itself)
    first, free_gib = by_itself.read("process"), 2.0
    monkeypatch.setattr(machine, "memory", lambda: machine.Memory(24.0, free_gib))
    monkeypatch.setattr(room, "GIVES_WAY_S", 60.0)
    with pytest.raises(UserError, match="Chat with the starter meanwhile"):  # what this machine has free is made up here
        room.require_for_chat({"id": "big/one", "dir": str(tmp_path)}, "none")
    assert not lease.is_alive(first)

    def stays_waiting() -> bool:
        time.sleep(4 * lease.POLL_S)
        return by_itself.state() == "waiting" and not lease.has_begun(by_itself.id)

    free_gib = 20.0
    assert room.is_answering() and stays_waiting(), "the chat is about to load its base"
    free_gib = 0.1
    room.say_answering(-1.0)
    assert not room.is_answering() and stays_waiting() and by_itself.events()[0][-1]["message"] == runs.NO_ROOM
    assert [its["message"] for its in by_itself.events()[0]].count(runs.NO_ROOM) == 1
    free_gib = 20.0
    until(lambda: lease.has_begun(by_itself.id))


def test_it_waits_for_time_to_spare_for_some_hours_and_is_offered_then(run, monkeypatch):
    monkeypatch.setattr(runs, "SPARE_WAITS_S", 1.0)
    lease.line_up("other", "bob")
    assert lease._begin("other")
    measuring.go_on(run)
    its = measuring.of(run)
    assert its.state() == "waiting"
    until(lambda: its.state() not in runs.LIVE)
    assert lease.waiting() == ["other"] and measuring.can_start(run)


def test_it_ends_when_its_run_is_deleted(run, by_itself):
    process = child_of(by_itself)
    measuring.make_way(run, ask_only=True)
    assert process.is_running() and by_itself.state() in runs.LIVE
    run.delete()
    assert not by_itself.folder.exists() and not run.folder.exists() and lease.waiting() == []


def test_it_ends_when_its_run_is_trained_longer_but_not_when_that_is_refused(run, by_itself, monkeypatch):
    process = child_of(by_itself)
    (run.folder / "checkpoints" / "checkpoint-9").mkdir(exist_ok=True)
    monkeypatch.setattr(runs, "_fetch_and_train", lambda *_: None)  # it waits
    with monkeypatch.context() as patch:
        patch.setattr(runs, "_require_turn", lambda *_: (_ for _ in ()).throw(UserError("The queue is full.")))
        with pytest.raises(UserError, match="The queue is full"):
            runs.longer(run, 1.0)
    assert process.is_running() and by_itself.state() in runs.LIVE and run.state() == "done"
    runs.longer(run, 1.0)
    assert not by_itself.folder.exists() and run.state() == "waiting" and lease.waiting() == [run.id]


def test_it_takes_nobody_s_place_in_the_queue(run, monkeypatch):
    monkeypatch.setenv("TUNER_WAITING_RUNS", "1")
    monkeypatch.setattr(runs, "_fetch_and_train", lambda *_: None)  # each waits
    measuring.go_on(run)
    its = measuring.of(run)
    for name in ("a1", "a2"):
        lease.line_up(name, "local", check=lambda others: runs._require_turn("local", others))
    assert lease._begin("a1") and lease.waiting() == ["a1", "a2", its.id]
    assert places.of("a2").ahead == 1 and places.of(its.id).ahead == 2
    lease.leave("a1"), lease.leave("a2")
    assert lease._begin(its.id) and places.of(its.id).ahead == 0
    lease.line_up("b1", "bob")
    assert places.of("b1").ahead == 0 and [its.round for its in lease.tickets()] == [0, 0] and lease.is_wanted(its.id)


def test_at_a_terminal_it_goes_on_in_the_foreground(run, finished, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(report, "remake", interrupt)
        cli._measure_the_rest(run)
    said = capsys.readouterr().err
    assert "24 of 40 held-out rows were not measured and 40 not answered in full. Doing that now, about" in said and "The report is as it was." in said
    assert run.read("report") == finished[2] and lease.waiting() == []
    cli._measure_the_rest(run)
    assert run.read("report") == finished[3] and lease.waiting() == [] and "Done" in capsys.readouterr().err
    cli._measure_the_rest(run)
    assert not capsys.readouterr().err, "nothing was left out"


# On the page ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def handlers():
    return clicks.handlers("measure_view")


def test_the_button_says_how_many_rows_and_how_long_and_the_new_report_is_drawn_by_itself(run, finished, handlers):
    short, whole = finished[2:]
    click = lambda what, **values: clicks.call(handlers[what], **values)  # noqa: E731
    line, button, cancel, _ = click("show_measuring", run_id=run.id)
    assert "To keep to the time, 24 of 40 held-out rows were not measured and 40 not answered in full. That" in line and "That takes about" in line and " s</b>" in line
    assert button["visible"] and button["value"] == "Measure all held-out rows" and not cancel["visible"]
    line, button, cancel, timer = click("measure_all", run_id=run.id)
    assert "…" in line and not button["visible"] and cancel["visible"] and timer.active
    assert click("measure_all", run_id=run.id)[2]["visible"], "pressed in another tab"
    until(lambda: measuring.of(run).state() not in runs.LIVE)
    line, button, cancel, timer, *drawn = click("poll_measuring", run_id=run.id)
    assert "Measured again: the report above is of all held-out rows." in line and not button["visible"] and not cancel["visible"] and not timer.active
    assert "40 held-out rows" in str(drawn) and "16 of 40" in str(short["says"]) and "16 of 40" not in str(drawn)
    assert run.read("report") == whole


def test_a_run_that_has_just_ended_offers_no_button_for_what_is_about_to_begin(run, finished, handlers, monkeypatch):
    show = lambda: clicks.call(handlers["show_measuring"], run_id=run.id)  # noqa: E731
    os.utime(run.folder / "done")
    copied(run)  # its folder is there, and it is not in the queue yet
    line, button, _, timer = show()
    assert "not every held-out row was measured and answered. That is done now …" in line and not button["visible"] and timer.active
    monkeypatch.setattr(runs, "_fetch_and_train", lambda *_: None)  # it waits
    measuring.go_on(run)
    line, button, cancel, timer = show()
    assert "That is done when nobody else needs the machine: Getting the base model ready …" in line and cancel["visible"] and timer.active
    measuring.of(run).log("status", state="checking", message="Asking")
    assert "now, while nobody else needs the machine: Asking … The report" in show()[0]
    room.say_answering()
    assert "Asking … It stands still while a chat answers. The report" in show()[0]
    clicks.call(handlers["cancel_measuring"], run_id=run.id)
    measuring.of(run).folder.joinpath("process.json").unlink()  # as what waits for it does
    line, button, _, timer = show()
    assert "24 of 40 held-out rows were not measured" in line and button["visible"] and not timer.active


def test_what_stands_there_is_true(run, finished, handlers, monkeypatch):
    show = lambda: clicks.call(handlers["show_measuring"], run_id=run.id)  # noqa: E731
    monkeypatch.setattr(measuring, "seconds", lambda _: 7200.0)
    monkeypatch.setenv("TUNER_RUN_MINUTES", "30")
    assert "All of them would take about 2 h; here there is time for 30 min" in show()[0]
    its = copied(run)
    write_json(its.folder / "limit.json", {"seconds": 600.0})
    write_json(its.folder / "done", {"state": "done"})
    pushed = {"state": "verified", "repo_id": "alice/a", "url": "https://hub/alice/a", "commit": "0" * 40, "weights": publish._weights_stamp(run)}
    write_json(run.folder / "publish.json", pushed | {"replaced_by": "Another"})
    os.utime(run.folder / "report.json", (time.time() + 60,) * 2)
    assert "publish it again" not in show()[0], "its place is taken"
    write_json(run.folder / "publish.json", pushed)
    os.utime(run.folder / "report.json", (time.time() + 60,) * 2)
    assert "of as many held-out rows as there was time for" in show()[0] and "publish it again" in show()[0] and show()[1]["visible"]
    os.utime(run.folder / "publish.json", (time.time() + 120,) * 2)
    assert "publish it again" not in show()[0]
    (its.folder / "error.txt").write_text("The machine ran out of memory.")
    (its.folder / "done").unlink()
    assert "The machine ran out of memory." in show()[0] and show()[1]["visible"]
    with monkeypatch.context() as patch:
        patch.setattr("tuner.limits.is_paused", lambda: True)
        assert not show()[1]["visible"] and "not measured" not in show()[0]
    made = finished[3]
    write_json(run.folder / "report.json", {**made, "answers": {**made["answers"], "asked": 24}})
    assert "To keep to the time, 16 of 40 held-out rows were not answered in full." in show()[0] and show()[1]["value"] == "Answer all held-out rows"


def test_nobody_else_s_run_and_none_at_all_show_nothing(run, handlers):
    for run_id in ("", None, "20260101-000000-00000000"):
        line, button, *_ = clicks.call(handlers["show_measuring"], run_id=run_id)
        assert line == "" and not button["visible"]
    for what in ("measure_all", "cancel_measuring"):
        with pytest.raises(Exception, match="not among yours"):
            clicks.call(handlers[what], run_id="20260101-000000-00000000")
