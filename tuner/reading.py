"""Records out of files, archives and pasted text, one at a time, whatever their format."""

import codecs
import csv
import errno
import gzip
import io
import itertools
import json
import math
import re
import stat
import struct
import tempfile
import time
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from tuner.errors import UserError, shorten

# What is read at most. Rows beyond the most are left out and said; whatever else is larger is refused.
MAX_ROWS = 2_000_000
MAX_FILE_BYTES = 2 * 2**30  # of all files of one dataset together
MAX_LINE_BYTES = 16 * 2**20  # of one line, one row of a table or one element of a list, in characters
MAX_EXPANDED_BYTES = 4 * 2**30
MAX_COLUMNS = 1_000
MAX_MEMBERS = 1_000
MAX_OBJECT_BYTES = 128 * 2**20  # of a JSON file that is one object, which only makes sense once its end was seen
MAX_PASTED = 20 * 2**20
MAX_DEPTH = 100  # of lists and objects in each other: well below what Python's own recursion allows to those who follow

# Text seldom packs better than 20 to 1; what unpacks 200-fold to more than this is made to fill a machine.
_BOMB_BYTES, _BOMB_RATIO = 256 * 2**20, 200
_LISTING_BYTES = 2 * 2**20  # of a zip's table of contents, which zipfile turns into objects of half a kilobyte
_BLOCK = 2**20
_BROKEN_FROM, _BROKEN_SHARE = 1_000, 0.01  # a file is refused where more than this share of its lines is broken

EXTENSIONS = {
    ".jsonl": "JSONL", ".ndjson": "JSONL", ".json": "JSON", ".csv": "CSV", ".tsv": "TSV",
    ".parquet": "Parquet", ".arrow": "Arrow", ".feather": "Arrow", ".txt": "TXT",
}
_PACKINGS = {".gz": "gzip", ".zst": "zstd"}
_ARCHIVES = (".zip", ".gz", ".zst", ".tgz", ".tar", ".bz2", ".xz", ".7z", ".rar", ".lz4")
_AS_CSV = "Export it as CSV or JSONL and bring that."
_MAGIC = {
    b"PK\x03\x04": ("a zip or Excel file", _AS_CSV),
    b"\x1f\x8b": ("a gzip file", "Add .gz to its name."),
    b"\x28\xb5\x2f\xfd": ("a zstd file", "Add .zst to its name."),
    b"PAR1": ("a Parquet file", "Give it a name that ends in .parquet."),
    b"ARROW1": ("an Arrow file", "Give it a name that ends in .arrow."),
    b"BZh": ("a bzip2 file", "Unpack it first."), b"\xfd7zXZ": ("an xz file", "Unpack it first."),
    b"7z\xbc\xaf": ("a 7z file", "Unpack it first."), b"Rar!": ("a rar file", "Unpack it first."),
    b"SQLite f": ("a SQLite database", _AS_CSV), b"{\\rtf": ("an RTF document", _AS_CSV),
    b"%PDF": ("a PDF", _AS_CSV), b"\x89PNG": ("a PNG picture", _AS_CSV), b"\xff\xd8\xff": ("a JPEG picture", _AS_CSV),
    b"GGUF": ("a GGUF model", _AS_CSV), b"\xd0\xcf\x11\xe0": ("an old Office file", _AS_CSV),
}
# What browsers and git save in a file's place, under its name.
_STAND_INS = (
    (re.compile(r"\s*<(!doctype html|html|head)\b", re.I), "a web page", "Download the file itself, not the page that shows it."),
    (re.compile(r"version https://git-lfs"), "a Git LFS pointer", "Download the file itself, or run git lfs pull."),
)
_SPLITS = {"train": "train", "training": "train", "test": "test", "validation": "validation", "valid": "validation",
           "val": "validation", "dev": "validation", "eval": "validation"}
_SPLIT_STEM = re.compile(rf"(?:^|[-_. ])({'|'.join(_SPLITS)})(?:[-_.]\d+([-_]of[-_]\d+)?(-[0-9a-f]{{16}})?)?$", re.I)
_SPACE = re.compile(r"[ \t\n\r]*")
_CUT = re.compile(r"\s*|-|\.|[eE][-+]?|\\?(u[0-9a-fA-F]{0,4})?")  # what json names where a number or an escape lacks its end
_VIEWS = ("string_view", "binary_view")
_DAMAGE = (
    EOFError, zlib.error, zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError, LookupError,
    struct.error, ArithmeticError,
)


@dataclass(frozen=True)
class Broken:
    """A line that could not be read, among many that could.

    Args:
        place: where it stands, like "line 1,204".
        why: follows "Row N", like "is broken: Expecting ',' delimiter (line 1,204 begins '{"a"').".
    """

    place: str
    why: str


def endings() -> list[str]:
    """Every ending that a file chooser may offer."""
    return [*sorted(EXTENSIONS), *(known + packed for packed in _PACKINGS for known in sorted(EXTENSIONS)), ".zip"]


def safe_title(name: str) -> str:
    """A file's name as it may be shown: its last part, without control characters and marks that turn the writing round."""
    return shorten(_clean(re.split(r"[/\\]", str(name).rstrip("/\\"))[-1])) or "Unnamed file"


def _clean(name: str) -> str:
    # The two joiners are of the same category as the marks, and hold letters and emoji together.
    kept = (mark if mark in "\u200c\u200d" or unicodedata.category(mark) not in ("Cc", "Cf", "Cs", "Zl", "Zp") else " "
            for mark in str(name).replace("\ufeff", "")[:4096])
    return " ".join("".join(kept).split())


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
        meter = _Meter(_sizes(files), on_progress)
        budget = _Budget()
        sources = [source for path, name in files for source in _sources(Path(path), name, notes, stack, meter)]
        splits = _splits_of(sources)
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
                        _note(notes, f"Only the first {MAX_ROWS:,} rows are used.")
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
                _note(notes, f"{source.shown} has no rows.")
        if not count:
            raise UserError(f"{shown} has no rows. Choose a file that has rows in it.")
        if any(splits):
            _note(notes, f"Each row's split is that of its file's name: {', '.join(dict.fromkeys(splits))}.")
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
        raise UserError(f"{shown} holds {what} in line {_breaks(text[: odd.start()]) + 1:,}. Delete it.")
    flat = text.replace("\r\n", "\n").replace("\r", "\n")
    if text[0] in "[{":
        records = _read_json([flat], shown, notes)
    else:
        first = flat[: flat.find("\n")] if "\n" in flat else ""
        delimiter = _sniff_delimiter(*_head(io.StringIO(text, newline=""))) if any(map(first.count, "\t,;")) else ""
        records = _read_table([text], shown, delimiter, notes) if delimiter else _read_txt([flat], shown, notes)
    count = 0
    with closing(records):
        for record in records:
            if count == MAX_ROWS:
                _note(notes, f"Only the first {MAX_ROWS:,} rows are used.")
                return
            count += not isinstance(record, Broken)
            yield record
    if not count:
        raise UserError(f"{shown} has no rows. Paste some, then try again.")


