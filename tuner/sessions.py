"""Whose a page's session is, and whose a file that was sent: bound to the browser by a cookie, asked before Gradio is."""

import asyncio
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

from tuner.home import on_a_space, private_dir, safe_name, tuner_home

COOKIE = "tuner-session"
_API = "/gradio_api/"
# Not http.cookies: it stops at the first cookie of somebody else's that it does not like.
_COOKIE = re.compile(rf"(?:^|;)\s*{COOKIE}=([0-9a-f]{{32}})\s*(?:;|$)")
# A body longer than this is parsed in a thread, so that others are answered meanwhile.
_LONG_BYTES = 2**20
_NOT_OURS = "This is not what the page sends. Reload it, then try again."


class Sessions:
    """ASGI middleware between the gate and Gradio.

    In Gradio 6.31 a page makes its session's name up itself (`session_hash`, from Math.random), and the name is all it
    takes to use the session's values, to read its answers and to cancel its events. Here each name is replaced, on its way
    in, by a hash of itself and of a cookie that only that browser holds. Whoever learns a name has another session with it.
    Nothing is remembered, so a restart changes nothing. Browsers that keep no cookies are one browser here: their sessions
    are as safe as their names.

    Uploads go into a folder of that browser's, from where only it is served and only its events may take them.

    Args:
        uploads: Gradio's folder for uploads.
        public: paths of the files of the page itself, which Gradio serves by the same route.
    """

    def __init__(self, app, uploads: Path, public: Collection[str] = ()):
        self.app, self.uploads = app, uploads
        self.public = frozenset(os.path.realpath(path) for path in public)

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        browser = browser_of(scope)
        if not scope["path"].startswith(_API):
            return await self.app(scope, receive, self._with_cookie(send) if not browser and scope["path"] == "/" else send)
        rest = scope["path"][len(_API) :]
        own = self.uploads / _of_browser("files", browser, "")
        if rest.startswith(("file=", "file/")):
            if not self._may_read(rest[5:], own):
                return await _refuse(send, 403, "This file was not made for you.")
            if not os.path.exists(rest[5:]):  # one's own, taken out of the cache as it came; the page asks to show it all the same
                return await _refuse(send, 204, "")
            return await self.app(scope, receive, send)
        try:
            scope = _renamed(scope, rest, browser)
        except ValueError:
            return await _refuse(send, 400, _NOT_OURS)
        if rest.startswith("upload_progress"):
            return await self.app(scope, receive, _over_is_empty(send))
        if rest.startswith("upload"):
            # Random as well, since browsers without cookies share the folder.
            return await self.app({**scope, "tuner_uploads": own / secrets.token_hex(16)}, receive, send)
        if scope["method"] != "POST":
            return await self.app(scope, receive, send)
        body = await _whole(receive)
        if body is None:
            return
        try:
            body = await asyncio.to_thread(checked, body, browser, own) if len(body) > _LONG_BYTES else checked(body, browser, own)
        except PermissionError as error:
            return await _refuse(send, 403, str(error))
        except (ValueError, RecursionError):
            return await _refuse(send, 400, _NOT_OURS)
        headers = [(name, value) for name, value in scope["headers"] if name != b"content-length"]
        scope = {**scope, "headers": [*headers, (b"content-length", str(len(body)).encode())]}
        await self.app(scope, _replay(body, receive), send)

    def _may_read(self, path: str, own: Path) -> bool:
        if "\0" in path or not path.startswith("/"):  # an address is fetched by Gradio, for whoever asks
            return False
        return os.path.realpath(path) in self.public or _is_below(path, own)

    @staticmethod
    def _with_cookie(send):
        """Give the browser its cookie with the page. On a Space the page lies in a frame of the Hub's."""
        attributes = "; Secure; SameSite=None; Partitioned" if on_a_space() else "; SameSite=Lax"
        cookie = f"{COOKIE}={secrets.token_hex(16)}; Path=/; HttpOnly{attributes}".encode()

        async def given(message):
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), (b"set-cookie", cookie), (b"cache-control", b"no-store")]}
            await send(message)

        return given


