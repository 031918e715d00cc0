"""What differs between tasks, one module each; nothing else in the project asks for a task's name."""

from importlib import import_module

from tuner.errors import UserError

TASKS = ("chat",)


def get(name: str):
    """The task's module.

    Raises:
        UserError: there is no such task.
    """
    if name not in TASKS:
        raise UserError(f"There is no task {name!r}. Choose one of {', '.join(TASKS)}.")
    return import_module(f"tuner.tasks.{name}")
