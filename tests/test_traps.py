"""One test a row of the list of traps that other fusion layers fell into.

A test is named after its row. Rows 17 (ranks that disagree) and 18 (ONNX) have tests where
distributed training and ONNX export are tested.
"""

import dataclasses
import inspect
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import properties
import strategies
from grf_fusion import (
    FusionState,
    GatedFusionUnit,
    GatedRecurrentFusion,
    ShapeError,
    SymmetricCrossAttentionBlock,
    mask_from_lengths,
)
from properties import Case, Named, assert_close, assert_same_bits, build, fusion_case
from reference import reference_fusion, reference_positions
from strategies import FusionCall

NAN = float("nan")
WIDTHS = {"text": 13, "image": 11, "audio": 17}
TIMES = {"text": 5, "image": 3, "audio": 2}
BATCH = 7
MODES = [
    {"context": "pooled", "opening": "first"},
    {"context": "pooled", "opening": "learned"},
    {"context": "first_sequence"},
    {"context": "sequence"},
]


def label(options: dict[str, str] | bool) -> str:
    return "-".join(options.values()) if isinstance(options, dict) else str(options)


each_mode = pytest.mark.parametrize("mode", MODES, ids=label)


def random(*shape: int, seed: int = 3) -> Tensor:
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def fusion_call(**options: Any) -> FusionCall:
    """Three modalities; every sample but the first two has some padding or lacks something."""
    features = {
        name: random(BATCH, TIMES[name], width, seed=width) for name, width in WIDTHS.items()
    }
    masks = {
        "text": mask_from_lengths(torch.tensor([5, 4, 0, 1, 2, 3, 0]), 5),
        "image": torch.tensor([[1, 1, 1], [1, 0, 1]] + [[0, 1, 1]] * 5),
    }
    present = torch.ones(BATCH, 3, dtype=torch.bool)
    present[3, 1] = present[4, 0] = False
    present[6] = False
    chosen: dict[str, Any] = {"embed_dim": 15, "num_heads": 3} | options
    return FusionCall(
        config=strategies.FusionConfig(modalities=WIDTHS, **chosen),
        features=features,
        masks=masks,
        present=present,
        order=None,
        dtype=torch.float64,
        seed=5,
    )


def full_call(**options: Any) -> FusionCall:
    """The same without masks and absence."""
    return dataclasses.replace(fusion_call(**options), masks=None, present=None)


def block_case(**options: Any) -> Case:
    """A block with every pattern of masks, a row with nothing among them."""
    return properties.block_case(
        strategies.BlockCall(
            embed_dim=15,
            num_layers=2,
            dim_feedforward=None,
            options={"num_heads": 3} | options,
            context=random(BATCH, 3, 15),
            modality=random(BATCH, 5, 15, seed=5),
            context_mask=mask_from_lengths(torch.tensor([3, 2, 1, 0, 3, 2, 0]), 3),
            modality_mask=mask_from_lengths(torch.tensor([5, 4, 0, 1, 2, 0, 0]), 5),
            seed=5,
        )
    )


def unit_case() -> Case:
    return properties.unit_case(leading=(BATCH, 3), embed_dim=15, dtype=torch.float64, seed=5)


def baseline_case(kind: str, **options: Any) -> Case:
    """The same batch for a baseline."""
    call = fusion_call()
    config = strategies.BaselineConfig(kind=kind, modalities=WIDTHS, embed_dim=15, options=options)
    return properties.baseline_case(
        strategies.BaselineCall(
            config=config,
            features=call.features,
            masks=call.masks,
            present=call.present,
            dtype=call.dtype,
            seed=call.seed,
        )
    )


CASES: dict[str, Callable[[], Case]] = {
    "pooled": lambda: fusion_case(fusion_call()),
    "learned": lambda: fusion_case(fusion_call(opening="learned")),
    "first_sequence": lambda: fusion_case(fusion_call(context="first_sequence")),
    "sequence": lambda: fusion_case(fusion_call(context="sequence")),
    "unshared": lambda: fusion_case(fusion_call(share_weights=False)),
    "concatenation": lambda: baseline_case("concat"),
    "pooled concatenation": lambda: baseline_case("pooled", stage="pooled"),
    "early": lambda: baseline_case("early", stage="early", num_heads=3),
    "sigmoid": lambda: baseline_case("weighted sum"),
    "softmax": lambda: baseline_case("weighted sum", weights="softmax"),
    "cross-modal": lambda: baseline_case("cross-modal", num_heads=3),
    "mult": lambda: baseline_case("mult", num_heads=3, num_layers=1),
    "alignment": lambda: baseline_case("alignment"),
    "block": block_case,
    "unit": unit_case,
}
each_case = pytest.mark.parametrize("make", CASES.values(), ids=CASES)
each_masked_case = pytest.mark.parametrize(
    "make", [make for name, make in CASES.items() if name != "unit"], ids=list(CASES)[:-1]
)


