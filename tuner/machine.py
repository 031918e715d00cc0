"""What this machine has and reaches: memory that is free, speed measured once and kept, and what finished runs added.

`python -m tuner.machine` measures, in a process of its own, since the page never imports torch.
"""

import fcntl
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from tuner import cost, redaction
from tuner.hardware import CARD_SHARE, CORE_GFLOPS, Hardware
from tuner.home import private_dir, read_json, tuner_home, write_json

# How many finished runs a correction rests on: the newest ones, since libraries and neighbours change.
REMEMBERED = 24


@dataclass(frozen=True)
class Reach:
    """What a machine reaches in the parts that a run's time is made of.

    Args:
        device: "cpu" or "cuda".
        precision: what training computes in there.
        gemm_gflops: a matrix product shaped like a small model's layer, in that precision.
        gb_per_s: memory written and read by a plain elementwise operation.
        op_us: what one small operation costs by itself.
        import_s, import_gib: the training process before it has done anything.
        measured: whether these figures were seen on this machine.
        known: part of a run ("start", "train", "answers") -> taken / quoted, in the finished runs of this kind here.
    """

    device: str
    precision: str
    gemm_gflops: float
    gb_per_s: float
    op_us: float
    import_s: float
    import_gib: float
    measured: bool = False
    known: tuple[tuple[str, float], ...] = ()

    def ratio(self, part: str) -> float:
        """By how much finished runs took longer than quoted, in that part."""
        return dict(self.known).get(part, 1.0)


# What `cost.TRAIN` makes of a run, in times of its useful arithmetic at the machine's best: by so much is a card's share of its
# peak taken out again there.
_ABOVE_PRODUCTS = 1.7


def expected(its: Hardware) -> Reach:
    """What hardware that was not measured is expected to reach."""
    if its.cards:
        bf16 = its.precision == "bfloat16"
        return Reach("cuda", its.precision, its.tflops * 1e3 * CARD_SHARE[its.precision] * _ABOVE_PRODUCTS, 1200.0 if bf16 else 250.0, 8.0, 12.0, 0.6)
    return Reach("cpu", its.precision, CORE_GFLOPS * its.cores, 5.0 * its.cores, 6.0, 9.0, 0.5)


# Memory -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Memory:
    """GiB on this machine. Where there is a card, `free_gib` and `total_gib` are the card's."""

    total_gib: float
    free_gib: float
    card: str = ""


def memory() -> Memory:
    """What a run may use now: the card's memory where there is one, else this machine's or its container's."""
    card = _card(time.monotonic() // 10)
    if card:
        return Memory(card[1], card[2], card[0])
    return main_memory()


def name() -> str:
    """What this machine computes with, in words: its card, else its processor and cores."""
    return memory().card or fingerprint()


def versions() -> str:
    """What a run is computed with here: Python and the libraries that shape its numbers, with their versions."""
    found = [f"Python {platform.python_version()}"]
    for library in ("torch", "transformers", "peft", "bitsandbytes"):
        try:
            found.append(f"{library} {version(library)}")
        except PackageNotFoundError:
            pass
    return ", ".join(found)


def main_memory() -> Memory:
    """Memory outside any card; the container's limit counts where it is lower than what the machine has."""
    seen = psutil.virtual_memory()
    total, free = seen.total, seen.available
    for limit, used in _limits():
        total, free = min(total, limit), min(free, limit - used)
    return Memory(total / 2**30, max(0, free) / 2**30)


def _limits(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[tuple[int, int]]:
    """(limit, in use) in bytes of each control group that this process is in; psutil sees the whole machine only.

    What the system would give back at once, file pages not used lately, is not in use.
    """
    found = []
    for folder, names in _groups(root, own):
        try:
            limit = (folder / names[0]).read_text().strip()
            used = int((folder / names[1]).read_text())
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue
        # v1 says "no limit" with the largest number of whole pages
        if limit != "max" and int(limit) < 2**60:
            found.append((int(limit), used - int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))))
    return found


