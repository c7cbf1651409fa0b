"""Results of the speed benchmark: one row per figure and contestant."""

import dataclasses
import json
import math
import statistics
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.speed.workloads import Workload

STEP = "ours: one step, state cached"
ALONE = "that step alone, its parts called by hand"
AGAIN = "everything again"
BY_HAND = "the same operations by hand"
BY_HAND_DEFAULT = "the same operations by hand, default form"
COMPILED, EAGER = ", compiled", ", eager"
COMPILING, GRAPHS = "first call compiled", "graphs"


class Row(NamedTuple):
    """One figure of one contestant: seconds, bytes or a count, or the reason why it was skipped."""

    group: str
    size: int
    contestant: str
    figure: str
    median: float | None
    low: float | None = None
    high: float | None = None
    runs: int = 0
    skipped: str | None = None

    @property
    def key(self) -> tuple[str, int, str, str]:
        """The identity of the row."""
        return self[:4]

    @classmethod
    def plain(cls, workload: Workload, contestant: str, figure: str, value: float) -> "Row":
        """Return the row of a figure without spread."""
        return cls(workload.group, workload.size, contestant, figure, value, value, value, 1)

    @classmethod
    def skip(cls, workload: Workload, contestant: str, figure: str, reason: str) -> "Row":
        """Return the row of a figure that was not measured."""
        return cls(workload.group, workload.size, contestant, figure, None, skipped=reason)


@dataclasses.dataclass
class Results:
    """All results of a run.

    Attributes:
        environment: Versions, device and options.
        peak: Operations per second of a matrix product.
        missing: Contestants whose package is not installed, with the package.
        rows: The measurements.
    """

    environment: dict[str, str]
    peak: float
    missing: dict[str, str]
    rows: list[Row] = dataclasses.field(default_factory=list)

    def find(self, group: str, contestant: str, figure: str, size: int = 0) -> Row | None:
        """Return one row."""
        key = group, size, contestant, figure
        return next((row for row in self.rows if row.key == key), None)

    def series(self, group: str, contestant: str, figure: str) -> list[tuple[int, float]]:
        """Return the measured sizes and medians."""
        of_figure = self._of(group, contestant, figure)
        return [(row.size, row.median) for row in of_figure if row.median is not None]

    def skipped(self, group: str, contestant: str, figure: str) -> bool:
        """Return whether any size was skipped."""
        return any(row.skipped for row in self._of(group, contestant, figure))

    def ratio(self, group: str, figure: str, slow: str, fast: str, size: int = 0) -> float | None:
        """Return how many times as long the first takes as the second."""
        pair = [self.find(group, name, figure, size) for name in (slow, fast)]
        values = [row.median for row in pair if row is not None and row.median]
        return values[0] / values[1] if len(values) == 2 else None

    def exponent(self, group: str, contestant: str, figure: str, less: int = 0) -> float | None:
        """Return the slope of log seconds over log (size - less)."""
        series = self.series(group, contestant, figure)
        points = [(math.log(x - less), math.log(y)) for x, y in series]
        return (
            statistics.linear_regression(*zip(*points, strict=True)).slope if points[2:] else None
        )

    def as_json(self) -> dict[str, Any]:
        """Return everything for a JSON file."""
        about = {"environment": self.environment, "peak": self.peak, "missing": self.missing}
        return about | {"records": [row._asdict() for row in self.rows]}

    @classmethod
    def from_json(cls, path: Path) -> "Results":
        """Read the JSON file of a run."""
        saved = json.loads(path.read_text())
        rows = [Row(**record) for record in saved["records"]]
        return cls(saved["environment"], saved["peak"], saved["missing"], rows)

    def replace(self, later: "Results") -> "Results":
        """Return these results, with repeated rows replaced by those of a later run."""
        again = {row.key for row in later.rows}
        kept = [row for row in self.rows if row.key not in again]
        return dataclasses.replace(later, rows=kept + later.rows)

    def _of(self, group: str, contestant: str, figure: str) -> list[Row]:
        key = group, contestant, figure
        return [r for r in self.rows if (r.group, r.contestant, r.figure) == key]


def local_exponent(series: list[tuple[int, float]]) -> float:
    """Return the slope between the last two points."""
    (size, value), (next_size, next_value) = series[-2:]
    return math.log(next_value / value) / math.log(next_size / size)
