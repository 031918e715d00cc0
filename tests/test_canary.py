"""A canary: the token of a visitor who signed in goes through every flow of the app on a Space, failures included, and is found nowhere.

The one exception is that visitor's own session cookie, in which Gradio keeps the sign-in: signed, not encrypted, out of
reach of scripts, sent to nobody but their browser.
"""

import base64
import re
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from tests.served import Served
from tests.small_run import RECORDS
from tests.stand_in_hub import Fault, StandInHub
from tests.visitor import Refused, Visitor, sign_in
from tuner.redaction import STRUCK

# As the Hub's own look, which are JWTs.
CANARY = "hf_oauth_eyJhbGciOiJFZERTQSJ9.Canary7xQ2mN5pT8sV1wY4zB7cD0eF3gH6.kL9-nP2_rT5vX8"
HOST = "tuner-canary.hf.space"
# The machine's own login, with which the app must never act for anybody.
OWN = "hf_TheSpacesOwnToken0123456789abc"
SESSION = re.compile(rb"(?<=\('set-cookie', 'session=)[^;']+(?=;)")
BASE = "meta/gated-small"
# How the Hub, or a proxy before it, might answer: with what was sent to it.
ECHO = "Cannot authorize 'Bearer {token}' ({token})"


def forms(token: str) -> list[bytes]:
    """The token as it may lie somewhere: its ends, so that one cut short is found too, and in base64 at each place."""
    raw = token.encode()
    packed = [base64.b64encode(b"\0" * shift + raw)[4 if shift else 0 : 36] for shift in range(3)]
    return [raw[:16], raw[-16:], raw.hex().encode(), *packed, *(its.translate(bytes.maketrans(b"+/", b"-_")) for its in packed)]


def hits(content: bytes) -> list[bytes]:
    return [form for form in forms(CANARY) if form in content]


class Processes(threading.Thread):
    """Looks at the environment and the arguments of every process, again and again until it is told to end."""

    def __init__(self, app_pid: int):
        super().__init__(daemon=True)
        self.app, self.ended = psutil.Process(app_pid), threading.Event()
        self.found: list[str] = []
        self.children: set[str] = set()

    def run(self) -> None:
        while not self.ended.wait(0.05):
            for folder in Path("/proc").glob("[0-9]*"):
                for name in ("environ", "cmdline"):
                    try:
                        if hits((folder / name).read_bytes()):
                            self.found.append(f"{folder}/{name}")
                    except OSError:  # it ended, or is another account's
                        continue
            for child in self.app.children():
                try:
                    self.children.add(" ".join(child.cmdline()[1:8]))
                except psutil.Error:
                    continue


