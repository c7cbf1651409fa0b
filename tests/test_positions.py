"""The shared table of positions: computed once, fit for everybody, part of no checkpoint."""

import copy

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from grf_fusion import (
    GatedRecurrentFusion,
)
from grf_fusion._inputs import positions as _positions
from grf_fusion._inputs.positions import sinusoidal_positions
from reference import reference_positions

HERE = torch.get_default_device()


@pytest.fixture(autouse=True)
def empty_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_positions, "_tables", {})


def table(length: int, dim: int = 15, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return sinusoidal_positions(length, dim, device=HERE, dtype=dtype)


def test_a_shorter_table_is_part_of_a_longer_one_and_none_is_computed_twice() -> None:
    first = table(7)
    long = table(131)
    assert long.data_ptr() != first.data_ptr()
    short = table(5)
    assert short.data_ptr() == long.data_ptr()
    for found in (first, short, long):
        expected = reference_positions(range(len(found)), 15)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_each_width_and_type_has_its_own_table() -> None:
    double, single, half = table(5), table(5, dtype=torch.float32), table(5, dtype=torch.bfloat16)
    assert (double.dtype, single.dtype, half.dtype) == (
        torch.float64,
        torch.float32,
        torch.bfloat16,
    )
    torch.testing.assert_close(table(5, 16).shape, torch.Size((5, 16)))
    torch.testing.assert_close(single, double.float(), rtol=0, atol=0)


def test_a_table_made_in_inference_mode_serves_training() -> None:
    fusion = GatedRecurrentFusion({"a": 3, "b": 3}, embed_dim=15, num_heads=3)
    features = {"a": torch.randn(2, 5, 3), "b": torch.randn(2, 7, 3)}
    with torch.inference_mode():
        fusion(features)
    assert not table(5, dtype=torch.float32).is_inference()
    fusion(features).sum().backward()


def test_what_stands_for_a_tensor_is_not_kept() -> None:
    with FakeTensorMode():
        table(5)
    assert type(table(5)) is torch.Tensor


def test_a_transform_of_a_function_leaves_nothing_behind() -> None:
    torch.func.functionalize(lambda x: x * table(5))(torch.ones(5, 15, dtype=torch.float64))
    assert not torch._is_functional_tensor(table(5))
    torch.testing.assert_close(table(5), reference_positions(range(5), 15), rtol=0, atol=1e-12)


def test_a_module_holds_no_table() -> None:
    fusion = GatedRecurrentFusion({"a": 3, "b": 3}, embed_dim=15, num_heads=3)
    before = copy.deepcopy(fusion.state_dict())
    fusion({"a": torch.randn(2, 500, 3), "b": torch.randn(2, 7, 3)})
    assert fusion.state_dict().keys() == before.keys()
    assert {name for name, _ in fusion.named_buffers()} == {"scales.a.rms", "scales.b.rms"}


def test_a_table_of_the_same_length_is_the_same_table() -> None:
    assert table(7).data_ptr() == table(7).data_ptr()


@pytest.mark.parametrize("traced", [False, True])
def test_a_table_is_made_where_and_as_told(traced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: traced)
    made = sinusoidal_positions(7, 15, device=torch.device("meta"), dtype=torch.bfloat16)
    assert made.device.type == "meta"
    assert made.dtype == torch.bfloat16
    assert made.shape == (7, 15)
    assert bool(_positions._tables) is not traced


@pytest.mark.parametrize(
    ("device", "exact"),
    [("mps", torch.float32), ("cuda", torch.float64), ("cpu", torch.float64)],
)
def test_angles_are_as_exact_as_the_device_can(
    device: str, exact: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, torch.dtype]] = []
    arange = torch.arange

    def on_the_cpu(*numbers: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        asked.append((device.type, dtype))
        return arange(*numbers, dtype=dtype)

    monkeypatch.setattr(torch, "arange", on_the_cpu)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    sinusoidal_positions(7, 15, device=torch.device(device), dtype=torch.float32)
    assert asked == [(device, exact)] * 2


@pytest.mark.parametrize(("device", "kept"), [("cuda", False), ("cpu", True)])
def test_what_a_cuda_graph_owns_is_not_kept(
    device: str, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = torch.zeros(7, 15)
    monkeypatch.setattr(_positions, "_compute", lambda *_: made)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    sinusoidal_positions(7, 15, device=torch.device(device), dtype=torch.float32)
    assert bool(_positions._tables) is kept
