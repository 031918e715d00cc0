"""What a run is said to need follows from the model's real sizes and the rows' real lengths, and grows with what is asked for."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.small import small_base
from tests.small_run import events, small_run
from tests.test_models import FAMILIES
from tuner import cost, encode, hardware, machine, models, probe, quote, rehearsal, sizes, starter, tasks, train
from tuner import plan as plans
from tuner import run as runs
from tuner.errors import UserError
from tuner.machine import Reach
from tuner.recipe import MOST_HELD_OUT, Recipe

pytestmark = pytest.mark.usefixtures("one_thread")

# meta-llama/Llama-3.1-8B-Instruct's config.json, where it matters.
LLAMA_8B = {
    "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "intermediate_size": 14336, "vocab_size": 128256, "tie_word_embeddings": False,
}
# Two cores with native bf16, as measured once.
TWO_CORES = Reach("cpu", "bfloat16", 900.0, 150.0, 2.0, 3.5, 0.5, True)
CARD = Reach("cuda", "bfloat16", 100_000.0, 800.0, 8.0, 12.0, 0.6)


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_from_config_and_headers_are_the_real_model_s(tmp_path, family):
    base = small_base(tmp_path / "base", family)
    config = json.loads((base / "config.json").read_text())
    its, exact = sizes.of_config(config), sizes.in_folder(base)
    loaded = models.load_base(base, Recipe(quantisation="none"), {"precision": "float32"})
    linears = {name: its for name, its in loaded.model.named_modules() if isinstance(its, torch.nn.Linear) and name != "lm_head"}
    assert its.linear + its.odd == exact.linear + exact.odd == sum(layer.weight.numel() for layer in linears.values())
    assert exact.odd == sum(linears[name].weight.numel() for name in models.unfit_for_4bit(loaded.model) if name in linears)
    others = {id(p): p.numel() for name, p in loaded.model.named_parameters() if "embed_tokens" in name or "lm_head" in name}
    assert its.embedded == exact.embedded == sum(others.values())
    assert exact.weights == sum(p.numel() for p in loaded.model.parameters()) and exact.exact and not its.exact
    assert exact.stored_bytes == pytest.approx((base / "model.safetensors").stat().st_size, rel=0.05)
    for targets in ("all-linear", "attention"):
        recipe = Recipe(lora_rank=4, target_modules=targets)
        model = models.load_base(base, Recipe(quantisation="none"), {"precision": "float32"}).model
        tuned = models.attach_lora(model, recipe, "test/small")
        assert its.adapter(recipe) == exact.adapter(recipe) == sum(p.numel() for p in tuned.parameters() if p.requires_grad)
    assert sizes.of_config(loaded.model.config) == its  # a config object says the same as its JSON
    assert sizes.of_config({"text_config": config}) == its  # so does one that is wrapped, as Gemma 3's larger ones are


@pytest.mark.parametrize("odd", [{"hidden_size": None}, {"vocab_size": "many"}, {"num_hidden_layers": 10**12}, {"intermediate_size": -1}])
def test_a_config_without_sense_is_told_in_words(odd):
    with pytest.raises(UserError, match="config.json"):
        sizes.of_config({**LLAMA_8B, **odd})


@pytest.mark.parametrize("header", [b"", b"\xff" * 100, b"\x02\x00\x00\x00\x00\x00\x00\x00{}", b"\x09" + bytes(7) + b'{"a": 1}'])
def test_headers_that_cannot_be_read_leave_the_config(tmp_path, header):
    (tmp_path / "model.safetensors").write_bytes(header)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    assert sizes.in_folder(tmp_path) == sizes.of_config(LLAMA_8B)


@pytest.fixture
def its(base) -> sizes.Sizes:
    return sizes.in_folder(base)


def rows_of(lengths=(100,) * 200, held=(100,) * 10) -> quote.Rows:
    return quote.Rows(list(lengths), sum(lengths) // 4, list(held))


def quoted(its, rows=None, free=1000.0, reach=TWO_CORES, **settings) -> quote.Quote:
    return quote.make(Recipe(**settings), its, rows or rows_of(), free, reach, 0.6)


def test_more_asked_for_needs_more(its):
    usual = quoted(its)
    longer, wider, more = quoted(its, epochs=6.0), quoted(its, lora_rank=64), quoted(its, rows_of((100,) * 400))
    assert longer.steps == more.steps == 2 * usual.steps and wider.steps == usual.steps == 75
    assert longer.tokens == more.tokens == 2 * usual.tokens == 2 * 60_000
    for made in (longer, wider, more):
        assert made.seconds > usual.seconds and made.dollars > usual.dollars
    assert wider.memory_gib > usual.memory_gib == longer.memory_gib == more.memory_gib
    assert quoted(its, rows_of((3000,) * 200)).memory_gib > usual.memory_gib
    assert quoted(its, gradient_checkpointing="on").time["training"] > usual.time["training"]
    assert quoted(its, rows_of((3000,) * 200), gradient_checkpointing="on").memory["activations"] < quoted(its, rows_of((3000,) * 200)).memory["activations"]
    assert quoted(its, max_steps=10).steps == 10
    assert quoted(its, evaluations=1).time["measuring"] < usual.time["measuring"]
    assert quoted(its, target_modules="attention").memory["adapter and optimiser"] < usual.memory["adapter and optimiser"]
    assert usual.memory_gib == pytest.approx(sum(usual.memory.values())) and usual.seconds == pytest.approx(sum(usual.time.values()))
    assert usual.dollars == pytest.approx(usual.seconds / 3600 * 0.6)
    # Layers that dropout keeps from our own arithmetic keep more.
    assert quoted(its, rows_of((3000,) * 200), lora_dropout=0.1).memory["activations"] > quoted(its, rows_of((3000,) * 200)).memory["activations"]


def test_the_probe_is_quoted_as_long_as_it_is():
    if not starter.is_installed():
        pytest.skip("the starter model's package is not installed")
    rows = probe.rows(list(probe.items()), encode.load_tokenizer(str(starter.prepare())))
    lengths = [len(row.ids) for row in rows]
    probed = {"tokens": sum(lengths), "learned": sum(row.learned for row in rows), "squares": sum(length**2 for length in lengths), "rows": len(rows)}
    assert tasks.get("chat").PROBED == probed


def test_a_classifier_s_probe_is_quoted_as_long_as_it_is():
    task = tasks.get("text_labels")
    its = starter.of(task.STARTER["base_model"])
    if not its.is_installed():
        pytest.skip("the starter encoder's package is not installed")
    lengths = [len(row.ids) for row in task.probe_rows(task.load_tokenizer(str(its.prepare())), Recipe(task="text_labels"))[0]]
    assert task.PROBED == {"tokens": sum(lengths), "learned": 0, "squares": sum(length**2 for length in lengths), "rows": len(lengths)}
    pictures = tasks.get("image_labels")
    assert pictures.PROBED == {"rows": len(pictures.probe_rows(SimpleNamespace(units=7), Recipe())[0])}


def test_rows_of_which_only_some_are_known_are_quoted_as_all(its):
    lengths = np.random.default_rng(0).integers(20, 300, 600).tolist()
    whole, part = rows_of(lengths, lengths[:60]), quote.Rows(lengths[::3], sum(lengths[::3]) // 4, lengths[:60:3], 3.0)
    made, of_part = quoted(its, whole), quoted(its, part)
    assert of_part.steps == made.steps and of_part.tokens == pytest.approx(made.tokens, rel=0.05)
    assert of_part.seconds == pytest.approx(made.seconds, rel=0.06) and of_part.memory_gib == pytest.approx(made.memory_gib, rel=0.1)
    again = quote.Rows(**json.loads(json.dumps(quote.summed_up(whole))))
    assert quoted(its, again).seconds == pytest.approx(made.seconds, rel=0.05) and again.count == 600
    assert quoted(its, again).memory_gib == pytest.approx(made.memory_gib, rel=0.1)


def test_of_few_rows_what_a_run_keeps_of_its_quote_gives_the_same_one_again(its):
    """In their order: the seed draws from it."""
    whole = quote.Rows(np.random.default_rng(2).integers(5, 300, 60), 4000, [40, 80, 60])
    again = quote.Rows(**json.loads(json.dumps(quote.summed_up(whole))))
    assert quoted(its, again, max_steps=3).time == quoted(its, whole, max_steps=3).time


def test_an_8b_model_fits_where_it_fits(home):
    """In 4 bits it does on a 15 GiB card, in 16 bits it does not; torchtune measured 7.4 GiB for it in 4 bits, two rows of 2,048 at once."""
    its, rows = sizes.of_config(LLAMA_8B), rows_of((2048,) * 64)
    assert its.weights == pytest.approx(8.03e9, rel=1e-3)
    packed = quoted(its, rows, 14.6, CARD, batch_size=2, micro_batch=2)
    assert 5.0 < packed.memory["base model"] < 6.0 and packed.fits and packed.plan.checkpointing and not packed.plan.dequantised
    assert 6.0 < packed.memory_gib < 9.5
    whole = quoted(its, rows, 14.6, CARD, batch_size=2, micro_batch=2, quantisation="none")
    assert whole.memory["base model"] == pytest.approx(8.03e9 * 2 / 2**30, rel=1e-3) and not whole.fits
    fitting = {one.its.flavour for one in quote.hired(Recipe(quantisation="none", batch_size=2, micro_batch=2), its, rows) if one.quote.fits}
    assert fitting.isdisjoint({"t4-small", "cpu-basic"}) and {"a100-large", "h200", "l40sx4", "cpu-xl"} <= fitting


def test_a_small_machine_is_told_that_it_does_not_fit(its):
    assert quoted(its, free=8.0).fits and not quoted(its, free=0.3).fits


# What a run decides -----------------------------------------------------------------------------------------------


def test_where_memory_is_short_the_run_decides_for_less_before_it_is_refused():
    its, rows = sizes.of_config(LLAMA_8B), rows_of((700,) * 64)
    plans_by_room = [quoted(its, rows, free, CARD).plan for free in (400.0, 40.0, 24.0, 14.0, 10.0)]
    assert not plans_by_room[0].checkpointing and plans_by_room[0].tokens_at_once == plans.TOKENS_AT_ONCE["cuda"]
    assert plans_by_room[-1].checkpointing
    for more, less in zip(plans_by_room, plans_by_room[1:]):
        assert (less.checkpointing, -less.tokens_at_once) >= (more.checkpointing, -more.tokens_at_once)
    fixed = quoted(its, rows, 10.0, CARD, micro_batch=8, gradient_checkpointing="off").plan
    assert (fixed.micro_batch, fixed.checkpointing, fixed.tokens_at_once) == (8, False, plans.TOKENS_AT_ONCE["cuda"])  # as it was asked


def test_the_heaviest_micro_batch_is_the_one_that_the_run_forms():
    lengths = np.random.default_rng(3).integers(10, 400, 500)
    recipe = Recipe(batch_size=16, epochs=2.0, seed=5)
    for plan in (plans.Plan(1024, 0, False, False), plans.Plan(512, 0, False, False), plans.Plan(1024, 4, False, False)):
        formed = [
            part for epoch in (0, 1) for batch in plans.optimiser_batches(lengths.tolist(), 16, 5, epoch)
            for part in plans.parts([int(lengths[index]) for index in batch], plan.tokens_at_once, plan.micro_batch)
        ]
        known = plans.Lengths(lengths)
        assert known.heaviest(recipe, plan).sum() == max(map(sum, formed))
        assert known.parts_per_row(recipe, plan) == pytest.approx(len(formed) / 1000)


def test_of_very_many_rows_the_longest_are_found_and_the_rest_is_sampled():
    lengths = np.random.default_rng(3).integers(10, 400, 100_000)
    lengths[[5, 77_777]] = 3_000
    known, plan, recipe = plans.Lengths(lengths), plans.Plan(1024, 0, False, False), Recipe(batch_size=8)
    assert known.heaviest(recipe, plan).tolist() == [3_000]
    assert set(known.heaviest_rows(recipe, plan)) <= {5, 77_777}
    few = plans.Lengths(lengths[:3_000])
    assert known.parts_per_row(recipe, plan) == pytest.approx(few.parts_per_row(recipe, plan), rel=0.05)


def test_weights_are_prepacked_where_products_are_in_bf16_and_there_is_room():
    lengths, its, recipe = plans.Lengths([100] * 50), sizes.of_config(LLAMA_8B), Recipe()
    decide = lambda precision, free_gib, recipe=recipe: plans.decide(recipe, its, lengths, "cpu", precision, free_gib, 0.5)  # noqa: E731
    plan = decide("bfloat16", 80)
    assert plan.prepacked and not decide("float32", 80).prepacked and not decide("bfloat16", 40).prepacked
    assert not decide("bfloat16", 80, Recipe(lora_dropout=0.1)).prepacked and decide("bfloat16", 80, Recipe(quantisation="none")).prepacked
    need = [cost.memory(recipe, its, each, lengths.tokens, "cpu", "bfloat16", 0.5)["base model"] for each in (plan, replace(plan, prepacked=False))]
    assert need[0] - need[1] == pytest.approx(2 * (its.linear + its.vocab * its.hidden) / 2**30)


@pytest.mark.parametrize("settings", [{}, {"micro_batch": 2}, {"max_steps": 3}, {"gradient_checkpointing": "on"}, {"quantisation": "none"}])
def test_what_is_quoted_is_what_the_run_decides(base, home, quick, settings):
    run = small_run(base, **settings)
    runs.claim(run)
    train.train(run)
    noted, plan = run.read("quote"), run.read("plan")
    noted["plan"].pop("prepacked")  # it follows the precision, which is measured in no test
    for name, value in noted["plan"].items():
        assert plan[{"checkpointing": "gradient_checkpointing"}.get(name, name)] == value
    assert noted["steps"] == plan["steps"] == events(run, "step")[-1]["step"]
    trained = sum(event["tokens"] for event in events(run, "step"))
    assert noted["tokens"] == pytest.approx(trained, rel=0.15)


# Hired hardware ---------------------------------------------------------------------------------------------------


def test_each_flavour_of_a_space_and_a_job_is_quoted(home, its):
    from huggingface_hub import SpaceHardware

    hired = {one.its.flavour: one for one in quote.hired(Recipe(), its, rows_of())}
    assert {flavour.value for flavour in SpaceHardware} - {"zero-a10g"} <= set(hired)
    assert {"cpu-xl", "cpu-performance", "h200"} <= set(hired)
    assert all(one.quote.fits and one.seconds > quote.STARTING_S for one in hired.values())
    assert hired["cpu-basic"].dollars == 0.0 and hired["l4x1"].dollars > 0
    four, one = hired["l4x4"], hired["l4x1"]
    assert four.seconds == one.seconds and four.dollars == pytest.approx(one.dollars * 3.80 / 0.80)
    assert hired["cpu-upgrade"].seconds < hired["cpu-basic"].seconds
    # Billed by the minute.
    assert one.dollars == pytest.approx(0.80 / 60 * np.ceil(one.seconds / 60))


def test_this_machine_costs_what_the_hub_says_of_it(monkeypatch):
    for name in ("SYSTEM", "JOB_ID", "ACCELERATOR", "CPU_CORES"):
        monkeypatch.delenv(name, raising=False)
    assert hardware.rented() is None and hardware.dollars_here() == 0.0
    monkeypatch.setenv("SYSTEM", "spaces")
    monkeypatch.setenv("ACCELERATOR", "l4x1")
    assert hardware.rented().name == "L4" and hardware.dollars_here() == 0.80
    monkeypatch.setenv("ACCELERATOR", "none")
    monkeypatch.setenv("CPU_CORES", "8")
    assert hardware.rented().flavour == "cpu-upgrade" and hardware.dollars_here() == 0.03
    monkeypatch.setenv("CPU_CORES", "2")
    assert hardware.dollars_here() == 0.0
    monkeypatch.delenv("SYSTEM")
    monkeypatch.setenv("JOB_ID", "abc")
    assert hardware.dollars_here() == 0.01


# What finished runs teach -----------------------------------------------------------------------------------------


def test_a_finished_run_teaches_the_next_quote(base, home, quick):
    run = small_run(base, epochs=4.0, evaluations=2)
    runs.claim(run)
    assert machine.runs_known() == 0
    train.train(run)
    [known] = [kept for its_ in json.loads((home / "machine.json").read_text()).values() for kept in its_["runs"]]
    assert known["kind"] == run.read("quote")["kind"] and set(known["ratios"]) == {"start", "train", "answers"}


def test_what_was_learned_changes_the_part_it_is_about(home, its):
    before = quoted(its)
    reach = replace(TWO_CORES, known=(("answers", 0.5), ("start", 3.0), ("train", 2.0)))
    after = quoted(its, reach=reach)
    assert after.time["training"] == pytest.approx(2 * before.time["training"])
    assert after.time["getting ready"] == pytest.approx(3 * before.time["getting ready"])
    assert after.time["measuring"] == pytest.approx(2 * before.time["measuring"]), "products too"
    assert after.time["answers"] == pytest.approx(0.5 * before.time["answers"])


def test_taken_by_quoted_is_told_part_by_part():
    noted = {
        "time": {"getting ready": 10.0, "rehearsal": 2.0, "training": 40.0, "measuring": 4.0, "answers": 5.0}, "tokens": 1000, "steps": 10, "evaluations": 2,
        "rehearsed": {"passes_s": [1.0, 1.0]},
    }
    clock, told = 116.0, []
    for step in range(1, 11):
        clock += 8.0
        told.append({"kind": "step", "t": clock, "step": step, "tokens": 100})
    answered = [{"kind": "eval", "t": clock + at, "step": at, "answers_s": seconds} for at, seconds in ((0, 4.0), (5, 3.0), (10, 0.5))]
    told.append({"kind": "result", "t": clock + 74})  # the report's minute says nothing of the rest
    found = rehearsal.taken_by_quoted([*told, *answered], noted, 100.0, 117.0)
    assert found == pytest.approx({"start": 15 / 10, "train": 2.0, "answers": 7.5 / 5})
    # Of a run that ended early the last answers are missing, which are the shortest; classifiers answer nothing.
    for some in ([*told, *answered[:2]], told):
        assert set(rehearsal.taken_by_quoted(some, noted, 100.0, 117.0)) == {"start", "train"}


def test_what_a_run_of_few_steps_goes_through_is_counted_on_the_rows_that_it_will_draw():
    lengths = plans.Lengths(np.random.default_rng(1).integers(5, 400, 90))
    recipe = Recipe(batch_size=8, seed=3)
    batches = [batch for epoch in range(2) for batch in plans.optimiser_batches(lengths.tokens.tolist(), 8, 3, epoch)]
    for steps in (1, 5, 11, 12, 14, 24):
        drawn = lengths.tokens[[index for batch in batches[:steps] for index in batch]].astype(float)
        assert lengths.in_steps(recipe, steps) == pytest.approx((drawn.sum(), (drawn**2).sum(), len(drawn)))
    many = plans.Lengths(np.full(plans.MANY_ROWS + 8, 10))
    assert many.in_steps(recipe, 1) == pytest.approx((80, 800, 8), rel=0.01)
    assert plans.Lengths([10, 30]).in_steps(recipe, 1) == (40, 1000, 2)


def test_a_changed_knob_does_not_go_through_all_lengths_again(its, monkeypatch):
    """Of a million rows each such pass takes 10 ms, and there is one for each piece of hardware that can be hired."""
    passes, percentile = [], np.percentile
    monkeypatch.setattr(np, "percentile", lambda *asked: passes.append(1) or percentile(*asked))
    rows = rows_of()
    for rate in (1e-4, 1e-3):
        quote.hired(Recipe(learning_rate=rate), its, rows)
    assert len(passes) == 1


def test_the_longest_answer_follows_the_rows_own_and_what_was_learned():
    lengths = plans.Lengths([30] * 90 + [130] * 10)
    prompt, answer, usual = lengths.usual_answer(100 * 20, "answers")
    assert (prompt, answer, usual) == (20.0, 20.0, pytest.approx(110.0))
    assert plans.longest_answer(usual, Recipe()) == math.ceil(plans.LONGER * usual) and plans.longest_answer(1.0, Recipe()) == plans.FEWEST_ANSWER_TOKENS
    assert plans.longest_answer(usual, Recipe(max_tokens=100)) == 100 and plans.longest_answer(5000, Recipe()) == plans.MOST_ANSWER_TOKENS
    assert plans.Lengths([50, 50]).usual_answer(100, "everything") == (0.0, 50.0, 50.0), "where the prompt is learned too"
    assert plans.longest_answer(plans.Lengths([500, 50]).usual_answer(550, "answers")[2], Recipe()) == plans.TEXT_TOKENS, "plain text"


def test_kinds_of_arithmetic_are_told_apart(its):
    assert cost.kind(Recipe(), its) == "fast" and cost.kind(Recipe(lora_dropout=0.1), its) == "plain"
    assert cost.kind(Recipe(), replace(its, family="mamba")) == "plain"


def answers(count: float, seconds: float = 0.0, longest: int = 40) -> quote._Answers:
    """Of so many rows, that take so long in all; a step of one answer, and of a few, takes next to nothing."""
    made = quote._Answers(count, longest, 64, 1e-9, 0.0, 0.0)
    return replace(made, read=(seconds - made.seconds()) / count) if count else made


NONE = answers(0)


@pytest.mark.parametrize(("both", "asked", "short", "others", "budget", "wanted"), [
    (20, 10, answers(30, 15), NONE, 60, 20 + 10 + 15),  # all of it
    (20, 10, answers(30, 10), answers(30, 8), 60, 20 + 10 + 10 + 8),
    (20, 10, answers(30, 99), NONE, 60, 20 + 10 + quote.FILLED * 30),  # as many as there is time for
    (20, 10, answers(30, 10), answers(30, 99), 60, 20 + 10 + 10 + quote.FILLED * 20),  # the short ones first
    (20, 60, answers(30, 99), NONE, 60, 20 + 20 + quote.FILLED * 20),  # half of the probe's time, and answers in the other half
    (200, 40, answers(30, 99), NONE, 60, 50 + 10),  # fewer rows are measured, so that a quarter of the probe can be asked
    (1000, 40, answers(30, 99), NONE, 60, 160 + 10),  # the first 16 of 100 rows, whatever it takes
])
def test_a_report_is_quoted_as_it_keeps_to_its_time(both, asked, short, others, budget, wanted):
    """As `report.make` decides: rows, then questions, then answers, short ones first."""
    work = quote._AnsweringReport(100, both, asked, short, others)
    assert work.seconds(budget) == pytest.approx(wanted)
    assert work.whole == pytest.approx(both + asked + short.seconds() + others.seconds()) and work.whole >= wanted
    assert work.leaves_out(budget) is (wanted < work.whole - 1e-6)


def test_answers_are_quoted_as_they_are_given():
    """So many at once, each step a little dearer for each; as the last ones end there are fewer."""
    its = quote._Answers(1000, 40, 64, 0.03, 0.1, 1e-4)
    step = 0.03 * (quote.STEP_OF_ANSWERS + 64 * quote.STEP_OF_ANSWER)
    assert its.seconds() == pytest.approx(1000 * 2 * quote.BOTH_ANSWERS / 2 * 40 / 64 * step + 1000 * 0.1, rel=0.05)
    assert replace(its, count=2000).seconds() - its.seconds() == pytest.approx(1000 * (quote.BOTH_ANSWERS * 40 / 64 * step + 0.1))
    assert replace(its, at_once=8).seconds() > 1.5 * its.seconds(), "together they cost less"
    assert replace(its, count=1).seconds() == pytest.approx(40 * 0.03 * (quote.STEP_OF_ANSWERS + quote.ENDING * 2 * quote.STEP_OF_ANSWER) + 0.1)
    least = plans.ANSWERS_MARGIN * 40 * its._step(2)
    assert its.within(0.7 * least) == 0 and 0 < its.within(least) < quote.FILLED * least and its.within(1.3 * least) == quote.FILLED * 1.3 * least
    slow = replace(its, token=0.1)  # thought to take longer than it takes
    assert slow.within(least) == 0 and slow.within(plans.ANSWERS_MARGIN * 40 * (plans.ANSWERS_STEP_TOKENS + 2 * plans.ANSWER_TOKENS) * 0.1 * 1.25) > 0
    long = replace(its, longest=256)
    assert long.cut(1e4).longest == 256 and long.cut(0.0).longest == long.cut(-1.0).longest == plans.FEWEST_ANSWER_TOKENS
    some = long.cut(30.0)
    assert some.longest == int(plans.CUT_SLACK * 30.0 / (plans.ANSWERS_MARGIN * its._step(2 * quote.SHOWN))) and 32 < some.longest < 256
    waves = replace(long, at_once=8).cut(30.0)
    assert waves.longest == int(plans.CUT_SLACK * 30.0 / (plans.ANSWERS_MARGIN * its._step(8)) / 5), "one after the other"
    whole = plans.ANSWERS_MARGIN * its._step(2 * quote.SHOWN) * 256
    assert long.cut(1.001 * whole).longest == 256 and long.cut(0.999 * whole).longest < 0.81 * 256


def test_short_answers_are_told_from_others_by_their_rows_length(its):
    """Prompts of 40 tokens; what is left of a row is its answer. A text alone has none."""
    rows = quote.Rows([60] * 400, 400 * 20, [60] * 30 + [200] * 70)
    made = quote._AnsweringReport.of(Recipe(), its, rows, quoted(its).plan, 100, TWO_CORES)
    assert (made.short.count, made.others.count) == (30, 70) and made.short.longest == made.others.longest == plans.FEWEST_ANSWER_TOKENS
    mixed = quote.Rows([60] * 200 + [400] * 200, 200 * 20 + 200 * 360, [60] * 30 + [400] * 70)
    made = quote._AnsweringReport.of(Recipe(), its, mixed, quoted(its).plan, 100, TWO_CORES)
    assert made.short.longest == math.ceil(plans.LONGER * quote.SHORT_TOKENS) < made.others.longest == plans.MOST_ANSWER_TOKENS
    alone = quote.Rows([60] * 400, 400 * 59, [20] * 100)
    made = quote._AnsweringReport.of(Recipe(), its, alone, quoted(its).plan, 100, TWO_CORES)
    assert (made.short.count, made.others.count, made.others.longest) == (0, 100, plans.TEXT_TOKENS)


def test_a_run_is_told_what_is_measured_afterwards_only_where_its_report_has_not_the_time(its):
    few, many, slow = quote.Rows([60] * 400, 400 * 20, [60] * 4), quote.Rows([60] * 400, 400 * 20, [60] * 1000), replace(TWO_CORES, gemm_gflops=1.0)
    assert quoted(its, few, reach=slow, max_steps=4).afterwards_s == quoted(its, many, max_steps=4).afterwards_s == 0
    made = quoted(its, many, reach=slow, max_steps=4, held_out_rows=1000)
    assert made.afterwards_s == quote.whole_report_s(Recipe(max_steps=4), its, many, made.plan, slow) > made.time["before and after"]
    assert not quote._AnsweringReport(100, 20, 60, answers(10, 5), answers(10, 5)).leaves_out(60), "a shorter probe leaves no held-out row out"


def test_a_run_holds_out_as_many_rows_as_its_report_has_the_time_for(its):
    """In tens, never fewer than fifty; a longer run's report has more time; who asks for a number, or has its rows already, gets them all."""
    slow, rows = replace(TWO_CORES, gemm_gflops=1.0), quote.Rows([60] * 400, 400 * 20, [60] * 1000)
    made = quoted(its, rows, reach=slow, max_steps=4)
    assert 50 < made.held_out < made.held_out_of == 1000 and made.held_out % 10 == 0
    report = quote._AnsweringReport.of(Recipe(max_steps=4), its, rows, made.plan, made.held_out, slow)
    assert report.is_full(60.0) and not report.times(1 + 10 / made.held_out).is_full(60.0)
    assert made.held_out_by == "time" and not report.leaves_out(60.0) and made.afterwards_s == 0
    fast = quoted(its, rows, max_steps=4)
    assert fast.held_out == 1000 and not fast.held_out_by, "here all of them are measured in a second"
    assert made.held_out < quoted(its, rows, reach=slow, max_steps=2000).held_out <= 1000
    fewest = quoted(its, rows, reach=replace(slow, gemm_gflops=0.01), max_steps=4)
    assert fewest.held_out == quote.FEWEST_HELD_OUT and fewest.held_out_by == "fewest" and fewest.afterwards_s > 0
    few = quote.Rows([60] * 400, 400 * 20, [60] * 49)
    assert quoted(its, few, reach=replace(slow, gemm_gflops=0.1), max_steps=4).held_out == 49
    asked = quoted(its, rows, reach=slow, max_steps=4, held_out_rows=990)
    assert asked.held_out == 990 and not asked.held_out_by
    limited = quote.make(Recipe(max_steps=2000), its, rows, 1000.0, slow, most_s=60.0)
    assert limited.held_out == made.held_out, "a training that is ended after a minute has a minute's report"
    patient, soon = (quoted(its, rows, reach=slow, max_steps=1600, patience=patience).held_out for patience in (0, 4))
    assert made.held_out < soon < patient == quoted(its, rows, reach=slow, max_steps=1600, patience=10).held_out, "patience may end it after 4 of 10 evaluations"
    had = quote.Rows([60] * 400, 400 * 20, [60] * 1000, chosen=True)
    assert quoted(its, had, reach=slow, max_steps=4).held_out == 1000
    assert quote.Rows(**json.loads(json.dumps(quote.summed_up(had)))).chosen
    some = quote.Rows([60] * 200, 200 * 20, [60] * 500, 2.0)
    assert quoted(its, some, reach=slow, max_steps=4).held_out == pytest.approx(made.held_out, abs=10) and some.held_rows == 1000


