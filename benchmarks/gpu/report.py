"""Markdown tables of `benchmarks.gpu`: `python -m benchmarks.gpu.report RUN.json... [PAGE.md]`.

With several runs, the last measurement of a row counts. With a page, the tables replace the text
between its two markers, and the rows of all runs are saved in the first file.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.common.markdown import insert, table
from benchmarks.gpu.bars import GIB, bars
from benchmarks.gpu.cases import BF16, OURS, OURS_PADDED, PADDED, RESIDUAL
from benchmarks.gpu.kernels import by_kind
from benchmarks.gpu.rows import STEP, Results, Row, merge

MARKS = "<!-- tables of benchmarks.gpu -->", "<!-- end of the tables -->"
HEAD = (
    *("model", "mode", "dtype", "ms", "GPU ms", "GiB", "TFLOP", "share of the peak"),
    *("kernels", "attention"),
)


def markdown(results: Results) -> str:
    """Return the tables of a run."""
    return "\n".join(_lines(results))


def _lines(results: Results) -> Iterator[str]:
    about, peak = results.environment, results.peak
    yield (
        f"{about['device']}, PyTorch {about['torch']}, {about['date']}, sizes: {about['sizes']}; "
        f"TF32 {about['TF32']}. Dense products reach {peak['bf16'] / 1e12:.0f} TFLOP/s in bf16 and "
        f"{peak['float32 with TF32'] / 1e12:.0f} in float32 with TF32, a copy "
        f"{peak['copy bytes'] / 1e12:.1f} TB/s. The JSON file of the results has the commands."
    )
    yield from ("", *table(("bar", "measured", "met"), bars(results)))
    tried = [row for row in results.rows if row.skipped is None]
    for workload, figure in dict.fromkeys((row.workload, row.figure) for row in tried):
        rows = [row for row in tried if (row.workload, row.figure) == (workload, figure)]
        yield from (f"**{workload[0].upper()}{workload[1:]}, {figure}**", "")
        yield from table(HEAD, [_cells(row, results) for row in rows])
    yield from _kinds(tried)
    for reason in dict.fromkeys(row.skipped for row in results.rows if row.skipped is not None):
        count = sum(row.skipped == reason for row in results.rows)
        yield from (f"{count} more rows, {reason}.", "")


def _kinds(rows: list[Row]) -> Iterator[str]:
    """Return a table of the kinds of kernels of our training steps on the first workload."""
    profiled = [
        ((row.model, row.mode), by_kind(row.profile))
        for row in rows
        if row.profile is not None
        and row.model in (OURS, OURS_PADDED, RESIDUAL, PADDED)
        and (row.workload, row.figure, row.precision) == (rows[0].workload, STEP, BF16)
    ]
    if profiled:
        yield from ("**GPU ms by kind of kernel, on the workload of the first table**", "")
        head = "model", "mode", *profiled[0][1]
        each = ((*names, *(f"{x:.2f}" for x in taken.values())) for names, taken in profiled)
        yield from table(head, each)


def _cells(row: Row, results: Results) -> tuple[str, ...]:
    names = row.model, row.mode, row.precision
    timing, profile = row.milliseconds, row.profile
    if timing is None:
        return *names, _plain(row.error or ""), *("" for _ in HEAD[4:])
    operations, share = results.operations(row), results.share(row)
    return (
        *names,
        f"{timing.median:.3g} ({timing.low:.3g} to {timing.high:.3g})",
        "" if profile is None else f"{profile.busy_milliseconds:.3g}",
        "" if row.peak_bytes is None else f"{row.peak_bytes / GIB:.2f}",
        "" if operations is None else f"{operations / 1e12:.2f}",
        "" if share is None else f"{100 * share:.0f} %",
        "" if profile is None else str(profile.launches),
        "" if profile is None else ", ".join(profile.attention),
    )


def _plain(text: str) -> str:
    """Return a text without characters that are markup in a table cell."""
    return " ".join(text.replace("|", "/").replace("`", "'").split())[:120]


def main(argv: list[str]) -> None:
    """Print the tables of saved runs, or write them into a page."""
    saved = [Path(name) for name in argv if name.endswith(".json")]
    pages = [Path(name) for name in argv if name.endswith(".md")]
    results = merge([Results.read(path) for path in saved])
    tables = markdown(results)
    for page in pages:
        page.write_text(insert(page.read_text("utf-8"), MARKS, tables), "utf-8")
        results.write(saved[0])
    if not pages:
        sys.stdout.write(tables)


if __name__ == "__main__":
    main(sys.argv[1:])
