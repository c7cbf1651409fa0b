"""What eager mode on the CPU computes tile by tile: the same numbers, and honest randomness."""

import dataclasses
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

import strategies
from grf_fusion import ShapeError, SymmetricCrossAttentionBlock
from grf_fusion._checks import tracing
from grf_fusion._eager import dropout as _dropout
from grf_fusion._eager import dropped_attention as _dropped_attention
from grf_fusion._eager import layout as _layout
from grf_fusion._eager.dropout import DropoutMask, drop
from grf_fusion._eager.dropped_attention import Group, Piece, Plan
from grf_fusion._layers import attention as _attention
from properties import (
    Case,
    Named,
    assert_close,
    baseline_case,
    compute_in_tiles,
    fusion_case,
    weighted_sum,
)
from strategies import FusionCall

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
DROPOUTS = pytest.mark.parametrize("dropout", [0.0, 0.3])
DIM, HEADS = 15, 3


@pytest.fixture(params=[7, 60, 300, 2**17], ids="tile {}".format)
def tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Entries of a tile, from less than a row of them to all at once."""
    for module in (_dropout, _dropped_attention):
        monkeypatch.setattr(module, "TILE", request.param)
    return request.param


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the tiles for inputs of any size."""
    compute_in_tiles(monkeypatch)


def leaves(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    torch.manual_seed(3)
    return [torch.randn(shape, dtype=dtype).requires_grad_() for shape in shapes]


def with_gradients(result: Tensor, inputs: list[Tensor]) -> dict[str, Tensor]:
    generator = torch.Generator(torch.get_default_device()).manual_seed(4)
    weights = torch.randn(result.shape, generator=generator, dtype=torch.float64)
    found = torch.autograd.grad((weights.to(result.dtype) * result).sum(), inputs)
    return {"result": result} | {f"gradient {i}": value for i, value in enumerate(found)}


PIECES = {
    "one each": ((4, 9), (1, 2), (7, 7)),
    "long": ((40, 31),),
}


def attention_case(kind: str, dtype: torch.dtype) -> tuple[list[Tensor], tuple[Piece, ...]]:
    if kind == "masked":
        allowed = torch.tensor([[1, 1, 0, 1, 1], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]]).bool()
        piece = Group(3, (0, 12), None), Group(3, (0, 15), allowed[:, None, None, :])
        return leaves((12, 2, 3), (15, 2, 3), (15, 2, 3), dtype=dtype), (piece,)
    made: list[Piece] = []
    query = key = 0
    for queries, keys in PIECES[kind]:
        of_queries = Group(1, (query, query + queries), None)
        made.append((of_queries, Group(1, (key, key + keys), None)))
        query, key = query + queries, key + keys
    return leaves((query, 2, 3), (key, 2, 3), (key, 2, 3), dtype=dtype), tuple(made)


