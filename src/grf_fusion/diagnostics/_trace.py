"""The steps of a trace, for all diagnostics."""

from typing import NamedTuple

import torch
from torch import Tensor

from grf_fusion._chain.state import FusionTrace
from grf_fusion._checks.arguments import ShapeError, expect_shape, expect_tensor


class Steps(NamedTuple):
    """The steps of a chain, a column for every modality in the order of fusion.

    Attributes:
        names: Names of the modalities.
        gates: ``(batch, modalities, dim)``, at least float32: 0 if none was applied.
        full_gates: ``(batch, modalities, time, dim)``: the same before the mean over the time steps
            of a context that is a sequence; ``time`` is 1 for one vector.
        mask: ``(batch, time)``: the real ones of these time steps.
        present: ``(batch, modalities)``.
        opener: ``(batch, modalities)``: True where the modality opens the sample's context.
        first: The first modality that is a step: 0 if every sample starts from a learned vector,
            1 if modalities open the context.
    """

    names: tuple[str, ...]
    gates: Tensor
    full_gates: Tensor
    mask: Tensor
    present: Tensor
    opener: Tensor
    first: int

    @property
    def applied(self) -> Tensor:
        """Where a gate was applied, ``(batch, modalities)``."""
        return self.present & ~self.opener


def read_trace(owner: str, trace: object) -> Steps:
    """Return the steps of a trace; refuse what is none, or inconsistent.

    A learned opening is recognised by the gates: the first modality then has one too.
    """
    if not isinstance(trace, FusionTrace):
        raise ShapeError(
            f"{owner}: expected `trace` to be a FusionTrace, got {type(trace).__name__}. "
            "Call the fusion with return_trace=True and give the second result."
        )
    contexts = expect_tensor(owner, "trace.contexts", trace.contexts)
    count = len(trace.order)
    expect_shape(
        owner, "trace.contexts", contexts, {"batch": None, "modalities": count, "dim": None}
    )
    batch, _, dim = contexts.shape
    present = expect_tensor(owner, "trace.present", trace.present)
    expect_shape(owner, "trace.present", present, {"batch": batch, "modalities": count})
    gates = expect_tensor(owner, "trace.gates", trace.gates)
    first = 0 if gates.ndim == 3 and gates.shape[1] == count else 1
    axes = {"batch": batch, "steps": count - first, "dim": dim}
    expect_shape(owner, "trace.gates", gates, axes)
    if trace.time_gates is None:
        full, mask = gates.unsqueeze(2), torch.ones_like(present[:, :1], dtype=torch.bool)
    else:
        full = expect_tensor(owner, "trace.time_gates", trace.time_gates)
        axes = {"batch": batch, "steps": gates.shape[1], "time": None, "dim": dim}
        expect_shape(owner, "trace.time_gates", full, axes)
        mask = expect_tensor(owner, "trace.time_mask", trace.time_mask)
        expect_shape(owner, "trace.time_mask", mask, {"batch": batch, "time": full.shape[2]})
    present = present.bool()
    opener = torch.zeros_like(present)
    if first == 1:
        gates, full = (
            torch.cat((g.new_zeros(batch, 1, *g.shape[2:]), g), dim=1) for g in (gates, full)
        )
        opener = present & (present.cumsum(dim=1) == 1)
    exact = torch.promote_types(gates.dtype, torch.float32)
    gates, full = gates.to(exact), full.to(exact)
    return Steps(tuple(trace.order), gates, full, mask.bool(), present, opener, first)


def mean_where(values: Tensor, here: Tensor) -> Tensor:
    """Mean of each column over the samples marked in ``here``; NaN without any."""
    return values.masked_fill(~here, 0.0).sum(dim=0) / here.sum(dim=0)
