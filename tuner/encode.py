"""Token sequences become ids and labels: templates, masks, cuts; preview, training and chat all call this."""

import re
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date as calendar
from functools import lru_cache
from pathlib import Path

from tuner.errors import UserError, shorten

IGNORE = -100

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

    def pieces(self) -> list[tuple[str, str]]:
        """The text in runs for the page: (text, "learned" | "seen" | "cut"), all of it, in order."""
        runs: list[tuple[str, str]] = []
        place = 0
        for index, (start, end) in enumerate(self.offsets):
            if index >= len(self.ids):
                state = "cut"
            else:
                state = "learned" if self.labels[index] != IGNORE else "seen"
            upto = self.offsets[index + 1][0] if index + 1 < len(self.offsets) else len(self.text)
            upto = max(upto, place)
            part = self.text[place:upto].replace(_OPEN, "").replace(_CLOSE, "")
            place = upto
            if runs and runs[-1][1] == state:
                runs[-1] = (runs[-1][0] + part, state)
            elif part:
                runs.append((part, state))
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
    tokenizer = PreTrainedTokenizerFast.from_pretrained(base_dir, local_files_only=True)
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
    view = _View(tokenizer, tools, messages, keep_control_tokens, date)
    if learn == "everything":
        text, _ = view.render(view.messages)
        return [_labelled(text, [(0, len(text))], tokenizer, max_tokens, BY_TEXT, keep_end=True)]
    text, spans, how = _answer_spans(view)
    if spans is not None:
        return [_labelled(text, spans, tokenizer, max_tokens, how)]
    rows = []
    for number, message in enumerate(view.messages):
        if message["role"] != "assistant":
            continue
        before, _ = view.render(view.messages[:number], add_generation_prompt=True)
        upto, _ = view.render(view.messages[: number + 1])
        if not upto.startswith(before):
            return [_labelled(text, [(0, len(text))], tokenizer, max_tokens, BY_WHOLE_ROW, keep_end=True)]
        rows.append(_labelled(upto, [(len(before), len(upto))], tokenizer, max_tokens, BY_ANSWER))
    return rows


def encode_text(text: str, tokenizer, max_tokens: int, keep_control_tokens: bool = False) -> Encoded:
    """Plain text as one row: every token but the first is learned, the end token too."""
    marked = text if keep_control_tokens else _disarm(text, _control_pattern(tokenizer, ""))
    start = tokenizer.bos_token if _adds_bos(tokenizer) else ""
    marked = f"{start}{marked}{tokenizer.eos_token}"
    return _labelled(marked, [(0, len(marked))], tokenizer, max_tokens, BY_TEXT, keep_end=True)


def prompt_ids(
    messages: list[dict], tokenizer, *, tools=None, keep_control_tokens: bool = False, date: str = "2026-01-01"
) -> list[int]:
    """The ids that ask the model for its next turn; the same ids that stand before that answer in training.

    Raises:
        UserError: the template refuses the conversation.
    """
    view = _View(tokenizer, tools, messages, keep_control_tokens, date)
    text, _ = view.render(view.messages, add_generation_prompt=True)
    return _tokenise(text, tokenizer)[0]


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


# Rendering --------------------------------------------------------------------------------------------------------


class _View:
    """One conversation as the template sees it: control tokens disarmed, tools put where the template can show them."""

    def __init__(self, tokenizer, tools, messages, keep_control_tokens: bool, date: str):
        self.tokenizer = tokenizer
        self.template = tokenizer.get_chat_template(tools=tools) if tokenizer.chat_template else PLAIN_TEMPLATE
        self.date = date
        messages, self.tools = _fit_tools(messages, tools, self.template)
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
        except (TemplateError, TypeError, KeyError, ValueError, IndexError, AttributeError) as error:
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
    macro = "{%- macro strftime_now(f) -%}" + cases + "{%- endif -%}{%- endmacro -%}"
    return macro + "{{ '' }}" + template  # the empty expression keeps jinja from trimming the template's first line


def _fit_tools(messages, tools, template: str):
    """Messages and tools that this template can show: where it has no place for tools, they become text."""
    takes_tools, takes_calls = "tools" in template, "tool_calls" in template
    fitted = []
    for message in messages:
        if message.get("tool_calls") and not takes_calls:
            import json

            calls = "\n".join(
                f"<tool_call>\n{json.dumps(call['function'], ensure_ascii=False)}\n</tool_call>"
                for call in message["tool_calls"]
            )
            message = {"role": "assistant", "content": "\n".join(filter(None, [message.get("content"), calls]))}
        fitted.append(message)
    if tools and not takes_tools:
        import json

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
        return {key: _disarm(item, pattern) for key, item in value.items()}
    if isinstance(value, list):
        return [_disarm(item, pattern) for item in value]
    return value


