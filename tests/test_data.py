"""Tests of datasets: every column layout and template, records kept and found again, and who owns what."""

import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tuner import check, data, reading, run, scan
from tuner.errors import UserError
from tuner.home import DEMO_ROOT
from tuner.reading import Broken
from tuner.recipe import Recipe
from tuner.tasks import chat

REAL = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
RECORDS = [
    {"prompt": "Where is Paris?", "completion": "In France; of course."},
    {"prompt": "And Rome, the old one?", "completion": 'In "Italy".'},
    {"prompt": "漢字?", "completion": "Zeichen\nauf zwei Zeilen"},
]
FEW = settings(
    max_examples=100, derandomize=True, deadline=None, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def rows_of(records, columns=None):
    """The task's rows of records, by the mapping that is recognised."""
    mapping = chat.recognise(records)
    if columns is not None:
        assert mapping.columns == columns
    return data.to_rows(records, mapping)[0]


def said(row) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in row["messages"]]


# Columns ----------------------------------------------------------------------------------------------------------

LAYOUTS = [
    ("messages", {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]},
     "Chat messages (role, content)"),
    ("sharegpt", {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}, "ShareGPT (from, value)"),
    ("sharegpt", {"chat": json.dumps([{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}])}, "ShareGPT (from, value)"),
    ("alpaca", {"instruction": "Q", "input": "", "output": "A"}, "Alpaca (instruction, input, output)"),
    ("pair", {"prompt": "Q", "completion": "A"}, "Prompt and completion"),
    ("pair", {"Question": "Q", "ANSWER": "A", "id": 4}, "Prompt and completion"),
    ("pair", {"input": "Q", "output": "A"}, "Prompt and completion"),
    ("pair", {"query": "Q", "response": "A"}, "Prompt and completion"),
    ("pair", {"": "0", "prompt": "Q", "completion": "A"}, "Prompt and completion"),
    ("pair", {"Unnamed: 0": "0", "question": "Q", "answer": "A"}, "Prompt and completion"),
    ("pair", {"Frage": "Q", "Antwort": "A"}, "Prompt and completion"),
    ("pair", {"prompt": "Q", "completion": "A", "tools": "hammer"}, "Prompt and completion"),
]


@pytest.mark.parametrize(("format", "record", "words"), LAYOUTS)
def test_every_layout_is_recognised_and_named(format, record, words):
    """The page shows the guess in words, and the row holds the question and the answer, nothing else."""
    mapping = chat.recognise([record] * 3)
    assert (mapping.format, chat.FORMATS[mapping.format][0]) == (format, words)
    assert mapping.reason
    [row], _ = data.to_rows([record], mapping)
    assert said(row) == [("user", "Q"), ("assistant", "A")]
    chat.check_mapping(mapping, [record])


def test_a_context_joins_its_instruction():
    """Alpaca's input follows the instruction on a new line, and only where there is one."""
    records = [{"instruction": "Add.", "input": "1 2", "output": "3"}, {"instruction": "Hi.", "input": "  ", "output": "Ho."}]
    rows = rows_of(records, {"prompt": "instruction", "completion": "output", "context": "input"})
    assert [said(row)[0] for row in rows] == [("user", "Add.\n1 2"), ("user", "Hi.")]


def test_sharegpt_roles_are_mapped_and_its_tools_kept():
    """human, gpt, function_call and observation become what templates know; a call is a call, not a text."""
    call = {"name": "weather", "arguments": {"city": "Rome"}}
    record = {
        "conversations": [
            {"from": "system", "value": "Be kind."}, {"from": "human", "value": "Weather?"},
            {"from": "function_call", "value": json.dumps(call)}, {"from": "observation", "value": "Sun"},
            {"from": "gpt", "value": "Sunny."},
        ],
        "tools": json.dumps([{"name": "weather", "parameters": {}}]),
    }
    [row] = rows_of([record], {"messages": "conversations", "tools": "tools"})
    assert [message["role"] for message in row["messages"]] == ["system", "user", "assistant", "tool", "assistant"]
    assert row["messages"][2]["tool_calls"] == [{"type": "function", "function": call}]
    assert row["tools"] == [{"type": "function", "function": {"name": "weather", "parameters": {}}}]


