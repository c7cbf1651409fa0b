"""Markdown tables of saved runs: `python -m benchmarks.speed.report RUN.json...`.

Rows of later runs replace the same rows of earlier runs.
"""

import functools
import sys
from pathlib import Path
from typing import Any

from benchmarks.common.markdown import table
from benchmarks.speed.bars import bars
from benchmarks.speed.contestants import AUTHOR
from benchmarks.speed.rows import COMPILING, GRAPHS, Results, Row, local_exponent
from benchmarks.speed.workloads import FORWARD, MEMORY, TITLES, TRAIN, TRAIN_DROPOUT

# Unit and its size, by figure, in the order of the tables.
UNITS = {
    FORWARD: ("ms", 1e-3),
    TRAIN: ("ms", 1e-3),
    TRAIN_DROPOUT: ("ms", 1e-3),
    MEMORY: ("MB", 1e6),
    "parameters": ("thousands", 1e3),
    "operations": ("GFLOP", 1e9),
    f"{FORWARD}, {COMPILING}": ("s", 1),
    f"{TRAIN_DROPOUT}, {COMPILING}": ("s", 1),
    f"{FORWARD}, {GRAPHS}": ("number", 1),
    f"{TRAIN_DROPOUT}, {GRAPHS}": ("number", 1),
}


def as_json(results: Results) -> dict[str, Any]:
    """Return everything for a JSON file, with the goals."""
    return results.as_json() | {"bars": [bar._asdict() for bar in bars(results)]}


def markdown(results: Results) -> str:
    """Return all tables."""
    settings = ", ".join(f"{key} {value}" for key, value in results.environment.items())
    lines = [f"{settings}; matrix products reach {results.peak / 1e9:.1f} GFLOP/s.", ""]
    for name, package in results.missing.items():
        lines += [f"Not installed: {name} ({package}).", ""]
    for group, title in TITLES.items():
        rows = [row for row in results.rows if row.group == group]
        if not rows:
            continue
        lines += [f"## {group}: {title}", ""]
        sizes = sorted({row.size for row in rows})
        if sizes == [0]:
            lines += _table_of_figures(results, rows, group)
        else:
            lines += _tables_of_sizes(results, rows, group, sizes)
    held = [
        (bar.what, bar.bar, f"{bar.got:.2f}", "met" if bar.met else "missed")
        for bar in bars(results)
    ]
    lines += ["## Goals", "", *table(("Measurement", "Goal", "Result", ""), held)]
    return "\n".join(lines)


def _table_of_figures(results: Results, rows: list[Row], group: str) -> list[str]:
    figures = [f for f in UNITS if any(row.figure == f for row in rows)]
    header = [f"{figure}, {UNITS[figure][0]}" for figure in figures]
    header += ["inference, author's / this", "share of peak, %"]
    lines = []
    for name in dict.fromkeys(row.contestant for row in rows):
        cells = [_cell(results.find(group, name, figure)) for figure in figures]
        faster = results.ratio(group, FORWARD, AUTHOR, name)
        cells.append("" if faster is None else f"{faster:.2f}x")
        taken, done = (results.find(group, name, figure) for figure in (FORWARD, "operations"))
        timed = taken is not None and taken.median and done is not None and done.median
        cells.append(f"{100 * done.median / taken.median / results.peak:.0f}" if timed else "")
        lines.append([name, *cells])
    return table(["", *header], lines)


def _tables_of_sizes(results: Results, rows: list[Row], group: str, sizes: list[int]) -> list[str]:
    lines = []
    for figure, (unit, _) in UNITS.items():
        names = dict.fromkeys(r.contestant for r in rows if r.figure == figure)
        if not names:
            continue
        cells = []
        for name in names:
            own = [_cell(results.find(group, name, figure, size)) for size in sizes]
            series = results.series(group, name, figure)
            slope = results.exponent(group, name, figure) if group in "CD" else None
            last = "" if slope is None else f"{slope:.2f}, at the end {local_exponent(series):.2f}"
            cells.append([name, *own, last])
        header = [f"{figure}, {unit}", *(f"{size:,}" for size in sizes), "exponent"]
        lines += table(header, cells)
    return lines


def _cell(row: Row | None) -> str:
    """Format a value, with its quartiles if it has any."""
    if row is None:
        return ""
    if row.median is None:
        return f"not run: {row.skipped}"
    _, scale = UNITS[row.figure]
    low, median, high = (_short(value / scale) for value in (row.low, row.median, row.high))
    return median if row.runs == 1 else f"{median} ({low} to {high})"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    runs = [Results.from_json(Path(path)) for path in sys.argv[1:]]
    sys.stdout.write(markdown(functools.reduce(Results.replace, runs)))
