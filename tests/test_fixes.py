"""Tests of fixes: what each puts right, that nothing else changes, that it can be taken back; and of the receipt."""

import hashlib
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from tests import faulty
from tuner import check, data, findings, fixes, personal, receipt, run, scan, tasks, turns
from tuner import recipe as recipe_module
from tuner.errors import UserError
from tuner.recipe import Recipe

ALL = {**turns.FAULTS, **findings.FAULTS}
OFFERED = [(name, fix) for name, fault in ALL.items() for fix in fault.fixes]
OF_LABELS = {"label_spelling", "rare_label", "unbalanced"}
# What a fix leaves because it cannot be helped: turns that cannot be joined into order, one long answer, one long prompt.
STAYS = {("refused", "join"): 18, ("cut", "split"): 20, ("beyond_context", "split"): 8, ("teaches_nothing", "split"): 6}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(mixed dataset, dataset of labels, the folder of the tokenizer), looked at once; to be copied."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNER_HOME", str(tmp_path_factory.mktemp("home")))
        eyes = faulty.eyes(tmp_path_factory.mktemp("eyes"))
        mixed, labels = faulty.keep(faulty.make(), faulty.MAPPING), faulty.keep(faulty.labels())
        for dataset in (mixed, labels):
            check.work(dataset, scan.Look.of(faulty.RECIPE, eyes))
        yield mixed, labels, eyes


@pytest.fixture
def dataset(made, request):
    return faulty.copy(made[0], scan.short_hash(request.node.name))


def look(made) -> scan.Look:
    return scan.Look.of(faulty.RECIPE, made[2])


def take(dataset, made, *steps: tuple[str, str]) -> findings.Rows:
    """The rows after these steps."""
    for finding, fix in steps:
        check.fix(dataset, finding, fix, faulty.RECIPE, str(made[2]))
        rows = check.work(dataset, look(made))
    return rows


def said(rows) -> list[str]:
    """What each row says, in order; from the rows themselves."""
    return [scan.content(rows.row(index)) for index in range(len(rows))]


@pytest.mark.parametrize(("name", "fix"), OFFERED)
def test_every_fix_puts_its_finding_right_and_touches_nothing_else(made, request, name, fix):
    """Afterwards that finding is gone, or what is left is what cannot be helped; other rows and the file are as they were."""
    dataset = faulty.copy(made[1 if name in OF_LABELS else 0], scan.short_hash(request.node.name))
    before = check.work(dataset, look(made))
    hit, kept = before.mask(name, faulty.RECIPE), (dataset.folder / "records.arrow").read_bytes()
    assert hit.any()
    check.fix(dataset, name, fix, faulty.RECIPE, str(made[2]))
    left = STAYS.get((name, fix), 0)
    if left == np.count_nonzero(hit):
        with pytest.raises(UserError, match=f"None of the {left} rows can be put right so"):
            check.work(dataset, look(made))
        assert dataset.steps == data.find("ann", dataset.id).steps == []
        return
    after = check.work(dataset, look(made))
    assert np.count_nonzero(after.mask(name, faulty.RECIPE)) == left
    was, now = said(before), said(after)
    assert not Counter(text for text, its in zip(was, hit) if not its) - Counter(now)
    assert (dataset.folder / "records.arrow").read_bytes() == kept
    step = after.steps[-1]
    assert (step["finding"], step["fix"]) == (name, fix) and step["rows_out"] == len(after)
    assert step["rows"] == np.count_nonzero(hit) - left
    gone = np.count_nonzero(hit)
    if fix in ("drop", "deduplicate"):
        assert now == [text for text, its in zip(was, hit) if not its] and len(after) == len(before) - gone
    elif fix == "to_training":
        assert now == was and np.array_equal(np.flatnonzero(after.own != before.own), np.flatnonzero(hit))
    elif fix in ("mask", "merge", "join"):
        assert len(now) == len(was) and [a == b for a, b in zip(was, now)].count(False) == step["rows"]
    # What was seen of the changed rows is what a fresh look at them sees.
    rows = [after.row(index) for index in range(len(after))]
    seen, _, _ = scan.describe([json.dumps(row, ensure_ascii=False) for row in rows], 0, None, "chat", np.zeros(0, np.uint32))
    assert np.array_equal(after.seen["same"], seen["same"]) and np.array_equal(after.seen["flags"], seen["flags"])
    if (name, fix) not in OFFERED[::3]:  # a third of them is enough, and takes a third of the time
        return
    fresh = scan.tokenise(rows, look(made))
    for field in ("row", "length", "spans", "span_of", "flags"):
        assert np.array_equal(getattr(after.tokens, field), getattr(fresh, field)), field


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_step_taken_back_leaves_what_the_others_give(made, request, number):
    """The first, the middle and the last one, each as if it had never been taken."""
    steps = [("cut", "split"), ("personal", "mask"), ("duplicate", "deduplicate")]
    undone, fresh = (faulty.copy(made[0], scan.short_hash([request.node.name, which])) for which in "ab")
    take(undone, made, *steps)
    check.undo(undone, number)
    again = check.work(data.find("ann", undone.id), look(made))
    expected = take(fresh, made, *(step for place, step in enumerate(steps) if place != number))
    assert said(again) == said(expected)
    assert np.array_equal(again.own, expected.own) and np.array_equal(again.near, expected.near)
    assert [(s["finding"], s["rows"], s["rows_out"]) for s in again.steps] == [(s["finding"], s["rows"], s["rows_out"]) for s in expected.steps]
    with pytest.raises(UserError, match="There is no step 3 to take back; there are 2"):
        check.undo(undone, 2)