def plain(value):
    """The value as JSON can hold it; bytes and dates become text, numbers that are none become nothing."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    return str(value)


def _note(notes: list[str], note: str) -> None:
    if note not in notes:  # a zip of a hundred tables says once that a semicolon parts their cells
        notes.append(note)


# Files and what is packed in them ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    """One file of records, or one member of an archive; `shown` is what it is called in messages."""

    shown: str
    stem: str
    kind: str
    packing: str
    path: Path
    size: int
    archive: zipfile.ZipFile | None = None
    member: zipfile.ZipInfo | None = None


class _Meter:
    """How much of the input was read, told a few times a second."""

    def __init__(self, sizes: list[int], on_progress: Callable[[float], None] | None):
        self.total, self.done, self.tell, self.told = max(1, sum(sizes)), 0, on_progress, 0.0

    def add(self, count: float) -> None:
        self.done += count
        if self.tell and time.monotonic() - self.told >= 0.1:
            self.told = time.monotonic()
            self.tell(min(1.0, self.done / self.total))

    def finish(self) -> None:
        if self.tell:
            self.tell(1.0)


class _Budget:
    """What may still be unpacked, of all files together."""

    def __init__(self):
        self.spent = 0
        self.by_file: dict[Path, int] = {}

    def spend(self, count: int, source: _Source, packed: bool = True) -> None:
        """Count what was unpacked.

        Args:
            packed: it comes from gzip and the like. Columns may honestly repeat one long value, so they may unpack to more.

        Raises:
            UserError: it is more than fits, or more than an honest file of that size holds.
        """
        self.spent += count
        own = self.by_file[source.path] = self.by_file.get(source.path, 0) + count
        if self.spent > MAX_EXPANDED_BYTES:
            raise UserError(_too_large(source.shown))
        if own > _BOMB_BYTES and own > _BOMB_RATIO * (1 if packed else 10) * source.size:
            raise UserError(
                f"{source.shown} unpacks to more than {own / 2**20:,.0f} MiB from {source.size / 2**20:,.1f} MiB, which is too "
                "large to be text. Bring a part of it."
            )


def _too_large(shown: str) -> str:
    return f"{shown} unpacks to more than {MAX_EXPANDED_BYTES / 2**30:.0f} GiB. Bring a part of it."


class _File(io.RawIOBase):
    """A file on disk whose reading is metered."""

    def __init__(self, path: Path, meter: _Meter):
        super().__init__()
        self.file, self.meter = open(path, "rb"), meter

    def read(self, count: int = -1) -> bytes:
        data = self.file.read(count)
        self.meter.add(len(data))
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self.file.close()
        super().close()


class _Archive(_File):
    """A zip on disk; zipfile reads its whole table of contents at once, which is bounded here."""

    def read(self, count: int = -1) -> bytes:
        if count > _LISTING_BYTES:
            raise UserError(f"The zip holds more than {MAX_MEMBERS:,} files, the most. Bring only those with rows in them.")
        return super().read(count)


class _Unpacked:
    """A packed file's content, counted as it is unpacked; damage becomes words."""

    def __init__(self, stream, source: _Source, budget: _Budget):
        self.stream, self.source, self.budget = stream, source, budget

    def read(self, count: int) -> bytes:
        try:
            data = self.stream.read(count)
        except MemoryError:
            raise
        except _DAMAGE:
            raise UserError(f"{self.source.shown} is cut off or damaged: it cannot be unpacked to its end. Pack or download it again.") from None
        self.budget.spend(len(data), self.source)
        return data


def _sizes(files: list[tuple[Path, str]]) -> list[int]:
    """The files' sizes in bytes.

    Raises:
        UserError: there is none, one is gone or empty, or they are too large.
    """
    if not files:
        raise UserError("No file was chosen. Choose one that has rows in it.")
    sizes = []
    for path, name in files:
        shown = safe_title(name)
        _kind_of(name, shown)
        if not Path(path).is_file():
            raise UserError(f"{shown} is not here any more. Choose it again.")
        sizes.append(Path(path).stat().st_size)
        if not sizes[-1]:
            raise UserError(f"{shown} is empty (0 bytes). Choose a file that has rows in it.")
    if sum(sizes) > MAX_FILE_BYTES:
        who = f"{shown} has" if len(sizes) == 1 else f"The {len(sizes)} files have together"
        raise UserError(f"{who} {sum(sizes) / 2**20:,.0f} MiB; the most is {MAX_FILE_BYTES / 2**20:,.0f} MiB. Bring a part of it.")
    return sizes


def _kind_of(name: str, shown: str) -> tuple[str, str, str]:
    """What a name says: its stem, its kind and how it is packed.

    Raises:
        UserError: it says nothing known.
    """
    said = _clean(re.split(r"[/\\]", name)[-1])
    stem, packing = said, ""
    ending = Path(stem).suffix
    if ending.lower() == ".zip":
        return Path(stem).stem, "", "zip"
    if ending.lower() in _PACKINGS:
        packing, stem = _PACKINGS[ending.lower()], stem[: -len(ending)]
    kind = EXTENSIONS.get(Path(stem).suffix.lower())
    if not kind:
        seen = shorten(Path(stem).suffix + (ending if packing else ""), 20)
        raise UserError(
            f"{shown} ends in {seen or 'nothing'!r}. Bring one of {', '.join(sorted(EXTENSIONS))}, "
            "also with .gz or .zst behind it, or a .zip of them."
        )
    return Path(stem).stem, kind, packing


