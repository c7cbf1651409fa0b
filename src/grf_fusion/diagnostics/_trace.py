"""The steps of a trace, for all diagnostics."""

from typing import NamedTuple

import torch
from torch import Tensor

from grf_fusion._chain.state import FusionTrace
from grf_fusion._checks.arguments import ShapeError, expect_shape, expect_tensor


class Steps(NamedTuple):
    """A checked trace: all modalities in the order of fusion, and the gates of those with a step.

    Attributes:
        order: Names of the modalities.
        present: ``(batch, modalities)``.
        first: The first modality that has a step: 0 if every sample starts from a learned vector,
            1 if modalities open the context.
        names: Names of the steps.
        gates: ``(batch, steps, dim)``, at least float32: 0 if none was applied.
        applied: ``(batch, steps)``: where one was.
        full_gates: ``(batch, steps, time, dim)``: the gates before the mean over the time steps of
            a context that is a sequence; ``time`` is 1 for one vector.
        mask: ``(batch, time)``: the real ones of these time steps.
    """

    order: tuple[str, ...]
    present: Tensor
    first: int
    names: tuple[str, ...]
    gates: Tensor
    applied: Tensor
    full_gates: Tensor
    mask: Tensor


def read_trace(owner: str, trace: object) -> Steps:
    """Return the steps of a trace; refuse what is none, or inconsistent.

    A learned opening is recognised by the gates: the first modality then has one too.
    """
    if not isinstance(trace, FusionTrace):
        raise ShapeError(
            f"{owner}: expected `trace` to be a FusionTrace, got {type(trace).__name__}. "
            "Call the fusion with return_trace=True and give the second result."
        )

    def part(name: str, **axes: int | None) -> Tensor:
        tensor = expect_tensor(owner, f"trace.{name}", getattr(trace, name))
        expect_shape(owner, f"trace.{name}", tensor, axes)
        return tensor

    order = tuple(trace.order)
    batch, count, dim = part("contexts", batch=None, modalities=len(order), dim=None).shape
    present = part("present", batch=batch, modalities=count).bool()
    shape = expect_tensor(owner, "trace.gates", trace.gates).shape
    first = 0 if len(shape) == 3 and shape[1] == count else 1
    gates = part("gates", batch=batch, steps=count - first, dim=dim)
    exact = torch.promote_types(gates.dtype, torch.float32)
    if trace.time_gates is None:
        full, mask = gates.unsqueeze(2), torch.ones_like(present[:, :1])
    else:
        full = part("time_gates", batch=batch, steps=count - first, time=None, dim=dim)
        mask = part("time_mask", batch=batch, time=full.shape[2]).bool()
    # With no learned opening, the first modality that a sample has opens its context.
    applied = present & (present.cumsum(dim=1) > first)
    return Steps(
        order=order,
        present=present,
        first=first,
        names=order[first:],
        gates=gates.to(exact),
        applied=applied[:, first:],
        full_gates=full.to(exact),
        mask=mask,
    )


def mean_where(values: Tensor, here: Tensor) -> Tensor:
    """Mean of each column over the samples marked in ``here``; NaN without any."""
    return values.masked_fill(~here, 0.0).sum(dim=0) / here.sum(dim=0)
