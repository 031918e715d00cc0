"""The Fine-tune tab: a recipe, a quote, Start; what goes on then is drawn by `run_view`, the list of runs by `my_runs`."""

import os
from types import SimpleNamespace

import gradio as gr

from tuner import check, cost, data, figures, hub, keeping, limits, machine, proposals, publish, quote, tasks, trials
from tuner import recipe as recipes
from tuner import run as runs
from tuner.errors import UserError, shorten
from tuner.home import on_a_space, survives_restart
from tuner.recipe import KNOBS, MORE_KNOBS, OPEN_KNOBS, TYPES, Recipe
from tuner.ui import drawing, label_view, measure_view, my_runs, picture_view, queue_view, quote_view, run_view, trial_view

# The task comes with the preset and has no control of its own.
FORM = ("task", *OPEN_KNOBS, *MORE_KNOBS)
# Knobs that change what a row looks like to the model, so that the Dataset tab has to look again.
_SHAPES_ROWS = (
    "task", "base_model", "max_tokens", "system_prompt", "learn", "keep_control_tokens", "template_date", "held_out_share", "held_out_rows", "seed",
)


def draw(page, browser, dataset_id, run_id) -> SimpleNamespace:
    """Lay the tab out; `wire` connects it."""
    presets = recipes.presets()
    first = next(iter(presets))
    its = SimpleNamespace(page=page, browser=browser, dataset_id=dataset_id, run_id=run_id, presets=presets)
    run_view.draw_state(its)
    with gr.Row(equal_height=False, elem_id="train-columns"):
        with gr.Column(scale=2, min_width=300):
            its.dataset_line = gr.HTML("", elem_id="dataset-line")
            its.preset = gr.Dropdown(
                _offered(presets, presets[first].task), value=first, label="Preset", elem_id="preset", info=presets[first].about, filterable=False,
            )
            its.mean_to_publish = gr.Checkbox(False, label="I mean to publish this", info="Checks now that your account may. Nothing is sent.", elem_id="mean-to-publish")
            its.publish_name = gr.Textbox(label="Repository name", info="In your own account.", max_length=96, visible=False, elem_id="publish-name")
            its.publish_check = gr.HTML("", elem_id="publish-check")
            its.keep = gr.Checkbox(
                False, label="Keep checkpoints in my account", info=keeping.CONSENT, visible=not survives_restart(), elem_id="keep",
            )
            its.quote_line = gr.HTML("", elem_id="quote-here")
            its.start = gr.Button("Start", variant="primary", size="lg", elem_id="start")
            its.limits = gr.HTML(queue_view.said_before, elem_id="limits")
            gr.HTML("<h3>Settings</h3>")
            its.knobs, bases = {"task": gr.State(presets[first].task)}, _bases(presets, presets[first].task)
            for pair in _in_pairs(OPEN_KNOBS):
                with gr.Row():
                    its.knobs |= {name: _component(name, presets[first], bases) for name in pair}
            with gr.Accordion("More settings", open=False, elem_id="more"):
                its.knobs |= {name: _component(name, presets[first], bases) for name in MORE_KNOBS}
            gr.HTML("<h3>What it takes</h3>")
            its.quote = gr.HTML(drawing.empty("The quote appears with the dataset."), elem_id="quote", js_on_load=drawing.LISTEN)
            its.shown = gr.HTML("", elem_id="what-training-shows")
            trial_view.draw_controls(its)
        with gr.Column(scale=5, min_width=340, elem_id="run-course"):
            run_view.draw_course(its)
    run_view.draw_report(its)
    measure_view.draw(its)
    my_runs.draw(its)
    its.form = [its.knobs[name] for name in FORM]
    its.shapes_rows = [its.knobs[name] for name in _SHAPES_ROWS]
    its.measuring = gr.Timer(2.0, active=False)  # until this machine's speed is known, and the quote with it

    def settings(form) -> dict:
        """The form's values by name; whole numbers that arrived as 16.0 are whole again."""
        found = {}
        for name, value in zip(FORM, form):
            if isinstance(value, float) and TYPES[name] is int and value.is_integer():
                value = int(value)
            if TYPES[name] is str:
                value = "" if value is None else str(value).strip() if name != "system_prompt" else str(value)
            found[name] = value
        return found

    def strict(form) -> Recipe:
        """The form as a checked Recipe; raises a UserError naming every problem."""
        return recipes.from_dict(settings(form), "The form")

    def lenient(form) -> Recipe:
        """The form for the preview: a value out of range counts as its default there."""
        found = settings(form)
        for name, value in list(found.items()):
            try:
                recipes.from_dict({name: value})
            except UserError:
                found.pop(name)
        return Recipe(**found)

    its.strict, its.lenient, its.lead_to_sign_in = strict, lenient, run_view.LEAD_TO_SIGN_IN
    return its


