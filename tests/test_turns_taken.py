"""Taking turns: fair between people, limited, told in words; memory kept for the starter's chat, and one click is one run."""

import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import pytest

from tests.small_run import RECORDS
from tuner import chat, child, data, lease, limits, machine, places, quote, room, sizes
from tuner import run as runs
from tuner.errors import UserError
from tuner.home import write_json
from tuner.machine import Memory
from tuner.recipe import STARTER_MODEL, Recipe

# SmolLM2-135M's config.json, where it matters.
SIZES = sizes.of_config({
    "model_type": "llama", "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
    "intermediate_size": 1536, "vocab_size": 49152, "tie_word_embeddings": True,
})
README = (Path(__file__).resolve().parent.parent / "README.md").read_text("utf-8")


@pytest.fixture
def shared(monkeypatch, home):
    monkeypatch.setenv("TUNER_SHARED", "1")
    return monkeypatch


@pytest.fixture
def sleeper():
    """Processes that do nothing, for tickets of somebody else."""
    started = []

    def start() -> dict:
        process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
        started.append(process)
        return child.stamp(process.pid)

    yield start
    for process in started:
        process.kill()
        process.communicate()


def served(*asked: str, then: dict[int, str] | None = None) -> list[str]:
    """The order in which runs such as "a1" (the first of person a) have the machine, one after the other.

    Args:
        then: how many turns have begun -> further runs that are asked for at that moment, in their order.
    """
    for name in asked:
        lease.line_up(name, name[0])
    order = []
    while lease.waiting():
        name = lease.waiting()[0]
        assert lease._begin(name)
        order.append(name)
        for late in (then or {}).get(len(order), "").split():
            lease.line_up(late, late[0])
        lease.leave(name)
    return order


# The order --------------------------------------------------------------------------------------------------------


def test_turns_go_round_between_people_not_between_clicks(home):
    assert served("a1", "a2", "a3", "b1", "c1", "b2") == ["a1", "b1", "c1", "a2", "b2", "a3"]


def test_nobody_passes_a_first_run_and_others_pass_a_second_once(home):
    # While a1 trains b and c come: both before a2. When their seconds come they stand behind it, however often they come.
    assert served("a1", "a2", then={1: "b1 c1", 2: "b2", 3: "c2 b3"}) == ["a1", "b1", "c1", "a2", "b2", "c2", "b3"]
    # b has had its turn in this round and comes again while c trains.
    assert served("a1", "a2", then={1: "b1 c1", 3: "b2"}) == ["a1", "b1", "c1", "a2", "b2"]
    # A first run that waits is passed by nobody, whoever comes later.
    assert served("a1", "b1", then={1: "c1 d1 a2", 2: "e1"}) == ["a1", "b1", "c1", "d1", "e1", "a2"]


def test_one_who_comes_again_and_again_does_not_starve_the_second_run_of_another(home):
    late = {n: f"b{n} {'c' if n % 2 else 'd'}{n}" for n in range(1, 8)}
    order = served("a1", "a2", then=late)
    before = order[: order.index("a2")]
    assert all(sum(name[0] == who for name in before) <= 1 for who in "bcd"), order


def test_leaving_the_queue_costs_nothing(home):
    for name in ("a1", "a2", "a3", "b1"):
        lease.line_up(name, name[0])
    assert lease._begin("a1")
    for name in ("a2", "a3"):
        lease.leave(name)
    lease.line_up("b2", "b")
    lease.line_up("a4", "a")  # as if a2 and a3 had never been asked for: the same round as b2, behind it
    assert lease.waiting() == ["a1", "b1", "b2", "a4"]
    assert [its.round for its in lease.tickets()] == [0, 0, 1, 1]


def test_a_place_outlives_its_process_and_holds_nobody_up(home, sleeper):
    folder = home / "runs" / "b" / "b1"
    folder.mkdir(parents=True)
    lease.line_up("a1", "a", str(home))
    lease.line_up("b1", "b", str(folder), process={"pid": 2**22 + 5, "started": 0.0})
    lease.line_up("c1", "c", str(home), process=sleeper())
    assert lease.waiting() == ["a1", "c1"] and [its.run for its in lease.left_behind()] == ["b1"]
    lease.line_up("b1", "b", str(folder))
    assert lease.waiting() == ["a1", "b1", "c1"]
    for name in ("done", "error.txt", "stop"):  # an end that nobody could note in the queue
        lease.line_up("b1", "b", str(folder), process={"pid": 2**22 + 5, "started": 0.0})
        (folder / name).touch()
        assert lease.left_behind() == []
        (folder / name).unlink()


