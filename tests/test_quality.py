"""The quality benchmark reads, splits, trains, measures and resumes as it says."""

import dataclasses
import itertools
import json
import math
import pickle
import re
import statistics
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn_metrics
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common.markdown import insert
from benchmarks.quality import __main__ as command
from benchmarks.quality import cost
from benchmarks.quality import metrics as ours
from benchmarks.quality import run as running
from benchmarks.quality.datasets import catalog, digits, icu, mosi, omics, sensors
from benchmarks.quality.datasets.dataset import Batch, Budget, Part, Task, curve, drop_steps
from benchmarks.quality.datasets.prepare import standardise, stratified, summaries_of
from benchmarks.quality.datasets.synthetic import synthetic
from benchmarks.quality.evaluate import VALIDATION_DRAW, evaluate, keep, validate
from benchmarks.quality.methods import (
    ABLATIONS,
    GRF,
    MODES,
    Method,
    Training,
    methods,
    orders,
    parameters,
)
from benchmarks.quality.models.builders import Size, grf
from benchmarks.quality.models.taken_apart import multiply, take_away
from benchmarks.quality.network import Network, build
from benchmarks.quality.store import Store, describe, method_key
from benchmarks.quality.tables import evidence
from benchmarks.quality.tables import report as tables
from benchmarks.quality.tables.summary import summarise
from benchmarks.quality.train import Learner, refit, train
from grf_fusion import GatedRecurrentFusion
from grf_fusion.baselines import MulT

PARTS = ("train", "validation", "test")
TASK = Task("classes", 3, "accuracy")


@pytest.fixture(scope="module")
def arrays(data_dir):
    """Return a function that reads an archive once."""
    read = {}

    def of(name: str) -> dict[str, np.ndarray]:
        if name not in read:
            with np.load(data_dir / name / f"{name}.npz") as archive:
                read[name] = dict(archive)
        return dict(read[name])

    return of


def sizes(dataset) -> list[int]:
    return [len(dataset.parts[part]) for part in PARTS]


# Data


@pytest.mark.parametrize("target", ["accumulator", "valve"])
def test_hydraulic_has_the_split_of_its_readme(arrays, target):
    data = arrays("hydraulic")
    dataset = sensors.hydraulic(data, target)
    assert sizes(dataset) == [1325, 236, 644]
    assert len(dataset.modalities) == 17
    assert set(dataset.modalities.values()) == {20}
    assert all(x.shape[1:] == (3, 20) for x in dataset.parts["train"].features.values())
    runs = [set(data["run"][data["run_split"] == part]) for part in range(3)]
    assert all(a.isdisjoint(b) for a, b in itertools.combinations(runs, 2))
    classes = np.unique(data[target])
    labels = dataset.parts["test"].labels.numpy()
    assert (classes[labels] == data[target][data["run_split"] == 2]).all()
    train = torch.stack(list(dataset.parts["train"].features.values()))
    # Standardised by sensor and time step; what is clipped at 5 moves the mean a little.
    assert train.mean(dim=1).abs().max() < 0.1
    assert train.abs().max() <= 5


@pytest.mark.parametrize(
    ("read", "rest"),
    [("whole", {25}), ("rates", {25, 13, 5}), ("summaries", {1}), ("three", {25, 13, 5})],
)
def test_dsads_has_no_person_in_two_parts(arrays, read, rest):
    data = arrays("dsads")
    dataset = sensors.dsads(data, read)
    assert sizes(dataset) == [4 * 285, 285, 3 * 285]
    assert len(dataset.modalities) == (3 if read == "three" else 15)
    lengths = {n: x.shape[1] for n, x in dataset.parts["train"].features.items()}
    assert set(lengths.values()) == rest
    people = {"train": {1, 2, 3, 4}, "validation": {5}, "test": {6, 7, 8}}
    for part, who in people.items():
        own = np.isin(data["subject"], list(who))
        assert (dataset.parts[part].labels.numpy() == data["activity"][own]).all()
    assert ("resampled" in dataset.title) == (read in ("rates", "three"))


def test_each_person_validates_in_turn(arrays):
    data = arrays("dsads")
    dataset = sensors.dsads(data, "three")
    test = np.isin(data["subject"], [6, 7, 8])
    for seed in range(1, 8):
        person = (seed - 1) % 5 + 1
        parts = dataset.turn(seed).parts
        held = data["subject"] == person
        assert (parts["validation"].labels.numpy() == data["activity"][held]).all()
        rest = ~held & ~test
        assert (parts["train"].labels.numpy() == data["activity"][rest]).all()
        assert (parts["test"].labels.numpy() == data["activity"][test]).all()
        # Standardised by whoever trains.
        for name, x in parts["train"].features.items():
            assert x.mean().abs() < 0.05, name
    for name, x in dataset.turn(5).parts["train"].features.items():
        assert torch.equal(x, dataset.parts["train"].features[name])
        assert not torch.equal(x, dataset.turn(4).parts["train"].features[name])


