"""GRF without one part of its summaries, or with features in other units, for ablations."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from grf_fusion import GatedRecurrentFusion

Part = Literal["mean", "maximum", "scale", "norm"]


class Unscaled(nn.Module):
    """Raw features."""

    def forward(self, features: Tensor, real: Tensor | None) -> Tensor:  # noqa: ARG002
        """Return the features."""
        return features


class Halved(nn.Module):
    """Keeps one half of the columns and sets the others to 0."""

    def __init__(self, *, first: bool) -> None:
        super().__init__()
        self.first = first

    def forward(self, both: Tensor) -> Tensor:
        """Return the columns of mean and maximum, one of them set to 0."""
        mean, maximum = both.chunk(2, dim=-1)
        none = torch.zeros_like(mean)
        return torch.cat((mean, none) if self.first else (none, maximum), dim=-1)


def take_away(fusion: GatedRecurrentFusion, part: Part) -> None:
    """Remove a part of the default form."""
    for name, summary in fusion.summaries.items():
        if part == "scale":
            fusion.scales[name] = Unscaled()
        elif part == "norm":
            summary.norm = nn.Identity()
        else:
            # The input of the dropout is the concatenated mean and maximum.
            summary.dropout = nn.Sequential(summary.dropout, Halved(first=part == "maximum"))


def multiply(fusion: GatedRecurrentFusion, factor: float) -> None:
    """Multiply the features of the first modality, as if in other units."""
    first = next(iter(fusion.modalities))

    def in_other_units(_: nn.Module, given: tuple[Mapping[str, Tensor]]) -> tuple[Any]:
        return ({name: x * factor if name == first else x for name, x in given[0].items()},)

    fusion.register_forward_pre_hook(in_other_units)
