"""What every module must do, as assertions: one function a property, one line a module.

A `Case` is a module and one call of it as named tensors whose first axis is the batch, so that one
assertion serves all three modules. The properties that only a chain has take a
`GatedRecurrentFusion` and a `FusionCall`. tests/test_properties.py shows that each can fail.
"""

import copy
import dataclasses
import io
import json
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from grf_fusion import (
    AttentionWeights,
    FusionAdapter,
    FusionState,
    GatedFusionUnit,
    GatedRecurrentFusion,
    SymmetricCrossAttentionBlock,
)
from grf_fusion._eager import dropout as _dropout
from grf_fusion._eager import dropped_attention as _dropped_attention
from grf_fusion._eager import layout as _layout
from grf_fusion._layers import attention as _attention
from grf_fusion.baselines import (
    ConcatFusion,
    ContrastiveAlignment,
    CrossModalAttentionFusion,
    MulT,
    WeightedSumFusion,
)
from reference import (
    random_params,
    read_out_summary,
    reference_positions,
    reference_summary,
)
from strategies import AdapterCall, BaselineCall, BlockCall, FusionCall

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
CLASSES: dict[str, Callable[..., nn.Module]] = {
    "concat": ConcatFusion,
    "pooled": ConcatFusion,
    "early": ConcatFusion,
    "weighted sum": WeightedSumFusion,
    "cross-modal": CrossModalAttentionFusion,
    "mult": MulT,
    "alignment": ContrastiveAlignment,
}
# What else a baseline returns on request, and its name among the outputs.
REQUESTS = {"weighted sum": ("return_weights", "weights"), "mult": ("return_fused", "last steps")}
# No modality can be called so: a name holds no dot.
HIDDEN = "hidden.states"
NAN, INF = float("nan"), float("inf")

Named = dict[str, Tensor]
Run = Callable[[Callable[..., Any], Named, Named, Tensor | None], Named]


