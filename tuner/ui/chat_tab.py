"""The third tab: talking to base and tuned side by side, and voting on them; what is asked, labelled and published has rooms of its own."""

import time
from types import SimpleNamespace

import gradio as gr

from tuner import blind, chat, figures, hub, sharing, tasks
from tuner import run as runs
from tuner.errors import Hint, UserError, shorten
from tuner.ui import blind_view, conversation, drawing, publish_view, subjects, try_view

BOTH, TUNED, BASE, BLIND = "Side by side", "Tuned alone", "Base alone", "Which is better?"
# Gradio redraws the whole answer for each update, so a few updates a second are enough for the eye.
UPDATE_S = 0.08


def draw(page, browser, run_id, shared_key, tab) -> SimpleNamespace:
    """Lay the tab out; `wire` connects it."""
    its = SimpleNamespace(page=page, browser=browser, run_id=run_id, shared_key=shared_key, tab=tab)
    with gr.Row(elem_id="chat-who"):
        its.subject = gr.Dropdown(subjects.ALWAYS, value=subjects.BASE_CHOICE, label="Model", elem_id="subject", filterable=False, scale=3, min_width=240)
        its.adapter_id = gr.Textbox(label="Adapter on the Hub", placeholder="user/name", visible=True, max_length=200, elem_id="adapter-id", scale=2, min_width=200)
        its.view = gr.Radio([BOTH, TUNED, BASE, BLIND], value=BOTH, label="Show", elem_id="view", scale=6, min_width=380)
    its.about = gr.HTML("", elem_id="chat-about")
    with gr.Column(elem_id="talk") as its.panel:
        boxes = dict(height=420, buttons=["copy"], render_markdown=False, feedback_options=None, allow_tags=False)
        with gr.Row():
            its.base = gr.Chatbot(label="Base", elem_id="chat-base", placeholder="What the base model says", min_width=300, **boxes)
            its.tuned = gr.Chatbot(label="Tuned", elem_id="chat-tuned", placeholder="What the tuned model says", min_width=300, **boxes)
        with gr.Column(visible=False, elem_id="blind") as its.blind_panel:
            its.blind = gr.HTML(blind_view.no_answers(), elem_id="blind-answers")
            with gr.Row(elem_id="votes"):
                its.votes = {
                    better: gr.Button(words, interactive=False, elem_id=f"vote-{better}", min_width=90)
                    for better, words in (("left", "A is better"), ("same", "The same"), ("right", "B is better"))
                }
            its.tally = gr.HTML("", elem_id="tally")
        its.blind_id, its.blind_said = gr.State(""), gr.State({})
        # What is being answered, and under which number. Not states: an answer that waited begins with what was sent with it.
        its.asked, its.ticket = (gr.Textbox("", show_label=False, container=False, elem_id=name) for name in ("asked", "ticket"))
        with gr.Row(elem_id="chat-line"):
            its.message = gr.Textbox(show_label=False, placeholder="Write something, then press Enter", elem_id="message", scale=6, lines=1, max_lines=6, container=False, min_width=200)
            its.send = gr.Button("Send", variant="primary", elem_id="send", scale=0, min_width=90)
            its.stop = gr.Button("Stop", elem_id="stop-chat", interactive=False, scale=0, min_width=90)
        with gr.Row(elem_id="redo") as its.redo:
            its.retry = gr.Button("Answer again", size="sm", elem_id="retry", min_width=90)
            its.edit = gr.Button("Edit my last message", size="sm", elem_id="edit", min_width=90)
            its.clear = gr.Button("Clear", size="sm", elem_id="clear", min_width=90)
        with gr.Accordion("Settings", open=False, elem_id="chat-settings"):
            its.system = gr.Textbox(label="System prompt", info="Put before the conversation. Empty takes the run's own.", lines=2, max_length=20_000, elem_id="system")
            with gr.Row():
                its.temperature = gr.Slider(0, 2, value=0, step=0.05, label="Temperature", info="0 always takes the likeliest word; higher is more varied.", elem_id="temperature")
                its.top_p = gr.Slider(0.05, 1, value=1, step=0.05, label="Top-p", info="Lower leaves unlikely words out.", elem_id="top-p")
                its.longest = gr.Slider(8, 1024, value=200, step=8, label="Longest answer (tokens)", info="Where an answer is cut if it does not stop by itself.", elem_id="longest")
    its.trying = try_view.draw(page)
    publish_view.draw(its)
    its.take_run, its.refresh, its.open_publish, its.arrive, its.take_shared = {}, {}, {}, {}, {}
    _wire_lists(its)
    return its


