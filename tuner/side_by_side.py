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
        self.at_once, self.begun, self.steps = max(2, at_once), 0, 0

    def may_begin(self, asked: Asked, answers: int, read: int = 0) -> bool:
        """Whether the next prompt's answers begin now; if so, they count as begun.

        Args:
            answers: in the making.
            read: tokens of the prompt that were read already.
        """
        may = answers + 2 <= self.at_once and self._may(asked, answers, read)
        self.begun += may
        return may

    def is_over(self) -> bool:
        """Whether nothing is waited for any more."""
        raise NotImplementedError

    def noted(self, seconds: float, answers: int, read: int) -> None:
        """A step took so long: of so many answers, with so many tokens of prompts read. Where batches are padded, a step is a batch."""
        self.steps += 1

    def _may(self, asked: Asked, answers: int, read: int) -> bool:
        raise NotImplementedError


class InTime(Pace):
    """As many as there is time for: what has begun will end, unless steps become slower than any before.

    Where not as many fit together as might, fewer are answered at once, all the way: what was made can be made again
    (`Again`) knowing only how many began, how many together, and after how many steps it was over.

    Args:
        tokens_per_s: of a pass forward.
        left: gives the seconds that are left.
        slower: by how much steps are thought to take longer than expected, until some were seen.
    """

    def __init__(self, at_once: int, tokens_per_s: float, left: Callable[[], float], slower: float = 1.0):
        super().__init__(at_once)
        self.tokens_per_s, self.left = tokens_per_s, left
        self._slower, self._expected = deque(maxlen=RECENT_STEPS), slower
        self._most, self._grows, self._ends = 0, True, False

    @property
    def slower(self) -> float:
        """Steps' time over what they were expected to take: the usual one of those seen last, so that one that stood still counts for nothing.

        While there are more and more answers, no less than was thought: steps of few say little of those of many.
        """
        if not self._slower:
            return self._expected
        seen = statistics.median(self._slower)
        return max(seen, self._expected) if self._grows else seen

    def fitting(self, answers: int, unread: int) -> float:
        """How many tokens so many answers may have, to end together in the time that is left; `unread` tokens of a prompt each."""
        return (self.left() - answers * unread / self.tokens_per_s) / (plans.ANSWERS_MARGIN * self._step_s(answers, 0) * self.slower)

    def _may(self, asked: Asked, answers: int, read: int) -> bool:
        if self._ends:
            return False
        # While these are written, as many others' prompts are read.
        if asked.most_tokens <= self.fitting(answers + 2, len(asked.prompt) - read):
            self._most = max(self._most, answers + 2)
            return True
        if self._grows and answers + 2 > self._most > 0:
            self.at_once, self._grows = self._most, False
        else:
            self._ends = True
        return False

    def is_over(self) -> bool:
        return self.left() < 0

    def noted(self, seconds: float, answers: int, read: int) -> None:
        super().noted(seconds, answers, read)
        self._slower.append(seconds / self._step_s(answers, read))
        self._grows = self._grows and answers >= self._most and answers + 2 <= self.at_once

    def _step_s(self, answers: int, read: int) -> float:
        return (plans.ANSWERS_STEP_TOKENS + plans.ANSWER_TOKENS * answers + read) / self.tokens_per_s


class Again(Pace):
    """As many as an earlier time, with the same ones together, whatever time that takes.

    Args:
        steps: after which it was over; None where all that began ended.
    """

    def __init__(self, at_once: int, begun: int, steps: int | None = None):
        super().__init__(at_once)
        self._begun, self._steps = begun, steps

    def _may(self, asked: Asked, answers: int, read: int) -> bool:
        return self.begun < self._begun

    def is_over(self) -> bool:
        return self._steps is not None and self.steps >= self._steps