def compute_in_tiles(patch: pytest.MonkeyPatch, tile: int | None = None) -> None:
    """Compute inputs of any size as large ones are, in tiles of so many entries."""
    for module in (_attention, _dropout, _layout):
        patch.setattr(module, "FEW", 0)
    for module in (_dropout, _dropped_attention):
        patch.setattr(module, "TILE", module.TILE if tile is None else tile)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A module and one call of it.

    Attributes:
        module: In eval mode, with random weights.
        run: Calls a module with values, masks and present; all that it returns by name.
        remake: Builds a module of the same options; takes device and dtype.
        values: The floating-point inputs.
        masks: Real steps by name of the value, ``True`` = real; without a mask all are.
        present: ``(batch, len(columns))``: which sample has which value.
        columns: Names of the values in the columns of ``present``.
    """

    module: nn.Module
    run: Run
    remake: Callable[..., nn.Module]
    values: Named
    masks: Named
    present: Tensor | None = None
    columns: tuple[str, ...] = ()

    def outputs(self, module: Callable[..., Any] | None = None) -> Named:
        """What the module, or another one, makes of the call."""
        chosen = self.module if module is None else module
        return self.run(chosen, self.values, self.masks, self.present)

    def gradients(self) -> Named:
        """Gradients of all parameters and values, for a random direction in the outputs."""
        self.module.zero_grad()
        leaves = {name: value.clone().requires_grad_() for name, value in self.values.items()}
        weighted_sum(dataclasses.replace(self, values=leaves).outputs()).backward()
        gradients: Named = {}
        for name, leaf in [*self.module.named_parameters(), *leaves.items()]:
            assert leaf.grad is not None, f"{name}: no gradient"
            gradients[f"gradient of {name}"] = leaf.grad
        return gradients

    def hidden(self) -> Named:
        """By value, ``True`` where it must not have any influence."""
        hidden = {
            name: torch.zeros(value.shape[:2], dtype=torch.bool)
            for name, value in self.values.items()
        }
        for name, mask in self.masks.items():
            hidden[name] |= ~mask.bool()
        if self.present is not None:
            for name, column in zip(self.columns, self.present.unbind(1), strict=True):
                if name in hidden:
                    hidden[name] |= ~column.unsqueeze(1)
        return hidden

    def filled(self, garbage: Callable[[Tensor], Tensor]) -> "Case":
        """Put ``garbage`` of the hidden entries in their place."""
        values = {name: value.clone() for name, value in self.values.items()}
        for name, hidden in self.hidden().items():
            values[name][hidden] = garbage(values[name][hidden])
        return dataclasses.replace(self, values=values)

    def take(self, samples: Sequence[int]) -> "Case":
        """Choose samples of the batch, in any order."""
        index = torch.tensor(samples)
        return dataclasses.replace(
            self,
            values={name: value[index] for name, value in self.values.items()},
            masks={name: mask[index] for name, mask in self.masks.items()},
            present=None if self.present is None else self.present[index],
        )

    def padded(self, extra: int) -> "Case":
        """Append masked steps of NaN to every value."""
        values = dict(self.values)
        masks = dict(self.masks)
        for name, value in self.values.items():
            batch, time, dim = value.shape
            mask = masks.get(name, torch.ones(batch, time, dtype=torch.bool))
            values[name] = torch.cat([value, value.new_full((batch, extra, dim), NAN)], dim=1)
            masks[name] = torch.cat([mask, mask.new_zeros(batch, extra)], dim=1)
        return dataclasses.replace(self, values=values, masks=masks)


def randomise(module: nn.Module, seed: int) -> None:
    """Give every parameter a random value, none a special one such as 0 or 1."""
    state = module.state_dict()
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    random = random_params(shapes, seed)
    learnt = dict(module.named_parameters())
    module.load_state_dict(
        {
            name: random[name].to(value.dtype) if name in learnt or name.endswith(".rms") else value
            for name, value in state.items()
        }
    )


def build(call: FusionCall, **options: Any) -> GatedRecurrentFusion:
    """The fusion of a call with random weights, in eval mode; ``options`` are added to it."""
    fusion = GatedRecurrentFusion(**call.config.kwargs() | options, dtype=call.dtype)
    randomise(fusion, call.seed)
    return fusion.eval()


def fusion_case(call: FusionCall, fusion: nn.Module | None = None, **options: Any) -> Case:
    """A call of a fusion; outputs are the context and the tensors of its trace."""

    def run(
        module: Callable[..., Any], values: Named, masks: Named, present: Tensor | None
    ) -> Named:
        given: dict[str, Tensor | None] = {**dict.fromkeys(call.masks or {}), **masks}
        context, trace = module(
            {name: values.get(name) for name in call.features},
            masks=given or call.masks,
            present=present,
            order=call.order,
            return_trace=True,
        )
        assert trace.order == (call.order or tuple(call.config.modalities))
        named = {"contexts": trace.contexts, "gates": trace.gates, "present": trace.present}
        return {"context": context} | named

    def remake(**where: Any) -> nn.Module:
        settings = {"dtype": call.dtype} | options | where
        return GatedRecurrentFusion(**call.config.kwargs() | settings)

    masks = call.masks or {}
    return Case(
        module=build(call, **options) if fusion is None else fusion,
        run=run,
        remake=remake,
        values={name: value for name, value in call.features.items() if value is not None},
        masks={name: mask for name, mask in masks.items() if mask is not None},
        present=call.present,
        columns=tuple(call.config.modalities),
    )


def baseline_case(call: BaselineCall, module: nn.Module | None = None, **options: Any) -> Case:
    """A call of a baseline; of the alignment, its loss and its vectors."""
    kind = call.config.kind

    def run(
        module: Callable[..., Any], values: Named, masks: Named, present: Tensor | None
    ) -> Named:
        given: dict[str, Tensor | None] = {**dict.fromkeys(call.masks or {}), **masks}
        arguments: dict[str, Any] = {
            "features": {name: values.get(name) for name in call.features},
            "masks": given or call.masks,
            "present": present,
        }
        if kind == "alignment":
            named = {"loss": module(**arguments)}
            # Finite differences see nothing but `forward`.
            if isinstance(module, ContrastiveAlignment):
                named |= {f"vector {n}": x for n, x in module.embed(**arguments).items()}
            return named
        if kind not in REQUESTS:
            return {"fused": module(**arguments)}
        request, name = REQUESTS[kind]
        fused, more = module(**arguments, **{request: True})
        return {"fused": fused, name: more, "beside": module(**arguments)}

    def remake(**where: Any) -> nn.Module:
        return CLASSES[kind](**call.config.kwargs() | {"dtype": call.dtype} | options | where)

    if module is None:
        module = remake()
        randomise(module, call.seed)
    masks = call.masks or {}
    return Case(
        module=module.eval(),
        run=run,
        remake=remake,
        values={name: value for name, value in call.features.items() if value is not None},
        masks={name: mask for name, mask in masks.items() if mask is not None},
        present=call.present,
        columns=tuple(call.config.modalities),
    )


def case_of(call: FusionCall | BaselineCall, module: nn.Module | None = None) -> Case:
    """A call of whatever fuses."""
    if isinstance(call, BaselineCall):
        return baseline_case(call, module)
    return fusion_case(call, module)


def adapter_case(call: AdapterCall) -> Case:
    """A call of an adapter; padded hidden states, which pass as they are, are taken for 0."""

    def run(
        module: Callable[..., Any], values: Named, masks: Named, present: Tensor | None
    ) -> Named:
        given: dict[str, Tensor | None] = {**dict.fromkeys(call.masks or {}), **masks}
        mask = given.pop(HIDDEN, None)
        hidden = module(
            values[HIDDEN],
            {name: values.get(name) for name in call.features},
            mask=mask,
            masks=given or call.masks,
            present=present,
        )
        if mask is not None:
            hidden = hidden.masked_fill(~mask.bool().unsqueeze(-1), 0.0)
        return {HIDDEN: hidden}

    def remake(**where: Any) -> nn.Module:
        return FusionAdapter(call.modalities, **call.options, **{"dtype": call.dtype} | where)

    module = remake()
    randomise(module, call.seed)
    masks = {HIDDEN: call.mask} | dict(call.masks or {})
    return Case(
        module=module.eval(),
        run=run,
        remake=remake,
        values={HIDDEN: call.hidden}
        | {name: value for name, value in call.features.items() if value is not None},
        masks={name: mask for name, mask in masks.items() if mask is not None},
        present=call.present,
        columns=tuple(call.modalities),
    )


def block_case(call: BlockCall) -> Case:
    """A call of a block, without and with weights: two ways to compute the same."""

    def run(
        module: Callable[..., Any], values: Named, masks: Named, present: Tensor | None
    ) -> Named:
        assert present is None
        keywords = {f"{name}_mask": mask for name, mask in masks.items()}
        context, modality = module(values["context"], values["modality"], **keywords)
        beside, also, weights = module(
            values["context"], values["modality"], **keywords, need_weights=True
        )
        named = {"context": context, "modality": modality}
        return named | {"context beside": beside, "modality beside": also} | by_name(weights)

    def remake(**where: Any) -> nn.Module:
        settings = {"dtype": call.context.dtype, "num_layers": call.num_layers} | where
        return SymmetricCrossAttentionBlock(
            call.embed_dim, dim_feedforward=call.dim_feedforward, **call.options, **settings
        )

    module = remake()
    randomise(module, call.seed)
    masks = {"context": call.context_mask, "modality": call.modality_mask}
    return Case(
        module=module.eval(),
        run=run,
        remake=remake,
        values={"context": call.context, "modality": call.modality},
        masks={name: mask for name, mask in masks.items() if mask is not None},
    )


def unit_case(
    *, leading: Sequence[int], embed_dim: int, dtype: torch.dtype, seed: int, **options: Any
) -> Case:
    """A call of a gated fusion unit over some leading axes."""

    def run(
        module: Callable[..., Any], values: Named, masks: Named, present: Tensor | None
    ) -> Named:
        assert not masks
        assert present is None
        state, gate = module(values["state"], values["update"], return_gate=True)
        return {"state": state, "gate": gate, "beside": module(values["state"], values["update"])}

    def remake(**where: Any) -> nn.Module:
        return GatedFusionUnit(embed_dim, **{"dtype": dtype} | options | where)

    module = remake()
    randomise(module, seed)
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    values = {
        name: torch.randn(*leading, embed_dim, generator=generator, dtype=torch.float64).to(dtype)
        for name in ("state", "update")
    }
    return Case(module=module.eval(), run=run, remake=remake, values=values, masks={})


def by_name(weights: AttentionWeights) -> Named:
    """The attention weights that there are."""
    return {
        f"weights {name}": value for name, value in weights._asdict().items() if value is not None
    }


def weighted_sum(outputs: Mapping[str, Tensor]) -> Tensor:
    """A random direction in the outputs, as a scalar to differentiate."""
    generator = torch.Generator(torch.get_default_device()).manual_seed(3)
    loss = torch.zeros((), dtype=torch.float64)
    for output in outputs.values():
        if output.dtype.is_floating_point:
            weights = torch.randn(output.shape, generator=generator, dtype=torch.float64)
            loss = loss + (weights * output.double()).sum()
    return loss


def bits(tensor: Tensor) -> Tensor:
    """The bit patterns, as integers: NaN equals itself, and -0 is not 0."""
    tensor = tensor.detach().contiguous()
    return tensor.view(INTEGERS[tensor.element_size()])


def assert_same_bits(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Same names, dtypes, shapes and bits."""
    assert actual.keys() == expected.keys()
    assert actual, "nothing to compare"
    for name, got in actual.items():
        want = expected[name]
        assert got.dtype == want.dtype, f"{name}: {got.dtype}, expected {want.dtype}"
        assert got.shape == want.shape, f"{name}: {got.shape}, expected {want.shape}"
        differ = bits(got) != bits(want)
        assert not differ.any(), f"{name}: {int(differ.sum())} of {differ.numel()} entries differ"


