"""Where the data sets are, and how to load them by name."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality import mosi, sensors
from benchmarks.quality.data import Dataset
from benchmarks.quality.icu import icu2012
from benchmarks.quality.synthetic import synthetic

Loader = Callable[[dict[str, NDArray], int | None], Dataset]
# Archive and loader; icu2012, the lead case, comes last because it takes longest.
ARCHIVES: dict[str, tuple[str, Loader]] = {
    "hydraulic-accumulator": ("hydraulic", lambda x, n: sensors.hydraulic(x, "accumulator", n)),
    "hydraulic-valve": ("hydraulic", lambda x, n: sensors.hydraulic(x, "valve", n)),
    "mfeat": ("mfeat", sensors.mfeat),
    "dsads": ("dsads", lambda x, n: sensors.dsads(x, "whole", n)),
    "dsads-rates": ("dsads", lambda x, n: sensors.dsads(x, "rates", n)),
    "dsads-summaries": ("dsads", lambda x, n: sensors.dsads(x, "summaries", n)),
    "dsads-three": ("dsads", lambda x, n: sensors.dsads(x, "three", n)),
    "icu2012": ("icu2012", icu2012),
}
MADE_UP = tuple(f"synthetic-{kind}" for kind in ("classes", "binary", "regression"))
NAMES = (*ARCHIVES, "mosi", *MADE_UP)


def locate(name: str, folder: Path) -> Path | None:
    """Return the file of a data set, `None` where it is not."""
    if name in MADE_UP:
        return Path()
    if name == "mosi":
        return mosi.find(folder / "mosi")
    archive, _ = ARCHIVES[name]
    path = folder / archive / f"{archive}.npz"
    return path if path.is_file() else None


def load(name: str, folder: Path, most: int | None = None) -> Dataset:
    """Load a data set, or `most` samples of each of its parts.

    Raises:
        FileNotFoundError: If its file is not there.
    """
    path = locate(name, folder)
    if path is None:
        raise FileNotFoundError(f"load: expected the data of {name} in {folder}, got none.")
    if name in MADE_UP:
        return synthetic(name.removeprefix("synthetic-"))
    if name == "mosi":
        return mosi.mosi(path, most)
    with np.load(path) as archive:
        arrays = dict(archive)
    return ARCHIVES[name][1](arrays, most)
