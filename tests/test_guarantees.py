"""The guarantees of the README as properties over random sizes, masks, orders and dtypes.

The assertions stand in tests/properties.py. Compilation and errors have files of their own.
"""

import copy
import dataclasses
import functools
import io
import itertools
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import vmap

import properties
import strategies
from grf_fusion import (
    FusionState,
    GatedFusionUnit,
    GatedRecurrentFusion,
    ModalityDropout,
    ShapeError,
    SymmetricCrossAttentionBlock,
    mask_from_lengths,
)
from grf_fusion._eager.layout import Padded
from grf_fusion._layers.attention import Attention, OneKeyAttention
from grf_fusion.baselines import ConcatFusion, WeightedSumFusion
from properties import NAN, Case, assert_same_bits, build, fusion_case, really_present
from strategies import FusionCall

QUICK = strategies.examples(40)
BRIEF = strategies.examples(15)
THOROUGH = strategies.examples(120)
MODES = [
    {"context": "pooled", "opening": "first"},
    {"context": "pooled", "opening": "learned"},
    {"context": "first_sequence"},
    {"context": "sequence"},
]
CONFIGURATIONS = [
    mode | {"share_weights": share} for mode, share in itertools.product(MODES, [True, False])
]


def label(options: object) -> str:
    return "-".join(map(str, options.values())) if isinstance(options, dict) else str(options)


each_mode = pytest.mark.parametrize("mode", MODES, ids=label)
each_configuration = pytest.mark.parametrize("options", CONFIGURATIONS, ids=label)


@st.composite
def unit_cases(draw: st.DrawFn, dtype: torch.dtype | None = None) -> Case:
    axes = draw(st.integers(1, 3))
    norm = draw(st.booleans())
    dtype = draw(strategies.dtypes()) if dtype is None else dtype
    return properties.unit_case(
        leading=draw(strategies.sizes(axes)),
        # The mean and the difference of few columns say little about a LayerNorm.
        embed_dim=draw(st.sampled_from((7, 10, 13) if norm else (1, 2, 7, 10))),
        dtype=dtype,
        seed=draw(strategies.seeds()),
        norm=norm,
        gate_bias=draw(st.sampled_from((0.0, -2.5))),
        identity_init=not norm and draw(st.booleans()),
    )


def fusion_cases(**options: Any) -> st.SearchStrategy[Case]:
    return strategies.fusion_calls(**options).map(fusion_case)


def block_cases(**options: Any) -> st.SearchStrategy[Case]:
    return strategies.block_calls(**options).map(properties.block_case)


def baseline_cases(kind: str) -> Callable[..., st.SearchStrategy[Case]]:
    def cases(**options: Any) -> st.SearchStrategy[Case]:
        return strategies.baseline_calls(kind, **options).map(properties.baseline_case)

    return cases


def adapter_cases(**options: Any) -> st.SearchStrategy[Case]:
    return strategies.adapter_calls(**options).map(properties.adapter_case)


BASELINES = {kind: baseline_cases(kind) for kind in strategies.BASELINES}
MASKED = {"fusion": fusion_cases, "block": block_cases, "adapter": adapter_cases} | BASELINES
FUSIONS = {"fusion": strategies.fusion_calls} | {
    kind: functools.partial(strategies.baseline_calls, kind) for kind in strategies.BASELINES
}
MODULES: dict[str, Callable[..., st.SearchStrategy[Case]]] = MASKED | {"unit": unit_cases}
each_masked = pytest.mark.parametrize("module", MASKED)
each_module = pytest.mark.parametrize("module", MODULES)
each_fusion = pytest.mark.parametrize("kind", FUSIONS)


def prime_call(*, count: int = 3, dtype: torch.dtype = torch.float64, **options: Any) -> FusionCall:
    """Everything present, no masks, all sizes prime or odd and mutually different."""
    names, widths, times = ("text", "image", "audio", "depth"), (13, 11, 17, 19), (5, 3, 2, 11)
    generator = torch.Generator(torch.get_default_device()).manual_seed(11)
    features = {
        name: torch.randn(7, time, width, generator=generator, dtype=torch.float64).to(dtype)
        for name, time, width in zip(names[:count], times, widths, strict=False)
    }
    chosen: dict[str, Any] = {"embed_dim": 15, "num_heads": 3} | options
    modalities = {name: value.shape[2] for name, value in features.items()}
    return FusionCall(
        config=strategies.FusionConfig(modalities=modalities, **chosen),
        features=features,
        masks=None,
        present=None,
        order=None,
        dtype=dtype,
        seed=23,
    )


def ragged_call(**options: Any) -> FusionCall:
    """The same with padding, holes and absence."""
    call = prime_call(**options)
    generator = torch.Generator(torch.get_default_device()).manual_seed(13)
    masks = {
        name: torch.rand(x.shape[:2], generator=generator) < 0.6
        for name, x in call.features.items()
    }
    present = torch.rand(7, 3, generator=generator) < 0.7
    return dataclasses.replace(call, masks=masks, present=present)


# 1. Padding


@each_masked
@QUICK
@given(data=st.data())
def test_padding_has_no_influence(module: str, data: st.DataObject) -> None:
    case = data.draw(MASKED[module]())
    properties.assert_padding_has_no_influence(case, data.draw(strategies.seeds()))


@pytest.mark.slow
@each_masked
@THOROUGH
@given(data=st.data())
def test_padding_has_no_influence_thoroughly(module: str, data: st.DataObject) -> None:
    case = data.draw(MASKED[module]())
    properties.assert_padding_has_no_influence(case, data.draw(strategies.seeds()))


@each_masked
@QUICK
@given(data=st.data())
def test_right_padding_only_rounds(module: str, data: st.DataObject) -> None:
    case = data.draw(MASKED[module]())
    if module == "block":
        assume(not case.module.pooled_context)
    properties.assert_right_padding_only_rounds(case, data.draw(st.integers(1, 4)))


@BRIEF
@given(strategies.fusion_calls(dtype=torch.float32))
def test_padding_has_no_influence_under_autocast(call: FusionCall) -> None:
    case = fusion_case(call)
    with torch.autocast(torch.get_default_device().type, dtype=torch.bfloat16):
        properties.assert_padding_has_no_influence(case)


# 2. Absence


@each_fusion
@QUICK
@given(data=st.data())
def test_ways_of_absence_agree(kind: str, data: st.DataObject) -> None:
    call = data.draw(FUSIONS[kind]())
    given_names = [name for name, value in call.features.items() if value is not None]
    name = data.draw(st.sampled_from(given_names))
    batch = call.features[name].shape[0]
    some = st.lists(st.booleans(), min_size=batch, max_size=batch)
    gone = torch.tensor(data.draw(st.just([True] * batch) | some))
    properties.assert_ways_of_absence_agree(properties.case_of(call).module, call, name, gone)


@QUICK
@given(strategies.fusion_calls())
def test_absent_modality_leaves_the_state(call: FusionCall) -> None:
    properties.assert_absent_leave_the_state(build(call), call)


@each_mode
def test_absent_modality_can_be_skipped_in_a_stream(mode: dict[str, str]) -> None:
    fusion = build(prime_call(**mode))
    features = prime_call(**mode).features
    state = fusion.step(None, "text", features["text"])
    state = fusion.step(state, "image", features["image"])
    without = fusion.step(state, "audio", None)
    assert_same_bits(without._asdict(), state._asdict())


def nothing_at_all(call: FusionCall, how: str) -> FusionCall:
    """The call with samples 1 and 4, or all of them, without anything."""
    gone = torch.zeros(7, dtype=torch.bool)
    gone[[1, 4] if how.startswith("some") else slice(None)] = True
    features = {name: value.clone() for name, value in call.features.items()}
    for value in features.values():
        value[gone] = NAN
    if how.endswith("masked"):
        masks = {
            name: ~gone.unsqueeze(1).expand(value.shape[:2]) for name, value in features.items()
        }
        return dataclasses.replace(call, features=features, masks=masks)
    present = ~gone.unsqueeze(1).expand(7, len(features))
    return dataclasses.replace(call, features=features, present=present)


@pytest.mark.parametrize("how", ["some masked", "all masked", "some absent", "all absent"])
@pytest.mark.parametrize("count", [1, 3])
@each_configuration
def test_sample_with_nothing_returns_the_start(
    options: dict[str, Any], count: int, how: str
) -> None:
    call = nothing_at_all(prime_call(count=count, **options), how)
    fusion = build(call)
    case = fusion_case(call, fusion)
    outputs = case.outputs()
    gone = ~properties.really_present(call).any(dim=1)
    start = torch.zeros(15, dtype=torch.float64)
    if options.get("opening") == "learned":
        start = fusion.initial_context.detach()
    context = outputs["context"][gone]
    assert_same_bits({"context": context}, {"context": start.expand_as(context).clone()})
    contexts = outputs["contexts"][gone]
    assert_same_bits({"contexts": contexts}, {"contexts": start.expand_as(contexts).clone()})
    assert not outputs["gates"][gone].any()
    assert not outputs["present"][gone].any()
    properties.assert_finite(case.gradients())


