"""The batch that `collate` returns."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from grf_fusion._checks.tracing import can_read
from grf_fusion._inputs.masks import mask_from_lengths

# Devices on which masks are made again.
REMAKING = ("cuda",)


class Batch(NamedTuple):
    """A batch of samples with missing modalities, from `collate`.

    Every batch has the same structure: each declared modality has features and a mask, even if no
    sample has the modality. Pass it to any fusion of this package as
    ``fusion(batch.features, masks=batch.masks, present=batch.present)``.

    Attributes:
        features: ``(batch, time_k, d_k)`` by modality, in declared order; 0 at padded steps.
        masks: ``(batch, time_k)`` bool by modality, ``True`` = a real step.
        present: ``(batch, modalities)`` bool, columns in declared order.
        extras: Other keys of the samples: tensors ``(batch, ...)``, or lists of strings.
    """

    features: dict[str, Tensor]
    masks: dict[str, Tensor]
    present: Tensor
    extras: dict[str, Any]

    def to(self, device: torch.device | str | int, *, non_blocking: bool = False) -> "Batch":
        """Move every tensor to a device.

        On a CUDA device the masks of `collate` are made again by `mask_from_lengths`, so that
        fusions can skip padded steps. Masks that you changed are copied.

        Args:
            device: The device.
            non_blocking: Whether copies from pinned memory may be asynchronous.

        Returns:
            A new batch. Tensors that are already on the device are shared.
        """
        moved = self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))
        again = {name: _remake(mask, moved.masks[name]) for name, mask in self.masks.items()}
        return moved._replace(masks=again)

    def pin_memory(self) -> "Batch":
        """Copy every tensor to page-locked memory, for asynchronous copies to a GPU.

        ``DataLoader(pin_memory=True)`` does the same.

        Returns:
            A new batch.
        """
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        def each(values: dict[str, Any]) -> dict[str, Any]:
            return {k: function(x) if isinstance(x, Tensor) else x for k, x in values.items()}

        return Batch(
            each(self.features), each(self.masks), function(self.present), each(self.extras)
        )


def _remake(mask: Tensor, moved: Tensor) -> Tensor:
    """Make a mask again that was moved from the CPU, with lengths that the host knows."""
    if type(moved) is not Tensor or moved.device.type not in REMAKING or not can_read(mask):
        return moved
    if mask.device.type != "cpu" or mask.dtype != torch.bool or mask.ndim != 2 or not mask.numel():
        return moved
    lengths = mask.sum(dim=1)
    if not torch.equal(mask, mask_from_lengths(lengths, mask.shape[1])):
        return moved
    return mask_from_lengths(lengths, mask.shape[1], device=moved.device)


# Pickled under its public name, and registered because `torch.load` refuses other classes.
Batch.__module__ = "grf_fusion"
torch.serialization.add_safe_globals([Batch])  # pyright: ignore[reportUnknownMemberType]
