"""What the page draws of a run that watches itself: the answers as they change, what was seen, and trials."""

import re
import time
from dataclasses import replace

import pytest

from tuner import finder, plan, quote, tasks, trials
from tuner.ui import drawing, quote_view, trial_view


def sample(step: int, text: str, number: int = 0, ended: bool = True) -> dict:
    return {"kind": "sample", "step": step, "number": number, "prompt": f"Prompt {number}", "text": text, "ended": ended}


def test_words_that_are_new_are_marked_and_nothing_else():
    assert drawing.changed_words("the cat sat", "the big cat sat") == "the <ins>big </ins>cat sat"
    assert drawing.changed_words("a b c", "a c") == "a c" and drawing.changed_words("a b", "a") in ("a", "<ins>a</ins>")
    assert drawing.changed_words("", "new") == "<ins>new</ins>" and drawing.changed_words("gone", "") == "(nothing)"
    assert drawing.changed_words("a", "<script>{x}") == "<ins>&lt;script&gt;&#123;x&#125;</ins>"


def test_each_prompt_shows_its_answers_newest_first_beside_the_one_before():
    told = [sample(0, "I am a cat"), sample(0, "Hm", 1), sample(5, "I am a dog", ended=False), sample(5, "Hm", 1)]
    shown = drawing.samples(told)
    first, second = shown.split("<details")[1:]
    assert "Prompt 0" in first and first.startswith(" open") and "Prompt 1" in second and not second.startswith(" open")
    assert re.findall(r'class="when">([^<]+)', first) == ["step 5", "before"]
    assert "I am a <ins>dog</ins><i> … did not stop</i>" in first and "I am a cat</span>" in first
    assert "the same</span> Hm" in second
    assert "appear here" in drawing.samples([])


def test_what_was_seen_says_by_its_word_whether_to_mind_it():
    notes = [{"rule": "improving", "message": "Still improving"}, {"rule": "memorising", "message": "it is <memorising>"}]
    first, second = drawing.watched(notes).split("</div>")[:2]
    assert "<b>Note</b>" in first and "<b>Mind</b>" in second and "&lt;memorising&gt;" in second


def test_a_run_that_failed_offers_what_there_is():
    assert quote_view.retry([]) == ""
    both = quote_view.retry([{"settings": {}, "words": "Learning rate 0.005 → 0.002", "harm": "learns slower", "memory_gib": 1.0, "seconds": 60}], 1200)
    assert both.index('data-do="again:0"') < both.index('data-do="keep:"') and "Keep the version of step 1,200" in both
    assert "again" not in quote_view.retry([], 4)


def test_the_quote_says_what_its_report_s_time_means_for_the_held_out_rows():
    made = quote.Quote(plan.Plan(1024, 0, False, True), 12, 4000, 4, 4, {"base": 1.0}, {"training": 20.0}, 8.0, 0.0, True, 90, 300)
    said = lambda **its: quote_view.whole(replace(made, **its), [], [], False, 0)  # noqa: E731
    assert "kept aside" not in said() and "The report at the end" not in said(), "it was asked for, or more would show as much"
    fewer = said(held_out_by="time")
    assert "Of 300 rows kept aside 90 are held out, as many as its report has the time for; the other 210 are neither learned from nor measured." in fewer
    assert "“Held-out rows” under More settings takes another number" in fewer and "done afterwards" not in fewer
    assert "90 are held out, the fewest that can show anything; the other 8,910" in said(held_out_by="fewest", held_out_of=9000)
    assert "done afterwards, while nobody else needs the machine, in about" in said(afterwards_s=200.0)


def test_a_receipt_says_that_a_run_may_hold_out_fewer():
    made = {"rows_in": 4, "steps": [], "train_rows": 3, "split": "by hash", "held_out_rows": 1, "sha256": "0" * 64}
    assert "<b>not</b>" not in drawing.receipt(made, [], "<b>not</b>") and "Fewer" in drawing.receipt(made, [], "Fewer") and "Fewer" not in drawing.receipt(made, [])


def test_a_sweep_is_drawn_with_the_rate_that_a_click_takes_over():
    points = [(0.0, 2.5)] + [(rate, 2.5 - min(rate, 1e-3) * 500) for rate in finder.rates()] + [(0.05, 90.0)]
    shown = trial_view.draw({"kind": trials.RATE, "points": points, "settings": {"learning_rate": 3e-4}})
    assert "0.0003</text>" in shown and "1e-4" in shown and 'class="limit"' in shown
    heights = [float(pair.split(",")[1]) for pair in re.search(r'class="held" points="([^"]+)"', shown)[1].split()]
    assert max(heights) - min(heights) > 80  # the end that ran away does not press the rest flat
    assert all(0 <= height <= 220 for height in heights)