def test_calls_as_openai_writes_them_reach_the_template_as_objects():
    """Arguments stored as JSON text would be quoted twice by templates that write JSON themselves."""
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    record = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": None, "tool_calls": [call]}]}
    [row] = rows_of([record])
    assert row["messages"][1]["tool_calls"][0]["function"] == {"name": "weather", "arguments": {"city": "Rome"}}


def test_messages_keep_what_a_template_can_use():
    """Blocks of text are joined, developer is system, reasoning stays beside its answer."""
    record = {"messages": [
        {"role": "developer", "content": "Be kind."},
        {"role": "User", "content": [{"type": "text", "text": "Hel"}, {"type": "image"}, {"type": "text", "text": "lo"}, {"text": None}]},
        {"role": "assistant", "content": "Hi.", "reasoning_content": "A greeting."},
        {"role": "function_call", "content": "weather()"}, {"role": "observation", "content": "Sun"},
    ]}
    [row] = rows_of([record])
    assert said(row) == [
        ("system", "Be kind."), ("user", "Hello"), ("assistant", "Hi."), ("assistant", "weather()"), ("tool", "Sun"),
    ]
    assert row["messages"][2]["reasoning_content"] == "A greeting."


def test_system_and_split_columns_are_used():
    """A system column opens each row; a split column says which rows are held out."""
    records = [
        {"system": "Be kind.", "prompt": "a", "completion": "b", "split": "train"},
        {"system": "", "prompt": "c", "completion": "d", "split": "Validation"},
    ]
    rows = rows_of(records)
    assert said(rows[0])[0] == ("system", "Be kind.") and said(rows[1])[0] == ("user", "c")
    assert [(row["n"], row["split"]) for row in rows] == [(1, "train"), (2, "test")]


def test_plain_text_columns():
    """A text column alone is learned whole."""
    assert rows_of([{"text": "One.", "url": "x", "n": 3}]) == [{"text": "One.", "n": 1, "split": ""}]


def test_columns_that_fit_nothing_are_named():
    """The person is told what there is and what to do."""
    with pytest.raises(UserError, match=r"The columns a, b, c fit no known format.*choose by hand"):
        chat.recognise([{"a": "1", "b": "2", "c": "3"}])


BAD_ROWS = [
    ({"prompt": "a", "completion": ""}, r"Row 1 has no answer: 'completion' is empty"),
    ({"prompt": "a", "completion": None}, r"Row 1 has no answer: 'completion' is empty"),
    ({"prompt": "a", "completion": ["b"]}, r"'completion' is not text \(list\)"),
    ({"prompt": " ", "completion": "b"}, r"has no prompt: 'prompt' is empty"),
    ({"messages": [{"role": "user", "content": "a"}]}, "has no assistant turn, so there is no answer"),
    ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]}, "has an assistant turn without text"),
    ({"messages": [{"role": "wizard", "content": "a"}]}, "has the role 'wizard' in turn 1; known are user"),
    ({"messages": [{"role": "user", "content": 5}]}, "has content that is not text in turn 1"),
    ({"x": [{"from": "nobody", "value": "a"}]}, "has the role 'nobody' in turn 1; known are human"),
    ({"x": [{"from": "human", "value": None}]}, "has no text in turn 1"),
    ({"messages": [{"role": "assistant", "content": "", "tool_calls": ["x"]}]}, "has an assistant turn without text|has no assistant turn"),
]


