"""Kept runs: what leaves this machine, how a run comes back to an empty one, and what a changed repository cannot do."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from tests.drawn import coded, noise
from tests.hub_client import ALICE, BOB, Client, assert_no_token_in
from tests.small import small_seer
from tests.small_run import adapter_hash, die_after, events, losses, notes, small_run
from tests.stand_in_hub import Fault
from tests.test_image_labels import image_run
from tuner import keeping, train
from tuner import run as runs
from tuner.errors import UserError

PRELUDE = """
from tuner import homecoming, keeping, hub, lease, transfer, run as runs
from tuner.home import write_json
transfer.PAUSES_S = (0, 0, 0)
keeping.LOOK_S = 0.05
"""


@pytest.fixture(scope="module")
def client(server, tmp_path_factory):
    process = Client(server.url, tmp_path_factory.mktemp("client"))
    yield lambda home, code: process(PRELUDE + code, TUNER_HOME=str(home))
    process.close()
    assert_no_token_in(process.log.parent)


def files_of(made, server, client, home: Path) -> tuple[str, dict]:
    """A run that `made` gives, kept from that home: its id, and what its repository holds."""
    from tests.conftest import make_quick

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNER_HOME", str(home))
        make_quick(patch)
        run = made()
        client(home, f"keeping.begin(runs.find('alice', {run.id!r}), {ALICE!r}).join()")
    return run.id, dict(server.repos["model", f"alice/tuner-kept-{run.id}"].files)


def killed_at_step_4(base, **settings) -> runs.Run:
    """A run whose machine went away after its second checkpoint."""
    run = small_run(base, owner="alice", **settings)
    die_after(4, run)
    return run


def test_a_run_comes_back_to_an_emptied_machine_and_ends_bit_for_bit(base, home, quick, server, client):
    server.add_repo("test/small", files={path.name: path.read_bytes() for path in base.iterdir()})
    whole = small_run(base, owner="alice")
    train.train(whole)
    wanted = adapter_hash(whole.adapter_dir), losses(whole), [event["loss"] for event in events(whole, "eval")], whole.read("report")["best_step"]
    run = killed_at_step_4(base)
    client(home, f"keeping.begin(runs.find('alice', {run.id!r}), {ALICE!r}).join()")
    repo_id = f"alice/tuner-kept-{run.id}"
    assert keeping.words(run) == f"{repo_id} holds step 4." and keeping.state(run)["state"] == "kept"
    there = server.repos["model", repo_id]
    assert there.private and {Path(name).suffix for name in there.files} <= {".safetensors", ".json", ".jsonl", ".md", ""}
    assert not [name for name, content in there.files.items() if str(home).encode() in content or b"hf_" in content]
    assert_no_token_in(home)

    shutil.rmtree(home)
    home.mkdir()
    assert client(home, f"result = [(its['run'], its['title']) for its in keeping.find({ALICE!r})]") == [[run.id, "Animals"]]
    assert client(home, f"result = keeping.find({BOB!r})") == []
    client(home, f"run = homecoming.bring_back('alice', {repo_id!r}, {ALICE!r}); runs.fetch_base(run, {ALICE!r})")
    back = runs.find("alice", run.id)
    assert back.state() == "interrupted" and back.title == "Animals" and "Brought back" in notes(back)
    train.train(back)
    assert (adapter_hash(back.adapter_dir), losses(back), [event["loss"] for event in events(back, "eval")], back.read("report")["best_step"]) == wanted
    assert "Going on from the checkpoint of step 4" in notes(back)
    # Kept again from here, it replaces what the other machine had put there.
    client(home, f"keeping.begin(runs.find('alice', {run.id!r}), {ALICE!r}).join()")
    held = {name.split("/")[1] for name in there.files if name.startswith("checkpoints/")}
    assert len(held) <= 2 and "checkpoint-8" in held and "checkpoint-4" not in held, held
    assert_no_token_in(home)
    with pytest.raises(UserError, match="is on this machine already"):
        client(home, f"homecoming.bring_back('alice', {repo_id!r}, {ALICE!r})")


def test_an_upload_that_fails_is_said_and_made_up_for_and_the_token_is_nowhere(base, home, quick, server, client):
    run = killed_at_step_4(base)
    server.faults.append(Fault("500", path=f"{run.id}/commit", times=40))
    client(home, f"""