def test_a_probe_that_takes_too_long_does_not_take_the_rows_time():
    """Where it cannot be asked whole, rows have a third of the time, and the answers half of what that leaves."""
    work = quote._AnsweringReport(100, 18.0, 80.0, NONE, NONE)
    assert work.is_full(60.0) and not work.times(1.1).is_full(60.0) and work.fitting(60.0) == 100 and work.times(2).fitting(60.0) == 100
    assert replace(work, short=answers(30, 15)).is_full(60.0) and not replace(work, short=answers(30, 17)).is_full(60.0)
    assert replace(work, asked=15.0, both=25.0).is_full(60.0) and not replace(work, asked=15.0, both=26.0).is_full(60.0), "whole where there is time"


def test_a_full_report_leaves_no_row_out_by_its_own_reckoning():
    """What decides how many are held out, and what is said to be left out, agree however the time is made up."""
    full = 0
    for both in (1, 5, 10, 18, 25, 40, 60):
        for asked in (1, 10, 15, 20, 40, 80, 120, 180, 300, 500):
            for seconds in (0, 5, 12, 20, 30, 50):
                work = quote._AnsweringReport(100, both, asked, answers(30, seconds) if seconds else NONE, NONE)
                if work.is_full(60.0):
                    full += 1
                    assert not work.leaves_out(60.0), (both, asked, seconds)
    assert full > 50


