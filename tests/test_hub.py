"""What is said to the Hub: only what was asked for, as the visitor and nobody else, and errors in words."""

import json
import re
import shutil
import textwrap
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import save

from tests.hub_client import ALICE, BOB, Client, assert_no_token_in
from tests.stand_in_hub import Fault
from tuner import chat, chat_worker, data, figures, models, provenance, tasks
from tuner import recipe as recipes
from tuner.errors import UserError
from tuner.home import DEMO_ROOT
from tuner.recipe import STARTER_MODEL

PRELUDE = """
from dataclasses import asdict
from tuner import chat, data, hub, publish, reading, run as runs, stream, transfer
transfer.PAUSES_S = (0, 0, 0)
publish.compare = lambda run, there, folder: {}  # what plain PEFT says of it is in test_publish.py
stream.rows = lambda *asked: map(reading.plain, stream.decoded(*asked))  # in a child of its own it is in test_stream.py
run = runs.mine("local")[0]
"""
LINK = "lambda repo_id: 'https://page.example/?adapter=' + repo_id"


@pytest.fixture(scope="module")
def process(server, tmp_path_factory):
    client = Client(server.url, tmp_path_factory.mktemp("client"))
    yield client
    client.close()
    assert_no_token_in(client.log.parent)


@pytest.fixture
def hub(server):
    """The stand-in, empty. Whatever a test does, only visitors' tokens may reach it."""
    for kept in (server.repos, server.requests, server.faults):
        kept.clear()
    yield server
    assert {request.token for request in server.requests} <= {None, ALICE, BOB}


@pytest.fixture
def client(process, tmp_path, trained):
    """Runs code in a home that has one finished run; afterwards no token may be in any file there."""
    home = tmp_path / "home"
    shutil.copytree(trained, home)

    def run(code: str, **env):
        return process(PRELUDE + textwrap.dedent(code), TUNER_HOME=str(home), **env)

    run.home = home
    yield run
    assert_no_token_in(home)


def push(client, name="animals", private=True, token=ALICE):
    return client(f"result = publish.publish(run, {name!r}, {private}, {token!r}, {LINK})")


def small_files(base: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in base.iterdir()}


# Publishing -------------------------------------------------------------------------------------------------------


def test_a_push_is_private_whole_and_nothing_but_the_adapter(hub, client):
    told = push(client)
    repo = hub.repos["model", "alice/animals"]
    expected = {"state": "verified", "repo_id": "alice/animals", "url": f"{hub.url}/alice/animals", "private": True, "commit": repo.sha}
    assert expected.items() <= told.items()
    assert repo.private and len(repo.commits) == 2  # created, and one commit with everything
    assert set(repo.files) == {".gitattributes", "README.md", "adapter_config.json", "adapter_model.safetensors", "tuner.json"}
    adapter = next(client.home.glob("runs/local/*/adapter"))
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert repo.files[name] == (adapter / name).read_bytes()
    assert {request.token for request in hub.requests} == {ALICE}


def card_of(repo) -> tuple[dict, str]:
    _, front, text = repo.files["README.md"].decode().split("---\n", 2)
    return yaml.safe_load(front), text


def test_the_card_tells_the_truth(hub, client, base):
    push(client)
    repo = hub.repos["model", "alice/animals"]
    data, text = card_of(repo)
    assert data["base_model"] == "test/small" and data["base_model_relation"] == "adapter"
    assert data["library_name"] == "peft" and data["license"] == "apache-2.0" and "datasets" not in data
    report = json.loads(next(client.home.glob("runs/local/*/report.json")).read_text())
    found = {(its["dataset"]["name"], one["type"]): one["value"] for its in data["model-index"][0]["results"] for one in its["metrics"]}
    own, short = report["tuned"], report["answers"]["short"]["tuned"]
    assert found == {
        **{("held-out rows", name): round(value, 4) for name, value in (
            ("loss", own["loss"]), ("perplexity", own["perplexity"]), ("accuracy", own["token_accuracy"]), ("exact_match", short["exact_match"]),
            ("f1", short["f1"]), ("stopped", report["answers"]["tuned"]["stopped"]),
        )},
        ("Tuner's forgetting probe", "accuracy"): round(report["probe"]["questions"]["tuned"], 4),
        ("Tuner's forgetting probe", "loss"): round(report["probe"]["texts"]["tuned"], 4),
    }
    for its in map(figures.shown, figures.measures(report)):  # as the page and the terminal show them
        assert f"| {its['name']} | {its['of']} | {its['base']} | {its['tuned']} | {its['change']} |" in text
    assert report["says"] and all(words in text for words in report["says"]) and "Blind test" not in text
    for said in (
        "Trained on: a random model of two layers.", "Dataset: pasted rows, not published. 20 rows came in, 16 were trained on",
        f"{report['base']['loss']:.4f}", f"{report['tuned']['loss']:.4f}", 'from_pretrained("alice/animals")',
        "https://page.example/?adapter=alice/animals", "lora_rank = 8", "The base model's licence, [apache-2.0](https://www.apache.org/licenses/LICENSE-2.0), applies", "python -m tuner train recipe.toml dataset=FILE",
    ):
        assert said in text, said
    everything = b"".join(repo.files.values()).decode(errors="replace")
    for secret in (str(client.home), str(base), str(Path.home()), "hf_", "/tmp/", "mat 7"):
        assert secret not in everything, secret


