"""Strangers on one Space, over real HTTP: who they are is the Hub's word, and nobody reads, stops, rides on or spends what is another's."""

import hashlib
import json
import shutil
import time
from pathlib import Path

import pytest

from tests import drawn
from tests.finished_run import finished_run
from tests.space import HOST, Space, Visitor
from tests.stand_in_hub import Fault, StandInHub
from tests.test_figures import report
from tuner import data, figures, publish
from tuner import run as runs
from tuner.home import write_json, write_whole
from tuner.recipe import Recipe

MARK = "zebra-of-alice"  # in all that is hers: titles, rows, answers
KINDS = [kind.PLACE for kind in runs.kinds()]
DOES = ("again:0", "keep", "set:epochs=2", "show:all", "fix:duplicate:drop", "undo:0", "page:1", "open:0")


@pytest.fixture(scope="module")
def hub():
    with StandInHub() as hub:
        yield hub


@pytest.fixture(scope="module")
def space(hub, tmp_path_factory):
    with Space(tmp_path_factory.mktemp("space"), hub) as space, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNER_HOME", space.env["TUNER_HOME"])
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield space


@pytest.fixture
def alice(space):
    return Visitor(space).sign_in("alice")


@pytest.fixture
def bob(space):
    return Visitor(space).sign_in("bob")


@pytest.fixture
def third(space):
    return Visitor(space, cookies=False)


def own_things(space: Space, owner: str, mark: str) -> dict[str, str]:
    """A dataset, a finished run and, newest, a failed one that could be resumed, trained longer, kept or tried again; their ids."""
    if owner in space.made:
        return space.made[owner]
    done = finished_run(space.home / "made", owner)
    done.rename(mark)
    row = {"row": 1, "prompt": f"{mark}?", "wanted": mark, "base": {"loss": 2.0, "text": mark, "ended": True}, "tuned": {"loss": 1.0, "text": mark, "ended": True}}
    made = report(best_step=4, held_out_of=40)  # not all of them, so that it could be measured again
    write_json(done.folder / "report.json", made | {"rows": {"improved": [row], "worsened": []}, "says": figures.verdicts(made, 4), "examples": [row]})
    records = [{"prompt": f"{mark} {number}?", "completion": f"{mark} says {number}."} for number in range(20)]
    dataset = data.keep(owner, mark, records, {"kind": "paste"})
    failed = runs.create(owner, Recipe(base_model="test/small", title=mark), dataset)
    while failed.id < done.id:  # both of one second
        failed.delete()
        failed = runs.create(owner, Recipe(base_model="test/small", title=mark), dataset)
    write_json(failed.folder / "plan.json", done.read("plan"))
    (failed.folder / "checkpoints" / "checkpoint-4").mkdir(parents=True)
    failed.log("eval", step=0, loss=2.0, best=False)
    failed.log("eval", step=4, loss=1.0, best=True)
    failed.log("sample", step=4, number=0, prompt=f"{mark}?", text=f"{mark}!")
    write_json(failed.folder / "proposals.json", [{"words": "Fewer", "settings": {"epochs": 2.0}, "harm": 0.0, "memory_gib": 1.0, "seconds": 60.0}])
    write_whole(failed.folder / "error.txt", f"{mark} failed.")
    space.made[owner] = {"failed": failed.id, "done": done.id, "dataset": dataset.id}
    return space.made[owner]


