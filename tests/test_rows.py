"""Rows, the layout for a GPU: the same outputs and gradients as padded, and no wait for the device.

On the CPU the layout is forced, and attention over sequences of unequal lengths, of which PyTorch
has no kernel there, is a slow one; with --device cuda it is PyTorch's where the dtype has it.
"""

import copy
import importlib
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from grf_fusion import GatedRecurrentFusion, SymmetricCrossAttentionBlock, mask_from_lengths
from grf_fusion._chain import step as _step
from grf_fusion._checks.tracing import version_of
from grf_fusion._eager import layout as _layout
from grf_fusion._eager import pooling as _pooling
from grf_fusion._eager import rows as _rows
from grf_fusion._inputs import lengths as _lengths
from grf_fusion._inputs import scale as _scale
from grf_fusion._inputs.lengths import known_lengths, restrict
from grf_fusion._layers import block as _block
from properties import assert_close
from strategies import examples

DIM, HEADS = 12, 3
OPTIONS: list[dict[str, Any]] = [
    {},
    {"norm_first": True, "self_attention": False},
    {"self_attention": "linear"},
    {"symmetric": False},
    {"checkpoint": True},
]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


@contextmanager
def rows_everywhere(kernel: Callable[..., Tensor] | None = None) -> Iterator[list[_rows.Rows]]:
    """Lay out rows on every device, however few; collect the layouts."""
    laid_out: list[_rows.Rows] = []
    lay_out = _layout.lay_out_rows

    def noting(*given: Any) -> _rows.Rows:
        laid_out.append(lay_out(*given))
        return laid_out[-1]

    with pytest.MonkeyPatch.context() as patch:
        for module in (_layout, _step):
            patch.setattr(module, "groups_samples", lambda _: False)
            patch.setattr(module, "lay_out_rows", noting)
        patch.setattr(_rows, "WORTH_LAUNCHES", 0)
        patch.setattr(_pooling, "SEPARATE", ())
        if kernel is not None:
            patch.setattr(_rows, "varlen_kernel", lambda *_: kernel)
        yield laid_out


def slow_kernel(q: Tensor, k: Tensor, v: Tensor, *offsets: Any) -> Tensor:
    """What `torch.nn.attention.varlen.varlen_attn` computes, sample by sample."""
    of_q, of_k, most_q, most_k = offsets
    assert of_q.dtype == of_k.dtype == torch.int32
    assert (int(of_q[-1]), int(of_k[-1])) == (len(q), len(k))
    assert (int(of_q.diff().max()), int(of_k.diff().max())) == (most_q, most_k)
    read = []
    for sample in range(len(of_q) - 1):
        a, b = of_q[sample : sample + 2].tolist()
        c, d = of_k[sample : sample + 2].tolist()
        scores = torch.einsum("qhd,khd->hqk", q[a:b], k[c:d]) * q.shape[-1] ** -0.5
        read.append(torch.einsum("hqk,khd->qhd", scores.softmax(dim=-1), v[c:d]))
    return torch.cat(read)


def results(module: nn.Module, outputs: dict[str, Tensor], inputs: dict[str, Tensor]) -> Any:
    """Outputs, and the gradients of a loss that weighs every entry of them differently, by name."""
    generator = torch.Generator(torch.get_default_device()).manual_seed(3)
    weights = [
        torch.randn(out.shape, generator=generator, dtype=torch.float64) for out in outputs.values()
    ]
    loss = sum(
        (weight.to(out.dtype) * out).sum()
        for weight, out in zip(weights, outputs.values(), strict=True)
    )
    named = dict(module.named_parameters()) | inputs
    gradients = torch.autograd.grad(loss, list(named.values()))
    return outputs | {f"d {name}": g for name, g in zip(named, gradients, strict=True)}


