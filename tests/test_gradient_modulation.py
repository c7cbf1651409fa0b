"""Gradient modulation against loops, the authors' formula for two, and plain training loops."""

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

import strategies
from grf_fusion import GatedRecurrentFusion, ShapeError, modulate_gradients
from reference_baselines import reference_factors, reference_ratios
from refusal import assert_refused

HERE = torch.get_default_device()

WHO = "modulate_gradients"
WIDTHS = {"text": 7, "audio": 11, "depth": 13}
BATCH, CLASSES = 5, 3
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}

Named = dict[str, Tensor]


def make_modules(
    names: Any = tuple(WIDTHS), dtype: torch.dtype = torch.float64, seed: int = 3
) -> dict[str, nn.Module]:
    """Two layers a modality, every gradient random."""
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    modules: dict[str, nn.Module] = {}
    for name in names:
        modules[name] = nn.Sequential(nn.Linear(17, 23), nn.Linear(23, 2)).to(dtype)
        for parameter in modules[name].parameters():
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.grad = drawn.to(dtype)
    return modules


def make_call(
    names: Any = tuple(WIDTHS), dtype: torch.dtype = torch.float64, seed: int = 5
) -> dict[str, Any]:
    """Logits and targets of a batch."""
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    logits = {
        name: torch.randn(BATCH, CLASSES, generator=generator, dtype=torch.float64).to(dtype)
        for name in names
    }
    return {"logits": logits, "targets": torch.tensor([0, 2, 1, 1, 0])}


def gradients(modules: dict[str, nn.Module]) -> Named:
    return {
        f"{name}.{key}": parameter.grad.clone()
        for name, module in modules.items()
        for key, parameter in module.named_parameters()
        if parameter.grad is not None
    }


@strategies.examples(60)
@given(
    count=st.integers(1, 5),
    drawn=strategies.sizes(2),
    alpha=st.sampled_from((0, 0.1, 0.5, 1, 3.0)),
    dtype=strategies.dtypes(),
    sharpness=st.sampled_from((0.1, 1.0, 20.0)),
    seed=strategies.seeds(),
    data=st.data(),
)
def test_factors_and_gradients_are_the_formula(
    *,
    count: int,
    drawn: list[int],
    alpha: float,
    dtype: torch.dtype,
    sharpness: float,
    seed: int,
    data: st.DataObject,
) -> None:
    batch, classes = drawn
    names = [f"m{place}" for place in range(count)]
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    logits = {
        name: (sharpness * torch.randn(batch, classes, generator=generator)).to(dtype)
        for name in names
    }
    targets = torch.randint(classes, (batch,), generator=generator)
    present = data.draw(st.none() | strategies.presences(batch, count))
    if present is not None:
        for column, name in enumerate(names):
            logits[name][~present[:, column]] = float("nan")
    modules = make_modules(names, dtype)
    before = gradients(modules)
    factors = modulate_gradients(
        modules, logits, targets, alpha=alpha, noise=False, present=present
    )
    here = torch.ones(batch, count, dtype=torch.bool) if present is None else present
    exact = [x.double() for x in logits.values()]
    # The formula jumps at 1, where rounding decides which side a modality is on.
    ratios = reference_ratios(exact, targets, here)
    assume(all(ratio is None or abs(ratio - 1) > 1e-4 for ratio in ratios))
    expected = reference_factors(exact, targets, here, alpha)
    assert list(factors) == names
    after = gradients(modules)
    for name, factor in zip(names, expected, strict=True):
        assert factors[name].dtype == dtype
        assert abs(factors[name].item() - factor) <= TOLERANCE[dtype]
        for key in ("0.weight", "0.bias", "1.weight", "1.bias"):
            wanted = before[f"{name}.{key}"].double() * factor
            error = (after[f"{name}.{key}"].double() - wanted).abs().max().item()
            assert error <= TOLERANCE[dtype] * wanted.abs().max().clamp(min=1).item()