def assert_close(
    actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float | None = None
) -> None:
    """Same names and shapes, finite, and equal to rounding; whatever is not floating exactly.

    Errors are relative to the largest entry of the expected tensor, absolute below 1.
    """
    assert actual.keys() == expected.keys()
    assert actual, "nothing to compare"
    for name, got in actual.items():
        want = expected[name].detach()
        assert got.shape == want.shape, f"{name}: {got.shape}, expected {want.shape}"
        if not got.dtype.is_floating_point:
            assert torch.equal(got, want), f"{name}: {got}, expected {want}"
            continue
        assert got.isfinite().all(), f"{name}: not finite"
        assert want.isfinite().all(), f"{name}: expected value not finite"
        if not got.numel():
            continue
        error = (got.detach().double() - want.double()).abs().max().item()
        scale = max(1.0, want.abs().max().item())
        allowed = (TOLERANCE[got.dtype] if tolerance is None else tolerance) * scale
        assert error <= allowed, f"{name}: off by {error}, allowed {allowed}"


@contextmanager
def sums_in_one_order() -> Iterator[None]:
    """Let a gradient be the same bits twice; on a GPU some kernels add in any order unless told."""
    torch.use_deterministic_algorithms(torch.cuda.is_available())
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(mode=False)


def assert_padding_has_no_influence(case: Case, seed: int = 0) -> None:
    """Guarantee 1: whatever is hidden, outputs and gradients are the same bit for bit.

    Gradients are exactly 0 where a value is hidden, and finite everywhere.
    """
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)

    def noise(values: Tensor) -> Tensor:
        return torch.randn(values.shape, generator=generator).to(values.dtype)

    def mixture(values: Tensor) -> Tensor:
        choices = torch.tensor([NAN, INF, -INF, 1e30, -3e-5, 0.0]).to(values.dtype)
        return choices[torch.randint(len(choices), values.shape, generator=generator)]

    clean = case.filled(torch.zeros_like)
    with sums_in_one_order():
        outputs, gradients = clean.outputs(), clean.gradients()
        assert_finite(outputs | gradients)
        for name, hidden in case.hidden().items():
            leaked = gradients[f"gradient of {name}"][hidden]
            assert not leaked.any(), f"{name}: a gradient where it is hidden"
        for garbage in (noise, mixture, lambda values: torch.full_like(values, NAN)):
            dirty = clean.filled(garbage)
            assert_same_bits(dirty.outputs(), outputs)
            assert_same_bits(dirty.gradients(), gradients)


