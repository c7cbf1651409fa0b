"""Checks of the options of a fusion, with ValueError; ``owner`` is the class that it names."""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, cast

import torch
from torch import nn

from grf_fusion._checks.arguments import expect_size

# Pairs are accepted because JSON written with sorted keys keeps the order of a list only.
Modalities = Mapping[str, int] | Sequence[tuple[str, int]]
# Names that a sub-module cannot have.
TAKEN = frozenset(dir(nn.ModuleDict()))


class Where(TypedDict):
    """Device and dtype of new parameters, passed on together."""

    device: torch.device | str | None
    dtype: torch.dtype | None


def check_modality(
    owner: str,
    name: object,
    dim: object,
    *,
    name_argument: str = "modalities",
    dim_argument: str = "",
) -> None:
    """Refuse a name that no sub-module can have, and a width that is not a positive integer."""
    if not isinstance(name, str) or not name or "." in name or name in TAKEN:
        raise ValueError(
            f"{owner}: expected `{name_argument}` to name modalities by non-empty strings without "
            f"dots, other than attributes of nn.ModuleDict, got {name!r}. Choose another name."
        )
    expect_size(owner, dim_argument or f"modalities[{name!r}]", dim)


def check_modalities(owner: str, modalities: object, *, fewest: int = 1) -> dict[str, int]:
    """Return the declared modalities as a dict; refuse invalid names, widths and types."""
    declared = _pairs(modalities)
    if declared is None:
        raise ValueError(
            f"{owner}: expected `modalities` to map names to feature sizes, as a mapping or as "
            f"pairs, got {type(modalities).__name__}. Write {{'text': 768, 'image': 1024}}."
        )
    if not declared:
        raise ValueError(f"{owner}: expected `modalities` to name at least one modality, got none.")
    names = [name for name, _ in declared]
    if any(names.count(name) > 1 for name in names):
        raise ValueError(f"{owner}: expected `modalities` to name each one once, got {names}.")
    for name, dim in declared:
        check_modality(owner, name, dim)
    if len(declared) < fewest:
        raise ValueError(
            f"{owner}: expected `modalities` to name at least {fewest} modalities, got {names}."
        )
    return dict(declared)


def _pairs(modalities: object) -> list[tuple[Any, Any]] | None:
    """Return pairs of name and width, or ``None`` if the value has another form."""
    if isinstance(modalities, Mapping):
        return list(cast("Mapping[Any, Any]", modalities).items())
    if isinstance(modalities, str) or not isinstance(modalities, Sequence):
        return None
    pairs = cast("Sequence[Any]", modalities)
    fits = all(isinstance(x, list | tuple) and len(cast("Sequence[Any]", x)) == 2 for x in pairs)
    return [tuple(pair) for pair in pairs] if fits else None


def check_factory(owner: str, argument: str, factory: object) -> None:
    """Refuse a value that is not a function which makes a module."""
    if not callable(factory) or isinstance(factory, nn.Module):
        raise ValueError(
            f"{owner}: expected `{argument}` to be a function without arguments that makes a "
            f"module, got {type(factory).__name__}. Write `{argument}=lambda: module`."
        )


def check_part(owner: str, argument: str, part: object) -> nn.Module:
    """Return the result of a factory if it is a module; otherwise raise."""
    if not isinstance(part, nn.Module):
        raise ValueError(
            f"{owner}: expected `{argument}()` to make an nn.Module, got {type(part).__name__}."
        )
    return part
