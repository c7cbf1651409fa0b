"""Runs on disk: one line of JSON per run, appended when it is done and found by its key."""

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

# Increase if a change of code makes old runs incomparable.
PROTOCOL = 4

Record = dict[str, Any]


class Store:
    """The runs of a file.

    A process that is killed while writing leaves an incomplete line. It is skipped when read, and
    the next record starts a new line. Several processes can append to one file.
    """

    def __init__(self, path: Path) -> None:
        """Read the file if it exists."""
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
                # The last record of a key counts, and so does its position.
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
    """Return a short hash of the arguments."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def dataset_key(dataset: Dataset) -> str:
    """Return the key of a data set: split, widths, budget."""
    used = (dataset.name, dataset.sizes, dataset.modalities, dataset.task, dataset.missing)
    used += (dataset.half, dataset.encoded, dataset.turns is not None)
    return digest(PROTOCOL, *used, dataclasses.asdict(dataset.budget))


def method_key(method: Method) -> str:
    """Return the key of a method: name, options, training."""
    return digest(method.name, method.options, dataclasses.asdict(method.training), method.only)


def describe(dataset: Dataset, store: Store) -> None:
    """Record the description of a data set for the report."""
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
    # In a fixed order.
    for about in (newest[name] for name in NAMES if name in newest):
        own = [r for r in store.records.values() if r["dataset key"] == about["key"]]
        # A changed method keeps its name: only its newest version counts.
        forms = {r["method"]: r["method key"] for r in own if "method" in r}
        yield about, [r for r in own if "method" in r and forms[r["method"]] == r["method key"]]
