"""What a Recipe needs: GiB and what they are made of, minutes, dollars, here and on each hired machine; without torch."""

import math
from bisect import bisect_left
from dataclasses import dataclass, replace

import numpy as np

from tuner import cost, hardware, limits, machine, room, tasks
from tuner import plan as plans
from tuner.cost import Work
from tuner.machine import Memory, Reach
from tuner.receipt import ENOUGH_AT_ONCE
from tuner.sizes import Sizes

# A step of the three fixed prompts' answers costs so many steps of one. While a model learns, the longest of three gets so many
# times as long as the rows' own on average.
THREE_AT_ONCE, LONGEST_OF_THREE = 1.15, 2.4
# A step of a report's answers costs so many steps of one, and so much more for each answer; base and tuned model together take so
# many times the longest. As those that are left end, such a share of them is there on average.
STEP_OF_ANSWERS, STEP_OF_ANSWER, BOTH_ANSWERS, ENDING = 0.95, 0.09, 1.6, 0.6
# A row's own answer of so many tokens is a short one (`figures.SHORT_WORDS`). So many tokens all prompts begin with, up to half of one.
SHORT_TOKENS, SHARED_TOKENS = 24, 25
# Rows that are shown side by side.
SHOWN = 20
# A run holds out as many rows as its report, said to take this share of its time, measures beside the probe and the answers that
# are scored; in tens, since a quote is no nearer. For want of time it never holds out fewer than so many, which would show little.
HELD_OUT_FILL, FEWEST_HELD_OUT = 0.92, 50
# Nor fewer than so many of each class, on average.
FEWEST_OF_CLASS = 3
# Answers that have not the time for all use this share of it. How far off it may be whether any fit: between these shares of
# the time it is likelier and likelier.
FILLED, FITS = 0.88, (0.75, 1.25)


class Rows:
    """What a run learns from and is measured on.

    Args:
        lengths: (S,) tokens of each training sequence, as cut.
        learned: learned tokens among them.
        held_lengths: (H,) tokens of the held-out sequences.
        scale: how many rows each of these stands for, where only the first of them are known yet.
        held_rows: rows that all the held-out sequences are of, also those not known yet; one for each where it is not said.
        held_count: all the held-out sequences, where these stand for other than `scale` each.
        classes: different labels; 0 where nothing is labelled, or nobody knows.
        chosen: whether a run has these rows already, so that none is left out any more.
    """

    def __init__(
        self, lengths, learned: int, held_lengths, scale: float = 1.0, held_rows: float | None = None, chosen: bool = False,
        held_count: float | None = None, classes: int = 0,
    ):
        self.lengths = plans.Lengths(lengths)
        self.held = plans.Lengths(held_lengths)
        self.learned, self.scale, self.chosen, self.classes = learned, scale, chosen, classes
        self.count = max(1, round(len(self.lengths) * scale))
        self.held_count = max(1.0, held_count or len(self.held) * scale)
        self.held_rows = max(1, round(held_rows or self.held_count))

    @classmethod
    def of(cls, figures, scale: float = 1.0) -> "Rows":
        """Of a check's figures; see `findings.Figures`."""
        return cls(figures.lengths, figures.learned, figures.held_lengths, scale, figures.held_out_rows * scale, classes=figures.classes)


# How many rows stand for all of them in what a run keeps of its quote.
KEPT_ROWS = 256


def summed_up(rows: Rows) -> dict:
    """The rows as few evenly chosen ones, as JSON, for a quote of the same run later."""
    def chosen(lengths: plans.Lengths, most: int) -> list[int]:
        if len(lengths) <= most:  # in their order, which the seed draws from
            return lengths.tokens.tolist()
        places = np.linspace(0, len(lengths) - 1, most).round().astype(int)
        return np.sort(lengths.tokens)[places].tolist()

    few = chosen(rows.lengths, KEPT_ROWS)
    scale = rows.count / len(few)
    held = max(1, round(len(rows.held) * rows.scale / scale))  # each of them is to stand for as many as each of the others
    return {
        "lengths": few, "learned": round(rows.learned * len(few) / len(rows.lengths)), "held_lengths": chosen(rows.held, held),
        "scale": scale, "held_rows": rows.held_rows, "chosen": rows.chosen, "held_count": rows.held_count,
        "classes": rows.classes,
    }


