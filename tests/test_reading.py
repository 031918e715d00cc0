"""Tests of reading: every format and packing, streams that stay small, broken lines, splits by name, what is told."""

import codecs
import csv
import gzip
import io
import itertools
import json
import os
import re
import struct
import time
import tracemalloc
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from tuner import reading, reading_columns, reading_files, reading_text
from tuner.errors import UserError
from tuner.reading import Broken

RECORDS = [
    {"prompt": "Where is Paris?", "completion": "In France; of course."},
    {"prompt": "And Rome, the old one?", "completion": 'In "Italy".'},
    {"prompt": "漢字?", "completion": "Zeichen\nauf zwei Zeilen"},
]
LINES = "\n".join(json.dumps(record) for record in RECORDS)


def table_of(records, delimiter=",") -> str:
    """The records as a person's spreadsheet would save them."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(records[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()


def arrow_of(table: pa.Table, new=pa.ipc.new_file) -> bytes:
    sink = pa.BufferOutputStream()
    with new(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def parquet_of(table: pa.Table, **options) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **options)
    return sink.getvalue().to_pybytes()


def feather_of(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    feather.write_feather(table, sink)
    return sink.getvalue().to_pybytes()


def zip_of(members: dict[str, bytes | str]) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return sink.getvalue()


def zstd(content: bytes | str) -> bytes:
    return pa.compress(content.encode() if isinstance(content, str) else content, codec="zstd", asbytes=True)


@pytest.fixture
def read(tmp_path):
    """Reads files of these names and contents: all that comes out, and the notes; the spool is empty afterwards."""
    def read(*named: tuple[str, bytes | str], on_progress=None):
        files, notes = [], []
        for number, (name, content) in enumerate(named):
            path = tmp_path / f"upload{number}"  # what it is called decides, not what it is stored as
            path.write_bytes(content.encode() if isinstance(content, str) else content)
            files.append((path, name))
        spool = tmp_path / "spool"
        spool.mkdir(exist_ok=True)
        try:
            return list(reading.read(files, notes, spool, on_progress)), notes
        finally:
            assert list(spool.iterdir()) == []
    return read


def set_limit(monkeypatch, name: str, value: int) -> None:
    """Another limit wherever it is looked up."""
    for module in (reading, reading_files, reading_text, reading_columns):
        if hasattr(module, name):
            monkeypatch.setattr(module, name, value)


def pasted(text: str):
    notes = []
    return list(reading.read_pasted(text, notes)), notes


# Formats ----------------------------------------------------------------------------------------------------------

TABLE = pa.Table.from_pylist(RECORDS)
FILES = {
    "rows.jsonl": LINES,
    "rows.JSONL": "\n\n".join(json.dumps(record, ensure_ascii=False) for record in RECORDS) + "\n\n",
    "crlf.ndjson": LINES.replace("\n", "\r\n"),
    "cr.ndjson": LINES.replace("\n", "\r"),
    "list.json": json.dumps(RECORDS, indent=2),
    "under.json": json.dumps({"version": "1.0", "data": RECORDS}),
    "columns.json": json.dumps({key: [record[key] for record in RECORDS] for key in RECORDS[0]}),
    "really.json": LINES,
    "list.jsonl": json.dumps(RECORDS),
    "pretty.jsonl": json.dumps(RECORDS, indent=1),
    "bom.json": codecs.BOM_UTF8 + json.dumps(RECORDS).encode(),
    "comma.csv": table_of(RECORDS),
    "semicolon.csv": table_of(RECORDS, ";"),
    "tab.csv": table_of(RECORDS, "\t"),
    "pipe.csv": table_of(RECORDS, "|"),
    "table.tsv": table_of(RECORDS, "\t"),
    "commas.tsv": table_of(RECORDS),
    "utf16.csv": codecs.BOM_UTF16_LE + table_of(RECORDS).encode("utf-16-le"),
    "utf16be.jsonl": codecs.BOM_UTF16_BE + LINES.encode("utf-16-be"),
    "spaced.csv": "\n\n" + table_of(RECORDS),
    "excel.csv": "".join(f"{line},,\r\n" for line in ["prompt,completion", "Where is Paris?,In France; of course."])
    + '"And Rome, the old one?","In ""Italy"".",,\r\n漢字?,"Zeichen\nauf zwei Zeilen",,\r\n,,,\r\n',
    "rows.parquet": parquet_of(TABLE),
    "rows.arrow": arrow_of(TABLE),
    "stream.arrow": arrow_of(TABLE, pa.ipc.new_stream),
    "rows.feather": feather_of(TABLE),
    "rows.jsonl.gz": gzip.compress(LINES.encode()),
    "two.jsonl.GZ": gzip.compress(LINES[:50].encode()) + gzip.compress(LINES[50:].encode()),
    "list.json.zst": zstd(json.dumps(RECORDS)),
    "two.jsonl.zst": zstd(LINES[:50]) + zstd(LINES[50:]),
    "comma.csv.gz": gzip.compress(table_of(RECORDS).encode()),
    "rows.parquet.gz": gzip.compress(parquet_of(TABLE)),
    "rows.arrow.zst": zstd(arrow_of(TABLE)),
    "one.zip": zip_of({"folder/": "", "folder/rows.csv": table_of(RECORDS), "__MACOSX/._rows.csv": "x", ".DS_Store": "x"}),
    "columns.zip": zip_of({"rows.parquet": parquet_of(TABLE)}),
    "three.zip": zip_of({f"{n}.json": json.dumps([record]) for n, record in reversed(list(enumerate(RECORDS)))}),
}


@pytest.mark.parametrize("name", FILES)
def test_every_file_format_gives_the_same_records(read, name):
    """Letters, quotes, separators and line breaks inside cells come through unharmed, however they are packed."""
    assert read((name, FILES[name]))[0] == RECORDS


def test_what_was_done_to_read_a_file_is_told(read):
    """The notes say what a person could not know from the file's name."""
    told = {name: " ".join(read((name, FILES[name]))[1]) for name in FILES}
    assert "UTF-16" in told["utf16.csv"] and "UTF-16" in told["utf16be.jsonl"]
    assert "';'" in told["semicolon.csv"] and "a tab" in told["tab.csv"] and "'|'" in told["pipe.csv"] and "','" in told["commas.tsv"]
    assert "under 'data'" in told["under.json"] and "by columns" in told["columns.json"] and "JSONL" in told["really.json"]
    assert "one JSON list" in told["list.jsonl"] and "one JSON list" in told["pretty.jsonl"]
    for name in ("rows.jsonl", "comma.csv", "table.tsv", "rows.parquet", "rows.jsonl.gz", "one.zip", "three.zip", "excel.csv"):
        assert told[name] == ""


