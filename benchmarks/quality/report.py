"""Tables of the runs on disk, a page for each data set: Markdown, and the same as JSON."""

import collections
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from benchmarks.common.markdown import table
from benchmarks.quality.compare import Bootstrap
from benchmarks.quality.datasets.catalog import plain
from benchmarks.quality.datasets.dataset import Task
from benchmarks.quality.methods import BASELINES, GRF, GROUPS
from benchmarks.quality.metrics import COLUMNS, interval
from benchmarks.quality.run import choose, of_dataset
from benchmarks.quality.store import Record, Store

FULL = ("reference", "baseline", "grf", "ablation", "rival")
# What GRF is compared with, row by row.
COMPARED = ("reference", "baseline", "grf")
HEAD = (
    "Mean over seeds ± half the width of its 95 % interval (Student). Differences: the bootstrap "
    "of test samples and seeds in pairs, 95 %."
)
# What marks a method that is trained with more or fewer gaps than the others.
OTHER = "modality dropout"
CHOSEN = " Settings were chosen with seed 0, which is not among the seeds that are shown."
TURNS = (
    " Each of five persons validates in turn, with one seed each: settings are chosen by the mean "
    "over all five."
)
REFIT = " The reported models were then trained on train and validation together."
DROP = "% of the steps of a sequence were left out at random in training, with every method."
ENCODED = {
    False: "Features as they come",
    True: "Behind a two-layer network of its own for each modality, applied to every step, the "
    "same for every method",
}
UNITS = {"training": "training step, ms", "inference": "inference, ms"}
# A difference of a metric between 0 and 1 that is too small to matter, whatever the interval.
LEVEL = 0.005


def summarise(store: Store) -> list[dict[str, Any]]:
    """Return for each data set what the tables show.

    A row holds the seeds that ran with the settings that were chosen; a method of which some trial
    has not run yet has no row, for nothing is chosen then.
    """
    return [
        _of_dataset(about, records) | {"bill": _bill(store, about)}
        for about, records in of_dataset(store)
    ]


def _of_dataset(about: Record, records: Sequence[Record]) -> dict[str, Any]:
    task, wanted = Task(**about["task"]), len(about["budget"]["trials"])
    by_method: dict[str, list[Record]] = {}
    for record in records:
        by_method.setdefault(record["method"], []).append(record)
    rows, pending, skipped = [], [], {}
    for name, own in by_method.items():
        tuned = by_method.get(own[-1]["tuned as"] or name, [])
        trials = _complete([record for record in tuned if record["stage"] == "trial"], wanted)
        if own[-1]["stage"] == "skipped":
            skipped[name] = own[-1]["reason"]
        elif not trials:
            pending.append(name)
        else:
            row = _row(name, own, choose(task, trials), task)
            (rows if row["seeds"] else pending).append(row if row["seeds"] else name)
    rows.sort(key=_place)
    _compare(about, rows, by_method)
    return {
        "about": about,
        "rows": rows,
        "pending": sorted(pending),
        "skipped": skipped,
    }


def _place(row: Mapping[str, Any]) -> tuple[int, int, str]:
    """Return where a row stands, whatever ran first."""
    known = list(BASELINES)
    number = known.index(row["name"]) if row["name"] in known else len(known)
    return list(GROUPS).index(row["group"]), number, "" if row["name"] == GRF else row["name"]


def _compare(
    about: Record, rows: Sequence[dict[str, Any]], by_method: Mapping[str, Sequence[Record]]
) -> None:
    """Write into each row by how much GRF is ahead of it, with everything there and half of it."""
    compared = {row["name"]: row for row in rows if row["group"] in COMPARED}
    if GRF not in compared:
        return
    bootstrap = Bootstrap(about)
    replicates: dict[str, dict[str, dict[int, NDArray]]] = {}
    for name, row in compared.items():
        finals = _finals(by_method[name], row["trial"])
        replicates[name] = {
            gone: {f["seed"]: bootstrap.replicate(f["predictions"][gone]) for f in finals}
            for gone in ("0", str(about["half"]))
        }
    for name, row in compared.items():
        # Seeds that only one of both has run are no pairs.
        if name != GRF and replicates[GRF]["0"].keys() & replicates[name]["0"].keys():
            found = {
                gone: bootstrap.difference(replicates[GRF][gone], replicates[name][gone])
                for gone in replicates[name]
            }
            row["GRF minus this"] = {
                gone: difference._asdict() | {"GRF is": difference.verdict}
                for gone, difference in found.items()
            }


def _complete(trials: Sequence[Record], wanted: int) -> list[Record]:
    """Return the trials of those seeds for which all settings have run."""
    count = collections.Counter(record["seed"] for record in trials)
    return [record for record in trials if count[record["seed"]] == wanted]