def test_two_never_have_the_machine_at_once(home, sleeper):
    lease.line_up("a1", "a")
    lease.line_up("b1", "b", process=sleeper())
    assert lease._begin("a1") and not lease._begin("b1")
    lease.leave("a1")
    assert lease._begin("b1")


def test_a_damaged_queue_keeps_nobody_from_training(home):
    (home / "queue.json").write_text('{"tickets": [{"run"')
    with lease.hold("a1", lambda ahead: None, lambda: False, 0.01) as held:
        assert held


def test_a_place_that_a_damaged_queue_lost_is_taken_again_by_its_own_person(home, monkeypatch):
    """Else the run is nobody's there: it counts against no limit, no turn is noted, and a restart does not find its folder."""
    other, run = new_run("bob"), new_run("anna")
    monkeypatch.setattr(runs, "fetch_base", lambda *_: None)
    monkeypatch.setattr(runs, "spawn", lambda its: begun.append(lease.tickets()) or subprocess.Popen([sys.executable, "-c", ""]))
    monkeypatch.setattr(lease, "POLL_S", 0.01)
    begun = []
    lease.line_up(other.id, "bob", str(other.folder))
    assert lease._begin(other.id)
    thread = runs.start(run)
    until = time.monotonic() + 10
    while "1 run ahead" not in str(run.events()[0]) and time.monotonic() < until:
        time.sleep(0.01)
    (home / "queue.json").write_text('{"tickets": [{"run"')
    thread.join(10)
    [ticket] = begun[0]
    assert (ticket.run, ticket.owner, ticket.folder) == (run.id, "anna", str(run.folder)) and ticket.began


# The place in words -------------------------------------------------------------------------------------------------


def test_a_visitor_reads_place_reason_and_when(home, monkeypatch):
    now = time.time()
    lease.line_up("a1", "anna", seconds=600.0)
    assert lease._begin("a1")
    lease.line_up("b1", "bob", seconds=300.0)
    lease.line_up("c1", "cleo", seconds=60.0)
    monkeypatch.setattr(time, "time", lambda: now + 120)
    place = places.of("c1")
    assert place.ahead == 2 and place.wait_s == pytest.approx(480 + 300, abs=5)
    assert place.words == (
        "2 runs are ahead: one is training now, 1 waits. Your turn comes in about 13 minutes. Leaving the queue costs nothing."
    )
    assert places.of("b1").words.startswith("1 run is ahead: it is training now. Your turn comes in about 8 minutes.")
    assert not any(name in place.words for name in ("anna", "bob"))
    lease.line_up("d1", "dora")
    lease.line_up("e1", "emil")
    assert "13 minutes" not in places.of("e1").words and "at the earliest" in places.of("e1").words
    assert places.of("z9") is None


def test_what_a_run_measures_of_itself_is_nearer_than_its_quote(home, monkeypatch):
    folder = home / "runs" / "anna" / "a1"
    folder.mkdir(parents=True)
    lease.line_up("a1", "anna", str(folder), seconds=6000.0)
    assert lease._begin("a1")
    ticket, now = lease.tickets()[0], time.time()
    write_json(folder / "quote.json", {"seconds": 5000.0, "time": {"before and after": 40.0}, "rehearsed": {"seconds": 900.0}})
    assert places.left_s(ticket) == pytest.approx(900, abs=5)
    runs.events.append(folder / "events.jsonl", {"t": now, "kind": "step", "step": 5, "eta_s": 100.0, "elapsed_s": 50.0})
    assert places.left_s(ticket) == pytest.approx(140, abs=5)
    write_json(folder / "limit.json", {"seconds": 70.0})
    assert places.left_s(ticket) == pytest.approx(20 + 40, abs=5)


# Limits -----------------------------------------------------------------------------------------------------------


def new_run(owner: str) -> runs.Run:
    return runs.create(owner, Recipe(base_model="test/small", held_out_share=0.2), data.keep(owner, "Rows", RECORDS, {"kind": "paste"}))


