"""Run the quality benchmark, or print what has been run: `python -m benchmarks.quality --help`."""

import argparse
import dataclasses
import fnmatch
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from benchmarks.quality import plots, report
from benchmarks.quality.catalog import MADE_UP, NAMES, load, locate
from benchmarks.quality.data import Dataset
from benchmarks.quality.run import Settings, amount, run
from benchmarks.quality.store import Store

# Of a trial run: samples of each part, epochs, seeds, trials.
QUICK_SAMPLES, QUICK_EPOCHS, QUICK_SEEDS, QUICK_TRIALS = 48, 1, 2, 2


def main(argv: list[str] | None = None) -> None:
    """Do what the command line asks for."""
    args = _parse(argv)
    store = Store(args.out / "runs.jsonl")
    if store.broken:
        sys.stderr.write(f"{store.path}: skipped {store.broken} broken lines\n")
    if not args.report:
        torch.set_num_threads(args.threads)
        with threadpool_limits(args.threads):
            _run(args, store)
    args.out.mkdir(parents=True, exist_ok=True)
    text = report.markdown(store)
    (args.out / "results.md").write_text(text, "utf-8")
    results = json.dumps(report.summarise(store), indent=1)
    (args.out / "results.json").write_text(results + "\n", "utf-8")
    if args.page is not None:
        page = args.page.read_text("utf-8")
        args.page.write_text(report.insert(page, text), "utf-8")
    if args.plots:
        plots.draw(store, args.out)
    sys.stdout.write(text)


def _run(args: argparse.Namespace, store: Store) -> None:
    settings = Settings(
        seeds=QUICK_SEEDS if args.quick else args.seeds,
        device=args.device,
        threads=args.threads,
        shard=args.shard,
        costs=args.costs,
    )
    filters = _filters(args)
    with tqdm(file=sys.stderr, unit="method", total=0, disable=args.no_progress) as bar:
        for name, chosen in filters.items():
            dataset = load(name, args.data, QUICK_SAMPLES if args.quick else None)
            if args.quick:
                dataset = _shorten(dataset)
            bar.total += amount(dataset, settings, chosen)
            bar.refresh()
            run(dataset.to(args.device), store, settings, chosen, bar)


def _shorten(dataset: Dataset) -> Dataset:
    trials = dataset.budget.trials[:QUICK_TRIALS]
    budget = dataclasses.replace(dataset.budget, epochs=QUICK_EPOCHS, batch=16, trials=trials)
    return dataclasses.replace(dataset, budget=budget)


def _filters(args: argparse.Namespace) -> dict[str, Callable[[str], bool]]:
    """Return which methods to run on each data set."""
    here = [name for name in NAMES if locate(name, args.data) is not None]
    if not args.only:
        usual = [name for name in here if name not in MADE_UP]
        for name in set(NAMES) - set(MADE_UP) - set(usual):
            sys.stderr.write(f"{name}: no data in {args.data}, left out\n")
        return dict.fromkeys(usual, lambda _: True)
    patterns: dict[str, list[str]] = {}
    for only in args.only:
        wanted, _, method = only.partition(",")
        names = fnmatch.filter(NAMES, wanted)
        if not names:
            args.parser.error(f"--only: no data set {wanted}; there are {', '.join(NAMES)}")
        for name in names:
            if name not in here:
                args.parser.error(f"--only: no data of {name} in {args.data}")
            patterns.setdefault(name, []).append(method or "*")

    def one_of(own: list[str]) -> Callable[[str], bool]:
        return lambda name: any(fnmatch.fnmatchcase(name, pattern) for pattern in own)

    return {name: one_of(own) for name, own in patterns.items()}


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
        help="only these, patterns with * allowed; can be given more than once",
    )
    add("--seeds", type=int, default=5, help="seeds that are reported")
    add("--threads", type=int, default=1, help="CPU threads")
    add("--device", default="cpu", help="cpu or cuda")
    add(
        "--shard",
        type=_shard,
        default=(1, 1),
        metavar="K/N",
        help="run the K-th part of the methods, beside N - 1 other processes; times no steps",
    )
    add("--no-costs", dest="costs", action="store_false", help="do not time steps")
    add("--plots", action="store_true", help="draw figures too")
    add("--report", action="store_true", help="run nothing, only write the tables")
    add("--page", type=Path, help="Markdown file to put the tables into, between its marks")
    add("--quick", action="store_true", help="a few samples and one epoch: numbers mean nothing")
    add("--no-progress", action="store_true", help="no progress bar")
    args = parser.parse_args(argv)
    if args.seeds < 1 or args.threads < 1:
        parser.error("--seeds and --threads take a number from 1 up")
    args.parser = parser
    return args


def _shard(text: str) -> tuple[int, int]:
    number, _, shards = text.partition("/")
    if not (number.isdecimal() and shards.isdecimal() and 1 <= int(number) <= int(shards)):
        raise argparse.ArgumentTypeError(f"expected K/N with 1 <= K <= N, got {text}")
    return int(number), int(shards)


if __name__ == "__main__":
    main()
