"""Statistics of the gates of each step."""

from typing import NamedTuple

from torch import Tensor

from grf_fusion._chain.state import FusionTrace
from grf_fusion._checks.arguments import expect_number
from grf_fusion.diagnostics._trace import mean_where, read_trace

OWNER = "gate_statistics"


class GateStatistics(NamedTuple):
    """Gates z of each step, in [0, 1]: 0 keeps the context, 1 overwrites it.

    All tensors have the shape ``(steps,)``. Samples that lack the modality or open with it are
    excluded. If none is left, all but ``samples`` are NaN.

    Attributes:
        steps: Names of the modalities that have a step, in the order of fusion. With a learned
            opening these are all modalities, otherwise all but the first.
        samples: Number of samples included.
        mean: Mean over these samples and the features.
        spread: Standard deviation over the same.
        between_samples: Standard deviation over the samples, then averaged over the features: how
            much the gate depends on its input.
        closed: Share of the gates below ``saturation``.
        open: Share of the gates above ``1 - saturation``.
    """

    steps: tuple[str, ...]
    samples: Tensor
    mean: Tensor
    spread: Tensor
    between_samples: Tensor
    closed: Tensor
    open: Tensor


def gate_statistics(trace: FusionTrace, *, saturation: float = 0.05) -> GateStatistics:
    """Describe the gates of every step.

    Standard deviations are computed without Bessel's correction.

    Args:
        trace: Trace of a `GatedRecurrentFusion`, from ``return_trace=True``.
        saturation: Distance from 0 or 1 below which a gate counts as saturated, in (0, 0.5).

    Returns:
        The statistics.

    Raises:
        ValueError: If ``saturation`` is not in (0, 0.5).
        ShapeError: If ``trace`` is not a `FusionTrace`, or its tensors are inconsistent.

    Examples:
        >>> import torch
        >>> from grf_fusion import GatedRecurrentFusion
        >>> fusion = GatedRecurrentFusion({"text": 6, "audio": 5}, embed_dim=8)
        >>> features = {"text": torch.randn(4, 7, 6), "audio": torch.randn(4, 11, 5)}
        >>> numbers = gate_statistics(fusion(features, return_trace=True)[1])
        >>> numbers.steps, numbers.samples
        (('text', 'audio'), tensor([4, 4]))
    """
    expect_number(OWNER, "saturation", saturation, "a number in (0, 0.5)", above=0, below=0.5)
    steps = read_trace(OWNER, trace)
    gates, applied = steps.gates, steps.applied.unsqueeze(-1)

    def mean(values: Tensor) -> Tensor:
        return mean_where(values, applied).mean(dim=-1)

    centre = mean(gates)
    variance = mean_where((gates - mean_where(gates, applied)).square(), applied)
    return GateStatistics(
        steps=steps.names,
        samples=steps.applied.sum(dim=0),
        mean=centre,
        spread=mean((gates - centre.unsqueeze(-1)).square()).sqrt(),
        between_samples=variance.sqrt().mean(dim=-1),
        closed=mean((gates < saturation).to(gates.dtype)),
        open=mean((gates > 1 - saturation).to(gates.dtype)),
    )
