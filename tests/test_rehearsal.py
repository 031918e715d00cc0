"""The rehearsal changes nothing that is learned, shows too little memory before step 1, and a run that dies of it says so."""

import json
import os
import random
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from tests.small_run import RECORDS, adapter_hash, events, losses, small_run
from tuner import machine, models, proposals, rehearsal, train
from tuner import run as runs
from tuner.errors import UserError
from tuner.machine import Memory

pytestmark = pytest.mark.usefixtures("base")
NO_MEMORY = "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 123 bytes."


@pytest.fixture
def plenty(monkeypatch):
    """A machine on which the small runs fit, whatever this one has free."""
    monkeypatch.setattr(machine, "main_memory", lambda: Memory(16.0, 12.0))
    return monkeypatch


def trained(base, **settings):
    run = small_run(base, **settings)
    runs.claim(run)
    assert train.main(run) == 0, run.error()
    return run


@pytest.mark.parametrize("settings", [{}, {"lora_dropout": 0.1}, {"gradient_checkpointing": "on", "micro_batch": 2}])
def test_with_it_or_without_it_the_adapter_is_the_same_bit_for_bit(base, home, quick, settings):
    with_it = trained(base, **settings)
    quick.setattr(rehearsal, "rehearse", lambda trainer: None)
    without = trained(base, **settings)
    assert any("rehearsed" in event for event in events(with_it, "status")) and not any("rehearsed" in event for event in events(without, "status"))
    assert losses(with_it) == losses(without)
    assert adapter_hash(with_it.adapter_dir) == adapter_hash(without.adapter_dir)


def test_it_leaves_everything_as_it_was(base, home, quick):
    seen = {}

    def state(trainer):
        return {
            "weights": {name: tensor.clone() for name, tensor in trainer.model.named_parameters()},
            "moments": json.dumps(trainer.optimizer.state_dict()["state"], default=str),
            "random": (random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()),
            "gradients": [p.grad for p in trainer.model.parameters()],
            "meter": (trainer.meter.loss, trainer.meter.tokens, trainer.meter.labelled),
        }

    rehearse = rehearsal.rehearse

    def watched(trainer):
        seen["before"] = state(trainer)
        rehearse(trainer)
        seen["after"] = state(trainer)

    quick.setattr(rehearsal, "rehearse", watched)
    trained(base, lora_dropout=0.1)
    before, after = seen["before"], seen["after"]
    assert all(torch.equal(tensor, after["weights"][name]) for name, tensor in before["weights"].items())
    assert after["gradients"] == [None] * len(after["gradients"])
    for name in ("moments", "random", "meter"):
        assert before[name] == after[name]


def test_it_takes_the_heaviest_micro_batch_twice_before_the_first_evaluation(base, home, quick):
    tried, gradients = [], train.Tuning.gradients

    def watched(self, inputs, learned):
        tried.append(list(inputs["lengths"]))
        return gradients(self, inputs, learned)

    quick.setattr(train.Tuning, "gradients", watched)
    run = trained(base, micro_batch=2)
    first, second, *rest = tried
    heaviest = max(sum(lengths[start : start + 2]) for lengths in rest for start in range(0, len(lengths), 2))
    assert first == second and len(first) == 2 and sum(first) == heaviest
    kinds = [event["kind"] for event in run.events()[0]]
    rehearsed = next(place for place, event in enumerate(run.events()[0]) if "rehearsed" in event)
    assert rehearsed < kinds.index("eval") < kinds.index("step")
    assert len(rest) == len(events(run, "step"))


def test_it_corrects_the_quote_by_what_it_measured(base, home, quick):
    run = trained(base)
    [said] = [event for event in events(run, "status") if "rehearsed" in event]
    noted = run.read("quote")
    assert said["quoted"] == {"memory_gib": round(noted["memory_gib"], 3), "seconds": round(noted["seconds"], 1)}
    assert said["rehearsed"]["memory_gib"] == pytest.approx(noted["rehearsed"]["memory_gib"], abs=1e-3)
    assert noted["rehearsed"]["memory_gib"] > 0.2 and len(noted["rehearsed"]["passes_s"]) == rehearsal.STEPS == 2
    corrected, quoted = noted["rehearsed"]["time"], noted["time"]
    assert corrected["training"] / quoted["training"] != 1 and corrected["measuring"] == quoted["measuring"]
    assert all(event["elapsed_s"] > 0 for event in events(run, "step"))


