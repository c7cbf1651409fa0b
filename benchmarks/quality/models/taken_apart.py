"""Cross-modal attention and GRF with one part exchanged, to see what makes the difference."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from benchmarks.common.author import sinusoids
from benchmarks.quality.models.rivals import mean, projections
from grf_fusion import GatedFusionUnit, GatedRecurrentFusion

Part = Literal["own weights", "tokens", "slots"]


class CrossModal(nn.Module):
    """`CrossModalAttentionFusion` of PyTorch's parts, of which one may be missing.

    Without ``"own weights"`` all modalities share one attention and one norm, as the steps of GRF
    share theirs. Without ``"tokens"`` the mean of a modality asks, and not each of its steps.
    Without ``"slots"`` the result mixes the mean of what the modalities have read, as wide as GRF's
    context, and not all of them side by side.
    """

    def __init__(
        self,
        modalities: Mapping[str, int],
        *,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        without: Part | None = None,
    ) -> None:
        super().__init__()
        self.without = without
        self.projections = projections(modalities, embed_dim)
        shared = without == "own weights"
        kinds = ["all"] if shared else list(modalities)
        self.reads = dict.fromkeys(modalities, "all") if shared else {n: n for n in modalities}
        self.attentions = nn.ModuleDict(
            {
                kind: nn.MultiheadAttention(embed_dim, num_heads, dropout, batch_first=True)
                for kind in kinds
            }
        )
        self.norms = nn.ModuleDict({kind: nn.LayerNorm(embed_dim) for kind in kinds})
        slots = 1 if without == "slots" else len(modalities)
        self.mix = nn.Linear(slots * embed_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, features: Mapping[str, Tensor], *, masks: Mapping[str, Tensor], present: Tensor
    ) -> Tensor:
        """Return one vector a sample; what nobody has may be left out of `features`."""
        steps, real = {}, {}
        for here, (name, projection) in zip(
            present.unbind(dim=1), self.projections.items(), strict=True
        ):
            if name in features:
                x = projection(features[name])
                steps[name] = self.dropout(x + sinusoids(*x.shape[1:]).to(x))
                real[name] = masks.get(name, x.new_ones(x.shape[:2]).bool()) & here[:, None]
        slots = [
            self._slot(name, steps, real)
            if name in steps
            else self.mix.weight.new_zeros(len(present), self.mix.out_features)
            for name in self.projections
        ]
        if self.without == "slots":
            slots = [torch.stack(slots).mean(dim=0)]
        return self.mix(torch.cat(slots, dim=-1)) * present.any(dim=1, keepdim=True)

    def _slot(self, name: str, steps: Mapping[str, Tensor], real: Mapping[str, Tensor]) -> Tensor:
        query, asks = steps[name], real[name]
        if self.without == "tokens":
            query, asks = mean(query, asks).unsqueeze(1), asks.any(dim=1, keepdim=True)
        attention = self.attentions[self.reads[name]]
        # Where there is nobody else to read, 0 is read before the output projection.
        read = attention.out_proj.bias
        others = [other for other in steps if other != name]
        if others:
            memory = torch.cat([steps[other] for other in others], dim=1)
            readable = torch.cat([real[other] for other in others], dim=1)
            some = readable.any(dim=1, keepdim=True)
            hidden = ~(readable | ~some)
            found, _ = attention(query, memory, memory, hidden, need_weights=False)
            read = torch.where(some[..., None], found, read)
        return mean(self.norms[self.reads[name]](query + self.dropout(read)), asks)


class EveryContext(nn.Module):
    """GRF whose contexts after each step are read side by side, not the last one alone."""

    def __init__(self, fusion: GatedRecurrentFusion) -> None:
        super().__init__()
        self.fusion = fusion
        width = fusion.embed_dim
        self.mix = nn.Linear(len(fusion.modalities) * width, width)

    def forward(
        self, features: Mapping[str, Tensor], *, masks: Mapping[str, Tensor], present: Tensor
    ) -> Tensor:
        """Return one vector a sample."""
        _, trace = self.fusion(features, masks=masks, present=present, return_trace=True)
        return self.mix(trace.contexts.flatten(1))


class ScaledUpdate(GatedFusionUnit):
    """The unit on an update that is not as loud."""

    def __init__(self, embed_dim: int, *, factor: float, gate_bias: float) -> None:
        super().__init__(embed_dim, norm=False, gate_bias=gate_bias)
        self.factor = factor

    def forward(self, state: Tensor, update: Tensor, *, return_gate: bool = False) -> object:
        """Blend."""
        return super().forward(state, self.factor * update, return_gate=return_gate)
