"""What the evidence page says follows from the records, and sweeps run what they are told."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.quality import __main__ as command
from benchmarks.quality import sweep as sweeping
from benchmarks.quality.datasets.synthetic import synthetic
from benchmarks.quality.methods import CROSS, GRF, POOLED
from benchmarks.quality.run import Settings, choose, jobs_of
from benchmarks.quality.store import Store
from benchmarks.quality.tables import evidence, plots, standings
from benchmarks.quality.tables.compare import Difference
from benchmarks.quality.tables.summary import Row, Spread, Summary

ROOT = Path(__file__).resolve().parents[1]


def row(name: str, complete: float, half: float, *, minus: tuple[float, float], **more: Any) -> Row:
    """A row with GRF's distance to it, each with an interval of .02 to both sides."""
    gaps = dict(zip(("0", "2"), minus, strict=True)) if name != GRF else {}
    fields: dict[str, Any] = {
        "name": name,
        "group": "baseline",
        "seeds": 5,
        "rate": 1e-3,
        "width": 8,
        "trial": 0,
        "test": {},
        "orders": [],
        "missing": {"0": Spread(complete, None, []), "2": Spread(half, None, [])},
        "parameters": 1,
        "seconds": 1.0,
        "costs": {},
        "differences": {
            gone: Difference(gap, gap - 0.02, gap + 0.02) for gone, gap in gaps.items()
        },
    }
    return Row(**fields | more)


def summary(name: str, *rows: Row, encoded: bool = False, higher: bool = True) -> Summary:
    task = {"kind": "classes", "outputs": 3, "primary": "accuracy", "higher": higher}
    about = {"dataset": name, "half": 2, "encoded": encoded, "task": task}
    return Summary(about | {"modalities": dict.fromkeys("abcd", 3)}, list(rows))


def step(seconds: float) -> dict:
    return {"costs": {"training": {"median": seconds}}}


def made_up() -> list[Summary]:
    ours = {"group": "grf"}
    return [
        summary(
            "mfeat",
            row(GRF, 0.9, 0.8, minus=(0, 0), **ours, **step(0.4)),
            row(POOLED, 0.8, 0.81, minus=(0.1, -0.01), **step(0.1)),
            row(CROSS, 0.85, 0.7, minus=(0.05, 0.1), **step(0.8)),
            row(
                "logistic regression on summaries", 0.95, 0.5, minus=(-0.05, 0.3), group="reference"
            ),
        ),
        summary(
            "rosmap",
            row(GRF, 0.7, 0.6, minus=(0, 0), **ours, **step(0.4)),
            row(POOLED, 0.75, 0.5, minus=(-0.05, 0.1), **step(0.04), seeds=3),
            row(CROSS, 0.6, 0.59, minus=(0.1, 0.01), **step(0.2)),
            row("gradient boosting on summaries", 0.71, 0.6, minus=(-0.01, 0), group="reference"),
        ),
        summary(
            "mfeat-encoded",
            row(GRF, 0.9, 0.8, minus=(0, 0), **ours),
            row(POOLED, 0.8, 0.7, minus=(0.1, 0.1)),
            encoded=True,
        ),
    ]


def test_each_part_has_a_line_where_it_ran() -> None:
    assert "What each part is worth" not in evidence.evidence(made_up())
    found = made_up()
    without, scale = "GRF, mean without maximum", "GRF, no scale of features"
    group = {"group": "ablation"}
    rows = (row(without, 0.8, 0.81, minus=(0.1, -0.01), **group),)
    found[0] = dataclasses.replace(found[0], rows=(*found[0].rows, *rows))
    rows = (row(scale, 0.5, 0.6, minus=(0.2, 0.0), **group),)
    found[1] = dataclasses.replace(found[1], rows=(*found[1].rows, *rows))
    text = evidence.evidence(found)
    assert "|  | mfeat | rosmap |" in text
    low = ["" if row.verdict == "level" else "*" for row in found[0].rows[-1].differences.values()]
    assert low[0] == "*"
    assert f"| {without} | +0.100* / -0.010{low[1]} |  |" in text
    assert f"| {scale} |  | +0.200* / +0.000 |" in text
    # A variant with one change is not a fusion to choose.
    assert text.split("## What each part")[0].count(without) == 0


