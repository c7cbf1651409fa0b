"""Checks of the samples that `collate` is given, and of its options."""

import sys
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor

from grf_fusion._checks.arguments import ShapeError, expect_size, expect_tensor

OWNER = "collate"
Lengths = int | Mapping[str, int] | None


def per_modality(argument: str, value: object, declared: Mapping[str, int]) -> dict[str, int]:
    """Return a length by modality, for those that have one, or raise ValueError."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        expect_size(OWNER, argument, value)
        return dict.fromkeys(declared, cast(int, value))
    lengths = cast("Mapping[Any, Any]", value)
    unexpected = [name for name in lengths if name not in declared]
    if unexpected:
        raise ValueError(
            f"{OWNER}: expected `{argument}` to name modalities of {list(declared)}, "
            f"got {unexpected}."
        )
    for name, length in lengths.items():
        expect_size(OWNER, f"{argument}[{name!r}]", length)
    return dict(lengths)


def check_extras(extras: object, declared: Mapping[str, int]) -> list[str]:
    """Return the keys to stack beside the modalities, or raise ValueError."""
    if isinstance(extras, str) or not isinstance(extras, Sequence):
        raise ValueError(
            f"{OWNER}: expected `extras` to be a sequence of keys, got {extras!r}. "
            "Write extras=['label']."
        )
    keys = list(cast("Sequence[Any]", extras))
    wrong = [key for key in keys if not isinstance(key, str) or key in declared]
    if wrong:
        raise ValueError(
            f"{OWNER}: expected `extras` to hold strings that name no modality, got {wrong}."
        )
    return keys


def check_samples(samples: object, declared: Mapping[str, int], extras: Sequence[str]) -> None:
    """Refuse what is not a list of mappings, or whose keys are not the expected ones."""
    known = [*declared, *extras]
    expected = frozenset(known)
    if not isinstance(samples, Sequence) or isinstance(samples, str):
        raise ShapeError(
            f"{OWNER}: expected `samples` to be a list of mappings, got {type(samples).__name__}."
        )
    if not samples:
        raise ShapeError(f"{OWNER}: expected `samples` to hold at least one sample, got none.")
    for number, sample in enumerate(cast("Sequence[Any]", samples)):
        if type(sample) is not dict and not isinstance(sample, Mapping):
            raise ShapeError(
                f"{OWNER}: expected `samples[{number}]` to map names to tensors, "
                f"got {type(sample).__name__}. Write {{{known[0]!r}: ...}}."
            )
        keys = cast("Mapping[Any, Any]", sample).keys()
        if not keys <= expected:
            unexpected = [key for key in keys if key not in expected]
            raise ShapeError(
                f"{OWNER}: expected `samples[{number}]` to have keys of {list(known)}, "
                f"got {unexpected} too. Name other keys in `extras`, or leave them out."
            )
        missing = [key for key in extras if key not in keys]
        if missing:
            raise ShapeError(
                f"{OWNER}: expected `samples[{number}]` to have the keys of `extras`, "
                f"missing {missing}."
            )


def as_row(value: object, number: int, name: str, dim: int) -> Tensor | None:
    """Return one sample's sequence, or ``None`` if it lacks the modality."""
    if value is None:
        return None
    plain = type(value) is Tensor and value.layout is torch.strided
    row = cast(Tensor, value) if plain else _as_tensor(f"samples[{number}][{name!r}]", value)
    if row.ndim not in (1, 2) or row.shape[-1] != dim:
        hint = ""
        if row.ndim > 2:
            hint = " Flatten positions into one time axis: `x.flatten(0, -2)`."
        raise ShapeError(
            f"{OWNER}: expected `samples[{number}][{name!r}]` of shape (time, dim={dim}) or "
            f"(dim={dim},), got {tuple(row.shape)}.{hint}"
        )
    if row.ndim == 1:
        return row.unsqueeze(0)
    return row if len(row) else None


