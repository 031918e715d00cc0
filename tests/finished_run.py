"""A finished run made without training it, and without torch: everything that publishing reads, and weights of a few bytes."""

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tuner import bases, data
from tuner import run as runs
from tuner.home import write_json, write_whole
from tuner.recipe import Recipe

# What `card.build` gives is tested on real runs; here only that it arrives.
CARD = """---
base_model: test/small
library_name: peft
license: apache-2.0
pipeline_tag: text-generation
tags: [lora]
---

# Animals
"""


def finished_run(folder: Path, owner: str = "local", weights: int = 1000, **settings) -> runs.Run:
    """A run of this owner in TUNER_HOME that is done; its base lies in the folder.

    Args:
        weights: float32 numbers in the adapter.
    """
    base_dir = folder / "base"
    base_dir.mkdir(parents=True, exist_ok=True)
    save_file({"w": np.zeros(8, np.float32)}, base_dir / "model.safetensors")
    records = [{"prompt": f"Where is number {n}?", "completion": f"On mat {n}."} for n in range(20)]
    dataset = data.keep(owner, "Animals", records, {"kind": "paste"})
    run = runs.create(owner, Recipe(**{"base_model": "test/small", **settings}), dataset)
    write_json(run.folder / "base.json", {
        "id": "test/small", "revision": "", "dir": str(base_dir), "what": "a random model", "licence": {"license": "apache-2.0"},
    })
    write_json(run.folder / "plan.json", {
        "base_sha256": bases.weights_hash(base_dir), "precision": "bfloat16", "dequantised": True, "attention": "sdpa", "kept_16bit": [],
        "device": "cpu", "steps": 4,
    })
    run.adapter_dir.mkdir()
    rng = np.random.default_rng(0)
    save_file({"lora_A": rng.standard_normal(weights, np.float32)}, run.adapter_dir / "adapter_model.safetensors")
    write_json(run.adapter_dir / "adapter_config.json", {"peft_type": "LORA", "base_model_name_or_path": "test/small", "r": 8})
    run.log("step", step=4, loss=1.0, tokens=1000)
    run.log("result", elapsed_s=60.0)
    write_whole(run.folder / "done", '{"state": "done"}')
    return run