def _groups(root: Path, own: Path) -> Iterator[tuple[Path, tuple[str, str]]]:
    """Each folder that limits this process, from its own up to the root, with its files' names; version 2, then 1."""
    two, one = ("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return
    for _, controllers, path in lines:
        if controllers == "":
            mounts, names = (root, root / "unified"), two
        elif "memory" in controllers.split(","):
            mounts, names = (root / "memory",), one
        else:
            continue
        for mount in mounts:
            place = Path(path.lstrip("/"))
            # In a container the path may be the host's, which is not there; its own group is then the mount itself.
            for part in dict.fromkeys([place, *place.parents, Path()]):
                if (mount / part / names[0]).is_file():
                    yield mount / part, names


def oom_kills(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup"), all_of_it: Path = Path("/proc/vmstat")) -> int | None:
    """How many processes the kernel has ended for want of memory around this one; None where it does not tell.

    The innermost control group's own count where there is one, else the whole machine's.
    """
    for folder, _ in _groups(root, own):
        for name in ("memory.events", "memory.oom_control"):
            if (count := _count(folder / name)) is not None:
                return count
    return _count(all_of_it)


def _count(path: Path) -> int | None:
    try:
        for line in path.read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
    except (OSError, ValueError):
        pass
    return None


@lru_cache(maxsize=1)
def _card(_period: float) -> tuple[str, float, float] | None:
    """(name, GiB, GiB free) of the first card, by the driver's own tool; None where there is none. Asked every 10 s."""
    if not Path("/dev/nvidiactl").exists() or os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return None
    asked = ["nvidia-smi", "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits"]
    try:
        line = subprocess.run(asked, capture_output=True, text=True, timeout=5, check=True).stdout.splitlines()[0]
        name, total, free = (part.strip() for part in line.rsplit(",", 2))
        return name, float(total) / 1024, float(free) / 1024
    except (OSError, subprocess.SubprocessError, IndexError, ValueError):
        return None


# What is kept -----------------------------------------------------------------------------------------------------


def _path() -> Path:
    return tuner_home() / "machine.json"


@lru_cache(maxsize=1)
def fingerprint() -> str:
    """What tells this machine from the one that a volume was mounted on before."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{model}, {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores"


@contextmanager
def _kept() -> Iterator[dict]:
    """This machine's entry, written back at the end; one writer at a time."""
    private_dir(tuner_home())
    with open(tuner_home() / "machine.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        known = read_json(_path(), {})
        its = known.setdefault(fingerprint(), {})
        yield its
        write_json(_path(), known)


def known() -> dict:
    """What is kept of this machine; {} before it was measured."""
    try:
        return read_json(_path(), {}).get(fingerprint(), {})
    except ValueError:
        return {}


def is_measured() -> bool:
    return "measured" in known()


def reach(kind: str = "fast") -> Reach:
    """What this machine reaches, as measured; what such a machine is expected to, before that.

    Args:
        kind: which arithmetic the run takes, "fast" or "plain": each has its own corrections by finished runs.
    """
    its = known()
    seen = its.get("measured")
    if not seen:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        precision, device = ("bfloat16", "cuda") if memory().card else ("float32", "cpu")
        gflops = 60_000.0 if device == "cuda" else CORE_GFLOPS * cores
        return Reach(device, precision, gflops, 5.0 * cores, 6.0, 9.0, 0.5)
    precision = seen["precision"]
    ratios = _ratios(its, f"{seen['device']}/{precision}/{kind}")
    if kind == "plain" and "answers" not in ratios:  # given by the same arithmetic as where a model learns the fast way, if it is known there
        taught = _ratios(its, f"{seen['device']}/{precision}/fast")
        ratios |= {"answers": taught["answers"]} if "answers" in taught else {}
    return Reach(
        seen["device"], precision, seen["gemm_gflops"][precision], seen["gb_per_s"], seen["op_us"], seen["import_s"], seen["import_gib"],
        True, tuple(sorted(ratios.items())),
    )


def _ratios(its: dict, kind: str) -> dict[str, float]:
    """Part -> by how much finished runs of a kind took longer than quoted."""
    runs = _taught_by(its, kind)
    parts = {part for run in runs for part in run["ratios"]}
    return {part: statistics.median(run["ratios"][part] for run in runs if part in run["ratios"]) for part in parts}


def runs_known(kind: str = "fast") -> int:
    """How many finished runs the corrections of `reach` rest on."""
    its, now = known(), reach(kind)
    return len(_taught_by(its, f"{now.device}/{now.precision}/{kind}"))


def _taught_by(its: dict, kind: str) -> list[dict]:
    """The newest finished runs of a kind; those that were quoted by other constants teach nothing about these."""
    return [run for run in its.get("runs", ()) if run["kind"] == kind and run.get("fitted") == cost.FITTED][-REMEMBERED:]


def remember(kind: str, ratios: dict[str, float]) -> None:
    """Keep by how much a finished run took longer than quoted, part by part, so that the next quote is nearer.

    Args:
        kind: "device/precision/arithmetic", as `reach` looks for it.
    """
    with _kept() as its:
        its["runs"] = [*its.get("runs", ()), {"kind": kind, "ratios": ratios, "fitted": cost.FITTED, "t": round(time.time())}][-3 * REMEMBERED :]


# Measuring --------------------------------------------------------------------------------------------------------


def begin_measuring() -> bool:
    """Start measuring in a child if that was never done here and nothing trains now; whether one is going."""
    from tuner import child, lease

    if is_measured():
        return False
    if not _children:
        if lease.is_busy():
            return False
        _children.append(child.spawn("tuner.machine", folder=child.place("machine"), log=private_dir(tuner_home()) / "measuring.log"))
    return _children[0].poll() is None  # one that failed is not tried again by this process


def wait_until_measured(seconds: float = 120.0) -> None:
    """Measure, for whoever can wait; without an answer in time the expected figures stand."""
    until = time.monotonic() + seconds
    while begin_measuring() and time.monotonic() < until:
        time.sleep(0.1)


_children: list = []


def measure() -> dict:
    """Measure this machine with what training uses: import it, then a second of arithmetic."""
    began = time.perf_counter()
    import torch

    from tuner import models, train  # noqa: F401  (what a run imports)

    import_s = time.perf_counter() - began
    import_gib = psutil.Process().memory_info().rss / 2**30
    device = models.device_name()
    dtypes = ("bfloat16", "float32") if device == "cpu" else ("bfloat16", "float16")
    gemm = {dtype: max(models.matmul_gflops(dtype, 0.1) for _ in range(3)) if device == "cpu" else _card_gflops(dtype) for dtype in dtypes}
    big = torch.ones(64 * 2**20 // 4, device=device)
    small = torch.ones(64, device=device)
    seen = {
        "device": device, "precision": models.choose_precision(device), "gemm_gflops": gemm,
        "gb_per_s": 2 * 64 * 2**20 / 1e9 / _best_s(lambda: big.mul_(1.0), device), "op_us": _best_s(lambda: small.mul_(1.0), device, 200) * 1e6,
        "import_s": import_s, "import_gib": import_gib, "torch": torch.__version__, "t": round(time.time()),
        "card": torch.cuda.get_device_name(0) if device == "cuda" else "",
    }
    return seen


def _best_s(act, device: str, times: int = 3, rounds: int = 5) -> float:
    """Seconds of one call, at best: what disturbs a measurement only ever makes it longer."""
    import torch

    found = []
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(times):
            act()
        if device == "cuda":
            torch.cuda.synchronize()
        found.append((time.perf_counter() - began) / times)
    return min(found)


def _card_gflops(dtype: str) -> float:
    import torch

    a = torch.randn(4096, 4096, dtype=getattr(torch, dtype), device="cuda")
    return 2 * 4096**3 / _best_s(lambda: a @ a, "cuda", 10) / 1e9


def main() -> int:
    """Measure and keep it, unless another process does so now."""
    from tuner import lease

    with open(tuner_home() / "measuring.lock", "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return 0
        if not is_measured():
            seen = measure()
            if lease.is_busy():  # a run began meanwhile and took its share: what was seen is not what the machine reaches
                return 1
            with _kept() as its:
                its["measured"] = seen
    return 0


if __name__ == "__main__":
    redaction.install()
    sys.exit(main())
