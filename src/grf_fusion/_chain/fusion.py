"""Gated recurrent fusion: modalities enter a context one by one."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast, overload

import torch
from torch import Tensor, nn
from typing_extensions import override

from grf_fusion._chain.options import (
    OWNER,
    SETTINGS,
    ChainOptions,
    Form,
    settle,
)
from grf_fusion._chain.parts import Where, make_block, make_summary, make_unit
from grf_fusion._chain.state import FusionState, FusionTrace, check_state
from grf_fusion._chain.step import (
    Cell,
    advance,
    mean_over_steps,
    open_chain,
    receive,
    receive_summary,
)
from grf_fusion._checks.arguments import ShapeError
from grf_fusion._checks.options import (
    Modalities,
    check_factory,
    check_modalities,
    check_modality,
)
from grf_fusion._inputs.call import (
    Arrival,
    check_call,
    check_features,
    check_name,
    check_order,
    check_present,
    presence_matrix,
)
from grf_fusion._inputs.masks import masked_mean
from grf_fusion._inputs.projections import add_positions, make_projections, weight_of
from grf_fusion._inputs.scale import FeatureScale
from grf_fusion._layers.summary import ModalitySummary

NO_STEP = (
    "With share_weights=False and opening='first' the modality declared first has no step of its "
    "own: declare another one first, share the weights, or learn the opening."
)


class GatedRecurrentFusion(nn.Module):
    r"""Fuse any number of modalities into one context, one after the other.

    Modality ``k`` of ``n`` is a sequence ``x_k`` of its own width and length. In the default form,
    ``form="summary"``, a small network summarises each modality, and a gate decides, feature by
    feature, how much of the context the summary overwrites:

        p_k = (x_k / r_k) W_k + b_k                             projections
        e_k = MLP_k(p_k + 0.3 PE)                               a network per step
        u_k = LN([mean(e_k); max(e_k)] V_k + c_k)               over the real steps
        h_k = GFU(h_{k-1}, u_k)                                 GatedFusionUnit, without a norm
        y   = LN(h_n)                                           the result

    from a learned ``h_0``. ``r_k`` is the root mean square of the modality's features in the first
    training batch that has it, so that the units of the features do not matter. With
    ``form="residual"``, the default of version 0.1.0, context and modality attend to each other:

        p_k      = x_k W_k + b_k
        (s', m') = SCA(h_{k-1}, p_k + PE)                       SymmetricCrossAttentionBlock
        h_k      = GFU(h_{k-1}, Pool(s') + Pool(m'))
        y        = h_n

    With ``form="paper"`` the formulas are those of the paper:

        h_1      = Pool(p_1 + PE)                               opening
        (s', m') = SCA(h_{k-1} + PE, p_k + PE)
        h_k      = GFU(Pool(s'), Pool(m'))                      with a norm

    Pool is the mean over real steps, PE the sinusoidal position encoding, counted from 0 (Vaswani
    et al. 2017). Source: GRF, arXiv 2507.02985, and the author's code.

    With ``opening="first"`` a sample opens with the first modality that it has. A missing modality
    leaves the state of a sample exactly as it was. Padded steps and missing modalities never affect
    outputs or gradients, even if they hold NaN.

    Differences from the paper, with ``form="paper"`` too: in ``context="pooled"`` weights that
    cannot influence the output are left out (see `SymmetricCrossAttentionBlock`); padding and
    missing modalities are handled; ``context``, ``opening="learned"``, ``gate_bias``,
    ``share_weights=False`` and the options of the block are additions. The other two forms keep the
    context itself where the paper keeps the output of the block. In the paper's form every step
    rewrites the memory, whatever the gate does, and early modalities fade along a long chain. The
    summary form has no attention: on the four data sets of the evidence page on which cross-modal
    attention ran, it is level with it or ahead of it.

    The arguments fall into four groups and are listed in this order:

    - Usual: ``modalities``, ``embed_dim``, ``num_layers``, ``dropout``
    - Architecture: ``form``, ``context``, ``opening``, ``num_heads``, ``dim_feedforward``,
      ``activation``, ``norm_first``, ``self_attention``
    - Research: ``symmetric``, ``gate_bias``, ``share_weights``, ``block``, ``unit``
    - Performance: ``packing``, ``checkpoint``, ``device``, ``dtype``

    Args:
        modalities: Name and feature width of each modality, in the order of fusion; a mapping or
            pairs.
        embed_dim: Width ``d`` of the context.
        num_layers: Layers of each stack of the block; with ``form="summary"`` the layers of each
            modality's network after the projection.
        dropout: Dropout probability in training: on the summary's mean and maximum; with a block
            after PE is added, in the block, and with ``form="paper"`` on the gated blend.
        form: ``"summary"``, ``"residual"`` or ``"paper"``, the three formulas above. ``None`` for
            ``"summary"`` with ``context="pooled"``, ``"residual"`` otherwise. The form also chooses
            ``norm_first``, ``self_attention``, ``opening`` and ``gate_bias`` if they are ``None``.
        context: ``"pooled"``: one vector all along (the paper). ``"first_sequence"``: the first
            modality of the order is a sequence for the one step that follows it (the author's
            code). ``"sequence"``: context and result keep the time axis of the first modality.
        opening: ``"first"``: the first modality that a sample has opens its context (the paper).
            ``"learned"``: every sample starts from a learned vector and every modality goes through
            a step; for ``context="pooled"`` only. ``None`` for ``"first"`` in the paper's form and
            where the context is a sequence, ``"learned"`` otherwise.
        num_heads: Attention heads of the block; divides ``embed_dim``. Required with
            ``form="residual"`` and ``form="paper"``, and so with a ``context`` that is a sequence.
            ``form="summary"`` has no block and ignores it.
        dim_feedforward: Hidden width of the block's feed-forward; ``None`` for ``4 * embed_dim``.
        activation: ``"gelu"`` or ``"relu"``, in the block and in the modalities' networks.
        norm_first: Use pre-norm instead of post-norm in the block; ``None`` for pre-norm in the
            residual form, post-norm in the paper's.
        self_attention: Whether the block's layers have self-attention; ``"linear"`` for one whose
            cost is linear in the length. ``None`` for none in the residual form, and for full
            self-attention in the paper's.
        symmetric: Whether the modality attends to the context too.
        gate_bias: Start of the gates' bias ``b_z``; ``None`` for ``"chrono"``, and for 0 in the
            paper's form. ``"chrono"`` is ``-log(number of steps)``, so that at the start no
            modality dominates the context (after Tallec & Ollivier 2018).
        share_weights: One block and one unit for all steps (the paper), or one of each for every
            modality after the first (the author's code). Projections and the networks of
            ``form="summary"`` are never shared.
        block: Zero-argument factory that returns the block, which is called like
            `SymmetricCrossAttentionBlock`. ``None`` for that block.
        unit: Zero-argument factory that returns the unit, which is called like `GatedFusionUnit`
            with ``return_gate=True``, on the inputs of the form's formula. ``None`` for that unit.
        packing: Whether the block skips padded steps, see `SymmetricCrossAttentionBlock`. With
            ``form="summary"`` the modalities' networks skip them, on the CPU only.
        checkpoint: Whether the block recomputes activations in the backward pass to save memory.
        device: Device of the parameters.
        dtype: Floating-point type of the parameters.

    Raises:
        ValueError: If a name, size, probability or option is unusable, or two options exclude each
            other.

    Examples:
        >>> fusion = GatedRecurrentFusion({"text": 6, "audio": 5}, embed_dim=8)
        >>> text, audio = torch.randn(4, 7, 6), torch.randn(4, 11, 5)
        >>> fusion({"text": text, "audio": audio}).shape
        torch.Size([4, 8])
        >>> state = fusion.step(None, "text", text)
        >>> state = fusion.step(state, "audio", audio)
        >>> fusion.readout(state).shape
        torch.Size([4, 8])
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
    context: Literal["pooled", "first_sequence", "sequence"]
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
        modalities: Modalities,
        *,
        embed_dim: int,
        num_layers: int = 1,
        dropout: float = 0.0,
        form: Form | None = None,
        context: Literal["pooled", "first_sequence", "sequence"] = "pooled",
        opening: Literal["first", "learned"] | None = None,
        num_heads: int | None = None,
        dim_feedforward: int | None = None,
        activation: Literal["gelu", "relu"] = "gelu",
        norm_first: bool | None = None,
        self_attention: bool | Literal["linear"] | None = None,
        symmetric: bool = True,
        gate_bias: float | Literal["chrono"] | None = None,
        share_weights: bool = True,
        block: Callable[[], nn.Module] | None = None,
        unit: Callable[[], nn.Module] | None = None,
        packing: bool | Literal["auto"] = "auto",
        checkpoint: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        declared = check_modalities(OWNER, modalities)
        given = ChainOptions(
            form=form,
            embed_dim=embed_dim,
            num_heads=num_heads,
            num_layers=num_layers,
            dim_feedforward=dim_feedforward,
            dropout=dropout,
            activation=activation,
            norm_first=norm_first,
            self_attention=self_attention,
            symmetric=symmetric,
            packing=packing,
            checkpoint=checkpoint,
            context=context,
            opening=opening,
            gate_bias=gate_bias,
            share_weights=share_weights,
        )
        options = settle(given, own_block=block is not None, own_unit=unit is not None)
        for argument, factory in (("block", block), ("unit", unit)):
            if factory is not None:
                check_factory(OWNER, argument, factory)
        super().__init__()
        self.modalities = declared
        for name in SETTINGS:
            setattr(self, name, getattr(options, name))
        self._make_block, self._make_unit = block, unit
        self.block = self.unit = self.blocks = self.units = self.initial_context = None
        self.scales = self.summaries = self.norm = None
        where: Where = {"device": device, "dtype": dtype}
        if share_weights:
            self.block = make_block(options, block, **where)
            self.unit = make_unit(options, unit, len(declared), **where)
        else:
            self.blocks = None if options.form == "summary" else nn.ModuleDict()
            self.units = nn.ModuleDict()
            for name in list(declared)[0 if self.opening == "learned" else 1 :]:
                self._add_cell(options, name, len(declared), where)
        self.projections = make_projections(declared, embed_dim, **where)
        if options.form == "summary":
            self.scales, self.summaries = nn.ModuleDict(), nn.ModuleDict()
            for name in declared:
                self._add_summary(options, name, where)
            self.norm = nn.LayerNorm(embed_dim, **where)
        self.position_dropout = nn.Dropout(dropout)
        if self.opening == "learned":
            start = torch.empty(embed_dim, **where)
            self.initial_context = nn.Parameter(nn.init.normal_(start, std=0.02))

    @overload
    def forward(
        self,
        features: Mapping[str, Tensor | None],
        *,
        masks: Mapping[str, Tensor | None] | None = None,
        present: Tensor | None = None,
        order: Sequence[str] | None = None,
        return_trace: Literal[False] = False,
    ) -> Tensor: ...

    @overload
    def forward(
        self,
        features: Mapping[str, Tensor | None],
        *,
        masks: Mapping[str, Tensor | None] | None = None,
        present: Tensor | None = None,
        order: Sequence[str] | None = None,
        return_trace: Literal[True],
    ) -> tuple[Tensor, FusionTrace]: ...

    @override
    def forward(
        self,
        features: Mapping[str, Tensor | None],
        *,
        masks: Mapping[str, Tensor | None] | None = None,
        present: Tensor | None = None,
        order: Sequence[str] | None = None,
        return_trace: bool = False,
    ) -> Tensor | tuple[Tensor, FusionTrace]:
        """Fuse a batch.

        A modality can be missing in three ways, with the same result: omit it from ``features`` (or
        pass ``None``) if no sample has it, mask all steps of a sample, or clear the sample's entry
        in ``present``. Under `torch.compile` use ``present``: one graph serves
        every pattern.

        Args:
            features: Features by modality; the order of this mapping does not matter.
            masks: Real steps by modality, bool or integer 0/1, ``True`` = real, as a tokenizer's
                ``attention_mask``; a modality without a mask is all real. Checking the
                values of an integer mask forces a host-device sync; a bool mask never does.
            present: Which sample has which modality, columns in declared order; ``None`` for all.
            order: Order of fusion, a permutation of the names; ``None`` for the declared one.
            return_trace: Also return the `FusionTrace`.

        Returns:
            The context, 0 for a sample without any modality (the learned start with
            ``opening="learned"``), and with ``return_trace=True`` the trace.

        Shape:
            - features: ``(batch, time_k, d_k)`` each, lengths independent
            - masks: ``(batch, time_k)`` each
            - present: ``(batch, modalities)``
            - output: ``(batch, embed_dim)``; with ``context="sequence"``
              ``(batch, time_1, embed_dim)``, 0 at padded steps, where a sample that lacks the first
              modality has its one vector at step 0

        Raises:
            ShapeError: If a name, shape, mask, dtype or device does not fit.
        """
        names = check_order(OWNER, order, list(self.modalities))
        first = f"start with {next(iter(self.modalities))!r}"
        self._check_steps("order", first, names[1:], names)
        arrivals, batch = check_call(
            OWNER, features, masks, present, declared=self.modalities, like=self._reference()
        )
        state: FusionState | None = None
        steps: list[tuple[FusionState, Tensor]] = []
        for name in names:
            state, gate = self._advance(state, name, arrivals[name], batch)
            if return_trace:
                steps.append((state, gate))
        state = self._keep_unused(cast(FusionState, state), batch)
        context = self._readout(state)
        return (context, self._trace(names, steps)) if return_trace else context

    @overload
    def step(
        self,
        state: FusionState | None,
        name: str,
        features: Tensor | None,
        *,
        mask: Tensor | None = None,
        present: Tensor | None = None,
        return_gate: Literal[False] = False,
    ) -> FusionState: ...

    @overload
    def step(
        self,
        state: FusionState | None,
        name: str,
        features: Tensor | None,
        *,
        mask: Tensor | None = None,
        present: Tensor | None = None,
        return_gate: Literal[True],
    ) -> tuple[FusionState, Tensor]: ...

    def step(
        self,
        state: FusionState | None,
        name: str,
        features: Tensor | None,
        *,
        mask: Tensor | None = None,
        present: Tensor | None = None,
        return_gate: bool = False,
    ) -> FusionState | tuple[FusionState, Tensor]:
        """Fuse one modality into the state; `forward` calls this for each modality in turn.

        The order of the calls is the order of fusion. You can continue from the same state many
        times: fuse slow modalities once, and fast ones at every tick.

        Args:
            state: The modalities fused so far, ``None`` at the start.
            name: The modality.
            features: Its features; ``None`` if no sample has it, which needs a state.
            mask: Its real steps, as in `forward`.
            present: Which sample has it; ``None`` for all.
            return_gate: Also return the update gate, 0 where none was applied.

        Returns:
            The new state, and with ``return_gate=True`` the gate.

        Shape:
            - features: ``(batch, time_k, d_k)``
            - mask: ``(batch, time_k)``
            - present: ``(batch,)``
            - gate: ``(batch, embed_dim)``

        Raises:
            ShapeError: If a name, shape, mask, dtype or device does not fit.
        """
        check_name(OWNER, name, list(self.modalities))
        like = self._reference()
        batch: int | None = None
        if state is not None:
            state = self._check_state(state)
            batch = state.context.shape[0]
            self._check_steps("name", "come first if at all", (name,), f"{name!r} with a state")
        dim = self.modalities[name]
        arrival = check_features(
            OWNER, "features", features, "mask", mask, dim=dim, batch=batch, like=like
        )
        if batch is None:
            if arrival.features is None:
                raise ShapeError(
                    f"{OWNER}: expected `features` with state=None, got None. "
                    "Start with a modality that some sample has."
                )
            batch = arrival.features.shape[0]
        if present is not None:
            here = check_present(OWNER, present, batch=batch, device=like.device)
            arrival = Arrival(arrival.features, arrival.mask, here)
        state, gate = self._advance(state, name, arrival, batch)
        return (state, mean_over_steps(state, gate)) if return_gate else state

    def readout(self, state: FusionState) -> Tensor:
        """Return the context of a state, as `forward` does.

        Args:
            state: A state that `step` returned.

        Returns:
            The context.

        Shape:
            - output: ``(batch, embed_dim)``; with ``context="sequence"``
              ``(batch, time_1, embed_dim)``

        Raises:
            ShapeError: If ``state`` does not come from such a module.
        """
        return self._readout(self._check_state(state))

    def presence(
        self,
        features: Mapping[str, Tensor | None],
        *,
        masks: Mapping[str, Tensor | None] | None = None,
        present: Tensor | None = None,
    ) -> Tensor:
        """Tell which sample has which modality, for `ModalityDropout` and for reports.

        Args:
            features: As in `forward`.
            masks: As in `forward`.
            present: As in `forward`.

        Returns:
            True where features are given, some step is real, and the entry in ``present`` is not
            cleared.

        Shape:
            - output: ``(batch, modalities)``, columns in declared order

        Raises:
            ShapeError: If a name, shape, mask, dtype or device does not fit.
        """
        return presence_matrix(
            OWNER, features, masks, present, declared=self.modalities, like=self._reference()
        )

    def add_modality(self, name: str, dim: int) -> None:
        """Declare one more modality, last in the order.

        Existing parameters, and outputs without the new modality, stay exactly the same. With
        shared weights the only new parameters are its projection and, with ``form="summary"``, its
        network; give them to the optimiser.

        Args:
            name: Its name.
            dim: Its feature width.

        Raises:
            ValueError: If the name is unusable or taken, or ``dim`` no positive integer.
        """
        check_modality(OWNER, name, dim, name_argument="name", dim_argument="dim")
        if name in self.modalities:
            raise ValueError(f"{OWNER}: expected `name` to be new, got {name!r}.")
        weight = self._reference()
        options = ChainOptions(**{key: getattr(self, key) for key in SETTINGS})
        where: Where = {"device": weight.device, "dtype": weight.dtype}
        projection = nn.Linear(dim, self.embed_dim, **where)
        if self.units is not None:
            self._add_cell(options, name, len(self.modalities) + 1, where)
        if self.summaries is not None:
            self._add_summary(options, name, where)
        self.projections[name] = projection
        for parts in (self.blocks, self.units, self.scales, self.summaries, self.projections):
            if parts is not None:
                parts[name].train(self.training)
        self.modalities[name] = dim

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments, ready for JSON and YAML.

        Returns:
            A dictionary from which ``GatedRecurrentFusion(**config)`` builds the same module, with
            fresh weights; added modalities included, ``device`` and ``dtype`` not. The modalities
            are pairs, whose order survives a file that is written with sorted keys.

        Raises:
            ValueError: If ``block`` or ``unit`` was given, which no JSON can hold.
        """
        if self._make_block is not None or self._make_unit is not None:
            raise ValueError(
                f"{OWNER}: expected no `block` or `unit` factory, which no JSON can hold, got one. "
                "Keep the call that built the module instead."
            )
        pairs = [[name, dim] for name, dim in self.modalities.items()]
        return {"modalities": pairs} | {name: getattr(self, name) for name in SETTINGS}

    @override
    def extra_repr(self) -> str:
        """Show modalities, sizes and order."""
        order = " -> ".join(self.modalities)
        settings = ", ".join(f"{name}={getattr(self, name)!r}" for name in SETTINGS)
        return f"modalities={self.modalities}, order={order}, {settings}"

    def _add_cell(self, options: ChainOptions, name: str, modalities: int, where: Where) -> None:
        # Both before either is kept: a factory that fails leaves nothing half done.
        block = make_block(options, self._make_block, **where)
        unit = make_unit(options, self._make_unit, modalities, **where)
        if self.blocks is not None and block is not None:
            self.blocks[name] = block
        cast(nn.ModuleDict, self.units)[name] = unit

    def _add_summary(self, options: ChainOptions, name: str, where: Where) -> None:
        scales, summaries = cast(nn.ModuleDict, self.scales), cast(nn.ModuleDict, self.summaries)
        scales[name] = FeatureScale(**where)
        summaries[name] = make_summary(options, **where)

    def _reference(self) -> Tensor:
        """A parameter that tells dtype and device."""
        return weight_of(self.projections)

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
        """Refuse a step of the modality that has none."""
        if self.units is not None and not all(name in self.units for name in names):
            raise ShapeError(f"{OWNER}: expected `{argument}` to {rule}, got {got}. {NO_STEP}")

    def _advance(
        self, state: FusionState | None, name: str, arrival: Arrival, batch: int
    ) -> tuple[FusionState, Tensor]:
        """Let a checked modality in; return the new state and the gate of each of its steps."""
        projection = cast(nn.Linear, self.projections[name])
        if self.scales is None or self.summaries is None:
            incoming = receive(projection, arrival, batch, self.position_dropout)
        else:
            scale = cast(FeatureScale, self.scales[name])
            summary = cast(ModalitySummary, self.summaries[name])
            incoming = receive_summary(
                projection, scale, summary, arrival, batch, packing=self.packing
            )
        index = torch.arange(len(self.modalities), device=projection.weight.device)
        seen = incoming.present.unsqueeze(1) & (index == list(self.modalities).index(name))
        start = self.initial_context
        if state is not None:
            seen = seen | state.present
        elif start is None:
            sequence = arrival.features is not None
            state = open_chain(incoming, seen, mode=self.context, is_sequence=sequence)
            return state, state.context.new_zeros(batch, self.embed_dim)
        else:
            is_open = torch.ones(batch, 1, dtype=torch.bool, device=start.device)
            state = FusionState(start.expand(batch, -1), is_open, seen)
        cell = Cell(
            self.block if self.blocks is None else self.blocks[name],
            cast(nn.Module, self.unit if self.units is None else self.units[name]),
            self.position_dropout,
            self._reference(),
            mode=self.context,
            residual=self.form == "residual",
            all_open=start is not None,
        )
        return advance(cell, state, incoming, seen)

    def _keep_unused(self, state: FusionState, batch: int) -> FusionState:
        """Keep block and unit in the graph where nothing follows the only modality."""
        if len(self.modalities) > 1 or self.initial_context is not None or self.unit is None:
            return state
        (name,) = self.modalities
        return self._advance(state, name, Arrival(None, None, None), batch)[0]

    def _readout(self, state: FusionState) -> Tensor:
        if self.norm is not None:
            context = self.norm(state.context)
            return context if self.opening == "learned" else context.masked_fill(~state.mask, 0.0)
        if self.context == "first_sequence" and state.context.ndim == 3:
            return masked_mean(add_positions(state.context, self._reference()), state.mask)
        return state.context

    def _trace(
        self, names: tuple[str, ...], steps: list[tuple[FusionState, Tensor]]
    ) -> FusionTrace:
        contexts = [mean_over_steps(state, self._readout(state)) for state, _ in steps]
        gates = [mean_over_steps(state, gate) for state, gate in steps]
        last = steps[-1][0]
        columns = [last.present[:, list(self.modalities).index(name)] for name in names]
        timed = self.context == "sequence" and len(names) > 1
        return FusionTrace(
            torch.stack(contexts, dim=1),
            torch.stack(gates, dim=1)[:, 0 if self.opening == "learned" else 1 :],
            torch.stack(columns, dim=1),
            names,
            torch.stack([gate for _, gate in steps[1:]], dim=1) if timed else None,
            last.mask if timed else None,
        )
