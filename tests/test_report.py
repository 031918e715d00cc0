"""Before and after: figures against a plain reference, the same again from the folder, and what a short budget leaves."""

import json
import math
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.small_run import small_run
from tests.test_fast import BATCH, LEARNED, PLAIN, tuned
from tuner import answer, batching, cli, encode, fast, figures, probe, report, side_by_side, survey, tasks
from tuner import plan as plans
from tuner import run as runs
from tuner.home import write_json
from tuner.recipe import Recipe


@pytest.fixture
def run(trained, monkeypatch, quick):
    monkeypatch.setenv("TUNER_HOME", str(trained))
    return runs.mine("local")[0]


@pytest.fixture
def made(run):
    return run.read("report")


# Losses and hits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("switches", [fast.Fast(), PLAIN, fast.Fast(blocks=False), fast.Fast(slices=False)], ids=str)
def test_hits_are_the_argmax_of_all_logits(base, switches, monkeypatch):
    """On every path; the losses are those that training takes."""
    from tuner import loss

    monkeypatch.setitem(loss.SLICE_BYTES, "cpu", 8000)  # several slices
    model = tuned(base).eval()
    path = fast.Path(model, 0, switches)
    with torch.no_grad():
        ids, mask, labels = batching.pad(BATCH, 0)
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1][labels[:, 1:] != encode.IGNORE].float()
    places, targets, _ = batching.learned(BATCH)
    targets = targets.clone()
    targets[::3] = logits.argmax(-1)[::3]  # a random model never hits by itself
    batch = {**BATCH, "labels": BATCH["labels"].clone()}
    batch["labels"][places + 1] = targets
    losses, owners, hits = path.judge(batch)
    assert losses.shape == hits.shape == (LEARNED,) and not losses.requires_grad and LEARNED / 3 <= hits.sum() < LEARNED / 2
    with torch.no_grad():
        again, same_owners = path.losses(batch)
    assert torch.equal(losses, again) and torch.equal(owners, same_owners)
    assert torch.equal(hits, logits.argmax(-1) == targets) and torch.allclose(losses, F.cross_entropy(logits, targets, reduction="none"), atol=1e-4)


def test_measure_counts_hits_by_row(base):
    rows = [encode.Encoded(list(range(20, 30)), [encode.IGNORE] * 5 + list(range(25, 30)), "", "", [], []) for _ in range(3)]

    class Told(fast.Path):
        def __init__(self, model):
            self.model = model

        def judge(self, batch):
            _, _, owners = batching.learned(batch)
            return torch.ones(15), owners, torch.tensor([True] * 7 + [False] * 8)

    found = report.measure(Told(torch.nn.Linear(1, 1)), rows, hits=True)
    assert found["row_hits"] == [5, 2, 0] and found["token_accuracy"] == pytest.approx(7 / 15) and found["row_tokens"] == [5, 5, 5]


# The figures ------------------------------------------------------------------------------------------------------


def test_the_figures_are_those_of_a_plain_computation(run, made):
    """Loss, accuracy and the probe by the model's own padded forward, one row at a time, no code of the report's."""
    model, tokenizer, _ = report.load_tuned(run)
    held = survey.of(run.rows("held_out"), tokenizer, run.recipe).encoded

    @torch.no_grad()
    def plain(row):
        logits = model(input_ids=torch.tensor([row.ids])).logits[0, :-1].float()
        labels = torch.tensor(row.labels[1:])
        kept = labels != encode.IGNORE
        return F.cross_entropy(logits[kept], labels[kept], reduction="none").double(), (logits.argmax(-1) == labels)[kept]

    def both(rows):
        after = [plain(row) for row in rows]
        with model.disable_adapter():
            return [plain(row) for row in rows], after

    for name, its in zip(("base", "tuned"), both(held)):
        losses, hits = torch.cat([loss for loss, _ in its]), torch.cat([hit for _, hit in its])
        assert made[name]["loss"] == pytest.approx(float(losses.mean()), rel=0.01)
        assert made[name]["perplexity"] == pytest.approx(math.exp(made[name]["loss"]))
        assert made[name]["token_accuracy"] == pytest.approx(float(hits.double().mean()), abs=0.02)
    assert made["tuned"]["loss"] < made["base"]["loss"] and made["held_out_tokens"] == len(losses)
    assert made["difference"]["loss"]["mean"] == pytest.approx(made["tuned"]["loss"] - made["base"]["loss"])
    assert made["difference"]["token_accuracy"]["mean"] == pytest.approx(made["tuned"]["token_accuracy"] - made["base"]["token_accuracy"])
    assert made["difference"]["loss"]["low"] <= made["difference"]["loss"]["mean"] <= made["difference"]["loss"]["high"]
    chosen = probe.choose(1.0, 0)
    rows = probe.rows(chosen, tokenizer)
    means = [[float(loss.mean()) for loss, _ in its] for its in both(rows)]
    wanted = probe.compare(chosen, *means, [row.learned for row in rows], run.recipe.seed)
    assert made["probe"]["texts"]["tuned"] == pytest.approx(wanted["texts"]["tuned"], rel=0.01)
    assert made["probe"]["texts"]["base"] == pytest.approx(wanted["texts"]["base"], rel=0.01)
    assert made["probe"]["items"] == len(chosen)


