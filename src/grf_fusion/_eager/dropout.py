"""Faster dropout on the CPU, which recomputes its mask in the backward pass.

On the CPU PyTorch draws a Bernoulli number for each entry, which takes longer than the layers
around it, and saves the mask for the backward pass. Our dropout uses 16 of the 64 bits of a draw
per entry and saves only the seed. A training step of workload A of the benchmarks takes 13 % less
time. Other devices use PyTorch's dropout.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from grf_fusion._checks.tracing import is_plain_call, is_untouched
from grf_fusion._eager.formula import Formula

# Entries that are processed at a time; a few buffers of this size fit into a processor's cache.
TILE = 2**17
# Below this number of entries PyTorch's own operations take less time than setting up a tile.
FEW = 2**13
LANES = 2**16


class DropoutMask:
    """Random masks of kept entries, which depend only on the seed and the order of calls.

    The probability is rounded to a multiple of 2**-16. Callers multiply kept entries by ``scale``,
    ``1 / (1 - probability)``.
    """

    def __init__(self, probability: float, seed: int) -> None:
        dropped = min(round(probability * LANES), LANES - 1)
        self.lowest = dropped - LANES // 2
        self.scale = 1 / (1 - probability)
        self.generator = torch.Generator("cpu").manual_seed(seed)

    def fill(self, out: Tensor) -> Tensor:
        """Fill a contiguous tensor with 1 where an entry is kept and 0 where it is dropped."""
        number = out.numel()
        words = torch.empty(-(-number // 4), dtype=torch.int64, device=out.device)
        # Without an upper bound all 64 bits are random; random_() alone leaves the sign bit at 0.
        words.random_(-(2**63), None, generator=self.generator)
        torch.ge(words.view(torch.int16)[:number], self.lowest, out=out.view(-1))
        return out


def draw_seed() -> int:
    """Draw a seed from PyTorch's generator, so that `torch.manual_seed` and checkpoints apply."""
    return int(torch.randint(2**63 - 1, (), device="cpu"))


def drop(dropout: nn.Dropout, values: Tensor, residual: Tensor | None = None) -> Tensor:
    """Return ``residual + dropout(values)``, or ``dropout(values)`` without a residual."""
    if type(dropout) is nn.Dropout and is_untouched(dropout):
        if not dropout.training or dropout.p == 0.0:
            return values if residual is None else residual + values
        if is_plain_call(values, fewest=FEW):
            return _Drop.call(values, residual, dropout.p, draw_seed())
    values = dropout(values)
    return values if residual is None else residual + values


class _Drop(Formula):
    """``residual + dropout(values)``, which saves only the seed for the backward pass."""

    @override
    @staticmethod
    def forward(
        ctx: Any, values: Tensor, residual: Tensor | None, probability: float, seed: int
    ) -> Tensor:
        ctx.probability, ctx.seed, ctx.residual = probability, seed, residual is not None
        keep = DropoutMask(probability, seed)
        out = torch.empty_like(values, memory_format=torch.contiguous_format)
        flat, result = values.reshape(-1), out.view(-1)
        before = None if residual is None else residual.reshape(-1)
        kept = values.new_empty(min(TILE, len(flat)))
        for start, end in spans(len(flat), TILE):
            tile = keep.fill(kept[: end - start]).mul_(flat[start:end])
            if before is None:
                torch.mul(tile, keep.scale, out=result[start:end])
            else:
                torch.add(before[start:end], tile, alpha=keep.scale, out=result[start:end])
        return out

    @override
    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        # The same seed gives the same mask, and a `Formula` can be differentiated again.
        dropped = _Drop.call(gradient, None, ctx.probability, ctx.seed)
        return dropped, gradient if ctx.residual else None, None, None


def spans(number: int, longest: int) -> Iterator[tuple[int, int]]:
    """Split ``range(number)`` into spans of at most ``longest``."""
    return ((start, min(start + longest, number)) for start in range(0, number, longest))
