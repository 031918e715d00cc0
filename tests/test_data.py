"""Tests of reading data: every format, every column layout, every bad input in words, splits, and who owns what."""

import codecs
import csv
import io
import json
import os
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tuner import data, run
from tuner.errors import UserError
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


def table_of(records, delimiter=",") -> str:
    """The records as a person's spreadsheet would save them."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(records[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()


def stream_of(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def file_of(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def parquet_of(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def feather_of(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    feather.write_feather(table, sink)
    return sink.getvalue().to_pybytes()


def read(folder: Path, name: str, content: bytes | str):
    """The records and notes in a file of this content."""
    path = folder / "upload"  # what it is called decides, not what it is stored as
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return data.read_file(path, name)


def rows_of(records, columns=None):
    """The task's rows of records, by the mapping that is recognised."""
    mapping = chat.recognise(records)
    if columns is not None:
        assert mapping.columns == columns
    return data.to_rows(records, mapping)[0]


def said(row) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in row["messages"]]


# File formats -----------------------------------------------------------------------------------------------------

TABLE = pa.Table.from_pylist(RECORDS)
FILES = {
    "rows.jsonl": "\n".join(json.dumps(record) for record in RECORDS),
    "rows.JSONL": "\n\n".join(json.dumps(record, ensure_ascii=False) for record in RECORDS) + "\n\n",
    "crlf.ndjson": "\r\n".join(json.dumps(record) for record in RECORDS),
    "list.json": json.dumps(RECORDS, indent=2),
    "under.json": json.dumps({"version": "1.0", "data": RECORDS}),
    "columns.json": json.dumps({key: [record[key] for record in RECORDS] for key in RECORDS[0]}),
    "really.json": "\n".join(json.dumps(record) for record in RECORDS),
    "bom.json": codecs.BOM_UTF8 + json.dumps(RECORDS).encode(),
    "comma.csv": table_of(RECORDS),
    "semicolon.csv": table_of(RECORDS, ";"),
    "tab.csv": table_of(RECORDS, "\t"),
    "pipe.csv": table_of(RECORDS, "|"),
    "table.tsv": table_of(RECORDS, "\t"),
    "utf16.csv": codecs.BOM_UTF16_LE + table_of(RECORDS).encode("utf-16-le"),
    "spaced.csv": "\n\n" + table_of(RECORDS),
    "rows.parquet": parquet_of(TABLE),
    "rows.arrow": file_of(TABLE),
    "stream.arrow": stream_of(TABLE),
    "rows.feather": feather_of(TABLE),
}


@pytest.mark.parametrize("name", FILES)
def test_every_file_format_gives_the_same_records(tmp_path, name):
    """Letters, quotes, separators and line breaks inside cells come through unharmed."""
    assert read(tmp_path, name, FILES[name])[0] == [*RECORDS]


def test_what_was_done_to_read_a_file_is_told(tmp_path):
    """The notes say what a person could not know from the file's name."""
    told = {name: " ".join(read(tmp_path, name, FILES[name])[1]) for name in FILES}
    assert "UTF-16" in told["utf16.csv"]
    assert "';'" in told["semicolon.csv"] and "a tab" in told["tab.csv"] and "'|'" in told["pipe.csv"]
    assert "under 'data'" in told["under.json"] and "by columns" in told["columns.json"] and "JSONL" in told["really.json"]
    assert told["rows.jsonl"] == told["comma.csv"] == told["rows.parquet"] == ""


def test_text_files_are_paragraphs_or_lines(tmp_path):
    """Blank lines part paragraphs; without any, each line is a row."""
    paragraphs, notes = read(tmp_path, "a.txt", "One\nstill one\r\n\r\nTwo\n\n\n\nThree\n")
    assert paragraphs == [{"text": "One\nstill one"}, {"text": "Two"}, {"text": "Three"}]
    assert notes == ["Each paragraph is a row."]
    lines, notes = read(tmp_path, "a.txt", "One\nTwo\n\n")
    assert [record["text"] for record in lines] == ["One", "Two"] and notes == ["Each line is a row."]


