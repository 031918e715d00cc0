"""The page as a whole: header, three tabs, who the visitor is, errors in words, and the server around it."""

import ctypes
import functools
import inspect
import logging
import os
import secrets
import threading
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import fastapi
import gradio as gr
import uvicorn
from fastapi.middleware.cors import CORSMiddleware
from gradio import state_holder
from gradio.data_classes import _StaticFiles
from gradio.utils import LRUCache

from tuner import chat, child, clearing, data, eyes, hub, identity, labelling, limits, reading, redaction, starter
from tuner import run as runs
from tuner.errors import Hint, UserError
from tuner.gate import Gate
from tuner.home import LOCAL_OWNER, on_a_space, survives_restart, tuner_home
from tuner.identity import Visitor
from tuner.recipe import STARTER_MODEL
from tuner.sessions import Sessions, upload_folder
from tuner.ui import choices, drawing, upload_parser, uploads

log = logging.getLogger("tuner")
HERE = Path(__file__).parent
# Visits that Gradio holds in memory, each with a copy of what the page shows; without a bound of ours, 10,000. Who is
# pushed out by newer ones loses what was chosen, nothing else: runs and datasets are found again when the page is reloaded.
MOST_SESSIONS = 500


@dataclass
class Page:
    """What the tabs share: who answers, who labels, and how visitors are told apart."""

    worker: chat.Workers
    shared: bool = False
    labeller: labelling.Labeller = field(default_factory=labelling.Labeller)
    accounts: identity.Accounts = field(default_factory=identity.Accounts)

    def visitor(self, browser_id: str | None, token: gr.OAuthToken | None) -> Visitor:
        """Signed in: the Hub's word for who this is. Else on a Space or a shared link: this browser's own id."""
        ended = False
        if on_a_space() and token is not None:
            try:
                return Visitor(self.accounts.user(token.token), token.token)
            except identity.SignedOut:
                ended = True
        if on_a_space() or self.shared:
            return Visitor(identity.browser_owner(browser_id), None, ended)
        return Visitor(LOCAL_OWNER, hub.own_token())

    def link(self, repo_id: str, request: gr.Request | None, what: str = "adapter") -> str:
        """The address that opens the page on a published adapter, or with "run" on a run that is shared under this key."""
        if space := os.environ.get("SPACE_ID"):
            return f"https://huggingface.co/spaces/{space}?{what}={repo_id}"
        base = str(request.request.base_url).rstrip("/") if request is not None and request.request else "http://127.0.0.1:7860"
        return f"{base}/?{what}={repo_id}"


def in_words(handler):
    """The one place where an engine's UserError becomes what the page shows; anything else is logged, not shown."""

    def tell(error: Exception) -> gr.Error:
        if isinstance(error, UserError):
            words = "<br>".join(drawing.text(problem) for problem in error.problems)
            if isinstance(error, Hint):  # nothing is broken; what was asked for still ends here
                gr.Warning(words)
            # Gradio 6.31 shows no title of ours, but the kind of message it is; its words for that are changed in style.css.
            return gr.Error(words, duration=20, visible=not isinstance(error, Hint), print_exception=False)
        log.error("%s in %s", type(error).__name__, handler.__name__, exc_info=error)
        return gr.Error(
            "Something went wrong in the app itself. Nothing of yours was lost; try again.", print_exception=False
        )

    if inspect.isgeneratorfunction(handler):
        @functools.wraps(handler)
        def guarded(*args, **kwargs):
            try:
                yield from handler(*args, **kwargs)
            except gr.Error:
                raise
            except Exception as error:
                raise tell(error) from None
    else:
        @functools.wraps(handler)
        def guarded(*args, **kwargs):
            try:
                return handler(*args, **kwargs)
            except gr.Error:
                raise
            except Exception as error:
                raise tell(error) from None
    return guarded


