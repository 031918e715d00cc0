"""One pass over rows: what each row is, kept as arrays beside the records, so that no row is looked at twice."""

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tuner import damage, data, encode, eyes, personal, tasks
from tuner.errors import UserError
from tuner.recipe import Recipe
from tuner.tasks import NoRow

# Part of every name under which a pass is kept: raise it whenever a pass would give other arrays.
VERSION = 2
# From this many rows on a second process helps more than its start costs (tests/bench/RESULTS.md).
ROWS_FOR_HELP = 8_000
_BLOCK = 512

ROW = np.dtype([
    ("flags", "<u8"),          # what is wrong, one bit each; see `bits`
    ("same", "<u8", (2,)),     # hash of all that the row says
    ("opening", "<u8"),        # hash of a conversation's opening; 0: none
    ("group", "<u8"),          # hash of the conversation that the source names; 0: none
    ("answer", "<u8"),         # hash of the last answer
    ("label", "<u8"),          # hash of the last answer without case and outer space, where it could be a label; 0: not
    ("chars", "<u4"),          # characters in all texts
    ("split", "u1"),           # the source's own: 0 none, 1 train, 2 test
    ("personal", "<u2", (5,)), # finds of each of personal.KINDS
])
# Bits that are not faults by themselves.
REFUSAL, SHORT = "refusal", "short answer"


def bits(task: str) -> dict[str, int]:
    """name -> bit of ROW["flags"]: the task's faults, damaged texts, lines that could not be read, and helpers."""
    names = (*tasks.get(task).FAULTS, *damage.KINDS, "unreadable", REFUSAL, SHORT)
    return {name: 1 << place for place, name in enumerate(names)}


@dataclass(frozen=True)
class Look:
    """Through which eyes rows are encoded: a tokenizer, and the settings that shape a row before any cut."""

    tokenizer_dir: str
    system_prompt: str
    learn: str
    keep_control_tokens: bool
    template_date: str
    task: str = tasks.DEFAULT

    @classmethod
    def of(cls, recipe: Recipe, tokenizer_dir: str | Path) -> "Look":
        return cls(
            str(tokenizer_dir), recipe.system_prompt, recipe.learn, recipe.keep_control_tokens, recipe.template_date, recipe.task
        )

    @property
    def key(self) -> str:
        return short_hash([VERSION, *self.__dict__.values()])

    def recipe(self) -> Recipe:
        """A recipe that encodes rows so, without a cut that matters."""
        return Recipe(
            system_prompt=self.system_prompt, learn=self.learn, keep_control_tokens=self.keep_control_tokens,
            template_date=self.template_date, max_tokens=10**9, task=self.task,
        )


@dataclass(frozen=True)
class Part:
    """A file of rows: the records under a mapping, or rows that a fix made (mapping None)."""

    path: Path
    mapping: data.Mapping | None
    task: str

    @property
    def folder(self) -> Path:
        """Where this part's arrays are kept."""
        mapping = [self.mapping.format, sorted(self.mapping.columns.items())] if self.mapping else []
        return self.path.parent / f"{self.path.stem}-{short_hash([VERSION, self.task, mapping])}"

    def row(self, place: int) -> dict:
        """The row at a place, counted from 0.

        Raises:
            NoRow: that record gives none.
        """
        return data.to_row(self.text(place), place + 1, self.mapping, self.task)

    def text(self, place: int) -> str:
        """The record at a place, as it is kept."""
        return data.Texts(self.path)[place]

    def texts(self):
        """All records as one Arrow array."""
        return data.Texts(self.path).column()


def save(path: Path, array: np.ndarray) -> None:
    """Keep an array so that a reader meets the old one or the new, also where the file is linked from another dataset."""
    temporary = path.with_name(f".{os.getpid()}.{path.name}")  # numpy wants the ending
    np.save(temporary, array)
    os.replace(temporary, path)


def load(path: Path, mode: str | None = "r") -> np.ndarray:
    """An array that `save` kept, mapped; with None as its mode, read."""
    with _loading:
        try:
            return np.load(path, mmap_mode=mode)
        except SystemError:
            return np.load(path, mmap_mode=mode)