@pytest.mark.parametrize("source, named, said", [
    ({"kind": "hub", "hub_id": "bob/rows"}, ["bob/rows"], "[bob/rows](https://huggingface.co/datasets/bob/rows)"),
    ({"kind": "hub", "hub_id": "../../etc"}, None, "rows of the author's own, not published"),
    ({"kind": "file", "file": "/home/alice/secret.csv", "name": "secret.csv"}, None, "an uploaded file, not published"),
    ({"kind": "demo", "file": "library_desk.jsonl"}, None, "Tuner's own “Library desk”"), ({"kind": "demo", "file": "/etc/passwd"}, None, "rows of the author's own, not published"),
])
def test_the_card_names_a_dataset_only_if_the_hub_has_it(hub, client, source, named, said):
    path = next(client.home.glob("runs/local/*/data/receipt.json"))
    path.write_text(json.dumps({**json.loads(path.read_text()), "source": source}))
    push(client)
    data, text = card_of(hub.repos["model", "alice/animals"])
    assert data.get("datasets") == named and f"Dataset: {said}." in text and "secret" not in text


def test_the_card_tells_the_blind_test_where_that_is_wanted(hub, client):
    path = next(client.home.glob("runs/local/*/votes.jsonl"), None)
    assert path is None
    client("""
        from tuner import blind
        worker = type("Worker", (), {"answers": lambda self, asked, **_: iter([("left", "a"), ("right", "b")])})()
        for better in ("left", "same"):
            test = blind.begin("local", run.id)
            list(blind.answers("local", run.id, test, worker, "Hello?"))
            blind.vote("local", run.id, test, better)
    """)
    push(client)
    assert "lind" not in card_of(hub.repos["model", "alice/animals"])[1]
    client("""
        from tuner import blind
        blind.show_in_card("local", run.id, True)
    """)
    push(client)
    text = card_of(hub.repos["model", "alice/animals"])[1]
    assert "## Blind test" in text and "In 2 blind comparisons the tuned model was better" in text and "Hello?" not in text


def test_a_report_of_an_older_form_is_said_before_anything_is_pushed(hub, client):
    path = next(client.home.glob("runs/local/*/report.json"))
    path.write_text(json.dumps({"base": {"loss": 2.0}, "tuned": {"loss": 1.0}}))
    with pytest.raises(UserError, match="report is missing or of an older form. Make it again: python -m tuner report"):
        push(client)
    assert ("model", "alice/animals") not in hub.repos


def test_a_title_cannot_break_out_of_the_card(hub, client):
    title = 'x"\n---\nlicense: mit\n<script>alert(1)</script> [a](http://evil) {{ 7 * 7 }} # big'
    client(f"run.rename({title!r})")
    push(client)
    data, text = card_of(hub.repos["model", "alice/animals"])
    assert data["license"] == "apache-2.0"
    for sign in ("<script", "](http://evil", "{{"):
        assert sign not in text
    assert "7 * 7" in text  # as it was written, not as a template would make of it


def recipe_of(text: str, folder: Path) -> recipes.Recipe:
    """The recipe that a card holds, as somebody would save and load it."""
    path = folder / "recipe.toml"
    path.write_text(re.search(r"```toml\n(.*?)```", text, re.DOTALL)[1])
    return recipes.load(path)


def test_the_recipe_in_the_card_is_the_run_s_in_full(hub, client, tmp_path):
    push(client)
    text = card_of(hub.repos["model", "alice/animals"])[1]
    mine = recipes.load(next(client.home.glob("runs/local/*/recipe.toml")))
    assert recipe_of(text, tmp_path) == replace(mine, title="", about="", sample_prompt="")
    assert {name for name in recipes.KNOBS if name in text} >= {"learning_rate", "lora_alpha", "warmup_share", "seed", "target_modules", "quantisation"}


def test_the_card_of_a_run_that_was_trained_longer_says_that_its_command_comes_near(hub, client):
    push(client)
    assert "trained longer" not in card_of(hub.repos["model", "alice/animals"])[1]
    plan = next(client.home.glob("runs/local/*/plan.json"))
    plan.write_text(json.dumps({**json.loads(plan.read_text()), "longer_from": 8}))
    push(client)
    assert "It was trained longer from step 8 on. This takes all steps on one schedule" in card_of(hub.repos["model", "alice/animals"])[1]