def _in_pairs(names) -> list[tuple[str, ...]]:
    """Numbers two beside each other, anything wider on a line of its own."""
    wide = [(name,) for name in names if TYPES[name] is str]
    numbers = [name for name in names if TYPES[name] is not str]
    return wide + [tuple(numbers[index : index + 2]) for index in range(0, len(numbers), 2)]


def _offered(presets: dict[str, Recipe], task: str) -> list[tuple[str, str]]:
    """The presets for rows of this task."""
    return [(its.title, name) for name, its in presets.items() if its.task == task]


def _bases(presets: dict[str, Recipe], task: str) -> list[str]:
    """The base models that these presets name, each once."""
    return list(dict.fromkeys(its.base_model for its in presets.values() if its.task == task))


def _component(name: str, preset: Recipe, bases: list[str]):
    """The form's control for one setting, with its label, help and unit from the Recipe; not shown where the task has no use for it."""
    known = KNOBS[name]
    common = dict(
        value=getattr(preset, name), label=known.label, info=known.help, elem_id=f"knob-{name}", min_width=120, visible=name not in tasks.get(preset.task).UNUSED,
    )
    if name == "base_model":
        return gr.Dropdown(bases, allow_custom_value=True, **common)
    if known.choices:
        return gr.Dropdown(list(known.choices), filterable=False, **common)
    if TYPES[name] is bool:
        return gr.Checkbox(**common)
    if TYPES[name] in (int, float):
        return gr.Number(**common)  # no bounds here: the Recipe names every problem at once
    return gr.Textbox(lines=2 if name in ("system_prompt", "sample_prompt") else 1, max_length=20_000, **common)


def rows_of(dataset: data.Dataset, recipe: Recipe, visitor) -> tuple:
    """The dataset's rows as these settings see them, as far as they are checked; whether the check is going on; how they are seen.

    Raises:
        UserError: the base is not known.
    """
    from tuner.ui import dataset_tab

    look, blind = dataset_tab.eyes(recipe, visitor.token)
    if look is None:
        raise UserError(blind)
    return *check.look_at(dataset, look), look


def to_quote(dataset: data.Dataset, recipe: Recipe, visitor, seen: tuple | None = None) -> tuple:
    """The base's sizes, and the rows that a run of these settings works on.

    Args:
        seen: see `rows_of`, where that was asked already.

    Raises:
        UserError: the base is not known, or no row has anything to learn.
    """
    runs.require_task(recipe, dataset)
    rows, going, _ = seen or rows_of(dataset, recipe, visitor)
    figures = rows.figures(recipe)
    if not len(figures.lengths):
        raise UserError("No row has anything to learn with these settings. See the Dataset tab.")
    # While the rest is still being checked, the first rows stand for it.
    worked_on = quote.Rows.of(figures, max(1.0, dataset.count / rows.came_in) if going else 1.0)
    sizes = hub.sizes_of(recipe.base_model, recipe.base_revision, visitor.token)
    limits.require_model(sizes.weights / 1e9, recipe.base_model)
    return sizes, worked_on


