"""Builders of all contestants for given modalities and dropout, all of one size."""

import copy
import importlib.util
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.common.author import mean
from benchmarks.common.peers import (
    DIM,
    HEADS,
    HIDDEN,
    LAYERS,
    SIZE,
    Contestant,
    Features,
    Masks,
    Peer,
    Perceiver,
    TorchEncoder,
    XEncoder,
    author,
    called,
    join,
    mult,
    x_transformers,
)
from grf_fusion import GatedRecurrentFusion
from grf_fusion.baselines import ConcatFusion
from grf_fusion.checkpoints import load_author_checkpoint

DEFAULT = "ours, default form"
DEFAULT_DEEP = "ours, default form, four layers"
POOLED = "concatenation, pooled"
OURS_AUTHOR = "ours, author's weights"
OURS = "ours, pooled"
OURS_NO_SELF = "ours, pooled, no self-attention"
OURS_LINEAR = "ours, pooled, linear self-attention"
AUTHOR = "author's design"
MULT = "MulT"
MULT_LITERAL = "MulT, attention as its authors write it"
Builder = Callable[[Mapping[str, int], float], Contestant]


def ours(**options: object) -> Builder:
    """Return a builder of our module with these options and its own weights."""

    def build(modalities: Mapping[str, int], dropout: float) -> Contestant:
        fusion = GatedRecurrentFusion(
            modalities,
            embed_dim=DIM,
            num_heads=HEADS,
            num_layers=LAYERS,
            dim_feedforward=HIDDEN,
            dropout=dropout,
            form="paper",
            **options,
        )
        return called(fusion)

    return build


def default(**options: object) -> Builder:
    """Return a builder of our module as in the README, with only a width."""
    return lambda modalities, dropout: called(
        GatedRecurrentFusion(modalities, embed_dim=DIM, dropout=dropout, **options)
    )


def pooled(modalities: Mapping[str, int], dropout: float) -> Contestant:
    """Return pooled concatenation, its strong form."""
    return called(ConcatFusion(modalities, embed_dim=DIM, stage="pooled", dropout=dropout))


def ours_as_author(modalities: Mapping[str, int], dropout: float) -> Contestant:
    """Return our module with the weights of `author`."""
    weights = author(modalities, dropout).module.state_dict()
    loaded = load_author_checkpoint(weights, order=list(modalities), num_heads=HEADS)
    fusion = GatedRecurrentFusion(**(loaded.config() | {"dropout": dropout}))
    fusion.load_state_dict(loaded.state_dict())
    return called(fusion)


def mult_as_written(modalities: Mapping[str, int], dropout: float) -> Contestant:
    """Return MulT with separate products, softmax and dropout, without PyTorch's fused kernel."""
    model = mult(modalities, dropout).module

    def call(features: Features, _: Masks) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return model(features)

    return Contestant(model, call)


class TorchCrossAttention(nn.Module):
    """The first modality attends to each other one with one `nn.MultiheadAttention`: one layer."""

    def __init__(self, modalities: int, dropout: float) -> None:
        super().__init__()
        one = nn.MultiheadAttention(DIM, HEADS, dropout, batch_first=True)
        self.readers = nn.ModuleList(copy.deepcopy(one) for _ in range(modalities - 1))

    def forward(self, tokens: list[Tensor], real: list[Tensor | None]) -> Tensor:
        """Return the mean over the first modality's real steps."""
        x = query = tokens[0]
        for reader, memory, mask in zip(self.readers, tokens[1:], real[1:], strict=True):
            pad = None if mask is None else ~mask
            x = x + reader(query, memory, memory, key_padding_mask=pad, need_weights=False)[0]
        return mean(x, real[0])


class XCrossAttention(nn.Module):
    """The first modality attends to all steps of the others, by x-transformers."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        from x_transformers import CrossAttender  # noqa: PLC0415 (optional)

        self.attender = CrossAttender(**x_transformers(dropout, SIZE))

    def forward(self, tokens: list[Tensor], real: list[Tensor | None]) -> Tensor:
        """Return the mean over the first modality's real steps."""
        memory, memory_mask = torch.cat(tokens[1:], dim=1), join(real[1:])
        x = self.attender(tokens[0], context=memory, mask=real[0], context_mask=memory_mask)
        return mean(x, real[0])


def peer(body: Callable[[int, float], nn.Module]) -> Builder:
    """Return a builder of a peer; `body` builds it for a number of modalities and a dropout."""

    def build(modalities: Mapping[str, int], dropout: float) -> Contestant:
        module = Peer(modalities, body(len(modalities), dropout))
        return Contestant(module, module)

    return build


BUILDERS: dict[str, Builder] = {
    DEFAULT: default(),
    DEFAULT_DEEP: default(num_layers=LAYERS),
    POOLED: pooled,
    OURS_AUTHOR: ours_as_author,
    OURS: ours(),
    OURS_NO_SELF: ours(self_attention=False),
    OURS_LINEAR: ours(self_attention="linear"),
    AUTHOR: author,
    MULT: mult,
    MULT_LITERAL: mult_as_written,
    "nn.TransformerEncoder, early fusion": peer(lambda _, dropout: TorchEncoder(dropout)),
    "nn.MultiheadAttention, one layer": peer(TorchCrossAttention),
    "x-transformers, early fusion": peer(lambda _, dropout: XEncoder(dropout)),
    "x-transformers, cross-attention": peer(lambda _, dropout: XCrossAttention(dropout)),
    "Perceiver IO, no dropout": peer(lambda _, __: Perceiver()),
}
PACKAGES = {
    "x-transformers, early fusion": "x_transformers",
    "x-transformers, cross-attention": "x_transformers",
    "Perceiver IO, no dropout": "perceiver_pytorch",
}


def missing() -> dict[str, str]:
    """Return the contestants whose package is not installed, with the package."""
    found = importlib.util.find_spec
    return {name: package for name, package in PACKAGES.items() if found(package) is None}
