"""Many prompts answered by both models at once: each answer is the one it would be alone, in the time there is, and the same made again."""

from types import SimpleNamespace

import pytest
import torch

from tests.small import small_base
from tests.test_fast import tuned
from tests.test_models import FAMILIES
from tuner import answer, cost, decode, encode, side_by_side, sizes
from tuner import plan as plans

pytestmark = pytest.mark.usefixtures("one_thread")

BEGINNING = [5, 20, 31, 44, 52, 9, 61, 33, 100, 101]
PROMPTS = [BEGINNING + [7 + 3 * n, *range(30, 30 + n % 5)] for n in range(9)]
STOPS = {2}


def stirred(base):
    """In fp32, where a batch rounds as a single row does; answers that do not repeat one token."""
    model = tuned(base).eval()
    for parameter in model.parameters():
        parameter.data *= 1.5
    return model, encode.load_tokenizer(str(base))


@pytest.fixture
def both(base):
    return stirred(base)


def alone(model, tokenizer, asked):
    """Each answer by itself."""
    one = lambda: [answer.answer(model, tokenizer, its.prompt, STOPS, answer.Sampling(its.most_tokens)) for its in asked]  # noqa: E731
    after = one()
    with model.disable_adapter():
        return dict(enumerate(zip(one(), after)))


def asked(most_tokens=12, prompts=PROMPTS):
    return [side_by_side.Asked(prompt, most_tokens + n % 3) for n, prompt in enumerate(prompts)]


def whole(at_once, count=len(PROMPTS)):
    return side_by_side.Again(at_once, count)


def watched(pace):
    """The pace, which notes each step's answers and tokens read: which answers stand together decides how they round."""
    plain, pace.seen = pace.noted, []

    def noted(seconds, answers, read):
        pace.seen.append((answers, read))
        plain(seconds, answers, read)

    pace.noted = noted
    return pace


def again(both, many, stops, pace, made):
    """Made again it is the same, with the same answers together."""
    same = watched(side_by_side.Again(pace.at_once, pace.begun, pace.steps))
    assert side_by_side.answers(*both, many, stops, same) == made and same.seen == pace.seen


# The same answers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("prompts", [PROMPTS, [its[5:] for its in PROMPTS], PROMPTS[:1], [PROMPTS[0], PROMPTS[0][:-1]]], ids=["one beginning", "too short to share", "one", "one within another"])
def test_each_answer_is_the_one_it_would_be_alone(tmp_path, family, prompts):
    model, tokenizer = stirred(small_base(tmp_path / "base", family))
    wanted = alone(model, tokenizer, asked(prompts=prompts))
    assert family.startswith("gemma") or any(one != other for one, other in wanted.values()), "base and tuned model differ"
    for at_once in (2, 6, 64):
        assert side_by_side.answers(model, tokenizer, asked(prompts=prompts), STOPS, whole(at_once), lambda made: None) == wanted


def test_where_the_lean_pass_does_not_know_the_model_batches_are_padded(both, monkeypatch):
    wanted, padded = alone(*both, asked()), []
    monkeypatch.setattr(decode, "is_known", lambda model: False)
    plain = answer._answers_padded
    monkeypatch.setattr(answer, "_answers_padded", lambda model, tokenizer, prompts, *more: padded.append(len(prompts)) or plain(model, tokenizer, prompts, *more))
    same = [side_by_side.Asked(its.prompt, 12) for its in asked()]
    assert side_by_side.answers(*both, same, STOPS, whole(8)) == alone(*both, same)
    assert padded == [4, 4, 4, 4, 1, 1]
    padded.clear()
    assert side_by_side.answers(*both, asked(), STOPS, whole(8)) == wanted
    assert set(padded) == {1}, "answers of one length together"


def test_the_next_prompt_begins_as_one_ends_and_what_all_begin_with_is_read_once(both, monkeypatch):
    fed, forward = [], decode.Decoder.forward
    monkeypatch.setattr(decode.Decoder, "forward", lambda self, rows, *more: fed.append(sum(map(len, rows))) or forward(self, rows, *more))
    pace, told = watched(side_by_side.Again(4, 9)), []
    made = side_by_side.answers(*both, asked(), set(), pace, told.append)
    assert len(made) == 9 and len(told) == 1 and told[0] in (8, 9)
    assert max(answers for answers, _ in pace.seen) == 4 and len(pace.seen) == pace.steps
    reading = [(place, read) for place, (_, read) in enumerate(pace.seen) if read]
    assert len(reading) > 4, "as places become free, not in waves"
    assert sum(fed) == 2 * (sum(map(len, PROMPTS)) - 8 * len(BEGINNING)) + sum(2 * (its.most_tokens - 1) for its in asked())


def test_a_few_prompts_are_read_at_a_time(both, monkeypatch):
    """So that a long wait is none: the first answers are on their way while others are read."""
    monkeypatch.setattr(decode, "PREFILL_TOKENS", 8)
    long = [list(range(3 + n, 43 + n)) for n in range(4)]
    pace = watched(side_by_side.Again(64, 4))
    assert side_by_side.answers(*both, asked(prompts=long), STOPS, pace) == alone(*both, asked(prompts=long))
    assert max(read for _, read in pace.seen) <= 2 * 8 and pace.seen[0][0] == 2


