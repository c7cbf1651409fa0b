"""A fusion step between the layers of another model; it is the identity before training."""

from collections.abc import Mapping
from typing import Literal, cast

import torch
from torch import Tensor, nn
from typing_extensions import override

from grf_fusion._checks.arguments import expect_heads, expect_shape, expect_size, expect_tensor
from grf_fusion._checks.options import Modalities, Where, check_modalities
from grf_fusion._eager.dropout import drop
from grf_fusion._inputs.call import Arrival, check_call, check_features
from grf_fusion._inputs.masks import fill_masked, masked_mean, unmask_empty
from grf_fusion._inputs.projections import Received, add_positions, make_projections, project_all
from grf_fusion._layers.block import SymmetricCrossAttentionBlock, enrich
from grf_fusion._layers.gate import GatedFusionUnit

OWNER = "FusionAdapter"


class FusionAdapter(nn.Module):
    r"""Enrich the hidden states of a pretrained model with other modalities.

    Each modality ``k`` is a sequence ``x_k``. The modalities are fused into the hidden states
    ``h`` one at a time:

        p_k      = x_k W_k + b_k + PE                       projections
        (s', m') = SCA(LN(h), p_k)                          SymmetricCrossAttentionBlock
        h        = GFU(h, s' + Pool(m'))                    GatedFusionUnit, identity_init

    Pool is the mean over real time steps, PE the sinusoidal position encoding. Source: GRF, arXiv
    2507.02985, with the hidden states as the context.

    The gate starts closed: until the first optimiser step the result is exactly ``hidden``, also in
    training mode. The first optimiser step changes only ``unit.gate_scale``; after it every
    parameter has a gradient. A missing modality leaves the hidden states of its sample unchanged.
    Padded hidden states are never changed.

    Differences from the paper: the gate keeps ``h`` itself instead of the enriched context, and the
    update is the sum of both enriched sequences, so that a closed gate is the identity.

    Args:
        modalities: Name and width of each modality, in the order of fusion: a mapping or a
            sequence of pairs.
        embed_dim: Width of the hidden states.
        num_heads: Number of attention heads; must divide ``embed_dim``.
        num_layers: Layers of each stack of the block.
        dim_feedforward: Hidden width of the feed-forward layers; ``None`` for ``4 * embed_dim``.
        dropout: Dropout probability in training: after PE is added, and in the block.
        activation: ``"gelu"`` or ``"relu"``, in the block.
        norm_first: Use pre-norm instead of post-norm in the block.
        self_attention: Whether the layers of the block have self-attention; see
            `SymmetricCrossAttentionBlock`.
        symmetric: Whether the modality attends to the hidden states too.
        packing: Whether the block skips padded steps; see `SymmetricCrossAttentionBlock`.
        checkpoint: Whether the block recomputes activations in the backward pass to save memory.
        device: Device of the parameters.
        dtype: Floating-point type of the parameters.

    Raises:
        ValueError: If a name, size, probability or option is invalid.

    Examples:
        >>> adapter = FusionAdapter({"image": 6}, embed_dim=8, num_heads=2)
        >>> hidden = torch.randn(4, 7, 8)
        >>> torch.equal(adapter(hidden, {"image": torch.randn(4, 5, 6)}), hidden)
        True
    """

    modalities: dict[str, int]
    embed_dim: int
    projections: nn.ModuleDict
    position_dropout: nn.Dropout
    norm: nn.LayerNorm
    block: SymmetricCrossAttentionBlock
    unit: GatedFusionUnit

    def __init__(
        self,
        modalities: Modalities,
        *,
        embed_dim: int,
        num_heads: int,
        num_layers: int = 1,
        dim_feedforward: int | None = None,
        dropout: float = 0.0,
        activation: Literal["gelu", "relu"] = "gelu",
        norm_first: bool = True,
        self_attention: bool | Literal["linear"] = False,
        symmetric: bool = True,
        packing: bool | Literal["auto"] = "auto",
        checkpoint: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        declared = check_modalities(OWNER, modalities)
        expect_size(OWNER, "embed_dim", embed_dim)
        expect_heads(OWNER, "embed_dim", embed_dim, num_heads)
        where: Where = {"device": device, "dtype": dtype}
        super().__init__()
        self.modalities = declared
        self.embed_dim = embed_dim
        self.block = SymmetricCrossAttentionBlock(
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
            **where,
        )
        self.unit = GatedFusionUnit(embed_dim, norm=False, identity_init=True, **where)
        self.norm = nn.LayerNorm(embed_dim, **where)
        self.projections = make_projections(declared, embed_dim, **where)
        self.position_dropout = nn.Dropout(dropout)

    @override
    def forward(
        self,
        hidden: Tensor,
        features: Mapping[str, Tensor | None],
        *,
        mask: Tensor | None = None,
        masks: Mapping[str, Tensor | None] | None = None,
        present: Tensor | None = None,
    ) -> Tensor:
        """Enrich the hidden states.

        Args:
            hidden: Hidden states.
            features: Features of each modality, as in `GatedRecurrentFusion.forward`; may be empty.
            mask: Real steps of ``hidden``, bool or integer 0/1, ``True`` = real, such as a
                tokenizer's ``attention_mask``; ``None`` if all steps are real.
            masks: Real steps of each modality, in the same convention.
            present: Which samples have which modality, columns in declared order; ``None`` if all
                samples have all modalities.

        Returns:
            The enriched hidden states.

        Shape:
            - hidden: ``(batch, time, embed_dim)``
            - features: ``(batch, time_k, d_k)`` each, lengths independent
            - mask: ``(batch, time)``
            - masks: ``(batch, time_k)`` each
            - present: ``(batch, modalities)``
            - output: the shape of ``hidden``

        Raises:
            ShapeError: If a name, shape, mask, dtype or device is wrong.
        """
        dim, declared, like = self.embed_dim, self.modalities, self.norm.weight
        expect_tensor(OWNER, "hidden", hidden)
        expect_shape(OWNER, "hidden", hidden, {"batch": None, "time": None, "dim": dim})
        here = check_features(OWNER, "hidden", hidden, "mask", mask, dim=dim, batch=None, like=like)
        mask, batch = cast(Arrival, here).mask, hidden.shape[0]
        arrivals = check_call(
            OWNER, features, masks, present, declared=declared, like=like, batch=batch
        )
        received = project_all(self.projections, arrivals)
        # Padding is set to 0 for the computation; the result gets its original values back.
        state = fill_masked(hidden, mask)
        for part in received.values():
            state = self._fuse(state, mask, part)
        return state if mask is None else torch.where(mask.unsqueeze(-1), state, hidden)

    @override
    def extra_repr(self) -> str:
        """Show modalities and sizes."""
        return f"modalities={self.modalities}, embed_dim={self.embed_dim}"

    def _fuse(self, state: Tensor, mask: Tensor | None, part: Received) -> Tensor:
        modality = drop(self.position_dropout, add_positions(part.steps, self.norm.weight))
        context = self.norm(state)
        readable = None if part.real is None else unmask_empty(part.real)
        enriched, update = enrich(
            self.block,
            context,
            modality,
            context_mask=mask,
            modality_mask=part.real,
            padded_mask=readable,
        )
        pooled = masked_mean(update, readable)
        fused = self.unit(state, enriched + pooled.unsqueeze(1))
        return torch.where(part.present[:, None, None], fused, state)
