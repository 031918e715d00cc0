"""Rows of a Hub dataset, decoded in a process that can be killed; it reaches that one dataset through this one, where the token stays.

Half a megabyte of Parquet may hold five gigabytes, and what decodes it holds them. `python -m tuner.stream` is that process.
For it the Hub is a door on this machine's loopback, under a name that nobody else knows, which opens to one commit of one
dataset, for reading, as the visitor.
"""

import json
import re
import secrets
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

from tuner import child, pictures, redaction
from tuner.errors import UserError, shorten
from tuner.home import private_dir, tuner_home

# What decoding may allocate, and how long it may go on without a row.
MEMORY_BYTES = 3 * 2**30
SILENCE_S = 120.0
# The forms of rows that are read, by datasets' names for their readers; others unpack archives or decode media.
DATASET_KINDS = ("json", "csv", "parquet", "arrow", "text")
_NAME_IN_DATASET = re.compile(r"[^\x00-\x1f/\\<>:|?*\"]{1,100}")
# Of the Hub's answers; what names other places (Xet's, a redirection's) stays out.
_PASSED_ON = (
    "content-type", "content-length", "content-range", "accept-ranges", "etag", "last-modified", "x-repo-commit", "x-linked-etag", "x-linked-size",
    "x-error-code", "x-error-message", "x-request-id", "retry-after", "ratelimit", "link",
)


def rows(hub_id: str, config: str, split: str, sha: str, token: str | None, most: int) -> Iterator[dict]:
    """The first records of one split as plain JSON values; see `decoded`.

    Raises:
        UserError: as there; or decoding took too much memory, or went on without a row.
    """
    from tuner import hub

    place = private_dir(child.place("stream") / secrets.token_hex(8))
    with _Door(hub_id, sha, token, hub.endpoint()) as door:
        process = child.converse(
            "tuner.stream", log=private_dir(tuner_home()) / "stream.log", most_bytes=2**30,
            more={"HF_ENDPOINT": door.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(place), "HF_HUB_DISABLE_XET": "1", "USE_TORCH": "0", "NO_PROXY": "127.0.0.1"},
        )
        last = [time.monotonic()]

        def watch() -> None:
            while process.poll() is None:
                if time.monotonic() - last[0] > SILENCE_S:
                    child.end_group(process.pid)
                time.sleep(0.5)

        threading.Thread(target=watch, daemon=True).start()
        try:
            process.stdin.write(json.dumps([hub_id, config, split, sha, most]) + "\n")
            process.stdin.flush()
            for line in process.stdout:
                last[0] = time.monotonic()
                told = json.loads(line)
                if "row" in told:
                    yield {**told["row"], **{name: pictures.Taken.of_json(its) for name, its in told["pictures"].items()}}
                elif "refused" in told:
                    kind = {"Unreachable": hub.Unreachable, "Transient": hub.Transient}.get(told["kind"], UserError)
                    raise kind(*(problem.replace(door.url, hub.endpoint()) for problem in told["refused"]))
                else:
                    return
            raise UserError(_too_large(hub_id))
        except BrokenPipeError:
            raise UserError(_too_large(hub_id)) from None
        finally:
            child.end(process)
            shutil.rmtree(place, ignore_errors=True)


def _too_large(hub_id: str) -> str:
    return (
        f"Reading {hub_id} took more memory than {MEMORY_BYTES / 2**30:.0f} GiB, or never came to a row, so it was stopped. "
        "Choose another dataset, or bring a part of it as a file."
    )


class _Door(ThreadingHTTPServer):
    """The Hub as one child sees it."""

    daemon_threads = True

    def __init__(self, hub_id: str, sha: str, token: str | None, endpoint: str):
        import httpx2

        super().__init__(("127.0.0.1", 0), _Request)
        self.key = secrets.token_urlsafe(32)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/{self.key}"
        self.endpoint, self.token = endpoint, token
        name, commit = re.escape(hub_id), re.escape(sha)
        self.opens = re.compile(
            rf"/api/datasets/{name}(/revision/{commit})?|/api/datasets/{name}/(tree|paths-info)/{commit}(/.*)?|/datasets/{name}/resolve/{commit}/.+"
        )
        self.client = httpx2.Client(timeout=httpx2.Timeout(45.0), follow_redirects=True)
        threading.Thread(target=self.serve_forever, args=(0.1,), daemon=True).start()

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()
        self.client.close()

    def handle_error(self, request, client_address) -> None:
        """A child that was killed hangs up in the middle, which is nobody's fault."""


