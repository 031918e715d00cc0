"""What a training tells while it goes: its steps with the time left, and in words what its curves show, each once."""

import time
from contextlib import contextmanager

import psutil
import torch

from tuner import events, watch
from tuner.run import Run


class Curves:
    """Keeps the curves and notes in the run what `tuner.watch` sees in them, each rule once, whatever is resumed."""

    def __init__(self, run: Run, total: int):
        self.run, self.total = run, total
        self.steps: list[dict] = []
        self.evals: list[dict] = []
        # What is in the log was said; a process that ended since may have said it.
        self.said = {event["rule"] for event in run.events()[0] if event["kind"] == "note" and "rule" in event}

    def resume(self, step: int, rows: int) -> None:
        """Take the curves up to a checkpoint's step from the log; what came after is done again.

        Args:
            rows: how many held-out rows are measured now; losses of another number of them are another curve.
        """
        told = self.run.events()[0]
        self.steps = [event for event in events.latest(told, "step") if event["step"] <= step]
        self.evals = [event for event in events.latest(told, "eval") if event["step"] <= step and event.get("rows", rows) == rows]

    def step(self, step: int, loss: float, learning_rate: float) -> None:
        self.steps.append({"step": step, "loss": loss, "learning_rate": learning_rate})
        if spike := watch.spike(self.steps):
            self._say(spike)

    def evaluation(self, step: int, loss: float, kept: int | None = None) -> None:
        """Take an evaluation; `kept` is the step of the version that is the best by now."""
        self.evals.append({"step": step, "loss": loss})
        for said in watch.look(self.steps, self.evals, self.total, kept):
            self._say(said)

    def _say(self, said: watch.Said) -> None:
        if said.rule not in self.said:
            self.said.add(said.rule)
            self.run.log("note", rule=said.rule, step=said.step, message=said.message)


class Meter:
    """Counts tokens and seconds of training alone, and writes the `step` events."""

    def __init__(self, run: Run, steps: int, began: float):
        self.run, self.steps = run, steps
        self.elapsed_s = time.time() - began
        self.resumed_at = 0
        self.done: list[tuple[float, int]] = []  # (seconds, tokens) of the latest steps
        self.other_s, self.other_steps = 0.0, 0
        self._reset()

    def _reset(self) -> None:
        self.loss, self.tokens, self.labelled = 0.0, 0, 0
        self.since, self.away_s = time.time(), 0.0

    def resume(self, step: int, elapsed_s: float) -> None:
        self.resumed_at = step
        self.elapsed_s = elapsed_s
        self._reset()

    def add(self, loss: float, tokens: int, labelled: int) -> None:
        self.loss += loss
        self.tokens += tokens
        self.labelled += labelled

    @contextmanager
    def not_training(self):
        """Time spent inside is not counted as training."""
        began = time.time()
        yield
        self.leave_out(time.time() - began)
        self.other_s += time.time() - began

    def leave_out(self, seconds: float) -> None:
        """Count seconds that just passed as no training, and as nothing that comes again."""
        self.away_s += seconds
        self.elapsed_s += seconds

    def log_step(self, step: int, epoch: float, learning_rate: float, grad_norm: float | None) -> None:
        if not self.done:
            self.run.log("status", state="training", message="Training")
        spent = max(1e-6, time.time() - self.since - self.away_s)
        self.elapsed_s += spent
        self.done = [*self.done, (spent, self.tokens)][-20:]
        per_step = sum(seconds for seconds, _ in self.done) / len(self.done)
        other_per_step = self.other_s / max(1, step - self.resumed_at)
        self.run.log(
            "step", step=step, epoch=round(epoch, 4), loss=self.loss, learning_rate=learning_rate, grad_norm=grad_norm,
            tokens=self.tokens, labelled_tokens=self.labelled,
            tokens_per_s=round(sum(tokens for _, tokens in self.done) / sum(seconds for seconds, _ in self.done), 1),
            elapsed_s=round(self.elapsed_s, 2), eta_s=round((self.steps - step) * (per_step + other_per_step), 1),
            memory_gib=round(memory_gib(), 3), steps=self.steps,
        )
        self._reset()


def memory_gib() -> float:
    """What this process holds now: on the card where there is one, else in memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved() / 2**30
    return psutil.Process().memory_info().rss / 2**30
