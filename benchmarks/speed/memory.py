"""Peak memory of a training step, in a process of its own."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.common.clock import training_step
from benchmarks.speed.contestants import BUILDERS
from benchmarks.speed.workloads import DROPOUT, workloads

STATUS = Path("/proc/self/status")


def peak_memory(
    contestant: str, group: str, size: int, *, threads: int, limit: float, quick: bool
) -> int | str:
    """Return the bytes that a training step adds at its peak, in a process of its own."""
    task = [contestant, group, size, threads, quick]
    command = [sys.executable, "-m", "benchmarks.speed.memory", json.dumps(task)]
    try:
        done = subprocess.run(  # noqa: S603 (our own module)
            command, capture_output=True, text=True, timeout=60 + limit, check=False
        )
    except subprocess.TimeoutExpired:
        return f"longer than {limit:g} s"
    if done.returncode:
        if "memory" in done.stderr or done.returncode < 0:
            return "out of memory"
        raise RuntimeError(done.stderr)
    return int(done.stdout)


def measure_memory(task: str) -> int:
    """Measure in the new process, after a training step on two time steps to load the kernels."""
    contestant, group, size, threads, quick = json.loads(task)
    torch.set_num_threads(threads)
    candidates = workloads(quick=quick)[group[0]]
    workload = next(w for w in candidates if (w.group, w.size) == (group, size))
    torch.manual_seed(0)
    built = BUILDERS[contestant](workload.modalities, DROPOUT)
    built.module.train()
    features, masks = workload.draw()
    few = [{name: x[:1, :2] for name, x in (values or {}).items()} for values in (features, masks)]
    training_step(built, few[0], few[1] or None)()
    built.module.zero_grad(set_to_none=True)
    step = training_step(built, features, masks)
    before = _forget_peak()
    step()
    return _peak() - before


def _forget_peak() -> int:
    """Reset the peak if the system can (Linux), and return the memory in use now."""
    if STATUS.exists():
        Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    # A process inherits ru_maxrss from the one that started it; Linux's VmHWM is its own.
    if STATUS.exists():
        lines = STATUS.read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    sys.stdout.write(str(measure_memory(sys.argv[1])))
