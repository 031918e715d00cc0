"""Rows from a file, the Hub or pasted text, whatever their format, turned into the task's one row shape."""

import csv
import hashlib
import io
import itertools
import json
import math
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path

from tuner import tasks
from tuner.errors import UserError, shorten
from tuner.home import DEMO_ROOT, private_dir, read_json, safe_name, tuner_home, write_json, write_whole
from tuner.recipe import HUB_ID

# What is read at most; the rest is left out and said.
MAX_ROWS = 200_000
MAX_FILE_BYTES = 512 * 2**20
MAX_LINE_BYTES = 16 * 2**20
MAX_EXPANDED_BYTES = 2 * 2**30
MAX_COLUMNS = 1_000

EXTENSIONS = {
    ".jsonl": "JSONL", ".ndjson": "JSONL", ".json": "JSON", ".csv": "CSV", ".tsv": "TSV",
    ".parquet": "Parquet", ".arrow": "Arrow", ".feather": "Arrow", ".txt": "TXT",
}
_MAGIC = {
    b"PK\x03\x04": "a zip or Excel file", b"\x1f\x8b": "a gzip file", b"\x28\xb5\x2f\xfd": "a zstd file",
    b"%PDF": "a PDF", b"\x89PNG": "a PNG picture", b"\xff\xd8\xff": "a JPEG picture", b"GGUF": "a GGUF model",
    b"\xd0\xcf\x11\xe0": "an old Office file",
}

DEMO_PATH = DEMO_ROOT / "data" / "headlines.jsonl"
_SPLIT_NAMES = {"train": "train", "training": "train", "test": "test", "validation": "test", "valid": "test",
                "val": "test", "dev": "test", "eval": "test"}


@dataclass(frozen=True)
class Mapping:
    """How records become rows.

    Args:
        format: one of the task's formats.
        columns: role -> the record's column that plays it.
        reason: why, in a sentence for the page.
    """

    format: str
    columns: dict[str, str]
    reason: str = ""


@dataclass
class Dataset:
    """Records as they were read, and how they are mapped; one folder, owned by one person."""

    owner: str
    id: str
    name: str
    source: dict
    mapping: Mapping
    notes: list[str] = field(default_factory=list)
    task: str = "chat"
    count: int = 0

    @property
    def folder(self) -> Path:
        return datasets_dir(self.owner) / self.id

    @property
    def hub_id(self) -> str:
        """The Hub dataset that the records came from; "" if they came from elsewhere."""
        return self.source.get("hub_id", "")

    def records(self) -> tuple[dict, ...]:
        return _read_records(self.folder / "records.jsonl")

    def rows(self) -> tuple[list[dict], list[dict]]:
        """The task's rows, and what was left out.

        Returns:
            rows: the task's row shape, each with "n", its number in the source counted from 1, and "split".
            left_out: {"n": int, "why": str} for each record that gives no row.

        Raises:
            UserError: no record gives a row.
        """
        return to_rows(self.records(), self.mapping, self.task)


def datasets_dir(owner: str) -> Path:
    return tuner_home() / "datasets" / safe_name(owner, "The owner")


@lru_cache(maxsize=8)
def _read_records(path: Path) -> tuple[dict, ...]:
    with open(path, encoding="utf-8") as file:
        return tuple(json.loads(line) for line in file)


def to_rows(records, mapping: Mapping, task: str = "chat") -> tuple[list[dict], list[dict]]:
    """See `Dataset.rows`."""
    rows, left_out = [], []
    convert = tasks.get(task).to_row
    for number, record in enumerate(records, 1):
        try:
            row = convert(record, mapping)
        except ValueError as problem:
            left_out.append({"n": number, "why": str(problem)})
            continue
        split = record.get(mapping.columns.get("split", ""), "")
        rows.append({**row, "n": number, "split": _SPLIT_NAMES.get(str(split).strip().lower(), "")})
    if not rows:
        seen = [f"Row {item['n']} {item['why']}" for item in left_out[:3]]
        raise UserError(
            f"None of the {len(left_out):,} rows can be learned from. " + " ".join(seen)
            + " Check which column is which, or add the answers."
        )
    return rows, left_out


