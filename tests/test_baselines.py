"""The baselines against a slow reference and recorded numbers, and what only they promise.

The guarantees that they share with `GatedRecurrentFusion` are tested with it, in
tests/test_guarantees.py, tests/test_errors.py, tests/test_fuzz.py and tests/test_compile_export.py.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import properties
import strategies
from grf_fusion import ModalityDropout, ShapeError, mask_from_lengths
from grf_fusion.baselines import (
    ConcatFusion,
    ContrastiveAlignment,
    CrossModalAttentionFusion,
    MulT,
    WeightedSumFusion,
)
from grf_fusion.baselines._mult_stack import mult_positions
from grf_fusion.checkpoints import load_author_checkpoint
from properties import NAN, assert_close, assert_same_bits, baseline_case, weighted_sum
from reference_baselines import mult_position, reference_baseline
from refusal import assert_refused
from strategies import BaselineCall, BaselineConfig

QUICK = strategies.examples(40)
Named = dict[str, Tensor]

WIDTHS = {"text": 13, "image": 11, "audio": 17}
TIMES = {"text": 5, "image": 3, "audio": 2}
BATCH, EMBED, HEADS = 7, 15, 3
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "concat": ("concat", {}),
    "pooled": ("pooled", {"stage": "pooled"}),
    "early": ("early", {"stage": "early", "num_heads": HEADS, "num_layers": 2}),
    "sigmoid": ("weighted sum", {"weights": "sigmoid"}),
    "softmax": ("weighted sum", {"weights": "softmax"}),
    "fixed": ("weighted sum", {"weights": {"audio": 3, "text": 0.5, "image": 2}}),
    "cross-modal": ("cross-modal", {"num_heads": HEADS}),
    "mult": ("mult", {"num_heads": HEADS, "num_layers": 1}),
    "alignment": ("alignment", {}),
}
FUSING = [form for form in OPTIONS if form != "alignment"]
LEARNT = [form for form in OPTIONS if form != "fixed"]
each_form = pytest.mark.parametrize("form", OPTIONS)
each_fusing = pytest.mark.parametrize("form", FUSING)
each_kind = pytest.mark.parametrize("kind", strategies.BASELINES)


def prime_call(form: str, *, dtype: torch.dtype = torch.float64, **options: Any) -> BaselineCall:
    """Everything present, no masks, all sizes prime or odd and mutually different."""
    kind, chosen = OPTIONS[form]
    generator = torch.Generator(torch.get_default_device()).manual_seed(11)
    features = {
        name: torch.randn(BATCH, TIMES[name], width, generator=generator, dtype=torch.float64)
        for name, width in WIDTHS.items()
    }
    return BaselineCall(
        config=BaselineConfig(
            kind=kind, modalities=WIDTHS, embed_dim=EMBED, options=chosen | options
        ),
        features={name: value.to(dtype) for name, value in features.items()},
        masks=None,
        present=None,
        dtype=dtype,
        seed=23,
    )


def ragged_call(form: str, **options: Any) -> BaselineCall:
    """Padding on both sides, holes, absence, and a last sample that has nothing."""
    masks = {
        "text": mask_from_lengths(torch.tensor([5, 4, 0, 1, 2, 3, 0]), 5),
        "image": torch.tensor([[1, 1, 1], [1, 0, 1]] + [[0, 1, 1]] * 5),
    }
    present = torch.ones(BATCH, 3, dtype=torch.bool)
    present[3, 1] = present[4, 0] = present[5, 2] = False
    present[6] = False
    return dataclasses.replace(prime_call(form, **options), masks=masks, present=present)


# The formulas


def double(named: Mapping[str, Tensor]) -> Named:
    return {name: value.detach().double() for name, value in named.items()}


def reference_named(case: properties.Case, call: BaselineCall) -> Named:
    """Outputs and gradients of the reference, in float64."""
    learnt = dict(case.module.named_parameters())
    params = {name: value.requires_grad_() for name, value in double(learnt).items()}
    features = {name: value.requires_grad_() for name, value in double(case.values).items()}
    outputs = reference_baseline(call, params, features)
    # Attached to every leaf, so that it can be differentiated also where nothing is fused.
    leaves = params | features
    loss = weighted_sum(outputs) + sum(0 * leaf[:0].sum() for leaf in leaves.values() if leaf.ndim)
    gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    named = {
        f"gradient of {name}": torch.zeros_like(leaf) if slope is None else slope
        for (name, leaf), slope in zip(leaves.items(), gradients, strict=True)
    }
    return {name: value.detach() for name, value in outputs.items()} | named


def assert_is_the_formula(call: BaselineCall) -> None:
    case = baseline_case(call)
    clean = case.filled(torch.zeros_like)
    actual = {name: value.detach() for name, value in case.outputs().items()} | case.gradients()
    assert_close(actual, reference_named(clean, call))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("make", [prime_call, ragged_call])
@each_form
def test_baseline_is_the_formula(form: str, make: Any, dtype: torch.dtype) -> None:
    assert_is_the_formula(make(form, dtype=dtype))


@each_form
def test_baseline_is_the_formula_in_tiles(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    properties.compute_in_tiles(monkeypatch, tile=29)
    assert_is_the_formula(ragged_call(form))


@each_kind
@QUICK
@given(data=st.data())
def test_baseline_is_the_formula_of_any_call(kind: str, data: st.DataObject) -> None:
    # MulT has ReLU alone, whose kink float32 rounds across; see `strategies.activations_for`.
    dtype = torch.float64 if kind == "mult" else None
    assert_is_the_formula(data.draw(strategies.baseline_calls(kind, dtype=dtype)))


@pytest.mark.parametrize(
    ("form", "change"),
    [
        ("early", {"num_heads": 5}),
        ("early", {"num_layers": 1}),
        ("sigmoid", {"weights": "softmax"}),
        ("softmax", {"weights": "sigmoid"}),
        ("fixed", {"weights": {"audio": 3, "text": 0.5, "image": 2.1}}),
        ("cross-modal", {"num_heads": 5}),
        ("mult", {"num_heads": 5}),
    ],
)
def test_another_option_is_noticed(form: str, change: dict[str, Any]) -> None:
    call = ragged_call(form)
    case = baseline_case(call)
    other = dataclasses.replace(
        call, config=dataclasses.replace(call.config, options=OPTIONS[form][1] | change)
    )
    with pytest.raises(AssertionError, match="off by"):
        assert_close(case.outputs(), reference_baseline(other, *leaves_of(case)))


def leaves_of(case: properties.Case) -> tuple[Named, Named]:
    clean = case.filled(torch.zeros_like)
    return double(dict(case.module.named_parameters())), double(clean.values)


@pytest.mark.parametrize("form", LEARNT)
def test_every_parameter_is_noticed(form: str, pytestconfig: pytest.Config) -> None:
    """A change of any parameter that is not made to the reference fails the comparison.

    Without `--full` it is one of those that differ only in their modalities.
    """
    call = ragged_call(form)
    case = baseline_case(call)
    expected = reference_baseline(call, *leaves_of(case))
    assert_close(case.outputs(), expected)
    parameters = dict(case.module.named_parameters())
    if not pytestconfig.getoption("full"):
        kinds = {re.sub("|".join(WIDTHS), "*", name): name for name in parameters}
        parameters = {name: parameters[name] for name in kinds.values()}
    for parameter in parameters.values():
        before = parameter.detach().clone()
        with torch.no_grad():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
        with pytest.raises(AssertionError, match="off by"):
            assert_close(case.outputs(), expected)
        with torch.no_grad():
            parameter.copy_(before)
    assert_close(case.outputs(), expected)


# Absence


@each_form
def test_every_parameter_learns(form: str) -> None:
    properties.assert_every_parameter_learns(baseline_case(prime_call(form)))


@pytest.mark.parametrize("seed", range(3))
@each_form
def test_every_parameter_learns_from_the_first_step(form: str, seed: int) -> None:
    torch.manual_seed(seed)
    call = prime_call(form, dtype=torch.float32)
    module = properties.CLASSES[call.config.kind](**call.config.kwargs())
    properties.assert_every_parameter_learns(baseline_case(call, module))


RESTING = {
    "pooled": ["encoders.image."],
    "cross-modal": ["attentions.image.", "norms.image."],
    "mult": [
        "cross_stacks.image.",
        "memory_stacks.image.",
        *(f"cross_stacks.{name}.image.layers.0.kv_proj" for name in ("text", "audio")),
    ],
}


@pytest.mark.parametrize("how", ["present", "masked", "left out", "None"])
@each_form
def test_absent_modality_gives_its_parameters_a_gradient_of_zero(form: str, how: str) -> None:
    call = prime_call(form)
    features = dict(call.features)
    if how == "present":
        features["image"] = torch.full_like(features["image"], NAN)
        present = torch.tensor([[True, False, True]]).expand(BATCH, -1)
        call = dataclasses.replace(call, features=features, present=present)
    elif how == "masked":
        masks = {"image": torch.zeros(BATCH, TIMES["image"], dtype=torch.bool)}
        call = dataclasses.replace(call, masks=masks)
    else:
        features.pop("image")
        rest = features | ({"image": None} if how == "None" else {})
        call = dataclasses.replace(call, features=rest)
    resting = RESTING.get(call.config.kind, [])
    properties.assert_rests(baseline_case(call), ["projections.image.", *resting])


@pytest.mark.parametrize("how", ["masked", "absent"])
@pytest.mark.parametrize("who", ["some", "all"])
@each_form
def test_sample_with_nothing_gives_zero(form: str, who: str, how: str) -> None:
    gone = torch.zeros(BATCH, dtype=torch.bool)
    gone[[1, 4] if who == "some" else slice(None)] = True
    call = prime_call(form)
    features = {name: value.clone() for name, value in call.features.items()}
    for value in features.values():
        value[gone] = NAN
    masks = {n: ~gone.unsqueeze(1).expand(x.shape[:2]) for n, x in features.items()}
    present = ~gone.unsqueeze(1).expand(-1, 3)
    what = {"masks": masks} if how == "masked" else {"present": present}
    case = baseline_case(dataclasses.replace(call, features=features, **what))
    outputs = case.outputs()
    loss = outputs.pop("loss", torch.zeros(()))
    for name, value in outputs.items():
        assert not value[gone].any(), name
        assert who == "all" or value[~gone].all(dim=1).any(), name
    assert bool(loss == 0) == (who == "all" or form != "alignment")
    properties.assert_finite(case.gradients())
    if who == "all":
        names = [name for name, _ in case.module.named_parameters()]
        properties.assert_rests(case, names)


@each_form
def test_single_modality(form: str) -> None:
    """All that is left is fused by itself; what reads others gets 0, not ``None``."""
    call = prime_call(form)
    if form in {"mult", "alignment"}:
        with pytest.raises(ValueError, match=r"at least 2 modalities, got \['text'\]"):
            properties.CLASSES[form](**call.config.kwargs() | {"modalities": {"text": 13}})
        return
    options = dict(call.config.options)
    if form == "fixed":
        options["weights"] = {"text": 0.5}
    config = dataclasses.replace(call.config, modalities={"text": 13}, options=options)
    call = dataclasses.replace(call, config=config, features={"text": call.features["text"]})
    assert_is_the_formula(call)
    gradients = baseline_case(call).gradients()
    assert gradients["gradient of projections.text.weight"].any()


@each_form
def test_presence_fits_modality_dropout(form: str) -> None:
    call = ragged_call(form)
    module = baseline_case(call).module
    present = module.presence(call.features, masks=call.masks, present=call.present)
    left = ModalityDropout(0.6)(present)
    assert (left != present).any()
    out = module(call.features, masks=call.masks, present=left)
    assert out.isfinite().all()


@each_fusing
@pytest.mark.parametrize("seed", range(3))
def test_autocast_is_close(form: str, seed: int) -> None:
    call = dataclasses.replace(prime_call(form, dtype=torch.float32), seed=seed)
    call = dataclasses.replace(call, config=dataclasses.replace(call.config, embed_dim=48))
    # As for the chain: some hundred roundings to 8 bits in a row, added up as a random walk.
    properties.assert_autocast_is_close(baseline_case(call), 2**-9 * 32)


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("concat", {}),
        ("pooled", {}),
        ("early", {"stage": "early"}),
        ("cross-modal", {}),
        ("mult", {}),
    ],
)
def test_dropout_is_active_in_training_only(form: str, options: dict[str, Any]) -> None:
    call = prime_call(form, **options)
    module = baseline_case(call, dropout=0.3).module
    still = module(call.features)
    assert_same_bits({"": module(call.features)}, {"": still})
    module.train()
    one, other = module(call.features), module(call.features)
    assert not torch.allclose(one, other)
    assert not torch.allclose(one, still)


# Each by itself


def test_fixed_weights_keep_their_sum() -> None:
    call = ragged_call("fixed")
    weights = baseline_case(call).outputs()["weights"]
    expected = torch.full((BATCH,), 5.5, dtype=torch.float64)
    expected[6] = 0
    assert torch.allclose(weights.sum(dim=1), expected)
    assert_close({"": weights[0]}, {"": torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)})


def test_softmax_weights_sum_to_one_and_sigmoid_weights_stand_alone() -> None:
    weights = baseline_case(ragged_call("softmax")).outputs()["weights"]
    sums = torch.ones(BATCH, dtype=torch.float64)
    sums[6] = 0
    assert torch.allclose(weights.sum(dim=1), sums)
    weights = baseline_case(ragged_call("sigmoid")).outputs()["weights"]
    assert ((weights >= 0) & (weights < 1)).all()


def test_fixed_weights_of_zero_leave_nothing() -> None:
    fusion = WeightedSumFusion(WIDTHS, embed_dim=4, weights={"text": 1, "image": 0, "audio": 0})
    image = torch.randn(2, 3, 11)
    fused, weights = fusion({"image": image}, return_weights=True)
    assert not fused.any()
    assert not weights.any()


def test_fixed_weights_are_saved_and_named_in_any_order() -> None:
    given_weights = {"audio": 3, "text": 1, "image": 2}
    fusion = WeightedSumFusion(WIDTHS, embed_dim=4, weights=given_weights)
    assert fusion.state_dict()["fixed"].tolist() == [1, 2, 3]
    assert "weights={'text': 1.0, 'image': 2.0, 'audio': 3.0}" in repr(fusion)
    assert given_weights == {"audio": 3, "text": 1, "image": 2}


def test_clip_loss_of_two_is_that_of_torch() -> None:
    call = prime_call("alignment")
    config = dataclasses.replace(call.config, modalities={"text": 13, "audio": 17})
    features = {name: call.features[name] for name in config.modalities}
    call = dataclasses.replace(call, config=config, features=features)
    outputs = baseline_case(call).outputs()
    module = baseline_case(call).module
    scores = outputs["vector text"] @ outputs["vector audio"].T * 100 * module.scale.sigmoid()
    own = torch.arange(BATCH)
    both = nn.functional.cross_entropy(scores, own) + nn.functional.cross_entropy(scores.T, own)
    assert_close({"": outputs["loss"]}, {"": both / 2})


def test_a_pair_without_negatives_does_not_dilute_the_loss() -> None:
    call = prime_call("alignment")
    present = torch.ones(BATCH, 3, dtype=torch.bool)
    present[1:, 2] = False
    case = baseline_case(dataclasses.replace(call, present=present))
    pair = {name: x for name, x in call.features.items() if name != "audio"}
    assert_close({"": case.outputs()["loss"]}, {"": case.module(pair)})


@pytest.mark.parametrize("temperature", [0.011, 0.07, 1, 20.0])
def test_temperature_is_where_it_starts(temperature: float) -> None:
    module = ContrastiveAlignment(WIDTHS, embed_dim=4, temperature=temperature)
    start = 100 * module.scale.detach().double().sigmoid()
    assert math.isclose(start.item(), 1 / temperature, rel_tol=1e-5)


def test_alignment_learns_to_tell_samples_apart() -> None:
    torch.manual_seed(3)
    shared = torch.randn(32, 1, 4)
    features = {"one": shared @ torch.randn(4, 6), "other": shared @ torch.randn(4, 5)}
    align = ContrastiveAlignment({"one": 6, "other": 5}, embed_dim=8)
    optimiser = torch.optim.Adam(align.parameters(), lr=0.01)
    before = align(features).item()
    for _ in range(100):
        optimiser.zero_grad()
        align(features).backward()
        optimiser.step()
    assert align(features).item() < before / 5
    vectors = align.embed(features)
    assert torch.equal((vectors["one"] @ vectors["other"].T).argmax(dim=1), torch.arange(32))


# MulT


def recorded() -> dict[str, Tensor]:
    golden = np.load(Path(__file__).parent / "golden" / "mult_small.npz")
    return {key: torch.as_tensor(golden[key]) for key in golden.files}


def author_weights() -> Named:
    return {
        key.removeprefix("weight/"): value
        for key, value in recorded().items()
        if key.startswith("weight/")
    }


LETTERS = {"l": "text", "a": "audio", "v": "vision"}


def load(weights: Any = None, **options: Any) -> MulT:
    weights = author_weights() if weights is None else weights
    chosen: dict[str, Any] = {"order": tuple(LETTERS), "num_heads": 5, "model": "mult"} | options
    return load_author_checkpoint(weights, **chosen)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("literal", [True, False])
def test_mult_reproduces_the_recorded_numbers(literal: bool, dtype: torch.dtype) -> None:
    golden = recorded()
    weights = {name: value.to(dtype) for name, value in author_weights().items()}
    module = load(weights, literal=literal)
    features = {letter: golden[f"input/{name}"].to(dtype) for letter, name in LETTERS.items()}
    prediction, fused = module(features, return_fused=True)
    torch.testing.assert_close(fused.float(), golden["fused"], rtol=0, atol=1e-5)
    torch.testing.assert_close(prediction.float(), golden["prediction"], rtol=0, atol=1e-5)
    assert module.literal is literal
    assert not module.training
    assert prediction.dtype == dtype


def test_mult_has_as_many_parameters_as_the_authors() -> None:
    module = load()
    count = sum(parameter.numel() for parameter in module.parameters())
    assert count == sum(value.numel() for value in author_weights().values())
    fresh = MulT(module.modalities, embed_dim=1, num_heads=5, num_layers=1, stack_dim=10)
    assert sum(parameter.numel() for parameter in fresh.parameters()) == count


def test_mult_checkpoint_shares_no_memory_and_skips_buffers() -> None:
    weights = author_weights()
    more = {"trans_l_with_a.version": torch.ones(1)}
    more["trans_l_mem.embed_positions._float_tensor"] = torch.ones(1)
    module = load(weights | more)
    before = weights["proj_l.weight"].clone()
    with torch.no_grad():
        module.projections["l"].weight.zero_()
    assert torch.equal(weights["proj_l.weight"], before)


@pytest.mark.parametrize("layers", [1, 2, 4])
@pytest.mark.parametrize("count", [2, 4])
def test_mult_checkpoint_of_any_size(count: int, layers: int) -> None:
    """Weights under the authors' names, of more modalities and layers than they have."""
    sizes = dict(list({"l": 3, "a": 5, "v": 7, "x": 2}.items())[:count])
    module = MulT(sizes, embed_dim=2, num_heads=2, num_layers=layers, stack_dim=4).eval()
    properties.randomise(module, 3)
    theirs: Named = {}
    for key, value in module.state_dict().items():
        head, *rest = key.split(".")
        if head == "projections":
            theirs[f"proj_{rest[0]}.weight"] = value.unsqueeze(-1)
        elif head in {"head_in", "head_out", "out_proj"}:
            name = {"head_in": "proj1", "head_out": "proj2", "out_proj": "out_layer"}[head]
            theirs[f"{name}.{rest[0]}"] = value
        else:
            pair = head == "cross_stacks"
            stack = f"trans_{rest[0]}_with_{rest[1]}" if pair else f"trans_{rest[0]}_mem"
            name = ".".join(rest[2:] if pair else rest[1:])
            for own, their in {
                "attention_norm": "layer_norms.0",
                "feedforward_norm": "layer_norms.1",
                "linear1": "fc1",
                "linear2": "fc2",
                "out_proj": "self_attn.out_proj",
            }.items():
                name = name.replace(f".{own}.", f".{their}.")
            name = name.replace("norm.", "layer_norm.") if name.startswith("norm.") else name
            if ".q_proj." in name:
                other = module.state_dict()[key.replace("q_proj", "kv_proj")]
                theirs[f"{stack}.{name.replace('q_proj.', 'self_attn.in_proj_')}"] = torch.cat(
                    (value, other)
                )
            elif ".kv_proj." not in name:
                theirs[f"{stack}.{name}"] = value
    loaded = load(theirs, order=tuple(sizes), num_heads=2)
    assert_same_bits(loaded.state_dict(), module.state_dict())


