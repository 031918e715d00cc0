"""The page's handlers as clicks reach them: a second Start waits, its place is told, leaving is one click; the owner's panel."""

import pytest

from tests import clicks
from tests.small_run import RECORDS
from tuner import data, lease, limits, machine, quote, sizes
from tuner import run as runs
from tuner.home import write_json
from tuner.ui import run_view, train_tab


@pytest.fixture(scope="module")
def handlers():
    return clicks.handlers("train_tab", "my_runs", "trial_view", "queue_view")


@pytest.fixture
def click(handlers, home, monkeypatch):
    """Call a handler by its parameters' names; gives what it puts on the page, one value a component."""
    monkeypatch.setattr(runs, "_fetch_and_train", lambda *_: None)
    return lambda what, /, *form, **values: clicks.call(handlers[what], *form, **values)


@pytest.fixture
def form(home):
    """A dataset, and the form as the page opens with it, on a base that nobody can have."""
    from tuner import recipe as recipes
    from tuner.ui.train_tab import FORM

    first = next(iter(recipes.presets().values()))
    return data.keep("local", "Rows", RECORDS, {"kind": "paste"}).id, [{"base_model": "test/small"}.get(name, getattr(first, name)) for name in FORM]


def test_a_second_start_waits_and_says_its_place_and_leaves_by_one_click(click, form, home):
    dataset_id, settings = form
    lease.line_up("other", "bob", seconds=600.0)
    assert lease._begin("other")
    shown = click("start", *settings, dataset_id=dataset_id, preset="headlines", publishing=False, name="", keep=False)
    run_id = shown[0]
    assert "1 run is ahead: it is training now. Your turn comes in about 10 minutes." in shown[1] and "bob" not in str(shown)
    assert click("start", *settings, dataset_id=dataset_id, preset="headlines", publishing=False, name="", keep=False)[0] == run_id, "the same click"
    settings[settings.index("test/small")] = "test/other"
    second = click("start", *settings, dataset_id=dataset_id, preset="headlines", publishing=False, name="", keep=False)
    assert second[0] != run_id and "2 runs are ahead: one is training now, 1 waits." in second[1]
    seen = shown[13]
    assert click("poll", run_id=run_id, seen=seen)[0] != shown[1], "a place that has not changed is not drawn again"
    write_json(home / "queue.json", {})  # all of them are gone from it, as when it was this run's turn
    assert "ahead" not in click("poll", run_id=run_id, seen=seen)[0]
    assert "Leaving the queue" in click("stop", run_id=run_id)[0]


def test_start_holds_out_as_many_rows_as_were_quoted(click, form, home, base, monkeypatch):
    """Once the machine is measured; what the quote says of them then is the run's own recipe. The same click stays the same, though
    the machine is thought otherwise of by then."""
    dataset_id, settings = form
    its = sizes.in_folder(base)
    monkeypatch.setattr(train_tab, "to_quote", lambda *_: (its, quote.Rows([60] * 18, 18 * 20, [60] * 2)))
    monkeypatch.setattr(quote, "FEWEST_HELD_OUT", 1)
    seen = {
        "device": "cpu", "precision": "float32", "gemm_gflops": {"float32": 1e-3}, "gb_per_s": 100.0, "op_us": 2.0, "import_s": 3.0, "import_gib": 0.5,
    }
    waited = []
    monkeypatch.setattr(machine, "begin_measuring", lambda: not waited)
    monkeypatch.setattr(machine, "wait_until_measured", lambda _: waited.append(write_json(home / "machine.json", {machine.fingerprint(): {"measured": seen}})))
    start = dict(dataset_id=dataset_id, preset="headlines", publishing=False, name="", keep=False)
    run = runs.find("local", click("start", *settings, **start)[0])
    assert len(waited) == 1 and run.recipe.held_out_rows == 1 == run.read("data/receipt")["held_out_rows"]
    assert run.read("data/receipt")["steps"][-1] == {"step": "rows kept aside, neither trained on nor measured, since the run holds out 1", "rows": 1}
    write_json(home / "machine.json", {machine.fingerprint(): {"measured": {**seen, "gemm_gflops": {"float32": 1e3}}}})
    assert click("start", *settings, **start)[0] == run.id, "the same click"
    settings[train_tab.FORM.index("epochs")] = 2.0
    other = runs.find("local", click("start", *settings, **start)[0])
    assert other.recipe.held_out_rows == 2 == other.read("data/receipt")["held_out_rows"], "all of them, said by number"