@pytest.mark.parametrize("base, source, offline, near", [
    ({"id": STARTER_MODEL, "revision": ""}, {"kind": "demo", "file": "headlines.jsonl"}, True, False), ({"id": STARTER_MODEL, "revision": ""}, {"kind": "file"}, True, False),
    ({"id": STARTER_MODEL, "revision": ""}, {"kind": "hub", "hub_id": "bob/rows"}, False, True),  # whose rows are on the Hub
    ({"id": STARTER_MODEL, "revision": "0" * 40}, {"kind": "demo"}, False, False), ({"id": "a/b", "revision": ""}, {"kind": "demo"}, False, False),
    ({"id": "tuner-presets/digits-resnet", "revision": ""}, {"kind": "demo", "file": "digits/digits-5-to-9.zip"}, False, False),  # the Hub has no other
])
def test_the_command_of_a_base_out_of_a_package_takes_it_again(base, source, offline, near):
    how, command = provenance.reproduce(recipes.Recipe(), base, {"source": source, "steps": []})
    assert command.startswith("HF_HUB_OFFLINE=1 python -m tuner train recipe.toml") == offline and ("comes near" in how) == near
    assert ("requirements-starter.txt" in how) == (offline or near)
    assert command.endswith({"demo": f"dataset=presets/data/{source.get('file')}" if "file" in source else "dataset=FILE", "file": "dataset=FILE", "hub": "recipe.toml"}[source["kind"]])


@pytest.mark.parametrize("task", tasks.TASKS)
def test_a_demo_read_as_a_file_is_known_as_what_it_is(home, tmp_path, task):
    """The card of a run at the terminal names it, and its command finds it again; a file elsewhere of the same name is nobody's."""
    file, title, _ = tasks.get(task).DEMO
    path = DEMO_ROOT / "data" / file
    load = lambda path: data.from_recipe("local", recipes.Recipe(task=task, dataset=path.name), path.parent)  # noqa: E731
    its = load(path)
    assert (its.source["kind"], its.source["file"]) == ("demo", file) and tasks.demos()[file] == title
    assert provenance.reproduce(recipes.Recipe(task=task), {"id": "a/b"}, {"source": its.source, "steps": []})[1].endswith(f"dataset=presets/data/{file}")
    other = tmp_path / path.name
    shutil.copyfile(path, other)
    assert load(other).source["kind"] == "file"


def test_the_card_of_a_hub_dataset_names_all_that_reads_it_again(hub, client, tmp_path):
    told = next(client.home.glob("runs/local/*"))
    receipt, base = told / "data" / "receipt.json", told / "base.json"
    receipt.write_text(json.dumps({**json.loads(receipt.read_text()), "source": {"kind": "hub", "hub_id": "bob/rows"}}))
    base.write_text(json.dumps({**json.loads(base.read_text()), "revision": "0" * 40}))
    mine = recipes.load(told / "recipe.toml")
    wanted = replace(mine, dataset="bob/rows", dataset_split="train", dataset_format="pair", columns={"prompt": "q", "completion": "a"})
    (told / "recipe.toml").write_text(wanted.to_toml())
    push(client)
    text = card_of(hub.repos["model", "alice/animals"])[1]
    assert recipe_of(text, tmp_path) == replace(wanted, title="", about="", sample_prompt="", base_revision="0" * 40)
    assert "python -m tuner train recipe.toml\n" in text


def test_the_card_tells_hardware_time_versions_and_limits(hub, client):
    push(client)
    text = card_of(hub.repos["model", "alice/animals"])[1]
    (folder,) = client.home.glob("runs/local/*/")
    named = json.loads((folder / "hardware.json").read_text())["name"]
    told = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    tokens = sum({event["step"]: event["tokens"] for event in told if event["kind"] == "step"}.values())  # of all steps, not of the last
    assert re.search(rf"Computed in bfloat16 on {re.escape(named)} \(cpu\); \d+\.\d minutes, {tokens:,} tokens\. Python 3\.\d+", text)
    noted = folder / "hardware.json"
    noted.write_text(json.dumps({**json.loads(noted.read_text()), "versions": "Python 3.11.2, torch 2.0"}))  # of the run, wherever the card is made
    push(client)
    assert ". Python 3.11.2, torch 2.0.\n" in card_of(hub.repos["model", "alice/animals"])[1]
    for said in ("transformers 5.", "peft 0.", "## Licence and terms", "## Limits", "measured on 4 held-out rows", "at most 128 tokens", "16 rows, which is few"):
        assert said in text, said


def test_a_licence_that_nobody_noted_is_asked_of_the_hub(hub, client, base):
    hub.add_repo("test/small", files={**small_files(base), "README.md": "---\nlicense: gemma\n---\n"})
    path = next(client.home.glob("runs/local/*/base.json"))
    path.write_text(json.dumps({**json.loads(path.read_text()), "licence": {}}))
    push(client)
    data, text = card_of(hub.repos["model", "alice/animals"])
    assert data["license"] == "gemma" and "https://ai.google.dev/gemma/terms" in text


def test_an_untouched_base_licence_is_kept_whole(hub, client):
    path = next(client.home.glob("runs/local/*/base.json"))
    licence = {"license": "other", "license_name": "my-licence", "license_link": "https://example.com/licence"}
    path.write_text(json.dumps({**json.loads(path.read_text()), "licence": licence}))
    push(client)
    data, text = card_of(hub.repos["model", "alice/animals"])
    assert {name: data[name] for name in licence} == licence and "[my-licence](https://example.com/licence)" in text


def test_pushing_again_to_the_same_repository_is_fine(hub, client):
    push(client)
    first = hub.repos["model", "alice/animals"].sha
    client("run.rename('Better animals')")
    assert push(client)["commit"] == hub.repos["model", "alice/animals"].sha != first
    assert "# Better animals" in card_of(hub.repos["model", "alice/animals"])[1]


