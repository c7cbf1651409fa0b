"""A data set of the benchmark: named modalities, padded and masked, in three parts."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

PARTS = ("train", "validation", "test")
# Suffix of data sets with encoded features.
ENCODED = "-encoded"


class Task(NamedTuple):
    """The target of a data set.

    Attributes:
        kind: Classes, a binary outcome, or a number.
        outputs: Scores per sample: one per class, otherwise 1.
        primary: The metric used on validation data, see `metrics.measure`.
        higher: Whether higher is better.
    """

    kind: Literal["classes", "binary", "regression"]
    outputs: int
    primary: str
    higher: bool = True


@dataclasses.dataclass(frozen=True)
class Budget:
    """The budget on a data set, the same for every method.

    Attributes:
        epochs: Largest number of epochs.
        batch: Samples per step.
        trials: Learning rate and width of each trial.
        patience: Epochs without a better validation score until training stops.
        weight_decay: Weight decay of AdamW.
        sorted_chunks: Batches that are sorted by length together; 1 for batches at random.
        refit: Whether reported models are trained on train and validation together, once settings,
            epoch and threshold are chosen.
        drop_steps: Probability of dropping a time step in training, see `drop_steps`.
    """

    epochs: int
    batch: int
    trials: tuple[tuple[float, int], ...]
    patience: int
    weight_decay: float = 0.05
    sorted_chunks: int = 1
    refit: bool = False
    drop_steps: float = 0.0

    def steps(self, samples: int) -> int:
        """Return the number of batches per epoch, full ones only."""
        return max(1, samples // self.batch)


class Batch(NamedTuple):
    """Some samples, each modality trimmed to the longest; fully missing modalities are omitted."""

    features: dict[str, Tensor]
    masks: dict[str, Tensor]
    present: Tensor
    labels: Tensor


@dataclasses.dataclass(frozen=True)
class Summaries:
    """Fixed numbers of columns for the classical methods.

    Attributes:
        values: ``(samples, columns)``, NaN if missing.
        owner: ``(columns,)``, index of the modality a column comes from.
        absent: ``(columns,)``, value of a column if its modality is missing.
    """

    values: NDArray
    owner: NDArray
    absent: NDArray

    def join(self, other: "Summaries") -> "Summaries":
        """Append the samples of another part."""
        values = np.concatenate((self.values, other.values))
        return Summaries(values, self.owner, self.absent)

    def without(self, present: Tensor | None) -> NDArray:
        """Return the columns with modalities switched off by `present`."""
        if present is None:
            return self.values
        return np.where(present.numpy()[:, self.owner], self.values, self.absent)


@dataclasses.dataclass(frozen=True)
class Part:
    """The samples of a part of the split.

    Attributes:
        features: By modality ``(samples, time, width)``, float32, 0 in padding.
        masks: By modality ``(samples, time)``, True = real; real steps come first.
        labels: ``(samples,)``, int64 classes or float32.
        summaries: For the classical methods.
    """

    features: dict[str, Tensor]
    masks: dict[str, Tensor]
    labels: Tensor
    summaries: Summaries
    lengths: dict[str, Tensor] = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "lengths", {n: m.sum(dim=1) for n, m in self.masks.items()})

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def present(self) -> Tensor:
        """Which samples have which modality, ``(samples, modalities)``."""
        return torch.stack([lengths > 0 for lengths in self.lengths.values()], dim=1)

    @property
    def steps(self) -> Tensor:
        """Real steps of each sample over all modalities, ``(samples,)``."""
        return torch.stack(list(self.lengths.values())).sum(dim=0)

    def batch(self, index: Tensor, names: Sequence[str] | None = None) -> Batch:
        """Select some samples, trimmed; `names` restricts the modalities."""
        chosen = list(self.features) if names is None else list(names)
        lengths = {name: self.lengths[name][index] for name in chosen}
        longest = {name: int(length.max()) for name, length in lengths.items()}
        if not any(longest.values()):
            # One modality must have a step, for the number of samples.
            longest[chosen[0]] = 1
        features, masks = {}, {}
        for name, time in longest.items():
            if time:
                features[name] = self.features[name][:, :time][index]
                if int(lengths[name].min()) < time:
                    masks[name] = self.masks[name][:, :time][index]
        present = torch.stack([length > 0 for length in lengths.values()], dim=1)
        return Batch(features, masks, present, self.labels[index])

    def join(self, other: "Part") -> "Part":
        """Append the samples of another part, padded to the longest of both."""
        features, masks = {}, {}
        for name, x in self.features.items():
            longest = max(x.shape[1], other.features[name].shape[1])
            both = [
                (
                    F.pad(p.features[name], (0, 0, 0, longest - p.features[name].shape[1])),
                    F.pad(p.masks[name], (0, longest - p.masks[name].shape[1])),
                )
                for p in (self, other)
            ]
            features[name], masks[name] = (torch.cat(pair) for pair in zip(*both, strict=True))
        labels = torch.cat((self.labels, other.labels))
        return Part(features, masks, labels, self.summaries.join(other.summaries))

    def to(self, device: str) -> "Part":
        """Move the tensors."""
        if device == "cpu":
            return self
        features, masks = (
            {n: x.to(device) for n, x in of.items()} for of in (self.features, self.masks)
        )
        return Part(features, masks, self.labels.to(device), self.summaries)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set, its statistics fitted on the training part only.

    Attributes:
        name: Its name in the tables.
        title: Content and split, in one line.
        task: The target.
        parts: Train, validation and test.
        budget: The budget of each method.
        reference: Numbers that came with the data: name, metric, value.
        encoded: Whether a small network encodes each step of each modality, the same for every
            method and trained with it.
        turns: Returns the parts of a seed, if each seed has its own validation part.
        compared: Number of missing modalities in comparisons; ``None`` for the point of the curve
            nearest to half.
    """

    name: str
    title: str
    task: Task
    parts: dict[str, Part]
    budget: Budget
    reference: tuple[tuple[str, str, str], ...] = ()
    encoded: bool = False
    turns: Callable[[int], dict[str, Part]] | None = None
    compared: int | None = None

    @functools.cached_property
    def modalities(self) -> dict[str, int]:
        """Feature width of each modality, in declared order."""
        return {name: x.shape[2] for name, x in self.parts["train"].features.items()}

    @property
    def missing(self) -> tuple[int, ...]:
        """Numbers of missing modalities of the curve."""
        return curve(len(self.modalities))

    @functools.cached_property
    def sizes(self) -> dict[str, list[int]]:
        """Samples and real steps of each part."""
        return {name: [len(part), int(part.steps.sum())] for name, part in self.parts.items()}

    @property
    def half(self) -> int:
        """Number of missing modalities in comparisons."""
        if self.compared is not None:
            return self.compared
        return min(self.missing[1:], key=lambda gone: abs(gone - len(self.modalities) / 2))

    def turn(self, seed: int) -> "Dataset":
        """Return the data set with the parts of a seed."""
        return self if self.turns is None else dataclasses.replace(self, parts=self.turns(seed))

    def encode(self) -> "Dataset":
        """Return the data set with encoded features."""
        return dataclasses.replace(self, name=f"{self.name}{ENCODED}", encoded=True)

    def whole(self) -> "Dataset":
        """Return the data set with train and validation joined as the training part."""
        joined = self.parts["train"].join(self.parts["validation"])
        return dataclasses.replace(self, parts={"train": joined, "test": self.parts["test"]})

    def to(self, device: str) -> "Dataset":
        """Move the tensors."""
        if device == "cpu":
            return self

        def move(parts: dict[str, Part]) -> dict[str, Part]:
            return {name: part.to(device) for name, part in parts.items()}

        turns = self.turns
        moved = None if turns is None else lambda seed: move(turns(seed))
        return dataclasses.replace(self, parts=move(self.parts), turns=moved)


def drop_steps(batch: Batch, share: float, chance: torch.Generator) -> Batch:
    """Drop a random share of the real steps; each present modality keeps at least one step."""
    masks = {}
    for name, x in batch.features.items():
        mask = batch.masks.get(name)
        luck = torch.rand(x.shape[:2], generator=chance).to(x.device)
        if mask is not None:
            luck = luck.masked_fill(~mask, -1.0)
        kept = luck >= share
        last = (luck == luck.amax(dim=1, keepdim=True)) & (luck >= 0)
        masks[name] = torch.where(kept.any(dim=1, keepdim=True), kept, last)
    return batch._replace(masks=masks)


def curve(modalities: int) -> tuple[int, ...]:
    """Return 0 to ``modalities - 1``: all of them for up to 8 modalities, else growing strides."""
    if modalities <= 8:
        return tuple(range(modalities))
    points = {0, 1, 2, 4, *range(8, modalities - 1, 8), modalities - 1}
    return tuple(sorted(point for point in points if point < modalities))