def test_digits_share_no_image_recording_or_speaker(arrays):
    data = {
        f"{name}.{key}": values
        for name in ("fsdd", "mfeat")
        for key, values in arrays(name).items()
    }
    dataset = digits.digits(data)
    assert sizes(dataset) == [2000, 500, 500]
    assert dataset.modalities == {"image": 240, "speech": 160}
    seen = {}
    for part in PARTS:
        own = dataset.parts[part]
        images = {row.numpy().tobytes() for row in own.features["image"]}
        speech = {row.numpy().tobytes() for row in own.features["speech"]}
        assert len(speech) == len(own)
        for kind, found in (("image", images), ("speech", speech)):
            assert seen.setdefault(kind, set()).isdisjoint(found)
            seen[kind] |= found
        who = np.isin(data["fsdd.speaker"], digits.SPEAKERS[part])
        assert (own.labels.numpy() == data["fsdd.label"][who]).all()
        want = -(-data["fsdd.length"][who].astype(int) // digits.FOLD)
        assert (own.lengths["speech"].numpy() == want).all()
    speakers = list(itertools.chain.from_iterable(digits.SPEAKERS.values()))
    assert sorted(speakers) == list(range(6))
    # Every image of a part is used, with its own label.
    _, first = np.unique(data["mfeat.pix"], axis=0, return_index=True)
    first.sort()
    assert len(first) == 1994
    fold_of = data["mfeat.fold"][first]
    train = np.isin(fold_of, digits.IMAGE_FOLDS["train"])
    pixels = standardise(data["mfeat.pix"][first].astype(np.float64), train, axis=0)
    rows = [row.astype(np.float32).tobytes() for row in pixels]
    label_of = dict(zip(rows, data["mfeat.label"][first], strict=True))
    assert len(label_of) == 1994
    for part in PARTS:
        own = dataset.parts[part]
        rows = [row[0].numpy().tobytes() for row in own.features["image"]]
        assert [label_of[row] for row in rows] == own.labels.tolist()
        assert len(set(rows)) == np.isin(fold_of, digits.IMAGE_FOLDS[part]).sum()
    # A recording step by step.
    frames = data["fsdd.logmel_db"].astype(np.float64)
    heard = np.repeat(np.isin(data["fsdd.speaker"], digits.SPEAKERS["train"]), data["fsdd.length"])
    scaled = (frames - frames[heard].mean(axis=0)) / frames[heard].std(axis=0)
    first = scaled.clip(-5, 5)[: data["fsdd.length"][0]]
    part = PARTS[[0 in digits.SPEAKERS[p] for p in PARTS].index(True)]
    assert data["fsdd.speaker"][0] == 0
    steps = dataset.parts[part].features["speech"][0]
    np.testing.assert_allclose(steps.reshape(-1, 40)[: len(first)], first, atol=1e-4)
    columns = dataset.parts[part].summaries
    np.testing.assert_allclose(columns.values[0, columns.owner == 1][:40], first.mean(axis=0))


def test_rosmap_tests_on_whom_others_do(arrays):
    data = arrays("rosmap")
    dataset = omics.rosmap(data)
    assert sizes(dataset) == [196, 49, 106]
    assert dataset.modalities == dict.fromkeys(omics.OMICS, 200)
    assert (dataset.parts["test"].labels.numpy() == data["label_test"]).all()
    whole = dataset.whole().parts["train"]
    assert sorted(whole.labels.tolist()) == sorted(data["label_train"].tolist())
    for part in ("train", "validation"):
        assert abs(dataset.parts[part].labels.mean().item() - data["label_train"].mean()) < 0.02
    for name in omics.OMICS:
        own, usual = data[f"{name}_test"], dataset.parts["train"].features[name]
        assert usual.mean(dim=0).abs().max() < 0.1
        found = dataset.parts["test"].features[name][:, 0].numpy()
        # A straight line of what the archive holds, column by column.
        inside = (np.abs(found) < 5).all(axis=0)
        slopes = [np.corrcoef(found[:, k], own[:, k])[0, 1] for k in np.flatnonzero(inside)]
        assert min(slopes) > 0.999


def test_dsads_summaries_are_what_the_classical_methods_get(arrays):
    part = sensors.dsads(arrays("dsads"), "summaries").parts["train"]
    steps = torch.cat([x[:, 0] for x in part.features.values()], dim=1)
    table = torch.as_tensor(np.asarray(part.summaries.values), dtype=torch.float32)
    assert steps.shape == table.shape == (4 * 285, 15 * 12)
    # Each column standardised; what is clipped at 5 leaves the rest as it is.
    expected = (table - table.mean(dim=0)) / table.std(dim=0, unbiased=False)
    inside = expected.abs() < 5
    assert inside.float().mean() > 0.99
    assert torch.allclose(steps[inside], expected[inside], atol=1e-3)


def test_folding_keeps_the_values_in_time():
    series = np.arange(2 * 7 * 3).reshape(2, 7, 3)
    folded = sensors.fold(series, 5)
    assert folded.shape == (2, 2, 15)
    assert (folded[:, 0] == series[:, :5].reshape(2, -1)).all()
    assert (folded[:, 1, :6] == series[:, 5:].reshape(2, -1)).all()
    assert (folded[:, 1, 6:].reshape(2, 3, 3) == series[:, 6:]).all()


def test_mfeat_trains_on_200(arrays):
    data = arrays("mfeat")
    dataset = sensors.mfeat(data)
    assert sizes(dataset) == [200, 200, 400]
    assert dataset.modalities == {
        "fac": 216,
        "fou": 76,
        "kar": 64,
        "mor": 6,
        "pix": 240,
        "zer": 47,
    }
    test_labels = data["label"][data["fold"] < 2]
    assert (dataset.parts["test"].labels.numpy() == test_labels).all()


def test_icu2012_holds_every_event(arrays):
    data = arrays("icu2012")
    dataset = icu.icu2012(data)
    assert sizes(dataset) == [3200, 800, 4000]
    deaths = [int(dataset.parts[part].labels.sum()) for part in PARTS]
    assert deaths == [443, 111, 568]
    assert len(dataset.modalities) == 38
    present = torch.cat([dataset.parts[part].present for part in PARTS])
    absent = 1 - present[:, 1:].double().mean()
    assert round(100 * absent.item(), 1) == 28.5
    names = list(dataset.modalities)
    shares = dict(zip(names, 1 - present.double().mean(dim=0), strict=True))
    assert round(shares["HR"].item(), 2) == 0.02
    assert round(shares["TroponinI"].item(), 2) == 0.95
    assert shares[icu.STATIC] == 0
    # All events, and one step of what is known at admission for each stay.
    steps = sum(int(dataset.parts[part].steps.sum()) for part in PARTS)
    assert steps - 8000 == 3_245_708
    for part in PARTS:
        for name, x in dataset.parts[part].features.items():
            mask = dataset.parts[part].masks[name]
            assert x.isfinite().all()
            assert x.abs().max() <= icu.FURTHEST
            assert not x[~mask].any()
            assert (mask[:, 1:] <= mask[:, :-1]).all()
    # One stay, step by step.
    stay = int(np.flatnonzero(data["set"] == 1)[7])
    rows = slice(data["offset"][stay], data["offset"][stay + 1])
    hour = data["parameter"][rows] == names.index("HR") - 1
    minutes = torch.from_numpy(data["minute"][rows][hour].astype(np.float32))
    heart, count = dataset.parts["test"].features["HR"][7], len(minutes)
    torch.testing.assert_close(heart[:count, 1], 2 * minutes / 2880 - 1)
    gaps = torch.diff(minutes, prepend=torch.zeros(1))
    torch.testing.assert_close(heart[:count, 2], (gaps / 60).log1p() / math.log1p(48))
    values = torch.from_numpy(data["value"][rows][hour])
    assert (heart[:count, 0].argsort(stable=True) == values.argsort(stable=True)).all()
    # Its summaries, too.
    columns = dataset.parts["test"].summaries
    own = columns.values[7, columns.owner == names.index("HR")]
    want = [count, values.double().mean(), values.min(), values.max(), values[0], values[-1]]
    np.testing.assert_allclose(own, [float(value) for value in want])


def loaders() -> dict:
    return {
        "hydraulic": lambda data: sensors.hydraulic(data, "valve"),
        "dsads": lambda data: sensors.dsads(data, "rates"),
        "dsads-summaries": lambda data: sensors.dsads(data, "summaries"),
        "dsads-three": lambda data: sensors.dsads(data, "three"),
        "mfeat": sensors.mfeat,
        "rosmap": omics.rosmap,
        "icu2012": icu.icu2012,
    }


def spoil(name: str, data: dict[str, np.ndarray], part: str) -> dict[str, np.ndarray]:
    """Change the features of all samples that train does not have, or of train only."""
    if name == "icu2012":
        own = np.flatnonzero(data["set"] == 0)
        held = stratified(data["death"][own], icu.VALIDATION, icu.SPLIT_SEED)
        is_train = np.isin(np.arange(8000), own[~held])
        rows = np.repeat(is_train, np.diff(data["offset"]))
        static = {"static": np.where((is_train == (part == "train"))[:, None], 3, data["static"])}
        # Normal scores would not notice a monotone change.
        value = np.where(rows == (part == "train"), data["value"] * 7919 % 13, data["value"])
        return data | static | {"value": value}
    if name == "rosmap":
        held = stratified(data["label_train"], omics.VALIDATION, omics.SPLIT_SEED)
        result = dict(data)
        for omic in omics.OMICS:
            values = data[f"{omic}_train"].copy()
            values[~held if part == "train" else held] **= 2
            result[f"{omic}_train"] = values
            if part == "others":
                result[f"{omic}_test"] = data[f"{omic}_test"] ** 2
        return result
    train = {
        "hydraulic": lambda: data["run_split"] == 0,
        "dsads": lambda: data["subject"] <= 4,
        "mfeat": lambda: data["fold"] == 2,
    }[name]()
    chosen = train == (part == "train")
    result = dict(data)
    for key in sensors.VIEWS if name == "mfeat" else ("x",):
        values = data[key].astype(np.float32)
        values[chosen] = 1 + values[chosen] ** 2
        result[key] = values
    return result


@pytest.mark.parametrize("name", list(loaders()))
def test_training_tensors_know_nothing_of_validation_and_test(arrays, name):
    load, name = loaders()[name], name.partition("-")[0]
    data = arrays(name)
    plain = load(data).parts["train"]
    for part, same in (("others", True), ("train", False)):
        changed = load(spoil(name, data, part)).parts["train"]
        equal = [torch.equal(x, changed.features[n]) for n, x in plain.features.items()]
        # That somebody is ventilated is always a 1.
        assert all(equal) if same else sum(equal) <= 2


def test_summaries_of_events_equal_a_loop():
    rng = np.random.default_rng(0)
    sample = np.sort(rng.choice([0, 1, 3, 4], 23))
    values = rng.normal(size=23).astype(np.float32)
    table = icu.summarise(sample, values, 6)
    for row in range(6):
        own = values[sample == row].astype(np.float64)
        if not len(own):
            assert table[row, 0] == 0
            assert np.isnan(table[row, 1:]).all()
            continue
        want = [len(own), own.mean(), own.min(), own.max(), own[0], own[-1]]
        np.testing.assert_allclose(table[row], want)


def test_normal_scores_are_monotone_symmetric_and_bounded():
    score = icu.NormalScores(np.array([1.0, 2.0, 2.0, 3.0, 50.0]))
    found = score(np.array([-1e9, 1, 2, 3, 50, 1e9]))
    assert (np.diff(found) > 0).all()
    assert np.abs(found).max() <= icu.FURTHEST
    assert abs(icu.NormalScores(np.arange(101.0))(np.array([50.0]))[0]) < 1e-12


def test_a_fifth_is_held_out_of_every_class():
    labels = np.repeat([0, 1, 2], [50, 25, 10])
    held = stratified(labels, 0.2, 1)
    assert [int(held[labels == k].sum()) for k in range(3)] == [10, 5, 2]
    assert (held == stratified(labels, 0.2, 1)).all()
    assert (held != stratified(labels, 0.2, 2)).any()


def test_dropped_steps_are_some_of_the_real_ones_and_never_all():
    chance = torch.Generator().manual_seed(0)
    lengths = torch.tensor([0, 1, 2, 40] * 100)
    real = torch.arange(40) < lengths.unsqueeze(1)
    features = {"padded": torch.randn(400, 40, 2), "full": torch.randn(400, 3, 2)}
    batch = Batch(features, {"padded": real}, torch.ones(400, 2), torch.zeros(400))
    dropped = drop_steps(batch, 0.3, chance)
    assert dropped.features is features
    assert dropped.masks["full"].any(dim=1).all()
    padded = dropped.masks["padded"]
    assert not padded[~real].any()
    assert torch.equal(padded.any(dim=1), real.any(dim=1))
    assert torch.equal(padded[lengths == 1], real[lengths == 1])
    share = padded[lengths == 40].float().mean().item()
    assert share == pytest.approx(0.7, abs=0.02)
    # Of two steps one is left at least: 1 - 0.3 a step, and half of the 0.09 that would lose both.
    pairs = padded[lengths == 2][:, :2].float().mean().item()
    assert pairs == pytest.approx(0.745, abs=0.1)
    assert all(mask.all() for mask in drop_steps(batch, 0.0, chance).masks["full"])


def test_a_batch_is_trimmed_and_keeps_who_has_nothing():
    part = synthetic().parts["train"]
    absent = torch.flatten((part.lengths["b"] == 0).nonzero())[:3]
    batch = part.batch(absent)
    assert "b" not in batch.features
    assert not batch.present[:, 1].any()
    assert batch.features["a"].shape[1] == int(part.lengths["a"][absent].max())
    alone = part.batch(absent, ["b"])
    assert alone.features["b"].shape == (3, 1, 2)
    assert not alone.masks["b"].any()
    index = torch.tensor([5, 2, 11])
    batch = part.batch(index)
    for name, x in batch.features.items():
        real = batch.masks.get(name, torch.ones(x.shape[:2], dtype=torch.bool))
        assert torch.equal(real.sum(dim=1), part.lengths[name][index])
        assert torch.equal(x, part.features[name][index, : x.shape[1]])


# Metrics


def test_binary_metrics_equal_scikit_learn(subtests):
    rng = np.random.default_rng(0)
    for decimals in (1, 6):
        labels = rng.integers(0, 2, 211)
        scores = (rng.normal(size=211) + labels).round(decimals)  # one digit: many ties
        with subtests.test(decimals=decimals):
            found = ours.measure(Task("binary", 1, "AUROC"), scores, labels)
            assert found["AUROC"] == pytest.approx(sklearn_metrics.roc_auc_score(labels, scores))
            want = sklearn_metrics.average_precision_score(labels, scores)
            assert found["AUPRC"] == pytest.approx(want)
            want = sklearn_metrics.log_loss(labels, 1 / (1 + np.exp(-scores)))
            assert found["log loss"] == pytest.approx(want)


def test_score_1_equals_a_loop_and_its_threshold_is_the_best():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 67)
    scores = (rng.normal(size=67) + labels).round(1)

    def slow(threshold: float) -> float:
        told = [score >= threshold for score in scores]
        hits = sum(t and y == 1 for t, y in zip(told, labels, strict=True))
        return min(hits / sum(labels == 1), hits / max(1, sum(told)))

    best = ours.best_threshold(scores, labels)
    assert ours.score_1(scores, labels, best) == pytest.approx(max(slow(t) for t in set(scores)))
    for threshold in (-9.0, -0.5, 0.0, 0.8, 9.0):
        assert ours.score_1(scores, labels, threshold) == pytest.approx(slow(threshold))
    task = Task("binary", 1, "AUROC")
    assert ours.measure(task, scores, labels, 0.8)["score 1"] == pytest.approx(slow(0.8))


