"""The two starters for labels from a terminal: checked, quoted, trained, reported, asked, published and verified."""

import json
import os
import subprocess
import sys
import tomllib

import pytest

from tests import starters
from tests.drawn import coded, shape
from tests.hub_client import ALICE, ROOT
from tests.stand_in_hub import StandInHub
from tuner import starter

MINILM = "sentence-transformers/all-MiniLM-L6-v2"


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with StandInHub() as server:
        if starter.of(MINILM).is_installed():
            starters.serve(server, MINILM, tmp_path_factory.mktemp("starter-home"))
        yield server


@pytest.mark.parametrize("preset, task, settings, measured", [
    ("library-desk", "text_labels", ["max_steps=3", "evaluations=1", "feature_distillation=0"], 400),
    ("digits", "image_labels", ["epochs=1", "evaluations=1"], 20),
])
def test_a_preset_goes_from_its_check_to_its_published_classifier(hub, tmp_path, preset, task, settings, measured):
    if task == "text_labels" and not starter.of(MINILM).is_installed():
        pytest.skip("the encoder's package is not installed")
    path = str(ROOT / "presets" / f"{preset}.toml")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment = kept | {
        "HF_ENDPOINT": hub.url, "HF_TOKEN": ALICE, "HF_HOME": str(tmp_path / "hf"), "TUNER_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1",
    }

    def tuner(*words: str) -> str:
        its = subprocess.run([sys.executable, "-m", "tuner", *words], capture_output=True, text=True, timeout=300, cwd=ROOT, env=environment)
        assert its.returncode == 0, its.stdout + its.stderr
        return its.stdout

    told = json.loads(tuner("check", str(ROOT / "presets" / tomllib.loads((ROOT / "presets" / f"{preset}.toml").read_text("utf-8"))["dataset"]), "--json"))
    assert told["task"] == task and told["receipt"]["train_rows"] > 0
    quoted = json.loads(tuner("quote", path, *settings, "--json"))
    assert quoted["memory_gib"] > 0 and quoted["steps"] > 0
    done = json.loads(tuner("train", path, *settings, "--json").splitlines()[-1])
    assert done["state"] == "done" and done["report"]["held_out_rows"] >= measured
    assert "frozen" in tuner("report", done["run"])
    (tmp_path / "one.png").write_bytes(coded(shape("disc", 99)))
    answer = json.loads(tuner("chat", done["run"], "--prompt", str(tmp_path / "one.png") if task == "image_labels" else "Why was I charged two euros?", "--json"))
    assert set(answer["tuned"]) == set(done["report"]["classes"]) and abs(sum(answer["tuned"].values()) - 1) < 1e-4
    pushed = json.loads(tuner("push", done["run"], preset, "--json"))
    assert (pushed["state"], pushed["repo_id"]) == ("verified", f"alice/{preset}")
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors", "config.json"} <= set(hub.repos["model", f"alice/{preset}"].files)