def test_rows_of_several_sequences_are_held_out_whole(its):
    """A long text is a row of several: their time is measured by their tokens, and what is held out are rows."""
    slow = replace(TWO_CORES, gemm_gflops=1.0)
    single, of_four = (quote.Rows([60] * 400, 400 * 59, [60] * 1000, held_rows=rows) for rows in (1000, 250))
    made, four = quoted(its, single, reach=slow, max_steps=4), quoted(its, of_four, reach=slow, max_steps=4)
    assert four.held_out_of == 250 and four.held_out == pytest.approx(made.held_out / 4, abs=10)
    assert four.time["before and after"] == pytest.approx(made.time["before and after"], rel=0.1)
    many = quote.Rows([60] * 100_000, 100_000 * 59, [60] * 90, held_rows=30)
    for rows in (of_four, many):
        again = quote.Rows(**json.loads(json.dumps(quote.summed_up(rows))))
        whole = [quote.whole_report_s(Recipe(), its, kept, four.plan, slow) for kept in (rows, again)]
        assert again.held_rows == rows.held_rows and whole[1] == pytest.approx(whole[0], rel=0.05)


def test_the_run_s_own_recipe_says_how_many_rows_are_held_out(its):
    slow, rows = replace(TWO_CORES, gemm_gflops=1.0), quote.Rows([60] * 400, 400 * 20, [60] * 1000)
    made = quoted(its, rows, reach=slow, max_steps=4)
    assert quote.settled(Recipe(max_steps=4), made) == Recipe(max_steps=4, held_out_rows=made.held_out)
    assert quote.settled(Recipe(), quoted(its, rows)) == Recipe(), "all of them: the run itself counts them"
    assert quote.held_out_words(quoted(its, rows)) == "" != quote.held_out_words(made)
    assert quote.may_be_fewer(Recipe(), 51) and not quote.may_be_fewer(Recipe(), 50)
    assert not quote.may_be_fewer(Recipe(held_out_rows=60), 60)
    many = quote.Rows([60] * 400, 400 * 20, [60] * 9000)
    assert quoted(its, many).held_out == MOST_HELD_OUT and quote.settled(Recipe(), quoted(its, many)) == Recipe()