@pytest.mark.parametrize("alpha", [0.1, 0.3, 1.0])
def test_two_modalities_are_the_authors_formula(alpha: float) -> None:
    """Peng et al. 2022, equations 8 to 10: ratios of sums over the batch."""
    names = ("audio", "visual")
    call = make_call(names)
    sums = {
        name: sum(
            float(row.softmax(dim=0)[target])
            for row, target in zip(x, call["targets"].tolist(), strict=True)
        )
        for name, x in call["logits"].items()
    }
    factors = modulate_gradients(make_modules(names), **call, alpha=alpha)
    found = []
    for one, other in (names, names[::-1]):
        rho = sums[one] / sums[other]
        expected = 1 - math.tanh(alpha * max(rho, 0)) if rho > 1 else 1.0
        assert abs(factors[one].item() - expected) <= 1e-12
        found.append(expected)
    assert min(found) < 1 == max(found)


def test_noise_has_the_spread_of_the_gradient_before_it_is_scaled() -> None:
    modules = {"text": nn.Linear(500, 400), "audio": nn.Linear(300, 200)}
    for place, module in enumerate(modules.values()):
        for parameter in module.parameters():
            parameter.grad = (place + 1) * torch.randn(parameter.shape) + 3
    before = {name: module.weight.grad.clone() for name, module in modules.items()}
    call = make_call(tuple(modules), torch.float32)
    factors = modulate_gradients(modules, **call, alpha=0.5)
    assert min(factors.values()) < 1
    for name, module in modules.items():
        added = module.weight.grad - factors[name] * before[name]
        spread = before[name].std().item()
        assert abs(added.mean().item()) < 0.02 * spread
        assert abs(added.std().item() / spread - 1) < 0.02
        kurtosis = ((added / added.std()) ** 4).mean().item()
        assert abs(kurtosis - 3) < 0.1


def test_noise_follows_the_generator() -> None:
    results: list[Named] = []
    for seed in (1, 1, 2):
        modules = make_modules()
        generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
        modulate_gradients(modules, **make_call(), alpha=0.5, generator=generator)
        results.append(gradients(modules))
    assert all(torch.equal(results[0][key], results[1][key]) for key in results[0])
    assert not any(torch.equal(results[0][key], results[2][key]) for key in results[0])


def test_what_has_no_spread_gets_no_noise() -> None:
    """A gradient of one entry, a gradient of 0, and a parameter without a gradient."""
    modules = make_modules()
    scale = nn.Linear(1, 1, bias=False)
    scale.weight.grad = torch.full((1, 1), 2.0)
    frozen = nn.Linear(3, 4)
    frozen.bias.grad = torch.zeros(4)
    modules |= {"scale": scale, "frozen": frozen}
    factors = modulate_gradients(modules, **make_call(tuple(modules)), alpha=0.5)
    assert math.isclose(scale.weight.grad.item(), 2 * factors["scale"].item(), rel_tol=1e-6)
    assert frozen.weight.grad is None
    assert not frozen.bias.grad.any()


def test_modality_that_nobody_has_is_neither_scaled_nor_compared_with() -> None:
    call = make_call()
    present = torch.tensor([[True, False, True]]).expand(BATCH, -1)
    factors = modulate_gradients(make_modules(), **call, alpha=0.5, noise=False, present=present)
    assert factors["audio"] == 1
    pair = {name: x for name, x in call["logits"].items() if name != "audio"}
    others = modulate_gradients(
        make_modules(tuple(pair)), pair, call["targets"], alpha=0.5, noise=False
    )
    assert all(torch.equal(factors[name], others[name]) for name in pair)


