"""Publishing: what is checked before, what survives a bad connection, what may leave, and what proves that it arrived."""

import json
import os
import re
import textwrap
import time
from pathlib import Path

import pytest
import yaml

from tests.finished_run import CARD
from tests.hub_client import ALICE, BOB, Client, assert_no_token_in
from tests.stand_in_hub import Fault
from tuner import licences, outgoing, redaction
from tuner.errors import UserError

# The client's own sleeps are left out and its waits are short, so that every way to fail takes a fraction of a second.
PRELUDE = """
import time
import os
import huggingface_hub.file_download, huggingface_hub.utils._http
from pathlib import Path
from types import SimpleNamespace
from tests.finished_run import CARD, finished_run
from tuner import card, hub, outgoing, publish, transfer, run as runs
huggingface_hub.utils._http.time = huggingface_hub.file_download.time = SimpleNamespace(sleep=lambda seconds: None)
huggingface_hub.file_download._ETAG_RETRY_TIMEOUT = 0.3
os.fsync = lambda handle: None
transfer.ANSWER_S, transfer.PAUSES_S, transfer.time, hub.TIMEOUT_S = 0.3, (0, 0, 0), time, 0.3
card.build = lambda run, repo_id, link: CARD
publish.compare = lambda run, there, folder: {"tokens": 1, "prompts": 1}
run = (runs.mine("local") or [None])[0]

def may(replace):
    return replace and (replace if isinstance(replace, dict) else {"run": replace, "private": replace == publish.ANY_RUN})

def push(token, name="animals", replace=""):
    seen = []
    try:
        publish.publish(run, name, True, token, lambda repo_id: "http://page.example/?adapter=" + repo_id, seen.append, may(replace))
    except Exception as error:
        seen.append({"raised": f"{type(error).__name__}: {error}"})
    return [publish.state(run), seen]
"""
WAYS = ("reset", "500", "429", "timeout", "truncate", "lost")
# `make torture` breaks every request in every way; the suite every fourth, beginning at another one for each way.
# What another run of the same account published: a classifier, with files that an adapter for chat has not, and one by hand.
OTHER = "20260101-120000-0a1b2c3d"
STALE = {"config.json", "tokenizer.json"}
OTHERS = {
    "tuner.json": json.dumps({"run": OTHER, "base_model": "test/labels", "task": "text_labels"}), "adapter_model.safetensors": b"old",
    "README.md": "# Old\n", "notes.txt": "by hand", **dict.fromkeys(STALE, "{}"),
}
EACH = 1 if os.environ.get("TUNER_TORTURE") else 4


def numbers(way: str, requests: int) -> range:
    return range(1 + WAYS.index(way) % EACH, requests + 1, EACH)



