"""The page's handlers as clicks reach them: called by their parameters' names, in a page that is built once and not served."""

import inspect

import pytest


def handlers(*rooms: str) -> dict:
    """Name -> (what it does, how many components it fills) of these files of tuner/ui."""
    from tuner import chat
    from tuner.ui.app import Page, build

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SYSTEM", raising=False)
        page = build(Page(chat.Workers()))
    found = [its for its in page.fns.values() if its.fn is not None and its.fn.__module__.removeprefix("tuner.ui.") in rooms]
    return {its.fn.__name__: (its.fn, len(its.outputs)) for its in found}


def call(handler: tuple, *form, **values) -> list:
    """What a handler puts on the page, one value a component; a parameter without a value is "" for the browser, else None."""
    fn, outputs = handler
    asked = [values.get(each, "" if each == "browser_id" else None) for each, its in inspect.signature(fn).parameters.items() if its.kind is not its.VAR_POSITIONAL]
    shown = fn(*asked, *form)
    shown = list(shown) if isinstance(shown, (list, tuple)) else [shown]
    assert len(shown) == outputs, f"{fn.__name__} gives {len(shown)} values for {outputs} components"
    return shown
