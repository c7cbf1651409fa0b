"""Valid calls with one thing made wrong: each is refused, by name, before anything is computed."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import strategies
from grf_fusion import (
    FusionState,
    GatedFusionUnit,
    GatedRecurrentFusion,
    ModalityDropout,
    ShapeError,
    SymmetricCrossAttentionBlock,
)
from properties import case_of
from refusal import assert_refused
from strategies import BaselineCall, FusionCall

# 2,600 wrong calls in all; see `test_there_are_enough_examples`.
EXAMPLES = {"forward": 1500, "step": 500, "readout": 150, "block": 250, "unit": 150, "dropout": 50}
CONTEXTS = ("pooled", "first_sequence", "sequence")

Mutate = Callable[[Tensor], object]


@dataclass(frozen=True, kw_only=True)
class WrongCall:
    """A call with one thing wrong.

    Attributes:
        kind: What is wrong, for the report.
        who: Class that has to refuse.
        argument: Arguments that may be blamed.
        module: What is called, in working order.
        method: Name of the method.
        valid: Keyword arguments of the valid call.
        changed: Keyword arguments that the wrong call changes.
    """

    kind: str
    who: str
    argument: tuple[str, ...]
    module: nn.Module
    method: str
    valid: Mapping[str, Any]
    changed: Mapping[str, Any]

    def __call__(self) -> object:
        """Make the wrong call."""
        return getattr(self.module, self.method)(**self.valid | self.changed)


def grow(tensor: Tensor, axis: int) -> Tensor:
    """One more entry along an axis."""
    return torch.cat((tensor, tensor.narrow(axis, 0, 1)), axis)


def shrink(tensor: Tensor, axis: int) -> Tensor | None:
    """One entry fewer along an axis, if one is left then."""
    length = tensor.shape[axis]
    return tensor.narrow(axis, 0, length - 1) if length > 1 else None


def exchange(tensor: Tensor) -> Tensor | None:
    """Another order of the last two axes, if that is another shape."""
    other = tensor.transpose(-2, -1) if tensor.ndim > 1 else tensor
    return other if other.shape != tensor.shape else None


def poison(mask: Tensor, value: int) -> Tensor:
    """An integer mask with a value that is no truth value."""
    mask = mask.to(torch.int64).clone()
    mask.view(-1)[-1] = value
    return mask


def other_float(tensor: Tensor) -> Tensor:
    """The float dtype of the two that a tensor does not have."""
    return tensor.to(torch.float32 if tensor.dtype == torch.float64 else torch.float64)


# What is never features of a known rank, width and dtype. None: does not apply to this tensor.
OF_FLOATS: dict[str, Mutate] = {
    "without its last axis": lambda x: x[..., 0],
    "without its first axis": lambda x: x[0],
    "one more axis in front": lambda x: x.unsqueeze(0),
    "one more axis inside": lambda x: x.unsqueeze(1),
    "one more axis behind": lambda x: x.unsqueeze(-1),
    "only its sum": lambda x: x.sum(),
    "flattened": lambda x: x.reshape(-1) if x.ndim > 1 else None,
    "wider": lambda x: grow(x, -1),
    "narrower": lambda x: shrink(x, -1),
    "of no width": lambda x: x[..., :0],
    "transposed": exchange,
    "as int64": lambda x: x.nan_to_num(0, 0, 0).to(torch.int64),
    "as uint8": lambda x: torch.ones_like(x, dtype=torch.uint8),
    "as bool": lambda x: torch.ones_like(x, dtype=torch.bool),
    "as float16": lambda x: x.to(torch.float16),
    "as bfloat16": lambda x: x.to(torch.bfloat16),
    "as the other float": other_float,
    "as complex": lambda x: x.to(torch.complex64),
    "on another device": lambda x: x.to("meta"),
    "sparse": lambda x: x.to_sparse(),
    "as an array": lambda x: x.cpu().numpy(),
    "as a list": lambda x: x.tolist(),
    "as a list of tensors": list,
    "as a pair": lambda x: (x, None),
    "as a number": lambda _: 1.0,
    "as a string": lambda _: "x",
    "as a module": lambda _: nn.Identity(),
}
OF_SEQUENCES: dict[str, Mutate] = OF_FLOATS | {"of no steps": lambda x: x[:, :0]}

OF_MASKS: dict[str, Mutate] = {
    "longer": lambda x: grow(x, -1),
    "shorter": lambda x: shrink(x, -1),
    "of no entries": lambda x: x[..., :0],
    "of more samples": lambda x: grow(x, 0),
    "of fewer samples": lambda x: shrink(x, 0),
    "transposed": exchange,
    "without its last axis": lambda x: x[..., 0],
    "one more axis inside": lambda x: x.unsqueeze(1),
    "one more axis behind": lambda x: x.unsqueeze(-1),
    "as lengths": lambda x: x.sum(-1),
    "as float32": lambda x: x.to(torch.float32),
    "as float16": lambda x: x.to(torch.float16),
    "as float64": lambda x: x.to(torch.float64),
    "as complex": lambda x: x.to(torch.complex64),
    "as an additive bias": lambda x: torch.zeros(x.shape).masked_fill(x == 0, -torch.inf),
    "with a two": lambda x: poison(x, 2),
    "with a minus one": lambda x: poison(x, -1),
    "with a hundred": lambda x: poison(x, 100),
    "on another device": lambda x: x.to("meta"),
    "sparse": lambda x: x.to_sparse(),
    "as an array": lambda x: x.cpu().numpy(),
    "as a list": lambda x: x.tolist(),
    "as True": lambda _: True,
    "as a string": lambda _: "x",
}

# What is no mapping of the declared names to tensors.
OF_MAPPINGS: dict[str, Callable[[dict[str, Any]], object]] = {
    "an unknown name": lambda x: x | {"unknown.name": None},
    "a misspelt name": lambda x: {f"{name}.": value for name, value in x.items()} or None,
    "a number as a name": lambda x: x | {3: None},
    "None as a name": lambda x: x | {None: None},
    "a pair as a name": lambda x: x | {("text", "audio"): None},
    "values only": lambda x: list(x.values()),
    "pairs": lambda x: tuple(x.items()),
    "names only": set,
    "a string": lambda _: "text",
    "a tensor": lambda _: torch.ones(2, 3, 4),
}
OF_FEATURES = OF_MAPPINGS | {
    "None": lambda _: None,
    "nothing": lambda _: {},
    "only None": dict.fromkeys,
}

OF_ORDERS: dict[str, Callable[[tuple[str, ...]], object]] = {
    "a string": lambda x: x[0],
    "joined": ",".join,
    "a set": set,
    "a generator": iter,
    "a number": len,
    "a mapping": dict.fromkeys,
    "the first left out": lambda x: x[1:],
    "the last left out": lambda x: x[:-1],
    "nothing": lambda _: (),
    "the first twice": lambda x: (*x, x[0]),
    "the last twice": lambda x: (*x, x[-1]),
    "all twice": lambda x: x * 2,
    "the first instead of the last": lambda x: (*x[:-1], x[0]) if len(x) > 1 else None,
    "an unknown name more": lambda x: (*x, "unknown.name"),
    "an unknown name instead": lambda x: (*x[:-1], "unknown.name"),
    "numbers": lambda x: tuple(range(len(x))),
    "None": lambda x: (None,) * len(x),
    "tensors": lambda x: (torch.ones(2),) * len(x),
    "arrays": lambda x: (torch.ones(2).cpu().numpy(),) * len(x),
    "lists": lambda x: [[name] for name in x],
}

OF_NAMES: dict[str, object] = {
    "unknown": "unknown.name",
    "empty": "",
    "None": None,
    "a number": 0,
    "a list": ["text"],
    "a tensor": torch.ones(2),
    "an array": torch.ones(2).cpu().numpy(),
}

OF_STATES: dict[str, Callable[[FusionState], object]] = {
    "a tuple": tuple,
    "a list": list,
    "a mapping": lambda x: x._asdict(),
    "its context": lambda x: x.context,
    "a number": lambda _: 0,
    "a string": lambda _: "state",
}

# What is wrong, which arguments may be blamed, and the keyword arguments that differ; made when it
# is drawn. None: does not apply.
Change = tuple[str, tuple[str, ...], Callable[[], Mapping[str, Any] | None]]
Groups = Mapping[str, list[Change]]


def change(kind: str, blamed: str | tuple[str, ...], **changed: Any) -> Change:
    """One way of making a call wrong."""
    return kind, (blamed,) if isinstance(blamed, str) else blamed, lambda: changed


def changes(
    blamed: str | tuple[str, ...],
    value: Any,
    table: Mapping[str, Callable[[Any], object]],
    place: Callable[[object], Mapping[str, Any]],
) -> list[Change]:
    """All ways in which a table makes a value wrong; `place` puts it into the call."""
    names = (blamed,) if isinstance(blamed, str) else blamed

    def made(mutate: Callable[[Any], object]) -> Mapping[str, Any] | None:
        wrong = mutate(value)
        return None if wrong is None else place(wrong)

    return [
        (f"{names[0]} {kind}", names, functools.partial(made, mutate))
        for kind, mutate in table.items()
    ]


def draw_change(draw: st.DrawFn, groups: Groups) -> tuple[str, tuple[str, ...], Mapping[str, Any]]:
    """Draw a group first, so that large tables do not crowd out the others, and then a change."""
    found = groups[draw(st.sampled_from(sorted(groups)))]
    start = draw(st.integers(0, len(found) - 1))
    for kind, blamed, make in (*found[start:], *found[:start]):
        changed = make()
        if changed is not None:
            return kind, blamed, changed
    raise AssertionError("no change of this group applies")


def replaced(mapping: Mapping[str, Any], name: str, value: object) -> dict[str, Any]:
    """The mapping with another value under one of its names."""
    return {**mapping, name: value}


@st.composite
def wrong_forwards(draw: st.DrawFn) -> WrongCall:
    """A call of `forward` or `presence`, half of them of a baseline."""
    calls = strategies.fusion_calls(max_modalities=3) | strategies.baseline_calls(max_modalities=3)
    call: FusionCall | BaselineCall = draw(calls)
    config = call.config
    names = tuple(config.modalities)
    given = {name: value for name, value in call.features.items() if value is not None}
    absent = [name for name in names if name not in given]
    name = draw(st.sampled_from(sorted(given)))
    tensor, masks = given[name], dict(call.masks or {})
    batch, time = tensor.shape[:2]
    mask = masks.get(name)
    mask = torch.ones(batch, time, dtype=torch.bool) if mask is None else mask
    present = torch.ones(batch, len(names), dtype=torch.bool)
    present = present if call.present is None else call.present
    order = names if call.order is None else call.order

    key, mask_key = f"features[{name!r}]", f"masks[{name!r}]"
    groups: dict[str, list[Change]] = {
        # Without the mask nothing may say which number of samples is wrong.
        "batch": [
            change(
                f"{key} of more samples",
                (*(f"features[{other!r}]" for other in given), mask_key),
                features=replaced(call.features, name, grow(tensor, 0)),
                masks=replaced(masks, name, mask),
            )
        ],
        "feature": changes(
            key,
            tensor,
            OF_SEQUENCES,
            lambda wrong: {"features": replaced(call.features, name, wrong)},
        ),
        "features": changes(
            "features",
            dict(call.features),
            OF_FEATURES,
            lambda wrong: {"features": wrong, "masks": None},
        ),
        "mask": changes(
            mask_key, mask, OF_MASKS, lambda wrong: {"masks": replaced(masks, name, wrong)}
        ),
        "masks": changes("masks", masks, OF_MAPPINGS, lambda wrong: {"masks": wrong}),
        "present": changes("present", present, OF_MASKS, lambda wrong: {"present": wrong}),
    }
    if absent:
        blamed = f"masks[{absent[0]!r}]"
        wrong_masks = replaced(masks, absent[0], mask)
        groups["absence"] = [change(f"{blamed} without features", blamed, masks=wrong_masks)]
    valid = {"features": call.features, "masks": call.masks, "present": call.present}
    method = draw(st.sampled_from(("forward", "forward", "forward", "presence")))
    if method == "forward" and isinstance(call, FusionCall):
        groups["order"] = changes("order", tuple(order), OF_ORDERS, lambda wrong: {"order": wrong})
        if not call.config.share_weights and call.config.opening == "first" and len(names) > 1:
            groups["head"] = [change("order first later", "order", order=(*names[1:], names[0]))]
        valid["order"] = call.order
    kind, argument, changed = draw_change(draw, groups)
    module = case_of(call).module
    return WrongCall(
        kind=kind,
        who=type(module).__name__,
        argument=argument,
        module=module,
        method=method,
        valid=valid,
        changed=changed,
    )


def of_state(state: FusionState) -> list[Change]:
    """Ways in which a state is wrong; its number of samples counts as right."""
    wrong = changes("state", state, OF_STATES, lambda value: {"state": value})
    tables: dict[str, dict[str, Mutate]] = {
        "context": OF_FLOATS if state.context.ndim == 2 else OF_SEQUENCES,
        "mask": OF_MASKS,
        "present": OF_MASKS,
    }
    for field, table in tables.items():
        # A context of other axes can be right by itself, and then it is the mask that is not.
        blamed = (f"state.{field}", "state.mask") if field == "context" else (f"state.{field}",)

        def place(value: object, field: str = field) -> Mapping[str, Any]:
            return {"state": state._replace(**{field: value})}

        wrong += changes(blamed, getattr(state, field), table, place)
        wrong.append(change(f"state.{field} as None", blamed, **place(None)))
    return wrong


@st.composite
def started(draw: st.DrawFn) -> tuple[GatedRecurrentFusion, FusionState, dict[str, Tensor]]:
    """A chain of two or three modalities, its state after the first, and features for all."""
    count = draw(st.integers(2, 3))
    config = draw(strategies.fusion_configs(count, contexts=CONTEXTS))
    fusion = GatedRecurrentFusion(**config.kwargs(), dtype=draw(strategies.dtypes())).eval()
    fusion.requires_grad_(requires_grad=False)
    batch, *times = draw(strategies.sizes(count + 1))
    dtype = next(fusion.parameters()).dtype
    given = {
        name: torch.ones(batch, time, width, dtype=dtype)
        for (name, width), time in zip(fusion.modalities.items(), times, strict=True)
    }
    name = next(iter(given))
    return fusion, fusion.step(None, name, given[name]), given


@st.composite
def wrong_steps(draw: st.DrawFn) -> WrongCall:
    """A call of `step`, the first of a stream or a later one."""
    fusion, state, given = draw(started())
    later = draw(st.booleans())
    first, name = tuple(given)[:2]
    tensor = given[name]
    batch, time = tensor.shape[:2]
    mask = torch.ones(batch, time, dtype=torch.bool)
    present = torch.ones(batch, dtype=torch.bool)

    groups: dict[str, list[Change]] = {
        "absence": [change("mask alone", "mask", features=None, mask=mask)],
        "batch": [
            change(
                "features of more samples",
                ("features", "mask"),
                features=grow(tensor, 0),
                mask=mask,
                present=present,
            )
        ],
        "features": changes("features", tensor, OF_SEQUENCES, lambda wrong: {"features": wrong}),
        "mask": changes("mask", mask, OF_MASKS, lambda wrong: {"mask": wrong}),
        "name": [change(f"name {kind}", "name", name=wrong) for kind, wrong in OF_NAMES.items()],
        "present": changes("present", present, of_vectors(), lambda wrong: {"present": wrong}),
    }
    if not later:
        groups["absence"].append(change("features None", "features", features=None))
    else:
        groups["state"] = of_state(state)
        if fusion.blocks is not None and fusion.opening == "first":
            again = {"name": first, "features": given[first]}
            groups["first"] = [change("first later", "name", **again)]
    kind, argument, changed = draw_change(draw, groups)
    return WrongCall(
        kind=kind,
        who="GatedRecurrentFusion",
        argument=argument,
        module=fusion,
        method="step",
        valid={"state": state if later else None, "name": name, "features": tensor},
        changed=changed,
    )


def of_vectors() -> dict[str, Mutate]:
    """What a mask (batch,) cannot be; its only axis is that of the samples."""
    same = ("as lengths", "without its last axis")
    return {kind: mutate for kind, mutate in OF_MASKS.items() if kind not in same} | {
        "of two axes": lambda x: x.unsqueeze(1).expand(-1, 3)
    }


@st.composite
def wrong_readouts(draw: st.DrawFn) -> WrongCall:
    """A call of `readout`."""
    fusion, state, _ = draw(started())
    groups = {"state": of_state(state), "None": [change("state None", "state", state=None)]}
    kind, argument, changed = draw_change(draw, groups)
    return WrongCall(
        kind=kind,
        who="GatedRecurrentFusion",
        argument=argument,
        module=fusion,
        method="readout",
        valid={"state": state},
        changed=changed,
    )


@st.composite
def wrong_blocks(draw: st.DrawFn) -> WrongCall:
    """A call of the symmetric cross-attention block."""
    call = draw(strategies.block_calls())
    context, modality = call.context, call.modality
    batch, context_time = context.shape[:2]
    masks = {
        "context_mask": torch.ones(batch, context_time, dtype=torch.bool),
        "modality_mask": torch.ones(batch, modality.shape[1], dtype=torch.bool),
    }
    given = {"context": context, "modality": modality}
    groups: dict[str, list[Change]] = {
        "batch": [
            change("context of more samples", "modality", context=grow(context, 0)),
            change("modality of more samples", "modality", modality=grow(modality, 0)),
        ]
    }
    for name, value in (given | masks).items():
        table = OF_SEQUENCES if name in given else OF_MASKS
        groups[name] = changes(name, value, table, lambda wrong, name=name: {name: wrong})
    for name in given:
        groups[f"no {name}"] = [change(f"{name} None", name, **{name: None})]
    if call.options["pooled_context"]:
        groups["longer"] = [change("context longer", "context", context=grow(context, 1))]
    kind, argument, changed = draw_change(draw, groups)
    block = SymmetricCrossAttentionBlock(
        call.embed_dim,
        num_layers=call.num_layers,
        dim_feedforward=call.dim_feedforward,
        dtype=context.dtype,
        **call.options,
    )
    return WrongCall(
        kind=kind,
        who="SymmetricCrossAttentionBlock",
        argument=argument,
        module=block,
        method="forward",
        valid=given,
        changed=changed,
    )


@st.composite
def wrong_units(draw: st.DrawFn) -> WrongCall:
    """A call of the gated fusion unit; what changes the width of a state is wrong."""
    dtype = draw(strategies.dtypes())
    rank = draw(st.integers(1, 4))
    *leading, dim = draw(strategies.sizes(rank, (3, 4, 5, 7)))
    unit = GatedFusionUnit(dim, dtype=dtype)
    state, update = torch.ones(2, *leading, dim, dtype=dtype).unbind(0)

    groups = {
        # A state may have any leading axes; then it is the update that does not fit.
        "state": changes(("state", "update"), state, OF_FLOATS, lambda wrong: {"state": wrong}),
        "update": changes("update", update, OF_FLOATS, lambda wrong: {"update": wrong}),
        "no state": [change("state None", "state", state=None)],
        "no update": [change("update None", "update", update=None)],
    }
    if rank > 1:
        groups["batch"] = [change("update longer", "update", update=grow(update, 0))]
    kind, argument, changed = draw_change(draw, groups)
    return WrongCall(
        kind=kind,
        who="GatedFusionUnit",
        argument=argument,
        module=unit,
        method="forward",
        valid={"state": state, "update": update},
        changed=changed,
    )


@st.composite
def wrong_dropouts(draw: st.DrawFn) -> WrongCall:
    """A call of `ModalityDropout`; any number of samples and modalities is right."""
    batch, count = draw(strategies.sizes(2))
    right = ("longer", "shorter", "of more samples", "of fewer samples", "transposed")
    right += ("on another device",)
    table = {kind: mutate for kind, mutate in OF_MASKS.items() if kind not in right}
    present = torch.ones(batch, count, dtype=torch.bool)
    groups = {"present": changes("present", present, table, lambda wrong: {"present": wrong})}
    kind, argument, changed = draw_change(draw, groups)
    return WrongCall(
        kind=kind,
        who="ModalityDropout",
        argument=argument,
        module=ModalityDropout(0.5).train(draw(st.booleans())),
        method="forward",
        valid={"present": present},
        changed=changed,
    )


def assert_wrong_call_is_refused(wrong: WrongCall) -> None:
    """The valid call runs, the wrong one raises ShapeError before computing anything."""
    with torch.no_grad():
        getattr(wrong.module, wrong.method)(**wrong.valid)
    assert_refused(wrong, who=wrong.who, argument=wrong.argument, error=ShapeError)


class TestWrongCalls:
    """None passes silently or fails with a foreign error."""

    @strategies.examples(EXAMPLES["forward"])
    @given(wrong_forwards())
    def test_forward_and_presence(self, wrong: WrongCall):
        assert_wrong_call_is_refused(wrong)

    @strategies.examples(EXAMPLES["step"])
    @given(wrong_steps())
    def test_step(self, wrong: WrongCall):
        assert_wrong_call_is_refused(wrong)

    @strategies.examples(EXAMPLES["readout"])
    @given(wrong_readouts())
    def test_readout(self, wrong: WrongCall):
        assert_wrong_call_is_refused(wrong)

    @strategies.examples(EXAMPLES["block"])
    @given(wrong_blocks())
    def test_block(self, wrong: WrongCall):
        assert_wrong_call_is_refused(wrong)

    @strategies.examples(EXAMPLES["unit"])
    @given(wrong_units())
    def test_unit(self, wrong: WrongCall):
        assert_wrong_call_is_refused(wrong)

    @strategies.examples(EXAMPLES["dropout"])
    @given(wrong_dropouts())
    def test_modality_dropout(self, wrong: WrongCall):
        assert_wrong_call_is_refused(wrong)


def kinds(table: Mapping[str, object], *more: Mapping[str, object]) -> int:
    """Number of kinds of mutation in some tables."""
    return len(table) + sum(map(len, more))


class TestTheFuzzer:
    """The harness notices what it is there for, and is as large as promised."""

    def test_there_are_enough_examples(self):
        assert sum(EXAMPLES.values()) >= 2600
        assert kinds(OF_SEQUENCES, OF_MASKS, OF_FEATURES, OF_ORDERS, OF_NAMES, OF_STATES) >= 20

    @staticmethod
    def wrong(module: nn.Module, **changed: Any) -> WrongCall:
        """A call of a module with one argument."""
        return WrongCall(
            kind="test",
            who=type(module).__name__,
            argument=("x",),
            module=module,
            method="forward",
            valid={"x": torch.ones(2)},
            changed=changed,
        )

    def test_it_notices_a_call_that_passes(self):
        class Silent(nn.Module):
            def forward(self, x: object) -> object:
                return x

        with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
            assert_wrong_call_is_refused(self.wrong(Silent(), x=3))

    def test_it_notices_a_call_that_computes(self):
        class Late(nn.Module):
            def forward(self, x: object) -> object:
                half = torch.ones(2) / 2
                if not isinstance(x, Tensor):
                    raise ShapeError(f"Late: expected `x` to be a tensor, got {half}.")
                return x

        with pytest.raises(pytest.fail.Exception, match="computed aten"):
            assert_wrong_call_is_refused(self.wrong(Late(), x=3))

    def test_it_notices_a_foreign_error(self):
        class Foreign(nn.Module):
            def forward(self, x: Tensor) -> object:
                return x.shape

        with pytest.raises(AttributeError):
            assert_wrong_call_is_refused(self.wrong(Foreign(), x=3))

    def test_it_notices_another_argument(self):
        class Blames(nn.Module):
            def forward(self, x: object) -> object:
                if not isinstance(x, Tensor):
                    raise ShapeError("Blames: expected `y` to be a tensor, got int.")
                return x

        with pytest.raises(AssertionError, match="`y`"):
            assert_wrong_call_is_refused(self.wrong(Blames(), x=3))

    def test_it_notices_a_valid_call_that_is_none(self):
        class Never(nn.Module):
            def forward(self, x: object) -> object:
                raise ShapeError(f"Never: expected `x` to be a tensor, got {x}.")

        with pytest.raises(ShapeError):
            assert_wrong_call_is_refused(self.wrong(Never(), x=3))
