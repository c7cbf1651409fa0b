"""Validation and test of a trained model, the same for every method."""

import statistics
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.quality import metrics, predictions
from benchmarks.quality.datasets.dataset import Dataset
from benchmarks.quality.methods import Method, orders
from benchmarks.quality.network import Network, Predictor, Trained

# Draws of missing modalities per point of the curve; one if there are many samples.
DRAWS, MANY_SAMPLES = 3, 1000
# Different from the draws above.
VALIDATION_DRAW = 1_000


def validate(
    predictor: Predictor, method: Method, dataset: Dataset
) -> tuple[dict[str, float], float | None]:
    """Return the validation metrics and the threshold chosen on validation data.

    Metrics are the mean of all modalities present and about half missing, as in the test. The
    threshold is chosen with all modalities present.
    """
    part = dataset.parts["validation"]
    labels, complete = part.labels.cpu().numpy(), predictor(part, None)
    threshold = None
    if dataset.task.kind == "binary":
        threshold = metrics.best_threshold(complete.astype(np.float64), labels)
    found = [metrics.measure(dataset.task, complete, labels, threshold)]
    if method.only is None:
        half = predictor(part, keep(part.present.cpu(), dataset.half, VALIDATION_DRAW))
        found.append(metrics.measure(dataset.task, half, labels, threshold))
    return {name: statistics.fmean(one[name] for one in found) for name in found[0]}, threshold


def evaluate(
    trained: Trained, method: Method, dataset: Dataset, *, test_orders: bool = False
) -> dict[str, Any]:
    """Return the test metrics with modalities missing and, optionally, in other orders."""
    part, task = dataset.parts["test"], dataset.task
    labels = part.labels.cpu().numpy()
    kept: dict[str, list[str]] = {}

    def measured(present: Tensor | None, gone: int | None = None) -> dict[str, float]:
        scores = trained.predictor(part, present)
        if gone in (0, dataset.half):
            kept.setdefault(str(gone), []).append(predictions.pack(task, scores, labels))
        return metrics.measure(task, scores, labels, trained.threshold)

    complete = measured(None, 0)
    result: dict[str, Any] = {"test": complete, "predictions": kept}
    if method.only is None and method.group != "order":
        result["missing"] = {"0": complete[task.primary]}
        draws = DRAWS if len(part) < MANY_SAMPLES else 1
        for gone in dataset.missing[1:]:
            found = [
                measured(keep(part.present.cpu(), gone, draw), gone)[task.primary]
                for draw in range(draws)
            ]
            result["missing"][str(gone)] = float(np.mean(found))
    if test_orders and isinstance(trained.predictor, Network):
        network, own = trained.predictor, trained.predictor.order
        result["orders"] = []
        for order in orders(list(dataset.modalities)):
            network.order = order
            result["orders"].append(measured(None)[task.primary])
        network.order = own
    return result


def keep(present: Tensor, gone: int, draw: int) -> Tensor:
    """Keep at most ``n - gone`` of the modalities of each sample, at random.

    The seed is `draw`, so the result is the same for every method. A sample with fewer keeps all.
    """
    luck = torch.rand(present.shape, generator=torch.Generator().manual_seed(draw))
    places = luck.masked_fill(~present, 2.0).argsort(dim=1).argsort(dim=1)
    return present & (places < present.shape[1] - gone)
