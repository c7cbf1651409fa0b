"""A fusion with a head, and the parts that stand in for the library's own."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from benchmarks.quality.data import Batch, Task
from grf_fusion import GatedRecurrentFusion
from grf_fusion.baselines import ConcatFusion, ContrastiveAlignment


class Model(nn.Module):
    """A fusion, a norm and one linear layer; a binary outcome and a number have one score."""

    def __init__(self, fusion: nn.Module, *, width: int, task: Task, dropout: float) -> None:
        super().__init__()
        self.fusion = fusion
        self.task = task
        self.head = nn.Sequential(
            nn.LayerNorm(width), nn.Dropout(dropout), nn.Linear(width, task.outputs)
        )

    def forward(
        self,
        batch: Batch,
        present: Tensor,
        *,
        order: Sequence[str] | None = None,
        intermediate: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return scores, and with `intermediate` also those after each modality.

        Shape:
            - present: ``(batch, modalities)``
            - scores: ``(batch, classes)`` or ``(batch,)``
            - intermediate: ``(batch, modalities, classes)`` or ``(batch, modalities)``
        """
        given = {"masks": batch.masks, "present": present}
        if not isinstance(self.fusion, GatedRecurrentFusion):
            return self._score(self.fusion(batch.features, **given)), None
        if not intermediate and self.fusion.context == "pooled":
            return self._score(self.fusion(batch.features, **given, order=order)), None
        # The trace averages a context that is a sequence over its real steps.
        _, trace = self.fusion(batch.features, **given, order=order, return_trace=True)
        contexts = trace.contexts
        later = self._score(contexts) if intermediate else None
        return self._score(contexts[:, -1]), later

    @torch.no_grad()
    def alone(self, batch: Batch, names: Sequence[str]) -> dict[str, Tensor]:
        """Return what the model says by each modality alone, as scores of at least two classes."""
        result = {}
        for k, name in enumerate(names):
            if name not in batch.features:
                outputs = max(2, self.task.outputs)
                result[name] = torch.zeros(len(batch.labels), outputs, device=batch.labels.device)
                continue
            x, mask = batch.features[name], batch.masks.get(name)
            if isinstance(self.fusion, GatedRecurrentFusion) and self.fusion.context == "pooled":
                # One step instead of a whole chain that the others leave untouched.
                scores = self._score(self.fusion.step(None, name, x, mask=mask).context)
            else:
                here = batch.present & (torch.arange(len(names), device=x.device) == k)
                only = batch._replace(
                    features={name: x}, masks={} if mask is None else {name: mask}
                )
                scores, _ = self(only, here)
            if scores.ndim == 1:
                scores = torch.stack((torch.zeros_like(scores), scores), dim=1)
            result[name] = scores
        return result

    def auxiliary(self, batch: Batch, present: Tensor) -> Tensor | None:
        """Return the fusion's own loss, if it has one."""
        if not isinstance(self.fusion, AlignedConcat):
            return None
        return self.fusion.align(batch.features, masks=batch.masks, present=present)

    def _score(self, context: Tensor) -> Tensor:
        scores = self.head(context)
        return scores if self.task.kind == "classes" else scores.squeeze(-1)


class AlignedConcat(nn.Module):
    """Modalities that `ContrastiveAlignment` brings into one space, concatenated and mixed."""

    def __init__(self, modalities: Mapping[str, int], *, embed_dim: int, dropout: float) -> None:
        super().__init__()
        self.align = ContrastiveAlignment(modalities, embed_dim=embed_dim)
        widths = dict.fromkeys(modalities, embed_dim)
        self.mix = ConcatFusion(widths, embed_dim=embed_dim, dropout=dropout)

    def forward(
        self, features: Mapping[str, Tensor], *, masks: Mapping[str, Tensor], present: Tensor
    ) -> Tensor:
        """Return one vector a sample."""
        given = {"masks": masks, "present": present}
        here = self.align.presence(features, **given)
        vectors = self.align.embed(features, **given)
        return self.mix({name: v.unsqueeze(1) for name, v in vectors.items()}, present=here)


class ConcatUnit(nn.Module):
    """Concatenation and a linear layer in the place of `GatedFusionUnit`: nothing is gated."""

    def __init__(self, embed_dim: int, *, dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * embed_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(
        self, state: Tensor, update: Tensor, *, return_gate: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Mix state and update; the gate it returns is 1, for all is overwritten."""
        mixed = self.norm(self.dropout(self.linear(torch.cat((state, update), dim=-1))))
        return (mixed, torch.ones_like(mixed)) if return_gate else mixed
