"""A long training run: every batch lacks something else, has other lengths and another order."""

import gc
import itertools
import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from grf_fusion import GatedRecurrentFusion, ModalityDropout
from hosts import counters

# 2,000 is the full soak, minutes long; on CI a part of it.
STEPS = int(os.environ.get("GRF_FUSION_SOAK", "100"))
# What libraries keep for shapes that they have seen is there after 30.
WARM_UP = max(40, STEPS // 5)
WIDTHS = {"text": 7, "image": 11, "audio": 13}
ORDERS = list(itertools.permutations(WIDTHS))
EMBED, HEADS = 24, 3
# Of the resident memory, which the allocator rounds and fragments.
MOST_GROWTH = 48 * 2**20


def make_batch(step: int, order: tuple[str, ...]) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(step)
    batch, *times = torch.randint(2, 24, (1 + len(WIDTHS),), generator=generator).tolist()
    if step < len(ORDERS):
        # Of the first call PyTorch takes sizes that are equal for equal ever after.
        batch, *times = 19, 29, 31, 37
    features, masks = {}, {}
    for (name, width), time in zip(WIDTHS.items(), times, strict=True):
        features[name] = torch.randn(batch, time, width, generator=generator)
        masks[name] = torch.rand(batch, time, generator=generator) > 0.3
        features[name][~masks[name]] = float("nan")
    present = torch.rand(batch, len(WIDTHS), generator=generator) > 0.3
    for name, column in zip(WIDTHS, present.unbind(1), strict=True):
        features[name][~column] = float("inf")
    return {"features": features, "masks": masks, "present": present, "order": order}


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text("utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def tensors() -> int:
    gc.collect()
    # By type: asking some of what PyTorch holds for its class warns.
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    counters().clear()
    yield
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "precision"),
    [
        ("eager", "float32"),
        ("eager", "bfloat16 autocast"),
        ("compiled", "float32"),
        ("compiled", "bfloat16 autocast"),
    ],
)
# inductor's own use of its logs
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_long_training(how: str, precision: str) -> None:
    fusion = GatedRecurrentFusion(WIDTHS, embed_dim=EMBED, num_heads=HEADS, dropout=0.1)
    head, drop = nn.Linear(EMBED, 1), ModalityDropout(0.2)
    run: Any = fusion
    orders = ORDERS
    if how == "compiled":
        # Each order is a graph of its own, which takes a minute.
        orders = ORDERS[:1]
        run = torch.compile(fusion, fullgraph=True, dynamic=True, backend="aot_eager")
    optimizer = torch.optim.AdamW([*fusion.parameters(), *head.parameters()], lr=1e-3)
    half = precision != "float32"
    # In bfloat16 oneDNN keeps code for each shape, and has met them all after some 200 steps; the
    # memory then stays the same (828 MiB after 200 steps, 830 after 400).
    warm_up = 220 if half and how == "eager" else WARM_UP
    steps = max(STEPS, warm_up + 80)
    graphs = memory = living = 0
    for step in range(steps):
        batch = make_batch(step, orders[step % len(orders)])
        batch["present"] = drop(batch["present"])
        with torch.autocast("cpu", dtype=torch.bfloat16) if half else nullcontext():
            fused = run(**batch)
            loss = head(fused).float().pow(2).mean() + fused.float().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        assert bool(loss.isfinite()), f"step {step}"
        assert all(bool(p.grad.isfinite().all()) for p in fusion.parameters()), f"step {step}"
        optimizer.step()
        if step == warm_up:
            del batch, fused, loss
            graphs, memory, living = counters()["stats"]["unique_graphs"], resident(), tensors()
    assert counters()["stats"]["unique_graphs"] == graphs
    assert graphs == (len(orders) if how == "compiled" else 0)
    assert resident() - memory < MOST_GROWTH
    del batch, fused, loss
    # One tensor a step that is kept would be all of the later steps.
    assert tensors() < living + (steps - warm_up) // 2
