"""The one kind of error that a visitor may read."""

from tuner import redaction

# Of what is cut, so much beyond the cut is looked at for a token that it would go through.
_LONGEST_TOKEN = 2000


class UserError(Exception):
    """Something a person can put right: what is wrong, the value seen, what to do next.

    Args:
        *problems: one sentence or more for each problem. All problems are told at once. A token in them, as the Hub or a
            visitor may have written it, is struck out here: what is told is kept in files and shown to others.
    """

    def __init__(self, *problems: str):
        self.problems = [redaction.without_tokens(str(problem)) for problem in problems]
        super().__init__("\n".join(self.problems))


class Hint(UserError):
    """Nothing went wrong: something is to be chosen, written, waited for or done first; the page says it without alarm."""


def shorten(text: object, most: int = 60) -> str:
    """The text on one line, cut in the middle so that both its ends can be read; no part of a token is left by the cut."""
    line = " ".join(str(text).split())
    if len(line) <= most:
        return line
    edge = most + _LONGEST_TOKEN
    line = redaction.without_tokens(line if len(line) <= 2 * edge else f"{line[:edge]} {line[-edge:]}")
    if len(line) <= most:
        return line
    head = (most - 1) // 2
    return f"{line[:head]}…{line[-(most - 1 - head):]}"
