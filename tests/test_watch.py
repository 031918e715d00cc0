"""What a run says of its own curves: each sentence on curves that must trigger it, smooth and noisy, and on those that must not."""

import math
import random
import re

import pytest

from tests.small_run import events, notes, small_run
from tuner import events as logs
from tuner import plan, watch

# Smooth, as noisy as real runs on held-out rows of the same kind, and noisier than those.
QUIET, USUAL, ROUGH = (0.0, 0.02), (0.003, 0.15), (0.006, 0.25)


def falling(rate: float, low: float = 1.5):
    return lambda t: low + (2.5 - low) * math.exp(-rate * t)


# name -> (held-out loss, training loss) over the share of the run that is done
CURVES = {
    "healthy": (falling(2), falling(2)),
    "slow and steady": (lambda t: 2.5 - 0.8 * t,) * 2,
    "soon flat": (falling(25), falling(25)),
    "flat while training falls": (falling(25), falling(1.5, 0.0)),
    "far too many epochs": (lambda t: falling(20)(t) + 0.8 * max(0.0, t - 0.2), falling(3, 0.0)),
    "a little too many epochs": (lambda t: falling(20)(t) + 0.35 * max(0.0, t - 0.2), falling(3, 1.0)),
    "hardly moves": (lambda t: 2.5 - 0.01 * t,) * 2,
    "diverges": (lambda t: 2.5 - 1.5 * min(t, 0.2) + 4 * max(0.0, t - 0.2),) * 2,
    "worse from the start": (lambda t: 3.5 if t else 2.5, lambda t: 2.5 + t),
    "broken for good": (lambda t: 4.1 if t > 0.3 else falling(20)(t), lambda t: 4.1 if t > 0.3 else falling(20)(t)),
    "worse and back": (lambda t: falling(20)(t) + 0.4 * max(0.0, 0.1 - abs(t - 0.5)), falling(3)),
    "other rows than these": (lambda t: falling(20)(t) + 0.5 * max(0.0, t - 0.2), falling(20)),  # worse, but training does not fall
}