# Too little memory ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory."), RuntimeError(NO_MEMORY)])
@pytest.mark.parametrize("at", [1, 4])
def test_no_memory_is_named_and_becomes_a_proposal_with_the_same_optimiser_batch(base, home, quick, plenty, error, at):
    gradients, calls = train.Tuning.gradients, []

    def too_much(self, inputs, learned):
        calls.append(1)
        if len(calls) == at:
            raise error
        return gradients(self, inputs, learned)

    quick.setattr(train.Tuning, "gradients", too_much)
    run = small_run(base)
    runs.claim(run)
    assert train.main(run) == 1 and run.state() == "failed"
    before = "The rehearsal ran out of memory on the longest rows (4 at once," if at == 1 else "The run ran out of memory."
    assert run.error().startswith(before) and "What fits: Rows at once 4 → 2 (the same result" in run.error()
    assert "Nothing was trained yet" in run.error() or at > 1
    [best, *_] = run.read("proposals")
    assert best["settings"] == {"micro_batch": 2} and best["harm"] == ""
    assert all("batch_size" not in its["settings"] for its in run.read("proposals"))
    assert not run.adapter_dir.exists()

    quick.setattr(train.Tuning, "gradients", gradients)
    again = runs.again(run, best["settings"])
    assert again.recipe.micro_batch == 2 and again.recipe.batch_size == run.recipe.batch_size and again.id != run.id
    assert again.rows("train") == run.rows("train") and again.rows("held_out") == run.rows("held_out")
    assert again.read("data/receipt") == run.read("data/receipt") and again.title == run.title
    runs.claim(again)
    assert train.main(again) == 0 and again.state() == "done"


def test_other_faults_are_not_taken_for_it(base, home, quick):
    def broken(self, inputs, learned):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    quick.setattr(train.Tuning, "gradients", broken)
    with pytest.raises(RuntimeError, match="mat1"):
        train.main(small_run(base))


def test_what_cannot_fit_by_far_is_refused_before_the_model_is_loaded(base, home, quick):
    quick.setattr(machine, "main_memory", lambda: Memory(16.0, 0.2))
    quick.setattr(models, "load_base", lambda *args, **kw: pytest.fail("loaded"))
    run = small_run(base)
    runs.claim(run)
    assert train.main(run) == 1
    assert run.error().startswith("This run needs about ") and "0.2 GiB is free, so it was not begun." in run.error()
    assert run.read("proposals") == [] and "choose a smaller base model, or a machine with more memory" in run.error()


def test_a_resumed_run_forgets_what_was_proposed_to_it(base, home, quick, plenty):
    run = small_run(base)
    runs.claim(run)
    (run.folder / "error.txt").write_text("x")
    (run.folder / "proposals.json").write_text("[]")
    (run.folder / "process.json").unlink()
    runs.claim(run)
    assert not (run.folder / "proposals.json").exists()


def died(run, how: int) -> None:
    """What `run.watch` says of a child that died so."""
    process = subprocess.Popen([sys.executable, "-c", f"import os; os.kill(os.getpid(), {how})"])
    runs.watch(run, process, 3)


def noted(base) -> runs.Run:
    """A run that has got as far as its quote."""
    run = small_run(base)
    rehearsal_rows = json.loads(json.dumps({"lengths": [60, 70, 80, 90] * 4, "learned": 200, "held_lengths": [50] * 4, "scale": 1.0}))
    from tuner import sizes

    (run.folder / "quote.json").write_text(json.dumps({
        "rows": rehearsal_rows, "sizes": sizes.in_folder(base).__dict__, "free_gib": 12.0,
        "plan": {"tokens_at_once": 1024, "micro_batch": 0, "checkpointing": False, "dequantised": False},
    }))
    return run


def test_the_kernel_s_kill_is_named_and_becomes_a_proposal(base, home, monkeypatch):
    run = noted(base)
    monkeypatch.setattr(machine, "oom_kills", lambda: 4)
    died(run, signal.SIGKILL)
    assert run.state() == "failed"
    assert run.error().startswith("The machine ran out of memory and its kernel ended the training. What fits: Rows at once 4 → 2")
    assert run.read("proposals")[0]["settings"] == {"micro_batch": 2}


@pytest.mark.parametrize("count", [3, None])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_an_end_from_outside_is_not_taken_for_the_kernel_s(base, home, monkeypatch, count, how):
    run = noted(base)
    monkeypatch.setattr(machine, "oom_kills", lambda: count)
    died(run, how)
    assert run.error() == "" and "ended from outside" in events(run, "note")[-1]["message"]


def test_a_kill_before_anything_was_noted_is_named_too(base, home, monkeypatch):
    run = small_run(base)
    monkeypatch.setattr(machine, "oom_kills", lambda: 4)
    died(run, signal.SIGKILL)
    assert "ran out of memory" in run.error() and run.read("proposals") == []


def test_a_real_child_that_may_not_have_the_memory_says_so(base, home):
    """The error that torch's allocator for CPUs really raises, in a process that may not grow."""
    code = """
import resource, torch
from tuner import rehearsal
resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, 4 * 2**30))
try:
    torch.ones(8 * 2**30)
except Exception as error:
    print(type(error).__name__, rehearsal.is_out_of_memory(error))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.stdout.split() == ["RuntimeError", "True"], done.stderr[-500:]


def test_a_new_run_with_settings_that_cannot_be_is_refused(base, home):
    run = small_run(base)
    with pytest.raises(UserError, match="micro_batch is 99"):
        runs.again(run, {"micro_batch": 99})
    assert [its.id for its in runs.mine("local")] == [run.id]


def test_the_rows_noted_are_enough_for_a_proposal_later(base, home, quick, plenty):
    run = trained(base, records=RECORDS * 1)
    found = proposals.of_run(run)
    assert found[0].settings == {"micro_batch": 2} and found[0].quote.fits
