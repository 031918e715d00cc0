"""The gate before Gradio, over real HTTP against the running app: who may ask, for what, and how much."""

import http.client
import json
import os
import socket
import threading
import time
from pathlib import Path

import pytest
import uvicorn

from tuner import gate
from tuner.gate import Gate, Uploads, is_open

EVIL = "https://evil.example"
BOUNDARY = "----doors"
MULTIPART = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


class Served:
    """The app as `serve` builds it, in a thread of this process, so that its gate can be given small limits."""

    def __init__(self, uploads: Path):
        from tuner import chat
        from tuner.ui import app as page

        self.uploads = uploads
        self.app = page.make_app(page.Page(chat.Worker()))
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        self.host = f"127.0.0.1:{self.port}"
        self._server = uvicorn.Server(uvicorn.Config(self.app, log_level="error", timeout_graceful_shutdown=1))
        self._thread = threading.Thread(target=self._server.run, args=([listener],), daemon=True)
        self._thread.start()
        assert self.ask("GET", "/").status == 200
        self.gate = self.app.middleware_stack
        while not isinstance(self.gate, Gate):
            self.gate = self.gate.app

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)

    def ask(self, method: str, path: str, body: bytes | None = None, host: str = "", **headers: str):
        """The response, read; header names are written with _ for -."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        connection.putheader("Host", host or self.host)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        return read(connection)

    def stream(self, path: str, pieces, **headers: str):
        """The response to a body without a declared length, sent piece by piece until the server has had enough."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.putrequest("POST", path, skip_accept_encoding=True)
        for name, value in {**headers, "Transfer-Encoding": "chunked"}.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()
        sent = 0
        try:
            for piece in pieces:
                connection.send(b"%x\r\n%s\r\n" % (len(piece), piece))
                sent += len(piece)
        except OSError:  # it answered and hung up
            pass
        else:
            connection.send(b"0\r\n\r\n")
        answer = read(connection)
        answer.sent = sent
        return answer

    def left(self) -> list[str]:
        """Files in Gradio's folder of uploads."""
        return sorted(path.name for path in self.uploads.rglob("*") if path.is_file())


def read(connection):
    try:
        answer = connection.getresponse()
    except (ConnectionError, http.client.BadStatusLine):
        return type("Cut", (), {"status": 0, "text": "", "headers": {}})()
    answer.text = b"" if answer.getheader("Content-Type", "").startswith("text/event-stream") else answer.read()
    answer.text = answer.text.decode("utf-8", "replace")
    connection.close()
    return answer


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("doors")
    uploads = folder / "gradio"
    uploads.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("SYSTEM", "SPACE_HOST", "TUNER_HOSTS"):
            patch.delenv(name, raising=False)
        patch.setenv("TUNER_HOME", str(folder / "home"))
        patch.setenv("GRADIO_TEMP_DIR", str(uploads))
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        served = Served(uploads)
        yield served
        served.close()


def all_routes(app) -> set[tuple[str, str]]:
    """(method, a path that matches) of every route of the app and of what is mounted in it."""
    found = set()

    def walk(routes, before: str) -> None:
        for route in routes:
            path = before + getattr(route, "path", "")
            if inner := getattr(getattr(route, "app", None), "routes", None) or getattr(getattr(route, "original_router", None), "routes", None):
                walk(inner, path.rstrip("/"))
                continue
            for part in [its.split("}")[0] for its in path.split("{")[1:]]:
                path = path.replace("{" + part + "}", "1")
            for method in getattr(route, "methods", None) or ("GET",):
                found.add((method, path))

    walk(app.routes, "")
    return found


def multipart(*parts: tuple[str, bytes]) -> bytes:
    """A form of files; a part without a name is a plain field."""
    told = [f'name="files"; filename="{name}"' if name else 'name="note"' for name, _ in parts]
    body = b"".join(
        f"--{BOUNDARY}\r\nContent-Disposition: form-data; {its}\r\n\r\n".encode() + data + b"\r\n" for its, (_, data) in zip(told, parts)
    )
    return body + f"--{BOUNDARY}--\r\n".encode()


# Other origins ------------------------------------------------------------------------------------------------------


