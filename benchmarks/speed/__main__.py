"""Compare grf-fusion with its peers: `python -m benchmarks.speed --help`.

All contestants of a figure run in turns in one process. A training step is forward and backward.
Peak memory is the memory that one training step with dropout 0.2 adds in a fresh process. The
outputs of contestants with shared weights are compared, and the run stops if they differ.
"""

import argparse
import gc
import json
import os
import platform
import resource
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.common.clock import matmul_peak
from benchmarks.speed import report
from benchmarks.speed.contestants import BUILDERS, missing
from benchmarks.speed.measures import Run
from benchmarks.speed.rows import Results
from benchmarks.speed.workloads import workloads

KEEP = {"MALLOC_TRIM_THRESHOLD_": str(2**40), "MALLOC_MMAP_THRESHOLD_": str(2**40)}


def main(argv: list[str] | None = None) -> Results:
    """Run the selected workloads, print the tables and write the JSON file."""
    args = _parse(argv)
    if args.allocator == "keep" and os.environ.items().isdisjoint(KEEP.items()):
        # The C library reads these when a process starts.
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | KEEP)  # noqa: S606
    torch.set_num_threads(args.threads)
    torch.backends.mha.set_fastpath_enabled(not args.no_fast_path)
    # A larger allocation fails and the contestant is skipped, before the system kills the process.
    limit = int(args.memory * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    results = Results(environment(args), matmul_peak(), missing())
    groups = workloads(quick=args.quick)
    chosen = [workload for group in args.only for workload in groups[group]]
    with tqdm(chosen, file=sys.stderr, unit="workload", disable=args.no_progress) as progress:
        run = Run(args, results, progress.set_postfix_str)
        for workload in progress:
            for row in run.measures(workload)(workload, run):
                results.rows.append(row)
            if args.json is not None:
                args.json.write_text(json.dumps(report.as_json(results), indent=1) + "\n")
            gc.collect()
    sys.stdout.write(report.markdown(results))
    return results


def environment(args: argparse.Namespace) -> dict[str, str]:
    """Return the environment of the measurements."""
    packages = ("torch", "x-transformers", "perceiver-pytorch")
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = models[0].split(":")[1].strip() if models else processor
    installed = {
        package: version(package)
        for package in packages
        if package.replace("-", "_") not in missing().values()
    }
    kept = not os.environ.items().isdisjoint(KEEP.items())
    return (
        installed
        | {
            "python": platform.python_version(),
            "device": processor,
            "threads": str(args.threads),
            "allocator": "keeps memory" if kept else "default",
            "load average at start": " ".join(f"{load:.1f}" for load in os.getloadavg()),
            "date": time.strftime("%Y-%m-%d"),
            "sizes": "quick, for a trial" if args.quick else "full",
        }
        | ({"fast path of nn.MultiheadAttention": "off"} if args.no_fast_path else {})
    )


def _parse(argv: list[str] | None) -> argparse.Namespace:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--threads", type=int, default=1, help="CPU threads")
    add("--only", default="A,B,C,D,E,F", help="workloads, comma-separated")
    add(
        "--contestant",
        action="append",
        choices=list(BUILDERS),
        metavar="NAME",
        help="run only this contestant in A to D; can be given more than once",
    )
    add("--repeats", type=int, default=11, help="measurements of each figure")
    add("--limit", type=float, default=60.0, help="seconds per contestant and figure")
    add(
        "--memory",
        type=float,
        default=round(0.75 * memory, 1),
        help="GiB per contestant",
    )
    add(
        "--allocator",
        choices=("default", "keep"),
        default="default",
        help="keep: malloc never returns memory to the system",
    )
    add(
        "--no-fast-path",
        action="store_true",
        help="inference without the fast path of nn.MultiheadAttention",
    )
    add("--compile", action="store_true", help="compile ours on A to C instead; slow")
    add("--quick", action="store_true", help="small sizes, for a trial run")
    add("--json", type=Path, help="where to write all records")
    add("--no-progress", action="store_true", help="no progress bar")
    args = parser.parse_args(argv)
    args.only = args.only.upper().split(",")
    unknown = sorted(set(args.only) - workloads(quick=True).keys())
    if args.compile:
        args.only = [group for group in args.only if group in "ABC"]
    if unknown:
        parser.error(f"--only: no workload {', '.join(unknown)}; there are A, B, C, D, E and F")
    return args


if __name__ == "__main__":
    main()
