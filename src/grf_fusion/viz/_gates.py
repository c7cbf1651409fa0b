"""Gates as a heat map, and the shares that remain in the context."""

# pyright: reportUnknownMemberType=false
# (matplotlib leaves the types of keyword arguments open.)

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from grf_fusion._chain.state import FusionTrace
from grf_fusion._checks.arguments import ShapeError, expect_choice, expect_shape, expect_tensor
from grf_fusion.diagnostics import Retention
from grf_fusion.diagnostics._trace import mean_where, read_trace
from grf_fusion.viz._canvas import (
    GREY,
    Axes,
    choose_axes,
    choose_colours,
    draw_heat_map,
    list_of,
    readable_on,
)

# A share that is wide enough for a label inside its bar.
LABELLED = 0.05


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
        rows = mean_where(gates, steps.applied.unsqueeze(-1))
    else:
        rows = gates.mean(dim=-1).masked_fill(~steps.applied, torch.nan).T
    ax = choose_axes(ax)
    draw_heat_map(ax, rows, "update gate z\n(0 keeps the context, 1 overwrites it)", most=1.0)
    ax.set_yticks(range(len(steps.names)), steps.names)
    ax.set(xlabel=f"{by} of the {'context' if by == 'feature' else 'batch'}", ylabel="step")
    return ax


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
    everybody = torch.ones(len(shares), dtype=torch.bool)
    bars: list[Tensor] = []
    groups = {"all samples": everybody} if groups is None else groups
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
    base = torch.zeros(len(bars))
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
    # Upside down, so that the legend reads as the bars are stacked.
    handles, labels = ax.get_legend_handles_labels()
    ax.legend(
        handles[::-1], labels[::-1], loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8,
        title="modality\n(last on top)", title_fontsize=8, frameon=False,
    )  # fmt: skip
    return ax