PROJ, FC1 = "proj_a.weight", "trans_l_mem.layers.2.fc1.weight"


@pytest.mark.parametrize(
    ("changes", "options", "said", "got"),
    [
        ({PROJ: None}, {}, f"'{PROJ}'", "got none. It projects ['proj_l.weight', 'proj_v.weight']"),
        ({PROJ: torch.ones(10, 5)}, {}, f"'{PROJ}' to be of 3 axes", "got (10, 5)"),
        ({PROJ: [1.0]}, {}, f"'{PROJ}' to be of 3 axes", "got list"),
        ({PROJ: torch.ones(10, 5, 3)}, {}, "of shape (10, 5, 1)", "got (10, 5, 3)"),
        ({PROJ: torch.ones(11, 5, 1)}, {}, "of shape (10, 5, 1)", "got (11, 5, 1)"),
        ({"out_layer.weight": None}, {}, "'out_layer.weight'", "got none"),
        ({"out_layer.weight": torch.ones(60)}, {}, "to be a matrix", "got (60,)"),
        ({FC1: None}, {}, "`state_dict`", f"missing ['{FC1}'], unexpected []"),
        ({FC1: torch.ones(80, 21)}, {}, "of shape (80, 20)", "got (80, 21)"),
        ({"more.bias": torch.ones(1)}, {}, "`state_dict`", "unexpected ['more.bias']"),
        ({FC1: torch.ones(80, 20).double()}, {}, "torch.float32", "got torch.float64"),
        ({FC1: torch.ones(80, 20).int()}, {}, "floating-point", "got torch.int32"),
        ({}, {"order": ("l", "a")}, "`state_dict`", "unexpected ['proj_v.weight'"),
        ({}, {"order": ("l", "a", "x")}, "'proj_x.weight'", "got none"),
        ({}, {"order": ("l",)}, "`order`", "got ('l',)"),
        ({}, {"num_heads": 3}, "`num_heads`", "stack_dim=10 and num_heads=3"),
        ({}, {"model": "other"}, "`model` to be one of 'grf', 'mult'", "got 'other'"),
        ({}, {"model": "grf", "literal": True}, "no `literal` with model='grf'", "got True"),
        ({}, {"literal": "yes"}, "`literal` to be True or False", "got 'yes'"),
        ({}, {"model": "grf"}, "'projectors.l.weight'", "got none"),
    ],
)
def test_wrong_mult_checkpoint(
    changes: dict[str, Any], options: dict[str, Any], said: str, got: str
) -> None:
    weights: dict[str, Any] = author_weights() | changes
    weights = {key: value for key, value in weights.items() if value is not None}
    with pytest.raises(ValueError, match=r"^(load_author_checkpoint|MulT): expected ") as caught:
        load(weights, **options)
    assert said in str(caught.value)
    assert got in str(caught.value)


