"""Feed-forward, tile by tile in eager mode on the CPU where the layers are plain.

A tile's intermediate results stay in the processor's cache. None is kept: the backward pass
computes them again, which costs less than writing them to memory and reading them back, and draws
the bits of dropout again from their seed.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from grf_fusion._checks.tracing import (
    Formula,
    has_bias,
    is_plain,
    is_plain_call,
    is_untouched,
    once_more,
)
from grf_fusion._cpu.dropout import FEW, TILE, Keep, draw_seed, drop, spans

aten = torch.ops.aten
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu}


def feedforward(
    x: Tensor, linear1: nn.Linear, linear2: nn.Linear, activation: str, dropout: nn.Dropout
) -> Tensor:
    """Return ``linear2(dropout(activation(linear1(x))))``.

    Shape:
        - x: ``(..., dim)``
        - output: ``(..., dim)``
    """
    if not (
        is_plain_call(x, fewest=FEW // 4)
        and type(dropout) is nn.Dropout
        and is_untouched(dropout)
        and is_plain(linear1, linear2)
        and has_bias(linear1, linear2)
    ):
        return linear2(drop(dropout, ACTIVATIONS[activation](linear1(x))))
    probability = dropout.p if dropout.training else 0.0
    layers = (linear1.weight, linear1.bias, linear2.weight, linear2.bias)
    options = Options(activation, probability, draw_seed() if probability else 0)
    return _FeedForward.call(x.reshape(-1, x.shape[-1]), *layers, options).view(x.shape)


class Options(NamedTuple):
    """What a feed-forward is made of beside its weights."""

    activation: str
    dropout: float
    seed: int

    @property
    def keep(self) -> Keep | None:
        """What draws the bits of dropout, from the start."""
        return Keep(self.dropout, self.seed) if self.dropout else None


class _FeedForward(Formula):
    @override
    @staticmethod
    def forward(ctx: Any, *given: Any) -> Tensor:
        *saved, ctx.options = given
        ctx.save_for_backward(*saved)
        x, w1, b1, w2, b2 = cast("list[Tensor]", saved)
        activation, keep = ctx.options.activation, ctx.options.keep
        scale = keep.scale if keep else 1.0
        out = x.new_empty(len(x), len(w2))
        before, after, kept = _buffers(3, x, w1)
        for start, end in _row_tiles(x, w1):
            rows = slice(0, end - start)
            torch.addmm(b1, x[start:end], w1.t(), out=before[rows])
            hidden = _activate(activation, before[rows], after[rows])
            if keep:
                hidden.mul_(keep.fill(kept[rows]))
            torch.addmm(b2, hidden, w2.t(), alpha=scale, out=out[start:end])
        return out

    @override
    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        saved: tuple[Tensor, ...] = ctx.saved_tensors
        (gradient,) = gradients
        if torch.is_grad_enabled():
            return *once_more(_feedforward_plainly, saved, gradient, ctx.options), None
        x, w1, b1, w2, _ = saved
        activation, keep = ctx.options.activation, ctx.options.keep
        scaled = gradient * keep.scale if keep else gradient
        dx = torch.empty_like(x)
        dw1, db1, dw2 = (torch.zeros_like(weight) for weight in (w1, b1, w2))
        before, after, back, kept = _buffers(4, x, w1)
        for start, end in _row_tiles(x, w1):
            rows = slice(0, end - start)
            upper = scaled[start:end]
            torch.addmm(b1, x[start:end], w1.t(), out=before[rows])
            hidden = _activate(activation, before[rows], after[rows])
            torch.mm(upper, w2, out=back[rows])
            if keep:
                hidden.mul_(keep.fill(kept[rows]))
                back[rows].mul_(kept[rows])
            dw2.addmm_(upper.t(), hidden)
            lower = _activate_back(activation, before[rows], back[rows], after[rows])
            dw1.addmm_(lower.t(), x[start:end])
            db1.add_(lower.sum(dim=0))
            torch.mm(lower, w1, out=dx[start:end])
        return dx, dw1, db1, dw2, gradient.sum(dim=0), None


def _feedforward_plainly(saved: Sequence[Tensor], options: Options) -> Tensor:
    x, w1, b1, w2, b2 = saved
    hidden = ACTIVATIONS[options.activation](F.linear(x, w1, b1))
    keep = options.keep
    if keep:
        tiles = [keep.fill(x.new_empty(end - start, len(w1))) for start, end in _row_tiles(x, w1)]
        hidden = hidden * torch.cat(tiles).detach() * keep.scale
    return F.linear(hidden, w2, b2)


def _row_tiles(x: Tensor, w1: Tensor) -> Iterator[tuple[int, int]]:
    return spans(len(x), max(1, TILE // len(w1)))


def _buffers(number: int, x: Tensor, w1: Tensor) -> tuple[Tensor, ...]:
    rows = min(len(x), max(1, TILE // len(w1)))
    return tuple(x.new_empty(rows, len(w1)) for _ in range(number))


def _activate(activation: str, x: Tensor, out: Tensor) -> Tensor:
    if activation == "gelu":
        return cast(Tensor, aten.gelu.out(x, out=out))
    return torch.clamp(x, min=0.0, out=out)


def _activate_back(activation: str, x: Tensor, gradient: Tensor, out: Tensor) -> Tensor:
    if activation == "gelu":
        return cast(Tensor, aten.gelu_backward.grad_input(gradient, x, grad_input=out))
    return torch.mul(gradient, torch.gt(x, 0.0, out=out), out=out)
