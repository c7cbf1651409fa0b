"""Calling a fusion to learn about it: which it is, what it is given, and how it is left."""

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from grf_fusion._checks.arguments import ShapeError, expect_shape, expect_tensor

Features = Mapping[str, Tensor | None]


@runtime_checkable
class Fusion(Protocol):
    """What `GatedRecurrentFusion` and the baselines have in common, beside the call."""

    modalities: dict[str, int]

    def presence(
        self, features: Features, *, masks: Features | None = None, present: Tensor | None = None
    ) -> Tensor:
        """Tell which sample has which modality."""
        ...


class Call(NamedTuple):
    """A checked call of a fusion.

    Attributes:
        fusion: The fusion.
        features: Features by modality.
        masks: Masks by modality.
        here: ``(batch, modalities)``: which sample has which modality, in declared order.
        names: Names of the modalities, likewise.
    """

    fusion: nn.Module
    features: Features
    masks: Features
    here: Tensor
    names: tuple[str, ...]

    def run(self, present: Tensor) -> Tensor:
        """Fuse the batch, repeated once for each of the ``(times, batch, modalities)``.

        Returns:
            ``(times, batch, ...)``.
        """
        times = len(present)
        context = self.fusion(
            _repeat(self.features, times),
            masks=_repeat(self.masks, times),
            present=present.flatten(0, 1),
        )
        context = expect_tensor(type(self.fusion).__name__, "forward()", context)
        return context.reshape(*present.shape[:2], *context.shape[1:])


def check_call(
    owner: str,
    fusion: object,
    features: Features,
    masks: Features | None,
    present: Tensor | None,
) -> Call:
    """Check a fusion and what it is to be called with.

    Args:
        owner: Function that refuses.
        fusion: The fusion.
        features: Features by modality.
        masks: Masks by modality, or ``None``.
        present: ``(batch, modalities)``, or ``None``.

    Returns:
        The call.

    Raises:
        ShapeError: If ``fusion`` is none, or the fusion itself refuses the call.
    """
    if not isinstance(fusion, nn.Module) or not isinstance(fusion, Fusion):
        raise ShapeError(
            f"{owner}: expected `fusion` to be a GatedRecurrentFusion or a fusion of "
            f"grf_fusion.baselines, got {type(fusion).__name__}. Give the fusion inside a model, "
            "and what stands behind it as the function of its context."
        )
    here = fusion.presence(features, masks=masks, present=present)
    return Call(fusion, features, masks or {}, here, tuple(fusion.modalities))


@contextmanager
def evaluating(module: nn.Module) -> Generator[None]:
    """Put a module into eval mode, and afterwards every part of it back into its own."""
    training = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, flag in training:
            part.training = flag


def score(owner: str, argument: str, function: Callable[..., Any], context: Tensor) -> Tensor:
    """Return the function's number for each sample, at least float32.

    Raises:
        ShapeError: If it returns something else.
    """
    scores = expect_tensor(owner, f"{argument}(context)", function(context))
    hint = " Give each sample one number, not their mean."
    expect_shape(owner, f"{argument}(context)", scores, {"batch": context.shape[0]}, hint)
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


def measure(owner: str, argument: str, function: Callable[..., Any], context: Tensor) -> float:
    """Return the function's one number for the batch.

    Raises:
        ShapeError: If it returns something else.
    """
    value = function(context)
    single = isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex()
    if not single and (not isinstance(value, int | float) or isinstance(value, bool)):
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ShapeError(
            f"{owner}: expected `{argument}(context)` to be one number, got {got}. "
            "Give the metric of the whole batch."
        )
    return float(value.detach() if isinstance(value, Tensor) else value)


def draw(generator: torch.Generator | None, *shape: int) -> Tensor:
    """Draw numbers in [0, 1) from a generator, wherever it lives."""
    device = "cpu" if generator is None else generator.device
    return torch.rand(shape, generator=generator, device=device)


def _repeat(values: Features, times: int) -> Features:
    return {
        name: None if value is None else value.repeat(times, *[1] * (value.ndim - 1))
        for name, value in values.items()
    }
