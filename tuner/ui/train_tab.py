"""The Fine-tune tab: a recipe, a quote, Start; then the curve, and the answer changing; and my runs."""

import os
from contextlib import suppress
from types import SimpleNamespace

import gradio as gr

from tuner import check, cost, data, figures, homecoming, hub, identity, keeping, limits, machine, proposals, publish, quote, tasks, trials
from tuner import recipe as recipes
from tuner import run as runs
from tuner.errors import UserError, shorten
from tuner.events import latest
from tuner.home import on_a_space, survives_restart
from tuner.recipe import KNOBS, MORE_KNOBS, OPEN_KNOBS, TYPES, Recipe
from tuner.ui import drawing, label_view, queue_view, quote_view, report_view, trial_view

# The task comes with the preset and has no control of its own.
FORM = ("task", *OPEN_KNOBS, *MORE_KNOBS)
# Knobs that change what a row looks like to the model, so that the Dataset tab has to look again.
_SHAPES_ROWS = ("task", "base_model", "max_tokens", "system_prompt", "learn", "keep_control_tokens", "template_date", "held_out_share", "seed")

SIGN_IN = "Sign in to start"
# The button then leads where the sign-in button does. The click itself is refused by the engine.
LEAD_TO_SIGN_IN = f"""(label) => {{
    if (label === {SIGN_IN!r}) window.location.assign("/login/huggingface?_target_url=/" + encodeURIComponent(window.location.search));
}}"""


