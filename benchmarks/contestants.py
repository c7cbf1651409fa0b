"""Everybody who takes part, each built for given modalities and dropout, all of one size."""

import copy
import importlib.util
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.author import AuthorModel, sinusoids
from grf_fusion import GatedRecurrentFusion
from grf_fusion.baselines import MulT
from grf_fusion.checkpoints import load_author_checkpoint

DIM, HEADS, LAYERS, HIDDEN = 64, 4, 4, 256
LONGEST = 8192


class Size(NamedTuple):
    """Width, attention heads, layers and hidden width of the feed-forward of a contestant."""

    dim: int = DIM
    heads: int = HEADS
    layers: int = LAYERS
    hidden: int = HIDDEN


SIZE = Size()

OURS_AUTHOR = "ours, author's weights"
OURS = "ours, pooled"
OURS_NO_SELF = "ours, pooled, no self-attention"
OURS_LINEAR = "ours, pooled, linear self-attention"
AUTHOR = "author's design"
MULT = "MulT"
MULT_LITERAL = "MulT, attention as its authors write it"

Features = Mapping[str, Tensor]
Masks = Mapping[str, Tensor] | None


class Contestant(NamedTuple):
    """A module and how to call it."""

    module: nn.Module
    call: Callable[[Features, Masks], Tensor]


Builder = Callable[[Mapping[str, int], float], Contestant]


def ours(**options: object) -> Builder:
    """Our module with these options and weights of its own."""

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
        return _ours(fusion)

    return build


def author(modalities: Mapping[str, int], dropout: float, size: Size = SIZE) -> Contestant:
    """The author's design, the same weights at every call, none at its initial value."""
    model = AuthorModel(modalities, **size._asdict(), dropout=dropout)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            start = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            spread = parameter.shape[-1] ** -0.5 if parameter.ndim == 2 else 0.1
            parameter.copy_(start + spread * torch.randn(parameter.shape, generator=generator))
    return Contestant(model, model)


def ours_as_author(modalities: Mapping[str, int], dropout: float) -> Contestant:
    """Our module with the weights of `author`."""
    weights = author(modalities, dropout).module.state_dict()
    loaded = load_author_checkpoint(weights, order=list(modalities), num_heads=HEADS)
    fusion = GatedRecurrentFusion(**(loaded.config() | {"dropout": dropout}))
    fusion.load_state_dict(loaded.state_dict())
    return _ours(fusion)


def mult(modalities: Mapping[str, int], dropout: float, size: Size = SIZE) -> Contestant:
    """MulT at the same width and depth, as its authors compute it, without its hidden layers.

    Those of its head are left out: their weights grow with the fourth power of the number of
    modalities, and would be most of the model.
    """
    sizes = {"embed_dim": size.dim, "num_heads": size.heads, "num_layers": size.layers}
    model = MulT(modalities, **sizes, dropout=dropout, literal=True)
    model.head_in = model.head_out = nn.Identity()
    return Contestant(model, lambda features, _: model(features))


def mult_as_written(modalities: Mapping[str, int], dropout: float) -> Contestant:
    """The same with products, softmax and dropout one by one, instead of PyTorch's fused kernel."""
    model = mult(modalities, dropout).module

    def call(features: Features, _: Masks) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return model(features)

    return Contestant(model, call)


class Peer(nn.Module):
    """Projections, positions and a vector a modality, in front of somebody else's attention."""

    def __init__(self, modalities: Mapping[str, int], body: nn.Module, dim: int = DIM) -> None:
        super().__init__()
        self.projections = nn.ModuleDict(
            {name: nn.Linear(width, dim) for name, width in modalities.items()}
        )
        self.kinds = nn.Parameter(0.02 * torch.randn(len(modalities), dim))
        self.register_buffer("table", sinusoids(LONGEST, dim), persistent=False)
        self.body = body

    def forward(self, features: Features, masks: Masks) -> Tensor:
        """Return one vector a sample."""
        tokens = [
            projection(features[name]) + self.table[: features[name].shape[1]] + kind
            for (name, projection), kind in zip(self.projections.items(), self.kinds, strict=True)
        ]
        real = [None if masks is None else masks[name] for name in self.projections]
        return self.body(tokens, real)


