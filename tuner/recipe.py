"""Every choice that decides a run, written once: default, help, unit and range; loads presets; names all problems at once."""

import dataclasses
import difflib
import re
import tomllib
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import tomlkit

from tuner import tasks
from tuner.errors import UserError, shorten
from tuner.home import DEMO_ROOT

STARTER_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
# A held-out part of this size shows a share to within 2.2 percentage points; more rows only cost time at every look.
MOST_HELD_OUT = 2_000

# user/name as the Hub allows it; nothing that the file system could read as a path.
HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9_.-]{1,96}")


@dataclass(frozen=True)
class Knob:
    """What is known of one setting besides its value.

    Args:
        label: what the form calls it.
        help: one sentence: what happens when it goes up and when it goes down.
        place: "open" on the form, "more" behind the fold, "" not on the form.
    """

    label: str
    help: str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    place: str = "more"
    pattern: str = ""


def knob(default, label: str, help: str, **more):
    """A dataclass field that carries its Knob."""
    factory = {"default_factory": lambda: dict(default)} if isinstance(default, dict) else {"default": default}
    return field(metadata={"knob": Knob(label, help, **more)}, **factory)


@dataclass(frozen=True)
class Recipe:
    """One run's choices. Make it, then call `check()`."""

    title: str = knob("", "Name", "What this is called in your lists.", place="")
    about: str = knob("", "About", "One sentence on what it is for.", place="")
    task: str = knob(tasks.DEFAULT, "Task", "What the model learns to do.", choices=tasks.TASKS, place="")

    base_model: str = knob(
        STARTER_MODEL, "Base model",
        "The model to start from, by its Hub id. A larger one writes better and needs more memory and time.",
        place="open",
    )
    base_revision: str = knob(
        "", "Base model revision", "Branch, tag or commit of the base model; empty takes the newest.",
        pattern=r"[A-Za-z0-9_./-]{0,100}",
    )

    dataset: str = knob("", "Dataset", "A file beside the preset, or a Hub dataset's id.", place="")
    dataset_config: str = knob("", "Dataset config", "Which configuration of the Hub dataset.", place="")
    dataset_split: str = knob("", "Dataset split", "Which split is read; empty takes train.", place="")
    dataset_revision: str = knob("", "Dataset revision", "Branch, tag or commit of the Hub dataset.", place="")
    dataset_format: str = knob("", "Dataset format", "How the rows are read; empty guesses.", place="")
    columns: dict = knob({}, "Columns", "Which column plays which role.", place="")

    learning_rate: float = knob(
        2e-4, "Learning rate",
        "How far each step moves. Higher learns faster and may forget or diverge; lower is steadier and slower.",
        low=1e-7, high=0.05, place="open",
    )
    lora_rank: int = knob(
        16, "Rank", "Room for what is new. Higher can learn more, with more memory; lower keeps closer to the base.",
        low=1, high=512, place="open",
    )
    epochs: float = knob(
        3.0, "Epochs",
        "How often every row is read. More learns longer and ends in memorising; fewer may leave it half learned.",
        low=0.01, high=100, place="open",
    )
    max_steps: int = knob(
        0, "Steps", "Stop after this many optimiser steps; 0 goes by epochs.", low=0, high=1_000_000, place="open",
    )
    max_tokens: int = knob(
        1024, "Longest row (max tokens)",
        "Rows are cut after this many tokens. Higher keeps long answers whole and needs more memory; lower is faster.",
        unit="tokens", low=8, high=131_072, place="open",
    )

    system_prompt: str = knob(
        "", "System prompt", "Put before every conversation that has none of its own; the chat uses the same.",
    )
    batch_size: int = knob(
        8, "Rows per step", "Rows whose average moves the model once. More is steadier; fewer means more, rougher steps.",
        unit="rows", low=1, high=1024,
    )
    micro_batch: int = knob(
        0, "Rows at once",
        "Rows in memory together. More is faster and needs more memory; fewer gives the same result slower. 0 chooses.",
        unit="rows", low=0, high=1024,
    )
    lora_alpha: float = knob(
        32.0, "Alpha", "Strength of the adapter (alpha / rank). Higher changes the model more; lower changes it less.",
        low=0.01, high=2048,
    )
    lora_dropout: float = knob(
        0.0, "Dropout", "Share of the adapter's inputs left out at random. More resists memorising; 0 is fastest.",
        low=0.0, high=0.9,
    )
    rslora: bool = knob(
        False, "Rank-stabilised", "Scale by alpha / sqrt(rank): on, high ranks learn as strongly as low ones; off is the usual."
    )
    target_modules: str = knob(
        "all-linear", "Adapted layers",
        "all-linear adapts every linear layer and learns most; attention adapts those of attention only and is lighter.",
        choices=("all-linear", "attention"),
    )
    quantisation: str = knob(
        "nf4", "Base precision", "nf4 keeps the base in 4 bits (QLoRA), a quarter of the memory; none keeps 16 bits.",
        choices=("nf4", "none"),
    )
    warmup_share: float = knob(
        0.05, "Warm-up", "Share of the steps in which the learning rate rises. More starts gentler; less starts at once.",
        low=0.0, high=0.5,
    )
    schedule: str = knob(
        "cosine", "Schedule", "How the learning rate falls: cosine late, linear evenly, constant not at all.",
        choices=("cosine", "linear", "constant"),
    )
    weight_decay: float = knob(
        0.0, "Weight decay", "Pulls the adapter towards zero. More resists memorising; 0 leaves it free.", low=0.0, high=1.0,
    )
    max_grad_norm: float = knob(
        1.0, "Gradient clip", "Longest step direction allowed. Lower tames spikes; higher lets rare rows push harder.",
        low=0.001, high=1000.0,
    )
    held_out_share: float = knob(
        0.1, "Held-out share",
        "Rows kept aside to measure on, where the dataset has no split of its own. More measures better; less trains on more.",
        low=0.005, high=0.5,
    )
    held_out_rows: int = knob(
        0, "Held-out rows",
        "Of the rows kept aside at most so many are measured on. More measures better and longer; 0 takes as many as the report has time for.",
        unit="rows", low=0, high=MOST_HELD_OUT,
    )
    evaluations: int = knob(
        10, "Evaluations", "How often the held-out rows are measured. More shows more and costs time; fewer is faster.",
        low=1, high=100,
    )
    patience: int = knob(
        4, "Patience", "Stop after this many evaluations without a better one (of labels: neither macro-F1 nor loss); 0 never stops early.", low=0, high=100,
    )
    sample_prompt: str = knob(
        "", "Fixed prompt", "Answered after each evaluation, so that you can watch it learn. Empty takes a held-out row.",
    )
    learn: str = knob(
        "answers", "Learned part", "answers learns the assistant's turns only; everything learns the prompts too.",
        choices=("answers", "everything"),
    )
    keep_control_tokens: bool = knob(
        False, "Control tokens in texts",
        "Off, a control token typed inside a text is plain text; on, it has its power (for data that needs it).",
    )
    template_date: str = knob(
        "2026-01-01", "Template date", "The date that templates which print one will print, so that a run can be repeated.",
        pattern=r"\d{4}-\d{2}-\d{2}",
    )
    class_weights: str = knob(
        "none", "Class weights",
        "balanced lets each class weigh alike however many rows it has, which lifts rare ones; none counts rows alike.",
        choices=("none", "balanced"),
    )
    augmentation: str = knob(
        "careful", "Augmentation",
        "careful turns, cuts and lights training pictures anew each time; mirrored also flips half of them, wrong for letters; none leaves them.",
        choices=("careful", "mirrored", "none"),
    )
    feature_distillation: float = knob(
        0.0, "Feature distillation",
        "Pulls what the head reads towards the mean of the base's own features. More keeps what a sentence encoder knows, for few rows; 0 leaves it free.",
        low=0.0, high=100.0,
    )
    gradient_checkpointing: str = knob(
        "auto", "Gradient checkpointing", "on saves memory and costs a third more time; off is faster; auto decides by memory.",
        choices=("auto", "on", "off"),
    )
    seed: int = knob(0, "Seed", "Same seed, same run. Another seed shuffles otherwise.", low=0, high=2**31 - 1)

    def check(self) -> "Recipe":
        """The recipe itself, if a run can be made of it.

        Raises:
            UserError: naming every problem at once.
        """
        problems = {name: its for name, known in KNOBS.items() if (its := _problem(name, known, getattr(self, name)))}
        if "base_model" not in problems and (not HUB_ID.fullmatch(self.base_model) or ".." in self.base_model):
            problems["base_model"] = f"base_model is {shorten(self.base_model)!r}; it must be a Hub id such as {STARTER_MODEL}."
        if "template_date" not in problems:
            try:
                date.fromisoformat(self.template_date)
            except ValueError:
                problems["template_date"] = f"template_date is {self.template_date!r}; it must be a date such as 2026-01-01."
        if not problems.keys() & {"micro_batch", "batch_size"} and self.micro_batch > self.batch_size:
            problems["micro_batch"] = (
                f"micro_batch is {self.micro_batch}, more than batch_size ({self.batch_size}). Lower it, or set 0."
            )
        if problems:
            raise UserError(*problems.values())
        return self

    @property
    def most_held_out(self) -> int:
        """How many rows are held out at most, but for what a report has the time for, which `quote.make` says."""
        return self.held_out_rows or MOST_HELD_OUT

    def changed(self) -> dict:
        """Only what differs from the defaults."""
        plain = Recipe()
        return {name: getattr(self, name) for name in KNOBS if getattr(self, name) != getattr(plain, name)}

    def to_toml(self) -> str:
        """Every setting, as TOML that `load` reads back to an equal Recipe."""
        return tomlkit.dumps({name: getattr(self, name) for name in KNOBS})