def theme() -> gr.themes.Base:
    """Tuner's own look: warm paper and ink, one accent; contrasts are AA in both modes."""
    accent = gr.themes.Color("#ecfdf7", "#d0f5e8", "#a3e9d2", "#6dd6b8", "#35b998", "#10826a", "#0c6b58", "#0b5648", "#0b453a", "#093931", "#04221d", name="pine")
    ink = gr.themes.Color("#faf9f7", "#f3f1ed", "#e6e3dc", "#d3cec4", "#a59f93", "#756f64", "#57524a", "#403c36", "#2a2723", "#1c1a18", "#121110", name="ink")
    sans = ["ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif"]
    return gr.themes.Base(
        primary_hue=accent, secondary_hue=accent, neutral_hue=ink, font=sans,
        font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "Noto Sans Mono", "monospace"],
        radius_size=gr.themes.sizes.radius_md, text_size=gr.themes.sizes.text_md,
    ).set(
        body_background_fill="*neutral_50", body_background_fill_dark="*neutral_950",
        background_fill_primary="#ffffff", background_fill_primary_dark="*neutral_900",
        background_fill_secondary="*neutral_100", background_fill_secondary_dark="*neutral_800",
        block_background_fill="#ffffff", block_background_fill_dark="*neutral_900",
        block_border_width="1px", block_border_color="*neutral_200", block_border_color_dark="*neutral_700",
        block_label_text_color="*neutral_600", block_label_text_color_dark="*neutral_300",
        block_title_text_weight="600", block_title_text_color="*neutral_800", block_title_text_color_dark="*neutral_100",
        block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_300",
        body_text_color="*neutral_900", body_text_color_dark="*neutral_100",
        body_text_color_subdued="*neutral_600", body_text_color_subdued_dark="*neutral_300",
        border_color_primary="*neutral_200", border_color_primary_dark="*neutral_700",
        input_background_fill="#ffffff", input_background_fill_dark="*neutral_800",
        input_placeholder_color="*neutral_500", input_placeholder_color_dark="*neutral_400",
        input_border_width="1px", input_border_color="*neutral_300", input_border_color_dark="*neutral_600",
        button_primary_background_fill="*primary_500", button_primary_background_fill_hover="*primary_600",
        button_primary_background_fill_dark="*primary_300", button_primary_background_fill_hover_dark="*primary_200",
        button_primary_text_color="#ffffff", button_primary_text_color_dark="#04221d",
        button_secondary_background_fill="*neutral_100", button_secondary_background_fill_dark="*neutral_800",
        button_secondary_border_color="*neutral_300", button_secondary_border_color_dark="*neutral_600",
        button_secondary_text_color="*neutral_900", button_secondary_text_color_dark="*neutral_100",
        slider_color="*primary_500", slider_color_dark="*primary_300",
        checkbox_background_color_selected="*primary_500", checkbox_background_color_selected_dark="*primary_400",
        color_accent="*primary_500", color_accent_soft="*primary_50", color_accent_soft_dark="*primary_900",
        link_text_color="*primary_600", link_text_color_dark="*primary_200",
        block_shadow="none", button_large_text_weight="600",
    )


# What the sign-in asks for, in the words of the README's hf_oauth_scopes; see hub-docs' oauth.md for what each allows.
_SCOPES = """
<p class="quiet small">Signing in lets Tuner <b>create repositories</b> for what you publish and write to those alone
(contribute-repos), and <b>read gated models</b> whose terms you have accepted (gated-repos). Nothing else of your account.</p>
"""
_HEADER = """
<div class="masthead">
  <svg viewBox="0 0 40 40" class="mark" aria-hidden="true"><path d="M13 5v12a7 7 0 0 0 14 0V5M20 24v11" /></svg>
  <div><h1>Tuner</h1><p>Teach a model to answer your way. Bring examples, watch it learn, talk to the result.</p></div>
</div>
"""