def answers(model, tokenizer, asked: list[Asked], stop: set[int], pace: Pace, on_status=lambda made: None) -> dict[int, tuple[Said, Said]]:
    """The likeliest answers of base and tuned model to the first prompts, as far as the pace lets.

    Args:
        model: a PeftModel with its adapter switched on.
        on_status: called now and then with how many prompts have both answers.

    Returns:
        Place in `asked` -> the base's answer and the tuned model's. Where it is over before all that began have ended: of those
        that would have ended by then however long they are, so that which ones there are says nothing of how they end.
    """
    decoder, adapter = decode.over(model)
    if decoder is None:
        return _padded(model, tokenizer, asked, stop, pace, on_status)
    decoder.rounds_up = True
    shared, read = beginning([its.prompt for its in asked]), {}
    waiting, going, made, since = deque(enumerate(asked)), {}, {}, {}
    while True:
        if pace.is_over():
            settled = {place for place, step in since.items() if pace.steps - step >= _most_steps(asked[place], shared)}
            return {place: both for place, both in made.items() if not going or place in settled}
        makings = [its for pair in going.values() for its in pair if not its.finished]
        unread = sum(len(its.fed) - 1 for its in makings)
        while waiting and unread <= decode.PREFILL_TOKENS and pace.may_begin(waiting[0][1], len(makings), len(shared) if read else 0):
            place, its = waiting.popleft()
            read = read or {name: _read(decoder, name, shared) for name in (None, adapter)}
            going[place] = [_begin(model, tokenizer, its, stop, decoder, name, cache) for name, cache in read.items()]
            makings += going[place]
            unread += sum(len(each.fed) - 1 for each in going[place])
            since[place] = pace.steps
        if not makings:
            return made
        began = time.monotonic()
        reads = sum(min(len(its.fed), decode.PREFILL_TOKENS) - 1 for its in makings)
        answer.advance(makings)
        ended = [place for place, pair in going.items() if all(its.finished for its in pair)]
        for place in ended:
            made[place] = tuple((tokenizer.decode(its.ids, skip_special_tokens=True).strip(), its.finished) for its in going.pop(place))
        pace.noted(time.monotonic() - began, len(makings), reads)
        if len(made) // TOLD_EVERY > (len(made) - len(ended)) // TOLD_EVERY:
            on_status(len(made))


def beginning(prompts: list[list[int]]) -> list[int]:
    """What all prompts begin with, but for the last token of the shortest: one has to be left to be answered."""
    if len(prompts) < 2:
        return []
    shared = [its[0] for its in takewhile(lambda its: len(set(its)) == 1, zip(*(prompt[:-1] for prompt in prompts)))]
    return shared if len(shared) >= WORTH_SHARING else []


def _most_steps(its: Asked, shared: list[int]) -> int:
    """After how many steps an answer has ended for sure: its prompt is read, the last of that brings a token, and the limit is seen a step after it."""
    return -(-(len(its.prompt) - len(shared)) // decode.PREFILL_TOKENS) + its.most_tokens


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
    looks = 0

    def is_over() -> bool:
        nonlocal looks
        looks += 1
        return pace.is_over()

    start = 0
    while start < len(asked) and not pace.is_over():
        batch: list[Asked] = []
        while start + len(batch) < len(asked) and asked[start].most_tokens == (its := asked[start + len(batch)]).most_tokens and pace.may_begin(its, 2 * len(batch)):
            batch.append(its)
        if not batch:
            return made
        began, most, looks = time.monotonic(), asked[start].most_tokens, 0
        prompts = [its.prompt for its in batch]
        tuned = answer.answers(model, tokenizer, prompts, stop, most, is_over)
        with model.disable_adapter():
            base = tuned and answer.answers(model, tokenizer, prompts, stop, most, is_over)
        if not base:
            return made
        made.update({start + index: both for index, both in enumerate(zip(base, tuned))})
        start += len(batch)
        pace.noted((time.monotonic() - began) / max(1.0, looks / 2), 2 * len(batch), 0)
        on_status(len(made))
    return made
