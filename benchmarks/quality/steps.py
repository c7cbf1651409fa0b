"""Time a training step and an inference of all methods in turns, on one batch."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from benchmarks.common import clock
from benchmarks.quality.datasets.dataset import Dataset
from benchmarks.quality.methods import Method
from benchmarks.quality.train import Learner

FEW_REPEATS, LIMIT = 3, 60.0


def calls(
    dataset: Dataset, method: Method, rate: float, width: int, device: str
) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return calls of a training step with optimiser and of an inference, on one random batch."""
    learner = Learner.of(method, dataset, (rate, width), 0, device)
    network, model = learner.network, learner.network.model
    index = next(iter(learner.batches()))
    batch = dataset.parts["train"].batch(index, network.names)

    def step() -> None:
        model.train()
        learner.step(index)

    @torch.inference_mode()
    def read() -> Tensor:
        model.eval()
        return model(batch, batch.present, order=network.order)[0]

    return step, read


def seconds(
    methods: Iterable[Method], dataset: Dataset, rate: float, width: int, device: str
) -> dict[str, float]:
    """Return the median seconds of a training step of each method, timed in turns."""
    timed = {method.name: calls(dataset, method, rate, width, device)[0] for method in methods}
    found = clock.race(timed, repeats=FEW_REPEATS, limit=LIMIT, device=device)
    return {
        name: math.inf if isinstance(timing, str) else timing.median
        for name, timing in found.items()
    }