@pytest.fixture(scope="module")
def process(server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("client")
    client = Client(server.url, folder, HF_HUB_DISABLE_XET="1", HF_HUB_DOWNLOAD_TIMEOUT="1", HF_HUB_ETAG_TIMEOUT="1")
    yield client
    client.close()


@pytest.fixture
def hub(server):
    for kept in (server.repos, server.requests, server.faults, server.blobs, server.auths):
        kept.clear()
    server.lfs = True
    yield server
    assert {request.token for request in server.requests} <= {ALICE, BOB, None}


@pytest.fixture
def client(process, tmp_path):
    """Runs code in a home with one finished run; no torch, and afterwards no token in any file."""
    home = tmp_path / "home"

    def run(code: str):
        return process(PRELUDE + textwrap.dedent(code), TUNER_HOME=str(home))

    run(f"finished_run(Path({str(tmp_path / 'base')!r}))")
    run.home = home
    run.adapter = next(home.glob("runs/local/*/adapter"))
    yield run
    assert_no_token_in(tmp_path)
    assert not list(home.rglob(".published-*"))


def push(client, token=ALICE, name="animals", replace="") -> tuple[dict, list[dict]]:
    """The last state that the folder tells, and all that were told on the way; the last holds "raised" where it raised."""
    return client(f"result = push({token!r}, {name!r}, {replace!r})")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# A bad connection -------------------------------------------------------------------------------------------------


def is_whole(hub, adapter: Path, name="alice/animals") -> bool:
    files = hub.repos["model", name].files if ("model", name) in hub.repos else {}
    return {path: files.get(path) for path in contents(adapter)} == contents(adapter) and {"README.md", "tuner.json"} <= set(files)


@pytest.mark.parametrize("lfs, old", [(True, False), (False, False), (True, True)], ids=["large files", "in the commit", "in another's place"])
@pytest.mark.parametrize("way", WAYS)
def test_every_request_of_a_push_may_fail_once(hub, client, way, lfs, old):
    """The requests of a clean push are counted; then each is broken in turn, and every push ends complete and verified."""
    hub.lfs = lfs
    before = contents(client.adapter)

    def fresh():
        hub.repos.clear(), hub.blobs.clear(), hub.requests.clear()
        if old:
            hub.add_repo("alice/animals", files=OTHERS)

    fresh()
    assert push(client, replace=OTHER)[0]["state"] == "verified"
    clean = len(hub.requests)
    assert clean >= (20 if lfs else 17)
    for number in numbers(way, clean):
        fresh()
        hub.faults[:] = [Fault(way, nth=number)]
        last, seen = push(client, replace=OTHER)
        struck = f"{way} at request {number} of {clean}: {hub.requests[number - 1].method} {hub.requests[number - 1].path}"
        assert last["state"] == "verified", (struck, last.get("reason"), seen[-1])
        assert is_whole(hub, client.adapter) and last["commit"] == hub.repos["model", "alice/animals"].sha, struck
        assert len(hub.repos["model", "alice/animals"].commits) == 2, f"{struck}: committed more than once"
        assert not set(hub.repos["model", "alice/animals"].files) & STALE, struck
        assert contents(client.adapter) == before, struck


@pytest.mark.parametrize("way", ["reset", "500", "429", "truncate"])
def test_a_push_that_fails_for_good_from_any_request_on_is_clearly_not_done(hub, client, way):
    """And ends; the adapter is as it was; pushing again when the Hub is well completes it."""
    before = contents(client.adapter)
    push(client)
    clean = len(hub.requests)
    for number in numbers(way, clean):
        hub.repos.clear(), hub.blobs.clear(), hub.requests.clear()
        hub.faults[:] = [Fault(way, nth=number, times=10**6)]
        last, seen = push(client)
        struck = f"{way} from request {number} of {clean} on"
        committed = is_whole(hub, client.adapter)
        states = [its.get("state") for its in seen]
        assert "verified" not in states and last["state"] in ("failed", "unverified"), struck
        assert last["state"] == "failed" or committed, f"{struck}: said to be on the Hub and is not"
        assert ("raised" in seen[-1]) == (last["state"] == "failed") and "nothing was lost" in last["reason"], (struck, last)
        assert "raised" not in seen[-1] or seen[-1]["raised"].startswith(("Transient", "Unreachable")), (struck, seen[-1])
        assert contents(client.adapter) == before, struck
    hub.faults.clear()
    assert push(client)[0]["state"] == "verified" and is_whole(hub, client.adapter)


def test_a_hub_that_never_answers_is_given_up(hub, client):
    for path in ("whoami", "/commit/", "resolve"):
        hub.faults[:] = [Fault("timeout", path=path, times=10**6)]
        began = time.monotonic()
        last, _ = push(client)
        assert last["state"] in ("failed", "unverified") and "cannot be reached" in last["reason"]
        assert time.monotonic() - began < 60
    assert len([request for request in hub.requests if "whoami" in request.path]) == 4 + 2


def test_weights_that_arrived_are_not_sent_again(hub, client):
    """The commit breaks off after the weights are there: the next try, and the next push, only commit."""
    hub.faults[:] = [Fault("reset", path="/commit/", times=10**6)]
    assert push(client)[0]["state"] == "failed"
    hub.faults.clear()
    assert push(client)[0]["state"] == "verified"
    assert len([request for request in hub.requests if request.method == "PUT"]) == 1


def test_a_pause_that_the_hub_asks_for_is_kept_and_one_without_end_is_not(hub, client):
    slept = "\nslept = []\ntransfer.time = SimpleNamespace(sleep=slept.append, monotonic=time.monotonic)\n"
    hub.faults[:] = [Fault("429", path="/commit/", wait_s=7), Fault("503", path="/commit/", wait_s=2)]
    result = client(slept + f"result = [push({ALICE!r})[0]['state'], slept]")
    assert result == ["verified", [7, 2]]
    hub.repos.clear()
    hub.faults[:] = [Fault("429", path="/preupload/", wait_s=3600)]  # a request that the client itself would wait for
    last, seen, slept_s = client(slept + f"its = push({ALICE!r})\nresult = [*its, slept]")
    assert last["state"] == "failed" and slept_s == []
    assert "The Hub asks for a pause of 60 minutes (HTTP 429). Try again then; nothing was lost." in last["reason"]


def test_the_pause_is_told_while_it_lasts(hub, client):
    hub.faults[:] = [Fault("500", path="/commit/")]
    _, seen = push(client)
    told = {its["reason"] for its in seen if its["state"] == "pushing" and its["reason"]}
    assert told == {"The Hub has a fault of its own (HTTP 500). Try again in a minute; nothing was lost. Trying again in 0 s."}
    assert seen[-1]["reason"] == ""


def test_how_far_an_upload_is_is_told(hub, client):
    last, seen = client(f"""
        publish._SAY_EVERY_S = 0
        finished_run(Path({str(client.home.parent / "base")!r}), owner="big", weights=200_000)
        run = runs.mine("big")[0]
        result = push({ALICE!r})
        publish._SAY_EVERY_S = 0.5
    """)
    sent = [its["sent_bytes"] for its in seen if its["state"] == "pushing"]
    assert last["state"] == "verified" and sent[0] == 0 and sent[-1] == last["total_bytes"] > 800_000
    assert sent == sorted(sent) and len(set(sent)) > 5


# What the folder tells --------------------------------------------------------------------------------------------


def test_the_page_starts_it_and_may_go_away(hub, client):
    """`begin` returns at once; the folder alone tells how it went, and a second click meanwhile is refused."""
    def hold(server):
        time.sleep(0.5)

    hub.faults[:] = [Fault(hold, path="/preupload/")]
    told = client(f"""
        thread = publish.begin(run, "animals", True, {ALICE!r}, lambda repo_id: "http://page.example/?adapter=" + repo_id)
        told = [publish.state(run)["state"]]
        try:
            publish.begin(run, "animals", True, {ALICE!r}, str)
        except Exception as error:
            told.append(str(error))
        thread.join()
        result = [*told, publish.state(run)["state"]]
    """)
    assert told == [told[0], "This run is being published already. Wait for its end.", "verified"] and told[0] in ("checking", "pushing")


@pytest.mark.parametrize("commit, said", [("", "It may be on the Hub in part"), ("0" * 40, "It is on the Hub, but was not verified")])
def test_a_restart_in_the_middle_is_not_shown_as_going_on(hub, client, commit, said):
    push(client)
    state = client(f"""
        from tuner.home import read_json, write_json
        path = run.folder / "publish.json"
        write_json(path, {{**read_json(path), "state": "verifying", "commit": {commit!r}, "process": {{"pid": 2**22 + 1, "started": 1.0}}}})
        (run.folder / ".published-left").mkdir()
        result = publish.state(run)
    """)
    assert state["state"] == "interrupted" and said in state["reason"] and "Push again" in state["reason"]
    assert push(client)[0]["state"] == "verified"  # and what was left of it is gone, see the fixture


def test_a_run_that_learned_more_is_not_verified_any_more(hub, client):
    push(client)
    weights = client.adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes())
    state = client("result = publish.state(run)")
    assert state["state"] == "unverified" and "has learned more since it was published" in state["reason"]