@pytest.mark.parametrize("files", [
    {"model.safetensors": b"mine"}, {"tuner.json": '{"run": "another"}', "adapter_model.safetensors": b"mine"},
    {"tuner.json": "[]", "notes.txt": "mine"}, {"tuner.json": "broken", "notes.txt": "mine"},
])
def test_a_repository_that_holds_something_else_is_refused_and_untouched(hub, client, files):
    repo = hub.add_repo("alice/animals", files=files)
    before = repo.sha
    with pytest.raises(UserError, match="alice/animals exists already and holds something else. Choose another name; nothing was changed"):
        push(client)
    assert hub.repos["model", "alice/animals"].sha == before and not [r for r in hub.requests if r.method == "POST"]


@pytest.mark.parametrize("name", ["", " ", "a/b", "x", "a--b", "a..b", "-a", "a-", ".git", "a.git", "a.ipynb", "ä" * 3, "a b", "x" * 97, "../up"])
def test_a_name_the_hub_would_refuse_is_refused_before_anything_is_sent(hub, client, name):
    with pytest.raises(UserError, match="is not a name the Hub takes: 2 to 96 letters"):
        push(client, name)
    assert hub.requests == []


def test_names_that_pass_here_pass_on_the_hub(hub, client):
    for name in ("_a", "A.b-c_1" * 13):
        assert push(client, name)["repo_id"] == f"alice/{name}"


def test_without_a_token_nothing_is_sent(hub, client):
    for token in (None, ""):
        with pytest.raises(UserError, match="You are not signed in to Hugging Face. Run hf auth login in a terminal"):
            push(client, token=token)
    assert hub.requests == []
    with pytest.raises(UserError, match="does not know this token any more. Sign in again"):
        client("result = hub.whoami('hf_test_gone')")
    hub.requests.clear()


def test_on_a_space_the_owner_s_token_is_nobody_s(hub, client):
    assert client("result = hub.own_token()", SYSTEM="spaces") is None
    assert client("result = hub.own_token()", SYSTEM="") == "hf_owner"


def test_a_run_that_is_not_done_is_not_published(hub, client):
    next(client.home.glob("runs/local/*/done")).unlink()
    with pytest.raises(UserError, match="Publish it once it is done"):
        push(client)
    assert hub.requests == []


def test_an_adapter_on_a_changed_base_is_not_published(hub, client, base, tmp_path):
    from tests.test_train import spoil

    other = tmp_path / "base"
    shutil.copytree(base, other)
    spoil(other)
    path = next(client.home.glob("runs/local/*/base.json"))
    path.write_text(json.dumps({**json.loads(path.read_text()), "dir": str(other)}))
    with pytest.raises(UserError, match="weights of test/small here are not the ones this was trained on"):
        push(client)
    assert hub.repos == {}


@pytest.mark.parametrize("kind, path, words", [
    ("500", "/commit/", r"The Hub has a fault of its own \(HTTP 500\). Try again in a minute; nothing was lost"),
    ("403", "/repos/create", "does not let this account do that with alice/animals"),
    ("429", "/commit/", "asks for a pause .too many requests.. Wait a minute"),
    ("401", "/commit/", "does not know this token any more"),
    ("400", "/commit/", r"The Hub refused alice/animals \(HTTP 400\)"),
    ("reset", "/commit/", "The Hub cannot be reached. Check the connection, then try again"),
    ("500", "/whoami", r"fault of its own \(HTTP 500\)"),
])
def test_a_fault_of_the_hub_is_told_in_words_and_the_adapter_stays(hub, client, kind, path, words):
    adapter = next(client.home.glob("runs/local/*/adapter"))
    before = {its.name: its.read_bytes() for its in adapter.iterdir()}
    hub.faults.append(Fault(kind, path=path, times=20))
    with pytest.raises(UserError, match=words):
        push(client)
    assert {its.name: its.read_bytes() for its in adapter.iterdir()} == before
    hub.faults.clear()
    assert push(client)["commit"] == hub.repos["model", "alice/animals"].sha


def test_a_commit_whose_answer_was_lost_is_found_done(hub, client):
    hub.faults.append(Fault("lost", method="POST", path="/commit/"))
    assert push(client)["private"] is True
    assert len(hub.repos["model", "alice/animals"].commits) == 2  # not made twice
    assert set(hub.repos["model", "alice/animals"].files) >= {"adapter_model.safetensors", "tuner.json"}


# Sharing ----------------------------------------------------------------------------------------------------------


def with_base_on_the_hub(hub, client, base) -> str:
    """The run's base is one that the stand-in has, as after a run that began with the Hub; gives its commit."""
    repo = hub.add_repo("test/small", files={**small_files(base), "README.md": "---\nlicense: apache-2.0\n---\n"})
    path = next(client.home.glob("runs/local/*/base.json"))
    path.write_text(json.dumps({**json.loads(path.read_text()), "revision": repo.sha}))
    for name in ("adapter/adapter_config.json",):
        config = next(client.home.glob(f"runs/local/*/{name}"))
        config.write_text(json.dumps({**json.loads(config.read_text()), "revision": repo.sha}))
    return repo.sha


