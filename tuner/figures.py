"""What a report says: intervals, agreement of texts, and the words and rows that the page, the card and the terminal print."""

import math
import re
import unicodedata
from collections import Counter

import numpy as np

# Resamples of a bootstrap: the ends of a 95 % interval then wobble by about a thirtieth of its width.
RESAMPLES = 2000
# Answers of at most so many words can agree word by word; longer ones may be right and share few.
SHORT_WORDS = 16
# Below this many rows an interval is itself a guess.
FEW_ROWS = 20
# Tuning moves all texts a little, and a paired test sees that; less than this (5 % of perplexity) nobody would notice.
NOTICED_NATS = math.log(1.05)


def interval(differences, weights=None, seed: int = 0) -> dict:
    """The mean of paired differences with its 95 % bootstrap interval (percentiles; Efron 1979).

    Args:
        differences: (n,) tuned minus base, one for each row.
        weights: (n,) what each row counts for, such as its tokens; all alike if None.

    Returns:
        {"mean", "low", "high", "rows"}; low and high are None for fewer than two rows, all for none.
    """
    values = np.asarray(differences, np.float64)
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, np.float64)
    if not len(values):
        return {"mean": None, "low": None, "high": None, "rows": 0}
    products = values * weights
    mean = float(products.sum() / weights.sum())
    if len(values) < 2:
        return {"mean": mean, "low": None, "high": None, "rows": len(values)}
    random = np.random.default_rng(seed)
    means = np.empty(RESAMPLES)
    for index in range(RESAMPLES):
        drawn = random.integers(len(values), size=len(values))
        means[index] = products[drawn].sum() / weights[drawn].sum()
    low, high = np.percentile(means, [2.5, 97.5])
    return {"mean": mean, "low": float(low), "high": float(high), "rows": len(values)}


def wilson(hits: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927): (0, 1) where nothing was counted."""
    if not count:
        return 0.0, 1.0
    z, share = 1.959964, hits / count
    middle = share + z * z / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, (middle - half) / (1 + z * z / count)), min(1.0, (middle + half) / (1 + z * z / count))


# Scripts that put no spaces between words count by the letter.
_WORD = re.compile(r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]|[^\W\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]+")


def words(text: str) -> list[str]:
    """The text's words, small letters only, without punctuation."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def exact_match(said: str, wanted: str) -> bool:
    """Whether two texts are the same but for case, spaces, and punctuation at their ends."""
    def plain(text: str) -> str:
        line = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
        return line.strip(" .,;:!?\"'“”‘’«»") or line

    return plain(said) == plain(wanted)


def token_f1(said: str, wanted: str) -> float:
    """How far two texts share their words, as SQuAD scores answers (Rajpurkar 2016) but with the articles kept: 0 to 1."""
    a, b = Counter(words(said)), Counter(words(wanted))
    if not a or not b:
        return float(exact_match(said, wanted))
    shared = (a & b).total()
    return 2 * shared / (a.total() + b.total())


# What is printed ---------------------------------------------------------------------------------------------------


