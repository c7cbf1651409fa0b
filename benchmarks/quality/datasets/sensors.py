"""Sensors and views without gaps: hydraulic, dsads and mfeat."""

import functools

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.datasets.dataset import PARTS, Budget, Dataset, Part, Task
from benchmarks.quality.datasets.prepare import Arrays, grid, parts_of, standardise

HYDRAULIC_TOKENS = 3
PRESSURES, VALVES = (90, 100, 115, 130), (73, 80, 90, 100)
HYDRAULIC_REFERENCE = {
    "accumulator": (("best single sensor, linear", ".657"), ("all 17, linear", ".907")),
    "valve": (("best single sensor, linear", ".905"), ("all 17, linear", ".955")),
}
UNITS = ("torso", "r_arm", "l_arm", "r_leg", "l_leg")
SENSORS = ("acc", "gyr", "mag")
ALL = "5 body units x 3 sensors"
HOW = {
    "whole": f"{ALL}, all at 25 Hz",
    "rates": f"{ALL}, units resampled to three different rates",
    "summaries": f"{ALL}, mean, deviation, minimum and maximum of each channel",
    "three": "accelerometers of torso, right arm and left leg, resampled to three different rates",
}
# Validation persons in turn, and test persons.
PEOPLE, TESTED = (1, 2, 3, 4, 5), (6, 7, 8)
THREE = ("torso_acc", "r_arm_acc", "l_leg_acc")
# Time steps of a unit that make one step of its sequence.
FOLD = 5
# Strides of the units at different rates: 125, 63 and 25 values in 5 s.
STRIDES = {"torso": 1, "r_arm": 2, "l_arm": 2, "r_leg": 5, "l_leg": 5}
VIEWS = ("fac", "fou", "kar", "mor", "pix", "zer")


def hydraulic(arrays: Arrays, target: str, most: int | None = None) -> Dataset:
    """Make a data set of 17 sensors, split by runs of equal condition.

    Each sensor is standardised separately at each second of the rig's load cycle, the same in
    every sample. Its 60 values are folded into 3 steps of 20.
    """
    split, classes = arrays["run_split"], {"accumulator": PRESSURES, "valve": VALVES}[target]
    values = standardise(arrays["x"], split == 0, axis=0)
    labels = np.searchsorted(classes, arrays[target])
    names = [str(name) for name in arrays["sensor"]]
    shape = (len(values), HYDRAULIC_TOKENS, -1)
    features = {name: values[:, k].reshape(shape) for k, name in enumerate(names)}
    columns = {name: x.reshape(len(x), -1) for name, x in features.items()}
    belongs = {part: split == k for k, part in enumerate(PARTS)}
    reference = HYDRAULIC_REFERENCE[target]
    return Dataset(
        f"hydraulic-{target}",
        title=f"{target} of a hydraulic rig, 17 sensors; no run of cycles in two parts",
        parts=parts_of(features, columns, labels, belongs, most),
        task=Task("classes", len(classes), "macro accuracy"),
        budget=Budget(80, 64, grid((1e-3, 4e-3), (64,)), 40, weight_decay=1.0),
        reference=tuple((f"{row}, as reported", "accuracy", value) for row, value in reference),
    )


def dsads(arrays: Arrays, read: str = "whole", most: int | None = None) -> Dataset:
    """Make a data set of 15 sensor modalities, or of three of them, split by person.

    Persons 6 to 8 are the test part. With seeds 1 to 5, the person of that number validates and the
    other four train. Channels are standardised, and 5 values in time are folded into a step. With
    `read="rates"` the units are resampled to three rates; originally all are aligned.
    `read="three"` keeps one sensor of each rate. With `read="summaries"` a sensor has one step, the
    statistics that classical methods get.
    """
    turns = functools.cache(lambda person: _people(arrays, read, most, person))
    reported = (("all units, linear, train 1-5, as reported", "accuracy", ".878"),)
    return Dataset(
        "dsads" if read == "whole" else f"dsads-{read}",
        title=f"19 activities, {HOW[read]}; no person in two parts",
        parts=turns(PEOPLE[-1]),
        task=Task("classes", 19, "accuracy"),
        budget=Budget(30, 64, grid((1e-3, 4e-3), (64,)), 10),
        reference=reported if read in ("whole", "summaries") else (),
        turns=lambda seed: turns(PEOPLE[(seed - 1) % len(PEOPLE)]),
    )


def _people(arrays: Arrays, read: str, most: int | None, person: int) -> dict[str, Part]:
    """Return the parts with one person for validation."""
    subject = arrays["subject"]
    others = tuple(one for one in PEOPLE if one != person)
    people = {"train": others, "validation": (person,), "test": TESTED}
    train = np.isin(subject, others)
    features, columns = {}, {}
    for u, unit in enumerate(UNITS):
        for s, sensor in enumerate(SENSORS):
            first, name = 9 * u + 3 * s, f"{unit}_{sensor}"
            if read == "three" and name not in THREE:
                continue
            own = arrays["x"][:, :, first : first + 3].astype(np.float32)
            stride = STRIDES[unit] if read in ("rates", "three") else 1
            series = standardise(own, train, axis=(0, 1))[:, ::stride]
            every = (series.mean(1), series.std(1), series.min(1), series.max(1))
            columns[name] = statistics = np.concatenate(every, axis=1)
            features[name] = (
                standardise(statistics, train, axis=0)[:, None]
                if read == "summaries"
                else fold(series, FOLD)
            )
    belongs = {part: np.isin(subject, who) for part, who in people.items()}
    return parts_of(features, columns, arrays["activity"].astype(np.int64), belongs, most)


def mfeat(arrays: Arrays, most: int | None = None) -> Dataset:
    """Make a data set of 6 views of handwritten digits, 200 samples for training.

    Fold 2 trains, fold 3 validates (another 200, never trained on), folds 0 and 1 test.
    """
    fold_of = arrays["fold"]
    folds = {"train": (2,), "validation": (3,), "test": (0, 1)}
    train = fold_of == 2
    flat = {name: standardise(arrays[name].astype(np.float64), train, axis=0) for name in VIEWS}
    belongs = {part: np.isin(fold_of, of) for part, of in folds.items()}
    features = {name: x[:, None] for name, x in flat.items()}
    return Dataset(
        "mfeat",
        title="6 views of handwritten digits, 200 samples for training",
        parts=parts_of(features, flat, arrays["label"].astype(np.int64), belongs, most),
        task=Task("classes", 10, "accuracy"),
        compared=4,
        budget=Budget(120, 32, grid((1e-3, 4e-3), (32, 64)), 40),
        reference=(
            ("best view (fac), linear, as reported", "accuracy", ".943"),
            ("all views, linear, as reported", "accuracy", ".968"),
        ),
    )


def fold(series: NDArray, steps: int) -> NDArray:
    """Fold ``steps`` values into one step, ``(samples, time, width)``, padded with the last one."""
    lacking = -series.shape[1] % steps
    padded = np.pad(series, ((0, 0), (0, lacking), (0, 0)), mode="edge")
    return padded.reshape(len(series), -1, steps * series.shape[2])
