"""What differs between tasks, one module each; nothing else in the project asks for a task's name.

A task's module has, besides its own formats and texts of faults:

rows        FORMATS, ROLES, UNUSED (settings that mean nothing to it), claim, recognise, fallback, check_mapping, columns_of, to_row, write_out;
            FILES (what rows point into in the folder that they lie in), placed
findings    FAULTS, OTHERWISE (general faults that it words otherwise), LABELLED, faults, texts, said, opening, answer, label,
            ALIKE (what finds rows that are nearly the same: near or looks), wont_do, and what fixes need: map_texts, trim, join,
            split, learnable, with_answer, describe
encoding    load_tokenizer, control_tokens, Encoded, encode_row, warnings, NOTHING_LEARNED
model       model_class, PEFT_TASK, decide, loading, heads, adapted, weights_in_words, is_fresh, finish_loading, path
training    begin (what is done before the first step), learning, report, in_short; where labels are given also shown_row, probe_rows, PROBE_WORDS
telling     tiles, tiles_of, measures, printed, advice, before_and_after, learned_part, practised, load_it, PIPELINE, TAGS
publishing  PUBLISHED, keep_files, record, read_record, verify_inputs
keeping     is_row, PLANNED, EVAL_FIGURES
cost        ANSWERS, OWN_PARTS, PLAIN, PROBED (how much the forgetting probe is), offers (what is offered beside the quote)
trying      STARTER, worker, ask; where labels are given also TRIED, MOST_TRIED, item, thing, occluded, names_in, asked
page        SHOWS, COUNTED, TITLE, VIEW, TAB, LEAD, DEMO (file, title, what it is), turns_of
"""

from dataclasses import dataclass
from importlib import import_module

from tuner.errors import UserError

TASKS = ("chat", "image_labels", "text_labels")  # in the order that they are asked whether rows are theirs
DEFAULT = TASKS[0]


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


def recognise(records) -> tuple[str, object]:
    """(task, mapping) by what the columns hold; the default task where no other is sure that they are its own.

    Raises:
        UserError: they fit no known format.
    """
    for name in TASKS:
        if mapping := get(name).claim(records):
            return name, mapping
    return DEFAULT, get(DEFAULT).recognise(records)


def of_record(known: dict, peft_task: str | None) -> tuple[str, dict]:
    """The task of a published adapter, and what its plan keeps for it, by its own record; by PEFT's name for the task where it has none.

    Raises:
        UserError: it has a head, and its record does not say for which labels.
    """
    task = known["task"] if known.get("task") in TASKS else next((name for name in TASKS if peft_task and get(name).PEFT_TASK == peft_task), DEFAULT)
    return task, get(task).read_record(known)


def demos() -> dict[str, str]:
    """Every task's demo: its file under presets/data, and its title."""
    return {file: title for file, title, _ in (get(name).DEMO for name in TASKS)}


def of_format(format: str, otherwise: str = DEFAULT) -> str:
    """The task that has this format; `otherwise` where none has."""
    return next((name for name in TASKS if format in get(name).FORMATS), otherwise)


def formats() -> dict:
    """Every task's formats."""
    return {format: its for name in TASKS for format, its in get(name).FORMATS.items()}
