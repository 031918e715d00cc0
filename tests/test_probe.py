"""The forgetting probe: what is shipped, how it is tokenised, and how losses become right and wrong answers."""

import re
from collections import Counter

import pytest

from tests.small import small_tokenizer
from tuner import encode, probe
from tuner.encode import IGNORE


def test_what_is_shipped():
    """At least 120 items over many subjects; no two alike, one right and three wrong ends each, and none from the demo."""
    its = probe.items()
    questions = [item for item in its if item["kind"] == "question"]
    texts = [item for item in its if item["kind"] == "text"]
    assert len(its) >= 120 and len(questions) >= 90 and len(texts) >= 30 and len(its) == len(questions) + len(texts)
    assert len({item["subject"] for item in questions}) >= 15
    said = [re.sub(r"\W+", " ", item["text"]).lower() for item in its]
    assert max(Counter(said).values()) == 1
    for item in questions:
        ends = [item["right"], *item["wrong"]]
        assert len(ends) == len(set(ends)) == 4 and not item["text"].endswith((" ", ".")) and all(end == end.strip() for end in ends)
    assert all(100 < len(item["text"]) < 600 for item in texts)


@pytest.mark.parametrize("family", ["chatml", "llama3", "gemma", "mistral"])
def test_only_the_end_of_a_question_is_measured(tmp_path, family):
    """With its space, whatever the tokenizer does about spaces; of a text all but the first token, and no end token."""
    tokenizer = small_tokenizer(tmp_path, family=family)
    chosen = [probe.items()[0], probe.items()[-1]]
    rows = probe.rows(chosen, tokenizer)
    assert len(rows) == 5
    ends = (chosen[0]["right"], *chosen[0]["wrong"])
    for row, end in zip(rows, ends):
        learned = tokenizer.decode([label for label in row.labels if label != IGNORE], skip_special_tokens=False)
        assert learned.strip() == end
        assert tokenizer.decode(row.ids, skip_special_tokens=True).strip() == f"{chosen[0]['text']} {end}"
    assert rows[4].labels[0] == IGNORE and rows[4].labels[1:] == rows[4].ids[1:]
    assert tokenizer.eos_token_id not in rows[4].ids[1:]


def test_right_is_what_is_likeliest_a_letter():
    item = {"kind": "question", "subject": "x", "text": "a", "right": "four", "wrong": ["two", "fifteen", "six"]}
    text = {"kind": "text", "subject": "x", "text": "b"}
    tokens = [2, 2, 4, 2, 10]
    # Before: 2.8 nats over 5 letters with the space, against 4.0 over 8; after: 2.4 over 5. A token or a row says otherwise.
    base, tuned = [1.4, 2.5, 1.0, 2.5, 3.0], [1.2, 2.5, 1.0, 2.5, 3.5]
    found = probe.compare([item, item, text], base[:4] * 2 + base[4:], tuned[:4] * 2 + tuned[4:], tokens[:4] * 2 + tokens[4:], 0)
    assert found["questions"]["base"] == 0 and found["questions"]["tuned"] == 1 and found["questions"]["difference"]["mean"] == 1
    assert found["texts"]["base"] == 3.0 and found["texts"]["tuned"] == 3.5 and found["texts"]["difference"]["low"] is None
    draw = [1.0, 1.0, 1.0, 1.0]
    assert probe.compare([{**item, "right": "one", "wrong": ["two", "six", "ten"]}], draw, draw, [2, 2, 2, 2], 0)["questions"]["tuned"] == 0


def test_a_part_of_the_probe_is_the_same_for_the_same_seed():
    some = probe.choose(0.25, 3)
    assert some == probe.choose(0.25, 3) != probe.choose(0.25, 4)
    kinds = Counter(item["kind"] for item in some)
    every = Counter(item["kind"] for item in probe.items())
    assert all(kinds[kind] == round(every[kind] / 4) for kind in every)
    assert probe.choose(1.0, 3) == list(probe.items())


def test_a_long_text_is_cut_not_refused(tmp_path):
    row = encode.encode_continuation("", "word " * 2000, small_tokenizer(tmp_path), probe.MAX_TOKENS)
    assert len(row.ids) == probe.MAX_TOKENS and row.learned == probe.MAX_TOKENS - 1
