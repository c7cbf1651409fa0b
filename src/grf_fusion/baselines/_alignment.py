"""Contrastive alignment of modalities, often used before a fusion."""

import itertools
import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from grf_fusion._checks.arguments import expect_number, expect_size
from grf_fusion._checks.options import Modalities, Where, check_modalities
from grf_fusion._inputs.masks import unmask_empty
from grf_fusion._inputs.projections import Received
from grf_fusion.baselines._base import Baseline

OWNER = "ContrastiveAlignment"
# CLIP clips at the same value; a sigmoid keeps a gradient there.
LARGEST_SCALE = 100.0
# Shorter vectors are not normalised to length 1, because their gradients would explode.
SHORTEST = 1e-6
# Target of a sample that the loss ignores: the default `ignore_index` of `cross_entropy`.
IGNORED = -100


class ContrastiveAlignment(Baseline):
    r"""Align the modalities of a sample in one space, and separate different samples.

    This is a loss, not a fusion: `forward` returns the loss, and `embed` returns one vector for
    each modality, which a fusion can take as input.

        z_k   = v_k / |v_k|,  v_k = Pool(x_k W_k + b_k)        mean over real steps
        S_jk  = s * z_j z_k^T                                  (samples, samples)
        L_jk  = (CE(S_jk, diagonal) + CE(S_jk^T, diagonal)) / 2
        L     = mean of L_jk over the pairs j < k that at least two samples have

    with the learned inverse temperature ``s = 100 * sigmoid(scale)``. A pair is computed over the
    samples that have both modalities. CE is the mean cross-entropy with each sample as its own
    class. Source: CLIP, arXiv 2103.00020, section 2.3, for every pair of modalities.

    Differences from the paper: a sigmoid keeps ``s`` below 100, instead of clipping, which would
    stop its gradient.

    Args:
        modalities: Name and width of each modality, at least two: a mapping or a sequence of pairs.
        embed_dim: Width of the shared space.
        temperature: Initial value of ``1 / s``, above 0.01.
        device: Device of the parameters.
        dtype: Floating-point type of the parameters.

    Raises:
        ValueError: If a name, a size or the temperature is invalid.

    Examples:
        >>> align = ContrastiveAlignment({"text": 6, "audio": 5}, embed_dim=8)
        >>> features = {"text": torch.randn(4, 7, 6), "audio": torch.randn(4, 11, 5)}
        >>> align(features).shape, align.embed(features)["audio"].shape
        (torch.Size([]), torch.Size([4, 8]))
    """

    _owner = OWNER
    _shown = ("temperature",)
    temperature: float
    scale: nn.Parameter

    def __init__(
        self,
        modalities: Modalities,
        *,
        embed_dim: int,
        temperature: float = 0.07,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        declared = check_modalities(OWNER, modalities, fewest=2)
        expect_size(OWNER, "embed_dim", embed_dim)
        least = 1 / LARGEST_SCALE
        rule = f"a finite number above {least}"
        expect_number(OWNER, "temperature", temperature, rule, above=least)
        where: Where = {"device": device, "dtype": dtype}
        super().__init__(declared, embed_dim, **where)
        self.temperature = temperature
        logit = -math.log(LARGEST_SCALE * temperature - 1)
        self.scale = nn.Parameter(torch.tensor(logit, **where))

    @override
    def forward(
        self,
        features: Mapping[str, Tensor | None],
        *,
        masks: Mapping[str, Tensor | None] | None = None,
        present: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of a batch.

        Args:
            features: Features of each modality, as in `GatedRecurrentFusion.forward`.
            masks: Real steps of each modality, as in `GatedRecurrentFusion.forward`.
            present: Which samples have which modality, as in `GatedRecurrentFusion.forward`.

        Returns:
            The loss, 0 if no pair has two samples.

        Shape:
            - features: ``(batch, time_k, d_k)`` each, lengths independent
            - masks: ``(batch, time_k)`` each
            - present: ``(batch, modalities)``
            - output: ``()``

        Raises:
            ShapeError: If a name, shape, mask, dtype or device is wrong.
        """
        received = self._receive(features, masks, present)
        vectors = {name: _normalise(part) for name, part in received.items()}
        scale = LARGEST_SCALE * self.scale.sigmoid()
        losses: list[Tensor] = []
        counted: list[Tensor] = []
        for one, other in itertools.combinations(self.modalities, 2):
            both = received[one].present & received[other].present
            losses.append(_pair_loss(scale * (vectors[one] @ vectors[other].T), both))
            counted.append(both.sum() >= 2)
        pairs = torch.stack(counted)
        return torch.stack(losses).masked_fill(~pairs, 0.0).sum() / pairs.sum().clamp(min=1)

    def embed(
        self,
        features: Mapping[str, Tensor | None],
        *,
        masks: Mapping[str, Tensor | None] | None = None,
        present: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return the vectors in the shared space, for retrieval or for a fusion.

        Args:
            features: As in `forward`.
            masks: As in `forward`.
            present: As in `forward`.

        Returns:
            Vectors of length 1 for each modality, 0 if a sample lacks it.

        Shape:
            - output: ``(batch, embed_dim)`` each

        Raises:
            ShapeError: If a name, shape, mask, dtype or device is wrong.
        """
        received = self._receive(features, masks, present)
        return {name: _normalise(part) for name, part in received.items()}


def _normalise(part: Received) -> Tensor:
    return F.normalize(part.pool(), dim=-1, eps=SHORTEST)


def _pair_loss(scores: Tensor, both: Tensor) -> Tensor:
    """Return the loss of a pair; the negatives are the other samples that have both."""
    # `len(both)` would fix the batch size of an exported program.
    own = torch.arange(both.shape[0], device=both.device).masked_fill(~both, IGNORED)
    # A softmax over only -inf is NaN. If no sample has both, all rows are ignored instead.
    outside = ~unmask_empty(both)
    losses = [
        F.cross_entropy(logits.masked_fill(outside, -torch.inf), own, reduction="sum")
        for logits in (scores, scores.T)
    ]
    return torch.stack(losses).mean() / both.sum().clamp(min=1)
