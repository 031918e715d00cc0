"""The Dataset tab: bring rows, see what will be learned from each."""

import os
import shutil
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import gradio as gr

from tuner import data, encode, findings, hub, tasks
from tuner.errors import UserError, shorten
from tuner.home import private_dir, read_json, safe_name, tuner_home
from tuner.recipe import Recipe
from tuner.ui import drawing

SURVEYED = 3_000
SOURCES = ["Demo", "File", "Hub", "Paste"]


def draw(page, browser, dataset_id) -> SimpleNamespace:
    """Lay the tab out; `wire` connects it."""
    its = SimpleNamespace(page=page, browser=browser, dataset_id=dataset_id)
    formats = tasks.get("chat").FORMATS
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            its.source = gr.Radio(SOURCES, value="Demo", label="Where from", elem_id="source")
            with gr.Group(visible=True) as its.demo_group:
                gr.HTML('<p class="demo-note">480 plain subjects, each with one irresistible headline. Written for Tuner.</p>')
                its.demo_button = gr.Button("Use the demo", elem_id="use-demo")
            with gr.Group(visible=False) as its.file_group:
                its.file = gr.File(
                    label="JSONL, JSON, CSV, TSV, Parquet, Arrow or TXT", file_types=sorted(data.EXTENSIONS),
                    file_count="single", height=130, elem_id="file",
                )
            with gr.Group(visible=False) as its.hub_group:
                its.hub_id = gr.Textbox(label="Dataset on the Hub", placeholder="user/name", max_length=200, elem_id="hub-id")
                with gr.Row():
                    its.hub_config = gr.Textbox(label="Config", placeholder="default", max_length=100, min_width=90)
                    its.hub_split = gr.Textbox(label="Split", placeholder="train", max_length=100, min_width=90)
                    its.hub_revision = gr.Textbox(label="Revision", placeholder="main", max_length=100, min_width=90)
                its.hub_most = gr.Number(10_000, label="Rows to take, at most", precision=0, minimum=2, maximum=data.MAX_ROWS)
                its.hub_button = gr.Button("Read it", elem_id="read-hub")
            with gr.Group(visible=False) as its.paste_group:
                its.pasted = gr.Textbox(
                    label="Rows", lines=8, max_lines=16, elem_id="pasted",
                    placeholder='{"prompt": "a rainy day", "completion": "…"}\nor CSV with a header, or plain text',
                )
                its.paste_button = gr.Button("Read it", elem_id="read-pasted")
            its.about = gr.HTML(drawing.empty("Reading the demo …"), elem_id="dataset-about")
            with gr.Accordion("Change which column is which", open=False):
                its.format = gr.Dropdown([(words, name) for name, (words, _, _) in formats.items()], label="Format", elem_id="format")
                its.roles = {}
                for role, label in (
                    ("messages", "Conversation"), ("prompt", "Prompt"), ("context", "Added to the prompt"),
                    ("completion", "Answer"), ("text", "Text"), ("system", "System prompt"), ("tools", "Tools"), ("split", "Split"),
                ):
                    its.roles[role] = gr.Dropdown([], label=label, visible=False, elem_id=f"role-{role}", allow_custom_value=False)
                its.map_button = gr.Button("Use these columns", elem_id="remap")
        with gr.Column(scale=5, min_width=340):
            with gr.Row(elem_id="row-buttons"):
                its.previous = gr.Button("← Previous", size="sm", elem_id="previous-row", min_width=90)
                its.number = gr.Number(1, label="Row", precision=0, minimum=1, show_label=False, container=False, min_width=80, elem_id="row-number")
                its.next = gr.Button("Next →", size="sm", elem_id="next-row", min_width=90)
            its.row = gr.HTML(
                drawing.empty("Preparing the starter model …", "The first time takes about twenty seconds; after that, none."), elem_id="row",
            )
            its.survey = gr.HTML("", elem_id="survey")
            with gr.Row(elem_id="go-row"):
                its.quote_line = gr.HTML("", elem_id="quote-line")
                its.go = gr.Button("Settings first", elem_id="go-train", scale=0, min_width=150)
                its.start = gr.Button("Start", variant="primary", elem_id="start-here", scale=0, min_width=190)
    return its


