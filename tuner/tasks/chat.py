"""The chat task: conversations, how they are recognised, encoded, and which model class learns them."""

import json
import re

from tuner import figures, near
from tuner.encode import Encoded  # noqa: F401
from tuner.errors import UserError, shorten
from tuner.tasks import NoRow
from tuner.tasks.columns import columns_of, problems_of
from tuner.turns import (  # noqa: F401
    FAULTS,
    answer,
    faults,
    join,
    learnable,
    map_texts,
    opening,
    said,
    split,
    texts,
    trim,
    with_answer,
)

# format -> (its name in words, the roles a mapping must fill, the roles it may fill)
FORMATS = {
    "messages": ("Chat messages (role, content)", ("messages",), ("tools", "system", "split", "group")),
    "sharegpt": ("ShareGPT (from, value)", ("messages",), ("tools", "system", "split", "group")),
    "alpaca": ("Alpaca (instruction, input, output)", ("prompt", "completion"), ("context", "system", "split", "group")),
    "pair": ("Prompt and completion", ("prompt", "completion"), ("context", "system", "split", "group")),
    "text": ("Plain text", ("text",), ("split", "group")),
}
# What a column's name may be that says which rows are one conversation.
_CONVERSATION_NAMES = (
    "conversation_id", "conversation", "conv_id", "conversationid", "dialog_id", "dialogue_id", "thread_id", "chat_id", "session_id",
)
ROLES = ("messages", "prompt", "context", "completion", "text", "system", "tools", "split", "group")

_PAIRS = (
    ("prompt", "completion"), ("prompt", "response"), ("prompt", "answer"), ("prompt", "output"),
    ("question", "answer"), ("question", "response"), ("input", "output"), ("query", "response"), ("query", "answer"),
    ("instruction", "response"), ("instruction", "completion"), ("user", "assistant"), ("source", "target"),
)
_TEXTS = ("text", "content", "document", "body")
_SHAREGPT_ROLES = {
    "human": "user", "user": "user", "prompter": "user", "gpt": "assistant", "chatgpt": "assistant",
    "bing": "assistant", "bard": "assistant", "assistant": "assistant", "model": "assistant", "system": "system",
    "function_call": "call", "tool_call": "call", "observation": "tool", "tool": "tool", "function_response": "tool",
    "function": "tool", "tool_response": "tool",
}
_ROLES_KNOWN = {"system", "user", "assistant", "tool", "developer"}


# Recognising ------------------------------------------------------------------------------------------------------


