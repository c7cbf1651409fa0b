"""Gated recurrent fusion: modalities are fused one at a time into a context."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast, overload

import torch
from torch import Tensor, nn
from typing_extensions import override

from grf_fusion._chain.chain import Chain
from grf_fusion._chain.options import OWNER, SETTINGS, ChainOptions, Form, settle
from grf_fusion._chain.state import FusionState, FusionTrace, mean_over_steps
from grf_fusion._chain.step import Context
from grf_fusion._checks.options import Modalities, Where, check_modalities, check_modality
from grf_fusion._inputs.call import check_name, check_order, check_step, presence_matrix


class GatedRecurrentFusion(Chain):
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

    A missing modality leaves the state of a sample exactly as it was. Padded steps and missing
    modalities never affect outputs or gradients, even if they hold NaN.

    Differences from the paper, in every form: padding and missing modalities are handled; with
    ``context="pooled"`` weights that cannot influence the output are left out; ``context``,
    ``opening="learned"``, ``gate_bias``, ``share_weights=False`` and the options of the block are
    additions. ``form="summary"`` and ``form="residual"`` keep the context itself where the paper
    keeps the output of the block. Reasons: ``docs/differences.md``.

    The arguments are listed in four groups: usual (to ``dropout``), architecture (to
    ``self_attention``), research (to ``unit``) and performance.

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
        context: ``"pooled"``: always one vector (the paper). ``"first_sequence"``: the first
            modality of the order is a sequence for the one step that follows it (the author's
            code). ``"sequence"``: context and result keep the time axis of the first modality.
        opening: ``"first"``: the first modality that a sample has opens its context (the paper).
            ``"learned"``: a learned vector opens it, and every modality is fused in a step; for
            ``context="pooled"`` only. ``None`` for ``"first"`` in the paper's form and where the
            context is a sequence, ``"learned"`` otherwise.
        num_heads: Attention heads of the block; divides ``embed_dim``. Required with a block, and
            ignored by ``form="summary"``, which has none.
        dim_feedforward: Hidden width of the block's feed-forward; ``None`` for ``4 * embed_dim``.
        activation: ``"gelu"`` or ``"relu"``, in the block and in the modalities' networks.
        norm_first: Use pre-norm instead of post-norm in the block; ``None`` for pre-norm in the
            residual form, post-norm in the paper's.
        self_attention: Whether the block's layers have self-attention; ``"linear"`` for one whose
            cost is linear in the length; ``None`` for none, or full in the paper's form.
        symmetric: Whether the modality attends to the context too.
        gate_bias: Initial gate bias ``b_z``; ``None`` for ``"chrono"``, and for 0 in the
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
            ``form="summary"`` the modalities' networks skip them.
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
        options = settle(given, block=block, unit=unit)
        where: Where = {"device": device, "dtype": dtype}
        super().__init__(declared, options, block=block, unit=unit, where=where)

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
        in ``present``. Under `torch.compile` use ``present``: one graph serves every pattern.

        Args:
            features: Features by modality; the order of this mapping does not matter.
            masks: Real steps by modality, bool or integer 0/1, ``True`` = real, as a tokenizer's
                ``attention_mask``; a modality without a mask is all real. Checking the values of an
                integer mask forces a host-device sync; a bool mask never does.
            present: Which samples have which modality, columns in declared order; ``None`` for all.
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
              ``(batch, time_1, embed_dim)``, 0 at padded steps; a sample that lacks the first
              modality has its one vector at step 0

        Raises:
            ShapeError: If a name, shape, mask, dtype or device does not fit.
        """
        names = check_order(OWNER, order, list(self.modalities))
        first = f"start with {next(iter(self.modalities))!r}"
        self._check_steps("order", first, names[1:], names)
        arrivals = self._check(features, masks, present)
        context: Context | None = None
        steps: list[tuple[Context, Tensor]] = []
        for name in names:
            context, gate = self._advance(context, name, arrivals[name])
            if return_trace:
                steps.append((context, gate))
        fused = self._readout(*self._keep_unused(cast(Context, context)))
        return (fused, self._trace(names, steps, arrivals)) if return_trace else fused

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
            features: Its features; ``None`` if no sample has it, which requires a state.
            mask: Its real steps, as in `forward`.
            present: Which samples have it; ``None`` for all.
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
        context: Context | None = None
        if state is not None:
            state = self._check_state(state)
            context = Context(state.context, state.mask)
            self._check_steps("name", "come first if at all", (name,), f"{name!r} with a state")
        dim, like = self.modalities[name], self._reference()
        size = None if state is None else state.context.shape[0]
        arrival = check_step(OWNER, features, mask, present, dim=dim, batch=size, like=like)
        context, gate = self._advance(context, name, arrival)
        state = self._state_after(state, context, name, arrival)
        return (state, mean_over_steps(gate, context.mask)) if return_gate else state

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
        values, mask, _ = self._check_state(state)
        return self._readout(values, mask)

    def presence(
        self,
        features: Mapping[str, Tensor | None],
        *,
        masks: Mapping[str, Tensor | None] | None = None,
        present: Tensor | None = None,
    ) -> Tensor:
        """Return which samples have which modality, for `ModalityDropout` and for reports.

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
        return presence_matrix(self._check(features, masks, present))

    def add_modality(self, name: str, dim: int) -> None:
        """Declare one more modality, last in the order.

        Existing parameters, and outputs without the new modality, stay exactly the same. With
        shared weights the only new parameters are its projection and, with ``form="summary"``, its
        network; give them to the optimiser.

        Args:
            name: Its name.
            dim: Its feature width.

        Raises:
            ValueError: If the name is unusable or taken, or ``dim`` is not a positive integer.
        """
        check_modality(OWNER, name, dim, name_argument="name", dim_argument="dim")
        if name in self.modalities:
            raise ValueError(f"{OWNER}: expected `name` to be new, got {name!r}.")
        self._add(name, dim)

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments, ready for JSON and YAML.

        Returns:
            A dictionary from which ``GatedRecurrentFusion(**config)`` builds the same module, with
            fresh weights. It includes added modalities, but not ``device`` and ``dtype``. The
            modalities are pairs, because a list keeps its order in a file with sorted keys.

        Raises:
            ValueError: If ``block`` or ``unit`` was given, because JSON cannot hold a factory.
        """
        if self._make_block is not None or self._make_unit is not None:
            raise ValueError(
                f"{OWNER}: expected no `block` or `unit` factory, which no JSON can hold, got one. "
                "Keep the call that built the module instead."
            )
        pairs = [[name, dim] for name, dim in self.modalities.items()]
        return {"modalities": pairs} | {name: getattr(self, name) for name in SETTINGS}
