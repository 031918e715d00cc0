"""Publishing on the page: what is offered, its buttons, and what is said while a run is published, and afterwards."""

import gradio as gr

from tuner import card, hub, publish
from tuner import run as runs
from tuner.errors import Hint, UserError
from tuner.ui import drawing, subjects


def draw(its) -> None:
    """A fold with what is published, under which name, its card, and how it goes."""
    with gr.Accordion("Publish to the Hugging Face Hub", open=False, elem_id="publish") as its.publish_panel:
        its.publish_about = gr.HTML(drawing.empty("No tuned model yet: start one on the Fine-tune tab; the quote there says about how long it takes."), elem_id="publish-about")
        with gr.Row():
            its.name = gr.Textbox(label="Repository name", info="In your own account.", max_length=96, elem_id="repo-name", scale=3, min_width=220)
            its.private = gr.Checkbox(True, label="Private", info="Only you can see it. You can open it later.", elem_id="private", scale=1, min_width=160)
        its.blind_in_card = gr.Checkbox(False, label="Tell the blind test in the card", info="The votes you gave under “Which is better?”, with their interval.", visible=False, elem_id="blind-in-card")
        its.show_card = gr.Button("Show the card first", interactive=False, elem_id="show-card")
        its.card = gr.Code("", language="markdown", label="README.md, as it will be pushed", visible=False, lines=12, max_lines=24, elem_id="card")
        its.push = gr.Button("Push", variant="primary", interactive=False, elem_id="push")
        its.pushed = gr.HTML("", elem_id="pushed")
        its.replace = gr.Button("Put this one in its place", visible=False, elem_id="replace")
        its.publish_seen = gr.State("")
        its.publish_timer = gr.Timer(1.0, active=False)
        its.open_up = gr.Button("Make it public", visible=False, elem_id="make-public")


def parts(its) -> list:
    """The components that `offered` fills."""
    return [its.publish_about, its.name, its.card, *_published(its)]


def _published(its) -> list:
    return [its.pushed, its.push, its.replace, its.open_up, its.publish_timer, its.publish_seen]


def offered(page, run: runs.Run | None, visitor, request: gr.Request | None) -> list:
    """What can be published where this run is chosen, or none."""
    no_card = gr.update(value="", visible=False)
    if run is None:
        shown = ["", gr.update(interactive=False, value="Push"), gr.update(visible=False), gr.update(visible=False), gr.Timer(active=False), ""]
        return [drawing.empty("Choose one of your runs above to publish it."), gr.skip(), no_card, *shown]
    about = f"<p>Publishes <b>{drawing.long_name(run.title)}</b>: the adapter, its card and the record of its run. No rows of the dataset.</p>"
    its_state = publish.state(run)
    shown = _shown(page, run, its_state, request)
    if not visitor.token:
        about += drawing.notice("Nobody is signed in. On a Space use the button at the top; on your own machine run hf auth login in a terminal.", "warning")
        shown[1], shown[2] = gr.update(interactive=False, value="Push"), gr.update(visible=False)
    return [about, its_state.get("name") or _repo_name(run), no_card, *shown]


def wire(its) -> None:
    """Connect the buttons."""
    from tuner.ui.app import in_words

    page, who = its.page, [its.browser]
    quiet = dict(show_progress="hidden", api_visibility="private")

    @in_words
    def show_card(choice, name, browser_id, request: gr.Request, token: gr.OAuthToken | None):
        visitor = page.visitor(browser_id, token)
        run = _chosen_run(choice, visitor)
        repo_id = f"{hub.whoami(visitor.token) if visitor.token else 'you'}/{publish.check_name(name)}"
        return gr.update(value=card.build(run, repo_id, page.link(repo_id, request)), visible=True)

    @in_words
    def push(choice, name, private, browser_id, request: gr.Request, token: gr.OAuthToken | None):
        visitor = page.visitor(browser_id, token)
        run = _chosen_run(choice, visitor)
        start = page.link("", request)  # now: the thread outlives this request
        publish.begin(run, name, private is not False, visitor.token, lambda repo_id: start + repo_id)
        return _shown(page, run, publish.state(run), request)

    @in_words
    def replace(choice, browser_id, request: gr.Request, token: gr.OAuthToken | None):
        """The name that was pushed to last holds another run's adapter, and the visitor has read which."""
        visitor = page.visitor(browser_id, token)
        run = _chosen_run(choice, visitor)
        its_state, start = publish.state(run), page.link("", request)
        if its_state["state"] == "taken":  # a second click finds it going
            its_name, private, there = its_state["name"], its_state["private"], its_state["there"]
            publish.begin(run, its_name, private, visitor.token, lambda repo_id: start + repo_id, replace=there)
        return _shown(page, run, publish.state(run), request)

    @in_words
    def poll(choice, seen, browser_id, request: gr.Request, token: gr.OAuthToken | None):
        owner = page.visitor(browser_id, token).owner
        if not subjects.is_mine(choice) or not runs.is_of(owner, str(choice)):  # signed out meanwhile: the push goes on by itself
            return [gr.skip()] * (len(published) - 2) + [gr.Timer(active=False), ""]
        run = runs.find(owner, str(choice))
        shown = _shown(page, run, publish.state(run), request)
        return [gr.skip()] * len(published) if shown[-1] == seen else shown

    @in_words
    def open_up(choice, browser_id, request: gr.Request, token: gr.OAuthToken | None):
        visitor = page.visitor(browser_id, token)
        run = _chosen_run(choice, visitor)
        return _shown(page, run, publish.open_up(run, visitor.token), request)

    published = _published(its)
    spin = dict(show_progress="minimal", show_progress_on=[its.pushed], api_visibility="private")
    its.show_card.click(show_card, [its.subject, its.name, *who], [its.card], **quiet)
    its.push.click(push, [its.subject, its.name, its.private, *who], published, **spin)
    its.replace.click(replace, [its.subject, *who], published, **spin)
    its.publish_timer.tick(poll, [its.subject, its.publish_seen, *who], published, concurrency_limit=None, trigger_mode="once", **quiet)
    its.open_up.click(open_up, [its.subject, *who], published, **spin)