def test_mult_reads_the_last_real_step_and_literally_the_last() -> None:
    """Where every step is real both are the same; zero-padding is content to the authors."""
    call = prime_call("mult")
    case = baseline_case(call)
    literal = MulT(**call.config.kwargs(), literal=True, dtype=call.dtype).eval()
    literal.load_state_dict(case.module.state_dict())
    whole = call.features
    assert_close({"": literal(whole)}, {"": case.module(whole)})
    padded = {n: nn.functional.pad(x, (0, 0, 0, 2)) for n, x in whole.items()}
    masks = {n: torch.arange(x.shape[1]) < TIMES[n] for n, x in padded.items()}
    masks = {n: mask.expand(BATCH, -1) for n, mask in masks.items()}
    assert_close({"": case.module(padded, masks=masks)}, {"": case.module(whole)})
    assert not torch.allclose(literal(padded), literal(whole), atol=1e-3)


def test_literal_mult_gives_no_position_to_a_first_feature_of_zero() -> None:
    call = prime_call("mult")
    case = baseline_case(call)
    literal = MulT(**call.config.kwargs(), literal=True, dtype=call.dtype).eval()
    literal.load_state_dict(case.module.state_dict())
    features = {name: value.clone() for name, value in call.features.items()}
    features["text"][:, 2] = 0
    seen: list[Tensor] = []
    for module in (literal, case.module):
        stack = module.cross_stacks["text"]["image"]
        hook = stack.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        module(features)
        hook.remove()
    assert not seen[0][:, 2].any()
    assert (
        seen[1][:, 2] - torch.tensor(mult_position(2, EMBED), dtype=torch.float64)
    ).abs().max() < 1e-12
    rest = [0, 1, 3, 4]
    assert_close({"": seen[0][:, rest]}, {"": seen[1][:, rest]})


