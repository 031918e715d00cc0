"""Publishing a finished run: checked before it starts, pushed with patience, downloaded again and compared; told in its folder."""

import contextlib
import hashlib
import json
import math
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from tuner import bases, card, child, hub, lease, licences, machine, outgoing, redaction, repository, tasks, transfer
from tuner import run as runs
from tuner.errors import UserError, shorten
from tuner.home import read_json, write_json
from tuner.recipe import HUB_ID
from tuner.transfer import Transient

# checking -> pushing -> verifying -> verified | unverified (it is on the Hub, but not proven) | failed (it is not) | taken (it is
# not: another run of the same account lies there, and nobody has said yet that it may be replaced).
LIVE = ("checking", "pushing", "verifying")
# From the quoted end of a run to its last byte on the Hub: the report, somebody coming back to click, the push.
SPARE_S = 900
MOST_CHECK_S = 1800
_SAY_EVERY_S = 0.5
_REPO_NAME = re.compile(r"(?!.*(?:--|\.\.))[A-Za-z0-9_][A-Za-z0-9_.-]{0,94}[A-Za-z0-9_]")
# In place of a run's id: whichever it is.
ANY_RUN = "*"
# Any of these lets an app create a repository: docs/hub/oauth.md of huggingface/hub-docs.
_SCOPES = {"contribute-repos", "write-repos", "manage-repos"}
# With this one alone it may write only to what it created itself.
_OWN_ONLY = "contribute-repos"


class Taken(UserError):
    """The name is ours, and holds the adapter of another run: `there` says which, see `_look`."""

    def __init__(self, there: dict):
        super().__init__(
            f"{there['repo_id']} holds the adapter of {_anothers(there)}. Nothing there was changed. Put this one in its place, or choose "
            f"another name. {_afterwards(there)}"
        )
        self.there = {name: there[name] for name in ("repo_id", "run", "private")}


def _anothers(there: dict) -> str:
    """What `_look` found of another run, for people."""
    seen = "only you can see it" if there["private"] else "everybody can see it"
    return f"another run of yours ({there['base_model']}, published on {there['day']}; {seen})"


def _afterwards(there: dict) -> str:
    public = "" if there["private"] else " It is public: everybody sees at once what takes its place."
    return f"The one that is there now stays in the repository's history.{public}"


def check_name(name: str) -> str:
    """The repository's name (without the user), if the Hub will take it.

    Raises:
        UserError: saying what is wrong with it, before anything is spent.
    """
    name = str(name).strip()
    if not _REPO_NAME.fullmatch(name) or name.endswith((".git", ".ipynb")):
        raise UserError(
            f"{shorten(name) or 'An empty name'!r} is not a name the Hub takes: 2 to 96 letters, digits, '-', '_' or '.', "
            "no '--' or '..', beginning and ending with a letter or digit."
        )
    return name


# Before a run -----------------------------------------------------------------------------------------------------


def check_before(
    name: str, token: str | None, quoted_s: float, base: dict | None = None, scopes: str = "", expires_at: float | None = None
) -> str:
    """Whether what a run makes could be published under this name when it ends; nothing is created or sent.

    Args:
        quoted_s: how long the run is said to take.
        base: {"id", "licence"} of its base, if known.
        scopes: what a sign-in was granted, separated by spaces; "" for a token of another kind.
        expires_at: when a sign-in ends, in seconds since 1970, if the page knows.

    Returns:
        a sentence or two: what was found, and what is advised.

    Raises:
        UserError: all that stands in its way.
    """
    problems = []
    try:
        name = check_name(name)
    except UserError as error:
        problems += error.problems
    known = transfer.patiently(lambda: hub.account(token))
    user, auth = known["name"], known.get("auth") or {}
    problems += _missing_rights(auth, user, scopes)
    ends = [its for its in (expires_at, _seconds(auth.get("expiresAt")), _seconds((auth.get("accessToken") or {}).get("expiresAt"))) if its]
    if ends and min(ends) < time.time() + quoted_s + SPARE_S:
        problems.append(
            f"Your sign-in ends in {max(0, min(ends) - time.time()) / 60:.0f} minutes and the run is said to take {quoted_s / 60:.0f}, "
            f"with {SPARE_S // 60} to spare for publishing. Sign in again before you start, or untick publishing: the adapter is kept, "
            "and can be published after a new sign-in."
        )
    repo_id = f"{user}/{name}"
    if not problems:
        try:
            there = transfer.patiently(lambda: _look(repo_id, token))
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(*problems)
    said = f"{repo_id} is free, and this account may create it."
    if there["commit"]:
        said = f"{repo_id} is yours and empty." + ("" if there["private"] else " Everybody can see it, so this run cannot be published there privately.")
    if there["run"]:
        said = f"{repo_id} is yours and holds the adapter of {_anothers(there)}. When you push, you are asked before this run's takes its place. {_afterwards(there)}"
        if scopes and _SCOPES & set(scopes.split()) == {_OWN_ONLY}:
            said += " Your sign-in lets this app write only to what it created: if that was published from elsewhere, choose another name."
    if ends:
        said += f" The sign-in lasts until {datetime.fromtimestamp(min(ends), UTC):%H:%M} UTC."
    advice = licences.advice_on_name(base, name) if base else ""
    return f"{said} {advice}".strip()


