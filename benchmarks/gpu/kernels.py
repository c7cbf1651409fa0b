"""Kernels of a call on a GPU: their number, run time, and the kinds of attention."""

import re

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.common.clock import Call
from benchmarks.gpu.rows import Profile

# Kernels of attention by a pattern in their name; the first match counts.
ATTENTION = {
    "cudnn.*sdpa|cudnn.*flash|cudnn.*mha": "cuDNN",
    "flash": "flash",
    "fmha|mem_eff|attentionkernel": "memory-efficient",
    "softmax": "softmax of its own",
}

OTHER = "other and shorter kernels"
# What else a kernel computes.
OTHERS = {
    "nvjet|gemm|cutlass|splitk": "matrix products",
    "triton": "fused by the compiler",
    "gather|index|scatter": "gather and scatter",
    "gelu": "activations",
    "reduce": "sums and maxima",
}


def profiled(call: Call) -> Profile:
    """Return kernel launches, their milliseconds, kinds of attention, and the longest kernels."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    kernels: dict[str, list[float]] = {}
    for event in profiler.events():
        on_device = event.device_type == DeviceType.CUDA
        if on_device and not event.is_user_annotation:
            kernels.setdefault(event.name, []).append(event.time_range.elapsed_us() / 1e3)
    return summarise(kernels)


def summarise(kernels: dict[str, list[float]]) -> Profile:
    """Sum the milliseconds of every kernel by name; copies and fills do not count as launches."""
    copies = {name for name in kernels if name.startswith(("Memcpy", "Memset"))}
    attention: set[str] = set()
    for name in kernels:
        kinds = (kind for part, kind in ATTENTION.items() if re.search(part, name.lower()))
        attention.update(list(kinds)[:1])
    longest = sorted(kernels, key=lambda name: -sum(kernels[name]))[:8]
    return Profile(
        launches=sum(len(taken) for name, taken in kernels.items() if name not in copies),
        copies=sum(len(kernels[name]) for name in copies),
        busy_milliseconds=sum(map(sum, kernels.values())),
        attention=sorted(attention),
        kernels=[[name[:120], len(kernels[name]), sum(kernels[name])] for name in longest],
    )


def by_kind(profile: Profile) -> dict[str, float]:
    """Return the milliseconds of each kind of kernel; only the longest kernels are told apart."""
    kinds = dict.fromkeys(ATTENTION, "attention") | OTHERS
    found = dict.fromkeys([*dict.fromkeys(kinds.values()), OTHER], 0.0)
    for name, _, taken in profile.kernels:
        matches = (kind for part, kind in kinds.items() if re.search(part, name.lower()))
        found[next(matches, OTHER)] += taken
    found[OTHER] += profile.busy_milliseconds - sum(found.values())
    return found