def test_the_answers_are_scored_against_the_rows_own(run, made):
    model, tokenizer, _ = report.load_tuned(run)
    told, held = made["answers"], {row["n"]: row for row in run.rows("held_out")}
    assert told["asked"] == told["of"] == told["made"] == len(held)
    for its in made["examples"]:
        row = held[its["row"]]
        assert its["prompt"] == row["messages"][-2]["content"] and its["wanted"] == row["messages"][-1]["content"]
    shown = {its["row"]: its for its in made["examples"]}
    assert len(shown) == len(held) == 4  # so that the examples are all that was answered
    short = [its for its in shown.values() if len(figures.words(its["wanted"])) <= figures.SHORT_WORDS]
    for who in ("base", "tuned"):
        assert told[who]["stopped"] == sum(its[who]["ended"] for its in shown.values()) / 4
        assert told["short"][who]["f1"] == pytest.approx(np.mean([figures.token_f1(its[who]["text"], its["wanted"]) for its in short]))
        assert told["short"][who]["exact_match"] == np.mean([figures.exact_match(its[who]["text"], its["wanted"]) for its in short])
    task, stops = tasks.get("chat"), encode.stop_ids(tokenizer, model.generation_config.eos_token_id)
    its = made["examples"][0]
    [question] = task.questions([held[its["row"]]], run.recipe)
    from tuner import answer

    text, why = answer.answer(model, tokenizer, task.prompt_ids(question, tokenizer, run.recipe), stops, answer.Sampling(told["paces"]["short" if its in short else "others"]["most_tokens"]))
    assert (text, why == "stop") == (its["tuned"]["text"], its["tuned"]["ended"])


def test_the_rows_that_changed_most_come_first(made):
    improved, worsened = made["rows"]["improved"], made["rows"]["worsened"]
    change = lambda its: its["tuned"]["loss"] - its["base"]["loss"]  # noqa: E731
    assert improved and all(change(its) < 0 for its in improved) and all(change(its) > 0 for its in worsened)
    assert [change(its) for its in improved] == sorted(change(its) for its in improved)
    assert made["rows_better"] == len(improved) and made["rows_worse"] == len(worsened)  # four rows in all


def test_pieces_of_one_row_count_as_one_row():
    base = {"row_losses": [1.0, 3.0, 2.0], "row_tokens": [1, 3, 2], "row_hits": [1, 0, 2]}
    after = {"row_losses": [0.5, 1.0, 4.0], "row_tokens": [1, 3, 2], "row_hits": [1, 3, 0]}
    rows = report._by_row([4, 4, 7], base, after)
    assert rows["place"].tolist() == [4, 7] and rows["tokens"].tolist() == [4, 2]
    assert rows["base"].tolist() == [2.5, 2.0] and rows["tuned"].tolist() == [0.875, 4.0]
    assert rows["base_hits"].tolist() == [1, 2] and rows["tuned_hits"].tolist() == [4, 0]


# Again, and in little time ----------------------------------------------------------------------------------------


