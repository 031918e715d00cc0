"""The benchmarks on a model of two layers: they still run, count what they say they count, and print their tables."""

import os
import time

import pytest

from tests.bench import arithmetic, contenders, gpu, machine, page, reference, training
from tests.bench.arithmetic import Shape
from tests.bench.contenders import Job, Outcome
from tests.small import base_entry
from tests.visitor import Visitor
from tuner import run as runs
from tuner import starter
from tuner.home import write_json
from tuner.recipe import Recipe

WORDS = "cat dog ball mat bird fish goat hen".split()


def records(count: int) -> list[dict]:
    """Alpaca records of different lengths."""
    return [
        {"instruction": f"Where is {WORDS[n % 8]} {n}?", "input": "", "output": " ".join(WORDS[: 1 + n % 7]) + f" on mat {n * 7 % 23}."}
        for n in range(count)
    ]


def small_bench_run(base, steps: int, batch: int, held_out: int = 4, **others) -> runs.Run:
    recipe = Recipe(**training.settings(batch, base_model="test/small", lora_rank=4, **others))
    run = training.new_run(records(steps * batch + held_out), held_out, recipe)
    write_json(run.folder / "base.json", base_entry(base))
    return run


def trained_here(run) -> training.Told:
    """The run's own training in this process, which has torch already."""
    from tuner import train

    began = time.time()
    runs.claim(run)
    assert train.main(run) == 0, run.error()
    return training.tell(run, began, machine.high_water_gib())


# The arithmetic ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens, gflop", [(256, 0.594), (512, 0.620), (1024, 0.673)])
def test_useful_arithmetic_is_that_of_the_reference(tokens, gflop):
    """SmolLM2-135M, rank 16, every token learned; the reference has these three values, worked out apart from this code."""
    from transformers import LlamaConfig

    shape = arithmetic.shape_of(arithmetic.of_config(LlamaConfig(
        hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, intermediate_size=1536, vocab_size=49152,
    )))
    assert (shape.linear, shape.head, 16 * shape.lora_per_rank) == (106_168_320, 28_311_552, 4_884_480)
    assert shape.flop(16, [tokens], tokens) / tokens / 1e9 == pytest.approx(gflop, abs=0.0005)


def test_rows_attend_only_to_themselves_and_only_learned_tokens_need_the_head():
    shape = Shape(linear=100, head=10, lora_per_rank=3, layers=2, attention=5)
    # 4 x 100 + 6 x 2 x 3 = 436 a token; 6 x T x 5 x 2 is 60 for each pair; 4 x 10 = 40 for each learned token.
    assert shape.flop(2, [3], 0) == 3 * 436 + 9 * 60
    assert shape.flop(2, [1, 2], 0) == 3 * 436 + (1 + 4) * 60
    assert shape.flop(2, [3], 2) - shape.flop(2, [3], 0) == 80
    assert arithmetic.mfu(5e9, 2.0, 10.0) == 0.25


# What is timed ----------------------------------------------------------------------------------------------------


def step(t: float, number: int) -> dict:
    return {"t": t, "kind": "step", "step": number, "loss": 1.0, "tokens": 10, "labelled_tokens": 5}


def test_evaluations_are_not_counted_as_training():
    events = [
        {"t": 1.0, "kind": "status", "state": "training"}, step(3.0, 1), step(4.0, 2), {"t": 9.0, "kind": "eval", "step": 2},
        {"t": 11.0, "kind": "sample", "step": 2}, step(12.5, 3), {"t": 12.6, "kind": "note"}, step(14.0, 4),
    ]
    outcome = training.of_events(events)
    assert [str(its) for its in outcome.seconds] == ["nan", "1.0", "nan", "1.5"]
    outcome.lengths = [[10]] * 4
    speed = training.Speed.of(outcome, Shape(1, 0, 0, 0, 0), 1, 0.0, skip=1)
    assert (speed.tokens_per_s, speed.learned_per_s, speed.flop) == (20 / 2.5, 10 / 2.5, 80)


