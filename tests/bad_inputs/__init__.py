"""Bad and odd inputs as data: what is brought, under what name, and what has to come of it."""

import base64
import functools
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from tests.bad_inputs import make

_TABLE = Path(__file__).with_name("cases.toml")


@dataclass(frozen=True)
class Case:
    """One input.

    Args:
        name: of the case.
        refused: a part of the message that refuses it, "" if it is read.
        read: rows, broken (0 if absent), and a part of a note (notes, "" if absent).
        parts: the files, see cases.toml.
        bomb: whether it would fill the machine, so that its memory is worth watching.
    """

    name: str
    refused: str
    read: dict
    parts: tuple[dict, ...]
    bomb: bool

    def files(self, folder: Path) -> list[tuple[Path, str]]:
        """Write or make the case's files in a folder: (path, what the person calls it), as `reading.read` takes them."""
        return [(_write(part, folder / f"{_slug(self.name)}-{number}"), part["called"]) for number, part in enumerate(self.parts)]


@functools.cache
def cases() -> list[Case]:
    """Every case of the table."""
    table = tomllib.loads(_TABLE.read_text("utf-8"))["case"]
    return [
        Case(row["name"], row.get("refused", ""), row.get("read", {}), (row, *row.get("more", ())), row.get("bomb", False))
        for row in table
    ]


def _slug(name: str) -> str:
    return re.sub(r"\W+", "-", name)


def _write(part: dict, path: Path) -> Path:
    if "make" in part:
        content = getattr(make, part["make"])(*part.get("args", ()))
    elif "base64" in part:
        content = base64.b64decode(part["base64"])
    elif "bytes" in part:
        content = part["bytes"].encode("latin-1")
    else:
        content = part["text"].encode()
    path.write_bytes(content)
    return path
