"""Pictures of strangers made safe: looked at before they are decoded, decoded once, turned upright, shrunk, and kept as our own."""

import base64
import hashlib
import io
import json
import os
import struct
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from tuner import child, looks, redaction

# A picture of more is refused before it is decoded: four bytes each, and more while it is worked on.
MOST_PIXELS = 64_000_000
MOST_BYTES = 64 * 2**20
# Kept pictures have no longer short side: models see 224 to 384 pixels of it. The long side is bounded for strips.
KEPT_SIDE, KEPT_LONG = 384, 2_048
# Up to so many pixels a kept picture is a PNG, which loses nothing; a larger one is a JPEG of this quality.
PNG_PIXELS, JPEG_QUALITY = 256 * 256, 92
# A shorter side than this is "tiny", more pixels than this "huge", a longer side so many times the shorter "stretched".
TINY, HUGE, STRETCHED = 32, 24_000_000, 4
# Seconds that decoding one may take, where it can be killed; the largest that is taken needs about one.
MOST_S = 20.0
ENDLESS = "A picture takes longer to decode than any honest one does, so reading was ended. Bring the pictures in parts to find it."
# The only decoders that are ever asked. Pillow has forty, of which some run other programs.
FORMATS = {"JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"), "PNG": (".png",), "WEBP": (".webp",), "GIF": (".gif",), "BMP": (".bmp",), "TIFF": (".tif", ".tiff")}
ENDINGS = tuple(sorted(ending for endings in FORMATS.values() for ending in endings))
STORE = "pictures.bin"

# What stands under a picture's name and is none that is read here.
_OTHERS = (
    (b"\x89PNG", "PNG"), (b"\xff\xd8\xff", "JPEG"), (b"GIF8", "GIF"), (b"BM", "BMP"), (b"II*\0", "TIFF"), (b"MM\0*", "TIFF"),
    (b"%PDF", "a PDF"), (b"<svg", "an SVG drawing"), (b"<?xml", "XML or an SVG drawing"), (b"<!DOCTYPE", "a web page"), (b"<!doctype", "a web page"),
    (b"<html", "a web page"), (b"PK\x03\x04", "a zip"), (b"version https://git-lfs", "a Git LFS pointer"), (b"\0\0\1\0", "an icon"),
    (b"8BPS", "a Photoshop file"), (b"%!PS", "PostScript"), (b"\x1f\x8b", "a gzip file"), (b"MZ", "a program"), (b"\x7fELF", "a program"),
)
_BRANDS = {b"heic": "HEIC", b"heix": "HEIC", b"mif1": "HEIC", b"hevc": "HEIC", b"avif": "AVIF", b"isom": "a video", b"mp42": "a video", b"qt  ": "a video"}
_DAMAGE = (OSError, SyntaxError, ValueError, TypeError, IndexError, KeyError, EOFError, OverflowError, ZeroDivisionError, struct.error, AttributeError)


class NoPicture(ValueError):
    """Bytes that give no picture.

    Args:
        kind: "not_a_picture", "broken_picture", "bomb" or "too_large_picture".
        words: why; they follow the picture's name.
    """

    def __init__(self, kind: str, words: str):
        super().__init__(words)
        self.kind = kind


@dataclass(frozen=True)
class Taken:
    """A picture as it is kept.

    Args:
        content: PNG or JPEG, written here.
        width, height: of what is kept, in pixels; original: (width, height) before it was turned and shrunk.
        faults: what was odd about the original: "tiny", "huge", "animated", "cmyk", "deep", "turned", "misnamed", "stretched".
        look: see `looks.of`.
    """

    content: bytes
    width: int
    height: int
    original: tuple[int, int]
    format: str
    faults: tuple[str, ...] = ()
    look: str = ""

    @property
    def sha(self) -> str:
        """A hash of the kept picture."""
        return hashlib.blake2b(self.content, digest_size=16).hexdigest()

    def to_json(self) -> dict:
        """The same as JSON takes it, to pass it between processes; see `of_json`."""
        return {
            "taken": base64.b64encode(self.content).decode(), "width": self.width, "height": self.height, "original": list(self.original),
            "format": self.format, "faults": list(self.faults), "look": self.look,
        }

    @classmethod
    def of_json(cls, its: dict) -> "Taken":
        """Back from `to_json`."""
        return cls(
            base64.b64decode(its["taken"]), its["width"], its["height"], tuple(its["original"]), its["format"], tuple(its["faults"]), its["look"],
        )


# Taking one -------------------------------------------------------------------------------------------------------


def looks_like_one(content: bytes) -> bool:
    """Whether bytes begin like a picture of a kind that is read here."""
    return kind_of(content) in FORMATS


def kind_of(content: bytes) -> str:
    """What bytes begin like: a name of FORMATS, or of something else in words; "" where nobody can tell."""
    head = content[:64].lstrip() if content[:1].isspace() else content[:64]
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12], "a video")
    return next((what for magic, what in _OTHERS if head.startswith(magic)), "")