def _over_is_empty(send):
    """The progress of an upload that is over already, which Gradio calls not found: empty, so that a page asks no more and no console complains."""
    over = False

    async def given(message):
        nonlocal over
        if message["type"] == "http.response.start" and message["status"] == 404:
            over = True
            message = {**message, "status": 204, "headers": [(name, value) for name, value in message["headers"] if name not in (b"content-length", b"content-type")]}
        elif over:
            message = {**message, "body": b""}
        await send(message)

    return given


def browser_of(scope) -> str:
    """The browser's own secret from its cookie; "" where it keeps none."""
    for name, value in scope["headers"]:
        if name == b"cookie" and (its := _COOKIE.search(value.decode("latin-1"))):
            return its[1]
    return ""


def take_out(paths: list[str], owner: str) -> list[tuple[Path, str]]:
    """Move sent files at once from where Gradio serves them into a folder of their owner's.

    Returns:
        (where it is now, the name a person calls it) for each.
    """
    uploads = private_dir(tuner_home() / "uploads" / safe_name(owner, "The owner"))
    taken = []
    for path in map(Path, paths):
        taken.append((Path(shutil.move(path, uploads / secrets.token_hex(16))), path.name))
        with suppress(OSError):  # its own folders, unless another file of the same upload is still in them
            path.parent.rmdir()
            path.parent.parent.rmdir()
    return taken


def upload_folder() -> Path:
    """Where Gradio keeps what is uploaded, and serves it from."""
    if named := os.environ.get("GRADIO_TEMP_DIR"):
        return Path(named)
    return (Path(tempfile.gettempdir()) / "gradio").resolve()


# What goes in ------------------------------------------------------------------------------------------------------


def checked(body: bytes, browser: str, own: Path) -> bytes:
    """An event as it may go on: in this browser's session, as nobody but who is signed in, with no file but its own.

    Raises:
        PermissionError: it brings a token, or names a file that is not this browser's.
        ValueError: it is no event.
    """
    event = json.loads(body)
    if not isinstance(event, dict):
        raise ValueError
    if event.get("oauth_token") is not None:
        # Gradio would act as the token's user. Another app's token for somebody must not open this app to that app.
        raise PermissionError("Sign in with the button at the top; a token in a request does not count here.")
    if event.get("session_hash") is not None:
        event["session_hash"] = _of_browser("session", browser, event["session_hash"])
    waiting = [event.get("data"), event.get("event_data")]
    while waiting:
        its = waiting.pop()
        if isinstance(its, list):
            waiting += its
        elif isinstance(its, dict):
            waiting += its.values()
            path = its.get("path")
            if isinstance(path, str) and path and not _is_below(path, own):
                raise PermissionError("This file was not sent by you. Choose it again.")
    return json.dumps(event).encode()


def _renamed(scope, rest: str, browser: str):
    """The same request with the session's and an upload's names replaced in its address."""
    if name := re.fullmatch(r"heartbeat/([^/]+)", rest):
        path = f"{_API}heartbeat/{_of_browser('session', browser, name[1])}"
        return {**scope, "path": path, "raw_path": path.encode()}
    query = parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)
    whose = {"session_hash": "session", "upload_id": "upload"}
    if not any(name in whose for name, _ in query):
        return scope
    query = [(name, _of_browser(whose[name], browser, value) if name in whose else value) for name, value in query]
    return {**scope, "query_string": urlencode(query).encode()}


def _of_browser(kind: str, browser: str, name: object) -> str:
    """A name that is this browser's alone.

    Raises:
        ValueError: the name that the page gave is none.
    """
    if not isinstance(name, str) or len(name) > 64:
        raise ValueError
    return hashlib.sha256(f"{kind}/{browser}/{name}".encode("utf-8", "replace")).hexdigest()[:32]


def _is_below(path: str, folder: Path) -> bool:
    """Whether it leads there, whatever links and dots are in it."""
    return "\0" not in path and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


async def _whole(receive) -> bytes | None:
    """The body; None if the connection ended first. The gate bounds its length."""
    parts = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


def _replay(body: bytes, receive):
    """Give the body once, then whatever comes after it."""
    given = False

    async def replayed():
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


async def _refuse(send, status: int, words: str) -> None:
    body = words.encode()
    head = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})
