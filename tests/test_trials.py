"""What short trainings say before a run: which learning rate, and whether the data is enough; and that they leave nothing else."""

import math
import random
import re

import numpy as np
import pytest

from tuner import data, enough, finder, quote, sizes, trials
from tuner import run as runs
from tuner.errors import UserError
from tuner.home import write_json
from tuner.recipe import Recipe

# The finder ---------------------------------------------------------------------------------------------------------


def swept(best: float, start: float = 2.5, gain: float = 0.8, rough: float = 0.0, seed: int = 0) -> list[tuple[float, float]]:
    """A sweep over a base that learns up to a rate and breaks above four times that."""
    pick = random.Random(seed)
    points, loss = [(0.0, start)], start
    for rate in finder.rates():
        loss -= 0.1 * gain * min(1.0, rate / best) * (loss - (start - gain)) / gain
        broken = max(0.0, math.log(rate / (4 * best))) ** 2
        points.append((rate, (loss + broken) * (1 + pick.gauss(0, rough))))
        if finder.is_over(points):
            break
    return points


@pytest.mark.parametrize("best", [1e-5, 1e-4, 1e-3])
def test_the_suggested_rate_is_near_the_one_that_learns_best(best):
    for rough in (0.0, 0.002):
        found = [finder.suggest(swept(best, rough=rough, seed=seed)) for seed in range(8)]
        assert all(best / 4 <= its.learning_rate <= 4 * best for its in found), [its.learning_rate for its in found]
        assert "e-" in found[0].reason and "It fell from 2.5" in found[0].reason.replace("2.49", "2.5").replace("2.50", "2.5")
        assert found[0].learning_rate == float(f"{found[0].learning_rate:.1g}")


def test_a_sweep_ends_where_the_loss_runs_away_and_its_bad_end_is_no_suggestion():
    points = swept(1e-4)
    assert len(points) < finder.STEPS + 1 and finder.is_over(points) and not finder.is_over(points[:-1])
    assert finder.is_over([(0.0, 2.0), (1e-6, float("nan"))])
    assert finder.suggest([*points, (1.0, float("nan"))]) == finder.suggest(points)


def test_a_loss_that_falls_ever_faster_until_it_breaks_leaves_room():
    """Where it falls fastest is then where it breaks one step later."""
    rates = finder.rates()
    points = [(0.0, 2.5)] + [(rate, 2.5 - 0.8 * (rate / 1e-3) ** 0.5 if rate <= 1e-3 else 4.0) for rate in rates]
    last = max(rate for rate in rates if rate <= 1e-3)
    said = finder.suggest(points)
    assert last / 5 < said.learning_rate < last / 2 and "a third of that leaves room" in said.reason


def test_where_nothing_falls_no_rate_is_suggested():
    still = [(rate, 2.5 + 0.001 * (index % 3)) for index, rate in enumerate([0.0, *finder.rates()])]
    rising = [(rate, 2.5 + 0.01 * index) for index, rate in enumerate([0.0, *finder.rates()])]
    for points in (still, rising):
        said = finder.suggest(points)
        assert said.learning_rate is None and "speaks for none" in said.reason
    assert finder.suggest(still[:5]).learning_rate is None and "Only 5 learning rates" in finder.suggest(still[:5]).reason


def test_the_rates_rise_evenly_from_the_lowest_to_the_highest():
    rates = finder.rates()
    assert len(rates) == finder.STEPS and rates[0] == finder.LOWEST and rates[-1] == pytest.approx(finder.HIGHEST)
    assert np.allclose(np.diff(np.log(rates)), np.log(rates[1] / rates[0]))


# Enough data? -------------------------------------------------------------------------------------------------------

ROWS = [100, 200, 400, 800]


def law(a: float, b: float, c: float, rough: float = 0.0, seed: int = 0) -> list[tuple[int, float]]:
    pick = random.Random(seed)
    return [(n, (a + b * n**-c) * (1 + pick.gauss(0, rough))) for n in ROWS]