def draw(page, browser, dataset_id, run_id) -> SimpleNamespace:
    """Lay the tab out; `wire` connects it."""
    presets = recipes.presets()
    first = next(iter(presets))
    its = SimpleNamespace(page=page, browser=browser, dataset_id=dataset_id, run_id=run_id, presets=presets)
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            its.dataset_line = gr.HTML("", elem_id="dataset-line")
            its.preset = gr.Dropdown(
                _offered(presets, presets[first].task), value=first, label="Preset", elem_id="preset", info=presets[first].about, filterable=False,
            )
            its.knobs, bases = {"task": gr.State(presets[first].task)}, _bases(presets, presets[first].task)
            for pair in _in_pairs(OPEN_KNOBS):
                with gr.Row():
                    its.knobs |= {name: _component(name, presets[first], bases) for name in pair}
            its.quote = gr.HTML(drawing.empty("The quote appears with the dataset."), elem_id="quote", js_on_load=drawing.LISTEN)
            its.mean_to_publish = gr.Checkbox(False, label="I mean to publish this", info="Checks now that your account may. Nothing is sent.", elem_id="mean-to-publish")
            its.publish_name = gr.Textbox(label="Repository name", info="In your own account.", max_length=96, visible=False, elem_id="publish-name")
            its.publish_check = gr.HTML("", elem_id="publish-check")
            its.limits = gr.HTML(queue_view.said_before, elem_id="limits")
            its.keep = gr.Checkbox(
                False, label="Keep checkpoints in my account", info=keeping.CONSENT, visible=not survives_restart(), elem_id="keep",
            )
            its.start = gr.Button("Start", variant="primary", size="lg", elem_id="start")
            its.stop = gr.Button("Stop and keep what was learned", visible=False, elem_id="stop")
            with gr.Accordion("More settings", open=False, elem_id="more"):
                its.knobs |= {name: _component(name, presets[first], bases) for name in MORE_KNOBS}
            with gr.Accordion("Try before you train", open=False, elem_id="trials"):
                its.trial_quote = gr.HTML(drawing.empty("What they take appears with the dataset."), elem_id="trial-quote")
                with gr.Row():
                    its.try_rate = gr.Button("Find a learning rate", elem_id="try-rate", min_width=130)
                    its.try_enough = gr.Button("Is the data enough?", elem_id="try-enough", min_width=130)
                its.trial = gr.HTML("", elem_id="trial", js_on_load=drawing.LISTEN)
                its.cancel_trial = gr.Button("Cancel", visible=False, elem_id="cancel-trial")
        with gr.Column(scale=5, min_width=340):
            its.status = gr.HTML("", elem_id="run-status", js_on_load=drawing.LISTEN)
            its.curve = gr.HTML(drawing.curve([], [], 0), elem_id="curve")
            its.numbers = gr.HTML("", elem_id="numbers")
            its.resume = gr.Button("Resume this run", visible=False, elem_id="resume")
            with gr.Row(visible=False, elem_id="longer-row") as its.longer_row:
                its.more = gr.Number(1, label="Epochs more", minimum=0.1, maximum=100, elem_id="more-epochs", min_width=100)
                its.longer = gr.Button("Train longer", elem_id="longer", min_width=130)
            its.to_chat = gr.Button(tasks.get(presets[first].task).LEAD, variant="primary", visible=False, elem_id="to-chat")
            gr.HTML("<h3>Watch it learn</h3>")
            its.samples = gr.HTML(drawing.samples([]), elem_id="samples")
    its.report = gr.HTML("", elem_id="report", js_on_load=drawing.LISTEN)
    its.cell_rows = gr.HTML("", elem_id="cell-rows")
    gr.HTML("<h3>My runs</h3>")
    its.table = gr.HTML(drawing.runs_table([]), elem_id="runs")
    with gr.Row(elem_id="run-actions"):
        its.chosen = gr.Dropdown([], label="Run", elem_id="chosen-run", filterable=False, scale=3, min_width=220)
        its.open_run = gr.Button("Open", elem_id="open-run", min_width=80)
        its.chat_run = gr.Button("Chat", elem_id="chat-run", min_width=80)
        its.publish_run = gr.Button("Publish", elem_id="publish-run", min_width=80)
    with gr.Row(elem_id="kept-row"):
        its.find_kept = gr.Button("Find my kept runs", elem_id="find-kept", scale=0, min_width=180)
        its.kept = gr.Dropdown([], label="Kept in my account", elem_id="kept", filterable=False, visible=False, scale=3, min_width=220)
        its.bring_back = gr.Button("Bring it back", elem_id="bring-back", visible=False, min_width=90)
    with gr.Row(elem_id="name-row"):
        its.new_title = gr.Textbox(label="New name", max_length=120, scale=3, elem_id="new-title", min_width=220)
        its.rename = gr.Button("Rename", elem_id="rename-run", min_width=80)
        its.delete = gr.Button("Delete", elem_id="delete-run", min_width=80)
        its.delete_sure = gr.Button("Really delete it", variant="stop", visible=False, elem_id="delete-sure", min_width=80)
    its.form = [its.knobs[name] for name in FORM]
    its.shapes_rows = [its.knobs[name] for name in _SHAPES_ROWS]
    its.timer = gr.Timer(1.0, active=False)
    its.measuring = gr.Timer(2.0, active=False)  # until this machine's speed is known, and the quote with it
    its.seen, its.doomed = gr.State(""), gr.State("")  # what was drawn; the run that a second click deletes
    its.trial_id, its.trying = gr.State(""), gr.Timer(1.0, active=False)

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

    its.strict, its.lenient, its.lead_to_sign_in = strict, lenient, LEAD_TO_SIGN_IN
    return its


def stop_label(state: str) -> str:
    """What the button beside a live run does."""
    return "Leave the queue" if state == "waiting" else "Stop and keep what was learned"


def start_label(owner: str) -> str:
    """What stands on the Start button for this owner, so that it is known before the click."""
    return "Start" if identity.may_start(owner) else SIGN_IN


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