def split_rows(rows: list[dict], held_out_share: float, seed: int) -> tuple[list[dict], list[dict], str]:
    """Training rows and held-out rows.

    The dataset's own split is used if it has one. Else rows are ordered by a seeded hash of what they say and the
    first share of the distinct ones is held out, so equal rows never stand on both sides.

    Returns:
        train, held_out, and in words how the split came about.

    Raises:
        UserError: fewer than two different rows.
    """
    own = [row for row in rows if row["split"] == "test"]
    if own and len(own) < len(rows):
        return [row for row in rows if row["split"] != "test"], own, "the dataset's own split"

    def key(row: dict) -> str:
        said = {name: value for name, value in row.items() if name not in ("n", "split")}
        text = json.dumps([seed, said], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    keys = [key(row) for row in rows]
    distinct = sorted(set(keys))
    if len(distinct) < 2:
        raise UserError(
            f"The dataset has {len(rows):,} rows and {len(distinct)} different one. At least two different rows are "
            "needed: one to learn from, one to measure on."
        )
    held = set(distinct[: max(1, round(held_out_share * len(distinct)))])
    train = [row for row, its in zip(rows, keys) if its not in held]
    held_out = [row for row, its in zip(rows, keys) if its in held]
    return train, held_out, f"{len(held_out)} of {len(rows)} rows chosen by a seeded hash"


# Reading ----------------------------------------------------------------------------------------------------------


def read_file(path: Path, name: str = "") -> tuple[list[dict], list[str]]:
    """The records in a file, and notes on what was done to read them.

    Args:
        path: the file.
        name: what the person calls it; its ending says the format.

    Raises:
        UserError: empty, too large, not what its name says, not text, broken (with the line), or without rows.
    """
    path, name = Path(path), name or Path(path).name
    shown = shorten(name)
    kind = EXTENSIONS.get(Path(name).suffix.lower())
    if not kind:
        raise UserError(
            f"{shown} ends in {Path(name).suffix[:20] or 'nothing'!r}. Bring one of {', '.join(sorted(EXTENSIONS))}."
        )
    size = path.stat().st_size
    if size == 0:
        raise UserError(f"{shown} is empty (0 bytes). Choose a file that has rows in it.")
    if size > MAX_FILE_BYTES:
        raise UserError(
            f"{shown} has {size / 2**20:,.0f} MiB; the most is {MAX_FILE_BYTES / 2**20:,.0f} MiB. Bring a part of it."
        )
    notes: list[str] = []
    if kind in ("Parquet", "Arrow"):
        records = _read_columnar(path, shown, kind)
    else:
        text = _decode(path, shown, notes)
        readers = {"JSONL": _read_jsonl, "JSON": _read_json, "TXT": _read_txt}
        if kind in readers:
            records = readers[kind](text, shown, notes)
        else:
            records = _read_table(text, shown, "\t" if kind == "TSV" else "", notes)
    return _take(records, shown, notes), notes


def read_pasted(text: str) -> tuple[list[dict], list[str]]:
    """The records in pasted text: JSON, JSONL, a table with a header, or plain paragraphs.

    Raises:
        UserError: nothing was pasted, or it is broken.
    """
    text = text.strip()
    if not text:
        raise UserError("Nothing was pasted. Paste rows as JSONL, JSON, CSV or plain text, then try again.")
    if len(text) > 20 * 2**20:
        raise UserError(f"{len(text):,} characters were pasted; the most is 20 million. Upload a file instead.")
    notes: list[str] = []
    shown = "The pasted text"
    if text[0] in "[{":
        records = _read_json(text, shown, notes)
    else:
        first = text.splitlines()[0]
        tabular = "\n" in text and any(first.count(mark) for mark in "\t,;")
        if tabular and (delimiter := _sniff_delimiter(text)):
            records = _read_table(text, shown, delimiter, notes)
        else:
            records = _read_txt(text, shown, notes)
    return _take(records, shown, notes), notes


def read_hub(
    hub_id: str, config: str = "", split: str = "", revision: str = "", token: str | None = None, most: int = 10_000
) -> tuple[list[dict], list[str]]:
    """The first records of a Hub dataset, streamed; it is never downloaded whole.

    Args:
        token: the visitor's own, or None for nobody's.
        most: how many records at most.

    Raises:
        UserError: not a Hub id, no such dataset, config or split, gated, private, or the Hub cannot be reached.
    """
    from tuner import hub

    hub_id = hub_id.strip().removeprefix("https://huggingface.co/").removeprefix("datasets/").rstrip("/")
    if not HUB_ID.fullmatch(hub_id) or ".." in hub_id:
        raise UserError(f"{shorten(hub_id)!r} is not a Hub dataset id. It looks like user/name.")
    hub.require_dataset(hub_id, revision, token)  # a visitor's string must be the Hub's before it meets load_dataset
    records, splits = hub.stream_dataset(hub_id, config, split, revision, token, most)
    shown = f"{hub_id} ({split or splits[0]})"
    notes = [f"Streamed from the Hub: the first {len(records):,} rows."] if len(records) >= most else []
    return _take(records, shown, notes), notes


def _take(records, shown: str, notes: list[str]) -> list[dict]:
    """At most MAX_ROWS records, as plain JSON values; the rest is said."""
    try:
        taken = [_plain(record) for record in itertools.islice(records, MAX_ROWS + 1)]
    except RecursionError:
        raise UserError(f"{shown} is nested too deep. Flatten it.") from None
    if len(taken) > MAX_ROWS:
        taken.pop()
        notes.append(f"Only the first {MAX_ROWS:,} rows are used.")
    if not taken:
        raise UserError(f"{shown} has no rows. Choose a file that has rows in it.")
    return taken


def _decode(path: Path, shown: str, notes: list[str]) -> str:
    raw = path.read_bytes()
    for magic, what in _MAGIC.items():
        if raw.startswith(magic):
            raise UserError(f"{shown} is {what}, not text. Export it as CSV or JSONL and bring that.")
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        try:
            text = raw.decode("utf-16")
        except UnicodeDecodeError:
            raise UserError(f"{shown} begins like UTF-16 and is not. Save it as UTF-8.") from None
        notes.append("The file was UTF-16 and was read as such.")
    elif b"\x00" in raw:
        line = raw[: raw.index(b"\x00")].count(b"\n") + 1
        raise UserError(f"{shown} is not a text file: line {line:,} holds a NUL byte. Save it as UTF-8 text.")
    else:
        try:
            text = raw.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = raw[: error.start].count(b"\n") + 1
            raise UserError(
                f"{shown} is not UTF-8: line {line:,} holds the byte 0x{raw[error.start]:02x}. Save it as UTF-8."
            ) from None
    if not text.strip():
        raise UserError(f"{shown} holds nothing but white space. Choose a file that has rows in it.")
    return text


def _refuse_constant(name: str):
    raise ValueError(f"{name} is not a JSON value")


def _loads(text: str):
    """json.loads that keeps large whole numbers exact and refuses NaN and infinity, as JSON does."""
    return json.loads(text, parse_constant=_refuse_constant)


def _as_record(value: object, place: str) -> dict:
    if isinstance(value, dict):
        if len(value) > MAX_COLUMNS:
            raise UserError(f"{place} has {len(value):,} columns; the most is {MAX_COLUMNS:,}. Keep those that matter.")
        return value
    if isinstance(value, str):
        return {"text": value}
    raise UserError(f"{place} is {shorten(json.dumps(value), 40)}; each row must be an object with named fields.")


def _read_jsonl(text: str, shown: str, notes: list[str]) -> Iterator[dict]:
    # Not str.splitlines: it also cuts at U+2028 and others that may stand inside a JSON string.
    for number, line in enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), 1):
        if not line.strip():
            continue
        if len(line) > MAX_LINE_BYTES:
            raise UserError(f"{shown}, line {number:,} has {len(line):,} characters; the most is {MAX_LINE_BYTES:,}.")
        try:
            value = _loads(line)
        except RecursionError:
            raise UserError(f"{shown}, line {number:,} is nested too deep. Flatten it.") from None
        except ValueError as error:
            reason = getattr(error, "msg", str(error))
            raise UserError(
                f"{shown} is broken at line {number:,}: {reason}. The line begins {shorten(line, 40)!r}. Fix or delete it."
            ) from None
        yield _as_record(value, f"{shown}, line {number:,}")


