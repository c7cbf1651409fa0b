"""The goals of the GPU benchmark."""

import math
import statistics
from functools import partial
from typing import NamedTuple

from benchmarks.gpu.cases import (
    AUTHOR,
    BF16,
    CAPTURED,
    COMPILED,
    COMPILED_CAPTURED,
    EAGER,
    EARLY,
    OURS,
    OURS_PADDED,
    PADDED,
    PARTS_CAPTURED,
    RESIDUAL,
)
from benchmarks.gpu.rows import STEP, Results, Row

GIB = 2**30


class Bar(NamedTuple):
    """A goal, the measurement, and whether the goal is met."""

    bar: str
    measured: str
    met: str


def bars(results: Results) -> list[Bar]:
    """Compare the measurements with the goals."""
    best = partial(_best, results)
    ours = best("width", OURS)
    chains = (row.workload for row in results.rows if "one layer, batch 64" in row.workload)
    chain = next(chains, "none")
    memory = [row.peak_bytes for _, row in _lengths(results, EAGER) if row.peak_bytes is not None]
    return [
        _bar(
            f"{AUTHOR} ({COMPILED}) takes at least 3 times as long as {OURS}",
            _ratio(best("width", AUTHOR, COMPILED), ours),
            least=3.0,
        ),
        *(
            _bar(
                f"{padded}, takes at least 1.5 times as long as {model} (both {EAGER})",
                _ratio(slow := best("width", padded, EAGER), fast := best("width", model, EAGER)),
                "{:.2f}" + _of_the_gpu(slow, fast),
                least=1.5,
            )
            for padded, model in ((OURS_PADDED, OURS), (PADDED, RESIDUAL))
        ),
        _bar(
            "ours runs at 40 % of the peak, real steps' operations alone counted",
            None if ours is None else results.share(ours, "needed_operations"),
            "{:.0%}",
            least=0.4,
        ),
        _bar(
            "captured, a chain of 38 takes at most twice the time of early concatenation",
            _ratio(best(chain, OURS, CAPTURED), best(chain, EARLY, CAPTURED)),
            most=2.0,
        ),
        _bar(
            "compiled and captured, it takes at most twice the time of early concatenation",
            _ratio(best(chain, OURS, PARTS_CAPTURED), best(chain, EARLY, COMPILED_CAPTURED)),
            most=2.0,
        ),
        _bar(
            "the longest of three modalities' lengths trains within 4 GiB",
            memory[-1] / GIB if memory else None,
            "{:.2f} GiB",
            most=4.0,
        ),
        _bar(
            "captured, its time grows with the length's power of at most 1.05",
            _exponent(_lengths(results, CAPTURED)),
            most=1.05,
        ),
        _compiled(results),
    ]


def _bar(
    bar: str,
    value: float | None,
    text: str = "{:.2f}",
    *,
    least: float = -math.inf,
    most: float = math.inf,
) -> Bar:
    if value is None:
        return Bar(bar, "not measured", "")
    return Bar(bar, text.format(value), "yes" if least <= value <= most else "no")


def _best(results: Results, start: str, model: str, mode: str | None = None) -> Row | None:
    """Return a model's fastest bf16 training step on the workload whose title starts so."""
    found = [
        row
        for row in results.rows
        if row.workload.startswith(start)
        and (row.model, row.precision, row.figure) == (model, BF16, STEP)
        and mode in (None, row.mode)
        and row.milliseconds is not None
    ]
    first = [row for row in found if row.workload == found[0].workload]
    return min(first, key=lambda row: row.call_seconds, default=None)


def _ratio(slow: Row | None, fast: Row | None) -> float | None:
    return None if slow is None or fast is None else slow.call_seconds / fast.call_seconds


def _of_the_gpu(slow: Row | None, fast: Row | None) -> str:
    """Return the ratio of the time in which the GPU is busy, which does not show a slow host."""
    if slow is None or fast is None or slow.profile is None or fast.profile is None:
        return ""
    ratio = slow.profile.busy_milliseconds / fast.profile.busy_milliseconds
    return f"; time of the GPU alone {ratio:.2f}"


def _lengths(results: Results, mode: str) -> list[tuple[int, Row]]:
    mark = "three modalities of length "
    return [
        (int(row.workload.removeprefix(mark).split(",")[0]), row)
        for row in results.rows
        if row.workload.startswith(mark) and row.mode == mode and row.milliseconds is not None
    ]


def _exponent(rows: list[tuple[int, Row]]) -> float | None:
    points = [(math.log(time), math.log(row.call_seconds)) for time, row in rows]
    return statistics.linear_regression(*zip(*points, strict=True)).slope if points[1:] else None


def _compiled(results: Results) -> Bar:
    measured = [row for row in results.rows if row.milliseconds is not None]
    eager = {(row.subject, row.precision): row for row in measured if row.mode == EAGER}
    compared = [
        (row, eager[row.subject, row.precision])
        for row in measured
        if row.mode == COMPILED and (row.subject, row.precision) in eager
    ]
    slower = [row for row, other in compared if row.call_seconds > other.call_seconds]
    text = f"{len(compared) - len(slower)} of {len(compared)}"
    if slower:
        text += f"; not {', '.join(f'{row.model} on {row.workload[:12]}' for row in slower)}"
    bar = "compiled is faster than eager in every row"
    return _bar(bar, len(slower) if compared else None, text, most=0)