def _wire_lists(its) -> None:
    """The handlers that other tabs chain to; made with the tab, so that they exist whichever is wired first."""
    from tuner.ui.app import in_words

    page, panels = its.page, _panels(its)
    quiet = dict(show_progress="hidden", api_visibility="private")

    @in_words
    def refresh(subject, adapter_id, key, view, browser_id, token: gr.OAuthToken | None):
        offered = subjects.choices(page.visitor(browser_id, token).owner, key)
        known = {value for _, value in offered}
        value = subjects.HUB_CHOICE if adapter_id else subject if subject in known and subject != subjects.BASE_CHOICE else offered[0][1]
        return gr.update(choices=offered, value=value), _views(view, subjects.is_mine(value))[0]

    @in_words
    def take_run(run_id, key, browser_id, token: gr.OAuthToken | None):
        offered = subjects.choices(page.visitor(browser_id, token).owner, key)
        known = {value for _, value in offered}
        return gr.update(choices=offered, value=run_id if run_id in known else offered[0][1]), ""

    @in_words
    def take_shared(key, browser_id, token: gr.OAuthToken | None):
        return gr.update(choices=subjects.choices(page.visitor(browser_id, token).owner, key), value=subjects.SHARED + sharing.find(key).key), ""

    @in_words
    def arrive(adapter_id, browser_id, token: gr.OAuthToken | None):
        if not adapter_id:
            return [gr.skip()] * (2 + len(panels))
        visitor = page.visitor(browser_id, token)
        try:
            folder, config = hub.fetch_adapter(adapter_id, "", visitor.token)
            task, plan = chat.task_of_adapter(folder, config)
        except UserError as error:
            return [gr.update(value=subjects.HUB_CHOICE), drawing.notice(str(error), "error"), *[gr.skip()] * len(panels)]
        base = drawing.text(config["base_model_name_or_path"])
        about = f'<p class="quiet">{drawing.text(adapter_id)}, tuned from {base}. {_what_it_gives(task, plan)}</p>'
        return [gr.update(value=subjects.HUB_CHOICE), about, *_switch(task, plan, True)]

    its.refresh |= dict(fn=refresh, inputs=[its.subject, its.adapter_id, its.shared_key, its.view, its.browser], outputs=[its.subject, its.view], **quiet)
    its.take_shared |= dict(fn=take_shared, inputs=[its.shared_key, its.browser], outputs=[its.subject, its.adapter_id], **quiet)
    its.take_run |= dict(fn=take_run, inputs=[its.run_id, its.shared_key, its.browser], outputs=[its.subject, its.adapter_id], **quiet)
    its.open_publish |= dict(fn=lambda: gr.update(open=True), inputs=None, outputs=[its.publish_panel], **quiet)
    its.arrive |= dict(fn=arrive, inputs=[its.adapter_id, its.browser], outputs=[its.subject, its.about, *panels], **quiet)


