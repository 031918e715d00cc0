"""Token sequences become ids and labels: templates, masks, cuts; preview, training and chat all call this."""

import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date as calendar
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

from tuner import child
from tuner.errors import UserError, shorten

IGNORE = -100
# A child that encodes a stranger's row with a stranger's template and tokenizer ends itself after so much computing time:
# so many seconds, and one more for so many characters. A thousand ordinary rows take one.
MOST_S, CHARACTERS_A_SECOND = 2.0, 100_000
LOADING_S = 20.0
MOST_TEMPLATE = 100_000
ENDLESS = (
    f"The model's chat template or tokenizer does not come to an end within {MOST_S:.0f} seconds, so it was stopped. "
    "Choose another base model."
)

# How the learned part of a row was found, from the surest to the last resort.
BY_MARKS = "the template's own generation marks"
BY_VARIANT = "a variant that renders the same, byte for byte"
BY_DIFFERENCE = "the difference between one turn and the next"
BY_ANSWER = "one row for each answer, since the template rewrites earlier turns"
BY_WHOLE_ROW = "the whole row, because the answers could not be told apart"
BY_TEXT = "the whole text"

# A model without a template of its own gets this one, and the page says so.
PLAIN_TEMPLATE = (
    "{% for m in messages %}{{ {'user': 'User', 'assistant': 'Assistant', 'system': 'System', 'tool': 'Tool'}[m.role] }}"
    ": {{ m.content }}{{ eos_token if m.role == 'assistant' else '' }}\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)

# Private-use characters wrapped round control tokens inside texts, so that they can be told from the template's own.
_OPEN, _CLOSE = "\U000f0000", "\U000f0001"


_NOTHING = re.compile("(?!)")


@dataclass
class Encoded:
    """One sequence as the model meets it.

    Args:
        ids: (T,) token ids, T <= max_tokens.
        labels: (T,) the same ids where the loss is taken, IGNORE elsewhere. Not shifted: transformers shifts labels
            by one inside the model. The first is always IGNORE, since nothing comes before it.
        how: how the learned part was found; one of the BY_ constants.
        text: the rendered text, with invisible marks round disarmed control tokens.
        offsets: (T + cut,) where each token stands in the text, [start, end) in characters, those cut off included.
        would_learn: (T + cut,) whether the token would be learned if nothing were cut.
    """

    ids: list[int]
    labels: list[int]
    how: str
    text: str
    offsets: list[tuple[int, int]]
    would_learn: list[bool]

    @property
    def cut(self) -> int:
        """Tokens lost at the right end."""
        return len(self.offsets) - len(self.ids)

    @property
    def learned(self) -> int:
        """Tokens on which the loss is taken."""
        return sum(label != IGNORE for label in self.labels)

    def bare(self) -> "Encoded":
        """The same without what only a page shows; a run keeps all of its rows in memory."""
        return Encoded(self.ids, self.labels, self.how, "", [], [])

    def pieces(self, control: re.Pattern = _NOTHING) -> list[tuple[str, str, bool]]:
        """The text in runs for the page, all of it, in order.

        Args:
            control: what matches a control token; see `control_tokens`.

        Returns:
            (text, "learned" | "seen" | "cut", whether it is a control token with its power).
        """
        runs: list[tuple[str, str, bool]] = []
        place = 0
        for index in range(len(self.offsets)):
            if index >= len(self.ids):
                state = "cut"
            else:
                state = "learned" if self.labels[index] != IGNORE else "seen"
            upto = self.offsets[index + 1][0] if index + 1 < len(self.offsets) else len(self.text)
            upto = max(upto, place)
            part = self.text[place:upto]
            armed = not self.text.startswith(_CLOSE, upto) and not part.startswith(_OPEN) and control.fullmatch(part) is not None
            part = part.replace(_OPEN, "").replace(_CLOSE, "")
            place = upto
            if runs and runs[-1][1:] == (state, armed) and not armed:
                runs[-1] = (runs[-1][0] + part, state, armed)
            elif part:
                runs.append((part, state, armed))
        return runs


@lru_cache(maxsize=8)
def load_tokenizer(base_dir: str):
    """The tokenizer in a base model's folder, without torch.

    Raises:
        UserError: the folder has no fast tokenizer.
    """
    from transformers import PreTrainedTokenizerFast

    if not (Path(base_dir) / "tokenizer.json").is_file():
        raise UserError("The base model has no tokenizer.json, so it cannot be used here. Choose another base model.")
    with child.within(LOADING_S):
        tokenizer = PreTrainedTokenizerFast.from_pretrained(base_dir, local_files_only=True, trust_remote_code=False)
    if tokenizer.eos_token_id is None:
        raise UserError("The base model's tokenizer names no end token, so answers would never end. Choose another.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def encode(
    messages: list[dict],
    tokenizer,
    max_tokens: int,
    *,
    tools: list[dict] | None = None,
    learn: str = "answers",
    keep_control_tokens: bool = False,
    date: str = "2026-01-01",
) -> list[Encoded]:
    """Turn one conversation into token ids and labels; the loss is taken on the assistant's turns and their end token.

    Args:
        messages: [{"role": "system" | "user" | "assistant" | "tool", "content": str, "tool_calls"?: [...]}, ...]
        max_tokens: longest row kept, in tokens. The right end is cut.
        tools: JSON schemas of the tools that the conversation may call.
        learn: "answers", or "everything" for the loss on every token.
        keep_control_tokens: leave control tokens inside texts their power.
        date: the day that templates which print one will print, as YYYY-MM-DD.

    Returns:
        One Encoded; or one for each answer where the template shows a turn differently once another follows it.
        An Encoded without a learned token is possible (all of the answer was cut); the caller counts and drops it.

    Raises:
        UserError: the template refuses the conversation.
    """
    with child.within(_enough(messages)):
        return _encode(_View(tokenizer, tools, messages, keep_control_tokens, date), tokenizer, max_tokens, learn)


def _enough(messages: list[dict]) -> float:
    """Seconds of computing that a row of this size may take."""
    return MOST_S + sum(len(message.get("content") or "") for message in messages) / CHARACTERS_A_SECOND


def _encode(view: "_View", tokenizer, max_tokens: int, learn: str) -> list[Encoded]:
    text, spans, how = _answer_spans(view, view.messages)
    cuts = [start for start, _ in spans or ()]
    if learn == "everything":
        return [_labelled(text, [(0, len(text))], cuts, tokenizer, max_tokens, BY_TEXT, keep_end=True)]
    if spans is not None:
        return [_labelled(text, spans, cuts, tokenizer, max_tokens, how)]
    rows = []
    for number, message in enumerate(view.messages):
        if message["role"] != "assistant":
            continue
        before, cuts = _prompt(view, view.messages[:number])
        answer = _answer_after(before, view, view.messages[: number + 1])
        if answer is None:
            return [_labelled(text, [(0, len(text))], [], tokenizer, max_tokens, BY_WHOLE_ROW, keep_end=True)]
        span = (len(before), len(before) + len(answer))
        rows.append(_labelled(before + answer, [span], [*cuts, len(before)], tokenizer, max_tokens, BY_ANSWER))
    return rows


def encode_text(text: str, tokenizer, max_tokens: int, keep_control_tokens: bool = False) -> Encoded:
    """Plain text as one row: every token but the first is learned, the end token too."""
    marked = text if keep_control_tokens else _disarm(text, _control_pattern(tokenizer, ""))
    start = tokenizer.bos_token if _adds_bos(tokenizer) else ""
    marked = f"{start}{marked}{tokenizer.eos_token}"
    with child.within(_enough([{"content": text}])):
        return _labelled(marked, [(0, len(marked))], [], tokenizer, max_tokens, BY_TEXT, keep_end=True)


def encode_continuation(before: str, text: str, tokenizer, max_tokens: int) -> Encoded:
    """Plain text whose end is learned, without an end token: what its log-likelihood after `before` is taken on.

    Args:
        before: "" to take every token but the first.
    """
    start = tokenizer.bos_token if _adds_bos(tokenizer) else ""
    place = len(start) + len(before)
    return _labelled(f"{start}{before}{text}", [(place, place + len(text))], [], tokenizer, max_tokens, BY_TEXT, keep_end=True)


def prompt_ids(
    messages: list[dict], tokenizer, *, tools=None, keep_control_tokens: bool = False, date: str = "2026-01-01"
) -> list[int]:
    """The ids that ask the model for its next turn; the same ids that stand before that answer in training.

    Raises:
        UserError: the template refuses the conversation.
    """
    with child.within(_enough(messages)):
        view = _View(tokenizer, tools, messages, keep_control_tokens, date)
        text, cuts = _prompt(view, view.messages)
        return _tokenise(text, cuts, tokenizer)[0]


def turn_tokens(
    messages: list[dict], tokenizer, *, tools=None, keep_control_tokens: bool = False, date: str = "2026-01-01"
) -> list[int | None]:
    """How many tokens each turn takes, its role and end token included; None where the template does not let it be told.

    Raises:
        UserError: the template refuses the conversation.
    """
    with child.within(_enough(messages)):
        return _turn_tokens(_View(tokenizer, tools, messages, keep_control_tokens, date), len(messages))


def _turn_tokens(view: "_View", shown: int) -> list[int | None]:
    tokenizer = view.tokenizer
    text, _ = view.render(view.messages)
    starts = [start for start, _ in _tokenise(text, [], tokenizer)[1]]
    counts, done = [], 0
    for number in range(len(view.messages)):
        try:
            upto, _ = view.render(view.messages[: number + 1])
        except UserError:  # a template may refuse a part of what it accepts whole
            upto = None
        if upto is None or not text.startswith(upto):
            counts.append(None)
            continue
        place = bisect_left(starts, len(upto))
        counts.append(place - done)
        done = place
    return counts[len(view.messages) - shown :]  # a turn that lists the tools may stand before them


def stop_ids(tokenizer, generation_eos: int | list[int] | None = None) -> set[int]:
    """Every id that ends an answer: the tokenizer's end token, the model's, and what the template ends a turn with."""
    ids = {tokenizer.eos_token_id}
    if generation_eos is not None:
        ids.update(generation_eos if isinstance(generation_eos, list) else [generation_eos])
    probe = encode(
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], tokenizer, 100_000
    )[-1]
    special = _special_ids(tokenizer)
    ids.update(label for label in probe.labels[-2:] if label in special)
    return ids


