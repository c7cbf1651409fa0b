"""What becomes of a state that fits: the same tensors, with masks as bool."""

import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from grf_fusion import FusionState, FusionTrace, GatedRecurrentFusion
from grf_fusion._chain.state import check_state


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


@pytest.mark.cpu_only
@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_what_the_first_version_saved_loads(how: str) -> None:
    """Both were written by 0.1.0, which had the classes in another module."""
    file = Path(__file__).parent / "golden" / "state_0.1.0"
    if how == "pickle":
        kept = pickle.loads(file.with_name(f"{file.name}.pickle").read_bytes())  # noqa: S301 - our own
    else:
        kept = torch.load(file.with_name(f"{file.name}.pt"), weights_only=True)
    state, trace = kept["state"], kept["trace"]
    assert (type(state), type(trace)) == (FusionState, FusionTrace)
    present = torch.tensor([[True, False], [True, True], [False, False]])
    wanted = FusionState(
        torch.tensor([[1.5, -2.0], [0.25, 3.0], [0.0, 0.0]]),
        torch.tensor([[True], [True], [False]]),
        present,
    )
    assert all(torch.equal(a, b) for a, b in zip(state, wanted, strict=True))
    assert torch.equal(trace.contexts, torch.arange(12.0).reshape(3, 2, 2))
    assert torch.equal(trace.gates, torch.full((3, 1, 2), 0.5))
    assert torch.equal(trace.present, present)
    assert trace[3:] == (("a", "b"), None, None)


@pytest.mark.parametrize("kind", [FusionState, FusionTrace])
def test_pickles_name_the_public_module(kind: type) -> None:
    """So that the next move of a file needs no shim."""
    text = pickle.dumps(kind(*[None] * 4) if kind is FusionTrace else kind(*[None] * 3))
    assert b"grf_fusion\x94" in text
    assert b"grf_fusion." not in text


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
