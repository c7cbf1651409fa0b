"""Runs on disk: a line of JSON each, appended as soon as a run is done, found again by its key."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.quality.datasets.catalog import NAMES
from benchmarks.quality.datasets.dataset import Dataset
from benchmarks.quality.methods import Method
from benchmarks.quality.predictions import pack_labels

# To be raised where a change of code makes old runs another thing.
PROTOCOL = 4

Record = dict[str, Any]


class Store:
    """The runs of a file.

    A process that is killed while it writes leaves half a line: it is skipped when read, and the
    next line starts on its own. Several processes can append to one file.
    """

    def __init__(self, path: Path) -> None:
        """Read what is there."""
        self.path = path
        self.records: dict[str, Record] = {}
        self.broken = 0
        if path.exists():
            for line in path.read_text("utf-8").splitlines():
                try:
                    record = json.loads(line)
                except json.JSONDecodeError:
                    self.broken += bool(line.strip())
                    continue
                # The last one counts, also in order.
                self.records.pop(record["key"], None)
                self.records[record["key"]] = record

    def __contains__(self, key: str) -> bool:
        return key in self.records

    def __getitem__(self, key: str) -> Record:
        return self.records[key]

    def add(self, record: Record) -> None:
        """Append a record."""
        line = json.dumps(record) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:
            if file.tell():
                file.seek(-1, 2)
                if file.read(1) != b"\n":
                    line = "\n" + line
            file.write(line.encode())
        self.records.pop(record["key"], None)
        self.records[record["key"]] = record


def digest(*parts: object) -> str:
    """Return a short name of what is given."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def dataset_key(dataset: Dataset) -> str:
    """Return the name of a data set as it is used: split, widths, budget."""
    used = (dataset.name, dataset.sizes, dataset.modalities, dataset.task, dataset.missing)
    used += (dataset.half, dataset.encoded, dataset.turns is not None)
    return digest(PROTOCOL, *used, dataclasses.asdict(dataset.budget))


def method_key(method: Method) -> str:
    """Return the name of all that makes a method."""
    return digest(method.name, method.options, dataclasses.asdict(method.training), method.only)


def describe(dataset: Dataset, store: Store) -> None:
    """Write down what the report has to know of a data set."""
    key = dataset_key(dataset)
    if key in store:
        return
    absent = 1 - dataset.parts["train"].present.float().mean().item()
    labels = dataset.parts["test"].labels.cpu().numpy()
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
        "half": dataset.half,
        "encoded": dataset.encoded,
        "turns": dataset.turns is not None,
        "reference": dataset.reference,
        "labels": None if dataset.task.kind == "regression" else pack_labels(labels),
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
        yield about, [r for r in own if "method" in r and forms[r["method"]] == r["method key"]]