@dataclass(frozen=True)
class Quote:
    """What a run needs on one machine.

    Args:
        at_once: rows of the heaviest micro-batch.
        memory: GiB by what takes them; on a card, of the card.
        time: seconds by what takes them.
        free_gib: what there is for it.
        held_out, held_out_of: rows that the run holds out, of those that are kept aside.
        held_out_by: "time" where its report has the time for no more, "fewest" where it has not even that for so few; else "".
        afterwards_s: what a report in full takes then, in the time to spare, where the run's own leaves something of the rows out.
    """

    plan: plans.Plan
    steps: int
    tokens: int
    evaluations: int
    at_once: int
    memory: dict[str, float]
    time: dict[str, float]
    free_gib: float
    dollars: float
    measured: bool
    held_out: int
    held_out_of: int
    held_out_by: str = ""
    afterwards_s: float = 0.0

    @property
    def memory_gib(self) -> float:
        return sum(self.memory.values())

    @property
    def seconds(self) -> float:
        return sum(self.time.values())

    @property
    def needed_gib(self) -> float:
        """What has to be there: the system takes pages of mapped files back as it needs them."""
        return self.memory_gib - self.memory.get("files being read", 0.0)

    @property
    def fits(self) -> bool:
        return self.needed_gib <= plans.ROOM * self.free_gib


