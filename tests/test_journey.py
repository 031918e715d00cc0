"""The main job by clicks, in a real browser, against the real starter model and a stand-in Hub."""

import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests import starters
from tests.stand_in_hub import StandInHub
from tuner import models, starter
from tuner.recipe import STARTER_MODEL

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
# Pictures of every page go here when set; the README's come from such a run.
PICTURES = os.environ.get("TUNER_PICTURES")

pytestmark = [
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium here; .ci/run installs it"),
    pytest.mark.skipif(not starter.is_installed(), reason="the starter model's package is not installed"),
]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with StandInHub() as hub:
        starters.serve(hub, STARTER_MODEL, tmp_path_factory.mktemp("starter-home"))
        hub.users["hf_test_alice"] = "alice"
        yield hub


class App:
    """The app as a newcomer starts it, in a home of its own; it can be stopped and started again."""

    def __init__(self, home: Path, hub_url: str, token: str = "hf_test_alice"):
        self.home, self.port = home, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.env = {
            **{name: os.environ[name] for name in ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH") if name in os.environ},
            "TUNER_HOME": str(home / "tuner"), "HF_HOME": str(home / "hf"), "HF_ENDPOINT": hub_url,
            "HF_TOKEN": token, "GRADIO_SERVER_PORT": str(self.port), "GRADIO_TEMP_DIR": str(home / "gradio"),
        }
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        self.log = open(self.home / "app.log", "ab")
        self.process = subprocess.Popen([sys.executable, "app.py"], cwd=ROOT, env=self.env, stdout=self.log, stderr=self.log)
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(self.url, timeout=2).read()
                return
            except OSError:
                assert self.process.poll() is None, (self.home / "app.log").read_text()
                assert time.monotonic() < deadline, "the app did not come up in a minute"
                time.sleep(0.2)

    def stop(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(20)
        self.log.close()


@pytest.fixture(scope="module")
def app(tmp_path_factory, hub):
    app = App(tmp_path_factory.mktemp("journey"), hub.url)
    app.start()
    yield app
    app.stop()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


def reload(page) -> None:
    """Load the page again. As it is left, Gradio's client aborts its own open stream (`close` on beforeunload) and may call that an error,
    in one way while it is being opened and in another while it is read."""
    before, own = len(page.complaints), ("AbortError: signal is aborted", "AbortError: BodyStreamBuffer was aborted", "Unexpected error Connection errored out")
    page.reload()
    page.complaints[before:] = [words for words in page.complaints[before:] if not words.startswith(own)]


def open_page(browser, url: str, dark: bool = False, narrow: bool = False):
    """A fresh profile's page, with everything the console complains of."""
    size = {"width": 390, "height": 844} if narrow else {"width": 1280, "height": 960}
    page = browser.new_context(viewport=size, color_scheme="dark" if dark else "light").new_page()
    page.complaints = []
    page.on("console", lambda message: page.complaints.append(f"{message.text} ({message.location.get('url', '')})") if message.type == "error" else None)
    page.set_default_timeout(30_000)
    page.goto(url)
    return page


def picture(page, name: str) -> None:
    if PICTURES:
        Path(PICTURES).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=f"{PICTURES}/{name}.png", full_page=True)


def tab(page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def name_repository(page, name: str) -> None:
    """Write the repository's name at a person's pace: within milliseconds of opening, and before a click, the proposed one would win."""
    field = page.locator("#repo-name input, #repo-name textarea").first
    field.wait_for()
    page.wait_for_timeout(500)
    field.fill(name)
    field.press("Tab")
    page.wait_for_timeout(500)
    assert field.input_value() == name


def train_loss_points(page) -> int:
    """How many points the visible training curve has."""
    lines = page.locator("#curve .wide polyline.train:not(.raw)")
    return len(lines.first.get_attribute("points").split()) if lines.count() else 0


def answered(page) -> None:
    """Wait until both answers are at their end, or stop them where no picture is taken: Send can be pressed again."""
    if not PICTURES:
        page.click("#stop-chat")
    page.wait_for_function("document.querySelector('#send').disabled === false", timeout=120_000 if PICTURES else 5_000)


def test_the_main_job(app, hub, browser):
    page = open_page(browser, app.url)

    # The demo is there, and shows what is learned.
    page.wait_for_selector("#row .piece.learned", timeout=60_000)
    assert "1 of 480" in page.inner_text("#row")
    learned = "".join(page.locator("#row .tokens .piece.learned").all_inner_texts())
    assert learned.endswith("<|im_end|>")
    page.click("#next-row")
    page.wait_for_function("document.querySelector('#row h3').innerText.trim() === 'Row 2'")
    assert page.locator("#survey .chart").first.is_visible()
    page.wait_for_function("document.querySelector('#quote-line').innerText.includes('on this machine')")
    picture(page, "dataset-light")

    # A short run: the curve moves, the answer to the fixed prompt comes.
    tab(page, "Fine-tune")
    if not PICTURES:  # pictures are of the whole run
        page.locator("#knob-max_steps input").fill("8")
        page.locator("#knob-max_steps input").press("Tab")
        page.wait_for_function("document.querySelector('#quote').innerText.includes('8\\nsteps')")
    # It is said beforehand whether it could be published.
    page.locator("#mean-to-publish input").check()
    page.locator("#publish-name input, #publish-name textarea").first.fill("headline-tuner")
    page.locator("#publish-name input, #publish-name textarea").first.press("Enter")
    page.wait_for_function("document.querySelector('#publish-check').innerText.includes('alice/headline-tuner is free')", timeout=60_000)
    page.click("#start")
    page.wait_for_selector("#run-status .state-training", timeout=90_000)
    page.wait_for_function("document.querySelectorAll('#curve .wide polyline.train').length > 0", timeout=60_000)
    before = train_loss_points(page)
    page.wait_for_function(
        f"document.querySelector('#curve .wide polyline.train:not(.raw)').getAttribute('points').split(' ').length > {before}", timeout=60_000,
    )
    assert page.locator("#samples li").count() >= 1
    if PICTURES:
        page.wait_for_function("document.querySelectorAll('#samples li').length > 3", timeout=120_000)
    picture(page, "training-light")

    # Refresh: the page finds the run again by itself.
    reload(page)
    page.wait_for_selector("#row .piece.learned", timeout=60_000)
    tab(page, "Fine-tune")
    page.wait_for_selector("#run-status .run-status")
    page.wait_for_selector("#run-status .state-done", timeout=400_000)
    assert "held-out loss" in page.inner_text("#numbers")
    assert "done" in page.inner_text("#runs")
    assert page.locator("#report .measure").count() >= 6 and "General questions right" in page.inner_text("#report")
    picture(page, "done-light")

    # Chat: base and tuned side by side.
    page.click("#to-chat")
    page.wait_for_selector("#message textarea")
    page.wait_for_function("document.querySelector('#subject input').value.includes('Clickbait')")
    page.locator("#message textarea").fill("how bees find their way home")
    page.locator("#message textarea").press("Enter")
    for side in ("#chat-base", "#chat-tuned"):
        page.wait_for_function(f"(document.querySelector('{side} .bot')?.innerText ?? '').length > 5", timeout=90_000)
    answered(page)
    base_said, tuned_said = page.inner_text("#chat-base .bot"), page.inner_text("#chat-tuned .bot")
    assert base_said != tuned_said
    picture(page, "chat-light")

    # Which is better? No names before the vote.
    page.get_by_label("Which is better?").click()
    page.locator("#message textarea").fill("a rainy day at the market")
    page.locator("#message textarea").press("Enter")
    page.wait_for_selector("#vote-left:not([disabled])", timeout=90_000)
    assert "model" not in page.inner_text("#blind-answers h4 >> nth=0") + page.inner_text("#blind-answers h4 >> nth=1")
    picture(page, "blind-light")
    page.click("#vote-right")
    page.wait_for_function("document.querySelector('#tally').innerText.includes('In 1 blind comparison')")
    named = [page.inner_text(f"#blind-answers h4 >> nth={side}") for side in (0, 1)]
    assert sorted(name.split("the ")[1].split(" ")[0] for name in named) == ["base", "tuned"] and "your choice" in named[1]
    assert page.locator("#vote-left").is_disabled()

    # Publish, privately, and open the share link.
    page.get_by_text("Publish to the Hugging Face Hub").click()
    page.get_by_label("Tell the blind test in the card").check()
    assert page.locator("#repo-name input, #repo-name textarea").first.input_value() == "headline-tuner"
    page.click("#show-card")
    page.wait_for_function("document.querySelector('#card')?.innerText.includes('base_model')")
    picture(page, "publish-light")
    page.click("#push")
    page.wait_for_selector("#pushed .pushing", timeout=10_000)
    reload(page)  # it goes on without the page, which finds it again
    page.wait_for_selector("#row .piece.learned", timeout=60_000)
    tab(page, "Chat")
    page.get_by_text("Publish to the Hugging Face Hub").click()
    page.wait_for_function("document.querySelector('#pushed')?.innerText?.includes('Published and verified')", timeout=240_000)
    repo = hub.repos["model", "alice/headline-tuner"]
    assert repo.private and b"In 1 blind comparison" in repo.files["README.md"]
    assert set(repo.files) - {".gitattributes"} == {"README.md", "adapter_config.json", "adapter_model.safetensors", "tuner.json"}
    assert "private" in page.inner_text("#pushed")
    link = page.get_attribute("#share-link", "href")
    assert link == f"{app.url}/?adapter=alice/headline-tuner"
    page.click("#make-public")
    page.wait_for_function("document.querySelector('#pushed')?.innerText?.includes('anybody')")
    assert not repo.private
    picture(page, "published-light")

    guest = open_page(browser, link)
    guest.wait_for_function("document.querySelector('#chat-about')?.innerText.includes('alice/headline-tuner')", timeout=60_000)
    guest.locator("#message textarea").fill("a lighthouse at night")
    guest.locator("#message textarea").press("Enter")
    guest.wait_for_function("(document.querySelector('#chat-tuned .bot')?.innerText ?? '').length > 5", timeout=90_000)
    answered(guest)
    picture(guest, "share-link-light")

    assert not [words for words in page.complaints + guest.complaints if "favicon" not in words and "manifest" not in words]


def faulty_rows() -> list[dict]:
    """Eighty good rows, then: six copies, an address, a broken encoding, two empty answers, tool talk to look at."""
    words = "river stone lamp paper cloud garden window bridge winter summer engine letter market castle".split()
    pick = random.Random(5)
    rows = [
        {"question": f"What is known of number {number}?", "context": " ".join(pick.choices(words, k=8)), "answer": " ".join(pick.choices(words, k=25))}
        for number in range(80)
    ]
    rows[7]["answer"] += " Write to jane.doe@corporate-mail.org about it."
    rows[9]["answer"] += " It was a cafÃ© near the river, donâ€™t you remember?"
    return [*rows, *rows[20:26], {**rows[0], "answer": ""}, {**rows[1], "answer": "  "}]


def finding(page, name: str) -> str:
    """The text of a finding's card; "" where it is not found."""
    card = page.locator(f".finding:has([data-do='show:{name}'])")
    return card.inner_text() if card.count() else ""


def do(page, what: str, until: str) -> None:
    """Press one of our own buttons and wait for what it brings."""
    page.click(f"[data-do='{what}']")
    page.wait_for_function(until)


def test_a_faulty_file_is_put_right_and_learned_from(app, browser, tmp_path):
    page = open_page(browser, app.url)
    page.wait_for_selector("#row .piece.learned", timeout=60_000)
    faulty = tmp_path / "faulty.jsonl"
    faulty.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in faulty_rows()))
    page.get_by_label("File", exact=True).check()
    page.set_input_files("#file input[type=file]", str(faulty))
    page.wait_for_function("document.querySelector('#dataset-about').innerText.includes('faulty.jsonl')")
    page.wait_for_selector(".finding")

    # Every finding with its number, the rows one click away.
    assert re.search(r"Exact duplicates\s*6 rows", finding(page, "duplicate"))
    assert re.search(r"Personal data\s*1 row\b.*1 e-mail address.*j…@c….org", finding(page, "personal"), re.DOTALL)
    assert re.search(r"wrong encoding\s*1 row\b", finding(page, "mojibake"))
    assert re.search(r"Empty answers\s*2 rows", finding(page, "empty_answer"))
    do(page, "show:personal", "document.querySelector('#row h3').innerText.trim() === 'Row 8'")
    do(page, "show:empty_answer", "document.querySelector('#row').innerText.includes('left out')")
    assert "has no answer" in page.inner_text("#row")
    picture(page, "findings-light")

    # Three fixes, one taken back.
    for name, fix in (("duplicate", "deduplicate"), ("personal", "mask"), ("mojibake", "repair")):
        do(page, f"fix:{name}:{fix}", f"!document.querySelector(\"[data-do='show:{name}']\")")
    assert page.locator("#receipt [data-do^='undo:']").count() == 3
    do(page, "undo:1", "!!document.querySelector(\"[data-do='show:personal']\")")
    shown = page.inner_text("#receipt")
    picture(page, "receipt-light")

    # Searching, the table and the conversation.
    page.locator("#search-rows input, #search-rows textarea").first.fill("café near")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('#row h3').innerText.trim() === 'Row 10'")
    assert "1 of 1 found" in page.inner_text("#row")
    page.get_by_label("Conversation", exact=True).check()
    page.wait_for_selector("#row .turn.assistant")
    assert "tokens" in page.inner_text("#row .turn.user")
    picture(page, "conversation-light")
    page.get_by_label("Table", exact=True).check()
    page.wait_for_selector("#row table.rows")
    picture(page, "table-light")
    page.locator("#search-rows input, #search-rows textarea").first.fill("")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelectorAll('#row table.rows tbody tr').length === 12")
    page.click("[data-do='open:3']")
    page.wait_for_function("document.querySelector('#row h3').innerText.trim() === 'Row 4'")

    # Two columns make one prompt.
    page.get_by_text("Change which column is which").click()
    page.locator("#prompt-template textarea").fill("{question}\n{contxt}")
    page.wait_for_function("document.querySelector('#template-shown').innerText.includes(\"'contxt' is not there\")")
    page.locator("#prompt-template textarea").fill("{question}\n{context}")
    page.wait_for_function("document.querySelector('#template-shown').innerText.includes('What is known of number 0?')")

    # A run, and its receipt.
    tab(page, "Fine-tune")
    page.locator("#knob-max_steps input").fill("2")
    page.locator("#knob-max_steps input").press("Tab")
    page.wait_for_function("document.querySelector('#quote').innerText.includes('2\\nsteps')")
    page.click("#start")
    page.wait_for_function("document.querySelector('#run-status h3')?.innerText.includes('faulty')")
    runs = sorted((app.home / "tuner" / "runs" / "local").iterdir())
    receipt = json.loads((runs[-1] / "data" / "receipt.json").read_text())
    steps = {step["step"]: step["rows"] for step in receipt["steps"]}
    assert steps == {
        "Empty answers: left out": 2, "Exact duplicates: dropped, the first of each kept": 6,
        "Letters broken by a wrong encoding: repaired": 1,
    }
    assert (receipt["rows_in"], receipt["rows_out"], receipt["held_out_rows"]) == (88, 80, 8)
    for words in (*steps, "88", "72", receipt["sha256"][:16]):
        assert words in shown
    kept = (runs[-1] / "data" / "train.jsonl").read_text() + (runs[-1] / "data" / "held_out.jsonl").read_text()
    assert "café near the river, don’t you" in kept and "jane.doe@corporate-mail.org" in kept
    page.wait_for_selector("#run-status .state-done", timeout=200_000)
    assert not [words for words in page.complaints if "favicon" not in words and "manifest" not in words]
    page.context.close()


