"""Save checkpoints; load them completely or not at all."""

import pickle
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

LOADER = "load_checkpoint"
FORMAT = "grf-fusion 1"
PARTS = {"format", "orders", "num_heads", "state_dict"}


def save_checkpoint(module: nn.Module, path: str | PathLike[str]) -> None:
    """Save the parameters of a module for `load_checkpoint`.

    The file also holds the order of the modalities and the number of heads, which cannot be
    inferred from the parameters.

    Args:
        module: A module of this package, or any module that contains some.
        path: File to write.

    Examples:
        >>> import tempfile
        >>> from grf_fusion import GatedRecurrentFusion
        >>> fusion = GatedRecurrentFusion({"text": 6, "audio": 5}, embed_dim=8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_checkpoint(fusion, f"{folder}/fusion.pt")
        ...     load_checkpoint(fusion, f"{folder}/fusion.pt")
    """
    torch.save(_settings(module) | {"state_dict": module.state_dict()}, path)


def load_checkpoint(module: nn.Module, path: str | PathLike[str]) -> None:
    """Load a checkpoint of `save_checkpoint`, completely or not at all.

    Names, shapes, dtypes, the order of the modalities and the number of heads are checked before
    the first parameter is changed, unlike in `torch.nn.Module.load_state_dict`. The file is read
    with ``weights_only=True``, so it cannot run code.

    Args:
        module: A module of the same structure; its parameters keep their dtype and device.
        path: File written by `save_checkpoint`, or by ``torch.save(module.state_dict(), path)``,
            which holds neither the order nor the number of heads.

    Raises:
        ValueError: If the file is damaged, is not a checkpoint, or does not fit the module. The
            module is then unchanged.
        OSError: If the file cannot be opened.
    """
    content = _read(path)
    if isinstance(content, Mapping) and "format" in content:
        saved, own = cast("Mapping[str, object]", content), _settings(module)
        if saved["format"] != FORMAT:
            raise ValueError(
                f"{LOADER}: expected `path` to be of format {FORMAT!r}, got {saved['format']!r}. "
                "Update grf-fusion."
            )
        # Version 0.1.0 did not save ``num_heads``.
        if set(saved) | {"num_heads"} != PARTS:
            raise ValueError(
                f"{LOADER}: expected `path` to hold {sorted(PARTS)}, as `save_checkpoint` writes "
                f"it, got {list(saved)}."
            )
        if saved["orders"] != own["orders"]:
            raise ValueError(
                f"{LOADER}: expected `module` to declare modalities in the order of the "
                f"checkpoint, {saved['orders']}, got {own['orders']}."
            )
        if saved.get("num_heads", own["num_heads"]) != own["num_heads"]:
            raise ValueError(
                f"{LOADER}: expected `module` to have as many heads as the checkpoint, "
                f"{saved['num_heads']}, got {own['num_heads']}."
            )
        content = saved["state_dict"]
    module.load_state_dict(_check_state(module, cast(object, content)), strict=True)


def _read(path: str | PathLike[str]) -> object:
    with Path(path).open("rb") as file:
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
            raise ValueError(
                f"{LOADER}: expected `path` to be a checkpoint, got {str(path)!r}, which cannot be "
                f"read: {reason}."
            ) from error


def _settings(module: nn.Module) -> dict[str, object]:
    """Return the format, and the modalities and numbers of heads by the name of their module."""
    orders: dict[str, list[str]] = {}
    num_heads: dict[str, int] = {}
    for name, part in cast("Iterator[tuple[str, Any]]", module.named_modules()):
        if isinstance(getattr(part, "modalities", None), Mapping):
            orders[name] = [str(key) for key in part.modalities]
        if isinstance(getattr(part, "num_heads", None), int):
            num_heads[name] = part.num_heads
    return {"format": FORMAT, "orders": orders, "num_heads": num_heads}


def _check_state(module: nn.Module, content: object) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        raise ValueError(
            f"{LOADER}: expected `path` to hold tensors by name, got {type(content).__name__}."
        )
    state = dict(cast("Mapping[str, Tensor]", content))
    own = cast("dict[str, Tensor]", module.state_dict())
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    if missing or unexpected:
        number = len(missing) + len(unexpected)
        more = f" and more, {number} in all" if number > 5 else ""
        raise ValueError(
            f"{LOADER}: expected `path` to hold the parameters of the module, "
            f"unexpected {unexpected[:5]}, missing {missing[:5]}{more}."
        )
    for name, value in own.items():
        given: object = state[name]
        if not isinstance(given, Tensor):
            kind = type(given).__name__
            raise ValueError(f"{LOADER}: expected `path` to hold a tensor {name!r}, got {kind}.")
        if given.shape != value.shape or given.is_floating_point() != value.is_floating_point():
            raise ValueError(
                f"{LOADER}: expected `path` to hold {name!r} of shape {tuple(value.shape)} and a "
                f"dtype like {value.dtype}, got {tuple(given.shape)} and {given.dtype}."
            )
    return state