def test_a_step_without_its_reason_stays_and_does_nothing(made, dataset):
    """Where an earlier step is taken back that the later one was for, the later one is kept and counts 0."""
    take(dataset, made, ("personal", "mask"), ("html", "drop"))
    before = said(check.work(dataset, look(made)))
    check.fix(dataset, "duplicate", "deduplicate", faulty.RECIPE, "")
    check.work(dataset, look(made))
    dataset.steps.insert(0, fixes.step("html", "drop", faulty.RECIPE, ""))
    again = check.work(dataset, look(made))
    assert [step["rows"] for step in again.steps] == [6, 9, 0, 12] and len(again) == len(before) - 12


def test_a_step_with_nothing_to_do_is_refused(made, dataset):
    """In words, and the steps are those from before; the same where the small check is asked by the page."""
    take(dataset, made, ("html", "drop"))
    steps = dataset.steps
    check.fix(dataset, "html", "drop", faulty.RECIPE, "")
    with pytest.raises(UserError, match=r"No row has that \(Left-over HTML\). Nothing was changed"):
        check.rows_of(dataset, look(made))
    assert dataset.steps == data.find("ann", dataset.id).steps == steps
    assert len(check.rows_of(dataset, look(made)).steps) == 1


def test_a_step_that_would_leave_nothing_is_refused(home):
    """All rows dropped is no dataset; and a file of changed rows may be empty."""
    kept = data.keep("ann", "x", [{"prompt": f"mail bob{n}@example.com", "completion": "ok"} for n in range(3)], {})
    check.fix(kept, "personal", "drop", Recipe(), "")
    with pytest.raises(UserError, match="That would leave no row"):
        check.work(kept, None)
    assert kept.steps == []
    records = [{"messages": [{"role": "assistant", "content": "a"}]}] + [faulty.chat(("user", "a"), ("assistant", "b"))] * 2
    kept = data.keep("ann", "x", records, {})
    check.fix(kept, "roles_out_of_order", "trim", Recipe(), "")
    rows = check.work(kept, None)
    assert len(rows) == 2 and rows.steps[0]["rows"] == 1


@pytest.mark.parametrize(
    ("finding", "fix", "words"),
    [
        ("wizardry", "drop", "There is no finding 'wizardry'. There are: no_prompt,"),
        ("cut", "wizardry", "cut cannot be put right by 'wizardry'. What can be done: split, drop"),
        ("duplicate", "mask", "duplicate cannot be put right by 'mask'. What can be done: deduplicate"),
        ("unreadable", "drop", "What can be done: nothing; such rows are left out by themselves"),
    ],
)
def test_unknown_findings_and_fixes_are_refused_by_name(made, dataset, finding, fix, words):
    with pytest.raises(UserError, match=words):
        check.fix(dataset, finding, fix, faulty.RECIPE, "")
    assert data.find("ann", dataset.id).steps == []