def _missing_rights(auth: dict, user: str, scopes: str) -> list[str]:
    """What keeps this token from creating a repository of `user`, as far as the Hub tells; see /api/whoami-v2."""
    if scopes:
        if not _SCOPES & set(scopes.split()):
            return ["Your sign-in does not let this app create repositories. Log out, sign in again, and allow it to."]
        return []
    its = auth.get("accessToken") or {}
    if its.get("role") == "read":
        return ["This token may only read. Make one that may write at huggingface.co/settings/tokens, then log in with it."]
    if its.get("role") == "fineGrained":
        fine = its.get("fineGrained") or {}
        mine = [
            scope.get("permissions") or [] for scope in fine.get("scoped") or []
            if (scope.get("entity") or {}).get("type") == "user" and scope["entity"].get("name", user) == user
        ]
        if not any("repo.write" in permissions for permissions in mine):
            return [
                f"This fine-grained token may not write to the repositories of {user}. Allow that for it at "
                "huggingface.co/settings/tokens (“Write access to contents/settings of all repos under your personal namespace”)."
            ]
    return []


def _seconds(moment) -> float | None:
    """Seconds since 1970 of a moment as the Hub writes it."""
    try:
        return datetime.fromisoformat(str(moment).replace("Z", "+00:00")).timestamp() if moment else None
    except ValueError:
        return None


def intend(run, name: str) -> None:
    """Note with a run under which name its maker means to publish it."""
    write_json(run.folder / "publish.json", {"state": "intended", "name": name})


# What the folder tells --------------------------------------------------------------------------------------------


def state(run) -> dict:
    """How far publishing this run is; {"state": "none"} where nobody asked for it.

    Returns:
        {"state": none, intended, checking, pushing, verifying, verified, unverified, failed, taken, interrupted, or replaced where
        another run was published in its place; "name"; "repo_id", "url", "private", "commit" from the push on; "sent_bytes",
        "total_bytes"; "reason": in words; "before": what an earlier push left on the Hub; "there": what a taken name holds}.
    """
    try:
        its = read_json(run.folder / "publish.json", {"state": "none"})
    except ValueError:
        its = {"state": "none"}
    if its["state"] in LIVE and not lease.is_alive(its.get("process")):
        there = "It is on the Hub, but was not verified." if its.get("commit") else "It may be on the Hub in part."
        its |= {"state": "interrupted", "reason": f"The app went away in the middle. {there} Push again: what is there already is not sent again."}
    if its["state"] in ("verified", "unverified", "interrupted") and its.get("commit") and its.get("replaced_by"):
        return its | {
            "state": "replaced", "url": _in_history(its),
            "reason": f"Another run of yours, “{shorten(its['replaced_by'])}”, was published under this name since. This one's adapter is still in the repository's history.",
        }
    if its["state"] in ("verified", "unverified") and its["weights"] != _weights_stamp(run):
        its |= {"state": "unverified", "reason": "The run has learned more since it was published. Push again to publish its new version."}
    return its


def _weights_stamp(run) -> list[int]:
    """What tells whether the adapter's weights are still the same file."""
    try:
        seen = (run.adapter_dir / "adapter_model.safetensors").stat()
    except FileNotFoundError:
        return []
    return [seen.st_size, seen.st_mtime_ns]


