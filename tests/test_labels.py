"""Tests of labelled texts without a model: recognised, read, encoded, checked; the figures; and that only tasks/ knows a task's name."""

import ast
import json
import re
from pathlib import Path

import numpy as np
import pytest

from tests.small import small_encoder
from tuner import check, data, findings, fixes, recipe, scan, scores, tasks
from tuner.recipe import Recipe
from tuner.tasks import text_labels

ROOT = Path(__file__).resolve().parent.parent
DESK = ROOT / "presets" / "data" / "library_desk.jsonl"
ANIMALS = "cat dog ball mat bird fish goat hen".split()


def keep(records: list[dict]):
    return data.keep("local", "Rows", records, {"kind": "paste"})


def some(count: int = 24, **more) -> list[dict]:
    return [{"text": f"The {ANIMALS[n % 8]} number {n} sat on mat {n * 7 % 20}.", "label": "ab"[n % 2], **more} for n in range(count)]


# The seam ---------------------------------------------------------------------------------------------------------


def _named(path: Path) -> list[str]:
    """Where a file outside tasks/ writes a task's name, but for the tab and the verb that are called so."""
    tree = ast.parse(path.read_text("utf-8"))
    allowed = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            allowed |= {id(its.value) for its in node.keywords if (called, its.arg) in {("gr.Tab", "id"), ("gr.Tabs", "selected")}}
            allowed |= {id(its) for its in node.args[:1] if called == "verb"}
    for node in ast.walk(tree):
        for value in ast.walk(node) if isinstance(node, ast.Call) and ast.unparse(node.func) == "gr.Tabs" else ():
            allowed.add(id(value))
    return [
        f"{path.name}, line {node.lineno}" for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and node.value in tasks.TASKS and id(node) not in allowed
    ]


@pytest.mark.parametrize("path", [its for its in sorted((ROOT / "tuner").rglob("*.py")) if its.parent.name != "tasks"], ids=lambda its: its.name)
def test_nothing_but_the_tasks_asks_for_a_tasks_name(path):
    assert not _named(path)


def test_every_task_has_the_same_parts():
    """What one task's module offers the engine, every other offers too."""
    used = set()
    for path in [*(ROOT / "tuner").glob("*.py"), *(ROOT / "tuner" / "ui").glob("*.py")]:
        if path.stem == "report":  # the chat's own, see `tasks.chat.report`
            continue
        modules = "module|" if path.stem in ("scan", "check", "findings") else ""
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Attribute) and re.fullmatch(rf"{modules}task|its_task|tasks\.get\([^()]*\)", ast.unparse(node.value)):
                used.add(node.attr)
    assert len(used) > 40
    for name in tasks.TASKS:
        module = tasks.get(name)
        wanted = used | {"TRIED", "occluded"} if module.LABELLED else used - {"item", "thing", "names_in"}
        missing = [its for its in sorted(wanted) if not hasattr(module, its)]
        assert not missing, f"{name} lacks {missing}"


# Recognised -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("records, wanted", [
    (some(), {"text": "text", "label": "label"}),
    ([{"sentence1": f"a {n}", "sentence2": f"b {n}", "label": n % 2} for n in range(12)], {"text": "sentence1", "text_b": "sentence2", "label": "label"}),
    ([{"review": f"review {n}", "sentiment": "good" if n % 3 else "bad"} for n in range(20)], {"text": "review", "label": "sentiment"}),
    ([{"words": f"w {n} and more", "kind": "xyz"[n % 3]} for n in range(40)], {"text": "words", "label": "kind"}),
    ([{"text": f"t {n}", "labels": ["a", "b"][: n % 3]} for n in range(12)], {"text": "text", "label": "labels"}),
    ([{"id": n, "text": f"t {n}", "label": n % 4, "label_text": "wxyz"[n % 4]} for n in range(20)], {"text": "text", "label": "label_text"}),
])
def test_labelled_texts_are_recognised(records, wanted):
    task, mapping = tasks.recognise(records)
    assert task == "text_labels" and mapping.columns == wanted


