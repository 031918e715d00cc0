"""Datasets: records kept in Arrow, each in a folder of its owner, and how they are mapped onto the task's one row shape."""

import hashlib
import json
import math
import os
import secrets
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np

from tuner import limits, pictures, reading, tasks
from tuner.errors import Hint, UserError, shorten
from tuner.home import DEMO_ROOT, private_dir, read_json, require_free, safe_name, tuner_home, write_json
from tuner.reading import Broken
from tuner.recipe import HUB_ID
from tuner.tasks import NoRow

# What a page shows before the rest is read, and what a format is recognised by.
_DEMO = "demo-2-"  # its id's beginning; the rest is its content's hash
HEAD = 200
_HEAD_SIZE = 8 * 2**20
# Hub datasets are streamed; this many rows are taken unless more are asked for.
HUB_ROWS = 10_000
# Part of what tells whether files were read before: raise it whenever reading would give other records.
VERSION = 2
# Datasets of commands that are kept, so that `check` and then `train` read a file once.
PASSING_KEPT = 3
_SPLIT_NAMES = {"train": "train", "training": "train", "test": "test", "validation": "test", "valid": "test",
                "val": "test", "dev": "test", "eval": "test", "held_out": "test", "held out": "test"}
# Before a record that could not be read, in place of its JSON.
_BROKEN = "!"


@dataclass(frozen=True)
class Mapping:
    """How records become rows.

    Args:
        format: one of the task's formats.
        columns: role -> the record's column that plays it, or a template of several, as in "{question}\\n{context}".
        reason: why, in a sentence for the page.
    """

    format: str
    columns: dict[str, str]
    reason: str = ""


@dataclass
class Dataset:
    """Records as they were read, how they are mapped, and what was done to the rows; one folder, owned by one person.

    Args:
        steps: the fixes applied, in order; see `fixes`. The records themselves never change.
        files: (stored name, name as the person calls it) while the records are not read yet.
        passing: made by a command at a terminal, where nobody looks for it again; only the newest few are kept.
        chosen: the task was chosen by a person, so the columns do not choose it.
    """

    owner: str
    id: str
    name: str
    source: dict
    mapping: Mapping | None = None
    task: str = tasks.DEFAULT
    steps: list[dict] = field(default_factory=list)
    files: list[list[str]] = field(default_factory=list)
    passing: bool = False
    chosen: bool = False

    @property
    def folder(self) -> Path:
        return datasets_dir(self.owner) / self.id

    @property
    def hub_id(self) -> str:
        """The Hub dataset that the records came from; "" if they came from elsewhere."""
        return self.source.get("hub_id", "")

    @property
    def ready(self) -> bool:
        """Whether all records are read."""
        return (self.folder / "read.json").exists()

    @property
    def count(self) -> int:
        """Records, once all are read; until then those of the head."""
        return read_json(self.folder / "read.json", {}).get("count", 0) or len(self.head())

    @property
    def notes(self) -> list[str]:
        """What was done to read the records, in sentences."""
        return read_json(self.folder / "read.json", {}).get("notes", [])

    def head(self) -> list[dict]:
        """The first records, as soon as they are read, without those that could not be."""
        return [json.loads(text) for text in read_head(self.folder / "head.json") if not text.startswith(_BROKEN)]

    def save(self) -> None:
        """Keep the mapping and the steps."""
        write_json(self.folder / "source.json", {k: v for k, v in asdict(self).items() if k not in ("owner", "id")})


def datasets_dir(owner: str) -> Path:
    return tuner_home() / "datasets" / safe_name(owner, "The owner")


@lru_cache(maxsize=32)
def read_head(path: Path) -> list[str]:
    """The first records as they are kept, in their places."""
    return json.loads(path.read_text("utf-8"))


# Records in Arrow -------------------------------------------------------------------------------------------------


