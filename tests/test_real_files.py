"""Real datasets, against a plain reference: what the check counts is what a reader of the file counts."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tuner import check, data, encode, findings, reading, scan, starter
from tuner.recipe import Recipe

REAL = Path(__file__).resolve().parent.parent.parent / "shared" / "data"

# Counted by hand or by a few plain lines (see below); each row named was looked at.
FOUND = {
    "alpaca_en_demo.json": {"duplicate": 14, "personal": 3, "markdown": 1, "unlike_length": 4},
    "glaive_toolcall_en_demo.json": {
        "duplicate": 35, "near_duplicate": 15, "personal": 11, "markdown": 1, "teaches_nothing": 1, "cut": 28, "beyond_context": 1,
        "unlike_length": 8, "few_rows": 270,
    },
    "c4_demo.jsonl": {
        "personal": 10, "mojibake": 1, "replacement": 4, "html": 3, "cut": 41, "beyond_context": 1, "unlike_length": 11, "few_rows": 270,
    },
}


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory):
    if not starter.is_installed():
        pytest.skip("the starter model's package is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNER_HOME", str(tmp_path_factory.mktemp("starter")))
        return starter.prepare()


def checked(name: str, tokenizer_dir) -> tuple[findings.Rows, list[dict]]:
    if not (REAL / name).is_file():
        pytest.skip(f"{name} is not beside the project")
    dataset, notes = data.create("anna", name, {"kind": "file"}), []
    data.take(dataset, reading.read([(REAL / name, name)], notes, dataset.folder), notes)
    data.settle(dataset)
    text = (REAL / name).read_text("utf-8")
    raw = [json.loads(line) for line in text.splitlines()] if name.endswith("jsonl") else json.loads(text)
    return check.work(dataset, scan.Look.of(Recipe(), tokenizer_dir)), raw


@pytest.mark.parametrize("name", FOUND)
def test_what_is_found_in_a_real_file(home, tokenizer_dir, name):
    rows, raw = checked(name, tokenizer_dir)
    assert rows.came_in == len(rows) == len(raw)
    assert {its.name: its.rows for its in findings.find(rows, Recipe())} == FOUND[name]
    copies = Counter(json.dumps(record, sort_keys=True) for record in raw)
    assert sum(copies.values()) - len(copies) == FOUND[name].get("duplicate", 0)


@pytest.mark.parametrize("name", FOUND)
def test_tokens_of_ten_rows_are_those_of_the_plain_tokenizer(home, tokenizer_dir, name):
    """Rendered and tokenised by transformers alone, not by ours; every answer's text is what is learned."""
    rows, raw = checked(name, tokenizer_dir)
    tokenizer = encode.load_tokenizer(str(tokenizer_dir))
    some = np.linspace(0, len(rows) - 1, 12).astype(int)
    for index in some:
        row = rows.row(int(index))
        if "text" in row:
            ids = tokenizer(row["text"])["input_ids"] + [tokenizer.eos_token_id]
            learned = len(ids) - 1
        else:
            messages = [{"role": its["role"], "content": its["content"]} for its in row["messages"]]
            if row.get("tools") or any(its.get("tool_calls") for its in row["messages"]):
                continue  # this template has no place for tools; ours puts them into texts
            ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
            answers = [its["content"] for its in messages if its["role"] == "assistant"]
            learned = sum(len(tokenizer(answer, add_special_tokens=False)["input_ids"]) + 1 for answer in answers)
        assert abs(int(rows.lengths[index]) - len(ids)) <= 1, index  # the template's last line break
        assert int(rows.per_row(rows.tokens.learned(10**9))[index]) == learned, index


def test_the_turns_of_a_tool_conversation(home, tokenizer_dir):
    """Counted from the raw file: which turns call, which answer, and what the tools are."""
    rows, raw = checked("glaive_toolcall_en_demo.json", tokenizer_dir)
    for index in range(0, 300, 25):
        turns, row = raw[index]["conversations"], rows.row(index)
        said = [turn for turn in row["messages"] if turn["role"] != "system"]
        assert len(said) == len(turns)
        calls = sum(turn["from"] == "function_call" for turn in turns)
        assert sum(bool(turn.get("tool_calls")) for turn in said) == calls
        assert sum(turn["role"] == "tool" for turn in said) == sum(turn["from"] == "observation" for turn in turns)
        assert len(row.get("tools") or []) == len(json.loads(raw[index]["tools"] or "[]"))