def test_it_can_be_looked_at_dark_and_narrow(app, browser):
    """Every tab fits 390 pixels and has no sideways scrolling; pictures are taken in both modes."""
    for name, dark, narrow in (("dark", True, False), ("narrow", False, True), ("narrow-dark", True, True)):
        page = open_page(browser, app.url + ("/?__theme=dark" if dark else ""), dark, narrow)
        page.wait_for_selector("#row .piece.learned", timeout=60_000)
        for part in ("Dataset", "Fine-tune", "Chat"):
            tab(page, part)
            time.sleep(0.6)
            picture(page, f"{part.lower()}-{name}")
            wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert wide <= 1, f"{part} is {wide} pixels wider than the page ({name})"
        page.context.close()


def test_bad_input_is_told_in_words(app, browser, tmp_path):
    """A broken file and a bad knob: a sentence on the page, no traceback, and what was there is still there."""
    page = open_page(browser, app.url)
    page.wait_for_selector("#row .piece.learned", timeout=60_000)
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "c", \n')
    page.get_by_label("File").check()
    page.set_input_files("#file input[type=file]", str(broken))
    page.wait_for_selector("text=broken at line 2")
    assert "1 of 480" in page.inner_text("#row")
    tab(page, "Fine-tune")
    page.locator("#knob-learning_rate input").fill("1000000000")
    page.locator("#knob-lora_rank input").fill("0")
    page.locator("#knob-lora_rank input").press("Tab")
    page.wait_for_function("document.querySelector('#quote').innerText.includes('lora_rank') && document.querySelector('#quote').innerText.includes('learning_rate')")
    page.click("#start")
    page.wait_for_function("[...document.querySelectorAll('.toast-body')].some(toast => toast.innerText.includes('lora_rank is 0'))")
    assert not re.search(r"Traceback|File \"", page.content())
    page.context.close()


