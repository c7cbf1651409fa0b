"""Short-cuts that change what is computed and not what comes out: packing, one query, one key."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import strategies
from grf_fusion import (
    GatedRecurrentFusion,
    SymmetricCrossAttentionBlock,
    mask_from_lengths,
)
from grf_fusion._chain import step as step_module
from grf_fusion._eager import layout as _layout
from grf_fusion._eager.real_steps import find_real_steps
from grf_fusion._layers import attention as _attention
from grf_fusion._layers import block as block_module
from grf_fusion.baselines import ConcatFusion, CrossModalAttentionFusion
from properties import assert_close
from strategies import FusionCall

DIM, HEADS = 15, 3
WIDTHS = {"text": 5, "audio": 3, "sensor": 2}
SIZES: dict[str, Any] = {"embed_dim": DIM, "num_heads": HEADS, "dtype": torch.float64}
# The baselines that have long sequences to attend to.
BASELINES = {
    "early": partial(ConcatFusion, WIDTHS, stage="early", num_layers=2, **SIZES),
    "cross-modal": partial(CrossModalAttentionFusion, WIDTHS, **SIZES),
}
TIMES = pytest.mark.parametrize("times", [(5, 11), (11, 70), (131, 7)], ids=str)
# Each sample by itself, some together, all together.
A_CALL = pytest.mark.parametrize("a_call", [0, 40, 10**9])


@contextmanager
def counted_packings(
    monkeypatch: pytest.MonkeyPatch, where: ModuleType = block_module
) -> Iterator[list[int]]:
    """Collect the number of rows of every sequence that a module packs."""
    rows: list[int] = []
    lay_out = where.lay_out

    def counting(*given: Any) -> Any:
        layouts = lay_out(*given)
        rows.extend(len(layout.place) for layout in layouts)
        return layouts

    with monkeypatch.context() as patch:
        patch.setattr(where, "lay_out", counting)
        yield rows


def make_block(**options: Any) -> SymmetricCrossAttentionBlock:
    torch.manual_seed(1)
    return SymmetricCrossAttentionBlock(
        DIM, num_heads=HEADS, num_layers=2, dtype=torch.float64, **options
    )


def gradients(module: nn.Module, outputs: tuple[Tensor, ...], inputs: dict[str, Tensor]) -> Any:
    """Gradients of a loss that weighs every entry differently, by name."""
    generator = torch.Generator(torch.get_default_device()).manual_seed(3)
    loss = sum(
        (torch.randn(out.shape, generator=generator, dtype=out.dtype) * out).sum()
        for out in outputs
    )
    named = dict(module.named_parameters()) | inputs
    found = torch.autograd.grad(loss, list(named.values()))
    return dict(zip(named, found, strict=True))


@TIMES
@A_CALL
@pytest.mark.parametrize("pattern", ["padded", "holes", "some empty", "all empty"])
@pytest.mark.parametrize(
    "options", [{}, {"norm_first": True}, {"self_attention": "linear"}], ids=str
)
def test_packed_block_equals_padded(
    times: tuple[int, int],
    a_call: int,
    pattern: str,
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_layout, "STEPS_A_CALL", a_call)
    batch = 4
    inputs = {
        name: torch.randn(batch, time, DIM, dtype=torch.float64, requires_grad=True)
        for name, time in zip(("context", "modality"), times, strict=True)
    }
    masks: dict[str, Tensor] = {}
    for name, time in zip(("context", "modality"), times, strict=True):
        masks[name] = mask_from_lengths(torch.tensor([time, 1, time // 2, 2]), time)
        if pattern == "holes":
            masks[name] = torch.rand(batch, time) < 0.5
        if pattern == "some empty":
            masks[name][0 if name == "context" else 2] = False
    if pattern == "all empty":
        masks["modality"][:] = False
    found = []
    for packing in (False, True):
        block = make_block(packing=packing, **options)
        outputs = block(
            inputs["context"],
            inputs["modality"],
            context_mask=masks["context"],
            modality_mask=masks["modality"],
        )
        names = dict(zip(("context", "modality"), outputs, strict=True))
        found.append((names, gradients(block, outputs, inputs)))
    (padded, padded_gradients), (packed, packed_gradients) = found
    assert_close(packed, padded)
    assert_close(packed_gradients, padded_gradients)


@strategies.examples(60)
@given(strategies.fusion_calls(smooth=True))
def test_packed_fusion_equals_padded(call: FusionCall) -> None:
    assume(call.config.form != "summary")
    results = []
    for packing in (False, True):
        torch.manual_seed(call.seed)
        fusion = GatedRecurrentFusion(
            **(call.config.kwargs() | {"packing": packing}), dtype=torch.float64
        )
        features = {
            name: None if value is None else value.double() for name, value in call.features.items()
        }
        context, trace = fusion(
            features,
            masks=call.masks,
            present=call.present,
            order=call.order,
            return_trace=True,
        )
        results.append({"context": context, "contexts": trace.contexts, "gates": trace.gates})
    assert_close(results[1], results[0])


def slow_groups(lengths: list[tuple[int, ...]]) -> list[list[int]]:
    """What `_group` says, from the whole group for every sample that comes."""
    groups: list[list[int]] = [[]]
    for sample in sorted(range(len(lengths)), key=lambda sample: -sum(lengths[sample])):
        whole = [lengths[one] for one in (*groups[-1], sample)]
        cost = 0.0
        for of in zip(*whole, strict=True):
            cost += sum(max(of) - length for length in of) * (1 + max(of) / _layout.LONG) ** 2
        if cost > _layout.STEPS_A_CALL:
            groups.append([])
        groups[-1].append(sample)
    return groups


@strategies.examples(60)
@given(st.integers(1, 2).flatmap(lambda n: st.lists(st.tuples(*[st.integers(0, 60)] * n))))
def test_groups_are_those_of_the_rule(lengths: list[tuple[int, ...]]) -> None:
    assert list(_layout._group(lengths)) == slow_groups(lengths)


def test_grouping_takes_time_in_proportion_to_the_samples() -> None:
    """By the rule itself these would take half an hour."""
    (group,) = _layout._group([(2, 4)] * 100_000)
    assert group == list(range(100_000))


def test_only_real_steps_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With every sample by itself; one row stands for a sample that has nothing."""
    monkeypatch.setattr(_layout, "STEPS_A_CALL", 0)
    mask = mask_from_lengths(torch.tensor([11, 2, 0]), 11)
    context, modality = torch.randn(3, 1, DIM).double(), torch.randn(3, 11, DIM).double()
    with counted_packings(monkeypatch) as rows:
        make_block()(context, modality, modality_mask=mask)
        assert rows == [14]
        make_block()(modality, context, context_mask=mask)
        assert sorted(rows[1:]) == [3, 14]


