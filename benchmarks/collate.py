"""Compare the time of `collate` with that of the same batch made by hand with `pad_sequence`.

    python -m benchmarks.collate

"By hand" is the code of a user who knows which sample lacks which modality, without any checks.
Both are called in turns, so that a slow phase of the machine affects both. The cases range from
short vectors to the features of pretrained encoders.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from grf_fusion import collate

Samples = list[dict[str, Tensor | None]]
Made = tuple[dict[str, Tensor], dict[str, Tensor], Tensor]


class Case(NamedTuple):
    """Widths and longest lengths by modality, and the number of samples."""

    name: str
    widths: Mapping[str, int]
    longest: Mapping[str, int]
    batch: int


CASES = (
    Case("vectors", {"a": 16, "b": 32, "c": 8}, {"a": 1, "b": 1, "c": 1}, 32),
    Case("short series", {"a": 16, "b": 32, "c": 8}, {"a": 20, "b": 50, "c": 10}, 32),
    Case(
        "BERT, ViT, wav2vec 2",
        {"text": 768, "image": 768, "audio": 768},
        {"text": 64, "image": 197, "audio": 149},
        16,
    ),
)


def draw(case: Case, absent: float) -> Samples:
    """Draw samples with different lengths and missing modalities."""
    generator = torch.Generator().manual_seed(0)
    samples: Samples = []
    for _ in range(case.batch):
        sample: dict[str, Tensor | None] = {}
        for name, width in case.widths.items():
            if torch.rand((), generator=generator) < absent:
                continue
            time_ = int(torch.randint(1, case.longest[name] + 1, (), generator=generator))
            sample[name] = torch.randn(time_, width, generator=generator)
        samples.append(sample)
    return samples


def by_hand(samples: Sequence[Mapping[str, Tensor | None]], widths: Mapping[str, int]) -> Made:
    """Pad each modality, with an empty sequence for samples that lack it."""
    features: dict[str, Tensor] = {}
    masks: dict[str, Tensor] = {}
    columns: list[Tensor] = []
    for name, width in widths.items():
        rows: list[Tensor] = []
        for sample in samples:
            row = sample.get(name)
            rows.append(torch.empty(0, width) if row is None else row)
        lengths = torch.tensor([len(row) for row in rows])
        features[name] = pad_sequence(rows, batch_first=True)
        masks[name] = torch.arange(features[name].shape[1]) < lengths.unsqueeze(1)
        columns.append(lengths > 0)
    return features, masks, torch.stack(columns, dim=1)


def race(calls: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Return the median seconds of each call, all called in turns."""
    taken: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for call, seconds in zip(calls, taken, strict=True):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
    return [statistics.median(seconds) for seconds in taken]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=500)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sys.stdout.write(
        "| samples | absent | by hand, us | collate, us | ratio |\n|---|---|---|---|---|\n"
    )
    for case in CASES:
        for absent in (0.0, 0.3):
            samples = draw(case, absent)
            hand, ours = race(
                [
                    lambda samples=samples, case=case: by_hand(samples, case.widths),
                    lambda samples=samples, case=case: collate(samples, case.widths),
                ],
                arguments.repeats,
            )
            sys.stdout.write(
                f"| {case.batch} x {case.name} | {absent:.0%} | {1e6 * hand:.0f} "
                f"| {1e6 * ours:.0f} | {ours / hand:.2f} |\n"
            )


if __name__ == "__main__":
    main()