@pytest.mark.parametrize(
    ("change", "argument", "got"),
    [
        ({"masks": {}}, "masks", "with literal=True, got dict"),
        ({"present": torch.ones(BATCH, 3).bool()}, "present", "with literal=True, got Tensor"),
        (
            {"features": {"image": torch.ones(BATCH, 3, 11)}},
            "features",
            "missing ['text', 'audio']",
        ),
    ],
    ids=["masks", "present", "absent"],
)
def test_literal_mult_takes_no_masks(change: dict[str, Any], argument: str, got: str) -> None:
    module = MulT(WIDTHS, embed_dim=6, num_heads=2, num_layers=1, literal=True)
    features = {n: torch.ones(BATCH, TIMES[n], width) for n, width in WIDTHS.items()}
    call = {"features": features} | change
    assert_refused(
        lambda: module(**call),
        who="MulT",
        argument=argument,
        got=got,
        error=ShapeError,
        module=module,
    )


@pytest.mark.parametrize("dim", [1, 2, 3, 4, 7, 10])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_mult_positions_of_any_width(dim: int, dtype: torch.dtype) -> None:
    table = mult_positions(9001, dim, device=torch.get_default_device(), dtype=dtype)
    assert table.dtype == dtype
    expected = torch.tensor([mult_position(t, dim) for t in (0, 1, 9000)], dtype=torch.float64)
    assert_close({"": table[[0, 1, 9000]]}, {"": expected.to(dtype)})


