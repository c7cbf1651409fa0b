"""The figures of one case of the GPU benchmark."""

import argparse
import gc
import importlib.util
import itertools
import signal
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common.clock import Call, Timing, quartiles, with_backward
from benchmarks.common.peers import Contestant
from benchmarks.gpu import cases
from benchmarks.gpu.cases import Batch, Case
from benchmarks.gpu.kernels import profiled
from benchmarks.gpu.rows import Row

WARM_UP, FEWEST, MOST = 3, 5, 50
OURS = (cases.OURS, cases.OURS_PADDED, cases.RESIDUAL)
PACKAGES = {cases.X_ENCODER: "x_transformers", cases.PERCEIVER: "perceiver_pytorch"}


class OutOfTimeError(BaseException):
    """A row took too long; not an `Exception`, because compilers catch those."""


def measure(case: Case, args: argparse.Namespace, limit: float) -> Row:
    """Return the row of a case, with the error if it failed."""
    found: dict[str, Any] = {}
    begin = time.perf_counter()
    try:
        with time_limit(limit):
            # Keep the figures that are known when an error occurs.
            found.update(_figures(case, args))
    except (Exception, OutOfTimeError) as error:  # noqa: BLE001 (a row must not end the run)
        lines = str(error).strip().splitlines()
        found["error"] = f"{type(error).__name__}: {' '.join(lines)[:300]}"
    finally:
        if "compiled" in case.mode:
            torch.compiler.reset()
        gc.collect()
        if args.device == "cuda":
            torch.cuda.empty_cache()
    return Row.of(case, **found, seconds=round(time.perf_counter() - begin, 2))


def _figures(case: Case, args: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    """Return each field of the row as soon as it is known."""
    package = PACKAGES.get(case.model)
    if package is not None and importlib.util.find_spec(package) is None:
        yield "skipped", f"{package} is not installed"
        return
    torch.manual_seed(0)
    dtype = torch.bfloat16 if case.precision == cases.BF16 else torch.float32
    built = cases.MODELS[case.model](case.load)
    built.module.to(args.device, dtype).train(case.training).requires_grad_(case.training)
    yield "parameters", sum(parameter.numel() for parameter in built.module.parameters())
    batch = case.load.draw(args.device, dtype)
    yield "real", batch.real
    prepare(built.module, case.mode)
    call = make_call(case, built, batch, args.device)
    if case.mode.endswith(cases.CAPTURED):
        call = captured(call)
    begin = time.perf_counter()
    call()
    _wait(args.device)
    yield "first_call_seconds", round(time.perf_counter() - begin, 2)
    for _ in range(WARM_UP - 1):
        call()
    yield "milliseconds", timing(call, args)
    if args.device == "cuda":
        yield "peak_bytes", peak_memory(call)
        yield "profile", profiled(call)
    if case.mode == cases.EAGER:
        with FlopCounterMode(display=False) as counter:
            call()
        yield "operations", counter.get_total_flops()
        if batch.masks is not None and case.model in OURS:
            # In our forms without attention among steps, each step costs the same.
            short = batch._replace(features=batch.cut(), masks=None)
            with FlopCounterMode(display=False) as counter:
                make_call(case, built, short, args.device)()
            yield "needed_operations", counter.get_total_flops()


def prepare(module: nn.Module, mode: str) -> None:
    """Compile the parts that the mode names, in place."""
    if mode in (cases.COMPILED, cases.COMPILED_CAPTURED):
        module.compile(dynamic=False)
    elif mode == cases.OVERHEAD:
        module.compile(dynamic=False, mode="reduce-overhead")
    elif mode == cases.PARTS_CAPTURED:
        for part in (*module.summaries.values(), module.unit):
            part.compile()


def make_call(case: Case, built: Contestant, batch: Batch, device: str) -> Call:
    """Return one call of the case: a training step or a forward pass."""
    overhead, autocast = case.mode == cases.OVERHEAD, case.precision == cases.AUTOCAST

    def forward() -> Tensor:
        if overhead:
            torch.compiler.cudagraph_mark_step_begin()
        with torch.autocast(device, torch.bfloat16) if autocast else nullcontext():
            return built.call(batch.features, batch.masks)

    if case.training:
        return with_backward(built.module, forward)
    return torch.no_grad()(forward)


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


def timing(call: Call, args: argparse.Namespace) -> Timing:
    """Time single calls for about `args.each` seconds; return milliseconds."""
    once = _milliseconds(call, 1, args.device)[0]
    number = min(MOST, max(FEWEST, int(1e3 * args.each / max(once, 1e-3))))
    return quartiles(_milliseconds(call, number, args.device))


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
    """Return the peak bytes of all tensors during a call, including weights and features."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def peak(args: argparse.Namespace) -> dict[str, float]:
    """Return operations per second of dense products, and bytes per second of a copy."""
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


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `OutOfTimeError` in a body that takes longer."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise OutOfTimeError(f"longer than {seconds:.0f} s")

    gradients = torch.is_grad_enabled()
    before = signal.signal(signal.SIGALRM, stop)
    end = time.perf_counter() + seconds
    # Repeat every second: an error raised in a destructor or a garbage collection is lost.
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
        if time.perf_counter() > end:
            stop(signal.SIGALRM, None)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        # A call that is stopped inside `no_grad` does not restore gradients.
        torch.set_grad_enabled(gradients)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
