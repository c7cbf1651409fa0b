"""Small implementations of fusions that the library does not have.

Each is called like the library's baselines. Padded steps and missing modalities are set to 0 before
the projection and ignored afterwards; a sample without modalities gives 0.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.common.author import sinusoids


class Steps(NamedTuple):
    """A modality of a batch: ``(batch, time, width)``, and which steps are real."""

    x: Tensor
    real: Tensor


def projections(modalities: Mapping[str, int], dim: int) -> nn.ModuleDict:
    """Return a linear layer per modality."""
    return nn.ModuleDict({name: nn.Linear(width, dim) for name, width in modalities.items()})


def arrive(
    modalities: Mapping[str, int],
    features: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    present: Tensor,
) -> dict[str, Steps]:
    """Return all modalities, 0 in padded steps; an omitted modality is one padded step."""
    found = {}
    for k, (name, width) in enumerate(modalities.items()):
        if name in features:
            x, here = features[name], present[:, k, None]
            real = masks[name] & here if name in masks else here.expand(x.shape[:2])
            found[name] = Steps(x.masked_fill(~real[..., None], 0.0), real)
        else:
            like = next(iter(features.values()))
            empty = like.new_zeros(len(present), 1, width)
            found[name] = Steps(empty, torch.zeros_like(present[:, :1]))
    return found


def mean(x: Tensor, real: Tensor) -> Tensor:
    """Return the mean over real steps, 0 if there is none."""
    total = x.masked_fill(~real[..., None], 0.0).sum(dim=1)
    return total / real.sum(dim=1, keepdim=True).clamp(min=1)


def peak(x: Tensor, real: Tensor) -> Tensor:
    """Return the maximum over real steps, 0 if there is none."""
    largest = x.masked_fill(~real[..., None], -torch.inf).amax(dim=1)
    return largest.masked_fill(~real.any(dim=1, keepdim=True), 0.0)


class Layer(nn.Module):
    """Pre-norm attention over a memory and a feed-forward network, each with a residual."""

    def __init__(self, dim: int, *, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, num_heads, dropout, batch_first=True)
        self.query_norm, self.memory_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.feedforward = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, 4 * dim),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(4 * dim, dim),
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, memory: Tensor, readable: Tensor | None) -> Tensor:
        """Let `x` attend to the memory; a sample without readable steps skips the attention.

        Shape:
            - x: ``(batch, queries, dim)``
            - memory: ``(batch, time, dim)``
            - readable: ``(batch, time)``, ``None`` for all
        """
        hidden = some = None
        if readable is not None:
            some = readable.any(dim=1)[:, None, None]
            hidden = ~readable & some[:, 0]
        memory = self.memory_norm(memory)
        read, _ = self.attention(self.query_norm(x), memory, memory, hidden, need_weights=False)
        if some is not None:
            read = read.masked_fill(~some, 0.0)
        x = x + self.dropout(read)
        return x + self.dropout(self.feedforward(x))


def layers(depth: int, dim: int, num_heads: int, dropout: float) -> nn.ModuleList:
    """Return some layers."""
    return nn.ModuleList(Layer(dim, num_heads=num_heads, dropout=dropout) for _ in range(depth))


class LatentTransformer(nn.Module):
    """Latent vectors that attend to the steps of all modalities, then to each other (Perceiver).

    Twice, the latents attend to all steps (projected, with positions and an embedding of the
    modality) and then to each other. The result is their normalised mean (Jaegle 2021, 2022).
    """

    def __init__(
        self,
        modalities: Mapping[str, int],
        *,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        latents: int = 8,
        depth: int = 2,
    ) -> None:
        super().__init__()
        self.modalities = dict(modalities)
        self.projections = projections(modalities, embed_dim)
        self.latents = nn.Parameter(torch.randn(latents, embed_dim))
        self.reads, self.mixes = (layers(depth, embed_dim, num_heads, dropout) for _ in range(2))
        self.norm = nn.LayerNorm(embed_dim)

    def forward(
        self, features: Mapping[str, Tensor], *, masks: Mapping[str, Tensor], present: Tensor
    ) -> Tensor:
        """Return one vector per sample."""
        steps, real = [], []
        for name, (x, own) in arrive(self.modalities, features, masks, present).items():
            # The bias of the projection is the embedding of the modality.
            projected = self.projections[name](x)
            steps.append(projected + sinusoids(*projected.shape[1:]).to(x))
            real.append(own)
        memory, readable = torch.cat(steps, dim=1), torch.cat(real, dim=1)
        latents = self.latents.expand(len(present), -1, -1)
        for read, mix in zip(self.reads, self.mixes, strict=True):
            latents = read(latents, memory, readable)
            latents = mix(latents, latents, None)
        fused = self.norm(latents).mean(dim=1)
        return fused.masked_fill(~readable.any(dim=1, keepdim=True), 0.0)


class BottleneckTransformer(nn.Module):
    """A Transformer per modality; they exchange a few bottleneck tokens (Nagrani 2021).

    In each layer, the steps of a modality and the bottleneck tokens attend to each other with the
    modality's weights. The tokens are then averaged over the present modalities. The result is the
    mean over present modalities of the mean over their normalised real steps.
    """

    def __init__(
        self,
        modalities: Mapping[str, int],
        *,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bottlenecks: int = 4,
        depth: int = 2,
    ) -> None:
        super().__init__()
        self.modalities = dict(modalities)
        self.projections = projections(modalities, embed_dim)
        self.bottlenecks = nn.Parameter(0.02 * torch.randn(bottlenecks, embed_dim))
        self.layers = nn.ModuleDict(
            {name: layers(depth, embed_dim, num_heads, dropout) for name in modalities}
        )
        self.norms = nn.ModuleDict({name: nn.LayerNorm(embed_dim) for name in modalities})
        self.depth = depth

    def forward(
        self, features: Mapping[str, Tensor], *, masks: Mapping[str, Tensor], present: Tensor
    ) -> Tensor:
        """Return one vector per sample."""
        arrived = arrive(self.modalities, features, masks, present)
        width, tokens = self.bottlenecks.shape[1], len(self.bottlenecks)
        steps = {
            name: self.projections[name](x) + sinusoids(x.shape[1], width).to(x)
            for name, (x, _) in arrived.items()
        }
        here = {name: real.any(dim=1) for name, (_, real) in arrived.items()}
        who = torch.stack(list(here.values()), dim=1)
        shared = self.bottlenecks.expand(len(present), -1, -1)
        all_of = present.new_ones(len(present), tokens)
        for k in range(self.depth):
            met = []
            for name, (_, real) in arrived.items():
                together = torch.cat((shared, steps[name]), dim=1)
                readable = torch.cat((all_of, real), dim=1)
                together = self.layers[name][k](together, together, readable)
                steps[name] = together[:, tokens:]
                met.append(together[:, :tokens].flatten(1))
            shared = mean(torch.stack(met, dim=1), who).unflatten(1, (tokens, width))
        ends = [mean(self.norms[name](x), arrived[name].real) for name, x in steps.items()]
        return mean(torch.stack(ends, dim=1), who)


class GatedMultimodalUnit(nn.Module):
    """A gate per modality, computed from all modalities (Arevalo 2017).

        h_k = tanh(v_k W_k + b_k)        z_k = sigmoid([v_1; ...; v_n] U_k + c_k)
        h   = sum of z_k h_k over the present k

    The unit takes vectors: v_k is the concatenated mean and maximum of the real steps, 0 if the
    modality is missing.
    """

    def __init__(self, modalities: Mapping[str, int], *, embed_dim: int) -> None:
        super().__init__()
        self.modalities = dict(modalities)
        pairs = {name: 2 * width for name, width in modalities.items()}
        self.contents = projections(pairs, embed_dim)
        self.gates = nn.Linear(sum(pairs.values()), len(modalities) * embed_dim)

    def forward(
        self, features: Mapping[str, Tensor], *, masks: Mapping[str, Tensor], present: Tensor
    ) -> Tensor:
        """Return one vector per sample."""
        arrived = arrive(self.modalities, features, masks, present)
        vectors = {
            name: torch.cat((mean(x, real), peak(x, real)), dim=1)
            for name, (x, real) in arrived.items()
        }
        here = torch.stack([real.any(dim=1) for _, real in arrived.values()], dim=1)
        gates = self.gates(torch.cat(list(vectors.values()), dim=1)).sigmoid()
        gates = gates.unflatten(1, (len(vectors), -1)) * here[..., None]
        contents = [self.contents[name](v).tanh() for name, v in vectors.items()]
        return (gates * torch.stack(contents, dim=1)).sum(dim=1)


class StatisticsConcatenation(nn.Module):
    """Mean, standard deviation and maximum of each modality, concatenated, then a small network.

    No network sees single steps, so that it takes little time. A modality that is missing gives
    the mean and the maximum 0.
    """

    def __init__(
        self, modalities: Mapping[str, int], *, embed_dim: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.modalities = dict(modalities)
        self.mix = nn.Sequential(
            nn.Linear(3 * sum(modalities.values()), 2 * embed_dim),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(2 * embed_dim, embed_dim),
        )

    def forward(
        self, features: Mapping[str, Tensor], *, masks: Mapping[str, Tensor], present: Tensor
    ) -> Tensor:
        """Return one vector per sample."""
        arrived = arrive(self.modalities, features, masks, present)
        vectors = []
        for x, real in arrived.values():
            centre = mean(x, real)
            variance = mean((x - centre[:, None]).square(), real)
            # The root of 0 has no finite gradient.
            vectors += [centre, variance.clamp(min=1e-8).sqrt(), peak(x, real)]
        some = torch.stack([real.any(dim=1) for _, real in arrived.values()], dim=1).any(dim=1)
        return self.mix(torch.cat(vectors, dim=1)).masked_fill(~some[:, None], 0.0)