def _read_json(text: str, shown: str, notes: list[str]) -> Iterator[dict]:
    try:
        value = _loads(text)
    except RecursionError:
        raise UserError(f"{shown} is nested too deep. Flatten it.") from None
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            notes.append("It is JSONL, one object a line, and was read as such.")
            yield from _read_jsonl(text, shown, notes)
            return
        raise UserError(f"{shown} is broken at line {error.lineno:,}, column {error.colno}: {error.msg}. Fix it there.") from None
    except ValueError as error:
        raise UserError(f"{shown} is not valid JSON: {error}.") from None
    if isinstance(value, dict):
        lists = {key: item for key, item in value.items() if isinstance(item, list)}
        lengths = {len(item) for item in lists.values()}
        if len(lists) == 1 and _holds_rows(next(iter(lists.values())), alone=len(value) == 1):
            key = next(iter(lists))
            notes.append(f"The rows were found under {shorten(key, 30)!r}.")
            value = lists[key]
        elif len(lists) == len(value) > 1 and len(lengths) == 1:
            notes.append("The file is a table by columns and was turned into rows.")
            value = [dict(zip(lists, row)) for row in zip(*lists.values())]
        else:
            value = [value]
    if not isinstance(value, list):
        raise UserError(f"{shown} holds {shorten(json.dumps(value), 40)}; a list of rows is expected.")
    for number, item in enumerate(value, 1):
        yield _as_record(item, f"{shown}, row {number:,}")