def control_tokens(tokenizer) -> re.Pattern:
    """What matches a control token of this model inside a text, where it has no power unless the recipe keeps it."""
    return _control_pattern(tokenizer, tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else "")


# Rendering --------------------------------------------------------------------------------------------------------


class _View:
    """One conversation as the template sees it: control tokens disarmed, tools put where the template can show them."""

    def __init__(self, tokenizer, tools, messages, keep_control_tokens: bool, date: str):
        self.tokenizer = tokenizer
        self.template = tokenizer.get_chat_template(tools=tools) if tokenizer.chat_template else PLAIN_TEMPLATE
        if len(self.template) > MOST_TEMPLATE:
            raise UserError(f"The model's chat template has {len(self.template):,} characters; the most is {MOST_TEMPLATE:,}. Choose another base model.")
        self.date = date
        messages, self.tools = _fit_tools(_fit_reasoning(messages, self.template), tools, self.template)
        if not keep_control_tokens:
            pattern = _control_pattern(tokenizer, self.template)
            messages, self.tools = _disarm(messages, pattern), _disarm(self.tools, pattern)
        self.messages = messages

    def render(self, messages, *, add_generation_prompt=False, track=False) -> tuple[str, list[tuple[int, int]]]:
        """The text, and with `track` the spans inside the template's generation marks."""
        from jinja2.exceptions import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        extra = {}
        if "date_string" in self.template:
            extra["date_string"] = calendar.fromisoformat(self.date).strftime("%d %b %Y")
        try:
            texts, spans = render_jinja_template(
                conversations=[messages],
                tools=self.tools,
                chat_template=_freeze_clock(self.template, self.date),
                return_assistant_tokens_mask=track,
                add_generation_prompt=add_generation_prompt,
                **self.tokenizer.special_tokens_map,
                **extra,
            )
        except (
            TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError
        ) as error:
            raise UserError(
                f"The model's chat template refuses this conversation: {shorten(error, 120)}. "
                "Check the order of the turns, or choose another base model."
            ) from None
        return texts[0], spans[0] if spans else []