class _Teller:
    """Writes down how far publishing is, and passes it on."""

    def __init__(self, run, token: str | None, on_state: Callable[[dict], None], replace: dict | None, **known):
        self.run, self.token, self.on_state, self.replace, self.known = run, token, on_state, replace, known
        self.said = 0.0

    def say(self, **changes) -> None:
        if "reason" in changes:
            changes["reason"] = redaction.without_tokens(changes["reason"], self.token)
        self.known |= changes
        write_json(self.run.folder / "publish.json", self.known)
        self.said = time.monotonic()
        self.on_state(dict(self.known))

    def sent(self, count: int) -> None:
        self.known["sent_bytes"] = count
        if time.monotonic() - self.said > _SAY_EVERY_S:
            self.say()

    def pausing(self, seconds: float, why: str) -> None:
        self.say(reason=f"{why} Trying again in {seconds:.0f} s.")


# The act ----------------------------------------------------------------------------------------------------------


def publish(
    run, name: str, private: bool, token: str | None, share_link: Callable[[str], str], on_state=lambda its: None, replace: dict | None = None,
) -> dict:
    """Publish a finished run's adapter as user/name, and prove that what lies there is what was trained.

    Args:
        name: the repository's name; the user comes from the token, never from what was typed.
        private: for a repository that is made now; an empty one that everybody can see is refused then.
        share_link: the page's address for a repository id, printed in the card.
        on_state: called with the state as `state` gives it, at each change.
        replace: {"run", "private"}: the run whose adapter may be replaced where the name holds it, ANY_RUN for whichever it is, and
            whether only where nobody else sees it.

    Returns:
        the last state: "verified", or "unverified" with the reason.

    Raises:
        UserError: it is not on the Hub, and why: Taken, where it only wants to be told that it may. The local adapter is
            untouched whatever happens.
    """
    return _go(_begin(run, name, private, token, on_state, replace), share_link)


def begin(run, name: str, private: bool, token: str | None, share_link: Callable[[str], str], replace: dict | None = None) -> threading.Thread:
    """The same in a thread of this process, where the token stays; the run's folder tells how far it is.

    Raises:
        UserError: it cannot even begin.
    """
    teller = _begin(run, name, private, token, lambda its: None, replace)

    def go() -> None:
        try:
            _go(teller, share_link)
        except UserError:
            pass  # told in the folder

    thread = threading.Thread(target=go, name=f"publish-{run.id}", daemon=True)
    thread.start()
    return thread


_beginning = threading.Lock()


def _begin(run, name: str, private: bool, token: str | None, on_state, replace: dict | None) -> _Teller:
    name = check_name(name)
    if not run.read("done"):
        raise UserError(f"This run is {run.state()}. Publish it once it is done.")
    if not token:
        hub.account(token)  # says how to sign in
    with _beginning:
        before = state(run)
        if before["state"] in LIVE:
            raise UserError("This run is being published already. Wait for its end.")
        for left in run.folder.glob(".published-*"):  # of a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        teller = _Teller(run, token, on_state, replace, name=name, private=private, weights=_weights_stamp(run), process=lease.this_process())
        if before.get("in_place_of"):  # of a try whose end nobody saw: the other run is still to be told
            teller.known["in_place_of"] = before["in_place_of"]
        there = before if before.get("commit") else before.get("before", {})
        teller.known["before"] = {name: there[name] for name in ("repo_id", "url", "commit") if name in there}
        teller.say(state="checking", reason="")
    return teller


def _go(teller: _Teller, share_link: Callable[[str], str]) -> dict:
    pushed = False
    try:
        files = _push(teller, share_link)
        pushed = True
        teller.say(state="verifying", reason="")
        _verify(teller, files)
        teller.say(state="verified", reason="", verified_at=round(time.time()))
    except Taken as error:
        teller.say(state="taken", reason=str(error), there=error.there)
        raise
    except UserError as error:
        teller.say(state="unverified" if pushed else "failed", reason=str(error))
        if not pushed:
            raise
    except Exception as error:  # a fault of ours: the page must not show it as going on for ever
        teller.say(state="unverified" if pushed else "failed", reason=f"Something went wrong in the app itself ({type(error).__name__}). Push again.")
        raise
    return state(teller.run)