def _sources(path: Path, name: str, notes: list[str], stack: ExitStack, meter: _Meter) -> list[_Source]:
    """What there is to read in one file: itself, or a zip's members in the order of their names."""
    shown, size = safe_title(name), path.stat().st_size
    stem, kind, packing = _kind_of(name, shown)
    with open(path, "rb") as file:
        head = file.read(8)
    if packing == "gzip" and not head.startswith(b"\x1f\x8b"):
        raise UserError(f"{shown} is not a gzip file, whatever its name says. Take .gz off its name, or pack it again.")
    if packing == "zstd" and not (head.startswith(b"\x28\xb5\x2f\xfd") or head[1:4] == b"\x2a\x4d\x18"):
        raise UserError(f"{shown} is not a zstd file, whatever its name says. Take .zst off its name, or pack it again.")
    if packing != "zip":
        return [_Source(shown, stem, kind, packing, path, size)]
    try:
        archive = stack.enter_context(zipfile.ZipFile(stack.enter_context(_Archive(path, meter))))
    except _DAMAGE:
        raise UserError(f"{shown} is not a zip file, or is cut off or damaged. Pack or download it again.") from None
    sources = []
    for member in _members(archive, shown, notes):
        stem, kind, _ = _kind_of(member.filename, shown)
        within = f"{shorten(_clean(member.filename))} in {shown}"
        sources.append(_Source(within, stem, kind, "zip", path, size, archive, member))
    return sources


def _members(archive: zipfile.ZipFile, shown: str, notes: list[str]) -> list[zipfile.ZipInfo]:
    """The members of a zip that hold records, by name.

    Raises:
        UserError: one member would lie outside a folder that the zip is unpacked into, is a link, is encrypted or is
            an archive; or there are too many or none.
    """
    members = archive.infolist()
    if len(members) > MAX_MEMBERS:
        raise UserError(f"{shown} holds {len(members):,} files; the most is {MAX_MEMBERS:,}. Bring only those with rows in them.")
    if any(member.orig_filename == "[Content_Types].xml" for member in members):
        raise UserError(f"{shown} is an Excel or Word file, whatever its name says. {_AS_CSV}")
    taken, aside = [], []
    for member in members:
        # orig_filename, as zipfile hides what stands behind a NUL.
        name, title = member.orig_filename.replace("\\", "/"), repr(shorten(_clean(member.orig_filename), 40))
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if name.startswith("/") or ".." in parts or re.match("[A-Za-z]:", name) or "\0" in name:
            raise UserError(f"{shown} holds {title}, a name that leads out of its folder. Pack it again from inside the folder.")
        mode = stat.S_IFMT(member.external_attr >> 16)
        if mode not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise UserError(f"{shown} holds {title}, a link and not a file. Pack the file that it points to.")
        if name.endswith("/") or mode == stat.S_IFDIR or not parts or "__MACOSX" in parts or parts[-1].startswith("."):
            continue
        if member.flag_bits & 0x1:
            raise UserError(f"{shown} is encrypted. Pack it without a password.")
        ending = Path(parts[-1]).suffix.lower()
        if ending in _ARCHIVES:
            raise UserError(f"{shown} holds another archive, {title}. Unpack that first.")
        if ending not in EXTENSIONS:
            aside.append(title)
            continue
        # The others unpack without a bound: a few bytes of bzip2 to gigabytes in one step.
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UserError(f"{shown} packs {title} in a way that is not read here. Pack it as a usual zip (Deflate).")
        taken.append(member)
    if aside:
        more = f" and {len(aside) - 3:,} more" if len(aside) > 3 else ""
        _note(notes, f"Left aside in {shown}: {', '.join(aside[:3])}{more}.")
    if not taken:
        raise UserError(f"{shown} holds no file of rows. Put one of {', '.join(sorted(EXTENSIONS))} into it.")
    return sorted(taken, key=lambda member: member.filename)


def _splits_of(sources: list[_Source]) -> list[str]:
    """For each source the split that its name says; "" for all unless all say one and not all the same."""
    found = [_SPLIT_STEM.search(source.stem) for source in sources]
    words = [match[1].lower() if match else "" for match in found]
    if not all(words) or len({_SPLITS[word] for word in words}) < 2:
        return [""] * len(sources)
    return words


def _records(
    source: _Source, notes: list[str], spool: Path, meter: _Meter, budget: _Budget, several: bool
) -> Iterator[dict | Broken]:
    """The records of one source."""
    try:
        with ExitStack() as stack:
            if source.kind in ("Parquet", "Arrow"):
                path = source.path if not source.packing else _spooled(_open(source, stack, meter, budget), source, spool, stack)
                yield from _read_columnar(path, source, meter, budget)
                return
            stream = _open(source, stack, meter, budget)
            if source.kind == "JSONL":
                text = _Text(stream, source, notes, may_be_cut=True)
                yield from _read_jsonl(text, source.shown, notes, several)
            elif source.kind == "JSON":
                yield from _read_json(_Text(stream, source, notes), source.shown, notes, several)
            elif source.kind == "TXT":
                yield from _read_txt(_Text(stream, source, notes), source.shown, notes)
            else:
                text = _Text(stream, source, notes, as_is=True)
                yield from _read_table(text, source.shown, "\t" if source.kind == "TSV" else "", notes)
    except MemoryError:  # pyarrow's own is one of these
        raise UserError(f"{source.shown} unpacks to more memory than there is here. Bring a part of it.") from None