@pytest.mark.parametrize("records", [
    [{"prompt": f"p {n}", "completion": "ab"[n % 2], "topic": "x"} for n in range(20)],
    [{"text": f"only a text {n}"} for n in range(20)],
    [{"question": f"q {n}", "answer": f"a long and different answer {n}"} for n in range(20)],
    [{"messages": [{"role": "user", "content": f"{n}"}, {"role": "assistant", "content": "b"}], "label": "ab"[n % 2]} for n in range(20)],
    [{"text": f"t {n}", "label": f"every label another {n}"} for n in range(20)],
])
def test_what_is_for_chat_stays_so(records):
    assert tasks.recognise(records)[0] == "chat"


def test_the_task_can_be_changed(home):
    """Texts with labels read as plain texts, and back."""
    dataset = keep(some())
    assert dataset.task == "text_labels"
    data.remap(dataset, "text", {"text": "text"})
    assert dataset.task == "chat" and data.find("local", dataset.id).task == "chat"
    data.remap(dataset, "labelled", {"text": "text", "label": "label"})
    assert check.whole(dataset).row(1)["label"] == "b"


def test_another_task_is_chosen_where_the_columns_hold_something_for_it(home):
    """By hand it stays chosen; where they hold nothing for it, all stays as it was."""
    dataset = keep(some())
    data.choose_task(dataset, "chat")
    again = data.find("local", dataset.id)
    assert again.task == "chat" and again.chosen and again.mapping.format == "text"
    data.choose_task(dataset, "text_labels")
    assert check.whole(dataset).row(1)["label"] == "b"
    talk = data.keep("local", "Talk", [{"prompt": f"p {n}", "completion": f"a longer answer {n}"} for n in range(20)], {"kind": "paste"})
    with pytest.raises(Exception, match="hold no texts with labels"):
        data.choose_task(talk, "text_labels")
    assert data.find("local", talk.id).task == talk.task == "chat"
    with pytest.raises(Exception, match="There is no task 'poems'"):
        data.choose_task(talk, "poems")


def test_each_task_brings_a_demo_and_its_starter_first(home):
    for name in tasks.TASKS:
        demo = data.load_demo("local", name)
        assert demo.task == name and demo.source["kind"] == "demo" and data.load_demo("local", name).id == demo.id
        first = next(its for its in recipe.presets().values() if its.task == name)
        assert first.dataset == f"data/{demo.source['file']}"
    assert next(iter(recipe.presets().values())).task == tasks.DEFAULT


@pytest.mark.parametrize("value, wanted", [
    ("a", ("a",)), (3, ("3",)), (2.0, ("2",)), (True, ("true",)), (["b", "a", "b"], ("a", "b")), ([], ()), ('["x", "y"]', ("x", "y")), (-1, None), ("", None), (None, None), ({}, None),
])
def test_what_a_label_is(value, wanted):
    assert text_labels.label_of(value) == wanted


# Encoded ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return small_encoder(tmp_path_factory.mktemp("encoder"))


def test_the_cut_is_shown_and_falls_on_the_longer_text(encoder):
    """Both texts are seen from their beginnings; what is cut is what the model does not get."""
    tokenizer = text_labels.load_tokenizer(str(encoder))
    row = {"text": "the cat sat on the mat " * 8, "text_b": "the dog", "label": "a"}
    [its] = text_labels.encode_row(row, tokenizer, Recipe(max_tokens=20))
    assert len(its.ids) == 20 and its.cut == len(its.offsets) - 20 > 0
    pieces = its.pieces()
    assert "".join(text for text, state, _ in pieces if state == "cut").strip().startswith(("the", "cat", "sat", "on", "mat"))
    assert pieces[-1] == ("\n→ a", "learned", False) and ("the dog", "seen", False) in pieces
    assert its.second == its.ids.index(3) + 1  # BERT tells the second text apart


