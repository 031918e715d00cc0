"""Tests of the stand-in Hub: the real client, in a process of its own, finds in it what it finds on huggingface.co."""

import hashlib
import json
import os
import struct
import subprocess
import sys
import textwrap
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.stand_in_hub import Fault, StandInHub

ROOT = Path(__file__).parent.parent
ALICE, BOB = "hf_test_alice", "hf_test_bob"
PRELUDE = """
import json, os
from pathlib import Path
from huggingface_hub import HfApi, errors, snapshot_download
ALICE, BOB, here = "hf_test_alice", "hf_test_bob", Path(os.environ["HF_HOME"]).parent
alice, bob, nobody = HfApi(token=ALICE), HfApi(token=BOB), HfApi(token=False)

def outcome(call, *args, **kwargs):
    "The status and the error class that a call ends in, or 'ok'."
    try:
        call(*args, **kwargs)
        return "ok"
    except errors.HfHubHTTPError as error:
        return f"{error.response.status_code} {type(error).__name__}"
    except Exception as error:
        return type(error).__name__
"""


@pytest.fixture
def hub():
    with StandInHub() as hub:
        yield hub


@pytest.fixture
def client(hub, tmp_path):
    """Run a script with the real client in a fresh HF_HOME; give what it leaves in `result`."""

    def run(script: str, **env: str):
        kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        hf = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf_home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
        hf |= {"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "127.0.0.1"}
        code = PRELUDE + textwrap.dedent(script) + "\nprint(json.dumps(result))"
        done = subprocess.run(
            [sys.executable, "-c", code], env=kept | hf | env, capture_output=True, text=True, timeout=60, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

    return run


def safetensors_bytes() -> bytes:
    header = json.dumps({"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(24)


@pytest.mark.parametrize("env", [{}, {"HF_HUB_DISABLE_XET": "1"}], ids=["xet installed", "xet disabled"])
def test_a_folder_comes_back_with_equal_bytes(hub, client, tmp_path, env):
    folder = {
        "README.md": b"---\nlicense: mit\ntags: [lora]\n---\n# Adapter\n",
        "adapter model.safetensors": safetensors_bytes(),
        "deep/er/empty.txt": b"",
        "deep/bytes.bin": bytes(range(256)) * 5000,
    }
    for path, data in folder.items():
        (tmp_path / "out" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / path).write_bytes(data)
    result = client(
        """
        url = alice.create_repo("alice/adapter", private=True)
        first = alice.upload_folder(repo_id="alice/adapter", folder_path=here / "out", commit_message="One")
        again = alice.upload_folder(repo_id="alice/adapter", folder_path=here / "out")
        alice.delete_file("deep/er/empty.txt", "alice/adapter")
        info = alice.model_info("alice/adapter", files_metadata=True)
        entries = alice.get_paths_info("alice/adapter", ["README.md", "deep/bytes.bin", "no.txt"])
        found = {}
        for revision in (first.oid, "main"):
            down = Path(snapshot_download("alice/adapter", revision=revision, token=ALICE))
            paths = [path for path in down.rglob("*") if path.is_file()]
            found[revision] = {str(path.relative_to(down)): path.read_bytes().hex() for path in paths}
        result = dict(
            url=str(url), commit_url=first.commit_url, first=first.oid, again=again.oid, found=found,
            sha=info.sha, private=info.private, card=info.card_data.to_dict(),
            sizes={s.rfilename: s.size for s in info.siblings}, paths={e.path: e.lfs and e.lfs.sha256 for e in entries},
        )
        """,
        **env,
    )
    repo = hub.repos["model", "alice/adapter"]
    first_files = {path: bytes.fromhex(data) for path, data in result["found"][result["first"]].items()}
    assert first_files.pop(".gitattributes")
    assert first_files == folder
    assert set(result["found"]["main"]) == set(repo.files) == {".gitattributes", *folder} - {"deep/er/empty.txt"}
    assert result["again"] == result["first"] and len(repo.commits) == 3  # created, uploaded, deleted
    assert [commit.author for commit in repo.commits] == ["alice"] * 3 and repo.commits[1].title == "One"
    assert result["private"] and result["card"] == {"license": "mit", "tags": ["lora"]} and result["sha"] == repo.sha
    assert result["url"] == f"{hub.url}/alice/adapter"
    assert result["commit_url"] == f"{hub.url}/alice/adapter/commit/{result['first']}"
    assert result["sizes"] == {path: len(data) for path, data in repo.files.items()}
    sha256 = hashlib.sha256(folder["deep/bytes.bin"]).hexdigest()
    assert result["paths"] == {"README.md": None, "deep/bytes.bin": sha256}
    assert not [r.path for r in hub.requests if "xet" in r.path or "lfs" in r.path]
    assert {r.user for r in hub.requests} == {"alice"}


def test_a_private_repo_is_invisible_to_others(hub, client):
    hub.add_repo("alice/secret", files={"a.txt": b"a"}, private=True)
    result = client("""
        who = [alice, bob, nobody, HfApi(token="hf_unknown")]
        calls = lambda api: [outcome(api.model_info, "alice/secret"), outcome(api.auth_check, "alice/secret"),
                             outcome(api.hf_hub_download, "alice/secret", "a.txt", local_dir=here / str(id(api)))]
        before = [calls(api) for api in who]
        alice.update_repo_settings("alice/secret", private=False)
        result = [before, outcome(nobody.model_info, "alice/secret"),
                  outcome(bob.auth_check, "alice/secret", write=True),
                  outcome(bob.upload_file, path_or_fileobj=b"", path_in_repo="x", repo_id="alice/secret")]
    """)
    before, *after = result
    assert before[0] == ["ok"] * 3
    assert before[1] == ["404 RepositoryNotFoundError"] * 3
    assert before[2] == ["401 RepositoryNotFoundError"] * 3
    assert before[3][:2] == ["401 HfHubHTTPError"] * 2
    assert after == ["ok", "403 HfHubHTTPError", "403 HfHubHTTPError"]


def test_a_gated_repo_shows_itself_but_not_its_files(hub, client):
    repo = hub.add_repo("alice/gated", files={"config.json": b"{}"}, gated=True)
    script = """
        here_now = here / str(os.getpid())
        result = [[outcome(api.model_info, "alice/gated"), outcome(api.auth_check, "alice/gated"),
                   outcome(api.hf_hub_download, "alice/gated", "config.json", local_dir=here_now / name)]
                  for name, api in dict(alice=alice, bob=bob, nobody=nobody).items()]
    """
    refused = ["ok", "403 GatedRepoError", "403 GatedRepoError"]
    assert client(script) == [["ok"] * 3, refused, [text.replace("403", "401") for text in refused]]
    repo.granted.add("bob")
    assert client(script)[1] == ["ok"] * 3


def test_repos_are_created_and_deleted_only_where_allowed(hub, client):
    hub.add_repo("alice/old", repo_type="dataset")
    result = client("""
        data = dict(repo_type="dataset")
        result = [
            outcome(alice.create_repo, "alice/old", **data),
            outcome(alice.create_repo, "alice/old", exist_ok=True, **data),
            outcome(alice.create_repo, "alice/old"),
            outcome(bob.create_repo, "alice/new"),
            outcome(nobody.create_repo, "alice/new"),
            outcome(alice.create_repo, "alice/book.ipynb"),
            outcome(bob.delete_repo, "alice/old"),
            outcome(alice.delete_repo, "alice/old"),
            outcome(alice.delete_repo, "alice/old"),
            outcome(alice.delete_repo, "alice/old", missing_ok=True),
            outcome(alice.whoami), alice.whoami()["name"], outcome(HfApi(token="hf_unknown").whoami),
            outcome(alice.model_info, "alice/gone"), outcome(alice.dataset_info, "alice/old", revision="dev"),
            alice.file_exists("alice/old", "no.txt", **data),
        ]
        try:
            card = dict(path_or_fileobj=b"---\\ntags: [\\n---", path_in_repo="README.md")
            alice.upload_file(repo_id="alice/old", **card, **data)
        except ValueError as error:
            result.append(str(error)[:29])
    """)
    assert result == [
        "409 HfHubHTTPError",
        "ok",
        "ok",
        "403 HfHubHTTPError",
        "401 HfHubHTTPError",
        "400 BadRequestError",
        "403 HfHubHTTPError",
        "ok",
        "404 RepositoryNotFoundError",
        "ok",
        "ok",
        "alice",
        "401 HfHubHTTPError",
        "404 RepositoryNotFoundError",
        "404 RevisionNotFoundError",
        False,
        "Invalid metadata in README.md",
    ]
    assert list(hub.repos) == [("dataset", "alice/old")]


def test_datasets_streams_rows_with_the_token_it_was_given(hub, client):
    import pyarrow
    import pyarrow.parquet

    parquet = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table({"n": list(range(100))}), parquet)
    jsonl = "".join(json.dumps({"n": n}) + "\n" for n in range(100))
    hub.add_repo("alice/jsonl", "dataset", {"train.jsonl": jsonl, "test.jsonl": '{"n": 7}\n'}, private=True)
    hub.add_repo("alice/csv", "dataset", {"data.csv": "n\n" + "\n".join(map(str, range(100)))}, private=True)
    hub.add_repo("alice/parquet", "dataset", {"data/train-0.parquet": parquet.getvalue().to_pybytes()}, private=True)
    result = client("""
        from datasets import load_dataset
        result = {}
        for name in ("jsonl", "csv", "parquet"):
            rows = load_dataset(f"alice/{name}", split="train", streaming=True, token=ALICE)
            result[name] = [row["n"] for row in rows]
        result["bob"] = outcome(load_dataset, "alice/csv", split="train", streaming=True, token=BOB)
    """)
    assert result.pop("bob") == "DatasetNotFoundError"
    assert result == {name: list(range(100)) for name in ("jsonl", "csv", "parquet")}
    assert {r.user for r in hub.requests} == {"alice", "bob"}


def test_safetensors_metadata_is_read_without_a_download(hub, client):
    hub.add_repo("alice/model", files={"model.safetensors": safetensors_bytes()})
    result = client('result = nobody.get_safetensors_metadata("alice/model").parameter_count')
    assert result == {"F32": 6}
    assert [(r.method, r.user) for r in hub.requests] == [("HEAD", None), ("GET", None)]


def test_a_range_of_a_file_is_served(hub):
    hub.add_repo("alice/data", "dataset", {"a b.txt": "0123456789"})
    url = f"{hub.url}/datasets/alice/data/resolve/main/a%20b.txt"
    for asked, status, expected in [
        ("bytes=2-4", 206, b"234"),
        ("bytes=7-99", 206, b"789"),
        ("bytes=-3", 206, b"789"),
        ("bytes=0-", 206, b"0123456789"),
        ("nonsense", 200, b"0123456789"),
    ]:
        with urllib.request.urlopen(urllib.request.Request(url, headers={"Range": asked})) as answer:
            assert (answer.status, answer.read()) == (status, expected), asked
    with pytest.raises(urllib.error.HTTPError, match="416"):
        urllib.request.urlopen(urllib.request.Request(url, headers={"Range": "bytes=10-"}))


def test_faults_are_injected_and_seen(hub, client):
    repo = hub.add_repo("alice/model", files={"w.bin": bytes(range(256)) * 400})
    truncated = Fault("truncate", "GET", "/resolve/")
    hub.faults += [
        Fault("500", "POST", "/commit/"),
        Fault("reset", "POST", "/commit/"),
        Fault("lost", "POST", "/commit/"),
        Fault(lambda hub: repo.commit({"rival.txt": "first"}), "POST", "/commit/"),
        Fault("429", "POST", "/preupload/"),
        Fault("timeout", "GET", "^/api/models/", nth=2),
        truncated,
    ]
    result = client("""
        def put(text, **more):
            return outcome(alice.upload_file, path_or_fileobj=text, path_in_repo="a.txt", repo_id="alice/model", **more)
        result = [put(b"1"), put(b"2"), put(b"3")]
        head = alice.model_info("alice/model").sha
        result += [put(b"4", parent_commit=head), outcome(alice.model_info, "alice/model", timeout=0.3)]
        path = Path(alice.hf_hub_download("alice/model", "w.bin"))
        result += [path.read_bytes() == bytes(range(256)) * 400]
    """)
    assert result[0] == "500 HfHubHTTPError"
    assert result[1:3] == ["ReadError", "ReadError"]
    assert result[3:] == ["412 HfHubHTTPError", "ReadTimeout", True]
    assert [commit.files.get("a.txt") for commit in repo.commits] == [None, b"3", b"3"]  # lost, yet committed
    assert repo.files["rival.txt"] == b"first"
    preuploads = [r for r in hub.requests if "/preupload/" in r.path]
    assert len(preuploads) == 5  # four uploads, one of them asked twice because of the 429
    assert truncated.seen == 2  # the client came back for the rest


def test_a_misspelt_fault_is_refused():
    with pytest.raises(ValueError, match="Unknown kind of fault: 'tiemout'"):
        Fault("tiemout")


def test_a_page_opens_in_a_browser(hub):
    repo = hub.add_repo("alice/data", "dataset", {"README.md": "# <Rows>"}, private=True)
    with urllib.request.urlopen(f"{hub.url}/datasets/alice/data") as page:
        text = page.read().decode()
    assert "alice/data" in text and "&lt;Rows&gt;" in text and repo.sha in text
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{hub.url}/alice/data")


def test_it_runs_as_a_program(tmp_path):
    (tmp_path / "models/alice/m/sub").mkdir(parents=True)
    (tmp_path / "models/alice/m/sub/a.txt").write_text("seeded")
    command = [sys.executable, "-m", "tests.stand_in_hub", "--seed-folder", str(tmp_path)]
    program = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        url = program.stdout.readline().strip()
        with urllib.request.urlopen(f"{url}/alice/m/resolve/main/sub/a.txt") as answer:
            assert answer.read() == b"seeded"
    finally:
        program.terminate()
        program.wait()
