"""How fast, how small and how right training is: Tuner's own run against TRL and the plain Trainer, on the same rows.

    make bench
    python -m tests.bench.training --alternations 1 --loss-steps 0

Four rows make a step, 96 rows make the 24 steps; each contender trains on each of them once. TRL and the plain Trainer
shuffle with their own sampler, as they do by default; one more line gives TRL the batches of like length that Tuner
makes. The first three steps warm up and are not counted, evaluations neither. MFU divides by the best bf16 product of
the model's own layer shapes at 2,048 rows, measured in the same call. Children run one after another, each in a process
of its own: peak memory is that process's high-water mark, evaluations and the final report included for Tuner.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.bench.arithmetic import Shape, mfu
from tests.bench.contenders import Job, Outcome
from tests.bench.machine import PeakMemory, Quiet, describe
from tests.bench.reference import Steps

ROOT = Path(__file__).resolve().parent.parent.parent
DATA = ROOT.parent / "shared" / "data" / "alpaca_en_demo.json"
OWNER = "bench"
WARM_UP = 3
HELD_OUT = 16
# The loss row's rows are short, so that an fp32 reference of 100 steps takes minutes: at most so many tokens each.
LOSS_STEPS, LOSS_TOKENS, LOSS_HELD_OUT = 100, 160, 32
# The names in the table, in the order in which they run.
OURS, TRL, PLAIN, TRL_LIKE = "Tuner", "TRL SFTTrainer", "plain Trainer", "TRL, given Tuner's batches"
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "trl")


# One training -----------------------------------------------------------------------------------------------------


def settings(batch: int, **others) -> dict:
    """The recipe of every run here: what all contenders are told alike, and as few evaluations as there may be."""
    return {
        "learning_rate": 2e-4, "lora_rank": 16, "lora_alpha": 32.0, "lora_dropout": 0.0, "max_tokens": 1024, "epochs": 1.0,
        "batch_size": batch, "schedule": "constant", "warmup_share": 0.0, "weight_decay": 0.0, "evaluations": 1, "patience": 0,
        "seed": 0, **others,
    }


def new_run(records: list[dict], held_out: int, recipe):
    """A run that learns from all of these records but the last ones, which are held out."""
    from tuner import data
    from tuner import run as runs

    split = [{**record, "split": "test" if place >= len(records) - held_out else "train"} for place, record in enumerate(records)]
    return runs.create(OWNER, recipe, data.keep(OWNER, "alpaca", split, {"kind": "file"}))


@dataclass
class Told:
    """What a finished run says of itself: its steps, what came before the first, and its memory.

    Args:
        stages: seconds from Start to each message before the first step.
        plan: the run's own, for the record.
    """

    outcome: Outcome
    first_step_s: float
    stages: list[tuple[str, float]]
    plan: dict = field(default_factory=dict)


def train_ours(run) -> Told:
    """Press Start as the page does, wait for the end, and read the run's events.

    Raises:
        SystemExit: the run failed; its own words are shown.
    """
    from tuner import run as runs

    began = time.time()
    runs.start(run)
    while (process := run.read("process")) is None or process["pid"] == os.getpid():
        if run.state() == "failed":
            raise SystemExit(f"The run failed: {run.error()}")
        time.sleep(0.02)
    memory = PeakMemory(process["pid"]).join()
    if run.state() not in ("done", "stopped"):
        time.sleep(1)  # the page's process reads the exit code a moment later
        raise SystemExit(f"The run is {run.state()}: {run.error() or runs.last_words(run)}")
    return tell(run, began, memory)


def tell(run, began: float, peak_gib: float) -> Told:
    """What a finished run's folder says."""
    events, _ = run.events()
    outcome = of_events(events)
    outcome.peak_gib = peak_gib
    # The rehearsal's two steps are the first that the run takes, with its longest rows; it tells when both are over.
    first = next(event for event in events if "rehearsed" in event)
    stages = [(event["message"], event["t"] - began) for event in events if event["kind"] == "status" and event["t"] < first["t"]]
    return Told(outcome, first["t"] - began, stages, run.read("plan") or {})


