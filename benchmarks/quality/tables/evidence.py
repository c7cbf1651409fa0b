"""The evidence page: advice, a table and conclusions, all generated from the records.

Each sentence follows from the runs by the rules below, so newer runs never leave one out of date.
"""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.common.markdown import insert, table
from benchmarks.quality.datasets.catalog import plain
from benchmarks.quality.methods import GRF, POOLED
from benchmarks.quality.tables.report import interval_of
from benchmarks.quality.tables.standings import (
    COMPLETE,
    HALF,
    against,
    best_other,
    fusions,
    gone_of,
    score,
    shown,
    standings,
)
from benchmarks.quality.tables.summary import Row, Summary

# The generated part is between them.
MARKS = "<!-- from the runs -->", "<!-- end of what is from the runs -->"
PICTURE = "quality_overview.svg"


def evidence(summaries: Sequence[Summary], pages: str = "evidence") -> str:
    """Return the part between the marks; `pages` is the folder of the pages by data set."""
    found = shown(summaries)
    if not found:
        return "## Which fusion to use\n\nNo runs yet.\n"
    lines = [
        "## Which fusion to use",
        "",
        *_advice(found),
        "",
        f"## {GRF} and the best other fusion",
        "",
        f"[![{GRF} minus the best other fusion, by data set](assets/{PICTURE})](assets/{PICTURE})",
        "",
        *_table(found, pages),
        "## Results",
        "",
        *(f"{k}. {text}" for k, text in enumerate(_conclusions(found), 1)),
        *_parts(found),
    ]
    return "\n".join(lines) + "\n"


def write(summaries: Sequence[Summary], texts: Mapping[str, str], docs: Path) -> None:
    """Write the evidence page and one page per data set into the documentation."""
    page = docs / "evidence.md"
    page.write_text(insert(page.read_text("utf-8"), MARKS, evidence(summaries)), "utf-8")
    (docs / "evidence").mkdir(exist_ok=True)
    for name, text in texts.items():
        (docs / "evidence" / f"{name}.md").write_text(text, "utf-8")


def _advice(summaries: Sequence[Summary]) -> Iterator[str]:
    yield (
        "Mean ranks are over data sets, among the fusions that ran on all of them. A fusion is "
        "ahead or behind if the 95 % interval of the difference excludes 0."
    )
    yield ""
    for encoded, features in ((False, "Raw features"), (True, "Encoded features")):
        own = [summary for summary in summaries if summary.about["encoded"] == encoded]
        for point in (COMPLETE, HALF) if own else ():
            yield f"- **{features}, {point}**: {_first(own, point)}"
    yield from _quick(summaries)
    yield from _classical(summaries)


def _first(summaries: Sequence[Summary], point: str) -> str:
    ranked = standings(summaries, point)
    best, rest = ranked[0], [standing for standing in ranked if standing.name != ranked[0].name]
    sets = _sets(len(summaries))
    if not rest:
        return f"too few runs to compare, on {sets}."
    rank = f"mean rank {best.rank:.1f} among {len(ranked)} fusions on {sets}"
    # Ranks that are equal as printed are a tie; no fusion is advised.
    tied = [standing.name for standing in ranked if f"{standing.rank:.1f}" == f"{best.rank:.1f}"]
    if len(tied) > 1:
        rivals = [name for name in tied if name != GRF]
        counts = (f"GRF is {_counted(against(summaries, name, [point]), name)}." for name in rivals)
        return f"{' and '.join(f'**{name}**' for name in tied)} tie, {rank}. {' '.join(counts)}"
    text = f"use **{best.name}**, {rank}"
    if best.name == GRF:
        second = rest[0]
        text += f"; next is {second.name} ({second.rank:.1f})"
        return f"{text}. GRF is {_counted(against(summaries, second.name, [point]), 'it')}."
    own = next((standing for standing in rest if standing.name == GRF), None)
    text += f"; {GRF} has {own.rank:.1f}" if own else ""
    return f"{text}. GRF is {_counted(against(summaries, best.name, [point]), 'it')}."


