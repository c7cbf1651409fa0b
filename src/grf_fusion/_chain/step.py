"""The recurrence itself: how one modality meets the context of every sample."""

from collections.abc import Callable
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grf_fusion._chain.options import OWNER, Mode
from grf_fusion._chain.state import FusionState
from grf_fusion._checks.arguments import ShapeError, expect_floating, expect_shape, expect_tensor
from grf_fusion._cpu.dropout import drop
from grf_fusion._inputs.call import Arrival
from grf_fusion._inputs.masks import fill_masked, masked_mean, unmask_empty
from grf_fusion._inputs.projections import add_positions, project
from grf_fusion._inputs.scale import FeatureScale
from grf_fusion._layers.block import SymmetricCrossAttentionBlock
from grf_fusion._layers.summary import ModalitySummary

# Scaled features have an rms of 0.58 once they are projected by fresh weights, positions of 0.71.
POSITION_WEIGHT = 0.3


class Incoming(NamedTuple):
    """A projected modality.

    Attributes:
        projected: ``(batch, time, dim)``, without positions.
        encoded: ``(batch, time, dim)``, with positions and their dropout.
        real: ``(batch, time)`` bool: real steps, ``None`` for all.
        mask: The same, but all True where a sample has none, so that no softmax runs over nothing;
            the result of such a sample is thrown away.
        present: ``(batch,)`` bool: samples that have at least one real step.
    """

    projected: Tensor
    encoded: Tensor
    real: Tensor | None
    mask: Tensor | None
    present: Tensor


class StepResult(NamedTuple):
    """What a step offers every sample, as if each had a context and the modality.

    Attributes:
        fused: ``(batch, dim)`` or ``(batch, time, dim)``: the context of a sample that takes it.
        held: The same shape: the context of a sample that does not.
        gate: The same shape.
    """

    fused: Tensor
    held: Tensor
    gate: Tensor


def receive(projection: nn.Linear, arrival: Arrival, batch: int, dropout: nn.Dropout) -> Incoming:
    """Project a modality and add PE."""
    projected, real, present = project(projection, arrival, batch)
    return Incoming(
        projected,
        drop(dropout, add_positions(projected, projection.weight)),
        real,
        None if arrival.mask is None else unmask_empty(arrival.mask),
        present,
    )


def receive_summary(
    projection: nn.Linear,
    scale: FeatureScale,
    summary: ModalitySummary,
    arrival: Arrival,
    batch: int,
) -> Incoming:
    """Scale and project a modality, add PE and summarise it: what enters the chain is one step."""
    projected, _, present = project(projection, arrival, batch, scale)
    mask = None if arrival.mask is None else unmask_empty(arrival.mask)
    placed = add_positions(projected, projection.weight, weight=POSITION_WEIGHT)
    encoded = summary(placed, mask).unsqueeze(1)
    return Incoming(encoded, encoded, None, None, present)


def open_chain(incoming: Incoming, seen: Tensor, *, mode: Mode, is_sequence: bool) -> FusionState:
    """Make the state of a chain that starts with its first modality.

    Args:
        incoming: The modality.
        seen: ``(batch, modalities)``: nothing but this modality.
        mode: What the context is.
        is_sequence: Whether the modality may open as a sequence.

    Returns:
        The state; a sample without the modality stays closed.
    """
    real = incoming.present.unsqueeze(1)
    if is_sequence and mode != "pooled":
        real = real.expand(incoming.projected.shape[:2]) if incoming.real is None else incoming.real
        # Autocast projects in half precision; a state has one dtype from its first step on.
        context = fill_masked(incoming.projected, real).to(incoming.encoded.dtype)
        return FusionState(context, real, seen)
    opener = fill_masked(masked_mean(incoming.encoded, incoming.mask).unsqueeze(1), real)
    return FusionState(opener if mode == "sequence" else opener.squeeze(1), real, seen)