def test_binary_metrics_without_a_class_are_nan_and_never_chosen():
    task = Task("binary", 1, "AUROC")
    found = ours.measure(task, np.array([0.1, 0.2]), np.array([0, 0]), 0.0)
    assert math.isnan(found["AUROC"])
    assert math.isnan(found["AUPRC"])
    assert ours.better(task, found) < ours.better(task, found | {"AUROC": 0.0})


def test_class_metrics_equal_scikit_learn():
    rng = np.random.default_rng(2)
    labels, scores = rng.integers(0, 4, 97), rng.normal(size=(97, 4))
    found = ours.measure(Task("classes", 4, "accuracy"), scores, labels)
    guesses = scores.argmax(axis=1)
    shares = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    assert found["accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(labels, guesses))
    want = sklearn_metrics.balanced_accuracy_score(labels, guesses)
    assert found["macro accuracy"] == pytest.approx(want)
    assert found["log loss"] == pytest.approx(sklearn_metrics.log_loss(labels, shares))


def test_sentiment_metrics_are_those_of_mult():
    rng = np.random.default_rng(3)
    labels = (rng.normal(size=131) * 2).round(1).clip(-3, 3)
    labels[:9] = 0.0
    guesses = labels + rng.normal(size=131)
    found = ours.measure(Task("regression", 1, "MAE"), guesses, labels)
    # As in MulT's eval_metrics.py, with exclude_zero=True.
    kept = np.array([i for i, label in enumerate(labels) if label != 0])
    sevens = [np.round(np.clip(x, a_min=-3.0, a_max=3.0)) for x in (guesses, labels)]
    assert found["MAE"] == pytest.approx(np.mean(np.absolute(guesses - labels)))
    assert found["correlation"] == pytest.approx(np.corrcoef(guesses, labels)[0][1])
    assert found["Acc-7"] == pytest.approx(np.sum(sevens[0] == sevens[1]) / len(labels))
    told, true = guesses[kept] > 0, labels[kept] > 0
    assert found["Acc-2"] == pytest.approx(sklearn_metrics.accuracy_score(true, told))
    want = sklearn_metrics.f1_score(true, told, average="weighted")
    assert found["F1"] == pytest.approx(want)
    want = sklearn_metrics.f1_score(labels >= 0, guesses >= 0, average="weighted")
    assert found["F1 with 0"] == pytest.approx(want)
    assert ours.sentiment(np.zeros(131), labels)["correlation"] == 0


def test_the_interval_is_students():
    values = [0.81, 0.84, 0.79, 0.86, 0.83]
    mean, half = ours.interval(values)
    assert mean == pytest.approx(statistics.fmean(values))
    # 2.776 is the table's 97.5 % quantile with 4 degrees of freedom.
    assert half == pytest.approx(2.776445 * statistics.stdev(values) / math.sqrt(5), rel=1e-6)
    assert ours.interval([0.5]) == (0.5, math.inf)


# CMU-MOSI


def made_up_mosi() -> dict:
    rng = np.random.default_rng(4)
    content = {}
    for split, count in {"train": 7, "valid": 5, "test": 3}.items():
        own = {
            "text": rng.normal(size=(count, 6, 4)).astype(np.float32),
            "audio": rng.normal(size=(count, 6, 5)),
            "vision": 100 + rng.normal(size=(count, 6, 2)).astype(np.float32),
            "labels": rng.uniform(-3, 3, (count, 1, 1)).astype(np.float32),
            "id": np.array([[f"video_{k}"] for k in range(count)], dtype=object),
        }
        own["text"][0, :2] = own["vision"][0, :2] = own["audio"][0, :2] = 0  # padded in front
        own["vision"][1, 4:] = 0
        own["audio"][2, 3, 1] = -np.inf
        content[split] = own
    return content


@pytest.mark.parametrize("protocol", range(2, 6))
def test_mosi_is_read_from_the_pickle_of_mult(tmp_path, protocol):
    content = made_up_mosi()
    path = tmp_path / "mosi" / "mosi_data.pkl"
    path.parent.mkdir()
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    assert catalog.locate("mosi", tmp_path) == (path,)
    dataset = catalog.load("mosi", tmp_path)
    assert sizes(dataset) == [7, 5, 3]
    assert dataset.modalities == {"text": 4, "audio": 5, "vision": 2}
    part = dataset.parts["train"]
    np.testing.assert_allclose(part.labels, content["train"]["labels"].reshape(-1))
    assert part.lengths["text"].tolist() == [4, 6, 6, 6, 6, 6, 6]
    assert part.lengths["vision"].tolist() == [4, 4, 6, 6, 6, 6, 6]
    np.testing.assert_array_equal(part.features["text"][0, :4], content["train"]["text"][0, 2:])
    real = part.features["vision"][part.masks["vision"]]
    assert real.mean(dim=0).abs().max() < 1e-3
    assert part.features["audio"].isfinite().all()


def test_mosi_statistics_are_those_of_train(tmp_path):
    content, path = made_up_mosi(), tmp_path / "mosi_data.pkl"
    path.write_bytes(pickle.dumps(content))
    plain = mosi.mosi(path).parts["train"]
    content["test"]["vision"] *= 3
    content["valid"]["audio"] += 5
    path.write_bytes(pickle.dumps(content))
    changed = mosi.mosi(path).parts["train"]
    assert all(torch.equal(x, changed.features[name]) for name, x in plain.features.items())


class Malicious:
    def __reduce__(self):
        return (exec, ("raise SystemExit('a pickle ran code')",))


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps({"train": Malicious()}),
        b"cos\nsystem\n(S'true'\ntR.",
        b"cbuiltins\ngetattr\n(cnumpy\nndarray\nS'dump'\ntR.",
        pickle.dumps(Path()),
        pickle.dumps(torch.zeros(1)),
        pickle.dumps(np.load),
    ],
    ids=["exec", "system", "getattr", "path", "torch", "function"],
)
def test_a_pickle_that_asks_for_more_than_arrays_is_refused(content):
    with pytest.raises(pickle.UnpicklingError, match="numpy arrays and plain containers only"):
        mosi.restricted_load(content)