def test_cells_stay_text(tmp_path):
    """007 is not 7, NA is not nothing, and a date is not a number."""
    [record], _ = read(tmp_path, "a.csv", "prompt,completion\n007,NA\n")
    assert record == {"prompt": "007", "completion": "NA"}
    assert said(rows_of([record])[0]) == [("user", "007"), ("assistant", "NA")]


def test_numbers_and_dates_in_columns_become_what_json_can_hold(tmp_path):
    """A Parquet file's own types are readable rows, not a crash at the first date."""
    import datetime
    import decimal

    table = pa.table({
        "prompt": ["a"], "completion": ["b"], "when": [datetime.datetime(2024, 2, 29)], "raw": [b"\xff"],
        "part": [decimal.Decimal("1.5")], "nan": [float("nan")], "inf": [float("inf")], "many": [[{"x": b"1"}]], "none": [None],
    })
    [record], _ = read(tmp_path, "a.parquet", parquet_of(table))
    json.dumps(record, allow_nan=False)
    assert record["when"] == "2024-02-29 00:00:00" and record["raw"] == "<1 bytes>" and record["part"] == "1.5"
    assert record["nan"] is None and record["inf"] is None and record["many"] == [{"x": "<1 bytes>"}]


def test_a_line_separator_inside_a_string_ends_no_line(tmp_path):
    """U+2028 and the like may stand raw in JSON strings; only line breaks end a line of JSONL."""
    odd = {"prompt": "a\u2028b\x85c", "completion": "d"}
    line = json.dumps(odd, ensure_ascii=False)
    for end in ("\n", "\r\n", "\r"):
        assert read(tmp_path, "a.jsonl", end.join([line, line]))[0] == [odd, odd]


def test_only_the_first_rows_are_used_where_there_are_too_many(tmp_path, monkeypatch):
    """A file of a billion rows is cut at a bound, and that is said."""
    monkeypatch.setattr(data, "MAX_ROWS", 5)
    for name in ("rows.jsonl", "a.parquet", "a.arrow", "a.txt"):
        content = {
            "rows.jsonl": '{"text": "a"}\n' * 9, "a.parquet": parquet_of(pa.table({"text": ["a"] * 9})),
            "a.arrow": file_of(pa.table({"text": ["a"] * 9})), "a.txt": "a\n" * 9,
        }[name]
        records, notes = read(tmp_path, name, content)
        assert len(records) == 5 and "Only the first 5 rows are used." in notes


PASTED = {
    "JSON list": json.dumps(RECORDS),
    "pretty JSON": json.dumps({"data": RECORDS}, indent=1).replace("\n  {", "\n{"),
    "JSONL": "\n".join(json.dumps(record) for record in RECORDS),
    "one object": json.dumps(RECORDS[0]),
    "comma table": table_of(RECORDS),
    "tab table": table_of(RECORDS, "\t"),
    "spaces around": "\n\n  " + json.dumps(RECORDS) + "\n ",
}


@pytest.mark.parametrize("kind", PASTED)
def test_pasted_text_is_read_as_what_it_is(kind):
    """Nobody is asked for the format of what they paste."""
    records, _ = data.read_pasted(PASTED[kind])
    assert records == (RECORDS[:1] if kind == "one object" else RECORDS)


def test_pasted_prose_is_plain_text():
    """Commas in sentences do not make a table."""
    prose = "Once, there was a cat.\nIt sat, and sat.\n\nThen a dog came, barking, loud, and wet."
    records, notes = data.read_pasted(prose)
    assert [record["text"][:4] for record in records] == ["Once", "Then"] and notes == ["Each paragraph is a row."]
    with pytest.raises(UserError, match="Nothing was pasted"):
        data.read_pasted(" \n\t")


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        {"prompt": "a", "completion": "b", "tags": ["x", "y"]},
    ],
)
def test_one_pasted_object_is_one_row(record):
    """The list inside a single row is not taken for the rows."""
    records, _ = data.read_pasted(json.dumps(record))
    assert records == [record]
    assert said(rows_of(records)[0]) == [("user", "a"), ("assistant", "b")]


