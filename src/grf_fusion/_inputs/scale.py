"""One scale per modality, so that the units of its features do not matter."""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, linalg, nn
from typing_extensions import override

from grf_fusion._checks.tracing import can_read, is_transformed

vector_norm = cast("Callable[..., Tensor]", linalg.vector_norm)  # pyright: ignore[reportUnknownMemberType]


class FeatureScale(nn.Module):
    """Divide the features of a modality by their root mean square, measured once.

    The first training batch that has the modality sets the scale, over all real steps and features
    of the batch; later batches and evaluation use the same number. Features that are a hundred
    times larger therefore give the same result. Unlike a norm per step, the scale keeps the
    relative size of steps. Before the first training batch the features pass unchanged.

    The scale is set once instead of being a running average. Recomputing a training step in the
    backward pass therefore gives the same numbers.
    """

    rms: Tensor

    def __init__(self, *, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        super().__init__()
        # 0 means not measured yet. The buffer has one axis because a compiler treats a float64
        # scalar tensor as a Python constant and drops writes to it.
        self.register_buffer("rms", torch.zeros(1, device=device, dtype=dtype))

    @override
    def forward(self, features: Tensor, real: Tensor | None) -> Tensor:
        """Return the scaled features.

        Shape:
            - features: ``(batch, time, d_k)`` or ``(rows, d_k)``, 0 where ``real`` is False
            - real: ``(batch, time)`` bool, ``None`` for all
            - output: as ``features``
        """
        if self.training:
            with torch.no_grad():
                self._measure(features, real)
        # A scalar does not widen the features' dtype under autocast; a tensor with an axis would.
        return features / (self.rms + (self.rms == 0)).squeeze(0)

    def _measure(self, features: Tensor, real: Tensor | None) -> None:
        # Only on the CPU is the number read without a host-device sync. On other devices the scale
        # is measured at every call, with as few kernels as possible, and ignored once it is set.
        known = can_read(self.rms) and self.rms.device.type == "cpu" and bool(self.rms != 0)
        if known or is_transformed():
            return
        wide = torch.promote_types(features.dtype, torch.float32)
        # Two norms, because with a single one Inductor compiles an extra graph for small batches.
        norms = vector_norm(features, dim=tuple(range(1, features.ndim)), dtype=wide)
        factor = max(1, features.numel()) ** -0.5
        if real is not None:
            # Padded steps are 0, so that they count only in the number of features.
            factor = (real.sum(dtype=wide) * features.shape[-1]).clamp(min=1).rsqrt()
        usable = (vector_norm(norms) * factor).to(self.rms.dtype).nan_to_num(posinf=0.0)
        # Not `masked_fill_`: with a tensor as its value it forces a host-device sync.
        self.rms.add_(usable * (self.rms == 0))
