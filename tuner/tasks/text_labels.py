"""The text label task: texts with a label, with several, or two texts with one; recognised, encoded, and learned by a classifier."""

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tuner import child, encode, near
from tuner.errors import UserError, shorten
from tuner.home import read_json
from tuner.tasks import Fault, NoRow
from tuner.tasks.columns import columns_of, problems_of
from tuner.tasks.labels import (  # noqa: F401
    ANSWERS,
    EVAL_FIGURES,
    LABELLED,
    LEAD,
    OWN_PARTS,
    PLAIN,
    PLANNED,
    SEPARATOR,
    TAB,
    advice,
    ask,
    before_and_after,
    decide,
    has_label,
    in_short,
    is_fresh,
    label,
    label_of,
    learned_part,
    measures,
    names_in,
    names_of,
    printed,
    read_record,
    shown_label,
    tiles,
    tiles_of,
    weights_offered,
    wont_do,
    worker,
)

WHAT = "texts with labels"
# What its rows show, and what they are counted in.
SHOWS, COUNTED = "words", "tokens"
TITLE, VIEW = "Labels for texts", "Text and label"
DEMO = ("library_desk.jsonl", "Library desk (demo)", "1,665 messages to a city library, each with the desk that it belongs to. Written for Tuner.")
# What the third tab takes in.
TRIED = "text"
# How many characters of it at once, as JSON between processes.
MOST_TRIED = 50_000
_STAYS_OUT = "It is left out by itself; every other row is kept."
FAULTS = {
    "no_text": Fault("No text", f"There is nothing to read. {_STAYS_OUT}", "mind", left_out=True),
    "no_label": Fault("No label", f"There is nothing to learn from it. {_STAYS_OUT}", "mind", left_out=True),
}
OTHERWISE = {
    "two_labels": Fault(
        "One text with two labels", "No model can be right about both; the rows teach against each other.", "harm", ("drop",),
    ),
    "cut": Fault("Texts that are cut", "What stands behind the cut is never read.", "mind", ("drop",)),
    "beyond_context": Fault("Longer than the model can read", "No setting brings more of them in; only shorter texts do.", "mind", ("drop",)),
    "unbalanced": Fault(
        "Unbalanced classes", "A model that always says the largest looks good already. class_weights = balanced lifts the rare ones.", "note",
    ),
}
# Settings that mean nothing to a classifier.
UNUSED = ("system_prompt", "sample_prompt", "learn", "template_date", "augmentation")

# format -> (its name in words, the roles a mapping must fill, the roles it may fill)
FORMATS = {"labelled": ("Text and label", ("text", "label"), ("text_b", "split", "group"))}
ROLES = ("text", "text_b", "label", "split", "group")
TEMPLATED: tuple[str, ...] = ()

_TEXTS = (
    "text", "sentence", "content", "document", "body", "review", "tweet", "comment", "message", "utterance", "query", "question", "title",
    "headline", "description", "abstract",
)
_PAIRS = (
    ("premise", "hypothesis"), ("sentence1", "sentence2"), ("question1", "question2"), ("text_a", "text_b"), ("text", "text_b"),
    ("text1", "text2"), ("query", "passage"), ("question", "sentence"),
)
_LABELS = (
    "label_text", "label_name", "label", "labels", "category", "categories", "class", "intent", "sentiment", "emotion", "topic", "target", "tags",
)
# Columns that say that the rows are for chat, whatever else they have.
_CHAT = ({"prompt", "completion"}, {"prompt", "response"}, {"instruction", "output"}, {"instruction", "response"}, {"question", "answer"}, {"input", "output"})
# A column without a telling name holds labels where so many rows share so few short values.
_GUESS_ROWS, _GUESS_SHARE, _GUESS_LETTERS = 10, 0.25, 40


# Recognising ------------------------------------------------------------------------------------------------------


def _labels_in(records, column: str) -> list[tuple[str, ...]] | None:
    """The labels that a column holds, row by row; None where it holds something else."""
    found = []
    for record in records[:200]:
        value = record.get(column)
        if value is None or value == "":
            continue
        its = label_of(value)
        if its is None or any(len(name) > 80 or "\n" in name for name in its):
            return None
        found.append(its)
    return found or None