def test_a_copied_cache_is_its_own(both):
    decoder, _ = decode.over(both[0])
    read = side_by_side._read(decoder, None, BEGINNING)
    copy = read.copy(40, decoder)
    before = read.store[:, :, :, : read.length].clone()
    first = decoder.forward([[7]], [copy], [None])
    assert copy.length == read.length + 1 == len(BEGINNING) + 1
    assert torch.equal(read.store[:, :, :, : read.length], before) and copy.store.shape[3] == 40
    assert torch.equal(first, decoder.forward([[7]], [read], [None]))


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_together_take_no_more_than_their_room(tmp_path, family):
    """What a token takes is reckoned by the model's config alone."""
    model, _ = stirred(small_base(tmp_path / "base", family))
    decoder, _ = decode.over(model)
    store = decode.Cache().copy(40, decoder).store
    token = cost.cached_bytes(sizes.of_config(model.config), cost.itemsize("float32"))
    assert store.nbytes == 40 * token
    assert cost.answers_at_once("cpu", token, 40) == cost.answers_at_once("cuda", 1e9, 1e3) == cost.MOST_ANSWERS_AT_ONCE
    few = cost.answers_at_once("cpu", 23_040, 316)  # SmolLM2-135M in bf16
    assert few % 2 == 0 and 0 <= cost.ANSWERS_BYTES - few * 23_040 * 316 < 2 * 23_040 * 316
    assert cost.answers_at_once("cpu", 1e6, 1e3) == cost.FEWEST_ANSWERS_AT_ONCE


# In the time there is ---------------------------------------------------------------------------------------------


class Clock:
    """A clock that steps move: so many seconds for a step, and for each answer in it."""

    def __init__(self, monkeypatch, step=0.1, each=0.05):
        self.now, self.step, self.each, self.steps = 0.0, step, each, 0
        plain = answer.advance
        monkeypatch.setattr(side_by_side, "time", SimpleNamespace(monotonic=lambda: self.now))

        def advance(makings):
            self.steps += 1
            self.now += self.takes(makings)
            return plain(makings)

        monkeypatch.setattr(answer, "advance", advance)

    def takes(self, makings) -> float:
        return self.step + self.each * len(makings)


# As fast as the clock's steps: 64 tokens for 0.32 s.
TOKENS_PER_S = plans.ANSWER_TOKENS / 0.05


@pytest.mark.parametrize("reads", [512, 8], ids=["read at once", "read bit by bit"])
@pytest.mark.parametrize("stops", [set(), STOPS, set(range(3, 384, 2))], ids=["to the limit", "at an end", "half of them at once"])
@pytest.mark.parametrize("seconds", [0.0, 1.0, 6.0, 13.0, 16.0, 30.0, 1000.0])
def test_no_more_is_begun_than_ends_in_time_and_made_again_it_is_the_same(both, monkeypatch, seconds, stops, reads):
    monkeypatch.setattr(decode, "PREFILL_TOKENS", reads)
    clock = Clock(monkeypatch, step=plans.ANSWERS_STEP_TOKENS / TOKENS_PER_S)
    many = asked(prompts=[its[:-1] + [n % 90 + 5, *its[-1:]] for n, its in enumerate(PROMPTS * 4)])
    pace = watched(side_by_side.InTime(16, TOKENS_PER_S, lambda: seconds - clock.now))
    made = side_by_side.answers(*both, many, stops, pace)
    assert pace.begun == len(made) and clock.now <= seconds
    assert sorted(made) == list(range(len(made))), "the first ones"
    assert (not made) is (seconds < 10.0) and (seconds < 1000.0 or len(made) == 36), (len(made), clock.now)
    if 10.0 <= seconds < 1000.0 and not stops:
        assert clock.now > 0.5 * seconds, "the time is used"
    again(both, many, stops, pace, made)


def test_where_not_as_many_fit_together_fewer_are_answered_at_once(both, monkeypatch):
    clock = Clock(monkeypatch, step=plans.ANSWERS_STEP_TOKENS / TOKENS_PER_S)
    pace = watched(side_by_side.InTime(64, TOKENS_PER_S, lambda: 20.0 - clock.now))
    made = side_by_side.answers(*both, asked(), STOPS, pace)
    assert 2 <= pace.at_once == max(answers for answers, _ in pace.seen) < 18 and made and clock.now <= 20.0
    again(both, asked(), STOPS, pace, made)


