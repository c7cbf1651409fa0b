"""One scale per modality, so that the units of its features do not matter."""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, linalg, nn
from typing_extensions import override

from grf_fusion._checks.tracing import is_transformed
from grf_fusion._inputs.masks import can_read

vector_norm = cast("Callable[..., Tensor]", linalg.vector_norm)  # pyright: ignore[reportUnknownMemberType]


class FeatureScale(nn.Module):
    """Divide the features of a modality by their root mean square, measured once.

    The first training batch that has the modality sets the scale, over all real steps and features
    of the batch; later batches and evaluation use the same number. So features that are a hundred
    times larger give the same result, and the relative size of single steps is kept, which a norm
    per step would remove. Before the first training batch the features pass unchanged.

    The scale is one number that is set once, and not a running average: a training step that is
    recomputed for the gradient gives the same numbers.
    """

    rms: Tensor

    def __init__(self, *, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        super().__init__()
        # 0 until it is measured. With an axis: a compiler takes a float64 number without one for a
        # constant of Python's, and drops what is written to it.
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
            self._measure(features.detach(), real)
        # Without its axis here, so that it does not widen the features' dtype under autocast.
        return features / (self.rms + (self.rms == 0)).squeeze(0)

    @torch.no_grad()
    def _measure(self, features: Tensor, real: Tensor | None) -> None:
        # Reading the number is free on the CPU only; elsewhere it is measured again and ignored,
        # with as few kernels as possible.
        if self._is_known() or is_transformed():
            return
        wide = torch.promote_types(features.dtype, torch.float32)
        # In two steps: in one, Inductor makes a graph of its own for small batches.
        norms = vector_norm(features, dim=tuple(range(1, features.ndim)), dtype=wide)
        if real is None:
            norm = vector_norm(norms) * max(1, features.numel()) ** -0.5
        else:
            # Padding is 0 and counts in neither.
            norm = vector_norm(norms) * (real.sum() * features.shape[-1]).clamp(min=1).rsqrt()
        usable = norm.to(self.rms.dtype).nan_to_num(0.0, 0.0, 0.0)
        self.rms.masked_fill_(self.rms == 0, usable)

    def _is_known(self) -> bool:
        return can_read(self.rms) and self.rms.device.type == "cpu" and bool(self.rms != 0)