def of_events(events: list[dict]) -> Outcome:
    """The steps of a run's events: each lasts from the event before it, whatever that is, to its own.

    Evaluations, samples and checkpoints end with events of their own or stand before the next step's; a step that
    follows one of them is not timed (its duration is NaN), so that they are not counted as training.
    """
    outcome, before = Outcome(), None
    for event in events:
        if event["kind"] == "step":
            clean = before is not None and before["kind"] == "step" and before["step"] == event["step"] - 1
            outcome.seconds.append(event["t"] - before["t"] if clean else float("nan"))
            outcome.losses.append(event["loss"])
            outcome.learned.append(event["labelled_tokens"])
            outcome.tokens.append(event["tokens"])
        if event["kind"] != "note":
            before = event
    return outcome


def train_other(name: str, job: Job) -> Outcome:
    """Let a contender train in a fresh process.

    Raises:
        SystemExit: it failed; its last words are shown.
    """
    path = Path(job.out_path).with_suffix(".job")
    path.write_text(json.dumps(asdict(job)), "utf-8")
    run_module("tests.bench.contenders", name, str(path))
    return Outcome(**json.loads(Path(job.out_path).read_text("utf-8")))


def run_module(module: str, *arguments: str) -> None:
    """Run `python -m module arguments` to its end, quietly."""
    done = subprocess.run([sys.executable, "-m", module, *arguments], cwd=ROOT, capture_output=True, text=True, env=os.environ)
    if done.returncode:
        raise SystemExit(f"{module} {' '.join(arguments)} failed:\n{done.stderr[-2000:]}")


# What it took -----------------------------------------------------------------------------------------------------


@dataclass
class Speed:
    """A training's steps after the warm-up, as rates."""

    tokens_per_s: float
    learned_per_s: float
    flop: float
    seconds: float
    peak_gib: float
    first_step_s: float

    @classmethod
    def of(cls, outcome: Outcome, shape: Shape, rank: int, first_step_s: float, skip: int = WARM_UP) -> "Speed":
        timed = [step for step in range(skip, len(outcome.seconds)) if outcome.seconds[step] == outcome.seconds[step]]
        seconds = sum(outcome.seconds[step] for step in timed)
        return cls(
            sum(outcome.tokens[step] for step in timed) / seconds, sum(outcome.learned[step] for step in timed) / seconds,
            sum(shape.flop(rank, outcome.lengths[step], outcome.learned[step]) for step in timed), seconds,
            outcome.peak_gib, first_step_s,
        )


