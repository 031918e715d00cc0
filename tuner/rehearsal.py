"""The rehearsal: what a run is said to need, tried on its longest rows before step 1, and learned from at its end."""

import gc
import resource
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import torch
from transformers import TrainerCallback

from tuner import checkpoints, cost, machine, packed, proposals, quote, sizes, tasks
from tuner import plan as plans
from tuner.home import write_json
from tuner.quote import Quote, Rows

# Steps that are tried: the second one finds gradients to add to and memory that was used before, as all later ones do.
STEPS = 2
# How far the formula may be off: a run that seems to need this much less than it says is still tried.
TRUST = 0.85
# Resident memory above what was rehearsed from which the allocator is asked for what it hoards. Asked at every step it
# costs 8 % of the speed, asked this late nothing that could be measured (tests/bench/DIARY.md).
HOARD = 1.2


def quote_run(run, train_set, held_set, base_dir: Path) -> Quote:
    """Note in the run what it is said to need, before anything large is loaded.

    Raises:
        UserError: it cannot fit by far; then nothing is loaded, and what would fit is noted.
    """
    its = sizes.in_folder(base_dir)
    held_lengths = [len(row.ids) for row in held_set.encoded]
    rows = Rows([len(row.ids) for row in train_set.encoded], train_set.learned, held_lengths, held_rows=len(set(held_set.owners)), chosen=True, classes=_classes(run, train_set))
    made = quote.here(run.recipe, its, rows)
    _note(run, made, rows, its)
    if TRUST * made.needed_gib > made.free_gib:
        raise proposals.refuse(
            run, f"This run needs about {made.needed_gib:.1f} GiB and {made.free_gib:.1f} GiB is free, so it was not begun."
        )
    return made


def _classes(run, train_set) -> int:
    if not tasks.get(run.recipe.task).LABELLED:
        return 0
    return len({name for row in train_set.encoded for name in (row.labels if row.labels is not None else [row.label])})


def _note(run, made: Quote, rows: Rows, its) -> None:
    """quote.json: the quote, and enough of the rows to make another from without them."""
    reach = machine.reach(cost.kind(run.recipe, its))
    write_json(run.folder / "quote.json", {
        "memory_gib": made.memory_gib, "memory": made.memory, "seconds": made.seconds, "time": made.time, "free_gib": made.free_gib,
        "tokens": made.tokens, "steps": made.steps, "evaluations": made.evaluations, "kind": f"{reach.device}/{reach.precision}/{cost.kind(run.recipe, its)}",
        "ratios": dict(reach.known), "rows": quote.summed_up(rows), "sizes": its.__dict__,
        "plan": made.plan.__dict__,
    })


class Rehearsal(TrainerCallback):
    """Runs the rehearsal when training is about to begin, in the process and with the model that will train."""

    def __init__(self, trainer):
        self.trainer = trainer
        self.held_gib = 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        began = time.time()
        self.held_gib = rehearse(self.trainer)
        self.trainer.meter.leave_out(time.time() - began)

    def on_step_end(self, args, state, control, **kwargs):
        """Give back what the allocator hoards above what was rehearsed: it fragments with every new length of rows."""
        if self.held_gib and not torch.cuda.is_available() and resident_gib() > HOARD * self.held_gib:
            packed.trim()

    def on_train_end(self, args, state, control, **kwargs):
        packed.trim()  # what follows is smaller, and on top of it


def rehearse(trainer) -> float:
    """Go forward and back over the micro-batch with the most tokens, as the run will form it, and correct the quote.

    No random state, weight, optimiser state or gradient is other afterwards than it was.

    Returns:
        GiB that training takes at its peak.

    Raises:
        UserError: there is not enough memory; what would fit is noted in the run.
    """
    run, model = trainer.run, trainer.model
    lengths = plans.Lengths([len(row.ids) for row in trainer.rows])
    plan = plans.Plan(
        trainer.plan["tokens_at_once"], trainer.plan["micro_batch"], trainer.plan["gradient_checkpointing"], trainer.plan["dequantised"],
        trainer.plan["fast"]["prepacked"],
    )
    heaviest = [trainer.rows[index] for index in lengths.heaviest_rows(run.recipe, plan)]
    tokens = sum(len(row.ids) for row in heaviest)
    run.log("status", state="rehearsing", message=f"Trying the longest rows first: {len(heaviest)} at once, {tokens:,} tokens")
    before = process_peak_gib()
    spent = []
    try:
        with checkpoints.random_untouched(), _Peak() as seen:
            for _ in range(STEPS):
                began = time.perf_counter()
                trainer.gradients(trainer.path.collate(heaviest), sum(row.learned for row in heaviest))
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                spent.append(time.perf_counter() - began)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        model.zero_grad(set_to_none=True)
        gc.collect()
        raise proposals.refuse(
            run, f"The rehearsal ran out of memory on the longest rows ({len(heaviest)} at once, {tokens:,} tokens). Nothing was trained yet."
        ) from None
    model.zero_grad(set_to_none=True)
    # The optimiser's two moments come with the first step; a resumed run has them already.
    moments = 0 if trainer.optimizer.state else 8 * sum(p.numel() for p in model.parameters() if p.requires_grad) / 2**30
    _correct(trainer, plan, max(before, seen.gib + moments), before, spent, heaviest)
    return seen.gib + moments


