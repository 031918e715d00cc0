"""What may stand in a log: tokens never, whoever prints them; visitors' words not where strangers visit."""

import io
import logging
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner import redaction
from tuner.errors import UserError, shorten
from tuner.redaction import Redacted, without_tokens

ROOT = Path(__file__).resolve().parent.parent
TOKEN = "hf_aB3dE6gH9jK2mN5pQ8sT1vW4yZ7bC0eF3h"
OAUTH = "hf_oauth_eyJhbGciOiJFZERTQSJ9.eyJzY29wZSI6WyJvcGVuaWQiXX0.c2lnbmF0dXJl-_x"


@pytest.mark.parametrize("text, kept", [
    (f"no access with {TOKEN}.", "no access with hf_…."),
    (f"no access with {OAUTH}, said the Hub", "no access with hf_…, said the Hub"),
    (f"Headers({{'authorization': 'Bearer {TOKEN}', 'accept': '*/*'}})", "Headers({'authorization': 'Bearer …', 'accept': '*/*'})"),
    ("authorization: bearer sk-something-else", "authorization: bearer …"),
    ("Authorization: Basic dXNlcjpwYXNzd29yZA==", "Authorization: Basic …"),
    ("cookie: session=eyJvYXV0aF9pbmZvIjogeyJhY2Nlc3NfdG9rZW4iOiAiaGZfeCJ9fQ==.aRk.x-y_z; theme=dark", "cookie: session=hf_…; theme=dark"),
    ("GET /login/callback?code=abc123&state=xyz&_target_url=%2F%3Frun%3Dk HTTP", "GET /login/callback?code=…&state=…&_target_url=… HTTP"),
    ("https://cdn.example/file?X-Amz-Signature=0a1b&part=2", "https://cdn.example/file?X-Amz-Signature=…&part=2"),
    ("GET /?run=aKeyThatNobodyGuesses&theme=dark", "GET /?run=…&theme=dark"),
    ("cannot clone https://alice:secret@huggingface.co/x", "cannot clone https://…@huggingface.co/x"),
    (f"in a repr: '\\n{TOKEN}\\n'", "in a repr: '\\nhf_…\\n'"),
    ('File "hf_hub_download.py", line 3, in hf_hub_download', 'File "hf_hub_download.py", line 3, in hf_hub_download'),
    ("basic settings, bearer of news, keys=3, exit code=1", "basic settings, bearer of news, keys=3, exit code=1"),
])
def test_what_looks_like_a_token_is_struck_out_and_nothing_else(text, kept):
    assert without_tokens(text) == kept


@given(st.text(max_size=200), st.sampled_from([TOKEN, OAUTH, f"Bearer {TOKEN}"]), st.text(max_size=200))
def test_a_token_in_any_text_is_struck_out_and_striking_out_twice_changes_nothing(before, secret, after):
    once = without_tokens(f"{before} {secret} {after}")
    assert secret.removeprefix("Bearer ")[:20] not in once
    assert without_tokens(once) == once


def test_a_token_in_use_is_struck_out_whatever_it_looks_like(monkeypatch):
    """And is itself not kept: only its hash and length are."""
    monkeypatch.setattr(redaction, "_known", type(redaction._known)())
    assert without_tokens("sent odd.token-1 to it") == "sent odd.token-1 to it"
    redaction.know("Bearer odd.token-1")
    assert without_tokens("sent odd.token-1 to it, and xodd.token-1.") == "sent hf_… to it, and xhf_…."
    assert "odd" not in repr(redaction._known)
    for number in range(redaction._MOST_KNOWN + 10):
        redaction.know(f"another-{number:05d}")
    redaction.know(None), redaction.know("short")
    assert len(redaction._known) == redaction._MOST_KNOWN


def test_an_error_that_a_visitor_reads_holds_no_token():
    error = UserError(f"The Hub refused alice/x (HTTP 400): your token {TOKEN} is odd.", f"{OAUTH} too")
    assert error.problems == ["The Hub refused alice/x (HTTP 400): your token hf_… is odd.", "hf_… too"]
    assert TOKEN not in repr(error) + str(error)


def fail(words: str) -> None:
    raise ValueError(words)


