"""Tests of the split: what is held out, that it depends on nothing but the rows and the seed, and what stays together."""

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests import faulty
from tuner import check, data, split
from tuner.errors import UserError

FEW = settings(
    max_examples=150, derandomize=True, deadline=None, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def hashes(numbers) -> np.ndarray:
    """(N, 2) what stands for the rows' contents."""
    return np.stack([np.array(numbers, np.uint64) * np.uint64(0x9E3779B97F4A7C15), np.array(numbers, np.uint64)], 1)


def hold(count: int, share: float = 0.1, seed: int = 0, together=None, own=None, same=None):
    together = np.arange(count) if together is None else np.asarray(together)
    own = np.zeros(count, np.uint8) if own is None else np.asarray(own, np.uint8)
    return split.hold_out(own, together, hashes(range(count)) if same is None else same, share, seed)


def by_union_find(*labels) -> list[int]:
    """The plain way: the smallest row that each row is joined with."""
    parent = list(range(len(labels[0])))

    def root(row: int) -> int:
        while parent[row] != row:
            row = parent[row]
        return row

    for its in labels:
        first = {}
        for row, label in enumerate(its):
            if label:
                a, b = root(first.setdefault(label, row)), root(row)
                parent[max(a, b)] = min(a, b)
    return [root(row) for row in range(len(parent))]


@FEW
@given(st.integers(0, 30).flatmap(lambda n: st.lists(st.lists(st.integers(0, 12), min_size=n, max_size=n), min_size=1, max_size=4)))
@example([[1, 1, 0, 0, 0], [0, 2, 2, 0, 0], [0, 0, 3, 3, 0], [0, 0, 0, 4, 4]])
@example([[0, 0, 1, 1, 2, 2], [3, 1, 1, 2, 2, 3]])
def test_joined_labels_are_those_of_union_and_find(labels):
    """Chains over several arrays end in one label, the smallest row's; 0 joins nobody."""
    found = split.joined(*(np.array(its, np.uint64) for its in labels))
    assert found.tolist() == by_union_find(*labels)


def test_a_long_chain_is_joined_in_few_rounds():
    """A hundred thousand rows, each joined with the next one only: row by row it would take minutes."""
    count = 100_000
    odd, even = (np.arange(count) + 1) // 2 + 1, np.arange(count) // 2 + 1
    assert not split.joined(odd, even).any()


@FEW
@given(labels=st.lists(st.integers(0, 9), min_size=2, max_size=60), share=st.floats(0.01, 0.5), seed=st.integers(0, 2**31 - 1))
def test_what_belongs_together_is_never_parted(labels, share, seed):
    """Whatever the groups: none straddles, neither side is empty, and no more than the share but where a group is larger."""
    labels = np.array(labels)
    if len(set(labels.tolist())) < 2:
        return
    held, words = hold(len(labels), share, seed, labels)
    assert 0 < held.sum() < len(labels)
    assert not set(labels[held]) & set(labels[~held])
    wanted = max(1, round(share * len(labels)))
    sizes = np.bincount(labels)
    assert held.sum() <= wanted or held.sum() == sizes[sizes > 0].min()
    assert words.startswith(f"{held.sum()} of {len(labels)} rows chosen by a seeded hash")


@pytest.mark.parametrize("share", [0.01, 0.1, 0.25, 0.5])
def test_the_share_is_kept(share):
    """To the row where rows stand alone; to within one group where they do not."""
    assert hold(1000, share)[0].sum() == round(1000 * share)
    groups = np.random.default_rng(0).integers(0, 200, 1000)
    assert abs(hold(1000, share, together=groups)[0].sum() - 1000 * share) <= np.bincount(groups).max()


def test_the_seed_decides():
    """The same gives the same; another seed, even the next one, gives about as many rows in common as chance."""
    held = hold(2000, 0.5, 3)[0]
    assert np.array_equal(held, hold(2000, 0.5, 3)[0])
    for seed in (0, 4, 2**31 - 1):
        assert 0.45 < np.mean(held == hold(2000, 0.5, seed)[0]) < 0.55


def test_the_order_of_the_rows_is_nothing():
    """Shuffled, in other groups' numbers, the same contents are held out."""
    order = np.random.default_rng(0).permutation(300)
    groups = np.arange(300) // 3
    held = hold(300, 0.2, 1, groups)[0]
    moved = hold(300, 0.2, 1, 99 - groups[order], same=hashes(order))[0]
    assert np.array_equal(moved, held[order])


def test_the_own_split_is_used():
    """Where some rows are marked; where all are, or none, there is nothing to go by."""
    own = np.array([2, 0, 1, 2, 0, 0, 0, 0, 0, 0])
    held, words = hold(10, own=own)
    assert held.tolist() == (own == 2).tolist() and words == "the dataset's own split"
    for mark in (0, 1, 2):
        held, words = hold(10, own=np.full(10, mark))
        assert held.sum() == 1 and "seeded hash" in words


def test_a_giant_group_is_trained_on():
    """One conversation of 990 rows: a small one is held out. Where every group is larger than the share, the smallest."""
    assert hold(1000, 0.1, together=np.r_[np.zeros(990, int), 1:11])[0].sum() == 10
    assert np.flatnonzero(hold(100, 0.01, together=np.r_[np.zeros(60, int), np.ones(40, int)])[0]).tolist() == list(range(60, 100))


def test_two_rows_are_enough_and_one_is_not():
    """One to learn from, one to measure on."""
    assert hold(2, 0.5)[0].sum() == hold(2, 0.01)[0].sum() == 1
    with pytest.raises(UserError, match="The dataset has 1 rows and 1 different one. At least two different"):
        hold(1)
    with pytest.raises(UserError, match="has 4 rows and 1 different one"):
        hold(4, together=np.zeros(4), same=hashes([5] * 4))


def test_where_all_rows_are_nearly_alike_their_contents_part_them():
    """Measured too well, which is told as leakage, is better than not at all."""
    held, _ = hold(10, 0.2, together=np.zeros(10), same=hashes([0, 0, 1, 1, 2, 2, 3, 3, 4, 4]))
    assert held.sum() == 2 and held.reshape(5, 2).all(axis=1).sum() == 1


def test_rows_of_one_kind_stay_together(home):
    """Exact and near duplicates, rows with a conversation's name or opening, whatever the seed."""
    words = faulty.Words(2)
    say, kinds = words.text, []
    records = []
    for number in range(12):
        text, opening, name = say(40), (say(10), say(10)), f"conversation {number}"
        for copy in (text, text, text.upper()):
            records.append({"messages": faulty.chat(("user", copy), ("assistant", "ok " + copy))["messages"]})
        for _ in range(3):
            turns = (("user", opening[0]), ("assistant", opening[1]), ("user", say(9)), ("assistant", say(9)))
            records.append({"messages": faulty.chat(*turns)["messages"]})
        for _ in range(3):
            records.append({"messages": faulty.chat(("user", say(9)), ("assistant", say(9)))["messages"], "conversation_id": name})
        kinds += [3 * number] * 3 + [3 * number + 1] * 3 + [3 * number + 2] * 3
    rows = check.work(data.keep("ann", "x", records, {}), None)
    kinds = np.array(kinds)
    assert len(np.unique(rows.together)) == 36
    for seed in range(8):
        held, _ = rows.held_out(0.3, seed)
        assert not set(kinds[held]) & set(kinds[~held]) and 20 <= held.sum() <= 32
    order = np.random.default_rng(0).permutation(len(records))
    moved = check.work(data.keep("ann", "x", [records[place] for place in order], {}), None)
    assert np.array_equal(moved.held_out(0.3, 5)[0], rows.held_out(0.3, 5)[0][order])
