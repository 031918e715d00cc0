"""Processes of our own: what they may see of this one, what they may use of the machine."""

import os
import resource
import runpy
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

import psutil

from tuner import redaction
from tuner.home import private_dir, tuner_home

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
# The largest file that a child may write: a 4-bit copy of the largest base, a checkpoint with its optimiser.
MOST_FILE_BYTES = 64 * 2**30
# Processes that a child may start, itself included; the check's helpers are one for each core. Counted by session:
# RLIMIT_NPROC counts an account's, and on a Space's host that account is every other Space's too.
MOST_PROCESSES = 64 + 2 * (os.cpu_count() or 1)
LOOK_S = 2.0  # how often they are counted
PROJECT_ROOT = Path(__file__).resolve().parent.parent


def environment() -> dict[str, str]:
    """The environment of every child: an allow-list, the Hub switched off, no token."""
    kept = {name: os.environ[name] for name in _SEEN if name in os.environ}
    return {
        **kept, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
        "GOMP_SPINCOUNT": SPIN, "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(PROJECT_ROOT), "PYTHONUNBUFFERED": "1",
        "TORCHDYNAMO_DISABLE": "1",  # bitsandbytes asks for torch.compile when it is imported, which takes half a second
        "TRITON_CACHE_DIR": str(place("triton")),
        "TUNER_CHILD": "1", "TUNER_HOME": str(tuner_home()), "HF_HOME": str(tuner_home() / "children"),
        "TMPDIR": str(place("tmp")),  # the usual one also holds what Gradio serves
    }


def place(name: str) -> Path:
    """A folder of this kind of child's own, in none that Gradio serves from."""
    return private_dir(private_dir(tuner_home() / "children") / name)


def spawn(module: str, *arguments: str, folder: Path, log: Path, most_bytes: int = MOST_FILE_BYTES) -> subprocess.Popen:
    """Start `python -m module arguments` in a session of its own, behind the page; what it prints goes to the log.

    Args:
        most_bytes: no file that it writes may be larger.
    """
    with open(log, "ab") as file:
        process = _start(module, arguments, folder, most_bytes, None, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
    # Its threads begin later and inherit it. Counted from this process's own, which it may not undercut.
    os.setpriority(os.PRIO_PROCESS, process.pid, os.getpriority(os.PRIO_PROCESS, 0) + NICE)
    return process


def converse(
    module: str, *arguments: str, log: Path, most_bytes: int = MOST_FILE_BYTES, more: dict[str, str] | None = None
) -> subprocess.Popen:
    """Start `python -m module arguments` in a session of its own, to be spoken to over pipes, a line of text at a time.

    Args:
        more: what its environment has besides; nothing secret.
    """
    with open(log, "ab") as file:
        return _start(
            module, arguments, place(module.rpartition(".")[2]), most_bytes, more, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=file, text=True, encoding="utf-8",
        )


def finish(module: str, *arguments: str, seconds: float) -> subprocess.CompletedProcess:
    """Run `python -m module arguments` to its end, with what it printed.

    Raises:
        subprocess.TimeoutExpired: it was killed after so long.
    """
    process = _start(
        module, arguments, place(module.rpartition(".")[2]), MOST_FILE_BYTES, None, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )
    try:
        printed, complained = process.communicate(timeout=seconds)
    except BaseException:
        end(process)
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, printed, complained)


def _start(module: str, arguments, folder: Path, most_bytes: int, more: dict[str, str] | None, **pipes) -> subprocess.Popen:
    lifeline = _lifeline()
    return subprocess.Popen(
        [sys.executable, "-m", "tuner.child", str(lifeline), str(most_bytes), module, *arguments],
        cwd=folder, env={**environment(), **(more or {})}, start_new_session=True, pass_fds=(lifeline,), **pipes,
    )


def ask(process: subprocess.Popen, question: str, seconds: float) -> tuple[str, int | None]:
    """Put a line to a child that `converse` started, and read the line that it answers.

    Args:
        seconds: after which it is killed.

    Returns:
        (the answer, None); or ("", the exit code) of one that gave no whole line, which is ended then.
    """
    timer = threading.Timer(seconds, end_group, (process.pid,))
    timer.start()
    try:
        process.stdin.write(question + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
    except OSError:
        line = ""
    finally:
        timer.cancel()
    return (line, None) if line.endswith("\n") else ("", end(process))


@lru_cache(maxsize=1)
def _lifeline() -> int:
    """The reading end of a pipe whose other end only this process holds: its end is this process's, however that comes.

    PR_SET_PDEATHSIG would not do: it goes by the thread that started the child, and Gradio's come and go.
    """
    reading, writing = os.pipe()
    os.set_inheritable(writing, False)
    return reading


def end(process: subprocess.Popen) -> int:
    """Kill a child and whatever it has started; gives its exit code."""
    end_group(process.pid)
    process.kill()
    return process.wait()


def reap(process: subprocess.Popen) -> int:
    """Wait for a child; what it left running in its group ends with it. Gives its exit code."""
    with suppress(ChildProcessError):  # waited for elsewhere
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # until it is waited for, its number is nobody else's
        end_group(process.pid)
    return process.wait()


def end_group(pid: int) -> None:
    """Kill the session that a child of ours leads."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def put_down(seconds: float = 10.0) -> None:
    """Ask all children of this process to end, and wait for them, at most so long: a training keeps its last step first."""
    its = psutil.Process().children()
    for process in its:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    psutil.wait_procs(its, timeout=seconds)
    for process in its:
        end_group(process.pid)


# In the child -----------------------------------------------------------------------------------------------------


def main(lifeline: str, most_bytes: str, module: str, *arguments: str) -> None:
    """What every child does first: put limits on itself, and watch that its parent lives; then be the module."""
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a dump would hold rows and weights
    _limit(resource.RLIMIT_FSIZE, int(most_bytes))
    threading.Thread(target=_watch, args=(int(lifeline),), name="lifeline", daemon=True).start()
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _limit(which: int, most: int) -> None:
    _, hard = resource.getrlimit(which)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(which, (most, most))


def processes_of(session: int) -> int:
    """How many processes a child leads."""
    count = 0
    for name in os.listdir("/proc") if os.path.isdir("/proc") else ():
        if name.isdigit():
            with suppress(ProcessLookupError):  # it ended meanwhile
                count += os.getsid(int(name)) == session
    return count


def _watch(lifeline: int) -> None:
    """End this process and all that it started once its parent is gone, or there are too many; a run is taken up by the next app."""
    leads = os.getsid(0) == os.getpid()
    while not select.select([lifeline], [], [], LOOK_S)[0]:
        if leads and processes_of(os.getpid()) > MOST_PROCESSES:
            print(f"More than {MOST_PROCESSES} processes were started, so all of them were ended.", file=sys.stderr, flush=True)
            break
    if leads:
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """In a child: end this process if what is done now takes more computing time than that, by the system's hand.

    For what comes from strangers and cannot be interrupted, such as a template that multiplies without end: Python's own
    signal handlers would wait for it. The page's process never does such things itself, and at a terminal they are the
    person's own.
    """
    if not is_child():
        yield
        return
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def is_child() -> bool:
    """Whether this process is one that the page started."""
    return os.environ.get("TUNER_CHILD") == "1"


# How `within` ends a child, as its exit code.
OUT_OF_TIME = -signal.SIGPROF
# The exit code of one that is only done in the time to spare, and waits again (EX_TEMPFAIL).
GAVE_WAY = 75


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


if __name__ == "__main__":
    redaction.install()
    main(*sys.argv[1:])