def _are_texts(records, column: str) -> bool:
    values = [record.get(column) for record in records[:200]]
    return any(isinstance(value, str) and value.strip() for value in values) and all(value is None or isinstance(value, str) for value in values)


def claim(records):
    """The mapping, where the columns leave no doubt that texts are labelled; else None."""
    from tuner.data import Mapping

    columns = columns_of(records)
    by_name = {column.strip().lower(): column for column in columns}
    if any(names <= by_name.keys() for names in _CHAT) or any(isinstance(record.get(column), list) and record[column] and isinstance(record[column][0], dict) for record in records[:20] for column in record):
        return None
    extra = {role: by_name[role] for role in ("split", "group") if role in by_name}
    for name in _LABELS:
        its = by_name.get(name)
        seen = its and _labels_in(records, its)
        if not seen or len(set(seen)) > max(2, len(seen) / 2):
            continue
        left = [column for column in columns if column not in (its, *extra.values())]
        if pair := next((pair for pair in _PAIRS if all(one in by_name and by_name[one] in left for one in pair)), None):
            if all(_are_texts(records, by_name[one]) for one in pair):
                return Mapping("labelled", {"text": by_name[pair[0]], "text_b": by_name[pair[1]], "label": its, **extra}, f"two texts, and {its!r} holds {len(set(seen))} labels")
        text = next((by_name[one] for one in _TEXTS if by_name.get(one) in left), None)
        text = text or next((column for column in left if _are_texts(records, column)), None)
        if text and _are_texts(records, text):
            return Mapping("labelled", {"text": text, "label": its, **extra}, f"{its!r} holds {len(set(seen))} labels")
    return _guess(records, [column for column in columns if column not in extra.values()], extra)


def _guess(records, columns: list[str], extra: dict):
    """Two columns without telling names, of which one holds few short values again and again."""
    from tuner.data import Mapping

    count = min(200, len(records))
    if len(columns) != 2 or count < _GUESS_ROWS:
        return None
    for text, its in (columns, columns[::-1]):
        seen = _labels_in(records, its)
        texts = [record.get(text) for record in records[:200]]
        if not seen or not all(isinstance(value, str) for value in texts) or len(set(texts)) < 0.8 * count:
            continue
        distinct = set(seen)
        if 2 <= len(distinct) <= _GUESS_SHARE * count and all(len(name) <= _GUESS_LETTERS for names in distinct for name in names):
            return Mapping("labelled", {"text": text, "label": its, **extra}, f"a guess: {its!r} holds {len(distinct)} short values, again and again")
    return None


def recognise(records):
    """The mapping that fits the records, for rows that are said to be labelled.

    Raises:
        UserError: none fits; the columns are named.
    """
    if mapping := claim(records):
        return mapping
    raise UserError(
        f"The columns {shorten(', '.join(columns_of(records)) or '(none)', 120)} hold no texts with labels that are recognised. Name them text and label, "
        "or choose by hand which is which."
    )


def fallback(columns: list[str]):
    """The mapping where none fits, to be put right by hand."""
    from tuner.data import Mapping

    text, its = (columns[0], columns[-1]) if columns else ("", "")
    return Mapping("labelled", {"text": text, "label": its}, "a guess, since no known format fits; choose by hand")


def check_mapping(mapping, records) -> None:
    """Raise a UserError naming every role without a column and every column that is not there."""
    if problems := problems_of(FORMATS, mapping, records):
        raise UserError(*problems)


def filled(record: dict, template: str, columns: list[str]) -> str:
    """Texts of labelled rows are single columns."""
    raise UserError("A labelled text is one column, not made of several. Choose the column.")


# Rows -------------------------------------------------------------------------------------------------------------


def to_row(record: dict, mapping) -> dict:
    """The record as a row: {"text", "text_b"?, "label"} or {"text", "text_b"?, "labels": [...]}.

    Raises:
        NoRow: the record teaches nothing; the words follow "Row N".
    """
    columns = mapping.columns
    row = {"text": _text(record, columns["text"])}
    if "text_b" in columns:
        row["text_b"] = _text(record, columns["text_b"])
    value = record.get(columns["label"])
    its = label_of(value)
    if its is None:
        raise NoRow("no_label", f"has no label: {shorten(columns['label'], 40)!r} is {'missing' if value is None else shorten(repr(value), 40)}.")
    return {**row, "labels": list(its)} if _are_several(value) else {**row, "label": its[0]}


