"""Pictures that are nearly the same: perceptual hashes say which may be, small grey copies of both say which are.

It has the functions of `near`, which does the same for texts, so that a check asks either in one way.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image

# Arrays of keys that `band_keys` gives for each picture: its two hashes of 64 bits.
BANDS = 2
# Near pictures differ in at most so many of the 128 bits, and in at most so many of either hash (a fifth brighter: 6 and 11).
MOST_BITS, MOST_BITS_OF_ONE = 20, 12
# And their small grey copies have at least this correlation: 2 % cut off at each side 0.984, other parts of one scene 0.96,
# a tenth of the pairs of handwritten digits of one class 0.9.
LEAST_ALIKE = 0.98
# And their mean colours (red and blue, each less green) lie no further apart: the same thing in red and in blue is two.
MOST_COLOUR = 16
# Pictures that are compared at once with all others.
_BLOCK = 256
# Where a picture has no more than this between light and dark, there is nothing to compare: only an equal one is near.
_FLAT = 8
_SMALL = 16  # a side of the small copy


def of(picture: Image.Image) -> str:
    """A picture's look in hexadecimal, the same for a smaller, brighter or more compressed copy, or nearly; "" for one of one shade.

    16 digits are the signs of the lowest 8 x 8 frequencies around their median (pHash: Zauner 2010), 16 whether brightness
    rises from left to right (dHash: Krawetz 2013), 512 a grey copy of 16 x 16, 4 the mean colour.
    """
    grey = picture.convert("L")
    values = _resized(grey, 32, 32)
    if np.ptp(values) < _FLAT:
        return ""
    low = (_COSINES @ values @ _COSINES.T).ravel()
    tall = _resized(grey, 9, 8)
    red, green, blue = np.asarray(picture.convert("RGB"), np.float64).reshape(-1, 3).mean(0)
    colour = bytes(int(np.clip(round(128 + (its - green) / 2), 0, 255)) for its in (red, blue))
    return _bits(low > np.median(low[1:])) + _bits((tall[:, 1:] > tall[:, :-1]).ravel()) + _resized(grey, _SMALL, _SMALL).astype(np.uint8).tobytes().hex() + colour.hex()


# The first eight rows of the discrete cosine transform of 32 values.
_COSINES = np.cos(np.pi / 32 * (np.arange(32) + 0.5) * np.arange(8)[:, None])


def _resized(grey: Image.Image, width: int, height: int) -> np.ndarray:
    how = Image.Resampling.BOX if min(grey.size) >= width else Image.Resampling.BILINEAR
    return np.asarray(grey.resize((width, height), how), np.float64)


def _bits(signs: np.ndarray) -> str:
    return np.packbits(signs).tobytes().hex()


def alike(one: str, other: str) -> bool:
    """Whether two looks are of nearly the same picture, whatever their hashes say."""
    a, b = (np.frombuffer(bytes.fromhex(look[32:]), np.uint8).astype(np.float64) for look in (one, other))
    if np.abs(a[-2:] - b[-2:]).max() > MOST_COLOUR / 2:  # half of the difference is kept
        return False
    a, b = a[:-2] - a[:-2].mean(), b[:-2] - b[:-2].mean()
    size = np.linalg.norm(a) * np.linalg.norm(b)
    return bool(size and a @ b / size >= LEAST_ALIKE)


def common(samples: list[str]) -> np.ndarray:
    """Pictures have no boilerplate."""
    return np.empty(0, np.uint32)


def band_keys(said: list[str], without: np.ndarray) -> np.ndarray:
    """(len(said), BANDS) uint64 of looks as `of` gives them; 0 in both where there is none."""
    found = np.zeros((len(said), BANDS), np.uint64)
    for index, look in enumerate(said):
        if look:
            found[index] = int(look[:16], 16), int(look[16:32], 16)
    return found


def groups(
    keys: np.ndarray, text_of: Callable[[int], str], without: np.ndarray, same: np.ndarray | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> np.ndarray:
    """(N,) int64: the smallest row number of each row's group of near pictures, its own where it is alone.

    A picture joins the first group whose first picture is nearly the same, so no chain of small changes joins unlike ones.
    Each is compared with the first of every group: 20,000 take a few seconds.

    Args:
        keys: (BANDS, N) uint64, what `band_keys` gave, turned; may be a memory map.
        text_of: a row's look. Asked only for rows that may be near another.
        same: (N,) int64, the first row of equal content, or the row itself.
    """
    first, second = (np.ascontiguousarray(keys[band]) for band in range(BANDS))
    count = len(first)
    parent = np.arange(count) if same is None else np.array(same, np.int64)
    live = np.flatnonzero((parent == np.arange(count)) & ((first != 0) | (second != 0)))
    leads = np.zeros(0, np.int64)  # the first of each group so far
    for start in range(0, len(live), _BLOCK):
        if on_progress:
            on_progress(start / len(live))
        block = live[start : start + _BLOCK]
        among = np.concatenate([leads, block])
        one = np.bitwise_count(first[block][:, None] ^ first[among])
        other = np.bitwise_count(second[block][:, None] ^ second[among])
        close = (one <= MOST_BITS_OF_ONE) & (other <= MOST_BITS_OF_ONE) & (one + other <= MOST_BITS)
        close[:, len(leads) :] &= np.tri(len(block), k=-1, dtype=bool)  # of its own block those before it
        for row, its in zip(block, close):
            for lead in among[its]:
                if parent[lead] == lead and alike(text_of(int(row)), text_of(int(lead))):
                    parent[row] = lead
                    break
        leads = np.concatenate([leads, block[parent[block] == block]])
    return parent[parent]
