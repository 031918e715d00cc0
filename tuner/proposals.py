"""The smallest change that makes a recipe fit: one ladder for each setting, in the order of what it harms."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from tuner import cost, hardware, machine, quote, room, tasks
from tuner import plan as plans
from tuner.errors import UserError
from tuner.home import write_json
from tuner.machine import Reach
from tuner.quote import Quote, Rows
from tuner.recipe import KNOBS, Recipe
from tuner.sizes import Sizes

# Everything that leaves the result as it is.
ALL_HELP = {"micro_batch": 1, "gradient_checkpointing": "on"}
# Rows are not offered to be cut shorter than this.
SHORTEST = 64


@dataclass(frozen=True)
class Proposal:
    """A change of settings that fits.

    Args:
        settings: by name, for the form or for a new recipe; the rows of one optimiser step are never among them.
        words: the change, short enough for a button.
        harm: what it costs besides time; "" where the result stays the same.
        quote: what the run then needs.
    """

    settings: dict
    words: str
    harm: str
    quote: Quote


def propose(
    recipe: Recipe, its: Sizes, rows: Rows, free_gib: float, reach: Reach,
    smaller: Callable[[], Iterable[tuple[str, Sizes]]] = tuple, dollars_per_hour: float = 0.0,
) -> list[Proposal]:
    """What makes the recipe fit, the least harmful first; [] where it fits as it is, or where nothing helps.

    From each ladder the smallest step that fits is taken: fewer rows at once, checkpointing, 4 bits, shorter rows, a
    lower rank, a smaller base. A later ladder takes the earlier ones' help where its own steps are not enough.

    Args:
        smaller: gives smaller bases with their sizes, the largest first; asked only where nothing else helps.
    """
    def quoted(changes: dict, sizes: Sizes = its) -> Quote:
        its_rows = shorter(rows, changes["max_tokens"]) if "max_tokens" in changes else rows
        return quote.make(replace(recipe, **changes), sizes, its_rows, free_gib, reach, dollars_per_hour)

    now = quoted({})
    if now.fits:
        return []
    found = []
    for ladder in (_fewer_at_once, _checkpointing, _four_bits, _shorter_rows, _lower_rank):
        for part in ladder(recipe, now, rows):
            if (taken := _first_that_fits(part, quoted)) is not None:
                found.append(_proposal(recipe, *taken, rows, now))
                break
    if not found:
        for base_id, sizes in smaller():
            changes = {"base_model": base_id, "base_revision": "", **ALL_HELP}
            made = quoted(changes, sizes)
            if made.fits:
                found.append(_proposal(recipe, changes, made, rows, now))
                break
    # A ladder that took an earlier one's help says nothing new where that one is enough by itself.
    kept: list[Proposal] = []
    for its_ in found:
        if not any(other.settings.items() <= its_.settings.items() for other in kept):
            kept.append(its_)
    return kept


def here(recipe: Recipe, its: Sizes, rows: Rows, smaller: Callable[[], Iterable[tuple[str, Sizes]]] = tuple) -> list[Proposal]:
    """`propose` for this machine, as it is now."""
    return propose(
        recipe, its, rows, room.for_a_run().free_gib, machine.reach(cost.kind(recipe, its)), smaller, hardware.dollars_here()
    )


def after_failure(recipe: Recipe, its: Sizes, rows: Rows, plan: plans.Plan, free_gib: float, reach: Reach) -> list[Proposal]:
    """What to try after a run that was to fit ran out of memory: clearly less than what it took then.

    Args:
        plan: what the run had decided.
    """
    at_once = plan.micro_batch or len(rows.lengths.heaviest(recipe, plan))
    held = replace(
        recipe, micro_batch=min(at_once, recipe.batch_size), gradient_checkpointing="on" if plan.checkpointing else "off"
    )
    taken = quote.make(held, its, rows, free_gib, reach)
    # At least a third of the activations must go, for they are what a formula misses.
    room = min(plans.ROOM * free_gib, taken.needed_gib - taken.memory.get("activations", 0.0) / 3)
    return propose(held, its, rows, room / plans.ROOM, reach)


def refuse(run, why: str) -> UserError:
    """The error that ends a run for want of memory, with what would fit noted in the run for its page (proposals.json)."""
    found = of_run(run)
    write_json(run.folder / "proposals.json", [
        {"settings": its.settings, "words": its.words, "harm": its.harm, "memory_gib": its.quote.memory_gib, "seconds": its.quote.seconds}
        for its in found
    ])
    if not found:
        return UserError(f"{why} No setting makes it fit here: choose a smaller base model, or a machine with more memory.")
    best = found[0]
    said = f"{best.words} ({f'{best.harm}; ' if best.harm else 'the same result; '}about {best.quote.memory_gib:.1f} GiB, {best.quote.seconds / 60:.0f} min)"
    return UserError(f"{why} What fits: {said}. The rows of each step stay as they are.")


def not_a_number(run, what: str, step: int, rows: list[int], surely: bool) -> UserError:
    """The error that ends a run whose arithmetic broke, with a changed recipe noted in the run for its page (proposals.json).

    Args:
        what: what is no number any more: "The loss", "The gradient", "The held-out loss", "The adapter".
        step: at which; 0 before the first.
        rows: numbers of the rows it was met on, in the run's own dataset.
        surely: each of them breaks by itself; else they were together in one step and any of them may have done it.
    """
    recipe = run.recipe
    where = _rows_in_words(rows, surely, "held-out " if what == "The held-out loss" else "")
    if step == 0:
        write_json(run.folder / "proposals.json", [])
        return UserError(
            f"{what} is not a number before the first step{where}, so the base model itself gives none here. Leave those rows "
            "out, or choose another base model or precision."
        )
    noted = run.read("quote") or {}
    its = noted.get("rehearsed", noted)
    found = []
    for changes in _calmer(recipe):
        words = ", ".join(f"{KNOBS[name].label} {getattr(recipe, name):g} → {value:g}" for name, value in changes.items())
        found.append({
            "settings": changes, "words": words, "harm": "learns slower", "memory_gib": its.get("memory_gib", 0.0), "seconds": its.get("seconds", 0.0),
        })
    write_json(run.folder / "proposals.json", found)
    kept = "Nothing of that step was kept" if what in ("The loss", "The gradient") else "That version is not kept"
    tried = f"Start again with {found[0]['words']}" if found else "Start again with another precision"
    return UserError(
        f"{what} stopped being a number at step {step:,}{where}. {kept}, and what was learned before it is whole. {tried}, "
        "or look at those rows first."
    )


def _rows_in_words(rows: list[int], surely: bool, kind: str) -> str:
    if not rows:
        return ""
    shown = ", ".join(f"{number:,}" for number in rows[:8]) + (f" and {len(rows) - 8:,} more" if len(rows) > 8 else "")
    words = f"{kind}{'row' if len(rows) == 1 else 'rows'} {shown}"
    return f" on {words}" if surely else f" (it had {words})"


def _calmer(recipe: Recipe) -> Iterator[dict]:
    """Changes after which steps go less far, the likeliest to help first."""
    lower = {"learning_rate": float(f"{max(KNOBS['learning_rate'].low, recipe.learning_rate / 3):.1g}")}
    if lower["learning_rate"] < recipe.learning_rate:
        yield lower
    if recipe.max_grad_norm > 0.3:
        yield {**lower, "max_grad_norm": 0.3}


def of_run(run) -> list[Proposal]:
    """What to try after this run had too little memory, by what it noted when it began; [] where it noted nothing yet."""
    noted = run.read("quote")
    if not noted:
        return []
    plan = plans.Plan.of_run(run.read("plan") or noted["plan"])
    its = Sizes(**noted["sizes"])
    # What was free when the run began: now another may hold it.
    return after_failure(run.recipe, its, Rows(**noted["rows"]), plan, noted["free_gib"], machine.reach(cost.kind(run.recipe, its)))


def shorter(rows: Rows, most: int) -> Rows:
    """The rows as they would be cut; what is learned is taken to shrink with the tokens."""
    lengths = np.minimum(rows.lengths.tokens, most)
    share = float(lengths.sum()) / max(1.0, rows.lengths.total)
    return Rows(
        lengths, round(rows.learned * share), np.minimum(rows.held.tokens, most), rows.scale, rows.held_rows, rows.chosen, rows.held_count, rows.classes,
    )


# The ladders ------------------------------------------------------------------------------------------------------


# Each gives lists of changes, from the least to the most: the first list that has one that fits is taken.


def _first_that_fits(steps: list[dict], quoted: Callable[[dict], Quote]) -> tuple[dict, Quote] | None:
    """The first step that fits, and its quote; each step needs less than the one before, so it is found by halving."""
    if not steps or not quoted(steps[-1]).fits:
        return None
    low, high = 0, len(steps) - 1  # the last one fits; whatever stands before `low` does not
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if quoted(steps[middle]).fits else (middle + 1, high)
    return steps[low], quoted(steps[low])


def _halves(number: int) -> list[int]:
    found = []
    while number > 1:
        number //= 2
        found.append(number)
    return found


def _fewer_at_once(recipe: Recipe, now: Quote, rows: Rows) -> Iterator[list[dict]]:
    yield [{"micro_batch": count} for count in _halves(now.at_once)]


def _checkpointing(recipe: Recipe, now: Quote, rows: Rows) -> Iterator[list[dict]]:
    if not now.plan.checkpointing:
        fewer = [{"gradient_checkpointing": "on", "micro_batch": count} for count in _halves(now.at_once)]
        yield [{"gradient_checkpointing": "on"}, *fewer]


def _four_bits(recipe: Recipe, now: Quote, rows: Rows) -> Iterator[list[dict]]:
    if recipe.quantisation == "nf4":
        return
    yield [{"quantisation": "nf4"}]
    for ladder in (_fewer_at_once, _checkpointing):
        for steps in ladder(recipe, now, rows):
            yield [{"quantisation": "nf4", **changes} for changes in steps]


def _shorter_rows(recipe: Recipe, now: Quote, rows: Rows) -> Iterator[list[dict]]:
    if "max_tokens" in tasks.get(recipe.task).UNUSED:  # pictures are not cut so
        return
    # With everything that harms nothing, so that as little as possible is cut.
    yield [{"max_tokens": most, **ALL_HELP} for most in _lengths_below(rows.lengths.longest)]


def _lengths_below(longest: int) -> Iterator[int]:
    """Round lengths under the longest row, each about a sixteenth shorter than the one before."""
    most = longest - 1
    while most >= SHORTEST:
        step = max(8, 2 ** (most.bit_length() - 5))
        most = most // step * step
        if most >= SHORTEST:
            yield most
        most -= 1


def _lower_rank(recipe: Recipe, now: Quote, rows: Rows) -> Iterator[list[dict]]:
    yield [{"lora_rank": rank} for rank in _halves(recipe.lora_rank) if rank >= 4]


# In words ---------------------------------------------------------------------------------------------------------


def _proposal(recipe: Recipe, changes: dict, made: Quote, rows: Rows, now: Quote) -> Proposal:
    decided = {"micro_batch": now.at_once, "gradient_checkpointing": "on" if now.plan.checkpointing else "off"}
    changes = {name: value for name, value in changes.items() if value not in (getattr(recipe, name), decided.get(name))}
    return Proposal(changes, _words(recipe, changes, now), _harm(recipe, changes, rows), made)


def _words(recipe: Recipe, changes: dict, now: Quote) -> str:
    said = []
    for name, value in changes.items():
        if name == "base_model":
            said.append(f"{value.split('/')[-1]} instead of {recipe.base_model.split('/')[-1]}")
        elif name == "quantisation":
            said.append("Base in 4 bits")
        elif name == "max_tokens":
            said.append(f"Longest row {recipe.max_tokens:,} → {value:,}")
        elif name == "micro_batch":
            said.append(f"Rows at once {now.at_once} → {value}")
        elif name == "gradient_checkpointing":
            said.append("Gradient checkpointing on")
        elif name == "lora_rank":
            said.append(f"Rank {recipe.lora_rank} → {value}")
    return ", ".join(said)


def _harm(recipe: Recipe, changes: dict, rows: Rows) -> str:
    said = []
    if "base_model" in changes:
        said.append("a smaller model writes less well")
    if "quantisation" in changes:
        said.append("4 bits round every layer")
    if "max_tokens" in changes:
        cut = round(np.count_nonzero(rows.lengths.tokens > changes["max_tokens"]) * rows.scale)
        said.append(f"cuts {cut:,} of {rows.count:,} rows")
    if "lora_rank" in changes:
        said.append("less room for what is new")
    return "; ".join(said)


_SIZE = re.compile(r"^(?P<family>.*?)[-_](?P<number>\d+(?:\.\d+)?)(?P<unit>[mb])\b", re.IGNORECASE)


def smaller_of(base_id: str, known: Iterable[str]) -> list[str]:
    """The known bases of the same family that are smaller by their names, the largest first."""
    def parts(name: str):
        match = _SIZE.match(name.split("/")[-1])
        if not match:
            return None
        return match["family"].lower(), float(match["number"]) * (1000 if match["unit"].lower() == "b" else 1)

    own = parts(base_id)
    if own is None:
        return []
    found = {name: its for name in known if (its := parts(name)) and its[0] == own[0] and its[1] < own[1]}
    return sorted(found, key=lambda name: -found[name][1])