def test_scores_of_zero_are_finite() -> None:
    logits = {"text": torch.tensor([[200.0, 0.0]]), "audio": torch.tensor([[0.0, 200.0]])}
    for alpha, kept in ((0, 1.0), (0.5, 0.0)):
        modules = make_modules(tuple(logits), torch.float32)
        factors = modulate_gradients(modules, logits, torch.tensor([0]), alpha=alpha)
        assert factors["text"] == kept
        assert factors["audio"] == 1
        assert all(gradient.isfinite().all() for gradient in gradients(modules).values())
    logits["text"] = logits["audio"]
    factors = modulate_gradients(make_modules(tuple(logits)), logits, torch.tensor([0]), alpha=1)
    assert [factor.item() for factor in factors.values()] == [1, 1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    call = make_call(dtype=dtype)
    rounded = {name: x.float() for name, x in call["logits"].items()}
    factors = modulate_gradients(make_modules(dtype=dtype), **call, alpha=0.5)
    expected = modulate_gradients(make_modules(), rounded, call["targets"], alpha=0.5)
    assert all(torch.equal(factors[name], expected[name]) for name in expected)


def test_logits_are_not_differentiated_nor_changed() -> None:
    call = make_call()
    before = copy.deepcopy(call["logits"])
    for x in call["logits"].values():
        x.requires_grad_()
    factors = modulate_gradients(make_modules(), **call, alpha=0.5)
    assert not any(factor.requires_grad for factor in factors.values())
    for name, x in call["logits"].items():
        assert x.grad is None
        assert torch.equal(x, before[name])


def test_two_lines_in_a_training_loop_hold_the_strong_modality_back() -> None:
    torch.manual_seed(3)
    targets = torch.randint(CLASSES, (64,))
    easy = nn.functional.one_hot(targets, CLASSES).float() @ torch.randn(CLASSES, 6) * 3
    features = {
        "easy": (easy + 0.1 * torch.randn(64, 6)).unsqueeze(1),
        "hard": (easy + 6 * torch.randn(64, 6)).unsqueeze(1),
    }
    fusion = GatedRecurrentFusion({"easy": 6, "hard": 6}, embed_dim=8, num_heads=2)
    head = nn.Linear(8, CLASSES)
    parameters = [*fusion.parameters(), *head.parameters()]
    optimiser = torch.optim.SGD(parameters, lr=0.05)
    held: list[float] = []
    for _ in range(150):
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(head(fusion(features)), targets)
        loss.backward()
        alone = {name: head(fusion({name: x})) for name, x in features.items()}
        factors = modulate_gradients(fusion.projections, alone, targets, alpha=0.3)
        optimiser.step()
        held.append((factors["hard"] - factors["easy"]).item())
    assert loss.item() < 0.5
    assert min(held[100:]) > 0


def refuse(argument: str, got: str, error: type[Exception] = ShapeError, **changed: Any) -> None:
    modules = make_modules()
    before = gradients(modules)
    call = {"modules": modules, **make_call(), "alpha": 0.5} | changed
    assert_refused(
        lambda: modulate_gradients(**call), who=WHO, argument=argument, got=got, error=error
    )
    after = gradients(modules)
    assert all(torch.equal(after[key], before[key]) for key in before)


@pytest.mark.parametrize("alpha", [-0.1, float("nan"), float("inf"), None, "1", True])
def test_wrong_alpha(alpha: Any) -> None:
    refuse("alpha", f"got {alpha!r}", ValueError, alpha=alpha)


@pytest.mark.parametrize("noise", [None, 1, "yes"])
def test_wrong_noise(noise: Any) -> None:
    refuse("noise", f"got {noise!r}", ValueError, noise=noise)


SHARED = nn.Linear(2, 3)


@pytest.mark.parametrize(
    ("modules", "argument", "got"),
    [
        ([nn.Linear(2, 3)], "modules", "to map names to modules, got list"),
        (nn.Linear(2, 3), "modules", "to map names to modules, got Linear"),
        ({}, "modules", "to have gradients, got none. Call it between"),
        ({"text": nn.Linear(2, 3)}, "modules", "to have gradients, got none. Call it between"),
        ({"text": 3}, "modules['text']", "to be an nn.Module, got int"),
        (
            {"text": nn.Sequential(SHARED), "audio": SHARED},
            "modules['audio']",
            "got 'weight', which is in 'text' too",
        ),
    ],
    ids=["list", "module", "empty", "no gradient", "number", "shared"],
)
def test_wrong_modules(modules: Any, argument: str, got: str) -> None:
    refuse(argument, got, modules=modules)


def test_sparse_gradients_are_refused() -> None:
    table = nn.Embedding(3, 4, sparse=True)
    table(torch.tensor([1])).sum().backward()
    refuse("modules['text'].weight.grad", "got layout torch.sparse_coo", modules={"text": table})


LOGITS = make_call()["logits"]


@pytest.mark.parametrize(
    ("logits", "argument", "got"),
    [
        ([1], "logits", "to map names to tensors, got list"),
        ({}, "logits", "missing ['text', 'audio', 'depth']"),
        ({"text": LOGITS["text"]}, "logits", "missing ['audio', 'depth']"),
        (LOGITS | {"smell": 3}, "logits", "unexpected ['smell'], missing []"),
        (LOGITS | {"audio": 3}, "logits['audio']", "to be a torch.Tensor, got int"),
        (LOGITS | {"text": torch.ones(5)}, "logits['text']", "(batch, classes), got (5,)"),
        (LOGITS | {"audio": torch.ones(5, 4)}, "logits['audio']", "classes=3), got (5, 4)"),
        (LOGITS | {"audio": torch.ones(4, 3)}, "logits['audio']", "batch=5, classes=3), got (4"),
        (LOGITS | {"audio": torch.ones(5, 3)}, "logits['audio']", "one dtype with the others, got"),
        (LOGITS | {"text": torch.ones(5, 3).int()}, "logits['text']", "got torch.int32"),
        (
            LOGITS | {"audio": torch.ones(5, 3, dtype=torch.float64, device="meta")},
            "logits['audio']",
            f"on device {HERE}, as the others, got meta",
        ),
    ],
)
def test_wrong_logits(logits: Any, argument: str, got: str) -> None:
    refuse(argument, got, logits=logits)


@pytest.mark.parametrize(
    ("targets", "got"),
    [
        ([0, 1, 2, 0, 1], "to be a torch.Tensor, got list"),
        (torch.eye(5, 3), "of shape (batch=5), got (5, 3). Give classes, not one-hot rows"),
        (torch.zeros(4).long(), "of shape (batch=5), got (4,)"),
        (torch.zeros(5), f"to hold integers on device {HERE}, as the logits, got torch.float32"),
        (torch.zeros(5).bool(), "got torch.bool"),
        (torch.zeros(5, device="meta").long(), "got torch.int64 on meta"),
        pytest.param(
            *(torch.tensor([0, 1, 3, 0, 1]), "between 0 and 2, got 0 to 3"),
            marks=pytest.mark.cpu_only,
        ),
        pytest.param(
            *(torch.tensor([0, 1, -100, 0, 1]), "between 0 and 2, got -100 to 1"),
            marks=pytest.mark.cpu_only,
        ),
    ],
)
def test_wrong_targets(targets: Any, got: str) -> None:
    refuse("targets", got, targets=targets)


@pytest.mark.parametrize(
    ("present", "got"),
    [
        (torch.ones(5, 2).bool(), "(batch=5, modalities=3), got (5, 2)"),
        (torch.ones(5, 3), "got torch.float32"),
        ([True], "got list"),
    ],
)
def test_wrong_presence(present: Any, got: str) -> None:
    refuse("present", got, present=present)


def test_order_of_names_does_not_matter_and_a_module_dict_will_do() -> None:
    call = make_call()
    modules = make_modules()
    expected = modulate_gradients(modules, **call, alpha=0.5, noise=False)
    turned = dict(reversed(list(call["logits"].items())))
    again = modulate_gradients(
        nn.ModuleDict(make_modules()), turned, call["targets"], alpha=0.5, noise=False
    )
    assert all(torch.equal(again[name], expected[name]) for name in expected)


def test_modalities_that_are_level_are_left_alone() -> None:
    modules = {name: nn.Linear(3, 2) for name in ("text", "audio", "depth")}
    for module in modules.values():
        module.weight.grad = torch.ones(2, 3)
    logits = dict.fromkeys(modules, torch.tensor([[0.3, 1.2], [0.7, -0.4]]))
    targets = torch.tensor([0, 1])
    factors = modulate_gradients(modules, logits, targets, alpha=0.5, noise=False)
    assert {name: factor.item() for name, factor in factors.items()} == dict.fromkeys(modules, 1.0)
    for module in modules.values():
        assert torch.equal(module.weight.grad, torch.ones(2, 3))


@pytest.mark.parametrize("noise", [False, True])
def test_all_is_computed_where_the_logits_lie(noise: bool) -> None:
    with torch.device("meta"):
        modules = {name: nn.Linear(3, 2) for name in ("text", "audio")}
        for module in modules.values():
            module.weight.grad = torch.ones(2, 3)
        logits = {name: torch.zeros(4, 2) for name in modules}
        targets = torch.zeros(4, dtype=torch.long)
    factors = modulate_gradients(modules, logits, targets, alpha=0.5, noise=noise)
    assert {factor.device.type for factor in factors.values()} == {"meta"}