def _open(source: _Source, stack: ExitStack, meter: _Meter, budget: _Budget):
    """What has read(count): the source's content, unpacked."""
    if source.member:
        try:
            return _Unpacked(stack.enter_context(source.archive.open(source.member)), source, budget)
        except _DAMAGE:
            raise UserError(f"{source.shown} is cut off or damaged: it cannot be unpacked. Pack or download it again.") from None
    file = stack.enter_context(_File(source.path, meter))
    if source.packing == "gzip":
        return _Unpacked(stack.enter_context(gzip.GzipFile(fileobj=file)), source, budget)
    if source.packing == "zstd":
        import pyarrow as pa

        return _Unpacked(stack.enter_context(pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd")), source, budget)
    return file


def _spooled(stream, source: _Source, spool: Path, stack: ExitStack) -> Path:
    """The stream's content as a file under a name of ours, for formats whose table of contents stands at the end."""
    file = stack.enter_context(tempfile.NamedTemporaryFile(dir=spool, prefix="part-"))
    try:
        while block := stream.read(_BLOCK):
            file.write(block)
        file.flush()
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise UserError(f"There is no room here to unpack {source.shown}. Bring it unpacked, or a part of it.") from None
    return Path(file.name)


# Text -------------------------------------------------------------------------------------------------------------


def _breaks(text: str) -> int:
    return text.count("\n") + text.count("\r") - text.count("\r\n")


class _Text:
    """A file's text in blocks of about a megabyte.

    Args:
        as_is: keep the line ends; else all are line feeds. No block parts a carriage return from its line feed.
        may_be_cut: a file that ends inside a character is no error; `cut` is true then.
    """

    def __init__(self, stream, source: _Source, notes: list[str], as_is: bool = False, may_be_cut: bool = False):
        self.stream, self.source, self.notes, self.as_is, self.may_be_cut = stream, source, notes, as_is, may_be_cut
        self.cut = False

    def __iter__(self) -> Iterator[str]:
        shown, line, blank, held = self.source.shown, 1, True, ""
        first = raw = self._fill()
        decoder, wide = self._decoder(first)
        while True:
            try:
                text = decoder.decode(raw, final=not raw)
            except UnicodeDecodeError as error:
                if wide:
                    raise UserError(f"{shown} begins like UTF-16 and is not. Save it as UTF-8.") from None
                line += _breaks(held + error.object[: error.start].decode("utf-8", "replace"))
                if not raw and self.may_be_cut:
                    self.cut, text = True, ""
                else:
                    raise UserError(
                        f"{shown} is not UTF-8: line {line:,} holds the byte 0x{error.object[error.start]:02x}. Save it as UTF-8."
                    ) from None
            text = held + text
            held = "\r" if raw and text.endswith("\r") else ""
            text = text[: len(text) - len(held)]
            if raw is first:
                text = text.removeprefix("\ufeff")
                self._refuse_stand_ins(text)
            if "\0" in text:
                line += _breaks(text[: text.index("\0")])
                raise UserError(f"{shown} is not a text file: line {line:,} holds a NUL byte. Save it as UTF-8 text.")
            line += _breaks(text)
            blank = blank and (not text or text.isspace())
            if text:
                yield text if self.as_is or "\r" not in text else text.replace("\r\n", "\n").replace("\r", "\n")
            if not raw:
                break
            raw = self._fill()
        if blank:
            raise UserError(f"{shown} holds nothing but white space. Choose a file that has rows in it.")

    def _fill(self) -> bytes:
        """The next block, whole: packed streams give pieces of any size."""
        parts, missing = [], _BLOCK
        while missing > 0 and (part := self.stream.read(missing)):
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def _decoder(self, head: bytes):
        for magic, (what, advice) in _MAGIC.items():
            if head.startswith(magic):
                if self.source.packing and what.endswith("file"):
                    advice = "Unpack it first."
                raise UserError(f"{self.source.shown} is {what}, not text. {advice}")
        if head.startswith((b"\xff\xfe", b"\xfe\xff")):
            _note(self.notes, "The file was UTF-16 and was read as such.")
            return codecs.getincrementaldecoder("utf-16")(), True
        return codecs.getincrementaldecoder("utf-8")(), False

    def _refuse_stand_ins(self, text: str) -> None:
        for pattern, what, advice in _STAND_INS:
            if self.source.kind != "TXT" and pattern.match(text[:4096]):
                raise UserError(f"{self.source.shown} is {what}, not rows. {advice}")


def _lines(blocks: Iterable[str], shown: str, number: int = 1) -> Iterator[tuple[str, bool]]:
    """Each line without its line feed, and whether it had one."""
    # Not str.splitlines: it also cuts at U+2028 and others that may stand inside a JSON string.
    rest = ""
    for block in blocks:
        lines = (rest + block).split("\n")
        rest = lines.pop()
        for line in lines:
            if len(line) > MAX_LINE_BYTES:
                raise UserError(f"{shown}, line {number:,} has {len(line):,} characters; the most is {MAX_LINE_BYTES:,}. Cut it into rows.")
            yield line, True
            number += 1
        if len(rest) > MAX_LINE_BYTES:
            raise UserError(f"{shown}, line {number:,} has more than {MAX_LINE_BYTES:,} characters, the most. Cut it into rows.")
    if rest:
        yield rest, False


def _read_txt(blocks: Iterable[str], shown: str, notes: list[str]) -> Iterator[dict]:
    lines = ((number, line) for number, (line, _) in enumerate(_lines(blocks, shown), 1))
    lines = itertools.dropwhile(lambda item: not item[1].strip(), lines)
    # Whether blank lines part paragraphs is decided by the first megabyte: all of the file cannot be waited for.
    head, length = [], 0
    for item in lines:
        head.append(item)
        length += len(item[1]) + 1
        if length > _BLOCK:
            break
    filled = [bool(line.strip()) for _, line in head]
    in_paragraphs = any(not a and b for a, b in itertools.pairwise(filled))
    _note(notes, "Each paragraph is a row." if in_paragraphs else "Each line is a row.")
    block, length = [], 0
    for number, line in itertools.chain(head, lines):
        if not in_paragraphs:
            if line.strip():
                yield {"text": line}
            continue
        if line.strip():
            block.append(line)
            length += len(line) + 1
            if length > MAX_LINE_BYTES:
                raise UserError(f"{shown} has a paragraph of more than {MAX_LINE_BYTES:,} characters before line {number:,}. Part it by blank lines.")
        elif block:
            yield {"text": "\n".join(block).strip()}
            block, length = [], 0
    if block:
        yield {"text": "\n".join(block).strip()}


# JSON -------------------------------------------------------------------------------------------------------------


class _Json:
    """A JSON parser that keeps large whole numbers exact and collects the faults of what it parses.

    Faults are collected, not raised, so that the end of a list's faulty element is known and the next can be read.
    """

    def __init__(self):
        self.faults: list[str] = []
        self.decoder = json.JSONDecoder(object_pairs_hook=self._object, parse_constant=self._constant, parse_float=self._float)

    def _object(self, pairs: list[tuple[str, object]]) -> dict:
        made = dict(pairs)
        if len(made) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))
            self.faults.append(f"the key {shorten(twice, 30)!r} stands twice in one object")
        return made

    def _constant(self, name: str) -> None:
        self.faults.append(f"{name} is not a JSON value")

    def _float(self, text: str) -> float:
        number = float(text)
        if not math.isfinite(number):
            self.faults.append(f"{shorten(text, 20)} is too large a number")
        return number

    def parse(self, text: str, start: int = 0) -> tuple[object, int]:
        """The value that begins at start, and where it ends."""
        self.faults.clear()
        return self.decoder.raw_decode(text, start)

    def parse_all(self, text: str) -> object:
        self.faults.clear()
        return self.decoder.decode(text)

    def judge(self, value: object, text: str, start: int = 0, end: int | None = None) -> tuple[dict, str]:
        """The value as a record, or what is wrong with it, as it follows a row's name; `text` is what it was parsed from."""
        end = len(text) if end is None else end
        if self.faults:
            return {}, f"is broken: {self.faults[0]}"
        if text.count("[", start, end) + text.count("{", start, end) > MAX_DEPTH and _depth_exceeds(value):
            return {}, "is nested too deep"
        # Only an escape can bring half a surrogate pair: what was decoded from bytes holds none.
        if text.find("\\ud", start, end) >= 0 or text.find("\\uD", start, end) >= 0:
            try:
                json.dumps(value, ensure_ascii=False).encode()
            except UnicodeEncodeError as error:
                return {}, f"is broken: it holds half a character (\\u{ord(error.object[error.start]):04x})"
        if isinstance(value, str):
            return {"text": value}, ""
        if not isinstance(value, dict):
            return {}, f"is {shorten(json.dumps(value), 40)}; each row must be an object with named fields"
        if len(value) > MAX_COLUMNS:
            return {}, f"has {len(value):,} columns; the most is {MAX_COLUMNS:,}"
        return value, ""


