"""The GRF author's design, built from `torch.nn.TransformerDecoder`; we can load its weights.

Written from the paper's formulas and from the names and shapes of the recorded weights. It uses
the author's parameter names, so `load_author_checkpoint` accepts its `state_dict`.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Gate(nn.Module):
    """Gated fusion unit with two linear layers."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.linear_gate = nn.Linear(2 * dim, dim)
        self.linear_candidate = nn.Linear(2 * dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, state: Tensor, update: Tensor) -> Tensor:
        """Blend state and update."""
        pair = torch.cat((state, update), dim=-1)
        gate = self.linear_gate(pair).sigmoid()
        candidate = self.linear_candidate(pair).tanh()
        return self.norm(self.dropout((1 - gate) * state + gate * candidate))


class Encoder(nn.Module):
    """Two decoder stacks that attend to each other's input."""

    def __init__(self, dim: int, heads: int, layers: int, hidden: int, dropout: float) -> None:
        super().__init__()

        def decoder() -> nn.TransformerDecoder:
            layer = nn.TransformerDecoderLayer(
                dim, heads, hidden, dropout, activation="gelu", batch_first=True
            )
            return nn.TransformerDecoder(layer, layers)

        self.decoder_1 = decoder()
        self.decoder_2 = decoder()

    def forward(
        self, context: Tensor, modality: Tensor, context_pad: Tensor, modality_pad: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Enrich both; the padding masks are True where a step is padding."""
        new_context = self.decoder_1(
            context,
            modality,
            tgt_key_padding_mask=context_pad,
            memory_key_padding_mask=modality_pad,
        )
        new_modality = self.decoder_2(
            modality,
            context,
            tgt_key_padding_mask=modality_pad,
            memory_key_padding_mask=context_pad,
        )
        return new_context, new_modality


class AuthorModel(nn.Module):
    """The whole chain: separate weights for each step, the first modality as a sequence."""

    def __init__(
        self,
        modalities: Mapping[str, int],
        *,
        dim: int,
        heads: int,
        layers: int,
        hidden: int,
        dropout: float = 0.0,
        longest: int = 8192,
    ) -> None:
        super().__init__()
        self.names = list(modalities)
        self.projectors = nn.ModuleDict(
            {name: nn.Linear(size, dim) for name, size in modalities.items()}
        )
        steps = range(len(modalities) - 1)
        self.fusion_encoders = nn.ModuleList(
            Encoder(dim, heads, layers, hidden, dropout) for _ in steps
        )
        self.gfus = nn.ModuleList(Gate(dim, dropout) for _ in steps)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("table", sinusoids(longest, dim), persistent=False)

    def forward(self, features: Mapping[str, Tensor], masks: Mapping[str, Tensor] | None) -> Tensor:
        """Fuse; masks are True where a step is real."""
        if masks is None:
            masks = {
                name: torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
                for name, x in features.items()
            }
        first, *others = self.names
        context, pad = self.projectors[first](features[first]), ~masks[first]
        for name, encoder, gate in zip(others, self.fusion_encoders, self.gfus, strict=True):
            modality, modality_pad = self.projectors[name](features[name]), ~masks[name]
            new_context, new_modality = encoder(
                self._encode(context), self._encode(modality), pad, modality_pad
            )
            fused = gate(mean(new_context, ~pad), mean(new_modality, ~modality_pad))
            context, pad = fused.unsqueeze(1), pad.new_zeros(len(fused), 1)
        return context.squeeze(1)

    def _encode(self, sequence: Tensor) -> Tensor:
        return self.dropout(sequence + self.table[: sequence.shape[1]])


def sinusoids(longest: int, dim: int) -> Tensor:
    """Sines on even columns, cosines on odd, counted from position 0."""
    rates = torch.exp(torch.arange(0, dim, 2) * (-math.log(10000.0) / dim))
    angles = torch.arange(longest)[:, None] * rates
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)


def mean(sequence: Tensor, real: Tensor | None) -> Tensor:
    """Return the mean over real steps, `None` for all."""
    if real is None:
        return sequence.mean(dim=1)
    real = real.unsqueeze(-1)
    return (sequence * real).sum(dim=1) / real.sum(dim=1)