def take(content: bytes, name: str = "") -> Taken:
    """A stranger's picture as ours: 8-bit, one or three channels, upright, its short side KEPT_SIDE at most, without what else the file holds.

    Runs in a child that can be killed wherever a page is (`child.within`); sizes are looked at before anything is decoded.

    Args:
        name: the file's name, to see whether it says what the file is; "" for a picture without one.

    Raises:
        NoPicture: it is none, broken, or too large.
    """
    if not content:
        raise NoPicture("broken_picture", "is empty (0 bytes).")
    if len(content) > MOST_BYTES:
        raise NoPicture("too_large_picture", f"has {len(content) / 2**20:,.0f} MiB; the most of one picture is {MOST_BYTES / 2**20:,.0f} MiB.")
    kind = kind_of(content)
    if kind not in FORMATS:
        raise NoPicture("not_a_picture", f"is {kind}, not a picture that is read here ({', '.join(FORMATS)})." if kind else "is no picture, whatever its name says.")
    with child.within(MOST_S), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of what is told here as a finding
        try:
            return _taken(content, kind, name)
        except NoPicture:
            raise
        except Image.DecompressionBombError:
            raise NoPicture("bomb", f"unpacks to more than {MOST_PIXELS / 1e6:.0f} million pixels, the most.") from None
        except _DAMAGE as error:
            reason = " ".join(str(error).split())[:80].rstrip(". ") or type(error).__name__
            raise NoPicture("broken_picture", f"is cut off or damaged ({reason}).") from None


def _taken(content: bytes, kind: str, name: str) -> Taken:
    picture = Image.open(io.BytesIO(content), formats=[kind])
    original, faults = picture.size, set()
    pixels = original[0] * original[1]
    if pixels > MOST_PIXELS:
        raise NoPicture("bomb", f"has {original[0]:,} × {original[1]:,} pixels; the most is {MOST_PIXELS / 1e6:.0f} million. It was not decoded.")
    if pixels > HUGE:
        faults.add("huge")
    ending = Path(name).suffix.lower()
    if ending in ENDINGS and ending not in FORMATS[kind]:
        faults.add("misnamed")
    if min(original) < TINY:
        faults.add("tiny")
    if max(original) > STRETCHED * min(original):
        faults.add("stretched")
    # A camera's JPEG may hold a second, smaller picture (MPO), which is no animation.
    if picture.format != "MPO" and getattr(picture, "n_frames", 1) > 1:
        faults.add("animated")
        picture.seek(0)
    if picture.mode in ("CMYK", "LAB", "YCbCr") and kind != "WEBP":
        faults.add("cmyk")
    deep = _is_deep(picture, content, kind)
    if deep:
        faults.add("deep")
    if kind == "JPEG" and picture.mode in ("RGB", "L"):
        picture.draft(picture.mode, (2 * KEPT_SIDE, 2 * KEPT_SIDE))  # decodes an eighth of what nobody will see
    if picture.getexif().get(0x0112, 1) in range(2, 9):
        faults.add("turned")
    picture.load()
    ours = ImageOps.exif_transpose(_eight_bits(picture))
    ours = _shrunk(ours)
    out = io.BytesIO()
    clean = Image.fromarray(np.asarray(ours))  # nothing but pixels: no profile, no comment, no place where it was taken
    if clean.width * clean.height <= PNG_PIXELS:
        clean.save(out, "PNG")
    else:
        clean.save(out, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return Taken(out.getvalue(), clean.width, clean.height, original, kind, tuple(sorted(faults)), looks.of(clean))


def _is_deep(picture: Image.Image, content: bytes, kind: str) -> bool:
    """Whether the file has more than eight bits a channel; Pillow drops the rest of most such files without a word."""
    if picture.mode.startswith(("I", "F")):
        return True
    if kind == "PNG":
        return content[24] > 8  # the bit depth of its first chunk
    if kind == "TIFF":
        bits = picture.tag_v2.get(258, (8,))
        return max(bits if isinstance(bits, tuple) else (bits,)) > 8
    return False


def _eight_bits(picture: Image.Image) -> Image.Image:
    """The picture in eight bits, grey or RGB, on white where one can see through it. Its EXIF stays with it."""
    if picture.mode.startswith(("I", "F")):
        values = np.asarray(picture, np.float64)
        values = np.where(np.isfinite(values), values, 0.0)
        most = values.max(initial=0.0)
        # Sensors of 10, 12 and 14 bits are stored in 16: by those alone the picture would be black.
        full = 1.0 if picture.mode == "F" and most <= 1 else next((2.0**bits - 1 for bits in (8, 10, 12, 14, 16) if most < 2**bits), most)
        grey = Image.fromarray((values.clip(0, full) / full * 255).round().astype(np.uint8))
        grey.info["exif"] = picture.getexif().tobytes() if picture.getexif() else b""
        return grey
    if picture.mode == "1":
        return picture.convert("L")
    if "A" in picture.mode or picture.mode == "La" or "transparency" in picture.info:
        through = picture.convert("RGBA")
        white = Image.new("RGBA", through.size, "white")
        white.alpha_composite(through)
        flat = white.convert("RGB")
        flat.info["exif"] = picture.info.get("exif", b"")
        return flat
    return picture if picture.mode in ("RGB", "L") else picture.convert("RGB")


def _shrunk(picture: Image.Image) -> Image.Image:
    scale = max(min(picture.size) / KEPT_SIDE, max(picture.size) / KEPT_LONG)
    if scale <= 1:
        return picture
    size = tuple(max(1, round(side / scale)) for side in picture.size)
    return picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


# Keeping them -----------------------------------------------------------------------------------------------------


@dataclass
class Album:
    """The kept pictures of a dataset in one file, each once; a record holds where its own stands.

    Args:
        path: begun anew with the first picture. What is in it can be read at once, so that a page shows the first rows.
    """

    path: Path
    _file: object = None
    _places: dict[str, int] = field(default_factory=dict)
    _size: int = 0

    def keep(self, record: dict) -> dict:
        """The record with its pictures kept, as plain JSON values; see `is_entry`."""
        return {name: self._kept(value) for name, value in record.items()}

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()

    def _kept(self, value):
        if isinstance(value, Taken):
            return self._entry(value)
        if isinstance(value, NoPicture):
            return {"no_picture": value.kind, "why": str(value)}
        return str(value) if is_entry(value) else value  # a stranger's, that looks like one of ours

    def _entry(self, taken: Taken) -> dict:
        if self._file is None:
            self.path.unlink(missing_ok=True)  # another dataset may hold the same file by a link
            self._file = open(self.path, "wb", buffering=0)
        sha = taken.sha
        if sha not in self._places:
            self._places[sha] = self._size
            self._file.write(taken.content)
            self._size += len(taken.content)
        return {
            "at": self._places[sha], "bytes": len(taken.content), "sha": sha, "width": taken.width, "height": taken.height,
            "original": list(taken.original), "format": taken.format, "faults": list(taken.faults), "look": taken.look,
        }


def is_entry(value) -> bool:
    """Whether a record's value is a picture: one that is kept, or why there is none."""
    return isinstance(value, dict) and ("sha" in value and "at" in value or "no_picture" in value)


def content(folder: Path, entry: dict) -> bytes:
    """A kept picture's bytes.

    Args:
        folder: the dataset's, or the `data` folder of a run.

    Raises:
        OSError: it is not there.
    """
    with open(Path(folder) / STORE, "rb", buffering=0) as file:
        found = os.pread(file.fileno(), int(entry["bytes"]), int(entry["at"]))
    if len(found) != int(entry["bytes"]):
        raise OSError(f"{STORE} ends before the picture at {entry['at']}")
    return found


def pixels(kept: bytes, channels: int = 3) -> np.ndarray:
    """A kept picture's pixels: (H, W, channels) uint8.

    Args:
        kept: as `content` gives it, or `Taken.content`; nothing that a stranger wrote.
    """
    picture = Image.open(io.BytesIO(kept), formats=["PNG", "JPEG"]).convert("L" if channels == 1 else "RGB")
    found = np.asarray(picture)
    return found[..., None] if channels == 1 else found


def thumbnail(kept: bytes, side: int = 160) -> bytes:
    """A kept picture as a JPEG or PNG of at most so many pixels a side, for the page; small ones are enlarged without smoothing."""
    picture = Image.open(io.BytesIO(kept), formats=["PNG", "JPEG"])
    if max(picture.size) < side // 2:
        times = side // max(picture.size)
        picture = picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)
    else:
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    if picture.width * picture.height <= 64 * 64:
        picture.save(out, "PNG")
    else:
        picture.save(out, "JPEG", quality=85)
    return out.getvalue()


