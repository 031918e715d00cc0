"""Tests of near duplicates: against every pair's exact similarity, against datasketch, and of the bounds on work."""

import hashlib
import random
import string
import tracemalloc
from itertools import combinations

import numpy as np
import pytest
from datasketch import MinHash, MinHashLSH
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tuner import near

NOTHING = np.empty(0, np.uint32)
PERMUTATIONS = near.BANDS * near.ROWS
FEW = settings(
    max_examples=60, derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow],
)
PUNCTUATION = set(string.punctuation) - set("$+<=>^`|~")
chance = random.Random(7)
WORDS = ["".join(chance.choices(string.ascii_lowercase, k=chance.randint(2, 9))) for _ in range(2000)]


def words(count: int, chance: random.Random) -> list[str]:
    return chance.choices(WORDS, k=count)


def changed(text: str, times: int, chance: random.Random) -> str:
    """The text with some words replaced."""
    parts = text.split()
    for place in chance.sample(range(len(parts)), times):
        parts[place] = chance.choice(WORDS)
    return " ".join(parts)


def shuffled(text: str, chance: random.Random) -> str:
    parts = text.split()
    return " ".join(chance.sample(parts, len(parts)))


EDITS = [
    lambda text, chance: text.upper(),
    lambda text, chance: text.replace(" ", chance.choice([" - ", ",\n", "...  "])) + "!",
    lambda text, chance: changed(text, 1, chance),
    lambda text, chance: changed(text, 3, chance),
    lambda text, chance: changed(text, 6, chance),
    lambda text, chance: changed(text, 15, chance),
    lambda text, chance: text + ". " + " ".join(words(9, chance)) + ".",
    shuffled,
]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """400 texts: 100 of 30 to 120 words, and each three times with edits that go on from one another."""
    chance, rows = random.Random(1), []
    for _ in range(100):
        rows.append(" ".join(words(chance.randint(30, 120), chance)))
        for _ in range(3):
            rows.append(chance.choice(EDITS)(rows[-1], chance))
    return chance.sample(rows, len(rows))


def shingles_of(text: str) -> set[str]:
    """The shingles themselves, found without the code under test; for ASCII."""
    plain = "".join(" " if c in PUNCTUATION else c for c in text.lower())
    plain = " ".join(plain.split())
    return {plain[start : start + 5] for start in range(len(plain) - 4)}


def jaccard(one: set, other: set) -> float:
    return len(one & other) / len(one | other)


def near_pairs(texts: list[str]) -> set[tuple[int, int]]:
    """All pairs at the threshold or above it, by looking at every one."""
    sets = list(map(shingles_of, texts))
    return {(a, b) for a, b in combinations(range(len(sets)), 2) if jaccard(sets[a], sets[b]) >= near.THRESHOLD}


def joined(count: int, pairs) -> list[int]:
    """The smallest member of each row's group where these pairs hang together."""
    label = list(range(count))
    for _ in range(count):
        before = list(label)
        for a, b in pairs:
            label[a] = label[b] = min(label[a], label[b])
        if before == label:
            break
    return label


def found(texts: list[str], without=NOTHING, **more) -> list[int]:
    return near.groups(near.band_keys(texts, without).T, texts.__getitem__, without, **more).tolist()


def minima(texts: list[str]) -> np.ndarray:
    """(texts, permutations), each text by itself."""
    columns = [near.shingles(text) for text in texts]
    return near.signatures(np.concatenate(columns), np.array([len(column) for column in columns])).T


def sketch(text: str) -> MinHash:
    made = MinHash(num_perm=PERMUTATIONS, hashfunc=int)
    made.update_batch(near.shingles(text).tolist())
    return made


def pairs_at(low: float, high: float, changes: tuple[int, int], count: int) -> list[tuple[str, str, float]]:
    """Pairs of texts with their exact similarity, which is in that range; `changes` in 60 words mostly lead there."""
    chance, kept = random.Random(2), []
    while len(kept) < count:
        one = " ".join(words(60, chance))
        other = changed(one, chance.randint(*changes), chance)
        exact = jaccard(shingles_of(one), shingles_of(other))
        if low <= exact < high:
            kept.append((one, other, exact))
    return kept


