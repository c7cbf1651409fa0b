"""The benchmarks' peers compute what they claim, and the harness runs; no test asserts on time."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[1]


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
    assert differences == {"difference to author's design", "difference to ours, pooled"}
    table = done.stdout.split("## F")[1].split("## Bars")[0]
    assert all(f"| {name} | " in table for name in contestants)


@pytest.mark.slow
def test_the_figures_of_the_kept_run_show_the_fast_peers_and_follow_the_page(tmp_path):
    made = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        command = [sys.executable, "-m", "benchmarks.plots", "benchmarks/results/speed.json"]
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


def test_the_count_of_operations_sees_fused_attention(monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY)
    from benchmarks.contestants import BUILDERS  # noqa: PLC0415 (not on the path of the test run)
    from benchmarks.measure import flops  # noqa: PLC0415

    batch, first, second, dim = 2, 5, 7, 64
    features = {"a": torch.randn(batch, first, 3), "b": torch.randn(batch, second, 3)}
    model = BUILDERS["nn.MultiheadAttention, one layer"]({"a": 3, "b": 3}, 0.0)
    model.module.eval()
    projections = (first + second) * 3 * dim + 2 * (first + second) * dim * dim
    attention = 2 * first * second * dim
    assert flops(model, features, None) == 2 * batch * (projections + attention)


def test_rows_of_the_gpu_are_measured_one_by_one(tmp_path, monkeypatch):
    """On the CPU, tiny: each row is measured, or says why it is not."""
    monkeypatch.syspath_prepend(REPOSITORY)
    from benchmarks import gpu, gpu_report, gpu_rows  # noqa: PLC0415

    few = ["--device", "cpu", "--quick", "--each", "0", "--out", str(tmp_path)]
    ours = r"^width 16, 1 layers, batch 2, .* (ours|author's design) \| eager \| bf16 \|"
    only = rf"{ours}|^3 modalities of length 16, .* captured"
    results = gpu.main([*few, "--only", only])
    assert json.loads((tmp_path / "gpu.json").read_text()) == results
    tables = gpu_report.markdown(results)
    assert (tmp_path / "gpu.md").read_text() == tables
    measured = [record for record in results["rows"] if "milliseconds" in record]
    failed = [record for record in results["rows"] if "milliseconds" not in record]
    assert {record["mode"] for record in measured} == {gpu_rows.EAGER}
    assert {record["mode"] for record in failed} == {gpu_rows.CAPTURED}
    assert all("error" in record for record in failed)
    assert not any("error" in record for record in measured)
    for record in measured:
        timing = record["milliseconds"]
        assert 0 < timing["low"] <= timing["median"] <= timing["high"]
        assert record["operations"] > 0
        assert f"| {record['model']} | eager | bf16 | " in tables
    page = f"Before.\n\n{gpu_report.START}\n\nold\n\n{gpu_report.END}\n\nAfter.\n"
    page = gpu_report.fill(page, tables)
    assert gpu_report.filled(page) == tables
    assert (page.partition("\n")[0], page.rpartition("\n\n")[2]) == ("Before.", "After.\n")
    slow = gpu.main([*few, "--limit", "0.01", "--only", ours])
    assert all(record["error"].startswith("OutOfTimeError: longer") for record in slow["rows"])
    late = gpu.main([*few, "--seconds", "0", "--only", only])
    assert {record.get("skipped") for record in late["rows"]} == {"not run: the 0 s were over"}


def test_a_row_that_is_stopped_leaves_gradients_on(monkeypatch):
    """The alarm may ring between the two ends of `no_grad`."""
    monkeypatch.syspath_prepend(REPOSITORY)
    from benchmarks import gpu  # noqa: PLC0415

    def begin_no_grad():
        torch.set_grad_enabled(False)
        time.sleep(60)

    with pytest.raises(gpu.OutOfTimeError), gpu.time_limit(0.01):
        begin_no_grad()
    assert torch.is_grad_enabled()


def test_the_bars_of_the_gpu_are_held_against_the_right_rows(monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY)
    from benchmarks import gpu_report, gpu_rows  # noqa: PLC0415

    loads = gpu_rows.loads(quick=False)

    def record(load, model, milliseconds, mode=gpu_rows.EAGER, **more):
        place = gpu_report.place(gpu_rows.Row(loads[load], model, mode))
        return place | {"milliseconds": {"median": milliseconds}} | more

    results = {
        "peak": {"bf16": 1e15, "float32 with TF32": 1e15},
        "rows": [
            record("wide", gpu_rows.OURS, 10.0, needed_operations=4.5e12),
            record("wide", gpu_rows.RESIDUAL, 20.0),
            record("wide", gpu_rows.PADDED, 28.0),
            record("wide", gpu_rows.AUTHOR, 60.0),
            record("wide", gpu_rows.AUTHOR, 40.0, gpu_rows.COMPILED),
            record("chain", gpu_rows.OURS, 9.0),
            record("chain", gpu_rows.OURS, 5.0, gpu_rows.CAPTURED),
            record("chain", gpu_rows.EARLY, 2.0, gpu_rows.CAPTURED),
            record("chain", gpu_rows.EARLY, 3.0, gpu_rows.COMPILED),
            record("chain", gpu_rows.EARLY, 2.5),
            *(
                record(f"M{time}", gpu_rows.OURS, taken, gpu_rows.CAPTURED)
                for time, taken in ((2048, 2.5), (4096, 5.0), (8192, 10.0))
            ),
            record("M8192", gpu_rows.OURS, 20.0, peak_bytes=3 * 2**30),
        ],
    }
    found = [(value, met) for _, value, met in gpu_report.bars(results)]
    assert found == [
        ("4.00", "yes"),
        ("1.40", "no"),
        ("45%", "yes"),
        ("2.50", "no"),
        ("3.00 GiB", "yes"),
        ("1.00", "yes"),
        (
            "1 of 2; not early concatenation, nn.TransformerEncoder on 38 modalitie",
            "no",
        ),
    ]
    old = {"command": "a", "rows": [record("wide", gpu_rows.OURS, 20.0)], "peak": {}}
    again = {
        "command": "b",
        "rows": [gpu_report.place(gpu_rows.Row(loads["wide"], gpu_rows.OURS)) | {"error": "x"}],
    }
    joined = gpu_report.merge([old, again, results | {"command": "b"}])
    assert (joined["command"], joined["rows"], joined["peak"]) == ("a; b", results["rows"], {})
    assert gpu_report.merge([old, again])["rows"] == old["rows"]
    assert gpu_report.merge([again, old])["rows"] == old["rows"]
    nothing = gpu_report.bars(results | {"rows": []})
    assert {(value, met) for _, value, met in nothing} == {("not measured", "")}


def test_kernels_are_summed_by_name(monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY)
    from benchmarks.gpu import summarise  # noqa: PLC0415

    names = {
        "cudnn_generated_fort_native_sdpa_sm90_flash_fprop": "cuDNN",
        "pytorch_flash::flash_fwd_kernel": "flash",
        "fmha_cutlassF_bf16_aligned_64x64_rf_sm80": "memory-efficient",
        "softmax_warp_forward": "softmax of its own",
        "sm90_xmma_gemm_bf16": None,
    }
    for name, kind in names.items():
        found = summarise({name: [1.0, 2.0], "Memcpy HtoD": [0.5]})
        assert found["attention"] == ([] if kind is None else [kind])
        assert (found["launches"], found["copies"], found["busy_milliseconds"]) == (2, 1, 3.5)
        assert found["kernels"] == [[name, 2, 3.0], ["Memcpy HtoD", 1, 0.5]]


def test_the_page_on_a_gpu_shows_the_saved_run(monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY)
    from benchmarks import gpu_report  # noqa: PLC0415

    saved = REPOSITORY / "benchmarks" / "results" / "gpu.json"
    tables = (
        gpu_report.markdown(json.loads(saved.read_text()))
        if saved.exists()
        else "Not measured yet.\n"
    )
    assert gpu_report.filled((REPOSITORY / "docs" / "how-to" / "gpu.md").read_text()) == tables
