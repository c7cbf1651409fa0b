"""Load trained weights of the original GRF and MulT code."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, overload

from torch import Tensor

from grf_fusion._chain.fusion import GatedRecurrentFusion
from grf_fusion._checks.arguments import expect_choice, expect_flag
from grf_fusion.baselines._mult import FEWEST_MEMORY_LAYERS, MulT
from grf_fusion.checkpoints._author_weights import (
    OWNER,
    Weight,
    axis_of,
    check_shapes,
    convert,
    count_layers,
    layer,
)

GRF_PREFIX = "projectors."
HEADS = ("regressor.", "auxiliary_regressor.")
NORMS = {"norm1": "self_attn_norm", "norm2": "cross_attn_norm", "norm3": "feedforward_norm"}
MULT_PREFIX = "proj_"
# Buffers in saved MulT weights. They are constants, not trained.
BUFFERS = (".version", "._float_tensor")


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

    ``"mult"``: the head is part of the module, and ``embed_dim`` is its number of outputs. The
    names are ``proj_<name>.weight``, ``trans_<name>_with_<other>.*``, ``trans_<name>_mem.*``,
    ``proj1``, ``proj2`` and ``out_layer``; the MulT authors call their modalities l, a and v.

    Args:
        state_dict: The trained weights, with the names of the original code.
        order: Names of the modalities as in the weights, at least two, in the order of fusion or
            concatenation.
        num_heads: Number of attention heads, which cannot be inferred from the weights.
        model: The original model, ``"grf"`` or ``"mult"``.
        literal: Whether padding is treated as content, as in the code of the MulT authors; see
            `MulT`.

    Returns:
        The module, in eval mode, on the device and of the dtype of the weights. It shares no memory
        with them.

    Raises:
        ValueError: If names are missing or unexpected, shapes are inconsistent, ``num_heads`` does
            not divide the width, or an option is invalid.
    """
    usable = isinstance(order, Sequence) and all(isinstance(name, str) for name in order)
    names = list(order) if usable and not isinstance(order, str) else []
    if len(names) < 2 or len(set(names)) != len(names):
        raise ValueError(
            f"{OWNER}: expected `order` to name at least two different modalities, got {order!r}."
        )
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
        return _load_mult(state_dict, names, num_heads=num_heads, literal=literal)
    return _load_grf(state_dict, names, num_heads=num_heads)


def _load_grf(
    state_dict: Mapping[str, Tensor], names: list[str], *, num_heads: int
) -> GatedRecurrentFusion:
    weights = {key: value for key, value in state_dict.items() if not str(key).startswith(HEADS)}
    first = "fusion_encoders.0.decoder_1.layers.{}.linear1.weight"
    keys = {name: f"{GRF_PREFIX}{name}.weight" for name in names}
    dim = axis_of(weights, GRF_PREFIX, keys[names[0]], 0)
    hidden = axis_of(weights, GRF_PREFIX, first.format(0), 0)
    sizes = {name: axis_of(weights, GRF_PREFIX, key, 1) for name, key in keys.items()}
    layers = count_layers(weights, first)
    tree = list(_grf_tree(sizes, dim, hidden, layers))
    check_shapes(weights, {key: shape for key, shape, _ in tree})
    like = weights[keys[names[0]]]
    fusion = GatedRecurrentFusion(
        sizes,
        embed_dim=dim,
        num_heads=num_heads,
        num_layers=layers,
        form="paper",
        dim_feedforward=hidden,
        context="first_sequence",
        share_weights=False,
        device=like.device,
        dtype=like.dtype,
    )
    fusion.load_state_dict(convert(weights, tree))
    return fusion.eval()


def _grf_tree(sizes: Mapping[str, int], dim: int, hidden: int, layers: int) -> Iterator[Weight]:
    for name, size in sizes.items():
        yield from layer(f"{GRF_PREFIX}{name}", f"projections.{name}", dim, size)
    for step, name in enumerate(list(sizes)[1:]):
        for decoder, stack in (("decoder_1", "context_layers"), ("decoder_2", "modality_layers")):
            for number in range(layers):
                key = f"fusion_encoders.{step}.{decoder}.layers.{number}"
                own = f"blocks.{name}.{stack}.{number}"
                yield from _grf_attention(f"{key}.self_attn", f"{own}.self_attn", dim)
                yield from _grf_attention(f"{key}.multihead_attn", f"{own}.cross_attn", dim)
                yield from layer(f"{key}.linear1", f"{own}.linear1", hidden, dim)
                yield from layer(f"{key}.linear2", f"{own}.linear2", dim, hidden)
                for norm_of, own_norm in NORMS.items():
                    yield from layer(f"{key}.{norm_of}", f"{own}.{own_norm}", dim)
        # Our linear layer computes the gate and the candidate together.
        for half in ("gate", "candidate"):
            yield from layer(f"gfus.{step}.linear_{half}", f"units.{name}.linear", dim, 2 * dim)
        yield from layer(f"gfus.{step}.norm", f"units.{name}.norm", dim)