@each_case
def test_trap_01_samples_do_not_attend_to_each_other(make: Callable[[], Case]) -> None:
    properties.assert_samples_are_independent(make(), [3, 1, 6, 0, 2, 5, 4])


@each_case
def test_trap_02_all_that_is_learnt_is_saved_and_moves(make: Callable[[], Case]) -> None:
    case = make().filled(torch.zeros_like)
    properties.assert_everything_moves(case, torch.float32)
    properties.assert_everything_moves(case, torch.float64)


@each_case
def test_trap_03_two_calls_in_eval_agree(make: Callable[[], Case]) -> None:
    properties.assert_eval_repeats(make())


@each_case
def test_trap_04_inputs_are_never_changed(make: Callable[[], Case]) -> None:
    properties.assert_inputs_are_kept(make())


@pytest.mark.parametrize("name", WIDTHS)
@each_mode
def test_trap_04_wrong_size_raises_and_names_the_modality(mode: dict[str, str], name: str) -> None:
    call = full_call(**mode)
    wrong = dict(call.features) | {name: random(BATCH, TIMES[name], 19)}
    with pytest.raises(ShapeError, match=rf"features\['{name}'\]` of shape .*dim={WIDTHS[name]}"):
        build(call)(wrong)


@each_mode
def test_trap_04_asking_for_more_does_not_change_the_output(mode: dict[str, str]) -> None:
    call = fusion_call(**mode)
    fusion = build(call)
    context = fusion(call.features, **call.call_kwargs())
    traced, _ = fusion(call.features, **call.call_kwargs(), return_trace=True)
    assert_same_bits({"context": traced}, {"context": context})


@each_masked_case
def test_trap_05_what_is_masked_has_no_influence(make: Callable[[], Case]) -> None:
    case = make()
    hidden = case.hidden()
    assert any(bool(rows.all(dim=1).any()) for rows in hidden.values()), "no row with nothing"
    properties.assert_padding_has_no_influence(case)


def test_trap_06_every_parameter_gets_a_gradient() -> None:
    call = full_call()
    torch.manual_seed(3)
    fusion = GatedRecurrentFusion(WIDTHS, embed_dim=15, num_heads=3, dtype=torch.float64)
    properties.assert_every_parameter_learns(fusion_case(call, fusion))
    properties.assert_every_parameter_learns(block_case())
    properties.assert_every_parameter_learns(unit_case())


@each_case
def test_trap_07_all_zero_input_has_finite_gradients(make: Callable[[], Case]) -> None:
    case = make()
    zeros = {name: torch.zeros_like(value) for name, value in case.values.items()}
    case = dataclasses.replace(case, values=zeros)
    properties.assert_finite(case.outputs())
    properties.assert_finite(case.gradients())


@each_mode
def test_trap_08_unexpected_modality_raises(mode: dict[str, str]) -> None:
    call = full_call(**mode)
    fusion = build(call)
    extra = dict(call.features) | {"depth": random(BATCH, 2, 13)}
    with pytest.raises(ShapeError, match=r"`features` .*unexpected \['depth'\]"):
        fusion(extra)
    with pytest.raises(ShapeError, match=r"`masks` .*unexpected \['depth'\]"):
        fusion(call.features, masks={"depth": torch.ones(BATCH, 2, dtype=torch.bool)})
    with pytest.raises(ShapeError, match=r"`name` .*got 'depth'"):
        fusion.step(None, "depth", random(BATCH, 2, 13))