def test_no_row_is_longer_than_the_model_reads(encoder):
    tokenizer = text_labels.load_tokenizer(str(encoder))
    [its] = text_labels.encode_row({"text": "cat " * 500, "label": "a"}, tokenizer, Recipe(max_tokens=1024))
    assert len(its.ids) == tokenizer.context == 64 and its.cut > 400


def test_a_control_token_inside_a_text_has_no_power(encoder):
    tokenizer = text_labels.load_tokenizer(str(encoder))
    row = {"text": "the cat [SEP] the dog", "label": "a"}
    ids = [text_labels.encode_row(row, tokenizer, Recipe(keep_control_tokens=its))[0].ids.count(3) for its in (False, True)]
    assert ids == [1, 2]


# Checked ----------------------------------------------------------------------------------------------------------


def test_one_text_with_two_labels_is_found_and_stays_on_one_side(home, encoder):
    records = [*some(40), {"text": "The cat number 0 sat on mat 0.", "label": "b"}, {"text": "", "label": "a"}, {"text": "A bird.", "label": None}]
    rows = check.whole(keep(records), scan.Look.of(Recipe(task="text_labels"), encoder))
    found = {its.name: its for its in findings.find(rows, Recipe(task="text_labels"))}
    assert found["two_labels"].rows == 2 and found["no_text"].rows == found["no_label"].rows == 1
    assert sorted(rows.origins[rows.mask("two_labels", Recipe())].tolist()) == [0, 40]
    held, _ = rows.held_out(0.3, 0)
    assert len(set(held[rows.mask("two_labels", Recipe())].tolist())) == 1


def test_rare_and_unbalanced_classes_are_found_whatever_labels_are_called(home):
    long = "a label of more than forty letters, as somebody will surely have it"
    records = [{"text": f"The {ANIMALS[n % 8]} sat on mat {n}, and then on {n * 13 % 101}.", "label": long if n < 3 else "other"} for n in range(60)]
    found = {its.name: its for its in findings.find(check.whole(keep(records)), Recipe(task="text_labels"))}
    assert found["rare_label"].rows == 3 and found["unbalanced"].rows == 57 and "class_weights" in found["unbalanced"].why


def test_classes_are_counted_on_both_sides_of_the_split(home):
    """A row with several labels counts for each of them."""
    rows = check.whole(keep(some(40)))
    held, _ = rows.held_out(0.25, 0)
    counts = dict((name, (train, kept)) for name, train, kept in rows.class_counts(Recipe(task="text_labels", held_out_share=0.25)))
    labels = np.array([rows.row(n)["label"] for n in range(40)])
    assert counts == {name: (int(np.sum((labels == name) & ~held)), int(np.sum((labels == name) & held))) for name in "ab"}
    several = check.whole(keep([{"text": f"The {ANIMALS[n % 8]} {n} and {n * 7}", "labels": ["a", "b"][: 1 + n % 2]} for n in range(40)]))
    assert {name: train + kept for name, train, kept in several.class_counts(Recipe(task="text_labels"))} == {"a": 40, "b": 20}


@pytest.mark.parametrize("rare, wanted", [(20, False), (10, True)])
def test_classes_are_unbalanced_from_three_to_one_on(home, rare, wanted):
    records = [{"text": f"The {ANIMALS[n % 8]} sat on {n} of {n * 31 % 97}.", "label": "a" if n < rare else "b"} for n in range(40)]
    assert check.whole(keep(records)).is_unbalanced() is wanted


def test_one_class_stops_a_run(home):
    found = findings.find(check.whole(keep(some()[::2])), Recipe(task="text_labels"))
    assert found[0].level == "stop" and "one and the same label" in found[0].why


