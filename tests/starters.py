"""A starter model as the stand-in Hub serves it: its own files, as they lie in its package."""

from pathlib import Path

import pytest

from tests.stand_in_hub import StandInHub
from tuner import starter


def serve(hub: StandInHub, model: str, home: Path) -> None:
    """Unpack a starter into a home of its own and add it to the Hub under its name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNER_HOME", str(home))
        folder = starter.of(model).prepare()
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "what_it_is.json"}
    hub.add_repo(model, files={**files, "README.md": b"---\nlicense: apache-2.0\n---\n"})
