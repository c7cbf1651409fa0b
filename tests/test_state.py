"""What becomes of a state that fits: the same tensors, with masks as bool."""

from typing import Any

import pytest
import torch

from grf_fusion import FusionState
from grf_fusion._state import check_state


@pytest.mark.parametrize(
    ("mode", "shape", "steps"),
    [
        ("pooled", (2, 5), 1),
        ("first_sequence", (2, 5), 1),
        ("first_sequence", (2, 4, 5), 4),
        ("sequence", (2, 4, 5), 4),
    ],
)
@pytest.mark.parametrize("dtype", [torch.bool, torch.int64])
def test_a_state_that_fits_is_returned(
    mode: str, shape: tuple[int, ...], steps: int, dtype: torch.dtype
) -> None:
    options: dict[str, Any] = {"context": mode, "dim": 5, "modalities": 3, "like": torch.zeros(1)}
    mask = torch.tensor([[True] * steps, [False] * steps])
    present = torch.tensor([[True, False, True], [False, False, False]])
    state = FusionState(torch.randn(shape), mask.to(dtype), present.to(dtype))
    checked = check_state("Who", state, **options)
    assert isinstance(checked, FusionState)
    assert checked.context is state.context
    for ours, wanted in ((checked.mask, mask), (checked.present, present)):
        assert ours.dtype == torch.bool
        assert torch.equal(ours, wanted)