def test_advice_names_the_best_mean_rank_and_where_grf_is_ahead() -> None:
    text = evidence.evidence(made_up())
    assert (
        f"- **Raw features, all modalities present**: use **{GRF}**, mean rank 1.5 among 3 "
        f"fusions on 2 sets; next is {POOLED} (2.0). GRF is ahead of it on 1 of 2 sets, level on "
        "0 and behind on 1."
    ) in text
    # Ranks 2 and 1 against 1 and 3.
    assert f"half missing**: use **{GRF}**, mean rank 1.5 among 3 fusions on 2 sets; next" in text
    assert (
        f"**Encoded features, about half missing**: use **{GRF}**, mean rank 1.0 among 2 fusions "
        f"on 1 set; next is {POOLED} (2.0). GRF is ahead of it on 1 of 1 sets, level on 0 and "
        "behind on 0."
    ) in text
    worse = [
        summary(
            "mfeat",
            row(GRF, 0.5, 0.5, minus=(0, 0), group="grf"),
            row(CROSS, 0.9, 0.4, minus=(-0.4, 0.1)),
        )
    ]
    text = evidence.evidence(worse)
    assert (
        f"modalities present**: use **{CROSS}**, mean rank 1.0 among 2 fusions on 1 set; {GRF} "
        "has 2.0. GRF is ahead of it on 0 of 1 sets, level on 0 and behind on 1."
    ) in text


def test_a_tie_is_no_advice() -> None:
    text = evidence.evidence(
        [
            summary("a", row(GRF, 0.9, 0.9, minus=(0, 0)), row(CROSS, 0.8, 0.8, minus=(0.1, 0.1))),
            summary(
                "b", row(GRF, 0.8, 0.9, minus=(0, 0)), row(CROSS, 0.81, 0.8, minus=(-0.01, 0.1))
            ),
        ]
    )
    assert (
        f"present**: **{GRF}** and **{CROSS}** tie, mean rank 1.5 among 2 fusions on 2 sets. GRF "
        f"is ahead of {CROSS} on 1 of 2 sets, level on 1 and behind on 0."
    ) in text
    assert f"about half missing**: use **{GRF}**, mean rank 1.0 among 2" in text


def test_equal_scores_share_a_rank_and_less_error_is_better() -> None:
    rows = row(GRF, 0.5, 0.5, minus=(0, 0), group="grf"), row(CROSS, 0.5, 0.7, minus=(0, 0.2))
    one = summary("mosi", *rows, higher=False)
    assert standings.standings([one], standings.COMPLETE) == [(GRF, 1.5), (CROSS, 1.5)]
    assert standings.standings([one], standings.HALF) == [(GRF, 1), (CROSS, 2)]


def test_who_has_not_run_everywhere_has_no_rank() -> None:
    sets = made_up()
    sets[1] = dataclasses.replace(sets[1], rows=[r for r in sets[1].rows if r.name != POOLED])
    names = {standing.name for standing in standings.standings(sets[:2], standings.COMPLETE)}
    assert names == {GRF, CROSS}


def test_the_fastest_half_is_advised_where_steps_were_timed() -> None:
    text = evidence.evidence(made_up())
    # The geometric mean of a quarter and a tenth.
    assert (
        f"**Little time to train**: use {POOLED}. Its training step takes 0.16 times as long as "
        "GRF's (geometric mean of 2 sets). With all modalities present, GRF is ahead of it on 2 "
        "of 3 sets, level on 0 and behind on 1."
    ) in text
    assert "Little time" not in evidence.evidence(made_up()[2:])


def test_classical_models_are_named_where_they_are_ahead() -> None:
    text = evidence.evidence(made_up())
    assert (
        f"The best of these models is ahead of {GRF} on 1 of 2 sets: mfeat (logistic regression on "
        "summaries)."
    ) in text
    assert f"is ahead of {GRF} on 0 of 1 set." in evidence.evidence(made_up()[1:])


def test_the_table_has_six_columns_and_a_best_other_for_each_condition() -> None:
    text = evidence.evidence(made_up())
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {7}
    assert len(lines) == 2 + 3
    assert lines[2] == (
        f"| [mfeat](evidence/mfeat.md), accuracy | 0.900 | 0.850, {CROSS} "
        "| +0.050 (+0.030 to +0.070) "
        f"| 0.800 / 0.810, {POOLED} (2 of 4 missing) | -0.010 (-0.030 to +0.010) |"
    )
    assert f"| 0.750, {POOLED} (3 of 5 seeds) |" in lines[3]
    assert lines[4].startswith("| [mfeat-encoded](evidence/mfeat.md), accuracy |")


