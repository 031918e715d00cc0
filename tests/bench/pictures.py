"""Does tuning beat what a knowledgeable person tries first? Digits 5 to 9, 20 pictures of each, on a network that knows 0 to 4.

    python -m tests.bench.pictures            5 seeds, each a run like anybody's; the table (about four minutes on two cores)
    python -m tests.bench.pictures --choose   the recipe's settings compared on the 200 pictures that ship, which no test uses

The 200 pictures of presets/data/digits are what settings were chosen on (half of them to learn from, half to look at). The tests
are made of scikit-learn's other 696 pictures of these classes: each seed draws 20 of each class to learn from, and all others
measure. Nothing is chosen on what measures: a run is measured once, at its end (evaluations = 1), and the baseline's strength by
cross-validation on its 100 pictures. Beside it stands the same network trained from scratch on the same 100 pictures, with the
same variations and as many epochs as were best for it on the 200.
"""

import itertools
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

from tests.bench.label_runs import one_run, told

SEEDS, EACH = range(5), 20
# Chosen by `--choose`, on pictures that no test uses.
RECIPE = {"learning_rate": 3e-3, "lora_rank": 16, "epochs": 40.0, "batch_size": 16}
SCRATCH_EPOCHS = 300


def shipped(pictures, target) -> np.ndarray:
    """The places of the 200 pictures that ship, as the script that made them draws them."""
    from presets.data.digits import make

    return make.drawn(target, make.OTHERS, make.PICTURES, np.random.default_rng(make.SEED + 1))


def dataset_of(pictures, target, learned: np.ndarray, measured: np.ndarray):
    """A dataset whose own split says which pictures are learned and which measure."""
    import io

    from tuner import data
    from tuner.pictures import take

    def record(place: int, split: str) -> dict:
        out = io.BytesIO()
        pictures[place].convert("L").save(out, "PNG")
        return {"image": take(out.getvalue()), "label": str(target[place]), "split": split, "file": f"{place}.png"}

    dataset = data.create("local", "Digits 5 to 9", {"kind": "file"}, passing=True)
    data.take(dataset, [*(record(place, "train") for place in learned), *(record(place, "test") for place in measured)], [])
    return data.settle(dataset)


def recipe_of(seed: int, **settings):
    """The recipe with these settings."""
    from tuner.recipe import Recipe

    return Recipe(**{"task": "image_labels", "base_model": "tuner-presets/digits-resnet", "seed": seed, **RECIPE, **settings})


def scratch(pictures, target, learned, measured, seed: int, epochs: int) -> tuple[float, float]:
    """(accuracy, macro-F1) of the same network that begins knowing nothing."""
    import torch

    from presets.data.digits import make
    from tuner import scores, seeing

    sight = seeing.load(str(make.HERE))
    torch.manual_seed(seed)
    model = make.network(make.OTHERS)
    make.learn(model, [pictures[place] for place in learned], target[learned] - 5, sight, epochs, seed)
    guess = np.concatenate([make.guessed(model, [pictures[place] for place in part], sight) for part in np.array_split(measured, 4)])
    truth, guess = scores.one_hot(target[measured] - 5, 5), scores.one_hot(guess, 5)
    return scores.accuracy(truth, guess), scores.macro_f1(truth, guess)


def choose(pictures, target) -> None:
    """Settings compared on three draws from the 200 pictures that ship."""
    ours = shipped(pictures, target)
    draws = []
    for seed in range(100, 103):
        learned = np.concatenate([np.random.default_rng(seed).permutation(ours[target[ours] == digit])[:EACH] for digit in range(5, 10)])
        draws.append((seed, learned, np.setdiff1d(ours, learned)))
    sets = {seed: dataset_of(pictures, target, learned, measured) for seed, learned, measured in draws}
    for rate, rank, epochs in itertools.product((3e-3, 1e-2, 2e-2), (16,), (40.0, 80.0)):
        found = [one_run(sets[seed], recipe_of(seed, learning_rate=rate, lora_rank=rank, lora_alpha=2.0 * rank, epochs=epochs)) for seed, _, _ in draws]
        tuned, base = (np.mean([its[who]["macro_f1"] for its, _ in found]) for who in ("tuned", "base"))
        print(f"rate {rate:g} rank {rank} epochs {epochs:g}: macro-F1 {tuned:.4f}, frozen {base:.4f}, {np.mean([s for _, s in found]):.0f} s", flush=True)
    for epochs in (60, 150, 300):
        found = [scratch(pictures, target, learned, measured, seed, epochs) for seed, learned, measured in draws]
        print(f"from scratch, {epochs} epochs: macro-F1 {np.mean([f1 for _, f1 in found]):.4f}", flush=True)


def measure(pictures, target) -> dict:
    """Every seed's figures, and over all seeds the mean differences with their 95 % intervals."""
    from tuner import figures

    ours = shipped(pictures, target)
    others = np.setdiff1d(np.flatnonzero(target >= 5), ours)
    lines = []
    for seed in SEEDS:
        learned = np.concatenate([np.random.default_rng(seed).permutation(others[target[others] == digit])[:EACH] for digit in range(5, 10)])
        measured = np.setdiff1d(others, learned)
        report, seconds = one_run(dataset_of(pictures, target, learned, measured), recipe_of(seed))
        accuracy, f1 = scratch(pictures, target, learned, measured, seed, SCRATCH_EPOCHS)
        lines.append({
            "seed": seed, "seconds": seconds, "measured": len(measured), "scratch": {"accuracy": accuracy, "macro_f1": f1},
            **{who: {name: report[who][name] for name in ("accuracy", "macro_f1")} for who in ("base", "tuned", "majority")},
            "difference": {name: report["difference"][name] for name in ("accuracy", "macro_f1")},
        })
        said = lines[-1]
        shown = " | ".join(f"{who} {100 * said[who]['accuracy']:.1f} / {100 * said[who]['macro_f1']:.1f}" for who in ("base", "tuned", "scratch"))
        print(f"seed {seed}: {shown} | {told(said['difference'])} | {seconds:.0f} s, {len(measured)} measured", flush=True)
    over = {}
    for name in ("accuracy", "macro_f1"):
        over[name] = figures.interval(np.array([its["tuned"][name] - its["base"][name] for its in lines]), seed=0)
        print(f"tuned minus frozen, {name}: {100 * over[name]['mean']:+.2f} points over {len(lines)} seeds [{100 * over[name]['low']:+.2f}, {100 * over[name]['high']:+.2f}] (bootstrap over seeds)")
        least = min(its["difference"][name]["low"] for its in lines)
        print(f"    the lowest end of any seed's own interval over pictures: {100 * least:+.2f}")
    mean = {who: {name: float(np.mean([its[who][name] for its in lines])) for name in ("accuracy", "macro_f1")} for who in ("majority", "base", "tuned", "scratch")}
    for who, its in mean.items():
        print(f"{who:<9} accuracy {100 * its['accuracy']:.2f} %, macro-F1 {100 * its['macro_f1']:.2f} %")
    return {"recipe": RECIPE, "lines": lines, "mean": mean, "difference": over}


def main() -> None:
    from presets.data.digits import make

    with tempfile.TemporaryDirectory(prefix="tuner-digits-") as folder:
        os.environ.update(TUNER_HOME=folder, HF_HUB_OFFLINE="1")
        pictures, target = make.digits()
        if "--choose" in sys.argv:
            choose(pictures, target)
        else:
            made = measure(pictures, target)
            if "--json" in sys.argv:
                Path(sys.argv[sys.argv.index("--json") + 1]).write_text(json.dumps(made, indent=1))


if __name__ == "__main__":
    main()
