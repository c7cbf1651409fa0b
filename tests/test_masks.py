"""The mask convention and its helpers, value by value."""

import pytest
import torch
from torch import Tensor, vmap

from grf_fusion import mask_from_lengths
from grf_fusion._inputs import lengths as _lengths
from grf_fusion._inputs.lengths import known_lengths, send
from grf_fusion._inputs.masks import (
    as_mask,
    fill_masked,
    masked_mean,
    none_if_full,
    unmask_empty,
)

NAN, INF = float("nan"), float("inf")
HERE, META = torch.get_default_device(), torch.device("meta")
MASK = torch.tensor([[True, False, True], [False, False, False]])
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_lengths_of_every_integer_type(dtype: torch.dtype) -> None:
    mask = mask_from_lengths(torch.tensor([0, 2, 3], dtype=dtype), 3)
    assert mask.tolist() == [[False] * 3, [True, True, False], [True] * 3]
    assert mask.dtype == torch.bool


def test_the_shortest_mask_has_one_step() -> None:
    assert mask_from_lengths(torch.tensor([1, 0]), 1).tolist() == [[True], [False]]


def test_a_mask_lies_where_its_lengths_lie() -> None:
    mask = mask_from_lengths(torch.tensor([9], device="meta"), 3)
    assert mask.device == META
    assert mask.shape == (1, 3)


@pytest.mark.parametrize("dtype", [torch.bool, *INTEGERS])
def test_masks_of_every_type_mean_the_same(dtype: torch.dtype) -> None:
    mask = as_mask("Who", "what", MASK.to(dtype), HERE, batch=2, time=None)
    assert mask.dtype == torch.bool
    assert torch.equal(mask, MASK)


def test_values_are_not_read_where_there_are_none() -> None:
    mask = as_mask("Who", "what", torch.ones(2, dtype=torch.int8, device="meta"), META, batch=2)
    assert mask.device == META
    assert mask.dtype == torch.bool


def values() -> Tensor:
    return torch.tensor([[[1.0, 2.0], [NAN, INF], [4.0, 8.0]], [[NAN, INF]] * 3])


def test_masked_values_are_0_and_have_no_gradient() -> None:
    given = values().requires_grad_()
    filled = fill_masked(given, MASK)
    assert filled.tolist() == [[[1.0, 2.0], [0.0, 0.0], [4.0, 8.0]], [[0.0, 0.0]] * 3]
    filled.sum().backward()
    assert torch.equal(given.grad, MASK.unsqueeze(-1).expand(2, 3, 2).float())


def test_without_a_mask_all_is_real() -> None:
    given = torch.arange(12.0).view(2, 3, 2)
    assert fill_masked(given, None) is given
    assert masked_mean(given, None).tolist() == [[2.0, 3.0], [8.0, 9.0]]


def test_the_mean_is_that_of_the_real_steps_and_0_of_none() -> None:
    given = torch.cat((values(), torch.tensor([[[NAN, 1.0], [5.0, 7.0], [INF, 1.0]]])))
    mask = torch.cat((MASK, torch.tensor([[False, True, False]])))
    assert masked_mean(given, mask).tolist() == [[2.5, 5.0], [0.0, 0.0], [5.0, 7.0]]


@pytest.mark.cpu_only
def test_a_full_mask_is_forgotten_and_no_other() -> None:
    full = torch.ones(2, 3, dtype=torch.bool)
    assert none_if_full(full) is None
    assert none_if_full(None) is None
    assert none_if_full(MASK) is MASK


def test_a_mask_is_kept_where_looking_would_cost() -> None:
    full = torch.ones(2, 3, dtype=torch.bool)
    elsewhere = full.to("meta")
    assert none_if_full(elsewhere) is elsewhere

    class Wrapped(Tensor):
        """A tensor that is not known to be an ordinary one."""

    wrapped = full.as_subclass(Wrapped)
    assert none_if_full(wrapped) is wrapped


def test_a_mask_is_kept_in_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    full = torch.ones(2, 3, dtype=torch.bool)
    assert none_if_full(full) is full


def test_a_mask_is_kept_in_a_transformation() -> None:
    kept: list[bool] = []

    def look(mask: Tensor) -> Tensor:
        kept.append(none_if_full(mask) is mask)
        return mask

    vmap(look)(torch.ones(2, 3, dtype=torch.bool))
    assert kept == [True]


def test_rows_without_a_real_step_become_real() -> None:
    assert unmask_empty(MASK).tolist() == [[True, False, True], [True, True, True]]
    both = torch.stack((MASK, ~MASK))
    assert unmask_empty(both).tolist() == [
        [[True, False, True], [True, True, True]],
        [[False, True, False], [True, True, True]],
    ]


class FakeHost:
    """A tensor that notes how it was made and where it is copied."""

    def __init__(self, _numbers: object, **made: object) -> None:
        self.made = made

    def to(self, device: torch.device, *, non_blocking: bool) -> "FakeHost":
        self.made |= {"to": device, "non_blocking": non_blocking}
        return self


@pytest.mark.parametrize("device", ["cuda", "mps", "cpu"])
def test_numbers_are_sent_without_waiting(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU reads pinned memory while the host goes on; other memory may be freed before."""
    monkeypatch.setattr(_lengths.torch, "tensor", FakeHost)
    place, pinned = torch.device(device), device == "cuda"
    found = send([3], place, torch.int32).made  # type: ignore[attr-defined]
    assert found == {
        "dtype": torch.int32,
        "device": "cpu",
        "pin_memory": pinned,
        "to": place,
        "non_blocking": pinned,
    }


def test_numbers_are_sent_whatever_the_default_device_is() -> None:
    with META:
        assert send([3, 1], torch.device("cpu")).tolist() == [3, 1]
        assert send([3, 1], META).is_meta


@pytest.mark.parametrize("place", [META, "meta"])
def test_a_mask_is_made_on_the_given_device(place: torch.device | str) -> None:
    mask = mask_from_lengths(torch.tensor([2, 2]), 2, device=place)
    assert (mask.device, mask.shape) == (META, (2, 2))
    unread = vmap(lambda lengths: mask_from_lengths(lengths, 3, device=place))
    assert unread(torch.tensor([[1, 2]])).device == META


def test_the_lengths_of_a_mask_are_noted() -> None:
    known = known_lengths(mask_from_lengths(torch.tensor([1, 0]), 2))
    assert known == ((1, 0), True)
    assert known.exact is True


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_mean_of_many_steps_does_not_overflow_and_keeps_its_dtype(dtype: torch.dtype) -> None:
    values = torch.full((1, 4000, 1), 100.0, dtype=dtype)
    mask = mask_from_lengths(torch.tensor([3999]), 4000)
    mean = masked_mean(values, mask)
    assert mean.dtype == dtype
    assert mean.item() == 100.0
