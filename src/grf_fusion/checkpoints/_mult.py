"""A `MulT` from weights of its authors."""

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from grf_fusion.baselines._mult import FEWEST_MEMORY_LAYERS, MulT
from grf_fusion.checkpoints._author_weights import (
    Weight,
    axis_of,
    check_shapes,
    convert,
    count_layers,
    layer,
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
    layers = count_layers(weights, f"trans_{names[0]}_with_{names[1]}.layers.{{}}.fc1.weight")
    tree = list(_tree(sizes, dim, layers, outputs))
    check_shapes(weights, {key: shape for key, shape, _ in tree})
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
    module.load_state_dict(convert(weights, tree))
    return module.eval()


def _tree(sizes: Mapping[str, int], dim: int, layers: int, outputs: int) -> Iterator[Weight]:
    for name, size in sizes.items():
        key = f"{PREFIX}{name}.weight"
        yield Weight(key, (dim, size, 1), (f"projections.{name}.weight",))
    deep = max(layers, FEWEST_MEMORY_LAYERS)
    for name in sizes:
        for other in sizes:
            if other != name:
                target = f"cross_stacks.{name}.{other}"
                yield from _stack(f"trans_{name}_with_{other}", target, dim, layers)
        width = (len(sizes) - 1) * dim
        yield from _stack(f"trans_{name}_mem", f"memory_stacks.{name}", width, deep)
    fused = len(sizes) * (len(sizes) - 1) * dim
    yield from layer("proj1", "head_in", fused, fused)
    yield from layer("proj2", "head_out", fused, fused)
    yield from layer("out_layer", "out_proj", outputs, fused)


def _stack(key: str, target: str, dim: int, layers: int) -> Iterator[Weight]:
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
