"""Text labels by clicks: from an uploaded file to a published and verified classifier, in a real browser, with a real encoder."""

import json
import os
import re
from pathlib import Path

import pytest

from tests import starters
from tests.stand_in_hub import StandInHub
from tests.test_journey import CHROMIUM, App, browser, name_repository, open_page, picture, tab  # noqa: F401
from tuner import starter

ROOT = Path(__file__).resolve().parent.parent
MINILM = "sentence-transformers/all-MiniLM-L6-v2"

pytestmark = [
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium here; .ci/run installs it"),
    pytest.mark.skipif(not starter.of(MINILM).is_installed(), reason="the encoder's package is not installed"),
]


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """The stand-in Hub with the encoder's own files, as they lie in its package."""
    with StandInHub() as hub:
        starters.serve(hub, MINILM, tmp_path_factory.mktemp("starter-home"))
        hub.users["hf_test_alice"] = "alice"
        yield hub


@pytest.fixture(scope="module")
def app(tmp_path_factory, hub):
    app = App(tmp_path_factory.mktemp("label-journey"), hub.url)
    app.start()
    yield app
    app.stop()


@pytest.fixture(scope="module")
def messages(tmp_path_factory) -> Path:
    """A part of the shipped rows as somebody's own file: 260 to learn from, 80 held out, of all nine classes; one is very long."""
    rows = [json.loads(line) for line in (ROOT / "presets" / "data" / "library_desk.jsonl").read_text("utf-8").splitlines()]
    some = [row for part, most in (("train", 260), ("test", 80)) for row in [its for its in rows if its["split"] == part][:most]]
    some[0]["text"] = " ".join([some[0]["text"], *["And so on, as I said."] * 40])
    path = tmp_path_factory.mktemp("messages") / "messages.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in some), "utf-8")
    return path


def complaints(*pages) -> list[str]:
    return [words for page in pages for words in page.complaints if "favicon" not in words and "manifest" not in words]