def test_the_name_meant_at_the_start_is_kept(hub, client):
    assert client("publish.intend(run, 'animals')\nresult = publish.state(run)") == {"state": "intended", "name": "animals"}
    assert client("(run.folder / 'publish.json').write_text('broken')\nresult = publish.state(run)") == {"state": "none"}


def test_a_second_push_that_fails_does_not_forget_the_first(hub, client):
    first, _ = push(client)
    for _ in range(2):
        hub.faults[:] = [Fault("500", path="whoami", times=10**6)]
        last, _ = push(client)
        assert last["state"] == "failed" and last["before"] == {name: first[name] for name in ("repo_id", "url", "commit")}


def test_opening_it_up_is_told_in_the_folder(hub, client):
    with pytest.raises(UserError, match="has not been published yet"):
        client(f"publish.open_up(run, {ALICE!r})")
    push(client)
    assert client(f"result = publish.open_up(run, {ALICE!r})")["private"] is False
    assert hub.repos["model", "alice/animals"].private is False


# Downloaded again -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json", "README.md", "tuner.json"])
def test_a_file_that_comes_back_otherwise_is_not_verified(hub, client, name):
    """It is what the Hub gives that counts, whatever it lists."""
    def spoil(server):
        server.repos["model", "alice/animals"].files[name] += b" "

    hub.faults[:] = [Fault(spoil, method="HEAD", path=name)]
    last, seen = push(client)
    assert last["state"] == "unverified" and f"{name} came back from alice/animals other than it was sent" in last["reason"]
    assert "verified" not in [its.get("state") for its in seen] and "raised" not in seen[-1]


def test_what_the_hub_lists_is_compared_before_it_is_called_pushed(hub, client):
    def spoil(server):
        server.repos["model", "alice/animals"].files["adapter_config.json"] = b"{}"

    hub.faults[:] = [Fault(spoil, path="/tree/")]
    last, seen = push(client)
    assert last["state"] == "failed" and "does not hold adapter_config.json as pushed" in last["reason"]


def test_every_file_is_downloaded_again_each_time(hub, client):
    """From an empty cache: nothing that an earlier download kept may stand in for what the Hub holds."""
    for _ in range(2):
        hub.requests.clear()
        push(client)
        fetched = {Path(its.path).name for its in hub.requests if its.method == "GET" and "/resolve/" in its.path}
        assert fetched >= {"README.md", "adapter_config.json", "adapter_model.safetensors", "tuner.json"}


def test_a_check_that_fails_leaves_it_published_but_not_verified(hub, client):
    last, seen = client(f"""
        from tuner.errors import UserError
        def compare(run, there, folder):
            raise UserError("Loaded by plain PEFT, it computes otherwise.")
        publish.compare = compare
        result = push({ALICE!r})
    """)
    assert last["state"] == "unverified" and last["reason"] == "Loaded by plain PEFT, it computes otherwise." and last["commit"]


