"""Training is killed at random moments, again and again; each run must end as one that was never killed.

    make torture                                 # 100 times SIGKILL
    python -m tests.torture --kills 12 --seed 1

Everything is imported once; each life of a run is a fork of this process, so that a hundred kills take minutes. A SIGKILL may cost
one interval between two checkpoints. Every fifth end is a SIGTERM beside them, which has to keep the last whole step and end within
ten seconds.

Afterwards, where this process may mount a disk of its own, two lives end otherwise: on a disk that really fills up, and on
one that turns read-only. Each must leave its last checkpoint whole and resume bit for bit once there is room again.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

from tests.small_run import adapter_hash, events, losses, small_run
from tuner.errors import shorten

TERM_SHARE = 0.2
TERM_S = 10.0


def life(run, log: Path) -> int:
    """Start or resume the run in a fork; its pid."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        with open(log, "a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        from tuner import run as runs
        from tuner import train

        runs.claim(run)
        code = train.main(run)
    except SystemExit as end:
        code = end.code
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def ended(pid: int) -> int | None:
    """The exit code as a shell tells it, negative for a signal; None while it lives."""
    found, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def wait(pid: int, seconds: float) -> int | None:
    until = time.monotonic() + seconds
    while (code := ended(pid)) is None and time.monotonic() < until:
        time.sleep(0.002)
    return code


def result(run) -> tuple:
    """What must not depend on how often it was killed."""
    measured = sorted({event["step"]: event["loss"] for event in events(run, "eval")}.items())
    return adapter_hash(run.adapter_dir), losses(run), measured, run.read("report")["best_step"], run.read("done")


def doing(run) -> str:
    """What a life was at when it ended, for the tally."""
    if list((run.folder / "checkpoints").glob(".tmp-*")):
        return "writing a checkpoint"
    told = [event for event in run.events()[0] if event["kind"] in ("status", "step", "eval", "sample")]
    last = told[-1] if told else {"kind": "status", "state": "starting"}
    return last["state"] if last["kind"] == "status" else {"step": "a step", "eval": "evaluating", "sample": "after an evaluation"}[last["kind"]]


def last_step(run) -> int:
    return max((event["step"] for event in events(run, "step")), default=0)


def torture(kills: int, seed: int, base: Path, folder: Path) -> list[str]:
    """So many times SIGKILL, and SIGTERM beside them; what went wrong, "" each where nothing did."""
    chance = random.Random(seed)
    settings = dict(epochs=4.0, evaluations=5, patience=0)
    for _ in range(2):  # the first of all takes longer than any after it
        whole = small_run(base, **settings)
        began = time.monotonic()
        if code := wait(life(whole, folder / "log.txt"), 300):
            return [f"The run that nobody killed ended with {code}:\n{(folder / 'log.txt').read_text()[-2000:]}"]
    took, wanted = time.monotonic() - began, result(whole)
    plan = whole.read("plan")
    interval = max(b - a for a, b in zip([0, *plan["evaluate_at"]], plan["evaluate_at"]))
    print(f"never killed: {took:.1f} s, {plan['steps']} steps, a checkpoint every {interval} at most", flush=True)
    wrong, tally, done, terms, runs_ended, slowest_term = [], Counter(), 0, 0, 0, 0.0
    while done < kills:
        run, code = small_run(base, **settings), None
        while code != 0:
            before, first_event = last_step(run), len(run.events()[0])
            pid = life(run, folder / "log.txt")
            # A life that goes on from half way is shorter; the last ones of a run end by themselves.
            code = wait(pid, chance.uniform(0.0, 0.8 * took)) if done < kills else wait(pid, 300)
            if code is None:
                how = signal.SIGTERM if chance.random() < TERM_SHARE else signal.SIGKILL
                os.kill(pid, how)
                asked = time.monotonic()
                code = wait(pid, 60)
                done, terms = done + (how == signal.SIGKILL), terms + (how == signal.SIGTERM)
                tally[doing(run)] += 1
                if how == signal.SIGTERM and code != 0:
                    slowest_term = max(slowest_term, time.monotonic() - asked)
                    # Before it has done anything it just ends: there is nothing to save yet.
                    clean = code == 143 or code == -signal.SIGTERM and len(run.events()[0]) == first_event
                    if not clean or time.monotonic() - asked > TERM_S:
                        wrong.append(f"A SIGTERM ended it with {code} after {time.monotonic() - asked:.1f} s")
                if run.state() == "done":  # between its last word and the end of its process: nothing is left to resume
                    code = 0
            elif code != 0:
                wrong.append(f"A resumed run failed with {code}: {run.error() or (folder / 'log.txt').read_text()[-1500:]}")
                break
            again = [event["step"] for event in run.events()[0][first_event:] if event["kind"] == "step"]
            if again and before - (again[0] - 1) > interval:
                wrong.append(f"After step {before} it went on from {again[0] - 1}, more than {interval} steps back")
        if code == 0:
            runs_ended += 1
            if result(run) != wanted:
                wrong.append("A run that was killed ended otherwise than the one that was not")
    print(f"{done} times SIGKILL and {terms} times SIGTERM over {runs_ended} runs; at: {', '.join(f'{name} {count}' for name, count in tally.most_common())}")
    print(f"slowest end after a SIGTERM: {slowest_term:.1f} s")
    return wrong


# A disk of one's own ---------------------------------------------------------------------------------------------------


