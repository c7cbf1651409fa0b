"""The state of a fusion between steps, and the trace of a forward pass."""

from typing import NamedTuple

import torch
from torch import Tensor

from grf_fusion._checks.arguments import (
    ShapeError,
    expect_floating,
    expect_shape,
    expect_steps,
    expect_tensor,
)
from grf_fusion._inputs.masks import as_mask, masked_mean


class FusionState(NamedTuple):
    """The state of a `GatedRecurrentFusion` after some modalities.

    It holds only tensors, so it can be saved, sliced along ``batch``, exported and cached.
    ``FusionState(*(part.to(device) for part in state))`` moves it.

    Attributes:
        context: ``(batch, dim)``, or ``(batch, time, dim)`` while the context is a sequence.
        mask: ``(batch, 1)``, or ``(batch, time)`` while the context is a sequence: real steps of
            the context. All False for a sample without any modality so far.
        present: ``(batch, modalities)``, columns in declared order: modalities fused so far.
    """

    context: Tensor
    mask: Tensor
    present: Tensor


class FusionTrace(NamedTuple):
    """Intermediate values of a forward pass. All columns are in the order of fusion.

    Attributes:
        contexts: ``(batch, modalities, dim)``: the context after each modality, averaged over its
            real steps while it is a sequence.
        gates: ``(batch, modalities - 1, dim)`` for ``order[1:]``, with a learned opening
            ``(batch, modalities, dim)``: the gate, averaged in the same way. 0 if no gate was
            applied, because the sample lacks the modality or opens with it.
        present: ``(batch, modalities)``: which samples have which modality.
        order: Names of the modalities in the order of fusion.
        time_gates: ``(batch, modalities - 1, time, dim)`` with ``context="sequence"`` and at least
            two modalities, ``None`` otherwise: the gates before they were averaged.
        time_mask: ``(batch, time)``: the real steps over which they were averaged, or ``None``.
    """

    contexts: Tensor
    gates: Tensor
    present: Tensor
    order: tuple[str, ...]
    time_gates: Tensor | None = None
    time_mask: Tensor | None = None


for kind in (FusionState, FusionTrace):
    # Pickled under the public name, so that saved states survive when this file is moved.
    kind.__module__ = "grf_fusion"
    # By default `torch.load` refuses unknown classes. Version 0.1.0 saved the second name.
    torch.serialization.add_safe_globals([kind, (kind, f"grf_fusion._state.{kind.__name__}")])  # pyright: ignore[reportUnknownMemberType]


def check_state(
    owner: str, state: object, *, context: str, dim: int, modalities: int, like: Tensor
) -> FusionState:
    """Return the state with bool masks; raise `ShapeError` if it does not fit the module."""
    if not isinstance(state, FusionState):
        raise ShapeError(
            f"{owner}: expected `state` to be a FusionState, got {type(state).__name__}. "
            "Rebuild one from saved tensors with `FusionState(*tensors)`."
        )
    for field, value in zip(FusionState._fields, state, strict=True):
        expect_tensor(owner, f"state.{field}", value)
    vector = context == "pooled" or (context == "first_sequence" and state.context.ndim == 2)
    axes = {"batch": None, "dim": dim} if vector else {"batch": None, "time": None, "dim": dim}
    expect_shape(owner, "state.context", state.context, axes)
    if not vector:
        expect_steps(owner, "state.context", state.context)
    expect_floating(owner, "state.context", state.context, like)
    batch, device = state.context.shape[0], state.context.device
    time = 1 if vector else state.context.shape[1]
    mask = as_mask(owner, "state.mask", state.mask, device, batch=batch, time=time)
    hint = " A state from before `add_modality` lacks a column: start anew."
    axes = {"batch": batch, "modalities": modalities}
    expect_shape(owner, "state.present", state.present, axes, hint)
    present = as_mask(owner, "state.present", state.present, device, **axes)
    return FusionState(state.context, mask, present)


def mean_over_steps(values: Tensor, mask: Tensor | None) -> Tensor:
    """Average a sequence over its real steps; return vectors ``(batch, dim)`` unchanged."""
    return values if values.ndim == 2 else masked_mean(values, mask)
