"""Mean and maximum over the real steps of each sample, with one gradient for both."""

from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor
from typing_extensions import override

from grf_fusion._checks.tracing import is_eager, is_transformed
from grf_fusion._eager.formula import Formula
from grf_fusion._inputs.masks import masked_mean

# On small inputs, calling a function of our own costs the CPU more time than it saves.
SEPARATE = ("cpu",)


class Pooled(NamedTuple):
    """The steps of each sample as two vectors.

    Attributes:
        mean: ``(batch, dim)``: the mean over the real steps; 0 if a sample has none.
        largest: ``(batch, dim)``: the maximum over the real steps; 0 if a sample has none.
        first: ``(batch, dim)`` int64: the first step, or row, that has the maximum; ``None`` if not
            wanted.
    """

    mean: Tensor
    largest: Tensor
    first: Tensor | None


class Poolable(Protocol):
    """A layout of steps that can be pooled."""

    def reduce(self, steps: Tensor, *, first: bool) -> Pooled:
        """Return mean and maximum, and where the maximum is if ``first`` is set."""
        ...

    def gradient(self, mean: Tensor, largest: Tensor, first: Tensor) -> Tensor:
        """Return the gradient of the steps from those of mean and maximum."""
        ...


class PaddedSteps(NamedTuple):
    """Steps ``(batch, time, dim)``.

    Attributes:
        mask: ``(batch, time)`` bool: real steps, ``None`` for all.
        time: Number of steps, read if there is no mask.
    """

    mask: Tensor | None
    time: int

    def reduce(self, steps: Tensor, *, first: bool) -> Pooled:
        """Return mean and maximum, and where the maximum is if ``first`` is set."""
        mask, mean = self.mask, masked_mean(steps, self.mask)
        if mask is not None:
            steps = torch.where(mask.unsqueeze(-1), steps, -torch.inf)
        # The gradient of `amax` looks for steps that equal the maximum. Compiled code may compute
        # the steps again without rounding them as the maximum was. Then it divides by 0 steps.
        largest, place = steps.max(dim=1) if first else (steps.amax(dim=1), None)
        if mask is not None:
            largest = largest.masked_fill(~mask.any(dim=1, keepdim=True), 0.0)
        return Pooled(mean, largest, place)

    def gradient(self, mean: Tensor, largest: Tensor, first: Tensor) -> Tensor:
        """Return the gradient of the steps from those of mean and maximum."""
        mask = self.mask
        if mask is None:
            share = mean / self.time
            steps, peak = share.unsqueeze(1).repeat(1, self.time, 1), share + largest
        else:
            share = mean / mask.sum(dim=1, keepdim=True).clamp(min=1)
            steps = torch.where(mask.unsqueeze(-1), share.unsqueeze(1), 0.0)
            # The first maximum may be padding if a sample has no real step, or none above -inf.
            peak = torch.where(mask.gather(1, first), share + largest, 0.0)
        return steps.scatter_(1, first.unsqueeze(1), peak.unsqueeze(1))


def mean_and_max(steps: Tensor, layout: Poolable) -> Tensor:
    """Mean and maximum over the real steps of each sample; 0 if a sample has none.

    The gradient of the maximum goes to the first step that has it.

    Shape:
        - steps: as the layout has them
        - output: ``(batch, 2 * dim)``
    """
    trained = torch.is_grad_enabled() and (steps.requires_grad or is_transformed())
    if trained and steps.device.type not in SEPARATE and is_eager(steps):
        return _MeanAndMax.call(steps, layout)
    mean, largest, _ = layout.reduce(steps, first=trained)
    return torch.cat((mean, largest), dim=-1)


class _MeanAndMax(Formula):
    """The gradient is written once. Autograd writes one for each of the two, and adds them."""

    @override
    @staticmethod
    def forward(ctx: Any, steps: Tensor, layout: Poolable) -> Tensor:
        mean, largest, first = layout.reduce(steps, first=True)
        # A user's mask is saved so that autograd refuses one that is changed before the gradient.
        mask = layout.mask if isinstance(layout, PaddedSteps) else None
        ctx.save_for_backward(first, mask)
        ctx.layout = layout
        return torch.cat((mean, largest), dim=-1)

    @override
    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        first, *_ = cast("tuple[Tensor, ...]", ctx.saved_tensors)
        mean, largest = gradients[0].chunk(2, dim=-1)
        return cast("Poolable", ctx.layout).gradient(mean, largest, first), None