def test_every_ending_is_offered_and_read():
    """A file chooser shows what is read, packed or not, and nothing else."""
    offered = reading.endings()
    assert {".jsonl", ".csv.gz", ".parquet.zst", ".zip"} <= set(offered) and len(set(offered)) == len(offered) == 28
    for ending in offered:
        assert reading_files.kind_of("a" + ending.upper(), "a")[0] == "a"


def test_text_files_are_paragraphs_or_lines(read):
    """Blank lines part paragraphs; without any, each line is a row."""
    paragraphs, notes = read(("a.txt", "\n\nOne\nstill one\r\n \r\nTwo\n\n\n\nThree\n"))
    assert paragraphs == [{"text": "One\nstill one"}, {"text": "Two"}, {"text": "Three"}]
    assert notes == ["Each paragraph is a row."]
    lines, notes = read(("a.txt", "One\nTwo\n\n"))
    assert lines == [{"text": "One"}, {"text": "Two"}] and notes == ["Each line is a row."]


def test_blank_lines_beyond_the_first_megabyte_part_no_paragraphs(read, monkeypatch):
    """The choice is made once, at the head, and kept."""
    set_limit(monkeypatch, "BLOCK", 50)
    records, notes = read(("a.txt", "line\n" * 20 + "\n" + "line\n" * 20))
    assert len(records) == 40 and notes == ["Each line is a row."]


def test_cells_stay_text(read):
    """007 is not 7, NA is not nothing, and a formula is not reckoned."""
    [record], _ = read(("a.csv", "prompt,completion,c,d\n007,NA,=1+1,1e5\n"))
    assert record == {"prompt": "007", "completion": "NA", "c": "=1+1", "d": "1e5"}


def test_numbers_and_dates_in_columns_become_what_json_can_hold(read):
    """A Parquet file's own types are readable rows, not a crash at the first date."""
    import datetime
    import decimal

    table = pa.table({
        "prompt": ["a"], "completion": ["b"], "when": [datetime.datetime(2024, 2, 29)], "raw": [b"\xff"],
        "part": [decimal.Decimal("1.5")], "nan": [float("nan")], "inf": [float("inf")], "many": [[{"x": b"1"}]], "none": [None],
    })
    [record], _ = read(("a.parquet", parquet_of(table)))
    json.dumps(record, allow_nan=False)
    assert record["when"] == "2024-02-29 00:00:00" and record["raw"] == "<1 bytes>" and record["part"] == "1.5"
    assert record["nan"] is None and record["inf"] is None and record["many"] == [{"x": "<1 bytes>"}]


def test_large_whole_numbers_stay_exact(read):
    """An id of thirty digits is not rounded to a float."""
    for name in ("a.jsonl", "a.json"):
        [record], _ = read((name, '{"text": "a", "id": 123456789012345678901234567890}'))
        assert record["id"] == 123456789012345678901234567890


def test_a_line_separator_inside_a_string_ends_no_line(read):
    """U+2028 and the like may stand raw in JSON strings; only line breaks end a line of JSONL."""
    odd = {"prompt": "a\u2028b\x85c", "completion": "d"}
    line = json.dumps(odd, ensure_ascii=False)
    for end in ("\n", "\r\n", "\r"):
        assert read(("a.jsonl", end.join([line, line])))[0] == [odd, odd]


