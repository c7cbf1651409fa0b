"""The sizes of each workload, and random batches of them."""

from typing import NamedTuple

import torch
from torch import Tensor

DROPOUT = 0.2
FORWARD, TRAIN, TRAIN_DROPOUT, MEMORY = "forward", "training", "training, dropout 0.2", "memory"
ALL = (FORWARD, TRAIN, TRAIN_DROPOUT, MEMORY)

TITLES = {
    "A": "CMU-MOSI, unaligned: batch 32, lengths 50, 375 and 500, 20 to 100 % of steps real",
    "B": "the same three modalities, batch 32, all of length 50, no padding",
    "B ragged": "the same three modalities, batch 32, length 50, 20 to 100 % of steps real",
    "C": "n modalities of length 50 and width 64, batch 16, no padding",
    "D": "three modalities of equal length and width 64, batch 4, no padding",
    "E": "streaming: batch 1, text (50) and audio (375) cached, a chunk of vision of this length",
    "F": "tiny inputs: batch 1, three modalities of length 1 to 8, no masks",
}


class Workload(NamedTuple):
    """One batch shape.

    Attributes:
        group: Key of `TITLES`.
        size: The size that grows within the group, 0 if none does.
        batch: Samples.
        sequences: Length and feature width of each modality.
        figures: Figures to measure.
        ragged: Whether real lengths vary from 20 to 100 %.
        masked: Whether masks are passed.
    """

    group: str
    size: int
    batch: int
    sequences: dict[str, tuple[int, int]]
    figures: tuple[str, ...]
    ragged: bool = False
    masked: bool = True

    @property
    def modalities(self) -> dict[str, int]:
        """Feature width of each modality."""
        return {name: width for name, (_, width) in self.sequences.items()}

    def draw(self, seed: int = 0) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
        """Draw features, also random in padded steps, and masks, or `None` without masks."""
        generator = torch.Generator().manual_seed(seed)
        features, masks = {}, {}
        for name, (time, width) in self.sequences.items():
            shape = (self.batch, time, width)
            features[name] = torch.randn(shape, generator=generator)
            fewest = max(1, time // 5) if self.ragged else time
            lengths = torch.randint(fewest, time + 1, (self.batch, 1), generator=generator)
            masks[name] = torch.arange(time) < lengths
        return features, masks if self.masked else None


def workloads(*, quick: bool) -> dict[str, list[Workload]]:
    """Return the workloads by group, smallest first; `quick` shrinks them to a trial run."""

    def mosi(text: int, audio: int, vision: int) -> dict[str, tuple[int, int]]:
        return {"text": (text, 300), "audio": (audio, 5), "vision": (vision, 20)}

    def equal(number: int, length: int) -> dict[str, tuple[int, int]]:
        return {f"m{k}": (length, 64) for k in range(number)}

    counts = (2, 3) if quick else (2, 3, 4, 6, 8, 12, 16)
    lengths = (16, 32) if quick else (128, 256, 512, 1024, 2048, 4096, 8192)
    ticks = (5,) if quick else (5, 50, 500)
    tiny = (1, 2) if quick else range(1, 9)
    batch, full = (2, mosi(5, 37, 50)) if quick else (32, mosi(50, 375, 500))
    short = mosi(50, 50, 50)
    some = (FORWARD, TRAIN_DROPOUT)
    return {
        "A": [Workload("A", 0, batch, full, ALL, ragged=True)],
        "B": [
            Workload("B", 0, batch, short, ALL),
            Workload("B ragged", 0, batch, short, ALL, ragged=True),
        ],
        "C": [Workload("C", n, 4 if quick else 16, equal(n, 50), some) for n in counts],
        "D": [Workload("D", time, 4, equal(3, time), (*some, MEMORY)) for time in lengths],
        "E": [
            Workload("E", time, 1, full | {"vision": (time, 20)}, (FORWARD,), masked=False)
            for time in ticks
        ],
        "F": [
            Workload("F", time, 1, mosi(time, time, time), (FORWARD,), masked=False)
            for time in tiny
        ],
    }
