"""How the steps of a batch of sequences lie in memory, padded or packed, and what depends on it."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from grf_fusion._masks import fill_masked, unmask_empty

# Up to this length a call of the attention kernel for each sample costs more than padding saves.
SHORT = 64
# Packing copies every row twice; it pays once this share of the steps is padding.
WORTH_PACKING = 0.1


class Padded(NamedTuple):
    """Steps as rows ``(batch, time, dim)``; padding is computed too, and ignored.

    Attributes:
        mask: ``(batch, time)`` bool: real steps, ``None`` for all.
        one_step: Whether time is known to be 1; while tracing, only by construction.
    """

    mask: Tensor | None
    one_step: bool = False

    def unpack(self, rows: Tensor) -> Tensor:
        """Return ``(batch, time, dim)`` with 0 in padding."""
        return fill_masked(rows, self.mask)

    def spread(self, values: Tensor, rows: Tensor) -> Tensor:
        """Give each row the value of its sample, ``(batch, 1, ...)``."""
        return values.expand(-1, rows.shape[1], *values.shape[2:])


class Packed(NamedTuple):
    """Real steps only, sample after sample, as rows ``(rows, dim)``.

    Attributes:
        lengths: Number of real steps of each sample.
        place: ``(rows,)``: where each row stands in ``(batch time)``.
        sample: ``(rows,)``: the sample of each row.
        shape: ``(batch, time)``.
    """

    lengths: tuple[int, ...]
    place: Tensor
    sample: Tensor
    shape: tuple[int, int]
    one_step: bool = False

    def pack(self, steps: Tensor) -> Tensor:
        """Return the rows."""
        return steps.flatten(0, 1).index_select(0, self.place)

    def unpack(self, rows: Tensor) -> Tensor:
        """Return ``(batch, time, ...)`` with 0 in padding."""
        batch, time = self.shape
        steps = rows.new_zeros(batch * time, *rows.shape[1:])
        return steps.index_copy(0, self.place, rows).reshape(batch, time, *rows.shape[1:])

    @property
    def mask(self) -> Tensor:
        """Return the real steps as ``(batch, time)`` bool."""
        batch, time = self.shape
        nothing = torch.zeros(batch * time, dtype=torch.bool, device=self.place.device)
        return nothing.index_fill(0, self.place, value=True).view(batch, time)

    def spread(self, values: Tensor, _rows: Tensor) -> Tensor:
        """Give each row the value of its sample, ``(batch, 1, ...)``."""
        return values.squeeze(1).index_select(0, self.sample)


Layout = Padded | Packed


def attend(
    q: Tensor, k: Tensor, v: Tensor, queries: Layout, keys: Layout, *, dropout: float
) -> Tensor:
    """Let every query read the real keys of its sample; over nothing, it reads 0.

    Args:
        q: Queries, rows of ``queries`` as ``(..., heads, head_dim)``.
        k: Keys, rows of ``keys``.
        v: Values, rows of ``keys``.
        queries: Layout of the queries.
        keys: Layout of keys and values, of the same kind.
        dropout: Probability of dropping a weight.

    Returns:
        What was read, of the shape of ``q``.
    """
    if isinstance(queries, Padded) or isinstance(keys, Padded):
        return _attend_padded(q, k, v, keys.mask, dropout)
    if not any(map(min, queries.lengths, keys.lengths)):
        # Nobody reads; q, k and v stay in the graph with zero gradients all the same.
        return torch.zeros_like(q) + q[:0].sum() + k[:0].sum() + v[:0].sum()
    if max(*queries.lengths, *keys.lengths) <= SHORT:
        steps = (queries.unpack(q), keys.unpack(k), keys.unpack(v))
        return queries.pack(_attend_padded(*steps, keys.mask, dropout))
    read: list[Tensor] = []
    rows = (q, queries), (k, keys), (v, keys)
    for parts in zip(*(torch.split(x, list(of.lengths)) for x, of in rows), strict=True):
        query, key, value = (part.transpose(0, 1).unsqueeze(0) for part in parts)
        if query.shape[2] == 0 or key.shape[2] == 0:
            read.append(torch.zeros_like(parts[0]))
            continue
        one = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        read.append(one.squeeze(0).transpose(0, 1))
    return torch.cat(read)


def _attend_padded(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if mask is None:
        read = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    else:
        allowed = unmask_empty(mask)[:, None, None, :]
        read = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, dropout_p=dropout)
        read = read.masked_fill(~mask.any(dim=-1)[:, None, None, None], 0.0)
    return read.transpose(1, 2)


def lay_out(steps: Tensor, mask: Tensor | None) -> Packed:
    """Find the real steps of ``(batch, time, dim)``; waits for the device."""
    batch, time = steps.shape[:2]
    if mask is None:
        place = torch.arange(batch * time, device=steps.device)
        lengths = (time,) * batch
    else:
        place = mask.flatten().nonzero().squeeze(1)
        lengths = tuple(int(length) for length in mask.sum(dim=1))
    sample = place.div(time, rounding_mode="floor")
    return Packed(lengths, place, sample, (batch, time))


def worth_packing(masks: Sequence[Tensor | None], *, packing: bool | Literal["auto"]) -> bool:
    """Whether enough of the steps is padding, or the user says so."""
    given = [mask for mask in masks if mask is not None]
    if packing != "auto":
        return packing and not any(mask.is_meta for mask in given)
    if any(mask.device.type != "cpu" for mask in given):
        return False
    real = sum(int(mask.sum()) for mask in given)
    return real < (1 - WORTH_PACKING) * sum(mask.numel() for mask in given)