def test_only_the_first_rows_are_used_where_there_are_too_many(read, monkeypatch):
    """A file of a billion rows is cut at a bound, and that is said."""
    set_limit(monkeypatch, "MAX_ROWS", 5)
    contents = {
        "rows.jsonl": '{"text": "a"}\n' * 9, "a.json": json.dumps([{"text": "a"}] * 9), "a.csv": "text\n" + "a\n" * 9,
        "a.parquet": parquet_of(pa.table({"text": ["a"] * 9})), "a.arrow": arrow_of(pa.table({"text": ["a"] * 9})),
        "a.txt": "a\n" * 9, "a.zip": zip_of({f"{n}.txt": "a\n" * 3 for n in range(3)}),
    }
    for name, content in contents.items():
        records, notes = read((name, content))
        assert len(records) == 5 and "Only the first 5 rows are used." in notes
        assert len(read(("five.csv", "text\n" + "a\n" * 5))[0]) == 5
    records, notes = pasted('{"text": "a"}\n' * 9)
    assert len(records) == 5 and "Only the first 5 rows are used." in notes


@pytest.mark.parametrize("block", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("name", [name for name in FILES if name.split(".")[1].lower() not in ("parquet", "arrow", "feather", "zip")])
def test_where_blocks_end_changes_nothing(read, monkeypatch, name, block):
    """A character, a line end, a number or an escape that two blocks share is still one."""
    if name in ("bom.json", "utf16.csv", "utf16be.jsonl", "list.jsonl", "pretty.jsonl"):
        block += 9  # what a file is gets decided by its first block, which is a megabyte in truth
    set_limit(monkeypatch, "BLOCK", block)
    monkeypatch.setattr(reading_text, "head_of", lambda lines: (list(lines), True))
    assert read((name, FILES[name]))[0] == RECORDS


# Pasted text ------------------------------------------------------------------------------------------------------

PASTED = {
    "JSON list": json.dumps(RECORDS),
    "pretty JSON": json.dumps({"data": RECORDS}, indent=1).replace("\n  {", "\n{"),
    "JSONL": LINES,
    "one object": json.dumps(RECORDS[0]),
    "comma table": table_of(RECORDS),
    "tab table": table_of(RECORDS, "\t"),
    "spaces around": "\n\n  " + json.dumps(RECORDS) + "\n ",
}


@pytest.mark.parametrize("kind", PASTED)
def test_pasted_text_is_read_as_what_it_is(kind):
    """Nobody is asked for the format of what they paste."""
    assert pasted(PASTED[kind])[0] == (RECORDS[:1] if kind == "one object" else RECORDS)


def test_pasted_prose_is_plain_text():
    """Commas in sentences do not make a table."""
    records, notes = pasted("Once, there was a cat.\nIt sat, and sat.\n\nThen a dog came, barking, loud, and wet.")
    assert [record["text"][:4] for record in records] == ["Once", "Then"] and notes == ["Each paragraph is a row."]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (" \n\t", "Nothing was pasted"),
        ("x" * (20 * 2**20 + 1), "the most is 20 million"),
        ("[]", "has no rows"),
        ('{"text": "a"}\n{"text": }', r"The pasted text is broken at line 2: Expecting value\. The line begins '\{\"text\": \}'"),
        ('[{"text": "a"}', "is cut off: it ends at line 1, column 15 behind row 1"),
        ("one\ntwo \ud83d", r"holds half a character \(U\+D83D\) in line 2"),
        ("one\ntwo \0", "holds a NUL character in line 2"),
    ],
    ids=range(7),
)
def test_what_cannot_be_pasted_is_told(text, words):
    """The same words as for a file."""
    with pytest.raises(UserError, match=words):
        pasted(text)


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        {"prompt": "a", "completion": "b", "tags": ["x", "y"]},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "tools": ["x", "y"]},
    ],
)
def test_one_pasted_object_is_one_row(record):
    """The list inside a single row is not taken for the rows."""
    assert pasted(json.dumps(record))[0] == [record]


def test_rows_that_speak_of_roles_are_still_rows(read):
    """The word "role" in a text says nothing about the shape of the file."""
    records = [{"prompt": "What is the role of a queen?", "completion": "To rule."}] * 2
    assert read(("a.json", json.dumps({"data": records})))[0] == records


def test_an_object_of_splits_is_rows_with_their_split(read):
    """{"train": [...], "test": [...]} says which rows are held out."""
    records, notes = read(("a.json", json.dumps({"train": RECORDS[:2], "test": RECORDS[2:]})))
    assert records == [{"split": split, **record} for split, record in zip(["train", "train", "test"], RECORDS)]
    assert "became their split" in notes[0]


# Broken lines -----------------------------------------------------------------------------------------------------


