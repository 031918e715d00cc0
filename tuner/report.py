"""Before and after on held-out rows: the same rows through the base and through the tuned model."""

import math
import random
import time
from itertools import takewhile
from pathlib import Path

import numpy as np
import torch

from tuner import bases, cost, decode, encode, fast, figures, models, packed, probe, side_by_side, sizes, survey, tasks
from tuner import plan as plans
from tuner.errors import UserError
from tuner.home import write_json

# Nats a token, on each row: what is less is bf16's rounding.
NOTHING = 1e-4
# Rows answered before those that changed most: by then the metrics have something to stand on.
FIRST_ANSWERS = 16
MOST_CHANGED, EXAMPLES = 10, 5
MOST_LETTERS = 2000


def perplexity(loss: float) -> float:
    """exp(loss), held below a number that JSON can carry."""
    return math.exp(min(loss, 80.0))


@torch.no_grad()
def measure(path: fast.Path, rows: list, tokens_at_once: int = cost.MEASURED_AT_ONCE, hits: bool = False) -> dict:
    """The mean loss over all learned tokens of the rows, and each row's own.

    Args:
        hits: also whether each token was the likeliest.

    Returns:
        {"loss", "tokens", "row_losses": [float], "row_tokens": [int]}: losses in nats a token, rows in the order given;
        with `hits` also "token_accuracy" and "row_hits": [int].
    """
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].ids))
    sums, counts, right = (torch.zeros(len(rows), dtype=torch.float64) for _ in range(3))
    device = next(path.model.parameters()).device
    start = 0
    for lengths in plans.cut([len(rows[index].ids) for index in order], tokens_at_once):
        chosen = order[start : start + len(lengths)]
        start += len(lengths)
        batch = path.collate([rows[index] for index in chosen])
        batch = {name: its.to(device) if torch.is_tensor(its) else its for name, its in batch.items()}
        losses, owners, *seen = path.judge(batch) if hits else path.losses(batch)
        where = torch.tensor(chosen)[owners.cpu()]
        sums.index_add_(0, where, losses.double().cpu())
        counts.index_add_(0, where, torch.ones(len(where), dtype=torch.float64))
        if hits:
            right.index_add_(0, where, seen[0].double().cpu())
    found = {
        "loss": float(sums.sum() / counts.sum()), "tokens": int(counts.sum()),
        "row_losses": (sums / counts.clamp(min=1)).tolist(), "row_tokens": counts.int().tolist(),
    }
    if hits:
        found |= {"token_accuracy": float(right.sum() / counts.sum()), "row_hits": right.int().tolist()}
    return found