def _chosen_run(choice, visitor) -> runs.Run:
    if not subjects.is_mine(choice):
        raise Hint("Choose one of your runs under “Model” first; that is what gets published.")
    run = runs.find(visitor.owner, str(choice))
    if not run.read("done"):
        raise UserError(f"This run is {run.state()}. Publish it once it is done.")
    return run


def _shown(page, run: runs.Run, its_state: dict, request: gr.Request | None) -> list:
    """What the publishing part shows of a run: the words, the buttons, whether to look again, and what was seen."""
    what, live = its_state["state"], its_state["state"] in publish.LIVE
    link = page.link(its_state["repo_id"], request) if its_state.get("repo_id") else ""
    label = "Publishing …" if live else "Push again" if what not in ("none", "intended", "taken") else "Push"
    return [
        state(its_state, link), gr.update(interactive=not live, value=label), gr.update(visible=what == "taken"),
        gr.update(visible=what in ("verified", "unverified") and its_state.get("private", False)), gr.Timer(active=live),
        f"{run.id}/{what}/{its_state.get('sent_bytes', 0)}/{its_state.get('reason', '')}",
    ]


def _repo_name(run: runs.Run) -> str:
    """A first proposal: base and title in the Hub's letters."""
    words = f"{run.recipe.base_model.split('/')[-1]}-{run.title}".lower()
    kept = "".join(char if char.isascii() and (char.isalnum() or char in "._") else "-" for char in words)
    while "--" in kept:
        kept = kept.replace("--", "-")
    return kept.strip("-._")[:80].strip("-._")


# In words ---------------------------------------------------------------------------------------------------------


def state(its: dict, link: str) -> str:
    """The state of publishing (see `publish.state`) as HTML.

    Args:
        link: the address to share, for a repository that is there; "" before.
    """
    what = its["state"]
    if what == "intended":
        return f'<p class="quiet">You meant to publish this as {drawing.text(its["name"])}. Nothing has been sent yet: Push does it.</p>'
    if what == "checking":
        return _going("Checking the account, the card and every file …", its)
    if what == "pushing":
        sent, total = its["sent_bytes"], max(1, its["total_bytes"])
        bar = f'<progress max="{total}" value="{sent}" aria-label="Sent"></progress>'
        return _going(f"Pushing {sent / 1e6:.1f} of {total / 1e6:.1f} MB to {drawing.text(its['repo_id'])}", its, bar)
    if what == "verifying":
        return _going(f"Verifying: downloading {drawing.text(its['repo_id'])} again and comparing every byte, then what plain PEFT computes with it …", its)
    if what == "verified":
        return f'<div class="pushed"><p><b>Published and verified</b> as {_repository(its)}</p>{_share(its, link)}{_proof(its)}</div>'
    if what == "unverified":
        words = drawing.notice(f"Published but NOT verified. {its['reason']}", "warning")
        return f'{words}<div class="pushed"><p>It lies at {_repository(its)}</p>{_share(its, link)}</div>'
    if what == "failed":
        words = drawing.notice(f"Not published. {its['reason']}\nThe adapter is safe in your run.", "error")
        return words + _before(its)
    if what == "taken":
        return drawing.notice(its["reason"], "warning") + _before(its)
    if what == "replaced":
        return drawing.notice(its["reason"], "warning") + f'<div class="pushed"><p>It lies at {_repository(its)}</p></div>'
    if what == "interrupted":
        return drawing.notice(f"Publishing was interrupted. {its['reason']}", "warning")
    return ""


def _before(its: dict) -> str:
    return f'<p class="quiet">What was published before is still at {_repository(its["before"])}.</p>' if its.get("before") else ""


def _going(words: str, its: dict, more: str = "") -> str:
    reason = f'<p class="quiet">{drawing.text(its["reason"])}</p>' if its.get("reason") else ""
    return f'<div class="pushing" role="status"><p>{words}</p>{more}{reason}</div>'


def _repository(its: dict) -> str:
    return f'<a href="{drawing.text(its["url"])}" target="_blank" rel="noopener">{drawing.text(its["repo_id"])}</a>'


def _share(its: dict, link: str) -> str:
    private = its.get("private", True)
    who = "It is private, so the link opens for you only; others are told so. Make it public to share it." if private else "It is public: anybody can open the link and chat with it."
    return f'<p>Share: <a href="{drawing.text(link)}" id="share-link">{drawing.text(link)}</a></p><p class="quiet">{who}</p>'


def _proof(its: dict) -> str:
    seen = its.get("verdict", {})
    return (
        f'<p class="quiet small">Downloaded again into an empty cache: all {len(its["sha256"])} files have the hashes they were sent with, and plain PEFT '
        f'computes the same logits as with the run’s own adapter at all {seen.get("tokens", 0)} tokens of {seen.get("prompts", 0)} fixed prompts. '
        f'Commit {drawing.text(its["commit"][:12])}.</p>'
    )