def test_every_fix_has_its_words():
    """On the button and on the receipt."""
    assert {fix for _, fix in OFFERED} == set(fixes.FIXES)


# Single fixes -----------------------------------------------------------------------------------------------------


def test_a_row_split_at_its_turns_loses_no_answer(made, dataset):
    """All parts fit, begin with a question and say together what the row said; they stay on one side of the split."""
    before = check.work(dataset, look(made))
    hit = before.mask("cut", faulty.RECIPE)
    after = take(dataset, made, ("cut", "split"))
    parts = {}
    for index in np.flatnonzero(after.places >> np.uint64(40)):
        parts.setdefault(int(after.origins[index]), []).append(int(index))
    assert len(parts) == 10 and set(parts) <= set(before.places[hit].tolist())
    for origin, indices in parts.items():
        turns_of = [after.row(index)["messages"] for index in indices]
        assert len(indices) > 1 and all(its[0]["role"] == "user" and its[-1]["role"] == "assistant" for its in turns_of)
        [index] = np.flatnonzero(before.places == origin)
        assert [turn for its in turns_of for turn in its] == before.row(int(index))["messages"]
        assert (after.lengths[indices] <= faulty.MAX_TOKENS).all() and len(set(after.together[indices])) == 1
        assert {after.row(index)["n"] for index in indices} == {origin + 1}


def test_parts_of_a_text_stay_together(made, home):
    """A long text is cut between its words; all of it is still there, on one side of the split."""
    say = faulty.Words(3).text
    records = [{"text": say(300 if n < 3 else 9)} for n in range(30)]
    kept = data.keep("ann", "x", records, {})
    recipe = Recipe(max_tokens=200, held_out_share=0.3)
    check.fix(kept, "cut", "split", recipe, str(made[2]))
    rows = check.work(kept, look(made))
    assert len(rows) > 40 and not rows.mask("cut", recipe).any()
    for seed in range(5):
        held, _ = rows.held_out(0.3, seed)
        for origin in range(3):
            its = np.flatnonzero(rows.origins == origin)
            assert len(set(held[its])) == 1
            assert " ".join(rows.row(int(i))["text"].strip() for i in its).split() == records[origin]["text"].split()


PRIVATE = ["bob.miller@example.com", "+1 415 555 2671", "4111 1111 1111 1111", "AKIA" + "Q3XT7MNB" + "2KLP5ZRW"]


def test_no_personal_data_is_left_anywhere(made, home):
    """In every turn, in reasoning, and in a call's arguments: nested, as numbers, as names, and told by a name only."""
    arguments = {
        "to": PRIVATE[0], "nested": {"list": [{"card": PRIVATE[2]}, PRIVATE[3]]}, "phone": "5551234567", "card": 4111111111111111,
        PRIVATE[0]: True, "telephone": 4155552671, "count": 3, "ok": False, "none": None, "part": 1.5,
    }
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "send", "arguments": arguments}]}
    messages = [
        {"role": "system", "content": f"You are {PRIVATE[0]}."}, {"role": "user", "content": " ".join(PRIVATE)}, call,
        {"role": "tool", "content": json.dumps({"mail": PRIVATE[0], "phone": "5551234567"})},
        {"role": "assistant", "content": f"Sent to {PRIVATE[1]}.", "reasoning_content": f"Ask {PRIVATE[0]}"},
    ]
    kept = data.keep("ann", "x", [{"messages": messages}, {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}], {})
    assert check.work(kept, None).mask("secret", Recipe()).tolist() == [True, False]
    check.fix(kept, "personal", "mask", Recipe(), "")
    rows = check.work(kept, None)  # one mask takes both kinds
    row = rows.row(0)
    text = json.dumps(row)
    assert not any(find in text for find in PRIVATE) and "5551234567" not in text and "4155552671" not in text
    assert "4111111111111111" not in text and personal.find(text) == []
    masked = row["messages"][2]["tool_calls"][0]["function"]["arguments"]
    assert (masked["count"], masked["ok"], masked["none"], masked["part"]) == (3, False, None, 1.5) and masked["to"] == "[EMAIL]"
    assert not rows.seen["personal"].any()


