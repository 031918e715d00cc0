"""The real app in a process of its own, with short waits for the Hub; over a pipe it tells what it holds in memory.

    with Served(home, HF_ENDPOINT=hub.url) as app:
        Visitor(app.url).do("open_page")
        app.holds()["threads"]
"""

import gc
import json
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from collections import Counter, deque
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import httpx
import psutil

from tuner import starter

ROOT = Path(__file__).resolve().parent.parent
# So many entries of a container are looked into; beyond, only its length counts.
_MOST = 400
_DEEPEST = 10
# What each visit has its own copy of, whose inside says no more than its length.
_OPAQUE = re.compile(r"state\.session_data\[\*\]\.\w+$")
# What lies in a visit. How many of the visits that are held came so far as to have it says nothing, and how many are held is
# counted by itself: the largest counts, so that one visit in which something grows shows.
_OF_A_VISIT = re.compile(r"state\.session_data\[\*\]\.")
# A name that differs from one visit to the next: of a session, an event, a run, a file.
_ONCE = re.compile(r"[0-9a-f]{8,}|\d{4,}")


class Served:
    """The app; enter it to serve.

    Args:
        home: for all that it keeps, its log app.log, and its current folder.
        shared: as with --share: each browser is a visitor of its own. The tunnel is not opened.
        sessions: how many visits Gradio may hold; None for the app's own number.
        waits_s: the longest wait for an answer of the Hub; None for the app's own.
        environment: more of it; what begins with HF_ is not taken over from here.
    """

    def __init__(self, home: Path, shared: bool = False, sessions: int | None = None, waits_s: float | None = 1.0, **environment: str):
        self.home, self.log = Path(home), Path(home) / "app.log"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.asked = {"shared": shared, "sessions": sessions, "waits_s": waits_s, "killed": str(self.home / "killed")}
        self.environment = {
            **{name: os.environ[name] for name in ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "GOMP_SPINCOUNT") if name in os.environ},
            "TUNER_HOME": str(self.home / "tuner"), "HF_HOME": str(self.home / "hf"), "GRADIO_TEMP_DIR": str(self.home / "gradio"),
            "TMPDIR": str(self.home / "tmp"), "GRADIO_SERVER_PORT": str(port), "PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_XET": "1",
            # What app.py sets; here before anything is imported.
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1", **environment,
        }

    def __enter__(self) -> "Served":
        for name in ("tmp", "cwd"):
            (self.home / name).mkdir(parents=True, exist_ok=True)
        weights = self.home / "tuner" / "models" / starter.starter_dir().name / "model.safetensors"
        if not weights.exists():  # else the app begins to convert it
            weights.parent.mkdir(parents=True, exist_ok=True)
            weights.touch()
        reads, writes = os.pipe()
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.served", str(writes), json.dumps(self.asked)], stdin=subprocess.PIPE, stdout=log, stderr=log,
                text=True, env=self.environment, cwd=self.home / "cwd", pass_fds=[writes], start_new_session=True,
            )
        os.close(writes)
        self._told = os.fdopen(reads)
        deadline = time.monotonic() + 90
        while True:
            try:
                if httpx.get(self.url, timeout=10).status_code == 200:
                    return self
            except httpx.TransportError:
                pass
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                raise AssertionError(f"The app did not come up:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.1)

    def __exit__(self, *_) -> None:
        children = []
        if self.process.poll() is None:
            children = psutil.Process(self.process.pid).children(recursive=True)
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
        for child in psutil.wait_procs(children, timeout=5)[1]:  # a test leaves nothing behind, whatever the app does
            with suppress(psutil.NoSuchProcess):
                child.kill()
        self.process.stdin.close()
        self._told.close()

    def holds(self) -> dict[str, int]:
        """The length of each container in the app's process by the way that leads to it, and numbers of other things."""
        self.process.stdin.write("holds\n")
        self.process.stdin.flush()
        return json.loads(self._told.readline())

    def kernel_kills(self, count: int) -> None:
        """Let the app see so many processes that the kernel ended for want of memory."""
        (self.home / "killed").write_text(str(count))


# In the app's process ---------------------------------------------------------------------------------------------


def holdings(roots: dict[str, object]) -> dict[str, int]:
    """The lengths of all containers that can be reached from these, by the way that leads to each.

    Those whose way differs only in names of sessions, events and files are added up; of what lies in a visit the largest counts.
    """
    found: dict[str, int] = {}
    seen, left = set(), deque(roots.items())
    while left:  # the nearest first, so that each has its shortest way
        way, its = left.popleft()
        if id(its) in seen or way.count(".") + way.count("[") > _DEEPEST:
            continue
        seen.add(id(its))
        if hasattr(its, "cache_info") and callable(its.cache_info):
            found[f"{way}()"] = its.cache_info().currsize
            continue
        inside = []
        if isinstance(its, Mapping):
            _add(found, way, len(its))
            inside = [] if _OPAQUE.match(way) else [(f"{way}[{_ONCE.sub('*', str(name)[:60])}]", value) for name, value in list(its.items())[:_MOST]]
        elif isinstance(its, (list, set, frozenset, tuple, deque)):
            if not isinstance(its, tuple):
                _add(found, way, len(its))
            inside = [(f"{way}[]", value) for value in list(its)[:_MOST]]
        elif isinstance(its, types.FunctionType):
            inside = [(f"{way}<{name}>", cell.cell_contents) for name, cell in zip(its.__code__.co_freevars, its.__closure__ or ()) if _is_filled(cell)]
        elif isinstance(its, types.ModuleType) or type(its).__module__.split(".")[0] in ("tuner", "gradio", "uvicorn", "starlette", "fastapi", "asyncio"):
            inside = [(f"{way}.{name}", value) for name, value in list(getattr(its, "__dict__", {}).items())]
        left.extend((where, value) for where, value in inside if not isinstance(value, (str, bytes, int, float, bool, type(None), types.ModuleType)))
    return found


def _add(found: dict[str, int], way: str, count: int) -> None:
    before = found.get(way, 0)
    found[way] = max(before, count) if _OF_A_VISIT.match(way) else before + count


def _is_filled(cell) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


def _count(app) -> dict[str, int]:
    gc.collect()
    its = psutil.Process()
    names = Counter(_ONCE.sub("*", re.sub(r"-\d+|_\d+", "", thread.name)) for thread in threading.enumerate())
    more_threads = {f"thread {name}": count for name, count in names.items()}
    own = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "tuner"}
    more = {"rss_mib": its.memory_info().rss >> 20, "threads": its.num_threads(), "files": its.num_fds(), "objects": len(gc.get_objects())}
    gradio = next(route.app for route in app.routes if hasattr(getattr(route, "app", None), "get_blocks"))
    blocks = gradio.get_blocks()
    return {**holdings({"queue": blocks._queue, "state": gradio.state_holder, "gradio": gradio, "blocks": blocks, **own}), **more_threads, **more}