def test_mult_query_sees_ahead_by_the_difference_of_the_lengths() -> None:
    stack = baseline_case(prime_call("mult")).module.cross_stacks["audio"]["text"]
    x = torch.randn(BATCH, 2, EMBED, dtype=torch.float64, requires_grad=True)
    memory = torch.randn(BATCH, 5, EMBED, dtype=torch.float64, requires_grad=True)
    out = stack(x, None, memory, None)
    (slope,) = torch.autograd.grad(out[:, 0].sum(), memory)
    # 0 + |2 - 5| = 3: the first query reads steps 0 to 3 and not 4.
    assert slope[:, :4].any(dim=-1).all()
    assert not slope[:, 4].any()


def test_mult_starts_as_the_authors_model_does() -> None:
    """Glorot's uniform range, with queries, keys and values drawn as one matrix; biases of 0."""
    stack = MulT(WIDTHS, embed_dim=32, num_heads=2, num_layers=1).memory_stacks["text"]
    layer, width = stack.layers[0], 64
    sides = {"q_proj": 4, "kv_proj": 4, "out_proj": 2, "linear1": 5, "linear2": 5}
    for name, side in sides.items():
        linear = getattr(layer, name)
        bound = math.sqrt(6 / (side * width))
        assert 0.99 * bound < linear.weight.abs().max() <= bound
        assert not linear.bias.any()


