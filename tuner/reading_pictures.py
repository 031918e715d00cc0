"""Records out of archives of pictures: a folder for each class, or a table that names files and labels."""

import json
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import PurePosixPath

from tuner import pictures
from tuner.errors import UserError, shorten
from tuner.reading_files import DAMAGE, SPLITS, Budget, Meter, Source, add_note, clean

# Of one dataset; those beyond it are left out and said.
MAX_PICTURES = 50_000
IMAGE, LABEL, FILE, SPLIT = "image", "label", "file", "split"


def read_pictures(source: Source, tables: Callable[[Source], Iterator], notes: list[str], meter: Meter, budget: Budget) -> Iterator[dict]:
    """The pictures of one zip as records {"image", "label", "file", "split"?, ...}: by its tables where one names them, else by their folders.

    Args:
        tables: gives the records of a table in the zip.

    Yields:
        Records whose picture is a `pictures.Taken`, or `pictures.NoPicture` where there is none.

    Raises:
        UserError: nothing says what the pictures show.
    """
    members = {_path(member): member for member in source.pictures}
    named = False
    for table in source.tables:
        column, find = _naming(_head(tables(table)), members, _folder_of(table))
        if not column:
            add_note(notes, f"{table.shown} names no pictures of the zip, so it is left aside.")
            continue
        named, used = True, set()
        split = next((its for its in (table.stem.lower(), _folder_of(table).name.lower()) if its in SPLITS), "")
        for record in islice(tables(table), MAX_PICTURES):
            if not isinstance(record, dict):
                yield record
                continue
            said = record.get(column)
            path = find(said)
            its = {name: value for name, value in record.items() if name != column}
            if split:
                its.setdefault(SPLIT, split)
            if path is None:
                words = f"the file {shorten(clean(str(said)), 60)!r} is not in the zip."
                yield {IMAGE: pictures.NoPicture("missing_picture", words), **its, FILE: clean(str(said))[:200]}
                continue
            used.add(path)
            yield {IMAGE: _taken(source, members[path], meter, budget), **its, FILE: clean(path)[:200]}
        if left := len(members) - len(used):
            add_note(notes, f"{left:,} of the {len(members):,} pictures are named by no row of {shorten(clean(table.stem), 40)}, so they are left aside.")
    if named:
        return
    classes = by_folder(list(members))
    if len(classes) > MAX_PICTURES:
        add_note(notes, f"Only {MAX_PICTURES:,} of the {len(classes):,} pictures are used, evenly of all classes.")
    labels = {label for _, label, _ in classes if label}
    if not labels:
        raise UserError(
            f"{source.shown} holds pictures in no folders and no table that names them, so nothing says what they show. Put them into a folder for each "
            "class, or add a CSV with their names and labels."
        )
    add_note(notes, f"Each picture's label is the name of its folder: {len(labels):,} classes.")
    for path, label, split in classes[:MAX_PICTURES]:
        yield {
            IMAGE: _taken(source, members[path], meter, budget), **({LABEL: label} if label else {}), **({SPLIT: split} if split else {}), FILE: clean(path)[:200],
        }


def is_album(source: Source, tables: Callable[[Source], Iterator], notes: list[str]) -> bool:
    """Whether a zip with pictures and tables is about the pictures: a table names them, or they lie in class folders and are more than the rows."""
    members, rows = {_path(member): member for member in source.pictures}, 0
    for table in source.tables:
        head = _head(tables(table))
        rows += len(head)
        if _naming(head, members, _folder_of(table))[0]:
            return True
    if rows <= len(members) and len({label for _, label, _ in by_folder(list(members))} - {""}) > 1:
        return True
    add_note(notes, f"Left aside in {source.shown}: {len(members):,} pictures, which no row names.")
    return False


def _head(records: Iterator) -> list[dict]:
    """The first 200 records."""
    with closing(records):
        return list(islice((record for record in records if isinstance(record, dict)), 200))


def _folder_of(table: Source) -> PurePosixPath:
    return PurePosixPath(_path(table.member)).parent


def _path(member: zipfile.ZipInfo) -> str:
    """A member's path with plain strokes, without "." parts."""
    return "/".join(part for part in member.filename.replace("\\", "/").split("/") if part not in ("", "."))


