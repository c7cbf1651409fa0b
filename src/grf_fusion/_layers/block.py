"""Symmetric cross-attention: context and modality enrich each other."""

from functools import partial
from typing import Literal, TypeGuard, cast

import torch
from torch import Tensor, nn
from typing_extensions import override

from grf_fusion._checks.arguments import expect_shape, expect_tensor
from grf_fusion._checks.tracing import can_read, is_untouched
from grf_fusion._eager.layout import Layout, Padded, lay_out, worth_packing
from grf_fusion._inputs.call import Arrival, check_features
from grf_fusion._inputs.masks import fill_masked, none_if_full, unmask_empty
from grf_fusion._layers.attention import AttentionWeights
from grf_fusion._layers.decoder import DecoderLayer, run_layers
from grf_fusion._layers.options import OWNER, BlockOptions

# Real steps of the context and of the modality.
Masks = tuple[Tensor | None, Tensor | None]


class SymmetricCrossAttentionBlock(nn.Module):
    r"""Enrich a context with a modality and the modality with the context.

    The block has two stacks of ``num_layers`` decoder layers with separate weights. The context
    stack starts at the context and attends to the modality. The modality stack starts at the
    modality and attends to the context. Each stack attends to the *input* of the other stack, which
    is the same for all layers. A layer is

        x = LN(x + SelfAttn(x))
        x = LN(x + CrossAttn(x, memory))
        x = LN(x + FF(x))                      FF = Linear, activation, Linear

    with dropout on the attention weights, after each of the three sub-layers and inside FF, as in
    `torch.nn.TransformerDecoderLayer`. Source: GRF, arXiv 2507.02985, and its author's code.

    The block adds no position encoding. If a query has no real step to attend to, the result of its
    attention is 0 before the output projection.

    Differences from the paper: key projections have no bias, because the softmax cancels it;
    ``norm_first``, ``self_attention``, ``symmetric`` and ``pooled_context`` are options.

    Args:
        embed_dim: Width of both sequences.
        num_heads: Number of attention heads; must divide ``embed_dim``.
        num_layers: Layers of each stack.
        dim_feedforward: Hidden width of FF; ``None`` for ``4 * embed_dim``.
        dropout: Dropout probability in training.
        activation: ``"gelu"`` or ``"relu"``.
        norm_first: Use pre-norm instead of post-norm.
        self_attention: Whether layers have self-attention. Without it, and with a context of one
            step, the cost is linear in the length of the modality. ``"linear"`` has the same cost;
            it uses the kernel ``elu(x) + 1`` instead of the softmax (Katharopoulos et al. 2020),
            and no dropout on its weights.
        symmetric: Whether the modality attends to the context too; otherwise it passes unchanged.
        pooled_context: The context is always one step. The context's self-attention and the
            modality's cross-attention then have a single key, so their query and key projections
            cannot affect the output. They are omitted: the function is the same, with
            ``4 * embed_dim**2`` fewer weights per layer.
        packing: Whether to skip padded steps. The real steps are concatenated, and each sample
            attends alone or with others of similar length. The result is the same to rounding.
            ``"auto"`` packs if more than a tenth of the steps are padding; on a GPU only if all
            masks were made by `mask_from_lengths` from lengths on the CPU, and if the omitted steps
            outweigh the additional kernels. With other masks ``True`` forces a host-device sync on
            a GPU. Nothing is packed under `torch.compile` and `torch.export`, while a CUDA graph is
            captured, or with ``need_weights=True``. Dropout draws other random numbers than without
            packing. Under `torch.func.vmap`, pass ``False``.
        checkpoint: Whether to recompute activations in the backward pass to save memory. Only the
            input of each layer is kept; the numbers are the same. Ignored under `torch.compile`,
            where the compiler decides what to recompute.
        device: Device of the parameters.
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
        options = BlockOptions(
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
            pooled_context=pooled_context,
        )
        super().__init__()
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.pooled_context = pooled_context
        self.packing = packing
        self.checkpoint = checkpoint

        layer = partial(DecoderLayer, options, device=device, dtype=dtype)
        self.context_layers = nn.ModuleList(layer(of_context=True) for _ in range(num_layers))
        self.modality_layers = None
        if symmetric:
            self.modality_layers = nn.ModuleList(layer(of_context=False) for _ in range(num_layers))

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
                if all steps are real.
            modality_mask: Real steps of the modality, in the same convention.
            need_weights: Whether to return the attention weights too.

        Returns:
            The enriched context and modality, 0 at padded steps, and, with ``need_weights=True``,
            the `AttentionWeights`.

        Shape:
            - context: ``(batch, time_c, dim)``
            - modality: ``(batch, time_m, dim)``
            - context_mask: ``(batch, time_c)``
            - modality_mask: ``(batch, time_m)``
            - outputs: the shapes of the inputs

        Raises:
            ShapeError: If a shape, mask, dtype or device is wrong.
        """
        weight = next(self.parameters())
        expect_tensor(OWNER, "context", context)
        expect_tensor(OWNER, "modality", modality)
        hint = " With pooled_context=True the context is one step." if self.pooled_context else ""
        axes = {"batch": None, "time": 1 if self.pooled_context else None, "dim": self.embed_dim}
        expect_shape(OWNER, "context", context, axes, hint)
        axes = {"batch": context.shape[0], "time": None, "dim": self.embed_dim}
        expect_shape(OWNER, "modality", modality, axes)
        check = partial(check_features, OWNER, dim=self.embed_dim, batch=None, like=weight)
        masks = (
            cast(Arrival, check("context", context, "context_mask", context_mask)).mask,
            cast(Arrival, check("modality", modality, "modality_mask", modality_mask)).mask,
        )
        packed = not need_weights and _packs(self, context, masks)
        result = _forward(self, context, modality, masks, packed=packed, need_weights=need_weights)
        return result if need_weights else result[:2]

    @override
    def extra_repr(self) -> str:
        """Show the sizes."""
        return (
            f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, "
            f"pooled_context={self.pooled_context}"
        )


