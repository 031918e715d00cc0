"""Tests of findings: every fault is told, with exactly the rows that have it."""

import math
from dataclasses import replace

import numpy as np
import pytest

from tests import faulty
from tests.small import real_template, small_tokenizer
from tests.test_encode import TEMPLATES
from tuner import check, data, encode, findings, scan, tasks, turns
from tuner.errors import UserError
from tuner.recipe import Recipe

# Told by presence or by intervals, in tests of their own.
OTHERS = {"nothing_to_learn", "few_rows"}
NEAR = {"near_duplicate", "near_leak"}


@pytest.fixture(scope="module")
def eyes(tmp_path_factory):
    return faulty.eyes(tmp_path_factory.mktemp("eyes"))


@pytest.fixture(scope="module")
def home_of_all(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNER_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="module")
def mixed(home_of_all, eyes):
    """(what was made, the rows as the check gives them)"""
    its = faulty.make()
    return its, check.work(faulty.keep(its, faulty.MAPPING), scan.Look.of(faulty.RECIPE, eyes))


@pytest.fixture(scope="module")
def labelled(home_of_all):
    its = faulty.labels()
    return its, check.work(faulty.keep(its), None)


MIXED, LABELS = faulty.make().counts, faulty.labels().counts


def test_every_fault_is_made():
    """No finding is without its test."""
    assert set(MIXED) | set(LABELS) | OTHERS == set(findings.FAULTS) | set(turns.FAULTS)
    assert len(faulty.make().records) >= 600


@pytest.mark.parametrize("name", sorted(set(MIXED) - NEAR))
def test_exactly_the_rows_with_a_fault_are_found(mixed, name):
    """Not one row more or less, in a mixture of all faults; and that number is told."""
    its, rows = mixed
    found = {finding.name: finding.rows for finding in findings.find(rows, faulty.RECIPE)}
    assert found.get(name, 0) == MIXED[name]
    if findings.FAULTS.get(name, turns.FAULTS.get(name)).left_out:
        assert {place for place, faults in enumerate(its.faults) if name in faults} == set(rows.left_out[name].tolist())
    elif name != "duplicate":
        places = rows.places[rows.mask(name, faulty.RECIPE)].tolist()
        assert places == [place for place, faults in enumerate(its.faults) if name in faults]


def test_nothing_else_is_found(mixed, labelled):
    """Of what was not made, nothing is told."""
    its, rows = mixed
    assert {finding.name for finding in findings.find(rows, faulty.RECIPE)} <= set(MIXED) | {"few_rows"}
    assert {finding.name for finding in findings.find(labelled[1], Recipe())} <= set(LABELS) | {"few_rows", "repeated_refusal"}
    assert len(rows) + sum(map(len, rows.left_out.values())) == len(its.records) == rows.came_in


def test_copies_are_told_but_for_the_first(mixed):
    """Which of two stands first depends on their order alone."""
    its, rows = mixed
    for index in np.flatnonzero(rows.mask("duplicate", faulty.RECIPE)):
        first = rows.row(int(rows.same[index]))
        assert first["messages"] == rows.row(int(index))["messages"] and rows.same[index] < index


@pytest.mark.parametrize("name", sorted(NEAR))
def test_near_copies_are_found(mixed, name):
    """At least 95 of 100 that are told are near copies, and of 100 near copies at least 95 are told."""
    its, rows = mixed
    told = rows.places[rows.mask(name, faulty.RECIPE)].tolist()
    if name == "near_leak":
        made = {its.pair[place] for place, faults in enumerate(its.faults) if "near leak" in faults}
        right = [its.pair[place] for place in told if "near leak" in its.faults[place]]
    else:
        made = set(its.pair) - {None}
        right = [its.pair[place] for place in told if its.pair[place] is not None]
    assert len(set(right)) >= 0.95 * len(made) and len(right) >= 0.95 * len(told) and len(set(right)) == len(right)


@pytest.mark.parametrize("name", sorted(LABELS))
def test_exactly_the_labels_with_a_fault_are_found(labelled, name):
    """Spellings, rare classes and the usual one; a sentence among labels is neither."""
    its, rows = labelled
    [found] = [finding for finding in findings.find(rows, Recipe()) if finding.name == name]
    assert found.rows == LABELS[name]
    assert rows.places[rows.mask(name, Recipe())].tolist() == [place for place, faults in enumerate(its.faults) if name in faults]
    assert {"label_spelling": "4 labels are spelled in 7 ways", "unbalanced": "413 rows of the largest class, 3 of the smallest; 69%", "rare_label": ""}[name] in found.more


def test_prose_has_no_labels(mixed, home_of_all):
    """Different short answers are no classes, and ten equal ones are one."""
    assert mixed[1].labels is None
    for answers in ([str(n) for n in range(40)], ["yes"] * 40, ["yes", "no"] * 4):
        kept = data.keep("ann", "x", [{"prompt": f"Question {n}?", "completion": a} for n, a in enumerate(answers)], {})
        assert check.work(kept, None).labels is None