class Texts:
    """A file of texts in Arrow, one a record: by number, in order, or all of them mapped for searching.

    Args:
        path: as `write_texts` wrote it.
    """

    def __init__(self, path: Path):
        self.path = Path(path)

    def __len__(self) -> int:
        return len(_mapped(self.path)[1])

    def __getitem__(self, number: int) -> str:
        # Read, not touched in the map: there each text would bring in up to 2 MiB of its neighbours, and with them memory.
        _, begins, ends = _mapped(self.path)
        with open(self.path, "rb", buffering=0) as file:
            return os.pread(file.fileno(), int(ends[number] - begins[number]), int(begins[number])).decode()

    def column(self):
        """The texts as one Arrow array in chunks, for searching."""
        return _mapped(self.path)[0]

    def blocks(self, most: int = 512) -> Iterator[list[str]]:
        """All texts in order, some at a time; read, not mapped, so that memory stays flat."""
        import pyarrow as pa

        with pa.OSFile(str(self.path)) as file, pa.ipc.open_stream(file) as batches:
            for batch in batches:
                for start in range(0, batch.num_rows, most):
                    yield batch.column(0).slice(start, most).to_pylist()


@lru_cache(maxsize=4)
def _mapped(path: Path):
    """The texts as one Arrow array over the mapped file, and where each begins and ends in it: (N,) and (N,) bytes."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as file:
        whole = file.read_buffer()
    column = pa.ipc.open_stream(whole).read_all().column(0)
    begins, ends = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for chunk in column.chunks:
        _, offsets, letters = chunk.buffers()
        its = np.frombuffer(offsets, np.int64)[chunk.offset : chunk.offset + len(chunk) + 1] + (letters.address - whole.address)
        begins.append(its[:-1])
        ends.append(its[1:])
    return column, np.concatenate(begins), np.concatenate(ends)


def write_texts(path: Path, texts: Iterable[str]) -> int:
    """Write texts as an Arrow file; a reader meets all of it or nothing. Gives their number."""
    import pyarrow as pa  # not through datasets' own writer: importing that takes half a second of each small check

    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    schema, count, left = pa.schema([("text", pa.large_string())]), 0, iter(texts)
    try:
        with pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
            while some := list(islice(left, 1000)):
                writer.write_batch(pa.record_batch([pa.array(some, pa.large_string())], schema=schema))
                count += len(some)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return count


def to_text(record: dict | Broken) -> str:
    """A record as it is kept."""
    if isinstance(record, Broken):
        return _BROKEN + record.why
    return json.dumps(record, ensure_ascii=False)


def to_row(text: str, number: int, mapping: Mapping | None, task: str) -> dict:
    """The task's row of a kept record, with "n", its number in the source counted from 1, and "split".

    Args:
        mapping: None where the text is a row already.

    Raises:
        NoRow: the record teaches nothing.
    """
    if text.startswith(_BROKEN):
        raise NoRow("unreadable", text[len(_BROKEN) :])
    record = json.loads(text)
    if mapping is None:
        return record
    row = tasks.get(task).to_row(record, mapping)
    split = record.get(mapping.columns.get("split", ""), "")
    row |= {"n": number, "split": _SPLIT_NAMES.get(str(split).strip().lower(), "")}
    group = record.get(mapping.columns["group"]) if "group" in mapping.columns else None
    if group is not None and str(group).strip():
        row["group"] = str(group)
    return row


def to_rows(records, mapping: Mapping, task: str = tasks.DEFAULT) -> tuple[list[dict], list[dict]]:
    """The rows of a few records in memory, and what was left out.

    Returns:
        rows: see `to_row`.
        left_out: {"n": int, "why": str, "kind": str} for each record that gives no row.

    Raises:
        UserError: no record gives a row.
    """
    rows, left_out = [], []
    for number, record in enumerate(records, 1):
        try:
            rows.append(to_row(to_text(record), number, mapping, task))
        except NoRow as problem:
            left_out.append({"n": number, "why": str(problem), "kind": problem.kind})
    if not rows:
        raise no_rows(left_out, len(left_out))
    return rows, left_out


def no_rows(left_out: list[dict], count: int) -> UserError:
    """What is said where no record gives a row."""
    seen = [f"Row {item['n']:,} {item['why']}" for item in left_out[:3]]
    return UserError(
        f"None of the {count:,} rows can be learned from. " + " ".join(seen) + " Check which column is which, or add the answers."
    )


def write_rows(rows, path: Path) -> None:
    """Write rows (`findings.Rows`) as JSON, one a line, in the task's own shape."""
    with open(path, "w", encoding="utf-8") as file:
        for index in range(len(rows)):
            row = {name: value for name, value in rows.row(index).items() if name != "n" and value != ""}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