# Before a run -----------------------------------------------------------------------------------------------------


def before(client, token=ALICE, name="animals", quoted_s=600, more="") -> str:
    return client(f"result = publish.check_before({name!r}, {token!r}, {quoted_s}{more})")


def fine_grained(*permissions: str, name="alice") -> dict:
    scoped = [{"entity": {"type": "user", "_id": "1", "name": name}, "permissions": list(permissions)}]
    return {"type": "access_token", "accessToken": {"role": "fineGrained", "fineGrained": {"global": [], "scoped": scoped}}}


def test_a_good_token_and_a_free_name_are_said_and_nothing_is_sent(hub, client):
    assert before(client) == "alice/animals is free, and this account may create it."
    assert {request.method for request in hub.requests} == {"GET"} and hub.repos == {}


@pytest.mark.parametrize("auth, more, words", [
    ({"type": "access_token", "accessToken": {"role": "read"}}, "", "This token may only read"),
    (fine_grained("repo.content.read"), "", "This fine-grained token may not write to the repositories of alice"),
    (fine_grained("repo.write", name="some-org"), "", "This fine-grained token may not write to the repositories of alice"),
    ({"type": "oauth"}, ", scopes='openid profile gated-repos'", "Your sign-in does not let this app create repositories"),
    ({"type": "oauth"}, ", scopes='openid contribute-repos', expires_at=time.time() + 1200", r"Your sign-in ends in (19|20) minutes and the run is said to take 10"),
    ({"type": "oauth", "expiresAt": "2020-01-01T00:00:00.000Z"}, "", "Your sign-in ends in 0 minutes"),
])
def test_a_token_that_could_not_publish_is_said_before_anything_is_spent(hub, client, auth, more, words):
    hub.auths[ALICE] = auth
    with pytest.raises(UserError, match=words):
        before(client, more=more)


@pytest.mark.parametrize("auth, more, words", [
    (fine_grained("repo.content.read", "repo.write"), "", "alice/animals is free"),
    ({"type": "oauth"}, ", scopes='openid contribute-repos', expires_at=time.time() + 1600", r"The sign-in lasts until \d\d:\d\d UTC"),
    ({"type": "something new"}, "", "alice/animals is free"), ({}, "", "alice/animals is free"),
])
def test_a_token_that_may_is_let_through(hub, client, auth, more, words):
    hub.auths[ALICE] = auth
    assert re.search(words, before(client, more=more))


def test_all_that_stands_in_the_way_is_said_at_once(hub, client):
    hub.auths[ALICE] = {"type": "access_token", "accessToken": {"role": "read"}, "expiresAt": "2020-01-01T00:00:00.000Z"}
    with pytest.raises(UserError) as caught:
        before(client, name="a--b")
    assert [words[:24] for words in caught.value.problems] == ["'a--b' is not a name the", "This token may only read", "Your sign-in ends in 0 m"]


def test_a_taken_name_is_said_and_an_empty_one_of_ours_is_not(hub, client):
    repo = hub.add_repo("alice/animals", files={"model.safetensors": b"mine"})
    with pytest.raises(UserError, match="alice/animals exists already and holds something else. Choose another name"):
        before(client)
    repo.commit({}, deleted=["model.safetensors"])
    assert before(client) == "alice/animals is yours and empty. Everybody can see it, so this run cannot be published there privately."
    repo.private = True
    assert before(client) == "alice/animals is yours and empty."
    hub.requests.clear()
    for run_id in ("../../etc", "", 7, None, "no-run"):  # nothing that Tuner wrote
        hub.add_repo("alice/animals", files={**OTHERS, "tuner.json": json.dumps({"run": run_id})})
        with pytest.raises(UserError, match="exists already and holds something else"):
            before(client)
        last, _ = push(client, replace="*")
        assert last["state"] == "failed" and "holds something else. Choose another name; nothing was changed." in last["reason"]
    assert {request.method for request in hub.requests} <= {"GET", "HEAD"}


def test_a_name_of_ours_is_said_with_what_it_holds_before_anything_is_spent(hub, client):
    """One's own repository is no obstacle to a run; what would take its place, and who sees it, is said."""
    push(client)
    hub.requests.clear()
    day = time.strftime("%Y-%m-%d", time.gmtime())
    assert before(client) == (
        f"alice/animals is yours and holds the adapter of another run of yours (test/small, published on {day}; only you can see it). "
        "When you push, you are asked before this run's takes its place. The one that is there now stays in the repository's history."
    )
    hub.repos["model", "alice/animals"].private = False
    words = before(client, more=", scopes='openid contribute-repos'")
    assert "everybody can see it" in words and words.endswith("only to what it created: if that was published from elsewhere, choose another name.")
    assert "elsewhere" not in before(client, more=", scopes='openid contribute-repos manage-repos'")
    assert {request.method for request in hub.requests} <= {"GET", "HEAD"}


