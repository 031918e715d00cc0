"""What is wrong with a conversation's turns, and how each is put right; a plain text is a row without turns."""

import json
import re

from tuner.tasks import Fault

_STAYS_OUT = "It is left out by itself; every other row is kept."

FAULTS = {
    "no_prompt": Fault("No prompt or conversation", f"There is nothing to answer. {_STAYS_OUT}", "mind", left_out=True),
    "empty_answer": Fault("Empty answers", f"Learned from, they would teach silence. {_STAYS_OUT}", "mind", left_out=True),
    "no_answer": Fault("No answer", f"Only answers are learned from. {_STAYS_OUT}", "mind", left_out=True),
    "unknown_role": Fault("Unknown roles", f"Nobody can tell who speaks. {_STAYS_OUT}", "mind", left_out=True),
    "roles_out_of_order": Fault(
        "Roles out of order",
        "The model would learn to answer what was never asked.", "harm", ("trim", "drop"),
    ),
    "same_role_twice": Fault(
        "One role twice in a row", "Many chat templates refuse that, or run the two turns together.", "mind", ("join", "drop"),
    ),
    "late_system": Fault(
        "System turn in the middle", "Most templates refuse it, or show it where it was not said.", "mind", ("trim", "drop"),
    ),
    "empty_turn": Fault("Empty turns", "It teaches to say nothing, or to answer nothing.", "mind", ("trim", "drop")),
    "no_answer_at_end": Fault(
        "No answer at the end", "What comes after the last answer is never learned, and only costs time.", "note", ("trim", "drop"),
    ),
    "answer_is_prompt": Fault(
        "Answer equal to its prompt", "The model would learn to say your words back.", "harm", ("drop",),
    ),
}

# How a refusal begins; only one that stands in several rows word for word is told.
_REFUSAL = re.compile(
    r"\W{0,3}(?:i['’]?m (?:very |really |so )?sorry|i am (?:very |really |so )?sorry|sorry|i (?:sincerely )?apologi[sz]e|my apologies|unfortunately|i can(?:not|['’]?t)\b"
    r"|i am (?:unable|not able)|i['’]m (?:unable|not able)|i (?:won['’]t|will not) be able|as an ai\b|as a (?:large )?language model)",
    re.IGNORECASE,
)


def faults(row: dict) -> set[str]:
    """The names of what is wrong with the row's turns."""
    found = set()
    turns = [turn for turn in row.get("messages", ()) if turn["role"] != "system"]
    if not turns:
        return found
    before, asked, called = "", "", False
    for number, turn in enumerate(row["messages"]):
        role, content = turn["role"], turn.get("content") or ""
        if role == "system":
            if number:
                found.add("late_system")
        elif role == "tool" and not called:
            found.add("roles_out_of_order")
        if role == before and role != "tool":
            found.add("same_role_twice")
        if not content.strip() and not turn.get("tool_calls"):
            found.add("empty_turn")
        if role == "user":
            asked = content.strip()
        elif role == "assistant":
            called = bool(turn.get("tool_calls")) or "<tool_call>" in content or "<functioncall>" in content
            if asked and content.strip() == asked:
                found.add("answer_is_prompt")
        before = role
    if turns[0]["role"] == "assistant":
        found.add("roles_out_of_order")
    if turns[-1]["role"] != "assistant":
        found.add("no_answer_at_end")
    return found


def texts(row: dict) -> list[str]:
    """Every text in the row that somebody wrote, tool calls' arguments included."""
    if "text" in row:
        return [row["text"]]
    found = []
    for turn in row["messages"]:
        found += [text for text in (turn.get("content"), turn.get("reasoning_content")) if text]
        found += [json.dumps(call["function"]["arguments"], ensure_ascii=False) for call in turn.get("tool_calls", ())]
    return found


def map_texts(row: dict, change, named: bool = False) -> dict:
    """The row with `change` applied to every text in it, also inside tool calls' arguments.

    Args:
        named: within arguments the name of a value stands before it while it is changed, names and numbers are changed
            too: 5550123 alone is a number, and under "phone" it is somebody's.
    """

    def inside(value, name: str = ""):
        if isinstance(value, dict):
            return {change(key) if named else key: inside(item, key) for key, item in value.items()}
        if isinstance(value, list):
            return [inside(item, name) for item in value]
        if named and isinstance(value, (str, int, float)) and not isinstance(value, bool):
            before = f'"{name}": '
            changed = change(before + str(value))
            if changed.startswith(before) and changed != before + str(value):
                return changed[len(before) :]
        return change(value) if isinstance(value, str) else value

    if "text" in row:
        return {**row, "text": change(row["text"])}
    turns = []
    for turn in row["messages"]:
        turn = {name: change(value) if name in ("content", "reasoning_content") and value else value for name, value in turn.items()}
        if "tool_calls" in turn:
            turn["tool_calls"] = [
                {**call, "function": {**call["function"], "arguments": inside(call["function"]["arguments"])}} for call in turn["tool_calls"]
            ]
        turns.append(turn)
    return {**row, "messages": turns}


def said(row: dict) -> str:
    """What tells this row from others: all that was said in it, without the system turn that many rows share."""
    if "text" in row:
        return row["text"]
    return "\n".join(text for turn in row["messages"] if turn["role"] != "system" for text in texts({"messages": [turn]}))


