"""The parts and the computation of a chain; `GatedRecurrentFusion` is its public class."""

from collections.abc import Mapping
from typing import Literal, cast

import torch
from torch import Tensor, nn
from typing_extensions import override

from grf_fusion._chain.options import OWNER, SETTINGS, ChainOptions, Form, Mode
from grf_fusion._chain.parts import Factory, make_block, make_unit
from grf_fusion._chain.state import FusionState, FusionTrace, check_state, mean_over_steps
from grf_fusion._chain.step import (
    Cell,
    Context,
    Incoming,
    advance,
    open_as_sequence,
    open_as_vector,
    receive,
    receive_summary,
)
from grf_fusion._checks.arguments import ShapeError
from grf_fusion._checks.options import Where
from grf_fusion._inputs.call import Arrival, absent, check_call
from grf_fusion._inputs.masks import masked_mean
from grf_fusion._inputs.projections import add_positions, make_projections, weight_of
from grf_fusion._inputs.scale import FeatureScale
from grf_fusion._layers.summary import ModalitySummary


class Chain(nn.Module):
    """Parts and computation of `GatedRecurrentFusion`, which documents the options and the calls.

    We use a base class, against our own rule. It separates the computation from the long public
    docstrings, and the weights keep their names.
    """

    modalities: dict[str, int]
    embed_dim: int
    num_heads: int | None
    num_layers: int
    dim_feedforward: int | None
    dropout: float
    activation: Literal["gelu", "relu"]
    form: Form
    norm_first: bool | None
    self_attention: bool | Literal["linear"] | None
    symmetric: bool
    packing: bool | Literal["auto"]
    checkpoint: bool
    context: Mode
    opening: Literal["first", "learned"]
    gate_bias: float | Literal["chrono"]
    share_weights: bool
    projections: nn.ModuleDict
    scales: nn.ModuleDict | None
    summaries: nn.ModuleDict | None
    norm: nn.LayerNorm | None
    position_dropout: nn.Dropout
    block: nn.Module | None
    unit: nn.Module | None
    blocks: nn.ModuleDict | None
    units: nn.ModuleDict | None
    initial_context: nn.Parameter | None

    def __init__(
        self,
        modalities: dict[str, int],
        options: ChainOptions,
        *,
        block: Factory,
        unit: Factory,
        where: Where,
    ) -> None:
        super().__init__()
        self.modalities = modalities
        for name in SETTINGS:
            setattr(self, name, getattr(options, name))
        self._make_block, self._make_unit = block, unit
        self.block = self.unit = self.blocks = self.units = self.initial_context = None
        self.scales = self.summaries = self.norm = None
        if options.share_weights:
            self.block = make_block(options, block, **where)
            self.unit = make_unit(options, unit, len(modalities), **where)
        else:
            self.blocks = None if options.form == "summary" else nn.ModuleDict()
            self.units = nn.ModuleDict()
            for name in list(modalities)[0 if self.opening == "learned" else 1 :]:
                self._add_cell(options, name, len(modalities), where)
        self.projections = make_projections(modalities, self.embed_dim, **where)
        if options.form == "summary":
            self.scales, self.summaries = nn.ModuleDict(), nn.ModuleDict()
            for name in modalities:
                self._add_summary(name, where)
            self.norm = nn.LayerNorm(self.embed_dim, **where)
        self.position_dropout = nn.Dropout(self.dropout)
        if self.opening == "learned":
            start = torch.empty(self.embed_dim, **where)
            self.initial_context = nn.Parameter(nn.init.normal_(start, std=0.02))

    @override
    def extra_repr(self) -> str:
        """Show modalities, sizes and order."""
        order = " -> ".join(self.modalities)
        settings = ", ".join(f"{name}={getattr(self, name)!r}" for name in SETTINGS)
        return f"modalities={self.modalities}, order={order}, {settings}"

    def _add(self, name: str, dim: int) -> None:
        """Add the parts of a new modality."""
        weight = self._reference()
        options = ChainOptions(**{key: getattr(self, key) for key in SETTINGS})
        where: Where = {"device": weight.device, "dtype": weight.dtype}
        projection = nn.Linear(dim, self.embed_dim, **where)
        if self.units is not None:
            self._add_cell(options, name, len(self.modalities) + 1, where)
        if self.summaries is not None:
            self._add_summary(name, where)
        self.projections[name] = projection
        for parts in (self.blocks, self.units, self.scales, self.summaries, self.projections):
            if parts is not None:
                parts[name].train(self.training)
        self.modalities[name] = dim

    def _add_cell(self, options: ChainOptions, name: str, modalities: int, where: Where) -> None:
        # Make both before storing either, so that a failing factory leaves the module unchanged.
        block = make_block(options, self._make_block, **where)
        unit = make_unit(options, self._make_unit, modalities, **where)
        if self.blocks is not None and block is not None:
            self.blocks[name] = block
        cast(nn.ModuleDict, self.units)[name] = unit

    def _add_summary(self, name: str, where: Where) -> None:
        scales, summaries = cast(nn.ModuleDict, self.scales), cast(nn.ModuleDict, self.summaries)
        scales[name] = FeatureScale(**where)
        summaries[name] = ModalitySummary(
            self.embed_dim,
            num_layers=self.num_layers,
            dropout=self.dropout,
            activation=self.activation,
            **where,
        )

    def _reference(self) -> Tensor:
        """Return a parameter with the dtype and the device of the module."""
        return weight_of(self.projections)

    def _check(self, features: object, masks: object, present: object) -> dict[str, Arrival]:
        declared, like = self.modalities, self._reference()
        return check_call(OWNER, features, masks, present, declared=declared, like=like)

    def _check_state(self, state: object) -> FusionState:
        return check_state(
            OWNER,
            state,
            context=self.context,
            dim=self.embed_dim,
            modalities=len(self.modalities),
            like=self._reference(),
        )

    def _check_steps(self, argument: str, rule: str, names: tuple[str, ...], got: object) -> None:
        """Raise if a modality in ``names`` has no step of its own."""
        if self.units is not None and not all(name in self.units for name in names):
            raise ShapeError(
                f"{OWNER}: expected `{argument}` to {rule}, got {got}. With share_weights=False "
                "and opening='first' the modality declared first has no step of its own: declare "
                "another one first, share the weights, or learn the opening."
            )

    def _advance(
        self, context: Context | None, name: str, arrival: Arrival
    ) -> tuple[Context, Tensor]:
        """Fuse one modality; return the new context and the gate at each of its steps."""
        start, batch = self.initial_context, arrival.features.shape[0]
        if context is None and start is not None:
            context = Context(start.expand(batch, -1), None)
        if context is None:
            if self.context == "pooled" or arrival.absent:
                context = open_as_vector(self._incoming(name, arrival), mode=self.context)
            else:
                context = open_as_sequence(cast(nn.Linear, self.projections[name]), arrival)
            return context, context.values.new_zeros(batch, self.embed_dim)
        incoming = self._incoming(name, arrival)
        cell = Cell(
            self.block if self.blocks is None else self.blocks[name],
            cast(nn.Module, self.unit if self.units is None else self.units[name]),
            self.position_dropout,
            mode=self.context,
            residual=self.form == "residual",
            learned=start is not None,
        )
        return advance(cell, context, incoming)

    def _state_after(
        self, state: FusionState | None, context: Context, name: str, arrival: Arrival
    ) -> FusionState:
        """Return the state that holds the context after one more modality."""
        index = torch.arange(len(self.modalities), device=context.values.device)
        seen = arrival.presence().unsqueeze(1) & (index == list(self.modalities).index(name))
        seen = seen if state is None else seen | state.present
        return FusionState(context.values, context.full_mask(), seen)

    def _incoming(self, name: str, arrival: Arrival) -> Incoming:
        projection = cast(nn.Linear, self.projections[name])
        if self.scales is None or self.summaries is None:
            return receive(projection, arrival, self.position_dropout)
        scale = cast(FeatureScale, self.scales[name])
        summary = cast(ModalitySummary, self.summaries[name])
        return receive_summary(projection, scale, summary, arrival, packing=self.packing)

    def _keep_unused(self, context: Context) -> Context:
        """If no step uses block and unit, run them on a missing modality for gradients of 0."""
        if len(self.modalities) > 1 or self.initial_context is not None or self.unit is None:
            return context
        ((name, dim),) = self.modalities.items()
        nothing = absent(context.values.shape[0], dim, self._reference())
        return self._advance(context, name, nothing)[0]

    def _readout(self, values: Tensor, mask: Tensor | None) -> Tensor:
        if self.norm is not None:
            values = self.norm(values)
            if mask is None or self.opening == "learned":
                return values
            return values.masked_fill(~mask, 0.0)
        if self.context == "first_sequence" and values.ndim == 3:
            return masked_mean(add_positions(values, self._reference()), mask)
        return values

    def _trace(
        self,
        names: tuple[str, ...],
        steps: list[tuple[Context, Tensor]],
        arrivals: Mapping[str, Arrival],
    ) -> FusionTrace:
        contexts = [mean_over_steps(self._readout(*context), context.mask) for context, _ in steps]
        gates = [mean_over_steps(gate, context.mask) for context, gate in steps]
        present = [arrivals[name].presence() for name in names]
        timed = self.context == "sequence" and len(names) > 1
        return FusionTrace(
            torch.stack(contexts, dim=1),
            torch.stack(gates, dim=1)[:, 0 if self.opening == "learned" else 1 :],
            torch.stack(present, dim=1),
            names,
            torch.stack([gate for _, gate in steps[1:]], dim=1) if timed else None,
            steps[-1][0].full_mask() if timed else None,
        )
