"""The gate by itself: where its parts come from, how it starts, what it shows."""

import math

import pytest
import torch
from torch import Tensor, nn

from grf_fusion import GatedFusionUnit


def unit(**options: object) -> GatedFusionUnit:
    made = GatedFusionUnit(5, dtype=torch.float64, **options)  # type: ignore[arg-type]
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    return made


def pair(*shape: int) -> tuple[Tensor, Tensor]:
    state, update = torch.randn(2, *shape, 5, dtype=torch.float64)
    return state, update


@pytest.mark.parametrize("shape", [(), (3,), (3, 2), (1,)], ids=str)
def test_gate_and_candidate_are_the_two_halves_of_one_product(shape: tuple[int, ...]) -> None:
    made, (state, update) = unit(norm=False), pair(*shape)
    both = torch.cat((state, update), dim=-1)
    weight, bias = made.linear.weight, made.linear.bias
    gate = torch.sigmoid(both @ weight[:5].T + bias[:5])
    candidate = torch.tanh(both @ weight[5:].T + bias[5:])
    result, told = made(state, update, return_gate=True)
    torch.testing.assert_close(told, gate, rtol=0, atol=1e-12)
    torch.testing.assert_close(result, (1 - gate) * state + gate * candidate, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(), (3,), (3, 2), (1,)], ids=str)
def test_what_is_traced_has_a_leading_axis_and_the_same_result(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, (state, update) = unit(), pair(*shape)
    seen: list[torch.Size] = []
    made.linear.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape))
    result = made(state, update)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    traced = made(state, update)
    assert seen == [(*shape, 10), (1, *shape, 10)]
    torch.testing.assert_close(traced, result, rtol=0, atol=1e-12)
    assert traced.shape == state.shape


def test_the_norm_is_that_of_the_blend() -> None:
    made, (state, update) = unit(), pair(3)
    blend = GatedFusionUnit(5, norm=False, dtype=torch.float64)
    blend.load_state_dict(made.state_dict(), strict=False)
    torch.testing.assert_close(made(state, update), made.norm(blend(state, update)))


def test_identity_scales_the_gate() -> None:
    made, (state, update) = unit(norm=False, identity_init=True), pair(3)
    plain = GatedFusionUnit(5, norm=False, dtype=torch.float64)
    plain.load_state_dict(made.state_dict(), strict=False)
    _, whole = plain(state, update, return_gate=True)
    _, gate = made(state, update, return_gate=True)
    torch.testing.assert_close(gate, whole * made.gate_scale)


def test_dropout_drops_what_is_blended() -> None:
    made = unit(dropout=0.5, norm=False)
    state, update = pair(400)
    dropped = made(state, update)
    kept = dropped != 0
    assert 0.4 < kept.double().mean() < 0.6
    torch.testing.assert_close(dropped[kept], 2 * made.eval()(state, update)[kept])


@pytest.mark.parametrize("bias", [0.0, -2.5, 3])
@pytest.mark.parametrize("norm", [True, False])
def test_reset_draws_anew_and_starts_the_gate_at_its_bias(bias: float, norm: bool) -> None:
    made = unit(gate_bias=bias, norm=norm, identity_init=not norm)
    before = made.linear.weight.clone()
    made.reset_parameters()
    assert made.gate_bias == bias
    assert torch.equal(made.linear.bias[:5], torch.full((5,), float(bias), dtype=torch.float64))
    assert (made.linear.weight != before).all()
    bound = 1 / math.sqrt(10)
    for drawn in (made.linear.weight, made.linear.bias[5:]):
        assert drawn.abs().max() <= bound
        assert len(drawn.unique()) == drawn.numel()
    if norm:
        assert torch.equal(made.norm.weight, torch.ones(5, dtype=torch.float64))
        assert torch.equal(made.norm.bias, torch.zeros(5, dtype=torch.float64))
    else:
        assert made.norm is None
        assert made.gate_scale.item() == 0.0


def test_parameters_are_made_where_and_as_told() -> None:
    for options in ({}, {"norm": False, "identity_init": True}):
        made = GatedFusionUnit(5, device="meta", dtype=torch.float16, **options)
        assert {p.device.type for p in made.parameters()} == {"meta"}
        assert {p.dtype for p in made.parameters()} == {torch.float16}


def test_whole_numbers_are_a_bias_and_dropout_may_be_an_int() -> None:
    made = GatedFusionUnit(5, gate_bias=-3, dropout=0)
    assert made.gate_bias == -3
    assert made.dropout.p == 0


@pytest.mark.parametrize("options", [{"norm": True}, {"norm": False, "dropout": 0.25}])
def test_identity_is_undisturbed(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="identity_init"):
        GatedFusionUnit(5, identity_init=True, **options)


def test_a_half_precision_state_keeps_its_type_under_autocast() -> None:
    made = GatedFusionUnit(5)
    state, update = torch.randn(3, 5), torch.randn(3, 5)
    with torch.autocast(torch.get_default_device().type, dtype=torch.bfloat16):
        result, gate = made(state, update, return_gate=True)
    assert result.dtype == gate.dtype == torch.float32


def test_sizes_are_shown() -> None:
    shown = GatedFusionUnit(6, gate_bias=-2.0).extra_repr()
    assert shown == "embed_dim=6, gate_bias=-2.0, identity_init=False"
    shown = GatedFusionUnit(6, norm=False, identity_init=True).extra_repr()
    assert shown == "embed_dim=6, gate_bias=0.0, identity_init=True"