def test_another_run_s_place_is_taken_only_by_a_word(hub, client):
    """Nothing is sent before; then all that it published is replaced, what was put there by hand stays, and so does the history."""
    repo = hub.add_repo("alice/animals", files=OTHERS)
    old, there = repo.sha, dict(repo.files)
    for replace in ("", "20260101-120000-ffffffff"):  # neither without a word nor with one about another
        last, seen = push(client, replace=replace)
        assert last["state"] == "taken" and last["there"]["run"] == OTHER and seen[-1]["raised"].startswith("Taken: alice/animals holds")
        assert "another run of yours (test/labels, published on 20" in last["reason"] and "everybody can see it). Nothing there was changed. Put this one in its place" in last["reason"]
        assert repo.files == there and {request.method for request in hub.requests} <= {"GET", "HEAD"}
    last, _ = push(client, replace=OTHER)
    assert last["state"] == "verified" and last["private"] is False and is_whole(hub, client.adapter)
    assert repo.files["notes.txt"] == b"by hand" and not set(repo.files) & STALE
    assert repo.commit_at(old).files == there and len(repo.commits) == 2
    assert push(client)[0]["state"] == "verified", "its own by now"


def test_what_is_published_for_everybody_is_never_by_accident(hub, client):
    """A public repository shows at once what takes its place: that is said, and a word about whichever run there is does not suffice."""
    repo = hub.add_repo("alice/animals", files=OTHERS)
    assert before(client).endswith("It is public: everybody sees at once what takes its place.")
    last, _ = push(client, replace="*")
    assert last["state"] == "taken" and "It is public: everybody sees at once" in last["reason"] and len(repo.commits) == 1
    hub.repos.clear()
    hub.add_repo("alice/animals", files={"README.md": "# Soon\n"})
    last, _ = push(client)
    assert last["state"] == "failed" and "is there already, empty, and everybody can see it" in last["reason"] and {its.method for its in hub.requests} <= {"GET", "HEAD"}
    hub.repos["model", "alice/animals"].private = True
    assert push(client)[0]["state"] == "verified"


def test_a_place_that_was_opened_after_it_was_said_to_be_private_is_asked_about_again(hub, client):
    repo = hub.add_repo("alice/animals", files=OTHERS, private=True)
    last, _ = push(client)
    assert last["there"] == {"repo_id": "alice/animals", "run": OTHER, "private": True} and "It is public" not in last["reason"]
    repo.private = False
    last, _ = push(client, replace=last["there"])
    assert last["state"] == "taken" and "It is public: everybody sees at once" in last["reason"] and len(repo.commits) == 1
    assert push(client, replace=last["there"])[0]["state"] == "verified"


def test_what_was_put_there_by_hand_is_never_written_over(hub, client):
    """Also a file of a name that some run may have; what a record says it published is deleted only where it did."""
    (client.adapter / "config.json").write_text("{}")
    labels = f"""
        from tuner import tasks
        tasks.get("chat").PUBLISHED = ("config.json",)
        result = push({ALICE!r}, replace={OTHER!r})[0]
        tasks.get("chat").PUBLISHED = ()
    """
    record = {"run": OTHER, "base_model": "test/small", "files": ["README.md", "adapter_config.json", "adapter_model.safetensors", "tuner.json"]}
    repo = hub.add_repo("alice/animals", files={**OTHERS, "tuner.json": json.dumps(record)}, private=True)
    last = client(labels)
    assert last["state"] == "failed" and "alice/animals holds config.json, put there by hand" in last["reason"] and len(repo.commits) == 1
    assert push(client, replace=OTHER)[0]["state"] == "verified" and set(repo.files) >= STALE
    assert json.loads(repo.files["tuner.json"])["files"] == sorted(record["files"])


@pytest.mark.parametrize("record, words", [
    (b'{"run": "%s", "base_model": "x\\ud800y<b>"}' % OTHER.encode(), "(on an unknown base, published on"),
    (b"[" * 100_000, "holds something else"), (b'{"run": "%s"}' % OTHER.encode() + b" " * 2**20, "holds something else"), (b"[]", "holds something else"),
], ids=["no text", "deep", "large", "a list"])
def test_a_hostile_record_on_the_hub_does_no_harm(hub, client, record, words):
    """It is one's own repository, but anybody's Space: no traceback, no push that is shown as going on, nothing large is fetched."""
    hub.add_repo("alice/animals", files={**OTHERS, "tuner.json": record}, private=True)
    last, seen = push(client)
    assert last["state"] in ("taken", "failed") and words in last["reason"] and seen[-1]["raised"].startswith(("Taken", "UserError"))
    if len(record) > 2**20:
        assert not [its for its in hub.requests if "resolve" in its.path]
    if last["state"] == "taken":
        assert words in before(client)
    else:
        with pytest.raises(UserError, match=words):
            before(client)


