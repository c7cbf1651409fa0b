"""Randomly drop modalities during training."""

import torch
from torch import Tensor, nn
from typing_extensions import override

from grf_fusion._checks.arguments import ShapeError, expect_probability, expect_tensor
from grf_fusion._inputs.masks import as_mask

OWNER = "ModalityDropout"


class ModalityDropout(nn.Module):
    """Randomly drop modalities during training, so that the model copes with missing ones.

    Each modality of each sample is dropped independently with probability ``p``. If none would be
    left, one of them, drawn uniformly, is kept. In eval mode nothing is dropped.

    Args:
        p: Probability of dropping a modality of a sample, in [0, 1).

    Raises:
        ValueError: If ``p`` is not in [0, 1).

    Examples:
        >>> drop = ModalityDropout(0.3)
        >>> present = drop(torch.ones(4, 3, dtype=torch.bool))
        >>> present.any(dim=1).all()
        tensor(True)
    """

    p: float

    def __init__(self, p: float) -> None:
        expect_probability(OWNER, "p", p)
        super().__init__()
        self.p = p

    @override
    def forward(self, present: Tensor) -> Tensor:
        """Drop modalities from ``present``.

        Args:
            present: Which samples have which modality, from `GatedRecurrentFusion.presence`.

        Returns:
            The remaining modalities, bool; pass it as ``present=`` to `GatedRecurrentFusion`.

        Shape:
            - present, output: ``(batch, modalities)``

        Raises:
            ShapeError: If ``present`` is not a bool or integer 0/1 tensor of two axes.
        """
        expect_tensor(OWNER, "present", present)
        present = as_mask(OWNER, "present", present, present.device, batch=None, modalities=None)
        if present.shape[1] == 0:
            raise ShapeError(
                f"{OWNER}: expected `present` to have at least one modality, "
                f"got {tuple(present.shape)}."
            )
        if not self.training:
            return present
        draws = torch.rand(present.shape, device=present.device).masked_fill(~present, -1.0)
        # Always keep the modality with the highest draw, so that no sample loses its last one.
        highest = draws == draws.max(dim=1, keepdim=True).values
        return present & ((draws >= self.p) | highest)

    @override
    def extra_repr(self) -> str:
        """Show the probability."""
        return f"p={self.p}"
