"""What is wrong with a dataset: each finding with its rows, why it matters and what can be done; worst first."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from tuner import personal, scan, split, tasks
from tuner.errors import UserError
from tuner.recipe import Recipe
from tuner.tasks import Fault

LEVELS = ("stop", "harm", "mind", "note")

# Up to this many rows a word is said about how little can be shown; above, intervals are narrow enough.
_FEW = 200
_RARE = 5
# Largest class to smallest, from where weighing all alike is offered; and the sets of labels that are counted.
_WORTH_WEIGHING, _MOST_KINDS = 3, 5_000
_BROKEN_TEXT = "The model would learn to write like that."
FAULTS = {
    "nothing_to_learn": Fault("Nothing to learn from", "A run would go through its steps and learn nothing.", "stop"),
    "unreadable": Fault("Lines that could not be read", "They are left out by themselves; every other row is kept.", "harm", left_out=True),
    "teaches_nothing": Fault(
        "Rows that teach nothing", "Their answer lies behind the cut, so every label is masked.", "harm", ("split", "drop"),
    ),
    "refused": Fault("Refused by the model's chat template", "They would be left out of the run.", "harm", ("join", "drop")),
    "leak": Fault(
        "Leakage: held out, and also trained on", "Measured on them, the model seems better than it is.", "harm", ("to_training",),
    ),
    "near_leak": Fault(
        "Leakage: held out, and nearly the same as a training row", "Measured on them, the model seems better than it is.", "harm", ("to_training",),
    ),
    "repeated_refusal": Fault(
        "One refusal, repeated word for word", "A model that sees it often learns to refuse.", "harm", ("drop",),
    ),
    "secret": Fault(
        "Keys and other secrets", "A tuned model can say what it has read, to anybody.", "harm", ("mask", "drop"),
    ),
    "personal": Fault(
        "Personal data", "A tuned model can say what it has read, to anybody.", "mind", ("mask", "drop"),
    ),
    "utf16": Fault("UTF-16 read as UTF-8", _BROKEN_TEXT, "harm", ("repair", "drop")),
    "mojibake": Fault("Letters broken by a wrong encoding", _BROKEN_TEXT, "harm", ("repair", "drop")),
    "replacement": Fault("Lost letters (U+FFFD)", _BROKEN_TEXT, "mind", ("repair", "drop")),
    "nul": Fault("NUL characters", _BROKEN_TEXT, "mind", ("repair", "drop")),
    "label_spelling": Fault(
        "Labels that differ by case or space", "The model would learn them as different answers.", "harm", ("merge",),
    ),
    "cut": Fault("Rows that are cut", "What stands behind the cut is never seen; an answer cut off teaches no end.", "mind", ("split", "drop")),
    "beyond_context": Fault(
        "Longer than the model's context", "No setting brings more of them in; only shorter rows do.", "mind", ("split", "drop"),
    ),
    "control_tokens": Fault(
        "Control tokens inside the text", "They are read as plain letters, which is safe, and rarely what was meant.", "mind", ("trim", "drop"),
    ),
    "duplicate": Fault("Exact duplicates", "What stands twice is learned twice as hard, and adds nothing.", "mind", ("deduplicate",)),
    "near_duplicate": Fault(
        "Near duplicates", "They add little, and are learned harder than the rest.", "note", ("deduplicate",),
    ),
    "few_rows": Fault("Few rows", "", "mind"),
    "rare_label": Fault("Classes with too few rows", f"With fewer than {_RARE} rows a class is neither learned nor measured.", "mind", ("drop",)),
    "unbalanced": Fault("Unbalanced classes", "A model that always says it looks good already.", "note"),
    "html": Fault("Left-over HTML", _BROKEN_TEXT, "note", ("repair", "drop")),
    "markdown": Fault("Left-over Markdown", _BROKEN_TEXT, "note", ("repair", "drop")),
    "unlike_length": Fault(
        "Very unlike lengths", "They are ten times longer or shorter than the middle one: long ones decide what a run costs, short ones are often mistakes.", "note", ("drop",),
    ),
}


def faults_of(task: str) -> dict[str, Fault]:
    """name -> every fault that rows of a task can have, in the words of that task."""
    module = tasks.get(task)
    return {**module.FAULTS, **FAULTS, **module.OTHERWISE}


@dataclass(frozen=True)
class Finding:
    """One thing found.

    Args:
        name: its key among the faults.
        rows: how many.
        title, why: in words.
        level: one of LEVELS.
        fixes: what can be done, by name.
        more: figures that only this finding has, in words; "" if there are none.
        left_out: these records give no row; they are left out by themselves.
    """

    name: str
    rows: int
    title: str
    why: str
    level: str
    fixes: tuple[str, ...]
    more: str = ""
    left_out: bool = False


@dataclass(frozen=True)
class Figures:
    """What a run would learn from.

    Args:
        split: in words how the held-out rows were chosen.
        lengths: (S,) tokens of each training sequence that teaches something, after the cut.
        learned: tokens with a loss among them.
        held_lengths: (H,) tokens of each held-out sequence that teaches something, after the cut.
        uncut: tokens of every sequence before any cut.
        classes: different labels; 0 where the task has none.
    """

    train_rows: int
    held_out_rows: int
    split: str
    lengths: np.ndarray
    learned: int
    held_lengths: np.ndarray
    uncut: np.ndarray
    classes: int = 0

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum())


@dataclass
class Rows:
    """The rows of a dataset as they stand after its fixes, and all that was seen of them.

    Args:
        parts: the files that hold them.
        places: (N,) uint64: the part's number << 40 | the row's place in it.
        seen: (N,) scan.ROW.
        own: (N,) the split that the source or a fix gave: 0 none, 1 train, 2 test.
        same: (N,) the first row that says exactly the same; near: (N,) the first of each group of nearly the same.
        tokens: as a base model's tokens; None where no tokenizer could be had.
        config: the base model's config.json.
        left_out: name of a fault -> places of the records that give no row because of it, in the first part.
        came_in: records that were read.
        steps: what the fixes did, for the receipt.
    """

    task: str
    parts: list[scan.Part]
    places: np.ndarray
    seen: np.ndarray
    own: np.ndarray
    same: np.ndarray
    near: np.ndarray
    tokens: scan.Tokens | None
    config: dict
    left_out: dict[str, np.ndarray]
    came_in: int
    steps: list[dict] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.places)

    def row(self, index: int) -> dict:
        """The row at an index of these rows."""
        place = int(self.places[index])
        row = self.parts[place >> 40].row(place & (1 << 40) - 1)
        return {**row, "split": {1: "train", 2: "test"}.get(int(self.own[index]), "")}

    def why_left_out(self, place: int) -> str:
        """Why a record of the first part gives no row; the words follow "Row N"."""
        try:
            self.parts[0].row(place)
        except tasks.NoRow as problem:
            return str(problem)
        return "gives a row"

    @cached_property
    def _bits(self) -> dict[str, int]:
        return scan.bits(self.task)

    def flagged(self, name: str) -> np.ndarray:
        """(N,) whether each row has that fault by itself."""
        return (self.seen["flags"] & np.uint64(self._bits[name])) != 0

    @cached_property
    def together(self) -> np.ndarray:
        """(N,) label of the rows that must stand on one side of the split: like ones, and one conversation."""
        labels = [self.near + 1, self.same + 1, self.seen["opening"], self.seen["group"]]
        if len(self.parts) > 1:  # a row that was split is still one conversation
            labels.append(self.origins + 1)
        return split.joined(*labels)

    @cached_property
    def origins(self) -> np.ndarray:
        """(N,) the number in the source that each row came from, counted from 0; parts of one row share it."""
        place = (self.places & np.uint64((1 << 40) - 1)).astype(np.int64)
        part = (self.places >> np.uint64(40)).astype(np.int64)
        found = place.copy()
        for number in range(1, len(self.parts)):
            rows = np.flatnonzero(part == number)
            if len(rows):
                found[rows] = scan.load(self.parts[number].path.with_suffix(".origins.npy"), None)[place[rows]]
        return found

    def held_out(self, share: float, seed: int) -> tuple[np.ndarray, str]:
        """(N,) which rows are held out, and how that came about; see `split.hold_out`."""
        return self.once(
            ("held out", share, seed), lambda: split.hold_out(self.own, self.together, self.seen["same"], share, seed)
        )

    @property
    def own_split(self) -> bool:
        """Whether the source, or a fix, says which rows are held out, so that no share chooses them."""
        return 0 < np.count_nonzero(self.own == split.TEST) < len(self)

    def once(self, key: tuple, make: Callable):
        """What `make` gives, made once for the last few keys: a page asks the same of a million rows at every click."""
        known = self.__dict__.setdefault("_made", {})
        if key not in known:
            while len(known) >= 16:
                known.pop(next(iter(known)))
            known[key] = make()
        return known[key]

    # Tokens ---------------------------------------------------------------------------------------------------

    def per_row(self, values: np.ndarray) -> np.ndarray:
        """(N,) the sum of a figure over each row's sequences."""
        return np.bincount(self.tokens.row, weights=values, minlength=len(self)).astype(np.int64)

    @cached_property
    def lengths(self) -> np.ndarray:
        """(N,) the longest sequence of each row, in tokens, before any cut; 0 where the template refuses it."""
        found = np.zeros(len(self), np.int64)
        np.maximum.at(found, self.tokens.row, self.tokens.length)
        return found

    def figures(self, recipe: Recipe) -> "Figures":
        """What a run under this recipe would learn from, as the trainer will encode it.

        A page asks at every change of a setting: what no setting changes is looked at once, and the rest are a few
        passes over arrays (1,000,000 rows: 20 ms where the split is known).

        Raises:
            UserError: fewer than two different rows.
        """
        held, words = self.held_out(recipe.held_out_share, recipe.seed)
        key = ("figures", recipe.held_out_share, recipe.seed, recipe.max_tokens)
        return self.once(key, lambda: self._figures_of(held, words, recipe.max_tokens))

    def _figures_of(self, held: np.ndarray, words: str, most: int) -> "Figures":
        teaches = self._first_learned < most
        is_held = held[self.tokens.row]
        lengths = np.minimum(self.tokens.length, most)
        learned = self.tokens.learned(most) if most < self._longest_learned else self._all_learned
        in_train = teaches & ~is_held
        return Figures(
            int(np.count_nonzero(~held)), int(np.count_nonzero(held)), words, lengths[in_train], int(learned[in_train].sum()),
            lengths[teaches & is_held], self.tokens.length, self._classes,
        )

    @cached_property
    def _classes(self) -> int:
        if not (its_task := tasks.get(self.task)).LABELLED:
            return 0
        first = np.unique(self.labels, return_index=True)[1][:_MOST_KINDS]
        return len({name for index in first for name in its_task.names_in(self.row(int(index)))})

    @cached_property
    def _first_learned(self) -> np.ndarray:
        """(S,) the place of each sequence's first learned token; beyond any length where it has none."""
        found = np.full(len(self.tokens.row), np.iinfo(np.int64).max)
        # Spans stand in the order of their sequences, and within one from left to right.
        if len(self.tokens.span_of):
            first = np.flatnonzero(np.concatenate(([True], np.diff(self.tokens.span_of) != 0)))
            found[self.tokens.span_of[first]] = self.tokens.spans[first, 0]
        return found

    @cached_property
    def _longest_learned(self) -> int:
        """No cut from here on takes a learned token."""
        return int(self.tokens.spans[:, 1].max(initial=0))

    @cached_property
    def _all_learned(self) -> np.ndarray:
        """(S,) learned tokens of each sequence before any cut."""
        return self.tokens.learned(self._longest_learned)

    # Labels ---------------------------------------------------------------------------------------------------

    @cached_property
    def labels(self) -> np.ndarray | None:
        """(N,) the label of each row where the answers are labels: few, short and repeated; else None. 0: that row's is none."""
        count = len(self)
        if tasks.get(self.task).LABELLED:
            return self.seen["label"]
        if count < 10 or np.count_nonzero(self.flagged(scan.SHORT)) < 0.9 * count:
            return None
        distinct = len(np.unique(self.seen["label"][self.seen["label"] != 0]))
        return self.seen["label"] if 2 <= distinct <= min(100, count // 4) else None

    def class_counts(self, recipe: Recipe) -> list[tuple[str, int, int]]:
        """(class, training rows, held-out rows) of rows whose task gives labels; a row with several counts for each."""
        return self.once(("classes", recipe.held_out_share, recipe.seed), lambda: self._class_counts(recipe))

    def _class_counts(self, recipe: Recipe) -> list[tuple[str, int, int]]:
        held = self._held_by_source(recipe)
        kinds, first, which = np.unique(self.labels, return_index=True, return_inverse=True)
        train, kept = (np.bincount(which[part], minlength=len(kinds)) for part in (~held, held))
        found: dict[str, list[int]] = {}
        for kind in np.argsort(-train - kept, kind="stable")[:_MOST_KINDS]:
            for name in tasks.get(self.task).names_in(self.row(int(first[kind]))):
                counts = found.setdefault(name, [0, 0])
                counts[0] += int(train[kind])
                counts[1] += int(kept[kind])
        return [(name, *counts) for name, counts in found.items()]

    def is_unbalanced(self) -> bool:
        """Whether the largest class has so many times the rows of the smallest that weighing them alike is worth a thought."""
        _, counts = np.unique(self.labels, return_counts=True)
        return len(counts) > 1 and bool(counts.max() >= _WORTH_WEIGHING * counts.min())

    def mask(self, name: str, recipe: Recipe) -> np.ndarray:
        """(N,) which rows have that fault under the recipe.

        Raises:
            UserError: there is no such finding, or it needs a tokenizer that could not be had.
        """
        count = len(self)
        every = np.arange(count)
        if name in self._bits:
            return self.flagged(name)
        if name in ("teaches_nothing", "refused", "cut", "beyond_context", "control_tokens"):
            if self.tokens is None:
                return np.zeros(count, bool)
            refused = (self.tokens.flags & 1) != 0
            if name == "refused":
                return refused
            if name == "control_tokens":
                return ((self.tokens.flags & 2) != 0) & (not recipe.keep_control_tokens)
            if name == "cut":
                return self.lengths > recipe.max_tokens
            if name == "beyond_context":
                context = self.context
                return self.lengths > context if context else np.zeros(count, bool)
            return (self.per_row(self.tokens.learned(recipe.max_tokens)) == 0) & ~refused
        if name == "duplicate":
            return self.same != every
        if name == "near_duplicate":
            return (self.near != every) & (self.same == every)
        if name in ("leak", "near_leak"):
            held = self._held_by_source(recipe)
            exact = held & np.isin(self.same, self.same[~held])
            return exact if name == "leak" else held & np.isin(self.near, self.near[~held]) & ~exact
        if name == "repeated_refusal":
            refusals = np.flatnonzero(self.flagged(scan.REFUSAL))
            _, which, counts = np.unique(self.seen["answer"][refusals], return_inverse=True, return_counts=True)
            found = np.zeros(count, bool)
            found[refusals[counts[which] >= 3]] = True
            return found
        if name == "secret":
            return self.seen["personal"][:, 3:].any(axis=1)
        if name == "personal":
            return self.seen["personal"][:, :3].any(axis=1)
        if name == "unlike_length":
            middle = float(np.median(self.seen["chars"])) if count else 0
            if middle < 20:
                return np.zeros(count, bool)
            return (self.seen["chars"] > 10 * middle) | (self.seen["chars"] * 10 < middle)
        if name in ("label_spelling", "rare_label", "unbalanced"):
            return self._label_mask(name)
        if name == "two_labels":
            return self._two_labels()
        if name == "few_rows":
            return np.ones(count, bool)
        raise UserError(f"There is no finding {name!r}. There are: {', '.join(faults_of(self.task))}.")

    def _held_by_source(self, recipe: Recipe) -> np.ndarray:
        try:
            return self.held_out(recipe.held_out_share, recipe.seed)[0]
        except UserError:
            return np.zeros(len(self), bool)

    def _label_mask(self, name: str) -> np.ndarray:
        found = np.zeros(len(self), bool)
        if self.labels is None:
            return found
        labelled = self.labels != 0
        _, which, counts = np.unique(self.labels[labelled], return_inverse=True, return_counts=True)
        if name == "rare_label":
            found[labelled] = (counts < _RARE)[which]
        elif name == "unbalanced":
            found[labelled] = (which == np.argmax(counts)) & (np.max(counts) >= 10 * np.min(counts))
        else:
            found = self.seen["answer"] != self.usual_spelling
        return found

    def _two_labels(self) -> np.ndarray:
        """(N,) which rows say what another row says, under another label."""
        _, which = np.unique(self.seen["opening"], return_inverse=True)
        pairs = np.unique(np.stack([which.astype(np.uint64), self.labels], 1), axis=0)
        texts, labels = np.unique(pairs[:, 0], return_counts=True)
        return np.isin(which, texts[labels > 1])

    @cached_property
    def usual_spelling(self) -> np.ndarray:
        """(N,) hash of the spelling that most rows give the row's label; the first seen one where two are equally many.

        A row whose answer is no label keeps its own.
        """
        spelled, first, which, counts = np.unique(
            np.stack([self.labels, self.seen["answer"]], 1), axis=0, return_index=True, return_inverse=True, return_counts=True
        )
        which = which.reshape(-1)
        order = np.lexsort((first, -counts, spelled[:, 0]))
        best = {}
        for place in order:
            best.setdefault(spelled[place, 0], spelled[place, 1])
        usual = np.array([best[label] for label in spelled[:, 0]], np.uint64)[which]
        return np.where(self.labels != 0, usual, self.seen["answer"])

    @property
    def context(self) -> int:
        """The base model's context in tokens; 0 where its config does not say."""
        config = self.config.get("text_config") or self.config
        return int(config.get("max_position_embeddings") or 0)


def find(rows: Rows, recipe: Recipe) -> list[Finding]:
    """Everything that is wrong with the rows under this recipe, worst first."""
    asked = ("findings", recipe.max_tokens, recipe.keep_control_tokens, recipe.held_out_share, recipe.held_out_rows, recipe.seed)
    return rows.once(asked, lambda: _find(rows, recipe))


def _find(rows: Rows, recipe: Recipe) -> list[Finding]:
    faults = faults_of(rows.task)
    found = []
    for name, fault in faults.items():
        if fault.left_out:
            count = len(rows.left_out.get(name, ()))
        elif name == "few_rows":
            found += _few_rows(rows, recipe)
            continue
        elif name == "nothing_to_learn":
            found += _nothing_to_learn(rows, recipe)
            continue
        else:
            count = int(np.count_nonzero(rows.mask(name, recipe))) if len(rows) else 0
        if count:
            more = _MORE[name](rows, recipe) if name in _MORE else ""
            found.append(Finding(name, count, fault.title, fault.why, fault.level, fault.fixes, more, fault.left_out))
    return sorted(found, key=lambda its: (LEVELS.index(its.level), -its.rows))


def _nothing_to_learn(rows: Rows, recipe: Recipe) -> list[Finding]:
    """The one finding that stops a run: no training row, or no held-out one, has anything to learn."""
    fault = FAULTS["nothing_to_learn"]
    if len(rows) == 0:
        return [Finding("nothing_to_learn", 0, fault.title, fault.why, fault.level, ())]
    try:
        held, _ = rows.held_out(recipe.held_out_share, recipe.seed)
    except UserError as problem:
        return [Finding("nothing_to_learn", len(rows), "All rows are the same", str(problem), "stop", ())]
    if wont_do := tasks.get(rows.task).wont_do(rows, held):
        return [Finding("nothing_to_learn", 0, fault.title, wont_do, "stop", ())]
    if rows.tokens is None:
        return []
    teaches = rows.per_row(rows.tokens.learned(recipe.max_tokens)) > 0
    for its, what in ((~held, "training"), (held, "held-out")):
        if not np.any(teaches & its):
            longest = int(rows.lengths.max(initial=0))
            why = f"No {what} row has an answer within its first {recipe.max_tokens:,} tokens; the longest row has {longest:,}. Raise the longest row, or split long rows."
            return [Finding("nothing_to_learn", 0, fault.title, why, "stop", ())]
    return []


def examples(rows: Rows, name: str, recipe: Recipe, most: int = 4) -> list[str]:
    """A few finds of personal data or secrets, masked so that they are recognised and not given away."""
    if name not in ("personal", "secret"):
        return []
    kinds = personal.KINDS[:3] if name == "personal" else personal.KINDS[3:]
    task, found = tasks.get(rows.task), []
    for index in np.flatnonzero(rows.mask(name, recipe))[:most]:
        for text in task.texts(rows.row(int(index))):
            found += [personal.shown(text, start, end, kind) for start, end, kind in personal.find(text) if kind in kinds]
        if len(found) >= most:
            break
    return list(dict.fromkeys(found))[:most]


def choose(rows: Rows, show: str, search: str, recipe: Recipe) -> np.ndarray:
    """Which rows a page shows: indices in order; records that give no row as -1 - their place.

    Args:
        show: "all", "training", "held out", or the name of a finding.
        search: letters to look for in the rows, large and small alike; "" for none.

    Raises:
        UserError: there is no such choice.
    """
    faults = faults_of(rows.task)
    if show in faults and faults[show].left_out:
        return -1 - rows.left_out.get(show, np.zeros(0, np.int64))
    if show == "all":
        chosen = np.ones(len(rows), bool)
    elif show in ("training", "held out"):
        held, _ = rows.held_out(recipe.held_out_share, recipe.seed)
        chosen = held if show == "held out" else ~held
    else:
        chosen = rows.mask(show, recipe)
    if search:
        chosen = chosen & rows.once(("search", search), lambda: _holding(rows, search))
    return np.flatnonzero(chosen)


def _holding(rows: Rows, search: str) -> np.ndarray:
    """(N,) which rows hold these letters, as their files keep them; found by Arrow, a gigabyte in a second or two."""
    import pyarrow.compute as pc

    kept = json.dumps(search, ensure_ascii=False)[1:-1]  # quotes and line breaks stand escaped in the files
    part_of = (rows.places >> np.uint64(40)).astype(np.int64)
    within = (rows.places & np.uint64((1 << 40) - 1)).astype(np.int64)
    found = np.zeros(len(rows), bool)
    for number, part in enumerate(rows.parts):
        chosen = np.flatnonzero(part_of == number)
        if len(chosen):
            hit = np.asarray(pc.match_substring(part.texts(), kept, ignore_case=True).to_numpy(zero_copy_only=False), bool)
            found[chosen] = hit[within[chosen]]
    return found


def half_width(held_out: int) -> float:
    """Half the 95 % interval of a share near one half, measured on that many rows: 1.96 * sqrt(0.25 / n)."""
    return 1.96 * math.sqrt(0.25 / max(1, held_out))


def _few_rows(rows: Rows, recipe: Recipe) -> list[Finding]:
    """How many, how varied, and what the held-out part can and cannot show; nothing where there is plenty."""
    try:
        held, _ = rows.held_out(recipe.held_out_share, recipe.seed)
    except UserError:
        return []
    trained, measured = int(np.count_nonzero(~held)), min(int(np.count_nonzero(held)), recipe.most_held_out)
    different = len(np.unique(rows.near[~held]))
    points = 100 * half_width(measured)
    if different >= _FEW and points <= 10:
        return []
    varied = f"{different:,} of the {trained:,} training rows differ clearly from each other."
    shows = (
        f"On {measured:,} held-out {'row' if measured == 1 else 'rows'} a share is uncertain by ±{points:.0f} percentage points: "
        f"they can show a change larger than that, and cannot show a smaller one."
    )
    level = "mind" if different < _FEW / 4 or points > 20 else "note"
    return [Finding("few_rows", trained, FAULTS["few_rows"].title, f"{varied} {shows}", level, ())]


def _what_is_cut(rows: Rows, recipe: Recipe) -> str:
    lost = np.maximum(rows.tokens.length - recipe.max_tokens, 0).sum()
    if tasks.get(rows.task).LABELLED:
        return f"{int(lost):,} tokens are not read; the label is learned all the same."
    whole, kept = rows.tokens.learned(2**31 - 1), rows.tokens.learned(recipe.max_tokens)
    answers = np.count_nonzero(rows.per_row(whole - kept))
    return f"{int(lost):,} tokens at their ends are lost, {int((whole - kept).sum()):,} of them of answers, in {answers:,} {'row' if answers == 1 else 'rows'}."


def _finds(places: slice):
    def words(rows: Rows, recipe: Recipe) -> str:
        sums = rows.seen["personal"][:, places].sum(axis=0, dtype=np.int64)
        return _listed({kind: int(count) for kind, count in zip(personal.KINDS[places], sums) if count})

    return words


_KIND_WORDS = {
    "email": ("e-mail address", "e-mail addresses"), "phone": ("phone number", "phone numbers"),
    "card": ("card number", "card numbers"), "key": ("API key", "API keys"), "private key": ("private key", "private keys"),
}


def _listed(counts: dict[str, int]) -> str:
    said = [f"{count:,} {_KIND_WORDS[kind][count != 1]}" for kind, count in counts.items()]
    return ", ".join(said) + "." if said else ""


def _spellings(rows: Rows, recipe: Recipe) -> str:
    labelled = rows.labels != 0
    labels = len(np.unique(rows.labels[labelled]))
    spelled = len(np.unique(rows.seen["answer"][labelled]))
    return f"{labels:,} labels are spelled in {spelled:,} ways."


def _balance(rows: Rows, recipe: Recipe) -> str:
    _, counts = np.unique(rows.labels[rows.labels != 0], return_counts=True)
    return f"{counts.max():,} rows of the largest class, {counts.min():,} of the smallest; {counts.max() / len(rows):.0%} are right by always saying the largest."


def _groups(rows: Rows, recipe: Recipe) -> str:
    return f"{len(np.unique(rows.near)):,} rows would be left, all clearly different."


def _context(rows: Rows, recipe: Recipe) -> str:
    return f"It reads {rows.context:,} tokens; the longest row has {int(rows.lengths.max(initial=0)):,}."


_MORE = {
    "cut": _what_is_cut, "personal": _finds(slice(0, 3)), "secret": _finds(slice(3, 5)), "label_spelling": _spellings,
    "unbalanced": _balance, "near_duplicate": _groups, "beyond_context": _context,
}
