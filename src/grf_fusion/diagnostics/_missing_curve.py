"""A metric against the number of missing modalities."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from grf_fusion._checks.arguments import expect_size
from grf_fusion.diagnostics._calls import check_call, draw, evaluating, measure

OWNER = "missing_curve"


class MissingCurve(NamedTuple):
    """A metric by the number of modalities removed from every sample.

    Attributes:
        missing: Numbers of removed modalities, from 0 to all but one.
        values: ``(len(missing), draws)`` in the unit of the metric; row 0 holds one number.
    """

    missing: tuple[int, ...]
    values: Tensor


def missing_curve(
    fusion: nn.Module,
    features: Mapping[str, Tensor | None],
    metric: Callable[[Tensor], Tensor | float],
    *,
    masks: Mapping[str, Tensor | None] | None = None,
    present: Tensor | None = None,
    draws: int = 5,
    generator: torch.Generator | None = None,
) -> MissingCurve:
    """Compute a metric while more and more modalities are removed.

    The removed modalities are drawn independently and uniformly for each sample, among those that
    it has. A sample that has fewer loses all. To compare fusions on the same draws, use generators
    with the same seed.

    The fusion runs in eval mode without gradients. Afterwards each module is in its previous mode.

    Args:
        fusion: A `GatedRecurrentFusion` or a fusion of `grf_fusion.baselines`.
        features: Features of each modality, as in a call of the fusion.
        metric: Function from contexts to one number for the batch, such as the accuracy of a head.
        masks: Real steps of each modality, as in a call of the fusion.
        present: Which samples have which modality, as in a call of the fusion.
        draws: Number of random draws.
        generator: Generator of the draws; ``None`` for the global one.

    Returns:
        The curve.

    Shape:
        - metric: ``(batch, dim)`` to ``()``

    Raises:
        ValueError: If ``draws`` is not a positive integer.
        ShapeError: If ``fusion`` is not a fusion, ``metric`` does not return one number, or the
            fusion rejects the call.

    Examples:
        >>> from grf_fusion import GatedRecurrentFusion
        >>> fusion = GatedRecurrentFusion({"text": 6, "audio": 5}, embed_dim=8)
        >>> features = {"text": torch.randn(4, 7, 6), "audio": torch.randn(4, 11, 5)}
        >>> curve = missing_curve(fusion, features, lambda context: context.square().mean())
        >>> curve.missing, curve.values.shape
        ((0, 1), torch.Size([2, 5]))
    """
    expect_size(OWNER, "draws", draws)
    call = check_call(OWNER, fusion, features, masks, present, metric=metric)
    batch, count = call.here.shape
    values = torch.empty(count, draws, dtype=torch.float64)
    with evaluating(fusion):
        for missing in range(count):
            for column in range(draws if missing else 1):
                # Missing modalities are ranked last, so that none of them counts as removed.
                drawn = draw(generator, batch, count).to(call.here.device)
                place = drawn.masked_fill(~call.here, 2.0).argsort(dim=1).argsort(dim=1)
                context = call.run(call.here & (place >= missing))[0]
                # If nothing is removed, one draw stands for all.
                columns = column if missing else slice(None)
                values[missing, columns] = measure(OWNER, metric, context)
    return MissingCurve(tuple(range(count)), values)