def _correct(trainer, plan: plans.Plan, memory_gib: float, loading_gib: float, spent: list[float], heaviest: list) -> None:
    """Note what the rehearsal measured, and say it beside what was quoted."""
    run = trainer.run
    noted = run.read("quote")
    its = sizes.Sizes(**noted["sizes"])
    lengths = [len(row.ids) for row in heaviest]
    work = cost.Work.of(lengths, sum(row.learned for row in heaviest), 1, 0)
    reach = machine.reach(cost.kind(run.recipe, its))
    formula = cost.training_s(run.recipe, its, plan, work, reach) * reach.ratio("train")
    faster = min(4.0, max(0.25, spent[-1] / formula))
    process = run.read("process") or {}
    taken = dict(noted["time"])
    if "started" in process:
        taken["getting ready"] = time.time() - process["started"] - sum(spent)
    taken["rehearsal"] = sum(spent)
    taken["training"] *= faster
    rehearsed = {"memory_gib": memory_gib, "loading_gib": loading_gib, "seconds": sum(taken.values()), "time": taken, "passes_s": spent, "tokens": sum(lengths)}
    write_json(run.folder / "quote.json", {**noted, "rehearsed": rehearsed})
    run.log(
        "status", state="rehearsing", message="Rehearsed; measuring the base model before the first step",
        quoted={"memory_gib": round(noted["memory_gib"], 3), "seconds": round(noted["seconds"], 1)},
        rehearsed={"memory_gib": round(memory_gib, 3), "seconds": round(rehearsed["seconds"], 1)},
    )


# Memory of this process -------------------------------------------------------------------------------------------


def process_peak_gib() -> float:
    """The most that this process ever held: on the card where there is one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved() / 2**30
    try:  # what getrusage says may be of the process that this one was started by
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**20
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class _Peak:
    """The most that is held between its beginning and its end.

    The system keeps only the most there ever was, and loading may have taken more; so a thread looks, 500 times a second.
    """

    def __enter__(self) -> "_Peak":
        self.gib, self._over = 0.0, threading.Event()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._before = process_peak_gib()
        self._thread.start()
        return self

    def _look(self) -> None:
        while not self._over.wait(0.002):
            self.gib = max(self.gib, resident_gib())

    def __exit__(self, *_) -> None:
        self._over.set()
        self._thread.join()
        most = process_peak_gib()
        if torch.cuda.is_available() or most > self._before:  # then it is known to the page
            self.gib = most


def resident_gib() -> float:
    """What this process holds now outside any card."""
    return psutil.Process().memory_info().rss / 2**30


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch or Python had no memory left; torch's own allocator for CPUs says so in a RuntimeError."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and ("DefaultCPUAllocator" in str(error) or "not enough memory" in str(error))


# Learning from runs -----------------------------------------------------------------------------------------------


def learn(run) -> None:
    """Keep by how much this finished run took longer than its formula said, part by part, for the next quote.

    A run that was interrupted and resumed says nothing: its parts cannot be told apart.
    """
    noted, process = run.read("quote"), run.read("process") or {}
    events, _ = run.events()
    tried = [event["t"] for event in events if event["kind"] == "status" and "rehearsed" in event]
    if not noted or "rehearsed" not in noted or len(tried) != 1 or process.get("started", tried[0]) >= tried[0]:
        return
    ratios = taken_by_quoted(events, noted, process["started"], tried[0])
    if ratios:
        machine.remember(noted["kind"], {part: ratio * noted["ratios"].get(part, 1.0) for part, ratio in ratios.items()})


def taken_by_quoted(events: list[dict], noted: dict, started: float, rehearsed_at: float) -> dict[str, float]:
    """Part of a run -> seconds taken / seconds quoted: "start", "train", "answers"."""
    said = noted["time"]
    tries = sum(noted["rehearsed"]["passes_s"])
    found = {"start": (rehearsed_at - tries - started) / said["getting ready"]}
    events = [event for event in events if event["t"] > rehearsed_at]  # what was before was perhaps on another machine
    spans = [
        (event["t"] - before["t"], event["tokens"]) for before, event in zip(events, events[1:])
        if before["kind"] == event["kind"] == "step"
    ]
    if len(spans) >= 5:
        per_token = sum(span for span, _ in spans) / sum(tokens for _, tokens in spans)
        found["train"] = per_token * noted["tokens"] / said["training"]
    answers = [event["answers_s"] for event in events if event["kind"] == "eval" and "answers_s" in event]
    if answers and len(answers) == noted["evaluations"] + 1 and said["answers"]:  # the first ones take longest: only all of them can be compared
        found["answers"] = sum(answers) / said["answers"]
    return {part: float(np.clip(ratio, 0.1, 10)) for part, ratio in found.items()}
