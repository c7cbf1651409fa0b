"""All methods: single modalities, classical methods, baselines, GRF and its ablations."""

import dataclasses
import itertools
import random
from collections.abc import Mapping, Sequence

import torch

from benchmarks.quality.datasets.dataset import Dataset
from benchmarks.quality.models.builders import DROPOUT, FEW, Builder, Size, fusion, grf, mult
from benchmarks.quality.models.model import LateScores
from benchmarks.quality.models.rivals import (
    BottleneckTransformer,
    GatedMultimodalUnit,
    LatentTransformer,
    StatisticsConcatenation,
)
from grf_fusion.baselines import ConcatFusion, CrossModalAttentionFusion, WeightedSumFusion

ORDERS = 20
# MulT is not built with more than MOST_PARAMETERS. With more than MANY_PARAMETERS a step is timed,
# and a method that needs more than an hour for one training is skipped.
MOST_PARAMETERS = 100_000_000
MANY_PARAMETERS = 5_000_000
MOST_MINUTES = 60

GRF = "GRF"
CROSS = "cross-modal attention"
POOLED = "concatenation, pooled"
GROUPS = {
    "reference": "Classical methods on summary statistics",
    "baseline": "Baselines",
    "grf": "GRF and other configurations of it",
    "ablation": "GRF with one change",
    "single": "Each modality alone",
    "order": "GRF in other orders",
}


@dataclasses.dataclass(frozen=True)
class Training:
    """Training options of a method; all else is the same for all methods.

    Attributes:
        modality_dropout: Probability of dropping a modality of a sample.
        modulation: Strength of `modulate_gradients`, 0 for none.
        order: ``"declared"``, ``"random"`` (drawn at each step) or the number of one of `orders`.
        intermediate: Weight of the mean loss after each modality, 0 for none.
        test_orders: Whether the trained model is tested in all `orders`.
    """

    modality_dropout: float = 0.5
    modulation: float = 0.0
    order: str | int = "declared"
    intermediate: float = 0.0
    test_orders: bool = False


@dataclasses.dataclass(frozen=True)
class Method:
    """One row of the tables.

    Attributes:
        name: Its name.
        group: Key of `GROUPS`.
        build: Makes the fusion; ``None`` for classical methods.
        options: Options that distinguish its model, for the key of its runs.
        training: How it is trained.
        only: Its only modality, ``None`` for all.
        kinds: Kinds of task that it supports.
        tuned_as: Method whose chosen settings it uses instead of its own trials.
        seeds: Number of its seeds, ``None`` for the usual number.
    """

    name: str
    group: str
    build: Builder | None
    options: Mapping[str, object]
    training: Training = Training()
    only: str | None = None
    kinds: tuple[str, ...] = ("classes", "binary", "regression")
    tuned_as: str | None = None
    seeds: int | None = None

    def modalities(self, dataset: Dataset) -> dict[str, int]:
        """Return the modalities that it uses."""
        known = dataset.modalities
        return known if self.only is None else {self.only: known[self.only]}


