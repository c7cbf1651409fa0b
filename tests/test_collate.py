"""`collate`: any pattern of holes becomes one call that fuses each sample as by itself."""

import itertools
import pickle
import random
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.collate import CASES, Case, draw
from benchmarks.collate import by_hand as made_by_hand
from grf_fusion import Batch, GatedRecurrentFusion, ShapeError, collate
from grf_fusion._inputs import batch as _batch
from grf_fusion._inputs import lengths as _lengths
from grf_fusion._inputs import samples as checks
from grf_fusion.baselines import (
    ConcatFusion,
    CrossModalAttentionFusion,
    MulT,
    WeightedSumFusion,
)
from hosts import counters
from properties import assert_close, assert_same_bits, randomise
from refusal import assert_refused
from strategies import dtypes, examples, seeds

WIDTHS = {"text": 7, "image": 5, "audio": 11}
LENGTHS = (1, 2, 3, 5, 13)
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
Sample = Mapping[str, Any]

FUSIONS: dict[str, Callable[..., nn.Module]] = {
    "residual": partial(GatedRecurrentFusion, WIDTHS, embed_dim=8, num_heads=2),
    "paper": partial(GatedRecurrentFusion, WIDTHS, embed_dim=8, num_heads=2, form="paper"),
    "concat": partial(ConcatFusion, WIDTHS, embed_dim=8),
    "weighted sum": partial(WeightedSumFusion, WIDTHS, embed_dim=8),
    "cross-modal": partial(CrossModalAttentionFusion, WIDTHS, embed_dim=8, num_heads=2),
    "mult": partial(MulT, WIDTHS, embed_dim=8, num_heads=2, num_layers=1),
}


@cache
def fusion_of(name: str, dtype: torch.dtype) -> nn.Module:
    fusion = FUSIONS[name](dtype=dtype).eval()
    randomise(fusion, seed=3)
    return fusion


@st.composite
def sample_lists(draw: st.DrawFn, dtype: torch.dtype) -> list[Sample]:
    """Samples that have each modality as a tensor, an array or a vector, or lack it somehow."""
    generator = torch.Generator().manual_seed(draw(seeds()))
    kinds = ("tensor", "array", "vector", "missing", "None", "no steps")
    samples: list[Sample] = []
    for _ in range(draw(st.integers(1, 4))):
        sample: dict[str, Any] = {}
        for name, width in WIDTHS.items():
            kind = draw(st.sampled_from(kinds))
            time = 0 if kind == "no steps" else draw(st.sampled_from(LENGTHS))
            value = torch.randn(time, width, generator=generator, dtype=dtype)
            if kind == "array":
                sample[name] = value.numpy()
            elif kind == "vector":
                sample[name] = value[0]
            elif kind != "missing":
                sample[name] = None if kind == "None" else value
        samples.append(sample)
    return samples


def sequence(sample: Sample, name: str, dtype: torch.dtype) -> Tensor:
    """What a sample has, ``(time, width)``; nothing is no steps."""
    value = sample.get(name)
    if value is None:
        return torch.zeros(0, WIDTHS[name], dtype=dtype)
    return torch.as_tensor(value).reshape(-1, WIDTHS[name])


def by_hand(samples: Sequence[Sample], multiple: int, dtype: torch.dtype) -> Batch:
    """The same batch, step by step."""
    features: dict[str, Tensor] = {}
    masks: dict[str, Tensor] = {}
    has: dict[str, list[bool]] = {}
    for name, width in WIDTHS.items():
        rows = [sequence(sample, name, dtype).tolist() for sample in samples]
        time = 1
        while time % multiple or any(len(row) > time for row in rows):
            time += 1
        padded = [row + [[0.0] * width] * (time - len(row)) for row in rows]
        features[name] = torch.tensor(padded, dtype=dtype)
        masks[name] = torch.tensor([[step < len(row) for step in range(time)] for row in rows])
        has[name] = [row != [] for row in rows]
    present = torch.tensor([list(row) for row in zip(*has.values(), strict=True)])
    return Batch(features, masks, present, {})


def flat(batch: Batch) -> dict[str, Tensor]:
    """All tensors of a batch by name."""
    named = {f"features.{name}": value for name, value in batch.features.items()}
    named |= {f"masks.{name}": value for name, value in batch.masks.items()}
    extras = {k: v for k, v in batch.extras.items() if isinstance(v, Tensor)}
    return named | {"present": batch.present} | extras


