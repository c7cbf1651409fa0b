"""Sinusoidal position encoding (Vaswani et al. 2017, section 3.5), for any length and width."""

import torch
from torch import Tensor


def sinusoidal_positions(
    length: int, dim: int, *, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Encode the positions 0 to ``length - 1``.

    ``PE[t, 2i] = sin(t / 10000^(2i/dim))`` and ``PE[t, 2i + 1] = cos(t / 10000^(2i/dim))``; with an
    odd ``dim`` the last column is a sine.

    Args:
        length: Number of positions.
        dim: Width of the encoding.
        device: Where to make it.
        dtype: What to return.

    Returns:
        The table, ``(length, dim)``.
    """
    # float32 angles would be wrong by 5e-4 at position 8,192; Apple's mps device has no float64.
    exact = torch.float32 if device.type == "mps" else torch.float64
    steps = torch.arange(length, device=device, dtype=exact)
    columns = torch.arange(0, dim, 2, device=device, dtype=exact)
    angles = steps.unsqueeze(-1) * torch.pow(10000.0, -columns / dim)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)[:, :dim].to(dtype)
