"""Gradio's reader of uploads, kept from holding a field in memory without end and from leaving files of broken uploads."""

from contextlib import suppress
from pathlib import Path

from gradio.route_utils import GradioMultiPartParser, MultiPartException

# A form field that is no file. Gradio 6.31 gathers it in memory whatever its size; the page sends none.
MAX_FIELD_BYTES = 2**16
# Files in one request; Gradio's own limit is a thousand.
MAX_FILES = 100


class Parser(GradioMultiPartParser):
    """As Gradio's, with bounds. Can go once upstream bounds fields and removes what a lost connection leaves behind."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{**kwargs, "max_files": MAX_FILES, "max_fields": 10})

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        part = self._current_part
        if part.file is None and len(part.data) + end - start > MAX_FIELD_BYTES:
            raise MultiPartException("A field of the form is too long.")
        super().on_part_data(data, start, end)

    async def parse(self):
        try:
            return await super().parse()
        except BaseException:
            for file in self._files_to_close_on_error:
                file.close()
                with suppress(FileNotFoundError):
                    Path(file.name).unlink()
            raise


def bound() -> None:
    """Let Gradio read uploads so."""
    from gradio import route_utils

    route_utils.GradioMultiPartParser = Parser
