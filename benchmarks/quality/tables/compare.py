"""Differences between methods with intervals, by a bootstrap of test samples and seeds in pairs.

A replicate draws test samples and seeds with replacement, the same ones for both methods, and
takes the difference of their metrics. With modalities missing both were tested with the same draws
of who lacks what, and the metric is averaged over these draws. The interval holds the middle 95 %
of the replicates; a method is ahead only where it excludes 0.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.datasets.dataset import Task
from benchmarks.quality.predictions import unpack, unpack_labels

REPLICATES, CONFIDENCE, SEED = 1000, 0.95, 0


class Difference(NamedTuple):
    """By how much one method is better than another; more is better whatever the metric.

    Attributes:
        mean: Over seeds, of the test part as it is.
        low: Lower end of the interval.
        high: Upper end.
    """

    mean: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """Whether it is ahead."""
        if self.low > 0:
            return "ahead"
        return "behind" if self.high < 0 else "level"


class Bootstrap:
    """The replicates of a data set, the same for all methods.

    Only seeds that both methods have are compared, one with the same one of the other.
    """

    def __init__(self, about: Mapping[str, Any]) -> None:
        """Draw the samples of each replicate."""
        self.task = Task(**about["task"])
        self.samples = int(about["samples"]["test"])
        self.labels = None if about["labels"] is None else unpack_labels(about["labels"])
        rng = np.random.default_rng(SEED)
        chances = np.full(self.samples, 1 / self.samples)
        drawn = rng.multinomial(self.samples, chances, size=REPLICATES)
        # The first one is the test part as it is.
        whole = np.ones((1, self.samples))
        # Replicates lie side by side: sorting samples then moves whole rows.
        self.weights = np.ascontiguousarray(np.concatenate((whole, drawn)).T, dtype=np.float32)

    def replicate(self, packed: Sequence[str]) -> NDArray:
        """Return the metric of each replicate of one seed, averaged over draws of absence."""
        values = [unpack(self.task, text, self.samples) for text in packed]
        found = [weighted(self.task, value, self.labels, self.weights) for value in values]
        return np.mean(found, axis=0)

    def difference(self, one: Mapping[int, NDArray], other: Mapping[int, NDArray]) -> Difference:
        """Compare two methods by the replicates of each seed."""
        seeds = sorted(one.keys() & other.keys())
        gaps = np.stack([one[seed] - other[seed] for seed in seeds], axis=1)
        gaps = gaps if self.task.higher else -gaps
        rng = np.random.default_rng(SEED + 1)
        chances = np.full(len(seeds), 1 / len(seeds))
        drawn = rng.multinomial(len(seeds), chances, size=REPLICATES) / len(seeds)
        means = np.nansum(gaps[1:] * drawn, axis=1)
        tail = 50 * (1 - CONFIDENCE)
        low, high = np.percentile(means, [tail, 100 - tail])
        return Difference(float(gaps[0].mean()), float(low), float(high))


def weighted(task: Task, values: NDArray, labels: NDArray | None, weights: NDArray) -> NDArray:
    """Return the primary metric of samples that count so many times each.

    Shape:
        - values: ``(samples,)``, as `predictions.unpack` returns them
        - weights: ``(samples, replicates)``
        - output: ``(replicates,)``
    """
    if task.primary == "AUROC":
        return _auroc(values, labels == 1, weights)
    if task.primary != "macro accuracy":
        # Accuracy of bits, mean absolute error of errors.
        return values.astype(np.float32) @ weights / weights.sum(axis=0)
    shares = []
    for label in np.unique(labels):
        own = weights[labels == label]
        count = own.sum(axis=0)
        right = values[labels == label].astype(np.float32) @ own
        shares.append(np.where(count > 0, right / np.maximum(count, 1), np.nan))
    # A class that a replicate has not drawn says nothing.
    return np.nanmean(shares, axis=0)


def _auroc(ranks: NDArray, positive: NDArray, weights: NDArray) -> NDArray:
    order = np.argsort(ranks, kind="stable")
    starts = np.flatnonzero(np.diff(ranks[order], prepend=-1))
    # Counts of some thousand samples are exact in float32.
    weights, positive = weights[order], positive[order, None]
    hits, rest = weights * positive, weights * ~positive
    if len(starts) < len(ranks):
        hits, rest = (np.add.reduceat(counts, starts, axis=0) for counts in (hits, rest))
    total = hits.sum(axis=0, dtype=np.float64) * rest.sum(axis=0, dtype=np.float64)
    some = np.flatnonzero(hits.any(axis=1))
    hits, level = hits[some], rest[some]
    # Negatives below a positive, and half of those of the same rank.
    below = np.cumsum(rest, axis=0, out=rest)[some] - level / 2
    pairs = np.einsum("sr,sr->r", hits, below, dtype=np.float64)
    return np.where(total > 0, pairs / np.maximum(total, 1), np.nan)
