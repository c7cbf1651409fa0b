# pyright: reportPrivateUsage=false, reportUnknownMemberType=false, reportPrivateImportUsage=false
"""When eager mode on the CPU may compute the same by other means than PyTorch's own layers.

All that we use of PyTorch's private parts is here, each by `getattr`: where a newer PyTorch lacks
one, no call is plain any more, and PyTorch's own layers compute everything.
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

C = torch._C  # noqa: SLF001
FORWARD_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
BACKWARD_HOOKS = ("_backward_hooks", "_backward_pre_hooks")


def is_plain_call(x: Tensor, *, fewest: int = 0) -> bool:
    """Whether ``x`` is computed on the CPU now, in float32 or float64, and has enough entries.

    False while tracing, under autocast, under the transforms of `torch.func` and in forward-mode
    differentiation: all of them rewrite PyTorch's own operations and know nothing of ours.
    """
    return (
        not torch.compiler.is_compiling()
        and x.numel() >= fewest
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and type(x) in (Tensor, nn.Parameter)
        and not torch.is_autocast_enabled("cpu")
        and not is_transformed()
        and not torch.jit.is_tracing()
        and not is_recorded()
    )


def is_recorded() -> bool:
    """Whether `torch.fx.experimental.proxy_tensor.make_fx` writes down what is computed."""
    mode = cast("Callable[[object], object] | None", getattr(C, "_get_dispatch_mode", None))
    proxy = getattr(getattr(C, "_TorchDispatchModeKey", None), "PROXY", None)
    return mode is None or proxy is None or mode(proxy) is not None


def is_transformed() -> bool:
    """Whether a transform of `torch.func` or forward-mode differentiation is active.

    PyTorch asks itself the same way (torch/autograd/function.py); there is no public question.
    """
    active = cast("Callable[[], bool] | None", getattr(C, "_are_functorch_transforms_active", None))
    # Level 0 is the first one that differentiates, and -1 means none.
    return active is None or active() or cast(int, getattr(forward_ad, "_current_level", 0)) >= 0


def is_batched(x: Tensor) -> bool:
    """Whether an entry stands for many, as `torch.vmap` has it."""
    batched = cast(
        "Callable[[Tensor], bool] | None",
        getattr(getattr(C, "_functorch", None), "is_batchedtensor", None),
    )
    return is_transformed() if batched is None else batched(x)


def can_read(tensor: Tensor) -> bool:
    """Whether values can steer Python: not while tracing, on the meta device or under vmap."""
    tracing = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return not (tracing or tensor.is_meta or is_batched(tensor))


def is_captured(device: torch.device) -> bool:
    """Whether a CUDA graph is captured, which will replay today's numbers of steps for any data."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def is_plain(*projections: nn.Module) -> bool:
    """Whether each is just its weight: not quantised, adapted, sharded or hooked by somebody."""
    return is_untouched(*projections) and all(
        type(projection) is nn.Linear and type(projection.weight) in (Tensor, nn.Parameter)
        for projection in projections
    )


def is_untouched(*modules: nn.Module) -> bool:
    """Whether calling each is just its class's ``forward``, so that it need not be called.

    PyTorch has no public question for it. Hooks of all modules at once, which are for profiling, do
    not count, as in PyTorch's own fast paths: `FlopCounterMode` has some, and would see other work.
    """
    # A pre-hook may be weight_norm's, which sets the weight. While tracing that is all that counts.
    tracing = torch.compiler.is_compiling()
    names = FORWARD_HOOKS if tracing else (*FORWARD_HOOKS, *BACKWARD_HOOKS)
    for module in modules:
        for name in names:
            if getattr(module, name, True):
                return False
        # `module.compile()` sets `_compiled_call_impl`.
        if not tracing and (
            "forward" in vars(module) or getattr(module, "_compiled_call_impl", True)
        ):
            return False
    return True


def forward_hooks(module: nn.Module) -> list[object]:
    """Return what is called behind a module, as far as PyTorch lets us know."""
    return list(cast("dict[int, object]", getattr(module, "_forward_hooks", {})).values())


def has_bias(projection: nn.Linear) -> bool:
    """Whether it has a bias; somebody may have put another layer in its place."""
    return cast("Tensor | None", projection.bias) is not None


def softmax_backward(gradient: Tensor, weights: Tensor, *, out: Tensor) -> Tensor:
    """Write the gradient of the scores, from that of their softmax along the last axis."""
    fused = getattr(getattr(torch.ops.aten, "_softmax_backward_data", None), "out", None)
    if fused is not None:
        return cast(Tensor, fused(gradient, weights, -1, weights.dtype, grad_input=out))
    torch.mul(gradient, weights, out=out)
    return torch.addcmul(out, weights, out.sum(dim=-1, keepdim=True), value=-1.0, out=out)