def test_another_origin_is_refused_on_every_route(served):
    routes = sorted(all_routes(served.app) | {(method, path) for _, path in all_routes(served.app) for method in ("OPTIONS", "POST")})
    assert len(routes) > 150 and ("POST", "/gradio_api/queue/join") in routes and ("GET", "/config") in routes
    wrong = []
    for method, path in routes:
        for headers in (
            {"Origin": EVIL, "Access_Control_Request_Method": "POST"}, {"Origin": EVIL, "Sec_Fetch_Site": "same-origin"},
            {"Origin": "null"}, {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "no-cors"},
        ):
            answer = served.ask(method, path, b"{}" if method == "POST" else None, **headers)
            cors = [name for name in answer.headers if name.lower().startswith("access-control")]
            if answer.status != 403 or cors:
                wrong.append((method, path, headers, answer.status, cors))
    assert wrong == []


@pytest.mark.parametrize("origin", [
    "https://127.0.0.1.evil.example", "http://evil.example:{port}", "http://127.0.0.1:1", "http://user@evil.example", "file://", "", " ",
    "http://127.0.0.1:{port}.evil.example", "http://[::1", "https://huggingface.co", "https://evil.hf.space",
])
def test_origins_that_look_like_the_own_are_others(served, origin):
    answer = served.ask("POST", "/gradio_api/queue/join", b"{}", Origin=origin.format(port=served.port))
    assert answer.status == 403


def test_the_own_origin_none_and_the_hub_s_frame_work(served):
    own = f"http://{served.host}"
    for headers in ({}, {"Origin": own}, {"Origin": own, "Sec_Fetch_Site": "same-origin", "Sec_Fetch_Mode": "cors"}, {"Sec_Fetch_Site": "none"}):
        for path in ("/", "/config", "/theme.css", "/gradio_api/info"):
            answer = served.ask("GET", path, **headers)
            assert answer.status == 200, (path, headers, answer.text)
            assert not [name for name in answer.headers if name.lower().startswith("access-control")]
        joined = served.ask("POST", "/gradio_api/queue/join", b"{}", Content_Type="application/json", **headers)
        assert joined.status == 422  # Gradio itself: an event needs more than that
    opens = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "iframe", "Referer": "https://huggingface.co/"}
    framed = served.ask("GET", "/?adapter=user/name", **opens)
    assert framed.status == 200 and "gradio" in framed.text
    allowed = framed.headers["Content-Security-Policy"]
    assert "frame-ancestors 'self' https://huggingface.co" in allowed and "*;" not in allowed
    assert "connect-src 'self'" in allowed and "font-src 'self'" in allowed
    assert framed.headers["Referrer-Policy"] == "same-origin" and framed.headers["X-Content-Type-Options"] == "nosniff"
    # A link leads to the page, to nothing else of it.
    for path in ("/config", "/logout", "/gradio_api/info", "/gradio_api/file=/etc/passwd", "/gradio_api/heartbeat/abc"):
        assert served.ask("GET", path, **opens).status == 403, path
    assert served.ask("POST", "/", b"", **opens).status == 403


def test_on_a_space_the_own_origin_is_the_space_s(served, monkeypatch):
    monkeypatch.setenv("SYSTEM", "spaces")
    monkeypatch.setenv("SPACE_HOST", "user-tuner.hf.space, tuner.example")
    for origin, status in (("https://user-tuner.hf.space", 422), ("https://tuner.example", 422), ("https://other-tuner.hf.space", 403)):
        answer = served.ask("POST", "/gradio_api/queue/join", b"{}", host="10.0.0.7:7860", Content_Type="application/json", Origin=origin)
        assert answer.status == status, origin


