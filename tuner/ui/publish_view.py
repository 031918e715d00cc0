"""What the page says while a run is published, and afterwards."""

from tuner.ui import drawing


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
        return words + (f'<p class="quiet">What was published before is still at {_repository(its["before"])}.</p>' if its.get("before") else "")
    if what == "interrupted":
        return drawing.notice(f"Publishing was interrupted. {its['reason']}", "warning")
    return ""


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