def run_block(
    times: tuple[int, int],
    lengths: tuple[list[int], list[int]],
    options: dict[str, Any],
    *,
    packing: bool | str,
    dtype: torch.dtype = torch.float64,
    dim: int = DIM,
    heads: int = HEADS,
) -> dict[str, Tensor]:
    """Outputs and gradients of a block whose padded steps hold NaN."""
    torch.manual_seed(1)
    pooled = times[0] == 1
    sizes: dict[str, Any] = {"num_heads": heads, "num_layers": 2, "dtype": torch.float64}
    block = SymmetricCrossAttentionBlock(
        dim, **sizes, pooled_context=pooled, packing=packing, **options
    ).to(dtype)
    named = dict(zip(("context", "modality"), zip(times, lengths, strict=True), strict=True))
    masks = {name: mask_from_lengths(torch.tensor(of), time) for name, (time, of) in named.items()}
    inputs: dict[str, Tensor] = {}
    for name, mask in masks.items():
        steps = torch.randn(*mask.shape, dim, dtype=torch.float64).to(dtype)
        inputs[name] = steps.masked_fill(~mask[..., None], torch.nan).requires_grad_()
    if pooled:
        del masks["context"]
        inputs["context"] = inputs["context"].detach().nan_to_num().requires_grad_()
    given = {f"{name}_mask": mask for name, mask in masks.items()}
    outputs = block(inputs["context"], inputs["modality"], **given)
    return results(block, dict(zip(named, outputs, strict=True)), inputs)


@st.composite
def ragged(draw: st.DrawFn) -> tuple[tuple[int, int], tuple[list[int], list[int]]]:
    """Padded and real lengths of a context and a modality."""
    batch = draw(st.integers(1, 5))
    times = draw(st.sampled_from([1, 7])), draw(st.sampled_from([5, 13]))
    first, second = (
        draw(st.lists(st.integers(0, time), min_size=batch, max_size=batch)) for time in times
    )
    # Where all is real there is no mask and nothing to pack.
    return times, (first, [0, *second[1:]])


