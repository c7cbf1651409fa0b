"""How a wrong call is refused: one message form, the argument named, and nothing computed."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class NothingComputed(TorchDispatchMode):
    """Fails at the first operation that makes a floating-point tensor.

    Checks may read shapes and the values of integer masks; whatever makes floating-point numbers,
    a parameter among them, is the computation that they have to come before.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation and look at what it made."""
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex()):
                pytest.fail(f"computed {func} before the refusal")
        return made


@contextmanager
def no_submodule_runs(module: nn.Module) -> Iterator[None]:
    """Fail as soon as a sub-module of `module` is called."""

    def fail(ran: nn.Module, _inputs: object) -> None:
        pytest.fail(f"ran {type(ran).__name__} before the refusal")

    inside = [part for part in module.modules() if part is not module]
    handles = [part.register_forward_pre_hook(fail) for part in inside]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def assert_refused(
    call: Callable[[], object],
    *,
    who: str,
    argument: str | Sequence[str],
    got: str = "",
    error: type[Exception],
    module: nn.Module | None = None,
) -> str:
    """Assert that a call raises exactly `error` before anything is computed.

    Args:
        call: The call.
        who: Class or function that refuses.
        argument: Argument at fault, as the caller wrote it; several where any may be blamed.
        got: What the message says about the value.
        error: The type of error, no subclass of it.
        module: What is called, if a module is; none of its sub-modules may run.

    Returns:
        The message.
    """
    still = nullcontext() if module is None else no_submodule_runs(module)
    with pytest.raises(error) as caught, NothingComputed(), still:
        call()
    message = str(caught.value)
    assert caught.type is error, f"{caught.type.__name__}: {message}"
    names = "|".join(map(re.escape, [argument] if isinstance(argument, str) else argument))
    form = rf"{who}: expected (no )?`({names})`.*\b(got|missing)\b.*\.$"
    assert re.match(form, message, re.DOTALL), message
    assert got in message, message
    return message
