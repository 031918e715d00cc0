"""A process of its own with the Hub's real client pointed at the stand-in, since the client reads HF_ENDPOINT when imported."""

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

from tuner.errors import UserError

ROOT = Path(__file__).parent.parent
ALICE, BOB = "hf_test_alice", "hf_test_bob"

_LOOP = """
import contextlib, json, os, sys, traceback
from tuner.errors import UserError
for line in sys.stdin:
    asked, names = json.loads(line), {}
    os.environ.update(asked["env"])
    try:
        with contextlib.redirect_stdout(sys.stderr):
            exec(asked["code"], names)
        reply = {"result": names.get("result")}
    except UserError as error:
        reply = {"refused": error.problems}
    except BaseException:
        reply = {"fault": traceback.format_exc()}
    print(json.dumps(reply), flush=True)
"""


class Client:
    """Runs pieces of code one after the other in one process, as its own login "hf_owner", which nobody may ever see.

    Args:
        url: the stand-in Hub's.
        folder: for the client's cache and log.
    """

    def __init__(self, url: str, folder: Path, **env: str):
        kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_") and key != "TUNER_HOME"}
        kept |= {
            "HF_ENDPOINT": url, "HF_HOME": str(folder / "hf_home"), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_TOKEN": "hf_owner",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "127.0.0.1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
        }
        self.log = folder / "client.log"
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _LOOP], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                env=kept | env, cwd=folder,
            )

    def __call__(self, code: str, **env: str):
        """What the code leaves in `result`.

        Raises:
            UserError: the code did.
            AssertionError: it raised anything else.
        """
        self._process.stdin.write(json.dumps({"code": textwrap.dedent(code), "env": env}) + "\n")
        self._process.stdin.flush()
        reply = json.loads(self._process.stdout.readline() or '{"fault": "the client ended"}')
        if "refused" in reply:
            raise UserError(*reply["refused"])
        assert "fault" not in reply, reply["fault"]
        return reply["result"]

    def close(self) -> None:
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(10)


def assert_no_token_in(folder: Path) -> None:
    """In no file below it."""
    for path in folder.rglob("*"):
        assert not path.is_file() or not re.search(rb"hf_(test|owner)", path.read_bytes()), path