class _Request(BaseHTTPRequestHandler):
    """One question of a child's, passed on."""

    def do_GET(self) -> None:
        import httpx2

        door: _Door = self.server
        key, path = self.path[1 : len(door.key) + 1], self.path[len(door.key) + 1 :]
        bare = unquote(path.split("?")[0])
        if not secrets.compare_digest(key.encode(), door.key.encode()) or not door.opens.fullmatch(bare) or ".." in bare.split("/"):
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.end_headers()
            return
        size = self.headers.get("Content-Length", "0")
        asked = {name: self.headers[name] for name in ("Range", "Accept", "Content-Type") if name in self.headers} | {"Accept-Encoding": "identity"}
        if door.token:
            asked["Authorization"] = f"Bearer {door.token}"  # which the client leaves out where it is led to another host
        body = self.rfile.read(min(int(size), 2**20)) if size.isdecimal() and size != "0" else None
        try:
            with door.client.stream(self.command, door.endpoint + path, headers=asked, content=body) as answer:
                told = {}
                for step in (*answer.history, answer):  # what describes a file comes with the redirection to it
                    told |= {name: value for name, value in step.headers.items() if name in _PASSED_ON and not (name.startswith("x-") and name in told)}
                self.send_response(answer.status_code)
                for name, value in told.items():
                    self.send_header(name, value.replace(door.endpoint, door.url) if name == "link" else value)
                self.end_headers()
                for piece in answer.iter_raw(2**16) if self.command != "HEAD" else ():
                    self.wfile.write(piece)
        except (httpx2.TransportError, OSError):
            self.close_connection = True  # as the Hub's own connection was

    do_HEAD = do_POST = do_GET

    def log_message(self, *_) -> None:
        """Nothing: paths hold the door's name."""


# In the child -----------------------------------------------------------------------------------------------------


def decoded(hub_id: str, config: str, split: str, sha: str, token: str | None, most: int) -> Iterator[dict]:
    """The first records of one split, as they arrive; the split itself is not downloaded.

    Args:
        sha: the commit, as `hub.require_dataset` gave it.

    Raises:
        UserError: no such config or split, or files that cannot be read as rows.
    """
    import datasets
    from datasets.exceptions import DataFilesNotFoundError, DatasetGenerationError, DatasetNotFoundError
    from huggingface_hub.errors import HfUriError

    from tuner import hub

    for name in (config, split):
        if name and (not _NAME_IN_DATASET.fullmatch(name) or ".." in name):
            raise UserError(f"{shorten(name, 40)!r} is not the name of a config or split. See the dataset's page for its names.")
    datasets.disable_progress_bars()
    _stay_on_the_hub()
    with hub.in_words(hub_id, bool(token)):
        try:
            # With the scheme, since a bare name would be read from a local folder of that name first.
            builder = datasets.load_dataset_builder(f"hf://datasets/{hub_id}", config or None, revision=sha, token=token or False)
            _require_rows(hub_id, sha, builder)
            parts = builder.as_streaming_dataset()
            names = list(parts)
            chosen = split or ("train" if "train" in names else names[0])
            if chosen not in names:
                raise UserError(f"{hub_id} has no split {shorten(chosen, 30)!r}. It has {', '.join(names)}.")
            named, rows_of = _named_classes(parts[chosen].features), parts[chosen]
            for column, its in (rows_of.features or {}).items():
                if isinstance(its, datasets.Image):  # as bytes: what decodes them is ours, see `pictures`
                    rows_of = rows_of.cast_column(column, datasets.Image(decode=False))
            for record in rows_of.take(most):
                yield {**record, **{column: names(record[column]) for column, names in named.items() if record.get(column) is not None}}
        except (DatasetNotFoundError, DataFilesNotFoundError, DatasetGenerationError, ValueError, RuntimeError, OSError, ImportError) as error:
            theirs = type(error).__module__
            if "httpx2" in theirs or ("huggingface_hub" in theirs and not isinstance(error, HfUriError)):  # see in_words
                raise
            reason = shorten(str(error).splitlines()[0] if str(error) else type(error).__name__, 160)
            raise UserError(f"{hub_id} cannot be read as rows: {reason}. Check its config and split on its page.") from None


