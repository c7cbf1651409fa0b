"""A `MulT` from weights of its authors."""

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from grf_fusion.baselines._mult import FEWEST_MEMORY_LAYERS, MulT
from grf_fusion.checkpoints._author_weights import (
    Shapes,
    axis_of,
    check_shapes,
    linear_shapes,
    norm_shapes,
)

PREFIX = "proj_"
# Buffers that the authors' code saves and that hold nothing learnt.
BUFFERS = (".version", "._float_tensor")


def load_mult(
    state_dict: Mapping[str, Tensor], names: Sequence[str], *, num_heads: int, literal: bool
) -> MulT:
    """Build the module, in eval mode; see `load_author_checkpoint`."""
    weights = {key: value for key, value in state_dict.items() if not str(key).endswith(BUFFERS)}
    projections = {name: f"{PREFIX}{name}.weight" for name in names}
    dim = axis_of(weights, projections[names[0]], 0, prefix=PREFIX, ndim=3)
    sizes = {
        name: axis_of(weights, key, 1, prefix=PREFIX, ndim=3) for name, key in projections.items()
    }
    outputs = axis_of(weights, "out_layer.weight", 0, prefix=PREFIX)
    first = f"trans_{names[0]}_with_{names[1]}"
    layers = 1
    while f"{first}.layers.{layers}.fc1.weight" in weights:
        layers += 1
    check_shapes(weights, dict(_expected_shapes(sizes, dim, layers, outputs)))
    like = weights[projections[names[0]]]
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
    module.load_state_dict(dict(_convert(weights, names, layers)))
    return module.eval()


def _stacks(names: Sequence[str], layers: int) -> Iterator[tuple[str, str, int, int]]:
    """Our name, theirs, the number of layers and the width in units of ``stack_dim``."""
    for name in names:
        for other in names:
            if other != name:
                yield f"cross_stacks.{name}.{other}", f"trans_{name}_with_{other}", layers, 1
        deep = max(layers, FEWEST_MEMORY_LAYERS)
        yield f"memory_stacks.{name}", f"trans_{name}_mem", deep, len(names) - 1


def _expected_shapes(sizes: Mapping[str, int], dim: int, layers: int, outputs: int) -> Shapes:
    for name, size in sizes.items():
        yield f"{PREFIX}{name}.weight", (dim, size, 1)
    for _, stack, depth, times in _stacks(list(sizes), layers):
        width = times * dim
        for layer in range(depth):
            prefix = f"{stack}.layers.{layer}"
            yield f"{prefix}.self_attn.in_proj_weight", (3 * width, width)
            yield f"{prefix}.self_attn.in_proj_bias", (3 * width,)
            yield from linear_shapes(f"{prefix}.self_attn.out_proj", width, width)
            yield from linear_shapes(f"{prefix}.fc1", 4 * width, width)
            yield from linear_shapes(f"{prefix}.fc2", width, 4 * width)
            yield from norm_shapes(f"{prefix}.layer_norms.0", width)
            yield from norm_shapes(f"{prefix}.layer_norms.1", width)
        yield from norm_shapes(f"{stack}.layer_norm", width)
    fused = len(sizes) * (len(sizes) - 1) * dim
    yield from linear_shapes("proj1", fused, fused)
    yield from linear_shapes("proj2", fused, fused)
    yield from linear_shapes("out_layer", outputs, fused)


def _convert(
    weights: Mapping[str, Tensor], names: Sequence[str], layers: int
) -> Iterator[tuple[str, Tensor]]:
    def copy(ours: str, theirs: str) -> Iterator[tuple[str, Tensor]]:
        for kind in ("weight", "bias"):
            yield f"{ours}.{kind}", weights[f"{theirs}.{kind}"]

    for name in names:
        yield f"projections.{name}.weight", weights[f"{PREFIX}{name}.weight"].squeeze(-1)
    for stack, their_stack, depth, _ in _stacks(names, layers):
        for layer in range(depth):
            ours, theirs = f"{stack}.layers.{layer}", f"{their_stack}.layers.{layer}"
            for kind in ("weight", "bias"):
                packed = weights[f"{theirs}.self_attn.in_proj_{kind}"]
                width = len(packed) // 3
                yield f"{ours}.q_proj.{kind}", packed[:width]
                yield f"{ours}.kv_proj.{kind}", packed[width:]
            yield from copy(f"{ours}.out_proj", f"{theirs}.self_attn.out_proj")
            yield from copy(f"{ours}.linear1", f"{theirs}.fc1")
            yield from copy(f"{ours}.linear2", f"{theirs}.fc2")
            yield from copy(f"{ours}.attention_norm", f"{theirs}.layer_norms.0")
            yield from copy(f"{ours}.feedforward_norm", f"{theirs}.layer_norms.1")
        yield from copy(f"{stack}.norm", f"{their_stack}.layer_norm")
    yield from copy("head_in", "proj1")
    yield from copy("head_out", "proj2")
    yield from copy("out_proj", "out_layer")
