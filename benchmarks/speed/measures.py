"""The measurements of each kind of workload."""

import argparse
import itertools
import math
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.common import clock
from benchmarks.speed import rows
from benchmarks.speed.by_hand import PaperByHand, SummaryByHand, step_alone
from benchmarks.speed.contestants import (
    AUTHOR,
    BUILDERS,
    DEFAULT,
    MULT,
    OURS,
    OURS_AUTHOR,
    Contestant,
    missing,
)
from benchmarks.speed.memory import peak_memory
from benchmarks.speed.rows import Results, Row
from benchmarks.speed.workloads import DROPOUT, FORWARD, MEMORY, TRAIN, TRAIN_DROPOUT, Workload

TOLERANCE = 1e-5
DROPOUTS = {FORWARD: 0.0, TRAIN: 0.0, TRAIN_DROPOUT: DROPOUT, MEMORY: DROPOUT}
# Growth assumed for a contestant that was measured at one size only.
STEEP = 2.5


class Run(NamedTuple):
    """Context shared by the measurements of a workload."""

    args: argparse.Namespace
    results: Results
    say: Callable[[str], None]

    @property
    def names(self) -> list[str]:
        """Contestants that are installed and selected."""
        chosen = self.args.contestant or BUILDERS
        return [name for name in BUILDERS if name in chosen and name not in self.results.missing]

    def measures(self, workload: Workload) -> "Callable[[Workload, Run], Iterator[Row]]":
        """Return the function that measures this workload."""
        if self.args.compile:
            return compiled
        return {"E": stream, "F": tiny}.get(workload.group, compare)

    def build(self, name: str, workload: Workload, dropout: float = 0.0) -> Contestant:
        """Build a contestant, in eval mode."""
        torch.manual_seed(0)
        contestant = BUILDERS[name](workload.modalities, dropout)
        contestant.module.eval()
        return contestant

    def race(self, workload: Workload, figure: str, calls: dict[str, clock.Call]) -> Iterator[Row]:
        """Time all calls in turns."""
        self.say(f"{workload.group} {workload.size or ''}, {figure}")
        args = self.args
        timings = clock.race(calls, repeats=args.repeats, limit=args.limit, device="cpu")
        for name, timing in timings.items():
            if isinstance(timing, str):
                yield Row.skip(workload, name, figure, timing)
            else:
                yield Row(workload.group, workload.size, name, figure, *timing)


def compare(workload: Workload, run: Run) -> Iterator[Row]:
    """Measure all figures of a workload, all contestants in turns."""
    features, masks = workload.draw()
    built: dict[tuple[str, float], Contestant] = {}
    for figure in workload.figures:
        how = clock.forward if figure == FORWARD else clock.training_step
        calls: dict[str, clock.Call] = {}
        for name in run.names:
            reason = _too_much(workload, name, figure, run)
            if reason:
                yield Row.skip(workload, name, figure, reason)
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
                operations = clock.flops(contestant, features, masks)
                yield Row.plain(workload, name, "operations", operations)
                number = sum(parameter.numel() for parameter in contestant.module.parameters())
                yield Row.plain(workload, name, "parameters", number)


def stream(workload: Workload, run: Run) -> Iterator[Row]:
    """Compare one cached step with that step by hand, and with fusing all modalities again."""
    features, masks = workload.draw()
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
        f"{name}: {rows.AGAIN}": clock.forward(contestant, features, masks)
        for name, contestant in contestants.items()
    }
    calls = one | again
    yield from run.race(workload, FORWARD, calls)
    yield from _check_equal(workload, run, calls, f"{OURS}: {rows.AGAIN}", *one)


def tiny(workload: Workload, run: Run) -> Iterator[Row]:
    """Compare the library's forward pass with the same operations written by hand."""
    features, masks = workload.draw()
    built = {name: run.build(name, workload) for name in BUILDERS if name not in missing()}
    calls = {name: clock.forward(contestant, features, masks) for name, contestant in built.items()}
    by_hand = PaperByHand(built[OURS].module), SummaryByHand(built[DEFAULT].module)
    calls[rows.BY_HAND] = _inference(lambda: by_hand[0](features))
    calls[rows.BY_HAND_DEFAULT] = _inference(lambda: by_hand[1](features))
    yield from run.race(workload, FORWARD, calls)
    yield from _check_equal(workload, run, calls, OURS, rows.BY_HAND)
    yield from _check_equal(workload, run, calls, DEFAULT, rows.BY_HAND_DEFAULT)
    yield from _check_equal(workload, run, calls, AUTHOR, OURS_AUTHOR)


def compiled(workload: Workload, run: Run) -> Iterator[Row]:
    """Compile ours, count the graphs over two batches, and race them against eager mode."""
    features, masks = workload.draw()
    other = workload.draw(seed=1)
    for figure, name in itertools.product((FORWARD, TRAIN_DROPOUT), (OURS, OURS_AUTHOR)):
        how = clock.forward if figure == FORWARD else clock.training_step
        ours, in_eager = name + rows.COMPILED, name + rows.EAGER
        run.say(f"{workload.group} {workload.size or ''}, {figure}, {ours}")
        torch.compiler.reset()
        counters = torch._dynamo.utils.counters  # noqa: SLF001 (the only place that knows)
        counters.clear()
        eager = run.build(name, workload, DROPOUTS[figure])
        eager.module.train(figure != FORWARD)
        module = torch.compile(eager.module, fullgraph=True)
        quick = Contestant(module, lambda x, m, module=module: module(x, masks=m))
        calls = {in_eager: how(eager, features, masks), ours: how(quick, features, masks)}
        start = time.perf_counter()
        calls[ours]()
        taken = time.perf_counter() - start
        yield Row.plain(workload, ours, f"{figure}, {rows.COMPILING}", taken)
        how(quick, *other)()
        graphs = counters["stats"]["unique_graphs"]
        yield Row.plain(workload, ours, f"{figure}, {rows.GRAPHS}", graphs)
        yield from run.race(workload, figure, calls)
        if figure == FORWARD:
            yield from _check_equal(workload, run, calls, in_eager, ours)


def _inference(call: Callable[[], Tensor]) -> Callable[[], Tensor]:
    return torch.inference_mode()(call)


def _too_much(workload: Workload, name: str, figure: str, run: Run) -> str | None:
    """Return why a contestant cannot run at this size, judging by smaller sizes."""
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


def _memory(workload: Workload, name: str, run: Run) -> Row:
    args, place = run.args, (workload.group, workload.size)
    run.say(f"{workload.group} {workload.size or ''}, {MEMORY}, {name}")
    options = {"threads": args.threads, "quick": args.quick}
    peak = peak_memory(name, *place, limit=args.limit, **options)
    if isinstance(peak, str):
        return Row.skip(workload, name, MEMORY, peak)
    return Row.plain(workload, name, MEMORY, peak)


def _check_equal(
    workload: Workload, run: Run, calls: dict[str, Callable[[], Tensor]], like: str, *names: str
) -> Iterator[Row]:
    """Stop the run if contestants that share weights differ, as far as they were run."""
    timed = [run.results.find(workload.group, n, FORWARD, workload.size) for n in (like, *names)]
    if any(record is None or record.skipped for record in timed):
        return
    want = calls[like]()
    for name in names:
        error = (calls[name]() - want).abs().max().item() / max(1.0, want.abs().max().item())
        if not math.isfinite(error) or error > TOLERANCE:
            raise RuntimeError(f"{workload.group}: {name} is off {like} by {error:g}")
        yield Row.plain(workload, name, f"difference to {like}", error)
