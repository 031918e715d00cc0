"""Who a token is, who may start what, whose a session's name is: in the engine, with plain values and a clock of the test's."""

import asyncio
import json
from pathlib import Path

import pytest

from tests.finished_run import finished_run
from tuner import chat, data, hub, measuring, sessions, sharing, trials
from tuner import run as runs
from tuner.errors import UserError
from tuner.identity import Accounts, SignedOut
from tuner.recipe import STARTER_MODEL, Recipe
from tuner.transfer import Unreachable

STRANGER = "anon-" + "0" * 32


class Hub:
    """Answers whoami; counts how often it is asked."""

    def __init__(self):
        self.users, self.asked, self.down = {"t": "alice"}, 0, False

    def whoami(self, token: str) -> str:
        self.asked += 1
        if self.down:
            raise Unreachable("The Hub cannot be reached.")
        if token not in self.users:
            raise UserError("The Hub does not know this token any more.")
        return self.users[token]


@pytest.fixture
def its():
    return Hub()


def test_a_tokens_user_is_asked_for_once_in_a_while(its):
    now = [0.0]
    accounts = Accounts(its.whoami, lambda: now[0])
    assert [accounts.user("t") for _ in range(5)] == ["alice"] * 5 and its.asked == 1
    now[0] = Accounts.KEPT_S + 1
    assert accounts.user("t") == "alice" and its.asked == 2


def test_a_revoked_token_counts_no_longer_than_the_answer_is_kept(its):
    now = [0.0]
    accounts = Accounts(its.whoami, lambda: now[0])
    accounts.user("t")
    its.users.clear()
    now[0] = Accounts.KEPT_S + 1
    for _ in range(2):  # nor does it come back
        with pytest.raises(SignedOut, match="sign-in has ended"):
            accounts.user("t")


def test_an_unreachable_hub_signs_nobody_out_for_a_while(its):
    now = [0.0]
    accounts = Accounts(its.whoami, lambda: now[0])
    accounts.user("t")
    its.down = True
    now[0] = Accounts.KEPT_S + 1
    assert accounts.user("t") == "alice"
    with pytest.raises(Unreachable):
        accounts.user("another")
    now[0] = Accounts.STALE_S + 1
    with pytest.raises(Unreachable):
        accounts.user("t")


def test_what_is_known_of_tokens_is_bounded_and_holds_none(its):
    its.users = {f"token-{number}": "alice" for number in range(Accounts.MOST + 50)}
    accounts = Accounts(its.whoami)
    for token in its.users:
        accounts.user(token)
    assert len(accounts._known) == Accounts.MOST
    assert "token-" not in repr(vars(accounts))


# What may be started ----------------------------------------------------------------------------------------------


def test_strangers_start_nothing_on_a_space(home, monkeypatch, tmp_path):
    """Whatever begins a training asks, by whichever way it is called; one variable of the owner's lets them."""
    run = finished_run(tmp_path, STRANGER)
    dataset = data.find(STRANGER, next(data.datasets_dir(STRANGER).iterdir()).name)
    recipe = Recipe(base_model="test/small")
    monkeypatch.setenv("SYSTEM", "spaces")
    for begin in (
        lambda: runs.create(STRANGER, recipe, dataset), lambda: runs.start(run), lambda: runs.again(run, {"epochs": 2.0}),
        lambda: trials.create(STRANGER, trials.RATE, recipe, dataset), lambda: measuring.start(run),
    ):
        before = sorted(home.rglob("*"))
        with pytest.raises(SignedOut, match="sign in first"):
            begin()
        assert sorted(home.rglob("*")) == before
    monkeypatch.setenv("TUNER_ANONYMOUS_RUNS", "1")
    assert runs.create(STRANGER, recipe, dataset).state() == "new"