@pytest.mark.parametrize("how", ["all masked", "all absent"])
@each_configuration
def test_batch_with_nothing_gives_every_parameter_a_gradient_of_zero(
    options: dict[str, Any], how: str
) -> None:
    case = fusion_case(nothing_at_all(prime_call(**options), how))
    names = [name for name, _ in case.module.named_parameters() if name != "initial_context"]
    properties.assert_rests(case, names)


def test_presence_tells_what_is_really_there() -> None:
    call = prime_call()
    fusion = build(call)
    masks = {"text": torch.ones(7, 5, dtype=torch.int64)}
    masks["text"][3] = 0
    present = torch.ones(7, 3, dtype=torch.bool)
    present[5, 1] = False
    features = dict(call.features) | {"audio": None}
    expected = torch.tensor([[s != 3, s != 5, False] for s in range(7)])
    assert torch.equal(fusion.presence(features, masks=masks, present=present), expected)


@each_fusion
@QUICK
@given(data=st.data())
def test_presence_is_that_of_the_call(kind: str, data: st.DataObject) -> None:
    call = data.draw(FUSIONS[kind]())
    fusion = properties.case_of(call).module
    here = fusion.presence(call.features, masks=call.masks, present=call.present)
    assert torch.equal(here, properties.really_present(dataclasses.replace(call, order=None)))


# 3. Samples are independent


@each_module
@QUICK
@given(data=st.data())
def test_samples_are_independent(module: str, data: st.DataObject) -> None:
    case = data.draw(MODULES[module]())
    batch = next(iter(case.values.values())).shape[0]
    properties.assert_samples_are_independent(case, data.draw(st.permutations(range(batch))))


@pytest.mark.slow
@each_module
@THOROUGH
@given(data=st.data())
def test_samples_are_independent_thoroughly(module: str, data: st.DataObject) -> None:
    case = data.draw(MODULES[module]())
    batch = next(iter(case.values.values())).shape[0]
    properties.assert_samples_are_independent(case, data.draw(st.permutations(range(batch))))


# 4. Forward is the fold of step


@QUICK
@given(strategies.fusion_calls())
def test_forward_is_the_fold_of_step(call: FusionCall) -> None:
    properties.assert_forward_is_the_fold(build(call), call)


@BRIEF
@given(strategies.fusion_calls(dtype=torch.float32))
def test_forward_is_the_fold_of_step_under_autocast(call: FusionCall) -> None:
    fusion = build(call)
    with torch.autocast(torch.get_default_device().type, dtype=torch.bfloat16):
        properties.assert_forward_is_the_fold(fusion, call)


@each_configuration
def test_forward_is_the_fold_of_step_in_training(options: dict[str, Any]) -> None:
    call = prime_call(**options)
    fusion = build(call, dropout=0.3).train()
    torch.manual_seed(5)
    context = fusion(call.features)
    torch.manual_seed(5)
    states, _ = properties.fold(fusion, call)
    assert_same_bits({"context": states[-1].context}, {"context": context})


@each_mode
def test_state_can_be_saved_sliced_and_continued_twice(mode: dict[str, str]) -> None:
    call = prime_call(**mode)
    fusion = build(call)
    expected = fusion(call.features)
    state = fusion.step(None, "text", call.features["text"])
    state = fusion.step(state, "image", call.features["image"])
    file = io.BytesIO()
    torch.save(FusionState(*[tensor.detach() for tensor in state]), file)
    file.seek(0)
    # As `torch.load` does it by default: it runs no code.
    saved = torch.load(file, weights_only=True)
    assert type(saved) is FusionState
    for _ in range(2):
        continued = fusion.step(state, "audio", call.features["audio"])
        assert_same_bits({"context": fusion.readout(continued)}, {"context": expected})
    assert_same_bits(state._asdict(), saved._asdict())
    part = FusionState(*[tensor[2:5] for tensor in saved])
    continued = fusion.step(part, "audio", call.features["audio"][2:5])
    properties.assert_close({"context": fusion.readout(continued)}, {"context": expected[2:5]})


# Many steps