KNOBS: dict[str, Knob] = {f.name: f.metadata["knob"] for f in dataclasses.fields(Recipe)}
TYPES: dict[str, type] = {f.name: f.type for f in dataclasses.fields(Recipe)}
OPEN_KNOBS = tuple(name for name, known in KNOBS.items() if known.place == "open")
MORE_KNOBS = tuple(name for name, known in KNOBS.items() if known.place == "more")


_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", dict: "a table"}


def _problem(name: str, known: Knob, value: object) -> str:
    """What is wrong with this value, in a sentence; "" if nothing is."""
    wanted = TYPES[name]
    seen = f"{value:g}" if type(value) is float else shorten(repr(value), 40)
    if type(value) is not wanted and not (wanted is float and type(value) is int):
        return f"{name} is {seen}; it must be {_WORDS[wanted]}."
    if known.choices and value not in known.choices:
        return f"{name} is {seen}; choose one of {', '.join(known.choices)}."
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        unit = f" {known.unit}" if known.unit else ""
        if not known.low <= value <= known.high:  # NaN is not either
            return f"{name} is {seen}; it must be between {known.low:g} and {known.high:g}{unit}."
    if known.pattern and not re.fullmatch(known.pattern, value):
        return f"{name} is {seen}; that is not a valid {known.label.lower()}."
    if isinstance(value, str) and len(value) > 20_000:
        return f"{name} has {len(value):,} characters; the most is 20,000."
    if isinstance(value, str) and not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        return f"{name} is {ascii(seen)}; that is not text that can be saved."
    return ""


