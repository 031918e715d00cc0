"""Picture labels by clicks: from an uploaded zip to a published and verified classifier, in a real browser, on the starter that ships."""

import io
import json
import os
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from tests.drawn import coded, noise
from tests.stand_in_hub import StandInHub
from tests.test_journey import CHROMIUM, App, browser, name_repository, open_page, picture, tab  # noqa: F401
from tests.test_label_journey import complaints

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium here; .ci/run installs it")


@pytest.fixture(scope="module")
def hub():
    """The stand-in Hub. It knows nothing of the base, which lies in the project."""
    with StandInHub() as hub:
        hub.users["hf_test_alice"] = "alice"
        yield hub


@pytest.fixture(scope="module")
def app(tmp_path_factory, hub):
    app = App(tmp_path_factory.mktemp("picture-journey"), hub.url)
    app.start()
    yield app
    app.stop()


@pytest.fixture(scope="module")
def brought(tmp_path_factory) -> Path:
    """The digits that ship as somebody's own zip, with a broken picture, a page under a picture's name, and a copy saved again."""
    path = tmp_path_factory.mktemp("digits") / "my digits.zip"
    with zipfile.ZipFile(ROOT / "presets" / "data" / "digits" / "digits-5-to-9.zip") as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            target.writestr(f"mine/{name}", source.read(name))
        large = Image.open(io.BytesIO(source.read("5/00.png"))).resize((24, 24), Image.Resampling.NEAREST)
        target.writestr("mine/5/copy.jpg", coded(large.convert("RGB"), "JPEG", quality=95))
        target.writestr("mine/6/broken.png", coded(noise(1))[:120])
        target.writestr("mine/7/page.png", b"<!DOCTYPE html><p>Not found")
    return path