def test_micro_batches_of_a_step_are_counted_together():
    import torch

    outcome, job = Outcome(), Job("", "", "", steps=2, batch_size=4, micro_batch=2)
    rows = [{"input_ids": [1] * length} for length in (3, 4, 5, 6)]
    collate = contenders.counted(lambda its: {"labels": torch.tensor([[7, 7, -100]] * len(its))}, outcome, job)
    for _ in range(3):  # the loader is a step ahead of the last
        collate(rows[:2])
        collate(rows[2:])
    assert outcome.lengths == [[3, 4, 5, 6]] * 2
    assert outcome.tokens == [18, 18] and outcome.learned == [4, 4]


def test_peak_memory_of_a_child_is_its_own():
    """A process that holds much starts one that holds little: ru_maxrss would show the parent's."""
    import subprocess
    import sys

    ballast = bytearray(os.urandom(1)) * (300 * 2**20)
    child = subprocess.Popen([sys.executable, "-c", "import time; held = bytearray(60 * 2**20); time.sleep(0.5)"])
    peak = machine.PeakMemory(child.pid).join()
    assert child.wait() == 0 and len(ballast)
    assert 0.05 < peak < 0.2


def test_a_busy_machine_is_told():
    quiet = machine.Quiet()
    assert quiet.warning() == ""
    quiet.busiest = 0.5
    assert "other processes took up to 50% of the cores" in quiet.warning()


# The whole of it, small -------------------------------------------------------------------------------------------


def test_all_contenders_train_on_the_same_tokens_and_fill_the_table(home, base, quick, tmp_path):
    steps, batch = 3, 4
    run = small_bench_run(base, steps, batch)
    told = trained_here(run)
    rows, _ = training.encoded(run)
    batches = training.batches_of(run, rows, steps)
    training.fill_lengths(told.outcome, rows, batches)
    training.write_rows(tmp_path / "rows.jsonl", rows, [its for chosen in batches for its in chosen])
    shape = arithmetic.shape_of(arithmetic.skeleton(base))
    found = {training.OURS: [training.Speed.of(told.outcome, shape, 4, told.first_step_s, skip=1)]}
    for name, contender, own_order in ((training.TRL, "trl", True), (training.PLAIN, "plain", False)):
        job = Job(str(base), str(tmp_path / "rows.jsonl"), str(tmp_path / "out.json"), steps, batch_size=batch, own_order=own_order, rank=4)
        outcome = contenders.train(contender, job)
        assert sum(outcome.tokens) == sum(told.outcome.tokens) and sum(outcome.learned) == sum(told.outcome.learned)
        assert sorted(map(sum, outcome.lengths)) == sorted(outcome.tokens)
        if not own_order:
            assert outcome.lengths == told.outcome.lengths and outcome.learned == told.outcome.learned
            assert outcome.losses == pytest.approx(told.outcome.losses, rel=0.01)
        found[name] = [training.Speed.of(outcome, shape, 4, outcome.setup_s, skip=1)]
    lines = training.table(found, best_gflops=100.0)
    assert len(lines) == 5 and all(line.count("|") == 7 for line in lines)
    assert lines[2].startswith("| Tuner | ") and "nan" not in "".join(lines)
    ratio = found[training.OURS][0].learned_per_s / found[training.TRL][0].learned_per_s
    assert training.ratios(found)[0] == f"learned tokens per second, ours / TRL: {ratio:.2f}"


