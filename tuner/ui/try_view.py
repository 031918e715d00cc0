"""The third tab for models that give labels: something in, labels with probabilities out, and what mattered."""

import base64
from pathlib import Path
from types import SimpleNamespace

import gradio as gr

from tuner import labelling, pictures, sessions, tasks
from tuner.errors import UserError, shorten
from tuner.ui import drawing, label_view, subjects

NOTHING = "No tuned model yet: start one on the Fine-tune tab. Then bring here what it has never seen."
_LABELS_COME = ("The labels appear here.", "Beside them what a simple classifier on the untouched base says.")


MOST_CHARACTERS = next(its.MOST_TRIED for its in map(tasks.get, tasks.TASKS) if its.TRIED == "text")
# Of one picture that is tried; a phone's has a quarter of it.
MOST_BYTES = 20 * 2**20


def camera(**more) -> gr.Image:
    """Gradio's picture box, but it opens no file here: what visitors send is decoded in a process that can be killed.

    Set on the box itself: for a class of its own Gradio would write a file beside this one.
    """
    its = gr.Image(type="filepath", image_mode=None, buttons=[], **more)
    its.preprocess = lambda payload: payload.path if payload else None
    return its


def draw(page) -> SimpleNamespace:
    """Lay the frame out; what goes in is shown by what the model's task takes."""
    its = SimpleNamespace(page=page)
    with gr.Column(visible=False, elem_id="try") as its.panel:
        with gr.Row() as its.text_row:
            its.text = gr.Textbox(
                label="Text", placeholder="Write or paste something, then press Label it", lines=4, max_lines=14, elem_id="try-text", scale=1, min_width=260,
                max_length=MOST_CHARACTERS,
            )
            its.second = gr.Textbox(
                label="Second text", lines=4, max_lines=14, visible=False, elem_id="try-second", scale=1, min_width=260, max_length=MOST_CHARACTERS,
            )
        with gr.Row(visible=False, elem_id="try-pictures-row") as its.picture_row:
            its.files = gr.File(
                label="Pictures: choose, or drop several here", file_types=list(pictures.ENDINGS), file_count="multiple", height=230, elem_id="try-pictures", scale=1, min_width=260,
            )
            its.camera = camera(
                label="Or one from the camera, or pasted", sources=["webcam", "clipboard"], height=230, elem_id="try-camera", scale=1, min_width=260,
            )
        # Where what was sent lies now, out of Gradio's hands: [(path, name)].
        its.held = gr.State([])
        with gr.Row(visible=False, elem_id="try-held-row") as its.held_row:
            its.listed = gr.HTML("", elem_id="try-held")
            its.forget = gr.Button("Clear", size="sm", elem_id="try-forget", scale=0, min_width=90)
        with gr.Row(elem_id="try-line"):
            its.each_line = gr.Checkbox(False, label="Each line is one text", elem_id="each-line", scale=1, min_width=170)
            its.explain = gr.Checkbox(True, label="Show what mattered", elem_id="explain", scale=1, min_width=170)
            its.go = gr.Button("Label it", variant="primary", elem_id="label-it", scale=0, min_width=120)
        its.out = gr.HTML(nothing(), elem_id="tried")
    return its


def frame(its) -> list:
    """The components that `shown` is for."""
    return [its.panel, its.text_row, its.second, its.picture_row, its.each_line, its.go, its.out]


def shown(task: str, pair: bool, ready: bool) -> list:
    """What another model makes of the frame: the panel, what goes in, the button, and nothing labelled yet.

    Args:
        pair: each row has two texts.
        ready: there is a model to ask.
    """
    module = tasks.get(task)
    return [
        gr.update(visible=module.LABELLED), gr.update(visible=module.LABELLED and module.TRIED == "text"), gr.update(visible=pair),
        gr.update(visible=module.LABELLED and module.TRIED == "picture"), gr.update(visible=module.LABELLED and module.TRIED == "text"),
        gr.update(interactive=ready), nothing(),
    ]


