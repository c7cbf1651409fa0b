"""icu2012: 37 clinical series without resampling, each event a step of its sequence.

Nothing is resampled or filled. A step is the value, the time since admission, and the time since
the previous event of the same series. Values are converted to normal scores: the rank of a value
among all training events of its series, mapped to the normal distribution. The result is between -3
and 3, regardless of unit, skew or typing errors (a pH of 735). The data known at admission are the
38th modality, with one step.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.quality.datasets.dataset import Budget, Dataset, Part, Summaries, Task
from benchmarks.quality.datasets.prepare import Arrays, few, grid, stratified

FEATURES = 3
MINUTES = 2880
FURTHEST = 3.0
VALIDATION = 0.2
SPLIT_SEED = 2012
STATIC = "static"
# Column of `static` with the kind of unit, one of four.
ICU_TYPE = 3
UNITS = (1, 2, 3, 4)
STATISTICS = 6  # count, mean, minimum, maximum, first, last

REFERENCE = (
    ("logistic regression on summaries, train on all of a, as reported", "AUROC", ".843"),
    ("logistic regression on summaries, train on all of a, as reported", "AUPRC", ".503"),
    ("gradient boosting on summaries, train on all of a, as reported", "AUROC", ".852 to .855"),
    ("gradient boosting on summaries, train on all of a, as reported", "AUPRC", ".511 to .517"),
)


class NormalScores:
    """Maps values to their rank among known ones, on the scale of a normal variable."""

    def __init__(self, known: NDArray) -> None:
        """Store the known values."""
        self.known = np.sort(known)

    def __call__(self, values: NDArray) -> NDArray:
        """Return the scores; equal values share the middle of their ranks."""
        places = [np.searchsorted(self.known, values, side) for side in ("left", "right")]
        share = (sum(places) / 2 + 0.5) / (len(self.known) + 1)
        return torch.special.ndtri(torch.from_numpy(share)).numpy().clip(-FURTHEST, FURTHEST)


def icu2012(arrays: Arrays, most: int | None = None) -> Dataset:
    """Make the data set: train on set a, validate on a stratified fifth of it, test on set b."""
    own, tests = (np.flatnonzero(arrays["set"] == k) for k in (0, 1))
    held = stratified(arrays["death"][own], VALIDATION, SPLIT_SEED)
    index = {"train": own[~held], "validation": own[held], "test": tests}
    series = [str(name) for name in arrays["parameter_names"]]
    stay = np.repeat(np.arange(len(arrays["record"])), np.diff(arrays["offset"]))
    is_train = np.isin(stay, index["train"])
    scores = {
        name: NormalScores(arrays["value"][is_train & (arrays["parameter"] == p)])
        for p, name in enumerate(series)
    }
    static = _static(arrays["static"], index["train"])
    parts = {}
    for part, of_part in index.items():
        rows = few(of_part, most)
        features = {STATIC: torch.from_numpy(static[rows]).float().unsqueeze(1)}
        masks = {STATIC: torch.ones(len(rows), 1, dtype=torch.bool)}
        columns = [np.where(arrays["static"][rows] < 0, np.nan, arrays["static"][rows])]
        # Row of each stay in this part, -1 if it is in another part.
        place = np.full(len(arrays["record"]), -1)
        place[rows] = np.arange(len(rows))
        here = place[stay] >= 0
        for p, name in enumerate(series):
            events = np.flatnonzero(here & (arrays["parameter"] == p))
            sample, values = place[stay[events]], arrays["value"][events]
            # `few` and the split keep stays in order, so events of a stay stay together.
            minutes = arrays["minute"][events].astype(np.float64)
            columns.append(summarise(sample, values, len(rows)))
            features[name], masks[name] = _lay_out(sample, scores[name](values), minutes, len(rows))
        parts[part] = Part(
            features,
            masks,
            torch.from_numpy(arrays["death"][rows].astype(np.float32)),
            _join(columns),
        )
    return Dataset(
        "icu2012",
        "death in hospital, from 37 clinical series of 48 hours and data known at admission; train "
        "on set a, a stratified fifth of it for validation, test on set b",
        Task("binary", 1, "AUROC"),
        parts,
        Budget(8, 64, grid((1e-3, 3e-3), (64,)), 8, sorted_chunks=8, refit=True, drop_steps=0.5),
        REFERENCE,
    )


def summarise(sample: NDArray, values: NDArray, samples: int) -> NDArray:
    """Return count, mean, minimum, maximum, first and last of each sample's events.

    Args:
        sample: ``(events,)``, the sample of each event, sorted by sample and time.
        values: ``(events,)``.
        samples: Number of samples.
    """
    table = np.full((samples, STATISTICS), np.nan)
    count = np.bincount(sample, minlength=samples)
    table[:, 0] = count
    has = count > 0
    if has.any():
        starts = np.flatnonzero(np.diff(sample, prepend=-1))
        ends = np.append(starts[1:], len(sample)) - 1
        whose = sample[starts]
        exact = values.astype(np.float64)
        table[whose, 1] = np.add.reduceat(exact, starts) / count[whose]
        table[whose, 2] = np.minimum.reduceat(exact, starts)
        table[whose, 3] = np.maximum.reduceat(exact, starts)
        table[whose, 4], table[whose, 5] = exact[starts], exact[ends]
    return table


def _lay_out(
    sample: NDArray, scores: NDArray, minutes: NDArray, samples: int
) -> tuple[Tensor, Tensor]:
    """Put the events of a series into rows, padded at the end."""
    count = np.bincount(sample, minlength=samples)
    before = np.cumsum(count) - count
    place = np.arange(len(sample)) - before[sample]
    first = place == 0
    previous = np.where(first, 0.0, np.append(0.0, minutes[:-1])[: len(minutes)])
    longest = max(1, int(place.max(initial=0)) + 1)
    steps = torch.zeros(samples, longest, FEATURES)
    mask = torch.zeros(samples, longest, dtype=torch.bool)
    gap = np.log1p((minutes - previous) / 60) / np.log1p(MINUTES / 60)
    step = np.stack((scores, 2 * minutes / MINUTES - 1, gap), axis=1)
    rows = torch.from_numpy(sample), torch.from_numpy(place)
    steps[rows] = torch.from_numpy(step).float()
    mask[rows] = True
    return steps, mask


def _static(static: NDArray, train: NDArray) -> NDArray:
    """Return scores (0 if missing), kinds of unit and flags of missing values."""
    columns = []
    for k in range(static.shape[1]):
        values = static[:, k]
        missing = values < 0
        if k == ICU_TYPE:
            columns += [values == unit for unit in UNITS]
            continue
        scored = NormalScores(values[train][~missing[train]])(values)
        columns += [np.where(missing, 0.0, scored), missing]
    return np.stack(columns, axis=1).astype(np.float64)


def _join(columns: list[NDArray]) -> Summaries:
    """Join the summaries of all modalities; the count of a missing series is 0."""
    owner = np.concatenate([np.full(x.shape[1], k) for k, x in enumerate(columns)])
    absent = np.full(len(owner), np.nan)
    absent[columns[0].shape[1] :: STATISTICS] = 0.0
    return Summaries(np.concatenate(columns, axis=1), owner, absent)
