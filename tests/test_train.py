"""A run from its folder to its end: what it writes, what each setting does, that it repeats and goes on exactly."""

import hashlib
import json
import random
import re
import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import make_quick
from tests.small import real_template, small_base
from tests.small_run import RECORDS, adapter_hash, events, losses, notes, small_run, step_events
from tuner import answer, blocks, checkpoints, encode, fast, hub, models, rehearsal, report, telling, train
from tuner import plan as plans
from tuner import run as runs
from tuner.errors import UserError
from tuner.recipe import MORE_KNOBS, OPEN_KNOBS
from tuner.tasks import chat

pytestmark = pytest.mark.usefixtures("base")  # for what it does to threads and garbage, before any other base is built


class Killed(BaseException):
    """The process ends here, as far as training can tell."""


def at_step(monkeypatch, step: int, act) -> None:
    """Call `act` once that step's event is written."""
    log_step = telling.Meter.log_step

    def then_act(self, now, *rest):
        log_step(self, now, *rest)
        if now == step:
            act()

    monkeypatch.setattr(telling.Meter, "log_step", then_act)


def killed():
    raise Killed


# What a run writes ------------------------------------------------------------------------------------------------


@pytest.fixture
def finished(base, home, quick):
    run = small_run(base)
    runs.claim(run)
    assert train.main(run) == 0
    return run


def test_events_are_as_the_contract_says(finished):
    found = finished.events()[0]
    assert {event["kind"] for event in found} <= {"status", "step", "eval", "sample", "note", "result"}
    assert all(event["t"] > 1e9 for event in found)
    steps = [event for event in found if event["kind"] == "step"]
    assert [event["step"] for event in steps] == list(range(1, 9))
    wanted = "step epoch loss learning_rate grad_norm tokens labelled_tokens tokens_per_s elapsed_s eta_s memory_gib"
    for event in steps:
        assert set(wanted.split()) <= set(event)
        assert all(isinstance(event[name], (int, float)) for name in wanted.split())
        assert 0 < event["labelled_tokens"] < event["tokens"] and event["memory_gib"] > 0.1 and event["grad_norm"] > 0
    assert steps[-1]["epoch"] == 2.0 and steps[-1]["eta_s"] == 0 and steps[0]["eta_s"] > 0
    assert [event["elapsed_s"] for event in steps] == sorted(event["elapsed_s"] for event in steps)
    evals = [event for event in found if event["kind"] == "eval"]
    assert [event["step"] for event in evals] == [0, *finished.read("plan")["evaluate_at"]] and evals[-1]["step"] == 8
    best = None
    for event in evals:
        assert event["best"] is (best is None or event["loss"] < best)
        best = min(event["loss"], best or event["loss"])
        assert event["perplexity"] == pytest.approx(2.718281828 ** event["loss"])
    samples = [event for event in found if event["kind"] == "sample"]
    assert [(event["step"], event["number"]) for event in samples] == [(event["step"], number) for event in evals for number in range(plans.SAMPLES)]
    assert len({event["prompt"] for event in samples}) == plans.SAMPLES
    states = [event["state"] for event in found if event["kind"] == "status"]
    assert [its for its in ("rehearsing", "training", "checking", "done") if its in states] == sorted(set(states), key=states.index)
    assert found[-1]["state"] == "done" and found[-2]["kind"] == "result"


