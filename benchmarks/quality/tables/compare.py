"""Differences between methods with intervals, by a paired bootstrap of test samples and seeds.

A replicate draws test samples and seeds with replacement, the same ones for both methods, and
takes the difference of their metrics. With modalities missing, both were tested with the same draws
of missing modalities, and the metric is averaged over these draws. The interval is the middle 95 %
of the replicates; a method is ahead only if it excludes 0.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.datasets.dataset import Task
from benchmarks.quality.predictions import unpack, unpack_labels

REPLICATES, CONFIDENCE, SEED = 1000, 0.95, 0


class Difference(NamedTuple):
    """The advantage of one method over another, positive if better, for every metric.

    Attributes:
        mean: Mean over seeds on the original test part.
        low: Lower end of the interval.
        high: Upper end.
    """

    mean: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """Whether the method is ahead, level or behind."""
        if self.low > 0:
            return "ahead"
        return "behind" if self.high < 0 else "level"


class Bootstrap:
    """The replicates of a data set, the same for all methods.

    Methods are compared seed by seed, on the seeds that both have.
    """

    def __init__(self, about: Mapping[str, Any]) -> None:
        """Draw the samples of each replicate."""
        self.task = Task(**about["task"])
        self.samples = int(about["samples"]["test"])
        self.labels = None if about["labels"] is None else unpack_labels(about["labels"])
        rng = np.random.default_rng(SEED)
        chances = np.full(self.samples, 1 / self.samples)
        drawn = rng.multinomial(self.samples, chances, size=REPLICATES)
        # The first replicate is the original test part.
        whole = np.ones((1, self.samples))
        # Replicates lie side by side: sorting samples then moves whole rows.
        self.weights = np.ascontiguousarray(np.concatenate((whole, drawn)).T, dtype=np.float32)

    def replicate(self, packed: Sequence[str]) -> NDArray:
        """Return the metric of each replicate of one seed, averaged over draws."""
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
    """Return the primary metric with a weight for each sample.

    Shape:
        - values: ``(samples,)``, as returned by `predictions.unpack`
        - weights: ``(samples, replicates)``
        - output: ``(replicates,)``
    """
    if task.primary == "AUROC":
        return _auroc(values, labels == 1, weights)
    if task.primary != "macro accuracy":
        # The values are bits for accuracy and errors for mean absolute error.
        return values.astype(np.float32) @ weights / weights.sum(axis=0)
    shares = []
    for label in np.unique(labels):
        own = weights[labels == label]
        count = own.sum(axis=0)
        right = values[labels == label].astype(np.float32) @ own
        shares.append(np.where(count > 0, right / np.maximum(count, 1), np.nan))
    # A replicate ignores classes that it has not drawn.
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