# Names and sizes


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


TWO = {"text": 3, "audio": 5}
OF_TWO = {
    "projections.text.weight": (4, 3),
    "projections.text.bias": (4,),
    "projections.audio.weight": (4, 5),
    "projections.audio.bias": (4,),
}


def test_state_dict_keys_of_a_concatenation() -> None:
    assert shapes_of(ConcatFusion(TWO, embed_dim=4)) == OF_TWO | {
        "mix.0.weight": (16, 8),
        "mix.0.bias": (16,),
        "mix.3.weight": (4, 16),
        "mix.3.bias": (4,),
    }
    assert shapes_of(ConcatFusion(TWO, embed_dim=4, stage="pooled")) == OF_TWO | {
        "encoders.text.weight": (4, 4),
        "encoders.text.bias": (4,),
        "encoders.audio.weight": (4, 4),
        "encoders.audio.bias": (4,),
        "mix.0.weight": (8, 16),
        "mix.0.bias": (8,),
        "mix.3.weight": (4, 8),
        "mix.3.bias": (4,),
    }
    early = ConcatFusion(TWO, embed_dim=4, stage="early", num_heads=2, dim_feedforward=7)
    assert shapes_of(early) == OF_TWO | {
        "layers.0.attention.q_proj.weight": (4, 4),
        "layers.0.attention.q_proj.bias": (4,),
        "layers.0.attention.k_proj.weight": (4, 4),
        "layers.0.attention.v_proj.weight": (4, 4),
        "layers.0.attention.v_proj.bias": (4,),
        "layers.0.attention.out_proj.weight": (4, 4),
        "layers.0.attention.out_proj.bias": (4,),
        "layers.0.attention_norm.weight": (4,),
        "layers.0.attention_norm.bias": (4,),
        "layers.0.linear1.weight": (7, 4),
        "layers.0.linear1.bias": (7,),
        "layers.0.linear2.weight": (4, 7),
        "layers.0.linear2.bias": (4,),
        "layers.0.feedforward_norm.weight": (4,),
        "layers.0.feedforward_norm.bias": (4,),
    }


