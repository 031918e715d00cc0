"""What an evaluation of a classifier's run measures and tells: loss, accuracy, macro-F1, and a few texts labelled again."""

import numpy as np

from tuner import scores
from tuner.tasks.labels import names_in

# Of several labels a row has those that are at least so likely.
THRESHOLD = 0.5
# Labels that a sample names with their probability.
SHOWN = 3
# A probability below that costs no more.
_LEAST = 1e-12


def guesses(probabilities: np.ndarray, several: bool) -> np.ndarray:
    """(B, C) booleans: the likeliest class; all that are likely where a row may have several."""
    if several:
        return probabilities >= THRESHOLD
    return scores.one_hot(probabilities.argmax(1), probabilities.shape[1])


def truths(path, rows: list) -> np.ndarray:
    """(B, C) booleans of encoded rows."""
    targets = path.targets(rows).numpy()
    return targets.astype(bool) if path.several else scores.one_hot(targets, len(path.names))


def row_losses(probabilities: np.ndarray, truth: np.ndarray, several: bool) -> np.ndarray:
    """(B,) cross-entropy in nats a row; over several labels its mean."""
    if several:
        return -np.log(np.where(truth, probabilities, 1 - probabilities).clip(_LEAST)).mean(1)
    return -np.log(probabilities[truth].clip(_LEAST))


def in_words(probabilities, names: list[str], most: int = SHOWN) -> str:
    """The likeliest labels with their probability."""
    order = sorted(range(len(names)), key=lambda index: -probabilities[index])[:most]
    return ", ".join(f"{names[index]} {100 * probabilities[index]:.0f} %" for index in order)


class Learning:
    """One run's held-out rows.

    Args:
        path: how losses are computed (`label_model.Path`).
        held: the encoded rows that each evaluation measures.
        shown: rows that are shown, with what the model says of them, and these encoded.
    """

    # What is said when patience has run out.
    NOT_BETTER = "Neither macro-F1 nor loss on held-out rows has improved"
    # Whether the model begins with a part that nobody has trained.
    NEW_HEAD = True

    def __init__(self, run, path, held: list, shown: tuple[list[dict], list]):
        self.run, self.path, self.held, self.shown = run, path, held, shown
        self.truth = truths(path, held)

    def measure(self) -> dict:
        """Loss in nats a row, accuracy and macro-F1."""
        probabilities = self.path.judge(self.held)
        losses = row_losses(probabilities, self.truth, self.path.several)
        guess = guesses(probabilities, self.path.several)
        return {
            "loss": float(losses.mean()), "row_losses": losses.tolist(), "accuracy": scores.accuracy(self.truth, guess),
            "macro_f1": scores.macro_f1(self.truth, guess), "samples": self.path.judge(self.shown[1]),
        }

    def score(self, measured: dict) -> list[float]:
        """What the best version has least of: macro-F1 below 1; among equals the lower loss."""
        return [round(1 - measured["macro_f1"], 12), measured["loss"]]

    def figures(self, measured: dict) -> dict:
        """What the evaluation's event says besides its loss."""
        return {"accuracy": measured["accuracy"], "macro_f1": measured["macro_f1"]}

    def tell(self, step: int, measured: dict) -> None:
        """Log what the model says of the rows shown."""
        for number, (row, probabilities) in enumerate(zip(self.shown[0], measured["samples"])):
            text = in_words(probabilities, self.path.names)
            self.run.log("sample", step=step, number=number, prompt=row.get("text", ""), text=text, ended=True)


def different(rows: list[dict], most: int) -> list[dict]:
    """The first rows that have different labels."""
    found: dict[tuple, dict] = {}
    for row in rows:
        found.setdefault(tuple(names_in(row)), row)
        if len(found) == most:
            break
    return list(found.values())
