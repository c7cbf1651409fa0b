# pyright: reportPrivateUsage=false
"""Lengths of masks that the host knows, so that reading them needs no host-device sync."""

from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from grf_fusion._checks.tracing import can_read


class Known(NamedTuple):
    """Lengths of a mask ``(batch, time)`` whose real steps come first in each sample.

    Attributes:
        host: Number of real steps of each sample.
        lengths: The same on the mask's device, ``(batch,)`` int64.
        exact: Whether the lengths hold for all samples; otherwise some may have no real step.
    """

    host: tuple[int, ...]
    lengths: Tensor
    exact: bool


class _Noted(NamedTuple):
    known: Known
    version: int
    pointer: int


# A table instead of an attribute of the mask: copies, which may be edited later, would keep it.
_noted = cast("dict[Tensor, _Noted]", WeakTensorKeyDictionary())


def note_lengths(mask: Tensor, known: Known) -> None:
    """Note the lengths of a new mask until it is changed; it must not be an inference tensor.

    Changes are detected by PyTorch's version counter, which views share. Changes made through
    ``.data`` are not detected, neither here nor by autograd.
    """
    _noted[mask] = _Noted(known, mask._version, mask.data_ptr())  # noqa: SLF001


def known_lengths(mask: Tensor) -> Known | None:
    """Return the noted lengths of a mask; ``None`` if there are none, and while tracing."""
    if not can_read(mask) or type(mask) is not Tensor:
        return None
    noted = _noted.get(mask)
    if noted is None or (noted.version, noted.pointer) != (mask._version, mask.data_ptr()):  # noqa: SLF001
        return None
    return noted.known


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
