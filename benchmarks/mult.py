"""MulT, the multimodal transformer (Tsai et al. 2019), for any number of modalities.

Written from the description of the recorded numbers; with three modalities named `l`, `a` and `v`
it holds the MulT authors' parameter names. Every modality reads every other in a stack of its own,
the results are concatenated, a self-attention stack runs over them, and the last step is kept. It
knows no masks: padding is content. Attention goes through torch's fused kernel, which is faster
than the authors' own code.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEWEST_MEMORY_LAYERS = 3


class Attention(nn.Module):
    """Attention with packed projections and MulT's mask: key `j` for query `i` if `j <= i + d`."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.in_proj_weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(3 * dim, dim)))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, query: Tensor, memory: Tensor | None) -> Tensor:
        """Read the memory; without one, the query reads itself."""
        weight, bias, dim = self.in_proj_weight, self.in_proj_bias, query.shape[-1]
        if memory is None:
            q, k, v = F.linear(query, weight, bias).chunk(3, dim=-1)
        else:
            q = F.linear(query, weight[:dim], bias[:dim])
            k, v = F.linear(memory, weight[dim:], bias[dim:]).chunk(2, dim=-1)
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (q, k, v))
        shape = q.shape[2], k.shape[2]
        seen = torch.ones(shape, dtype=torch.bool, device=q.device).tril(abs(shape[0] - shape[1]))
        dropout = self.dropout if self.training else 0.0
        read = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, dropout_p=dropout)
        return self.out_proj(read.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Pre-norm attention and feed-forward; query and memory share a norm."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = Attention(dim, heads, dropout)
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)
        self.layer_norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, memory: Tensor | None) -> Tensor:
        """Enrich `x` by what it reads in the memory, or in itself."""
        norm, norm_hidden = self.layer_norms
        read = self.self_attn(norm(x), None if memory is None else norm(memory))
        x = x + self.dropout(read)
        hidden = self.dropout(self.fc1(norm_hidden(x)).relu())
        return x + self.dropout(self.fc2(hidden))


class Stack(nn.Module):
    """Layers that all read the same memory, or, without one, themselves."""

    def __init__(self, dim: int, heads: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(dim, heads, dropout) for _ in range(layers))
        self.layer_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        """Scale, add positions and run the layers."""
        x = self.dropout(_encode(x))
        memory = None if memory is None else self.dropout(_encode(memory))
        for layer in self.layers:
            x = layer(x, memory)
        return self.layer_norm(x)


class MulT(nn.Module):
    """All pairs of modalities, then a memory stack a modality; widths grow with their number.

    Args:
        modalities: Name and feature width of each modality.
        dim: Width of a cross-modal stack; a memory stack is `modalities - 1` times as wide.
        heads: Attention heads of every stack.
        layers: Layers of a cross-modal stack.
        dropout: Probability of every dropout.
        outputs: Width of the prediction, or `None` for no head: its residual layers are
            `modalities * (modalities - 1) * dim` wide and square.
    """

    def __init__(
        self,
        modalities: Mapping[str, int],
        *,
        dim: int,
        heads: int,
        layers: int,
        dropout: float = 0.0,
        outputs: int | None = None,
    ) -> None:
        super().__init__()
        self.names = list(modalities)
        self.dropout = nn.Dropout(dropout)
        for name, size in modalities.items():
            self.add_module(f"proj_{name}", nn.Conv1d(size, dim, kernel_size=1, bias=False))
        wide = (len(modalities) - 1) * dim
        for name in self.names:
            for other in self._others(name):
                stack = Stack(dim, heads, layers, dropout)
                self.add_module(f"trans_{name}_with_{other}", stack)
            memory = Stack(wide, heads, max(layers, FEWEST_MEMORY_LAYERS), dropout)
            self.add_module(f"trans_{name}_mem", memory)
        if outputs is not None:
            fused = len(modalities) * wide
            self.proj1 = nn.Linear(fused, fused)
            self.proj2 = nn.Linear(fused, fused)
            self.out_layer = nn.Linear(fused, outputs)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Return the concatenated last steps, `(batch, modalities * (modalities - 1) * dim)`."""
        projected = {
            name: self.get_submodule(f"proj_{name}")(features[name].transpose(1, 2)).transpose(1, 2)
            for name in self.names
        }
        last: list[Tensor] = []
        for name in self.names:
            read = [
                self.get_submodule(f"trans_{name}_with_{other}")(projected[name], projected[other])
                for other in self._others(name)
            ]
            memory = self.get_submodule(f"trans_{name}_mem")(torch.cat(read, dim=-1))
            last.append(memory[:, -1])
        return torch.cat(last, dim=-1)

    def predict(self, fused: Tensor) -> Tensor:
        """Run the residual head."""
        hidden = self.dropout(self.proj1(fused).relu())
        return self.out_layer(fused + self.proj2(hidden))

    def _others(self, name: str) -> list[str]:
        return [other for other in self.names if other != name]


def _encode(x: Tensor) -> Tensor:
    """Scale by the root of the width and add positions, but none where feature 0 is exactly 0."""
    time, dim = x.shape[1:]
    half = dim // 2
    rates = torch.exp(torch.arange(half, device=x.device) * (-math.log(10000.0) / (half - 1)))
    angles = torch.arange(1, time + 1, device=x.device)[:, None] * rates
    positions = torch.cat((angles.sin(), angles.cos()), dim=-1)
    positions = F.pad(positions, (0, dim - 2 * half)).to(x.dtype)
    return math.sqrt(dim) * x + positions * (x[..., :1] != 0)