def test_one_broken_line_among_thousands_costs_one_row(read):
    """It is left out and told with its line, its beginning and the reason, wherever it stands."""
    for at in (0, 2, 1203, 4999):
        lines = ['{"text": "a"}'] * 5000
        lines[at] = '{"text": "a" "b": 1}'
        records, _ = read(("a.jsonl", "\n".join(lines) + "\n"))
        assert len(records) == 5000
        assert records[at] == Broken(
            f"line {at + 1:,}", f"is broken: Expecting ',' delimiter (line {at + 1:,} begins '{{\"text\": \"a\" \"b\": 1}}')."
        )
    again, _ = read(("a.jsonl", '{"text": "a"}\n' * 500), ("b.jsonl", "\n".join(lines)))
    assert again[-1].place == "line 5,000 of b.jsonl" and "line 5,000 of b.jsonl begins" in again[-1].why


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("null", "is null; each row must be an object with named fields"),
        ("[1]", r"is \[1\]; each row must be"),
        ('{"a": 1, "a": 2}', "is broken: the key 'a' stands twice in one object"),
        ('{"a": {"b": 1, "b": 2}}', "is broken: the key 'b' stands twice"),
        ('{"a": NaN}', "is broken: NaN is not a JSON value"),
        ('{"a": -Infinity}', "is broken: -Infinity is not a JSON value"),
        ('{"a": 1e999}', "is broken: 1e999 is too large a number"),
        ('{"a": "\\ud83d"}', r"is broken: it holds half a character \(\\ud83d\)"),
        ('{"a": "\\uDE00 \\ud83d\\ude00"}', "is broken: it holds half a character"),
        ('{"a": ' + "[" * 101 + "]" * 101 + "}", "is nested too deep"),
        ('{"a": ' + "[" * 5000 + "]" * 5000 + "}", "is nested too deep"),
        ('{"a": ' + "9" * 5000 + "}", "is broken: a number has more than 4,300 digits"),
        ("{" + ", ".join(f'"c{n}": 1' for n in range(1001)) + "}", "has 1,001 columns; the most is 1,000"),
    ],
)
def test_what_is_no_record_is_left_out_of_lines_and_of_lists(read, line, why):
    """JSONL and a JSON list judge their rows alike; alone it is an error."""
    lines = ['{"text": "a"}'] * 300
    lines[200] = line
    records, _ = read(("a.jsonl", "\n".join(lines)))
    assert len(records) == 300 and records[200].place == "line 201"
    with pytest.raises(UserError, match=why.removeprefix("is broken: ")):
        read(("a.jsonl", line))
    if "9999" in line or "[[[[" * 500 in line:
        with pytest.raises(UserError, match=why.removeprefix("is broken: ")):
            read(("a.json", f"[{', '.join(lines)}]"))
        return
    records, _ = read(("a.json", f"[{', '.join(lines)}]"))
    assert len(records) == 300 and records[200].place == "row 201"
    assert re.match(why, records[200].why)


def test_an_object_of_a_million_keys_is_judged_at_once(read):
    """Which key stands twice is found in one pass."""
    begun = time.process_time()
    with pytest.raises(UserError, match="the key 'k' stands twice"):
        read(("a.jsonl", "{" + "".join(f'"{n}": 0,' for n in range(300_000)) + '"k": 0, "k": 0}'))
    assert time.process_time() - begun < 5


def test_white_space_behind_an_object_is_not_held(read, monkeypatch):
    """One object and blank lines without end: neither JSONL nor a reason to fill the memory."""
    set_limit(monkeypatch, "MAX_LINE_BYTES", 2**20)
    set_limit(monkeypatch, "MAX_OBJECT_BYTES", 2**22)
    content = b'{"text": "a"}\n' + b"\n" * 2**25
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="is one JSON object of more than 4 MiB"):
            read(("a.json", content))
        assert tracemalloc.get_traced_memory()[1] < 16 * 2**20
    finally:
        tracemalloc.stop()


def test_many_broken_lines_are_a_broken_file(read):
    """More than one in a hundred: the first is named, and how many there are; a long file is not read to its end for it."""
    with pytest.raises(UserError, match=r"^a\.jsonl is broken at line 2: Expecting value\. The line begins '\{\"text\": oops\}'\. Fix or delete it\.$"):
        read(("a.jsonl", '{"text": "a"}\n{"text": oops}\n'))
    lines = ['{"text": "a"}\n'] * 1000
    lines[500:511] = ["oops\n"] * 11
    with pytest.raises(UserError, match=r"broken at line 501: .*11 of 1,000 lines are like that"):
        read(("a.jsonl", "".join(lines)))
    assert len(read(("a.jsonl", "".join(lines) + '{"text": "a"}\n' * 100))[0]) == 1100
    seen = []
    with pytest.raises(UserError, match="12 of 1,001 lines"):
        read(("a.jsonl", "".join(lines) + "oops\n" + '{"text": "a"}\n' * 500_000), on_progress=seen.append)
    assert max(seen, default=0) < 0.5


