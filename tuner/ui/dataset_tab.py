"""The Dataset tab: bring rows, see what will be learned from each, what is wrong with them, and put it right."""

import os
import shutil
import threading
from dataclasses import replace
from types import SimpleNamespace

import gradio as gr
import numpy as np

from tuner import check, data, findings, fixes, hub, quote, reading, receipt, scan, sessions, tasks
from tuner.errors import Hint, UserError, shorten
from tuner.home import private_dir, safe_name, tuner_home
from tuner.recipe import Recipe
from tuner.ui import drawing, row_view

SOURCES = ["Demo", "File", "Hub", "Paste"]
_SHARE_HELP = "More rows held out measure more surely; fewer are left to learn from."


def views_of(task: str) -> list[tuple[str, str]]:
    """How a row of this task can be looked at."""
    if tasks.get(task).SHOWS == "pictures":
        return [(tasks.get(task).VIEW, "tokens"), ("As the model sees it", "turns"), ("Gallery by class", "table")]
    return [("Exact text", "tokens"), (tasks.get(task).VIEW, "turns"), ("Table", "table")]


_LISTEN = drawing.LISTEN


def draw(page, browser, dataset_id) -> SimpleNamespace:
    """Lay the tab out; `wire` connects it."""
    its = SimpleNamespace(page=page, browser=browser, dataset_id=dataset_id)
    formats = tasks.formats()
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            its.source = gr.Radio(SOURCES, value="Demo", label="Where from", elem_id="source")
            its.demo_buttons = {}
            with gr.Group(visible=True) as its.demo_group:
                for name in tasks.TASKS:
                    task = tasks.get(name)
                    gr.HTML(f'<p class="demo-note"><b>{drawing.text(task.TITLE)}</b>: {drawing.text(task.DEMO[2])}</p>')
                    its.demo_buttons[name] = gr.Button(f"Use {task.DEMO[1]}", size="sm", elem_id=f"use-demo-{name}")
            with gr.Group(visible=False) as its.file_group:
                its.file = gr.File(
                    label="Files: JSONL, CSV, Parquet …, zipped or not; pictures in a zip, a folder for each class", file_types=reading.endings(),
                    file_count="multiple", height=130, elem_id="file",
                )
            with gr.Group(visible=False) as its.hub_group:
                its.hub_id = gr.Textbox(label="Dataset on the Hub", placeholder="user/name", max_length=200, elem_id="hub-id")
                with gr.Row():
                    its.hub_config = gr.Textbox(label="Config", placeholder="default", max_length=100, min_width=90)
                    its.hub_split = gr.Textbox(label="Split", placeholder="train", max_length=100, min_width=90)
                    its.hub_revision = gr.Textbox(label="Revision", placeholder="main", max_length=100, min_width=90)
                its.hub_most = gr.Number(data.HUB_ROWS, label="Rows to take, at most", precision=0, minimum=2, maximum=reading.MAX_ROWS)
                its.hub_button = gr.Button("Read it", elem_id="read-hub")
            with gr.Group(visible=False) as its.paste_group:
                its.pasted = gr.Textbox(
                    label="Rows", lines=8, max_lines=16, elem_id="pasted",
                    placeholder='{"prompt": "a rainy day", "completion": "…"}\nor CSV with a header, or plain text',
                )
                its.paste_button = gr.Button("Read it", elem_id="read-pasted")
            its.about = gr.HTML(drawing.empty("Reading the demo …"), elem_id="dataset-about")
            its.task = gr.Radio(
                [(tasks.get(name).TITLE, name) for name in tasks.TASKS], value=tasks.DEFAULT, label="What is learned from it", elem_id="task",
                info="Chosen by the columns; choose otherwise if they were misread.",
            )
            its.share = gr.Slider(
                0.005, 0.5, value=Recipe().held_out_share, step=0.005, label="Held out, share of the rows", elem_id="held-out-share",
                info=_SHARE_HELP,
            )
            with gr.Accordion("Change which column is which", open=False, elem_id="mapping"):
                its.format = gr.Dropdown([(words, name) for name, (words, _, _) in formats.items()], label="Format", elem_id="format")
                its.roles = {}
                for role, label in (
                    ("messages", "Conversation"), ("prompt", "Prompt"), ("context", "Added to the prompt"),
                    ("completion", "Answer"), ("text", "Text"), ("text_b", "Second text"), ("image", "Picture"), ("label", "Label"), ("system", "System prompt"), ("tools", "Tools"), ("split", "Split"),
                    ("group", "Which conversation it is of"),
                ):
                    its.roles[role] = gr.Dropdown([], label=label, visible=False, elem_id=f"role-{role}", allow_custom_value=False)
                its.template = gr.Textbox(
                    label="Or a prompt of several columns", placeholder="{question}\n{context}", lines=2, max_length=2000, visible=False,
                    info="Column names in braces; it takes the place of the Prompt above.", elem_id="prompt-template",
                )
                its.template_shown = gr.HTML("", elem_id="template-shown")
                its.map_button = gr.Button("Use these columns", elem_id="remap")
        with gr.Column(scale=5, min_width=340):
            with gr.Row(elem_id="row-choice"):
                its.view = gr.Radio(views_of(tasks.DEFAULT), value="tokens", show_label=False, container=False, label="View", elem_id="row-view", min_width=300, scale=2)
                its.show = gr.Dropdown([("All rows", "all")], value="all", label="Show", container=False, show_label=False, filterable=False, elem_id="show-rows", min_width=170)
                its.search = gr.Textbox(placeholder="Search the rows", label="Search", container=False, show_label=False, max_length=200, elem_id="search-rows", min_width=150)
            with gr.Row(elem_id="row-buttons"):
                its.previous = gr.Button("← Previous", size="sm", elem_id="previous-row", min_width=90)
                its.number = gr.Number(1, label="Row", precision=0, minimum=1, show_label=False, container=False, min_width=80, elem_id="row-number")
                its.next = gr.Button("Next →", size="sm", elem_id="next-row", min_width=90)
            its.row = gr.HTML(
                drawing.empty("Preparing the starter model …", "The first time takes about twenty seconds; after that, none."), elem_id="row",
                js_on_load=_LISTEN,
            )
            its.progress = gr.HTML("", elem_id="check-progress")
            its.findings = gr.HTML("", elem_id="findings", js_on_load=_LISTEN)
            its.survey = gr.HTML("", elem_id="survey")
            its.receipt = gr.HTML("", elem_id="receipt", js_on_load=_LISTEN)
            with gr.Row(elem_id="go-row"):
                its.quote_line = gr.HTML("", elem_id="quote-line")
                its.go = gr.Button("Settings first", elem_id="go-train", scale=0, min_width=150)
                its.start = gr.Button("Start", variant="primary", elem_id="start-here", scale=0, min_width=190)
    its.at = gr.State(0)  # which of the rows shown is shown now
    its.known = gr.State("")  # changes whenever more of the rows is known, so that the quote follows
    its.timer = gr.Timer(0.7, active=False)
    return its


