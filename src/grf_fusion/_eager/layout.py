"""Memory layouts of a batch of sequences, padded or packed, and attention for each of them."""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor

from grf_fusion._checks.tracing import is_captured, is_plain_call
from grf_fusion._eager.dropout import FEW
from grf_fusion._eager.dropped_attention import Group, attend_with_dropout
from grf_fusion._eager.rows import (
    Rows,
    attend_dense,
    attend_rows,
    lay_out_rows,
    scatter,
    worth_rows,
)
from grf_fusion._inputs.masks import fill_masked, unmask_empty

# A call of the attention kernel costs as much as STEPS_A_CALL padded steps in short sequences. The
# cost of a padded step grows with the length, as (1 + length / LONG)**2.
STEPS_A_CALL, LONG = 300, 50
# Packing copies every row twice. It pays off if more than this share of the steps is padding.
WORTH_PACKING = 0.1


class Padded(NamedTuple):
    """Steps as ``(batch, time, dim)``; padded steps are computed too, and ignored.

    Attributes:
        mask: ``(batch, time)`` bool: real steps, ``None`` for all.
        one_step: Whether time is known to be 1; while tracing, only the options can guarantee it.
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
    """Steps as rows ``(rows, dim)``, with most padding removed, in groups of samples.

    Attributes:
        groups: Groups of samples of similar length. In each sample real steps come first, padded
            to the longest sample of the group. Sequences packed together have the same groups.
        place: ``(rows,)``: position of each row in the flattened ``(batch time)``.
        sample: ``(rows,)``: sample of each row.
        padding: ``(rows,)`` bool: padded steps.
        empty: ``(batch,)`` bool: samples without a real step, ``None`` if there are none.
        shape: ``(batch, time)``.
    """

    groups: tuple[Group, ...]
    place: Tensor
    sample: Tensor
    padding: Tensor
    empty: Tensor | None
    shape: tuple[int, int]
    one_step: bool = False

    def pack(self, steps: Tensor) -> Tensor:
        """Return the rows of ``(batch, time, dim)``."""
        return steps.flatten(0, 1).index_select(0, self.place)

    def unpack(self, rows: Tensor) -> Tensor:
        """Return ``(batch, time, dim)`` with 0 in padding."""
        rows = rows.masked_fill(self.padding.unsqueeze(-1), 0.0)
        return scatter(rows, self.place, self.shape)

    def spread(self, values: Tensor, _rows: Tensor) -> Tensor:
        """Give each row the value of its sample, ``(batch, 1, ...)``."""
        return values.squeeze(1).index_select(0, self.sample)


Layout = Padded | Packed | Rows


def attend(
    q: Tensor, k: Tensor, v: Tensor, queries: Layout, keys: Layout, *, dropout: float
) -> Tensor:
    """Attend from each query to the real keys of its sample; without any, the result is 0.

    Queries ``(..., heads, head_dim)`` have the layout ``queries``. Keys and values have the layout
    ``keys``, of the same class.
    """
    if isinstance(keys, Packed):
        return _attend_packed(q, k, v, cast(Packed, queries), keys, dropout=dropout)
    if isinstance(keys, Rows):
        return attend_rows(q, k, v, cast(Rows, queries), keys, dropout=dropout)
    mask = keys.mask
    allowed = None if mask is None else unmask_empty(mask)[:, None, None, :]
    if dropout > 0.0 and is_plain_call(q, fewest=FEW):
        rows, others = (x.shape[0] * x.shape[1] for x in (q, k))
        piece = Group(len(q), (0, rows), None), Group(len(q), (0, others), allowed)
        flat_q, flat_k, flat_v = (x.flatten(0, 1) for x in (q, k, v))
        read = attend_with_dropout(flat_q, flat_k, flat_v, (piece,), dropout).view(q.shape)
    else:
        if allowed is not None and torch.compiler.is_compiling():
            # ONNX's attention operator (opset 23) cannot broadcast the mask over the queries.
            allowed = allowed.expand(-1, 1, q.shape[1], -1)
        read = attend_dense(q, k, v, allowed, dropout)
    return read if mask is None else read.masked_fill(~mask.any(dim=-1)[:, None, None, None], 0.0)


def _attend_packed(
    q: Tensor, k: Tensor, v: Tensor, queries: Packed, keys: Packed, *, dropout: float
) -> Tensor:
    if dropout > 0.0 and is_plain_call(q):
        pieces = tuple(zip(queries.groups, keys.groups, strict=True))
        read = attend_with_dropout(q, k, v, pieces, dropout)
    else:
        # One split, because the gradient of each slice would be as large as the whole tensor.
        cut = zip(_split(q, queries), _split(k, keys), _split(v, keys), keys.groups, strict=True)
        groups = [attend_dense(a, b, c, group.allowed, dropout) for a, b, c, group in cut]
        read = torch.cat([group.flatten(0, 1) for group in groups])
    if keys.empty is None:
        return read
    return read.masked_fill(keys.empty[queries.sample][:, None, None], 0.0)


def _split(rows: Tensor, layout: Packed) -> list[Tensor]:
    """Return the rows of each group as ``(samples, time, ...)``."""
    sizes = [end - start for _, (start, end), _ in layout.groups]
    parts = zip(torch.split(rows, sizes), layout.groups, strict=True)
    return [part.reshape(group.samples, -1, *part.shape[1:]) for part, group in parts]


def lay_out(steps: Sequence[Tensor], masks: Sequence[Tensor | None]) -> list[Packed] | list[Rows]:
    """Pack sequences ``(batch, time, dim)`` of the same samples.

    On the CPU, samples are grouped, because one attention call per sample would be slow. On other
    devices they are laid out as rows.
    """
    if not groups_samples(steps[0].device):
        return [lay_out_rows(x, mask) for x, mask in zip(steps, masks, strict=True)]
    device = steps[0].device
    counts = [
        torch.full((len(x),), x.shape[1], device=device) if mask is None else mask.sum(dim=1)
        for x, mask in zip(steps, masks, strict=True)
    ]
    lengths = cast("list[list[int]]", torch.stack(counts).tolist())  # pyright: ignore[reportUnknownMemberType]
    groups = list(_group(list(zip(*lengths, strict=True))))
    order = torch.tensor([sample for group in groups for sample in group], device=device)
    return [
        _place(x.shape[:2], mask, count, order, [[of[sample] for sample in g] for g in groups])
        for x, mask, count, of in zip(steps, masks, counts, lengths, strict=True)
    ]


def _group(lengths: list[tuple[int, ...]]) -> Iterator[list[int]]:
    """Group samples as long as padding a sample costs less than a separate attention call."""
    group: list[int] = []
    # Maximum and sum of the lengths of each sequence, updated per sample. For hundreds of samples,
    # recomputing them from the whole group would take longer than grouping saves.
    longest = total = [0 for _ in lengths[0]] if lengths else []
    for sample in sorted(range(len(lengths)), key=lambda sample: -sum(lengths[sample])):
        own = lengths[sample]
        longest = [max(pair) for pair in zip(longest, own, strict=True)]
        total = [sum(pair) for pair in zip(total, own, strict=True)]
        ends = zip(longest, total, strict=True)
        padding = (((len(group) + 1) * most - real) * (1 + most / LONG) ** 2 for most, real in ends)
        if sum(padding) > STEPS_A_CALL:
            yield group
            group, longest, total = [], list(own), list(own)
        group.append(sample)
    yield group


def _place(
    shape: torch.Size, mask: Tensor | None, count: Tensor, order: Tensor, lengths: list[list[int]]
) -> Packed:
    """Lay out one sequence, given the samples in the ``order`` of the groups and their lengths."""
    batch, time = shape
    device = order.device
    longest = [max(1, *group) for group in lengths]
    rows = [size for size, group in zip(longest, lengths, strict=True) for _ in group]
    sizes = torch.tensor(rows, device=device)
    sample = order.repeat_interleave(sizes)
    starts = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    step = torch.arange(len(sample), device=device) - starts
    padding = step >= count[sample]
    readable = ~padding | (count == 0)[sample]
    if mask is not None:
        # Real steps come first and keep their order.
        step = mask.sort(dim=1, descending=True, stable=True).indices[sample, step]
    groups: list[Group] = []
    start = 0
    for size, group in zip(longest, lengths, strict=True):
        end = start + size * len(group)
        even = all(length in (0, size) for length in group)
        allowed = None if even else readable[start:end].view(len(group), 1, 1, size)
        groups.append(Group(len(group), (start, end), allowed))
        start = end
    empty = count == 0 if any(0 in group for group in lengths) else None
    return Packed(tuple(groups), sample * time + step, sample, padding, empty, (batch, time))


def real_first(steps: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Move the real steps of each sample to the front, and cut to the longest sample.

    Returns the steps, their mask, and their original positions, ``(batch, time)``.
    """
    longest = max(1, int(mask.sum(dim=1).max()))
    order = mask.sort(dim=1, descending=True, stable=True).indices[:, :longest]
    place = order.unsqueeze(-1).expand(-1, -1, steps.shape[-1])
    return steps.gather(1, place), mask.gather(1, order), order


def groups_samples(device: torch.device) -> bool:
    """Whether `lay_out` packs samples in groups on this device."""
    return device.type == "cpu"


def worth_packing(
    masks: Sequence[Tensor | None], *, packing: bool | Literal["auto"], width: int
) -> bool:
    """Whether to pack: on request, or if enough steps, of ``width`` numbers each, are padded."""
    given = [mask for mask in masks if mask is not None]
    # Without a mask there is nothing to skip.
    if not given or not packing or is_captured(given[0].device):
        return False
    if packing is True:
        return True
    if not groups_samples(given[0].device):
        return worth_rows(given, width, share=WORTH_PACKING)
    real = sum(int(mask.sum()) for mask in given)
    return real < (1 - WORTH_PACKING) * sum(mask.numel() for mask in given)