def test_a_last_line_that_is_cut_off_costs_one_row(read):
    """A download that broke off is told, and the whole rows before it are used."""
    whole = '{"text": "a", "b": [true, -1.5, null, "\\u00e4"]}'
    for length in range(1, len(whole)):
        records, _ = read(("a.jsonl", f"{whole}\n{whole[:length]}"))
        assert records[0]["text"] == "a" and records[1].place == "line 2"
        assert records[1].why.startswith("is cut off: the file ends in the middle of it (line 2 begins '{")
    records, _ = read(("a.jsonl", '{"text": "a"}\n{"text": "ä'.encode()[:-1]))
    assert records[1].why.startswith("is cut off")
    for content in ('{"text": "a"', '{"text": "a"}\n{"text": "a"\n', '{"text": "a"}\n{"text": oops}'):
        with pytest.raises(UserError, match="is broken at line"):
            read(("a.jsonl", content))


@pytest.mark.parametrize("block", [1, 2, 5, 2**20])
def test_line_numbers_are_right_whatever_ends_the_lines(read, monkeypatch, block):
    """Blank lines count, and a carriage return and its line feed are one end, also where two blocks share them."""
    set_limit(monkeypatch, "BLOCK", block)
    monkeypatch.setattr(reading_text, "head_of", lambda lines: (list(lines), True))
    with pytest.raises(UserError, match="row 2 is 12345; each row"):
        read(("a.json", '["a", 12345]'))
    for end in ("\n", "\r\n", "\r"):
        with pytest.raises(UserError, match="broken at line 4:"):
            read(("a.jsonl", end.join(['{"a": 1}', "", '{"a": 1}', "oops", ""])))
        with pytest.raises(UserError, match="line 4 has 3 cells"):
            read(("a.csv", end.join(["a,b", "", "1,2", "1,2,3", ""])))
        with pytest.raises(UserError, match="broken at line 3, column 8: Expecting value"):
            read(("a.json", end.join(["[", ' {"a": 1},', ' {"a": }', "]"])))
        with pytest.raises(UserError, match="not UTF-8: line 3 holds the byte 0xe9"):
            read(("a.txt", end.encode().join([b"a", b"b", b"caf\xe9"])))
        with pytest.raises(UserError, match="line 3 holds a NUL byte"):
            read(("a.txt", end.encode().join([b"a", b"b", b"c\0"])))
    with pytest.raises(UserError, match="broken at line 5: "):
        read(("a.json", '\n\n{"a": 1}\n{"a": 1}\noops'))


def test_a_slip_in_json_is_named(read):
    """What is behind the parser's words is said where it is plain."""
    for text, hint in {
        '{"a": 1,}': "comma too many", "{'a': 1}": "double quotes", '{"a": None}': "null, true and false", '{"a": 1, // b\n}': "no comments",
    }.items():
        with pytest.raises(UserError, match=hint):
            read(("a.json", text))
        with pytest.raises(UserError, match=hint):
            read(("a.json", f"[{text}]"))


def test_a_quote_that_never_closes_is_named_by_its_line(read, monkeypatch):
    """It neither swallows the file nor is blamed on its end."""
    with pytest.raises(UserError, match=r"unexpected end of data\. A quote opens at line 3 and never closes"):
        read(("a.csv", 'a,b\n1,2\n1,"3\n' + "4,5\n" * 50))
    set_limit(monkeypatch, "MAX_LINE_BYTES", 1000)
    with pytest.raises(UserError, match="begins at line 2 has more than 1,000 characters.* A quote opens at line 3 and never closes"):
        read(("a.csv", 'a,b\n"1\n2","3\n' + "4,5\n" * 500))
    with pytest.raises(UserError, match="near line 4: ',' expected after '\"' in the row that begins at line 2"):
        read(("a.csv", 'a,b\n1,"2\n3,4\n5,"6\n'))


def test_a_table_is_not_one_column_by_mistake(read):
    """Another separator than the comma is seen even where rows differ in length."""
    with pytest.raises(UserError, match="line 3 has 3 cells and the header has 2"):
        read(("a.csv", "prompt;completion\na;b\nc;d;e\nf;g\nh;i;j\n"))
    csv.field_size_limit(1000)  # whatever the process did before
    assert read(("a.csv", "prompt, or so;completion\na;b\n" + "c" * 200_000 + ";d\n"))[0][1]["completion"] == "d"
    assert read(("a.csv", "text\na; b\nc; d; e\n"))[0] == [{"text": "a; b"}, {"text": "c; d; e"}]


def test_columns_without_names_have_to_be_empty(read):
    """One may be an index; more would silently take each other's place."""
    assert read(("a.csv", ",a\n0,x\n"))[0] == [{"": "0", "a": "x"}]
    with pytest.raises(UserError, match="line 3 has text in a column without a name"):
        read(("a.csv", "a,,\nx,,\ny,z,\n"))


