"""Each assertion of tests/properties.py fails where its property does not hold.

A toy module has one fault at a time, a fusion one method that is wrong.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.gradcheck import GradcheckError

import properties
import strategies
from grf_fusion import FusionState, GatedRecurrentFusion
from properties import Case, Named

BATCH, TIME, DIM = 5, 3, 7


class Toy(nn.Module):
    """The masked mean of a linear map, with at most one fault."""

    def __init__(
        self,
        fault: str = "",
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.fault = fault
        self.linear = nn.Linear(DIM, DIM, device=device, dtype=dtype)
        self.calls = 0
        self.number = torch.rand(()).item()
        if fault == "has a parameter that is not used":
            self.dead = nn.Parameter(torch.ones(DIM, device=device, dtype=dtype))
        if fault == "has a parameter that gets 0":
            self.zeroed = nn.Parameter(torch.ones(DIM, device=device, dtype=dtype))
        self.scales = [torch.rand(1) if fault == "keeps a tensor in a list" else 1.0]
        unsaved = torch.rand(DIM, dtype=dtype) if fault == "keeps a buffer unsaved" else None
        self.register_buffer("scale", unsaved, persistent=False)
        if fault == "makes its tensors on the cpu":
            self.offset = nn.Parameter(torch.ones(DIM, dtype=dtype))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        gap = ~mask.unsqueeze(-1)
        if self.fault == "writes to its input":
            x.masked_fill_(gap, 0.0)
        if self.fault == "reads padding":
            return self.linear(x).nan_to_num().clamp(-9, 9).mean(dim=1)
        if self.fault == "fills after projecting":
            values = self.linear(x).masked_fill(gap, 0.0)
        else:
            values = self.linear(x.masked_fill(gap, 0.0)).masked_fill(gap, 0.0)
        count = mask.sum(dim=1, keepdim=True).clamp(min=1)
        if self.fault == "divides by the number of real steps":
            count = mask.sum(dim=1, keepdim=True)
        if self.fault == "divides by the number of steps":
            count = torch.full_like(count, mask.shape[1])
        return self.spoil(values.sum(dim=1) / count)

    def spoil(self, mean: Tensor) -> Tensor:
        self.calls += 1
        mean = mean * self.kept().get(self.fault, 1)
        match self.fault:
            case "mixes samples":
                mean = mean - mean.mean(dim=0)
            case "makes a layer in forward":
                mean = mean + nn.Linear(DIM, DIM).to(mean.dtype)(mean)
            case "counts training calls":
                mean = mean + (self.calls if self.training else self.calls // 3)
            case "has a parameter that gets 0":
                mean = mean + 0 * self.zeroed
            case "makes its tensors on the cpu":
                mean = mean + self.offset
            case "detaches a factor":
                mean = mean.detach() * mean
            case "is coarse under autocast" if torch.is_autocast_enabled(
                torch.get_default_device().type
            ):
                mean = mean * 1.5
        return mean

    def kept(self) -> dict[str, Any]:
        return {
            "keeps a number unsaved": self.number,
            "keeps a tensor in a list": self.scales[0],
            "keeps a buffer unsaved": self.scale,
        }


def toy_case(fault: str = "", *, dtype: torch.dtype = torch.float64) -> Case:
    def run(
        module: Callable[..., Any], values: Named, masks: Named, present: Tensor | None
    ) -> Named:
        assert present is None
        whole = torch.ones(values["x"].shape[:2], dtype=torch.bool)
        return {"mean": module(values["x"], masks.get("x", whole))}

    def remake(**where: Any) -> nn.Module:
        return Toy(fault, **{"dtype": dtype} | where)

    torch.manual_seed(0)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 0, 1], [1, 0, 1], [0, 0, 0]]).bool()
    return Case(
        module=remake().eval(),
        run=run,
        remake=remake,
        values={"x": torch.randn(BATCH, TIME, DIM, dtype=dtype)},
        masks={"x": mask},
    )


def assert_finite(case: Case) -> None:
    properties.assert_finite(case.outputs() | case.gradients())


def assert_samples_are_independent(case: Case) -> None:
    properties.assert_samples_are_independent(case, [3, 0, 4, 2, 1])


def assert_right_padding_only_rounds(case: Case) -> None:
    properties.assert_right_padding_only_rounds(case, 2)


def assert_gradcheck(case: Case) -> None:
    properties.assert_gradcheck(case, fast=True)


def assert_gradcheck_of_every_entry(case: Case) -> None:
    properties.assert_gradcheck(case, fast=False)


def assert_float32_moves(case: Case) -> None:
    properties.assert_everything_moves(case, torch.float32)


def assert_autocast_is_close(case: Case) -> None:
    values = {name: value.float() for name, value in case.values.items()}
    case = dataclasses.replace(case, module=case.module.float(), values=values)
    properties.assert_autocast_is_close(case, 0.02)


FAILURES: list[tuple[Callable[[Case], None], str, str]] = [
    (properties.assert_padding_has_no_influence, "reads padding", "a gradient where it is hidden"),
    (properties.assert_padding_has_no_influence, "fills after projecting", "entries differ"),
    (
        properties.assert_padding_has_no_influence,
        "has a parameter that is not used",
        "dead: no gradient",
    ),
    (assert_right_padding_only_rounds, "divides by the number of steps", "mean: off by"),
    (assert_samples_are_independent, "mixes samples", "mean: off by"),
    (properties.assert_inputs_are_kept, "writes to its input", "value of x: "),
    (properties.assert_eval_repeats, "makes a layer in forward", "mean: 3"),
    (properties.assert_eval_repeats, "counts training calls", "entries differ"),
    (assert_finite, "divides by the number of real steps", "mean: not finite"),
    (properties.assert_every_parameter_learns, "has a parameter that gets 0", "zeroed: gradient"),
    (assert_gradcheck, "detaches a factor", "Jacobian|gradcheck"),
    (assert_gradcheck_of_every_entry, "detaches a factor", "Jacobian"),
    (assert_autocast_is_close, "is coarse under autocast", "mean: off by"),
    (properties.assert_copies_agree, "keeps a number unsaved", "entries differ"),
    (properties.assert_copies_agree, "keeps a tensor in a list", "not all on meta"),
    (properties.assert_copies_agree, "makes its tensors on the cpu", "not all on meta"),
    (assert_float32_moves, "keeps a tensor in a list", r"not in state_dict: \['scales.0'\]"),
    (assert_float32_moves, "keeps a buffer unsaved", r"not in state_dict: \['scale'\]"),
]


@pytest.mark.parametrize(("check", "fault", "message"), FAILURES)
def test_fault_is_noticed(check: Callable[[Case], None], fault: str, message: str) -> None:
    with pytest.raises((AssertionError, GradcheckError), match=message):
        check(toy_case(fault))


@pytest.mark.parametrize("check", dict.fromkeys(check for check, _, _ in FAILURES))
def test_module_without_a_fault_passes(check: Callable[[Case], None]) -> None:
    check(toy_case())


def test_assert_rests_can_fail() -> None:
    resting = toy_case("has a parameter that gets 0")
    properties.assert_rests(resting, ["zeroed"])
    with pytest.raises(AssertionError, match=r"linear\.weight: gradient not 0"):
        properties.assert_rests(resting, ["zeroed", "linear"])
    with pytest.raises(AssertionError, match="nothing: no such parameter"):
        properties.assert_rests(resting, ["nothing"])
    with pytest.raises(AssertionError, match="dead: no gradient"):
        properties.assert_rests(toy_case("has a parameter that is not used"), ["dead"])


def test_assert_same_bits_can_fail() -> None:
    right = {"a": torch.tensor([0.0, float("nan")])}
    properties.assert_same_bits(right, {"a": right["a"].clone()})
    wrong = {
        "1 of 2 entries": torch.tensor([-0.0, float("nan")]),
        "2 of 2 entries": torch.tensor([1e-45, 0.0]),
        "float64": right["a"].double(),
        r"torch.Size\(\[1\]\)": right["a"][:1],
    }
    for message, value in wrong.items():
        with pytest.raises(AssertionError, match=message):
            properties.assert_same_bits({"a": value}, right)
    for named in ({}, right | {"b": right["a"]}):
        with pytest.raises(AssertionError):
            properties.assert_same_bits(named, right)
    with pytest.raises(AssertionError, match="nothing to compare"):
        properties.assert_same_bits({}, {})


def test_assert_close_can_fail() -> None:
    right = {"a": torch.tensor([3.0, 5.0]), "b": torch.tensor([True])}
    properties.assert_close(right | {"a": right["a"] + 1e-6}, right)
    wrong = {
        "a: off by": right | {"a": right["a"] + 1e-4},
        "a: not finite": right | {"a": right["a"] * float("inf")},
        "b: ": right | {"b": torch.tensor([False])},
        "a: torch.Size": right | {"a": right["a"][None]},
    }
    for message, named in wrong.items():
        with pytest.raises(AssertionError, match=message):
            properties.assert_close(named, right)
    with pytest.raises(AssertionError):
        properties.assert_close({"a": right["a"]}, right)
    with pytest.raises(AssertionError, match="expected value not finite"):
        properties.assert_close(right, right | {"a": right["a"] * float("nan")})
    with pytest.raises(AssertionError, match="nothing to compare"):
        properties.assert_close({}, {})
    with pytest.raises(AssertionError, match="off by"):
        properties.assert_close({"a": torch.tensor([1.1])}, {"a": torch.tensor([1.0])}, 0.05)


def test_assert_between_can_fail() -> None:
    low, high = torch.tensor([1.0, 2.0]), torch.tensor([2.0, 1.0])
    properties.assert_between(torch.tensor([1.0, 1.5]), low, high)
    with pytest.raises(AssertionError, match="1 of 2 entries are outside"):
        properties.assert_between(torch.tensor([1.0, 2.0 + 1e-6]), low, high)


def test_assert_weights_are_shares_can_fail() -> None:
    queries, keys = torch.tensor([[True, False]]), torch.tensor([[True, True, False]])
    right = torch.tensor([[0.25, 0.75, 0.0], [0.0, 0.0, 0.0]])[None, None, None]
    properties.assert_weights_are_shares(right, queries, keys)
    nothing = torch.zeros(1, 3, dtype=torch.bool)
    properties.assert_weights_are_shares(torch.zeros_like(right), queries, nothing)
    rows = {
        "not finite": [0.25, float("nan"), 0.0],
        "negative": [-0.25, 1.25, 0.0],
        "on padding": [0.25, 0.5, 0.25],
        "sum": [0.25, 0.5, 0.0],
    }
    for message, row in rows.items():
        wrong = right.clone()
        wrong[0, 0, 0, 0] = torch.tensor(row)
        with pytest.raises(AssertionError, match=message):
            properties.assert_weights_are_shares(wrong, queries, keys)
    with pytest.raises(AssertionError, match="on padding"):
        properties.assert_weights_are_shares(right, queries, nothing)


class Faulty(GatedRecurrentFusion):
    """A fusion with one method that is wrong."""

    fault = ""

    def forward(self, features: Any, *, masks: Any = None, **options: Any) -> Any:
        context, trace = super().forward(features, masks=masks, **options)
        match self.fault:
            case "forward rounds in another way":
                context = context * (1 + 2**-50)
            case "forward counts what is given":
                context = context + len(features)
            case "forward counts the masks":
                context = context + (len(masks) if masks else 0)
            case "forward looks at the first key":
                context = context + len(next(iter(features)))
            case "trace lets an absent modality in":
                trace = trace._replace(gates=trace.gates.clamp(min=0.1))
            case "trace claims that all are present":
                trace = trace._replace(present=torch.ones_like(trace.present))
            case "trace is late":
                trace = trace._replace(contexts=trace.contexts.roll(1, dims=1))
            case "trace has a wrong opener":
                first = trace.contexts[:, :1] * 1.01
                trace = trace._replace(contexts=torch.cat([first, trace.contexts[:, 1:]], 1))
        return context, trace

    def step(self, *args: Any, **options: Any) -> Any:
        state, gate = super().step(*args, **options)
        if self.fault == "step scales every sample":
            state = FusionState(state.context * 1.01, state.mask, state.present)
        if self.fault == "step has a gate for every sample":
            gate = gate + 0.1
        return state, gate

    def add_modality(self, name: str, dim: int) -> None:
        super().add_modality(name, dim)
        match self.fault:
            case "addition draws the unit anew":
                self.unit.reset_parameters()
            case "addition replaces a parameter":
                weight = self.unit.linear.weight
                self.unit.linear.weight = nn.Parameter(weight.detach().clone())
            case "addition brings a parameter more":
                self.more = nn.Parameter(torch.zeros(1))

    def config(self) -> dict[str, Any]:
        config = super().config()
        if self.fault == "config forgets an option":
            config.pop("norm_first")
        return config


def fusion_call(**options: Any) -> strategies.FusionCall:
    """Two samples of three lack a modality each, and a mask or two."""
    generator = torch.Generator(torch.get_default_device()).manual_seed(7)
    widths, times = {"text": 13, "image": 11, "audio": 17}, (5, 2, 7)
    return strategies.FusionCall(
        config=strategies.FusionConfig(
            modalities=widths, embed_dim=9, num_heads=3, norm_first=True, **options
        ),
        features={
            name: torch.randn(3, time, width, generator=generator, dtype=torch.float64)
            for (name, width), time in zip(widths.items(), times, strict=True)
        },
        masks={"text": torch.tensor([[1, 1, 1, 1, 0]]).expand(3, -1)},
        present=torch.tensor([[True, True, True], [True, False, True], [False, True, True]]),
        order=None,
        dtype=torch.float64,
        seed=3,
    )


def faulty(fault: str) -> Faulty:
    fusion = Faulty(**fusion_call().config.kwargs(), dtype=torch.float64)
    properties.randomise(fusion, 3)
    fusion.fault = fault
    return fusion.eval()


def ways_of_absence(fusion: GatedRecurrentFusion) -> None:
    for gone in ([True, True, True], [True, False, True]):
        properties.assert_ways_of_absence_agree(fusion, fusion_call(), "image", torch.tensor(gone))


def fold(fusion: GatedRecurrentFusion) -> None:
    properties.assert_forward_is_the_fold(fusion, fusion_call())


def absence(fusion: GatedRecurrentFusion) -> None:
    properties.assert_absent_leave_the_state(fusion, fusion_call())


def mapping_order(fusion: GatedRecurrentFusion) -> None:
    call = fusion_call()
    properties.assert_mapping_order_is_irrelevant(fusion, call, ["image", "audio", "text"])


def addition(fusion: GatedRecurrentFusion) -> None:
    properties.assert_addition_changes_nothing(fusion, fusion_call(), "depth", 19)


def trace(fusion: GatedRecurrentFusion) -> None:
    properties.assert_trace_tells_the_way(fusion, fusion_call())


FUSION_FAILURES: list[tuple[Callable[[GatedRecurrentFusion], None], str, str | None]] = [
    (fold, "forward rounds in another way", "context: .* entries differ"),
    (fold, "step has a gate for every sample", "a gate at the opening"),
    (fold, "trace lets an absent modality in", "gates: .* entries differ"),
    (absence, "step scales every sample", "context: .* entries differ"),
    (absence, "step has a gate for every sample", "a gate where nothing came"),
    (ways_of_absence, "forward counts what is given", "context: .* entries differ"),
    (ways_of_absence, "forward counts the masks", "context: off by"),
    (mapping_order, "forward looks at the first key", "context: .* entries differ"),
    (addition, "addition draws the unit anew", r"unit\.linear\.weight: .* entries differ"),
    (addition, "addition replaces a parameter", "not the same object"),
    (addition, "addition brings a parameter more", "more: new"),
    (addition, "forward counts what is given", "context: .* entries differ"),
    (trace, "trace lets an absent modality in", "a gate where none was applied"),
    (trace, "trace claims that all are present", None),
    (trace, "trace is late", "last: .* entries differ"),
    (trace, "trace has a wrong opener", "opener: off by"),
    (properties.assert_config_rebuilds, "config forgets an option", None),
]


@pytest.mark.parametrize(("check", "fault", "message"), FUSION_FAILURES)
def test_faulty_fusion_is_noticed(
    check: Callable[[GatedRecurrentFusion], None], fault: str, message: str | None
) -> None:
    with pytest.raises(AssertionError, match=message):
        check(faulty(fault))


@pytest.mark.parametrize("check", dict.fromkeys(check for check, _, _ in FUSION_FAILURES))
def test_right_fusion_passes(check: Callable[[GatedRecurrentFusion], None]) -> None:
    check(faulty(""))
