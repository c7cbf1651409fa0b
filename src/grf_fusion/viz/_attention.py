"""Attention weights as a heat map."""

# pyright: reportUnknownMemberType=false
# (matplotlib leaves the types of keyword arguments open.)

from torch import Tensor

from grf_fusion._checks.arguments import ShapeError, expect_shape, expect_tensor
from grf_fusion.viz._canvas import Axes, choose_axes, draw_heat_map, mark_whole_numbers


def plot_attention(
    weights: Tensor,
    *,
    sample: int = 0,
    layer: int = 0,
    head: int | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the attention weights of a sample as a heat map.

    Args:
        weights: One of the `AttentionWeights` from `grf_fusion.diagnostics.attention_maps`.
        sample: Index of the sample.
        layer: Index of the layer.
        head: Index of the head; ``None`` for the mean over heads, or, with a single query, for one
            row per head.
        ax: Axes to draw into; ``None`` for a new figure.

    Returns:
        The axes.

    Shape:
        - weights: ``(batch, layers, heads, queries, keys)``

    Raises:
        ShapeError: If ``weights`` has another shape, or an index is out of range.
    """
    owner = "plot_attention"
    tensor = expect_tensor(owner, "weights", weights)
    axes: dict[str, int | None] = dict.fromkeys(("batch", "layers", "heads", "queries", "keys"))
    expect_shape(owner, "weights", tensor, axes)
    if 0 in tensor.shape:
        raise ShapeError(
            f"{owner}: expected `weights` of at least one sample, layer, head, query and key, "
            f"got {tuple(tensor.shape)}."
        )
    for argument, index, size in zip(
        ("sample", "layer", "head"), (sample, layer, head or 0), tensor.shape, strict=False
    ):
        if not 0 <= index < size:
            raise ShapeError(f"{owner}: expected `{argument}` from 0 to {size - 1}, got {index}.")
    maps = tensor[sample, layer].detach()
    ax = choose_axes(ax)
    if head is not None:
        rows, ylabel, title = maps[head], "query step", f"head {head}"
    elif maps.shape[1] == 1:
        rows, ylabel, title = maps[:, 0], "head", "one query"
    else:
        rows, ylabel, title = maps.mean(dim=0), "query step", "mean of the heads"
    draw_heat_map(ax, rows, "attention weight\n(a row sums to 1)")
    mark_whole_numbers(ax.yaxis)
    ax.set(xlabel="key step", ylabel=ylabel, title=f"sample {sample}, layer {layer}, {title}")
    return ax