def wire(its, train, tabs) -> None:
    """Connect the tab's controls."""
    from tuner.ui.app import in_words

    page, panels = its.page, _panels(its)
    quiet = dict(show_progress="hidden", api_visibility="private")
    settings = [its.subject, its.adapter_id, its.view, its.system, its.temperature, its.top_p, its.longest]
    who = [its.browser]

    line = conversation.Line()

    @in_words
    def say(message, base_said, tuned_said, choice, view, ticket):
        """What was written stands in the conversation at once, and how long the answer may take is told; whoever is before."""
        message, skip = (message or "").strip(), gr.skip()
        if ticket in line:  # Enter, while Send is at rest: what was written stays in the box
            raise gr.Error(_GOING, visible=False, print_exception=False)
        if not message:  # which `answer` says: Gradio shows no words of what is outside its queue
            return "", "", *[skip] * 11
        waits, on_its_way = drawing.notice(_how_long(line.going)), [gr.update(interactive=False), gr.update(interactive=True)]
        if view == BLIND:
            locked = [gr.update(interactive=False)] * 3
            return line.join(), message, "", skip, skip, waits, blind_view.answers(blind_view.unsaid(message)), "", *locked, *on_its_way
        talks = {"base": conversation.plain(base_said), "tuned": conversation.plain(tuned_said)}
        for name in _speakers(view, choice != subjects.BASE_CHOICE):
            conversation.ask(talks[name], message)
        return line.join(), message, "", talks["base"], talks["tuned"], waits, *[skip] * 5, *on_its_way

    @in_words
    def answer(ticket, message, base_said, tuned_said, choice, adapter_id, view, system, temperature, top_p, longest, base_model, browser_id, token: gr.OAuthToken | None):
        """The answer to what `say` has put into the conversation."""
        if not message:
            raise Hint("The message is empty. Write something first.")
        nothing = [gr.skip()] * 9  # Gradio shows what came last once more when an answer is over
        try:
            if not line.begin(ticket):  # stopped while it waited
                yield nothing
                return
            visitor = page.visitor(browser_id, token)
            sampling = chat.check_sampling(max_new_tokens=longest, temperature=temperature, top_p=top_p, seed=time.time_ns() % 2**31 if temperature else 0)
            if view == BLIND:
                pieces = compare(visitor.owner, choice, message, system or "", sampling)
            else:
                pieces = converse(visitor, message, base_said, tuned_said, choice, adapter_id, view, system, sampling, base_model)
            for shown in pieces:
                if ticket not in line:
                    yield nothing
                    return
                yield shown
        except Exception:
            if line.is_stopped(ticket):
                yield nothing
                return
            raise
        finally:
            line.end(ticket)

    def converse(visitor, message, base_said, tuned_said, choice, adapter_id, view, system, sampling, base_model):
        """Base, tuned or both go on with their conversations."""
        skip = gr.skip()
        untouched = [skip] * 5
        yield skip, skip, drawing.notice(_READYING), skip, *untouched
        subject = subjects.subject_of(choice, adapter_id, base_model, visitor)
        talks = {"base": conversation.plain(base_said), "tuned": conversation.plain(tuned_said)}
        speakers = {name: talks[name] for name in _speakers(view, bool(subject.adapter_dir))}
        asked = {}
        for name, talk in speakers.items():
            if not conversation.is_pending(talk):
                raise UserError("This is not what the page sends. Reload it, then try again.")
            turns = [{"role": "system", "content": system}] if (system or "").strip() else []
            # The message as it was written: Gradio takes indentation out of what a conversation holds.
            asked[name] = (subject, [*turns, *talk[:-2], {"role": "user", "content": message}], name == "tuned")
        about, said = _about(subject), dict.fromkeys(speakers, "")
        yield skip, skip, about, skip, *untouched
        shown = time.monotonic()
        try:
            for name, piece in page.worker.answers(asked, **sampling):
                said[name] += piece
                speakers[name][-1]["content"] = said[name] or conversation.PENDING
                if time.monotonic() - shown > UPDATE_S:
                    shown = time.monotonic()
                    yield talks["base"], talks["tuned"], skip, skip, *untouched
        except UserError:
            for talk in speakers.values():
                talk[-1]["content"] = conversation.PENDING  # `put_back` takes it from here
            yield talks["base"], talks["tuned"], skip, skip, *untouched
            raise
        for name, talk in speakers.items():
            talk[-1]["content"] = said[name].strip() or "(it ended without a word)"
        yield talks["base"], talks["tuned"], about, skip, *untouched

    def put_back(ticket, asked, message, base_said, tuned_said, view, blind_id):
        """The end of a message that was stopped or met an error: what got no answer is the message again, unless another one
        was begun; what was answered in part stays."""
        line.stop(ticket)
        skip, talks = gr.skip(), [conversation.plain(base_said), conversation.plain(tuned_said)]
        changed, lost = conversation.take_back(talks, view == BOTH)
        in_blind = view == BLIND and not blind_id and bool(asked)
        back = asked if (lost or in_blind) and not (message or "").strip() else skip
        return (
            back, *(talks if changed else [skip] * 2), "" if lost or in_blind else skip, blind_view.no_answers() if in_blind else skip,
            gr.update(interactive=True), gr.update(interactive=False),
        )

    def ended(ticket):
        """Send can be pressed again, unless another message is on its way already."""
        return [gr.skip()] * 2 if ticket in line else [gr.update(interactive=True), gr.update(interactive=False)]

    def clear(ticket):
        line.stop(ticket)
        return [], [], gr.update(interactive=True), gr.update(interactive=False)

    def compare(owner, choice, message, system, sampling):
        """Two answers without names: which is which is the engine's secret until there is a vote."""
        if not subjects.is_mine(choice):
            raise Hint("Choose one of your runs under “Model” first: its tuned model is compared with its base.")
        test_id = blind.begin(owner, choice)
        said = blind_view.unsaid(message)
        skip, locked, ready = gr.skip(), [gr.update(interactive=False)] * 3, [gr.update(interactive=True)] * 3
        yield skip, skip, drawing.notice(_READYING), blind_view.answers(said), "", {}, *locked
        shown = time.monotonic()
        try:
            for side, piece in blind.answers(owner, choice, test_id, page.worker, message, system, **sampling):
                said[side] += piece
                if time.monotonic() - shown > UPDATE_S:
                    shown = time.monotonic()
                    yield skip, skip, "", blind_view.answers(said), *[skip] * 5
        except UserError:
            yield skip, skip, "", blind_view.no_answers(), "", {}, *locked
            raise
        yield skip, skip, "", blind_view.answers(said), test_id, said, *ready

    def voting(better):
        @in_words
        def vote(choice, test_id, said, browser_id, token: gr.OAuthToken | None):
            owner = page.visitor(browser_id, token).owner
            names = blind.vote(owner, str(choice), test_id, better)
            counted = blind.words(blind.tally(runs.find(owner, str(choice))))
            return blind_view.answers(said, names, better), blind_view.tally(counted), *[gr.update(interactive=False)] * 3, gr.update(visible=True)

        return vote

    @in_words
    def tell_in_card(choice, shown, browser_id, token: gr.OAuthToken | None):
        blind.show_in_card(page.visitor(browser_id, token).owner, str(choice), shown is True)

    def take_back(base_said, tuned_said):
        """Both conversations without their last exchange, and what was asked in it."""
        talks, last = [conversation.plain(base_said), conversation.plain(tuned_said)], ""
        asked = [talk[-2]["content"] for talk in talks if len(talk) >= 2]
        if not asked:
            raise Hint("There is no message yet. Write one first.")
        last = asked[-1]
        return last, *[talk[:-2] if len(talk) >= 2 and talk[-2]["content"] == last else talk for talk in talks]

    @in_words
    def retry(base_said, tuned_said, ticket):
        if ticket in line:
            raise Hint(_GOING)
        return take_back(base_said, tuned_said)

    @in_words
    def change_view(view):
        return [gr.update(visible=its) for its in (view in (BOTH, BASE), view in (BOTH, TUNED), view == BLIND, view != BLIND)]

    @in_words
    def follow_form(choice, adapter_id, form_task, browser_id, token: gr.OAuthToken | None):
        """The settings went over to another task: the base model alone is one of that now."""
        if choice != subjects.BASE_CHOICE:
            return [gr.skip()] * (1 + len(panels))
        task, plan, ready = subjects.task_of(choice, adapter_id, form_task, page.visitor(browser_id, token))
        return [_of_the_base(task), *_switch(task, plan, ready)]

    @in_words
    def meet(choice, adapter_id, form_task, view, ticket, asked, message, browser_id, request: gr.Request, token: gr.OAuthToken | None):
        """What is shown when another model is chosen: an empty conversation, and what it can be asked and published."""
        # An answer of the one before would go on in it; what had none, or not all of it, can be asked of this one.
        back = asked if ticket in line and not (message or "").strip() else gr.skip()
        line.stop(ticket)
        visitor = page.visitor(browser_id, token)
        task, plan, ready = subjects.task_of(choice, adapter_id, form_task, visitor)
        ask, counted, in_card, run = "", "", False, None
        if subjects.is_mine(choice):
            run = runs.find(visitor.owner, str(choice))
            if (report := figures.of(run)) and report.get("examples"):
                ask = f'<p class="quiet">Tuned from {drawing.text(run.recipe.base_model)}. Try: “{drawing.text(shorten(report["examples"][0]["prompt"], 90))}”</p>'
            if tasks.get(task).LABELLED:
                ask = f'<p class="quiet">Tuned from {drawing.text(run.recipe.base_model)}. {_what_it_gives(task, plan)}</p>'
            counted, in_card = blind.words(blind.tally(run)), blind.is_in_card(run)
        elif str(choice).startswith(subjects.SHARED):
            ask = f'<p class="quiet">Tuned from {drawing.text(sharing.find(str(choice).removeprefix(subjects.SHARED)).base_model)}, and shared with you. {_what_it_gives(task, plan)}</p>'
        elif choice == subjects.HUB_CHOICE:
            ask = '<p class="quiet">Write the adapter’s id, then a message.</p>' if not adapter_id else gr.skip()
        else:
            ask = _of_the_base(task)
        voting_shown = [blind_view.no_answers(), blind_view.tally(counted), "", {}, *[gr.update(interactive=False)] * 3, gr.update(value=in_card, visible=bool(counted))]
        (views, carded), (panel, viewed, *rest) = _views(view, subjects.is_mine(choice)), _switch(task, plan, ready)
        return back, [], [], ask, *publish_view.offered(page, run, visitor, request), *voting_shown, carded, panel, {**views, **viewed}, *rest

    buttons, votes = [its.send, its.stop], list(its.votes.values())
    at_once = dict(
        fn=say, inputs=[its.message, its.base, its.tuned, its.subject, its.view, its.ticket],
        outputs=[its.ticket, its.asked, its.message, its.base, its.tuned, its.about, its.blind, its.blind_id, *votes, *buttons], queue=False, **quiet,
    )
    # Several at once, as far as Gradio goes: one that was stopped may take a while to end, and must not swallow the next.
    talk = dict(
        fn=answer, inputs=[its.ticket, its.asked, its.base, its.tuned, *settings, train.knobs["base_model"], *who],
        outputs=[its.base, its.tuned, its.about, its.blind, its.blind_id, its.blind_said, *votes], concurrency_limit=conversation.MOST_ANSWERS, trigger_mode="multiple", **quiet,
    )
    redo = dict(fn=retry, inputs=[its.base, its.tuned, its.ticket], outputs=[its.message, its.base, its.tuned], **quiet)
    over = dict(fn=ended, inputs=[its.ticket], outputs=buttons, queue=False, **quiet)
    unanswered = dict(
        fn=put_back, inputs=[its.ticket, its.asked, its.message, its.base, its.tuned, its.view, its.blind_id],
        outputs=[its.message, its.base, its.tuned, its.about, its.blind, *buttons], queue=False, **quiet,
    )
    for start in (its.send.click(**at_once), its.message.submit(**at_once), its.retry.click(**redo).success(**at_once)):
        answered = start.success(**talk)
        answered.success(**over)
        answered.failure(**unanswered)
    its.edit.click(**redo)
    its.stop.click(**unanswered)
    its.clear.click(clear, [its.ticket], [its.base, its.tuned, *buttons], queue=False, **quiet)
    its.view.change(change_view, [its.view], [its.base, its.tuned, its.blind_panel, its.redo], **quiet)
    for better, button in its.votes.items():
        button.click(voting(better), [its.subject, its.blind_id, its.blind_said, *who], [its.blind, its.tally, *its.votes.values(), its.blind_in_card], **quiet)
    its.blind_in_card.input(tell_in_card, [its.subject, its.blind_in_card, *who], None, **quiet)
    voted = [its.blind, its.tally, its.blind_id, its.blind_said, *its.votes.values(), its.blind_in_card]
    chosen = [its.subject, its.adapter_id, train.knobs["task"], *who]
    its.subject.change(
        meet, [its.subject, its.adapter_id, train.knobs["task"], its.view, its.ticket, its.asked, its.message, *who],
        [its.message, its.base, its.tuned, its.about, *publish_view.parts(its), *voted, its.show_card, *panels], **quiet,
    ).then(**over)
    train.knobs["task"].change(follow_form, chosen, [its.about, *panels], **quiet)
    try_view.wire(its.trying, its, train.knobs["base_model"])
    its.adapter_id.submit(**its.arrive)
    publish_view.wire(its)