def test_what_comes_there_while_it_is_pushed_is_not_written_over(hub, client):
    """Between the look and the commit: another run's push is asked about, a file by hand is refused, and the Hub itself says what came last."""
    def commit(**files):
        return lambda server: server.repos["model", "alice/animals"].commit(files)

    hub.faults[:] = [Fault(commit(**OTHERS), path="/preupload/")]
    last, _ = push(client)
    assert last["state"] == "taken" and hub.repos["model", "alice/animals"].files["adapter_model.safetensors"] == b"old"
    hub.repos.clear()
    hub.faults[:] = [Fault(commit(**{"model.safetensors": b"mine"}), path="/preupload/")]
    last, _ = push(client)
    assert last["state"] == "failed" and "holds something else" in last["reason"] and len(hub.repos["model", "alice/animals"].commits) == 2


def test_the_other_run_is_told_also_where_nobody_saw_the_end_of_the_push(hub, client):
    """The commit was made and every answer was lost: the next push finds its own, and tells whose place it took."""
    push(client)
    first, told, again = client(f"""
        first, _ = run, finished_run(Path({str(client.home.parent / "base")!r}), weights=500)
        run = next(its for its in runs.mine("local") if its.id != first.id)
        looked, kept = [], publish._look
        def look(*asked):
            found = kept(*asked)
            looked.append(found)
            if found["run"] == run.id:  # from its own commit on nothing comes through
                raise transfer.Unreachable("gone")
            return found
        publish._look, list_tree = look, None
        from huggingface_hub import HfApi
        tree, HfApi.list_repo_tree = HfApi.list_repo_tree, lambda *a, **k: (_ for _ in ()).throw(ConnectionError())
        failed = push({ALICE!r}, replace=first.id)[0]["state"]
        publish._look, HfApi.list_repo_tree = kept, tree
        before = publish.state(first)["state"]
        push({ALICE!r})
        result = [failed, before, [publish.state(run)["state"], publish.state(first)["state"]]]
    """)
    assert (first, told, again) == ("failed", "verified", ["verified", "replaced"])


def test_an_earlier_publication_counts_while_another_name_is_taken(hub, client):
    """It is on the Hub still, so its run is not cleared away; and it is told where its place was taken meanwhile."""
    first, _ = push(client)
    hub.add_repo("alice/other", files=OTHERS, private=True)
    last, _ = push(client, name="other")
    assert last["state"] == "taken" and last["before"]["url"] == first["url"]
    published, url = client(f"""
        from tuner import clearing
        first, _ = run, finished_run(Path({str(client.home.parent / "base")!r}), weights=500)
        published = clearing.is_published(first)
        run = next(its for its in runs.mine("local") if its.id != first.id)
        push({ALICE!r}, replace=first.id)
        result = [published, publish.state(first)["before"]["url"]]
    """)
    assert published and url == f"{first['url']}/tree/{first['commit']}"


def test_what_a_failed_second_push_says_of_the_first_is_true_when_its_place_is_taken(hub, client):
    first, _ = push(client)
    hub.faults[:] = [Fault("500", path="/tree/", times=10**6)]
    last, _ = push(client)
    assert last["state"] == "failed" and last["repo_id"] == last["before"]["repo_id"]
    hub.faults.clear()
    url = client(f"""
        first, _ = run, finished_run(Path({str(client.home.parent / "base")!r}), weights=500)
        run = next(its for its in runs.mine("local") if its.id != first.id)
        push({ALICE!r}, replace=first.id)
        result = publish.state(first)["before"]["url"]
    """)
    assert url == f"{first['url']}/tree/{first['commit']}"


def test_a_place_that_was_freed_meanwhile_is_nobody_s(hub, client):
    """The first try at replacing failed, and the repository was deleted before the second: nobody is told what is not so."""
    push(client)
    second = f"""
        first = max(runs.mine("local"), key=lambda its: (its.adapter_dir / "adapter_model.safetensors").stat().st_size)
        if len(runs.mine("local")) == 1:
            finished_run(Path({str(client.home.parent / "base")!r}), weights=500)
        run = next(its for its in runs.mine("local") if its.id != first.id)
        push({ALICE!r}, replace=first.id)
        result = [publish.state(its)["state"] for its in (run, first)]
    """
    hub.faults[:] = [Fault("500", path="/commit/", times=10**6)]
    assert client(second) == ["failed", "verified"]
    hub.faults.clear(), hub.repos.clear()
    assert client(second) == ["verified", "verified"]


def test_who_may_not_open_it_is_told_why(hub, client):
    push(client)
    with pytest.raises(UserError, match=r"alice/animals is not in your account \(bob\)"):
        client(f"publish.open_up(run, {BOB!r})")
    with pytest.raises(UserError, match="You are not signed in"):
        client("publish.open_up(run, None)")


def test_a_run_is_not_opened_up_where_another_lies_by_now(hub, client):
    """Whoever put it there, from whichever machine."""
    push(client)
    hub.repos["model", "alice/animals"].commit({"tuner.json": json.dumps({"run": OTHER})})
    with pytest.raises(UserError, match="does not hold this run's adapter any more, so it was not opened"):
        client(f"publish.open_up(run, {ALICE!r})")
    assert hub.repos["model", "alice/animals"].private