def _are_several(value) -> bool:
    return isinstance(value, (list, tuple)) or (isinstance(value, str) and value.lstrip().startswith("["))


def _text(record: dict, column: str) -> str:
    value = record.get(column)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        seen = "missing" if value is None else "empty" if isinstance(value, str) else f"not text ({type(value).__name__})"
        raise NoRow("no_text", f"has no text: {shorten(column, 40)!r} is {seen}.")
    return value


# What finds rows that are nearly the same, and what of a dataset's folder rows point into.
ALIKE = near
FILES: tuple[str, ...] = ()


def placed(row: dict, folder) -> dict:
    """The row as it is: all of it is in itself."""
    return row


def control_tokens(tokenizer):
    """See `encode.control_tokens`."""
    return encode.control_tokens(tokenizer)


def adapted(model, recipe, heads: list[str]) -> list[str] | None:
    """The layers that get LoRA, by name; None for those that the recipe's words mean."""
    return None


def weights_in_words(model, plan: dict, recipe) -> list[str]:
    """What is to be said of the base's weights besides what is said of any."""
    return []


def is_row(row: dict) -> bool:
    """Whether a row, which may be somebody else's JSON, is one of this task's."""
    return has_label(row) and isinstance(row.get("text"), str) and isinstance(row.get("text_b", ""), str)


def faults(row: dict) -> set[str]:
    """Nothing is wrong with a labelled text by itself besides what is wrong with any text."""
    return set()


def texts(row: dict) -> list[str]:
    """The texts in the row that somebody wrote."""
    return [row[name] for name in ("text", "text_b") if name in row]


def said(row: dict) -> str:
    """What tells this row from others: its texts, not its label."""
    return "\n".join(texts(row))


def opening(row: dict) -> str:
    """Rows with equal texts stay on one side of the split, whatever their labels."""
    return json.dumps(texts(row), ensure_ascii=False)


def answer(row: dict) -> tuple[str, bool, bool]:
    """The label, or labels as one text; it refuses nothing and is the only one."""
    return shown_label(row), False, True


def turns_of(row: dict) -> list[dict]:
    """The row's texts and its label, for the page."""
    return [*({"role": "text", "content": text} for text in texts(row)), {"role": "label", "content": shown_label(row)}]


def thing(row: dict) -> dict:
    """What the label is of, for the page: {"text", "texts": by their names, "part": what `occluded` leaves out}."""
    return {"text": "\n".join(texts(row)), "texts": {name: row[name] for name in ("text", "text_b") if name in row}, "part": "word"}


def item(value) -> dict:
    """What somebody gave to be labelled, a text or two, as a row without a label.

    Raises:
        UserError: it is no text.
    """
    given = value if isinstance(value, list) else [value]
    if not 1 <= len(given) <= 2 or not all(isinstance(text, str) and text.strip() for text in given):
        raise UserError("There is no text to label. Write one first.")
    return dict(zip(("text", "text_b"), given))


def asked(text: str) -> dict:
    """What somebody asks about at a terminal, as `item` gives it; two texts have a tab between them."""
    return item(text.split("\t", 1))


# Words of one text that are left out in turn, at most, to see which of them matter.
MOST_OCCLUDED = 80
_WORD = re.compile(r"\S+")


def occluded(row: dict) -> list[tuple[dict, dict]]:
    """Each word with what is left of the row without it: ({"of": which text, "start", "end" in characters}, row); none where there is one word only."""
    found = []
    for name in ("text", "text_b"):
        for word in _WORD.finditer(row.get(name, "")):
            start, end = word.span()
            rest = f"{row[name][:start]}{row[name][end:]}".replace("  ", " ").strip()
            if rest:
                found.append(({"of": name, "start": start, "end": end}, {**row, name: rest}))
    return found[:MOST_OCCLUDED]


def map_texts(row: dict, change, named: bool = False) -> dict:
    """The row with `change` applied to its texts."""
    return {**row, **{name: change(row[name]) for name in ("text", "text_b") if name in row}}


