"""Blind comparisons: nobody learns who is who before the vote, each vote counts once, and only for its owner and adapter."""

import json
import shutil
import threading
import time

import pytest

from tests.small import base_entry
from tests.small_run import RECORDS
from tuner import blind, data, figures
from tuner import run as runs
from tuner.errors import UserError
from tuner.home import write_json
from tuner.recipe import Recipe


class Worker:
    """Answers "base" or "tuned" letter by letter, left and right in turn."""

    def __init__(self, fail=False):
        self.asked, self.fail = [], fail

    def answers(self, asked, **sampling):
        self.asked.append((asked, sampling))
        for place in range(4):
            for who, (_, _, tuned) in asked.items():
                yield who, ("tuned" if tuned else "base")[place]
        if self.fail:
            raise UserError("The chat process ended in the middle.")


@pytest.fixture
def run(home):
    """A folder that says it is done; no model is needed to count votes."""
    its = runs.create("ann", Recipe(base_model="test/small"), data.keep("ann", "Animals", RECORDS, {"kind": "paste"}))
    its.adapter_dir.mkdir()
    (its.adapter_dir / "adapter_model.safetensors").write_bytes(b"weights")
    write_json(its.folder / "base.json", base_entry(home))
    plan = dict.fromkeys(("precision", "attention", "dequantised", "kept_16bit", "device"), "") | {"base_sha256": ""}
    write_json(its.folder / "plan.json", plan)
    write_json(its.folder / "done", {"state": "done"})
    return its


def ask(run, worker=None) -> tuple[str, dict]:
    test = blind.begin("ann", run.id)
    said = {"left": "", "right": ""}
    for side, piece in blind.answers("ann", run.id, test, worker or Worker(), "Hello?", max_new_tokens=8):
        said[side] += piece
    return test, said


def events(run) -> list[dict]:
    return [json.loads(line) for line in (run.folder / "votes.jsonl").read_text().splitlines()]


def test_a_vote_counts_for_whoever_stood_there(run):
    """Whatever side is voted for, it is the model that answered there that gets the vote; told after it, not before."""
    for better in ("left", "right", "same", "left"):
        test, said = ask(run)
        names = blind.vote("ann", run.id, test, better)
        assert {side: name[:4] for side, name in names.items()} == {side: text[:4] for side, text in said.items()}
        assert events(run)[-1]["better"] == names.get(better, "same")
    counted = blind.tally(run)
    votes = [event["better"] for event in events(run) if event["kind"] == "vote"]
    assert [counted[name] for name in ("tuned", "base", "same")] == [votes.count(name) for name in ("tuned", "base", "same")]
    assert counted["same"] == 1 and counted["share"] == counted["tuned"] / 3
    assert (counted["low"], counted["high"]) == figures.wilson(counted["tuned"], 3)


def test_the_order_is_random_and_the_id_does_not_tell(run):
    sides = []
    for _ in range(60):
        test = blind.begin("ann", run.id)
        assert "tuned" not in test and "base" not in test
        sides.append(events(run)[-1]["tuned"])
    assert 12 <= sides.count("left") <= 48


def test_left_is_asked_first_whoever_it_is(run):
    """The order of the pieces would tell otherwise; both get the same message and the same settings."""
    worker = Worker()
    for _ in range(20):
        ask(run, worker)
    firsts = set()
    for asked, sampling in worker.asked:
        assert list(asked) == ["left", "right"] and sampling == {"max_new_tokens": 8}
        assert asked["left"][1] == asked["right"][1] == [{"role": "user", "content": "Hello?"}] and asked["left"][2] != asked["right"][2]
        firsts.add(asked["left"][2])
    assert firsts == {True, False}


def test_nothing_is_shown_before_both_have_begun(run):
    """An adapter that is loaded first would show by the pause."""
    class Late:
        def answers(self, asked, **_):
            yield from (("left", "a"), ("left", "b"), ("right", "c"), ("left", "d"))

    test = blind.begin("ann", run.id)
    assert list(blind.answers("ann", run.id, test, Late(), "Hello?")) == [("left", "ab"), ("right", "c"), ("left", "d")]
    class Silent:
        def answers(self, asked, **_):
            yield from (("right", "a"), ("right", "b"))

    test = blind.begin("ann", run.id)
    assert list(blind.answers("ann", run.id, test, Silent(), "Hello?")) == [("left", ""), ("right", "ab")]