@pytest.mark.parametrize("share", [True, False])
@each_mode
def test_trap_09_leaving_one_out_keeps_the_others(mode: dict[str, str], share: bool) -> None:
    """Parameters carry names, not numbers, so the others' are found in a smaller fusion too."""
    call = full_call(**mode, share_weights=share)
    fusion = build(call)
    smaller = GatedRecurrentFusion(
        **call.config.kwargs() | {"modalities": {"text": 13, "audio": 17}}, dtype=torch.float64
    )
    state = fusion.state_dict()
    kept = {name: state[name] for name in smaller.state_dict()}
    assert all("image" in name for name in state.keys() - kept.keys())
    smaller.load_state_dict(kept)
    features = {name: call.features[name] for name in ("text", "audio")}
    # In "first_sequence" the modality after the first has a role of its own, so it has to be there.
    order = ("text", "audio", "image")
    context = fusion(features, order=order)
    assert_close({"context": context}, {"context": smaller.eval()(features)})


@pytest.mark.parametrize("times", list(itertools.permutations((1, 4, 9))), ids=str)
@each_mode
def test_trap_10_lengths_are_independent(mode: dict[str, str], times: tuple[int, int, int]) -> None:
    call = full_call(**mode)
    features = {
        name: random(BATCH, time, width)
        for (name, width), time in zip(WIDTHS.items(), times, strict=True)
    }
    context = build(call)(features)
    expected = (BATCH, times[0], 15) if mode["context"] == "sequence" else (BATCH, 15)
    assert context.shape == expected
    assert context.isfinite().all()


@pytest.mark.parametrize("extra", [1, 10])
@each_masked_case
def test_trap_11_padding_has_no_influence_whatever_it_holds(
    make: Callable[[], Case], extra: int
) -> None:
    properties.assert_right_padding_only_rounds(make(), extra)


@each_mode
def test_trap_12_equal_sizes_on_different_axes_hide_no_mistake(mode: dict[str, str]) -> None:
    """Time, batch, width and number of modalities all 3: samples and steps stay themselves."""
    names = ("one", "two", "three")
    features = {name: random(3, 3, 3, seed=ord(name[0])) for name in names}
    config = strategies.FusionConfig(
        modalities=dict.fromkeys(names, 3), embed_dim=3, num_heads=3, **mode
    )
    present = torch.tensor([[True, True, False], [True, True, True], [False, True, True]])
    masks = {"two": torch.tensor([[True, False, True], [True, True, True], [False, False, True]])}
    call = FusionCall(
        config=config,
        features=features,
        masks=masks,
        present=present,
        order=None,
        dtype=torch.float64,
        seed=3,
    )
    case = fusion_case(call)
    expected = reference_fusion(
        case.module.state_dict(), config, features, masks=masks, present=present
    )
    assert_close(case.outputs(), expected._asdict())
    properties.assert_samples_are_independent(case, [2, 0, 1])


@pytest.mark.parametrize(
    "swapped", [("batch", "time"), ("time", "dim"), ("batch", "dim")], ids="-".join
)
def test_trap_12_swapped_axes_of_different_sizes_raise(swapped: Sequence[str]) -> None:
    call = full_call()
    axes = [("batch", "time", "dim").index(axis) for axis in swapped]
    wrong = dict(call.features) | {"image": call.features["image"].transpose(*axes)}
    with pytest.raises(ShapeError, match=r"features\['image'\]` of shape"):
        build(call)(wrong)


@each_mode
def test_trap_13_absent_modality_is_an_exact_no_op(mode: dict[str, str]) -> None:
    properties.assert_absent_leave_the_state(build(fusion_call(**mode)), fusion_call(**mode))


@pytest.mark.parametrize("self_attention", [True, False])
def test_trap_14_weights_on_request_are_finite(self_attention: bool) -> None:
    case = block_case(self_attention=self_attention)
    outputs = case.outputs()
    properties.assert_finite(outputs)
    # The gradients pass through the weights too.
    properties.assert_finite(case.gradients())
    assert sum(name.startswith("weights") for name in outputs) == (4 if self_attention else 2)


@pytest.mark.parametrize("how", ["present", "mask"])
@each_mode
def test_trap_15_placeholder_of_nan_does_not_poison_gradients(
    mode: dict[str, str], how: str
) -> None:
    call = full_call(**mode)
    features = dict(call.features) | {"image": torch.full_like(call.features["image"], NAN)}
    masks = {"image": torch.zeros(BATCH, 3, dtype=torch.bool)}
    present = torch.tensor([[True, False, True]]).expand(BATCH, -1)
    ways = {"present": {"present": present}, "mask": {"masks": masks}}
    case = fusion_case(dataclasses.replace(call, features=features, **ways[how]))
    properties.assert_finite(case.outputs())
    properties.assert_rests(case, ["projections.image."])
    assert not case.gradients()["gradient of image"].any()


