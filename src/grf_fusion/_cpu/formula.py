"""Functions that have a gradient of their own."""

from typing import cast

import torch
from torch import Tensor


class Formula(torch.autograd.Function):
    """A function with a gradient of its own; `call` is its `apply` with a type."""

    @classmethod
    def call(cls, *given: object) -> Tensor:
        """Compute it."""
        return cast(Tensor, cls.apply(*given))  # pyright: ignore[reportUnknownMemberType]