def test_a_first_line_that_reads_like_a_row_is_told(read):
    """A table without a header loses its first row to the names; the person should know."""
    _, notes = read(("a.csv", "Where is Paris?,In France.\nWhere is Rome?,In Italy.\n"))
    assert "The first line of a.csv was taken for the columns' names" in notes[0]


# Sizes ------------------------------------------------------------------------------------------------------------


def test_sizes_are_bounded(read, monkeypatch):
    """Before a file is read, before a line is parsed, before a packed file is unpacked."""
    set_limit(monkeypatch, "MAX_LINE_BYTES", 100)
    long = '{"text": "' + "x" * 100 + '"}'
    with pytest.raises(UserError, match="line 2 has 112 characters; the most is 100"):
        read(("a.jsonl", '{"text": "a"}\n' + long + "\n"))
    with pytest.raises(UserError, match="line 2 has more than 100 characters"):
        read(("a.jsonl", '{"text": "a"}\n' + long))
    with pytest.raises(UserError, match="row 2 has more than 100 characters, the most; it begins at line 2"):
        read(("a.json", f'[{{"text": "a"}},\n{long}]'))
    with pytest.raises(UserError, match="row 1 has more than 100 characters"):
        read(("a.json", '[{"text": "' + "x" * 200))
    with pytest.raises(UserError, match="row that begins at line 2 has more than 100 characters, the most"):
        read(("a.csv", "a,b\n1," + "x" * 200))
    with pytest.raises(UserError, match="paragraph of more than 100 characters before line 4"):
        read(("a.txt", "a\n\n" + "x" * 60 + "\n" + "y" * 60 + "\n"))
    set_limit(monkeypatch, "MAX_OBJECT_BYTES", 50)
    with pytest.raises(UserError, match="is one JSON object of more than 0 MiB. Save its rows as a list or as JSONL"):
        read(("a.json", json.dumps({"version": 1, "data": RECORDS})))
    set_limit(monkeypatch, "MAX_FILE_BYTES", 2**20)
    with pytest.raises(UserError, match=r"a\.txt has 2 MiB; the most is 1 MiB"):
        read(("a.txt", b"x" * 2**21))
    with pytest.raises(UserError, match="The 2 files have together 1 MiB; the most is 1 MiB"):
        read(("a.txt", b"x" * 2**20), ("b.txt", b"x"))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.zip", "a.parquet", "two"])
def test_what_is_unpacked_is_counted(read, monkeypatch, name):
    """Of all files together, and as it comes: no declared size is trusted."""
    set_limit(monkeypatch, "MAX_EXPANDED_BYTES", 2**20)
    lines = '{"text": "%s"}\n' % ("x" * 1000) * 1500
    packed = {
        "a.jsonl.gz": gzip.compress(lines.encode()), "a.jsonl.zst": zstd(lines), "a.zip": zip_of({"a.jsonl": lines[:900_000], "b.jsonl": lines[:900_000]}),
        "a.parquet": parquet_of(pa.table({"text": ["x" * 1000] * 1500})),
    }
    files = [("a.jsonl.gz", gzip.compress(lines[: 1014 * 700].encode()))] * 2 if name == "two" else [(name, packed[name])]
    with pytest.raises(UserError, match="unpacks to more than 0 GiB. Bring a part of it"):
        read(*files)
    set_limit(monkeypatch, "MAX_EXPANDED_BYTES", 2**30)
    read(*files)
    monkeypatch.setattr(reading_files, "_BOMB_BYTES", 2**18)
    monkeypatch.setattr(reading_files, "_BOMB_RATIO", 100 if name == "a.parquet" else 10)
    if name == "a.parquet":
        read(*files)  # a column may honestly repeat one long value
        monkeypatch.setattr(reading_files, "_BOMB_RATIO", 10)
    with pytest.raises(UserError, match="which is too large to be text"):
        read(*files)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt", "a.jsonl.gz", "a.zip", "a.parquet", "a.arrow"])
