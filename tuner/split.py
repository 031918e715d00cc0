"""Which rows are held out: the dataset's own split, else a seeded hash that keeps together what belongs together."""

import numpy as np

from tuner.errors import UserError

TRAIN, TEST = 1, 2


def joined(*labels: np.ndarray) -> np.ndarray:
    """(N,) one label a row such that rows with an equal label in any of the given arrays share it; 0 there means none.

    Each round hands the smallest label of a group to all of its rows; chains of groups take a few rounds.
    """
    count = len(labels[0])
    found = np.arange(count)
    groups = []
    for its in labels:
        rows = np.flatnonzero(its != 0)
        if len(rows) == 0:
            continue
        order = rows[np.argsort(its[rows], kind="stable")]
        starts = np.flatnonzero(np.concatenate(([True], its[order][1:] != its[order][:-1])))
        if len(starts) < len(order):
            groups.append((order, starts, np.diff(np.append(starts, len(order)))))
    while True:
        before = found
        for order, starts, sizes in groups:
            found = found.copy()
            found[order] = np.repeat(np.minimum.reduceat(found[order], starts), sizes)
        found = found[found]  # a label's own label: chains halve each round
        if np.array_equal(before, found):
            return found


def hold_out(own: np.ndarray, together: np.ndarray, same: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, str]:
    """Which rows are held out, and in words how that came about.

    Args:
        own: (N,) the dataset's own split: 0 none, TRAIN or TEST.
        together: (N,) label of the rows that must stand on one side: duplicates, near ones, one conversation.
        same: (N, 2) hash of what each row says, so that the choice does not depend on the rows' order.

    Raises:
        UserError: fewer than two different rows.
    """
    count = len(own)
    if 0 < np.count_nonzero(own == TEST) < count:
        return own == TEST, "the dataset's own split"
    labels, first, which, sizes = np.unique(together, return_index=True, return_inverse=True, return_counts=True)
    if len(labels) < 2:
        # All rows are nearly alike. Measured on their like they are measured too well, and that is told as a finding.
        _, first, which, sizes = np.unique(same, axis=0, return_index=True, return_inverse=True, return_counts=True)
        which = which.reshape(-1)
    if len(first) < 2:
        raise UserError(
            f"The dataset has {count:,} rows and {len(first)} different one. At least two different rows are needed: one to "
            "learn from, one to measure on."
        )
    # The smallest hash within a group stands for it, whichever of its rows comes first.
    mixed = _mix(same[:, 0] ^ _mix(np.uint64(seed % 2**64) + np.uint64(1)))
    key = np.full(len(first), np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(key, which, mixed)
    wanted = max(1, round(share * count))
    chosen = np.zeros(len(first), bool)
    taken, groups_left = 0, len(first)
    for group in np.argsort(key, kind="stable"):
        if sizes[group] <= wanted - taken and groups_left > 1:
            chosen[group] = True
            taken += sizes[group]
            groups_left -= 1
            if taken == wanted:
                break
    if not taken:  # every group is larger than the share: the smallest one, so that some rows are always held out
        chosen[np.lexsort((key, sizes))[0]] = True
    held = chosen[which]
    return held, f"{np.count_nonzero(held):,} of {count:,} rows chosen by a seeded hash; like rows and one conversation stay together"


def _mix(value):
    """splitmix64's finaliser (Steele, Lea, Flood 2014): every bit of the input moves every bit of the output."""
    with np.errstate(over="ignore"):
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
