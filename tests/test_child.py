"""Processes of our own: the limits they live under, what they cannot see, and that none outlives the app."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tuner import child
from tuner.child import PROJECT_ROOT

SAY = """
import json, os, resource, sys, tempfile
told = {name: resource.getrlimit(getattr(resource, "RLIMIT_" + name)) for name in ("CORE", "FSIZE")}
open("made", "w").close()
told |= {
    "mode": oct(os.stat("made").st_mode & 0o777), "cwd": os.getcwd(), "tmp": tempfile.gettempdir(), "env": dict(os.environ),
    "argv": sys.argv, "session": os.getsid(0) == os.getpid(),
}
print(json.dumps(told))
"""


@pytest.fixture
def scripts(home, tmp_path, monkeypatch):
    """Lets a child run a module that a test has written."""
    real = child.environment
    monkeypatch.setattr(child, "environment", lambda: {**real(), "PYTHONPATH": f"{tmp_path}:{PROJECT_ROOT}"})

    def write(name: str, code: str) -> str:
        (tmp_path / f"{name}.py").write_text(code)
        return name

    return write


def wait_until(true, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("how", ["spawn", "converse", "finish"])
def test_every_child_lives_by_the_same_limits(home, scripts, tmp_path, monkeypatch, how):
    for name in ("HF_TOKEN", "OAUTH_CLIENT_SECRET", "GITHUB_TOKEN", "HF_ENDPOINT", "OPENID_PROVIDER_URL"):
        monkeypatch.setenv(name, "hf_canary")
    module = scripts("say", SAY)
    if how == "spawn":
        folder = child.private_dir(tmp_path / "own")
        assert child.reap(child.spawn(module, "a", folder=folder, log=home / "log.txt", most_bytes=10**6)) == 0
        told = json.loads((home / "log.txt").read_text())
        assert told["cwd"] == str(folder)
    elif how == "converse":
        process = child.converse(module, "a", log=home / "log.txt", most_bytes=10**6)
        told = json.loads(process.stdout.readline())
        assert child.reap(process) == 0
    else:
        told = json.loads(child.finish(module, "a", seconds=20).stdout)
    assert told["CORE"] == [0, 0] and told["argv"] == [str(tmp_path / "say.py"), "a"] and told["session"]
    assert told["FSIZE"] == [10**6] * 2 if how != "finish" else told["FSIZE"][0] == child.MOST_FILE_BYTES
    assert told["mode"] == "0o600"
    for folder in (told["cwd"], told["tmp"]):
        assert os.stat(folder).st_mode & 0o777 == 0o700
    assert told["tmp"] == str(home / "children" / "tmp")  # where nothing is served from
    assert "canary" not in json.dumps(told) and told["env"]["HF_HUB_OFFLINE"] == "1"


def test_a_file_that_grows_without_end_stops_growing(home, scripts):
    module = scripts("grow", "with open('big', 'wb') as file:\n    while True:\n        file.write(b'x' * 65_536)\n")
    process = child.converse(module, log=home / "log.txt", most_bytes=10**6)
    assert child.reap(process) == 1 and "File too large" in (home / "log.txt").read_text()
    assert (home / "children" / "grow" / "big").stat().st_size == 10**6


def test_processes_without_end_are_ended(home, scripts):
    """Nothing of the machine's other processes counts; a check's helpers and a compiler fit in."""
    assert child.MOST_PROCESSES >= 64
    code = (
        "import os, time\nfrom tuner import child\nos.nice(19)\nfor number in range(child.MOST_PROCESSES + 20):\n"
        "    if not os.fork():\n        time.sleep(60)\n        os._exit(0)\nprint('made', flush=True)\ntime.sleep(60)\n"
    )
    process = child.converse(scripts("many", code), log=home / "log.txt")
    assert process.stdout.readline() == "made\n"
    assert child.processes_of(process.pid) == child.MOST_PROCESSES + 21
    assert child.reap(process) == -signal.SIGKILL and "processes were started" in (home / "log.txt").read_text()
    wait_until(lambda: child.processes_of(process.pid) == 0)


APP = """
import os, sys, time
from pathlib import Path
from tuner import child
real = child.environment
child.environment = lambda: {**real(), "PYTHONPATH": sys.argv[2]}
process = child.{how}
print(process.pid, flush=True)
time.sleep(60)
"""
FAMILY = "import os, subprocess, sys, time\nopen(sys.argv[1], 'w').write(str(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']).pid))\ntime.sleep(60)\n"


@pytest.mark.parametrize("how", [
    "spawn('family', sys.argv[1], folder=child.place('x'), log=child.place('x') / 'log.txt')", "converse('family', sys.argv[1], log=child.place('x') / 'log.txt')",
])
@pytest.mark.parametrize("ends", [signal.SIGKILL, signal.SIGTERM])
def test_no_child_outlives_the_app(home, tmp_path, how, ends):
    """Nor what a child has started; whatever ends the app, and in whichever thread the child was begun."""
    (tmp_path / "family.py").write_text(FAMILY)
    code = APP.replace("{how}", how)
    app = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "pid"), f"{tmp_path}:{PROJECT_ROOT}"], stdout=subprocess.PIPE, text=True, cwd=PROJECT_ROOT,
    )
    pid = int(app.stdout.readline())
    wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    family = [psutil.Process(pid), psutil.Process(int((tmp_path / "pid").read_text()))]
    app.send_signal(ends)
    app.wait(10)
    gone, alive = psutil.wait_procs(family, timeout=5)
    assert not [its for its in alive if its.status() != psutil.STATUS_ZOMBIE]


def test_a_child_begun_in_a_thread_that_has_ended_lives_on(home, scripts):
    import threading

    module, found = scripts("stay", "import time; time.sleep(60)"), []
    thread = threading.Thread(target=lambda: found.append(child.spawn(module, folder=child.place("x"), log=home / "log.txt")))
    thread.start()
    thread.join()
    time.sleep(0.5)
    assert found[0].poll() is None
    child.end(found[0])


def test_a_child_ends_with_its_group(home, scripts, tmp_path):
    module = scripts("family", FAMILY)
    for end in (child.end, lambda process: (process.kill(), child.reap(process))):
        (tmp_path / "pid").unlink(missing_ok=True)
        process = child.spawn(module, str(tmp_path / "pid"), folder=child.place("x"), log=home / "log.txt")
        wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
        other = psutil.Process(int((tmp_path / "pid").read_text()))
        end(process)
        assert process.poll() == -signal.SIGKILL
        wait_until(lambda: not other.is_running() or other.status() == psutil.STATUS_ZOMBIE)


def test_what_takes_too_long_ends_its_child_and_nothing_else(home, scripts):
    """Also in the middle of one operation that Python cannot interrupt."""
    module = scripts("bomb", "from tuner import child\nwith child.within(0.3):\n    (3**(10**7)) % 7\n    str(10**(10**8))\n")
    began = time.monotonic()
    done = child.finish(module, seconds=60)
    assert done.returncode == child.OUT_OF_TIME and time.monotonic() - began < 20
    module = scripts("fine", "from tuner import child\nwith child.within(0.3):\n    pass\nsum(range(10**7))\nprint('fine')\n")
    assert child.finish(module, seconds=60).stdout == "fine\n"
    with child.within(0.001):  # the page's own process is never ended so
        sum(range(10**6))


def test_no_file_of_ours_starts_a_process_by_another_way():
    """What starts children is `child`; the compiler and nvidia-smi are asked by two files that say so."""
    import ast

    allowed = {"child.py": {"Popen", "CompletedProcess", "TimeoutExpired", "DEVNULL", "PIPE"}, "native.py": None, "machine.py": None}
    for path in sorted((PROJECT_ROOT / "tuner").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "subprocess":
                types = {"Popen", "TimeoutExpired"} if path.name in ("chat.py", "check.py", "run.py", "publish.py", "eyes.py", "labelling.py", "homecoming.py") else set()
                calls = node.attr in ("run", "Popen", "call", "check_output", "check_call")
                if path.name in allowed:
                    continue
                assert node.attr in types, f"{path.name}:{node.lineno} uses subprocess.{node.attr}"
                assert not calls or not _is_called(path, node), f"{path.name}:{node.lineno} starts a process"
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("os.system", "os.popen", "os.fork", "os.posix_spawn", "pty.spawn"):
                raise AssertionError(f"{path.name}:{node.lineno} starts a process")


def _is_called(path: Path, wanted) -> bool:
    import ast

    return any(isinstance(node, ast.Call) and ast.dump(node.func) == ast.dump(wanted) for node in ast.walk(ast.parse(path.read_text("utf-8"))))

