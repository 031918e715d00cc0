"""Tests of the check as a whole: here or in a child, never twice, and what is told when the child ends badly."""

import json
import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import psutil
import pytest

from tests import faulty
from tests.bad_inputs import cases
from tests.test_bad_inputs import check_words
from tests.test_structure import ROOT
from tuner import check, child, data, encode, lease, scan
from tuner.errors import UserError
from tuner.recipe import Recipe
from tuner.tasks import chat

SOON_S = 60


@pytest.fixture(scope="module")
def eyes(tmp_path_factory):
    return faulty.eyes(tmp_path_factory.mktemp("eyes"))


@pytest.fixture
def large(monkeypatch):
    """No dataset is small enough to be checked in this process."""
    monkeypatch.setattr(check, "SMALL_ROWS", -1)


def wait(dataset, look=None):
    """The rows, once the child is done."""
    deadline = time.monotonic() + SOON_S
    while time.monotonic() < deadline:
        rows, going = check.look_at(dataset, look)
        if going is None:
            return rows
        time.sleep(0.03)
    raise AssertionError("the check did not end")


def wait_for_end(dataset) -> None:
    """Its child has said its last word; what it found can be shown a moment before."""
    deadline = time.monotonic() + SOON_S
    while check.progress(dataset) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def equal(ours, theirs) -> bool:
    arrays = ("places", "seen", "own", "same", "near")
    return (
        all(np.array_equal(getattr(ours, name), getattr(theirs, name)) for name in arrays)
        and all(np.array_equal(getattr(ours.tokens, name), getattr(theirs.tokens, name)) for name in scan.Tokens.__dataclass_fields__)
        and ours.left_out.keys() == theirs.left_out.keys()
        and all(np.array_equal(ours.left_out[name], theirs.left_out[name]) for name in ours.left_out)
        and (ours.came_in, ours.steps, ours.config) == (theirs.came_in, theirs.steps, theirs.config)
    )


def upload(tmp_path, records, name: str = "a.jsonl", owner: str = "ann") -> data.Dataset:
    path = tmp_path / "upload"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return data.create(owner, name, {"kind": "file", "file": name}, [(path, name)])


def test_a_child_finds_what_is_found_here(home, large, tmp_path, eyes, monkeypatch):
    """Read, checked and put right in children; a glimpse of the head meanwhile; every array is that of one process."""
    records = [record for record in faulty.make().records if isinstance(record, dict)]
    look = scan.Look.of(faulty.RECIPE, eyes)
    dataset = upload(tmp_path, records)
    monkeypatch.setenv("HF_TOKEN", "hf_" + "secret" * 5)
    check.wait_for_head(dataset)
    data.settle(dataset)
    assert not list(dataset.folder.glob("original-*")) and not (tmp_path / "upload").exists()
    rows, going = check.look_at(dataset, look)
    assert going is not None and 0 < len(rows) < data.HEAD and rows.came_in == data.HEAD
    assert rows.row(0)["messages"] and len(rows.tokens.flags) == len(rows)
    process = psutil.Process(json.loads((dataset.folder / "process.json").read_text())["pid"])
    process.suspend()  # so that it is still checking while that is asked
    assert "HF_TOKEN" not in process.environ() and not any("secretsecret" in value for value in process.environ().values())
    with pytest.raises(UserError, match="The rows are still being checked. Put them right when that is done"):
        check.fix(dataset, "cut", "split", faulty.RECIPE, str(eyes))
    with pytest.raises(UserError, match="The rows are still being checked"):
        check.whole(dataset)
    process.resume()
    there = wait(dataset, look)
    wait_for_end(dataset)
    assert len(check.whole(dataset)) == len(there)
    ours = data.keep("bob", "x", records, {}, dataset.mapping)
    assert equal(check.work(ours, look), there)
    check.fix(dataset, "cut", "split", faulty.RECIPE, str(eyes))
    check.fix(ours, "cut", "split", faulty.RECIPE, str(eyes))
    assert equal(check.work(ours, look), wait(dataset, look))
    wait_for_end(dataset)
    check.fix(dataset, "html", "drop", faulty.RECIPE, str(eyes))
    check.fix(dataset, "html", "drop", faulty.RECIPE, str(eyes))  # the second one has nothing to do
    with pytest.raises(UserError, match="No row has that"):
        wait(dataset, look)
    assert [its["finding"] for its in dataset.steps] == ["cut", "html"]
    assert wait(dataset, look).steps[-1]["rows"] == 6