def test_a_file_of_another_form_is_refused(tmp_path):
    content, path = made_up_mosi(), tmp_path / "mosi_data.pkl"
    content["test"]["audio"] = content["test"]["audio"][:2]
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=r"`audio` of `test`.*\(2, 6, 5\)"):
        mosi.mosi(path)
    del content["test"]["audio"]
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=r"\['audio'\] in `test`"):
        mosi.mosi(path)
    path.write_bytes(pickle.dumps({"train": {}}))
    with pytest.raises(ValueError, match="'labels'"):
        mosi.mosi(path)


# Methods


@pytest.mark.parametrize("kind", ["classes", "binary", "regression"])
def test_every_method_trains_and_is_tested(kind, subtests):
    dataset = synthetic(kind)
    for name, method in methods(dataset).items():
        with subtests.test(method=name):
            if method.build is None:
                trained = train(method, dataset, (1e-2, 8), trial=0, seed=1)
                assert math.isfinite(
                    evaluate(trained, method, dataset)["test"][dataset.task.primary]
                )
                continue
            torch.manual_seed(0)
            model = build(method, dataset, 8)
            network = Network(model, list(method.modalities(dataset)), list(dataset.modalities))
            learner = Learner(network, method, dataset, 1e-2, 0)
            before = [parameter.clone() for parameter in model.parameters()]
            batches = learner.batches()
            assert all(learner.step(index) for index in batches[:2])
            moved = [
                not torch.equal(old, new)
                for old, new in zip(before, model.parameters(), strict=True)
            ]
            # What reads only itself cannot move at the library's start: attention over one step.
            assert sum(moved) > len(moved) / 2
            scores = network(dataset.parts["test"], None)
            want = (64, 3) if kind == "classes" else (64,)
            assert scores.shape == want
            assert np.isfinite(scores).all()