def _turns(value: object) -> list | None:
    """A list of turns, also where it was stored as JSON text; None if it is something else."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, list) and value and all(isinstance(turn, dict) for turn in value) else None


def claim(records):
    """None: chat is what is left where no other task is sure of its columns."""
    return None


def recognise(records):
    """The mapping that fits the records, with the reason in words.

    Raises:
        UserError: none fits; the columns are named.
    """
    from tuner.data import Mapping

    columns = columns_of(records)
    by_name = {column.strip().lower(): column for column in columns}
    extra = {role: by_name[role] for role in ("system", "tools") if role in by_name}
    if "system_prompt" in by_name:
        extra.setdefault("system", by_name["system_prompt"])
    if "split" in by_name:
        extra["split"] = by_name["split"]
    if its := next((by_name[name] for name in _CONVERSATION_NAMES if name in by_name), None):
        if not any(_turns(record.get(its)) for record in records[:200]):
            extra["group"] = its

    for column in columns:
        turns = next((found for record in records[:200] if (found := _turns(record.get(column)))), None)
        if turns and "role" in turns[0] and ("content" in turns[0] or "tool_calls" in turns[0]):
            return Mapping("messages", {"messages": column, **extra}, f"{column!r} holds turns with role and content")
        if turns and "from" in turns[0] and "value" in turns[0]:
            return Mapping("sharegpt", {"messages": column, **extra}, f"{column!r} holds turns with from and value")
    extra.pop("tools", None)
    if "instruction" in by_name and (answers := next((n for n in ("output", "response", "answer") if n in by_name), "")):
        found = {"prompt": by_name["instruction"], "completion": by_name[answers]}
        if "input" in by_name:
            found["context"] = by_name["input"]
        return Mapping("alpaca", {**found, **extra}, f"the columns instruction and {answers} are there")
    for prompt, completion in _PAIRS:
        if prompt in by_name and completion in by_name:
            found = {"prompt": by_name[prompt], "completion": by_name[completion]}
            return Mapping("pair", {**found, **extra}, f"the columns {prompt} and {completion} are there")
    for name in _TEXTS:
        if name in by_name:
            extra.pop("system", None)
            return Mapping("text", {"text": by_name[name], **extra}, f"there is a column {name!r} and no answer column")
    others = [column for column in columns if column not in extra.values()]
    if len(others) == 2:
        found = {"prompt": others[0], "completion": others[1]}
        return Mapping("pair", {**found, **extra}, "a guess: the first column asks, the second answers")
    raise UserError(
        f"The columns {shorten(', '.join(columns) or '(none)', 120)} fit no known format. Name them prompt and "
        "completion, or messages, or text, or choose by hand which is which."
    )


def fallback(columns: list[str]):
    """The mapping where none fits, to be put right by hand."""
    from tuner.data import Mapping

    return Mapping("text", {"text": columns[0] if columns else ""}, "a guess, since no known format fits; choose by hand")


def check_mapping(mapping, records) -> None:
    """Raise a UserError naming every role without a column and every column that is not there."""
    parts = lambda role, source, columns: [source] if source in columns or role not in TEMPLATED else _PLACE.findall(source) or [source]  # noqa: E731
    if problems := problems_of(FORMATS, mapping, records, parts):
        raise UserError(*problems)


# Rows -------------------------------------------------------------------------------------------------------------


def to_row(record: dict, mapping) -> dict:
    """The record as a row: {"messages": [...], "tools": [...]?} or {"text": str}.

    Raises:
        NoRow: the record teaches nothing; the words follow "Row N".
    """
    columns = mapping.columns

    def optional(role: str):
        return _value(record, columns[role]) if role in columns else None  # a column may be called "", as pandas' index is

    if mapping.format == "text":
        return {"text": _text(record, columns["text"], "text")}
    system = optional("system")
    messages = [{"role": "system", "content": system}] if isinstance(system, str) and system.strip() else []
    tools = None
    if mapping.format in ("messages", "sharegpt"):
        turns = _turns(record.get(columns["messages"]))
        if not turns:
            raise NoRow("no_prompt", f"has no conversation in {columns['messages']!r}.")
        read = _read_turn if mapping.format == "messages" else _read_sharegpt_turn
        messages += [read(turn, number) for number, turn in enumerate(turns, 1)]
        tools = _tools(optional("tools"))
    else:
        prompt = _text(record, columns["prompt"], "prompt")
        context = optional("context")
        if isinstance(context, str) and context.strip():
            prompt = f"{prompt}\n{context}"
        messages += [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": _text(record, columns["completion"], "answer")},
        ]
    if not any(m["role"] == "assistant" and (m["content"].strip() or m.get("tool_calls")) for m in messages):
        if any(m["role"] == "assistant" for m in messages):
            raise NoRow("empty_answer", "has an assistant turn without text, so there is no answer to learn.")
        raise NoRow("no_answer", "has no assistant turn, so there is no answer to learn.")
    return {"messages": messages, **({"tools": tools} if tools else {})}


# Roles that may be made of several columns by a template, and how one names a column.
TEMPLATED = ("prompt", "completion", "text", "system")
_PLACE = re.compile(r"\{([^{}\n]{1,200})\}")


def _value(record: dict, source: str):
    """The record's column of that name; or the template filled, where the source is one, as in "{question}\\n{context}".

    A column that is empty or missing leaves nothing in its place; a template with nothing in any place gives None.
    """
    if source in record or not _PLACE.search(source):
        return record.get(source)
    filled = []

    def fill(match: re.Match) -> str:
        value = record.get(match[1])
        text = "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        filled.append(text.strip())
        return text

    text = _PLACE.sub(fill, source)
    return text if any(filled) else None


def filled(record: dict, template: str, columns: list[str]) -> str:
    """The template filled from a record, for a preview.

    Raises:
        UserError: it names a column that is not there, or none.
    """
    asked = [template] if template in columns else _PLACE.findall(template)
    missing = [column for column in asked if column not in columns]
    if not asked or missing:
        what = f"The column {shorten(missing[0], 40)!r} is not there." if missing else "It names no column."
        raise UserError(f"{what} Write a column's name in braces; there are: {shorten(', '.join(columns), 120)}.")
    return str(_value(record, template) or "")


def _text(record: dict, column: str, what: str) -> str:
    value = _value(record, column)
    kind = "empty_answer" if what == "answer" else "no_prompt"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        missing = value is None and column not in record and not _PLACE.search(column)
        seen = "missing" if missing else "empty" if value is None else f"not text ({type(value).__name__})"
        raise NoRow(kind, f"has no {what}: {shorten(column, 40)!r} is {seen}.")
    if not value.strip():
        raise NoRow(kind, f"has no {what}: {shorten(column, 40)!r} is empty.")
    return value


def _read_turn(turn: dict, number: int) -> dict:
    role = str(turn.get("role", "")).strip().lower()
    if role not in _ROLES_KNOWN:
        role = {"call": "assistant"}.get(_SHAREGPT_ROLES.get(role, ""), _SHAREGPT_ROLES.get(role, ""))
    if not role:
        raise NoRow("unknown_role", f"has the role {shorten(turn.get('role'), 20)!r} in turn {number}; known are user, assistant, system, tool.")
    content = turn.get("content")
    if isinstance(content, list):  # content blocks: the text ones are kept
        texts = (block.get("text") for block in content if isinstance(block, dict))
        content = "".join(text for text in texts if isinstance(text, str))
    if content is not None and not isinstance(content, str):
        raise NoRow("no_prompt", f"has content that is not text in turn {number}.")
    kept = {"role": "system" if role == "developer" else role, "content": content or ""}
    if isinstance(turn.get("tool_calls"), list):
        kept["tool_calls"] = [_call(call) for call in turn["tool_calls"] if isinstance(call, dict)]
    if isinstance(turn.get("reasoning_content"), str):
        kept["reasoning_content"] = turn["reasoning_content"]
    return kept


def _read_sharegpt_turn(turn: dict, number: int) -> dict:
    role = _SHAREGPT_ROLES.get(str(turn.get("from", "")).strip().lower())
    value = turn.get("value")
    if role is None:
        raise NoRow("unknown_role", f"has the role {shorten(turn.get('from'), 20)!r} in turn {number}; known are human, gpt, system, function_call, observation.")
    if not isinstance(value, str):
        raise NoRow("no_prompt", f"has no text in turn {number}.")
    if role != "call":
        return {"role": role, "content": value}
    try:
        calls = json.loads(value)
    except (ValueError, RecursionError):
        return {"role": "assistant", "content": value}  # a call that is not JSON is learned as it stands
    calls = calls if isinstance(calls, list) else [calls]
    if not all(isinstance(call, dict) and "name" in call for call in calls):
        return {"role": "assistant", "content": value}
    return {"role": "assistant", "content": "", "tool_calls": [_call(call) for call in calls]}


def _call(call: dict) -> dict:
    function = call["function"] if isinstance(call.get("function"), dict) else call
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):  # as OpenAI writes them; templates write the JSON themselves
        try:
            parsed = json.loads(arguments)
        except (ValueError, RecursionError):
            parsed = None
        arguments = parsed if isinstance(parsed, dict) else arguments
    return {"type": "function", "function": {"name": str(function.get("name", "")), "arguments": arguments}}


def _tools(value: object) -> list | None:
    """Tool schemas as templates expect them, also where they were stored as JSON text."""
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    if not isinstance(value, list):
        return None
    tools = [tool for tool in value if isinstance(tool, dict)]
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools] or None


# What a check asks ------------------------------------------------------------------------------------------------

WHAT = "conversations"
# How the page calls it, the plain view of a row, its third tab, and the button that leads there; the dataset that ships with it.
# It is talked to, on a tab of its own.
TRIED, MOST_TRIED = "", 0
# What its rows show, and what they are counted in.
SHOWS, COUNTED = "words", "tokens"
TITLE, VIEW, TAB, LEAD = "Answers (chat)", "Conversation", "Chat", "Talk to it →"
DEMO = ("headlines.jsonl", "Clickbait headlines (demo)", "480 plain subjects, each with one irresistible headline. Written for Tuner.")


def turns_of(row: dict) -> list[dict]:
    """What was said in the row, by whom, for the page."""
    return row["messages"] if "messages" in row else [{"role": "text", "content": row["text"]}]


# General faults that this task words otherwise, and settings that mean nothing to it.
OTHERWISE: dict = {}
UNUSED = ("class_weights", "augmentation", "feature_distillation")
# Whether every row has a label; a chat's answers may happen to be labels, see `findings.Rows.labels`.
LABELLED = False


def label(text: str, alone: bool) -> str:
    """An answer as a label, where it could be one: short, on one line, the only one of its row; else ""."""
    its = " ".join(text.split())
    return its if alone and len(its) <= 40 and "\n" not in text.strip() else ""


# What a kept run's plan has besides what every run's has, and what its evaluations say besides the loss.
PLANNED: dict = {}
EVAL_FIGURES = ("perplexity",)


# What finds rows that are nearly the same, and what of a dataset's folder rows point into.
ALIKE = near
FILES: tuple[str, ...] = ()


def placed(row: dict, folder) -> dict:
    """The row as it is: all of it is in itself."""
    return row


def control_tokens(tokenizer):
    """See `encode.control_tokens`."""
    from tuner import encode

    return encode.control_tokens(tokenizer)


def adapted(model, recipe, heads: list[str]) -> list[str] | None:
    """The layers that get LoRA, by name; None for those that the recipe's words mean."""
    return None


