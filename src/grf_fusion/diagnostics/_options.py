"""Checks of the options of diagnostics; the first argument is the name for the message."""

from collections.abc import Callable
from typing import Any, cast

from grf_fusion._checks.arguments import ShapeError


def expect_fraction(owner: str, argument: str, value: object, *, most: float = 1.0) -> None:
    """Check that a threshold is in (0, ``most``).

    Raises:
        ValueError: If it is not.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < cast(float, value) < most:
        raise ValueError(
            f"{owner}: expected `{argument}` to be a number in (0, {most:g}), got {value!r}."
        )


def expect_several(owner: str, argument: str, value: object) -> None:
    """Check a number of draws, which needs a standard error.

    Raises:
        ValueError: If it is not an integer of at least 2.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 2:
        raise ValueError(
            f"{owner}: expected `{argument}` to be an integer of at least 2, got {value!r}."
        )


def expect_function(owner: str, argument: str, value: object) -> Callable[..., Any]:
    """Return a function after checking that it can be called.

    Raises:
        ShapeError: If it cannot be called.
    """
    if not callable(value):
        raise ShapeError(
            f"{owner}: expected `{argument}` to be a function of the context, "
            f"got {type(value).__name__}."
        )
    return cast("Callable[..., Any]", value)