def test_methods_are_told_apart_and_have_equal_trials():
    known = methods(synthetic())
    assert len({method_key(method) for method in known.values()}) == len(known)
    assert {method.group for method in known.values()} == set(cost.TIMED) | {
        *("reference", "single", "order"),
    }
    assert {f"alone: {name}" for name in "abc"} <= known.keys()
    assert "GRF, gradient modulation" not in methods(synthetic("regression"))
    # One thing changed, in which order, or read alone: these take the settings of ours.
    ours = {m.group for m in known.values() if m.tuned_as == GRF}
    assert ours == {"order", "ablation", "single"}
    assert {m.group for m in known.values() if m.tuned_as is None} == {
        *("reference", "baseline", "grf"),
    }


def test_every_ablation_differs_from_ours():
    modalities = synthetic().modalities
    for change in (ABLATIONS | MODES).values():
        assert any(methods(synthetic())[GRF].options.get(k) != v for k, v in change.items())
        assert isinstance(
            grf(opening="first")(Size(modalities, 8, 0.0, TASK)), GatedRecurrentFusion
        )


WIDTHS = {"a": 3, "b": 5, "c": 2}


def three_modalities(gone: str | None = None):
    """Everything unaligned and padded; some samples lack some, and all of them one."""
    generator = torch.Generator().manual_seed(0)
    lengths = {"a": [4, 1, 3, 2], "b": [2, 5, 1, 3], "c": [1, 1, 2, 2]}
    masks = {n: torch.arange(5) < torch.tensor(long)[:, None] for n, long in lengths.items()}
    drawn = {n: torch.randn(4, 5, width, generator=generator) for n, width in WIDTHS.items()}
    features = {n: (x * masks[n][..., None]).double() for n, x in drawn.items()}
    present = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 1, 0], [1, 1, 0]]).bool()
    if gone is not None:
        del features[gone], masks[gone]
        present[:, list(WIDTHS).index(gone)] = False
    return {"features": features, "masks": masks, "present": present}


def default_form(without: str | None = None) -> GatedRecurrentFusion:
    """Build the default form in float64 with scales that are known, a part taken away."""
    torch.manual_seed(1)
    fusion = GatedRecurrentFusion(WIDTHS, embed_dim=8, dropout=0.5, dtype=torch.float64)
    for scale in fusion.scales.values():
        scale.rms.fill_(2.0)
    if without is not None:
        take_away(fusion, without)
    return fusion.eval()


def test_what_is_taken_away_is_gone():
    call = three_modalities()
    whole = default_form()
    # A weight of 0 on a half of the columns takes that half away.
    for part, half in (("mean", slice(8)), ("maximum", slice(8, 16))):
        for summary in whole.summaries.values():
            summary.output.weight.data[:, half] = 0.0
        assert torch.equal(default_form(part)(**call), whole(**call))
        whole = default_form()
        assert not torch.allclose(default_form(part)(**call), whole(**call))
    twice = {name: 2 * x for name, x in call["features"].items()}
    unscaled = default_form("scale")
    torch.testing.assert_close(unscaled(**call), whole(**call | {"features": twice}))
    assert not torch.allclose(unscaled(**call), whole(**call))
    plain = default_form("norm")
    for name, summary in plain.summaries.items():
        norm = whole.summaries[name].norm
        summary.output.register_forward_hook(lambda _, __, out, norm=norm: norm(out))
    assert torch.equal(plain(**call), whole(**call))
    # Dropout stays in front of what is left.
    plain, half = default_form(), default_form("maximum")
    for name, summary in half.summaries.items():
        summary.output.weight.data[:, 8:] = 0.0
        plain.summaries[name].output.weight.data[:, 8:] = 0.0
    found = []
    for fusion in (plain.train(), half.train()):
        torch.manual_seed(2)
        found.append(fusion(**call))
    assert torch.equal(*found)


@pytest.mark.parametrize("gone", [None, "a"])
def test_the_first_modality_comes_in_other_units(gone):
    call, whole, other = three_modalities(gone), default_form(), default_form()
    features, rest = call.pop("features"), call
    multiply(other, 100.0)
    scaled = {name: 100.0 * x if name == "a" else x for name, x in features.items()}
    assert torch.equal(other(features, **rest), whole(scaled, **rest))
    # What is left out stays left out.
    assert torch.equal(other(features, **rest), whole(features, **rest)) == (gone == "a")


def test_what_is_taken_apart_is_built_as_named():
    size, known = Size(WIDTHS, 8, 0.1, TASK), methods(synthetic())
    for name, options in ABLATIONS.items():
        changed = str(known[name].build(size))
        # Other units are no part of the model.
        assert (changed != str(known[GRF].build(size))) == (options.keys() != {"times"}), name
    for name in ("scores multiplied", "scores averaged"):
        assert known[name].training.modality_dropout == 0.0
    others = [
        m for m in known.values() if "scores" not in m.name and m.group in ("baseline", "grf")
    ]
    assert {method.training.modality_dropout for method in others} == {0.5}