def make(
    run, plan: dict, model, tokenizer, held_rows, held_set, best_step: int, seconds: float = math.inf, repeat: dict | None = None,
    on_status=lambda words: None,
) -> dict:
    """The report of a PeftModel against its own base, on all held-out rows that there is time for.

    Args:
        seconds: see `plan.report_budget_s`; where they do not suffice, fewer rows are answered, then fewer of the probe's
            questions asked, then fewer rows measured: each time the seed's first so many.
        repeat: an earlier report of the same run, whose amount of work is done again whatever time it takes.
        on_status: called with words as it goes on.

    Returns:
        What report.json holds; `figures.measures` reads it. No times are in it: made again it is the same, bit for bit.

    Raises:
        UserError: the adapter changed nothing.
    """
    began, seed = time.monotonic(), run.recipe.seed
    path = fast.Path(model, tokenizer.pad_token_id, plan["fast"])
    asked_tokens = sum(len(row.ids) for row in probe.rows(list(probe.items()), tokenizer))
    rows, tokens_per_s = _losses(path, held_set, seconds, asked_tokens, seed, repeat and repeat["held_out_rows"], on_status)
    if abs(rows["tuned"] - rows["base"]).max() < NOTHING:
        raise UserError(
            "The adapter changed nothing: every held-out row has the loss it had before. Raise the learning rate or the "
            "number of steps."
        )
    base, tuned = (_whole(rows, name) for name in ("base", "tuned"))
    left = lambda: seconds - (time.monotonic() - began)  # noqa: E731
    on_status("Asking general questions, before and after")
    probed = _probe(path, tokenizer, seed, left(), asked_tokens, tokens_per_s, repeat and repeat["probe"]["share"])
    told = _answer(run, plan, model, tokenizer, held_rows, rows, left, tokens_per_s, repeat and repeat["answers"], on_status)
    told["answers"]["of"] = held_out = len(set(held_set.owners))
    change, weights = rows["tuned"] - rows["base"], rows["tokens"]
    loss = figures.interval(change, weights, seed)
    steps = [event["step"] for event in run.events(kind="eval")[0]]
    made = {
        "held_out_rows": len(rows["place"]), "held_out_of": held_out, "held_out_tokens": int(rows["tokens"].sum()),
        "best_step": best_step, "base": base, "tuned": tuned,
        "change": tuned["loss"] / base["loss"] - 1,
        "difference": {
            "loss": loss, "perplexity": _of_perplexity(base["loss"], loss),
            "token_accuracy": figures.interval((rows["tuned_hits"] - rows["base_hits"]) / weights, weights, seed),
        },
        "rows_better": int((change < 0).sum()), "rows_worse": int((change > 0).sum()),
        **told, "probe": probed,
    }
    memorised = [event["message"] for event in run.events(kind="note")[0] if event.get("rule") == "memorising" and event["step"] == best_step]
    made["says"] = figures.verdicts(made, steps[-1] if steps else best_step, *memorised[-1:])
    return made


def _both(model, act) -> tuple:
    """The same through the base and through the tuned model."""
    tuned = act()
    with model.disable_adapter():
        return act(), tuned


def _of_perplexity(base_loss: float, loss: dict) -> dict:
    """The interval of a loss's change as one of perplexity's."""
    moved = lambda its: None if its is None else perplexity(base_loss + its) - perplexity(base_loss)  # noqa: E731
    return {**loss, **{name: moved(loss[name]) for name in ("mean", "low", "high")}}


def _losses(path: fast.Path, held_set, seconds: float, asked_tokens: int, seed: int, repeat: int | None, on_status) -> tuple[dict, float]:
    """Losses of held-out rows by base and tuned model: of all, or of the seed's first so many that leave time for the least of the probe.

    Args:
        asked_tokens: of the whole probe.
        repeat: of so many rows, whatever time that takes.

    Returns:
        What `_by_row` gives, and tokens a second through both.
    """
    of_row: dict[int, list[int]] = {}
    for index, owner in enumerate(held_set.owners):
        of_row.setdefault(owner, []).append(index)
    order = sorted(of_row)
    random.Random(f"{seed}/measured").shuffle(order)
    long = {place: sum(len(held_set.encoded[index].ids) for index in of_row[place]) for place in order}
    began, chosen, found, tokens, most = time.monotonic(), [], [], 0, plans.FIRST_MEASURED
    while len(chosen) < min(len(order), repeat or len(order)):
        batch = order[len(chosen) : min(len(chosen) + most, repeat or len(order))]
        if chosen and repeat is None:
            spent = time.monotonic() - began
            per_s = tokens / spent
            left_s = seconds - spent - 2 * plans.LEAST_PROBE * asked_tokens / per_s
            ends = np.cumsum([2 * long[place] for place in batch])
            batch = batch[: int(np.searchsorted(ends, left_s * per_s, "right"))]
        if not batch:
            break
        on_status(f"Comparing with the base model on held-out rows: {len(chosen):,} of {len(order):,}")
        which = [index for place in batch for index in of_row[place]]
        before, after = _both(path.model, lambda: measure(path, [held_set.encoded[index] for index in which], hits=True))  # noqa: B023
        found.append(([held_set.owners[index] for index in which], before, after))
        chosen += batch
        tokens += 2 * sum(long[place] for place in batch)
        if repeat is None and len(batch) < most:  # no further, so that the same batches are made again
            break
        most *= 2
    base, tuned = ({name: [its for part in found for its in part[who][name]] for name in ("row_losses", "row_tokens", "row_hits")} for who in (1, 2))
    return _by_row([owner for part in found for owner in part[0]], base, tuned), tokens / (time.monotonic() - began)


