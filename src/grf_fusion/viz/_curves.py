"""A metric against missing modalities, and against the order of fusion."""

# pyright: reportUnknownMemberType=false
# (matplotlib leaves the types of keyword arguments open.)

from collections.abc import Mapping

from grf_fusion._checks.arguments import ShapeError
from grf_fusion.diagnostics import MissingCurve, OrderSensitivity
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
)


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
        ax.plot(
            x, list_of(values.mean(dim=1)), color=colour, marker=marker, label=name, markersize=5
        )
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
    kind = "all" if sensitivity.every else "drawn"
    ax.scatter(
        range(1, len(values) + 1), list_of(values), s=14, color=BLUE, label=f"order ({kind})"
    )
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