def test_the_readme_names_every_limit():
    """To renew it: python -c "from tuner.limits import table; print(table())"."""
    assert limits.table() in README


def test_ones_own_machine_has_no_limits_but_those_set(home, monkeypatch):
    assert not limits.said() and all(its.value() is None for its in limits.ALL)
    monkeypatch.setenv("TUNER_RUN_MINUTES", "5")
    assert limits.run_seconds() == 300 and limits.said() == ["A run trains for at most 5 minutes, then keeps its best version and is done."]
    monkeypatch.setenv("TUNER_RUN_MINUTES", "soon")
    with pytest.raises(UserError, match="TUNER_RUN_MINUTES is 'soon'"):
        limits.run_seconds()


def test_a_shared_machine_says_all_its_limits_and_0_turns_one_off(shared):
    assert len(limits.said()) == 5
    shared.setenv("TUNER_RUN_MINUTES", "0")
    assert limits.run_seconds() is None and len(limits.said()) == 4


def test_one_run_goes_and_two_wait_for_each_person(shared, monkeypatch):
    monkeypatch.setattr(runs, "_fetch_and_train", lambda *_: None)
    other = new_run("bob")
    runs.start(other)
    assert lease._begin(other.id)
    mine = [new_run("anna") for _ in range(4)]
    for run in mine[:2]:
        runs.start(run)
    with pytest.raises(UserError, match="2 of your runs are in the queue; one going and 2 waiting are the most"):
        runs.start(mine[2])
    assert mine[2].state() == "new" and lease.waiting() == [other.id, mine[0].id, mine[1].id]
    lease.leave(other.id)
    assert lease._begin(mine[0].id)
    runs.start(mine[2])  # one goes, so two may wait
    with pytest.raises(UserError, match="3 of your runs are in the queue"):
        runs.start(mine[3])


@pytest.mark.parametrize("what", ["_end_cut_line", "write_json"])
def test_a_start_that_fails_half_way_leaves_nobody_waiting_behind_it(home, monkeypatch, what):
    """Its process, the app, lives on: a place kept for it would be in front of everybody for ever."""
    run = new_run("anna")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runs, what, full)
    with pytest.raises(OSError):
        runs.start(run, quoted={"seconds": 1.0})
    assert lease.waiting() == []
    monkeypatch.undo()


def test_a_run_that_finds_no_place_for_training_longer_is_as_done_as_before(shared, monkeypatch):
    monkeypatch.setattr(runs, "_fetch_and_train", lambda *_: None)
    for _ in range(3):
        runs.start(new_run("anna"))
    run = new_run("anna")
    (run.folder / "checkpoints" / "checkpoint-4").mkdir(parents=True)
    write_json(run.folder / "done", {"state": "done"})
    before = {path.name: path.read_bytes() for path in run.folder.iterdir() if path.is_file() and path.name != "start.lock"}
    with pytest.raises(UserError, match="3 of your runs are in the queue"):
        runs.longer(run, 1.0)
    after = {path.name: path.read_bytes() for path in run.folder.iterdir() if path.is_file() and path.name in before}
    assert after == before and runs.find("anna", run.id).state() == "done"


def test_the_token_is_gone_from_memory_once_the_base_is_here(home, monkeypatch):
    """A run may wait for hours, and train for hours."""
    class Token(str):
        __slots__ = ("__weakref__",)

    seen, left = [], []
    monkeypatch.setattr(runs, "fetch_base", lambda run, token: seen.append(str(token)))
    monkeypatch.setattr(lease, "wait", lambda *_, **__: left.append((gc.collect(), itself())[1]) or False)
    token = Token("hf_of_anna")
    itself = weakref.ref(token)
    thread = runs.start(new_run("anna"), token)
    del token
    thread.join(10)
    assert seen == ["hf_of_anna"] and left == [None]


def test_variables_that_are_no_numbers_are_all_named_before_the_page_is_served(home):
    said = subprocess.run(
        [sys.executable, "app.py"], cwd=Path(__file__).resolve().parent.parent, capture_output=True, text=True, timeout=60,
        env={**os.environ, "TUNER_UPLOAD_MIB_PER_HOUR": "much", "TUNER_RUN_DAYS": "-1", "GRADIO_SERVER_PORT": "1"},
    )
    assert said.returncode == 1 and "Traceback" not in said.stderr
    assert "TUNER_UPLOAD_MIB_PER_HOUR is 'much'" in said.stderr and "TUNER_RUN_DAYS is '-1'" in said.stderr


