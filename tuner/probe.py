"""The forgetting probe: general questions and plain texts that no run trains on, and how a model's losses answer them."""

import json
import random
from functools import lru_cache

from tuner import encode, figures
from tuner.home import DEMO_ROOT

PATH = DEMO_ROOT / "data" / "probe.jsonl"
# The longest item has about 100 tokens; an odd tokenizer may need several times as many.
MAX_TOKENS = 512


@lru_cache(maxsize=1)
def items() -> tuple[dict, ...]:
    """The shipped items, written for this project.

    Returns:
        {"kind": "question", "subject", "text", "right", "wrong": [3]}: the text goes on with one of four;
        {"kind": "text", "subject", "text"}.
    """
    return tuple(json.loads(line) for line in PATH.read_text("utf-8").splitlines())


def choose(share: float, seed: int) -> list[dict]:
    """That share of the questions and of the texts, at least one of each; the same for the same seed."""
    chosen = []
    for kind in ("question", "text"):
        its = [item for item in items() if item["kind"] == kind]
        if share < 1:
            its = random.Random(f"{seed}/{kind}").sample(its, max(1, round(share * len(its))))
        chosen += its
    return chosen


def rows(chosen: list[dict], tokenizer) -> list[encode.Encoded]:
    """What has to be measured: four rows for each question, the right one first, and one for each text."""
    found = []
    for item in chosen:
        if item["kind"] == "text":
            found.append(encode.encode_continuation("", item["text"], tokenizer, MAX_TOKENS))
        else:
            for end in (item["right"], *item["wrong"]):
                found.append(encode.encode_continuation(item["text"], f" {end}", tokenizer, MAX_TOKENS))
    return found


def compare(chosen: list[dict], base: list[float], tuned: list[float], tokens: list[int], seed: int) -> dict:
    """Base against tuned, by log-likelihood.

    A question counts as right where the right end has the highest log-likelihood a letter: ends differ in length, and
    their tokens in number (as "acc_norm" in EleutherAI's lm-evaluation-harness).

    Args:
        base, tuned: the mean loss of each of `rows`, in nats a token.
        tokens: learned tokens in each.

    Returns:
        questions, texts: {"items", "base", "tuned", "difference"}, the share right and nats a token; None if there are none.
        fell, says: see `figures.forgetting`.
    """
    right: list[tuple[bool, bool]] = []
    texts: list[tuple[float, float, int]] = []
    place = 0
    for item in chosen:
        if item["kind"] == "text":
            texts.append((base[place], tuned[place], tokens[place]))
            place += 1
            continue
        its = slice(place, place + 4)
        right.append((_is_right(item, base[its], tokens[its]), _is_right(item, tuned[its], tokens[its])))
        place += 4
    questions = language = None
    if right:
        difference = figures.interval([after - before for before, after in right], seed=seed)
        questions = {
            "items": len(right), "base": sum(before for before, _ in right) / len(right),
            "tuned": sum(after for _, after in right) / len(right), "difference": difference,
        }
    if texts:
        counts = [count for _, _, count in texts]
        difference = figures.interval([after - before for before, after, _ in texts], counts, seed)
        mean = [sum(its[which] * its[2] for its in texts) / sum(counts) for which in (0, 1)]
        language = {"items": len(texts), "base": mean[0], "tuned": mean[1], "difference": difference}
    fell, says = figures.forgetting(questions, language)
    return {"items": len(chosen), "of": len(items()), "questions": questions, "texts": language, "fell": fell, "says": says}


def _is_right(question: dict, losses: list[float], tokens: list[int]) -> bool:
    """Whether the right end, the first of four, is the likeliest; a draw is no right answer."""
    ends = (question["right"], *question["wrong"])
    costs = [loss * count / (1 + len(end)) for loss, count, end in zip(losses, tokens, ends)]
    return costs[0] < min(costs[1:])