def _as_tensor(argument: str, value: object) -> Tensor:
    """Return a tensor or a NumPy array as a tensor, which shares the array's memory if it can."""
    numpy: Any = sys.modules.get("numpy")
    # Without NumPy there are no arrays.
    if numpy is None or not isinstance(value, numpy.ndarray):
        return expect_tensor(OWNER, argument, value)
    array: Any = value
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        # PyTorch has neither read-only tensors nor negative strides.
        array = array.copy()
    try:
        return torch.from_numpy(array)  # pyright: ignore[reportUnknownMemberType]
    except (TypeError, ValueError) as error:
        raise ShapeError(
            f"{OWNER}: expected `{argument}` to be of a type that PyTorch has, "
            f"got an array of {array.dtype}. Convert it with `.astype('float32')`."
        ) from error


def fit(
    rows: Sequence[Tensor | None], name: str, longest: int, *, cut: bool
) -> list[Tensor | None]:
    """Cut or refuse what is too long."""
    fitting: list[Tensor | None] = []
    for number, row in enumerate(rows):
        if row is None or len(row) <= longest:
            fitting.append(row)
            continue
        if not cut:
            raise ShapeError(
                f"{OWNER}: expected `samples[{number}][{name!r}]` of at most "
                f"max_length={longest} steps, got {len(row)}. "
                "Shorten it, or pass too_long='cut'."
            )
        _tell_cut(name, longest)
        fitting.append(row[:longest])
    return fitting


@cache
def _tell_cut(name: str, longest: int) -> None:
    """Warn once: what is cached is not done again."""
    warnings.warn(
        f"{OWNER}: sequences of {name!r} longer than max_length={longest} are cut.", stacklevel=4
    )


def check_types(
    rows: Sequence[Tensor | None], name: str, dtype: torch.dtype | None, like: Tensor | None
) -> Tensor | None:
    """Refuse dtypes and devices that do not go together; return the batch's first tensor."""
    seen: tuple[torch.dtype, torch.device] | None = None
    for number, row in enumerate(rows):
        if row is None or (row.dtype, row.device) == seen:
            continue
        argument = f"`samples[{number}][{name!r}]`"
        if row.is_complex():
            raise ShapeError(
                f"{OWNER}: expected {argument} to hold real numbers, "
                f"got {row.dtype}. Split it with `torch.view_as_real(x).flatten(-2)`."
            )
        if dtype is None and not row.is_floating_point():
            raise ShapeError(
                f"{OWNER}: expected {argument} to be of a floating-point type, "
                f"got {row.dtype}. Convert all features with `dtype=torch.float32`."
            )
        if dtype is None and seen is not None and row.dtype != seen[0]:
            raise ShapeError(
                f"{OWNER}: expected {argument} of dtype {seen[0]}, as "
                f"samples before it, got {row.dtype}. Convert all features with `dtype=`."
            )
        like = row if like is None else like
        if row.device != like.device:
            raise ShapeError(
                f"{OWNER}: expected {argument} on device {like.device}, as "
                f"features before it, got {row.device}. Collate on the CPU, then move the batch."
            )
        seen = row.dtype, row.device
    return like


def refuse_nan(rows: Sequence[Tensor | None], name: str) -> None:
    """Refuse NaN and infinity; the message names the first such step."""
    for number, row in enumerate(rows):
        if row is not None and not bool(row.isfinite().all()):
            step = int((~row.isfinite()).any(dim=1).nonzero()[0])
            raise ShapeError(
                f"{OWNER}: expected `samples[{number}][{name!r}]` to be finite, "
                f"got NaN or infinity at step {step}."
            )


def stack(key: str, values: list[Any]) -> Tensor | list[str]:
    """Stack tensors, arrays and numbers, and list strings."""
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None:
        values = [value.item() if isinstance(value, numpy.generic) else value for value in values]
    if all(isinstance(value, str) for value in values):
        return values
    if all(isinstance(value, bool | int | float) for value in values):
        return torch.tensor(values)
    tensors = [_as_tensor(f"samples[{n}][{key!r}]", value) for n, value in enumerate(values)]
    first = tensors[0]
    for number, tensor in enumerate(tensors):
        if (tensor.shape, tensor.dtype, tensor.device) != (first.shape, first.dtype, first.device):
            raise ShapeError(
                f"{OWNER}: expected `samples[{number}][{key!r}]` of shape {tuple(first.shape)}, "
                f"{first.dtype} on {first.device}, as samples[0], got {tuple(tensor.shape)}, "
                f"{tensor.dtype} on {tensor.device}."
            )
    return torch.stack(tensors)
