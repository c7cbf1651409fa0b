"""What becomes of a state that fits: the same tensors, with masks as bool."""

import io
from typing import Any

import pytest
import torch

from grf_fusion import FusionState, FusionTrace, GatedRecurrentFusion
from grf_fusion._state import check_state


def test_a_trace_can_be_saved() -> None:
    """As `torch.load` reads by default: it runs no code."""
    fusion = GatedRecurrentFusion({"text": 3, "audio": 2}, embed_dim=4, num_heads=2)
    _, trace = fusion({"text": torch.randn(2, 5, 3)}, return_trace=True)
    trace = trace._replace(contexts=trace.contexts.detach(), gates=trace.gates.detach())
    file = io.BytesIO()
    torch.save(trace, file)
    file.seek(0)
    again = torch.load(file, weights_only=True)
    assert type(again) is FusionTrace
    assert again.order == trace.order
    assert all(torch.equal(a, b) for a, b in zip(again[:3], trace[:3], strict=True))


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
