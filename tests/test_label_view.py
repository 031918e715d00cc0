"""What the page shows of labels: every figure of the report, nothing of a row or a label taken as HTML, and what can be pressed."""

import re

import pytest

from tuner import figures, tasks
from tuner.recipe import Recipe
from tuner.ui import label_view, report_view, try_view
from tuner.ui.drawing import text

NASTY = '<img src=x onerror="a()">{{$'
CLASSES = ["fees", NASTY, "holds"]


def report(**changes) -> dict:
    """A report of three classes as `label_report.make` gives it; made up."""
    side = {
        "loss": 1.0, "accuracy": 0.6, "macro_f1": 0.5, "accuracy_interval": [0.5, 0.7], "macro_f1_interval": [0.4, 0.6],
        "by_class": [{"rows": 4, "precision": 0.5, "recall": 0.75, "f1": 0.6}, {"rows": 3, "precision": None, "recall": 0.0, "f1": 0.0}, {"rows": 3, "precision": 1.0, "recall": 1.0, "f1": 1.0}],
        "calibration": {"ece": 0.123, "bins": [{"low": 0.5, "high": 0.6, "rows": 4, "sure": 0.55, "right": 0.5}, {"low": 0.9, "high": 1.0, "rows": 6, "sure": 0.97, "right": 0.8}]},
    }
    change = {"mean": 0.1, "low": 0.02, "high": 0.18, "rows": 10}
    shown = {"row": 7, "text": f"a text {NASTY}", "wanted": "fees", "base": {"label": "holds", "probability": 0.4}, "tuned": {"label": NASTY, "probability": 0.93}}
    return {
        "held_out_rows": 10, "train_rows": 90, "best_step": 12, "classes": CLASSES, "several": False, "majority": {"accuracy": 0.4, "macro_f1": 0.19},
        "base": {**side, "macro_f1": 0.4, "strength": 0.01, "rows": 90}, "tuned": side, "change": 0.1,
        "difference": {"loss": {"mean": -0.2, "low": -0.3, "high": -0.1, "rows": 10}, "accuracy": change, "macro_f1": change}, "over_majority": {},
        "confusion": {"base": [[3, 1, 0], [3, 0, 0], [0, 0, 3]], "tuned": [[3, 1, 0], [3, 0, 0], [0, 0, 3]], "rows": [[[1, 2, 3], [4], []], [[5, 6, 7], [], []], [[], [], [8, 9, 10]]]},
        "rows": {"surest": [shown], "most_wrong": []}, "probe": {"items": 114, "of": 114, "subjects": None, "fell": False, "says": "What was forgotten was not measured."}, "says": ["It is better."],
    } | changes


def test_the_report_has_all_three_classifiers_and_every_class():
    task = tasks.get("text_labels")
    page = report_view.whole(report(), task)
    for its in task.measures(report()):
        shown = figures.shown(its)
        assert all(f">{text(shown[name])}<" in page for name in ("name", "base", "tuned")) and f"change {text(shown['change'])}<" in page
    first = re.search(r"Macro-F1.*?change", page, re.DOTALL)[0]
    assert re.findall(r'<div class="pair (\w+)"><span>(\w+)</span>', first) == [("majority", "largest"), ("base", "frozen"), ("tuned", "tuned")]
    assert re.findall(r'width:([\d.]+)%"></span>', first) == ["19.00", "40.00", "50.00"] and "19.0 %" in first
    assert page.count("<tr><td>") >= 3 and "75.0 %" in page and "—" in page  # a precision that nothing was guessed for
    assert "50.0 % (40.0 to 60.0)" in page and "12.3 %" in page and NASTY not in page and text(NASTY) in page
    assert "Wrong, and most sure of it: there are none." in page


@pytest.mark.parametrize("weights, offered", [("none", True), ("balanced", False)])
def test_a_class_that_is_never_found_has_advice_that_is_not_followed_already(weights, offered):
    [said] = tasks.get("text_labels").advice(report(class_weights=weights))
    assert "bring more rows of it" in said and ("set class_weights to balanced" in said) is offered


def test_the_matrix_leads_to_its_rows_only_for_whose_run_it_is():
    mine, theirs = (label_view.report(report(), pressable) for pressable in (True, False))
    assert sorted(re.findall(r'data-do="(cell:\d:\d)"', mine)) == ["cell:0:0", "cell:0:1", "cell:1:0", "cell:2:2"]
    assert "data-do" not in theirs and theirs.count('class="figures" title=') == 4
    shown = label_view.cell_rows(report(), 1, 0, [(5, {"text": NASTY}), (6, {"text": "b"})])
    assert "2 rows" in shown and "Row 5" in shown and NASTY not in shown
    many = [f"class {n}" for n in range(40)]
    wide = report(classes=many, confusion={"tuned": [[int(j == i + 1) * i for j in range(40)] for i in range(40)], "rows": []})
    assert "Most often taken for another" in label_view._matrix(wide, True) and "<table" not in label_view._matrix(wide, True)


