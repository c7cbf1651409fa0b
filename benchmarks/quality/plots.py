"""Figures of the runs on disk: missing modalities, order, and score against time."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from benchmarks.quality import evidence
from benchmarks.quality.evidence import COMPLETE, HALF
from benchmarks.quality.methods import GRF

# Okabe and Ito's colours, told apart by the colour-blind; markers tell them apart in grey.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
MARKERS = "osD^vPX*"
# Modes and ablations would fill the curves; the tables have them.
CURVES = ("reference", "baseline")


def overview(summaries: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Draw a row a data set: by how much GRF is ahead of the best other fusion, and the interval.

    Each row says beside its name what both have reached.
    """
    shown = [summary for summary in summaries if GRF in evidence.fusions(summary)]
    shown = [summary for summary in shown if len(evidence.fusions(summary)) > 1]
    if not shown:
        return
    _set_up()
    size = (9, 1.2 + 0.62 * len(shown))
    drawing, axis = plt.subplots(figsize=size, layout="constrained")
    for k, point in enumerate((COMPLETE, HALF)):
        rows = [evidence.best_other(summary, point) for summary in shown]
        found = [
            row["GRF minus this"][evidence.gone_of(summary, point)]
            for summary, row in zip(shown, rows, strict=True)
        ]
        means = [one["mean"] for one in found]
        # Percentiles of replicates need not hold the mean.
        bars = [
            [max(0.0, one["mean"] - one["low"]) for one in found],
            [max(0.0, one["high"] - one["mean"]) for one in found],
        ]
        heights = [place + 0.13 * (2 * k - 1) for place in range(len(shown))]
        style = {"color": COLORS[k], "marker": MARKERS[k], "linestyle": "", "markersize": 5}
        axis.errorbar(means, heights, xerr=bars, capsize=3, label=point, **style)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(shown)), [_said(summary) for summary in shown], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel(f"{GRF} minus the best other fusion, 95 % interval; right of 0: {GRF} is ahead")
    axis.grid(visible=True, axis="x", alpha=0.3)
    drawing.legend(loc="outside upper center", ncols=2, frameon=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    # Without the date the same runs make the same file.
    drawing.savefig(file, metadata={"Date": None})
    plt.close(drawing)


def _said(summary: Mapping[str, Any]) -> str:
    own, lines = evidence.fusions(summary)[GRF], [summary["about"]["dataset"]]
    for point in (COMPLETE, HALF):
        other, gone = evidence.best_other(summary, point), evidence.gone_of(summary, point)
        pair = (row["missing"][gone]["mean"] for row in (own, other))
        numbers = " / ".join(f"{value:.3f}" for value in pair)
        lines.append(f"{numbers} {other['name']}")
    return "\n".join(lines)


def _set_up() -> None:
    mpl.use("agg")
    mpl.rcParams["svg.hashsalt"] = "grf-fusion"


def draw(summaries: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """Draw one picture a data set, as PNG and SVG; return the files."""
    _set_up()
    files = []
    for summary in summaries:
        if summary["rows"]:
            drawing, axes = plt.subplots(1, 3, figsize=(16, 4.8), layout="constrained")
            _missing(axes[0], summary)
            _orders(axes[1], summary)
            _time(axes[2], summary)
            handles, labels = axes[0].get_legend_handles_labels()
            if handles:
                drawing.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
            name = summary["about"]["dataset"]
            drawing.suptitle(name)
            folder.mkdir(parents=True, exist_ok=True)
            for kind in ("png", "svg"):
                files.append(folder / f"quality_{name}.{kind}")
                # Without the date the same runs make the same file.
                drawing.savefig(
                    files[-1], dpi=160, metadata={"Date": None} if kind == "svg" else {}
                )
            plt.close(drawing)
    return files


def _missing(axis: Axes, summary: Mapping[str, Any]) -> None:
    rows = [r for r in summary["rows"] if r["missing"]]
    rows = [r for r in rows if r["group"] in CURVES or r["name"] == GRF]
    # Ours first, so that it has the same colour everywhere.
    rows.sort(key=lambda row: row["name"] != GRF)
    for k, row in enumerate(rows):
        gone = [int(point) for point in row["missing"]]
        means = [value["mean"] for value in row["missing"].values()]
        halves = [value["half width"] or 0.0 for value in row["missing"].values()]
        style = {"color": COLORS[k % len(COLORS)], "marker": MARKERS[k % len(MARKERS)]}
        dashes = "-" if k < len(COLORS) else "--"
        axis.errorbar(
            gone, means, halves, label=row["name"], markersize=4, linestyle=dashes, **style
        )
    axis.set(xlabel="modalities missing at test time", ylabel=_metric(summary))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(visible=True, alpha=0.3)


def _orders(axis: Axes, summary: Mapping[str, Any]) -> None:
    metric = _metric(summary)
    columns: dict[str, list[float]] = {}
    trained = [r["test"][metric]["mean"] for r in summary["rows"] if r["group"] == "order"]
    own = [r["test"][metric]["seeds"] for r in summary["rows"] if r["name"] == GRF]
    if own:
        columns["declared order,\neach seed"] = own[0]
    if trained:
        columns["trained in\neach order"] = trained
    for row in summary["rows"]:
        if row["orders"]:
            of_orders = zip(*row["orders"], strict=True)
            means = [sum(values) / len(values) for values in of_orders]
            name = row["name"].replace(", ", "\n")
            columns[f"{name}\nin other orders"] = means
    for k, values in enumerate(columns.values()):
        axis.scatter([k] * len(values), values, color=COLORS[k], alpha=0.6, s=18)
    axis.set_xticks(range(len(columns)), list(columns), fontsize=8)
    axis.set(ylabel=metric)
    axis.grid(visible=True, alpha=0.3)


def _time(axis: Axes, summary: Mapping[str, Any]) -> None:
    metric = _metric(summary)
    # With one thing changed ours would be a cloud of points of the same place.
    timed = [row for row in summary["rows"] if isinstance(row["costs"].get("training"), dict)]
    timed = [row for row in timed if row["group"] not in ("ablation", "rival")]
    times = {row["name"]: 1e3 * row["costs"]["training"]["median"] for row in timed}
    # A name stands on the side where there is room.
    middle = math.sqrt(min(times.values()) * max(times.values())) if times else 1.0
    for k, row in enumerate(timed):
        place = times[row["name"]], row["test"][metric]["mean"]
        axis.scatter(*place, color=COLORS[0] if row["name"].startswith(GRF) else COLORS[1], s=18)
        left = place[0] > middle
        axis.annotate(
            row["name"],
            place,
            fontsize=6,
            textcoords="offset points",
            xytext=(-4 if left else 4, 3 if k % 2 else -8),
            horizontalalignment="right" if left else "left",
        )
    axis.set(xscale="log", xlabel="training step, ms", ylabel=metric)
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.grid(visible=True, alpha=0.3)


def _metric(summary: Mapping[str, Any]) -> str:
    return summary["about"]["task"]["primary"]