def assert_right_padding_only_rounds(case: Case, extra: int) -> None:
    """Guarantee 1: more padding on the right changes outputs by rounding; new steps are 0."""
    actual = case.padded(extra).outputs()
    expected: Named = {}
    for name, value in case.outputs().items():
        grown = value.new_zeros(actual[name].shape)
        grown[tuple(slice(0, size) for size in value.shape)] = value
        expected[name] = grown
    assert_close(actual, expected)


def assert_samples_are_independent(case: Case, order: Sequence[int]) -> None:
    """Guarantee 3: a sample's outputs are the same alone, and in a batch in any order.

    A number without a batch axis, such as a loss, says something about the whole batch.
    """

    def of_samples(chosen: Case) -> Named:
        return {name: value for name, value in chosen.outputs().items() if value.ndim}

    outputs = of_samples(case)
    for samples in [list(order), *([sample] for sample in order)]:
        expected = {name: value[torch.tensor(samples)] for name, value in outputs.items()}
        assert_close(of_samples(case.take(samples)), expected)


def assert_inputs_are_kept(case: Case) -> None:
    """Guarantee 6: no input is written to, not even with what it holds already."""
    tensors = {f"value of {name}": value.clone() for name, value in case.values.items()}
    tensors |= {f"mask of {name}": mask.clone() for name, mask in case.masks.items()}
    if case.present is not None:
        tensors["present"] = case.present.clone()
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    versions = {name: tensor._version for name, tensor in tensors.items()}
    call = dataclasses.replace(
        case,
        values={name: tensors[f"value of {name}"] for name in case.values},
        masks={name: tensors[f"mask of {name}"] for name in case.masks},
        present=tensors.get("present"),
    )
    for training in (False, True):
        call.module.train(training)
        call.outputs()
    call.module.eval()
    assert_same_bits(tensors, before)
    for name, tensor in tensors.items():
        assert tensor._version == versions[name], f"{name}: written to"


def assert_eval_repeats(case: Case) -> None:
    """Guarantee 6: two eval calls agree bit for bit, also with a training call in between."""
    first = case.outputs()
    assert_same_bits(case.outputs(), first)
    case.module.train()
    case.outputs()
    case.module.eval()
    assert_same_bits(case.outputs(), first)


def assert_finite(named: Mapping[str, Tensor]) -> None:
    """No NaN and no Inf."""
    for name, value in named.items():
        assert value.isfinite().all(), f"{name}: not finite"


