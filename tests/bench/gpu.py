"""An 8B Llama shape on one GPU: Tuner's own run at 4,096 tokens and on short chat rows, against TRL and, where it is here, Unsloth.

    python -m tests.bench.gpu
    python -m tests.bench.gpu --smoke      # the same code on a tiny shape, on a CPU
    TUNER_BENCH_UNSLOTH=DIR python -m tests.bench.gpu    # Unsloth lies there with the older packages that it wants

The weights are random, of the right shape, made on the card a layer at a time; nothing is asked of the Hub. Each
contender quantises them to NF4 and trains rank 16 on all linear layers in a process of its own; the first three steps are
not counted; our run ends with its last step, before its report. TRL and Unsloth are tried with one row and with four rows at once (their step stays eight rows), and the
faster counts. "4N" is 4 x all parameters x tokens/s over the card's dense bf16 peak, as NVIDIA's own tables have it;
"useful" counts what arithmetic.py counts. Short rows are held against the long ones by useful arithmetic a second: what
is lost covers padding and everything else that short rows cost.
"""

import argparse
import importlib.util
import json
import os
import random
import signal
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.bench import training
from tests.bench.arithmetic import Shape, mfu
from tests.bench.contenders import Job, Outcome
from tests.bench.machine import describe
from tests.bench.training import Speed

BASE_ID = "bench/random-llama"
# Dense bf16 with fp32 sums, TFLOP/s, by what the card's name holds; T4 has no bf16, so fp16. The first that fits counts.
PEAKS_TFLOPS = (("H100", 989), ("H200", 989), ("L40S", 362), ("A100", 312), ("A10G", 125), ("L4", 121), ("T4", 65))
ROWS_AT_ONCE = (4, 1)
# A folder with Unsloth and the packages that it wants older than ours.
UNSLOTH = "TUNER_BENCH_UNSLOTH"
STEPS = 8


