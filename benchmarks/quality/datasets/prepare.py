"""Preparation of data sets: standardised values, held-out samples, parts of arrays."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.quality.datasets.dataset import Part, Summaries

Arrays = Mapping[str, NDArray]


def grid(rates: Sequence[float], widths: Sequence[int]) -> tuple[tuple[float, int], ...]:
    """Return all pairs."""
    return tuple((rate, width) for width in widths for rate in rates)


def summaries_of(columns: Mapping[str, NDArray]) -> Summaries:
    """Make summaries of columns ``(samples, columns_k)`` by modality, NaN if missing."""
    owner = [np.full(x.shape[1], k) for k, x in enumerate(columns.values())]
    values = np.concatenate([x.astype(np.float64) for x in columns.values()], axis=1)
    return Summaries(values, np.concatenate(owner), np.full(values.shape[1], np.nan))


def standardise(values: NDArray, train: NDArray, axis: int | tuple[int, ...]) -> NDArray:
    """Subtract mean and divide by deviation of the training rows, and clip to ±5."""
    usual = values[train].astype(np.float64)
    spread = np.maximum(usual.std(axis=axis, keepdims=True), 1e-6)
    return ((values - usual.mean(axis=axis, keepdims=True)) / spread).clip(-5, 5)


def stratified(labels: NDArray, share: float, seed: int) -> NDArray:
    """Return which samples to hold out: the same share of every class, at random."""
    held = np.zeros(len(labels), dtype=bool)
    rng = np.random.default_rng(seed)
    for label in np.unique(labels):
        own = rng.permutation(np.flatnonzero(labels == label))
        held[own[: round(share * len(own))]] = True
    return held


def few(index: NDArray, most: int | None) -> NDArray:
    """Return some of the samples, spread evenly, for a trial run."""
    if most is None or len(index) <= most:
        return index
    return index[np.linspace(0, len(index) - 1, most).astype(int)]


def parts_of(
    features: Mapping[str, NDArray],
    columns: Mapping[str, NDArray],
    labels: NDArray,
    belongs: Mapping[str, NDArray],
    most: int | None,
) -> dict[str, Part]:
    """Make parts from arrays in which every step is real.

    Args:
        features: ``(samples, time, width)`` by modality.
        columns: ``(samples, columns)`` by modality, for the classical methods.
        labels: ``(samples,)``.
        belongs: Which samples belong to each part, ``(samples,)``.
        most: Samples of each part, for a trial run.
    """
    parts = {}
    for part, own in belongs.items():
        rows = few(np.flatnonzero(own), most)
        tensors = {
            n: torch.from_numpy(np.ascontiguousarray(x[rows])).float() for n, x in features.items()
        }
        masks = {n: torch.ones(x.shape[:2], dtype=torch.bool) for n, x in tensors.items()}
        summaries = summaries_of({name: x[rows] for name, x in columns.items()})
        parts[part] = Part(tensors, masks, torch.from_numpy(labels[rows]), summaries)
    return parts