def assert_every_parameter_learns(case: Case) -> None:
    """Guarantee 9: no parameter's gradient is all 0."""
    gradients = case.gradients()
    assert_finite(gradients)
    for name, _ in case.module.named_parameters():
        assert gradients[f"gradient of {name}"].any(), f"{name}: gradient all 0"


def assert_rests(case: Case, resting: Sequence[str]) -> None:
    """Guarantee 9: the parameters that start with one of the prefixes get 0, not ``None``."""
    gradients = case.gradients()
    assert_finite(gradients)
    names = [name for name, _ in case.module.named_parameters()]
    for prefix in resting:
        chosen = [name for name in names if name.startswith(prefix)]
        assert chosen, f"{prefix}: no such parameter"
        for name in chosen:
            assert not gradients[f"gradient of {name}"].any(), f"{name}: gradient not 0"


def assert_between(value: Tensor, one: Tensor, other: Tensor) -> None:
    """Guarantee 10: no entry leaves the interval between the two, not even by rounding."""
    outside = (value < torch.minimum(one, other)) | (value > torch.maximum(one, other))
    assert not outside.any(), f"{int(outside.sum())} of {outside.numel()} entries are outside"


def assert_weights_are_shares(weights: Tensor, queries: Tensor, keys: Tensor) -> None:
    """Guarantee 12: weights of real queries over real keys sum to 1, all others are exactly 0.

    Args:
        weights: ``(batch, layers, heads, queries, keys)``.
        queries: ``(batch, queries)`` bool: real queries.
        keys: ``(batch, keys)`` bool: real keys.
    """
    assert weights.isfinite().all(), "not finite"
    assert (weights >= 0).all(), "a negative weight"
    pairs = (queries.unsqueeze(2) & keys.unsqueeze(1))[:, None, None].expand_as(weights)
    assert not weights[~pairs].any(), "a weight on padding"
    sums = weights.sum(dim=-1)
    shared = pairs.any(dim=-1).to(weights.dtype)
    assert torch.allclose(sums, shared, rtol=0, atol=TOLERANCE[weights.dtype]), (
        "sum neither 1 nor 0"
    )


def assert_gradcheck(case: Case, *, fast: bool) -> None:
    """Guarantee 13: derivatives in all parameters and values equal finite differences."""
    case = case.filled(torch.zeros_like)
    parameters = dict(case.module.named_parameters())
    leaves = [*parameters.values(), *case.values.values()]
    sizes, shapes = [leaf.numel() for leaf in leaves], [leaf.shape for leaf in leaves]

    # One vector in and one out: what finite differences cost is the number of tensors.
    def outputs(flat: Tensor) -> Tensor:
        parts = [part.view(s) for part, s in zip(flat.split(sizes), shapes, strict=True)]
        weights = dict(zip(parameters, parts, strict=False))
        values = dict(zip(case.values, parts[len(weights) :], strict=True))

        def module(*args: Any, **kwargs: Any) -> Any:
            return functional_call(case.module, weights, args, kwargs)

        named = dataclasses.replace(case, values=values).outputs(module)
        floating = [value for value in named.values() if value.dtype.is_floating_point]
        return torch.cat([value.flatten() for value in floating])

    flat = torch.cat([leaf.detach().flatten() for leaf in leaves])
    assert flat.dtype == torch.float64, f"{flat.dtype} is too coarse"
    assert torch.autograd.gradcheck(outputs, flat.requires_grad_(), fast_mode=fast)


def assert_autocast_is_close(case: Case, tolerance: float) -> None:
    """Guarantee 13: under autocast to bfloat16, outputs are near and gradients stay float32."""
    expected = case.outputs()
    with torch.autocast(torch.get_default_device().type, dtype=torch.bfloat16):
        actual = case.outputs()
        gradients = case.gradients()
    assert_close(actual, expected, tolerance)
    assert_finite(gradients)
    for name, gradient in gradients.items():
        assert gradient.dtype == torch.float32, f"{name}: {gradient.dtype}"


