"""Summaries of the runs on disk: one per data set, with a row per method."""

import collections
import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from numpy.typing import NDArray

from benchmarks.quality.datasets.dataset import Task
from benchmarks.quality.methods import BASELINES, GRF, GROUPS
from benchmarks.quality.metrics import COLUMNS, interval
from benchmarks.quality.run import choose
from benchmarks.quality.store import Record, Store, of_dataset
from benchmarks.quality.tables.compare import Bootstrap, Difference

# Groups that GRF is compared with.
COMPARED = ("reference", "baseline", "grf", "ablation")
FIGURES = ("training", "inference")


class Spread(NamedTuple):
    """A metric over seeds: mean, half the width of its interval (`None` for one seed), values."""

    mean: float
    half: float | None
    seeds: Sequence[float]

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Return the spread of values."""
        mean, half = interval(values)
        return cls(mean, half if math.isfinite(half) else None, values)

    def as_json(self) -> dict[str, Any]:
        """Return it for a JSON file."""
        return {"mean": self.mean, "half width": self.half, "seeds": self.seeds}


@dataclasses.dataclass(frozen=True)
class Row:
    """A method, with the chosen settings and their seeds.

    Attributes:
        name: Its name.
        group: Key of `methods.GROUPS`.
        seeds: Number of seeds.
        rate: Learning rate.
        width: Width of the model.
        trial: Number of the settings.
        test: Spread of each metric.
        missing: Spread of the primary metric by the number of missing modalities.
        orders: Primary metric in each order, for each seed tested in other orders.
        parameters: Number of parameters.
        seconds: Time of a training.
        costs: Timing, or the reason why there is none, by figure.
        differences: GRF minus this method by the number of missing modalities, if compared.
    """

    name: str
    group: str
    seeds: int
    rate: float
    width: int
    trial: int
    test: Mapping[str, Spread]
    missing: Mapping[str, Spread]
    orders: Sequence[Sequence[float]]
    parameters: int
    seconds: float
    costs: Mapping[str, Mapping[str, float] | str | None]
    differences: Mapping[str, Difference] = dataclasses.field(default_factory=dict)

    @property
    def step(self) -> float | None:
        """Median seconds of a training step, `None` if not timed."""
        timing = self.costs.get("training")
        return timing["median"] if isinstance(timing, Mapping) else None

    def as_json(self) -> dict[str, Any]:
        """Return it for a JSON file."""
        found = dict(vars(self))
        for spreads in ("test", "missing"):
            found[spreads] = {key: value.as_json() for key, value in found[spreads].items()}
        differences = found.pop("differences")
        if differences:
            found["GRF minus this"] = {
                gone: difference._asdict() | {"GRF is": difference.verdict}
                for gone, difference in differences.items()
            }
        return found


@dataclasses.dataclass(frozen=True)
class Summary:
    """The data of the tables of a data set.

    Attributes:
        about: Its description in the store.
        rows: The methods with all trials and at least one seed.
        pending: Names of the other methods.
        skipped: Why a method was not run, by name.
        bill: Needs of MulT, if recorded.
    """

    about: Record
    rows: Sequence[Row]
    pending: Sequence[str] = ()
    skipped: Mapping[str, str] = dataclasses.field(default_factory=dict)
    bill: Record | None = None

    @property
    def name(self) -> str:
        """Name of the data set."""
        return self.about["dataset"]

    @property
    def task(self) -> Task:
        """The target."""
        return Task(**self.about["task"])

    @property
    def half(self) -> str:
        """Number of missing modalities in comparisons."""
        return str(self.about["half"])

    def in_groups(self, *groups: str) -> list[Row]:
        """Return the rows of some groups."""
        return [row for row in self.rows if row.group in groups]

    def as_json(self) -> dict[str, Any]:
        """Return it for a JSON file."""
        return vars(self) | {"rows": [row.as_json() for row in self.rows]}


def summarise(store: Store) -> list[Summary]:
    """Return the summary of each data set.

    A row has the seeds of the chosen settings. A method without all trials has no row, because its
    settings are not chosen yet.
    """
    bills = {r["dataset key"]: r for r in store.records.values() if r["stage"] == "bill"}
    return [_of_dataset(about, own, bills.get(about["key"])) for about, own in of_dataset(store)]


def _of_dataset(about: Record, records: Sequence[Record], bill: Record | None) -> Summary:
    task, wanted = Task(**about["task"]), len(about["budget"]["trials"])
    by_method: dict[str, list[Record]] = {}
    for record in records:
        by_method.setdefault(record["method"], []).append(record)
    rows: list[Row] = []
    pending: list[str] = []
    skipped: dict[str, str] = {}
    for name, own in by_method.items():
        tuned = by_method.get(own[-1]["tuned as"] or name, [])
        trials = _complete([record for record in tuned if record["stage"] == "trial"], wanted)
        if own[-1]["stage"] == "skipped":
            skipped[name] = own[-1]["reason"]
            continue
        row = _row(name, own, choose(task, trials), task) if trials else None
        if row is None:
            pending.append(name)
        else:
            rows.append(row)
    rows.sort(key=_place)
    return Summary(about, _compared(about, rows, by_method), sorted(pending), skipped, bill)


def _place(row: Row) -> tuple[int, int, str]:
    """Return the sort key of a row."""
    known = list(BASELINES)
    number = known.index(row.name) if row.name in known else len(known)
    return list(GROUPS).index(row.group), number, "" if row.name == GRF else row.name


def _compared(
    about: Record, rows: Sequence[Row], by_method: Mapping[str, Sequence[Record]]
) -> list[Row]:
    """Return the rows with differences to GRF, for all modalities present and half missing."""
    compared = [row for row in rows if row.group in COMPARED]
    if GRF not in [row.name for row in compared]:
        return list(rows)
    bootstrap, points = Bootstrap(about), ("0", str(about["half"]))
    replicates: dict[str, dict[str, dict[int, NDArray]]] = {}
    for row in compared:
        finals = _finals(by_method[row.name], row.trial)
        replicates[row.name] = {
            gone: {f["seed"]: bootstrap.replicate(f["predictions"][gone]) for f in finals}
            for gone in points
        }
    own = replicates.pop(GRF)
    # Only seeds that both have form pairs.
    differences = {
        name: {gone: bootstrap.difference(own[gone], found[gone]) for gone in points}
        for name, found in replicates.items()
        if own["0"].keys() & found["0"].keys()
    }
    return [dataclasses.replace(row, differences=differences.get(row.name, {})) for row in rows]


def _complete(trials: Sequence[Record], wanted: int) -> list[Record]:
    """Return the trials of the seeds with all settings."""
    count = collections.Counter(record["seed"] for record in trials)
    return [record for record in trials if count[record["seed"]] == wanted]


def _row(name: str, own: Sequence[Record], chosen: Record, task: Task) -> Row | None:
    rate, width, trial = chosen["rate"], chosen["width"], chosen["trial"]
    finals = _finals(own, trial)
    if not finals:
        return None
    costs = [r for r in own if r["stage"] == "cost" and (r["rate"], r["width"]) == (rate, width)]
    missing: dict[str, list[float]] = {}
    for final in finals:
        for gone, value in final.get("missing", {}).items():
            missing.setdefault(gone, []).append(value)
    return Row(
        name,
        own[0]["group"],
        len(finals),
        rate,
        width,
        trial,
        test={m: Spread.of([final["test"][m] for final in finals]) for m in COLUMNS[task.kind]},
        missing={gone: Spread.of(values) for gone, values in missing.items()},
        orders=[final["orders"] for final in finals if "orders" in final],
        parameters=finals[-1]["parameters"],
        seconds=statistics.fmean([final["seconds"] for final in finals]),
        costs={figure: costs[-1].get(figure) for figure in FIGURES} if costs else {},
    )


def _finals(own: Sequence[Record], trial: int) -> list[Record]:
    found = [r for r in own if r["stage"] == "final" and r["trial"] == trial]
    return sorted(found, key=lambda record: record["seed"])
