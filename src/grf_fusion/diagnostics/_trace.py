"""Check a trace and return its steps, for all diagnostics."""

from typing import NamedTuple

import torch
from torch import Tensor

from grf_fusion._chain.state import FusionTrace
from grf_fusion._checks.arguments import ShapeError, expect_shape, expect_tensor


class Steps(NamedTuple):
    """A checked trace, in the order of fusion.

    Attributes:
        order: Names of all modalities.
        present: ``(batch, modalities)``: which samples have which modality.
        first: Index of the first modality that has a step: 0 with a learned opening, otherwise 1.
        names: Names of the modalities that have a step, ``order[first:]``.
        gates: ``(batch, steps, dim)``, at least float32: the mean of ``full_gates`` over the real
            time steps. 0 if the sample has no such step.
        applied: ``(batch, steps)``: which samples have which step.
        full_gates: ``(batch, steps, time, dim)``: all gates; ``time`` is 1 if the context is one
            vector.
        mask: ``(batch, time)``: the real time steps of the context.
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
    """Return the steps of a trace; refuse another type and inconsistent tensors.

    A trace has a gate for every modality only if the opening is learned.
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
    # Without a learned opening, the first modality that a sample has opens its context.
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
    """Return the mean over the samples where ``here`` is True; NaN if there are none."""
    return values.masked_fill(~here, 0.0).sum(dim=0) / here.sum(dim=0)
