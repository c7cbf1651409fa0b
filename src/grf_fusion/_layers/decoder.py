"""The decoder layer of both stacks of the symmetric cross-attention."""

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from typing_extensions import Unpack, override

from grf_fusion._checks.options import Where
from grf_fusion._eager.dropout import drop
from grf_fusion._eager.layout import Layout, Padded
from grf_fusion._layers.attention import Attention, OneKeyAttention
from grf_fusion._layers.linear_attention import LinearAttention
from grf_fusion._layers.options import ACTIVATIONS, BlockOptions

# Enriched rows, and the weights of self-attention and cross-attention.
Enriched = tuple[Tensor, Tensor | None, Tensor | None]


class DecoderLayer(nn.Module):
    """One decoder layer: self-attention, cross-attention, feed-forward, each with a residual."""

    norm_first: bool
    activation: str
    self_attn: Attention | LinearAttention | OneKeyAttention | None
    self_attn_norm: nn.LayerNorm | None
    cross_attn: Attention | OneKeyAttention
    cross_attn_norm: nn.LayerNorm | None
    linear1: nn.Linear
    linear2: nn.Linear
    feedforward_norm: nn.LayerNorm
    dropout: nn.Dropout

    def __init__(self, options: BlockOptions, *, of_context: bool, **where: Unpack[Where]) -> None:
        super().__init__()
        dim, heads, dropout = options.embed_dim, options.num_heads, options.dropout
        hidden = options.dim_feedforward or 4 * dim
        linear = options.self_attention == "linear"
        # A pooled context has one step. Its self-attention and the modality's cross-attention
        # therefore have one key.
        one_key = options.pooled_context and not of_context
        of_self = OneKeyAttention if options.pooled_context and of_context else Attention
        of_cross = OneKeyAttention if one_key else Attention
        norm = partial(nn.LayerNorm, dim, **where)

        self.norm_first = options.norm_first
        self.activation = options.activation
        self.self_attn = None
        if linear and of_self is Attention:
            self.self_attn = LinearAttention(dim, num_heads=heads, **where)
        elif options.self_attention:
            # The weight of a single key is 1 for every kernel. Linear attention has no dropout.
            rate = 0.0 if linear else dropout
            self.self_attn = of_self(dim, num_heads=heads, dropout=rate, **where)
        self.self_attn_norm = norm() if options.self_attention else None
        self.cross_attn = of_cross(dim, num_heads=heads, dropout=dropout, **where)
        # Pre-norm would affect only the query, and a query has no effect on attention over one key.
        self.cross_attn_norm = None if one_key and self.norm_first else norm()
        self.linear1 = nn.Linear(dim, hidden, **where)
        self.linear2 = nn.Linear(hidden, dim, **where)
        self.feedforward_norm = norm()
        self.dropout = nn.Dropout(dropout)

    @override
    def forward(
        self, x: Tensor, memory: Tensor, steps: Layout, memory_steps: Layout, *, need_weights: bool
    ) -> Enriched:
        """Return the enriched rows and the weights of self- and cross-attention."""
        of_self = None
        if self.self_attn is not None and self.self_attn_norm is not None:
            query = self.self_attn_norm(x) if self.norm_first else x
            read, of_self = self.self_attn(query, query, steps, steps, need_weights=need_weights)
            x = self._add(x, read, self.self_attn_norm)
        norm = self.cross_attn_norm if self.norm_first else None
        query = x if norm is None else norm(x)
        read, of_cross = self.cross_attn(
            query, memory, steps, memory_steps, need_weights=need_weights
        )
        x = self._add(x, read, self.cross_attn_norm)
        query = self.feedforward_norm(x) if self.norm_first else x
        hidden = drop(self.dropout, ACTIVATIONS[self.activation](self.linear1(query)))
        x = self._add(x, self.linear2(hidden), self.feedforward_norm)
        return x, of_self, of_cross

    def _add(self, x: Tensor, update: Tensor, norm: nn.LayerNorm | None) -> Tensor:
        x = drop(self.dropout, update, x)
        return x if self.norm_first or norm is None else norm(x)


def run_layers(
    layers: nn.ModuleList,
    x: Tensor,
    memory: Tensor,
    steps: Layout,
    memory_steps: Layout,
    *,
    need_weights: bool,
    recompute: bool,
) -> Enriched:
    """Run a stack whose layers all attend to the same memory; return rows and attention weights.

    The weights, for padded layouts only, are ``(batch, layers, heads, queries, keys)`` or ``None``.
    With ``recompute``, activations inside a layer are recomputed in the backward pass.
    """
    self_weights: list[Tensor | None] = []
    cross_weights: list[Tensor | None] = []
    for layer in layers:
        call = _recomputed(layer) if recompute else layer
        x, of_self, of_cross = call(x, memory, steps, memory_steps, need_weights=need_weights)
        self_weights.append(of_self)
        cross_weights.append(of_cross)
    if not need_weights:
        return x, None, None
    return x, _stack(self_weights, steps), _stack(cross_weights, steps)


def _recomputed(layer: nn.Module) -> Callable[..., Enriched]:
    """Return a call of the layer that saves only its inputs for the backward pass."""
    # Imported late because, with torch 2.6, it imports sympy, which is slow.
    from torch.utils.checkpoint import (  # noqa: PLC0415
        checkpoint,  # pyright: ignore[reportUnknownVariableType]
    )

    return cast("Callable[..., Enriched]", partial(checkpoint, layer, use_reentrant=False))


def _stack(weights: list[Tensor | None], steps: Layout) -> Tensor | None:
    found = [of_layer for of_layer in weights if of_layer is not None]
    if not found:
        return None
    stacked = torch.stack(found, dim=1)
    if not isinstance(steps, Padded) or steps.mask is None:
        return stacked
    # The weights of padded queries would distort averages over queries.
    return stacked.masked_fill(~steps.mask[:, None, None, :, None], 0.0)
