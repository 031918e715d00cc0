"""A stand-in Hugging Face Hub on a real local socket: repos, commits, downloads, access rules and faults, in memory.

    with StandInHub() as hub:
        hub.add_repo("alice/data", repo_type="dataset", files={"train.jsonl": "{}"}, private=True)
        subprocess.run(client, env={**os.environ, "HF_ENDPOINT": hub.url})  # the client reads it when imported
        assert hub.requests[-1].user == "alice"

For browser journeys: `python -m tests.stand_in_hub --port 9999 --seed-folder DIR`.
"""

import argparse
import asyncio
import base64
import contextlib
import hashlib
import html
import json
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs

import uvicorn
import yaml
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse

from tests.stand_in_sign_in import SignIn

LFS_SUFFIXES = (".bin", ".gguf", ".parquet", ".pt", ".safetensors")
NAME = re.compile(r"(?!.*(--|\.\.))(?![-.])[\w.-]{1,96}(?<![-.])(?<!\.git)(?<!\.ipynb)", re.ASCII)


class HubError(Exception):
    """An answer other than success; `code` becomes X-Error-Code, by which the client picks its exception."""

    def __init__(self, status: int, message: str, code: str = "", headers: dict | None = None, **body):
        self.status, self.body = status, {"error": message, **body}
        self.headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **(headers or {})}


class LoggedRequest(NamedTuple):
    """A request as it came in; `user` is None without a token and for a token the Hub does not know."""

    method: str
    path: str
    user: str | None
    token: str | None


class Commit(NamedTuple):
    """The whole content of a repo after one commit."""

    oid: str
    title: str
    author: str
    created_at: str
    files: dict[str, bytes]


@dataclass
class Repo:
    """A repo with one branch, main; `granted` holds the users let through the gate."""

    repo_id: str
    repo_type: str
    private: bool = False
    gated: bool | str = False  # False, "auto" or "manual"
    granted: set[str] = field(default_factory=set)
    commits: list[Commit] = field(default_factory=list)

    @property
    def sha(self) -> str:
        return self.commits[-1].oid

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1].files

    def commit(self, files: dict[str, bytes | str], deleted: Iterable[str] = (), title="Update", author="") -> Commit:
        """Add a commit to main, as some other client would; a path in `deleted` that ends in "/" is a folder."""
        kept = dict(self.files) if self.commits else {}
        for gone in deleted:
            kept = {p: data for p, data in kept.items() if not (p.startswith(gone) if gone[-1] == "/" else p == gone)}
        kept |= {path: data.encode() if isinstance(data, str) else data for path, data in files.items()}
        blobs = sorted((path, git_oid(data)) for path, data in kept.items())
        oid = hashlib.sha1(repr((self.repo_type, self.repo_id, len(self.commits), title, blobs)).encode()).hexdigest()
        created_at = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S}.000Z"  # the client refuses other ways to write it
        self.commits.append(Commit(oid, title, author or self.repo_id.split("/")[0], created_at, kept))
        return self.commits[-1]

    def commit_at(self, revision: str) -> Commit:
        """Give the commit of main or of a 40-digit id."""
        for commit in reversed(self.commits):
            if revision in ("main", commit.oid):
                return commit
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")


@dataclass
class Fault:
    """Something that goes wrong with the `nth` matching request and the `times - 1` matching ones after it.

    kind:
        "429", "500", "503", ... is the status; the request is not handled; the answer asks to wait `wait_s` seconds, if any;
        "reset"     the connection is reset; the request is not handled;
        "timeout"   no answer until the client gives up; the request is not handled;
        "lost"      the request is handled, then the connection is reset instead of an answer;
        "truncate"  the request is handled, then the connection closes after half of the body;
        a function  is called with the hub just before the request is handled as usual.
    method, path: regular expressions; the method must match in full, the path (no query) anywhere.
    says: the answer's message, where the kind is a status; {token} in it becomes the token that was sent.
    """

    kind: str | Callable[["StandInHub"], object]
    method: str = ".*"
    path: str = ".*"
    nth: int = 1
    times: int = 1
    seen: int = 0
    wait_s: int | None = None
    says: str = ""

    def __post_init__(self):
        if not (callable(self.kind) or re.fullmatch(r"[45]\d\d|reset|timeout|lost|truncate", self.kind)):
            raise ValueError(f"Unknown kind of fault: {self.kind!r}. The docstring of Fault lists them.")

    def strikes(self, method: str, path: str) -> bool:
        """Count the request if it matches, and tell whether it is to fail."""
        if not (re.fullmatch(self.method, method) and re.search(self.path, path)):
            return False
        self.seen += 1
        return self.nth <= self.seen < self.nth + self.times