def tree(*folders: Path) -> dict[str, str]:
    """Every file below, with its content's hash."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for folder in folders for path in folder.rglob("*") if path.suffix != ".lock"
    }


def belongings(space: Space, owner: str) -> list[Path]:
    return [Path(space.env["TUNER_HOME"]) / place / owner for place in (*KINDS, "datasets", "uploads")]


def spent(space: Space, hub: StandInHub, owner: str) -> set:
    """What is there after somebody used the machine to train or measure, or wrote to the Hub: what they made and started; writes there."""
    home = Path(space.env["TUNER_HOME"])
    started = {(path, path.stat().st_mtime_ns) for place in KINDS for path in home.glob(f"{place}/{owner}/*/process.json")}
    made = {path for place in KINDS for path in home.glob(f"{place}/{owner}/*/recipe.toml")}
    written = [its for its in hub.requests if its.method in ("POST", "PUT", "DELETE") and its.path.startswith(("/api/repos", "/api/models"))]
    return started | made | {("written", number) for number in range(len(written))}


def all_calls(visitor: Visitor):
    """Every event that the app has, with what the page holds; those of a picture with each of its buttons' words."""
    for event in visitor.events():
        pictures = any(visitor.components[its]["type"] == "html" for its, name in event["targets"] if its in visitor.components)
        for do in DOES if pictures else ("",):
            yield event, do


def settle(owner: str) -> None:
    """Wait until nothing of this owner's is going any more; a run without its base fails at once."""
    deadline = time.monotonic() + 20
    for kind in runs.kinds():
        for its in runs.mine(owner, kind):
            while its.state() in runs.LIVE or publish.state(its)["state"] in publish.LIVE:
                assert time.monotonic() < deadline, its
                time.sleep(0.02)


# Who it is ---------------------------------------------------------------------------------------------------------


def test_signing_in(space, alice):
    """Before: looking works, and the page says that starting does not. After: the Hub's word for who it is."""
    stranger = Visitor(space).open()
    assert stranger.values[stranger.id_of("start")] == stranger.values[stranger.id_of("start-here")] == "Sign in to start"
    assert "Clickbait" in stranger.values[stranger.id_of("dataset-about")]
    said = " ".join(str(stranger.values[stranger.id_of("scopes")]).split())
    assert "contribute-repos" in said and "gated-repos" in said
    own_things(space, "alice", MARK)
    alice.open()
    assert alice.values[alice.id_of("start")] == alice.values[alice.id_of("start-here")] == "Start"
    assert MARK in alice.values[alice.id_of("runs")]
    assert MARK not in json.dumps(stranger.values)


def test_what_the_client_says_of_itself_does_not_count(space, hub, bob, alice):
    """Neither a token in a request, nor a name or another's browser id in place of one's own."""
    own_things(space, "alice", MARK)
    token = hub.sign_in.tokens["alice"][-1]
    bob.open()
    event = after_load(bob, "runs")
    body = {"data": [None] * len(event["inputs"]), "fn_index": event["id"], "session_hash": bob.session, "oauth_token": token}
    refused = Visitor(space).post("/gradio_api/queue/join", body)
    assert refused.status == 403 and "does not count here" in refused.text
    for claimed in ("alice", "local", "../alice", "anon-../alice", ["alice"], {"owner": "alice"}):
        stranger = Visitor(space)
        stranger.browser_id = claimed
        stranger.open()
        assert MARK not in json.dumps(stranger.values)


def test_a_revoked_token_stops_counting(space, hub):
    """The cookie still holds it, and the page says what to do; nothing of the user's is shown or can be started."""
    own_things(space, "alice", MARK)
    visitor = Visitor(space).sign_in("alice")
    hub.sign_in.revoke(hub.sign_in.tokens["alice"].pop())
    visitor.open()
    assert "Your sign-in has ended" in visitor.values[visitor.id_of("account")]
    assert visitor.values[visitor.id_of("start")] == "Sign in to start"
    assert MARK not in json.dumps(visitor.values)


