"""Sharing a run through a link: whoever has its unguessable key may look at the run and chat with it, until it is unshared."""

import hashlib
import re
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from tuner import chat, hub, identity
from tuner import run as runs
from tuner.errors import UserError
from tuner.home import on_a_space, private_dir, read_json, tuner_home, write_json
from tuner.recipe import STARTER_MODEL

_KEY = re.compile(r"[A-Za-z0-9_-]{22}")
_GONE = "This link leads to no run. Whoever made it may have stopped sharing it, or deleted the run."


@dataclass(frozen=True)
class Shared:
    """A run as those see it who have its link: what may be looked at, and nothing that changes it.

    The run itself stays inside: there is no way from here to its owner's rows, names for things, or buttons.
    """

    key: str
    title: str
    state: str
    base_model: str
    _run: runs.Run = field(repr=False)

    def look(self) -> runs.Run:
        """The run, for drawing its curve and report. Never for anything that writes."""
        return self._run

    def subject(self, owner: str, token: str | None) -> chat.Subject:
        """The tuned model, to chat with, for this visitor.

        Raises:
            UserError: it has none yet, or this visitor may not use its base: too large without an account, or gated.
        """
        base = self._run.read("base") or {}
        if on_a_space() and self.base_model != STARTER_MODEL:
            hub.sizes_of(self.base_model, base.get("revision", ""), token)  # which asks the Hub about a gate
        identity.require_chat(owner, self.base_model, token, base.get("revision", ""))
        return chat.of_run(self._run)


def _index(key: str) -> Path:
    """Where it is noted which run a key opens. By the key's hash: a list of the folder opens nothing."""
    return private_dir(tuner_home() / "shared") / f"{hashlib.sha256(key.encode()).hexdigest()}.json"


def key_of(run: runs.Run) -> str:
    """The key under which a run is shared; "" if it is not."""
    return (run.read("shared") or {}).get("key", "")


def share(owner: str, run_id: str) -> str:
    """Share the owner's run and give its key; the same one for as long as it is shared.

    Raises:
        UserError: no such run of this owner.
    """
    run = runs.find(owner, run_id)
    key = key_of(run) or secrets.token_urlsafe(16)
    write_json(run.folder / "shared.json", {"key": key})
    write_json(_index(key), {"owner": run.owner, "run": run.id})
    return key


def unshare(owner: str, run_id: str) -> None:
    """Make the run's link lead nowhere. Another sharing gets another key.

    Raises:
        UserError: no such run of this owner.
    """
    run = runs.find(owner, run_id)
    if key := key_of(run):
        (run.folder / "shared.json").unlink(missing_ok=True)
        _index(key).unlink(missing_ok=True)


def find(key: str) -> Shared:
    """What a key opens.

    Raises:
        UserError: nothing, or nothing any more.
    """
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise UserError(_GONE)
    noted = read_json(_index(key))
    if noted is None:
        raise UserError(_GONE)
    try:
        run = runs.find(noted["owner"], noted["run"])
    except UserError:  # deleted by its owner
        _index(key).unlink(missing_ok=True)
        raise UserError(_GONE) from None
    if key_of(run) != key:
        raise UserError(_GONE)
    return Shared(key, run.title, run.state(), run.recipe.base_model, run)