def _named_classes(features) -> dict[str, Callable]:
    """column -> what turns its class numbers into the names that the dataset gives them; -1, a label kept secret, into none."""
    from datasets import ClassLabel

    found = {}
    for column, its in (features or {}).items():
        inner = getattr(its, "feature", None)
        if isinstance(its, ClassLabel):
            found[column] = lambda value, names=its.names: names[value] if 0 <= value < len(names) else None
        elif isinstance(inner, ClassLabel):
            found[column] = lambda value, names=inner.names: [names[one] for one in value if 0 <= one < len(names)]
    return found


def _stay_on_the_hub() -> None:
    """Take from `datasets` the means to fetch from other addresses: a README may name any, also those only this machine can reach."""
    import fsspec

    for protocol in ("http", "https", "ftp", "s3", "gs", "gcs", "az", "abfs", "webhdfs", "hdfs", "ssh", "sftp", "smb", "git", "github", "jupyter"):
        fsspec.register_implementation(protocol, f"tuner.nowhere.{protocol}", clobber=True, errtxt="only files of the repository itself are read")


def _require_rows(hub_id: str, sha: str, builder) -> None:
    """Refuse what is read by other means than rows are, or from elsewhere than this repository."""
    kinds = {its.__module__.split(".")[2] for its in type(builder).__mro__ if its.__module__.startswith("datasets.packaged_modules.")}
    if not kinds & set(DATASET_KINDS):
        raise UserError(f"{hub_id} holds {', '.join(sorted(kinds)) or 'no rows'}, not rows. Choose one in JSON, CSV, Parquet, Arrow or text.")
    files = [str(its) for part in (builder.config.data_files or {}).values() for its in part]
    odd = [its for its in files if not its.startswith(f"hf://datasets/{hub_id}@{sha}/") or ".." in its]
    if odd or not files:
        raise UserError(f"{hub_id} names {shorten(odd[0], 60) if odd else 'no files'}, which is not one of its own. Choose another dataset.")


def main() -> None:
    """The child: one line of JSON asks, one line for each row answers."""
    child.limit_memory(MEMORY_BYTES)
    answers, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no answer
    say = lambda told: (answers.write(json.dumps(told) + "\n"), answers.flush())  # noqa: E731
    hub_id, config, split, sha, most = json.loads(sys.stdin.readline())
    from tuner import reading, reading_pictures

    total = 0
    try:
        for number, record in enumerate(decoded(hub_id, config, split, sha, None, most), 1):
            seen = reading.plain(reading_pictures.in_columns(record))
            taken = {name: value.to_json() for name, value in seen.items() if isinstance(value, pictures.Taken)}
            rest = {name: f"a picture that {value}" if isinstance(value, pictures.NoPicture) else value for name, value in seen.items() if name not in taken}
            line = json.dumps({"row": rest, "pictures": taken})
            total += len(line)
            if len(line) > reading.MAX_LINE_BYTES:
                raise UserError(f"Row {number:,} of {hub_id} has {len(line):,} characters; the most is {reading.MAX_LINE_BYTES:,}. Choose another dataset.")
            if total > reading.MAX_EXPANDED_BYTES:
                raise UserError(f"The rows of {hub_id} have more than {reading.MAX_EXPANDED_BYTES / 2**30:.0f} GiB. Take fewer of them.")
            answers.write(line + "\n")
            answers.flush()
        say({"end": True})
    except UserError as error:
        say({"refused": error.problems, "kind": type(error).__name__})
    except MemoryError:
        say({"refused": [_too_large(hub_id)], "kind": ""})


if __name__ == "__main__":
    redaction.install()
    main()