def test_a_sign_in_that_ends_while_it_pushes_loses_nothing(space, hub):
    """The Hub stops knowing the token between two requests of a push. After signing in again the same push works."""
    ids = own_things(space, "carol", "carols")
    carol = Visitor(space).sign_in("carol").open()
    carol.run(carol.event("subject", "change"), values={carol.id_of("subject"): ids["done"]})
    push = dict(values={carol.id_of("subject"): ids["done"], carol.id_of("repo-name"): "animals"})
    hub.faults = [
        Fault(lambda its: its.sign_in.revoke(its.sign_in.tokens["carol"].pop()), "POST", "/preupload/"),
        Fault("404", "GET", r"/api/models/carol/animals/revision", times=99),  # what follows the push is not the matter here
    ]
    try:
        run = runs.find("carol", ids["done"])
        before = tree(run.adapter_dir)
        assert carol.call(carol.event("push"), **push)["success"]
        told = wait_for_publishing(run)
        assert told["state"] == "failed" and "Sign in again" in told["reason"] and not told.get("commit")
        assert tree(run.adapter_dir) == before
        carol.sign_in("carol").open()
        carol.run(carol.event("subject", "change"), values={carol.id_of("subject"): ids["done"]})
        assert carol.call(carol.event("push"), **push)["success"]
        told = wait_for_publishing(run, "commit")
        assert told["commit"] == hub.repos["model", "carol/animals"].sha
        assert hub.repos["model", "carol/animals"].files["adapter_model.safetensors"] == (run.adapter_dir / "adapter_model.safetensors").read_bytes()
    finally:
        hub.faults = []


def test_a_name_that_another_run_has_is_taken_by_a_second_click(space, hub):
    ids = own_things(space, "frida", "fridas")
    frida = Visitor(space).sign_in("frida").open()
    frida.run(frida.event("subject", "change"), values={frida.id_of("subject"): ids["done"]})
    there = {"tuner.json": json.dumps({"run": "20260101-120000-0a1b2c3d", "base_model": "test/<small>"}), "adapter_model.safetensors": b"old"}
    repo, run = hub.add_repo("frida/animals", files=there, private=True), runs.find("frida", ids["done"])
    there, chosen = dict(repo.files), {frida.id_of("subject"): ids["done"]}
    assert frida.call(frida.event("replace"), values=chosen)["success"]  # nobody asked: nothing happens
    assert frida.call(frida.event("push"), values={**chosen, frida.id_of("repo-name"): "animals"})["success"]
    assert wait_for_publishing(run)["state"] == "taken" and repo.files == there
    frida.run(frida.event("subject", "change"), values=chosen)
    assert "(on an unknown base, published on" in frida.values[frida.id_of("pushed")] and frida.values[frida.id_of("replace")]
    assert frida.call(frida.event("replace"), values=chosen)["success"]
    assert wait_for_publishing(run, "commit")["commit"] == repo.sha and len(repo.commits) == 2
    assert repo.files["adapter_model.safetensors"] == (run.adapter_dir / "adapter_model.safetensors").read_bytes()


def wait_for_publishing(run, until: str = "reason") -> dict:
    deadline = time.monotonic() + 30
    while not (told := run.read("publish", {})).get(until) or (until == "reason" and told["state"] in ("checking", "pushing")):
        assert time.monotonic() < deadline, told
        time.sleep(0.05)
    return told


def test_what_was_brought_before_signing_in_is_there_after_it(space):
    """A stranger's rows follow them into their account, and to no other."""
    visitor = Visitor(space).open()
    rows = "\n".join(json.dumps({"prompt": f"okapi {number}", "completion": "yes"}) for number in range(12))
    visitor.run(visitor.event("read-pasted"), values={visitor.id_of("pasted"): rows})
    assert "Pasted rows" in visitor.values[visitor.id_of("dataset-about")]
    visitor.sign_in("dora").open()
    assert "Pasted rows" in visitor.values[visitor.id_of("dataset-about")]
    other = visitor.sign_in("erik").open()  # on the same machine, after her
    assert "Clickbait" in other.values[other.id_of("dataset-about")] and "okapi" not in json.dumps(other.values)


