"""Which machine a benchmark runs on, whether it is quiet, and what its best matrix product reaches.

    python -m tests.bench.machine BASE_DIR OUT.json    # the products of that model's own layers
"""

import json
import os
import platform
import sys
import threading
import time
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import psutil

ROWS = 2048
# AMD family numbers in /proc/cpuinfo; the model name of a rented machine says no more than "AMD EPYC".
_ZEN = {26: "Zen 5", 25: "Zen 3 or 4", 23: "Zen 1 or 2"}
# From here on another process takes so much that the figures are no longer this program's own.
BUSY_SHARE = 0.1


def describe(packages: Iterable[str]) -> str:
    """The machine and what is measured on it, in one line."""
    found = dict(line.split(":", 1) for line in _cpu_lines() if ":" in line)
    known = {name.strip(): value.strip() for name, value in found.items()}
    name = known.get("model name", platform.machine())
    zen = _ZEN.get(int(known.get("cpu family", 0))) if "AMD" in known.get("vendor_id", "") else None
    cores, memory = len(os.sched_getaffinity(0)), psutil.virtual_memory().total / 2**30
    versions = ", ".join(f"{its} {version(its)}" for its in packages)
    return f"{name}{f' ({zen})' if zen else ''}, {cores} cores, {memory:.0f} GiB; Python {platform.python_version()}, {versions}"


def _cpu_lines() -> list[str]:
    """What the kernel says of the first core."""
    try:
        return Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except FileNotFoundError:
        return []


class Quiet:
    """Looks between the measurements at what other processes take, and says at the end whether it was quiet."""

    def __init__(self) -> None:
        self.busiest = 0.0
        self.load = os.getloadavg()[0]  # before this program adds its own

    def look(self, seconds: float = 1.0) -> None:
        """Measure for a moment in which this program rests."""
        self.busiest = max(self.busiest, psutil.cpu_percent(interval=seconds) / 100)

    def warning(self) -> str:
        """What to hold against the figures; "" on a quiet machine."""
        if self.busiest <= BUSY_SHARE:
            return ""
        return (
            f"WARNING: other processes took up to {self.busiest:.0%} of the cores (load average {self.load:.2f} at the start). "
            "These figures are not to be kept; run it again on a quiet machine."
        )


class PeakMemory:
    """The most a process holds, in GiB, looked at from outside until it ends.

    VmHWM, the kernel's own high-water mark of one process; ru_maxrss of a fresh child would begin with its parent's.
    """

    def __init__(self, pid: int):
        self.pid, self.gib = pid, 0.0
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        while (seen := high_water_gib(self.pid)) is not None:
            self.gib = max(self.gib, seen)
            time.sleep(0.05)

    def join(self) -> float:
        self._thread.join()
        return self.gib


def high_water_gib(pid: int | str = "self") -> float | None:
    """The most that this process has held; None once it has ended."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**20
    except (FileNotFoundError, ProcessLookupError):
        pass
    return None


# The products -----------------------------------------------------------------------------------------------------


def product_gflops(rows: int, inner: int, outer: int, dtype: str = "bfloat16", device: str = "cpu", seconds: float = 0.3) -> float:
    """GFLOP/s of (rows, inner) @ (inner, outer) by torch's own linear layer, over so many seconds."""
    import torch

    x = torch.randn(rows, inner, dtype=getattr(torch, dtype), device=device)
    weight = torch.randn(outer, inner, dtype=getattr(torch, dtype), device=device)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    with torch.no_grad():
        torch.nn.functional.linear(x, weight)
        wait()
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            torch.nn.functional.linear(x, weight)
            wait()
            count += 1
        return 2 * rows * inner * outer * count / (time.perf_counter() - began) / 1e9


def products(shapes: Iterable[tuple[int, int]], repeats: int = 3) -> dict[str, float]:
    """The best GFLOP/s of each layer shape (in, out) at 2,048 rows in bf16, as "IN x OUT"."""
    found: dict[str, float] = {}
    for _ in range(repeats):
        for inner, outer in shapes:
            name = f"{inner} x {outer}"
            found[name] = max(found.get(name, 0.0), product_gflops(ROWS, inner, outer))
    return found


def main() -> None:
    """Measure the products of a base's layers and write them down."""
    from tests.bench import arithmetic

    base_dir, out_path = sys.argv[1:]
    model = arithmetic.skeleton(base_dir)
    Path(out_path).write_text(json.dumps(products(arithmetic.layer_shapes(model))), "utf-8")


if __name__ == "__main__":
    main()