@contextmanager
def disk(at: Path, mib: int):
    """A small disk in memory, mounted there; yields False where this process may not mount."""
    at.mkdir(parents=True)
    if not shutil.which("mount") or subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", at], capture_output=True).returncode:
        yield False
        return
    try:
        yield True
    finally:
        subprocess.run(["umount", "-l", at], check=True)


def fill(at: Path) -> Path:
    """A file that takes all there is."""
    filler, block = at / "filler", bytes(2**20)
    with open(filler, "wb", buffering=0) as file:
        for size in (len(block), 4096, 1):
            try:
                while True:
                    file.write(block[:size])
            except OSError:
                continue
    return filler


def fill_while_it_rests(pid: int, at: Path) -> Path:
    """`fill`, with the run held still: it would be over before a gibibyte is written."""
    os.kill(pid, signal.SIGSTOP)
    try:
        return fill(at)
    finally:
        os.kill(pid, signal.SIGCONT)


def turn_read_only(pid: int, at: Path) -> bool:
    """Whether the disk could be made read-only: it cannot while a file is open for writing, so moments are tried."""
    for _ in range(500):
        os.kill(pid, signal.SIGSTOP)
        try:
            if not subprocess.run(["mount", "-o", "remount,ro", at], capture_output=True).returncode:
                return True
        finally:
            os.kill(pid, signal.SIGCONT)
        time.sleep(0.001)
    return False


def lose_the_disk(base: Path, at: Path, how: str) -> list[str]:
    """One life on that disk, which fills up or turns read-only after the first checkpoint; what went wrong."""
    from tuner import checkpoints

    settings, log, wrong = dict(epochs=40.0, evaluations=10, patience=0), at.parent / "disk.txt", []
    whole = small_run(base, **settings)
    if wait(life(whole, log), 300):
        return [f"The run that kept its disk ended: {log.read_text()[-1500:]}"]
    wanted = result(whole)
    run = small_run(base, **settings)
    pid = life(run, log)
    until = time.monotonic() + 60
    while not list((run.folder / "checkpoints").glob("checkpoint-*")) and time.monotonic() < until:
        time.sleep(0.002)
    filler = fill_while_it_rests(pid, at) if how == "fills up" else None
    if filler is None and not turn_read_only(pid, at):
        wrong.append("The disk could not be made read-only in the middle of a run")
    code, step = wait(pid, 60), last_step(run)
    if how == "fills up":
        filler.unlink()
    else:
        if "read-only" not in (shown := run.cannot_write()):  # what the page says, since nothing can be written there
            wrong.append(f"The page does not say that the disk {how}: {shown}")
        subprocess.run(["mount", "-o", "remount,rw", at], check=True)
    words = "\n".join([run.error(), *(line for line in log.read_text().splitlines()[-40:] if "arn" not in line)])
    if code != 1 or (run.folder / "done").exists():
        wrong.append(f"On a disk that {how} it ended with {code}, state {run.state()}: {words[-800:]}")
    if ("full" if how == "fills up" else "read-only") not in words:
        wrong.append(f"It does not say that the disk {how}: {words[-800:]}")
    if checkpoints.newest(run.folder / "checkpoints", lambda step: wrong.append(f"The checkpoint of step {step} is damaged")) is None:
        wrong.append("No whole checkpoint is left")
    if (again := wait(life(run, log), 300)) != 0:
        wrong.append(f"After the disk that {how} it ended with {again}: {run.error()}")
    elif (found := result(run)) != wanted:
        wrong.append(f"After the disk that {how} it ended otherwise than the one that kept its disk: {[a == b for a, b in zip(found, wanted)]}")
    print(f"a disk that {how}: ended at step {step} of {whole.read('plan')['steps']} with {code}, saying: {shorten(run_words(words), 160)}", flush=True)
    return wrong


def run_words(text: str) -> str:
    """The line that speaks of the disk."""
    return next((line for line in text.splitlines() if "disk" in line or "read-only" in line), text.strip())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--disks", action="store_true", help="only the disks")
    asked = parser.parse_args()
    import gc

    import pytest
    import torch

    torch.set_num_threads(1)  # a fork takes no threads along
    from tests.conftest import make_quick
    from tests.small import small_base
    from tuner import train  # noqa: F401

    with tempfile.TemporaryDirectory(prefix="tuner-torture-") as folder:
        os.environ.update(TUNER_HOME=str(Path(folder) / "home"), HF_HUB_OFFLINE="1")
        make_quick(pytest.MonkeyPatch())
        base = small_base(Path(folder) / "base")
        gc.collect()
        gc.freeze()
        wrong = [] if asked.disks else torture(asked.kills, asked.seed, base, Path(folder))
        for how in ("fills up", "turns read-only"):
            home = Path(folder) / how.split()[0]
            at = home / "runs"  # alone: the lease beside it stays open for writing, and a disk with such a file cannot turn
            with disk(at, 1500) as mounted:
                if not mounted:
                    print(f"a disk that {how}: not tried, this process may not mount one")
                    continue
                os.environ["TUNER_HOME"] = str(home)
                wrong += lose_the_disk(base, at, how)
    if asked.disks:
        print("\n".join(wrong) or "each left a whole checkpoint and resumed bit for bit")
    else:
        print("\n".join(wrong) or f"{asked.kills} of {asked.kills} resumed, each run ended bit for bit as the one that was not killed")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