def build(page: Page) -> gr.Blocks:
    """The whole page, not yet served."""
    from tuner.ui import chat_tab, dataset_tab, queue_view, run_view, sharing_view, train_tab

    with gr.Blocks(title="Tuner", analytics_enabled=False, delete_cache=(3600, 3600), fill_width=False) as demo:
        # With the Space's name Gradio's page draws a header of the Hub's, for which it asks two other hosts, of every visitor.
        demo.space_id = None
        browser = gr.BrowserState("", storage_key="tuner-visitor", secret="tuner-visitor-1")
        dataset_id, run_id, shared_key = gr.State(""), gr.State(""), gr.State("")
        with gr.Row(elem_id="top"):
            gr.HTML(_HEADER, elem_id="masthead")
            if on_a_space():
                with gr.Column(scale=0, min_width=290):
                    gr.LoginButton("Sign in with Hugging Face", size="md")
        scopes = gr.HTML(_SCOPES, visible=on_a_space(), elem_id="scopes")
        account = gr.HTML("", elem_id="account")
        if not survives_restart():
            gr.HTML(drawing.notice("This Space keeps nothing when it restarts. Keep a run's checkpoints in your account, or publish the tuned model.", "warning"))
        with gr.Tabs(selected="dataset", elem_id="tabs") as tabs:
            with gr.Tab("Dataset", id="dataset"):
                dataset = dataset_tab.draw(page, browser, dataset_id)
            with gr.Tab("Fine-tune", id="train", elem_id="train-tab"):
                shared = sharing_view.draw(page, browser, shared_key)
                train = train_tab.draw(page, browser, dataset_id, run_id)
                sharing_view.draw_buttons(shared)
            with gr.Tab("Chat", id="chat", elem_id="chat-tab") as third:
                talk = chat_tab.draw(page, browser, run_id, shared_key, third)
        steward = queue_view.draw_panel(page, browser)
        look_after = queue_view.wire_panel(steward, [train.start, dataset.start])
        train_tab.wire(train, dataset, talk, tabs)
        dataset_tab.wire(dataset, train, tabs)
        chat_tab.wire(talk, train, tabs)
        sharing_view.wire(shared, train, talk, tabs)

        @in_words
        def open_page(browser_id, token: gr.OAuthToken | None, request: gr.Request):
            known = browser_id or identity.new_browser_id()
            asked = (request.query_params or {}) if request else {}
            adapter, key = asked.get("adapter", "")[:200], asked.get("run", "")[:100]
            visitor = page.visitor(known, token)
            brought = None
            if on_a_space() and visitor.token:
                before = identity.browser_owner(known)
                brought = data.bring_along(before, visitor.owner)
                if brought and not runs.mine(before):  # whoever signs in here next is not to be given it as well
                    known = identity.new_browser_id()
            tab = gr.Tabs(selected="train" if key else "chat") if adapter or key else gr.skip()
            said = drawing.notice("Your sign-in has ended. Log out and sign in again above; nothing was lost.", "warning") if visitor.ended else ""
            start = [run_view.start_button(visitor.owner) for _ in range(2)]  # Gradio empties each that it takes
            asks = gr.update(visible=on_a_space() and not visitor.token)
            return known, tab, adapter or gr.skip(), brought.id if brought else "", key, said, asks, *start

        opened = demo.load(
            open_page, [browser], [browser, tabs, talk.adapter_id, dataset_id, shared_key, account, scopes, train.start, dataset.start],
            show_progress="hidden", api_visibility="private",
        )
        opened.then(**shared.arrive)
        opened = opened.then(**dataset.first_look)
        opened.then(**train.reattach).then(**talk.refresh)
        opened.then(**train.reattach_trial)
        opened.then(**talk.arrive)
        opened.then(**look_after)
    return demo


class _Visit(state_holder.SessionState):
    """What a visit's page holds.

    Gradio 6.31 makes a component anew with each update, under another number, and keeps it under that as well once a click reads
    it: one component more with each look at a run, for as long as the page is open. And it keeps the whole page's configuration
    once more for each visit, half a megabyte, for links to a page's state, which `gate` does not let through.
    """

    def __init__(self, blocks: gr.Blocks):
        # As Gradio's own, which makes that configuration here, and a part of it anew with each update.
        self.blocks_config, self.config_values = copy(blocks.default_config), {}
        self.state_data: dict[int, object] = {}
        self._state_ttl: dict[int, tuple] = {}
        self.is_closed, self.STATE_TTL_WHEN_CLOSED = False, 3600

    def __setitem__(self, number: int, value) -> None:
        block = self.blocks_config.blocks.get(number)
        if isinstance(block, gr.State):
            self._state_ttl[number] = block.time_to_live, datetime.now()
            self.state_data[number] = value
        else:
            value._id = number
            self.blocks_config.blocks[number] = value

    def _update_config(self, _number: int) -> None:
        """Nothing: see above."""

    def _update_value_in_config(self, _number: int, _value) -> None:
        """Nothing: see above."""


class _Visits(dict):
    """Visit -> its clicks that are not answered yet. Gradio 6.31 keeps an empty set for each visit there ever was."""

    def __setitem__(self, visit: str, clicks: set) -> None:
        super().__setitem__(visit, clicks)
        for old in list(self)[: max(0, len(self) - MOST_SESSIONS)]:
            if not self[old] and old != visit:
                del self[old]


class _Streams(LRUCache):
    """Visit -> what is still to be told to it. Gradio 6.31 pushes out whoever came first, in the middle of an answer too;
    here it is whoever was told nothing for longest."""

    def __getitem__(self, visit: str):
        if visit in self:
            self.move_to_end(visit)
        return super().__getitem__(visit)


