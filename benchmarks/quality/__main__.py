"""Run the quality benchmark, or print what has been run: `python -m benchmarks.quality --help`."""

import argparse
import fnmatch
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.quality import cost
from benchmarks.quality.datasets.catalog import MADE_UP, NAMES, locate, plain
from benchmarks.quality.methods import GRF, Method, methods
from benchmarks.quality.run import Settings
from benchmarks.quality.store import Store
from benchmarks.quality.sweep import Source, sweep

# Seeds of a trial run.
QUICK_SEEDS = 2


def main(argv: list[str] | None = None) -> None:
    """Run the selected methods and write the tables."""
    args = _parse(argv)
    store = Store(args.out / "runs.jsonl")
    if store.broken:
        sys.stderr.write(f"{store.path}: skipped {store.broken} broken lines\n")
    for path in args.merge:
        for record in Store(path).records.values():
            if record["key"] not in store:
                store.add(record)
    if not args.report:
        torch.set_num_threads(args.threads)
        _run(args, store)
    if not args.run_only:
        _report(args, store)


def _run(args: argparse.Namespace, store: Store) -> None:
    seeds = QUICK_SEEDS if args.quick else args.seeds
    settings = Settings(seeds, args.device, args.threads, orders=args.orders)
    source = Source(args.data, args.quick)
    wanted = _wanted(args)
    say = (lambda _: None) if args.no_progress else _say
    done = sweep(source, store, settings, wanted, jobs=args.jobs, seconds=args.seconds, say=say)
    say(f"{done} trainings")
    if args.jobs == 1 and args.seconds is None and not args.run_only:
        for name, chosen in wanted.items():
            dataset = source.get(name, args.device)
            if chosen(methods(dataset)["MulT"]):
                cost.bill(dataset, store)
            if args.costs:
                cost.measure(dataset, settings, store, chosen)


def _say(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")


def _report(args: argparse.Namespace, store: Store) -> None:
    # These have dependencies that a sweep does not need.
    from benchmarks.quality.tables import evidence, plots, report  # noqa: PLC0415
    from benchmarks.quality.tables.summary import summarise  # noqa: PLC0415

    args.out.mkdir(parents=True, exist_ok=True)
    summaries = summarise(store)
    texts = report.pages(summaries)
    text = "\n".join([evidence.evidence(summaries, pages=""), *texts.values()])
    (args.out / "results.md").write_text(text, "utf-8")
    results = json.dumps([summary.as_json() for summary in summaries], indent=1)
    (args.out / "results.json").write_text(results + "\n", "utf-8")
    if args.docs is not None:
        evidence.write(summaries, texts, args.docs)
        plots.overview(summaries, args.docs / "assets" / evidence.PICTURE)
    sys.stdout.write(text)


def _wanted(args: argparse.Namespace) -> dict[str, Callable[[Method], bool]]:
    """Return which methods to run on each data set."""
    here = [name for name in NAMES if locate(name, args.data) is not None]
    if not args.only:
        usual = [name for name in here if plain(name) not in MADE_UP]
        for name in set(NAMES) - set(usual):
            if plain(name) not in MADE_UP:
                sys.stderr.write(f"{name}: no data in {args.data}, left out\n")
        return dict.fromkeys(usual, _is_usual)
    patterns: dict[str, list[str]] = {}
    for only in args.only:
        wanted, _, method = only.partition(",")
        names = fnmatch.filter(NAMES, wanted)
        if not names:
            args.parser.error(f"--only: no data set {wanted}; there are {', '.join(NAMES)}")
        exact = [name for name in names if name in here]
        if not exact:
            args.parser.error(f"--only: no data of {names[0]} in {args.data}")
        for name in exact:
            patterns.setdefault(name, []).append(method)

    def one_of(own: list[str]) -> Callable[[Method], bool]:
        return lambda method: any(
            fnmatch.fnmatchcase(method.name, pattern) if pattern else _is_usual(method)
            for pattern in own
        )

    return {name: one_of(own) for name, own in patterns.items()}


def _is_usual(method: Method) -> bool:
    """Return whether a method is one of those compared, not an ablation."""
    return method.name == GRF or method.group in ("baseline", "reference")


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    shared = Path(__file__).resolve().parents[3] / "shared" / "data"
    add("--data", type=Path, default=shared, help="folder of the data sets")
    add("--out", type=Path, default=Path("quality"), help="folder of runs.jsonl and the tables")
    add(
        "--only",
        action="append",
        metavar="DATASET[,METHOD]",
        help="only these; patterns with * allowed; can be given more than once; without METHOD all "
        "compared methods",
    )
    add("--seeds", type=int, default=5, help="reported seeds")
    add("--threads", type=int, default=1, help="CPU threads per training")
    add("--device", default="cpu", help="cpu or cuda")
    add("--jobs", type=int, default=1, help="processes; steps are timed only with one")
    add("--seconds", type=float, help="stop after this time; the next call continues")
    add("--orders", action="store_true", help="also test new runs in other orders")
    add("--merge", type=Path, nargs="*", default=[], help="files of runs to add first")
    add("--no-costs", dest="costs", action="store_false", help="do not time steps")
    add("--report", action="store_true", help="run nothing, only write the tables")
    add("--run-only", action="store_true", help="write no tables: needs only torch and NumPy")
    add("--docs", type=Path, help="folder of evidence.md and the pages by data set, to regenerate")
    add("--quick", action="store_true", help="a few samples and one epoch: numbers mean nothing")
    add("--no-progress", action="store_true", help="do not print progress")
    args = parser.parse_args(argv)
    if min(args.seeds, args.threads, args.jobs) < 1:
        parser.error("--seeds, --threads and --jobs must be at least 1")
    args.parser = parser
    return args


if __name__ == "__main__":
    main()
