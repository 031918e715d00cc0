"""What a run decides before its first step, from its rows and the room there is: the quote and the trainer both ask here."""

import math
import random
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tuner import cost
from tuner.sizes import Sizes

# A pass forward costs a third of a step; evaluations together take at most this share of a run's tokens.
EVALUATION_SHARE = 0.1
# Tokens at once that keep the products wide; more gain little and need more memory.
TOKENS_AT_ONCE = {"cpu": 2_048, "cuda": 16_384}
# Below this many tokens at once a micro-batch pays for being small, about as much as checkpointing costs.
FEW_TOKENS = 512
# Rows are shuffled in pools of this many optimiser batches and sorted by length inside each.
POOL = 8
# Up to so many rows the batches are formed as the run will form them.
MANY_ROWS = 4_000
# What a run may take of what is free: the rest is for the page, the file cache and what formulas miss.
ROOM = 0.92


@dataclass(frozen=True)
class Plan:
    """What decides a run's cost besides its recipe."""

    micro_batch: int
    checkpointing: bool
    dequantised: bool


def steps(recipe, rows: int) -> int:
    """Optimiser steps over that many training sequences."""
    return recipe.max_steps or max(1, math.ceil(recipe.epochs * math.ceil(rows / recipe.batch_size)))


def optimiser_batches(lengths, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """One epoch's optimiser batches, as row indices: of like length, in an order that stays random.

    Rows are shuffled, taken in pools of POOL optimiser batches, sorted by length inside each pool and cut into optimiser
    batches, which are shuffled again. A short last batch comes last, so that gradient accumulation always counts whole
    optimiser batches.
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


class Lengths:
    """The lengths of a run's training sequences, with what is asked of them again and again."""

    def __init__(self, tokens):
        self.tokens = np.asarray(tokens)

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
    def typical(self) -> int:
        """What 95 of 100 rows stay under."""
        place = int(0.95 * (len(self.tokens) - 1))
        return max(1, int(np.partition(self.tokens, place)[place]))

    @cached_property
    def _known(self) -> list[int]:
        return self.tokens.tolist()

    @cached_property
    def _made(self) -> dict:
        return {}

    def heaviest(self, recipe, micro_batch: int) -> np.ndarray:
        """The lengths of the micro-batch with the most tokens that a run will form."""
        return self.tokens[self.heaviest_rows(recipe, micro_batch)]

    def heaviest_rows(self, recipe, micro_batch: int) -> np.ndarray:
        """The rows of the micro-batch with the most tokens that a run will form."""
        if len(self) > MANY_ROWS:  # of so many rows each pool's longest are nearly the longest of all
            if "longest" not in self._made:
                most = min(len(self), 1024)
                found = np.argpartition(self.tokens, -most)[-most:]
                self._made["longest"] = found[np.argsort(self.tokens[found], kind="stable")]
            return self._made["longest"][-micro_batch:]
        epochs = min(4, math.ceil(steps(recipe, len(self)) / math.ceil(len(self) / recipe.batch_size)))
        key = (recipe.batch_size, micro_batch, recipe.seed, epochs)
        if key not in self._made:
            self._made[key] = self._heaviest(*key)
        return self._made[key]

    def _heaviest(self, batch_size: int, micro_batch: int, seed: int, epochs: int) -> np.ndarray:
        best: list[int] = []
        most = 0
        for epoch in range(epochs):
            for batch in optimiser_batches(self._known, batch_size, seed, epoch):
                # Rows stand by length in a batch, so its last micro-batch is the longest, or the last full one is.
                for start in range(0, len(batch), micro_batch)[-2:]:
                    its = batch[start : start + micro_batch]
                    if (tokens := sum(self._known[index] for index in its)) > most:
                        best, most = its, tokens
        return np.array(best)


def decide(recipe, its: Sizes, lengths: Lengths, device: str, free_gib: float, import_gib: float) -> Plan:
    """Micro-batch and checkpointing that fit, where the recipe leaves the choice; the same result either way.

    First rows at once are halved while that is nearly free, then checkpointing comes on, then they are halved further.
    """
    micro = min(recipe.micro_batch or max(1, TOKENS_AT_ONCE[device] // lengths.typical), recipe.batch_size)
    unpacked = recipe.quantisation == "nf4" and cost.room_to_dequantise(its, free_gib)
    now = Plan(micro, recipe.gradient_checkpointing == "on", unpacked)

    def fits(plan: Plan) -> bool:
        need = cost.memory(recipe, its, plan, lengths.heaviest(recipe, plan.micro_batch), device, import_gib)
        return sum(need.values()) - need.get("files being read", 0.0) <= ROOM * free_gib

    may_halve, may_checkpoint = not recipe.micro_batch, recipe.gradient_checkpointing == "auto"
    while not fits(now):
        tokens = now.micro_batch * lengths.typical
        if may_halve and now.micro_batch > 1 and (tokens >= 2 * FEW_TOKENS or now.checkpointing or not may_checkpoint):
            now = Plan(now.micro_batch // 2, now.checkpointing, now.dequantised)
        elif may_checkpoint and not now.checkpointing:
            now = Plan(now.micro_batch, True, now.dequantised)
        else:
            break
    return now


def evaluations(steps: int, tokens: float, lengths, wanted: int, seed: int) -> tuple[list[int], list[int]]:
    """At which steps to evaluate, and on which held-out rows, within a tenth of the run's work.

    Counted in tokens, not timed, so that a resumed run evaluates at the same steps. Short runs have three evaluations of
    at least sixteen rows, whatever the share; never are there more than wanted.
    """
    count, rows = how_often(steps, tokens, len(lengths), sum(lengths), wanted)
    chosen = sorted(random.Random(f"held-out/{seed}").sample(range(len(lengths)), rows))
    return sorted({max(1, round(steps * (i + 1) / count)) for i in range(count)}), chosen


def how_often(steps: int, tokens: float, held_rows: int, held_tokens: int, wanted: int) -> tuple[int, int]:
    """How many evaluations, of how many held-out rows."""
    budget = EVALUATION_SHARE * tokens * 3
    mean = held_tokens / held_rows
    fewest = min(held_rows, 16)
    count = min(wanted, steps, max(3, int(budget / (fewest * mean))))
    return count, min(held_rows, max(fewest, int(budget / count / mean)))


