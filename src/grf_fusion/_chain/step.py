"""The recurrence itself: how one modality meets the context of every sample."""

from typing import Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grf_fusion._chain.options import OWNER, Mode
from grf_fusion._checks.arguments import ShapeError, expect_floating, expect_shape, expect_tensor
from grf_fusion._checks.tracing import is_plain, is_plain_call, is_untouched
from grf_fusion._cpu.dropout import drop
from grf_fusion._cpu.layout import worth_packing
from grf_fusion._cpu.real_steps import find_real_steps
from grf_fusion._inputs.call import Arrival
from grf_fusion._inputs.masks import fill_masked, masked_mean, unmask_empty
from grf_fusion._inputs.positions import sinusoidal_positions
from grf_fusion._inputs.projections import add_positions, fill
from grf_fusion._inputs.scale import FeatureScale
from grf_fusion._layers.block import enrich, is_own_block
from grf_fusion._layers.gate import blend, is_own_unit
from grf_fusion._layers.summary import ModalitySummary

# Scaled features have an rms of 0.58 once they are projected by fresh weights, positions of 0.71.
POSITION_WEIGHT = 0.3


class Incoming(NamedTuple):
    """A modality as a step takes it.

    Attributes:
        encoded: ``(batch, time, dim)``: projected, with positions and their dropout; in the summary
            form the one step ``(batch, 1, dim)`` of its summary.
        real: ``(batch, time)`` bool: real steps, ``None`` for all.
        mask: The same, but all True where a sample has none, so that no softmax runs over nothing;
            the result of such a sample is thrown away.
        present: ``(batch,)`` bool: samples that have at least one real step, ``None`` for all.
    """

    encoded: Tensor
    real: Tensor | None
    mask: Tensor | None
    present: Tensor | None


class Context(NamedTuple):
    """The context between two steps.

    Attributes:
        values: ``(batch, dim)`` or ``(batch, time, dim)``.
        mask: ``(batch, 1)`` or ``(batch, time)`` bool: real steps; a sample without any has no
            context yet. ``None`` where every sample has a vector.
    """

    values: Tensor
    mask: Tensor | None

    def full_mask(self) -> Tensor:
        """Return the mask as a tensor."""
        return _ones(self.values, 1) if self.mask is None else self.mask


class StepResult(NamedTuple):
    """What a step offers every sample, as if each had a context and the modality.

    Attributes:
        fused: ``(batch, dim)`` or ``(batch, time, dim)``: the context of a sample that takes it.
        held: The same shape: the context of a sample that does not.
        gate: The same shape.
        own: Whether block and unit are ours, whose results depend on all that they get and are new
            tensors.
    """

    fused: Tensor
    held: Tensor
    gate: Tensor
    own: bool


def receive(projection: nn.Linear, arrival: Arrival, dropout: nn.Dropout) -> Incoming:
    """Project a modality and add PE."""
    features, real = fill(arrival)
    return Incoming(
        drop(dropout, add_positions(projection(features), projection.weight)),
        real,
        None if arrival.mask is None else unmask_empty(arrival.mask),
        arrival.presence_or_none(),
    )


def receive_summary(
    projection: nn.Linear,
    scale: FeatureScale,
    summary: ModalitySummary,
    arrival: Arrival,
    *,
    packing: bool | Literal["auto"],
) -> Incoming:
    """Scale and project a modality, add PE and summarise it: what enters the chain is one step."""
    features, real = fill(arrival)
    time, weight = features.shape[1], projection.weight
    packed = None
    # An absent modality keeps its one empty step, and layers of others are given samples and time.
    if not arrival.absent and real is not None and _is_ours(projection, scale, summary):
        width = features.shape[-1]
        if is_plain_call(features) and worth_packing([real], packing=packing, width=width):
            packed = find_real_steps(real)
            features, real = packed.pack(features), None
    projected = projection(scale(features, real))
    dim, dtype = projected.shape[-1], torch.promote_types(projected.dtype, weight.dtype)
    positions = sinusoidal_positions(time, dim, device=weight.device, dtype=dtype)
    if packed is not None:
        positions = positions.index_select(0, packed.step)
    placed = torch.add(projected, positions, alpha=POSITION_WEIGHT)
    if packed is None:
        encoded = summary(placed, None if arrival.mask is None else unmask_empty(arrival.mask))
    else:
        encoded = summary(placed, None, packed)
    return Incoming(encoded.unsqueeze(1), None, None, arrival.presence_or_none())


def _is_ours(projection: nn.Linear, scale: FeatureScale, summary: ModalitySummary) -> bool:
    return (
        type(summary) is ModalitySummary
        and type(scale) is FeatureScale
        and is_plain(projection, *cast("list[nn.Linear]", list(summary.hidden)))
        and is_untouched(scale, summary)
    )


def open_as_sequence(projection: nn.Linear, arrival: Arrival) -> Context:
    """Open the context with the steps of a modality that some sample has, without positions."""
    features, real = fill(arrival)
    # Autocast projects in half precision; a state has one dtype from its first step on.
    projected = projection(features)
    wide = torch.promote_types(projected.dtype, projection.weight.dtype)
    values = fill_masked(projected, real).to(wide)
    return Context(values, _ones(values, values.shape[1]) if real is None else real)


