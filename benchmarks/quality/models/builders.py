"""Builders of fusions, given the modalities and the width."""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import nn

from benchmarks.quality.datasets.dataset import Task
from benchmarks.quality.models.model import ConcatUnit
from benchmarks.quality.models.taken_apart import multiply, take_away
from grf_fusion import GatedRecurrentFusion
from grf_fusion.baselines import MulT

HEADS = 4
DROPOUT = 0.1
# With more modalities, MulT has narrow stacks, and only some orders are tried.
FEW = 3
NARROW = 8


class Size(NamedTuple):
    """The arguments of a builder."""

    modalities: Mapping[str, int]
    width: int
    dropout: float
    task: Task


Builder = Callable[[Size], nn.Module]


def grf(**options: object) -> Builder:
    """Return a builder of GRF; options are those of `GatedRecurrentFusion`.

    Exceptions: ``unit="concat"``, ``without`` and ``times``, see `take_away` and `multiply`.
    """
    given = dict(options)
    unit, without, times = (given.pop(name, None) for name in ("unit", "without", "times"))
    dropout = given.pop("dropout", DROPOUT)

    def build(size: Size) -> nn.Module:
        make = None
        if unit == "concat":
            make = functools.partial(ConcatUnit, size.width, dropout=dropout)
        fusion = GatedRecurrentFusion(
            size.modalities,
            embed_dim=size.width,
            num_heads=heads(size.width),
            dropout=dropout,
            unit=make,
            **given,
        )
        if without is not None:
            take_away(fusion, without)
        if times is not None:
            multiply(fusion, times)
        return fusion

    return build


def heads(width: int) -> int:
    """Return the number of attention heads."""
    return HEADS if width % HEADS == 0 else 1


def stack_dim(modalities: int, width: int) -> int:
    """Return the width of MulT's pairwise stacks."""
    return width if modalities <= FEW else min(NARROW, width)


def mult(size: Size) -> nn.Module:
    """Build MulT with one layer per pairwise stack, narrow if there are many modalities."""
    narrow = stack_dim(len(size.modalities), size.width)
    return MulT(
        size.modalities,
        embed_dim=size.width,
        num_heads=heads(narrow),
        num_layers=1,
        stack_dim=narrow,
        dropout=size.dropout,
    )


def fusion(kind: Callable[..., nn.Module], *needs: str, **options: object) -> Builder:
    """Return a builder of a fusion of this class; `needs` names the sizes that it takes."""

    def build(size: Size) -> nn.Module:
        known = {"num_heads": heads(size.width), "dropout": size.dropout, "task": size.task}
        told = {name: known[name] for name in needs}
        return kind(size.modalities, embed_dim=size.width, **told, **options)

    return build
