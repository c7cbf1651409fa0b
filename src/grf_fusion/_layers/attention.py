"""Multi-head attention where ``True`` marks a real step, for many keys and for one.

Code that may be compiled does not use einops. einops keeps a table of the types that it has seen;
the table becomes a guard of the graph, and a later einops call on a new type would recompile it.
"""

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Unpack, override

from grf_fusion._checks.options import Where
from grf_fusion._checks.tracing import has_bias, is_plain
from grf_fusion._eager.dropout import FEW
from grf_fusion._eager.layout import Layout, Padded, attend
from grf_fusion._inputs.masks import unmask_empty


class AttentionWeights(NamedTuple):
    """Attention weights of a `SymmetricCrossAttentionBlock`, before dropout.

    Each has the shape ``(batch, layers, heads, queries, keys)``, or is ``None`` if the block has no
    such attention. The weights of a query sum to 1. They are 0 if no key is real or if the query
    itself is padded.

    Attributes:
        context_self: From context steps to context steps.
        context_cross: From context steps to modality steps.
        modality_self: From modality steps to modality steps.
        modality_cross: From modality steps to context steps.
    """

    context_self: Tensor | None
    context_cross: Tensor | None
    modality_self: Tensor | None
    modality_cross: Tensor | None


class OneKeyAttention(nn.Module):
    """Attention over a memory that always has one step.

    A softmax over one key is always 1, so there are no query and key projections. Every query gets
    the same result, which is computed once per sample.
    """

    dropout: float
    head_dim: int
    v_proj: nn.Linear
    out_proj: nn.Linear

    def __init__(
        self, embed_dim: int, *, num_heads: int, dropout: float, **where: Unpack[Where]
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.head_dim = embed_dim // num_heads
        self.v_proj = nn.Linear(embed_dim, embed_dim, **where)
        self.out_proj = nn.Linear(embed_dim, embed_dim, **where)

    @override
    def forward(
        self, query: Tensor, memory: Tensor, queries: Layout, keys: Padded, *, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from every row of ``query``, as `Attention` does."""
        value = keys.unpack(self.v_proj(memory))
        weights = None
        if need_weights:
            heads = value.shape[-1] // self.head_dim
            weights = value.new_ones(value.shape[0], heads, query.shape[1], 1)
            if keys.mask is not None:
                weights = weights.masked_fill(~keys.mask[:, None, None, :], 0.0)
        return spread_value(self, value, query, queries), weights


class Attention(nn.Module):
    """Scaled dot-product attention, ``softmax(q k^T / sqrt(head_dim)) v``, projected in and out.

    The key projection has no bias. A bias would add the same number to all scores of a query, which
    the softmax cancels.
    """

    dropout: float
    head_dim: int
    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    out_proj: nn.Linear

    def __init__(
        self, embed_dim: int, *, num_heads: int, dropout: float, **where: Unpack[Where]
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.head_dim = embed_dim // num_heads
        self.q_proj = nn.Linear(embed_dim, embed_dim, **where)
        self.k_proj = nn.Linear(embed_dim, embed_dim, bias=False, **where)
        self.v_proj = nn.Linear(embed_dim, embed_dim, **where)
        self.out_proj = nn.Linear(embed_dim, embed_dim, **where)

    @override
    def forward(
        self, query: Tensor, memory: Tensor, queries: Layout, keys: Layout, *, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from each query to the real steps of the memory; without any, the result is 0.

        Both layouts have the same class, or ``keys`` is padded with one step. ``need_weights``
        requires padded layouts; it also returns the weights before dropout, ``(batch, heads,
        queries, keys)``.
        """
        dropout = self.dropout if self.training else 0.0
        if isinstance(keys, Padded) and not need_weights:
            if keys.one_step:
                # A single key makes the query and key projections irrelevant. A sum over no rows
                # keeps their parameters in the graph, with gradients of 0.
                nothing = query[:0]
                zero = self.q_proj(nothing).sum() + self.k_proj(nothing).sum()
                value = keys.unpack(self.v_proj(memory)) + zero
                return spread_value(self, value, query, queries), None
            foldable = queries.one_step and _worth_joining(memory, self.k_proj, self.v_proj)
            if foldable and has_bias(self.v_proj) and not has_bias(self.k_proj):
                return self.out_proj(self._read_with_one_query(query, memory, keys.mask)), None
        parts = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (split_heads(x, self.head_dim) for x in project(query, memory, *parts))
        if need_weights and isinstance(keys, Padded):
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            weights = attention_weights(q, k, keys.mask, self.head_dim)
            read = (F.dropout(weights, self.dropout, self.training) @ v).transpose(1, 2)
        else:
            read, weights = attend(q, k, v, queries, keys, dropout=dropout), None
        return self.out_proj(read.flatten(-2)), weights

    def _read_with_one_query(self, query: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        """Attend from one query per sample, without projecting the memory.

        The key projection is applied to the query, ``q^T (W m) = (W^T q)^T m``. The value
        projection is applied after the weighted sum over steps j,
        ``sum w_j (V m_j + b) = V (sum w_j m_j) + b (sum w_j)``.
        """
        w_k, w_v = (
            projection.weight.reshape(-1, self.head_dim, projection.in_features)
            for projection in (self.k_proj, self.v_proj)
        )
        q = split_heads(self.q_proj(query), self.head_dim).squeeze(1)
        q = torch.einsum("bhe,hed->bhd", q, w_k)
        weights = attention_weights(q, memory, mask, self.head_dim)
        weights = F.dropout(weights, self.dropout, self.training)
        read = torch.einsum("bhd,hed->bhe", weights @ memory, w_v)
        bias = self.v_proj.bias.reshape(-1, self.head_dim)
        return (read + weights.sum(dim=-1, keepdim=True) * bias).flatten(1).unsqueeze(1)


def project(
    query: Tensor, memory: Tensor, q_proj: nn.Linear, k_proj: nn.Linear, v_proj: nn.Linear
) -> tuple[Tensor, ...]:
    """Project to queries, keys and values; in self-attention with one matrix product."""
    parts = (q_proj, k_proj, v_proj)
    # Compilers and converters get three plain layers instead of weights concatenated at every call.
    if torch.compiler.is_compiling() or query is not memory or not _worth_joining(memory, *parts):
        return q_proj(query), k_proj(memory), v_proj(memory)
    weight = torch.cat([part.weight for part in parts])
    biases = cast("list[Tensor | None]", [part.bias for part in parts])
    nothing = weight.new_zeros(len(q_proj.weight))
    bias = torch.cat([nothing if bias is None else bias for bias in biases])
    return F.linear(query, weight, bias).chunk(3, dim=-1)


def _worth_joining(memory: Tensor, *projections: nn.Linear) -> bool:
    """Whether joining the products of plain layers is faster; always assumed while compiling."""
    many = torch.compiler.is_compiling() or memory.numel() >= FEW
    return many and is_plain(*projections)


def spread_value(
    attention: "Attention | OneKeyAttention", value: Tensor, query: Tensor, queries: Layout
) -> Tensor:
    """Give every query the one projected value ``(batch, 1, dim)`` of its sample.

    Dropout drops the weight of 1 independently for each query and head.
    """
    if not attention.training or attention.dropout == 0.0:
        return queries.spread(attention.out_proj(value), query)
    value = split_heads(queries.spread(value, query), attention.head_dim)
    weights = F.dropout(torch.ones_like(value[..., :1]), attention.dropout)
    return attention.out_proj((weights * value).flatten(-2))


def split_heads(rows: Tensor, head_dim: int) -> Tensor:
    """Turn ``(..., dim)`` into ``(..., heads, head_dim)``."""
    return rows.reshape(*rows.shape[:-1], rows.shape[-1] // head_dim, head_dim)


def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None, head_dim: int) -> Tensor:
    """``softmax(q k^T / sqrt(head_dim))`` over the real keys; 0 if no key is real.

    Shape:
        - q: ``(batch, ..., queries, dim)``
        - k: ``(batch, ..., keys, dim)``
        - mask: ``(batch, keys)``
        - output: ``(batch, ..., queries, keys)``
    """
    scores = q @ k.transpose(-2, -1) * head_dim**-0.5
    if mask is None:
        return scores.softmax(dim=-1)
    shape = (mask.shape[0], *[1] * (scores.ndim - 2), mask.shape[1])
    weights = scores.masked_fill(~unmask_empty(mask).reshape(shape), -torch.inf).softmax(dim=-1)
    return weights.masked_fill(~mask.reshape(shape), 0.0)