def test_a_private_adapter_opens_for_its_owner_and_made_public_for_everybody(hub, client, base):
    sha = with_base_on_the_hub(hub, client, base)
    push(client)
    subject = "result = (lambda its: [its.label, its.base['id'], its.base['revision'], bool(its.base_sha256), its.note])(chat.of_adapter('alice/animals', {}))"
    mine = client(subject.format(repr(ALICE)))
    assert mine == ["alice/animals", "test/small", sha, True, ""]
    for token in (BOB, None):
        with pytest.raises(UserError, match="alice/animals does not exist on the Hub, or you may not see it"):
            client(subject.format(repr(token)))
    assert client(f"result = hub.is_private('alice/animals', {ALICE!r})") is True
    with pytest.raises(UserError, match=r"alice/animals is not in your account \(bob\)"):
        client(f"hub.make_public('alice/animals', {BOB!r})")
    with pytest.raises(UserError, match="You are not signed in"):
        client("hub.make_public('alice/animals', None)")
    client(f"hub.make_public('alice/animals', {ALICE!r})")
    assert hub.repos["model", "alice/animals"].private is False
    for token in (BOB, None):
        assert client(subject.format(repr(token))) == mine


def test_a_published_adapter_answers_as_the_run_does(hub, client, base, monkeypatch):
    from tests.test_chat import ask

    with_base_on_the_hub(hub, client, base)
    push(client)
    published, mine = client(f"result = [asdict(its) for its in (chat.of_adapter('alice/animals', {ALICE!r}), chat.of_run(run))]")
    assert published["adapter_dir"] != mine["adapter_dir"] and published["base"]["dir"] != mine["base"]["dir"]
    assert published["base_sha256"] == mine["base_sha256"]
    monkeypatch.setenv("TUNER_HOME", str(client.home))
    monkeypatch.setattr(models, "choose_precision", lambda device: "bfloat16")
    found = [ask(chat_worker.Resident(), chat.Subject(**its), tuned=tuned) for its in (published, mine) for tuned in (True, False)]
    assert found[0] == found[2] != found[1] == found[3]


def test_an_adapter_on_another_copy_of_its_base_says_so(hub, client, base, tmp_path):
    from tests.test_train import spoil

    with_base_on_the_hub(hub, client, base)
    push(client)
    other = tmp_path / "other"
    shutil.copytree(base, other)
    spoil(other)
    repo = hub.repos["model", "test/small"]
    repo.commit(small_files(other))
    config = hub.repos["model", "alice/animals"].files["adapter_config.json"]
    hub.repos["model", "alice/animals"].commit({"adapter_config.json": json.dumps({**json.loads(config), "revision": repo.sha})})
    note = client(f"result = chat.of_adapter('alice/animals', {ALICE!r}).note")
    assert note.startswith("It was trained on another copy of the base (a random model of two layers)")


@pytest.mark.parametrize("change, words", [
    ({"adapter_config.json": "not JSON"}, "is not a LoRA adapter"),
    ({"adapter_config.json": '{"peft_type": "IA3"}'}, "is not a LoRA adapter"),
    ({"adapter_config.json": "[1]"}, "is not a LoRA adapter"),
    ({"adapter_config.json": '{"peft_type": "LORA", "base_model_name_or_path": "/etc/passwd"}'}, "names the base model '/etc/passwd', which is not a Hub id"),
    ({"adapter_config.json": '{"peft_type": "LORA", "base_model_name_or_path": "../../x"}'}, "which is not a Hub id"),
    ({"adapter_config.json": '{"peft_type": "LORA", "base_model_name_or_path": null}'}, "which is not a Hub id"),
    ({"adapter_model.safetensors": None, "adapter_model.bin": b"\x80pickle"}, "is not a PEFT adapter with safetensors weights"),
])
def test_a_stranger_s_adapter_is_looked_at_before_it_is_used(hub, client, change, words):
    files = {"adapter_config.json": '{"peft_type": "LORA", "base_model_name_or_path": "test/small"}', "adapter_model.safetensors": b"x"}
    hub.add_repo("bob/odd", files={name: data for name, data in {**files, **change}.items() if data is not None})
    with pytest.raises(UserError, match=words):
        client("result = chat.of_adapter('bob/odd', None)")
    assert not [request for request in hub.requests if request.path.endswith(".bin")]


@pytest.mark.parametrize("odd", ['{"base_sha256": 7, "quantisation": {"a": 1}, "system_prompt": ["x"], "base_revision": ["../.."], "template_date": "today"}', "[]", "not JSON", '"text"'])
def test_a_stranger_s_record_is_not_believed(hub, client, base, odd):
    hub.add_repo("test/small", files=small_files(base))
    hub.add_repo("bob/odd", files={
        "adapter_config.json": '{"peft_type": "LORA", "base_model_name_or_path": "test/small"}', "tuner.json": odd,
        "adapter_model.safetensors": save({"base_model.model.layer.lora_A.weight": np.zeros((8, 64), np.float32)}),
    })
    found = client("result = asdict(chat.of_adapter('bob/odd', None))")
    assert (found["quantisation"], found["system_prompt"], found["base_sha256"]) == ("nf4", "", "")
    assert found["template_date"] == "2026-01-01" and found["keep_control_tokens"] is False


