"""The scale of a modality's features: measured once, ignored afterwards, poisoned by nothing."""

import copy
import gc
import math
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.utils._python_dispatch import TorchDispatchMode

from grf_fusion import GatedRecurrentFusion, mask_from_lengths
from grf_fusion._inputs import scale as _scale
from grf_fusion._inputs.scale import FeatureScale
from strategies import examples

WIDTHS = {"text": 5, "image": 3, "audio": 7}
LENGTHS = {"text": 4, "image": 6, "audio": 1}


def make(dtype: torch.dtype = torch.float64, **options: object) -> GatedRecurrentFusion:
    torch.manual_seed(0)
    return GatedRecurrentFusion(WIDTHS, embed_dim=8, dtype=dtype, **options)


def draw(batch: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    return {
        name: torch.randn(batch, LENGTHS[name], width, generator=generator, dtype=dtype)
        for name, width in WIDTHS.items()
    }


def rms(fusion: GatedRecurrentFusion, name: str) -> float:
    return float(fusion.get_buffer(f"scales.{name}.rms"))


@pytest.mark.parametrize("factor", [1e-3, 0.01, 100.0, 1e4])
@pytest.mark.parametrize("name", WIDTHS)
def test_units_of_a_modality_do_not_matter_in_training(name: str, factor: float) -> None:
    """Outputs and gradients at the start, and after some steps of training, of the same model."""
    outputs = []
    for scale in (1.0, factor):
        fusion = make()
        head = nn.Linear(8, 2, dtype=torch.float64)
        optimiser = torch.optim.Adam([*fusion.parameters(), *head.parameters()], 0.01)
        for seed in range(3):
            features = draw(5, seed)
            features[name] = features[name] * scale
            result = head(fusion(features))
            optimiser.zero_grad()
            result.square().sum().backward()
            optimiser.step()
        fusion.eval()
        outputs += [result, fusion(features)]
    torch.testing.assert_close(outputs[:2], outputs[2:])


@given(
    lengths=st.lists(st.integers(0, 4), min_size=3, max_size=3).filter(any),
    absent=st.lists(st.booleans(), min_size=3, max_size=3),
    garbage=st.sampled_from((0.0, 1e30, float("nan"), float("inf"))),
)
@examples(60)
def test_scale_is_the_rms_of_the_real_steps(
    lengths: list[int], absent: list[bool], garbage: float
) -> None:
    fusion, features = make(), draw(3)
    mask, present = mask_from_lengths(torch.tensor(lengths), 4), ~torch.tensor(absent)
    real = mask & present[:, None]
    kept = features["text"][real]
    features["text"][~real] = garbage
    columns = torch.ones(3, 3, dtype=torch.bool)
    columns[:, 0] = present
    fusion(features, masks={"text": mask}, present=columns)
    expected = math.sqrt(float(kept.square().mean())) if kept.numel() else 0.0
    assert rms(fusion, "text") == pytest.approx(expected)


def test_the_first_training_batch_decides() -> None:
    fusion = make()
    fusion(draw(3, 1))
    first = {name: rms(fusion, name) for name in WIDTHS}
    fusion({name: 50 * x for name, x in draw(3, 2).items()})
    assert {name: rms(fusion, name) for name in WIDTHS} == first


def test_evaluation_measures_nothing() -> None:
    fusion = make().eval()
    before = fusion(draw(3))
    assert all(rms(fusion, name) == 0 for name in WIDTHS)
    assert torch.equal(fusion(draw(3)), before)


def test_what_nobody_has_is_measured_later() -> None:
    fusion, features = make(), draw(3)
    fusion({"text": features["text"], "audio": torch.zeros(3, 1, 7, dtype=torch.float64)})
    assert rms(fusion, "text") > 0
    # Zeros have no scale.
    assert rms(fusion, "image") == rms(fusion, "audio") == 0
    fusion(features)
    assert rms(fusion, "image") > 0
    assert rms(fusion, "audio") > 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_broken_batch_leaves_no_trace(bad: float) -> None:
    """A NaN in a real step spoils its own batch, as in any layer, and nothing after it."""
    fusion, features = make(), draw(3)
    broken = {name: x.clone() for name, x in features.items()}
    broken["text"][1, 2, 0] = bad
    assert not fusion(broken).isfinite().all()
    assert rms(fusion, "text") == 0
    assert fusion(features).isfinite().all()


def test_a_recomputed_first_step_gives_the_same_gradients() -> None:
    """As activation checkpointing around the fusion does it."""
    plain, recomputed = make(), make()
    features = draw(3)
    for fusion in (plain, recomputed):
        call = lambda fusion=fusion: fusion(features).square().sum()  # noqa: E731
        if fusion is recomputed:
            torch.utils.checkpoint.checkpoint(call, use_reentrant=False).backward()
        else:
            call().backward()
    for (name, one), (_, other) in zip(
        plain.named_parameters(), recomputed.named_parameters(), strict=True
    ):
        assert torch.equal(one.grad, other.grad), name


def test_scale_is_on_the_device_of_the_weights() -> None:
    fusion = GatedRecurrentFusion(WIDTHS, embed_dim=8, device="meta")
    assert all(fusion.get_buffer(f"scales.{name}.rms").is_meta for name in WIDTHS)


def test_scale_is_saved_and_follows_the_dtype() -> None:
    fusion, features = make(), draw(3)
    fusion(features)
    loaded = make()
    loaded.load_state_dict(fusion.state_dict())
    assert torch.equal(loaded.eval()(features), fusion.eval()(features))
    half = copy.deepcopy(fusion).to(torch.float32)
    assert half.get_buffer("scales.text.rms").dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_features_do_not_overflow(dtype: torch.dtype) -> None:
    fusion = make(dtype)
    features = {name: 400 * x.to(dtype) for name, x in draw(3).items()}
    assert fusion(features).isfinite().all()
    assert rms(fusion, "text") == pytest.approx(400, rel=0.3)


def test_per_sample_gradients_measure_nothing() -> None:
    """A transform of `torch.func` cannot write a number of the whole batch."""
    fusion, features = make(), draw(3)
    weights = dict(fusion.named_parameters())

    def loss(given: dict[str, Tensor], sample: dict[str, Tensor]) -> Tensor:
        batch = {name: x.unsqueeze(0) for name, x in sample.items()}
        return torch.func.functional_call(fusion, given, (batch,)).sum()

    found = torch.func.vmap(torch.func.grad(loss), (None, 0))(weights, features)
    assert all(value.isfinite().all() for value in found.values())
    assert rms(fusion, "text") == 0


def test_the_size_of_single_steps_is_kept() -> None:
    """A norm per step would make these two samples equal."""
    fusion, features = make(), draw(2)
    features["text"][1] = features["text"][0] * 3
    features |= {name: features[name][:1].expand(2, -1, -1) for name in ("image", "audio")}
    context = fusion(features)
    assert (context[0] - context[1]).abs().max() > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(3, 4, 5), (7, 5), (1, 1, 1), (0, 4, 5)])
