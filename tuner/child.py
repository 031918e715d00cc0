"""Processes of our own: what they may see of this one, what they may use of the machine."""

import os
import resource
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil

from tuner.home import tuner_home

# What a child may see of this process's environment: nothing that could hold a secret.
_SEEN = (
    "PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TUNER_HOME", "XDG_CACHE_HOME", "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "ONEDNN_MAX_CPU_ISA", "SYSTEM", "TUNER_SHARED", "TUNER_NATIVE", "CC",
)
# How long a thread spins for its fellows before it sleeps. libgomp's own 300,000 lets two busy processes on two cores
# slow each other tenfold; 3,000 costs one alone nothing that could be measured (tests/bench/DIARY.md).
SPIN = "3000"
# How far a child that computes for minutes steps back from what somebody waits for: the page, and the chat. Alone on the
# machine it is as fast as before; beside it a poll is answered sooner (tests/bench/DIARY.md).
NICE = 5
PROJECT_ROOT = Path(__file__).resolve().parent.parent


def environment() -> dict[str, str]:
    """The environment of every child: an allow-list, the Hub switched off, no token."""
    kept = {name: os.environ[name] for name in _SEEN if name in os.environ}
    return {
        **kept, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
        "GOMP_SPINCOUNT": SPIN, "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(PROJECT_ROOT), "PYTHONUNBUFFERED": "1",
        "TORCHDYNAMO_DISABLE": "1",  # bitsandbytes asks for torch.compile when it is imported, which takes half a second
        "TUNER_CHILD": "1", "TUNER_HOME": str(tuner_home()), "HF_HOME": str(tuner_home() / "children"),
    }


def spawn(module: str, *arguments: str, folder: Path, log: Path) -> subprocess.Popen:
    """Start `python -m module arguments` in a session of its own, behind the page; what it prints goes to the log."""
    with open(log, "ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.DEVNULL, stdout=file, stderr=file, cwd=folder, env=environment(), start_new_session=True,
        )
    # Its threads begin later and inherit it. Counted from this process's own, which it may not undercut.
    os.setpriority(os.PRIO_PROCESS, process.pid, os.getpriority(os.PRIO_PROCESS, 0) + NICE)
    return process


def put_down(seconds: float = 10.0) -> None:
    """Ask all children of this process to end, and wait for them, at most so long: a training keeps its last step first."""
    its = psutil.Process().children()
    for process in its:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    psutil.wait_procs(its, timeout=seconds)


def offer_to_the_kernel(pid: int) -> None:
    """Let the kernel end this process before the page's where memory runs out: a run goes on from its checkpoint."""
    with suppress(OSError):  # it ended already, or the system has no such file
        Path(f"/proc/{pid}/oom_score_adj").write_text("500")


def limit_memory(size_bytes: int) -> None:
    """Let this process allocate no more than that; files mapped from the disk do not count. For what reads strangers' files."""
    resource.setrlimit(resource.RLIMIT_DATA, (size_bytes, size_bytes))


def stamp(pid: int) -> dict:
    """What tells this process from a later one of the same number."""
    return {"pid": pid, "started": psutil.Process(pid).create_time()}