@pytest.mark.parametrize(("record", "why"), BAD_ROWS)
def test_a_row_without_an_answer_is_left_out_and_told(record, why):
    """Alone it is an error with the reason; beside good rows it is left out, with its number."""
    mapping = chat.recognise([record])
    with pytest.raises(UserError, match=f"None of the 1 rows can be learned from.*{why}"):
        data.to_rows([record], mapping)
    good = {"prompt": "a", "completion": "b"}
    if set(record) == set(good):
        rows, left_out = data.to_rows([good, record, good], mapping)
        assert [row["n"] for row in rows] == [1, 3] and [item["n"] for item in left_out] == [2]


# Any bytes, any JSON ----------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(
        st.sampled_from(["messages", "role", "content", "from", "value", "prompt", "completion", "text", "system", "tools",
                         "tool_calls", "function", "name", "arguments", "split", "data", "", "reasoning_content"])
        | st.text(max_size=3), inner | st.sampled_from(["user", "assistant", "human", "gpt", "function_call", "[{", "[[]]"]),
        max_size=5,
    ),
    max_leaves=15,
)


def use(text: str) -> None:
    """Read, recognise, convert, check and keep, as the page does; anything but a UserError is a fault."""
    try:
        notes: list[str] = []
        dataset = data.create("ann", "x", {"kind": "paste"})
        data.take(dataset, reading.read_pasted(text, notes), notes)
        rows = check.work(data.settle(dataset), None)
        found = [rows.row(index) for index in range(len(rows))]
        assert all(isinstance(row.get("text", row.get("messages")), (str, list)) for row in found)
        json.dumps(found, allow_nan=False)
        if len(rows) > 1 and len(set(map(bytes, rows.seen["same"]))) > 1:
            assert 0 < rows.held_out(0.1, 0)[0].sum() < len(rows)
    except UserError as told:
        assert str(told)
    finally:
        shutil.rmtree(data.datasets_dir("ann"), ignore_errors=True)


@FEW
@given(value=JSON, lines=st.booleans())
@example(value=[{"messages": [{"role": "assistant", "content": "", "tool_calls": [{"function": "x"}]}]}], lines=False)
@example(value=[{"messages": [{"role": "user", "content": [{"text": 5}]}]}], lines=False)
@example(value=[{"messages": "[" * 5000}], lines=True)
@example(value=[{"x": [{"from": "function_call", "value": "[" * 5000}]}], lines=False)
@example(value=[{"messages": [{"role": "assistant", "content": "a"}], "tools": "[" * 5000}], lines=False)
@example(value={"text": "\ud800", "split": 1e999}, lines=False)
def test_no_json_breaks_the_reading_of_pasted_text(home, value, lines):
    """Whatever values stand where turns, roles and texts are expected."""
    text = "\n".join(json.dumps(item) for item in value) if lines and isinstance(value, list) else json.dumps(value)
    use(text)


# Keeping, mapping, owning -----------------------------------------------------------------------------------------


def keep(owner="alice", records=RECORDS, name="mine.jsonl") -> data.Dataset:
    return data.keep(owner, name, records, {"kind": "file", "file": name})


def test_a_kept_dataset_comes_back_as_it_was(home):
    """Records, mapping and name survive a restart; its folder is for this account only."""
    kept = keep()
    found = data.find("alice", kept.id)
    assert found == kept
    assert [json.loads(text) for text in data.Texts(kept.folder / "records.arrow").column().to_pylist()] == RECORDS
    assert found.head() == RECORDS and found.count == 3 and found.ready
    assert kept.folder.stat().st_mode & 0o777 == 0o700


def test_the_head_can_be_shown_before_all_is_read(home):
    """And until then nothing says that all is there."""
    dataset = data.create("alice", "x", {"kind": "file"})
    seen = []

    def records():
        for number in range(data.HEAD + 5):
            yield {"text": str(number)}
        seen.append((len(dataset.head()), dataset.ready))

    data.take(dataset, records(), ["a note"], lambda: seen.append("head"))
    assert seen == ["head", (data.HEAD, False)] and dataset.count == data.HEAD + 5 and dataset.notes == ["a note"]


def test_no_rows_are_told(home):
    """Nothing to show, nothing to learn."""
    with pytest.raises(UserError, match="mine.jsonl has no rows"):
        keep(records=[])


