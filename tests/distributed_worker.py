"""What one of several processes does; started by tests/test_distributed.py through torchrun.

Each process has its part of a batch, in which other modalities are absent than elsewhere. What
comes out is held against one process that has the whole batch.
"""

import copy
import itertools
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import parallelize_module
from torch.nn.parallel import DistributedDataParallel

from grf_fusion import GatedRecurrentFusion
from grf_fusion.parallel import tensor_parallel_plan

WIDTHS = {"text": 7, "image": 11, "audio": 13}
TIMES = {"text": 5, "image": 3, "audio": 4}
EMBED, HEADS, EACH, STEPS = 24, 4, 3, 4
TOLERANCE = 1e-5
FORMS: dict[str, dict[str, Any]] = {
    "pooled": {},
    "residual, own weights": {"form": "residual", "share_weights": False},
    "learned, own weights": {"opening": "learned", "share_weights": False},
    "sequence, linear": {"context": "sequence", "self_attention": "linear"},
    "checkpointed": {"form": "residual", "checkpoint": True, "norm_first": True},
}


class Model(nn.Module):
    """A fusion with a head."""

    def __init__(self, form: str) -> None:
        super().__init__()
        options = FORMS[form]
        self.fusion = GatedRecurrentFusion(WIDTHS, embed_dim=EMBED, num_heads=HEADS, **options)
        self.head = nn.Linear(EMBED, 1)

    def forward(self, **given: Any) -> Tensor:
        fused = self.fusion(**given)
        return self.head(fused if fused.ndim == 2 else fused.sum(dim=1) / TIMES["text"])


def make_model(form: str) -> Model:
    torch.manual_seed(1)
    model = Model(form)
    # As after a first batch: each process would measure its own part of it.
    for name, buffer in model.named_buffers():
        if name.endswith(".rms"):
            buffer.fill_(1.5)
    return model


def make_batch(step: int, world: int) -> dict[str, Tensor]:
    """The whole batch of a step; of each process's samples another modality is absent."""
    generator = torch.Generator().manual_seed(step)
    size = world * EACH
    batch = {
        name: torch.randn(size, TIMES[name], width, generator=generator)
        for name, width in WIDTHS.items()
    }
    present = torch.rand(size, len(WIDTHS), generator=generator) > 0.3
    for rank in range(world):
        present[rank * EACH : (rank + 1) * EACH, (rank + step) % len(WIDTHS)] = False
    return batch | {"present": present, "target": torch.randn(size, 1, generator=generator)}


def call_of(batch: dict[str, Tensor], rows: slice, *, leave_out: bool) -> dict[str, Any]:
    """The arguments for some samples; what all of them lack may be left out of the mapping."""
    present = batch["present"][rows]
    features = {name: batch[name][rows].clone() for name in WIDTHS}
    for name, column in zip(WIDTHS, present.unbind(1), strict=True):
        features[name][~column] = float("nan")
        # Somebody has to tell how many samples there are.
        if leave_out and not column.any() and len(features) > 1:
            del features[name]
    return {"features": features, "present": present}


def loss_of(model: nn.Module, batch: dict[str, Tensor], rows: slice, *, leave_out: bool) -> Tensor:
    fused = model(**call_of(batch, rows, leave_out=leave_out))
    return (fused - batch["target"][rows]).pow(2).mean()


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def alone(form: str, world: int) -> Iterator[float]:
    """The losses of one process with the whole batch."""
    model = make_model(form)
    optimizer = optimizer_of(model)
    for step in range(STEPS):
        batch = make_batch(step, world)
        loss = loss_of(model, batch, slice(None), leave_out=False)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.item()


def together(model: nn.Module, rank: int, world: int, *, accumulate: bool) -> Iterator[float]:
    """The mean losses of all processes, each with its part of the batch."""
    optimizer = optimizer_of(model)
    mine = [slice(rank * EACH, (rank + 1) * EACH)]
    if accumulate:
        mine = [slice(k, k + 1) for k in range(rank * EACH, (rank + 1) * EACH)]
    for step in range(STEPS):
        batch = make_batch(step, world)
        optimizer.zero_grad()
        total = torch.zeros(())
        for rows in mine:
            # Half of the processes leave out what they lack, the others say so by `present`.
            loss = loss_of(model, batch, rows, leave_out=rank % 2 == 0) / len(mine)
            loss.backward()
            total += loss.detach()
        optimizer.step()
        dist.all_reduce(total)
        yield total.item() / world


