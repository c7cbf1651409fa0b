"""Options of the block, checked once and passed on to its layers."""

import dataclasses
from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from grf_fusion._checks.arguments import (
    expect_choice,
    expect_flag,
    expect_heads,
    expect_probability,
    expect_size,
)

OWNER = "SymmetricCrossAttentionBlock"
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockOptions:
    """Options of a `SymmetricCrossAttentionBlock`, which documents them; invalid ones raise."""

    embed_dim: int
    num_heads: int
    num_layers: int
    dim_feedforward: int | None
    dropout: float
    activation: Literal["gelu", "relu"]
    norm_first: bool
    self_attention: bool | Literal["linear"]
    symmetric: bool
    packing: bool | Literal["auto"]
    checkpoint: bool
    pooled_context: bool

    def __post_init__(self) -> None:
        """Check every option."""
        expect_size(OWNER, "embed_dim", self.embed_dim)
        expect_heads(OWNER, "embed_dim", self.embed_dim, self.num_heads)
        expect_size(OWNER, "num_layers", self.num_layers)
        if self.dim_feedforward is not None:
            expect_size(OWNER, "dim_feedforward", self.dim_feedforward)
        expect_probability(OWNER, "dropout", self.dropout)
        expect_choice(OWNER, "activation", self.activation, ACTIVATIONS)
        expect_flag(OWNER, "norm_first", self.norm_first)
        expect_flag(OWNER, "self_attention", self.self_attention, other="linear")
        expect_flag(OWNER, "symmetric", self.symmetric)
        expect_flag(OWNER, "packing", self.packing, other="auto")
        expect_flag(OWNER, "checkpoint", self.checkpoint)
        expect_flag(OWNER, "pooled_context", self.pooled_context)
