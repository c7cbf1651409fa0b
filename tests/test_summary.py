"""`diagnostics.summary`: the numbers of a batch, counted otherwise, and hints with a reason."""

import re
from typing import Any

import pytest
import torch
from hypothesis import given
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from grf_fusion import GatedRecurrentFusion, ShapeError, collate, mask_from_lengths
from grf_fusion.baselines import ConcatFusion, CrossModalAttentionFusion, MulT, WeightedSumFusion
from grf_fusion.diagnostics import Summary, summary
from properties import assert_same_bits, build, really_present
from refusal import assert_refused
from strategies import FusionCall, examples, fusion_calls

WIDTHS = {"text": 7, "image": 5, "audio": 11}
TIMES = {"text": 5, "image": 3, "audio": 13}
INVERTED = "the mask may be inverted: True = a real step."


def make(**options: Any) -> GatedRecurrentFusion:
    return GatedRecurrentFusion(WIDTHS, embed_dim=8, num_heads=2, **options)


def batch_of(size: int = 4) -> dict[str, Tensor | None]:
    return {name: torch.randn(size, TIMES[name], width) for name, width in WIDTHS.items()}


def hints(**call: Any) -> tuple[str, ...]:
    features = batch_of() | call.pop("features", {})
    return summary(make(), features, **call).hints


@pytest.mark.slow
@given(fusion_calls())
@examples(10)
def test_counts_are_those_of_the_call(call: FusionCall) -> None:
    fusion = build(call)
    training = [part.training for part in fusion.modules()]
    found = summary(fusion, call.features, masks=call.masks, present=call.present)
    names = list(call.config.modalities)
    # In the order of fusion, which here is put back.
    order = [list(call.order or names).index(name) for name in names]
    here = really_present(call)[:, order]
    assert found.modalities == tuple(names)
    assert found.widths == tuple(call.config.modalities.values())
    assert found.present == tuple(here.sum(dim=0).tolist())
    assert found.samples == len(here)
    for column, name in enumerate(names):
        x, mask = call.features.get(name), (call.masks or {}).get(name)
        real = steps = 0
        if x is not None:
            steps = x.shape[0] * x.shape[1]
            for row in range(x.shape[0]):
                for step in range(x.shape[1]):
                    counts = mask is None or bool(mask[row, step])
                    real += counts and bool(here[row, column])
        assert (found.real_steps[column], found.steps[column]) == (real, steps)
    total = sum(parameter.numel() for parameter in fusion.parameters())
    assert sum(found.parameters) + found.shared_parameters == total
    assert [part.training for part in fusion.modules()] == training


@pytest.mark.parametrize(
    "fusion",
    [
        make(),
        make(form="residual"),
        make(form="residual", share_weights=False),
        ConcatFusion(WIDTHS, embed_dim=8),
        WeightedSumFusion(WIDTHS, embed_dim=8),
        CrossModalAttentionFusion(WIDTHS, embed_dim=8, num_heads=2),
        MulT(WIDTHS, embed_dim=8, num_heads=2, num_layers=1),
    ],
    ids=["default", "shared", "own weights", "concat", "weighted sum", "cross-modal", "mult"],
)
def test_operations_and_parameters(fusion: nn.Module) -> None:
    features = batch_of()
    found = summary(fusion, features)
    fusion.requires_grad_(requires_grad=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        fusion.eval()(features)
    assert found.total_operations == counter.get_total_flops() > 0
    assert all(0 < cost < found.total_operations for cost in found.operations)
    for name, own in zip(WIDTHS, found.parameters, strict=True):
        named = fusion.named_parameters()
        assert own == sum(p.numel() for key, p in named if key.split(".")[1:2] == [name]) > 0


def test_what_packs_is_counted_without_padding_left_out() -> None:
    features = batch_of()
    mask = mask_from_lengths(torch.tensor([5, 1, 1, 1]), 5)
    packed = summary(make(form="residual", packing=True), features, masks={"text": mask})
    assert packed.operations == summary(make(form="residual", packing=False), features).operations


def test_a_modality_that_is_left_out_costs_nothing() -> None:
    features = batch_of() | {"image": None}
    found = summary(make(), features)
    assert found.operations[1] == found.steps[1] == found.real_steps[1] == found.present[1] == 0
    assert found.operations[0] > 0
    single = summary(make(), {"text": features["text"]})
    assert single.operations == (single.total_operations, 0, 0)


def test_neither_values_nor_the_fusion_matter() -> None:
    fusion, features = make().train(), batch_of()
    before = {key: value.clone() for key, value in fusion.state_dict().items()}
    doubled = {name: 2 * x for name, x in features.items() if x is not None}
    assert summary(fusion, features) == summary(fusion, doubled)
    assert_same_bits(dict(fusion.state_dict()), before)
    assert all(parameter.grad is None for parameter in fusion.parameters())
    assert all(parameter.requires_grad for parameter in fusion.parameters())


def test_text() -> None:
    mask = mask_from_lengths(torch.tensor([5, 2, 3, 4]), 5)
    present = torch.tensor([[1, 1, 1]] * 3 + [[1, 0, 1]])
    found = summary(make(), batch_of(), masks={"text": mask}, present=present)
    lines = str(found).splitlines()
    total = sum(found.parameters) + found.shared_parameters
    assert lines[0] == (
        f"GatedRecurrentFusion: 4 samples, {total:,} parameters, of which "
        f"{found.shared_parameters:,} are shared, {found.total_operations:,} operations"
    )
    assert re.sub(" +", " ", lines[1]) == (
        "modality width present real steps padded parameters operations"
    )
    assert re.sub(" +", " ", lines[2]).startswith(
        f"text 7 4 of 4 14 of 20 30% {found.parameters[0]} ("
    )
    assert re.sub(" +", " ", lines[3]).startswith(
        f"image 5 3 of 4 9 of 12 25% {found.parameters[1]} ("
    )
    assert len({len(line) for line in lines[1:]}) == 1
    assert len(lines) == 5


def test_text_of_what_is_not_there() -> None:
    found = summary(make(), {"text": torch.randn(2, 3, 7)})
    lines = str(found).splitlines()
    assert re.sub(" +", " ", lines[3]).startswith(
        f"image 5 0 of 2 0 of 0 - {found.parameters[1]} ("
    )
    assert lines[3].endswith("0 (0%)")
    assert [line.partition(".")[0] for line in lines[5:]] == [
        "hint: No sample has 'image'",
        "hint: No sample has 'audio'",
    ]


def test_no_hint_without_a_reason() -> None:
    mask = mask_from_lengths(torch.tensor([5, 2, 3, 4]), 5)
    holes = torch.ones(4, 13, dtype=torch.bool)
    holes[:, 4:7] = False
    assert hints() == ()
    assert hints(masks={"text": mask, "audio": holes}) == ()
    samples = [{name: x[n] for name, x in batch_of().items() if x is not None} for n in range(3)]
    batch = collate([*samples, {}], WIDTHS)
    found = summary(make(), batch.features, masks=batch.masks, present=batch.present)
    assert found.hints == ()
    assert found.present == (3, 3, 3)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64])
