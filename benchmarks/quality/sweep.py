"""Runs trainings, most important first, until all are done or the time is up.

One process writes the file of runs; the others train and return records. Trainings that are not
finished when the time is up are lost; the next call runs them again.
"""

import dataclasses
import functools
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.pool import AsyncResult
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.quality.datasets.catalog import load, plain
from benchmarks.quality.datasets.dataset import ENCODED, Dataset
from benchmarks.quality.methods import CROSS, GRF, POOLED, Method
from benchmarks.quality.run import Job, Settings, Unit, jobs_of
from benchmarks.quality.store import Record, Store, describe

# These run first on every data set, then the other rivals.
FIRST = (GRF, POOLED, CROSS)
GROUPS_IN_ORDER = ("baseline", "reference", "grf", "single", "ablation", "order")
SLEEP = 0.02
# Limits of a trial run; samples per part.
SHORT_SAMPLES, SHORT_EPOCHS, SHORT_TRIALS = 48, 1, 2


class Source(NamedTuple):
    """Where data sets come from.

    Attributes:
        folder: The folder of all data.
        short: Whether to use few samples and train briefly.
    """

    folder: Path
    short: bool = False

    def get(self, name: str, device: str) -> Dataset:
        """Return a data set, read once per process."""
        found = _load(self, plain(name), device)
        return found.encode() if name.endswith(ENCODED) else found


@functools.lru_cache(maxsize=4)
def _load(source: Source, name: str, device: str) -> Dataset:
    found = load(name, source.folder, SHORT_SAMPLES if source.short else None)
    if source.short:
        trials = found.budget.trials[:SHORT_TRIALS]
        budget = dataclasses.replace(found.budget, epochs=SHORT_EPOCHS, batch=16, trials=trials)
        found = dataclasses.replace(found, budget=budget)
    return found.to(device)


def urgency(method: Method) -> int:
    """Return the position of a method in the schedule, 0 for first."""
    if method.name in FIRST:
        return 0
    return 1 + GROUPS_IN_ORDER.index(method.group)


def sweep(
    source: Source,
    store: Store,
    settings: Settings,
    wanted: Mapping[str, Callable[[Method], bool]],
    *,
    jobs: int = 1,
    seconds: float | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> int:
    """Run what is wanted of each data set and not in the store yet; return how many trainings."""
    deadline = None if seconds is None else time.monotonic() + seconds
    plan = _Plan(source, store, settings, wanted, measure=jobs == 1)
    if jobs == 1:
        return _alone(plan, deadline, say)
    return _together(plan, jobs, deadline, say)


class _Plan:
    """All jobs, most urgent first, and the trainings that can be started."""

    def __init__(
        self,
        source: Source,
        store: Store,
        settings: Settings,
        wanted: Mapping[str, Callable[[Method], bool]],
        *,
        measure: bool,
    ) -> None:
        self.source, self.store, self.settings = source, store, settings
        self.measure = measure
        self.unread = list(wanted.items())
        self.open: list[Job] = []
        self.failed: set[str] = set()

    def read(self) -> None:
        """Read one more data set."""
        name, chosen = self.unread.pop(0)
        dataset = self.source.get(name, self.settings.device)
        describe(dataset, self.store)
        jobs = jobs_of(dataset, self.settings, self.store).values()
        self.open += [job for job in jobs if chosen(job.method)]
        # The sort is stable: data sets and methods keep their order.
        self.open.sort(key=lambda job: urgency(job.method))

    def next(self, busy: Mapping[str, Any], left: float | None) -> tuple[str, Job, Unit] | None:
        """Return the first training that is not running and fits into the remaining time."""
        for job in tuple(self.open):
            waiting = []
            if not job.too_large(measure=self.measure):
                waiting = [(owner.start(unit)["key"], owner, unit) for owner, unit in job.pending()]
            waiting = [item for item in waiting if item[0] not in self.failed]
            if not waiting:
                self.open = [other for other in self.open if other is not job]
            for key, owner, unit in waiting:
                if key not in busy and (left is None or self.expected(owner) < left):
                    return key, owner, unit
        return None

    def expected(self, job: Job) -> float:
        """Return the longest time of such a training so far, 0 if there was none."""
        taken = [
            record["seconds"]
            for record in self.store.records.values()
            if record.get("method") == job.method.name
            and record["dataset"] == job.dataset.name
            and "seconds" in record
        ]
        return max(taken, default=0.0)


def _alone(plan: _Plan, deadline: float | None, say: Callable[[str], None]) -> int:
    done = 0
    while plan.unread:
        plan.read()
    while (found := plan.next({}, _left(deadline))) is not None:
        _, job, unit = found
        _keep(plan, job.do(unit), say)
        done += 1
    return done


def _together(plan: _Plan, jobs: int, deadline: float | None, say: Callable[[str], None]) -> int:
    done, busy = 0, {}
    # Fresh interpreters: forked ones would share torch's threads.
    context = multiprocessing.get_context("spawn")
    with context.Pool(jobs, _prepare, (plan.settings.threads,)) as pool:
        while True:
            for key, result in [item for item in busy.items() if item[1].ready()]:
                del busy[key]
                done += _collect(plan, key, result, say)
            left = _left(deadline)
            if left is not None and left <= 0:
                break
            while len(busy) < jobs and (found := plan.next(busy, left)) is not None:
                key, job, unit = found
                given = (plan.source, job.dataset.name, job.method.name, job.settings, unit)
                busy[key] = pool.apply_async(_work, given)
            # The other processes work meanwhile.
            if plan.unread:
                plan.read()
                continue
            if not busy:
                break
            time.sleep(SLEEP)
    return done


def _collect(
    plan: _Plan, key: str, result: "AsyncResult[list[Record]]", say: Callable[[str], None]
) -> int:
    try:
        records = result.get()
    except Exception:  # noqa: BLE001 (one training that fails must not end the others)
        plan.failed.add(key)
        say(f"failed, and is left out:\n{traceback.format_exc()}")
        return 0
    _keep(plan, records, say)
    return 1


def _keep(plan: _Plan, records: list[Record], say: Callable[[str], None]) -> None:
    for record in records:
        plan.store.add(record)
    last = records[-1]
    where = f"{last['dataset']}, {last['method']}, trial {last['trial'] + 1}, seed {last['seed']}"
    say(f"{where}: {records[0]['stage']}, {last['seconds']:.1f} s")


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else deadline - time.monotonic()


def _prepare(threads: int) -> None:
    torch.set_num_threads(threads)


def _work(source: Source, name: str, method: str, settings: Settings, unit: Unit) -> list[Record]:
    """Run a training in another process."""
    nothing = Store(Path(os.devnull))
    job = jobs_of(source.get(name, settings.device), settings, nothing)[method]
    return job.do(unit)