def _holds_rows(items: list, alone: bool) -> bool:
    """Whether a list inside an object is the dataset's rows, rather than the turns or the tags of a single row."""
    if not all(isinstance(item, dict) for item in items):
        return alone and all(isinstance(item, str) for item in items)
    return not items or not ("role" in items[0] or {"from", "value"} <= items[0].keys())


def _sniff_delimiter(text: str) -> str:
    """The mark that splits the first lines into the same number of cells, more than one; "" if there is none."""
    lines = "\n".join(text.splitlines()[:30])
    best, cells = "", 1
    for mark in ",\t;|":
        try:
            widths = [len(row) for row in csv.reader(io.StringIO(lines), delimiter=mark) if row]
        except csv.Error:
            continue
        if widths and widths[0] > cells and sum(width == widths[0] for width in widths) >= 0.9 * len(widths):
            best, cells = mark, widths[0]
    return best


def _read_table(text: str, shown: str, delimiter: str, notes: list[str]) -> Iterator[dict]:
    if not delimiter:
        delimiter = _sniff_delimiter(text) or ","
        if delimiter != ",":
            notes.append(f"Cells are separated by {'a tab' if delimiter == chr(9) else repr(delimiter)}.")
    csv.field_size_limit(MAX_LINE_BYTES)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = [name.strip() for name in next((row for row in reader if any(cell.strip() for cell in row)), [])]
        if len(header) > MAX_COLUMNS:
            raise UserError(f"{shown} has {len(header):,} columns; the most is {MAX_COLUMNS:,}. Keep those that matter.")
        if twice := sorted({name for name in header if name and header.count(name) > 1}):
            raise UserError(f"{shown} has the column {shorten(twice[0], 30)!r} twice. Give each column its own name.")
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            if len(row) != len(header):
                raise UserError(
                    f"{shown}, line {reader.line_num:,} has {len(row)} cells and the header has {len(header)}. "
                    "Put quotes round cells that hold the separator."
                )
            # Cells stay text: 007 is not 7 and NA is not nothing.
            yield dict(zip(header, row))
    except csv.Error as error:
        raise UserError(f"{shown} is broken near line {reader.line_num:,}: {error}. Check the quotes there.") from None


