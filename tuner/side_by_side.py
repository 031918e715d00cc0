"""Many prompts answered by the base and by the tuned model, as many together as there is room for.

A step of an answer reads all weights, so that many answers at once take little longer than one; the base's and the tuned
model's go through the same step. As both answers to a prompt end, the next prompt's begin in their places, and what all
prompts begin with is read once. Where the lean forward pass does not know the model, batches are padded and each model
answers by itself.
"""

import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile

from tuner import answer, decode
from tuner import plan as plans

# An answer's text, and why it ended: "stop" or "length".
Said = tuple[str, str]
# By how much steps take longer where each model makes its own.
PADDED = 2.0
# What all prompts begin with is read once where it is worth a step of its own.
WORTH_SHARING = 8
# Steps whose speed says how long the next ones take.
RECENT_STEPS = 16
# It is told each time that so many more prompts have both answers.
TOLD_EVERY = 8


@dataclass(frozen=True)
class Asked:
    """A prompt, and how many tokens its answers may have."""

    prompt: list[int]
    most_tokens: int


class Pace:
    """How many prompts are answered together, and how many at all.

    Args:
        at_once: answers in the making at most, two for each prompt.
    """

    def __init__(self, at_once: int):
        self.at_once, self.begun = max(2, at_once), 0

    def may_begin(self, asked: Asked, answers: int, read: int = 0) -> bool:
        """Whether the next prompt's answers begin now; if so, they count as begun.

        Args:
            answers: in the making.
            read: tokens of the prompt that were read already.
        """
        may = answers + 2 <= self.at_once and self._may(asked, answers, read)
        self.begun += may
        return may

    def is_over(self, made: int) -> bool:
        """Whether nothing is waited for any more, with the answers to so many prompts made."""
        raise NotImplementedError

    def noted(self, seconds: float, answers: int, read: int, made: int) -> None:
        """A step took so long: of so many answers, with so many tokens of prompts read; `made` as above."""

    def _may(self, asked: Asked, answers: int, read: int) -> bool:
        raise NotImplementedError


class InTime(Pace):
    """As many as there is time for: what has begun will end, unless steps become slower than any before.

    Where not as many fit together as might, fewer are answered at once, all the way: what was made can be made again
    (`Again`) knowing only how many began, how many together, and how many were made.

    Args:
        tokens_per_s: of a pass forward.
        left: gives the seconds that are left.
        slower: by how much steps are thought to take longer than expected, until one was seen.
    """

    def __init__(self, at_once: int, tokens_per_s: float, left: Callable[[], float], slower: float = 1.0):
        super().__init__(at_once)
        self.tokens_per_s, self.left = tokens_per_s, left
        self._slower, self._expected = deque(maxlen=RECENT_STEPS), slower
        self._grows, self._ends = True, False

    @property
    def slower(self) -> float:
        """Steps' time over what they were expected to take: the usual one of those seen last, so that one that stood still counts for nothing."""
        return statistics.median(self._slower) if self._slower else self._expected

    def fitting(self, answers: int, unread: int) -> float:
        """How many tokens so many answers may have, to end together in the time that is left; `unread` tokens of a prompt each."""
        return (self.left() - answers * unread / self.tokens_per_s) / (plans.ANSWERS_MARGIN * self._step_s(answers, 0) * self.slower)

    def _may(self, asked: Asked, answers: int, read: int) -> bool:
        if self._ends:
            return False
        # While these are written, as many others' prompts are read.
        if asked.most_tokens <= self.fitting(answers + 2, len(asked.prompt) - read):
            return True
        if self._grows and answers:
            self.at_once, self._grows = answers, False
        else:
            self._ends = True
        return False

    def is_over(self, made: int) -> bool:
        return self.left() < 0

    def noted(self, seconds: float, answers: int, read: int, made: int) -> None:
        self._slower.append(seconds / self._step_s(answers, read))
        self._grows = self._grows and not made and answers + 2 <= self.at_once

    def _step_s(self, answers: int, read: int) -> float:
        return (plans.ANSWERS_STEP_TOKENS + plans.ANSWER_TOKENS * answers + read) / self.tokens_per_s


class Again(Pace):
    """As many as an earlier time, with the same ones together, whatever time that takes."""

    def __init__(self, at_once: int, begun: int, made: int):
        super().__init__(at_once)
        self._begun, self._made = begun, made

    def _may(self, asked: Asked, answers: int, read: int) -> bool:
        return self.begun < self._begun

    def is_over(self, made: int) -> bool:
        return made >= self._made