def test_a_name_that_an_attacker_makes_mean_this_machine_is_refused(served, monkeypatch):
    """DNS rebinding: his page, his name, our address; to the browser all is of one origin."""
    for host in ("evil.example", f"evil.example:{served.port}", "localhost.evil.example", "127.0.0.1.evil.example", "evil.example."):
        assert served.ask("GET", "/", host=host).status == 403
        assert served.ask("POST", "/gradio_api/queue/join", b"{}", host=host, Origin=f"http://{host}").status == 403
    for host in ("localhost", f"localhost:{served.port}", "LOCALHOST", "[::1]:7860", "192.168.1.7:7860", socket.gethostname()):
        assert served.ask("GET", "/config", host=host).status == 200, host
    monkeypatch.setenv("TUNER_HOSTS", "tuner.example, other.example")
    assert served.ask("GET", "/", host="tuner.example").status == 200
    assert served.ask("GET", "/", host="gradio.live").status == 403  # only where a public link was asked for
    assert Gate(None, hosts=("gradio.live",))._known_host("abc123.gradio.live")
    assert not Gate(None, hosts=("gradio.live",))._known_host("evilgradio.live")


@pytest.mark.parametrize("origin", [EVIL, None])
def test_no_websocket_is_opened(served, origin):
    for path in ("/gradio_api/queue/join", "/queue/join", "/"):
        with socket.create_connection(("127.0.0.1", served.port), timeout=10) as line:
            line.sendall((
                f"GET {path} HTTP/1.1\r\nHost: {served.host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
                + (f"Origin: {origin}\r\n" if origin else "") + "\r\n"
            ).encode())
            answer = line.recv(100).split(b" ")[1]
            # Where the server has no websockets at all, the page itself is only read.
            assert answer in (b"403", b"404") or (path == "/" and answer == b"200" and not origin)


# What is open -------------------------------------------------------------------------------------------------------


def test_what_the_page_does_not_ask_for_is_not_there(served):
    """Every route that Gradio mounts and the page does not need, and those that it mounts in other settings."""
    closed = sorted(its for its in all_routes(served.app) if not is_open(*its))
    more = [
        ("GET", path) for path in (
            "/gradio_api/deep_link", "/gradio_api/deep_link?session_hash=a", "/gradio_api/runs", "/gradio_api/runs/", "/runs", "/monitoring",
            "/monitoring/summary", "/monitoring/x/dashboard", "/gradio_api/token", "/gradio_api/user", "/gradio_api/login_check",
            "/gradio_api/dev/reload", "/gradio_api/profiling/summary", "/gradio_api/openapi.json", "/gradio_api/mcp/sse", "/docs", "/openapi.json",
            "/agents.md", "/gradio_api/proxy=https://a.hf.space/", "/gradio_api/file/etc/passwd", "/gradio_api/vibe-code",
            "/gradio_api/queue/status", "/gradio_api/stream/a/b/c/playlist.m3u8", "/gradio_api/custom_component/1/server/a/b",
        )
    ] + [("POST", path) for path in (
        "/login", "/gradio_api/component_server", "/gradio_api/component_server/", "/gradio_api/process_recording", "/gradio_api/vibe-edit",
        "/gradio_api/call/predict", "/gradio_api/call/v2/predict", "/gradio_api/api/predict", "/gradio_api/run-history/connect",
        "/gradio_api/stream/a", "/upload", "/queue/join", "/gradio_api/upload/", "/gradio_api/queue/join/",
    )]
    assert len(closed) > 50
    for method, path in [*closed, *more]:
        answer = served.ask(method, path, b"{}" if method == "POST" else None)
        assert answer.status == 404 and answer.text in ("There is nothing here.", ""), (method, path, answer.status)
    for method in ("PUT", "DELETE", "PATCH", "TRACE", "OPTIONS"):
        assert served.ask(method, "/").status == 404


@pytest.mark.parametrize("path", [
    "//gradio_api/deep_link", "/gradio_api//deep_link", "/gradio_api/%64eep_link", "/gradio_api/../gradio_api/runs", "/gradio_api/./runs",
    "/gradio_api%2fruns", "/GRADIO_API/RUNS", "/Monitoring/summary", "/assets/../gradio_api/runs", "/assets/..%2fgradio_api%2fruns",
    "/assets/%2e%2e/gradio_api/runs", "/static/..%5c..%5cgradio_api%5cruns", "/gradio_api/runs%00", "/gradio_api/runs;a", "/gradio_api/runs%20",
    "/gradio_api/file=..%2f..%2fetc/passwd", "/gradio_api/file=/tmp/../etc/passwd", "/gradio_api/file=http://127.0.0.1/", "/gradio_api/file=",
    "/gradio_api/heartbeat/a%2f..%2fb", "/gradio_api/run%2f..%2fdeep_link", "/assets/%252e%252e/%252e%252e/etc/passwd",
])
def test_no_spelling_of_a_path_gets_round_it(served, path):
    assert served.ask("GET", path).status in (400, 403, 404)
    assert served.ask("GET", path, Origin=EVIL).status in (400, 403)


