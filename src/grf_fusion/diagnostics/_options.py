"""Checks of what diagnostics are asked for; their first argument is who refuses."""

from collections.abc import Callable
from typing import Any, cast

from grf_fusion._checks.arguments import ShapeError


def expect_fraction(owner: str, argument: str, value: object, *, most: float = 1.0) -> None:
    """Refuse a threshold outside (0, ``most``).

    Raises:
        ValueError: If it is.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < cast(float, value) < most:
        raise ValueError(
            f"{owner}: expected `{argument}` to be a number in (0, {most:g}), got {value!r}."
        )


def expect_several(owner: str, argument: str, value: object) -> None:
    """Refuse a number of draws that has no standard error.

    Raises:
        ValueError: If it is no integer of at least 2.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 2:
        raise ValueError(
            f"{owner}: expected `{argument}` to be an integer of at least 2, got {value!r}."
        )


def expect_function(owner: str, argument: str, value: object) -> Callable[..., Any]:
    """Refuse what cannot be called, and return the rest.

    Raises:
        ShapeError: If it cannot.
    """
    if not callable(value):
        raise ShapeError(
            f"{owner}: expected `{argument}` to be a function of the context, "
            f"got {type(value).__name__}."
        )
    return cast("Callable[..., Any]", value)
