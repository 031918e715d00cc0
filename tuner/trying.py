"""The trainings of a trial, in its own child: a sweep of learning rates, and fractions of the rows."""

import math
import random
import signal
from contextlib import nullcontext
from pathlib import Path

import torch

from tuner import bases, checkpoints, enough, finder, lease, models, proposals, rehearsal, report, sizes, survey, tasks, train, trials
from tuner import plan as plans
from tuner.errors import UserError
from tuner.home import write_json, write_whole
from tuner.run import log_wait


class Learner:
    """A base with a fresh adapter that can be trained step by step and set back to its beginning.

    Args:
        trial: anything with a recipe, rows, base.json and a log: a Trial.
    """

    def __init__(self, trial):
        recipe, base = trial.recipe, trial.read("base")
        folder = Path(base["dir"])
        trial.log("status", state="rehearsing", message="Reading the rows")
        task = tasks.get(recipe.task)
        tokenizer = task.load_tokenizer(base["dir"])
        train_rows, held_rows = trial.rows("train"), trial.rows("held_out")
        train_set, held_set = survey.of(train_rows, tokenizer, recipe), survey.of(held_rows, tokenizer, recipe)
        survey.require_something(train_set, train_rows, recipe, "training")
        survey.require_something(held_set, held_rows, recipe, "held-out")
        rehearsal.quote_run(trial, train_set, held_set, folder)
        trial.log("status", state="rehearsing", message="Loading the base model")
        chosen = {"attention": train.choose_attention(train_set), **task.decide(train_rows, held_rows, recipe)}
        loaded = models.load_base(folder, recipe, chosen)
        self.recipe, self.rows, self.held = recipe, train_set.encoded, held_set.encoded
        self.model = models.attach_lora(loaded.model, recipe, base["id"], base["revision"], loaded.plan.get("heads", []))
        self.path = task.path(self.model, tokenizer, recipe, None, train_rows)
        self.plan = train.make_plan(recipe, loaded.plan, self.path, train_set, held_set, bases.weights_hash(folder), sizes.in_folder(folder))
        self.path.checkpointing = self.plan["gradient_checkpointing"]
        self.device = next(self.model.parameters()).device
        self.weights = [p for p in self.model.parameters() if p.requires_grad]
        self._start = [p.detach().clone() for p in self.weights]
        self.set_back()

    def set_back(self) -> None:
        """The adapter and its optimiser as they were before the first step."""
        with torch.no_grad():
            for weight, start in zip(self.weights, self._start):
                weight.copy_(start)
        self.optimizer = torch.optim.AdamW(self.weights, lr=0.0, weight_decay=self.recipe.weight_decay)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.plan["precision"] == "float16")

    def step(self, rows: list, learning_rate: float) -> None:
        """One optimiser step over these encoded rows, as a run makes it."""
        self.model.train()
        batch = self.path.collate(sorted(rows, key=lambda row: len(row.ids)))
        batch = {name: its.to(self.device) if torch.is_tensor(its) else its for name, its in batch.items()}
        learned = sum(row.learned for row in rows)
        for part in self.path.parts(batch, self.plan["tokens_at_once"], self.plan["micro_batch"]):
            losses, _ = self.path.losses(part)
            self.scaler.scale(losses.sum() / learned).backward()
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.weights, self.recipe.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def loss(self, rows: list) -> float:
        """The mean loss of these encoded rows, in nats a token; nothing random is drawn."""
        with checkpoints.random_untouched():
            self.model.eval()
            return report.measure(self.path, rows)["loss"]


def sweep(trial, learner: Learner) -> None:
    """Raise the learning rate step by step, and measure the same few held-out rows after each."""
    recipe = learner.recipe
    lengths = [len(row.ids) for row in learner.rows]
    # As many tokens as a step has: measuring may cost a third of it.
    few = _few(learner.held, recipe.batch_size * sum(lengths) / len(lengths), recipe.seed)
    batches, epoch = [], 0
    while len(batches) < finder.STEPS:
        batches += plans.optimiser_batches(lengths, recipe.batch_size, recipe.seed, epoch)
        epoch += 1
    trial.log("status", state="training", message=f"Trying {finder.STEPS} learning rates, from low to high")
    found = [(0.0, _number(learner.loss(few), "Before the first step"))]
    trial.log("point", step=0, learning_rate=0.0, loss=found[0][1])
    for number, (rate, batch) in enumerate(zip(finder.rates(), batches)):
        if trial.stop_asked():
            return
        learner.step([learner.rows[index] for index in batch], rate)
        found.append((rate, learner.loss(few)))
        if not math.isfinite(found[-1][1]):
            return
        trial.log("point", step=number + 1, learning_rate=rate, loss=found[-1][1])
        if finder.is_over(found):
            return