def _quick(summaries: Sequence[Summary]) -> Iterator[str]:
    ratios: dict[str, list[float]] = {}
    for summary in summaries:
        times = {name: row.step for name, row in fusions(summary).items()}
        own = times.get(GRF)
        for name, time in times.items():
            if own is not None and time is not None and name != GRF:
                ratios.setdefault(name, []).append(time / own)
    if not ratios:
        return
    means = {name: math.exp(statistics.fmean(map(math.log, of))) for name, of in ratios.items()}
    ranked = {standing.name: standing.rank for standing in standings(summaries, COMPLETE)}
    # The best of the fastest half.
    fast = sorted(means, key=lambda name: means[name])[: max(1, len(means) // 2)]
    name = min(fast, key=lambda name: ranked.get(name, math.inf))
    count = against(summaries, name, [COMPLETE])
    yield (
        f"- **Little time to train**: use {name}. Its training step takes {means[name]:.2g} times "
        f"as long as GRF's (geometric mean of {_sets(len(ratios[name]))}). With {COMPLETE}, GRF is "
        f"{_counted(count, 'it')}."
    )


def _classical(summaries: Sequence[Summary]) -> Iterator[str]:
    ahead, compared = [], 0
    for summary in summaries:
        own = summary.in_groups("reference")
        if own:
            compared += 1
            best = max(own, key=lambda row: score(summary, row, COMPLETE))
            if best.differences["0"].verdict == "behind":
                ahead.append(f"{summary.name} ({best.name})")
    if compared:
        where = f"{len(ahead)} of {_sets(compared)}" + (f": {', '.join(ahead)}" if ahead else "")
        yield (
            "- **A few statistics per modality may be enough**: fit a linear model and boosting "
            f"on them first, which takes seconds. The best of these models is ahead of {GRF} on "
            f"{where}."
        )


def _table(summaries: Sequence[Summary], pages: str) -> Iterator[str]:
    header = ["", GRF, "best other fusion", "difference"]
    header += [f"{HALF}: {GRF} / best other", f"difference, {HALF}"]
    lines = []
    for summary in summaries:
        name, half = summary.name, summary.half
        own = fusions(summary)[GRF]
        other, less = (best_other(summary, point) for point in (COMPLETE, HALF))
        link = f"[{name}]({pages}/{plain(name)}.md)" if pages else name
        lines.append(
            [
                f"{link}, {summary.task.primary}",
                _mean(own, "0"),
                f"{_mean(other, '0')}, {_named(other, own)}",
                interval_of(other.differences["0"]),
                " / ".join((_mean(own, half), f"{_mean(less, half)}, {_named(less, own)}"))
                + f" ({half} of {len(summary.about['modalities'])} missing)",
                interval_of(less.differences[half]),
            ]
        )
    yield from table(header, lines)


def _parts(summaries: Sequence[Summary]) -> Iterator[str]:
    changed = {
        summary.name: {row.name: row for row in summary.in_groups("ablation") if row.differences}
        for summary in summaries
    }
    sets = [summary for summary in summaries if changed[summary.name]]
    names = list(dict.fromkeys(name for rows in changed.values() for name in rows))
    if not sets:
        return
    yield from ("", "## What each part is worth", "")
    yield (
        f"{GRF} minus {GRF} with one change, with {COMPLETE} / {HALF}. All variants use the "
        f"settings of {GRF}. A star marks an interval that excludes 0."
    )
    yield ""

    def cell(summary: Summary, name: str) -> str:
        row = changed[summary.name].get(name)
        if row is None:
            return ""
        found = (row.differences[gone_of(summary, point)] for point in (COMPLETE, HALF))
        return " / ".join(f"{d.mean:+.3f}{'' if d.verdict == 'level' else '*'}" for d in found)

    lines = [[name, *(cell(summary, name) for summary in sets)] for name in names]
    yield from table(["", *(summary.name for summary in sets)], lines)


def _named(row: Row, own: Row) -> str:
    """Return a name, with the number of its seeds if it has fewer than GRF."""
    lacking = row.seeds < own.seeds
    return row.name + (f" ({row.seeds} of {own.seeds} seeds)" if lacking else "")


def _mean(row: Row, gone: str) -> str:
    return f"{row.missing[gone].mean:.3f}"


def _conclusions(summaries: Sequence[Summary]) -> Iterator[str]:
    for encoded, said in ((False, "Raw features"), (True, "Encoded features")):
        own = [summary for summary in summaries if summary.about["encoded"] == encoded]
        for point in (COMPLETE, HALF) if own else ():
            yield _verdicts(own, point, said)
    count = sum(len(fusions(summary)) - 1 for summary in summaries) * 2
    pooled = [summary for summary in summaries if POOLED in fusions(summary)]
    text = ""
    if pooled:
        found = [
            fusions(summary)[POOLED].differences[gone_of(summary, point)].mean
            for summary in pooled
            for point in (COMPLETE, HALF)
        ]
        count_of = against(pooled, POOLED, (COMPLETE, HALF))
        text = (
            f"**Against {POOLED}**: GRF is {_counted(count_of, 'it', 'in', 'comparisons')}; "
            f"the mean difference is {statistics.fmean(found):+.3f}. "
        )
    yield (
        f"{text}**No correction**: this page rests on {count} intervals of differences between "
        f"{GRF} and another fusion. If there were no differences, about {0.05 * count:.0f} of "
        "them would exclude 0 by chance."
    )


def _verdicts(summaries: Sequence[Summary], point: str, features: str) -> str:
    ahead, behind = [], []
    for summary in summaries:
        name = summary.name
        sides = {
            other: row.differences[gone_of(summary, point)].verdict
            for other, row in fusions(summary).items()
            if other != GRF
        }
        if all(side == "ahead" for side in sides.values()):
            ahead.append(name)
        losing = [other for other, side in sides.items() if side == "behind"]
        if losing:
            behind.append(f"{name}: {' and '.join(losing)}")
    # Neither ahead of all nor behind any.
    level = len(summaries) - len(ahead) - len(behind)
    texts = []
    if ahead:
        texts.append(f"ahead of every other fusion on {_listed(ahead)}")
    if behind:
        texts.append(f"behind another fusion on {_listed(behind)}")
    if level:
        texts.append(f"level with the best on {level}")
    return f"**{features}, {point}** ({_sets(len(summaries))}): GRF is {' and '.join(texts)}."


def _listed(names: Sequence[str]) -> str:
    return f"{len(names)} ({'; '.join(names)})"


def _sets(count: int) -> str:
    return f"{count} set" if count == 1 else f"{count} sets"


def _counted(count: Mapping[str, int], other: str, at: str = "on", unit: str = "sets") -> str:
    ahead, level, behind = (count[side] for side in ("ahead", "level", "behind"))
    total = f"{sum(count.values())} {unit}"
    return f"ahead of {other} {at} {ahead} of {total}, level {at} {level} and behind {at} {behind}"