def test_conclusions_say_where_grf_is_ahead_of_all_and_where_behind_one() -> None:
    text = evidence.evidence(made_up())
    assert (
        "1. **Raw features, all modalities present** (2 sets): GRF is ahead of every other "
        f"fusion on 1 (mfeat) and behind another fusion on 1 (rosmap: {POOLED})."
    ) in text
    assert (
        "2. **Raw features, about half missing** (2 sets): GRF is level with the best on 2."
    ) in text
    assert (
        f"5. **Against {POOLED}**: GRF is ahead of it in 4 of 6 comparisons, level in 1 and "
        "behind in 1; the mean difference is +0.057. **No correction**: this page rests on 10 "
        "intervals"
    ) in text
    assert re.findall(r"^\d\. ", text, re.MULTILINE) == [f"{k}. " for k in range(1, 6)]
    alone = [summary("mfeat", row(GRF, 0.5, 0.5, minus=(0, 0)), row(CROSS, 0.9, 0.4, minus=(0, 0)))]
    assert "Against concatenation" not in evidence.evidence(alone)


def test_without_rivals_nothing_is_said(tmp_path: Path) -> None:
    alone = [summary("mfeat", row(GRF, 0.5, 0.5, minus=(0, 0), group="grf"))]
    assert "No runs yet." in evidence.evidence(alone)
    assert evidence.evidence(alone) == evidence.evidence([])
    plots.overview(alone, tmp_path / "picture.svg")
    assert not list(tmp_path.iterdir())


def test_the_picture_has_a_row_a_set(tmp_path: Path) -> None:
    plots.overview(made_up(), tmp_path / "assets" / "picture.svg")
    drawn = (tmp_path / "assets" / "picture.svg").read_text("utf-8")
    for name in ("mfeat", "rosmap", "mfeat-encoded"):
        assert f"<!-- {name} -->" in drawn or name in drawn
    assert f"0.900 / 0.850 {CROSS}" in drawn
    assert f"0.800 / 0.810 {POOLED}" in drawn


# Sweeps

QUICK = ("--quick", "--no-progress", "--no-costs", "--run-only")


def only(*names: str) -> list[str]:
    return [word for name in names for word in ("--only", name)]


def test_processes_run_what_one_would_and_merge(tmp_path: Path) -> None:
    """Two processes, one, and two runs that are merged come to the same records."""
    wanted = only(f"synthetic-binary,{POOLED}", "synthetic-binary-encoded,weighted*")

    def run(out: str, *more: str) -> dict[str, dict]:
        command.main(["--out", str(tmp_path / out), *QUICK, *more])
        records = Store(tmp_path / out / "runs.jsonl").records
        return {k: {n: v for n, v in r.items() if n != "seconds"} for k, r in records.items()}

    alone = run("alone", *wanted)
    assert run("together", "--jobs", "2", *wanted) == alone
    parts = [run(f"part {k}", *wanted[k : k + 2]) for k in (0, 2)]
    assert all(len(part) < len(alone) for part in parts)
    files = [str(tmp_path / f"part {k}" / "runs.jsonl") for k in (0, 2)]
    assert run("merged", "--report", "--merge", *files) == alone


def test_no_training_starts_that_would_not_end_in_time(tmp_path: Path) -> None:
    settings, store = Settings(seeds=1), Store(tmp_path / "runs.jsonl")
    dataset = synthetic()
    known = jobs_of(dataset, settings, store)
    plan = sweeping._Plan(sweeping.Source(tmp_path), store, settings, {}, measure=False)
    plan.open = [known[GRF], known[POOLED]]
    long = known[GRF].start(known[GRF].trials()[0])
    store.add(long | {"seconds": 100.0, "validation": {"accuracy": 0.5, "log loss": 1.0}})
    _, job, unit = plan.next({}, 1000.0)
    assert (job.method.name, unit.stage, unit.trial) == (GRF, "trial", 1)
    _, job, _ = plan.next({}, 99.0)
    assert job.method.name == POOLED
    # What is being run is not started again.
    busy = {known[GRF].start(unit)["key"]: None for unit in known[GRF].trials()}
    _, job, _ = plan.next(busy, None)
    assert job.method.name == POOLED


def test_a_sweep_ends_in_time_and_the_next_goes_on(tmp_path: Path) -> None:
    wanted = only(f"synthetic-classes,{POOLED}")
    for jobs in ("1", "2"):
        out = ["--out", str(tmp_path / jobs), *QUICK, "--jobs", jobs, *wanted]
        command.main([*out, "--seconds", "0"])
        runs = tmp_path / jobs / "runs.jsonl"
        assert all("method" not in record for record in Store(runs).records.values())
        command.main(out)
        stages = [record["stage"] for record in Store(runs).records.values()]
        assert stages.count("final") == 2


