"""The cost model of docs/cost.md against what modules hold, compute and keep."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from grf_fusion import GatedRecurrentFusion

BATCH, FEATURES = 8, 16
SIZES = [(4, 64, 64, 1), (4, 64, 64, 4), (8, 64, 64, 1), (4, 256, 64, 4), (4, 64, 128, 2)]
FORMS: list[dict[str, Any]] = [{}, {"self_attention": True}, {"checkpoint": True}]
TOLERANCE = 0.15


def make(n: int, time: int, dim: int, layers: int, options: dict[str, Any]) -> Any:
    widths = {f"m{k}": FEATURES for k in range(n)}
    fusion = GatedRecurrentFusion(
        widths, embed_dim=dim, num_heads=4, num_layers=layers, form="residual", **options
    )
    return fusion, {name: torch.randn(BATCH, time, FEATURES) for name in widths}


each_size = pytest.mark.parametrize(
    ("size", "options"), list(itertools.product(SIZES, FORMS)), ids=str
)


@each_size
def test_parameters(size: tuple[int, int, int, int], options: dict[str, Any]) -> None:
    n, _, dim, layers = size
    fusion, _ = make(*size, options)
    found = sum(parameter.numel() for parameter in fusion.parameters())
    a_layer = 28 if options.get("self_attention") else 22
    wanted = (a_layer * layers + 4) * dim**2 + n * (FEATURES + 1) * dim
    assert found == pytest.approx(wanted, rel=TOLERANCE)


@each_size
def test_operations(size: tuple[int, int, int, int], options: dict[str, Any]) -> None:
    n, time, dim, layers = size
    fusion, features = make(*size, options)
    # It hangs hooks on what needs a gradient.
    fusion.requires_grad_(requires_grad=False)
    # The counter knows the operations that attention is made of, not the CPU's fused one.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        fusion(features)
    a_step = 12 * dim**2 + 2 * time * dim if options.get("self_attention") else 8 * dim**2
    wanted = n * BATCH * time * layers * a_step
    assert counter.get_total_flops() / 2 == pytest.approx(wanted, rel=TOLERANCE)


@each_size
def test_numbers_kept(size: tuple[int, int, int, int], options: dict[str, Any]) -> None:
    n, time, dim, layers = size
    fusion, features = make(*size, options)
    own = {parameter.untyped_storage().data_ptr() for parameter in fusion.parameters()}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        # Or the next tensor could lie in the same place.
        alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        fusion(features)
    a_step = 10.5 * layers + 1
    if options.get("checkpoint"):
        a_step = layers + 0.3
    elif options.get("self_attention"):
        a_step = 17 * layers
    assert sum(kept.values()) / 4 == pytest.approx(n * BATCH * time * dim * a_step, rel=TOLERANCE)
