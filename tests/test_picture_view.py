"""What the page shows of pictures: the gallery, one of them, its variations, what mattered; and what it takes in to try."""

import base64
import json
from pathlib import Path

import numpy as np
import pytest

from tests.drawn import coded, noise, zipped
from tuner import check, data, pictures, reading, scan, seeing, tasks
from tuner.errors import UserError
from tuner.recipe import Recipe
from tuner.ui import dataset_tab, label_view, picture_view, row_view, try_view

TASK = tasks.get("image_labels")
RECIPE = Recipe(task="image_labels")


@pytest.fixture
def rows(home, tmp_path):
    """40 cats, 3 dogs, and one whose label could be a page of its own."""
    files = {f"cat/{n:02d}.png": coded(noise(n)) for n in range(40)} | {f"dog/{n}.png": coded(noise(100 + n)) for n in range(3)}
    files |= {"<b>&{x}/1.png": coded(noise(200))}
    path = zipped(tmp_path / "a.zip", files)
    dataset = data.create("local", "a.zip", {"kind": "file"}, [(path, "a.zip")], passing=True)
    data.take(dataset, reading.read([(path, "a.zip")], [], dataset.folder), [], files=[(path, "a.zip")])
    return check.work(data.settle(dataset), None)


@pytest.fixture
def look(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 48}}))
    (tmp_path / "config.json").write_text("{}")
    seeing.load.cache_clear()
    return scan.Look.of(RECIPE, tmp_path)


def drawn(rows, view: str, at: int = 0, look=None, recipe=RECIPE) -> list:
    return row_view.draw_row(rows, recipe, look, view, "all", "", at)


def test_the_gallery_goes_class_by_class(rows):
    first, at, _ = drawn(rows, "table")
    assert first.count("<img") == 36 and at == 0 and first.count('<div class="thumbs">') == 2
    assert first.index("&lt;b&gt;") < first.index("cat") and "<b>&" not in first and "{x}" not in first
    assert "1–36 of 44" in first and 'data-do="page:-1" disabled' in first
    second, at, _ = drawn(rows, "table", at + row_view.PAGE)
    assert second.count("<img") == 8 and "dog" in second and at == row_view.PAGE and 'data-do="page:1" disabled' in second
    assert drawn(rows, "table", 10_000)[1] == row_view.PAGE


def test_a_picture_in_the_gallery_opens_its_own_row(rows):
    second, _, _ = drawn(rows, "table", row_view.PAGE)
    place = int(second.split('data-do="open:')[-1].split('"')[0])
    shown, _, _ = drawn(rows, "tokens", place)
    assert "dog" in shown and shown.count("<img") == 1


def test_one_picture_says_what_was_odd_about_it(rows):
    shown, _, _ = drawn(rows, "tokens")
    assert "80 × 60 pixels, PNG" in shown and "data:image/" in shown


def test_as_the_model_sees_it_with_its_variations(rows, look):
    """By the code that training calls."""
    shown, _, _ = drawn(rows, "turns", 0, look)
    assert "48 × 32 pixels" in shown and shown.count("<img") == 1 + picture_view.VARIATIONS and "careful" in shown
    plain, _, _ = drawn(rows, "turns", 0, look, Recipe(task="image_labels", augmentation="none"))
    assert plain.count("<img") == 1 and "as it is every time" in plain
    assert picture_view.preview(rows, RECIPE, look).count("<img") == 3 * picture_view.VARIATIONS
    assert picture_view.preview(rows, RECIPE, None) == ""


def test_a_base_that_says_nothing_of_pictures_is_named(rows, tmp_path):
    (tmp_path / "preprocessor_config.json").unlink(missing_ok=True)
    seeing.load.cache_clear()
    assert "no preprocessor_config.json" in drawn(rows, "turns", 0, scan.Look.of(RECIPE, tmp_path))[0]


def test_pictures_that_are_not_read_yet_are_said_to_be(rows):
    (picture_view.folder_of(rows) / pictures.STORE).unlink()
    assert "still being read" in drawn(rows, "tokens")[0] and "not read yet" in drawn(rows, "table")[0]


def test_the_views_of_pictures_are_their_own():
    names = [name for _, name in dataset_tab.views_of("image_labels")]
    assert sorted(names) == sorted(name for _, name in dataset_tab.views_of("chat"))  # a choice made for one stands for the other


# Trying -----------------------------------------------------------------------------------------------------------