def wire(its, train, tabs) -> None:
    """Connect the tab's controls; the preview follows the recipe on the Fine-tune tab."""
    from tuner.ui.app import in_words

    page, roles = its.page, list(its.roles)
    role_boxes = [its.roles[role] for role in roles]
    shown = [its.about, its.format, *role_boxes, its.number, its.row, its.survey]
    quiet = dict(show_progress="hidden", api_visibility="private")
    busy = dict(show_progress="minimal", show_progress_on=[its.row], api_visibility="private")

    def look(owner: str, dataset_id: str, recipe: Recipe, token, number: int = 1) -> list:
        """Everything the tab shows of a dataset."""
        dataset = data.find(owner, dataset_id)
        row, survey_ = _preview(dataset, recipe, token, number)
        return [_about(dataset), dataset.mapping.format, *_role_updates(dataset, roles), number, row, survey_]

    @in_words
    def use_demo(browser_id, token: gr.OAuthToken | None, *form):
        visitor = page.visitor(browser_id, token)
        dataset = data.load_demo(visitor.owner)
        return [dataset.id, *look(visitor.owner, dataset.id, train.lenient(form), visitor.token)]

    @in_words
    def read_upload(path, browser_id, token: gr.OAuthToken | None, *form):
        if not path:
            return [gr.skip()] * (1 + len(shown))
        visitor = page.visitor(browser_id, token)
        name = os.path.basename(path)
        uploads = private_dir(tuner_home() / "uploads" / safe_name(visitor.owner, "The owner"))
        kept = Path(shutil.move(path, uploads / "upload"))  # out of Gradio's cache, which serves what it holds
        try:
            records, notes = data.read_file(kept, name)
        finally:
            kept.unlink(missing_ok=True)
        return keep(visitor, name, records, {"kind": "file", "file": shorten(name, 80)}, notes, form)

    @in_words
    def read_hub(hub_id, config, split, revision, most, browser_id, token: gr.OAuthToken | None, *form):
        visitor = page.visitor(browser_id, token)
        if not isinstance(most, (int, float)) or not 2 <= most <= data.MAX_ROWS:
            raise UserError(f"Rows to take is {most}; it must be between 2 and {data.MAX_ROWS:,}.")
        records, notes = data.read_hub(hub_id or "", config or "", split or "", revision or "", visitor.token, int(most))
        source = {"kind": "hub", "hub_id": hub.require_id(hub_id, "a dataset"), "config": config, "split": split, "revision": revision}
        return keep(visitor, hub_id.strip(), records, source, notes, form)

    @in_words
    def read_pasted(pasted, browser_id, token: gr.OAuthToken | None, *form):
        visitor = page.visitor(browser_id, token)
        records, notes = data.read_pasted(pasted or "")
        return keep(visitor, "Pasted rows", records, {"kind": "paste"}, notes, form)

    def keep(visitor, name, records, source, notes, form) -> list:
        try:
            dataset = data.keep(visitor.owner, name, records, source, notes)
        except UserError:
            # No format fits: keep the rows all the same, so that the columns can be chosen by hand.
            columns = tasks.get("chat").columns_of(records)
            guess = data.Mapping("text", {"text": columns[0]}, "a guess, since no known format fits; choose by hand")
            dataset = data.keep(visitor.owner, name, records, source, notes, guess)
            gr.Warning(drawing.text(f"The columns {shorten(', '.join(columns), 80)} fit no known format. Choose below which is which."))
        return [dataset.id, *look(visitor.owner, dataset.id, train.lenient(form), visitor.token)]

    @in_words
    def use_columns(dataset_id, browser_id, format, token: gr.OAuthToken | None, *rest):
        visitor = page.visitor(browser_id, token)
        chosen = dict(zip(roles, rest[: len(roles)]))
        _, needed, optional = tasks.get("chat").FORMATS.get(format, ("", (), ()))
        dataset = data.find(visitor.owner, dataset_id)
        data.remap(dataset, format, {role: chosen[role] for role in (*needed, *optional) if chosen.get(role)})
        return look(visitor.owner, dataset_id, train.lenient(rest[len(roles) :]), visitor.token)

    @in_words
    def show_roles(format):
        _, needed, optional = tasks.get("chat").FORMATS.get(format, ("", (), ()))
        return [gr.update(visible=role in needed or role in optional) for role in roles]

    def turn(by: int):
        @in_words
        def turned(number, dataset_id, browser_id, token: gr.OAuthToken | None, *form):
            visitor = page.visitor(browser_id, token)
            dataset = data.find(visitor.owner, dataset_id)
            rows = len(dataset.rows()[0])
            wanted = (int(number) if isinstance(number, (int, float)) else 1) + by
            wanted = (wanted - 1) % rows + 1 if by else min(max(1, wanted), rows)
            return wanted, _draw_row(dataset, train.lenient(form), visitor.token, wanted)

        return turned

    @in_words
    def again(number, dataset_id, browser_id, token: gr.OAuthToken | None, *form):
        visitor = page.visitor(browser_id, token)
        if not dataset_id:
            return gr.skip(), gr.skip()
        return _preview(data.find(visitor.owner, dataset_id), train.lenient(form), visitor.token, int(number or 1))

    def choose_source(source):
        return [gr.update(visible=source == name) for name in SOURCES]

    who, form = [its.browser], train.form
    its.source.change(choose_source, [its.source], [its.demo_group, its.file_group, its.hub_group, its.paste_group], queue=False, **quiet)
    first = dict(fn=use_demo, inputs=[*who, *form], outputs=[its.dataset_id, *shown], **busy)
    its.first_look = first
    its.demo_button.click(**first)
    its.file.upload(read_upload, [its.file, *who, *form], [its.dataset_id, *shown], **busy)
    its.hub_button.click(
        read_hub, [its.hub_id, its.hub_config, its.hub_split, its.hub_revision, its.hub_most, *who, *form], [its.dataset_id, *shown], **busy
    )
    its.paste_button.click(read_pasted, [its.pasted, *who, *form], [its.dataset_id, *shown], **busy)
    its.format.change(show_roles, [its.format], role_boxes, **quiet)
    its.map_button.click(use_columns, [its.dataset_id, *who, its.format, *role_boxes, *form], shown, **busy)
    around = [its.number, its.dataset_id, *who, *form]
    its.previous.click(turn(-1), around, [its.number, its.row], **quiet)
    its.next.click(turn(+1), around, [its.number, its.row], **quiet)
    its.number.submit(turn(0), around, [its.number, its.row], **quiet)
    for knob in train.shapes_rows:
        knob.change(again, around, [its.row, its.survey], trigger_mode="always_last", **quiet)
    its.go.click(lambda: gr.Tabs(selected="train"), None, [tabs], queue=False, **quiet)
    its.start.click(**train.start_run).success(lambda: gr.Tabs(selected="train"), None, [tabs], queue=False, **quiet).then(**train.follow_up)


