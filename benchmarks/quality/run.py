"""The trainings of a method on a data set, and the choice of settings."""

import dataclasses
import statistics
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from benchmarks.quality import metrics, steps
from benchmarks.quality.datasets.dataset import Dataset, Task
from benchmarks.quality.evaluate import evaluate
from benchmarks.quality.methods import (
    GRF,
    MANY_PARAMETERS,
    MOST_MINUTES,
    MOST_PARAMETERS,
    Method,
    methods,
    parameters,
)
from benchmarks.quality.network import Trained
from benchmarks.quality.store import Record, Store, dataset_key, digest, method_key
from benchmarks.quality.train import refit, train

TRIAL_SEED = 0
# Number of seeds that are also tested in other orders.
ORDER_SEEDS = 2


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings from the command line.

    Attributes:
        seeds: Reported seeds, 1 to this number.
        device: ``"cpu"`` or ``"cuda"``.
        threads: CPU threads of a training.
        orders: Whether trained models are also tested in other orders, which takes longer than the
            training if there are many modalities.
    """

    seeds: int = 5
    device: str = "cpu"
    threads: int = 1
    orders: bool = False


class Unit(NamedTuple):
    """One training.

    Attributes:
        stage: ``"trial"`` to choose settings, ``"final"`` to report.
        trial: Number of the settings.
        rate: Learning rate.
        width: Width of the model.
        seed: Random seed, which also selects the validation part if each seed has its own.
        chosen: Epochs and threshold of a model that is trained again on train and validation.
    """

    stage: str
    trial: int
    rate: float
    width: int
    seed: int
    chosen: tuple[int, float | None] | None = None


class Job(NamedTuple):
    """A method on a data set."""

    dataset: Dataset
    method: Method
    settings: Settings
    store: Store

    def record(self, stage: str, **differs: object) -> Record:
        """Return the start of a record, with a key that depends on `differs`."""
        dataset, method = self.dataset, self.method
        known = {
            "stage": stage,
            "dataset": dataset.name,
            "dataset key": dataset_key(dataset),
            "method": method.name,
            "method key": method_key(method),
            "group": method.group,
            "tuned as": method.tuned_as and self.owner().method.name,
        }
        key = digest(known["dataset key"], known["method key"], stage, differs)
        return {"key": key} | known | differs

    def start(self, unit: Unit) -> Record:
        """Return the start of the record of a training."""
        differs = {"trial": unit.trial, "rate": unit.rate, "width": unit.width, "seed": unit.seed}
        return self.record(unit.stage, **differs)

    def owner(self) -> "Job":
        """Return the job whose trials choose the settings."""
        if self.method.tuned_as is None:
            return self
        return self._replace(method=methods(self.dataset)[self.method.tuned_as]).owner()

    def trials(self) -> list[Unit]:
        """Return the trainings that choose settings: one per setting and validation part."""
        turned = self.dataset.turns is not None
        seeds = range(1, 1 + self.settings.seeds) if turned else (TRIAL_SEED,)
        return [
            Unit("trial", trial, rate, width, seed)
            for seed in seeds
            for trial, (rate, width) in enumerate(self.dataset.budget.trials)
        ]

    def chosen(self) -> Record | None:
        """Return a trial of the settings that are best on validation, once all trials have run."""
        owner = self.owner()
        keys = [owner.start(unit)["key"] for unit in owner.trials()]
        if not all(key in self.store for key in keys):
            return None
        return choose(self.dataset.task, [self.store[key] for key in keys])

    def pending(self) -> list[tuple["Job", Unit]]:
        """Return the trainings that can run now: trials, or reported runs after all trials."""
        chosen = self.chosen()
        if chosen is None:
            owner = self.owner()
            wanted = [(owner, unit) for unit in owner.trials()]
        else:
            seeds = seeds_of(self.method, self.settings)
            wanted = [(self, final_of(self.dataset, chosen, seed)) for seed in range(1, 1 + seeds)]
        return [(job, unit) for job, unit in wanted if job.start(unit)["key"] not in self.store]

    def do(self, unit: Unit) -> list[Record]:
        """Run a training; return its records.

        If each seed has its own validation part, a trial is tested at once: if its settings are
        chosen, it is one of the reported runs.
        """
        dataset, method, device = self.dataset.turn(unit.seed), self.method, self.settings.device
        settings = (unit.rate, unit.width)
        given: dict[str, Any] = {"trial": unit.trial, "seed": unit.seed, "device": device}
        if unit.chosen is None:
            trained = train(method, dataset, settings, **given)
        else:
            epochs, threshold = unit.chosen
            trained = refit(method, dataset, settings, **given, epochs=epochs, threshold=threshold)
        records = [self.start(unit) | self._outcome(trained)]
        if unit.stage == "trial" and dataset.turns is not None:
            records.append(self.start(unit._replace(stage="final")) | self._outcome(trained))
        if records[-1]["stage"] == "final":
            asked = self.settings.orders and method.training.test_orders
            asked = asked and unit.seed <= ORDER_SEEDS
            records[-1] |= evaluate(trained, method, dataset, test_orders=asked)
        return records

    def _outcome(self, trained: Trained) -> Record:
        return {
            "validation": trained.validation,
            "history": trained.history,
            "threshold": trained.threshold,
            "parameters": trained.parameters,
            "seconds": trained.seconds,
            "threads": self.settings.threads,
            "device": self.settings.device,
        }

    def too_large(self, *, measure: bool = True) -> bool:
        """Return whether the smallest model is too large to train, and record the reason.

        Without `measure`, a model that is large enough to be timed counts as too large.
        """
        rate, width = min(self.dataset.budget.trials, key=lambda trial: trial[1])
        count, budget = parameters(self.method, self.dataset, width), self.dataset.budget
        record = self.record("skipped", width=width)
        if count <= MANY_PARAMETERS or record["key"] in self.store or not measure:
            return count > MANY_PARAMETERS
        reason = f"{count / 1e6:,.0f} million parameters at width {width}"
        if count <= MOST_PARAMETERS:
            both = (self.method, methods(self.dataset)[GRF])
            seconds = steps.seconds(both, self.dataset, rate, width, self.settings.device)
            batches = budget.epochs * budget.steps(len(self.dataset.parts["train"]))
            minutes = seconds[self.method.name] * batches / 60
            if minutes <= MOST_MINUTES:
                return False
            times = ", ".join(f"{name} {time:,.2f} s" for name, time in seconds.items())
            reason += f", a training step {times}, all epochs {minutes:,.0f} minutes"
        self.store.add(record | {"parameters": count, "reason": reason})
        return True


def final_of(dataset: Dataset, chosen: Record, seed: int) -> Unit:
    """Return the reported training of a seed, with the chosen settings."""
    again = None
    if dataset.budget.refit:
        history = chosen["history"]
        best = max(history) if dataset.task.higher else min(history)
        again = history.index(best) + 1, chosen["threshold"]
    return Unit("final", chosen["trial"], chosen["rate"], chosen["width"], seed, again)


def seeds_of(method: Method, settings: Settings) -> int:
    """Return the number of seeds of a method."""
    return settings.seeds if method.seeds is None else min(method.seeds, settings.seeds)


def choose(task: Task, trials: Iterable[Record]) -> Record:
    """Return a trial of the settings that are best on validation, the first of equals.

    If settings have several trials with different validation parts, their mean counts.
    """
    by_settings: dict[int, list[Record]] = {}
    for record in trials:
        by_settings.setdefault(record["trial"], []).append(record)

    def quality(records: list[Record]) -> tuple[float, float]:
        found = [metrics.better(task, record["validation"]) for record in records]
        return tuple(statistics.fmean(values) for values in zip(*found, strict=True))

    return max((by_settings[trial] for trial in sorted(by_settings)), key=quality)[0]


def jobs_of(dataset: Dataset, settings: Settings, store: Store) -> Mapping[str, Job]:
    """Return all jobs of a data set, by method."""
    return {
        name: Job(dataset, method, settings, store) for name, method in methods(dataset).items()
    }