# Text to shingles -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text, plain", [
    ("", ""), (" .,\n", ""), ("  Hello,\tWorld!! ", "hello world"), ("a_b-c", "a b c"), ("1 < 2", "1 < 2"), ("ÀÉ «oui»…", "àé oui"),
    ("ﬁne ＡＢＣ１", "fine abc1"), ("क्या है?", "क्या है"), ("漢字。仮名", "漢字 仮名"), ("so 😀!", "so 😀"), ("x\u3000\u00a0y", "x y"),
])
def test_normal_text(text, plain):
    assert near.normal(text) == plain


def test_ascii_takes_no_other_way_than_the_rest():
    """Two ways for speed, one result."""
    every = "".join(f"x{chr(code)}Y" for code in range(128))
    assert near.normal(every + "é") == near.normal(every) + "é"


@pytest.mark.parametrize("text", ["abcdefghij", "Hello, World! hello world", "x" * 50, "漢字かな交じり文です", "\ud800 lone half"])
def test_one_shingle_for_each_five_characters(text):
    plain = near.normal(text)
    hashes = near.shingles(text)
    assert hashes.dtype == np.uint32 and (np.diff(hashes.astype(np.int64)) > 0).all()
    assert len(hashes) == len({plain[start : start + 5] for start in range(len(plain) - 4)})
    alone = np.concatenate([near.shingles(f"<{plain[start + 1 : start + 4]}>") for start in range(3)])  # others of 5
    assert not set(alone.tolist()) & set(hashes.tolist())


def test_short_and_long_texts():
    assert [len(near.shingles(text)) for text in ("", "...", "a", "abcd", "abcde", "abcdef")] == [0, 0, 1, 1, 1, 2]
    assert near.shingles("abcd") != near.shingles("abc")
    text = "".join(random.Random(3).choices(string.ascii_lowercase, k=30_000))
    assert np.array_equal(near.shingles(text), near.shingles(text[:20_000]))
    assert len(near.shingles(text[:20_000])) > len(near.shingles(text[:19_900]))


def test_hashes_do_not_collide():
    """A weak hash would make texts of one alphabet alike: 26 ** 4 shingles of 4 letters, 53 pairs of equal hashes expected at 32 bits of luck."""
    forms = [a + b + c + d + "x" for a, b, c, d in np.array(np.meshgrid(*[list(string.ascii_lowercase)] * 4)).reshape(4, -1).T.tolist()]
    hashes, counts = near._windows(forms)
    assert counts.tolist() == [1] * 26**4
    assert len(forms) - len(np.unique(hashes)) < 53


def test_a_batch_is_its_texts():
    """What stands beside a text, and where a batch ends, changes nothing."""
    chance = random.Random(4)
    mixed = ["", "a", "abcd", "!", *(" ".join(words(chance.randint(1, 900), chance)) for _ in range(60)), "é" * 30_000, ""]
    without = near.shingles(" ".join(WORDS[:50]))
    together = near.band_keys(mixed, without)
    assert together.shape == (len(mixed), near.BANDS) and together.dtype == np.uint64
    assert np.array_equal(together, np.concatenate([near.band_keys([text], without) for text in mixed]))
    assert near.band_keys([], NOTHING).shape == (0, near.BANDS)


def test_the_same_on_every_machine():
    """Keys that change would make a stored file of them worthless; pinned on x86-64, numpy 2.4."""
    fixed = ["", "yes", "The quick brown fox jumps over the lazy dog. " * 3, "漢字かな交じり文" * 9, "".join(WORDS[:300])]
    keys = near.band_keys(fixed, near.shingles("lazy dog"))
    assert hashlib.sha256(keys.astype("<u8").tobytes()).hexdigest() == "cb44298a75f8d3b2ffe72f1bbae6c89d41fcfc00719d88092e3d16ba1bea4772"


# Signatures against the exact similarity and datasketch -----------------------------------------------------------------


def test_estimates_are_as_good_as_datasketch():
    """Both err by sqrt(J (1 - J) / permutations); with 600 pairs that is known to 3 percent."""
    pairs = pairs_at(0.05, 0.99, (1, 50), 600)
    ones, others, exact = [pair[0] for pair in pairs], [pair[1] for pair in pairs], np.array([pair[2] for pair in pairs])
    ours = (minima(ones) == minima(others)).mean(1) - exact
    theirs = np.array([sketch(one).jaccard(sketch(other)) for one, other in zip(ones, others)]) - exact
    expected = np.sqrt((exact * (1 - exact)).mean() / PERMUTATIONS)
    error, reference = np.sqrt((ours**2).mean()), np.sqrt((theirs**2).mean())
    assert error < 1.12 * expected and error < 1.12 * reference
    assert abs(ours.mean()) < 4 * expected / np.sqrt(len(pairs))