def test_what_is_asked_and_said_is_kept_and_only_added_to(run):
    test, said = ask(run)
    before = (run.folder / "votes.jsonl").read_bytes()
    kept = events(run)[-1]
    assert kept["prompt"] == "Hello?" and {side: kept[side] for side in said} == said and kept["id"] == test
    blind.vote("ann", run.id, test, "same")
    assert (run.folder / "votes.jsonl").read_bytes().startswith(before)


def test_who_may_not_vote(run):
    test, _ = ask(run)
    with pytest.raises(UserError, match="is not among yours"):
        blind.vote("bob", run.id, test, "left")
    with pytest.raises(UserError, match="is not among yours"):
        blind.begin("bob", run.id)
    with pytest.raises(UserError, match="'both' is no vote"):
        blind.vote("ann", run.id, test, "both")
    with pytest.raises(UserError, match="no such comparison"):
        blind.vote("ann", run.id, "0123456789abcdef", "left")
    blind.vote("ann", run.id, test, "left")
    with pytest.raises(UserError, match="voted on these two answers already"):
        blind.vote("ann", run.id, test, "right")
    waiting = blind.begin("ann", run.id)
    with pytest.raises(UserError, match="not whole yet"):
        blind.vote("ann", run.id, waiting, "left")
    with pytest.raises(UserError, match="ended in the middle"):
        list(blind.answers("ann", run.id, waiting, Worker(fail=True), "Hello?"))
    with pytest.raises(UserError, match="not whole yet"):
        blind.vote("ann", run.id, waiting, "left")
    (run.folder / "done").unlink()
    with pytest.raises(UserError, match="has no tuned model yet"):
        blind.begin("ann", run.id)
    assert blind.tally(run)["tuned"] + blind.tally(run)["base"] == 1


def test_two_clicks_at_once_are_one_vote(run, monkeypatch):
    test, _ = ask(run)
    told, append = [], blind._append
    monkeypatch.setattr(blind, "_append", lambda *its: (time.sleep(0.02), append(*its)))  # between the look and the vote

    def click():
        try:
            told.append(blind.vote("ann", run.id, test, "left"))
        except UserError as error:
            told.append(str(error))

    threads = [threading.Thread(target=click) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(isinstance(its, dict) for its in told) == 1 and sum(event["kind"] == "vote" for event in events(run)) == 1


def test_votes_on_an_earlier_adapter_do_not_count(run):
    """A stopped run that was trained further is another model."""
    test, _ = ask(run)
    blind.vote("ann", run.id, test, "same")
    assert blind.tally(run)["same"] == 1
    shutil.rmtree(run.adapter_dir)
    run.adapter_dir.mkdir()
    (run.adapter_dir / "adapter_model.safetensors").write_bytes(b"other weights")
    assert blind.tally(run) == {"tuned": 0, "base": 0, "same": 0, "share": None, "low": 0.0, "high": 1.0}


@pytest.mark.parametrize("counted, said", [
    ((0, 0, 0), ""),
    ((1, 0, 0), "In 1 blind comparison the tuned model was better once, the base model never, and they were the same never. Of those decided, 100 % went to the tuned model (95 % interval 21 to 100 %). That is too few votes, or too even, to tell."),
    ((0, 0, 2), "In 2 blind comparisons the tuned model was better never, the base model never, and they were the same twice."),
    ((18, 2, 3), "90 % went to the tuned model (95 % interval 70 to 97 %). The tuned model is preferred."),
    ((2, 18, 0), "The base model is preferred."),
])
def test_the_tally_in_words(counted, said):
    tuned, base, same = counted
    low, high = figures.wilson(tuned, tuned + base)
    share = tuned / (tuned + base) if tuned + base else None
    found = blind.words({"tuned": tuned, "base": base, "same": same, "share": share, "low": low, "high": high})
    assert found == said or said and found.endswith(said)


def test_the_tally_goes_into_the_card_only_when_asked_for(run):
    assert not blind.is_in_card(run)
    blind.show_in_card("ann", run.id, True)
    assert blind.is_in_card(run)
    blind.show_in_card("ann", run.id, False)
    assert not blind.is_in_card(run)
    with pytest.raises(UserError, match="is not among yours"):
        blind.show_in_card("bob", run.id, True)