def trim(row: dict, fault: str) -> dict:
    """The row as it is: it has no turns."""
    return row


def join(row: dict) -> dict:
    """The row as it is: it has no turns."""
    return row


def split(row: dict, fits) -> list[dict]:
    """The row as it is: a part of a text need not have the label of the whole."""
    return [row]


def learnable(row: dict) -> bool:
    """Whether a text is left in the row."""
    return bool(row["text"].strip())


def with_answer(row: dict, text: str) -> dict:
    """The row with another label, or labels as `answer` writes them."""
    return {**row, "labels": names_of(text)} if "labels" in row else {**row, "label": text}


def write_out(rows, path) -> None:
    """Write rows as they stand, one a line; see `data.write_rows`."""
    from tuner import data

    data.write_rows(rows, path)


def describe(row: dict) -> str:
    """The row in one short line, for lists."""
    return shorten(row["text"], 80)


# Encoding ---------------------------------------------------------------------------------------------------------

NOTHING_LEARNED = "has a text within its first {:,} tokens"
# Families whose positions begin behind the padding token's number (RoBERTa's embeddings, in fairseq's manner).
_POSITIONS_BEHIND_PADDING = ("roberta", "xlm-roberta", "camembert", "xlm-roberta-xl", "data2vec-text", "mpnet", "longformer")


@dataclass
class Encoded:
    """One row as the model meets it.

    Args:
        ids: (T,) token ids with the model's own beginning, end and middle tokens, T <= max_tokens.
        second: how many of them are of the first kind; those behind are of the second text's, for models that tell two apart.
        label, labels: one of these is None.
        text, text_b, offsets, segments: the texts; where each token of the uncut row stands, and in which (None: a token of the model's own).
        kept: (2,) tokens of each text that are not cut.
        goal: (D,) what its head's vector is pulled towards in training; see `distillation`.
    """

    ids: list[int]
    second: int
    label: str | None
    labels: list[str] | None
    text: str = ""
    text_b: str = ""
    offsets: list[tuple[int, int]] = ()
    segments: list[int | None] = ()
    kept: tuple[int, int] = (0, 0)
    how: str = "the column that holds the label"
    goal: object = None

    @property
    def cut(self) -> int:
        """Tokens lost."""
        return max(0, len(self.offsets) - len(self.ids))

    @property
    def learned(self) -> int:
        """Decisions that the loss is taken on."""
        return 1

    @property
    def would_learn(self) -> list[bool]:
        """One decision a row, whatever is cut."""
        return [True] + [False] * (len(self.offsets) - 1)

    def bare(self) -> "Encoded":
        """The same without what only a page shows."""
        return Encoded(self.ids, self.second, self.label, self.labels)

    def pieces(self, control=None) -> list[tuple[str, str, bool]]:
        """The texts in runs for the page: what is read, what is cut, and the label that is learned."""
        runs: list[tuple[str, str, bool]] = []
        for number, text in enumerate((self.text, self.text_b)):
            spans = [span for span, segment in zip(self.offsets, self.segments) if segment == number]
            if not spans:
                continue
            kept = self.kept[number]
            place = spans[kept][0] if kept < len(spans) else len(text)
            if number:
                runs.append(("\n", "seen", False))
            runs += [(part, state, False) for part, state in ((text[:place], "seen"), (text[place:], "cut")) if part]
        return [*runs, (f"\n→ {shown_label({'label': self.label} if self.labels is None else {'labels': self.labels})}", "learned", False)]


@lru_cache(maxsize=8)
def load_tokenizer(base_dir):
    """The tokenizer in a base model's folder, without torch; `context` on it says how many tokens the model reads.

    Raises:
        UserError: the folder has no fast tokenizer, or none that can fill up shorter rows.
    """
    from transformers import PreTrainedTokenizerFast

    if not (Path(base_dir) / "tokenizer.json").is_file():
        raise UserError("The base model has no tokenizer.json, so it cannot be used here. Choose another base model.")
    with child.within(encode.LOADING_S):
        tokenizer = PreTrainedTokenizerFast.from_pretrained(base_dir, local_files_only=True, trust_remote_code=False)
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise UserError("The base model's tokenizer names neither a padding nor an end token. Choose another.")
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    tokenizer.context = context_of(read_json(Path(base_dir) / "config.json", {}), tokenizer)
    return tokenizer