@pytest.mark.parametrize("task", ["text_labels", "image_labels"])
def test_a_classifier_holds_out_as_many_rows_as_its_report_has_the_time_for(its, task):
    """Beside them the probe is asked, and a baseline learns from at least two hundred training rows, and from as many as there is time for."""
    slow, rows = replace(TWO_CORES, gemm_gflops=1.0), quote.Rows([60] * 4000, 4000, [60] * 1000)
    made = quoted(its, rows, reach=slow, max_steps=4, task=task)
    assert 50 < made.held_out < made.held_out_of == 1000 and made.held_out % 10 == 0 and made.held_out_by == "time" and made.afterwards_s == 0
    report = quote._LabellingReport.of(Recipe(task=task), its, rows, made.plan, made.held_out, slow)
    assert report.is_full(60.0) and not report.times(1 + 10 / made.held_out).is_full(60.0)
    assert made.time["before and after"] == pytest.approx(60.0) and report._lines(200) < 60 - report.both - report.asked < report._lines(4000)
    assert quote.settled(Recipe(task=task), made).held_out_rows == made.held_out
    fast = quoted(its, rows, max_steps=4, task=task)
    assert fast.held_out == 1000 and not fast.held_out_by and 0 < fast.time["before and after"] < 30, "all of it, in less than the time"
    assert made.held_out < quoted(its, rows, reach=slow, max_steps=2000, task=task).held_out <= 1000
    fewest = quoted(its, rows, reach=replace(slow, gemm_gflops=0.01), max_steps=4, task=task)
    assert (fewest.held_out, fewest.held_out_by) == (quote.FEWEST_HELD_OUT, "fewest")
    many = quote.Rows(**json.loads(json.dumps(quote.summed_up(quote.Rows([60] * 4000, 4000, [60] * 1000, classes=77)))))
    assert many.classes == 77 and quoted(its, many, reach=replace(slow, gemm_gflops=0.01), max_steps=4, task=task).held_out == 3 * 77
    asked = quoted(its, rows, reach=replace(slow, gemm_gflops=0.5), max_steps=4, task=task, held_out_rows=990)
    assert asked.held_out == 990 and not asked.held_out_by and asked.time["before and after"] > 60


