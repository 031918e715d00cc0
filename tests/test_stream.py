"""A Hub dataset decoded in a process of its own: what it gets, what it cannot reach, what it survives."""

import json
import os
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from tests.bad_inputs import make
from tests.hub_client import ALICE, BOB, Client, assert_no_token_in
from tests.stand_in_hub import Fault
from tuner import stream
from tuner.errors import UserError

CARD = "---\nconfigs:\n- config_name: easy\n  data_files: [{split: train, path: easy/train.jsonl}, {split: test, path: easy/test.jsonl}]\n---\n"
FILES = {
    "README.md": CARD, "easy/train.jsonl": "".join(json.dumps({"prompt": f"p{n}", "completion": "ü🙂"}) + "\n" for n in range(300)),
    "easy/test.jsonl": '{"prompt": "t", "completion": "c"}\n',
}


@pytest.fixture(scope="module")
def client(server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("client")
    client = Client(server.url, folder, TUNER_HOME=str(folder / "home"))
    yield client
    client.close()
    assert_no_token_in(folder)


def read(client, *args, token=None, most=1000) -> list:
    return client(f"from tuner import data\nrecords, notes = data.read_hub(*{args!r}, token={token!r}, most={most})\nresult = list(records)")


def test_rows_of_a_private_dataset_come_through_the_door_as_the_visitor_s(server, client):
    """All requests bear the visitor's token, though the process that asks has none."""
    server.add_repo("alice/rows", repo_type="dataset", files=FILES, private=True)
    server.requests.clear()
    rows = read(client, "alice/rows", "easy", "train", token=ALICE, most=250)
    assert [row["prompt"] for row in rows] == [f"p{n}" for n in range(250)] and rows[0]["completion"] == "ü🙂"
    assert {its.token for its in server.requests} == {ALICE}
    with pytest.raises(UserError, match="alice/rows does not exist on the Hub, or you may not see it"):
        read(client, "alice/rows", "easy", token=BOB)


def test_what_goes_wrong_behind_the_door_is_said_in_the_same_words(server, client):
    server.add_repo("bob/rows", repo_type="dataset", files=FILES)
    with pytest.raises(UserError, match="bob/rows has no split 'none'. It has train, test"):
        read(client, "bob/rows", "easy", "none")
    server.add_repo("bob/broken", repo_type="dataset", files={"train.jsonl": '{"a": 1}\n{broken\n'})
    with pytest.raises(UserError, match="bob/broken cannot be read as rows"):
        read(client, "bob/broken")
    server.faults.append(Fault("403", path="easy/train", times=1000))  # a 500 is tried again for half a minute
    with pytest.raises(UserError, match=r"The Hub does not let this account|cannot be read as rows") as told:
        read(client, "bob/rows", "easy", "train")
    server.faults.clear()
    assert "127.0.0.1" not in str(told.value)


def test_a_bomb_ends_the_process_that_decodes_it_and_nothing_else(server, client):
    """A hundred gigabytes out of a few kilobytes of Parquet."""
    server.add_repo("bob/bomb", repo_type="dataset", files={"train.parquet": make.parquet_bomb()})
    with pytest.raises(UserError, match="took more memory than 3 GiB|have more than 4 GiB|cannot be read as rows|has [0-9,]+ characters"):
        client("""
            from tuner import data, reading
            records, notes = data.read_hub("bob/bomb")
            for number, row in enumerate(records):
                pass
        """)
    used = client("import psutil\nresult = psutil.Process().memory_info().rss")
    assert used < 2**30


def test_rows_without_end_are_bounded(server, client):
    server.add_repo("bob/long", repo_type="dataset", files={"train.jsonl": json.dumps({"text": "x" * (17 * 2**20)}) + "\n"})
    with pytest.raises(UserError, match=r"Row 1 of bob/long has 17,.* characters; the most is 16,777,216"):
        read(client, "bob/long")


def test_the_door_opens_to_one_commit_of_one_dataset_for_reading(server):
    repo = server.add_repo("alice/rows", repo_type="dataset", files=FILES, private=True)
    server.add_repo("alice/other", repo_type="dataset", files=FILES, private=True)
    server.add_repo("alice/model", files={"config.json": "{}"}, private=True)

    def ask(path: str, url: str = "", method: str = "GET") -> int:
        try:
            return urllib.request.urlopen(urllib.request.Request((url or door.url) + path, method=method), timeout=10).status
        except urllib.error.HTTPError as error:
            return error.code

    with stream._Door("alice/rows", repo.sha, ALICE, server.url) as door:
        assert ask(f"/api/datasets/alice/rows/revision/{repo.sha}") == 200 and ask(f"/datasets/alice/rows/resolve/{repo.sha}/README.md") == 200
        server.requests.clear()
        for path in (
            "/api/whoami-v2", "/api/datasets/alice/other", "/api/models/alice/model", f"/datasets/alice/rows/resolve/main/{'README.md'}",
            f"/datasets/alice/rows/resolve/{repo.sha}/../../../other/resolve/main/README.md", f"/datasets/alice/rows/resolve/{repo.sha}/%2e%2e/x",
            "/api/datasets/alice/rows/auth-check", f"/api/datasets/alice/rows/commit/{repo.sha}", "/api/datasets/alice/rows/settings", "",
        ):
            assert ask(path) == 404, path
        wrong = door.url.replace(door.key, "x" * len(door.key))
        assert ask(f"/api/datasets/alice/rows/revision/{repo.sha}", wrong) == 404 and ask("/", door.url[: -len(door.key)]) == 404
        assert server.requests == []
        for method in ("PUT", "DELETE", "PATCH"):
            assert ask(f"/api/datasets/alice/rows/revision/{repo.sha}", method=method) == 501


def test_the_process_that_decodes_has_no_token_and_ends_with_the_stream(server, client):
    server.add_repo("alice/rows", repo_type="dataset", files=FILES, private=True)
    found = client(f"""
        import psutil
        from tuner import data
        records, notes = data.read_hub("alice/rows", "easy", token={ALICE!r})
        next(records)
        its = [one for one in psutil.Process().children() if "tuner.stream" in one.cmdline()]
        result = [[one.pid, one.cmdline(), one.environ(), one.cwd()] for one in its]
        records.close()
    """)
    (pid, command, environment, folder), = found
    assert "hf_" not in json.dumps([command, environment]).replace("hf_home", "") and environment["HF_ENDPOINT"].startswith("http://127.0.0.1:")
    assert os.stat(folder).st_mode & 0o777 == 0o700 and not list(Path(folder).iterdir())
    assert not psutil.pid_exists(pid)


def test_pictures_are_decoded_there_and_come_as_ours(server, client):
    """As most datasets of pictures on the Hub have them: Parquet with bytes, and named classes. `datasets` decodes nothing."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    from tests.drawn import coded, noise

    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["cat", "dog"]}}
    table = pa.table({"image": [{"bytes": coded(noise(n)), "path": None} for n in range(4)] + [{"bytes": b"nothing", "path": "x.png"}], "label": [0, 1, 0, 1, 0]})
    out = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}), out)
    server.add_repo("bob/pictures", repo_type="dataset", files={"data/train-00000-of-00001.parquet": out.getvalue()})
    found = client("""
        from tuner import check, data, pictures
        records, notes = data.read_hub("bob/pictures")
        dataset = data.create("local", "bob/pictures", {"kind": "hub", "hub_id": "bob/pictures"})
        data.take(dataset, records, notes)
        data.settle(dataset)
        rows, left_out = data.to_rows(dataset.head(), dataset.mapping, dataset.task)
        result = [dataset.task, [row["label"] for row in rows], [its["kind"] for its in left_out], len(pictures.content(dataset.folder, rows[0]["picture"]))]
    """)
    assert found[:3] == ["image_labels", ["cat", "dog", "cat", "dog"], ["missing_picture"]] and found[3] > 100