def context_of(config: dict, tokenizer) -> int:
    """How many tokens the model reads at most; 0 where nothing says."""
    limit = config.get("max_position_embeddings") or 0
    if limit and config.get("model_type") in _POSITIONS_BEHIND_PADDING:
        limit -= (config.get("pad_token_id") or 1) + 1
    own = tokenizer.model_max_length
    return min(its for its in (limit, own) if its) if limit or own < 10**9 else 0


def encode_row(row: dict, tokenizer, recipe) -> list[Encoded]:
    """The row as one `Encoded`; the page's preview and the trainer both call this. Of two texts the longer one is cut first."""
    most = min(recipe.max_tokens, tokenizer.context or recipe.max_tokens) if recipe.max_tokens < 10**9 else recipe.max_tokens
    asked = dict(split_special_tokens=not recipe.keep_control_tokens, return_token_type_ids=True, verbose=False)
    with child.within(_enough(row)):
        whole = tokenizer(row["text"], row.get("text_b"), return_offsets_mapping=True, **asked)
        used = tokenizer(row["text"], row.get("text_b"), truncation="longest_first", max_length=most, **asked) if len(whole["input_ids"]) > most else whole
    segments, kept = whole.sequence_ids(0), used.sequence_ids(0)
    return [Encoded(
        used["input_ids"], used["token_type_ids"].count(0), row.get("label"), row.get("labels"), row["text"], row.get("text_b", ""),
        whole["offset_mapping"], segments, (kept.count(0), kept.count(1)),
    )]


def warnings(found, tokenizer) -> list[str]:
    """What a person should know of the encoded rows before training, in sentences."""
    return [f"{len(found.cut):,} texts are cut." for _ in (1,) if found.cut]


def turn_tokens(row: dict, tokenizer, recipe) -> list[int | None]:
    """Tokens of each text, and None for the label; as `turns_of` has them."""
    with child.within(_enough(row)):
        return [*(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts(row)), None]


def _enough(row: dict) -> float:
    """Seconds of computing that a row of this size may take."""
    return encode.MOST_S + sum(map(len, texts(row))) / encode.CHARACTERS_A_SECOND


# Model ------------------------------------------------------------------------------------------------------------

PEFT_TASK = "SEQ_CLS"
# Families whose head reads the first token, and the rows up to which holding it to the base's own features is offered.
_READ_FIRST = ("bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra", "deberta", "deberta-v2", "albert", "mpnet")
_FEW_ROWS, DISTILLATION = 3_000, 3.0
# The settings of this task's starter.
STARTER = {"base_model": "sentence-transformers/all-MiniLM-L6-v2", "max_tokens": 256}
PIPELINE = "text-classification"
TAGS: tuple[str, ...] = ()
PUBLISHED = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


_NAME = "text_labels"


def record(plan: dict) -> dict:
    """What the repository keeps for machines besides what every adapter's does."""
    return {"task": _NAME, "labels": plan["labels"], "heads": plan["heads"]}


def model_class():
    """The transformers class that learns this task."""
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification


def loading(source, plan: dict) -> dict:
    """What `from_pretrained` is told besides: the config with this run's labels, and that its head may be of another size."""
    from transformers import AutoConfig

    from tuner.tasks import label_model

    config = AutoConfig.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    label_model.name_labels(config, plan["labels"])
    text = config.get_text_config()
    if text.pad_token_id is None and (Path(source) / "tokenizer.json").is_file():  # a decoder's head reads the last token that is no padding
        text.pad_token_id = load_tokenizer(str(source)).pad_token_id
    return {"config": config, "ignore_mismatched_sizes": True}


def heads(skeleton, base_dir) -> list[str]:
    """See `label_model.heads`."""
    from tuner.tasks import label_model

    return label_model.heads(skeleton, base_dir)


def finish_loading(model, base_dir, plan: dict, recipe) -> None:
    """See `label_model.begin_heads`."""
    from tuner.tasks import label_model

    label_model.begin_heads(model, base_dir, plan["heads"], recipe.seed)


