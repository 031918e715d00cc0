"""Quoted against taken: short real runs of different recipes, each a child process of its own (`make bench-quote`).

    python -m tests.bench.quote [NAME ...]    run these recipes (default: all), then print the table of all that were run
    python -m tests.bench.quote --table       the table alone

The quote is made before Start as the page makes it, in this process, which holds no torch. Taken are the peak of the
child's resident memory (VmHWM) and the time from its start to its end; the base is on this machine already. A run beside
which others (programs here, guests of the host elsewhere) took more than a tenth of the cores, or at whose beginning or end
a matrix product took over a tenth longer than when the machine was measured, is run again, at most twice, and what the table
shows of it is told: it measures them, not us.

Everything is kept in $TUNER_BENCH_HOME (default: a folder in the system's temporary one): the machine's figures, measured
once, what finished runs taught, and the results. The first recipe, `teacher`, is a run like a newcomer's; it is not held
to account, since a machine that has finished no run yet knows its speed by formula alone.

A second table tells what each run's report did in its time: whether all held-out rows were measured and those with short answers
answered within a quarter of the run or a minute, and how much of the probe was asked.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent.parent
DATA = ROOT.parent / "shared" / "data"
WITHIN = {"memory": 0.15, "time": 0.20}
MEDIAN = 0.07


@dataclass(frozen=True)
class Case:
    """One recipe that differs from the others in what costs."""

    dataset: Path
    settings: dict = field(default_factory=dict)
    counts: bool = True


# Few rows are held out in most, so that their reports are short; in some they are many, and the report takes all it may.
FEW = {"held_out_share": 0.03}
HEADLINES, ALPACA = ROOT / "presets" / "data" / "headlines.jsonl", DATA / "alpaca_en_demo.json"
TOOLS, TEXT = DATA / "glaive_toolcall_en_demo.json", DATA / "c4_demo.jsonl"
CASES = {
    "teacher": Case(HEADLINES, {"max_tokens": 256, "epochs": 1.2, "evaluations": 8, "learning_rate": 1e-3}, counts=False),
    "headlines": Case(HEADLINES, {"max_tokens": 256, "epochs": 0.8, "evaluations": 8}),
    "headlines, rank 64": Case(HEADLINES, {**FEW, "max_tokens": 256, "epochs": 0.4, "evaluations": 4, "lora_rank": 64}),
    "headlines, attention only": Case(HEADLINES, {**FEW, "max_tokens": 256, "epochs": 0.5, "evaluations": 4, "target_modules": "attention", "lora_rank": 8}),
    "headlines, one row at once": Case(HEADLINES, {**FEW, "max_tokens": 256, "epochs": 0.3, "evaluations": 4, "micro_batch": 1}),
    "headlines, 32 rows a step": Case(HEADLINES, {**FEW, "max_tokens": 256, "epochs": 0.5, "evaluations": 4, "batch_size": 32}),
    "alpaca": Case(ALPACA, {"max_steps": 12, "evaluations": 4, "batch_size": 4}),
    "alpaca, cut at 128": Case(ALPACA, {**FEW, "max_steps": 14, "evaluations": 4, "max_tokens": 128}),
    "alpaca, everything learned": Case(ALPACA, {**FEW, "max_steps": 10, "evaluations": 4, "batch_size": 4, "learn": "everything"}),
    "alpaca, checkpointing": Case(ALPACA, {**FEW, "max_steps": 10, "evaluations": 4, "batch_size": 4, "gradient_checkpointing": "on"}),
    "alpaca, base in 16 bits": Case(ALPACA, {**FEW, "max_steps": 10, "evaluations": 4, "batch_size": 4, "quantisation": "none"}),
    "alpaca, dropout": Case(ALPACA, {**FEW, "max_steps": 10, "evaluations": 3, "batch_size": 4, "lora_dropout": 0.05}),
    "tool calls, cut at 512": Case(TOOLS, {**FEW, "max_steps": 6, "evaluations": 3, "batch_size": 4, "max_tokens": 512}),
    "plain text": Case(TEXT, {**FEW, "max_steps": 8, "evaluations": 3, "max_tokens": 768, "batch_size": 4}),
    "alpaca, many evaluations": Case(ALPACA, {"max_steps": 12, "evaluations": 12, "batch_size": 4, "held_out_share": 0.3}),
    "alpaca, 16 rows at once": Case(ALPACA, {**FEW, "max_steps": 5, "evaluations": 3, "batch_size": 16, "micro_batch": 16}),
    "tool calls": Case(TOOLS, {**FEW, "max_steps": 6, "evaluations": 3, "max_tokens": 1024, "batch_size": 4}),
}


def home() -> Path:
    return Path(os.environ.get("TUNER_BENCH_HOME", Path(tempfile.gettempdir()) / "tuner-bench"))


def run_one(name: str, case: Case, owner: str = "local") -> dict:
    """Quote the recipe, run it, and tell both."""
    from tuner import check, data, hub, quote, scan
    from tuner import run as runs
    from tuner.recipe import Recipe

    recipe = Recipe(title=name, dataset=str(case.dataset), patience=0, **case.settings).check()
    dataset = data.from_recipe(owner, recipe, case.dataset.parent, None)
    look = scan.Look.of(recipe, hub.tokenizer_dir(recipe.base_model, "", None))
    rows = check.work(dataset, look)
    its = hub.sizes_of(recipe.base_model, "", None)
    figures = rows.figures(recipe)
    made = quote.here(recipe, its, quote.Rows.of(figures))
    run = runs.create(owner, quote.settled(recipe, made), dataset)
    runs.fetch_base(run)
    runs.claim(run)
    before = _pace()
    other = _others_share()
    next(other)
    began = time.time()
    process = runs.spawn(run)
    _, code, usage = os.wait4(process.pid, 0)
    taken_s = time.time() - began
    process.returncode = os.waitstatus_to_exitcode(code)
    if process.returncode or run.state() != "done":
        raise SystemExit(f"{name}: ended as {run.state()}: {run.error() or runs.last_words(run)}")
    noted = run.read("quote")
    result = {
        "name": name, "counts": case.counts, "quoted_gib": made.memory_gib, "quoted_s": made.seconds, "memory": made.memory, "time": made.time,
        "rehearsed_gib": noted["rehearsed"]["memory_gib"], "rehearsed_s": noted["rehearsed"]["seconds"], "loading_gib": noted["rehearsed"]["loading_gib"],
        "taken_gib": usage.ru_maxrss / 2**20, "taken_s": taken_s, "steps": made.steps, "tokens": made.tokens,
        "plan": noted["plan"], "passes_s": noted["rehearsed"]["passes_s"], "ratios": _taught(noted["kind"]), "others": other.send(usage.ru_utime + usage.ru_stime),
    }
    after = _pace()
    result["pace"] = None if before is None or after is None else min(before, after)
    result["phases"] = _phases(run, began, began + taken_s)
    # Enough to ask other constants about the same run later.
    result["rows"] = {"lengths": figures.lengths.tolist(), "learned": figures.learned, "held_lengths": figures.held_lengths.tolist()}
    result["settings"], result["free_gib"] = case.settings, made.free_gib
    result["resident"] = _resident(run)
    result["report"] = _report(run, made.held_out_of)
    shutil.rmtree(run.folder)
    return result


def _others_share():
    """What share of the cores others took between the first `next` and the `send` of our own CPU seconds."""
    before, began = psutil.cpu_times(), time.time()
    ours = yield
    now = psutil.cpu_times()
    busy = sum(getattr(now, part) - getattr(before, part) for part in ("user", "system", "nice", "irq", "softirq", "steal"))
    own = psutil.Process().cpu_times()
    yield max(0.0, busy - ours - 0.02 * (own.user + own.system)) / ((time.time() - began) * (psutil.cpu_count() or 1))


def _pace() -> float | None:
    """How fast a matrix product is at this moment, as a share of what was measured when the machine was; None where it was not."""
    from tuner import child, machine

    if not (seen := machine.known().get("measured")):
        return None
    asked = f"from tuner import models; print(max(models.matmul_gflops({seen['precision']!r}, 0.1) for _ in range(3)))"
    done = subprocess.run([sys.executable, "-c", asked], env=child.environment(), capture_output=True, text=True, check=True, cwd=ROOT)
    return float(done.stdout) / seen["gemm_gflops"][seen["precision"]]


def _taught(kind: str) -> dict:
    from tuner import machine

    runs = machine.known().get("runs", [])
    return runs[-1]["ratios"] if runs and runs[-1]["kind"] == kind else {}


def _phases(run, began: float, ended: float) -> dict:
    """Seconds from one mark in the run's events to the next."""
    marks = [("start", began)]
    for event in run.events()[0]:
        if event["kind"] == "status":
            marks.append((event["message"].split(":")[0].split(";")[0][:24], event["t"]))
    marks.append(("end", ended))
    return {f"{index} {name}": round(after - at, 2) for index, ((name, at), (_, after)) in enumerate(zip(marks, marks[1:]))}