# Each one's own ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["bob", "third with her session"])
def test_no_event_gives_or_changes_what_is_anothers(space, hub, alice, who, request):
    """Every event that the app has, called raw with her ids in every place that takes a value; one added later as well."""
    ids = own_things(space, "alice", MARK)
    settle("alice")
    alice.open()
    attacker = request.getfixturevalue(who.split()[0]).open()
    session = alice.session if "session" in who else attacker.session
    before, asked = tree(*belongings(space, "alice")), len(hub.requests)
    events = list(all_calls(attacker))
    # In place of what stands in a list of fixed words nothing would get as far as the app's own code.
    places = {its for its, about in attacker.components.items() if about["type"] == "textbox"}
    lists = {its for its, about in attacker.components.items() if about["type"] == "dropdown" and about["props"].get("elem_id") in ("chosen-run", "subject", "show-rows")}
    for event, do in events:
        for said, where in ((ids["done"], places | lists), (ids["dataset"], places))[: 1 if do else 2]:
            attacker.call(event, session=session, values=dict.fromkeys(where, said), do=do.replace("0", said))
            assert MARK not in json.dumps(attacker.heard), (attacker.name_of(event), said)
    assert len(events) > 150
    assert tree(*belongings(space, "alice")) == before
    assert not [its for its in hub.requests[asked:] if its.token in hub.sign_in.tokens["alice"]]


def test_what_costs_refuses_whoever_is_not_signed_in(space, hub, tmp_path):
    """Which events cost is found by calling them all as somebody signed in; each of these then refuses a stranger with the same means."""
    hub.faults = [Fault("403", "POST", "/commit/", times=9999)]  # so far and no further
    costly = set()
    try:
        for visitor, user in ((Visitor(space), "frank"), (Visitor(space), "")):
            owner = user or f"anon-{visitor.browser_id}"
            ids = own_things(space, owner, "mine")
            backup = tmp_path / owner
            shutil.copytree(runs.Run.place_of(owner), backup)
            visitor = (visitor.sign_in(user) if user else visitor).open()
            reattach = after_load(visitor, "runs")
            visitor.values |= {visitor.id_of("chosen-run"): ids["done"], visitor.id_of("subject"): ids["done"], visitor.id_of("repo-name"): "animals"}
            before = spent(space, hub, owner)
            for event, do in all_calls(visitor):
                name = (visitor.name_of(event), do)
                if measures := name[0] == "measure-all click":  # the finished run is measured; it is the failed one that is shown
                    visitor.call(next(its for its in visitor.events() if visitor.name_of(its) == "open-run click"))
                answer, deadline = visitor.call(event, do=do), time.monotonic() + 30
                while "still being checked" in json.dumps(answer) and time.monotonic() < deadline:  # an event before it changed the rows
                    time.sleep(0.2)
                    answer = visitor.call(event, do=do)
                settle(owner)
                now = spent(space, hub, owner)
                if measures:
                    visitor.call(reattach)
                if user and now - before:
                    costly.add(name)
                if not user:
                    assert not now - before, name
                    assert name not in costly or (not answer["success"] and "sign" in json.dumps(answer)), (name, answer)
                if now != before or not (runs.Run.place_of(owner) / ids["done"]).exists():
                    for place in KINDS:
                        shutil.rmtree(Path(space.env["TUNER_HOME"]) / place / owner, ignore_errors=True)
                    shutil.copytree(backup, runs.Run.place_of(owner))
                    visitor.call(reattach)
                    before = spent(space, hub, owner)
    finally:
        hub.faults = []
    assert {"start click", "start-here click", "try-rate click", "try-enough click", "resume click", "longer click", "push click", "measure-all click"} <= {name for name, _ in costly}
    assert {("run-status click", "again:0"), ("run-status click", "keep")} <= costly


def after_load(visitor: Visitor, elem_id: str) -> dict:
    """The event by which the page fills this component when it is loaded."""
    return next(its for its in visitor.events() if visitor.id_of(elem_id) in its["outputs"] and its["trigger_after"] is not None)


def test_nobody_rides_on_anothers_session(space, alice, bob, third):
    """With her session_hash one gets a session of one's own: not her answers, not her values; and her events go on."""
    own_things(space, "alice", MARK)
    alice.open()
    event = after_load(alice, "runs")
    body = {
        "data": [alice.browser_id if its == alice.id_of_browser() else None for its in event["inputs"]], "fn_index": event["id"],
        "session_hash": alice.session, "trigger_id": None,
    }
    joined = alice.post("/gradio_api/queue/join", body).json()["event_id"]
    for attacker in (bob, third):
        assert not [its for its in attacker.listen(alice.session, 2.0) if its["msg"] not in ("unexpected_error", "heartbeat", "close_stream")]
        attacker.get(f"/gradio_api/queue/data?session_hash={bob.session}&session_hash={alice.session}")
        attacker.post("/gradio_api/cancel", {"session_hash": alice.session, "fn_index": event["id"], "event_id": "0" * 32})
        attacker.post("/gradio_api/reset", {"session_hash": alice.session, "event_id": joined})
    answer = alice.wait(joined, alice.session)
    assert answer["success"] and MARK in json.dumps(answer)


