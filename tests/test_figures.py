"""What a report says: intervals against a plain reference, agreement of texts, and sentences that must and must not be said."""

import copy
import math
import random

import numpy as np
import pytest

from tuner import figures

FLAT = {"mean": 0.0, "low": -0.01, "high": 0.01, "rows": 30}


def report(**changes) -> dict:
    """A report of a run that went well, with some parts changed."""
    made = {
        "held_out_rows": 30, "held_out_tokens": 900, "best_step": 40, "change": -0.25, "rows_better": 27, "rows_worse": 3,
        "base": {"loss": 4.0, "perplexity": 54.598, "token_accuracy": 0.31}, "tuned": {"loss": 3.0, "perplexity": 20.085, "token_accuracy": 0.402},
        "difference": {
            "loss": {"mean": -1.0, "low": -1.2, "high": -0.8, "rows": 30}, "perplexity": {"mean": -34.5, "low": -38.2, "high": -30.1, "rows": 30},
            "token_accuracy": {"mean": 0.092, "low": 0.05, "high": 0.13, "rows": 30},
        },
        "answers": {
            "asked": 30, "only_short": False, "made": 30, "of": 30, "paces": {"short": {"most_tokens": 32}, "others": {"most_tokens": 60}}, "base": {"stopped": 0.5}, "tuned": {"stopped": 1.0}, "difference": {"stopped": FLAT},
            "short": {"rows": 12, "of": 12, "base": {"exact_match": 0.0, "f1": 0.1}, "tuned": {"exact_match": 0.25, "f1": 0.4}, "difference": {"exact_match": FLAT, "f1": FLAT}},
        },
        "probe": {
            "share": 1.0, "items": 120, "of": 120, "fell": False, "says": "No loss of general ability was seen (…).",
            "questions": {"items": 90, "base": 0.8, "tuned": 0.78, "difference": FLAT}, "texts": {"items": 30, "base": 3.2, "tuned": 3.21, "difference": FLAT},
        },
    }
    for path, value in changes.items():
        its = made
        *parents, last = path.split("__")
        for name in parents:
            its = its[name]
        its[last] = value
    return made


def test_the_interval_is_that_of_resampled_rows():
    """Against the same written out in plain Python, and against the normal formula, which it must come close to."""
    draw = random.Random(1)
    its = [draw.gauss(-0.3, 1.0) for _ in range(200)]
    weights = [1 + n % 7 for n in range(200)]
    found = figures.interval(its, weights, seed=5)
    drawn, means = np.random.default_rng(5), []
    for _ in range(2000):
        chosen = drawn.integers(200, size=200).tolist()
        means.append(sum(its[n] * weights[n] for n in chosen) / sum(weights[n] for n in chosen))
    means.sort()
    assert found["low"] == pytest.approx(np.percentile(means, 2.5)) and found["high"] == pytest.approx(np.percentile(means, 97.5))
    assert found["mean"] == pytest.approx(sum(a * w for a, w in zip(its, weights)) / sum(weights))
    plain = figures.interval(its)
    half = 1.96 * float(np.std(its)) / math.sqrt(200)
    assert plain["high"] - plain["low"] == pytest.approx(2 * half, rel=0.1)
    assert figures.interval(its, weights, seed=5) == found != figures.interval(its, weights, seed=6)


def test_an_interval_is_paired_and_honest_about_few_rows():
    """Rows that all moved by the same amount leave no doubt, however far apart they lie; one row alone has no interval."""
    before = np.linspace(0, 50, 40)
    found = figures.interval((before - 0.5) - before)
    assert found["low"] == pytest.approx(-0.5) and found["high"] == pytest.approx(-0.5)
    assert figures.interval([0.2]) == {"mean": 0.2, "low": None, "high": None, "rows": 1}
    assert figures.interval([]) == {"mean": None, "low": None, "high": None, "rows": 0}