def test_rows_and_uploads_count_for_an_hour(shared, tmp_path, monkeypatch):
    shared.setenv("TUNER_ROWS_PER_HOUR", "50")
    new_run("anna")
    new_run("anna")
    with pytest.raises(UserError, match=r"This takes 20 rows; 10 of 50 are left of this hour. In 60 minutes there is more"):
        new_run("anna")
    new_run("bob")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3601)
    new_run("anna")
    shared.setenv("TUNER_UPLOAD_MIB_PER_HOUR", "1")
    path = tmp_path / "rows.txt"
    path.write_bytes(b"x" * 2**21)
    with pytest.raises(UserError, match="This takes 2 MiB; 1 of 1 are left"):
        data.create("anna", "Rows", {"kind": "file"}, [(path, "rows.txt")])
    assert path.exists()


def test_a_run_that_is_tried_again_counts_its_rows_too(shared):
    shared.setenv("TUNER_ROWS_PER_HOUR", "50")
    run = new_run("anna")
    again = runs.again(run, {"epochs": 1.0})
    assert again.count_rows() == run.count_rows() == 20
    before = sorted(runs.Run.place_of("anna").iterdir())
    with pytest.raises(UserError, match=r"This takes 20 rows; 10 of 50 are left of this hour"):
        runs.again(run, {"epochs": 2.0})
    assert sorted(runs.Run.place_of("anna").iterdir()) == before


def test_a_base_above_the_limit_is_not_fetched(shared, monkeypatch):
    from dataclasses import replace

    from tuner import hub

    monkeypatch.setattr(hub, "sizes_of", lambda *_: replace(SIZES, linear=7 * 10**9))
    monkeypatch.setattr(hub, "fetch_base", lambda *_: pytest.fail("fetched"))
    run = new_run("anna")
    runs.start(run).join(10)
    assert "billion parameters, and 4 is the most here" in run.error() and lease.waiting() == []


def test_paused_new_runs_are_refused_and_old_ones_are_not_touched(home, monkeypatch):
    monkeypatch.setattr(runs, "_fetch_and_train", lambda *_: None)
    run = new_run("anna")
    limits.pause(True)
    with pytest.raises(UserError, match="takes no new runs at the moment"):
        new_run("anna")
    runs.start(run)
    limits.pause(False)
    new_run("anna")


# One click --------------------------------------------------------------------------------------------------------


def test_two_clicks_on_start_make_one_run_and_another_form_makes_another(home, monkeypatch):
    begun = []
    make = lambda: new_run("anna")  # noqa: E731
    clicks = [threading.Thread(target=lambda: begun.append(runs.start_once("anna", "form", make, lambda run: None))) for _ in range(4)]
    for click in clicks:
        click.start()
    for click in clicks:
        click.join()
    assert len({run.id for run in begun}) == 1 and len(runs.mine("anna")) == 1
    assert runs.start_once("anna", "other", make, lambda run: None).id != begun[0].id
    assert runs.start_once("bob", "form", lambda: new_run("bob"), lambda run: None).owner == "bob"
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + runs._SAME_CLICK_S + 1)
    runs.start_once("anna", "other", make, lambda run: None)
    assert len(runs.mine("anna")) == 3


def test_a_start_that_is_refused_leaves_no_run(home):
    def refuse(run):
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        runs.start_once("anna", "form", lambda: new_run("anna"), refuse)
    assert runs.mine("anna") == []


def test_a_run_that_waits_is_taken_out_of_the_queue_and_nothing_was_spent(home, monkeypatch):
    monkeypatch.setattr(runs, "fetch_base", lambda *_: None)
    monkeypatch.setattr(runs, "spawn", lambda run: pytest.fail("started"))
    monkeypatch.setattr(lease, "POLL_S", 0.01)
    lease.line_up("other", "bob")
    assert lease._begin("other")
    run = new_run("anna")
    thread = runs.start(run)
    until = time.monotonic() + 10
    while "1 run ahead" not in str(run.events()[0]) and time.monotonic() < until:
        time.sleep(0.01)
    assert run.state() == "waiting"
    run.ask_stop()
    thread.join(10)
    assert run.state() == "new" and run.error() == "" and lease.waiting() == ["other"]
    assert "Nothing was spent" in str(run.events()[0])


