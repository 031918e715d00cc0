"""The image label task: pictures with a label, or with several; recognised, encoded, and learned by a classifier."""

import base64
import re
from dataclasses import dataclass
from pathlib import Path

from tuner import looks, pictures, seeing, variation
from tuner.errors import UserError, shorten
from tuner.tasks import Fault, NoRow
from tuner.tasks.columns import columns_of, problems_of
from tuner.tasks.labels import (  # noqa: F401
    ANSWERS,
    EVAL_FIGURES,
    LABELLED,
    LEAD,
    OWN_PARTS,
    PLANNED,
    SEPARATOR,
    TAB,
    advice,
    ask,
    before_and_after,
    has_label,
    in_short,
    is_fresh,
    label,
    label_of,
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
from tuner.tasks.labels import decide as decide_labels
from tuner.tasks.labels import learned_part as learned_part_of_labels

WHAT = "pictures with labels"
# What its rows show, and what they are counted in.
SHOWS, COUNTED = "pictures", "squares"
TITLE, VIEW = "Labels for pictures", "Picture and label"
DEMO = ("digits/digits-5-to-9.zip", "Digits 5 to 9 (demo)", "200 handwritten digits, 5 to 9, from scikit-learn, for a small network that has only ever seen 0 to 4.")
# What the third tab takes in, and how many bytes of it at once, as text between processes.
TRIED = "picture"
MOST_TRIED = 64 * 2**20
_STAYS_OUT = "It is left out by itself; every other row is kept."
FAULTS = {
    "bomb": Fault("Decompression bombs", f"They claim more pixels than any picture here needs, and were not decoded. {_STAYS_OUT}", "harm", left_out=True),
    "broken_picture": Fault("Pictures that cannot be read", f"They are cut off, damaged or empty. {_STAYS_OUT}", "harm", left_out=True),
    "not_a_picture": Fault("Files that are no pictures", f"Whatever their names say, they hold something else. {_STAYS_OUT}", "harm", left_out=True),
    "too_large_picture": Fault("Files that are too large for a picture", _STAYS_OUT, "mind", left_out=True),
    "missing_picture": Fault("Pictures that are not there", f"A row names a file that was not brought. {_STAYS_OUT}", "harm", left_out=True),
    "no_label": Fault("No label", f"There is nothing to learn from it. {_STAYS_OUT}", "mind", left_out=True),
    "misnamed": Fault("Pictures that are not what their name says", "They are read by what they are; another program may stumble over them.", "note", ("drop",)),
    "animated": Fault("Animated pictures", "Only the first frame of each is used.", "mind", ("drop",)),
    "tiny": Fault("Tiny pictures", f"Their shorter side is below {pictures.TINY} pixels; enlarged, they show the model little.", "note", ("drop",)),
    "huge": Fault("Huge pictures", f"More than {pictures.HUGE / 1e6:.0f} million pixels; they are shrunk, and small things in them vanish.", "note", ("drop",)),
    "stretched": Fault("Very long or very tall pictures", "Models see the middle square of a picture, or all of it squeezed.", "mind", ("drop",)),
    "turned": Fault("Pictures turned by their camera's note (EXIF)", "They are turned upright here; programs that ignore the note would show them lying.", "note", ("drop",)),
    "cmyk": Fault("Pictures in printing colours (CMYK)", "They are turned into RGB, by rule of thumb: colours may be off.", "note", ("drop",)),
    "deep": Fault("Pictures with 16 bits a channel", "They are brought to 8 bits, which is what models see; fine differences in brightness go.", "note", ("drop",)),
}
OTHERWISE = {
    "unreadable": Fault("Lines that could not be read", "They are left out by themselves; every other row is kept.", "harm", left_out=True),
    "two_labels": Fault("One picture with two labels", "No model can be right about both; the rows teach against each other.", "harm", ("drop",)),
    "near_leak": Fault(
        "Leakage: held out, and nearly the same as a training picture", "Measured on them, the model seems better than it is.", "harm", ("to_training",),
    ),
    "near_duplicate": Fault(
        "Pictures that are nearly the same", "Copies that were resized, cut a little or saved again add little, and are learned harder than the rest.", "note",
        ("deduplicate",),
    ),
    "unbalanced": Fault(
        "Unbalanced classes", "A model that always says the largest looks good already. class_weights = balanced lifts the rare ones.", "note",
    ),
}
# Settings that mean nothing to a picture.
UNUSED = ("system_prompt", "sample_prompt", "learn", "template_date", "max_tokens", "keep_control_tokens", "feature_distillation")

# format -> (its name in words, the roles a mapping must fill, the roles it may fill)
FORMATS = {"pictures": ("Picture and label", ("image", "label"), ("split", "group"))}
ROLES = ("image", "label", "split", "group")
TEMPLATED: tuple[str, ...] = ()
# What compares rows with each other; see `looks`.
ALIKE = looks
# What of a dataset's folder its rows point into.
FILES = (pictures.STORE,)

_LABELS = ("label_text", "label_name", "label", "labels", "class", "category", "categories", "species", "target", "tags", "name")
_HEX = re.compile(r"[0-9a-f]*")


# Recognising ------------------------------------------------------------------------------------------------------


def _are_labels(records, column: str) -> bool:
    values = [record.get(column) for record in records[:200]]
    there = [value for value in values if value is not None and value != ""]
    return bool(there) and all((its := label_of(value)) is not None and all(len(name) <= 80 for name in its) for value in there)


def claim(records):
    """The mapping, where a column holds pictures; else None."""
    from tuner.data import Mapping

    columns = columns_of(records)
    image = next((column for column in columns if any(pictures.is_entry(record.get(column)) for record in records[:200])), None)
    if image is None:
        return None
    by_name = {column.strip().lower(): column for column in columns}
    extra = {role: by_name[role] for role in ("split", "group") if role in by_name}
    left = [column for column in columns if column not in (image, *extra.values()) and column.lower() not in ("file", "file_name", "path", "id")]
    named = [by_name[name] for name in _LABELS if by_name.get(name) in left]
    its = next((column for column in [*named, *left] if _are_labels(records, column)), None)
    found = len({label_of(record[its]) for record in records[:200] if record.get(its) not in (None, "")}) if its else 0
    reason = f"{image!r} holds pictures, {its!r} {found} labels" if its else f"{image!r} holds pictures; no column holds labels"
    return Mapping("pictures", {"image": image, "label": its or "label", **extra}, reason)


def recognise(records):
    """The mapping that fits the records, for rows that are said to be pictures.

    Raises:
        UserError: none fits; the columns are named.
    """
    if mapping := claim(records):
        return mapping
    raise UserError(
        f"The columns {shorten(', '.join(columns_of(records)) or '(none)', 120)} hold no pictures. Bring a zip with a folder of pictures for each class, a zip "
        "with pictures and a table of their names and labels, or a Parquet file with pictures in it."
    )


def fallback(columns: list[str]):
    """The mapping where none fits, to be put right by hand."""
    from tuner.data import Mapping

    image, its = (columns[0], columns[-1]) if columns else ("", "")
    return Mapping("pictures", {"image": image, "label": its}, "a guess, since no known format fits; choose by hand")


def check_mapping(mapping, records) -> None:
    """Raise a UserError naming every role without a column and every column that is not there."""
    problems, image = problems_of(FORMATS, mapping, records), mapping.columns.get("image")
    if image in columns_of(records) and not any(pictures.is_entry(record.get(image)) for record in records[:200]):
        problems.append(f"The column {shorten(image, 40)!r} holds no pictures.")
    if problems:
        raise UserError(*problems)


def filled(record: dict, template: str, columns: list[str]) -> str:
    """Pictures and labels are single columns."""
    raise UserError("A picture is one column, not made of several. Choose the column.")


# Rows -------------------------------------------------------------------------------------------------------------


def to_row(record: dict, mapping) -> dict:
    """The record as a row: {"picture", "file", "label"} or {"picture", "file", "labels": [...]}.

    Raises:
        NoRow: the record teaches nothing; the words follow "Row N".
    """
    columns = mapping.columns
    entry, file = record.get(columns["image"]), shorten(str(record.get("file") or ""), 120)
    if not pictures.is_entry(entry):
        raise NoRow("missing_picture", f"has no picture: {shorten(columns['image'], 40)!r} is {'missing' if entry is None else 'no picture'}.")
    if "no_picture" in entry:
        kind = entry["no_picture"] if entry["no_picture"] in FAULTS else "broken_picture"
        raise NoRow(kind, f"has no picture: {file + ' ' if file else 'it '}{shorten(entry.get('why', ''), 160)}")
    value = record.get(columns["label"])
    its = label_of(value)
    if its is None:
        raise NoRow("no_label", f"has no label: {shorten(columns['label'], 40)!r} is {'missing' if value is None else shorten(repr(value), 40)}.")
    row = {"picture": entry, "file": file}
    several = isinstance(value, (list, tuple)) or (isinstance(value, str) and value.lstrip().startswith("["))
    return {**row, "labels": list(its)} if several else {**row, "label": its[0]}


def is_row(row: dict) -> bool:
    """Whether a row, which may be somebody else's JSON, is one of this task's."""
    its = row.get("picture")
    whole = lambda name, most: type(its.get(name)) is int and 0 <= its[name] <= most  # noqa: E731
    return (
        has_label(row) and isinstance(its, dict) and whole("at", 2**40) and whole("bytes", pictures.MOST_BYTES)
        and isinstance(its.get("sha"), str) and isinstance(its.get("look", ""), str) and bool(_HEX.fullmatch(its["sha"] + its.get("look", "")))
    )


def placed(row: dict, folder: Path) -> dict:
    """The row with where its picture lies.

    Args:
        folder: what holds FILES.
    """
    return {**row, "folder": str(folder)}


def faults(row: dict) -> set[str]:
    """What was odd about the picture as it was brought."""
    return {name for name in row["picture"].get("faults", ()) if name in FAULTS}


def texts(row: dict) -> list[str]:
    """Nobody wrote anything in a picture that is read here."""
    return []


def said(row: dict) -> str:
    """What tells this picture from others: its look."""
    return row["picture"].get("look", "")


def opening(row: dict) -> str:
    """Rows with equal pictures stay on one side of the split, whatever their labels."""
    return row["picture"]["sha"]


def answer(row: dict) -> tuple[str, bool, bool]:
    """The label, or labels as one text; it refuses nothing and is the only one."""
    return shown_label(row), False, True


def turns_of(row: dict) -> list[dict]:
    """What the row is, and its label, for the page."""
    return [{"role": "picture", "content": describe(row)}, {"role": "label", "content": shown_label(row)}]


def thing(row: dict) -> dict:
    """What the label is of, for the page: {"text": its file's name, "picture": a small copy as a data address, "part": what `occluded` covers}."""
    try:
        return {"text": describe(row), "picture": address(_kept(row), 240), "part": "region"}
    except OSError:  # the dataset is still being read, or gone
        return {"text": describe(row), "picture": "", "part": "region"}


def address(kept: bytes, side: int = 160) -> str:
    """A kept picture, made small, as a data address."""
    small = pictures.thumbnail(kept, side)
    kind = "jpeg" if small.startswith(b"\xff\xd8") else "png"
    return f"data:image/{kind};base64,{base64.b64encode(small).decode()}"


def _kept(row: dict) -> bytes:
    its = row["picture"]
    return its["content"] if "content" in its else pictures.content(row["folder"], its)


def item(value) -> dict:
    """What somebody gave to be labelled, {"picture": base64 of a file, "file": its name}, as a row without a label.

    It is decoded here: call it where that may be done, never in the page's process.

    Raises:
        UserError: it is no picture.
    """
    if not isinstance(value, dict) or not isinstance(value.get("picture"), str) or not isinstance(value.get("file", ""), str):
        raise UserError("There is no picture to label. Bring one first.")
    try:
        content = base64.b64decode(value["picture"], validate=True)
    except ValueError:
        raise UserError("That is no picture. Bring another.") from None
    return picture_row(content, value.get("file", ""))


def asked(text: str) -> dict:
    """What somebody asks about at a terminal, a picture's path, as `item` gives it.

    Raises:
        UserError: there is no such file, or it is no picture.
    """
    file = Path(text.strip().strip("'\""))
    try:
        content = file.read_bytes()
    except OSError:
        raise UserError(f"There is no picture {shorten(file)}. Give the path of one.") from None
    return picture_row(content, file.name)


def picture_row(content: bytes, file: str, name: str | None = None) -> dict:
    """The row of a picture's bytes, with a label where one is given.

    Raises:
        UserError: it is no picture.
    """
    try:
        taken = pictures.take(content, file)
    except pictures.NoPicture as problem:
        raise UserError(f"{shorten(file or 'The picture', 60)} {problem}") from None
    return {"picture": {"content": taken.content}, "file": file, **({"label": name} if name is not None else {})}


# Regions of a picture that are covered in turn, a side, to see which of them matter.
REGIONS = 6


def occluded(row: dict) -> list[tuple[dict, dict]]:
    """Each region with the picture in which it is covered by the mean colour: ({"x", "y", "width", "height"}: shares of the picture, row)."""
    import io

    import numpy as np
    from PIL import Image

    its = pictures.pixels(_kept(row))
    height, width = its.shape[:2]
    columns, rows = min(REGIONS, width), min(REGIONS, height)
    grey = its.reshape(-1, 3).mean(0).round().astype(np.uint8)
    found = []
    for y in range(rows):
        for x in range(columns):
            top, bottom, left, right = y * height // rows, (y + 1) * height // rows, x * width // columns, (x + 1) * width // columns
            covered = its.copy()
            covered[top:bottom, left:right] = grey
            out = io.BytesIO()
            Image.fromarray(covered).save(out, "PNG", compress_level=1)
            place = {"x": left / width, "y": top / height, "width": (right - left) / width, "height": (bottom - top) / height}
            found.append((place, {**row, "picture": {"content": out.getvalue()}}))
    return found


def map_texts(row: dict, change, named: bool = False) -> dict:
    """The row as it is: it has no texts."""
    return row


def trim(row: dict, fault: str) -> dict:
    """The row as it is: it has no turns."""
    return row


def join(row: dict) -> dict:
    """The row as it is: it has no turns."""
    return row


def split(row: dict, fits) -> list[dict]:
    """The row as it is: a part of a picture need not have the label of the whole."""
    return [row]


def learnable(row: dict) -> bool:
    """Whether a picture is left in the row."""
    return True


def with_answer(row: dict, text: str) -> dict:
    """The row with another label, or labels as `answer` writes them."""
    return {**row, "labels": names_of(text)} if "labels" in row else {**row, "label": text}


def write_out(rows, path) -> None:
    """Write rows as they stand: a zip with the kept pictures, and a table of their names and labels.

    Raises:
        UserError: the file is not called a zip.
    """
    import json
    import zipfile

    path = Path(path)
    if path.suffix.lower() != ".zip":
        raise UserError(f"{shorten(path.name, 60)} does not end in .zip, and pictures go into one. Name it so.")
    folder, lines = rows.parts[0].path.parent, []
    with zipfile.ZipFile(path, "w") as archive:
        for index in range(len(rows)):
            row = rows.row(index)
            kept = pictures.content(folder, row["picture"])
            name = f"pictures/{row['n']:06d}.{'jpg' if kept.startswith(bytes((0xff, 0xd8))) else 'png'}"
            archive.writestr(name, kept)
            lines.append({"file_name": name, **{its: row[its] for its in ("label", "labels", "split") if row.get(its)}})
        archive.writestr("metadata.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def describe(row: dict) -> str:
    """The row in one short line, for lists."""
    return shorten(row.get("file") or f"picture {row['picture']['sha'][:8]}", 80)


# Encoding ---------------------------------------------------------------------------------------------------------

NOTHING_LEARNED = "has a picture"


@dataclass
class Encoded:
    """One row as the model meets it; its pixels are read when they are needed.

    Args:
        ids: as many as the picture costs (`seeing.Sight.units`); they stand where texts have tokens.
        picture, folder: where it lies; see `pictures.content`. `picture` is {"content": bytes} for one that lies nowhere.
        label, labels: one of these is None.
        variation: (seed, epoch, row) of a training picture that is varied; see `variation`.
    """

    ids: list[int] | range
    picture: dict
    folder: str
    label: str | None
    labels: list[str] | None
    file: str = ""
    offsets: list[int] | range = ()
    variation: tuple[int, int, int] | None = None
    how: str = "one decision a row"

    @property
    def cut(self) -> int:
        """Nothing of a picture is cut in the way of texts."""
        return 0

    @property
    def learned(self) -> int:
        """Decisions that the loss is taken on."""
        return 1

    @property
    def would_learn(self) -> list[bool]:
        """One decision a row."""
        return [True] + [False] * (len(self.ids) - 1)

    def bare(self) -> "Encoded":
        """The same without what only a page shows."""
        return Encoded(range(len(self.ids)), self.picture, self.folder, self.label, self.labels)

    def pieces(self, control=None) -> list[tuple[str, str, bool]]:
        """The row in runs for the page: its file's name, and the label that is learned."""
        shown = shown_label({"label": self.label} if self.labels is None else {"labels": self.labels})
        return [(self.file, "seen", False), (f"\n→ {shown}", "learned", False)]


def load_tokenizer(base_dir) -> seeing.Sight:
    """How the base in a folder sees pictures; it stands where texts have a tokenizer.

    Raises:
        UserError: see `seeing.load`.
    """
    return seeing.load(str(base_dir))


def control_tokens(sight) -> re.Pattern:
    """Matches nothing: pictures hold no control tokens."""
    return re.compile("(?!)")


def encode_row(row: dict, sight, recipe) -> list[Encoded]:
    """The row as one `Encoded`; the page's preview and the trainer both call this."""
    ids = list(range(sight.units))
    return [Encoded(ids, row["picture"], row.get("folder", ""), row.get("label"), row.get("labels"), row.get("file", ""), ids)]


def warnings(found, sight) -> list[str]:
    """What a person should know of the encoded rows before training, in sentences."""
    return []


def turn_tokens(row: dict, sight, recipe) -> list[int | None]:
    """What the picture costs."""
    return [sight.units]


# Model ------------------------------------------------------------------------------------------------------------

# PEFT has no name for image classification; without one it wraps any model.
PEFT_TASK = None
PLAIN = "pictures"
STARTER = {"base_model": "tuner-presets/digits-resnet"}
PIPELINE = "image-classification"
TAGS = ("vision",)
PUBLISHED = ("config.json", seeing.FILE)
_NAME = "image_labels"


def record(plan: dict) -> dict:
    """What the repository keeps for machines besides what every adapter's does."""
    return {"task": _NAME, "labels": plan["labels"], "heads": plan["heads"]}


def model_class():
    """The transformers class that learns this task."""
    from transformers import AutoModelForImageClassification

    return AutoModelForImageClassification


def decide(train_rows: list[dict], held_rows: list[dict], recipe) -> dict:
    """What a run's plan keeps of its rows: its classes; and attention as torch does it, where the class has it.

    Raises:
        UserError: there is nothing to tell apart.
    """
    return {**decide_labels(train_rows, held_rows, recipe), "attention": "sdpa"}


def loading(source, plan: dict) -> dict:
    """What `from_pretrained` is told besides: the config with this run's labels, and that its head may be of another size."""
    from transformers import AutoConfig

    from tuner.tasks import label_model

    config = AutoConfig.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    label_model.name_labels(config, plan["labels"])
    return {"config": config, "ignore_mismatched_sizes": True}


def heads(skeleton, base_dir) -> list[str]:
    """See `label_model.heads`."""
    from tuner.tasks import label_model

    return label_model.heads(skeleton, base_dir)


def adapted(model, recipe, heads: list[str]) -> list[str] | None:
    """See `image_model.adapted`."""
    from tuner.tasks import image_model

    return image_model.adapted(model, recipe, heads)


def finish_loading(model, base_dir, plan: dict, recipe) -> None:
    """See `image_model.finish`."""
    from tuner.tasks import image_model

    image_model.finish(model, base_dir, plan, recipe)


def weights_in_words(model, plan: dict, recipe) -> list[str]:
    """See `image_model.weights_in_words`."""
    from tuner.tasks import image_model

    return image_model.weights_in_words(model, plan, recipe)


def path(model, sight, recipe, plan: dict | None, train_rows: list[dict] = ()):
    """See `image_model.ImagePath`."""
    from tuner.tasks import image_model, label_model

    return image_model.ImagePath(model, sight, recipe, label_model.weights(recipe, model, train_rows))


def offers(recipe, family: str, rows: float, unbalanced: bool) -> list[tuple[str, str, str]]:
    """See `labels.weights_offered`."""
    return weights_offered(recipe, unbalanced)


def begin(run, path, rows: list) -> str:
    """Nothing is done before the first step."""
    return ""


def learning(run, path, sight, held_rows: list[dict], held: list, samples: int, sample_tokens: int):
    """See `label_learning.Learning`."""
    from tuner.tasks.label_learning import Learning, different

    shown = [{**row, "text": row.get("file", "")} for row in different(held_rows, samples)]
    return Learning(run, path, held, (shown, [encode_row(row, sight, run.recipe)[0].bare() for row in shown]))


def report(run, plan: dict, model, sight, held: tuple, best_step: int, **more) -> dict:
    """See `label_report.make`."""
    from tuner.tasks import label_report

    return label_report.make(run, plan, model, sight, held, best_step, **more)


def shown_row(row: dict) -> dict:
    """What of a row a report shows: its file's name, and its picture made small."""
    return {"text": describe(row), "picture": thing(row)["picture"]}


# What the probe reads from features, and of what.
PROBE_WORDS = ("the digit", "handwritten digits (0 to 4)")


# The probe's pictures, which take as long as any other.
PROBED = {"rows": 200}


def probe_rows(sight, recipe) -> tuple[list[Encoded], list[str]]:
    """Pictures that no run learns from, encoded, and what each shows: handwritten digits 0 to 4 of scikit-learn, 40 of each."""
    import io

    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    known = load_digits()
    rows, shown = [], []
    for digit in range(5):
        for place in np.flatnonzero(known.target == digit)[:40]:
            out = io.BytesIO()
            Image.fromarray((known.images[place] / 16 * 255).round().astype(np.uint8)).save(out, "PNG")
            rows.append(Encoded(range(sight.units), {"content": out.getvalue()}, "", "", None))
            shown.append(str(digit))
    return rows, shown


def keep_files(base_dir, folder, plan: dict) -> None:
    """Put how the base sees pictures, and its config with this run's labels, beside the adapter."""
    import shutil

    shutil.copyfile(Path(base_dir) / seeing.FILE, Path(folder) / seeing.FILE)
    config = loading(base_dir, plan)["config"]
    config._name_or_path = ""
    (Path(folder) / "config.json").write_text(config.to_json_string(), "utf-8")


def practised(recipe) -> str:
    """How far its practice goes, for the card."""
    return "It sees a picture in its base's own frame and size: small things in large pictures, and what lies outside of the frame, it does not see."


def learned_part(recipe) -> str:
    """What the loss is taken on, for the card."""
    words = {
        variation.CAREFUL: ", on pictures that were turned, cut and lit a little otherwise each time",
        variation.MIRRORED: ", on pictures that were turned, cut, lit a little otherwise and mirrored at random each time", variation.NONE: "",
    }
    return learned_part_of_labels(recipe) + words[recipe.augmentation]


def load_it(repo_id: str, base_id: str, plan: dict) -> str:
    """The card's lines that load it."""
    from tuner import starter

    ours = starter.of(base_id)
    source = base_id if not (ours and ours.ours) else f"presets/data/{ours.package}"
    where = "" if source == base_id else "  # a folder of Tuner's own repository"
    names = dict(enumerate(plan["labels"]["names"]))
    shown = repr(names) if len(repr(names)) < 400 else "config.id2label"
    several = plan["labels"]["several"]
    return (
        "from peft import PeftModel\nfrom PIL import Image\nfrom transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification\n\n"
        f'config = AutoConfig.from_pretrained("{repo_id}")\n'
        "base = AutoModelForImageClassification.from_pretrained(\n"
        f'    "{source}", num_labels={len(names)}, id2label={shown}, label2id=config.label2id, ignore_mismatched_sizes=True,{where}\n)\n'
        f'model = PeftModel.from_pretrained(base, "{repo_id}").eval()  # the head comes with the adapter\n'
        f'processor = AutoImageProcessor.from_pretrained("{repo_id}", use_fast=False)\n'
        'logits = model(**processor(Image.open("picture.jpg").convert("RGB"), return_tensors="pt")).logits[0]\n'
        + ("print({config.id2label[i]: p.item() for i, p in enumerate(logits.sigmoid())})" if several else "print(config.id2label[logits.argmax().item()])")
    )


def verify_inputs(sight, text: str, model) -> dict:
    """A picture as the plain model's forward takes it, of soft noise that the text decides."""
    import numpy as np
    import torch
    from PIL import Image

    random = np.random.default_rng(list(text.encode()))
    coarse = Image.fromarray(random.integers(0, 256, (12, 12, 3), np.uint8)).resize((256, 256), Image.Resampling.BICUBIC)
    return {"pixel_values": torch.from_numpy(sight.values(sight.framed(coarse)))[None].to(next(model.parameters()).dtype)}
