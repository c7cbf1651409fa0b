"""Checks of arguments: one error type and one message form for the whole library.

In each function ``owner`` is the class or function that the message names, and ``argument`` is the
argument as the caller wrote it. A wrong argument of a call raises `ShapeError`; a wrong option of a
constructor raises ValueError.

Axis names used everywhere: ``batch`` (samples), ``time`` (steps of a sequence), ``dim`` (features
of a step), ``heads`` and ``head_dim`` (``dim = heads * head_dim``), ``modalities``.
"""

import math
from collections.abc import Collection, Mapping
from typing import cast

import torch
from torch import Tensor


class ShapeError(ValueError):
    """An argument of a call does not fit the module: its shape, dtype, device, mask or name.

    It is raised before anything is computed. The message names the class, the argument, the
    expected value and the value it got and, where possible, the fix.
    """


def describe_shape(axes: Mapping[str, int | None]) -> str:
    """Write axes as ``(batch=4, time, dim=8)``; an axis of any size has no number."""
    named = [name if size is None else f"{name}={size}" for name, size in axes.items()]
    return f"({', '.join(named)})"


def expect_tensor(owner: str, argument: str, value: object) -> Tensor:
    """Return the value if it is a dense tensor; otherwise raise."""
    if not isinstance(value, Tensor):
        kind = type(value).__name__
        array = isinstance(value, list | tuple) or hasattr(value, "__array__")
        hint = " Convert it with `torch.as_tensor`." if array else ""
        raise ShapeError(f"{owner}: expected `{argument}` to be a torch.Tensor, got {kind}.{hint}")
    if value.is_nested:
        raise ShapeError(
            f"{owner}: expected `{argument}` to be a dense tensor, got a nested one. Pad it with "
            "`torch.nested.to_padded_tensor` and give a mask; "
            "`torch.nn.TransformerEncoder` returns none with enable_nested_tensor=False."
        )
    if value.layout != torch.strided:
        raise ShapeError(
            f"{owner}: expected `{argument}` to be a dense tensor, got layout {value.layout}. "
            "Convert it with `.to_dense()`, or pad it."
        )
    return value


def expect_shape(
    owner: str, argument: str, tensor: Tensor, axes: Mapping[str, int | None], hint: str = ""
) -> None:
    """Refuse a tensor whose axes differ from the named sizes; a size of ``None`` allows any.

    ``hint`` is appended to the message and suggests a fix.
    """
    fits = tensor.ndim == len(axes)
    for got, size in zip(tensor.shape, axes.values(), strict=False):
        if size is not None and got != size:
            fits = False
    if not fits:
        raise ShapeError(
            f"{owner}: expected `{argument}` of shape {describe_shape(axes)}, "
            f"got {tuple(tensor.shape)}.{hint}"
        )


def expect_steps(owner: str, argument: str, tensor: Tensor) -> None:
    """Refuse a sequence ``(batch, time, dim)`` without steps."""
    if tensor.shape[1] == 0:
        raise ShapeError(
            f"{owner}: expected `{argument}` to have at least one step, got time=0. "
            "Give an absent sequence as one masked step."
        )


def expect_floating(owner: str, argument: str, tensor: Tensor, like: Tensor) -> None:
    """Refuse a tensor whose device or dtype differs from that of the parameter ``like``.

    Under autocast, any two of float32, float16 and bfloat16 fit each other.
    """
    if tensor.device != like.device:
        raise ShapeError(
            f"{owner}: expected `{argument}` on device {like.device}, where the parameters are, "
            f"got {tensor.device}. Move one of them with `.to()`."
        )
    if tensor.dtype == like.dtype:
        return
    castable = (torch.float32, torch.float16, torch.bfloat16)
    if tensor.dtype in castable and like.dtype in castable:
        device = like.device.type
        # PyTorch 2.6 cannot compile the first question. It matters for the meta device alone.
        available = torch.compiler.is_compiling() or torch.amp.is_autocast_available(device)
        if available and torch.is_autocast_enabled(device):
            return
    raise ShapeError(
        f"{owner}: expected `{argument}` of dtype {like.dtype}, as the parameters, "
        f"got {tensor.dtype}. Convert one of them with `.to()`."
    )


def expect_same_device(owner: str, argument: str, tensor: Tensor, device: torch.device) -> None:
    """Refuse a tensor on another device."""
    if tensor.device != device:
        raise ShapeError(
            f"{owner}: expected `{argument}` on device {device}, got {tensor.device}. "
            "Move it with `.to()`."
        )


def expect_number(
    owner: str,
    argument: str,
    value: object,
    rule: str,
    *,
    at_least: float = -math.inf,
    above: float = -math.inf,
    below: float = math.inf,
    whole: bool = False,
) -> None:
    """Refuse a value that is not a number in an interval; bools, infinities and NaN are refused.

    ``rule`` describes the interval in the message. With ``whole`` only integers are accepted.
    """
    number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not number or not (at_least <= cast(float, value) < below and cast(float, value) > above):
        raise ValueError(f"{owner}: expected `{argument}` to be {rule}, got {value!r}.")


def expect_size(owner: str, argument: str, value: object) -> None:
    """Refuse a size or count that is not a positive integer."""
    expect_number(owner, argument, value, "a positive integer", at_least=1, whole=True)


def expect_heads(owner: str, argument: str, dim: int, num_heads: object) -> None:
    """Refuse a number of heads that does not divide the width ``argument``."""
    expect_size(owner, "num_heads", num_heads)
    if dim % cast(int, num_heads) != 0:
        raise ValueError(
            f"{owner}: expected `num_heads` to divide `{argument}`, "
            f"got {argument}={dim} and num_heads={num_heads}."
        )


def expect_probability(owner: str, argument: str, value: float) -> None:
    """Refuse a dropout probability outside [0, 1)."""
    expect_number(owner, argument, value, "a probability in [0, 1)", at_least=0, below=1)


def expect_flag(owner: str, argument: str, value: object, *, other: str | None = None) -> None:
    """Refuse an option that is neither a bool nor the string ``other``, if one is given."""
    if not isinstance(value, bool) and not (isinstance(value, str) and value == other):
        choices = "True or False" if other is None else f"{other!r}, True or False"
        raise ValueError(f"{owner}: expected `{argument}` to be {choices}, got {value!r}.")


def expect_choice(
    owner: str, argument: str, value: object, choices: Collection[str], *, also: str = ""
) -> None:
    """Refuse an option that is not one of the choices.

    ``also`` describes further valid values in the message; the caller accepts them before this.
    """
    if not isinstance(value, str) or value not in choices:
        listed = ", ".join(repr(choice) for choice in choices) + (also and f" or {also}")
        raise ValueError(f"{owner}: expected `{argument}` to be one of {listed}, got {value!r}.")