def test_validation_asks_for_gaps_too():
    dataset = synthetic("binary")
    part, asked = dataset.parts["validation"], []

    def predictor(_part, present):
        asked.append(present)
        of_first = part.features["a"].sum(dim=(1, 2))
        return (of_first if present is None else of_first * present[:, 0]).numpy()

    known = methods(dataset)
    found, threshold = validate(predictor, known[GRF], dataset)
    assert asked[0] is None
    assert torch.equal(asked[1], keep(part.present, dataset.half, VALIDATION_DRAW))
    labels = part.labels.numpy()
    both = [
        ours.measure(dataset.task, predictor(part, present), labels, threshold)
        for present in (None, asked[1])
    ]
    assert threshold == ours.best_threshold(predictor(part, None).astype(float), labels)
    assert found == {name: (both[0][name] + both[1][name]) / 2 for name in both[0]}
    # One modality alone has none that could be missing.
    asked.clear()
    assert validate(predictor, known["alone: a"], dataset) == (both[0], threshold)
    assert asked == [None]


def test_orders_are_permutations_the_declared_first():
    three = orders(["a", "b", "c"])
    assert sorted(three) == sorted(itertools.permutations("abc"))
    many = orders([f"m{k}" for k in range(9)])
    assert len(many) == len(set(many)) == 21
    assert all(sorted(order) == sorted(many[0]) for order in many)
    assert three[0] == tuple("abc")
    assert many[0] == tuple(f"m{k}" for k in range(9))


def test_what_a_modality_says_alone_is_what_the_model_says_without_the_others():
    dataset = synthetic("binary")
    for name in (GRF, "GRF, residual form, sequence", "concatenation, late"):
        model = build(methods(dataset)[name], dataset, 8).eval()
        batch = dataset.parts["test"].batch(torch.arange(13))
        alone = model.alone(batch, list(dataset.modalities))
        for k, modality in enumerate(dataset.modalities):
            present = torch.zeros_like(batch.present)
            present[:, k] = batch.present[:, k]
            with torch.no_grad():
                want, _ = model(batch, present)
            has = present[:, k]
            assert not alone[modality][:, 0].any()
            torch.testing.assert_close(alone[modality][has, 1], want[has])


def test_order_and_seed_decide_a_training():
    dataset = synthetic()

    def trained(training: Training, seed: int) -> dict[str, float]:
        method = Method("m", "grf", grf(), {}, training)
        return train(method, dataset, (1e-2, 8), trial=0, seed=seed).validation

    plain = trained(Training(), 1)
    assert trained(Training(), 1) == plain
    assert trained(Training(), 2) != plain
    assert trained(Training(order=3), 1) != plain
    assert trained(Training(order="random"), 1) != plain
    assert trained(Training(intermediate=1.0), 1) != plain
    assert trained(Training(modality_dropout=0.0), 1) != plain


def test_the_best_epoch_counts_and_patience_ends():
    dataset = synthetic()
    object.__setattr__(dataset, "budget", Budget(12, 32, ((1e-2, 8),), patience=2))
    method = methods(dataset)["concatenation, late"]
    found = train(method, dataset, (3e-2, 8), trial=0, seed=0)
    assert found.validation["accuracy"] == max(found.history)
    best = found.history.index(max(found.history))
    assert len(found.history) <= 12
    assert len(found.history) >= min(12, best + 1)
    assert validate(found.predictor, method, dataset) == (found.validation, found.threshold)


def test_parts_are_joined_one_behind_the_other():
    parts = synthetic().parts
    train_part, other = parts["train"], parts["test"]
    longer = {name: F.pad(x, (0, 0, 0, 2)) for name, x in other.features.items()}
    masks = {name: F.pad(x, (0, 2)) for name, x in other.masks.items()}
    for second in (other, Part(longer, masks, other.labels, other.summaries)):
        joined = train_part.join(second)
        assert len(joined) == len(train_part) + len(second)
        for part, start in ((train_part, 0), (second, len(train_part))):
            index = torch.arange(len(part))
            got, want = joined.batch(index + start), part.batch(index)
            torch.testing.assert_close(got.features, want.features, rtol=0, atol=0)
            torch.testing.assert_close(got.masks, want.masks, rtol=0, atol=0)
            assert torch.equal(got.present, want.present)
            assert torch.equal(got.labels, want.labels)
            np.testing.assert_array_equal(
                joined.summaries.values[start : start + len(part)], part.summaries.values
            )


def test_a_refit_trains_on_train_and_validation_for_the_epochs_that_were_chosen():
    dataset = synthetic("binary")
    object.__setattr__(dataset, "budget", dataclasses.replace(dataset.budget, epochs=1))
    method = methods(dataset)["concatenation, late"]
    chosen = {"trial": 0, "seed": 1, "epochs": 1, "threshold": 0.25}
    found = refit(method, dataset, (1e-2, 8), **chosen)
    assert (found.validation, found.history, found.threshold) == ({}, [], 0.25)
    # The same as a training of one epoch whose training part is both.
    joined = dataset.parts["train"].join(dataset.parts["validation"])
    parts = dict(dataset.parts, train=joined)
    whole = dataclasses.replace(dataset, parts=parts)
    want = train(method, whole, (1e-2, 8), trial=0, seed=1)
    part = dataset.parts["test"]
    np.testing.assert_array_equal(found.predictor(part, None), want.predictor(part, None))
    less = train(method, dataset, (1e-2, 8), trial=0, seed=1)
    assert not np.array_equal(found.predictor(part, None), less.predictor(part, None))
    linear = methods(dataset)["logistic regression on summaries"]
    fitted = refit(linear, dataset, (1e-2, 8), **chosen).predictor
    of_both, of_train = (train(linear, d, (1e-2, 8), trial=0, seed=1) for d in (whole, dataset))
    scores = fitted(part, None)
    np.testing.assert_array_equal(scores, of_both.predictor(part, None))
    assert not np.array_equal(scores, of_train.predictor(part, None))


def test_what_is_reported_is_refitted_as_the_chosen_trial_says(tmp_path, monkeypatch):
    dataset = synthetic("binary")
    budget = dataclasses.replace(dataset.budget, epochs=3, refit=True)
    object.__setattr__(dataset, "budget", budget)
    asked = []

    def spy(*args, **options):
        asked.append(options)
        return refit(*args, **options)

    monkeypatch.setattr(running, "refit", spy)
    store = Store(tmp_path / "runs.jsonl")
    settings = running.Settings(seeds=2)
    names = ("logistic regression on summaries", "concatenation, late")
    describe(dataset, store)
    for name in names:
        job = running.jobs_of(dataset, settings, store)[name]
        while waiting := job.pending():
            for owner, unit in waiting:
                for record in owner.do(unit):
                    store.add(record)
    records = [r for r in store.records.values() if "method" in r]
    assert len([r for r in records if r["stage"] == "final"]) == len(asked) == 4
    for name, options in zip((names[0], names[0], names[1], names[1]), asked, strict=True):
        own = [r for r in records if r["method"] == name]
        best = running.choose(dataset.task, [r for r in own if r["stage"] == "trial"])
        assert options["epochs"] == int(np.argmax(best["history"])) + 1
        assert options["threshold"] == best["threshold"] is not None
    text = "".join(tables.pages(summarise(store)).values())
    assert "trained on train and validation together" in text


