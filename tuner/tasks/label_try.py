"""A tuned classifier asked about what somebody brings: labels with probabilities, beside what a classifier on the untouched base says."""

from pathlib import Path

from tuner.recipe import Recipe


class Worker:
    """One classifier at a time, in this process; used as `chat.Worker` is."""

    def __init__(self):
        self.subject = None

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_) -> None:
        self.subject = self.path = None

    def bring(self, subject) -> None:
        """Have this subject's classifier in memory."""
        from tuner import bases, models, tasks

        if self.subject == subject:
            return
        if subject.base_sha256:
            bases.require_same(subject.base, subject.base_sha256)
        self.task = tasks.get(subject.task)
        self.recipe = Recipe(quantisation=subject.quantisation, task=subject.task, max_tokens=subject.max_tokens, keep_control_tokens=subject.keep_control_tokens)
        loaded = models.load_base(Path(subject.base["dir"]), self.recipe, dict(subject.plan))
        model = models.load_adapter(loaded.model, Path(subject.adapter_dir), subject.base["id"])
        self.tokenizer = loaded.tokenizer
        self.path = self.task.path(model, loaded.tokenizer, self.recipe, loaded.plan)
        self.baseline = _baseline(Path(subject.adapter_dir).parent / "baseline.safetensors", self.path.several)
        self.subject = subject

    def probabilities(self, subject, texts: list[str], tuned: bool = True) -> list[dict[str, float]] | None:
        """label -> probability for each text, the likeliest first; None for the untouched base where no classifier on it was kept.

        A text of two parts has a tab between them.
        """
        self.bring(subject)
        encoded = self._encoded([self.task.asked(text) for text in texts])
        found = self.path.judge(encoded) if tuned else self._frozen(encoded)
        return None if found is None else [self._by_label(its) for its in found]

    def look(self, subject, values: list, explained: int) -> list[dict]:
        """What is to be said of each value that somebody gave; see the task's `item`.

        Args:
            explained: of so many of them, the first ones, also what mattered.

        Returns:
            "thing": see the task's own. "tuned", "base": label -> probability, the likeliest first; "base" is of the classifier on the untouched base, None
            where none was kept. "cut": tokens that were not read. "parts": for each part that was left out in turn, its place
            as the task's `occluded` gives it with "drop", by how much that lowers the probability of the likeliest label; None
            where that was not asked.
        """
        self.bring(subject)
        rows = [self.task.item(value) for value in values]
        encoded = self._encoded(rows)
        tuned, base = self.path.judge(encoded), self._frozen(encoded)
        found = []
        for number, row in enumerate(rows):
            parts = None
            if number < explained:
                without = self.task.occluded(row)
                top = tuned[number].argmax()
                left = self.path.judge(self._encoded([its for _, its in without])) if without else ()
                parts = [{**place, "drop": float(tuned[number][top] - its[top])} for (place, _), its in zip(without, left)]
            found.append({
                "thing": self.task.thing(row), "tuned": self._by_label(tuned[number]), "base": None if base is None else self._by_label(base[number]),
                "cut": getattr(encoded[number], "cut", 0), "parts": parts,
            })
        return found

    def _encoded(self, rows: list[dict]) -> list:
        """One sequence a row; it gets a label, which nobody looks at."""
        return [its for row in rows for its in self.task.encode_row({**row, "label": self.path.names[0]}, self.tokenizer, self.recipe)]

    def _frozen(self, encoded: list):
        """(B, C) probabilities by the classifier on the untouched base; None where none was kept."""
        if self.baseline is None:
            return None
        with self.path.model.disable_adapter():
            return self.baseline.probabilities(self.path.features(encoded))

    def _by_label(self, probabilities) -> dict[str, float]:
        order = sorted(range(len(probabilities)), key=lambda index: -probabilities[index])
        return {self.path.names[index]: float(probabilities[index]) for index in order}


def _baseline(path: Path, several: bool):
    """The classifier on the untouched base that the run's report kept; None where there is none."""
    if not path.is_file():
        return None
    from safetensors.numpy import load_file

    from tuner.tasks.label_report import Line

    its = load_file(path)
    return Line(its["weight"], its["bias"], several, 0.0)