def test_a_run_whose_place_was_taken_says_so(hub, client):
    """It is not shown as published any more, nor opened up in the other's stead; publishing it again asks in its turn."""
    first, _ = push(client)
    second = f"""
        first, _ = run, finished_run(Path({str(client.home.parent / "base")!r}), weights=500)
        run = next(its for its in runs.mine("local") if its.id != first.id)
        run.rename("Better <animals>")
    """
    taken, replaced, opened, again = client(second + f"""
        taken = push({ALICE!r})[0]["state"]
        push({ALICE!r}, replace=publish.ANY_RUN)
        replaced = publish.state(first)
        try:
            publish.open_up(first, {ALICE!r})
            opened = ""
        except Exception as error:
            opened = str(error)
        run = first
        again = push({ALICE!r})[0]
        result = [taken, replaced, opened, again]
    """)
    assert taken == "taken" and replaced["state"] == "replaced" and replaced["commit"] == first["commit"]
    assert replaced["url"] == f"{hub.url}/alice/animals/tree/{first['commit']}"
    assert "“Better <animals>”, was published under this name since" in replaced["reason"] and "does not hold this run's adapter any more, so it was not opened" in opened
    assert again["state"] == "taken" and again["before"]["url"] == replaced["url"] and hub.repos["model", "alice/animals"].private
    assert client(f"result = [push({ALICE!r}, replace=publish.ANY_RUN)[0]['state'], publish.state(run)['state']]") == ["verified", "verified"]


def test_no_token_or_a_dead_one_is_said(hub, client):
    with pytest.raises(UserError, match="You are not signed in to Hugging Face"):
        before(client, token=None)
    with pytest.raises(UserError, match="does not know this token any more"):
        before(client, token="hf_test_gone")
    hub.requests.clear()


def test_a_licence_s_wish_for_the_name_is_said(hub, client):
    llama = ", base={'id': 'meta-llama/Llama-3.2-1B-Instruct', 'licence': {'license': 'llama3.2'}}"
    assert "asks that a model tuned from it and shared begins its name with “Llama”" in before(client, more=llama)
    assert "asks" not in before(client, name="llama-animals", more=llama)


# What may leave ---------------------------------------------------------------------------------------------------


def test_a_token_a_path_or_a_name_in_any_file_stops_it_before_anything_is_sent(hub, client):
    """In the card, the record, the adapter's config and the header of its weights."""
    token = "hf_" + "A1b2" * 9
    for code, words in (
        (f"card.build = lambda *a: CARD + {token!r}", "README.md holds an access token"),
        ("card.build = lambda *a: CARD + str(run.adapter_dir)", "README.md names a folder of this machine"),
        ("card.build = lambda *a: CARD + str(Path.home() / 'notes')", "README.md names a folder of this machine"),
        ("outgoing.getpass = SimpleNamespace(getuser=lambda: 'jdoe')\ncard.build = lambda *a: CARD + 'made by jdoe.'", "README.md holds the name 'jdoe'"),
        ("card.record = lambda run: {'base_what': run.read('base')['dir']}", "tuner.json names a folder of this machine"),
        (f"card.record = lambda run: {{'note': {ALICE!r}}}", "tuner.json holds an access token"),
    ):
        hub.requests.clear()
        last, seen = client(f"""
            import getpass
            outgoing.getpass, kept = getpass, card.record
            {code.replace(chr(10), chr(10) + ' ' * 12)}
            try:
                result = push({ALICE!r})
            finally:
                outgoing.getpass, card.record = getpass, kept
        """)
        assert last["state"] == "failed" and words in last["reason"], (code, last)
        assert token not in json.dumps(last) and ALICE not in json.dumps(last)
        assert {request.method for request in hub.requests} == {"GET"}


def test_what_an_author_wrote_to_be_read_may_hold_any_word(hub, client):
    """A title with the account's name is the author's business; a token is nobody's."""
    last, _ = client(f"""
        import getpass
        outgoing.getpass = SimpleNamespace(getuser=lambda: "max")
        run.rename("Ask max in /tmp/ first")
        card.build = lambda run, repo_id, link: CARD + run.title
        result = push({ALICE!r})
        outgoing.getpass = getpass
    """)
    assert last["state"] == "verified"


@pytest.mark.parametrize("content", [b"\x80\x04\x95pickle", b"PK\x03\x04zip", b"", b"\x02\0\0\0\0\0\0\0{}", b"\x08\0\0\0\0\0\0\0notjson!"])
def test_no_pickle_leaves_under_another_name(hub, client, content):
    """Weights that are not safetensors from the first byte to the last are not sent, whatever they are called."""
    (client.adapter / "adapter_model.safetensors").write_bytes(content)
    last, _ = push(client)
    assert last["state"] == "failed" and "adapter_model.safetensors is not a safetensors file" in last["reason"]
    assert {request.method for request in hub.requests} == {"GET"}