def eyes(recipe: Recipe, token) -> tuple[scan.Look | None, str]:
    """The base model's eyes, or None and in words why it has none here."""
    try:
        return scan.Look.of(recipe, hub.tokenizer_dir(recipe.base_model, recipe.base_revision, token)), ""
    except UserError as error:
        return None, str(error)


def wire(its, train, tabs) -> None:
    """Connect the tab's controls; the preview follows the recipe on the Fine-tune tab."""
    from tuner.ui.app import in_words

    page, roles = its.page, list(its.roles)
    role_boxes = [its.roles[role] for role in roles]
    one = [its.row, its.at, its.number]
    found = [*one, its.progress, its.findings, its.survey, its.receipt, its.show, its.share, its.timer, its.known]
    mapped = [its.about, its.task, its.view, its.format, *role_boxes, its.template]
    whole = [its.dataset_id, its.search, *mapped, *found]
    quiet = dict(show_progress="hidden", api_visibility="private")
    busy = dict(show_progress="minimal", show_progress_on=[its.row], api_visibility="private")
    choice = [its.view, its.show, its.search, its.at]

    def paint(dataset, recipe: Recipe, token, view="tokens", show="all", search="", at=0) -> list:
        """Everything right of the settings: the row, what was found, the figures, the receipt."""
        look, blind = eyes(recipe, token)
        rows, going = check.look_at(dataset, look)
        list_of = findings.find(rows, recipe)
        if show not in ("all", "training", "held out") and show not in {one.name for one in list_of}:
            show = "all"
        shown, at, number = row_view.draw_row(rows, recipe, look, view, show, search, at)
        if blind:
            shown = drawing.notice(blind, "error") + shown
        examples = {one.name: findings.examples(rows, one.name, recipe) for one in list_of}
        choices = [("All rows", "all"), ("Training rows", "training"), ("Held-out rows", "held out")]
        choices += [(f"{one.title} ({one.rows:,})", one.name) for one in list_of if one.name not in ("few_rows", "nothing_to_learn")]
        stops = any(one.level == "stop" for one in list_of)
        made = None if stops or going else receipt.make(dataset.source, rows, receipt.choose(rows, recipe))
        return [
            shown, at, number, drawing.checking(going.phase, going.share, going.left_s) if going else "",
            drawing.findings(list_of, examples, fixes.FIXES, show, bool(going)),
            "" if stops or look is None else row_view.draw_figures(rows, recipe, going is not None),
            drawing.receipt(made, rows.steps, quote.may_be_fewer(recipe, made["held_out_rows"]) if made else ""), gr.update(choices=choices, value=show), share_of(rows), gr.Timer(active=going is not None),
            f"{dataset.id}/{len(rows)}/{going is None}/{len(dataset.steps)}",
        ]

    def share_of(rows) -> dict:
        """The slider, at rest where the dataset says by itself what is held out."""
        if rows.own_split:
            return gr.update(interactive=False, info="This dataset says by itself which rows are held out.")
        return gr.update(interactive=True, info=_SHARE_HELP)

    def recipe_for(dataset, form) -> Recipe:
        """The form's settings for these rows; where the form is for another task still, those of the rows' own starter."""
        recipe = train.lenient(form)
        if recipe.task == dataset.task:
            return recipe
        return replace(Recipe(task=dataset.task, **tasks.get(dataset.task).STARTER), held_out_share=recipe.held_out_share, seed=recipe.seed)

    def everything(visitor, dataset, form) -> list:
        painted = paint(dataset, recipe_for(dataset, form), visitor.token)  # first: by its end reading has had its say
        return [
            dataset.id, "", _about(dataset), dataset.task, gr.update(choices=views_of(dataset.task)), dataset.mapping.format,
            *_role_updates(dataset, roles), *_template_update(dataset), *painted,
        ]

    def demo(task: str):
        @in_words
        def use_demo(browser_id, token: gr.OAuthToken | None, *form):
            visitor = page.visitor(browser_id, token)
            return everything(visitor, data.load_demo(visitor.owner, task), form)

        return use_demo

    @in_words
    def use_task(task, dataset_id, browser_id, token: gr.OAuthToken | None, *form):
        """Another task for the same rows; where they hold nothing for it, all stays as it was."""
        visitor = page.visitor(browser_id, token)
        dataset = data.find(visitor.owner, dataset_id)
        if dataset.ready:
            check.stop(dataset)
        try:
            data.choose_task(dataset, str(task))
        except (UserError, KeyError) as error:
            gr.Warning(drawing.text(error))
        return everything(visitor, data.find(visitor.owner, dataset_id), form)

    @in_words
    def look_first(dataset_id, browser_id, token: gr.OAuthToken | None, *form):
        """What a page opens with: what was brought before signing in, else the demo."""
        visitor = page.visitor(browser_id, token)
        return everything(visitor, data.find(visitor.owner, dataset_id) if dataset_id else data.load_demo(visitor.owner), form)

    @in_words
    def read_upload(paths, browser_id, token: gr.OAuthToken | None, *form):
        if not paths:
            return [gr.skip()] * len(whole)
        visitor = page.visitor(browser_id, token)
        kept = sessions.take_out(paths if isinstance(paths, list) else [paths], visitor.owner)
        title = kept[0][1] if len(kept) == 1 else f"{kept[0][1]} and {len(kept) - 1} more"
        try:
            dataset = data.create(visitor.owner, title, {"kind": "file", "file": reading.safe_title(title)}, kept)
        finally:
            for path, _ in kept:
                path.unlink(missing_ok=True)
        return arrive(visitor, dataset, form)

    @in_words
    def read_pasted(pasted, browser_id, token: gr.OAuthToken | None, *form):
        visitor = page.visitor(browser_id, token)
        if not (pasted or "").strip():
            raise Hint("Nothing was pasted. Paste rows as JSONL, JSON, CSV or plain text, then try again.")
        uploads = private_dir(tuner_home() / "uploads" / safe_name(visitor.owner, "The owner"))
        path = uploads / f"{os.getpid()}-{threading.get_ident()}-pasted"
        path.write_text(pasted, "utf-8", "replace")
        return arrive(visitor, data.create(visitor.owner, "Pasted rows", {"kind": "paste"}, [(path, "The pasted text")]), form)

    def arrive(visitor, dataset, form) -> list:
        """Show the first rows as soon as they are read; a child goes on with the rest."""
        check.wait_for_head(dataset)
        return everything(visitor, settled(dataset), form)

    def settled(dataset):
        try:
            return data.settle(dataset)
        except UserError as error:  # no format fits: the rows are kept, so that the columns can be chosen by hand
            gr.Warning(drawing.text(f"{error.problems[0]} Choose below which is which."))
            return dataset

    @in_words
    def read_hub(hub_id, config, split, revision, most, browser_id, token: gr.OAuthToken | None, *form):
        visitor = page.visitor(browser_id, token)
        if not isinstance(most, (int, float)) or not 2 <= most <= reading.MAX_ROWS:
            raise UserError(f"Rows to take is {most}; it must be between 2 and {reading.MAX_ROWS:,}.")
        records, notes = data.read_hub(hub_id or "", config or "", split or "", revision or "", visitor.token, int(most))
        source = {"kind": "hub", "hub_id": hub.require_id(hub_id, "a dataset"), "config": config, "split": split, "revision": revision}
        dataset = data.create(visitor.owner, hub_id.strip(), source)
        check.stream(dataset, records, notes)
        return everything(visitor, settled(dataset), form)

    @in_words
    def use_columns(dataset_id, browser_id, format, template, token: gr.OAuthToken | None, *rest):
        visitor = page.visitor(browser_id, token)
        chosen = dict(zip(roles, rest[: len(roles)]))
        _, needed, optional = tasks.formats().get(format, ("", (), ()))
        dataset = data.find(visitor.owner, dataset_id)
        columns = {role: chosen[role] for role in (*needed, *optional) if chosen.get(role)}
        if "prompt" in needed and (template or "").strip():
            columns["prompt"] = template
        if dataset.ready:
            check.stop(dataset)
        data.remap(dataset, format, columns)
        return everything(visitor, dataset, rest[len(roles) :])

    @in_words
    def show_template(template, dataset_id, browser_id, token: gr.OAuthToken | None):
        if not (template or "").strip():
            return ""
        dataset = data.find(page.visitor(browser_id, token).owner, dataset_id)
        try:
            shown = tasks.get(dataset.task).filled(dataset.head()[0], template, tasks.get(dataset.task).columns_of(dataset.head()))
        except UserError as error:
            return drawing.notice(str(error), "warning")
        return f'<p class="quiet small">Row 1 would ask:</p><p class="preview-line">{drawing.text(shown if len(shown) <= 400 else shown[:400] + " …")}</p>'

    @in_words
    def show_roles(format):
        _, needed, optional = tasks.formats().get(format, ("", (), ()))
        return [*[gr.update(visible=role in needed or role in optional) for role in roles], gr.update(visible="prompt" in needed)]

    def row_only(dataset_id, browser_id, token, form, view, show, search, at) -> list:
        visitor = page.visitor(browser_id, token)
        dataset = data.find(visitor.owner, dataset_id)
        recipe = recipe_for(dataset, form)
        look, _ = eyes(recipe, visitor.token)
        rows, _ = check.look_at(dataset, look)
        return row_view.draw_row(rows, recipe, look, view, show, search, at)

    def turn(by: int):
        @in_words
        def turned(view, show, search, at, dataset_id, browser_id, token: gr.OAuthToken | None, *form):
            step = by * row_view.PAGE if view == "table" else by
            return row_only(dataset_id, browser_id, token, form, view, show, search, (at or 0) + step)

        return turned

    @in_words
    def jump(number, view, show, search, dataset_id, browser_id, token: gr.OAuthToken | None, *form):
        wanted = int(number) if isinstance(number, (int, float)) and number == number else 1
        visitor = page.visitor(browser_id, token)
        dataset = data.find(visitor.owner, dataset_id)
        recipe = recipe_for(dataset, form)
        look, _ = eyes(recipe, visitor.token)
        rows, _ = check.look_at(dataset, look)
        chosen = findings.choose(rows, show, search or "", recipe)
        at = int(np.searchsorted(row_view.numbers_of(rows, chosen), wanted))
        return row_view.draw_row(rows, recipe, look, view, show, search, min(at, max(0, len(chosen) - 1)))

    @in_words
    def choose_rows(view, show, search, dataset_id, browser_id, token: gr.OAuthToken | None, *form):
        return row_only(dataset_id, browser_id, token, form, view, show, search, 0)

    @in_words
    def again(view, show, search, at, dataset_id, browser_id, token: gr.OAuthToken | None, *form):
        visitor = page.visitor(browser_id, token)
        if not dataset_id:
            return [gr.skip()] * len(found)
        dataset = data.find(visitor.owner, dataset_id)
        return paint(dataset, recipe_for(dataset, form), visitor.token, view, show, search or "", at or 0)

    @in_words
    def tick(view, show, search, at, known, dataset_id, browser_id, token: gr.OAuthToken | None, *form):
        """While a child checks: its bar; once it is done: everything."""
        visitor = page.visitor(browser_id, token)
        if not dataset_id:
            return [gr.skip()] * (len(found) + 1)
        dataset = data.find(visitor.owner, dataset_id)
        try:
            going = check.progress(dataset)
        except UserError as error:
            if not dataset.ready:  # reading failed behind the head
                shutil.rmtree(dataset.folder, ignore_errors=True)
                return [
                    drawing.notice(str(error), "error"), 0, 1, "", "", "", "", gr.skip(), gr.skip(), gr.Timer(active=False), f"{dataset.id}/failed", gr.skip(),
                ]
            raise
        if going is not None:
            bar = drawing.checking(going.phase, going.share, going.left_s)
            return [*(bar if box is its.progress else gr.skip() for box in found), gr.skip()]
        # Reading may have gone on behind the first rows, and have had more to say at its end.
        return [*paint(dataset, recipe_for(dataset, form), visitor.token, view, show, search or "", at or 0), _about(dataset)]

    @in_words
    def act(view, show, search, at, dataset_id, browser_id, token: gr.OAuthToken | None, event: gr.EventData, *form):
        """A button inside the findings, the receipt or the table."""
        verb, _, what = str((event._data or {}).get("do", "")).partition(":")
        visitor = page.visitor(browser_id, token)
        dataset = data.find(visitor.owner, dataset_id)
        recipe = recipe_for(dataset, form)
        if verb == "show":
            view = "tokens" if view != "table" else view
            return [gr.skip(), *paint(dataset, recipe, visitor.token, view, what, "", 0), ""]
        if verb == "fix":
            name, _, fix = what.partition(":")
            look, _ = eyes(recipe, visitor.token)
            check.fix(dataset, name, fix, recipe, look.tokenizer_dir if look else "")
            return [gr.skip(), *paint(dataset, recipe, visitor.token, view, "all", search or "", 0), gr.skip()]
        if verb == "undo" and what.isdigit():
            check.undo(dataset, int(what))
            return [gr.skip(), *paint(dataset, recipe, visitor.token, view, "all", search or "", 0), gr.skip()]
        if verb in ("page", "open") and what.lstrip("-").isdigit():
            view = view if verb == "page" else "tokens"
            at = int(what) if verb == "open" else (at or 0) + int(what) * row_view.PAGE
            rest = [gr.skip()] * (len(found) - len(one) + 1)
            return [view, *row_only(dataset_id, browser_id, token, form, view, show, search, at), *rest]
        raise UserError(f"There is nothing to do for {shorten(verb, 20)!r}. Reload the page.")

    def choose_source(source):
        return [gr.update(visible=source == name) for name in SOURCES]

    who, form = [its.browser], train.form
    its.source.change(choose_source, [its.source], [its.demo_group, its.file_group, its.hub_group, its.paste_group], queue=False, **quiet)
    its.first_look = dict(fn=look_first, inputs=[its.dataset_id, *who, *form], outputs=whole, **busy)
    for name, button in its.demo_buttons.items():
        button.click(demo(name), [*who, *form], whole, **busy)
    its.task.input(use_task, [its.task, its.dataset_id, *who, *form], whole, **busy)
    its.file.upload(read_upload, [its.file, *who, *form], whole, **busy)
    its.hub_button.click(
        read_hub, [its.hub_id, its.hub_config, its.hub_split, its.hub_revision, its.hub_most, *who, *form], whole, **busy
    )
    its.paste_button.click(read_pasted, [its.pasted, *who, *form], whole, **busy)
    its.format.change(show_roles, [its.format], [*role_boxes, its.template], **quiet)
    its.template.change(show_template, [its.template, its.dataset_id, *who], [its.template_shown], trigger_mode="always_last", **quiet)
    its.map_button.click(use_columns, [its.dataset_id, *who, its.format, its.template, *role_boxes, *form], whole, **busy)
    around = [its.dataset_id, *who, *form]
    its.previous.click(turn(-1), [*choice, *around], one, **quiet)
    its.next.click(turn(+1), [*choice, *around], one, **quiet)
    its.number.submit(jump, [its.number, its.view, its.show, its.search, *around], one, **quiet)
    its.view.change(turn(0), [*choice, *around], one, **quiet)
    its.show.input(choose_rows, [its.view, its.show, its.search, *around], one, **quiet)
    its.search.submit(choose_rows, [its.view, its.show, its.search, *around], one, **quiet)
    for box in (its.findings, its.receipt, its.row):
        box.click(act, [*choice, *around], [its.view, *found, its.search], **busy)
    its.timer.tick(tick, [*choice, its.known, *around], [*found, its.about], trigger_mode="once", concurrency_limit=None, **quiet)
    for knob in train.shapes_rows:
        knob.change(again, [*choice, *around], found, trigger_mode="always_last", **quiet)
    share = train.knobs["held_out_share"]
    its.share.release(lambda value: value, [its.share], [share], queue=False, **quiet)
    share.change(lambda value: value, [share], [its.share], queue=False, **quiet)
    its.go.click(lambda: gr.Tabs(selected="train"), None, [tabs], queue=False, **quiet)
    its.start.click(None, [its.start], None, js=train.lead_to_sign_in, **quiet)
    its.start.click(**train.start_run).success(lambda: gr.Tabs(selected="train"), None, [tabs], queue=False, **quiet).then(**train.follow_up)


