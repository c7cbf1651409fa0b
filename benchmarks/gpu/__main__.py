"""Measure grf-fusion and its peers on a GPU: `python -m benchmarks.gpu --help`.

Rows are independent and run in order of importance. A row that fails, or that no time is left for,
is recorded with the reason. A training step is forward and backward, without an optimiser. Times
are from CUDA events after a warm-up. Peak memory is that of one call, including weights and
features. Operations are those of matrix products and attention.

    python -m benchmarks.gpu --out FOLDER
    python -m benchmarks.gpu --out OTHER --only compiled
    python -m benchmarks.gpu.report FOLDER/gpu.json OTHER/gpu.json

The first two write `gpu.json` and `gpu.md` after each row; the third prints the tables of both.
"""

import argparse
import importlib.util
import platform
import re
import shlex
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks.gpu import report
from benchmarks.gpu.cases import cases
from benchmarks.gpu.measures import measure, peak
from benchmarks.gpu.rows import Results, Row


def main(argv: list[str] | None = None) -> Results:
    """Run the selected rows; print and write the tables."""
    args = _parse(argv)
    start = time.perf_counter()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    command = f"python -m benchmarks.gpu {shlex.join(sys.argv[1:] if argv is None else argv)}"
    results = Results(command, environment(args), peak(args))
    args.out.mkdir(parents=True, exist_ok=True)
    for case in cases(quick=args.quick):
        line = " | ".join(Row.of(case).described)
        if not re.search(args.only, line):
            continue
        left = args.seconds - (time.perf_counter() - start)
        if left <= 0:
            row = Row.of(case, skipped=f"not run: the {args.seconds:g} s were over")
        else:
            _say(f"{time.perf_counter() - start:6.1f} s  {line}")
            row = measure(case, args, min(left + 5, args.limit))
            _say(f"          {row.milliseconds or row.error}")
        results.rows.append(row)
        results.seconds = round(time.perf_counter() - start, 1)
        results.write(args.out / "gpu.json")
        (args.out / "gpu.md").write_text(report.markdown(results), "utf-8")
    sys.stdout.write(report.markdown(results))
    return results


def environment(args: argparse.Namespace) -> dict[str, str]:
    """Return the environment of the measurements."""
    cuda = args.device == "cuda"
    triton = importlib.util.find_spec("triton") is not None
    return {
        "device": torch.cuda.get_device_name() if cuda else platform.machine(),
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "triton": version("triton") if triton else "none",
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
        "sizes": "quick, for a trial" if args.quick else "full",
        "TF32": "on for float32 matrix products",
    }


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--device", default="cuda", choices=("cuda", "cpu"), help="cpu is for trial runs")
    add("--out", type=Path, default=Path("gpu-results"), help="folder of gpu.json and gpu.md")
    add("--seconds", type=float, default=240.0, help="no row starts after this time")
    add("--limit", type=float, default=75.0, help="seconds per row, with compilation")
    add("--each", type=float, default=0.4, help="seconds of timing per row")
    add("--only", default="", help="regular expression that selects rows by their line")
    add("--quick", action="store_true", help="tiny sizes, for a trial run")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