def test_what_is_brought_leaves_gradios_cache_at_once_and_is_not_decoded(tmp_path, home, monkeypatch):
    """The page's process opens no stranger's picture, and nobody is served one."""
    sent = [tmp_path / "up" / "x" / "a.png", tmp_path / "up" / "y" / "b.png"]
    for path in sent:
        path.parent.mkdir(parents=True)
        path.write_bytes(b"anything")
    monkeypatch.setattr(pictures, "take", lambda *_: pytest.fail("it was decoded"))
    held = try_view.hold([], list(map(str, sent)), "alice")
    assert not list((tmp_path / "up").rglob("*.png")) and all(Path(path).is_relative_to(home / "uploads" / "alice") for path, _ in held)
    found = try_view.pictures_of(held)
    assert len(found) == 2 and base64.b64decode(found[0]["picture"]) == b"anything" and found[0]["file"] == "a.png"
    *_, words = try_view.told(held)
    assert "2 pictures to label: a.png, b.png" in words
    with pytest.raises(UserError, match="no picture to label"):
        try_view.pictures_of([])
    try_view.let_go(held)
    assert not [path for path in (home / "uploads").rglob("*") if path.is_file()]
    with pytest.raises(UserError, match="not here any more"):
        try_view.pictures_of(held)
    sent[0].parent.mkdir(parents=True)
    sent[0].write_bytes(b"anything")
    with pytest.raises(UserError, match="That would be 33 pictures at once; the most is 32"):
        try_view.hold([(str(sent[1]), "b.png")] * 32, [str(sent[0])], "alice")
    assert not [path for path in (home / "uploads").rglob("*") if path.is_file()]
    monkeypatch.setattr(try_view, "MOST_BYTES", 3)
    sent[0].parent.mkdir(parents=True, exist_ok=True)
    sent[0].write_bytes(b"anything")
    with pytest.raises(UserError, match="Bring a smaller copy"):
        try_view.hold(held, [str(sent[0])], "alice")
    assert not [path for path in (home / "uploads").rglob("*") if path.is_file()]


def test_the_camera_s_box_hands_over_a_path():
    """Gradio's own opens the file with any of forty readers."""
    from gradio.data_classes import ImageData

    its = try_view.camera(sources=["webcam", "clipboard"])
    assert its.preprocess(ImageData(path="/x/y.eps")) == "/x/y.eps" and its.preprocess(None) is None


@pytest.mark.parametrize("value", ["text", 3, {}, {"picture": 3}, {"picture": "%%%"}, {"picture": base64.b64encode(b"<html>").decode(), "file": "a.png"}])
def test_what_is_no_picture_is_refused_in_words(value):
    with pytest.raises(UserError):
        TASK.item(value)


def test_each_region_is_covered_once():
    row = TASK.item({"picture": base64.b64encode(coded(noise(3))).decode(), "file": "a.png"})
    whole = np.asarray(pictures.pixels(row["picture"]["content"]), int)
    changed = np.zeros(whole.shape[:2], int)
    for place, its in TASK.occluded(row):
        other = np.asarray(pictures.pixels(its["picture"]["content"]), int)
        height, width = whole.shape[:2]
        inside = np.zeros(whole.shape[:2], bool)
        inside[round(place["y"] * height) : round((place["y"] + place["height"]) * height), round(place["x"] * width) : round((place["x"] + place["width"]) * width)] = True
        assert np.array_equal(other[~inside], whole[~inside])
        changed += inside
    assert (changed == 1).all() and len(TASK.occluded(row)) == TASK.REGIONS**2


def test_regions_that_mattered_are_framed_and_the_method_is_named():
    row = TASK.item({"picture": base64.b64encode(coded(noise(3))).decode(), "file": "a.png"})
    parts = [{**place, "drop": 0.3 if number == 7 else 0.0} for number, (place, _) in enumerate(TASK.occluded(row))]
    found = {"tuned": {"cat": 0.9, "dog": 0.1}, "base": None, "cut": 0, "parts": parts}
    shown = label_view.tried([TASK.thing(row)], [found])
    assert "by occlusion" in shown and "covered in turn" in shown and shown.count("<i class=\"m4\"") == 1 and "−30 points when covered" in shown
    none = label_view.tried([TASK.thing(row)], [{**found, "parts": [{**one, "drop": 0.0} for one in parts]}])
    assert "No single region mattered" in none


# The page's handlers ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def handlers():
    """Every handler of the page, with how many components it fills; built once and not served."""
    from tuner import chat
    from tuner.ui.app import Page, build

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SYSTEM", raising=False)
        page = build(Page(chat.Workers()))
    return {its.fn.__qualname__: (its.fn, len(its.outputs)) for its in page.fns.values() if its.fn is not None}


def test_the_demo_of_pictures_fills_the_tab_and_the_quote_shows_what_training_shows(handlers, home):
    """As a click on its button does it: the rows, the classes, the gallery, then the quote with the augmentation."""
    from tuner import recipe as recipes
    from tuner.ui.train_tab import FORM

    preset = recipes.presets()["digits"]
    form = [getattr(preset, name) for name in FORM]
    dataset = data.load_demo("local", "image_labels")
    assert dataset.task == "image_labels" and dataset.count == 200

    def call(name: str, *args):
        fn, outputs = next(its for qualified, its in handlers.items() if qualified.endswith(f".{name}"))
        shown = fn(*args)
        assert len(shown) == outputs, f"{name} gives {len(shown)} values for {outputs} components"
        return shown

    opened = call("look_first", dataset.id, "", None, *form)
    words = " ".join(str(its) for its in opened)
    assert "name of its folder: 5 classes" in words and "Tiny pictures" in words and "one-picture" in words and "pictures to learn from" in words
    quoted = call("requote", dataset.id, "", None, *form)
    assert "GiB" in str(quoted[0]) and quoted[-1].count("<img") == picture_view.PICTURES * picture_view.VARIATIONS
    gallery = call("choose_rows", "table", "all", "", dataset.id, "", None, *form)
    assert gallery[0].count("<img") == 36
