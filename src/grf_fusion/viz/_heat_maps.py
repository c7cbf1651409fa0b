"""Gates and attention weights as heat maps."""

# pyright: reportUnknownMemberType=false

from typing import Literal

import torch
from torch import Tensor

from grf_fusion._chain.state import FusionTrace
from grf_fusion._checks.arguments import ShapeError, expect_choice, expect_shape, expect_tensor
from grf_fusion.diagnostics._trace import mean_where, read_trace
from grf_fusion.viz._canvas import Axes, choose_axes, colormaps, mark_whole_numbers


def plot_gates(
    trace: FusionTrace, *, by: Literal["feature", "sample"] = "feature", ax: Axes | None = None
) -> Axes:
    """Draw the gates of every step as a heat map, steps from top to bottom.

    Args:
        trace: Trace of a `GatedRecurrentFusion`, from ``return_trace=True``.
        by: ``"feature"`` for a column per feature, averaged over samples, or ``"sample"`` for a
            column per sample, averaged over features. Cells without a gate are grey.
        ax: Axes to draw into; ``None`` for a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: If ``by`` is unknown.
        ShapeError: If ``trace`` is not a `FusionTrace`, or has no step.
    """
    expect_choice("plot_gates", "by", by, ("feature", "sample"))
    steps = read_trace("plot_gates", trace)
    if not steps.names:
        raise ShapeError(
            "plot_gates: expected `trace` to have a step, got none. An only modality that opens "
            "the context has no gate."
        )
    gates = steps.gates.detach()
    if by == "feature":
        rows, whole = mean_where(gates, steps.applied.unsqueeze(-1)), "context"
    else:
        rows, whole = gates.mean(dim=-1).masked_fill(~steps.applied, torch.nan).T, "batch"
    label = "update gate z\n(0 keeps the context, 1 overwrites it)"
    ax = _draw(ax, rows, label, most=1.0, ylabel="step", xlabel=f"{by} of the {whole}")
    ax.set_yticks(range(len(steps.names)), steps.names)
    return ax


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
    if head is not None:
        rows, ylabel, title = maps[head], "query step", f"head {head}"
    elif maps.shape[1] == 1:
        rows, ylabel, title = maps[:, 0], "head", "one query"
    else:
        rows, ylabel, title = maps.mean(dim=0), "query step", "mean of the heads"
    title = f"sample {sample}, layer {layer}, {title}"
    label = "attention weight\n(a row sums to 1)"
    ax = _draw(ax, rows, label, xlabel="key step", ylabel=ylabel, title=title)
    mark_whole_numbers(ax.yaxis)
    return ax


def _draw(
    ax: Axes | None, rows: Tensor, label: str, *, most: float | None = None, **texts: str
) -> Axes:
    """Draw numbers as colours, from 0 up to ``most`` or the largest; NaN is grey."""
    ax = choose_axes(ax)
    image = ax.imshow(
        rows.cpu().double().numpy(), aspect="auto", interpolation="nearest", vmin=0.0, vmax=most,
        cmap=colormaps["cividis"].with_extremes(bad="lightgrey"),
    )  # fmt: skip
    ax.figure.colorbar(image, ax=ax, label=label)
    ax.set(**texts)
    return ax