# Base models ------------------------------------------------------------------------------------------------------


def test_a_base_is_fetched_at_a_pinned_revision_and_only_what_is_safe(hub, client, base):
    odd = {"modeling_evil.py": "import os", "pytorch_model.bin": b"\x80", "sub/model.safetensors": b"x", "training_args.bin": b"\x80"}
    repo = hub.add_repo("bob/base", files={**small_files(base), **odd, "README.md": "---\nlicense: gemma\n---\n"})
    old = repo.sha
    repo.commit({"README.md": "---\nlicense: mit\n---\n"})
    done: list = client("""
        told = []
        result = [hub.fetch_base("bob/base", "", None, lambda done, total: told.append((done, total))), None]
        result[1] = told[-1][0] == told[-1][1] > 100_000
    """)
    found, counted = done
    assert found["id"] == "bob/base" and found["revision"] == repo.sha != old and counted
    assert found["what"] == f"bob/base at revision {repo.sha[:12]}" and found["licence"] == {"license": "mit"}
    assert {path.name for path in Path(found["dir"]).iterdir()} == set(small_files(base))
    pinned = client(f"result = hub.fetch_base('bob/base', {old!r}, {BOB!r})")
    assert pinned["revision"] == old and pinned["licence"] == {"license": "gemma"}
    assert {request.token for request in hub.requests} == {None, BOB}


def test_a_fetched_base_is_there_when_the_hub_is_not(hub, client, base):
    hub.add_repo("bob/kept", files=small_files(base))
    fetched = client("result = hub.fetch_base('bob/kept', '', None)")
    kept = client.home / "models" / "fetched.json"
    hub.add_repo("bob/gated", files=small_files(base), gated=True)
    client(f"result = hub.fetch_base('bob/gated', '', {BOB!r})")
    hub.faults.append(Fault("reset", times=1000))
    assert client("result = hub.fetch_base('bob/kept', '', None)") == fetched
    assert client("result = hub.tokenizer_dir('bob/kept', '', None)") == fetched["dir"]
    assert client("result = hub.fetch_base('bob/gated', '', None)")["id"] == "bob/gated"  # on a machine of one's own
    with pytest.raises(UserError, match="bob/gated is not on this machine yet"):  # but not where visitors share it
        client("result = hub.fetch_base('bob/gated', '', None)", SYSTEM="spaces")
    assert client("result = hub.fetch_base('bob/kept', '', None)", SYSTEM="spaces") == fetched
    client("", SYSTEM="")
    assert kept.stat().st_mode & 0o077 == 0 or kept.parent.stat().st_mode & 0o077 == 0
    with pytest.raises(UserError, match="The Hub cannot be reached and bob/new is not on this machine yet. .*SmolLM2-135M-Instruct, which works without"):
        client("result = hub.fetch_base('bob/new', '', None)")


@pytest.mark.parametrize("token, words", [
    (None, r"bob/gated is gated. Open http://127.0.0.1:\d+/bob/gated, accept its terms with your account, sign in here"),
    (ALICE, "bob/gated is gated. .* accept its terms with your account, then try again"),
])
def test_a_gated_base_is_told_in_words(hub, client, base, token, words):
    repo = hub.add_repo("bob/gated", files=small_files(base), gated=True)
    with pytest.raises(UserError, match=words):
        client(f"result = hub.fetch_base('bob/gated', '', {token!r})")
    repo.granted.add("alice")
    # What somebody else has fetched to this machine does not open the gate for others.
    assert client(f"result = hub.fetch_base('bob/gated', '', {ALICE!r})")["revision"] == repo.sha
    repo.granted.clear()
    for call in ("fetch_base", "tokenizer_dir"):
        with pytest.raises(UserError, match=words):
            client(f"result = hub.{call}('bob/gated', '', {token!r})")


@pytest.mark.parametrize("base_id, words", [
    ("bob/none", "bob/none does not exist on the Hub, or you may not see it. Check the spelling. If it is private, sign in"),
    ("bob/pickled", "bob/pickled has no safetensors weights at its top level"),
    ("bob/bare", "bob/bare has no config.json, so it is not a transformers model"),
    ("/etc", "is not a base model's Hub id. It looks like user/name"), ("../a/b", "is not a base model's Hub id"),
    ("a/..", "is not a base model's Hub id"), ("", "is not a base model's Hub id"),
])
def test_a_base_that_cannot_be_used_is_refused(hub, client, base, base_id, words):
    hub.add_repo("bob/pickled", files={"config.json": "{}", "pytorch_model.bin": b"\x80"})
    hub.add_repo("bob/bare", files={"model.safetensors": b"x"})
    with pytest.raises(UserError, match=words):
        client(f"result = hub.fetch_base({base_id!r}, '', None)")
    assert not [request for request in hub.requests if "resolve" in request.path]


def test_a_revision_that_does_not_exist_is_told(hub, client, base):
    hub.add_repo("bob/base", files=small_files(base))
    with pytest.raises(UserError, match="bob/base has no such revision. Check the branch, tag or commit"):
        client("result = hub.fetch_base('bob/base', 'no-such', None)")


