"""Tests of what is brought by mistake or in malice: every case of the table, any bytes, any JSON, damaged files."""

import encodings.cp437
import encodings.utf_16  # noqa: F401 imported here, so that no test sees its file opened
import gzip
import json
import re
import sys
import time
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet  # noqa: F401 likewise
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.bad_inputs import cases, make
from tuner import pictures, reading
from tuner.errors import UserError
from tuner.reading import Broken

FEW = settings(
    max_examples=100, derandomize=True, deadline=None, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
OPENED: list[str] | None = None  # what is opened while a case is read


def _watch(event: str, args: tuple) -> None:
    if OPENED is not None and event in ("open", "os.mkdir", "os.rename", "os.symlink", "os.link", "os.listdir", "os.scandir", "shutil.copyfile"):
        OPENED.append(str(args[0]))


sys.addaudithook(_watch)


def outcome(files: list[tuple[Path, str]], spool: Path, quick: bool = False) -> tuple[int, int, list[str]]:
    """How many records and broken lines, and the notes, each as it has to be whatever was brought; `quick` looks at no value."""
    records, broken, notes = 0, 0, []
    for item in reading.read(files, notes, spool):
        if isinstance(item, Broken):
            assert item.why.startswith(("is ", "has ")) and item.why.endswith(").") and item.place
            broken += 1
        else:
            assert type(item) is dict
            if not quick:
                json.dumps(item, allow_nan=False, ensure_ascii=False, default=of_a_picture).encode()
            records += 1
    assert records and all(note.endswith(".") for note in notes)
    return records, broken, notes


def of_a_picture(value):
    """What is not plain JSON in a record: a picture that was taken, or why there is none."""
    if not isinstance(value, (pictures.Taken, pictures.NoPicture)):
        raise TypeError(type(value).__name__)
    return str(value)


def check_words(told: UserError, folder: Path) -> None:
    """One message for a person: no path of this machine, no name from the code, nothing that misleads, not too long."""
    text = str(told)
    assert str(folder) not in text and "Traceback" not in text and "/tmp" not in text
    assert not re.search(r"\b\w+(Error|Exception|Warning)\b|\bArrow(Invalid|TypeError)\b|<class|object at 0x", text)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", text)
    assert 20 < len(text) < 500 and text.rstrip().endswith(".")


def test_the_table_is_whole():
    """Names differ, and each case says one thing that has to come of it."""
    assert len(cases()) >= 130
    assert len({case.name for case in cases()}) == len(cases())
    for case in cases():
        assert bool(case.refused) != bool(case.read), case.name
        assert set(case.read) <= {"rows", "broken", "notes"}, case.name


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_a_bad_input(tmp_path, case):
    """It is read, or refused in words, quickly, and nothing is left or touched beside it."""
    global OPENED
    brought, spool = tmp_path / "in", tmp_path / "spool"
    brought.mkdir()
    spool.mkdir()
    files = case.files(brought)
    before = sorted(tmp_path.rglob("*"))
    pool = pa.default_memory_pool()
    held = pool.bytes_allocated()
    OPENED = []
    if case.bomb:
        tracemalloc.start()
    begun = time.process_time()
    try:
        try:
            records, broken, notes = outcome(files, spool, quick=case.bomb)
        except UserError as told:
            assert case.refused and case.refused in str(told)
            check_words(told, tmp_path)
        else:
            assert not case.refused
            assert (records, broken) == (case.read["rows"], case.read.get("broken", 0))
            assert case.read.get("notes", "") in "\n".join(notes)
            if "notes" not in case.read:
                assert notes == []
        assert time.process_time() - begun < 5
        if case.bomb:
            assert tracemalloc.get_traced_memory()[1] < 200 * 2**20
            assert pool.bytes_allocated() - held < 2**20
    finally:
        opened, OPENED = OPENED, None
        tracemalloc.stop()
    assert sorted(tmp_path.rglob("*")) == before
    assert [path for path in opened if not path.startswith(str(tmp_path))] == []


@pytest.mark.parametrize("case", [case for case in cases() if len(case.parts) == 1 and "text" in case.parts[0] and case.parts[0]["called"].startswith("a.json")],
                         ids=lambda case: case.name)
def test_a_bad_input_pasted(case):
    """What is refused as a file is refused as a paste, or it is read; never anything else."""
    notes = []
    try:
        records = list(reading.read_pasted(case.parts[0]["text"], notes))
    except UserError as told:
        assert str(told)
        assert not case.read or "Nothing was pasted" in str(told)
    else:
        assert records


# Any bytes, any JSON, any damage ----------------------------------------------------------------------------------


def use(folder: Path, name: str, content: bytes) -> None:
    """Read a file; anything but records, broken lines and a UserError is a fault."""
    path, spool = folder / "upload", folder / "spool"
    path.write_bytes(content)
    spool.mkdir(exist_ok=True)
    try:
        outcome([(path, name)], spool)
    except UserError as told:
        assert str(told)
    assert list(spool.iterdir()) == []


@FEW
@given(ending=st.sampled_from(reading.endings()), content=st.binary(max_size=200), packed=st.booleans())
@example(ending=".csv", content=b"\xff\xfe\x00\xd8", packed=False)
@example(ending=".tsv", content=b'"a\tb\n', packed=False)
@example(ending=".zip", content=b"PK\x05\x06" + b"\0" * 18, packed=False)
@example(ending=".zip", content=b"PK\x05\x06" + b"\xff" * 18, packed=False)
def test_no_bytes_break_the_reading(tmp_path, ending, content, packed):
    """Whatever is brought under whatever name ends as rows or as words, also where it is packed as its name says."""
    if packed:
        inner = ending.removesuffix(".gz").removesuffix(".zst")
        content = {".gz": gzip.compress, ".zst": lambda raw: pa.compress(raw, codec="zstd", asbytes=True)}.get(ending[len(inner) :], lambda raw: raw)(content)
        if ending == ".zip":
            content = make.zip_of({"a.jsonl": content, "b.csv": content, "c.arrow": content})
    use(tmp_path, f"a{ending}", content)


@FEW
@given(content=st.text(max_size=200), ending=st.sampled_from([".json", ".jsonl", ".csv", ".tsv", ".txt"]))
@example(content='{"a": 1}\x85{"a": 2}', ending=".jsonl")
@example(content='a,b\n"1"x,2', ending=".csv")
def test_no_text_breaks_the_reading(tmp_path, content, ending):
    """Letters of every kind, in every text format."""
    use(tmp_path, f"a{ending}", content.encode("utf-8", "surrogatepass"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.sampled_from(["messages", "role", "content", "from", "value", "train", "test", "split", "data", ""]) | st.text(max_size=3), inner, max_size=5),
    max_leaves=15,
)


@FEW
@given(value=JSON, lines=st.booleans(), ascii=st.booleans(), indent=st.sampled_from([None, 1]), place=st.integers(0, 500), put=st.text(max_size=2))
@example(value={"text": "\ud800", "split": 1e999}, lines=False, ascii=True, indent=None, place=0, put="")
@example(value=[{"text": float("nan")}] * 2, lines=True, ascii=True, indent=None, place=0, put="")
@example(value={"train": [{}], "test": []}, lines=False, ascii=True, indent=None, place=0, put="")
def test_no_json_breaks_the_reading(tmp_path, value, lines, ascii, indent, place, put):
    """Whatever values stand where rows are expected, whole or with a slip, as a file and pasted."""
    text = "\n".join(json.dumps(item, ensure_ascii=ascii) for item in value) if lines and isinstance(value, list) else json.dumps(value, ensure_ascii=ascii, indent=indent)
    text = text[: place % (len(text) + 1)] + put + text[place % (len(text) + 1) :] if put else text
    for ending in (".json", ".jsonl"):
        use(tmp_path, f"a{ending}", text.encode("utf-8", "surrogatepass"))
    try:
        list(reading.read_pasted(text, []))
    except UserError as told:
        assert str(told)


VALID = {
    ".parquet": make.parquet(), ".arrow": make.arrow(), ".feather": make.arrow("stream"), ".jsonl.gz": make.gzip(), ".jsonl.zst": make.zstd(),
    ".zip": make.zip_of({"train.jsonl": make.ROW * 5, "test.parquet": ["parquet"]}),
}


@settings(FEW, max_examples=300)
@given(ending=st.sampled_from(sorted(VALID)), place=st.integers(0, 10_000), put=st.binary(min_size=1, max_size=8), grow=st.booleans())
@example(ending=".arrow", place=406, put=b"\xff\x7f", grow=False)  # an offset far outside the file: a segmentation fault
@example(ending=".feather", place=398, put=b"\xff\x7f", grow=False)
def test_no_damage_breaks_the_reading(tmp_path, ending, place, put, grow):
    """Lengths and offsets in a file are checked before they are followed: a wrong one must not end the process."""
    content = bytearray(VALID[ending])
    at = place % (len(content) - len(put))
    content[at : at if grow else at + len(put)] = put
    use(tmp_path, f"a{ending}", bytes(content))
