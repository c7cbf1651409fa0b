"""Cross-modal attention: every modality attends to all others."""

import functools
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn
from typing_extensions import override

from grf_fusion._checks.arguments import expect_heads, expect_probability, expect_size
from grf_fusion._checks.options import Modalities, Where, check_modalities
from grf_fusion._checks.tracing import is_plain_call
from grf_fusion._eager.layout import Layout, Padded, lay_out, real_first, worth_packing
from grf_fusion._inputs.masks import masked_mean
from grf_fusion._inputs.projections import Received, add_positions, clear_empty, join, weight_of
from grf_fusion._layers.attention import Attention
from grf_fusion.baselines._base import Baseline

OWNER = "CrossModalAttentionFusion"
# Steps ``(batch, time, dim)`` and the mask ``(batch, time)`` of those to attend to.
Memory = tuple[Tensor, Tensor | None]


class CrossModalAttentionFusion(Baseline):
    r"""Let every modality attend to all others, with one attention layer per modality.

        e_k = x_k W_k + b_k + PE
        r_k = LayerNorm_k(e_k + Attention_k(queries e_k, keys and values [e_j; j != k]))
        h   = [Pool(r_1); ...; Pool(r_n)] W + b

    Each modality k has its own multi-head attention layer, from its steps to the concatenated real
    steps of all other modalities. Pool is the mean over real steps, PE the sinusoidal position
    encoding of each modality. The biases of the projections distinguish the modalities.

    If a sample lacks a modality, no step attends to it, and its slot before ``W`` is 0. If a sample
    has no other modality to attend to, the result of the attention is 0 before its output
    projection.

    Args:
        modalities: Name and width of each modality: a mapping or a sequence of pairs.
        embed_dim: Width of the projections and of the result.
        num_heads: Number of attention heads; must divide ``embed_dim``.
        dropout: Dropout probability in training: after PE is added, on the attention weights and on
            the result of the attention.
        device: Device of the parameters.
        dtype: Floating-point type of the parameters.

    Raises:
        ValueError: If a name, size or probability is invalid.

    Examples:
        >>> widths = {"text": 6, "audio": 5}
        >>> fusion = CrossModalAttentionFusion(widths, embed_dim=8, num_heads=2)
        >>> fusion({"text": torch.randn(4, 7, 6), "audio": torch.randn(4, 11, 5)}).shape
        torch.Size([4, 8])
    """

    _owner = OWNER
    _shown = ("num_heads",)
    num_heads: int
    attentions: nn.ModuleDict
    norms: nn.ModuleDict
    mix: nn.Linear
    dropout: nn.Dropout

    def __init__(
        self,
        modalities: Modalities,
        *,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        declared = check_modalities(OWNER, modalities)
        expect_size(OWNER, "embed_dim", embed_dim)
        expect_heads(OWNER, "embed_dim", embed_dim, num_heads)
        expect_probability(OWNER, "dropout", dropout)
        where: Where = {"device": device, "dtype": dtype}
        super().__init__(declared, embed_dim, **where)
        self.num_heads = num_heads
        attention = functools.partial(Attention, num_heads=num_heads, dropout=dropout, **where)
        self.attentions = nn.ModuleDict({name: attention(embed_dim) for name in declared})
        self.norms = nn.ModuleDict({name: nn.LayerNorm(embed_dim, **where) for name in declared})
        self.mix = nn.Linear(len(declared) * embed_dim, embed_dim, **where)
        self.dropout = nn.Dropout(dropout)

    @override
    def _fuse(self, received: dict[str, Received]) -> Tensor:
        like = weight_of(self.projections)
        encoded = [self.dropout(add_positions(part.steps, like)) for part in received.values()]
        masked = [part.real for part in received.values()]
        packs = is_plain_call(encoded[0]) and worth_packing(
            masked, packing="auto", width=self.embed_dim
        )
        memories = _shared_memory(encoded, masked) if packs else _own_memories(encoded, masked)
        pooled: list[Tensor] = []
        for name, query, real, memory in zip(received, encoded, masked, memories, strict=True):
            others, readable = memory
            queries: Layout = Padded(real)
            keys: Layout = Padded(readable)
            rows = query
            if packs:
                keys, queries = lay_out([others, query], [readable, real])
                others, rows = keys.pack(others), queries.pack(query)
            read, _ = self.attentions[name](rows, others, queries, keys, need_weights=False)
            read = queries.unpack(self.dropout(read))
            pooled.append(masked_mean(self.norms[name](query + read), real))
        return clear_empty(self.mix(torch.cat(pooled, dim=-1)), received.values())


def _own_memories(encoded: list[Tensor], masked: list[Tensor | None]) -> Iterator[Memory]:
    """Yield, for each modality, the steps of all others."""
    for k, query in enumerate(encoded):
        if len(encoded) > 1:
            yield join(encoded[:k] + encoded[k + 1 :], masked[:k] + masked[k + 1 :])
        else:
            # Without other modalities, one padded step keeps the attention in the graph.
            memory = query[:, :1]
            yield memory, torch.zeros(memory.shape[:2], dtype=torch.bool, device=query.device)


def _shared_memory(encoded: list[Tensor], masked: list[Tensor | None]) -> Iterator[Memory]:
    """Yield, for each modality, the steps of all, real ones first, with its own masked."""
    steps, real = join(encoded, masked)
    owner = torch.cat(
        [torch.full((x.shape[1],), k, device=x.device) for k, x in enumerate(encoded)]
    )
    steps, real, order = real_first(steps, cast(Tensor, real))
    for k in range(len(encoded)):
        yield steps, real & (owner[order] != k)