def _grf_attention(key: str, target: str, dim: int) -> Iterator[Weight]:
    weights = tuple(f"{target}.{part}_proj.weight" for part in "qkv")
    biases = (f"{target}.q_proj.bias", "", f"{target}.v_proj.bias")
    yield Weight(f"{key}.in_proj_weight", (3 * dim, dim), weights)
    yield Weight(f"{key}.in_proj_bias", (3 * dim,), biases)
    yield from layer(f"{key}.out_proj", f"{target}.out_proj", dim, dim)


def _load_mult(
    state_dict: Mapping[str, Tensor], names: list[str], *, num_heads: int, literal: bool
) -> MulT:
    weights = {key: value for key, value in state_dict.items() if not str(key).endswith(BUFFERS)}
    keys = {name: f"{MULT_PREFIX}{name}.weight" for name in names}
    dim = axis_of(weights, MULT_PREFIX, keys[names[0]], 0, ndim=3)
    sizes = {name: axis_of(weights, MULT_PREFIX, key, 1, ndim=3) for name, key in keys.items()}
    outputs = axis_of(weights, MULT_PREFIX, "out_layer.weight", 0)
    layers = count_layers(weights, f"trans_{names[0]}_with_{names[1]}.layers.{{}}.fc1.weight")
    tree = list(_mult_tree(sizes, dim, layers, outputs))
    check_shapes(weights, {key: shape for key, shape, _ in tree})
    like = weights[keys[names[0]]]
    module = MulT(
        sizes,
        embed_dim=outputs,
        num_heads=num_heads,
        num_layers=layers,
        stack_dim=dim,
        literal=literal,
        device=like.device,
        dtype=like.dtype,
    )
    module.load_state_dict(convert(weights, tree))
    return module.eval()


def _mult_tree(sizes: Mapping[str, int], dim: int, layers: int, outputs: int) -> Iterator[Weight]:
    for name, size in sizes.items():
        key = f"{MULT_PREFIX}{name}.weight"
        yield Weight(key, (dim, size, 1), (f"projections.{name}.weight",))
    deep = max(layers, FEWEST_MEMORY_LAYERS)
    for name in sizes:
        for other in sizes:
            if other != name:
                target = f"cross_stacks.{name}.{other}"
                yield from _mult_stack(f"trans_{name}_with_{other}", target, dim, layers)
        width = (len(sizes) - 1) * dim
        yield from _mult_stack(f"trans_{name}_mem", f"memory_stacks.{name}", width, deep)
    fused = len(sizes) * (len(sizes) - 1) * dim
    yield from layer("proj1", "head_in", fused, fused)
    yield from layer("proj2", "head_out", fused, fused)
    yield from layer("out_layer", "out_proj", outputs, fused)


def _mult_stack(key: str, target: str, dim: int, layers: int) -> Iterator[Weight]:
    for number in range(layers):
        theirs, own = f"{key}.layers.{number}", f"{target}.layers.{number}"
        for kind, shape in (("weight", (3 * dim, dim)), ("bias", (3 * dim,))):
            query, both = f"{own}.q_proj.{kind}", f"{own}.kv_proj.{kind}"
            yield Weight(f"{theirs}.self_attn.in_proj_{kind}", shape, (query, both, both))
        yield from layer(f"{theirs}.self_attn.out_proj", f"{own}.out_proj", dim, dim)
        yield from layer(f"{theirs}.fc1", f"{own}.linear1", 4 * dim, dim)
        yield from layer(f"{theirs}.fc2", f"{own}.linear2", dim, 4 * dim)
        yield from layer(f"{theirs}.layer_norms.0", f"{own}.attention_norm", dim)
        yield from layer(f"{theirs}.layer_norms.1", f"{own}.feedforward_norm", dim)
    yield from layer(f"{key}.layer_norm", f"{target}.norm", dim)
