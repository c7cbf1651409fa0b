"""What methods cost: time of a step in turns, and what MulT would need where it does not fit."""

import gc
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import clock
from benchmarks.common.peers import Contestant
from benchmarks.quality.data import Dataset
from benchmarks.quality.methods import GRF, Method, heads, methods, parameters, stack_dim
from benchmarks.quality.run import Job, Settings, jobs_of
from benchmarks.quality.store import Record, Store, dataset_key, digest
from benchmarks.quality.train import Learner, Network, build
from grf_fusion.baselines import MulT

REPEATS, FEW_REPEATS, LIMIT = 11, 3, 60.0
TIMED = ("baseline", "grf", "ablation", "rival")
# Weight, gradient and AdamW's two moments, float32.
BYTES_A_PARAMETER = 16
MEMORY_LAYERS = 3


def measure(
    dataset: Dataset, settings: Settings, store: Store, chosen: Callable[[Method], bool]
) -> None:
    """Time a training step and an inference of all chosen methods in turns, on one batch each.

    Where one was not timed, all are timed again: times of different calls are not compared.
    """
    timed: dict[str, tuple[Job, Record, Record]] = {}
    for name, job in jobs_of(dataset, settings, store).items():
        if job.method.group in TIMED and chosen(job.method) and not job.too_large():
            best = job.chosen()
            if best is None:
                continue
            where = {"device": job.settings.device, "threads": job.settings.threads}
            record = job.record("cost", rate=best["rate"], width=best["width"], **where)
            timed[name] = job, best, record
    if all(record["key"] in job.store for job, _, record in timed.values()):
        return
    steps, reads = {}, {}
    for name, (job, best, _) in timed.items():
        steps[name], reads[name] = _calls(job.dataset, job.method, best, job.settings.device)
    options = {"repeats": REPEATS, "limit": LIMIT, "device": settings.device}
    results = {"training": clock.race(steps, **options), "inference": clock.race(reads, **options)}
    for name, (job, _, record) in timed.items():
        for figure, of_all in results.items():
            found = of_all[name]
            record[figure] = found if isinstance(found, str) else found._asdict()
        batch = job.dataset.budget.batch
        job.store.add(record | {"batch": batch})
    del steps, reads
    gc.collect()


def steps(
    timed: Iterable[Method], dataset: Dataset, rate: float, width: int, settings: Settings
) -> dict[str, float]:
    """Return the median seconds of a training step of each method, timed in turns."""
    chosen, device = {"rate": rate, "width": width}, settings.device
    calls = {method.name: _calls(dataset, method, chosen, device)[0] for method in timed}
    found = clock.race(calls, repeats=FEW_REPEATS, limit=LIMIT, device=device)
    return {
        name: math.inf if isinstance(timing, str) else timing.median
        for name, timing in found.items()
    }


def _calls(
    dataset: Dataset, method: Method, best: Record, device: str
) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return a training step, optimiser included, and an inference, of the same random batch."""
    torch.manual_seed(0)
    model = build(method, dataset, best["width"], device)
    network = Network(model, list(method.modalities(dataset)), list(dataset.modalities))
    learner = Learner(network, method, dataset, best["rate"], 0)
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


def bill(dataset: Dataset, store: Store) -> None:
    """Write down what MulT needs beside ours: stacks, weights, memory, operations a batch."""
    known = methods(dataset)
    width = min(width for _, width in dataset.budget.trials)
    key = digest(dataset_key(dataset), "bill", width)
    if key in store:
        return
    part, count = dataset.parts["train"], len(dataset.modalities)
    index = torch.arange(min(len(part), dataset.budget.batch))
    batch = part.to("cpu").batch(index)
    lengths = {name: x.shape[1] for name, x in batch.features.items()}
    padded = [lengths.get(name, 1) for name in dataset.modalities]
    narrow = stack_dim(count, width)
    ours = build(known[GRF], dataset, width).eval()
    contestant = Contestant(ours, lambda *_: ours(batch, batch.present)[0])
    record: dict[str, Any] = {
        "key": key,
        "stage": "bill",
        "dataset": dataset.name,
        "dataset key": dataset_key(dataset),
        "width": width,
        "batch": len(index),
        "stacks": count * (count - 1),
        "stack width": narrow,
        "MulT": {
            "parameters": parameters(known["MulT"], dataset, width),
            "operations": len(index) * mult_operations(dataset.modalities, padded, width, narrow),
        },
        "GRF": {
            "parameters": parameters(known[GRF], dataset, width),
            "operations": clock.flops(contestant, batch.features, batch.masks),
        },
    }
    if narrow != width:
        # As wide as ours, as its authors have it.
        wide = sum(p.numel() for p in _mult_as_wide(dataset, width).parameters())
        operations = len(index) * mult_operations(dataset.modalities, padded, width, width)
        record["MulT, as wide"] = {"parameters": wide, "operations": operations}
    for name in ("MulT", "MulT, as wide", "GRF"):
        if name in record:
            record[name]["bytes"] = BYTES_A_PARAMETER * record[name]["parameters"]
    store.add(record)


def _mult_as_wide(dataset: Dataset, width: int) -> torch.nn.Module:
    with torch.device("meta"):
        return MulT(dataset.modalities, embed_dim=width, num_heads=heads(width), num_layers=1)


def mult_operations(
    modalities: Mapping[str, int], lengths: Iterable[int], embed_dim: int, dim: int
) -> int:
    """Count the operations of MulT with one layer a pairwise stack, of one padded sample."""
    times = list(lengths)
    count = len(times)
    wide = (count - 1) * dim
    fused = count * wide
    total = sum(2 * t * d * dim for t, d in zip(times, modalities.values(), strict=True))
    for i, queries in enumerate(times):
        for j, keys in enumerate(times):
            if i != j:
                total += _layer_operations(queries, keys, dim)
        total += MEMORY_LAYERS * _layer_operations(queries, queries, wide)
    return total + 2 * (2 * fused**2 + fused * embed_dim)


def _layer_operations(queries: int, keys: int, dim: int) -> int:
    projections = 2 * (2 * queries + 2 * keys) * dim**2
    return projections + 2 * 2 * queries * keys * dim + 2 * 8 * queries * dim**2