@pytest.mark.parametrize("masked", [False, True])
def test_measure_is_as_exact_as_its_dtype(
    masked: bool, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    features = torch.randn(shape, dtype=torch.float64)
    real = torch.rand(shape[:2]) < 0.6 if masked and len(shape) == 3 else None
    if real is not None:
        real[:1, :1] = True
        features[~real] = 0
    numbers = (features if real is None else features[real]).square().flatten().tolist()
    expected = math.sqrt(sum(numbers) / max(1, len(numbers)))
    scale = FeatureScale(device=None, dtype=dtype)
    scale(features.to(dtype), real)
    assert float(scale.rms) == pytest.approx(expected, rel=10 * torch.finfo(dtype).eps)


def test_norms_beyond_float16_are_measured() -> None:
    scale = FeatureScale(device=None, dtype=torch.float16)
    scale(torch.full((10, 10, 64), 2000.0, dtype=torch.float16), None)
    assert float(scale.rms) == 2000


def test_a_scale_beyond_its_dtype_is_not_set() -> None:
    """Infinity would turn all later features into zeros."""
    scale = FeatureScale(device=None, dtype=torch.float16)
    large = torch.full((2, 3, 4), 1e6)
    assert torch.equal(scale(large, None), large)
    assert float(scale.rms) == 0


def test_a_later_measurement_is_ignored_where_the_scale_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a GPU."""
    monkeypatch.setattr(_scale, "can_read", lambda _tensor: False)
    scale = FeatureScale(device=None, dtype=torch.float32)
    for factor in (0.0, 3.0, 7.0):
        scale(torch.full((2, 3, 4), factor), None)
    assert float(scale.rms) == 3


class KernelCounter(TorchDispatchMode):
    """Counts the operations that compute something, which excludes views."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.count += isinstance(result, Tensor) and not function.is_view
        return result


@pytest.mark.parametrize(("masked", "number"), [(False, 10), (True, 14)])
def test_measuring_takes_few_kernels(masked: bool, number: int) -> None:
    """A GPU measures in every training step, because reading the scale would synchronise."""
    scale = make(torch.float32).to("meta").scales["text"]
    features = torch.empty(2, 4, 5, device="meta")
    real = torch.empty(2, 4, dtype=torch.bool, device="meta") if masked else None
    with KernelCounter() as counter:
        scale(features, real)
    assert counter.count == number


def test_a_known_scale_is_not_measured_again_on_the_cpu() -> None:
    scale, counts = FeatureScale(device="cpu", dtype=torch.float32), []
    for _ in range(2):
        with KernelCounter() as counter:
            scale(torch.ones(2, 3, 4, device="cpu"), None)
        counts.append(counter.count)
    # Two norms, their factor, what is usable, a product and a sum; the comparison with 0, here and
    # for the divisor, and another sum.
    measuring = 9
    assert counts[0] - counts[1] == measuring


@pytest.fixture
def device_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat the scale as on a GPU, from where a copy arrives at once."""
    monkeypatch.setattr(_scale, "HOST", ())
    monkeypatch.setattr(_scale, "SENDING", ("cpu", "cuda"))


def count(scale: FeatureScale, factor: float = 1.0) -> int:
    with KernelCounter() as counter:
        scale(torch.full((2, 3, 4), factor), None)
    return counter.count


def arrive() -> None:
    """Wait for copies to the host."""
    if torch.get_default_device().type == "cuda":
        torch.cuda.synchronize()


@pytest.mark.usefixtures("device_memory")
def test_a_scale_whose_copy_has_arrived_is_not_measured_again() -> None:
    scale = FeatureScale(device=None, dtype=torch.float32)
    first = count(scale, 3.0)
    arrive()
    assert count(scale, 5.0) < first
    with torch.no_grad():
        scale.rms.zero_()
    assert count(scale, 7.0) == first
    assert float(scale.rms) == 7
    count(scale)
    scale.load_state_dict({"rms": torch.tensor([2.0])})
    # The host has to learn of the loaded scale; measuring does not change it.
    assert count(scale, 7.0) == first
    arrive()
    assert count(scale, 7.0) < first
    assert float(scale.rms) == 2
    scale.rms = torch.zeros(1)
    count(scale, 11.0)
    assert float(scale.rms) == pytest.approx(11)


@pytest.mark.usefixtures("device_memory")
def test_the_copy_to_the_host_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's memory is pinned where the scale is on a GPU."""
    given: dict[str, object] = {}
    for owner, name in ((torch, "zeros"), (Tensor, "copy_")):
        made = getattr(owner, name)

        def noting(*args: object, made: Any = made, **kwargs: Any) -> Tensor:
            given.update(kwargs)
            return made(*args, **kwargs)

        monkeypatch.setattr(owner, name, noting)
    scale = FeatureScale(device=None, dtype=torch.float16)
    given.clear()
    _scale.send_to_host(scale.rms, None)
    on_gpu = torch.get_default_device().type == "cuda"
    assert given == {
        "dtype": torch.float16,
        "device": "cpu",
        "pin_memory": on_gpu,
        "non_blocking": True,
    }
    assert given["pin_memory"] is on_gpu


@pytest.mark.usefixtures("device_memory")
def test_what_has_not_arrived_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host far ahead of the device: copies arrive after the third batch."""
    monkeypatch.setattr(Tensor, "copy_", lambda self, *_, **__: self)
    scale = FeatureScale(device=None, dtype=torch.float32)
    measured = [count(scale, factor) for factor in (0.0, 3.0, 7.0)]
    assert measured[0] == measured[1] == measured[2]
    copy = _scale.host_copy(scale.rms)
    assert copy is not None
    assert float(copy) == 0
    copy.zero_().add_(3.0)
    assert count(scale, 9.0) < measured[0]
    assert float(scale.rms) == 3


def test_devices_of_other_kinds_measure_every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether their copies wait is not known."""
    monkeypatch.setattr(_scale, "HOST", ())
    monkeypatch.setattr(_scale, "SENDING", ())
    scale = FeatureScale(device=None, dtype=torch.float32)
    assert count(scale, 3.0) == count(scale, 5.0)
    assert float(scale.rms) == 3
    assert _scale.host_copy(scale.rms) is None


@pytest.mark.usefixtures("device_memory")
def test_processes_that_share_buffers_measure_every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """DistributedDataParallel may write another scale, or 0, without a change of the version."""
    scale = FeatureScale(device=None, dtype=torch.float32)
    count(scale, 3.0)
    monkeypatch.setattr(_scale, "is_distributed", lambda: True)
    scale.rms.data.zero_()
    count(scale, 5.0)
    assert float(scale.rms) == pytest.approx(5)


@pytest.mark.usefixtures("device_memory")
def test_copies_of_a_scale_know_nothing_of_it() -> None:
    scale = FeatureScale(device=None, dtype=torch.float32)
    first = count(scale, 3.0)
    for other in (copy.deepcopy(scale), pickle.loads(pickle.dumps(scale))):  # noqa: S301 (our own bytes)
        assert count(other, 5.0) == first
        assert float(other.rms) == 3
    before = len(_scale._copies)
    del scale, other
    gc.collect()
    assert len(_scale._copies) < before


@pytest.mark.usefixtures("device_memory")
def test_a_scale_made_for_inference_is_measured_and_not_sent() -> None:
    with torch.inference_mode():
        scale = FeatureScale(device=None, dtype=torch.float32)
        for factor in (3.0, 5.0):
            count(scale, factor)
        assert float(scale.rms) == 3
    assert _scale.host_copy(scale.rms) is None
    trained = FeatureScale(device=None, dtype=torch.float32)
    with torch.inference_mode():
        count(trained, 0.0)
    for factor in (3.0, 5.0):
        count(trained, factor)
    assert float(trained.rms) == 3


@pytest.mark.usefixtures("device_memory")
def test_nothing_is_sent_from_a_captured_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its copies would arrive at every replay, in memory that may be somebody else's by then."""
    monkeypatch.setattr(_scale, "is_captured", lambda _: True)
    scale = FeatureScale(device=None, dtype=torch.float32)
    first = count(scale, 3.0)
    assert count(scale, 5.0) == first
    assert _scale.host_copy(scale.rms) is None


@pytest.mark.parametrize("training", [True, False])
def test_an_ensemble_is_mapped_over_known_scales(training: bool) -> None:
    features = draw(3)
    fusions = [make() for _ in range(2)]
    for fusion in fusions:
        fusion(features)
        fusion.train(training)
    weights, buffers = stack_module_state(fusions)
    base = copy.deepcopy(fusions[0])

    def loss(weights: Any, buffers: Any) -> Tensor:
        return functional_call(base, (weights, buffers), (features,)).square().sum()

    found = vmap(grad(loss))(weights, buffers)
    for k, fusion in enumerate(fusions):
        fusion(features).square().sum().backward()
        for name, parameter in fusion.named_parameters():
            torch.testing.assert_close(found[name][k], parameter.grad)


@pytest.mark.parametrize("inference", [True, False])
def test_a_known_scale_may_be_written_to_before_the_gradient(inference: bool) -> None:
    """As `load_state_dict` does, and a compiled step, which measures again."""
    with torch.inference_mode(inference):
        scale = FeatureScale(device=None, dtype=torch.float64)
        scale.rms.fill_(2.0)
    features = torch.ones(2, 3, 4, dtype=torch.float64, requires_grad=True)
    scaled = scale(features, None)
    with torch.inference_mode(inference):
        scale.rms.add_(0)
    scaled.sum().backward()
    assert features.grad is not None
    assert (features.grad == 0.5).all()


def test_fake_tensors_have_no_scale_to_read() -> None:
    with FakeTensorMode():
        for training in (True, False):
            scale = FeatureScale(device=None, dtype=torch.float64).train(training)
            assert scale(torch.ones(2, 3, 4), None).shape == (2, 3, 4)


@pytest.mark.compile
def test_one_graph_measures_and_uses_the_scale() -> None:
    fusion, plain, features = make(), make(), draw(3)
    compiled = torch.compile(fusion, fullgraph=True)
    for seed in range(3):
        features = draw(3, seed)
        torch.testing.assert_close(compiled(features), plain(features))
    assert rms(fusion, "text") == pytest.approx(rms(plain, "text"))
