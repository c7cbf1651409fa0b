"""Every form of what fuses, and a call of it, for tests on one device or another."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from grf_fusion import GatedRecurrentFusion
from grf_fusion.baselines import (
    ConcatFusion,
    ContrastiveAlignment,
    CrossModalAttentionFusion,
    MulT,
    WeightedSumFusion,
)

WIDTHS = {"text": 7, "image": 11, "audio": 13}
TIMES = {"text": 4, "image": 9, "audio": 6}
BATCH, DIM, HEADS = 5, 12, 3
RESIDUAL: dict[str, Any] = {"form": "residual"}
FUSIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "two layers of a summary": {"num_layers": 2},
    "summary, opening with the first": {"opening": "first"},
    "summary, own weights": {"share_weights": False},
    "residual": RESIDUAL,
    "paper": {"form": "paper"},
    "paper, pre-norm": {"form": "paper", "norm_first": True},
    "opening with the first": RESIDUAL | {"opening": "first"},
    "first sequence": {"context": "first_sequence"},
    "sequence": {"context": "sequence"},
    "paper, sequence": {"form": "paper", "context": "sequence"},
    "linear attention": {"context": "sequence", "self_attention": "linear"},
    "full attention": {"context": "sequence", "self_attention": True},
    "own weights": RESIDUAL | {"share_weights": False},
    "two layers": RESIDUAL | {"num_layers": 2},
    "one-way": RESIDUAL | {"symmetric": False},
    "padded": RESIDUAL | {"packing": False},
    "checkpointing": RESIDUAL | {"checkpoint": True},
}
BASELINES: dict[str, tuple[Callable[..., nn.Module], dict[str, Any]]] = {
    "concatenation": (ConcatFusion, {"dropout": 0.2}),
    "early": (ConcatFusion, {"stage": "early", "num_heads": HEADS, "dropout": 0.2}),
    "sigmoid": (WeightedSumFusion, {}),
    "softmax": (WeightedSumFusion, {"weights": "softmax"}),
    "fixed": (WeightedSumFusion, {"weights": {"text": 1, "image": 2, "audio": 0.5}}),
    "cross-modal": (CrossModalAttentionFusion, {"num_heads": HEADS, "dropout": 0.2}),
    "mult": (MulT, {"num_heads": HEADS, "num_layers": 2, "dropout": 0.2}),
    "alignment": (ContrastiveAlignment, {}),
}


def make(form: str, **options: Any) -> nn.Module:
    """A fusion or a baseline, by the name of its form; ``options`` go before the form's."""
    if form in FUSIONS:
        return GatedRecurrentFusion(
            WIDTHS, **{"embed_dim": DIM, "num_heads": HEADS} | FUSIONS[form] | options
        )
    kind, own = BASELINES[form]
    return kind(WIDTHS, **{"embed_dim": DIM} | own | options)


def without_dropout(form: str) -> dict[str, Any]:
    """The options that make a form compute the same twice in training."""
    has_dropout = form in FUSIONS or "dropout" in BASELINES[form][1]
    return {"dropout": 0.0} if has_dropout else {}


def make_call(
    device: torch.device,
    *,
    dtype: torch.dtype = torch.float32,
    batch: int = BATCH,
    times: Mapping[str, int] = TIMES,
    seed: int = 0,
) -> dict[str, Any]:
    """Features with NaN where they are masked or absent, masks with holes, and presence.

    Drawn on the CPU, so that it is the same on every device. The first sample has nothing, and the
    last has everything.
    """
    generator = torch.Generator("cpu").manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu")

    features, masks = {}, {}
    present = draw(batch, len(times)) > 0.3
    present[0], present[-1] = False, True
    for (name, time), column in zip(times.items(), present.unbind(1), strict=True):
        mask = draw(batch, time) > 0.3
        mask[-1] = True
        values = 2 * draw(batch, time, WIDTHS[name]) - 1
        values[~mask | ~column.unsqueeze(1)] = float("nan")
        features[name], masks[name] = values.to(device, dtype), mask.to(device)
    return {"features": features, "masks": masks, "present": present.to(device)}
