"""How an adapter came about and how to make it again, in the card's words: recipe, command, hardware, time, terms, limits."""

import tomlkit

from tuner import events, licences, machine, starter, tasks
from tuner.recipe import HUB_ID, KNOBS

# Names for lists and folders of this machine; they shape nothing.
_NOT_IN_A_CARD = ("title", "about", "sample_prompt")
_ONLY_FOR_HUB_DATASETS = ("dataset", "dataset_config", "dataset_split", "dataset_revision", "dataset_format", "columns")

_TEXT = """## Make it again

{how}

```bash
{command}
```

The recipe in full:

```toml
{recipe}```

Computed in {precision} on {hardware}; {minutes} minutes, {tokens} tokens. {versions}.

## Licence and terms

{terms}

## Limits

{limits}
"""


def sections(run) -> str:
    """The card's last sections of a finished run, as Markdown."""
    plan, base, receipt = run.read("plan"), run.read("base"), run.read("data/receipt")
    learned_from = sum(event["tokens"] for event in events.latest(run.events()[0], "step"))
    results, _ = run.events(kind="result")
    minutes = (results[-1]["elapsed_s"] if results else 0) / 60
    how, command = reproduce(run.recipe, base, receipt, plan.get("longer_from"))
    return _TEXT.format(
        how=how, command=command, recipe=recipe_text(run.recipe, base, receipt), precision=plan["precision"],
        hardware=hardware(run), minutes=f"{minutes:.1f}", tokens=f"{learned_from:,}", versions=versions(run),
        terms="\n".join(f"- {line}" for line in licences.terms(base)), limits="\n".join(f"- {line}" for line in limits(run)),
    )


def _hub_dataset(receipt: dict) -> str:
    name = str(receipt["source"].get("hub_id", ""))
    return name if HUB_ID.fullmatch(name) and ".." not in name else ""


def demo_of(receipt: dict) -> str:
    """Which of Tuner's own files the rows are, see `tasks.demos`; "" where they are others."""
    source = receipt["source"]
    return source.get("file", "") if source.get("kind") == "demo" and source.get("file") in tasks.demos() else ""


def recipe_text(recipe, base: dict, receipt: dict) -> str:
    """Every setting that shapes the result, as TOML that `recipe.load` takes; the base pinned to the revision it was.

    A dataset is named only where others can have it: one on the Hub.
    """
    left_out = _NOT_IN_A_CARD + tasks.get(recipe.task).UNUSED + (() if _hub_dataset(receipt) else _ONLY_FOR_HUB_DATASETS)
    found = {name: getattr(recipe, name) for name in KNOBS if name not in left_out}
    if base.get("revision"):
        found["base_revision"] = base["revision"]
    return tomlkit.dumps({name: value for name, value in found.items() if value not in ("", {})})


def reproduce(recipe, base: dict, receipt: dict, longer_from: int | None = None) -> tuple[str, str]:
    """(what to do first, the command) that trains it again.

    Args:
        base: {"id", "revision"}, without a revision where it did not come from the Hub.
        longer_from: the step from which it was trained longer than it was begun with.
    """
    if _hub_dataset(receipt):
        how, command = "Save the recipe as `recipe.toml`, then:", "python -m tuner train recipe.toml"
    elif demo := demo_of(receipt):
        how, command = "Save the recipe as `recipe.toml` in Tuner's folder, then:", f"python -m tuner train recipe.toml dataset=presets/data/{demo}"
    else:
        how, command = "The rows are not published; whoever has them saves the recipe as `recipe.toml`, then:", "python -m tuner train recipe.toml dataset=FILE"
    packaged = starter.of(base["id"]) if not base.get("revision") else None
    if packaged and not packaged.ours and not _hub_dataset(receipt):
        command = f"HF_HUB_OFFLINE=1 {command}"
        how = f"The base is the one of `requirements-starter.txt`; offline it is taken where the Hub's own is not on the machine already. {how}"
    elif packaged and not packaged.ours:
        how = f"The base was the one of `requirements-starter.txt`; with the Hub's own, which is taken where it can be reached, it comes near. {how}"
    if longer_from is not None:
        how = f"It was trained longer from step {longer_from:,} on. This takes all steps on one schedule: near to it, not the same. {how}"
    if [step for step in receipt["steps"] if "rows_out" in step]:
        how = "The rows were put right first, as listed above (`python -m tuner check FILE --fix NAME --out ROWS`). " + how
    return how, command


def hardware(run) -> str:
    """What the run was computed on, by name where its start noted it."""
    device = run.read("plan")["device"]
    named = (run.read("hardware") or {}).get("name", "")
    return f"{named} ({device})" if named else {"cpu": "a CPU", "cuda": "a CUDA card"}.get(device, device)


def versions(run) -> str:
    """The libraries that the run was computed with; of a run whose start did not note them, those that are here now."""
    return (run.read("hardware") or {}).get("versions") or machine.versions()


def limits(run) -> list[str]:
    """What nobody should expect of this adapter, as far as its run can tell."""
    recipe, plan, receipt = run.recipe, run.read("plan"), run.read("data/receipt")
    measured = (run.read("report") or {}).get("held_out_rows", receipt["held_out_rows"])
    said = [
        "It has the base model's knowledge and faults, and its dataset's; what is right in style may be wrong in fact.",
        f"It was measured on {measured:,} held-out rows of the same dataset and on the probe only: nothing is known of other subjects, languages or formats.",
        tasks.get(recipe.task).practised(recipe),
    ]
    if recipe.quantisation == "nf4":
        said.append("It was trained on the base in 4 bits (NF4); on the base in 16 bits its answers can differ a little.")
    if receipt["train_rows"] < 200:
        said.append(f"It learned from {receipt['train_rows']} rows, which is few: expect it to repeat them.")
    if run.read("done", {}).get("state") == "stopped":
        said.append(f"The run was stopped by hand before its {plan['steps']} steps were done.")
    said.append("Nobody has tested it for safety. Test it on your own cases before you rely on it.")
    return said
