"""What plain PEFT says of a published adapter: the same, other, nothing at all; and what the page says when it cannot be asked."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.hub_client import ALICE, Client
from tests.stand_in_hub import StandInHub
from tuner import machine, publish, verify
from tuner import run as runs
from tuner.errors import UserError


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    """A finished run in a home of its own."""
    shutil.copytree(trained, tmp_path / "home")
    monkeypatch.setenv("TUNER_HOME", str(tmp_path / "home"))
    return runs.mine("local")[0]


def ask(run, published: Path, **changes) -> dict:
    plan = run.read("plan")
    return verify.compare({
        "base_dir": run.read("base")["dir"], "own_dir": str(run.adapter_dir), "published_dir": str(published), "task": "chat",
        "quantisation": "nf4", "precision": plan["precision"], "attention": plan["attention"], "kept_16bit": plan["kept_16bit"], **changes,
    })


def copy_of(run, to: Path, change=lambda tensors: tensors) -> Path:
    """The run's adapter in another folder, its tensors changed."""
    shutil.copytree(run.adapter_dir, to)
    save_file(change(load_file(to / "adapter_model.safetensors")), to / "adapter_model.safetensors")
    return to


@pytest.mark.parametrize("quantisation", ["nf4", "none"])
def test_the_same_adapter_computes_the_same(run, tmp_path, quantisation):
    found = ask(run, copy_of(run, tmp_path / "same"), quantisation=quantisation)
    assert found.keys() == {"prompts", "tokens", "moved"} and found["tokens"] > 50 and found["moved"] > 0.01


def test_one_weight_that_differs_is_seen(run, tmp_path):
    """By as little as it can differ and still be another number in bfloat16."""
    def change(tensors):
        name = next(name for name in tensors if "lora_B" in name)
        tensors[name][0, 0] += 0.5
        return tensors

    assert "computes otherwise than this run's own (by up to" in ask(run, copy_of(run, tmp_path / "changed", change))["error"]


@pytest.mark.parametrize("change, words", [
    (lambda tensors: {name: its * 0 for name, its in tensors.items()}, "changes nothing of what the base computes"),
    (lambda tensors: {f"odd.{name}": its for name, its in tensors.items()}, "changes nothing of what the base computes"),  # PEFT only warns
    (lambda tensors: {name: its * float("nan") for name, its in tensors.items()}, "numbers that are not finite"),
], ids=["zeros", "names that fit nothing", "not finite"])
def test_an_adapter_that_is_the_same_and_useless_is_seen(run, tmp_path, change, words):
    useless = copy_of(run, tmp_path / "useless", change)
    assert words in ask(run, useless, own_dir=str(useless))["error"]


def test_it_is_plain_peft_on_a_plain_base(run, monkeypatch):
    """None of what makes this project's own computing fast takes part."""
    asked = []
    monkeypatch.setattr(verify.models, "load_base", lambda *args: asked.append("load_base"))
    monkeypatch.setattr(verify.models, "load_adapter", lambda *args: asked.append("load_adapter"))
    assert "moved" in ask(run, run.adapter_dir) and not asked


def test_published_and_verified_from_end_to_end(run, base, tmp_path):
    """Over a real socket, in a child of a process that has no torch itself; then with a published file that PEFT chokes on."""
    with StandInHub() as hub:
        client = Client(hub.url, tmp_path, TUNER_HOME=str(run.folder.parents[2]))
        try:
            its, has_torch = client(f"""
                import sys
                from tuner import publish, run as runs
                its = publish.publish(runs.mine("local")[0], "animals", True, {ALICE!r}, lambda repo_id: "http://page.example/?adapter=" + repo_id)
                result = [its, "torch" in sys.modules]
            """)
        finally:
            client.close()
        files = hub.repos["model", "alice/animals"].files
    assert its["state"] == "verified" and its["verdict"]["moved"] > 0.01 and its["verdict"]["prompts"] == len(verify.PROMPTS)
    assert not has_torch and set(its["sha256"]) == set(files) - {".gitattributes"}
    assert not list(run.folder.glob(".published-*"))


def test_a_check_that_could_not_be_made_is_said(run, tmp_path, monkeypatch):
    there = copy_of(run, tmp_path / "there")
    (there / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="could not be made: its process ended with exit code 1. Push again to repeat it"):
        publish.compare(run, there, tmp_path)
    monkeypatch.setattr(machine, "memory", lambda: machine.Memory(1.0, 0.1))
    with pytest.raises(UserError, match="needs about 0.5 GiB and 0.1 GiB is free. Push again when a run or the chat has ended"):
        publish.compare(run, there, tmp_path)


def test_a_check_that_finds_a_difference_is_refused_in_its_words(run, tmp_path, monkeypatch):
    def spawn(module, question, verdict, **more):
        assert module == "tuner.verify" and json.loads(Path(question).read_text())["own_dir"] == str(run.adapter_dir)
        code = f"import pathlib; pathlib.Path({verdict!r}).write_text('{{\"error\": \"It computes otherwise.\"}}')"
        return publish.subprocess.Popen([sys.executable, "-c", code])

    monkeypatch.setattr(publish.child, "spawn", spawn)
    with pytest.raises(UserError, match="It computes otherwise."):
        publish.compare(run, run.adapter_dir, tmp_path)


