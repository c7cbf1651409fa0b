"""rosmap: three omics of the same people, with the split of other papers."""

import numpy as np

from benchmarks.quality.datasets.dataset import Budget, Dataset, Task
from benchmarks.quality.datasets.prepare import Arrays, grid, parts_of, standardise, stratified

OMICS = ("mrna", "methylation", "mirna")
VALIDATION, SPLIT_SEED = 0.2, 106


def rosmap(arrays: Arrays, most: int | None = None) -> Dataset:
    """Make the data set: a stratified fifth of the training people validates, then all train.

    The test people are those of the archive.
    """
    labels = np.concatenate((arrays["label_train"], arrays["label_test"]))
    known = np.arange(len(labels)) < len(arrays["label_train"])
    held = np.zeros(len(labels), dtype=bool)
    held[known] = stratified(arrays["label_train"], VALIDATION, SPLIT_SEED)
    belongs = {"train": known & ~held, "validation": held, "test": ~known}
    columns = {
        name: standardise(
            np.concatenate((arrays[f"{name}_train"], arrays[f"{name}_test"])), belongs["train"], 0
        )
        for name in OMICS
    }
    features = {name: x[:, None] for name, x in columns.items()}
    return Dataset(
        "rosmap",
        "Alzheimer's disease or control from three omics, the split of MOGONET's authors; a "
        "stratified fifth of its training part for validation",
        Task("binary", 1, "AUROC"),
        parts_of(features, columns, labels.astype(np.float32), belongs, most),
        Budget(40, 32, grid((3e-4, 1e-3), (32, 64)), 40, refit=True),
        (
            ("all three, standardised logistic regression, as reported", "accuracy", ".821"),
            ("all three, standardised logistic regression, as reported", "AUROC", ".896"),
        ),
    )
