"""What differs between tasks, one module each; nothing else in the project asks for a task's name."""

from dataclasses import dataclass
from importlib import import_module

from tuner.errors import UserError

TASKS = ("chat",)


@dataclass(frozen=True)
class Fault:
    """One thing that can be wrong with rows.

    Args:
        title: what it is, as a heading.
        why: why it matters, one sentence.
        level: "stop" (no run can start), "harm" (the result will be worse or untrue), "mind" (look at it), "note".
        fixes: what can be done, by name; see `fixes.FIXES`.
        left_out: such a record gives no row, so it is left out by itself.
    """

    title: str
    why: str
    level: str
    fixes: tuple[str, ...] = ()
    left_out: bool = False


class NoRow(ValueError):
    """A record that gives no row.

    Args:
        kind: which fault it is; one of the task's FAULTS.
        words: why; they follow "Row N".
    """

    def __init__(self, kind: str, words: str):
        super().__init__(words)
        self.kind = kind


def get(name: str):
    """The task's module.

    Raises:
        UserError: there is no such task.
    """
    if name not in TASKS:
        raise UserError(f"There is no task {name!r}. Choose one of {', '.join(TASKS)}.")
    return import_module(f"tuner.tasks.{name}")
