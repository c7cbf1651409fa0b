"""Load trained weights from the code of the GRF author and of the MulT authors."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, overload

import torch
from einops import rearrange
from torch import Tensor

from grf_fusion._chain.fusion import GatedRecurrentFusion
from grf_fusion._checks.arguments import expect_choice, expect_flag
from grf_fusion.baselines._mult import MulT
from grf_fusion.checkpoints._author_weights import (
    OWNER,
    Shapes,
    axis_of,
    check_order,
    check_shapes,
    linear_shapes,
    norm_shapes,
)
from grf_fusion.checkpoints._mult import load_mult

PREFIX = "projectors."
HEADS = ("regressor.", "auxiliary_regressor.")
IN_PROJ = {"weight": "(three out) dim -> three out dim", "bias": "(three out) -> three out"}


@overload
def load_author_checkpoint(
    state_dict: Mapping[str, Tensor],
    *,
    order: Sequence[str],
    num_heads: int,
    model: Literal["grf"] = "grf",
) -> GatedRecurrentFusion: ...


@overload
def load_author_checkpoint(
    state_dict: Mapping[str, Tensor],
    *,
    order: Sequence[str],
    num_heads: int,
    model: Literal["mult"],
    literal: bool = False,
) -> MulT: ...


def load_author_checkpoint(
    state_dict: Mapping[str, Tensor],
    *,
    order: Sequence[str],
    num_heads: int,
    model: Literal["grf", "mult"] = "grf",
    literal: bool = False,
) -> GatedRecurrentFusion | MulT:
    """Build a module equivalent to a trained model of the GRF author or of the MulT authors.

    Sizes are inferred from the weights.

    ``"grf"``: the author's model has ``context="first_sequence"`` and separate weights for each
    step. Key biases, which the softmax cancels, and the heads (``regressor``,
    ``auxiliary_regressor``) are not loaded. The names are ``projectors.<name>.*``,
    ``fusion_encoders.<step>.decoder_{1,2}.layers.<layer>.*`` (1 is the context's stack) and
    ``gfus.<step>.*``.

    ``"mult"``: the head is part of the module, and ``embed_dim`` its number of outputs. The names
    are ``proj_<name>.weight``, ``trans_<name>_with_<other>.*``, ``trans_<name>_mem.*``, ``proj1``,
    ``proj2`` and ``out_layer``; the MulT authors call their modalities l, a and v.

    Args:
        state_dict: The trained weights, with the names of the original code.
        order: Names of the modalities as in the weights, at least two, in the order of fusion or
            concatenation.
        num_heads: Number of attention heads, which cannot be inferred from the weights.
        model: Which model it is, ``"grf"`` or ``"mult"``.
        literal: Whether padding is treated as content, as in the code of the MulT authors; see
            `MulT`.

    Returns:
        The module, in eval mode, on the device and of the dtype of the weights. It shares no memory
        with them.

    Raises:
        ValueError: If names are missing or unexpected, shapes are inconsistent, ``num_heads`` does
            not divide the width, or an option is invalid.
    """
    names = check_order(order)
    expect_choice(OWNER, "model", model, ("grf", "mult"))
    expect_flag(OWNER, "literal", literal)
    if literal and model == "grf":
        raise ValueError(
            f"{OWNER}: expected no `literal` with model='grf', got True. It is an option of MulT."
        )
    if not isinstance(state_dict, Mapping):
        raise ValueError(
            f"{OWNER}: expected `state_dict` to map names to tensors, "
            f"got {type(state_dict).__name__}."
        )
    if model == "mult":
        return load_mult(state_dict, names, num_heads=num_heads, literal=literal)
    return _load_grf(state_dict, names, num_heads)


def _load_grf(
    state_dict: Mapping[str, Tensor], names: list[str], num_heads: int
) -> GatedRecurrentFusion:
    weights = {key: value for key, value in state_dict.items() if not str(key).startswith(HEADS)}
    first = "fusion_encoders.0.decoder_1.layers.0.linear1.weight"
    dim = axis_of(weights, f"{PREFIX}{names[0]}.weight", 0, prefix=PREFIX)
    hidden = axis_of(weights, first, 0, prefix=PREFIX)
    sizes = {name: axis_of(weights, f"{PREFIX}{name}.weight", 1, prefix=PREFIX) for name in names}
    layers = 1
    while f"fusion_encoders.0.decoder_1.layers.{layers}.linear1.weight" in weights:
        layers += 1
    check_shapes(weights, dict(_expected_shapes(sizes, dim, hidden, layers)))
    fusion = GatedRecurrentFusion(
        sizes,
        embed_dim=dim,
        num_heads=num_heads,
        num_layers=layers,
        form="paper",
        dim_feedforward=hidden,
        context="first_sequence",
        share_weights=False,
        device=weights[f"projectors.{names[0]}.weight"].device,
        dtype=weights[f"projectors.{names[0]}.weight"].dtype,
    )
    fusion.load_state_dict(dict(_convert(weights, names, layers)))
    return fusion.eval()


def _expected_shapes(sizes: Mapping[str, int], dim: int, hidden: int, layers: int) -> Shapes:
    for name, size in sizes.items():
        yield from linear_shapes(f"projectors.{name}", dim, size)
    for step in range(len(sizes) - 1):
        for stack in ("decoder_1", "decoder_2"):
            for layer in range(layers):
                prefix = f"fusion_encoders.{step}.{stack}.layers.{layer}"
                for attention in ("self_attn", "multihead_attn"):
                    yield f"{prefix}.{attention}.in_proj_weight", (3 * dim, dim)
                    yield f"{prefix}.{attention}.in_proj_bias", (3 * dim,)
                    yield from linear_shapes(f"{prefix}.{attention}.out_proj", dim, dim)
                yield from linear_shapes(f"{prefix}.linear1", hidden, dim)
                yield from linear_shapes(f"{prefix}.linear2", dim, hidden)
                for norm in ("norm1", "norm2", "norm3"):
                    yield from norm_shapes(f"{prefix}.{norm}", dim)
        yield from linear_shapes(f"gfus.{step}.linear_gate", dim, 2 * dim)
        yield from linear_shapes(f"gfus.{step}.linear_candidate", dim, 2 * dim)
        yield from norm_shapes(f"gfus.{step}.norm", dim)


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
