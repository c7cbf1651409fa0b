"""Markdown tables of the runs on disk, one page per data set."""

import math
import statistics
from collections.abc import Iterator, Sequence

from benchmarks.common.markdown import table
from benchmarks.quality.datasets.catalog import plain
from benchmarks.quality.methods import GRF, GROUPS
from benchmarks.quality.metrics import COLUMNS
from benchmarks.quality.store import Record
from benchmarks.quality.tables.compare import Difference
from benchmarks.quality.tables.standings import COMPLETE
from benchmarks.quality.tables.summary import Row, Spread, Summary

FULL = ("reference", "baseline", "grf", "ablation")
HEAD = (
    "Values are means over seeds ± half the width of the 95 % Student interval. Intervals of "
    "differences are 95 % intervals of a paired bootstrap over test samples and seeds."
)
CHOSEN = " Settings were chosen with seed 0, which is not among the reported seeds."
TURNS = (
    " Each of five persons provides the validation data in turn, with one seed each. Settings are "
    "chosen by the mean over all five."
)
REFIT = " The reported models were then trained on train and validation together."
DROP = "% of the time steps were dropped at random during training, for every method."
ENCODED = {
    False: "Raw features",
    True: "Encoded features",
}
UNITS = {"training": "training step, ms", "inference": "inference, ms"}


def pages(summaries: Sequence[Summary]) -> dict[str, str]:
    """Return a page for each data set, by name, with raw and encoded features."""
    found: dict[str, list[str]] = {}
    for summary in summaries:
        name, title = plain(summary.name), summary.about["title"]
        start = [f"# {name}", "", f"{title[0].upper()}{title[1:]}.", "", HEAD, ""]
        found.setdefault(name, start).extend(_dataset(summary))
    return {name: "\n".join(lines) for name, lines in found.items()}


def _dataset(summary: Summary) -> Iterator[str]:
    about, task = summary.about, summary.task
    sizes = " / ".join(f"{size:,}" for size in about["samples"].values())
    yield from (f"## {ENCODED[about['encoded']]}", "")
    budget = about["budget"]
    settings = ", ".join(f"{rate:g} at width {width}" for rate, width in budget["trials"])
    yield (
        f"{len(about['modalities'])} modalities, {100 * about['absent']:.1f} % missing in training "
        f"data. {sizes} samples for training, validation and test. Learning rates: {settings}. At "
        f"most {budget['epochs']} epochs. Settings and epoch are chosen by {task.primary} on "
        f"validation data, the mean of {COMPLETE} and {summary.half} missing. Single modalities, "
        f"other orders and variants of {GRF} use the settings of {GRF}."
        + (TURNS if about["turns"] else CHOSEN)
        + (REFIT if budget["refit"] else "")
        + (f" {100 * budget['drop_steps']:.0f} {DROP}" if budget["drop_steps"] else "")
    )
    yield ""
    metrics = COLUMNS[task.kind]
    header = ["", *metrics, "seeds", "rate, width", "parameters", *UNITS.values()]
    for group in FULL:
        lines = [_cells(row, metrics) for row in summary.in_groups(group)]
        if lines:
            yield from (f"### {GROUPS[group]}", "", *table(header, lines))
    yield from _differences(summary)
    if about["reference"]:
        lines = table(["", "metric", ""], about["reference"])
        yield from ("### Reference numbers that came with the data", "", *lines)
    yield from _missing(summary)
    yield from _orders(summary)
    yield from _alone(summary)
    if summary.bill is not None:
        yield from _mult(summary.bill)
    for name, reason in summary.skipped.items():
        yield from (f"Not run: {name}, {reason}.", "")
    if summary.pending:
        yield from (f"Not complete: {', '.join(summary.pending)}.", "")


def _cells(row: Row, metrics: Sequence[str]) -> list[str]:
    classical = row.group == "reference"
    chosen = f"trial {row.trial + 1}" if classical else f"{row.rate:g}, {row.width}"
    return [
        row.name,
        *(number_of(row.test[metric]) for metric in metrics),
        str(row.seeds),
        chosen,
        "" if classical else f"{row.parameters:,}",
        *(_time(row, figure) for figure in UNITS),
    ]