def test_done_comes_last_and_its_absence_means_not_done(base, home, quick):
    run = small_run(base)
    written = []
    write_json = train.write_json
    quick.setattr(train, "write_json", lambda path, content: (written.append(path.name), write_json(path, content)))
    train.train(run)
    assert written == ["plan.json", "report.json", "done"]
    newest = max((path for path in run.folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_mtime_ns)
    assert newest == run.folder / "done" and run.state() == "done"
    assert {path.name for path in run.adapter_dir.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert not (run.folder / ".adapter").exists()


def test_no_pickle_is_anywhere_in_the_folder(finished):
    files = [path for path in finished.folder.rglob("*") if path.is_file()]
    assert len(files) > 15
    for path in files:
        assert path.suffix in (".json", ".jsonl", ".toml", ".txt", ".safetensors", ".lock", "")
        content = path.read_bytes()
        assert content[8:9] == b"{" if path.suffix == ".safetensors" else not content.startswith((b"\x80", b"PK"))


def test_the_base_is_unchanged_on_disk_and_in_memory_and_every_lora_matrix_has_moved(base, home, quick):
    for packed in (True, False):
        quick.setattr(models, "room_to_dequantise", lambda model, device: not packed)
        seen, attach = {}, models.attach_lora

        def remember(*args):
            model = seen["model"] = attach(*args)
            seen["before"] = {name: tensor.detach().clone() for name, tensor in state(model).items()}
            return model

        quick.setattr(models, "attach_lora", remember)
        files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in base.iterdir()}
        run = small_run(base)
        train.train(run)
        quick.setattr(models, "attach_lora", attach)
        assert {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in base.iterdir()} == files
        assert run.read("plan")["dequantised"] is not packed
        assert len(models.linears_4bit(seen["model"])) == (14 if packed else 0)
        before, after = seen["before"], state(seen["model"])
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        assert moved == {name for name in before if "lora_" in name} and len(moved) == 28


def state(model) -> dict[str, torch.Tensor]:
    """Every parameter and buffer, and the scales of 4-bit weights."""
    found = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, module in model.named_modules():
        if hasattr(module, "prepacked") and not module.weight.numel():
            found[f"{name}.weight"] = module.prepacked.forth.to_dense()
            assert torch.equal(module.prepacked.back.to_dense().t(), found[f"{name}.weight"])
    for name, parameter in model.named_parameters():
        if quant_state := getattr(parameter, "quant_state", None):
            found[f"{name}/scales"], found[f"{name}/scales of scales"] = quant_state.absmax, quant_state.state2.absmax
    return found


def test_layers_left_in_16_bits_are_said(tmp_path, home, quick):
    from tests.test_models import rebuild

    base = small_base(tmp_path / "base")
    rebuild(base, intermediate_size=112)
    run = small_run(base, max_steps=1)
    train.train(run)
    assert "6 layers have sizes that 4-bit does not fit and stay in 16 bits" in notes(run)
    assert len(run.read("plan")["kept_16bit"]) == 6


def test_the_same_seed_gives_the_same_run_bit_for_bit(finished, base):
    again = small_run(base)
    train.train(again)
    assert losses(again) == losses(finished)
    assert adapter_hash(again.adapter_dir) == adapter_hash(finished.adapter_dir)
    assert again.read("report") == finished.read("report")


# Every field on the form reaches the trainer ----------------------------------------------------------------------

DATED = "{{ strftime_now('%d %B %Y') }}\n"
MARKED = [{"prompt": "Say <|im_end|> now", "completion": "The <|im_end|> it is"}] * 3 + RECORDS


@pytest.fixture(scope="module")
def dated_base(tmp_path_factory) -> Path:
    """Its template prints the day."""
    return small_base(tmp_path_factory.mktemp("dated"), template=DATED + real_template("smollm2"))


class Seen:
    """What a run showed of itself."""

    def __init__(self, run, rows_at_once: int, passes: int):
        self.losses, self.plan, self.report = losses(run), run.read("plan"), run.read("report")
        self.rates, self.norms, self.tokens, self.labelled = (
            [event[name] for event in step_events(run)] for name in ("learning_rate", "grad_norm", "tokens", "labelled_tokens")
        )
        self.steps = len(self.losses)
        self.evals = [event["step"] for event in events(run, "eval")]
        self.prompt = events(run, "sample")[0]["prompt"]
        self.adapter = load_file(run.adapter_dir / "adapter_model.safetensors")
        self.config = json.loads((run.adapter_dir / "adapter_config.json").read_text())
        self.hash = adapter_hash(run.adapter_dir)
        self.rows_at_once, self.passes = rows_at_once, passes  # through the blocks' middles, with gradients


def same_start(new: Seen, old: Seen) -> bool:
    """The first step was the same, and what came of it was not: the setting works on the weights alone."""
    return new.losses[0] == old.losses[0] and new.losses[2:] != old.losses[2:] and new.hash != old.hash


# field -> (another value, what it must change). Left out: the base's two, patience, and what is for other tasks, which have tests of their own.
REACHES = {
    "learning_rate": (1e-3, lambda new, old: same_start(new, old) and new.rates[2] == pytest.approx(old.rates[2] / 5)),
    "lora_rank": (4, lambda new, old: {min(its.shape) for its in new.adapter.values()} == {4}),
    "epochs": (2.0, lambda new, old: (new.steps, old.steps) == (10, 5)),
    "max_steps": (3, lambda new, old: new.steps == 3),
    "max_tokens": (100, lambda new, old: max(old.tokens) > 400 >= max(new.tokens)),
    "system_prompt": ("Answer like a cat.", lambda new, old: new.tokens[0] != old.tokens[0] and new.labelled == old.labelled),
    "batch_size": (2, lambda new, old: (new.steps, new.rows_at_once) == (9, 2)),  # 23 rows, 5 of them held out
    "micro_batch": (1, lambda new, old: (new.rows_at_once, old.rows_at_once) == (1, 4) and new.steps == old.steps),
    "lora_alpha": (64.0, lambda new, old: same_start(new, old) and new.config["lora_alpha"] == 64),
    "lora_dropout": (  # it takes the plain path, whose roundings differ
        0.5, lambda new, old: not new.plan["fast"]["blocks"] and new.losses[0] == pytest.approx(old.losses[0], rel=1e-2)
        and abs(new.norms[0] / old.norms[0] - 1) > 0.05
    ),
    "rslora": (True, lambda new, old: same_start(new, old) and new.config["use_rslora"]),
    "target_modules": ("attention", lambda new, old: len(new.adapter) == 16 and all("self_attn" in name for name in new.adapter)),
    "quantisation": ("none", lambda new, old: new.losses[0] != old.losses[0] and not new.plan["dequantised"]),
    "warmup_share": (0.5, lambda new, old: new.rates[1] < old.rates[1] and new.rates[-1] > 0),
    "schedule": ("constant", lambda new, old: new.rates[-1] == new.rates[2] > old.rates[-1]),
    "weight_decay": (1.0, lambda new, old: same_start(new, old) and new.rates == old.rates),
    "max_grad_norm": (0.001, lambda new, old: same_start(new, old) and new.rates == old.rates),
    "held_out_share": (0.5, lambda new, old: new.report["held_out_rows"] > old.report["held_out_rows"]),
    "held_out_rows": (2, lambda new, old: new.report["held_out_rows"] == new.report["held_out_of"] == 2 < old.report["held_out_rows"] and new.losses == old.losses),
    "evaluations": (2, lambda new, old: (len(new.evals), len(old.evals)) == (3, 5) and new.losses == old.losses),
    "sample_prompt": ("Where is the moon?", lambda new, old: new.prompt == "Where is the moon?" != old.prompt),
    "learn": ("everything", lambda new, old: new.labelled[0] > old.labelled[0] and new.tokens == old.tokens),
    "keep_control_tokens": (True, lambda new, old: sum(new.tokens) < sum(old.tokens)),
    "template_date": ("2025-03-31", lambda new, old: new.losses[0] != old.losses[0]),
    "gradient_checkpointing": (
        "on", lambda new, old: new.passes == 2 * old.passes and new.losses == pytest.approx(old.losses, rel=1e-2)
    ),
    "seed": (1, lambda new, old: new.losses[0] != old.losses[0]),
}


def seen(base, quick, **settings) -> Seen:
    at_once, passes = [], []
    losses_of, mlp = fast.Path.losses, blocks.mlp

    def count_rows(path, batch):
        if torch.is_grad_enabled():
            at_once.append(len(batch["lengths"]))
        return losses_of(path, batch)

    with quick.context() as here:
        here.setattr(fast.Path, "losses", count_rows)
        here.setattr(blocks, "mlp", lambda *args, **kw: (passes.append(torch.is_grad_enabled()), mlp(*args, **kw))[1])
        run = small_run(base, records=MARKED, **{"epochs": 1.0, **settings})
        train.train(run)
    return Seen(run, max(at_once), sum(passes))


@pytest.fixture(scope="module")
def usual(dated_base, tmp_path_factory) -> Seen:
    """The run that the others are compared with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNER_HOME", str(tmp_path_factory.mktemp("home")))
        make_quick(patch)
        return seen(dated_base, patch)


@pytest.mark.parametrize("field", [name for name in OPEN_KNOBS + MORE_KNOBS if name not in ("base_model", "base_revision", "patience", *chat.UNUSED)])
def test_each_field_on_the_form_reaches_the_trainer(field, dated_base, usual, home, quick):
    assert field in REACHES, f"{field} is new on the form: add another value and what it must change to REACHES."
    value, changes = REACHES[field]
    new = seen(dated_base, quick, **{field: value})
    assert changes(new, usual), vars(new)


def test_the_base_and_its_revision_reach_the_hub(base, home, quick):
    asked = []
    quick.setattr(hub, "fetch_base", lambda *args: asked.append(args[:3]) or {"dir": str(base)})
    run = small_run(base, base_model="someone/base", base_revision="v1.2")
    (run.folder / "base.json").unlink()
    runs.fetch_base(run, "hf_visitor")
    assert asked == [("someone/base", "v1.2", "hf_visitor")]


def worse_each_time(monkeypatch, after: int = 0) -> None:
    """Held-out losses that rise from the evaluation of that number on; the report is measured as it is."""
    measure, count = report.measure, []

    def measured(*args, **kw):
        count.append(1)
        its = measure(*args, **kw)
        return {**its, "loss": 1 + 0.1 * len(count) if len(count) > after else 1 - 0.1 * len(count)}

    monkeypatch.setattr(report, "measure", measured)


@pytest.mark.parametrize("patience, steps", [(0, 8), (1, 2), (2, 4)])
def test_patience_ends_a_run_that_gets_worse(base, home, quick, patience, steps):
    worse_each_time(quick)
    run = small_run(base, patience=patience)
    train.train(run)
    assert len(losses(run)) == steps and run.state() == "done"
    assert (f"not improved in {patience} evaluations, so training ends early" in notes(run)) is (patience > 0)


def train_through(run, quick, interrupted: bool) -> None:
    """To its end; perhaps killed at step 7 and resumed: what was best is known then too."""
    if interrupted:
        with quick.context() as here:
            at_step(here, 7, killed)
            with pytest.raises(Killed):
                train.train(run)
    train.train(run)


@pytest.mark.parametrize("interrupted", [False, True])
def test_the_best_version_is_kept_not_the_last(base, home, quick, interrupted):
    worse_each_time(quick, after=3)  # at steps 0, 2 and 4 it gets better
    run = small_run(base, patience=0)
    train_through(run, quick, interrupted)
    folder = run.folder / "checkpoints"
    assert [event["best"] for event in events(run, "eval")] == [True, True, True, False, False]
    assert run.read("report")["best_step"] == 4 and checkpoints.steps(folder) == [4, 6, 8]
    assert adapter_hash(run.adapter_dir) == adapter_hash(folder / "checkpoint-4") != adapter_hash(folder / "checkpoint-8")


@pytest.mark.parametrize("interrupted", [False, True])
def test_where_no_version_beats_the_base_the_best_of_them_is_kept(base, home, quick, interrupted):
    worse_each_time(quick)
    run = small_run(base, patience=0)
    train_through(run, quick, interrupted)
    folder = run.folder / "checkpoints"
    assert [event["best"] for event in events(run, "eval")] == [True, False, False, False, False] and checkpoints.steps(folder) == [2, 6, 8]
    assert "No version was better than the base model on the held-out rows; the best of them, of step 2, is kept." in notes(run)
    assert run.read("report")["best_step"] == 2 and adapter_hash(run.adapter_dir) == adapter_hash(folder / "checkpoint-2")


def test_where_the_best_version_is_damaged_the_last_is_kept_and_that_is_said(base, home, quick):
    worse_each_time(quick, after=3)
    run = small_run(base, patience=0)
    folder = run.folder / "checkpoints"
    at_step(quick, 8, lambda: (folder / "checkpoint-4" / "adapter.safetensors").write_bytes(b"damaged"))
    train.train(run)
    assert "The version of step 4 is damaged" in notes(run) and run.read("report")["best_step"] == 8
    assert adapter_hash(run.adapter_dir) == adapter_hash(folder / "checkpoint-8")


def test_measuring_changes_nothing_that_is_learned(base, home, quick):
    """Bit for bit the same with many evaluations, samples and a rehearsal that draw at random, with few, and with none at all."""
    measure, answers = report.measure, answer.answers
    found = []

    def draw():
        torch.rand(1), random.random(), np.random.rand()  # as a sampled answer would

    def weights(run, plan, model, *_):
        found.append({name: its.clone() for name, its in models.lora_state(model).items()})

    quick.setattr(train, "_finish", weights)
    quick.setattr(report, "measure", lambda *rest, **more: (draw(), measure(*rest, **more))[1])
    quick.setattr(answer, "answers", lambda *rest, **more: (draw(), answers(*rest, **more))[1])
    for evaluations in (1, 5):
        run = small_run(base, evaluations=evaluations, lora_dropout=0.1)
        train.train(run)
        assert len(run.read("plan")["evaluate_at"]) == evaluations
    quick.setattr(train.Tuning, "evaluate", lambda *_, **__: {"eval_loss": 0.0})
    quick.setattr(rehearsal, "rehearse", lambda trainer: 0.0)
    train.train(small_run(base, lora_dropout=0.1))
    assert len(found) == 3 and found[0].keys() == found[1].keys() == found[2].keys()
    for name, its in found[0].items():
        assert torch.equal(its, found[1][name]) and torch.equal(its, found[2][name]), name


# Going on ---------------------------------------------------------------------------------------------------------

# Two epochs of four steps, each of two micro-batches; checkpoints after steps 2, 4, 6 and 8.
RESUMED = {"lora_dropout": 0.1, "micro_batch": 2, "weight_decay": 0.01}


@pytest.fixture(scope="module")
def uninterrupted(base, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNER_HOME", str(tmp_path_factory.mktemp("home")))
        make_quick(patch)
        run = small_run(base, **RESUMED)
        train.train(run)
        return {
            "losses": losses(run), "adapter": adapter_hash(run.adapter_dir), "report": run.read("report"),
            "last": adapter_hash(run.folder / "checkpoints" / "checkpoint-8"),
            "evals": {event["step"]: event["loss"] for event in events(run, "eval")},
            "samples": {(event["step"], event["number"]): event["text"] for event in events(run, "sample")},
        }


def assert_as_uninterrupted(run, uninterrupted) -> None:
    assert losses(run) == uninterrupted["losses"]
    assert {event["step"]: event["loss"] for event in events(run, "eval")} == uninterrupted["evals"]
    assert {(event["step"], event["number"]): event["text"] for event in events(run, "sample")} == uninterrupted["samples"]
    assert adapter_hash(run.adapter_dir) == uninterrupted["adapter"]
    assert adapter_hash(run.folder / "checkpoints" / "checkpoint-8") == uninterrupted["last"]
    assert run.read("report") == uninterrupted["report"] and run.state() == "done"


@pytest.mark.parametrize("kills", [(5,), (7, 8), (1, 3, 4, 6)], ids=str)
def test_a_run_killed_and_resumed_equals_one_that_was_not(base, home, quick, uninterrupted, kills):
    run = small_run(base, **RESUMED)
    for step in kills:
        with quick.context() as here:
            at_step(here, step, killed)
            with pytest.raises(Killed):
                train.train(run)
        assert not (run.folder / "done").exists() and not run.adapter_dir.exists()
        torch.manual_seed(step)  # a new process has other random states
    train.train(run)
    assert f"Going on from the checkpoint of step {(kills[-1] - 1) // 2 * 2}." in notes(run)
    assert_as_uninterrupted(run, uninterrupted)


def test_a_run_killed_while_it_evaluates_or_writes_a_checkpoint_goes_on_exactly(base, home, quick, uninterrupted):
    run = small_run(base, **RESUMED)
    for where, name in ((report, "measure"), (checkpoints, "write"), (checkpoints.os, "rename"), (models, "save_adapter")):
        with quick.context() as here:
            here.setattr(where, name, lambda *args, **kw: killed())
            with pytest.raises(Killed):
                train.train(run)
        assert run.state() != "done"
    train.train(run)
    assert_as_uninterrupted(run, uninterrupted)


DAMAGES = {
    "cut": lambda folder: (folder / "adapter.safetensors").write_bytes((folder / "adapter.safetensors").read_bytes()[:-9]),
    "a file less": lambda folder: (folder / "optimizer.safetensors").unlink(),
    "other content": lambda folder: (folder / "random.json").write_text("{}"),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "half a manifest": lambda folder: (folder / "manifest.json").write_text('{"step": 4'),
    "a manifest of nothing": lambda folder: (folder / "manifest.json").write_text("[]"),
    "empty": lambda folder: [path.unlink() for path in folder.iterdir()],
}


def test_a_damaged_checkpoint_is_passed_over_and_said(base, home, quick, uninterrupted, tmp_path):
    run = small_run(base, **RESUMED)
    with quick.context() as here:
        at_step(here, 5, killed)
        with pytest.raises(Killed):
            train.train(run)
    for name, damage in DAMAGES.items():
        folder, told = tmp_path / name, []
        shutil.copytree(run.folder / "checkpoints", folder)
        assert checkpoints.newest(folder, told.append) == folder / "checkpoint-4" and told == []
        damage(folder / "checkpoint-4")
        assert checkpoints.newest(folder, told.append) == folder / "checkpoint-2" and told == [4], name
    DAMAGES["cut"](run.folder / "checkpoints" / "checkpoint-4")
    train.train(run)
    assert "The checkpoint of step 4 is damaged; an older one is used." in notes(run)
    assert "Going on from the checkpoint of step 2." in notes(run)
    assert_as_uninterrupted(run, uninterrupted)


def test_a_run_does_not_go_on_with_another_base(tmp_path, home, quick):
    base = small_base(tmp_path / "base")
    run = small_run(base)
    with quick.context() as here:
        at_step(here, 3, killed)
        with pytest.raises(Killed):
            train.train(run)
    spoil(base)
    with pytest.raises(UserError, match="weights of test/small here are not the ones this was trained on"):
        train.train(run)


def spoil(base: Path) -> None:
    """Change one weight in the base's file."""
    path = base / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)