def weights_in_words(model, plan: dict, recipe) -> list[str]:
    """What is to be said of the base's weights besides what is said of any."""
    return []


def is_row(row: dict) -> bool:
    """Whether a row, which may be somebody else's JSON, is one of this task's."""
    if isinstance(row.get("text"), str):
        return "messages" not in row
    turns = row.get("messages")
    return isinstance(turns, list) and bool(turns) and all(isinstance(turn, dict) and isinstance(turn.get("role"), str) for turn in turns)


def wont_do(rows, held) -> str:
    """Why no run can start on these rows although each by itself is fine; "" where one can."""
    return ""


# Encoding and model -----------------------------------------------------------------------------------------------

NOTHING_LEARNED = "has an answer within its first {:,} tokens"


def load_tokenizer(base_dir):
    """See `encode.load_tokenizer`."""
    from tuner import encode

    return encode.load_tokenizer(str(base_dir))


def warnings(found, tokenizer) -> list[str]:
    """What a person should know of the encoded rows (`survey.Survey`) before training, in sentences."""
    from tuner import encode

    told = []
    if found.how[encode.BY_WHOLE_ROW]:
        told.append(
            f"{found.how[encode.BY_WHOLE_ROW]:,} rows are learned whole, prompts too: this model's chat template does not "
            "show where an answer begins."
        )
    if not tokenizer.chat_template:
        told.append("This base model has no chat template of its own, so a plain one (User: / Assistant:) is used.")
    return told