def _read_txt(text: str, shown: str, notes: list[str]) -> Iterator[dict]:
    blocks = [block.strip() for block in text.replace("\r\n", "\n").replace("\r", "\n").split("\n\n")]
    blocks = [block for block in blocks if block]
    if len(blocks) > 1:
        notes.append("Each paragraph is a row.")
    else:
        blocks = [line for line in text.splitlines() if line.strip()]
        notes.append("Each line is a row.")
    yield from ({"text": block} for block in blocks)


def _read_columnar(path: Path, shown: str, kind: str) -> Iterator[dict]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    too_large = f"{shown} unpacks to more than {MAX_EXPANDED_BYTES / 2**30:.0f} GiB. Bring a part of it."

    def rows_at_once(largest_bytes: int) -> int:
        """How many rows stay small even where each refers to the same large value, as dictionaries let them."""
        return max(1, min(1024, MAX_EXPANDED_BYTES // 4 // max(1, largest_bytes)))

    def read_parquet(file: pq.ParquetFile) -> Iterator[pa.RecordBatch]:
        groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
        # Sizes are declared in the footer: a small file that unpacks to gigabytes is refused before it does.
        if sum(group.total_byte_size for group in groups) > MAX_EXPANDED_BYTES:
            raise UserError(too_large)
        chunks = [group.column(i).total_uncompressed_size for group in groups for i in range(group.num_columns)]
        return file.iter_batches(rows_at_once(max(chunks, default=0)))

    def read_arrow(file) -> Iterator[pa.RecordBatch]:
        streamed = isinstance(file, pa.RecordBatchStreamReader)
        for batch in file if streamed else map(file.get_batch, range(file.num_record_batches)):
            batch.validate(full=True)  # a wrong offset would otherwise end this process
            step = rows_at_once(batch.get_total_buffer_size())
            for start in range(0, batch.num_rows, step):
                yield batch.slice(start, step)

    try:
        source = pa.OSFile(str(path))
        if kind == "Parquet":
            opened = pq.ParquetFile(source)
            names = opened.schema_arrow.names
        else:
            whole = source.read(6) == b"ARROW1"
            source.seek(0)
            opened = pa.ipc.open_file(source) if whole else pa.ipc.open_stream(source)
            names = opened.schema.names
        if len(names) > MAX_COLUMNS:
            raise UserError(f"{shown} has {len(names):,} columns; the most is {MAX_COLUMNS:,}. Keep those that matter.")
        expanded = 0
        for batch in read_parquet(opened) if kind == "Parquet" else read_arrow(opened):
            for record in batch.to_pylist():
                expanded += _weight(record)
                if expanded > MAX_EXPANDED_BYTES:
                    raise UserError(too_large)
                yield record
    except (pa.ArrowException, OSError, ValueError, TypeError, LookupError, ArithmeticError) as error:
        reason = shorten(str(error).split("\n")[0], 80)
        raise UserError(f"{shown} cannot be read as {kind}: {reason}. It may be damaged or another kind of file.") from None


def _weight(value) -> int:
    """The characters or bytes of text in a value; eight for whatever else there is."""
    if isinstance(value, (dict, list)):
        return sum(map(_weight, value.values() if isinstance(value, dict) else value))
    return len(value) if isinstance(value, (str, bytes)) else 8


def _plain(value):
    """The value as JSON can hold it; bytes and dates become text, numbers that are none become nothing."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    return str(value)


# Keeping ----------------------------------------------------------------------------------------------------------


def keep(owner: str, name: str, records: list[dict], source: dict, notes: list[str], mapping: Mapping | None = None) -> Dataset:
    """Store records as a dataset of this owner, with the mapping guessed where none is given.

    Raises:
        UserError: the columns fit no known format and no mapping was given.
    """
    mapping = mapping or tasks.get("chat").recognise(records)
    dataset = Dataset(owner, secrets.token_hex(8), shorten(name, 120), source, mapping, notes, count=len(records))
    folder = private_dir(dataset.folder)
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    write_whole(folder / "records.jsonl", lines.encode("utf-8", "replace"))
    _write_source(dataset)
    return dataset


def _write_source(dataset: Dataset) -> None:
    write_json(dataset.folder / "source.json", {k: v for k, v in asdict(dataset).items() if k not in ("owner", "id")})


def find(owner: str, dataset_id: str) -> Dataset:
    """The owner's dataset of this id.

    Raises:
        UserError: there is none, whoever else may have one.
    """
    known = read_json(datasets_dir(owner) / safe_name(dataset_id, "Dataset") / "source.json")
    if known is None:
        raise UserError(f"Dataset {shorten(dataset_id, 20)} is not among yours any more. Choose it again.")
    return Dataset(owner, dataset_id, **{**known, "mapping": Mapping(**known["mapping"])})


def remap(dataset: Dataset, format: str, columns: dict[str, str]) -> Dataset:
    """The same dataset with another mapping, checked on its rows.

    Raises:
        UserError: a column that is not there, a role without its column, or no row left.
    """
    mapping = Mapping(format, {role: column for role, column in columns.items() if column}, "chosen by hand")
    tasks.get(dataset.task).check_mapping(mapping, dataset.records())
    to_rows(dataset.records(), mapping, dataset.task)
    dataset.mapping = mapping
    _write_source(dataset)
    return dataset


def load_demo(owner: str) -> Dataset:
    """The demo dataset, kept once for each owner."""
    dataset_id = "demo" + hashlib.sha256(DEMO_PATH.read_bytes()).hexdigest()[:12]
    try:
        return find(owner, dataset_id)
    except UserError:
        records, notes = read_file(DEMO_PATH)
        dataset = keep(owner, "Clickbait headlines (demo)", records, {"kind": "demo", "file": DEMO_PATH.name}, notes)
        final = datasets_dir(owner) / dataset_id
        if not final.exists():
            try:
                dataset.folder.rename(final)
            except OSError:  # two tabs at once: the other one's is as good
                pass
        shutil.rmtree(dataset.folder, ignore_errors=True)
        return find(owner, dataset_id)


def from_recipe(owner: str, recipe, beside: Path, token: str | None = None) -> Dataset:
    """The dataset that a recipe names: a file beside the preset, or a Hub id.

    Args:
        beside: the folder that a relative file name starts from. Only the command line passes a visitor's path here.
    """
    if not recipe.dataset:
        raise UserError("The recipe names no dataset. Add dataset=FILE or dataset=user/name.")
    path = beside / recipe.dataset
    if path.is_file():
        records, notes = read_file(path)
        source = {"kind": "file", "file": path.name}
    elif HUB_ID.fullmatch(recipe.dataset):
        records, notes = read_hub(
            recipe.dataset, recipe.dataset_config, recipe.dataset_split, recipe.dataset_revision, token
        )
        source = {"kind": "hub", "hub_id": recipe.dataset, "revision": recipe.dataset_revision}
    else:
        raise UserError(f"There is no file {shorten(recipe.dataset)} beside the recipe. Check the path.")
    mapping = Mapping(recipe.dataset_format, dict(recipe.columns), "from the recipe") if recipe.dataset_format else None
    if mapping:
        tasks.get(recipe.task).check_mapping(mapping, records)
    return keep(owner, Path(recipe.dataset).name, records, source, notes, mapping)
