"""Cost of methods: time of a step, and the needs of MulT where it does not fit."""

import functools
import gc
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from benchmarks.common import clock
from benchmarks.common.peers import Contestant
from benchmarks.quality.datasets.dataset import Dataset
from benchmarks.quality.methods import GRF, Method, methods, parameters
from benchmarks.quality.models.builders import heads, stack_dim
from benchmarks.quality.network import build
from benchmarks.quality.run import Job, Settings, jobs_of
from benchmarks.quality.steps import LIMIT, calls
from benchmarks.quality.store import Record, Store, dataset_key, digest
from grf_fusion.baselines import MulT

REPEATS = 11
TIMED = ("baseline", "grf", "ablation")
# Weight, gradient and AdamW's two moments in float32.
BYTES_A_PARAMETER = 16
MEMORY_LAYERS = 3


def measure(
    dataset: Dataset, settings: Settings, store: Store, chosen: Callable[[Method], bool]
) -> None:
    """Time a training step and an inference of all chosen methods in turns, on one batch each.

    If one was not timed, all are timed again: times of different calls cannot be compared.
    """
    timed: dict[str, tuple[Job, Record, Record]] = {}
    for name, job in jobs_of(dataset, settings, store).items():
        if job.method.group in TIMED and chosen(job.method) and not job.too_large():
            best = job.chosen()
            if best is None:
                continue
            where = {"device": settings.device, "threads": settings.threads}
            record = job.record("cost", rate=best["rate"], width=best["width"], **where)
            timed[name] = job, best, record
    if all(record["key"] in store for _, _, record in timed.values()):
        return
    steps, reads = {}, {}
    for name, (job, best, _) in timed.items():
        steps[name], reads[name] = calls(
            dataset, job.method, best["rate"], best["width"], settings.device
        )
    options = {"repeats": REPEATS, "limit": LIMIT, "device": settings.device}
    results = {"training": clock.race(steps, **options), "inference": clock.race(reads, **options)}
    for name, (_, _, record) in timed.items():
        for figure, of_all in results.items():
            found = of_all[name]
            record[figure] = found if isinstance(found, str) else found._asdict()
        store.add(record | {"batch": dataset.budget.batch})
    del steps, reads
    gc.collect()


def bill(dataset: Dataset, store: Store) -> None:
    """Record the needs of MulT and GRF: stacks, weights, memory, operations per batch."""
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
    of_mult = functools.partial(mult_operations, dataset.modalities, padded, width)
    # Parameters and operations.
    needs = {
        "MulT": (parameters(known["MulT"], dataset, width), len(index) * of_mult(narrow)),
        "GRF": (
            parameters(known[GRF], dataset, width),
            clock.flops(contestant, batch.features, batch.masks),
        ),
    }
    if narrow != width:
        # As wide as ours, as in the code of its authors.
        with torch.device("meta"):
            mult = MulT(dataset.modalities, embed_dim=width, num_heads=heads(width), num_layers=1)
        wide = sum(parameter.numel() for parameter in mult.parameters())
        needs["MulT, as wide"] = wide, len(index) * of_mult(width)
    record: dict[str, Any] = {
        "key": key,
        "stage": "bill",
        "dataset": dataset.name,
        "dataset key": dataset_key(dataset),
        "width": width,
        "batch": len(index),
        "stacks": count * (count - 1),
        "stack width": narrow,
    }
    for name, (number, operations) in needs.items():
        record[name] = {
            "parameters": number,
            "operations": operations,
            "bytes": BYTES_A_PARAMETER * number,
        }
    store.add(record)


def mult_operations(
    modalities: Mapping[str, int], lengths: Iterable[int], embed_dim: int, dim: int
) -> int:
    """Count the operations of MulT with one layer per pairwise stack for one padded sample."""
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
