"""A tuned classifier asked about single texts: labels with probabilities, beside what a classifier on the untouched base says."""

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
        rows = []
        for text in texts:
            first, mark, second = text.partition("\t")
            row = {"text": first, **({"text_b": second} if mark else {}), "label": self.path.names[0]}
            rows += self.task.encode_row(row, self.tokenizer, self.recipe)
        if tuned:
            found = self.path.judge(rows)
        elif self.baseline is None:
            return None
        else:
            with self.path.model.disable_adapter():
                found = self.baseline.probabilities(self.path.features(rows))
        order = [sorted(range(len(its)), key=lambda index, its=its: -its[index]) for its in found]
        return [{self.path.names[index]: float(its[index]) for index in places} for its, places in zip(found, order)]


def _baseline(path: Path, several: bool):
    """The classifier on the untouched base that the run's report kept; None where there is none."""
    if not path.is_file():
        return None
    from safetensors.numpy import load_file

    from tuner.tasks.label_report import Line

    its = load_file(path)
    return Line(its["weight"], its["bias"], several, 0.0)
