"""Loading of other people's trained weights."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from einops import rearrange
from torch import Tensor

from grf_fusion._fusion import GatedRecurrentFusion

__all__ = ["load_author_checkpoint"]

OWNER = "load_author_checkpoint"
HEADS = ("regressor.", "auxiliary_regressor.")
IN_PROJ = {"weight": "(three out) dim -> three out dim", "bias": "(three out) -> three out"}


def load_author_checkpoint(
    state_dict: Mapping[str, Tensor], *, order: Sequence[str], num_heads: int
) -> GatedRecurrentFusion:
    """Build a `GatedRecurrentFusion` that equals a trained model of the GRF authors.

    Sizes are read off the weights. The authors' model is ``context="first_sequence"`` with weights
    of its own for each step. Key biases are left out, for the softmax cancels them, and so are the
    heads (``regressor``, ``auxiliary_regressor``).

    Args:
        state_dict: The authors' names and tensors: ``projectors.<name>.*``,
            ``fusion_encoders.<step>.decoder_{1,2}.layers.<layer>.*`` (1 is the context's stack),
            ``gfus.<step>.*``.
        order: Names of the modalities in the order of fusion, at least two.
        num_heads: Attention heads, which no weight tells.

    Returns:
        The module, in eval mode, on the device and of the dtype of the weights, sharing no memory
        with them.

    Raises:
        ValueError: If names are missing or unexpected, shapes do not fit together, or
            ``num_heads`` does not divide the width. Nothing is built then.
    """
    names = _check_order(order)
    if not isinstance(state_dict, Mapping):
        raise ValueError(
            f"{OWNER}: expected `state_dict` to map names to tensors, "
            f"got {type(state_dict).__name__}."
        )
    weights = {key: value for key, value in state_dict.items() if not str(key).startswith(HEADS)}
    dim = _axis(weights, f"projectors.{names[0]}.weight", 0)
    hidden = _axis(weights, "fusion_encoders.0.decoder_1.layers.0.linear1.weight", 0)
    sizes = {name: _axis(weights, f"projectors.{name}.weight", 1) for name in names}
    layers = 1
    while f"fusion_encoders.0.decoder_1.layers.{layers}.linear1.weight" in weights:
        layers += 1
    _check_shapes(weights, dict(_expected_shapes(sizes, dim, hidden, layers)))
    fusion = GatedRecurrentFusion(
        sizes,
        embed_dim=dim,
        num_heads=num_heads,
        num_layers=layers,
        dim_feedforward=hidden,
        context="first_sequence",
        share_weights=False,
        device=weights[f"projectors.{names[0]}.weight"].device,
        dtype=weights[f"projectors.{names[0]}.weight"].dtype,
    )
    fusion.load_state_dict(dict(_convert(weights, names, layers)))
    return fusion.eval()


def _check_order(order: Sequence[str]) -> list[str]:
    usable = isinstance(order, Sequence) and all(isinstance(name, str) for name in order)
    names = list(order) if usable and not isinstance(order, str) else []
    if len(names) < 2 or len(set(names)) != len(names):
        raise ValueError(
            f"{OWNER}: expected `order` to name at least two different modalities, got {order!r}."
        )
    return names


def _axis(weights: Mapping[str, Tensor], key: str, axis: int) -> int:
    if key not in weights:
        projected = sorted(name for name in weights if name.startswith("projectors."))
        raise ValueError(
            f"{OWNER}: expected `state_dict` to hold {key!r}, got none. "
            f"It projects {projected}; `order` names the same modalities."
        )
    value = weights[key]
    if not isinstance(value, Tensor) or value.ndim != 2:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"{OWNER}: expected {key!r} to be a matrix, got {_describe(value)}.")
    return value.shape[axis]


def _describe(value: object) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def _expected_shapes(
    sizes: Mapping[str, int], dim: int, hidden: int, layers: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    def linear(prefix: str, out: int, into: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{prefix}.weight", (out, into)
        yield f"{prefix}.bias", (out,)

    for name, size in sizes.items():
        yield from linear(f"projectors.{name}", dim, size)
    for step in range(len(sizes) - 1):
        for stack in ("decoder_1", "decoder_2"):
            for layer in range(layers):
                prefix = f"fusion_encoders.{step}.{stack}.layers.{layer}"
                for attention in ("self_attn", "multihead_attn"):
                    yield f"{prefix}.{attention}.in_proj_weight", (3 * dim, dim)
                    yield f"{prefix}.{attention}.in_proj_bias", (3 * dim,)
                    yield from linear(f"{prefix}.{attention}.out_proj", dim, dim)
                yield from linear(f"{prefix}.linear1", hidden, dim)
                yield from linear(f"{prefix}.linear2", dim, hidden)
                for norm in ("norm1", "norm2", "norm3"):
                    yield f"{prefix}.{norm}.weight", (dim,)
                    yield f"{prefix}.{norm}.bias", (dim,)
        yield from linear(f"gfus.{step}.linear_gate", dim, 2 * dim)
        yield from linear(f"gfus.{step}.linear_candidate", dim, 2 * dim)
        yield f"gfus.{step}.norm.weight", (dim,)
        yield f"gfus.{step}.norm.bias", (dim,)


def _check_shapes(weights: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> None:
    missing = [key for key in expected if key not in weights]
    unexpected = [key for key in weights if key not in expected]
    if missing or unexpected:
        raise ValueError(
            f"{OWNER}: expected `state_dict` to hold the authors' names, "
            f"missing {missing}, unexpected {unexpected}."
        )
    first = next(iter(expected))
    like = weights[first]
    for key, shape in expected.items():
        value = weights[key]
        if _describe(value) != str(shape):
            raise ValueError(f"{OWNER}: expected {key!r} of shape {shape}, got {_describe(value)}.")
        if not value.is_floating_point():
            raise ValueError(f"{OWNER}: expected {key!r} to be floating-point, got {value.dtype}.")
        if value.dtype != like.dtype or value.device != like.device:
            raise ValueError(
                f"{OWNER}: expected {key!r} to be {like.dtype} on {like.device}, as {first!r}, "
                f"got {value.dtype} on {value.device}."
            )


def _convert(
    weights: Mapping[str, Tensor], names: Sequence[str], layers: int
) -> Iterator[tuple[str, Tensor]]:
    def copy(ours: str, theirs: str) -> Iterator[tuple[str, Tensor]]:
        for kind in ("weight", "bias"):
            yield f"{ours}.{kind}", weights[f"{theirs}.{kind}"]

    for name in names:
        yield from copy(f"projections.{name}", f"projectors.{name}")
    for step, name in enumerate(names[1:]):
        for stack, decoder in (("context_layers", "decoder_1"), ("modality_layers", "decoder_2")):
            for layer in range(layers):
                ours = f"blocks.{name}.{stack}.{layer}"
                theirs = f"fusion_encoders.{step}.{decoder}.layers.{layer}"
                for own, their in (("self_attn", "self_attn"), ("cross_attn", "multihead_attn")):
                    matrices, biases = (
                        rearrange(weights[f"{theirs}.{their}.in_proj_{kind}"], pattern, three=3)
                        for kind, pattern in IN_PROJ.items()
                    )
                    for projection, matrix in zip(("q", "k", "v"), matrices, strict=True):
                        yield f"{ours}.{own}.{projection}_proj.weight", matrix
                    yield f"{ours}.{own}.q_proj.bias", biases[0]
                    yield f"{ours}.{own}.v_proj.bias", biases[2]
                    yield from copy(f"{ours}.{own}.out_proj", f"{theirs}.{their}.out_proj")
                yield from copy(f"{ours}.linear1", f"{theirs}.linear1")
                yield from copy(f"{ours}.linear2", f"{theirs}.linear2")
                yield from copy(f"{ours}.self_attn_norm", f"{theirs}.norm1")
                yield from copy(f"{ours}.cross_attn_norm", f"{theirs}.norm2")
                yield from copy(f"{ours}.feedforward_norm", f"{theirs}.norm3")
        for kind in ("weight", "bias"):
            gate, candidate = (
                weights[f"gfus.{step}.linear_{part}.{kind}"] for part in ("gate", "candidate")
            )
            yield f"units.{name}.linear.{kind}", torch.cat((gate, candidate))
        yield from copy(f"units.{name}.norm", f"gfus.{step}.norm")
