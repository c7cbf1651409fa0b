"""A good citizen of PyTorch's distributed engine: on several processes what it is on one.

The processes talk by gloo over the loopback device; tests/distributed_worker.py is what they run.
"""

import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import nn

from distributed_worker import FORMS
from grf_fusion import SymmetricCrossAttentionBlock
from grf_fusion.parallel import tensor_parallel_plan
from refusal import assert_refused

WORKER = Path(__file__).with_name("distributed_worker.py")
EXAMPLE = WORKER.parents[1] / "examples" / "distributed.py"
# Far more than it takes: what comes near it hangs.
SECONDS = 240
# FSDP2 of PyTorch 2.6 is for GPUs alone: it asks streams for `record_event`, which CPUs' lack.
SHARDS_ON_CPUS = not torch.__version__.startswith("2.6.")
ENGINES = ("ddp", "fsdp", "tensor parallel") if SHARDS_ON_CPUS else ("ddp", "tensor parallel")

pytestmark = pytest.mark.slow


def torchrun(processes: int, *arguments: object) -> str:
    """Return what several processes print, and fail with it if one of them does or hangs."""
    launch = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}")
    command = [sys.executable, *launch, *map(str, arguments)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        pytest.fail(f"{arguments} on {processes} hangs: {error.stdout} {error.stderr}")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run(cases: str, processes: int, folder: Path, *forms: str) -> None:
    """Run cases, with commas between, on several processes."""
    printed = torchrun(processes, WORKER, cases, folder, *forms)
    expected = processes * len(cases.split(",")) * len(forms or FORMS)
    assert printed.count("done") == expected, printed


# All in one launch: to start processes takes longer than what they do.
@pytest.mark.parametrize(("processes", "forms"), [(2, FORMS), (4, list(FORMS)[:2])])
def test_same_losses_as_one_process(processes: int, forms: Iterable[str], tmp_path: Path) -> None:
    run(",".join(ENGINES), processes, tmp_path, *forms)


@pytest.mark.skipif(not SHARDS_ON_CPUS, reason="FSDP2 of this PyTorch does not run on CPUs")
def test_checkpoint_of_four_processes_loads_on_two_and_on_one(tmp_path: Path) -> None:
    form = "learned, own weights"
    run("save", 4, tmp_path, form)
    run("load", 2, tmp_path, form)
    run("load", 1, tmp_path, form)


def test_a_case_can_fail(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"FileNotFoundError|CheckpointException"):
        run("load", 1, tmp_path, "pooled")


def test_example_trains(data_dir: Path) -> None:
    printed = torchrun(2, EXAMPLE, "--data", data_dir / "hydraulic", "--epochs", 4)
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", printed)]
    assert len(losses) == 4
    # Two targets of four classes each at chance have 2 log 4.
    assert min(losses) < 0.9 * losses[0] < 3.0
    assert "valve on validation: 0 missing 0." in printed
    assert "2 processes" in printed


def test_plan_names_every_attention_and_feedforward() -> None:
    block = SymmetricCrossAttentionBlock(8, num_heads=2, num_layers=2, pooled_context=True)
    plan = tensor_parallel_plan(nn.ModuleDict({"inside": block}))
    linear = {f"inside.{n}" for n, part in block.named_modules() if isinstance(part, nn.Linear)}
    assert set(plan) == linear


def test_plan_of_nothing() -> None:
    module = nn.Linear(2, 3)
    assert_refused(
        lambda: tensor_parallel_plan(module),
        who="tensor_parallel_plan",
        argument="module",
        got="got Linear",
        error=ValueError,
    )
