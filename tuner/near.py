"""Rows that are nearly the same: MinHash signatures, bands, groups.

The method is that of Broder (1997) with the banding of Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, 3.4.
Bands only propose; whether two rows are near is decided by the exact Jaccard similarity of their shingle sets.
"""

import hashlib
import re
import string
import unicodedata
from array import array
from collections import OrderedDict
from collections.abc import Callable
from functools import cache

import numpy as np

THRESHOLD = 0.8  # Jaccard similarity of the shingle sets from which two rows are near duplicates
BANDS, ROWS = 21, 6  # 1 - (1 - 0.8 ** 6) ** 21 = 0.998 of the pairs at the threshold meet; of those at 0.5, 0.28
SHINGLE = 5  # code points; UTF-8 bytes would make a shingle of Chinese one character and two thirds
MAX_CHARS = 20_000
FEW = 20  # with fewer shingles only equal texts are near: "order 41" is not "order 42"
MIN_SAMPLES = 20
BATCH_CHARS = 32_768  # what one permutation writes, 128 KiB, stays in the core's own cache; 4 MiB costs twice the time
CACHE_BYTES = 64 * 1024**2
MAX_TESTED = 4_000_000  # pairs known to differ, 8 bytes each; a pair beyond them may be looked at again
PAIRS_AT_ONCE = 512

_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_HALF = np.uint64(32)


def _constants(count: int) -> np.ndarray:
    """The first numbers of SplitMix64 from 0; numpy promises no stream of its own for ever."""
    state = np.arange(1, count + 1, dtype=np.uint64) * _STEP
    state = (state ^ (state >> np.uint64(30))) * _MIX
    state = (state ^ (state >> np.uint64(27))) * _MIX_2
    return state ^ (state >> np.uint64(31))


_FACTORS, _SHIFTS = (_constants(2 * BANDS * ROWS) >> _HALF).astype(np.uint32).reshape(2, -1)
_FACTORS |= np.uint32(1)  # odd, so that x -> factor * x + shift is a permutation of the 32-bit numbers
_ASCII = str.maketrans(dict.fromkeys((c for c in string.punctuation if unicodedata.category(c)[0] == "P"), " "))


# Shingles ------------------------------------------------------------------------------------------------------------


@cache
def _gaps() -> re.Pattern:
    """Runs of white space and punctuation, which is not symbols: 1 < 2 and 1 > 2 differ.

    Up to U+FFFF only: with one later sign in the class, re searches a list for each character, ten times as slow.
    """
    signs = "".join(c for c in map(chr, range(0x10000)) if unicodedata.category(c)[0] == "P")
    return re.compile(rf"[\s{re.escape(signs)}]+")


def normal(text: str) -> str:
    """The text in NFKC and lower case; runs of white space and punctuation are one space, none at the ends."""
    if text.isascii():  # 7 us for 1,000 characters; the expression takes 30
        return " ".join(text.lower().translate(_ASCII).split())
    return _gaps().sub(" ", unicodedata.normalize("NFKC", text).lower()).strip()


def _form(text: str) -> str:
    return normal(text[:MAX_CHARS])