run = runs.find("alice", {run.id!r})
write_json(run.folder / "process.json", lease.this_process())  # as if it trained now
run.log("status", state="training", message="Training")
thread = keeping.begin(run, {ALICE!r})
""" + """
import time
until = time.time() + 20
while keeping.state(run)["state"] != "waiting" or "could not be kept" not in keeping.state(run)["reason"]:
    assert time.time() < until, keeping.state(run)
    time.sleep(0.02)
""")
    assert "Step 4 could not be kept" in notes(run) and keeping.words(run).startswith("Nothing is kept yet. Step 4 could not be kept")
    server.faults.clear()
    client(home, f"""
import threading
(runs.find("alice", {run.id!r}).folder / "process.json").unlink()  # it ends
[its.join(20) for its in threading.enumerate() if its.name.startswith("keep-")]
""")
    assert keeping.state(run)["state"] == "kept" and keeping.state(run)["step"] == 4
    assert_no_token_in(home)


def test_a_public_repository_gets_no_rows(base, home, server, client):
    run = small_run(base, owner="alice")
    there = server.add_repo(f"alice/tuner-kept-{run.id}")
    with pytest.raises(UserError, match="is public, and rows of yours would be for everybody to read"):
        client(home, f"keeping.begin(runs.find('alice', {run.id!r}), {ALICE!r})")
    assert list(there.files) == [] and keeping.state(run)["state"] == "none"


# Pictures ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seer(tmp_path_factory, one_thread):
    return small_seer(tmp_path_factory.mktemp("seer"))


def killed_picture_run(seer, folder: Path) -> runs.Run:
    """A run on pictures whose machine went away in the middle."""
    run = image_run(seer, folder, owner="alice")
    die_after(1, run)
    return run


def test_a_run_on_pictures_comes_back_with_them_and_ends_bit_for_bit(seer, home, quick, server, client, tmp_path):
    server.add_repo("test/small", files={path.name: path.read_bytes() for path in seer.iterdir()})
    whole = image_run(seer, tmp_path, owner="alice")
    train.train(whole)
    wanted = adapter_hash(whole.adapter_dir), losses(whole)
    run = killed_picture_run(seer, tmp_path)
    client(home, f"keeping.begin(runs.find('alice', {run.id!r}), {ALICE!r}).join()")
    repo_id = f"alice/tuner-kept-{run.id}"
    assert server.repos["model", repo_id].files["data/pictures.bin"] == (run.folder / "data" / "pictures.bin").read_bytes()
    shutil.rmtree(home)
    home.mkdir()
    client(home, f"run = homecoming.bring_back('alice', {repo_id!r}, {ALICE!r}); runs.fetch_base(run, {ALICE!r})")
    back = runs.find("alice", run.id)
    train.train(back)
    assert (adapter_hash(back.adapter_dir), losses(back)) == wanted


@pytest.fixture(scope="module")
def kept_pictures(seer, server, client, tmp_path_factory):
    """The files of a kept run on pictures, as its repository holds them."""
    return files_of(lambda: killed_picture_run(seer, tmp_path_factory.mktemp("shapes")), server, client, tmp_path_factory.mktemp("kept-pictures"))


def other_picture(files: dict, content: bytes, sha: str = "") -> dict:
    """With another picture in the place of the first row's, and its hash where it belongs unless it is given."""
    rows = [json.loads(line) for line in files["data/train.jsonl"].splitlines()]
    rows[0]["picture"] |= {"at": 0, "bytes": len(content), "sha": sha or hashlib.blake2b(content, digest_size=16).hexdigest()}
    new = changed(files, "data/pictures.bin", content + files["data/pictures.bin"][len(content) :])
    return changed(new, "data/train.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows[:1]).encode())


BOMB = b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + (60_000).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0" + b"\0" * 40


@pytest.mark.parametrize("change, said", [
    (lambda its: changed(its, "data/pictures.bin", b"x" + its["data/pictures.bin"][1:]), "a picture of it"),
    (lambda its: changed(its, "data/pictures.bin", its["data/pictures.bin"][:100]), "a picture of it is missing"),
    (lambda its: other_picture(its, coded(noise(5)), "0" * 32), "is not one that was kept"),
    (lambda its: other_picture(its, coded(noise(5).resize((1000, 900)))), "is not one that was kept"),
    (lambda its: other_picture(its, b"<svg onload=alert(1)>"), "not a picture that is read here"),
    (lambda its: other_picture(its, BOMB), "a picture of it"),
], ids=["other bytes", "cut off", "another", "one too large", "no picture", "a bomb"])
def test_pictures_that_were_changed_are_refused_in_words_and_leave_nothing(home, server, client, kept_pictures, change, said):
    run_id, files = kept_pictures
    server.add_repo(f"alice/tuner-kept-{run_id}", files=change(files), private=True)
    with pytest.raises(UserError, match=said):
        client(home, f"homecoming.bring_back('alice', 'alice/tuner-kept-{run_id}', {ALICE!r})")
    assert [path for path in (home / "runs").rglob("*") if path.is_file()] == []


def test_after_a_restart_of_the_app_the_keeping_is_let_go_and_said(base, home):
    run = small_run(base)
    from tuner.home import write_json

    write_json(run.folder / "kept.json", {"state": "keeping", "repo_id": "alice/x", "step": 4, "commit": "c", "process": {"pid": 2**22 + 5, "started": 0.0}})
    assert keeping.state(run)["state"] == "let go" and "Sign in, then keep it again" in keeping.words(run)


@pytest.fixture(scope="module")
def kept(base, server, client, tmp_path_factory):
    """The files of a kept run, as its repository holds them."""
    return files_of(lambda: killed_at_step_4(base), server, client, tmp_path_factory.mktemp("kept-home"))


def changed(files: dict, path: str, content: bytes) -> dict:
    """With one file as somebody else wrote it, who also knows how to put its hash where it belongs."""
    told = json.loads(files["kept.json"])
    its = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    new = {**files, path: content}
    if path != "kept.json":
        told["files"][path] = its
        folder, _, name = path.rpartition("/")
        if folder.startswith("checkpoints/") and name != "manifest.json":
            manifest = json.loads(files[f"{folder}/manifest.json"])
            manifest["files"][name] = its
            new = changed(new, f"{folder}/manifest.json", json.dumps(manifest).encode())
            told = json.loads(new["kept.json"]) | {"files": {**json.loads(new["kept.json"])["files"], path: its}}
        new["kept.json"] = json.dumps(told).encode()
    return new


def with_told(files: dict, /, **changes) -> dict:
    return {**files, "kept.json": json.dumps(json.loads(files["kept.json"]) | changes).encode()}


def plan_with(files: dict, /, **changes) -> dict:
    return changed(files, "plan.json", json.dumps(json.loads(files["plan.json"]) | changes).encode())


STEP = "checkpoints/checkpoint-4"
HOSTILE = {
    "a path that leads out": (lambda its: with_told(its, files={**json.loads(its["kept.json"])["files"], "../../../evil.json": {"bytes": 1, "sha256": "0" * 64}}), "has no business there"),
    "a pickle": (lambda its: with_told({**its, f"{STEP}/optimizer.pt": b"x"}, files={**json.loads(its["kept.json"])["files"], f"{STEP}/optimizer.pt": {"bytes": 1, "sha256": "0" * 64}}), "has no business there"),
    "other bytes": (lambda its: {**its, f"{STEP}/adapter.safetensors": its[f"{STEP}/adapter.safetensors"][:-1] + b"!"}, "is not the file that was kept"),
    "no tensors": (lambda its: changed(its, f"{STEP}/optimizer.safetensors", b"\xff" * 64), "holds no tensors"),
    "a manifest that names others": (lambda its: changed(its, f"{STEP}/manifest.json", json.dumps({"step": 4, "files": {"/etc/passwd": {"bytes": 1, "sha256": "0" * 64}}}).encode()), "does not fit its files"),
    "a plan with a path": (lambda its: plan_with(its, precision="../x"), "its plan says precision"),
    "a plan with more": (lambda its: plan_with(its, auto_map="evil.py"), "its plan says auto_map"),
    "another run": (lambda its: with_told(its, run="20200101-000000-00000000"), "of another run or version"),
    "a recipe that cannot be": (lambda its: with_told(its, recipe='base_model = "/etc"\n'), "its recipe cannot be"),
    "pictures of a run that has none": (lambda its: changed(its, "data/pictures.bin", b"x"), "pictures.bin has no business there"),
    "rows that are none": (lambda its: changed(its, "data/train.jsonl", b'{"n": 1, "messages": "no"}\n'), "holds what is no row"),
    "deep JSON": (lambda its: changed(its, "plan.json", b"[" * 100_000), "plan.json cannot be read"),
    "another base": (lambda its: changed(its, "base.json", b'{"id": "evil/base", "revision": "", "what": ""}'), "its base is not the recipe's"),
    "best of nothing": (lambda its: changed(its, f"{STEP}/tuning.json", b'{"best": {"loss": "x", "step": "../4", "worse": 0}, "elapsed_s": 1}'), "cannot be"),
    "no manifest of the whole": (lambda its: {name: content for name, content in its.items() if name != "kept.json"}, "holds no kept run"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_changed_repository_is_refused_in_words_and_leaves_nothing(home, server, client, kept, what):
    run_id, files = kept
    change, said = HOSTILE[what]
    server.add_repo(f"alice/tuner-kept-{run_id}", files=change(files), private=True)
    with pytest.raises(UserError, match=said):
        client(home, f"homecoming.bring_back('alice', 'alice/tuner-kept-{run_id}', {ALICE!r})")
    assert [path for path in (home / "runs").rglob("*") if path.is_file()] == [] and not list(home.glob("*.json"))


def test_only_what_a_run_has_is_downloaded_and_nobody_elses(home, server, client, kept):
    run_id, files = kept
    repo_id = f"alice/tuner-kept-{run_id}"
    hostile = [
        {"t": 1, "kind": "step", "step": "<script>", "loss": []}, {"t": "x", "kind": "eval"}, {"t": 1, "kind": "result", "base_loss": {}},
        {"t": 1, "kind": "status", "state": "root", "message": ""}, [1], {"t": 2, "kind": "note", "message": "kept", "extra": {"a": 1}},
    ]
    new = changed(files, "events.jsonl", "".join(f"{json.dumps(its)}\n" for its in hostile).encode() + b"[" * 50_000 + b"\n\xff\n")
    server.add_repo(repo_id, files={**new, "evil.py": b"print()", "model.bin": b"x", f"{STEP}/extra.txt": b"x"}, private=True)
    server.requests.clear()
    client(home, f"homecoming.bring_back('alice', {repo_id!r}, {ALICE!r})")
    assert not [its.path for its in server.requests if "evil.py" in its.path or "model.bin" in its.path or "extra" in its.path]
    run = runs.find("alice", run_id)
    assert [event["kind"] for event in run.events()[0]] == ["note", "note"] and "extra" not in run.events()[0][0]
    for owner, token, asked in (("bob", BOB, repo_id), ("alice", ALICE, "alice/other"), ("alice", ALICE, f"alice/tuner-kept-{run_id}/../x")):
        with pytest.raises(UserError, match="is not a kept run of"):
            client(home, f"homecoming.bring_back({owner!r}, {asked!r}, {token!r})")