def _by_row(owners: list[int], base: dict, tuned: dict) -> dict[str, np.ndarray]:
    """Sequences put together to the rows they come from, in the rows' order.

    Returns:
        place: (n,) of each row among all held-out rows; base, tuned: (n,) nats a token; base_hits, tuned_hits, tokens: (n,).
    """
    place, which = np.unique(owners, return_inverse=True)
    total = lambda values: np.bincount(which, weights=values)  # noqa: E731
    tokens = total(base["row_tokens"])
    return {
        "place": place, "tokens": tokens,
        "base": total(np.multiply(base["row_losses"], base["row_tokens"])) / tokens,
        "tuned": total(np.multiply(tuned["row_losses"], tuned["row_tokens"])) / tokens,
        "base_hits": total(base["row_hits"]), "tuned_hits": total(tuned["row_hits"]),
    }


def _whole(rows: dict[str, np.ndarray], name: str) -> dict:
    """One model's figures over all learned tokens of the rows."""
    tokens = rows["tokens"].sum()
    loss = float((rows[name] * rows["tokens"]).sum() / tokens)
    return {"loss": loss, "perplexity": perplexity(loss), "token_accuracy": float(rows[f"{name}_hits"].sum() / tokens)}


def _probe(path: fast.Path, tokenizer, seed: int, left_s: float, asked_tokens: int, tokens_per_s: float, share: float | None) -> dict:
    """The forgetting probe: all of it, or the part that takes no more than half of the time that is left."""
    if share is None:
        share = min(1.0, max(plans.LEAST_PROBE, left_s / 2 / (2 * asked_tokens / tokens_per_s)))
    chosen = probe.choose(share, seed)
    rows = probe.rows(chosen, tokenizer)
    base, tuned = _both(path.model, lambda: measure(path, rows))
    return {"share": share, **probe.compare(chosen, base["row_losses"], tuned["row_losses"], base["row_tokens"], seed)}


