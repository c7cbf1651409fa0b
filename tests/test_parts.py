"""What a chain and an adapter call of their own block and unit, and how many calls that takes."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from forms import BASELINES, BATCH, DIM, FUSIONS, HEADS, TIMES, WIDTHS, make, make_call
from grf_fusion import (
    FusionAdapter,
    GatedFusionUnit,
    GatedRecurrentFusion,
    SymmetricCrossAttentionBlock,
)
from grf_fusion._chain import step as step_module
from properties import assert_close

WITH_A_BLOCK = ["residual", "paper", "first sequence", "sequence", "paper, sequence"]


# Of Python functions of ours, for three modalities without masks.
MOST_CALLS = {"default": 104, "residual": 269, "paper": 268, "first sequence": 231, "adapter": 289}


def replace_forward(part: nn.Module, note: Callable[..., Any]) -> nn.Module:
    own = part.forward

    def forward(*given: Any, **more: Any) -> Any:
        note()
        return own(*given, **more)

    part.forward = forward
    return part


def compile_in_place(part: nn.Module, note: Callable[..., Any]) -> nn.Module:
    def backend(graph: Any, _inputs: Any) -> Any:
        return lambda *given: note() or graph.forward(*given)

    part.compile(backend=backend)
    return part


def subclass(part: nn.Module, note: Callable[..., Any]) -> nn.Module:
    class Ours(type(part)):
        def forward(self, *given: Any, **more: Any) -> Any:
            note()
            return super().forward(*given, **more)

    part.__class__ = Ours
    return part


def wrap(part: nn.Module, note: Callable[..., Any]) -> nn.Module:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = part

        def forward(self, *given: Any, **more: Any) -> Any:
            note()
            return self.part(*given, **more)

    return Wrapper()


def hook(part: nn.Module, note: Callable[..., Any]) -> nn.Module:
    part.register_forward_hook(lambda *_: note())
    return part


def pre_hook(part: nn.Module, note: Callable[..., Any]) -> nn.Module:
    part.register_forward_pre_hook(lambda *_: note())
    return part


LISTENERS = {
    "hook": hook,
    "pre-hook": pre_hook,
    "forward": replace_forward,
    "subclass": subclass,
    "wrapper": wrap,
    "compiled": compile_in_place,
}


def call(module: nn.Module) -> Tensor:
    """Call a fusion or an adapter with padding, and samples that lack everything or something."""
    torch.manual_seed(1)
    dtype = torch.float64
    features = {n: torch.randn(BATCH, t, WIDTHS[n], dtype=dtype) for n, t in TIMES.items()}
    masks = {name: torch.rand(BATCH, time) < 0.6 for name, time in TIMES.items()}
    present = torch.tensor([[1, 1, 1], [0, 1, 1], [0, 0, 0], [1, 0, 0], [1, 1, 0]])
    more = {"masks": masks, "present": present}
    if not isinstance(module, FusionAdapter):
        return module(features, **more)
    hidden = torch.randn(BATCH, 8, DIM, dtype=dtype)
    return module(hidden, features, mask=torch.rand(BATCH, 8) < 0.7, **more)


def build(form: str, **options: Any) -> nn.Module:
    torch.manual_seed(3)
    if form == "adapter":
        module = FusionAdapter(WIDTHS, embed_dim=DIM, num_heads=HEADS, **options).double()
        nn.init.ones_(module.unit.gate_scale)
        return module
    return make(form, **options).double()


@pytest.mark.parametrize(
    "how", [p if p != "compiled" else pytest.param(p, marks=pytest.mark.compile) for p in LISTENERS]
)
@pytest.mark.parametrize("packing", [False, "auto"])
@pytest.mark.parametrize("form", [*WITH_A_BLOCK, "default", "adapter"])
def test_a_part_that_somebody_listens_to_is_called(form: str, packing: Any, how: str) -> None:
    """Hooks, subclasses, wrappers, and compiled or replaced forwards: called once a step."""
    torch.compiler.reset()
    options = {} if form == "default" else {"packing": packing}
    plain = build(form, **options)
    expected = call(plain)
    for name in ("block", "unit"):
        module, calls = build(form, **options), []
        part = getattr(module, name)
        if part is None:
            continue
        setattr(module, name, LISTENERS[how](part, lambda calls=calls: calls.append(1)))
        # A compiler looks at gradients, which a tensor inside a chain has none of.
        with torch.no_grad():
            assert_close({"": call(module)}, {"": expected})
        steps = len(WIDTHS) - (form not in ("default", "residual", "adapter"))
        # A compiler may cut a call into several graphs.
        assert len(calls) == steps or (how == "compiled" and len(calls) > steps)


@pytest.mark.compile
@pytest.mark.parametrize("ours", [True, False])
def test_outputs_of_a_compiled_unit_are_not_selected(
    ours: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It still is our unit, unlike one with a hook, whose result may be its own state."""
    torch.compiler.reset()
    fusion, selections, select = build("default"), [], step_module._select

    def noting(*given: Tensor) -> Tensor:
        selections.append(given)
        return select(*given)

    monkeypatch.setattr(step_module, "_select", noting)
    features = {n: torch.randn(BATCH, t, WIDTHS[n]).double() for n, t in TIMES.items()}
    expected = fusion(features)
    fusion.unit.compile(backend="aot_eager")
    if not ours:
        fusion.unit.register_forward_hook(lambda *_: None)
    with torch.no_grad():
        assert_close({"": fusion(features)}, {"": expected})
    assert len(selections) == (0 if ours else len(WIDTHS))


