"""Metrics, each of scores and labels, and the interval of a mean over seeds."""

import math
import statistics
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.datasets.dataset import Task

MOST_SENTIMENT = 3.0
# The order of the columns in the tables.
COLUMNS = {
    "classes": ("accuracy", "macro accuracy", "log loss"),
    "binary": ("AUROC", "AUPRC", "score 1", "accuracy", "F1", "log loss"),
    "regression": ("MAE", "correlation", "Acc-7", "Acc-2", "F1", "Acc-2 with 0", "F1 with 0"),
}


def measure(
    task: Task, scores: NDArray, labels: NDArray, threshold: float | None = None
) -> dict[str, float]:
    """Return all metrics of a task.

    Args:
        task: The task.
        scores: ``(samples, classes)`` log-odds or log-probabilities, or ``(samples,)``.
        labels: ``(samples,)``.
        threshold: Lowest score that counts as positive, chosen on validation data; ``None`` for
            the best one for these labels, for validation only.
    """
    scores = scores.astype(np.float64)
    if task.kind == "regression":
        return sentiment(scores, labels.astype(np.float64))
    if task.kind == "binary":
        if threshold is None:
            threshold = best_threshold(scores, labels)
        return {
            "AUROC": auroc(scores, labels),
            "AUPRC": auprc(scores, labels),
            "score 1": score_1(scores, labels, threshold),
            "accuracy": float(np.mean((scores >= 0) == (labels == 1))),
            "F1": f1(scores >= 0, labels == 1),
            "log loss": float(np.mean(np.logaddexp(0.0, np.where(labels == 1, -scores, scores)))),
        }
    guesses = scores.argmax(axis=1)
    shares = [np.mean(guesses[labels == label] == label) for label in np.unique(labels)]
    likelihood = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
    return {
        "accuracy": float(np.mean(guesses == labels)),
        "macro accuracy": float(np.mean(shares)),
        "log loss": float(-np.mean(likelihood[np.arange(len(labels)), labels])),
    }


def auroc(scores: NDArray, labels: NDArray) -> float:
    """Return how often a positive scores above a negative, ties counting half."""
    positive = np.sort(scores[labels == 1])
    negative = scores[labels != 1]
    if not len(positive) or not len(negative):
        return math.nan
    above = len(positive) - np.searchsorted(positive, negative, "right")
    equal = np.searchsorted(positive, negative, "right") - np.searchsorted(positive, negative)
    return float((above + equal / 2).sum() / (len(positive) * len(negative)))


def auprc(scores: NDArray, labels: NDArray) -> float:
    """Return the average precision: precision at each threshold by the recall it adds."""
    cut, told, hits = _thresholds(scores, labels)
    if not len(cut) or not hits[-1]:
        return math.nan
    return float(np.sum(np.diff(hits, prepend=0) / hits[-1] * hits / told))


def score_1(scores: NDArray, labels: NDArray, threshold: float) -> float:
    """Return the smaller of sensitivity and precision (PhysioNet challenge 2012, event 1)."""
    told = scores >= threshold
    hits = int(np.sum(told & (labels == 1)))
    return min(hits / max(1, int(np.sum(labels == 1))), hits / max(1, int(told.sum())))


def best_threshold(scores: NDArray, labels: NDArray) -> float:
    """Return the threshold of the highest score 1."""
    cut, told, hits = _thresholds(scores, labels)
    return float(cut[np.argmax(np.minimum(hits / max(1, hits[-1]), hits / told))])


def sentiment(predictions: NDArray, labels: NDArray) -> dict[str, float]:
    """Return the metrics of CMU-MOSI as the code of MulT computes them.

    Acc-7 rounds both to whole numbers from -3 to 3. Acc-2 and F1 (weighted by class) separate
    values above 0 from the rest, without labels of exactly 0; "with 0" keeps them, with values from
    0 up as one class.
    """
    clipped = [np.clip(x, -MOST_SENTIMENT, MOST_SENTIMENT).round() for x in (predictions, labels)]
    spread = predictions.std() > 0 and labels.std() > 0
    known = labels != 0
    told, true = predictions[known] > 0, labels[known] > 0
    return {
        "MAE": float(np.mean(np.abs(predictions - labels))),
        "correlation": float(np.corrcoef(predictions, labels)[0, 1]) if spread else 0.0,
        "Acc-7": float(np.mean(clipped[0] == clipped[1])),
        "Acc-2": float(np.mean(told == true)),
        "F1": weighted_f1(told, true),
        "Acc-2 with 0": float(np.mean((predictions >= 0) == (labels >= 0))),
        "F1 with 0": weighted_f1(predictions >= 0, labels >= 0),
    }


def f1(told: NDArray, true: NDArray) -> float:
    """Return the harmonic mean of precision and sensitivity."""
    return float(2 * np.sum(told & true) / max(1, np.sum(told) + np.sum(true)))


def weighted_f1(told: NDArray, true: NDArray) -> float:
    """Return the mean F1 of both classes, weighted by their true number of samples."""
    total = 0.0
    for label in (False, True):
        hits = np.sum((told == label) & (true == label))
        both = np.sum(told == label) + np.sum(true == label)
        total += float(np.sum(true == label) * 2 * hits / max(1, both))
    return total / max(1, len(true))


def better(task: Task, metrics: dict[str, float]) -> tuple[float, float]:
    """Return the sort key of validation, larger is better: the primary metric, then the loss."""
    value = metrics[task.primary]
    if math.isnan(value):
        return -math.inf, -math.inf
    return (value if task.higher else -value), -metrics.get("log loss", 0.0)


def interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Return the mean and half the width of its Student interval, infinite for one value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, math.inf
    # Training networks does not need SciPy.
    from scipy.stats import t as student  # noqa: PLC0415

    quantile = float(student.ppf((1 + confidence) / 2, len(values) - 1))
    return mean, quantile * statistics.stdev(values) / math.sqrt(len(values))


def _thresholds(scores: NDArray, labels: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """Return the distinct scores, highest first, and how many and how many hits each tells."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1) if len(ranked) else []
    last = np.asarray(last, dtype=int)
    return ranked[last], last + 1, np.cumsum(labels[order] == 1)[last]