def attention_formula(
    inputs: list[Tensor], pieces: tuple[Piece, ...], dropout: float, tile: int
) -> Tensor:
    """Sample by sample and head by head; the bits come in the order of the tiles."""
    q, k, v = inputs
    keep = DropoutMask(dropout, 5)
    read: list[Tensor] = []
    for (samples, (q0, q1), _), (_, (k0, k1), allowed) in pieces:
        rows, columns = (q1 - q0) // samples, (k1 - k0) // samples
        heads, height = (1, max(1, tile // columns))
        if rows * columns <= tile:
            heads, height = tile // (rows * columns), rows
        kept = torch.empty(samples * q.shape[1], rows, columns, dtype=q.dtype)
        for a in range(0, len(kept), heads):
            for i in range(0, rows, height):
                part = kept[a : a + heads, i : i + height]
                part.copy_(keep.fill(torch.empty(part.shape, dtype=q.dtype)))
        for sample in range(samples):
            query = q[q0 + sample * rows :][:rows]
            key, value = (x[k0 + sample * columns :][:columns] for x in (k, v))
            heads_read: list[Tensor] = []
            for head in range(q.shape[1]):
                scores = query[:, head] @ key[:, head].T / q.shape[2] ** 0.5
                if allowed is not None:
                    scores = scores.masked_fill(~allowed[sample, 0], -torch.inf)
                weights = scores.softmax(dim=1) * kept[sample * q.shape[1] + head]
                heads_read.append(weights @ value[:, head] / (1 - dropout))
            read.append(torch.stack(heads_read, dim=1))
    return torch.cat(read)


@DTYPES
@pytest.mark.parametrize("kind", ["one each", "long", "masked"])
def test_attention_with_dropout_is_the_formula(kind: str, dtype: torch.dtype, tile: int) -> None:
    inputs, pieces = attention_case(kind, dtype)
    result = _dropped_attention._Attention.call(*inputs, Plan(pieces, 0.3, 5))
    expected = attention_formula(inputs, pieces, 0.3, tile)
    assert_close(with_gradients(result, inputs), with_gradients(expected, inputs))


@pytest.mark.parametrize("kind", ["one each", "masked"])
def test_gradients_of_attention_can_be_differentiated(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_dropped_attention, "TILE", 60)
    inputs, pieces = attention_case(kind, torch.float64)
    plan = Plan(pieces, 0.3, 5)
    assert torch.autograd.gradgradcheck(
        lambda *given: _dropped_attention._Attention.call(*given, plan), inputs
    )


def test_gradients_that_can_be_differentiated_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are computed in another way, and have to drop the same entries."""
    monkeypatch.setattr(_dropped_attention, "TILE", 60)
    inputs, pieces = attention_case("masked", torch.float64)
    result = _dropped_attention._Attention.call(*inputs, Plan(pieces, 0.3, 5))
    loss = result.square().sum()
    plain, again = (
        torch.autograd.grad(loss, inputs, create_graph=create, retain_graph=True)
        for create in (False, True)
    )
    assert_close(dict(enumerate(again)), dict(enumerate(plain)))


def twice(case: Case) -> tuple[Named, Named, Named]:
    """Gradients, gradients that can be differentiated, and gradients of a sum of these."""
    leaves = {name: value.clone().requires_grad_() for name, value in case.values.items()}
    inputs = dict(case.module.named_parameters()) | leaves

    def gradients(of: Tensor, **options: Any) -> Named:
        found = torch.autograd.grad(of, list(inputs.values()), materialize_grads=True, **options)
        return dict(zip(inputs, found, strict=True))

    with sdpa_kernel(SDPBackend.MATH):
        loss = weighted_sum(dataclasses.replace(case, values=leaves).outputs())
        plain = gradients(loss, retain_graph=True)
        again = gradients(loss, create_graph=True)
        return plain, again, gradients(weighted_sum(again))


def assert_can_be_differentiated(case: Case) -> None:
    with pytest.MonkeyPatch.context() as patch:
        compute_in_tiles(patch, tile=29)
        plain, again, second = twice(case)
    assert_close(again, plain)
    if not case.module.training:
        assert_close(second, twice(case)[2])


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@strategies.examples(25)
@given(call=strategies.fusion_calls(dtype=torch.float64))
def test_gradients_of_a_chain_can_be_differentiated(call: FusionCall, dropout: float) -> None:
    """Steps that share weights read what the same weights have made."""
    case = fusion_case(call, dropout=dropout)
    case.module.train(dropout > 0)
    assert_can_be_differentiated(case)


@pytest.mark.parametrize("kind", strategies.BASELINES)
@strategies.examples(10)
@given(data=st.data())
def test_gradients_of_a_baseline_can_be_differentiated(kind: str, data: st.DataObject) -> None:
    assert_can_be_differentiated(baseline_case(data.draw(strategies.baseline_calls(kind))))


def test_only_gradients_that_are_wanted_are_differentiated_again() -> None:
    (x, *others), pieces = attention_case("masked", torch.float64)
    frozen = [other.detach() for other in others]
    result = _dropped_attention._Attention.call(x, *frozen, Plan(pieces, 0.3, 5))
    (gradient,) = torch.autograd.grad(result.square().sum(), [x], create_graph=True)
    torch.autograd.grad(gradient.sum(), [x])


@pytest.mark.parametrize("probability", [1e-6, 0.1, 0.5, 0.9, 1 - 1e-6])
def test_the_share_that_is_dropped_is_the_probability(probability: float) -> None:
    number = 2**20
    kept = DropoutMask(probability, seed=1).fill(torch.empty(number, dtype=torch.float64))
    assert set(kept.unique().tolist()) <= {0.0, 1.0}
    spread = (probability * (1 - probability) / number) ** 0.5
    assert abs(kept.mean().item() - (1 - probability)) < 5 * spread + 2**-16


def test_neighbours_and_tiles_are_dropped_independently() -> None:
    keep = DropoutMask(0.5, seed=1)
    first, second = (keep.fill(torch.empty(2**18, dtype=torch.float64)) for _ in range(2))
    bound = 5 * 0.5 / 2**9
    for lag in range(1, 9):
        assert abs((first[lag:] * first[:-lag]).mean().item() - 0.25) < bound
    assert abs((first * second).mean().item() - 0.25) < bound
    other = DropoutMask(0.5, seed=2).fill(torch.empty_like(first))
    assert abs((first * other).mean().item() - 0.25) < bound
    assert torch.equal(first, DropoutMask(0.5, seed=1).fill(torch.empty_like(first)))


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize("residual", [False, True])
def test_what_is_dropped_gets_no_gradient_and_the_residual_all(residual: bool) -> None:
    """With a seed for each call: two calls drop different entries."""
    values, before = leaves((128, 65), (128, 65))
    module = nn.Dropout(0.3)
    torch.manual_seed(1)
    first, second = (drop(module, values, before if residual else None) for _ in range(2))
    kept = (first - before * residual) / values * 0.7
    assert_close({"kept": kept}, {"kept": kept.round()})
    assert 0.6 < kept.mean().item() < 0.8
    assert 0.3 < (first != second).double().mean().item() < 0.55
    torch.manual_seed(1)
    assert torch.equal(first, drop(module, values, before if residual else None))
    weight = torch.randn_like(first)
    of_values, *of_before = torch.autograd.grad(
        (weight * first).sum(), [values, before] if residual else [values]
    )
    assert_close({"values": of_values}, {"values": weight * kept.round() / 0.7})
    assert all(torch.equal(found, weight) for found in of_before)


@pytest.mark.usefixtures("always")
def test_dropout_can_be_differentiated_twice() -> None:
    def call(values: Tensor, residual: Tensor) -> Tensor:
        torch.manual_seed(1)
        return drop(nn.Dropout(0.3), values, residual) ** 2

    assert torch.autograd.gradgradcheck(call, leaves((3, 5), (3, 5)))


def make_block(**options: Any) -> SymmetricCrossAttentionBlock:
    torch.manual_seed(1)
    return SymmetricCrossAttentionBlock(
        DIM, num_heads=HEADS, num_layers=2, dtype=torch.float64, **options
    )


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("pooled", [False, True])
def test_dropout_of_attention_keeps_the_mean(pooled: bool, packing: bool) -> None:
    """Over many draws attention with dropout reads what attention without it reads."""
    block = make_block(dropout=0.3, pooled_context=pooled, packing=packing)
    attention = block.modality_layers[0].self_attn
    number = 4000
    # Each sample of a batch has draws of its own.
    sequence = torch.randn(2, 5, DIM).double().repeat(number, 1, 1)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 1, 0, 0]]).bool().repeat(number, 1)
    layout: Any = _layout.Padded(mask)
    if packing:
        (layout,) = _layout.lay_out([sequence], [mask])
    rows = layout.pack(sequence) if packing else sequence

    def read(module: nn.Module) -> Tensor:
        found = layout.unpack(module(rows, rows, layout, layout, need_weights=False)[0])
        return found.detach().view(number, 2, 5, DIM)

    expected = read(attention.eval())[0]
    draws = read(attention.train())
    deviation = draws.std(dim=0) / number**0.5
    assert deviation.max() > 0
    assert ((draws.mean(dim=0) - expected).abs() <= 6 * deviation + 1e-12).all()


class Doubled(nn.Linear):
    """An adapted layer: what it computes is not what its weight says."""

    def forward(self, features: Tensor) -> Tensor:
        """Return twice the projection."""
        return 2 * super().forward(features)


ADAPTABLE = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "linear1", "linear2"]


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("how", ["class", "hook", "pre-hook", "no bias", "forward"])
@pytest.mark.parametrize("name", ADAPTABLE)
def test_an_adapted_layer_is_called(name: str, how: str) -> None:
    block = make_block()
    layer = block.modality_layers[0]
    context, modality = torch.randn(3, 4, DIM).double(), torch.randn(3, 11, DIM).double()
    plain = layer.get_submodule(name)
    if how == "class":
        adapted = Doubled(
            plain.in_features, plain.out_features, bias=plain.bias is not None, dtype=torch.float64
        )
        adapted.load_state_dict(plain.state_dict())
        layer.set_submodule(name, adapted)
    elif how == "hook":
        plain.register_forward_hook(lambda _module, _given, result: 2 * result)
    elif how == "forward":
        own = plain.forward
        plain.forward = lambda given: 2 * own(given)
    elif how == "no bias":
        bare = nn.Linear(plain.in_features, plain.out_features, bias=False, dtype=torch.float64)
        bare.weight = nn.Parameter(2 * plain.weight.detach())
        layer.set_submodule(name, bare)
    else:
        plain.register_forward_pre_hook(lambda _module, given: (2 * given[0],))
    called = block(context, modality)[1]
    expected = make_block()
    with torch.no_grad():
        twice = expected.modality_layers[0].get_submodule(name)
        twice.weight.mul_(2)
        if twice.bias is not None and how != "pre-hook":
            twice.bias.mul_(0 if how == "no bias" else 2)
    assert_close({"modality": called}, {"modality": expected(context, modality)[1]})


HOOKS: dict[str, Any] = {
    "forward": nn.Module.register_forward_hook,
    "before forward": nn.Module.register_forward_pre_hook,
    "backward": nn.Module.register_full_backward_hook,
    "before backward": nn.Module.register_full_backward_pre_hook,
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", HOOKS)
def test_hooks_are_called_whatever_the_size(kind: str, training: bool) -> None:
    """Of which part a hook is called depends on nothing but the parts that there are."""
    called: list[list[str]] = []
    for few in (0, math.inf):
        block = make_block(self_attention=True, dropout=0.3).train(training)
        names = {module: name for name, module in block.named_modules()}
        seen: list[str] = []

        def note(module: nn.Module, *_: object, seen: Any = seen, names: Any = names) -> None:
            seen.append(names[module])

        for module in names:
            HOOKS[kind](module, note)
        context, modality = leaves((3, 4, DIM), (3, 11, DIM))
        with pytest.MonkeyPatch.context() as patch:
            for part in (_attention, _dropout, _layout):
                patch.setattr(part, "FEW", few)
            sum(result.square().sum() for result in block(context, modality)).backward()
        called.append(sorted(seen))
    assert called[0] == called[1]
    # A list of layers is no step of the computation.
    left_out = set(names.values()) - set(called[0])
    assert left_out == {"context_layers", "modality_layers"}


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("packing", [False, True])
def test_another_default_device_changes_nothing(packing: bool) -> None:
    """New tensors go where the inputs are, and bits come from the processor's generator."""
    context, modality = leaves((3, 4, DIM), (3, 11, DIM))
    mask = torch.rand(3, 11) < 0.6
    found: list[list[Tensor]] = []
    for device in ("cpu", "meta"):
        block = make_block(dropout=0.3, packing=packing)
        torch.manual_seed(7)
        with torch.device(device):
            results = block(context, modality, modality_mask=mask)
            loss = sum(result.square().sum() for result in results)
            found.append(list(torch.autograd.grad(loss, [context, modality], create_graph=True)))
            found[-1] += torch.autograd.grad(found[-1][0].sum(), [modality])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.usefixtures("always")
def test_a_dropout_of_the_users_is_called() -> None:
    """After self-attention, cross-attention and feed-forward, and inside the last."""
    widths: list[int] = []

    class Recording(nn.Dropout):
        def forward(self, x: Tensor) -> Tensor:
            widths.append(x.shape[-1])
            return x

    block = make_block(dropout=0.3, dim_feedforward=7).eval()
    context, modality = torch.randn(3, 4, DIM).double(), torch.randn(3, 11, DIM).double()
    expected = block(context, modality)[1]
    block.modality_layers[0].dropout = Recording(0.3)
    assert_close({"modality": block(context, modality)[1]}, {"modality": expected})
    assert widths == [DIM, DIM, 7, DIM]


def block_call(block: nn.Module, weights: dict[str, Tensor], sequence: Tensor) -> Tensor:
    given = (sequence[:, :3], sequence)
    return sum(x.square().sum() for x in functional_call(block, weights, given))


@pytest.mark.usefixtures("always")
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_transforms_of_functions_work() -> None:
    """The gradient, and vmap of it for the gradients of each sample."""
    block = make_block(packing=False)
    weights = {name: value.detach() for name, value in block.named_parameters()}
    sequence = torch.randn(4, 7, DIM).double()
    (plain,) = torch.autograd.grad(
        block_call(block, weights, sequence.requires_grad_()), [sequence]
    )
    sequence = sequence.detach()

    def loss(one: Tensor) -> Tensor:
        return block_call(block, weights, one.unsqueeze(0))

    assert_close({"grad": grad(lambda x: block_call(block, weights, x))(sequence)}, {"grad": plain})
    assert_close({"vmap": vmap(grad(loss))(sequence)}, {"vmap": plain})


@pytest.mark.usefixtures("always")
# PyTorch scripts its own formulas for this mode; 2.15 warns of it in another class than before.
@pytest.mark.filterwarnings(r"ignore:`torch\.jit\.")
@pytest.mark.parametrize("how", ["jvp", "dual"])
def test_forward_mode_works_in_both_forms(how: str) -> None:
    """Our own functions have no rule for it, so that PyTorch's dropout has to take their place."""
    dropout = nn.Dropout(0.3)
    x, tangent = torch.rand(2, 40, DIM).double() + 1
    if how == "jvp":
        value, found = jvp(lambda given: drop(dropout, given), (x,), (tangent,))
    else:
        with forward_ad.dual_level():
            dual = drop(dropout, forward_ad.make_dual(x, tangent))
            value, found = forward_ad.unpack_dual(dual)
    assert 0 < (value == 0).double().mean() < 1
    assert_close({"tangent": found}, {"tangent": torch.where(value == 0, 0.0, tangent / 0.7)})


def test_tiles_are_for_plain_tensors_in_full_precision() -> None:
    x = torch.zeros(3)
    assert tracing.is_plain_call(x)
    assert not tracing.is_plain_call(x.half())
    assert not tracing.is_plain_call(x.to("meta"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not tracing.is_plain_call(x)


# Without the part; PyTorch itself needs it.
PRIVATE = {
    "transforms": ("C", SimpleNamespace(_functorch=torch._C._functorch)),
    "forward mode": ("forward_ad", SimpleNamespace()),
}


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("part", PRIVATE)
def test_without_a_private_part_of_pytorch_its_own_layers_compute(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, modality = leaves((3, 4, DIM), (3, 11, DIM))
    mask = torch.rand(3, 11) < 0.6
    block = make_block(dropout=0.3, packing=True)
    expected = block.eval()(context, modality, modality_mask=mask)
    monkeypatch.setattr(tracing, *PRIVATE[part])
    assert not tracing.is_plain_call(context)
    found = block(context, modality, modality_mask=mask)
    assert_close(dict(enumerate(found)), dict(enumerate(expected)))
    monkeypatch.setattr(_dropout, "DropoutMask", None)
    monkeypatch.setattr(_dropped_attention, "DropoutMask", None)
    block.train()(context, modality, modality_mask=mask)[1].sum().backward()


def test_without_the_question_for_vmap_a_transform_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(2, 3)
    active = torch._C._are_functorch_transforms_active
    for functorch in ({"_functorch": SimpleNamespace()}, {}):
        part = SimpleNamespace(_are_functorch_transforms_active=active, **functorch)
        monkeypatch.setattr(tracing, "C", part)
        seen: list[bool] = []
        vmap(lambda row, seen=seen: seen.append(tracing.is_batched(row)) or row)(x)
        assert [*seen, tracing.is_batched(x)] == [True, False]


def test_only_what_vmap_maps_over_cannot_be_read() -> None:
    rows, whole = torch.zeros(2, 3), torch.ones(3)
    seen: list[tuple[bool, bool]] = []
    vmap(lambda row: seen.append((tracing.can_read(row), tracing.can_read(whole))) or row)(rows)
    assert seen == [(False, True)]


def test_without_the_question_for_make_fx_masks_are_still_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept = ("_functorch", "_are_functorch_transforms_active")
    part = SimpleNamespace(**{name: getattr(torch._C, name) for name in kept})
    monkeypatch.setattr(tracing, "C", part)
    assert not tracing.is_plain_call(torch.ones(3))
    with pytest.raises(ShapeError, match="0 and 1"):
        make_block()(*leaves((2, 3, DIM), (2, 3, DIM)), modality_mask=torch.full((2, 3), 7))


@pytest.mark.parametrize("name", [*tracing.FORWARD_HOOKS, *tracing.BACKWARD_HOOKS])
def test_a_layer_without_a_dictionary_of_hooks_is_called(name: str) -> None:
    layer = nn.Linear(2, 3)
    assert tracing.is_untouched(layer)
    delattr(layer, name)
    assert not tracing.is_untouched(layer)


@DTYPES
@pytest.mark.parametrize("without", [None, "out", "_softmax_backward_data"])
def test_gradient_of_softmax(
    without: str | None, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    (scores,) = leaves((2, 5, 7), dtype=dtype)
    weights, gradient = scores.softmax(dim=-1), torch.randn(2, 5, 7, dtype=dtype)
    aten = SimpleNamespace(_softmax_backward_data=torch.ops.aten._softmax_backward_data)
    if without == "out":
        aten = SimpleNamespace(_softmax_backward_data=None)
    elif without:
        aten = SimpleNamespace()
    (expected,) = torch.autograd.grad(weights, [scores], gradient)
    monkeypatch.setattr(tracing.torch, "ops", SimpleNamespace(aten=aten))
    out = torch.empty_like(gradient)
    tracing.softmax_backward(gradient, weights.detach(), out=out)
    monkeypatch.undo()
    assert_close({"scores": out}, {"scores": expected})


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("packing", [False, True])
def test_checkpointing_changes_no_number(packing: bool, dropout: float) -> None:
    context, modality = leaves((3, 4, DIM), (3, 11, DIM))
    mask = torch.rand(3, 11) < 0.6
    found: list[dict[str, Tensor]] = []
    for checkpoint in (False, True):
        block = make_block(checkpoint=checkpoint, packing=packing, dropout=dropout)
        torch.manual_seed(7)
        results = block(context, modality, modality_mask=mask)
        parameters = dict(block.named_parameters())
        gradients = torch.autograd.grad(
            sum(result.square().sum() for result in results),
            [context, modality, *parameters.values()],
        )
        names = ["context", "modality", *parameters]
        found.append(dict(zip(names, gradients, strict=True)) | {"result": results[1]})
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name


@pytest.mark.usefixtures("always")
def test_checkpointing_keeps_less() -> None:
    """Bytes that autograd keeps for the backward pass."""
    context, modality = leaves((3, 4, DIM), (3, 70, DIM))
    kept: dict[bool, int] = {}
    for checkpoint in (False, True):
        block = make_block(checkpoint=checkpoint, dropout=0.1)
        weights = {parameter.data_ptr() for parameter in block.parameters()}
        saved: dict[int, int] = {}

        def pack(x: Tensor, saved: dict[int, int] = saved, weights: set[int] = weights) -> Tensor:
            if x.data_ptr() not in weights:
                saved[x.data_ptr()] = x.nbytes
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            block(context, modality)
        kept[checkpoint] = sum(saved.values())
    assert kept[True] < kept[False] / 4