def test_leaks_moved_to_training_are_none(made, dataset):
    """Exact and near ones; the rest of the source's split stays."""
    rows = take(dataset, made, ("leak", "to_training"), ("near_leak", "to_training"))
    held, words = rows.held_out(0.1, 0)
    assert words == "the dataset's own split"
    both = set(rows.near[held].tolist()) & set(rows.near[~held].tolist())
    assert not both and np.count_nonzero(held) == 84


def test_masks_and_repairs_do_not_arm_control_tokens(made, home):
    """What stands on both sides of a control token is one once it is gone; it goes too."""
    kept = data.keep("ann", "x", [{"prompt": "a<start_<end_of_turn>of_turn>b", "completion": "c"}, {"prompt": "d", "completion": "e"}], {})
    check.fix(kept, "control_tokens", "trim", Recipe(), str(made[2]))
    rows = check.work(kept, look(made))
    assert rows.row(0)["messages"][0]["content"] == "ab" and not rows.mask("control_tokens", Recipe()).any()


def test_a_sentence_among_labels_is_never_overwritten(made, request):
    """Merging spellings changes labels, and leaves an answer that is none."""
    dataset = faulty.copy(made[1], scan.short_hash(request.node.name))
    rows = take(dataset, made, ("label_spelling", "merge"))
    answers = Counter(tasks.get("chat").answer(rows.row(i))[0] for i in range(len(rows)))
    assert {answer: count for answer, count in answers.items() if count > 1} == {"Yes": 413, "No": 136, "Perhaps": 30, "Never": 3}
    assert list(answers.values()).count(1) == 18


def test_another_mapping_keeps_nothing_of_the_first(home):
    """Boilerplate, changed rows and near ones are each mapping's own, also when one comes back to the first."""
    say = faulty.Words(5).text
    shared, records = say(30), []
    for _ in range(40):
        records.append({"a": f"{shared} {say(20)}", "b": say(30)})
    kept = data.keep("ann", "x", records, {}, data.Mapping("text", {"text": "a"}))
    first = check.work(kept, None)
    data.remap(kept, "text", {"text": "b"})
    check.work(kept, None)
    data.remap(kept, "text", {"text": "a"})
    part = check.first_part(kept)
    assert len(scan.without_of(part)) > 50  # what nearly all rows of that column share
    again = check.work(kept, None)
    assert np.array_equal(first.near, again.near)


def test_a_step_is_taken_with_its_own_eyes(made, dataset, tmp_path):
    """A dataset put right under one base model is looked at through many others, then a step is taken back."""
    rows = take(dataset, made, ("cut", "split"), ("html", "drop"))
    others = [scan.Look(str(made[2]), f"Be {n}.", "answers", False, "2026-01-01") for n in range(5)]
    for other in others:
        check.work(dataset, other)
    assert not scan.tokens_dir(rows.parts[0], look(made)).exists()
    check.undo(dataset, 0)  # the other one is taken again, with eyes whose tokens are gone by now
    assert [step["rows"] for step in check.work(dataset, others[0]).steps] == [6]


# The receipt ------------------------------------------------------------------------------------------------------


def hash_of(run) -> str:
    """Over the rows as the run's folder holds them."""
    digest = hashlib.sha256()
    for part in ("train", "held_out"):
        for line in (run.folder / "data" / f"{part}.jsonl").read_text("utf-8").split("\n")[:-1]:
            row = json.loads(line)
            said = json.dumps({k: v for k, v in row.items() if k not in ("n", "split", "group")}, sort_keys=True, ensure_ascii=False)
            digest.update(hashlib.blake2b(said.encode(), digest_size=16).digest())
    return digest.hexdigest()


