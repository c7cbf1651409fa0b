"""Real steps as rows without any padding, laid out without a host-device sync.

This is the layout for GPUs. Every product, norm and activation runs on real steps only, and
attention with many queries uses PyTorch's kernel for unequal lengths where there is one. The
numbers of rows come from the host, see `mask_from_lengths`.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from grf_fusion._checks.tracing import is_transformed
from grf_fusion._eager.formula import Formula
from grf_fusion._eager.pooling import Pooled, mean_and_max
from grf_fusion._inputs.lengths import known_lengths, send
from grf_fusion._inputs.masks import WIDER, fill_masked, unmask_empty

# Laying out rows took the host of an H200 about a quarter of a millisecond. A training step saves
# as much if this many numbers are skipped.
WORTH_LAUNCHES = 2**22
# Limits of `torch.nn.attention.varlen`.
KERNEL_TYPES = (torch.float16, torch.bfloat16)
WIDEST_HEAD = 256


class Rows(NamedTuple):
    """Real steps as rows ``(rows, dim)``, sample by sample, with at least one row per sample.

    Attributes:
        place: ``(rows,)``: position of each row in the flattened ``(batch time)``.
        sample: ``(rows,)``: sample of each row.
        step: ``(rows,)``: index of each row along time.
        offsets: ``(batch + 1,)`` int32: the first row of each sample, then the number of rows.
        longest: Largest number of rows of a sample.
        mask: ``(batch, time)`` bool: real steps; ``None`` if every sample is known to have one, so
            that all rows are real steps.
        shape: ``(batch, time)``.
    """

    place: Tensor
    sample: Tensor
    step: Tensor
    offsets: Tensor
    longest: int
    mask: Tensor | None
    shape: tuple[int, int]
    one_step: bool = False

    def pack(self, steps: Tensor) -> Tensor:
        """Return the rows of ``(batch, time, dim)``."""
        if is_transformed():
            return steps.flatten(0, 1).index_select(0, self.place)
        # The gradient of `index_select` adds row by row, although no place occurs twice.
        return _Pack.call(steps, self.place)

    def unpack(self, rows: Tensor) -> Tensor:
        """Return ``(batch, time, dim)`` with 0 in padding."""
        return scatter(self.fill(rows), self.place, self.shape)

    def fill(self, rows: Tensor) -> Tensor:
        """Replace the rows that are no real step by 0."""
        if self.mask is None:
            return rows
        real = self.mask.flatten().index_select(0, self.place)
        return rows.masked_fill(~real.reshape(-1, *[1] * (rows.ndim - 1)), 0.0)

    def take(self, steps: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the rows of ``(batch, time, dim)``, 0 where the mask is False, and the mask."""
        return self.fill(self.pack(steps)), self.mask

    def pool(self, rows: Tensor) -> Tensor:
        """Mean and maximum over the rows of each sample, ``(batch, 2 * dim)``."""
        return mean_and_max(rows, self)

    def reduce(self, steps: Tensor, *, first: bool) -> Pooled:
        """Return mean and maximum of the rows of each sample, and the row of the maximum."""
        start, end = self.offsets[:-1, None], self.offsets[1:, None]
        place = start + torch.arange(self.longest, device=steps.device)
        # Past its end, a sample repeats its last row, so that the maximum stays the same.
        padded = steps.index_select(0, torch.minimum(place, end - 1).flatten())
        padded = padded.reshape(*place.shape, steps.shape[1])
        real = fill_masked(padded, place < end)
        mean = (real.sum(dim=1, dtype=WIDER.get(steps.dtype)) / (end - start)).to(steps.dtype)
        if not first:
            return Pooled(mean, padded.amax(dim=1), None)
        largest, index = padded.max(dim=1)
        return Pooled(mean, largest, start + index)

    def gradient(self, mean: Tensor, largest: Tensor, first: Tensor) -> Tensor:
        """Return the gradient of the rows from those of mean and maximum."""
        share = mean / self.offsets.diff().unsqueeze(1)
        return share.index_select(0, self.sample).scatter_(0, first, share + largest)

    def spread(self, values: Tensor, _rows: Tensor) -> Tensor:
        """Give each row the value of its sample, ``(batch, 1, ...)``."""
        if is_transformed():
            return values.squeeze(1).index_select(0, self.sample)
        return _Spread.call(values, self.sample, self.place, self.shape)


class _Pack(Formula):
    @override
    @staticmethod
    def forward(ctx: Any, steps: Tensor, place: Tensor) -> Tensor:
        ctx.save_for_backward(place)
        ctx.shape = steps.shape[:2]
        return steps.flatten(0, 1).index_select(0, place)

    @override
    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (place,) = ctx.saved_tensors
        return scatter(gradients[0], place, ctx.shape), None