def test_samples_share_a_call_where_padding_them_costs_less() -> None:
    """Lengths 500 and 400 are too far from each other; 21 and 20 and 19 are not, nor is 0."""
    lengths = [20, 500, 21, 400, 0, 19]
    mask = mask_from_lengths(torch.tensor(lengths), 500)
    sequence = torch.randn(6, 500, DIM).double()
    (layout,) = _layout.lay_out([sequence], [mask])
    assert [group.samples for group in layout.groups] == [1, 1, 4]
    assert [group.allowed is None for group in layout.groups] == [True, True, False]
    assert len(layout.place) == 500 + 400 + 4 * 21
    assert layout.sample.unique_consecutive().tolist() == [1, 3, 2, 0, 5, 4]
    assert int(layout.padding.sum()) == len(layout.place) - sum(lengths)
    rows = layout.pack(sequence)
    torch.testing.assert_close(
        layout.unpack(rows), sequence.masked_fill(~mask.unsqueeze(-1), 0.0), rtol=0, atol=0
    )


def test_packing_is_where_it_pays_or_is_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    context, modality = torch.randn(3, 1, DIM).double(), torch.randn(3, 20, DIM).double()
    full, nearly = torch.ones(3, 20).bool(), mask_from_lengths(torch.tensor([20, 20, 17]), 20)
    padded = mask_from_lengths(torch.tensor([20, 9, 3]), 20)
    with counted_packings(monkeypatch) as rows:
        for mask in (None, full, nearly):
            make_block()(context, modality, modality_mask=mask)
        make_block(packing=False)(context, modality, modality_mask=padded)
        make_block()(context, modality, modality_mask=padded, need_weights=True)
        assert rows == []
        make_block(packing=True)(context, modality, modality_mask=nearly)
        assert rows == [60]
        make_block(packing=True)(context, modality)
        assert rows == [60]


