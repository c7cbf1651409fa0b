"""The path of the context in a plane."""

# pyright: reportUnknownMemberType=false

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor

from grf_fusion._chain.state import FusionTrace
from grf_fusion._checks.arguments import ShapeError, expect_shape, expect_tensor
from grf_fusion.diagnostics._trace import read_trace
from grf_fusion.viz._canvas import MARKERS, Axes, choose_axes, choose_colours, list_of


def plot_context_path(
    trace: FusionTrace,
    labels: Tensor,
    *,
    names: Mapping[int, str] | None = None,
    step: int | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the path of the context in the plane of its first two principal components.

    The plane is computed from the contexts of all samples after all steps, so that figures of
    different steps can be compared. Lines follow the mean context of each class from step to step;
    points are the samples.

    Args:
        trace: Trace of a `GatedRecurrentFusion`, from ``return_trace=True``.
        labels: Class of each sample.
        names: Names of the classes; ``None`` for their numbers.
        step: Index of the step after which to draw the samples, without lines; ``None`` for lines,
            and the samples after the last step.
        ax: Axes to draw into; ``None`` for a new figure.

    Returns:
        The axes.

    Shape:
        - labels: ``(batch,)``

    Raises:
        ShapeError: If ``trace`` is not a `FusionTrace`, its context has fewer than two features,
            ``labels`` has another shape, or ``step`` is out of range.
    """
    owner = "plot_context_path"
    order = read_trace(owner, trace).order
    contexts = trace.contexts.detach().double().cpu()
    batch, count, dim = contexts.shape
    if dim < 2:
        raise ShapeError(
            f"{owner}: expected `trace.contexts` to have two features or more, got {dim}."
        )
    labels = expect_tensor(owner, "labels", labels).cpu()
    expect_shape(owner, "labels", labels, {"batch": batch})
    if step is not None and not 0 <= step < count:
        raise ShapeError(f"{owner}: expected `step` from 0 to {count - 1}, got {step}.")
    points, explained = _project(contexts)
    classes = sorted({int(label) for label in list_of(labels)})
    ax = choose_axes(ax)
    cloud = points[:, count - 1 if step is None else step]
    for label, colour, marker in zip(
        classes, choose_colours(len(classes)), MARKERS * len(classes), strict=False
    ):
        chosen = labels == label
        x, y = (list_of(column) for column in cloud[chosen].unbind(dim=1))
        text = str(label) if names is None else names[label]
        # Samples are small points behind the path.
        ax.scatter(x, y, s=9, color=colour, alpha=0.35, marker=marker, linewidths=0, label=text)
        if step is None:
            x, y = (list_of(column) for column in points[chosen].mean(dim=0).unbind(dim=1))
            ax.plot(
                x, y, color=colour, marker=marker, markersize=5, markeredgecolor="black",
                markeredgewidth=0.6, linewidth=1.5, zorder=3,
            )  # fmt: skip
            # The start and the end of the path.
            ax.scatter(
                [x[0], x[-1]], [y[0], y[-1]], s=[35, 90], color=["white", colour], marker=marker,
                edgecolors="black", zorder=4,
            )  # fmt: skip
    path = f"class means from {order[0]} (white) to {order[-1]} (large)"
    ax.set(
        title=path if step is None else f"after {order[step]}",
        xlabel=f"principal component 1 ({explained[0]:.0%} of variance)",
        ylabel=f"principal component 2 ({explained[1]:.0%})",
    )
    legend = ax.legend(title="class", fontsize=8, title_fontsize=8, markerscale=2)
    for handle in filter(None, legend.legend_handles):
        handle.set_alpha(1.0)
    return ax


def _project(contexts: Tensor) -> tuple[Tensor, list[float]]:
    """Return the first two principal components of the contexts, and their shares of variance."""
    rows = contexts.flatten(0, 1)
    centred = rows - rows.mean(dim=0)
    scatter = centred.T @ centred
    variances, directions = cast("tuple[Tensor, Tensor]", torch.linalg.eigh(scatter))
    directions = directions.flip(1)[:, :2]
    # The sign of an eigenvector is arbitrary, so its largest entry is made positive.
    signs = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True)).sign()
    total = variances.sum().clamp(min=torch.finfo(variances.dtype).tiny)
    shares = list_of(variances.flip(0)[:2] / total)
    return (centred @ (directions * signs)).reshape(*contexts.shape[:2], 2), shares
