"""Retention: whose contribution is still there at the end of the chain."""

from typing import NamedTuple

import torch
from torch import Tensor

from grf_fusion._chain.state import FusionTrace
from grf_fusion.diagnostics._trace import mean_where, read_trace


class Retention(NamedTuple):
    """Shares of the final context, dimensionless, by who wrote them.

    Attributes:
        order: Names of the modalities in the order of fusion, the columns of the rest.
        shares: ``(batch, modalities)``: mean over the features, 0 for an absent modality.
        start: ``(batch,)``: the share of what the sample started from: the learnt vector, or with
            ``opening="first"`` nothing, so that it is 0, and 1 for a sample that has no modality.
            ``start`` and a row of ``shares`` sum to 1.
        mean: ``(modalities,)``: mean of ``shares`` over the samples that have the modality; NaN
            where no sample has it.
        mean_start: ``()``: mean of ``start`` over all samples.
        by_feature: ``(batch, 1 + modalities, dim)``: the shares of each feature, ``start`` first.
    """

    order: tuple[str, ...]
    shares: Tensor
    start: Tensor
    mean: Tensor
    mean_start: Tensor
    by_feature: Tensor


def retention(trace: FusionTrace) -> Retention:
    r"""Tell how much of each modality's contribution survives to the end.

    A chain of gates z_k unrolls into a weighted mean of its candidates c_k,

        h_k = (1 - z_k) h_{k-1} + z_k c_k
        h_n = s_0 h_0 + s_1 c_1 + ... + s_n c_n
        s_k = z_k (1 - z_{k+1}) ... (1 - z_n),    s_0 = (1 - z_1) ... (1 - z_n)

    for each feature; the shares s are at least 0 and sum to 1. With ``opening="first"`` the
    modality k that opens a sample has s_k = (1 - z_{k+1}) ... (1 - z_n). A modality that a sample
    lacks has z_k = 0. Source: the recurrence of GRF, arXiv 2507.02985, unrolled.

    With ``form="residual"`` this is exact: h_n is that sum. With ``form="paper"`` h_{k-1} stands
    for what the block has made of it, and each step ends with a LayerNorm, so the shares are those
    of the gates alone. With ``context="sequence"`` each step of the context has shares of its own;
    those here are their means over its real steps. A candidate has seen the context: a share tells
    at which step something was written, not which modality alone it is due to; for that see
    `shapley_values`.

    Args:
        trace: What a `GatedRecurrentFusion` returns with ``return_trace=True``.

    Returns:
        The shares, differentiable in the gates.

    Raises:
        ShapeError: If ``trace`` is no `FusionTrace`, or its tensors do not fit each other.

    Examples:
        >>> from grf_fusion import GatedRecurrentFusion
        >>> fusion = GatedRecurrentFusion({"text": 6, "audio": 5}, embed_dim=8, num_heads=2)
        >>> features = {"text": torch.randn(4, 7, 6), "audio": torch.randn(4, 11, 5)}
        >>> kept = retention(fusion(features, return_trace=True)[1])
        >>> torch.allclose(kept.start + kept.shares.sum(dim=1), torch.ones(4))
        True
    """
    steps = read_trace("retention", trace)
    gates = steps.full_gates
    # Entry k is what the steps from k to the end let through.
    through = (1 - gates).flip(1).cumprod(dim=1).flip(1)
    later = torch.cat((through[:, 1:], torch.ones_like(through[:, :1])), dim=1)
    shares = torch.where(steps.opener[..., None, None], 1.0, gates) * later
    real = steps.mask[:, None, :, None]
    count = real.sum(dim=2).clamp(min=1)
    shares, through = (x.masked_fill(~real, 0.0).sum(dim=2) / count for x in (shares, through))
    nothing = ~steps.present.any(dim=1, keepdim=True)
    start = through[:, 0] if steps.learned else nothing.to(gates).expand(shares[:, 0].shape)
    by_sample = shares.mean(dim=-1)
    return Retention(
        order=steps.names,
        shares=by_sample,
        start=start.mean(dim=-1),
        mean=mean_where(by_sample, steps.present),
        mean_start=start.mean(),
        by_feature=torch.cat((start.unsqueeze(1), shares), dim=1),
    )
