"""Results of the GPU benchmark, one row per case, and their JSON file."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.common.clock import Timing
from benchmarks.gpu.cases import FLOAT32, Case

STEP, FORWARD = "training step", "forward"


class Profile(NamedTuple):
    """Kernels of one call: their number, run time, kinds of attention, and the longest ones."""

    launches: int
    copies: int
    busy_milliseconds: float
    attention: list[str]
    kernels: list[list[Any]]


@dataclasses.dataclass(frozen=True)
class Row:
    """The figures of one case; `None` if not measured.

    Attributes:
        workload: Title of its batch shape.
        figure: `STEP` or `FORWARD`.
        model: Name of the model.
        mode: How it is run.
        precision: Number format of weights and features.
        skipped: Why it was not run.
        parameters: Number of parameters.
        real: Share of the steps that are real.
        first_call_seconds: Seconds of the first call, which compiles.
        milliseconds: Time of one call.
        peak_bytes: Peak bytes of all tensors during a call.
        profile: Kernels of one call.
        operations: Operations of a call, counted in eager mode only.
        needed_operations: Operations of real steps only.
        error: The error that ended it.
        seconds: Time of the whole row.
    """

    workload: str
    figure: str
    model: str
    mode: str
    precision: str
    skipped: str | None = None
    parameters: int | None = None
    real: float | None = None
    first_call_seconds: float | None = None
    milliseconds: Timing | None = None
    peak_bytes: int | None = None
    profile: Profile | None = None
    operations: int | None = None
    needed_operations: int | None = None
    error: str | None = None
    seconds: float | None = None

    @classmethod
    def of(cls, case: Case, **figures: Any) -> "Row":  # noqa: ANN401 (each of its own type)
        """Return the row of a case."""
        figure = STEP if case.training else FORWARD
        return cls(case.load.title, figure, case.model, case.mode, case.precision, **figures)

    @property
    def subject(self) -> tuple[str, str, str]:
        """Workload, figure and model; their operations are the same in every mode."""
        return self.workload, self.figure, self.model

    @property
    def key(self) -> tuple[str, ...]:
        """The identity of the row."""
        return *self.subject, self.mode, self.precision

    @property
    def described(self) -> tuple[str, ...]:
        """The parts of the line that names the row, in order."""
        return self.workload, self.model, self.mode, self.precision, self.figure

    @property
    def call_seconds(self) -> float:
        """Median seconds of a call, infinite if not measured."""
        return float("inf") if self.milliseconds is None else self.milliseconds.median / 1e3

    def as_json(self) -> dict[str, Any]:
        """Return the known figures for a JSON file."""
        known = {name: value for name, value in vars(self).items() if value is not None}
        return {n: v._asdict() if isinstance(v, tuple) else v for n, v in known.items()}

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> "Row":
        """Read the output of `as_json`."""
        kinds = {"milliseconds": Timing, "profile": Profile}
        return cls(**{n: kinds[n](**v) if n in kinds else v for n, v in saved.items()})


@dataclasses.dataclass
class Results:
    """All rows of a run.

    Attributes:
        command: The command line; those of all runs if several were merged.
        environment: Versions, device and options.
        peak: Operations per second of dense products, and bytes per second of a copy.
        rows: The measurements.
        seconds: Time of the whole run.
    """

    command: str
    environment: dict[str, str]
    peak: dict[str, float]
    rows: list[Row] = dataclasses.field(default_factory=list)
    seconds: float = 0.0

    def operations(self, row: Row, figure: str = "operations") -> int | None:
        """Return the operations of a call, counted in eager mode only."""
        own = (
            getattr(other, figure) for other in (row, *self.rows) if other.subject == row.subject
        )
        return next((number for number in own if number is not None), None)

    def share(self, row: Row, figure: str = "operations") -> float | None:
        """Return the share of the peak that a call reaches."""
        operations = self.operations(row, figure)
        if operations is None:
            return None
        kind = "float32 with TF32" if row.precision == FLOAT32 else "bf16"
        return operations / row.call_seconds / self.peak[kind]

    def write(self, path: Path) -> None:
        """Write the JSON file."""
        saved = vars(self) | {"rows": [row.as_json() for row in self.rows]}
        path.write_text(json.dumps(saved, indent=1) + "\n", "utf-8")

    @classmethod
    def read(cls, path: Path) -> "Results":
        """Read a JSON file."""
        saved = json.loads(path.read_text("utf-8"))
        return cls(**saved | {"rows": [Row.from_json(row) for row in saved["rows"]]})


def merge(runs: Sequence[Results]) -> Results:
    """Return the first run with the last measurement of every row, and all commands."""
    found: dict[tuple[str, ...], Row] = {}
    for row in (row for run in runs for row in run.rows):
        if row.key not in found or row.milliseconds is not None:
            found[row.key] = row
    command = "\n".join(dict.fromkeys(run.command for run in runs))
    return dataclasses.replace(runs[0], command=command, rows=list(found.values()))