ODD = ["", "!", "plain", "two\nlines\r\n", "\x00", "\u2028\x85", "漢字 🙂", '"\\', " " * 3, "x" * 100_000]


def test_texts_come_back_as_they_were_written(tmp_path):
    """By number, in blocks and as a column; also those that no line of text could hold."""
    texts = ODD * 300
    assert data.write_texts(tmp_path / "a.arrow", iter(texts)) == len(texts)
    kept = data.Texts(tmp_path / "a.arrow")
    assert len(kept) == len(texts) and [kept[n] for n in (0, 1, 2, 2999)] == [texts[n] for n in (0, 1, 2, 2999)]
    blocks = list(kept.blocks(7))
    assert [text for block in blocks for text in block] == texts == kept.column().to_pylist()
    assert max(map(len, blocks)) == 7 and [path.name for path in tmp_path.iterdir()] == ["a.arrow"]


def test_a_failed_writing_leaves_nothing(tmp_path):
    """A reader meets all of a file or none of it."""
    def texts():
        yield "a"
        raise UserError("broken")

    with pytest.raises(UserError, match="broken"):
        data.write_texts(tmp_path / "a.arrow", texts())
    assert list(tmp_path.iterdir()) == []


def test_a_record_that_could_not_be_read_stays_in_its_place(home):
    """It gives no row and is told as unreadable; the rows behind it keep their numbers, and an honest "!" is a text."""
    dataset = data.create("alice", "x", {"kind": "file"}, mapping=data.Mapping("text", {"text": "text"}))
    data.take(dataset, [{"text": "!one"}, Broken("line 2", "is not JSON (line 2)."), {"text": "three"}], [])
    rows = check.work(data.settle(dataset), None)
    assert [(rows.row(i)["n"], rows.row(i)["text"]) for i in range(len(rows))] == [(1, "!one"), (3, "three")]
    assert rows.left_out["unreadable"].tolist() == [1] and rows.came_in == 3
    assert rows.why_left_out(1) == "is not JSON (line 2)."


def test_large_whole_numbers_are_not_rounded(home):
    """As a prompt, as an answer, and inside arguments of a call."""
    big = 2**70 + 1
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {"n": big}}]}
    records = [{"prompt": big, "completion": big + 1}, {"prompt": 5, "completion": 1.5}]
    rows = check.work(keep(records=records), None)
    assert said(rows.row(0)) == [("user", str(big)), ("assistant", str(big + 1))] and said(rows.row(1))[1] == ("assistant", "1.5")
    rows = check.work(keep(records=[{"messages": [{"role": "user", "content": "?"}, call]}]), None)
    assert rows.row(0)["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"n": big}


# Templates and groups ---------------------------------------------------------------------------------------------

ASKED = [
    {"question": "Who?", "context": "A cat sat.", "answer": "The cat"}, {"question": "Where?", "context": None, "answer": "Here"},
    {"question": " ", "context": "", "answer": "Nobody asked"}, {"question": 7, "context": ["a", 1], "answer": "Odd"},
]
TEMPLATE = {"prompt": "Q: {question}\n{context}", "completion": "{answer}!"}


def test_a_template_makes_one_prompt_of_two_columns():
    """What is empty leaves nothing in its place; where every place is empty there is no prompt."""
    rows, left_out = data.to_rows(ASKED, data.Mapping("pair", TEMPLATE))
    assert [said(row)[0][1] for row in rows] == ["Q: Who?\nA cat sat.", "Q: Where?\n", 'Q: 7\n["a", 1]']
    assert said(rows[0])[1] == ("assistant", "The cat!")
    assert [(item["n"], item["kind"]) for item in left_out] == [(3, "no_prompt")] and "is empty" in left_out[0]["why"]


def test_a_column_whose_name_has_braces_is_a_column():
    """A name that is there is that column, whatever it looks like."""
    record = {"{a}": "Q", "a": "other", "b": "A"}
    mapping = data.Mapping("pair", {"prompt": "{a}", "completion": "b"})
    chat.check_mapping(mapping, [record])
    assert said(data.to_rows([record], mapping)[0][0])[0] == ("user", "Q")


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"prompt": "{question}{gone}", "completion": "answer"}, r"The column 'gone' is not there\. There are: question, context, answer"),
        ({"prompt": "{x}", "completion": "{y}"}, r"'x' is not there(.|\n)*'y' is not there"),
        ({"prompt": "no place", "completion": "answer"}, "'no place' is not there"),
        ({"prompt": "question", "completion": "answer", "split": "{question}"}, r"'\{question\}' is not there"),
    ],
)
def test_a_template_names_the_columns_that_are_missing(home, columns, words):
    """Before a row is made; a split or a group is a column, never a template."""
    kept = keep(records=ASKED)
    with pytest.raises(UserError, match=words):
        data.remap(kept, "pair", columns)


