"""The same steps once more in fp32, by nothing but transformers, PEFT's plain layers and torch: what the fast path is held against.

    python -m tests.bench.reference JOB.json

The base is quantised to NF4 and unpacked again, so that it has the same weights; from there on all is fp32. Only the
adapter's first values come from Tuner, which drew them by the run's seed.
"""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.bench.contenders import IGNORE
from tests.bench.machine import high_water_gib


@dataclass(frozen=True)
class Steps:
    """What the reference trains on.

    Args:
        run_dir: the run whose steps are done again; its recipe has every setting.
        batches: row numbers of each optimiser step.
        rows, held: {"ids", "labels"} of each row to train on, and of those that the run evaluated.
    """

    run_dir: str
    batches: list[list[int]]
    rows: list[dict]
    held: list[dict]
    out_path: str


def unpacked(base_dir: str):
    """The base in fp32 with the values that NF4 and double quantisation leave of its linear layers."""
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base_dir, dtype=torch.bfloat16, attn_implementation="eager", local_files_only=True)
    head = model.get_output_embeddings()
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and module is not head:
            packed, state = quantize_4bit(module.weight.data, quant_type="nf4", compress_statistics=True)
            module.weight.data = dequantize_4bit(packed, state)
    return model.float()


def first_adapter(run_dir: str) -> dict:
    """The adapter as the run began with it: drawn again by its own code and seed."""
    from tuner import models
    from tuner import run as runs

    run = runs.from_folder(Path(run_dir))
    base = run.read("base")
    loaded = models.load_base(Path(base["dir"]), run.recipe, run.read("plan"))
    tuned = models.attach_lora(loaded.model, run.recipe, base["id"], base["revision"])
    return {name: tensor.float().clone() for name, tensor in models.lora_state(tuned).items()}


def batch_of(rows: list[dict]):
    """(B, T) ids, mask and labels, padded on the right."""
    import torch

    longest = max(len(row["ids"]) for row in rows)
    ids, mask = torch.zeros(len(rows), longest, dtype=torch.long), torch.zeros(len(rows), longest, dtype=torch.long)
    labels = torch.full((len(rows), longest), IGNORE)
    for place, row in enumerate(rows):
        count = len(row["ids"])
        ids[place, :count], mask[place, :count] = torch.tensor(row["ids"]), 1
        labels[place, :count] = torch.tensor(row["labels"])
    return ids, mask, labels


def mean_loss(model, rows: list[dict]):
    """The mean cross-entropy over the learned tokens of these rows, and how many there are."""
    from torch.nn import functional as F

    ids, mask, labels = batch_of(rows)
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
    targets = labels[:, 1:]
    loss = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), ignore_index=IGNORE)
    return loss, int((targets != IGNORE).sum())


def train(steps: Steps) -> dict:
    """Do the steps; the loss of each before its update, and the loss on the held-out rows at the end."""
    import torch
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    from tuner import run as runs

    run = runs.from_folder(Path(steps.run_dir))
    recipe = run.recipe
    start = first_adapter(steps.run_dir)
    model = get_peft_model(unpacked(run.read("base")["dir"]), LoraConfig(
        r=recipe.lora_rank, lora_alpha=recipe.lora_alpha, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM",
    ))
    missing = set_peft_model_state_dict(model, start)
    assert not missing.unexpected_keys, missing.unexpected_keys[:3]
    weights = [its for its in model.parameters() if its.requires_grad]
    assert {its.dtype for its in weights} == {torch.float32} and len(weights) == len(start)
    optimizer = torch.optim.AdamW(weights, lr=recipe.learning_rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=recipe.weight_decay)
    began, losses = time.time(), []
    for batch in steps.batches:
        optimizer.zero_grad()
        loss, _ = mean_loss(model, [steps.rows[number] for number in batch])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, recipe.max_grad_norm)
        optimizer.step()
        losses.append(float(loss))
    took = time.time() - began
    with torch.no_grad():
        parts = [mean_loss(model, [row]) for row in steps.held]
    held = sum(float(loss) * count for loss, count in parts) / sum(count for _, count in parts)
    return {"losses": losses, "held_out": held, "seconds": took, "peak_gib": high_water_gib()}


def main() -> None:
    """Read the steps, do them, write down the losses."""
    steps = Steps(**json.loads(Path(sys.argv[1]).read_text("utf-8")))
    Path(steps.out_path).write_text(json.dumps(train(steps)), "utf-8")


if __name__ == "__main__":
    main()
