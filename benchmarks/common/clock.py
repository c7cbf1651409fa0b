"""Time calls in turns, count floating-point operations and measure the machine's peak."""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from benchmarks.common.peers import Contestant, Features, Masks

Call = Callable[[], object]
# Seconds that one measurement should last at least.
SHORTEST = 0.02
CPU_ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"


class Timing(NamedTuple):
    """Median, first and third quartile of the time of one call."""

    median: float
    low: float
    high: float
    runs: int


def forward(contestant: Contestant, features: Features, masks: Masks) -> Call:
    """Return a call of the module in inference."""

    def call() -> Tensor:
        with torch.inference_mode():
            return contestant.call(features, masks)

    return call


def training_step(contestant: Contestant, features: Features, masks: Masks) -> Call:
    """Return a call of forward and backward, without an optimiser."""
    return with_backward(contestant.module, lambda: contestant.call(features, masks))


def with_backward(module: nn.Module, forward: Callable[[], Tensor]) -> Call:
    """Return a call of this forward pass of a module, and backward.

    The loss weighs the outputs at random: the gradient of a mean of squares nearly vanishes behind
    a layer norm, and denormal numbers are slow.
    """
    weights: list[Tensor] = []

    def call() -> None:
        module.zero_grad(set_to_none=True)
        output = forward()
        if not weights:
            weights.append(torch.randn_like(output))
        (output * weights[0]).sum().backward()

    return call


def race(
    calls: Mapping[str, Call], *, repeats: int, limit: float, device: str
) -> dict[str, Timing | str]:
    """Time all calls in turns, so that a slow phase of the machine affects all of them.

    Args:
        calls: Calls to time; a very short call is repeated within one measurement.
        repeats: Measurements of each.
        limit: Seconds in total per call; slower calls are measured less often, but at least
            once.
        device: Where they run.

    Returns:
        The timing of each, or the reason why it has none.
    """
    results: dict[str, Timing | str] = {}
    seconds: dict[str, list[float]] = {}
    numbers: dict[str, int] = {}
    for name, call in calls.items():
        try:
            first = _seconds(call, 1, device)
            # The first call also fills caches; it counts only if a second takes too long.
            again = first if first > limit else _seconds(call, 1, device)
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and "memory" not in str(error):
                raise
            results[name] = "out of memory"
            continue
        seconds[name] = [again] if 3 * again > limit else []
        numbers[name] = max(1, min(1000, math.ceil(SHORTEST / again)))
    for _ in range(repeats):
        for name, taken in seconds.items():
            if (sum(taken) + max(taken, default=0)) * numbers[name] <= limit:
                if numbers[name] > 1:
                    # The previous call left its own weights in the cache, and gaps in memory.
                    _seconds(calls[name], numbers[name], device)
                taken.append(_seconds(calls[name], numbers[name], device))
    return results | {name: quartiles(taken) for name, taken in seconds.items()}


def flops(contestant: Contestant, features: Features, masks: Masks) -> int:
    """Count the floating-point operations of a forward pass, two for a multiply-add.

    The counter sees neither the CPU's fused attention, so its formula is given here, nor the fast
    path of `nn.MultiheadAttention`, so that is off.
    """
    fused = getattr(torch.ops.aten, CPU_ATTENTION)
    operators = {fused: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)}
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    # The counter adds hooks to tensors that need a gradient; inference mode does not allow them.
    contestant.module.requires_grad_(requires_grad=False)
    try:
        with FlopCounterMode(display=False, custom_mapping=operators) as counter:
            forward(contestant, features, masks)()
    finally:
        contestant.module.requires_grad_(requires_grad=True)
        torch.backends.mha.set_fastpath_enabled(fast)
    return counter.get_total_flops()


def matmul_peak() -> float:
    """Return the CPU's best rate of a square float32 matrix product, in operations a second."""
    best = 0.0
    for size in (512, 1024, 2048):
        a, b = torch.randn(2, size, size)
        taken = min(_seconds(lambda a=a, b=b: a @ b, 1, "cpu") for _ in range(8))
        best = max(best, 2 * size**3 / taken)
    return best


def _seconds(call: Call, number: int, device: str) -> float:
    """Return the mean seconds of `number` calls."""
    if device != "cpu":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(number):
        call()
    if device != "cpu":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / number


def quartiles(seconds: list[float]) -> Timing:
    """Summarise measurements."""
    if len(seconds) == 1:
        return Timing(seconds[0], seconds[0], seconds[0], 1)
    low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return Timing(median, low, high, len(seconds))