def test_rows_that_speak_of_roles_are_still_rows(tmp_path):
    """The word "role" in a text says nothing about the shape of the file."""
    records = [{"prompt": "What is the role of a queen?", "completion": "To rule."}] * 2
    assert read(tmp_path, "a.json", json.dumps({"data": records}))[0] == records


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
    ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]}, "has no assistant turn"),
    ({"messages": [{"role": "wizard", "content": "a"}]}, "has the role 'wizard' in turn 1; known are user"),
    ({"messages": [{"role": "user", "content": 5}]}, "has content that is not text in turn 1"),
    ({"x": [{"from": "nobody", "value": "a"}]}, "has the role 'nobody' in turn 1; known are human"),
    ({"x": [{"from": "human", "value": None}]}, "has no text in turn 1"),
    ({"messages": [{"role": "assistant", "content": "", "tool_calls": ["x"]}]}, "has no assistant turn"),
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


# Bad files --------------------------------------------------------------------------------------------------------

XLSX = b"PK\x03\x04" + b"\x00" * 60
BAD_FILES = [
    ("a.jsonl", b"", r"a\.jsonl is empty \(0 bytes\)"),
    ("a.csv", b" \n\n\t ", "holds nothing but white space"),
    ("a.csv", codecs.BOM_UTF16_LE, "has no rows|nothing but white space"),
    ("a.json", codecs.BOM_UTF8, "nothing but white space"),
    ("a.docx", b"x", r"a\.docx ends in '\.docx'\. Bring one of \.arrow, \.csv"),
    ("data", b"x", "ends in 'nothing'"),
    ("a.jsonl", b'{"text": "a"}\n{"text": oops}\n', r"broken at line 2: .*begins '\{\"text\": oops\}'"),
    ("a.jsonl", b'{"text": "a"}\n\n\n[1, 2]\n', r"line 4 is \[1, 2\]; each row must be an object"),
    ("a.jsonl", b'{"text": NaN}', "broken at line 1: NaN is not a JSON value"),
    ("a.json", b'[\n {"a": 1},\n {"a": }\n]', "broken at line 3, column 8"),
    ("a.json", b'[{"a": 1}', "broken at line 1"),
    ("a.json", b"7", "holds 7; a list of rows is expected"),
    ("a.json", b"[]", "has no rows"),
    ("a.json", b'{"data": []}', "has no rows"),
    ("a.json", b"[[1], [2]]", r"row 1 is \[1\]; each row must be an object"),
    ("a.json", b"[" * 100_000, "nested too deep"),
    ("a.jsonl", b'{"text": "a", "x": ' + b"[" * 600 + b"]" * 600 + b"}", "nested too deep"),
    ("a.jsonl", b'{"n": ' + b"9" * 5000 + b"}", "broken at line 1"),
    ("a.csv", b"prompt,completion\n", "has no rows"),
    ("a.csv", b"a,b\n1,2\n1,2,3\n", "line 3 has 3 cells and the header has 2. Put quotes"),
    ("a.csv", b'a,b\n1,"2\n3,4\n', "broken near line 3: unexpected end of data. Check the quotes"),
    ("a.csv", b"a,b,a\n1,2,3\n", "has the column 'a' twice"),
    ("a.csv", XLSX, "is a zip or Excel file, not text. Export it as CSV"),
    ("a.jsonl", b"\x1f\x8b\x08\x00", "is a gzip file"),
    ("a.txt", b"%PDF-1.7", "is a PDF"),
    ("a.csv", b"a,b\n1,2\n3,\x00\n", "not a text file: line 3 holds a NUL byte"),
    ("a.csv", "prompt,completion\na,b\nc,caf\xe9\n".encode("latin-1"), "not UTF-8: line 3 holds the byte 0xe9"),
    ("a.txt", codecs.BOM_UTF16_LE + b"\x00", "begins like UTF-16 and is not"),
    ("a.parquet", b"PAR1 not really PAR1", "cannot be read as Parquet"),
    ("a.arrow", b"ARROW1 not really", "cannot be read as Arrow"),
    ("a.parquet", table_of(RECORDS).encode(), "cannot be read as Parquet.*another kind of file"),
    ("a.csv", ",".join(f"c{n}" for n in range(10_000)).encode() + b"\n", "has 10,000 columns; the most is 1,000"),
    ("a.jsonl", json.dumps({f"c{n}": 1 for n in range(10_000)}).encode(), "10,000 (columns|fields); the most is 1,000"),
    ("a.parquet", parquet_of(pa.table({f"c{n}": [1] for n in range(10_000)})), "has 10,000 columns"),
    ("a.arrow", file_of(pa.table({f"c{n}": [1] for n in range(10_000)})), "has 10,000 columns"),
]


