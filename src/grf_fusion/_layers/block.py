"""Symmetric cross-attention: context and modality enrich each other."""

from typing import Literal, overload

import torch
from torch import Tensor, nn
from typing_extensions import override

from grf_fusion._checks.arguments import (
    expect_choice,
    expect_flag,
    expect_floating,
    expect_heads,
    expect_probability,
    expect_shape,
    expect_size,
    expect_steps,
    expect_tensor,
)
from grf_fusion._checks.tracing import can_read
from grf_fusion._cpu.layout import Layout, Padded, lay_out, worth_packing
from grf_fusion._inputs.masks import as_mask, fill_masked, none_if_full
from grf_fusion._layers.attention import AttentionWeights
from grf_fusion._layers.decoder import ACTIVATIONS, DecoderLayer, run_layers

OWNER = "SymmetricCrossAttentionBlock"


def check_block_options(
    embed_dim: int,
    *,
    num_heads: int,
    num_layers: int,
    dim_feedforward: int | None,
    dropout: float,
    activation: str,
    norm_first: bool,
    self_attention: bool | Literal["linear"],
    symmetric: bool,
    packing: bool | Literal["auto"],
    checkpoint: bool,
) -> None:
    """Refuse, with ValueError, what no `SymmetricCrossAttentionBlock` can be built from."""
    expect_size(OWNER, "embed_dim", embed_dim)
    expect_heads(OWNER, "embed_dim", embed_dim, num_heads)
    expect_size(OWNER, "num_layers", num_layers)
    if dim_feedforward is not None:
        expect_size(OWNER, "dim_feedforward", dim_feedforward)
    expect_probability(OWNER, "dropout", dropout)
    expect_choice(OWNER, "activation", activation, ACTIVATIONS)
    expect_flag(OWNER, "norm_first", norm_first)
    expect_flag(OWNER, "self_attention", self_attention, other="linear")
    expect_flag(OWNER, "symmetric", symmetric)
    expect_flag(OWNER, "packing", packing, other="auto")
    expect_flag(OWNER, "checkpoint", checkpoint)


