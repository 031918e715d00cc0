"""Dropdowns that take what the page sends: whether there is such a choice, the engine says in its own words."""

import gradio as gr

MOST_LETTERS = 1000


def let_through() -> None:
    """Let every dropdown give its handler what was chosen.

    Gradio 6.31 looks into the choices that it last gave this visit. After a restart of the app a page that is still open has
    choices of which the new app knows nothing, and each click met "Value: … is not in the list of choices". Its list is no
    protection either: whoever calls an event raw writes into it what they like.
    """
    gr.Dropdown.preprocess = _preprocess


def _preprocess(box: gr.Dropdown, payload):
    if payload is None or (isinstance(payload, str) and len(payload) <= MOST_LETTERS):
        return payload
    raise gr.Error("This is not what the page sends. Reload it, then try again.", print_exception=False)
