"""The library against two independent oracles and against the authors' recorded numbers."""

import copy
import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import oracle_torch
import reference
import strategies
from grf_fusion import (
    AttentionWeights,
    GatedFusionUnit,
    GatedRecurrentFusion,
    SymmetricCrossAttentionBlock,
    mask_from_lengths,
)
from grf_fusion.checkpoints import load_author_checkpoint
from properties import compute_in_tiles
from reference import FusionConfig, reference_block, reference_fusion, reference_gate

GOLDEN = Path(__file__).parent / "golden"
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
DTYPES = [torch.float64, torch.float32]
QUICK = strategies.examples(60)
THOROUGH = strategies.examples(250)

Named = dict[str, Tensor]
Compute = Callable[[Named, Named], Named]


def assert_matches(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Same names and shapes; float64 to 1e-10 and float32 to 1e-5; bool and integer exactly.

    The dtype of `actual` decides; `expected` may be more precise. Errors are relative to the
    largest entry of the expected tensor, absolute below 1.
    """
    assert actual.keys() == expected.keys()
    assert actual, "nothing to compare"
    for name, got in actual.items():
        want = expected[name]
        assert got.shape == want.shape, f"{name}: shape {got.shape}, expected {want.shape}"
        if not got.dtype.is_floating_point:
            assert torch.equal(got, want), f"{name}: {got}, expected {want}"
            continue
        assert got.isfinite().all(), f"{name}: not finite"
        assert want.isfinite().all(), f"{name}: expected value not finite"
        if not got.numel():
            continue
        error = (got.detach().double() - want.detach().double()).abs().max().item()
        scale = max(1.0, want.detach().abs().max().item())
        assert error <= TOLERANCE[got.dtype] * scale, f"{name}: off by {error} at scale {scale}"


def with_gradients(compute: Compute, params: Named, inputs: Named) -> Named:
    """Outputs of `compute`, and the gradients of all parameters and inputs, by name.

    The scalar that is differentiated weighs every floating-point output with fixed random numbers.
    """
    params = {name: value.detach().requires_grad_() for name, value in params.items()}
    inputs = {name: value.detach().requires_grad_() for name, value in inputs.items()}
    outputs = compute(params, inputs)
    # Attached to a leaf, so that it can be differentiated also where nothing is fused.
    loss = weighted_sum(outputs) + 0 * next(iter(params.values())).sum()
    leaves = {f"gradient of {name}": value for name, value in (params | inputs).items()}
    gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    named = {
        name: torch.zeros_like(leaf) if gradient is None else gradient
        for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True)
    }
    return outputs | named


def weighted_sum(outputs: Mapping[str, Tensor]) -> Tensor:
    generator = torch.Generator(torch.get_default_device()).manual_seed(3)
    loss = torch.zeros((), dtype=torch.float64)
    for output in outputs.values():
        if output.dtype.is_floating_point:
            weights = torch.randn(output.shape, generator=generator, dtype=torch.float64)
            loss = loss + (weights * output.double()).sum()
    return loss


def library_gradients(module: torch.nn.Module, inputs: Named, outputs: Named) -> Named:
    """Like `with_gradients`, from ``backward``; a parameter without a gradient is an error."""
    weighted_sum(outputs).backward()
    named: Named = {}
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, f"{name}: no gradient"
        named[f"gradient of {name}"] = parameter.grad
    for name, value in inputs.items():
        assert value.grad is not None, f"{name}: no gradient"
        named[f"gradient of {name}"] = value.grad
    return outputs | named


def double(named: Mapping[str, Tensor]) -> Named:
    return {name: value.double() for name, value in named.items()}


def build(call: strategies.FusionCall) -> GatedRecurrentFusion:
    """The library's module with random weights; the strict load pins names and shapes."""
    module = GatedRecurrentFusion(**call.config.kwargs(), dtype=call.dtype)
    params = reference.random_params(reference.fusion_shapes(call.config), call.seed, call.dtype)
    module.load_state_dict(params)
    return module


def library_fusion(module: GatedRecurrentFusion, call: strategies.FusionCall) -> Named:
    leaves = {
        name: value.clone().requires_grad_()
        for name, value in call.features.items()
        if value is not None
    }
    features = {name: leaves.get(name) for name in call.features}
    context, trace = module(features, **call.call_kwargs(), return_trace=True)
    assert trace.order == (call.order or tuple(call.config.modalities))
    outputs = {
        "context": context,
        "contexts": trace.contexts,
        "gates": trace.gates,
        "present": trace.present,
    }
    assert all(output.dtype == call.dtype for name, output in outputs.items() if name != "present")
    return library_gradients(module, leaves, outputs)


def expected_fusion(call: strategies.FusionCall) -> Named:
    """The reference in float64, on weights and features that float32 can hold exactly."""
    params = reference.random_params(reference.fusion_shapes(call.config), call.seed)
    leaves = double({name: x for name, x in call.features.items() if x is not None})

    def compute(params: Named, inputs: Named) -> Named:
        features = {name: inputs.get(name) for name in call.features}
        trace = reference_fusion(params, call.config, features, **call.call_kwargs())
        return trace._asdict()

    named = with_gradients(compute, params, leaves)
    # Measured, not learnt.
    return {name: value for name, value in named.items() if not name.endswith(".rms")}


def oracle_fusion(call: strategies.FusionCall) -> Named:
    params = reference.random_params(reference.fusion_shapes(call.config), call.seed)

    def compute(params: Named, inputs: Named) -> Named:
        return oracle_torch.oracle_fusion(
            params, call.config, inputs, masks, call.order, seed=call.seed
        )._asdict()

    masks = {name: mask for name, mask in (call.masks or {}).items() if mask is not None}
    features = {name: x for name, x in call.features.items() if x is not None}
    return with_gradients(compute, params, double(features))


def fixed_call(dtype: torch.dtype, **options: Any) -> strategies.FusionCall:
    """Three modalities, all sizes prime or odd and mutually different, absence and every mask."""
    batch, times, widths = 7, (5, 3, 2), (13, 11, 17)
    names = ("text", "image", "audio")
    generator = torch.Generator(torch.get_default_device()).manual_seed(11)
    features = {
        name: torch.randn(batch, time, width, generator=generator, dtype=torch.float64).to(dtype)
        for name, time, width in zip(names, times, widths, strict=True)
    }
    masks = {
        # Full, right padded, left padded, holes, nothing, one step, full.
        "text": torch.tensor(
            [
                [1, 1, 1, 1, 1],
                [1, 1, 0, 0, 0],
                [0, 0, 1, 1, 1],
                [1, 0, 1, 0, 1],
                [0, 0, 0, 0, 0],
                [0, 0, 0, 1, 0],
                [1, 1, 1, 1, 1],
            ]
        ),
        "audio": torch.tensor(
            [[1, 1], [1, 0], [0, 1], [1, 1], [1, 1], [0, 0], [1, 1]], dtype=torch.bool
        ),
    }
    present = torch.tensor(
        [
            [True, True, True],
            [True, False, True],
            [True, True, True],
            [False, True, True],
            [True, True, True],
            [True, True, True],
            [False, False, False],
        ]
    )
    for name, mask in masks.items():
        features[name][~mask.bool()] = float("nan")
    sizes = {"embed_dim": 15, "num_heads": 3, "num_layers": 2, "dim_feedforward": 19}
    chosen: dict[str, Any] = sizes | options
    config = FusionConfig(modalities=dict(zip(names, widths, strict=True)), **chosen)
    return strategies.FusionCall(
        config=config,
        features=features,
        masks=masks,
        present=present,
        order=("text", "audio", "image"),
        dtype=dtype,
        seed=23,
    )


OPENINGS = [
    {"context": "pooled", "opening": "first"},
    {"context": "pooled", "opening": "learned"},
    {"context": "first_sequence"},
    {"context": "sequence"},
]
BLOCK_OPTIONS = [
    {"norm_first": norm_first, "self_attention": self_attention, "symmetric": symmetric}
    for norm_first, self_attention, symmetric in itertools.product(
        [False, True], [False, True, "linear"], [False, True]
    )
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("share_weights", [True, False], ids=["shared", "own"])
@pytest.mark.parametrize("opening", OPENINGS, ids=lambda options: "-".join(options.values()))
def test_fusion_matches_reference_at_prime_sizes(
    opening: dict[str, Any], share_weights: bool, dtype: torch.dtype
) -> None:
    call = fixed_call(dtype, share_weights=share_weights, **opening)
    assert_matches(library_fusion(build(call), call), expected_fusion(call))


@pytest.mark.parametrize("block", BLOCK_OPTIONS, ids=lambda options: str(list(options.values())))
@pytest.mark.parametrize("opening", OPENINGS, ids=lambda options: "-".join(options.values()))
def test_fusion_matches_reference_with_every_block(
    opening: dict[str, Any], block: dict[str, bool]
) -> None:
    call = fixed_call(torch.float64, **opening, **block, activation="relu", num_layers=1)
    assert_matches(library_fusion(build(call), call), expected_fusion(call))


@QUICK
@given(strategies.fusion_calls(dtype=torch.float64))
def test_fusion_matches_reference_float64(call: strategies.FusionCall) -> None:
    assert_matches(library_fusion(build(call), call), expected_fusion(call))


@QUICK
@given(strategies.fusion_calls(dtype=torch.float32, smooth=True))
def test_fusion_matches_reference_float32(call: strategies.FusionCall) -> None:
    assert_matches(library_fusion(build(call), call), expected_fusion(call))


@QUICK
@given(strategies.fusion_calls(smooth=True))
def test_fusion_matches_reference_in_tiles(call: strategies.FusionCall) -> None:
    """With everything computed as large inputs are, in tiles of a few entries."""
    with pytest.MonkeyPatch.context() as patch:
        compute_in_tiles(patch, tile=29)
        assert_matches(library_fusion(build(call), call), expected_fusion(call))


@pytest.mark.slow
@THOROUGH
@given(strategies.fusion_calls(smooth=True))
def test_fusion_matches_reference_thoroughly(call: strategies.FusionCall) -> None:
    assert_matches(library_fusion(build(call), call), expected_fusion(call))


@QUICK
@given(strategies.fusion_calls(absence=False, ablations=False, smooth=True))
def test_fusion_matches_torch_layers(call: strategies.FusionCall) -> None:
    actual = library_fusion(build(call), call)
    del actual["present"]
    assert_matches(actual, oracle_fusion(call))


@QUICK
@given(strategies.fusion_calls(absence=False, ablations=False, dtype=torch.float64))
def test_oracles_agree(call: strategies.FusionCall) -> None:
    expected = expected_fusion(call)
    del expected["present"]
    assert_matches(oracle_fusion(call), expected)


# Options that change how a block computes and not what.
HOW = ("packing", "checkpoint")


def expected_block(call: strategies.BlockCall) -> Named:
    params = reference.random_params(block_shapes(call), call.seed)

    def compute(params: Named, inputs: Named) -> Named:
        context, modality, weights = reference_block(
            params,
            inputs["context"],
            inputs["modality"],
            call.context_mask,
            call.modality_mask,
            **{key: value for key, value in call.options.items() if key not in HOW},
        )
        return {"new context": context, "new modality": modality} | given_weights(weights)

    inputs = double({"context": call.context, "modality": call.modality})
    return with_gradients(compute, params, inputs)


def block_shapes(call: strategies.BlockCall) -> dict[str, tuple[int, ...]]:
    options = ("norm_first", "self_attention", "symmetric", "pooled_context")
    return reference.block_shapes(
        call.embed_dim,
        num_layers=call.num_layers,
        dim_feedforward=call.dim_feedforward,
        **{option: call.options[option] for option in options},
    )


def given_weights(weights: AttentionWeights | reference.ReferenceWeights) -> Named:
    """Detached, because the reference builds them without a graph."""
    return {
        f"weights {name}": value.detach()
        for name, value in weights._asdict().items()
        if value is not None
    }


def build_block(call: strategies.BlockCall) -> SymmetricCrossAttentionBlock:
    block = SymmetricCrossAttentionBlock(
        call.embed_dim,
        num_layers=call.num_layers,
        dim_feedforward=call.dim_feedforward,
        **call.options,
        dtype=call.context.dtype,
    )
    params = reference.random_params(block_shapes(call), call.seed, call.context.dtype)
    block.load_state_dict(params)
    return block


def library_block(block: SymmetricCrossAttentionBlock, call: strategies.BlockCall) -> Named:
    leaves = {
        "context": call.context.clone().requires_grad_(),
        "modality": call.modality.clone().requires_grad_(),
    }
    masks = {"context_mask": call.context_mask, "modality_mask": call.modality_mask}
    context, modality, weights = block(*leaves.values(), **masks, need_weights=True)
    with torch.no_grad():
        for without, value in zip(
            block(*leaves.values(), **masks), (context, modality), strict=True
        ):
            torch.testing.assert_close(
                without, value, rtol=TOLERANCE[value.dtype], atol=TOLERANCE[value.dtype]
            )
    outputs = {"new context": context, "new modality": modality} | given_weights(weights)
    return library_gradients(block, leaves, outputs)


@QUICK
@given(strategies.block_calls(dtype=torch.float64))
def test_block_matches_reference_float64(call: strategies.BlockCall) -> None:
    assert_matches(library_block(build_block(call), call), expected_block(call))


@QUICK
@given(strategies.block_calls(dtype=torch.float32, smooth=True))
def test_block_matches_reference_float32(call: strategies.BlockCall) -> None:
    assert_matches(library_block(build_block(call), call), expected_block(call))


@pytest.mark.slow
@THOROUGH
@given(strategies.block_calls(smooth=True))
def test_block_matches_reference_thoroughly(call: strategies.BlockCall) -> None:
    assert_matches(library_block(build_block(call), call), expected_block(call))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("leading", [(), (5,), (5, 3), (2, 3, 5)], ids=str)
@pytest.mark.parametrize(
    ("norm", "identity"), [(True, False), (False, False), (False, True)], ids=str
)
@pytest.mark.parametrize("embed_dim", [7, 10])
def test_unit_matches_reference(
    embed_dim: int, norm: bool, identity: bool, leading: tuple[int, ...], dtype: torch.dtype
) -> None:
    shapes = reference.unit_shapes(embed_dim, norm=norm, identity=identity)
    unit = GatedFusionUnit(embed_dim, norm=norm, identity_init=identity, dtype=dtype)
    unit.load_state_dict(reference.random_params(shapes, 3, dtype))
    generator = torch.Generator(torch.get_default_device()).manual_seed(5)
    inputs = {
        name: torch.randn(*leading, embed_dim, generator=generator).to(dtype)
        for name in ("state", "update")
    }

    def compute(params: Named, inputs: Named) -> Named:
        new_state, gate = reference_gate(params, **inputs, norm=norm, identity=identity)
        return {"new state": new_state, "gate": gate}

    expected = with_gradients(compute, reference.random_params(shapes, 3), double(inputs))
    leaves = {name: value.clone().requires_grad_() for name, value in inputs.items()}
    new_state, gate = unit(**leaves, return_gate=True)
    assert torch.equal(unit(**leaves), new_state)
    outputs = {"new state": new_state, "gate": gate}
    assert_matches(library_gradients(unit, leaves, outputs), expected)


@strategies.examples(40)
@given(strategies.sizes(3), strategies.seeds(), st.sampled_from([2, 9, 12]))
def test_unit_matches_torch_layers(drawn: list[int], seed: int, embed_dim: int) -> None:
    shapes = reference.unit_shapes(embed_dim)
    params = reference.random_params(shapes, seed)
    unit = GatedFusionUnit(embed_dim, dtype=torch.float64)
    unit.load_state_dict(params)
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    inputs = {
        name: torch.randn(*drawn, embed_dim, generator=generator, dtype=torch.float64)
        for name in ("state", "update")
    }

    def compute(params: Named, inputs: Named) -> Named:
        new_state, gate = oracle_torch.oracle_gate(params, **inputs)
        return {"new state": new_state, "gate": gate}

    leaves = {name: value.clone().requires_grad_() for name, value in inputs.items()}
    new_state, gate = unit(**leaves, return_gate=True)
    outputs = {"new state": new_state, "gate": gate}
    expected = with_gradients(compute, params, inputs)
    assert_matches(library_gradients(unit, leaves, outputs), expected)


@pytest.mark.parametrize("dim", [1, 2, 3, 7, 10, 15])
def test_reference_positions_equal_the_usual_table(dim: int) -> None:
    time = 7919
    actual = reference.reference_positions(range(time), dim)
    assert_matches({"positions": actual}, {"positions": oracle_torch.sinusoids(time, dim)})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [1, 2, 9, 10, 15])
def test_positions_are_exact_at_any_length_and_width(dim: int, dtype: torch.dtype) -> None:
    """With a projection of zeros and one real step t, the opening is row t of the encoding."""
    fusion = GatedRecurrentFusion(
        {"text": 3}, embed_dim=dim, num_heads=1, form="residual", opening="first", dtype=dtype
    )
    torch.nn.init.zeros_(fusion.get_parameter("projections.text.weight"))
    torch.nn.init.zeros_(fusion.get_parameter("projections.text.bias"))
    time = 7919
    steps = [0, 1, 2, 97, 1009, 4999, 5003, 7918]
    mask = torch.zeros(len(steps), time, dtype=torch.bool)
    mask[torch.arange(len(steps)), torch.tensor(steps)] = True
    context = fusion({"text": torch.zeros(len(steps), time, 3, dtype=dtype)}, masks={"text": mask})
    expected = reference.reference_positions(steps, dim)
    assert_matches({"positions": context}, {"positions": expected})
    if dtype == torch.float32:
        # Angles of thousands of radians formed in float32 would be off by 1e-4.
        torch.testing.assert_close(context, expected.float(), rtol=0, atol=3e-7)


def literal(call: strategies.FusionCall, seed: int, *, scale: float = 1.0) -> Named:
    """The literal formula with queries, keys and key biases of its own everywhere it can."""
    params = reference.random_params(reference.fusion_shapes(call.config), call.seed)
    extra = reference.literal_weights(
        params, torch.Generator(torch.get_default_device()).manual_seed(seed)
    )
    extra = {name: scale * value for name, value in extra.items()}
    trace = reference_fusion(params, call.config, call.features, **call.call_kwargs(), extra=extra)
    return trace._asdict()


@pytest.mark.parametrize("scale", [0.0, 1.0, 7.0])
@pytest.mark.parametrize("opening", OPENINGS, ids=lambda options: "-".join(options.values()))
def test_left_out_weights_cannot_influence_the_output(
    opening: dict[str, Any], scale: float
) -> None:
    call = fixed_call(torch.float64, **opening)
    outputs = library_fusion(build(call), call)
    actual = {name: outputs[name] for name in ("context", "contexts", "gates", "present")}
    for seed in (2, 3, 5):
        assert_matches(actual, literal(call, seed, scale=scale))


def test_left_out_weights_of_a_pooled_block_cannot_influence_the_output() -> None:
    generator = torch.Generator(torch.get_default_device()).manual_seed(7)
    context, modality = (
        torch.randn(3, time, 15, generator=generator, dtype=torch.float64) for time in (1, 5)
    )
    block = SymmetricCrossAttentionBlock(
        15, num_heads=3, num_layers=2, pooled_context=True, dtype=torch.float64
    )
    params = {name: value.detach() for name, value in block.state_dict().items()}
    new_context, new_modality, weights = block(context, modality, need_weights=True)
    actual = {"context": new_context, "modality": new_modality} | given_weights(weights)
    for seed in (2, 3, 5):
        extra = reference.literal_weights(
            params, torch.Generator(torch.get_default_device()).manual_seed(seed)
        )
        new_context, new_modality, expected_weights = reference_block(
            params, context, modality, num_heads=3, pooled_context=True, extra=extra
        )
        expected = {"context": new_context, "modality": new_modality}
        assert_matches(actual, expected | given_weights(expected_weights))


@pytest.mark.parametrize("pooled_context", [False, True], ids=["sequence", "pooled"])
@pytest.mark.parametrize("options", BLOCK_OPTIONS, ids=lambda options: str(list(options.values())))
def test_no_parameter_of_a_block_is_dead(options: dict[str, Any], pooled_context: bool) -> None:
    """Whatever the options, each parameter has an influence, and each that could is there."""
    block = SymmetricCrossAttentionBlock(
        15, num_heads=3, num_layers=2, pooled_context=pooled_context, **options, dtype=torch.float64
    )
    shapes = reference.block_shapes(15, num_layers=2, pooled_context=pooled_context, **options)
    assert {name: tuple(value.shape) for name, value in block.state_dict().items()} == shapes
    block.load_state_dict(reference.random_params(shapes, 3))
    generator = torch.Generator(torch.get_default_device()).manual_seed(7)
    inputs = (
        torch.randn(2, time, 15, generator=generator, dtype=torch.float64)
        for time in (1 if pooled_context else 3, 5)
    )
    weighted_sum(dict(zip(("context", "modality"), block(*inputs), strict=True))).backward()
    for name, parameter in block.named_parameters():
        assert parameter.grad is not None, f"{name}: no gradient"
        assert parameter.grad.abs().max() > 1e-9, f"{name}: no influence"


def test_left_out_weights_are_four_matrices_a_layer() -> None:
    embed_dim, num_layers = 15, 2
    literal_block, pooled_block = (
        SymmetricCrossAttentionBlock(
            embed_dim, num_heads=3, num_layers=num_layers, pooled_context=pooled
        )
        for pooled in (False, True)
    )
    sizes = [
        sum(p.numel() for p in block.parameters() if p.ndim == 2)
        for block in (literal_block, pooled_block)
    ]
    assert sizes[0] - sizes[1] == 4 * embed_dim**2 * num_layers
    assert sizes[0] == 8 * (sizes[0] - sizes[1])
    names = dict(pooled_block.named_parameters())
    extra = reference.literal_weights(names, torch.Generator(torch.get_default_device()))
    matrices = sorted(name for name, value in extra.items() if value.ndim == 2)
    assert matrices == sorted(
        f"{place}.{projection}.weight"
        for layer in range(num_layers)
        for place in (
            f"context_layers.{layer}.self_attn",
            f"modality_layers.{layer}.cross_attn",
        )
        for projection in ("q_proj", "k_proj")
    )


@pytest.mark.parametrize("name", ["context_layers.0.self_attn", "modality_layers.0.cross_attn"])
def test_kept_queries_do_influence_the_output_of_a_sequence(name: str) -> None:
    call = fixed_call(torch.float64, context="sequence")
    module = build(call)
    expected = expected_fusion(call)
    with torch.no_grad():
        module.get_parameter(f"block.{name}.q_proj.weight").mul_(1.01)
    with pytest.raises(AssertionError, match="context: off by"):
        assert_matches(library_fusion(module, call), expected)


class Golden:
    """One recording: inputs, weights and what the authors' model made of them."""

    def __init__(self, count: int) -> None:
        with np.load(GOLDEN / f"author_grf_{count}.npz", allow_pickle=False) as arrays:
            self.order: tuple[str, ...] = tuple(str(name) for name in arrays["order"])
            self.arrays = {
                name: torch.as_tensor(arrays[name]) for name in arrays.files if name != "order"
            }
        self.weights = self.under("weight/")
        self.features = self.under("input/")
        self.masks = {
            name: mask_from_lengths(length, self.features[name].shape[1])
            for name, length in self.under("length/").items()
        }
        embed_dim, num_heads, num_layers, dim_feedforward = self.arrays["config"].tolist()
        self.config = FusionConfig(
            modalities={name: self.features[name].shape[2] for name in self.order},
            embed_dim=embed_dim,
            num_heads=num_heads,
            num_layers=num_layers,
            dim_feedforward=dim_feedforward,
            context="first_sequence",
            share_weights=False,
        )
        steps = range(1, count)
        self.expected = {
            "contexts": torch.stack([self.arrays[f"context/{k}"] for k in steps], dim=1),
            "gates": torch.stack([self.arrays[f"gate/{k}"] for k in steps], dim=1),
            "prediction": self.arrays["prediction"],
            "auxiliary": self.arrays["auxiliary"],
        }

    def under(self, prefix: str) -> Named:
        return {
            name.removeprefix(prefix): value
            for name, value in self.arrays.items()
            if name.startswith(prefix)
        }

    def params(self) -> Named:
        """The recorded weights under our names, mapped here without the library's help."""
        params = {
            name.replace("projectors.", "projections."): value
            for name, value in self.weights.items()
            if name.startswith("projectors.")
        }
        renamed = {
            "multihead_attn.out_proj": "cross_attn.out_proj",
            "self_attn.out_proj": "self_attn.out_proj",
            "norm1": "self_attn_norm",
            "norm2": "cross_attn_norm",
            "norm3": "feedforward_norm",
            "linear1": "linear1",
            "linear2": "linear2",
        }
        packed = {"self_attn": "self_attn", "multihead_attn": "cross_attn"}
        stacks = {"decoder_1": "context_layers", "decoder_2": "modality_layers"}
        places = itertools.product(
            enumerate(self.order[1:]), stacks.items(), range(self.config.num_layers)
        )
        for (step, name), (decoder, stack), layer in places:
            theirs = f"fusion_encoders.{step}.{decoder}.layers.{layer}"
            ours = f"blocks.{name}.{stack}.{layer}"
            for (their, our), kind in itertools.product(renamed.items(), ("weight", "bias")):
                params[f"{ours}.{our}.{kind}"] = self.weights[f"{theirs}.{their}.{kind}"]
            for (their, our), kind in itertools.product(packed.items(), ("weight", "bias")):
                thirds = self.weights[f"{theirs}.{their}.in_proj_{kind}"].chunk(3)
                for letter, third in zip("qkv", thirds, strict=True):
                    params[f"{ours}.{our}.{letter}_proj.{kind}"] = third
        for (step, name), kind in itertools.product(enumerate(self.order[1:]), ("weight", "bias")):
            params[f"units.{name}.linear.{kind}"] = torch.cat(
                [
                    self.weights[f"gfus.{step}.linear_{part}.{kind}"]
                    for part in ("gate", "candidate")
                ]
            )
            params[f"units.{name}.norm.{kind}"] = self.weights[f"gfus.{step}.norm.{kind}"]
        return params

    def regress(self, head: str, context: Tensor) -> Tensor:
        """A recorded head: Linear, ReLU, dropout, Linear."""
        w = {name: value.to(context.dtype) for name, value in self.weights.items()}
        prefix = f"{head}.regressor"
        hidden = (context @ w[f"{prefix}.0.weight"].T + w[f"{prefix}.0.bias"]).relu()
        return hidden @ w[f"{prefix}.3.weight"].T + w[f"{prefix}.3.bias"]

    def outputs(self, contexts: Tensor, gates: Tensor) -> Named:
        """What is recorded, from contexts (batch, n, dim) and gates (batch, n-1, dim)."""
        return {
            "contexts": contexts[:, 1:],
            "gates": gates,
            "prediction": self.regress("regressor", contexts[:, -1]),
            "auxiliary": self.regress("auxiliary_regressor", contexts[:, 1]),
        }


@pytest.mark.parametrize("count", [2, 3])
def test_reference_reproduces_the_recorded_numbers(count: int) -> None:
    golden = Golden(count)
    trace = reference_fusion(
        double(golden.params()), golden.config, double(golden.features), masks=golden.masks
    )
    outputs = golden.outputs(trace.contexts, trace.gates)
    assert_matches({name: value.float() for name, value in outputs.items()}, golden.expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", [2, 3])
def test_library_reproduces_the_recorded_numbers(count: int, dtype: torch.dtype) -> None:
    golden = Golden(count)
    fusion = load_author_checkpoint(
        golden.weights, order=golden.order, num_heads=golden.config.num_heads
    ).to(dtype)
    features = {name: value.to(dtype) for name, value in golden.features.items()}
    context, trace = fusion(features, masks=golden.masks, return_trace=True)
    assert torch.equal(context, trace.contexts[:, -1])
    outputs = golden.outputs(trace.contexts, trace.gates)
    assert_matches({name: value.float() for name, value in outputs.items()}, golden.expected)


@pytest.mark.parametrize("count", [2, 3])
def test_checkpoint_holds_the_recorded_weights(count: int) -> None:
    golden = Golden(count)
    fusion = load_author_checkpoint(
        golden.weights, order=golden.order, num_heads=golden.config.num_heads
    )
    expected = {
        name: value for name, value in golden.params().items() if not name.endswith("k_proj.bias")
    }
    actual = fusion.state_dict()
    assert actual.keys() == expected.keys() == reference.fusion_shapes(golden.config).keys()
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name


def test_assert_matches_can_fail() -> None:
    right = {"a": torch.tensor([3.0, 5.0], dtype=torch.float64), "b": torch.tensor([True])}
    assert_matches(right, copy.deepcopy(right))
    wrong: dict[str, Named] = {
        "a: off by": right | {"a": right["a"] + torch.tensor([0.0, 1e-9])},
        "b: ": right | {"b": torch.tensor([False])},
        "a: not finite": right | {"a": torch.tensor([math.nan, 5.0])},
        "a: shape": right | {"a": right["a"][None]},
        "keys": right | {"c": right["a"]},
        "'b'": {"a": right["a"]},
    }
    for message, actual in wrong.items():
        with pytest.raises(AssertionError, match=message):
            assert_matches(actual, right)
    with pytest.raises(AssertionError, match="expected value not finite"):
        assert_matches(right, right | {"a": torch.tensor([math.inf, 5.0])})
    with pytest.raises(AssertionError, match="nothing to compare"):
        assert_matches({}, {})
    single = {"a": torch.tensor([3.0])}
    assert_matches({"a": torch.tensor([3.0 + 1e-6])}, single)
    with pytest.raises(AssertionError, match="a: off by"):
        assert_matches({"a": torch.tensor([3.0 + 1e-4])}, single)


@pytest.mark.parametrize("opening", OPENINGS, ids=lambda options: "-".join(options.values()))
def test_every_parameter_is_noticed(opening: dict[str, Any]) -> None:
    """A change of one entry of one parameter makes the comparison fail, whichever it is."""
    call = fixed_call(torch.float64, **opening, num_layers=1, share_weights=False)
    module = build(call)
    expected = expected_fusion(call)
    noticed: list[str] = []
    for name, parameter in module.named_parameters():
        if not expected[f"gradient of {name}"].any():
            continue
        noticed.append(name)
        module.zero_grad()
        before = parameter.detach().clone()
        with torch.no_grad():
            parameter.view(-1)[0] += 1e-4
        with pytest.raises(AssertionError, match="off by"):
            assert_matches(library_fusion(module, call), expected)
        with torch.no_grad():
            parameter.copy_(before)
    module.zero_grad()
    assert_matches(library_fusion(module, call), expected)
    # In "first_sequence" the context of all steps but one is a vector: queries over one key.
    vectors = 6 if call.config.context == "first_sequence" else 0
    assert len(noticed) == len(list(module.parameters())) - vectors


def test_a_wrong_gradient_alone_is_noticed() -> None:
    call = fixed_call(torch.float64)
    module = build(call)
    expected = expected_fusion(call)
    parameter = module.get_parameter("unit.linear.weight")
    parameter.register_hook(lambda gradient: gradient * (1 + 1e-8))
    with pytest.raises(AssertionError, match=r"gradient of unit\.linear\.weight: off by"):
        assert_matches(library_fusion(module, call), expected)


@pytest.mark.parametrize(
    "change",
    [
        {"order": ("text", "image", "audio")},
        {"present": None},
        {"masks": None},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_wrong_option_of_the_call_is_noticed(change: dict[str, Any]) -> None:
    call = fixed_call(torch.float64, symmetric=False)
    clean = {
        name: torch.nan_to_num(value) for name, value in call.features.items() if value is not None
    }
    right = dataclasses.replace(call, features=clean)
    wrong = dataclasses.replace(right, **change)
    with pytest.raises(AssertionError):
        assert_matches(library_fusion(build(right), right), expected_fusion(wrong))


@pytest.mark.parametrize("opening", OPENINGS, ids=lambda options: "-".join(options.values()))
def test_shifted_positions_are_noticed(
    opening: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    call = fixed_call(torch.float64, **opening)
    right = reference.reference_positions
    monkeypatch.setattr(
        reference,
        "reference_positions",
        lambda t_index, dim: right([t + 1 for t in t_index], dim),
    )
    with pytest.raises(AssertionError, match="context: off by"):
        assert_matches(library_fusion(build(call), call), expected_fusion(call))


def test_strategies_reach_every_option() -> None:
    """A strategy that had stopped to draw an option would make the sweeps prove less."""
    seen: set[tuple[str, object]] = set()

    @settings(max_examples=300, database=None, derandomize=True)
    @given(strategies.fusion_calls())
    def collect(call: strategies.FusionCall) -> None:
        config = call.config
        seen.update((name, value) for name, value in vars(config).items() if name in expected)
        seen.add(("count", len(config.modalities)))
        seen.add(("dtype", call.dtype))
        seen.add(("present", call.present is not None))
        first = next(iter(config.modalities))
        seen.add(("head", None if call.order is None else call.order[0] == first))
        for name in config.modalities:
            value = call.features.get(name)
            given = (
                "left out" if name not in call.features else "None" if value is None else "given"
            )
            seen.add(("features", given))
            mask = (call.masks or {}).get(name)
            if mask is None:
                continue
            seen.add(("mask dtype", mask.dtype))
            for row in mask.bool().tolist():
                runs = len(list(itertools.groupby(row)))
                seen.add(("mask", (runs if runs < 3 else "holes", row[0])))

    expected: dict[str, set[object]] = {
        "context": {"pooled", "first_sequence", "sequence"},
        "opening": {"first", "learned"},
        "gate_bias": {0.0, -1.5, "chrono"},
        "num_layers": {1, 2},
        "activation": {"gelu", "relu"},
        "count": {1, 2, 3, 4},
        "dtype": set(DTYPES),
        "head": {None, True, False},
        "features": {"given", "left out", "None"},
        "mask dtype": set(strategies.MASK_DTYPES),
        "mask": {(1, True), (1, False), (2, True), (2, False), ("holes", True), ("holes", False)},
    }
    for option in ("share_weights", "symmetric", "present"):
        expected[option] = {False, True}
    # None in the summary form, which has no block.
    expected["norm_first"] = {False, True, None}
    expected["self_attention"] = {False, True, "linear", None}
    expected["form"] = {"summary", "residual", "paper"}
    expected["packing"], expected["checkpoint"] = {"auto", True, False}, {False, True}
    collect()
    for option, values in expected.items():
        assert {value for name, value in seen if name == option} == values, option