def test_no_room_on_the_disk_is_told_before_the_download(hub, client, base):
    hub.add_repo("bob/large", files=small_files(base))
    with pytest.raises(UserError, match="The base model bob/large needs .* GiB on the disk and 0.1 GiB is free"):
        client("""
            import shutil
            usage, shutil.disk_usage = shutil.disk_usage, lambda path: type("Usage", (), {"free": 2**27})
            try:
                hub.fetch_base("bob/large", "", None)
            finally:
                shutil.disk_usage = usage
        """)
    # Of the weights only the header was read, for which nothing is asked beforehand.
    assert not [request for request in hub.requests if "model.safetensors" in request.path and request.method == "HEAD"]


def test_a_download_cut_in_the_middle_is_told(hub, client, base):
    hub.add_repo("bob/cut", files=small_files(base))
    hub.faults.append(Fault("500", path="resolve.*safetensors", times=1000))
    with pytest.raises(UserError, match=r"fault of its own \(HTTP 500\)|cannot be reached"):
        client("import huggingface_hub.utils._http as http\nhttp.time.sleep = lambda s: None\nresult = hub.fetch_base('bob/cut', '', None)")


def sharded(base: Path) -> dict[str, bytes]:
    """The small base's files with its weights in two, as larger models come."""
    from safetensors.torch import load_file, save

    files = small_files(base)
    tensors = load_file(base / "model.safetensors")
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    del files["model.safetensors"]
    for part, its in parts.items():
        files[part] = save({name: tensors[name] for name in its})
    index = {"metadata": {}, "weight_map": {name: part for part, its in parts.items() for name in its}}
    return files | {"model.safetensors.index.json": json.dumps(index).encode()}


@pytest.mark.parametrize("files", [small_files, sharded])
def test_a_base_s_sizes_are_told_by_its_headers_alone(hub, client, base, files):
    from tuner import sizes

    # Weights larger than what is asked for, or whole files would come and nobody would notice.
    held = files(base)
    heavy = {name: body + bytes(300_000) if name.endswith(".safetensors") else body for name, body in held.items()}
    name = files.__name__.replace("_", "-")
    repo = hub.add_repo(f"bob/{name}", files=heavy)
    expected = sizes.of_base(json.loads((base / "config.json").read_text()), sizes.headers_in(base))
    asked = f"result = asdict(hub.sizes_of('bob/{name}', '', None))"
    assert client(asked) == asdict(expected) and expected.exact
    ranged = [request for request in hub.requests if request.path.endswith(".safetensors") and request.method == "GET"]
    assert ranged and all(repo.sha in request.path for request in ranged)
    assert client(f"from pathlib import Path\nresult = [its.name for its in Path(hub.tokenizer_dir('bob/{name}', '', None)).glob('*.safetensors')]") == []
    # Asked again, by a process that knows nothing any more, it does not ask for headers.
    before = len(ranged)
    assert client("hub._sizes_in.cache_clear()\n" + asked) == asdict(expected)
    assert len([request for request in hub.requests if request.path.endswith(".safetensors") and request.method == "GET"]) == before


def test_sizes_of_a_gated_or_unfit_base_are_told_in_words(hub, client, base):
    hub.add_repo("bob/gated", files=small_files(base), gated=True)
    assert client(f"result = hub.sizes_of('bob/gated', '', {BOB!r}).exact")
    with pytest.raises(UserError, match="bob/gated is gated"):  # though its headers are kept here by now
        client(f"result = hub.sizes_of('bob/gated', '', {ALICE!r})")
    pickled = {name: body for name, body in small_files(base).items() if not name.endswith(".safetensors")}
    hub.add_repo("bob/pickled", files=pickled | {"pytorch_model.bin": b"x"})
    with pytest.raises(UserError, match="bob/pickled has no safetensors weights"):
        client("result = hub.sizes_of('bob/pickled', '', None)")
    hub.add_repo("bob/broken", files=small_files(base) | {"model.safetensors": b"\xff" * 64})
    with pytest.raises(UserError, match="The weights of bob/broken cannot be read"):
        client("result = hub.sizes_of('bob/broken', '', None)")
    hub.add_repo("bob/odd", files=small_files(base) | {"config.json": b'{"hidden_size": 1e40, "num_hidden_layers": "x"}'})
    with pytest.raises(UserError, match="config.json says hidden_size"):
        client("result = hub.sizes_of('bob/odd', '', None)")


def test_without_the_headers_the_config_says_nearly_as_much(hub, client, base):
    hub.add_repo("bob/half", files=small_files(base))
    hub.faults.append(Fault("reset", path=r"\.safetensors", times=1000))
    found = client("result = asdict(hub.sizes_of('bob/half', '', None))")
    assert not found["exact"] and found["linear"] > 0
    hub.faults.clear()
    assert client("result = hub.sizes_of('bob/half', '', None).exact")  # and it is asked again


def test_a_preview_needs_no_weights(hub, client, base):
    hub.add_repo("bob/base", files=small_files(base))
    folder = Path(client("result = hub.tokenizer_dir('bob/base', '', None)"))
    assert (folder / "tokenizer.json").is_file() and (folder / "config.json").is_file()
    assert not [request for request in hub.requests if "safetensors" in request.path]


# Datasets ---------------------------------------------------------------------------------------------------------