# Missing modalities


def test_the_curve_keeps_what_it_says():
    present = torch.rand(500, 7, generator=torch.Generator().manual_seed(5)) < 0.7
    present[:, 0] = True
    previous = present
    for gone in range(7):
        kept = keep(present, gone, draw=3)
        assert (kept <= present).all()
        want = present.sum(dim=1).clamp(max=7 - gone)
        assert torch.equal(kept.sum(dim=1), want)
        # What is gone stays gone as more go.
        assert (kept <= previous).all()
        previous = kept
    assert torch.equal(keep(present, 0, 0), present)
    assert torch.equal(keep(present, 3, 1), keep(present, 3, 1))
    assert not torch.equal(keep(present, 3, 1), keep(present, 3, 2))
    everything = torch.ones(20000, 4, dtype=torch.bool)
    shares = keep(everything, 3, 0).double().mean(dim=0)
    assert (shares - 0.25).abs().max() < 0.02


def test_points_of_the_curve():
    assert curve(3) == (0, 1, 2)
    assert curve(17) == (0, 1, 2, 4, 8, 16)
    assert curve(38) == (0, 1, 2, 4, 8, 16, 24, 32, 37)


def test_missing_modalities_have_no_influence():
    dataset = synthetic()
    part = dataset.parts["test"]
    present = keep(part.present, 1, 0)
    garbled = {
        name: torch.where(present[:, k, None, None], x, 99.0)
        for k, (name, x) in enumerate(part.features.items())
    }
    other = Part(garbled, part.masks, part.labels, part.summaries)
    for name in (GRF, "MulT", "gradient boosting on summaries"):
        trained = train(methods(dataset)[name], dataset, (1e-2, 8), trial=0, seed=1)
        found, want = (trained.predictor(p, present) for p in (other, part))
        np.testing.assert_allclose(found, want, atol=1e-5)
        assert not np.allclose(want, trained.predictor(part, None))


def test_summaries_without_a_modality():
    columns = {"a": np.array([[1.0, 2.0], [3.0, 4.0]]), "b": np.array([[5.0], [6.0]])}
    summaries = summaries_of(columns)
    present = torch.tensor([[True, False], [False, True]])
    want = [[1, 2, np.nan], [np.nan, np.nan, 6]]
    np.testing.assert_array_equal(summaries.without(present), want)


# Costs


def test_the_count_of_mults_operations_equals_the_counters():
    modalities, lengths, batch = {"a": 3, "b": 5, "c": 2, "d": 7}, (4, 7, 1, 5), 2
    model = MulT(modalities, embed_dim=12, num_heads=2, num_layers=1, stack_dim=8).eval()
    model.requires_grad_(requires_grad=False)
    features = {
        name: torch.randn(batch, time, width)
        for (name, width), time in zip(modalities.items(), lengths, strict=True)
    }
    attention = torch.nn.attention.SDPBackend.MATH
    with torch.nn.attention.sdpa_kernel(attention), FlopCounterMode(display=False) as counter:
        model(features)
    assert batch * cost.mult_operations(modalities, lengths, 12, 8) == counter.get_total_flops()


def test_parameters_are_counted_without_making_them():
    dataset = synthetic()
    for name in (GRF, "MulT", "concatenation, late"):
        method = methods(dataset)[name]
        made = method.build(Size(dataset.modalities, 8, 0.1, dataset.task))
        assert parameters(method, dataset, 8) == sum(p.numel() for p in made.parameters())


# Runs


ONLY = (
    "synthetic-binary,concatenation, late",
    "synthetic-binary,GRF*one-way",
    "synthetic-binary,grad*",
)


def call(out: Path, *more: str) -> str:
    only = itertools.chain.from_iterable(("--only", only) for only in ONLY)
    command.main(["--out", str(out), "--quick", "--no-progress", "--no-costs", *only, *more])
    return (out / "results.md").read_text("utf-8")


def test_a_killed_run_resumes_and_gives_the_same_table(tmp_path, monkeypatch):
    want = call(tmp_path / "whole")
    trained, calls = running.train, []

    def until_killed(*args, **options):
        calls.append(args)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return trained(*args, **options)

    monkeypatch.setattr(running, "train", until_killed)
    with pytest.raises(KeyboardInterrupt):
        call(tmp_path / "killed")
    runs = tmp_path / "killed" / "runs.jsonl"
    text = runs.read_text("utf-8")
    runs.write_text(text[:-40], "utf-8")  # killed while it wrote a line
    before = len(text.splitlines()) - 1
    monkeypatch.setattr(running, "train", trained)
    assert call(tmp_path / "killed") == want
    lines = runs.read_text("utf-8").splitlines()
    whole = (tmp_path / "whole" / "runs.jsonl").read_text("utf-8").splitlines()
    # One line more: the half one. What was there was not run again.
    assert len(lines) == len(whole) + 1
    assert lines[:before] == text.splitlines()[:before]
    monkeypatch.setattr(running, "train", None)
    assert call(tmp_path / "killed") == want
    assert call(tmp_path / "killed", "--report") == want


def test_the_table_holds_what_was_run(tmp_path):
    table = call(tmp_path)
    records = Store(tmp_path / "runs.jsonl").records.values()
    finals = [r for r in records if r["stage"] == "final" and r["method"] == "concatenation, late"]
    assert [final["seed"] for final in finals] == [1, 2]
    mean, half = ours.interval([final["test"]["AUROC"] for final in finals])
    assert f"| concatenation, late | {mean:.3f} ± {half:.3f} |" in table
    assert not any("test" in record for record in records if record["stage"] == "trial")
    trials = [r for r in records if r["stage"] == "trial" and r["method"] == "concatenation, late"]
    assert len(trials) == 2
    best = max(trials, key=lambda r: (r["validation"]["AUROC"], -r["validation"]["log loss"]))
    assert {final["trial"] for final in finals} == {best["trial"]}
    results = json.loads((tmp_path / "results.json").read_text("utf-8"))
    (only,) = results
    row = next(row for row in only["rows"] if row["name"] == "concatenation, late")
    assert row["test"]["AUROC"]["mean"] == pytest.approx(mean)
    assert list(row["missing"]) == ["0", "1", "2"]