def _role_updates(dataset: data.Dataset, roles: list[str]) -> list:
    columns = tasks.get(dataset.task).columns_of(dataset.records())
    _, needed, optional = tasks.get(dataset.task).FORMATS[dataset.mapping.format]
    return [
        gr.update(
            choices=[("—", ""), *[(shorten(column, 40), column) for column in columns[:200]]],
            value=dataset.mapping.columns.get(role, ""), visible=role in needed or role in optional,
        )
        for role in roles
    ]


def _about(dataset: data.Dataset) -> str:
    rows, left_out = dataset.rows()
    words = tasks.get(dataset.task).FORMATS[dataset.mapping.format][0]
    lines = [
        f"<h3>{drawing.long_name(dataset.name)}</h3>",
        f"<p>Read as <b>{drawing.text(words)}</b>: {drawing.text(dataset.mapping.reason)}.</p>",
    ]
    lines += [f'<p class="quiet">{drawing.text(note)}</p>' for note in dataset.notes]
    if left_out:
        first = "\n".join(f"Row {item['n']:,} {item['why']}" for item in left_out[:3])
        more = f"\nand {len(left_out) - 3:,} more." if len(left_out) > 3 else ""
        lines.append(drawing.notice(f"{len(left_out):,} of {len(rows) + len(left_out):,} rows are left out.\n{first}{more}", "warning"))
    return f'<div class="about">{"".join(lines)}</div>'


def _preview(dataset: data.Dataset, recipe: Recipe, token, number: int) -> tuple[str, str]:
    """The row and the survey of all rows."""
    return _draw_row(dataset, recipe, token, number), _draw_survey(dataset, recipe, token)


