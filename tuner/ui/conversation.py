"""What stands in a conversation before its answer does, and which messages wait for one."""

import secrets
import time

from tuner.errors import UserError

# Conversations that are answered at once; later ones wait for a place, in the order in which they came.
MOST_ANSWERS = 16
# A message that waits for so long is one whose page was closed; and no more are remembered than this.
FORGOTTEN_S, MOST_WAITING = 3600.0, 10_000
# What stands in the place of an answer whose first word is not there yet, and where none came though the other side's did.
PENDING, NONE_CAME = "…", "(stopped before its first word)"
WAITS, GOES_ON, STOPPED = "waits", "goes on", "stopped"


class Line:
    """Messages that wait for an answer or are being answered, each by a number that only its own page knows."""

    def __init__(self):
        self._messages: dict[str, tuple[str, float]] = {}  # number -> how it stands, since when it is here

    def __contains__(self, number: str) -> bool:
        """Whether a page waits for its answer, or for more of it."""
        return number in self._messages and not self.is_stopped(number)

    @property
    def going(self) -> int:
        """How many are being answered now."""
        return sum(how == GOES_ON for how, _ in list(self._messages.values()))

    def join(self) -> str:
        """The number of a new message; what nobody can wait for any more is forgotten."""
        now = time.monotonic()
        for place, (number, (how, since)) in enumerate(reversed(list(self._messages.items()))):
            if how != GOES_ON and (now - since > FORGOTTEN_S or place >= MOST_WAITING):
                self._messages.pop(number, None)
        number = secrets.token_hex(8)
        self._messages[number] = WAITS, now
        return number

    def stop(self, number: str) -> None:
        """Its page wants no answer any more: the answer ends, or is not begun."""
        if number in self:
            self._messages[number] = STOPPED, time.monotonic()

    def is_stopped(self, number: str) -> bool:
        """Whether its page wants no answer any more."""
        return self._messages.get(number, ("",))[0] == STOPPED

    def begin(self, number: str) -> bool:
        """Its turn has come; False if its page does not want it any more.

        Raises:
            UserError: it was forgotten.
        """
        if number not in self._messages:
            raise UserError("Your message waited for very long and was forgotten. Send it again.")
        if self.is_stopped(number):
            return False
        self._messages[number] = GOES_ON, self._messages[number][1]
        return True

    def end(self, number: str) -> None:
        """It is answered, or will not be."""
        self._messages.pop(number, None)


def plain(said) -> list[dict]:
    """The chatbot's messages as plain text turns; Gradio hands content over as a list of blocks."""
    kept = []
    for message in said or []:
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, list):
            content = "".join(block.get("text", "") for block in content if isinstance(block, dict))
        if message.get("role") in ("user", "assistant") and isinstance(content, str):
            kept.append({"role": message["role"], "content": content})
    return kept


def ask(talk: list[dict], message: str) -> None:
    """Let a message stand at the end of a conversation, with no answer yet."""
    talk += [{"role": "user", "content": message}, {"role": "assistant", "content": PENDING}]


def is_pending(talk: list[dict]) -> bool:
    """Whether a conversation ends with a message that has no answer yet."""
    return len(talk) >= 2 and talk[-1] == {"role": "assistant", "content": PENDING} and talk[-2]["role"] == "user"


def take_back(talks: list[list[dict]], asked_both: bool) -> tuple[bool, bool]:
    """Take out, in place, what got no answer; where one of two that were asked has begun to answer, it stays and that is said.

    Returns:
        whether anything was changed, and whether the message stands nowhere any more.
    """
    unanswered = [talk for talk in talks if is_pending(talk)]
    in_part = asked_both and len(unanswered) == 1 and all(len(talk) >= 2 and talk[-2] == unanswered[0][-2] for talk in talks)
    for talk in unanswered:
        talk[-2:] = [talk[-2], {"role": "assistant", "content": NONE_CAME}] if in_part else []
    return bool(unanswered), bool(unanswered) and not in_part
