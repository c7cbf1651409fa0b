"""A small made-up data set with gaps and unequal lengths, for tests of the harness."""

import torch

from benchmarks.quality.datasets.dataset import Budget, Dataset, Part, Task
from benchmarks.quality.datasets.prepare import summaries_of

WIDTHS = {"a": 3, "b": 2, "c": 5}
LONGEST = {"a": 4, "b": 7, "c": 1}
SIZES = {"train": 96, "validation": 48, "test": 64}
TASKS = {
    "classes": Task("classes", 3, "accuracy"),
    "binary": Task("binary", 1, "AUROC"),
    "regression": Task("regression", 1, "MAE", higher=False),
}


def synthetic(kind: str = "classes", seed: int = 0) -> Dataset:
    """Make the data set: each modality has a third of the signal, and a fifth is missing."""
    generator = torch.Generator().manual_seed(seed)
    parts = {}
    for name, size in SIZES.items():
        signal = torch.randn(size, len(WIDTHS), generator=generator)
        features, masks, columns = {}, {}, {}
        for k, (modality, width) in enumerate(WIDTHS.items()):
            time = LONGEST[modality]
            lengths = torch.randint(1, time + 1, (size, 1), generator=generator)
            # The first modality is always present, so every sample has one.
            absent = (torch.rand(size, 1, generator=generator) < 0.2) & (k > 0)
            mask = (torch.arange(time) < lengths) & ~absent
            noise = 0.3 * torch.randn(size, time, width, generator=generator)
            steps = (signal[:, k, None, None] + noise) * mask[..., None]
            features[modality], masks[modality] = steps, mask
            count = mask.sum(dim=1, keepdim=True)
            columns[modality] = torch.where(
                count > 0, steps.sum(dim=1) / count.clamp(min=1), torch.nan
            ).numpy()
        total = signal.sum(dim=1)
        labels = {
            "classes": torch.bucketize(total, torch.tensor([-0.7, 0.7])),
            "binary": (total > 0).float(),
            "regression": total,
        }[kind]
        parts[name] = Part(features, masks, labels, summaries_of(columns))
    budget = Budget(2, 32, ((1e-2, 8), (3e-2, 8)), 5)
    title = "made up, for tests: its numbers mean nothing"
    return Dataset(f"synthetic-{kind}", title, TASKS[kind], parts, budget)