@dataclass
class Stage:
    """All that a flow needs, and all that came to light in it."""

    app: Served
    hub: StandInHub
    visitor: Visitor
    received: list[bytes]  # by the visitor; but for the session's cookie
    cookies: list[bytes]  # the headers that set it
    others: list[bytes]  # by everybody else
    words: list[str] = field(default_factory=list)

    def refused(self, name: str, target: str | None = None) -> str:
        """What the page says when this does not work."""
        with pytest.raises(Refused) as caught:
            self.visitor.do(name, target)
        self.words.append(str(caught.value))
        return self.words[-1]

    def until(self, elem_id: str, what: str, name: str, seconds: float = 90) -> str:
        """Let the page's timer ask until a control shows this."""
        deadline = time.monotonic() + seconds
        while what not in str(self.visitor.shown(elem_id)):
            assert time.monotonic() < deadline, f"{what!r} did not come: {self.visitor.shown(elem_id)}\n{self.app.log.read_text()[-2000:]}"
            time.sleep(0.1)
            self.visitor.do(name, elem_id)
        return str(self.visitor.shown(elem_id))

    def child(self, module: str) -> psutil.Process:
        """The app's child of this module."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            for child in psutil.Process(self.app.process.pid).children():
                try:
                    if module in child.cmdline():
                        return child
                except psutil.Error:
                    continue
            time.sleep(0.05)
        raise AssertionError(f"There is no {module}")


@pytest.fixture(scope="module")
def stage(base, tmp_path_factory):
    home = tmp_path_factory.mktemp("canary")
    with StandInHub() as hub:
        hub.users["hf_test_bob"] = "bob"
        hub.add_repo(BASE, files={path.name: path.read_bytes() for path in base.iterdir()}, gated="manual").granted.add("alice")
        rows = "".join(f'{{"prompt": "{its["prompt"]}", "completion": "{its["completion"]}"}}\n' for its in RECORDS)
        hub.add_repo("alice/rows", "dataset", files={"train.jsonl": rows}, private=True)
        hub.add_repo("alice/taken", files={"important.txt": "mine"})
        hub.sign_in.next_tokens["alice"] = CANARY
        space = {"SYSTEM": "spaces", "SPACE_ID": "owner/tuner", "SPACE_HOST": HOST, "HF_TOKEN": OWN, **hub.sign_in.environment()}
        with Served(home, waits_s=0.5, HF_ENDPOINT=hub.url, HF_DEBUG="1", **space) as app:
            received, cookies, others = [], [], []

            def receive(body: bytes) -> None:
                if SESSION.search(body):
                    cookies.append(body)
                received.append(SESSION.sub(b"", body))

            processes = Processes(app.process.pid)
            processes.start()
            alice = Visitor(app.url, on_received=receive, client=sign_in(app.url, "alice", receive))
            stage = Stage(app, hub, alice, received, cookies, others)
            stage.processes = processes
            yield stage
            processes.ended.set()
            processes.join()


def test_every_flow_and_its_failures(stage):
    """Gated base, private dataset, preview, quote, check before publishing, run, chat, push, verify; and each gone wrong."""
    page, hub = stage.visitor, stage.hub
    page.put("knob-base_model", BASE)
    page.do("open_page")
    page.do("use_demo")
    page.put("hub-id", "alice/rows")
    assert "Where is the" in str(page.do("read_hub").data)
    for name, value in {"knob-max_steps": 3, "knob-batch_size": 4, "knob-evaluations": 1, "mean-to-publish": True, "publish-name": "animals"}.items():
        page.put(name, value)
    page.do("requote")
    assert "GiB" in str(page.shown("quote"))
    page.do("mean")
    assert "alice/animals is free" in str(page.shown("publish-check"))

    # Started, kept in the account, ended by the kernel for want of memory, taken up, killed, taken up, done.
    page.put("keep", True)
    page.do("start", "start")
    page.put("keep", False)
    training = stage.child("train")
    stage.app.kernel_kills(1)
    training.kill()
    assert "ran out of memory" in stage.until("run-status", "state-failed", "poll")
    page.do("resume")
    stage.child("train").kill()
    stage.until("run-status", "state-interrupted", "poll")
    page.do("resume")
    stage.until("run-status", "state-done", "poll", 150)
    kept = hub.repos["model", f"alice/tuner-kept-{run_id(stage)}"]
    assert kept.private and "data/train.jsonl" in kept.files
    page.do("find_kept")
    page.put("kept", kept.repo_id)
    assert "on this machine already" in stage.refused("bring_back")

    # Chat with the run, and with the worker killed under it.
    page.do("refresh")
    page.put("subject", run_id(stage))
    page.do("meet")
    page.put("message", "Where is the cat?")
    page.do("say")
    assert "assistant" in str(page.do("answer").data)

    # Publishing: every way in which the Hub may fail, with what was sent in its words; then to another's repository; then well.
    page.put("repo-name", "animals")
    page.do("show_card")
    for kind, path in (("401", "whoami"), ("403", "repos/create"), ("500", "/commit/"), ("429", "/preupload/"), ("timeout", "/commit/"), ("truncate", "whoami"), ("reset", "/tree/")):
        hub.faults[:] = [Fault(kind, path=path, times=10**6, says=ECHO if kind.isdecimal() else "", wait_s=3600 if kind == "429" else None)]
        stage.words.append(push(stage))
    assert STRUCK in str(stage.words) or "Bearer …" in str(stage.words)
    hub.faults.clear()
    page.put("repo-name", "taken")
    assert "holds something else" in push(stage)
    page.put("repo-name", "animals")
    assert "Published and verified" in push(stage)

    # The private adapter from the Hub; then all that is asked of the Hub gone wrong.
    page.put("subject", "hub")
    page.put("adapter-id", "alice/animals")
    page.do("arrive", "adapter-id")
    page.put("message", "Where is the dog?")
    page.do("say")
    assert "assistant" in str(page.do("answer").data)
    stage.child("tuner.chat_worker").kill()
    for kind in ("401", "403", "500", "429", "timeout", "truncate"):
        hub.faults[:] = [Fault(kind, times=10**6, says=ECHO if kind.isdecimal() else "")]
        stage.refused("read_hub")
        page.do("arrive", "adapter-id")
        page.do("mean")
        page.put("message", "Where is the dog?")
        page.do("say")
        assert "message is empty" not in stage.refused("answer")
    hub.faults.clear()
    page.put("hub-id", f"alice/{CANARY}")  # pasted into the wrong field
    stage.refused("read_hub")
    page.put("hub-id", "bob/nothing")
    stage.refused("read_hub")
    writer = Visitor(stage.app.url)  # into one that Gradio itself refuses: it says to whoever wrote it what was written, and logs it
    writer.put("view", CANARY)
    with pytest.raises(Refused, match="not in the list"):
        writer.do("change_view")
    page.put("subject", CANARY)
    assert STRUCK in stage.refused("meet")
    assert {request.token for request in hub.requests if not request.path.startswith(("/oauth", "/.well-known"))} == {CANARY}

    # Somebody else who signed in, and somebody who did not; then she leaves.
    for client in (sign_in(stage.app.url, "bob", stage.others.append), None):
        other = Visitor(stage.app.url, on_received=stage.others.append, client=client)
        for name in ("open_page", "reattach", "refresh"):
            other.do(name)
        other.put("subject", run_id(stage))
        other.put("chosen-run", run_id(stage))
        for name in ("open_run", "meet", "push"):
            with pytest.raises(Refused):
                other.do(name)
    page.client.get(stage.app.url + "/logout")
    page.do("open_page")
    assert page.shown("start") == "Sign in to start"


def run_id(stage: Stage) -> str:
    return next(path.name for path in (stage.app.home / "tuner" / "runs" / "alice").iterdir() if path.is_dir())


def push(stage: Stage) -> str:
    """Push the run and wait for its end; what the page shows then."""
    stage.visitor.put("subject", run_id(stage))
    stage.visitor.do("push")
    deadline = time.monotonic() + 90
    while "class=\"pushing\"" in str(stage.visitor.shown("pushed")):
        assert time.monotonic() < deadline, stage.visitor.shown("pushed")
        time.sleep(0.1)
        stage.visitor.do("poll", "pushed")
    return str(stage.visitor.shown("pushed"))


def test_no_process_had_it_in_its_environment_or_arguments(stage):
    """All that ran meanwhile, children of the app above all; looked at twenty times a second."""
    assert any("tuner train" in its for its in stage.processes.children), stage.processes.children
    assert any("chat_worker" in its for its in stage.processes.children) and any("verify" in its for its in stage.processes.children)
    assert not stage.processes.found


def test_no_file_holds_it(stage):
    """Of runs, datasets, caches, the temporary folder, Gradio's, the current folder, and the app's own log."""
    files = [path for path in stage.app.home.rglob("*") if path.is_file()]
    assert {"app.log", "log.txt", "events.jsonl", "publish.json", "chat.log"} <= {path.name for path in files}
    assert not [path for path in files if hits(path.read_bytes())]


def test_no_pushed_file_holds_it(stage):
    """Of any commit, whoever asked for it."""
    pushed = [content for repo in stage.hub.repos.values() for commit in repo.commits for content in commit.files.values()]
    assert len(stage.hub.repos["model", "alice/animals"].commits) >= 2
    assert not [content[:80] for content in [*pushed, *stage.hub.blobs.values()] if hits(content)]


def test_nobody_received_it(stage):
    """Every page, header, event and error that the visitor got, but for their own cookie; and all that others got."""
    assert len(stage.received) > 200 and len(stage.words) > 20 and len(stage.others) > 20
    assert not [body[:300] for body in [*stage.received, *stage.others] if hits(body)]


def test_the_cookie_is_the_one_exception_and_out_of_reach_of_scripts(stage):
    """It does hold the token: without it this exception could go. No other cookie does, and no page of another site sends it on."""
    assert any(hits(body) for body in stage.cookies)
    for body in stage.cookies:
        [line] = re.findall(rb"\('set-cookie', '(session=[^']*)'", body)
        assert {b"httponly", b"secure", b"samesite=none"} <= {part.strip().lower() for part in line.split(b";")}, line


def test_a_canary_that_leaks_is_found():
    """The search itself: whole, cut short, and in base64 wherever it stands."""
    for content in (CANARY, CANARY[:18] + "…", "…" + CANARY[-17:], CANARY.encode().hex()):
        assert hits(content.encode())
    for before in range(6):
        assert hits(base64.b64encode(b"x" * before + CANARY.encode() + b" and more")), before
        assert hits(base64.urlsafe_b64encode(b"x" * before + CANARY.encode())), before
    assert not hits(b"hf_hub_download and nothing else")