def assert_close(found: Iterator[float], wanted: Iterator[float]) -> None:
    for step, (got, want) in enumerate(zip(found, wanted, strict=True)):
        assert abs(got - want) <= TOLERANCE * max(1.0, abs(want)), f"step {step}: {got}, not {want}"


def ddp(form: str, rank: int, world: int, _folder: Path) -> None:
    """With default settings: every parameter has a gradient on every rank."""
    for accumulate in (False, True):
        model = DistributedDataParallel(make_model(form))
        assert_close(together(model, rank, world, accumulate=accumulate), alone(form, world))


def shard(model: Model) -> Model:
    for name, part in model.fusion.named_children():
        if name in {"block", "unit"}:
            fully_shard(part)
        elif name in {"blocks", "units"}:
            for child in part.values():
                fully_shard(child)
    return fully_shard(model)


def fsdp(form: str, rank: int, world: int, _folder: Path) -> None:
    for accumulate in (False, True):
        model = shard(make_model(form))
        assert any(isinstance(p, DTensor) for p in model.parameters())
        assert_close(together(model, rank, world, accumulate=accumulate), alone(form, world))


def save(form: str, rank: int, world: int, folder: Path) -> None:
    """Train sharded and save: a distributed checkpoint, and the plain parameters beside it."""
    model = shard(make_model(form))
    list(together(model, rank, world, accumulate=False))
    dcp.save({"model": get_model_state_dict(model)}, checkpoint_id=folder / "sharded")
    full = get_model_state_dict(
        model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    if rank == 0:
        torch.save(full, folder / "plain.pt")


def load(form: str, _rank: int, world: int, folder: Path) -> None:
    """Load it on another number of processes."""
    model = make_model(form)
    model = model if world == 1 else shard(model)
    state = {"model": get_model_state_dict(model)}
    dcp.load(state, checkpoint_id=folder / "sharded")
    set_model_state_dict(model, state["model"])
    found = get_model_state_dict(
        model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    wanted = torch.load(folder / "plain.pt", weights_only=True)
    if dist.get_rank() == 0:
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], value) for name, value in wanted.items())


def tensor_parallel(form: str, _rank: int, world: int, _folder: Path) -> None:
    """All processes see the same batch, and each computes some of the heads."""
    for accumulate in (False, True):
        model = make_model(form)
        mesh = init_device_mesh("cpu", (world,))
        if model.fusion.form == "summary":
            # Without a block there is no layer that is worth dividing.
            with pytest.raises(ValueError, match="to hold a block"):
                tensor_parallel_plan(model)
            return
        plan = tensor_parallel_plan(model)
        split = parallelize_module(copy.deepcopy(model), mesh, plan)
        divided = sum(isinstance(p, DTensor) for p in split.parameters())
        assert divided >= len(plan)
        local = sum(
            (p.to_local() if isinstance(p, DTensor) else p).numel() for p in split.parameters()
        )
        assert local < sum(p.numel() for p in model.parameters())
        # As one process with the batch of one.
        assert_close(together_same(split, accumulate=accumulate), alone(form, 1))


def together_same(model: nn.Module, *, accumulate: bool) -> Iterator[float]:
    optimizer = optimizer_of(model)
    parts = [slice(k, k + 1) for k in range(EACH)] if accumulate else [slice(None)]
    for step in range(STEPS):
        batch = make_batch(step, 1)
        optimizer.zero_grad()
        total = 0.0
        for rows in parts:
            loss = loss_of(model, batch, rows, leave_out=False) / len(parts)
            loss.backward()
            total += loss.item()
        optimizer.step()
        yield total


CASES: dict[str, Callable[[str, int, int, Path], None]] = {
    "ddp": ddp,
    "fsdp": fsdp,
    "save": save,
    "load": load,
    "tensor parallel": tensor_parallel,
}


def main() -> None:
    cases, folder, *forms = sys.argv[1:]
    torch.set_num_threads(1)
    # A process that waits for another that does not come says so within this time.
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    for case, form in itertools.product(cases.split(","), forms or FORMS):
        CASES[case](form, dist.get_rank(), dist.get_world_size(), Path(folder))
        sys.stdout.write(f"rank {dist.get_rank()}: {case}, {form}: done\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