def answers(model, tokenizer, asked: list[Asked], stop: set[int], pace: Pace, on_status=lambda made: None) -> dict[int, tuple[Said, Said]]:
    """The likeliest answers of base and tuned model to the first prompts, as far as the pace lets.

    Args:
        model: a PeftModel with its adapter switched on.
        on_status: called now and then with how many prompts have both answers.

    Returns:
        Place in `asked` -> the base's answer and the tuned model's: of all that ended before it was over.
    """
    decoder, adapter = decode.over(model)
    if decoder is None:
        return _padded(model, tokenizer, asked, stop, pace, on_status)
    decoder.rounds_up = True
    shared, read = _beginning(asked), {}
    waiting, going, made = deque(enumerate(asked)), {}, {}
    while True:
        makings = [its for pair in going.values() for its in pair if not its.finished]
        unread = sum(len(its.fed) - 1 for its in makings)
        while waiting and unread <= decode.PREFILL_TOKENS and pace.may_begin(waiting[0][1], len(makings), len(shared)):
            place, its = waiting.popleft()
            read = read or {name: _read(decoder, name, shared) for name in (None, adapter)}
            going[place] = [_begin(model, tokenizer, its, stop, decoder, name, cache) for name, cache in read.items()]
            makings += going[place]
            unread += sum(len(each.fed) - 1 for each in going[place])
        if not makings or pace.is_over(len(made)):
            return made
        began = time.monotonic()
        reads = sum(min(len(its.fed), decode.PREFILL_TOKENS) - 1 for its in makings)
        answer.advance(makings)
        ended = [place for place, pair in going.items() if all(its.finished for its in pair)]
        for place in ended:
            made[place] = tuple((tokenizer.decode(its.ids, skip_special_tokens=True).strip(), its.finished) for its in going.pop(place))
        pace.noted(time.monotonic() - began, len(makings), reads, len(made))
        if len(made) // TOLD_EVERY > (len(made) - len(ended)) // TOLD_EVERY:
            on_status(len(made))


def _beginning(asked: list[Asked]) -> list[int]:
    """What all prompts begin with, but for the last token of the shortest: one has to be left to be answered."""
    if len(asked) < 2:
        return []
    shared = [its[0] for its in takewhile(lambda its: len(set(its)) == 1, zip(*(its.prompt[:-1] for its in asked)))]
    return shared if len(shared) >= WORTH_SHARING else []


def _read(decoder: decode.Decoder, adapter: str | None, prompt: list[int]) -> decode.Cache:
    """A cache that has read this."""
    cache = decode.Cache()
    for start in range(0, len(prompt), decode.PREFILL_TOKENS):
        decoder.forward([prompt[start : start + decode.PREFILL_TOKENS]], [cache], [adapter])
    return cache


def _begin(model, tokenizer, its: Asked, stop: set[int], decoder: decode.Decoder, adapter: str | None, read: decode.Cache) -> answer.Answer:
    """An answer to a prompt whose beginning was read."""
    making = answer.Answer(model, tokenizer, its.prompt[read.length :], stop, answer.Sampling(its.most_tokens), decoder, adapter)
    making.cache = read.copy(len(its.prompt) + its.most_tokens, decoder)
    return making


def _padded(model, tokenizer, asked: list[Asked], stop: set[int], pace: Pace, on_status) -> dict[int, tuple[Said, Said]]:
    """`answers` by the model's own forward: the same number of prompts for each model, one after the other."""
    made: dict[int, tuple[Said, Said]] = {}
    is_over = lambda: pace.is_over(len(made))  # noqa: E731
    start = 0
    while start < len(asked):
        batch: list[Asked] = []
        while start + len(batch) < len(asked) and asked[start].most_tokens == (its := asked[start + len(batch)]).most_tokens and pace.may_begin(its, 2 * len(batch)):
            batch.append(its)
        if not batch or is_over():
            return made
        began, most = time.monotonic(), asked[start].most_tokens
        prompts = [its.prompt for its in batch]
        tuned = answer.answers(model, tokenizer, prompts, stop, most, is_over)
        with model.disable_adapter():
            base = tuned and answer.answers(model, tokenizer, prompts, stop, most, is_over)
        if not base:
            return made
        made.update({start + index: both for index, both in enumerate(zip(base, tuned))})
        start += len(batch)
        pace.noted((time.monotonic() - began) / most, 2 * len(batch), 0, len(made))
        on_status(len(made))
    return made