@pytest.mark.parametrize("low, high, changes, least, most", [
    (0.8, 0.83, (4, 5), 0.99, 1.0), (0.45, 0.55, (12, 17), 0.2, 0.4), (0.0, 0.2, (40, 55), 0.0, 0.01),
])
def test_how_many_pairs_meet(low, high, changes, least, most):
    """1 - (1 - J ** ROWS) ** BANDS of them."""
    pairs = pairs_at(low, high, changes, 400)
    keys = [near.band_keys([pair[side] for pair in pairs], NOTHING) for side in (0, 1)]
    assert least <= (keys[0] == keys[1]).any(1).mean() <= most


def test_groups_are_those_of_exact_similarity(texts):
    """No group that exact pairs do not hold together; at least 95 percent of the pairs, and no fewer than datasketch finds."""
    pairs = near_pairs(texts)
    exact = joined(len(texts), pairs)
    ours = found(texts)
    inside = [(a, b) for a, b in pairs if ours[a] == ours[b]]
    assert 100 < len(pairs) < 400
    assert joined(len(texts), inside) == ours  # each group is connected by exact pairs alone
    assert len(inside) >= 0.95 * len(pairs)

    index = MinHashLSH(num_perm=PERMUTATIONS, params=(near.BANDS, near.ROWS))
    sketches = list(map(sketch, texts))
    for number, one in enumerate(sketches):
        index.insert(number, one)
    met = {(min(a, b), max(a, b)) for a, one in enumerate(sketches) for b in index.query(one) if a != b}
    theirs = joined(len(texts), met & pairs)
    assert sum(a != b for a, b in zip(ours, exact)) <= sum(a != b for a, b in zip(theirs, exact)) + 2


def test_a_near_pair_need_not_be_first_in_its_bucket():
    """b and c are near, and a, which shares keys with both, is near neither."""
    chance = random.Random(5)
    b = " ".join(words(100, chance))
    c = changed(b, 2, chance)
    a = changed(b, 10, chance)
    assert jaccard(shingles_of(a), shingles_of(b)) < 0.8 > jaccard(shingles_of(a), shingles_of(c))
    keys = near.band_keys([a, b, c], NOTHING).T
    keys[:] = keys[:, :1]  # one bucket in every band
    assert near.groups(keys, [a, b, c].__getitem__, NOTHING).tolist() == [0, 1, 1]


# Short texts and boilerplate --------------------------------------------------------------------------------------------


def test_short_texts_are_near_only_when_equal():
    rows = ["Yes", "yes.", "yes!!", "no", "Thank you", "thank you!", "thank yous", "order number 41", "order number 42",
            "internationalization", "internationalizations", "", "", "?!", "an", "a n"]
    assert found(rows) == [0, 0, 0, 3, 4, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]


def test_one_bucket_does_not_make_short_texts_near():
    """Whatever the keys say, the comparison knows short texts and repetitive ones."""
    rows = ["internationalization", "internationalizations", "ha " * 40, "ha " * 41, "ho " * 40, "Internationalization?", "na na na na", "na na na na na"]
    keys = np.ones((near.BANDS, len(rows)), np.uint64)
    assert near.groups(keys, rows.__getitem__, NOTHING).tolist() == [0, 1, 2, 2, 4, 0, 6, 7]


def test_an_instruction_that_all_share_makes_nobody_near():
    chance = random.Random(6)
    instruction = " ".join(words(300, chance))[:1500]
    contents = [" ".join(words(30, chance))[:80] for _ in range(200)]
    contents[50], contents[120], contents[199] = contents[3].upper(), contents[3] + "!", contents[70].replace(" ", ", ")
    rows = [f"{instruction}\n\n{content}" for content in contents]
    alone = list(range(200))
    alone[50] = alone[120] = 3
    alone[199] = 70
    assert set(found(rows)) == {0}  # what would be said without looking for boilerplate
    assert found(rows, near.common(rows[:60])) == alone
    rows[9] = rows[10] = instruction  # nothing of their own
    keys = near.band_keys(rows, near.common(rows))
    assert not keys[[9, 10]].any() and (np.delete(keys, [9, 10], 0) > 0).all()
    assert found(rows, near.common(rows)) == alone