def _draw_row(dataset: data.Dataset, recipe: Recipe, token, number: int) -> str:
    rows, _ = dataset.rows()
    number = min(max(1, number), len(rows))
    try:
        tokenizer = encode.load_tokenizer(hub.tokenizer_dir(recipe.base_model, recipe.base_revision, token))
        sequences = tasks.get(dataset.task).encode_row(rows[number - 1], tokenizer, recipe)
    except UserError as error:
        return drawing.notice(str(error), "error")
    held = held_out_numbers(dataset, recipe.held_out_share, recipe.seed)
    where = "held out" if rows[number - 1]["n"] in held else "training"
    return drawing.row(sequences, number, len(rows), where)


def held_out_numbers(dataset: data.Dataset, share: float, seed: int) -> frozenset[int]:
    """The numbers of the rows that are held out."""
    return _held_out(dataset.owner, dataset.id, repr(dataset.mapping), share, seed)


@lru_cache(maxsize=32)
def _held_out(owner: str, dataset_id: str, mapping: str, share: float, seed: int) -> frozenset[int]:
    rows, _ = data.find(owner, dataset_id).rows()
    return frozenset(row["n"] for row in data.split_rows(rows, share, seed)[1])


def _draw_survey(dataset: data.Dataset, recipe: Recipe, token) -> str:
    try:
        seen = survey(dataset, recipe, token)
    except UserError:
        return ""
    found, held, total = seen.train, seen.held_out, seen.rows
    lengths = found.lengths + held.lengths
    cut, silent, refused = len(found.cut + held.cut), len(found.silent + held.silent), len(found.refused + held.refused)
    tiles = drawing.stats([
        (f"{seen.train_rows:,}", "rows to learn from", "Training rows"),
        (f"{seen.held_out_rows:,}", "held out", seen.split),
        (f"{found.tokens:,}", "tokens", "In the training rows, after any cut"),
        (f"{found.learned / max(1, found.tokens):.0%}", "learned", "Share of the tokens on which the loss is taken"),
        (f"{cut:,}", "rows cut", f"Longer than {recipe.max_tokens:,} tokens"),
        (f"{silent + refused:,}", "teach nothing", "No learned token left, or refused by the model's template"),
    ])
    said = [f"The numbers are of the first {SURVEYED:,} of {total:,} rows."] if seen.partial else []
    said += seen.warnings
    if found.refused:
        said.append(f"Row {found.refused[0][0]}: {found.refused[0][1]}")
    if silent:
        said.append(f"Rows {shorten(', '.join(map(str, (found.silent + held.silent)[:12])), 60)} have no answer within {recipe.max_tokens:,} tokens. Raise Longest row, or shorten them.")
    notes = "".join(drawing.notice(words, "warning") for words in said)
    return f"{tiles}{notes}{drawing.histogram(lengths, recipe.max_tokens)}"


def survey(dataset: data.Dataset, recipe: Recipe, token) -> SimpleNamespace:
    """How all rows (the first SURVEYED of a long set) look to this base model; done once for the same rows and settings."""
    folder = hub.tokenizer_dir(recipe.base_model, recipe.base_revision, token)
    shaping = ("system_prompt", "max_tokens", "learn", "keep_control_tokens", "template_date", "held_out_share", "seed")
    return _survey(dataset.owner, dataset.id, repr(dataset.mapping), folder, tuple((name, getattr(recipe, name)) for name in shaping))


@lru_cache(maxsize=32)
def _survey(owner: str, dataset_id: str, mapping: str, folder: str, shaping: tuple) -> SimpleNamespace:
    recipe = Recipe(**dict(shaping))
    dataset = data.find(owner, dataset_id)
    rows, _ = dataset.rows()
    train, held_out, split = data.split_rows(rows, recipe.held_out_share, recipe.seed)
    tokenizer = encode.load_tokenizer(folder)
    found = findings.survey(train[:SURVEYED], tokenizer, recipe)
    held = findings.survey(held_out[:SURVEYED], tokenizer, recipe)
    return SimpleNamespace(
        train=found, held_out=held, rows=len(rows), train_rows=len(train), held_out_rows=len(held_out), split=split,
        partial=len(train) > SURVEYED, warnings=found.warnings(tokenizer), config=read_json(Path(folder) / "config.json"),
    )