@pytest.mark.parametrize("a, b, c", [(1.2, 3.0, 0.3), (0.5, 3.0, 0.15), (1.5, 20.0, 0.8), (1.8, 0.0, 0.3)])
def test_what_more_rows_bring_lies_within_the_bounds(a, b, c):
    """Nine times of ten it should; the prior is wide, so somewhat more often."""
    inside = 0
    for seed in range(30):
        for its in enough.forecast(law(a, b, c, enough.NOISE, seed), [1600, 3200]):
            inside += its.low <= a + b * its.rows**-c <= its.high
            assert its.low <= its.loss <= its.high
    assert inside >= 0.8 * 60


def test_bounds_widen_with_distance_and_with_noise():
    near, far = enough.forecast(law(1.2, 3.0, 0.3), [1600, 6400])
    assert far.high - far.low > near.high - near.low > 0
    [smooth] = enough.forecast(law(1.2, 3.0, 0.3), [1600])
    [rough] = enough.forecast(law(1.2, 3.0, 0.3, 0.03, 1), [1600])
    assert rough.high - rough.low > smooth.high - smooth.low
    assert enough.forecast(law(1.2, 3.0, 0.3), [1600]) == [smooth]  # the same points say the same


def test_it_says_whether_more_rows_help():
    assert "More rows would help: twice as many likely lower the loss by" in enough.in_words(law(0.5, 4.0, 0.3), 800)
    said = enough.in_words(law(1.8, 0.0, 0.3), 800)
    assert said.startswith("That is enough") and re.search(r"1,600 rows would likely bring 1\.(79|80)", said) and "9 times of 10 between" in said
    assert "made with 800 of the 5,000 rows" in enough.in_words(law(1.8, 0.0, 0.3), 5000)
    assert "too few" in enough.in_words([(8, 2.0)], 8)


def test_fractions_are_what_their_steps_can_read():
    assert enough.sizes(420, 8, 63) == [53, 105, 210, 420]
    assert enough.sizes(100_000, 8, 120) == [120, 240, 480, 960]
    assert enough.sizes(40, 8, 120) == [10, 20, 40] and enough.sizes(5, 8, 10) == [5]


# In a folder --------------------------------------------------------------------------------------------------------

RECORDS = [{"prompt": f"Where is {n}?", "completion": f"It is at {n * 7 % 20} or so."} for n in range(60)]


def new_trial(kind: str, base=None, owner: str = "local", **settings) -> trials.Trial:
    recipe = Recipe(**{
        "base_model": "test/small", "learning_rate": 5e-3, "lora_rank": 8, "batch_size": 4, "epochs": 1.0, "held_out_share": 0.2, "max_tokens": 128, **settings,
    })
    trial = trials.create(owner, kind, recipe, data.keep(owner, "Numbers", RECORDS, {"kind": "paste"}))
    if base:
        from tests.small import base_entry

        write_json(trial.folder / "base.json", base_entry(base))
    return trial


def test_a_trial_is_its_owner_s_alone_and_no_run(home):
    trial = new_trial(trials.RATE, owner="anna")
    assert runs.mine("anna", trials.Trial) == [trial] == [runs.find("anna", trial.id, trials.Trial)] and runs.mine("anna") == [] == runs.mine("bert", trials.Trial)
    assert runs.from_folder(trial.folder, trials.Trial) == trial and trial.state() == "new"
    for owner, trial_id in (("bert", trial.id), ("anna", "../../runs"), ("anna", "")):
        with pytest.raises(UserError, match="is not among yours|is not known here"):
            runs.find(owner, trial_id, trials.Trial)
    with pytest.raises(UserError, match="There is no trial 'other'"):
        new_trial("other")


