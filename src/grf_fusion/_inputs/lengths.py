# pyright: reportPrivateUsage=false
"""What the host knows of a mask on another device, so that nothing has to wait for the device."""

from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from grf_fusion._checks.tracing import can_read


class Known(NamedTuple):
    """Real steps of a mask ``(batch, time)``, in which they come first.

    Attributes:
        host: Of each sample the number of its real steps.
        lengths: The same on the mask's device, ``(batch,)`` int64.
        exact: Whether that is so of every sample; otherwise some may have no real step at all.
    """

    host: tuple[int, ...]
    lengths: Tensor
    exact: bool


class _Noted(NamedTuple):
    known: Known
    version: int
    pointer: int


# Beside the masks, not on them: an attribute would go along into copies that are edited later.
_noted = cast("dict[Tensor, _Noted]", WeakTensorKeyDictionary())


def note_lengths(mask: Tensor, known: Known) -> None:
    """Note what a new mask was made from, until it is changed; it must not be an inference tensor.

    PyTorch counts the changes of a tensor, through its views too. It does not count those made
    through ``.data``, which autograd does not see either.
    """
    _noted[mask] = _Noted(known, mask._version, mask.data_ptr())  # noqa: SLF001


def known_lengths(mask: Tensor) -> Known | None:
    """Return what the host knows of a mask, ``None`` for nothing, as while tracing."""
    if not can_read(mask) or type(mask) is not Tensor:
        return None
    noted = _noted.get(mask)
    if noted is None or (noted.version, noted.pointer) != (mask._version, mask.data_ptr()):  # noqa: SLF001
        return None
    return noted.known


def restrict(mask: Tensor, samples: Tensor) -> Tensor:
    """Return ``mask & samples``, ``(batch, time)`` and ``(batch, 1)``: nothing of other samples."""
    known = known_lengths(mask)
    if known is None:
        return mask & samples
    # Changes of inference tensors are not counted.
    with torch.inference_mode(mode=False):
        both = mask & samples
    note_lengths(both, known._replace(exact=False))
    return both