def make(recipe, its: Sizes, rows: Rows, free_gib: float, reach: Reach, dollars_per_hour: float = 0.0, most_s: float = math.inf) -> Quote:
    """About what a run will need on one machine.

    Where the recipe leaves open how many rows are held out, they are as many as the report at its end has the time for there;
    see `_ReportWork.fitting`.

    Args:
        free_gib: memory that the run may use there.
        reach: what the machine reaches; see `machine.reach` and `machine.expected`.
        most_s: how long a training may take there; its report has a quarter of that.
    """
    plan = plans.decide(recipe, its, rows.lengths, reach.device, reach.precision, free_gib, reach.import_gib)
    steps = plans.steps(recipe, rows.count)
    per_epoch = math.ceil(rows.count / recipe.batch_size)
    if rows.scale == 1:
        tokens, squares, gone_through = rows.lengths.in_steps(recipe, steps)
    else:
        times = rows.scale * steps / per_epoch
        tokens, squares, gone_through = rows.lengths.total * times, rows.lengths.squares * times, rows.count * steps / per_epoch
    learned = rows.learned * tokens / max(1.0, rows.lengths.total)
    work = Work(tokens, learned, squares, gone_through, gone_through * rows.lengths.parts_per_row(recipe, plan), steps)
    share = rows.learned / max(1.0, rows.lengths.total)
    one_held = _one_held(rows)
    per_row = one_held.tokens
    heaviest = rows.lengths.heaviest(recipe, plan)
    rehearsed = Work.of(heaviest, share * float(heaviest.sum()), 1, 0).times(2)
    prompt, answer, usual = rows.lengths.usual_answer(rows.learned, recipe.learn)
    answered = min(plans.SAMPLE_TOKENS, LONGEST_OF_THREE * answer)  # the base runs on
    encoded = min(rows.count, max(2 * recipe.max_steps * recipe.batch_size, ENOUGH_AT_ONCE)) if recipe.max_steps else rows.count
    # Passes are as fast or slow as training's, which is products too; answers, a token after the other, wait for memory.
    passes, words = reach.ratio("train"), reach.ratio("answers")

    answers = tasks.get(recipe.task).ANSWERS
    # The training rows go once through the untouched base.
    distilled = cost.forward_s(recipe, its, plan, _once(rows), reach) * passes if recipe.feature_distillation and not answers else 0.0

    def without_report(held_count: float) -> tuple[int, dict[str, float]]:
        """Evaluations after the first, and the seconds before the report, with so many held-out sequences."""
        often, held_rows = plans.how_often(steps, work.tokens, round(held_count), max(1.0, per_row * held_count), recipe.evaluations, recipe.patience)
        return often, {
            "getting ready": cost.start_s(recipe, its, encoded + held_count, reach) * reach.ratio("start") + distilled,
            "rehearsal": cost.training_s(recipe, its, plan, rehearsed, reach) * passes,
            "training": cost.training_s(recipe, its, plan, work, reach) * passes,
            "measuring": cost.forward_s(recipe, its, plan, one_held.times(held_rows * (often + 1)), reach) * passes,
            "answers": 0.0 if not answers else (
                cost.answer_s(its, plans.SAMPLE_TOKENS + often * answered, reach) * THREE_AT_ONCE
                + cost.forward_s(recipe, its, plan, _prompts(prompt, plans.SAMPLES).times(often + 1), reach)
            ) * words,
        }

    def budget(time: dict[str, float], share: float = 1.0) -> float:
        """The report's seconds, after such a share of the training."""
        before = time["getting ready"] + time["rehearsal"]
        return plans.report_budget_s(min(most_s, before + share * (sum(time.values()) - before)))

    held_out, held_out_by = min(rows.held_rows, recipe.most_held_out), ""
    report = (_AnsweringReport if answers else _LabellingReport).of(recipe, its, rows, plan, held_out, reach)
    if not (recipe.held_out_rows or rows.chosen):
        often, time = without_report(_sequences(rows, min(held_out, report.fewest)))
        has_s = budget(time, min(1.0, recipe.patience / often) if recipe.patience else 1.0)  # also where patience ends it as soon as can be
        fitting = report.fitting(has_s)
        report = report.times(fitting / held_out)
        if fitting < held_out:
            held_out, held_out_by = fitting, "time" if report.is_full(has_s) else "fewest"
    held_count = _sequences(rows, held_out)
    often, time = without_report(held_count)
    time["before and after"] = report.seconds(has_s := budget(time))
    afterwards_s = report.alone_s(recipe, its, reach) if report.leaves_out(has_s) else 0.0
    memory = cost.memory(recipe, its, plan, heaviest, reach.device, reach.precision, reach.import_gib)
    # A run that trains one short row at a time needs most when it measures; measured on processors, where that was seen.
    if reach.device == "cpu":
        measuring = cost.measuring_bytes(its, cost.kind(recipe, its), reach.device, cost.itemsize(reach.precision), per_row * held_count, held_count, prompt + plans.longest_answer(usual, recipe)) / cost.GIB
        if measuring > memory.get("activations", 0.0):
            memory["measuring"] = measuring - memory.get("activations", 0.0)
    if "files being read" in memory:  # only as much of them is held as there is room for
        memory["files being read"] = max(0.0, min(memory["files being read"], free_gib - sum(memory.values()) + memory["files being read"]))
    return Quote(
        plan, steps, round(work.tokens), often, len(heaviest), memory, time, free_gib, sum(time.values()) / 3600 * dollars_per_hour, reach.measured,
        held_out, rows.held_rows, held_out_by, afterwards_s,
    )


def settled(recipe, made: Quote):
    """The recipe with the number of held-out rows that was quoted, where that is for the time of its report."""
    return replace(recipe, held_out_rows=made.held_out) if made.held_out_by else recipe


def held_out_words(made: Quote) -> str:
    """How many rows are held out, and why not more, where it is for the time of the report; else ""."""
    if not made.held_out_by:
        return ""
    why = "as many as its report has the time for" if made.held_out_by == "time" else "the fewest that can show anything"
    more = made.held_out_of - made.held_out
    return f"Of {made.held_out_of:,} rows kept aside {made.held_out:,} are held out, {why}; the other {more:,} are neither learned from nor measured."


def may_be_fewer(recipe, held_out: int) -> str:
    """What to say of rows kept aside where nothing is known of the run's time; "" where that does not matter."""
    if recipe.held_out_rows or held_out <= FEWEST_HELD_OUT:
        return ""
    return "Of the rows held out a run takes as many as its report has the time for; its quote says where they are fewer."


def _sequences(rows: Rows, held_out: float) -> float:
    """How many held-out sequences so many rows are."""
    return max(1.0, rows.held_count * held_out / rows.held_rows)


def _one_held(rows: Rows) -> Work:
    """A held-out row of the usual length in a pass forward."""
    count, share = max(1, len(rows.held)), rows.learned / max(1.0, rows.lengths.total)
    per_row = rows.held.total / count
    return Work(per_row, share * per_row, rows.held.squares / count, 1, per_row / cost.MEASURED_AT_ONCE, 0)