# Bringing ---------------------------------------------------------------------------------------------------------


def create(
    owner: str, name: str, source: dict, files: list[tuple[Path, str]] = (), mapping: Mapping | None = None, passing: bool = False
) -> Dataset:
    """A new dataset of this owner: its records are not yet read, unless the same files were read before.

    Args:
        files: (path, the name a person calls it). They are moved into the dataset's folder and deleted once read; of a
            passing dataset they are a person's own, and stay where they are.

    Raises:
        UserError: no file, too large together, or the disk is full.
    """
    size = sum(Path(path).stat().st_size for path, _ in files)
    if size > reading.MAX_FILE_BYTES:
        raise UserError(
            f"{reading.safe_title(files[0][1])} has {size / 2**20:,.0f} MiB; the most is {reading.MAX_FILE_BYTES / 2**20:,.0f} MiB. "
            "Bring a part of it."
        )
    require_free(2 * size + 50 * 2**20, "The dataset")
    if files and not passing:
        limits.spend(owner, limits.UPLOAD, size / 2**20)
    dataset = Dataset(owner, secrets.token_hex(8), reading.safe_title(name), source, mapping, passing=passing)
    private_dir(dataset.folder)
    known = files and _adopt(dataset, files)
    for number, (path, title) in enumerate(files if not passing else ()):
        if known:
            Path(path).unlink()
        else:
            shutil.move(path, dataset.folder / f"original-{number}")
            dataset.files.append([f"original-{number}", title])
    dataset.save()
    if passing:
        _drop_passing(owner)
    return dataset


def _identity(files: list[tuple[Path, str]]) -> dict:
    """What tells the same files from others: their names and sizes, and a hash of all their bytes."""
    digest = hashlib.sha256()
    for path, _ in files:
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return {"version": VERSION, "named": _named(files), "sha256": digest.hexdigest()}


def _named(files: list[tuple[Path, str]]) -> list[list]:
    return [[title, Path(path).stat().st_size] for path, title in files]


def _adopt(dataset: Dataset, files: list[tuple[Path, str]]) -> bool:
    """Take over what is known of the same files from another dataset of this owner, by links: nothing is done twice.

    Fixes stay with the other one; what they brought about is known again where they are made again.
    """
    identity = None
    for other in datasets_dir(dataset.owner).iterdir():
        known = read_json(other / "read.json", {})
        if known.get("version") != VERSION or known.get("named") != _named(files):
            continue
        identity = identity or _identity(files)  # a gigabyte takes most of a second, so only where names and sizes agree
        if known.get("sha256") != identity["sha256"]:
            continue
        try:
            shutil.copytree(other, dataset.folder, copy_function=os.link, dirs_exist_ok=True, ignore=_not_adopted)
            return dataset.ready
        except (OSError, shutil.Error):  # it was being worked on, or deleted
            shutil.rmtree(dataset.folder)
            private_dir(dataset.folder)
    return False


def _not_adopted(folder: str, names: list[str]) -> set[str]:
    """What is one dataset's own: its choices, and the work that is going on."""
    own = {"source.json", "todo.json", "process.json", "progress.json", "refused.json", "ended", "log.txt", "check.lock"}
    return {name for name in names if name in own or name.startswith((".", "original-"))}


