"""Tables of the runs on disk: Markdown, and the same as JSON."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.quality.data import Task
from benchmarks.quality.methods import GRF, GROUPS
from benchmarks.quality.metrics import COLUMNS, interval
from benchmarks.quality.run import choose, of_dataset
from benchmarks.quality.store import Record, Store

FULL = ("reference", "baseline", "grf", "ablation", "rival")
HEAD = (
    "Mean over seeds ± half the width of its 95 % interval (Student). Learning rate and width were "
    "chosen on validation with seed 0, which is not among the seeds that are shown."
)
# How many modalities are missing in the overview, and what marks a baseline trained with more or
# fewer gaps than GRF.
SHARE, OTHER = 0.3, "modality dropout"
REFIT = " What is reported was then trained on train and validation together."
DROP = "% of the steps of a sequence were left out at random in training, with every method."
# Between them stand the tables of a page.
BEGIN, END = "<!-- tables -->", "<!-- end of tables -->"
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
        trials = [record for record in tuned if record["stage"] == "trial"]
        if own[-1]["stage"] == "skipped":
            skipped[name] = own[-1]["reason"]
        elif len(trials) < wanted:
            pending.append(name)
        else:
            row = _row(name, own, choose(task, trials), task)
            (rows if row["seeds"] else pending).append(row if row["seeds"] else name)
    return {
        "about": about,
        "rows": rows,
        "pending": pending,
        "skipped": skipped,
    }


def _row(name: str, own: Sequence[Record], chosen: Record, task: Task) -> dict[str, Any]:
    rate, width, trial = chosen["rate"], chosen["width"], chosen["trial"]
    finals = [r for r in own if r["stage"] == "final" and r["trial"] == trial]
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
    lines, summaries = [HEAD, ""], summarise(store)
    lines += list(_overview(summaries))
    for summary in summaries:
        lines += list(_dataset(summary))
    return "\n".join(lines) + "\n"


def insert(page: str, tables: str) -> str:
    """Put the tables into a page, between its two marks, one level of headings deeper.

    Raises:
        ValueError: If the page has no marks.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"insert: expected a page with {BEGIN} and {END}, got neither or one.")
    lines = [f"#{line}" if line.startswith("#") else line for line in tables.splitlines()]
    return "\n".join([f"{before}{BEGIN}", "", *lines, "", f"{END}{after}"])