def _probe(recipe, one_held: Work) -> Work:
    """The whole probe in a pass forward."""
    probed = tasks.get(recipe.task).PROBED
    if "tokens" not in probed:
        return one_held.times(probed["rows"])
    return Work(**probed, batches=probed["tokens"] / cost.MEASURED_AT_ONCE, steps=0)


def _prompts(tokens: float, count: int) -> Work:
    """So many prompts of so many tokens in a pass forward."""
    return Work(tokens * count, 0, tokens**2 * count, count, 1, 0)


def _once(rows: Rows) -> Work:
    """All training rows in passes forward."""
    found = Work(rows.lengths.total, 0, rows.lengths.squares, len(rows.lengths), rows.lengths.total / cost.MEASURED_AT_ONCE, 0)
    return found.times(rows.scale)


@dataclass(frozen=True)
class _Answers:
    """A report's answers to rows of one kind: short ones, or the others.

    Args:
        count: rows; longest: tokens that an answer may have; at_once: answers given together.
        once: seconds of a step of one answer; read: of reading a prompt for both models; token: of a token in a pass forward.
    """

    count: float
    longest: int
    at_once: int
    once: float
    read: float
    token: float

    def seconds(self, longest: int | None = None) -> float:
        """Of all of them."""
        if not self.count:
            return 0.0
        longest, together = longest or self.longest, min(2 * self.count, self.at_once)
        tokens = BOTH_ANSWERS * longest * (self.count - together / 2)
        return longest * self._step(ENDING * together) + tokens * self._step(together) / together + self.read * self.count

    def within(self, left: float) -> float:
        """Of those that are begun where so many seconds are left; `side_by_side.InTime` decides likewise."""
        thought = plans.ANSWERS_MARGIN * self.longest * max(self._step(2), (plans.ANSWERS_STEP_TOKENS + 2 * plans.ANSWER_TOKENS) * self.token)
        return _surely(left / thought) * min(self.seconds(), FILLED * left)

    def cut(self, left: float) -> "_Answers":
        """The same as `report.make` cuts them, so that those of the rows shown side by side fit."""
        shown = 2 * min(SHOWN, max(1.0, self.count))
        together = min(self.at_once, shown)
        fitting = left / (plans.ANSWERS_MARGIN * self._step(together)) / math.ceil(shown / together)
        cut = max(plans.FEWEST_ANSWER_TOKENS, int(plans.CUT_SLACK * fitting))
        return self if fitting >= self.longest else replace(self, longest=min(self.longest, cut))

    def _step(self, answers: float) -> float:
        return self.once * (STEP_OF_ANSWERS + STEP_OF_ANSWER * answers)


def _surely(fits: float) -> float:
    """How likely it is that something fits which takes so many times less than there is."""
    return min(1.0, max(0.0, (fits - FITS[0]) / (FITS[1] - FITS[0])))


