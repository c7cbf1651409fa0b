"""One scale per modality, so that the units of its features do not matter."""

import torch
from torch import Tensor, nn
from typing_extensions import override

from grf_fusion._checks.tracing import is_transformed
from grf_fusion._inputs.masks import can_read


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
        rms = self._measured(features.detach(), real) if self.training else self.rms
        # A scalar does not widen the features' dtype under autocast; a tensor with an axis would.
        return features / rms.masked_fill(rms == 0, 1.0).squeeze(0)

    @torch.no_grad()
    def _measured(self, features: Tensor, real: Tensor | None) -> Tensor:
        # Only on the CPU is the number read without a host-device sync. On other devices the scale
        # is measured at every call and ignored once it is set.
        if self._is_known() or is_transformed():
            return self.rms
        wide = torch.promote_types(features.dtype, torch.float32)
        # One mean over all axes would make Inductor recompile for small batches.
        mean = features.to(wide).square().mean(dim=tuple(range(1, features.ndim))).mean()
        if real is not None:
            # Padded steps are 0 and must not count in the mean.
            mean = mean * real.numel() / real.sum().clamp(min=1)
        found = mean.sqrt().to(self.rms.dtype).unsqueeze(0)
        usable = (self.rms == 0) & found.isfinite()
        rms = torch.where(usable, found, self.rms)
        self.rms.copy_(rms)
        return rms

    def _is_known(self) -> bool:
        return can_read(self.rms) and self.rms.device.type == "cpu" and bool(self.rms != 0)