@pytest.mark.parametrize(("name", "content", "words"), BAD_FILES, ids=[f"{n}-{i}" for i, (n, _, _) in enumerate(BAD_FILES)])
def test_a_bad_file_is_refused_in_words(tmp_path, name, content, words):
    """Each says what is wrong, where, and what to do; none is a traceback."""
    with pytest.raises(UserError, match=words):
        read(tmp_path, name, content)


def test_a_long_file_name_is_cut_and_nothing_of_this_machine_is_shown(tmp_path):
    """The message names the file as the person does, not where it lies here."""
    with pytest.raises(UserError) as told:
        read(tmp_path, "x" * 300 + ".csv", b"")
    assert len(str(told.value)) < 150 and str(tmp_path) not in str(told.value)


def test_sizes_are_bounded(tmp_path, monkeypatch):
    """Before a file is read, before a line is parsed, before a paste is split."""
    monkeypatch.setattr(data, "MAX_FILE_BYTES", 2**20)
    with pytest.raises(UserError, match="has 2 MiB; the most is 1 MiB"):
        read(tmp_path, "a.txt", b"x" * 2**21)
    monkeypatch.setattr(data, "MAX_LINE_BYTES", 100)
    with pytest.raises(UserError, match="line 2 has 112 characters; the most is 100"):
        read(tmp_path, "a.jsonl", b'{"text": "a"}\n{"text": "' + b"x" * 100 + b'"}')
    with pytest.raises(UserError, match="field larger than field limit"):
        read(tmp_path, "a.csv", b"a,b\n1," + b"x" * 200)
    with pytest.raises(UserError, match="the most is 20 million"):
        data.read_pasted("x" * (20 * 2**20 + 1))


def test_a_parquet_bomb_is_refused_by_its_footer(tmp_path, monkeypatch):
    """What it would unpack to is declared in the file; it is refused before a page is read."""
    monkeypatch.setattr(data, "MAX_EXPANDED_BYTES", 2**20)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": ["x" * 2**21]}), sink, compression="zstd", use_dictionary=False)
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *args, **kwargs: pytest.fail("a page was read"))
    with pytest.raises(UserError, match=r"a\.parquet unpacks to more than 0 GiB"):
        read(tmp_path, "a.parquet", sink.getvalue().to_pybytes())