def wire(its, dataset, talk, tabs) -> None:
    """Connect the tab's controls."""
    from tuner.ui import dataset_tab
    from tuner.ui.app import in_words

    page = its.page
    quiet = dict(show_progress="hidden", api_visibility="private")
    view = [its.status, its.curve, its.numbers, its.samples, its.report, its.cell_rows, its.start, its.stop, its.resume, its.longer_row, its.to_chat, its.timer, its.seen]
    lists = [its.table, its.chosen]

    def view_of(run: runs.Run | None, owner: str = "") -> list:
        """Everything the tab shows of a run; of none, to this owner."""
        owner = run.owner if run else owner
        if run is None:
            return [
                "", drawing.curve([], [], 0), "", drawing.samples([]), "", "", gr.update(interactive=True, value=start_label(owner)),
                gr.update(visible=False), gr.update(visible=False), gr.update(visible=False), gr.update(visible=False), gr.Timer(active=False), "",
            ]
        events, size = run.events()
        state = run.state()
        steps, evals, told = latest(events, "step"), latest(events, "eval"), latest(events, "sample")
        said = [event["message"] for event in events if event["kind"] == "status"]
        notes = list(dict.fromkeys(event["message"] for event in events if event["kind"] == "note" and "rule" not in event))
        seen = [event for event in events if event["kind"] == "note" and "rule" in event]
        last = steps[-1] if steps else {}
        live = state in runs.LIVE
        if run.stop_asked() and live:
            message = "Leaving the queue" if state == "waiting" else "Stopping after this step"
        elif state == "waiting" and (place := queue_view.waiting(run)):
            message = place
        elif state == "new":
            message = "Not started; nothing was spent. Resume puts it into the queue."
        elif state == "interrupted":
            message = "It was ended in the middle. Resume goes on from the last checkpoint."
        elif state == "failed":
            message = "See below what went wrong"
        else:
            message = said[-1] if said else "Starting"
        total = last.get("steps", 0)
        top = drawing.status(run.title, state, message, last.get("step", 0), total, last.get("eta_s"))
        if state == "failed":
            top += drawing.notice(run.error(), "error") + quote_view.retry(run.read("proposals", []), run.kept_step())
        if tried := next((event for event in reversed(events) if event["kind"] == "status" and "rehearsed" in event), None):
            result = next((event for event in reversed(events) if event["kind"] == "status" and event["state"] in ("done", "stopped")), None)
            first = events[0]["t"] if events else 0
            top += quote_view.rehearsed(tried["quoted"], tried["rehearsed"], result["t"] - first if result else None)
        top += "".join(drawing.notice(note) for note in notes[-3:]) + drawing.watched(seen) + queue_view.around(run)
        report, task = run.read("report") if state in ("done", "stopped") else None, tasks.get(run.recipe.task)
        if report:
            numbers = drawing.stats(task.tiles(report))
        elif last:
            numbers = drawing.stats([
                *task.tiles_of(evals[-1] if evals else {}),
                (f"{last['tokens_per_s']:,.0f}", "tokens / s", "Over the last 20 steps"),
                (f"{last['memory_gib']:.2f} GiB", "memory", "What the training process holds now"),
                (f"{last['loss']:.3f}", "loss", "Of the last step"),
                (f"{last['learning_rate']:.1e}", "learning rate", "At the last step"),
            ])
        else:
            numbers = ""
        made = report and figures.of(run)
        return [
            top, drawing.curve(steps, evals, total) + label_view.curve(evals, total), numbers, drawing.samples(told),
            report_view.whole(made, task) if made else "", "",
            gr.update(interactive=True, value="Start another" if live else start_label(owner)), gr.update(visible=live, value=stop_label(state)),
            gr.update(visible=state in ("new", "interrupted", "failed", "stopped")),
            gr.update(visible=state in ("done", "stopped", "interrupted") and run.read("plan") is not None), gr.update(visible=state in ("done", "stopped"), value=task.LEAD),
            gr.Timer(active=live), f"{run.id}/{size}/{state}/{run.stop_asked()}/{queue_view.moment(run)}/{len(told)}",
        ]

    def lists_of(owner: str, shown: str = "") -> list:
        mine = [run.summary() for run in runs.mine(owner)[:100]]
        choices = [(f"{shorten(its_['title'], 40)} · {drawing.STATE_WORDS[its_['state']]} · {drawing.when(its_['created'])}", its_["id"]) for its_ in mine]
        chosen = shown if any(value == shown for _, value in choices) else (choices[0][1] if choices else None)
        return [drawing.runs_table(mine, shown), gr.update(choices=choices, value=chosen)]

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

    def to_quote(its_data, recipe, visitor) -> tuple:
        """The base's sizes, and the rows that a run of these settings works on.

        Raises:
            UserError: the base is not known, or no row has anything to learn.
        """
        runs.require_task(recipe, its_data)
        look, blind = dataset_tab.eyes(recipe, visitor.token)
        if look is None:
            raise UserError(blind)
        rows, going = check.look_at(its_data, look)
        seen = rows.figures(recipe)
        if not len(seen.lengths):
            raise UserError("No row has anything to learn with these settings. See the Dataset tab.")
        # While the rest is still being checked, the first rows stand for it.
        worked_on = quote.Rows.of(seen, max(1.0, its_data.count / rows.came_in) if going else 1.0)
        sizes = hub.sizes_of(recipe.base_model, recipe.base_revision, visitor.token)
        limits.require_model(sizes.weights / 1e9, recipe.base_model)
        return sizes, worked_on

    @in_words
    def requote(dataset_id, browser_id, token: gr.OAuthToken | None, *form):
        if not dataset_id:
            return [gr.skip()] * 5
        visitor = page.visitor(browser_id, token)
        its_data = data.find(visitor.owner, dataset_id)
        if its_data.task != dict(zip(FORM, form))["task"]:  # `follow_dataset` is about to change the form, and asks again
            return [gr.skip()] * 5
        line = f'<p class="dataset-line">Learns from <b>{drawing.long_name(its_data.name)}</b></p>'
        still = gr.Timer(active=False)
        try:
            recipe = its.strict(form)
            sizes, worked_on = to_quote(its_data, recipe, visitor)
            made = quote.here(recipe, sizes, worked_on)
            offered = [] if made.fits else proposals.here(recipe, sizes, worked_on, lambda: smaller_bases(recipe, visitor.token))
        except UserError as error:
            return drawing.notice(str(error), "error"), line, "", still, drawing.empty("Nothing to try yet.")
        measuring = machine.begin_measuring()
        drawn = queue_view.too_long(made.time["training"]) + quote_view.whole(made, quote.hired(recipe, sizes, worked_on), offered, measuring, machine.runs_known(cost.kind(recipe, sizes)))
        tried = trial_view.costs({kind: trials.seconds(kind, recipe, sizes, worked_on) for kind in trials.TITLES})
        task = tasks.get(recipe.task)
        if task.LABELLED and check.look_at(its_data, dataset_tab.eyes(recipe, visitor.token)[0])[0].is_unbalanced():
            drawn = label_view.offer_weights(recipe) + drawn
        return drawn, line, quote_view.line(made), gr.Timer(active=measuring), tried

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
            return [run.id, *view_of(run), *lists_of(visitor.owner, run.id), *[gr.skip()] * len(FORM)]
        if verb != "again" or not what.isdigit() or int(what) >= len(offered):
            raise UserError("That proposal is not there any more. Reload the page.")
        settings = offered[int(what)]["settings"]
        new = runs.again(run, settings)
        runs.start(new, visitor.token)
        return [new.id, *view_of(new), *lists_of(visitor.owner, new.id), *[settings.get(name, gr.skip()) for name in FORM]]

    def trial_of(trial: trials.Trial | None) -> list:
        if trial is None:
            return ["", gr.update(visible=False), gr.Timer(active=False), gr.update(interactive=True), gr.update(interactive=True)]
        live = trial.state() in runs.LIVE
        return [trial_view.whole(trial), gr.update(visible=live), gr.Timer(active=live), gr.update(interactive=not live), gr.update(interactive=not live)]

    def try_it(kind, dataset_id, browser_id, token, form):
        visitor = page.visitor(browser_id, token)
        recipe = its.strict(form)
        dataset = data.find(visitor.owner, dataset_id)
        trial = trials.create(visitor.owner, kind, recipe, dataset)
        quoted = None
        with suppress(UserError):  # what is wrong, the start itself says
            quoted = {"seconds": trials.seconds(kind, recipe, *to_quote(dataset, recipe, visitor))}
        runs.start(trial, visitor.token, quoted)
        return [trial.id, *trial_of(trial)]

    @in_words
    def try_rate(dataset_id, browser_id, token: gr.OAuthToken | None, *form):
        return try_it(trials.RATE, dataset_id, browser_id, token, form)

    @in_words
    def try_enough(dataset_id, browser_id, token: gr.OAuthToken | None, *form):
        return try_it(trials.ENOUGH, dataset_id, browser_id, token, form)

    @in_words
    def poll_trial(trial_id, browser_id, token: gr.OAuthToken | None):
        owner = page.visitor(browser_id, token).owner
        return trial_of(runs.find(owner, trial_id, trials.Trial) if trial_id and runs.is_of(owner, trial_id, trials.Trial) else None)

    @in_words
    def cancel_trial(trial_id, browser_id, token: gr.OAuthToken | None):
        trial = runs.find(page.visitor(browser_id, token).owner, trial_id, trials.Trial)
        trial.ask_stop()
        return trial_of(trial)

    @in_words
    def reattach_trial(browser_id, token: gr.OAuthToken | None):
        newest = next(iter(runs.mine(page.visitor(browser_id, token).owner, trials.Trial)), None)
        return [newest.id if newest else "", *trial_of(newest)]

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
        quoted = told_before(dataset_id, recipe, visitor)

        def begin(run):
            if publishing:
                publish.intend(run, name)
            keeper = keeping.prepare(run, visitor.token) if keep else None
            runs.start(run, visitor.token, quoted)
            if keeper:
                keeper.follow()

        form_key = f"{dataset_id}/{its_data.steps}/{recipe.to_toml()}/{publishing}/{name}/{keep}"
        run = runs.start_once(visitor.owner, form_key, lambda: runs.create(visitor.owner, recipe, its_data), begin)
        return [run.id, *view_of(run), *lists_of(visitor.owner, run.id)]

    def told_before(dataset_id, recipe, visitor) -> dict | None:
        """What the quote says a run takes, for those who wait behind it; a run may start where nobody could say."""
        try:
            made = quote.here(recipe, *to_quote(data.find(visitor.owner, dataset_id), recipe, visitor))
        except UserError:
            return None
        return {"seconds": made.seconds, "memory_gib": made.needed_gib}

    @in_words
    def find_kept(browser_id, token: gr.OAuthToken | None):
        found = keeping.find(page.visitor(browser_id, token).token)
        if not found:
            raise UserError("Your account keeps no runs of Tuner. Tick “Keep checkpoints in my account” before a Start.")
        choices = [(f"{its_['run']} · {drawing.when(its_['changed'])}", its_["repo_id"]) for its_ in found]
        return gr.update(choices=choices, value=choices[0][1], visible=True), gr.update(visible=True)

    @in_words
    def bring_back(repo_id, browser_id, token: gr.OAuthToken | None):
        visitor = page.visitor(browser_id, token)
        run = homecoming.bring_back(visitor.owner, str(repo_id or ""), visitor.token)
        return [run.id, *view_of(run), *lists_of(visitor.owner, run.id)]

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
        if (seen or "").startswith(f"{run.id}/{size}/{run.state()}/{run.stop_asked()}/{queue_view.moment(run)}/"):
            return [gr.skip()] * (len(view) + len(lists))
        shown = view_of(run)
        said = not (seen or "").startswith(f"{run.id}/") or seen.split("/")[-1] != shown[-1].split("/")[-1]
        if not said:
            shown[view.index(its.samples)] = gr.skip()  # so a prompt that was opened stays open
        moved = said or f"/{run.state()}/" not in (seen or "")  # it says something at each evaluation
        return [*shown, *(lists_of(visitor.owner, run_id) if moved else [gr.skip()] * len(lists))]

    @in_words
    def stop(run_id, browser_id, token: gr.OAuthToken | None):
        run = runs.find(page.visitor(browser_id, token).owner, run_id)
        run.ask_stop()
        return view_of(run)

    @in_words
    def resume(run_id, keep, browser_id, token: gr.OAuthToken | None):
        visitor = page.visitor(browser_id, token)
        run = runs.find(visitor.owner, run_id)
        keeper = keeping.prepare(run, visitor.token) if keep else None
        runs.start(run, visitor.token)
        if keeper:
            keeper.follow()
        return [*view_of(run), *lists_of(visitor.owner, run_id)]

    @in_words
    def longer(run_id, more, browser_id, token: gr.OAuthToken | None):
        visitor = page.visitor(browser_id, token)
        runs.longer(runs.find(visitor.owner, run_id), float(more or 0), visitor.token)
        return [*view_of(runs.find(visitor.owner, run_id)), *lists_of(visitor.owner, run_id)]

    @in_words
    def reattach(browser_id, token: gr.OAuthToken | None):
        visitor = page.visitor(browser_id, token)
        mine = runs.mine(visitor.owner)
        shown = next((run for run in mine if run.state() in runs.LIVE), mine[0] if mine else None)
        return [shown.id if shown else "", *view_of(shown, visitor.owner), *lists_of(visitor.owner, shown.id if shown else "")]

    @in_words
    def open_run(chosen, browser_id, token: gr.OAuthToken | None):
        visitor = page.visitor(browser_id, token)
        run = runs.find(visitor.owner, require_chosen(chosen))
        return [run.id, *view_of(run), *lists_of(visitor.owner, run.id), gr.update(value=run.title)]

    @in_words
    def rename(chosen, title, run_id, browser_id, token: gr.OAuthToken | None):
        visitor = page.visitor(browser_id, token)
        runs.find(visitor.owner, require_chosen(chosen)).rename(title or "")
        return lists_of(visitor.owner, chosen)

    @in_words
    def ask_delete(chosen, browser_id, token: gr.OAuthToken | None):
        run = runs.find(page.visitor(browser_id, token).owner, require_chosen(chosen))
        return gr.update(visible=False), gr.update(visible=True, value=f"Really delete “{shorten(run.title, 30)}”"), run.id

    @in_words
    def delete(chosen, doomed, run_id, browser_id, token: gr.OAuthToken | None):
        visitor = page.visitor(browser_id, token)
        if chosen != doomed:
            raise UserError("Another run is chosen now than the one that was to be deleted. Press Delete once more.")
        runs.find(visitor.owner, require_chosen(chosen)).delete()
        kept = "" if run_id == chosen else run_id
        shown = view_of(runs.find(visitor.owner, kept) if kept else None, visitor.owner)
        return [kept, *shown, *lists_of(visitor.owner, kept), gr.update(visible=True), gr.update(visible=False)]

    def require_chosen(chosen) -> str:
        if not chosen:
            raise UserError("No run is chosen. Choose one from the list.")
        return str(chosen)

    @in_words
    def done_run(chosen, browser_id, token: gr.OAuthToken | None):
        run = runs.find(page.visitor(browser_id, token).owner, require_chosen(chosen))
        if run.state() not in ("done", "stopped"):
            raise UserError(f"“{shorten(run.title)}” is {run.state()} and has no tuned model yet.")
        return run.id, gr.Tabs(selected="chat")

    who = [its.browser]
    its.preset.change(use_preset, [its.preset], [its.preset, *its.form], **quiet)
    asks = dict(fn=requote, inputs=[its.dataset_id, *who, *its.form], outputs=[its.quote, its.dataset_line, dataset.quote_line, its.measuring, its.trial_quote], trigger_mode="always_last", concurrency_limit=None, **quiet)
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
    tries = [its.trial, its.cancel_trial, its.trying, its.try_rate, its.try_enough]
    for button, fn in ((its.try_rate, try_rate), (its.try_enough, try_enough)):
        button.click(fn, [its.dataset_id, *who, *its.form], [its.trial_id, *tries], show_progress="minimal", show_progress_on=[its.trial], api_visibility="private", concurrency_limit=4)
    its.trying.tick(poll_trial, [its.trial_id, *who], tries, concurrency_limit=None, trigger_mode="once", **quiet)
    its.cancel_trial.click(cancel_trial, [its.trial_id, *who], tries, **quiet)
    its.reattach_trial = dict(fn=reattach_trial, inputs=who, outputs=[its.trial_id, *tries], **quiet)
    its.trial.click(take, its.form, its.form, **quiet)
    its.report.click(show_cell, [its.run_id, *who], [its.cell_rows], **quiet)
    its.status.click(retry, [its.run_id, *who], [its.run_id, *view, *lists, *its.form], **quiet)
    its.start_run = dict(
        fn=start, inputs=[its.dataset_id, *who, its.preset, its.mean_to_publish, its.publish_name, its.keep, *its.form], outputs=[its.run_id, *view, *lists],
        show_progress="minimal", show_progress_on=[its.status], api_visibility="private", concurrency_limit=4,
    )
    its.follow_up = talk.refresh
    started = its.start.click(**its.start_run)
    its.start.click(None, [its.start], None, js=LEAD_TO_SIGN_IN, **quiet)
    its.timer.tick(poll, [its.run_id, its.seen, *who], [*view, *lists], concurrency_limit=None, trigger_mode="once", **quiet)
    its.stop.click(stop, [its.run_id, *who], view, **quiet)
    its.resume.click(resume, [its.run_id, its.keep, *who], [*view, *lists], **quiet)
    its.find_kept.click(find_kept, who, [its.kept, its.bring_back], **quiet)
    its.bring_back.click(bring_back, [its.kept, *who], [its.run_id, *view, *lists], show_progress="minimal", show_progress_on=[its.status], api_visibility="private")
    its.longer.click(longer, [its.run_id, its.more, *who], [*view, *lists], **quiet)
    its.reattach = dict(fn=reattach, inputs=who, outputs=[its.run_id, *view, *lists], **quiet)
    its.open_run.click(open_run, [its.chosen, *who], [its.run_id, *view, *lists, its.new_title], **quiet)
    renamed = its.rename.click(rename, [its.chosen, its.new_title, its.run_id, *who], lists, **quiet)
    its.delete.click(ask_delete, [its.chosen, *who], [its.delete, its.delete_sure, its.doomed], **quiet)
    its.chosen.change(lambda: (gr.update(visible=True), gr.update(visible=False), ""), None, [its.delete, its.delete_sure, its.doomed], queue=False, **quiet)
    deleted = its.delete_sure.click(delete, [its.chosen, its.doomed, its.run_id, *who], [its.run_id, *view, *lists, its.delete, its.delete_sure], **quiet)
    its.chat_run.click(done_run, [its.chosen, *who], [its.run_id, tabs], **quiet).success(**talk.take_run)
    its.publish_run.click(done_run, [its.chosen, *who], [its.run_id, tabs], **quiet).success(**talk.take_run).success(**talk.open_publish)
    its.to_chat.click(lambda: gr.Tabs(selected="chat"), None, [tabs], queue=False, **quiet).then(**talk.take_run)
    for changed in (started, renamed, deleted):
        changed.then(**talk.refresh)
