"""Compare grf-fusion with its peers: `python -m benchmarks.speed --help`.

All contestants of a figure run in turns in one process. A training step is forward and backward.
Peak memory is that of one training step at dropout 0.2 in a fresh process, over what it held
before. Where weights are shared, outputs are compared, and the run stops where they disagree.
"""

import argparse
import gc
import itertools
import json
import math
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks import measure
from benchmarks import report as rows
from benchmarks.by_hand import ByHand, step_alone
from benchmarks.contestants import AUTHOR, BUILDERS, MULT, OURS, OURS_AUTHOR, Contestant, missing
from benchmarks.report import Record, Results
from benchmarks.workloads import (
    DROPOUT,
    FORWARD,
    MEMORY,
    TRAIN,
    TRAIN_DROPOUT,
    Workload,
    workloads,
)

TOLERANCE = 1e-5
KEEP = {"MALLOC_TRIM_THRESHOLD_": str(2**40), "MALLOC_MMAP_THRESHOLD_": str(2**40)}
DROPOUTS = {FORWARD: 0.0, TRAIN: 0.0, TRAIN_DROPOUT: DROPOUT, MEMORY: DROPOUT}
# Growth that is assumed of a contestant that has only been seen at one size.
STEEP = 2.5


def main(argv: list[str] | None = None) -> Results:
    """Run what the command line asks for, print the tables and write the JSON file."""
    args = _parse(argv)
    if args.allocator == "keep" and os.environ.items().isdisjoint(KEEP.items()):
        # The C library reads these when a process starts.
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | KEEP)  # noqa: S606
    torch.set_num_threads(args.threads)
    torch.backends.mha.set_fastpath_enabled(not args.no_fast_path)
    if args.device == "cpu":
        # An allocation beyond it fails, and the contestant is skipped, before the system kills us.
        limit = int(args.memory * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    results = Results(environment(args), measure.matmul_peak(args.device), missing())
    groups = workloads(quick=args.quick)
    chosen = [workload for group in args.only for workload in groups[group]]
    with tqdm(chosen, file=sys.stderr, unit="workload", disable=args.no_progress) as progress:
        run = Run(args, results, progress.set_postfix_str)
        for workload in progress:
            for record in run.measures(workload)(workload, run):
                results.records.append(record)
            if args.json is not None:
                args.json.write_text(json.dumps(results.as_json(), indent=1) + "\n")
            gc.collect()
    sys.stdout.write(rows.markdown(results))
    return results


class Run(NamedTuple):
    """What the measurements of a workload share."""

    args: argparse.Namespace
    results: Results
    say: Callable[[str], None]

    @property
    def names(self) -> list[str]:
        """Contestants that are installed and asked for."""
        chosen = self.args.contestant or BUILDERS
        return [name for name in BUILDERS if name in chosen and name not in self.results.missing]

    def measures(self, workload: Workload) -> "Callable[[Workload, Run], Iterator[Record]]":
        """Return the function that measures this workload."""
        if self.args.compile:
            return compiled
        return {"E": stream, "F": tiny}.get(workload.group, compare)

    def build(self, name: str, workload: Workload, dropout: float = 0.0) -> Contestant:
        """Build a contestant, in eval mode."""
        torch.manual_seed(0)
        contestant = BUILDERS[name](workload.modalities, dropout)
        contestant.module.to(self.args.device).eval()
        return contestant

    def race(
        self, workload: Workload, figure: str, calls: dict[str, measure.Call]
    ) -> Iterator[Record]:
        """Time all calls in turns."""
        self.say(f"{workload.group} {workload.size or ''}, {figure}")
        args = self.args
        timings = measure.race(calls, repeats=args.repeats, limit=args.limit, device=args.device)
        for name, timing in timings.items():
            if isinstance(timing, str):
                yield Record.skip(workload, name, figure, timing)
            else:
                yield Record(workload.group, workload.size, name, figure, *timing)


def compare(workload: Workload, run: Run) -> Iterator[Record]:
    """Measure all figures of a workload, all contestants in turns."""
    features, masks = workload.draw(run.args.device)
    built: dict[tuple[str, float], Contestant] = {}
    for figure in workload.figures:
        how = measure.forward if figure == FORWARD else measure.training_step
        calls: dict[str, measure.Call] = {}
        for name in run.names:
            reason = _too_much(workload, name, figure, run)
            if reason:
                yield Record.skip(workload, name, figure, reason)
            elif figure == MEMORY:
                yield _memory(workload, name, run)
            else:
                key = name, DROPOUTS[figure]
                if key not in built:
                    built[key] = run.build(name, workload, DROPOUTS[figure])
                built[key].module.train(figure != FORWARD)
                calls[name] = how(built[key], features, masks)
        yield from run.race(workload, figure, calls)
        if figure == FORWARD:
            yield from _check_equal(workload, run, calls, AUTHOR, OURS_AUTHOR)
            for name in calls:
                contestant = built[name, 0.0]
                operations = measure.flops(contestant, features, masks)
                yield Record.plain(workload, name, "operations", operations)
                number = sum(parameter.numel() for parameter in contestant.module.parameters())
                yield Record.plain(workload, name, "parameters", number)


def stream(workload: Workload, run: Run) -> Iterator[Record]:
    """Compare one cached step with that step by hand, and with fusing everything again."""
    features, masks = workload.draw(run.args.device)
    contestants = {name: run.build(name, workload) for name in (OURS, AUTHOR, MULT)}
    fusion = contestants[OURS].module
    *cached, tick = workload.sequences
    with torch.inference_mode():
        state = None
        for name in cached:
            state = fusion.step(state, name, features[name])
    one = {
        rows.STEP: _inference(lambda: fusion.step(state, tick, features[tick]).context),
        rows.ALONE: _inference(step_alone(fusion, state, tick, features[tick])),
    }
    again = {
        f"{name}: {rows.AGAIN}": measure.forward(contestant, features, masks)
        for name, contestant in contestants.items()
    }
    calls = one | again
    yield from run.race(workload, FORWARD, calls)
    yield from _check_equal(workload, run, calls, f"{OURS}: {rows.AGAIN}", *one)


def tiny(workload: Workload, run: Run) -> Iterator[Record]:
    """Compare the library's forward pass with the same operations by hand."""
    features, masks = workload.draw(run.args.device)
    built = {name: run.build(name, workload) for name in BUILDERS if name not in missing()}
    calls = {
        name: measure.forward(contestant, features, masks) for name, contestant in built.items()
    }
    by_hand = ByHand(built[OURS].module)
    calls[rows.BY_HAND] = _inference(lambda: by_hand(features))
    yield from run.race(workload, FORWARD, calls)
    yield from _check_equal(workload, run, calls, OURS, rows.BY_HAND)
    yield from _check_equal(workload, run, calls, AUTHOR, OURS_AUTHOR)


def compiled(workload: Workload, run: Run) -> Iterator[Record]:
    """Compile ours, count the graphs over two batches, and race them against eager mode."""
    features, masks = workload.draw(run.args.device)
    other = workload.draw(run.args.device, seed=1)
    for figure, name in itertools.product((FORWARD, TRAIN_DROPOUT), (OURS, OURS_AUTHOR)):
        how = measure.forward if figure == FORWARD else measure.training_step
        ours, in_eager = name + rows.COMPILED, name + rows.EAGER
        run.say(f"{workload.group} {workload.size or ''}, {figure}, {ours}")
        torch.compiler.reset()
        counters = torch._dynamo.utils.counters  # noqa: SLF001 (the only place that knows)
        counters.clear()
        eager = run.build(name, workload, DROPOUTS[figure])
        eager.module.train(figure != FORWARD)
        module = torch.compile(eager.module, fullgraph=True)
        quick = Contestant(module, lambda x, m, module=module: module(x, masks=m))
        calls = {
            in_eager: how(eager, features, masks),
            ours: how(quick, features, masks),
        }
        start = time.perf_counter()
        calls[ours]()
        taken = time.perf_counter() - start
        yield Record.plain(workload, ours, f"{figure}, {rows.COMPILING}", taken)
        how(quick, *other)()
        graphs = counters["stats"]["unique_graphs"]
        yield Record.plain(workload, ours, f"{figure}, {rows.GRAPHS}", graphs)
        yield from run.race(workload, figure, calls)
        if figure == FORWARD:
            yield from _check_equal(workload, run, calls, in_eager, ours)


def environment(args: argparse.Namespace) -> dict[str, str]:
    """Return what the numbers depend on."""
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
    device = torch.cuda.get_device_name() if args.device != "cpu" else processor
    kept = not os.environ.items().isdisjoint(KEEP.items())
    return (
        installed
        | {
            "python": platform.python_version(),
            "device": device,
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
    add("--device", default="cpu", help="cpu or cuda")
    add("--threads", type=int, default=1, help="CPU threads")
    add("--only", default="A,B,C,D,E,F", help="workloads, comma-separated")
    add(
        "--contestant",
        action="append",
        choices=list(BUILDERS),
        metavar="NAME",
        help="let only these take part in A to D (again for each)",
    )
    add("--repeats", type=int, default=11, help="measurements of each figure")
    add("--limit", type=float, default=60.0, help="seconds that a contestant may take for a figure")
    add(
        "--memory",
        type=float,
        default=round(0.75 * memory, 1),
        help="GiB that a contestant may take",
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
    add("--compile", action="store_true", help="compile ours on A to C instead; takes long")
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


def _inference(call: Callable[[], Tensor]) -> Callable[[], Tensor]:
    return torch.inference_mode()(call)


def _too_much(workload: Workload, name: str, figure: str, run: Run) -> str | None:
    """Tell why a contestant cannot run at this size, judged by the sizes before."""
    results, group, size = run.results, workload.group, workload.size
    if not size:
        return None
    if figure == MEMORY:
        step = results.find(group, name, TRAIN_DROPOUT, size)
        return "training was not run" if step is None or step.skipped else None
    if results.skipped(group, name, figure):
        return "not run at a smaller size"
    seen = results.series(group, name, figure)
    if not seen:
        return None
    exponent = rows.local_exponent(seen) if len(seen) > 1 else STEEP
    expected = seen[-1][1] * (size / seen[-1][0]) ** max(1.0, exponent)
    return f"about {expected:.2g} s a call expected" if expected > run.args.limit else None


def _memory(workload: Workload, name: str, run: Run) -> Record:
    args, place = run.args, (workload.group, workload.size)
    run.say(f"{workload.group} {workload.size or ''}, {MEMORY}, {name}")
    options = {"device": args.device, "threads": args.threads, "quick": args.quick}
    peak = measure.peak_memory(name, *place, limit=args.limit, **options)
    if isinstance(peak, str):
        return Record.skip(workload, name, MEMORY, peak)
    return Record.plain(workload, name, MEMORY, peak)


def _check_equal(
    workload: Workload, run: Run, calls: dict[str, Callable[[], Tensor]], like: str, *names: str
) -> Iterator[Record]:
    """Stop the run where contestants that share weights disagree, in what could be run."""
    timed = [run.results.find(workload.group, n, FORWARD, workload.size) for n in (like, *names)]
    if any(record is None or record.skipped for record in timed):
        return
    want = calls[like]()
    for name in names:
        error = (calls[name]() - want).abs().max().item() / max(1.0, want.abs().max().item())
        if not math.isfinite(error) or error > TOLERANCE:
            raise RuntimeError(f"{workload.group}: {name} is off {like} by {error:g}")
        yield Record.plain(workload, name, f"difference to {like}", error)


if __name__ == "__main__":
    main()