def fuse(fusion: nn.Module, batch: Batch) -> Tensor:
    with torch.no_grad():
        return fusion(batch.features, masks=batch.masks, present=batch.present)


def alone(fusion: nn.Module, sample: Sample, dtype: torch.dtype) -> Tensor:
    """Fuse a sample by itself: its sequences and nothing else, no mask and no padding."""
    there = {name: sequence(sample, name, dtype).unsqueeze(0) for name in WIDTHS}
    there = {name: value for name, value in there.items() if value.shape[1]}
    masks = None
    if not there:
        there = {"text": torch.zeros(1, 1, WIDTHS["text"], dtype=dtype)}
        masks = {"text": torch.zeros(1, 1, dtype=torch.bool)}
    with torch.no_grad():
        return fusion(there, masks=masks)


def assert_collates(
    samples: Sequence[Sample], name: str, dtype: torch.dtype, multiple: int
) -> None:
    batch = collate(samples, WIDTHS, pad_to_multiple_of=multiple)
    assert list(batch.features) == list(batch.masks) == list(WIDTHS)
    expected = by_hand(samples, multiple, batch.features["text"].dtype)
    assert_same_bits(flat(batch), flat(expected))
    if any(sequence(sample, n, dtype).numel() for sample in samples for n in WIDTHS):
        assert {value.dtype for value in batch.features.values()} == {dtype}
    else:
        batch = collate(samples, WIDTHS, pad_to_multiple_of=multiple, dtype=dtype)
    fusion = fusion_of(name, dtype)
    each = torch.cat([alone(fusion, sample, dtype) for sample in samples])
    assert_close({"": fuse(fusion, batch)}, {"": each}, TOLERANCE[dtype])


@pytest.mark.parametrize("name", FUSIONS)
@given(data=st.data())
@examples(75)
def test_a_batch_is_fused_as_each_sample_alone(name: str, data: st.DataObject) -> None:
    dtype = data.draw(dtypes())
    samples = data.draw(sample_lists(dtype))
    assert_collates(samples, name, dtype, data.draw(st.sampled_from((1, 2, 8))))


@pytest.mark.slow
def test_ten_thousand_patterns_of_holes() -> None:
    chance = random.Random(0)  # noqa: S311 (no secret)
    for _ in range(10_000):
        dtype = chance.choice((torch.float32, torch.float64))
        samples: list[dict[str, Any]] = [{} for _ in range(chance.randint(1, 4))]
        for sample, (name, width) in itertools.product(samples, WIDTHS.items()):
            time = chance.choice((-1, 0, 1, 2, 3, 5))
            if time >= 0:
                sample[name] = torch.randn(time, width, dtype=dtype)
        multiple = chance.choice((1, 2, 8))
        batch = collate(samples, WIDTHS, pad_to_multiple_of=multiple, dtype=dtype)
        assert_same_bits(flat(batch), flat(by_hand(samples, multiple, dtype)))
        fusion, number = fusion_of("residual", dtype), chance.randrange(len(samples))
        expected = alone(fusion, samples[number], dtype)
        assert_close({"": fuse(fusion, batch)[number, None]}, {"": expected}, TOLERANCE[dtype])


def test_every_pattern_of_two_samples() -> None:
    full = {name: torch.randn(3, width) for name, width in WIDTHS.items()}
    subsets = [c for n in range(4) for c in itertools.combinations(WIDTHS, n)]
    for first, second in itertools.product(subsets, repeat=2):
        samples = [{name: full[name] for name in names} for names in (first, second)]
        assert_collates(samples, "residual", torch.float32, 1)


def test_by_hand_can_differ() -> None:
    samples = [{"text": torch.ones(2, 7)}, {"text": torch.ones(3, 7)}]
    with pytest.raises(AssertionError):
        assert_same_bits(
            flat(by_hand(samples[:1] * 2, 1, torch.float32)),
            flat(by_hand(samples, 1, torch.float32)),
        )


