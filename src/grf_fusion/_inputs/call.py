"""Checks of the arguments of a fusion's ``forward`` and ``step``, with `ShapeError`.

``owner`` is the class that the message names, ``declared`` maps each modality to its width in
declared order, and ``like`` is a parameter with the expected dtype and device.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from grf_fusion._checks.arguments import (
    ShapeError,
    expect_floating,
    expect_shape,
    expect_steps,
    expect_tensor,
)
from grf_fusion._inputs.masks import as_mask, none_if_full


class Arrival(NamedTuple):
    """A checked modality of a batch.

    Attributes:
        features: ``(batch, time, d_k)``.
        mask: ``(batch, time)`` bool: real steps, ``None`` for all.
        present: ``(batch,)`` bool: samples that have the modality, ``None`` for all.
        absent: Whether no features were given, which means that no sample has the modality.
    """

    features: Tensor
    mask: Tensor | None
    present: Tensor | None
    absent: bool = False

    def presence(self) -> Tensor:
        """Return ``(batch,)`` bool: samples with at least one real step."""
        here, features = self.present, self.features
        if here is None:
            here = torch.ones(features.shape[0], dtype=torch.bool, device=features.device)
        return here if self.mask is None else here & self.mask.any(dim=1)

    def presence_or_none(self) -> Tensor | None:
        """Return `presence`, or ``None`` if there is neither a mask nor ``present``."""
        return None if self.mask is None and self.present is None else self.presence()


def absent(batch: int, dim: int, like: Tensor) -> Arrival:
    """Return a modality that no sample has, as one step of ``dim`` zeros.

    With one step instead of none, every parameter stays in the graph with a zero gradient, and all
    ranks of a distributed job run the same modules in the same order.
    """
    features = torch.zeros(batch, 1, dim, device=like.device, dtype=like.dtype)
    present = torch.zeros(batch, dtype=torch.bool, device=like.device)
    return Arrival(features, None, present, absent=True)


def check_order(owner: str, order: object, declared: Sequence[str]) -> tuple[str, ...]:
    """Return the order of fusion: a permutation of the declared names, by default their order."""
    if order is None:
        return tuple(declared)
    if isinstance(order, str) or not isinstance(order, Sequence):
        raise ShapeError(
            f"{owner}: expected `order` to be a sequence of names, got {order!r}. "
            f"Write order={tuple(declared)!r}."
        )
    names = tuple(cast("Sequence[Any]", order))
    check_names(owner, "order", names, declared)
    missing = [name for name in declared if name not in names]
    if missing:
        raise ShapeError(
            f"{owner}: expected `order` to name every modality, missing {missing}. An absent "
            "modality keeps its place."
        )
    if len(names) != len(declared):
        raise ShapeError(f"{owner}: expected `order` to name each modality once, got {names}.")
    return names


def check_name(owner: str, name: object, declared: Sequence[str]) -> None:
    """Refuse an undeclared modality."""
    if not isinstance(name, str) or name not in declared:
        raise ShapeError(
            f"{owner}: expected `name` to be one of {list(declared)}, got {name!r}. "
            "Declare it in `modalities` or with `add_modality`."
        )


def check_features(
    owner: str,
    argument: str,
    features: object,
    mask_argument: str,
    mask: object,
    *,
    dim: int,
    batch: int | None,
    like: Tensor,
) -> Arrival | None:
    """Check one modality's features and mask; return ``None`` if both are ``None``.

    ``batch`` is the expected number of samples, ``None`` if it is not known yet.
    """
    if features is None:
        if mask is not None:
            raise ShapeError(
                f"{owner}: expected no `{mask_argument}` where there are no features, got a mask. "
                f"Leave the mask out too, or give `{argument}`."
            )
        return None
    tensor = expect_tensor(owner, argument, features)
    hint = ""
    if tensor.ndim == 2:
        hint = " For one vector a sample add a time axis: `x.unsqueeze(1)`."
    if tensor.ndim > 3:
        hint = " Flatten positions into one time axis: `x.flatten(1, -2)`."
    expect_shape(owner, argument, tensor, {"batch": batch, "time": None, "dim": dim}, hint)
    expect_steps(owner, argument, tensor)
    expect_floating(owner, argument, tensor, like)
    if mask is None:
        return Arrival(tensor, None, None)
    size, time, _ = tensor.shape
    real = as_mask(owner, mask_argument, mask, tensor.device, batch=size, time=time)
    return Arrival(tensor, none_if_full(real), None)


def check_step(
    owner: str,
    features: object,
    mask: object,
    present: object,
    *,
    dim: int,
    batch: int | None,
    like: Tensor,
) -> Arrival:
    """Check the arguments of `GatedRecurrentFusion.step`."""
    arrival = check_features(
        owner, "features", features, "mask", mask, dim=dim, batch=batch, like=like
    )
    if arrival is not None:
        batch = arrival.features.shape[0]
    if batch is None:
        raise ShapeError(
            f"{owner}: expected `features` with state=None, got None. "
            "Start with a modality that some sample has."
        )
    if present is not None:
        present = check_present(owner, present, batch=batch, device=like.device)
    if arrival is None:
        return absent(batch, dim, like)
    # PyTorch 2.6 cannot compile `_replace`.
    return Arrival(arrival.features, arrival.mask, present)


def check_call(
    owner: str,
    features: object,
    masks: object,
    present: object,
    *,
    declared: Mapping[str, int],
    like: Tensor,
    batch: int | None = None,
) -> dict[str, Arrival]:
    """Check the arguments of ``forward``, and return an arrival for each modality.

    ``batch`` is the expected number of samples, if another argument sets it.
    """
    given = check_mapping(owner, "features", features, declared)
    given_masks = check_mapping(owner, "masks", {} if masks is None else masks, declared)
    arrivals: list[Arrival | None] = []
    for name, dim in declared.items():
        argument, mask_argument = f"features[{name!r}]", f"masks[{name!r}]"
        values, mask = given.get(name), given_masks.get(name)
        arrival = check_features(
            owner, argument, values, mask_argument, mask, dim=dim, batch=batch, like=like
        )
        arrivals.append(arrival)
        if batch is None and arrival is not None:
            batch = arrival.features.shape[0]
    if batch is None:
        raise ShapeError(
            f"{owner}: expected `features` to hold at least one of {list(declared)}, got none. "
            "A batch that lacks everything is one masked step of any modality."
        )
    columns: Sequence[Tensor | None] = [None] * len(declared)
    if present is not None:
        axes = {"batch": batch, "modalities": len(declared)}
        columns = check_present(owner, present, device=like.device, **axes).unbind(1)
    checked: dict[str, Arrival] = {}
    for (name, dim), arrival, column in zip(declared.items(), arrivals, columns, strict=True):
        if arrival is None:
            checked[name] = absent(batch, dim, like)
        else:
            checked[name] = Arrival(arrival.features, arrival.mask, column)
    return checked


def presence_matrix(arrivals: Mapping[str, Arrival]) -> Tensor:
    """Return ``(batch, modalities)`` bool: which samples have which modality."""
    return torch.stack([arrival.presence() for arrival in arrivals.values()], dim=1)


def check_present(
    owner: str, present: object, *, batch: int, device: torch.device, **axes: int
) -> Tensor:
    """Check ``present``, of shape ``(batch, **axes)``, and return it as bool."""
    return as_mask(owner, "present", present, device, batch=batch, **axes)


def check_names(
    owner: str, argument: str, names: Sequence[object], declared: Sequence[str]
) -> None:
    """Refuse names that are not declared; not every declared name has to occur."""
    # Only strings are compared: comparing a string with an array gives no single truth value.
    given = {name for name in names if isinstance(name, str)}
    unexpected = [name for name in names if not isinstance(name, str) or name not in declared]
    if unexpected:
        missing = [name for name in declared if name not in given]
        raise ShapeError(
            f"{owner}: expected `{argument}` to name modalities of {list(declared)}, "
            f"unexpected {unexpected}, missing {missing}."
        )


def check_mapping(
    owner: str, argument: str, value: object, declared: Mapping[str, int]
) -> Mapping[str, object]:
    """Refuse a value that is not a mapping from declared modalities."""
    if not isinstance(value, Mapping):
        raise ShapeError(
            f"{owner}: expected `{argument}` to map names to tensors, got {type(value).__name__}. "
            f"Write {argument}={{{next(iter(declared))!r}: ...}}."
        )
    mapping = cast("Mapping[Any, object]", value)
    check_names(owner, argument, tuple(mapping), list(declared))
    return mapping
