"""The quote's benchmark on a model of two layers: it still runs a real child, tells quoted and taken, and keeps its promises."""

import copy
import json

import pytest

from tests.bench import quote as bench
from tests.small import base_entry
from tests.small_run import RECORDS
from tuner import hub, machine, sizes, starter


def test_a_case_is_quoted_run_and_told(home, base, monkeypatch, tmp_path):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(hub, "tokenizer_dir", lambda *args: str(base))
    monkeypatch.setattr(hub, "sizes_of", lambda *args: sizes.in_folder(base))
    monkeypatch.setattr(hub, "fetch_base", lambda *args: base_entry(base, "HuggingFaceTB/SmolLM2-135M-Instruct"))
    rows = tmp_path / "animals.jsonl"
    rows.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    told = bench.run_one("small", bench.Case(rows, {"max_steps": 8, "batch_size": 2, "evaluations": 1, "max_tokens": 128}))
    assert told["steps"] == 8 and 0.3 < told["taken_gib"] < 3 and 1 < told["taken_s"] < 120
    assert told["quoted_gib"] == pytest.approx(sum(told["memory"].values())) and told["quoted_s"] > 0
    assert 0.3 < told["rehearsed_gib"] <= told["taken_gib"] * 1.05 and told["rehearsed_s"] > 0
    assert sum(told["phases"].values()) == pytest.approx(told["taken_s"], rel=0.05) and 0 <= told["others"] <= 1
    assert told["pace"] is None  # this home's machine was never measured
    report = told["report"]
    assert report["kept_aside"] == report["held_out"] == report["measured"] == 2 and report["short"] == report["short_answered"] == 2
    assert report["probe"] == 1.0 and 0 < report["seconds"] < report["had_s"] == 60.0
    json.dumps(told)
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"{record['prompt']} {record['completion']}" for record in RECORDS))
    report = bench.run_one("text", bench.Case(text, {"max_steps": 4, "batch_size": 2, "evaluations": 1, "max_tokens": 128}))["report"]
    assert report["measured"] == report["held_out"] == 2 and report["short"] == report["short_answered"] == 0, "a text has no answer of its own"


@pytest.mark.parametrize("disturbed, runs", [({}, 1), ({"pace": 0.8}, 3), ({"others": 0.2}, 3), ({"pace": None}, 1)])
def test_a_run_that_was_disturbed_is_made_again_and_told_as_it_was(home, monkeypatch, capsys, disturbed, runs):
    made = []
    monkeypatch.setattr(bench, "home", lambda: home)
    monkeypatch.setattr(starter, "prepare", lambda: None)
    monkeypatch.setattr(machine, "wait_until_measured", lambda: None)
    monkeypatch.setattr(machine, "known", lambda: {"measured": {"torch": "2", "gemm_gflops": {"float32": 1.0}, "precision": "float32"}})
    monkeypatch.setattr(bench, "knob_s", dict)
    monkeypatch.setattr(bench, "run_one", lambda name, case: made.append(name) or {**GOOD, "name": name, **disturbed})
    assert bench.main(["headlines"]) == 0 and made == ["headlines"] * runs
    shown = capsys.readouterr().out
    assert f"| {disturbed.get('others', 0.02):.0%} | {'' if disturbed.get('pace', 0.98) is None else format(disturbed.get('pace', 0.98), '.0%')} |" in shown


GOOD = {
    "name": "a", "counts": True, "steps": 10, "quoted_gib": 1.05, "rehearsed_gib": 1.0, "taken_gib": 1.0, "quoted_s": 95.0,
    "rehearsed_s": 99.0, "taken_s": 100.0, "others": 0.02, "pace": 0.98,
}


@pytest.mark.parametrize("off, good, words", [
    ({}, True, "memory by the quote: off by at most 5%, median 5.0%, of 3 recipes"),
    ({"quoted_gib": 1.16}, False, "off by at most 16%, median 5.0%, of 3 recipes (promised: 15%, 7%)"),
    ({"quoted_s": 79.0}, False, "time by the quote: off by at most 21%"),
    ({"quoted_gib": 1.4, "counts": False}, True, "| a (not counted) |"),
    ({"rehearsed_s": 200.0}, True, "time by the rehearsal: off by at most 100%"),
])
def test_the_table_says_what_is_held_and_what_is_not(off, good, words):
    lines: list[str] = []
    assert bench.table([GOOD, copy.copy(GOOD), {**GOOD, **off}] if off.get("counts", True) else [GOOD, {**GOOD, **off}], lines.append) is good
    assert words in "\n".join(lines)


@pytest.mark.parametrize("off, good", [({}, True), ({"measured": 89}, False), ({"short_answered": 17}, False), ({"seconds": 61.0}, False), ({"probe": 0.5}, True)])
def test_a_report_that_leaves_out_held_out_rows_or_takes_too_long_is_not_held(off, good):
    lines: list[str] = []
    report = {"kept_aside": 300, "held_out": 90, "measured": 90, "short": 18, "short_answered": 18, "probe": 1.0, "seconds": 58.0, "had_s": 60.0}
    assert bench.reports([GOOD, {**GOOD, "report": {**report, **off}}], lines.append) is good
    assert len(lines) == 3 and ("promised" in lines[-1]) is not good


def test_a_median_too_far_off_is_not_held():
    lines: list[str] = []
    assert not bench.table([{**GOOD, "quoted_gib": 1.08}] * 3, lines.append)


def test_at_least_twelve_different_recipes_are_held_to_account():
    counted = [case for case in bench.CASES.values() if case.counts]
    assert len(counted) >= 12 and len({json.dumps([str(case.dataset), case.settings], sort_keys=True) for case in counted}) == len(counted)
    assert len({case.dataset for case in counted}) == 4
