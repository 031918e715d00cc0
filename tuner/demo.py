"""`make demo`: the main job without a page, from the starter preset to five answers before and after."""

import sys

from tuner import cli, redaction, run
from tuner.home import DEMO_ROOT


def main() -> int:
    """Tune the starter model on the demo dataset, then print base and tuned answers to held-out prompts."""
    before = {its.id for its in run.mine(cli.LOCAL_OWNER)}
    code = cli.main(["train", str(DEMO_ROOT / "headlines.toml")])
    if code:
        return code
    made = next(its for its in run.mine(cli.LOCAL_OWNER) if its.id not in before)
    report = made.read("report")
    print(
        f"\nOn {report['held_out_rows']} held-out rows the loss went from {report['base']['loss']:.3f} to "
        f"{report['tuned']['loss']:.3f} ({report['change']:+.0%}).\n"
    )
    for answer in report["examples"]:
        print(f"  {answer['prompt']}")
        for who in ("base", "tuned"):
            if answer[who]["text"] is None:
                continue  # there was no time for it
            unended = "" if answer[who]["ended"] else " … (did not stop)"
            print(f"    {who:>5}: {' '.join(answer[who]['text'].split())}{unended}")
        print()
    print(f"Talk to it: {sys.executable} -m tuner chat {made.id}")
    return 0


if __name__ == "__main__":
    redaction.install()
    sys.exit(main())