def test_stop_keeps_what_was_learned_and_a_later_start_goes_on(base, home, quick, uninterrupted):
    run = small_run(base, **RESUMED)
    runs.claim(run)
    with quick.context() as here:
        at_step(here, 3, run.ask_stop)
        assert train.main(run) == 0
    assert run.state() == "stopped" and len(losses(run)) in (3, 4)
    assert {path.name for path in run.adapter_dir.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert run.read("report")["change"] < 0 and events(run, "status")[-1]["message"] == "Stopped; what was learned is kept"
    runs.claim(run)
    train.train(run)
    assert losses(run) == uninterrupted["losses"] and run.state() == "done"
    assert adapter_hash(run.folder / "checkpoints" / "checkpoint-8") == uninterrupted["last"]


# What goes wrong --------------------------------------------------------------------------------------------------


def spoiled(factor: float, only: int = 1000):
    """`attach_lora`, with so many gradients multiplied by this from the third step on; the rehearsal's come before."""
    attach = models.attach_lora

    def spoil(*args):
        model, calls = attach(*args), []

        def times(gradient):
            calls.append(1)
            return gradient * factor if 0 <= len(calls) - 3 - rehearsal.STEPS < only else gradient

        next(p for p in model.parameters() if p.requires_grad).register_hook(times)
        return model

    return spoil


@pytest.mark.parametrize("factor", [float("inf"), float("nan")])
def test_a_gradient_that_is_not_a_number_ends_the_run_before_the_weights_are_touched(base, home, quick, factor):
    quick.setattr(models, "attach_lora", spoiled(factor))
    run = small_run(base)
    runs.claim(run)
    assert train.main(run) == 1
    assert run.state() == "failed" and re.fullmatch(
        r"The gradient stopped being a number at step 3 on rows (\d+, ){3}\d+\. Nothing of that step was kept, and what was learned before "
        r"it is whole\. Start again with Learning rate 0\.005 → 0\.002, or look at those rows first\.", run.error()
    )
    first, second = run.read("proposals")
    assert first["settings"] == {"learning_rate": 0.002} and second["settings"] == {"learning_rate": 0.002, "max_grad_norm": 0.3}
    assert runs.again(run, second["settings"]).recipe.max_grad_norm == 0.3
    assert not run.adapter_dir.exists() and not (run.folder / "done").exists()
    kept = checkpoints.load_adapter(checkpoints.newest(run.folder / "checkpoints"))
    assert checkpoints.steps(run.folder / "checkpoints") == [2]
    assert all(torch.isfinite(tensor).all() for tensor in kept.values())


def test_the_best_version_of_a_run_that_broke_can_be_kept(base, home, quick):
    quick.setattr(models, "attach_lora", spoiled(float("nan")))
    run = small_run(base)
    runs.claim(run)
    assert train.main(run) == 1 and run.kept_step() == 2
    with pytest.raises(UserError, match="has no version yet"):
        runs.keep(small_run(base))
    runs.claim(run)
    run.ask_stop()
    quick.setattr(train.lease, "hold", lambda *_, **__: nullcontext(True))  # its turn had come before it was marked; see `runs.keep`
    assert train.main(run) == 0 and run.state() == "stopped" and run.error() == ""
    assert run.read("report")["best_step"] == 2 and len(losses(run)) == 2
    assert adapter_hash(run.adapter_dir) == adapter_hash(run.folder / "checkpoints" / "checkpoint-2")


def without_a_number(monkeypatch, base, row: dict, when) -> None:
    """Let the losses of this row be no numbers while `when()`."""
    losses_of, tokenizer = fast.Path.losses, encode.load_tokenizer(str(base))

    def spoiled_losses(path, batch):
        found, owners = losses_of(path, batch)
        texts = [tokenizer.decode(ids) for ids in batch["input_ids"].split(batch["lengths"])]
        bad = torch.tensor([when() and row["messages"][0]["content"] in text for text in texts])
        return torch.where(bad[owners.cpu()], float("nan"), 1.0) * found, owners

    monkeypatch.setattr(fast.Path, "losses", spoiled_losses)


def test_a_loss_that_is_not_a_number_ends_the_run_and_names_its_row_alone(base, home, quick):
    run = small_run(base)
    rows = run.rows("train")
    bad = rows[5]
    seen = []
    without_a_number(quick, base, bad, lambda: bool(seen))
    at_step(quick, 4, lambda: seen.append(1))  # from the second epoch on
    assert train.main(run) == 1
    step = int(re.search(r"at step (\d)", run.error())[1])
    assert run.error().startswith(f"The loss stopped being a number at step {step} on row {bad['n']}. Nothing of that step was kept")
    assert step > 4 and len(losses(run)) == step - 1 and not run.adapter_dir.exists() and run.read("proposals")
    assert all(torch.isfinite(its).all() for its in checkpoints.load_adapter(checkpoints.newest(run.folder / "checkpoints")).values())


@pytest.mark.parametrize("step", [0, 4])
def test_held_out_rows_that_give_no_number_are_never_the_best_version(base, home, quick, step):
    run = small_run(base)
    bad = run.rows("held_out")[1]
    seen = [] if step else [1]
    without_a_number(quick, base, bad, lambda: bool(seen))
    at_step(quick, step, lambda: seen.append(1))
    assert train.main(run) == 1
    if step:
        assert run.error().startswith(f"The held-out loss stopped being a number at step 4 on held-out row {bad['n']}. That version is not kept")
        assert checkpoints.steps(run.folder / "checkpoints") == [2] and run.read("proposals")
    else:
        assert f"before the first step on held-out row {bad['n']}, so the base model itself gives none" in run.error()
    assert not run.adapter_dir.exists() and all(np.isfinite(event["loss"]) for event in events(run, "eval"))


def with_scaler(monkeypatch, scale: float) -> None:
    """Train as in 16-bit floats, whose gradients are scaled up before they are made; here on any machine."""
    from accelerate import Accelerator

    begin = train.Tuning.__init__

    def scaled(trainer, *rest):
        begin(trainer, *rest)
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)

    monkeypatch.setattr(train.Tuning, "__init__", scaled)
    monkeypatch.setattr(Accelerator, "unscale_gradients", lambda its, *_: [its.scaler.unscale_(one.optimizer) for one in its._optimizers])