def measures(report: dict) -> list[dict]:
    """Every figure of the report, before and after, in the order in which it is shown.

    Returns:
        name, of (what was measured), unit ("nats", "share", ""), better ("lower" or "higher"), base, tuned, and low and
        high: the 95 % interval of the change, None where there is none. metric: its name in a model card's model-index.
        general: whether it was measured on the probe instead of the held-out rows.
    """
    found = []

    def add(name, of, unit, better, metric, base, tuned, change, general=False) -> None:
        found.append({
            "name": name, "of": of, "unit": unit, "better": better, "metric": metric, "base": base, "tuned": tuned,
            "low": change["low"], "high": change["high"], "general": general,
        })

    base, tuned = report["base"], report["tuned"]
    rows = _rows(report["held_out_rows"], "held-out row")
    add("Loss", rows, "nats", "lower", "loss", base["loss"], tuned["loss"], report["difference"]["loss"])
    add("Perplexity", rows, "", "lower", "perplexity", base["perplexity"], tuned["perplexity"], report["difference"]["perplexity"])
    add("Token accuracy", rows, "share", "higher", "accuracy", base["token_accuracy"], tuned["token_accuracy"], report["difference"]["token_accuracy"])
    told = report["answers"]
    if short := told["short"]:
        of = _rows(short["rows"], "short answer") if short.get("of", short["rows"]) == short["rows"] else f"{short['rows']:,} of {_rows(short['of'], 'short answer')}"
        for key, name, metric in (("exact_match", "Exact match", "exact_match"), ("f1", "Token F1", "f1")):
            add(name, of, "share", "higher", metric, short["base"][key], short["tuned"][key], short["difference"][key])
    if told["asked"]:
        add("Answers that stop by themselves", _rows(told["asked"], "short answer" if told.get("only_short") else "answer"), "share", "higher", "stopped", told["base"]["stopped"], told["tuned"]["stopped"], told["difference"]["stopped"])
    probe = report["probe"]
    if its := probe["questions"]:
        add("General questions right", _rows(its["items"], "question"), "share", "higher", "accuracy", its["base"], its["tuned"], its["difference"], general=True)
    if its := probe["texts"]:
        add("Loss on general text", _rows(its["items"], "text"), "nats", "lower", "loss", its["base"], its["tuned"], its["difference"], general=True)
    return found


def shown(measure: dict) -> dict:
    """One of `measures` as text: {"name", "of", "base", "tuned", "change"}; the change with its interval."""
    share = measure["unit"] == "share"

    def value(number: float) -> str:
        return f"{100 * number:.1f} %" if share else f"{number:,.1f}" if number >= 1000 else f"{number:.4f}" if measure["unit"] else f"{number:.2f}"

    def signed(number: float) -> str:
        digits = f"{100 * number:+.1f}" if share else f"{number:+.4f}" if measure["unit"] else f"{number:+.2f}"
        return re.sub(r"^[+-](?=0(\.0+)?$)", "", digits).replace("-", "−")

    change = signed(measure["tuned"] - measure["base"])
    if measure["low"] is not None:
        change += f" ({signed(measure['low'])} to {signed(measure['high'])})"
    unit = f"nats a {measure.get('per', 'token')}" if measure["unit"] == "nats" else "%"
    name = f"{measure['name']} ({unit})" if measure["unit"] else measure["name"]
    return {"name": name.replace(" (%)", ""), "of": measure["of"], "base": value(measure["base"]), "tuned": value(measure["tuned"]), "change": change}


def verdict(measure: dict) -> str:
    """What the interval of one of `measures` says of its change, in two or three words; "" where there is no interval."""
    low, high = measure["low"], measure["high"]
    if low is None:
        return ""
    if low == high == 0:
        return "the same"
    if low <= 0 <= high:
        return "may be chance"
    if (high < 0) == (measure["better"] == "lower"):
        return "better"
    return "a little worse" if measure["general"] and measure["unit"] == "nats" and low <= NOTICED_NATS else "worse"


def rows_measured(rows: int | None, held_out: int | None) -> str:
    """Which held-out rows a loss was measured on: "all 60 rows", "24 of 60 rows"; "" where nobody knows."""
    if rows is None or held_out is None:
        return f"{rows or held_out:,} rows" if rows or held_out else ""
    return f"all {held_out:,} rows" if rows >= held_out else f"{rows:,} of {held_out:,} rows"