def test_a_template_is_saved_with_the_dataset_and_the_recipe(home, tmp_path):
    """A mapping made by hand is found again, and travels in a recipe's columns to the same rows."""
    kept = data.remap(keep(records=ASKED), "pair", TEMPLATE)
    found = data.find("alice", kept.id)
    assert found.mapping.columns == TEMPLATE
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in ASKED))
    (tmp_path / "r.toml").write_text(Recipe(dataset="a.jsonl", dataset_format="pair", columns=TEMPLATE).to_toml())
    from tuner import recipe

    again = data.from_recipe("bob", recipe.load(tmp_path / "r.toml"), tmp_path)
    ours, theirs = check.work(found, None), check.work(again, None)
    assert [ours.row(i) for i in range(3)] == [theirs.row(i) for i in range(3)] and len(theirs) == 3


@pytest.mark.parametrize("name", ["conversation_id", "Thread_ID", "conversation"])
def test_a_column_that_names_conversations_is_recognised(name):
    """Its value tells which rows belong together; an empty one tells nothing."""
    records = [{"prompt": "a", "completion": "b", name: value} for value in (7, "x", "", None)]
    mapping = chat.recognise(records)
    assert mapping.columns["group"] == name and mapping.format == "pair"
    assert [row.get("group") for row in data.to_rows(records, mapping)[0]] == ["7", "x", None, None]
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert "group" not in chat.recognise([{"conversation": turns}]).columns


def test_a_wrong_guess_can_be_put_right(home):
    """The mapping chosen by hand is checked, used and kept; fixes of other rows go."""
    records = [{"prompt": "a", "completion": "b", "topic": "c"}]
    kept = keep(records=records)
    kept.steps = [{"finding": "duplicate"}]
    data.remap(kept, "pair", {"prompt": "completion", "completion": "prompt", "context": "", "system": "topic"})
    found = data.find("alice", kept.id)
    assert said(check.work(found, None).row(0)) == [("system", "c"), ("user", "b"), ("assistant", "a")] and found.steps == []


@pytest.mark.parametrize(
    ("format", "columns", "words"),
    [
        ("pair", {"prompt": "prompt"}, "needs a column for completion"),
        ("pair", {"prompt": "prompt", "completion": "gone"}, "The column 'gone' is not there. There are: prompt, completion"),
        ("pair", {"prompt": "x", "completion": "y"}, r"'x' is not there(.|\n)*'y' is not there"),
        ("text", {"text": "prompt", "tools": "prompt"}, "has no place for tools"),
        ("messages", {"messages": "prompt"}, "has no conversation in 'prompt'"),
        ("wizardry", {}, "There is no format 'wizardry'"),
    ],
)
def test_a_wrong_mapping_is_refused_and_changes_nothing(home, format, columns, words):
    """Every problem is named at once, and the dataset stays as it was."""
    kept = keep()
    with pytest.raises(UserError, match=words):
        data.remap(kept, format, columns)
    assert data.find("alice", kept.id).mapping == chat.recognise(RECORDS)


