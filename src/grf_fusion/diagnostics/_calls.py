"""Checked calls of a fusion for diagnostics."""

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from grf_fusion._checks.arguments import ShapeError, expect_tensor

Features = Mapping[str, Tensor | None]


@runtime_checkable
class Fusion(Protocol):
    """What `GatedRecurrentFusion` and the baselines have in common, apart from `forward`."""

    modalities: dict[str, int]
    presence: Callable[..., Tensor]


class Call(NamedTuple):
    """A checked call of a fusion.

    ``here`` is ``(batch, modalities)``, with columns in the order of ``names``: True where a sample
    has the modality.
    """

    fusion: nn.Module
    features: Features
    masks: Features
    here: Tensor
    names: tuple[str, ...]

    def run(self, *present: Tensor) -> Tensor:
        """Fuse the batch once with each ``present``; return contexts ``(times, batch, ...)``."""
        times = len(present)
        context = self.fusion(
            _repeat(self.features, times),
            masks=_repeat(self.masks, times),
            present=torch.cat(present),
        )
        context = expect_tensor(type(self.fusion).__name__, "forward()", context)
        return context.reshape(times, len(self.here), *context.shape[1:])


def check_call(
    owner: str,
    fusion: object,
    features: Features,
    masks: Features | None,
    present: Tensor | None,
    **functions: object,
) -> Call:
    """Check a fusion, the arguments of its call, and functions that take its context."""
    for argument, value in functions.items():
        if not callable(value):
            raise ShapeError(
                f"{owner}: expected `{argument}` to be a function of the context, "
                f"got {type(value).__name__}."
            )
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
    """Put a module into eval mode without gradients; restore the mode of each part afterwards."""
    training = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, flag in training:
            part.training = flag


def measure(owner: str, metric: Callable[[Tensor], Any], context: Tensor) -> float:
    """Return the metric of the batch; refuse a result that is not one number."""
    value = metric(context)
    single = isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex()
    if not single and (not isinstance(value, int | float) or isinstance(value, bool)):
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ShapeError(
            f"{owner}: expected `metric(context)` to be one number, got {got}. "
            "Give the metric of the whole batch."
        )
    return float(value.detach() if isinstance(value, Tensor) else value)


def draw(generator: torch.Generator | None, *shape: int) -> Tensor:
    """Draw numbers in [0, 1) from a generator on any device."""
    device = "cpu" if generator is None else generator.device
    return torch.rand(shape, generator=generator, device=device)


def _repeat(values: Features, times: int) -> Features:
    return {name: x if x is None else torch.cat([x] * times) for name, x in values.items()}