@pytest.mark.compile
def test_trap_16_one_graph_serves_all_subsets() -> None:
    """Only a tracer, no code generation: what counts is how many graphs there are."""
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Any]:
        del inputs
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    call = full_call()
    widths = WIDTHS | {"depth": 19}
    features = dict(call.features) | {"depth": random(BATCH, 11, 19)}
    fusion = GatedRecurrentFusion(widths, embed_dim=15, num_heads=3, dtype=torch.float64).eval()
    compiled = torch.compile(fusion, fullgraph=True, dynamic=True, backend=backend)
    for subset in itertools.product([False, True], repeat=4):
        present = torch.tensor([subset]).expand(BATCH, -1).contiguous()
        present[0] = True
        expected = fusion(features, present=present)
        assert_close({"context": compiled(features, present=present)}, {"context": expected})
    assert len(graphs) == 1


def test_trap_19_true_is_a_real_step_everywhere() -> None:
    call = full_call()
    fusion = build(call)
    mask = mask_from_lengths(torch.tensor([1, 2, 3, 4, 5, 5, 2]), 5)
    cut = dataclasses.replace(call, masks={"text": mask})
    reader = properties.fusion_case(cut, fusion)
    # The first step is real and the last is not: only the first may count.
    first, last = (call.features["text"].clone() for _ in range(2))
    first[:1, 0] += 1
    last[:1, 4] += 1
    expected = reader.outputs()["context"][0]
    for changed, same in [(first, False), (last, True)]:
        values = dict(reader.values) | {"text": changed}
        context = dataclasses.replace(reader, values=values).outputs()["context"][0]
        assert torch.equal(context, expected) == same
    block = SymmetricCrossAttentionBlock(15, num_heads=3, dtype=torch.float64)
    context, modality = random(2, 3, 15), random(2, 5, 15)
    half = torch.tensor([[True] * 2 + [False] * 3] * 2)
    masked, _ = block(context, modality, modality_mask=half)
    shorter, _ = block(context, modality[:, :2])
    assert_close({"context": masked}, {"context": shorter})
    denied = fusion(call.features, present=torch.tensor([[True, False, True]]).expand(BATCH, -1))
    left_out = fusion({name: x for name, x in call.features.items() if name != "image"})
    assert_close({"context": denied}, {"context": left_out})


def test_trap_19_lengths_become_masks() -> None:
    mask = mask_from_lengths(torch.tensor([2, 0, 3]), 3)
    assert mask.tolist() == [[True, True, False], [False] * 3, [True] * 3]


NOT_A_MASK = {
    "float 0/1": (torch.ones(BATCH, 5), "bool or integer 0/1"),
    "additive": (torch.zeros(BATCH, 5).double(), r"an additive bias of\s0/-inf"),
    "lengths": (torch.full((BATCH, 5), 3), "mask_from_lengths"),
    "negative": (-torch.ones(BATCH, 5, dtype=torch.int64), "hold only 0 and 1"),
    "transposed": (torch.ones(5, BATCH, dtype=torch.bool), "of shape"),
    "of SDPA": (torch.ones(BATCH, 1, 1, 5, dtype=torch.bool), "of shape"),
    "too long": (torch.ones(BATCH, 6, dtype=torch.bool), "of shape"),
    "a list": ([[True] * 5] * BATCH, "torch.Tensor"),
}


@pytest.mark.parametrize(("mask", "message"), NOT_A_MASK.values(), ids=NOT_A_MASK)
def test_trap_19_what_cannot_be_meant_as_a_mask_raises(mask: Any, message: str) -> None:
    call = full_call()
    fusion = build(call)
    with pytest.raises(ShapeError, match=rf"(?s)masks\['text'\].*{message}"):
        fusion(call.features, masks={"text": mask})
    with pytest.raises(ShapeError, match=rf"(?s)`mask`.*{message}"):
        fusion.step(None, "text", call.features["text"], mask=mask)
    block = SymmetricCrossAttentionBlock(13, num_heads=1, dtype=torch.float64)
    with pytest.raises(ShapeError, match=rf"(?s)`modality_mask`.*{message}"):
        block(random(BATCH, 3, 13), call.features["text"], modality_mask=mask)