def _push(teller: _Teller, share_link: Callable[[str], str]) -> dict[str, bytes | Path]:
    """Everything up to the commit and the look at what it holds; gives what was pushed.

    Each step is tried again by itself. One that was done although its answer was lost is found done: a repository that
    exists is taken, a commit that would change nothing is not made.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    run, token, name = teller.run, teller.token, teller.known["name"]
    base, api = run.read("base"), HfApi()
    bases.require_same(base, run.read("plan")["base_sha256"])

    def patiently(act):
        def attempt():
            with hub.in_words(repo_id, True):
                return act()
        return transfer.patiently(attempt, teller.pausing)

    user = transfer.patiently(lambda: hub.whoami(token), teller.pausing)
    repo_id = f"{user}/{name}"
    there = transfer.patiently(lambda: _look(repo_id, token), teller.pausing)
    _require_place(there, teller)
    if not base.get("licence"):  # it was fetched while the Hub was out of reach
        try:
            base = {**base, "licence": transfer.patiently(lambda: hub.licence_of(base["id"], base["revision"], token))}
            write_json(run.folder / "base.json", base)
        except UserError:  # a base that the Hub does not have; the card says that its licence is unknown
            pass
    text = card.build(run, repo_id, share_link(repo_id))
    outgoing.require_card(text)
    files = outgoing.collect(run, text, {"run": run.id, **card.record(run)})
    outgoing.require_clean(files, run, token, user)
    _require_place(there, teller, files)
    size = files["adapter_model.safetensors"].stat().st_size
    if there["run"] not in ("", run.id):
        teller.known["in_place_of"] = {"repo_id": repo_id, "run": there["run"]}
    teller.say(state="pushing", reason="", repo_id=repo_id, url=hub.page_url(repo_id), sent_bytes=0, total_bytes=size)
    patiently(lambda: api.create_repo(repo_id, private=teller.known["private"], exist_ok=True, token=token))

    def commit():
        """On top of what is looked at now: what came there meanwhile is not written over, and the Hub refuses what comes after."""
        there = _look(repo_id, token)
        _require_place(there, teller, files)
        if not there["run"]:  # it was deleted meanwhile
            teller.known.pop("in_place_of", None)
        operations = [CommitOperationAdd(path, its if isinstance(its, bytes) else str(its)) for path, its in files.items()]
        if there["run"] not in ("", run.id):  # a file of the other's that this one has not, a tokenizer for one, would be loaded with it
            teller.known["in_place_of"] = {"repo_id": repo_id, "run": there["run"]}
            operations += [CommitOperationDelete(path) for path in sorted(set(there["names"]) - set(files))]
        with transfer.watching(size, teller.sent):
            try:
                return api.create_commit(repo_id, operations, commit_message="Adapter tuned with Tuner", parent_commit=there["commit"], token=token)
            except (json.JSONDecodeError, HfHubHTTPError):  # ValueErrors too, and told apart by `hub.in_words`
                raise
            except ValueError as error:
                raise UserError(f"The Hub refused what was sent: {shorten(str(error), 200)}. Nothing was published.") from None
            except (RuntimeError, PermissionError) as error:  # an upload that broke off: the client's word for it, and Xet's
                if isinstance(error.__cause__, Exception):
                    raise error.__cause__ from None
                raise Transient("The upload broke off. Try again in a minute; nothing was lost.") from None

    done = patiently(commit)
    teller.say(sent_bytes=size, reason="")
    hashes = {path: _sha256(its) for path, its in files.items()}
    found = {its.path: its for its in patiently(lambda: list(api.list_repo_tree(repo_id, revision=done.oid, token=token)))}
    wrong = [path for path, its in files.items() if path not in found or not _is(found[path], its, hashes[path])]
    if wrong:
        raise UserError(f"{repo_id} does not hold {' and '.join(wrong)} as pushed. Push again; the local adapter is whole.")
    private = transfer.patiently(lambda: hub.is_private(repo_id, token), teller.pausing)
    in_place_of = teller.known.get("in_place_of", {})
    if in_place_of.get("repo_id") == repo_id:
        del teller.known["in_place_of"]
    teller.say(commit=done.oid, private=private, sha256=hashes)
    if in_place_of.get("repo_id") == repo_id:
        _tell_replaced(run, in_place_of)
    return files


def _is(there, content: bytes | Path, sha256: str) -> bool:
    """Whether a file as the Hub lists it is this one: by SHA-256 where it is stored as a large file, else by git's hash."""
    if there.lfs:
        return there.lfs.sha256 == sha256
    data = content if isinstance(content, bytes) else content.read_bytes()
    return there.blob_id == hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _sha256(content: bytes | Path) -> str:
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with open(content, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _look(repo_id: str, token: str) -> dict:
    """What a repository of this account holds now.

    Returns:
        {"repo_id", "commit", "private"}, the last two None where there is no such repository; "run": whose adapter it holds, "" where
        it is not there or empty; then also "held": its files, "names": those that run published, "base_model", "day" of its last change.

    Raises:
        UserError: it holds what was not made by Tuner, which is never written over.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    with hub.in_words(repo_id, True):
        try:  # `repo_exists` would wait for ever where no answer comes
            info = HfApi().model_info(repo_id, files_metadata=True, token=token or False, timeout=hub.TIMEOUT_S)
        except RepositoryNotFoundError:
            return {"repo_id": repo_id, "commit": None, "private": None, "run": ""}
        found = {"repo_id": repo_id, "commit": info.sha, "private": bool(info.private), "run": ""}
        held = {its.rfilename: its.size or 0 for its in info.siblings or []}
        if not held.keys() - {".gitattributes", "README.md"}:
            return found
        record = _record_in(repo_id, token) if held.get("tuner.json", math.inf) <= repository.ADAPTER_FILES["tuner.json"] else {}
    if not runs.is_id(record.get("run")):
        raise UserError(f"{repo_id} exists already and holds something else. Choose another name; nothing was changed.")
    base = str(record.get("base_model", ""))
    return found | {
        "run": record["run"], "held": sorted(held), "names": sorted(held.keys() & outgoing.names_of(record)),
        "base_model": base if HUB_ID.fullmatch(base) and ".." not in base else "on an unknown base",
        "day": f"{info.last_modified:%Y-%m-%d}" if info.last_modified else "an unknown day",
    }


def _record_in(repo_id: str, token: str) -> dict:
    """What a repository says of the run that it was made from; {} where it says nothing that can be read."""
    from huggingface_hub import hf_hub_download

    with tempfile.TemporaryDirectory() as folder:
        try:
            record = read_json(Path(hf_hub_download(repo_id, "tuner.json", token=token or False, cache_dir=folder)), {})
        except (ValueError, RecursionError):
            return {}
    return record if isinstance(record, dict) else {}


def _require_place(there: dict, teller: _Teller, files: dict | None = None) -> None:
    """Refuse a repository (see `_look`) that this run may not be pushed to as it was asked to.

    Args:
        files: what would be pushed, once that is known.

    Raises:
        UserError: why; Taken, where a word suffices.
    """
    if there["run"] in ("", teller.run.id):
        if teller.known["private"] and there["private"] is False and not there["run"]:
            raise UserError(f"{there['repo_id']} is there already, empty, and everybody can see it. Publish for everybody, or choose another name; nothing there was changed.")
        return
    may = teller.replace
    if not may or may["run"] not in (there["run"], ANY_RUN) or (may["private"] and not there["private"]):
        raise Taken(there)
    if own := sorted(set(files or ()) & set(there["held"]) - set(there["names"])):
        raise UserError(f"{there['repo_id']} holds {' and '.join(own)}, put there by hand, which this run's would be written over. Choose another name; nothing there was changed.")


def _tell_replaced(run, in_place_of: dict) -> None:
    """Note with the run whose place was taken, where it is on this machine, that what was said of it is over."""
    with contextlib.suppress(UserError, OSError, ValueError):  # it was removed meanwhile: nobody is left to tell
        path = runs.find(run.owner, in_place_of["run"]).folder / "publish.json"
        its = read_json(path, {})
        before = its.get("before", {})
        if in_place_of["repo_id"] in (its.get("repo_id"), before.get("repo_id")):
            if its.get("repo_id") == in_place_of["repo_id"]:
                its |= {"replaced_by": run.title}
            if before.get("repo_id") == in_place_of["repo_id"]:
                its |= {"before": {**before, "url": _in_history(before)}}
            write_json(path, its)


def _in_history(its: dict) -> str:
    """Where a person still sees what was pushed, when something else has its place."""
    return its["url"] if "/tree/" in its["url"] else f"{its['url']}/tree/{its['commit']}"


def open_up(run, token: str | None) -> dict:
    """Open what this run published to everybody; gives the state.

    Raises:
        UserError: it was not published, or belongs to another account.
    """
    its = state(run)
    if not its.get("repo_id"):
        raise UserError("This run has not been published yet. Push it first.")
    transfer.patiently(lambda: hub.require_own(its["repo_id"], token))
    if transfer.patiently(lambda: _look(its["repo_id"], token))["run"] != run.id:  # from another machine, perhaps
        raise UserError(f"{its['repo_id']} does not hold this run's adapter any more, so it was not opened. Push it first.")
    transfer.patiently(lambda: hub.make_public(its["repo_id"], token))
    if its["state"] not in LIVE:
        write_json(run.folder / "publish.json", {**read_json(run.folder / "publish.json"), "private": False})
    return state(run)


# Downloaded again -------------------------------------------------------------------------------------------------


def _verify(teller: _Teller, files: dict[str, bytes | Path]) -> None:
    """Download what was pushed into an empty cache, compare every byte, and have plain PEFT compute with both.

    Raises:
        UserError: it differs, or could not be compared, and why.
    """
    run, repo_id = teller.run, teller.known["repo_id"]
    with tempfile.TemporaryDirectory(prefix=".published-", dir=run.folder) as folder:
        there = transfer.patiently(lambda: _download(repo_id, teller.known["commit"], list(files), teller.token, Path(folder) / "cache"), teller.pausing)
        teller.say(reason="")
        for name in files:
            if not (there / name).is_file() or _sha256(there / name) != teller.known["sha256"][name]:
                raise UserError(f"{name} came back from {repo_id} other than it was sent. Push again; the local adapter is whole.")
        if _weights_stamp(run) != teller.known["weights"]:
            raise UserError("The adapter changed while it was published. Push again.")
        teller.say(verdict=compare(run, there, Path(folder)))


def _download(repo_id: str, commit: str, names: list[str], token: str | None, cache: Path) -> Path:
    """The repository at that commit, into a cache that holds nothing: what was kept from a try before would be believed."""
    from huggingface_hub import snapshot_download

    shutil.rmtree(cache, ignore_errors=True)
    with hub.in_words(repo_id, True):
        return Path(snapshot_download(repo_id, revision=commit, allow_patterns=names, token=token, cache_dir=cache, max_workers=2))


def compare(run, published_dir: Path, folder: Path) -> dict:
    """Have a process of its own load the run's own adapter and the published one with plain PEFT, and compare logits.

    Args:
        folder: for the question and the answer.

    Returns:
        what `tuner.verify` found.

    Raises:
        UserError: they differ, or the process could not do it.
    """
    base, plan = run.read("base"), run.read("plan")
    bases.require_same(base, plan["base_sha256"])
    _require_memory(Path(base["dir"]), run.recipe.quantisation)
    write_json(folder / "question.json", {
        "base_dir": base["dir"], "own_dir": str(run.adapter_dir), "published_dir": str(published_dir), "task": run.recipe.task,
        "quantisation": run.recipe.quantisation, "precision": plan["precision"], "attention": plan["attention"], "kept_16bit": plan["kept_16bit"],
        **tasks.get(run.recipe.task).record(plan),
    })
    killed_before = machine.oom_kills()
    process = child.spawn("tuner.verify", str(folder / "question.json"), str(folder / "verdict.json"), folder=folder, log=run.folder / "publish_log.txt")
    child.offer_to_the_kernel(process.pid)
    try:
        code = process.wait(MOST_CHECK_S)
    except subprocess.TimeoutExpired:
        child.end(process)
        raise UserError(f"The check with plain PEFT was not done after {MOST_CHECK_S // 60} minutes. Push again when the machine has less to do.") from None
    found = read_json(folder / "verdict.json")
    if found is None:
        memory = code == -9 and (machine.oom_kills() or 0) > (killed_before or 0)
        why = "the machine ran out of memory" if memory else f"its process ended with exit code {code}"
        raise UserError(f"The check with plain PEFT could not be made: {why}. Push again to repeat it.")
    if "error" in found:
        raise UserError(found["error"])
    return found


def _require_memory(base_dir: Path, quantisation: str) -> None:
    """Refuse a check that would push a run or the chat out of memory.

    Raises:
        UserError: too little is free.
    """
    weights = sum(path.stat().st_size for path in base_dir.glob("*.safetensors")) / 2**30
    needed = 0.5 + weights * (0.5 if quantisation == "nf4" else 1.2)
    free = machine.memory().free_gib
    if needed > free:
        raise UserError(f"The check with plain PEFT needs about {needed:.1f} GiB and {free:.1f} GiB is free. Push again when a run or the chat has ended.")