DATASET = {
    "README.md": """---
configs:
- config_name: easy
  data_files: [{split: train, path: easy/train.jsonl}, {split: test, path: easy/test.jsonl}]
- config_name: hard
  data_files: [{split: train, path: hard.jsonl}]
---
""",
    "easy/train.jsonl": "".join(json.dumps({"prompt": f"p{n}", "completion": f"c{n}"}) + "\n" for n in range(30)),
    "easy/test.jsonl": json.dumps({"prompt": "tp", "completion": "tc"}) + "\n",
    "hard.jsonl": json.dumps({"prompt": "hp", "completion": "hc"}) + "\n",
}


def read(client, *args, token=None, most=10) -> list:
    code = f"records, notes = data.read_hub(*{args!r}, token={token!r}, most={most})\nresult = [list(records), notes]"
    return client(code)


def test_a_hub_dataset_is_streamed_by_config_split_and_revision(hub, client):
    repo = hub.add_repo("bob/rows", repo_type="dataset", files=DATASET)
    records, notes = read(client, "bob/rows", "easy")
    assert [record["prompt"] for record in records] == [f"p{n}" for n in range(10)]
    assert notes == ["Streamed from the Hub: the first 10 rows."]
    assert read(client, "bob/rows", "easy", "test") == [[{"prompt": "tp", "completion": "tc"}], []]
    assert read(client, "https://huggingface.co/datasets/bob/rows", "hard")[0][0]["prompt"] == "hp"
    old = repo.sha
    repo.commit({"hard.jsonl": json.dumps({"prompt": "new", "completion": "x"}) + "\n"})
    assert read(client, "bob/rows", "hard", "train", old)[0][0]["prompt"] == "hp"
    assert read(client, "bob/rows", "hard", "train", repo.sha)[0][0]["prompt"] == "new"


def test_a_private_dataset_is_read_as_the_visitor(hub, client):
    hub.add_repo("alice/rows", repo_type="dataset", files=DATASET, private=True)
    assert len(read(client, "alice/rows", "easy", token=ALICE)[0]) == 10
    assert {request.token for request in hub.requests} == {ALICE}
    for token in (BOB, None):
        with pytest.raises(UserError, match="alice/rows does not exist on the Hub, or you may not see it"):
            read(client, "alice/rows", "easy", token=token)


def test_a_gated_dataset_is_told_in_words(hub, client):
    repo = hub.add_repo("bob/gated-rows", repo_type="dataset", files=DATASET, gated=True)
    for token, words in ((None, "sign in here, then try again"), (ALICE, "accept its terms with your account, then try again")):
        with pytest.raises(UserError, match=f"bob/gated-rows is gated. .*{words}"):
            read(client, "bob/gated-rows", "easy", token=token)
    repo.granted.add("alice")
    assert len(read(client, "bob/gated-rows", "easy", token=ALICE)[0]) == 10


@pytest.mark.parametrize("args, words", [
    (("bob/rows", "easy", "validation"), "bob/rows has no split 'validation'. It has train, test"),
    (("bob/rows", "other"), "bob/rows cannot be read as rows: .*other.* Check its config and split"),
    (("bob/rows",), "bob/rows cannot be read as rows: .*Config name is missing"),
    (("bob/rows", "easy", "train", "no-such"), "bob/rows has no such revision"),
    (("bob/none",), "bob/none does not exist on the Hub"), (("bob/empty",), "bob/empty cannot be read as rows"),
    (("bob/broken",), "bob/broken cannot be read as rows"),
    (("/etc/passwd",), "is not a Hub dataset id. It looks like user/name"), (("../home",), "is not a Hub dataset id"),
    (("json",), "is not a Hub dataset id"), (("a/b/c",), "is not a Hub dataset id"),
])
def test_a_dataset_that_cannot_be_read_is_told_in_words(hub, client, args, words):
    hub.add_repo("bob/rows", repo_type="dataset", files=DATASET)
    hub.add_repo("bob/empty", repo_type="dataset", files={"README.md": "nothing"})
    hub.add_repo("bob/broken", repo_type="dataset", files={"train.jsonl": '{"a": 1}\n{broken\n'})
    with pytest.raises(UserError, match=words):
        read(client, *args)


def test_a_local_folder_of_that_name_is_not_read(hub, client, process):
    """`load_dataset` would take it for the dataset."""
    folder = process.log.parent / "bob" / "local"
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_text('{"prompt": "secret", "completion": "of this machine"}\n')
    with pytest.raises(UserError, match="bob/local does not exist on the Hub"):
        read(client, "bob/local")
    hub.add_repo("bob/local", repo_type="dataset", files={"train.jsonl": '{"prompt": "the Hub\'s", "completion": "x"}\n'})
    assert read(client, "bob/local")[0][0]["prompt"] == "the Hub's"


def test_a_dataset_s_code_is_not_run(hub, client, tmp_path):
    mark = tmp_path / "was here"
    hub.add_repo("bob/code", repo_type="dataset", files={"code.py": f"open({str(mark)!r}, 'w')\n"})
    with pytest.raises(UserError, match="bob/code cannot be read as rows"):
        read(client, "bob/code")
    assert not mark.exists()
