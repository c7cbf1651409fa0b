"""A weighted sum of the modalities, with learned or fixed weights."""

from collections.abc import Mapping
from typing import Literal, cast

import torch
from torch import Tensor, nn
from typing_extensions import override

from grf_fusion._checks.arguments import expect_choice, expect_number, expect_size
from grf_fusion._checks.options import Modalities, Where, check_modalities
from grf_fusion._inputs.masks import unmask_empty
from grf_fusion.baselines._base import Baseline

OWNER = "WeightedSumFusion"


class WeightedSumFusion(Baseline):
    r"""Add up the modalities, each with one weight per sample.

        v_k = Pool(x_k W_k + b_k)                          mean over real steps, 0 if missing
        g   = [v_1; ...; v_n] W_g + b_g                    one score per modality
        "sigmoid":  w_k = sigmoid(g_k)
        "softmax":  w_k = exp(g_k) / sum of exp(g_j) over the present j
        fixed:      w_k = a_k * (sum of all a_j) / (sum of the present a_j)
        h   = sum of w_k v_k over the present k

    With ``"softmax"`` and with fixed weights, the weight of a missing modality is divided among the
    others in proportion. With ``"sigmoid"`` the weights are independent. If all modalities of a
    sample have a fixed weight of 0, the result is 0.

    Args:
        modalities: Name and width of each modality: a mapping or a sequence of pairs.
        embed_dim: Width of the projections and of the result.
        weights: ``"sigmoid"`` or ``"softmax"``, or a number of at least 0 for each modality, at
            least one of them above 0.
        device: Device of the parameters.
        dtype: Floating-point type of the parameters.

    Raises:
        ValueError: If a name, size or weight is invalid.

    Examples:
        >>> fusion = WeightedSumFusion({"text": 6, "audio": 5}, embed_dim=8, weights="softmax")
        >>> features = {"text": torch.randn(4, 7, 6), "audio": torch.randn(4, 11, 5)}
        >>> fused, weights = fusion(features, return_weights=True)
        >>> fused.shape, weights.shape
        (torch.Size([4, 8]), torch.Size([4, 2]))
    """

    _owner = OWNER
    _shown = ("weights",)
    weights: Literal["sigmoid", "softmax"] | dict[str, float]
    gate: nn.Linear | None
    fixed: Tensor | None

    def __init__(
        self,
        modalities: Modalities,
        *,
        embed_dim: int,
        weights: Literal["sigmoid", "softmax"] | Mapping[str, float] = "sigmoid",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        declared = check_modalities(OWNER, modalities)
        expect_size(OWNER, "embed_dim", embed_dim)
        chosen = _check_weights(weights, declared)
        where: Where = {"device": device, "dtype": dtype}
        super().__init__(declared, embed_dim, **where)
        self.weights = chosen
        self.gate = fixed = None
        if isinstance(chosen, str):
            count = len(declared)
            self.gate = nn.Linear(count * embed_dim, count, **where)
        else:
            fixed = torch.tensor(list(chosen.values()), **where)
        self.register_buffer("fixed", fixed)

    @override
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        features: Mapping[str, Tensor | None],
        *,
        masks: Mapping[str, Tensor | None] | None = None,
        present: Tensor | None = None,
        return_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Fuse a batch.

        Args:
            features: Features of each modality, as in `GatedRecurrentFusion.forward`.
            masks: Real steps of each modality, as in `GatedRecurrentFusion.forward`.
            present: Which samples have which modality, as in `GatedRecurrentFusion.forward`.
            return_weights: Whether to return the weights too; 0 for a missing modality.

        Returns:
            The fused vector, 0 for a sample without any modality, and, with
            ``return_weights=True``, the weights.

        Shape:
            - features: ``(batch, time_k, d_k)`` each, lengths independent
            - masks: ``(batch, time_k)`` each
            - present: ``(batch, modalities)``
            - output: ``(batch, embed_dim)``
            - weights: ``(batch, modalities)``, columns in declared order

        Raises:
            ShapeError: If a name, shape, mask, dtype or device is wrong.
        """
        received = self._receive(features, masks, present)
        vectors = torch.stack([part.pool() for part in received.values()], dim=1)
        here = torch.stack([part.present for part in received.values()], dim=1)
        weights = self._weigh(vectors.flatten(1), here)
        fused = (weights.unsqueeze(-1) * vectors).sum(dim=1)
        return (fused, weights) if return_weights else fused

    def _weigh(self, pooled: Tensor, here: Tensor) -> Tensor:
        if self.gate is None:
            fixed = cast(Tensor, self.fixed)
            shares = fixed.expand(here.shape).masked_fill(~here, 0.0)
            left = shares.sum(dim=1, keepdim=True)
            return shares * (fixed.sum() / left.masked_fill(left == 0, 1.0))
        scores = self.gate(pooled)
        if self.weights == "softmax":
            weights = scores.masked_fill(~unmask_empty(here), -torch.inf).softmax(dim=-1)
        else:
            weights = scores.sigmoid()
        return weights.masked_fill(~here, 0.0)


def _check_weights(
    weights: Literal["sigmoid", "softmax"] | Mapping[str, float], declared: Mapping[str, int]
) -> Literal["sigmoid", "softmax"] | dict[str, float]:
    if not isinstance(weights, Mapping):
        learned = ("sigmoid", "softmax")
        expect_choice(OWNER, "weights", weights, learned, also="a mapping of all modalities")
        return weights
    missing = [name for name in declared if name not in weights]
    unexpected = [name for name in weights if name not in declared]
    if missing or unexpected:
        raise ValueError(
            f"{OWNER}: expected `weights` to name each of {list(declared)}, "
            f"unexpected {unexpected}, missing {missing}."
        )
    for name, value in weights.items():
        rule = "a finite number of at least 0"
        expect_number(OWNER, f"weights[{name!r}]", value, rule, at_least=0)
    if not any(weights.values()):
        raise ValueError(f"{OWNER}: expected `weights` to hold a number above 0, got only 0.")
    return {name: float(weights[name]) for name in declared}