@each_mode
def test_trap_20_every_pattern_of_a_mask_counts_as_it_should(mode: dict[str, str]) -> None:
    """All 16 masks of 4 steps as the samples of one batch, against the slow reference."""
    mask = torch.tensor(list(itertools.product([False, True], repeat=4)))
    widths = {"text": 3, "audio": 5, "image": 2}
    features = {name: random(16, 4, width, seed=width) for name, width in widths.items()}
    masks = {"text": mask, "audio": mask.flip(0).roll(3, 0), "image": mask.roll(5, 0)}
    for value, real in zip(features.values(), masks.values(), strict=True):
        value[~real] = NAN
    config = strategies.FusionConfig(modalities=widths, embed_dim=15, num_heads=3, **mode)
    call = FusionCall(
        config=config,
        features=features,
        masks=masks,
        present=None,
        order=None,
        dtype=torch.float64,
        seed=3,
    )
    case = fusion_case(call)
    expected = reference_fusion(case.module.state_dict(), config, features, masks=masks)
    assert_close(case.outputs(), expected._asdict())


@pytest.mark.parametrize("width", [1, 2, 7, 8])
def test_trap_20_any_length_and_any_width(width: int) -> None:
    """Past the authors' table of 5,000 rows, and at odd widths."""
    fusion = GatedRecurrentFusion(
        {"text": 3},
        embed_dim=width,
        num_heads=1,
        form="residual",
        opening="first",
        dtype=torch.float64,
    )
    nn.init.zeros_(fusion.projections["text"].weight)
    nn.init.zeros_(fusion.projections["text"].bias)
    mask = torch.zeros(1, 6007, dtype=torch.bool)
    mask[0, 6006] = True
    context = fusion({"text": random(1, 6007, 3)}, masks={"text": mask})
    assert_close({"context": context}, {"context": reference_positions([6006], width)})


@each_mode
def test_trap_20_gates_on_request(mode: dict[str, str]) -> None:
    call = full_call(**mode)
    fusion = build(call)
    _, trace = fusion(call.features, return_trace=True)
    assert trace.gates.shape == (BATCH, 3 if mode.get("opening") == "learned" else 2, 15)
    assert ((trace.gates > 0) & (trace.gates < 1)).all()
    state = fusion.step(None, "text", call.features["text"])
    state, gate = fusion.step(state, "image", call.features["image"], return_gate=True)
    assert isinstance(state, FusionState)
    assert_same_bits({"gate": gate}, {"gate": trace.gates[:, -2]})
    _, gate = GatedFusionUnit(5)(torch.ones(3, 5), torch.ones(3, 5), return_gate=True)
    assert gate.shape == (3, 5)


@pytest.mark.compile
@pytest.mark.parametrize(
    ("mode", "strict"), [(MODES[0], True), *((mode, False) for mode in MODES)], ids=label
)
def test_trap_21_documented_call_can_be_exported(mode: dict[str, str], strict: bool) -> None:
    """Masks and absence are inputs of the exported program, and batch and lengths are free."""
    call = fusion_call(**mode)
    fusion = build(call)
    batch = torch.export.Dim("batch", min=2, max=64)
    times = {name: torch.export.Dim(f"time_{name}", min=2, max=64) for name in WIDTHS}
    masks = {name: mask.bool() for name, mask in call.masks.items()}
    program = torch.export.export(
        fusion,
        (call.features,),
        {"masks": masks, "present": call.present},
        dynamic_shapes={
            "features": {name: {0: batch, 1: times[name]} for name in WIDTHS},
            "masks": {name: {0: batch, 1: times[name]} for name in masks},
            "present": {0: batch},
        },
        strict=strict,
    )
    module = program.module()

    def check(features: Named, masks: Named, present: Tensor) -> None:
        assert_close(
            {"context": module(features, masks=masks, present=present)},
            {"context": fusion(features, masks=masks, present=present)},
        )

    check(dict(call.features), masks, call.present)
    check(dict(call.features), masks, ~call.present)
    for samples, length in [(2, 4), (11, 29)]:
        features = {name: random(samples, length, width) for name, width in WIDTHS.items()}
        real = random(2, samples, length, seed=5) > 0
        masks = dict(zip(("text", "image"), real, strict=True))
        check(features, masks, random(samples, 3, seed=7) > -1)


def test_every_row_but_two_has_a_test() -> None:
    rows = {
        int(name.split("_")[2])
        for name, value in globals().items()
        if name.startswith("test_trap_") and inspect.isfunction(value)
    }
    assert rows == set(range(1, 22)) - {17, 18}