def test_an_inverted_mask_is_noticed(dtype: torch.dtype) -> None:
    mask = ~mask_from_lengths(torch.tensor([5, 3, 4, 3]), 5)
    assert hints(masks={"text": mask.to(dtype)}) == (
        (
            "Mask of 'text': fewer steps are kept than masked in 3 of 3 samples. "
            f"If they are not that short, {INVERTED}"
        ),
        (
            "Mask of 'text': steps are masked before the first real one in 3 samples. "
            f"If they are not left-padded, {INVERTED}"
        ),
    )


def test_few_steps_in_nearly_all_samples() -> None:
    said = "Mask of 'audio': fewer steps are kept than masked in {} of 20 samples."
    for short, expected in ((20, True), (18, True), (17, False)):
        mask = mask_from_lengths(torch.tensor([3] * short + [7] * (20 - short)), 13)
        found = summary(make(), batch_of(20), masks={"audio": mask}).hints
        assert any(hint.startswith(said.format(short)) for hint in found) is expected
        assert len(found) == expected


def test_only_samples_that_have_it_count() -> None:
    mask = mask_from_lengths(torch.tensor([1, 1, 5, 5]), 5)
    present = torch.tensor([[1, 1, 1]] * 2 + [[0, 1, 1]] * 2)
    assert len(hints(masks={"text": mask})) == 0
    (hint,) = hints(masks={"text": mask}, present=present)
    assert "in 2 of 2 samples" in hint


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_in_real_steps_is_noticed(value: float) -> None:
    text = torch.randn(4, 5, 7)
    text[1, 4, 2] = text[2, 0, 3] = value
    said = "Features of 'text': real steps hold NaN or infinity in {} samples."
    assert hints(features={"text": text}) == (said.format(2),)
    mask = mask_from_lengths(torch.tensor([5, 4, 5, 5]), 5)
    assert hints(features={"text": text}, masks={"text": mask}) == (said.format(1),)


def test_zeros_that_count_as_real_are_noticed() -> None:
    text = torch.randn(4, 5, 7)
    text[1, 3:] = 0
    text[2, 4] = 0
    assert hints(features={"text": text}) == (
        (
            "Features of 'text': the last step is all zeros and counts as real in 2 samples. "
            "If it is padding, pass a mask."
        ),
    )
    mask = mask_from_lengths(torch.tensor([5, 3, 4, 5]), 5)
    assert hints(features={"text": text}, masks={"text": mask}) == ()
    assert hints(features={"text": torch.zeros(4, 1, 7)}) == ()


def test_nobody_has_it() -> None:
    said = (
        "No sample has 'image'. If some should, look for a misspelt key or a mask that is False "
        "throughout."
    )
    assert hints(features={"image": None}) == (said,)
    assert hints(masks={"image": torch.zeros(4, 3, dtype=torch.bool)}) == (said,)
    assert hints(present=torch.tensor([[1, 0, 1]] * 4)) == (said,)


def test_printed_is_what_it_is() -> None:
    found = summary(make(), batch_of())
    assert isinstance(found, Summary)
    assert str(found) == f"{found}"


def test_refused() -> None:
    call = {"who": "summary", "argument": "fusion", "error": ShapeError}
    linear, features = nn.Linear(2, 2), batch_of()
    assert_refused(lambda: summary(linear, features), got="got Linear", **call)
    message = "expected `features` to name modalities"
    with pytest.raises(ShapeError, match=message):
        summary(make(), {"touch": torch.randn(4, 3, 7)})
