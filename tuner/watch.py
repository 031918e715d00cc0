"""What a run's curves show, in words: each sentence with its rule and its thresholds, all in this file.

A curve is a list of events in the order of their steps: `step` events with step, loss and learning_rate, `eval` events
with step and loss. Losses are in nats a token. The held-out rows are the same at each evaluation, so their loss is far
less noisy than the training loss, whose rows differ from step to step.
"""

import math
from dataclasses import dataclass, replace
from statistics import fmean, median, variance

# A change of the held-out loss that counts, as a share of it; a change below the second one is none.
CLEAR, FLAT = 0.01, 0.005
# A difference counts where it is so many times what chance would make of it.
SURE = 3.0
# Three evaluations that fall one after the other are common in a flat curve, so these must fall further.
SURE_FALL = 5.0
# Training losses are compared as means over this share of the run's steps, at least and at most so many.
WINDOW_SHARE, WINDOW_LEAST, WINDOW_MOST = 0.1, 5, 100
# Training loss that falls falls by at least this share; one that diverges rises by at least that.
FALLS, RISES = 0.02, 0.15
# Evaluations since the best one before it is called memorising.
WORSE_EVALUATIONS = 3
# Flat: evaluations in a row, over this share of the run, all within this share of their mean.
FLAT_EVALUATIONS, FLAT_SPAN, FLAT_RANGE = 4, 1 / 3, 0.02
# Before this share of the run nothing is said of how it goes on: "improving", and "the learning rate looks too low".
EARLY = 0.5
# A spike is so many times the mean of the steps before it, so many of their standard deviations above it, and so many nats.
SPIKE_TIMES, SPIKE_DEVIATIONS, SPIKE_NATS = 2.0, 6.0, 0.2
# Steps that it is compared with: at least and at most. Fewer than 20 make the deviation of rough losses too small too often.
SPIKE_AFTER, SPIKE_BEFORE = 10, 20
# So many spikes make a learning rate that looks too high.
MANY_SPIKES = 3
# The loss has hardly moved where it fell by less than this share; a rate above that one is not called too low.
HARDLY, NOT_LOW = 0.02, 5e-4


@dataclass(frozen=True)
class Said:
    """One sentence.

    Args:
        rule: its name; a run says each rule once.
        step: where, or since when.
    """

    rule: str
    step: int
    message: str


def look(steps: list[dict], evals: list[dict], total: int, kept: int | None = None) -> list[Said]:
    """Every sentence that is sure now, after the newest evaluation.

    Args:
        total: the run's steps, as planned.
        kept: the step of the version that is kept, where it is not the one of the lowest held-out loss.
    """
    steps = [its for its in steps if math.isfinite(its["loss"])]
    evals = [its for its in evals if math.isfinite(its["loss"])]
    rules = (memorising, rate_too_high, rate_too_low, flat, improving, unfinished)
    said = [said for rule in rules if (said := rule(steps, evals, total)) is not None]
    if kept is None:
        return said
    return [replace(its, message=its.message.replace(f"version of step {its.step:,} is kept", f"version of step {kept:,} is kept")) for its in said]


# The rules --------------------------------------------------------------------------------------------------------


def memorising(steps: list[dict], evals: list[dict], total: int) -> Said | None:
    """The held-out loss rises for several evaluations, by more than its noise, while the training loss falls."""
    best = _best(evals)
    if best < 1 or len(evals) - 1 - best < WORSE_EVALUATIONS or evals[best]["step"] == 0:
        return None
    low, now, since = evals[best]["loss"], evals[-1]["loss"], evals[best]["step"]
    later = [its["loss"] for its in evals[best + 1 :]]
    # The lowest of many is low by luck too: what counts is the level round it.
    level = median(its["loss"] for its in evals[best - 1 : best + 2])
    rising = _slope(later) > 0 and min(later[-2:]) - level > _margin(evals, low)
    if not rising or _training_change(steps, since, total) > -FALLS:
        return None
    return Said(
        "memorising", since,
        f"The held-out loss has been getting worse since step {since:,} ({low:.3f} → {now:.3f}) while the training loss falls: "
        f"it is memorising. The version of step {since:,} is kept. Fewer epochs, more rows or a lower rank would help.",
    )