def with_system(row: dict, recipe) -> dict:
    """The row with the recipe's system prompt before it, where it has none of its own."""
    messages = row.get("messages")
    if not recipe.system_prompt or not messages or messages[0]["role"] == "system":
        return row
    return {**row, "messages": [{"role": "system", "content": recipe.system_prompt}, *messages]}


def encode_row(row: dict, tokenizer, recipe) -> list:
    """The row as one or more `encode.Encoded`; the page's preview and the trainer both call this."""
    from tuner import encode

    if "text" in row:
        return [encode.encode_text(row["text"], tokenizer, recipe.max_tokens, recipe.keep_control_tokens)]
    row = with_system(row, recipe)
    return encode.encode(
        row["messages"], tokenizer, recipe.max_tokens, tools=row.get("tools"), learn=recipe.learn,
        keep_control_tokens=recipe.keep_control_tokens, date=recipe.template_date,
    )


def turn_tokens(row: dict, tokenizer, recipe) -> list[int | None]:
    """See `encode.turn_tokens`; for the row without the recipe's system prompt."""
    from tuner import encode

    if "text" in row:
        return [len(encode_row(row, tokenizer, recipe)[0].offsets)]
    return encode.turn_tokens(
        row["messages"], tokenizer, tools=row.get("tools"), keep_control_tokens=recipe.keep_control_tokens, date=recipe.template_date
    )