def test_from_a_file_of_texts_to_a_verified_classifier(app, hub, browser, messages):  # noqa: F811
    page = open_page(browser, app.url)
    page.get_by_label("File", exact=True).check()
    page.set_input_files("#file input[type=file]", str(messages))

    # The data choose the task; the row with its label and its cut, the classes as a chart.
    page.wait_for_function("document.querySelector('#dataset-about')?.innerText?.includes('messages.jsonl')", timeout=60_000)
    assert "Text and label" in page.inner_text("#dataset-about") and page.locator("#task input[value=text_labels]").is_checked()
    page.wait_for_function("document.querySelectorAll('#survey .classes li').length === 9", timeout=60_000)
    page.wait_for_selector("#row .tokens .piece.cut")
    assert page.inner_text("#row .tokens .piece.learned").strip().startswith("→")
    page.wait_for_function("document.querySelector('#quote-line')?.innerText?.includes('on this machine')")
    picture(page, "labels-dataset-light")

    # Class weights are offered where the classes are unbalanced; then a short run.
    tab(page, "Fine-tune")
    page.wait_for_selector("#preset input")
    page.wait_for_function("document.querySelector('#preset input')?.value?.includes('Library desk')")
    assert not page.locator("#knob-system_prompt").count() or not page.locator("#knob-system_prompt").is_visible()
    page.get_by_text("More settings").click()
    page.click("#knob-class_weights input")
    page.get_by_role("option", name="none", exact=True).click()
    page.click("#quote [data-do='set:class_weights=balanced']")
    page.wait_for_function("document.querySelector('#knob-class_weights input').value === 'balanced'")
    page.locator("#knob-max_steps input").fill("40")
    page.locator("#knob-max_steps input").press("Tab")
    page.wait_for_function("document.querySelector('#quote')?.innerText?.includes('40\\nsteps')")
    page.click("#start")
    page.wait_for_selector("#curve .scores .held-dot", timeout=90_000)
    page.wait_for_function("document.querySelector('#numbers')?.innerText?.includes('macro-F1')")
    picture(page, "labels-training-light")
    page.wait_for_selector("#run-status .state-done", timeout=200_000)

    # Before and after: three classifiers, every class, the matrix with its rows, calibration.
    page.wait_for_selector("#report .matrix")
    said = page.inner_text("#report")
    assert all(words in said for words in ("largest", "frozen", "tuned", "Class by class", "Calibration error (ECE)", "lost property"))
    cell = page.locator("#report .matrix button").first
    count = int(cell.inner_text())
    cell.click()
    page.wait_for_selector("#cell-rows li")
    assert page.locator("#cell-rows li").count() == count
    picture(page, "labels-report-light")

    # The third tab is another one now.
    page.click("#to-chat")
    page.get_by_role("tab", name="Try it").wait_for()
    page.wait_for_function("document.querySelector('#chat-about')?.innerText?.includes('It knows 9 labels')")
    assert not page.locator("#message").is_visible()
    page.locator("#try-text textarea").fill("I left my umbrella in the reading room on Monday.\nCan I have the novel for two more weeks?")
    page.get_by_label("Each line is one text").check()
    page.click("#label-it")
    page.wait_for_function("document.querySelectorAll('#tried .one-tried').length === 2", timeout=90_000)
    tried = page.inner_text("#tried")
    assert "by occlusion" in tried and "frozen features" in tried and tried.count("%") >= 20
    picture(page, "labels-try-light")

    # Published, downloaded again, equal; with its head, its labels and its figures.
    page.get_by_text("Publish to the Hugging Face Hub").click()
    name_repository(page, "library-desk")
    page.click("#push")
    page.wait_for_function("document.querySelector('#pushed')?.innerText?.includes('Published and verified')", timeout=240_000)
    repo = hub.repos["model", "alice/library-desk"]
    wanted = {"README.md", "adapter_config.json", "adapter_model.safetensors", "tuner.json", "config.json", "tokenizer.json", "tokenizer_config.json"}
    assert wanted <= set(repo.files) and not [name for name in repo.files if name.endswith((".bin", ".jsonl", ".pt"))]
    assert sorted(json.loads(repo.files["config.json"])["id2label"].values())[0] == "account access"
    card = repo.files["README.md"].decode()
    assert "pipeline_tag: text-classification" in card and re.search(r"\| \*\*fees\*\* \|", card) and "Macro-F1" in card
    page.click("#make-public")
    page.wait_for_function("document.querySelector('#pushed')?.innerText?.includes('anybody')")

    # Whoever has the link can try it.
    guest = open_page(browser, page.get_attribute("#share-link", "href"))
    guest.wait_for_function("document.querySelector('#chat-about')?.innerText.includes('It knows 9 labels')", timeout=60_000)
    guest.locator("#try-text textarea").fill("Why was I charged two euros?")
    guest.click("#label-it")
    guest.wait_for_selector("#tried .one-tried", timeout=90_000)
    assert "Kept only with the run itself" in guest.inner_text("#tried")
    assert not complaints(page, guest)
    guest.context.close()
    page.context.close()


@pytest.mark.skipif(not os.environ.get("TUNER_PICTURES"), reason="for eyes: pictures of the run above")
@pytest.mark.parametrize("name, dark, narrow", [("dark", True, False), ("narrow", False, True), ("narrow-dark", True, True)])
def test_it_can_be_looked_at_dark_and_narrow(app, browser, name, dark, narrow):  # noqa: F811
    page = open_page(browser, app.url + ("/?__theme=dark" if dark else ""), dark, narrow)
    page.click("#use-demo-text_labels")
    page.wait_for_function("document.querySelectorAll('#survey .classes li').length === 9", timeout=60_000)
    picture(page, f"labels-dataset-{name}")
    tab(page, "Fine-tune")
    page.wait_for_selector("#report .matrix")
    page.locator("#report .matrix button").first.click()
    page.wait_for_selector("#cell-rows li")
    picture(page, f"labels-report-{name}")
    page.click("#to-chat")
    page.wait_for_function("document.querySelector('#chat-about')?.innerText?.includes('It knows 9 labels')")
    page.locator("#try-text textarea").fill("I left my umbrella in the reading room on Monday.")
    page.click("#label-it")
    page.wait_for_selector("#tried .one-tried", timeout=90_000)
    picture(page, f"labels-try-{name}")
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    page.context.close()
    assert wide <= 1, f"{wide} pixels wider than the page ({name})"