# Which part is learned --------------------------------------------------------------------------------------------


def _answer_spans(view: _View) -> tuple[str, list[tuple[int, int]] | None, str]:
    """The rendered text, the spans of its answers (None: they cannot be marked in one text), and how they were found."""
    if re.search(r"\{%-?\s*generation\s*-?%\}", view.template):
        text, spans = view.render(view.messages, track=True)
        if spans:
            return text, spans, BY_MARKS
    text, _ = view.render(view.messages)
    if (spans := _variant_spans(text, view)) is not None:
        return text, spans, BY_VARIANT
    spans = []
    for number, message in enumerate(view.messages):
        if message["role"] != "assistant":
            continue
        try:
            before, _ = view.render(view.messages[:number], add_generation_prompt=True)
            upto, _ = view.render(view.messages[: number + 1])
        except UserError:  # a template may refuse a part of what it accepts whole
            return text, None, BY_ANSWER
        if not (text.startswith(upto) and upto.startswith(before)):
            return text, None, BY_ANSWER
        spans.append((len(before), len(upto)))
    return text, spans, BY_DIFFERENCE


# Turn formats in use: role names, what opens a turn, what closes it, and whether the content is stripped.
_VARIANTS: tuple[tuple[dict, Callable, Callable, bool], ...] = (
    ({}, lambda role: f"<|im_start|>{role}\n", lambda role: "<|im_end|>\n", False),
    ({}, lambda role: f"<|start_header_id|>{role}<|end_header_id|>\n\n", lambda role: "<|eot_id|>", True),
    ({"assistant": "model"}, lambda role: f"<start_of_turn>{role}\n", lambda role: "<end_of_turn>\n", True),
    ({}, lambda role: "[INST] " if role == "user" else " ", lambda role: "[/INST]" if role == "user" else "</s>", False),
    ({}, lambda role: f"<|{role}|>\n", lambda role: "<|end|>\n", False),
    ({}, lambda role: f"<|{role}|>\n", lambda role: "</s>\n", False),
)


def _variant_spans(text: str, view: _View) -> list[tuple[int, int]] | None:
    """The answers' spans by the first turn format whose turns are exactly the end of the text; None if none is.

    What stands before the turns (a default system turn, a date) is the template's own and is never learned.
    """
    plain = [message for message in view.messages if set(message) <= {"role", "content"}]
    if len(plain) != len(view.messages):
        return None
    shapes = [view.messages]
    if view.messages[0]["role"] == "system" and len(view.messages) > 1:
        system, first, *rest = view.messages
        shapes.append([first, *rest])
        shapes.append([{**first, "content": f"{system['content']}\n\n{first['content']}"}, *rest])
    for names, opening, closing, strips in _VARIANTS:
        if not any(opening(names.get(role, role)).strip() in text for role in ("assistant", "user")):
            continue
        for messages in shapes:
            turns, spans = "", []
            for message in messages:
                role = names.get(message["role"], message["role"])
                content = message["content"].strip() if strips else message["content"]
                turns += opening(role)
                if message["role"] == "assistant":
                    spans.append((len(turns), len(turns) + len(content) + len(closing(role))))
                turns += content + closing(role)
            if text.endswith(turns):
                shift = len(text) - len(turns)
                return [(start + shift, end + shift) for start, end in spans]
    return None


def _labelled(text: str, spans, tokenizer, max_tokens: int, how: str, keep_end: bool = False) -> Encoded:
    """Tokenise the text and put labels where a token begins inside a span; see `Encoded`."""
    ids, offsets = _tokenise(text, tokenizer)
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


def _tokenise(text: str, tokenizer) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids and [start, end) offsets; what stands between marks is tokenised as plain text, never as a control token."""
    if _OPEN not in text and _CLOSE not in text:
        out = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return out["input_ids"], [tuple(pair) for pair in out["offset_mapping"]]
    ids: list[int] = []
    offsets: list[tuple[int, int]] = []
    place, disarmed = 0, False
    for part in re.split(f"([{_OPEN}{_CLOSE}])", text):
        if part in (_OPEN, _CLOSE):
            disarmed = part == _OPEN
        elif part:
            # Cut after the first character, a control token's two halves are ordinary text.
            for piece, start in ((part[:1], 0), (part[1:], 1)) if disarmed else ((part, 0),):
                if piece:
                    its_ids, its_offsets = _tokenise_inside(piece, tokenizer, first=place + start == 0)
                    ids += its_ids
                    offsets += [(place + start + a, place + start + b) for a, b in its_offsets]
        place += len(part)
    return ids, offsets


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
