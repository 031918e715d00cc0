"""Before and after on held-out rows: the same rows through the base and through the tuned model."""

import math
from pathlib import Path

import torch

from tuner import answer, bases, batching, encode, fast, models, survey, tasks
from tuner import plan as plans
from tuner.errors import UserError
from tuner.home import write_json

ANSWERS = 5
ANSWER_TOKENS = 60
# Nats a token on every row: what is less is rounding.
NOTHING = 1e-6


def perplexity(loss: float) -> float:
    """exp(loss), held below a number that JSON can carry."""
    return math.exp(min(loss, 80.0))


@torch.no_grad()
def measure(path: fast.Path, rows: list, tokens_at_once: int = 2048) -> dict:
    """The mean loss over all learned tokens of the rows, and each row's own.

    Returns:
        {"loss": float, "tokens": int, "row_losses": [float]}: losses in nats a token, rows in the order given.
    """
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].ids))
    sums, counts = torch.zeros(len(rows), dtype=torch.float64), torch.zeros(len(rows), dtype=torch.float64)
    device = next(path.model.parameters()).device
    start = 0
    for lengths in plans.cut([len(rows[index].ids) for index in order], tokens_at_once):
        chosen = order[start : start + len(lengths)]
        start += len(lengths)
        batch = batching.collate([rows[index] for index in chosen])
        batch = {name: its.to(device) if torch.is_tensor(its) else its for name, its in batch.items()}
        losses, owners = path.losses(batch)
        where = torch.tensor(chosen)[owners.cpu()]
        sums.index_add_(0, where, losses.double().cpu())
        counts.index_add_(0, where, torch.ones(len(where), dtype=torch.float64))
    return {
        "loss": float(sums.sum() / counts.sum()),
        "tokens": int(counts.sum()),
        "row_losses": (sums / counts.clamp(min=1)).tolist(),
    }


def make(run, plan: dict, model, tokenizer, held_rows, held_set, best_step: int) -> dict:
    """The report of a PeftModel against its own base, on all held-out rows.

    Raises:
        UserError: the adapter changed nothing.
    """
    recipe = run.recipe
    path = fast.Path(model, tokenizer.pad_token_id, plan["fast"])
    tuned = measure(path, held_set.encoded)
    stops = encode.stop_ids(tokenizer, getattr(model.generation_config, "eos_token_id", None))
    task = tasks.get(recipe.task)
    questions = task.questions(held_rows[:ANSWERS], recipe)
    prompts = [task.prompt_ids(question, tokenizer, recipe) for question in questions]
    told = answer.answers(model, tokenizer, prompts, stops, ANSWER_TOKENS)
    with model.disable_adapter():
        base = measure(path, held_set.encoded)
        said = answer.answers(model, tokenizer, prompts, stops, ANSWER_TOKENS)
    spoken = [
        {
            "prompt": question["messages"][-1]["content"],
            "base": {"text": before, "ended": why_before == "stop"}, "tuned": {"text": after, "ended": why_after == "stop"},
        }
        for question, (before, why_before), (after, why_after) in zip(questions, said, told)
    ]
    if max(abs(after - before) for after, before in zip(tuned["row_losses"], base["row_losses"])) < NOTHING:
        raise UserError(
            "The adapter changed nothing: every held-out row has the loss it had before. Raise the learning rate or the "
            "number of steps."
        )
    return {
        "held_out_rows": len(held_rows), "held_out_tokens": tuned["tokens"], "best_step": best_step,
        "base": {"loss": base["loss"], "perplexity": perplexity(base["loss"])},
        "tuned": {"loss": tuned["loss"], "perplexity": perplexity(tuned["loss"])},
        "change": tuned["loss"] / base["loss"] - 1,
        "rows_better": sum(after < before for after, before in zip(tuned["row_losses"], base["row_losses"])),
        "answers": spoken,
    }


def load_tuned(run):
    """The run's tuned model on exactly the base it was trained on.

    Returns:
        model, tokenizer, plan.

    Raises:
        UserError: the run has no adapter, or its base is gone or changed.
    """
    plan, base = run.read("plan"), run.read("base")
    if not run.read("done") or not plan:
        raise UserError(f"This run is {run.state()} and has no tuned model yet. Let it end first.")
    bases.require_same(base, plan["base_sha256"])
    loaded = models.load_base(Path(base["dir"]), run.recipe, plan)
    model = models.load_adapter(loaded.model, run.adapter_dir, base["id"])
    fast.speed_up_lora(model)  # for its answers
    return model, loaded.tokenizer, plan


def remake(run) -> dict:
    """Measure a finished run again from its folder; the same numbers come out."""
    model, tokenizer, plan = load_tuned(run)
    held_rows = run.rows("held_out")
    held_set = survey.of(held_rows, tokenizer, run.recipe)
    made = make(run, plan, model, tokenizer, held_rows, held_set, (run.read("report") or {}).get("best_step", 0))
    write_json(run.folder / "report.json", made)
    return made
