"""Plot workloads C and D: `python -m benchmarks.speed.plots results.json docs/assets`."""

import argparse
import functools
import math
from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import StrMethodFormatter

from benchmarks.speed.contestants import AUTHOR, MULT, OURS_AUTHOR, OURS_NO_SELF
from benchmarks.speed.rows import Results
from benchmarks.speed.workloads import FORWARD, MEMORY, TRAIN_DROPOUT

# Label, colour (after Okabe and Ito, for colour-blind readers) and style of each line.
LINES = {
    OURS_NO_SELF: ("GRF", "#2F7FD0", "-"),
    OURS_AUTHOR: ("author's weights, GRF", "#56B4E9", "-"),
    AUTHOR: ("author's design", "#E69F00", "-"),
    MULT: ("MulT", "#D55E00", "-"),
    "nn.TransformerEncoder, early fusion": ("early fusion", "#CC79A7", "-"),
    "x-transformers, cross-attention": ("cross-attention", "#009E73", "--"),
    "Perceiver IO, no dropout": ("Perceiver IO", "#8A8F98", "--"),
}
AXES = {"C": "number of modalities", "D": "length of each of three modalities"}
FIGURES = {
    FORWARD: ("Inference, milliseconds", 1e-3),
    TRAIN_DROPOUT: ("Training with dropout 0.2, milliseconds", 1e-3),
    MEMORY: ("Peak memory of a training step, MB", 1e6),
}
# Replaced by the colour of the page's text.
INK = "#123456"
STYLE = """<style>
  svg { color: #1e293b }
  @media (prefers-color-scheme: dark) { svg { color: #e2e8f0 } }
</style>"""


def plot(results: Results, group: str, folder: Path) -> Path | None:
    """Draw the figures of a group against its size, one below the other; return the file."""
    figures = [name for name in FIGURES if any(results.series(group, c, name) for c in LINES)]
    if not figures:
        return None
    size = (5.4, 3.1 * len(figures))
    drawing, axes = plt.subplots(len(figures), 1, figsize=size, squeeze=False, layout="constrained")
    ticks = sorted({row.size for row in results.rows if row.group == group})
    for axis, figure in zip(axes[:, 0], figures, strict=True):
        title, unit = FIGURES[figure]
        ends = {}
        for name, (label, color, style) in LINES.items():
            series = results.series(group, name, figure)
            if series:
                sizes, values = zip(*series, strict=True)
                scaled = [value / unit for value in values]
                axis.plot(sizes, scaled, color=color, linestyle=style, marker="o", markersize=3.5)
                ends[label] = (sizes[-1], scaled[-1], color)
        axis.set(xscale="log", yscale="log", xlabel=AXES[group])
        axis.set_title(title, loc="left", fontsize=11, pad=10)
        axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axis.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        axis.minorticks_off()
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(visible=True, alpha=0.25)
        _label(axis, ends, ticks[-1])
    file = folder / f"speed_{group.lower()}.svg"
    # Without a date, the same run gives the same file.
    drawing.savefig(file, transparent=True, metadata={"Date": None})
    plt.close(drawing)
    text = file.read_text("utf-8").replace(INK, "currentColor")
    file.write_text(text.replace("<defs>", f"{STYLE}\n <defs>", 1), "utf-8")
    return file


def _label(axis: Axes, ends: Mapping[str, tuple[float, float, str]], last: float) -> None:
    """Write each label beside the end of its line, moved apart where they would overlap."""
    low, high = (math.log(limit) for limit in axis.get_ylim())
    gap, limit = (high - low) / 13, -math.inf
    ordered = sorted(ends.items(), key=lambda end: end[1][1])
    places = []
    for _, (_, y, _) in ordered:
        limit = max(math.log(y), limit + gap)
        places.append(limit)
    # Labels that were pushed above the axes move down again, and push the others down.
    limit = high + gap
    for k in reversed(range(len(places))):
        limit = places[k] = min(places[k], limit - gap)
    for (label, (x, y, color)), place in zip(ordered, places, strict=True):
        axis.annotate(
            label,
            (x, y),
            xytext=(last * 1.12, math.exp(place)),
            color=color,
            fontsize=9,
            fontweight="bold",
            verticalalignment="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": color, "alpha": 0.35, "shrinkB": 3},
        )


def main() -> None:
    """Read the command line and draw."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.plots", description=__doc__)
    parser.add_argument("results", type=Path, nargs="+", help="JSON files of benchmarks.speed")
    parser.add_argument("folder", type=Path, help="where to put speed_c and speed_d")
    args = parser.parse_args()
    mpl.use("agg")
    inked = ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor")
    inked += ("xtick.color", "ytick.color", "grid.color")
    mpl.rcParams |= {"svg.hashsalt": "grf-fusion", "svg.fonttype": "none", "font.size": 10}
    mpl.rcParams |= dict.fromkeys(inked, INK)
    results = functools.reduce(Results.replace, map(Results.from_json, args.results))
    args.folder.mkdir(parents=True, exist_ok=True)
    for group in AXES:
        plot(results, group, args.folder)


if __name__ == "__main__":
    main()
