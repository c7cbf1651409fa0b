"""Measure grf-fusion and its peers on a GPU: `python -m benchmarks.gpu --help`.

Rows are independent and run in the order of their importance; one that fails, or that no time is
left for, is recorded with the reason. A training step is forward and backward, without an
optimiser. Times are those of CUDA events after a warm-up, the peak memory is that of one call
and counts weights and features, and operations are those of the matrix products and of attention.

    python -m benchmarks.gpu --out FOLDER
    python -m benchmarks.gpu --out OTHER --only compiled
    python -m benchmarks.gpu_report FOLDER/gpu.json OTHER/gpu.json

The first two write `gpu.json` and `gpu.md` after each row; the third prints the tables of both.
"""

import argparse
import gc
import importlib.util
import itertools
import json
import platform
import re
import shlex
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import gpu_report
from benchmarks import gpu_rows as rows
from benchmarks.contestants import Contestant
from benchmarks.gpu_rows import Batch, Row
from grf_fusion import SymmetricCrossAttentionBlock

Call = Callable[[], object]
WARM_UP, FEWEST, MOST = 3, 5, 50
# Kernels of attention by what their name holds, the first that fits.
ATTENTION = {
    "cudnn.*sdpa|cudnn.*flash|cudnn.*mha": "cuDNN",
    "flash": "flash",
    "fmha|mem_eff|attentionkernel": "memory-efficient",
    "softmax": "softmax of its own",
}
OURS = (rows.OURS, rows.RESIDUAL)
PACKAGES = {rows.X_ENCODER: "x_transformers", rows.PERCEIVER: "perceiver_pytorch"}


