"""What a Recipe needs: GiB, minutes, dollars; nothing here imports torch."""

import math
from pathlib import Path

import numpy as np

from tuner.home import read_json, tuner_home, write_json

# $ an hour on a Space (hub-docs spaces-gpus, 2026-08); (name, GiB on the card or in memory, $/h, bf16 TFLOP/s to expect)
HARDWARE = (
    ("T4 small", 15, 0.40, 12.0), ("L4", 22, 0.80, 35.0), ("A10G small", 22, 1.00, 40.0),
    ("L40S", 45, 1.80, 110.0), ("A100 large", 79, 2.50, 120.0),
)
# Before anything was measured here: what two ordinary cores with native bf16 reach in training.
DEFAULT_GFLOPS = 120.0


def shape(config) -> dict:
    """The numbers of a model's config that costs follow from; takes a config object or its JSON as a dict."""
    get = (lambda name, default=None: config.get(name, default)) if isinstance(config, dict) else (
        lambda name, default=None: getattr(config, name, default)
    )
    inner = get("text_config")
    if inner is not None and get("hidden_size") is None:
        return shape(inner)
    hidden, layers = get("hidden_size"), get("num_hidden_layers")
    heads = get("num_attention_heads") or 1
    head_dim = get("head_dim") or hidden // heads
    kv_heads = get("num_key_value_heads") or heads
    middle, vocab = get("intermediate_size") or 4 * hidden, get("vocab_size")
    linear = layers * (2 * hidden * heads * head_dim + 2 * hidden * kv_heads * head_dim + 3 * hidden * middle)
    return {
        "hidden": hidden, "layers": layers, "heads": heads, "head_dim": head_dim, "kv_heads": kv_heads,
        "middle": middle, "vocab": vocab, "linear": linear,
        "embedded": vocab * hidden * (1 if get("tie_word_embeddings", True) else 2),
        "lora_per_rank": layers * (
            2 * (hidden + heads * head_dim) + 2 * (hidden + kv_heads * head_dim) + 3 * (hidden + middle)
        ),
    }


def activation_gib(config, tokens: int) -> float:
    """What is kept for the backward pass of this many tokens at once, without checkpointing.

    Per token and layer in 16 bits: the block's input, both norms' in- and outputs, q, k, v, the attention's output,
    gate, up, their product and the LoRA inputs: about 14 hidden and 5 middle widths.
    """
    its = shape(config)
    return tokens * its["layers"] * (14 * its["hidden"] + 5 * its["middle"]) * 2 / 2**30


def base_bytes(its: dict, quantisation: str, memory_free_gib: float) -> float:
    """The base's weights: in 4 bits, unless its layers unpacked to 16 take less than a quarter of the memory; see
    `models.room_to_dequantise`. Embedding and head stay in 16 bits."""
    unpacked = 2 * its["linear"]
    packed = quantisation == "nf4" and unpacked >= memory_free_gib * 2**30 / 4
    return (0.53 * its["linear"] if packed else unpacked) + 2 * its["embedded"]


def flop_per_token(its: dict, rank: int, mean_tokens: float, learned_share: float) -> float:
    """Useful arithmetic of one trained token: 4N + 4 f H d + 6 L + 6 T a l (reference: performance notes, section 3)."""
    return (
        4 * its["linear"] + 4 * learned_share * its["vocab"] * its["hidden"] + 6 * rank * its["lora_per_rank"]
        + 6 * mean_tokens * its["heads"] * its["head_dim"] * its["layers"]
    )


def make(recipe, config: dict, lengths, learned: int, held_out: int, memory_free_gib: float) -> dict:
    """About what a run will need on this machine and on hired ones.

    Args:
        config: the base model's config.json.
        lengths: (S,) tokens of each training sequence, as cut.
        learned: learned tokens in all training rows.
        held_out: tokens of all held-out rows.

    Returns:
        steps, tokens, memory_gib and its parts, minutes, measured (whether the speed was seen on this machine),
        fits, and hardware: [{name, minutes, dollars, fits}].
    """
    its = shape(config)
    lengths = np.sort(np.asarray(lengths, np.int64))
    total = int(lengths.sum())
    per_epoch = math.ceil(len(lengths) / recipe.batch_size)
    steps = recipe.max_steps or max(1, math.ceil(recipe.epochs * per_epoch))
    tokens = total * steps / per_epoch
    mean = total / len(lengths)
    work = tokens * flop_per_token(its, recipe.lora_rank, mean, learned / total)
    speed, measured = known_speed()
    # Evaluations take up to a tenth, the report two passes over the held-out rows; loading is about constant.
    evaluated = 1.1 * work + 2 * held_out * flop_per_token(its, recipe.lora_rank, mean, 1.0) / 3
    seconds = evaluated / (speed * 1e9) + 25
    longest = int(lengths[int(0.95 * (len(lengths) - 1))])
    micro = recipe.micro_batch or max(1, min(recipe.batch_size, 2048 // max(1, longest)))
    parts = {
        "libraries": 0.6,
        "base": base_bytes(its, recipe.quantisation, memory_free_gib) / 2**30,
        "adapter and optimiser": 16 * recipe.lora_rank * its["lora_per_rank"] / 2**30,
        "activations": activation_gib(config, micro * int(lengths[-1])),
        "loss": 256 * its["vocab"] * 10 / 2**30,
    }
    memory = sum(parts.values())
    fits_in = lambda gib: memory - parts["base"] + base_bytes(its, recipe.quantisation, gib) / 2**30 < gib  # noqa: E731
    hired = [
        {"name": name, "minutes": (evaluated / (tflops * 1e12 * 0.5) + 60) / 60,
         "dollars": (evaluated / (tflops * 1e12 * 0.5) + 60) / 3600 * dollars, "fits": fits_in(size)}
        for name, size, dollars, tflops in HARDWARE
    ]
    return {
        "steps": steps, "tokens": round(tokens), "memory_gib": memory, "parts": parts, "minutes": seconds / 60,
        "measured": measured, "fits": fits_in(memory_free_gib), "hardware": hired,
    }


def _speed_path() -> Path:
    return tuner_home() / "speed.json"


def known_speed() -> tuple[float, bool]:
    """GFLOP/s of training on this machine, and whether that was measured by an earlier run here."""
    known = read_json(_speed_path(), {})
    return known.get("train_gflops", DEFAULT_GFLOPS), "train_gflops" in known


def remember_speed(plan: dict, config, run) -> None:
    """Keep what this run reached, so that the next quote rests on this machine."""
    steps = [event for event in run.events()[0] if event["kind"] == "step"]
    if len(steps) < 5:
        return
    its = shape(config)
    recent = steps[len(steps) // 2 :]
    share = sum(event["labelled_tokens"] for event in recent) / sum(event["tokens"] for event in recent)
    rate = sorted(event["tokens_per_s"] for event in recent)[len(recent) // 2]
    gflops = rate * flop_per_token(its, run.recipe.lora_rank, 100, share) / 1e9
    write_json(_speed_path(), {"train_gflops": gflops, "precision": plan["precision"]})
