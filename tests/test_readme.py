"""What the README says is so."""

from pathlib import Path

import pytest

from tuner import recipe

README = (Path(__file__).resolve().parent.parent / "README.md").read_text("utf-8")


def test_the_settings_table_is_the_recipes_own():
    """To renew it: python -c "from tuner.recipe import settings_table; print(settings_table())"."""
    assert recipe.settings_table() in README


def test_every_picture_is_there():
    root = Path(__file__).resolve().parent.parent
    names = [part.split(")")[0] for part in README.split("](")[1:] if part.split(")")[0].endswith(".png")]
    assert len(names) >= 4
    missing = [name for name in names if not (root / name).is_file()]
    if missing:
        pytest.fail(f"README shows pictures that are not there: {missing}. Make them: TUNER_PICTURES=tests/pictures pytest tests/test_journey.py")


def test_every_verb_is_named():
    from tuner.cli import _parser

    verbs = next(action for action in _parser()._actions if action.choices).choices
    for verb in verbs:
        assert f"python -m tuner {verb}" in README