LONG: dict[str, Callable[[], nn.Module]] = {
    "residual": functools.partial(GatedRecurrentFusion, num_heads=3),
    "paper": functools.partial(GatedRecurrentFusion, num_heads=3, form="paper"),
    "linear": functools.partial(
        GatedRecurrentFusion, num_heads=3, form="residual", self_attention="linear"
    ),
    "concat": ConcatFusion,
    "pooled": functools.partial(ConcatFusion, stage="pooled"),
    "weighted sum": WeightedSumFusion,
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("form", LONG)
def test_a_long_sample_is_the_same_alone_and_padded_in_half_precision(
    form: str, dtype: torch.dtype
) -> None:
    """The sum of so many steps is beyond float16, whatever is padded."""
    torch.manual_seed(1)
    fusion = LONG[form]({"long": 5, "short": 3}, embed_dim=15, dtype=dtype).eval()
    features = {
        "long": (torch.randn(2, 9001, 5) + 30).to(dtype),
        "short": torch.randn(2, 4, 3).to(dtype),
    }
    mask = mask_from_lengths(torch.tensor([9001, 8999]), 9001)
    together = fusion(features, masks={"long": mask})
    assert together.isfinite().all()
    for sample, length in enumerate((9001, 8999)):
        own = {name: x[sample : sample + 1] for name, x in features.items()}
        alone = fusion(own | {"long": own["long"][:, :length]})
        torch.testing.assert_close(together[sample], alone[0], rtol=0.03, atol=0.03)


def test_half_precision_without_values() -> None:
    fusion = LONG["linear"]({"text": 5}, embed_dim=15, dtype=torch.float16, device="meta")
    given = torch.empty(2, 7, 5, dtype=torch.float16, device="meta")
    assert fusion({"text": given}).shape == (2, 15)


# Samples one by one


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@each_configuration
def test_vmap_over_samples(options: dict[str, Any]) -> None:
    """Masks of several samples at once, whose values nobody can ask for."""
    call = ragged_call(**options)
    fusion = build(call)
    masks = {name: mask.int() for name, mask in call.masks.items()}

    def of_one(features: Any, masks: Any, present: Tensor) -> Tensor:
        features, masks = ({n: x.unsqueeze(0) for n, x in y.items()} for y in (features, masks))
        return fusion(features, masks=masks, present=present.unsqueeze(0)).squeeze(0)

    found = vmap(of_one)(call.features, masks, call.present)
    expected = fusion(call.features, masks=masks, present=call.present)
    properties.assert_close({"": found}, {"": expected})


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.*")
@each_configuration
def test_a_recorded_call_keeps_its_masks(options: dict[str, Any]) -> None:
    """`torch.jit.trace` with masks that hide nothing; another call hides something."""
    call = ragged_call(**options)
    fusion = build(call).requires_grad_(False)

    def run(*given: Tensor) -> Tensor:
        masks = dict(zip(call.masks, given[:-1], strict=True))
        return fusion(call.features, masks=masks, present=given[-1])

    hidden = (*call.masks.values(), call.present)
    recorded = torch.jit.trace(run, tuple(torch.ones_like(x) for x in hidden), check_trace=False)
    properties.assert_close({"": recorded(*hidden)}, {"": run(*hidden)})


# 5. Mapping order


@each_fusion
@QUICK
@given(data=st.data())
def test_mapping_order_is_irrelevant(kind: str, data: st.DataObject) -> None:
    call = data.draw(FUSIONS[kind]())
    names = data.draw(st.permutations(list(call.config.modalities)))
    module = properties.case_of(call).module
    properties.assert_mapping_order_is_irrelevant(module, call, names)


@each_mode
def test_order_counts(mode: dict[str, str]) -> None:
    call = prime_call(**mode)
    fusion = build(call)
    context = fusion(call.features)
    assert_same_bits(
        {"context": fusion(call.features, order=["text", "image", "audio"])}, {"context": context}
    )
    other = fusion(call.features, order=("text", "audio", "image"))
    assert not torch.allclose(other, context, atol=1e-3)


# 6. Inputs are kept, eval repeats


@each_module
@QUICK
@given(data=st.data())
def test_inputs_are_never_modified(module: str, data: st.DataObject) -> None:
    properties.assert_inputs_are_kept(data.draw(MODULES[module]()))


@BRIEF
@given(strategies.fusion_calls())
def test_mappings_and_states_are_never_modified(call: FusionCall) -> None:
    fusion = build(call)
    features = dict(call.features)
    masks = None if call.masks is None else dict(call.masks)
    order = None if call.order is None else list(call.order)
    fusion(features, masks=masks, present=call.present, order=order)
    for mapping, before in [(features, call.features), (masks, call.masks)]:
        if mapping is not None:
            assert list(mapping) == list(before)
            assert all(mapping[name] is before[name] for name in before)
    assert order is None or tuple(order) == call.order
    states, _ = properties.fold(fusion, call)
    versions = [[tensor._version for tensor in state] for state in states]
    copies = copy.deepcopy([FusionState(*(t.detach() for t in state)) for state in states])
    for state in states:
        for name, width in list(call.config.modalities.items())[1:]:
            arrived = torch.ones(state.context.shape[0], 2, width, dtype=call.dtype)
            fusion.step(state, name, arrived)
    for state, before, version in zip(states, copies, versions, strict=True):
        assert_same_bits(state._asdict(), before._asdict())
        assert [tensor._version for tensor in state] == version


@each_module
@QUICK
@given(data=st.data())
def test_two_eval_calls_agree(module: str, data: st.DataObject) -> None:
    properties.assert_eval_repeats(data.draw(MODULES[module]()))


@QUICK
@given(strategies.fusion_calls())
def test_asking_for_the_trace_changes_nothing(call: FusionCall) -> None:
    case = fusion_case(call)
    context = case.module(call.features, **call.call_kwargs())
    assert_same_bits({"context": context}, {"context": case.outputs()["context"]})


# 7. add_modality


@QUICK
@given(st.data())
def test_addition_changes_nothing(data: st.DataObject) -> None:
    call = data.draw(strategies.fusion_calls())
    name = data.draw(st.sampled_from(("new", "lidar", "0")))
    assume(name not in call.config.modalities)
    dim = data.draw(st.sampled_from((1, 23)))
    properties.assert_addition_changes_nothing(build(call), call, name, dim)


@pytest.mark.parametrize("count", [1, 3])
@each_configuration
def test_added_modality_is_fused_and_learns(options: dict[str, Any], count: int) -> None:
    call = prime_call(count=count, **options)
    fusion = build(call)
    before = fusion(call.features)
    fusion.add_modality("lidar", 23)
    lidar = torch.randn(7, 11, 23, dtype=torch.float64)
    after = fusion(dict(call.features) | {"lidar": lidar})
    assert not torch.allclose(after, before, atol=1e-3)
    properties.weighted_sum({"context": after}).backward()
    assert fusion.projections["lidar"].weight.grad.any()


@pytest.mark.parametrize("training", [True, False])
@each_configuration
def test_added_modality_follows_mode_dtype_and_config(
    options: dict[str, Any], training: bool
) -> None:
    fusion = build(prime_call(**options)).train(training)
    fusion.add_modality("lidar", 23)
    assert all(module.training is training for module in fusion.modules())
    assert {parameter.dtype for parameter in fusion.parameters()} == {torch.float64}
    assert fusion.modalities == {"text": 13, "image": 11, "audio": 17, "lidar": 23}
    properties.assert_config_rebuilds(fusion)


def test_modality_added_on_meta_is_on_meta() -> None:
    fusion = GatedRecurrentFusion({"text": 3}, embed_dim=4, num_heads=2, device="meta")
    fusion.add_modality("lidar", 23)
    assert fusion.projections["lidar"].weight.is_meta


# 8. Parameter count


def parameters_of_the_rest(d: int, hidden: int, layers: int, *, form: str, learned: bool) -> int:
    """A shared pooled block, the unit and the start, counted by hand."""
    linear = d * d + d
    one_key = 2 * linear
    many_keys = 4 * linear - d
    norm = 2 * d
    feedforward = d * hidden + hidden + hidden * d + d
    # Of the two stacks' attentions of a kind one reads one key, the other many.
    kinds = 2 if form == "paper" else 1
    pair = kinds * (one_key + many_keys + 2 * norm) + 2 * (feedforward + norm)
    unit = 2 * d * 2 * d + 2 * d + (norm if form == "paper" else 0)
    # Before attention over one key a norm reaches nothing, and the residual form is pre-norm.
    idle = layers * norm if form == "residual" else 0
    return layers * pair - idle + unit + (d if learned else 0)


@QUICK
@given(
    widths=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    embedding=st.sampled_from(strategies.EMBEDDINGS),
    hidden=st.sampled_from(strategies.FEEDFORWARDS),
    layers=st.integers(1, 3),
    form=st.sampled_from(strategies.FORMS),
    learned=st.booleans(),
)
def test_parameter_count_with_shared_weights(
    *,
    widths: list[int],
    embedding: tuple[int, int],
    hidden: int | None,
    layers: int,
    form: str,
    learned: bool,
) -> None:
    d, heads = embedding
    fusion = GatedRecurrentFusion(
        {f"m{place}": width for place, width in enumerate(widths)},
        embed_dim=d,
        num_heads=heads,
        num_layers=layers,
        form=form,
        dim_feedforward=hidden,
        opening="learned" if learned else "first",
    )
    count = sum(parameter.numel() for parameter in fusion.parameters())
    constant = parameters_of_the_rest(d, hidden or 4 * d, layers, form=form, learned=learned)
    assert count == constant + sum((width + 1) * d for width in widths)
    fusion.add_modality("new", 23)
    assert sum(parameter.numel() for parameter in fusion.parameters()) == count + 24 * d


@each_mode
def test_further_modality_costs_its_projection_in_every_mode(mode: dict[str, str]) -> None:
    two, three = (build(prime_call(count=count, **mode)) for count in (2, 3))
    counts = [
        sum(parameter.numel() for parameter in fusion.parameters()) for fusion in (two, three)
    ]
    assert counts[1] - counts[0] == (17 + 1) * 15


# 9. Gradients


@QUICK
@given(
    count=st.integers(2, 4),
    layers=st.integers(1, 3),
    embedding=st.sampled_from(strategies.WIDE_EMBEDDINGS),
    dtype=strategies.dtypes(),
    opening=st.sampled_from(("first", "learned")),
)
def test_every_parameter_learns_in_the_default_configuration(
    count: int, layers: int, embedding: tuple[int, int], dtype: torch.dtype, opening: str
) -> None:
    d, heads = embedding
    call = prime_call(
        count=count, dtype=dtype, embed_dim=d, num_heads=heads, num_layers=layers, opening=opening
    )
    properties.assert_every_parameter_learns(fusion_case(call))


@pytest.mark.parametrize("seed", range(5))
def test_every_parameter_learns_from_the_first_step(seed: int) -> None:
    """With the weights that a user starts from, not with random ones."""
    torch.manual_seed(seed)
    call = prime_call(dtype=torch.float32)
    fusion = GatedRecurrentFusion(**call.config.kwargs())
    properties.assert_every_parameter_learns(fusion_case(call, fusion))


@each_mode
@pytest.mark.parametrize("share", [True, False])
def test_every_parameter_learns_in_every_mode_that_reads_it(
    mode: dict[str, str], share: bool
) -> None:
    call = prime_call(share_weights=share, **mode)
    if mode["context"] == "first_sequence" and not share:
        # Its later steps read one key, with weights of their own.
        call = prime_call(count=2, share_weights=share, **mode)
    properties.assert_every_parameter_learns(fusion_case(call))


@pytest.mark.parametrize("options", [{}, {"norm_first": True}, {"num_layers": 2}], ids=str)
def test_every_parameter_of_a_block_learns(options: dict[str, Any]) -> None:
    call = strategies.BlockCall(
        embed_dim=15,
        num_layers=options.get("num_layers", 1),
        dim_feedforward=None,
        options={"num_heads": 3} | {k: v for k, v in options.items() if k != "num_layers"},
        context=torch.randn(7, 3, 15, dtype=torch.float64),
        modality=torch.randn(7, 5, 15, dtype=torch.float64),
        context_mask=None,
        modality_mask=None,
        seed=5,
    )
    properties.assert_every_parameter_learns(properties.block_case(call))


@QUICK
@given(unit_cases())
def test_every_parameter_of_a_unit_learns(case: Case) -> None:
    properties.assert_every_parameter_learns(case)


@pytest.mark.parametrize("how", ["present", "masked", "left out", "None"])
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("gone", ["text", "image"])
@each_configuration
def test_absent_modality_gives_its_parameters_a_gradient_of_zero(
    options: dict[str, Any], gone: str, count: int, how: str
) -> None:
    call = prime_call(count=count, **options)
    features = dict(call.features)
    if how == "present":
        present = torch.tensor([[name != gone for name in features]]).expand(7, -1)
        features[gone] = torch.full_like(features[gone], NAN)
        call = dataclasses.replace(call, features=features, present=present)
    elif how == "masked":
        masks = {gone: torch.zeros(features[gone].shape[:2], dtype=torch.bool)}
        call = dataclasses.replace(call, masks=masks)
    else:
        features.pop(gone)
        rest = features | ({gone: None} if how == "None" else {})
        call = dataclasses.replace(call, features=rest)
    resting = [f"projections.{gone}."]
    if not options["share_weights"] and (gone != "text" or options.get("opening") == "learned"):
        resting += [f"blocks.{gone}.", f"units.{gone}."]
    if count == 2 and options.get("opening") != "learned":
        # The other one opens, and nothing steps.
        resting += ["block", "unit"]
    properties.assert_rests(fusion_case(call), resting)


@pytest.mark.parametrize("how", ["left out", "present"])
@each_configuration
def test_gradients_are_the_same_whichever_way_a_modality_is_absent(
    options: dict[str, Any], how: str
) -> None:
    call = prime_call(**options)
    masks = {"image": torch.zeros(7, 3, dtype=torch.bool)}
    expected = fusion_case(dataclasses.replace(call, masks=masks)).gradients()
    if how == "left out":
        features = {name: value for name, value in call.features.items() if name != "image"}
        other = dataclasses.replace(call, features=features)
        expected.pop("gradient of image")
    else:
        present = torch.tensor([[True, False, True]]).expand(7, -1)
        other = dataclasses.replace(call, present=present)
    properties.assert_close(fusion_case(other).gradients(), expected)


@each_mode
def test_single_modality_gives_block_and_unit_a_gradient_of_zero(mode: dict[str, str]) -> None:
    case = fusion_case(prime_call(count=1, **mode))
    if mode.get("opening") == "learned":
        gradients = case.gradients()
        assert gradients["gradient of unit.linear.weight"].any()
    else:
        properties.assert_rests(case, ["block.", "unit."])
        assert case.gradients()["gradient of projections.text.weight"].any()


@each_module
@BRIEF
@given(data=st.data())
def test_all_zero_input_has_finite_gradients(module: str, data: st.DataObject) -> None:
    case = data.draw(MODULES[module]())
    zeros = {name: torch.zeros_like(value) for name, value in case.values.items()}
    case = dataclasses.replace(case, values=zeros)
    properties.assert_finite(case.outputs())
    properties.assert_finite(case.gradients())


# 10. The unit: bounds, identity, gate_bias


def candidate(unit: GatedFusionUnit, state: Tensor, update: Tensor) -> Tensor:
    return unit.linear(torch.cat([state, update], dim=-1)).chunk(2, dim=-1)[1].tanh()


@strategies.examples(150)
@given(
    shape=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    dtype=strategies.dtypes(),
    scale=st.sampled_from((0.0, 1e-30, 1e-3, 1.0, 30.0, 1e6, 1e30)),
    gate_bias=st.sampled_from((-100.0, -5.0, 0.0, 5.0, 100.0)),
    identity=st.booleans(),
    seed=strategies.seeds(),
)
def test_unit_stays_between_state_and_candidate(
    *,
    shape: list[int],
    dtype: torch.dtype,
    scale: float,
    gate_bias: float,
    identity: bool,
    seed: int,
) -> None:
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    unit = GatedFusionUnit(shape[-1], norm=False, identity_init=identity, dtype=dtype)
    properties.randomise(unit, seed)
    with torch.no_grad():
        unit.linear.bias[: shape[-1]] += gate_bias
        if unit.gate_scale is not None:
            unit.gate_scale.copy_(torch.rand((), generator=generator))
    state, update = (torch.randn(shape, generator=generator, dtype=dtype) * scale for _ in range(2))
    fused, gate = unit(state, update, return_gate=True)
    properties.assert_between(fused, state, candidate(unit, state, update))
    properties.assert_between(gate, torch.zeros_like(gate), torch.ones_like(gate))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_unit_keeps_a_state_that_is_the_candidate(dtype: torch.dtype) -> None:
    """Where the interval is one number, rounding has nowhere to go."""
    unit = GatedFusionUnit(997, norm=False, dtype=dtype)
    properties.randomise(unit, 3)
    nn.init.zeros_(unit.linear.weight)
    state = unit.linear.bias[997:].tanh().expand(7, -1)
    assert_same_bits({"state": unit(state, torch.zeros_like(state))}, {"state": state})


@QUICK
@given(
    shape=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    dtype=strategies.dtypes(),
    gate_bias=st.sampled_from((-100.0, 0.0, 100.0)),
    scale=st.sampled_from((0.0, 1e-30, 1.0, 1e30)),
    training=st.booleans(),
    seed=strategies.seeds(),
)
def test_identity_init_returns_the_state_and_learns(
    *,
    shape: list[int],
    dtype: torch.dtype,
    gate_bias: float,
    scale: float,
    training: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    dim = shape[-1]
    unit = GatedFusionUnit(
        dim, norm=False, identity_init=True, gate_bias=gate_bias, dtype=dtype
    ).train(training)
    state, update = torch.randn(shape, dtype=dtype) * scale, torch.randn(shape, dtype=dtype)
    fused, gate = unit(state, update, return_gate=True)
    # Value by value: -0 + 0 is 0.
    assert torch.equal(fused, state)
    assert_same_bits({"nonzero": fused[state != 0]}, {"nonzero": state[state != 0]})
    assert not gate.any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(5,), (3, 7), (2, 3, 5)], ids=str)