def test_a_first_overflow_in_16_bit_floats_is_skipped(base, home, quick):
    quick.setattr(models, "attach_lora", spoiled(float("inf"), only=1))
    with_scaler(quick, 2.0**16)
    run = small_run(base)
    runs.claim(run)
    assert train.main(run) == 0, run.error()
    assert [event["step"] for event in events(run, "step") if event["grad_norm"] is None] == [3]
    assert len(losses(run)) == 8 and run.read("report")["change"] < 0
    assert all(torch.isfinite(its).all() for its in load_file(run.adapter_dir / "adapter_model.safetensors").values())


def test_an_overflow_that_no_scale_helps_ends_the_run(base, home, quick):
    quick.setattr(models, "attach_lora", spoiled(float("inf")))
    with_scaler(quick, 4.0)
    run = small_run(base)
    assert train.main(run) == 1
    assert run.error().startswith("The gradient stopped being a number at step 5 on rows") and not run.adapter_dir.exists()


def test_rows_cut_before_their_answers_are_refused(base, home, quick):
    run = small_run(base, max_tokens=8)
    assert train.main(run) == 1
    assert "None of the 16 training rows has an answer within its first 8 tokens" in run.error()
    assert "Raise max_tokens (the longest row has " in run.error()


def test_some_rows_that_teach_nothing_are_left_out_and_said(base, home, quick):
    long = [{"prompt": f"cat {n} " + "mat " * 150, "completion": "yes"} for n in range(5)]
    run = small_run(base, records=RECORDS + long)
    train.train(run)
    silent = sum("mat mat" in row["messages"][0]["content"] for row in run.rows("train"))
    assert silent and f"{silent} of {len(run.rows('train'))} training rows have nothing left to learn" in notes(run)