BASELINES: dict[str, Builder] = {
    POOLED: fusion(ConcatFusion, "dropout", stage="pooled"),
    CROSS: fusion(CrossModalAttentionFusion, "num_heads", "dropout"),
    "bottleneck Transformer (MBT)": fusion(BottleneckTransformer, "num_heads", "dropout"),
    "latent Transformer (Perceiver)": fusion(LatentTransformer, "num_heads", "dropout"),
    "gated multimodal unit (GMU)": fusion(GatedMultimodalUnit),
    "concatenation, statistics": fusion(StatisticsConcatenation, "dropout"),
    "concatenation, early": fusion(ConcatFusion, "num_heads", "dropout", stage="early"),
    "scores multiplied": fusion(LateScores, "dropout", "task", how="product"),
    "scores averaged": fusion(LateScores, "dropout", "task", how="mean"),
    "concatenation, late": fusion(ConcatFusion, "dropout"),
    "weighted sum, softmax": fusion(WeightedSumFusion, weights="softmax"),
    "MulT": mult,
}
FIRST = {"opening": "first"}
PAPER: dict[str, object] = {"form": "paper"}
RESIDUAL: dict[str, object] = {"form": "residual"}
MODES: dict[str, dict[str, object]] = {
    "GRF, residual form": RESIDUAL,
    "GRF, as in the paper": PAPER,
    "GRF, opened by the first modality": FIRST,
    "GRF, residual form, sequence": RESIDUAL | FIRST | {"context": "sequence"},
}
ABLATIONS: dict[str, dict[str, object]] = {
    "GRF, mean without maximum": {"without": "maximum"},
    "GRF, maximum without mean": {"without": "mean"},
    "GRF, no scale of features": {"without": "scale"},
    "GRF, first modality times .01": {"times": 0.01},
    "GRF, first modality times 100": {"times": 100.0},
    "GRF, no scale, first modality times .01": {"without": "scale", "times": 0.01},
    "GRF, no norm of summaries": {"without": "norm"},
    "GRF, concat + linear for the unit": {"unit": "concat"},
    "GRF, own units": {"share_weights": False},
    "GRF, gate bias 0": {"gate_bias": 0.0},
    "GRF, two layers": {"num_layers": 2},
    "GRF, no dropout": {"dropout": 0.0},
}
# No modality dropout for models of one modality each: it would only remove samples.
OF_SINGLE_MODELS = ("scores multiplied", "scores averaged")
TRAININGS: dict[str, Training] = {
    "GRF, gradient modulation": Training(modulation=0.5),
    "GRF, order drawn at random": Training(order="random", test_orders=True),
    "GRF, loss after each modality": Training(intermediate=0.5),
}
CLASSICAL = {
    "{} regression on summaries": {"model": "linear", "copies": 0},
    "{} regression on summaries, modality dropout": {"model": "linear", "copies": 5},
    "gradient boosting on summaries": {"model": "boosting", "copies": 0},
}


def methods(dataset: Dataset) -> dict[str, Method]:
    """Return all methods for a data set, by name."""
    linear = "ridge" if dataset.task.kind == "regression" else "logistic"
    # Classical models have no encoders.
    found = [
        Method(name.format(linear), "reference", None, options)
        for name, options in CLASSICAL.items()
        if not dataset.encoded
    ]
    for name, build in BASELINES.items():
        training = Training(0.0) if name in OF_SINGLE_MODELS else Training()
        found.append(Method(name, "baseline", build, {"baseline": name}, training))
    found.append(_ours(GRF, "grf", {}, Training(test_orders=True)))
    found += [_ours(name, "grf", options) for name, options in MODES.items()]
    # Only one change: learning rate and width stay the same.
    like = {"tuned_as": GRF}
    found += [_ours(name, "ablation", options, **like) for name, options in ABLATIONS.items()]
    for name, training in TRAININGS.items():
        kinds = ("classes", "binary") if training.modulation else Method.kinds
        found.append(_ours(name, "ablation", {}, training, kinds=kinds, **like))
    for name in dataset.modalities:
        found.append(_ours(f"alone: {name}", "single", {}, Training(0), only=name, **like))
    for k in range(1, len(orders(list(dataset.modalities)))):
        name = f"GRF, order {k}"
        found.append(_ours(name, "order", {}, Training(order=k), tuned_as=GRF, seeds=1))
    return {m.name: m for m in found if dataset.task.kind in m.kinds}


def _ours(
    name: str,
    group: str,
    change: Mapping[str, object],
    training: Training = Training(),
    **fields: object,
) -> Method:
    return Method(name, group, grf(**change), change, training, **fields)


def orders(names: Sequence[str], count: int = ORDERS) -> list[tuple[str, ...]]:
    """Return the declared order and others: all for up to 3 modalities, otherwise random ones."""
    if len(names) <= FEW:
        return list(itertools.permutations(names))
    rng, found = random.Random(0), [tuple(names)]  # noqa: S311 (no secret)
    while len(found) <= count:
        order = tuple(rng.sample(list(names), len(names)))
        if order not in found:
            found.append(order)
    return found


def parameters(method: Method, dataset: Dataset, width: int) -> int:
    """Count the parameters of a fusion without allocating them."""
    if method.build is None:
        return 0
    with torch.device("meta"):
        fusion = method.build(Size(method.modalities(dataset), width, DROPOUT, dataset.task))
    return sum(parameter.numel() for parameter in fusion.parameters())
