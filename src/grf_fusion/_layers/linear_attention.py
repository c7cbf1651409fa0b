"""Linear attention: a kernel replaces the softmax, so that cost is linear in the length."""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Unpack, override

from grf_fusion._checks.options import Where
from grf_fusion._eager.layout import Layout, Padded
from grf_fusion._inputs.masks import WIDER
from grf_fusion._layers.attention import project, split_heads

# Lower bound of the denominator. Below it the kernel values of a query have vanished.
SMALLEST = 1e-6


class LinearAttention(nn.Module):
    """Attention with the kernel ``phi(x) = elu(x) + 1`` (Katharopoulos et al. 2020, section 3.2).

    The result for query i is a sum over the real steps j of its sample,

        sum_j phi(q_i)^T phi(k_j) v_j / sum_j phi(q_i)^T phi(k_j)

    where the sums over j are computed once for all queries. Unlike in a softmax, the bias of the
    keys does not cancel. Single weights are never computed, so dropout cannot be applied to them.
    """

    head_dim: int
    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    out_proj: nn.Linear

    def __init__(self, embed_dim: int, *, num_heads: int, **where: Unpack[Where]) -> None:
        super().__init__()
        self.head_dim = embed_dim // num_heads
        self.q_proj = nn.Linear(embed_dim, embed_dim, **where)
        self.k_proj = nn.Linear(embed_dim, embed_dim, **where)
        self.v_proj = nn.Linear(embed_dim, embed_dim, **where)
        self.out_proj = nn.Linear(embed_dim, embed_dim, **where)

    @override
    def forward(
        self, query: Tensor, memory: Tensor, queries: Layout, keys: Layout, *, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from every row of ``query``, as `Attention` does."""
        q, k, v = project(query, memory, self.q_proj, self.k_proj, self.v_proj)
        q, k = F.elu(q) + 1, keys.unpack(F.elu(k) + 1)
        padded = (queries.unpack(q), k, keys.unpack(v))
        q, k, v = (split_heads(x, self.head_dim).transpose(1, 2) for x in padded)
        narrow, wide = q.dtype, WIDER.get(q.dtype)
        if wide is None:
            read, weights = _read(q, k, v, need_weights=need_weights)
        else:
            # Sums over a few thousand steps overflow float16.
            with nullcontext() if q.is_meta else torch.autocast(q.device.type, enabled=False):
                found = _read(q.to(wide), k.to(wide), v.to(wide), need_weights=need_weights)
            read = found[0].to(narrow)
            weights = None if found[1] is None else found[1].to(narrow)
        read = read.transpose(1, 2).flatten(-2)
        return self.out_proj(read if isinstance(queries, Padded) else queries.pack(read)), weights


def _read(q: Tensor, k: Tensor, v: Tensor, *, need_weights: bool) -> tuple[Tensor, Tensor | None]:
    """Attend with kernel values ``(batch, heads, time, head_dim)``, 0 at padded steps."""
    total = (q @ k.sum(dim=2).unsqueeze(-1)).clamp(min=SMALLEST)
    weights = q @ k.transpose(2, 3) / total if need_weights else None
    return q @ (k.transpose(2, 3) @ v) / total, weights