def test_an_adapter_that_changed_nothing_is_not_a_success(base, home, quick):
    run = small_run(base, learning_rate=1e-7, max_steps=1)
    assert train.main(run) == 1
    assert "The adapter changed nothing" in run.error() and "Raise the learning rate" in run.error()
    assert run.state() == "failed" and not (run.folder / "done").exists()


def test_what_safetensors_says_of_a_disk_is_the_system_s_error(tmp_path):
    """Its own words, as it really writes them."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    from tuner.home import system_errors

    with pytest.raises(SafetensorError):
        save_file({"a": torch.zeros(1)}, tmp_path / "nowhere" / "a.safetensors")
    with pytest.raises(FileNotFoundError), system_errors():
        save_file({"a": torch.zeros(1)}, tmp_path / "nowhere" / "a.safetensors")
    with pytest.raises(SafetensorError, match="another"), system_errors():
        raise SafetensorError("another error")


@pytest.mark.parametrize("how", ["other numbers", "cut short"])
def test_a_checkpoint_that_does_not_hold_what_was_written_is_none(base, home, quick, how):
    save_file = checkpoints.save_file

    def wrong(tensors, path):
        is_wrong = path.parent.name == ".tmp-4" and path.name == "optimizer.safetensors"
        save_file({name: its + (is_wrong and how == "other numbers") for name, its in tensors.items()}, path)
        if is_wrong and how == "cut short":
            path.write_bytes(path.read_bytes()[:-8])

    quick.setattr(checkpoints, "save_file", wrong)
    run = small_run(base)
    assert train.main(run) == 1 and "The disk failed while checkpoint-4 was written (optimizer.safetensors does not hold" in run.error()
    assert [path.name for path in (run.folder / "checkpoints").iterdir()] == ["checkpoint-2"]


def test_a_full_disk_ends_the_run_in_words_and_the_older_checkpoint_stays(base, home, quick):
    import errno

    from safetensors import SafetensorError

    save_file, calls = checkpoints.save_file, []

    def full(tensors, path):
        calls.append(path)
        if len(calls) > 2:  # two files in each checkpoint
            raise SafetensorError(f"Error while serializing: I/O error: No space left on device (os error {errno.ENOSPC})")
        save_file(tensors, path)

    quick.setattr(checkpoints, "save_file", full)
    run = small_run(base)
    assert train.main(run) == 1
    assert run.error().startswith("The disk is full") and "Delete a run you no longer need" in run.error()
    assert [path.name for path in (run.folder / "checkpoints").iterdir()] == ["checkpoint-2"]
    assert checkpoints.is_whole(run.folder / "checkpoints" / "checkpoint-2")
