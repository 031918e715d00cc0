"""What there is to read in files, archives and compressed streams, as bytes and as text, under limits."""

import codecs
import errno
import gzip
import io
import re
import stat
import struct
import tempfile
import time
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
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
MAX_FILES = 100_000  # with pictures among them; each costs half a kilobyte before anything is read
MAX_OBJECT_BYTES = 128 * 2**20  # of a JSON file that is one object, which only makes sense once its end was seen
MAX_PASTED = 20 * 2**20
MAX_DEPTH = 100  # of lists and objects in each other: well below what Python's own recursion allows to those who follow

# Text seldom packs better than 20 to 1; what unpacks 200-fold to more than this is made to fill a machine.
_BOMB_BYTES, _BOMB_RATIO = 256 * 2**20, 200
_LISTING_BYTES = 16 * 2**20  # of a zip's table of contents, which zipfile turns into objects of half a kilobyte
BLOCK = 2**20

EXTENSIONS = {
    ".jsonl": "JSONL", ".ndjson": "JSONL", ".json": "JSON", ".csv": "CSV", ".tsv": "TSV",
    ".parquet": "Parquet", ".arrow": "Arrow", ".feather": "Arrow", ".txt": "TXT",
}
# Pictures in a zip; what a name says is looked into before anything is decoded, see `pictures`.
PICTURES = frozenset((".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif", ".svg"))
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
SPLITS = {"train": "train", "training": "train", "test": "test", "validation": "validation", "valid": "validation",
          "val": "validation", "dev": "validation", "eval": "validation"}
_SPLIT_STEM = re.compile(rf"(?:^|[-_. ])({'|'.join(SPLITS)})(?:[-_.]\d+([-_]of[-_]\d+)?(-[0-9a-f]{{16}})?)?$", re.I)
DAMAGE = (
    EOFError, zlib.error, zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError, LookupError,
    struct.error, ArithmeticError,
)


def endings() -> list[str]:
    """Every ending that a file chooser may offer."""
    return [*sorted(EXTENSIONS), *(known + packed for packed in _PACKINGS for known in sorted(EXTENSIONS)), ".zip"]


def safe_title(name: str) -> str:
    """A file's name as it may be shown: its last part, without control characters and marks that turn the writing round."""
    return shorten(clean(re.split(r"[/\\]", str(name).rstrip("/\\"))[-1])) or "Unnamed file"


def clean(name: str) -> str:
    """A name on one line, without control characters and marks that turn the writing round."""
    # The two joiners are of the same category as the marks, and hold letters and emoji together.
    kept = (mark if mark in "\u200c\u200d" or unicodedata.category(mark) not in ("Cc", "Cf", "Cs", "Zl", "Zp") else " "
            for mark in str(name).replace("\ufeff", "")[:4096])
    return " ".join("".join(kept).split())


def add_note(notes: list[str], note: str) -> None:
    """Say it, once: a zip of a hundred tables says once that a semicolon parts their cells."""
    if note not in notes:
        notes.append(note)


# What is counted --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """One file of records, or one member of an archive; `shown` is what it is called in messages."""

    shown: str
    stem: str
    kind: str
    packing: str
    path: Path
    size: int
    archive: zipfile.ZipFile | None = None
    member: zipfile.ZipInfo | None = None
    pictures: tuple[zipfile.ZipInfo, ...] = ()  # of a zip that holds any, with the tables beside them
    tables: tuple["Source", ...] = ()


class Meter:
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


class Budget:
    """What may still be unpacked, of all files together."""

    def __init__(self):
        self.spent = 0
        self.by_file: dict[Path, int] = {}

    def spend(self, count: int, source: Source, packed: bool = True) -> None:
        """Count what was unpacked.

        Args:
            packed: it comes from gzip and the like. Columns may honestly repeat one long value, so they may unpack to more.

        Raises:
            UserError: it is more than fits, or more than an honest file of that size holds.
        """
        self.spent += count
        own = self.by_file[source.path] = self.by_file.get(source.path, 0) + count
        if self.spent > MAX_EXPANDED_BYTES:
            raise UserError(too_large(source.shown))
        if own > _BOMB_BYTES and own > _BOMB_RATIO * (1 if packed else 10) * source.size:
            raise UserError(
                f"{source.shown} unpacks to more than {own / 2**20:,.0f} MiB from {source.size / 2**20:,.1f} MiB, which is too "
                "large to be text. Bring a part of it."
            )