# Memory -----------------------------------------------------------------------------------------------------------


def worker(folder: Path, process: dict, base: str, gib: float) -> None:
    (folder / "workers").mkdir(exist_ok=True)
    write_json(folder / "workers" / f"{process['pid']}.json", {"process": process, "base": base, "gib": gib})


def test_every_quote_keeps_the_starters_chat_its_measured_memory(home, sleeper, monkeypatch):

    monkeypatch.setattr(machine, "memory", lambda: Memory(16.0, 10.0))
    rows = quote.Rows([40] * 50, 500, [40] * 5)
    free = lambda: quote.here(Recipe(), SIZES, rows).free_gib  # noqa: E731
    assert free() == 10.0
    room.note(STARTER_MODEL, 0.9)  # as its worker does; this process stands for it
    assert free() == 10.0, "what it takes is not free already"
    (home / "workers" / f"{lease.this_process()['pid']}.json").unlink()  # it ended when nobody chatted
    assert free() == pytest.approx(9.1)
    worker(home, sleeper(), STARTER_MODEL, 0.5)
    assert free() == pytest.approx(9.6)
    worker(home, sleeper(), "big/base", 4.0)
    assert free() == pytest.approx(13.6), "it makes room"
    monkeypatch.setattr(machine, "memory", lambda: Memory(12.0, 10.0))
    assert free() == pytest.approx(11.6)


def test_other_bases_make_room_when_a_run_needs_it_and_the_starter_stays(home, sleeper, monkeypatch):
    monkeypatch.setattr(machine, "memory", lambda: Memory(16.0, 3.0))
    big, starter = sleeper(), sleeper()
    worker(home, big, "big/base", 4.0)
    worker(home, starter, STARTER_MODEL, 0.5)
    run = new_run("anna")
    write_json(run.folder / "quoted.json", {"seconds": 60.0, "memory_gib": 1.0})
    room.make(run)
    assert lease.is_alive(big), "there was room"
    write_json(run.folder / "quoted.json", {"seconds": 60.0, "memory_gib": 4.0})
    room.make(run)
    assert not lease.is_alive(big) and lease.is_alive(starter)
    assert "chat with big/base was closed to make room" in str(run.events()[0])
    assert room.gave_way(big["pid"]) == "big/base" and room.gave_way(big["pid"]) == ""


def test_a_large_base_is_not_loaded_beside_a_training_but_the_starter_is(home, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "memory", lambda: Memory(16.0, 1.0))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with open(tmp_path / "model.safetensors", "r+b") as file:
        file.truncate(8 * 2**30)
    big = {"id": "big/base", "dir": str(tmp_path)}
    room.require_for_chat(big, "nf4")
    lease.line_up("a1", "anna")
    assert lease._begin("a1")
    with pytest.raises(UserError, match="Chat with the starter meanwhile"):
        room.require_for_chat(big, "nf4")
    room.require_for_chat({"id": STARTER_MODEL, "dir": str(tmp_path)}, "nf4")


def test_the_page_talks_to_the_starter_through_a_process_of_its_own(monkeypatch):
    asked = []
    monkeypatch.setattr(chat.Worker, "answers", lambda self, asked_for, **_: asked.append(self))
    workers = chat.Workers()
    starter, other = chat.Subject("s", {"id": STARTER_MODEL, "dir": ""}), chat.Subject("o", {"id": "big/base", "dir": ""})
    for subject in (starter, other, starter):
        workers.answers({"it": (subject, [], False)})
    assert asked[0] is asked[2] is not asked[1]


def test_who_waits_at_a_terminal_has_no_torch(home, tmp_path):
    lease.line_up("other", "bob")
    assert lease._begin("other")
    run = new_run("local")
    code = f"""
import sys
from tuner import cli, lease, run
its = run.from_folder({str(run.folder)!r})
run.log_wait = lambda its, ahead: (print("torch" in sys.modules, ahead), its.folder.joinpath("stop").touch())
run.claim(its)
try:
    cli._follow(its, False)
except Exception as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=child.PROJECT_ROOT, timeout=60)
    assert done.stdout.splitlines() == ["False 1", "The run was stopped while it waited for its turn. Resume it when you like."], done.stderr