def table(found: dict[str, list[Speed]], best_gflops: float) -> list[str]:
    """The medians as a Markdown table, a line for each contender."""
    middle = lambda name, get: statistics.median(get(its) for its in found[name])  # noqa: E731
    lines = [
        "| | tokens/s | learned tokens/s | MFU | peak memory, GiB | Start to end of first step (ours: of two rehearsed), s |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name in found:
        lines.append(
            f"| {name} | {middle(name, lambda its: its.tokens_per_s):,.0f} | {middle(name, lambda its: its.learned_per_s):,.0f} | "
            f"{middle(name, lambda its: mfu(its.flop, its.seconds, best_gflops)):.1%} | {middle(name, lambda its: its.peak_gib):.2f} | "
            f"{middle(name, lambda its: its.first_step_s):.1f} |"
        )
    return lines


def ratios(found: dict[str, list[Speed]]) -> list[str]:
    """Ours against TRL: speed and memory, of the medians, and speed in each alternation."""
    middle = lambda name, get: statistics.median(get(its) for its in found[name])  # noqa: E731
    speed, memory = (lambda its: its.learned_per_s), (lambda its: its.peak_gib)
    each = ", ".join(f"{speed(ours) / speed(theirs):.2f}" for ours, theirs in zip(found[OURS], found[TRL]))
    lines = [
        f"learned tokens per second, ours / TRL: {middle(OURS, speed) / middle(TRL, speed):.2f}",
        f"in each alternation: {each}",
        f"peak memory, ours / TRL: {middle(OURS, memory) / middle(TRL, memory):.2f}",
    ]
    if TRL_LIKE in found:
        lines.append(f"learned tokens per second, ours / TRL given our batches: {middle(OURS, speed) / middle(TRL_LIKE, speed):.2f}")
    return lines


# The same rows for all --------------------------------------------------------------------------------------------


def encoded(run) -> tuple[list, list]:
    """The run's rows as its trainer encodes them: (to train on, held out)."""
    from tuner import encode, survey

    tokenizer = encode.load_tokenizer(run.read("base")["dir"])
    return tuple(survey.of(run.rows(part), tokenizer, run.recipe).encoded for part in ("train", "held_out"))


def batches_of(run, rows: list, steps: int) -> list[list[int]]:
    """Which rows make each of the run's steps."""
    from tuner.batching import LengthBatches

    recipe = run.recipe
    order = LengthBatches([len(row.ids) for row in rows], recipe.batch_size, recipe.seed)
    found: list[list[int]] = []
    while len(found) < steps:
        found += order.batches()
        order.set_epoch(order.epoch + 1)
    return found[:steps]


def write_rows(path: Path, rows: list, order: list[int]) -> None:
    path.write_text("".join(json.dumps({"ids": rows[its].ids, "labels": rows[its].labels}) + "\n" for its in order), "utf-8")


def fill_lengths(outcome: Outcome, rows: list, batches: list[list[int]]) -> None:
    """Give our steps their row lengths, once the run's own counts confirm that these were its rows.

    Raises:
        SystemExit: the run trained on other rows in some step than the batches say.
    """
    outcome.lengths = [[len(rows[its].ids) for its in batch] for batch in batches]
    wanted = [(sum(lengths), sum(rows[its].learned for its in batch)) for lengths, batch in zip(outcome.lengths, batches)]
    if wanted != list(zip(outcome.tokens, outcome.learned)):
        raise SystemExit("The run's steps do not hold the rows that its batches say; the comparison would not be of the same steps.")


# The measurements -------------------------------------------------------------------------------------------------


def compare(alternations: int, steps: int, batch: int, records: list[dict], folder: Path, quiet: Quiet, like: bool = True) -> tuple[dict, Told, str]:
    """Ours, TRL and the plain Trainer in turn, so many times; then TRL with our batches, once.

    Returns:
        each contender's speeds; the last of our own runs; the base model's folder.
    """
    from tuner.recipe import Recipe

    found: dict[str, list[Speed]] = {OURS: [], TRL: [], PLAIN: []}
    shape = told = None
    for alternation in range(alternations):
        quiet.look()
        run = new_run(records, HELD_OUT, Recipe(**settings(batch)))
        told = train_ours(run)
        rows, _ = encoded(run)
        batches = batches_of(run, rows, steps)
        fill_lengths(told.outcome, rows, batches)
        base_dir = run.read("base")["dir"]
        if shape is None:
            shape = shape_of(base_dir, folder)
            write_rows(folder / "rows.jsonl", rows, [its for batch in batches for its in batch])
        found[OURS].append(Speed.of(told.outcome, shape, run.recipe.lora_rank, told.first_step_s))
        say(OURS, found[OURS][-1])
        others = [(TRL, "trl", True), (PLAIN, "plain", True)]
        if like and alternation == alternations - 1:
            others.append((TRL_LIKE, "trl", False))
        for name, contender, own_order in others:
            quiet.look()
            outcome = train_other(contender, Job(
                base_dir, str(folder / "rows.jsonl"), str(folder / f"{contender}.json"), steps, batch_size=batch, own_order=own_order,
                tokens_at_most=run.recipe.max_tokens, rank=run.recipe.lora_rank, alpha=run.recipe.lora_alpha,
                learning_rate=run.recipe.learning_rate, max_grad_norm=run.recipe.max_grad_norm, seed=run.recipe.seed,
            ))
            found.setdefault(name, []).append(Speed.of(outcome, shape, run.recipe.lora_rank, outcome.setup_s + outcome.seconds[0]))
            say(name, found[name][-1])
            if not own_order:
                apart = max(abs(ours / theirs - 1) for ours, theirs in zip(told.outcome.losses, outcome.losses))
                progress(f"the same steps: losses of ours and TRL's are at most {apart:.1%} apart")
    return found, told, base_dir


def shape_of(base_dir: str, folder: Path) -> Shape:
    """The numbers that the arithmetic needs, counted in a process of its own."""
    out = folder / "shape.json"
    run_module("tests.bench.arithmetic", base_dir, str(out))
    return Shape(**json.loads(out.read_text("utf-8")))


def best_product(base_dir: str, folder: Path) -> tuple[str, float]:
    """The layer shape with the best bf16 product, and its GFLOP/s."""
    out = folder / "products.json"
    run_module("tests.bench.machine", base_dir, str(out))
    return max(json.loads(out.read_text("utf-8")).items(), key=lambda its: its[1])


def hold_against_reference(records: list[dict], batch: int, folder: Path, quiet: Quiet, steps: int = LOSS_STEPS) -> list[str]:
    """The loss row: our losses over so many steps against the same steps in fp32."""
    from tuner.recipe import Recipe

    quiet.look()
    run = new_run(records, LOSS_HELD_OUT, Recipe(**settings(batch, max_steps=steps)))
    told = train_ours(run)
    rows, held = encoded(run)
    batches = batches_of(run, rows, steps)
    fill_lengths(told.outcome, rows, batches)
    measured = [event for event in run.events()[0] if event["kind"] == "eval"][-1]
    job, out = folder / "reference.job", folder / "reference.json"
    job.write_text(json.dumps(asdict(reference_steps(run, batches, rows, held, out))), "utf-8")
    quiet.look()
    run_module("tests.bench.reference", str(job))
    reference = json.loads(out.read_text("utf-8"))
    last = min(10, steps)
    ours, theirs = (statistics.fmean(its[-last:]) for its in (told.outcome.losses, reference["losses"]))
    worst = max(abs(a / b - 1) for a, b in zip(told.outcome.losses, reference["losses"]))
    progress(f"apart, step by step: {' '.join(f'{a / b - 1:+.1%}' for a, b in zip(told.outcome.losses, reference['losses']))}")
    return [
        f"| loss after {steps} steps of {batch} rows of at most {LOSS_TOKENS} tokens | Tuner | fp32 reference | apart |",
        "|---|---:|---:|---:|",
        f"| first step, before any update | {told.outcome.losses[0]:.4f} | {reference['losses'][0]:.4f} | "
        f"{told.outcome.losses[0] / reference['losses'][0] - 1:+.2%} |",
        f"| training, mean of the last {last} steps | {ours:.4f} | {theirs:.4f} | {ours / theirs - 1:+.2%} |",
        f"| held out, {len(run.rows('held_out'))} rows | {measured['loss']:.4f} | {reference['held_out']:.4f} | {measured['loss'] / reference['held_out'] - 1:+.2%} |",
        "",
        f"Largest distance in a single step: {worst:.2%}. The reference took {reference['seconds']:,.0f} s and {reference['peak_gib']:.1f} GiB.",
    ]


def reference_steps(run, batches: list[list[int]], rows: list, held: list, out: Path) -> Steps:
    """What the reference needs to do this run's steps again, and to measure the rows that it evaluated."""
    as_dict = lambda row: {"ids": row.ids, "labels": row.labels}  # noqa: E731
    evaluated = (run.read("plan") or {}).get("evaluated_rows", range(len(held)))
    return Steps(str(run.folder), batches, [as_dict(row) for row in rows], [as_dict(held[its]) for its in evaluated], str(out))


def short_records(records: list[dict], count: int, tokens: int, tokenizer) -> list[dict]:
    """So many records of at most so many tokens, counted roughly: by their texts, with room for the template."""
    fits = [its for its in records if len(tokenizer.encode(its["instruction"] + its["input"] + its["output"])) + 40 <= tokens]
    return fits[:count]


def say(name: str, speed: Speed) -> None:
    progress(f"{name}: {speed.tokens_per_s:,.0f} tokens/s, {speed.learned_per_s:,.0f} learned, {speed.peak_gib:.2f} GiB")


def progress(line: str) -> None:
    """To standard error, so that standard output is what goes into RESULTS.md."""
    print(f"[{time.strftime('%H:%M:%S')}] {line}", file=sys.stderr, flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--alternations", type=int, default=3, help="0 leaves the comparison out")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--batch", type=int, default=4, help="rows of a step; 8 takes twice the time, most of it TRL's")
    parser.add_argument("--loss-steps", type=int, default=LOSS_STEPS, help="steps of the loss row, which takes minutes; 0 leaves it out")
    asked = parser.parse_args()
    if not DATA.is_file():
        print(f"The benchmark's rows are not here ({DATA.name} in {DATA.parent.name}/ beside the project), so there is nothing to measure.")
        return
    os.environ.update(HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="")  # before huggingface_hub is imported, which keeps what it saw
    from tuner import encode, starter

    base_dir = starter.prepare()
    models = base_dir.parent
    quiet, began = Quiet(), time.time()
    with tempfile.TemporaryDirectory(prefix="tuner-bench-") as home:
        os.environ["TUNER_HOME"] = home
        (Path(home) / "models").symlink_to(models)  # the starter is converted once and stays where it is
        print(f"{time.strftime('%Y-%m-%d')}, {describe(PACKAGES)}\n", flush=True)
        records = json.loads(DATA.read_text("utf-8"))
        random.Random(0).shuffle(records)
        if asked.alternations:
            lines = compared(asked, records, Path(home), quiet)
            print("\n".join(lines), "\n", flush=True)
        if asked.loss_steps:
            tokenizer = encode.load_tokenizer(str(base_dir))
            chosen = short_records(records, asked.loss_steps * asked.batch + LOSS_HELD_OUT, LOSS_TOKENS, tokenizer)
            print("\n".join(hold_against_reference(chosen, asked.batch, Path(home), quiet, asked.loss_steps)), "\n")
        print(f"took {(time.time() - began) / 60:.0f} minutes")
        print(quiet.warning())


def compared(asked, records: list[dict], folder: Path, quiet: Quiet) -> list[str]:
    """The table and the lines below it."""
    found, told, base_dir = compare(
        asked.alternations, asked.steps, asked.batch, records[: asked.steps * asked.batch + HELD_OUT], folder, quiet
    )
    product, best_gflops = max((best_product(base_dir, folder) for _ in range(2)), key=lambda its: its[1])
    stages = "; ".join(f"{message} after {seconds:.1f}" for message, seconds in told.stages)
    plan = ", ".join(f"{key} {value}" for key, value in told.plan.items() if not isinstance(value, (list, dict)) and len(str(value)) < 30)
    return [
        f"SmolLM2-135M, {DATA.name}, rank 16 on all linear layers, {asked.steps} steps of {asked.batch} rows, "
        f"medians of {asked.alternations}.", "", *table(found, best_gflops), "", *ratios(found),
        f"best bf16 product at 2,048 rows: {best_gflops:,.0f} GFLOP/s ({product})",
        f"from Start to the end of the rehearsal's two steps: {statistics.median(its.first_step_s for its in found[OURS]):.1f} s ({stages})",
        f"plan: {plan}",
    ]


if __name__ == "__main__":
    main()
