"""Retention: the share of each modality that remains in the final context."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from grf_fusion._chain.state import FusionTrace
from grf_fusion.diagnostics._trace import mean_where, read_trace


class Retention(NamedTuple):
    """Share of each modality in the final context.

    Attributes:
        order: Names of the modalities in the order of fusion, the columns of the other attributes.
        shares: ``(batch, modalities)``: mean over the features, 0 for a missing modality.
        start: ``(batch,)``: share of the learned initial context. With ``opening="first"`` it is 0,
            or 1 for a sample without any modality. ``start`` and a row of ``shares`` sum to 1.
        mean: ``(modalities,)``: mean of ``shares`` over the samples that have the modality; NaN if
            no sample has it.
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
    r"""Measure the share of each modality that remains in the final context.

    A chain of gates z_k unrolls into a weighted mean of its candidates c_k,

        h_k = (1 - z_k) h_{k-1} + z_k c_k
        h_n = s_0 h_0 + s_1 c_1 + ... + s_n c_n
        s_k = z_k (1 - z_{k+1}) ... (1 - z_n),    s_0 = (1 - z_1) ... (1 - z_n)

    for each feature. The shares s are at least 0 and sum to 1. With ``opening="first"`` the
    modality k that opens a sample has s_k = (1 - z_{k+1}) ... (1 - z_n). A missing modality has
    z_k = 0. Source: the recurrence of GRF, arXiv 2507.02985, unrolled.

    With ``form="residual"`` this is exact: h_n is that sum. With ``form="paper"`` the gate keeps
    the output of the block, and each step ends with a LayerNorm, so the shares describe only the
    gates. With ``context="sequence"`` each time step has its own shares; the result is their mean
    over the real steps. A candidate also depends on the context. A share therefore shows at which
    step a value was written, not where its information came from; for that see `shapley_values`.

    Args:
        trace: Trace of a `GatedRecurrentFusion`, from ``return_trace=True``.

    Returns:
        The shares, differentiable in the gates.

    Raises:
        ShapeError: If ``trace`` is not a `FusionTrace`, or its tensors are inconsistent.

    Examples:
        >>> from grf_fusion import GatedRecurrentFusion
        >>> fusion = GatedRecurrentFusion({"text": 6, "audio": 5}, embed_dim=8)
        >>> features = {"text": torch.randn(4, 7, 6), "audio": torch.randn(4, 11, 5)}
        >>> kept = retention(fusion(features, return_trace=True)[1])
        >>> torch.allclose(kept.start + kept.shares.sum(dim=1), torch.ones(4))
        True
    """
    steps = read_trace("retention", trace)
    # A modality that opens every context has no gate: pad with 0.
    gates = nn.functional.pad(steps.full_gates, (0, 0, 0, 0, steps.first, 0))
    opener = steps.present & (steps.present.cumsum(dim=1) <= steps.first)
    # Entry k is the share of the context before step k that is left at the end.
    kept = (1 - gates).flip(1).cumprod(dim=1).flip(1)
    later = torch.cat((kept[:, 1:], torch.ones_like(kept[:, :1])), dim=1)
    shares = torch.where(opener[..., None, None], 1.0, gates) * later
    real = steps.mask[:, None, :, None]
    count = real.sum(dim=2).clamp(min=1)
    shares, kept = (x.masked_fill(~real, 0.0).sum(dim=2) / count for x in (shares, kept))
    empty = ~steps.present.any(dim=1, keepdim=True)
    start = kept[:, 0] if steps.first == 0 else empty.to(gates).expand(shares[:, 0].shape)
    by_sample = shares.mean(dim=-1)
    return Retention(
        order=steps.order,
        shares=by_sample,
        start=start.mean(dim=-1),
        mean=mean_where(by_sample, steps.present),
        mean_start=start.mean(),
        by_feature=torch.cat((start.unsqueeze(1), shares), dim=1),
    )