class _Spread(Formula):
    """Give each row the value of its sample; the gradient sums in a deterministic order."""

    @override
    @staticmethod
    def forward(
        ctx: Any, values: Tensor, sample: Tensor, place: Tensor, shape: tuple[int, int]
    ) -> Tensor:
        ctx.save_for_backward(place)
        ctx.shape = shape
        return values.squeeze(1).index_select(0, sample)

    @override
    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (place,) = ctx.saved_tensors
        steps = scatter(gradients[0], place, ctx.shape)
        return steps.sum(dim=1, keepdim=True), None, None, None


def scatter(rows: Tensor, place: Tensor, shape: tuple[int, int]) -> Tensor:
    """Write rows to their places in ``(batch, time, ...)``, with 0 in all other places."""
    batch, time = shape
    steps = rows.new_zeros(batch * time, *rows.shape[1:]).index_copy_(0, place, rows)
    return steps.reshape(batch, time, *rows.shape[1:])


def attend_rows(
    q: Tensor, k: Tensor, v: Tensor, queries: Rows, keys: Rows, *, dropout: float
) -> Tensor:
    """Attend as `attend` does, for queries and keys ``(rows, heads, head_dim)``."""
    kernel = varlen_kernel(q, dropout)
    if kernel is None:
        padded = queries.unpack(q), keys.unpack(k), keys.unpack(v)
        read = queries.pack(_attend_padded(*padded, keys, dropout))
    else:
        offsets, longest = (queries.offsets, keys.offsets), (queries.longest, keys.longest)
        read = kernel(q, k, v, *offsets, *longest)
    if keys.mask is None:
        return read
    empty = ~keys.mask.any(dim=1)
    return read.masked_fill(empty.index_select(0, queries.sample)[:, None, None], 0.0)


def _attend_padded(q: Tensor, k: Tensor, v: Tensor, keys: Rows, dropout: float) -> Tensor:
    batch, time = keys.shape
    mask = keys.mask
    if mask is None:
        mask = torch.zeros(batch * time, dtype=torch.bool, device=k.device)
        mask = mask.index_fill_(0, keys.place, True).view(batch, time)  # noqa: FBT003
    return attend_dense(q, k, v, unmask_empty(mask)[:, None, None, :], dropout)


def attend_dense(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, dropout: float) -> Tensor:
    """Attend with PyTorch's kernel, for queries and keys ``(batch, time, heads, head_dim)``."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    read = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, dropout_p=dropout)
    return read.transpose(1, 2)


def varlen_kernel(q: Tensor, dropout: float) -> Callable[..., Tensor] | None:
    """Return PyTorch's attention for sequences of unequal lengths, if it supports these queries."""
    if dropout > 0.0 or q.device.type != "cuda" or q.dtype not in KERNEL_TYPES:
        return None
    fits = q.shape[-1] % 8 == 0 and q.shape[-1] <= WIDEST_HEAD
    if not fits or is_transformed() or not torch.backends.cuda.flash_sdp_enabled():
        return None
    return _varlen() if torch.cuda.get_device_capability(q.device) >= (8, 0) else None


@functools.cache
def _varlen() -> Callable[..., Tensor] | None:
    try:
        # The oldest PyTorch that we support does not have this module.
        from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415
    except ImportError:
        return None
    return cast("Callable[..., Tensor]", varlen_attn)


def lay_out_rows(steps: Tensor, mask: Tensor | None) -> Rows:
    """Lay out a sequence ``(batch, time, dim)``; a mask of unknown lengths forces a sync."""
    batch, time, _ = steps.shape
    device = steps.device
    known = None if mask is None else known_lengths(mask)
    order: Tensor | None = None
    if mask is None:
        host, exact = (time,) * batch, True
    elif known is not None:
        host, exact = known
    else:
        host = tuple(cast("list[int]", mask.sum(dim=1).tolist()))  # pyright: ignore[reportUnknownMemberType]
        exact = True
        # Real steps come first and keep their order.
        order = mask.sort(dim=1, descending=True, stable=True).indices
    ends = list(itertools.accumulate((max(1, length) for length in host), initial=0))
    offsets = send(ends, device, torch.int32)
    row = torch.arange(ends[-1], dtype=torch.int32, device=device)
    sample = torch.searchsorted(offsets[1:], row, right=True)
    step = row - offsets.index_select(0, sample)
    if order is not None:
        step = order[sample, step]
    return Rows(
        place=torch.add(step, sample, alpha=time),
        sample=sample,
        step=step,
        offsets=offsets,
        longest=max((1, *host)),
        mask=None if exact and 0 not in host else mask,
        shape=(batch, time),
    )


def worth_rows(masks: Sequence[Tensor], width: int, *, share: float) -> bool:
    """Whether the host knows all lengths, and more than this share of the steps is padded.

    The masks are not read, which would force a host-device sync. A step has ``width`` numbers.
    """
    real = 0
    for mask in masks:
        known = known_lengths(mask)
        if known is None:
            return False
        real += sum(known.host)
    steps = sum(mask.numel() for mask in masks)
    return real < (1 - share) * steps and (steps - real) * width >= WORTH_LAUNCHES
