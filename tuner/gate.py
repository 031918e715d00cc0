"""What stands in front of Gradio: other origins refused, unused routes closed, uploads counted while they stream."""

import os
from urllib.parse import urlsplit

MAX_UPLOAD_BYTES = 2100 * 2**20

# Gradio serves these whether the app uses them or not; each has leaked something once.
CLOSED = ("/deep_link", "/runs", "/monitoring", "/component_server", "/proxy=", "/profiling")


class Gate:
    """ASGI middleware. Put it outside everything else.

    On any host but localhost Gradio 6.31 answers every origin with credentials allowed, so a foreign page could act
    with a signed-in visitor's token; here such requests never reach it.
    """

    def __init__(self, app, max_upload_bytes: int = MAX_UPLOAD_BYTES):
        self.app = app
        self.max_upload_bytes = max_upload_bytes

    async def __call__(self, scope, receive, send):
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        path = scope["path"]
        if not self._same_origin(scope, headers):
            return await _refuse(scope, send, 403, "This page answers its own visitors only.")
        if any(path.startswith(prefix + route) for route in CLOSED for prefix in ("", "/gradio_api")):
            return await _refuse(scope, send, 404, "There is nothing here.")
        if path.endswith("/upload"):
            declared = headers.get("content-length", "0")
            if not declared.isdigit() or int(declared) > self.max_upload_bytes:
                return await _refuse(scope, send, 413, self._too_large())
            return await self._count(scope, receive, send)
        return await self.app(scope, receive, send)

    def _too_large(self) -> str:
        return f"At most {self.max_upload_bytes // 2**20} MiB can be uploaded at once."

    @staticmethod
    def _same_origin(scope, headers: dict) -> bool:
        """Whether the request comes from this page, from no page at all, or only opens the page."""
        if scope["type"] == "http" and scope["method"] == "GET" and headers.get("sec-fetch-mode") == "navigate":
            return True  # following a link, or the frame in which the Hub shows a Space
        own = {headers.get("host", ""), os.environ.get("SPACE_HOST", "")} - {""}
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc not in own:
            return False
        return headers.get("sec-fetch-site", "none") in ("none", "same-origin")

    async def _count(self, scope, receive, send):
        """Pass the body on while it stays within bounds, also where no length was declared."""
        seen, refused = 0, False

        async def counted():
            nonlocal seen, refused
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.max_upload_bytes:
                refused = True
                return {"type": "http.disconnect"}
            return message

        async def watched(message):
            if not refused:
                await send(message)

        try:
            await self.app(scope, counted, watched)
        finally:
            if refused:
                await _refuse(scope, send, 413, self._too_large())


async def _refuse(scope, send, status: int, words: str) -> None:
    if scope["type"] == "websocket":
        return await send({"type": "websocket.close", "code": 1008})
    body = words.encode()
    await send({
        "type": "http.response.start", "status": status,
        "headers": [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())],
    })
    await send({"type": "http.response.body", "body": body})
