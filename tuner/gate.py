"""What stands in front of Gradio: other origins refused, unused routes closed, bodies counted while they stream."""

import asyncio
import contextlib
import ipaddress
import math
import os
import re
import shutil
import socket
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from tuner import limits
from tuner.home import on_a_space
from tuner.sessions import upload_folder

# All that the page, the sign-in and Gradio's Python client ask for. Gradio serves three times as much whether an app
# uses it or not, and most of it has leaked something once; what is not here is not there.
OPEN = {
    "GET": re.compile(
        r"/|/config/?|/theme\.css|/robots\.txt|/favicon\.ico|/manifest\.json"
        r"|/(assets|static|svelte)/[^\x00-\x20]+"
        r"|/login/(huggingface|callback)|/logout"
        r"|/gradio_api/(info|app_id|queue/data|upload_progress|startup-events|theme\.css|heartbeat/[\w-]{1,64}|file=[^\x00-\x1f]+)"
    ),
    "POST": re.compile(r"/gradio_api/(queue/join|cancel|reset/?|upload|run/\w{1,100})"),
}
OPEN["HEAD"] = OPEN["GET"]
# What another site may lead to: the page itself, in the Hub's frame too, and the way back from the sign-in.
ARRIVALS = ("/", "/login/huggingface", "/login/callback")
# Only the Hub may show the page in a frame: elsewhere a click could be stolen.
FRAMES = "frame-ancestors 'self' https://huggingface.co https://*.huggingface.co"
# The page asks nobody but its own server, whatever stands in it: Gradio 6.31 asks the Hub for the state of the Space that it
# is served by, and its themes may name fonts elsewhere. Each such question tells another host who reads the page, and when.
ASKS = "connect-src 'self' blob: data:; img-src 'self' blob: data:; font-src 'self' data:; style-src 'self' 'unsafe-inline'; object-src 'none'"

MAX_UPLOAD_BYTES = 2100 * 2**20
# One event's arguments: pasted rows are the longest, 20 million characters. They are held in memory, unlike uploads.
MAX_BODY_BYTES = 96 * 2**20
# In memory at once for everybody.
MAX_BODIES_BYTES = 384 * 2**20
# On a Space or a shared link: what all visitors together may upload in an hour; of each see `limits.UPLOAD`.
MAX_HOURLY_BYTES_OF_ALL = 64 * 2**30
UPLOADS_AT_ONCE, UPLOADS_OF_ALL = 4, 32
# What stays free on the disk that takes uploads.
FREE_BYTES = 2**30
# A body of which nothing arrives for so long, or less than so much a second, is given up.
SILENCE_S, SLOWEST = 20.0, 4096
# What a refused body may still send before it is answered: a connection closed while more arrives loses the words.
LAST_BYTES, LAST_S = 4 * 2**20, 1.0
HOUR_S = 3600.0
MOST_KNOWN = 10_000


class Refused(Exception):
    """A body that went too far, in words."""

    def __init__(self, status: int, words: str):
        super().__init__(words)
        self.status, self.words = status, words


class Uploads:
    """Who has uploaded how much in the last hour, and who is uploading now."""

    def __init__(self, most: float, most_of_all: float, clock: Callable[[], float] = time.monotonic):
        self.most, self.most_of_all, self.clock = most, most_of_all, clock
        self._seen: OrderedDict[str, tuple[float, int]] = OrderedDict()  # who -> (when their hour began, bytes since)
        self._going: dict[str, int] = {}

    def begin(self, who: str) -> None:
        """One more upload of this visitor.

        Raises:
            Refused: too many at once.
        """
        if self._going.get(who, 0) >= UPLOADS_AT_ONCE:
            raise Refused(429, f"{UPLOADS_AT_ONCE} of your uploads are under way already. Wait for one to end, then try again.")
        if sum(self._going.values()) >= UPLOADS_OF_ALL:
            raise Refused(503, "Many visitors are uploading just now. Try again in a minute.")
        self._going[who] = self._going.get(who, 0) + 1

    def end(self, who: str) -> None:
        self._going[who] -= 1
        if not self._going[who]:
            del self._going[who]

    def add(self, who: str, size_bytes: int) -> None:
        """Count what arrived.

        Raises:
            Refused: this visitor, or all of them, have had their hour's share.
        """
        for name, most in ((who, self.most), ("", self.most_of_all)):  # "" stands for everybody together
            began, total = self._seen.pop(name, (self.clock(), 0))
            if self.clock() - began > HOUR_S:
                began, total = self.clock(), 0
            self._seen[name] = began, total + size_bytes
            if total + size_bytes > most:
                minutes = max(1, round((HOUR_S - (self.clock() - began)) / 60))
                whose = "You have" if name else "All visitors together have"
                raise Refused(429, f"{whose} uploaded {most / 2**30:.1f} GiB within an hour, which is the most. Try again in {minutes} minutes.")
        while len(self._seen) > MOST_KNOWN:
            self._seen.popitem(last=False)


