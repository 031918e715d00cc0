"""What the figures of a classifier say: measures, sentences, and the card's section."""

from tuner import cost, figures
from tuner.errors import shorten

# Above this many classes a card shows no confusion matrix: nobody could read it.
MOST_IN_A_CARD = 20
# A gap between how sure it is and how often it is right that is worth a word.
UNSURE = 0.1


def measures(report: dict) -> list[dict]:
    """Every figure of the report; as `figures.measures`, with "base" the classifier on the untouched base."""
    rows, base, tuned = f"{report['held_out_rows']:,} held-out rows", report["base"], report["tuned"]

    def one(name, unit, better, metric, key, change) -> dict:
        return {
            "name": name, "of": rows, "unit": unit, "per": "row", "better": better, "metric": metric, "base": base[key], "tuned": tuned[key],
            "low": change["low"], "high": change["high"], "general": False, "majority": report["majority"].get(key),
        }

    found = [
        one("Macro-F1", "share", "higher", "f1", "macro_f1", report["difference"]["macro_f1"]),
        one("Accuracy", "share", "higher", "accuracy", "accuracy", report["difference"]["accuracy"]),
        one("Loss", "nats", "lower", "loss", "loss", report["difference"]["loss"]),
    ]
    if its := report["probe"]["subjects"]:
        found.append({
            "name": f"Probe read from features ({its.get('about', 'the subject').split(' ', 1)[1]})", "of": f"{_items(its['items'], report['probe']['of'])} {its.get('of', 'general texts')}", "unit": "share", "per": "row", "better": "higher", "metric": "accuracy",
            "base": its["base"], "tuned": its["tuned"], "low": its["difference"]["low"], "high": its["difference"]["high"], "general": True, "majority": None,
        })
    return found


def _items(items: int, of: int) -> str:
    return f"{items}" if items >= of else f"{items} of {of}"


def printed(report: dict) -> list[str]:
    """The figures as lines for a terminal."""
    said = [f"{'':<32} {'largest':>10} {'frozen':>10}    {'tuned':>10}   change against frozen (95 % interval)"]
    for its in measures(report):
        shown = figures.shown(its)
        most = f"{100 * its['majority']:.1f} %" if its["majority"] is not None else ""
        said.append(f"{shown['name']:<32} {most:>10} {shown['base']:>10} -> {shown['tuned']:>10}   {shown['change']:<32} {its['of']}")
    said.append(f"{'Calibration error (ECE)':<32} {'':>10} {100 * report['base']['calibration']['ece']:>8.1f} % -> {100 * report['tuned']['calibration']['ece']:>8.1f} %")
    said += ["", f"{'class':<32} {'rows':>6} {'precision':>10} {'recall':>10} {'F1':>8}"]
    for name, its in zip(report["classes"], report["tuned"]["by_class"]):
        said.append(f"{shorten(name, 32):<32} {its['rows']:>6} {_share(its['precision']):>10} {_share(its['recall']):>10} {_share(its['f1']):>8}")
    return said


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def verdicts(report: dict) -> list[str]:
    """What the figures mean, in sentences; kept in the report itself."""
    base, tuned, change = report["base"], report["tuned"], report["difference"]["macro_f1"]
    moved = f"macro-F1 {100 * tuned['macro_f1']:.1f} % against {100 * base['macro_f1']:.1f} %"
    width = f"{100 * change['mean']:+.1f} points".replace("-", "−")
    if change["low"] is not None:
        width += f", 95 % interval {100 * change['low']:+.1f} to {100 * change['high']:+.1f}".replace("-", "−")
    against = "a logistic regression on the untouched base"
    if change["low"] is None:
        said = [f"Too few held-out rows to say much: {moved} of {against}."]
    elif change["low"] > 0:
        said = [f"Better than {against}: {moved} ({width})."]
    elif change["high"] < 0:
        said = [f"Worse than {against}: {moved} ({width})."]
    else:
        said = [f"No clear difference from {against}: {moved} ({width}), which may be chance."]
    if base.get("rows", report["train_rows"]) < report["train_rows"]:
        said.append(f"That regression learned from {_baseline_rows(report)}; from all of them it might do better.")
    said.append(f"Always saying the largest class is right in {100 * report['majority']['accuracy']:.1f} % of the rows; the tuned model in {100 * tuned['accuracy']:.1f} %.")
    if 1 < report["held_out_rows"] < figures.FEW_ROWS:
        said.append(f"With {report['held_out_rows']} held-out rows the intervals are rough.")
    seen = [(its["f1"], name, its) for name, its in zip(report["classes"], tuned["by_class"]) if its["rows"]]
    if len(seen) > 2:
        low, name, its = min(seen)
        said.append(f"Hardest is {shorten(name, 40)}: F1 {100 * low:.0f} % on {its['rows']} rows.")
    if pair := _confused(report):
        said.append(pair)
    if (gap := tuned["calibration"]["ece"]) > UNSURE:
        said.append(f"Its probabilities are off by {100 * gap:.0f} points on average: take them as an order, not as chances.")
    if report["best_step"] < report["last"]["step"]:
        said.append(
            f"The version of step {report['best_step']:,} is kept, since macro-F1 on these very rows was highest there, which flatters it; "
            f"that of the last step ({report['last']['step']:,}), which nobody chose, has {100 * report['last']['macro_f1']:.1f} %."
        )
    return said + [report["probe"]["says"]]


