"""Tests of the recipe: nothing wrong gets through, all of it is named at once, and what is saved comes back equal."""

import dataclasses
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuner import recipe as recipes
from tuner.errors import UserError
from tuner.home import DEMO_ROOT
from tuner.recipe import KNOBS, TYPES, Recipe

FEW = settings(max_examples=100, derandomize=True, deadline=None, database=None)
PRESETS = sorted(DEMO_ROOT.glob("*.toml"))


# Values -----------------------------------------------------------------------------------------------------------


def test_every_problem_is_named_at_once():
    """One look tells all there is to put right: ranges, types, choices, ids, dates and what contradicts."""
    with pytest.raises(UserError) as told:
        Recipe(
            learning_rate=0.0, lora_rank=0, epochs="three", schedule="sine", base_model="../etc/passwd",
            template_date="2026-02-30", micro_batch=16, batch_size=8, rslora=1,
        ).check()
    assert [problem.split(" is ")[0] for problem in told.value.problems] == [
        "learning_rate", "lora_rank", "epochs", "rslora", "schedule", "base_model", "template_date", "micro_batch",
    ]
    assert str(told.value) == "\n".join(told.value.problems)


def test_an_unknown_setting_is_named_with_the_nearest_one_beside_all_else():
    """A misspelt setting never falls back to its default in silence."""
    with pytest.raises(UserError) as told:
        recipes.from_dict({"lora_rnak": 8, "zebra": 1, "epochs": -1}, "Preset qwen.toml")
    assert told.value.problems[0] == (
        "Preset qwen.toml has unknown settings: lora_rnak (did you mean lora_rank?), zebra. Remove them or fix the spelling."
    )
    assert told.value.problems[1] == "epochs is -1; it must be between 0.01 and 100."


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("learning_rate", 0, "learning_rate is 0; it must be between 1e-07 and 0.05"),
        ("learning_rate", 0.0, "must be between"),
        ("learning_rate", -2e-4, "must be between"),
        ("learning_rate", 1e9, "learning_rate is 1e+09; it must be between"),
        ("learning_rate", math.nan, "learning_rate is nan; it must be between"),
        ("learning_rate", math.inf, "learning_rate is inf; it must be between"),
        ("learning_rate", 10**400, "must be between"),
        ("learning_rate", "2e-4", "learning_rate is '2e-4'; it must be a number"),
        ("learning_rate", None, "must be a number"),
        ("learning_rate", True, "learning_rate is True; it must be a number"),
        ("lora_rank", 0, "lora_rank is 0; it must be between 1 and 512"),
        ("lora_rank", 4.5, "lora_rank is 4.5; it must be a whole number"),
        ("lora_rank", 4.0, "must be a whole number"),
        ("lora_rank", True, "lora_rank is True; it must be a whole number"),
        ("lora_rank", 10**400, "must be between 1 and 512"),
        ("max_tokens", 7, "max_tokens is 7; it must be between 8 and 131072 tokens"),
        ("rslora", 1, "rslora is 1; it must be true or false"),
        ("schedule", "Cosine", "schedule is 'Cosine'; choose one of cosine, linear, constant"),
        ("columns", [], "columns is []; it must be a table"),
        ("template_date", "today", "template_date is 'today'; that is not a valid template date"),
        ("base_revision", "a b", "that is not a valid base model revision"),
        ("base_model", "", "it must be a Hub id such as"),
        ("base_model", "/etc", "it must be a Hub id"),
        ("base_model", "a/..", "it must be a Hub id"),
        ("base_model", "a/b/c", "it must be a Hub id"),
        ("base_model", "a/b\n", "it must be a Hub id"),
        ("system_prompt", "x" * 20_001, "system_prompt has 20,001 characters; the most is 20,000"),
        ("title", "a\ud800b", "title is .*; that is not text that can be saved"),
    ],
)
def test_a_value_that_cannot_be_is_refused_with_what_was_seen(name, value, words):
    """From a preset or a form: the name, the value and what would do."""
    with pytest.raises(UserError, match=re.escape(words) if ".*" not in words else words):
        recipes.from_dict({name: value})
    if not (TYPES[name] is float and type(value) is int):
        with pytest.raises(UserError):
            dataclasses.replace(Recipe(), **{name: value}).check()


@pytest.mark.parametrize("name", [name for name, known in KNOBS.items() if known.low is not None])
def test_both_ends_of_a_range_are_allowed_and_what_lies_beyond_is_not(name):
    """Each number has bounds, and they are the ones that its message names."""
    known, wanted = KNOBS[name], TYPES[name]
    beyond = 1 if wanted is int else 1e-9
    for value in (known.low, known.high):
        recipes.from_dict({name: wanted(value), "batch_size": 1024} if name == "micro_batch" else {name: wanted(value)})
    for value in (known.low - beyond, known.high + beyond):
        with pytest.raises(UserError, match=f"{name} is .*must be between"):
            recipes.from_dict({name: wanted(value)})


def test_a_whole_number_is_a_number():
    """`epochs = 3` in a preset is 3.0."""
    assert type(recipes.from_dict({"epochs": 3}).epochs) is float


@FEW
@given(value=st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers()), name=st.sampled_from(sorted(KNOBS)))
def test_no_value_gets_through_by_its_kind(value, name):
    """Whatever the raw API of a page is sent becomes a checked recipe or words."""
    try:
        made = recipes.from_dict({name: value})
    except UserError:
        return
    assert type(getattr(made, name)) is TYPES[name]


# Files ------------------------------------------------------------------------------------------------------------