HOSTILE = ["..", "../alice", "/etc", "/etc/passwd", "a/../../b", ".", "", "a/b", "a\\b", "\x00", "~", "x" * 300, ".hidden", "a..b", None, "a\n"]


@pytest.mark.parametrize("name", HOSTILE)
def test_no_id_reaches_outside_its_folder(home, monkeypatch, name):
    """An id from a visitor is refused before the file system sees it."""
    touched = []
    for function in ("open", "stat", "mkdir", "listdir", "scandir"):
        real = getattr(os, function)
        monkeypatch.setattr(os, function, lambda path, *a, _real=real, **k: (touched.append(path), _real(path, *a, **k))[1])
    for look in (
        lambda: data.find("alice", name), lambda: data.find(name, "demo"), lambda: run.find("alice", name),
        lambda: run.find(name, "x"), lambda: run.mine(name), lambda: data.keep(name, "n", RECORDS, {}),
        lambda: data.load_demo(name),
    ):
        with pytest.raises(UserError, match="is not known here|has no dataset open"):
            look()
    assert {Path(str(path)) for path in touched} <= {home, DEMO_ROOT / "data" / "headlines.jsonl"}


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/hosts/x", "a/b/c", "file:///etc", "..", "x/..", "", "a b/c"])
def test_no_hub_id_is_a_path(home, name):
    """What is not user/name never meets a library that also loads local folders."""
    with pytest.raises(UserError, match="is not a Hub dataset id. It looks like user/name"):
        data.read_hub(name)


def test_what_is_alices_is_not_bobs(home):
    """Neither a dataset nor a run of hers can be found, used or listed by him."""
    kept = keep("alice")
    hers = run.create("alice", Recipe(), kept)
    assert run.find("alice", hers.id) == hers and run.mine("alice") == [hers]
    with pytest.raises(UserError, match="is not among yours"):
        data.find("bob", kept.id)
    with pytest.raises(UserError, match="is not among yours"):
        run.find("bob", hers.id)
    with pytest.raises(UserError, match="is not among yours"):
        run.create("bob", Recipe(), kept)
    assert run.mine("bob") == []


def test_the_demo_is_kept_once_for_each_owner(home):
    """A second visit finds the first one's folder; another person has their own."""
    first = data.load_demo("alice")
    assert data.load_demo("alice") == first and data.load_demo("bob").owner == "bob"
    assert [path.name for path in data.datasets_dir("alice").iterdir()] == [first.id]
    rows = check.work(first, None)
    assert len(rows) == rows.came_in == 480


# Real files -------------------------------------------------------------------------------------------------------


def real(name: str):
    """(records, rows, the raw JSON) of a real dataset."""
    if not (REAL / name).is_file():
        pytest.skip(f"{REAL / name} is not on this machine")
    notes: list[str] = []
    records = list(reading.read([(REAL / name, name)], notes, REAL))
    mapping = chat.recognise(records)
    rows, left_out = data.to_rows(records, mapping)
    assert (left_out, notes) == ([], [])
    text = (REAL / name).read_text("utf-8")
    raw = [json.loads(line) for line in text.splitlines()] if name.endswith("jsonl") else json.loads(text)
    return mapping, rows, raw


def test_a_real_alpaca_file():
    """999 rows, recognised without a choice."""
    mapping, rows, raw = real("alpaca_en_demo.json")
    assert mapping.format == "alpaca" and len(rows) == len(raw) == 999
    for row, item in zip(rows[:10], raw):
        asked = f"{item['instruction']}\n{item['input']}" if item["input"].strip() else item["instruction"]
        assert said(row) == [("user", asked), ("assistant", item["output"])]