def _drop_passing(owner: str) -> None:
    """Delete all but the newest few datasets that commands made."""
    made = [path.parent for path in datasets_dir(owner).glob("*/source.json") if read_json(path, {}).get("passing")]
    for old in sorted(made, key=lambda folder: folder.stat().st_mtime)[:-PASSING_KEPT]:
        shutil.rmtree(old, ignore_errors=True)


class Larger(Exception):
    """The records come to more than was meant to be taken."""


def take(
    dataset: Dataset, records: Iterable[dict | Broken], notes: list[str], on_head: Callable[[], None] | None = None,
    files: list[tuple[Path, str]] = (), most: tuple[float, float] = (math.inf, math.inf),
) -> None:
    """Write the records of a dataset: the head first, then all; whoever reads meets either whole.

    Args:
        on_head: called once the head can be read.
        files: what the records are read from, so that the same files are known again.
        most: records, and characters that they may come to as they are kept.

    Raises:
        UserError: as the records' reader raises it.
        Larger: they come to more; nothing but the head is kept then.
    """
    folder, counts = dataset.folder, {"count": 0, "broken": 0}
    album = pictures.Album(folder / pictures.STORE)
    first: list[str] | None = []
    size, whole = 0, 0

    def keep_head() -> None:
        nonlocal first
        write_json(folder / "head.json", first)
        first = None
        if on_head:
            on_head()

    def texts() -> Iterator[str]:
        nonlocal size, whole
        for record in records:
            counts["count"] += 1
            if counts["count"] % 5_000 == 0:  # a small archive can hold what no disk has room for
                require_free(0, "The dataset")
            if isinstance(record, Broken):
                counts["broken"] += 1
            else:
                record = album.keep(record)
            # A lone surrogate cannot be kept; what cannot be kept is made visible.
            text = to_text(record).encode("utf-8", "replace").decode()
            whole += len(text)
            if counts["count"] > most[0] or whole > most[1]:
                raise Larger
            if first is not None:
                first.append(text)
                size += len(text)
                if len(first) - counts["broken"] >= HEAD or size > _HEAD_SIZE:
                    keep_head()
            yield text

    try:
        write_texts(folder / "records.arrow", texts())
    except OSError as error:
        from tuner.home import disk_error

        raise disk_error(error, folder / "records.arrow") from error
    finally:
        album.close()
    if first is not None:
        keep_head()
    write_json(folder / "read.json", {**counts, "notes": notes, **(_identity(files) if files else {})})
    for stored, _ in dataset.files:
        (folder / stored).unlink(missing_ok=True)


def read_files(dataset: Dataset, on_progress: Callable[[float], None] | None = None, most: tuple[float, float] = (math.inf, math.inf)) -> None:
    """Read the files that a dataset was created with.

    Args:
        most: see `take`.

    Raises:
        UserError: they cannot be read; the words say where and why.
        Larger: see `take`.
    """
    notes: list[str] = []
    files = [(dataset.folder / stored, title) for stored, title in dataset.files]
    if dataset.source.get("kind") == "paste":
        records = reading.read_pasted(files[0][0].read_text("utf-8"), notes)
    else:
        records = reading.read(files, notes, dataset.folder, on_progress)
    take(dataset, records, notes, files=files, most=most)


def read_hub(
    hub_id: str, config: str = "", split: str = "", revision: str = "", token: str | None = None, most: int = HUB_ROWS
) -> tuple[Iterator[dict], list[str]]:
    """The first records of a Hub dataset, streamed; it is never downloaded whole.

    Args:
        token: the visitor's own, or None for nobody's.
        most: how many records at most.

    Returns:
        records, one at a time, and notes, complete once the records are at their end.

    Raises:
        UserError: not a Hub id, no such dataset, config or split, gated, private, or the Hub cannot be reached.
    """
    from tuner import hub, stream

    hub_id = hub_id.strip().removeprefix("https://huggingface.co/").removeprefix("datasets/").rstrip("/")
    if not HUB_ID.fullmatch(hub_id) or ".." in hub_id:
        raise UserError(f"{shorten(hub_id)!r} is not a Hub dataset id. It looks like user/name.")
    sha = hub.require_dataset(hub_id, revision, token)  # a visitor's string must be the Hub's before it meets `datasets`
    notes: list[str] = []
    streamed = stream.rows(hub_id, config.strip(), split.strip(), sha, token, most)

    def records() -> Iterator[dict]:
        count = 0
        for record in streamed:
            count += 1
            yield record
        if not count:
            raise UserError(f"{hub_id} ({split or 'train'}) has no rows. Choose a split that has rows in it.")
        if count >= most:
            notes.append(f"Streamed from the Hub: the first {count:,} rows.")

    return records(), notes