# Files -------------------------------------------------------------------------------------------------------------

ROWS = "\n".join(json.dumps({"prompt": f"{MARK} {number}", "completion": "yes"}) for number in range(12)).encode()


def test_a_file_is_its_senders_alone(space, alice, bob, third):
    """Until it is taken only they get it, at an address of its own even where another sends the same; then nobody does."""
    alice.open()
    bob.open()
    [path] = alice.upload("zebra.jsonl", ROWS).json()
    [same] = bob.upload("zebra.jsonl", ROWS).json()
    assert same != path
    assert alice.get(f"/gradio_api/file={path}").body == ROWS
    folder = space.env["GRADIO_TEMP_DIR"]
    inner = path.removeprefix(folder).lstrip("/")
    for attacker in (bob, third, Visitor(space, cookies=False)):
        for address in (
            f"file={path}", f"file/{path.lstrip('/')}", f"file={folder}/./{inner}", f"file=/{path}", f"file={same.rsplit('/', 2)[0]}/../../../{inner}",
            f"file={path.replace('/', '%2F')}", f"file={path.lstrip('/')}", f"stream/{alice.session}/1/1/playlist-file", f"proxy={path}",
        ):
            for method in ("GET", "HEAD"):
                answer = attacker.ask(method, "/gradio_api/" + address)
                assert answer.status in (400, 403, 404, 405) and MARK not in answer.text, (address, answer.status)
    file = alice.id_of("file")
    for said in ({"path": path}, [{"path": path, "meta": {"_type": "gradio.FileData"}}], [{"path": path, "orig_name": "mine.jsonl"}]):
        refused = bob.call(bob.event("file", "upload"), values={file: said})
        assert refused.get("status") == 403 and MARK not in json.dumps(refused)
    taken = alice.run(alice.event("file", "upload"), values={file: [{"path": path, "orig_name": "zebra.jsonl", "meta": {"_type": "gradio.FileData"}}]})
    assert taken["success"] and "zebra.jsonl" in json.dumps(taken)
    assert not Path(path).exists()
    gone = alice.get(f"/gradio_api/file={path}")
    assert (gone.status, gone.body) == (204, b"") and bob.get(f"/gradio_api/file={path}").status == 403
    assert Path(same).exists()  # bob's own is still there for him


def test_a_picture_that_is_tried_leaves_the_cache_as_it_comes(space, alice, bob):
    alice.open()
    for box, picture in (("try-pictures", [drawn.coded(drawn.noise(1)), drawn.coded(drawn.noise(2))]), ("try-camera", [drawn.coded(drawn.noise(3))])):
        paths = [alice.upload(f"{number}.png", its).json()[0] for number, its in enumerate(picture)]
        sent = [{"path": path, "orig_name": Path(path).name, "meta": {"_type": "gradio.FileData"}} for path in paths]
        event = alice.event(box, "upload" if box == "try-pictures" else "input")
        taken = alice.run(event, values={alice.id_of(box): sent if box == "try-pictures" else sent[0]})
        assert taken["success"] and "to label: 0.png" in json.dumps(taken)
        assert not any(Path(path).exists() for path in paths) and not any(path in json.dumps(taken) for path in paths)
        for path in paths:
            assert alice.get(f"/gradio_api/file={path}").body == b"" and bob.get(f"/gradio_api/file={path}").status == 403
    held = [path for path in (Path(space.env["TUNER_HOME"]) / "uploads").rglob("*") if path.is_file()]
    assert len([path for path in held if path.read_bytes() in {drawn.coded(drawn.noise(number)) for number in (1, 2, 3)}]) == 3


