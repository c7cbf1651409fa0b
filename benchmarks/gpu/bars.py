"""The bars that a run of the GPU benchmark is held against."""

import math
import statistics
from collections.abc import Iterable
from typing import NamedTuple

from benchmarks.gpu import cases
from benchmarks.gpu.rows import STEP, Results, Row

GIB = 2**30


class Bar(NamedTuple):
    """What is asked for, what was measured, and whether it is met."""

    bar: str
    measured: str
    met: str


def bars(results: Results) -> list[Bar]:
    """Hold the bars against what was measured."""
    return [
        _ratio(results, cases.AUTHOR, (cases.COMPILED,), cases.OURS, least=3.0),
        _ratio(results, cases.PADDED, None, cases.RESIDUAL, least=1.5),
        _share_bar(results),
        _chain_bar(results),
        _memory_bar(results),
        _exponent_bar(results),
        _compiled_bar(results),
    ]


def _best(
    results: Results, start: str, model: str, modes: Iterable[str] | None = None
) -> Row | None:
    """Return the fastest training step in bf16 of a model on the workload that starts so."""
    found = [
        row
        for row in results.rows
        if row.workload.startswith(start)
        and (row.model, row.precision, row.figure) == (model, cases.BF16, STEP)
        and (modes is None or row.mode in modes)
        and row.milliseconds is not None
    ]
    first = [row for row in found if row.workload == found[0].workload]
    return min(first, key=lambda row: row.call_seconds, default=None)


def _quotient(slow: Row | None, fast: Row | None) -> float | None:
    return None if slow is None or fast is None else slow.call_seconds / fast.call_seconds


def _verdict(
    bar: str, value: float | None, text: str, *, least: float = -math.inf, most: float = math.inf
) -> Bar:
    if value is None:
        return Bar(bar, "not measured", "")
    return Bar(bar, text.format(value), "yes" if least <= value <= most else "no")


def _ratio(
    results: Results, slow: str, modes: Iterable[str] | None, fast: str, *, least: float
) -> Bar:
    value = _quotient(_best(results, "width", slow, modes), _best(results, "width", fast))
    how = "" if modes is None else f" ({', '.join(modes)})"
    bar = f"{slow}{how} takes at least {least:g} times as long as {fast}"
    return _verdict(bar, value, "{:.2f}", least=least)


def _share_bar(results: Results) -> Bar:
    row = _best(results, "width", cases.OURS)
    value = None if row is None else results.share(row, "needed_operations")
    bar = "ours runs at 40 % of the peak, real steps' operations alone counted"
    return _verdict(bar, value, "{:.0%}", least=0.4)


def _chain_bar(results: Results) -> Bar:
    starts = (row.workload for row in results.rows if "one layer, batch 64" in row.workload)
    start = next(starts, "no such workload")
    value = _quotient(*(_best(results, start, model) for model in (cases.OURS, cases.EARLY)))
    bar = "a chain of 38 takes at most twice the time of early concatenation"
    return _verdict(bar, value, "{:.2f}", most=2.0)


def _lengths(results: Results, mode: str) -> list[tuple[int, Row]]:
    mark = "three modalities of length "
    return [
        (int(row.workload.removeprefix(mark).split(",")[0]), row)
        for row in results.rows
        if row.workload.startswith(mark) and row.mode == mode and row.milliseconds is not None
    ]


def _memory_bar(results: Results) -> Bar:
    rows = [row for _, row in _lengths(results, cases.EAGER)]
    found = [row.peak_bytes / GIB for row in rows if row.peak_bytes is not None]
    bar = "the longest of three modalities' lengths trains within 4 GiB"
    return _verdict(bar, found[-1] if found else None, "{:.2f} GiB", most=4.0)


def _exponent_bar(results: Results) -> Bar:
    found = _lengths(results, cases.CAPTURED)
    points = [(math.log(time), math.log(row.call_seconds)) for time, row in found]
    value = statistics.linear_regression(*zip(*points, strict=True)).slope if points[1:] else None
    bar = "captured, its time grows with the length's power of at most 1.05"
    return _verdict(bar, value, "{:.2f}", most=1.05)


def _compiled_bar(results: Results) -> Bar:
    measured = [row for row in results.rows if row.milliseconds is not None]
    eager = {(row.subject, row.precision): row for row in measured if row.mode == cases.EAGER}
    compared = [
        (row, eager[row.subject, row.precision])
        for row in measured
        if row.mode == cases.COMPILED and (row.subject, row.precision) in eager
    ]
    slower = [row for row, other in compared if row.call_seconds > other.call_seconds]
    text = f"{len(compared) - len(slower)} of {len(compared)}"
    if slower:
        text += f"; not {', '.join(f'{row.model} on {row.workload[:12]}' for row in slower)}"
    bar = "compiled is faster than eager in every row"
    return _verdict(bar, len(slower) if compared else None, text, most=0)
