"""Contributions of modalities to a score: leave-one-out and Shapley values."""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from grf_fusion._checks.arguments import expect_number, expect_shape, expect_size, expect_tensor
from grf_fusion.diagnostics._calls import Call, check_call, draw, evaluating
from grf_fusion.diagnostics._trace import mean_where

MOST_EXACT = 8
USUAL_PERMUTATIONS = 128


class LeaveOneOut(NamedTuple):
    """Contribution of each modality to the score, given all others.

    Attributes:
        names: The modalities in declared order, the columns of the other attributes.
        values: ``(batch, modalities)`` in the unit of the score, exactly 0 for a missing modality.
        mean: ``(modalities,)``: mean over the samples that have the modality; NaN if none does.
        full: ``(batch,)``: the score given all modalities of the sample.
    """

    names: tuple[str, ...]
    values: Tensor
    mean: Tensor
    full: Tensor


class ShapleyValues(NamedTuple):
    """The score of each sample, divided among its modalities.

    Attributes:
        names: The modalities in declared order, the columns of the other attributes.
        values: ``(batch, modalities)`` in the unit of the score, exactly 0 for a missing modality;
            a row sums to ``full - empty``.
        mean: ``(modalities,)``: mean over the samples that have the modality; NaN if none does.
        standard_error: ``(batch, modalities)`` of ``values``: 0 if they are exact.
        full: ``(batch,)``: the score given all modalities of the sample.
        empty: ``(batch,)``: the score without any modality.
    """

    names: tuple[str, ...]
    values: Tensor
    mean: Tensor
    standard_error: Tensor
    full: Tensor
    empty: Tensor


def leave_one_out(
    fusion: nn.Module,
    features: Mapping[str, Tensor | None],
    value: Callable[[Tensor], Tensor],
    *,
    masks: Mapping[str, Tensor | None] | None = None,
    present: Tensor | None = None,
    rows: int = 1024,
) -> LeaveOneOut:
    r"""Measure the loss of score without each modality, ``v(all) - v(all but k)``.

    The fusion runs in eval mode without gradients. Afterwards each module is in its previous mode.
    If two modalities are redundant, neither appears to matter; `shapley_values` divides the credit.

    Args:
        fusion: A `GatedRecurrentFusion` or a fusion of `grf_fusion.baselines`.
        features: Features of each modality, as in a call of the fusion.
        value: Function from contexts to one score per sample, such as the logit of the true class.
            It is called several times with the contexts of the same samples in the same order.
        masks: Real steps of each modality, as in a call of the fusion.
        present: Which samples have which modality, as in a call of the fusion.
        rows: Maximal number of samples fused at once, counting repetitions; at least one batch.

    Returns:
        The differences.

    Shape:
        - value: ``(batch, dim)`` to ``(batch,)``

    Raises:
        ValueError: If ``rows`` is not a positive integer.
        ShapeError: If ``fusion`` is not a fusion, ``value`` returns something else, or the fusion
            rejects the call.

    Examples:
        >>> from grf_fusion import GatedRecurrentFusion
        >>> fusion = GatedRecurrentFusion({"text": 6, "audio": 5}, embed_dim=8)
        >>> head = nn.Linear(8, 3)
        >>> features = {"text": torch.randn(4, 7, 6), "audio": torch.randn(4, 11, 5)}
        >>> leave_one_out(fusion, features, lambda context: head(context)[:, 0]).values.shape
        torch.Size([4, 2])
    """
    owner = "leave_one_out"
    expect_size(owner, "rows", rows)
    call = check_call(owner, fusion, features, masks, present, value=value)
    # Row k lacks modality k, and the last row has all.
    coalitions = ~torch.eye(len(call.names) + 1, len(call.names), dtype=torch.bool)
    scores = _scores(owner, call, coalitions, value, rows)
    values = (scores[-1] - scores[:-1]).T.masked_fill(~call.here, 0.0)
    return LeaveOneOut(call.names, values, mean_where(values, call.here), scores[-1])


