"""The Transformer stack that `MulT` is made of."""

import math
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Unpack, override

from grf_fusion._checks.options import Where
from grf_fusion._eager.dropout import drop
from grf_fusion._layers.attention import split_heads


class AttentionMask(NamedTuple):
    """The keys that each query may attend to.

    Attributes:
        allowed: ``(queries, keys)`` or ``(batch, 1, queries, keys)`` bool; ``None`` if each query
            may attend to itself and to all earlier steps.
        unreadable: ``(batch, 1, queries, 1)`` bool: queries without any allowed key; ``None``
            without masks, where every query has a key.
    """

    allowed: Tensor | None
    unreadable: Tensor | None


def extent(real: Tensor) -> Tensor:
    """Return the length up to the last real step, ``(batch,)``; 0 if no step is real."""
    places = torch.arange(1, real.shape[1] + 1, device=real.device)
    return (real * places).amax(dim=1)


def causal_mask(
    x: Tensor, real: Tensor | None, memory: Tensor, readable: Tensor | None
) -> AttentionMask:
    """Allow query ``i`` to attend to the real keys ``j <= i + |length difference|``.

    A length ends with the last real step, so padding behind it has no effect.

    Shape:
        - x: ``(batch, queries, dim)``
        - real: ``(batch, queries)`` or ``None`` for all real
        - memory: ``(batch, keys, dim)``
        - readable: ``(batch, keys)`` or ``None`` for all real
    """
    queries, keys = x.shape[1], memory.shape[1]
    places = torch.arange(queries, device=x.device).unsqueeze(1)
    ahead = torch.arange(keys, device=x.device) - places
    if real is None and readable is None:
        return AttentionMask(ahead <= abs(queries - keys), None)
    query_end = queries if real is None else extent(real)
    key_end = keys if readable is None else extent(readable)
    allowed = ahead <= cast(Tensor, query_end - key_end).abs()[:, None, None]
    if readable is not None:
        allowed = allowed & readable.unsqueeze(1)
    unreadable = ~allowed.any(dim=-1, keepdim=True)
    # A softmax over no key is NaN: these queries attend to all keys, and their result becomes 0.
    return AttentionMask((allowed | unreadable).unsqueeze(1), unreadable.unsqueeze(1))


class MulTLayer(nn.Module):
    """Pre-norm attention and feed-forward; queries and memory share a norm."""

    dropout: nn.Dropout
    head_dim: int
    q_proj: nn.Linear
    kv_proj: nn.Linear
    out_proj: nn.Linear
    linear1: nn.Linear
    linear2: nn.Linear
    attention_norm: nn.LayerNorm
    feedforward_norm: nn.LayerNorm

    def __init__(self, dim: int, *, num_heads: int, dropout: float, **where: Unpack[Where]) -> None:
        super().__init__()

        def linear(into: int, out: int, *, packed: int | None = None) -> nn.Linear:
            layer = nn.Linear(into, out, **where)
            bound = math.sqrt(6 / (into + (packed or out)))
            nn.init.uniform_(layer.weight, -bound, bound)
            nn.init.zeros_(layer.bias)
            return layer

        self.dropout = nn.Dropout(dropout)
        self.head_dim = dim // num_heads
        # The MulT code initialises queries, keys and values as one matrix.
        self.q_proj = linear(dim, dim, packed=3 * dim)
        self.kv_proj = linear(dim, 2 * dim, packed=3 * dim)
        self.out_proj = linear(dim, dim)
        self.linear1 = linear(dim, 4 * dim)
        self.linear2 = linear(4 * dim, dim)
        self.attention_norm = nn.LayerNorm(dim, **where)
        self.feedforward_norm = nn.LayerNorm(dim, **where)

    @override
    def forward(self, x: Tensor, memory: Tensor | None, mask: AttentionMask) -> Tensor:
        """Attend to the memory, or to ``x`` itself if there is none."""
        query = self.attention_norm(x)
        read = self._read(query, query if memory is None else self.attention_norm(memory), mask)
        x = drop(self.dropout, read, x)
        hidden = F.relu(self.linear1(self.feedforward_norm(x)))
        return drop(self.dropout, self.linear2(drop(self.dropout, hidden)), x)

    def _read(self, query: Tensor, memory: Tensor, mask: AttentionMask) -> Tensor:
        projected = (self.q_proj(query), *self.kv_proj(memory).chunk(2, dim=-1))
        q, k, v = (split_heads(rows, self.head_dim).transpose(1, 2) for rows in projected)
        dropout = self.dropout.p if self.dropout.training else 0.0
        causal = mask.allowed is None
        read = F.scaled_dot_product_attention(q, k, v, mask.allowed, dropout, is_causal=causal)
        if mask.unreadable is not None:
            read = read.masked_fill(mask.unreadable, 0.0)
        return self.out_proj(read.transpose(1, 2).flatten(-2))


class MulTStack(nn.Module):
    """Layers that attend to the same memory, or to their input if there is none, and a norm."""

    dropout: nn.Dropout
    literal: bool
    layers: nn.ModuleList
    norm: nn.LayerNorm

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        num_layers: int,
        dropout: float,
        literal: bool,
        **where: Unpack[Where],
    ) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.literal = literal
        self.layers = nn.ModuleList(
            MulTLayer(dim, num_heads=num_heads, dropout=dropout, **where) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim, **where)

    @override
    def forward(
        self,
        x: Tensor,
        real: Tensor | None,
        memory: Tensor | None = None,
        readable: Tensor | None = None,
    ) -> Tensor:
        """Scale, add positions and run the layers."""
        if memory is not None:
            mask = causal_mask(x, real, memory, readable)
            memory = self._encode(memory)
        elif real is not None:
            mask = causal_mask(x, real, x, real)
        else:
            mask = AttentionMask(None, None)
        x = self._encode(x)
        for layer in self.layers:
            x = layer(x, memory, mask)
        return self.norm(x)

    def _encode(self, x: Tensor) -> Tensor:
        length, dim = x.shape[1:]
        like = self.norm.weight
        positions = mult_positions(length, dim, device=like.device, dtype=like.dtype)
        if self.literal:
            # The MulT code treats steps whose first feature is exactly 0 as padding.
            positions = positions * (x[..., :1] != 0)
        return drop(self.dropout, math.sqrt(dim) * x + positions)


def mult_positions(length: int, dim: int, *, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Encode the positions 1 to ``length``: all sines first, then all cosines.

    ``PE[t, i] = sin((t + 1) r_i)`` and ``PE[t, half + i] = cos((t + 1) r_i)`` for ``i < half``,
    with ``half = dim // 2`` and ``r_i = 10000^(-i / (half - 1))``; the last column of an odd
    ``dim`` is 0. If ``half`` is 1, ``r_0`` is 1.
    """
    half = dim // 2
    # float32 angles would be wrong by 5e-4 at position 8,192; Apple's mps device has no float64.
    exact = torch.float32 if device.type == "mps" else torch.float64
    exponents = torch.arange(half, device=device, dtype=exact) / max(1, half - 1)
    steps = torch.arange(1, length + 1, device=device, dtype=exact)
    angles = steps.unsqueeze(-1) * torch.pow(10000.0, -exponents)
    return F.pad(torch.cat((angles.sin(), angles.cos()), dim=-1), (0, dim - 2 * half)).to(dtype)
