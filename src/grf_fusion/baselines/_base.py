"""What all baselines start from: declared modalities with a projection each, and their presence."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from grf_fusion._inputs.call import presence_matrix
from grf_fusion._inputs.projections import Received, make_projections, receive_all, weight_of


class Baseline(nn.Module):
    """Declared modalities, each with a projection; ``_owner`` is the name in error messages.

    A base class, against our own rule: the same setup and methods five times over would hide in
    each file what differs.
    """

    _owner: ClassVar[str]
    modalities: dict[str, int]
    embed_dim: int
    projections: nn.ModuleDict

    def __init__(
        self,
        modalities: dict[str, int],
        embed_dim: int,
        *,
        width: int | None = None,
        bias: bool = True,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.modalities = modalities
        self.embed_dim = embed_dim
        width = embed_dim if width is None else width
        self.projections = make_projections(
            modalities, width, bias=bias, device=device, dtype=dtype
        )

    def presence(
        self,
        features: Mapping[str, Tensor | None],
        *,
        masks: Mapping[str, Tensor | None] | None = None,
        present: Tensor | None = None,
    ) -> Tensor:
        """Return which samples have which modality; see `GatedRecurrentFusion.presence`."""
        like = weight_of(self.projections)
        declared = self.modalities
        return presence_matrix(self._owner, features, masks, present, declared=declared, like=like)

    def _receive(self, features: object, masks: object, present: object) -> dict[str, Received]:
        declared = self.modalities
        return receive_all(
            self._owner, self.projections, features, masks, present, declared=declared
        )