def test_identity_init_learns(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    unit = GatedFusionUnit(shape[-1], norm=False, identity_init=True, dtype=dtype)
    state, update = torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype)
    optimiser = torch.optim.SGD(unit.parameters(), lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        properties.weighted_sum({"state": unit(state, update)}).backward()
        assert unit.gate_scale.grad.any()
        optimiser.step()
    assert not torch.equal(unit(state, update), state)
    # The gate itself learns as soon as it has a say.
    assert all(parameter.grad.any() for parameter in unit.parameters())


@pytest.mark.parametrize("gate_bias", [-4.0, 0.0, 1.5, 3])
@pytest.mark.parametrize("norm", [True, False])
def test_gate_bias_is_where_the_gate_starts(gate_bias: float, norm: bool) -> None:
    unit = GatedFusionUnit(5, norm=norm, gate_bias=gate_bias)
    expected = torch.full((5,), float(gate_bias))
    assert torch.equal(unit.linear.bias[:5], expected)
    assert not torch.equal(unit.linear.bias[5:], expected)
    _, gate = unit(torch.zeros(3, 5), torch.zeros(3, 5), return_gate=True)
    assert torch.allclose(gate, torch.sigmoid(expected).expand(3, 5))
    nn.init.zeros_(unit.linear.bias)
    unit.reset_parameters()
    assert torch.equal(unit.linear.bias[:5], expected)


@pytest.mark.parametrize("count", [1, 2, 4])
@each_configuration
def test_chrono_is_minus_log_of_the_number_of_steps(options: dict[str, Any], count: int) -> None:
    call = prime_call(count=count, gate_bias="chrono", **options)
    fusion = GatedRecurrentFusion(**call.config.kwargs())
    steps = count if options.get("opening") == "learned" else count - 1
    units = [part for part in fusion.modules() if isinstance(part, GatedFusionUnit)]
    assert len(units) == (1 if options["share_weights"] else steps)
    for unit in units:
        expected = torch.full((15,), -math.log(max(1, steps)))
        assert torch.equal(unit.linear.bias[:15], expected)


@pytest.mark.parametrize("opening", ["learned", "first"])
def test_chrono_counts_the_modality_that_is_added(opening: str) -> None:
    options: dict[str, Any] = {"opening": opening, "share_weights": False, "gate_bias": "chrono"}
    fusion = GatedRecurrentFusion({"text": 3, "audio": 5}, embed_dim=4, num_heads=2, **options)
    fusion.add_modality("lidar", 23)
    steps = 3 if opening == "learned" else 2
    bias = fusion.units["lidar"].linear.bias[:4]
    assert torch.equal(bias, torch.full((4,), -math.log(steps)))


def test_gates_of_every_step_are_those_that_the_trace_averages() -> None:
    call = prime_call(context="sequence", opening="first")
    fusion = build(call)
    mask = torch.ones(call.features["text"].shape[:2]).bool()
    mask[1, 2:] = False
    output, trace = fusion(call.features, masks={"text": mask}, return_trace=True)
    assert torch.equal(trace.time_mask, mask)
    assert trace.time_gates.shape == (len(mask), len(trace.order) - 1, *output.shape[1:])
    weight = mask[:, None, :, None].double()
    mean = (trace.time_gates * weight).sum(dim=2) / weight.sum(dim=2)
    assert torch.allclose(mean, trace.gates)
    assert trace.gates.count_nonzero()
    for other in ({"context": "pooled"}, {"context": "first_sequence", "opening": "first"}):
        trace = build(prime_call(**other))(call.features, return_trace=True)[1]
        assert trace.time_gates is trace.time_mask is None


def test_chrono_gives_every_modality_about_the_same_say() -> None:
    """h_n = sum of shares: with gates of 1 / (steps + 1) the first keeps about 1 / e."""
    names = {f"m{place}": 3 for place in range(37)}
    shares = {}
    for gate_bias in ("chrono", 0.0):
        fusion = GatedRecurrentFusion(names, embed_dim=8, num_heads=2, gate_bias=gate_bias)
        gate = fusion.unit.linear.bias[0].sigmoid().item()
        shares[gate_bias] = (1 - gate) ** 36
    assert 0.3 < shares["chrono"] < 0.45
    assert shares[0.0] < 1e-10


# 12. Attention weights and gates


@QUICK
@given(strategies.block_calls())
def test_attention_weights_sum_to_one_or_zero(call: strategies.BlockCall) -> None:
    case = properties.block_case(call)
    outputs = case.outputs()
    real = {name: ~hidden for name, hidden in case.hidden().items()}
    queries_and_keys = {
        "context_self": ("context", "context"),
        "context_cross": ("context", "modality"),
        "modality_self": ("modality", "modality"),
        "modality_cross": ("modality", "context"),
    }
    expected = set(queries_and_keys)
    if not call.options["self_attention"]:
        expected -= {"context_self", "modality_self"}
    if not call.options["symmetric"]:
        expected -= {"modality_self", "modality_cross"}
    assert {name.split()[1] for name in outputs if name.startswith("weights")} == expected
    for name in expected:
        queries, keys = queries_and_keys[name]
        weights = outputs[f"weights {name}"]
        batch, times = call.context.shape[0], [real[queries].shape[1], real[keys].shape[1]]
        heads = call.options["num_heads"]
        assert weights.shape == (batch, call.num_layers, heads, *times)
        properties.assert_weights_are_shares(weights, real[queries], real[keys])


@QUICK
@given(strategies.block_calls())
def test_asking_for_weights_only_rounds(call: strategies.BlockCall) -> None:
    outputs = properties.block_case(call).outputs()
    for name in ("context", "modality"):
        properties.assert_close({name: outputs[f"{name} beside"]}, {name: outputs[name]})


@QUICK
@given(strategies.block_calls())
def test_padded_steps_of_a_block_are_zero(call: strategies.BlockCall) -> None:
    case = properties.block_case(call)
    outputs = case.outputs()
    for name, hidden in case.hidden().items():
        assert not outputs[name][hidden].any()
        assert not outputs[f"{name} beside"][hidden].any()


@QUICK
@given(strategies.fusion_calls())
def test_trace_tells_the_way(call: FusionCall) -> None:
    properties.assert_trace_tells_the_way(build(call), call)


@pytest.mark.slow
@THOROUGH
@given(st.data())
def test_chain_properties_thoroughly(data: st.DataObject) -> None:
    call = data.draw(strategies.fusion_calls())
    fusion = build(call)
    properties.assert_trace_tells_the_way(fusion, call)
    properties.assert_absent_leave_the_state(fusion, call)
    properties.assert_forward_is_the_fold(fusion, call)
    name = data.draw(st.sampled_from([n for n, x in call.features.items() if x is not None]))
    batch = call.features[name].shape[0]
    some = st.lists(st.booleans(), min_size=batch, max_size=batch)
    gone = torch.tensor(data.draw(st.just([True] * batch) | some))
    properties.assert_ways_of_absence_agree(fusion, call, name, gone)
    assume("new" not in call.config.modalities)
    properties.assert_addition_changes_nothing(fusion, call, "new", 23)


@each_configuration
def test_saying_that_all_are_present_changes_no_bit(options: dict[str, Any]) -> None:
    call = prime_call(**options)
    everybody = torch.ones_like(really_present(call))
    said_call = dataclasses.replace(call, masks=None, present=everybody)
    silent = fusion_case(dataclasses.replace(said_call, present=None)).outputs()
    assert_same_bits(fusion_case(said_call).outputs(), silent)
    # Whether a needless mask rounds otherwise depends on the kernel: none may get there at all.
    fusion, masks = build(said_call), []
    for block in fusion.modules():
        if isinstance(block, SymmetricCrossAttentionBlock):
            block.register_forward_pre_hook(
                lambda _block, _args, options: masks.append(options["modality_mask"]),
                with_kwargs=True,
            )
    fusion(said_call.features, present=everybody)
    assert masks
    assert all(mask is None for mask in masks)


# 13. Derivatives, autocast, copies, moves


def smooth_fusion(call: FusionCall) -> Case:
    """With an activation that has no kink, for finite differences."""
    return fusion_case(
        dataclasses.replace(call, config=dataclasses.replace(call.config, activation="gelu"))
    )


def smooth_block(call: strategies.BlockCall) -> Case:
    options = dict(call.options) | {"activation": "gelu"}
    return properties.block_case(dataclasses.replace(call, options=options))


# A LayerNorm over a few columns can be too steep for finite differences.
GRADIENT_CASES: dict[str, st.SearchStrategy[Case]] = {
    "fusion": strategies.fusion_calls(dtype=torch.float64, max_modalities=3)
    .filter(lambda call: call.config.embed_dim >= 8)
    .map(smooth_fusion),
    "block": strategies.block_calls(dtype=torch.float64)
    .filter(lambda call: call.embed_dim >= 8)
    .map(smooth_block),
    "unit": unit_cases(dtype=torch.float64),
} | {
    kind: strategies.baseline_calls(kind, dtype=torch.float64)
    .filter(lambda call: call.config.options.get("stack_dim") or call.config.embed_dim >= 8)
    .map(properties.baseline_case)
    for kind in strategies.BASELINES
}


@pytest.mark.parametrize("module", GRADIENT_CASES)
@BRIEF
@given(data=st.data())
def test_gradcheck(module: str, data: st.DataObject) -> None:
    properties.assert_gradcheck(data.draw(GRADIENT_CASES[module]), fast=True)


@pytest.mark.slow
@each_mode
def test_gradcheck_of_every_entry(mode: dict[str, str]) -> None:
    call = prime_call(embed_dim=4, num_heads=2, dim_feedforward=3, **mode)
    features = {name: value[:2, :2] for name, value in call.features.items()}
    masks = {"image": torch.tensor([[True, False], [True, True]])}
    present = torch.tensor([[True, True, True], [False, True, True]])
    call = dataclasses.replace(call, features=features, masks=masks, present=present)
    properties.assert_gradcheck(fusion_case(call), fast=False)


# bfloat16 keeps 8 bits, so one rounding is 2**-9 of a value; a chain of three has some hundred of
# them in a row, of which a LayerNorm lets about the square root add up, and no single one is
# amplified by more than the widths below allow.
AUTOCAST_TOLERANCE = 2**-9 * 32


@pytest.mark.parametrize("seed", range(3))
@each_configuration
def test_autocast_is_close(options: dict[str, Any], seed: int) -> None:
    call = prime_call(dtype=torch.float32, embed_dim=48, **options)
    case = fusion_case(dataclasses.replace(call, seed=seed))
    properties.assert_autocast_is_close(case, AUTOCAST_TOLERANCE)


@pytest.mark.parametrize("pooled_context", [False, True])
def test_autocast_of_block_and_unit_is_close(pooled_context: bool) -> None:
    generator = torch.Generator(torch.get_default_device()).manual_seed(3)
    call = strategies.BlockCall(
        embed_dim=48,
        num_layers=2,
        dim_feedforward=None,
        options={"num_heads": 3, "pooled_context": pooled_context},
        context=torch.randn(7, 1 if pooled_context else 3, 48, generator=generator),
        modality=torch.randn(7, 5, 48, generator=generator),
        context_mask=None,
        modality_mask=torch.rand(7, 5, generator=generator) < 0.5,
        seed=5,
    )
    properties.assert_autocast_is_close(properties.block_case(call), AUTOCAST_TOLERANCE)
    unit = properties.unit_case(leading=(7, 3), embed_dim=48, dtype=torch.float32, seed=5)
    properties.assert_autocast_is_close(unit, AUTOCAST_TOLERANCE)


@each_module
@QUICK
@given(data=st.data())
def test_copies_agree(module: str, data: st.DataObject) -> None:
    properties.assert_copies_agree(data.draw(MODULES[module]()))


@each_module
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@BRIEF
@given(data=st.data())
def test_everything_moves(module: str, dtype: torch.dtype, data: st.DataObject) -> None:
    case = data.draw(MODULES[module]())
    zeros = case.filled(torch.zeros_like)
    properties.assert_everything_moves(zeros, dtype)


def test_state_dict_keys_of_a_shared_fusion() -> None:
    fusion = GatedRecurrentFusion(
        {"text": 3, "audio": 5}, embed_dim=4, num_heads=2, form="residual", self_attention=True
    )
    assert {name: tuple(value.shape) for name, value in fusion.state_dict().items()} == {
        "block.context_layers.0.self_attn.v_proj.weight": (4, 4),
        "block.context_layers.0.self_attn.v_proj.bias": (4,),
        "block.context_layers.0.self_attn.out_proj.weight": (4, 4),
        "block.context_layers.0.self_attn.out_proj.bias": (4,),
        "block.context_layers.0.self_attn_norm.weight": (4,),
        "block.context_layers.0.self_attn_norm.bias": (4,),
        "block.context_layers.0.cross_attn.q_proj.weight": (4, 4),
        "block.context_layers.0.cross_attn.q_proj.bias": (4,),
        "block.context_layers.0.cross_attn.k_proj.weight": (4, 4),
        "block.context_layers.0.cross_attn.v_proj.weight": (4, 4),
        "block.context_layers.0.cross_attn.v_proj.bias": (4,),
        "block.context_layers.0.cross_attn.out_proj.weight": (4, 4),
        "block.context_layers.0.cross_attn.out_proj.bias": (4,),
        "block.context_layers.0.cross_attn_norm.weight": (4,),
        "block.context_layers.0.cross_attn_norm.bias": (4,),
        "block.context_layers.0.linear1.weight": (16, 4),
        "block.context_layers.0.linear1.bias": (16,),
        "block.context_layers.0.linear2.weight": (4, 16),
        "block.context_layers.0.linear2.bias": (4,),
        "block.context_layers.0.feedforward_norm.weight": (4,),
        "block.context_layers.0.feedforward_norm.bias": (4,),
        "block.modality_layers.0.self_attn.q_proj.weight": (4, 4),
        "block.modality_layers.0.self_attn.q_proj.bias": (4,),
        "block.modality_layers.0.self_attn.k_proj.weight": (4, 4),
        "block.modality_layers.0.self_attn.v_proj.weight": (4, 4),
        "block.modality_layers.0.self_attn.v_proj.bias": (4,),
        "block.modality_layers.0.self_attn.out_proj.weight": (4, 4),
        "block.modality_layers.0.self_attn.out_proj.bias": (4,),
        "block.modality_layers.0.self_attn_norm.weight": (4,),
        "block.modality_layers.0.self_attn_norm.bias": (4,),
        "block.modality_layers.0.cross_attn.v_proj.weight": (4, 4),
        "block.modality_layers.0.cross_attn.v_proj.bias": (4,),
        "block.modality_layers.0.cross_attn.out_proj.weight": (4, 4),
        "block.modality_layers.0.cross_attn.out_proj.bias": (4,),
        "block.modality_layers.0.linear1.weight": (16, 4),
        "block.modality_layers.0.linear1.bias": (16,),
        "block.modality_layers.0.linear2.weight": (4, 16),
        "block.modality_layers.0.linear2.bias": (4,),
        "block.modality_layers.0.feedforward_norm.weight": (4,),
        "block.modality_layers.0.feedforward_norm.bias": (4,),
        "unit.linear.weight": (8, 8),
        "unit.linear.bias": (8,),
        "initial_context": (4,),
        "projections.text.weight": (4, 3),
        "projections.text.bias": (4,),
        "projections.audio.weight": (4, 5),
        "projections.audio.bias": (4,),
    }


def test_state_dict_keys_of_the_default() -> None:
    fusion = GatedRecurrentFusion({"text": 3, "audio": 5}, embed_dim=4)
    assert {name: tuple(value.shape) for name, value in fusion.state_dict().items()} == {
        "initial_context": (4,),
        "unit.linear.weight": (8, 8),
        "unit.linear.bias": (8,),
        "projections.text.weight": (4, 3),
        "projections.text.bias": (4,),
        "projections.audio.weight": (4, 5),
        "projections.audio.bias": (4,),
        "scales.text.rms": (1,),
        "scales.audio.rms": (1,),
        "summaries.text.hidden.0.weight": (4, 4),
        "summaries.text.hidden.0.bias": (4,),
        "summaries.text.output.weight": (4, 8),
        "summaries.text.output.bias": (4,),
        "summaries.text.norm.weight": (4,),
        "summaries.text.norm.bias": (4,),
        "summaries.audio.hidden.0.weight": (4, 4),
        "summaries.audio.hidden.0.bias": (4,),
        "summaries.audio.output.weight": (4, 8),
        "summaries.audio.output.bias": (4,),
        "summaries.audio.norm.weight": (4,),
        "summaries.audio.norm.bias": (4,),
        "norm.weight": (4,),
        "norm.bias": (4,),
    }


def test_state_dict_keys_of_an_unshared_fusion() -> None:
    fusion = GatedRecurrentFusion(
        {"text": 3, "image": 7, "audio": 5},
        embed_dim=4,
        num_heads=2,
        dim_feedforward=6,
        self_attention=False,
        symmetric=False,
        form="paper",
        context="sequence",
        share_weights=False,
    )
    assert {name: tuple(value.shape) for name, value in fusion.state_dict().items()} == {
        "blocks.image.context_layers.0.cross_attn.q_proj.weight": (4, 4),
        "blocks.image.context_layers.0.cross_attn.q_proj.bias": (4,),
        "blocks.image.context_layers.0.cross_attn.k_proj.weight": (4, 4),
        "blocks.image.context_layers.0.cross_attn.v_proj.weight": (4, 4),
        "blocks.image.context_layers.0.cross_attn.v_proj.bias": (4,),
        "blocks.image.context_layers.0.cross_attn.out_proj.weight": (4, 4),
        "blocks.image.context_layers.0.cross_attn.out_proj.bias": (4,),
        "blocks.image.context_layers.0.cross_attn_norm.weight": (4,),
        "blocks.image.context_layers.0.cross_attn_norm.bias": (4,),
        "blocks.image.context_layers.0.linear1.weight": (6, 4),
        "blocks.image.context_layers.0.linear1.bias": (6,),
        "blocks.image.context_layers.0.linear2.weight": (4, 6),
        "blocks.image.context_layers.0.linear2.bias": (4,),
        "blocks.image.context_layers.0.feedforward_norm.weight": (4,),
        "blocks.image.context_layers.0.feedforward_norm.bias": (4,),
        "blocks.audio.context_layers.0.cross_attn.q_proj.weight": (4, 4),
        "blocks.audio.context_layers.0.cross_attn.q_proj.bias": (4,),
        "blocks.audio.context_layers.0.cross_attn.k_proj.weight": (4, 4),
        "blocks.audio.context_layers.0.cross_attn.v_proj.weight": (4, 4),
        "blocks.audio.context_layers.0.cross_attn.v_proj.bias": (4,),
        "blocks.audio.context_layers.0.cross_attn.out_proj.weight": (4, 4),
        "blocks.audio.context_layers.0.cross_attn.out_proj.bias": (4,),
        "blocks.audio.context_layers.0.cross_attn_norm.weight": (4,),
        "blocks.audio.context_layers.0.cross_attn_norm.bias": (4,),
        "blocks.audio.context_layers.0.linear1.weight": (6, 4),
        "blocks.audio.context_layers.0.linear1.bias": (6,),
        "blocks.audio.context_layers.0.linear2.weight": (4, 6),
        "blocks.audio.context_layers.0.linear2.bias": (4,),
        "blocks.audio.context_layers.0.feedforward_norm.weight": (4,),
        "blocks.audio.context_layers.0.feedforward_norm.bias": (4,),
        "units.image.linear.weight": (8, 8),
        "units.image.linear.bias": (8,),
        "units.image.norm.weight": (4,),
        "units.image.norm.bias": (4,),
        "units.audio.linear.weight": (8, 8),
        "units.audio.linear.bias": (8,),
        "units.audio.norm.weight": (4,),
        "units.audio.norm.bias": (4,),
        "projections.text.weight": (4, 3),
        "projections.text.bias": (4,),
        "projections.image.weight": (4, 7),
        "projections.image.bias": (4,),
        "projections.audio.weight": (4, 5),
        "projections.audio.bias": (4,),
    }


def test_state_dict_keys_that_options_add() -> None:
    fusion = GatedRecurrentFusion(
        {"text": 3, "audio": 5},
        embed_dim=4,
        num_heads=2,
        form="residual",
        opening="learned",
        share_weights=False,
    )
    keys = list(fusion.state_dict())
    assert "initial_context" in keys
    assert {key.split(".")[1] for key in keys if key.startswith("blocks.")} == {"text", "audio"}
    assert {key.split(".")[1] for key in keys if key.startswith("units.")} == {"text", "audio"}
    unit = GatedFusionUnit(4, norm=False, identity_init=True)
    assert set(unit.state_dict()) == {"linear.weight", "linear.bias", "gate_scale"}


# ModalityDropout


@QUICK
@given(
    present=st.tuples(st.integers(1, 11), st.integers(1, 5)).flatmap(
        lambda shape: strategies.presences(*shape)
    ),
    p=st.sampled_from((0.0, 0.1, 0.5, 0.9, 0.999)),
    integers=st.booleans(),
    seed=strategies.seeds(),
)
def test_modality_dropout_never_drops_all_nor_adds(
    present: Tensor, p: float, integers: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    drop = ModalityDropout(p)
    before = present.clone()
    given_present = present.long() if integers else present
    left = drop(given_present)
    assert left.dtype == torch.bool
    assert left.shape == present.shape
    assert not (left & ~present).any()
    assert torch.equal(left.any(dim=1), present.any(dim=1))
    if p == 0:
        assert torch.equal(left, present)
    assert torch.equal(present, before)
    assert torch.equal(drop.eval()(given_present), present)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("columns", [(0, 1, 2, 3), (1, 3, 4)])
def test_modality_dropout_rate_and_independence(p: float, columns: tuple[int, ...]) -> None:
    """Rates within 5 standard deviations of P(dropped) = p - p**n / n."""
    batch, n = 40_000, len(columns)
    present = torch.zeros(batch, 5, dtype=torch.bool)
    present[:, list(columns)] = True
    dropped = ~ModalityDropout(p)(present)[:, list(columns)]
    spread = 5 * 0.5 / batch**0.5
    assert (dropped.double().mean(dim=0) - (p - p**n / n)).abs().max() < spread
    both = p**2 - p**n * 2 / n
    for one, other in itertools.combinations(range(n), 2):
        assert abs((dropped[:, one] & dropped[:, other]).double().mean() - both) < spread


def test_modality_dropout_keeps_each_equally_often() -> None:
    batch, n = 40_000, 4
    left = ModalityDropout(0.999)(torch.ones(batch, n, dtype=torch.bool))
    alone = left[left.sum(dim=1) == 1]
    assert len(alone) > 0.98 * batch
    assert (alone.double().mean(dim=0) - 1 / n).abs().max() < 5 * 0.5 / batch**0.5


def test_modality_dropout_draws_anew() -> None:
    present = torch.ones(40, 3, dtype=torch.bool)
    drop = ModalityDropout(0.5)
    assert not torch.equal(drop(present), drop(present))


def test_modality_dropout_of_0_drops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    # Also where luck is as bad as it can be.
    luck = torch.tensor([[0.0, 0.5, 0.0]])
    monkeypatch.setattr(torch, "rand", lambda *_args, **_options: luck.clone())
    assert ModalityDropout(0.0)(torch.ones(1, 3).bool()).all()


def test_modality_dropout_draws_where_presence_lies() -> None:
    left = ModalityDropout(0.5)(torch.ones(2, 3, dtype=torch.bool, device="meta"))
    assert left.device == torch.device("meta")


def test_modality_dropout_fits_presence_and_forward() -> None:
    call = prime_call()
    fusion = build(call)
    left = ModalityDropout(0.7)(fusion.presence(call.features))
    _, trace = fusion(call.features, present=left, return_trace=True)
    assert torch.equal(trace.present, left)


# Configuration and repr


@QUICK
@given(st.data())
def test_config_rebuilds(data: st.DataObject) -> None:
    call = data.draw(strategies.fusion_calls())
    fusion = build(call)
    properties.assert_config_rebuilds(fusion)
    assume("new" not in call.config.modalities)
    fusion.add_modality("new", 23)
    properties.assert_config_rebuilds(fusion)
    assert [name for name, _ in fusion.config()["modalities"]] == [*call.config.modalities, "new"]


def test_config_holds_every_argument_but_where() -> None:
    options: dict[str, Any] = {
        "modalities": {"text": 3, "audio": 5},
        "embed_dim": 6,
        "num_heads": 3,
        "num_layers": 2,
        "dim_feedforward": 7,
        "dropout": 0.25,
        "activation": "relu",
        "norm_first": True,
        "self_attention": False,
        "symmetric": False,
        "packing": False,
        "checkpoint": True,
        "form": "paper",
        "context": "sequence",
        "opening": "first",
        "gate_bias": "chrono",
        "share_weights": False,
    }
    fusion = GatedRecurrentFusion(**options)
    assert fusion.config() == options | {"modalities": [["text", 3], ["audio", 5]]}
    config = fusion.config()
    config["modalities"].append(["image", 7])
    assert fusion.modalities == {"text": 3, "audio": 5}


def test_what_the_form_decides() -> None:
    names = ("norm_first", "self_attention", "opening", "gate_bias")
    decided: dict[str, tuple[Any, ...]] = {
        "residual": (True, False, "learned", "chrono"),
        "paper": (False, True, "first", 0.0),
    }
    for form, values in decided.items():
        fusion = GatedRecurrentFusion({"text": 3, "audio": 5}, embed_dim=6, num_heads=3, form=form)
        config = fusion.config()
        assert tuple(config[name] for name in names) == values
        assert GatedRecurrentFusion(**config).config() == config
        other = {"norm_first": not values[0], "self_attention": "linear", "gate_bias": -1.5}
        assert GatedRecurrentFusion(**config | other).config() == config | other


def test_config_of_a_custom_part_is_refused() -> None:
    for part in ("block", "unit"):
        fusion = custom_fusion(prime_call(), **{part: PARTS[part]})
        with pytest.raises(ValueError, match=r"no `block` or `unit` factory"):
            fusion.config()


def test_repr_shows_modalities_sizes_and_order() -> None:
    fusion = GatedRecurrentFusion({"text": 3, "audio": 5}, embed_dim=6, num_heads=3, dropout=0.25)
    fusion.add_modality("depth", 7)
    text = repr(fusion)
    for part in (
        "{'text': 3, 'audio': 5, 'depth': 7}",
        "text -> audio -> depth",
        "embed_dim=6",
        "num_heads=3",
        "dropout=0.25",
        "context='pooled'",
    ):
        assert part in text
    block = SymmetricCrossAttentionBlock(6, num_heads=3)
    assert "embed_dim=6, num_heads=3" in repr(block)
    assert "embed_dim=6, gate_bias=-2.0" in repr(GatedFusionUnit(6, gate_bias=-2.0))
    assert repr(ModalityDropout(0.25)) == "ModalityDropout(p=0.25)"


# block= and unit=


class ConcatUnit(nn.Module):
    """The ablation of the issue: concatenation and one linear layer instead of a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(30, 15, dtype=torch.float64)

    def forward(
        self, state: Tensor, update: Tensor, *, return_gate: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        fused = self.linear(torch.cat([state, update], dim=-1))
        return (fused, torch.ones_like(fused)) if return_gate else fused


class AddBlock(nn.Module):
    """Each side gets a linear map of the other side's mean over real steps."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(15, 15, dtype=torch.float64)

    def forward(
        self,
        context: Tensor,
        modality: Tensor,
        *,
        context_mask: Tensor | None = None,
        modality_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        def mean(x: Tensor, mask: Tensor | None) -> Tensor:
            weights = torch.ones(x.shape[:2], dtype=x.dtype) if mask is None else mask.to(x.dtype)
            total = torch.einsum("btd,bt->bd", x, weights).unsqueeze(1)
            return total / weights.sum(dim=1)[:, None, None].clamp(min=1)

        new_context = context + self.linear(mean(modality, modality_mask))
        return new_context, modality + self.linear(mean(context, context_mask))


class NaiveBlock(AddBlock):
    """Attention of torch, which returns NaN where a sample has nothing to read."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(15, 3, batch_first=True, dtype=torch.float64)

    def forward(
        self,
        context: Tensor,
        modality: Tensor,
        *,
        context_mask: Tensor | None = None,
        modality_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        del context_mask
        ignored = None if modality_mask is None else ~modality_mask
        read, _ = self.attention(context, modality, modality, key_padding_mask=ignored)
        return context + self.linear(read), modality


PARTS: dict[str, Callable[[], nn.Module]] = {"block": AddBlock, "unit": ConcatUnit}
each_choice = pytest.mark.parametrize(
    "parts", [{"unit": ConcatUnit}, {"block": AddBlock}, PARTS], ids="-".join
)


def custom_fusion(call: FusionCall, **parts: Callable[[], nn.Module]) -> GatedRecurrentFusion:
    fusion = GatedRecurrentFusion(**call.config.kwargs(), dtype=call.dtype, **parts)
    properties.randomise(fusion, call.seed)
    return fusion.eval()


@each_choice
@each_configuration
def test_custom_parts_keep_the_guarantees(
    options: dict[str, Any], parts: dict[str, Callable[[], nn.Module]]
) -> None:
    call = prime_call(**options)
    masks = {"text": torch.rand(7, 5) < 0.5, "audio": torch.rand(7, 2) < 0.5}
    call = dataclasses.replace(call, masks=masks, present=torch.rand(7, 3) < 0.7)
    fusion = custom_fusion(call, **parts)
    case = fusion_case(call, fusion)
    properties.assert_padding_has_no_influence(case)
    properties.assert_right_padding_only_rounds(case, 3)
    properties.assert_samples_are_independent(case, [3, 1, 6, 0, 2, 5, 4])
    properties.assert_eval_repeats(case)
    properties.assert_inputs_are_kept(case)
    properties.assert_forward_is_the_fold(fusion, call)
    properties.assert_absent_leave_the_state(fusion, call)
    properties.assert_addition_changes_nothing(fusion, call, "new", 23)
    properties.assert_trace_tells_the_way(custom_fusion(call, **parts), call)


@each_choice
@each_configuration
def test_factories_are_called_once_or_once_a_step(
    options: dict[str, Any], parts: dict[str, Callable[[], nn.Module]]
) -> None:
    made: list[nn.Module] = []

    def counted(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        def factory() -> nn.Module:
            made.append(make())
            return made[-1]

        return factory

    fusion = custom_fusion(
        prime_call(**options), **{name: counted(make) for name, make in parts.items()}
    )
    shared = options["share_weights"]
    steps = 1 if shared else 3 if options.get("opening") == "learned" else 2
    assert len(made) == len(parts) * steps
    fusion.add_modality("new", 23)
    assert len(made) == len(parts) * (steps if shared else steps + 1)
    assert {id(part) for part in made} <= {id(part) for part in fusion.modules()}


@each_configuration
def test_factories_of_the_usual_parts_change_nothing(options: dict[str, Any]) -> None:
    call = prime_call(**options)
    usual = build(call)

    def block() -> nn.Module:
        return SymmetricCrossAttentionBlock(
            15, num_heads=3, pooled_context=options["context"] == "pooled", dtype=torch.float64
        )

    custom = custom_fusion(call, block=block, unit=lambda: GatedFusionUnit(15, dtype=torch.float64))
    assert_same_bits(custom.state_dict(), usual.state_dict())
    assert_same_bits(fusion_case(call, custom).outputs(), fusion_case(call, usual).outputs())


@each_mode
def test_custom_block_never_meets_an_empty_sample(mode: dict[str, str]) -> None:
    call = prime_call(**mode)
    masks = {name: torch.ones(x.shape[:2], dtype=torch.bool) for name, x in call.features.items()}
    masks["text"][0] = masks["image"][1] = masks["audio"][1] = False
    masks["image"][2, 1:] = False
    call = dataclasses.replace(call, masks=masks)
    case = fusion_case(call, custom_fusion(call, block=NaiveBlock))
    properties.assert_padding_has_no_influence(case)


def longer(value: Tensor) -> Tensor:
    """One step more, or one column where there are no steps."""
    axis = 1 if value.ndim == 3 else 0
    return torch.cat([value, value.narrow(axis, 0, 1)], dim=axis)


@pytest.mark.parametrize("change", [longer, lambda value: value[..., :-1]], ids=["time", "dim"])
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("part", ["block", "unit"])
@each_mode
def test_custom_part_of_a_wrong_shape_is_refused(
    mode: dict[str, str], part: str, place: int, change: Callable[[Tensor], Tensor]
) -> None:
    class Wrong(PARTS[part]):
        def forward(self, *args: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
            results = list(super().forward(*args, **options))
            results[place] = change(results[place])
            return tuple(results)

    call = prime_call(**mode)
    fusion = custom_fusion(call, **PARTS | {part: Wrong})
    with pytest.raises(ShapeError, match=rf"`{part}\(\)\[{place}\]` of shape \(batch=7, "):
        fusion(call.features)


# Dropout


@each_configuration
def test_dropout_is_active_in_training_only(options: dict[str, Any]) -> None:
    call = prime_call(**options)
    with_dropout = fusion_case(call, dropout=0.3)
    assert_same_bits(with_dropout.outputs(), fusion_case(call).outputs())
    with_dropout.module.train()
    first, second = with_dropout.outputs(), with_dropout.outputs()
    assert not torch.allclose(first["context"], second["context"], atol=1e-3)


@pytest.mark.parametrize("pooled_context", [False, True])
def test_dropout_of_a_block_is_active_in_training_only(pooled_context: bool) -> None:
    context = torch.randn(7, 1 if pooled_context else 3, 15)
    modality = torch.randn(7, 5, 15)

    def outputs(dropout: float, *, training: bool) -> list[dict[str, Tensor]]:
        options = {"num_heads": 3, "pooled_context": pooled_context}
        block = SymmetricCrossAttentionBlock(15, **options, dropout=dropout).train(training)
        properties.randomise(block, 3)
        calls = [block(context, modality) for _ in range(2)]
        return [dict(zip(("context", "modality"), call, strict=True)) for call in calls]

    expected, again = outputs(0.0, training=True)
    assert_same_bits(again, expected)
    for call in outputs(0.3, training=False):
        assert_same_bits(call, expected)
    first, second = outputs(0.3, training=True)
    for name in first:
        assert not torch.allclose(first[name], expected[name], atol=1e-3)
        assert not torch.allclose(first[name], second[name], atol=1e-3)


def dropped(value: Tensor, expected: Tensor, p: float) -> Tensor:
    """Where an entry was dropped; each is 0 or its expected value over ``1 - p``."""
    gone = (value == 0) & (expected != 0)
    properties.assert_close({"kept": value[~gone]}, {"kept": expected[~gone] / (1 - p)})
    return gone


def test_dropout_on_the_opening_is_after_its_positions() -> None:
    call = prime_call(count=1)
    features = call.features["text"][:, :1].repeat(500, 1, 1)
    fusion = build(call, dropout=0.3)
    expected = fusion({"text": features})
    gone = dropped(fusion.train()({"text": features}), expected, 0.3)
    assert abs(gone.double().mean().item() - 0.3) < 0.02


def test_dropout_of_the_unit_is_on_the_blend() -> None:
    unit = GatedFusionUnit(15, norm=False, dropout=0.3)
    state, update = torch.randn(4000, 15), torch.randn(4000, 15)
    expected = unit.eval()(state, update)
    gone = dropped(unit.train()(state, update), expected, 0.3)
    assert abs(gone.double().mean().item() - 0.3) < 0.02


@pytest.mark.parametrize("one_key", [True, False])
def test_dropout_over_one_key_drops_whole_heads(one_key: bool) -> None:
    """Leaving out the queries and keys keeps the dropout that a weight of 1 would meet."""
    kind = OneKeyAttention if one_key else Attention
    attention = kind(12, num_heads=3, dropout=0.3, device=None, dtype=torch.float64)
    nn.init.eye_(attention.out_proj.weight)
    nn.init.zeros_(attention.out_proj.bias)
    query, memory = torch.randn(400, 5, 12).double(), torch.randn(400, 1, 12).double()

    def read() -> Tensor:
        steps = Padded(None, one_step=one_key)
        value, _ = attention(query, memory, Padded(None), steps, need_weights=False)
        return value

    attention.eval()
    expected = read()
    attention.train()
    heads = dropped(read(), expected, 0.3).unflatten(2, (3, 4))
    assert torch.equal(heads.all(dim=3), heads.any(dim=3))
    rates = heads.all(dim=3).double()
    assert (rates.mean(dim=0) - 0.3).abs().max() < 5 * 0.5 / 400**0.5
    # Queries and heads are dropped independently.
    assert 0 < (rates[:, 0] != rates[:, 1]).double().mean() < 1
    assert 0 < (rates[:, :, 0] != rates[:, :, 1]).double().mean() < 1


def test_weights_are_those_before_dropout() -> None:
    block = SymmetricCrossAttentionBlock(15, num_heads=3, dropout=0.5).train()
    context, modality = torch.randn(7, 3, 15), torch.randn(7, 5, 15)
    _, _, weights = block(context, modality, need_weights=True)
    for weight in weights:
        ones = torch.ones(weight.shape[:-1])
        assert torch.allclose(weight.sum(dim=-1), ones)


def test_config_of_json_has_plain_types() -> None:
    config = GatedRecurrentFusion({"text": 3}, embed_dim=4, num_heads=2, gate_bias=-1.5).config()
    assert json.loads(json.dumps(config, sort_keys=True)) == config
