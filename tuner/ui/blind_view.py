"""What the blind test shows: two answers without names, the vote, the tally."""

from tuner.errors import shorten
from tuner.ui import drawing


def no_answers() -> str:
    return drawing.empty("Ask something: two answers come, without names.", "One is the base model’s, one the tuned model’s; who is who is told after your vote.")


def unsaid(message: str) -> dict:
    """A blind test's message, and both answers before their first word."""
    return {"prompt": message, "left": "", "right": ""}


def answers(said: dict, names: dict | None = None, better: str = "") -> str:
    """Both answers beside each other; with their names once there was a vote."""
    sides = []
    for side, letter in (("left", "A"), ("right", "B")):
        name = f" — the {names[side]} model" if names else ""
        chosen = " class=chosen" if better == side else ""
        words = drawing.text(said[side].strip() or ("(it ended without a word)" if names else "…"))
        sides.append(f'<div{chosen}><h4>{letter}{name}{" · your choice" if chosen else ""}</h4><div class="answer">{words}</div></div>')
    return f'<div class="blind"><p class="asked">“{drawing.text(shorten(said["prompt"], 300))}”</p><div class="beside">{"".join(sides)}</div></div>'


def tally(words: str) -> str:
    return f'<p class="tally figures" role="status">{drawing.text(words)}</p>' if words else '<p class="tally quiet">No votes yet.</p>'
