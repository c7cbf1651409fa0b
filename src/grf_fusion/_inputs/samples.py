"""Checks of the samples and options of `collate`."""

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
    """Return the length of each modality that has one, or raise ValueError."""
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
    """Return the other keys to stack, or raise ValueError."""
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
    """Refuse a value that is not a sequence of mappings with the expected keys."""
    known = [*declared, *extras]
    expected = frozenset(known)
    if not isinstance(samples, Sequence) or isinstance(samples, str):
        raise _misfit(f"to be a list of mappings, got {type(samples).__name__}.")
    if not samples:
        raise _misfit("to hold at least one sample, got none.")
    for number, sample in enumerate(cast("Sequence[Any]", samples)):
        if type(sample) is not dict and not isinstance(sample, Mapping):
            rest = f"to map names to tensors, got {type(sample).__name__}. "
            raise _misfit(rest + f"Write {{{known[0]!r}: ...}}.", number)
        keys = cast("Mapping[Any, Any]", sample).keys()
        if not keys <= expected:
            unexpected = [key for key in keys if key not in expected]
            rest = f"to have keys of {known}, got {unexpected} too. "
            raise _misfit(rest + "Name other keys in `extras`, or leave them out.", number)
        missing = [key for key in extras if key not in keys]
        if missing:
            raise _misfit(f"to have the keys of `extras`, missing {missing}.", number)


def read(
    samples: Sequence[Mapping[str, Any]],
    name: str,
    dim: int,
    *,
    longest: int | None,
    cut: bool,
    dtype: torch.dtype | None,
    finite: bool,
    like: Tensor | None,
) -> tuple[list[Tensor | None], Tensor | None]:
    """Return one modality's sequences, ``None`` for samples that lack it, and ``like``.

    ``like`` is the first sequence of the batch over all modalities, ``None`` if none was read yet.
    """
    rows: list[Tensor | None] = []
    seen: tuple[torch.dtype, torch.device] | None = None
    for number, sample in enumerate(samples):
        row = _as_row(sample.get(name), number, name, dim, longest, cut=cut)
        rows.append(row)
        if row is None:
            continue
        if (row.dtype, row.device) != seen:
            if row.is_complex():
                rest = f"to hold real numbers, got {row.dtype}. "
                fix = "Split it with `torch.view_as_real(x).flatten(-2)`."
                raise _misfit(rest + fix, number, name)
            if dtype is None and not row.is_floating_point():
                rest = f"to be of a floating-point type, got {row.dtype}. "
                fix = "Convert all features with `dtype=torch.float32`."
                raise _misfit(rest + fix, number, name)
            if dtype is None and seen is not None and row.dtype != seen[0]:
                rest = f"of dtype {seen[0]}, as samples before it, got {row.dtype}. "
                raise _misfit(rest + "Convert all features with `dtype=`.", number, name)
            like = row if like is None else like
            if row.device != like.device:
                rest = f"on device {like.device}, as features before it, got {row.device}. "
                fix = "Collate on the CPU, then move the batch."
                raise _misfit(rest + fix, number, name)
            seen = row.dtype, row.device
        if finite and not bool(row.isfinite().all()):
            step = int((~row.isfinite()).any(dim=1).nonzero()[0])
            raise _misfit(f"to be finite, got NaN or infinity at step {step}.", number, name)
    return rows, like


def _as_row(
    value: object, number: int, name: str, dim: int, longest: int | None, *, cut: bool
) -> Tensor | None:
    """Return one sample's sequence, or ``None`` if it lacks the modality."""
    if value is None:
        return None
    plain = type(value) is Tensor and value.layout is torch.strided
    row = cast(Tensor, value) if plain else _as_tensor(f"samples[{number}][{name!r}]", value)
    if row.ndim not in (1, 2) or row.shape[-1] != dim:
        shapes = f"(time, dim={dim}) or (dim={dim},)"
        hint = " Flatten positions into one time axis: `x.flatten(0, -2)`." if row.ndim > 2 else ""
        raise _misfit(f"of shape {shapes}, got {tuple(row.shape)}.{hint}", number, name)
    if row.ndim == 1:
        return row.unsqueeze(0)
    if longest is not None and len(row) > longest:
        if not cut:
            rest = f"of at most max_length={longest} steps, got {len(row)}. "
            raise _misfit(rest + "Shorten it, or pass too_long='cut'.", number, name)
        _tell_cut(name, longest)
        return row[:longest]
    return row if row.shape[0] else None


@cache
def _tell_cut(name: str, longest: int) -> None:
    """Warn once per modality and length: the cache skips later calls."""
    warnings.warn(
        f"{OWNER}: sequences of {name!r} longer than max_length={longest} are cut.", stacklevel=5
    )


def _misfit(rest: str, *place: int | str) -> ShapeError:
    """Return an error about ``samples``, ``samples[number]`` or ``samples[number][name]``."""
    argument = "samples" + "".join(f"[{key!r}]" for key in place)
    return ShapeError(f"{OWNER}: expected `{argument}` {rest}")


def _as_tensor(argument: str, value: object) -> Tensor:
    """Return a tensor, or a NumPy array as a tensor that shares its memory where possible."""
    # If NumPy has not been imported, the value cannot be an array.
    numpy: Any = sys.modules.get("numpy")
    if numpy is None or not isinstance(value, numpy.ndarray):
        return expect_tensor(OWNER, argument, value)
    array: Any = value
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        # PyTorch supports neither read-only tensors nor negative strides.
        array = array.copy()
    try:
        return torch.from_numpy(array)  # pyright: ignore[reportUnknownMemberType]
    except (TypeError, ValueError) as error:
        raise ShapeError(
            f"{OWNER}: expected `{argument}` to be of a type that PyTorch has, "
            f"got an array of {array.dtype}. Convert it with `.astype('float32')`."
        ) from error


def stack(key: str, values: list[Any]) -> Tensor | list[str]:
    """Stack tensors, arrays or numbers; return strings as a list."""
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
            wanted, got = (f"{tuple(x.shape)}, {x.dtype} on {x.device}" for x in (first, tensor))
            raise _misfit(f"of shape {wanted}, as samples[0], got {got}.", number, key)
    return torch.stack(tensors)