def answer(row: dict) -> tuple[str, bool, bool]:
    """The last answer's text, whether it reads as a refusal, and whether it is the row's only one."""
    answers = [turn.get("content") or "" for turn in row.get("messages", ()) if turn["role"] == "assistant"]
    if not answers:
        return "", False, False
    return answers[-1], len(answers[-1]) < 600 and bool(_REFUSAL.match(answers[-1])), len(answers) == 1


def opening(row: dict) -> str:
    """The turns up to the first answer, where they are long enough to tell one conversation from another; else "".

    Rows that begin alike are one conversation, cut at different places, and stay together in the split.
    """
    turns = row.get("messages", ())
    first = next((number for number, turn in enumerate(turns) if turn["role"] == "assistant"), None)
    if first is None:
        return ""
    said = [[turn["role"], turn.get("content") or ""] for turn in turns[: first + 1] if turn["role"] != "system"]
    return json.dumps(said, ensure_ascii=False) if sum(len(content) for _, content in said) >= 80 else ""


# Putting right ----------------------------------------------------------------------------------------------------


def trim(row: dict, fault: str) -> dict | None:
    """The row without the turns that are at fault; None if no answer is left."""
    turns = row["messages"]
    if fault == "no_answer_at_end":
        last = max(number for number, turn in enumerate(turns) if turn["role"] == "assistant")
        turns = turns[: last + 1]
    elif fault == "late_system":
        turns = [turn for number, turn in enumerate(turns) if not number or turn["role"] != "system"]
    elif fault == "empty_turn":
        turns = [turn for turn in turns if (turn.get("content") or "").strip() or turn.get("tool_calls")]
    elif fault == "roles_out_of_order":
        head = [turn for turn in turns[:1] if turn["role"] == "system"]
        first = next((number for number, turn in enumerate(turns) if turn["role"] == "user"), len(turns))
        kept, called = [], False
        for turn in turns[first:]:
            if turn["role"] == "assistant":
                called = bool(turn.get("tool_calls")) or "<tool_call>" in (turn.get("content") or "")
            if turn["role"] != "tool" or called:
                kept.append(turn)
        turns = head + kept
    if not any(turn["role"] == "assistant" for turn in turns):
        return None
    return {**row, "messages": turns}


def join(row: dict) -> dict:
    """The row with neighbouring turns of one role made one, a blank line between their texts."""
    turns: list[dict] = []
    for turn in row["messages"]:
        if turns and turns[-1]["role"] == turn["role"] != "tool":
            both = "\n\n".join(text for text in (turns[-1].get("content"), turn.get("content")) if text)
            calls = [*turns[-1].get("tool_calls", ()), *turn.get("tool_calls", ())]
            turns[-1] = {**turns[-1], **turn, "content": both, **({"tool_calls": calls} if calls else {})}
        else:
            turns.append(turn)
    return {**row, "messages": turns}


def split(row: dict, fits) -> list[dict]:
    """The row in parts that fit, each beginning with a question and ending with an answer; the system turn heads each.

    A plain text is cut between paragraphs, else lines, else sentences, else words. What cannot be cut stays whole.

    Args:
        fits: row -> whether it is short enough.
    """
    if "text" in row:
        return [{**row, "text": part} for part in _split_text(row["text"], lambda text: fits({**row, "text": text}))]
    turns = row["messages"]
    head = [turn for turn in turns[:1] if turn["role"] == "system"]
    exchanges: list[list[dict]] = []
    for turn in turns[len(head) :]:
        opens = turn["role"] == "user" and (not exchanges or any(its["role"] == "assistant" for its in exchanges[-1]))
        if opens or not exchanges:
            exchanges.append([])
        exchanges[-1].append(turn)
    parts: list[list[dict]] = []
    for exchange in exchanges:
        if parts and fits({**row, "messages": [*head, *parts[-1], *exchange]}):
            parts[-1] = [*parts[-1], *exchange]
        else:
            parts.append(exchange)
    rows = [{**row, "messages": [*head, *part]} for part in parts]
    return [part for part in rows if any(turn["role"] == "assistant" for turn in part["messages"])]


def _split_text(text: str, fits) -> list[str]:
    if fits(text):
        return [text]
    middle = len(text) // 2
    for mark in ("\n\n", "\n", ". ", " "):
        after, before = text.find(mark, middle), text.rfind(mark, 0, middle)
        places = [place + len(mark) for place in (before, after) if place > 0 and place + len(mark) < len(text)]
        if places:
            place = min(places, key=lambda its: abs(its - middle))
            halves = (text[:place], text[place:])
            return [part for half in halves if half.strip() for part in _split_text(half.strip("\n"), fits)]
    return [text]


def learnable(row: dict) -> bool:
    """Whether an answer, or a text, is left in the row."""
    if "text" in row:
        return bool(row["text"].strip())
    return any(turn["role"] == "assistant" and ((turn.get("content") or "").strip() or turn.get("tool_calls")) for turn in row["messages"])


def with_answer(row: dict, text: str) -> dict:
    """The row with another last answer."""
    last = max(number for number, turn in enumerate(row["messages"]) if turn["role"] == "assistant")
    turns = [{**turn, "content": text} if number == last else turn for number, turn in enumerate(row["messages"])]
    return {**row, "messages": turns}