@pytest.mark.parametrize("kept", ["app.py", "tuner/gate.py", "README.md"])
def test_nothing_of_the_app_or_its_home_is_served(served, kept):
    root = Path(__file__).parent.parent
    home = Path(os.environ["TUNER_HOME"])
    home.mkdir(exist_ok=True)
    (home / "secret.txt").write_text("secret")
    (served.uploads / "link.txt").symlink_to(home / "secret.txt") if not (served.uploads / "link.txt").exists() else None
    for path in (root / kept, home / "secret.txt", Path("/etc/passwd"), Path("/proc/self/environ"), served.uploads / "link.txt"):
        answer = served.ask("GET", f"/gradio_api/file={path}")
        assert answer.status in (403, 404) and "secret" not in answer.text.replace("secret.txt", ""), path
    (served.uploads / "link.txt").unlink()


def test_gradio_s_own_client_gets_through(served):
    """As people drive a Space from Python: no Origin, no browser. It asks for the config, the list of events, and a session."""
    from gradio_client import Client

    client = Client(f"http://{served.host}", verbose=False, analytics_enabled=False)
    assert client.config["title"] == "Tuner"
    client.close()


# How much -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(served, monkeypatch):
    """The app with limits that a test can reach."""
    monkeypatch.setattr(served.gate, "max_upload_bytes", 2**20)
    monkeypatch.setattr(gate, "MAX_BODY_BYTES", 2**20)
    return served


def endless(piece: bytes):
    while True:
        yield piece


def test_an_upload_that_fits_arrives(small):
    answer = small.ask("POST", "/gradio_api/upload", multipart(("rows.jsonl", b'{"text": "a"}\n')), **MULTIPART)
    assert answer.status == 200 and json.loads(answer.text)[0].endswith("/rows.jsonl")


def test_what_says_that_it_is_too_much_is_refused_at_once(small):
    for path in ("/gradio_api/upload", "/gradio_api/queue/join"):
        for declared in ("1048577", "999999999999999999999", "-1", "1e3", "²", "0x10"):
            with socket.create_connection(("127.0.0.1", small.port), timeout=10) as line:
                line.sendall(f"POST {path} HTTP/1.1\r\nHost: {small.host}\r\nContent-Length: {declared}\r\n\r\n".encode("latin-1"))
                assert line.recv(200).split(b" ")[1] in (b"413", b"400"), (path, declared)


def test_what_goes_on_without_end_is_cut_and_leaves_nothing(small):
    before = small.left()
    head = multipart(("rows.jsonl", b""))[: -len(f"\r\n--{BOUNDARY}--\r\n")]

    def file():
        yield head
        yield from endless(b"x" * 65_536)

    answer = small.stream("/gradio_api/upload", file(), **MULTIPART)
    assert answer.status in (413, 0) and answer.sent < 64 * 2**20
    deadline = time.monotonic() + 10
    while small.left() != before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert small.left() == before
    answer = small.stream("/gradio_api/queue/join", endless(b" " * 65_536), Content_Type="application/json")
    assert answer.status in (413, 0) and answer.sent < 64 * 2**20
    assert small.gate._in_memory == 0


def test_many_small_files_count_together(small):
    one = b"x" * 3_000  # refused by what it declares; the words still come, since what is on its way is let arrive
    assert small.ask("POST", "/gradio_api/upload", multipart(*[(f"{n}.txt", one) for n in range(400)]), **MULTIPART).status == 413
    before = small.left()
    answer = small.ask("POST", "/gradio_api/upload", multipart(*[(f"{n}.txt", b"x") for n in range(200)]), **MULTIPART)
    assert answer.status == 400 and "Too many files" in answer.text and small.left() == before


