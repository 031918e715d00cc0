"""What may stand in a log or an error: no token, and where strangers visit none of their words."""

import hashlib
import re
import sys
import threading
from collections import OrderedDict

STRUCK = "hf_…"
_SECRETS = re.compile(
    r"""
      (?P<before> (?i:bearer\s+|basic\s+(?=[\w+/=]{16})) ) [\w.~+/=-]{6,}     # what stands in an Authorization header
    | hf_ (?: (?:oauth|jwt|app|api)_ [\w.-]{4,} | [A-Za-z0-9]{16,} )           # not hf_hub_download
    | (?: (?<![A-Za-z]) | (?<=\\[nrt]) ) eyJ [\w-]{10,} (?: [.=/+]+ [\w-]* )*   # JSON in base64: a JWT, a session's cookie
    | (?P<name> (?<=[?&]) (?i:access_token|refresh_token|id_token|client_secret|token|code|state|key|run|signature|policy
        |x-amz-[\w-]+|key-pair-id|_target_url) = ) [^&\s"'<>]+                 # in an address
    | (?P<scheme> :// ) [^/\s:@]+ : [^/\s@]+ (?=@)
    """,
    re.VERBOSE,
)

# What stands before each line of a group of exceptions.
_MARGIN = re.compile(r"(\s*[|+][ -]?|)(.*)", re.DOTALL)
_NEXT_OF_GROUP = re.compile(r"\s*\+[+-]+ \S+ -+")

# Tokens in use, whatever they look like: their hashes and lengths, never they themselves.
_MOST_KNOWN = 1000
_known: OrderedDict[str, int] = OrderedDict()
_lock = threading.Lock()


def know(token: str | None) -> None:
    """Strike this token out of everything from now on, also where its form does not give it away."""
    token = (token or "").removeprefix("Bearer ").strip()
    if len(token) < 8:
        return
    with _lock:
        _known[_hash(token)] = len(token)
        _known.move_to_end(_hash(token))
        while len(_known) > _MOST_KNOWN:
            _known.popitem(last=False)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def without_tokens(text: str, *tokens: str | None) -> str:
    """The text with everything struck out that is a token, looks like one, or is one of these."""
    for token in filter(None, tokens):
        text = text.replace(token, STRUCK)
    with _lock:
        known, lengths = set(_known), sorted(set(_known.values()), reverse=True)

    def strike(found: re.Match) -> str:
        word = found[0]
        for length in lengths:
            for start in range(len(word) - length + 1):
                if _hash(word[start : start + length]) in known:
                    return word[:start] + STRUCK + word[start + length :]
        return word

    if known:
        text = re.sub(r"[\w.-]{8,}", strike, text)
    return _SECRETS.sub(lambda found: f"{found[found.lastgroup]}…" if found.lastgroup else STRUCK, text)


# What is printed --------------------------------------------------------------------------------------------------


class Redacted:
    """A stream of text that strikes out tokens on their way, and perhaps the messages of exceptions.

    All that is printed or logged in this process passes here, whoever prints it: the app, the server, Gradio, the Hub's
    client. An exception's message may quote what somebody wrote ("Value: … is not in the list"), so where strangers visit
    only its type stays, and where it happened.
    """

    _FRAMES, _MESSAGE = "frames", "message"

    def __init__(self, stream, hide_messages: bool = False):
        self.stream, self.hide_messages = stream, hide_messages
        self._its = threading.local()  # a traceback is written in pieces, and so may be another thread's

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        its = self._its.__dict__
        *lines, its["rest"] = (its.get("rest", "") + text).split("\n")
        for line in lines:
            kept = self._line(line)
            if kept is not None:
                self.stream.write(kept + "\n")
        if text.endswith("\n") and its.get("place") == self._MESSAGE:
            its["place"] = ""
        return len(text)

    def flush(self) -> None:
        """Also what is not a whole line yet, such as a progress bar."""
        its = self._its.__dict__
        if rest := its.get("rest"):
            its["rest"] = ""
            self.stream.write(without_tokens(rest))
        self.stream.flush()

    def _line(self, line: str) -> str | None:
        """The line as it may be written; None for one that may not."""
        if self.hide_messages:
            its = self._its.__dict__
            margin, body = _MARGIN.match(line).groups()
            if body.endswith("Traceback (most recent call last):") or _NEXT_OF_GROUP.fullmatch(line):
                its["place"] = self._FRAMES
            elif its.get("place") == self._FRAMES and body.strip() and not body.startswith(" "):
                its["place"] = self._MESSAGE
                line = margin + re.split(r"[:\s]", body, maxsplit=1)[0]
            elif its.get("place") == self._MESSAGE:
                if not body.startswith(("During handling of the above", "The above exception was")):
                    return None
                its["place"] = ""
            line = re.sub(r"\bexception=(\w+)\(.*", r"exception=\1(…)", line)  # as asyncio tells of a task that failed
        return without_tokens(line)


def install(hide_messages: bool | None = None, outputs: tuple[str, ...] = ("stderr",)) -> None:
    """Let all that this process prints pass a `Redacted`. To be called before libraries make handlers of their own.

    Args:
        hide_messages: whether messages of exceptions are struck out too; None leaves that as it is.
        outputs: "stderr", and "stdout" where that is a log and not an answer.
    """
    for name in outputs:
        stream = getattr(sys, name)
        if not isinstance(stream, Redacted):
            stream = Redacted(stream)
            setattr(sys, name, stream)
        if hide_messages is not None:
            stream.hide_messages = hide_messages