def _tell(out, app_of) -> None:
    """Answer each line that comes in."""
    for _ in sys.stdin:
        out.write(json.dumps(_count(app_of())) + "\n")
        out.flush()


def main(out_number: str, asked: str) -> None:
    asked = json.loads(asked)
    sys.path[0] = str(ROOT)
    app_py = runpy.run_path(str(ROOT / "app.py"), run_name="app")  # which reads nothing and serves nothing yet

    import huggingface_hub.file_download
    import huggingface_hub.utils._http
    from gradio.utils import LRUCache

    from tuner import hub, machine, transfer
    from tuner.ui import app as page

    if asked["waits_s"]:
        no_sleep = types.SimpleNamespace(sleep=lambda seconds: None)
        huggingface_hub.utils._http.time = huggingface_hub.file_download.time = no_sleep
        huggingface_hub.file_download._ETAG_RETRY_TIMEOUT = asked["waits_s"]
        transfer.CONNECT_S = transfer.ANSWER_S = hub.TIMEOUT_S = asked["waits_s"]
        transfer.PAUSES_S = (0, 0, 0)
    if asked["sessions"]:
        from gradio import queueing

        page.MOST_SESSIONS = asked["sessions"]
        queueing.LRUCache = lambda most: LRUCache(asked["sessions"])
    killed = Path(asked["killed"])
    machine.oom_kills = lambda: int(killed.read_text()) if killed.exists() else 0
    page._open_tunnel = lambda host, port: None
    made, make = [], page.make_app
    page.make_app = lambda *args, **kwargs: made.append(make(*args, **kwargs)) or made[-1]
    threading.Thread(target=partial(_tell, os.fdopen(int(out_number), "w"), lambda: made[-1]), daemon=True).start()
    app_py["serve"](share=asked["shared"])


if __name__ == "__main__":
    main(*sys.argv[1:])
