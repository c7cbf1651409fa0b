"""Looking inside against brute force: loops over samples, sets of modalities and their orders."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

import properties
import strategies
from grf_fusion import (
    AttentionWeights,
    FusionTrace,
    GatedRecurrentFusion,
    ShapeError,
    SymmetricCrossAttentionBlock,
)
from grf_fusion.baselines import ConcatFusion, MulT, WeightedSumFusion
from grf_fusion.diagnostics import (
    attention_maps,
    gate_statistics,
    gate_warnings,
    gradient_share,
    leave_one_out,
    missing_curve,
    order_sensitivity,
    retention,
    shapley_values,
)
from properties import NAN, assert_close, assert_same_bits
from refusal import assert_refused
from strategies import BaselineCall, FusionCall

QUICK = strategies.examples(60)
WIDTHS = {"text": 7, "audio": 11, "depth": 13}
DIM, HEADS, BATCH = 15, 3, 5
FUSING = tuple(kind for kind in strategies.BASELINES if kind != "alignment")
Given = dict[str, Any]
# Options of a fusion, one for each way in which steps and openings differ.
MODES = {
    "residual": {},
    "paper": {"form": "paper"},
    "first": {"opening": "first"},
    "sequence": {"context": "sequence"},
    "first sequence": {"context": "first_sequence"},
    "own weights": {"share_weights": False},
}


def make_fusion(
    widths: Mapping[str, int] = WIDTHS, *, seed: int = 3, **options: Any
) -> GatedRecurrentFusion:
    fusion = GatedRecurrentFusion(
        widths, **{"embed_dim": DIM, "num_heads": HEADS, "form": "residual"} | options
    )
    properties.randomise(fusion, seed)
    return fusion.eval()


def make_call(widths: Mapping[str, int] = WIDTHS, batch: int = BATCH, seed: int = 5) -> Given:
    """Random features with gaps: padding and absence that hold NaN."""
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    lengths = (2, 3, 4, 6, 8, 9, 10, 12, 14)
    features, masks = {}, {}
    present = torch.rand(batch, len(widths), generator=generator) > 0.3
    present[0], present[1] = True, False
    for k, (name, width) in enumerate(widths.items()):
        time = lengths[k % len(lengths)]
        mask = torch.rand(batch, time, generator=generator) > 0.3
        mask[:, 0] = True
        x = torch.randn(batch, time, width, generator=generator)
        real = mask & present[:, k, None]
        features[name], masks[name] = x.masked_fill(~real.unsqueeze(-1), NAN), mask
    return {"features": features, "masks": masks, "present": present}


def score(context: Tensor) -> Tensor:
    """A score of each sample that no modality has to itself."""
    flat = context.flatten(1)
    weights = torch.linspace(-1, 2, flat.shape[1], dtype=flat.dtype, device=flat.device)
    return (flat * weights).sum(dim=1).tanh() + flat[:, 0].square()


def trace_of(gates: Sequence[Sequence[float]], present: Sequence[Sequence[int]]) -> FusionTrace:
    """A trace of one feature, a row of gates and of presence for each sample."""
    here = torch.tensor(present, dtype=torch.bool)
    contexts = torch.zeros(*here.shape, 1)
    return FusionTrace(contexts, torch.tensor(gates).unsqueeze(-1), here, ("a", "b", "c"))


class Simulation(NamedTuple):
    """What a loop over a sample's steps says.

    Attributes:
        weights: By modality, ``None`` for the start: ``(time, dim)``.
        context: The sum of weights times candidates, ``None`` where no gate was applied.
    """

    weights: dict[str | None, Tensor]
    context: Tensor | None


def run(call: FusionCall, fusion: GatedRecurrentFusion) -> tuple[Tensor, FusionTrace, list[Any]]:
    """Run a call and catch, unit call by unit call, state, gate and candidate."""
    caught: list[tuple[Tensor, Tensor, Tensor]] = []

    def catch(unit: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
        state, update = inputs
        hidden = torch.cat((state, update), dim=-1) @ unit.linear.weight.T + unit.linear.bias
        found = (state, output[1], hidden[..., fusion.embed_dim :].tanh())
        caught.append(tuple(x if x.ndim == 3 else x.unsqueeze(1) for x in found))

    units = [fusion.unit] if fusion.units is None else fusion.units.values()
    hooks = [unit.register_forward_hook(catch) for unit in units]
    context, trace = fusion(call.features, **call.call_kwargs(), return_trace=True)
    for hook in hooks:
        hook.remove()
    return context, trace, caught


def simulate(
    trace: FusionTrace, caught: Sequence[Any], sample: int, *, learned: bool
) -> Simulation:
    """Follow one sample from step to step, as the recurrence says."""
    calls = iter(caught)
    weights: dict[str | None, Tensor] = {None: torch.ones(1, 1)} if learned else {}
    content: dict[str | None, Tensor] = {}
    for place, name in enumerate(trace.order):
        state, gate, candidate = (None, None, None)
        if place > 0 or learned:
            state, gate, candidate = (x[sample] for x in next(calls))
        if not trace.present[sample, place]:
            continue
        if not weights:
            weights[name] = torch.ones(1, 1)
            continue
        if not content:
            content[next(iter(weights))] = state
        weights = {other: weight * (1 - gate) for other, weight in weights.items()}
        weights[name], content[name] = gate, candidate
    if not content:
        return Simulation(weights, None)
    return Simulation(weights, sum(weights[name] * content[name] for name in weights))


class TestRetention:
    @QUICK
    @given(strategies.fusion_calls())
    def test_is_what_a_loop_over_the_steps_finds(self, call: FusionCall) -> None:
        fusion = properties.build(call)
        context, trace, caught = run(call, fusion)
        result = retention(trace)
        learned = fusion.opening == "learned"
        assert result.order == trace.order
        dim = fusion.embed_dim
        for sample in range(len(context)):
            weights, final = simulate(trace, caught, sample, learned=learned)
            real = slice(None)
            if trace.time_mask is not None and trace.time_mask[sample].any():
                real = trace.time_mask[sample].bool()
            if final is not None and fusion.form == "residual":
                got = context[sample].reshape(-1, dim)
                assert_close({"context": final.expand_as(got)[real]}, {"context": got[real]})
            if not weights:
                weights = {None: torch.ones(1, 1)}
            wanted = torch.zeros(1 + len(trace.order), dim, dtype=context.dtype)
            for name, weight in weights.items():
                row = 0 if name is None else 1 + trace.order.index(name)
                wanted[row] = (weight[real] if len(weight) > 1 else weight).mean(dim=0)
            assert_close({"": result.by_feature[sample]}, {"": wanted})
            assert_close({"": result.start[sample]}, {"": wanted[0].mean()})
            assert_close({"": result.shares[sample]}, {"": wanted[1:].mean(dim=-1)})

    @QUICK
    @given(strategies.fusion_calls())
    def test_shares_sum_to_one_and_absence_has_none(self, call: FusionCall) -> None:
        _, trace = properties.build(call)(call.features, **call.call_kwargs(), return_trace=True)
        result = retention(trace)
        ones = torch.ones_like(result.by_feature[:, 0])
        assert_close({"": result.by_feature.sum(dim=1)}, {"": ones})
        assert_close({"": result.start + result.shares.sum(dim=1)}, {"": ones[:, 0]})
        assert (result.by_feature >= 0).all()
        assert not result.shares[~trace.present].any()
        assert_close({"": result.mean_start}, {"": result.start.mean()})
        for k in range(len(result.order)):
            having = result.shares[trace.present[:, k], k]
            mean = result.mean[k]
            assert mean.isnan() if len(having) == 0 else torch.isclose(mean, having.mean())

    def test_by_hand(self) -> None:
        trace = trace_of([[0.5, 0.25], [0.5, 0.25], [0.0, 0.25], [0.0, 0.0]], [[1, 1, 1]] * 4)
        trace = trace._replace(present=trace.present.clone())
        trace.present[2, 0] = trace.present[3, :] = False
        trace.present[2, 1] = False
        trace = trace._replace(gates=trace.gates.clone())
        trace.gates[2, 1] = 0.0
        result = retention(trace)
        wanted = [[0.375, 0.375, 0.25]] * 2 + [[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
        assert result.shares.tolist() == wanted
        assert result.start.tolist() == [0.0, 0.0, 0.0, 1.0]
        assert result.mean.tolist() == pytest.approx([0.375, 0.375, 0.5])

    def test_gradients_reach_the_gates(self) -> None:
        fusion, call = make_fusion(), make_call()
        _, trace = fusion(**call, return_trace=True)
        retention(trace).shares[0, 0].backward()
        assert fusion.unit.linear.weight.grad.isfinite().all()
        assert fusion.unit.linear.weight.grad.any()

    def test_half_precision_is_counted_in_float32(self) -> None:
        trace = trace_of([[0.5, 0.25]], [[1, 1, 1]])
        half = trace._replace(gates=trace.gates.bfloat16())
        assert_same_bits({"": retention(half).shares}, {"": retention(trace).shares})


class TestGateStatistics:
    @QUICK
    @given(strategies.fusion_calls())
    def test_is_what_a_loop_over_the_samples_finds(self, call: FusionCall) -> None:
        fusion = properties.build(call)
        _, trace = fusion(call.features, **call.call_kwargs(), return_trace=True)
        result = gate_statistics(trace, saturation=0.2)
        first = 0 if fusion.opening == "learned" else 1
        assert result.steps == trace.order[first:]
        for step in range(len(result.steps)):
            rows = [
                trace.gates[i, step]
                for i in range(len(trace.present))
                if trace.present[i, first + step]
                and (fusion.opening == "learned" or trace.present[i, : first + step].any())
            ]
            assert result.samples[step] == len(rows)
            if not rows:
                assert all(numbers[step].isnan() for numbers in result[2:])
                continue
            gates = torch.stack(rows).detach().double()
            wanted = (
                gates.mean(),
                gates.std(correction=0),
                gates.std(dim=0, correction=0).mean(),
                (gates < 0.2).double().mean(),
                (gates > 0.8).double().mean(),
            )
            for field, got, want in zip(result._fields[2:], result[2:], wanted, strict=True):
                # A variance of nearly equal float32 numbers has half of their digits.
                assert_close({field: got[step]}, {field: want}, tolerance=1e-4)

    def test_only_modality_that_opens_takes_no_step(self) -> None:
        fusion = make_fusion({"text": 7}, opening="first")
        _, trace = fusion({"text": torch.randn(4, 3, 7)}, return_trace=True)
        result = gate_statistics(trace)
        assert result.steps == ()
        assert all(len(numbers) == 0 for numbers in result)
        assert gate_warnings(trace) == []
        assert retention(trace).shares.tolist() == [[1.0]] * 4


class TestGateWarnings:
    @pytest.mark.parametrize(
        ("gates", "present", "found"),
        [
            ([[0.2, 0.99], [0.6, 0.98]], [[1, 1, 1]] * 2, [("context collapse", "c", 0.015)]),
            ([[0.001, 0.3], [0.002, 0.6]], [[1, 1, 1]] * 2, [("never let in", "b", 0.0015)]),
            ([[0.3, 0.3], [0.3, 0.6]], [[1, 1, 1]] * 2, [("constant gate", "b", 0.0)]),
            ([[0.3, 0.3], [0.5, 0.6]], [[1, 1, 1]] * 2, []),
            # A single sample cannot tell whether a gate depends on anything.
            ([[0.3, 0.3]], [[1, 1, 1]], []),
            # Opens, or is absent: no gate was applied, and nothing is known.
            ([[0.0, 0.3], [0.0, 0.6]], [[0, 1, 1]] * 2, []),
            ([[0.0, 0.0], [0.0, 0.0]], [[1, 0, 0]] * 2, []),
        ],
        ids=str,
    )
    def test_each_kind_alone(self, gates: Any, present: Any, found: Any) -> None:
        warnings = gate_warnings(trace_of(gates, present))
        assert [(w.kind, w.modality) for w in warnings] == [(k, m) for k, m, _ in found]
        for warning, (_, _, measured) in zip(warnings, found, strict=True):
            assert warning.measured == pytest.approx(measured, abs=1e-6)
            assert warning.measured < warning.limit
            assert repr(warning.modality) in warning.message
            assert "Try" in warning.message

    def test_first_step_from_a_learnt_opening_erases_nobody(self) -> None:
        trace = trace_of([[0.99, 0.2, 0.3], [0.97, 0.4, 0.5]], [[1, 1, 1]] * 2)
        assert gate_warnings(trace) == []
        before = trace_of([[0.4, 0.99, 0.3], [0.2, 0.97, 0.5]], [[1, 1, 1], [0, 1, 1]])
        (warning,) = gate_warnings(before._replace(gates=before.gates.clone()))
        # The second sample has nothing before.
        assert (warning.modality, warning.measured) == ("b", pytest.approx(0.01, abs=1e-6))

    def test_limits_are_the_callers(self) -> None:
        trace = trace_of([[0.2, 0.8], [0.6, 0.7]], [[1, 1, 1]] * 2)
        (warning,) = gate_warnings(trace, erased_below=0.3)
        assert (warning.kind, warning.limit) == ("context collapse", 0.3)
        assert [w.modality for w in gate_warnings(trace, closed_below=0.5)] == ["b"]
        assert [w.modality for w in gate_warnings(trace, constant_below=0.3)] == ["b", "c"]

    def test_a_limit_itself_is_no_reason_to_warn(self) -> None:
        closed = trace_of([[0.25, 0.5], [0.25, 0.75]], [[1, 1, 1]] * 2)
        limits = {"erased_below": 0.1, "constant_below": 0.01}
        kinds = [w.kind for w in gate_warnings(closed, closed_below=0.25, **limits)]
        assert kinds == ["constant gate"]
        erased = trace_of([[0.5, 0.25], [0.25, 0.75]], [[1, 1, 1]] * 2)
        limits = {"closed_below": 0.01, "constant_below": 0.01}
        assert gate_warnings(erased, erased_below=0.5, **limits) == []

    def test_numbers_that_a_message_says(self) -> None:
        texts = [
            gate_warnings(trace_of(gates, [[1, 1, 1]] * 2))[0].message
            for gates in (
                [[0.2, 0.99], [0.6, 0.98]],
                [[0.001, 0.3], [0.002, 0.6]],
                [[0.3, 0.3], [0.3, 0.6]],
            )
        ]
        assert "keeps 1.5% of the context on average (limit 5.0%)" in texts[0]
        assert "it is 0.0015 on average (limit 0.01)" in texts[1]
        assert "(limit 0.005)" in texts[2]


def scores_of_sets(
    fusion: nn.Module, call: FusionCall | BaselineCall, names: Sequence[str]
) -> dict[frozenset[str], Tensor]:
    """The score by every set of modalities, the others left out by name."""
    scores = {}
    batch = next(len(x) for x in call.features.values() if x is not None)
    for size in range(len(names) + 1):
        for some in itertools.combinations(names, size):
            features: Given = {n: x for n, x in call.features.items() if n in some}
            masks = {n: m for n, m in (call.masks or {}).items() if n in some}
            present = call.present
            if all(x is None for x in features.values()):
                name, width = next(iter(fusion.modalities.items()))
                features, masks = {name: torch.zeros(batch, 1, width, dtype=call.dtype)}, {}
                present = torch.zeros(batch, len(names), dtype=torch.bool)
            context = fusion(features, masks=masks, present=present)
            scores[frozenset(some)] = score(context).detach()
    return scores


def has_time(fusion: nn.Module) -> bool:
    """Whether the context's length is that of the first modality, which leaving it out changes."""
    return getattr(fusion, "context", "pooled") == "sequence"


