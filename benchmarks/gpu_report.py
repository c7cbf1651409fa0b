"""Markdown tables of `benchmarks.gpu`: `python -m benchmarks.gpu_report RUN.json... [PAGE.md]`.

Of several runs a row is the last one that was measured. With a page, the tables replace what is
between its two markers, and the rows of all runs are saved in the first file.
"""

import json
import math
import statistics
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import gpu_rows as rows
from benchmarks.gpu_rows import Row

START, END = "<!-- tables of benchmarks.gpu -->", "<!-- end of the tables -->"
STEP, FORWARD = "training step", "forward"
GIB, MILLION = 2**30, 1e6
HEAD = (
    "model",
    "mode",
    "numbers",
    "ms",
    "GiB",
    "TFLOP",
    "share of the peak",
    "kernels",
    "attention",
)
Record = dict[str, Any]


def place(row: Row) -> Record:
    """Return what names a row in the JSON file."""
    return {
        "workload": row.load.title,
        "figure": STEP if row.training else FORWARD,
        "model": row.model,
        "mode": row.mode,
        "precision": row.precision,
    }


def markdown(results: dict[str, Any]) -> str:
    """Return the tables of a run."""
    return "\n\n".join(_sections(results)) + "\n"


def _sections(results: dict[str, Any]) -> Iterator[str]:
    about = results["environment"]
    peak = results["peak"]
    yield (
        f"{about['device']}, PyTorch {about['torch']}, {about['date']}, sizes: {about['sizes']}; "
        f"TF32 {about['TF32']}. Dense products reach {peak['bf16'] / 1e12:.0f} TFLOP/s in bf16 and "
        f"{peak['float32 with TF32'] / 1e12:.0f} in float32 with TF32, a copy "
        f"{peak['copy bytes'] / 1e12:.1f} TB/s. Command: `{results['command']}`."
    )
    yield _table(("bar", "measured", "met"), bars(results))
    for workload, figure in dict.fromkeys((r["workload"], r["figure"]) for r in results["rows"]):
        found = [r for r in results["rows"] if (r["workload"], r["figure"]) == (workload, figure)]
        yield f"**{workload[0].upper()}{workload[1:]}, {figure}**"
        yield _table(HEAD, (_cells(record, results) for record in found))


def _cells(record: Record, results: dict[str, Any]) -> tuple[str, ...]:
    names = record["model"], record["mode"], record["precision"]
    if "milliseconds" not in record:
        reason = record.get("skipped") or record.get("error", "")
        return *names, _plain(reason), *("" for _ in HEAD[4:])
    profile = record.get("profile", {})
    operations, share = _operations(record, results), _share(record, results)
    return (
        *names,
        _milliseconds(record["milliseconds"]),
        f"{record['peak_bytes'] / GIB:.2f}" if "peak_bytes" in record else "",
        "" if operations is None else f"{operations / 1e12:.2f}",
        "" if share is None else f"{100 * share:.0f} %",
        str(profile.get("launches", "")),
        ", ".join(profile.get("attention", [])),
    )


def _milliseconds(timing: dict[str, float]) -> str:
    return f"{timing['median']:.3g} ({timing['low']:.3g} to {timing['high']:.3g})"


def _plain(text: str) -> str:
    """Return a text that no table cell takes for markup."""
    return " ".join(text.replace("|", "/").replace("`", "'").split())[:120]


def _operations(record: Record, results: dict[str, Any], figure: str = "operations") -> int | None:
    """Return the operations of a call, which are counted in eager mode only."""
    same = ("workload", "figure", "model")
    for other in (record, *results["rows"]):
        if figure in other and all(other[key] == record[key] for key in same):
            return int(other[figure])
    return None


def _share(record: Record, results: dict[str, Any], figure: str = "operations") -> float | None:
    operations = _operations(record, results, figure)
    if operations is None:
        return None
    return operations / _seconds(record) / _peak(record, results)


def _peak(record: Record, results: dict[str, Any]) -> float:
    kind = "float32 with TF32" if record["precision"] == rows.FLOAT32 else "bf16"
    return float(results["peak"][kind])


def _seconds(record: Record) -> float:
    return float(record["milliseconds"]["median"]) / 1e3