def test_a_quote_whose_machine_is_measured_meanwhile_is_asked_for_once_more(click, form, base, monkeypatch):
    dataset_id, settings = form
    here, measured = quote.here, []
    monkeypatch.setattr(train_tab, "rows_of", lambda *_: (None, None, None))
    monkeypatch.setattr(train_tab, "to_quote", lambda *_: (sizes.in_folder(base), quote.Rows([60] * 18, 18 * 20, [60] * 2)))
    monkeypatch.setattr(machine, "begin_measuring", lambda: not measured)
    monkeypatch.setattr(quote, "here", lambda *its: (here(*its), measured.append(True))[0])
    shown = click("requote", *settings, dataset_id=dataset_id)
    assert "A first estimate: this machine is being measured now." in shown[0] and shown[4].active
    assert not click("requote", *settings, dataset_id=dataset_id)[4].active


def test_the_page_says_a_run_that_was_brought_back_or_left_the_queue(click, form):
    dataset_id, settings = form
    run_id = click("start", *settings, dataset_id=dataset_id, preset="headlines", publishing=False, name="", keep=False)[0]
    run = runs.find("local", run_id)
    run.ask_stop()
    runs._never_begun(run)
    lease.leave(run_id)
    shown = click("open_run", chosen=run_id)
    assert "Not started; nothing was spent" in shown[1] and "not started" in str(shown[14])
    assert click("resume", run_id=run_id, keep=False) and run.state() == "waiting"


def test_a_list_without_runs_has_nothing_to_talk_to_and_says_what_the_start_button_says(click, form, home, monkeypatch):
    dataset_id, settings = form
    shown = click("reattach")
    start, table, chosen, chat_run, publish_run = (shown[place] for place in (7, 14, 15, 16, 17))
    assert start["value"] == "Start" and start["interactive"] and "Press Start;" in table and "minutes" not in table
    assert chosen["choices"] == [] and not chat_run["interactive"] and not publish_run["interactive"]
    with monkeypatch.context() as patch:
        patch.setattr(run_view.identity, "may_start", lambda owner: False)
        shown = click("reattach")
        assert shown[7]["value"] == "Sign in to start" and "Sign in, then press Start" in shown[14]
        assert [its["interactive"] for its in click("reattach_trial")[4:]] == [False, False]
    run_id = click("start", *settings, dataset_id=dataset_id, preset="headlines", publishing=False, name="", keep=False)[0]
    shown = click("reattach")
    assert len(shown[15]["choices"]) == 1 and not shown[16]["interactive"], "it waits and has no model yet"
    run = runs.find("local", run_id)
    runs._never_begun(run)
    write_json(run.folder / "done", {"state": "done"})
    assert click("reattach")[16]["interactive"] and click("choose", chosen=run_id)[3]["interactive"]


def test_a_form_for_another_task_than_the_rows_waits_for_the_one_that_follows_them(click, form):
    """The page asks for a quote as soon as other rows are there, and its form is changed a moment later."""
    dataset_id, settings = form
    assert all(its == {"__type__": "update"} for its in click("requote", "text_labels", *settings[1:], dataset_id=dataset_id))
    assert all(its == {"__type__": "update"} for its in click("requote", *settings, dataset_id=""))


def test_start_cannot_be_pressed_while_new_runs_are_paused(click):
    panel, label, *starts = click("pause")
    assert len(starts) == 2 and all(its["value"] == "New runs are paused" and not its["interactive"] for its in starts)
    shown = click("reattach")
    assert not shown[7]["interactive"] and "paused by the owner" in shown[14]
    assert [its["interactive"] for its in click("reattach_trial")[4:]] == [False, False]
    assert all(its["interactive"] and its["value"] == "Start" for its in click("pause")[2:])
    assert [its["interactive"] for its in click("reattach_trial")[4:]] == [True, True]


def test_the_panel_is_the_owners(click, monkeypatch):
    assert click("open_panel")[0]["visible"] and "nobody trains or waits" in click("look")[0]
    click("pause")
    assert limits.is_paused() and "New runs are paused" in click("look")[0]
    click("pause")
    assert not limits.is_paused() and "GiB came free" in click("free")[0]
    from tuner.ui import queue_view

    monkeypatch.setattr(queue_view.stewardship, "is_owner", lambda name: False)
    assert not click("open_panel")[0]["visible"]
    for name in ("look", "pause", "free"):
        with pytest.raises(Exception, match="Only the owner of this Space"):
            click(name)
    assert not limits.is_paused()