def test_a_learning_rate_is_found_before_a_run(app, browser):
    """Its cost is told first; the sweep is drawn while it goes; one click takes its answer over; a reload finds it again."""
    page = open_page(browser, app.url)
    page.wait_for_selector("#row .piece.learned", timeout=60_000)
    tab(page, "Fine-tune")
    page.get_by_text("Try before you train").click()
    page.wait_for_function("document.querySelector('#trial-quote')?.innerText?.includes('Learning-rate finder about')")
    page.click("#try-rate")
    page.wait_for_selector("#trial .chart polyline", timeout=90_000)
    reload(page)
    page.wait_for_selector("#row .piece.learned", timeout=60_000)
    tab(page, "Fine-tune")
    page.get_by_text("Try before you train").click()
    has_bf16 = models.choose_precision("cpu") == "bfloat16"  # else the same sweep takes three minutes
    page.wait_for_selector("#trial [data-do^='set:learning_rate']", timeout=150_000 if has_bf16 else 420_000)
    assert "The held-out loss" in page.inner_text("#trial")
    suggested = float(page.get_attribute("#trial [data-do^='set:']", "data-do").split("=")[1])
    assert 1e-4 <= suggested <= 1e-2  # its preset says 1e-3
    picture(page, "finder-light")
    page.locator("#knob-learning_rate input").fill("0.05")
    page.click("#trial [data-do^='set:']")
    page.wait_for_function(f"Number(document.querySelector('#knob-learning_rate input').value) === {suggested}")
    assert not [words for words in page.complaints if "favicon" not in words and "manifest" not in words]
    page.context.close()