def test_only_what_is_on_the_list_leaves(hub, client):
    for name in ("optimizer.pt", "training_args.bin", "tokenizer.json"):
        (client.adapter / name).write_bytes(b"\x80\x04")
    push(client)
    assert set(hub.repos["model", "alice/animals"].files) == {".gitattributes", "README.md", "adapter_config.json", "adapter_model.safetensors", "tuner.json"}
    with pytest.raises(UserError, match="training_args.bin is not among the files that are published"):
        client("outgoing.require_formats({'training_args.bin': b'x'})")


def test_tokens_are_struck_out_of_what_others_say(hub, client):
    assert redaction.without_tokens("bad hf_oauth_ey.J-x and hf_abcDEF1234567890ghij, and sk-odd", "sk-odd") == "bad hf_… and hf_…, and hf_…"


# The card ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("old, new, words", [
    ("license: apache-2.0\n", "", "The card has no license"), ("license: apache-2.0", "license: my-own", "'my-own' is not a licence the Hub knows"),
    ("license: apache-2.0", "license: other", "its name or its link is missing"), ("base_model: test/small", "base_model: /home/x/y", "is not a Hub id"),
    ("library_name: peft\n", "", "The card has no library_name"), ("tags: [lora]", "tags: [1]", "tags are not all words"),
    ("tags: [lora]", "tags: [lora", "metadata cannot be read"), ("# Animals", "Animals", "The card has no title"),
    ("tags: [lora]", "tags: [lora]\nmodel-index: [{name: x, results: 3}]", "metadata cannot be read"),
])
def test_a_card_is_checked_as_the_hub_would_without_asking_it(old, new, words):
    outgoing.require_card(CARD)
    with pytest.raises(UserError, match=re.escape(words)):
        outgoing.require_card(CARD.replace(old, new))


@pytest.mark.parametrize("licence, id, link, words", [
    ({"license": "apache-2.0"}, "apache-2.0", "https://www.apache.org/licenses/LICENSE-2.0", ["applies to what is built on it"]),
    ({"license": "llama3.2"}, "llama3.2", "https://www.llama.com/llama3_2/license/", ["Built with Llama.", "Llama 3.2 is licensed under the Llama 3.2 Community License", "https://www.llama.com/llama3_2/use-policy/"]),
    ({"license": "gemma"}, "gemma", "https://ai.google.dev/gemma/terms", ["subject to the [Gemma Terms of Use]", "prohibited_use_policy"]),
    ({"license": "other", "license_name": "qwen-research", "license_link": "LICENSE"}, "other", "https://huggingface.co/a/b/blob/main/LICENSE", ["[qwen-research]"]),
    ({"license": "other", "license_link": "../../x"}, "other", "https://huggingface.co/a/b", []),
    ({}, "unknown", "https://huggingface.co/a/b", ["names no licence"]),
])
def test_a_base_s_licence_comes_with_its_link_and_its_terms(licence, id, link, words):
    base = {"id": "a/b", "licence": licence}
    terms = "\n".join(licences.terms(base))
    assert (licences.of(base).id, licences.of(base).url) == (id, link) and link in terms
    assert all(its in terms for its in words)
    front = yaml.safe_dump(licences.metadata(base))
    outgoing.require_card(CARD.replace("license: apache-2.0\n", front))


# Xet --------------------------------------------------------------------------------------------------------------


def test_an_upload_by_xet_is_watched_too(process):
    """Through the client's own code, with a session that only reports: what the real one calls, and with what."""
    seen = process("""
        import sys
        from types import SimpleNamespace
        from huggingface_hub import CommitOperationAdd, _commit_api
        from huggingface_hub.utils import _xet
        from tuner import transfer

        class Commit:
            def __init__(self, progress_callback=None, **more):
                self.report = progress_callback
            def __enter__(self):
                return self
            def __exit__(self, *_):
                for done in (3, 10):
                    self.report(SimpleNamespace(total_bytes_completed=done), {})
            def start_upload_bytes(self, content, sha256):
                return None

        transfer.set_up()
        bars = sys.modules["huggingface_hub.utils.tqdm"]
        kept = bars.HF_HUB_DISABLE_PROGRESS_BARS, _xet.get_xet_session
        bars.HF_HUB_DISABLE_PROGRESS_BARS = None
        _xet.get_xet_session = lambda: SimpleNamespace(new_upload_commit=lambda **more: Commit(**more))
        operation = CommitOperationAdd("a", b"0123456789")
        operation.upload_info.sha256 = b"0" * 32
        result = []
        with transfer.watching(10, result.append):
            _commit_api._upload_xet_files(additions=[operation], repo_type="model", repo_id="a/b", headers={})
        bars.HF_HUB_DISABLE_PROGRESS_BARS, _xet.get_xet_session = kept
    """)
    assert seen == [3, 10]
