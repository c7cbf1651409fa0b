"""Base class of functions with a custom gradient."""

from typing import cast

import torch
from torch import Tensor


class Formula(torch.autograd.Function):
    """A function with a custom gradient; `call` is a typed `apply`."""

    @classmethod
    def call(cls, *given: object) -> Tensor:
        """Compute the function."""
        return cast(Tensor, cls.apply(*given))  # pyright: ignore[reportUnknownMemberType]