def test_common_shingles():
    chance = random.Random(8)
    own = [" ".join(words(40, chance)) for _ in range(40)]
    half = [("A fixed beginning. " if index < 20 else "") + text for index, text in enumerate(own)]
    more = [("A fixed beginning. " if index < 21 else "") + text for index, text in enumerate(own)]
    fixed = set(near.shingles("A fixed beginning").tolist())
    assert len(near.common(half)) == 0
    assert fixed <= set(near.common(more).tolist()) and len(near.common(more)) < len(fixed) + 5
    assert near.common(more).dtype == np.uint32 and (np.diff(near.common(more).astype(np.int64)) > 0).all()
    assert len(near.common(["A fixed beginning. " + text for text in own[:19]])) == 0
    assert len(near.common(["A fixed beginning. " + text for text in own[:20]])) > 0
    assert len(near.common([])) == 0


def test_copies_are_no_boilerplate():
    """A row that stands there a hundred times is a duplicate; its near duplicates are still found."""
    chance = random.Random(9)
    own = [" ".join(words(60, chance)) for _ in range(40)]
    rows = own + [own[0]] * 100 + [own[0].upper()]
    assert len(near.common(rows)) == 0


# Groups -----------------------------------------------------------------------------------------------------------------


def test_equal_rows_are_joined_unseen():
    """Also those without a shingle; nothing but first ones is asked for, and what is near a copy's first is in its group."""
    chance = random.Random(10)
    one = " ".join(words(80, chance))
    rows = ["?", one, "other words entirely, and none of them twice", one, "?", changed(one, 1, chance), one]
    asked = []
    same = np.array([0, 1, 2, 1, 0, 5, 1])
    keys = near.band_keys(rows, NOTHING).T
    labels = near.groups(keys, lambda row: asked.append(row) or rows[row], NOTHING, same=same)
    assert labels.dtype == np.int64 and labels.tolist() == [0, 1, 2, 1, 0, 1, 1]
    assert sorted(asked) == [1, 5]
    assert same.tolist() == [0, 1, 2, 1, 0, 5, 1]
    asked.clear()
    near.groups(np.ones_like(keys), lambda row: asked.append(row) or rows[row], NOTHING, same=same)
    assert sorted(asked) == [0, 1, 2, 5]


def test_nothing_and_zeros():
    assert near.groups(np.empty((near.BANDS, 0), np.uint64), None, NOTHING).tolist() == []
    assert near.groups(np.zeros((near.BANDS, 9), np.uint64), None, NOTHING).tolist() == list(range(9))  # nobody is asked
    assert found(["", " ", "\n", "..."]) == [0, 1, 2, 3]
    keys = np.zeros((near.BANDS, 2), np.uint64)
    keys[4] = 8
    text = " ".join(WORDS[:50])
    assert near.groups(keys, lambda row: text, NOTHING).tolist() == [0, 0]  # one band is enough


def test_a_memory_map(texts, tmp_path):
    keys = np.memmap(tmp_path / "keys", np.uint64, "w+", shape=(near.BANDS, len(texts)))
    keys[:] = near.band_keys(texts, NOTHING).T
    keys.flush()
    keys = np.memmap(tmp_path / "keys", np.uint64, "r", shape=(near.BANDS, len(texts)))
    labels = near.groups(keys, texts.__getitem__, NOTHING)
    assert labels.tolist() == found(texts) and not isinstance(labels, np.memmap)


def test_progress_goes_from_none_to_all(texts):
    seen = []
    found(texts, on_progress=seen.append)
    assert seen == sorted(seen) and seen[0] < 0.1 and seen[-1] == pytest.approx(1)


def test_a_huge_bucket_costs_two_looks_a_row(monkeypatch):
    """Rows that share every key and are all different: each text is asked for once, each pair looked at once."""
    chance = random.Random(11)
    rows = [" ".join(words(12, chance)) for _ in range(3000)]
    looks, asked = [], []
    alike = near.Sets.near
    monkeypatch.setattr(near.Sets, "near", lambda self, one, other: looks.append((one, other)) or alike(self, one, other))
    keys = np.ones((near.BANDS, len(rows)), np.uint64)
    assert near.groups(keys, lambda row: asked.append(row) or rows[row], NOTHING).tolist() == list(range(len(rows)))
    assert len(asked) == len(rows)
    assert len(looks) == len(set(looks)) == 2 * len(rows) - 3


