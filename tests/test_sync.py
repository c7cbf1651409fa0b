"""Nothing waits for a GPU: no value of a tensor steers Python, and nothing is copied from the host.

Tensors of the meta device have no values, so whatever needs one fails; copies between host and
device, which wait too, are refused by name. tests/test_cuda.py asks CUDA itself.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from forms import BASELINES, BATCH, DIM, FUSIONS, HEADS, WIDTHS, make, make_call
from grf_fusion import (
    AdaptedModel,
    FusionAdapter,
    GatedRecurrentFusion,
    ModalityDropout,
    mask_from_lengths,
    modulate_gradients,
)

META, HOST = torch.device("meta"), torch.device("cpu")
# The names of operations whose result, or whose size of it, is known to the device alone.
ASKING = (
    *("_local_scalar_dense", "is_nonzero", "item", "equal", "nonzero", "masked_select"),
    *("unique_consecutive", "_unique2", "unique_dim", "bincount"),
)


class NothingAsked(TorchDispatchMode):
    """Fails at an operation that would wait for the device."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Look at what the operation is and gets."""
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        assert name not in ASKING, f"{func} asks for a value"
        # Their values are read for the kernel, below what a dispatch mode sees.
        filled = name.startswith(("masked_fill", "index_fill")) and isinstance(args[-1], Tensor)
        assert not filled, f"{func} reads its value"
        sized = name == "repeat_interleave" and kwargs.get("output_size") is None
        chosen = "index" in name and any(map(is_truth, tree_leaves(args[1:])))
        known = not sized and not chosen
        assert known, f"{func} asks for a size"
        # The checkpoints of PyTorch 2.6 make an empty tensor on the host, which waits for nothing.
        there = all(map(is_there, tree_leaves((args, kwargs)))) and kwargs.get("device") != HOST
        assert there or name == "empty", f"{func} is of the host"
        return func(*args, **kwargs)


class NothingCopied(TorchFunctionMode):
    """Fails where numbers of Python's become a tensor on the device."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Look at the function's name, since no operation is dispatched for it."""
        copies = func in (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor)
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            places = args[1] if isinstance(args[1], tuple) else (args[1],)
            copies = any(isinstance(place, list) for place in places)
        assert not copies, f"{func} copies"
        return func(*args, **(kwargs or {}))


@contextmanager
def nothing_waits() -> Iterator[None]:
    with NothingCopied(), NothingAsked():
        yield


def is_there(leaf: object) -> bool:
    return not isinstance(leaf, Tensor) or leaf.device == META