def fractions(trial, learner: Learner) -> None:
    """Train on more and more of the rows with as many steps each, and keep each training's lowest held-out loss."""
    recipe = learner.recipe
    steps = trials.steps_of(trials.ENOUGH, recipe, len(learner.rows))
    wanted = enough.sizes(len(learner.rows), recipe.batch_size, steps)
    tokens = recipe.batch_size * sum(len(row.ids) for row in learner.rows) / len(learner.rows)
    few = _few(learner.held, 4 * tokens, recipe.seed)
    # One order for all, so that each fraction is part of the next.
    order = random.Random(f"fractions/{recipe.seed}").sample(range(len(learner.rows)), len(learner.rows))
    warm = max(1, round(0.1 * steps))
    for number, size in enumerate(wanted):
        trial.log("status", state="training", message=f"Learning from {size:,} rows ({number + 1} of {len(wanted)})")
        rows = [learner.rows[index] for index in order[:size]]
        lengths = [len(row.ids) for row in rows]
        learner.set_back()
        best, done, epoch = math.inf, 0, 0
        while done < steps:
            for batch in plans.optimiser_batches(lengths, recipe.batch_size, recipe.seed, epoch):
                if trial.stop_asked():
                    return
                rate = recipe.learning_rate * min((done + 1) / warm, (steps - done) / max(1, steps - warm))
                learner.step([rows[index] for index in batch], rate)
                done += 1
                if done in {math.ceil(steps * part / enough.MEASURED) for part in range(1, enough.MEASURED + 1)}:
                    best = min(best, learner.loss(few))
                    trial.log("progress", share=(number + done / steps) / len(wanted))
                if done == steps:
                    break
            epoch += 1
        trial.log("point", rows=size, loss=_number(best, f"With {size:,} rows, at a learning rate of {recipe.learning_rate:g},"))


def _number(loss: float, when: str) -> float:
    if not math.isfinite(loss):
        raise UserError(f"{when} the held-out loss is not a number. Lower the learning rate, or choose another base model or precision.")
    return loss


def _few(rows: list, tokens: float, seed: int) -> list:
    """Rows of about so many tokens in all, always the same ones; at least four where there are."""
    found, total = [], 0
    for index in random.Random(f"few/{seed}").sample(range(len(rows)), len(rows)):
        if total >= tokens and len(found) >= 4:
            break
        found.append(rows[index])
        total += len(rows[index].ids)
    return found


def main(trial, alone: bool = True) -> int:
    """Do the trial and put every ending into its folder; the exit code is 0 only when it is done or stopped.

    Args:
        alone: wait for the machine as runs do.
    """
    def on_term(*_):
        raise SystemExit(143)

    signal.signal(signal.SIGTERM, on_term)
    try:
        waiting = lambda ahead: log_wait(trial, ahead)  # noqa: E731
        hold = lease.hold(trial.id, waiting, trial.stop_asked, owner=trial.owner, folder=str(trial.folder)) if alone else nullcontext(True)
        with hold as held:
            if held:
                {trials.RATE: sweep, trials.ENOUGH: fractions}[trial.kind](trial, Learner(trial))
        state = "stopped" if trial.stop_asked() else "done"
        trial.log("status", state=state, message="Cancelled" if state == "stopped" else "Done")
        write_json(trial.folder / "done", {"state": state})
        return 0
    except UserError as error:
        write_whole(trial.folder / "error.txt", str(error))
        return 1
    except Exception as error:
        if not rehearsal.is_out_of_memory(error):
            raise
        write_whole(trial.folder / "error.txt", str(proposals.refuse(trial, "The trial ran out of memory.")))
        return 1