def sample_questions(recipe, held_out: list[dict], most: int) -> list[dict]:
    """The rows of the fixed prompts: the recipe's own first, then held-out rows before their answers, no prompt twice."""
    own = [with_system({"messages": [{"role": "user", "content": recipe.sample_prompt}]}, recipe)] if recipe.sample_prompt else []
    found = {}
    for question in [*own, *questions(held_out[: 4 * most], recipe)]:
        found.setdefault(question["messages"][-1]["content"], question)
    return list(found.values())[:most]


def questions(rows: list[dict], recipe) -> list[dict]:
    """Each row up to its first answer, with its tools; a plain text's first words stand in for a prompt."""
    found = []
    for row in rows:
        if "text" in row:
            row = {"messages": [{"role": "user", "content": " ".join(row["text"].split()[:8])}, {"role": "assistant"}]}
        row = with_system(row, recipe)
        first = next(i for i, message in enumerate(row["messages"]) if message["role"] == "assistant")
        asked = row["messages"][:first] or [{"role": "user", "content": "Hello"}]
        found.append({"messages": asked, **({"tools": row["tools"]} if row.get("tools") else {})})
    return found


def first_answers(rows: list[dict]) -> list[str]:
    """What each row itself answers to its question in `questions`; "" where that is no text."""
    return ["" if "text" in row else next(m for m in row["messages"] if m["role"] == "assistant").get("content") or "" for row in rows]


def prompt_ids(question: dict, tokenizer, recipe) -> list[int]:
    """The ids that ask this question; the same that stand before its answer in training."""
    from tuner import encode

    return encode.prompt_ids(
        question["messages"], tokenizer, tools=question.get("tools"), keep_control_tokens=recipe.keep_control_tokens,
        date=recipe.template_date,
    )[-recipe.max_tokens :]


def write_out(rows, path) -> None:
    """Write rows as they stand, one a line; see `data.write_rows`."""
    from tuner import data

    data.write_rows(rows, path)


def describe(row: dict) -> str:
    """The row in one short line, for lists."""
    return shorten(row.get("text") or next((m["content"] for m in row["messages"] if m["role"] == "user"), ""), 80)


def model_class():
    """The transformers class that learns this task."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM


PEFT_TASK = "CAUSAL_LM"


def decide(train_rows: list[dict], held_rows: list[dict], recipe) -> dict:
    """What a run's plan keeps of its rows; nothing here."""
    return {}


def loading(source, plan: dict) -> dict:
    """What `from_pretrained` is told besides; nothing here."""
    return {}


def heads(skeleton, base_dir) -> list[str]:
    """Modules that are trained in full; none here."""
    return []


def finish_loading(model, base_dir, plan: dict, recipe) -> None:
    """What is done to a base once it is loaded; nothing here."""


def is_fresh(weight: str, heads: list[str]) -> bool:
    """Whether a weight may be missing in the base's files; none may."""
    return False


def path(model, tokenizer, recipe, plan: dict | None, train_rows: list[dict] = ()):
    """How the model's losses are computed.

    Args:
        plan: of an earlier start of the same run; None decides anew.
    """
    from tuner import fast

    return fast.Path(model, tokenizer.pad_token_id, plan and plan["fast"])


# Training, telling, publishing ------------------------------------------------------------------------------------


def offers(recipe, family: str, rows: float, unbalanced: bool) -> list[tuple[str, str, str]]:
    """Nothing is offered beside the quote."""
    return []


def begin(run, path, rows: list) -> str:
    """Nothing is done before the first step."""
    return ""


def learning(run, path, tokenizer, held_rows: list[dict], held: list, samples: int, sample_tokens: int):
    """What an evaluation measures and tells; see `tasks.chat_learning`."""
    from tuner.tasks.chat_learning import Learning

    return Learning(run, path, tokenizer, held_rows, held, samples, sample_tokens)


def report(run, plan: dict, model, tokenizer, held: tuple, best_step: int, **more) -> dict:
    """See `report.make`.

    Args:
        held: the held-out rows, and these encoded.
    """
    from tuner import report as reports

    return reports.make(run, plan, model, tokenizer, *held, best_step, **more)


