"""Train examples/hydraulic.py on several processes, whose batches lack different sensors.

    torchrun --nproc-per-node=2 examples/distributed.py --data FOLDER

PyTorch's `DistributedDataParallel` with its default settings: an absent sensor leaves a gradient of
zero behind, not none, so that no process waits for another. On GPUs start it the same way: it
takes NCCL and a device for each process where there are any.
"""

import argparse
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist
from hydraulic import BATCH, LEARNING_RATE, SENSORS, TARGETS, WEIGHT_DECAY, Monitor, evaluate, load
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel


def main() -> None:
    """Train, and print accuracy on validation from the first process."""
    workshop = Path(__file__).resolve().parents[2] / "shared" / "data"
    data = Path(os.environ.get("GRF_FUSION_DATA", workshop)) / "hydraulic"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=data, help="folder of the data, or the .npz")
    parser.add_argument("--epochs", type=int, default=40)
    options = parser.parse_args()

    cuda = torch.cuda.is_available()
    dist.init_process_group("nccl" if cuda else "gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    torch.set_num_threads(1)
    start = time.perf_counter()
    cycles = load(options.data)
    train, validation, _ = cycles.parts

    torch.manual_seed(0)  # the same weights everywhere
    model = DistributedDataParallel(Monitor().to(device))
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    steps = len(train) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=options.epochs * steps, pct_start=0.1
    )
    shuffle = torch.Generator().manual_seed(1)  # the same order everywhere
    torch.manual_seed(rank)  # other sensors dropped on each
    for epoch in range(options.epochs):
        mixed = train[torch.randperm(len(train), generator=shuffle)]
        for batch in mixed.split(BATCH)[:steps]:
            mine = batch.tensor_split(world)[rank]
            present = torch.ones(len(mine), len(SENSORS), dtype=torch.bool, device=device)
            scores = model(cycles.features[mine].to(device), present)
            losses = [
                F.cross_entropy(scores[t], cycles.labels[t][mine].to(device)) for t in TARGETS
            ]
            loss = torch.stack(losses).sum()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        if rank == 0 and (epoch + 1) % max(1, options.epochs // 4) == 0:
            print(f"epoch {epoch + 1}, loss {loss.item():.3f}", flush=True)
    if rank == 0:
        accuracy = evaluate(model.module.cpu().eval(), cycles, validation)
        for target, by_missing in accuracy.items():
            row = ", ".join(f"{gone} missing {value:.3f}" for gone, value in by_missing.items())
            print(f"{target} on validation: {row}")
        print(f"{world} processes, {time.perf_counter() - start:.0f} s")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