def test_a_real_sharegpt_file_with_tools():
    """300 conversations with calls and results, recognised without a choice."""
    mapping, rows, raw = real("glaive_toolcall_en_demo.json")
    assert mapping.format == "sharegpt" and len(rows) == len(raw) == 300
    names = {"human": "user", "gpt": "assistant", "function_call": "assistant", "observation": "tool"}
    for row, item in zip(rows[:10], raw):
        assert [tool["function"] for tool in row.get("tools", [])] == json.loads(item["tools"] or "[]")
        assert len(row["messages"]) == len(item["conversations"])
        for message, turn in zip(row["messages"], item["conversations"]):
            assert message["role"] == names[turn["from"]]
            if turn["from"] == "function_call":
                assert [call["function"] for call in message["tool_calls"]] == [json.loads(turn["value"])]
            else:
                assert message["content"] == turn["value"]


def test_a_real_text_file():
    """300 texts, recognised without a choice."""
    mapping, rows, raw = real("c4_demo.jsonl")
    assert mapping.format == "text" and len(rows) == len(raw) == 300
    assert [row["text"] for row in rows[:10]] == [item["text"] for item in raw[:10]]


# The same files again ----------------------------------------------------------------------------------------------


def uploaded(folder: Path, owner: str = "alice", content: str = "", name: str = "mine.jsonl") -> data.Dataset:
    """A dataset as an upload makes it, its records read where that is still to be done."""
    path = folder / "upload"
    path.write_text(content or "".join(json.dumps(record) + "\n" for record in RECORDS))
    dataset = data.create(owner, name, {"kind": "file", "file": name}, [(path, name)])
    assert not path.exists()
    if not dataset.ready:
        data.read_files(dataset)
    return data.settle(dataset)


def test_the_same_files_are_read_and_checked_once(home, tmp_path, monkeypatch):
    first = uploaded(tmp_path)
    check.work(first, None)
    scanned = []
    monkeypatch.setattr(scan, "do_block", lambda *args: scanned.append(args))
    monkeypatch.setattr(data, "read_files", lambda *args: scanned.append(args))
    again = uploaded(tmp_path)
    assert again.id != first.id and check.is_done(again, None) and again.head() == RECORDS
    rows = check.work(again, None)
    assert [rows.row(index)["n"] for index in range(len(rows))] == [1, 2, 3] and not scanned


def test_only_the_very_same_files_are_taken_for_the_same(home, tmp_path):
    """Not another owner's, not another name, not one byte changed at the same length."""
    uploaded(tmp_path)
    lines = "".join(json.dumps(record) + "\n" for record in RECORDS)
    path = tmp_path / "upload"
    for owner, name, content in (("bob", "mine.jsonl", lines), ("alice", "other.jsonl", lines), ("alice", "mine.jsonl", lines.replace("Paris", "Pariz"))):
        path.write_text(content)
        dataset = data.create(owner, name, {"kind": "file"}, [(path, name)])
        assert not dataset.ready, (owner, name)


def test_what_is_done_to_one_is_not_done_to_the_other(home, tmp_path):
    """They share what is on the disk; fixes, mappings and deletion are each one's own."""
    twice = "".join(json.dumps(record) + "\n" for record in RECORDS * 2)
    first, again = uploaded(tmp_path, content=twice), uploaded(tmp_path, content=twice)
    check.fix(first, "duplicate", "deduplicate", Recipe(), "")
    assert len(check.work(first, None)) == 3
    assert data.find("alice", again.id).steps == [] and len(check.work(again, None)) == 6
    shutil.rmtree(first.folder)
    check.fix(again, "duplicate", "deduplicate", Recipe(), "")
    assert len(check.work(again, None)) == 3


def test_of_what_commands_read_only_the_newest_is_kept(home, tmp_path):
    for number in range(data.PASSING_KEPT + 3):
        path = tmp_path / f"{number}.jsonl"
        path.write_text(json.dumps({"text": str(number)}) + "\n")
        data.from_recipe("alice", Recipe(dataset=path.name), tmp_path)
        assert path.exists()
    mine = keep()
    kept = {its.name for its in data.datasets_dir("alice").iterdir()}
    assert len(kept) == data.PASSING_KEPT + 1 and mine.id in kept