def path(model, tokenizer, recipe, plan: dict | None, train_rows: list[dict] = ()):
    """See `label_model.TextPath`."""
    from tuner.tasks import label_model

    return label_model.TextPath(model, tokenizer.pad_token_id, label_model.weights(recipe, model, train_rows))


def offers(recipe, family: str, rows: float, unbalanced: bool) -> list[tuple[str, str, str]]:
    """What is offered beside the quote: (why, the button's words, setting=value)."""
    found = weights_offered(recipe, unbalanced)
    if not recipe.feature_distillation and family in _READ_FIRST and rows <= _FEW_ROWS:
        found.append((
            "With few rows, what the base knows already is worth keeping.", "Hold what the head reads to the base's own features",
            f"feature_distillation={DISTILLATION:g}",
        ))
    return found


def begin(run, path, rows: list) -> str:
    """See `distillation.begin`."""
    from tuner.tasks import distillation
    from tuner.tasks.label_learning import truths

    return distillation.begin(path, rows, truths(path, rows), run.recipe, run.folder / distillation.FILE)


def shown_row(row: dict) -> dict:
    """What of a row a report shows."""
    return {"text": row["text"]}


# What the probe reads from features, and of what.
PROBE_WORDS = ("the subject", "general texts")


# The probe in BERT's tokens: all, those that are judged, the squares of its rows', and its rows.
PROBED = {"tokens": 1_338, "learned": 0, "squares": 16_926, "rows": 114}


def probe_rows(tokenizer, recipe) -> tuple[list[Encoded], list[str]]:
    """The general questions of `probe`, each with its right end, and their subjects; written for this project, and no run learns from them."""
    from tuner import probe

    items = [its for its in probe.items() if its["kind"] == "question"]
    rows = [encode_row({"text": f"{its['text']} {its['right']}", "label": ""}, tokenizer, recipe)[0].bare() for its in items]
    return rows, [its["subject"] for its in items]


def learning(run, path, tokenizer, held_rows: list[dict], held: list, samples: int, sample_tokens: int):
    """See `label_learning.Learning`."""
    from tuner.tasks.label_learning import Learning, different

    shown = different(held_rows, samples)
    return Learning(run, path, held, (shown, [encode_row(row, tokenizer, run.recipe)[0].bare() for row in shown]))


def report(run, plan: dict, model, tokenizer, held: tuple, best_step: int, **more) -> dict:
    """See `label_report.make`."""
    from tuner.tasks import label_report

    return label_report.make(run, plan, model, tokenizer, held, best_step, **more)


def keep_files(base_dir, folder, plan: dict) -> None:
    """Put the base's tokenizer and its config with this run's labels beside the adapter."""
    import shutil

    for name in PUBLISHED[1:]:
        if (Path(base_dir) / name).is_file():
            shutil.copyfile(Path(base_dir) / name, folder / name)
    config = loading(base_dir, plan)["config"]
    config._name_or_path = ""
    (folder / "config.json").write_text(config.to_json_string(), "utf-8")


def practised(recipe) -> str:
    """How far its practice goes, for the card."""
    return f"It saw rows of at most {recipe.max_tokens:,} tokens; what stands behind that in a longer text is beyond what it practised."


def load_it(repo_id: str, base_id: str, plan: dict) -> str:
    """The card's lines that load it."""
    return (
        "import torch\nfrom peft import PeftModel\nfrom transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer\n\n"
        f'config = AutoConfig.from_pretrained("{repo_id}")  # with id2label\n'
        f'base = AutoModelForSequenceClassification.from_pretrained("{base_id}", config=config, ignore_mismatched_sizes=True)\n'
        f'model = PeftModel.from_pretrained(base, "{repo_id}").eval()  # the head comes with the adapter\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{repo_id}")\n'
        'logits = model(**tokenizer("A text", return_tensors="pt")).logits[0]\n'
        + ("print({config.id2label[i]: p.item() for i, p in enumerate(logits.sigmoid())})" if plan["labels"]["several"] else "print(config.id2label[logits.argmax().item()])")
    )


def verify_inputs(tokenizer, text: str, model) -> dict:
    """A text as the plain model's forward takes it."""
    import torch

    return {"input_ids": torch.tensor([tokenizer(text)["input_ids"]])}