def said_of(name: str, noise=QUIET, seed: int = 0, total: int = 100, count: int = 10, rate: float = 2e-4) -> dict[str, int]:
    """rule -> the step at which it was first said, of a run that follows these curves."""
    held, trained = CURVES[name]
    pick = random.Random(f"{name}/{noise}/{seed}")
    steps, evals, found = [], [], {}

    def note(said, now: int) -> None:
        for its in said:
            found.setdefault(its.rule, now)

    for step in range(total + 1):
        if step:
            loss = trained(step / total) * (1 + max(-0.9, pick.gauss(0, noise[1])))
            steps.append({"step": step, "loss": loss, "learning_rate": rate})
            note([its] if (its := watch.spike(steps)) else [], step)
        if step % (total // count) == 0:
            evals.append({"step": step, "loss": held(step / total) * (1 + pick.gauss(0, noise[0]))})
            note(watch.look(steps, evals, total), step)
    return found


MUST = [
    ("healthy", {"improving"}), ("slow and steady", {"improving", "unfinished"}), ("soon flat", {"flat"}),
    ("flat while training falls", {"flat"}), ("far too many epochs", {"memorising"}), ("a little too many epochs", {"memorising"}),
    ("hardly moves", {"rate_too_low"}), ("diverges", {"rate_too_high"}), ("worse from the start", {"rate_too_high"}),
]
# What a curve may say besides.
MAY = {"healthy": {"unfinished"}}


@pytest.mark.parametrize("total, count", [(100, 10), (30, 10), (200, 20)])
@pytest.mark.parametrize("name, rules", MUST, ids=[name for name, _ in MUST])
def test_each_curve_brings_its_sentence_and_no_other(name, rules, total, count):
    for noise, sure in ((QUIET, 1.0), (USUAL, 0.8)):
        runs = [said_of(name, noise, seed, total, count).keys() for seed in range(12)]
        assert sum(rules <= its for its in runs) >= sure * len(runs), noise
        others = [its - rules - MAY.get(name, set()) for its in runs]
        assert sum(map(bool, others)) <= (1 if noise == USUAL else 0), (noise, others)


@pytest.mark.parametrize("name", ["soon flat", "flat while training falls", "other rows than these", "worse and back"])
def test_noise_is_no_memorising_and_no_high_learning_rate(name):
    for total, count in ((100, 10), (1000, 20)):
        runs = [said_of(name, ROUGH, seed, total, count).keys() & {"memorising", "rate_too_high", "spike"} for seed in range(10)]
        assert sum(map(bool, runs)) <= 1, runs


def test_a_run_that_broke_is_not_called_flat():
    for seed in range(5):
        assert said_of("broken for good", USUAL, seed).keys() - {"spike"} == {"rate_too_high"}


def test_memorising_is_said_before_patience_ends_the_run_and_names_the_best_step():
    """Patience is four evaluations by default."""
    held, trained = CURVES["far too many epochs"]
    steps = [{"step": n, "loss": trained(n / 100), "learning_rate": 2e-4} for n in range(1, 51)]
    evals = [{"step": n, "loss": held(n / 100)} for n in range(0, 51, 10)]
    [said] = watch.look(steps, evals, 100)
    assert said.rule == "memorising" and said.step == 20
    assert "getting worse since step 20" in said.message and "while the training loss falls: it is memorising" in said.message
    assert "The version of step 20 is kept" in said.message
    steep = [{"step": 10 * n, "loss": loss} for n, loss in enumerate((2.5, 1.6, 1.5, 2.0, 2.5, 3.0))]
    assert watch.look(steps[:40], steep[:-1], 100) == []  # two evaluations are not enough to be sure, however bad they are
    assert [its.rule for its in watch.look(steps, steep, 100)] == ["memorising"]


def test_a_spike_is_said_at_its_step_and_rough_losses_are_none():
    pick = random.Random(0)

    def steps(count: int, rough: float) -> list[dict]:
        return [{"step": n, "loss": 2 * (1 + pick.gauss(0, rough)), "learning_rate": 2e-4} for n in range(1, count + 1)]

    for rough in (0.0, 0.05, 0.2):
        its = steps(30, rough)
        assert watch.spike(its) is None
        its.append({"step": 31, "loss": 9.0, "learning_rate": 2e-4})
        assert watch.spike(its).step == 31 and re.search(r"The loss spiked at step 31: 9.00, after (2.0|1.9|1.8)", watch.spike(its).message)
        assert watch.spike([*its, *steps(1, 0.0)]) is None  # it is over
    assert watch.spike([{"step": n, "loss": loss, "learning_rate": 1} for n, loss in enumerate([2.0] * 8 + [9.0])]) is None  # too early to know
    small = [{"step": n, "loss": 0.01, "learning_rate": 1} for n in range(20)] + [{"step": 20, "loss": 0.06, "learning_rate": 1}]
    assert watch.spike(small) is None  # six times nothing
    assert sum(watch.spike(its[: n + 1]) is not None for its in [steps(2000, 0.2)] for n in range(2000)) <= 2


def test_many_spikes_are_a_learning_rate_that_is_too_high():
    steps = [{"step": n, "loss": 9.0 if n in (40, 65, 90) else 2.0 + 0.01 * (n % 3), "learning_rate": 3e-3} for n in range(1, 96)]
    evals = [{"step": 0, "loss": 2.5}, {"step": 50, "loss": 2.0}]
    assert [its.rule for its in watch.look(steps[:70], evals, 200)] == []
    [said] = watch.look(steps, evals, 200)
    assert said.rule == "rate_too_high" and "spiked 3 times by step 95" in said.message and "3.0e-03" in said.message


def test_a_high_rate_is_never_called_too_low():
    assert said_of("hardly moves", rate=1e-5).keys() == {"rate_too_low"}
    assert "rate_too_low" not in said_of("hardly moves", rate=2e-3)


def test_nothing_is_said_of_what_is_not_there_yet():
    assert watch.look([], [], 100) == [] == watch.look([], [{"step": 0, "loss": 2.5}], 100)
    one = [{"step": 1, "loss": 2.0, "learning_rate": 1e-4}]
    assert watch.look(one, [{"step": 0, "loss": 2.5}, {"step": 1, "loss": 2.4}], 1) == []
    bad = [{"step": n, "loss": float("nan"), "learning_rate": 1e-4} for n in range(50)]
    assert watch.look(bad, [{"step": n, "loss": float("nan")} for n in range(0, 50, 10)], 50) == []


def test_a_step_done_again_counts_as_it_went_last():
    its = [{"kind": "step", "step": n, "loss": loss} for n, loss in ((1, 1.0), (3, 3.0), (2, 2.0), (3, 4.0))] + [{"kind": "note", "message": "a"}]
    assert [(event["step"], event["loss"]) for event in logs.latest(its, "step")] == [(1, 1.0), (2, 2.0), (3, 4.0)]
    its = [{"kind": "sample", "step": step, "number": number} for step in (5, 0, 5) for number in (1, 0)]
    assert [(event["step"], event["number"]) for event in logs.latest(its, "sample")] == [(0, 0), (0, 1), (5, 0), (5, 1)]


# In a run ---------------------------------------------------------------------------------------------------------


def test_a_run_says_what_it_sees_once_even_when_it_is_killed_and_resumed(base, home, quick):
    from tests.test_train import Killed, at_step, killed
    from tuner import report, train

    now, evaluate, measure = [0], train.Tuning.evaluate, report.measure

    def remember(trainer, *rest, **more):
        now[0] = trainer.state.global_step
        return evaluate(trainer, *rest, **more)

    quick.setattr(train.Tuning, "evaluate", remember)
    # The best at step 4 of 16; the training loss falls, or so it is said.
    quick.setattr(report, "measure", lambda *rest, **more: {**measure(*rest, **more), "loss": 2 + abs(now[0] - 4) / 10})
    quick.setattr(watch, "_training_change", lambda *_: -0.5)

    def watched(run) -> list[tuple]:
        return [(event["rule"], event["step"]) for event in events(run, "note") if "rule" in event]

    settings = dict(epochs=4.0, evaluations=8, patience=0)
    whole = small_run(base, **settings)
    train.train(whole)
    assert watched(whole) == [("memorising", 4)] and "The version of step 4 is kept" in notes(whole)
    run = small_run(base, **settings)
    for step in (9, 11, 13):  # it is said at step 10
        with quick.context() as here:
            at_step(here, step, killed)
            with pytest.raises(Killed):
                train.train(run)
    train.train(run)
    assert watched(run) == watched(whole) and run.read("report")["best_step"] == 4


@pytest.mark.parametrize("rows, epochs, held, wanted", [(400, 1.2, 60, 8), (400, 3, 40, 10), (5000, 1, 500, 20), (100_000, 1, 1000, 10), (90, 3, 30, 10), (40, 30, 10, 10), (64, 1, 30, 8), (40, 1, 20, 3)])
def test_evaluations_take_at_most_a_tenth_of_the_run(rows, epochs, held, wanted):
    """In tokens, a pass forward being a third of a step; with the one before the first step."""
    pick = random.Random(rows)
    lengths = [pick.randint(20, 400) for _ in range(held)]
    tokens = rows * epochs * 200
    steps = math.ceil(rows * epochs / 8)
    at, chosen = plan.evaluations(steps, tokens, lengths, wanted, 0)
    assert 3 <= len(at) <= wanted and at[-1] == steps and len(set(chosen)) == len(chosen)
    assert len(chosen) >= min(held, plan.FEWEST_ROWS) or len(at) == 3 and len(chosen) >= rows * epochs // 32, "few rows only where few are learned from"
    taken = (len(at) + 1) * sum(lengths[index] for index in chosen) / 3
    assert taken <= 0.1 * tokens
    assert plan.evaluations(steps, tokens, lengths, wanted, 0) == (at, chosen)
    often, each = plan.how_often(steps, tokens, held, sum(lengths), wanted)  # what the quote goes by
    assert (often + 1) * each * sum(lengths) / held / 3 <= 0.1 * tokens
    if rows >= 400 and wanted >= 10 and steps > 100:
        assert len(at) >= 10


@pytest.mark.parametrize("patience", [1, 2, 4, 9, 10, 30])
@pytest.mark.parametrize("rows, epochs, held", [(400, 3, 60), (5000, 1, 500), (100_000, 1, 1000), (60, 8, 30)])
def test_evaluations_take_at_most_a_tenth_also_of_a_run_that_patience_ends(rows, epochs, held, patience):
    """As soon as it can: no evaluation was better than the one before the first step."""
    pick = random.Random(rows)
    lengths = [pick.randint(20, 400) for _ in range(held)]
    tokens, steps = rows * epochs * 200, math.ceil(rows * epochs / 8)
    at, chosen = plan.evaluations(steps, tokens, lengths, 10, 0, patience)
    each = sum(lengths[index] for index in chosen) / 3
    for ended in range(min(patience, len(at)), len(at) + 1):
        assert (ended + 1) * each <= 0.1 * tokens * at[ended - 1] / steps * 1.02, "steps are whole, so a little of it may be missing"
    assert len(at) >= 3 and len(chosen) <= len(plan.evaluations(steps, tokens, lengths, 10, 0)[1])
    often, rows_each = plan.how_often(steps, tokens, held, sum(lengths), 10, patience)
    assert (often + 1) * rows_each * sum(lengths) / held / 3 <= 0.1 * tokens
