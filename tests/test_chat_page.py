"""The Chat tab's handlers as clicks reach them: a message stands there at once, and comes back where nothing was answered."""

import copy
import inspect
import textwrap

import gradio as gr
import pytest

from tuner import chat
from tuner.errors import UserError
from tuner.ui import chat_tab, conversation
from tuner.ui.chat_tab import BASE, BLIND, BOTH, TUNED
from tuner.ui.conversation import MOST_ANSWERS, PENDING
from tuner.ui.subjects import BASE_CHOICE

# What `say` gives, in its outputs' order.
TICKET, ASKED, BOX, BASE_SAID, TUNED_SAID, ABOUT, BLIND_SHOWN, BLIND_ID = range(8)

BASE_ONLY = chat.Subject("test/small", {"id": "test/small", "what": "a small one"})
BOTH_OF_THEM = chat.Subject("Animals", {"id": "test/small", "what": "a small one"}, "/adapter")


class Worker:
    """Answers with these pieces, a side after the other; a problem among them is raised."""

    def __init__(self):
        self.pieces: list = ["On ", "the mat."]
        self.asked: dict = {}

    def answers(self, asked, **_):
        self.asked = asked
        for piece in self.pieces:
            for who in asked:
                if isinstance(piece, Exception):
                    raise piece
                yield who, piece

    def close(self):
        pass


@pytest.fixture(scope="module")
def page():
    """The worker, and each handler of the tab by its name with its dependency."""
    from tuner.ui.app import Page, build

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SYSTEM", raising=False)
        worker = Worker()
        blocks = build(Page(worker))
    found = {its.fn.__name__: its for its in blocks.fns.values() if its.fn is not None and its.fn.__module__ == "tuner.ui.chat_tab"}
    return worker, found


@pytest.fixture
def click(page, home, monkeypatch):
    """Call a handler by its parameters' names; a generator that what it puts on the page comes from, each time a list."""
    worker, handlers = page
    worker.pieces = ["On ", "the mat."]
    monkeypatch.setattr(chat, "of_base", lambda *_: BASE_ONLY)
    monkeypatch.setattr(chat_tab.runs, "find", lambda *_: None)
    monkeypatch.setattr(chat, "of_run", lambda _: BOTH_OF_THEM)
    first = {"ticket": "", "choice": BASE_CHOICE, "view": BOTH, "longest": 24, "temperature": 0, "top_p": 1, "base_model": "test/small", "browser_id": ""}

    def call(what: str, **values):
        fn = handlers[what].fn
        given = fn(*[({**first, **values}).get(name) for name in inspect.signature(fn).parameters])
        for shown in given if inspect.isgenerator(given) else [given]:
            assert len(shown) == len(handlers[what].outputs), what
            yield copy.deepcopy(list(shown))

    return call


def said(*talks) -> list[list[dict]]:
    return [[dict(role=role, content=content) for role, content in zip(("user", "assistant") * 9, talk)] for talk in talks]


def is_skip(shown) -> bool:
    return isinstance(shown, dict) and set(shown) == {"__type__"}


def send(click, message: str, **values) -> tuple[list, dict]:
    """What `say` shows, and what the browser then sends with `answer`."""
    [shown] = click("say", **{"message": message, "base_said": [], "tuned_said": [], **values})
    held = {"ticket": shown[TICKET], "message": shown[ASKED], **values}
    return shown, held | {name: values.get(name, []) if is_skip(shown[at]) else shown[at] for name, at in (("base_said", BASE_SAID), ("tuned_said", TUNED_SAID))}


@pytest.mark.parametrize(("choice", "view", "base", "tuned"), [
    (BASE_CHOICE, BOTH, True, False), (BASE_CHOICE, TUNED, True, False), ("run", BOTH, True, True), ("run", TUNED, False, True), ("run", BASE, True, False),
])
def test_a_message_stands_in_the_conversation_at_once_and_is_answered_there(page, click, choice, view, base, tuned):
    """Outside Gradio's queue, so whatever others wait for; and those speak who are looked at."""
    worker, handlers = page
    assert not any(handlers[name].queue for name in ("say", "put_back", "ended", "clear")) and handlers["answer"].queue is not False
    shown, held = send(click, "  Where is the cat? ", choice=choice, view=view)
    pending = said(["Where is the cat?", PENDING])[0]
    assert (shown[ASKED], shown[BOX], shown[BASE_SAID], shown[TUNED_SAID]) == ("Where is the cat?", "", pending if base else [], pending if tuned else [])
    assert "Getting the model ready" in shown[ABOUT] and [its["interactive"] for its in shown[-2:]] == [False, True]
    *_, last = click("answer", **held)
    whole = said(["Where is the cat?", "On the mat."])[0]
    assert last[0] == (whole if base else []) and last[1] == (whole if tuned else [])
    assert all(messages == [{"role": "user", "content": "Where is the cat?"}] for _, messages, _ in worker.asked.values())
    assert set(worker.asked) == {name for name, its in (("base", base), ("tuned", tuned)) if its}
    [buttons] = click("ended", ticket=held["ticket"])
    assert [its["interactive"] for its in buttons] == [True, False]


