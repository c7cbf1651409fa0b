"""Rivals of the quality benchmark: their formulas, and that gaps have no influence on them."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.common.author import sinusoids
from benchmarks.quality import predictions
from benchmarks.quality.datasets.dataset import Batch, Task
from benchmarks.quality.datasets.synthetic import synthetic
from benchmarks.quality.methods import BASELINES, POOLED, methods
from benchmarks.quality.metrics import auroc, measure
from benchmarks.quality.models.builders import Size
from benchmarks.quality.models.model import LateScores, Model
from benchmarks.quality.models.rivals import (
    BottleneckTransformer,
    GatedMultimodalUnit,
    LatentTransformer,
    Layer,
    StatisticsConcatenation,
)
from benchmarks.quality.network import build
from benchmarks.quality.tables import compare
from benchmarks.quality.train import objective
from grf_fusion.baselines import ConcatFusion

WIDTHS = {"a": 3, "b": 5, "c": 2}
CLASSES, BINARY = Task("classes", 4, "accuracy"), Task("binary", 1, "AUROC")
NUMBER = Task("regression", 1, "MAE", higher=False)
OWN = {
    "latents": lambda: LatentTransformer(WIDTHS, embed_dim=8, num_heads=2),
    "bottlenecks": lambda: BottleneckTransformer(WIDTHS, embed_dim=8, num_heads=2),
    "unit": lambda: GatedMultimodalUnit(WIDTHS, embed_dim=8),
    "statistics": lambda: StatisticsConcatenation(WIDTHS, embed_dim=8),
    "product": lambda: LateScores(WIDTHS, embed_dim=8, dropout=0.0, task=CLASSES, how="product"),
    "mean": lambda: LateScores(WIDTHS, embed_dim=8, dropout=0.0, task=CLASSES, how="mean"),
}
each_own = pytest.mark.parametrize("name", OWN)


def make(name: str) -> torch.nn.Module:
    torch.manual_seed(3)
    return OWN[name]().double()


def call(garbage: float = 0.0) -> dict:
    """Everything unaligned and padded; some samples lack some modalities, the last all of them."""
    generator = torch.Generator().manual_seed(0)
    lengths = {"a": [4, 1, 3, 2, 2], "b": [2, 5, 1, 3, 1], "c": [1, 1, 2, 2, 1]}
    masks = {n: torch.arange(5) < torch.tensor(long)[:, None] for n, long in lengths.items()}
    present = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 1, 0], [1, 1, 0], [0, 0, 0]]).bool()
    features = {}
    for k, (name, width) in enumerate(WIDTHS.items()):
        real = (masks[name] & present[:, k, None])[..., None]
        x = torch.randn(5, 5, width, generator=generator).double()
        features[name] = torch.where(real, x, garbage)
    return {"features": features, "masks": masks, "present": present}


@each_own
def test_gaps_have_no_influence(name: str) -> None:
    module = make(name).eval()
    clean = module(**call())
    for garbage in (1e3, math.nan):
        torch.testing.assert_close(module(**call(garbage)), clean, rtol=0, atol=1e-12)
    assert not clean[-1].any()
    assert clean[:-1].any(dim=1).all()
    # Each sample by itself, trimmed, is what it is in the batch.
    given = call()
    for k in range(4):
        own = {
            n: x[k : k + 1, : int(given["masks"][n][k].sum())] for n, x in given["features"].items()
        }
        alone = module(own, masks={}, present=given["present"][k : k + 1])
        torch.testing.assert_close(alone[0], clean[k], rtol=0, atol=1e-12)


@each_own
def test_what_nobody_has_may_be_left_out(name: str) -> None:
    module, given = make(name).eval(), call()
    for k, gone in enumerate(WIDTHS):
        present = given["present"].clone()
        present[:, k] = False
        want = module(given["features"], masks=given["masks"], present=present)
        rest = {n: x for n, x in given["features"].items() if n != gone}
        masks = {n: x for n, x in given["masks"].items() if n != gone}
        found = module(rest, masks=masks, present=present)
        torch.testing.assert_close(found, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in OWN if name != "mean"])
def test_gradients_are_finite_and_reach_every_parameter(name: str) -> None:
    module = make(name).train()
    module(**call(math.nan)).square().sum().backward()
    for key, parameter in module.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key


def test_a_layer_is_attention_and_a_network_with_residuals() -> None:
    torch.manual_seed(0)
    layer = Layer(8, num_heads=2, dropout=0.0).double()
    x, memory = torch.randn(2, 3, 8).double(), torch.randn(2, 4, 8).double()
    readable = torch.tensor([[True, True, False, True], [False] * 4])
    found = layer(x, memory, readable)
    rows = memory[:1, [0, 1, 3]]
    q, k, v = (
        F.linear(y, w, b).unflatten(-1, (2, 4)).transpose(1, 2)
        for y, w, b in zip(
            (layer.query_norm(x[:1]), layer.memory_norm(rows), layer.memory_norm(rows)),
            layer.attention.in_proj_weight.chunk(3),
            layer.attention.in_proj_bias.chunk(3),
            strict=True,
        )
    )
    weights = (q @ k.transpose(2, 3) / 2).softmax(dim=-1)
    read = layer.attention.out_proj((weights @ v).transpose(1, 2).flatten(2))
    first = x[:1] + read
    torch.testing.assert_close(found[:1], first + layer.feedforward(first))
    # Where there is nothing to read, nothing is read.
    torch.testing.assert_close(found[1:], x[1:] + layer.feedforward(x[1:]))


def one_sample(given: dict, sample: int) -> dict[str, Tensor]:
    """The real steps of what a sample has."""
    return {
        name: given["features"][name][sample, given["masks"][name][sample]]
        for k, name in enumerate(WIDTHS)
        if given["present"][sample, k]
    }


def test_statistics_are_those_of_the_real_steps() -> None:
    module, given = make("statistics").eval(), call()
    found = module(**given)
    for sample in range(4):
        steps = one_sample(given, sample)
        parts = []
        for name, width in WIDTHS.items():
            x = steps.get(name, torch.zeros(1, width).double())
            spread = x.std(dim=0, unbiased=False).clamp(min=1e-4)
            parts += [x.mean(dim=0), spread, x.amax(dim=0)]
        torch.testing.assert_close(found[sample], module.mix(torch.cat(parts)))


def test_latents_read_all_steps_and_then_each_other() -> None:
    module, given = make("latents").eval(), call()
    found = module(**given)
    for sample in range(4):
        steps = [
            module.projections[name](x) + sinusoids(len(x), 8)
            for name, x in one_sample(given, sample).items()
        ]
        memory, latents = torch.cat(steps)[None], module.latents[None]
        for read, mix in zip(module.reads, module.mixes, strict=True):
            latents = read(latents, memory, None)
            latents = mix(latents, latents, None)
        torch.testing.assert_close(found[sample], module.norm(latents)[0].mean(dim=0))


def test_modalities_meet_in_the_bottleneck_only() -> None:
    module, given = make("bottlenecks").eval(), call()
    found = module(**given)
    for sample in range(4):
        steps = {
            name: module.projections[name](x) + sinusoids(len(x), 8)
            for name, x in one_sample(given, sample).items()
        }
        shared = module.bottlenecks
        for k in range(2):
            met = []
            for name, x in steps.items():
                both = torch.cat((shared, x))[None]
                both = module.layers[name][k](both, both, None)[0]
                steps[name], token = both[4:], both[:4]
                met.append(token)
            shared = torch.stack(met).mean(dim=0)
        ends = [module.norms[name](x).mean(dim=0) for name, x in steps.items()]
        torch.testing.assert_close(found[sample], torch.stack(ends).mean(dim=0))


def test_all_vectors_decide_each_gate_of_the_multimodal_unit() -> None:
    module, given = make("unit"), call()
    found = module(**given)
    for sample in range(4):
        own = one_sample(given, sample)
        vectors = [
            torch.cat((own[n].mean(dim=0), own[n].amax(dim=0)))
            if n in own
            else torch.zeros(2 * width).double()
            for n, width in WIDTHS.items()
        ]
        gates = module.gates(torch.cat(vectors)).sigmoid().chunk(3)
        terms = [
            gate * module.contents[name](v).tanh()
            for name, gate, v in zip(WIDTHS, gates, vectors, strict=True)
            if name in own
        ]
        torch.testing.assert_close(found[sample], torch.stack(terms).sum(dim=0))


@pytest.mark.parametrize("task", [CLASSES, BINARY, NUMBER], ids=lambda task: task.kind)
@pytest.mark.parametrize("how", ["product", "mean"])
def test_scores_of_single_models_are_multiplied_or_averaged(task: Task, how: str) -> None:
    torch.manual_seed(1)
    fusion = LateScores(WIDTHS, embed_dim=8, dropout=0.0, task=task, how=how).double()
    given = call()
    found = fusion(**given)
    for sample in range(4):
        scores = torch.stack(
            [
                fusion.heads[name](fusion.models[name]({name: x[None]}))[0]
                for name, x in one_sample(given, sample).items()
            ]
        )
        if task.kind == "regression":
            want = scores.mean(dim=0)
        elif task.kind == "classes":
            likely = scores.softmax(dim=-1)
            want = (likely.prod(dim=0) if how == "product" else likely.mean(dim=0)).log()
        elif how == "product":
            want = scores.sum(dim=0)
        else:
            want = scores.sigmoid().mean(dim=0).logit()
        torch.testing.assert_close(found[sample], want)


@pytest.mark.parametrize("kind", ["classes", "binary", "regression"])
def test_single_models_learn_each_by_itself(kind: str) -> None:
    dataset = synthetic(kind)
    method = methods(dataset)["scores averaged"]
    torch.manual_seed(0)
    model = build(method, dataset, 8).eval()
    assert model.head is None
    batch = dataset.parts["train"].batch(torch.arange(31))
    present = batch.present.clone()
    present[3] = False
    loss = objective(model, method, batch, present, None)
    losses = []
    for k, name in enumerate(dataset.modalities):
        own = model.fusion.models[name]
        masks = {name: batch.masks[name]} if name in batch.masks else None
        scores = model.fusion.heads[name](own({name: batch.features[name]}, masks=masks))
        here, labels = present[:, k], batch.labels
        if kind == "classes":
            each = F.cross_entropy(scores, labels, reduction="none")
        elif kind == "binary":
            each = F.binary_cross_entropy_with_logits(scores[:, 0], labels, reduction="none")
        else:
            each = (scores[:, 0] - labels).abs()
        losses.append(each[here])
    torch.testing.assert_close(loss, torch.cat(losses).mean())
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


# The model


def test_the_model_is_a_fusion_and_one_linear_layer() -> None:
    dataset = synthetic()
    batch = dataset.parts["test"].batch(torch.arange(9))
    for name in (POOLED, "GRF"):
        model = build(methods(dataset)[name], dataset, 8).eval()
        assert type(model.head) is torch.nn.Linear
        scores, _ = model(batch, batch.present)
        fused = model.fusion(batch.features, masks=batch.masks, present=batch.present)
        assert torch.equal(scores, model.head(fused))
        assert {key.partition(".")[0] for key in model.state_dict()} == {"fusion", "head"}


def test_the_same_encoders_stand_before_every_method() -> None:
    dataset = synthetic().encode()
    assert dataset.name == "synthetic-classes-encoded"
    batch = dataset.parts["test"].batch(torch.arange(9))
    known = methods(dataset)
    assert not any(method.build is None for method in known.values())
    for name in ("GRF", *BASELINES):
        model = build(known[name], dataset, 8).eval()
        for modality, encoder in model.encoders.items():
            kinds = [type(layer) for layer in encoder]
            assert kinds == [torch.nn.Linear, torch.nn.GELU, torch.nn.Linear]
            assert encoder[0].in_features == dataset.modalities[modality]
        scores, _ = model(batch, batch.present)
        encoded = {n: model.encoders[n](x) for n, x in batch.features.items()}
        plain = Model(model.fusion, width=8, task=dataset.task).eval()
        plain.head = model.head
        want, _ = plain(Batch(encoded, *batch[1:]), batch.present)
        torch.testing.assert_close(scores, want)


def test_the_pooled_form_is_the_networks_reference_of_strength() -> None:
    """Twenty lines of plain PyTorch, as people write them."""
    fusion = BASELINES[POOLED](Size(WIDTHS, 8, 0.0, CLASSES)).double()
    assert isinstance(fusion, ConcatFusion)
    given, pooled = call(), []
    for k, name in enumerate(WIDTHS):
        real = (given["masks"][name] & given["present"][:, k, None])[..., None]
        h = F.gelu(fusion.encoders[name](F.gelu(fusion.projections[name](given["features"][name]))))
        h = h.masked_fill(~real, 0.0)
        largest = h.masked_fill(~real, -1e4).amax(1).masked_fill(~real.any(1), 0.0)
        pooled += [h.sum(1) / real.sum(1).clamp(min=1), largest]
    want = fusion.mix(torch.cat(pooled, -1))
    assert [type(layer).__name__ for layer in fusion.mix] == ["Linear", "GELU", "Dropout", "Linear"]
    assert fusion.mix[0].out_features == 16
    torch.testing.assert_close(fusion(**given)[:-1], want[:-1])


# Predictions


def test_predictions_are_kept_in_few_characters() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 101)
    scores = rng.normal(size=(101, 4))
    packed = predictions.pack(CLASSES, scores, labels)
    assert len(packed) <= 2 * 13
    right = predictions.unpack(CLASSES, packed, 101)
    assert (right == (scores.argmax(axis=1) == labels)).all()
    sure, died = rng.normal(size=101).round(1), rng.integers(0, 2, 101)
    ranks = predictions.unpack(BINARY, predictions.pack(BINARY, sure, died), 101)
    assert auroc(ranks, died) == auroc(sure, died)
    assert (np.argsort(ranks, kind="stable") == np.argsort(sure, kind="stable")).all()
    guesses, values = rng.normal(size=(2, 101))
    errors = predictions.unpack(NUMBER, predictions.pack(NUMBER, guesses, values), 101)
    np.testing.assert_allclose(errors, np.abs(guesses - values), rtol=1e-6)
    assert (predictions.unpack_labels(predictions.pack_labels(labels)) == labels).all()


# Comparisons


def about(task: Task, labels: np.ndarray) -> dict:
    return {
        "task": task._asdict(),
        "samples": {"test": len(labels)},
        "labels": predictions.pack_labels(labels),
    }


def test_weighted_metrics_are_those_of_samples_that_are_repeated() -> None:
    rng = np.random.default_rng(1)
    labels, scores = rng.integers(0, 3, 61), rng.normal(size=(61, 3))
    times = rng.integers(0, 4, (5, 61)).astype(np.float32)
    died, sure = labels == 1, scores[:, 0].round(1)
    wanted = {
        "accuracy": (Task("classes", 3, "accuracy"), scores, labels),
        "macro accuracy": (Task("classes", 3, "macro accuracy"), scores, labels),
        "AUROC": (BINARY, sure, died.astype(int)),
        "MAE": (NUMBER, sure, scores[:, 1]),
    }
    for metric, (task, said, true) in wanted.items():
        values = predictions.unpack(task, predictions.pack(task, said, true), 61)
        found = compare.weighted(task, values, true, times.T)
        for k, counts in enumerate(times.astype(int)):
            rows = np.repeat(np.arange(61), counts)
            want = measure(task, said[rows], true[rows], 0.0)[metric]
            assert found[k] == pytest.approx(want, abs=1e-6), metric


def test_a_class_that_no_replicate_has_drawn_says_nothing() -> None:
    task, labels = Task("classes", 3, "macro accuracy"), np.array([0, 0, 1, 2])
    weights = np.array([[1.0, 1, 1, 0]], np.float32).T
    found = compare.weighted(task, np.array([1.0, 0, 1, 0]), labels, weights)
    assert found == pytest.approx([0.75])


def of_seeds(rows: list[np.ndarray], bootstrap: compare.Bootstrap) -> dict[int, np.ndarray]:
    """Replicates of each seed of given right or wrong answers, the same in two draws."""
    packed = [np.packbits(row.astype(bool)).tobytes().hex() for row in rows]
    return {seed: bootstrap.replicate([text, text]) for seed, text in enumerate(packed, 1)}


def test_ahead_only_where_the_interval_of_the_difference_excludes_0() -> None:
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 3, 400)
    bootstrap = compare.Bootstrap(about(Task("classes", 3, "accuracy"), labels))
    base = [rng.random(400) < 0.7 for _ in range(5)]
    better = [row | (rng.random(400) < 0.3) for row in base]
    one, other = of_seeds(better, bootstrap), of_seeds(base, bootstrap)
    found = bootstrap.difference(one, other)
    want = np.mean([a.mean() - b.mean() for a, b in zip(better, base, strict=True)])
    assert found.mean == pytest.approx(want, abs=1e-6)
    assert found.low < found.mean < found.high
    assert found.verdict == "ahead"
    # As wide as the normal approximation with the same samples and seeds in both.
    gaps = np.array(better, float) - np.array(base, float)
    error = np.sqrt(gaps.mean(axis=0).var() / 400 + gaps.mean(axis=1).var() / 5)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.25)
    back = bootstrap.difference(other, one)
    assert back.verdict == "behind"
    np.testing.assert_allclose((back.low, back.high), (-found.high, -found.low))
    same = bootstrap.difference(other, other)
    assert same == (0, 0, 0)
    assert same.verdict == "level"
    # Only the seeds of both count.
    few = bootstrap.difference({k: one[k] for k in (2, 3)}, other)
    want = np.mean([better[k].mean() - base[k].mean() for k in (1, 2)])
    assert few.mean == pytest.approx(want, abs=1e-6)


def test_seeds_that_differ_widen_the_interval() -> None:
    labels = np.zeros(400, int)
    bootstrap = compare.Bootstrap(about(Task("classes", 3, "accuracy"), labels))
    shares = (0.95, 0.5, 0.9, 0.45, 0.925)
    spread = of_seeds([np.arange(400) < share * 400 for share in shares], bootstrap)
    level = of_seeds([np.arange(400) < 0.70 * 400] * 5, bootstrap)
    assert bootstrap.difference(spread, level).verdict == "level"
    steady = of_seeds([np.arange(400) < 0.745 * 400] * 5, bootstrap)
    found = bootstrap.difference(steady, level)
    assert found.mean == pytest.approx(bootstrap.difference(spread, level).mean, abs=1e-6)
    assert found.verdict == "ahead"


def test_less_error_is_ahead() -> None:
    task = Task("regression", 1, "MAE", higher=False)
    bootstrap = compare.Bootstrap(about(task, np.zeros(50)) | {"labels": None})
    small, large = (
        {1: bootstrap.replicate([predictions.pack(task, np.full(50, error), np.zeros(50))])}
        for error in (0.5, 0.75)
    )
    found = bootstrap.difference(small, large)
    assert found == pytest.approx((0.25, 0.25, 0.25))
    assert found.verdict == "ahead"