def test_made_again_it_is_the_same_bit_for_bit(run, made, capsys):
    before = (run.folder / "report.json").read_bytes()
    assert cli.main(["report", run.id, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == made
    assert (run.folder / "report.json").read_bytes() == before
    assert cli.main(["report", str(run.folder)]) == 0
    out = capsys.readouterr().out
    for its in map(figures.shown, figures.measures(made)):
        assert f"{its['base']} -> " in out and its["change"] in out
    assert made["says"] and all(words in out for words in made["says"])


def test_ten_rows_are_shown_on_each_side(many):
    """Half of forty rows are made better and half worse."""
    run, made = many[0], report.make(*many)
    assert made["rows_better"] + made["rows_worse"] == 40 and max(made["rows_better"], made["rows_worse"]) > 10
    assert [len(made["rows"][side]) for side in ("improved", "worsened")] == [min(10, made["rows_better"]), min(10, made["rows_worse"])]
    assert not any("memorising" in words for words in made["says"])
    for step in (1, 7):  # of the kept version, and of another
        run.log("note", rule="memorising", step=step, message=f"It is memorising since step {step}.")
    run.log("eval", step=3, loss=9.0, best=False)
    says = report.make(*many)["says"]
    assert "It is memorising since step 1." in says and not any("since step 7" in words for words in says)


def of_a_run(base, completions: list[str]) -> tuple:
    """A run with half of these rows held out, and what its report needs."""
    from tuner import train

    records = [{"prompt": f"Count {n}.", "completion": its} for n, its in enumerate(completions)]
    run = small_run(base, records=records, held_out_share=0.5, max_steps=1)
    runs.claim(run)
    assert train.main(run) == 0
    model, tokenizer, plan = report.load_tuned(run)
    rows = run.rows("held_out")
    return run, plan, model, tokenizer, rows, survey.of(rows, tokenizer, run.recipe), 1


@pytest.fixture
def many(base, home, quick):
    """With 40 rows held out."""
    return of_a_run(base, [f"{n} {n + 1}" for n in range(80)])


def test_a_short_budget_leaves_fewer_answers_the_same_ones_and_says_so(many, monkeypatch):
    run, whole = many[0], report.make(*many)
    assert whole["answers"]["asked"] == whole["answers"]["of"] == 40 and not any("were answered" in its for its in whole["says"])
    none = report.make(*many, seconds=0)
    assert none["answers"]["asked"] == 0 and none["answers"]["short"] is None and none["probe"]["share"] == plans.LEAST_PROBE
    assert all(its["tuned"]["text"] is None for its in none["rows"]["improved"])
    assert any("0 of 40 held-out rows were answered" in its for its in none["says"])

    class Sixteen(side_by_side.InTime):
        def _may(self, *its):
            return self.begun < 16 and super()._may(*its)

    with monkeypatch.context() as patch:
        patch.setattr(side_by_side, "InTime", Sixteen)
        some = report.make(*many)
    assert some["answers"]["made"] == 16 and some["examples"] == whole["examples"] and some["answers"]["short"]["of"] == 40
    assert report.make(*many, repeat=some) == some
    write_json(run.folder / "report.json", none)
    assert report.make(*many, repeat=figures.of(run)) == none


@pytest.mark.parametrize("time_for", [0, 16, 29, 40])
def test_fewer_rows_are_measured_where_all_would_take_too_long_the_seeds_first_and_that_is_said(many, monkeypatch, time_for):
    run, held = many[0], many[5]
    whole, now, plain = report.make(*many), [0.0], report.measure
    order = list(range(40))
    random.Random(f"{run.recipe.seed}/measured").shuffle(order)

    def slow(path, some, *more, **ways):
        now[0] += sum(len(row.ids) for row in some)  # a second a token
        return plain(path, some, *more, **ways)

    tokens = [len(held.encoded[index].ids) for index in order]
    asked, least = (sum(len(row.ids) for row in probe.rows(its, many[3])) for its in (list(probe.items()), probe.choose(plans.LEAST_PROBE, run.recipe.seed)))
    with monkeypatch.context() as patch:
        patch.setattr(report, "time", SimpleNamespace(monotonic=lambda: now[0]))
        patch.setattr(report, "measure", slow)
        seconds = 2 * sum(tokens[:time_for]) + 2 * plans.LEAST_PROBE * asked + 0.5
        some = report.make(*many, seconds=seconds)
    count = max(16, time_for)
    assert (some["held_out_rows"], some["held_out_of"], some["probe"]["share"], some["answers"]["made"]) == (count, 40, plans.LEAST_PROBE, 0)
    assert now[0] == 2 * sum(tokens[:count]) + 2 * least  # the time it had, but that the probe is drawn by items and not by tokens
    alone = report.measure(fast.Path(many[2], many[3].pad_token_id, many[1]["fast"]), [held.encoded[index] for index in order[:count]], hits=True)
    assert some["tuned"]["loss"] == pytest.approx(alone["loss"], rel=1e-3) and some["tuned"]["token_accuracy"] == pytest.approx(alone["token_accuracy"])
    assert some["held_out_tokens"] == alone["tokens"] and some["rows_better"] + some["rows_worse"] <= count
    assert any(f"Measured on {count} of 40 held-out rows, drawn with the seed" in its for its in some["says"]) is (count < 40)
    assert any("the losses are those of all" in its for its in some["says"]) is (count == 40)
    assert report.make(*many, repeat=some) == some
    if count == 40:
        assert [some[who] for who in ("base", "tuned", "difference")] == [whole[who] for who in ("base", "tuned", "difference")]


def test_all_rows_can_be_measured_later_whatever_time_it_takes(many, capsys):
    """And from then on these are the numbers, also when it is made again."""
    run, whole = many[0], report.make(*many)
    short = report.make(*many, seconds=0)
    assert (short["held_out_rows"], short["answers"]["asked"], short["probe"]["share"]) == (16, 0, plans.LEAST_PROBE)
    write_json(run.folder / "report.json", short)
    for more, wanted in (((), short), (("--all",), whole), ((), whole)):
        assert cli.main(["report", run.id, "--json", *more]) == 0
        assert json.loads(capsys.readouterr().out) == wanted == run.read("report")
    assert whole["held_out_rows"] == 40


def test_a_step_that_stalls_is_the_last_when_the_time_is_over(many, monkeypatch):
    whole, now, calls = report.make(*many), [0.0], []
    step, plain = answer.advance, report._at_once

    def tick() -> float:
        now[0] += 0.001
        return now[0]

    def stalled(makings):
        calls.append(1)
        now[0] += 45.0 if len(calls) > 40 else 0.0  # when some have ended
        return step(makings)

    with monkeypatch.context() as patch:
        patch.setattr(report, "_at_once", lambda *its: min(8, plain(*its)))
        patch.setattr(report, "time", SimpleNamespace(monotonic=tick))
        patch.setattr(side_by_side, "time", SimpleNamespace(monotonic=tick))
        patch.setattr(answer, "advance", stalled)
        some = report.make(*many, seconds=60)
    assert 0 < some["answers"]["made"] < some["answers"]["paces"]["short"]["begun"] < whole["answers"]["made"]
    assert some["answers"]["paces"]["short"]["steps"] == len(calls)
    assert now[0] < 60 + 45 + 1  # one step more than the time it had
    assert report.make(*many, repeat=some) == some


@pytest.fixture
def mixed(base, home, quick):
    """With 40 rows held out, half of which have long answers."""
    quick.setattr(plans, "MOST_ANSWER_TOKENS", 96)
    long = " ".join(f"the cat sat on mat {n}" for n in range(6))
    return of_a_run(base, [f"{n} {n + 1}" if n % 2 else f"{n} {long}" for n in range(80)])


def test_rows_with_short_answers_come_first_and_where_time_is_short_the_others_are_cut(mixed, monkeypatch):
    """Exact match and token F1 are over all short ones then, and the rows shown side by side have answers."""
    whole = report.make(*mixed)
    told = whole["answers"]
    lengths = {kind: its["most_tokens"] for kind, its in told["paces"].items()}
    assert lengths["others"] > 2 * lengths["short"] and told["asked"] == told["of"] == 40 and not told["only_short"]
    now, step = [0.0], answer.advance

    def tick() -> float:
        now[0] += 1e-6
        return now[0]

    def slow(makings):
        now[0] += 0.1 + 0.02 * len(makings)
        return step(makings)

    def within(seconds: float) -> dict:
        now[0] = 0.0
        with monkeypatch.context() as patch:
            for its in (report, side_by_side):
                patch.setattr(its, "time", SimpleNamespace(monotonic=tick))
            patch.setattr(answer, "advance", slow)
            # Losses and the probe take no time here, so that a pass forward would be thought to take none.
            patch.setattr(side_by_side.InTime, "__init__", lambda self, at_once, _, left, slower, plain=side_by_side.InTime.__init__: plain(self, at_once, plans.ANSWER_TOKENS / 0.02, left, slower))
            return report.make(*mixed, seconds=seconds)

    short_s = 1.2 * lengths["short"] * (0.1 + 0.02 * 40)
    made = within(2 * short_s)
    its = made["answers"]
    assert now[0] <= 2 * short_s and its["short"]["rows"] == its["short"]["of"] == its["asked"] == told["short"]["rows"] and its["only_short"]
    assert its["short"] == told["short"], "the same whatever time there was"
    assert its["paces"]["others"]["is_cut"] and plans.FEWEST_ANSWER_TOKENS <= its["paces"]["others"]["most_tokens"] < lengths["others"]
    shown = [row for row in made["rows"]["improved"] + made["rows"]["worsened"] if len(figures.words(row["wanted"])) > figures.SHORT_WORDS]
    assert shown and all(row["tuned"]["text"] is not None for row in shown)
    assert all(row["tuned"]["cut"] is not row["tuned"]["ended"] for row in shown)
    assert any("answered in full, those whose own answer is short" in said for said in made["says"])
    assert report.make(*mixed, repeat=made) == made
    with monkeypatch.context() as patch:  # few at once, and none of the first of the seed's order is left for the rows shown
        patch.setattr(report, "_at_once", lambda *_: 8)
        patch.setattr(report, "FIRST_ANSWERS", 40)
        few = within(3 * short_s)
    assert few["answers"]["paces"]["others"]["is_cut"], few["answers"]["paces"]
    shown = [row for row in few["rows"]["improved"] + few["rows"]["worsened"] if len(figures.words(row["wanted"])) > figures.SHORT_WORDS]
    assert len(shown) > 4 and all(row["tuned"]["text"] is not None for row in shown), few["answers"]["paces"]
    assert report.make(*mixed, repeat=few) == few
    little = within(0.4 * short_s)["answers"]
    assert little["paces"]["others"]["begun"] == 0 and little["short"]["rows"] and not told["paces"]["others"]["is_cut"]


def test_part_of_the_rows_are_the_first_of_the_seeds_order(many, monkeypatch):
    """What is counted is unbiased, and what changed most is shown whether it is counted or not."""
    monkeypatch.setattr(report, "FIRST_ANSWERS", 8)
    whole = report.make(*many)
    some = report.make(*many, repeat={"held_out_rows": 40, "probe": whole["probe"], "answers": {"made": 24}})  # as an earlier version noted it
    assert some["answers"]["made"] == 24 and 8 <= some["answers"]["asked"] < 24
    assert some["rows"]["improved"] == whole["rows"]["improved"] and some["examples"] == whole["examples"]
    assert any(f"{some['answers']['asked']} of 40 held-out rows were answered" in its for its in some["says"])


@pytest.mark.parametrize("run_s, wanted", [(0, 60), (100, 60), (240, 60), (1000, 250), (86_400, 21_600)])
def test_the_budget_is_a_quarter_of_the_run_or_a_minute(run_s, wanted):
    assert plans.report_budget_s(run_s) == wanted


def test_the_longest_answer_fits_the_rows(base, monkeypatch):
    tokenizer = encode.load_tokenizer(str(base))
    count = lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])  # noqa: E731
    assert report._longest(["yes"] * 10, tokenizer, Recipe()) == plans.FEWEST_ANSWER_TOKENS and report._longest(["", ""], tokenizer, Recipe()) == plans.TEXT_TOKENS
    text = "a long answer with many words in it, again and again and once more"
    assert report._longest([text] * 10, tokenizer, Recipe()) == max(plans.FEWEST_ANSWER_TOKENS, math.ceil(1.5 * count(text)))
    assert report._longest([text * 40], tokenizer, Recipe()) == plans.MOST_ANSWER_TOKENS
    assert report._longest([text * 40], tokenizer, Recipe(max_tokens=64)) == 64, "nothing beyond was learned"


def test_plain_texts_are_measured_and_answered_too(base, home, quick):
    from tuner import train

    run = small_run(base, records=[{"text": f"The {n} cats sat on mat {n * 3}."} for n in range(20)], max_steps=2)
    runs.claim(run)
    assert train.main(run) == 0
    made = run.read("report")
    assert made["answers"]["short"] is None and made["answers"]["asked"] == 4 and made["examples"][0]["wanted"] == ""


def test_an_earlier_version_that_is_kept_is_said(run, made):
    """The step before the last evaluation is the best: the report names both."""
    model, tokenizer, plan = report.load_tuned(run)
    rows = run.rows("held_out")
    last = run.events(kind="eval")[0][-1]["step"]
    early = report.make(run, plan, model, tokenizer, rows, survey.of(rows, tokenizer, run.recipe), last - 1)
    assert any(f"The version of step {last - 1} is kept, not that of the last step ({last})" in its for its in early["says"])
    assert not any("is kept" in its for its in report.make(run, plan, model, tokenizer, rows, survey.of(rows, tokenizer, run.recipe), last)["says"])