def test_a_large_file_is_never_held_whole(tmp_path, name):
    """32 MiB of rows pass through a few megabytes, and the share of them that was read grows to 1."""
    row = {"prompt": "x" * 500, "completion": "y" * 500}
    count = 32_000
    line = json.dumps(row) + "\n"
    path, spool, shares = tmp_path / "upload", tmp_path / "spool", []
    spool.mkdir()
    if name in ("a.parquet", "a.arrow"):
        schema = pa.schema({"prompt": pa.string(), "completion": pa.string()})
        batch = pa.RecordBatch.from_pylist([row] * 1000, schema)
        with pq.ParquetWriter(path, schema, use_dictionary=False, compression="none") if name == "a.parquet" else pa.ipc.new_file(str(path), schema) as writer:
            for _ in range(count // 1000):
                writer.write_batch(batch) if name == "a.arrow" else writer.write_batch(batch, row_group_size=count)
    else:
        text = {
            "a.json": lambda: "[" + (line.rstrip() + ",\n") * (count - 1) + line + "]", "a.csv": lambda: "prompt,completion\n" + f"{'x' * 500},{'y' * 500}\n" * count,
        }.get(name, lambda: line * count)().encode()
        if name == "a.zip":
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
                archive.writestr("a.jsonl", text)
        else:
            path.write_bytes(gzip.compress(text, 1) if name.endswith(".gz") else text)
        del text
    list(itertools.islice(reading.read([(path, name)], [], spool), 1))  # what is imported on the way is not counted
    before = pa.default_memory_pool().bytes_allocated()
    tracemalloc.start()
    try:
        held, seen = 0, 0
        for _ in reading.read([(path, name)], [], spool, shares.append):
            seen += 1
            if seen % 1000 == 0:
                held = max(held, pa.default_memory_pool().bytes_allocated() - before)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert seen == count and peak < 12 * 2**20 and held < 12 * 2**20
    assert shares == sorted(shares) and shares[-1] == 1.0 and 0 < shares[0] < 0.9


def test_a_reading_that_is_left_early_leaves_nothing(tmp_path):
    """The first rows are shown, then the page is closed."""
    (tmp_path / "upload").write_bytes(gzip.compress(parquet_of(TABLE)))
    spool = tmp_path / "spool"
    spool.mkdir()
    records = reading.read([(tmp_path / "upload", "a.parquet.gz")], [], spool)
    assert next(records) == RECORDS[0] and len(list(spool.iterdir())) == 1
    records.close()
    assert list(spool.iterdir()) == []


def test_a_parquet_bomb_is_refused_by_its_footer(read, monkeypatch):
    """What it would unpack to is declared in the file; it is refused before a page is read."""
    set_limit(monkeypatch, "MAX_EXPANDED_BYTES", 2**20)
    content = parquet_of(pa.table({"text": ["x" * 2**21]}), compression="zstd", use_dictionary=False)
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *args, **kwargs: pytest.fail("a page was read"))
    with pytest.raises(UserError, match=r"a\.parquet unpacks to more than 0 GiB"):
        read(("a.parquet", content))


@pytest.mark.parametrize("kind", ["a.parquet", "delta.parquet", "a.arrow", "nulls.arrow", "runs.arrow", "view.arrow"])
def test_a_value_repeated_by_reference_cannot_fill_the_memory(read, monkeypatch, kind):
    """One large value that a dictionary repeats 100,000 times is small in the file and in its footer."""
    set_limit(monkeypatch, "MAX_EXPANDED_BYTES", 2**23)
    value, count = "x" * 2**20, 100_000
    repeated = pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), pa.array([value]))
    table = pa.table({"text": repeated})
    if kind == "nulls.arrow":
        table = pa.table({"text": pa.nulls(50_000_000)})
    if kind == "runs.arrow":
        table = pa.table({"text": pa.RunEndEncodedArray.from_arrays(pa.array([50_000_000], pa.int32()), pa.array([value]))})
    if kind == "view.arrow":
        table = pa.table({"text": pa.Array.from_buffers(
            pa.string_view(), count, [None, pa.py_buffer(struct.pack("<i4sii", 2**20, b"xxxx", 0, 0) * count), pa.py_buffer(value.encode())]
        )})
    options = {"use_dictionary": False, "column_encoding": "DELTA_BYTE_ARRAY"} if kind == "delta.parquet" else {}
    if kind == "delta.parquet":
        table = pa.table({"text": [value] * 200})
        set_limit(monkeypatch, "MAX_EXPANDED_BYTES", 2**22)
    content = parquet_of(table, store_schema=False, **options) if kind.endswith("parquet") else arrow_of(table)
    assert len(content) < 2**22
    set_limit(monkeypatch, "MAX_ROWS", 50)
    before = pa.default_memory_pool().max_memory()
    tracemalloc.start()
    try:
        if kind == "nulls.arrow":
            assert len(read((kind, content))[0]) == 50
        else:
            with pytest.raises(UserError, match="unpacks to more than"):
                read((kind, content))
        assert tracemalloc.get_traced_memory()[1] < 2**26
        assert pa.default_memory_pool().max_memory() - before < 2**26
    finally:
        tracemalloc.stop()


def test_honest_columns_are_read_many_rows_at_once(read, monkeypatch):
    """A large row group is no reason to take its rows one by one, which is twenty times slower."""
    asked = []
    real = pq.ParquetFile.iter_batches
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda file, size: (asked.append(size), real(file, size))[1])
    rows = [f"{number:05d}" * 1000 for number in range(5_000)]
    for options in ({}, {"use_dictionary": False}):
        assert len(read(("a.parquet", parquet_of(pa.table({"text": rows}), row_group_size=5_000, **options)))[0]) == 5_000
    assert 10 <= asked[0] < asked[1] == 1024


