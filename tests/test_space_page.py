"""The page of a Space in a browser, as somebody meets it who is signed in, and as somebody who is not; and after a restart."""

import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.finished_run import finished_run
from tests.space import HOST, Space, Visitor
from tests.stand_in_hub import StandInHub
from tests.test_figures import report
from tests.test_journey import CHROMIUM, FLAGS, picture
from tuner import figures, limits, sharing
from tuner import run as runs
from tuner.home import write_json
from tuner.recipe import STARTER_MODEL

in_a_browser = pytest.mark.skipif(not CHROMIUM, reason="no Chromium here; .ci/run installs it")
LONG = "The letters that a gardener writes to the neighbours about the hedge between them, in verse"


@pytest.fixture(scope="module")
def space(base, tmp_path_factory):
    """One whose disk is empty after a restart, as most are."""
    home = tmp_path_factory.mktemp("space")
    with StandInHub() as hub, pytest.MonkeyPatch.context() as patch:
        hub.add_repo(STARTER_MODEL, files={path.name: path.read_bytes() for path in base.iterdir()})
        patch.setenv("HF_HUB_OFFLINE", "1")
        with Space(home, hub, TUNER_HOME="", XDG_CACHE_HOME=str(home)) as space:
            patch.setenv("TUNER_HOME", str(home / "tuner"))
            yield space


def done_run(space: Space, owner: str, title: str = LONG) -> runs.Run:
    """A run of this owner that ended well, with its curve, its answers and its report."""
    run = finished_run(space.home / "made", owner)
    run.rename(title)
    for step, loss in enumerate((3.0, 2.4, 2.1, 2.0)):
        run.log("step", step=step + 1, steps=4, loss=loss, tokens=1000, tokens_per_s=700.0, memory_gib=1.2, learning_rate=1e-3, elapsed_s=5.0, eta_s=1.0)
        run.log("eval", step=step, loss=loss + 0.1, rows=2, best=True)
        run.log("sample", step=step, number=0, prompt="Where is the cat?", text=f"On mat {step}.", ended=True)
    row = {"row": 1, "prompt": "Where is the cat?", "wanted": "On a mat.", "base": {"loss": 2.0, "text": "Who knows", "ended": False}, "tuned": {"loss": 1.0, "text": "On mat 1.", "ended": True}}
    made = report(best_step=4)
    write_json(run.folder / "report.json", made | {"rows": {"improved": [row] * 5, "worsened": []}, "says": figures.verdicts(made, 4), "examples": [row]})
    return run


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=[*FLAGS, f"--host-resolver-rules=MAP {HOST} 127.0.0.1", "--disable-features=HttpsUpgrades,HttpsFirstBalancedMode"],
        )
        yield browser
        browser.close()


def open_page(browser, space: Space, user: str = "", narrow: bool = False, dark: bool = False, host: str = "127.0.0.1", query: str = ""):
    """A fresh profile's page, perhaps signed in; with all that the console complains of, and the hosts that it asked."""
    size = {"width": 390, "height": 844} if narrow else {"width": 1280, "height": 960}
    context, url = browser.new_context(viewport=size, color_scheme="dark" if dark else "light"), f"http://{host}:{space.port}"
    if user:
        visitor = Visitor(space)
        visitor.get("/")
        visitor.sign_in(user)
        context.add_cookies([{"name": name, "value": value, "url": url} for name, value in visitor.cookies.items()])
    page = context.new_page()
    page.complaints, page.asked = [], []
    page.on("console", lambda message: page.complaints.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: page.asked.append(request))
    page.set_default_timeout(30_000)
    page.goto(f"{url}/{query}{('&' if query else '?') + '__theme=dark' if dark else ''}")
    if not query:
        page.wait_for_selector("#row .piece.learned", timeout=60_000)
    return page


def tab(page, name: str) -> None:
    page.get_by_role("tab", name=name).click()
    time.sleep(0.5)


def top(page, selector: str) -> float:
    """How far down the page something begins, in pixels."""
    page.wait_for_selector(selector, state="attached")
    return page.evaluate("its => document.querySelector(its).getBoundingClientRect().top + window.scrollY", selector)