def test_a_field_that_is_no_file_is_not_gathered_in_memory(served):
    answer = served.ask("POST", "/gradio_api/upload", multipart(("", b"x" * 2**17)), **MULTIPART)
    assert answer.status == 400 and "field of the form is too long" in answer.text


@pytest.mark.parametrize("path", ["/gradio_api/upload", "/gradio_api/queue/join"])
def test_a_body_that_hardly_comes_is_given_up(served, monkeypatch, path):
    monkeypatch.setattr(gate, "SILENCE_S", 0.3)
    before = served.left()
    head = f"POST {path} HTTP/1.1\r\nHost: {served.host}\r\nContent-Length: 50000\r\nContent-Type: {MULTIPART['Content-Type']}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as line:
        line.sendall(head + multipart(("rows.jsonl", b"abc"))[:-30])
        assert line.recv(100).split(b" ")[1] == b"408"  # nothing more came
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as line:
        line.sendall(head + multipart(("rows.jsonl", b"abc"))[:-30])
        line.settimeout(0.05)
        answer = b""
        for _ in range(200):  # a byte now and then, for ever
            try:
                line.sendall(b"x")
                answer += line.recv(100)
                break
            except TimeoutError:
                continue
            except OSError:
                break
        assert answer.split(b" ")[1:2] == [b"408"]
    deadline = time.monotonic() + 10
    while served.left() != before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert served.left() == before


def test_each_visitor_has_an_hour_s_share(served, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(served.gate, "shared", True)
    monkeypatch.setattr(served.gate, "uploads", Uploads(300_000, 550_000, clock=lambda: now[0]))
    monkeypatch.setenv("SYSTEM", "spaces")
    monkeypatch.setenv("SPACE_HOST", served.host)
    before = served.left()
    send = lambda who: served.ask("POST", "/gradio_api/upload", multipart((f"{who[:3]}.txt", os.urandom(100_000))), X_Forwarded_For=who, **MULTIPART)  # noqa: E731
    assert [send("203.0.113.7, 10.0.0.1").status for _ in range(3)] == [200, 200, 429]
    told = send("203.0.113.7")
    assert told.status == 429 and told.text.startswith("You have uploaded") and "Try again in 60 minutes" in told.text
    assert send("198.51.100.9").status == 200
    assert [send(f"2001:db8::{n}").status for n in range(3)] == [200, 200, 429]  # one subscriber's many addresses
    assert send("198.51.100.10").status == 429 and "All visitors together" in send("198.51.100.10").text
    now[0] += 3601
    assert send("203.0.113.7").status == 200
    deadline = time.monotonic() + 10  # an upload ends after its answer
    while served.gate.uploads._going and time.monotonic() < deadline:
        time.sleep(0.02)
    assert served.gate.uploads._going == {}
    assert not [name for name in served.left() if name not in before and not name.endswith(".txt")]  # no half of a refused one


def test_a_visitor_s_uploads_at_once_are_counted():
    uploads = Uploads(10**9, 10**9)
    for _ in range(gate.UPLOADS_AT_ONCE):
        uploads.begin("a")
    with pytest.raises(gate.Refused, match="under way already"):
        uploads.begin("a")
    uploads.end("a")
    uploads.begin("a")
    for number in range(gate.UPLOADS_OF_ALL - gate.UPLOADS_AT_ONCE):
        uploads.begin(f"b{number}")
    with pytest.raises(gate.Refused, match="Many visitors"):
        uploads.begin("c")
    for number in range(gate.MOST_KNOWN + 100):
        uploads.add(f"v{number}", 1)
    assert len(uploads._seen) <= gate.MOST_KNOWN


def test_no_upload_where_the_disk_is_nearly_full(served, monkeypatch):
    monkeypatch.setattr(gate.shutil, "disk_usage", lambda path: type("Usage", (), {"free": gate.FREE_BYTES}))
    answer = served.ask("POST", "/gradio_api/upload", multipart(("a.txt", b"a")), **MULTIPART)
    assert answer.status == 507 and "no room" in answer.text