@pytest.mark.parametrize("kind", ["a.parquet", "a.arrow", "nulls.arrow", "runs.arrow"])
def test_a_value_repeated_by_reference_cannot_fill_the_memory(tmp_path, monkeypatch, kind):
    """One large value that a dictionary repeats 100,000 times is small in the file and in its footer."""
    monkeypatch.setattr(data, "MAX_EXPANDED_BYTES", 2**23)
    repeated = pa.DictionaryArray.from_arrays(pa.array([0] * 100_000, pa.int32()), pa.array(["x" * 2**20]))
    table = pa.table({"text": repeated})
    if kind == "nulls.arrow":
        table = pa.table({"text": pa.nulls(50_000_000)})
    if kind == "runs.arrow":
        table = pa.table({"text": pa.RunEndEncodedArray.from_arrays(pa.array([50_000_000], pa.int32()), pa.array(["x" * 2**20]))})
    sink = pa.BufferOutputStream()
    if kind == "a.parquet":
        pq.write_table(table, sink, store_schema=False)
    content = sink.getvalue().to_pybytes() or file_of(table)
    assert len(content) < 2**22
    monkeypatch.setattr(data, "MAX_ROWS", 50)
    before = pa.default_memory_pool().max_memory()
    tracemalloc.start()
    try:
        if kind == "nulls.arrow":
            assert len(read(tmp_path, kind, content)[0]) == 50
        else:
            with pytest.raises(UserError, match="unpacks to more than"):
                read(tmp_path, kind, content)
        assert tracemalloc.get_traced_memory()[1] < 2**26
        assert pa.default_memory_pool().max_memory() - before < 2**26
    finally:
        tracemalloc.stop()


# Any bytes, any JSON ----------------------------------------------------------------------------------------------

VALID = {".parquet": FILES["rows.parquet"], ".arrow": FILES["rows.arrow"], ".feather": FILES["stream.arrow"]}
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


def use(read_it) -> None:
    """Read, recognise, convert and keep, as the page does; anything but a UserError is a fault."""
    try:
        records, notes = read_it()
        dataset = data.keep("ann", "x", records, {"kind": "pasted"}, notes)
        rows, _ = data.find("ann", dataset.id).rows()
        assert all(isinstance(row.get("text", row.get("messages")), (str, list)) for row in rows)
        data.split_rows(rows, 0.1, 0)
        json.dumps(rows, allow_nan=False)
    except UserError as told:
        assert str(told)


@FEW
@given(ending=st.sampled_from(sorted(data.EXTENSIONS)), content=st.binary(max_size=200))
@example(ending=".csv", content=b"\xff\xfe\x00\xd8")
@example(ending=".tsv", content=b'"a\tb\n')
def test_no_bytes_break_the_reading_of_a_file(home, ending, content):
    """Whatever is uploaded under whatever name ends as rows or as words."""
    use(lambda: read(home, f"a{ending}", content))


@FEW
@given(ending=st.sampled_from(sorted(VALID)), place=st.integers(0, 5000), bytes_put=st.binary(min_size=1, max_size=8))
@example(ending=".arrow", place=406, bytes_put=b"\xff\x7f")  # an offset far outside the file: a segmentation fault
@example(ending=".feather", place=398, bytes_put=b"\xff\x7f")
def test_no_damage_to_a_columnar_file_breaks_its_reading(home, ending, place, bytes_put):
    """Lengths and offsets in the file are checked before they are followed: a wrong one must not end the process."""
    content = bytearray(VALID[ending])
    at = place % (len(content) - len(bytes_put))
    content[at : at + len(bytes_put)] = bytes_put
    use(lambda: read(home, f"a{ending}", bytes(content)))


@FEW
@given(content=st.text(max_size=200), ending=st.sampled_from([".json", ".jsonl", ".csv", ".tsv", ".txt"]))
@example(content='{"a": 1}\x85{"a": 2}', ending=".jsonl")
def test_no_text_breaks_the_reading_of_a_file(home, content, ending):
    """Letters of every kind, in every text format."""
    use(lambda: read(home, f"a{ending}", content.encode("utf-8", "surrogatepass")))


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
    use(lambda: data.read_pasted(text))


# Keeping, mapping, owning -----------------------------------------------------------------------------------------


def keep(owner="alice", records=RECORDS, name="mine.jsonl") -> data.Dataset:
    return data.keep(owner, name, records, {"kind": "file", "file": name}, ["a note"])