def measures(report: dict) -> list[dict]:
    """See `figures.measures`."""
    return figures.measures(report)


def advice(report: dict) -> list[str]:
    """See `figures.advice`."""
    return figures.advice(report)


def printed(report: dict) -> list[str]:
    """The report's figures as lines for a terminal."""
    return [f"{its['name']:<32} {its['base']:>10} -> {its['tuned']:>10}   {its['change']:<32} {its['of']}" for its in map(figures.shown, measures(report))]


def in_short(report: dict) -> str:
    """What came out, in one line."""
    return f"Held-out loss {report['base']['loss']:.4f} -> {report['tuned']['loss']:.4f} ({report['change']:+.0%})"


def tiles_of(measured: dict) -> list[tuple[str, str, str]]:
    """What the newest evaluation's event says besides the loss, as figures for a running run; nothing here."""
    return []


def tiles(report: dict) -> list[tuple[str, str, str]]:
    """Before and after as a strip of figures: (value, name, what it is)."""
    return [
        (f"{report['base']['loss']:.3f} → {report['tuned']['loss']:.3f}", f"held-out loss, {figures.rows_measured(report['held_out_rows'], report.get('held_out_of', report['held_out_rows']))}", "Lower is better, on rows it never saw"),
        (f"{report['change']:+.0%}", "change", "Of the held-out loss"),
        (f"{report['rows_better']} of {report['held_out_rows']}", "rows better", "Held-out rows that became likelier"),
        (f"{report['best_step']:,}", "best step", "The version that is kept"),
    ]


PIPELINE = "text-generation"
TAGS = ("conversational",)
# The probe in SmolLM2's tokens: all, those that are judged, the squares of its rows', and its rows.
PROBED = {"tokens": 6_693, "learned": 2_871, "squares": 185_887, "rows": 490}
# Files of the adapter's folder that are published besides those of every adapter.
PUBLISHED: tuple[str, ...] = ()


def keep_files(base_dir, folder, plan: dict) -> None:
    """Put what this task publishes besides into an adapter's folder: nothing, since the base's tokenizer is the adapter's."""


def record(plan: dict) -> dict:
    """What the repository keeps for machines besides what every adapter's does."""
    return {}


def read_record(known: dict) -> dict:
    """What of such a record belongs to the plan: nothing."""
    return {}


def practised(recipe) -> str:
    """How far its practice goes, for the card."""
    return f"It saw rows of at most {recipe.max_tokens:,} tokens; longer conversations are beyond what it practised."


def learned_part(recipe) -> str:
    """What the loss is taken on, for the card."""
    return "every token" if recipe.learn == "everything" else "the assistant's turns and their end token"


def before_and_after(run, report: dict) -> str:
    """The card's section on what came out, as Markdown."""
    from tuner.tasks import chat_card

    return chat_card.before_and_after(run, report, measures(report))


def load_it(repo_id: str, base_id: str, plan: dict) -> str:
    """The card's lines that load it."""
    return (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f'model = AutoModelForCausalLM.from_pretrained("{repo_id}")\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{base_id}")'
    )


def verify_inputs(tokenizer, text: str, model) -> dict:
    """A text as the plain model's forward takes it, for the comparison of a published adapter with the run's own."""
    import torch

    return {"input_ids": torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])}


# Cost and trying --------------------------------------------------------------------------------------------------

# Whether evaluations and the report answer prompts, token by token.
ANSWERS = True
# What the arithmetic is called where our own parts do not run.
PLAIN = "plain"
# The settings of this task's starter: those of a recipe as it is.
STARTER: dict = {}
# Whether our own parts may run at all.
OWN_PARTS = True


def worker():
    """Who answers at the command line; see `tuner.chat.Worker`."""
    from tuner import chat

    return chat.Worker()


def ask(worker, subject, history: list[dict], tuned: bool, on_piece, **sampling) -> str:
    """One answer, whole; its pieces go through `on_piece` as they come."""
    pieces = []
    for piece in worker.answer(subject, history, tuned=tuned, **sampling):
        pieces.append(piece)
        on_piece(piece)
    return "".join(pieces).strip()