def _confused(report: dict) -> str:
    """The two classes that it takes for each other most often."""
    matrix, names = report.get("confusion", {}).get("tuned"), report["classes"]
    if not matrix:
        return ""
    count, given, guessed = max(((matrix[i][j], i, j) for i in range(len(names)) for j in range(len(names)) if i != j), default=(0, 0, 0))
    return f"Most often taken for another: {shorten(names[given], 40)} for {shorten(names[guessed], 40)}, {count} times." if count > 1 else ""


def forgetting(subjects: dict | None, words: tuple[str, str], of: int) -> tuple[bool, str]:
    """Whether the model's own features lost what others might want of them, and that in a sentence.

    Args:
        words: what was read from them, and of what; see a task's PROBE_WORDS.
        of: how many there are, of which perhaps fewer were asked for want of time.
    """
    if not subjects or subjects["difference"]["high"] is None:
        return False, "What was forgotten was not measured."
    told = f"{words[0]} of {_items(subjects['items'], of)} {words[1]} is read right from its features in {100 * subjects['base']:.0f} % before, {100 * subjects['tuned']:.0f} % after"
    if subjects["difference"]["high"] < 0:
        return True, f"Its features serve this task now, others less: {told}."
    return False, f"No loss in its features was seen: {told}."


def advice(report: dict) -> list[str]:
    """What the author may do about it, in sentences."""
    said, change = [], report["difference"]["macro_f1"]
    if missing := left_out(report):
        said.append(f"Its report had not the time for {' and '.join(missing)}: python -m tuner report RUN --all takes it.")
    if change["high"] is not None and change["high"] < 0:
        said.append("Train longer, with a higher learning rate, or take the simpler classifier.")
    weak = [name for name, its in zip(report["classes"], report["tuned"]["by_class"]) if its["rows"] and its["f1"] == 0]
    if weak:
        names, each = ", ".join(shorten(name, 30) for name in weak[:3]), "it" if len(weak) == 1 else "each"
        weights = "" if report.get("class_weights") == "balanced" else ", or set class_weights to balanced"
        said.append(f"It never gets {names} right: bring more rows of {each}{weights}.")
    return said


def before_and_after(run, report: dict) -> str:
    """The card's section, as Markdown."""
    lines = ["## Before and after", "", " ".join(report["says"]), ""]
    lines += ["| | measured on | largest class | untouched base + logistic regression | tuned | change (95 % interval) |", "|---|---|---|---|---|---|"]
    for its in measures(report):
        shown, most = figures.shown(its), "" if its["majority"] is None else f"{100 * its['majority']:.1f} %"
        lines.append(f"| {shown['name']} | {shown['of']} | {most} | {shown['base']} | {shown['tuned']} | {shown['change']} |")
    lines.append(f"| Calibration error (ECE) | {report['held_out_rows']:,} held-out rows | | {100 * report['base']['calibration']['ece']:.1f} % | {100 * report['tuned']['calibration']['ece']:.1f} % | |")
    lines += ["", "| class | held-out rows | precision | recall | F1 |", "|---|---|---|---|---|"]
    for name, its in zip(report["classes"], report["tuned"]["by_class"]):
        lines.append(f"| {_cell(name)} | {its['rows']} | {_share(its['precision'])} | {_share(its['recall'])} | {_share(its['f1'])} |")
    lines += _matrix(report)
    losses = [event["loss"] for event in run.events()[0] if event["kind"] == "step"]
    lines += ["", (
        "The held-out rows were not trained on. The middle column is a logistic regression on the untouched base's standardised features (of texts the mean over their tokens, of pictures what the head reads), its "
        f"strength (C = {report['base']['strength']:g}) chosen by cross-validation on {_baseline_rows(report)}. Changes are against it; intervals are paired bootstraps over rows. "
        "The last share of the first table is how well a linear classifier reads what Tuner's own probe is about from the model's features, before and after: it shows "
        f"what was forgotten. The version of step {report['best_step']} of {run.read('plan')['steps']} is the one published, chosen by macro-F1 on held-out rows. The training loss "
        f"went from {losses[0]:.3f} to {losses[-1]:.3f}."
    )]
    return "\n".join(lines)


def left_out(report: dict) -> list[str]:
    """What it was made without for want of time, in words."""
    most = min(report["train_rows"], cost.LINE_ROWS)
    rows = [f"a baseline on {most:,} training rows"] if report["base"].get("rows", most) < most else []
    return rows + (["the whole probe"] if report["probe"]["items"] < report["probe"]["of"] else [])


def _baseline_rows(report: dict) -> str:
    """What the classifier on the untouched base learned from."""
    rows, of = report["base"].get("rows", report["train_rows"]), report["train_rows"]
    return "the training rows" if rows >= of else f"{rows:,} of the {of:,} training rows"


def _matrix(report: dict) -> list[str]:
    names, matrix = report["classes"], report.get("confusion", {}).get("tuned")
    if not matrix or len(names) > MOST_IN_A_CARD:
        return []
    head = " | ".join(_cell(name) for name in names)
    return [
        "", "Held-out rows by their own class (lines) and the one that the tuned model gives them (columns):", "",
        f"| | {head} |", f"|---|{'---|' * len(names)}",
        *(f"| **{_cell(name)}** | {' | '.join(map(str, line))} |" for name, line in zip(names, matrix)),
    ]


def _cell(text: str) -> str:
    return shorten(" ".join(text.split()), 40).translate(str.maketrans("", "", "|[]<>`{}"))
