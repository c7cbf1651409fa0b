"""Charts of retention, missing curves and order sensitivity."""

# pyright: reportUnknownMemberType=false

from collections.abc import Mapping

import torch
from torch import Tensor

from grf_fusion._checks.arguments import ShapeError, expect_shape, expect_tensor
from grf_fusion.diagnostics import MissingCurve, OrderSensitivity, Retention
from grf_fusion.viz._canvas import (
    BLUE,
    GREY,
    MARKERS,
    RED,
    Axes,
    choose_axes,
    choose_colours,
    list_of,
    mark_whole_numbers,
    readable_on,
)

# The smallest share whose part of the bar has room for a label.
LABELLED = 0.05


def plot_retention(
    retention: Retention, *, groups: Mapping[str, Tensor] | None = None, ax: Axes | None = None
) -> Axes:
    """Draw the share of each modality as one stacked bar for each group of samples.

    Args:
        retention: Result of `grf_fusion.diagnostics.retention`.
        groups: Samples of each group, such as ``{"fault": labels == 1}``; ``None`` for one bar.
        ax: Axes to draw into; ``None`` for a new figure.

    Returns:
        The axes.

    Shape:
        - groups: ``(batch,)`` bool each

    Raises:
        ShapeError: If a group has another shape or no sample.
    """
    shares = torch.cat((retention.start.unsqueeze(1), retention.shares), dim=1).detach().cpu()
    bars: list[Tensor] = []
    if groups is None:
        groups = {"all samples": shares.new_ones(len(shares))}
    for name, samples in groups.items():
        argument = f"groups[{name!r}]"
        chosen = expect_tensor("plot_retention", argument, samples)
        expect_shape("plot_retention", argument, chosen, {"batch": len(shares)})
        chosen = chosen.bool().cpu()
        if not chosen.any():
            raise ShapeError(f"plot_retention: expected `{argument}` to hold a sample, got none.")
        bars.append(shares[chosen].mean(dim=0))
    ax = choose_axes(ax)
    heights = torch.stack(bars, dim=1)
    names = ("start", *retention.order)
    colours = (GREY, *choose_colours(len(retention.order)))
    base = heights.new_zeros(len(bars))
    for name, height, colour in zip(names, heights, colours, strict=True):
        patches = ax.bar(
            range(len(bars)), list_of(height), bottom=list_of(base), color=colour, label=name,
            edgecolor="white", width=0.8,
        )  # fmt: skip
        texts = [f"{100 * h:.0f}" if h >= LABELLED else "" for h in list_of(height)]
        ax.bar_label(patches, texts, label_type="center", color=readable_on(colour), fontsize=8)
        base = base + height
    ax.set_xticks(range(len(bars)), list(groups))
    ax.set(ylabel="share of the final context (%)", ylim=(0, 1))
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100"])
    # Reversed, so that the legend has the order of the stacked bars.
    handles, labels = ax.get_legend_handles_labels()
    ax.legend(
        handles[::-1], labels[::-1], loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8,
        title="modality\n(last on top)", title_fontsize=8, frameon=False,
    )  # fmt: skip
    return ax


def plot_missing_curve(
    curves: Mapping[str, MissingCurve], *, metric: str, ax: Axes | None = None
) -> Axes:
    """Draw a metric against the number of missing modalities: mean and range of the draws.

    Args:
        curves: Results of `grf_fusion.diagnostics.missing_curve`, by the name of the fusion.
        metric: Name of the metric and its unit, for the axis.
        ax: Axes to draw into; ``None`` for a new figure.

    Returns:
        The axes.

    Raises:
        ShapeError: If there is no curve.
    """
    if not curves:
        raise ShapeError("plot_missing_curve: expected `curves` to hold a curve, got none.")
    ax = choose_axes(ax)
    for (name, curve), colour, marker in zip(
        curves.items(), choose_colours(len(curves)), MARKERS * len(curves), strict=False
    ):
        x, values = list(curve.missing), curve.values
        mean = list_of(values.mean(dim=1))
        ax.plot(x, mean, color=colour, marker=marker, label=name, markersize=5)
        low, high = list_of(values.amin(dim=1)), list_of(values.amax(dim=1))
        ax.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
    most = max(max(curve.missing) for curve in curves.values())
    ax.set_xticks(range(0, most + 1, 1 + most // 10))
    ax.set(xlabel="modalities missing (band: lowest to highest draw)", ylabel=metric)
    ax.grid(visible=True, alpha=0.3)
    ax.legend(fontsize=8)
    return ax


def plot_order_sensitivity(
    sensitivity: OrderSensitivity, *, metric: str, ax: Axes | None = None
) -> Axes:
    """Draw the metric of every order, sorted, with the declared one marked.

    Args:
        sensitivity: Result of `grf_fusion.diagnostics.order_sensitivity`.
        metric: Name of the metric and its unit, for the axis.
        ax: Axes to draw into; ``None`` for a new figure.

    Returns:
        The axes.
    """
    values, places = sensitivity.values.sort()
    declared = int((places == 0).nonzero())
    ax = choose_axes(ax)
    label = "order (all)" if sensitivity.every else "order (drawn)"
    ax.scatter(range(1, len(values) + 1), list_of(values), s=14, color=BLUE, label=label)
    ax.scatter(
        [declared + 1], [float(values[declared])], s=60, color=RED, marker="D",
        edgecolors="black", label="declared order", zorder=3,
    )  # fmt: skip
    mean, spread = sensitivity.mean, sensitivity.spread
    ax.axhline(mean, color="black", linewidth=1, label=f"mean {mean:.4g}")
    ax.axhspan(
        mean - spread, mean + spread, color=GREY, alpha=0.25, linewidth=0,
        label=f"standard deviation {spread:.2g}",
    )  # fmt: skip
    ax.set(xlabel="order of fusion, sorted by the metric", ylabel=metric)
    mark_whole_numbers(ax.xaxis)
    ax.legend(fontsize=8)
    return ax