def _depth_exceeds(value: object) -> bool:
    level, depth = [value], 0
    while level := [inner for item in level for inner in (item.values() if isinstance(item, dict) else item if isinstance(item, list) else ())]:
        depth += 1
        if depth > MAX_DEPTH:
            return True
    return False


def _reason(error: ValueError, text: str = "") -> str:
    """What json says is wrong, with the slip that is usually behind it."""
    if not isinstance(error, json.JSONDecodeError):
        return "a number has more than 4,300 digits" if str(error).startswith("Exceeds the limit") else str(error)
    text = text or error.doc
    at, before = text[error.pos : error.pos + 5], text[max(0, error.pos - 50) : error.pos].rstrip()
    hints = (
        (at[:1] in ("}", "]") and before.endswith(","), "there is a comma too many before it"),
        (at[:1] == "'", "JSON wants double quotes"),
        (at[:1] in ("/", "#"), "JSON has no comments"),
        (at[:4] in ("None", "True") or at == "False", "JSON writes null, true and false"),
    )
    return next((f"{error.msg} ({hint})" for seen, hint in hints if seen), error.msg)


def _is_cut(error: json.JSONDecodeError, text: str) -> bool:
    """Whether the text may only lack its end."""
    rest = text[error.pos : error.pos + 12]
    if error.msg.startswith("Unterminated") or any(word.startswith(rest) for word in ("true", "false", "null", "NaN", "-Infinity", "Infinity")):
        return True
    return len(rest) < 12 and bool(_CUT.fullmatch(rest))


class _Tally:
    """Broken lines among those seen: few are left out and told, many are a broken file."""

    def __init__(self, shown: str, several: bool, what: str):
        self.shown, self.several, self.what = shown, several, what
        self.seen = self.broken = 0
        self.first = ""

    def leave_out(self, number: int, fault: str, text: str, by_cut: bool = False) -> Broken:
        """The line as one that is left out.

        Raises:
            UserError: too many are broken by now.
        """
        begins = f"begins {shorten(text, 40)!r}" if text else ""
        place = f"{self.what} {number:,}"
        if not by_cut:
            self.broken += 1
            if not self.first:
                # "a.jsonl is broken at line 2: ..." but "a.jsonl, line 2 is [1, 2]; ..."
                is_broken = fault.startswith("is broken: ")
                self.first = f"{self.shown} is broken at {place}: {fault[11:]}." if is_broken else f"{self.shown}, {place} {fault}."
                self.first += (f" The {self.what} {begins}." if begins and is_broken else "") + " Fix or delete it."
            if self.seen >= _BROKEN_FROM:
                self.check()
        place += f" of {self.shown}" if self.several else ""
        return Broken(place, f"{fault} ({place}{f' {begins}' if begins else ''}).")

    def check(self) -> None:
        if self.broken > _BROKEN_SHARE * self.seen:
            many = f" {self.broken:,} of {self.seen:,} {self.what}s are like that." if self.broken > 1 else ""
            raise UserError(self.first + many)


def _read_jsonl(text: Iterable[str], shown: str, notes: list[str], several: bool = False, first_line: int = 1) -> Iterator[dict | Broken]:
    """One JSON value a line."""
    blocks = iter(text)
    first = next(blocks, "")
    if _is_one_list(first):
        _note(notes, "It is one JSON list and was read as such.")
        yield from _read_json(itertools.chain([first], blocks), shown, notes, several)
        return
    parser, tally, rows = _Json(), _Tally(shown, several, "line"), 0
    for number, (line, ended) in enumerate(_lines(itertools.chain([first], blocks), shown, first_line), first_line):
        if not line or line.isspace():
            continue
        tally.seen += 1
        try:
            value = parser.parse_all(line)
        except RecursionError:
            fault = "is nested too deep"
        except ValueError as error:
            fault = f"is broken: {_reason(error, line)}"
            if not ended and rows and isinstance(error, json.JSONDecodeError) and (_is_cut(error, line) or getattr(text, "cut", False)):
                yield tally.leave_out(number, "is cut off: the file ends in the middle of it", line, by_cut=True)
                continue
        else:
            record, fault = parser.judge(value, line)
            if not fault:
                rows += 1
                yield record
                continue
        yield tally.leave_out(number, fault, line)
    tally.check()


def _is_one_list(head: str) -> bool:
    """Whether what is called JSONL begins a list of objects that ends on no first line, or is nothing but that line."""
    head = head.lstrip()
    if not re.match(r"\[\s*[{\]]", head):
        return False
    line, _, rest = head.partition("\n")
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return True
    return not rest.strip()


class _Window:
    """The part of a JSON text that is looked at; what was read is dropped when more is taken in."""

    def __init__(self, blocks: Iterable[str]):
        self.blocks = iter(blocks)
        self.text, self.at, self.line, self.column = "", 0, 1, 1

    def place(self, at: int) -> tuple[int, int]:
        """Line and column in the file, from 1, of a position in the window."""
        if feeds := self.text.count("\n", 0, at):
            return self.line + feeds, at - self.text.rfind("\n", 0, at)
        return self.line, self.column + at

    def grow(self) -> bool:
        """Take in as much again as is unread, one block at least; False at the end of the file."""
        self.line, self.column = self.place(self.at)
        parts, wanted = [self.text[self.at :]], len(self.text) - self.at
        self.at = 0
        for block in self.blocks:
            parts.append(block)
            wanted -= len(block)
            if wanted <= 0:
                break
        self.text = "".join(parts)
        return len(parts) > 1

    def skip(self) -> str:
        """The next mark that is no white space; "" at the end of the file."""
        while True:
            self.at = _SPACE.match(self.text, self.at).end()
            if self.at < len(self.text) or not self.grow():
                return self.text[self.at : self.at + 1]