# numpy reads an array's header with Python's own parser. That of 3.11 fails now and then (SystemError) where another thread is in it
# as well: once in ten thousand clicks of fifty visitors.
_loading = threading.Lock()


def short_hash(what) -> str:
    return hashlib.sha256(json.dumps(what, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _hash64(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little") or 1


# What a row is ----------------------------------------------------------------------------------------------------


def content(row: dict) -> str:
    """All that decides what is learned from the row, as JSON; numbers and splits are not part of it."""
    said = {name: value for name, value in row.items() if name not in ("n", "split", "group", "file", "folder")}
    return json.dumps(said, sort_keys=True, ensure_ascii=False)


def describe(texts: list[str], start: int, mapping, task: str, without: np.ndarray) -> tuple[np.ndarray, np.ndarray, list]:
    """What some kept records are.

    Args:
        start: the place of the first one.
        without: see `near.common`.

    Returns:
        (B,) ROW; (B, BANDS) uint64; the rows themselves, None where a record gives none.
    """
    module, bit = tasks.get(task), bits(task)
    found, rows, said = np.zeros(len(texts), ROW), [], []
    for index, text in enumerate(texts):
        its = found[index]
        try:
            row = data.to_row(text, start + index + 1, mapping, task)
        except NoRow as problem:
            its["flags"] = bit[problem.kind]
            rows.append(None)
            said.append("")
            continue
        rows.append(row)
        said.append(module.said(row))
        flags, chars, counts = 0, 0, np.zeros(len(personal.KINDS), np.int64)
        for name in module.faults(row):
            flags |= bit[name]
        for text_ in module.texts(row):
            chars += len(text_)
            for name in damage.find(text_):
                flags |= bit[name]
            counts += personal.count(text_)
        answer, refuses, alone = module.answer(row)
        if refuses:
            flags |= bit[REFUSAL]
        if label := module.label(answer, alone):
            flags |= bit[SHORT]
            its["label"] = _hash64(label.casefold())
        digest = hashlib.blake2b(content(row).encode("utf-8", "surrogatepass"), digest_size=16).digest()
        its["same"] = np.frombuffer(digest, "<u8")
        opening = module.opening(row)
        its["opening"] = _hash64(opening) if opening else 0
        its["group"] = _hash64(row["group"]) if row.get("group") else 0
        its["answer"] = _hash64(answer) if answer else 0
        its["flags"], its["chars"] = flags, chars
        its["split"] = {"train": 1, "test": 2}.get(row.get("split", ""), 0)
        its["personal"] = np.minimum(counts, 65_535)
    return found, module.ALIKE.band_keys(said, without), rows


@dataclass
class Tokens:
    """Rows as a base model's tokens, before any cut, as arrays.

    Args:
        row: (S,) which row each sequence is of; a row has several where the template rewrites earlier turns.
        length: (S,) tokens.
        spans: (M, 2) learned tokens, [start, end), and `span_of`: (M,) the sequence of each.
        flags: (N,) per row: 1 refused by the template, 2 holds control tokens, 4 learned whole for want of better.
    """

    row: np.ndarray
    length: np.ndarray
    spans: np.ndarray
    span_of: np.ndarray
    flags: np.ndarray

    def learned(self, most: int) -> np.ndarray:
        """(S,) tokens with a loss in each sequence where it is cut after `most`."""
        inside = np.minimum(self.spans[:, 1], most) - np.minimum(self.spans[:, 0], most)
        return np.bincount(self.span_of, weights=inside, minlength=len(self.row)).astype(np.int64)

    def save(self, folder: Path) -> None:
        for name, array in self.__dict__.items():
            np.save(folder / f"{name}.npy", array)

    @classmethod
    def load(cls, folder: Path) -> "Tokens":
        return cls(*(load(folder / f"{name}.npy") for name in cls.__dataclass_fields__))

    def to_lists(self) -> dict[str, list]:
        """The same as JSON takes it."""
        return {name: array.tolist() for name, array in self.__dict__.items()}

    @classmethod
    def of_lists(cls, lists: dict[str, list]) -> "Tokens":
        """Back from `to_lists`."""
        row, length, spans, span_of, flags = (lists[name] for name in cls.__dataclass_fields__)
        return cls(
            np.array(row, np.int64), np.array(length, np.int32), np.array(spans, np.int32).reshape(-1, 2), np.array(span_of, np.int64),
            np.array(flags, np.uint8),
        )

    @classmethod
    def joined(cls, parts: list["Tokens"]) -> "Tokens":
        """Parts one behind the other."""
        rows = np.cumsum([0, *(len(part.flags) for part in parts)])
        sequences = np.cumsum([0, *(len(part.row) for part in parts)])
        return cls(
            np.concatenate([part.row + shift for part, shift in zip(parts, rows)]),
            np.concatenate([part.length for part in parts]),
            np.concatenate([part.spans for part in parts]),
            np.concatenate([part.span_of + shift for part, shift in zip(parts, sequences)]),
            np.concatenate([part.flags for part in parts]),
        )

    def of(self, wanted: np.ndarray) -> "Tokens":
        """The same for some rows, in their order; a row may be wanted once only."""
        place = np.full(len(self.flags), -1, np.int64)
        place[wanted] = np.arange(len(wanted))
        kept = np.flatnonzero(place[self.row] >= 0)
        kept = kept[np.argsort(place[self.row[kept]], kind="stable")]
        where = np.full(len(self.row), -1, np.int64)
        where[kept] = np.arange(len(kept))
        spans = np.flatnonzero(where[self.span_of] >= 0)
        spans = spans[np.argsort(where[self.span_of[spans]], kind="stable")]
        return Tokens(place[self.row[kept]], self.length[kept], self.spans[spans], where[self.span_of[spans]], self.flags[wanted])


def tokenise(rows: list, look: Look) -> Tokens:
    """See `Tokens`; by the same `encode` that the trainer calls."""
    module, recipe = tasks.get(look.task), look.recipe()
    tokenizer = module.load_tokenizer(look.tokenizer_dir)
    control = module.control_tokens(tokenizer)
    row_of, lengths, spans, span_of, flags = [], [], [], [], np.zeros(len(rows), np.uint8)
    for index, row in enumerate(rows):
        if row is None:
            continue
        if any(control.search(text) for text in module.texts(row)):
            flags[index] |= 2
        try:
            sequences = module.encode_row(row, tokenizer, recipe)
        except UserError:
            flags[index] |= 1
            continue
        for sequence in sequences:
            if sequence.how == encode.BY_WHOLE_ROW:
                flags[index] |= 4
            learned = np.fromiter(sequence.would_learn, bool, len(sequence.would_learn))
            edges = np.flatnonzero(np.diff(np.concatenate(([False], learned, [False])).astype(np.int8))).reshape(-1, 2)
            spans.append(edges)
            span_of += [len(row_of)] * len(edges)
            row_of.append(index)
            lengths.append(len(sequence.offsets))
    return Tokens(
        np.array(row_of, np.int64), np.array(lengths, np.int32), np.concatenate([np.zeros((0, 2), np.int32), *spans]).astype(np.int32),
        np.array(span_of, np.int64), flags,
    )


# A whole part -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """What one block of records is looked at for; made once, sent to every helper."""

    mapping: data.Mapping | None
    task: str
    without: np.ndarray
    describe: bool
    look: Look | None


def do_block(job: Job, texts: list[str], start: int):
    """(B,) ROW or None, (B, BANDS) or None, Tokens or None."""
    if job.describe:
        found, keys, rows = describe(texts, start, job.mapping, job.task, job.without)
    else:
        found = keys = None
        rows = []
        for index, text in enumerate(texts):
            try:
                rows.append(data.to_row(text, start + index + 1, job.mapping, job.task))
            except NoRow:
                rows.append(None)
    return found, keys, eyes.tokenised(rows, job.look) if job.look else None


def part(its: Part, look: Look | None, on_progress: Callable[[int, int], None] | None = None, helpers: int | None = None) -> None:
    """Look at every row of a part, once, and keep what was seen.

    Args:
        look: also encode the rows so; None where no tokenizer can be had.
        on_progress: called with (rows done, rows in all).
        helpers: processes beside this one; by default one for long parts where there is a core for it.
    """
    described = (its.folder / "rows.npy").exists()
    if look and tokens_dir(its, look).exists():
        look = None
    if described and not look:
        return
    its.folder.mkdir(exist_ok=True)
    texts = data.Texts(its.path)
    total = len(texts)
    job = Job(its.mapping, its.task, _without(its, texts) if not described else np.zeros(0, np.uint32), not described, look)
    if not described:
        rows = np.lib.format.open_memmap(its.folder / ".rows.npy", "w+", ROW, (total,))
        keys = np.lib.format.open_memmap(its.folder / ".bands.npy", "w+", np.uint64, (tasks.get(its.task).ALIKE.BANDS, total))
    tokens, done = [], 0
    if helpers is None:
        helpers = 1 if total >= ROWS_FOR_HELP and (os.cpu_count() or 1) > 1 else 0
    for found, its_keys, its_tokens in _each_block(job, texts, helpers):
        count = len(found if found is not None else its_tokens.flags)
        if found is not None:
            rows[done : done + count] = found
            keys[:, done : done + count] = its_keys.T
        if its_tokens is not None:
            tokens.append(its_tokens)
            if len(tokens) >= 64:  # many small arrays cost more than their content
                tokens = [Tokens.joined(tokens)]
        done += count
        if on_progress:
            on_progress(done, total)
    if look:
        hidden = tokens_dir(its, look).with_name(f".{look.key}.{os.getpid()}")
        hidden.mkdir()
        (Tokens.joined(tokens) if tokens else tokenise([], look)).save(hidden)
        try:
            hidden.rename(tokens_dir(its, look))
        except OSError:  # another process looked at the same time; its arrays are these
            shutil.rmtree(hidden)
    if not described:
        rows.flush(), keys.flush()
        os.replace(its.folder / ".bands.npy", its.folder / "bands.npy")
        os.replace(its.folder / ".rows.npy", its.folder / "rows.npy")  # last: its presence means that both are whole


def tokens_dir(its: Part, look: Look) -> Path:
    return its.folder / f"tokens-{look.key}"


def _without(its: Part, texts: data.Texts) -> np.ndarray:
    """The boilerplate of a dataset, found once in its records and kept for the rows that fixes make, which lie beside it."""
    kept = (its.folder if its.mapping is not None else its.path.parent) / "boilerplate.npy"
    if its.mapping is None and kept.exists():
        return load(kept, None)
    module, said = tasks.get(its.task), []
    for block in texts.blocks():
        for number, text in enumerate(block, len(said) + 1):
            try:
                said.append(module.said(data.to_row(text, number, its.mapping, its.task)))
            except NoRow:
                pass
        if len(said) >= 1000:
            break
    found = module.ALIKE.common(said)
    if its.mapping is not None:
        save(kept, found)
    return found


def _each_block(job: Job, texts: data.Texts, helpers: int) -> Iterator[tuple]:
    """The blocks in order; this process only hands out and collects where it has helpers."""
    def places() -> Iterator[tuple[list[str], int]]:
        start = 0
        for block in texts.blocks(_BLOCK):
            yield block, start
            start += len(block)

    if not helpers:
        for block, start in places():
            yield do_block(job, block, start)
        return
    from collections import deque
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with ProcessPoolExecutor(helpers + 1, get_context("spawn"), _be_helper, (job,)) as pool:
        going: deque = deque()
        for block, start in places():
            going.append(pool.submit(_help, block, start))
            if len(going) >= 4 * (helpers + 1):  # so that memory stays flat
                yield going.popleft().result()
        while going:
            yield going.popleft().result()


_job: Job | None = None  # a helper's own; it serves one part and ends


def _be_helper(job: Job) -> None:
    global _job
    os.nice(5)
    _job = job


def _help(texts: list[str], start: int):
    return do_block(_job, texts, start)


def rows_of(its: Part) -> np.ndarray:
    """(N,) ROW of a part that was looked at."""
    return load(its.folder / "rows.npy")


def keys_of(its: Part) -> np.ndarray:
    """(BANDS, N) band keys of a part that was looked at."""
    return load(its.folder / "bands.npy")


def without_of(its: Part) -> np.ndarray:
    """The boilerplate that near duplicates are compared without; of the part that the records are."""
    return load(its.folder / "boilerplate.npy", None)