@pytest.mark.parametrize("pattern", ["padded", "holes", "some empty", "none whole"])
@pytest.mark.parametrize("a_call", [0, 10**9])
@pytest.mark.parametrize("form", list(BASELINES))
def test_packed_baseline_equals_padded(
    form: str, pattern: str, a_call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A baseline packs by itself, where enough is padding: here always, and never."""
    monkeypatch.setattr(_layout, "STEPS_A_CALL", a_call)
    torch.manual_seed(2)
    fusion = BASELINES[form]()
    times = {"text": 7, "audio": 11, "sensor": 1}
    inputs = {
        name: torch.randn(4, time, fusion.modalities[name], dtype=torch.float64, requires_grad=True)
        for name, time in times.items()
    }
    masks = {
        name: mask_from_lengths(torch.tensor([time, 1, (time + 1) // 2, min(2, time)]), time)
        for name, time in times.items()
    }
    present = None
    if pattern == "holes":
        masks = {name: torch.rand(mask.shape) < 0.5 for name, mask in masks.items()}
    if pattern == "some empty":
        masks["audio"][2] = masks["sensor"][0] = False
        present = torch.ones(4, 3, dtype=torch.bool)
        present[3] = False
    if pattern == "none whole":
        present = torch.eye(4, 3, dtype=torch.bool)
    found = []
    for share in (math.inf, -math.inf):
        monkeypatch.setattr(_layout, "WORTH_PACKING", share)
        with counted_packings(monkeypatch, import_module(type(fusion).__module__)) as rows:
            fused = fusion(inputs, masks=masks, present=present)
        assert bool(rows) == (share < 0)
        found.append({"fused": fused} | gradients(fusion, (fused,), inputs))
    assert_close(found[1], found[0])


@pytest.mark.parametrize("form", list(BASELINES))
def test_a_packed_baseline_with_another_default_device(form: str) -> None:
    fusion, features = BASELINES[form](), {"text": torch.randn(2, 7, 5).double()}
    masks = {"text": mask_from_lengths(torch.tensor([7, 2]), 7)}
    expected = fusion(features, masks=masks)
    with torch.device("meta"):
        assert torch.equal(fusion(features, masks=masks), expected)


def test_a_mask_that_hides_nothing_changes_no_bit() -> None:
    context, modality = torch.randn(3, 5, DIM).double(), torch.randn(3, 11, DIM).double()
    masks = {"context_mask": torch.ones(3, 5).bool(), "modality_mask": torch.ones(3, 11).bool()}
    block = make_block()
    for found, expected in zip(
        block(context, modality, **masks), block(context, modality), strict=True
    ):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("packing", ["auto", True])
def test_values_of_meta_tensors_are_not_asked_for(packing: Any) -> None:
    block = SymmetricCrossAttentionBlock(DIM, num_heads=HEADS, packing=packing, device="meta")
    context = torch.empty(3, 5, DIM, device="meta")
    mask = torch.empty(3, 5, dtype=torch.bool, device="meta")
    assert block(context, context, context_mask=mask, modality_mask=mask)[0].shape == (3, 5, DIM)


class Doubled(nn.Linear):
    """An adapted layer: what it computes is not what its weight says."""

    def forward(self, features: Tensor) -> Tensor:
        """Return twice the projection."""
        return 2 * super().forward(features)


@pytest.mark.usefixtures("rearranged")
@pytest.mark.parametrize("name", ["k_proj", "v_proj"])
def test_an_adapted_projection_is_called_and_not_folded(name: str) -> None:
    block = make_block(pooled_context=True)
    context, modality = torch.randn(3, 1, DIM).double(), torch.randn(3, 11, DIM).double()
    attention = block.context_layers[0].cross_attn
    plain = getattr(attention, name)
    adapted = Doubled(DIM, DIM, bias=plain.bias is not None, dtype=torch.float64)
    adapted.load_state_dict(plain.state_dict())
    setattr(attention, name, adapted)
    called = block(context, modality)[0]
    with torch.no_grad():
        plain.weight.mul_(2)
        if plain.bias is not None:
            plain.bias.mul_(2)
    setattr(attention, name, plain)
    folded = block(context, modality)[0]
    assert_close({"context": called}, {"context": folded})


@pytest.mark.usefixtures("rearranged")
@pytest.mark.parametrize(("name", "bias"), [("k_proj", True), ("v_proj", False)])
def test_a_projection_with_another_bias_is_called(name: str, bias: bool) -> None:
    """A bias of the keys cancels; values without one are values with a bias of 0."""
    block = make_block(pooled_context=True)
    context, modality = torch.randn(3, 1, DIM).double(), torch.randn(3, 11, DIM).double()
    attention = block.context_layers[0].cross_attn
    plain = getattr(attention, name)
    other = nn.Linear(DIM, DIM, bias=bias, dtype=torch.float64)
    other.weight = plain.weight
    if not bias:
        nn.init.zeros_(plain.bias)
    expected = block(context, modality)[0]
    setattr(attention, name, other)
    assert_close({"context": block(context, modality)[0]}, {"context": expected})


@pytest.fixture
def rearranged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rearrange products at any size, also where that takes longer than they do."""
    monkeypatch.setattr(_attention, "FEW", 0)


def counted_flops(
    block: SymmetricCrossAttentionBlock, time: int, mask: Tensor | None = None
) -> int:
    """Operations of matrix products in one forward pass."""
    context, modality = torch.randn(2, 1, 16), torch.randn(2, time, 16)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        block(context, modality, modality_mask=mask)
    return counter.get_total_flops()


def small_block(**options: Any) -> SymmetricCrossAttentionBlock:
    return SymmetricCrossAttentionBlock(
        16, num_heads=4, dim_feedforward=8, pooled_context=True, **options
    )


BATCH, WIDTH, HIDDEN = 2, 16, 8
# Of each step, in the modality's stack: two linear layers.
FEEDFORWARD = 2 * 2 * WIDTH * HIDDEN
# Of each step, in the context's stack: a score and a share of the sum for each of four heads.
READ_BY_ONE_QUERY = 4 * 2 * 2 * WIDTH


@pytest.mark.usefixtures("rearranged")
def test_one_query_never_projects_what_it_reads() -> None:
    block = small_block(symmetric=False)
    growth = counted_flops(block, 31) - counted_flops(block, 30)
    assert growth == BATCH * READ_BY_ONE_QUERY


@pytest.mark.usefixtures("rearranged")
def test_one_key_costs_nothing_for_each_query() -> None:
    block = small_block(self_attention=False)
    growth = counted_flops(block, 31) - counted_flops(block, 30)
    assert growth == BATCH * (READ_BY_ONE_QUERY + FEEDFORWARD)


@pytest.mark.usefixtures("rearranged")
def test_linear_attention_costs_the_same_for_each_step() -> None:
    block = small_block(self_attention="linear")
    projections, sums = 4 * 2 * WIDTH**2, 2 * 2 * WIDTH * (WIDTH // 4)
    denominator = 2 * WIDTH
    growth = counted_flops(block, 31) - counted_flops(block, 30)
    each = READ_BY_ONE_QUERY + FEEDFORWARD + projections + sums + denominator
    assert growth == BATCH * each


@pytest.mark.usefixtures("rearranged")
def test_padding_costs_no_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the longer sequence needs more is that one query looks over its padding."""
    monkeypatch.setattr(_layout, "STEPS_A_CALL", 0)
    block = small_block(packing=True)
    mask = mask_from_lengths(torch.tensor([30, 11]), 40)
    growth = counted_flops(block, 40, mask) - counted_flops(block, 30, mask[:, :30])
    assert growth == BATCH * 10 * READ_BY_ONE_QUERY


@pytest.mark.parametrize("packing", ["yes", None, 1])
def test_wrong_packing_is_refused(packing: Any) -> None:
    with pytest.raises(ValueError, match=f"`packing` to be 'auto', True or False, got {packing!r}"):
        make_block(packing=packing)


SUMMARY: dict[str, dict[str, Any]] = {
    "summary": {},
    "two layers": {"num_layers": 2, "activation": "relu"},
    "own units, opened by the first": {"share_weights": False, "opening": "first"},
}


@contextmanager
def counted_rows(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Collect the number of rows of every modality that the summary form packs."""
    rows: list[int] = []

    def counting(mask: Tensor) -> Any:
        rows.append(int(mask.sum()))
        return find_real_steps(mask)

    with monkeypatch.context() as patch:
        patch.setattr(step_module, "find_real_steps", counting)
        yield rows


def summary_call(pattern: str) -> dict[str, Any]:
    """Features of three modalities with NaN where nothing is real, masks and presence."""
    times = {"text": 7, "audio": 11, "sensor": 1}
    masks = {
        name: mask_from_lengths(torch.tensor([time, 1, (time + 1) // 2, min(2, time)]), time)
        for name, time in times.items()
    }
    present = torch.ones(4, 3, dtype=torch.bool)
    if pattern == "holes":
        masks = {name: torch.rand(mask.shape) < 0.5 for name, mask in masks.items()}
    if pattern == "absent":
        present = torch.tensor([[1, 1, 0], [0, 1, 1], [0, 0, 0], [1, 0, 0]]).bool()
    if pattern == "nobody":
        masks["audio"][:] = False
    # Whole numbers: the maximum has more than one place.
    features = {
        name: torch.randint(-2, 3, (4, time, WIDTHS[name])).double() for name, time in times.items()
    }
    for column, (name, values) in enumerate(features.items()):
        values[~masks[name] | ~present[:, column, None]] = math.nan
        values.requires_grad_()
    return {"features": features, "masks": masks, "present": present}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("pattern", ["padded", "holes", "absent", "nobody"])
@pytest.mark.parametrize("options", list(SUMMARY))
def test_packed_summary_equals_padded(
    options: str, pattern: str, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In training with scales that are measured in this very call."""
    found, call = [], summary_call(pattern)
    for packing in (False, True):
        torch.manual_seed(1)
        fusion = GatedRecurrentFusion(
            WIDTHS, embed_dim=DIM, packing=packing, dtype=torch.float64, **SUMMARY[options]
        ).train(training)
        with counted_rows(monkeypatch) as rows:
            context, trace = fusion(**call, return_trace=True)
        assert len(rows) == 3 * packing
        outputs = {"context": context, "contexts": trace.contexts, "gates": trace.gates}
        slopes = gradients(fusion, tuple(outputs.values()), call["features"])
        found.append(outputs | slopes | {f"buffer {n}": b for n, b in fusion.named_buffers()})
    assert_close(found[1], found[0])


class Ranged(nn.Module):
    """A layer of somebody else, which wants samples and time, and has a range over all of them."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, steps: Tensor) -> Tensor:
        _batch, _time, _dim = steps.shape
        assert steps.detach().abs().amax().isfinite()
        return self.linear(steps)


class TwoArguments(nn.Module):
    """A summary of somebody else, which knows nothing of packing."""

    def __init__(self, summary: nn.Module) -> None:
        super().__init__()
        self.summary = summary

    def forward(self, steps: Tensor, mask: Tensor | None) -> Tensor:
        return self.summary(steps, mask)


@pytest.mark.parametrize("where", ["projections.text", "summaries.text.hidden.0", "summaries.text"])
def test_layers_of_others_are_given_samples_and_time(where: str) -> None:
    call = summary_call("absent")
    fusion = GatedRecurrentFusion(WIDTHS, embed_dim=DIM, packing=False, dtype=torch.float64).eval()
    expected = fusion(**call)
    fusion.packing = True
    part = fusion.get_submodule(where)
    if isinstance(part, nn.Linear):
        other: nn.Module = Ranged(part)
        other.weight, other.in_features = part.weight, part.in_features
    else:
        other = TwoArguments(part)
    fusion.set_submodule(where, other)
    assert_close({"": fusion(**call)}, {"": expected})
    del call["features"]["audio"], call["masks"]["audio"]
    fusion(**call)


@pytest.mark.parametrize("bias", [0.0, 1.0])
def test_gradient_of_a_maximum_that_all_steps_share(bias: float) -> None:
    """Of pruned features; where they are 0, nothing else may share the gradient."""
    found, call = [], summary_call("padded")
    for packing in (False, True):
        torch.manual_seed(1)
        fusion = GatedRecurrentFusion(WIDTHS, embed_dim=DIM, packing=packing, dtype=torch.float64)
        with torch.no_grad():
            for summary in fusion.summaries.values():
                layer = summary.hidden[0]
                layer.weight[: DIM // 2] = 0
                layer.bias[: DIM // 2] = bias
        context = fusion.eval()(**call)
        found.append(gradients(fusion, (context,), call["features"]))
    assert_close(found[1], found[0])


@pytest.mark.parametrize("packing", ["auto", False])
def test_a_block_that_is_written_down_takes_any_number_of_samples(packing: Any) -> None:
    block = SymmetricCrossAttentionBlock(8, num_heads=2, packing=packing).eval()

    def call(context: Tensor, modality: Tensor) -> tuple[Tensor, ...]:
        return block(context, modality)

    pair = torch.randn(4, 5, 8), torch.randn(4, 3, 8)
    graph = make_fx(call, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*pair)
    more = tuple(x.repeat(2, 1, 1) for x in pair)
    torch.testing.assert_close(graph(*more), call(*more))


class LargestOutput(TorchDispatchMode):
    """Notes the number of entries of the largest tensor that an operation makes."""

    entries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation."""
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.entries = max(self.entries, result.numel())
        return result


@pytest.mark.parametrize("training", [True, False])
def test_one_long_sample_makes_no_other_sample_long(training: bool) -> None:
    layout = find_real_steps(mask_from_lengths(torch.tensor([500, *[2] * 30, 0]), 500))
    rows = torch.randn(len(layout.place), 3, dtype=torch.float64, requires_grad=training)
    with LargestOutput() as largest:
        pooled = layout.pool(rows)
        if training:
            pooled.sum().backward()
    assert largest.entries <= rows.numel()
    parts = rows.detach().split(layout.lengths.flatten().tolist())
    for found, expected in zip(pooled[:, 3:], parts, strict=True):
        assert torch.equal(found, expected.amax(0) if len(expected) else torch.zeros(3).double())


def test_packed_summary_can_be_differentiated_twice() -> None:
    fusion = GatedRecurrentFusion({"a": 2, "b": 3}, embed_dim=3, packing=True, dtype=torch.float64)
    masks = {"a": mask_from_lengths(torch.tensor([2, 1]), 2), "b": torch.eye(2).bool()}
    inputs = [torch.randn(2, 2, width, dtype=torch.float64, requires_grad=True) for width in (2, 3)]

    def fuse(a: Tensor, b: Tensor) -> Tensor:
        return fusion.eval()({"a": a, "b": b}, masks=masks)

    assert torch.autograd.gradcheck(fuse, inputs)
    assert torch.autograd.gradgradcheck(fuse, inputs)


def test_a_summary_is_packed_where_it_pays_and_nobody_listens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = torch.randn(3, 20, 5)
    nearly, padded = (mask_from_lengths(torch.tensor(n), 20) for n in ([20, 20, 17], [20, 9, 3]))

    def make(**options: Any) -> GatedRecurrentFusion:
        return GatedRecurrentFusion({"text": 5}, embed_dim=8, **options)

    with counted_rows(monkeypatch) as rows:
        for mask in (None, nearly):
            make()({"text": x}, masks={"text": mask})
        make(packing=True)({"text": x})
        make(packing=False)({"text": x}, masks={"text": padded})
        for part in ("projections.text", "scales.text", "summaries.text"):
            fusion = make()
            fusion.get_submodule(part).register_forward_hook(lambda *_: None)
            fusion({"text": x}, masks={"text": padded})
        with torch.autocast("cpu", torch.bfloat16):
            make()({"text": x}, masks={"text": padded})
        torch.func.vmap(make().eval(), in_dims=({"text": 1},))({"text": x.unsqueeze(1)})
        assert rows == []
        make()({"text": x}, masks={"text": padded})
        make(packing=True)({"text": x}, masks={"text": nearly})
        # Of an absent modality there is nothing to pack.
        both = GatedRecurrentFusion({"text": 5, "audio": 3}, embed_dim=8)
        both({"text": x}, masks={"text": padded})
        assert rows == [32, 57, 32]