def printed(act, hide: bool) -> str:
    """What the act prints to the stream that it is given."""
    stream = io.StringIO()
    redacted = Redacted(stream, hide_messages=hide)
    act(redacted)
    redacted.flush()
    return stream.getvalue()


SECRET_ROW = f"my secret row\nof two lines with {TOKEN}"


def by_traceback(stream) -> None:
    try:
        try:
            fail(SECRET_ROW)
        except ValueError as error:
            raise RuntimeError(f"again: {SECRET_ROW}") from error
    except RuntimeError:
        traceback.print_exc(file=stream)  # as Gradio does
    print("and on it goes", file=stream)


def by_logging(stream) -> None:
    logger = logging.Logger("test")
    logger.addHandler(logging.StreamHandler(stream))
    try:
        fail(SECRET_ROW)
    except ValueError:
        logger.exception("ValueError in start, sent with %s", TOKEN)
    logger.warning("and on it goes")


def by_group(stream) -> None:
    try:
        raise ExceptionGroup(SECRET_ROW, [ValueError(SECRET_ROW), KeyError(SECRET_ROW)])
    except ExceptionGroup:
        traceback.print_exc(file=stream)
    print("and on it goes", file=stream)


@pytest.mark.parametrize("act", [by_traceback, by_logging, by_group])
def test_of_a_traceback_only_type_and_place_stay_where_strangers_visit(act):
    """On a machine of one's own the message stays too; a token never does."""
    shown = printed(act, hide=True)
    assert "secret row" not in shown and "two lines" not in shown and TOKEN not in shown
    assert "Traceback (most recent call last)" in shown and "\nValueError" in shown.replace("| ", "\n").replace("    ", "") and f"in {act.__name__}" in shown
    assert shown.endswith("and on it goes\n")
    own = printed(act, hide=False)
    assert "my secret row" in own and "of two lines with hf_…" in own and TOKEN not in own


def test_whatever_a_process_prints_passes_there():
    """Uncaught, in a thread, in a task that nobody waited for, as a warning, by a library's own handler made later."""
    code = f"""
from tuner import redaction
redaction.install(hide_messages=True, outputs=("stdout", "stderr"))
redaction.install(outputs=("stdout", "stderr"))  # again: nothing is printed twice
import asyncio, logging, threading, warnings
logging.getLogger("library").addHandler(logging.StreamHandler())
logging.getLogger("library").warning("sent %s", "{TOKEN}")
print("printed", "{TOKEN}", "and", end=" ")
print("on")
warnings.warn("warned with {TOKEN}")
def fail(): raise ValueError("my secret row\\nof two lines")
thread = threading.Thread(target=fail); thread.start(); thread.join()
async def main():
    async def its(): fail()
    task = asyncio.ensure_future(its())
    await asyncio.sleep(0.01)
asyncio.run(main())
import gc; gc.collect()
fail()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    said = done.stdout + done.stderr
    assert done.stdout == "printed hf_… and on\n"
    assert TOKEN not in said and "secret row" not in said and "two lines" not in said
    assert said.count("ValueError\n") == 3 and "sent hf_…" in said and "warned with hf_…" in said and "exception=ValueError(…)" in said


def test_a_progress_bar_is_seen_while_it_moves():
    stream = io.StringIO()
    redacted = Redacted(stream)
    redacted.write("\r 10 %")
    assert stream.getvalue() == ""
    redacted.flush()
    assert stream.getvalue() == "\r 10 %"
    redacted.write("\r 20 %\n")
    assert stream.getvalue() == "\r 10 %\r 20 %\n"


def test_a_cut_leaves_no_end_of_a_token():
    """Cut in the middle before it was struck out, its end stood in an error."""
    token = "hf_oauth_eyJhbGciOiJFZERTQSJ9.Canary7xQ2mN5pT8sV1wY4zB7cD0eF3gH6.kL9-nP2_rT5vX8"
    for most in (20, 40, 60):
        for text in (token, f"Run {token} is not here", "a" * 5000 + token + "b" * 10, token + " " + "c" * 5000):
            said = shorten(text, most)
            assert len(said) <= most and not any(token[place : place + 6] in said for place in range(3, len(token) - 6)), said
    assert shorten("x" * 100, 11) == "xxxxx…xxxxx"
