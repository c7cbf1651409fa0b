"""The encoder layer of the early form of `ConcatFusion`."""

import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Unpack, override

from grf_fusion._checks.options import Where
from grf_fusion._eager.dropout import drop
from grf_fusion._eager.layout import Layout
from grf_fusion._layers.attention import Attention


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each followed by a residual connection and a norm."""

    attention: Attention
    attention_norm: nn.LayerNorm
    linear1: nn.Linear
    linear2: nn.Linear
    feedforward_norm: nn.LayerNorm
    dropout: nn.Dropout

    def __init__(
        self,
        embed_dim: int,
        *,
        num_heads: int,
        dim_feedforward: int,
        dropout: float,
        **where: Unpack[Where],
    ) -> None:
        super().__init__()
        self.attention = Attention(embed_dim, num_heads=num_heads, dropout=dropout, **where)
        self.attention_norm = nn.LayerNorm(embed_dim, **where)
        self.linear1 = nn.Linear(embed_dim, dim_feedforward, **where)
        self.linear2 = nn.Linear(dim_feedforward, embed_dim, **where)
        self.feedforward_norm = nn.LayerNorm(embed_dim, **where)
        self.dropout = nn.Dropout(dropout)

    @override
    def forward(self, x: Tensor, steps: Layout) -> Tensor:
        """Return the enriched steps."""
        read, _ = self.attention(x, x, steps, steps, need_weights=False)
        x = self.attention_norm(drop(self.dropout, read, x))
        update = self.linear2(drop(self.dropout, F.gelu(self.linear1(x))))
        return self.feedforward_norm(drop(self.dropout, update, x))
