# pyright: reportPrivateUsage=false, reportUnknownMemberType=false, reportPrivateImportUsage=false
"""When eager mode on the CPU may compute the same by other means than PyTorch's own layers."""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad


class Formula(torch.autograd.Function):
    """A function with a gradient of its own; `call` is its `apply` with a type."""

    @classmethod
    def call(cls, *given: object) -> Tensor:
        """Compute it."""
        return cast(Tensor, cls.apply(*given))


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
    )


def is_transformed() -> bool:
    """Whether a transform of `torch.func` or forward-mode differentiation is at work.

    PyTorch asks itself the same way (torch/autograd/function.py); there is no public question.
    """
    return (
        torch._C._are_functorch_transforms_active()  # noqa: SLF001
        or cast(int, forward_ad._current_level) >= 0  # noqa: SLF001
    )


def is_batched(x: Tensor) -> bool:
    """Whether an entry stands for many, as `torch.vmap` has it."""
    return cast(bool, torch._C._functorch.is_batchedtensor(x))  # noqa: SLF001  # pyright: ignore[reportAttributeAccessIssue]


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
    for module in modules:
        if module._forward_pre_hooks or module._forward_hooks:  # noqa: SLF001
            return False
    if torch.compiler.is_compiling():
        return True
    for module in modules:
        if module._backward_hooks or module._backward_pre_hooks or "forward" in vars(module):  # noqa: SLF001
            return False
    return True


def has_bias(*projections: nn.Linear) -> bool:
    """Whether nobody has put layers without a bias in their place."""
    return all(cast("Tensor | None", projection.bias) is not None for projection in projections)


def once_more(
    formula: Callable[..., Tensor],
    saved: Sequence[Tensor],
    gradient: Tensor,
    options: object,
) -> tuple[Tensor | None, ...]:
    """Return the gradients of a formula so that they can be differentiated again.

    For a backward pass whose own graph is wanted: the formula is written with PyTorch's operations,
    and computed again.
    """
    # Of aliases: one saved tensor may have been computed from another, as where steps share their
    # weights, and a path between them is none of this formula's.
    aliases = [tensor.view_as(tensor) for tensor in saved]
    needed = [alias for alias in aliases if alias.requires_grad]
    found = torch.autograd.grad(
        formula(aliases, options), needed, gradient, create_graph=True, allow_unused=True
    )
    by_tensor = iter(found)
    return tuple(next(by_tensor) if tensor.requires_grad else None for tensor in saved)