def from_dict(settings: dict, source: str = "The recipe") -> Recipe:
    """A checked Recipe of these settings over the defaults.

    Raises:
        UserError: naming unknown settings (with the nearest known name) and every value out of range.
    """
    def hint(name: str) -> str:
        near = difflib.get_close_matches(name, KNOBS, 1)
        return f"{shorten(name, 40)} (did you mean {near[0]}?)" if near else shorten(name, 40)

    problems = []
    if unknown := [name for name in settings if name not in KNOBS]:
        problems.append(
            f"{source} has unknown settings: {', '.join(map(hint, unknown))}. Remove them or fix the spelling."
        )
    known = {
        name: float(value) if TYPES[name] is float and type(value) is int and abs(value) < 2**53 else value
        for name, value in settings.items() if name in KNOBS
    }
    made = Recipe(**known)
    try:
        made.check()
    except UserError as error:
        problems += error.problems
    if problems:
        raise UserError(*problems)
    return made


def load(path: Path) -> Recipe:
    """The Recipe in a TOML file.

    Raises:
        UserError: no such file, not TOML, an unknown setting or a value out of range.
    """
    try:
        settings = tomllib.loads(Path(path).read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"There is no recipe file {shorten(path)}. Check the path.") from None
    except (ValueError, RecursionError) as error:  # tomllib raises more than its own error
        raise UserError(f"{Path(path).name} is not valid TOML: {error}. Fix that line.") from None
    return from_dict(settings, f"Recipe {Path(path).name}")


def from_text(name: str, text: str) -> object:
    """A setting's value from how a person writes it on a command line.

    Raises:
        UserError: no such setting, or text that cannot be that type.
    """
    if name not in KNOBS:
        near = difflib.get_close_matches(name, KNOBS, 1)
        raise UserError(f"There is no setting {shorten(name)}." + (f" Did you mean {near[0]}?" if near else ""))
    wanted = TYPES[name]
    try:
        if wanted is bool:
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.lower()]
        if wanted is dict:
            return tomllib.loads(f"value = {text}")["value"]
        return wanted(text)
    except (ValueError, KeyError):
        raise UserError(f"{name} is {shorten(text)!r}; it must be {_WORDS[wanted]}.") from None


def presets(folder: Path = DEMO_ROOT) -> dict[str, Recipe]:
    """Every preset by its file's stem, each task's starter first, each checked."""
    found = {path.stem: load(path) for path in sorted(folder.glob("*.toml"))}
    starter = lambda its: tasks.get(its.task).STARTER.get("base_model", STARTER_MODEL)  # noqa: E731
    return dict(sorted(found.items(), key=lambda item: (item[1].base_model != starter(item[1]), tasks.TASKS.index(item[1].task))))


def settings_table() -> str:
    """The settings as the README prints them, in Markdown."""
    lines = ["| setting | default | range | what it does |", "|---|---|---|---|"]
    plain = Recipe()
    for name, known in KNOBS.items():
        if not known.place:
            continue
        bounds = ", ".join(known.choices) or (f"{known.low:g} to {known.high:g}{' ' + known.unit if known.unit else ''}" if known.low is not None else "")
        default = getattr(plain, name)
        shown = f"`{str(default).lower() if isinstance(default, bool) else default}`" if default != "" else ""
        lines.append(f"| `{name}` | {shown} | {bounds} | {known.help} |")
    return "\n".join(lines) + "\n"