def test_the_receipt_adds_up(made, dataset):
    """Rows in, less and more by each step, are rows out; the hash is that of the rows in the run's folder."""
    take(dataset, made, ("cut", "split"), ("duplicate", "deduplicate"), ("personal", "mask"), ("html", "drop"))
    going = run.create("ann", faulty.RECIPE, dataset)
    its = going.read("data/receipt")
    assert its["rows_in"] == len(faulty.make().records) and its["source"]["name"] == "faulty"
    left, steps = its["steps"][:-4], its["steps"][-4:]
    assert {step["step"]: step["rows"] for step in left} == {
        f"{ALL[name].title}: left out": 3 for name in ("no_prompt", "empty_answer", "no_answer", "unknown_role", "unreadable")
    }
    count = its["rows_in"] - 15
    assert [step["rows"] for step in steps] == [10, 12, 9, 6] and steps[0]["rows_out"] > count
    assert [step["rows_out"] for step in steps[1:]] == [steps[0]["rows_out"] - 12, steps[0]["rows_out"] - 12, steps[0]["rows_out"] - 18]
    assert its["rows_out"] == steps[-1]["rows_out"] == its["train_rows"] + its["held_out_rows"]
    assert its["held_out_rows"] == len(lines_of(going, "held_out")) and its["train_rows"] == len(lines_of(going, "train"))
    assert its["sha256"] == hash_of(going)


def lines_of(run, part: str) -> list[str]:
    return (run.folder / "data" / f"{part}.jsonl").read_text("utf-8").split("\n")[:-1]


def test_a_run_takes_no_more_rows_than_it_can_use(home, monkeypatch):
    """Few steps on many rows take a seeded part of them, and measuring has its bound; both are on the receipt."""
    say = faulty.Words(7).text
    rows = check.work(data.keep("ann", "x", [{"prompt": say(5), "completion": say(5)} for _ in range(400)], {}), None)
    monkeypatch.setattr(receipt, "MOST_HELD_OUT", 30)
    monkeypatch.setattr(recipe_module, "MOST_HELD_OUT", 30)
    recipe = Recipe(held_out_share=0.2, max_steps=5, batch_size=4)
    assert len(receipt.choose(rows, recipe).train) == 320  # few enough to be encoded all the same
    monkeypatch.setattr(receipt, "ENOUGH_AT_ONCE", 100)
    chosen = receipt.choose(rows, recipe)
    held, _ = rows.held_out(0.2, 0)
    assert (len(chosen.train), len(chosen.held_out)) == (40, 30)
    assert [step["rows"] for step in chosen.steps] == [50, 280]
    assert held[chosen.held_out].all() and not held[chosen.train].any() and (np.diff(chosen.train) > 0).all() and (np.diff(chosen.held_out) > 0).all()
    again, other = receipt.choose(rows, recipe), receipt.choose(rows, Recipe(held_out_share=0.2, max_steps=5, batch_size=4, seed=1))
    assert np.array_equal(again.train, chosen.train) and not np.array_equal(other.train, chosen.train)
    its = receipt.make({}, rows, chosen)
    assert its["rows_in"] - sum(step["rows"] for step in its["steps"]) == its["rows_out"] == 70
    assert len(receipt.choose(rows, Recipe(held_out_share=0.2, max_steps=20, batch_size=4)).train) == 320  # 4 * 80: all of them
    assert len(receipt.choose(rows, Recipe(held_out_share=0.2)).train) == 320
    few, fewer = (receipt.choose(rows, replace(recipe, held_out_rows=most)) for most in (12, 7))
    assert (len(few.held_out), len(fewer.held_out)) == (12, 7) and set(fewer.held_out) < set(few.held_out) < set(chosen.held_out)
    assert np.array_equal(few.train, chosen.train), "what is learned does not depend on how much is measured"
    assert few.steps[0] == {"step": "rows kept aside, neither trained on nor measured, since the run holds out 12", "rows": 68}
    assert few.split.endswith("; 12 of them by the seed") and chosen.split.endswith("; 30 of them by the seed")
    assert np.array_equal(receipt.choose(rows, replace(recipe, held_out_rows=80)).held_out, np.flatnonzero(held))
