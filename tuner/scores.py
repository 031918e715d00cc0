"""What labels guessed beside labels given say: accuracy, macro-F1, each class, confusion, calibration, intervals; numpy only."""

import numpy as np

from tuner.figures import RESAMPLES

# Bins of the reliability plot, of equal width.
BINS = 10


def class_counts(truth: np.ndarray, guess: np.ndarray) -> np.ndarray:
    """(3, C) right, given and guessed rows of each class, of two (B, C) arrays of booleans."""
    return np.stack([(truth & guess).sum(0), truth.sum(0), guess.sum(0)])


def f1(counts: np.ndarray) -> np.ndarray:
    """(C,) F1 of each class of `class_counts`: 2 right / (given + guessed); 0 where it was neither."""
    right, given, guessed = counts
    return 2 * right / np.maximum(given + guessed, 1)


def macro_f1(truth: np.ndarray, guess: np.ndarray) -> float:
    """The mean F1 over the classes that were given or guessed, as scikit-learn takes it without a list of labels."""
    counts = class_counts(truth, guess)
    there = counts[1] + counts[2] > 0
    return float(f1(counts)[there].mean()) if there.any() else 0.0


def accuracy(truth: np.ndarray, guess: np.ndarray) -> float:
    """The share of rows whose labels are all right."""
    return float((truth == guess).all(1).mean())


def by_class(truth: np.ndarray, guess: np.ndarray) -> list[dict]:
    """Of each class: {"rows", "precision", "recall", "f1"}; precision is None where it was never guessed, recall where never given."""
    counts = class_counts(truth, guess)
    share = lambda part, of: float(part / of) if of else None  # noqa: E731
    return [
        {"rows": int(given), "precision": share(right, guessed), "recall": share(right, given), "f1": float(its)}
        for (right, given, guessed), its in zip(counts.T, f1(counts))
    ]


def confusion(truth: np.ndarray, guess: np.ndarray) -> list[list[int]]:
    """How many rows of each given class (line) were guessed as which (column), of (B,) class numbers each."""
    size = int(max(truth.max(initial=0), guess.max(initial=0))) + 1
    return np.bincount(truth * size + guess, minlength=size * size).reshape(size, size).tolist()


def calibration(sure: np.ndarray, right: np.ndarray) -> dict:
    """How far probabilities can be believed (Guo et al. 2017).

    Args:
        sure: (B,) the probability of what was guessed.
        right: (B,) whether it was right.

    Returns:
        {"ece", "bins": [{"low", "high", "rows", "sure", "right"}]}: the mean gap between both, weighted by rows; empty bins left out.
    """
    place = np.minimum((sure * BINS).astype(int), BINS - 1)
    bins = [
        {
            "low": number / BINS, "high": (number + 1) / BINS, "rows": int(its.sum()),
            "sure": float(sure[its].mean()), "right": float(right[its].mean()),
        }
        for number in range(BINS) if (its := place == number).any()
    ]
    return {"ece": float(sum(its["rows"] * abs(its["sure"] - its["right"]) for its in bins) / max(1, len(sure))), "bins": bins}


def interval(truth: np.ndarray, tuned: np.ndarray, base: np.ndarray, score, seed: int) -> dict:
    """A score of `tuned` minus that of `base` with its paired 95 % bootstrap interval over rows.

    Returns:
        {"mean", "low", "high", "rows"} as `figures.interval`; "mean" is the difference on all rows.
    """
    mean, count = score(truth, tuned) - score(truth, base), len(truth)
    if count < 2:
        return {"mean": mean, "low": None, "high": None, "rows": count}
    random = np.random.default_rng(seed)
    found = np.empty(RESAMPLES)
    for index in range(RESAMPLES):
        drawn = random.integers(count, size=count)
        found[index] = score(truth[drawn], tuned[drawn]) - score(truth[drawn], base[drawn])
    low, high = np.percentile(found, [2.5, 97.5])
    return {"mean": mean, "low": float(low), "high": float(high), "rows": count}


def own_interval(truth: np.ndarray, guess: np.ndarray, score, seed: int) -> list[float] | None:
    """[low, high]: the 95 % bootstrap interval of one score; None for fewer than two rows."""
    if len(truth) < 2:
        return None
    random = np.random.default_rng(seed)
    found = [score(truth[drawn], guess[drawn]) for drawn in (random.integers(len(truth), size=len(truth)) for _ in range(RESAMPLES))]
    return [float(its) for its in np.percentile(found, [2.5, 97.5])]


def one_hot(numbers: np.ndarray, classes: int) -> np.ndarray:
    """(B, C) booleans of (B,) class numbers."""
    return np.eye(classes, dtype=bool)[numbers]