def test_a_classifier_s_report_is_quoted_as_it_keeps_to_its_time(monkeypatch):
    """Half of what is left goes to the probe, a quarter of it at least; the baseline has the rest, and two hundred rows always."""
    monkeypatch.setattr(cost, "LINE_TRIED_S", 0.0)
    work = quote._LabellingReport(100, 20.0, 10.0, 0.01, 5000, 0, 0)
    assert work.seconds(1000.0) == pytest.approx(20 + 10 + 50) and work.seconds(60.0) == pytest.approx(60.0)
    assert replace(work, asked=30.0).seconds(60.0) == pytest.approx(60.0), "20 s of the probe, 20 s of the baseline"
    assert replace(work, both=70.0).seconds(60.0) == pytest.approx(70 + 2.5 + 2) and replace(work, lines=100).seconds(60.0) == pytest.approx(20 + 10 + 1)
    assert work.is_full(60.0) and not replace(work, both=44.0).is_full(60.0) and replace(work, both=43.0).is_full(60.0)
    slow = replace(work, asked=100.0)
    assert replace(slow, both=18.0).is_full(60.0) and not replace(slow, both=19.0).is_full(60.0), "a third of the time where the probe takes too long"


def test_a_report_on_all_rows_is_quoted_for_itself(its):
    """Twice the rows take twice the time, but for what a start and the probe take; it takes longer than one that keeps to a time."""
    def of(count):
        return quote.Rows([60] * 400, 400 * 20, [60] * count)

    def whole(count):
        return quote.whole_report_s(Recipe(), its, of(count), quoted(its, of(count)).plan, TWO_CORES)

    answered = quote._AnsweringReport.of(Recipe(), its, of(100), quoted(its).plan, 100, TWO_CORES)
    assert whole(200) - whole(100) == pytest.approx(answered.both + answered.short.seconds() + answered.others.seconds(), rel=0.15)
    assert whole(100) > answered.whole > answered.seconds(answered.whole / 2)
    assert whole(MOST_HELD_OUT) == whole(2 * MOST_HELD_OUT) > whole(MOST_HELD_OUT - 100), "no more than so many are held out"