def test_the_most_important_comes_first() -> None:
    known = jobs_of(synthetic(), Settings(), Store(Path("nowhere")))
    order = sorted(known, key=lambda name: sweeping.urgency(known[name].method))
    assert set(order[:3]) == {GRF, POOLED, CROSS}
    assert order[3:6] == [
        "bottleneck Transformer (MBT)",
        "latent Transformer (Perceiver)",
        "gated multimodal unit (GMU)",
    ]


def test_one_training_that_fails_does_not_end_the_others(tmp_path: Path) -> None:
    class Failing:
        def get(self) -> list:
            raise ValueError("no scikit-learn")

    store, said = Store(tmp_path / "runs.jsonl"), []
    plan = sweeping._Plan(sweeping.Source(tmp_path), store, Settings(seeds=1), {}, measure=False)
    known = jobs_of(synthetic(), plan.settings, store)
    plan.open = [known["gradient boosting on summaries"]]
    while (found := plan.next({}, None)) is not None:
        assert sweeping._collect(plan, found[0], Failing(), said.append) == 0
    assert len(plan.failed) == len(said) == 2
    assert "no scikit-learn" in said[0]
    assert plan.open == []


@pytest.mark.parametrize("name", ["synthetic-binary", "synthetic-binary-encoded"])
def test_where_each_seed_has_another_validation_part(name: str, tmp_path: Path) -> None:
    """Each trial is tested at once, and the settings are chosen by the mean over all of them."""
    turned, asked = synthetic("binary"), []

    def turns(seed: int) -> dict:
        asked.append(seed)
        parts = dict(turned.parts)
        # With odd seeds another part validates.
        if seed % 2:
            parts["validation"] = parts["train"]
        return parts

    object.__setattr__(turned, "turns", turns)
    dataset = turned.encode() if name.endswith("encoded") else turned
    store = Store(tmp_path / "runs.jsonl")
    name = "concatenation, late"
    job = jobs_of(dataset, Settings(seeds=2), store)[name]
    trials = job.pending()
    assert [(unit.seed, unit.trial) for _, unit in trials] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    for owner, unit in trials:
        records = owner.do(unit)
        assert [record["stage"] for record in records] == ["trial", "final"]
        assert "test" not in records[0]
        assert records[0]["validation"] == records[1]["validation"]
        for record in records:
            store.add(record)
    assert asked == [1, 1, 2, 2]
    assert job.pending() == []
    of_both = [r for r in store.records.values() if r["stage"] == "trial"]
    means = [
        sum(r["validation"]["AUROC"] for r in of_both if r["trial"] == trial) / 2
        for trial in (0, 1)
    ]
    assert job.chosen()["trial"] == means.index(max(means))


def test_the_mean_over_validation_parts_chooses() -> None:
    def trial(number: int, seed: int, value: float) -> dict:
        return {"trial": number, "seed": seed, "validation": {"AUROC": value, "log loss": 1.0}}

    records = [trial(0, 1, 0.9), trial(0, 2, 0.5), trial(1, 1, 0.75), trial(1, 2, 0.75)]
    assert choose(synthetic("binary").task, records)["trial"] == 1


def test_a_sweep_needs_torch_and_numpy_alone(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('einops', 'sklearn', 'scipy', 'matplotlib', 'tqdm', 'threadpoolctl'):\n"
        "    sys.modules[name] = None\n"
        "from benchmarks.quality.__main__ import main\n"
        f"main(['--out', {str(tmp_path)!r}, *{[*QUICK, *only(f'synthetic-classes,{POOLED}')]!r}])\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    stages = [record["stage"] for record in Store(tmp_path / "runs.jsonl").records.values()]
    assert stages.count("final") == 2


def test_other_orders_are_tested_on_request(tmp_path: Path) -> None:
    call = ["--out", str(tmp_path), "--quick", "--no-progress", "--no-costs"]
    wanted = only(f"synthetic-classes,{GRF}")
    command.main([*call, *wanted])
    records = Store(tmp_path / "runs.jsonl").records.values()
    assert not any("orders" in record for record in records)
    assert "against order" not in (tmp_path / "results.md").read_text("utf-8")
    (tmp_path / "runs.jsonl").unlink()
    command.main([*call, "--orders", *wanted])
    finals = [r for r in Store(tmp_path / "runs.jsonl").records.values() if r["stage"] == "final"]
    assert [len(final["orders"]) for final in finals] == [6, 6]
    # The first order is the declared one.
    assert all(final["orders"][0] == final["test"]["accuracy"] for final in finals)
    assert "### accuracy against order" in (tmp_path / "results.md").read_text("utf-8")
