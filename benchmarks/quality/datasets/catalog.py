"""Where the data sets are, and how to load them by name."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.datasets import mosi, sensors
from benchmarks.quality.datasets.dataset import ENCODED, Dataset
from benchmarks.quality.datasets.digits import digits
from benchmarks.quality.datasets.icu import icu2012
from benchmarks.quality.datasets.omics import rosmap
from benchmarks.quality.datasets.synthetic import synthetic

Loader = Callable[[dict[str, NDArray], int | None], Dataset]
# Archives and loader, in the order of sweeps.
ARCHIVES: dict[str, tuple[tuple[str, ...], Loader]] = {
    "dsads-three": (("dsads",), lambda x, n: sensors.dsads(x, "three", n)),
    "digits": (("fsdd", "mfeat"), digits),
    "mfeat": (("mfeat",), sensors.mfeat),
    "rosmap": (("rosmap",), rosmap),
    "hydraulic-accumulator": (("hydraulic",), lambda x, n: sensors.hydraulic(x, "accumulator", n)),
    "hydraulic-valve": (("hydraulic",), lambda x, n: sensors.hydraulic(x, "valve", n)),
    "dsads": (("dsads",), lambda x, n: sensors.dsads(x, "whole", n)),
    "dsads-rates": (("dsads",), lambda x, n: sensors.dsads(x, "rates", n)),
    "icu2012": (("icu2012",), icu2012),
    "dsads-summaries": (("dsads",), lambda x, n: sensors.dsads(x, "summaries", n)),
}
MADE_UP = tuple(f"synthetic-{kind}" for kind in ("classes", "binary", "regression"))
PLAIN = (*ARCHIVES, "mosi", *MADE_UP)
# Each data set with raw and with encoded features.
NAMES = tuple(f"{name}{track}" for name in PLAIN for track in ("", ENCODED))


def plain(name: str) -> str:
    """Return the name of a data set without the suffix for encoded features."""
    return name.removesuffix(ENCODED)


def locate(name: str, folder: Path) -> tuple[Path, ...] | None:
    """Return the files of a data set, `None` if one is missing."""
    name = plain(name)
    if name in MADE_UP:
        return ()
    if name == "mosi":
        path = mosi.find(folder / "mosi")
        return None if path is None else (path,)
    archives, _ = ARCHIVES[name]
    paths = tuple(folder / archive / f"{archive}.npz" for archive in archives)
    return paths if all(path.is_file() for path in paths) else None


def load(name: str, folder: Path, most: int | None = None) -> Dataset:
    """Load a data set, or `most` samples of each of its parts.

    Raises:
        FileNotFoundError: If one of its files is missing.
    """
    paths = locate(name, folder)
    if paths is None:
        raise FileNotFoundError(f"load: expected the data of {name} in {folder}, got none.")
    if plain(name) in MADE_UP:
        dataset = synthetic(plain(name).removeprefix("synthetic-"))
    elif plain(name) == "mosi":
        dataset = mosi.mosi(paths[0], most)
    else:
        archives, loader = ARCHIVES[plain(name)]
        arrays: dict[str, NDArray] = {}
        for archive, path in zip(archives, paths, strict=True):
            # With several archives, their names distinguish equal keys.
            prefix = f"{archive}." if len(archives) > 1 else ""
            with np.load(path) as content:
                arrays |= {f"{prefix}{key}": value for key, value in content.items()}
        dataset = loader(arrays, most)
    return dataset.encode() if name.endswith(ENCODED) else dataset