def rate_too_high(steps: list[dict], evals: list[dict], total: int) -> Said | None:
    """Training makes it worse: than the base model at every evaluation, or than it was itself; or it keeps spiking."""
    newest = steps[-1]["step"] if steps else 0
    rate = f" (it is {max(its['learning_rate'] for its in steps):.1e} at most)" if steps else ""
    advice = f"The learning rate looks too high{rate}. Try a third of it."
    begun = next((its for its in evals if its["step"] == 0), None)
    after = [its for its in evals if its["step"]]
    if begun and len(after) >= 2 and min(its["loss"] for its in after) - begun["loss"] > 2 * CLEAR * begun["loss"] + _noise(evals) * SURE:
        return Said("rate_too_high", 0, f"The held-out loss is worse than before the first step ({begun['loss']:.3f} → {after[-1]['loss']:.3f}). {advice}")
    spiked = spikes(steps)
    if len(spiked) >= MANY_SPIKES:
        return Said("rate_too_high", spiked[-1], f"The loss spiked {len(spiked)} times by step {newest:,}. {advice}")
    windows = _windows(steps, total)
    if len(windows) < 3 or len(after) < 2:
        return None
    lowest = min(windows[:-1], key=lambda its: fmean(its_["loss"] for its_ in its))
    rises = lowest[0]["step"] < windows[-2][0]["step"] and min(_change(lowest, its) for its in windows[-2:]) > RISES
    best = evals[_best(evals)]
    if rises and evals[-1]["loss"] - best["loss"] > _margin(evals, best["loss"]):
        since = lowest[-1]["step"]
        return Said("rate_too_high", since, f"The training loss has risen since step {since:,}, and the held-out loss with it. {advice}")
    return None


def rate_too_low(steps: list[dict], evals: list[dict], total: int) -> Said | None:
    """After half of the run neither loss has moved, at a rate that would be low for an adapter."""
    windows = _windows(steps, total)
    if len(evals) < 3 or len(windows) < 3 or evals[0]["step"] or evals[-1]["step"] < EARLY * total:
        return None
    rate = max(its["learning_rate"] for its in steps)
    first, now = evals[0]["loss"], evals[-1]["loss"]
    moved = any(abs(its["loss"] - first) > HARDLY * first for its in evals)
    if moved or abs(_change(windows[0], windows[-1])) > HARDLY or rate > NOT_LOW:
        return None
    step = evals[-1]["step"]
    return Said(
        "rate_too_low", step,
        f"By step {step:,} the loss has hardly moved ({first:.3f} → {now:.3f}). The learning rate looks too low (it is {rate:.1e} at "
        "most). Try three to ten times as much, or the learning-rate finder.",
    )


def flat(steps: list[dict], evals: list[dict], total: int) -> Said | None:
    """Several evaluations over a third of the run stay within a narrow band without a trend, after the loss had moved."""
    after = [its for its in evals if its["step"]]
    if len(after) < FLAT_EVALUATIONS or (evals[0]["step"] == 0 and evals[0]["loss"] - min(its["loss"] for its in after) < HARDLY * evals[0]["loss"]):
        return None
    for start in range(len(after) - FLAT_EVALUATIONS + 1):  # the longest stretch first
        losses = [its["loss"] for its in after[start:]]
        mean = fmean(losses)
        if after[-1]["step"] - after[start]["step"] < FLAT_SPAN * total:
            return None
        trend = _slope(losses) * (len(losses) - 1)
        level = mean - min(its["loss"] for its in evals)  # a run that broke and stays broken is flat too, and another matter
        if max(losses) - min(losses) <= FLAT_RANGE * mean and abs(trend) <= 2 * FLAT * mean and level <= FLAT_RANGE * mean:
            since = after[start]["step"]
            return Said(
                "flat", since, f"The held-out loss has been flat since step {since:,} (about {mean:.3f}). More steps on these rows would bring little.",
            )
    return None


def improving(steps: list[dict], evals: list[dict], total: int) -> Said | None:
    """From half of the run on, the last evaluations fell one after the other, by more than noise."""
    if len(evals) < 4 or evals[-1]["step"] < EARLY * total or evals[-1]["step"] >= total:
        return None
    return _falling("improving", evals, "Still improving: the held-out loss fell from {before:.3f} to {now:.3f} since step {since:,}.")


def unfinished(steps: list[dict], evals: list[dict], total: int) -> Said | None:
    """The same at the last evaluation of a run that went to its end."""
    if len(evals) < 4 or evals[-1]["step"] < total:
        return None
    return _falling(
        "unfinished", evals,
        "It was still improving when it ended ({before:.3f} → {now:.3f} since step {since:,}). More epochs would likely lower the held-out loss further.",
    )