def test_steps_that_become_slow_end_it_and_which_answers_there_are_says_nothing_of_how_they_end(both, monkeypatch):
    """Of those in the making, the ones that happen to end early would be there, and the others not."""
    clock = Clock(monkeypatch)
    many = asked(prompts=[its[:-1] + [n % 90 + 5, *its[-1:]] for n, its in enumerate(PROMPTS * 2)])
    alike = side_by_side.answers(*both, many, set(range(3, 384, 5)), whole(6, len(many)))
    assert {why for pair in alike.values() for _, why in pair} == {"stop", "length"}
    monkeypatch.setattr(clock, "takes", lambda makings: 0.1 if clock.steps < 22 else 45.0)
    clock.now, clock.steps = 0.0, 0
    pace = watched(side_by_side.InTime(6, 1000.0, lambda: 60.0 - clock.now))
    begun: dict[int, int] = {}
    begin = side_by_side._begin
    monkeypatch.setattr(side_by_side, "_begin", lambda model, tokenizer, its, *more: begun.setdefault(many.index(its), pace.steps) and None or begin(model, tokenizer, its, *more))
    made = side_by_side.answers(*both, many, set(range(3, 384, 5)), pace)
    assert 0 < len(made) < pace.begun and clock.now < 60 + 45
    assert set(made) == {place for place, step in begun.items() if pace.steps - step > many[place].most_tokens}
    assert all(alike[place] == its for place, its in made.items())
    again(both, many, set(range(3, 384, 5)), pace, made)


def test_one_step_that_stood_still_is_not_taken_for_the_speed():
    """As where it gave way to a chat."""
    pace = side_by_side.InTime(8, 100.0, lambda: 20.0)
    for seconds in (1.0, 1.0, 300.0, 1.0, 1.0):
        pace.noted(seconds, 8, 0)
    assert pace.slower == pytest.approx(1.0 / ((plans.ANSWERS_STEP_TOKENS + 8 * plans.ANSWER_TOKENS) / 100.0))
    assert pace.fitting(8, 0) == pytest.approx(20.0 / plans.ANSWERS_MARGIN)
    assert pace.fitting(8, 50) == pytest.approx((20.0 - 8 * 50 / 100.0) / plans.ANSWERS_MARGIN)


def test_a_padded_batch_keeps_to_the_time_too(both, monkeypatch):
    monkeypatch.setattr(decode, "is_known", lambda model: False)
    now, plain = [0.0], answer._answers_padded

    def slow(model, tokenizer, prompts, stop, most, is_over):
        def look():
            now[0] += 0.1
            return is_over()

        return plain(model, tokenizer, prompts, stop, most, look)

    monkeypatch.setattr(answer, "_answers_padded", slow)
    monkeypatch.setattr(side_by_side, "time", SimpleNamespace(monotonic=lambda: now[0]))
    same = [side_by_side.Asked(its.prompt, 12) for its in asked()]
    pace = side_by_side.InTime(4, 1000.0, lambda: 6.0 - now[0], side_by_side.PADDED)
    made = side_by_side.answers(*both, same, set(), pace)
    assert len(made) == 4 == pace.begun and now[0] <= 6.0  # 2.4 s for two prompts by both; a third batch would not have ended
    assert side_by_side.answers(*both, same, set(), side_by_side.Again(pace.at_once, 4, pace.steps)) == made
    now[0] = 0.0
    pace = side_by_side.InTime(4, 1e6, lambda: 1.0 - now[0], side_by_side.PADDED)
    assert side_by_side.answers(*both, same, set(), pace) == {} and now[0] < 1.3, "a batch that turns out slow is dropped"
    assert side_by_side.answers(*both, same, set(), side_by_side.Again(pace.at_once, pace.begun, pace.steps)) == {}


def test_a_padded_batch_that_ended_early_is_not_taken_for_fast_steps(both, monkeypatch):
    monkeypatch.setattr(decode, "is_known", lambda model: False)
    now, noted = [0.0], []
    plain = answer._answers_padded
    monkeypatch.setattr(answer, "_answers_padded", lambda *its: plain(*its[:-1], lambda: now.__setitem__(0, now[0] + 0.1) or its[-1]()))
    monkeypatch.setattr(side_by_side, "time", SimpleNamespace(monotonic=lambda: now[0]))
    pace = side_by_side.Again(4, 4)
    monkeypatch.setattr(pace, "noted", lambda seconds, *_: noted.append(seconds))
    side_by_side.answers(*both, [side_by_side.Asked(its.prompt, 200) for its in asked()], set(range(3, 384)), pace)
    assert noted == pytest.approx([0.2, 0.2]), "one step of each model"


def test_a_pace_counts_what_began():
    pace = side_by_side.Again(4, 3, 2)
    one = side_by_side.Asked([1, 2], 5)
    assert [pace.may_begin(one, answers) for answers in (0, 2, 4, 2, 0)] == [True, True, False, True, False]
    assert pace.begun == 3 and not pace.is_over()
    pace.noted(1.0, 2, 0)
    assert not pace.is_over() and pace.noted(1.0, 2, 0) is None and pace.is_over()
    assert not side_by_side.Again(4, 3).is_over() and side_by_side.Again(4, 3, 0).is_over()
    assert side_by_side.Again(1, 1).at_once == 2, "both models' answers to one prompt"


def test_what_all_begin_with_is_read_in_the_time_too():
    """Until it was read, the first prompt is taken to be read whole, for both models."""
    pace = side_by_side.InTime(8, 10.0, lambda: 100.0)
    long = side_by_side.Asked([1] * 1000, 1)
    assert pace.may_begin(long, 0, 995) and not side_by_side.InTime(8, 10.0, lambda: 100.0).may_begin(long, 0)