def test_the_model_is_asked_what_was_written(page, click):
    """Gradio takes indentation out of what a conversation holds when it comes back from the browser."""
    message = "def f(x):\n\tif x:\n\t\treturn 1\n    return 0"
    _, held = send(click, message)
    held["base_said"] = said([inspect.cleandoc(message), PENDING])[0]
    list(click("answer", **held))
    assert page[0].asked["base"][1] == [{"role": "user", "content": message}]
    box = gr.Chatbot(render=False)
    sent = box.postprocess(said([textwrap.indent(message, " "), PENDING])[0]).model_dump()
    assert sent[0]["content"][0]["text"] != message, "Gradio no longer does: the ticket need not carry the message"


def test_whoever_comes_while_all_places_are_taken_is_told(click):
    going = [click("answer", **send(click, "Hi")[1]) for _ in range(MOST_ANSWERS)]
    for one in going:
        next(one)
    assert f"{MOST_ANSWERS} answers are being written, and yours comes after" in send(click, "And I?")[0][ABOUT]
    going[0].close()  # its page is gone
    assert "Getting the model ready" in send(click, "And I?")[0][ABOUT]
    for one in going:
        list(one)


def test_a_second_message_waits_in_its_box_until_the_first_is_answered(click):
    """Enter is there while Send is at rest; nothing is lost, and the two do not write over each other."""
    _, held = send(click, "Where is the cat?")
    for message in ("And the dog?", "Where is the cat?", " "):
        with pytest.raises(gr.Error, match="being answered") as told:
            list(click("say", message=message, base_said=held["base_said"], tuned_said=[], ticket=held["ticket"]))
        assert not told.value.visible
    with pytest.raises(gr.Error, match="being answered"):
        list(click("retry", base_said=held["base_said"], tuned_said=[], ticket=held["ticket"]))
    *_, last = click("answer", **held)
    assert last[0] == said(["Where is the cat?", "On the mat."])[0]
    send(click, "And the dog?", base_said=last[0], ticket=held["ticket"])


def test_what_was_stopped_while_it_waited_is_the_message_again_and_is_never_answered(page, click):
    shown, held = send(click, "Where is the cat?", choice="run")
    page[0].asked = {}
    [back] = click("put_back", **{**held, "asked": held["message"], "message": "", "blind_id": ""})
    assert back[:4] == ["Where is the cat?", [], [], ""] and [its["interactive"] for its in back[-2:]] == [True, False]
    _, again = send(click, "Where is the dog?", choice="run")
    assert all(all(map(is_skip, each)) for each in click("answer", **held)) and not page[0].asked
    [buttons] = click("ended", ticket=again["ticket"])
    assert all(map(is_skip, buttons)), "the next message is on its way"
    *_, last = click("answer", **again)
    assert last[0] == last[1] == said(["Where is the dog?", "On the mat."])[0]


@pytest.mark.parametrize("how", ["put_back", "clear", "meet"])
def test_what_is_stopped_in_the_middle_writes_no_more(page, click, how, monkeypatch):
    """Stop, Clear, another model: the answer would come back into a conversation that is over."""
    monkeypatch.setattr(chat_tab, "UPDATE_S", -1.0)
    page[0].pieces = ["On ", "the ", "mat.", UserError("It died.")]
    _, held = send(click, "Where is the cat?")
    answering = click("answer", **held)
    for _ in range(3):
        shown = next(answering)
    assert shown[0][-1]["content"] == "On "
    values = {**held, "base_said": shown[0], "asked": held["message"], "message": "", "blind_id": "", "form_task": "chat", "adapter_id": ""}
    [after] = click(how, **values)
    if how == "put_back":  # what is there of an answer stays, and so does its question
        assert all(map(is_skip, after[:5]))
    if how == "meet":  # another model may be asked the same
        assert after[:3] == ["Where is the cat?", [], []]
    # Gradio shows what came last once more when it is over: that is to be nothing.
    *_, last = answering
    assert all(map(is_skip, last))