def test_the_run_s_losses_are_those_of_the_fp32_reference(home, base, quick, tmp_path):
    """The same steps by a plain implementation; the rate is high, so that a wrong gradient would show in the losses."""
    run = small_bench_run(base, 6, 4, learning_rate=1e-2)
    told = trained_here(run)
    rows, held = training.encoded(run)
    batches = training.batches_of(run, rows, 6)
    training.fill_lengths(told.outcome, rows, batches)
    found = reference.train(training.reference_steps(run, batches, rows, held, tmp_path / "out.json"))
    assert told.outcome.losses[0] - told.outcome.losses[-1] > 0.1
    assert told.outcome.losses == pytest.approx(found["losses"], rel=0.01)
    measured = [event for event in run.events()[0] if event["kind"] == "eval"][-1]
    assert measured["loss"] == pytest.approx(found["held_out"], rel=0.01)


def test_rows_that_the_run_did_not_train_on_are_refused(home, base, quick):
    run = small_bench_run(base, 2, 4)
    told = trained_here(run)
    rows, _ = training.encoded(run)
    with pytest.raises(SystemExit, match="not be of the same steps"):
        training.fill_lengths(told.outcome, rows, training.batches_of(run, rows, 2)[::-1])


def test_a_visitor_without_a_browser_opens_the_page_and_polls(home):
    page.make_history(2, steps=20)
    starter.starter_dir().mkdir(parents=True)
    (starter.starter_dir() / "model.safetensors").touch()  # else the app begins to convert it
    app = page.App(home)
    try:
        imported_s, served_s = app.wait()
        assert 0 < served_s < 60 and 0 < imported_s < 60
        assert not app.holds("libtorch") and app.holds("libc")
        visitor = Visitor(app.url)
        visitor.do("open_page")
        shown = visitor.do("reattach").data
        assert "Earlier" in str(shown)
        assert len(page.polls(visitor, 0.3, every_s=0.1)) >= 2
    finally:
        app.stop()
    assert page.percentile([3.0, 1.0, 2.0], 0.95) == 3.0 and page.percentile(list(range(100)), 0.95) == 95


def test_the_gpu_benchmark_runs_on_a_tiny_shape(home, quick, one_thread, tmp_path):
    """All of its code but Unsloth's, in this process: the base is made, loaded and trained on by the same paths."""
    lines = gpu.measure(gpu.TINY, "cpu", tmp_path, 5, train=trained_here, train_other=contenders.train)
    found = [its for its in lines if its.startswith("| Tuner | ") or its.startswith("| TRL SFTTrainer, ")]
    assert len(found) == 2 and all(its.count("%") == 2 for its in found) and "nan" not in "".join(lines)
    assert any(its.startswith("tokens per second, ours / TRL SFTTrainer: ") for its in lines)
    assert any("of the useful arithmetic a second lost against long rows" in its for its in lines)


def test_the_gpu_benchmark_says_when_there_is_no_gpu(monkeypatch, capsys):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu"])
    with pytest.raises(SystemExit, match="No CUDA GPU here"):
        gpu.main()


def test_the_eight_billion_shape_has_as_many_parameters_as_llama_3_1():
    assert gpu.parameters(gpu.LLAMA_8B) == 8_030_261_248
    speed = training.Speed(12_473, 12_473, 1.0, 1.0, 0.0, 0.0)
    assert " 40.5% |" in gpu.line("NeMo on an H100", speed, 0.0, gpu.parameters(gpu.LLAMA_8B), 989)


def test_long_rows_of_the_gpu_benchmark_are_full(home, quick, tmp_path):
    from tuner import encode, survey

    size, recipe = gpu.TINY, Recipe(**training.settings(4, max_tokens=gpu.TINY.tokens))
    base = gpu.make_base(tmp_path / "base", size, "cpu")
    run = training.new_run(gpu.long_records(size, 8), 4, recipe)
    rows = survey.of(run.rows("train"), encode.load_tokenizer(str(base)), recipe).encoded
    assert {len(row.ids) for row in rows} == {size.tokens}
    brief = [len(its["output"].split()) for its in gpu.short_records(gpu.LLAMA_8B, 500)]
    assert min(brief) < 8 and max(brief) > 100 and 20 < sum(brief) / 500 < 45
