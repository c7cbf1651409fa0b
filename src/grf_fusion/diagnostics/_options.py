"""Checks of the options of diagnostics; the first argument is the name for the message."""

from collections.abc import Callable
from typing import Any, cast

from grf_fusion._checks.arguments import ShapeError, expect_number


def expect_fraction(owner: str, argument: str, value: object, *, most: float = 1.0) -> None:
    """Refuse a threshold outside (0, ``most``)."""
    expect_number(owner, argument, value, f"a number in (0, {most:g})", above=0, below=most)


def expect_several(owner: str, argument: str, value: object) -> None:
    """Refuse a number of draws below 2, which has no standard error."""
    expect_number(owner, argument, value, "an integer of at least 2", at_least=2, whole=True)


def expect_function(owner: str, argument: str, value: object) -> Callable[..., Any]:
    """Return a function after checking that it can be called."""
    if not callable(value):
        raise ShapeError(
            f"{owner}: expected `{argument}` to be a function of the context, "
            f"got {type(value).__name__}."
        )
    return cast("Callable[..., Any]", value)