def wire(its, dataset, talk, tabs) -> None:
    """Connect the tab's controls."""
    from tuner.ui.app import in_words

    page = its.page
    quiet = dict(show_progress="hidden", api_visibility="private")
    view, lists = run_view.parts(its), my_runs.parts(its)
    quoted = [its.quote, its.dataset_line, dataset.quote_line, its.quote_line, its.measuring, its.trial_quote, its.shown]

    @in_words
    def use_preset(name):
        preset = its.presets.get(name)
        if preset is None:
            raise UserError(f"There is no preset {shorten(name)!r}. Choose one from the list.")
        return [gr.update(info=preset.about), *[getattr(preset, knob) for knob in FORM]]

    @in_words
    def follow_dataset(dataset_id, preset, task, browser_id, token: gr.OAuthToken | None):
        """Other rows may want another task: then its presets are offered, its starter is chosen, and what it has no use for goes."""
        if not dataset_id:
            return [gr.skip()] * (1 + len(FORM))
        wanted = data.find(page.visitor(browser_id, token).owner, dataset_id).task
        if wanted == task:
            return [gr.skip()] * (1 + len(FORM))
        offered = _offered(its.presets, wanted)
        chosen, unused = its.presets[offered[0][1]], tasks.get(wanted).UNUSED
        form = {name: gr.update(value=getattr(chosen, name), visible=name not in unused) for name in FORM if name != "task"}
        form["base_model"] = gr.update(choices=_bases(its.presets, wanted), value=chosen.base_model)
        return [gr.update(choices=offered, value=offered[0][1], info=chosen.about), *[wanted if name == "task" else form[name] for name in FORM]]

    @in_words
    def show_cell(run_id, browser_id, token: gr.OAuthToken | None, event: gr.EventData):
        """A number of the confusion matrix was pressed: the rows behind it."""
        verb, *cell = str((event._data or {}).get("do", "")).split(":")
        run = runs.find(page.visitor(browser_id, token).owner, run_id)
        made = figures.of(run)
        behind = (made or {}).get("confusion", {}).get("rows")
        if verb != "cell" or len(cell) != 2 or not behind or not all(its_.isdigit() and int(its_) < len(behind) for its_ in cell):
            raise UserError("There are no rows behind that. Reload the page.")
        given, guessed = map(int, cell)
        wanted = set(behind[given][guessed])
        rows = [row for row in run.rows("held_out") if row["n"] in wanted]
        return label_view.cell_rows(made, given, guessed, [(row["n"], tasks.get(run.recipe.task).thing(row)) for row in rows])

    @in_words
    def requote(dataset_id, browser_id, token: gr.OAuthToken | None, *form):
        if not dataset_id:
            return [gr.skip()] * len(quoted)
        visitor = page.visitor(browser_id, token)
        its_data = data.find(visitor.owner, dataset_id)
        if its_data.task != dict(zip(FORM, form))["task"]:  # `follow_dataset` is about to change the form, and asks again
            return [gr.skip()] * len(quoted)
        line = f'<p class="dataset-line">Learns from <b>{drawing.long_name(its_data.name)}</b></p>'
        still = gr.Timer(active=False)
        try:
            recipe = its.strict(form)
            seen = rows, _, look = rows_of(its_data, recipe, visitor)
            sizes, worked_on = to_quote(its_data, recipe, visitor, seen)
            measuring = machine.begin_measuring()  # before the quote: what ends in between is asked for once more
            made = quote.here(recipe, sizes, worked_on)
            offered = [] if made.fits else proposals.here(recipe, sizes, worked_on, lambda: smaller_bases(recipe, visitor.token))
        except UserError as error:
            return drawing.notice(str(error), "error"), line, "", "", still, drawing.empty("Nothing to try yet."), ""
        drawn = queue_view.too_long(made.time["training"]) + quote_view.whole(made, quote.hired(recipe, sizes, worked_on), offered, measuring, machine.runs_known(cost.kind(recipe, sizes)))
        tried = trial_view.costs({kind: trials.seconds(kind, recipe, sizes, worked_on) for kind in trials.TITLES})
        task = tasks.get(recipe.task)
        offers = task.offers(recipe, sizes.family, worked_on.count, task.LABELLED and rows.is_unbalanced())
        drawn = "".join(label_view.offer(*its) for its in offers) + drawn
        shown = picture_view.preview(rows, recipe, look) if task.SHOWS == "pictures" else ""
        return drawn, line, quote_view.line(made), quote_view.line(made), gr.Timer(active=measuring), tried, shown

    def check_publishing(dataset_id, recipe, name, visitor, token) -> str:
        """See `publish.check_before`, for a run of these settings on this dataset; `token` is the sign-in, where there is one."""
        sizes, worked_on = to_quote(data.find(visitor.owner, dataset_id), recipe, visitor)
        try:
            base = {"id": recipe.base_model, "licence": hub.licence_of(recipe.base_model, recipe.base_revision, visitor.token)}
        except UserError:  # the packaged starter, or out of reach, which the check itself will say
            base = None
        sign_in = {"scopes": token.scope, "expires_at": token.expires_at} if token is not None and on_a_space() else {}
        return publish.check_before(name, visitor.token, quote.here(recipe, sizes, worked_on).seconds, base, **sign_in)

    @in_words
    def mean(wanted, dataset_id, browser_id, token: gr.OAuthToken | None, name, *form):
        """The tick, or the name beside it: what a run published under it would meet, said at once."""
        shown = gr.update(visible=bool(wanted))
        if not wanted or not str(name or "").strip():
            return shown, '<p class="quiet">Name the repository.</p>' if wanted else ""
        try:
            said = check_publishing(dataset_id, its.strict(form), name, page.visitor(browser_id, token), token)
        except UserError as error:
            return shown, drawing.notice(str(error), "error")
        return shown, drawing.notice(said)

    def smaller_bases(recipe, token):
        for base_id in proposals.smaller_of(recipe.base_model, _bases(its.presets, recipe.task)):
            try:
                yield base_id, hub.sizes_of(base_id, "", token)
            except UserError:  # gated, or out of reach: not one to offer
                continue

    @in_words
    def take(event: gr.EventData, *form):
        """A button of the quote: its settings go into the form, which asks for the quote again."""
        verb, _, what = str((event._data or {}).get("do", "")).partition(":")
        if verb != "set":
            raise UserError(f"There is nothing to do for {shorten(verb, 20)!r}. Reload the page.")
        changes = {}
        for pair in what.split(";"):
            name, _, value = pair.partition("=")
            changes[name] = recipes.from_text(name, value)
        recipes.from_dict(changes)
        return [changes.get(name, gr.skip()) for name in FORM]

    @in_words
    def retry(run_id, browser_id, token: gr.OAuthToken | None, event: gr.EventData):
        """A button of a run that failed: a new run on the same rows with what was proposed, or its best version kept."""
        verb, _, what = str((event._data or {}).get("do", "")).partition(":")
        visitor = page.visitor(browser_id, token)
        run = runs.find(visitor.owner, run_id)
        offered = run.read("proposals", [])
        if verb == "keep":
            runs.keep(run, visitor.token)
            return [run.id, *run_view.of(run), *my_runs.of(visitor, run.id), *[gr.skip()] * len(FORM)]
        if verb != "again" or not what.isdigit() or int(what) >= len(offered):
            raise UserError("That proposal is not there any more. Reload the page.")
        settings = offered[int(what)]["settings"]
        new = runs.again(run, settings)
        runs.start(new, visitor.token)
        return [new.id, *run_view.of(new), *my_runs.of(visitor, new.id), *[settings.get(name, gr.skip()) for name in FORM]]

    @in_words
    def start(dataset_id, browser_id, token: gr.OAuthToken | None, preset, publishing, name, keep, *form):
        visitor = page.visitor(browser_id, token)
        recipe = its.strict(form)
        if publishing:
            check_publishing(dataset_id, recipe, name, visitor, token)
        its_data = data.find(visitor.owner, dataset_id)
        named = its.presets.get(preset)
        title = named.title if named and named.dataset and its_data.source.get("kind") == "demo" else its_data.name
        source = its_data.source
        recipe = recipes.from_dict({
            **recipe.changed(), "title": shorten(title, 100), "dataset": source.get("hub_id", ""),
            "dataset_config": source.get("config", "") or "", "dataset_split": source.get("split", "") or "",
            "dataset_revision": source.get("revision", "") or "", "dataset_format": its_data.mapping.format,
            "columns": its_data.mapping.columns,
        })
        made = told_before(dataset_id, recipe, visitor)
        if made and not made.measured and made.held_out_of > quote.FEWEST_HELD_OUT and machine.begin_measuring():
            machine.wait_until_measured(30.0)  # seconds, once: how many rows are held out is for good
            made = told_before(dataset_id, recipe, visitor)
        quoted = made and {"seconds": made.seconds, "memory_gib": made.needed_gib}

        def begin(run):
            if publishing:
                publish.intend(run, name)
            keeper = keeping.prepare(run, visitor.token) if keep else None
            runs.start(run, visitor.token, quoted)
            if keeper:
                keeper.follow()

        form_key = f"{dataset_id}/{its_data.steps}/{recipe.to_toml()}/{publishing}/{name}/{keep}"
        settled = quote.settled(recipe, made) if made else recipe
        run = runs.start_once(visitor.owner, form_key, lambda: runs.create(visitor.owner, settled, its_data), begin)
        return [run.id, *run_view.of(run), *my_runs.of(visitor, run.id)]

    def told_before(dataset_id, recipe, visitor) -> quote.Quote | None:
        """What a run takes, for those who wait behind it; a run may start where nobody could say."""
        try:
            return quote.here(recipe, *to_quote(data.find(visitor.owner, dataset_id), recipe, visitor))
        except UserError:
            return None

    @in_words
    def poll(run_id, seen, browser_id, token: gr.OAuthToken | None):
        if not run_id:
            return [gr.skip()] * (len(view) + len(lists))
        visitor = page.visitor(browser_id, token)
        if not runs.is_of(visitor.owner, run_id):  # the sign-in has ended, or another tab deleted it; said once, not every second
            said = drawing.notice("This run is not yours to see just now. If you were signed in, sign in again: the run goes on meanwhile.", "warning")
            return [said if box is its.status else gr.Timer(active=False) if box is its.timer else gr.skip() for box in (*view, *lists)]
        run = runs.find(visitor.owner, run_id)
        size = os.path.getsize(run.folder / "events.jsonl") if (run.folder / "events.jsonl").exists() else 0
        if (seen or "").startswith(run_view.seen_as(run, size) + "/"):
            return [gr.skip()] * (len(view) + len(lists))
        shown = run_view.of(run)
        said = not (seen or "").startswith(f"{run.id}/") or seen.split("/")[-1] != shown[-1].split("/")[-1]
        if not said:
            shown[view.index(its.samples)] = gr.skip()  # so a prompt that was opened stays open
        moved = said or f"/{run.state()}/" not in (seen or "")  # it says something at each evaluation
        return [*shown, *(my_runs.of(visitor, run_id) if moved else [gr.skip()] * len(lists))]

    @in_words
    def stop(run_id, browser_id, token: gr.OAuthToken | None):
        run = runs.find(page.visitor(browser_id, token).owner, run_id)
        run.ask_stop()
        return run_view.of(run)

    @in_words
    def resume(run_id, keep, browser_id, token: gr.OAuthToken | None):
        visitor = page.visitor(browser_id, token)
        run = runs.find(visitor.owner, run_id)
        keeper = keeping.prepare(run, visitor.token) if keep else None
        runs.start(run, visitor.token)
        if keeper:
            keeper.follow()
        return [*run_view.of(run), *my_runs.of(visitor, run_id)]

    @in_words
    def longer(run_id, more, browser_id, token: gr.OAuthToken | None):
        visitor = page.visitor(browser_id, token)
        runs.longer(runs.find(visitor.owner, run_id), float(more or 0), visitor.token)
        return [*run_view.of(runs.find(visitor.owner, run_id)), *my_runs.of(visitor, run_id)]

    @in_words
    def reattach(browser_id, token: gr.OAuthToken | None):
        visitor = page.visitor(browser_id, token)
        mine = runs.mine(visitor.owner)
        shown = next((run for run in mine if run.state() in runs.LIVE), mine[0] if mine else None)
        return [shown.id if shown else "", *run_view.of(shown, visitor.owner), *my_runs.of(visitor, shown.id if shown else "")]

    who = [its.browser]
    its.preset.change(use_preset, [its.preset], [its.preset, *its.form], **quiet)
    asks = dict(fn=requote, inputs=[its.dataset_id, *who, *its.form], outputs=quoted, trigger_mode="always_last", concurrency_limit=None, **quiet)
    for knob in its.form:
        knob.change(**asks)
    dataset.known.change(
        follow_dataset, [its.dataset_id, its.preset, its.knobs["task"], *who], [its.preset, *its.form], trigger_mode="always_last", concurrency_limit=None, **quiet,
    ).then(**asks)
    its.measuring.tick(**asks)
    means = dict(
        fn=mean, inputs=[its.mean_to_publish, its.dataset_id, *who, its.publish_name, *its.form], outputs=[its.publish_name, its.publish_check],
        trigger_mode="always_last", **quiet,
    )
    its.mean_to_publish.change(**means)
    its.publish_name.blur(**means)
    its.publish_name.submit(**means)
    its.quote.click(take, its.form, its.form, **quiet)
    its.trial.click(take, its.form, its.form, **quiet)
    its.report.click(show_cell, [its.run_id, *who], [its.cell_rows], **quiet)
    its.status.click(retry, [its.run_id, *who], [its.run_id, *view, *lists, *its.form], **quiet)
    its.start_run = dict(
        fn=start, inputs=[its.dataset_id, *who, its.preset, its.mean_to_publish, its.publish_name, its.keep, *its.form], outputs=[its.run_id, *view, *lists],
        show_progress="minimal", show_progress_on=[its.status], api_visibility="private", concurrency_limit=4,
    )
    its.follow_up = talk.refresh
    started = its.start.click(**its.start_run)
    its.start.click(None, [its.start], None, js=run_view.LEAD_TO_SIGN_IN, **quiet)
    its.timer.tick(poll, [its.run_id, its.seen, *who], [*view, *lists], concurrency_limit=None, trigger_mode="once", **quiet)
    its.stop.click(stop, [its.run_id, *who], view, **quiet)
    its.resume.click(resume, [its.run_id, its.keep, *who], [*view, *lists], **quiet)
    its.longer.click(longer, [its.run_id, its.more, *who], [*view, *lists], **quiet)
    its.reattach = dict(fn=reattach, inputs=who, outputs=[its.run_id, *view, *lists], **quiet)
    its.to_chat.click(lambda: gr.Tabs(selected="chat"), None, [tabs], queue=False, **quiet).then(**talk.take_run)
    started.then(**talk.refresh)
    measure_view.wire(its)
    trial_view.wire(its, to_quote)
    my_runs.wire(its, talk, tabs)
