"""The figure of the evidence page."""

import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt

from benchmarks.quality.methods import GRF
from benchmarks.quality.tables.standings import COMPLETE, HALF, best_other, fusions, gone_of, shown
from benchmarks.quality.tables.summary import Summary

# Similar to Okabe and Ito's colours, for colour-blind readers, with contrast on white and dark
# backgrounds; markers distinguish them in grey.
STYLES = (("#2f82bd", "o"), ("#d06a1c", "s"))
# Replaced by the colour of the page's text, like black.
INK = "#123456"
INKED = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "legend.labelcolor")
LETTERS = dict.fromkeys(INKED, INK) | {"svg.fonttype": "none", "font.size": 9}
SCHEMES = """<style>
  svg { color: #1e293b }
  @media (prefers-color-scheme: dark) { svg { color: #e2e8f0 } }
</style>"""


def overview(summaries: Sequence[Summary], file: Path) -> None:
    """Draw a row per data set: GRF minus the best other fusion, with the interval.

    Each row lists the scores of both below its name.
    """
    found = shown(summaries)
    if not found:
        return
    mpl.use("agg")
    mpl.rcParams["svg.hashsalt"] = "grf-fusion"
    # Four inches are the width of a phone, so text is not scaled down.
    size = (4, 1.1 + 0.95 * len(found))
    with mpl.rc_context(LETTERS):
        drawing, axis = plt.subplots(figsize=size, layout="constrained")
        for k, (point, (color, marker)) in enumerate(zip((COMPLETE, HALF), STYLES, strict=True)):
            rows = [best_other(summary, point) for summary in found]
            gaps = [
                row.differences[gone_of(summary, point)]
                for summary, row in zip(found, rows, strict=True)
            ]
            means = [one.mean for one in gaps]
            # The mean may be outside the percentiles of the replicates.
            bars = [
                [max(0.0, one.mean - one.low) for one in gaps],
                [max(0.0, one.high - one.mean) for one in gaps],
            ]
            heights = [place + 0.22 + 0.17 * k for place in range(len(found))]
            style = {"linestyle": "", "markersize": 5, "capsize": 3, "label": point}
            axis.errorbar(means, heights, xerr=bars, color=color, marker=marker, **style)
        # Only beside the intervals, so that the line does not cross text.
        places = range(len(found))
        ends = ([place + shift for place in places] for shift in (0.12, 0.5))
        axis.vlines([0.0] * len(found), *ends, color=INK, linewidth=0.8)
        for place, summary in enumerate(found):
            name, *scores = _said(summary).split("\n")
            start = {"transform": axis.get_yaxis_transform(), "va": "center"}
            axis.text(0, place - 0.33, name, weight="bold", **start)
            for k, (score, (color, _)) in enumerate(zip(scores, STYLES, strict=True)):
                axis.text(0, place - 0.15 + 0.17 * k, score, color=color, **start)
        axis.set_yticks([])
        axis.set_ylim(len(found) - 0.35, -0.5)
        axis.spines[["left", "right", "top"]].set_visible(False)
        axis.set_xlabel(
            f"{GRF} minus the best other fusion, 95 % interval\nright of 0: {GRF} is ahead"
        )
        axis.grid(visible=True, axis="x", alpha=0.3)
        drawing.legend(loc="outside upper center", ncols=2, frameon=False)
        file.parent.mkdir(parents=True, exist_ok=True)
        # Without a date, the same runs give the same file.
        drawing.savefig(file, metadata={"Date": None}, transparent=True)
        plt.close(drawing)
    text = re.sub(f"{INK}|#000000", "currentColor", file.read_text("utf-8"))
    file.write_text(text.replace("<defs>", f"{SCHEMES}\n <defs>", 1), "utf-8")


def _said(summary: Summary) -> str:
    own, lines = fusions(summary)[GRF], [summary.name]
    for point in (COMPLETE, HALF):
        other, gone = best_other(summary, point), gone_of(summary, point)
        pair = (row.missing[gone].mean for row in (own, other))
        numbers = " / ".join(f"{value:.3f}" for value in pair)
        lines.append(f"{numbers} {other.name}")
    return "\n".join(lines)
