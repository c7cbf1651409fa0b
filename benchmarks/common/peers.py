"""Contestants of the speed and GPU benchmarks: other models, all of one size."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.common.author import AuthorModel, mean, sinusoids
from grf_fusion import GatedRecurrentFusion
from grf_fusion.baselines import MulT

DIM, HEADS, LAYERS, HIDDEN = 64, 4, 4, 256
LONGEST = 8192


class Size(NamedTuple):
    """Width, attention heads, layers and hidden width of the feed-forward of a contestant."""

    dim: int = DIM
    heads: int = HEADS
    layers: int = LAYERS
    hidden: int = HIDDEN


SIZE = Size()
Features = Mapping[str, Tensor]
Masks = Mapping[str, Tensor] | None


class Contestant(NamedTuple):
    """A module and how to call it."""

    module: nn.Module
    call: Callable[[Features, Masks], Tensor]


def author(modalities: Mapping[str, int], dropout: float, size: Size = SIZE) -> Contestant:
    """Return the author's design, with the same random weights at every call."""
    model = AuthorModel(modalities, **size._asdict(), dropout=dropout)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            start = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            spread = parameter.shape[-1] ** -0.5 if parameter.ndim == 2 else 0.1
            parameter.copy_(start + spread * torch.randn(parameter.shape, generator=generator))
    return Contestant(model, model)


def mult(modalities: Mapping[str, int], dropout: float, size: Size = SIZE) -> Contestant:
    """Return MulT at the same width and depth, as computed by its authors, without hidden layers.

    The weights of the head's hidden layers grow with the fourth power of the number of modalities,
    and would be most of the model.
    """
    sizes = {"embed_dim": size.dim, "num_heads": size.heads, "num_layers": size.layers}
    model = MulT(modalities, **sizes, dropout=dropout, literal=True)
    model.head_in = model.head_out = nn.Identity()
    return Contestant(model, lambda features, _: model(features))


class Peer(nn.Module):
    """Projections, positions and a vector per modality, in front of a peer's attention."""

    def __init__(self, modalities: Mapping[str, int], body: nn.Module, dim: int = DIM) -> None:
        super().__init__()
        self.projections = nn.ModuleDict(
            {name: nn.Linear(width, dim) for name, width in modalities.items()}
        )
        self.kinds = nn.Parameter(0.02 * torch.randn(len(modalities), dim))
        self.register_buffer("table", sinusoids(LONGEST, dim), persistent=False)
        self.body = body

    def forward(self, features: Features, masks: Masks) -> Tensor:
        """Return one vector per sample."""
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
        mask = join(real)
        pad = None if mask is None else ~mask
        return mean(self.encoder(torch.cat(tokens, dim=1), src_key_padding_mask=pad), mask)


class XEncoder(nn.Module):
    """Early fusion by x-transformers."""

    def __init__(self, dropout: float, size: Size = SIZE) -> None:
        super().__init__()
        from x_transformers import Encoder  # noqa: PLC0415 (optional)

        self.encoder = Encoder(**x_transformers(dropout, size))

    def forward(self, tokens: list[Tensor], real: list[Tensor | None]) -> Tensor:
        """Return the mean over all real steps."""
        mask = join(real)
        return mean(self.encoder(torch.cat(tokens, dim=1), mask=mask), mask)


class Perceiver(nn.Module):
    """64 latents attend to all steps once, then to each other; perceiver-pytorch has no dropout."""

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
        """Return the output of one learned query that attends to the latents."""
        tokens = torch.cat(tokens, dim=1)
        return self.perceiver(tokens, mask=join(real), queries=self.query).squeeze(1)


def called(fusion: GatedRecurrentFusion) -> Contestant:
    """Return a model of ours as a contestant."""
    return Contestant(fusion, lambda features, masks: fusion(features, masks=masks))


def x_transformers(dropout: float, size: Size) -> dict[str, object]:
    """Return the arguments of a model of x-transformers."""
    dim, heads, layers, _ = size
    drop = {"attn_dropout": dropout, "ff_dropout": dropout}
    attention = {"attn_dim_head": dim // heads, "attn_flash": True}
    return {"dim": dim, "depth": layers, "heads": heads, "verbose": False} | attention | drop


def join(masks: list[Tensor | None]) -> Tensor | None:
    """Concatenate the masks of concatenated sequences."""
    kept = [mask for mask in masks if mask is not None]
    return torch.cat(kept, dim=1) if kept else None