class StandInHub:
    """The stand-in; enter it to serve. Tests may read and change its attributes while it does.

    Not imitated: Xet transfer, branches, pull requests, search by more than a part of the name, Jobs, organizations, limits of rate and size.

    Attributes:
        url: what clients need as HF_ENDPOINT.
        users: token -> user name; a user owns the namespace of that name.
        auths: token -> what whoami says of it under "auth"; a token that may write, without an entry.
        lfs: whether weights are uploaded as large files, each by itself; else inside the commit.
        blobs: SHA-256 -> bytes of such files.
        repos: (repo_type, "user/name") -> Repo.
        security: "user/name" -> what the scanners found in a model's repository, told to who asks with securityStatus.
        sign_in: the OpenID provider, see `tests.stand_in_sign_in`.
        requests: what came in, oldest first.
        faults: what is to go wrong. A request struck by one is not seen by those after it, so faults that match
            the same requests strike one after the other.
    """

    def __init__(self, port: int = 0):
        self.users = {"hf_test_alice": "alice", "hf_test_bob": "bob"}
        self.auths: dict[str, dict] = {}
        self.lfs = False
        self.blobs: dict[str, bytes] = {}
        self.repos: dict[tuple[str, str], Repo] = {}
        self.security: dict[str, dict] = {}
        self.requests: list[LoggedRequest] = []
        self.faults: list[Fault] = []
        self._port = port
        self._app = FastAPI(openapi_url=None, exception_handlers={HubError: _answer_error})
        self.sign_in = SignIn(self)
        self.sign_in.add_routes(self._app)
        repo, file = "/api/{kind}/{namespace}/{name}", "/{namespace}/{name}/resolve/{revision}/{path:path}"
        for methods, path, handler in [  # the first match wins, so fixed words stand above {kind}
            ("GET", "/api/whoami-v2", self.whoami),
            ("POST", "/api/validate-yaml", self.validate_yaml),
            ("POST", "/api/repos/create", self.create_repo),
            ("DELETE", "/api/repos/delete", self.delete_repo),
            ("GET POST PUT DELETE", "/api/jobs/{rest:path}", self.refuse_jobs),
            ("POST", "/{namespace}/{name}.git/info/lfs/objects/batch", self.lfs_batch),
            ("PUT", "/lfs/{oid}", self.lfs_put),
            ("POST", "/lfs/{oid}/verify", self.lfs_verify),
            ("GET", "/api/models", self.list_models),
            ("GET", repo, self.repo_info),
            ("GET", repo + "/revision/{revision}", self.repo_info),
            ("PUT", repo + "/settings", self.update_settings),
            ("GET", repo + "/auth-check", self.check_access),
            ("GET", repo + "/auth-check/{need}", self.check_access),
            ("POST", repo + "/preupload/{revision}", self.preupload),
            ("POST", repo + "/commit/{revision}", self.commit),
            ("GET", repo + "/tree/{revision}", self.list_tree),
            ("GET", repo + "/tree/{revision}/{folder:path}", self.list_tree),
            ("POST", repo + "/paths-info/{revision}", self.paths_info),
            ("GET HEAD", file, self.resolve),
            ("GET HEAD", "/{kind}" + file, self.resolve),
            ("GET", "/{namespace}/{name}", self.show_page),
            ("GET", "/{kind}/{namespace}/{name}", self.show_page),
        ]:
            self._app.add_api_route(path, handler, methods=methods.split())

    def __enter__(self) -> "StandInHub":
        listener = socket.create_server(("127.0.0.1", self._port))  # listens at once; early clients wait in its queue
        # Inherited by its connections; asyncio does not set it on such sockets, and every answer would take 40 ms.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        options = dict(interface="asgi3", http="h11", ws="none", lifespan="off", proxy_headers=False, log_level="error")
        self._server = uvicorn.Server(uvicorn.Config(self._serve, **options))
        self._thread = threading.Thread(target=self._server.run, args=([listener],), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.should_exit = True
        self._thread.join()

    def add_repo(self, repo_id: str, repo_type="model", files=None, private=False, gated: bool | str = False) -> Repo:
        """Put a repo there with exactly these files (path -> bytes or text)."""
        repo = Repo(repo_id, repo_type, private, "auto" if gated is True else gated)
        repo.commit(files or {}, title="initial commit")
        self.repos[repo_type, repo_id] = repo
        return repo

    # Handlers never await between reading a repo and changing it, so that no lock is needed.

    async def whoami(self, request: Request):
        user = self._user(request)
        if user is None:
            raise HubError(401, "Invalid username or password.")
        about = {"type": "user", "id": user, "name": user, "fullname": user.title(), "isPro": False, "orgs": []}
        token = request.headers["authorization"].removeprefix("Bearer ")
        auth = self.auths.get(token, {"type": "access_token", "accessToken": {"displayName": "test", "role": "write"}})
        return about | {"auth": auth, "avatarUrl": f"{self.url}/avatars/{user}.svg"}

    async def validate_yaml(self, request: Request):
        card = read_card((await request.json())["content"])
        return {"errors": [], "warnings": [] if card else [{"message": "empty or missing yaml metadata in repo card"}]}

    async def create_repo(self, request: Request):
        payload, user = await request.json(), self._user(request)
        repo_type, name, owner = payload.get("type", "model"), payload["name"], payload.get("organization") or user
        if user is None:
            raise HubError(401, "Invalid username or password.")
        if owner != user:
            raise HubError(403, f'You don\'t have the rights to create a {repo_type} under the namespace "{owner}"')
        if not NAME.fullmatch(name):
            rule = "1 to 96 of A-Z a-z 0-9 - _ . without -- or .., no - or . at the ends, no final .git or .ipynb"
            raise HubError(400, f"Invalid repo name {name!a}: {rule}")
        if repo := self.repos.get((repo_type, f"{owner}/{name}")):  # exist_ok=True reads the url from the refusal
            raise HubError(409, f"You already created this {repo_type} repo", url=self._web_url(repo))
        lfs_rules = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)
        # The Hub, too, starts a repo with this file, so an empty repo is not quite empty.
        repo = self.add_repo(f"{owner}/{name}", repo_type, {".gitattributes": lfs_rules})
        repo.private = payload.get("visibility") == "private"
        return {"url": self._web_url(repo), "name": repo.repo_id}

    async def delete_repo(self, request: Request):
        payload = await request.json()
        owner = payload.get("organization") or self._user(request)
        repo = self._find(request, payload.get("type", "model") + "s", owner, payload["name"], need="write")
        del self.repos[repo.repo_type, repo.repo_id]

    async def refuse_jobs(self, rest: str):
        raise HubError(404, "This stand-in has no Jobs")

    async def list_models(self, request: Request, author: str = "", search: str = "", limit: int = 100):
        user = self._user(request)
        seen = [
            its for (kind, repo_id), its in self.repos.items()
            if kind == "model" and (not its.private or repo_id.split("/")[0] == user)
            and (not author or repo_id.split("/")[0] == author) and search in repo_id
        ]
        return [describe(its, its.commits[-1], False) for its in seen[:limit]]

    async def repo_info(self, request: Request, kind, namespace, name, revision="main", blobs: bool = False):
        repo = self._find(request, kind, namespace, name)
        info, asked = describe(repo, repo.commit_at(revision), blobs), request.query_params.getlist("expand")
        if "securityStatus" in request.query_params and repo.repo_id in self.security:
            info["securityRepoStatus"] = self.security[repo.repo_id]
        return {key: value for key, value in info.items() if not asked or key in ("id", *asked)}

    async def update_settings(self, request: Request, kind, namespace, name):
        payload = await request.json()
        repo = self._find(request, kind, namespace, name, need="write")
        if "visibility" in payload:  # sent for update_repo_settings(private=...), too
            repo.private = payload["visibility"] == "private"
        repo.gated = payload.get("gated", repo.gated)

    async def check_access(self, request: Request, kind, namespace, name, need="read"):
        self._find(request, kind, namespace, name, need)

    async def preupload(self, request: Request, kind, namespace, name, revision):
        paths = [file["path"] for file in (await request.json())["files"]]
        old = self._find(request, kind, namespace, name, need="write").commit_at(revision).files
        # "regular" for every file keeps Xet and LFS out; the client drops a file whose oid shows it unchanged.
        modes = {path: "lfs" if self.lfs and path.endswith(LFS_SUFFIXES) else "regular" for path in paths}
        hashes = {"regular": git_oid, "lfs": lambda data: hashlib.sha256(data).hexdigest()}
        oids = {path: hashes[modes[path]](old[path]) if path in old else None for path in paths}
        return {"files": [{"path": path, "oid": oid, "uploadMode": modes[path], "shouldIgnore": False} for path, oid in oids.items()]}

    async def lfs_batch(self, request: Request, namespace, name):
        self._find(request, "models", namespace, name, need="write")
        objects = (await request.json())["objects"]
        for its in objects:
            if its["oid"] not in self.blobs:  # what is there already is not sent again
                href = f"{self.url}/lfs/{its['oid']}"
                its["actions"] = {"upload": {"href": href}, "verify": {"href": href + "/verify"}}
        return {"transfer": "basic", "objects": objects}

    async def lfs_put(self, request: Request, oid):
        data = await request.body()
        if hashlib.sha256(data).hexdigest() != oid:
            raise HubError(400, "The content does not have this hash")
        self.blobs[oid] = data

    async def lfs_verify(self, request: Request, oid):
        if len(self.blobs.get(oid, b"")) != (await request.json())["size"]:
            raise HubError(404, "No such object of this size")

    async def commit(self, request: Request, kind, namespace, name, revision):
        header, *operations = [json.loads(line) for line in (await request.body()).splitlines()]
        repo = self._find(request, kind, namespace, name, need="write")
        if revision != "main":
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        if header["value"].get("parentCommit", repo.sha) != repo.sha:
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        added, deleted = {}, []
        for key, value in ((operation["key"], operation["value"]) for operation in operations):
            if key == "file":
                added[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                if value["oid"] not in self.blobs:
                    raise HubError(400, f"Your push was rejected because an LFS pointer pointed to a file that does not exist: {value['path']}")
                added[value["path"]] = self.blobs[value["oid"]]
            elif key in ("deletedFile", "deletedFolder"):
                deleted.append(value["path"].rstrip("/") + ("/" if key == "deletedFolder" else ""))
                if not any(path == deleted[-1] or path.startswith(deleted[-1]) for path in repo.files):
                    raise HubError(404, f"A file with the name {value['path']} does not exist", "EntryNotFound")
            else:
                raise HubError(400, f"This stand-in does not know the operation {key}")
        read_card(added.get("README.md", b"").decode(errors="replace"))
        oid = repo.commit(added, deleted, header["value"]["summary"], self._user(request)).oid
        return {"success": True, "commitOid": oid, "commitUrl": f"{self._web_url(repo)}/commit/{oid}"}

    async def list_tree(self, request: Request, kind, namespace, name, revision, folder="", recursive: bool = False):
        entries = list_entries(self._find(request, kind, namespace, name).commit_at(revision).files)
        prefix = folder and folder.rstrip("/") + "/"
        below = [entry for path, entry in entries.items() if path.startswith(prefix)]
        if folder and not below:
            raise HubError(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        return [entry for entry in below if recursive or "/" not in entry["path"][len(prefix) :]]

    async def paths_info(self, request: Request, kind, namespace, name, revision):
        paths = parse_qs((await request.body()).decode()).get("paths", [])
        entries = list_entries(self._find(request, kind, namespace, name).commit_at(revision).files)
        return [entries[path] for path in paths if path in entries]

    async def resolve(self, request: Request, namespace, name, revision, path, kind="models"):
        commit = self._find(request, kind, namespace, name, need="read").commit_at(revision)
        headers = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
        if path not in commit.files:  # with the commit: the client notes for it that there is no such file
            raise HubError(404, "Entry not found", "EntryNotFound", headers)
        data, entry = commit.files[path], list_entries({path: commit.files[path]})[path]
        headers["ETag"] = f'"{entry.get("lfs", entry)["oid"]}"'
        asked = re.fullmatch(r"bytes=(?!-$)(\d*)-(\d*)", request.headers.get("range", ""))
        if asked is None:
            return Response(data, 200, headers, "application/octet-stream")
        first, last = asked.groups()
        start = int(first) if first else max(0, len(data) - int(last))
        end = min(int(last) + 1, len(data)) if first and last else len(data)
        if start >= end:
            raise HubError(416, "Range not satisfiable", headers=headers | {"Content-Range": f"bytes */{len(data)}"})
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
        return Response(data[start:end], 206, headers, "application/octet-stream")

    async def show_page(self, namespace, name, kind="models"):
        """Show a repo to anybody, also a private one: browsers bring no token here, on the Hub they are signed in."""
        repo = self.repos.get((kind.removesuffix("s"), f"{namespace}/{name}"))
        if repo is None:
            return HTMLResponse("<h1>404</h1><p>Repository not found", 404)
        facts = f"{'private' if repo.private else 'public'} {repo.repo_type} at {repo.sha}"
        readme = repo.files.get("README.md", b"No README").decode(errors="replace")
        items = "".join(f"<li>{html.escape(path)} ({len(data)} bytes)" for path, data in sorted(repo.files.items()))
        head = f"<!doctype html><html lang=en><title>{repo.repo_id}</title><h1>{repo.repo_id}</h1>"
        return HTMLResponse(f"{head}<p>{facts}</p><pre>{html.escape(readme)}</pre><ul>{items}</ul></html>")

    def _user(self, request: Request) -> str | None:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token and token not in self.users:  # refused also where no token is needed
            raise HubError(401, "Invalid credentials in Authorization header")
        return self.users.get(token)

    def _find(self, request: Request, kind: str, namespace: str, name: str, need="see") -> Repo:
        """Give a repo to a user who may "see" it, "read" its files or "write" to it; a gate lets everybody see."""
        user = self._user(request)
        repo, mine = self.repos.get((kind.removesuffix("s"), f"{namespace}/{name}")), user == namespace
        if repo is None or (repo.private and not mine) or (need == "write" and user is None):
            # One answer for missing and private. The code goes with 401, too: only on https does the client
            # take a bare 401 for RepoNotFound.
            message = "Repository not found" if user else "Invalid username or password."
            raise HubError(404 if user else 401, message, "RepoNotFound")
        if need == "write" and not mine:
            raise HubError(403, f"You don't have write access to {repo.repo_id}")
        if need == "read" and repo.gated and not mine and user not in repo.granted:
            way_in = f"Visit {self._web_url(repo)} to ask for access." if user else "Please log in."
            message = f"Access to {repo.repo_type} {repo.repo_id} is restricted. {way_in}"
            raise HubError(403 if user else 401, message, "GatedRepo")
        return repo

    def _web_url(self, repo: Repo) -> str:
        return f"{self.url}/{'' if repo.repo_type == 'model' else repo.repo_type + 's/'}{repo.repo_id}"

    async def _serve(self, scope, receive, send):
        """Log a request, then let the app answer it, or a fault."""
        method, path = scope["method"], scope["path"]
        token = dict(scope["headers"]).get(b"authorization", b"").decode().removeprefix("Bearer ") or None
        self.requests.append(LoggedRequest(method, path, self.users.get(token), token))
        fault = next((fault for fault in self.faults if fault.strikes(method, path)), None)
        kind = fault and fault.kind
        if callable(kind):
            kind(self)
        if kind is None or callable(kind):
            return await self._app(scope, receive, send)
        if kind not in ("lost", "truncate"):
            while (await receive()).get("more_body"):  # take it all, or the client may already fail while it sends
                pass
        if kind.isdecimal():
            headers = {"RateLimit": '"api";r=0;t=0'} if kind == "429" and fault.wait_s is None else {}
            headers |= {"Retry-After": str(fault.wait_s)} if fault.wait_s is not None else {}
            message = fault.says.format(token=token) or f"Fault {kind}"
            return await JSONResponse({"error": message}, int(kind), headers)(scope, receive, send)

        async def send_part(message):
            if kind == "truncate":
                body = message.get("body", b"")
                await send({**message, "body": body[: len(body) // 2], "more_body": True})

        if kind in ("lost", "truncate"):
            await self._app(scope, receive, send_part)
        # uvicorn has no public way to drop a connection; `send` is a method of the object that holds it.
        transport = send.__self__.transport
        while kind == "timeout" and not (transport.is_closing() or self._server.should_exit):
            await asyncio.sleep(0.02)
        if kind == "truncate":
            transport.close()
        elif not transport.is_closing():  # linger 0 makes it a reset instead of an orderly close
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            transport.abort()
        while (await receive())["type"] != "http.disconnect":
            pass


async def _answer_error(request: Request, error: HubError) -> Response:
    return JSONResponse(error.body, error.status, error.headers)


def git_oid(data: bytes) -> str:
    """Give the id git has for a file, which the client computes, too."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def list_entries(files: dict[str, bytes]) -> dict[str, dict]:
    """Describe every file and folder as tree and paths-info do; weights and the like are listed as LFS files."""
    entries = {}
    for path, data in sorted(files.items()):
        for folder in (str(parent) for parent in reversed(Path(path).parents[:-1])):
            entries[folder] = {"type": "directory", "path": folder, "size": 0, "oid": git_oid(folder.encode())}
        entries[path] = {"type": "file", "path": path, "size": len(data), "oid": git_oid(data)}
        if path.endswith(LFS_SUFFIXES):
            sha256 = hashlib.sha256(data).hexdigest()
            pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(data)}\n".encode()
            entries[path]["oid"] = git_oid(pointer)
            entries[path]["lfs"] = {"oid": sha256, "size": len(data), "pointerSize": len(pointer)}
    return entries


def read_card(text: str) -> dict:
    """Give the YAML front matter of a README, {} without one; bad YAML is the Hub's refusal, 400."""
    front = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    try:
        card = yaml.safe_load(front[1]) if front else None
    except yaml.YAMLError as error:
        raise HubError(400, "Invalid metadata in README.md", errors=[{"message": str(error)}]) from error
    if not isinstance(card or {}, dict):
        raise HubError(400, "Invalid metadata in README.md", errors=[{"message": "not a mapping"}])
    return card or {}


def describe(repo: Repo, commit: Commit, blobs: bool) -> dict:
    """Give what the Hub tells of a repo at one commit; `blobs` adds the sizes of its files."""
    files = [entry for entry in list_entries(commit.files).values() if entry["type"] == "file"]
    sizes = [{"size": file["size"], "blobId": file["oid"]} if blobs else {} for file in files]
    card = read_card(commit.files.get("README.md", b"").decode(errors="replace"))
    tags = [*card.get("tags", []), *([f"license:{card['license']}"] if "license" in card else [])]
    return {
        "id": repo.repo_id, "author": repo.repo_id.split("/")[0], "sha": commit.oid,
        "private": repo.private, "gated": repo.gated, "disabled": False, "cardData": card, "tags": tags,
        "createdAt": repo.commits[0].created_at, "lastModified": commit.created_at,
        "siblings": [{"rfilename": file["path"]} | size for file, size in zip(files, sizes, strict=True)],
        **{key: card[key] for key in ("pipeline_tag", "library_name") if key in card},
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.stand_in_hub", description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=0, help="default: any free port")
    parser.add_argument("--seed-folder", type=Path, help="holds {models,datasets,spaces}/USER/NAME/files...")
    parser.add_argument("--user", action="append", default=[], metavar="TOKEN=NAME", help="one more; repeatable")
    args = parser.parse_args()
    with StandInHub(args.port) as hub:
        hub.users |= dict(user.split("=", 1) for user in args.user)
        for folder in sorted(args.seed_folder.glob("*/*/*/")) if args.seed_folder else []:
            kind, namespace, name = folder.parts[-3:]
            files = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
            hub.add_repo(f"{namespace}/{name}", kind.removesuffix("s"), files)
        print(hub.url, flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
