"""One scale per modality, so that the units of its features do not matter."""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, linalg, nn
from torch import distributed as dist
from torch.utils.weak import WeakTensorKeyDictionary
from typing_extensions import override

from grf_fusion._checks.tracing import can_read, is_captured, is_transformed, version_of

# Devices whose memory Python reads without a host-device sync, and those that copy to pinned memory
# without waiting.
HOST, SENDING = ("cpu",), ("cuda",)
# Copies of scales in host memory, each with the version of the scale.
_copies = cast("dict[Tensor, tuple[Tensor, object]]", WeakTensorKeyDictionary())
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
        copy = host_copy(self.rms)
        if copy is not None and bool(copy != 0):
            # A copy is kept for the gradient of the features, so that the scale may be written to.
            divisor = self.rms.clone() if features.requires_grad else self.rms
        else:
            if self.training and not is_transformed():
                with torch.no_grad():
                    self._measure(features, real)
                send_to_host(self.rms, copy)
            divisor = self.rms + (self.rms == 0)
        # A scalar does not widen the features' dtype under autocast; a tensor with an axis would.
        return features / divisor.squeeze(0)

    def _measure(self, features: Tensor, real: Tensor | None) -> None:
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


def host_copy(scale: Tensor) -> Tensor | None:
    """Return the scale in host memory, 0 as long as it has not arrived there.

    ``None`` if the scale was never sent, has changed since, may change unnoticed, or is not a plain
    tensor.
    """
    if type(scale) is not Tensor or is_transformed() or not can_read(scale):
        return None
    if scale.device.type in HOST:
        return scale
    if is_distributed():
        return None
    copy, version = _copies.get(scale, (None, None))
    return None if version is None or version != version_of(scale) else copy


def is_distributed() -> bool:
    """Whether DistributedDataParallel may write to buffers, which does not change their version."""
    return dist.is_available() and dist.is_initialized()


def send_to_host(scale: Tensor, copy: Tensor | None) -> None:
    """Copy the scale to host memory without waiting, into ``copy`` if there is one.

    The host then learns that the scale is set, and later batches are not measured. Until the copy
    has arrived, measuring changes nothing. During the capture of a CUDA graph nothing is sent.
    """
    if scale.device.type not in SENDING or not can_read(scale) or is_captured(scale.device):
        return
    # PyTorch counts no changes of inference tensors, and subclasses may have no address.
    if type(scale) is not Tensor or scale.is_inference() or is_distributed():
        return
    with torch.inference_mode(mode=False):
        if copy is None:
            pinned = scale.device.type == "cuda"
            copy = torch.zeros(1, dtype=scale.dtype, device="cpu", pin_memory=pinned)
        copy.copy_(scale, non_blocking=True)
    _copies[scale] = copy, version_of(scale)