def enrich(
    block: nn.Module,
    context: Tensor,
    modality: Tensor,
    *,
    context_mask: Tensor | None,
    modality_mask: Tensor | None,
    padded_mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Call the block on checked tensors; without hooks or a replaced ``forward``, skip its checks.

    ``padded_mask`` replaces ``modality_mask`` if nothing is packed. It marks at least one step of
    every sample as real, which avoids a softmax over no step, and may be ``None`` if only whole
    samples lack the modality. Samples without the modality or a context get arbitrary results.
    """
    packed = False
    if isinstance(block, SymmetricCrossAttentionBlock):
        context_mask = none_if_full(context_mask)
        packed = _packs(block, context, (context_mask, modality_mask))
    if not packed:
        context_mask = None if context_mask is None else unmask_empty(context_mask)
        modality_mask = padded_mask
    if is_own_block(block, context):
        masks = context_mask, modality_mask
        return _forward(block, context, modality, masks, packed=packed)[:2]
    return block(context, modality, context_mask=context_mask, modality_mask=modality_mask)


def is_own_block(block: nn.Module, context: Tensor) -> TypeGuard[SymmetricCrossAttentionBlock]:
    """Whether calling the block only runs our ``forward``, whose checks this context passes.

    False for a subclass, a wrapped block or one with hooks. False while tracing too, where checks
    cost nothing.
    """
    if torch.compiler.is_compiling() or type(block) is not SymmetricCrossAttentionBlock:
        return False
    weight = cast(DecoderLayer, block.context_layers[0]).feedforward_norm.weight
    fits = context.shape[1] == 1 or not block.pooled_context
    fits = fits and context.shape[-1] == block.embed_dim
    same = weight.dtype == context.dtype and weight.device == context.device
    return fits and same and is_untouched(block)


def _packs(block: SymmetricCrossAttentionBlock, context: Tensor, masks: Masks) -> bool:
    """Whether a call skips padded steps; never while tracing, because it depends on the data."""
    if torch.compiler.is_compiling() or context.is_meta or context.shape[0] == 0:
        return False
    read = masks[1:] if context.shape[1] == 1 else masks
    if not all(mask is None or can_read(mask) for mask in read):
        return False
    return worth_packing(read, packing=block.packing, width=block.embed_dim)


def _forward(
    block: SymmetricCrossAttentionBlock,
    context: Tensor,
    modality: Tensor,
    masks: Masks,
    *,
    packed: bool,
    need_weights: bool = False,
) -> tuple[Tensor, Tensor, AttentionWeights]:
    context_mask, modality_mask = masks
    context = fill_masked(context, context_mask)
    modality = fill_masked(modality, modality_mask)
    # While tracing, the length may be dynamic, and only the option is certain.
    tracing = torch.compiler.is_compiling()
    one_step = block.pooled_context if tracing else context.shape[1] == 1
    context_steps: Layout = Padded(context_mask, one_step=one_step)
    modality_steps: Layout = Padded(modality_mask)
    memory, memory_steps = modality, modality_steps
    if packed and one_step:
        # A single query attends to the padded modality, and many queries attend to packed rows.
        (modality_steps,) = lay_out([modality], [modality_mask])
        modality = modality_steps.pack(modality)
    elif packed:
        modality_steps, context_steps = lay_out([modality, context], [modality_mask, context_mask])
        modality, context = modality_steps.pack(modality), context_steps.pack(context)
        memory, memory_steps = modality, modality_steps
    recompute = block.checkpoint and torch.is_grad_enabled() and not tracing
    options = {"need_weights": need_weights, "recompute": recompute}
    new_context, context_self, context_cross = run_layers(
        block.context_layers, context, memory, context_steps, memory_steps, **options
    )
    new_modality, modality_self, modality_cross = modality, None, None
    if block.modality_layers is not None:
        new_modality, modality_self, modality_cross = run_layers(
            block.modality_layers, modality, context, modality_steps, context_steps, **options
        )
    weights = AttentionWeights(context_self, context_cross, modality_self, modality_cross)
    return context_steps.unpack(new_context), modality_steps.unpack(new_modality), weights