def test_the_worst_is_told_first(mixed):
    """By level, then by how many rows."""
    found = findings.find(mixed[1], faulty.RECIPE)
    order = [(findings.LEVELS.index(finding.level), -finding.rows) for finding in found]
    assert order == sorted(order) and len(found) > 20 and {finding.level for finding in found} == {"harm", "mind", "note"}


def test_figures_are_told_beside_the_counts(mixed, eyes):
    """What is lost by a cut, by encoding each row with it; how many finds of what kind; the context."""
    _, rows = mixed
    more = {finding.name: finding.more for finding in findings.find(rows, faulty.RECIPE)}
    tokenizer, lost, answers, hit = encode.load_tokenizer(str(eyes)), 0, 0, 0
    for index in np.flatnonzero(rows.mask("cut", faulty.RECIPE)):
        sequences = tasks.get("chat").encode_row(rows.row(int(index)), tokenizer, faulty.RECIPE)
        lost += sum(sequence.cut for sequence in sequences)
        gone = sum(sum(sequence.would_learn[len(sequence.ids) :]) for sequence in sequences)
        answers, hit = answers + gone, hit + (gone > 0)
    assert more["cut"] == f"{lost:,} tokens at their ends are lost, {answers:,} of them of answers, in {hit:,} rows."
    assert more["personal"] == "9 e-mail addresses." and more["secret"] == "7 API keys."
    assert more["beyond_context"] == f"It reads 1,500 tokens; the longest row has {rows.lengths.max():,}."


def test_a_check_without_a_tokenizer_tells_all_else(mixed, home_of_all):
    """No base model can be had: what needs its tokens is not told, and nothing fails."""
    rows = replace(mixed[1], tokens=None)
    found = {finding.name: finding.rows for finding in findings.find(rows, faulty.RECIPE)}
    assert not {"cut", "teaches_nothing", "refused", "control_tokens", "beyond_context"} & set(found)
    assert found["personal"] == MIXED["personal"]


def test_calls_and_their_results_are_in_order():
    """Two results behind one call are no role twice; a call without words is no empty turn."""
    call = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}]}
    result = {"role": "tool", "content": "Sun"}
    assert turns.faults({"messages": [*ASKED, call, result, result, *SAID]}) == set()
    assert turns.faults({"messages": [*ASKED, *SAID, result, *SAID]}) == {"roles_out_of_order"}


def test_an_unknown_finding_is_refused(mixed):
    with pytest.raises(UserError, match="There is no finding 'wizardry'. There are: no_prompt, "):
        mixed[1].mask("wizardry", faulty.RECIPE)


# Few rows, nothing to learn ---------------------------------------------------------------------------------------


def test_the_half_width_is_that_of_a_share():
    """Of an unknown share near one half, 95 % lie within: checked against drawing them."""
    for count in (1, 20, 97, 1000):
        assert findings.half_width(count) == pytest.approx(0.98 / math.sqrt(count))
    drawn = np.random.default_rng(0).binomial(400, 0.5, 200_000) / 400
    assert np.mean(np.abs(drawn - 0.5) <= findings.half_width(400)) == pytest.approx(0.95, abs=0.01)
    assert findings.half_width(0) == findings.half_width(1)


@pytest.mark.parametrize(("count", "level"), [(30, "mind"), (150, "mind"), (600, "note"), (1100, None)])
def test_few_rows_are_told_with_what_they_can_show(home_of_all, count, level):
    """How many, how varied, how uncertain; above a thousand nothing."""
    say = faulty.Words(count).text
    records = [{"prompt": say(9), "completion": say(9)} for _ in range(count)]
    rows = check.work(data.keep("ann", "x", records, {}), None)
    found = [finding for finding in findings.find(rows, Recipe(held_out_share=0.1)) if finding.name == "few_rows"]
    assert [finding.level for finding in found] == [level] * (level is not None)
    for finding in found:
        held = round(0.1 * count)
        assert finding.rows == count - held
        assert f"{count - held:,} of the {count - held:,} training rows differ clearly" in finding.why
        assert f"On {held} held-out rows a share is uncertain by ±{98 / math.sqrt(held):.0f} percentage points" in finding.why
    fewer = next(finding for finding in findings.find(rows, Recipe(held_out_share=0.1, held_out_rows=2)) if finding.name == "few_rows")
    assert "On 2 held-out rows a share is uncertain by ±69 percentage points" in fewer.why