def _falling(rule: str, evals: list[dict], words: str) -> Said | None:
    earlier, before, middle, now = (its["loss"] for its in evals[-4:])
    since = evals[-3]["step"]
    fall = min(earlier, before) - now  # from the lower of two, which is no chance peak
    # Of three evaluations behind the first, since the first fall of all is steep in any run.
    if since == 0 or not before > middle > now or fall <= max(CLEAR * before, SURE_FALL * _noise(evals)) or _best(evals) != len(evals) - 1:
        return None
    return Said(rule, since, words.format(before=before, now=now, since=since))


def spike(steps: list[dict]) -> Said | None:
    """Whether the newest step is a spike; asked after each one."""
    newest = steps[-SPIKE_BEFORE - 1 :]
    if not _is_spike(newest):
        return None
    step, loss = newest[-1]["step"], newest[-1]["loss"]
    mean = fmean(its["loss"] for its in newest[:-1])
    return Said(
        "spike", step,
        f"The loss spiked at step {step:,}: {loss:.2f}, after {mean:.2f} on average. Look at the rows of that step if it comes again; a lower "
        "learning rate or gradient clip tames it.",
    )


def spikes(steps: list[dict]) -> list[int]:
    """The steps whose loss stands far above those before."""
    return [its["step"] for index, its in enumerate(steps) if _is_spike(steps[max(0, index - SPIKE_BEFORE) : index + 1])]


def _is_spike(newest: list[dict]) -> bool:
    *before, loss = (its["loss"] for its in newest)
    if len(before) < SPIKE_AFTER:
        return False
    mean = fmean(before)
    # The deviation last: it takes longest, and a long run asks this of all its steps again and again.
    return loss > max(SPIKE_TIMES * mean, mean + SPIKE_NATS) and loss > mean + SPIKE_DEVIATIONS * math.sqrt(variance(before))


# What the rules measure with --------------------------------------------------------------------------------------


def _best(evals: list[dict]) -> int:
    """Where the lowest held-out loss stands; -1 for no evaluation."""
    return min(range(len(evals)), key=lambda index: evals[index]["loss"], default=-1)


def _noise(evals: list[dict]) -> float:
    """The standard deviation of one held-out loss about a smooth curve, by its second differences.

    The one before the first step is left out: from it the curve falls as it never does again.
    """
    losses = [its["loss"] for its in evals if its["step"]]
    bends = [abs(a - 2 * b + c) for a, b, c in zip(losses, losses[1:], losses[2:])]
    if len(bends) < 3:  # too few to tell noise from shape
        return CLEAR * fmean(losses) if losses else 0.0
    return 1.4826 * median(bends) / math.sqrt(6)  # the median of |x|, of normal x, is its standard deviation / 1.4826


def _margin(evals: list[dict], loss: float) -> float:
    """By how much a held-out loss must differ from this one to count."""
    return max(CLEAR * loss, SURE * _noise(evals))


def _slope(values: list[float]) -> float:
    """Of the straight line through evenly spaced values."""
    middle, mean = (len(values) - 1) / 2, fmean(values)
    below = sum((index - middle) ** 2 for index in range(len(values)))
    return sum((index - middle) * (value - mean) for index, value in enumerate(values)) / below if below else 0.0


def _window(total: int) -> int:
    return min(WINDOW_MOST, max(WINDOW_LEAST, round(WINDOW_SHARE * total)))


def _windows(steps: list[dict], total: int) -> list[list[dict]]:
    """The steps in whole windows; the newest one ends at the newest step."""
    size = _window(total)
    first = len(steps) % size
    return [steps[start : start + size] for start in range(first, len(steps), size)]


def _training_change(steps: list[dict], since: int, total: int) -> float:
    """How the training loss changed from the steps up to `since` to the newest ones; see `_change`."""
    size = _window(total)
    before = [its for its in steps if its["step"] <= since][-size:]
    now = [its for its in steps if its["step"] > since][-size:]
    return _change(before, now) if min(len(before), len(now)) >= 3 else 0.0


def _change(before: list[dict], now: list[dict]) -> float:
    """The change of the mean loss as a share of it; 0 where chance may have made it."""
    was, its = ([event["loss"] for event in part] for part in (before, now))
    spread = ((len(was) - 1) * variance(was) + (len(its) - 1) * variance(its)) / (len(was) + len(its) - 2)
    change = fmean(its) - fmean(was)
    return change / fmean(was) if abs(change) > SURE * math.sqrt(spread * (1 / len(was) + 1 / len(its))) and fmean(was) > 0 else 0.0