def _answer(run, plan, model, tokenizer, held_rows, rows, left, tokens_per_s: float, repeat: dict | None, on_status) -> dict:
    """Measured rows answered by both models, as many at once as there is room for, for as long as there is time.

    The order is the seed's, but that the first few and the rows that changed most, which are shown side by side, come before
    the others, and rows whose own answer is short before all: theirs are soon given, and are scored. Where there is no time
    for the other answers of the rows shown, these are cut. What is counted is the seed's first so many rows with whole
    answers, so that the rows shown weigh no more than others; where that is not even the rows with short answers, these.

    Returns:
        answers: shares and scores over the counted rows; rows: those that changed most; examples: the first few.
    """
    recipe, seed = run.recipe, run.recipe.seed
    task = tasks.get(recipe.task)
    order = list(range(len(rows["place"])))
    random.Random(f"{seed}/answers").shuffle(order)
    change = rows["tuned"] - rows["base"]
    by_change = [int(index) for index in np.argsort(change, kind="stable")]
    improved = [index for index in by_change if change[index] < 0][:MOST_CHANGED]
    worsened = [index for index in reversed(by_change) if change[index] > 0][:MOST_CHANGED]
    held = [held_rows[rows["place"][index]] for index in order]
    wanted = dict(zip(order, task.first_answers(held)))
    questions = dict(zip(order, task.questions(held, recipe)))
    is_short = {index: 0 < len(figures.words(text or "")) <= figures.SHORT_WORDS for index, text in wanted.items()}
    todo = list(dict.fromkeys([*order[:FIRST_ANSWERS], *improved, *worsened, *order]))
    stops = encode.stop_ids(tokenizer, getattr(model.generation_config, "eos_token_id", None))
    slower, said, paces = side_by_side.PADDED if decode.over(model)[0] is None else 1.0, {}, {}
    for kind, short in (("short", True), ("others", False)):
        if not (its := [index for index in todo if is_short[index] == short]):
            continue
        prompts = {index: task.prompt_ids(questions[index], tokenizer, recipe) for index in its}
        most_tokens = whole = _longest([wanted[index] for index in its], tokenizer, recipe)
        again = (repeat or {}).get("paces", {}).get(kind)
        at_once = (again or {}).get("at_once") or _at_once(model, plan, max(map(len, prompts.values())) + most_tokens)
        beside = [index for index in [*improved, *worsened] if is_short[index] == short]
        if repeat:  # an earlier version's report notes how many answers it made, and no more
            again = again or {"at_once": at_once, "begun": repeat["made"] - len(said), "steps": None, "most_tokens": most_tokens}
            pace = side_by_side.Again(at_once, again["begun"], again["steps"])
            most_tokens = again["most_tokens"]
        else:
            pace = side_by_side.InTime(at_once, tokens_per_s, left, slower)
            if not short and beside:
                most_tokens = _cut_to(pace, list(prompts.values()), whole, 2 * len(beside))
        if is_cut := most_tokens < whole:  # counted nowhere, so that those which are shown come first
            its = list(dict.fromkeys([*beside, *its]))
        told = lambda made: on_status(f"Answering held-out rows: {len(said) + made:,} of {len(todo):,}")  # noqa: B023, E731
        told(0)
        packed.trim()  # what went before is smaller, or is over
        both = side_by_side.answers(model, tokenizer, [side_by_side.Asked(prompts[index], most_tokens) for index in its], stops, pace, told)
        said |= {
            its[place]: {name: {"text": text, "ended": why == "stop", "cut": is_cut and why != "stop"} for name, (text, why) in zip(("base", "tuned"), made)}
            for place, made in both.items()
        }
        slower = getattr(pace, "slower", slower)
        noted = again or {"at_once": pace.at_once, "begun": pace.begun, "steps": pace.steps, "most_tokens": most_tokens}
        paces[kind] = {**noted, "is_cut": is_cut}
    uncut = {index for index in said if is_short[index] or not paces["others"]["is_cut"]}
    first, scored = (list(takewhile(uncut.__contains__, its)) for its in (order, [index for index in order if is_short[index]]))
    counted = max(first, scored, key=len)
    only_short = bool(counted) and "others" in paces and all(is_short[index] for index in counted)

    def shown(index: int) -> dict:
        its = said.get(index, dict.fromkeys(("base", "tuned"), {"text": None, "ended": None, "cut": False}))
        return {
            "row": held_rows[rows["place"][index]]["n"], "prompt": _cut(questions[index]["messages"][-1]["content"]), "wanted": _cut(wanted[index]),
            **{name: {"loss": float(rows[name][index]), "text": _cut(its[name]["text"]), "ended": its[name]["ended"], "cut": its[name]["cut"]} for name in ("base", "tuned")},
        }

    return {
        "answers": {
            "asked": len(counted), "only_short": only_short, "made": len(said), "paces": paces,
            **_compared([said[index] for index in counted], lambda its, _: its["ended"], [""] * len(counted), "stopped", seed),
            "short": _short(scored, said, wanted, seed) | {"of": sum(is_short.values())} if scored else None,
        },
        "rows": {"improved": [shown(index) for index in improved], "worsened": [shown(index) for index in worsened]},
        "examples": [shown(index) for index in order[:EXAMPLES]],
    }


def _cut_to(pace: side_by_side.InTime, prompts: list[list[int]], whole: int, answers: int) -> int:
    """How many tokens the answers may have, so that so many of them end in time, one wave after another; `whole` where that is enough."""
    unread = max(map(len, prompts)) - len(side_by_side.beginning(prompts))
    together = min(pace.at_once, answers)
    fitting = pace.fitting(together, unread) / math.ceil(answers / together)
    return whole if fitting >= whole else int(min(whole, max(plans.FEWEST_ANSWER_TOKENS, plans.CUT_SLACK * fitting)))


