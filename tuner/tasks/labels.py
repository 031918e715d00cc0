"""What the tasks with labels share without torch: what is a label, the classes of a run, and what their figures say."""

import json

from tuner.errors import UserError
from tuner.tasks import label_card

LABELLED = True
ANSWERS = False
# The page's third tab, and the button that leads there.
TAB, LEAD = "Try it", "Try it →"
OWN_PARTS = False
PLAIN = "classifier"
# Between several labels where they are shown as one text.
SEPARATOR = " + "
NONE = "(none)"


def label_of(value) -> tuple[str, ...] | None:
    """The label, or the labels, that a value names: text, a number, true or false, or a list of these; None for anything else."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            pass
    if isinstance(value, (list, tuple)):
        found = [label_of(its) for its in value]
        if not all(its and len(its) == 1 for its in found):
            return None if value else ()
        return tuple(sorted({its[0] for its in found}))
    if isinstance(value, bool):
        return ("true" if value else "false",)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and value >= 0:  # -1 stands for a label that is kept secret
        return (str(value),)
    if isinstance(value, str) and value.strip():
        return (value.strip(),)
    return None


def shown_label(row: dict) -> str:
    """A row's label, or its labels as one text."""
    return (SEPARATOR.join(row["labels"]) or NONE) if row.get("labels") is not None else row["label"]


def names_of(text: str) -> list[str]:
    """The labels of a text that `shown_label` made."""
    return [] if text == NONE else text.split(SEPARATOR)


def label(text: str, alone: bool) -> str:
    """An answer as a label: it always is one."""
    return " ".join(text.split())


def names_in(row: dict) -> list[str]:
    """A row's labels, one or several."""
    return row["labels"] if row.get("labels") is not None else [row["label"]]


def decide(train_rows: list[dict], held_rows: list[dict], recipe) -> dict:
    """What a run's plan keeps of its rows: the names of the classes, in order, whether a row may have several, and has two texts.

    Raises:
        UserError: there is nothing to tell apart.
    """
    rows = [*train_rows, *held_rows]
    names = {name for row in rows for name in names_in(row)}
    several = any(row.get("labels") is not None for row in rows)
    if len({shown_label(row) for row in train_rows}) < 2:
        raise UserError("All training rows have one and the same label, so there is nothing to tell apart. Bring rows of another class.")
    order = sorted(names, key=int) if all(name.isdecimal() for name in names) else sorted(names)
    return {"labels": {"names": order, "several": several, "pair": any("text_b" in row for row in rows)}}


def wont_do(rows, held) -> str:
    """Why no run can start on these rows although each by itself is fine; "" where one can."""
    import numpy as np

    if len(np.unique(rows.labels[~held])) < 2:
        return "All training rows have one and the same label, so there is nothing to tell apart. Bring rows of another class."
    return ""


def is_fresh(weight: str, heads: list[str]) -> bool:
    """Whether a weight may be missing in the base's files: only a head's."""
    return weight.startswith(tuple(heads))


def _are_texts(value) -> bool:
    """Whether it is a list of names of sensible length and number."""
    return isinstance(value, list) and 0 < len(value) <= 10_000 and all(isinstance(one, str) and len(one) < 1000 for one in value)


def read_record(known: dict) -> dict:
    """What of a published record belongs to the plan.

    Raises:
        UserError: it does not say which labels the adapter's head has.
    """
    its, heads = known.get("labels"), known.get("heads")
    names = its.get("names") if isinstance(its, dict) else None
    if not _are_texts(names) or not _are_texts(heads):
        raise UserError("The adapter does not say which labels it knows (tuner.json is missing or of another kind), so it cannot be tried here.")
    return {"labels": {"names": names, "several": its.get("several") is True, "pair": its.get("pair") is True}, "heads": heads}


# What a kept run's plan has besides what every run's has, and what its evaluations say besides the loss.
PLANNED = {
    "labels": lambda its: (
        isinstance(its, dict) and set(its) == {"names", "several", "pair"} and _are_texts(its["names"])
        and type(its["several"]) is bool and type(its["pair"]) is bool
    ),
    "heads": lambda its: _are_texts(its),
}
EVAL_FIGURES = ("accuracy", "macro_f1")


def has_label(row: dict) -> bool:
    """Whether a row, which may be somebody else's JSON, has a label, or several."""
    several = row.get("labels")
    if several is None:
        return isinstance(row.get("label"), str)
    return "label" not in row and isinstance(several, list) and all(isinstance(name, str) for name in several)


def learned_part(recipe) -> str:
    """What the loss is taken on, for the card."""
    return "one decision a row" + (", every class weighing alike" if recipe.class_weights == "balanced" else "")


def in_short(report: dict) -> str:
    """What came out, in one line."""
    base, tuned = report["base"], report["tuned"]
    return f"Macro-F1 on held-out rows: {tuned['macro_f1']:.3f} tuned, {base['macro_f1']:.3f} by a classifier on the untouched base"


def weights_offered(recipe, unbalanced: bool) -> list[tuple[str, str, str]]:
    """The offer to let all classes weigh alike, for rows that are unbalanced; as a task's `offers` gives them."""
    if not unbalanced or recipe.class_weights == "balanced":
        return []
    why = "The classes are unbalanced: a model that always says the largest looks good already."
    return [(why, "Let all classes weigh alike", "class_weights=balanced")]


def tiles_of(measured: dict) -> list[tuple[str, str, str]]:
    """What the newest evaluation's event says besides the loss, as figures for a running run."""
    words = (("macro_f1", "macro-F1"), ("accuracy", "accuracy"))
    return [(f"{100 * measured[name]:.1f} %", said, "On held-out rows, at the last evaluation") for name, said in words if name in measured]


def tiles(report: dict) -> list[tuple[str, str, str]]:
    """Before and after as a strip of figures: (value, name, what it is)."""
    return [
        (f"{report['base']['macro_f1']:.3f} → {report['tuned']['macro_f1']:.3f}", "macro-F1", "A classifier on the untouched base, and the tuned model"),
        (f"{100 * report['tuned']['accuracy']:.1f} %", "accuracy", "Held-out rows labelled right"),
        (f"{100 * report['majority']['accuracy']:.1f} %", "largest class", "Right by always saying it"),
        (f"{report['best_step']:,}", "best step", "The version that is kept"),
    ]


# The card's and the terminal's words stand in a room of their own.
advice, before_and_after, measures, printed = label_card.advice, label_card.before_and_after, label_card.measures, label_card.printed


def worker():
    """Who answers at the command line; see `label_try.Worker`."""
    from tuner.tasks.label_try import Worker

    return Worker()


def ask(worker, subject, history: list[dict], tuned: bool, on_piece, **_sampling) -> dict[str, float]:
    """Label the newest text: what a terminal shows goes through `on_piece`, what JSON prints comes back."""
    found = worker.probabilities(subject, [history[-1]["content"]], tuned)
    if found is None:
        on_piece("no classifier on the untouched base was kept\n")
        return {}
    on_piece("".join(f"\n  {100 * its:5.1f} %  {name}" for name, its in found[0].items()) + "\n")
    return found[0]
