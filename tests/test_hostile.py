"""Repositories that mean harm, wherever one can be named: nothing runs, nothing outside is read, each is refused in words, the app answers."""

import ast
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import textwrap
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from tests import hostile
from tests.hub_client import ALICE, BOB, ROOT, Client
from tests.test_hub import sharded, small_files
from tuner import models, repository
from tuner.errors import UserError
from tuner.hub import MAX_PARAMETERS

PRELUDE = """
from dataclasses import asdict
from tuner import chat, data, eyes, encode, hub, reading, stream
stream.rows = lambda *asked: map(reading.plain, stream.decoded(*asked))  # in a child of its own it is in test_stream.py
"""
# What stands in every file that no visitor's repository may bring in.
SECRET = hostile.SECRET


@pytest.fixture(scope="module")
def traps(server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("outside")
    (folder / "outside.txt").write_text(SECRET)
    return hostile.Traps(folder / "marker", folder / "outside.txt", server.url)


@pytest.fixture(scope="module")
def process(server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("client")
    # Where a name of the Hub's form would lead if it were taken for a path.
    (folder / "models" / "local").mkdir(parents=True)
    (folder / "models" / "local" / "train.jsonl").write_text(SECRET)
    client = Client(server.url, folder, TUNER_HOME=str(folder / "home"))
    yield client
    client.close()


@pytest.fixture
def hub(server, traps):
    """The stand-in, empty. Afterwards nothing has run, and nothing from outside lies anywhere in the app's home."""
    for kept in (server.repos, server.requests, server.faults, server.security):
        kept.clear()
    yield server
    assert not traps.marker.exists(), "a stranger's code ran"
    assert not [its.path for its in server.requests if its.path.endswith((".py", ".bin", ".pkl", ".pt")) and "resolve" in its.path and "datasets" not in its.path]
    assert not [its.path for its in server.requests if "/leak/" in its.path]


@pytest.fixture
def client(process):
    return lambda code, **env: process(PRELUDE + textwrap.dedent(code), **env)


def named(cases: list, name: str) -> hostile.Hostile:
    return next(its for its in cases if its.name == name)


def refused(client, code: str, words: str) -> str:
    with pytest.raises(UserError) as told:
        client(code)
    said = str(told.value)
    assert re.search(words, said), said
    assert SECRET not in said and "Traceback" not in said and len(said) < 600
    assert said.endswith(".")  # what is wrong, the value seen, and what to do next
    return said


# Base models ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("its", hostile.BASES + hostile.TEMPLATES[:1], ids=lambda its: its.name)
def test_a_hostile_base_is_refused_wherever_it_is_named(hub, traps, client, base, its):
    """In the preview and the quote, at Start, and in Chat; its weights are never fetched."""
    files = its.change(small_files(base), traps)
    hub.add_repo(f"bob/{its.name}", files={name: data for name, data in files.items()})
    for place in ("hub.sizes_of({0!r}, '', None)", "hub.fetch_base({0!r}, '', None)", "chat.of_base({0!r}, None)"):
        refused(client, f"result = str({place.format(f'bob/{its.name}')})", its.words)
    whole = [its for its in hub.requests if its.path.endswith(".safetensors") and its.method == "HEAD"]
    assert not whole  # the client asks so before it fetches a file; headers are read without


@pytest.mark.parametrize("its", hostile.TEMPLATES, ids=lambda its: its.name)
def test_a_hostile_template_is_refused_before_anything_is_rendered_here(hub, traps, client, base, its):
    hub.add_repo(f"bob/{its.name}", files=its.change(small_files(base), traps))
    refused(client, f"result = hub.tokenizer_dir('bob/{its.name}', '', None)", its.words)


def test_a_template_that_bides_its_time_is_stopped_in_each_place(hub, traps, client, base, tmp_path):
    """It passes when it is tried; then the preview, the check's figures and a chat meet it, and end in words."""
    hub.add_repo("bob/later", files=hostile.LATER.change(small_files(base), traps))
    folder = client("result = hub.tokenizer_dir('bob/later', '', None)")
    row = {"messages": [{"role": "user", "content": "Something else"}, {"role": "assistant", "content": "x"}]}
    for place in (
        f"from tuner.recipe import Recipe\nresult = eyes.show({row!r}, Recipe(), {folder!r}, False)",
        f"from tuner import scan\nfrom tuner.recipe import Recipe\nresult = eyes.tokenised([{row!r}], scan.Look.of(Recipe(), {folder!r}))",
        f"result = list(chat.Worker().answer(chat.Subject('x', {{'dir': {folder!r}, 'id': 'bob/later'}}), {row['messages'][:1]!r}))",
    ):
        refused(client, place, hostile.LATER.words)
    # Others are served as before, by processes of the same kind.
    hub.add_repo("bob/good", files=small_files(base))
    assert client("result = hub.tokenizer_dir('bob/good', '', None)")


def test_a_run_that_meets_a_bomb_ends_in_words(base, home, traps, tmp_path):
    """The training child, for real: it ends itself, and the page says why."""
    from tests.small import small_base
    from tests.small_run import small_run
    from tuner import encode
    from tuner import run as runs

    folder = small_base(tmp_path / "later", template=hostile.LATER.change({}, traps)["chat_template.jinja"].decode())
    run = small_run(folder)
    runs.start(run).join(60)
    assert run.state() == "failed" and run.error() == encode.ENDLESS


def test_the_check_of_a_large_dataset_that_meets_a_bomb_ends_in_words(base, home, traps, tmp_path, monkeypatch):
    from tests.small import small_base
    from tuner import check, data, encode, scan
    from tuner.recipe import Recipe

    folder = small_base(tmp_path / "later", template=hostile.LATER.change({}, traps)["chat_template.jinja"].decode())
    monkeypatch.setattr(check, "SMALL_ROWS", 0)
    dataset = data.keep("ann", "rows", [{"prompt": f"p{n}", "completion": "c"} for n in range(5)], {"kind": "paste"})
    check.begin(dataset, scan.Look.of(Recipe(), folder))
    with pytest.raises(UserError, match=re.escape(encode.ENDLESS)):
        for _ in range(600):
            check.progress(dataset)
            time.sleep(0.05)


def test_a_good_base_passes_and_only_what_is_needed_is_fetched(hub, traps, client, base):
    odd = {
        "pytorch_model.bin": hostile.pickled(traps), "modeling_evil.py": hostile.code(traps), "consolidated.safetensors": b"x", "vocab.json": b"{}",
        "training_args.bin": b"x", "extra.jinja": b"x", "adapter_model.safetensors": b"x", "original/params.json": b"{}", "tokenizer.model": b"x",
    }
    for name, files in (("single", small_files(base)), ("sharded", sharded(base))):
        repo = hub.add_repo(f"bob/{name}", files=files | odd)
        repo.commit({"README.md": "later"})
        found = client(f"result = hub.fetch_base('bob/{name}', '', None)")
        assert {path.name for path in Path(found["dir"]).iterdir()} == set(files) and found["revision"] == repo.sha == Path(found["dir"]).name
        assert {its.path.split("/resolve/")[1].split("/")[0] for its in hub.requests if "/resolve/" in its.path and name in its.path} == {repo.sha}


@pytest.mark.parametrize("level, path, words", [
    ("unsafe", "pytorch_model.bin", "security scan calls pytorch_model.bin of bob/scanned unsafe"),
    ("suspicious", "model.safetensors", "security scan calls model.safetensors of bob/scanned suspicious"),
    ("a-word-of-2027", "config.json", "a-word-of-2027"), ("suspicious", "pytorch_model.bin", None), ("safe", "model.safetensors", None),
    (None, "", None),
])
def test_the_hub_s_own_scan_is_asked_first(hub, client, base, level, path, words):
    hub.add_repo("bob/scanned", files=small_files(base) | {"pytorch_model.bin": b"x"})
    if level:
        hub.security["bob/scanned"] = {"scansDone": True, "filesWithIssues": [{"path": path, "level": level}]}
    if words:
        refused(client, "result = hub.fetch_base('bob/scanned', '', None)", words)
        assert not [its for its in hub.requests if "/resolve/" in its.path]
    else:
        assert client("result = hub.fetch_base('bob/scanned', '', None)")["id"] == "bob/scanned"


def test_a_base_beyond_the_limit_is_refused_before_it_is_fetched(hub, client, base):
    hub.add_repo("bob/large", files=small_files(base))
    words = "bob/large has .* billion parameters; the most that is loaded here is 0.0 billion. Choose a smaller"
    with pytest.raises(UserError, match=words):
        client("result = hub.fetch_base('bob/large', '', None)", TUNER_MODEL_BILLIONS="0.00001")
    assert not [its for its in hub.requests if its.path.endswith(".safetensors") and its.method == "HEAD"]
    assert client("result = hub.fetch_base('bob/large', '', None)", TUNER_MODEL_BILLIONS="")["id"] == "bob/large"
    # By what the files weigh too: headers are the maker's own words.
    with pytest.raises(UserError, match="has 250.0 billion"):
        repository.count("bob/x", {"hidden_size": 1, "num_hidden_layers": 1, "vocab_size": 1}, {"a": ("F32", (4,))}, 10**12, MAX_PARAMETERS)


def test_what_another_was_let_read_is_not_everybody_s(hub, client, base):
    """Each visitor is asked for again, also for what lies in the cache: the base, its preview, its sizes; and on a Space also while the Hub is away."""
    repo = hub.add_repo("bob/gated", files=small_files(base), gated="manual")
    assert client(f"result = hub.fetch_base('bob/gated', '', {BOB!r})")["id"] == "bob/gated"
    for token in (ALICE, None):
        for place in ("fetch_base", "tokenizer_dir", "sizes_of"):
            refused(client, f"result = hub.{place}('bob/gated', '', {token!r})", "bob/gated is gated")
    repo.granted.add("alice")
    assert client(f"result = hub.fetch_base('bob/gated', '', {ALICE!r})")
    for revision in ("", "main", repo.sha, "refs/heads/main", "../refs/main"):
        with pytest.raises(UserError, match="cannot be reached|is not a branch"):
            client(f"""
                import os
                def away(*asked):
                    raise hub.Unreachable("away")
                real, hub._fetch_from_hub, os.environ["SYSTEM"] = hub._fetch_from_hub, away, "spaces"
                try:
                    result = hub.fetch_base("bob/gated", {revision!r}, {BOB!r})
                finally:
                    hub._fetch_from_hub = real
                    del os.environ["SYSTEM"]
            """)


@pytest.mark.parametrize("revision", ["../../etc/passwd", "/etc/passwd", "a//b", "..", "a b", "-x", "a\nb", "ü", "x" * 300, "refs/../../x"])
def test_a_revision_is_never_a_path(hub, client, base, revision):
    hub.add_repo("bob/base", files=small_files(base))
    hub.add_repo("bob/rows", repo_type="dataset", files={"train.jsonl": b"{}"})
    for place in ("hub.fetch_base('bob/base', R, None)", "hub.tokenizer_dir('bob/base', R, None)", "hub.fetch_adapter('bob/base', R, None)", "data.read_hub('bob/rows', revision=R)"):
        with pytest.raises(UserError, match="is not a branch, tag or commit"):
            client(f"R = {revision!r}\nresult = {place}")
    assert hub.requests == []


# Adapters ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("its", hostile.ADAPTERS, ids=lambda its: its.name)
def test_a_hostile_adapter_is_refused_in_chat(hub, traps, client, base, its):
    hub.add_repo("bob/base", files=small_files(base))
    hub.add_repo(f"bob/{its.name}", files=its.change(hostile.adapter(), traps))
    refused(client, f"result = chat.of_adapter('bob/{its.name}', None)", its.words)
    assert not [its for its in hub.requests if re.search("/bob/base(/|$)", its.path)]  # nothing of what it names was asked for


def test_an_adapter_on_a_hostile_base_is_refused_for_the_base(hub, traps, client, base):
    hub.add_repo("bob/evil", files=named(hostile.BASES, "auto-map").change(small_files(base), traps))
    hub.add_repo("bob/on-evil", files=hostile.adapter("bob/evil"))
    refused(client, "result = chat.of_adapter('bob/on-evil', None)", "asks for code from the Hub")
    hub.add_repo("bob/scanned", files=hostile.adapter())
    hub.security["bob/scanned"] = {"scansDone": True, "filesWithIssues": [{"path": "adapter_model.safetensors", "level": "unsafe"}]}
    refused(client, "result = chat.of_adapter('bob/scanned', None)", "security scan")


def test_of_a_good_adapter_with_a_pickle_beside_only_the_good_is_taken(hub, traps, client, base):
    hub.add_repo("bob/base", files=small_files(base))
    hub.add_repo("bob/both", files=hostile.adapter() | {"adapter_model.bin": hostile.pickled(traps), "training_args.bin": hostile.pickled(traps), "evil.py": hostile.code(traps)})
    found = client("result = asdict(chat.of_adapter('bob/both', None))")
    assert {path.name for path in Path(found["adapter_dir"]).iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}


def test_what_lies_on_the_disk_is_judged_again_before_it_is_loaded(base, traps, tmp_path):
    """A folder of the client's cache may hold more than was asked for: another program's, or an earlier version's."""
    from tuner.recipe import Recipe

    for number, (changed, words) in enumerate((
        ({"adapter_config.json": json.dumps({"base_model_name_or_path": str(traps.outside)}).encode()}, "is an adapter"),
        (named(hostile.BASES, "auto-map").change(small_files(base), traps), "asks for code"), (named(hostile.BASES, "kernel").change(small_files(base), traps), "asks for code"),
    )):
        folder = tmp_path / str(number)
        shutil.copytree(base, folder)
        for name, data in changed.items():
            (folder / name).write_bytes(data)
        with pytest.raises(UserError, match=words):
            models.load_base(folder, Recipe(quantisation="none"))
    (tmp_path / "adapter").mkdir()
    for name, data in hostile.adapter(target_modules="(a+)+$").items():
        (tmp_path / "adapter" / name).write_bytes(data)
    with pytest.raises(UserError, match="by a pattern"):
        models.read_adapter_config(tmp_path / "adapter")
    assert not traps.marker.exists()


# Datasets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("its", hostile.DATASETS, ids=lambda its: its.name)
def test_a_hostile_dataset_is_refused(hub, traps, client, its):
    hub.add_repo("alice/private", repo_type="dataset", files={"train.jsonl": json.dumps({"text": SECRET})}, private=True)
    hub.add_repo(f"bob/{its.name}", repo_type="dataset", files=its.change({}, traps))
    refused(client, f"records, notes = data.read_hub('bob/{its.name}')\nresult = list(records)", its.words)


@pytest.mark.parametrize("hub_id", hostile.DATASET_IDS)
def test_a_dataset_s_id_is_never_a_path(hub, client, hub_id):
    refused(client, f"records, notes = data.read_hub({hub_id!r})\nresult = list(records)", "is not a Hub dataset id")
    assert hub.requests == []


@pytest.mark.parametrize("config, split", [("../x", ""), ("", "../x"), ("a/b", ""), ("x" * 200, ""), ("a\nb", ""), ("*", "")])
def test_a_config_or_split_is_never_a_path(hub, client, config, split):
    hub.add_repo("bob/rows", repo_type="dataset", files={"train.jsonl": b'{"prompt": "p", "completion": "c"}\n'})
    refused(client, f"records, notes = data.read_hub('bob/rows', {config!r}, {split!r})\nresult = list(records)", "is not the name of a config or split")


def test_a_dataset_that_changes_in_the_middle_is_read_as_it_was(hub, client):
    """Between the look and the read there is one commit, and no other."""
    repo = hub.add_repo("bob/rows", repo_type="dataset", files={"train.jsonl": b'{"prompt": "old", "completion": "c"}\n'})
    first = repo.sha
    assert client("records, notes = data.read_hub('bob/rows')\nresult = list(records)")[0]["prompt"] == "old"
    asked = [its.path for its in hub.requests if "/resolve/" in its.path or "/tree/" in its.path or "/paths-info/" in its.path]
    assert asked and all(first in path for path in asked), asked


# The app over HTTP ------------------------------------------------------------------------------------------------


class App:
    """The app as it is started, and its events as its page sends them."""

    def __init__(self, folder: Path, hub_url: str):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url, self.folder = f"http://127.0.0.1:{port}", folder
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH") if name in os.environ}
        self.log = open(folder / "app.log", "ab")
        self.process = subprocess.Popen(
            [sys.executable, "app.py"], cwd=ROOT, stdout=self.log, stderr=self.log, env={
                **kept, "TUNER_HOME": str(folder / "home"), "HF_HOME": str(folder / "hf"), "HF_ENDPOINT": hub_url, "GRADIO_SERVER_PORT": str(port),
                "GRADIO_TEMP_DIR": str(folder / "gradio"), "NO_PROXY": "127.0.0.1",
            },
        )
        deadline = time.monotonic() + 60
        while True:
            try:
                self.config = json.loads(self.get("/config"))
                return
            except OSError:
                assert self.process.poll() is None and time.monotonic() < deadline, (folder / "app.log").read_text()
                time.sleep(0.1)

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(20)
        self.log.close()

    def get(self, path: str) -> bytes:
        return urllib.request.urlopen(self.url + path, timeout=30).read()

    def event(self, name: str, values: dict) -> str:
        """All that a visitor gets to read of one event.

        Args:
            name: its handler's.
            values: elem_id of an input -> its value; the others keep those of the page.
        """
        parts = {its["id"]: its for its in self.config["components"]}
        event = next(its for its in self.config["dependencies"] if its["api_name"] == name)
        wanted = dict(values)
        arguments = [wanted.pop(parts[its]["props"].get("elem_id"), parts[its]["props"].get("value")) for its in event["inputs"]]
        assert not wanted, f"{name} has no input {wanted}"
        session = os.urandom(6).hex()
        asked = {"data": arguments, "fn_index": event["id"], "session_hash": session, "trigger_id": None, "event_data": None}
        request = urllib.request.Request(f"{self.url}/gradio_api/queue/join", json.dumps(asked).encode(), {"Content-Type": "application/json"})
        urllib.request.urlopen(request, timeout=30).read()
        with urllib.request.urlopen(f"{self.url}/gradio_api/queue/data?session_hash={session}", timeout=60) as stream:
            for line in stream:
                if line.startswith(b"data:") and json.loads(line[5:])["msg"] == "process_completed":
                    return line[5:].decode()
        raise AssertionError("the event came to no end")


@pytest.fixture(scope="module")
def app(server, tmp_path_factory):
    app = App(tmp_path_factory.mktemp("app"), server.url)
    yield app
    app.close()


def test_the_page_says_what_is_wrong_and_answers_meanwhile(hub, traps, app, base):
    """Bombs and code named in the preview, over HTTP, while another visitor opens the page again and again."""
    bases = [named(hostile.BASES, name) for name in ("pickle-only", "auto-map", "kernel", "layers")]
    cases = [*bases, *(named(hostile.TEMPLATES, name) for name in ("multiplies", "doubles")), hostile.LATER]
    for its in cases:
        hub.add_repo(f"bob/{its.name}", files=its.change(small_files(base), traps))
    hub.add_repo("bob/good", files=small_files(base))
    going, opened, wrong = threading.Event(), [], []

    def visit():
        while not going.is_set():
            try:
                app.get("/config")
                opened.append(time.monotonic())
            except OSError as error:
                wrong.append(error)

    visitor = threading.Thread(target=visit)
    visitor.start()
    try:
        for its in cases:
            before = len(opened)
            said = app.event("use_demo", {"knob-base_model": f"bob/{its.name}"})
            assert re.search(its.words, said), (its.name, said[:2000])
            assert SECRET not in said and "Traceback" not in said
            assert len(opened) > before, f"nobody was answered while {its.name} was looked at"
        assert "row-view" in app.event("use_demo", {"knob-base_model": "bob/good"})  # and the next one is served
    finally:
        going.set()
        visitor.join()
    assert wrong == []


def test_in_chat_and_as_a_dataset_the_page_says_it_too(hub, traps, app, base):
    hub.add_repo("bob/base", files=small_files(base))
    hub.add_repo("bob/pickled", files=named(hostile.ADAPTERS, "pickle-only").change(hostile.adapter(), traps))
    hub.add_repo("bob/evil", files=named(hostile.BASES, "auto-map").change(small_files(base), traps))
    hub.add_repo("bob/script", repo_type="dataset", files=named(hostile.DATASETS, "script").change({}, traps))
    assert "is not a PEFT adapter with safetensors weights" in app.event("arrive", {"adapter-id": "bob/pickled"})
    assert "Dataset scripts are no longer supported" in app.event("read_hub", {"hub-id": "bob/script"})
    for odd in ("/etc", "csv", "../x", "https://evil.example/x"):
        assert "is not a Hub dataset id" in app.event("read_hub", {"hub-id": odd})
        assert "is not an adapter" in app.event("arrive", {"adapter-id": odd})


# The audit --------------------------------------------------------------------------------------------------------

# Every call that would take a name for a path, or run what it finds: (file, the call's words) -> what its first argument is.
LOADERS = {
    ("encode.py", "PreTrainedTokenizerFast.from_pretrained"): "base_dir",
    ("models.py", "AutoConfig.from_pretrained"): "base_dir",
    ("models.py", "model_class.from_pretrained"): "source",
    ("models.py", "model_class.from_config"): "config",
    ("text_labels.py", "PreTrainedTokenizerFast.from_pretrained"): "base_dir",
    ("text_labels.py", "AutoConfig.from_pretrained"): "source",
    ("image_labels.py", "AutoConfig.from_pretrained"): "source",
    ("verify.py", "task.model_class().from_pretrained"): "asked['base_dir']",
    ("verify.py", "PeftModel.from_pretrained"): "model",
    ("starter.py", "AutoModelForCausalLM.from_pretrained"): "source",
    ("starter.py", "AutoTokenizer.from_pretrained"): "source",
    ("stream.py", "datasets.load_dataset_builder"): "f'hf://datasets/{hub_id}'",
}
_NAMES = {"from_pretrained", "from_config", "load_dataset", "load_dataset_builder", "load_from_disk", "pipeline", "load_state_dict_from_url", "get_kernel"}


def calls_of_loaders():
    for path in sorted((ROOT / "tuner").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and (getattr(node.func, "attr", None) in _NAMES or getattr(node.func, "id", None) in _NAMES):
                yield path, node


def test_every_loader_gets_a_folder_of_ours_and_says_what_it_may_not():
    """A new call has to be looked at, and written down here: no visitor's string may reach one, where it could be a path."""
    seen = {}
    for path, node in calls_of_loaders():
        name, given = ast.unparse(node.func), {its.arg: its.value for its in node.keywords}
        seen[path.name, name] = ast.unparse(node.args[0])
        value = lambda key: ast.literal_eval(given[key])  # noqa: B023, E731
        if name.endswith("from_pretrained") and not name.startswith("PeftModel"):
            assert value("trust_remote_code") is False and value("local_files_only") is True, name
            if "Tokenizer" not in name and "Config" not in name:
                assert "attn_implementation" in given, name
                assert path.name == "starter.py" or value("use_safetensors") is True, name
        if name.endswith("from_config"):
            assert value("trust_remote_code") is False and isinstance(value("attn_implementation"), str)
        if name.endswith("load_dataset_builder"):
            assert ast.unparse(given["revision"]) == "sha" and "trust_remote_code" not in given and "data_files" not in given
    assert seen == LOADERS


def test_what_reads_names_from_the_hub_pins_a_commit():
    """`snapshot_download` and its like: with the visitor's token or none, at a commit, and files by name."""
    found = 0
    for path in sorted((ROOT / "tuner").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("snapshot_download", "hf_hub_download")):
                given = {its.arg: ast.unparse(its.value) for its in node.keywords}
                found += 1
                if path.name == "publish.py" and ast.unparse(node.func) == "hf_hub_download":
                    continue  # the newest record of the visitor's own repository, as JSON
                if given.get("local_files_only") == "True":
                    assert "require_revision" in given["revision"]
                    continue
                assert given["revision"] in ("info.sha", "sha", "commit") and "token" in given and "allow_patterns" in given, (path.name, node.lineno, given)
    assert found >= 4


def test_nothing_here_fetches_compiled_code():
    """transformers and bitsandbytes load it from the Hub wherever this package is there."""
    assert importlib.util.find_spec("kernels") is None
    wanted = "".join((ROOT / name).read_text() for name in ("requirements.txt", "requirements-dev.txt", "requirements-starter.txt"))
    assert not re.search(r"^kernels\b", wanted, re.MULTILINE)


def test_the_weights_of_a_header_are_counted_once():
    config = {"hidden_size": 4, "num_hidden_layers": 1, "vocab_size": 8, "num_attention_heads": 1, "intermediate_size": 8}
    tensors = {"model.layers.0.mlp.up_proj.weight": ("F32", (8, 4)), "model.embed_tokens.weight": ("F32", (8, 4))}
    assert repository.count("a/b", config, tensors, 256, 1e3) == 64
    assert len(save({"x": np.zeros(3)})) > 8
