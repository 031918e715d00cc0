"""Who asks: the Hub's word for a token, an unguessable id for a browser; and what a stranger may start on a shared machine."""

import hashlib
import os
import re
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from tuner import hub, limits
from tuner.errors import Hint, UserError
from tuner.home import on_a_space
from tuner.recipe import STARTER_MODEL
from tuner.transfer import Transient

# Set to 1 by a Space's owner, runs on its machine need no sign-in; for a Space that is one's own, or private.
ANONYMOUS_RUNS = "TUNER_ANONYMOUS_RUNS"
_BROWSER = re.compile(r"[0-9a-f]{32}")
_ANONYMOUS = re.compile(r"anon-[0-9a-f]{32}")


class SignedOut(Hint):
    """What was asked needs somebody who is signed in, and nobody is, or not any more."""


@dataclass(frozen=True)
class Visitor:
    """Who asks: `owner` names their folder, `token` speaks to the Hub for them (None: nobody's).

    Args:
        ended: they were signed in, and the Hub does not know their token any more.
    """

    owner: str
    token: str | None
    ended: bool = False


def new_browser_id() -> str:
    """128 random bits by which one browser finds its own things again."""
    return secrets.token_hex(16)


def browser_owner(browser_id: str | None) -> str:
    """The owner that a visitor without an account is; nobody but their browser knows the id.

    Raises:
        UserError: it is no such id.
    """
    if not isinstance(browser_id, str) or not _BROWSER.fullmatch(browser_id):
        raise UserError("Your browser keeps no id for this page. Allow it to store site data, then reload.")
    return f"anon-{browser_id}"


def is_anonymous(owner: str) -> bool:
    return bool(_ANONYMOUS.fullmatch(owner))


def may_start(owner: str) -> bool:
    """Whether this owner may use the machine to train: on a Space, whoever is signed in, or all if its owner says so."""
    return not on_a_space() or not is_anonymous(owner) or os.environ.get(ANONYMOUS_RUNS) == "1"


def require_start(owner: str) -> None:
    """Raise unless `may_start`. Asked by whatever begins a training, however it was called.

    Raises:
        SignedOut: on a Space, where nobody is signed in.
    """
    if not may_start(owner):
        raise SignedOut(
            "Training uses this Space's machine, so sign in first with the button at the top. Looking at data, the quote and "
            "chatting need no account."
        )


def require_chat(owner: str, base_id: str, token: str | None = None, revision: str = "") -> None:
    """Raise if this base is too large to be loaded for somebody who is not signed in, by its weights' own headers.

    Raises:
        SignedOut: on a Space, for a base other than the starter that is larger than allowed.
    """
    if not on_a_space() or not is_anonymous(owner) or base_id == STARTER_MODEL:
        return
    most, its = limits.ANONYMOUS_CHAT.value(), hub.sizes_of(base_id, revision, token).weights / 1e9
    if most is not None and its > most:
        raise SignedOut(
            f"{base_id} has {its:.1f} billion parameters; without an account the most is {most:.1f}. "
            "Sign in with the button at the top, or choose a smaller one."
        )


class Accounts:
    """Which user a token belongs to, as the Hub said within the last minutes; never as a client says.

    Tokens are kept as hashes. One that was revoked stops counting when the Hub is asked next, `KEPT_S` later at most.
    """

    KEPT_S, MOST = 300.0, 1000
    # So long an earlier answer stands in for a Hub that cannot be reached.
    STALE_S = 1800.0

    def __init__(self, ask: Callable[[str], str] = hub.whoami, clock: Callable[[], float] = time.monotonic):
        self._ask, self._clock = ask, clock
        self._lock = threading.Lock()
        self._known: OrderedDict[bytes, tuple[str, float, float]] = OrderedDict()  # -> (user, when said, asked again from)

    def user(self, token: str) -> str:
        """The user's name.

        Raises:
            SignedOut: the Hub does not know the token, or not any more.
            UserError: the Hub cannot be reached, and has not been asked about this token lately.
        """
        key, now = hashlib.sha256(token.encode()).digest(), self._clock()
        with self._lock:
            if known := self._known.get(key):
                user, said, again = known
                if now < again:
                    self._known.move_to_end(key)
                    return user
                self._known[key] = user, said, now + 15  # one asks, the others go on meanwhile
        try:
            user = self._ask(token)
        except Transient:
            if known and now < known[1] + self.STALE_S:
                return known[0]
            raise
        except UserError:
            with self._lock:
                self._known.pop(key, None)
            raise SignedOut("Your sign-in has ended. Log out and sign in again with the button at the top; nothing was lost.") from None
        with self._lock:
            self._known[key] = user, now, now + self.KEPT_S
            self._known.move_to_end(key)
            while len(self._known) > self.MOST:
                self._known.popitem(last=False)
        return user