def is_truth(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.dtype in (torch.bool, torch.uint8)


def train(module: nn.Module, run: Callable[[], Tensor]) -> None:
    """A step of training, and the same in eval mode."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    with nothing_waits():
        run().sum().backward()
        optimizer.step()
    assert all(p.grad is not None for p in module.parameters())
    module.eval()
    with nothing_waits(), torch.no_grad():
        run()


@pytest.mark.parametrize("form", FUSIONS)
def test_training(form: str) -> None:
    fusion: Any = make(form, dropout=0.2, device=META)
    call = make_call(META)
    # As all can have it: the first one declared opens where steps have weights of their own.
    order = ("text", "audio", "image")

    def run() -> Tensor:
        fused, trace = fusion(**call, order=order, return_trace=True)
        return fused.sum() + trace.contexts.sum()

    train(fusion, run)


@pytest.mark.parametrize("form", FUSIONS)
def test_steps(form: str) -> None:
    fusion: Any = make(form, device=META)
    call = make_call(META)

    def run() -> Tensor:
        state = None
        for name, present in zip(WIDTHS, call["present"].unbind(1), strict=True):
            features, mask = call["features"][name], call["masks"][name]
            state = fusion.step(state, name, features, mask=mask, present=present)
        assert state is not None
        return fusion.readout(fusion.step(state, "image", None))

    train(fusion, run)


@pytest.mark.parametrize("form", BASELINES)
def test_baselines(form: str) -> None:
    fusion = make(form, device=META)
    call = make_call(META)
    train(fusion, lambda: fusion(**call))


def test_adapters() -> None:
    host = nn.Sequential(nn.Linear(DIM, DIM, device=META), nn.Linear(DIM, DIM, device=META))
    adapter = FusionAdapter(WIDTHS, embed_dim=DIM, num_heads=HEADS, dropout=0.2, device=META)
    model = AdaptedModel(host, adapters={"0": adapter})
    hidden = torch.randn(BATCH, 8, DIM, device=META)
    mask = torch.ones(BATCH, 8, dtype=torch.bool, device=META)
    call = make_call(META)
    train(model, lambda: model(hidden, **call, hidden_mask=mask))


@pytest.mark.parametrize("training", [True, False])
def test_modality_dropout_and_presence(training: bool) -> None:
    fusion = GatedRecurrentFusion(WIDTHS, embed_dim=DIM, num_heads=HEADS, device=META)
    drop = ModalityDropout(0.3).train(training)
    call = make_call(META)
    with nothing_waits():
        present = drop(fusion.presence(**call))
    assert present.shape == (BATCH, len(WIDTHS))


def test_gradient_modulation() -> None:
    fusion = GatedRecurrentFusion(WIDTHS, embed_dim=DIM, num_heads=HEADS, device=META)
    logits = {name: torch.randn(BATCH, 4, device=META) for name in WIDTHS}
    call = make_call(META)
    targets = torch.zeros(BATCH, dtype=torch.long, device=META)
    fusion(**call).sum().backward()
    with nothing_waits():
        modulate_gradients(fusion.projections, logits, targets, alpha=0.5, present=call["present"])


FAULTS: dict[str, tuple[Callable[[Tensor], object], str]] = {
    "reads a number": (lambda x: x.sum().item(), "asks for a value"),
    "branches": (lambda x: bool(x.any()), "asks for a value"),
    "looks for truth": (lambda x: x.nonzero(), "asks for a value"),
    "selects": (lambda x: x.masked_select(x > 0), "asks for a value"),
    "compares": (lambda x: torch.equal(x, x), "asks for a value"),
    "fills with a tensor": (lambda x: x.masked_fill_(x > 0, x[0, 0]), "reads its value"),
    "indexes by truth": (lambda x: x[x > 0], "asks for a size"),
    "repeats as a tensor says": (lambda x: x.repeat_interleave(x[:, 0].long(), 0), "for a size"),
    "makes a list a tensor": (lambda x: torch.tensor([1, 2], device=x.device), "copies"),
    "indexes by a list": (lambda x: x[:, [1, 0]], "copies"),
    "copies to the device": (lambda x: torch.ones(2, device="cpu").to(x.device), "of the host"),
    "copies to the host": (lambda x: x.cpu(), "of the host"),
    "mixes in a constant": (lambda x: x + torch.ones(2, device="cpu"), "of the host"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_waiting_is_seen(fault: str) -> None:
    wait, said = FAULTS[fault]
    given = torch.ones(3, 2, device=META)
    with pytest.raises(AssertionError, match=said), nothing_waits():
        wait(given)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8])
def test_integer_masks_are_made_truth(dtype: torch.dtype) -> None:
    """Their values are checked where there are any, which waits; nothing else does."""
    fusion = GatedRecurrentFusion(WIDTHS, embed_dim=DIM, num_heads=HEADS, device=META)
    call = make_call(META)
    call["masks"] = {name: mask.to(dtype) for name, mask in call["masks"].items()}
    with nothing_waits():
        fusion(**call)
        mask_from_lengths(torch.ones(BATCH, dtype=dtype, device=META), 3)


# The others take the same decisions.
USUAL = ("default", "residual", "sequence", "early")
OTHERS = [form for form in (*FUSIONS, *BASELINES) if form not in USUAL]


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64])
@pytest.mark.parametrize(
    "form", [*USUAL, *(pytest.param(form, marks=pytest.mark.slow) for form in OTHERS)]
)
def test_no_value_decides_while_make_fx_records(form: str, dtype: torch.dtype) -> None:
    """The recorded graph is right for other masks and another presence."""
    fusion = make(form).eval()

    def run(features: Any, masks: Any, present: Tensor) -> Tensor:
        return fusion(features, masks=masks, present=present)

    calls: list[tuple[Any, ...]] = []
    for seed in (0, 1):
        call = make_call(torch.get_default_device(), seed=seed)
        masks = {name: mask.to(dtype) for name, mask in call["masks"].items()}
        calls.append((call["features"], masks, call["present"]))
    features, masks, present = calls[0]
    whole = {name: x.nan_to_num() for name, x in features.items()}
    full = {name: torch.ones_like(mask) for name, mask in masks.items()}
    calls.append((whole, full, torch.ones_like(present)))
    for recorded in (calls[0], calls[2]):
        graph = make_fx(run)(*recorded)
        for other in calls:
            torch.testing.assert_close(graph(*other), run(*other))
