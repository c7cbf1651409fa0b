"""One step of the recurrence: a modality is fused into the context of each sample."""

from typing import Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grf_fusion._chain.options import OWNER, Mode
from grf_fusion._checks.arguments import ShapeError, expect_floating, expect_shape, expect_tensor
from grf_fusion._checks.tracing import is_eager, is_plain, is_plain_call, is_untouched
from grf_fusion._eager.dropout import drop
from grf_fusion._eager.layout import groups_samples, worth_packing
from grf_fusion._eager.real_steps import find_real_steps
from grf_fusion._eager.rows import lay_out_rows
from grf_fusion._inputs.call import Arrival
from grf_fusion._inputs.masks import fill_masked, masked_mean, unmask_empty
from grf_fusion._inputs.positions import sinusoidal_positions
from grf_fusion._inputs.projections import add_positions, find_real
from grf_fusion._inputs.scale import FeatureScale
from grf_fusion._layers.block import enrich, is_own_block
from grf_fusion._layers.gate import blend, is_own_unit
from grf_fusion._layers.summary import ModalitySummary

# The rms of positions is 0.71. That of scaled features is 0.58 after the initial projection.
POSITION_WEIGHT = 0.3


class Incoming(NamedTuple):
    """A modality as the input of a step.

    Attributes:
        encoded: ``(batch, time, dim)``: projected features with positions, after dropout; in the
            summary form ``(batch, 1, dim)``, the summary.
        real: ``(batch, time)`` bool: real steps, ``None`` if all are real.
        mask: ``(batch, time)`` bool: real steps regardless of ``present``, ``None`` for all. A
            sample without any is all True, because a softmax over no step is NaN; its result is
            discarded.
        present: ``(batch,)`` bool: samples that have a real step, ``None`` if all have one.
    """

    encoded: Tensor
    real: Tensor | None
    mask: Tensor | None
    present: Tensor | None


class Context(NamedTuple):
    """The context between two steps.

    Attributes:
        values: ``(batch, dim)`` or ``(batch, time, dim)``.
        mask: ``(batch, 1)`` or ``(batch, time)`` bool: real steps. A sample without a real step has
            no context yet. ``None`` if every sample has one vector as its context.
    """

    values: Tensor
    mask: Tensor | None

    def full_mask(self) -> Tensor:
        """Return the mask, all True if it is ``None``."""
        return _ones(self.values, 1) if self.mask is None else self.mask