def test_nineteen_of_twenty_intervals_hold_the_truth():
    random_rows = np.random.default_rng(0)
    held = sum(its["low"] <= 0.4 <= its["high"] for its in (figures.interval(random_rows.normal(0.4, 1, 60), seed=n) for n in range(200)))
    assert 180 <= held <= 198


@pytest.mark.parametrize("hits, count, low, high", [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (0, 0, 0.0, 1.0), (50, 100, 0.4038, 0.5962)])
def test_wilson(hits, count, low, high):
    """Against the figures that statsmodels' proportion_confint(method="wilson") gives."""
    assert figures.wilson(hits, count) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


@pytest.mark.parametrize("said, wanted, same, f1", [
    ("Paris", "paris.", True, 1.0), ("The cat sat.", "the  cat sat", True, 1.0), ("the cat", "the dog", False, 0.5), ("", "Paris", False, 0.0),
    ("-5", "5", False, 1.0), ("3.5", "3,5", False, 1.0), ("a b c d", "a b", False, 2 / 3), ("东京都", "东京", False, 0.8), ("!", "?", False, 0.0),
    ("to be or not to be", "to be", False, 0.5),
])
def test_agreement_of_texts(said, wanted, same, f1):
    """Case, spaces and the last full stop do not matter; a minus sign does."""
    assert figures.exact_match(said, wanted) is same and figures.token_f1(said, wanted) == pytest.approx(f1)


def test_every_figure_is_shown_with_its_change_and_interval():
    shown = {its["name"]: its for its in map(figures.shown, figures.measures(report()))}
    assert shown["Loss (nats a token)"] == {"name": "Loss (nats a token)", "of": "30 held-out rows", "base": "4.0000", "tuned": "3.0000", "change": "−1.0000 (−1.2000 to −0.8000)"}
    assert shown["Token accuracy"]["base"] == "31.0 %" and shown["Token accuracy"]["change"] == "+9.2 (+5.0 to +13.0)"
    assert shown["Perplexity"]["tuned"] == "20.09" and shown["Exact match"]["of"] == "12 short answers"
    assert len(shown) == 8
    part = {its["name"]: its["of"] for its in figures.measures(report(answers__short__of=25, answers__only_short=True, answers__asked=12))}
    assert part["Token F1"] == "12 of 25 short answers" and part["Answers that stop by themselves"] == "12 short answers"
    without = report(answers__short=None, answers__asked=0)
    assert [its["name"] for its in figures.measures(without)] == ["Loss", "Perplexity", "Token accuracy", "General questions right", "Loss on general text"]


@pytest.mark.parametrize("better, low, high, general, wanted", [
    ("lower", -0.3, -0.1, False, "better"), ("higher", -0.3, -0.1, False, "worse"), ("lower", 0.01, 0.1, False, "worse"), ("higher", 0.01, 0.1, False, "better"),
    ("lower", -0.1, 0.1, False, "may be chance"), ("higher", 0.0, 0.0, False, "the same"), ("lower", None, None, False, ""),
    ("lower", 0.01, 0.1, True, "a little worse"), ("lower", 0.06, 0.1, True, "worse"), ("lower", -0.2, -0.1, True, "better"), ("higher", 0.0, 0.2, False, "may be chance"),
])
def test_the_verdict_on_one_figure(better, low, high, general, wanted):
    assert figures.verdict({"better": better, "low": low, "high": high, "general": general, "unit": "nats"}) == wanted