def test_strangers_chat_with_small_bases_only(monkeypatch):
    """The starter always; another by its parameters. Who is signed in, and a machine of one's own, have no such limit."""
    sizes = {"a/small": 1_000_000_000, "a/large": 8_000_000_000}
    monkeypatch.setattr(hub, "sizes_of", lambda base, revision, token: type("Sizes", (), {"weights": sizes[base]}))
    monkeypatch.setattr(hub, "fetch_base", lambda base, revision, token: {"id": base})
    monkeypatch.setattr(hub, "fetch_adapter", lambda *_: (Path("/nowhere"), {"base_model_name_or_path": "a/large"}))
    assert chat.of_base("a/large", None, STRANGER)
    monkeypatch.setenv("SYSTEM", "spaces")
    assert chat.of_base(STARTER_MODEL, None, STRANGER) and chat.of_base("a/small", None, STRANGER) and chat.of_base("a/large", "t", "alice")
    with pytest.raises(SignedOut, match="8.0 billion parameters; without an account the most is 2.0"):
        chat.of_base("a/large", None, STRANGER)
    with pytest.raises(SignedOut):
        chat.of_adapter("bob/adapter", None, STRANGER)
    monkeypatch.setenv("TUNER_ANONYMOUS_CHAT_BILLIONS", "9")
    assert chat.of_base("a/large", None, STRANGER)


# Sharing ----------------------------------------------------------------------------------------------------------


def test_a_key_opens_one_run_until_it_is_taken_back(home, tmp_path):
    run, other = finished_run(tmp_path, "alice"), finished_run(tmp_path, "bob")
    key = sharing.share("alice", run.id)
    assert sharing.share("alice", run.id) == key and sharing.find(key).look() == run
    assert key not in " ".join(map(str, (home / "shared").iterdir()))  # a list of the folder opens nothing
    for owner, run_id in (("bob", run.id), ("alice", other.id), (STRANGER, run.id)):
        with pytest.raises(UserError, match="not among yours"):
            sharing.share(owner, run_id)
        with pytest.raises(UserError, match="not among yours"):
            sharing.unshare(owner, run_id)
    sharing.unshare("alice", run.id)
    for wrong in (key, "", "A" * 22, "../" * 7 + "A", None, 22, f"{run.owner}/{run.id}"):
        with pytest.raises(UserError, match="leads to no run"):
            sharing.find(wrong)
    assert sharing.share("alice", run.id) != key


def test_a_deleted_runs_key_opens_nothing(home, tmp_path):
    run = finished_run(tmp_path, "alice")
    key = sharing.share("alice", run.id)
    run.delete()
    with pytest.raises(UserError, match="leads to no run"):
        sharing.find(key)
    assert list((home / "shared").iterdir()) == []


# What was brought before signing in ---------------------------------------------------------------------------------


def test_rows_follow_their_browser_into_its_account(home):
    records = [{"prompt": f"{number}?", "completion": "yes"} for number in range(12)]
    before = data.keep(STRANGER, "Mine", records, {"kind": "paste"})
    data.load_demo(STRANGER)
    brought = data.bring_along(STRANGER, "alice")
    assert (brought.owner, brought.id, brought.name, brought.count) == ("alice", before.id, "Mine", 12)
    brought.name = "Changed since"
    brought.save()
    assert data.bring_along(STRANGER, "alice") is None
    assert data.bring_along("anon-" + "1" * 32, "alice") is None
    assert data.find(STRANGER, before.id) == before


# Sessions ---------------------------------------------------------------------------------------------------------

ALICE, BOB = "a" * 32, "b" * 32


def through(path: str, browser: str = "", method: str = "GET", query: str = "", body=None, uploads: Path = Path("/tmp/none")) -> dict:
    """What comes out of the middleware behind which Gradio would stand: {"status"} of a refusal, or the request as it goes on."""
    seen: dict = {}

    async def gradio(scope, receive, send):
        seen.update(path=scope["path"], query=scope["query_string"].decode(), uploads=scope.get("tuner_uploads"))
        if method == "POST" and "upload" not in path:
            seen["body"] = json.loads((await receive())["body"])

    async def receive():
        return {"type": "http.request", "body": body if isinstance(body, bytes) else json.dumps(body).encode()}

    async def send(message):
        seen.setdefault("status", message.get("status"))

    cookie = [(b"cookie", f'x={{"odd"}}; {sessions.COOKIE}={browser}; y=1'.encode())] if browser else []
    scope = {"type": "http", "method": method, "path": path, "query_string": query.encode(), "headers": cookie}
    asyncio.run(sessions.Sessions(gradio, uploads)(scope, receive, send))
    return seen


