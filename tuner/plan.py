"""What a run decides before its first step, from its rows and the room there is: the quote and the trainer both ask here."""

import math
import random
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from tuner import cost
from tuner.sizes import Sizes

# A pass forward costs a third of a step; evaluations together take at most this share of a run's tokens.
EVALUATION_SHARE = 0.1
# How many fixed prompts each evaluation answers together, with how many tokens at most: on two cores a step of three answers costs
# little more than of one.
SAMPLES, SAMPLE_TOKENS = 3, 48
# What the report at the end may take: the larger of this share of the run's own time and so many seconds. Answers, then
# questions of the probe, then rows whose losses are measured are fewer where they would not fit, and the report says so.
REPORT_SHARE, REPORT_LEAST_S = 0.25, 60.0
# The least of the probe that still says something; the shortest and the longest answer, fitted to the rows' own.
LEAST_PROBE, FEWEST_ANSWER_TOKENS, MOST_ANSWER_TOKENS = 0.25, 32, 256
# The longest answer is fitted to the rows' own: half as long again as nearly all of them; and so long where they have none.
LONGER, TEXT_TOKENS = 1.5, 64
# A step of answers takes about as long as a pass forward over so many tokens, and so many more for each answer.
ANSWERS_STEP_TOKENS, ANSWER_TOKENS = 64, 5
# An answer is begun where there is time for so many times what it is expected to take at its longest.
ANSWERS_MARGIN = 1.2
# Where answers are cut to fit the time: to so much of what would just fit.
CUT_SLACK = 0.8
# A mean over fewer held-out rows says little: a run has fewer evaluations rather than of fewer rows, down to so many evaluations.
FEWEST_ROWS, FEWEST_EVALUATIONS = 16, 3
# So many are measured at the end whatever that takes; then twice as many at a time.
FIRST_MEASURED = 16
# Tokens in memory at once: wide enough for fast products, few enough that what is kept of them stays modest.
TOKENS_AT_ONCE = {"cpu": 1024, "cuda": 16_384}
# Below this many tokens at once a micro-batch pays for being small, about as much as checkpointing costs.
FEW_TOKENS = {"cpu": 256, "cuda": 2_048}
# Fewer are not tried: by then single rows are what does not fit.
FEWEST_TOKENS = 64
# Rows are shuffled in pools of this many optimiser batches and sorted by length inside each.
POOL = 8
# Up to so many rows the batches are formed as the run will form them.
MANY_ROWS = 4_000
# What a run may take of what is free: the rest is for the page, the file cache and what formulas miss.
ROOM = 0.92


@dataclass(frozen=True)
class Plan:
    """What decides a run's cost besides its recipe.

    Args:
        tokens_at_once: of how many tokens a micro-batch is at most; a longer row is one by itself.
        micro_batch: how many rows it has instead; 0 where tokens decide.
        prepacked: dense weights lie a second time as products want them; see `tuner.prepack`.
    """

    tokens_at_once: int
    micro_batch: int
    checkpointing: bool
    dequantised: bool
    prepacked: bool = False

    @classmethod
    def of_run(cls, noted: dict) -> "Plan":
        """Of what a run noted: its plan.json, or before that the plan in its quote.json."""
        checkpointing = noted.get("gradient_checkpointing", noted.get("checkpointing", False))
        return cls(noted["tokens_at_once"], noted["micro_batch"], checkpointing, noted["dequantised"], noted.get("fast", noted).get("prepacked", False))


def steps(recipe, rows: int) -> int:
    """Optimiser steps over that many training sequences."""
    return recipe.max_steps or max(1, math.ceil(recipe.epochs * math.ceil(rows / recipe.batch_size)))


