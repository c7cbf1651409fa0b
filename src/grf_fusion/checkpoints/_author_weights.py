"""Check weights of the original code, and convert them to ours."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

OWNER = "load_author_checkpoint"


class Weight(NamedTuple):
    """A weight of the original code, and our weights that contain its parts.

    Attributes:
        key: Its name in the original code.
        shape: Its expected shape.
        targets: Our names. The first axis is split into equal parts, one for each name. Parts with
            the same name are concatenated, also across weights. A part with an empty name is
            dropped.
    """

    key: str
    shape: tuple[int, ...]
    targets: tuple[str, ...]


def layer(key: str, target: str, *shape: int) -> Iterator[Weight]:
    """Yield weight and bias of a linear layer ``(out, in)`` or of a norm ``(dim,)``."""
    yield Weight(f"{key}.weight", shape, (f"{target}.weight",))
    yield Weight(f"{key}.bias", shape[:1], (f"{target}.bias",))


def count_layers(weights: Mapping[str, Tensor], key: str) -> int:
    """Count the layers; ``key`` names a weight of each, with ``{}`` for the layer's number."""
    return next(count for count in itertools.count(1) if key.format(count) not in weights)


def convert(weights: Mapping[str, Tensor], tree: Iterable[Weight]) -> dict[str, Tensor]:
    """Return our weights by name, made from checked weights."""
    parts: dict[str, list[Tensor]] = {}
    for key, _, targets in tree:
        value = weights[key]
        # A convolution with a kernel of one step is a linear layer.
        value = rearrange(value, "dim size 1 -> dim size") if value.ndim == 3 else value
        split = rearrange(value, "(parts dim) ... -> parts dim ...", parts=len(targets))
        for target, part in zip(targets, split, strict=True):
            parts.setdefault(target, []).append(part)
    return {target: torch.cat(found) for target, found in parts.items() if target}


def axis_of(weights: Mapping[str, Tensor], prefix: str, key: str, axis: int, ndim: int = 2) -> int:
    """Return the size of an axis of a weight; refuse a missing weight or another rank."""
    if key not in weights:
        projected = sorted(name for name in weights if str(name).startswith(prefix))
        hint = "It is all of the authors' model, with their names, and `model` says whose it is."
        if projected and key.startswith(prefix):
            hint = f"It projects {projected}; `order` names the same modalities."
        raise ValueError(f"{OWNER}: expected `state_dict` to hold {key!r}, got none. {hint}")
    value = weights[key]
    if not isinstance(value, Tensor) or value.ndim != ndim:
        kind = "a matrix" if ndim == 2 else f"of {ndim} axes"
        raise ValueError(f"{OWNER}: expected {key!r} to be {kind}, got {describe(value)}.")
    return value.shape[axis]


def describe(value: object) -> str:
    """Return the shape of a tensor, or the type of anything else, as text."""
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def check_shapes(weights: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse unexpected names or shapes, and weights of several dtypes or devices."""
    missing = [key for key in expected if key not in weights]
    unexpected = [key for key in weights if key not in expected]
    if missing or unexpected:
        raise ValueError(
            f"{OWNER}: expected `state_dict` to hold the authors' names, "
            f"missing {missing}, unexpected {unexpected}."
        )
    first = next(iter(expected))
    like = weights[first]
    for key, shape in expected.items():
        value = weights[key]
        if describe(value) != str(shape):
            raise ValueError(f"{OWNER}: expected {key!r} of shape {shape}, got {describe(value)}.")
        if not value.is_floating_point():
            raise ValueError(f"{OWNER}: expected {key!r} to be floating-point, got {value.dtype}.")
        if value.dtype != like.dtype or value.device != like.device:
            raise ValueError(
                f"{OWNER}: expected {key!r} to be {like.dtype} on {like.device}, as {first!r}, "
                f"got {value.dtype} on {value.device}."
            )