# Whom the page asks -----------------------------------------------------------------------------------------------


@in_a_browser
def test_the_page_asks_no_other_host(space, browser):
    """Under a Space's own name Gradio would ask the Hub for its state, and two hosts for the letters and pictures of a header."""
    page = open_page(browser, space, host=HOST)
    for name in ("Fine-tune", "Chat", "Dataset"):
        tab(page, name)
    time.sleep(1.0)
    sent = [its.url for its in page.asked if "csp" not in (its.failure or "").lower()]
    assert len(sent) > 20
    assert not {urlsplit(url).hostname for url in sent if urlsplit(url).scheme.startswith("http")} - {HOST}
    assert page.locator("#huggingface-space-header").count() == 0
    page.context.close()


# What somebody meets who comes the first time -----------------------------------------------------------------------


@in_a_browser
@pytest.mark.parametrize("narrow, dark", [(False, False), (True, False), (False, True), (True, True)])
def test_who_is_not_signed_in_reads_one_thing_and_is_offered_nothing_that_cannot_be_done(space, browser, narrow, dark):
    page = open_page(browser, space, narrow=narrow, dark=dark)
    name = f"stranger{'-narrow' if narrow else ''}{'-dark' if dark else ''}"
    tab(page, "Fine-tune")
    page.wait_for_function("document.querySelector('#quote-here')?.innerText?.includes('on this machine')")
    picture(page, f"space-fine-tune-{name}")
    assert page.inner_text("#start") == "Sign in to start" and "Sign in, then press Start" in page.inner_text("#runs")
    for hidden in ("#run-actions", "#name-row", "#find-kept", "#share-run", "#stop", "#resume"):
        assert not page.locator(hidden).is_visible(), hidden
    assert page.inner_text("body").count("keeps nothing when it restarts") == 1
    assert "minutes" not in page.locator("#preset").inner_text() and "three minutes" not in page.inner_text("body")
    assert top(page, "#run-status") < top(page, "#preset") < top(page, "#start") < top(page, "#knob-learning_rate")
    assert top(page, "#start") < (1200 if narrow else 800)
    tab(page, "Chat")
    page.get_by_text("Publish to the Hugging Face Hub").click()
    assert page.locator("#push").is_disabled() and page.locator("#show-card").is_disabled()
    assert not page.get_by_label("Which is better?").is_visible()
    assert not page.locator("#retry").is_visible() and not page.locator("#clear").is_visible()
    picture(page, f"space-chat-{name}")
    page.click("#send")
    page.wait_for_selector(".toast-body.warning")
    title = page.evaluate("(() => { const its = document.querySelector('.toast-body .toast-title'); return [getComputedStyle(its, '::before').content, getComputedStyle(its).fontSize] })()")
    assert title == ['"Mind"', "0px"] and "The message is empty" in page.inner_text(".toast-body")
    assert not page.locator("#chat-base .error").is_visible()
    picture(page, f"space-toast-{name}")
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 1
    # Gradio's own pill is there, and not over the row that the error did not touch.
    tab(page, "Dataset")
    page.locator("#source").get_by_text("Hub", exact=True).click()
    page.click("#read-hub")
    page.wait_for_function("document.querySelectorAll('[data-testid=status-tracker] > .error').length > 0")
    assert not any(its.is_visible() for its in page.locator("[data-testid=status-tracker] > .error").all())
    page.context.close()