def test_nothing_is_done_twice(home, eyes, monkeypatch):
    """A second check encodes and looks at no row; after a fix, only the changed ones."""
    dataset, look = faulty.keep(faulty.make(), faulty.MAPPING), scan.Look.of(faulty.RECIPE, eyes)
    rows = check.work(dataset, look)
    encoded, described = [], []
    real_encode, real_faults = scan.eyes.tokenised, chat.faults
    seen = lambda rows: [row["n"] for row in rows if row is not None]  # noqa: E731
    monkeypatch.setattr(scan.eyes, "tokenised", lambda rows, look: (encoded.extend(seen(rows)), real_encode(rows, look))[1])
    monkeypatch.setattr(chat, "faults", lambda row: (described.append(row["n"]), real_faults(row))[1])
    assert check.is_done(dataset, look) and equal(check.work(dataset, look), rows) and not encoded and not described
    hit = [rows.row(int(index))["n"] for index in np.flatnonzero(rows.mask("personal", Recipe()))]
    check.fix(dataset, "personal", "mask", faulty.RECIPE, str(eyes))
    assert not check.is_done(dataset, look)
    check.work(dataset, look)
    assert sorted(encoded) == sorted(described) == sorted(hit) and check.is_done(dataset, look)
    encoded.clear()
    other = scan.Look.of(Recipe(system_prompt="Be kind."), eyes)
    assert not check.is_done(dataset, other)
    check.work(dataset, other)
    assert len(encoded) == len(rows) + len(hit) and sorted(described) == sorted(hit)  # only what the tokens change is done anew


