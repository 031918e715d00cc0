"""What is removed and when: never what is in use, never a run whose owner was not told; and who may see and ask for it."""

import os
import time
from pathlib import Path

import pytest

from tests.small_run import RECORDS, notes
from tuner import clearing, data, lease, limits, room, stewardship
from tuner import run as runs
from tuner.errors import UserError
from tuner.home import write_json
from tuner.recipe import STARTER_MODEL, Recipe

DAY = 86_400.0


@pytest.fixture(autouse=True)
def shared(monkeypatch, home):
    monkeypatch.setenv("TUNER_SHARED", "1")
    monkeypatch.setenv("TUNER_FREE_GIB", "0.001")
    return monkeypatch


def aged(path: Path, days: float) -> Path:
    """The folder and all in it as if nothing had touched them for so long."""
    then = time.time() - days * DAY
    for its in [*path.rglob("*"), path]:
        os.utime(its, (then, then), follow_symlinks=False)
    return path


def old_run(days: float, owner: str = "anna", state: str = "done") -> runs.Run:
    run = runs.create(owner, Recipe(base_model="test/small", held_out_share=0.2), data.keep(owner, "Rows", RECORDS, {"kind": "paste"}))
    run.log("status", state=state, message="")
    (run.folder / "checkpoints" / "checkpoint-4").mkdir(parents=True)
    (run.folder / "checkpoints" / "checkpoint-4" / "adapter.safetensors").write_bytes(b"x" * 1000)
    write_json(run.folder / "done", {"state": state})
    aged(run.folder, days)
    return run


def test_a_run_is_removed_after_its_time_and_its_owner_was_told_before(home):
    run, young = old_run(12.5), old_run(3)
    now = time.time()
    said = clearing.removed_at(run)
    assert said == pytest.approx(now + 1.5 * DAY, abs=60) and clearing.removed_at(young) == pytest.approx(now + 11 * DAY, abs=60)
    clearing.sweep()
    assert f"This run will be removed on {clearing.day(said)} unless you publish it." in notes(run) and notes(young) == ""
    clearing.sweep(now=now + DAY)
    assert run.folder.exists() and notes(run).count("will be removed") == 1, "said once"
    assert clearing.removed_at(run) == pytest.approx(said, abs=60), "being told keeps no run longer"
    clearing.sweep(now=now + 1.6 * DAY)
    assert not run.folder.exists() and young.folder.exists()


def test_one_that_nobody_could_tell_in_time_gets_a_day_more(home):
    run, now = old_run(40), time.time()
    clearing.sweep()
    assert run.folder.exists() and clearing.removed_at(run) == pytest.approx(now + DAY, abs=60)
    clearing.sweep(now=now + DAY / 2)
    assert run.folder.exists()
    clearing.sweep(now=now + DAY + 60)
    assert not run.folder.exists()


def test_a_run_that_its_owner_came_back_to_is_told_anew(home):
    run, now = old_run(13), time.time()
    clearing.sweep()
    run.rename("Still mine")
    clearing.sweep(now=now + 2 * DAY)
    assert run.folder.exists() and clearing.removed_at(run) == pytest.approx(now + 14 * DAY, abs=60)


def test_nothing_in_use_is_removed_however_old(home, shared):
    shared.setenv("TUNER_FREE_GIB", "1000000")
    going, waiting, behind = old_run(99), old_run(99), old_run(99)
    for run in (going, waiting, behind):
        (run.folder / "done").unlink()
    for run in (going, waiting):
        write_json(run.folder / "process.json", lease.this_process())
        lease.line_up(run.id, run.owner, str(run.folder))
    assert lease._begin(going.id)
    lease.line_up(behind.id, behind.owner, str(behind.folder), process={"pid": 2**22 + 5, "started": 0.0})
    packed = home / "models" / "packed" / "abc"
    packed.mkdir(parents=True)
    (packed / "config.json").touch()
    for folder in (going.folder, waiting.folder, behind.folder, packed):
        aged(folder, 99)
    for days in (9, 11):
        clearing.sweep(thorough=True, now=time.time() + days * DAY)
    assert all(run.folder.exists() for run in (going, waiting, behind)) and packed.exists()
    for run in (going, waiting, behind):
        lease.leave(run.id)
    clearing.sweep(thorough=True)
    assert not packed.exists()


def test_downloaded_models_go_when_nobody_has_used_them_but_not_a_runs_nor_a_chats_nor_the_starter(home, shared, tmp_path):
    from huggingface_hub import constants

    shared.setattr(clearing, "on_a_space", lambda: True)
    shared.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repos = {}
    for name in ("old/base", "run/base", "chat/base", "new/base", STARTER_MODEL):
        folder = tmp_path / "hub" / f"models--{name.replace('/', '--')}" / "snapshots" / "abc"
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"x")
        repos[name] = folder
        if name != "new/base":
            aged(folder.parent.parent, 30)
    run = old_run(1)
    write_json(run.folder / "base.json", {"id": "run/base", "dir": str(repos["run/base"])})
    (run.folder / "done").unlink()
    lease.line_up(run.id, run.owner, str(run.folder))
    (home / "models").mkdir(exist_ok=True)
    write_json(home / "models" / "fetched.json", {"chat/base@": {"base": {"id": "chat/base", "dir": str(repos["chat/base"])}, "for_anybody": True}})
    room.note("chat/base", 1.0)
    clearing.sweep(thorough=True)
    assert {name for name, folder in repos.items() if folder.exists()} == {"run/base", "chat/base", "new/base", STARTER_MODEL}


