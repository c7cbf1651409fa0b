# pyright: reportPrivateUsage=false, reportUnknownMemberType=false, reportPrivateImportUsage=false
"""Decide when our own CPU code may replace PyTorch's layers in eager mode.

Private attributes of PyTorch are read with `getattr`. If a newer PyTorch lacks one, the checks fail
and PyTorch's own layers compute everything.
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

C = torch._C  # noqa: SLF001
FORWARD_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
BACKWARD_HOOKS = ("_backward_hooks", "_backward_pre_hooks")
# Set by `module.compile()`.
COMPILED = "_compiled_call_impl"


def is_plain_call(x: Tensor, *, fewest: int = 0) -> bool:
    """Whether ``x`` is a plain float32 or float64 CPU tensor with at least ``fewest`` entries.

    False under autocast and where `is_eager` is False.
    """
    return (
        x.device.type == "cpu"
        and x.numel() >= fewest
        and x.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
        and is_eager(x)
    )


def is_eager(x: Tensor) -> bool:
    """Whether the operations on a plain tensor run as they are written.

    False while tracing, under the transforms of `torch.func` and in forward-mode differentiation.
    All of them rewrite PyTorch's own operations and cannot rewrite ours.
    """
    return (
        not torch.compiler.is_compiling()
        and type(x) in (Tensor, nn.Parameter)
        and not x.is_meta
        and not is_transformed()
        and not torch.jit.is_tracing()
        and not is_recorded()
    )


def is_recorded(*, unknown: bool = True) -> bool:
    """Whether `make_fx` is recording operations; ``unknown`` if this PyTorch cannot tell."""
    mode = cast("Callable[[object], object] | None", getattr(C, "_get_dispatch_mode", None))
    proxy = getattr(getattr(C, "_TorchDispatchModeKey", None), "PROXY", None)
    return unknown if mode is None or proxy is None else mode(proxy) is not None


def is_transformed() -> bool:
    """Whether a transform of `torch.func` or forward-mode differentiation is active.

    PyTorch uses the same private check (torch/autograd/function.py); there is no public one.
    """
    active = cast("Callable[[], bool] | None", getattr(C, "_are_functorch_transforms_active", None))
    # Levels of forward-mode differentiation start at 0; -1 means that none is active.
    return active is None or active() or cast(int, getattr(forward_ad, "_current_level", 0)) >= 0


def is_batched(x: Tensor) -> bool:
    """Whether `torch.vmap` maps over the tensor."""
    functorch = getattr(C, "_functorch", None)
    batched = cast("Callable[[Tensor], bool] | None", getattr(functorch, "is_batchedtensor", None))
    return is_transformed() if batched is None else batched(x)


def can_read(tensor: Tensor) -> bool:
    """Whether Python may read the values: not while tracing, on the meta device or under vmap."""
    tracing = torch.compiler.is_compiling() or torch.jit.is_tracing()
    # If it is unknown, the values of masks are checked.
    return not (tracing or is_recorded(unknown=False) or tensor.is_meta or is_batched(tensor))


def version_of(tensor: Tensor) -> tuple[int, int] | None:
    """Return PyTorch's counter of changes, which views share, and the address of the values.

    ``None`` if PyTorch has no counter. Changes made through ``.data`` are not counted, neither here
    nor by autograd. An inference tensor has no counter, and raises.
    """
    version = cast("int | None", getattr(tensor, "_version", None))
    return None if version is None else (version, tensor.data_ptr())


def is_captured(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured: its replays would reuse the current lengths."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def is_plain(*projections: nn.Module) -> bool:
    """Whether each is an unmodified `nn.Linear`: not quantised, adapted, sharded or hooked."""
    return is_untouched(*projections) and all(
        type(projection) is nn.Linear and type(projection.weight) in (Tensor, nn.Parameter)
        for projection in projections
    )


def is_untouched(*modules: nn.Module, compiled: bool = False) -> bool:
    """Whether calling each module only runs the ``forward`` of its class.

    With ``compiled=True`` the module may have been compiled by `torch.nn.Module.compile`.

    PyTorch has no public check. Global module hooks, which are meant for profiling, are ignored, as
    in PyTorch's own fast paths. Otherwise `FlopCounterMode`, which uses them, would measure a
    different path.
    """
    # A forward pre-hook may set the weight, as weight_norm does. Tracing ignores the other changes.
    tracing = torch.compiler.is_compiling()
    names = FORWARD_HOOKS if tracing else (*FORWARD_HOOKS, *BACKWARD_HOOKS)
    if not (tracing or compiled):
        names = (*names, COMPILED)
    for module in modules:
        for name in names:
            if getattr(module, name, True):
                return False
        if not tracing and "forward" in vars(module):
            return False
    return True


def forward_hooks(module: nn.Module) -> list[object]:
    """Return the forward hooks of a module, or none if PyTorch does not expose them."""
    return list(cast("dict[int, object]", getattr(module, "_forward_hooks", {})).values())


def has_bias(projection: nn.Linear) -> bool:
    """Whether the layer has a bias; users may have replaced our layer."""
    return cast("Tensor | None", projection.bias) is not None


def softmax_backward(gradient: Tensor, weights: Tensor, *, out: Tensor) -> Tensor:
    """Write the gradient of the scores into ``out``, given the gradient of their softmax.

    The softmax is along the last axis; ``weights`` are its values.
    """
    fused = getattr(getattr(torch.ops.aten, "_softmax_backward_data", None), "out", None)
    if fused is not None:
        return cast(Tensor, fused(gradient, weights, -1, weights.dtype, grad_input=out))
    torch.mul(gradient, weights, out=out)
    return torch.addcmul(out, weights, out.sum(dim=-1, keepdim=True), value=-1.0, out=out)
