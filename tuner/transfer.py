"""How requests travel to the Hub: limits on waiting, the pauses it asks for, further tries, and how far an upload is."""

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import lru_cache

from tuner import redaction
from tuner.errors import UserError

# The client itself waits for ever. A commit of a few small files is answered within seconds.
CONNECT_S, ANSWER_S = 15.0, 45.0
# Between our tries, each of which the client has perhaps tried six times itself (over 23 s) where that is safe.
PAUSES_S = (1.0, 4.0, 15.0)
# The longest pause that is waited for; the client would sleep an hour if a server asked for it.
MOST_PAUSE_S = 60.0
# No further try is begun after this.
ENOUGH_S = 180.0
_SLICE = 2**16


class Transient(UserError):
    """What may well go right at the next try.

    Args:
        wait_s: how long the Hub asked to wait first, in seconds.
    """

    def __init__(self, *problems: str, wait_s: float = 0.0):
        super().__init__(*problems)
        self.wait_s = wait_s


class Unreachable(Transient):
    """The Hub did not answer at all."""


def patiently(act: Callable, on_pause: Callable[[float, str], None] = lambda seconds, why: None):
    """What `act` gives, tried up to four times with longer and longer pauses while its error is Transient.

    Args:
        on_pause: called with the seconds until the next try, and what went wrong.

    Raises:
        Transient: of the last try. Any other error at once.
    """
    began = time.monotonic()
    for pause in (*PAUSES_S, None):
        try:
            return act()
        except Transient as error:
            if pause is None or time.monotonic() - began > ENOUGH_S:
                raise
            wait = min(max(pause, error.wait_s), MOST_PAUSE_S)
            on_pause(wait, error.problems[0])
            time.sleep(wait)


def asked_pause_s(headers) -> float:
    """The seconds that an answer asks to wait, by Retry-After or RateLimit; 0 if it does not."""
    if found := re.search(r";\s*r=0\s*;\s*t=(\d+)", headers.get("ratelimit", "")):
        return float(found[1])
    text = headers.get("retry-after", "").strip()
    return float(text) if text.isdigit() else 0.0


@lru_cache(maxsize=1)
def set_up() -> None:
    """Give the Hub's client these limits, once in a process and before it is first used."""
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import _xet_progress_reporting

    set_client_factory(_client)
    # huggingface_hub 2 takes no reporter as an argument. If the name changes, an upload is only seen to begin and to end.
    _xet_progress_reporting.XetUploadProgressReporter = _XetReports


def _client():
    import httpx2
    from huggingface_hub.utils._http import default_client_factory

    client = default_client_factory()
    client.timeout = httpx2.Timeout(ANSWER_S, connect=CONNECT_S)
    client.event_hooks = {"request": [*client.event_hooks["request"], _bound, _count], "response": [_refuse_long_pause]}
    return client


def _bound(request) -> None:
    """No request waits for ever: huggingface_hub passes "no limit" for some of them, which overrides the client's own."""
    redaction.know(request.headers.get("authorization"))  # every token passes here before anything can be said of it
    limits = request.extensions.get("timeout") or {}
    own = {"connect": CONNECT_S, "read": ANSWER_S, "write": ANSWER_S, "pool": CONNECT_S}
    request.extensions["timeout"] = {name: seconds if limits.get(name) is None else limits[name] for name, seconds in own.items()}


def _refuse_long_pause(response) -> None:
    """Here, since the client would sleep for it without asking."""
    if response.status_code in (429, 503) and (asked := asked_pause_s(response.headers)) > MOST_PAUSE_S:
        raise UserError(
            f"The Hub asks for a pause of {asked / 60:.0f} minutes (HTTP {response.status_code}). Try again then; nothing was lost."
        )


# How far an upload is ---------------------------------------------------------------------------------------------

_watched: ContextVar[tuple[int, Callable[[int], None]] | None] = ContextVar("watched", default=None)


@contextlib.contextmanager
def watching(size_bytes: int, on_bytes: Callable[[int], None]) -> Iterator[None]:
    """Report how many of an upload's bytes have gone out, from the requests that this thread sends meanwhile.

    Args:
        size_bytes: of the largest file, the only one worth watching.
        on_bytes: called with 0 to size_bytes; from 0 again when a request is repeated.
    """
    mark = _watched.set((size_bytes, on_bytes))
    try:
        yield
    finally:
        _watched.reset(mark)


def _count(request) -> None:
    """Wrap the body of the request that carries the file; its smaller siblings are too quick to be seen."""
    watched = _watched.get()
    length = int(request.headers.get("content-length") or 0)
    if not watched or request.method not in ("PUT", "POST") or length < watched[0]:
        return
    import httpx2

    size_bytes, on_bytes = watched

    class Counted(httpx2.SyncByteStream):
        """Passes the body on in slices."""

        def __init__(self, body):
            self.body = body

        def __iter__(self):
            sent = 0
            for part in self.body:
                for start in range(0, len(part), _SLICE):
                    yield part[start : start + _SLICE]
                    sent += min(_SLICE, len(part) - start)
                    on_bytes(min(size_bytes, size_bytes * sent // length))  # a body in base64 is longer than its file

    request.stream = Counted(request.stream)


class _XetReports:
    """Stands in for the client's own bars of a Xet upload, which leaves through a library of its own and not as a request."""

    def __init__(self, *args, **kwargs):
        self.size_bytes, self.on_bytes = _watched.get() or (0, lambda sent: None)  # here: reports come from other threads

    def update_progress(self, group_report, item_reports=None) -> None:
        self.on_bytes(min(self.size_bytes, int(group_report.total_bytes_completed)))

    def close(self) -> None:
        pass
