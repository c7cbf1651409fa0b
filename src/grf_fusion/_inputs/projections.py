"""How features enter a fusion: filled, projected, and given positions."""

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
        steps: ``(batch, time, dim)``, projected; an absent modality is one empty step.
        real: ``(batch, time)`` bool: real steps, ``None`` for all.
        present: ``(batch,)`` bool: samples that have at least one real step.
    """

    steps: Tensor
    real: Tensor | None
    present: Tensor

    def pool(self) -> Tensor:
        """Return the mean of the real steps, ``(batch, dim)``, 0 for a sample without any."""
        return masked_mean(self.steps, self.real)


def fill(arrival: Arrival) -> tuple[Tensor, Tensor | None]:
    """Return features and real steps, with zeros for whatever is not real."""
    features, real, present, _ = arrival
    if present is not None:
        column = present.unsqueeze(1).expand(features.shape[:2])
        real = column if real is None else restrict(real, column)
    # Filled before it is projected: a NaN that is masked later has already met the weights.
    return fill_masked(features, real), real


def add_positions(sequence: Tensor, like: Tensor) -> Tensor:
    """Add PE, at least in the precision of ``like``, which is that of the parameters."""
    length, dim = sequence.shape[1:]
    # A quantised projection has weights of another dtype than its result.
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
    """Return a parameter that tells dtype and device."""
    return cast(nn.Linear, next(iter(projections.values()))).weight


def project_all(projections: nn.ModuleDict, arrivals: Mapping[str, Arrival]) -> dict[str, Received]:
    """Project every modality, in declared order, with zeros for whatever is not real."""
    received: dict[str, Received] = {}
    for name, arrival in arrivals.items():
        features, real = fill(arrival)
        received[name] = Received(projections[name](features), real, arrival.presence())
    return received


def join(parts: list[Tensor], masks: list[Tensor | None]) -> tuple[Tensor, Tensor | None]:
    """Lay sequences one after the other.

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
    """Give 0 to samples that have no modality at all."""
    someone = torch.stack([part.present for part in parts], dim=1).any(dim=1)
    return fused.masked_fill(~someone.unsqueeze(1), 0.0)