def _role_updates(dataset: data.Dataset, roles: list[str]) -> list:
    task = tasks.get(dataset.task)
    columns = task.columns_of(dataset.head())
    _, needed, optional = task.FORMATS[dataset.mapping.format]
    return [
        gr.update(
            choices=[("—", ""), *[(shorten(column, 40), column) for column in columns[:200]]],
            value=its if (its := dataset.mapping.columns.get(role, "")) in columns else "", visible=role in needed or role in optional,
        )
        for role in roles
    ]


def _template_update(dataset: data.Dataset) -> list:
    task = tasks.get(dataset.task)
    prompt = dataset.mapping.columns.get("prompt", "")
    is_template = bool(prompt) and prompt not in task.columns_of(dataset.head())
    return [gr.update(value=prompt if is_template else "", visible="prompt" in task.FORMATS[dataset.mapping.format][1])]


def _about(dataset: data.Dataset) -> str:
    words = tasks.get(dataset.task).FORMATS[dataset.mapping.format][0]
    lines = [
        f"<h3>{drawing.long_name(dataset.name)}</h3>",
        f"<p>Read as <b>{drawing.text(words)}</b>: {drawing.text(dataset.mapping.reason)}.</p>",
    ]
    lines += [f'<p class="quiet">{drawing.text(note)}</p>' for note in dataset.notes]
    return f'<div class="about">{"".join(lines)}</div>'
