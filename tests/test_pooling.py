"""Mean and maximum over the steps of a sample: padded, and as rows."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, jacfwd, vmap
from torch.utils._python_dispatch import TorchDispatchMode

from grf_fusion import mask_from_lengths
from grf_fusion._eager import pooling
from grf_fusion._eager.pooling import PaddedSteps, mean_and_max
from grf_fusion._eager.rows import lay_out_rows
from grf_fusion.baselines import ConcatFusion

LENGTHS = [3, 0, 5, 1]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}
# PyTorch scripts its own formulas for forward mode; 2.15 warns of it in another class than before.
scripts = pytest.mark.filterwarnings(r"ignore:`torch\.jit\.")


@pytest.fixture(params=["together", "separate"], autouse=True)
def gradients(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether one gradient is written, as on a GPU, or autograd adds two, as on the CPU."""
    together = request.param == "together"
    places = () if together else (torch.get_default_device().type,)
    monkeypatch.setattr(pooling, "SEPARATE", places)
    return request.param


def slowly(steps: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and maximum, sample by sample, and the gradient of a weighted sum of both."""
    values, slopes = (
        torch.zeros(shape, dtype=torch.float64)
        for shape in ((len(steps), 2 * steps.shape[2]), steps.shape)
    )
    for b, (sample, real) in enumerate(zip(steps.tolist(), mask.tolist(), strict=True)):
        times = [t for t, is_real in enumerate(real) if is_real]
        for d in range(steps.shape[2] if times else 0):
            column = [sample[t][d] for t in times]
            values[b, d] = sum(column) / len(column)
            values[b, steps.shape[2] + d] = max(column)
            for t in times:
                slopes[b, t, d] += weights(steps)[b, d] / len(times)
            largest = times[column.index(max(column))]
            slopes[b, largest, d] += weights(steps)[b, steps.shape[2] + d]
    return values, slopes


def weights(steps: Tensor) -> Tensor:
    """One weight per output."""
    number = len(steps) * 2 * steps.shape[2]
    return torch.linspace(-1, 2, number, dtype=torch.float64).view(len(steps), -1)


def padded(steps: Tensor, mask: Tensor) -> Tensor:
    return mean_and_max(steps, PaddedSteps(mask, steps.shape[1]))


def as_rows(steps: Tensor, mask: Tensor) -> Tensor:
    layout = lay_out_rows(steps, mask)
    # A sample without a real step has one row, whose result the caller ignores.
    return layout.pool(layout.pack(steps)).masked_fill(~mask.any(dim=1, keepdim=True), 0.0)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator(torch.get_default_device()).manual_seed(seed)


def holes(mask: Tensor) -> Tensor:
    """Real steps in any places."""
    places = torch.rand(mask.shape, generator=seeded(3)).argsort(dim=1)
    return mask.gather(1, places)


def each_mask() -> Iterator[Tensor]:
    mask = mask_from_lengths(torch.tensor(LENGTHS), 6)
    yield from (mask, holes(mask), torch.ones_like(mask))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("pool", [padded, as_rows])
def test_both_and_their_gradient_are_those_computed_step_by_step(
    pool: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype
) -> None:
    for mask in each_mask():
        # Few different values, so that a maximum occurs in several steps.
        drawn = torch.randint(-2, 3, (*mask.shape, 5), generator=seeded(1))
        steps = drawn.to(dtype).requires_grad_()
        found = pool(steps, mask)
        (found * weights(steps)).sum().backward()
        expected = slowly(steps.detach(), mask)
        for one, other in zip((found, steps.grad), expected, strict=True):
            assert one is not None
            torch.testing.assert_close(one, other.to(dtype), rtol=0, atol=TOLERANCE[dtype])
        with torch.no_grad():
            assert torch.equal(pool(steps, mask), found)


@pytest.mark.parametrize("pool", [padded, as_rows])
def test_padding_has_no_gradient_though_no_real_step_is_larger(
    pool: Callable[[Tensor, Tensor], Tensor],
) -> None:
    mask = torch.tensor([[False, True], [True, False]])
    steps = torch.full((2, 2, 1), -torch.inf, dtype=torch.float64)
    leaf = steps.masked_fill(~mask.unsqueeze(-1), 5.0).requires_grad_()
    pool(leaf, mask).sum().backward()
    assert leaf.grad is not None
    assert not leaf.grad[~mask].any()


@pytest.mark.parametrize("pool", [padded, as_rows])
def test_a_batch_may_hold_no_sample(pool: Callable[[Tensor, Tensor], Tensor]) -> None:
    steps = torch.zeros(0, 3, 2, requires_grad=True)
    found = pool(steps, torch.ones(0, 3, dtype=torch.bool))
    found.sum().backward()
    assert found.shape == (0, 4)
    assert steps.grad is not None


def test_without_a_mask_every_step_is_real() -> None:
    found = []
    for mask in (None, torch.ones(2, 3, dtype=torch.bool)):
        steps = torch.arange(12.0, dtype=torch.float64).view(2, 3, 2).requires_grad_()
        pooled = mean_and_max(steps, PaddedSteps(mask, 3))
        (pooled * weights(steps)).sum().backward()
        found.append((pooled, steps.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_in_half_precision_are_rounded_once(dtype: torch.dtype) -> None:
    mask = mask_from_lengths(torch.tensor([700, 1, 90]), 800)
    steps = (100 + torch.randn(3, 800, 4)).to(dtype)
    for pool in (padded, as_rows):
        found = []
        for kind in (dtype, torch.float64):
            leaf = steps.to(kind).clone().requires_grad_()
            pooled = pool(leaf, mask)
            (pooled * weights(steps).to(dtype).to(kind)).sum().backward()
            found.append((pooled, leaf.grad))
        for one, other in zip(*found, strict=True):
            assert one is not None
            assert one.dtype == dtype
            eps = torch.finfo(dtype).eps
            torch.testing.assert_close(one.double(), other, rtol=eps, atol=eps)


@pytest.mark.parametrize("pool", [padded, as_rows])
def test_the_gradient_can_be_differentiated(pool: Callable[[Tensor, Tensor], Tensor]) -> None:
    for mask in each_mask():
        steps = torch.randn(*mask.shape, 2, dtype=torch.float64, requires_grad=True)

        def call(steps: Tensor, mask: Tensor = mask) -> Tensor:
            return pool(steps, mask).sin()

        assert torch.autograd.gradcheck(call, (steps,))
        assert torch.autograd.gradgradcheck(call, (steps,))


@pytest.mark.parametrize("fused", [True, False])
def test_a_mask_that_changes_before_the_gradient_is_refused(fused: bool) -> None:
    mask = mask_from_lengths(torch.tensor([2, 3]), 3)
    steps = torch.randn(2, 3, 4, requires_grad=True)
    concat = ConcatFusion({"it": 4}, embed_dim=4, stage="pooled")
    pooled = concat({"it": steps}, masks={"it": mask}) if fused else padded(steps, mask)
    mask[0, 1] = False
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        pooled.sum().backward()


@pytest.mark.parametrize("pool", [padded, as_rows])
def test_positions_are_looked_for_only_where_a_gradient_needs_them(
    pool: Callable[[Tensor, Tensor], Tensor], gradients: str
) -> None:
    mask = mask_from_lengths(torch.tensor([2, 3]), 3)
    steps = torch.randn(2, 3, 4)
    leaf = steps.clone().requires_grad_()
    for given, graded in ((steps, True), (leaf, False), (leaf, True)):
        with torch.set_grad_enabled(graded), Operations() as called:
            pooled = pool(given, mask)
        trained = given.requires_grad and graded
        assert ("aten.max.dim" in called.names) == trained
        assert ("aten.amax.default" in called.names) == (not trained)
    names = {str(node) for node in graph_of(pooled)}
    assert any("_MeanAndMax" in name for name in names) == (gradients == "together")


class Operations(TorchDispatchMode):
    """The names of all operations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation."""
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))


def graph_of(tensor: Tensor) -> Iterator[Any]:
    """The nodes of a graph of autograd."""
    waiting: list[Any] = [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None:
            yield node
            waiting += [parent for parent, _ in node.next_functions]


def test_a_mask_that_rows_do_not_need_may_change() -> None:
    mask = mask_from_lengths(torch.tensor([2, 0]), 3)
    steps = torch.randn(2, 3, 4, requires_grad=True)
    layout = lay_out_rows(steps, mask)
    assert layout.mask is mask
    pooled = layout.pool(layout.pack(steps))
    mask[0, 1] = False
    pooled.sum().backward()
    assert steps.grad is not None


def test_nothing_as_long_as_the_steps_is_kept(gradients: str) -> None:
    """In training, the maximum is kept as its position."""
    mask = mask_from_lengths(torch.tensor([300, 2]), 300)
    steps = torch.randn(2, 300, 4, requires_grad=True)
    for pool in (padded, as_rows):
        kept: list[int] = []
        rows: Any = steps if pool is padded else lay_out_rows(steps, mask).pack(steps)

        def keep(tensor: Tensor, kept: list[int] = kept) -> Tensor:
            kept.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            if pool is padded:
                padded(rows, mask)
            else:
                lay_out_rows(steps, mask).pool(rows)
        assert max(kept) < steps.numel() or gradients == "separate"


@scripts
@pytest.mark.parametrize("masked", [True, False])
def test_the_first_step_that_has_the_maximum_gets_the_gradient(masked: bool) -> None:
    """Under every transform, since compiled code could not find the others."""
    values = torch.tensor([[5.0, 2.0, 7.0, 7.0, 7.0]], dtype=torch.float64).unsqueeze(-1)
    mask = torch.tensor([[True, True, not masked, True, True]])

    def largest(given: Tensor) -> Tensor:
        layout = PaddedSteps(mask if masked else None, given.shape[1])
        return mean_and_max(given, layout)[:, 1:].sum()

    def each(given: Tensor) -> Tensor:
        return vmap(largest)(given.unsqueeze(0)).sum()

    place = 3 if masked else 2
    expected = torch.zeros_like(values)
    expected[0, place] = 1
    leaf = values.clone().requires_grad_()
    largest(leaf).backward()
    found = [leaf.grad, grad(largest)(values), grad(each)(values), jacfwd(largest)(values)]
    found.append(vmap(grad(largest))(values.unsqueeze(0)).squeeze(0))
    for slope in found:
        assert torch.equal(slope, expected)
    with torch.no_grad():
        assert largest(values) == 7