def test_spellings_of_a_label_are_merged(home, encoder):
    records = some(40)
    records[0]["label"] = "A"
    dataset = keep(records)
    dataset.steps.append(fixes.step("label_spelling", "merge", Recipe(task="text_labels"), str(encoder)))
    rows = check.work(dataset, None)
    assert {rows.row(n)["label"] for n in range(40)} == {"a", "b"}


# The shipped rows -------------------------------------------------------------------------------------------------


def test_the_shipped_rows_are_what_the_readme_promises(home):
    """1,665 rows, 400 held out, nine unbalanced classes, none twice or nearly so, on either side of the split."""
    records = [json.loads(line) for line in DESK.read_text("utf-8").splitlines()]
    assert len(records) == 1665 and sum(its["split"] == "test" for its in records) == 400
    labels = [its["label"] for its in records]
    counts = {name: labels.count(name) for name in set(labels)}
    assert len(counts) == 9 and max(counts.values()) > 5 * min(counts.values())
    rows = check.whole(keep(records))
    found = {its.name for its in findings.find(rows, Recipe(task="text_labels"))}
    assert not found & {"duplicate", "near_duplicate", "leak", "near_leak", "two_labels", "personal", "secret", "mojibake"}


def test_the_presets_for_labels_load():
    made = [its for its in recipe.presets().values() if its.task == "text_labels"]
    assert len(made) >= 5 and all(its.base_model and its.dataset for its in made)


# Figures ----------------------------------------------------------------------------------------------------------


def test_the_figures_are_scikit_learns():
    """Accuracy, macro-F1, precision, recall and the confusion matrix, on classes of which one is never given and one never guessed."""
    from sklearn import metrics

    rng = np.random.default_rng(0)
    truth, guess = rng.choice([0, 1, 2, 4], 200), rng.choice([0, 1, 3, 4], 200)
    hot, guessed = scores.one_hot(truth, 6), scores.one_hot(guess, 6)
    assert scores.accuracy(hot, guessed) == metrics.accuracy_score(truth, guess)
    assert scores.macro_f1(hot, guessed) == pytest.approx(metrics.f1_score(truth, guess, average="macro"))
    wanted = metrics.precision_recall_fscore_support(truth, guess, labels=range(6), zero_division=0)
    its = scores.by_class(hot, guessed)
    assert [one["precision"] or 0 for one in its] == pytest.approx(wanted[0]) and [one["recall"] or 0 for one in its] == pytest.approx(wanted[1])
    assert its[5]["precision"] is its[5]["recall"] is None and its[2]["precision"] is None and its[3]["recall"] is None
    assert scores.confusion(truth, guess) == metrics.confusion_matrix(truth, guess).tolist()


def test_calibration_is_the_gap_between_sure_and_right():
    its = scores.calibration(np.array([0.95, 0.95, 0.95, 0.95, 0.55, 1.0]), np.array([1, 1, 0, 0, 1, 1], bool))
    [low, high] = its["bins"]
    assert low["rows"] == 1 and high["rows"] == 5 and high["right"] == pytest.approx(0.6)
    assert its["ece"] == pytest.approx((5 * abs(0.96 - 0.6) + 0.45) / 6)


def test_the_interval_of_a_difference_is_paired():
    """Two classifiers that err on the same rows differ surely, however wide each one's own interval is."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 200)
    base = np.where(rng.random(200) < 0.4, 1 - truth, truth)
    tuned = base.copy()
    wrong = np.flatnonzero(base != truth)[:20]
    tuned[wrong] = truth[wrong]
    its = scores.interval(*(scores.one_hot(one, 2) for one in (truth, tuned, base)), scores.macro_f1, 0)
    own = scores.own_interval(scores.one_hot(truth, 2), scores.one_hot(base, 2), scores.macro_f1, 0)
    assert 0 < its["low"] < its["mean"] < its["high"] and its["high"] - its["low"] < 0.7 * (own[1] - own[0])