def test_a_huge_bucket_of_one_group_costs_one_look_a_row(monkeypatch):
    looks = []
    alike = near.Sets.near
    monkeypatch.setattr(near.Sets, "near", lambda self, one, other: looks.append(one) or alike(self, one, other))
    text = " ".join(WORDS[:40])
    assert found([text + "!" * (row % 7) for row in range(1000)]) == [0] * 1000
    assert len(looks) == 999


def test_equal_texts_are_joined_though_others_stand_between_in_every_band():
    chance = random.Random(13)
    text = " ".join(WORDS[:40])
    rows = [text if row % 3 == 2 else " ".join(words(40, chance)) for row in range(99)]
    keys = np.ones((near.BANDS, len(rows)), np.uint64)
    for row in range(99):
        if row % 3 < 2:  # two between any two texts, each away in one band, and never both
            keys[row % near.BANDS, row] = 100 + row
    labels = near.groups(keys, rows.__getitem__, NOTHING)
    assert labels.tolist() == [2 if row % 3 == 2 else row for row in range(99)]


def test_one_stands_for_all_who_share_every_key(monkeypatch):
    """A stranger in their buckets is compared with one of them, not with a hundred."""
    looks = []
    alike = near.Sets.near
    monkeypatch.setattr(near.Sets, "near", lambda self, one, other: looks.append(one) or alike(self, one, other))
    rows = [" ".join(WORDS[40:80]), *[" ".join(WORDS[:40])] * 100]
    keys = np.ones((near.BANDS, len(rows)), np.uint64)
    keys[-1, 0] = 2
    assert near.groups(keys, rows.__getitem__, NOTHING).tolist() == [0, *[1] * 100]
    assert len(looks) == 99 + 1


def test_kept_shingles_are_bounded(monkeypatch):
    """Texts are asked for again rather than all kept; the groups stay."""
    chance = random.Random(12)
    rows = [" ".join(words(150, chance)) for _ in range(300)]
    rows += [changed(text, 2, chance) for text in rows]
    expected = found(rows)
    assert sum(label != row for row, label in enumerate(expected)) == 300
    monkeypatch.setattr(near, "CACHE_BYTES", 40_000)
    sizes = []
    of = near.Sets.of
    monkeypatch.setattr(near.Sets, "of", lambda self, row: (of(self, row), sizes.append(sum(a.nbytes for a, _ in self.kept.values())))[0])
    assert found(rows) == expected
    assert max(sizes) < 40_000
    monkeypatch.setattr(near, "MAX_TESTED", 10)
    assert found(rows) == expected


def test_memory_grows_with_the_rows_alone(monkeypatch):
    """At worst, every row in one bucket and no two near, by 180 bytes a row: 180 MB for a million, and the kept shingles."""
    count = 100_000
    monkeypatch.setattr(near.Sets, "near", lambda self, one, other: False)
    keys = np.ones((near.BANDS, count), np.uint64)
    tracemalloc.start()
    try:
        near.groups(keys, None, NOTHING)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 180 * count


SOME = st.lists(
    st.one_of(
        st.text("ab .", max_size=12),
        st.text(max_size=40),
        st.builds(lambda seed, times: changed(" ".join(words(40, random.Random(seed))), times, random.Random(times)),
                  st.integers(0, 3), st.integers(0, 4)),
        st.builds(lambda part, times: part * times, st.sampled_from(["ha ", "abc", "0"]), st.integers(0, 40)),
    ),
    max_size=14,
)


@FEW
@given(SOME)
def test_labels_are_the_first_of_each_group(rows):
    labels = found(rows)
    assert all(label <= row for row, label in enumerate(labels))
    assert all(labels[label] == label for label in labels)


@FEW
@given(SOME, st.text("ab .,", max_size=60) | st.sampled_from([" ".join(WORDS[:20]), "ha " * 20]), st.randoms(use_true_random=False))
def test_a_text_is_in_its_copys_group(rows, text, chance):
    """Whatever else there is, in whatever order."""
    order = [*rows, text, text]
    chance.shuffle(order)
    labels = found(order)
    copies = {labels[row] for row, one in enumerate(order) if one == text}
    assert len(copies) == 1 or not len(near.shingles(text))
