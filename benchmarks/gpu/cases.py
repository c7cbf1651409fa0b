"""Batches, models and cases of `benchmarks.gpu`, the most important cases first."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.common import peers
from benchmarks.common.peers import (
    Contestant,
    Peer,
    Perceiver,
    Size,
    TorchEncoder,
    XEncoder,
    called,
)
from grf_fusion import GatedRecurrentFusion, mask_from_lengths
from grf_fusion.baselines import ConcatFusion

SMALL = Size()
WIDE = Size(dim=512, heads=8, layers=2, hidden=2048)
OURS, PAPER = "ours", "ours, paper's form"
OURS_PADDED = "ours, padded"
RESIDUAL, PADDED = "ours, residual form", "ours, residual form, padded"
AUTHOR, MULT = "author's design", "MulT"
EARLY, OUR_EARLY = "early concatenation, nn.TransformerEncoder", "early concatenation, ConcatFusion"
PERCEIVER, X_ENCODER = "Perceiver IO", "early concatenation, x-transformers"
EAGER, COMPILED = "eager", "compiled"
OVERHEAD, CAPTURED = "compiled, reduce-overhead", "captured in a CUDA graph"
COMPILED_CAPTURED = "compiled, captured in a CUDA graph"
PARTS_CAPTURED = "summaries and unit compiled, captured in a CUDA graph"
BF16, AUTOCAST, FLOAT32 = "bf16", "autocast bf16", "float32"


class Batch(NamedTuple):
    """Features and masks on the device.

    Attributes:
        features: ``(batch, time, width)`` by modality.
        masks: ``(batch, time)`` by modality, ``None`` if every step is real.
        real: Share of the steps that are real.
    """

    features: dict[str, Tensor]
    masks: dict[str, Tensor] | None
    real: float

    def cut(self) -> dict[str, Tensor]:
        """Return features of as many steps as are real, without padding."""
        return {
            name: x[:, : max(1, round(self.real * x.shape[1]))] for name, x in self.features.items()
        }


class Load(NamedTuple):
    """One batch shape.

    Attributes:
        title: Its name in the tables.
        batch: Samples.
        lengths: Padded length by modality.
        width: Feature width of every modality.
        size: Size of the models.
        fewest: Smallest share of real steps; 1 for no padding and no masks.
    """

    title: str
    batch: int
    lengths: tuple[int, ...]
    width: int
    size: Size
    fewest: float = 1.0

    @property
    def modalities(self) -> dict[str, int]:
        """Feature width of each modality."""
        return {f"m{k}": self.width for k in range(len(self.lengths))}

    def draw(self, device: str, dtype: torch.dtype) -> Batch:
        """Draw features, also random in padded steps, and masks whose lengths the host knows."""
        generator = torch.Generator().manual_seed(0)
        features: dict[str, Tensor] = {}
        masks: dict[str, Tensor] = {}
        real = 0
        for name, time in zip(self.modalities, self.lengths, strict=True):
            shape = (self.batch, time, self.width)
            features[name] = torch.randn(shape, generator=generator).to(device, dtype)
            fewest = max(1, math.ceil(self.fewest * time))
            lengths = torch.randint(fewest, time + 1, (self.batch,), generator=generator)
            masks[name] = mask_from_lengths(lengths, time, device=device)
            real += int(lengths.sum())
        share = real / (self.batch * sum(self.lengths))
        return Batch(features, None if self.fewest == 1.0 else masks, share)


class Case(NamedTuple):
    """One measurement.

    Attributes:
        load: Batch shape.
        model: Key of `MODELS`.
        mode: How it is run.
        precision: Number format of weights and features; with autocast, weights stay float32.
        training: Whether a training step or a forward pass without gradients is measured.
    """

    load: Load
    model: str
    mode: str = EAGER
    precision: str = BF16
    training: bool = True


def _ours(
    kind: Callable[..., nn.Module] = GatedRecurrentFusion, **options: object
) -> Callable[[Load], Contestant]:
    def build(load: Load) -> Contestant:
        dim, heads, layers, hidden = load.size
        sizes = {"num_heads": heads, "num_layers": layers, "dim_feedforward": hidden}
        return called(kind(load.modalities, embed_dim=dim, **sizes, **options))

    return build


def _default(load: Load, **options: Any) -> Contestant:  # noqa: ANN401 (options of a fusion)
    dim, _, layers, _ = load.size
    return called(
        GatedRecurrentFusion(load.modalities, embed_dim=dim, num_layers=layers, **options)
    )


def _peer(body: Callable[[Size], nn.Module]) -> Callable[[Load], Contestant]:
    def build(load: Load) -> Contestant:
        module = Peer(load.modalities, body(load.size), load.size.dim)
        return Contestant(module, module)

    return build


MODELS: Mapping[str, Callable[[Load], Contestant]] = {
    OURS: _default,
    OURS_PADDED: partial(_default, packing=False),
    RESIDUAL: _ours(form="residual"),
    PADDED: _ours(form="residual", packing=False),
    PAPER: _ours(form="paper"),
    AUTHOR: lambda load: peers.author(load.modalities, 0.0, load.size),
    MULT: lambda load: peers.mult(load.modalities, 0.0, load.size),
    EARLY: _peer(lambda size: TorchEncoder(0.0, size)),
    OUR_EARLY: _ours(ConcatFusion, stage="early"),
    X_ENCODER: _peer(lambda size: XEncoder(0.0, size)),
    PERCEIVER: _peer(Perceiver),
}


def loads(*, quick: bool) -> dict[str, Load]:
    """Return the batch shapes by key; `quick` shrinks them to a trial run."""
    wide = Size(dim=16, heads=2, layers=1, hidden=32) if quick else WIDE
    small = wide if quick else SMALL
    one = wide._replace(layers=1)
    few, time, long, chain = (2, 8, 16, 3) if quick else (256, 512, 4096, 38)
    of_d = "D: three modalities of length {}, batch 4, no padding"
    found = {
        "wide": Load(
            f"width {wide.dim}, {wide.layers} layers, batch {few}, three modalities of lengths to "
            f"{time}, 20 to 100 % real",
            *(few, 3 * (time,), wide.dim, wide, 0.2),
        ),
        "chain": Load(
            f"{chain} modalities of length 16, width {small.dim}, one layer, batch 64, no padding",
            *(64, chain * (16,), small.dim, small._replace(layers=1)),
        ),
        "long": Load(
            f"width {wide.dim}, {wide.layers} layers, batch 16, three modalities of lengths to "
            f"{long}, 20 to 100 % real",
            *(16, 3 * (long,), wide.dim, wide, 0.2),
        ),
        "A": Load(
            "A: lengths to 50, 375, 500, batch 32, 20 to 100 % real",
            *(32, (5, 7, 11) if quick else (50, 375, 500), 20, small, 0.2),
        ),
        "C": Load(
            f"C: {min(chain, 16)} modalities of length 50, batch 16, no padding",
            *(16, min(chain, 16) * (5 if quick else 50,), 64, small),
        ),
    }
    for length in (4, 8, 16, 32) if quick else (1024, 2048, 4096, 8192):
        found[f"D{length}"] = Load(of_d.format(length), 4, 3 * (length,), 64, small)
        found[f"M{length}"] = Load(
            f"three modalities of length {length}, width {wide.dim}, one layer, batch 4, "
            "no padding",
            *(4, 3 * (length,), wide.dim, one),
        )
    return found


def _each(load: Load, *models: str, **how: Any) -> list[Case]:  # noqa: ANN401 (fields of a case)
    return [Case(load, model, **how) for model in models]


def cases(*, quick: bool) -> list[Case]:
    """Return the cases, the most important ones first."""
    by = loads(quick=quick)
    wide, chain, long, a, c = (by[key] for key in ("wide", "chain", "long", "A", "C"))
    lengths = [int(key[1:]) for key in by if key[0] == "M"]
    first = [
        *_each(wide, OURS, OURS_PADDED, RESIDUAL, PADDED, AUTHOR, EARLY),
        *_each(chain, EARLY, OURS),
        *_each(chain, EARLY, OURS, AUTHOR, mode=CAPTURED),
        # Captured, because launches hide how the time grows with the length.
        *(Case(by[f"M{length}"], OURS, CAPTURED) for length in lengths),
        Case(by[f"M{lengths[-1]}"], OURS),
        # A case that compiles takes half a minute or more.
        Case(wide, OURS, COMPILED),
        Case(chain, OURS, PARTS_CAPTURED),
        Case(chain, EARLY, COMPILED_CAPTURED),
        Case(chain, EARLY, OVERHEAD),
        Case(wide, PAPER),
        *_each(long, OURS, OURS_PADDED, RESIDUAL, PADDED),
        Case(chain, RESIDUAL, CAPTURED),
        *_each(wide, OURS, AUTHOR, precision=AUTOCAST),
        Case(wide, OURS, precision=FLOAT32),
        *_each(wide, OURS, RESIDUAL, AUTHOR, training=False),
        *_each(long, AUTHOR, EARLY),
    ]
    places = [(a, EAGER), (a, CAPTURED), (c, EAGER), (c, CAPTURED), (by[f"D{lengths[-1]}"], EAGER)]
    of_page = [
        Case(load, model, mode)
        for load, mode in places
        for model in (OURS, RESIDUAL, PAPER, AUTHOR, MULT, EARLY)
    ]
    others = [
        case for length in lengths[:-1] for case in _each(by[f"D{length}"], OURS, PAPER, AUTHOR)
    ]
    last = [
        *_each(wide, OUR_EARLY, PERCEIVER, MULT),
        # Its rotary embeddings are in float32, which weights in bfloat16 do not accept.
        Case(wide, X_ENCODER, precision=AUTOCAST),
        Case(wide, AUTHOR, COMPILED),
        Case(chain, OURS, OVERHEAD),
        *_each(a, OURS, AUTHOR, EARLY, mode=COMPILED),
        *_each(c, OURS, AUTHOR, EARLY, mode=COMPILED),
        Case(wide, OURS, OVERHEAD),
        Case(c, OURS, OVERHEAD),
        Case(wide, PADDED, COMPILED),
        Case(chain, AUTHOR),
    ]
    return first + of_page + others + last