def bars(results: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Hold the bars against what was measured: the bar, the figure and whether it is met."""
    return [
        _ratio(results, rows.AUTHOR, (rows.COMPILED,), rows.OURS, least=3.0),
        _ratio(results, rows.PADDED, None, rows.RESIDUAL, least=1.5),
        _share_bar(results),
        _chain_bar(results),
        _memory_bar(results),
        _exponent_bar(results),
        _compiled_bar(results),
    ]


def _best(
    results: dict[str, Any], start: str, model: str, modes: Iterable[str] | None
) -> Record | None:
    """Return the fastest training step in bf16 of a model on the workload that starts so."""
    found = [
        record
        for record in results["rows"]
        if record["workload"].startswith(start)
        and record["model"] == model
        and (modes is None or record["mode"] in modes)
        and record["precision"] == rows.BF16
        and record["figure"] == STEP
        and "milliseconds" in record
    ]
    first = [record for record in found if record["workload"] == found[0]["workload"]]
    return min(first, key=_seconds, default=None)


def _verdict(bar: str, value: float | None, text: str, *, met: bool) -> tuple[str, str, str]:
    if value is None:
        return bar, "not measured", ""
    return bar, text.format(value), "yes" if met else "no"


def _ratio(
    results: dict[str, Any], slow: str, modes: Iterable[str] | None, fast: str, *, least: float
) -> tuple[str, str, str]:
    pair = _best(results, "width", slow, modes), _best(results, "width", fast, None)
    value = None if None in pair else _seconds(pair[0]) / _seconds(pair[1])
    how = "" if modes is None else f" ({', '.join(modes)})"
    bar = f"{slow}{how} takes at least {least:g} times as long as {fast}"
    return _verdict(bar, value, "{:.2f}", met=value is not None and value >= least)


def _share_bar(results: dict[str, Any]) -> tuple[str, str, str]:
    record = _best(results, "width", rows.OURS, None)
    value = None if record is None else _share(record, results, "needed_operations")
    bar = "ours runs at 40 % of the peak, real steps' operations alone counted"
    return _verdict(bar, value, "{:.0%}", met=value is not None and value >= 0.4)


def _chain_bar(results: dict[str, Any]) -> tuple[str, str, str]:
    starts = [r["workload"] for r in results["rows"] if "one layer, batch 64" in r["workload"]]
    pair = [_best(results, start, m, None) for start in starts[:1] for m in (rows.OURS, rows.EARLY)]
    value = None if len(pair) < 2 or None in pair else _seconds(pair[0]) / _seconds(pair[1])
    bar = "a chain of 38 takes at most twice the time of early concatenation"
    return _verdict(bar, value, "{:.2f}", met=value is not None and value <= 2.0)


def _lengths(results: dict[str, Any], mode: str) -> list[tuple[int, Record]]:
    mark = "three modalities of length "
    return [
        (int(record["workload"].removeprefix(mark).split(",")[0]), record)
        for record in results["rows"]
        if record["workload"].startswith(mark) and record["mode"] == mode
        if "milliseconds" in record
    ]


def _memory_bar(results: dict[str, Any]) -> tuple[str, str, str]:
    found = [
        record["peak_bytes"] / GIB
        for _, record in _lengths(results, rows.EAGER)
        if "peak_bytes" in record
    ]
    value = found[-1] if found else None
    bar = "the longest of three modalities' lengths trains within 4 GiB"
    return _verdict(bar, value, "{:.2f} GiB", met=value is not None and value <= 4.0)


def _exponent_bar(results: dict[str, Any]) -> tuple[str, str, str]:
    found = _lengths(results, rows.CAPTURED)
    points = [(math.log(time), math.log(_seconds(record))) for time, record in found]
    value = statistics.linear_regression(*zip(*points, strict=True)).slope if points[1:] else None
    bar = "captured, its time grows with the length's power of at most 1.05"
    return _verdict(bar, value, "{:.2f}", met=value is not None and value <= 1.05)


def _compiled_bar(results: dict[str, Any]) -> tuple[str, str, str]:
    slower: list[str] = []
    compared = 0
    same = ("workload", "figure", "model", "precision")
    for record in results["rows"]:
        if record["mode"] != rows.COMPILED or "milliseconds" not in record:
            continue
        for other in results["rows"]:
            if other["mode"] == rows.EAGER and all(other[key] == record[key] for key in same):
                compared += 1
                if _seconds(record) > _seconds(other):
                    slower.append(f"{record['model']} on {record['workload'][:12]}")
    bar = "compiled is faster than eager in every row"
    text = f"{compared - len(slower)} of {compared}" + (
        f"; not {', '.join(slower)}" if slower else ""
    )
    return _verdict(bar, compared or None, text, met=not slower)


def _table(head: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    head = tuple(head)
    cells = [head, tuple("---" for _ in head), *map(tuple, lines)]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


def merge(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the first run with every row as it was measured last, and all commands."""
    named = ("workload", "figure", "model", "mode", "precision")
    found: dict[tuple[str, ...], Record] = {}
    for record in (record for run in runs for record in run["rows"]):
        key = tuple(record[name] for name in named)
        if key not in found or "milliseconds" in record:
            found[key] = record
    commands = dict.fromkeys(run["command"] for run in runs)
    return runs[0] | {"command": "; ".join(commands), "rows": list(found.values())}


def fill(page: str, tables: str) -> str:
    """Return a page with the tables between its markers."""
    before, rest = page.split(START)
    _, after = rest.split(END)
    return f"{before}{START}\n\n{tables}\n{END}{after}"


def filled(page: str) -> str:
    """Return what a page has between its markers."""
    return page.split(START)[1].split(END, maxsplit=1)[0].strip() + "\n"


def main(argv: list[str]) -> None:
    """Print the tables of saved runs, or write them into a page."""
    saved = [Path(name) for name in argv if name.endswith(".json")]
    pages = [Path(name) for name in argv if name.endswith(".md")]
    results = merge([json.loads(path.read_text("utf-8")) for path in saved])
    tables = markdown(results)
    for page in pages:
        page.write_text(fill(page.read_text("utf-8"), tables), "utf-8")
        saved[0].write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    if not pages:
        sys.stdout.write(tables)


if __name__ == "__main__":
    main(sys.argv[1:])