def test_a_learning_curve_is_drawn_with_its_bounds():
    forecast = [{"rows": rows, "low": loss - 0.1, "loss": loss, "high": loss + 0.1} for rows, loss in ((50, 2.0), (100, 1.8), (400, 1.5))]
    shown = trial_view.draw({"kind": trials.ENOUGH, "points": [(50, 2.0), (100, 1.8)], "settings": {}, "forecast": forecast})
    assert shown.count("<circle") == 2 and 'class="band"' in shown and ">400<" in shown
    places = [float(pair.split(",")[0]) for pair in re.search(r'class="expected" points="([^"]+)"', shown)[1].split()]
    assert places == sorted(places) and max(places) <= 360


def test_what_trials_take_is_said_before_they_begin():
    shown = trial_view.costs({trials.RATE: 75.0, trials.ENOUGH: 400.0})
    assert "about <b class=figures>1 min</b>" in shown and "about <b class=figures>7 min</b>" in shown


def test_an_estimate_is_told_as_a_person_says_it():
    """Nobody knows 2 min 37 s beforehand."""
    said = {3: "5 s", 42: "40 s", 58: "1 min", 96: "2 min", 157: "3 min", 560: "9 min", 571: "10 min", 1500: "25 min", 3290: "55 min", 3400: "1 h", 5000: "1 h 30 min", 20_000: "6 h"}
    assert {seconds: drawing.about(seconds) for seconds in said} == said
    values = [drawing.about(seconds) for seconds in range(1, 50_000, 7)]
    assert len(set(values)) < 50 and not [its for its in values if re.search(r"^0|\b0 ", its)]


def test_a_loss_says_on_which_rows_it_was_measured():
    """While it trains a part of the held-out rows may stand for all; the report measures all of them."""
    evals = [{"step": 0, "loss": 3.0, "rows": 24, "best": False}, {"step": 5, "loss": 2.0, "rows": 24, "best": True}]
    assert drawing.curve([], evals, 5, 60).count("held-out loss, 24 of 60 rows") == 2
    assert "held-out loss, all 24 rows" in drawing.curve([], evals, 5, 24) and "held-out loss, 24 rows" in drawing.curve([], evals, 5)
    its = {"id": "1", "title": "Animals", "created": 0, "state": "training", "curve": [], "base_model": "a/b", "first_loss": 3.0, "best_loss": 2.0, "rows": 24, "held_out_rows": 60}
    assert "24 of 60 rows" in drawing.runs_table([its]) and "all 60 rows" in drawing.runs_table([its | {"rows": 60}])
    report = {"base": {"loss": 3.1}, "tuned": {"loss": 2.1}, "change": -0.3, "rows_better": 50, "held_out_rows": 60, "best_step": 5}
    assert "held-out loss, all 60 rows" in drawing.stats(tasks.get("chat").tiles(report))


def test_a_title_is_cut_in_one_way_and_a_moment_names_its_zone(monkeypatch):
    title = "The letters of a long title " * 5
    cut = drawing.short(title)
    assert len(cut) == 40 and "…" in cut
    its = {"id": "1", "title": title, "created": 0, "state": "done", "curve": [], "base_model": "a/b"}
    for shown in (drawing.runs_table([its]), drawing.status(title, "done", "", 1, 1, None), drawing.run_label(title, "done", 0)):
        assert cut in shown
    monkeypatch.setenv("TZ", "JST-9")
    time.tzset()
    assert drawing.when(0) == "01 Jan, 09:00 JST" and drawing.run_label("Animals", "stopped", 0) == "Animals · stopped, result kept · 01 Jan, 09:00 JST"
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize("total, ticks", [(1, ["0", "1"]), (2, ["0", "1", "2"]), (64, ["0", "16", "32", "48", "64"])])
def test_each_step_below_the_curve_stands_once_and_where_it_is(total, ticks):
    drawn = drawing.curve([{"step": 1, "loss": 2.0}], [], total)
    for svg in re.findall(r"<svg.*?</svg>", drawn):
        found = re.findall(r'<text class="tick" x="([\d.]+)" y="[\d.]+" text-anchor="(?:start|middle|end)">([\d,]+)</text>', svg)
        below = [(float(x), words) for x, words in found if words in ticks][-len(ticks) :]
        assert [words for _, words in below] == ticks
        gaps = [b - a for (a, _), (b, _) in zip(below, below[1:])]
        assert max(gaps) - min(gaps) < 0.2