class Gate:
    """ASGI middleware. Put it outside everything else.

    On any host but localhost Gradio 6.31 answers every origin with credentials allowed, so a foreign page could act
    with a signed-in visitor's token; here such requests never reach it.

    Args:
        shared: whether strangers share this machine, so that each has an hourly share.
        hosts: further names under which the page is served off a Space, such as a public link's.
        max_upload_bytes: of one request.
        uploads: what was uploaded; by default counted within the limits above.
    """

    def __init__(
        self, app, shared: bool | None = None, hosts: tuple[str, ...] = (), max_upload_bytes: int = MAX_UPLOAD_BYTES,
        uploads: Uploads | None = None,
    ):
        self.app = app
        self.shared = on_a_space() if shared is None else shared
        self.hosts = hosts
        self.max_upload_bytes = max_upload_bytes
        self.uploads = uploads or Uploads((limits.UPLOAD.value() or math.inf) * 2**20, MAX_HOURLY_BYTES_OF_ALL)
        self._in_memory = 0

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if not self._known_host(headers.get("host", "")):
            return await _refuse(scope, send, 403, "This page is not served under that name. Add it to TUNER_HOSTS if it should be.")
        if not self._same_origin(scope, headers):
            return await _refuse(scope, send, 403, "This page answers its own visitors only.")
        if scope["type"] != "http" or not is_open(scope["method"], scope["path"]):
            return await _refuse(scope, send, 404, "There is nothing here.")
        if scope["method"] != "POST":
            return await self.app(scope, receive, _guarded(send))
        try:
            await self._take(scope, headers, receive, _guarded(send))
        except Refused as refused:
            if refused.status != 408:
                await _let_arrive(receive)
            await _refuse(scope, send, refused.status, refused.words)

    # Who asks ---------------------------------------------------------------------------------------------------

    def _known_host(self, host: str) -> bool:
        """Whether a browser may have been led here under this name.

        Off a Space, any name that an attacker owns can be made to mean this machine; then his page is "the same origin".
        An address cannot, nor can the names that this machine is known by.
        """
        if on_a_space():
            return True
        name = _name_of(host)
        with contextlib.suppress(ValueError):
            ipaddress.ip_address(name)
            return True
        named = os.environ.get("TUNER_HOSTS", "").lower().split(",")
        own = {"", "localhost", _own_name(), f"{_own_name()}.local", os.environ.get("GRADIO_SERVER_NAME", "").lower()}
        return name in own or name in {its.strip() for its in named} or any(name == its or name.endswith(f".{its}") for its in self.hosts)

    def _same_origin(self, scope, headers: dict) -> bool:
        """Whether the request comes from this page, from no page at all, or only opens the page."""
        arrives = (
            scope["type"] == "http" and scope["method"] in ("GET", "HEAD") and scope["path"] in ARRIVALS
            and headers.get("sec-fetch-mode") == "navigate"
        )
        own = {headers.get("host", "").lower(), *(name.strip().lower() for name in os.environ.get("SPACE_HOST", "").split(","))} - {""}
        origin = headers.get("origin")
        if origin is not None and _place_of(origin) not in own:
            return False
        return arrives or headers.get("sec-fetch-site", "none") in ("none", "same-origin")

    def _visitor(self, scope, headers: dict) -> str:
        """Whom an hour's share is counted for: the address; on a Space the one that its proxy names."""
        named = headers.get("x-forwarded-for", "").split(",")[0].strip() if on_a_space() else ""
        address = named or (scope.get("client") or ("",))[0]
        with contextlib.suppress(ValueError):
            its = ipaddress.ip_address(address)
            if its.version == 6:  # one subscriber has 2^64 of these
                return str(ipaddress.ip_network((its, 64), strict=False))
        return address[:64] or "unknown"

    # What is sent -----------------------------------------------------------------------------------------------

    async def _take(self, scope, headers: dict, receive, send):
        """Pass a body on while it stays within bounds.

        Raises:
            Refused: it did not, and nothing was answered yet.
        """
        uploads = scope["path"] == "/gradio_api/upload"
        most = self.max_upload_bytes if uploads else MAX_BODY_BYTES
        declared = headers.get("content-length", "")
        if (declared and not (declared.isascii() and declared.isdecimal())) or int(declared or 0) > most:
            raise Refused(413, f"At most {most // 2**20} MiB can be sent at once.")
        who = self._visitor(scope, headers)
        body = _Body(receive, most, lambda size: self._count(who, size, uploads))
        if uploads:
            if shutil.disk_usage(_uploads_dir()).free < int(declared or 0) + FREE_BYTES:
                raise Refused(507, "There is no room for this upload just now. Try again later, or bring a part of it.")
            self.uploads.begin(who)
        answered = False

        async def watched(message):
            nonlocal answered
            if body.refused is None or answered:  # what is said of a body that was cut off, is said below
                answered = True
                await send(message)

        try:
            await self.app(scope, body.receive, watched)
        except Exception:
            if body.refused is None:
                raise
        finally:
            if uploads:
                self.uploads.end(who)
            else:
                self._in_memory -= body.size
        if body.refused is not None and not answered:
            raise body.refused

    def _count(self, who: str, size: int, uploads: bool) -> None:
        if not uploads:
            self._in_memory += size
            if self._in_memory > MAX_BODIES_BYTES:
                raise Refused(503, "Many visitors are sending much just now. Try again in a minute.")
        if self.shared:
            self.uploads.add(who, size)