def test_state_dict_keys_of_a_weighted_sum() -> None:
    gate = {"gate.weight": (2, 8), "gate.bias": (2,)}
    assert shapes_of(WeightedSumFusion(TWO, embed_dim=4)) == OF_TWO | gate
    assert shapes_of(WeightedSumFusion(TWO, embed_dim=4, weights="softmax")) == OF_TWO | gate
    fixed = WeightedSumFusion(TWO, embed_dim=4, weights={"text": 1, "audio": 2})
    assert shapes_of(fixed) == OF_TWO | {"fixed": (2,)}


def test_state_dict_keys_of_cross_modal_attention() -> None:
    expected = dict(OF_TWO)
    for name in TWO:
        expected |= {
            f"attentions.{name}.q_proj.weight": (4, 4),
            f"attentions.{name}.q_proj.bias": (4,),
            f"attentions.{name}.k_proj.weight": (4, 4),
            f"attentions.{name}.v_proj.weight": (4, 4),
            f"attentions.{name}.v_proj.bias": (4,),
            f"attentions.{name}.out_proj.weight": (4, 4),
            f"attentions.{name}.out_proj.bias": (4,),
            f"norms.{name}.weight": (4,),
            f"norms.{name}.bias": (4,),
        }
    expected |= {"mix.weight": (4, 8), "mix.bias": (4,)}
    assert shapes_of(CrossModalAttentionFusion(TWO, embed_dim=4, num_heads=2)) == expected


