"""The same engine from a terminal: train, chat, check, quote, try, report, push, runs."""

import argparse
import contextlib
import dataclasses
import json
import math
import os
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

from tuner import recipe as recipes
from tuner.child import SPIN
from tuner.errors import UserError, shorten
from tuner.home import DEMO_ROOT, LOCAL_OWNER, safe_name, write_whole

# Up to so many rows all of them are looked at before a training; a minute or two.
_FEW_ROWS = 100_000


def main(argv: list[str] | None = None) -> int:
    """Run one verb; 0 if it went well, 1 for a UserError (told in words), 2 for wrong usage."""
    os.environ.setdefault("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN)  # read when torch is imported, which has not happened yet
    warnings.filterwarnings("ignore", category=FutureWarning)  # libraries talking to one another
    parser = _parser()
    asked, more = parser.parse_known_args(argv)
    if more and (not hasattr(asked, "settings") or any(its.startswith("-") for its in more)):
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    if more:  # argparse takes no settings that stand after an option
        asked.settings += more
    try:
        return asked.verb(asked) or 0
    except UserError as error:
        if asked.json:
            print(json.dumps({"error": error.problems}, ensure_ascii=False))
        print(f"tuner: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ntuner: stopped.", file=sys.stderr)
        return 1
    except BrokenPipeError:
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tuner", description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def verb(name: str, handler, help: str) -> argparse.ArgumentParser:
        its = verbs.add_parser(name, help=help, description=help)
        its.add_argument("--json", action="store_true", help="machine-readable output on standard output")
        its.set_defaults(verb=handler)
        return its

    its = verb("train", _train, "tune by a recipe, or go on with a run")
    its.add_argument("what", metavar="RECIPE_OR_RUN", help="a preset's name, a recipe file, a run's id or folder")
    its.add_argument("settings", nargs="*", metavar="field=value", help="settings to change, such as epochs=1")
    its = verb("chat", _chat, "talk to a tuned model, or have it label a text")
    its.add_argument("what", metavar="ADAPTER_OR_RUN", help="a run's id, or an adapter's Hub id")
    its.add_argument("--prompt", help="ask this once instead of reading lines")
    its.add_argument("--base", action="store_true", help="answer with the base model alone, beside the tuned one")
    its.add_argument("--max-new-tokens", type=int, default=256)
    its.add_argument("--temperature", type=float, default=0.0)
    its = verb("check", _check, "read a dataset, say what would be learned from it and what is wrong with it")
    its.add_argument("what", metavar="DATASET", help="a file, or a Hub dataset's id")
    its.add_argument("--strict", action="store_true", help="exit with 1 if a finding would stop a run")
    its.add_argument("--fix", action="append", metavar="NAME", help="put right what this finding found; NAME=FIX to choose how; again for more")
    its.add_argument("--out", metavar="FILE", help="write the rows, after the fixes, as JSON lines")
    its.add_argument("settings", nargs="*", metavar="field=value")
    its = verb("quote", _quote, "say beforehand what a recipe needs")
    its.add_argument("what", metavar="RECIPE")
    its.add_argument("settings", nargs="*", metavar="field=value")
    its = verb("try", _try, "sweep the learning rate, or ask whether the data is enough; nothing is kept but the answer")
    its.add_argument("what", metavar="KIND", help="rate, or enough; or a trial's folder")
    its.add_argument("recipe", metavar="RECIPE", nargs="?", help="a preset's name or a recipe file")
    its.add_argument("settings", nargs="*", metavar="field=value")
    its = verb("report", _report, "measure a finished run again")
    its.add_argument("what", metavar="RUN")
    its.add_argument("--all", action="store_true", help="all held-out rows, where the report had time for some, and of a classifier all else; whatever time it takes")
    its = verb("push", _push, "publish a finished run's adapter, download it again and verify it")
    its.add_argument("what", metavar="RUN")
    its.add_argument("repo", metavar="REPO_ID", help="name, or user/name of your own account")
    its.add_argument("--public", action="store_true", help="for everybody to see; a new repository is private otherwise")
    its.add_argument("--replace", action="store_true", help="in the place of another run of yours, where that is published under this name")
    verb("runs", _runs, "list the runs on this machine")
    return parser


def _say(text: str = "") -> None:
    print(text, file=sys.stderr, flush=True)


def _settings(pairs: list[str]) -> dict:
    found, problems = {}, []
    for pair in pairs:
        name, mark, text = pair.partition("=")
        try:
            if not mark:
                raise UserError(f"{pair!r} is not a setting. Write it as field=value.")
            found[name] = recipes.from_text(name, text)
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(*problems)
    return found


def _recipe(what: str, pairs: list[str]):
    """The recipe of a preset's name or a file, with changes, and the folder its dataset stands in."""
    path = Path(what)
    if not path.suffix and (DEMO_ROOT / f"{what}.toml").is_file():
        path = DEMO_ROOT / f"{what}.toml"
    loaded = recipes.load(path)
    changes = _settings(pairs)
    beside = Path.cwd() if "dataset" in changes else path.resolve().parent
    return recipes.from_dict({**loaded.changed(), **changes}), beside


def _run(what: str):
    from tuner import run

    if (Path(what) / "recipe.toml").is_file():
        return run.from_folder(Path(what))
    return run.find(LOCAL_OWNER, safe_name(what, "Run"))


def _train(asked) -> int:
    from tuner import data, hub, run

    is_run = (Path(asked.what) / "recipe.toml").is_file() or (
        "/" not in asked.what and "." not in asked.what and (run.Run.place_of(LOCAL_OWNER) / asked.what).is_dir()
    )
    if is_run:
        if asked.settings:
            raise UserError("A run's settings cannot be changed once it exists. Start a new one with the recipe.")
        going = _run(asked.what)
    else:
        recipe, beside = _recipe(asked.what, asked.settings)
        dataset = data.from_recipe(LOCAL_OWNER, recipe, beside, hub.own_token())
        going = run.create(LOCAL_OWNER, _settled(recipe, dataset), dataset)
        _say(f"Run {going.id}: {dataset.count:,} rows, base {recipe.base_model}")
    if os.environ.get("TUNER_CHILD") != "1":  # the page claims a run before it starts its child
        run.claim(going)
        going.log("status", state="waiting", message="Getting the base model ready")
        _say("Getting the base model ready ...")
        try:
            run.fetch_base(going, hub.own_token())
        except UserError as error:
            write_whole(going.folder / "error.txt", str(error))
            raise
    return _follow(going, asked.json)


def _settled(recipe, dataset):
    """The recipe with as many held-out rows as its report has the time for here; as it is where they all are, or nobody can say."""
    from tuner import check, quote

    if recipe.held_out_rows or (to_quote := _to_quote(recipe, dataset)) is None:
        return recipe
    sizes, worked_on = to_quote
    if worked_on.held_rows > quote.FEWEST_HELD_OUT:
        _measure_machine()
    made = quote.here(recipe, sizes, worked_on)
    if made.held_out_by and dataset.count > _FEW_ROWS:  # how many are kept aside is known by now without asking the base
        kept_aside = int(check.rows_of(dataset, None).held_out(recipe.held_out_share, recipe.seed)[0].sum())
        made = dataclasses.replace(made, held_out_of=kept_aside, held_out_by=made.held_out_by if made.held_out < kept_aside else "")
    if made.held_out_by:
        _say(f"{quote.held_out_words(made)} held_out_rows=N takes another number.")
    return quote.settled(recipe, made)


def _to_quote(recipe, dataset) -> tuple | None:
    """The base's sizes, and the rows that a run works on; None where nobody can say: the run itself tells why."""
    from tuner import check, hub, quote, scan

    if dataset.task != recipe.task:
        return None
    report = _bar("Looking at the rows")
    try:
        look = scan.Look.of(recipe, hub.tokenizer_dir(recipe.base_model, recipe.base_revision, hub.own_token()))
        # Of very many the first stand for all.
        rows = check.work(dataset, look, report) if dataset.count <= _FEW_ROWS else check.glimpse(dataset, look)
        figures, sizes = rows.figures(recipe), hub.sizes_of(recipe.base_model, recipe.base_revision, hub.own_token())
    except UserError:
        return None
    finally:
        report.close()
    return (sizes, quote.Rows.of(figures, max(1.0, dataset.count / rows.came_in))) if len(figures.lengths) else None


def _measure_machine() -> None:
    """See that this machine's speed is known, where it can be measured now."""
    from tuner import machine

    if machine.begin_measuring():
        _say("Measuring this machine, once ...")
        machine.wait_until_measured()


def _follow(going, as_json: bool) -> int:
    """Train in this process while another thread draws the run's own events."""
    from tuner import tasks

    with _drawn(going, as_json):
        _wait_for_turn(going)  # before torch is here: who waits takes no memory from who trains
        from tuner import train

        code = train.main(going)
    if code:
        raise UserError(going.error() or "Training ended early.")
    if os.environ.get("TUNER_CHILD") != "1":
        _measure_the_rest(going)  # whatever comes of it, the run is done
    report = going.read("report")
    if as_json:
        print(json.dumps({"run": going.id, "folder": str(going.folder), "state": going.state(), "report": report}, ensure_ascii=False))
    else:
        _say(f"{tasks.get(going.recipe.task).in_short(report)}; adapter in {going.adapter_dir}")
    return 0


def _measure_the_rest(going) -> None:
    """Make the report again on the held-out rows that it had no time for; who interrupts that keeps the report as it is."""
    from tuner import measuring, models

    left = measuring.left_out_words(going)
    if not left:
        return
    takes = measuring.seconds(going)
    _say(f"To keep to the time, {left}. Doing that now{f', about {takes / 60:.1f} minutes' if takes else ''}; Ctrl-C leaves the report as it is.")
    models.free()  # of the one that was trained
    try:
        with _drawn(measuring.Measurement(going.owner, going.id + measuring.Measurement.END), False):
            code = measuring.here(going)
        its = measuring.of(going)
        if code or its.state() != "done":
            _say(f"{its.error()} The report is as it was.".strip())
    except KeyboardInterrupt:
        _say("The report is as it was.")
    except UserError as error:
        _say(f"{error} The report is as it was.")


def _wait_for_turn(going) -> None:
    from tuner import lease, run

    lease.line_up(going.id, going.owner, str(going.folder))
    if not lease.wait(going.id, lambda ahead: run.log_wait(going, ahead), going.stop_asked, owner=going.owner, folder=str(going.folder)):
        write_whole(going.folder / "error.txt", "The run was stopped while it waited for its turn. Resume it when you like.")
        raise UserError(going.error())


@contextlib.contextmanager
def _drawn(going, as_json: bool) -> Iterator[None]:
    """Another thread draws the run's own events meanwhile. Who interrupts it here has stopped it: no app takes it up again."""
    if os.environ.get("TUNER_CHILD") == "1":  # a child's log is for faults; its events are in the folder already
        yield
        return
    ended = threading.Event()
    drawer = threading.Thread(target=_draw, args=(going, ended, as_json), daemon=True)
    drawer.start()
    try:
        yield
    except KeyboardInterrupt:
        write_whole(going.folder / "stop", "asked\n")
        raise
    finally:
        ended.set()
        drawer.join(timeout=5)


def _draw(going, ended: threading.Event, as_json: bool) -> None:
    """A progress bar on standard error; with --json, each event as a line on standard output."""
    from tqdm import tqdm

    _, place = going.events()
    bar = None
    while True:
        last = ended.is_set()
        events, place = going.events(place)
        for event in events:
            if as_json:
                print(json.dumps(event, ensure_ascii=False), flush=True)
            if event["kind"] == "step":
                bar = bar or tqdm(total=event["steps"], unit="step", file=sys.stderr, dynamic_ncols=True)
                bar.n = event["step"]
                bar.set_postfix_str(f"loss {event['loss']:.3f}, {event['tokens_per_s']:.0f} tokens/s")
            elif event["kind"] in ("status", "note"):
                tqdm.write(event["message"], file=sys.stderr)
            elif event["kind"] == "eval":
                told = f", macro-F1 {event['macro_f1']:.3f}" if "macro_f1" in event else ""
                tqdm.write(f"step {event['step']}: held-out loss {event['loss']:.4f}{told}{' (best)' if event['best'] else ''}", file=sys.stderr)
        if last:
            break
        ended.wait(0.3)
    if bar:
        bar.close()


def _chat(asked) -> int:
    from tuner import chat, hub, tasks

    subject = chat.resolve(LOCAL_OWNER, asked.what, hub.own_token())
    sampling = {"max_new_tokens": asked.max_new_tokens, "temperature": asked.temperature}
    history: list[dict] = []
    task = tasks.get(subject.task)
    with task.worker() as worker:
        _say(f"Loading {subject.base['id']} ...")
        while True:
            if asked.prompt is not None:
                text = asked.prompt
            else:
                try:
                    text = input("" if asked.json else "you: ")
                except EOFError:
                    return 0
            if not text.strip():
                if asked.prompt is not None:
                    raise UserError("The prompt is empty. Write what you want to ask.")
                continue
            history.append({"role": "user", "content": text})
            answers = {}
            for who in ("base", "tuned") if asked.base else ("tuned",):
                if not asked.json:
                    print(f"{who}: ", end="", flush=True)
                show = (lambda piece: None) if asked.json else lambda piece: print(piece, end="", flush=True)
                answers[who] = task.ask(worker, subject, history, who == "tuned", show, **sampling)
                if not asked.json:
                    print()
            if asked.json:
                print(json.dumps({"prompt": text, **answers}, ensure_ascii=False))
            if asked.prompt is not None:
                return 0
            history.append({"role": "assistant", "content": answers["tuned"]})


def _bar(words: str):
    """A progress bar on standard error for one phase after another; call the result with (phase, share)."""
    from tqdm import tqdm

    bar = tqdm(total=1.0, desc=words, file=sys.stderr, leave=False, dynamic_ncols=True, bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}")

    def report(phase: str, share: float) -> None:
        if phase != bar.desc:
            bar.reset(total=1.0)
            bar.set_description_str(phase, refresh=False)
        bar.n = share
        bar.refresh() if share in (0.0, 1.0) else bar.update(0)

    report.close = bar.close
    return report


def _checked(recipe, beside: Path, steps: list[str] = (), by_columns: bool = False):
    """The recipe's dataset, its rows with all that was seen of them after the fixes asked for, and the recipe for its task.

    Args:
        by_columns: the dataset's columns choose the task; with it comes that task's starter.
    """
    from tuner import check, data, fixes, hub, scan, starter

    token = hub.own_token()
    report = _bar("Reading the rows")
    try:
        dataset = data.from_recipe(LOCAL_OWNER, recipe, beside, token, lambda share: report("Reading the rows", share), by_columns)
        if dataset.task != recipe.task:
            recipe = dataclasses.replace(recipe, task=dataset.task, **starter.for_task(dataset.task))
        folder = hub.tokenizer_dir(recipe.base_model, recipe.base_revision, token)
        look = scan.Look.of(recipe, folder)
        for its in steps:
            dataset.steps.append(fixes.step(*_named_fix(its, recipe), recipe, str(folder)))
            dataset.save()
            check.work(dataset, look, report)
        return dataset, check.work(dataset, look, report), recipe
    finally:
        report.close()


def _check(asked) -> int:
    from tuner import findings, quote, receipt

    settings = _settings(asked.settings)
    recipe = recipes.from_dict({**settings, "dataset": asked.what})
    dataset, rows, recipe = _checked(recipe, Path.cwd(), asked.fix or (), "task" not in settings)
    found = findings.find(rows, recipe)
    seen = rows.figures(recipe) if not any(its.level == "stop" for its in found) else None
    made = receipt.make({**dataset.source, "name": dataset.name}, rows, receipt.choose(rows, recipe)) if seen else None
    if asked.out:
        _write_out(Path(asked.out), rows)
    told = {
        "dataset": dataset.name, "task": dataset.task, "format": dataset.mapping.format, "why": dataset.mapping.reason,
        "columns": dataset.mapping.columns, "notes": dataset.notes, "records": dataset.count, "rows": len(rows),
        "left_out": sum(map(len, rows.left_out.values())),
        "findings": [
            {
                "name": its.name, "rows": its.rows, "title": its.title, "why": its.why, "more": its.more, "level": its.level,
                "fixes": list(its.fixes), "first_rows": _numbers(rows, its, recipe),
            }
            for its in found
        ],
    }
    if seen:
        told |= {
            "train_rows": seen.train_rows, "held_out_rows": made["held_out_rows"], "split": made["split"],
            "may_be_fewer": quote.may_be_fewer(recipe, made["held_out_rows"]), "tokens": seen.tokens,
            "learned_tokens": seen.learned, "longest": int(seen.uncut.max(initial=0)), "receipt": made,
        }
    if asked.json:
        print(json.dumps(told, ensure_ascii=False))
    else:
        _print_check(told)
    return 1 if asked.strict and any(its.level == "stop" for its in found) else 0


def _named_fix(its: str, recipe) -> tuple[str, str]:
    """(finding, fix) of "finding" or "finding=fix"; a finding alone means its first fix."""
    from tuner.findings import faults_of

    finding, _, fix = its.partition("=")
    faults = faults_of(recipe.task)
    if finding in faults and not fix and faults[finding].fixes:
        fix = faults[finding].fixes[0]
    return finding, fix


def _numbers(rows, finding, recipe, most: int = 20) -> list[int]:
    """The first rows that a finding is about, by their numbers in the source."""
    import numpy as np

    if finding.left_out:
        return (rows.left_out[finding.name][:most] + 1).tolist()
    if not finding.rows or finding.name == "few_rows":
        return []
    if finding.level == "stop":
        return []
    hit = np.flatnonzero(rows.mask(finding.name, recipe))[:most]
    return (rows.origins[hit] + 1).tolist()


def _write_out(path: Path, rows) -> None:
    """The rows as they stand, in the task's own shape."""
    from tuner import tasks

    if path.exists():
        raise UserError(f"{path.name} is there already. Name another file; nothing is written over.")
    if not path.parent.is_dir():
        raise UserError(f"There is no folder {shorten(path.parent)}. Make it first, or name another file.")
    tasks.get(rows.task).write_out(rows, path)
    _say(f"{len(rows):,} rows written to {path}")


def _print_check(told: dict) -> None:
    from tuner import tasks

    print(f"{told['dataset']}: {told['records']:,} records, read as {told['format']} ({told['why']})")
    for note in told["notes"]:
        print(f"  {note}")
    if "train_rows" in told:
        print(f"  {told['train_rows']:,} rows to train on, {told['held_out_rows']:,} held out ({told['split']})")
        if told["may_be_fewer"]:
            print(f"  {told['may_be_fewer']}")
        if tasks.get(told["task"]).COUNTED == "tokens":
            print(f"  {told['tokens']:,} tokens, {told['learned_tokens']:,} of them learned; the longest row has {told['longest']:,}")
    if not told["findings"]:
        print("  Nothing found that could go wrong.")
    for its in told["findings"]:
        first = ", ".join(map(str, its["first_rows"][:6]))
        print(f"\n  {its['level']:<5} {its['rows']:>8,}  {its['title']} [{its['name']}]" + (f": rows {first}{' …' if its['rows'] > 6 else ''}" if first else ""))
        print(f"{'':16}{' '.join(filter(None, [its['more'], its['why']]))}")
        if its["fixes"]:
            print(f"{'':16}--fix " + " or --fix ".join(f"{its['name']}={fix}" for fix in its["fixes"]))
    for step in (told.get("receipt") or {}).get("steps", ()):
        print(f"\n  done: {step['step']}, {step['rows']:,} rows")


def _quote(asked) -> int:
    from tuner import hub, proposals, quote, tasks

    recipe, beside = _recipe(asked.what, asked.settings)
    _, rows, _ = _checked(recipe, beside)
    seen = rows.figures(recipe)
    if not len(seen.lengths):
        raise UserError(f"No row has an answer within its first {recipe.max_tokens:,} tokens. Raise max_tokens.")
    sizes = hub.sizes_of(recipe.base_model, recipe.base_revision, hub.own_token())
    _measure_machine()
    worked_on = quote.Rows.of(seen)
    made = quote.here(recipe, sizes, worked_on)
    offered = proposals.here(recipe, sizes, worked_on)
    hired = quote.hired(recipe, sizes, worked_on)
    if asked.json:
        print(json.dumps({
            "steps": made.steps, "tokens": made.tokens, "memory_gib": made.memory_gib, "memory": made.memory, "seconds": made.seconds,
            "time": made.time, "free_gib": made.free_gib, "dollars": made.dollars, "fits": made.fits, "measured": made.measured,
            "held_out": made.held_out, "held_out_of": made.held_out_of, "afterwards_s": made.afterwards_s, "plan": made.plan.__dict__,
            "proposals": [
                {"settings": its.settings, "words": its.words, "harm": its.harm, "memory_gib": its.quote.memory_gib, "seconds": its.quote.seconds}
                for its in offered
            ],
            "hardware": [
                {"flavour": its.its.flavour, "name": its.its.name, "seconds": its.seconds, "dollars": its.dollars, "memory_gib": its.quote.memory_gib, "fits": its.quote.fits}
                for its in hired
            ],
        }))
        return 0
    print(f"{made.steps:,} steps, {made.tokens:,} {tasks.get(recipe.task).COUNTED}")
    print(
        f"about {made.memory_gib:.1f} GiB here ({', '.join(f'{name} {size:.2f}' for name, size in made.memory.items())}), "
        f"about {made.seconds / 60:.1f} minutes" + ("" if made.measured else " (this machine has not been measured yet)")
    )
    if made.held_out_by:
        print(f"{quote.held_out_words(made)} held_out_rows=N takes another number.")
    if made.afterwards_s:
        print(f"then about {made.afterwards_s / 60:.1f} minutes to do what its report on the held-out rows has not the time for")
    if not made.fits:
        print(f"that is more than can be used of the {made.free_gib:.1f} GiB free" + (". What makes it fit:" if offered else "; no setting makes it fit"))
    for its in offered:
        print(f"  {' '.join(f'{name}={value}' for name, value in its.settings.items())}: {its.harm or 'the same result'}, "
              f"about {its.quote.memory_gib:.1f} GiB, {its.quote.seconds / 60:.1f} min")
    for its in hired:
        print(f"  {its.its.flavour:<15} about {its.seconds / 60:.1f} min, ${its.dollars:.2f}" + ("" if its.quote.fits else ", does not fit"))
    return 0


def _try(asked) -> int:
    from tuner import data, hub, run, trials

    if asked.what not in trials.TITLES:
        trial = run.from_folder(Path(asked.what), trials.Trial)
    else:
        if not asked.recipe:
            raise UserError(f"Name a recipe: python -m tuner try {asked.what} headlines")
        recipe, beside = _recipe(asked.recipe, asked.settings)
        token = hub.own_token()
        dataset = data.from_recipe(LOCAL_OWNER, recipe, beside, token)
        if to_quote := _to_quote(recipe, dataset):
            _say(f"{trials.TITLES[asked.what]}: about {trials.seconds(asked.what, recipe, *to_quote) / 60:.1f} minutes")
        trial = trials.create(LOCAL_OWNER, asked.what, recipe, dataset)
        run.claim(trial)
        run.fetch_base(trial, token)
    with _drawn(trial, asked.json):
        _wait_for_turn(trial)
        from tuner import trying

        code = trying.main(trial)
    if code:
        raise UserError(trial.error())
    if os.environ.get("TUNER_CHILD") != "1":
        told = trials.result(trial)
        print(json.dumps(told) if asked.json else told["words"])
        if told["settings"] and not asked.json:
            print(" ".join(f"{name}={value:g}" for name, value in told["settings"].items()))
    return 0


def _report(asked) -> int:
    from tuner import measuring, report, tasks
    from tuner import run as runs

    if runs.kind_of(Path(asked.what)) is measuring.Measurement:  # as the page's child
        return measuring.main(runs.from_folder(Path(asked.what), measuring.Measurement))
    run = _run(asked.what)
    made = report.remake(run, _say, math.inf if asked.all else None)
    if asked.json:
        print(json.dumps(made, ensure_ascii=False))
        return 0
    task = tasks.get(run.recipe.task)
    print("\n".join([*task.printed(made), "", *made["says"], *task.advice(made)]))
    return 0


def _push(asked) -> int:
    from tuner import hub, publish

    token = hub.own_token()
    name = asked.repo
    if "/" in name:
        user, name = name.split("/", 1)
        if user != hub.whoami(token):
            raise UserError(f"{user!r} is not the account you are logged in with ({hub.whoami(token)}). Write the name alone.")
    words = {"checking": "Checking ...", "pushing": "Pushing {sent} of {total} MB ...", "verifying": "Downloading it again and comparing ..."}
    said = [""]

    def tell(its: dict) -> None:
        line = words.get(its["state"], "").format(sent=f"{its.get('sent_bytes', 0) / 1e6:.1f}", total=f"{its.get('total_bytes', 0) / 1e6:.1f}")
        line += f" {its['reason']}" if its["state"] in words and its.get("reason") else ""
        if line and line != said[0]:
            said[0] = line
            _say(line)

    try:
        done = publish.publish(_run(asked.what), name, not asked.public, token, hub.page_url, tell, replace={"run": publish.ANY_RUN, "private": not asked.public} if asked.replace else None)
    except publish.Taken as error:
        raise UserError(f"{error} To replace it, add --replace{'' if error.there['private'] or asked.public else ' --public'}.") from None
    if done["state"] != "verified":
        raise UserError(f"Published at {done['url']}, but NOT verified: {done['reason']}")
    told = {name: done[name] for name in ("state", "repo_id", "url", "private", "commit", "sha256")}
    who = "privately" if done["private"] else "for everybody"
    print(json.dumps(told) if asked.json else f"Published {who} and verified: {done['url']}")
    return 0


def _runs(asked) -> int:
    from tuner import run

    found = [its.summary() for its in run.mine(LOCAL_OWNER)]
    if asked.json:
        print(json.dumps(found, ensure_ascii=False))
        return 0
    if not found:
        print("No runs yet. Start one: python -m tuner train headlines")
    for its in found:
        loss = f"{its['first_loss']:.3f} -> {its['best_loss']:.3f}" if its["best_loss"] else "-"
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(its["created"]))
        print(f"{its['id']}  {its['state']:<12} {loss:<16} {when}  {its['title']}")
    return 0