def test_a_picture_is_only_ever_a_picture():
    assert "<img" in label_view.thing({"picture": "data:image/png;base64,AAAA"})
    for bad in ("javascript:alert(1)", "data:text/html;base64,AAAA", 'data:image/png;base64,AA" onerror="x', "https://example.org/a.png"):
        assert "<img" not in label_view.thing({"picture": bad, "text": "a"})


def test_classes_are_drawn_to_scale_with_both_parts():
    drawn = label_view.classes([("few", 10, 5), (NASTY, 60, 40)])
    assert drawn.index(text(NASTY)) < drawn.index("few") and NASTY not in drawn
    assert re.findall(r"of-(train|held)\" style=\"width:([\d.]+)%", drawn) == [("train", "60.00"), ("held", "40.00"), ("train", "10.00"), ("held", "5.00")]
    assert "12 smaller classes with 12 rows are not drawn" in label_view.classes([(f"c{n}", 1, 0) for n in range(52)])


def test_scores_are_drawn_where_there_are_any():
    assert label_view.curve([{"step": 0, "loss": 1.0, "perplexity": 3.0}], 10) == ""
    drawn = label_view.curve([{"step": 0, "macro_f1": 0.1, "accuracy": 0.2, "best": True}, {"step": 8, "macro_f1": 0.5, "accuracy": 0.6, "best": True}], 10)
    assert "best 50.0 %" in drawn and "Step 8: accuracy 60.0 %" in drawn and "from 10.0 % to 50.0 %" in drawn


def test_words_that_mattered_are_marked_and_the_rest_is_as_it_was():
    its = tasks.get("text_labels").thing({"text": f"A late {NASTY} fee"})
    found = {"tuned": {"fees": 0.9, "holds": 0.1}, "base": None, "cut": 3, "parts": [
        {"of": "text", "start": 0, "end": 1, "drop": 0.001}, {"of": "text", "start": 2, "end": 6, "drop": 0.5}, {"of": "text", "start": len(its["text"]) - 3, "end": len(its["text"]), "drop": 0.03},
    ]}
    drawn = label_view.tried([its], [found])
    assert re.findall(r'<mark class="(m\d)" title="([^"]+)">(\w+)</mark>', drawn) == [("m4", "−50 points without it", "late"), ("m1", "−3 points without it", "fee")]
    assert re.sub(r"</?mark[^>]*>", "", re.search(r'<div class="answer">(.*?)</div>', drawn)[1]) == text(its["text"])
    assert "by occlusion" in drawn and "3 tokens at its end were not read" in drawn and "Kept only with the run itself" in drawn and NASTY not in drawn
    none = label_view.tried([its], [{**found, "parts": [{"of": "text", "start": 0, "end": 1, "drop": -0.2}]}])
    assert "No single word mattered" in none


def test_what_is_brought_becomes_one_thing_or_one_a_line():
    assert try_view.values_of("a\nb", "", False, False) == ["a\nb"]
    assert try_view.values_of("a\n\n b \n", "", True, False) == ["a", " b "]
    assert try_view.values_of("a\nb", "c\nd", True, True) == [["a", "c"], ["b", "d"]]
    for args, words in ((("  ", "", False, False), "Write a text first"), (("a", "", False, True), "Write both"), (("a\nb", "c", True, True), "Write as many in both")):
        try:
            try_view.values_of(*args)
        except Exception as error:
            assert words in str(error)
        else:
            raise AssertionError(words)


@pytest.mark.parametrize("task", ["text_labels", "image_labels"])
def test_weighing_alike_is_offered_where_classes_are_unbalanced_until_it_is_chosen(task):
    offers = tasks.get(task).offers
    (its,) = offers(Recipe(task=task), "llama", 500, True)
    assert 'data-do="set:class_weights=balanced"' in label_view.offer(*its)
    assert offers(Recipe(task=task, class_weights="balanced"), "llama", 500, True) == [] == offers(Recipe(task=task), "llama", 500, False)


def test_holding_the_head_to_the_bases_features_is_offered_for_few_rows_of_a_bert_alone():
    recipe, task = Recipe(task="text_labels"), tasks.get("text_labels")
    (its,) = task.offers(recipe, "bert", 500, False)
    assert its[2] == "feature_distillation=3" and 'data-do="set:feature_distillation=3"' in label_view.offer(*its)
    assert not task.offers(Recipe(task="text_labels", feature_distillation=1.0), "bert", 500, False)
    assert not task.offers(recipe, "bert", 50_000, False) and not task.offers(recipe, "llama", 500, False)
    assert len(task.offers(recipe, "bert", 500, True)) == 2 and not tasks.get("chat").offers(Recipe(), "bert", 500, True)