def _read_json(text: Iterable[str], shown: str, notes: list[str], several: bool = False) -> Iterator[dict | Broken]:
    window, parser = _Window(text), _Json()
    mark = window.skip()
    if mark == "[":
        tally = _Tally(shown, several, "row")
        for number, value, start, end in _elements(window, parser, shown):
            tally.seen += 1
            record, fault = parser.judge(value, window.text, start, end)
            yield tally.leave_out(number, fault, "") if fault else record
        tally.check()
    elif mark == "{" and _is_jsonl(window, parser):
        _note(notes, "It is JSONL, one object a line, and was read as such.")
        rest = itertools.chain([window.text[window.at :]], window.blocks)
        yield from _read_jsonl(rest, shown, notes, several, first_line=window.place(window.at)[0])
    else:
        yield from _read_whole(window, parser, shown, notes)


def _broken_json(window: _Window, at: int, reason: str, shown: str) -> UserError:
    line, column = window.place(at)
    return UserError(f"{shown} is broken at line {line:,}, column {column:,}: {reason}. Fix it there.")


def _elements(window: _Window, parser: _Json, shown: str) -> Iterator[tuple[int, object, int, int]]:
    """Each element of the list that begins in the window: its number, its value, and where it stands in the window."""
    window.at += 1
    number, mark = 0, window.skip()
    if mark == "]":
        window.at += 1
    while mark != "]":
        number += 1
        while True:
            try:
                value, end = parser.parse(window.text, window.at)
                # A number that ends where the window does may go on behind it.
                if end < len(window.text) or not window.grow():
                    break
            except RecursionError:
                raise UserError(f"{shown}, row {number:,} is nested too deep. Flatten it.") from None
            except json.JSONDecodeError as error:
                if _is_cut(error, window.text):
                    if len(window.text) - window.at <= MAX_LINE_BYTES:
                        if window.grow():
                            continue
                        line, column = window.place(len(window.text))
                        raise UserError(
                            f"{shown} is cut off: it ends at line {line:,}, column {column:,} within row {number:,}. Bring it whole."
                        ) from None
                elif error.pos - window.at <= MAX_LINE_BYTES:
                    raise _broken_json(window, error.pos, _reason(error, window.text), shown) from None
                end = len(window.text)
                break
            except ValueError as error:
                raise _broken_json(window, window.at, _reason(error), shown) from None
        if end - window.at > MAX_LINE_BYTES:
            line, _ = window.place(window.at)
            raise UserError(
                f"{shown}, row {number:,} has more than {MAX_LINE_BYTES:,} characters, the most; it begins at line {line:,}. "
                "See whether a quote or a bracket is missing there."
            )
        start, window.at = window.at, end
        yield number, value, start, end
        mark = window.skip()
        if not mark:
            line, column = window.place(window.at)
            raise UserError(f"{shown} is cut off: it ends at line {line:,}, column {column:,} behind row {number:,}. Bring it whole.")
        if mark not in ",]":
            raise _broken_json(window, window.at, "Expecting ',' delimiter", shown)
        window.at += 1
        if mark == ",":
            window.skip()
    if window.skip():
        raise _broken_json(window, window.at, "Extra data", shown)


def _is_jsonl(window: _Window, parser: _Json) -> bool:
    """Whether the window's first line is an object by itself and another one begins behind it."""
    while (end := window.text.find("\n", window.at)) < 0:
        if len(window.text) - window.at > MAX_LINE_BYTES or not window.grow():
            return False
    try:
        parser.parse_all(window.text[window.at : end])
    except (ValueError, RecursionError):
        return False
    while not (behind := window.text[end:].lstrip()):
        if len(window.text) - window.at > MAX_LINE_BYTES or not window.grow():
            return False
        end = window.text.find("\n")
    return behind[0] == "{"


def _read_whole(window: _Window, parser: _Json, shown: str, notes: list[str]) -> Iterator[dict]:
    """The rows of a JSON text that is one object."""
    parts, length = [window.text], len(window.text)
    for block in window.blocks:
        parts.append(block)
        length += len(block)
        if length > MAX_OBJECT_BYTES:
            break
    if length > MAX_OBJECT_BYTES:
        raise UserError(
            f"{shown} is one JSON object of more than {MAX_OBJECT_BYTES / 2**20:,.0f} MiB. Save its rows as a list or as JSONL."
        )
    text = window.text = "".join(parts)
    try:
        value, end = parser.parse(text, window.at)
        if (behind := _SPACE.match(text, end).end()) < len(text):
            raise json.JSONDecodeError("Extra data", text, behind)
    except RecursionError:
        raise UserError(f"{shown} is nested too deep. Flatten it.") from None
    except json.JSONDecodeError as error:
        if _is_cut(error, text) and text[window.at : window.at + 1] == "{":
            line, column = window.place(len(text))
            raise UserError(f"{shown} is cut off: it ends at line {line:,}, column {column:,} within an object. Bring it whole.") from None
        raise _broken_json(window, error.pos, _reason(error), shown) from None
    except ValueError as error:
        raise UserError(f"{shown} is not valid JSON: {_reason(error)}. Fix or delete it.") from None
    if parser.faults:
        raise UserError(f"{shown} is not valid JSON: {parser.faults[0]}. Fix or delete it.")
    odd = "\\ud" in text.lower()
    for number, item in enumerate(_rows_within(value, shown, notes), 1):
        record, fault = parser.judge(item, "[" * (MAX_DEPTH + 1) + ("\\ud" if odd else ""))
        if fault:
            raise UserError(f"{shown}, row {number:,} {fault}. Fix or delete it.")
        yield record


def _rows_within(value: object, shown: str, notes: list[str]) -> list:
    """The rows that a JSON object holds, or is."""
    if not isinstance(value, dict):
        raise UserError(f"{shown} holds {shorten(json.dumps(value), 40)}; a list of rows is expected. Bring one, or JSONL.")
    lists = {key: item for key, item in value.items() if isinstance(item, list)}
    lengths = {len(item) for item in lists.values()}
    if len(lists) == 1 and _holds_rows(next(iter(lists.values())), alone=len(value) == 1):
        key = next(iter(lists))
        _note(notes, f"The rows were found under {shorten(key, 30)!r}.")
        return lists[key]
    if len(lists) < 2 or len(lists) < len(value):
        return [value]
    if all(item and _holds_rows(item, alone=False) for item in lists.values()):
        if all(key.lower() in _SPLITS for key in lists):
            _note(notes, f"The rows were found under {', '.join(map(repr, lists))}, which became their split.")
            return [{"split": key, **row} for key, rows in lists.items() for row in rows]
    elif any(_holds_turns(item) for item in lists.values()):
        return [value]
    if len(lengths) == 1:
        _note(notes, "The file is a table by columns and was turned into rows.")
        return [dict(zip(lists, row)) for row in zip(*lists.values())]
    seen = ", ".join(f"{shorten(key, 30)!r} has {len(item):,}" for key, item in list(lists.items())[:3])
    raise UserError(f"{shown} is a table by columns, and they differ in length: {seen}. Make them equal, or bring a list of rows.")


