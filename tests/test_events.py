"""The log of a run is read whole, once, and in order, whatever happens to the file meanwhile."""

import json
import threading

import pytest

from tuner import events


@pytest.fixture
def log(tmp_path):
    events._known.clear()
    return tmp_path / "events.jsonl"


def steps(first: int, last: int) -> list[dict]:
    return [{"kind": "step", "step": step, "loss": 1.5} for step in range(first, last + 1)]


def write(path, its: list[dict]) -> None:
    for event in its:
        events.append(path, event)


def test_a_log_read_as_it_grows_is_the_log_read_at_once(log):
    assert events.read_all(log) == ([], 0)
    for step in range(1, 30):
        write(log, [*steps(step, step), {"kind": "note", "message": f"Schöne Grüße {step}"}])
        assert events.read_all(log) == events.read(log)
    assert len(events.read_all(log)[0]) == 58


def test_no_line_is_parsed_twice(log, monkeypatch):
    parsed = []
    monkeypatch.setattr(events.json, "loads", lambda line, loads=json.loads: parsed.append(line) or loads(line))
    write(log, steps(1, 100))
    events.read_all(log)
    write(log, steps(101, 103))
    for _ in range(5):
        assert len(events.read_all(log)[0]) == 103
    assert len(parsed) == 103


def test_half_a_line_waits_for_its_end_also_in_a_known_log(log):
    write(log, steps(1, 2))
    events.read_all(log)
    whole = json.dumps({"kind": "note", "message": "ö"}, ensure_ascii=False).encode() + b"\n"
    for cut in (5, whole.index("ö".encode()) + 1, len(whole) - 1):
        with open(log, "ab") as file:
            place = file.tell()
            file.write(whole[:cut])
        assert len(events.read_all(log)[0]) == 2
        with open(log, "ab") as file:
            file.truncate(place)
    with open(log, "ab") as file:
        file.write(whole)
    assert events.read_all(log)[0][-1]["message"] == "ö"


@pytest.mark.parametrize("how", ["shorter", "another file"])
def test_a_log_that_was_begun_anew_is_read_anew(log, how):
    write(log, steps(1, 5))
    events.read_all(log)
    if how == "shorter":
        log.write_bytes(b"")
        write(log, steps(7, 8))
    else:
        other = log.with_name("other")
        write(other, steps(7, 20))
        other.replace(log)
    assert [event["step"] for event in events.read_all(log)[0]][:2] == [7, 8]


def test_what_a_caller_does_to_its_list_is_its_own_affair(log):
    write(log, steps(1, 3))
    events.read_all(log)[0].clear()
    assert len(events.read_all(log)[0]) == 3


def test_events_of_one_kind_are_those_and_no_text_that_says_so(log):
    write(log, [
        {"kind": "step", "step": 1}, {"kind": "sample", "text": '{"kind": "eval"}'}, {"kind": "eval", "step": 1},
        {"kind": "evaluation", "step": 2}, {"kind": "note", "message": '"kind": "eval"'}, {"kind": "eval", "step": 3},
    ])
    found, place = events.read(log, kind="eval")
    assert [event["step"] for event in found] == [1, 3] and place == log.stat().st_size


def test_only_a_few_logs_stay_in_memory(log):
    for number in range(20):
        path = log.with_name(str(number))
        write(path, steps(1, 2))
        assert len(events.read_all(path)[0]) == 2
    assert len(events._known) == events._KEPT
    assert len(events.read_all(log.with_name("0"))[0]) == 2


def test_visitors_reading_at_once_lose_and_double_nothing(log):
    counts, done = [], threading.Event()

    def read():
        while not done.is_set():
            found, _ = events.read_all(log)
            counts.append([event["step"] for event in found] == list(range(1, len(found) + 1)))

    readers = [threading.Thread(target=read) for _ in range(4)]
    for its in readers:
        its.start()
    for step in range(1, 301):
        events.append(log, *steps(step, step))
    done.set()
    for its in readers:
        its.join()
    assert all(counts) and len(events.read_all(log)[0]) == 300