def test_a_kept_dataset_comes_back_as_it_was(home):
    """Records, mapping, notes and name survive a restart; its folder is for this account only."""
    kept = keep()
    found = data.find("alice", kept.id)
    assert found == kept
    assert list(found.records()) == RECORDS and found.count == 3
    assert kept.folder.stat().st_mode & 0o777 == 0o700


def test_a_wrong_guess_can_be_put_right(home):
    """The mapping chosen by hand is checked, used and kept."""
    records = [{"prompt": "a", "completion": "b", "topic": "c"}]
    kept = keep(records=records)
    data.remap(kept, "pair", {"prompt": "completion", "completion": "prompt", "context": "", "system": "topic"})
    [row], _ = data.find("alice", kept.id).rows()
    assert said(row) == [("system", "c"), ("user", "b"), ("assistant", "a")]


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
        lambda: run.find(name, "x"), lambda: run.mine(name), lambda: data.keep(name, "n", RECORDS, {}, []),
        lambda: data.load_demo(name),
    ):
        with pytest.raises(UserError, match="is not known here"):
            look()
    assert {Path(str(path)) for path in touched} <= {home, data.DEMO_PATH}


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
    rows, left_out = first.rows()
    assert (len(rows), left_out) == (480, [])


# Splits -----------------------------------------------------------------------------------------------------------


def plain(*texts) -> list[dict]:
    return [{"text": text, "n": number, "split": ""} for number, text in enumerate(texts, 1)]


def test_the_datasets_own_split_is_used():
    """Rows marked test (or validation, dev, ...) are held out; the rest is learned."""
    rows = [{"text": str(n), "n": n, "split": "test" if n % 3 == 0 else ""} for n in range(1, 10)]
    train, held_out, how = data.split_rows(rows, 0.1, 0)
    assert [row["n"] for row in held_out] == [3, 6, 9] and len(train) == 6 and how == "the dataset's own split"


def test_a_dataset_that_is_all_test_is_split_by_hash():
    """A split column that holds nothing else cannot leave nothing to learn from."""
    rows = [{"text": str(n), "n": n, "split": "test"} for n in range(20)]
    train, held_out, _ = data.split_rows(rows, 0.1, 0)
    assert (len(train), len(held_out)) == (18, 2)


@FEW
@given(texts=st.lists(st.text("ab", max_size=3), min_size=2, max_size=40), share=st.floats(0.005, 0.5), seed=st.integers(0, 9))
def test_equal_rows_never_stand_on_both_sides(texts, share, seed):
    """However often a row is repeated, it is learned or measured on, not both; no row is lost."""
    rows = plain(*texts)
    if len(set(texts)) < 2:
        with pytest.raises(UserError, match="At least two different rows are needed"):
            data.split_rows(rows, share, seed)
        return
    train, held_out, _ = data.split_rows(rows, share, seed)
    assert train and held_out
    assert not {row["text"] for row in train} & {row["text"] for row in held_out}
    assert sorted(row["n"] for row in [*train, *held_out]) == [row["n"] for row in rows]


def test_the_seed_decides_the_split():
    """The same seed gives the same split whatever the order of the rows; another seed another."""
    rows = plain(*map(str, range(100)))
    held = [row["text"] for row in data.split_rows(rows, 0.2, 0)[1]]
    shuffled = sorted(rows, key=lambda row: row["text"], reverse=True)
    assert sorted(row["text"] for row in data.split_rows(shuffled, 0.2, 0)[1]) == sorted(held)
    assert len(held) == 20 and {row["text"] for row in data.split_rows(rows, 0.2, 1)[1]} != set(held)


def test_one_row_is_too_few():
    """Something has to be kept to measure on."""
    with pytest.raises(UserError, match="has 1 rows and 1 different one. At least two"):
        data.split_rows(plain("a"), 0.1, 0)


# Real files -------------------------------------------------------------------------------------------------------


def real(name: str):
    """(records, rows, the raw JSON) of a real dataset."""
    if not (REAL / name).is_file():
        pytest.skip(f"{REAL / name} is not on this machine")
    records, notes = data.read_file(REAL / name)
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
