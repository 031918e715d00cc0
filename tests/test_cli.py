"""The engine from a terminal: what each verb prints, and how it ends."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub_client import ALICE, ROOT, Client
from tests.small_run import RECORDS
from tests.stand_in_hub import Fault, StandInHub

RECIPE = """
title = "Animals"
base_model = "test/small"
dataset = "rows.jsonl"
learning_rate = 5e-3
lora_rank = 4
epochs = 2
batch_size = 4
held_out_share = 0.2
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a recipe, its rows, and a TUNER_HOME."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "animals.toml").write_text(RECIPE)
    (folder / "rows.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    return folder


@pytest.fixture(scope="module")
def hub(base):
    with StandInHub() as server:
        server.add_repo("test/small", files={path.name: path.read_bytes() for path in base.iterdir()})
        yield server


@pytest.fixture(scope="module")
def tuner(hub, place, tmp_path_factory):
    """Run a command line, all of them in one process: its exit code, standard output and standard error."""
    client = Client(hub.url, tmp_path_factory.mktemp("client"), HF_TOKEN=ALICE, TUNER_HOME=str(place / "home"))

    def run(*argv: str) -> tuple[int, str, str]:
        code, out, err = client(f"""
            import contextlib, io, os
            from tuner import cli
            os.chdir({str(place)!r})
            out, err = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                try:
                    code = cli.main({list(map(str, argv))!r})
                except SystemExit as ended:
                    code = ended.code
            result = [code, out.getvalue(), err.getvalue()]
        """)
        assert "Traceback" not in out + err
        return code, out, err

    yield run
    client.close()


@pytest.fixture(scope="module")
def process(hub, place, tmp_path_factory) -> subprocess.CompletedProcess:
    """`python -m tuner train` in a process of its own, as a person calls it, without a login."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment = kept | {
        "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path_factory.mktemp("hf_home")), "TUNER_HOME": str(place / "home"),
        "NO_PROXY": "127.0.0.1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
    }
    before = len(hub.requests)
    done = subprocess.run(
        [sys.executable, "-m", "tuner", "train", "animals.toml", "--json", "seed=3", "max_steps=5"],
        env=environment, cwd=place, capture_output=True, text=True, timeout=100,
    )
    assert {request.token for request in hub.requests[before:]} == {None}
    return done


@pytest.fixture(scope="module")
def trained(process) -> dict:
    """What `train --json` prints at its end."""
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


def test_train_prints_json_and_nothing_else(process, trained):
    events = [json.loads(line) for line in process.stdout.splitlines()][:-1]
    assert {event["kind"] for event in events} - {"note"} == {"status", "step", "eval", "sample", "result"}
    assert [event["step"] for event in events if event["kind"] == "step"] == [1, 2, 3, 4, 5]
    assert trained["state"] == "done" and trained["report"]["change"] < 0
    assert Path(trained["folder"], "done").is_file() and Path(trained["folder"], "adapter", "adapter_model.safetensors").is_file()
    assert "5/5" in process.stderr and "Traceback" not in process.stderr and "Warning" not in process.stderr


def test_train_holds_out_as_many_rows_as_its_report_has_the_time_for(place, hub, tmp_path_factory):
    """Measured first where that would decide; on the run's own word where it says a number."""
    client = Client(hub.url, tmp_path_factory.mktemp("client"), HF_TOKEN=ALICE, TUNER_HOME=str(tmp_path_factory.mktemp("measured")))
    try:
        found = client(f"""
            from dataclasses import replace
            from pathlib import Path
            from tuner import cli, data, hub, machine, quote, recipe
            folder, measured = Path({str(place)!r}), []
            asked = recipe.load(folder / "animals.toml")
            rows = data.from_recipe("local", asked, folder, hub.own_token())
            said = lambda its: cli._settled(its, rows).held_out_rows
            slow = replace(machine.reach(), gemm_gflops=1e-3)
            machine.begin_measuring = lambda: not measured
            def measure():
                measured.append(True)
                machine.reach = lambda kind="fast": slow
            machine.wait_until_measured = measure
            result = [said(asked), len(measured)]  # all of four: never fewer than fifty
            quote.FEWEST_HELD_OUT = 2
            result += [said(asked), len(measured), said(asked), said(replace(asked, held_out_rows=3)), len(measured)]
            result += [said(replace(asked, base_model="nobody/nothing"))]
            cli._FEW_ROWS = 10  # then the first of them stand for all
            result += [said(asked)]
        """)
        assert found == [0, 0, 2, 1, 2, 3, 1, 0, 2]
    finally:
        client.close()


def test_settings_on_the_command_line_reach_the_run(trained):
    recipe = (Path(trained["folder"]) / "recipe.toml").read_text()
    assert trained["state"] == "done" and "max_steps = 5" in recipe and "seed = 3" in recipe and "lora_rank = 4" in recipe


def test_runs_lists_them(tuner, trained):
    code, out, _ = tuner("runs", "--json")
    its = next(run for run in json.loads(out) if run["id"] == trained["run"])
    assert code == 0 and its["state"] == "done" and its["title"] == "Animals" and its["base_model"] == "test/small"
    assert its["curve"][0][0] == 0 and its["best_loss"] < its["first_loss"]
    code, out, _ = tuner("runs")
    assert code == 0 and f"{trained['run']}  done" in out


def test_report_gives_the_same_numbers_each_time(home, trained, place, monkeypatch, capsys):
    from tuner import cli

    monkeypatch.setenv("TUNER_HOME", str(place / "home"))
    reports = []
    for _ in range(2):
        assert cli.main(["report", trained["run"], "--json"]) == 0
        reports.append(json.loads(capsys.readouterr().out))
    assert reports[0] == reports[1] == trained["report"]
    assert cli.main(["report", trained["folder"]]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert f"Loss (nats a token) {reports[0]['base']['loss']:.4f} -> {reports[0]['tuned']['loss']:.4f}" in out and reports[0]["says"][0] in out


def test_chat_answers_a_prompt(tuner, trained):
    code, out, _ = tuner("chat", trained["run"], "--prompt", "Where is the cat?", "--base", "--max-new-tokens", "8", "--json")
    once = json.loads(out)
    assert code == 0 and set(once) == {"prompt", "base", "tuned"} and once["tuned"] and once["base"] != once["tuned"]


class Echo:
    """In the worker's place: says how many turns it was shown, and the last."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def answer(self, subject, messages, **more):
        yield from (f"{len(messages)} ", messages[-1]["content"])


def test_chat_goes_on_line_by_line(home, trained, place, monkeypatch, capsys):
    from tuner import chat, cli

    monkeypatch.setenv("TUNER_HOME", str(place / "home"))
    monkeypatch.setattr(chat, "Worker", Echo)
    monkeypatch.setattr("builtins.input", lambda prompt, lines=iter(["Where?", " ", "And the dog?"]): print(prompt, end="") or next(lines, None) or raise_end())
    assert cli.main(["chat", trained["run"], "--json"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert told == [{"prompt": "Where?", "tuned": "1 Where?"}, {"prompt": "And the dog?", "tuned": "3 And the dog?"}]


def raise_end():
    raise EOFError


def test_check_says_what_would_be_learned(tuner):
    code, out, _ = tuner("check", "rows.jsonl", "base_model=test/small", "max_tokens=90", "--json")
    told = json.loads(out)
    assert code == 0 and told["format"] == "pair" and told["records"] == 20 and told["train_rows"] + told["held_out_rows"] == 20
    assert 0 < told["learned_tokens"] < told["tokens"] and told["longest"] > 90
    found = {its["name"]: its for its in told["findings"]}
    assert found["cut"]["rows"] > 0 and len(found["cut"]["first_rows"]) == found["cut"]["rows"] and found["cut"]["fixes"] == ["split", "drop"]
    assert told["receipt"]["rows_out"] == 20 and len(told["receipt"]["sha256"]) == 64
    code, out, _ = tuner("check", "rows.jsonl", "base_model=test/small")
    assert code == 0 and "20 records, read as pair" in out


def test_check_puts_right_and_writes_what_comes_out(tuner, place):
    rows = [*RECORDS, *RECORDS[:3], {"prompt": "Who?", "completion": "Ask ann@company.org."}, {"prompt": "Why?", "completion": " "}]
    (place / "faulty.jsonl").write_text("".join(json.dumps(record) + "\n" for record in rows))
    before = (place / "faulty.jsonl").read_bytes()
    code, out, _ = tuner("check", "faulty.jsonl", "base_model=test/small", "--json")
    found = {its["name"]: its["rows"] for its in json.loads(out)["findings"]}
    assert code == 0 and (found["duplicate"], found["personal"], found["empty_answer"]) == (3, 1, 1)
    code, out, _ = tuner(
        "check", "faulty.jsonl", "base_model=test/small", "--fix", "duplicate", "--fix", "personal=mask", "--out", "clean.jsonl", "--json"
    )
    told = json.loads(out)
    assert code == 0 and not {"duplicate", "personal"} & {its["name"] for its in told["findings"]}
    assert [(step["step"].split(":")[0], step["rows"]) for step in told["receipt"]["steps"]] == [
        ("Empty answers", 1), ("Exact duplicates", 3), ("Personal data", 1),
    ]
    written = [json.loads(line) for line in (place / "clean.jsonl").read_text().splitlines()]
    assert len(written) == told["receipt"]["rows_out"] == 21
    assert written[-1]["messages"][-1]["content"] == "Ask [EMAIL]."
    assert (place / "faulty.jsonl").read_bytes() == before
    code, out, err = tuner("check", "faulty.jsonl", "base_model=test/small", "--out", "clean.jsonl")
    assert code == 1 and "clean.jsonl is there already" in err
    for fix, words in (("nonsense", "There is no finding 'nonsense'"), ("duplicate=mask", "duplicate cannot be put right by 'mask'. What can be done: deduplicate")):
        code, out, err = tuner("check", "faulty.jsonl", "base_model=test/small", "--fix", fix)
        assert code == 1 and words in err


def test_check_is_strict_where_it_is_asked_to_be(tuner, place):
    """Findings alone are no fault; one that stops a run is, with --strict."""
    long = [{"prompt": "word " * 200 + str(number), "completion": "b"} for number in range(12)]
    (place / "long.jsonl").write_text("".join(json.dumps(record) + "\n" for record in long))
    asked = ("check", "long.jsonl", "base_model=test/small", "max_tokens=64")
    assert tuner(*asked)[0] == 0 and tuner(*asked, "--strict")[0] == 1
    assert "Nothing to learn from" in tuner(*asked)[1]
    assert tuner("check", "rows.jsonl", "base_model=test/small", "max_tokens=90", "--strict")[0] == 0


def test_quote_says_what_a_recipe_needs(tuner):
    code, out, _ = tuner("quote", "animals.toml", "--json")
    told = json.loads(out)
    assert code == 0 and told["steps"] == 8 and told["memory_gib"] == pytest.approx(sum(told["memory"].values())) and told["memory_gib"] > 0.1
    assert told["seconds"] == pytest.approx(sum(told["time"].values())) and told["seconds"] > 1 and told["fits"] and told["dollars"] == 0
    assert {"cpu-basic", "l4x1", "a100-large"} <= {its["flavour"] for its in told["hardware"]} and told["proposals"] == []
    code, out, _ = tuner("quote", "animals.toml", "epochs=4")
    assert code == 0 and out.startswith("16 steps,")


def test_push_publishes_and_verifies(tuner, trained, hub):
    """The second time nothing is sent again, but it is compared again."""
    code, out, err = tuner("push", trained["run"], "animals", "--json")
    told = json.loads(out)
    assert code == 0 and (told["state"], told["repo_id"], told["private"]) == ("verified", "alice/animals", True), err
    assert err.splitlines()[0] == "Checking ..." and "Downloading it again and comparing ..." in err
    assert re.search(r"^Pushing (\d+\.\d) of \1 MB", err, re.MULTILINE)
    code, out, _ = tuner("push", trained["run"], "alice/animals")
    assert code == 0 and out == f"Published privately and verified: {hub.url}/alice/animals\n"
    assert len(hub.repos["model", "alice/animals"].commits) == 2
    assert re.search(r"small probe, \d+ items by log-likelihood", hub.repos["model", "alice/animals"].files["README.md"].decode())
    held = hub.repos["model", "alice/animals"].files
    hub.add_repo("alice/animals", files={**held, "tuner.json": held["tuner.json"].replace(trained["run"].encode(), b"20260101-120000-0a1b2c3d")})
    code, out, err = tuner("push", trained["run"], "animals")
    assert code == 1 and "holds the adapter of another run of yours" in err and "To replace it, add --replace --public." in err
    code, out, err = tuner("push", trained["run"], "animals", "--replace")
    assert code == 1 and "It is public: everybody sees at once" in err and len(hub.repos["model", "alice/animals"].commits) == 1
    code, out, _ = tuner("push", trained["run"], "animals", "--replace", "--public")
    assert code == 0 and out.startswith("Published for everybody and verified:") and len(hub.repos["model", "alice/animals"].commits) == 2
    code, _, err = tuner("push", trained["run"], "bob/animals")
    assert code == 1 and "'bob' is not the account you are logged in with (alice)" in err


def test_push_that_is_not_verified_is_exit_code_1(tuner, trained, hub):
    """For everybody to see, and with a file that comes back other than it went."""
    def spoil(server):
        files = server.repos["model", "alice/open"].files
        files["tuner.json"] = files["tuner.json"].replace(b"made_with", b"made_With")

    hub.faults.append(Fault(spoil, method="HEAD|GET", path="alice/open/resolve/.*tuner.json"))
    code, out, err = tuner("push", trained["run"], "open", "--public", "--json")
    assert code == 1 and "but NOT verified: tuner.json came back from alice/open other than it was sent" in json.loads(out)["error"][0]
    assert hub.repos["model", "alice/open"].private is False


@pytest.mark.parametrize("argv, words", [
    (["train", "no-such.toml"], "There is no recipe file no-such.toml"),
    (["train", "animals.toml", "lora_rnak=3"], "There is no setting lora_rnak. Did you mean lora_rank?"),
    (["train", "animals.toml", "learning_rate=1e9", "lora_rank=0"], "lora_rank is 0; it must be between 1 and 512"),
    (["train", "animals.toml", "epochs"], "'epochs' is not a setting. Write it as field=value"),
    (["train", "animals.toml", "dataset=no-such.jsonl"], "There is no file no-such.jsonl"),
    (["train", "animals.toml", "base_model=test/none"], "test/none does not exist on the Hub"),
    (["train", "rows.jsonl"], "rows.jsonl is not valid TOML"),
    (["chat", "no-such-run", "--prompt", "hi"], "is neither one of your runs nor a Hub id"),
    (["chat", "test/small", "--prompt", "hi"], "test/small is not a PEFT adapter with safetensors weights"),
    (["check", "animals.toml"], "ends in '.toml'"), (["check", "no-such.csv"], "There is no file no-such.csv"),
    (["quote", "animals.toml", "dataset="], "The recipe names no dataset"),
    (["report", "no-such-run"], "is not among yours"), (["report", "../.."], "is not known here"),
    (["push", "no-such-run", "name"], "is not among yours"),
])
def test_what_a_person_can_put_right_is_exit_code_1_and_one_message(tuner, argv, words):
    code, out, err = tuner(*argv)
    assert code == 1 and words in err and "tuner: " in err and out == ""
    code, out, _ = tuner(*argv, "--json")
    assert code == 1 and words in " ".join(json.loads(out.splitlines()[-1])["error"])


def test_more_that_is_refused_about_a_run(tuner, trained):
    for argv, words in (
        (["train", trained["run"]], "This run is done. Start a new one"),
        (["train", trained["run"], "epochs=2"], "A run's settings cannot be changed once it exists"),
        (["chat", trained["run"], "--prompt", " "], "The prompt is empty"),
        (["chat", trained["run"], "--prompt", "hi", "--temperature", "9"], "Temperature is 9.0; it must be between 0 and 2"),
        (["push", trained["run"], "a--b"], "is not a name the Hub takes"),
    ):
        code, out, err = tuner(*argv)
        assert code == 1 and words in err and out in ("", "tuned: "), argv


def test_a_base_that_cannot_be_had_leaves_a_failed_run_with_its_reason(tuner):
    tuner("train", "animals.toml", "base_model=test/none")
    newest = json.loads(tuner("runs", "--json")[1])[0]
    assert newest["state"] == "failed" and newest["base_model"] == "test/none"


@pytest.mark.parametrize("argv", [[], ["no-such-verb"], ["train"], ["push", "run"], ["chat", "run", "--max-new-tokens", "many"], ["runs", "--no-such"]])
def test_wrong_usage_is_exit_code_2(tuner, argv):
    code, out, err = tuner(*argv)
    assert code == 2 and "usage: python -m tuner" in err and out == ""


def test_help_is_exit_code_0(tuner):
    code, out, _ = tuner("--help")
    assert code == 0
    for verb in ("train", "chat", "check", "quote", "report", "push", "runs"):
        assert verb in out
