"""The model of every method, as in the README: a fusion and one linear layer."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from benchmarks.quality.datasets.dataset import Batch, Task
from grf_fusion import GatedRecurrentFusion
from grf_fusion.baselines import ConcatFusion


class Model(nn.Module):
    """A fusion and one linear layer; a binary outcome and a number have one score.

    With `encoders`, the same for every method, each step of a modality passes through its encoder
    first. A fusion that returns scores, `LateScores`, has no head.
    """

    def __init__(
        self, fusion: nn.Module, *, width: int, task: Task, encoders: nn.ModuleDict | None = None
    ) -> None:
        super().__init__()
        self.fusion = fusion
        self.task = task
        self.encoders = encoders
        self.head = None if isinstance(fusion, LateScores) else nn.Linear(width, task.outputs)

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
        features = self.encode(batch.features)
        if not isinstance(self.fusion, GatedRecurrentFusion):
            return self._score(self.fusion(features, **given)), None
        if not intermediate and self.fusion.context == "pooled":
            return self._score(self.fusion(features, **given, order=order)), None
        # The trace averages a sequence context over its real steps.
        _, trace = self.fusion(features, **given, order=order, return_trace=True)
        contexts = trace.contexts
        later = self._score(contexts) if intermediate else None
        return self._score(contexts[:, -1]), later

    def encode(self, features: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the input of the fusion."""
        if self.encoders is None:
            return features
        return {name: self.encoders[name](x) for name, x in features.items()}

    @torch.no_grad()
    def alone(self, batch: Batch, names: Sequence[str]) -> dict[str, Tensor]:
        """Return the scores with each modality alone, of at least two classes."""
        result = {}
        for k, name in enumerate(names):
            if name not in batch.features:
                outputs = max(2, self.task.outputs)
                result[name] = torch.zeros(len(batch.labels), outputs, device=batch.labels.device)
                continue
            x, mask = batch.features[name], batch.masks.get(name)
            if isinstance(self.fusion, GatedRecurrentFusion) and self.fusion.context == "pooled":
                # One step instead of a chain in which all other modalities are missing.
                (x,) = self.encode({name: x}).values()
                scores = self._score(
                    self.fusion.readout(self.fusion.step(None, name, x, mask=mask))
                )
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

    def _score(self, context: Tensor) -> Tensor:
        scores = context if self.head is None else self.head(context)
        return scores if self.task.kind == "classes" else scores.squeeze(-1)


class LateScores(nn.Module):
    """Late fusion of scores: one model per modality, trained independently.

    Each model is the pooled form of `ConcatFusion` on its modality and one linear layer. Over the
    present modalities, `"product"` sums log-probabilities (log-odds of a binary outcome) and
    `"mean"` averages probabilities. Numbers are always averaged.
    """

    def __init__(
        self,
        modalities: Mapping[str, int],
        *,
        embed_dim: int,
        dropout: float,
        task: Task,
        how: Literal["product", "mean"],
    ) -> None:
        super().__init__()
        self.task, self.how = task, how
        self.models = nn.ModuleDict(
            {
                name: ConcatFusion(
                    {name: width}, embed_dim=embed_dim, stage="pooled", dropout=dropout
                )
                for name, width in modalities.items()
            }
        )
        self.heads = nn.ModuleDict(
            {name: nn.Linear(embed_dim, task.outputs) for name in modalities}
        )

    def single(
        self, features: Mapping[str, Tensor], *, masks: Mapping[str, Tensor], present: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the scores of each model, and which modalities are present.

        Shape:
            - scores: ``(batch, modalities, outputs)``
            - present: ``(batch, modalities)``
        """
        scores, here = [], []
        for k, (name, model) in enumerate(self.models.items()):
            own = {name: features.get(name)}, {name: masks.get(name)}, present[:, k : k + 1]
            if own[0][name] is None:
                scores.append(present.new_zeros(len(present), self.task.outputs).float())
                here.append(torch.zeros_like(present[:, k]))
                continue
            scores.append(self.heads[name](model(own[0], masks=own[1], present=own[2])))
            here.append(model.presence(own[0], masks=own[1], present=own[2])[:, 0])
        return torch.stack(scores, dim=1), torch.stack(here, dim=1)

    def forward(
        self, features: Mapping[str, Tensor], *, masks: Mapping[str, Tensor], present: Tensor
    ) -> Tensor:
        """Return one score per output and sample, 0 for a sample without modalities."""
        scores, here = self.single(features, masks=masks, present=present)
        hidden, count = ~here[..., None], here.sum(dim=1, keepdim=True).clamp(min=1)
        if self.task.kind == "regression":
            return scores.masked_fill(hidden, 0.0).sum(dim=1) / count
        if self.how == "product":
            logs = scores.log_softmax(dim=-1) if self.task.kind == "classes" else scores
            return logs.masked_fill(hidden, 0.0).sum(dim=1)
        if self.task.kind == "classes":
            total = scores.log_softmax(dim=-1).masked_fill(hidden, -torch.inf).logsumexp(dim=1)
            return (total - count.log()).masked_fill(~here.any(dim=1, keepdim=True), 0.0)
        sure = scores.sigmoid().masked_fill(hidden, 0.0).sum(dim=1) / count
        return sure.logit(eps=1e-6).masked_fill(~here.any(dim=1, keepdim=True), 0.0)


class ConcatUnit(nn.Module):
    """Concatenation and a linear layer instead of `GatedFusionUnit`, without a gate."""

    def __init__(self, embed_dim: int, *, dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * embed_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(
        self, state: Tensor, update: Tensor, *, return_gate: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Mix state and update; the returned gate is 1, because the state is overwritten."""
        mixed = self.norm(self.dropout(self.linear(torch.cat((state, update), dim=-1))))
        return (mixed, torch.ones_like(mixed)) if return_gate else mixed
