"""The benchmarks' peers compute what they claim, and the harness runs; no test asserts on time."""

import json
import os
import subprocess
import sys
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