@dataclass(frozen=True)
class Size:
    """A Llama shape and what is trained on it.

    Args:
        tokens: of a long row; short rows have about `short` words.
        batch, short_batch: rows of a step.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    middle: int
    vocab: int
    tokens: int
    batch: int
    short: int
    short_batch: int


LLAMA_8B = Size(4096, 32, 32, 8, 14336, 128_256, 4096, 8, 25, 128)
TINY = Size(64, 2, 4, 2, 128, 384, 96, 4, 5, 8)


# The base ---------------------------------------------------------------------------------------------------------


def make_base(folder: Path, size: Size, device: str) -> Path:
    """Write a base model with random weights, drawn on the device a layer at a time, and a small tokenizer."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    from tests.bench.arithmetic import of_config
    from tests.small import small_tokenizer

    tokenizer = small_tokenizer(folder)
    config = AutoConfig.for_model(
        "llama", hidden_size=size.hidden, num_hidden_layers=size.layers, num_attention_heads=size.heads, num_key_value_heads=size.kv_heads,
        intermediate_size=size.middle, vocab_size=size.vocab, max_position_embeddings=max(8192, size.tokens), rope_theta=500_000.0,
        tie_word_embeddings=False, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        dtype="bfloat16", architectures=["LlamaForCausalLM"],
    )
    config.save_pretrained(folder)
    assert AutoModelForCausalLM._model_mapping[type(config)].__name__ == "LlamaForCausalLM"
    parts: dict[str, dict] = {}
    for name, weight in of_config(config).state_dict().items():
        layer = name.split(".")[2] if name.startswith("model.layers.") else "rest"
        parts.setdefault(layer, {})[name] = weight.shape
    generator = torch.Generator(device).manual_seed(0)
    where, total = {}, 0
    for number, names in enumerate(parts.values(), 1):
        file = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        made = {
            name: torch.ones(shape, dtype=torch.bfloat16) if len(shape) == 1 else
            torch.randn(shape, dtype=torch.bfloat16, device=device, generator=generator).mul_(0.02).cpu()
            for name, shape in names.items()
        }
        save_file(made, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(made, file)
        total += sum(its.numel() * 2 for its in made.values())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": where}), "utf-8")
    return folder


def parameters(size: Size) -> int:
    """All of the shape's parameters, embedding and head included."""
    head_dim = size.hidden // size.heads
    layer = 2 * size.hidden * (size.heads + size.kv_heads) * head_dim + 3 * size.hidden * size.middle + 2 * size.hidden
    return size.layers * layer + 2 * size.vocab * size.hidden + size.hidden


def long_records(size: Size, count: int) -> list[dict]:
    """Rows that fill `tokens` to the last and are cut there."""
    return _records(count, lambda rng: size.tokens)


def short_records(size: Size, count: int) -> list[dict]:
    """Rows as short and as different in length as in a chat."""
    return _records(count, lambda rng: max(2, round(rng.lognormvariate(0, 0.7) * size.short)))


def _records(count: int, words_of) -> list[dict]:
    rng = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    word = lambda: "".join(rng.choices(letters, k=rng.randint(2, 7)))  # noqa: E731
    return [
        {"instruction": f"{word()} {number}?", "input": "", "output": " ".join(word() for _ in range(words_of(rng)))} for number in range(count)
    ]


def base_entry(folder: Path) -> dict:
    return {"id": BASE_ID, "revision": "", "dir": str(folder), "what": "random weights", "licence": {"license": "apache-2.0"}}


# The contenders ---------------------------------------------------------------------------------------------------


def train_and_leave(steps: int) -> Callable:
    """A way to train: Start, wait for the last step, and kill the run before it measures what it has made."""

    def train(run) -> training.Told:
        from tuner import run as runs

        began = time.time()
        runs.start(run)
        while sum(event["kind"] == "step" for event in run.events()[0]) < steps:
            if run.state() in ("failed", "stopped", "done"):
                raise SystemExit(f"The run is {run.state()}: {run.error() or runs.last_words(run)}")
            time.sleep(0.1)
        told = training.tell(run, began, 0.0)
        os.killpg(run.read("process")["pid"], signal.SIGKILL)  # its children too
        while run.state() != "interrupted":
            time.sleep(0.1)
        return told

    return train


def ours(records: list[dict], batch: int, held_out: int, size: Size, base_dir: Path, steps: int, shape: Shape, train):
    """Tuner's own run on these rows: its speed, the run, its rows and which of them made each step."""
    from tuner.home import write_json
    from tuner.recipe import Recipe

    run = training.new_run(records, held_out, Recipe(**training.settings(batch, base_model=BASE_ID, max_tokens=size.tokens)))
    write_json(run.folder / "base.json", base_entry(base_dir))
    told = train(run)
    told.outcome.card_gib = max(event["memory_gib"] for event in run.events()[0] if event["kind"] == "step")
    rows, _ = training.encoded(run)
    batches = training.batches_of(run, rows, steps)
    training.fill_lengths(told.outcome, rows, batches)
    return Speed.of(told.outcome, shape, run.recipe.lora_rank, told.first_step_s), told, rows, batches


def others(name: str, job: Job, shape: Shape, train=training.train_other) -> tuple[Speed, float]:
    """A contender's speed and the memory of its card."""
    outcome = train(name, job)
    return Speed.of(outcome, shape, job.rank, outcome.setup_s + outcome.seconds[0]), outcome.card_gib


def line(name: str, speed: Speed, card_gib: float, count: int, peak_tflops: float) -> str:
    return (
        f"| {name} | {speed.tokens_per_s:,.0f} | {4 * count * speed.tokens_per_s / (peak_tflops * 1e12):.1%} | "
        f"{mfu(speed.flop, speed.seconds, peak_tflops * 1e3):.1%} | {card_gib:.1f} |"
    )


def peak_tflops(device: str) -> tuple[str, float]:
    """The card's name and dense bf16 peak; where it is not known, and on a CPU, the best product measured."""
    import torch

    from tests.bench.machine import product_gflops

    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    for part, known in PEAKS_TFLOPS:
        if part in name.replace("-", " ").split():
            return name, float(known)
    side = 8192 if device == "cuda" else 512
    return f"{name} (peak measured)", max(product_gflops(side, side, side, device=device) for _ in range(3)) / 1e3


def train_beside(name: str, job: Job) -> Outcome:
    """`training.train_other`; Unsloth with the packages that were put aside for it."""
    before = os.environ.get("PYTHONPATH")
    if name == "unsloth":
        os.environ["PYTHONPATH"] = os.pathsep.join(its for its in (os.environ.get(UNSLOTH), before) if its)
    try:
        return training.train_other(name, job)
    finally:
        os.environ.pop("PYTHONPATH", None)
        os.environ.update({"PYTHONPATH": before} if before else {})


def measure(size: Size, device: str, folder: Path, steps: int, train=None, train_other=train_beside) -> list[str]:
    """All of it: the table and the lines below it. What is there is told as it comes, too."""
    train = train or train_and_leave(steps)
    from tests.bench import arithmetic

    card, peak = peak_tflops(device)
    training.progress(f"{card}, {peak:,.2f} TFLOP/s; making the base")
    base_dir = make_base(folder / "base", size, device)
    shape, count = arithmetic.shape_of(arithmetic.skeleton(base_dir)), parameters(size)
    lines = [
        f"{count / 1e9:.2f}B Llama shape in NF4, rank 16 on all linear layers, {size.batch} rows of {size.tokens:,} tokens a step, {steps} steps, on {card}.",
        "", "| | tokens/s | MFU (4N) | MFU (useful) | card, GiB |", "|---|---:|---:|---:|---:|",
    ]
    speed, told, rows, batches = ours(long_records(size, steps * size.batch + 4), size.batch, 4, size, base_dir, steps, shape, train)
    lines.append(line(training.OURS, speed, told.outcome.card_gib, count, peak))
    training.progress(lines[-1])
    training.write_rows(folder / "rows.jsonl", rows, [its for batch in batches for its in batch])
    brief, _, short_rows, _ = ours(
        short_records(size, steps * size.short_batch + 4), size.short_batch, 4, size, base_dir, steps, shape, train
    )
    mean = statistics.fmean(len(row.ids) for row in short_rows)
    lost = 1 - (brief.flop / brief.seconds) / (speed.flop / speed.seconds)
    below = [
        f"short chat rows (mean {mean:,.0f} tokens, {size.short_batch} a step): {brief.tokens_per_s:,.0f} tokens/s; {lost:.1%} of the "
        "useful arithmetic a second lost against long rows",
        f"from Start to the end of the rehearsal's two steps: {told.first_step_s:.0f} s",
        f"plan: {', '.join(f'{key} {value}' for key, value in told.plan.items() if isinstance(value, (int, str, bool)) and len(str(value)) < 30)}, "
        f"{told.plan.get('fast')}",
    ]
    for its in below:
        training.progress(its)
    rivals = [("trl", training.TRL)] + ([("unsloth", "Unsloth")] if os.environ.get(UNSLOTH) or importlib.util.find_spec("unsloth") else [])
    best: dict[str, float] = {}
    for contender, name in rivals:
        tried = []
        for at_once in ROWS_AT_ONCE:
            job = Job(
                str(base_dir), str(folder / "rows.jsonl"), str(folder / f"{contender}.json"), steps, batch_size=size.batch,
                micro_batch=at_once, tokens_at_most=size.tokens,
            )
            try:
                tried.append((*others(contender, job, shape, train_other), at_once))
            except SystemExit as error:  # most likely the card's memory: said, and the other try counts
                training.progress(f"{name} with {at_once} rows at once: {error}")
        if tried:
            theirs, card_gib, at_once = max(tried, key=lambda its: its[0].tokens_per_s)
            best[name] = theirs.tokens_per_s
            lines.append(line(f"{name}, {at_once} rows at once", theirs, card_gib, count, peak))
            training.progress(lines[-1])
    if len(rivals) == 1:
        lines.append("| Unsloth | not installed | | | |")
    return [*lines, "", *(f"tokens per second, ours / {name}: {speed.tokens_per_s / theirs:.2f}" for name, theirs in best.items()), *below]


def main() -> None:
    """Print the table, or say why there is none."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="a tiny shape, on a CPU too: only to see that this still runs")
    parser.add_argument("--steps", type=int, default=STEPS)
    asked = parser.parse_args()
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not asked.smoke:
        raise SystemExit("No CUDA GPU here, so there is nothing to measure. Run this on a machine with one, or try the code with --smoke.")
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory(prefix="tuner-bench-") as home:
        os.environ["TUNER_HOME"] = home
        print(f"{time.strftime('%Y-%m-%d')}, {describe(training.PACKAGES)}\n", flush=True)
        print("\n".join(measure(TINY if asked.smoke else LLAMA_8B, device, Path(home), asked.steps)))


if __name__ == "__main__":
    main()