class OutOfTimeError(BaseException):
    """A row took too long; not an `Exception`, which a compiler would catch for its own."""


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run what the command line asks for; print and write the tables."""
    args = _parse(argv)
    start = time.perf_counter()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    chosen = [row for row in rows.rows(quick=args.quick) if re.search(args.only, describe(row))]
    results: dict[str, Any] = {
        "command": f"python -m benchmarks.gpu {shlex.join(sys.argv[1:] if argv is None else argv)}",
        "environment": environment(args),
        "peak": peak(args),
        "rows": [],
    }
    for row in chosen:
        left = args.seconds - (time.perf_counter() - start)
        record = {**gpu_report.place(row)}
        if left <= 0:
            record["skipped"] = f"not run: the {args.seconds:g} s were over"
        else:
            _say(f"{time.perf_counter() - start:6.1f} s  {describe(row)}")
            record |= measure(row, args, min(left + 5, args.limit))
            _say(f"          {record.get('milliseconds') or record.get('error')}")
        results["rows"].append(record)
        results["seconds"] = round(time.perf_counter() - start, 1)
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "gpu.json").write_text(json.dumps(results, indent=1) + "\n")
        (args.out / "gpu.md").write_text(gpu_report.markdown(results))
    sys.stdout.write(gpu_report.markdown(results))
    return results


def measure(row: Row, args: argparse.Namespace, limit: float) -> dict[str, Any]:
    """Return the figures of a row, or the error it ended with."""
    record: dict[str, Any] = {}
    begin = time.perf_counter()
    try:
        with time_limit(limit):
            for figure in _figures(row, args):
                record |= figure
    except (Exception, OutOfTimeError) as error:  # noqa: BLE001 (a row must not end the run)
        lines = str(error).strip().splitlines()
        record["error"] = f"{type(error).__name__}: {' '.join(lines)[:300]}"
    finally:
        if "compiled" in row.mode:
            torch.compiler.reset()
        gc.collect()
        if args.device == "cuda":
            torch.cuda.empty_cache()
    return record | {"seconds": round(time.perf_counter() - begin, 2)}


def _figures(row: Row, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    package = PACKAGES.get(row.model)
    if package is not None and importlib.util.find_spec(package) is None:
        yield {"skipped": f"{package} is not installed"}
        return
    torch.manual_seed(0)
    dtype = torch.bfloat16 if row.precision == rows.BF16 else torch.float32
    built = rows.MODELS[row.model](row.load)
    built.module.to(args.device, dtype).train(row.training).requires_grad_(row.training)
    yield {"parameters": sum(parameter.numel() for parameter in built.module.parameters())}
    batch = row.load.draw(args.device, dtype)
    yield {"real": batch.real}
    prepare(built.module, row.mode)
    call = make_call(row, built, batch, args.device)
    if row.mode == rows.CAPTURED:
        call = captured(call)
    begin = time.perf_counter()
    call()
    _wait(args.device)
    yield {"first_call_seconds": round(time.perf_counter() - begin, 2)}
    for _ in range(WARM_UP - 1):
        call()
    yield {"milliseconds": timing(call, args)}
    if args.device == "cuda":
        yield {"peak_bytes": peak_memory(call)}
        yield {"profile": profiled(call)}
    if row.mode == rows.EAGER:
        with FlopCounterMode(display=False) as counter:
            call()
        yield {"operations": counter.get_total_flops()}
        if batch.masks is not None and row.model in OURS:
            # Our forms without attention among steps cost the same for each step.
            short = batch._replace(features=batch.cut(), masks=None)
            with FlopCounterMode(display=False) as counter:
                make_call(row, built, short, args.device)()
            yield {"needed_operations": counter.get_total_flops()}


def prepare(module: nn.Module, mode: str) -> None:
    """Compile what the mode says, in place."""
    if mode == rows.COMPILED:
        module.compile(dynamic=False)
    elif mode == rows.OVERHEAD:
        module.compile(dynamic=False, mode="reduce-overhead")
    for part in module.modules():
        if isinstance(part, SymmetricCrossAttentionBlock):
            if mode == rows.BLOCK_COMPILED:
                part.compile(dynamic=False)
            elif mode == rows.LAYERS_COMPILED:
                # The block itself lays out the rows, which no compiler can.
                for layer in (*part.context_layers, *(part.modality_layers or ())):
                    layer.compile(dynamic=True)


def make_call(row: Row, built: Contestant, batch: Batch, device: str) -> Call:
    """Return one call of the row: a training step or a forward pass.

    The loss weighs the outputs at random: the gradient of a mean of squares nearly vanishes behind
    a layer norm.
    """
    weights: list[Tensor] = []
    overhead, autocast = row.mode == rows.OVERHEAD, row.precision == rows.AUTOCAST

    def forward() -> Tensor:
        if overhead:
            torch.compiler.cudagraph_mark_step_begin()
        with torch.autocast(device, torch.bfloat16) if autocast else nullcontext():
            return built.call(batch.features, batch.masks)

    def step() -> None:
        built.module.zero_grad(set_to_none=True)
        output = forward()
        if not weights:
            weights.append(torch.randn_like(output))
        (output * weights[0]).sum().backward()

    return step if row.training else torch.no_grad()(forward)


def captured(call: Call) -> Call:
    """Capture a call in a CUDA graph and return its replay."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def timing(call: Call, args: argparse.Namespace) -> dict[str, float]:
    """Return median, quartiles and number of single calls, for about the seconds asked for."""
    once = _milliseconds(call, 1, args.device)[0]
    number = min(MOST, max(FEWEST, int(1e3 * args.each / max(once, 1e-3))))
    taken = _milliseconds(call, number, args.device)
    low, median, high = statistics.quantiles(taken, n=4, method="inclusive")
    return {"median": median, "low": low, "high": high, "runs": number}


def _milliseconds(call: Call, number: int, device: str) -> list[float]:
    if device != "cuda":
        marks = [time.perf_counter()]
        for _ in range(number):
            call()
            marks.append(time.perf_counter())
        return [1e3 * (b - a) for a, b in itertools.pairwise(marks)]
    events = [torch.cuda.Event(enable_timing=True) for _ in range(number + 1)]
    torch.cuda.synchronize()
    events[0].record()
    for event in events[1:]:
        call()
        event.record()
    torch.cuda.synchronize()
    return [a.elapsed_time(b) for a, b in itertools.pairwise(events)]


