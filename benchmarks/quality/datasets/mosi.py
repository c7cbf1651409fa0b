"""CMU-MOSI from the pickle that MulT and GRF use, which MulT's authors provide.

`mosi_data.pkl` (aligned) or `mosi_data_noalign.pkl`: a dictionary of `train`, `valid` and `test`,
each with `text` (samples, 50, 300), `audio` (samples, time, 5), `vision` (samples, time, 20) and
`labels` (samples, 1, 1). Put it into DIR/mosi and run `python -m benchmarks.quality --data DIR
--only mosi`.
"""

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.quality.datasets.dataset import Budget, Dataset, Part, Task
from benchmarks.quality.datasets.prepare import grid, summaries_of

MODALITIES = ("text", "audio", "vision")
SPLITS = {"train": "train", "validation": "valid", "test": "test"}
FILES = ("mosi_data.pkl", "mosi_data_noalign.pkl")
FURTHEST = 5.0

_ARRAYS = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),
    *((f"numpy.{core}.multiarray", "scalar") for core in ("core", "_core")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    # Protocol 2 uses this to write bytes.
    ("_codecs", "encode"),
}
_PLAIN = {"bytes", "bytearray", "complex", "dict", "frozenset", "list", "set", "str", "tuple"}


class _Restricted(pickle.Unpickler):
    """Creates only numpy arrays and plain containers."""

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401 (as its parent says)
        """Return what a pickle may call."""
        plain = module in ("builtins", "__builtin__") and name in _PLAIN
        if plain or (module, name) in _ARRAYS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(
            f"restricted_load: expected numpy arrays and plain containers only, got {module}.{name}"
        )


def restricted_load(content: bytes) -> Any:  # noqa: ANN401 (whatever the file holds)
    """Unpickle numpy arrays and plain containers only, so no code can run.

    Raises:
        pickle.UnpicklingError: If the pickle contains anything else.
    """
    return _Restricted(io.BytesIO(content), encoding="latin1").load()


def find(folder: Path) -> Path | None:
    """Return the pickle in a folder."""
    return next((folder / name for name in FILES if (folder / name).is_file()), None)


def mosi(path: Path, most: int | None = None) -> Dataset:
    """Make the data set.

    Steps that are entirely 0 before or after the real ones are padding; real steps are moved to the
    front. Audio and vision are standardised with the real steps of the training part and clipped.
    Word vectors are not changed. Infinite audio values become 0, as in MulT.
    """
    content = restricted_load(path.read_bytes())
    raw = {part: _read(content, split, path) for part, split in SPLITS.items()}
    train = {name: left_align(x) for name, x in raw["train"][0].items()}
    usual = {name: _usual(*train[name]) for name in MODALITIES if name != "text"}
    parts = {}
    for part, (features, labels) in raw.items():
        tensors: dict[str, Tensor] = {}
        masks: dict[str, Tensor] = {}
        columns: dict[str, NDArray] = {}
        for name, values in features.items():
            steps, real = left_align(values[:most])
            if name in usual:
                mean, spread = usual[name]
                steps = ((steps - mean) / spread).clip(-FURTHEST, FURTHEST) * real[..., None]
            tensors[name] = torch.from_numpy(steps.astype(np.float32))
            masks[name] = torch.from_numpy(real)
            count = real.sum(axis=1, keepdims=True)
            columns[name] = np.where(count > 0, steps.sum(axis=1) / np.maximum(count, 1), np.nan)
        target = torch.from_numpy(labels[:most].astype(np.float32))
        parts[part] = Part(tensors, masks, target, summaries_of(columns))
    return Dataset(
        "mosi",
        f"CMU-MOSI sentiment, {path.name}, the split of the file",
        Task("regression", 1, "MAE", higher=False),
        parts,
        Budget(40, 32, grid((3e-4, 1e-3), (64,)), 10),
    )


def left_align(values: NDArray) -> tuple[NDArray, NDArray]:
    """Move what lies between the first and the last step that is not all 0 to the front.

    Returns:
        The steps, 0 behind, and which are real; a sample of nothing but 0 has none.
    """
    filled = (values != 0).any(axis=2)
    has = filled.any(axis=1)
    time = values.shape[1]
    first = np.where(has, filled.argmax(axis=1), 0)
    last = np.where(has, time - filled[:, ::-1].argmax(axis=1), 0)
    real = np.arange(time) < (last - first)[:, None]
    places = np.minimum(np.arange(time) + first[:, None], time - 1)
    moved = np.take_along_axis(values, places[..., None], axis=1)
    return np.where(real[..., None], moved, 0.0), real


def _usual(steps: NDArray, real: NDArray) -> tuple[NDArray, NDArray]:
    rows = steps[real].astype(np.float64)
    return rows.mean(axis=0), np.maximum(rows.std(axis=0), 1e-6)


def _read(
    content: Mapping[str, Mapping[str, Any]], split: str, path: Path
) -> tuple[dict[str, NDArray], NDArray]:
    """Return the features and labels of a split, checked."""
    if not isinstance(content, Mapping) or split not in content:
        raise ValueError(f"mosi: expected `{split}` in {path}, got a file without it.")
    own = content[split]
    missing = [name for name in (*MODALITIES, "labels") if name not in own]
    if missing:
        raise ValueError(f"mosi: expected {missing} in `{split}` of {path}, got {sorted(own)}.")
    labels = np.asarray(own["labels"], dtype=np.float64)
    # Some versions of the file have seven columns a sample (MOSEI); MOSI's has one.
    labels = labels.reshape(len(labels), -1)[:, 0]
    features = {}
    for name in MODALITIES:
        values = np.asarray(own[name], dtype=np.float64)
        if values.ndim != 3 or len(values) != len(labels):
            raise ValueError(
                f"mosi: expected `{name}` of `{split}` to be (samples={len(labels)}, time, width), "
                f"got {values.shape}."
            )
        features[name] = np.where(np.isfinite(values), values, 0.0)
    return features, labels