@dataclass(frozen=True)
class _ReportWork:
    """What a report does, in seconds.

    Args:
        rows: held-out rows; `both`: to measure all of them before and after; `asked`: to ask all of the probe.
    """

    rows: float
    both: float
    asked: float

    def _probed(self, left: float) -> float:
        """The seconds of what of the probe is asked, where so many are left: half of them at most, but the least of it always."""
        return self.asked * min(1.0, max(plans.LEAST_PROBE, left / 2 / self.asked))

    def times(self, share: float) -> "_ReportWork":
        """The same on so many times its held-out rows."""
        return replace(self, rows=self.rows * share, both=self.both * share)

    def fitting(self, budget: float) -> int:
        """On how many of these rows a report can be full in that time, or else `fewest`."""
        if self.rows <= self.fewest or self.is_full(budget):
            return round(self.rows)
        is_too_many = lambda tens: not self.times(10 * (tens + 1) / self.rows).is_full(budget)  # noqa: E731
        return max(self.fewest, 10 * bisect_left(range(round(self.rows) // 10), True, key=is_too_many))

    @property
    def fewest(self) -> int:
        """Held-out rows that a run always takes, where there are so many."""
        return FEWEST_HELD_OUT


@dataclass(frozen=True)
class _LabellingReport(_ReportWork):
    """Of a classifier: it also fits a baseline to the training rows' features, to as many as there is time for.

    Args:
        line: seconds of a training row in the untouched base; lines: rows that the baseline is fitted to at most; hidden: numbers
            of a row's features; classes: 0 where nobody knows.
    """

    line: float
    lines: int
    hidden: int
    classes: int

    @classmethod
    def of(cls, recipe, its: Sizes, rows: Rows, plan, held_out: float, reach: Reach) -> "_LabellingReport":
        """Of a run that holds out so many rows."""
        one_held, passes = _one_held(rows), reach.ratio("train")
        forward = lambda work: cost.forward_s(recipe, its, plan, work, reach) * passes  # noqa: E731
        return cls(
            held_out, forward(one_held.times(2 * _sequences(rows, held_out))), forward(_probe(recipe, one_held).times(2)),
            forward(_once(rows)) / rows.count, min(rows.count, cost.LINE_ROWS), its.hidden, rows.classes,
        )

    def seconds(self, budget: float) -> float:
        """Of a report that keeps to its time; `label_report.make` decides likewise, by what its passes really took."""
        measured = self.both + self._probed(budget - self.both)
        return measured + min(self._lines(self.lines), max(self._fewest, budget - measured))

    def leaves_out(self, budget: float) -> bool:
        """Never held-out rows."""
        return False

    def is_full(self, budget: float) -> bool:
        """Whether all held-out rows are measured and a baseline is fitted beside the whole probe, or as much of it as half of two
        thirds of that time lets."""
        has_s = HELD_OUT_FILL * budget
        measured = max(has_s - self.asked - self._fewest, has_s / 3)
        return self.both <= measured and self.both + self._probed(has_s - self.both) + self._fewest <= has_s

    def _lines(self, count: float) -> float:
        return count * self.line + cost.line_s(self.hidden, count, self.classes or cost.LINE_CLASSES)

    @property
    def _fewest(self) -> float:
        """Of a baseline on so few rows that it always has the time for them."""
        return self._lines(min(self.lines, cost.fewest_lines(self.classes)))

    @property
    def fewest(self) -> int:
        return max(FEWEST_HELD_OUT, FEWEST_OF_CLASS * self.classes)


@dataclass(frozen=True)
class _AnsweringReport(_ReportWork):
    """Of a model that answers.

    Args:
        short, others: the answers to rows whose own is short, and to the others.
    """

    short: _Answers
    others: _Answers

    @classmethod
    def of(cls, recipe, its: Sizes, rows: Rows, plan, held_out: float, reach: Reach) -> "_AnsweringReport":
        """Of a run that holds out so many rows."""
        one_held, held_count = _one_held(rows), _sequences(rows, held_out)
        passes, words = reach.ratio("train"), reach.ratio("answers")
        both = cost.forward_s(recipe, its, plan, one_held.times(2 * held_count), reach) * passes
        asked = cost.forward_s(recipe, its, plan, _probe(recipe, one_held).times(2), reach) * passes
        prompt, _, usual = rows.lengths.usual_answer(rows.learned, recipe.learn)
        read = cost.forward_s(recipe, its, plan, _prompts(prompt - min(SHARED_TOKENS, prompt / 2), 2), reach) * passes
        once, token = cost.answer_s(its, 1, reach) * words, both / max(1.0, 2 * one_held.tokens * held_count)
        # A text that stands alone has no answer of its own.
        short = 0.0 if prompt < 2 else held_out * float(np.mean(rows.held.tokens <= prompt + SHORT_TOKENS)) if len(rows.held) else held_out
        answers = []
        for count, tokens in ((short, min(usual, SHORT_TOKENS)), (held_out - short, usual)):
            longest = plans.longest_answer(tokens, recipe)
            answers.append(_Answers(count, longest, _answers_at_once(its, prompt + longest, reach), once, read, token))
        return cls(held_out, both, asked, *answers)

    def seconds(self, budget: float) -> float:
        """Of a report that keeps to its time; what it leaves out where that is short, `report.make` decides likewise.

        Where it can hardly be known whether answers fit, a part of their time is counted.
        """
        return sum(self._within(budget))

    def leaves_out(self, budget: float) -> bool:
        """Whether some held-out rows are perhaps not answered in full for want of time, or not even measured, which comes first."""
        measured, _, short, others = self._within(budget)
        return measured < self.both or short < self.short.seconds() or others < self.others.seconds()

    def _within(self, budget: float) -> tuple[float, float, float, float]:
        """The seconds of measuring, of the probe, of short answers and of others."""
        measured = min(self.both, max(self.both * min(1.0, plans.FIRST_MEASURED / self.rows), budget - plans.LEAST_PROBE * self.asked))
        probed = self._probed(budget - measured)
        left = budget - measured - probed
        short = self.short.within(left)
        return measured, probed, short, self.others.cut(left - short).within(left - short)

    def times(self, share: float) -> "_AnsweringReport":
        """The same on so many times its held-out rows."""
        short, others = (replace(its, count=its.count * share) for its in (self.short, self.others))
        return replace(super().times(share), short=short, others=others)

    def is_full(self, budget: float) -> bool:
        """Whether all held-out rows are measured, all short answers and the rows shown side by side are given, and the whole probe
        is asked, or as much of it as half of two thirds of that time lets; see `_within`."""
        has_s = HELD_OUT_FILL * budget
        shown = replace(self.others, count=min(SHOWN, self.others.count), longest=min(plans.FEWEST_ANSWER_TOKENS, self.others.longest))
        answers = (self.short.seconds() + shown.seconds()) / FILLED
        measured = min(max(has_s - 2 * self.asked, has_s / 3), has_s - plans.LEAST_PROBE * self.asked)
        return self.both <= measured and self.both + self._probed(has_s - self.both) + answers <= has_s

    @property
    def whole(self) -> float:
        """Of one that leaves nothing out."""
        return self.both + self.asked + self.short.seconds() + self.others.seconds()

    def alone_s(self, recipe, its: Sizes, reach: Reach) -> float:
        """Of one that leaves nothing out, from its start in a process of its own."""
        return cost.start_s(recipe, its, self.rows, reach) * reach.ratio("start") + self.whole


def _answers_at_once(its: Sizes, tokens: float, reach: Reach) -> int:
    """How many answers a report gives together; `tokens` of the longest prompt and its answer."""
    return cost.answers_at_once(reach.device, cost.cached_bytes(its, cost.itemsize(reach.precision)), max(1.0, tokens))


def whole_report_s(recipe, its: Sizes, rows: Rows, plan, reach: Reach) -> float:
    """About how long a report on all held-out rows takes, from its start in a process of its own."""
    report = _AnsweringReport.of(recipe, its, rows, plan, min(rows.held_rows, recipe.most_held_out), reach)
    return report.alone_s(recipe, its, reach)


def here(recipe, its: Sizes, rows: Rows, memory: Memory | None = None) -> Quote:
    """The quote for this machine, as it will be at the run's turn."""
    memory = memory or room.for_a_run()
    return make(recipe, its, rows, memory.free_gib, machine.reach(cost.kind(recipe, its)), hardware.dollars_here(), limits.run_seconds() or math.inf)


@dataclass(frozen=True)
class Hired:
    """The quote for one flavour; seconds with its start, since that is paid for too."""

    its: hardware.Hardware
    quote: Quote

    @property
    def seconds(self) -> float:
        return self.quote.seconds + STARTING_S

    @property
    def dollars(self) -> float:
        # Billed by the minute, from the start on.
        return math.ceil(self.seconds / 60) / 60 * self.its.dollars


# From asking for a machine until the run can begin there: the image, and the base model's download beside it.
STARTING_S = 60.0


def hired(recipe, its: Sizes, rows: Rows) -> list[Hired]:
    """The quote for each piece of hardware that a Space or a Job can have, in the order of the price list."""
    made: dict[tuple, Quote] = {}
    found = []
    for one in hardware.HARDWARE:
        key = (one.room_gib, one.tflops, one.precision, one.cores if not one.cards else 0)
        if key not in made:  # more of the same card changes the price alone
            made[key] = make(recipe, its, rows, one.room_gib, machine.expected(one), one.dollars)
        found.append(Hired(one, made[key]))
    return found
