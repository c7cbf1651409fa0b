"""Sinusoidal position encoding (Vaswani et al. 2017, section 3.5), for any length and width."""

import torch
from torch import Tensor

from grf_fusion._checks.tracing import is_captured, is_transformed

# The longest table for each width, device and dtype, shared by all modules.
_tables: dict[tuple[int, torch.device, torch.dtype], Tensor] = {}


def sinusoidal_positions(
    length: int, dim: int, *, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Encode the positions 0 to ``length - 1``, ``(length, dim)``.

    ``PE[t, 2i] = sin(t / 10000^(2i/dim))`` and ``PE[t, 2i + 1] = cos(t / 10000^(2i/dim))``; with an
    odd ``dim`` the last column is a sine. In eager mode the table is computed once.
    """
    if torch.compiler.is_compiling() or is_transformed():
        return _compute(length, dim, device, dtype)
    table = _tables.get((dim, device, dtype))
    if table is None or len(table) < length:
        # An inference tensor could not be used in training.
        with torch.inference_mode(mode=False):
            table = _compute(length, dim, device, dtype)
        # Other calls cannot use a fake tensor or memory that a CUDA graph owns.
        if type(table) is Tensor and not is_captured(device):
            _tables[dim, device, dtype] = table
    return table[:length]


def _compute(length: int, dim: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    # float32 angles are off by 5e-4 at position 8,192, but Apple's mps device has no float64.
    exact = torch.float32 if device.type == "mps" else torch.float64
    steps = torch.arange(length, device=device, dtype=exact)
    columns = torch.arange(0, dim, 2, device=device, dtype=exact)
    angles = steps.unsqueeze(-1) * torch.pow(10000.0, -columns / dim)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)[:, :dim].to(dtype)