def _holds_turns(items: list) -> bool:
    """Whether a list holds the turns of one conversation."""
    return bool(items) and isinstance(items[0], dict) and ("role" in items[0] or {"from", "value"} <= items[0].keys())


def _holds_rows(items: list, alone: bool) -> bool:
    """Whether a list inside an object is the dataset's rows, rather than the turns or the tags of a single row."""
    if not all(isinstance(item, dict) for item in items):
        return alone and all(isinstance(item, str) for item in items)
    return not _holds_turns(items)


# Tables -----------------------------------------------------------------------------------------------------------


def _head(lines: Iterable[str]) -> tuple[list[str], bool]:
    """The first hundred lines that are not blank, or as many as make a megabyte; and whether these are all there are."""
    head, length, filled = [], 0, 0
    for line in lines:
        head.append(line)
        length += len(line)
        filled += not line.isspace()
        if length > _BLOCK or filled == 100:
            return head, False
    return head, True


def _sniff_delimiter(lines: list[str], whole: bool) -> str:
    """The mark that splits the first lines into the same number of cells, more than one; "" if there is none.

    Args:
        whole: the lines are all there are; else the last row may be cut.
    """
    best, cells = "", 1
    for mark in ",\t;|":
        widths = _widths(lines, mark)
        widths = widths if whole or len(widths) < 3 else widths[:-1]
        if widths and widths[0] > cells and sum(width == widths[0] for width in widths) >= 0.9 * len(widths):
            best, cells = mark, widths[0]
    return best


def _widths(lines: list[str], mark: str) -> list[int]:
    csv.field_size_limit(MAX_LINE_BYTES)
    try:
        return [len(row) for row in csv.reader(lines, delimiter=mark) if row]
    except csv.Error:
        return []


class _Feed:
    """The lines of a table, with their ends; it knows where the row that is being read begins, and where its last quote opens."""

    def __init__(self, blocks: Iterable[str], shown: str):
        self.blocks, self.shown = iter(blocks), shown
        self.number = 0  # of the last line given
        self.forget()

    def forget(self) -> None:
        """A row has ended."""
        self.begin, self.length, self.quote, self.is_open = self.number + 1, 0, 0, False

    def lines(self) -> Iterator[str]:
        rest = ""
        for block in self.blocks:
            lines = io.StringIO(rest + block, newline="").readlines()
            rest = lines.pop() if lines and not lines[-1].endswith(("\n", "\r")) else ""
            yield from lines
            if len(rest) > MAX_LINE_BYTES:
                yield rest  # too long already: `watch` refuses it with its number
                rest = ""
        if rest:
            yield rest

    def watch(self, lines: Iterable[str]) -> Iterator[str]:
        for line in lines:
            self.number += 1
            self.length += len(line)
            if '"' in line and (quotes := line.replace('""', "").count('"')):
                self.quote = self.number
                self.is_open ^= bool(quotes % 2)
            if self.length > MAX_LINE_BYTES:
                raise UserError(
                    f"{self.shown}, the row that begins at line {self.begin:,} has more than {MAX_LINE_BYTES:,} characters, the most. "
                    f"{self.advice()}"
                )
            yield line

    def advice(self) -> str:
        """Where the quote opens that the current row never closes, in a sentence."""
        return f"A quote opens at line {self.quote:,} and never closes. Close it." if self.is_open else "Cut it into rows."


def _read_table(blocks: Iterable[str], shown: str, delimiter: str, notes: list[str]) -> Iterator[dict]:
    feed = _Feed(blocks, shown)
    lines = feed.lines()
    for line in lines:
        if not line.isspace():
            lines = itertools.chain([line], lines)
            break
        feed.number += 1
    feed.forget()
    head, whole = _head(lines)
    delimiter = _choose_delimiter(head, whole, delimiter, notes)
    csv.field_size_limit(MAX_LINE_BYTES)  # it is the process's, so it is set wherever it counts
    reader = csv.reader(feed.watch(itertools.chain(head, lines)), delimiter=delimiter, strict=True)
    try:
        header = [name.strip() for name in next((row for row in reader if any(cell.strip() for cell in row)), [])]
        unnamed = _check_header(header, shown, notes)
        feed.forget()
        for row in reader:
            if not any(row) or not any(cell.strip() for cell in row):
                feed.forget()
                continue
            if len(row) != len(header):
                raise UserError(
                    f"{shown}, line {feed.number:,} has {len(row)} cells and the header has {len(header)}. "
                    "Put quotes round cells that hold the separator."
                )
            feed.forget()
            # Cells stay text: 007 is not 7 and NA is not nothing.
            record = dict(zip(header, row))
            if unnamed:
                if any(row[place].strip() for place in unnamed):
                    raise UserError(f"{shown}, line {feed.number:,} has text in a column without a name. Give each column its own name.")
                del record[""]
            yield record
    except csv.Error as error:
        if "end of data" in str(error):
            raise UserError(f"{shown} is broken near line {feed.number:,}: {error}. {feed.advice()}") from None
        begins = f" in the row that begins at line {feed.begin:,}" if feed.begin < feed.number else ""
        raise UserError(f"{shown} is broken near line {feed.number:,}: {error}{begins}. Check the quotes there.") from None


def _choose_delimiter(head: list[str], whole: bool, delimiter: str, notes: list[str]) -> str:
    """What parts the cells: what the ending says if the first line holds it, else what the first lines show."""
    if delimiter and (not head or delimiter in head[0]):
        return delimiter
    found = _sniff_delimiter(head, whole)
    if not found:
        # Rows of different lengths hide the mark; a header and a row that hold one that is no comma still show it.
        found = next((mark for mark in "\t;|" if len(head) > 1 and "," not in head[0] and mark in head[0] and mark in head[1]), ",")
    if found != (delimiter or ","):
        _note(notes, f"Cells are separated by {'a tab' if found == chr(9) else repr(found)}.")
    return found