def settle(dataset: Dataset) -> Dataset:
    """Recognise the format by the head, where no mapping was given; a dataset that fits none is kept all the same.

    Raises:
        UserError: the columns fit no known format, or the mapping given asks for columns that are not there.
    """
    task = tasks.get(dataset.task)
    if dataset.mapping is not None:
        task.check_mapping(dataset.mapping, dataset.head())
        return dataset
    try:
        if dataset.chosen:
            dataset.mapping = task.recognise(dataset.head())
        else:
            dataset.task, dataset.mapping = tasks.recognise(dataset.head())
    except UserError:
        # Kept, so that the columns can be chosen by hand.
        columns = task.columns_of(dataset.head())
        dataset.mapping = task.fallback(columns)
        dataset.save()
        raise
    dataset.save()
    return dataset


def keep(owner: str, name: str, records: Iterable[dict], source: dict, mapping: Mapping | None = None) -> Dataset:
    """Store records that are in memory as a dataset of this owner.

    Raises:
        UserError: no records, or the columns fit no known format and no mapping was given.
    """
    dataset = create(owner, name, source, mapping=mapping)
    take(dataset, records, [])
    if not dataset.head():
        raise UserError(f"{dataset.name} has no rows. Choose a file that has rows in it.")
    return settle(dataset)


def find(owner: str, dataset_id: str) -> Dataset:
    """The owner's dataset of this id.

    Raises:
        UserError: there is none, whoever else may have one.
    """
    if not dataset_id:  # what a page that was opened before a restart of the app still says
        raise Hint("This page has no dataset open any more: the app was restarted since. Reload the page; nothing of yours was lost.")
    known = read_json(datasets_dir(owner) / safe_name(dataset_id, "Dataset") / "source.json")
    if known is None:
        raise UserError(f"Dataset {shorten(dataset_id, 20)} is not among yours any more. Choose it again.")
    if "steps" not in known:
        raise UserError(f"{shorten(known.get('name', 'That dataset'), 40)} was kept by an earlier version of Tuner. Bring it again.")
    mapping = Mapping(**known["mapping"]) if known["mapping"] else None
    with suppress(OSError):  # read-only, or cleared away at this moment
        os.utime(datasets_dir(owner) / dataset_id)  # it is in use; see `clearing`
    return Dataset(owner, dataset_id, **{**known, "mapping": mapping})


def bring_along(before: str, owner: str) -> Dataset | None:
    """Give an owner what they brought before they signed in, by links; the newest dataset of it, None where nothing is new.

    Args:
        before: the owner that they were, whose id only their browser holds.
    """
    brought = []
    for source in datasets_dir(before).glob("*/source.json"):
        there, here = source.parent, datasets_dir(owner) / source.parent.name
        if here.exists() or there.name.startswith((".", _DEMO)) or not (there / "read.json").exists():
            continue
        private_dir(here.parent)
        half = here.with_name(f".{here.name}-{secrets.token_hex(4)}")
        try:
            # Files here are replaced whole, never written into, so a link is as good as a copy.
            shutil.copytree(there, half, copy_function=os.link, ignore=lambda folder, names: _not_adopted(folder, names) - {"source.json"})
            half.rename(here)
        except (OSError, shutil.Error):  # being worked on, deleted, or brought by another tab at this moment
            shutil.rmtree(half, ignore_errors=True)
            continue
        brought.append((source.stat().st_mtime, here.name))
    return find(owner, max(brought)[1]) if brought else None