def test_structure_does_not_depend_on_the_batch() -> None:
    full = {name: torch.randn(4, width) for name, width in WIDTHS.items()}
    for sample in (full, {}, {"audio": full["audio"]}):
        batch = collate([sample, {}], WIDTHS, pad_to_multiple_of=4)
        assert {name: value.shape for name, value in batch.features.items()} == {
            name: (2, 4, width) for name, width in WIDTHS.items()
        }
        assert {name: value.shape for name, value in batch.masks.items()} == dict.fromkeys(
            WIDTHS, (2, 4)
        )


def test_declared_as_pairs_and_by_a_fusion() -> None:
    samples = [{"text": torch.randn(2, 7)}, {"audio": torch.randn(3, 11)}]
    fusion = FUSIONS["residual"]()
    for modalities in (list(WIDTHS.items()), fusion.modalities):
        assert_same_bits(flat(collate(samples, modalities)), flat(collate(samples, WIDTHS)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_is_kept_and_nobody_has_it_takes_that_of_the_others(dtype: torch.dtype) -> None:
    batch = collate([{"image": torch.ones(2, 5, dtype=dtype)}, {}], WIDTHS)
    assert {value.dtype for value in batch.features.values()} == {dtype}
    assert {value.dtype for value in batch.masks.values()} == {torch.bool}
    assert collate([{}], WIDTHS).features["text"].dtype is torch.get_default_dtype()


@pytest.mark.parametrize("given", ["uint8", "int64", "bool", "float16", "float64"])
def test_features_are_converted(given: str) -> None:
    samples = [{"text": np.ones((2, 7), given)}, {"text": torch.ones(3, 7)}]
    batch = collate(samples, WIDTHS, dtype=torch.float64)
    assert {value.dtype for value in batch.features.values()} == {torch.float64}
    expected = collate([{"text": torch.ones(2, 7)}, samples[1]], WIDTHS).features["text"]
    assert torch.equal(batch.features["text"], expected.double())


def test_a_single_sample_is_not_copied() -> None:
    text, audio = torch.randn(3, 7), np.random.default_rng(0).random((4, 11))
    batch = collate([{"text": text, "audio": audio}], WIDTHS)
    assert batch.features["text"].data_ptr() == text.data_ptr()
    assert batch.features["audio"].data_ptr() == audio.__array_interface__["data"][0]
    assert batch.features["image"].shape == (1, 1, 5)


@given(st.data())
def test_samples_are_not_changed(data: st.DataObject) -> None:
    samples = data.draw(sample_lists(torch.float32))
    before = pickle.dumps(samples)
    batch = collate(samples, WIDTHS, dtype=torch.float64)
    for value in flat(batch).values():
        value.zero_()
    assert pickle.dumps(samples) == before


def test_arrays_that_tensors_cannot_share() -> None:
    array = np.arange(21, dtype="float32").reshape(3, 7)
    locked = array.copy()
    locked.flags.writeable = False
    samples = [{"text": array[::-1]}, {"text": locked}, {"text": array[:, ::-1]}]
    text = collate(samples, WIDTHS).features["text"]
    assert np.array_equal(text.numpy(), np.stack([sample["text"] for sample in samples]))
    single = collate([{"text": locked}], WIDTHS).features["text"]
    single.zero_()
    assert locked.any()


def test_gradients_go_back_to_the_samples() -> None:
    text = torch.randn(3, 7, requires_grad=True)
    batch = collate([{"text": text}, {"text": torch.randn(5, 7)}], WIDTHS)
    batch.features["text"].sum().backward()
    assert text.grad is not None
    assert torch.equal(text.grad, torch.ones(3, 7))


def test_extras_are_stacked_or_listed() -> None:
    samples = [
        {
            "class": number,
            "score": np.float64(number),
            "known": number > 0,
            "kind": np.int64(number),
            "box": torch.full((2, 3), number),
            "weights": np.full(4, float(number), "float32"),
            "id": f"sample {number}",
        }
        for number in range(3)
    ]
    keys = list(samples[0])
    extras = collate(samples, WIDTHS, extras=keys).extras
    assert list(extras) == keys
    assert extras["id"] == ["sample 0", "sample 1", "sample 2"]
    expected = {
        "class": torch.tensor([0, 1, 2]),
        "score": torch.tensor([0.0, 1.0, 2.0]),
        "known": torch.tensor([False, True, True]),
        "kind": torch.tensor([0, 1, 2]),
        "box": torch.tensor([0, 1, 2])[:, None, None].expand(3, 2, 3),
        "weights": torch.tensor([0.0, 1.0, 2.0])[:, None].expand(3, 4),
    }
    assert_same_bits({k: extras[k] for k in expected}, expected)


def test_extras_may_be_absent() -> None:
    assert collate([{}], WIDTHS).extras == {}


@pytest.fixture
def forgetful() -> Iterator[None]:
    """Forget which warnings were given, before and after."""
    checks._tell_cut.cache_clear()
    yield
    checks._tell_cut.cache_clear()


@pytest.mark.usefixtures("forgetful")
def test_what_is_too_long_is_cut_and_said_once() -> None:
    samples = [{"text": torch.randn(5, 7), "audio": torch.randn(4, 11)}, {"text": torch.ones(2, 7)}]
    cut = partial(collate, modalities=WIDTHS, max_length={"text": 3}, too_long="cut")
    said = "collate: sequences of 'text' longer than max_length=3 are cut."
    with pytest.warns(UserWarning, match=f"^{said}$") as found:
        batch = cut(samples)
    assert len(found) == 1
    assert found[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cut(samples)
    assert torch.equal(batch.features["text"][0], samples[0]["text"][:3])
    assert batch.masks["text"].sum(dim=1).tolist() == [3, 2]
    assert batch.features["audio"].shape == (2, 4, 11)


@pytest.mark.usefixtures("forgetful")
def test_a_fixed_length_and_nan_behind_the_cut() -> None:
    text = torch.randn(9, 7)
    text[6:] = float("nan")
    options: dict[str, Any] = {"max_length": 6, "pad_to_multiple_of": 6, "check_finite": True}
    with pytest.warns(UserWarning, match="are cut"):
        batch = collate([{"text": text}, {}], WIDTHS, too_long="cut", **options)
    assert {value.shape[1] for value in batch.features.values()} == {6}
    assert batch.features["text"].isfinite().all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_nan_is_kept_unless_refused(value: float, dtype: torch.dtype) -> None:
    samples = [{}, {"text": torch.zeros(3, 7, dtype=dtype)}]
    samples[1]["text"][1:, 2] = value
    kept = collate(samples, WIDTHS).features["text"][1]
    assert_same_bits({"": kept}, {"": samples[1]["text"]})
    said = "expected `samples[1]['text']` to be finite, got NaN or infinity at step 1."
    with pytest.raises(ShapeError, match=f"^{re.escape('collate: ' + said)}$"):
        collate(samples, WIDTHS, check_finite=True)


def test_a_multiple_by_modality() -> None:
    samples = [{name: torch.ones(3, width) for name, width in WIDTHS.items()}]
    batch = collate(samples, WIDTHS, pad_to_multiple_of={"audio": 4})
    assert {k: v.shape[1] for k, v in batch.features.items()} == {"text": 3, "image": 3, "audio": 4}


def a_batch() -> Batch:
    samples = [{"text": torch.randn(3, 7), "y": 1, "id": "a"}, {"y": 2, "id": "b"}]
    return collate(samples, WIDTHS, extras=["y", "id"])


def test_a_batch_moves() -> None:
    batch = a_batch()
    moved = batch.to("meta", non_blocking=True)
    assert {value.device.type for value in flat(moved).values()} == {"meta"}
    assert len(flat(moved)) == len(flat(batch)) == 8
    assert moved.extras["id"] == ["a", "b"]
    same = batch.to(torch.device("cpu"))
    assert all(x is y for x, y in zip(flat(same).values(), flat(batch).values(), strict=True))


@pytest.fixture
def remade(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_batch, "REMAKING", ("meta",))


@pytest.mark.usefixtures("remade")
def test_lengths_of_a_moved_batch_are_known() -> None:
    """So that a GPU computes only real steps; masks that somebody has changed are copied."""
    batch = a_batch()
    for _ in range(2):
        # A worker of a data loader sends a copy.
        moved = batch.to("meta")
        known = {name: _lengths._noted[mask][0] for name, mask in moved.masks.items()}
        assert {name: of.host for name, of in known.items()} == {
            name: tuple(mask.sum(dim=1).tolist()) for name, mask in batch.masks.items()
        }
        assert all(of.exact for of in known.values())
        batch = pickle.loads(pickle.dumps(batch))  # noqa: S301 (our own bytes)
    batch.masks["text"][0, 0] = False
    holes = batch.to("meta").masks["text"]
    assert holes.is_meta
    assert holes not in _lengths._noted
    again = moved.to(torch.device("meta"))
    assert all(again.masks[name] is mask for name, mask in moved.masks.items())


@pytest.mark.usefixtures("remade")
@pytest.mark.parametrize(
    "mask",
    [
        None,
        torch.full((2, 3), 0.5),
        torch.tensor([[1, 0, 0], [1, 1, 0]]),
        torch.tensor([[9, 0, 0], [1, 1, 0]]),
        torch.ones(3, dtype=torch.bool),
        torch.ones(2, 3, 1, dtype=torch.bool),
        torch.ones(2, 0, dtype=torch.bool),
        torch.ones(2, 3, dtype=torch.bool, device="meta"),
    ],
    ids=["none", "weights", "integers", "counts", "one axis", "three axes", "no time", "moved"],
)
def test_a_mask_of_somebody_else_is_moved_as_it_is(mask: Tensor | None) -> None:
    batch = a_batch()
    batch.masks["text"] = mask
    moved = batch.to("meta").masks["text"]
    if mask is None:
        assert moved is None
    else:
        assert (moved.shape, moved.dtype, moved.is_meta) == (mask.shape, mask.dtype, True)
        assert moved not in _lengths._noted


def test_memory_is_pinned_where_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[int] = []

    def pin(tensor: Tensor) -> Tensor:
        pinned.append(tensor.data_ptr())
        return tensor.clone()

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    batch = a_batch()
    assert not pinned
    again = batch.pin_memory()
    assert pinned == [value.data_ptr() for value in flat(batch).values()]
    assert_same_bits(flat(again), flat(batch))
    assert again.extras["id"] == ["a", "b"]


def test_a_batch_is_pickled_and_saved(tmp_path) -> None:
    batch = a_batch()
    torch.save(batch, tmp_path / "batch.pt")
    for again in (pickle.loads(pickle.dumps(batch)), torch.load(tmp_path / "batch.pt")):  # noqa: S301
        assert type(again) is Batch
        assert_same_bits(flat(again), flat(batch))
        assert again.extras["id"] == ["a", "b"]
    assert b"_inputs" not in pickle.dumps(batch)


@pytest.mark.slow
@pytest.mark.parametrize("context", ["fork", "spawn"])
# Of fork itself, in a process with threads.
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_workers_collate(context: str) -> None:
    samples = [{"text": torch.randn(n + 1, 7), "y": n} for n in range(5)]
    samples[2]["text"] = None
    collate_fn = partial(collate, modalities=WIDTHS, extras=["y"])
    loader = DataLoader(
        samples, 2, collate_fn=collate_fn, num_workers=2, multiprocessing_context=context
    )
    batches = list(loader)
    assert [batch.extras["y"].tolist() for batch in batches] == [[0, 1], [2, 3], [4]]
    for number, batch in enumerate(batches):
        assert type(batch) is Batch
        expected = collate_fn(samples[2 * number : 2 * number + 2])
        assert_same_bits(flat(batch), flat(expected))


@pytest.mark.compile
def test_one_graph_for_every_pattern_of_holes() -> None:
    torch.compiler.reset()
    counters().clear()
    fusion = fusion_of("residual", torch.float32)
    compiled = torch.compile(fusion, fullgraph=True, backend="aot_eager")
    subsets = [c for n in range(4) for c in itertools.combinations(WIDTHS, n)]
    for names in subsets:
        samples = [{n: torch.randn(3, WIDTHS[n]) for n in names}, {}]
        batch = collate(samples, WIDTHS, max_length=4, pad_to_multiple_of=4)
        result = compiled(batch.features, masks=batch.masks, present=batch.present)
        assert_close({"": result}, {"": fuse(fusion, batch)}, 1e-5)
    assert counters()["stats"]["unique_graphs"] == 1
    torch.compiler.reset()


TEXT = torch.ones(2, 7)
AUDIO = torch.ones(2, 11)
FIRST = {"text": TEXT, "audio": None}


def second(**sample: Any) -> Callable[[], Batch]:
    return lambda: collate([FIRST, sample], WIDTHS)


def options(**given: Any) -> Callable[[], Batch]:
    return lambda: collate([FIRST], WIDTHS, **given)


def extras(*values: Any) -> Callable[[], Batch]:
    return lambda: collate([{"y": value} for value in values], WIDTHS, extras=["y"])


# Call, argument at fault, and the rest of the message.
REFUSED: dict[str, tuple[Callable[[], Any], str, str]] = {
    "width": (
        second(text=torch.ones(3, 8)),
        "samples[1]['text']",
        "of shape (time, dim=7) or (dim=7,), got (3, 8).",
    ),
    "width of a vector": (
        second(text=torch.ones(8)),
        "samples[1]['text']",
        "of shape (time, dim=7) or (dim=7,), got (8,).",
    ),
    "a number": (
        second(text=torch.ones(())),
        "samples[1]['text']",
        "of shape (time, dim=7) or (dim=7,), got ().",
    ),
    "a map": (
        second(image=torch.ones(2, 3, 5)),
        "samples[1]['image']",
        (
            "of shape (time, dim=5) or (dim=5,), got (2, 3, 5). "
            "Flatten positions into one time axis: `x.flatten(0, -2)`."
        ),
    ),
    "a list": (
        second(text=[[1.0] * 7]),
        "samples[1]['text']",
        "to be a torch.Tensor, got list. Convert it with `torch.as_tensor`.",
    ),
    "sparse": (
        second(text=TEXT.to_sparse()),
        "samples[1]['text']",
        (
            "to be a dense tensor, got layout torch.sparse_coo. "
            "Convert it with `.to_dense()`, or pad it."
        ),
    ),
    "an array of objects": (
        second(text=np.array([["a"] * 7], dtype=object)),
        "samples[1]['text']",
        (
            "to be of a type that PyTorch has, got an array of object. "
            "Convert it with `.astype('float32')`."
        ),
    ),
    "an array of swapped bytes": (
        second(text=np.ones((2, 7), ">f4")),
        "samples[1]['text']",
        (
            "to be of a type that PyTorch has, got an array of >f4. "
            "Convert it with `.astype('float32')`."
        ),
    ),
    "another dtype": (
        second(text=TEXT.double()),
        "samples[1]['text']",
        (
            "of dtype torch.float32, as samples before it, got torch.float64. "
            "Convert all features with `dtype=`."
        ),
    ),
    "integers": (
        second(audio=AUDIO.long()),
        "samples[1]['audio']",
        (
            "to be of a floating-point type, got torch.int64. "
            "Convert all features with `dtype=torch.float32`."
        ),
    ),
    "complex": (
        second(audio=AUDIO * 1j),
        "samples[1]['audio']",
        (
            "to hold real numbers, got torch.complex64. "
            "Split it with `torch.view_as_real(x).flatten(-2)`."
        ),
    ),
    "another device": (
        second(audio=torch.ones(2, 11, device="meta")),
        "samples[1]['audio']",
        (
            "on device cpu, as features before it, got meta. "
            "Collate on the CPU, then move the batch."
        ),
    ),
    "another device of one modality": (
        second(text=TEXT.to("meta")),
        "samples[1]['text']",
        (
            "on device cpu, as features before it, got meta. "
            "Collate on the CPU, then move the batch."
        ),
    ),
    "too long": (
        options(max_length=1),
        "samples[0]['text']",
        "of at most max_length=1 steps, got 2. Shorten it, or pass too_long='cut'.",
    ),
    "unexpected key": (
        second(adio=TEXT, y=1),
        "samples[1]",
        (
            "to have keys of ['text', 'image', 'audio'], got ['adio', 'y'] too. "
            "Name other keys in `extras`, or leave them out."
        ),
    ),
    "missing extra": (
        options(extras=["y"]),
        "samples[0]",
        "to have the keys of `extras`, missing ['y'].",
    ),
    "no mapping": (
        lambda: collate([FIRST, TEXT], WIDTHS),  # type: ignore[list-item]
        "samples[1]",
        "to map names to tensors, got Tensor. Write {'text': ...}.",
    ),
    "no list": (
        lambda: collate(FIRST, WIDTHS),  # type: ignore[arg-type]
        "samples",
        "to be a list of mappings, got dict.",
    ),
    "a string": (
        lambda: collate("samples", WIDTHS),  # type: ignore[arg-type]
        "samples",
        "to be a list of mappings, got str.",
    ),
    "empty": (
        lambda: collate([], WIDTHS),
        "samples",
        "to hold at least one sample, got none.",
    ),
    "shapes of an extra": (
        extras(TEXT, TEXT[:, :3]),
        "samples[1]['y']",
        (
            "of shape (2, 7), torch.float32 on cpu, as samples[0], "
            "got (2, 3), torch.float32 on cpu."
        ),
    ),
    "dtypes of an extra": (
        extras(TEXT, TEXT.int()),
        "samples[1]['y']",
        "of shape (2, 7), torch.float32 on cpu, as samples[0], got (2, 7), torch.int32 on cpu.",
    ),
    "mixed extras": (
        extras(TEXT, 1),
        "samples[1]['y']",
        "to be a torch.Tensor, got int.",
    ),
    "an extra that is None": (
        extras(None),
        "samples[0]['y']",
        "to be a torch.Tensor, got NoneType.",
    ),
}  # fmt: skip

UNUSABLE: dict[str, tuple[Callable[[], Any], str, str]] = {
    "extras": (
        options(extras="label"),
        "extras",
        "to be a sequence of keys, got 'label'. Write extras=['label'].",
    ),
    "extras that are modalities": (
        options(extras=["y", "text", 3]),
        "extras",
        "to hold strings that name no modality, got ['text', 3].",
    ),
    "modalities": (
        lambda: collate([FIRST], {}),
        "modalities",
        "to name at least one modality, got none.",
    ),
    "dtype": (
        options(dtype=torch.int64),
        "dtype",
        "to be a floating-point torch.dtype, got torch.int64.",
    ),
    "dtype by name": (
        options(dtype="float32"),
        "dtype",
        "to be a floating-point torch.dtype, got 'float32'.",
    ),
    "longest": (options(max_length=0), "max_length", "to be a positive integer, got 0."),
    "longest of one": (
        options(max_length={"text": 1.5}),
        "max_length['text']",
        "to be a positive integer, got 1.5.",
    ),
    "longest of nobody": (
        options(max_length={"text": 3, "touch": 4}),
        "max_length",
        "to name modalities of ['text', 'image', 'audio'], got ['touch'].",
    ),
    "multiple": (
        options(pad_to_multiple_of=True),
        "pad_to_multiple_of",
        "to be a positive integer, got True.",
    ),
    "too_long": (
        options(too_long="drop"),
        "too_long",
        "to be one of 'error', 'cut', got 'drop'.",
    ),
    "check_finite": (
        options(check_finite=1),
        "check_finite",
        "to be True or False, got 1.",
    ),
}


@pytest.mark.parametrize(
    ("call", "argument", "rest", "error"),
    [
        pytest.param(*row, error, id=name)
        for rows, error in ((REFUSED, ShapeError), (UNUSABLE, ValueError))
        for name, row in rows.items()
    ],
)
def test_refused(
    call: Callable[[], object], argument: str, rest: str, error: type[Exception]
) -> None:
    message = assert_refused(call, who="collate", argument=argument, error=error)
    assert message == f"collate: expected `{argument}` {rest}"


def test_arrays_are_known_only_where_numpy_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(checks.sys.modules, "numpy")
    samples = [{"text": TEXT, "y": 1}]
    assert collate(samples, WIDTHS, extras=["y"]).extras["y"].tolist() == [1]
    with pytest.raises(ShapeError, match="got ndarray"):
        collate([{"text": np.ones((2, 7), "float32")}], WIDTHS)


@pytest.mark.parametrize("absent", [0.0, 0.3])
@pytest.mark.parametrize("case", CASES[:2], ids=lambda case: case.name)
def test_the_benchmark_compares_the_same(case: Case, absent: float) -> None:
    samples = draw(case, absent)
    features, masks, present = made_by_hand(samples, case.widths)
    expected = Batch(features, masks, present, {})
    assert_same_bits(flat(collate(samples, case.widths)), flat(expected))
    assert present.all() == (absent == 0.0)