@pytest.mark.parametrize("kernel", [None, slow_kernel], ids=["padded attention", "kernel"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@examples(20)
@given(sizes=ragged())
def test_rows_equal_padded(
    sizes: Any, options: dict[str, Any], dtype: torch.dtype, kernel: Any
) -> None:
    padded = run_block(*sizes, options, packing=False, dtype=dtype)
    with rows_everywhere(kernel) as laid_out:
        found = run_block(*sizes, options, packing="auto", dtype=dtype)
    assert laid_out
    assert_close(found, padded, TOLERANCE[dtype])


class NoWait(TorchDispatchMode):
    """Refuses the operations whose result, or its shape, the host has to read from the device."""

    REFUSED = ("_local_scalar_dense", "nonzero", "masked_select", "_unique", "equal", "is_nonzero")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation."""
        name = func._schema.name.removeprefix("aten::")
        by_truth = name.startswith("index") and any(
            index is not None and index.dtype == torch.bool
            for index in (args[1] if isinstance(args[1], list | tuple) else ())
        )
        unsized = name == "repeat_interleave" and not kwargs
        if name.startswith(self.REFUSED) or by_truth or unsized:
            raise RuntimeError(f"{name} waits for the device")
        return func(*args, **(kwargs or {}))


@contextmanager
def no_wait(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Refuse to wait for the device; what only the CPU looks at is not looked at."""
    if torch.get_default_device().type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return
    with monkeypatch.context() as patch, NoWait():
        for module in (_block, importlib.import_module("grf_fusion._inputs.call")):
            patch.setattr(module, "none_if_full", lambda mask: mask)
        patch.setattr(_scale, "host_copy", lambda _: None)
        yield


LENGTHS = {"text": [7, 2, 0, 5], "audio": [1, 11, 3, 0]}


def make_fusion(**options: Any) -> GatedRecurrentFusion:
    torch.manual_seed(1)
    widths = {"text": 5, "audio": 3, "sensor": 2}
    if options["form"] != "summary":
        options["num_heads"] = HEADS
    return GatedRecurrentFusion(widths, embed_dim=DIM, dtype=torch.float64, **options)


def make_call() -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Features with NaN in padding, masks and presence; the sensor has no mask."""
    features = {
        name: torch.randn(4, time, width, dtype=torch.float64)
        for name, time, width in (("text", 7, 5), ("audio", 11, 3), ("sensor", 3, 2))
    }
    device = torch.get_default_device()
    masks = {
        name: mask_from_lengths(
            torch.tensor(of, device="cpu"), features[name].shape[1], device=device
        )
        for name, of in LENGTHS.items()
    }
    for name, mask in masks.items():
        features[name].masked_fill_(~mask.unsqueeze(-1), torch.nan)
    for values in features.values():
        values.requires_grad_()
    present = torch.tensor([[False, True, True], [True] * 3, [True, False, True], [True] * 3])
    return features, masks, present


FORMS: list[dict[str, Any]] = [
    {"form": "summary"},
    {"form": "summary", "num_layers": 2, "activation": "relu", "opening": "first"},
    {"form": "residual"},
    {"form": "paper"},
    {"form": "residual", "norm_first": False, "num_layers": 2},
]


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("who", ["all", "some"])
def test_a_fusion_on_rows_equals_it_padded_and_waits_for_nothing(
    form: dict[str, Any], who: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for packing in (False, "auto"):
        fusion = make_fusion(packing=packing, **form)
        features, masks, present = make_call()
        with rows_everywhere() as laid_out, no_wait(monkeypatch):
            fused = fusion(features, masks=masks, present=present if who == "some" else None)
            buffers = dict(fusion.named_buffers())
            found.append(results(fusion, {"fused": fused}, features) | buffers)
        assert bool(laid_out) == (packing == "auto")
    assert_close(found[1], found[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_pooled_rows_in_half_precision_are_as_exact_as_padded(dtype: torch.dtype) -> None:
    lengths = torch.tensor([700, 1, 90])
    mask = mask_from_lengths(lengths, 800)
    steps = 100 + torch.randn(3, 800, 4, dtype=torch.float64)
    layout = _rows.lay_out_rows(steps, mask)
    exact = layout.pool(layout.pack(steps))
    found = layout.pool(layout.pack(steps.to(dtype)))
    assert found.dtype == dtype
    padded = _pooling.PaddedSteps(mask, 800)
    assert torch.equal(found, _pooling.mean_and_max(steps.to(dtype), padded))
    torch.testing.assert_close(found.double(), exact, rtol=torch.finfo(dtype).eps, atol=0)


def test_waiting_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.arange(3)
    waits: list[Callable[[], object]] = [
        lambda: bool(x.any()),
        x.nonzero,
        lambda: x.repeat_interleave(x),
        lambda: x[x > 1],
    ]
    for wait in waits:
        with pytest.raises(RuntimeError), no_wait(monkeypatch):
            wait()


def test_rows_of_a_mask_that_is_not_known_wait_and_are_right() -> None:
    """With packing=True, holes in the mask and a sample that has nothing."""
    mask = torch.rand(4, 9) < 0.5
    mask[2] = False
    for hidden in (mask, mask | True):
        found = []
        for packing in (False, True):
            torch.manual_seed(1)
            block = SymmetricCrossAttentionBlock(
                DIM, num_heads=HEADS, packing=packing, dtype=torch.float64
            )
            inputs = {
                "context": torch.randn(4, 3, DIM, dtype=torch.float64, requires_grad=True),
                "modality": torch.randn(4, 9, DIM, dtype=torch.float64, requires_grad=True),
            }
            with rows_everywhere() as laid_out:
                outputs = block(*inputs.values(), modality_mask=hidden)
            # A mask without padding is dropped, as on the CPU.
            assert len(laid_out) == 2 * (packing and hidden is mask)
            found.append(results(block, dict(zip("cm", outputs, strict=True)), inputs))
        assert_close(found[1], found[0])


def test_each_row_is_a_real_step_or_stands_for_a_sample_without_any() -> None:
    mask = mask_from_lengths(torch.tensor([3, 0, 5]), 5)
    steps = torch.randn(3, 5, 2)
    layout = _rows.lay_out_rows(steps, mask)
    assert layout.place.tolist() == [0, 1, 2, 5, 10, 11, 12, 13, 14]
    assert layout.sample.tolist() == [0, 0, 0, 1, 2, 2, 2, 2, 2]
    assert (layout.offsets.tolist(), layout.longest) == ([0, 3, 4, 9], 5)
    assert torch.equal(layout.unpack(layout.pack(steps)), steps * mask[..., None])
    nothing = _rows.lay_out_rows(steps[:0], mask[:0])
    assert (len(nothing.place), nothing.longest) == (0, 1)


# PyTorch scripts its own formulas for forward mode; 2.15 warns of it in another class than before.
@pytest.mark.filterwarnings(r"ignore:`torch\.jit\.")
def test_rows_can_be_differentiated_twice_and_forward() -> None:
    mask = mask_from_lengths(torch.tensor([3, 0, 2]), 4)
    layout = _rows.lay_out_rows(torch.zeros(3, 4, 2), mask)

    def call(steps: Tensor, values: Tensor) -> Tensor:
        rows = layout.pack(steps)
        return layout.unpack(rows.square() * layout.spread(values, rows).square())

    given = [torch.randn(3, n, 2, dtype=torch.float64, requires_grad=True) for n in (4, 1)]
    assert torch.autograd.gradcheck(call, given)
    assert torch.autograd.gradgradcheck(call, given)
    tangents = tuple(torch.randn_like(x) for x in given)
    _, expected = torch.autograd.functional.jvp(call, tuple(given), tangents)
    _, found = torch.func.jvp(call, tuple(x.detach() for x in given), tangents)
    torch.testing.assert_close(found, expected)


def test_lengths_are_known_until_a_mask_changes() -> None:
    def make() -> Tensor:
        return mask_from_lengths(torch.tensor([1, 3, 0]), 4)

    known = known_lengths(make())
    assert known is not None
    assert known.host == (1, 3, 0)
    assert known.exact
    changes: dict[str, Callable[[Tensor], object]] = {
        "an entry": lambda mask: mask.__setitem__((0, 1), True),
        "a view": lambda mask: mask[1:].fill_(False),
        "in inference mode": torch.inference_mode()(lambda mask: mask.zero_()),
        "other data": lambda mask: setattr(mask, "data", torch.ones(3, 4).bool()),
    }
    for name, change in changes.items():
        mask = make()
        change(mask)
        assert known_lengths(mask) is None, name
        assert known_lengths(copy.deepcopy(mask)) is None, name
    assert known_lengths(torch.ones(3, 4, dtype=torch.bool, device="meta")) is None
    for other in (make().clone(), make()[:2], pickle.loads(pickle.dumps(make())), ~make()):  # noqa: S301
        assert known_lengths(other) is None


def test_no_length_is_known_while_operations_are_recorded() -> None:
    mask, seen = mask_from_lengths(torch.tensor([1, 3, 0]), 4), []
    make_fx(lambda x: seen.append(known_lengths(mask)) or x + 1)(torch.zeros(1))
    assert seen == [None]
    assert known_lengths(mask) is not None


@pytest.mark.parametrize("noted", [True, False])
def test_a_restricted_mask_has_no_steps_of_other_samples(noted: bool) -> None:
    mask = mask_from_lengths(torch.tensor([1, 3, 0]), 4)
    samples = torch.tensor([[True], [False], [True]])
    both = restrict(mask if noted else mask.clone(), samples)
    assert torch.equal(both, mask & samples)
    known = known_lengths(both)
    assert (known is not None) is noted
    if known is not None:
        assert known.host == (1, 3, 0)
        assert known.exact is False


def test_without_a_counter_of_changes_no_length_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    assert version_of(cast(Tensor, SimpleNamespace())) is None
    monkeypatch.setattr(_lengths, "version_of", lambda _mask: None)
    assert known_lengths(mask_from_lengths(torch.tensor([1, 3, 0]), 4)) is None


def test_lengths_stay_known_where_samples_are_denied() -> None:
    features, masks, present = make_call()
    with rows_everywhere() as laid_out:
        make_fusion(form="residual")(features, masks=masks, present=present)
    text, audio = laid_out
    assert (len(text.place), len(audio.place)) == (7 + 2 + 1 + 5, 1 + 11 + 3 + 1)
    assert text.mask is not None
    assert torch.equal(text.mask, masks["text"] & present[:, :1])


def test_inference_mode_knows_lengths_too() -> None:
    with torch.inference_mode():
        features, masks, present = make_call()
        with rows_everywhere() as laid_out:
            make_fusion(form="residual")(features, masks=masks, present=present)
            assert len(laid_out) == 2
        for mask in masks.values():
            assert known_lengths(mask) is not None
            mask[0] = True
            assert known_lengths(mask) is None


def test_known_lengths_are_not_those_the_caller_goes_on_with() -> None:
    lengths = torch.tensor([1, 3])
    mask = mask_from_lengths(lengths, 4)
    lengths.fill_(4)
    known = known_lengths(mask)
    assert known is not None
    assert known.host == (1, 3)
    assert mask.sum(dim=1).tolist() == [1, 3]


def test_what_is_known_goes_with_the_mask() -> None:
    noted = importlib.import_module("grf_fusion._inputs.lengths")._noted
    before = len(noted)
    mask = mask_from_lengths(torch.tensor([1, 3]), 4)
    assert len(noted) == before + 1
    del mask
    assert len(noted) == before


def test_rows_are_laid_out_where_it_pays() -> None:
    few, nearly = torch.tensor([4, 1]), torch.tensor([10, 10, 9])
    with rows_everywhere():
        for lengths, time, worth in ((few, 4, True), (nearly, 10, False)):
            mask = mask_from_lengths(lengths, time)
            assert _layout.worth_packing([mask, None], packing="auto", width=8) is worth
            copied = [mask, mask.clone()]
            assert _layout.worth_packing(copied, packing="auto", width=8) is False
            assert _layout.worth_packing(copied, packing=True, width=8) is True
    masks = [mask_from_lengths(few, 4)]
    for width, worth in ((2**21, True), (2**20, False)):
        # Three steps of so many numbers are left out.
        assert _rows.worth_rows(masks, width, share=0.1) is worth


def test_a_captured_graph_holds_no_numbers_of_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = mask_from_lengths(torch.tensor([4, 1]), 4)
    monkeypatch.setattr(_layout, "is_captured", lambda device: device == mask.device)
    for packing in ("auto", True):
        assert _layout.worth_packing([mask], packing=packing, width=8) is False


class OnCuda:
    """What `varlen_kernel` asks of queries."""

    def __init__(self, dtype: torch.dtype, head_dim: int, device: str) -> None:
        self.dtype, self.device = dtype, torch.device(device)
        self.shape = torch.Size([5, HEADS, head_dim])


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({}, True),
        ({"dtype": torch.float16}, True),
        ({"dtype": torch.float32}, False),
        ({"head_dim": 12}, False),
        ({"head_dim": 264}, False),
        ({"head_dim": 256}, True),
        ({"device": "cpu"}, False),
        ({"dropout": 0.1}, False),
        ({"capability": (7, 5)}, False),
        ({"flash": False}, False),
    ],
    ids=str,
)
def test_the_kernel_is_taken_where_it_computes_this(
    change: dict[str, Any], found: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {"dtype": torch.bfloat16, "head_dim": 64, "device": "cuda"}
    how = {"dropout": 0.0, "capability": (9, 0), "flash": True} | change
    q: Any = OnCuda(**(given | {name: change[name] for name in given if name in change}))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: how["capability"])
    monkeypatch.setattr(torch.backends.cuda, "flash_sdp_enabled", lambda: how["flash"])
    monkeypatch.setattr(_rows, "_varlen", lambda: slow_kernel)
    assert _rows.varlen_kernel(q, how["dropout"]) is (slow_kernel if found else None)


def test_an_older_pytorch_has_no_such_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (None, type(sys)("varlen")):
        monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", module)
        _rows._varlen.cache_clear()
        if module is None:
            assert _rows._varlen() is None
        else:
            module.varlen_attn = slow_kernel
            assert _rows._varlen() is slow_kernel
    _rows._varlen.cache_clear()


def test_half_precision_is_as_exact_as_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU by PyTorch's kernel for sequences of unequal lengths, where this PyTorch has it."""
    kernel, calls = _rows.varlen_kernel, []

    def noting(*given: Any) -> Callable[..., Tensor] | None:
        calls.append(kernel(*given))
        return calls[-1]

    monkeypatch.setattr(_rows, "varlen_kernel", noting)
    lengths = [33, 1, 0, 20, 32], [40, 0, 3, 17, 39]
    half, double = torch.bfloat16, torch.float64
    options: dict[str, Any] = {"norm_first": True}
    sizes = {"dim": 32, "heads": 2}
    exact = run_block((33, 40), lengths, options, packing=False, dtype=double, **sizes)
    padded = run_block((33, 40), lengths, options, packing=False, dtype=half, **sizes)
    assert not calls
    with rows_everywhere():
        found = run_block((33, 40), lengths, options, packing="auto", dtype=half, **sizes)
    on_gpu = torch.get_default_device().type == "cuda" and _rows._varlen() is not None
    assert calls
    assert all((call is not None) == on_gpu for call in calls)
    for name, want in exact.items():
        scale = want.norm().item()
        off = [(got[name].double() - want).norm().item() / scale for got in (found, padded)]
        assert off[1] < 0.05, f"{name}: padded off by {off[1]}"
        assert off[0] <= 1.5 * off[1] + 0.003, f"{name}: off by {off[0]}, padded by {off[1]}"