_READYING = "Getting the model ready …"
_GOING = "Your last message is being answered. Wait for its end, or stop it."


def _how_long(ahead: int) -> str:
    """What is said until an answer begins, where so many are being given."""
    if ahead < conversation.MOST_ANSWERS:
        return _READYING
    return f"Many are asking just now: {ahead} answers are being written, and yours comes after those that wait already …"


def _speakers(view, tuned: bool) -> list[str]:
    """Who answers in this view, where there is a tuned model or not."""
    return [*(["base"] if view != TUNED or not tuned else []), *(["tuned"] if view != BASE and tuned else [])]


def _panels(its) -> list:
    """What changes when another task's model is chosen; `_switch` says to what."""
    return [its.panel, its.view, its.tab, *try_view.frame(its.trying)]


def _switch(task: str, plan: dict, ready: bool) -> list:
    """The panels for a model of this task."""
    module = tasks.get(task)
    pair = (plan.get("labels") or {}).get("pair") is True
    return [gr.update(visible=not module.LABELLED), gr.update(visible=not module.LABELLED), gr.update(label=module.TAB), *try_view.shown(task, pair, ready)]


def _what_it_gives(task: str, plan: dict) -> str:
    """What can be had from a tuned model, in a sentence."""
    if not tasks.get(task).LABELLED:
        return "Write to it below."
    names = (plan.get("labels") or {}).get("names") or []
    return f"It knows {len(names):,} labels: {drawing.text(shorten(', '.join(names), 160))}."


def _of_the_base(task: str) -> str:
    """What can be had from the base model alone."""
    if tasks.get(task).LABELLED:
        return drawing.empty(try_view.NOTHING)
    return '<p class="quiet">The base model, as it comes. A tuned one appears in the list once a run is done.</p>'


def _views(view, mine: bool) -> list:
    """Which views there are, and whether there is a card: only with runs of one's own can answers be voted on and published."""
    offered = [BOTH, TUNED, BASE, *([BLIND] if mine else [])]
    return [gr.update(choices=offered, value=view if view in offered else BOTH), gr.update(interactive=mine)]


def _about(subject: chat.Subject) -> str:
    words = f'<p class="quiet">{drawing.text(subject.label)}, on {drawing.text(subject.base["what"])}.</p>'
    return words + (drawing.notice(subject.note) if subject.note else "")