def _differences(summary: Summary) -> Iterator[str]:
    lines = []
    for row in summary.rows:
        found = row.differences.values()
        cells = [cell for one in found for cell in (interval_of(one), one.verdict)]
        if cells:
            lines.append([row.name, *cells])
    if lines:
        yield from (f"### {GRF} minus each other method, {summary.task.primary}", "")
        header = ["", COMPLETE, f"{GRF} is", f"{summary.half} missing", f"{GRF} is"]
        yield from table(header, lines)


def interval_of(difference: Difference) -> str:
    """Format a difference and its interval."""
    return f"{difference.mean:+.3f} ({difference.low:+.3f} to {difference.high:+.3f})"


def _missing(summary: Summary) -> Iterator[str]:
    shown = [row for row in summary.rows if row.missing]
    if shown:
        points = [str(gone) for gone in summary.about["missing"]]
        primary = summary.task.primary
        yield from (f"### {primary} by number of modalities missing at test time", "")
        yield "With k of n missing, each sample keeps at most n - k of its modalities, at random."
        yield ""
        lines = [[r.name, *(number_of(r.missing[point]) for point in points)] for r in shown]
        yield from table(["", *points], lines)


def _orders(summary: Summary) -> Iterator[str]:
    primary = summary.task.primary
    trained = [row.test[primary].mean for row in summary.in_groups("order")]
    tested = [row for row in summary.rows if row.orders]
    if not trained and not tested:
        return
    header = ["", "orders", "mean", "deviation", "lowest", "highest", "deviation over seeds"]
    lines = []
    if trained:
        own = [row.test[primary].seeds for row in summary.rows if row.name == GRF]
        seeds = own[0] if own else []
        # Include the declared order with the same seed, the first.
        trained = [*seeds[:1], *trained]
        lines.append(_range("trained and tested in each order, one seed", trained, seeds))
    for row in tested:
        # The first order is the declared one.
        means = [statistics.fmean(of_order) for of_order in zip(*row.orders, strict=True)]
        seeds = row.test[primary].seeds
        lines.append(_range(f"{row.name}: tested in each order", means, seeds))
    yield from (f"### {primary} against order", "", *table(header, lines))


def _range(name: str, values: Sequence[float], seeds: Sequence[float]) -> list[str]:
    spread = [statistics.stdev(x) if len(x) > 1 else math.nan for x in (values, seeds)]
    figures = (statistics.fmean(values), spread[0], min(values), max(values), spread[1])
    return [name, str(len(values)), *(f"{figure:.3f}" for figure in figures)]


def _alone(summary: Summary) -> Iterator[str]:
    task, alone = summary.task, summary.in_groups("single")
    if alone:
        alone.sort(key=lambda row: row.test[task.primary].mean, reverse=task.higher)
        metrics = COLUMNS[task.kind]
        lines = [[row.name, *(number_of(row.test[metric]) for metric in metrics)] for row in alone]
        yield from (f"### {GROUPS['single']}", "", *table(["", *metrics], lines))


def _mult(bill: Record) -> Iterator[str]:
    yield from ("### Cost of MulT", "")
    yield (
        f"MulT has {bill['stacks']:,} pairwise stacks of one layer, at width {bill['width']}. "
        f"Operations are those of a forward pass of {bill['batch']} samples: real steps only in "
        f"{GRF}, padded to the longest of the batch in MulT. Memory is that of weights, gradients "
        "and AdamW."
    )
    yield ""
    lines = []
    for name in ("GRF", "MulT", "MulT, as wide"):
        if name in bill:
            own = bill[name]
            narrow = f", stacks {bill['stack width']} wide" if name == "MulT" else ""
            lines.append(
                [
                    name + narrow,
                    f"{own['parameters'] / 1e6:,.2f}",
                    f"{own['operations'] / 1e9:,.2f}",
                    f"{own['bytes'] / 2**30:,.3f}",
                ]
            )
    yield from table(["", "parameters, millions", "GFLOP", "memory, GiB"], lines)


def number_of(value: Spread) -> str:
    """Format a mean and half the width of its interval."""
    return f"{value.mean:.3f}" + ("" if value.half is None else f" ± {value.half:.3f}")


def _time(row: Row, figure: str) -> str:
    timing = row.costs.get(figure) or ""
    return timing if isinstance(timing, str) else f"{1e3 * timing['median']:.3g}"
