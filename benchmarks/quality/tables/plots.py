"""The figure of the evidence page."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt

from benchmarks.quality.methods import GRF
from benchmarks.quality.tables.standings import COMPLETE, HALF, best_other, fusions, gone_of, shown
from benchmarks.quality.tables.summary import Summary

# Okabe and Ito's colours, told apart by the colour-blind; markers tell them apart in grey.
STYLES = (("#0072B2", "o"), ("#D55E00", "s"))


def overview(summaries: Sequence[Summary], file: Path) -> None:
    """Draw a row a data set: by how much GRF is ahead of the best other fusion, and the interval.

    Each row says beside its name what both have reached.
    """
    found = shown(summaries)
    if not found:
        return
    mpl.use("agg")
    mpl.rcParams["svg.hashsalt"] = "grf-fusion"
    size = (9, 1.2 + 0.62 * len(found))
    drawing, axis = plt.subplots(figsize=size, layout="constrained")
    for k, (point, (color, marker)) in enumerate(zip((COMPLETE, HALF), STYLES, strict=True)):
        rows = [best_other(summary, point) for summary in found]
        gaps = [
            row.differences[gone_of(summary, point)]
            for summary, row in zip(found, rows, strict=True)
        ]
        means = [one.mean for one in gaps]
        # Percentiles of replicates need not hold the mean.
        bars = [
            [max(0.0, one.mean - one.low) for one in gaps],
            [max(0.0, one.high - one.mean) for one in gaps],
        ]
        heights = [place + 0.13 * (2 * k - 1) for place in range(len(found))]
        style = {"linestyle": "", "markersize": 5, "capsize": 3, "label": point}
        axis.errorbar(means, heights, xerr=bars, color=color, marker=marker, **style)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(found)), [_said(summary) for summary in found], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel(f"{GRF} minus the best other fusion, 95 % interval; right of 0: {GRF} is ahead")
    axis.grid(visible=True, axis="x", alpha=0.3)
    drawing.legend(loc="outside upper center", ncols=2, frameon=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    # Without the date the same runs make the same file.
    drawing.savefig(file, metadata={"Date": None})
    plt.close(drawing)


def _said(summary: Summary) -> str:
    own, lines = fusions(summary)[GRF], [summary.name]
    for point in (COMPLETE, HALF):
        other, gone = best_other(summary, point), gone_of(summary, point)
        pair = (row.missing[gone].mean for row in (own, other))
        numbers = " / ".join(f"{value:.3f}" for value in pair)
        lines.append(f"{numbers} {other.name}")
    return "\n".join(lines)