def _digest(form: str) -> int:
    return int.from_bytes(hashlib.blake2b(form.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _windows(forms: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Hashes (uint32) of the shingles of all forms, one form after the other, repeats included, and how many each has."""
    padded = [form.ljust(SHINGLE, "\0") if form else "" for form in forms]
    lengths = np.fromiter(map(len, padded), np.int64, len(padded))
    codes = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64)
    if not len(codes):
        return np.empty(0, np.uint32), lengths
    count = len(codes) - SHINGLE + 1
    hashes = codes[:count] * _STEP
    for place in range(1, SHINGLE):
        hashes += codes[place : place + count]
        hashes *= _STEP
    hashes ^= hashes >> _HALF
    hashes *= _MIX
    hashes >>= _HALF
    inside = np.ones(len(codes), bool)
    inside[(np.cumsum(lengths[lengths > 0])[:, None] - np.arange(1, SHINGLE)).ravel()] = False  # these reach into the next
    return hashes.astype(np.uint32)[inside[:count]], np.maximum(lengths - SHINGLE + 1, 0)


def _kept(hashes: np.ndarray, without: np.ndarray) -> np.ndarray:
    """Which hashes do not stand in `without`, as booleans."""
    kept = np.ones(len(hashes), bool)
    if len(without):
        upper = np.zeros(1 << 16, bool)  # most are told apart by half their bits, without a search
        upper[without >> np.uint32(16)] = True
        asked = np.flatnonzero(upper[hashes >> np.uint32(16)])
        found = np.searchsorted(without, hashes[asked])
        kept[asked] = without[np.minimum(found, len(without) - 1)] != hashes[asked]
    return kept


def _once(hashes: np.ndarray) -> np.ndarray:
    """Sorted, each once; np.unique of numpy 2.4 builds a hash table first and takes six times as long."""
    hashes = np.sort(hashes)
    new = np.ones(len(hashes), bool)
    np.not_equal(hashes[1:], hashes[:-1], out=new[1:])
    return hashes[new]


def shingles(text: str) -> np.ndarray:
    """Hashes of the shingles of 5 characters of the normal text: uint32, sorted, each once.

    Characters are code points. A text of 1 to 4 is one shingle; of more than 20,000 only the first 20,000 are read.
    """
    return _once(_windows([_form(text)])[0])


def common(samples: list[str]) -> np.ndarray:
    """Hashes of the shingles of boilerplate: uint32, sorted, those of more than half of the sample texts.

    Left out of signatures and comparisons, so that rows are not near for the instruction they all begin with. Samples
    that are equal count once: a row copied a thousand times is a duplicate and no boilerplate. Fewer than 20 show nothing.
    """
    forms = set(map(_form, samples))
    if len(forms) < MIN_SAMPLES:
        return np.empty(0, np.uint32)
    hashes, counts = np.unique(np.concatenate([_once(_windows([form])[0]) for form in forms]), return_counts=True)
    return hashes[counts > len(forms) / 2]


# Signatures ----------------------------------------------------------------------------------------------------------


def signatures(hashes: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(BANDS * ROWS, texts) uint32: the smallest hash of each text under each permutation.

    Two texts agree in a permutation with the probability of their Jaccard similarity.

    Args:
        hashes: uint32, all texts' shingles one text after the other; repeats do no harm.
        counts: how many are each text's. A text of none gets 0.
    """
    found = np.zeros((BANDS * ROWS, len(counts)), np.uint32)
    some = np.flatnonzero(counts)
    if len(some):
        starts = (np.cumsum(counts) - counts)[some]
        moved = np.empty_like(hashes)
        for row, factor, shift in zip(found, _FACTORS, _SHIFTS):
            np.multiply(hashes, factor, out=moved)
            np.add(moved, shift, out=moved)
            row[some] = np.minimum.reduceat(moved, starts)
    return found


def _fold(key: np.ndarray, more: np.ndarray) -> np.ndarray:
    """One 64-bit key of two; 0 and 0 stay 0."""
    key = (key ^ more) * _MIX
    return key ^ (key >> _HALF)


def _batch_keys(forms: list[str], without: np.ndarray) -> np.ndarray:
    hashes, counts = _windows(forms)
    if len(without) and len(hashes):
        kept = _kept(hashes, without)
        ends = np.concatenate([[0], np.cumsum(kept)])[np.cumsum(counts)]
        hashes, counts = hashes[kept], np.diff(ends, prepend=0)
    rows = signatures(hashes, counts).reshape(BANDS, ROWS, -1)
    keys = np.zeros((BANDS, len(forms)), np.uint64)
    for row in range(ROWS):
        keys = _fold(keys, rows[:, row])
    keys = np.maximum(keys, np.uint64(1))
    for index in np.flatnonzero(counts < FEW):  # these meet their equals and nobody else
        keys[:, index] = max(_digest(forms[index]), 1) if counts[index] else 0
    return keys.T


def band_keys(texts: list[str], without: np.ndarray) -> np.ndarray:
    """(len(texts), BANDS) uint64: texts that share a key in one band may be near, and most near ones share one.

    A text with no shingles left has 0 in all bands, which matches nothing.

    Args:
        without: hashes of boilerplate, from `common`.
    """
    keys = np.empty((len(texts), BANDS), np.uint64)
    forms, chars, start = [], 0, 0
    for index, text in enumerate(texts, 1):
        forms.append(_form(text))
        chars += len(forms[-1])
        if chars >= BATCH_CHARS or index == len(texts):
            keys[start:index] = _batch_keys(forms, without)
            forms, chars, start = [], 0, index
    return keys


# Groups --------------------------------------------------------------------------------------------------------------


class Sets:
    """The shingles of rows, boilerplate left out, and of short texts a digest; the last used are kept."""

    def __init__(self, text_of: Callable[[int], str], without: np.ndarray):
        self.text_of, self.without = text_of, without
        self.kept: OrderedDict[int, tuple[np.ndarray, int]] = OrderedDict()
        self.size_bytes = 0

    def of(self, row: int) -> tuple[np.ndarray, int]:
        if row in self.kept:
            self.kept.move_to_end(row)
            return self.kept[row]
        form = _form(self.text_of(row))
        hashes = _windows([form])[0]
        hashes = hashes[_kept(hashes, self.without)]
        self.kept[row] = one = (_once(hashes), _digest(form) if len(hashes) < FEW else 0)
        self.size_bytes += _weight(one)
        while self.size_bytes > CACHE_BYTES and len(self.kept) > 2:
            self.size_bytes -= _weight(self.kept.popitem(last=False)[1])
        return one

    def near(self, one: int, other: int) -> bool:
        """Whether two rows are near duplicates: by Jaccard similarity, or by equality where there is little to compare."""
        (a, a_digest), (b, b_digest) = self.of(one), self.of(other)
        if min(len(a), len(b)) < FEW:
            return len(a) > 0 and a_digest == b_digest and np.array_equal(a, b)
        if min(len(a), len(b)) < THRESHOLD * max(len(a), len(b)):
            return False
        both = np.concatenate([a, b])
        both.sort()
        shared = np.count_nonzero(both[1:] == both[:-1])
        return shared / (len(both) - shared) >= THRESHOLD


def _weight(one: tuple[np.ndarray, int]) -> int:
    return one[0].nbytes + 400  # array, tuple, number and their places, about


def _pairs(key: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Pairs to look at among rows of equal key, at most two a row: with its bucket's first, and with the row before it.

    Returns:
        (pairs,) uint64: smaller row * 2 ** 32 + larger row, in the order of the buckets.
    """
    live = key != 0
    key, rows = key[live], rows[live]
    order = np.argsort(key, kind="stable")
    key, rows = key[order], rows[order]
    at = np.flatnonzero(key[1:] == key[:-1]) + 1
    begins = np.ones(len(rows), bool)
    begins[at] = False
    first = np.flatnonzero(begins)[np.cumsum(begins)[at] - 1]
    others = rows[np.stack([first, at - 1], 1)]
    rows = rows[at][:, None]
    pairs = (np.minimum(others, rows).astype(np.uint64) << _HALF) | np.maximum(others, rows).astype(np.uint64)
    return pairs[np.stack([np.ones(len(at), bool), first != at - 1], 1)]


def _find(parent: np.ndarray, row: int) -> int:
    while (above := parent[row]) != row:
        parent[row] = row = parent[above]
    return row


def _flatten(parent: np.ndarray) -> None:
    """Let every row point at its group's smallest, in place."""
    while not np.array_equal(above := parent[parent], parent):
        parent[:] = above


def _join(pairs: np.ndarray, parent: np.ndarray, sets: Sets, on_progress: Callable[[float], None]) -> array:
    """Join the rows of those pairs that are near, in `parent`; the pairs that are not, as given."""
    failed = array("Q")
    for start in range(0, len(pairs), PAIRS_AT_ONCE):
        on_progress(start / len(pairs))
        for pair in pairs[start : start + PAIRS_AT_ONCE].tolist():
            one, other = pair >> 32, pair & 0xFFFFFFFF
            a, b = _find(parent, one), _find(parent, other)
            if a == b:
                continue
            if sets.near(one, other):
                parent[max(a, b)] = min(a, b)
            else:
                failed.append(pair)
    on_progress(1.0)
    return failed


def groups(
    keys: np.ndarray,
    text_of: Callable[[int], str],
    without: np.ndarray,
    same: np.ndarray | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> np.ndarray:
    """(N,) int64: the smallest row number of each row's group, its own where it is alone.

    A group is what hangs together by near pairs. Two rows are near when their shingle sets, boilerplate left out, have a
    Jaccard similarity of THRESHOLD or more. Where a text has fewer than FEW shingles left, as all of 23 characters or less,
    only an equal normal text is near it; where it has more, but fewer than FEW different ones ("ha ha ha ..."), only an
    equal set. At most 2 * (BANDS + 1) pairs are looked at per row, however many rows share a key.

    Args:
        keys: (BANDS, N) uint64, N < 2 ** 32, what `band_keys` gave, turned; may be a memory map.
        text_of: a row's text. Asked only for rows that may be near another.
        without: the same as for `band_keys`.
        same: (N,) int64, the first row of equal content, or the row itself. Joined unseen; only first ones are compared.
        on_progress: called with the part done, 0 to 1.
    """
    parent = np.arange(keys.shape[1]) if same is None else np.array(same, np.int64)
    _flatten(parent)
    rows = np.flatnonzero(parent == np.arange(len(parent)))
    sets = Sets(text_of, without)
    told = lambda part, done=0: on_progress and on_progress((done + part) / (BANDS + 1))  # noqa: E731

    whole = np.zeros(len(rows), np.uint64)  # of all bands: equal texts are neighbours here, whoever shares a band with them
    for band in keys:
        whole = _fold(whole, np.asarray(band)[rows])
    tested = np.sort(np.array(_join(_pairs(whole, rows), parent, sets, told)[:MAX_TESTED], np.uint64))
    _flatten(parent)
    rows = rows[parent[rows] == rows]  # who was joined for equal keys in all bands would only meet the same rows again
    del whole

    for band in range(BANDS):
        pairs = _pairs(np.asarray(keys[band])[rows], rows)
        pairs = pairs[parent[(pairs >> _HALF).astype(np.int64)] != parent[(pairs & np.uint64(0xFFFFFFFF)).astype(np.int64)]]
        if len(tested):
            pairs = pairs[tested[np.minimum(np.searchsorted(tested, pairs), len(tested) - 1)] != pairs]
        failed = _join(pairs, parent, sets, lambda part, done=band + 1: told(part, done))
        tested = np.unique(np.concatenate([tested, np.array(failed[: MAX_TESTED - len(tested)], np.uint64)]))
        _flatten(parent)
    return parent