def test_no_other_file_is_served(space, alice):
    """Not an address elsewhere, not the machine's, not the app's; but the page's own pictures are."""
    alice.open()
    home = space.env["TUNER_HOME"]
    own_things(space, "alice", MARK)
    for path in ("/etc/passwd", f"{home}/runs/alice", str(next(Path(home).glob("runs/alice/*/recipe.toml"))), "http://127.0.0.1:1/", "app.py", "/proc/self/environ"):
        assert alice.get(f"/gradio_api/file={path}").status in (400, 403, 404), path
    [icon] = {its["props"]["icon"]["url"] for its in alice.config["components"] if isinstance(its["props"].get("icon"), dict)}
    assert Visitor(space).get(icon[icon.index("/gradio_api") :]).status == 200


def test_the_page_is_no_proxy(space, hub, third):
    """An event that names a file elsewhere has nothing fetched for it."""
    third.open()
    asked = len(hub.requests)
    for event in third.events():
        for component in event["inputs"]:
            if third.components[component]["type"] in ("file", "chatbot"):
                said = [{"path": f"{hub.url}/alice/secret", "meta": {"_type": "gradio.FileData"}}]
                assert third.call(event, values={component: said}).get("status") == 403
    assert len(hub.requests) == asked


# Sharing -----------------------------------------------------------------------------------------------------------


def test_a_link_opens_a_run_to_look_at_until_it_is_unshared(space, alice, third):
    """Whoever has the key sees the run and is offered its model, with nothing to press; without it, nothing."""
    ids = own_things(space, "alice", MARK)
    alice.open()
    chosen = {alice.id_of("chosen-run"): ids["done"]}
    shared = alice.run(alice.event("share-run"), values=chosen)
    link = shared["output"]["data"][0]["value"]
    assert link.startswith("https://huggingface.co/spaces/owner/tuner?run=") and len(key := link.split("=")[1]) == 22
    assert alice.run(alice.event("share-run"), values=chosen)["output"]["data"][0]["value"] == link
    before = tree(*belongings(space, "alice"))

    third.open(f"?run={key}")
    assert MARK in third.values[third.id_of("shared-run")] and MARK not in third.values[third.id_of("runs")]
    offered = third.run(third.event("shared-chat"))
    assert offered["success"]
    assert third.values[third.id_of("subject")] == f"shared:{key}"
    for name in ("stop", "resume", "delete-sure", "rename-run", "push", "unshare-run", "share-run"):
        for said in (key, f"shared:{key}", ids["done"]):
            answer = third.call(third.event(name), values={its: said for its in third.event(name)["inputs"] if its != third.id_of_browser()})
            assert not answer["success"] and MARK not in json.dumps(answer), name
    assert tree(*belongings(space, "alice")) == before
    wrong = Visitor(space).open(f"?run={'A' * 22}")
    assert "leads to no run" in wrong.values[wrong.id_of("shared-run")]

    assert alice.run(alice.event("unshare-run"), values=chosen)["success"]
    late = Visitor(space).open(f"?run={key}")
    assert MARK not in json.dumps(late.values) and "leads to no run" in late.values[late.id_of("shared-run")]
    poll = next(its for its in third.events() if third.id_of("shared-run") in its["outputs"] and any(name == "tick" for _, name in its["targets"]))
    assert MARK not in json.dumps(third.call(poll))  # the page that was open meanwhile
    again = alice.run(alice.event("share-run"), values=chosen)["output"]["data"][0]["value"]
    assert again != link


def test_the_cookie_is_out_of_reach_of_scripts_and_works_in_the_hubs_frame(space):
    [cookie] = [line for line in Visitor(space).get("/").headers.get_all("set-cookie") if line.startswith("tuner-session=")]
    assert {"HttpOnly", "Secure", "SameSite=None", "Partitioned"} <= {part.strip() for part in cookie.split(";")}
    assert HOST not in cookie