def open_as_vector(incoming: Incoming, *, mode: Mode) -> Context:
    """Open the context with a modality's mean; a sample without the modality stays closed."""
    real = None if incoming.present is None else incoming.present.unsqueeze(1)
    opener = fill_masked(masked_mean(incoming.encoded, incoming.mask).unsqueeze(1), real)
    return Context(opener if mode == "sequence" else opener.squeeze(1), real)


class Cell(NamedTuple):
    """What a step computes with.

    Attributes:
        block: Symmetric cross-attention, ``None`` where the unit gets the modality itself.
        unit: Gated fusion unit.
        dropout: Dropout of the context, after positions are added.
        mode: What the context is.
        residual: Whether the gate keeps the context itself.
        learned: Whether every sample starts with a learned context.
    """

    block: nn.Module | None
    unit: nn.Module
    dropout: nn.Dropout
    mode: Mode
    residual: bool
    learned: bool


def advance(cell: Cell, context: Context, incoming: Incoming) -> tuple[Context, Tensor]:
    """Fuse where a sample has context and modality, open where it has only the modality.

    Returns the new context and the gate of each of its steps, 0 where none was applied.
    """
    fused, held, gate, own = _fuse(cell, context, incoming)
    present, mask = incoming.present, context.mask
    if own:
        # Every sample has both. Only a selection brings both to one dtype under autocast.
        if present is None and mask is None and fused.dtype == held.dtype:
            return Context(fused, None), gate
    else:
        # The selections below keep all in the graph that parts of others ignore, and copy.
        mask = context.full_mask()
    if present is None:
        present = _ones(held, 1).squeeze(1)
    fuses = present if mask is None else present & mask.any(dim=1)
    gate = gate.masked_fill(~_over(fuses, gate), 0.0)
    # With a learned context nothing opens, not even where a state made by hand has none.
    if mask is None or cell.learned:
        return Context(_select(fuses, fused, held), mask), gate
    opens = present & ~fuses
    opener = masked_mean(incoming.encoded, incoming.mask)
    if cell.mode == "sequence":
        time = mask.shape[1]
        opener = F.pad(opener.unsqueeze(1), (0, 0, 0, time - 1))
        first = torch.arange(time, device=opener.device) == 0
        # Spelled out: onnxruntime cannot select between truth values.
        mask = (opens.unsqueeze(1) & first) | (~opens.unsqueeze(1) & mask)
    else:
        mask = (mask.any(dim=1) | present).unsqueeze(1)
    return Context(_select(fuses, fused, _select(opens, opener, held)), mask), gate


def _fuse(cell: Cell, context: Context, incoming: Incoming) -> StepResult:
    values, mask = context
    if cell.block is None:
        fused, gate, own = _call_unit(cell.unit, values, incoming.encoded.squeeze(1))
        return StepResult(fused, values, gate, own)
    is_sequence = values.ndim == 3
    steps = encoded = values if is_sequence else values.unsqueeze(1)
    # A position that is added to one vector at every step crowds out what the vector has kept.
    if is_sequence or not cell.residual:
        # In the precision of the parameters, which the modality has been given with its positions.
        encoded = drop(cell.dropout, add_positions(steps, incoming.encoded))
    # A sample whose vector is no context yet would have no real step; its result is thrown away.
    real = mask if is_sequence else None
    enriched, update, own_block = _call_block(cell.block, encoded, real, incoming)
    update = masked_mean(update, incoming.mask)
    if cell.mode == "sequence":
        update = update.unsqueeze(1)
        pair = (steps, enriched + update)
        if not cell.residual:
            pair = (enriched, update.expand_as(enriched))
        fused, gate, own_unit = _call_unit(cell.unit, *pair)
        return StepResult(fill_masked(fused, mask), values, gate, own_block and own_unit)
    pooled = masked_mean(enriched, real)
    # A sequence that meets an absent modality is pooled as if it had opened as a vector.
    held = masked_mean(encoded, mask) if is_sequence else values
    pair = (held, pooled + update) if cell.residual else (pooled, update)
    fused, gate, own_unit = _call_unit(cell.unit, *pair)
    return StepResult(fused, held, gate, own_block and own_unit)


def _call_block(
    block: nn.Module, context: Tensor, mask: Tensor | None, incoming: Incoming
) -> tuple[Tensor, Tensor, bool]:
    """Return context and modality enriched, and whether the block is ours."""
    modality = incoming.encoded
    masks = {"modality_mask": incoming.real, "padded_mask": incoming.mask}
    value = enrich(block, context, modality, context_mask=mask, **masks)
    if is_own_block(block, context):
        return *value, True
    return *_pair("block()", value, (context, modality)), False


def _call_unit(unit: nn.Module, state: Tensor, update: Tensor) -> tuple[Tensor, Tensor, bool]:
    """Return the new context and the gate, and whether the unit is ours."""
    if is_own_unit(unit, state):
        return *blend(unit, state, update), True
    value = unit(state, update, return_gate=True)
    return *_pair("unit()", value, (state, state)), False


def _ones(like: Tensor, time: int) -> Tensor:
    """Return a mask ``(batch, time)`` of real steps alone."""
    return torch.ones(like.shape[0], time, dtype=torch.bool, device=like.device)


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