@in_a_browser
@pytest.mark.parametrize("narrow", [False, True])
def test_who_is_signed_in_finds_their_run_and_what_can_be_done_with_it(space, browser, narrow):
    owner = f"alice{int(narrow)}"
    run = done_run(space, owner)
    page = open_page(browser, space, owner, narrow=narrow)
    tab(page, "Fine-tune")
    page.wait_for_selector("#run-status .state-done")
    assert "held-out loss, all 2 rows" in page.text_content("#curve") and "held-out loss, all" in page.inner_text("#numbers")
    assert top(page, "#run-status") < top(page, "#preset")
    for shown in ("#run-actions", "#name-row", "#find-kept", "#share-run"):
        page.wait_for_selector(shown)
    assert not page.locator("#chat-run").is_disabled() and not page.locator("#publish-run").is_disabled()
    assert page.input_value("#chosen-run input").startswith(f"{LONG[:19]}…{LONG[-20:]} · done")
    assert time.strftime(" %Z", time.localtime()) in page.inner_text("#runs")
    picture(page, f"space-done{'-narrow' if narrow else ''}")
    page.click("#chat-run")
    page.wait_for_selector("#subject")
    page.wait_for_function("document.querySelector('#subject input')?.value?.includes('· done ·')")
    page.get_by_label("Which is better?").wait_for()
    page.get_by_text("Publish to the Hugging Face Hub").click()
    assert not page.locator("#push").is_disabled() and not page.locator("#show-card").is_disabled()
    picture(page, f"space-chat-done{'-narrow' if narrow else ''}")
    assert runs.find(owner, run.id).title == LONG
    page.context.close()


@in_a_browser
@pytest.mark.parametrize("narrow", [False, True])
def test_a_shared_run_is_asked_from_its_head_and_not_voted_on(space, browser, narrow):
    run = done_run(space, "carol")
    page = open_page(browser, space, narrow=narrow, query=f"?run={sharing.share('carol', run.id)}")
    page.wait_for_selector("#shared-run .state-done")
    assert top(page, "#shared-run") < top(page, "#shared-chat") < top(page, "#shared-course") and top(page, "#shared-chat") < (900 if narrow else 700)
    picture(page, f"space-shared{'-narrow' if narrow else ''}")
    page.click("#shared-chat")
    page.wait_for_selector("#subject input")
    page.wait_for_function("document.querySelector('#subject input')?.value?.includes('Shared with you')")
    page.get_by_label("Which is better?").wait_for(state="hidden")
    page.get_by_text("Publish to the Hugging Face Hub").click()
    assert page.locator("#push").is_disabled()
    picture(page, f"space-shared-chat{'-narrow' if narrow else ''}")
    page.context.close()


@in_a_browser
def test_start_cannot_be_pressed_while_the_owner_pauses(space, browser):
    limits.pause(True)
    try:
        page = open_page(browser, space, "dora")
        tab(page, "Fine-tune")
        page.wait_for_function("document.querySelector('#start').innerText === 'New runs are paused'")
        assert page.locator("#start").is_disabled() and "paused" in page.inner_text("#limits")
        tab(page, "Dataset")
        assert page.locator("#start-here").is_disabled()
        picture(page, "space-paused")
        page.context.close()
    finally:
        limits.pause(False)


# A page that stays open while the app restarts ----------------------------------------------------------------------


def test_a_page_that_was_open_before_a_restart_goes_on(space):
    """The new app has given this visit no choices yet; what was chosen is still there, and what is not is told in our words."""
    run = done_run(space, "erik", "Animals")
    page = Visitor(space).sign_in("erik").open()
    page.values |= {page.id_of("chosen-run"): run.id, page.id_of("subject"): run.id, page.id_of("show-rows"): "duplicate"}
    assert page.run(page.event("open-run"))["success"]
    space.__exit__()
    space.__enter__()
    for name, kind in (("open-run", "click"), ("chosen-run", "change"), ("subject", "change"), ("chat-run", "click"), ("rename-run", "click"), ("share-run", "click")):
        answer = page.call(page.event(name, kind))
        assert answer["success"], (name, answer)
    for name, kind in (("start", "click"), ("next-row", "click"), ("show-rows", "input"), ("try-rate", "click")):
        answer = page.call(page.event(name, kind))
        said = answer["output"]["error"]
        assert not answer["success"] and "the app was restarted since. Reload the page" in said, (name, said)
    assert not page.call(page.event("open-run"), values={page.id_of("chosen-run"): ["not", "a", "run"]})["success"]
    told = page.call(page.event("open-run"), values={page.id_of("chosen-run"): "20200101-000000-00000000"})
    assert "is not among yours" in told["output"]["error"]
    assert Path(run.folder).is_dir()
