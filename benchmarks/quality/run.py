"""What is to be run, in which order, and what was chosen."""

import dataclasses
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from tqdm import tqdm

from benchmarks.quality import cost, metrics
from benchmarks.quality.catalog import NAMES
from benchmarks.quality.data import Dataset, Task
from benchmarks.quality.methods import (
    GRF,
    MANY_PARAMETERS,
    MOST_MINUTES,
    MOST_PARAMETERS,
    Method,
    methods,
    parameters,
)
from benchmarks.quality.store import Record, Store, dataset_key, digest, method_key
from benchmarks.quality.train import evaluate, refit, train

TRIAL_SEED = 0
# Of how many seeds the trained model is tested in other orders too.
ORDER_SEEDS = 2


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the command line decides.

    Attributes:
        seeds: Reported seeds, 1 to this number.
        device: ``"cpu"`` or ``"cuda"``.
        threads: CPU threads.
        shard: This process and how many there are: it runs every so manieth method.
        costs: Whether to measure time.
    """

    seeds: int = 5
    device: str = "cpu"
    threads: int = 1
    shard: tuple[int, int] = (1, 1)
    costs: bool = True


class Job(NamedTuple):
    """A method on a data set."""

    dataset: Dataset
    method: Method
    settings: Settings
    store: Store
    say: Callable[[str], None]

    def identity(self, stage: str) -> Record:
        """Return what all records of the job have."""
        dataset, method = self.dataset, self.method
        return {
            "stage": stage,
            "dataset": dataset.name,
            "dataset key": dataset_key(dataset),
            "method": method.name,
            "method key": method_key(method),
            "group": method.group,
            "tuned as": method.tuned_as,
        }

    def record(self, stage: str, **differs: object) -> Record:
        """Return the start of a record, with the key of what differs."""
        known = self.identity(stage)
        key = digest(known["dataset key"], known["method key"], stage, differs)
        return {"key": key} | known | differs

    def trials(self) -> list[Record]:
        """Return all trials, after running those that were not; whose they are, the method says."""
        if self.method.tuned_as is not None:
            return self._replace(method=methods(self.dataset)[self.method.tuned_as]).trials()
        return [
            self._run("trial", trial, settings, TRIAL_SEED)
            for trial, settings in enumerate(self.dataset.budget.trials)
        ]

    def finals(self, chosen: Record) -> None:
        """Run the chosen settings with every seed that is reported."""
        settings = (chosen["rate"], chosen["width"])
        for seed in range(1, 1 + seeds_of(self.method, self.settings)):
            self._run("final", chosen["trial"], settings, seed, chosen)

    def too_large(self) -> bool:
        """Tell whether the smallest model is too much to train, and write down why."""
        rate, width = min(self.dataset.budget.trials, key=lambda trial: trial[1])
        count, budget = parameters(self.method, self.dataset, width), self.dataset.budget
        record = self.record("skipped", width=width)
        if count <= MANY_PARAMETERS or record["key"] in self.store:
            return count > MANY_PARAMETERS
        reason = f"{count / 1e6:,.0f} million parameters at width {width}"
        if count <= MOST_PARAMETERS:
            ours = methods(self.dataset)[GRF]
            seconds = cost.steps([self.method, ours], self.dataset, rate, width, self.settings)
            batches = budget.epochs * budget.steps(len(self.dataset.parts["train"]))
            minutes = seconds[self.method.name] * batches / 60
            if minutes <= MOST_MINUTES:
                return False
            times = ", ".join(f"{name} {time:,.2f} s" for name, time in seconds.items())
            reason += f", a training step {times}, all epochs {minutes:,.0f} minutes"
        self.store.add(record | {"parameters": count, "reason": reason})
        return True

    def _run(
        self,
        stage: str,
        trial: int,
        settings: tuple[float, int],
        seed: int,
        chosen: Record | None = None,
    ) -> Record:
        rate, width = settings
        record = self.record(stage, trial=trial, rate=rate, width=width, seed=seed)
        if record["key"] in self.store:
            return self.store[record["key"]]
        dataset, method = self.dataset, self.method

        def say(text: str) -> None:
            self.say(f"{dataset.name}, {method.name}, {stage}, width {width}, seed {seed}: {text}")

        say("")
        given = {"trial": trial, "seed": seed, "device": self.settings.device, "say": say}
        if chosen is not None and dataset.budget.refit:
            history = chosen["history"]
            best = max(history) if dataset.task.higher else min(history)
            given |= {"epochs": history.index(best) + 1, "threshold": chosen["threshold"]}
            trained = refit(method, dataset, settings, **given)
        else:
            trained = train(method, dataset, settings, **given)
        record |= {
            "validation": trained.validation,
            "history": trained.history,
            "threshold": trained.threshold,
            "parameters": trained.parameters,
            "seconds": trained.seconds,
            "threads": self.settings.threads,
            "device": self.settings.device,
        }
        if stage == "final":
            asked = method.training.test_orders and seed <= ORDER_SEEDS
            record |= evaluate(trained, method, dataset, test_orders=asked)
        self.store.add(record)
        return record


def seeds_of(method: Method, settings: Settings) -> int:
    """Return how many seeds a method gets."""
    return settings.seeds if method.seeds is None else min(method.seeds, settings.seeds)


def choose(task: Task, trials: Iterable[Record]) -> Record:
    """Return the trial that validation likes best, the first of equals."""
    return max(trials, key=lambda record: metrics.better(task, record["validation"]))


def run(
    dataset: Dataset, store: Store, settings: Settings, chosen: Callable[[str], bool], bar: tqdm
) -> None:
    """Run all chosen methods on a data set; what is in the store already is not run again."""
    known = methods(dataset)
    describe(dataset, store)
    jobs = {
        name: Job(dataset, method, settings, store, bar.set_postfix_str)
        for name, method in known.items()
    }
    for name, method in known.items():
        if chosen(name) and mine(method, settings) and not jobs[name].too_large():
            jobs[name].finals(choose(dataset.task, jobs[name].trials()))
            bar.update()
    if settings.costs and settings.shard[1] == 1:
        cost.measure(jobs, chosen, choose)
    if chosen("MulT"):
        cost.bill(dataset, store)


def amount(dataset: Dataset, settings: Settings, chosen: Callable[[str], bool]) -> int:
    """Return how many methods `run` runs."""
    return sum(chosen(n) and mine(m, settings) for n, m in methods(dataset).items())


def mine(method: Method, settings: Settings) -> bool:
    """Tell whether this process runs a method; who shares trials runs in the same one."""
    number, shards = settings.shard
    return zlib.crc32((method.tuned_as or method.name).encode()) % shards == number - 1


def describe(dataset: Dataset, store: Store) -> None:
    """Write down what the report has to know of a data set."""
    key = dataset_key(dataset)
    if key in store:
        return
    absent = 1 - dataset.parts["train"].present.float().mean().item()
    record: dict[str, Any] = {
        "key": key,
        "stage": "dataset",
        "dataset": dataset.name,
        "dataset key": key,
        "title": dataset.title,
        "task": dataset.task._asdict(),
        "modalities": dataset.modalities,
        "samples": {name: len(part) for name, part in dataset.parts.items()},
        "absent": absent,
        "budget": dataclasses.asdict(dataset.budget),
        "missing": dataset.missing,
        "reference": dataset.reference,
    }
    store.add(record)


def of_dataset(store: Store) -> Iterator[tuple[Record, list[Record]]]:
    """Return the newest description of each data set with the records that belong to it."""
    newest = {r["dataset"]: r for r in store.records.values() if r["stage"] == "dataset"}
    # In one order, whatever ran first.
    for about in (newest[name] for name in NAMES if name in newest):
        own = [r for r in store.records.values() if r["dataset key"] == about["key"]]
        # A method that was changed keeps its name: only its newest form counts.
        forms = {r["method"]: r["method key"] for r in own if "method" in r}
        yield (
            about,
            [r for r in own if "method" in r and forms[r["method"]] == r["method key"]],
        )