def too_large(shown: str) -> str:
    """What is said of what unpacks to more than fits."""
    return f"{shown} unpacks to more than {MAX_EXPANDED_BYTES / 2**30:.0f} GiB. Bring a part of it."


# Files and what is packed in them ---------------------------------------------------------------------------------


class _File(io.RawIOBase):
    """A file on disk whose reading is metered."""

    def __init__(self, path: Path, meter: Meter):
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
            raise UserError(f"The zip holds more than {MAX_FILES:,} files, the most. Bring only those with rows in them.")
        return super().read(count)


class _Unpacked:
    """A packed file's content, counted as it is unpacked; damage becomes words."""

    def __init__(self, stream, source: Source, budget: Budget):
        self.stream, self.source, self.budget = stream, source, budget

    def read(self, count: int) -> bytes:
        try:
            data = self.stream.read(count)
        except MemoryError:
            raise
        except DAMAGE:
            raise UserError(f"{self.source.shown} is cut off or damaged: it cannot be unpacked to its end. Pack or download it again.") from None
        self.budget.spend(len(data), self.source)
        return data


def check_sizes(files: list[tuple[Path, str]]) -> list[int]:
    """The files' sizes in bytes.

    Raises:
        UserError: there is none, one is gone or empty, or they are too large.
    """
    if not files:
        raise UserError("No file was chosen. Choose one that has rows in it.")
    sizes = []
    for path, name in files:
        shown = safe_title(name)
        kind_of(name, shown)
        if not Path(path).is_file():
            raise UserError(f"{shown} is not here any more. Choose it again.")
        sizes.append(Path(path).stat().st_size)
        if not sizes[-1]:
            raise UserError(f"{shown} is empty (0 bytes). Choose a file that has rows in it.")
    if sum(sizes) > MAX_FILE_BYTES:
        who = f"{shown} has" if len(sizes) == 1 else f"The {len(sizes)} files have together"
        raise UserError(f"{who} {sum(sizes) / 2**20:,.0f} MiB; the most is {MAX_FILE_BYTES / 2**20:,.0f} MiB. Bring a part of it.")
    return sizes


def kind_of(name: str, shown: str) -> tuple[str, str, str]:
    """What a name says: its stem, its kind and how it is packed.

    Raises:
        UserError: it says nothing known.
    """
    said = clean(re.split(r"[/\\]", name)[-1])
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


def list_sources(path: Path, name: str, notes: list[str], stack: ExitStack, meter: Meter) -> list[Source]:
    """What there is to read in one file: itself, or a zip's members in the order of their names."""
    shown, size = safe_title(name), path.stat().st_size
    stem, kind, packing = kind_of(name, shown)
    with open(path, "rb") as file:
        head = file.read(8)
    if packing == "gzip" and not head.startswith(b"\x1f\x8b"):
        raise UserError(f"{shown} is not a gzip file, whatever its name says. Take .gz off its name, or pack it again.")
    if packing == "zstd" and not (head.startswith(b"\x28\xb5\x2f\xfd") or head[1:4] == b"\x2a\x4d\x18"):
        raise UserError(f"{shown} is not a zstd file, whatever its name says. Take .zst off its name, or pack it again.")
    if packing != "zip":
        return [Source(shown, stem, kind, packing, path, size)]
    try:
        archive = stack.enter_context(zipfile.ZipFile(stack.enter_context(_Archive(path, meter))))
    except DAMAGE:
        raise UserError(f"{shown} is not a zip file, or is cut off or damaged. Pack or download it again.") from None
    rows, pictures = _members(archive, shown, notes)
    sources, whole = [], stem
    for member in rows:
        stem, kind, _ = kind_of(member.filename, shown)
        within = f"{shorten(clean(member.filename))} in {shown}"
        sources.append(Source(within, stem, kind, "zip", path, size, archive, member))
    return [Source(shown, whole, "Pictures", "zip", path, size, archive, pictures=tuple(pictures), tables=tuple(sources))] if pictures else sources


