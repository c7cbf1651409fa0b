"""rosmap: three omics of the same people, with the split that other papers report on."""

import numpy as np
import torch

from benchmarks.quality.data import (
    Arrays,
    Budget,
    Dataset,
    Part,
    Task,
    curve,
    few,
    grid,
    standardise,
    stratified,
    summaries_of,
)

OMICS = ("mrna", "methylation", "mirna")
VALIDATION, SPLIT_SEED = 0.2, 106


def rosmap(arrays: Arrays, most: int | None = None) -> Dataset:
    """Make the data set: a stratified fifth of the training people chooses, then all of them train.

    The people to test on are those of the archive.
    """
    labels = np.concatenate((arrays["label_train"], arrays["label_test"]))
    known = np.arange(len(labels)) < len(arrays["label_train"])
    held = np.zeros(len(labels), dtype=bool)
    held[known] = stratified(arrays["label_train"], VALIDATION, SPLIT_SEED)
    index = {"train": known & ~held, "validation": held, "test": ~known}
    columns = {
        name: standardise(
            np.concatenate((arrays[f"{name}_train"], arrays[f"{name}_test"])), index["train"], 0
        )
        for name in OMICS
    }
    parts = {}
    for part, of in index.items():
        rows = few(np.flatnonzero(of), most)
        features = {n: torch.from_numpy(x[rows]).float().unsqueeze(1) for n, x in columns.items()}
        masks = {name: torch.ones(x.shape[:2], dtype=torch.bool) for name, x in features.items()}
        summaries = summaries_of({name: x[rows] for name, x in columns.items()})
        target = torch.from_numpy(labels[rows].astype(np.float32))
        parts[part] = Part(features, masks, target, summaries)
    widths = {name: x.shape[1] for name, x in columns.items()}
    return Dataset(
        "rosmap",
        "Alzheimer's disease against control from three omics, the split of MOGONET's authors; a "
        "stratified fifth of its training part for validation",
        widths,
        Task("binary", 1, "AUROC"),
        parts,
        Budget(40, 32, grid((3e-4, 1e-3), (32, 64)), 40, refit=True),
        curve(len(widths)),
        (
            ("all three, standardised logistic regression, as reported", "accuracy", ".821"),
            ("all three, standardised logistic regression, as reported", "AUROC", ".896"),
        ),
    )