@pytest.mark.cpu_only
@pytest.mark.parametrize("form", MOST_CALLS)
def test_a_step_is_decided_once(form: str) -> None:
    """No question is asked twice and nothing of our own is checked: few Python calls."""
    module = build(form)
    features = {n: torch.randn(BATCH, t, WIDTHS[n]).double() for n, t in TIMES.items()}
    given = (features,)
    if form == "adapter":
        given = (torch.randn(BATCH, 8, DIM).double(), features)
    module(*given)
    calls: list[str] = []

    def note(frame: FrameType, event: str, _value: object) -> None:
        if event == "call" and "grf_fusion" in frame.f_code.co_filename:
            calls.append(frame.f_code.co_qualname)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        module(*given)
    finally:
        sys.setprofile(before)
    assert len(calls) <= MOST_CALLS[form]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("form", "options"),
    [(form, {"packing": p}) for form in (*FUSIONS, "adapter") for p in ("auto", True, False)]
    + [(form, {}) for form in BASELINES],
    ids=str,
)
def test_a_batch_may_hold_no_sample(form: str, options: dict[str, Any], training: bool) -> None:
    """As the last one of a data loader that filters: no error, and gradients of 0."""
    if form == "adapter":
        module = FusionAdapter(WIDTHS, embed_dim=DIM, num_heads=HEADS, **options)
    else:
        module = make(form, **options)
    call = make_call(torch.get_default_device())
    parts = call["features"], call["masks"]
    features, masks = ({name: x[:0] for name, x in part.items()} for part in parts)
    module.train(training)
    hidden = (torch.zeros(0, 8, DIM),) if form == "adapter" else ()
    result = module(*hidden, features, masks=masks, present=call["present"][:0])
    result.sum().backward()
    assert result.isfinite().all()
    assert form == "alignment" or result.shape[0] == 0
    gradients = [x.grad for x in module.parameters() if x.grad is not None]
    assert not any(gradient.any() for gradient in gradients)


def test_a_learned_context_starts_small() -> None:
    """Beside the first summary, which is normalised, it hardly counts."""
    torch.manual_seed(0)
    start = GatedRecurrentFusion({"text": 1}, embed_dim=512).initial_context
    assert start is not None
    assert abs(start.mean().item()) < 0.003
    assert 0.017 < start.std().item() < 0.023