def _overview(summaries: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Hold ours against the best of the others on each data set."""
    table = []
    for summary in summaries:
        about = summary["about"]
        task, count = Task(**about["task"]), len(about["modalities"])
        rows = {row["name"]: row for row in summary["rows"]}
        fused = [r for r in rows.values() if r["group"] == "baseline" and OTHER not in r["name"]]
        classical = [r for r in rows.values() if r["group"] == "reference"]
        if GRF not in rows or not (fused or classical):
            continue
        own = rows[GRF]
        cells = [about["dataset"], str(count), task.primary, _number(own["test"][task.primary])]
        for others in (fused, classical):
            best = _best(others, task)
            cells.append(_named(best, task) if best else "")
        verdict = _verdict(own, _best([*fused, *classical], task), task)
        rival = _best(fused, task)
        lost = [_lost(row, task, SHARE * count) for row in (own, rival) if row]
        table.append([*cells, verdict, " / ".join(f"{value:.3f}" for value in lost)])
    if table:
        header = ["", "modalities", "metric", GRF, "best baseline", "best classical"]
        header += [f"{GRF} is", f"lost with {SHARE:.0%} missing, {GRF} / best baseline"]
        yield from ("## Overview", "", *_table(header, table))
        yield (
            "Ahead and behind: by more than the wider of the two intervals; level: by less than "
            f"{LEVEL}. What is lost is interpolated between the points of the curves below."
        )
        yield ""


def _best(rows: Sequence[Mapping[str, Any]], task: Task) -> Mapping[str, Any] | None:
    sign = 1 if task.higher else -1
    return max(rows, key=lambda row: sign * row["test"][task.primary]["mean"], default=None)


def _named(row: Mapping[str, Any], task: Task) -> str:
    return f"{_number(row['test'][task.primary])}, {row['name']}"


def _verdict(own: Mapping[str, Any], best: Mapping[str, Any], task: Task) -> str:
    mine, other = own["test"][task.primary], best["test"][task.primary]
    ahead = (mine["mean"] - other["mean"]) * (1 if task.higher else -1)
    if task.kind != "regression" and abs(ahead) < LEVEL:
        return "level"
    if abs(ahead) <= max(mine["half width"] or 0.0, other["half width"] or 0.0):
        return "within the interval"
    return "ahead" if ahead > 0 else "behind"


def _lost(row: Mapping[str, Any], task: Task, gone: float) -> float:
    """Return how much worse a method is with so many modalities missing, by interpolation."""
    points = sorted((int(point), value["mean"]) for point, value in row["missing"].items())
    places, means = zip(*points, strict=True)
    lost = means[0] - float(np.interp(gone, places, means))
    return lost if task.higher else -lost


def _dataset(summary: Mapping[str, Any]) -> Iterator[str]:
    about, rows = summary["about"], summary["rows"]
    task = Task(**about["task"])
    sizes = " / ".join(f"{size:,}" for size in about["samples"].values())
    yield from (f"## {about['dataset']}", "", f"{about['title']}.", "")
    budget = about["budget"]
    yield (
        f"{len(about['modalities'])} modalities, {100 * about['absent']:.1f} % absent in train; "
        f"{sizes} samples to train, validate and test on; {len(budget['trials'])} trials a method "
        "(single modalities, other orders and what has one thing changed or taken away take the "
        f"settings of the method that they are made of), at most {budget['epochs']} epochs; "
        f"chosen by {task.primary}."
        + (REFIT if budget["refit"] else "")
        + (f" {100 * budget['drop_steps']:.0f} {DROP}" if budget["drop_steps"] else "")
    )
    yield ""
    metrics = COLUMNS[task.kind]
    header = ["", *metrics, "seeds", "rate, width", "parameters", *UNITS.values()]
    for group in FULL:
        chosen = [row for row in rows if row["group"] == group]
        if chosen:
            table = [_cells(row, metrics) for row in chosen]
            yield from (f"### {GROUPS[group]}", "", *_table(header, table))
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
        *(_number(row["test"][metric]) for metric in metrics),
        str(row["seeds"]),
        chosen,
        "" if classical else f"{row['parameters']:,}",
        *(_time(row["costs"].get(figure)) for figure in UNITS),
    ]


def _reference(about: Record) -> Iterator[str]:
    if about["reference"]:
        rows = [list(row) for row in about["reference"]]
        yield from ("### Numbers that came with the data", "", *_table(["", "metric", ""], rows))


def _missing(rows: Sequence[Mapping[str, Any]], about: Record) -> Iterator[str]:
    shown = [row for row in rows if row["missing"]]
    if shown:
        points = [str(gone) for gone in about["missing"]]
        primary = about["task"]["primary"]
        yield from (f"### {primary} with so many modalities missing at test time", "")
        yield "Each sample keeps at most n - k random ones of those it has."
        yield ""
        table = [[r["name"], *(_number(r["missing"][point]) for point in points)] for r in shown]
        yield from _table(["", *points], table)


def _orders(rows: Sequence[Mapping[str, Any]], task: Task) -> Iterator[str]:
    trained = [row["test"][task.primary]["mean"] for row in rows if row["group"] == "order"]
    tested = [row for row in rows if row["orders"]]
    if not trained and not tested:
        return
    header = ["", "orders", "mean", "deviation", "lowest", "highest", "deviation over seeds"]
    table = []
    own = next((row for row in rows if row["name"] == GRF), None)
    if trained:
        seeds = own["test"][task.primary]["seeds"] if own else []
        # The declared order with the same seed, the first, is one of them.
        trained = [*seeds[:1], *trained]
        table.append(_range("trained and tested in each order, one seed", trained, seeds))
    for row in tested:
        # The first order is the declared one.
        means = [statistics.fmean(of_order) for of_order in zip(*row["orders"], strict=True)]
        seeds = row["test"][task.primary]["seeds"]
        table.append(_range(f"{row['name']}: tested in each order", means, seeds))
    yield from (f"### {task.primary} against order", "", *_table(header, table))


def _range(name: str, values: Sequence[float], seeds: Sequence[float]) -> list[str]:
    spread = [statistics.stdev(x) if len(x) > 1 else math.nan for x in (values, seeds)]
    figures = (statistics.fmean(values), spread[0], min(values), max(values), spread[1])
    return [name, str(len(values)), *(f"{figure:.3f}" for figure in figures)]


def _alone(rows: Sequence[Mapping[str, Any]], task: Task) -> Iterator[str]:
    alone = [row for row in rows if row["group"] == "single"]
    if alone:
        alone.sort(key=lambda row: row["test"][task.primary]["mean"], reverse=task.higher)
        metrics = COLUMNS[task.kind]
        table = [
            [row["name"], *(_number(row["test"][metric]) for metric in metrics)] for row in alone
        ]
        yield from (f"### {GROUPS['single']}", "", *_table(["", *metrics], table))


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
    table = []
    for name in ("GRF", "MulT", "MulT, as wide"):
        if name in bill:
            own = bill[name]
            narrow = f", stacks {bill['stack width']} wide" if name == "MulT" else ""
            table.append(
                [
                    name + narrow,
                    f"{own['parameters'] / 1e6:,.2f}",
                    f"{own['operations'] / 1e9:,.2f}",
                    f"{own['bytes'] / 2**30:,.3f}",
                ]
            )
    yield from _table(["", "parameters, millions", "GFLOP", "memory, GiB"], table)


def _number(value: Mapping[str, Any]) -> str:
    half = value["half width"]
    return f"{value['mean']:.3f}" + ("" if half is None else f" ± {half:.3f}")


def _time(timing: Mapping[str, Any] | str | None) -> str:
    if timing is None:
        return ""
    return timing if isinstance(timing, str) else f"{1e3 * timing['median']:.3g}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---"] * len(header)
    return [f"| {' | '.join(row)} |" for row in (header, rule, *rows)] + [""]