@lru_cache(maxsize=64)
def _freeze_clock(template: str, date: str) -> str:
    """The template with `strftime_now` answering for the given day, so that rendering does not depend on the clock."""
    formats = re.findall(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""", template)
    if not formats:
        return template
    day = calendar.fromisoformat(date)
    cases = "".join(
        "{%- " + ("if" if index == 0 else "elif") + f" f == {form!r} -%}}" + day.strftime(form)
        for index, form in enumerate(dict.fromkeys(form for _, form in formats))
    )
    macro = "{%- macro strftime_now(f) -%}" + cases + "{%- endif -%}{%- endmacro %}\n"
    return macro + template  # jinja takes the line break after a block away, and the template begins a line of its own


def _fit_reasoning(messages, template: str):
    """Messages with the reasoning inside their answers handed over as such, to a template that can show it.

    Qwen3's would cut it out of the text by itself, but not once the think tokens in it are disarmed.
    """
    if "reasoning_content" not in template:
        return messages
    fitted = []
    for message in messages:
        content = message.get("content") or ""
        if message["role"] == "assistant" and "</think>" in content and "reasoning_content" not in message:
            thought = content.split("</think>")[0].split("<think>")[-1].strip("\n")
            message = {**message, "reasoning_content": thought, "content": content.split("</think>")[-1].lstrip("\n")}
        fitted.append(message)
    return fitted


def _fit_tools(messages, tools, template: str):
    """Messages and tools that this template can show: where it has no place for tools, they become text."""
    takes_tools, takes_calls = "tools" in template, "tool_calls" in template
    fitted, numbers, calls_made = [], [], 0
    for message in messages:
        if "tool_call_id" in template:  # Mistral's wants nine characters on each call, and the same on its result
            if message.get("tool_calls"):
                numbers = [f"call{calls_made + index:05d}" for index in range(len(message["tool_calls"]))]
                calls_made += len(numbers)
                message = {**message, "tool_calls": [{**call, "id": its} for call, its in zip(message["tool_calls"], numbers)]}
            elif message["role"] == "tool" and numbers:
                message = {**message, "tool_call_id": numbers.pop(0) if len(numbers) > 1 else numbers[0]}
        if message.get("tool_calls") and not takes_calls:
            calls = "\n".join(
                f"<tool_call>\n{json.dumps(call['function'], ensure_ascii=False)}\n</tool_call>"
                for call in message["tool_calls"]
            )
            message = {"role": "assistant", "content": "\n".join(filter(None, [message.get("content"), calls]))}
        fitted.append(message)
    if tools and not takes_tools:
        listing = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
        words = f"You may call these tools. To call one, answer with <tool_call>JSON</tool_call>.\n{listing}"
        if fitted and fitted[0]["role"] == "system":
            fitted[0] = {**fitted[0], "content": f"{fitted[0]['content']}\n\n{words}"}
        else:
            fitted.insert(0, {"role": "system", "content": words})
        tools = None
    return fitted, tools


@lru_cache(maxsize=32)
def _control_tokens(tokenizer, template: str) -> tuple[str, ...]:
    """Added tokens with power: all special ones, and those that the template itself writes."""
    return tuple(
        token.content
        for token in tokenizer.added_tokens_decoder.values()
        if token.content.strip() and (token.special or token.content in template)
    )


@lru_cache(maxsize=32)
def _control_pattern(tokenizer, template: str) -> re.Pattern:
    longest_first = sorted(_control_tokens(tokenizer, template), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def _disarm(value, pattern: re.Pattern):
    """The same value with every control token inside its texts wrapped in marks; marks already there are dropped."""
    if isinstance(value, str):
        value = value.replace(_OPEN, "").replace(_CLOSE, "")
        return pattern.sub(f"{_OPEN}\\g<0>{_CLOSE}", value)
    if isinstance(value, dict):
        return {_disarm(key, pattern): _disarm(item, pattern) for key, item in value.items()}
    if isinstance(value, list):
        return [_disarm(item, pattern) for item in value]
    return value


# Which part is learned --------------------------------------------------------------------------------------------


def _prompt(view: _View, messages) -> tuple[str, list[int]]:
    """The text that asks for the next turn, and where its earlier answers begin, which are tokenised on their own."""
    text, _ = view.render(messages, add_generation_prompt=True)
    if not any(message["role"] == "assistant" for message in messages):
        return text, []
    try:
        earlier, spans, _ = _answer_spans(view, messages)
    except UserError:  # a template may refuse turns that nobody answers
        return text, []
    return text, [start for start, _ in spans or ()] if text.startswith(earlier) else []


def _answer_spans(view: _View, messages) -> tuple[str, list[tuple[int, int]] | None, str]:
    """The rendered text, the spans of its answers (None: they cannot be marked in one text), and how they were found."""
    if re.search(r"\{%-?\s*generation\s*-?%\}", view.template):
        text, spans = view.render(messages, track=True)
        if spans:
            return text, _without_openings(text, spans, view, messages), BY_MARKS
    text, _ = view.render(messages)
    if (spans := _variant_spans(text, view, messages)) is not None:
        return text, spans, BY_VARIANT
    spans = []
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        try:
            before, _ = view.render(messages[:number], add_generation_prompt=True)
            upto, _ = view.render(messages[: number + 1])
        except UserError:  # a template may refuse a part of what it accepts whole
            return text, None, BY_ANSWER
        if not (text.startswith(upto) and upto.startswith(before)):
            return text, None, BY_ANSWER
        spans.append((len(before), len(upto)))
    return text, spans, BY_DIFFERENCE


def _without_openings(text: str, spans, view: _View, messages) -> list[tuple[int, int]]:
    """The spans without what the prompt already says: SmolLM3's marks stand round whole turns, "assistant" included."""
    answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    if len(answers) != len(spans):
        return spans
    kept = []
    for number, (start, end) in zip(answers, spans):
        before, _ = view.render(messages[:number], add_generation_prompt=True) if number else ("", [])
        kept.append((len(before), end) if start < len(before) < end and text.startswith(before) else (start, end))
    return kept


def _answer_after(before: str, view: _View, messages) -> str | None:
    """What the template writes for the last turn after this prompt; None if that cannot be told."""
    upto, _ = view.render(messages)
    if upto.startswith(before):
        return upto[len(before) :]
    # Mistral v0.3 shows the system turn only while an answer is awaited; the answer itself can still be told.
    spans = _variant_spans(upto, view, messages, after_prompt=False)
    return upto[slice(*spans[-1])] if spans else None


# Turn formats in use: role names, what opens a turn, what closes it, and how a content is shown.
_VARIANTS: tuple[tuple[dict, Callable, Callable, Callable], ...] = (
    ({}, lambda role: f"<|im_start|>{role}\n", lambda role: "<|im_end|>\n", lambda role, content: content),
    (
        {}, lambda role: f"<|start_header_id|>{role}<|end_header_id|>\n\n", lambda role: "<|eot_id|>",
        lambda role, content: content.strip(),
    ),
    (
        {"assistant": "model"}, lambda role: f"<start_of_turn>{role}\n", lambda role: "<end_of_turn>\n",
        lambda role, content: content.strip(),
    ),
    (
        {}, lambda role: "[INST] " if role == "user" else "", lambda role: "[/INST]" if role == "user" else "</s>",
        lambda role, content: content if role == "user" else f" {content.strip()}",
    ),
    ({}, lambda role: f"<|{role}|>\n", lambda role: "<|end|>\n", lambda role, content: content),
    ({}, lambda role: f"<|{role}|>\n", lambda role: "</s>\n", lambda role, content: content),
)


def _variant_spans(text: str, view: _View, messages, after_prompt: bool = True) -> list[tuple[int, int]] | None:
    """The answers' spans by the first turn format whose turns are exactly the end of the text; None if none is.

    What stands before the turns (a default system turn, a date) is the template's own and is never learned.

    Args:
        after_prompt: also ask that the text up to the first answer is the prompt that asks for it.
    """
    if not all(set(message) <= {"role", "content"} for message in messages):
        return None
    shapes = [messages]
    if messages[0]["role"] == "system" and len(messages) > 1:
        system, first, *rest = messages
        shapes.append([first, *rest])
        shapes.append([{**first, "content": f"{system['content']}\n\n{first['content']}"}, *rest])
    answer = next((number for number, message in enumerate(messages) if message["role"] == "assistant"), 0)
    prompt = view.render(messages[:answer], add_generation_prompt=True)[0] if after_prompt and answer else None
    for names, opening, closing, shown in _VARIANTS:
        if not any(opening(names.get(role, role)).strip() in text for role in ("assistant", "user")):
            continue
        for shape in shapes:
            turns, spans = "", []
            for message in shape:
                role = names.get(message["role"], message["role"])
                content = shown(role, message["content"])
                turns += opening(role)
                if message["role"] == "assistant":
                    spans.append((len(turns), len(turns) + len(content) + len(closing(role))))
                turns += content + closing(role)
            shift = len(text) - len(turns)
            if text.endswith(turns) and (prompt is None or text[: shift + spans[0][0]] == prompt):
                return [(start + shift, end + shift) for start, end in spans]
    return None


def _labelled(text: str, spans, cuts, tokenizer, max_tokens: int, how: str, keep_end: bool = False) -> Encoded:
    """Tokenise the text and put labels where a token begins inside a span; see `Encoded`."""
    ids, offsets = _tokenise(text, cuts, tokenizer)
    learned = [False] * len(ids)
    starts = [start for start, _ in spans]
    for index, (start, _) in enumerate(offsets):
        its = bisect_right(starts, start) - 1
        learned[index] = its >= 0 and start < spans[its][1]
    if not keep_end:
        _settle_ends(ids, learned, text, offsets, tokenizer)
    if learned:
        learned[0] = False
    kept = ids[:max_tokens]
    labels = [token if its else IGNORE for token, its in zip(kept, learned)]
    return Encoded(kept, labels, how, text, offsets, learned)


def _settle_ends(ids, learned, text, offsets, tokenizer) -> None:
    """Make every answer end with its end-of-turn token: learn it where marks left it out, learn nothing after it."""
    special = _special_ids(tokenizer)
    index = 0
    while index < len(ids):
        if not learned[index]:
            index += 1
            continue
        end = index
        while end < len(ids) and learned[end]:
            end += 1
        last = end - 1
        while last > index and ids[last] not in special and not text[slice(*offsets[last])].strip():
            last -= 1
        if ids[last] in special:
            for later in range(last + 1, end):  # the line break after the end token is the template's
                learned[later] = False
        elif end < len(ids) and ids[end] in special:
            learned[end] = True
        index = end + 1


@lru_cache(maxsize=32)
def _special_ids(tokenizer) -> frozenset[int]:
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(special | {tokenizer.eos_token_id})


# Tokens -----------------------------------------------------------------------------------------------------------


def _tokenise(text: str, cuts: list[int], tokenizer) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids and [start, end) offsets; what stands between marks is tokenised as plain text, never as a control token.

    Args:
        cuts: places that no token may cross. Each answer begins at one, so that the ids before it are those of the
            prompt that asks for it, also where the answer's first letters would join the prompt's last ones.
    """
    ids: list[int] = []
    offsets: list[tuple[int, int]] = []

    def add(start: int, end: int, as_plain: bool) -> None:
        if start == end:
            return
        if as_plain:
            found = _plain_ids(text[start:end], tokenizer)
            pairs = [(0, end - start)] * len(found)
        else:
            found, pairs = _tokenise_inside(text[start:end], tokenizer, first=start == 0)
        ids.extend(found)
        offsets.extend((start + a, start + b) for a, b in pairs)

    for begin, stop in pairwise([0, *cuts, len(text)]):
        place = begin
        for mark in _marks(tokenizer).finditer(text, begin, stop):
            add(place, mark.start(), as_plain=False)
            if mark[1]:
                add(*mark.span(1), as_plain=True)
            place = mark.end()
        add(place, stop, as_plain=False)
    return ids, offsets


@lru_cache(maxsize=32)
def _marks(tokenizer) -> re.Pattern:
    """A control token between its marks, or a mark left alone: templates cut texts in pieces, and with them the pair."""
    longest_first = sorted((token.content for token in tokenizer.added_tokens_decoder.values()), key=len, reverse=True)
    return re.compile(f"{_OPEN}({'|'.join(map(re.escape, longest_first)) or '(?!)'}){_CLOSE}|[{_OPEN}{_CLOSE}]")


def _plain_ids(piece: str, tokenizer) -> list[int]:
    """The ids of a piece from the middle of a text by the tokenizer's own steps, blind to its added tokens.

    As transformers does for `sanitize_control_tokens`; the line break before keeps off SentencePiece's opening space.
    """
    backend = tokenizer.backend_tokenizer

    def ids(text: str) -> list[int]:
        if backend.normalizer is not None:
            text = backend.normalizer.normalize_str(text)
        splits = [part for part, _ in backend.pre_tokenizer.pre_tokenize_str(text)] if backend.pre_tokenizer else [text]
        return [token.id for split in splits for token in backend.model.tokenize(split)]

    head, whole = ids("\n"), ids("\n" + piece)
    return whole[len(head) :] if whole[: len(head)] == head else ids(piece)


def _tokenise_inside(piece: str, tokenizer, first: bool):
    """A piece from the middle of a text, without the space that SentencePiece puts before a beginning."""
    if not first:
        out = tokenizer("\n" + piece, add_special_tokens=False, return_offsets_mapping=True)
        pairs = out["offset_mapping"]
        head = sum(1 for _, end in pairs if end <= 1)
        if head < len(pairs) and pairs[head][0] >= 1:
            return out["input_ids"][head:], [(start - 1, end - 1) for start, end in pairs[head:]]
    out = tokenizer(piece, add_special_tokens=False, return_offsets_mapping=True)
    return out["input_ids"], [tuple(pair) for pair in out["offset_mapping"]]


@lru_cache(maxsize=32)
def _adds_bos(tokenizer) -> bool:
    ids = tokenizer("a")["input_ids"]
    return bool(ids) and tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id