def _rows(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def verdicts(report: dict, last_step: int, seen: str = "") -> list[str]:
    """What the figures mean, in sentences; kept in the report itself.

    Args:
        last_step: where training ended; the version that is kept may be an earlier one.
        seen: why, where the run itself has seen it; see `watch.memorising`.
    """
    said, base, tuned, loss = [], report["base"], report["tuned"], report["difference"]["loss"]
    rows, of = report["held_out_rows"], report.get("held_out_of", report["held_out_rows"])
    moved = f"the loss went from {base['loss']:.4f} to {tuned['loss']:.4f}"
    if loss["low"] is None:
        said.append(f"One held-out row alone says little: there {moved}.")
    elif loss["high"] < 0:
        said.append(f"Better on rows it never saw: {moved}, and {report['rows_better']:,} of {_rows(rows, 'row')} became likelier.")
    elif loss["low"] > 0:
        said.append(f"Worse on rows it never saw: {moved}, and {report['rows_worse']:,} of {_rows(rows, 'row')} became less likely.")
    else:
        said.append(f"No clear change on rows it never saw: {moved}, which may be chance.")
    if 1 < rows < FEW_ROWS:
        said.append(f"With {rows} held-out rows the intervals are rough.")
    if rows < of:
        said.append(f"Measured on {rows:,} of {of:,} held-out rows, drawn with the seed: all of them would have taken longer than a report may.")
    if report["best_step"] < last_step:
        said.append(f"The version of step {report['best_step']:,} is kept, not that of the last step ({last_step:,}): the held-out loss was lowest there.")
        if seen:
            said.append(seen)
    told = report["answers"]
    if told["asked"]:
        stops = told["tuned"]["stopped"]
        if stops < 0.9:
            said.append(f"Of its answers {100 * stops:.0f} % end by themselves within {_within(told)} (base: {100 * told['base']['stopped']:.0f} %). The others were not at their end by then.")
    if told["asked"] < told["of"]:
        which, short = "chosen by the seed", "those whose own answer is short"
        if told["only_short"]:
            which = short if rows == of and told["asked"] == told["short"]["of"] else f"{which} from {short}"
        said.append(f"{told['asked']:,} of {told['of']:,} held-out rows were answered in full, {which}, to keep to the time{'; the losses are those of all' if rows == of else ''}.")
    return said + [report["probe"]["says"]]


def _within(told: dict) -> str:
    """How many tokens the counted answers may have had."""
    short, others = (told["paces"].get(kind, {}).get("most_tokens") for kind in ("short", "others"))
    if others is None or told["only_short"] or short == others:
        return f"{short or others} tokens"
    return f"{others} tokens" + (f", {short} where the row's own answer is short" if short else "")


def forgetting(questions: dict | None, texts: dict | None) -> tuple[bool, str]:
    """Whether general ability fell, and that in a sentence.

    It fell where the interval of questions answered right lies below zero, or where that of the loss on plain text lies
    above NOTICED_NATS.
    """
    fell, parts = [], []
    if questions and questions["difference"]["high"] is not None:
        parts.append(f"{100 * questions['base']:.0f} % of {questions['items']} general questions right before, {100 * questions['tuned']:.0f} % after")
        if questions["difference"]["high"] < 0:
            fell.append("it answers fewer general questions")
    if texts and texts["difference"]["high"] is not None:
        rise = 100 * (math.exp(min(texts["tuned"] - texts["base"], 80.0)) - 1)
        parts.append(f"perplexity of {texts['items']} general texts {f'{rise:+.0f}'.replace('-', '−')} %")
        if texts["difference"]["low"] > NOTICED_NATS:
            fell.append("ordinary text has become less likely to it")
    if not parts:
        return False, "General ability was not measured."
    figures = "; ".join(parts)
    if fell:
        return True, f"General ability fell: {' and '.join(fell)} ({figures})."
    if questions and questions["difference"]["mean"] < 0:
        return False, f"No clear loss of general ability ({figures}): a difference of this size may be chance."
    return False, f"No loss of general ability was seen ({figures})."


def advice(report: dict) -> list[str]:
    """What the author may do about it, in sentences; no reader of a card needs them."""
    said, low = [], report["difference"]["loss"]["low"]
    if low is not None and low > 0:
        said.append("Lower the learning rate, or bring more rows.")
    if report["probe"]["fell"]:
        said.append("Fewer epochs, a lower learning rate or a lower rank forget less.")
    return said


def of(run) -> dict | None:
    """A run's report; None where there is none, or one of an older form (`python -m tuner report RUN` makes it again)."""
    report = run.read("report")
    return report if report and "probe" in report else None