@pytest.mark.parametrize("changes, words, silent", [
    ({}, ["Better on rows it never saw: the loss went from 4.0000 to 3.0000, and 27 of 30 rows became likelier."], ["Worse", "kept", "rough", "answered", "by themselves"]),
    ({"difference__loss": {"low": 0.1, "high": 0.3}}, ["Worse on rows it never saw"], ["Better"]),
    ({"difference__loss": {"low": -0.1, "high": 0.3}}, ["No clear change", "may be chance"], ["Better", "Worse"]),
    ({"difference__loss": {"low": None, "high": None}, "held_out_rows": 1}, ["One held-out row alone says little"], ["rough"]),
    ({"held_out_rows": 8}, ["With 8 held-out rows the intervals are rough"], []),
    ({"best_step": 6}, ["The version of step 6 is kept, not that of the last step (40)"], []),
    ({"answers__tuned": {"stopped": 0.4}}, ["Of its answers 40 % end by themselves within 60 tokens, 32 where the row's own answer is short (base: 50 %)"], []),
    ({"answers__tuned": {"stopped": 0.4}, "answers__paces": {"others": {"most_tokens": 60}}}, ["40 % end by themselves within 60 tokens (base"], []),
    ({"answers__tuned": {"stopped": 0.4}, "answers__paces": {"short": {"most_tokens": 35}}}, ["40 % end by themselves within 35 tokens (base"], []),
    ({"answers__tuned": {"stopped": 0.4}, "answers__only_short": True}, ["40 % end by themselves within 32 tokens (base"], []),
    ({"answers__asked": 16, "answers__of": 300}, ["16 of 300 held-out rows were answered in full, chosen by the seed, to keep to the time"], ["short"]),
    ({"answers__asked": 12, "answers__of": 300, "answers__only_short": True}, ["12 of 300 held-out rows were answered in full, those whose own answer is short, to"], ["seed"]),
    ({"answers__asked": 12, "answers__of": 300, "answers__only_short": True, "held_out_of": 300}, ["chosen by the seed from those whose own answer is short, to"], ["the losses are those of all"]),
    ({"answers__asked": 12, "answers__of": 300, "answers__only_short": True, "answers__short__of": 99}, ["in full, chosen by the seed from those whose own answer is short, to"], []),
])
def test_the_sentences(changes, words, silent):
    said = "\n".join(figures.verdicts(report(**changes), last_step=40))
    assert not [its for its in words if its not in said] and not [its for its in silent if its in said], said


def test_falling_general_ability_is_said_and_chance_is_not():
    def its(low, high):
        return {"items": 90, "base": 0.8, "tuned": 0.7, "difference": {"mean": -0.1, "low": low, "high": high}}

    calm = {"items": 30, "base": 3.0, "tuned": 3.0, "difference": {"low": -0.01, "high": 0.02}}
    fell, says = figures.forgetting(its(-0.2, -0.02), calm)
    assert fell and says.startswith("General ability fell: it answers fewer general questions (80 % of 90 general questions right before, 70 % after")
    fell, says = figures.forgetting(its(-0.2, 0.01), calm)
    assert not fell and says.startswith("No clear loss of general ability (80 %") and says.endswith("may be chance.")
    fell, says = figures.forgetting({**its(-0.1, 0.1), "difference": {"mean": 0.0, "low": -0.1, "high": 0.1}}, calm)
    assert not fell and says.startswith("No loss of general ability was seen")
    loud = {"items": 30, "base": 3.0, "tuned": 3.4, "difference": {"low": 0.2, "high": 0.6}}
    fell, says = figures.forgetting(its(-0.2, 0.01), loud)
    assert fell and "ordinary text has become less likely" in says and "perplexity of 30 general texts +49 %" in says
    quiet = {"items": 30, "base": 3.0, "tuned": 3.03, "difference": {"low": 0.02, "high": 0.04}}
    assert not figures.forgetting(its(-0.2, 0.01), quiet)[0]
    assert figures.forgetting(None, None) == (False, "General ability was not measured.")


def test_advice_is_given_where_something_went_wrong_only():
    assert figures.advice(report()) == []
    assert figures.advice(report(difference__loss={"low": 0.1, "high": 0.3})) == ["Lower the learning rate, or bring more rows."]
    assert figures.advice(report(probe__fell=True)) == ["Fewer epochs, a lower learning rate or a lower rank forget less."]


def test_a_report_of_an_older_form_is_none():
    class Old:
        def __init__(self, kept):
            self.kept = kept

        def read(self, _name):
            return copy.deepcopy(self.kept)

    assert figures.of(Old({"base": {"loss": 1.0}, "answers": []})) is None and figures.of(Old(None)) is None
    assert figures.of(Old(report())) == report()
