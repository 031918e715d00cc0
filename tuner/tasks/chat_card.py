"""The card's section on what came out of a chat run."""

from tuner import figures


def before_and_after(run, report: dict, measures: list[dict]) -> str:
    """Words, figures with their intervals, and how they were measured, as Markdown."""
    losses = [event["loss"] for event in run.events()[0] if event["kind"] == "step"]
    rows = "".join(
        f"\n| {its['name']} | {its['of']} | {its['base']} | {its['tuned']} | {its['change']} |" for its in map(figures.shown, measures)
    )
    return (
        f"## Before and after\n\n{' '.join(report['says'])}\n\n"
        f"| | measured on | base | tuned | change (95 % interval) |\n|---|---|---|---|---|{rows}\n\n"
        f"The held-out rows ({report['held_out_tokens']} learned tokens) were not trained on. Intervals are paired bootstraps over rows. General questions "
        f"and texts are Tuner's own small probe, {report['probe']['items']} items by log-likelihood; it shows what was forgotten, not how able a model is. "
        f"The version of step {report['best_step']} of {run.read('plan')['steps']} is the one published. The training loss went from "
        f"{losses[0]:.3f} to {losses[-1]:.3f}."
    )