class _Body:
    """A request's body as it arrives: counted, and given up where it is too much or hardly comes."""

    def __init__(self, receive, most: int, count: Callable[[int], None]):
        self._receive, self.most, self._count = receive, most, count
        self.size, self.refused, self._whole = 0, None, False
        self._waited = 0.0

    async def receive(self):
        if self.refused is not None:
            return {"type": "http.disconnect"}
        if self._whole:  # from here on only the end of the connection is waited for, which may be long
            return await self._receive()
        try:
            message = await self._next()
        except Refused as refused:
            self.refused = refused
            return {"type": "http.disconnect"}
        return message

    async def _next(self):
        began = time.monotonic()
        try:
            message = await asyncio.wait_for(self._receive(), SILENCE_S)
        except TimeoutError:
            raise Refused(408, "Nothing more of this arrived, so it was given up. Send it again.") from None
        self._waited += time.monotonic() - began
        size = len(message.get("body", b""))
        self.size += size
        self._count(size)
        if self.size > self.most:
            raise Refused(413, f"At most {self.most // 2**20} MiB can be sent at once.")
        if self._waited > SILENCE_S and self.size < SLOWEST * self._waited:
            raise Refused(408, "This arrived too slowly, so it was given up. Send it again over a better connection.")
        self._whole = not message.get("more_body", False)
        return message


def is_open(method: str, path: str) -> bool:
    """Whether the page needs this; matched whole, on the path that Gradio itself would match, so that no spelling gets round it."""
    wanted = OPEN.get(method)
    if wanted is None or not wanted.fullmatch(path):
        return False
    return "\\" not in path and "//" not in path and ".." not in path.replace("=", "/").split("/")


def _guarded(send):
    """Pass answers on without any CORS header, and with what keeps a browser from showing or believing too much."""

    async def guarded(message):
        if message["type"] == "http.response.start":
            kept = [
                (name, value) for name, value in message.get("headers", [])
                if not name.lower().startswith(b"access-control-") and name.lower() not in (b"x-content-type-options", b"referrer-policy")
            ]
            kept += [
                (b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"same-origin"),
                (b"content-security-policy", f"{FRAMES}; {ASKS}".encode()),
            ]
            message = {**message, "headers": kept}
        await send(message)

    return guarded


def _place_of(origin: str) -> str:
    """Host and port of an Origin header, in small letters; what is none of a page's gives no host's name."""
    try:
        return urlsplit(origin).netloc.lower() or "?"
    except ValueError:
        return "?"


def _name_of(host: str) -> str:
    """A Host header without its port, in small letters."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return "?"


def _own_name() -> str:
    return socket.gethostname().lower()


def _uploads_dir() -> Path:
    """The disk on which Gradio puts uploads; its folder there may not have been made yet."""
    folder = upload_folder()
    return next(its for its in (folder, *folder.parents) if its.is_dir())


async def _let_arrive(receive) -> None:
    """Read and forget what is on its way, for a moment."""
    size, more = 0, True
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LAST_S):
            while more and size < LAST_BYTES:
                message = await receive()
                size += len(message.get("body", b""))
                more = message.get("more_body", False)


async def _refuse(scope, send, status: int, words: str) -> None:
    if scope["type"] == "websocket":
        return await send({"type": "websocket.close", "code": 1008})
    body = words.encode()
    await send({
        "type": "http.response.start", "status": status,
        "headers": [
            (b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),  # what is left of a refused body is not read
        ],
    })
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