def test_a_sessions_name_means_another_session_in_another_browser():
    """In every place that Gradio reads it from, and always the same for one browser."""
    name = "k3j2h1g4f5d"

    def everywhere(browser: str) -> list[str]:
        beat = through(f"/gradio_api/heartbeat/{name}", browser)["path"].rpartition("/")[2]
        stream = through("/gradio_api/queue/data", browser, query=f"session_hash={name}")["query"]
        event = through("/gradio_api/queue/join", browser, "POST", body={"data": [], "session_hash": name})["body"]["session_hash"]
        assert stream == f"session_hash={event}" and beat == event
        twice = through("/gradio_api/queue/data", browser, query=f"session_hash=other&session_hash={name}")["query"]
        assert name not in twice and "other" not in twice
        return [event, through("/gradio_api/upload_progress", browser, query=f"upload_id={name}")["query"]]

    assert everywhere(ALICE) == everywhere(ALICE)
    assert not set(everywhere(ALICE)) & set(everywhere(BOB)) and not set(everywhere(ALICE)) & set(everywhere(""))
    assert through("/gradio_api/queue/join", ALICE, "POST", body={"data": []})["body"].get("session_hash") is None


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"null", b'{"session_hash": 7}', b"[" * 100_000, b'{"session_hash": "' + b"a" * 65 + b'"}', b"\xff"])
def test_what_is_no_event_does_not_go_on(body):
    assert through("/gradio_api/queue/join", ALICE, "POST", body=body) == {"status": 400}


def test_a_file_of_an_event_is_its_browsers_own(tmp_path):
    folder = through("/gradio_api/upload", ALICE, "POST", uploads=tmp_path)["uploads"]
    path = f"{folder}/0/zebra.jsonl"

    def event(path: str, browser: str, more: dict = {}) -> int | None:  # noqa: B006
        body = {"data": ["", [{"deep": [{"path": path, **more}]}]], "session_hash": "s"}
        return through("/gradio_api/queue/join", browser, "POST", body=body, uploads=tmp_path).get("status")

    assert event(path, ALICE) is None
    assert {event(path, BOB), event(path, ""), event("/etc/passwd", ALICE), event("http://127.0.0.1/x", ALICE), event(f"{folder}/../../{'0' * 32}/x", ALICE)} == {403}
    assert through("/gradio_api/upload", BOB, "POST", uploads=tmp_path)["uploads"].parent != folder.parent


@pytest.mark.parametrize("status, wanted", [(404, (204, b"")), (200, (200, b"half")), (500, (500, b"half"))])
def test_the_progress_of_an_upload_that_is_over_is_empty_and_no_fault(status, wanted):
    said = []

    async def gradio(scope, receive, send):
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"4"), (b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": b"half"})

    async def send(message):
        said.append(message)

    scope = {"type": "http", "method": "GET", "path": "/gradio_api/upload_progress", "query_string": b"upload_id=x", "headers": []}
    asyncio.run(sessions.Sessions(gradio, Path("/tmp/none"))(scope, None, send))
    assert (said[0]["status"], said[1]["body"]) == wanted and bool(said[0]["headers"]) is (status != 404)


def test_files_are_taken_out_of_what_is_served(home, tmp_path):
    """Even of one name, and the folders that they lay in go too."""
    paths = [tmp_path / "own" / number / "sha" / "rows.jsonl" for number in "12"]
    for path in paths:
        path.parent.mkdir(parents=True)
        path.write_text(str(path))
    taken = sessions.take_out(list(map(str, paths)), "alice")
    assert [(its.read_text(), name) for its, name in taken] == [(str(path), "rows.jsonl") for path in paths]
    assert all(its.is_relative_to(home / "uploads" / "alice") for its, _ in taken) and not list((tmp_path / "own").iterdir())