def _row(name: str, own: Sequence[Record], chosen: Record, task: Task) -> dict[str, Any]:
    rate, width, trial = chosen["rate"], chosen["width"], chosen["trial"]
    finals = _finals(own, trial)
    costs = [r for r in own if r["stage"] == "cost" and (r["rate"], r["width"]) == (rate, width)]
    scores = {
        metric: _spread([final["test"][metric] for final in finals])
        for metric in (COLUMNS[task.kind] if finals else ())
    }
    missing: dict[str, list[float]] = {}
    for final in finals:
        for gone, value in final.get("missing", {}).items():
            missing.setdefault(gone, []).append(value)
    return {
        "name": name,
        "group": own[0]["group"],
        "seeds": len(finals),
        "rate": rate,
        "width": width,
        "trial": trial,
        "test": scores,
        "missing": {gone: _spread(values) for gone, values in missing.items()},
        "orders": [final["orders"] for final in finals if "orders" in final],
        "parameters": finals[-1]["parameters"] if finals else 0,
        "seconds": statistics.fmean([f["seconds"] for f in finals]) if finals else 0.0,
        "costs": {figure: costs[-1].get(figure) for figure in UNITS} if costs else {},
    }


def _finals(own: Sequence[Record], trial: int) -> list[Record]:
    found = [r for r in own if r["stage"] == "final" and r["trial"] == trial]
    return sorted(found, key=lambda record: record["seed"])


def _spread(values: Sequence[float]) -> dict[str, Any]:
    mean, half = interval(values)
    return {"mean": mean, "half width": half if math.isfinite(half) else None, "seeds": values}


def _bill(store: Store, about: Record) -> Record | None:
    found = [
        record
        for record in store.records.values()
        if record["stage"] == "bill" and record["dataset key"] == about["key"]
    ]
    return found[-1] if found else None


def markdown(store: Store) -> str:
    """Return all tables."""
    return "\n".join(pages(summarise(store)).values())


