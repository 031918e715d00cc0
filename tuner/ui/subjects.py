"""Which model the third tab asks: what can be chosen there, and what each choice stands for."""

from tuner import chat, hub, sharing, tasks
from tuner import run as runs
from tuner.errors import UserError
from tuner.ui import drawing

BASE_CHOICE, HUB_CHOICE, SHARED = "base", "hub", "shared:"
# From the first moment on: a link to an adapter chooses the second before the visitor's own runs are known.
ALWAYS = [("The base model alone", BASE_CHOICE), ("An adapter on the Hub (write its id)", HUB_CHOICE)]


def choices(owner: str, key: str) -> list[tuple[str, str]]:
    """What this visitor can choose: their finished runs, the one of the link that the page was opened with, and what there always is."""
    mine = [(run, run.state()) for run in runs.mine(owner)]
    tuned = [(drawing.run_label(run.title, state, (run.folder / "recipe.toml").stat().st_mtime), run.id) for run, state in mine if state in ("done", "stopped")]
    return [*tuned, *_shared(key), *ALWAYS]


def _shared(key: str) -> list[tuple[str, str]]:
    """The run that the page was opened with a link to, once there is something to talk to."""
    try:
        its = sharing.find(key) if key else None
    except UserError:  # unshared; the Fine-tune tab says so
        return []
    return [(f"Shared with you: {drawing.short(its.title)}", SHARED + its.key)] if its and its.state in ("done", "stopped") else []


def is_mine(choice) -> bool:
    """Whether it is a run in the visitor's own list that was chosen."""
    return bool(choice) and choice not in (BASE_CHOICE, HUB_CHOICE) and not str(choice).startswith(SHARED)


def subject_of(choice, adapter_id, base_model, visitor) -> chat.Subject:
    """What is talked to.

    Raises:
        UserError: it is not there, or not for this visitor.
    """
    if choice == BASE_CHOICE:
        return chat.of_base(hub.require_id(base_model, "a base model's Hub id"), visitor.token, visitor.owner)
    if choice == HUB_CHOICE:
        return chat.of_adapter(adapter_id or "", visitor.token, visitor.owner)
    if str(choice).startswith(SHARED):
        return sharing.find(str(choice).removeprefix(SHARED)).subject(visitor.owner, visitor.token)
    return chat.of_run(runs.find(visitor.owner, str(choice)))


def task_of(choice, adapter_id, form_task, visitor) -> tuple[str, dict, bool]:
    """The task of what is chosen, what its plan keeps for that, and whether there is a model to ask."""
    if choice == BASE_CHOICE:
        return str(form_task), {}, tasks.get(str(form_task)).ANSWERS
    if choice == HUB_CHOICE:
        try:
            return *chat.task_of_adapter(*hub.fetch_adapter(adapter_id, "", visitor.token)), True
        except UserError:  # nothing was written yet, or it cannot be had, which asking it will say
            return tasks.DEFAULT, {}, True
    run = sharing.find(str(choice).removeprefix(SHARED)).look() if str(choice).startswith(SHARED) else runs.find(visitor.owner, str(choice))
    return run.recipe.task, run.read("plan", {}), True
