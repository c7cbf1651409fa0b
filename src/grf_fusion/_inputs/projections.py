"""Preparation of features for a fusion: fill padded steps with 0, project, add positions."""

from collections.abc import Collection, Mapping
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from grf_fusion._checks.options import Where
from grf_fusion._inputs.call import Arrival
from grf_fusion._inputs.lengths import restrict
from grf_fusion._inputs.masks import fill_masked, masked_mean
from grf_fusion._inputs.positions import sinusoidal_positions


class Received(NamedTuple):
    """A modality of a batch.

    Attributes:
        steps: ``(batch, time, dim)``, projected; one masked step if no features were given.
        real: ``(batch, time)`` bool: real steps, ``None`` for all.
        present: ``(batch,)`` bool: samples that have at least one real step.
    """

    steps: Tensor
    real: Tensor | None
    present: Tensor

    def pool(self) -> Tensor:
        """Return the mean over the real steps, ``(batch, dim)``; 0 if a sample has none."""
        return masked_mean(self.steps, self.real)


def find_real(arrival: Arrival) -> Tensor | None:
    """Return the mask of real steps, ``(batch, time)``; ``None`` if all are real."""
    features, real, present, _ = arrival
    if present is None:
        return real
    column = present.unsqueeze(1).expand(features.shape[:2])
    return column if real is None else restrict(real, column)


def add_positions(sequence: Tensor, like: Tensor) -> Tensor:
    """Add position encodings, in at least the precision of the parameter ``like``."""
    length, dim = sequence.shape[1:]
    # The weights of a quantised projection differ in dtype from its result.
    dtype = torch.promote_types(sequence.dtype, like.dtype)
    return sequence + sinusoidal_positions(length, dim, device=like.device, dtype=dtype)


def make_projections(
    modalities: Mapping[str, int], dim: int, *, bias: bool = True, **where: Unpack[Where]
) -> nn.ModuleDict:
    """Make a linear layer for each modality."""
    return nn.ModuleDict(
        {name: nn.Linear(size, dim, bias=bias, **where) for name, size in modalities.items()}
    )


def weight_of(projections: nn.ModuleDict) -> Tensor:
    """Return a parameter from which dtype and device of a fusion are read."""
    return cast(nn.Linear, next(iter(projections.values()))).weight


def project_all(projections: nn.ModuleDict, arrivals: Mapping[str, Arrival]) -> dict[str, Received]:
    """Project every modality, in declared order, after filling padded and missing steps with 0."""
    received: dict[str, Received] = {}
    for name, arrival in arrivals.items():
        real = find_real(arrival)
        # A NaN that is masked only after the projection makes the gradient of its weight NaN.
        features = fill_masked(arrival.features, real)
        received[name] = Received(projections[name](features), real, arrival.presence())
    return received


def join(parts: list[Tensor], masks: list[Tensor | None]) -> tuple[Tensor, Tensor | None]:
    """Concatenate sequences and their masks along time.

    Shape:
        - parts: ``(batch, time_k, dim)`` each
        - masks: ``(batch, time_k)`` each, ``None`` for all real
        - output: ``(batch, time, dim)`` and ``(batch, time)`` or ``None`` for all real
    """
    steps = torch.cat(parts, dim=1)
    if all(mask is None for mask in masks):
        return steps, None
    whole = [
        torch.ones(part.shape[:2], dtype=torch.bool, device=part.device) if mask is None else mask
        for part, mask in zip(parts, masks, strict=True)
    ]
    return steps, torch.cat(whole, dim=1)


def clear_empty(fused: Tensor, parts: Collection[Received]) -> Tensor:
    """Set the result of samples without any modality to 0."""
    some = torch.stack([part.present for part in parts], dim=1).any(dim=1)
    return fused.masked_fill(~some.unsqueeze(1), 0.0)