def test_one_thing_changed_takes_the_settings_of_ours_and_counts_its_own_weights(tmp_path):
    only = ["--only", "synthetic-binary,GRF, two layers"]
    command.main(["--out", str(tmp_path), "--quick", "--no-progress", *only])
    store = Store(tmp_path / "runs.jsonl")
    ran = {(r["stage"], r["method"]) for r in store.records.values() if "method" in r}
    assert ran == {("trial", GRF), ("final", "GRF, two layers"), ("cost", "GRF, two layers")}
    (summary,) = summarise(store)
    (row,) = summary.rows
    assert (row.name, row.seeds) == ("GRF, two layers", 2)
    assert row.step > 0
    trial = next(r for r in store.records.values() if r["stage"] == "trial")
    assert row.parameters > trial["parameters"]


def test_a_page_gets_what_is_generated_between_its_marks(tmp_path):
    docs = tmp_path / "docs"
    docs.mkdir()
    page = docs / "evidence.md"
    page.write_text("# A\n\n{}\nold\n{}\n\nrest\n".format(*evidence.MARKS), "utf-8")
    only = [f"synthetic-*,{name}" for name in (GRF, "concatenation, pooled", "weighted sum*")]
    only = itertools.chain.from_iterable(("--only", one) for one in only)
    options = ["--out", str(tmp_path), "--quick", "--no-progress", "--no-costs", *only]
    command.main([*options, "--docs", str(docs)])
    once = page.read_text("utf-8")
    summaries = summarise(Store(tmp_path / "runs.jsonl"))
    text = evidence.evidence(summaries)
    begin, end = evidence.MARKS
    assert once == f"# A\n\n{begin}\n\n{text}\n{end}\n\nrest\n"
    names = ("synthetic-classes", "synthetic-binary", "synthetic-regression")
    for name in names:
        own = (docs / "evidence" / f"{name}.md").read_text("utf-8")
        assert own == tables.pages(summaries)[name]
        assert all(f"## {said}" in own for said in tables.ENCODED.values())
        assert f"| [{name}](evidence/{name}.md), " in text
        assert f"| [{name}-encoded](evidence/{name}.md), " in text
    picture = docs / "assets" / evidence.PICTURE
    drawn = picture.read_bytes()
    command.main([*options, "--report", "--docs", str(docs)])
    assert page.read_text("utf-8") == once
    assert picture.read_bytes() == drawn
    page.write_text("# A\n", "utf-8")
    with pytest.raises(ValueError, match="expected a page with <!-- from the runs -->"):
        command.main([*options, "--report", "--docs", str(docs)])


def test_the_evidence_page_shows_the_runs_that_are_kept():
    root = Path(__file__).resolve().parents[1]
    page = (root / "docs" / "evidence.md").read_text("utf-8")
    summaries = summarise(Store(root / "benchmarks" / "results" / "quality" / "runs.jsonl"))
    assert insert(page, evidence.MARKS, evidence.evidence(summaries)) == page
    texts = tables.pages(summaries)
    found = {path.stem: path for path in (root / "docs" / "evidence").glob("*.md")}
    assert found.keys() == texts.keys()
    assert all(found[name].read_text("utf-8") == text for name, text in texts.items())


def test_steps_are_timed(tmp_path):
    options = ["--out", str(tmp_path), "--quick", "--no-progress"]
    command.main([*options, "--only", "synthetic-binary,concatenation, late"])
    (row,) = (
        row
        for summary in summarise(Store(tmp_path / "runs.jsonl"))
        for row in summary.rows
        if row.costs
    )
    assert 0 < row.costs["inference"]["median"] < row.step


@pytest.mark.slow
def test_a_trial_run_on_all_real_data(tmp_path, data_dir):
    names = list(catalog.ARCHIVES)
    quick = {"concatenation, late", "logistic regression on summaries"}
    # The tables stand in one order, whatever ran first.
    only = [("--only", f"{name},{method}") for name in reversed(names) for method in quick]
    options = ["--data", str(data_dir), "--out", str(tmp_path), "--quick", "--no-progress"]
    command.main([*options, "--no-costs", *itertools.chain.from_iterable(only)])
    results = json.loads((tmp_path / "results.json").read_text("utf-8"))
    assert [result["about"]["dataset"] for result in results] == names
    for result in results:
        assert {row["name"] for row in result["rows"]} == quick
        assert all(row["seeds"] == 2 for row in result["rows"])


@pytest.mark.parametrize("most", [7, 8])
def test_how_long_a_training_takes_is_reckoned(tmp_path, monkeypatch, most):
    dataset = synthetic("classes")
    budget = dataclasses.replace(dataset.budget, epochs=5, batch=len(dataset.parts["train"]) // 3)
    dataset = dataclasses.replace(dataset, budget=budget)
    monkeypatch.setattr(running, "MANY_PARAMETERS", 1000)
    monkeypatch.setattr(running, "MOST_MINUTES", most)
    # 5 epochs of 3 batches of 32 s are 8 minutes.
    monkeypatch.setattr(running.steps, "seconds", lambda *_: {"MulT": 32.0, "GRF": 0.5})
    store = Store(tmp_path / "runs.jsonl")
    method = methods(dataset)["MulT"]
    job = running.Job(dataset, method, running.Settings(), store)
    assert job.too_large() == (most == 7)
    reasons = [record["reason"] for record in store.records.values()]
    said = "0 million parameters at width 8, a training step MulT 32.00 s, GRF 0.50 s, all epochs 8"
    assert reasons == ([f"{said} minutes"] if most == 7 else [])


@pytest.mark.parametrize(
    ("limits", "outcome"),
    [
        ({"MOST_PARAMETERS": 1500}, r"Not run: MulT, 0 million parameters at width 8\."),
        (
            {"MOST_MINUTES": 0},
            r"Not run: MulT, 0 mill.* step MulT \d\.\d\d s, GRF \d\.\d\d s, all epochs 0 minutes",
        ),
        ({}, r"\| MulT \| \d\.\d{3} ± \d\.\d{3} \|"),
    ],
    ids=["weights", "minutes", "neither"],
)
def test_what_is_too_large_is_not_run(tmp_path, monkeypatch, limits, outcome):
    for name, value in ({"MANY_PARAMETERS": 1000} | limits).items():
        monkeypatch.setattr(running, name, value)
    call = ["--quick", "--no-progress", "--no-costs", "--only", "synthetic-classes,MulT"]
    for _ in range(2):
        command.main(["--out", str(tmp_path), *call])
        table = (tmp_path / "results.md").read_text("utf-8")
        assert re.search(outcome, table)
        assert "6 pairwise stacks of one layer, at width 8" in table
    assert (tmp_path / "runs.jsonl").read_text("utf-8").count('"skipped"') == bool(limits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--only", "nothing"], "no data set nothing"),
        (["--only", "mosi", "--data", "."], "no data of mosi"),
        (["--jobs", "0"], "must be at least 1"),
        (["--seeds", "0"], "must be at least 1"),
    ],
)
def test_the_command_line_says_what_is_wrong(tmp_path, capsys, options, message):
    with pytest.raises(SystemExit):
        command.main(["--out", str(tmp_path), *options])
    assert message in capsys.readouterr().err
