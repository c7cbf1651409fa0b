"""The real steps of a batch as rows, for a network per step whose results are pooled.

On workload A of the benchmarks, where 40 % of the steps are padded, a training step of the default
form takes less than two thirds of the time.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class RealSteps(NamedTuple):
    """Positions of the real steps; a sample without a real step has no rows.

    Attributes:
        place: ``(rows,)``: position of each row in the flattened ``(batch time)``.
        sample: ``(rows,)``: sample of each row.
        step: ``(rows,)``: index of each row along time.
        lengths: ``(batch, 1)``: number of real steps of each sample.
    """

    place: Tensor
    sample: Tensor
    step: Tensor
    lengths: Tensor

    def pack(self, steps: Tensor) -> Tensor:
        """Return the rows of ``(batch, time, dim)``."""
        return steps.flatten(0, 1).index_select(0, self.place)

    def take(self, steps: Tensor) -> tuple[Tensor, None]:
        """Return the rows of ``(batch, time, dim)``, and None, because all of them are real."""
        return self.pack(steps), None

    def pool(self, rows: Tensor) -> Tensor:
        """Mean and maximum over the real steps, ``(batch, 2 * dim)``; 0 if a sample has none."""
        return torch.cat((self.mean(rows), self.max(rows)), dim=-1)

    def mean(self, rows: Tensor) -> Tensor:
        """Mean over the real steps, ``(batch, dim)``; 0 if a sample has none."""
        total = rows.new_zeros(len(self.lengths), rows.shape[1]).index_add(0, self.sample, rows)
        return total / self.lengths.clamp(min=1)

    def max(self, rows: Tensor) -> Tensor:
        """Maximum over the real steps, ``(batch, dim)``; 0 if a sample has none."""
        sample = self.sample.unsqueeze(1).expand_as(rows)
        start = rows.new_full((len(self.lengths), rows.shape[1]), -torch.inf)
        largest = start.scatter_reduce(0, sample, rows.detach(), "amax")
        if len(rows) and rows.requires_grad and torch.is_grad_enabled():
            # As in `mean_and_max`, the first step that has the maximum gets the gradient.
            number = torch.arange(len(rows), dtype=torch.int32, device=rows.device).unsqueeze(1)
            hit = rows.detach() == largest.index_select(0, self.sample)
            number = torch.where(hit, number, len(rows) - 1)
            last = torch.full_like(start, len(rows) - 1, dtype=torch.int32)
            first = last.scatter_reduce(0, sample, number, "amin")
            largest = rows.gather(0, first.to(torch.int64))
        return largest.masked_fill(self.lengths == 0, 0.0)


def find_real_steps(mask: Tensor) -> RealSteps:
    """Find the real steps of a mask ``(batch, time)``; on a GPU this forces a host-device sync."""
    sample, step = mask.nonzero(as_tuple=True)
    return RealSteps(sample * mask.shape[1] + step, sample, step, mask.sum(dim=1, keepdim=True))