class TestContribution:
    @QUICK
    @given(strategies.fusion_calls(contexts=("pooled", "first_sequence"), max_modalities=3))
    def test_of_the_fusion(self, call: FusionCall) -> None:
        self.check(properties.build(call), call)

    @QUICK
    @given(st.sampled_from(FUSING).flatmap(strategies.baseline_calls))
    def test_of_the_baselines(self, call: BaselineCall) -> None:
        fusion = properties.CLASSES[call.config.kind](**call.config.kwargs(), dtype=call.dtype)
        properties.randomise(fusion, call.seed)
        self.check(fusion.eval(), call)

    @staticmethod
    def check(fusion: nn.Module, call: FusionCall | BaselineCall) -> None:
        names = tuple(fusion.modalities)
        known = scores_of_sets(fusion, call, names)
        arguments = {"masks": call.masks, "present": call.present}
        here = fusion.presence(call.features, **arguments)
        result = shapley_values(fusion, call.features, score, **arguments)
        assert result.names == names
        orders = list(itertools.permutations(names))
        gains = torch.zeros(len(here), len(names), dtype=call.dtype)
        for order in orders:
            for place, name in enumerate(order):
                before = frozenset(order[:place])
                gains[:, names.index(name)] += known[before | {name}] - known[before]
        everything = frozenset(names)
        wanted = {
            "values": gains / len(orders),
            "full": known[everything],
            "empty": known[frozenset()],
            "standard_error": torch.zeros_like(gains),
        }
        tolerance = 1e-9 if call.dtype == torch.float64 else 3e-5
        scale = max(1.0, *(float(s.abs().max()) for s in known.values()))
        got = {name: getattr(result, name) for name in wanted}
        assert_close(got, wanted, tolerance=tolerance * scale)
        total = {"": result.full - result.empty}
        assert_close({"": result.values.sum(dim=1)}, total, tolerance=tolerance * scale)
        assert not result.values[~here].any()
        left = leave_one_out(fusion, call.features, score, **arguments)
        assert left.names == names
        lost = [known[everything] - known[everything - {name}] for name in names]
        wanted = {"values": torch.stack(lost, dim=1), "full": known[everything]}
        got = {name: getattr(left, name) for name in wanted}
        assert_close(got, wanted, tolerance=tolerance * scale)
        assert not left.values[~here].any()
        for found in (result, left):
            for k in range(len(names)):
                having = found.values[here[:, k], k]
                mean = found.mean[k]
                assert mean.isnan() if len(having) == 0 else torch.isclose(mean, having.mean())

    @pytest.mark.parametrize("mode", MODES)
    def test_missing_keys_masks_and_nan(self, mode: str) -> None:
        fusion, call = make_fusion(**MODES[mode]), make_call()
        del call["features"]["depth"], call["masks"]["depth"]
        here = fusion.presence(**call)
        for result in (
            shapley_values(fusion, value=score, **call),
            leave_one_out(fusion, value=score, **call),
        ):
            assert result.values.isfinite().all()
            assert not result.values[~here].any()
            assert not result.values[:, 2].any()
            assert result.mean[2].isnan()

    def test_sampled_values_come_near_the_exact_ones(self) -> None:
        fusion, call = make_fusion(), make_call()
        exact = shapley_values(fusion, value=score, **call)
        generator = torch.Generator(torch.get_default_device()).manual_seed(1)
        sampled = shapley_values(fusion, value=score, **call, permutations=400, generator=generator)
        off = (sampled.values - exact.values).abs()
        assert (off <= 4 * sampled.standard_error + 1e-6).all()
        assert (sampled.standard_error[0] > 0).all()
        assert (sampled.standard_error < 0.05).all()
        assert not sampled.standard_error[1].any()
        total = {"": sampled.full - sampled.empty}
        assert_close({"": sampled.values.sum(dim=1)}, total, tolerance=1e-4)

    @pytest.mark.parametrize("permutations", [None, 3])
    def test_another_default_device_changes_nothing(self, permutations: int | None) -> None:
        fusion, call = make_fusion(), make_call()
        found = []
        for device in (torch.get_default_device(), "meta"):
            generator = torch.Generator("cpu").manual_seed(0)
            options = {"permutations": permutations, "generator": generator}
            with torch.device(device):
                found.append(shapley_values(fusion, value=score, **call, **options).values)
        assert_same_bits({"": found[1]}, {"": found[0]})

    def test_two_permutations_by_hand(self) -> None:
        fusion, call = make_fusion(), make_call()
        generator = torch.Generator(torch.get_default_device()).manual_seed(2)
        got = shapley_values(fusion, value=score, **call, permutations=2, generator=generator)
        generator = torch.Generator(torch.get_default_device()).manual_seed(2)
        names = list(WIDTHS)
        orders = torch.rand(2, 3, generator=generator).argsort(dim=1).tolist()
        gains = torch.zeros(2, BATCH, 3)
        for row, order in enumerate(orders):
            for place, k in enumerate(order):
                scores = []
                for some in (order[:place], order[: place + 1]):
                    kept = torch.tensor([j in some for j in range(len(names))])
                    context = fusion(
                        call["features"], masks=call["masks"], present=call["present"] & kept
                    )
                    scores.append(score(context).detach())
                gains[row, :, k] = scores[1] - scores[0]
        assert_close({"": got.values}, {"": gains.mean(dim=0)})
        error = (gains[0] - gains[1]).abs() / 2
        assert_close({"": got.standard_error}, {"": error})

    @pytest.mark.parametrize("count", [8, 9])
    def test_exact_up_to_eight(self, count: int) -> None:
        widths = {f"m{k}": 3 for k in range(count)}
        fusion = WeightedSumFusion(widths, embed_dim=5).eval()
        call = make_call(widths, batch=2)
        asked = []

        def value(context: Tensor) -> Tensor:
            asked.append(len(context))
            return context.sum(dim=1)

        result = shapley_values(fusion, value=value, **call)
        assert set(asked) == {2}
        assert len(asked) == 2**8 if count == 8 else 200 < len(asked) < 2**9
        assert result.standard_error.any() == (count == 9)

    @pytest.mark.parametrize("rows", [1, 12, 10_000])
    def test_rows_change_nothing_but_the_calls(self, rows: int) -> None:
        fusion, call = make_fusion(), make_call()
        sizes: list[int] = []
        fusion.projections["text"].register_forward_hook(lambda _m, i, _o: sizes.append(len(i[0])))
        result = shapley_values(fusion, value=score, **call, rows=rows)
        at_once = {1: 1, 12: 2, 10_000: 8}[rows]
        assert sizes == [at_once * BATCH] * (8 // at_once)
        assert_close({"": result.values}, {"": shapley_values(fusion, value=score, **call).values})

    def test_half_precision_scores(self) -> None:
        fusion, call = make_fusion(), make_call()
        result = shapley_values(fusion, value=lambda c: score(c).bfloat16(), **call)
        assert result.values.dtype == torch.float32


class TestGradientShare:
    @QUICK
    @given(strategies.fusion_calls())
    def test_is_the_gradient_at_the_projection(self, call: FusionCall) -> None:
        self.check(properties.build(call), call)

    @QUICK
    @given(st.sampled_from(FUSING).flatmap(strategies.baseline_calls))
    def test_of_the_baselines(self, call: BaselineCall) -> None:
        fusion = properties.CLASSES[call.config.kind](**call.config.kwargs(), dtype=call.dtype)
        properties.randomise(fusion, call.seed)
        self.check(fusion.eval(), call)

    @staticmethod
    def check(fusion: nn.Module, call: FusionCall | BaselineCall) -> None:
        """Against each sample by itself, by a step of the projected features that is added."""
        arguments = {"masks": call.masks, "present": call.present}
        result = gradient_share(fusion, call.features, lambda c: score(c).sum(), **arguments)
        here = fusion.presence(call.features, **arguments)
        steps: dict[str, Tensor] = {}

        def add(name: str) -> Callable[..., Tensor]:
            def hook(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
                if name in steps:
                    return output
                steps[name] = torch.zeros_like(output, requires_grad=True)
                return output + steps[name]

            return hook

        hooks = [fusion.projections[n].register_forward_hook(add(n)) for n in fusion.modalities]
        score(fusion(call.features, **arguments)).sum().backward()
        for hook in hooks:
            hook.remove()
        wanted = torch.zeros(here.shape, dtype=call.dtype)
        for k, name in enumerate(fusion.modalities):
            for i in range(len(here)):
                slope = steps[name].grad
                wanted[i, k] = 0.0 if slope is None else slope[i].square().sum().sqrt()
        assert_close({"norms": result.norms}, {"norms": wanted})
        assert not result.norms[~here].any()
        whole = result.shares.sum(dim=1)
        some = result.norms.any(dim=1)
        assert_close({"": whole}, {"": some.to(whole)})

    def test_leaves_gradients_and_freezes_alone(self) -> None:
        fusion, call = make_fusion(), make_call()
        free = gradient_share(fusion, loss=lambda c: score(c).mean(), **call)
        assert all(p.grad is None for p in fusion.parameters())
        fusion.requires_grad_(False)
        with torch.no_grad():
            frozen = gradient_share(fusion, loss=lambda c: score(c).mean(), **call)
        assert_close({"": frozen.norms}, {"": free.norms})

    def test_hooks_are_gone_after_an_error(self) -> None:
        fusion, call = make_fusion(), make_call()
        with pytest.raises(ShapeError, match="one number"):
            gradient_share(fusion, loss=score, **call)
        assert not any(p._forward_hooks for p in fusion.modules())

    def test_loss_that_ignores_the_modalities(self) -> None:
        fusion, call = make_fusion(), make_call()
        result = gradient_share(fusion, loss=lambda c: (c * 0).sum(), **call)
        assert not result.shares.any()


def order_metric(context: Tensor) -> Tensor:
    return score(context).mean()


class TestOrderSensitivity:
    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_is_the_metric_of_every_order(self, mode: str, dtype: torch.dtype) -> None:
        fusion = make_fusion(**MODES[mode]).to(dtype)
        call = make_call()
        call["features"] = {name: x.to(dtype) for name, x in call["features"].items()}
        result = order_sensitivity(fusion, metric=order_metric, **call)
        allowed = set(itertools.permutations(WIDTHS))
        if mode == "own weights":
            assert fusion.opening == "learned"
        assert set(result.orders) == allowed
        assert result.every
        assert result.orders[0] == tuple(WIDTHS)
        with torch.no_grad():
            wanted = [order_metric(fusion(**call, order=order)).item() for order in result.orders]
        assert result.values.tolist() == wanted
        assert result.mean == pytest.approx(sum(wanted) / 6)
        assert result.lowest == min(wanted)
        assert result.highest == max(wanted)
        spread = math.sqrt(sum((x - result.mean) ** 2 for x in wanted) / 6)
        assert result.spread == pytest.approx(spread)

    def test_modality_without_a_step_keeps_its_place(self) -> None:
        fusion = make_fusion(share_weights=False, opening="first")
        result = order_sensitivity(fusion, metric=order_metric, **make_call())
        assert set(result.orders) == {("text", "audio", "depth"), ("text", "depth", "audio")}
        assert result.every

    @pytest.mark.parametrize(
        ("count", "orders", "expected"),
        [(1, None, 1), (5, None, 120), (6, None, 120), (3, 4, 4), (3, 99, 6), (6, 7, 7)],
    )
    def test_number_of_orders(self, count: int, orders: int | None, expected: int) -> None:
        widths = {f"m{k}": 3 for k in range(count)}
        fusion = make_fusion(widths, embed_dim=4, num_heads=1, dim_feedforward=2)
        call = make_call(widths, batch=2)
        generator = torch.Generator(torch.get_default_device()).manual_seed(0)
        result = order_sensitivity(
            fusion, metric=lambda c: float(c.sum()), **call, orders=orders, generator=generator
        )
        assert len(set(result.orders)) == len(result.orders) == len(result.values) == expected
        assert result.orders[0] == tuple(widths)
        assert result.every == (expected == math.factorial(count))

    def test_drawn_orders_are_the_generators(self) -> None:
        fusion, call = make_fusion(), make_call()
        drawn = [
            order_sensitivity(
                fusion,
                metric=order_metric,
                **call,
                orders=3,
                generator=torch.Generator(torch.get_default_device()).manual_seed(seed),
            ).orders
            for seed in (0, 0, 1, 2, 3)
        ]
        assert drawn[0] == drawn[1]
        assert len(set(drawn)) > 1


class TestMissingCurve:
    @pytest.mark.parametrize("mode", MODES)
    def test_counts_what_is_left(self, mode: str) -> None:
        fusion, call = make_fusion(**MODES[mode]), make_call()
        seen: list[Tensor] = []
        forward = fusion.forward

        def spy(*args: Any, **kwargs: Any) -> Any:
            seen.append(kwargs["present"])
            return forward(*args, **kwargs)

        fusion.forward = spy
        generator = torch.Generator(torch.get_default_device()).manual_seed(0)
        curve = missing_curve(fusion, metric=order_metric, **call, draws=2, generator=generator)
        assert curve.missing == (0, 1, 2)
        assert curve.values.shape == (3, 2)
        here = fusion.presence(**call)
        takes = (0, 1, 1, 2, 2)
        assert len(seen) == len(takes)
        for taken, left in zip(takes, seen, strict=True):
            assert not (left & ~here).any()
            wanted = (here.sum(dim=1) - taken).clamp(min=0)
            assert left.sum(dim=1).tolist() == wanted.tolist()
        full = order_metric(forward(**call)).item()
        assert curve.values[0].tolist() == [pytest.approx(full, abs=1e-5)] * 2
        last = order_metric(forward(**call | {"present": seen[-1]})).item()
        assert curve.values[2, 1].item() == pytest.approx(last, abs=1e-5)

    def test_every_modality_is_taken_at_times(self) -> None:
        fusion = ConcatFusion(WIDTHS, embed_dim=DIM)
        features = {name: torch.randn(300, 1, width) for name, width in WIDTHS.items()}
        seen: list[Tensor] = []
        forward = fusion.forward
        fusion.forward = lambda *a, **k: seen.append(k["present"]) or forward(*a, **k)
        missing_curve(fusion, features, lambda _c: 0.0, draws=1)
        shares = seen[1].float().mean(dim=0)
        assert ((shares > 0.5) & (shares < 0.8)).all()


class OwnBlock(nn.Module):
    """A block of one's own around ours."""

    def __init__(self, *, calls: bool = True) -> None:
        super().__init__()
        options = {"norm_first": True, "pooled_context": True}
        self.inner = SymmetricCrossAttentionBlock(DIM, num_heads=HEADS, **options)
        self.calls = calls

    def forward(
        self, context: Tensor, modality: Tensor, *, context_mask: Any, modality_mask: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.calls:
            return context, modality
        context, modality = self.inner(
            context, modality, context_mask=context_mask, modality_mask=modality_mask
        )
        return context, modality


class PlainBlock(nn.Module):
    """A block of one's own without attention."""

    def forward(self, context: Tensor, modality: Tensor, **_masks: Any) -> tuple[Tensor, Tensor]:
        return context, modality


class PromisingBlock(nn.Module):
    """A block of one's own that does not keep its promise."""

    def forward(
        self, context: Tensor, modality: Tensor, *, need_weights: bool = False, **_masks: Any
    ) -> tuple[Tensor, Tensor]:
        assert need_weights
        return context, modality


class TestAttentionMaps:
    @QUICK
    @given(strategies.fusion_calls())
    def test_are_the_blocks_weights_and_change_nothing(self, call: FusionCall) -> None:
        """Against the block called once more, sample by sample, with what it was given."""
        assume(call.config.form != "summary")
        fusion = properties.build(call, packing=False)
        given_to: list[tuple[nn.Module, Any, Any]] = []
        blocks = [fusion.block] if fusion.blocks is None else fusion.blocks.values()
        before = fusion(call.features, **call.call_kwargs())
        hooks = [
            block.register_forward_pre_hook(
                lambda m, a, k: given_to.append((m, a, k)), with_kwargs=True
            )
            for block in blocks
        ]
        _, trace = fusion(call.features, **call.call_kwargs(), return_trace=True)
        for hook in hooks:
            hook.remove()
        maps = attention_maps(fusion, call.features, **call.call_kwargs())
        first = 0 if fusion.opening == "learned" else 1
        assert tuple(maps) == trace.order[first:]
        for place, name in enumerate(maps, start=first):
            block, inputs, options = given_to[place - first]
            wanted = block(*inputs, **options, need_weights=True)[2]
            took = trace.present[:, place]
            if first:
                took = took & trace.present[:, :place].any(dim=1)
            for field, got, want in zip(AttentionWeights._fields, maps[name], wanted, strict=True):
                assert (got is None) == (want is None), field
                if got is not None:
                    assert_close({field: got[took]}, {field: want[took]})
                    assert not got[~took].any()
        after = fusion(call.features, **call.call_kwargs())
        assert_same_bits({"": after}, {"": before})

    def test_weights_of_a_query_sum_to_one_and_padding_has_none(self) -> None:
        fusion, call = make_fusion(num_layers=2), make_call()
        maps = attention_maps(fusion, **call)
        for k, (name, weights) in enumerate(maps.items()):
            here = call["present"][:, k]
            cross = weights.context_cross
            assert cross.shape == (BATCH, 2, HEADS, 1, call["features"][name].shape[1])
            sums = cross.sum(dim=-1)
            assert_close({"": sums}, {"": here.float().reshape(-1, 1, 1, 1).expand_as(sums)})
            hidden = ~call["masks"][name].reshape(BATCH, 1, 1, 1, -1).expand_as(cross)
            assert not cross[hidden].any()

    def test_order_is_followed(self) -> None:
        fusion, call = make_fusion(), make_call()
        order = ("depth", "text", "audio")
        assert tuple(attention_maps(fusion, **call, order=order)) == order

    def test_only_modality_that_opens_has_no_map(self) -> None:
        fusion = make_fusion({"text": 7}, opening="first")
        assert attention_maps(fusion, {"text": torch.randn(4, 3, 7)}) == {}

    def test_block_of_ones_own(self) -> None:
        own = make_fusion(block=OwnBlock)
        plain = make_fusion(self_attention=True)
        call = make_call()
        plain.load_state_dict(
            {name.replace("block.inner.", "block."): x for name, x in own.state_dict().items()}
        )
        for name, weights in attention_maps(plain, **call).items():
            assert_same_bits(
                {"": attention_maps(own, **call)[name].context_cross}, {"": weights.context_cross}
            )
        for module in own.modules():
            assert not module._forward_hooks
            assert not module._forward_pre_hooks

    @pytest.mark.parametrize(
        ("block", "got"),
        [
            (PlainBlock, "got PlainBlock"),
            (PromisingBlock, "got Tensor, Tensor from PromisingBlock"),
            (lambda: OwnBlock(calls=False), "got a step without a call"),
        ],
        ids=["no weights", "no weights on request", "inner block not called"],
    )
    def test_block_that_has_no_weights(self, block: Any, got: str) -> None:
        fusion = make_fusion(block=block)
        with pytest.raises(ShapeError, match="attention_maps: expected `block") as caught:
            attention_maps(fusion, **make_call())
        assert got in str(caught.value)
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in fusion.modules())


# Every diagnosis that runs the fusion, with what it asks for.
RUNS: dict[str, tuple[Callable[..., Any], Given]] = {
    "leave_one_out": (leave_one_out, {"value": score}),
    "shapley_values": (shapley_values, {"value": score}),
    "gradient_share": (gradient_share, {"loss": order_metric}),
    "order_sensitivity": (order_sensitivity, {"metric": order_metric}),
    "missing_curve": (missing_curve, {"metric": order_metric}),
    "attention_maps": (attention_maps, {}),
}


class TestAll:
    @pytest.mark.parametrize("name", RUNS)
    def test_runs_in_eval_mode_and_puts_every_part_back(self, name: str) -> None:
        function, options = RUNS[name]
        fusion, call = make_fusion(dropout=0.4, form="paper"), make_call()
        evaluated = function(fusion, **call, **options, **self.seeded(name))
        fusion.train()
        fusion.block.eval()
        flags = [part.training for part in fusion.modules()]
        state = {n: p.clone() for n, p in fusion.state_dict().items()}
        trained = function(fusion, **call, **options, **self.seeded(name))
        assert [part.training for part in fusion.modules()] == flags
        assert_same_bits(dict(fusion.state_dict()), state)
        assert repr(trained) == repr(evaluated)

    @pytest.mark.parametrize("name", RUNS)
    def test_puts_every_part_back_after_an_error(self, name: str) -> None:
        function, options = RUNS[name]
        fusion, call = make_fusion().train(), make_call()
        fusion.unit.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            function(fusion, **call, **options)
        assert all(part.training for part in fusion.modules())

    @pytest.mark.parametrize("name", RUNS)
    def test_refuses_what_is_no_fusion(self, name: str) -> None:
        function, options = RUNS[name]
        linear, call = nn.Linear(2, 2), make_call()
        assert_refused(
            lambda: function(linear, **call, **options),
            who=name,
            argument="fusion",
            got="got Linear",
            error=ShapeError,
        )

    @pytest.mark.parametrize("name", ["order_sensitivity", "attention_maps"])
    def test_refuses_a_fusion_without_steps(self, name: str) -> None:
        function, options = RUNS[name]
        mult, call = MulT(WIDTHS, embed_dim=DIM, num_heads=HEADS), make_call()
        assert_refused(
            lambda: function(mult, **call, **options),
            who=name,
            argument="fusion",
            got="got MulT",
            error=ShapeError,
        )

    @pytest.mark.parametrize("name", RUNS)
    def test_the_fusion_itself_refuses_the_call(self, name: str) -> None:
        function, options = RUNS[name]
        with pytest.raises(
            ShapeError, match=r"GatedRecurrentFusion: expected `features\['text'\]`"
        ):
            function(make_fusion(), {"text": torch.randn(4, 3, 8)}, **options)

    @pytest.mark.parametrize("name", [name for name, (_, options) in RUNS.items() if options])
    def test_refuses_what_is_no_function(self, name: str) -> None:
        function, options = RUNS[name]
        (argument,) = options
        fusion, call = make_fusion(), make_call()
        assert_refused(
            lambda: function(fusion, **call, **{argument: 3}),
            who=name,
            argument=argument,
            got="got int",
            error=ShapeError,
        )

    @pytest.mark.parametrize("name", ["leave_one_out", "shapley_values"])
    @pytest.mark.parametrize(
        ("value", "got"),
        [
            (lambda c: c.mean(), "of shape (batch=5), got (). Give each sample one number"),
            (lambda c: c, "of shape (batch=5), got (5, 15). Give each sample one number"),
            (lambda _c: 0.5, "to be a torch.Tensor, got float"),
        ],
        ids=["mean", "context", "float"],
    )
    def test_refuses_a_value_that_is_not_one_number_a_sample(
        self, name: str, value: Any, got: str
    ) -> None:
        function, _ = RUNS[name]
        with pytest.raises(ShapeError) as caught:
            function(make_fusion(), value=value, **make_call())
        assert str(caught.value).startswith(f"{name}: expected `value(context)` {got}")

    @pytest.mark.parametrize("name", ["order_sensitivity", "missing_curve"])
    @pytest.mark.parametrize(
        ("metric", "got"),
        [
            (score, "got shape (5,)"),
            (lambda _c: "high", "got str"),
            (lambda _c: True, "got bool"),
            (lambda c: c.sum().to(torch.complex64), "got shape ()"),
        ],
        ids=["a sample", "text", "truth", "complex"],
    )
    def test_refuses_a_metric_that_is_not_one_number(
        self, name: str, metric: Any, got: str
    ) -> None:
        function, _ = RUNS[name]
        with pytest.raises(ShapeError) as caught:
            function(make_fusion(), metric=metric, **make_call())
        assert str(caught.value).startswith(
            f"{name}: expected `metric(context)` to be one number, {got}"
        )

    @pytest.mark.parametrize(
        ("loss", "got"),
        [
            (score, "to be one number, got shape (5,). Take its mean."),
            (lambda c: c.detach().sum(), "to depend on the context, got a tensor without"),
            (lambda _c: 0.5, "to be a torch.Tensor, got float"),
        ],
        ids=["a sample", "detached", "float"],
    )
    def test_refuses_a_loss_without_a_gradient(self, loss: Any, got: str) -> None:
        with pytest.raises(ShapeError) as caught:
            gradient_share(make_fusion(), loss=loss, **make_call())
        assert str(caught.value).startswith(f"gradient_share: expected `loss(context)` {got}")

    def test_refuses_a_fusion_without_projections(self) -> None:
        whole = make_fusion()

        class Stand(nn.Module):
            modalities = WIDTHS

            def presence(self, features: Any, **given: Any) -> Tensor:
                return whole.presence(features, **given)

        call = make_call()
        assert_refused(
            lambda: gradient_share(Stand(), loss=order_metric, **call),
            who="gradient_share",
            argument="fusion.projections",
            got="got NoneType",
            error=ShapeError,
        )

    @pytest.mark.parametrize(
        ("name", "argument", "value", "got"),
        [
            ("leave_one_out", "rows", 0, "a positive integer, got 0"),
            ("shapley_values", "rows", 2.5, "a positive integer, got 2.5"),
            ("shapley_values", "permutations", 1, "at least 2, got 1"),
            ("shapley_values", "permutations", True, "at least 2, got True"),
            ("shapley_values", "permutations", 2.5, "at least 2, got 2.5"),
            ("order_sensitivity", "orders", 0, "a positive integer, got 0"),
            ("missing_curve", "draws", "5", "a positive integer, got '5'"),
        ],
    )
    def test_refuses_counts(self, name: str, argument: str, value: Any, got: str) -> None:
        function, options = RUNS[name]
        fusion, call = make_fusion(), make_call()
        assert_refused(
            lambda: function(fusion, **call, **options, **{argument: value}),
            who=name,
            argument=argument,
            got=got,
            error=ValueError,
        )

    @pytest.mark.parametrize("argument", ["erased_below", "closed_below", "constant_below"])
    @pytest.mark.parametrize("value", [0, 1.0, True, "0.1", NAN])
    def test_refuses_limits(self, argument: str, value: Any) -> None:
        trace = trace_of([[0.5, 0.25]], [[1, 1, 1]])
        assert_refused(
            lambda: gate_warnings(trace, **{argument: value}),
            who="gate_warnings",
            argument=argument,
            got=f"in (0, 1), got {value!r}",
            error=ValueError,
        )

    def test_refuses_saturation(self) -> None:
        trace = trace_of([[0.5, 0.25]], [[1, 1, 1]])
        assert_refused(
            lambda: gate_statistics(trace, saturation=0.5),
            who="gate_statistics",
            argument="saturation",
            got="in (0, 0.5), got 0.5",
            error=ValueError,
        )

    @pytest.mark.parametrize("function", [retention, gate_statistics, gate_warnings])
    @pytest.mark.parametrize(
        ("change", "argument", "got"),
        [
            (None, "trace", "got tuple"),
            ({"contexts": 3}, "trace.contexts", "got int"),
            ({"contexts": torch.zeros(1, 2, 1)}, "trace.contexts", "got (1, 2, 1)"),
            ({"present": torch.ones(2, 3).bool()}, "trace.present", "got (2, 3)"),
            ({"gates": torch.zeros(1, 1, 1)}, "trace.gates", "steps=2, dim=1), got (1, 1, 1)"),
            ({"gates": torch.zeros(1, 3)}, "trace.gates", "got (1, 3)"),
            (
                {"time_gates": torch.zeros(1, 2, 4, 2), "time_mask": torch.ones(1, 4).bool()},
                "trace.time_gates",
                "got (1, 2, 4, 2)",
            ),
            ({"time_gates": torch.zeros(1, 2, 4, 1)}, "trace.time_mask", "got NoneType"),
            (
                {"time_gates": torch.zeros(1, 2, 4, 1), "time_mask": torch.ones(1, 3).bool()},
                "trace.time_mask",
                "got (1, 3)",
            ),
        ],
    )
    def test_refuses_a_trace(
        self, function: Any, change: Given | None, argument: str, got: str
    ) -> None:
        trace: Any = trace_of([[0.5, 0.25]], [[1, 1, 1]])
        trace = tuple(trace) if change is None else trace._replace(**change)
        assert_refused(
            lambda: function(trace),
            who=function.__name__,
            argument=argument,
            got=got,
            error=ShapeError,
        )

    @staticmethod
    def seeded(name: str) -> Given:
        if name in {"shapley_values", "order_sensitivity", "missing_curve"}:
            return {"generator": torch.Generator(torch.get_default_device()).manual_seed(0)}
        return {}