def by_folder(paths: list[str]) -> list[tuple[str, str, str]]:
    """(path, label, split) of pictures in folders, one of each class in turn; "" where the path does not say.

    The outer folders that all share say nothing; the next may be train and test; the one after that is the class, whatever lies deeper.
    """
    split_up = {path: path.split("/")[:-1] for path in paths}
    while all(len(folders) > 1 for folders in split_up.values()) and len({folders[0] for folders in split_up.values()}) == 1:
        split_up = {path: folders[1:] for path, folders in split_up.items()}
    tops = {folders[0].lower() if folders else "" for folders in split_up.values()}
    splits = tops <= SPLITS.keys() and len({SPLITS[top] for top in tops}) > 1
    found: dict[str, list] = {}
    for path in sorted(split_up):
        folders = split_up[path]
        split = folders[0].lower() if splits else ""
        folders = folders[1:] if splits else folders
        label = clean(folders[0]) if folders else ""
        found.setdefault(label, []).append((path, label, split))
    # In turn, so that the first rows, which are what a page shows first, are of all classes.
    ranked = [(place, label, its) for label, members in found.items() for place, its in enumerate(members)]
    return [its for _, _, its in sorted(ranked)]


def _naming(records: list[dict], members: dict[str, zipfile.ZipInfo], folder: PurePosixPath):
    """The column that names pictures of the zip, and (value) -> path or None; ("", None) where no column does.

    A name may be the whole path, the path from the table's own folder, or the bare file name where only one has it.
    """
    bare: dict[str, str | None] = {}
    for path in members:
        name = path.rsplit("/", 1)[-1]
        bare[name] = None if name in bare else path

    def find(value) -> str | None:
        if not isinstance(value, str) or not value:
            return None
        name = "/".join(part for part in value.replace("\\", "/").split("/") if part not in ("", "."))
        beside = str(folder / name) if str(folder) != "." else name
        return next((path for path in (beside, name, bare.get(name.rsplit("/", 1)[-1])) if path in members), None)

    columns = list(dict.fromkeys(name for record in records for name in record))
    hits = {column: sum(find(record.get(column)) is not None for record in records) for column in columns}
    best = max(columns, key=hits.get, default="")
    return (best, find) if best and hits[best] >= max(1, len(records) / 2) else ("", None)


def _taken(source: Source, member: zipfile.ZipInfo, meter: Meter, budget: Budget):
    """The member as a picture of ours, or why it is none."""
    try:
        if member.file_size > pictures.MOST_BYTES:
            raise pictures.NoPicture("too_large_picture", f"unpacks to {member.file_size / 2**20:,.0f} MiB; the most of one picture is {pictures.MOST_BYTES / 2**20:,.0f} MiB.")
        try:
            with source.archive.open(member) as file:
                content = file.read(pictures.MOST_BYTES + 1)
        except DAMAGE:
            raise pictures.NoPicture("broken_picture", "is damaged in the zip.") from None
        budget.spend(len(content), source)
        return pictures.take(content, member.filename)
    except pictures.NoPicture as problem:
        return problem


# Columns ----------------------------------------------------------------------------------------------------------


def in_columns(record: dict) -> dict:
    """A record of a Parquet or Arrow file with its pictures taken: bytes that begin like one, alone or as {"bytes", "path"} (the Hub's form)."""
    return {name: _in_column(value) for name, value in record.items()}


def _in_column(value):
    content, name = value, ""
    if isinstance(value, dict) and value.keys() <= {"bytes", "path"} and isinstance(value.get("bytes"), bytes):
        content, name = value["bytes"], str(value.get("path") or "")
    elif not isinstance(value, bytes):
        return value
    if not isinstance(value, dict) and not pictures.looks_like_one(content):
        return value
    try:
        return pictures.take(content, name)
    except pictures.NoPicture as problem:
        return problem


def class_names(metadata: dict | None) -> dict[str, list[str]]:
    """column -> the names of its classes, from what `datasets` writes into a schema's metadata; {} where there is nothing of that kind."""
    try:
        features = json.loads((metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        found = {column: its["names"] for column, its in features.items() if isinstance(its, dict) and its.get("_type") == "ClassLabel"}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
    return {
        column: names for column, names in found.items()
        if isinstance(names, list) and len(names) <= 10_000 and all(isinstance(name, str) and len(name) < 1_000 for name in names)
    }


def named(record: dict, names: dict[str, list[str]]) -> dict:
    """A record with the numbers of its classes turned into their names; -1, a label kept secret, into none."""
    return {
        column: (names[column][value] if 0 <= value < len(names[column]) else None) if column in names and type(value) is int else value
        for column, value in record.items()
    }