def test_a_lack_of_memory_is_told(read, monkeypatch):
    """The caller bounds the memory; what does not fit into it is the file's fault, in words."""
    for error in (MemoryError(), pa.ArrowMemoryError("malloc of size 123 failed")):
        def refuse(*args, _error=error, **kwargs):
            raise _error
        monkeypatch.setattr(pq, "ParquetFile", refuse)
        with pytest.raises(UserError, match=r"a\.parquet unpacks to more memory than there is here"):
            read(("a.parquet", parquet_of(TABLE)))


# Several files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train.jsonl", "test.jsonl"], ["train", "test"]),
        (["data-train.jsonl", "data.Valid.jsonl.gz", "x_dev.json"], ["train", "valid", "dev"]),
        (["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl", "test-00000-of-00001-0123456789abcdef.jsonl"], ["train", "train", "test"]),
        (["train.jsonl", "training.jsonl"], None),
        (["val.jsonl", "dev.jsonl"], None),
        (["train.jsonl", "rows.jsonl"], None),
        (["strain.jsonl", "contest.jsonl"], None),
        (["train.jsonl"], None),
    ],
)
def test_names_that_say_the_split_give_it_to_their_rows(read, names, splits):
    """Several files are one dataset; where every name is a split's and they differ, each row has its own."""
    line = '{"text": "a"}'
    contents = [gzip.compress(line.encode()) if name.endswith("gz") else line for name in names]
    records, notes = read(*zip(names, contents))
    assert records == [{"text": "a"} | ({"split": split} if splits else {}) for split in splits or names]
    assert notes == ([f"Each row's split is that of its file's name: {', '.join(dict.fromkeys(splits))}."] if splits else [])
    if splits and not any(name.endswith("gz") for name in names):
        members = dict(zip(names, contents))
        assert [record["split"] for record in read(("a.zip", zip_of(members)))[0]] == sorted(splits)


def test_a_split_column_of_their_own_counts(read):
    """What the rows say is not overwritten by what the files are called."""
    records, notes = read(("train.jsonl", '{"text": "a", "split": "test"}\n{"text": "b"}'), ("test.jsonl", '{"text": "c"}'))
    assert records == [{"text": "a", "split": "test"}, {"text": "b"}, {"text": "c"}] and notes == []


def test_errors_name_the_file_among_several(read):
    """Also inside a zip, and a file without rows is told, not silently passed over."""
    with pytest.raises(UserError, match=r"^b\.jsonl is broken at line 1"):
        read(("a.jsonl", '{"text": "a"}'), ("b.jsonl", "oops"))
    with pytest.raises(UserError, match=r"^dir/b\.jsonl in x\.zip is broken at line 1"):
        read(("x.zip", zip_of({"dir/a.jsonl": '{"text": "a"}', "dir/b.jsonl": "oops"})))
    assert read(("a.csv", "text\na\n"), ("b.csv", "text\n"))[1] == ["b.csv has no rows."]
    with pytest.raises(UserError, match="What you brought has no rows"):
        read(("a.csv", "text\n"), ("b.csv", "text\n"))
    with pytest.raises(UserError, match=r"^b\.docx ends in '\.docx'"):
        read(("a.jsonl", '{"text": "a"}'), ("b.docx", "x"))


def test_no_files_and_lost_files_are_told(tmp_path):
    """An upload may have been deleted between the choice and the reading."""
    for files, words in (([], "No file was chosen"), ([(tmp_path / "gone", "a.csv")], r"a\.csv is not here any more. Choose it again")):
        with pytest.raises(UserError, match=words):
            list(reading.read(files, [], tmp_path))


# Names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("rows.jsonl", "rows.jsonl"), ("a\nb\tc.csv", "a b c.csv"), ("evil\u202elsj.csv", "evil lsj.csv"), ("../../etc/passwd", "passwd"),
        ("C:\\Users\\ann\\rows.csv", "rows.csv"), ("=cmd|' /C calc'!A0.csv", "C calc'!A0.csv"), ("", "Unnamed file"), ("\u202e\n", "Unnamed file"),
        ("..", ".."), ("a/", "a"), ("👩‍👩‍👧.csv", "👩‍👩‍👧.csv"), ("a\ud800.csv", "a .csv"), ("\ufeffa.csv", "a.csv"), ("a\x00\x1b[31m.csv", "a [31m.csv"),
    ],
)
def test_a_name_is_shown_without_what_could_mislead(name, title):
    """Marks that turn the writing round, line ends and terminal codes are gone; emoji families stay together."""
    assert reading.safe_title(name) == title


def test_a_long_file_name_is_cut_and_nothing_of_this_machine_is_shown(read, tmp_path):
    """The message names the file as the person does, not where it lies here."""
    with pytest.raises(UserError) as told:
        read(("x" * 300 + ".csv", b""))
    assert len(str(told.value)) < 150 and str(tmp_path) not in str(told.value)
    assert len(reading.safe_title("x" * 5000 + os.sep + "y" * 5000)) <= 60
    assert Path("x" * 300 + ".csv").suffix == ".csv"