def test_two_at_once_do_the_work_once(home, eyes, monkeypatch):
    """Two tabs: one looks, the other one finds it done; both get the same."""
    dataset, look = faulty.keep(faulty.labels()), scan.Look.of(Recipe(), eyes)
    described, found = [], []
    real = chat.faults
    monkeypatch.setattr(chat, "faults", lambda row: (described.append(row["n"]), real(row))[1])
    threads = [threading.Thread(target=lambda: found.append(check.work(dataset, look))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3 and len(described) == len(found[0]) == 600
    assert equal(found[0], found[1]) and equal(found[0], found[2])


def test_helpers_see_what_one_process_sees(home, eyes):
    """In the same order, whoever is done first."""
    records = [record for record in faulty.make().records if isinstance(record, dict)] * 3
    look = scan.Look.of(faulty.RECIPE, eyes)
    alone, helped = (data.keep("ann", "x", records, {}, faulty.MAPPING) for _ in range(2))
    told = []
    scan.part(check.first_part(alone), look, helpers=0)
    scan.part(check.first_part(helped), look, lambda done, total: told.append((done, total)), helpers=1)
    for name in ("rows", "bands"):
        assert np.array_equal(*(np.load(check.first_part(its).folder / f"{name}.npy") for its in (alone, helped)))
    one, other = (scan.Tokens.load(scan.tokens_dir(check.first_part(its), look)) for its in (alone, helped))
    assert all(np.array_equal(getattr(one, name), getattr(other, name)) for name in scan.Tokens.__dataclass_fields__)
    assert told == sorted(told) and told[-1] == (len(records), len(records))


def test_a_child_that_dies_is_told_and_the_next_one_begins_anew(home, large, tmp_path, eyes):
    """kill -9, as the kernel does for want of memory: words, then the same answer as without."""
    dataset = data.keep("ann", "x", faulty.labels().records, {})
    look = scan.Look.of(Recipe(), eyes)
    check.begin(dataset, look)
    os.killpg(json.loads((dataset.folder / "process.json").read_text())["pid"], signal.SIGKILL)
    with pytest.raises(UserError, match="The check ended early, perhaps for want of memory. Try again, or bring fewer rows"):
        wait(dataset, look)
    assert len(wait(dataset, look)) == 600
    check.begin(dataset, look)
    process = psutil.Process(json.loads((dataset.folder / "process.json").read_text())["pid"])
    check.stop(dataset)
    process.wait(10)
    assert check.progress(dataset) is None


BAD = [case for case in cases() if case.refused and not case.bomb and not any("make" in part for part in case.parts)][::7][:10]


def test_files_that_cannot_be_read_are_refused_by_the_child(home, tmp_path):
    """Ten kinds, in the words of their reader; nothing of them is kept."""
    import re

    assert len(BAD) == 10
    datasets = []
    for case in BAD:
        folder = tmp_path / re.sub(r"\W", "", case.name)
        folder.mkdir()
        datasets.append(data.create("ann", "x", {"kind": "file"}, case.files(folder)))
    told: dict[int, UserError] = {}

    def read(number: int) -> None:
        try:
            check.wait_for_head(datasets[number])
        except UserError as error:
            told[number] = error

    threads = [threading.Thread(target=lambda start=start: [read(number) for number in range(start, 10, 2)]) for start in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, case in enumerate(BAD):
        assert re.search(re.escape(case.refused), str(told[number]), re.IGNORECASE), (case.name, told[number])
        check_words(told[number], tmp_path)
    assert list(data.datasets_dir("ann").iterdir()) == []


def test_a_child_that_wants_too_much_memory_says_so(home, tmp_path, monkeypatch):
    """The limit is the child's own; whoever asked is well and hears it in words."""
    (tmp_path / "sitecustomize.py").write_text("import tuner.data\ntuner.data.read_files = lambda *a, **k: bytearray(2**34)\n")
    real = child.environment
    monkeypatch.setattr(child, "environment", lambda: {**real(), "PYTHONPATH": f"{tmp_path}:{child.PROJECT_ROOT}"})
    dataset = upload(tmp_path, [{"text": "a"}] * 3)
    with pytest.raises(UserError, match=r"a.jsonl unpacks to more memory than there is \(3 GiB\). Bring a part of it"):
        check.wait_for_head(dataset)
    assert not dataset.folder.exists()


def test_a_bomb_in_the_child_is_told(home, tmp_path):
    """A hundred gigabytes out of a few kilobytes of Parquet."""
    from tests.bad_inputs import make

    path = tmp_path / "bomb.parquet"
    path.write_bytes(make.parquet_bomb())
    dataset = data.create("ann", "bomb.parquet", {"kind": "file"}, [(path, "bomb.parquet")])
    with pytest.raises(UserError, match="unpacks to more"):
        check.wait_for_head(dataset)  # the first rows may be shown before the rest is refused
        while check.progress(dataset) is not None:
            time.sleep(0.05)
    assert not dataset.ready
    kept = sum(path.stat().st_size for path in dataset.folder.iterdir()) if dataset.folder.exists() else 0
    assert kept < 64 * 2**20


def test_rows_asked_for_here_and_there_do_not_bring_in_the_file(home):
    """In a process of its own, which has read nothing yet: a hundred rows of 40 MiB cost about themselves."""
    path = home / "texts.arrow"
    data.write_texts(path, (f"{number:06d}" + "ü" * 2045 for number in range(10_000)))
    code = (
        "import sys, psutil\nfrom pathlib import Path\nfrom tuner import data\n"
        "texts = data.Texts(Path(sys.argv[1]))\nassert len(texts) == 10_000\nbefore = psutil.Process().memory_info().rss\n"
        "assert all(texts[number] == f'{number:06d}' + 'ü' * 2045 for number in range(50, 10_000, 100))\n"
        "print(psutil.Process().memory_info().rss - before)"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True, cwd=ROOT)
    assert int(ended.stdout) < 4 * 2**20


def test_a_dataset_without_any_row_is_told_with_reasons(home):
    """The first records' own, and how many there are."""
    kept = data.keep("ann", "x", [{"prompt": "a", "completion": ""}] * 5, {}, data.Mapping("pair", {"prompt": "prompt", "completion": "completion"}))
    for look in (check.work, check.glimpse):
        with pytest.raises(UserError, match="None of the 5 rows can be learned from. Row 1 has no answer"):
            look(kept, None)


def test_the_head_alone_is_shown_as_the_whole_would_show_it(home, eyes):
    """Of a small dataset the glimpse is all there is."""
    records = [record for record in faulty.make().records if isinstance(record, dict)][: data.HEAD]
    kept, look = data.keep("ann", "x", records, {}, faulty.MAPPING), scan.Look.of(faulty.RECIPE, eyes)
    glimpse, whole = check.glimpse(kept, look), check.work(kept, look)
    assert np.array_equal(glimpse.seen, whole.seen) and np.array_equal(glimpse.lengths, whole.lengths)
    assert [glimpse.row(i) for i in range(5)] == [whole.row(i) for i in range(5)]



def test_an_array_that_could_not_be_read_for_another_thread_s_sake_is_read_again(tmp_path, monkeypatch):
    """Seen in ast.parse of numpy's header, beside fifty visitors."""
    scan.save(tmp_path / "a.npy", np.arange(3))
    plain, calls = np.load, []

    def fails_first(*args, **kwargs):
        calls.append(1)
        if len(calls) == 1:
            raise SystemError
        return plain(*args, **kwargs)

    monkeypatch.setattr(np, "load", fails_first)
    assert scan.load(tmp_path / "a.npy").tolist() == [0, 1, 2] and len(calls) == 2


# Pasted text -------------------------------------------------------------------------------------------------------


def pasted(folder, text: str) -> data.Dataset:
    path = folder / "pasted"
    path.write_text(text, "utf-8")
    return data.create("anna", "Pasted rows", {"kind": "paste"}, [(path, "The pasted text")])


def test_a_small_paste_is_read_without_waiting_for_a_process(home, tmp_path, sleepers):
    dataset = pasted(tmp_path, '{"prompt": "a", "completion": "b"}\n' * 5)
    check.wait_for_head(dataset)
    assert dataset.ready and dataset.count == 5 and not sleepers
    again = pasted(tmp_path, '{"prompt": "a", "completion": "b"}\n' * 5)
    assert again.ready, "the same rows are known again"


def test_what_is_wrong_with_a_small_paste_is_told_and_nothing_of_it_stays(home, tmp_path, sleepers):
    dataset = pasted(tmp_path, "prompt,completion\na,b\nc\0,d\n")
    with pytest.raises(UserError, match="The pasted text holds a NUL character in line 3"):
        check.wait_for_head(dataset)
    assert not dataset.folder.exists() and not sleepers


@pytest.mark.parametrize("what", ["large", "many", "grows", "fails"])
def test_what_this_process_had_better_not_read_is_a_childs(home, tmp_path, monkeypatch, what):
    """Too long; a header whose name each of many rows repeats; and whatever goes wrong in a way that nobody thought of."""
    text = {"large": "word " * 60_000, "many": "prompt,completion\n" + "1,2\n" * 1_501, "grows": "n" * 2_000 + ",b\n" + "1,2\n" * 5_000, "fails": '{"prompt": "a", "completion": "b"}\n' * 5}[what]
    if what == "fails":
        monkeypatch.setattr(data.reading, "read_pasted", lambda *_: 1 / 0)
    dataset = pasted(tmp_path, text)

    def begin(*_):
        raise UserError("A child is to read it.")

    monkeypatch.setattr(check, "begin", begin)
    with pytest.raises(UserError, match="A child is to read it"):
        check.wait_for_head(dataset)


# Many at once -----------------------------------------------------------------------------------------------------


@pytest.fixture
def sleepers(monkeypatch):
    """Children that look at nothing and end when they are told to."""
    started = []

    def spawn(*_, **__):
        process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
        started.append(process)
        return process

    monkeypatch.setattr(child, "spawn", spawn)
    monkeypatch.setattr(check, "_children", {})
    monkeypatch.setattr(check, "_folders", {})
    yield started
    for process in started:
        process.kill()
        process.communicate()


def test_a_child_out_of_time_is_told_so_whoever_finds_it_dead(home, large, sleepers):
    """Whoever asks about another dataset may be the one to wait for it."""
    dataset, other = kept("anna", 0), kept("bob", 0)
    check.begin(dataset, None)
    [process] = check._children.values()
    process.kill()
    process.wait()
    process.returncode = child.OUT_OF_TIME
    assert check.progress(other) is None
    with pytest.raises(UserError, match=re.escape(encode.ENDLESS)):
        check.progress(dataset)
    assert check.progress(dataset) is None and not check._out_of_time and not check._children


# The system shows a process as a zombie once its first thread is gone, though it cannot be waited for while another is there.
_FIRST_THREAD_GOES = """
import ctypes, os, signal, sys, threading
def last():
    sys.stdin.readline()
    os.kill(os.getpid(), signal.SIGPROF)
threading.Thread(target=last, daemon=True).start()
print("here", flush=True)
ctypes.CDLL(None).syscall(60, 0)  # the exit of a thread, on x86-64
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the number of a system call")
def test_a_child_is_not_dead_before_its_code_is_there(home, large, sleepers, monkeypatch):
    """Its end for want of time was told as one for want of memory, now and then."""
    dataset = kept("anna", 0)
    process = subprocess.Popen([sys.executable, "-c", _FIRST_THREAD_GOES], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    sleepers.append(process)
    monkeypatch.setattr(child, "spawn", lambda *_, **__: process)
    check.begin(dataset, None)
    stamp = {"pid": process.pid, "started": psutil.Process(process.pid).create_time()}
    assert process.stdout.readline() == b"here\n"
    until = time.monotonic() + 10
    while lease.is_alive(stamp):
        assert time.monotonic() < until, "its first thread never went"
        time.sleep(0.01)
    assert check.progress(dataset) is not None
    process.stdin.write(b"\n")
    process.stdin.flush()
    until = time.monotonic() + 10
    with pytest.raises(UserError, match=re.escape(encode.ENDLESS)):
        while time.monotonic() < until:
            check.progress(dataset)
            time.sleep(0.01)


def kept(owner: str, number: int) -> data.Dataset:
    records = [{"prompt": f"{owner} {number} {n}", "completion": "yes"} for n in range(12)]
    return data.keep(owner, "Rows", records, {"kind": "paste"})


def test_one_person_has_two_checks_at_once_and_the_third_waits_or_is_told(home, large, tmp_path, sleepers, monkeypatch):
    monkeypatch.setenv("TUNER_SHARED", "1")
    monkeypatch.setattr(check, "MOST_CHILDREN", 9)
    for number in range(2):
        assert check.look_at(kept("anna", number), None)[1].phase == "Starting"
    third = kept("anna", 2)
    rows, going = check.look_at(third, None)  # its first rows are shown meanwhile, and whoever looks next tries again
    assert len(rows) == 12 and going.phase == "Waiting for your other datasets" and len(sleepers) == 2
    assert check.progress(third) is None
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n')
    brought, began = data.create("anna", "rows.jsonl", {"kind": "file"}, [(path, "rows.jsonl")]), time.monotonic()
    with pytest.raises(UserError, match="2 of your datasets are being read and checked at this moment, and 2 at once are the most"):
        check.wait_for_head(brought)
    assert time.monotonic() - began < 2 and not brought.folder.exists() and len(sleepers) == 2
    check.begin(kept("bob", 0), None)  # nobody else is held up by her
    sleepers[0].kill()
    sleepers[0].wait()
    assert check.look_at(third, None)[1].phase == "Starting" and len(sleepers) == 4
    monkeypatch.delenv("TUNER_SHARED")
    check.begin(kept("anna", 3), None)  # on one's own machine there is no such limit


def test_all_together_have_so_many_checks_and_who_comes_later_waits_a_while(home, sleepers, monkeypatch):
    monkeypatch.setattr(check, "MOST_CHILDREN", 2)
    for owner in ("anna", "bob"):
        check.begin(kept(owner, 0), None)
    began = time.monotonic()
    with pytest.raises(UserError, match="Many datasets are being read and checked just now"):
        check.begin(kept("cleo", 0), None, wait_s=0.3)
    assert 0.3 <= time.monotonic() - began < 5
    threading.Timer(0.3, sleepers[0].kill).start()
    check.begin(kept("cleo", 1), None)
    assert len(sleepers) == 3


def test_those_who_come_at_once_do_not_take_the_same_place(home, sleepers, monkeypatch):
    monkeypatch.setattr(check, "MOST_CHILDREN", 3)
    refused = []

    def come(number: int) -> None:
        try:
            check.begin(kept(f"p{number}", 0), None, wait_s=0.0)
        except UserError:
            refused.append(number)

    threads = [threading.Thread(target=come, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(sleepers) == 3 and len(refused) == 5