def _check_header(header: list[str], shown: str, notes: list[str]) -> list[int]:
    """Places of the columns without a name, where there is more than one of them: they have to be empty.

    Raises:
        UserError: too many columns, or two of one name.
    """
    if len(header) > MAX_COLUMNS:
        raise UserError(f"{shown} has {len(header):,} columns; the most is {MAX_COLUMNS:,}. Keep those that matter.")
    if twice := sorted({name for name in header if name and header.count(name) > 1}):
        raise UserError(f"{shown} has the column {shorten(twice[0], 30)!r} twice. Give each column its own name.")
    if any(len(name) > 60 or name.endswith((".", "?", "!")) or re.fullmatch(r"[-+]?[\d.,]+", name) for name in header):
        _note(notes, f"The first line of {shown} was taken for the columns' names. If it is a row, put a line of names above it.")
    unnamed = [place for place, name in enumerate(header) if not name]
    return unnamed if len(unnamed) > 1 else []


# Columns ----------------------------------------------------------------------------------------------------------


def _read_columnar(path: Path, source: _Source, meter: _Meter, budget: _Budget) -> Iterator[dict]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    shown, kind = source.shown, source.kind

    def rows_at_once(largest_bytes: float, mean_bytes: float) -> int:
        """How many rows stay small, even where each refers to the same large value, as dictionaries let them."""
        return int(max(1, min(1024, MAX_EXPANDED_BYTES // 64 // max(1, largest_bytes, mean_bytes))))

    def read_parquet(file: pq.ParquetFile, source: pa.NativeFile) -> Iterator[tuple[pa.RecordBatch, float]]:
        groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
        # Sizes are declared in the footer: a small file that unpacks to gigabytes is refused before it does.
        if sum(group.total_byte_size for group in groups) > MAX_EXPANDED_BYTES:
            raise UserError(_too_large(shown))
        largest = max((_most_repeated(source, group.column(i)) for group in groups for i in range(group.num_columns)), default=0)
        mean = max((group.total_byte_size / max(1, group.num_rows) for group in groups), default=0)
        rows = max(1, file.metadata.num_rows)
        for batch in file.iter_batches(rows_at_once(largest, mean)):
            yield batch, batch.num_rows / rows

    def read_arrow(file) -> Iterator[tuple[pa.RecordBatch, float]]:
        streamed = isinstance(file, pa.RecordBatchStreamReader)
        kinds = sorted({kind for field in file.schema if str(field.type) not in _VIEWS for kind in _kinds_within(field.type)})
        by_reference = any(word in kind for kind in kinds for word in ("dictionary", "run_end", "extension"))
        if nested := [kind for kind in kinds if "view" in kind]:
            raise UserError(f"{shown} has a column with a {nested[0]} within, which is not read here. Save it as Parquet.")
        share = 0 if streamed else 1 / max(1, file.num_record_batches)
        for batch in file if streamed else map(file.get_batch, range(file.num_record_batches)):
            batch.validate()
            lengths = [length for column in batch.columns if str(column.type) in _VIEWS for length in _view_lengths(column)]
            if sum(map(abs, lengths)) > MAX_EXPANDED_BYTES:  # validation looks at every letter of every view, however few there are
                raise UserError(_too_large(shown))
            batch.validate(full=True)  # a wrong offset would otherwise end this process
            size = batch.get_total_buffer_size()
            step = rows_at_once(max(lengths, default=0) if not by_reference else size, size / max(1, batch.num_rows))
            for start in range(0, batch.num_rows, step):
                part = batch.slice(start, step)
                yield part, share * part.num_rows / batch.num_rows

    try:
        with pa.OSFile(str(path)) as file:
            if kind == "Parquet":
                # pyarrow would otherwise hold whole column chunks, which may be all of a file.
                opened = pq.ParquetFile(file, buffer_size=_BLOCK, pre_buffer=False)
                names = opened.schema_arrow.names
            else:
                whole = file.read(6) == b"ARROW1"
                file.seek(0)
                opened = pa.ipc.open_file(file) if whole else pa.ipc.open_stream(file)
                names = opened.schema.names
            if len(names) > MAX_COLUMNS:
                raise UserError(f"{shown} has {len(names):,} columns; the most is {MAX_COLUMNS:,}. Keep those that matter.")
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise UserError(f"{shown} has the column {shorten(twice[0], 30)!r} twice. Give each column its own name.")
            for batch, share in read_parquet(opened, file) if kind == "Parquet" else read_arrow(opened):
                if not source.packing:  # else its bytes were told as they were unpacked
                    meter.add(share * source.size)
                for record in batch.to_pylist():
                    budget.spend(_weight(record), source, packed=False)
                    yield plain(record)
    except RecursionError:
        raise UserError(f"{shown} is nested too deep. Flatten it.") from None
    except MemoryError:
        raise
    except (pa.ArrowException, OSError, ValueError, TypeError, LookupError, ArithmeticError) as error:
        reason = shorten(_clean(str(error).split("\n")[0]), 80).rstrip(". ")
        raise UserError(f"{shown} cannot be read as {kind}: {reason}. It may be damaged or another kind of file.") from None


def _kinds_within(kind) -> Iterator[str]:
    """The names of an Arrow type and of those that it is made of."""
    yield str(kind) if not kind.num_fields else str(kind).split("<")[0]
    for place in range(kind.num_fields):
        yield from _kinds_within(kind.field(place).type)


def _view_lengths(column) -> list[int]:
    """The length of each value in a column of views, each of 16 bytes that begin with it."""
    views = memoryview(column.buffers()[1]).cast("B")[16 * column.offset : 16 * (column.offset + len(column))]
    return views.cast("i")[::4].tolist()


def _most_repeated(file, chunk) -> int:
    """The bytes that each row of a Parquet column chunk may repeat: those of its dictionary, or all where that is unknown."""
    if "DELTA_BYTE_ARRAY" in chunk.encodings:  # each value may begin with all of the one before
        return chunk.total_uncompressed_size
    file.seek(min(offset for offset in (chunk.dictionary_page_offset, chunk.data_page_offset) if offset is not None))
    # A page's header is Thrift's compact form: field 1 its type (2 is a dictionary), field 2 its size unpacked, zigzag varints.
    head = file.read(16)
    if head[:1] != b"\x15" or head[2:3] != b"\x15":
        return chunk.total_uncompressed_size
    size, shift = 0, 0
    for byte in head[3:]:
        size |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return size >> 1 if head[1] == 4 else 0
    return chunk.total_uncompressed_size


def _weight(value) -> int:
    """The characters or bytes of text in a value; eight for whatever else there is."""
    if isinstance(value, (dict, list)):
        return sum(map(_weight, value.values() if isinstance(value, dict) else value))
    return len(value) if isinstance(value, (str, bytes)) else 8
