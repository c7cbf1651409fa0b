"""The method that all baselines share."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor, nn

from grf_fusion._inputs.call import presence_matrix
from grf_fusion._inputs.projections import weight_of


class Fusion(Protocol):
    """What the method needs of a baseline."""

    modalities: dict[str, int]
    projections: nn.ModuleDict


def presence(
    self: Fusion,
    features: Mapping[str, Tensor | None],
    *,
    masks: Mapping[str, Tensor | None] | None = None,
    present: Tensor | None = None,
) -> Tensor:
    """Return which samples have which modality; see `GatedRecurrentFusion.presence`."""
    owner, like = type(self).__name__, weight_of(self.projections)
    return presence_matrix(owner, features, masks, present, declared=self.modalities, like=like)
