"""Ranks of all fusions, GRF included, over the data sets."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.quality.methods import GRF
from benchmarks.quality.tables.summary import Row, Summary

COMPLETE, HALF = "all modalities present", "about half missing"


class Standing(NamedTuple):
    """The rank of one fusion among the others.

    Attributes:
        name: Its name.
        rank: Mean of its rank over the data sets, 1 for the best.
    """

    name: str
    rank: float


def fusions(summary: Summary) -> dict[str, Row]:
    """Return GRF and the fusions compared with it."""
    return {
        row.name: row
        for row in summary.rows
        if row.name == GRF or (row.group == "baseline" and row.differences)
    }


def score(summary: Summary, row: Row, point: str) -> float:
    """Return the primary metric; higher is better."""
    found = row.missing[gone_of(summary, point)].mean
    return found if summary.task.higher else -found


def gone_of(summary: Summary, point: str) -> str:
    """Return how many modalities are missing."""
    return "0" if point == COMPLETE else summary.half


def best_other(summary: Summary, point: str) -> Row:
    """Return the best fusion other than GRF on test data, which favours it a little."""
    others = [row for name, row in fusions(summary).items() if name != GRF]
    return max(others, key=lambda row: score(summary, row, point))


def standings(summaries: Sequence[Summary], point: str) -> list[Standing]:
    """Return the fusions that ran on all these sets, best mean rank first."""
    names = set.intersection(*(set(fusions(summary)) for summary in summaries))
    found = []
    for name in names:
        ranks = []
        for summary in summaries:
            scores = {n: score(summary, fusions(summary)[n], point) for n in names}
            above = sum(value > scores[name] for value in scores.values())
            equal = sum(value == scores[name] for value in scores.values())
            ranks.append(above + (1 + equal) / 2)
        found.append(Standing(name, statistics.fmean(ranks)))
    return sorted(found, key=lambda standing: (standing.rank, standing.name != GRF, standing.name))


def against(summaries: Sequence[Summary], name: str, points: Sequence[str]) -> dict[str, int]:
    """Count the comparisons in which GRF is ahead of, level with and behind a fusion."""
    count = {"ahead": 0, "level": 0, "behind": 0}
    for summary in summaries:
        row = fusions(summary).get(name)
        for point in points if row is not None else ():
            count[row.differences[gone_of(summary, point)].verdict] += 1
    return count


def shown(summaries: Sequence[Summary]) -> list[Summary]:
    """Return the summaries with runs of GRF and of another fusion."""
    return [summary for summary in summaries if {GRF} < fusions(summary).keys()]
