"""A deliberately bad recipe on the real starter: far too many epochs on forty rows. It is said, and the best step is kept."""

import json
from pathlib import Path

import pytest

from tests.small_run import adapter_hash, events
from tuner import data, starter
from tuner import run as runs
from tuner.errors import UserError
from tuner.recipe import Recipe

ROWS, HELD_OUT = 40, 24
HEADLINES = Path(__file__).resolve().parent.parent / "presets" / "data" / "headlines.jsonl"

pytestmark = pytest.mark.skipif(not starter.is_installed(), reason="the starter model's package is not installed")


@pytest.fixture
def starter_home(tmp_path, monkeypatch):
    """A home of its own over the converted starter, which takes a minute to convert."""
    try:
        models = starter.prepare().parent
    except UserError as error:
        pytest.skip(str(error))
    home = tmp_path / "home"
    home.mkdir()
    (home / "models").symlink_to(models)
    monkeypatch.setenv("TUNER_HOME", str(home))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return home


def test_memorising_is_said_and_the_best_step_is_kept(starter_home):
    records = [json.loads(line) for line in HEADLINES.read_text("utf-8").splitlines()]
    kept = [{**its, "split": "train"} for its in records if its.get("split") != "test"][:ROWS]
    held = [{**its, "split": "test"} for its in records if its.get("split") == "test"][:HELD_OUT]
    recipe = Recipe(learning_rate=2e-3, epochs=18.0, batch_size=8, max_tokens=256, evaluations=9, patience=0, schedule="constant")
    run = runs.create("local", recipe, data.keep("local", "Too few", kept + held, {"kind": "file"}))
    runs.start(run).join()
    assert run.state() == "done", run.error() or runs.last_words(run)
    said = [event for event in events(run, "note") if event.get("rule") == "memorising"]
    measured = {event["step"]: event["loss"] for event in events(run, "eval")}
    best = min(measured, key=measured.get)
    assert len(said) == 1, [event["message"] for event in events(run, "note")]
    assert "it is memorising" in said[0]["message"] and f"The version of step {best:,} is kept" in said[0]["message"]
    assert 0 < best < max(measured) and measured[max(measured)] > 1.1 * measured[best]
    assert adapter_hash(run.adapter_dir) == adapter_hash(run.folder / "checkpoints" / f"checkpoint-{best}")
    report = run.read("report")
    assert report["best_step"] == best and report["tuned"]["loss"] < report["base"]["loss"]
    assert any(f"The version of step {best} is kept, not that of the last step ({max(measured)})" in line for line in report["says"]), report["says"]
    assert said[0]["message"] in report["says"], "the report says why"