def remap(dataset: Dataset, format: str, columns: dict[str, str]) -> Dataset:
    """The same dataset with another mapping, and with it perhaps another task, tried on its first rows.

    Fixes go: they were of other rows.

    Raises:
        UserError: a column that is not there, a role without its column, or no row left.
    """
    mapping = Mapping(format, {role: column for role, column in columns.items() if column}, "chosen by hand")
    task = tasks.of_format(format, dataset.task)
    tasks.get(task).check_mapping(mapping, dataset.head())
    to_rows(dataset.head(), mapping, task)
    dataset.task, dataset.mapping, dataset.steps = task, mapping, []
    dataset.save()
    return dataset


def choose_task(dataset: Dataset, task: str) -> Dataset:
    """The same dataset for another task, its columns recognised by that. Fixes go: they were of other rows.

    Raises:
        UserError: there is no such task, or the columns hold nothing for it; then all stays as it was.
    """
    mapping = tasks.get(task).recognise(dataset.head())
    to_rows(dataset.head(), mapping, task)
    dataset.task, dataset.mapping, dataset.steps, dataset.chosen = task, mapping, [], True
    dataset.save()
    return dataset


def load_demo(owner: str, task: str = tasks.DEFAULT) -> Dataset:
    """A task's demo dataset, kept once for each owner, with the fixes that this owner made to it."""
    file, title, _ = tasks.get(task).DEMO
    path = DEMO_ROOT / "data" / file
    dataset_id = _DEMO + hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    try:
        return find(owner, dataset_id)
    except UserError:
        notes: list[str] = []
        dataset = create(owner, title, {"kind": "demo", "file": file})
        take(dataset, reading.read([(path, file)], notes, dataset.folder), notes)
        settle(dataset)
        final = datasets_dir(owner) / dataset_id
        if not final.exists():
            try:
                dataset.folder.rename(final)
            except OSError:  # two tabs at once: the other one's is as good
                pass
        shutil.rmtree(dataset.folder, ignore_errors=True)
        return find(owner, dataset_id)


def from_recipe(owner: str, recipe, beside: Path, token: str | None = None, on_progress=None, by_columns: bool = False) -> Dataset:
    """The dataset that a recipe names: a file beside the preset, or a Hub id.

    Args:
        beside: the folder that a relative file name starts from. Only the command line passes a visitor's path here.
        by_columns: the columns choose the task, not the recipe.
    """
    if not recipe.dataset:
        raise UserError("The recipe names no dataset. Add dataset=FILE or dataset=user/name.")
    path = beside / recipe.dataset
    mapping = Mapping(recipe.dataset_format, dict(recipe.columns), "from the recipe") if recipe.dataset_format else None
    if path.is_file():
        files, notes = [(path, path.name)], []
        demo = next((file for file in tasks.demos() if (DEMO_ROOT / "data" / file).resolve() == path.resolve()), "")
        source = {"kind": "demo", "file": demo} if demo else {"kind": "file", "file": path.name}
        dataset = create(owner, path.name, source, files, mapping, passing=True)
        records = reading.read(files, notes, dataset.folder, on_progress)
    elif HUB_ID.fullmatch(recipe.dataset):
        records, notes = read_hub(
            recipe.dataset, recipe.dataset_config, recipe.dataset_split, recipe.dataset_revision, token
        )
        source = {"kind": "hub", "hub_id": recipe.dataset, "revision": recipe.dataset_revision}
        files = []
        dataset = create(owner, recipe.dataset, source, mapping=mapping, passing=True)
    else:
        raise UserError(f"There is no file {shorten(recipe.dataset)} beside the recipe. Check the path.")
    if mapping or not by_columns:
        dataset.task, dataset.chosen = tasks.of_format(recipe.dataset_format, recipe.task), True
    try:
        if not dataset.ready:
            take(dataset, records, notes, files=files)
        return settle(dataset)
    except UserError:
        shutil.rmtree(dataset.folder, ignore_errors=True)
        raise
