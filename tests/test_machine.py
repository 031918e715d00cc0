"""What this machine has: the container's limit and not the host's memory; what it reaches is measured once and kept."""

import json
from pathlib import Path

import psutil
import pytest

from tuner import child, lease, machine
from tuner.home import write_json

GIB = 2**30


def group(folder: Path, files: dict) -> None:
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(str(text))


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "cgroup"


def limits(root: Path, own: str) -> list[tuple[int, int]]:
    (root.parent / "own").write_text(own)
    return machine._limits(root, root.parent / "own")


def test_a_container_s_limit_is_read_in_version_2(root):
    group(root / "app", {"memory.max": 4 * GIB, "memory.current": 3 * GIB, "memory.stat": f"anon 5\ninactive_file {GIB}\n", "memory.events": "low 0\noom_kill 3\n"})
    group(root / "free", {"memory.max": "max", "memory.current": 3 * GIB, "memory.stat": "anon 5\n"})
    assert limits(root, "0::/app\n") == [(4 * GIB, 2 * GIB)]
    assert limits(root, "0::/free\n") == []
    assert machine.oom_kills(root, root.parent / "own", root / "nowhere") is None
    (root.parent / "own").write_text("0::/app\n")
    assert machine.oom_kills(root, root.parent / "own") == 3


def test_a_container_s_limit_is_read_in_version_1_and_the_lowest_of_several_counts(root):
    files = {"memory.usage_in_bytes": GIB, "memory.stat": "cache 1\ntotal_inactive_file 0\n"}
    group(root / "memory" / "outer", {**files, "memory.limit_in_bytes": 2 * GIB, "memory.oom_control": "under_oom 0\noom_kill 7\n"})
    group(root / "memory" / "outer" / "inner", {**files, "memory.limit_in_bytes": 9223372036854771712})
    assert limits(root, "4:cpu,memory:/outer/inner\n1:cpu:/\n") == [(2 * GIB, GIB)]
    assert machine.oom_kills(root, root.parent / "own") == 7


def test_a_path_of_the_host_s_is_looked_for_where_the_container_sees_it(root):
    group(root, {"memory.max": GIB, "memory.current": 0, "memory.stat": ""})
    assert limits(root, "0::/docker/0123abc\n") == [(GIB, 0)]


def test_kills_are_counted_by_the_whole_machine_where_there_are_no_groups(root, tmp_path):
    (tmp_path / "vmstat").write_text("pgfault 5\noom_kill 2\n")
    assert machine.oom_kills(root, tmp_path / "none", tmp_path / "vmstat") == 2


def test_the_limit_is_what_is_free(monkeypatch):
    monkeypatch.setattr(machine, "_limits", lambda: [(2 * GIB, GIB // 2), (8 * GIB, GIB)])
    now = machine.main_memory()
    assert now.total_gib == 2.0 and now.free_gib == min(1.5, psutil.virtual_memory().available / GIB)
    monkeypatch.setattr(machine, "_limits", lambda: [])
    assert machine.main_memory().total_gib == pytest.approx(psutil.virtual_memory().total / GIB)
    monkeypatch.setattr(machine, "_limits", lambda: [(GIB, 2 * GIB)])
    assert machine.main_memory().free_gib == 0.0


SEEN = {
    "device": "cpu", "precision": "bfloat16", "gemm_gflops": {"bfloat16": 900.0, "float32": 200.0}, "gb_per_s": 100.0, "op_us": 2.0,
    "import_s": 3.0, "import_gib": 0.5,
}


def test_before_anything_was_measured_the_figures_are_expected_ones(home):
    before = machine.reach()
    assert not before.measured and before.gemm_gflops > 0 and before.ratio("train") == 1.0
    write_json(home / "machine.json", {machine.fingerprint(): {"measured": SEEN}})
    now = machine.reach()
    assert now.measured and now.gemm_gflops == 900.0 and now.precision == "bfloat16"


def test_what_another_machine_measured_is_not_this_one_s(home):
    write_json(home / "machine.json", {"another processor, 64 cores": {"measured": SEEN}})
    assert not machine.is_measured()


def test_a_broken_file_is_as_none(home):
    (home / "machine.json").write_text("{")
    assert not machine.is_measured() and not machine.reach().measured


def test_finished_runs_correct_their_own_kind_by_the_median_of_the_newest(home):
    write_json(home / "machine.json", {machine.fingerprint(): {"measured": SEEN}})
    for ratio in [9.0] * 5 + [1.0, 1.2, 5.0] * (machine.REMEMBERED // 3):
        machine.remember("cpu/bfloat16/fast", {"train": ratio})
    machine.remember("cpu/bfloat16/plain", {"train": 3.0, "start": 2.0})
    machine.remember("cuda/bfloat16/fast", {"train": 4.0})
    assert machine.reach("fast").ratio("train") == 1.2 and machine.reach("fast").ratio("start") == 1.0
    assert machine.reach("plain").ratio("start") == 2.0 and machine.runs_known("plain") == 1
    assert machine.runs_known("fast") == machine.REMEMBERED


def test_answers_are_as_fast_however_a_model_learns(home):
    """What fast runs took for them is known to a plain one, until those have their own; a classifier gives none, and a plain model may be one that is not known."""
    write_json(home / "machine.json", {machine.fingerprint(): {"measured": SEEN}})
    machine.remember("cpu/bfloat16/fast", {"train": 1.5, "answers": 3.0})
    assert machine.reach("plain").ratio("answers") == 3.0 and machine.reach("plain").ratio("train") == 1.0
    assert machine.reach("classifier").ratio("answers") == 1.0
    machine.remember("cpu/bfloat16/plain", {"answers": 2.0})
    assert machine.reach("plain").ratio("answers") == 2.0 and machine.reach("fast").ratio("answers") == 3.0
    write_json(home / "machine.json", {machine.fingerprint(): {"measured": SEEN}})
    machine.remember("cpu/bfloat16/plain", {"answers": 2.0})
    assert machine.reach("fast").ratio("answers") == 1.0


def test_it_is_measured_once_in_a_child_that_holds_torch(home, monkeypatch):
    monkeypatch.setattr(machine, "_children", [])
    machine.wait_until_measured()
    seen = machine.known()["measured"]
    assert seen["gemm_gflops"][seen["precision"]] > 0 and seen["gb_per_s"] > 0 and 0 < seen["import_gib"] < 4
    started = []
    monkeypatch.setattr(child, "spawn", lambda *args, **kw: started.append(args))
    assert not machine.begin_measuring() and not started
    assert json.loads((home / "machine.json").read_text())[machine.fingerprint()]["measured"] == seen


def test_it_is_not_measured_while_a_run_has_the_machine(home, monkeypatch):
    monkeypatch.setattr(machine, "_children", [])
    monkeypatch.setattr(child, "spawn", lambda *args, **kw: pytest.fail("started"))
    with lease.hold("run", lambda ahead: None, lambda: False):
        assert not machine.begin_measuring()


def test_the_child_is_offered_to_the_kernel_before_the_page(tmp_path):
    import subprocess
    import sys

    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        child.offer_to_the_kernel(process.pid)
        assert Path(f"/proc/{process.pid}/oom_score_adj").read_text().strip() == "500"
    finally:
        process.communicate(b"\n")
    child.offer_to_the_kernel(process.pid)  # gone by now, and nothing happens
