"""Multi-head attention with the library's mask convention, for many keys and for one."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from grf_fusion._masks import unmask_empty


class AttentionWeights(NamedTuple):
    """Attention weights of a `SymmetricCrossAttentionBlock`, before dropout.

    Each is ``(batch, layers, heads, queries, keys)``, or ``None`` where the block has no such
    attention. The weights of a query sum to 1; they are 0 where no key is real and where the query
    itself is padding.

    Attributes:
        context_self: Context steps reading context steps.
        context_cross: Context steps reading modality steps.
        modality_self: Modality steps reading modality steps.
        modality_cross: Modality steps reading context steps.
    """

    context_self: Tensor | None
    context_cross: Tensor | None
    modality_self: Tensor | None
    modality_cross: Tensor | None


class Attention(nn.Module):
    """Scaled dot-product attention, ``softmax(q k^T / sqrt(head_dim)) v``, projected in and out.

    The key projection has no bias: it would add the same number to all scores of a query, which
    the softmax cancels.

    Args:
        embed_dim: Width of queries and memory.
        num_heads: Number of heads; divides ``embed_dim``.
        dropout: Probability of dropping an attention weight, in training.
        one_key: The memory always has one step. Softmax over one key is 1 whatever the query, so
            there are no query and key projections.
        device: Where to make the parameters.
        dtype: Floating-point type of the parameters.
    """

    dropout: float
    head_dim: int
    q_proj: nn.Linear | None
    k_proj: nn.Linear | None
    v_proj: nn.Linear
    out_proj: nn.Linear

    def __init__(
        self,
        embed_dim: int,
        *,
        num_heads: int,
        dropout: float,
        one_key: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.head_dim = embed_dim // num_heads

        def linear(*, bias: bool = True) -> nn.Linear:
            return nn.Linear(embed_dim, embed_dim, bias=bias, device=device, dtype=dtype)

        self.q_proj = None if one_key else linear()
        self.k_proj = None if one_key else linear(bias=False)
        self.v_proj = linear()
        self.out_proj = linear()

    def forward(
        self, query: Tensor, memory: Tensor, *, mask: Tensor | None, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Let each query read the real steps of the memory; over nothing, it reads 0.

        Args:
            query: The reading sequence.
            memory: The sequence that is read.
            mask: Real steps of the memory, ``None`` for all.
            need_weights: Also return the weights.

        Returns:
            What was read, and the weights before dropout or ``None``.

        Shape:
            - query: ``(batch, queries, dim)``
            - memory: ``(batch, keys, dim)``
            - mask: ``(batch, keys)``
            - output: ``(batch, queries, dim)``
            - weights: ``(batch, heads, queries, keys)``
        """
        value = self._split(self.v_proj(memory))
        if self.q_proj is None or self.k_proj is None:
            read, weights = self._read_one(query, value, mask)
        else:
            q, k = self._split(self.q_proj(query)), self._split(self.k_proj(memory))
            if need_weights:
                read, weights = self._read_with_weights(q, k, value, mask)
            else:
                read, weights = self._read(q, k, value, mask), None
        merged = rearrange(read, "batch heads queries head_dim -> batch queries (heads head_dim)")
        # With one key and no dropout every query reads the same: computed once, then broadcast.
        return self.out_proj(merged).expand_as(query), weights if need_weights else None

    def _split(self, features: Tensor) -> Tensor:
        pattern = "batch time (heads head_dim) -> batch heads time head_dim"
        return rearrange(features, pattern, head_dim=self.head_dim)

    def _read(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        if mask is None:
            return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        allowed = rearrange(unmask_empty(mask), "batch keys -> batch 1 1 keys")
        read = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, dropout_p=dropout)
        nothing = rearrange(~mask.any(dim=-1), "batch -> batch 1 1 1")
        return read.masked_fill(nothing, 0.0)

    def _read_with_weights(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        scores = q @ k.transpose(-2, -1) * self.head_dim**-0.5
        if mask is None:
            weights = scores.softmax(dim=-1)
        else:
            hidden = rearrange(~mask, "batch keys -> batch 1 1 keys")
            allowed = rearrange(unmask_empty(mask), "batch keys -> batch 1 1 keys")
            weights = scores.masked_fill(~allowed, -torch.inf).softmax(dim=-1)
            weights = weights.masked_fill(hidden, 0.0)
        return F.dropout(weights, self.dropout, self.training) @ v, weights

    def _read_one(self, query: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        batch, heads = v.shape[:2]
        weights = v.new_ones(batch, heads, query.shape[1], 1)
        if mask is not None:
            real = rearrange(mask, "batch keys -> batch 1 1 keys")
            weights = weights.masked_fill(~real, 0.0)
            v = v.masked_fill(~real, 0.0)
        if self.training and self.dropout > 0:
            return F.dropout(weights, self.dropout) * v, weights
        return v, weights