def test_state_dict_keys_of_an_alignment() -> None:
    assert shapes_of(ContrastiveAlignment(TWO, embed_dim=4)) == OF_TWO | {"scale": ()}


def test_state_dict_keys_of_mult() -> None:
    def stack(name: str, width: int, layers: int) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {f"{name}.norm.weight": (width,)}
        shapes[f"{name}.norm.bias"] = (width,)
        for layer in range(layers):
            prefix = f"{name}.layers.{layer}"
            for part, (out, into) in {
                "q_proj": (width, width),
                "kv_proj": (2 * width, width),
                "out_proj": (width, width),
                "linear1": (4 * width, width),
                "linear2": (width, 4 * width),
            }.items():
                shapes[f"{prefix}.{part}.weight"] = (out, into)
                shapes[f"{prefix}.{part}.bias"] = (out,)
            for part in ("attention_norm", "feedforward_norm"):
                shapes[f"{prefix}.{part}.weight"] = (width,)
                shapes[f"{prefix}.{part}.bias"] = (width,)
        return shapes

    module = MulT(TWO | {"depth": 7}, embed_dim=9, num_heads=2, num_layers=1, stack_dim=4)
    expected: dict[str, tuple[int, ...]] = {
        "projections.text.weight": (4, 3),
        "projections.audio.weight": (4, 5),
        "projections.depth.weight": (4, 7),
        "head_in.weight": (24, 24),
        "head_in.bias": (24,),
        "head_out.weight": (24, 24),
        "head_out.bias": (24,),
        "out_proj.weight": (9, 24),
        "out_proj.bias": (9,),
    }
    for one, two, three in (
        ("text", "audio", "depth"),
        ("audio", "text", "depth"),
        ("depth", "text", "audio"),
    ):
        expected |= stack(f"cross_stacks.{one}.{two}", 4, 1)
        expected |= stack(f"cross_stacks.{one}.{three}", 4, 1)
        expected |= stack(f"memory_stacks.{one}", 8, 3)
    assert shapes_of(module) == expected


def test_mult_has_five_layers_by_default_as_the_authors() -> None:
    module = MulT(TWO, embed_dim=4, num_heads=2)
    assert len(module.cross_stacks["text"]["audio"].layers) == 5
    assert len(module.memory_stacks["text"].layers) == 5


@pytest.mark.parametrize(
    ("form", "shown"),
    [
        ("concat", "stage='late', num_heads=None"),
        ("early", "stage='early', num_heads=3"),
        ("sigmoid", "weights='sigmoid'"),
        ("cross-modal", "num_heads=3"),
        ("mult", "num_heads=3, num_layers=1, stack_dim=15, literal=False"),
        ("alignment", "temperature=0.07"),
    ],
)
def test_repr_shows_modalities_and_sizes(form: str, shown: str) -> None:
    module = baseline_case(prime_call(form)).module
    assert f"modalities={WIDTHS}, embed_dim=15, {shown}" in repr(module)