def wire(its, talk, base_model) -> None:
    """Connect the frame.

    Args:
        talk: the third tab, whose model is asked; `base_model`: the setting that names the base alone.
    """
    from tuner.ui.app import in_words

    page, who = its.page, [talk.browser]
    quiet = dict(show_progress="hidden", api_visibility="private")

    @in_words
    def label_it(text, second, each_line, held, explain, choice, adapter_id, base_model, browser_id, token: gr.OAuthToken | None):
        """Labels for what was written; words first, since a model may have to be loaded."""
        visitor = page.visitor(browser_id, token)
        if choice == subjects.BASE_CHOICE:
            raise UserError("The base model alone gives no labels. Choose one of your runs above first.")
        yield drawing.notice("Getting the model ready …")
        try:
            subject = subjects.subject_of(choice, adapter_id, base_model, visitor)
            yield label(page, subject, brought(subject, text, second, each_line is True, held), explain is True)
        except UserError:
            yield nothing()
            raise

    @in_words
    def keep(sent, held, browser_id, token: gr.OAuthToken | None):
        """Pictures leave Gradio's cache as they come."""
        if not sent:
            return [gr.skip()] * 5
        return told(hold(held, sent if isinstance(sent, list) else [sent], page.visitor(browser_id, token).owner))

    @in_words
    def forget(held):
        let_go(held)
        return told([])

    its.go.click(
        label_it, [its.text, its.second, its.each_line, its.held, its.explain, talk.subject, talk.adapter_id, base_model, *who], [its.out],
        concurrency_limit=4, **quiet,
    )
    fills = [its.files, its.camera, its.held, its.held_row, its.listed]
    for box, sent in ((its.files, its.files.upload), (its.camera, its.camera.input)):
        sent(keep, [box, its.held, *who], fills, **quiet)
    its.forget.click(forget, [its.held], fills, **quiet)


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


def hold(held: list, sent: list[str], owner: str) -> list:
    """Take what was sent out of Gradio's cache at once, beside what is held already: [(path, name)].

    Raises:
        UserError: one is too large, or they are too many at once; then nothing that was sent now is held.
    """
    taken = sessions.take_out(sent, owner)
    if len(held) + len(taken) > labelling.MOST_ITEMS:
        let_go(taken)
        raise UserError(f"That would be {len(held) + len(taken):,} pictures at once; the most is {labelling.MOST_ITEMS}. Label those that are here, clear them, then bring more.")
    large = next(((path.stat().st_size, name) for path, name in taken if path.stat().st_size > MOST_BYTES), None)
    if large:
        let_go(taken)
        raise UserError(f"{shorten(large[1], 60)} has {large[0] / 2**20:,.0f} MiB; the most of one picture here is {MOST_BYTES / 2**20:.0f} MiB. Bring a smaller copy.")
    return [*held, *((str(path), name) for path, name in taken)]


def let_go(held: list) -> None:
    """Remove what is held."""
    for path, _ in held:
        Path(path).unlink(missing_ok=True)


def told(held: list) -> list:
    """What the page shows of what is held: the two boxes empty again, the names, and a way to clear them."""
    names = ", ".join(drawing.text(shorten(name, 40)) for _, name in held[:12]) + (f" and {len(held) - 12:,} more" if len(held) > 12 else "")
    words = f'<p class="quiet">{len(held):,} picture{"s" if len(held) > 1 else ""} to label: {names}</p>' if held else ""
    return [None, None, held, gr.update(visible=bool(held)), words]


def brought(subject, text: str, second: str, each_line: bool, held: list) -> list:
    """What was brought for a model of this kind; see `values_of` and `pictures_of`."""
    if tasks.get(subject.task).TRIED == "picture":
        return pictures_of(held)
    return values_of(text, second, each_line, (subject.plan.get("labels") or {}).get("pair") is True)


def pictures_of(held: list) -> list[dict]:
    """What is held, one value for each picture, as the task's `item` takes it; read here, decoded elsewhere.

    Raises:
        UserError: there is none, or none any more.
    """
    try:
        found = [{"picture": base64.b64encode(Path(path).read_bytes()).decode(), "file": name} for path, name in held]
    except OSError:
        raise UserError("A picture is not here any more. Clear them and choose them again.") from None
    if not found:
        raise UserError("There is no picture to label. Choose or drop one, paste it, or take one with the camera.")
    return found


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
    found = page.labeller.look(subject, values, explain)
    return label_view.tried([one["thing"] for one in found], found)
