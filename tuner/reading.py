"""Records out of files, archives and pasted text, one at a time, whatever their format."""

import io
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

from tuner.errors import UserError
from tuner.reading_columns import plain, read_columns
from tuner.reading_files import (
    MAX_COLUMNS,
    MAX_DEPTH,
    MAX_EXPANDED_BYTES,
    MAX_FILE_BYTES,
    MAX_LINE_BYTES,
    MAX_MEMBERS,
    MAX_OBJECT_BYTES,
    MAX_PASTED,
    MAX_ROWS,
    Budget,
    Meter,
    Source,
    Text,
    add_note,
    check_sizes,
    count_breaks,
    endings,
    list_sources,
    open_source,
    safe_title,
    splits_of,
    spooled,
)
from tuner.reading_pictures import is_album, read_pictures
from tuner.reading_text import Broken, head_of, read_json, read_jsonl, read_prose, read_table, sniff_delimiter

__all__ = [
    "MAX_COLUMNS", "MAX_DEPTH", "MAX_EXPANDED_BYTES", "MAX_FILE_BYTES", "MAX_LINE_BYTES", "MAX_MEMBERS", "MAX_OBJECT_BYTES",
    "MAX_PASTED", "MAX_ROWS", "Broken", "endings", "plain", "read", "read_pasted", "safe_title",
]


def read(
    files: list[tuple[Path, str]], notes: list[str], spool: Path, on_progress: Callable[[float], None] | None = None
) -> Iterator[dict | Broken]:
    """The records in files, one after the other; no file is ever held whole in memory, but for JSON that is one object.

    Args:
        files: (path, what the person calls it); the name's ending says the format.
        notes: sentences on what was done to read them are added to it, up to the end of the reading.
        spool: a folder for temporary files; none is left in it.
        on_progress: gets the share of the files' bytes that was read, 0 to 1, ten times a second at most.

    Yields:
        Records of plain JSON values, and Broken for the few lines that are none.

    Raises:
        UserError: empty, too large, not what its name says, not text, damaged, broken (with the line), unpacking to
            too much, or without rows. It may come after records were given: they are void then.
    """
    with ExitStack() as stack:
        meter = Meter(check_sizes(files), on_progress)
        budget = Budget()
        sources = [source for path, name in files for source in list_sources(Path(path), name, notes, stack, meter)]
        unread = lambda table: _records(table, [], spool, Meter([], None), Budget(), True)  # noqa: E731
        sources = [
            its for source in sources for its in (source.tables if source.tables and not is_album(source, unread, notes) else (source,))
        ]
        splits = splits_of(sources)
        shown = sources[0].shown if len(sources) == 1 else "What you brought"
        several, count = len(sources) > 1, 0
        for source, split in zip(sources, splits):
            before = count
            with closing(_records(source, notes, spool, meter, budget, several)) as records:
                for record in records:
                    if isinstance(record, Broken):
                        yield record
                        continue
                    if count == MAX_ROWS:
                        add_note(notes, f"Only the first {MAX_ROWS:,} rows are used.")
                        return
                    if split:
                        if not count and "split" in record:
                            splits[:] = [""] * len(splits)  # zip reads on in this list: the files' own column counts
                            split = ""
                        else:
                            record.setdefault("split", split)
                    count += 1
                    yield record
            if several and count == before:
                add_note(notes, f"{source.shown} has no rows.")
        if not count:
            raise UserError(f"{shown} has no rows. Choose a file that has rows in it.")
        if any(splits):
            add_note(notes, f"Each row's split is that of its file's name: {', '.join(dict.fromkeys(splits))}.")
        meter.finish()


def read_pasted(text: str, notes: list[str]) -> Iterator[dict | Broken]:
    """The records in pasted text: JSON, JSONL, a table with a header, or plain paragraphs.

    Raises:
        UserError: nothing was pasted, or it is broken.
    """
    text = text.strip().removeprefix("\ufeff")
    if not text:
        raise UserError("Nothing was pasted. Paste rows as JSONL, JSON, CSV or plain text, then try again.")
    if len(text) > MAX_PASTED:
        raise UserError(f"{len(text):,} characters were pasted; the most is 20 million. Upload a file instead.")
    shown = "The pasted text"
    if odd := re.search("[\0\ud800-\udfff]", text):
        what = "a NUL character" if odd[0] == "\0" else f"half a character (U+{ord(odd[0]):04X})"
        raise UserError(f"{shown} holds {what} in line {count_breaks(text[: odd.start()]) + 1:,}. Delete it.")
    flat = text.replace("\r\n", "\n").replace("\r", "\n")
    if text[0] in "[{":
        records = read_json([flat], shown, notes)
    else:
        first = flat[: flat.find("\n")] if "\n" in flat else ""
        delimiter = sniff_delimiter(*head_of(io.StringIO(text, newline=""))) if any(map(first.count, "\t,;")) else ""
        records = read_table([text], shown, delimiter, notes) if delimiter else read_prose([flat], shown, notes)
    count = 0
    with closing(records):
        for record in records:
            if count == MAX_ROWS:
                add_note(notes, f"Only the first {MAX_ROWS:,} rows are used.")
                return
            count += not isinstance(record, Broken)
            yield record
    if not count:
        raise UserError(f"{shown} has no rows. Paste some, then try again.")


def _records(
    source: Source, notes: list[str], spool: Path, meter: Meter, budget: Budget, several: bool
) -> Iterator[dict | Broken]:
    """The records of one source."""
    try:
        with ExitStack() as stack:
            if source.kind == "Pictures":
                yield from read_pictures(source, lambda table: _records(table, notes, spool, meter, budget, True), notes, meter, budget)
                return
            if source.kind in ("Parquet", "Arrow"):
                path = source.path if not source.packing else spooled(open_source(source, stack, meter, budget), source, spool, stack)
                yield from read_columns(path, source, meter, budget)
                return
            stream = open_source(source, stack, meter, budget)
            if source.kind == "JSONL":
                text = Text(stream, source, notes, may_be_cut=True)
                yield from read_jsonl(text, source.shown, notes, several)
            elif source.kind == "JSON":
                yield from read_json(Text(stream, source, notes), source.shown, notes, several)
            elif source.kind == "TXT":
                yield from read_prose(Text(stream, source, notes), source.shown, notes)
            else:
                text = Text(stream, source, notes, as_is=True)
                yield from read_table(text, source.shown, "\t" if source.kind == "TSV" else "", notes)
    except MemoryError:  # pyarrow's own is one of these
        raise UserError(f"{source.shown} unpacks to more memory than there is here. Bring a part of it.") from None