def test_from_a_zip_of_pictures_to_a_verified_classifier(app, hub, browser, brought):  # noqa: F811
    page = open_page(browser, app.url)
    page.get_by_label("File", exact=True).check()
    page.set_input_files("#file input[type=file]", str(brought))

    # The data choose the task; findings, classes as a chart, the gallery by class, one as the model sees it.
    page.wait_for_function("document.querySelector('#dataset-about')?.innerText?.includes('my digits.zip')", timeout=60_000)
    page.wait_for_function("document.querySelector('#dataset-about')?.innerText?.includes('name of its folder: 5 classes')", timeout=60_000)
    assert "Picture and label" in page.inner_text("#dataset-about")
    page.wait_for_function("document.querySelectorAll('#survey .classes li').length === 5", timeout=60_000)
    found = page.inner_text("#findings")
    assert "Pictures that cannot be read" in found and "Files that are no pictures" in found and "Tiny pictures" in found
    page.wait_for_selector("#row .one-picture img")
    page.get_by_label("Gallery by class").check()
    page.wait_for_function("document.querySelectorAll('#row .thumbs img').length === 36")
    picture(page, "pictures-dataset-light")
    page.locator("#row .pages button").nth(1).click()
    page.wait_for_function("document.querySelector('#row .row-head').innerText.includes('37–72')")
    page.locator("#row .thumbs button").first.click()
    page.wait_for_selector("#row .one-picture img")
    page.get_by_label("As the model sees it").check()
    page.wait_for_function("document.querySelectorAll('#row .varied img').length === 5")
    picture(page, "pictures-seen-light")
    page.wait_for_function("document.querySelector('#quote-line')?.innerText?.includes('on this machine')")

    # What training shows, then a short run.
    tab(page, "Fine-tune")
    page.wait_for_selector("#preset input")
    page.wait_for_function("document.querySelector('#preset input')?.value?.includes('Digits')")
    page.wait_for_function("document.querySelectorAll('#what-training-shows .varied').length === 3", timeout=30_000)
    page.locator("#knob-epochs input").fill("12")
    page.locator("#knob-epochs input").press("Tab")
    page.click("#start")
    page.wait_for_selector("#curve .scores .held-dot", timeout=120_000)
    page.wait_for_selector("#run-status .state-done", timeout=200_000)
    assert "stay frozen in 16 bits" in page.inner_text("#run-status")
    page.wait_for_selector("#report .matrix")
    page.locator("#report .matrix button").first.click()
    page.wait_for_selector("#cell-rows img")
    picture(page, "pictures-report-light")

    # Try it: two files at once, and the regions that mattered. One lies between two classes: of one that it is sure of, no single region may matter.
    page.click("#to-chat")
    page.wait_for_function("document.querySelector('#chat-about')?.innerText?.includes('It knows 5 labels')")
    assert not page.locator("#try-text").is_visible()
    with zipfile.ZipFile(brought) as archive:
        five, eight = (Image.open(io.BytesIO(archive.read(f"mine/{digit}/01.png"))).convert("RGB") for digit in (5, 8))
    sent = []
    for name, its in (("5.png", five), ("8.png", Image.blend(five, eight.resize(five.size), 0.5))):
        its.save(written := io.BytesIO(), "PNG")
        sent.append({"name": name, "mimeType": "image/png", "buffer": written.getvalue()})
    page.set_input_files("#try-pictures input[type=file]", sent)
    page.wait_for_function("document.querySelector('#try-held')?.innerText?.includes('8.png')")
    assert not list((app.home / "gradio").rglob("*.png"))  # they have left Gradio's cache
    page.click("#label-it")
    page.wait_for_function("document.querySelectorAll('#tried .one-tried').length === 2", timeout=90_000)
    tried = page.inner_text("#tried")
    assert "by occlusion" in tried and "covered in turn" in tried and "frozen features" in tried and tried.count("%") >= 20
    assert page.locator("#tried .regions i").count() >= 1
    picture(page, "pictures-try-light")

    # One that is none is refused in words.
    page.click("#try-forget")
    page.wait_for_function("!document.querySelector('#try-held')?.innerText")
    page.set_input_files("#try-pictures input[type=file]", [{"name": "broken.png", "mimeType": "image/png", "buffer": coded(noise(1))[:90]}])
    page.wait_for_function("document.querySelector('#try-held')?.innerText?.includes('broken.png')")
    page.click("#label-it")
    page.wait_for_function("document.body.innerText.includes('is cut off or damaged')", timeout=60_000)

    # Published, downloaded again, equal; with its head, its labels and how it sees pictures.
    page.get_by_text("Publish to the Hugging Face Hub").click()
    name_repository(page, "my-digits")
    page.click("#push")
    page.wait_for_function("document.querySelector('#pushed')?.innerText?.includes('Published and verified')", timeout=240_000)
    repo = hub.repos["model", "alice/my-digits"]
    wanted = {"README.md", "adapter_config.json", "adapter_model.safetensors", "tuner.json", "config.json", "preprocessor_config.json"}
    assert wanted <= set(repo.files) and not [name for name in repo.files if name.endswith((".bin", ".jsonl", ".pt", ".png", ".jpg"))]
    assert sorted(json.loads(repo.files["config.json"])["id2label"].values()) == ["5", "6", "7", "8", "9"]
    card = repo.files["README.md"].decode()
    assert "pipeline_tag: image-classification" in card and "ignore_mismatched_sizes=True" in card and "num_labels=5" in card
    assert not complaints(page)
    page.context.close()


@pytest.mark.skipif(not os.environ.get("TUNER_PICTURES"), reason="for eyes: pictures of the run above")
@pytest.mark.parametrize("name, dark, narrow", [("dark", True, False), ("narrow", False, True), ("narrow-dark", True, True)])
def test_it_can_be_looked_at_dark_and_narrow(app, browser, name, dark, narrow):  # noqa: F811
    page = open_page(browser, app.url + ("/?__theme=dark" if dark else ""), dark, narrow)
    page.click("#use-demo-image_labels")
    page.wait_for_function("document.querySelectorAll('#survey .classes li').length === 5", timeout=60_000)
    page.get_by_label("Gallery by class").check()
    page.wait_for_function("document.querySelectorAll('#row .thumbs img').length === 36")
    picture(page, f"pictures-dataset-{name}")
    tab(page, "Fine-tune")
    page.wait_for_selector("#report .matrix")
    page.locator("#report .matrix button").first.click()
    page.wait_for_selector("#cell-rows img")
    picture(page, f"pictures-report-{name}")
    page.click("#to-chat")
    page.wait_for_function("document.querySelector('#chat-about')?.innerText?.includes('It knows 5 labels')")
    page.set_input_files("#try-pictures input[type=file]", [{"name": "noise.png", "mimeType": "image/png", "buffer": coded(noise(1))}])
    page.wait_for_function("document.querySelector('#try-held')?.innerText?.includes('noise.png')")
    page.click("#label-it")
    page.wait_for_selector("#tried .one-tried", timeout=90_000)
    picture(page, f"pictures-try-{name}")
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    page.context.close()
    assert wide <= 1, f"{wide} pixels wider than the page ({name})"