def assert_copies_agree(case: Case) -> None:
    """Guarantee 13: deepcopy, pickle, a saved state_dict and a start on meta give the same."""
    expected = case.outputs()
    file = io.BytesIO()
    torch.save(case.module.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    fresh, meta = case.remake(), case.remake(device="meta")
    assert all(value.is_meta for value in tensors_of(meta).values()), "not all on meta"
    meta.to_empty(device=torch.get_default_device())
    for module in (fresh, meta):
        module.load_state_dict(state)
        module.eval()
    pickled = pickle.loads(pickle.dumps(case.module))  # noqa: S301 - made in this line
    for module in (copy.deepcopy(case.module), pickled, fresh, meta):
        assert repr(module) == repr(case.module)
        assert_same_bits(case.outputs(module), expected)
        assert_same_bits(module.state_dict(), state)


def assert_everything_moves(case: Case, dtype: torch.dtype) -> None:
    """Guarantee 13: ``.to()`` takes along all that is learnt, and all of it is saved."""
    module = copy.deepcopy(case.module)
    unsaved = tensors_of(module).keys() - module.state_dict().keys()
    assert not unsaved, f"not in state_dict: {sorted(unsaved)}"
    assert all(value.is_meta for value in tensors_of(copy.deepcopy(module).to("meta")).values())
    module = module.to(dtype)
    for name, value in tensors_of(module).items():
        assert value.dtype == dtype, f"{name}: {value.dtype}"
    values = {name: value.to(dtype) for name, value in case.values.items()}
    outputs = dataclasses.replace(case, values=values).outputs(module)
    assert_finite(outputs)
    for name, value in outputs.items():
        assert value.dtype in (dtype, torch.bool), f"{name}: {value.dtype}"


def tensors_of(module: nn.Module) -> Named:
    """Every tensor that a module and its parts hold as an attribute, in a list or a dict too."""
    found: Named = {}

    def collect(name: str, value: object) -> None:
        if isinstance(value, Tensor):
            found[name.lstrip(".")] = value
        elif isinstance(value, list | tuple):
            for index, item in enumerate(value):
                collect(f"{name}.{index}", item)
        elif isinstance(value, dict):
            for key, item in value.items():
                collect(f"{name}.{key}", item)

    for prefix, part in module.named_modules():
        for name, value in vars(part).items():
            collect(prefix if name in {"_parameters", "_buffers"} else f"{prefix}.{name}", value)
    return found


def fold(fusion: GatedRecurrentFusion, call: FusionCall) -> tuple[list[FusionState], list[Tensor]]:
    """The states and gates of `step` over the order."""
    names = list(call.config.modalities)
    batch = next(value.shape[0] for value in call.features.values() if value is not None)
    masks = call.masks or {}
    states: list[FusionState] = []
    gates: list[Tensor] = []
    for name in call.order or names:
        features, mask = call.features.get(name), masks.get(name)
        if features is None and not states:
            # Somebody has to open the chain and to tell how many samples there are.
            features = torch.full((batch, 1, call.config.modalities[name]), NAN, dtype=call.dtype)
            mask = torch.zeros(batch, 1, dtype=torch.bool)
        state, gate = fusion.step(
            states[-1] if states else None,
            name,
            features,
            mask=mask,
            present=None if call.present is None else call.present[:, names.index(name)],
            return_gate=True,
        )
        states.append(state)
        gates.append(gate)
    return states, gates


def really_present(call: FusionCall | BaselineCall) -> Tensor:
    """Which sample has which modality, in the order of fusion, entry by entry."""
    names = list(call.config.modalities)
    batch = next(value.shape[0] for value in call.features.values() if value is not None)
    rows: list[list[bool]] = []
    for sample in range(batch):
        row: list[bool] = []
        for name in call.order or names:
            mask = (call.masks or {}).get(name)
            here = call.features.get(name) is not None
            here &= mask is None or any(mask[sample].tolist())
            here &= call.present is None or bool(call.present[sample, names.index(name)])
            row.append(here)
        rows.append(row)
    return torch.tensor(rows)


def assert_forward_is_the_fold(fusion: GatedRecurrentFusion, call: FusionCall) -> None:
    """Guarantee 4: ``forward`` equals `step` after `step`, bit for bit, gates included."""
    actual = fusion_case(call, fusion).outputs()
    states, gates = fold(fusion, call)
    skipped = 0 if call.config.opening == "learned" else 1
    assert not any(gate.any() for gate in gates[:skipped]), "a gate at the opening"
    positions = [
        list(call.config.modalities).index(n) for n in call.order or call.config.modalities
    ]
    expected = {
        "context": fusion.readout(states[-1]),
        "gates": torch.stack(gates, dim=1)[:, skipped:],
        "present": states[-1].present[:, positions],
    }
    if call.config.context != "sequence":
        readouts = [fusion.readout(state) for state in states]
        expected["contexts"] = torch.stack(readouts, dim=1)
    assert_same_bits({name: actual[name] for name in expected}, expected)


def assert_absent_leave_the_state(fusion: GatedRecurrentFusion, call: FusionCall) -> None:
    """Guarantee 2: at a sample that lacks the modality the state is untouched bit for bit.

    In "first_sequence" the step after the opening pools every sample's context.
    """
    states, gates = fold(fusion, call)
    present = really_present(call)
    for place in range(1, len(states)):
        before, after = states[place - 1], states[place]
        if call.config.context == "first_sequence" and before.context.ndim == 3:
            is_open = before.mask.any(dim=1, keepdim=True)
            before = FusionState(fusion.readout(before), is_open, before.present)
        gone = ~present[:, place]
        expected = {name: value[gone] for name, value in before._asdict().items()}
        assert_same_bits({name: value[gone] for name, value in after._asdict().items()}, expected)
        assert not gates[place][gone].any(), "a gate where nothing came"


def assert_ways_of_absence_agree(
    fusion: nn.Module, call: FusionCall | BaselineCall, name: str, gone: Tensor
) -> None:
    """Guarantee 2: cleared in ``present``, masked, left out or ``None``: the same result.

    Bit for bit in a chain; where all modalities lie in one softmax, to rounding.
    """
    assert_same = assert_same_bits if isinstance(call, FusionCall) else assert_close
    features = call.features[name]
    assert features is not None
    batch, time, _ = features.shape
    here = torch.ones(batch, len(call.config.modalities), dtype=torch.bool)
    here = here if call.present is None else call.present.clone()
    here[gone, list(call.config.modalities).index(name)] = False
    mask = (call.masks or {}).get(name)
    explicit = torch.ones(batch, time, dtype=torch.bool) if mask is None else mask
    emptied = explicit.clone()
    emptied[gone] = 0
    masks = dict(call.masks or {})

    def outputs(**changes: Any) -> Named:
        return case_of(dataclasses.replace(call, **changes), fusion).outputs()

    denied = outputs(present=here)
    expected = outputs(present=here, masks=masks | {name: explicit})
    assert_same(outputs(masks=masks | {name: emptied}), expected)
    assert_same(outputs(present=here, masks=masks | {name: emptied}), expected)
    # A mask that is all True may take another kernel than no mask.
    assert_close(denied, expected)
    others = {other: x for other, x in call.features.items() if other != name}
    if not gone.all() or all(x is None for x in others.values()):
        return
    masks.pop(name, None)
    for given in (others, others | {name: None}):
        without = outputs(features=given, masks=masks)
        if (
            call.config.context == "sequence"
            and (call.order or [*call.config.modalities])[0] == name
        ):
            # The head's time axis is that of the result; without it there is one step.
            assert not denied["context"][:, 1:].any()
            assert_close(without, denied | {"context": denied["context"][:, :1]})
        else:
            assert_same(without, denied)


def assert_mapping_order_is_irrelevant(
    fusion: nn.Module, call: FusionCall | BaselineCall, names: Sequence[str]
) -> None:
    """Guarantee 5: features and masks in another order of their keys, bit for bit the same."""

    def reordered(mapping: Mapping[str, Tensor | None]) -> dict[str, Tensor | None]:
        return {name: mapping[name] for name in names if name in mapping}

    masks = None if call.masks is None else reordered(call.masks)
    shuffled = dataclasses.replace(call, features=reordered(call.features), masks=masks)
    assert_same_bits(case_of(shuffled, fusion).outputs(), case_of(call, fusion).outputs())


def assert_addition_changes_nothing(
    fusion: GatedRecurrentFusion, call: FusionCall, name: str, dim: int
) -> None:
    """Guarantee 7: a further modality leaves parameters and outputs without it as they were."""
    expected = fusion_case(call, fusion).outputs()
    old = {key: value.clone() for key, value in fusion.state_dict().items()}
    parameters = dict(fusion.named_parameters())
    fusion.add_modality(name, dim)
    now = dict(fusion.named_parameters())
    assert_same_bits({key: value for key, value in fusion.state_dict().items() if key in old}, old)
    assert all(now[key] is parameter for key, parameter in parameters.items()), (
        "not the same object"
    )
    prefixes = [f"projections.{name}."]
    summary = call.config.form == "summary"
    if summary:
        prefixes += [f"summaries.{name}."]
    if not call.config.share_weights:
        prefixes += [f"units.{name}.", *([] if summary else [f"blocks.{name}."])]
    for key in now.keys() - parameters.keys():
        assert key.startswith(tuple(prefixes)), f"{key}: new"
    assert all(any(key.startswith(prefix) for key in now) for prefix in prefixes)

    config = dataclasses.replace(call.config, modalities=dict(call.config.modalities) | {name: dim})
    order = None if call.order is None else (*call.order, name)
    here = None
    batch = next(value.shape[0] for value in call.features.values() if value is not None)
    if call.present is not None:
        here = torch.cat([call.present, torch.ones(batch, 1, dtype=torch.bool)], dim=1)
    longer = dataclasses.replace(call, config=config, order=order, present=here)
    denied = torch.cat(
        [
            torch.ones_like(really_present(call)) if here is None else here[:, :-1],
            torch.zeros(batch, 1, dtype=torch.bool),
        ],
        dim=1,
    )
    garbage = torch.full((batch, 2, dim), NAN, dtype=call.dtype)
    for changed in (
        longer,
        dataclasses.replace(longer, features=dict(call.features) | {name: None}),
        dataclasses.replace(longer, features=dict(call.features) | {name: garbage}, present=denied),
    ):
        outputs = fusion_case(changed, fusion).outputs()
        assert_same_bits({"context": outputs["context"]}, {"context": expected["context"]})
        for column in ("contexts", "gates", "present"):
            kept = expected[column].shape[1]
            assert_same_bits({column: outputs[column][:, :kept]}, {column: expected[column]})
        assert not outputs["gates"][:, expected["gates"].shape[1] :].any()
        assert not outputs["present"][:, -1].any()


def assert_trace_tells_the_way(fusion: GatedRecurrentFusion, call: FusionCall) -> None:
    """The trace: who was present, when a sample opened and with what, and what was let in."""
    outputs = fusion_case(call, fusion).outputs()
    contexts, gates = outputs["contexts"], outputs["gates"]
    present = really_present(call)
    batch, count = present.shape
    learned = call.config.opening == "learned"
    assert torch.equal(outputs["present"], present)
    assert contexts.shape == (batch, count, call.config.embed_dim)
    assert gates.shape == (batch, count if learned else count - 1, call.config.embed_dim)
    assert ((gates >= 0) & (gates <= 1)).all(), "a gate outside [0, 1]"
    last = outputs["context"]
    if call.config.context == "sequence":
        states, _ = fold(fusion, call)
        real = states[-1].mask
        assert not last[~real].any(), "an output at a padded step"
        pooled = last.sum(dim=1) / real.sum(dim=1, keepdim=True).clamp(min=1)
        assert_close({"last": contexts[:, -1]}, {"last": pooled})
    else:
        assert_same_bits({"last": contexts[:, -1]}, {"last": last})
    if fusion.initial_context is None:
        start = torch.zeros(call.config.embed_dim, dtype=call.dtype)
        gates = torch.cat(
            [torch.zeros(batch, 1, call.config.embed_dim, dtype=call.dtype), gates], 1
        )
    else:
        start = fusion.initial_context.detach()
        if call.config.form == "summary":
            start = fusion.norm(start.expand(batch, -1))[0]
    openers = opening_contexts(fusion, call)
    for sample in range(batch):
        is_open = learned
        for place in range(count):
            here = bool(present[sample, place])
            gate, context = gates[sample, place], contexts[sample, place]
            assert bool(gate.any()) == (here and is_open), "a gate where none was applied"
            if not here:
                before = contexts[sample, place - 1] if place else start
                assert_same_bits({"absent": context}, {"absent": before})
            elif not is_open:
                assert_close({"opener": context}, {"opener": openers[place][sample]})
            is_open |= here


def opening_contexts(fusion: GatedRecurrentFusion, call: FusionCall) -> list[Tensor]:
    """What each sample would open with at each place: pooled projection or summary, by loops."""
    openers: list[Tensor] = []
    for place, name in enumerate(call.order or call.config.modalities):
        features, mask = call.features.get(name), (call.masks or {}).get(name)
        if features is None:
            openers.append(torch.empty(0))
            continue
        projection = fusion.projections[name]
        rows: list[Tensor] = []
        for sample, steps in enumerate(features):
            real = [t for t in range(len(steps)) if mask is None or mask[sample, t]]
            if not real:
                rows.append(torch.zeros(call.config.embed_dim, dtype=call.dtype))
                continue
            if call.config.form == "summary":
                params = fusion.state_dict()
                summary = reference_summary(params, call.config, name, steps[real], real)
                rows.append(read_out_summary(params, summary))
                continue
            encoded = projection(steps[real])
            # A sequence that is kept as such is read without positions.
            if not (call.config.context == "sequence" and place == 0):
                encoded = encoded + reference_positions(real, call.config.embed_dim).to(call.dtype)
            rows.append(encoded.sum(dim=0) / len(real))
        openers.append(torch.stack(rows))
    return openers


def assert_config_rebuilds(fusion: GatedRecurrentFusion) -> None:
    """``config()`` survives JSON, and what it builds has the same options and state_dict.

    With sorted keys too, in which many write their files.
    """
    rebuilt = GatedRecurrentFusion(**json.loads(json.dumps(fusion.config(), sort_keys=True)))
    assert rebuilt.config() == fusion.config()
    assert list(rebuilt.modalities) == list(fusion.modalities)
    # The parts' own repr may differ: an older part keeps the gate bias that it started with.
    assert rebuilt.extra_repr() == fusion.extra_repr()
    assert list(rebuilt.modalities) == list(fusion.modalities)
    rebuilt.to(next(fusion.parameters()).dtype).load_state_dict(fusion.state_dict())