def peak_memory(call: Call) -> int:
    """Return the most bytes that tensors hold during a call, weights and features included."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def profiled(call: Call) -> dict[str, Any]:
    """Return kernel launches, the milliseconds they run, what attends, and the longest kernels."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    kernels: dict[str, list[float]] = {}
    for event in profiler.events():
        on_device = event.device_type == DeviceType.CUDA
        if on_device and not event.is_user_annotation:
            kernels.setdefault(event.name, []).append(event.time_range.elapsed_us() / 1e3)
    return summarise(kernels)


def summarise(kernels: dict[str, list[float]]) -> dict[str, Any]:
    """Sum up the milliseconds of every kernel by name; copies and fills are no launches."""
    copies = {name for name in kernels if name.startswith(("Memcpy", "Memset"))}
    attention: set[str] = set()
    for name in kernels:
        kinds = (kind for part, kind in ATTENTION.items() if re.search(part, name.lower()))
        attention.update(list(kinds)[:1])
    longest = sorted(kernels, key=lambda name: -sum(kernels[name]))[:8]
    return {
        "launches": sum(len(taken) for name, taken in kernels.items() if name not in copies),
        "copies": sum(len(kernels[name]) for name in copies),
        "busy_milliseconds": sum(map(sum, kernels.values())),
        "attention": sorted(attention),
        "kernels": [[name[:120], len(kernels[name]), sum(kernels[name])] for name in longest],
    }


def peak(args: argparse.Namespace) -> dict[str, float]:
    """Return operations a second of dense products, and bytes a second of a copy."""
    size = 256 if args.quick else 8192
    found: dict[str, float] = {}
    for name, dtype in (("bf16", torch.bfloat16), ("float32 with TF32", torch.float32)):
        a, b = (torch.randn(size, size, device=args.device, dtype=dtype) for _ in range(2))
        product = _product(a, b)
        _milliseconds(product, 5, args.device)
        taken = statistics.median(_milliseconds(product, 20, args.device))
        found[name] = 2 * size**3 / taken * 1e3
    source = torch.empty(2**16 if args.quick else 2**31, dtype=torch.uint8, device=args.device)
    target = torch.empty_like(source)
    taken = _milliseconds(lambda: target.copy_(source), 10, args.device)
    return found | {"copy bytes": 2 * source.numel() / statistics.median(taken) * 1e3}


def _product(a: Tensor, b: Tensor) -> Call:
    return lambda: a @ b


def environment(args: argparse.Namespace) -> dict[str, str]:
    """Return what the numbers depend on."""
    cuda = args.device == "cuda"
    triton = importlib.util.find_spec("triton") is not None
    return {
        "device": torch.cuda.get_device_name() if cuda else platform.machine(),
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "triton": version("triton") if triton else "none",
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
        "sizes": "quick, for a trial" if args.quick else "full",
        "TF32": "on for float32 matrix products",
    }


def describe(row: Row) -> str:
    """Return one line that names a row."""
    what = "training step" if row.training else "forward"
    return f"{row.load.title} | {row.model} | {row.mode} | {row.precision} | {what}"


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `OutOfTimeError` after so many seconds."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise OutOfTimeError(f"longer than {seconds:.0f} s")

    gradients = torch.is_grad_enabled()
    before = signal.signal(signal.SIGALRM, stop)
    # Again every second: what is raised inside a destructor is lost.
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        # What is stopped between the two ends of `no_grad` does not reach the second.
        torch.set_grad_enabled(gradients)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--device", default="cuda", choices=("cuda", "cpu"), help="cpu is for trial runs")
    add("--out", type=Path, default=Path("gpu-results"), help="folder of gpu.json and gpu.md")
    add("--seconds", type=float, default=240.0, help="what is not begun by then is not run")
    add("--limit", type=float, default=75.0, help="seconds that a row may take, compiling included")
    add("--each", type=float, default=0.4, help="seconds that the timing of a row takes")
    add("--only", default="", help="regular expression on the lines that name rows")
    add("--quick", action="store_true", help="tiny sizes, for a trial run")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
