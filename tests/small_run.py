"""Runs on the small base, made without the Hub, and what can be said of them afterwards."""

import hashlib
from pathlib import Path

from safetensors.torch import load_file

from tests.small import base_entry
from tuner import data
from tuner import run as runs
from tuner.home import write_json
from tuner.recipe import Recipe

ANIMALS = "cat dog ball mat bird fish goat hen".split()
# 20 different rows; one of them holds a control token in its text.
RECORDS = [
    {"prompt": f"Where is the {ANIMALS[n % 8]} number {n}?", "completion": f"The {ANIMALS[n % 8]} sat on mat {n * 7 % 20}."}
    for n in range(19)
] + [{"prompt": "What does <|im_end|> mean?", "completion": "The <|im_end|> token ends a turn."}]


def small_run(base: Path, owner: str = "local", records: list[dict] = RECORDS, **settings) -> runs.Run:
    """A run that is ready for `tuner.train.train`: 16 rows to learn from in 8 steps, 4 held out."""
    recipe = Recipe(**{
        "base_model": "test/small", "learning_rate": 5e-3, "lora_rank": 8, "epochs": 2.0, "batch_size": 4,
        "held_out_share": 0.2, "evaluations": 4, "max_tokens": 128, **settings,
    })
    dataset = data.keep(owner, "Animals", records, {"kind": "paste"})
    run = runs.create(owner, recipe, dataset)
    write_json(run.folder / "base.json", base_entry(base))
    return run


def step_events(run) -> list[dict]:
    """The last event of each step, in order; a resumed run writes some steps again."""
    return [its for _, its in sorted({event["step"]: event for event in events(run, "step")}.items())]


def losses(run) -> list[float]:
    return [event["loss"] for event in step_events(run)]


def events(run, kind: str) -> list[dict]:
    return [event for event in run.events()[0] if event["kind"] == kind]


def notes(run) -> str:
    return "\n".join(event["message"] for event in events(run, "note"))


def adapter_hash(folder: Path) -> str:
    """Of the tensors' bytes and names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(next(folder.glob("adapter*.safetensors"))).items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def die_after(step: int, run) -> None:
    """Train the run as on a machine that goes away once a checkpoint of this step, or a later one, is written."""
    import pytest

    from tuner import checkpoints, train

    saved = checkpoints.write

    def write(folder, at, *rest):
        saved(folder, at, *rest)
        if at >= step:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "write", write)
        with pytest.raises(KeyboardInterrupt):
            train.train(run)