def make_app(page: Page) -> fastapi.FastAPI:
    """The page behind its gate, as an ASGI app."""
    parent = fastapi.FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    # With a CORS policy on the parent, Gradio adds none of its own (which would admit every origin).
    parent.add_middleware(CORSMiddleware, allow_origins=[])
    demo = build(page)
    upload_parser.bound()
    choices.let_through()
    uploads.add_route(parent, demo)
    demo.queue(max_size=256, default_concurrency_limit=8)
    demo.state_session_capacity = MOST_SESSIONS
    state_holder.SessionState = _Visit
    demo._queue.pending_event_ids_session = _Visits()
    demo._queue.pending_messages_per_session = _Streams(demo._queue.pending_messages_per_session.max_size)
    app = gr.mount_gradio_app(
        parent, demo, path="/", footer_links=["gradio", "settings"], run_history=False, show_error=False,
        max_file_size=reading.MAX_FILE_BYTES, ssr_mode=False, enable_monitoring=False, pwa=False, mcp_server=False,
        theme=theme(), css_paths=[HERE / "style.css"], allowed_paths=[], blocked_paths=[str(tuner_home()), *_own_files()],
    )
    app.add_middleware(Sessions, uploads=upload_folder(), public=_StaticFiles.all_paths)
    app.add_middleware(Gate, shared=page.shared or on_a_space(), hosts=("gradio.live",) if page.shared else ())
    return app


def _own_files() -> list[str]:
    """What lies in the project's folder, but for what holds Gradio itself: it serves its own icons from there."""
    return [str(path) for path in child.PROJECT_ROOT.iterdir() if not Path(gr.__file__).is_relative_to(path)]


# glibc's numbers for what `mallopt` sets, and to what.
_MALLOC = {"M_TRIM_THRESHOLD": (-1, 2**17), "M_MMAP_THRESHOLD": (-3, 2**18), "M_ARENA_MAX": (-8, 2)}
# A connection is kept for a while after each answer: a page that looks once a second needs no new one, nor does a proxy.
KEEP_ALIVE_S = 75


def _hold_little() -> None:
    """Give memory back as it is freed. With an arena for each thread that answers, and a pool of Arrow's own, the process keeps
    what each burst of clicks needed, and more with every one (tests/bench/RESULTS.md)."""
    import pyarrow

    pyarrow.set_memory_pool(pyarrow.system_memory_pool())
    with suppress(OSError, AttributeError):  # a system without glibc
        libc = ctypes.CDLL(None)
        for number, value in _MALLOC.values():
            libc.mallopt(number, value)


def serve(share: bool = False) -> None:
    """Serve the page until it is stopped."""
    _hold_little()
    redaction.install(hide_messages=share or on_a_space())
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    host = os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1")
    port = int(os.environ.get("GRADIO_SERVER_PORT", "7860"))
    try:
        limits.require_numbers()
    except UserError as error:
        raise SystemExit(str(error)) from None
    page = Page(chat.Workers(), shared=share)
    app = make_app(page)
    if starter.is_installed() and not starter.is_ready():
        # The first look at the demo waits for this; begun now, it is done when the page has been read.
        threading.Thread(target=_prepare_starter, daemon=True).start()
    threading.Thread(target=eyes.warm, daemon=True).start()
    runs.take_up()  # before anybody can ask for a turn: those who waited keep their places
    clearing.keep_sweeping()
    print(f"Tuner is at http://{host}:{port}", flush=True)
    if share:
        threading.Thread(target=_open_tunnel, args=(host, port), daemon=True).start()
    try:
        uvicorn.run(app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=3, timeout_keep_alive=KEEP_ALIVE_S)
    finally:
        page.worker.close()
        page.labeller.close()
        child.put_down()


def _prepare_starter() -> None:
    try:
        hub.tokenizer_dir(STARTER_MODEL, "", None)
    except UserError as error:
        log.warning("%s", error)


def _open_tunnel(host: str, port: int) -> None:
    """Gradio's public link, or plain words where its tunnel cannot be had."""
    try:
        from gradio.networking import setup_tunnel

        link = setup_tunnel(host, port, secrets.token_urlsafe(32), None, None)
        print(f"Public link (anybody who has it can use this machine): {link}", flush=True)
    except Exception as error:  # the tunnel's client is a download that fails in many ways
        print(
            f"No public link: Gradio's tunnel cannot be had here ({type(error).__name__}). The page itself is served as before.",
            flush=True,
        )