def pages(summaries: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return a page for each data set, by its name: as it comes, and encoded."""
    found: dict[str, list[str]] = {}
    for summary in summaries:
        name, title = plain(summary["about"]["dataset"]), summary["about"]["title"]
        start = [f"# {name}", "", f"{title[0].upper()}{title[1:]}.", "", HEAD, ""]
        found.setdefault(name, start).extend(_dataset(summary))
    return {name: "\n".join(lines) for name, lines in found.items()}


def _dataset(summary: Mapping[str, Any]) -> Iterator[str]:
    about, rows = summary["about"], summary["rows"]
    task = Task(**about["task"])
    sizes = " / ".join(f"{size:,}" for size in about["samples"].values())
    yield from (f"## {ENCODED[about['encoded']]}", "")
    budget = about["budget"]
    settings = ", ".join(f"{rate:g} at width {width}" for rate, width in budget["trials"])
    yield (
        f"{len(about['modalities'])} modalities, {100 * about['absent']:.1f} % absent in train; "
        f"{sizes} samples to train, validate and test on; learning rates {settings}; single "
        "modalities, other orders and methods with one thing changed take the settings of the "
        f"method that they are made of; at most {budget['epochs']} epochs; chosen by "
        f"{task.primary}."
        + (TURNS if about["turns"] else CHOSEN)
        + (REFIT if budget["refit"] else "")
        + (f" {100 * budget['drop_steps']:.0f} {DROP}" if budget["drop_steps"] else "")
    )
    yield ""
    metrics = COLUMNS[task.kind]
    header = ["", *metrics, "seeds", "rate, width", "parameters", *UNITS.values()]
    for group in FULL:
        chosen = [row for row in rows if row["group"] == group]
        if chosen:
            lines = [_cells(row, metrics) for row in chosen]
            yield from (f"### {GROUPS[group]}", "", *table(header, lines))
    yield from _differences(rows, about)
    yield from _reference(about)
    yield from _missing(rows, about)
    yield from _orders(rows, task)
    yield from _alone(rows, task)
    yield from _mult(summary["bill"])
    for name, reason in summary["skipped"].items():
        yield from (f"Not run: {name}, {reason}.", "")
    if summary["pending"]:
        yield from (f"Not complete: {', '.join(summary['pending'])}.", "")


def _cells(row: Mapping[str, Any], metrics: Sequence[str]) -> list[str]:
    classical = row["group"] == "reference"
    chosen = f"trial {row['trial'] + 1}" if classical else f"{row['rate']:g}, {row['width']}"
    return [
        row["name"],
        *(number_of(row["test"][metric]) for metric in metrics),
        str(row["seeds"]),
        chosen,
        "" if classical else f"{row['parameters']:,}",
        *(_time(row["costs"].get(figure)) for figure in UNITS),
    ]


def _differences(rows: Sequence[Mapping[str, Any]], about: Record) -> Iterator[str]:
    compared = [row for row in rows if "GRF minus this" in row]
    if not compared:
        return
    half = str(about["half"])
    yield from (f"### {GRF} minus each other method, {about['task']['primary']}", "")
    header = ["", "everything there", f"{GRF} is", f"{half} missing", f"{GRF} is"]
    lines = []
    for row in compared:
        found = [row["GRF minus this"][gone] for gone in ("0", half)]
        cells = [cell for one in found for cell in (interval_of(one), one["GRF is"])]
        lines.append([row["name"], *cells])
    yield from table(header, lines)


def interval_of(difference: Mapping[str, Any]) -> str:
    """Return a difference and its interval as text."""
    low, high = difference["low"], difference["high"]
    return f"{difference['mean']:+.3f} ({low:+.3f} to {high:+.3f})"


def _reference(about: Record) -> Iterator[str]:
    if about["reference"]:
        rows = [list(row) for row in about["reference"]]
        yield from ("### Numbers that came with the data", "", *table(["", "metric", ""], rows))


def _missing(rows: Sequence[Mapping[str, Any]], about: Record) -> Iterator[str]:
    shown = [row for row in rows if row["missing"]]
    if shown:
        points = [str(gone) for gone in about["missing"]]
        primary = about["task"]["primary"]
        yield from (f"### {primary} with so many modalities missing at test time", "")
        yield "Each sample keeps at most n - k random ones of those it has."
        yield ""
        lines = [[r["name"], *(number_of(r["missing"][point]) for point in points)] for r in shown]
        yield from table(["", *points], lines)


def _orders(rows: Sequence[Mapping[str, Any]], task: Task) -> Iterator[str]:
    trained = [row["test"][task.primary]["mean"] for row in rows if row["group"] == "order"]
    tested = [row for row in rows if row["orders"]]
    if not trained and not tested:
        return
    header = ["", "orders", "mean", "deviation", "lowest", "highest", "deviation over seeds"]
    lines = []
    own = next((row for row in rows if row["name"] == GRF), None)
    if trained:
        seeds = own["test"][task.primary]["seeds"] if own else []
        # The declared order with the same seed, the first, is one of them.
        trained = [*seeds[:1], *trained]
        lines.append(_range("trained and tested in each order, one seed", trained, seeds))
    for row in tested:
        # The first order is the declared one.
        means = [statistics.fmean(of_order) for of_order in zip(*row["orders"], strict=True)]
        seeds = row["test"][task.primary]["seeds"]
        lines.append(_range(f"{row['name']}: tested in each order", means, seeds))
    yield from (f"### {task.primary} against order", "", *table(header, lines))


def _range(name: str, values: Sequence[float], seeds: Sequence[float]) -> list[str]:
    spread = [statistics.stdev(x) if len(x) > 1 else math.nan for x in (values, seeds)]
    figures = (statistics.fmean(values), spread[0], min(values), max(values), spread[1])
    return [name, str(len(values)), *(f"{figure:.3f}" for figure in figures)]


def _alone(rows: Sequence[Mapping[str, Any]], task: Task) -> Iterator[str]:
    alone = [row for row in rows if row["group"] == "single"]
    if alone:
        alone.sort(key=lambda row: row["test"][task.primary]["mean"], reverse=task.higher)
        metrics = COLUMNS[task.kind]
        lines = [
            [row["name"], *(number_of(row["test"][metric]) for metric in metrics)] for row in alone
        ]
        yield from (f"### {GROUPS['single']}", "", *table(["", *metrics], lines))


def _mult(bill: Record | None) -> Iterator[str]:
    if bill is None:
        return
    yield from ("### What MulT needs here", "")
    yield (
        f"{bill['stacks']:,} pairwise stacks of one layer, at width {bill['width']}; operations of "
        f"a forward pass of {bill['batch']} samples, of real steps in ours and padded to the "
        "longest of the batch in MulT; memory of weights, gradients and AdamW alone."
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


def number_of(value: Mapping[str, Any]) -> str:
    """Return a mean and half the width of its interval as text."""
    half = value["half width"]
    return f"{value['mean']:.3f}" + ("" if half is None else f" ± {half:.3f}")


def _time(timing: Mapping[str, Any] | str | None) -> str:
    if timing is None:
        return ""
    return timing if isinstance(timing, str) else f"{1e3 * timing['median']:.3g}"