class SymmetricCrossAttentionBlock(nn.Module):
    r"""Enrich a context with a modality and the modality with the context.

    Two stacks of ``num_layers`` decoder layers with weights of their own. The context stack starts
    at the context and reads the modality; the modality stack starts at the modality and reads the
    context. What is read is the *input* of the other stack, the same for all layers. A layer is

        x = LN(x + SelfAttn(x))
        x = LN(x + CrossAttn(x, memory))
        x = LN(x + FF(x))                      FF = Linear, activation, Linear

    with dropout on attention weights, after each of the three and inside FF, as in
    `torch.nn.TransformerDecoderLayer`. Source: GRF, arXiv 2507.02985, and the authors' code.

    The block adds no position encoding. A query that has no real step to read reads 0, before the
    output projection.

    Differences from the paper: key projections have no bias, which the softmax would cancel;
    ``norm_first``, ``self_attention``, ``symmetric`` and ``pooled_context`` are options.

    Args:
        embed_dim: Width of both sequences.
        num_heads: Number of attention heads; divides ``embed_dim``.
        num_layers: Layers of each stack.
        dim_feedforward: Hidden width of FF; ``None`` for ``4 * embed_dim``.
        dropout: Dropout probability in training.
        activation: ``"gelu"`` or ``"relu"``.
        norm_first: Normalise what enters each of the three instead of what leaves it.
        self_attention: Whether layers have self-attention. Without it the cost is linear in the
            modality's length when the context is one step; ``"linear"`` has it at such a cost, with
            the kernel ``elu(x) + 1`` instead of the softmax (Katharopoulos et al. 2020), and
            without dropout on its weights.
        symmetric: Whether the modality is enriched too; otherwise it passes unchanged.
        pooled_context: The context always is one step. Its self-attention and the modality's
            cross-attention then read one key, so their query and key projections cannot influence
            anything and are left out: the same function with ``4 * embed_dim**2`` fewer weights a
            layer.
        packing: Whether to leave padded steps uncomputed: the real steps are laid one after the
            other, and each sample attends by itself or with others of similar length. Equal to the
            padded way to rounding. ``"auto"``: where more than a tenth of the steps are padding, on
            a GPU only if all masks are as `mask_from_lengths` made them and the steps left out pay
            for some more kernels. ``True`` waits for the GPU at every call if they are not. Never
            under `torch.compile` and `torch.export`, while a CUDA graph is captured, nor with
            ``need_weights=True``. The numbers drawn for dropout are not those of the padded way.
            Under `torch.func.vmap`, which cannot ask how much is padding, give ``False``.
        checkpoint: Whether to keep only what enters each layer for the backward pass, and to
            compute the rest again there: the same numbers, less memory, more time. Under
            `torch.compile` the compiler decides what is computed again, and this is ignored.
        device: Where to make the parameters.
        dtype: Floating-point type of the parameters.

    Raises:
        ValueError: If a size is not a positive integer, ``num_heads`` does not divide
            ``embed_dim``, ``dropout`` is not in [0, 1), ``activation`` or ``packing`` is unknown,
            or a switch is neither True nor False.

    Examples:
        >>> block = SymmetricCrossAttentionBlock(8, num_heads=2)
        >>> context, modality = block(torch.zeros(4, 3, 8), torch.zeros(4, 5, 8))
        >>> context.shape, modality.shape
        (torch.Size([4, 3, 8]), torch.Size([4, 5, 8]))
    """

    embed_dim: int
    num_heads: int
    pooled_context: bool
    packing: bool | Literal["auto"]
    checkpoint: bool
    context_layers: nn.ModuleList
    modality_layers: nn.ModuleList | None

    def __init__(
        self,
        embed_dim: int,
        *,
        num_heads: int,
        num_layers: int = 1,
        dim_feedforward: int | None = None,
        dropout: float = 0.0,
        activation: Literal["gelu", "relu"] = "gelu",
        norm_first: bool = False,
        self_attention: bool | Literal["linear"] = True,
        symmetric: bool = True,
        pooled_context: bool = False,
        packing: bool | Literal["auto"] = "auto",
        checkpoint: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_block_options(
            embed_dim,
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
        )
        hidden = 4 * embed_dim if dim_feedforward is None else dim_feedforward
        super().__init__()
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.pooled_context = pooled_context
        self.packing = packing
        self.checkpoint = checkpoint

        def stack(*, of_context: bool) -> nn.ModuleList:
            return nn.ModuleList(
                DecoderLayer(
                    embed_dim,
                    num_heads=num_heads,
                    dim_feedforward=hidden,
                    dropout=dropout,
                    activation=activation,
                    norm_first=norm_first,
                    self_attention=self_attention,
                    one_step=pooled_context and of_context,
                    one_key=pooled_context and not of_context,
                    device=device,
                    dtype=dtype,
                )
                for _ in range(num_layers)
            )

        self.context_layers = stack(of_context=True)
        self.modality_layers = stack(of_context=False) if symmetric else None

    @overload
    def forward(
        self,
        context: Tensor,
        modality: Tensor,
        *,
        context_mask: Tensor | None = None,
        modality_mask: Tensor | None = None,
        need_weights: Literal[False] = False,
    ) -> tuple[Tensor, Tensor]: ...

    @overload
    def forward(
        self,
        context: Tensor,
        modality: Tensor,
        *,
        context_mask: Tensor | None = None,
        modality_mask: Tensor | None = None,
        need_weights: Literal[True],
    ) -> tuple[Tensor, Tensor, AttentionWeights]: ...

    @override
    def forward(
        self,
        context: Tensor,
        modality: Tensor,
        *,
        context_mask: Tensor | None = None,
        modality_mask: Tensor | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, AttentionWeights]:
        """Enrich both sequences.

        Args:
            context: The context's sequence.
            modality: The modality's sequence.
            context_mask: Real steps of the context, bool or integer 0/1, ``True`` = real; ``None``
                for all.
            modality_mask: Real steps of the modality, likewise.
            need_weights: Also return the attention weights.

        Returns:
            The enriched context and modality, 0 at their padded steps, and with
            ``need_weights=True`` the `AttentionWeights`.

        Shape:
            - context: ``(batch, time_c, dim)``
            - modality: ``(batch, time_m, dim)``
            - context_mask: ``(batch, time_c)``
            - modality_mask: ``(batch, time_m)``
            - outputs: the shapes of the inputs

        Raises:
            ShapeError: If a shape, mask, dtype or device does not fit.
        """
        context_mask, modality_mask = self._check(context, modality, context_mask, modality_mask)
        context = fill_masked(context, context_mask)
        modality = fill_masked(modality, modality_mask)
        # While tracing only what is so by construction is known.
        tracing = torch.compiler.is_compiling()
        one_step = self.pooled_context if tracing else context.shape[1] == 1
        packed = not need_weights and self.packs(context, context_mask, modality_mask)
        ours: Layout = Padded(context_mask, one_step=one_step)
        theirs: Layout = Padded(modality_mask)
        memory, memory_steps = modality, theirs
        if packed:
            if one_step:
                # One query reads the modality where it lies; many read its rows.
                (theirs,) = lay_out([modality], [modality_mask])
                modality = theirs.pack(modality)
            else:
                theirs, ours = lay_out([modality, context], [modality_mask, context_mask])
                modality, context = theirs.pack(modality), ours.pack(context)
                memory, memory_steps = modality, theirs
        recompute = self.checkpoint and torch.is_grad_enabled() and not tracing
        options = {"need_weights": need_weights, "recompute": recompute}
        new_context, context_self, context_cross = run_layers(
            self.context_layers, context, memory, ours, memory_steps, **options
        )
        new_modality, modality_self, modality_cross = modality, None, None
        if self.modality_layers is not None:
            new_modality, modality_self, modality_cross = run_layers(
                self.modality_layers, modality, context, theirs, ours, **options
            )
        new_context, new_modality = ours.unpack(new_context), theirs.unpack(new_modality)
        if not need_weights:
            return new_context, new_modality
        weights = AttentionWeights(context_self, context_cross, modality_self, modality_cross)
        return new_context, new_modality, weights

    def packs(
        self, context: Tensor, context_mask: Tensor | None, modality_mask: Tensor | None
    ) -> bool:
        """Tell whether a call computes real steps only; decided by data, so never while tracing.

        Args:
            context: The context's sequence.
            context_mask: Its real steps, bool.
            modality_mask: The modality's real steps, bool.

        Returns:
            Whether the steps are packed.
        """
        if torch.compiler.is_compiling():
            return False
        masks = (modality_mask,) if context.shape[1] == 1 else (context_mask, modality_mask)
        if context.is_meta or not all(mask is None or can_read(mask) for mask in masks):
            return False
        return worth_packing(masks, packing=self.packing, width=self.embed_dim)

    @override
    def extra_repr(self) -> str:
        """Show the sizes."""
        return (
            f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, "
            f"pooled_context={self.pooled_context}"
        )

    def _check(
        self,
        context: Tensor,
        modality: Tensor,
        context_mask: Tensor | None,
        modality_mask: Tensor | None,
    ) -> tuple[Tensor | None, Tensor | None]:
        owner, weight = OWNER, next(self.parameters())
        steps = 1 if self.pooled_context else None
        expect_tensor(owner, "context", context)
        expect_tensor(owner, "modality", modality)
        hint = " With pooled_context=True the context is one step." if self.pooled_context else ""
        axes = {"batch": None, "time": steps, "dim": self.embed_dim}
        expect_shape(owner, "context", context, axes, hint)
        batch = context.shape[0]
        axes = {"batch": batch, "time": None, "dim": self.embed_dim}
        expect_shape(owner, "modality", modality, axes)
        expect_steps(owner, "context", context)
        expect_steps(owner, "modality", modality)
        expect_floating(owner, "context", context, weight)
        expect_floating(owner, "modality", modality, weight)

        if context_mask is not None:
            axes = {"batch": batch, "time": context.shape[1]}
            context_mask = as_mask(owner, "context_mask", context_mask, context.device, **axes)
            context_mask = none_if_full(context_mask)
        if modality_mask is not None:
            axes = {"batch": batch, "time": modality.shape[1]}
            modality_mask = as_mask(owner, "modality_mask", modality_mask, context.device, **axes)
            modality_mask = none_if_full(modality_mask)
        return context_mask, modality_mask
