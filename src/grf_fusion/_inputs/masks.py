"""Masks: ``True`` marks a real step."""

from typing import cast

import torch
from torch import Tensor

from grf_fusion._checks.arguments import ShapeError, expect_same_device, expect_shape, expect_tensor
from grf_fusion._checks.tracing import can_read, is_transformed
from grf_fusion._inputs.lengths import Known, note_lengths, send

WIDER = {torch.float16: torch.float32, torch.bfloat16: torch.float32}


def mask_from_lengths(
    lengths: Tensor, max_length: int, *, device: torch.device | str | None = None
) -> Tensor:
    """Convert lengths to a mask, ``True`` = real.

    With ``lengths`` on the CPU and ``device="cuda"``, no host-device sync is needed, and padded
    steps can be skipped on the GPU (``packing`` of `GatedRecurrentFusion`). The host knows the
    lengths only of the mask as returned; a changed mask, a copy or a slice is an ordinary mask.

    Args:
        lengths: Number of real steps of each sample, integers from 0 to ``max_length``.
        max_length: Length of the padded sequence.
        device: Device of the mask; ``None`` for the device of the lengths.

    Returns:
        ``mask[b, t] = t < lengths[b]``, bool.

    Shape:
        - lengths: ``(batch,)``
        - output: ``(batch, time)`` with ``time = max_length``

    Raises:
        ShapeError: If ``lengths`` is not a one-dimensional integer tensor, ``max_length`` is not a
            positive integer, or a length is not in 0 to ``max_length`` (values are not checked
            under ``torch.compile`` and ``torch.export``; checking lengths on a GPU synchronises).

    Examples:
        >>> mask_from_lengths(torch.tensor([1, 3]), 3)
        tensor([[ True, False, False],
                [ True,  True,  True]])
    """
    owner = "mask_from_lengths"
    expect_tensor(owner, "lengths", lengths)
    expect_shape(owner, "lengths", lengths, {"batch": None})
    if not is_integer(lengths):
        raise ShapeError(f"{owner}: expected `lengths` to hold integers, got {lengths.dtype}.")
    if isinstance(max_length, bool) or not isinstance(max_length, int | torch.SymInt):
        raise ShapeError(
            f"{owner}: expected `max_length` to be an integer, got {type(max_length).__name__}. "
            "Of a tensor take `int(lengths.max())`."
        )
    if max_length < 1:
        raise ShapeError(f"{owner}: expected `max_length` to be at least 1, got {max_length}.")
    place = lengths.device if device is None else torch.device(device)
    if not can_read(lengths):
        return _before(lengths.to(place), max_length)
    host = tuple(cast("list[int]", lengths.tolist()))  # pyright: ignore[reportUnknownMemberType]
    if host and not 0 <= min(host) <= max(host) <= max_length:
        raise ShapeError(
            f"{owner}: expected `lengths` between 0 and max_length={max_length}, "
            f"got {min(host)} to {max(host)}."
        )
    # PyTorch does not count changes of inference tensors; a change of the mask would go unnoticed.
    with torch.inference_mode(mode=False):
        mask = _before(send(host, place), max_length)
    note_lengths(mask, Known(host, exact=True))
    return mask


def as_mask(
    owner: str, argument: str, value: object, device: torch.device, **axes: int | None
) -> Tensor:
    """Return a bool or integer 0/1 mask with these axes as bool, or raise `ShapeError`."""
    mask = expect_tensor(owner, argument, value)
    hint = " A mask holds one truth value an entry, True = real."
    expect_shape(owner, argument, mask, axes, hint)
    expect_same_device(owner, argument, mask, device)
    if mask.dtype == torch.bool:
        return mask
    if not is_integer(mask):
        raise ShapeError(
            f"{owner}: expected `{argument}` to be bool or integer 0/1 with True = real, "
            f"got {mask.dtype}. Float values may be weights, 0/1 flags or an additive bias of "
            f"0/-inf, and the last two mean opposite things: pass `{argument} > 0.5` or "
            f"`{argument} == 0`."
        )
    if can_read(mask) and bool(((mask != 0) & (mask != 1)).any()):
        raise ShapeError(
            f"{owner}: expected `{argument}` to hold only 0 and 1, "
            f"got values from {int(mask.min())} to {int(mask.max())}. "
            "Turn lengths into a mask with `mask_from_lengths`."
        )
    return mask != 0


def is_integer(tensor: Tensor) -> bool:
    """Whether the dtype is an integer type that supports arithmetic; bool is not one."""
    return tensor.dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def fill_masked(values: Tensor, mask: Tensor | None) -> Tensor:
    """Replace entries where ``mask`` is False by 0; their gradients are 0 too.

    Shape:
        - values: ``(batch, time, dim)``
        - mask: ``(batch, time)`` or ``None`` for all real
    """
    return values if mask is None else torch.where(mask.unsqueeze(-1), values, 0.0)


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the real steps; 0 if a sample has none.

    Shape:
        - values: ``(batch, time, dim)``
        - mask: ``(batch, time)`` or ``None`` for all real
        - output: ``(batch, dim)``
    """
    if mask is None:
        return values.mean(dim=1)
    count = mask.sum(dim=1, keepdim=True).clamp(min=1)
    # A float16 sum over a few thousand steps overflows, but the mean does not. `torch.mean` sums in
    # float32 for the same reason.
    mean = fill_masked(values, mask).sum(dim=1, dtype=WIDER.get(values.dtype)) / count
    return mean if mean.dtype == values.dtype else mean.to(values.dtype)


def none_if_full(mask: Tensor | None) -> Tensor | None:
    """Return ``None`` for a CPU mask without padding whose values can be read; else the mask.

    A mask on another device is not read, because that would force a host-device sync.
    """
    if mask is None or not can_read(mask) or mask.device.type != "cpu":
        return mask
    if type(mask) is not Tensor or is_transformed() or not bool(mask.all()):
        return mask
    return None


def unmask_empty(mask: Tensor) -> Tensor:
    """Mark every step as real in rows without a real step.

    The results of these rows are discarded. A softmax without any real step would be NaN, and its
    gradient would make every parameter NaN even if the result is discarded.
    """
    return mask | ~mask.any(dim=-1, keepdim=True)


def _before(lengths: Tensor, max_length: int) -> Tensor:
    return torch.arange(max_length, device=lengths.device) < lengths.unsqueeze(-1)