def shapley_values(
    fusion: nn.Module,
    features: Mapping[str, Tensor | None],
    value: Callable[[Tensor], Tensor],
    *,
    masks: Mapping[str, Tensor | None] | None = None,
    present: Tensor | None = None,
    permutations: int | None = None,
    generator: torch.Generator | None = None,
    rows: int = 1024,
) -> ShapleyValues:
    r"""Divide the score of each sample among its modalities.

        phi_k = sum over S without k of  |S|! (n - |S| - 1)! / n!  (v(S + k) - v(S))

    where ``v(S)`` is ``value`` of the context given only the modalities S. Source: Shapley, "A
    value for n-person games" (1953). For up to 8 modalities all 2^n sets are computed. For more,
    phi is the mean over random orders of the gain of k over the modalities before it, with the
    standard error of that mean (Castro, Gomez & Tejada 2009).

    The fusion runs in eval mode without gradients. Afterwards each module is in its previous mode.

    Args:
        fusion: A `GatedRecurrentFusion` or a fusion of `grf_fusion.baselines`.
        features: Features of each modality, as in a call of the fusion.
        value: Function from contexts to one score per sample, such as the logit of the true class.
            It is called for every set of modalities, with the contexts of the same samples in the
            same order. The empty set has a context of 0, or the learned initial context.
        masks: Real steps of each modality, as in a call of the fusion.
        present: Which samples have which modality, as in a call of the fusion.
        permutations: Number of random orders, at least 2; ``None`` for exact values up to 8
            modalities and 128 orders for more.
        generator: Generator of random orders; ``None`` for the global one.
        rows: Maximal number of samples fused at once, counting repetitions; at least one batch.

    Returns:
        The values.

    Shape:
        - value: ``(batch, dim)`` to ``(batch,)``

    Raises:
        ValueError: If ``permutations`` or ``rows`` is not an integer or too small.
        ShapeError: If ``fusion`` is not a fusion, ``value`` returns something else, or the fusion
            rejects the call.

    Examples:
        >>> from grf_fusion import GatedRecurrentFusion
        >>> fusion = GatedRecurrentFusion({"text": 6, "audio": 5}, embed_dim=8)
        >>> head = nn.Linear(8, 3)
        >>> features = {"text": torch.randn(4, 7, 6), "audio": torch.randn(4, 11, 5)}
        >>> result = shapley_values(fusion, features, lambda context: head(context)[:, 0])
        >>> torch.allclose(result.values.sum(dim=1), result.full - result.empty, atol=1e-6)
        True
    """
    owner = "shapley_values"
    expect_size(owner, "rows", rows)
    if permutations is not None:
        rule = "an integer of at least 2"
        expect_number(owner, "permutations", permutations, rule, at_least=2, whole=True)
    call = check_call(owner, fusion, features, masks, present, value=value)
    count = len(call.names)
    if permutations is None and count <= MOST_EXACT:
        numbers = torch.arange(2**count, device="cpu").unsqueeze(1)
        coalitions = (numbers >> torch.arange(count, device="cpu")) % 2 == 1
        scores = _scores(owner, call, coalitions, value, rows)
        values, error = _divide(scores, count), torch.zeros_like(call.here, dtype=scores.dtype)
        empty, full = scores[0], scores[-1]
    else:
        drawn = draw(generator, permutations or USUAL_PERMUTATIONS, count)
        place = drawn.argsort(dim=1).argsort(dim=1).cpu()
        before = place.unsqueeze(1) < torch.arange(count + 1, device="cpu").unsqueeze(1)
        scores = _scores(owner, call, before.flatten(0, 1), value, rows)
        scores = scores.reshape(*before.shape[:2], len(call.here))
        empty, full = scores[0, 0], scores[0, -1]
        # From ``(orders, batch, place)`` to ``(orders, batch, modality)``.
        gains = scores.diff(dim=1).transpose(1, 2)
        gains = gains.gather(2, place.to(gains.device).unsqueeze(1).expand_as(gains))
        values = gains.mean(dim=0)
        error = gains.std(dim=0) / math.sqrt(len(gains))
    values = values.masked_fill(~call.here, 0.0)
    mean = mean_where(values, call.here)
    return ShapleyValues(call.names, values, mean, error.masked_fill(~call.here, 0.0), full, empty)


def _scores(
    owner: str, call: Call, coalitions: Tensor, value: Callable[[Tensor], Tensor], rows: int
) -> Tensor:
    """Return the score of every sample given each set of modalities, ``(sets, batch)``."""
    scores: list[Tensor] = []
    # Random orders share many sets. Each set is computed once.
    unique = coalitions.unique  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    distinct, places = cast("tuple[Tensor, Tensor]", unique(dim=0, return_inverse=True))
    at_once = max(1, rows // max(1, len(call.here)))
    with evaluating(call.fusion):
        for some in torch.split(distinct.to(call.here.device), at_once):
            for context in call.run(*(some.unsqueeze(1) & call.here)):
                found = expect_tensor(owner, "value(context)", value(context))
                hint = " Give each sample one number, not their mean."
                expect_shape(owner, "value(context)", found, {"batch": len(context)}, hint)
                scores.append(found.to(torch.promote_types(found.dtype, torch.float32)))
    return torch.stack(scores)[places]


def _divide(scores: Tensor, count: int) -> Tensor:
    """Return exact values ``(batch, modalities)`` from the scores of all sets.

    Bit k of a row's index is 1 if the set contains modality k.
    """
    columns: list[Tensor] = []
    for k in range(count):
        without = [number for number in range(2**count) if not number >> k & 1]
        weights = [1 / (count * math.comb(count - 1, number.bit_count())) for number in without]
        gains = scores[[number | 1 << k for number in without]] - scores[without]
        columns.append(scores.new_tensor(weights) @ gains)
    return torch.stack(columns, dim=1)