def test_what_is_put_back_and_what_stays(click):
    before = ["Hello", "Hi."]
    base, tuned = said([*before, "Where is the cat?", PENDING], [*before, "Where is the cat?", PENDING])
    put = lambda message="", asked="Where is the cat?", **more: next(click("put_back", **{"asked": asked, "message": message, "base_said": base, "tuned_said": tuned, "blind_id": "", **more}))  # noqa: E731
    assert put()[:4] == ["Where is the cat?", *said(before, before), ""]
    # What is being written meanwhile is not overwritten.
    shown = put("Another")
    assert is_skip(shown[0]) and shown[1:3] == said(before, before)
    # Half an answer stays, and with it the question; the other side says that it never began.
    half = [*base[:-1], {"role": "assistant", "content": "On th"}]
    shown = put(base_said=half, choice="run")
    assert is_skip(shown[0]) and shown[1] == half and "before its first word" in shown[2][-1]["content"]
    # The other side's answer to the same question of another time is no half of this one.
    shown = put(tuned_said=said(["Where is the cat?", "There."])[0], view=BASE)
    assert shown[:2] == ["Where is the cat?", *said(before)] and shown[2][-1]["content"] == "There."
    # An answer that is there is left alone.
    assert all(map(is_skip, put(base_said=said(["Where is the cat?", "On the mat."])[0], tuned_said=[])[:5]))
    shown = put(base_said=[], tuned_said=[], view=BLIND)
    assert shown[0] == "Where is the cat?" and "two answers come" in shown[4]


def test_an_error_leaves_a_message_to_be_put_back(page, click, monkeypatch):
    monkeypatch.setattr(chat_tab, "UPDATE_S", -1.0)
    page[0].pieces = ["On ", UserError("The chat process ended in the middle.")]
    _, held = send(click, "Where is the cat?", base_said=said(["Hello", "Hi."])[0])
    shown = []
    with pytest.raises(gr.Error, match="ended in the middle"):
        for each in click("answer", **held):
            shown.append(each)
    assert shown[-2][0][-1]["content"] == "On "
    [back] = click("put_back", **{**held, "base_said": shown[-1][0], "asked": held["message"], "message": "", "blind_id": ""})
    assert back[:2] == ["Where is the cat?", *said(["Hello", "Hi."])]


def test_an_empty_message_changes_nothing_and_is_told(click):
    shown, held = send(click, "  ", base_said=said(["Hello", "Hi."])[0])
    assert shown[:2] == ["", ""] and all(map(is_skip, shown[2:]))
    with pytest.raises(gr.Error, match="The message is empty"):
        list(click("answer", **held))
    [back] = click("put_back", **{**held, "asked": "", "message": "", "blind_id": ""})
    assert all(map(is_skip, back[:5])) and back[5]["interactive"] is True


def test_a_blind_question_is_shown_at_once_and_the_last_vote_is_over(click):
    shown, _ = send(click, "Where is the cat?", choice="run", view=BLIND)
    assert shown[BOX] == "" and is_skip(shown[BASE_SAID]) and "Where is the cat?" in shown[BLIND_SHOWN] and shown[BLIND_ID] == ""
    assert [its["interactive"] for its in shown[8:11]] == [False] * 3


def test_a_page_that_was_closed_while_it_waited_is_forgotten(page, click, monkeypatch):
    _, held = send(click, "Where is the cat?")
    line = inspect.getclosurevars(inspect.unwrap(page[1]["say"].fn)).nonlocals["line"]
    assert held["ticket"] in line
    with monkeypatch.context() as patch:
        patch.setattr(conversation, "FORGOTTEN_S", -1.0)
        send(click, "Hi")
    assert held["ticket"] not in line
    monkeypatch.setattr(conversation, "MOST_WAITING", 3)
    last = [send(click, "Hi")[1]["ticket"] for _ in range(9)]
    assert list(line._messages) == last[-4:]
    with pytest.raises(gr.Error, match="was forgotten"):  # which puts the message back
        list(click("answer", **held))