# Of a kept run ----------------------------------------------------------------------------------------------------

# What looking at one may allocate: it was shrunk before it was kept.
_LOOKING_BYTES = 2 * 2**30


def require_ours(folder: Path, entries) -> None:
    """See that what a run came back with is such as `take` keeps. Only in a process that can be killed: it may be anybody's.

    Args:
        folder: the `data` folder of a run.
        entries: what its rows say of their pictures, one after the other.

    Raises:
        NoPicture: one is missing, another one, or none that was kept.
    """
    seen = set()
    for entry in entries:
        place = entry["at"], entry["bytes"], entry["sha"]
        if place in seen:
            continue
        seen.add(place)
        try:
            kept = content(folder, entry)
        except OSError:
            raise NoPicture("broken_picture", "is missing.") from None
        again = take(kept)
        if hashlib.blake2b(kept, digest_size=16).hexdigest() != entry["sha"] or again.format not in ("PNG", "JPEG") or again.original != (again.width, again.height):
            raise NoPicture("broken_picture", "is not one that was kept.")


def _entries(folder: Path):
    """What the rows of a run's `data` folder say of their pictures."""
    for part in ("train", "held_out"):
        with open(folder / f"{part}.jsonl", encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)["picture"]


if __name__ == "__main__":
    redaction.install()
    child.limit_memory(_LOOKING_BYTES)
    data = Path(sys.argv[1])
    try:
        require_ours(data, _entries(data))
    except NoPicture as none:
        print(f"a picture of it {str(none).rstrip('.')}")
        sys.exit(1)
