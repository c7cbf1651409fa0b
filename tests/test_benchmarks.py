"""The benchmarks' peers compute what they claim, and the harness runs; no test asserts on time."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.common.clock import Timing, flops
from benchmarks.common.markdown import insert, inserted
from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import cases, report
from benchmarks.gpu.bars import bars
from benchmarks.gpu.kernels import OTHER, by_kind, summarise
from benchmarks.gpu.measures import OutOfTimeError, time_limit
from benchmarks.gpu.rows import Profile, Results, Row, merge
from benchmarks.speed import rows as speed_rows
from benchmarks.speed.contestants import BUILDERS

REPOSITORY = Path(__file__).resolve().parents[1]
KEPT = REPOSITORY / "benchmarks" / "results"


def test_the_harness_runs_and_compares_equal_weights(tmp_path):
    pytest.importorskip("tqdm")
    saved = tmp_path / "results.json"
    options = ["--quick", "--only", "F", "--repeats", "2", "--no-progress", "--json", str(saved)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.speed", *options],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(saved.read_text())
    assert results.keys() == {"environment", "peak", "missing", "records", "bars"}
    timed = [record for record in results["records"] if record["figure"] == "forward"]
    contestants = {record["contestant"] for record in timed}
    assert {"ours, pooled", "author's design", "MulT", "the same operations by hand"} <= contestants
    assert all(0 < r["low"] <= r["median"] <= r["high"] and r["runs"] == 2 for r in timed)
    differences = {r["figure"] for r in results["records"]} - {"forward"}
    compared = ("author's design", "ours, pooled", "ours, default form")
    assert differences == {f"difference to {name}" for name in compared}
    table = done.stdout.split("## F")[1].split("## Goals")[0]
    assert all(f"| {name} | " in table for name in contestants)


@pytest.mark.slow
def test_the_figures_of_the_kept_run_show_the_fast_peers_and_follow_the_page(tmp_path):
    made = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        command = [sys.executable, "-m", "benchmarks.speed.plots", "benchmarks/results/speed.json"]
        subprocess.run([*command, str(folder)], cwd=REPOSITORY, check=True, timeout=120)
        made.append({path.name: path.read_text("utf-8") for path in sorted(folder.iterdir())})
    first, second = made
    assert first == second
    assert set(first) == {"speed_c.svg", "speed_d.svg"}
    for text in first.values():
        assert "prefers-color-scheme: dark" in text
        assert "fill: currentColor" in text
        assert "#123456" not in text
        for label in ("GRF", "MulT", "Perceiver IO", "cross-attention", "author's design"):
            assert f">{label}</text>" in text


def test_the_count_of_operations_sees_fused_attention():
    batch, first, second, dim = 2, 5, 7, 64
    features = {"a": torch.randn(batch, first, 3), "b": torch.randn(batch, second, 3)}
    model = BUILDERS["nn.MultiheadAttention, one layer"]({"a": 3, "b": 3}, 0.0)
    model.module.eval()
    projections = (first + second) * 3 * dim + 2 * (first + second) * dim * dim
    attention = 2 * first * second * dim
    assert flops(model, features, None) == 2 * batch * (projections + attention)


# The alarm may ring inside a destructor or a garbage collection, where nothing can be raised.
LOST_ALARM = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@LOST_ALARM
def test_rows_of_the_gpu_are_measured_one_by_one(tmp_path):
    """On the CPU, tiny: each row is measured, or says why it is not."""
    few = ["--device", "cpu", "--quick", "--each", "0", "--out", str(tmp_path)]
    ours = r"^width 16, 1 layers, batch 2, .* (ours|author's design) \| eager \| bf16 \|"
    only = rf"{ours}|^3 modalities of length 16, .* \| captured"
    results = gpu.main([*few, "--only", only])
    assert Results.read(tmp_path / "gpu.json") == results
    tables = report.markdown(results)
    assert (tmp_path / "gpu.md").read_text() == tables
    measured = [row for row in results.rows if row.milliseconds is not None]
    failed = [row for row in results.rows if row.milliseconds is None]
    assert {row.mode for row in measured} == {cases.EAGER}
    assert {row.mode for row in failed} == {cases.CAPTURED}
    assert all(row.error for row in failed)
    assert not any(row.error for row in measured)
    for row in measured:
        timing = row.milliseconds
        assert 0 < timing.low <= timing.median <= timing.high
        assert row.operations > 0
        assert f"| {row.model} | eager | bf16 | " in tables
    page = "Before.\n\n{}\n\nold\n\n{}\n\nAfter.\n".format(*report.MARKS)
    page = insert(page, report.MARKS, tables)
    assert inserted(page, report.MARKS) == tables
    assert (page.partition("\n")[0], page.rpartition("\n\n")[2]) == ("Before.", "After.\n")
    slow = gpu.main([*few, "--limit", "0.01", "--only", ours])
    assert all(row.error.startswith("OutOfTimeError: longer") for row in slow.rows)
    late = gpu.main([*few, "--seconds", "0", "--only", only])
    assert {row.skipped for row in late.rows} == {"not run: the 0 s were over"}
    assert f"{len(late.rows)} more rows, not run: the 0 s were over." in report.markdown(late)


def test_a_row_that_is_stopped_leaves_gradients_on():
    """The alarm may ring between the two ends of `no_grad`."""

    def stop_late():
        with time_limit(0.01):
            torch.set_grad_enabled(False)
            time.sleep(60)

    with pytest.raises(OutOfTimeError):
        stop_late()
    assert torch.is_grad_enabled()


@LOST_ALARM
def test_a_row_whose_alarm_was_lost_is_out_of_time():
    class Slow:
        def __del__(self):
            time.sleep(0.1)

    with pytest.raises(OutOfTimeError), time_limit(0.01):
        Slow()


def test_the_bars_of_the_gpu_are_held_against_the_right_rows():
    loads = cases.loads(quick=False)

    def record(load, model, milliseconds, mode=cases.EAGER, **more):
        timing = Timing(milliseconds, milliseconds, milliseconds, 1)
        return Row.of(cases.Case(loads[load], model, mode), milliseconds=timing, **more)

    results = Results(
        "b",
        {},
        {"bf16": 1e15, "float32 with TF32": 1e15},
        [
            record("wide", cases.OURS, 10.0, needed_operations=4.5e12),
            record("wide", cases.OURS_PADDED, 16.0),
            record("wide", cases.RESIDUAL, 20.0, profile=Profile(1, 0, 10.0, [], [])),
            record("wide", cases.PADDED, 28.0, profile=Profile(1, 0, 25.0, [], [])),
            record("wide", cases.AUTHOR, 60.0),
            record("wide", cases.AUTHOR, 40.0, cases.COMPILED),
            record("chain", cases.OURS, 9.0),
            record("chain", cases.OURS, 5.0, cases.CAPTURED),
            record("chain", cases.EARLY, 2.0, cases.CAPTURED),
            record("chain", cases.EARLY, 3.0, cases.COMPILED),
            record("chain", cases.EARLY, 2.5),
            record("chain", cases.OURS, 3.0, cases.PARTS_CAPTURED),
            record("chain", cases.EARLY, 2.0, cases.COMPILED_CAPTURED),
            *(
                record(f"M{time}", cases.OURS, taken, cases.CAPTURED)
                for time, taken in ((2048, 2.5), (4096, 5.0), (8192, 10.0))
            ),
            record("M8192", cases.OURS, 20.0, peak_bytes=3 * 2**30),
        ],
    )
    found = [(value, met) for _, value, met in bars(results)]
    assert found == [
        ("4.00", "yes"),
        ("1.60", "yes"),
        ("1.40; time of the GPU alone 2.50", "no"),
        ("45%", "yes"),
        ("2.50", "no"),
        ("1.50", "yes"),
        ("3.00 GiB", "yes"),
        ("1.00", "yes"),
        (
            "1 of 2; not early concatenation, nn.TransformerEncoder on 38 modalitie",
            "no",
        ),
    ]
    old = Results("a", {}, {}, [record("wide", cases.OURS, 20.0)])
    again = Results("b", {}, {}, [Row.of(cases.Case(loads["wide"], cases.OURS), error="x")])
    joined = merge([old, again, results])
    assert (joined.command, joined.rows, joined.peak) == ("a\nb", results.rows, {})
    assert merge([old, again]).rows == old.rows
    assert merge([again, old]).rows == old.rows
    nothing = bars(dataclasses.replace(results, rows=[]))
    assert {(value, met) for _, value, met in nothing} == {("not measured", "")}


def test_kernels_are_summed_by_name():
    names = {
        "cudnn_generated_fort_native_sdpa_sm90_flash_fprop": "cuDNN",
        "pytorch_flash::flash_fwd_kernel": "flash",
        "fmha_cutlassF_bf16_aligned_64x64_rf_sm80": "memory-efficient",
        "softmax_warp_forward": "softmax of its own",
        "sm90_xmma_gemm_bf16": None,
    }
    for name, kind in names.items():
        found = summarise({name: [1.0, 2.0], "Memcpy HtoD": [0.5]})
        kernels = [[name, 2, 3.0], ["Memcpy HtoD", 1, 0.5]]
        assert found == Profile(2, 1, 3.5, [] if kind is None else [kind], kernels)


def test_the_time_of_the_gpu_is_told_by_kind():
    kernels = [["nvjet_sm90_bias", 2, 3.0], ["triton_fused_gelu", 1, 2.0], ["sigmoid", 1, 0.5]]
    kernels.append(["cudnn_generated_fort_native_sdpa_sm90_flash_fprop", 1, 1.0])
    found = by_kind(Profile(9, 0, 8.0, [], kernels))
    some = {"matrix products": 3.0, "fused by the compiler": 2.0, "attention": 1.0, OTHER: 2.0}
    assert {kind: taken for kind, taken in found.items() if taken} == some
    row = Row.of(
        cases.Case(cases.loads(quick=False)["wide"], cases.OURS),
        milliseconds=Timing(9.0, 9.0, 9.0, 1),
        profile=Profile(9, 0, 8.0, [], kernels),
    )
    about = dict.fromkeys(("device", "torch", "date", "sizes", "TF32"), "it")
    peak = dict.fromkeys(("bf16", "float32 with TF32", "copy bytes"), 1e15)
    tables = report.markdown(Results("c", about, peak, [row]))
    assert "| ours | eager | 1.00 | 3.00 | 2.00 | 0.00 | 0.00 | 0.00 | 2.00 |" in tables
    assert "| ours | eager | bf16 | 9 (9 to 9) | 8 |" in tables


def test_the_page_on_a_gpu_shows_the_saved_run():
    tables = report.markdown(Results.read(KEPT / "gpu.json"))
    page = (REPOSITORY / "docs" / "speed-gpu.md").read_text("utf-8")
    assert inserted(page, report.MARKS) == tables


def test_rows_of_a_kept_run_on_a_gpu_are_written_as_they_were_read(tmp_path):
    Results.read(KEPT / "gpu.json").write(tmp_path / "gpu.json")
    assert (tmp_path / "gpu.json").read_text("utf-8") == (KEPT / "gpu.json").read_text("utf-8")


@pytest.mark.parametrize("name", sorted(path.stem for path in KEPT.glob("speed*.json")))
def test_rows_of_a_kept_run_on_a_cpu_are_written_as_they_were_read(name):
    saved = json.loads((KEPT / f"{name}.json").read_text("utf-8"))
    results = speed_rows.Results.from_json(KEPT / f"{name}.json")
    assert json.dumps(results.as_json() | {"bars": saved["bars"]}) == json.dumps(saved)