@FEW
@given(
    text=st.text(st.characters(exclude_categories=["Cs"]), max_size=50), rate=st.floats(1e-7, 0.05), flag=st.booleans(),
    columns=st.dictionaries(st.sampled_from(["prompt", "completion", "split"]), st.text(st.characters(exclude_categories=["Cs"]), max_size=9)),
)
def test_a_saved_recipe_comes_back_equal(tmp_path_factory, text, rate, flag, columns):
    """Line breaks, quotes and control characters in texts, and every digit of a number."""
    made = Recipe(title=text, system_prompt=text, learning_rate=rate, rslora=flag, columns=columns).check()
    path = tmp_path_factory.getbasetemp() / "recipe.toml"
    path.write_bytes(made.to_toml().encode())
    assert recipes.load(path) == made


def test_a_preset_says_only_what_differs():
    """What is left out has the default; `changed` gives back what was said."""
    assert recipes.from_dict({"lora_rank": 32, "epochs": 3}).changed() == {"lora_rank": 32}
    assert recipes.from_dict({}) == Recipe()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"lora_rank = \nepochs = 3", r"broken\.toml is not valid TOML: .*line 1"),
        (b"\xff", "is not valid TOML"),
        (b"lora_rank = 1\nlora_rank = 2\n", "is not valid TOML"),
        (b"lora_rank = " + b"9" * 5000, "is not valid TOML"),
        (b"columns = " + b"[" * 5000, "is not valid TOML"),
        (b"[lora]\nrank = 8\n", r"Recipe broken\.toml has unknown settings: lora"),
        (b"epochs = inf", "epochs is inf; it must be between"),
    ],
)
def test_a_broken_recipe_file_is_refused_in_words(tmp_path, content, words):
    """With the file's name, and the line where TOML ends."""
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=words):
        recipes.load(path)


def test_a_recipe_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"There is no recipe file .*none\.toml\. Check the path"):
        recipes.load(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("learning_rate", "2e-4", 2e-4), ("lora_rank", "32", 32), ("rslora", "Yes", True), ("rslora", "0", False),
        ("schedule", "linear", "linear"), ("system_prompt", "", ""), ("columns", '{prompt = "q"}', {"prompt": "q"}),
    ],
)
def test_a_setting_on_the_command_line_is_read_by_its_type(name, text, value):
    """`learning_rate=2e-4` is a number there, unlike in YAML."""
    assert recipes.from_text(name, text) == value and type(recipes.from_text(name, text)) is TYPES[name]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("lora_rank", "4.5", "lora_rank is '4.5'; it must be a whole number"),
        ("learning_rate", "fast", "learning_rate is 'fast'; it must be a number"),
        ("rslora", "maybe", "rslora is 'maybe'; it must be true or false"),
        ("columns", "prompt=q", "columns is 'prompt=q'; it must be a table"),
        ("lora_rnak", "8", "There is no setting lora_rnak. Did you mean lora_rank?"),
        ("zebra", "8", "There is no setting zebra."),
    ],
)
def test_a_setting_on_the_command_line_that_cannot_be_is_refused(name, text, words):
    """In the words of the form, not of Python."""
    with pytest.raises(UserError, match=re.escape(words)):
        recipes.from_text(name, text)


# Knobs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KNOBS)
def test_every_setting_can_be_shown(name):
    """A label, a help that fits beside it, a place; a number has bounds, and a default passes its own check."""
    known = KNOBS[name]
    assert known.label and known.label[0].isupper() and len(known.label) <= 30
    assert known.help.endswith(".") and 20 <= len(known.help) <= 160 and "\n" not in known.help
    assert known.place in ("open", "more", "")
    if TYPES[name] in (int, float):
        assert known.low is not None and known.high is not None and known.low < known.high
    if known.choices:
        assert TYPES[name] is str and getattr(Recipe(), name) in known.choices


def test_the_form_is_the_recipe():
    """Five knobs in the open (epochs and steps are one choice), no label twice, none left without a place."""
    assert recipes.OPEN_KNOBS == ("base_model", "learning_rate", "lora_rank", "epochs", "max_steps", "max_tokens")
    labels = [known.label for known in KNOBS.values()]
    assert len(set(labels)) == len(labels)
    assert set(recipes.OPEN_KNOBS) | set(recipes.MORE_KNOBS) == {name for name, known in KNOBS.items() if known.place}
    Recipe().check()


# Presets ----------------------------------------------------------------------------------------------------------


def test_the_presets_load_and_the_starter_is_first():
    """The starter and at least eight more, each with a name and a purpose, no name twice."""
    found = recipes.presets()
    assert len(found) == len(PRESETS) >= 9
    first = next(iter(found.values()))
    assert first.base_model == recipes.STARTER_MODEL and (DEMO_ROOT / first.dataset).is_file()
    titles = [preset.title for preset in found.values()]
    assert all(titles) and len(set(titles)) == len(titles)
    assert all(preset.about.endswith(".") for preset in found.values())
    assert len({preset.base_model for preset in found.values()}) >= 9


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_every_line_of_a_preset_gives_its_reason(path):
    """Beside the value, or in the lines right above it; and no line repeats a default."""
    lines = path.read_text("utf-8").splitlines()
    for number, line in enumerate(lines):
        if not re.match(r"\w+ = ", line) or line.startswith(("title ", "about ")):
            continue
        beside = re.sub(r'"(\\.|[^"\\])*"', '""', line).partition("#")[2]
        above = lines[number - 1] if number and lines[number - 1].startswith("#") else ""
        if above[2:].split(" ")[0] in KNOBS:  # a remark on a setting that stays as it is
            above = ""
        assert len((beside or above).strip("# ")) >= 8, f"{path.name}, line {number + 1} gives no reason: {line}"
        name = line.split(" = ")[0]
        assert name == "base_model" or name in recipes.load(path).changed(), f"{path.name}: {name} is the default already"