def _at_once(model, plan: dict, tokens: int) -> int:
    """How many answers there is room for together; `tokens` of the longest prompt and its answer."""
    return cost.answers_at_once(plan["device"], cost.cached_bytes(sizes.of_config(model.config), cost.itemsize(plan["precision"])), tokens)


def _longest(wanted: list[str], tokenizer, recipe) -> int:
    """How many tokens an answer may have: enough for nearly all of the rows' own, and to see whether it stops."""
    lengths = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in wanted if text]
    return plans.longest_answer(float(np.percentile(lengths, 95)) if lengths else plans.TEXT_TOKENS / plans.LONGER, recipe)


def _compared(said: list[dict], score, wanted: list[str], name: str, seed: int) -> dict:
    """{"base": {name: mean}, "tuned": ..., "difference": {name: interval}} of a score of (answer, wanted text)."""
    both = [[float(score(its[who], text)) for its, text in zip(said, wanted)] for who in ("base", "tuned")]
    change = figures.interval(np.subtract(both[1], both[0]), seed=seed)
    mean = lambda values: sum(values) / len(values) if values else None  # noqa: E731
    return {"base": {name: mean(both[0])}, "tuned": {name: mean(both[1])}, "difference": {name: change}}


def _short(scored: list[int], said: dict, wanted: dict, seed: int) -> dict:
    """Exact match and token F1 over answered rows whose own answer is short."""
    found: dict = {"rows": len(scored)}
    for name, score in (("exact_match", figures.exact_match), ("f1", figures.token_f1)):
        made = _compared([said[index] for index in scored], lambda its, text: score(its["text"], text), [wanted[index] for index in scored], name, seed)  # noqa: B023
        for part, its in made.items():
            found[part] = found.get(part, {}) | its
    return found


def _cut(text: str | None) -> str | None:
    """A text that a page can show; the rows themselves are in the run's folder."""
    return text if text is None or len(text) <= MOST_LETTERS else text[:MOST_LETTERS] + " …"


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


def remake(run, on_status=lambda words: None, seconds: float | None = None) -> dict:
    """Measure a finished run again from its folder; the same numbers come out, in report.json too.

    Args:
        seconds: measure and answer as many held-out rows as there is this time for; from then on these numbers come out.

    Raises:
        UserError: the run is not finished, or went on while it was measured, or there was time for less than its report has;
            the report is left as it is then.
    """
    ended = _end_of(run)
    model, tokenizer, plan = load_tuned(run)
    held_rows = run.rows("held_out")
    held = held_rows, survey.of(held_rows, tokenizer, run.recipe)
    best_step = (run.read("report") or {}).get("best_step", 0)
    before = figures.of(run)
    repeat, seconds = (before, math.inf) if seconds is None else (None, seconds)

    def on(words: str) -> None:
        _require_same_end(run, ended)
        on_status(words)

    made = tasks.get(run.recipe.task).report(run, plan, model, tokenizer, held, best_step, seconds=seconds, repeat=repeat, on_status=on)
    _require_same_end(run, ended)
    if repeat is None and before and any(now < then for now, then in zip(_measured(made), _measured(before))):
        raise UserError(f"In {seconds:.0f} s there was time for fewer rows than the report has, so it stays as it was.")
    write_json(run.folder / "report.json", made)
    return made


def _measured(report: dict) -> tuple[int, int]:
    """How many rows a report measured and answered."""
    return report["held_out_rows"], report.get("answers", {}).get("asked", 0)


def _end_of(run) -> tuple | None:
    """What tells one end of a run from another: it may be resumed, or trained longer."""
    try:
        its = (run.folder / "done").stat()
    except FileNotFoundError:
        return None
    return its.st_ino, its.st_mtime_ns


def _require_same_end(run, ended: tuple | None) -> None:
    if _end_of(run) != ended:
        raise UserError("The run was trained on while it was measured, so what was measured is of no use. Measure it again when it has ended.")
