"""Does tuning beat what a knowledgeable person tries first? The library desk's 400 held-out messages (presets/data/library_desk.jsonl).

    python -m tests.bench.texts             the preset as it ships, and with other seeds; then without feature distillation

No sentence of the held-out messages stands in a training row. The preset's settings were chosen by cross-validation on the training
rows alone, with rows that share a sentence or its pattern on one side (tests/bench/DIARY.md); the held-out rows are looked at once a
run, at its end, so nothing is chosen by them. The baseline is the report's own: logistic regression on the mean-pooled,
standardised features of the same base, its strength by cross-validation.
"""

import os
import tempfile
from dataclasses import replace

SEEDS = (0, 1, 2)
WITHOUT = {"feature_distillation": 0.0, "epochs": 3.0}


def main() -> None:
    from tests.bench.label_runs import one_run, told
    from tuner import data, recipe
    from tuner.home import DEMO_ROOT

    with tempfile.TemporaryDirectory(prefix="tuner-desk-") as folder:
        os.environ.update(TUNER_HOME=folder, HF_HUB_OFFLINE="1")
        preset = recipe.load(DEMO_ROOT / "library-desk.toml")
        dataset = data.from_recipe("local", preset, DEMO_ROOT, None)
        runs = [("the preset", preset, seed) for seed in SEEDS] + [("without distillation", replace(preset, **WITHOUT), SEEDS[0])]
        for name, its, seed in runs:
            report, seconds = one_run(dataset, replace(its, seed=seed))
            difference = {figure: report["difference"][figure] for figure in ("macro_f1", "accuracy")}
            shown = " | ".join(f"{who} {100 * report[who]['macro_f1']:.1f} / {100 * report[who]['accuracy']:.1f} %" for who in ("majority", "base", "tuned"))
            print(
                f"{name}, seed {seed}: macro-F1 / accuracy: {shown} | {told(difference)} | loss {report['base']['loss']:.3f} -> {report['tuned']['loss']:.3f}, "
                f"ECE {report['base']['calibration']['ece']:.3f} -> {report['tuned']['calibration']['ece']:.3f} | {seconds:.0f} s, {report['held_out_rows']} measured",
                flush=True,
            )


if __name__ == "__main__":
    main()