def receive(projection: nn.Linear, arrival: Arrival, dropout: nn.Dropout) -> Incoming:
    """Project a modality and add PE."""
    real = find_real(arrival)
    # Fill before the projection: a NaN that is masked later makes the gradient of its weight NaN.
    projected = projection(fill_masked(arrival.features, real))
    return Incoming(
        drop(dropout, add_positions(projected, projection.weight)),
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
    """Scale and project a modality, add PE, and summarise it in one step."""
    features, real, weight = arrival.features, find_real(arrival), projection.weight
    time = features.shape[1]
    packed = None
    # A missing modality keeps its empty step. Users' layers get ``(batch, time, dim)``.
    if (
        not arrival.absent
        and real is not None
        and type(summary) is ModalitySummary
        and type(scale) is FeatureScale
        and is_plain(projection, *cast("list[nn.Linear]", list(summary.hidden)))
        and is_untouched(scale, summary)
        and (is_plain_call if groups_samples(real.device) else is_eager)(features)
        and worth_packing([real], packing=packing, width=projection.out_features)
    ):
        on_cpu = groups_samples(real.device)
        packed = find_real_steps(real) if on_cpu else lay_out_rows(features, real)
        features, real = packed.take(features)
    else:
        features = fill_masked(features, real)
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


def open_as_sequence(projection: nn.Linear, arrival: Arrival) -> Context:
    """Open the context with the steps of a modality, without positions."""
    real = find_real(arrival)
    # Under autocast the projection has half precision; the context has the dtype of the weights.
    projected = projection(fill_masked(arrival.features, real))
    wide = torch.promote_types(projected.dtype, projection.weight.dtype)
    values = fill_masked(projected, real).to(wide)
    return Context(values, _ones(values, values.shape[1]) if real is None else real)


def open_as_vector(incoming: Incoming, *, mode: Mode) -> Context:
    """Open the context with the mean of a modality; a sample without it has no context yet."""
    real = None if incoming.present is None else incoming.present.unsqueeze(1)
    opener = fill_masked(masked_mean(incoming.encoded, incoming.mask).unsqueeze(1), real)
    return Context(opener if mode == "sequence" else opener.squeeze(1), real)


class Cell(NamedTuple):
    """The parts and settings of a step.

    Attributes:
        block: Symmetric cross-attention, ``None`` in the summary form.
        unit: Gated fusion unit.
        dropout: Dropout of the context, after positions are added.
        mode: The option ``context`` of the chain.
        residual: Whether the unit gets the context itself, not the output of the block.
        learned: Whether every sample starts with a learned context.
    """

    block: nn.Module | None
    unit: nn.Module
    dropout: nn.Dropout
    mode: Mode
    residual: bool
    learned: bool


def advance(cell: Cell, context: Context, incoming: Incoming) -> tuple[Context, Tensor]:
    """Fuse the modality into each sample's context, or open the context if there is none.

    A sample without the modality keeps its context. Return the new context and the gate at each of
    its steps, 0 where no gate was applied.
    """
    fused, held, gate, own = _fuse(cell, context, incoming)
    present, mask = incoming.present, context.mask
    if own:
        # Every sample has a context and the modality. Mixed dtypes (autocast) need the selection.
        if present is None and mask is None and fused.dtype == held.dtype:
            return Context(fused, None), gate
    else:
        # A user's part may ignore an input or return it as it is. The selections below keep every
        # input in the graph and copy the result.
        mask = context.full_mask()
    if present is None:
        present = _ones(held, 1).squeeze(1)
    fuses = present if mask is None else present & mask.any(dim=1)
    gate = gate.masked_fill(~_over(fuses, gate), 0.0)
    # A learned context is never opened, even if a state made by hand has a mask of False.
    if mask is None or cell.learned:
        return Context(_select(fuses, fused, held), mask), gate
    opens = present & ~fuses
    opener = masked_mean(incoming.encoded, incoming.mask)
    if cell.mode == "sequence":
        time = mask.shape[1]
        opener = F.pad(opener.unsqueeze(1), (0, 0, 0, time - 1))
        first = torch.arange(time, device=opener.device) == 0
        # Not `torch.where`, which onnxruntime does not support for bool tensors.
        mask = (opens.unsqueeze(1) & first) | (~opens.unsqueeze(1) & mask)
    else:
        mask = (mask.any(dim=1) | present).unsqueeze(1)
    return Context(_select(fuses, fused, _select(opens, opener, held)), mask), gate


def _fuse(cell: Cell, context: Context, incoming: Incoming) -> tuple[Tensor, Tensor, Tensor, bool]:
    """Compute a step as if every sample had a context and the modality.

    Return, in the shape of the new context, the context with and without the modality and the gate;
    then whether block and unit are ours. Our outputs are new tensors and depend on all inputs.
    """
    values, mask = context
    if cell.block is None:
        fused, gate, own = _call_unit(cell.unit, values, incoming.encoded.squeeze(1))
        return fused, values, gate, own
    is_sequence = values.ndim == 3
    encoded = values if is_sequence else values.unsqueeze(1)
    # Positions that are added to the same vector at every step would displace its content.
    if is_sequence or not cell.residual:
        # The encoded modality sets the dtype of the positions, at least that of the parameters.
        encoded = drop(cell.dropout, add_positions(encoded, incoming.encoded))
    # A vector needs no mask: the result of a sample without a context is discarded.
    real = mask if is_sequence else None
    masks = {"modality_mask": incoming.real, "padded_mask": incoming.mask}
    pair = enrich(cell.block, encoded, incoming.encoded, context_mask=real, **masks)
    own_block = is_own_block(cell.block, encoded)
    if not own_block:
        pair = _pair("block()", pair, (encoded, incoming.encoded))
    enriched, update = pair
    update = masked_mean(update, incoming.mask)
    held = values
    if cell.mode == "sequence":
        update = update.unsqueeze(1).expand_as(enriched)
    else:
        enriched = masked_mean(enriched, real)
        if is_sequence:
            # Without the modality, the sequence becomes its mean, as in `open_as_vector`.
            held = masked_mean(encoded, mask)
    pair = (held, enriched + update) if cell.residual else (enriched, update)
    fused, gate, own_unit = _call_unit(cell.unit, *pair)
    if cell.mode == "sequence":
        fused = fill_masked(fused, mask)
    return fused, held, gate, own_block and own_unit


def _call_unit(unit: nn.Module, state: Tensor, update: Tensor) -> tuple[Tensor, Tensor, bool]:
    """Return the new context and the gate, and whether the unit is ours."""
    if is_own_unit(unit, state):
        return *blend(unit, state, update), True
    value = unit(state, update, return_gate=True)
    return *_pair("unit()", value, (state, state)), is_own_unit(unit, state, compiled=True)


def _ones(like: Tensor, time: int) -> Tensor:
    """Return a mask ``(batch, time)`` that is all True."""
    return torch.ones(like.shape[0], time, dtype=torch.bool, device=like.device)


def _select(condition: Tensor, chosen: Tensor, other: Tensor) -> Tensor:
    """Select each sample from one of two tensors; the other one gets a zero gradient there."""
    return torch.where(_over(condition, chosen), chosen, other)


def _over(samples: Tensor, values: Tensor) -> Tensor:
    """Reshape ``(batch,)`` so that it broadcasts over ``values``."""
    return samples.reshape(-1, *[1] * (values.ndim - 1))


def _pair(call: str, value: object, given: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Check that a user's block or unit returned two tensors like ``given``."""
    if not isinstance(value, tuple) or len(cast("tuple[object, ...]", value)) != 2:
        raise ShapeError(
            f"{OWNER}: expected `{call}` to return a pair of tensors, as our own does, "
            f"got {type(cast(object, value)).__name__}."
        )
    pair = cast("tuple[Tensor, Tensor]", value)
    for i, tensor in enumerate(pair):
        expect_tensor(OWNER, f"{call}[{i}]", tensor)
    for i, (tensor, like) in enumerate(zip(pair, given, strict=True)):
        axes = ("batch", "dim") if like.ndim == 2 else ("batch", "time", "dim")
        expect_shape(OWNER, f"{call}[{i}]", tensor, dict(zip(axes, like.shape, strict=True)))
        expect_floating(OWNER, f"{call}[{i}]", tensor, like)
    return pair