def _members(archive: zipfile.ZipFile, shown: str, notes: list[str]) -> tuple[list[zipfile.ZipInfo], list[zipfile.ZipInfo]]:
    """The members of a zip that hold records, and those that are pictures, by name.

    Raises:
        UserError: one member would lie outside a folder that the zip is unpacked into, is a link, is encrypted or is
            an archive; or there are too many or none.
    """
    members = archive.infolist()
    if len(members) > MAX_FILES:
        raise UserError(f"{shown} holds {len(members):,} files; the most is {MAX_FILES:,}. Bring only those with rows in them.")
    if any(member.orig_filename == "[Content_Types].xml" for member in members):
        raise UserError(f"{shown} is an Excel or Word file, whatever its name says. {_AS_CSV}")
    taken, pictures, aside = [], [], []
    for member in members:
        # orig_filename, as zipfile hides what stands behind a NUL.
        name, title = member.orig_filename.replace("\\", "/"), repr(shorten(clean(member.orig_filename), 40))
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
        if ending not in EXTENSIONS and ending not in PICTURES:
            aside.append(title)
            continue
        # The others unpack without a bound: a few bytes of bzip2 to gigabytes in one step.
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UserError(f"{shown} packs {title} in a way that is not read here. Pack it as a usual zip (Deflate).")
        (pictures if ending in PICTURES else taken).append(member)
    if len(taken) > MAX_MEMBERS:
        raise UserError(f"{shown} holds {len(taken):,} files; the most is {MAX_MEMBERS:,}. Bring only those with rows in them.")
    if aside:
        more = f" and {len(aside) - 3:,} more" if len(aside) > 3 else ""
        add_note(notes, f"Left aside in {shown}: {', '.join(aside[:3])}{more}.")
    if not taken and not pictures:
        raise UserError(f"{shown} holds no file of rows and no picture. Put one of {', '.join(sorted(EXTENSIONS))} into it, or a folder of pictures for each class.")
    return sorted(taken, key=lambda member: member.filename), sorted(pictures, key=lambda member: member.filename)


def splits_of(sources: list[Source]) -> list[str]:
    """For each source the split that its name says; "" for all unless all say one and not all the same."""
    found = [_SPLIT_STEM.search(source.stem) for source in sources]
    words = [match[1].lower() if match else "" for match in found]
    if not all(words) or len({SPLITS[word] for word in words}) < 2:
        return [""] * len(sources)
    return words


def open_source(source: Source, stack: ExitStack, meter: Meter, budget: Budget):
    """What has read(count): the source's content, unpacked."""
    if source.member:
        try:
            return _Unpacked(stack.enter_context(source.archive.open(source.member)), source, budget)
        except DAMAGE:
            raise UserError(f"{source.shown} is cut off or damaged: it cannot be unpacked. Pack or download it again.") from None
    file = stack.enter_context(_File(source.path, meter))
    if source.packing == "gzip":
        return _Unpacked(stack.enter_context(gzip.GzipFile(fileobj=file)), source, budget)
    if source.packing == "zstd":
        import pyarrow as pa

        return _Unpacked(stack.enter_context(pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd")), source, budget)
    return file


def spooled(stream, source: Source, spool: Path, stack: ExitStack) -> Path:
    """The stream's content as a file under a name of ours, for formats whose table of contents stands at the end."""
    file = stack.enter_context(tempfile.NamedTemporaryFile(dir=spool, prefix="part-"))
    try:
        while block := stream.read(BLOCK):
            file.write(block)
        file.flush()
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise UserError(f"There is no room here to unpack {source.shown}. Bring it unpacked, or a part of it.") from None
    return Path(file.name)


# Their text -------------------------------------------------------------------------------------------------------


def count_breaks(text: str) -> int:
    """Line ends of any kind in the text."""
    return text.count("\n") + text.count("\r") - text.count("\r\n")


class Text:
    """A file's text in blocks of about a megabyte.

    Args:
        as_is: keep the line ends; else all are line feeds. No block parts a carriage return from its line feed.
        may_be_cut: a file that ends inside a character is no error; `cut` is true then.
    """

    def __init__(self, stream, source: Source, notes: list[str], as_is: bool = False, may_be_cut: bool = False):
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
                line += count_breaks(held + error.object[: error.start].decode("utf-8", "replace"))
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
                line += count_breaks(text[: text.index("\0")])
                raise UserError(f"{shown} is not a text file: line {line:,} holds a NUL byte. Save it as UTF-8 text.")
            line += count_breaks(text)
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
        parts, missing = [], BLOCK
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
            add_note(self.notes, "The file was UTF-16 and was read as such.")
            return codecs.getincrementaldecoder("utf-16")(), True
        return codecs.getincrementaldecoder("utf-8")(), False

    def _refuse_stand_ins(self, text: str) -> None:
        for pattern, what, advice in _STAND_INS:
            if self.source.kind != "TXT" and pattern.match(text[:4096]):
                raise UserError(f"{self.source.shown} is {what}, not rows. {advice}")