def advance(
    state: FusionState,
    incoming: Incoming,
    block: nn.Module | None,
    unit: nn.Module,
    *,
    encode: Callable[[Tensor], Tensor],
    mode: Mode,
    residual: bool,
    all_open: bool,
) -> tuple[FusionState, Tensor]:
    """Fuse where a sample has context and modality, open where it has only the modality.

    Args:
        state: What is known so far.
        incoming: The modality.
        block: Symmetric cross-attention, ``None`` where the unit gets the modality itself.
        unit: Gated fusion unit.
        encode: Adds positions and their dropout to the context.
        mode: What the context is.
        residual: Whether the gate keeps the context itself.
        all_open: Whether every sample has a context by construction.

    Returns:
        The new state, its ``present`` as it was, and the gate of each of its steps, 0 where none
        was applied.

    Raises:
        ShapeError: If a user's block or unit returns something else than ours would.
    """
    is_open = state.mask.any(dim=1)
    fuses = incoming.present & is_open
    opens = incoming.present & ~is_open
    met = _meet(state, incoming, block, unit, encode=encode, mode=mode, residual=residual)
    gate = met.gate.masked_fill(~_over(fuses, met.gate), 0.0)
    if all_open:
        return FusionState(_select(fuses, met.fused, met.held), state.mask, state.present), gate
    opener = masked_mean(incoming.encoded, incoming.mask)
    if mode == "sequence":
        time = state.mask.shape[1]
        opener = F.pad(opener.unsqueeze(1), (0, 0, 0, time - 1))
        first = torch.arange(time, device=opener.device) == 0
        # Spelled out: onnxruntime cannot select between truth values.
        mask = (opens.unsqueeze(1) & first) | (~opens.unsqueeze(1) & state.mask)
    else:
        mask = (is_open | incoming.present).unsqueeze(1)
    context = _select(fuses, met.fused, _select(opens, opener, met.held))
    return FusionState(context, mask, state.present), gate


def _meet(
    state: FusionState,
    incoming: Incoming,
    block: nn.Module | None,
    unit: nn.Module,
    *,
    encode: Callable[[Tensor], Tensor],
    mode: Mode,
    residual: bool,
) -> StepResult:
    if block is None:
        update = incoming.encoded.squeeze(1)
        given = (state.context, update)
        fused, gate = _pair("unit()", unit(*given, return_gate=True), given)
        return StepResult(fused, state.context, gate)
    is_sequence = state.context.ndim == 3
    context = state.context if is_sequence else state.context.unsqueeze(1)
    # A position that is added to one vector at every step crowds out what the vector has kept.
    encoded = context if residual and not is_sequence else encode(context)
    readable = unmask_empty(state.mask) if is_sequence else None
    # Where steps are packed an empty sequence costs nothing; elsewhere no block ever meets one, and
    # saying that everybody is present changes no bit.
    mask = incoming.mask
    if isinstance(block, SymmetricCrossAttentionBlock) and block.packs(
        encoded, readable, incoming.real
    ):
        mask = incoming.real
    enriched, update = _pair(
        "block()",
        block(encoded, incoming.encoded, context_mask=readable, modality_mask=mask),
        (encoded, incoming.encoded),
    )
    update = masked_mean(update, incoming.mask)
    if mode == "sequence":
        update = update.unsqueeze(1)
        pair = (context, enriched + update) if residual else (enriched, update.expand_as(enriched))
        fused, gate = _pair("unit()", unit(*pair, return_gate=True), (enriched, enriched))
        return StepResult(fill_masked(fused, state.mask), state.context, gate)
    pooled = masked_mean(enriched, readable)
    # A sequence that meets an absent modality is pooled as if it had opened as a vector.
    held = masked_mean(encoded, state.mask) if is_sequence else state.context
    pair = (held, pooled + update) if residual else (pooled, update)
    fused, gate = _pair("unit()", unit(*pair, return_gate=True), (pooled, pooled))
    return StepResult(fused, held, gate)


def _select(condition: Tensor, chosen: Tensor, other: Tensor) -> Tensor:
    """Take whole samples from one of two tensors; what is not taken gets a zero gradient."""
    return torch.where(_over(condition, chosen), chosen, other)


def _over(samples: Tensor, values: Tensor) -> Tensor:
    """Give one truth value a sample the axes of ``values``."""
    return samples.reshape(-1, *[1] * (values.ndim - 1))


def _pair(call: str, value: object, given: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Refuse what a user's own block or unit may not return."""
    if not isinstance(value, tuple) or len(cast("tuple[object, ...]", value)) != 2:
        raise ShapeError(
            f"{OWNER}: expected `{call}` to return a pair of tensors, as our own does, "
            f"got {type(cast(object, value)).__name__}."
        )
    first, second = (
        expect_tensor(OWNER, f"{call}[{i}]", tensor)
        for i, tensor in enumerate(cast("tuple[object, object]", value))
    )
    for i, (tensor, like) in enumerate(zip((first, second), given, strict=True)):
        axes = ("batch", "dim") if like.ndim == 2 else ("batch", "time", "dim")
        expect_shape(OWNER, f"{call}[{i}]", tensor, dict(zip(axes, like.shape, strict=True)))
        expect_floating(OWNER, f"{call}[{i}]", tensor, like)
    return first, second