def test_old_datasets_go_and_those_of_earlier_formats_but_not_one_in_hand(home):
    old, used, earlier, checked = (data.keep("anna", "Rows", RECORDS, {"kind": "paste"}) for _ in range(4))
    write_json(earlier.folder / "source.json", {"name": "Rows"})
    for dataset, days in ((old, 4), (used, 4), (earlier, 1), (checked, 4)):
        aged(dataset.folder, days)
    write_json(checked.folder / "process.json", lease.this_process())
    os.utime(checked.folder / "process.json", (0, 0))
    aged(checked.folder, 4)
    data.find("anna", used.id)
    clearing.sweep()
    assert [its.folder.exists() for its in (old, used, earlier, checked)] == [False, True, False, True]


def test_where_the_disk_is_short_what_can_be_had_again_goes_first(home, shared):
    run, published, dataset = old_run(3), old_run(3), data.keep("anna", "Rows", RECORDS, {"kind": "paste"})
    write_json(published.folder / "publish.json", {"state": "verified"})
    aged(dataset.folder, 1)
    aged(published.folder, 3)
    left = home / "runs" / "anna" / run.id / ".report.json.123.tmp"
    left.write_bytes(b"half")
    aged(run.folder, 3)
    shared.setenv("TUNER_FREE_GIB", "1000000")
    now = time.time()
    clearing.sweep()
    assert not dataset.folder.exists() and not left.exists() and run.folder.exists()
    assert published.adapter_dir.parent.exists() and not (published.folder / "checkpoints").exists()
    assert "unless you publish it" in notes(run) and notes(published) == ""
    clearing.sweep(now=now + DAY + 60)
    assert not run.folder.exists() and published.folder.exists()


def test_what_visitors_sent_goes_when_nobody_can_have_it_in_hand_any_more(home, shared):
    old, new = (home / "uploads" / "anna" / name for name in ("old", "new"))
    old.parent.mkdir(parents=True)
    for path in (old, new):
        path.write_bytes(b"rows")
    aged(old, 0.1)
    clearing.sweep()
    assert not old.exists() and new.exists()


def test_on_ones_own_machine_nothing_is_removed(home, shared):
    shared.delenv("TUNER_SHARED")
    shared.delenv("TUNER_FREE_GIB")
    run, dataset = old_run(400), data.keep("anna", "Rows", RECORDS, {"kind": "paste"})
    aged(dataset.folder, 400)
    clearing.sweep()
    assert run.folder.exists() and dataset.folder.exists() and clearing.removed_at(run) is None


# The owner's view ---------------------------------------------------------------------------------------------------


def test_only_the_owner_of_a_space_sees_it_and_may_act(home, shared):
    shared.setenv("SYSTEM", "spaces")
    shared.setenv("SPACE_ID", "ada/tuner")
    acts = (lambda name: stewardship.view(name), lambda name: stewardship.pause(name, True), lambda name: stewardship.free_space(name))
    for name in ("bob", "anon-" + "0" * 32, ""):
        for act in acts:
            with pytest.raises(UserError, match="Only the owner of this Space"):
                act(name)
    assert not limits.is_paused()
    stewardship.pause("ada", True)
    assert stewardship.view("ada")["paused"]
    stewardship.pause("ada", False)
    shared.setenv("SPACE_AUTHOR_NAME", "lab")
    assert not stewardship.is_owner("ada") and stewardship.is_owner("lab")
    shared.setenv("TUNER_OWNERS", "ada, eve")
    assert stewardship.is_owner("ada") and stewardship.is_owner("eve") and not stewardship.is_owner("bob")


def test_the_view_holds_nothing_of_other_visitors_but_what_is_needed(home):
    anonymous = "anon-" + "5" * 32
    failed = runs.create(anonymous, Recipe(base_model="test/small", held_out_share=0.2), data.keep(anonymous, "Secret name", RECORDS, {"kind": "paste"}))
    (failed.folder / "error.txt").write_text("Row 17 “my secret row” cannot be: hf_canary in /home/secret\nTraceback secret")
    lease.line_up("a1", "anna", seconds=60.0)
    view = stewardship.view("local")
    assert view["queue"] == [{"owner": "anna", "kind": "run", "state": "waiting", "left_s": 60.0}]
    assert [(its["owner"], its["why"]) for its in view["failures"]] == [("somebody without an account", "Row 17")]
    assert "secret" not in str(view).lower() and "hf_" not in str(view) and anonymous[5:13] not in str(view)
    assert view["disk"]["free_gib"] > 0 and view["memory"]["total_gib"] > 0 and view["disk"]["by"]["runs"] > 0

    from tuner.ui import queue_view

    assert "somebody without an account" in queue_view.panel(view)