def test_one_trial_at_a_time_and_old_ones_go(home):
    runs.claim(new_trial(trials.RATE))
    with pytest.raises(UserError, match="“Learning-rate finder” is still going"):
        new_trial(trials.ENOUGH)
    write_json(runs.mine("local", trials.Trial)[0].folder / "done", {"state": "stopped"})
    for _ in range(trials.KEPT + 2):
        new_trial(trials.ENOUGH)
    assert len(runs.mine("local", trials.Trial)) == trials.KEPT


def test_what_a_trial_takes_is_told_and_grows_with_it(home):
    its = sizes.of_config({
        "model_type": "llama", "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
        "intermediate_size": 1536, "vocab_size": 49152, "tie_word_embeddings": True,
    })
    rows = quote.Rows([60] * 420, 12_000, [60] * 60)
    rate, more = (trials.seconds(kind, Recipe(epochs=1.2), its, rows) for kind in (trials.RATE, trials.ENOUGH))
    assert 5 < rate < more < 6 * rate
    assert trials.seconds(trials.RATE, Recipe(batch_size=16), its, rows) > rate
    assert trials.steps_of(trials.ENOUGH, Recipe(epochs=1.2), 420) == 64 and trials.steps_of(trials.ENOUGH, Recipe(epochs=100), 420) == enough.MOST_STEPS


def test_a_sweep_of_a_real_model(base, home, quick):
    from tuner import trying

    trial = new_trial(trials.RATE, base)
    runs.claim(trial)
    assert trying.main(trial) == 0, trial.error()
    points = trials.points(trial)
    assert trial.state() == "done" and points[0][0] == 0.0 and 8 < len(points) <= finder.STEPS + 1
    assert [rate for rate, _ in points[1:]] == finder.rates()[: len(points) - 1]
    told = trials.result(trial)
    assert min(loss for _, loss in points) < points[0][1] and told["words"]
    assert 1e-4 <= told["settings"]["learning_rate"] <= 3e-2  # this random model learns at about 5e-3
    assert not trial.adapter_dir.exists() and not (trial.folder / "checkpoints").exists()


def test_fractions_of_a_real_dataset(base, home, quick):
    from tuner import trying

    trial = new_trial(trials.ENOUGH, base, epochs=2.0)
    assert trying.main(trial) == 0, trial.error()
    points = trials.points(trial)
    assert [size for size, _ in points] == enough.sizes(48, 4, 24) == [12, 24, 48]
    assert points[-1][1] < points[0][1]  # more rows, a lower loss
    told = trials.result(trial)
    assert [one["rows"] for one in told["forecast"]] == [12, 24, 48, 96, 192] and "rows would likely bring" in told["words"]


def test_each_fraction_begins_anew(base, home, quick):
    """Set back, the adapter and its optimiser are as they were: the same steps give the same loss again."""
    from tuner import trying

    learner = trying.Learner(new_trial(trials.ENOUGH, base))
    found = []
    for _ in range(2):
        learner.set_back()
        begun = learner.loss(learner.held)
        for _ in range(3):
            learner.step(learner.rows[:4], 5e-3)
        found.append((begun, learner.loss(learner.held)))
    assert found[0] == found[1] and found[0][1] < found[0][0]


def test_a_trial_is_cancelled_at_its_next_step(base, home, quick):
    from tuner import trying

    trial, step = new_trial(trials.RATE, base), trying.Learner.step
    runs.claim(trial)

    def then_stop(learner, *rest):
        step(learner, *rest)
        if len(trials.points(trial)) == 3:
            trial.ask_stop()

    quick.setattr(trying.Learner, "step", then_stop)
    assert trying.main(trial) == 0 and trial.state() == "stopped" and len(trials.points(trial)) == 4


def test_a_trial_that_breaks_says_so_in_words(base, home, quick):
    from tuner import report, trying

    quick.setattr(report, "measure", lambda *_: {"loss": float("nan")})
    trial = new_trial(trials.RATE, base)
    assert trying.main(trial) == 1 and trial.state() == "failed"
    assert trial.error().startswith("Before the first step the held-out loss is not a number.")
