"""Functions that have a gradient of their own."""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor


class Formula(torch.autograd.Function):
    """A function with a gradient of its own; `call` is its `apply` with a type."""

    @classmethod
    def call(cls, *given: object) -> Tensor:
        """Compute it."""
        return cast(Tensor, cls.apply(*given))  # pyright: ignore[reportUnknownMemberType]


def differentiable_gradients(
    formula: Callable[..., Tensor],
    saved: Sequence[Tensor],
    gradient: Tensor,
    options: object,
) -> tuple[Tensor | None, ...]:
    """Return the gradients of a formula so that they can be differentiated again.

    For a backward pass whose own graph is wanted: the formula is written with PyTorch's operations,
    and computed again.
    """
    # Of aliases: one saved tensor may have been computed from another, as where steps share their
    # weights, and a path between them is none of this formula's.
    aliases = [tensor.view_as(tensor) for tensor in saved]
    needed = [alias for alias in aliases if alias.requires_grad]
    found = torch.autograd.grad(
        formula(aliases, options), needed, gradient, create_graph=True, allow_unused=True
    )
    by_tensor = iter(found)
    return tuple(next(by_tensor) if tensor.requires_grad else None for tensor in saved)