def _resident(run) -> dict:
    """The most that the process held at the ends of steps, and at the first and last of them."""
    held = [event["memory_gib"] for event in run.events()[0] if event["kind"] == "step"]
    return {"first": held[0], "last": held[-1], "most": max(held)}


def _report(run, kept_aside: int) -> dict:
    """What the run's report did, and the seconds that it took of those that it had."""
    from tuner import figures, tasks
    from tuner import plan as plans

    made, events = run.read("report"), run.events()[0]
    began = next(event["t"] for event in events if event["kind"] == "status" and event["message"].startswith("Comparing"))
    ended, result = (next(event for event in reversed(events) if event["kind"] == kind) for kind in ("status", "result"))
    wanted = tasks.get(run.recipe.task).first_answers(run.rows("held_out"))
    short = sum(0 < len(figures.words(text or "")) <= figures.SHORT_WORDS for text in wanted)
    return {
        "kept_aside": kept_aside, "held_out": made["held_out_of"], "measured": made["held_out_rows"], "short": short,
        "short_answered": (made["answers"]["short"] or {"rows": 0})["rows"],
        "probe": made["probe"]["share"], "seconds": ended["t"] - began, "had_s": plans.report_budget_s(result["elapsed_s"]),
    }


def reports(results: list[dict], say=print) -> bool:
    """Print what each run's report did, and whether all of them were on all held-out rows in their time."""
    say("| recipe | rows kept aside | held out | measured | with short answers | answered | probe asked | took | of |")
    say("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    good = True
    for name, its in ((one["name"], one["report"]) for one in results if "report" in one):
        held = its["measured"] == its["held_out"] and its["short_answered"] == its["short"] and its["seconds"] <= its["had_s"]
        good &= held
        say(
            f"| {name} | {its['kept_aside']} | {its['held_out']} | {its['measured']} | {its['short']} | {its['short_answered']} | {its['probe']:.0%} "
            f"| {its['seconds']:.0f} s | {its['had_s']:.0f} s{'' if held else ' (promised: all of it in that)'} |"
        )
    return good


def results_path() -> Path:
    return home() / "results.json"


def table(results: list[dict], say=print) -> bool:
    """Print quoted against taken, and whether all of it is within what was promised."""
    off = {"quote": {"memory": [], "time": []}, "rehearsal": {"memory": [], "time": []}}
    say("| recipe | steps | GiB quoted | rehearsed | taken | off | off, rehearsed | time quoted | rehearsed | taken | off | off, rehearsed | others | pace |")
    say("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for its in results:
        cells = []
        for what, unit in (("memory", "gib"), ("time", "s")):
            quoted, rehearsed, taken = (its[f"{part}_{unit}"] for part in ("quoted", "rehearsed", "taken"))
            if its["counts"]:
                off["quote"][what].append(quoted / taken - 1)
                off["rehearsal"][what].append(rehearsed / taken - 1)
            shown = (f"{quoted:.2f}", f"{rehearsed:.2f}", f"{taken:.2f}") if unit == "gib" else (f"{quoted:.0f} s", f"{rehearsed:.0f} s", f"{taken:.0f} s")
            cells += [*shown, f"{quoted / taken - 1:+.0%}", f"{rehearsed / taken - 1:+.0%}"]
        say(f"| {its['name']}{'' if its['counts'] else ' (not counted)'} | {its['steps']} | {' | '.join(cells)} | {its['others']:.0%} | {'' if its['pace'] is None else format(its['pace'], '.0%')} |")
    good = True
    for who, its in off.items():
        for what, values in its.items():
            if values:
                worst, median = max(map(abs, values)), statistics.median(map(abs, values))
                held = worst <= WITHIN[what] and median <= MEDIAN
                good &= held or who == "rehearsal"
                say(f"{what} by the {who}: off by at most {worst:.0%}, median {median:.1%}, of {len(values)} recipes{'' if held else ' (promised: ' + format(WITHIN[what], '.0%') + ', ' + format(MEDIAN, '.0%') + ')'}")
    return good


def knob_s() -> dict:
    """Seconds that a changed knob's quote takes at a million rows, by knob; the rows are made up, the arrays are real ones."""
    import numpy as np

    from tuner import findings, hub, proposals, quote, scan
    from tuner.recipe import Recipe

    count, random = 1_000_000, np.random.default_rng(0)
    seen = np.zeros(count, scan.ROW)
    seen["same"] = random.integers(1, 2**62, (count, 2))
    length = random.integers(60, 900, count).astype(np.int32)
    start = (length * random.uniform(0.2, 0.7, count)).astype(np.int32)
    tokens = scan.Tokens(np.arange(count), length, np.stack([start, length], 1), np.arange(count), np.zeros(count, np.uint8))
    rows = findings.Rows("chat", [None], np.arange(count, dtype=np.uint64), seen, np.zeros(count, np.uint8), np.arange(count), np.arange(count), tokens, {}, {}, count)
    its = hub.sizes_of(Recipe().base_model, "", None)
    taken = {}
    for name, settings in {
        "the first look": {}, "learning rate": {"learning_rate": 1e-3}, "rank": {"lora_rank": 64}, "max tokens": {"max_tokens": 500}, "rows per step": {"batch_size": 16},
        "held-out share": {"held_out_share": 0.2}, "seed": {"seed": 3}, "what does not fit": {"lora_rank": 512, "micro_batch": 1024, "batch_size": 1024, "gradient_checkpointing": "off"},
    }.items():
        began = time.perf_counter()
        recipe = Recipe(**settings)
        worked_on = quote.Rows.of(rows.figures(recipe))
        made = quote.here(recipe, its, worked_on)
        proposals.here(recipe, its, worked_on)
        quote.hired(recipe, its, worked_on)
        taken[name] = time.perf_counter() - began
        assert made.steps > 0
    return taken


def main(asked: list[str]) -> int:
    """Run what was asked for, keep it, and print the table; 0 if it is within what was promised."""
    from tuner import machine, starter

    home().mkdir(parents=True, exist_ok=True)
    os.environ["TUNER_HOME"] = str(home())
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the starter's packaged copy: the same on every machine
    known = {its["name"]: its for its in json.loads(results_path().read_text())} if results_path().exists() else {}
    if asked != ["--table"]:
        starter.prepare()
        machine.wait_until_measured()
        for name in asked or CASES:
            case = CASES[name]
            if not case.dataset.exists():
                print(f"{name}: {case.dataset.name} is not here, left out", file=sys.stderr)
                continue
            for _ in range(3):
                result = run_one(name, case)
                if result["others"] <= 0.1 and (result["pace"] or 1.0) >= 0.9:
                    break
                print(f"{name}: others took {result['others']:.0%} of the cores, products at {result['pace']:.0%} of the measured speed", file=sys.stderr, flush=True)
            known[name] = result
            print(f"{name}: {result['quoted_gib']:.2f} GiB and {result['quoted_s']:.0f} s quoted, {result['taken_gib']:.2f} GiB and {result['taken_s']:.0f} s taken", file=sys.stderr, flush=True)
            results_path().write_text(json.dumps(list(known.values()), indent=1))
    seen = machine.known()["measured"]
    print(f"{machine.fingerprint()}, {machine.memory().total_gib:.0f} GiB, torch {seen['torch']}, {seen['gemm_gflops'][seen['precision']]:.0f} GFLOP/s in {seen['precision']}\n")
    shown = [known[name] for name in CASES if name in known]
    good = table(shown)
    print()
    good &= reports(shown)
    taken = knob_s()
    print("A changed knob at 1,000,000 rows: " + ", ".join(f"{name} {seconds * 1000:.0f} ms" for name, seconds in taken.items()))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
