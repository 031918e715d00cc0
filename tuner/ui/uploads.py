"""Takes uploads as Gradio does, but each into a folder of the browser that sends it: Gradio's own names files by content, for all."""

import math
import os

import fastapi
from fastapi.responses import PlainTextResponse
from gradio import route_utils, routes
from starlette.formparsers import MultiPartException

from tuner.sessions import upload_folder


def add_route(parent: fastapi.FastAPI, blocks) -> None:
    """Serve /gradio_api/upload before Gradio does. `tuner.sessions` says which folder is whose."""

    @parent.post("/gradio_api/upload")
    async def upload(request: fastapi.Request, upload_id: str | None = None):
        try:
            paths, _, _ = await route_utils.upload_fn(
                request, str(request.scope["tuner_uploads"]), blocks.max_file_size or math.inf, upload_id,
                upload_progress=routes.file_upload_statuses if upload_id else None,
            )
        except MultiPartException as error:
            return PlainTextResponse(error.message, 413 if "maximum allowed size" in error.message else 400)
        _forget(blocks)
        blocks.upload_file_set.update(paths)  # what nobody takes is deleted by Gradio after an hour
        return paths


def _forget(blocks) -> None:
    """Let go of what Gradio 6.31 keeps of uploads that were taken out: their names for ever, and an empty file each."""
    for names in blocks.temp_file_sets:
        names -= {name for name in set(names) if not os.path.exists(name)}
    for left in upload_folder().glob("tmp*"):
        if left.is_file() and not left.stat().st_size:
            left.unlink(missing_ok=True)
