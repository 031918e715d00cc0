"""The third tab for models that give labels: something in, labels with probabilities out, and what mattered."""

from types import SimpleNamespace

import gradio as gr

from tuner import labelling, tasks
from tuner.errors import UserError
from tuner.ui import drawing, label_view

NOTHING = "No tuned model yet: start one on the Fine-tune tab. Then bring here what it has never seen."
_LABELS_COME = ("The labels appear here.", "Beside them what a simple classifier on the untouched base says.")


def draw(page) -> SimpleNamespace:
    """Lay the frame out; what goes in is shown by what the model's task takes."""
    its = SimpleNamespace(page=page)
    with gr.Column(visible=False, elem_id="try") as its.panel:
        with gr.Row() as its.text_row:
            its.text = gr.Textbox(
                label="Text", placeholder="Write or paste something, then press Label it", lines=4, max_lines=14, elem_id="try-text", scale=1, min_width=260,
                max_length=labelling.MOST_CHARACTERS,
            )
            its.second = gr.Textbox(
                label="Second text", lines=4, max_lines=14, visible=False, elem_id="try-second", scale=1, min_width=260, max_length=labelling.MOST_CHARACTERS,
            )
        with gr.Row(elem_id="try-line"):
            its.each_line = gr.Checkbox(False, label="Each line is one text", elem_id="each-line", scale=1, min_width=170)
            its.explain = gr.Checkbox(True, label="Show what mattered", elem_id="explain", scale=1, min_width=170)
            its.go = gr.Button("Label it", variant="primary", elem_id="label-it", scale=0, min_width=120)
        its.out = gr.HTML(nothing(), elem_id="tried")
    return its


def frame(its) -> list:
    """The components that `shown` is for."""
    return [its.panel, its.text_row, its.second, its.go, its.out]


def shown(task: str, pair: bool, ready: bool) -> list:
    """What another model makes of the frame: the panel, what goes in, the button, and nothing labelled yet.

    Args:
        pair: each row has two texts.
        ready: there is a model to ask.
    """
    module = tasks.get(task)
    return [
        gr.update(visible=module.LABELLED), gr.update(visible=module.LABELLED and module.TRIED == "text"), gr.update(visible=pair),
        gr.update(interactive=ready), nothing(),
    ]


def values_of(text: str, second: str, each_line: bool, pair: bool) -> list:
    """What was brought, one value for each thing to label, as the task's `item` takes it.

    Raises:
        UserError: nothing was, or the two boxes have not equally many lines.
    """
    boxes = [text or "", second or ""] if pair else [text or ""]
    if not all(box.strip() for box in boxes):
        raise UserError("There is nothing to label. Write a text first." if not pair else "Each row has two texts here. Write both.")
    if not each_line:
        return [boxes if pair else boxes[0]]
    lines = [[line for line in box.splitlines() if line.strip()] for box in boxes]
    if pair and len(lines[0]) != len(lines[1]):
        raise UserError(f"The first box has {len(lines[0])} lines and the second {len(lines[1])}. Write as many in both.")
    return [list(its) for its in zip(*lines)] if pair else lines[0]


def nothing() -> str:
    """What stands where nothing is labelled yet."""
    return drawing.empty(*_LABELS_COME)


def label(page, subject, values: list, explain: bool) -> str:
    """The labels of these values, drawn.

    Raises:
        UserError: see `labelling.Labeller.look`.
    """
    task = tasks.get(subject.task)
    if not task.LABELLED:
        raise UserError("This model answers, it gives no labels. Choose it again, so that the tab shows what it takes in.")
    things = [task.thing(task.item(value)) for value in values]
    return label_view.tried(things, page.labeller.look(subject, values, explain))
