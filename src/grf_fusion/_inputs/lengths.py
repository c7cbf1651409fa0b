"""Lengths of masks that the host knows, so that reading them needs no host-device sync."""

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from grf_fusion._checks.tracing import can_read, version_of


class Known(NamedTuple):
    """Lengths of a mask ``(batch, time)`` whose real steps come first in each sample.

    Attributes:
        host: Number of real steps of each sample.
        exact: Whether the lengths hold for all samples; otherwise some may have no real step.
    """

    host: tuple[int, ...]
    exact: bool


# A table instead of an attribute of the mask: copies, which may be edited later, would keep it.
_noted = cast("dict[Tensor, tuple[Known, object]]", WeakTensorKeyDictionary())


def note_lengths(mask: Tensor, known: Known) -> None:
    """Note the lengths of a new mask until it is changed; it must not be an inference tensor."""
    _noted[mask] = known, version_of(mask)


def known_lengths(mask: Tensor) -> Known | None:
    """Return the noted lengths of a mask; ``None`` if there are none, and while tracing."""
    if not can_read(mask):
        return None
    known, version = _noted.get(mask, (None, None))
    return None if version is None or version != version_of(mask) else known


def send(numbers: Sequence[int], device: torch.device, dtype: torch.dtype = torch.int64) -> Tensor:
    """Copy integers from the host to a device without waiting."""
    # The copy is asynchronous only from pinned memory.
    pinned = device.type == "cuda"
    here = torch.tensor(numbers, dtype=dtype, device="cpu", pin_memory=pinned)
    return here.to(device, non_blocking=pinned)


def restrict(mask: Tensor, samples: Tensor) -> Tensor:
    """Return ``mask & samples`` and keep the noted lengths.

    Shape:
        - mask: ``(batch, time)``
        - samples: ``(batch, 1)``, or expanded along time
    """
    known = known_lengths(mask)
    if known is None:
        return mask & samples
    # PyTorch does not count changes of inference tensors.
    with torch.inference_mode(mode=False):
        both = mask & samples
    note_lengths(both, known._replace(exact=False))
    return both