class Quantised(nn.Module):
    """A projection as a quantiser leaves it: weights of another dtype than its result."""

    def __init__(self, own: nn.Linear) -> None:
        super().__init__()
        self.scale = own.weight.detach().abs().max() / 127
        self.register_buffer("weight", (own.weight.detach() / self.scale).round().to(torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T.to(x.dtype) * self.scale


@pytest.mark.parametrize("context", ["sequence", "first_sequence"])
# The projection that is declared first tells the dtype of the fusion.
@pytest.mark.parametrize("opener", list(WIDTHS)[1:])
def test_a_quantised_projection_opens_in_the_dtype_of_its_result(context: str, opener: str) -> None:
    module = make("residual", context=context)
    projection = module.projections[opener] = Quantised(module.projections[opener])
    x = torch.randn(BATCH, TIMES[opener], WIDTHS[opener])
    state = module.step(None, opener, x)
    assert_close({"context": state.context}, {"context": projection(x)})


@pytest.mark.parametrize("form", ["default", "residual", "paper", "sequence"])
def test_a_quantised_projection_is_given_whole_positions(form: str) -> None:
    """As one of the same weights in float is, and not positions in the dtype of its weights."""
    plain, quantised = make(form).eval(), make(form).eval()
    quantised.load_state_dict(plain.state_dict())
    name = list(WIDTHS)[1]
    own = quantised.projections[name] = Quantised(quantised.projections[name])
    with torch.no_grad():
        plain.projections[name].weight.copy_(own.weight * own.scale)
        plain.projections[name].bias.zero_()
        features = {n: torch.randn(BATCH, time, WIDTHS[n]) for n, time in TIMES.items()}
        assert_close({"": quantised(features)}, {"": plain(features)})


@pytest.mark.parametrize("part", [SymmetricCrossAttentionBlock, GatedFusionUnit])
def test_what_a_subclass_returns_is_checked(part: type[nn.Module]) -> None:
    module = build("residual")
    name = "block" if part is SymmetricCrossAttentionBlock else "unit"

    class Wrong(part):
        def forward(self, *_given: Any, **_more: Any) -> Any:
            return None

    getattr(module, name).__class__ = Wrong
    with pytest.raises(ValueError, match=rf"expected `{name}\(\)` to return a pair"):
        call(module)


@pytest.mark.parametrize(
    ("context", "options", "dtype", "wrong"),
    [
        ("sequence", {"pooled_context": True}, None, "With pooled_context=True the context is one"),
        ("first_sequence", {"pooled_context": True}, None, "With pooled_context=True the context"),
        (
            "sequence",
            {"pooled_context": True, "symmetric": False},
            None,
            "With pooled_context=True",
        ),
        ("sequence", {"embed_dim": 2 * DIM}, None, "expected `context` of shape"),
        ("sequence", {}, torch.float64, "expected `context` of dtype torch.float64"),
    ],
)
def test_a_block_of_the_user_that_does_not_fit_is_refused(
    context: str, options: dict[str, Any], dtype: torch.dtype | None, wrong: str
) -> None:
    own = {"embed_dim": DIM, "num_heads": HEADS} | options

    def block() -> nn.Module:
        return SymmetricCrossAttentionBlock(**own, dtype=dtype)

    fusion = make("residual", context=context, opening="first", block=block)
    features = {name: torch.randn(BATCH, 4, WIDTHS[name]) for name in TIMES}
    with pytest.raises(ValueError, match=wrong):
        fusion(features)


@pytest.mark.parametrize(
    ("width", "dtype", "wrong"),
    [
        (2 * DIM, None, "expected `state` of shape"),
        (DIM, torch.float64, "expected `state` of dtype torch.float64"),
    ],
)
@pytest.mark.parametrize("form", ["default", "residual"])
def test_a_unit_of_the_user_that_does_not_fit_is_refused(
    form: str, width: int, dtype: torch.dtype | None, wrong: str
) -> None:
    fusion = make(form, unit=lambda: GatedFusionUnit(width, dtype=dtype))
    features = {name: torch.randn(BATCH, 4, WIDTHS[name]) for name in TIMES}
    with pytest.raises(ValueError, match=wrong):
        fusion(features)


def test_a_part_keeps_the_mode_its_factory_gave_it() -> None:
    for share in (False, True):
        fusion = make("residual", share_weights=share, unit=lambda: GatedFusionUnit(DIM).eval())
        units = [fusion.unit] if share else list(fusion.units.values())
        assert not any(unit.training for unit in units)


@pytest.mark.compile
@pytest.mark.parametrize("part", ["block", "unit"])
def test_a_replaced_forward_is_called_in_a_compiled_graph(part: str) -> None:
    fusion = build("residual").eval()
    own = getattr(fusion, part).forward

    def doubled(*given: Any, **more: Any) -> Any:
        first, second = own(*given, **more)
        return 2 * first, second

    getattr(fusion, part).forward = doubled
    features = {n: torch.randn(BATCH, t, WIDTHS[n]).double() for n, t in TIMES.items()}
    with torch.no_grad():
        found = torch.compile(fusion, backend="eager", fullgraph=True)(features)
        assert_close({"": found}, {"": fusion(features)})


@pytest.mark.parametrize("form", ["default", "residual", "paper"])
def test_a_weight_is_read_where_its_layer_is_called(form: str) -> None:
    """Sharded weights are whole nowhere else (FSDP, ZeRO-3)."""
    module = build(form).eval()
    expected = call(module)

    def gather(layer: nn.Linear, _given: Any) -> None:
        layer.weight.data = layer.whole

    def free(layer: nn.Linear, _given: Any, _result: Any) -> None:
        layer.weight.data = torch.empty(0, dtype=torch.float64)

    for layer in module.projections.values():
        layer.whole = layer.weight.data
        layer.register_forward_pre_hook(gather)
        layer.register_forward_hook(free)
        free(layer, None, None)
    assert_close({"": call(module)}, {"": expected})


@pytest.mark.parametrize(
    ("form", "opening"),
    [(form, "first") for form in [*WITH_A_BLOCK, "default"]]
    + [(form, "learned") for form in ("residual", "paper", "default")],
)
def test_a_complete_batch_is_computed_as_one_whose_presence_is_given(
    form: str, opening: str
) -> None:
    """Without masks and `present` nothing is selected; with all True everything is."""
    module = build(form, opening=opening)
    features = {n: torch.randn(BATCH, t, WIDTHS[n]).double() for n, t in TIMES.items()}
    every = torch.ones(BATCH, len(WIDTHS), dtype=torch.bool)
    found: list[dict[str, Tensor]] = []
    for present in (None, every):
        module.zero_grad()
        output, trace = module(features, present=present, return_trace=True)
        output.square().sum().backward()
        state = None
        for place, (name, x) in enumerate(features.items()):
            column = None if present is None else present[:, place]
            state = module.step(state, name, x, present=column)
        values = {f"{key}.grad": p.grad for key, p in module.named_parameters()}
        values |= {"output": output, "readout": module.readout(state)}
        values |= {f"trace.{key}": v for key, v in trace._asdict().items() if key != "order"}
        values |= {f"state.{key}": v for key, v in state._asdict().items()}
        found.append({key: v for key, v in values.items() if v is not None})
    assert found[0].keys() == found[1].keys()
    for key, value in found[0].items():
        torch.testing.assert_close(value, found[1][key], rtol=0, atol=1e-12, msg=key)


def test_a_state_keeps_its_type_under_autocast_whatever_a_unit_returns() -> None:
    class Half(nn.Module):
        def forward(self, state: Tensor, _update: Tensor, **_more: Any) -> Any:
            return state.bfloat16(), state.bfloat16()

    fusion = make("default", unit=Half)
    features = {name: torch.randn(BATCH, t, WIDTHS[name]) for name, t in TIMES.items()}
    name = next(iter(features))
    with torch.autocast(features[name].device.type, dtype=torch.bfloat16):
        state = fusion.step(None, name, features[name])
    assert state.context.dtype == torch.float32


class Careless(nn.Module):
    """A unit or block of a user that hands on one of its inputs and ignores the other."""

    def __init__(self, kept: int, *, unit: bool) -> None:
        super().__init__()
        self.kept, self.unit = kept, unit
        self.masks: list[Tensor | None] = []

    def forward(self, first: Tensor, second: Tensor, **given: Any) -> tuple[Tensor, Tensor]:
        if self.unit:
            kept = (first, second)[self.kept]
            return kept, torch.ones_like(kept)
        self.masks.append(given["context_mask"])
        none = first.new_zeros(()), second.new_zeros(())
        pair = [none[0].expand_as(first), none[1].expand_as(second)]
        pair[self.kept] = (first, second)[self.kept]
        return pair[0], pair[1]


def careless(form: str, part: str, kept: int) -> nn.Module:
    given = {} if form == "default" or part == "unit" else {"num_heads": None}
    return build(form, **{part: lambda: Careless(kept, unit=part == "unit")}, **given)


OPENED = ("summary, opening with the first", "opening with the first")
CARELESS = [
    (form, part, kept)
    for form in (
        *WITH_A_BLOCK,
        "default",
        "summary, opening with the first",
        "opening with the first",
    )
    for part in ("unit", "block")
    for kept in (0, 1)
    if part == "unit" or form not in ("default", OPENED[0])
]


@pytest.mark.parametrize(("form", "part", "kept"), CARELESS)
def test_masks_do_not_decide_which_parameters_have_a_gradient(
    form: str, part: str, kept: int
) -> None:
    """The ranks of a distributed job would wait for each other, whatever a user's part ignores."""
    features = {n: torch.randn(BATCH, t, WIDTHS[n]).double() for n, t in TIMES.items()}
    masks = {name: torch.ones(BATCH, time, dtype=torch.bool) for name, time in TIMES.items()}
    found = []
    for given in ({}, {"masks": masks}, {"present": torch.ones(BATCH, 3, dtype=torch.bool)}):
        module = careless(form, part, kept)
        module(features, **given).sum().backward()
        found.append({name for name, weight in module.named_parameters() if weight.grad is None})
    assert found[0] == found[1] == found[2]
    # What is projected is never what somebody ignores.
    if form != "default" and "residual" not in form:
        assert not any("projections" in name for name in found[0])


@pytest.mark.parametrize("form", ["default", "residual", "paper", "sequence"])
def test_a_state_shares_no_memory_with_another(form: str) -> None:
    """Not even where a unit hands on the state that it was given."""
    module = careless(form, "unit", 0)
    features = {n: torch.randn(BATCH, t, WIDTHS[n]).double() for n, t in TIMES.items()}
    # All are kept: what is let go may lie where the next one is made.
    kept = list(module.parameters())
    state = None
    for name, x in features.items():
        state = module.step(state, name, x)
        kept.append(state.context)
        assert state.context.is_contiguous()
    assert len({tensor.data_ptr() for tensor in kept}) == len(kept)


@pytest.mark.parametrize("form", ["first sequence", "sequence", "paper, sequence"])
def test_a_block_gets_the_mask_of_a_context_that_is_a_sequence(form: str) -> None:
    """With masks or without: a block that needs one does not fail on some batches only."""
    module = careless(form, "block", 0)
    features = {n: torch.randn(BATCH, t, WIDTHS[n]).double() for n, t in TIMES.items()}
    module(features)
    first = module.block.masks[0]
    assert first.dtype == torch.bool
    assert first.shape == (BATCH, TIMES["text"])
    assert first.all()