class TorchEncoder(nn.Module):
    """Early fusion: all steps of all modalities through one `nn.TransformerEncoder`."""

    def __init__(self, dropout: float, size: Size = SIZE) -> None:
        super().__init__()
        dim, heads, layers, hidden = size
        layer = nn.TransformerEncoderLayer(dim, heads, hidden, dropout, "gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

    def forward(self, tokens: list[Tensor], real: list[Tensor | None]) -> Tensor:
        """Return the mean over all real steps."""
        mask = _join(real)
        pad = None if mask is None else ~mask
        return _mean(self.encoder(torch.cat(tokens, dim=1), src_key_padding_mask=pad), mask)


class TorchCrossAttention(nn.Module):
    """The first modality reads every other through one `nn.MultiheadAttention` each: one layer."""

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
        return _mean(x, real[0])


class XEncoder(nn.Module):
    """Early fusion by x-transformers."""

    def __init__(self, dropout: float, size: Size = SIZE) -> None:
        super().__init__()
        from x_transformers import Encoder  # noqa: PLC0415 (optional)

        self.encoder = Encoder(**_x_transformers(dropout, size))

    def forward(self, tokens: list[Tensor], real: list[Tensor | None]) -> Tensor:
        """Return the mean over all real steps."""
        mask = _join(real)
        return _mean(self.encoder(torch.cat(tokens, dim=1), mask=mask), mask)


class XCrossAttention(nn.Module):
    """The first modality reads all steps of the others, by x-transformers."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        from x_transformers import CrossAttender  # noqa: PLC0415 (optional)

        self.attender = CrossAttender(**_x_transformers(dropout, SIZE))

    def forward(self, tokens: list[Tensor], real: list[Tensor | None]) -> Tensor:
        """Return the mean over the first modality's real steps."""
        memory, memory_mask = torch.cat(tokens[1:], dim=1), _join(real[1:])
        x = self.attender(tokens[0], context=memory, mask=real[0], context_mask=memory_mask)
        return _mean(x, real[0])


class Perceiver(nn.Module):
    """64 latents read all steps once and then each other; perceiver-pytorch has no dropout."""

    def __init__(self, size: Size = SIZE) -> None:
        super().__init__()
        from perceiver_pytorch import PerceiverIO  # noqa: PLC0415 (optional)

        dim, heads, layers, _ = size
        sizes = {"dim": dim, "queries_dim": dim, "latent_dim": dim, "num_latents": 64}
        numbers = {"cross_heads": heads, "latent_heads": heads}
        widths = {"cross_dim_head": dim // heads, "latent_dim_head": dim // heads}
        self.perceiver = PerceiverIO(depth=layers, **sizes, **numbers, **widths)
        self.query = nn.Parameter(torch.randn(1, dim))

    def forward(self, tokens: list[Tensor], real: list[Tensor | None]) -> Tensor:
        """Return what one learnt query reads in the latents."""
        tokens = torch.cat(tokens, dim=1)
        return self.perceiver(tokens, mask=_join(real), queries=self.query).squeeze(1)


def peer(body: Callable[[int, float], nn.Module]) -> Builder:
    """Make a contestant of what `body` makes for a number of modalities and a dropout."""

    def build(modalities: Mapping[str, int], dropout: float) -> Contestant:
        module = Peer(modalities, body(len(modalities), dropout))
        return Contestant(module, module)

    return build


BUILDERS: dict[str, Builder] = {
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
    """Return the contestants that cannot take part, with the package that is not installed."""
    found = importlib.util.find_spec
    return {name: package for name, package in PACKAGES.items() if found(package) is None}


def _ours(fusion: GatedRecurrentFusion) -> Contestant:
    return Contestant(fusion, lambda features, masks: fusion(features, masks=masks))


def _x_transformers(dropout: float, size: Size) -> dict[str, object]:
    dim, heads, layers, _ = size
    drop = {"attn_dropout": dropout, "ff_dropout": dropout}
    attention = {"attn_dim_head": dim // heads, "attn_flash": True}
    return {"dim": dim, "depth": layers, "heads": heads, "verbose": False} | attention | drop


def _join(masks: list[Tensor | None]) -> Tensor | None:
    kept = [mask for mask in masks if mask is not None]
    return torch.cat(kept, dim=1) if kept else None


def _mean(sequence: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return sequence.mean(dim=1)
    real = mask.unsqueeze(-1)
    return (sequence * real).sum(dim=1) / real.sum(dim=1)