def test_a_run_that_would_learn_nothing_is_stopped(home_of_all, eyes):
    """All equal; or every answer behind the cut, in the training rows or in the held-out ones."""
    look = scan.Look.of(Recipe(), eyes)
    equal = check.work(data.keep("ann", "x", [{"prompt": "a", "completion": "b"}] * 5, {}), look)
    assert [(f.name, f.level) for f in findings.find(equal, Recipe())][0] == ("nothing_to_learn", "stop")
    say = faulty.Words(0).text
    records = [{"prompt": say(9), "completion": say(9), "split": "test" if n % 4 == 0 else "train"} for n in range(12)]
    rows = check.work(data.keep("ann", "x", records, {}), look)
    assert "nothing_to_learn" not in [finding.name for finding in findings.find(rows, Recipe())]
    first = findings.find(rows, Recipe(max_tokens=16))[0]
    assert (first.name, first.level) == ("nothing_to_learn", "stop") and "No training row has an answer within its first 16 tokens" in first.why
    for record in records:
        if record["split"] == "test":
            record["prompt"] = faulty.Words(1).signs(400)
    rows = check.work(data.keep("ann", "x", records, {}), look)
    assert "No held-out row has an answer" in findings.find(rows, faulty.RECIPE)[0].why


# Tokens under any cut ---------------------------------------------------------------------------------------------

SAID = [{"role": "assistant", "content": "In Italy, of course.\n"}]
ASKED = [{"role": "user", "content": "Where is Rome?"}]
ROWS = [
    {"messages": [*ASKED, *SAID]}, {"messages": [*ASKED, *SAID, *ASKED, {"role": "assistant", "content": "漢字 🙂 <|im_end|></s>"}, *ASKED, *SAID]},
    {"messages": [*ASKED, {"role": "assistant", "content": "\n\nYes.", "reasoning_content": "So."}, *ASKED, *SAID]},
    {"text": "A text that is learned whole; with <|im_end|> in it."}, {"messages": [*ASKED, {"role": "assistant", "content": ""}, *ASKED, *SAID]},
    {"messages": [*SAID, *ASKED, *SAID]}, {"messages": [*ASKED, *ASKED, *SAID]},
    {"messages": [{"role": "system", "content": "Be kind."}, *ASKED, *SAID, *ASKED, *SAID]},
]


@pytest.mark.parametrize("learn", ["answers", "everything"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_any_cut_is_told_as_the_trainer_makes_it(tmp_path, name, learn):
    """What is kept of a row before any cut gives, for every cut, what encoding with that cut gives."""
    tokenizer = small_tokenizer(tmp_path, real_template(name), TEMPLATES[name][0])
    recipe, chat = Recipe(learn=learn), tasks.get("chat")
    tokens = scan.tokenise(ROWS, scan.Look.of(recipe, tmp_path))
    assert np.count_nonzero(tokens.flags & 1) < len(ROWS) - 4
    cuts = [16, 17, 18, *range(20, int(tokens.length.max()) + 2, 3)] + [10**6]
    for most in cuts:
        learned, place = tokens.learned(most), 0
        for number, row in enumerate(ROWS):
            try:
                sequences = chat.encode_row(row, tokenizer, replace(recipe, max_tokens=most))
            except UserError:
                assert tokens.flags[number] & 1
                continue
            assert not tokens.flags[number] & 1
            for sequence in sequences:
                assert (tokens.row[place], learned[place]) == (number, sequence.learned)
                assert min(tokens.length[place], most) == len(sequence.ids) and tokens.length[place] == len(sequence.offsets)
                place += 1
        assert place == len(learned)


def test_another_cut_needs_no_new_encoding(mixed, monkeypatch):
    """The slider answers at once, and as a fresh look would."""
    _, rows = mixed
    from tuner.tasks import chat

    monkeypatch.setattr(chat, "encode_row", lambda *args: pytest.fail("encoded anew"))
    for most in (16, 200, 1200, 13_000):
        found = {finding.name: finding.rows for finding in findings.find(rows, replace(faulty.RECIPE, max_tokens=most))}
        assert found.get("cut", 0) == np.count_nonzero(rows.lengths > most)
        if most == 16:
            assert found["cut"] == len(rows) - MIXED["refused"]
        if most == 1200:
            assert found["cut"] == MIXED["beyond_context"] and "teaches_nothing" not in found
        if most == 13_000:
            assert "cut" not in found


@pytest.mark.parametrize("wanted", [[0, 1, 2], [4, 1], [], [7, 6, 5, 3]])
def test_tokens_of_some_rows_are_those_rows_tokens(tmp_path, wanted):
    """Picked and put in another order, or joined from parts, they are what encoding those rows gives."""
    small_tokenizer(tmp_path, real_template("qwen3"), "qwen")
    look = scan.Look.of(Recipe(), tmp_path)
    whole = scan.tokenise(ROWS, look)
    expected = scan.tokenise([ROWS[place] for place in wanted], look)
    joined = scan.Tokens.joined([scan.tokenise(ROWS[:3], look), scan.tokenise([], look), scan.tokenise(ROWS[3:], look)])
    for tokens in (whole.of(np.array(wanted, np.int64)), joined.of(np.array(wanted, np.int64))):
        for name in ("row", "length", "spans", "span_of", "flags"):
            assert np.array_equal(getattr(tokens, name), getattr(expected, name)), name