def optimiser_batches(lengths, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """One epoch's optimiser batches, as row indices: of like length, in an order that stays random.

    Rows are shuffled, taken in pools of POOL optimiser batches, sorted by length inside each pool and cut into optimiser
    batches, which are shuffled again. A short last batch comes last.
    """
    order = list(range(len(lengths)))
    # A generator of its own: the order must not depend on, nor disturb, any other random state.
    shuffle = random.Random(f"{seed}/{epoch}").shuffle
    shuffle(order)
    whole = len(order) // batch_size * batch_size
    order, rest = order[:whole], order[whole:]
    cut: list[list[int]] = []
    size = POOL * batch_size
    for start in range(0, whole, size):
        pool = sorted(order[start : start + size], key=lengths.__getitem__)
        cut += [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
    shuffle(cut)
    return cut + ([sorted(rest, key=lengths.__getitem__)] if rest else [])


def parts(lengths: list[int], most_tokens: int, most_rows: int = 0) -> list[list[int]]:
    """An optimiser batch's lengths, in their order, in as few and as equal micro-batches as the limits allow.

    Args:
        most_tokens: a row longer than that is a part of its own.
        most_rows: how many rows a part has instead; 0 where tokens decide.
    """
    if most_rows:
        return [lengths[start : start + most_rows] for start in range(0, len(lengths), most_rows)]
    found = cut(lengths, most_tokens)
    if len(found) == 1:
        return found
    # The smallest limit that needs no more parts: equal ones keep less in memory at once.
    low, high = max(1, sum(lengths) // len(found)), most_tokens
    while low < high:
        middle = (low + high) // 2
        if len(cut(lengths, middle)) > len(found):
            low = middle + 1
        else:
            high = middle
    return cut(lengths, high)


def cut(lengths: list[int], most: int) -> list[list[int]]:
    """Lengths in their order, in parts of at most `most` tokens; a longer row is a part of its own."""
    found: list[list[int]] = []
    room = 0
    for length in lengths:
        if not found or length > room:
            found.append([])
            room = most
        found[-1].append(length)
        room -= length
    return found


class Lengths:
    """The lengths of a run's training sequences, with what is asked of them again and again."""

    def __init__(self, tokens):
        self.tokens = np.asarray(tokens)
        self._made: dict = {}

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def total(self) -> float:
        return float(self.tokens.sum())

    @cached_property
    def squares(self) -> float:
        """The sum of the squares, for attention."""
        return float(np.square(self.tokens, dtype=np.float64).sum())

    @cached_property
    def longest(self) -> int:
        return int(self.tokens.max())

    @cached_property
    def nearly_longest(self) -> float:
        """The length that 95 of 100 rows stay below."""
        return float(np.percentile(self.tokens, 95)) if len(self) else 0.0

    def in_steps(self, recipe, count: int) -> tuple[float, float, float]:
        """Tokens, their squares and rows that a run goes through in so many optimiser steps.

        Of an epoch that is begun and not ended, the rows that the seed draws; of very many rows, the usual ones.
        """
        per_epoch = math.ceil(len(self) / recipe.batch_size)
        epochs, more = divmod(count, per_epoch)
        if not more or len(self) > MANY_ROWS:
            times = count / per_epoch
            return self.total * times, self.squares * times, len(self) * times
        drawn = self._batches(self.tokens.tolist(), recipe.batch_size, recipe.seed, epochs)[:more]
        lengths = self.tokens[[index for batch in drawn for index in batch]].astype(np.float64)
        return self.total * epochs + float(lengths.sum()), self.squares * epochs + float((lengths**2).sum()), len(self) * epochs + len(lengths)

    def usual_answer(self, learned: float, learn: str) -> tuple[float, float, float]:
        """Of rows with so many learned tokens in all: a row's prompt, its answer, and the answer that nearly all rows stay below.

        Where all of a row is learned from because it is plain text, it has none of its own; where the recipe says so (`learn`),
        nobody has told apart what is asked and answered, and the whole row stands for its answer.
        """
        answer = learned / max(1, len(self))
        prompt = max(0.0, self.total / max(1, len(self)) - answer)
        if prompt < 2 and learn != "everything":  # its first token is predicted by nothing
            return prompt, answer, TEXT_TOKENS / LONGER
        return prompt, answer, max(answer, self.nearly_longest - prompt)

    def heaviest(self, recipe, plan: Plan) -> np.ndarray:
        """The lengths of the micro-batch with the most tokens that a run will form."""
        return self.tokens[self.heaviest_rows(recipe, plan)]

    def heaviest_rows(self, recipe, plan: Plan) -> np.ndarray:
        """The rows of the micro-batch with the most tokens that a run will form."""
        return self._formed(recipe, plan)[0]

    def parts_per_row(self, recipe, plan: Plan) -> float:
        """Micro-batches of an epoch, for each of its rows."""
        return self._formed(recipe, plan)[1]

    def _formed(self, recipe, plan: Plan) -> tuple[np.ndarray, float]:
        epochs = max(1, min(3, math.ceil(steps(recipe, len(self)) / math.ceil(len(self) / recipe.batch_size))))
        key = (recipe.batch_size, recipe.seed, epochs, plan.tokens_at_once, plan.micro_batch)
        if key not in self._made:
            self._made[key] = self._form(*key)
        return self._made[key]

    def _form(self, batch_size: int, seed: int, epochs: int, most_tokens: int, most_rows: int) -> tuple[np.ndarray, float]:
        """Form the batches as the run will; of very many rows only some, and then the longest of all beside them."""
        chosen = np.arange(len(self))
        if len(self) > MANY_ROWS:
            # Evenly from all, in the rows' own order, with the longest as one batch of their own.
            chosen = np.linspace(0, len(self) - 1, MANY_ROWS // 2).astype(np.int64)
            most = min(len(self), max(batch_size, 1))
            longest = np.argpartition(self.tokens, -most)[-most:]
            longest = longest[np.argsort(self.tokens[longest], kind="stable")]
            epochs = 1
        known = self.tokens[chosen].tolist()
        batches = [batch for epoch in range(epochs) for batch in self._batches(known, batch_size, seed, epoch)]
        best, most_there, count = [], 0, 0
        for batch in batches:
            formed = parts([known[index] for index in batch], most_tokens, most_rows)
            count += len(formed)
            start = 0
            for its in formed:
                if (tokens := sum(its)) > most_there:
                    best, most_there = batch[start : start + len(its)], tokens
                start += len(its)
        best = chosen[np.array(best)]
        if len(self) > MANY_ROWS:
            formed = parts(self.tokens[longest].tolist(), most_tokens, most_rows)
            ends = np.cumsum([len(its) for its in formed])
            heaviest = int(np.argmax([sum(its) for its in formed]))
            if sum(formed[heaviest]) > most_there:
                best = longest[ends[heaviest] - len(formed[heaviest]) : ends[heaviest]]
        return best, count / (epochs * len(known))

    def _batches(self, known: list[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
        key = ("batches", batch_size, seed, epoch)
        if key not in self._made:
            self._made[key] = optimiser_batches(known, batch_size, seed, epoch)
        return self._made[key]


def decide(recipe, its: Sizes, lengths: Lengths, device: str, precision: str, free_gib: float, import_gib: float) -> Plan:
    """Micro-batches and checkpointing that fit, where the recipe leaves the choice; the same result either way.

    First fewer tokens at once while that is nearly free, then checkpointing comes on, then still fewer.
    """
    unpacked = recipe.quantisation == "nf4" and cost.is_ample(cost.itemsize(precision) * its.linear, free_gib * cost.GIB)
    dense = (unpacked or recipe.quantisation == "none") and (device, precision) == ("cpu", "bfloat16") and cost.kind(recipe, its) == "fast"
    now = Plan(
        TOKENS_AT_ONCE[device], min(recipe.micro_batch, recipe.batch_size), recipe.gradient_checkpointing == "on" and its.checkpoints, unpacked,
        dense and cost.is_ample(cost.prepacked_bytes(its.linear + its.odd, its.vocab * its.hidden), free_gib * cost.GIB),
    )

    def fits(plan: Plan) -> bool:
        need = cost.memory(recipe, its, plan, lengths.heaviest(recipe, plan), device, precision, import_gib)
        return sum(need.values()) - need.get("files being read", 0.0) <= ROOM * free_gib

    may_checkpoint = recipe.gradient_checkpointing == "auto" and its.checkpoints
    while not fits(now):
        may_halve = not recipe.micro_batch and now.tokens_at_once > FEWEST_TOKENS
        if may_halve and (now.tokens_at_once > FEW_TOKENS[device] or now.checkpointing or not may_checkpoint):
            now = replace(now, tokens_at_once=now.tokens_at_once // 2)
        elif may_checkpoint and not now.checkpointing:
            now = replace(now, checkpointing=True)
        else:
            break
    return now


def evaluations(steps: int, tokens: float, lengths, wanted: int, seed: int, patience: int = 0) -> tuple[list[int], list[int]]:
    """At which steps to evaluate, and on which held-out rows, within a tenth of the run's work.

    Counted in tokens, not timed, so that a resumed run evaluates at the same steps; the one before the first step counts
    too, and patience may end the run early. Where that leaves no room for FEWEST_EVALUATIONS of FEWEST_ROWS rows, as in runs
    of less than about 200 rows, it is fewer rows; never less than one, nor more evaluations than wanted.
    """
    count, rows = how_often(steps, tokens, len(lengths), sum(lengths), wanted, patience)
    chosen = random.Random(f"held-out/{seed}").sample(range(len(lengths)), rows)
    # Those drawn may be longer than the average: then fewer of them, and where they are few already, less often.
    while sum(lengths[index] for index in chosen) > _of_each(EVALUATION_SHARE * tokens * 3, count, patience):
        if len(chosen) > FEWEST_ROWS:
            chosen.pop()
        elif count > FEWEST_EVALUATIONS:
            count -= 1
        elif len(chosen) > 1:
            chosen.remove(max(chosen, key=lengths.__getitem__))  # the longest, so that as many as can be are left
        else:
            break
    chosen.sort()
    return sorted({max(1, round(steps * (i + 1) / count)) for i in range(count)}), chosen


def report_budget_s(run_s: float) -> float:
    """Seconds that the report of a run of so many seconds may take."""
    return max(REPORT_LEAST_S, REPORT_SHARE * run_s)


def longest_answer(usual: float, recipe) -> int:
    """How many tokens a report lets an answer have.

    Args:
        usual: tokens that 95 of 100 of the rows' own answers stay below.
    """
    most = min(MOST_ANSWER_TOKENS, recipe.max_tokens)  # it has learned nothing beyond
    return max(1, min(most, max(FEWEST_ANSWER_TOKENS, math.ceil(LONGER * usual))))


def how_often(steps: int, tokens: float, held_rows: int, held_tokens: int, wanted: int, patience: int = 0) -> tuple[int, int]:
    """How many evaluations after the one before the first step, of how many held-out rows."""
    budget = EVALUATION_SHARE * tokens * 3
    mean = held_tokens / held_rows
    few, count = min(held_rows, FEWEST_ROWS), min(wanted, steps)
    while count > FEWEST_EVALUATIONS and _of_each(budget, count, patience) < few * mean:
        count -= 1
    return count, min(held_rows, max(1, int(_of_each(budget, count, patience) / mean)))


def _of_each(budget: float, count: int, patience: int) -> float:
    """Tokens of each evaluation, so that all of them and the one before the first step keep to so many in all.

    Also where patience ends the run as soon as it can: then that share of the steps was taken, and of the budget is there.
    """
    early = budget * patience / count / (patience + 1) if 0 < patience < count else math.inf
    return min(budget / (count + 1), early)


