"""One labelled run from start to report in this process, as the benches of labels want it."""

import sys
import time


def one_run(dataset, recipe) -> tuple[dict, float]:
    """A run's report and its seconds; nothing is chosen by what measures it, since that is looked at once, at its end."""
    from dataclasses import replace

    from tuner import hub, train
    from tuner import run as runs
    from tuner.home import write_json

    recipe = replace(recipe, evaluations=1, patience=0)
    run = runs.create("local", recipe, dataset)
    write_json(run.folder / "base.json", hub.fetch_base(recipe.base_model, "", None))
    began = time.time()
    runs.claim(run)
    if train.main(run):
        raise SystemExit(run.error())
    seconds, quoted = time.time() - began, run.read("quote")
    if quoted:
        tried = quoted["rehearsed"]
        print(f"    quoted {quoted['seconds']:.0f} s and {quoted['memory_gib']:.2f} GiB, rehearsed {tried['seconds']:.0f} s and {tried['memory_gib']:.2f} GiB, taken {seconds:.0f} s", file=sys.stderr)
    return run.read("report"), seconds


def told(difference: dict) -> str:
    """Tuned minus frozen features, in points with their 95 % intervals."""
    return " ".join(f"{name} {100 * its['mean']:+.1f} [{100 * its['low']:+.1f}, {100 * its['high']:+.1f}]" for name, its in difference.items())
