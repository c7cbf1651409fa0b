"""Messages to the letter: a user reads them, so that no word of them changes by chance.

tests/test_errors.py says who refuses what; here are whole sentences, one for each that the files
with the checks can say.
"""

from collections.abc import Callable
from typing import Any
from unittest.mock import ANY

import pytest
import torch
from torch import Tensor, nn

from grf_fusion import (
    FusionState,
    GatedFusionUnit,
    ModalityDropout,
    ShapeError,
    mask_from_lengths,
    modulate_gradients,
)
from grf_fusion._masks import as_mask
from grf_fusion._options import check_factory, check_modalities, check_modality, check_part
from grf_fusion._shapes import (
    describe_shape,
    expect_choice,
    expect_flag,
    expect_floating,
    expect_heads,
    expect_probability,
    expect_same_device,
    expect_shape,
    expect_size,
    expect_steps,
    expect_tensor,
)
from grf_fusion._state import check_state

CPU, META = torch.device("cpu"), torch.device("meta")
LIKE = torch.zeros(2)


def state(**changes: Any) -> FusionState:
    fields = {
        "context": torch.zeros(2, 15),
        "mask": torch.ones(2, 1).bool(),
        "present": torch.ones(2, 3).bool(),
    }
    return FusionState(**fields | changes)


def check(value: object, context: str = "pooled") -> FusionState:
    return check_state("Who", value, context=context, dim=15, modalities=3, like=LIKE)


def modulate(**changes: Any) -> dict[str, Tensor]:
    modules = {"text": nn.Linear(3, 2), "audio": nn.Linear(5, 2)}
    for module in modules.values():
        module.weight.grad = torch.ones_like(module.weight)
    logits = {"text": torch.zeros(4, 2), "audio": torch.zeros(4, 2)}
    given = {"modules": modules, "logits": logits, "targets": torch.zeros(4).long(), "alpha": 0.5}
    return modulate_gradients(**given | changes)


def shared() -> dict[str, nn.Module]:
    module = nn.Linear(3, 2)
    return {"text": module, "audio": nn.Sequential(module)}


SAID: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "tensor": (
        lambda: expect_tensor("Who", "what", [1]),
        ShapeError,
        "Who: expected `what` to be a torch.Tensor, got list.",
    ),
    "dense": (
        lambda: expect_tensor("Who", "what", torch.eye(2).to_sparse()),
        ShapeError,
        (
            "Who: expected `what` to be a dense tensor, got layout torch.sparse_coo. "
            "Convert it with `.to_dense()`, or pad it."
        ),
    ),
    "rank": (
        lambda: expect_shape("Who", "what", torch.zeros(4), {"batch": 4, "time": None}),
        ShapeError,
        "Who: expected `what` of shape (batch=4, time), got (4,).",
    ),
    "size and hint": (
        lambda: expect_shape("Who", "what", torch.zeros(4, 5), {"batch": 4, "dim": 3}, " Do it."),
        ShapeError,
        "Who: expected `what` of shape (batch=4, dim=3), got (4, 5). Do it.",
    ),
    "steps": (
        lambda: expect_steps("Who", "what", torch.zeros(4, 0, 3)),
        ShapeError,
        (
            "Who: expected `what` to have at least one step, got time=0. "
            "Give an absent sequence as one masked step."
        ),
    ),
    "device of the parameters": (
        lambda: expect_floating("Who", "what", torch.zeros(2, device="meta"), LIKE),
        ShapeError,
        (
            "Who: expected `what` on device cpu, where the parameters are, got meta. "
            "Move one of them with `.to()`."
        ),
    ),
    "dtype of the parameters": (
        lambda: expect_floating("Who", "what", LIKE.double(), LIKE),
        ShapeError,
        (
            "Who: expected `what` of dtype torch.float32, as the parameters, got torch.float64. "
            "Convert one of them with `.to()`."
        ),
    ),
    "device": (
        lambda: expect_same_device("Who", "what", LIKE, META),
        ShapeError,
        "Who: expected `what` on device meta, got cpu. Move it with `.to()`.",
    ),
    "size": (
        lambda: expect_size("Who", "what", 0),
        ValueError,
        "Who: expected `what` to be a positive integer, got 0.",
    ),
    "heads": (
        lambda: expect_heads("Who", "embed_dim", 15, 4),
        ValueError,
        "Who: expected `num_heads` to divide `embed_dim`, got embed_dim=15 and num_heads=4.",
    ),
    "number of heads": (
        lambda: expect_heads("Who", "embed_dim", 15, 0),
        ValueError,
        "Who: expected `num_heads` to be a positive integer, got 0.",
    ),
    "probability": (
        lambda: expect_probability("Who", "what", 1.0),
        ValueError,
        "Who: expected `what` to be a probability in [0, 1), got 1.0.",
    ),
    "flag": (
        lambda: expect_flag("Who", "what", 1),
        ValueError,
        "Who: expected `what` to be True or False, got 1.",
    ),
    "flag or word": (
        lambda: expect_flag("Who", "what", "no", other="auto"),
        ValueError,
        "Who: expected `what` to be 'auto', True or False, got 'no'.",
    ),
    "what equals any word": (
        lambda: expect_flag("Who", "what", ANY, other="auto"),
        ValueError,
        "Who: expected `what` to be 'auto', True or False, got <ANY>.",
    ),
    "choice": (
        lambda: expect_choice("Who", "what", "c", ("a", "b")),
        ValueError,
        "Who: expected `what` to be one of 'a', 'b', got 'c'.",
    ),
    "lengths": (
        lambda: mask_from_lengths([1], 3),  # type: ignore[arg-type]
        ShapeError,
        "mask_from_lengths: expected `lengths` to be a torch.Tensor, got list.",
    ),
    "axes of lengths": (
        lambda: mask_from_lengths(torch.ones(2, 1).long(), 3),
        ShapeError,
        "mask_from_lengths: expected `lengths` of shape (batch), got (2, 1).",
    ),
    "dtype of lengths": (
        lambda: mask_from_lengths(torch.ones(2), 3),
        ShapeError,
        "mask_from_lengths: expected `lengths` to hold integers, got torch.float32.",
    ),
    "type of the longest": (
        lambda: mask_from_lengths(torch.ones(2).long(), 3.0),  # type: ignore[arg-type]
        ShapeError,
        "mask_from_lengths: expected `max_length` to be an integer, got float.",
    ),
    "longest": (
        lambda: mask_from_lengths(torch.ones(2).long(), 0),
        ShapeError,
        "mask_from_lengths: expected `max_length` to be at least 1, got 0.",
    ),
    "range of lengths": (
        lambda: mask_from_lengths(torch.tensor([4, -1]), 3),
        ShapeError,
        "mask_from_lengths: expected `lengths` between 0 and max_length=3, got -1 to 4.",
    ),
    "mask": (
        lambda: as_mask("Who", "what", None, CPU, batch=2),
        ShapeError,
        "Who: expected `what` to be a torch.Tensor, got NoneType.",
    ),
    "axes of a mask": (
        lambda: as_mask("Who", "what", torch.ones(2, 1), CPU, batch=2),
        ShapeError,
        (
            "Who: expected `what` of shape (batch=2), got (2, 1). "
            "A mask holds one truth value an entry, True = real."
        ),
    ),
    "device of a mask": (
        lambda: as_mask("Who", "what", torch.ones(2).bool(), META, batch=2),
        ShapeError,
        "Who: expected `what` on device meta, got cpu. Move it with `.to()`.",
    ),
    "dtype of a mask": (
        lambda: as_mask("Who", "what", torch.ones(2), CPU, batch=2),
        ShapeError,
        (
            "Who: expected `what` to be bool or integer 0/1 with True = real, got torch.float32. "
            "A float mask may be a weight, a 0/1 flag or an additive bias of "
            "0/-inf, and the last two "
            "mean opposite things: pass `mask > 0.5` or `mask == 0`."
        ),
    ),
    "values of a mask": (
        lambda: as_mask("Who", "what", torch.tensor([3, -2]), CPU, batch=2),
        ShapeError,
        (
            "Who: expected `what` to hold only 0 and 1, got values from -2 to 3. "
            "Turn lengths into a mask with `mask_from_lengths`."
        ),
    ),
    "state": (
        lambda: check((1, 2, 3)),
        ShapeError,
        (
            "Who: expected `state` to be a FusionState, got tuple. "
            "Rebuild one from saved tensors with `FusionState(*tensors)`."
        ),
    ),
    "field of a state": (
        lambda: check(state(mask=None)),
        ShapeError,
        "Who: expected `state.mask` to be a torch.Tensor, got NoneType.",
    ),
    "vector of a state": (
        lambda: check(state(context=torch.zeros(2, 14))),
        ShapeError,
        "Who: expected `state.context` of shape (batch, dim=15), got (2, 14).",
    ),
    "vector or sequence of a state": (
        lambda: check(state(context=torch.zeros(2, 14)), "first_sequence"),
        ShapeError,
        "Who: expected `state.context` of shape (batch, dim=15), got (2, 14).",
    ),
    "sequence of a state": (
        lambda: check(state(), "sequence"),
        ShapeError,
        "Who: expected `state.context` of shape (batch, time, dim=15), got (2, 15).",
    ),
    "no steps in a state": (
        lambda: check(state(context=torch.zeros(2, 0, 15)), "sequence"),
        ShapeError,
        (
            "Who: expected `state.context` to have at least one step, got time=0. "
            "Give an absent sequence as one masked step."
        ),
    ),
    "dtype of a state": (
        lambda: check(state(context=torch.zeros(2, 15).double())),
        ShapeError,
        (
            "Who: expected `state.context` of dtype torch.float32, as the parameters, "
            "got torch.float64. Convert one of them with `.to()`."
        ),
    ),
    "mask of a vector": (
        lambda: check(state(mask=torch.ones(2, 3).bool())),
        ShapeError,
        (
            "Who: expected `state.mask` of shape (batch=2, time=1), got (2, 3). "
            "A mask holds one truth value an entry, True = real."
        ),
    ),
    "mask of a sequence": (
        lambda: check(state(context=torch.zeros(2, 4, 15)), "sequence"),
        ShapeError,
        (
            "Who: expected `state.mask` of shape (batch=2, time=4), got (2, 1). "
            "A mask holds one truth value an entry, True = real."
        ),
    ),
    "device of a state's mask": (
        lambda: check(state(mask=torch.ones(2, 1, device="meta").bool())),
        ShapeError,
        "Who: expected `state.mask` on device cpu, got meta. Move it with `.to()`.",
    ),
    "presence of a state": (
        lambda: check(state(present=torch.ones(2, 2).bool())),
        ShapeError,
        (
            "Who: expected `state.present` of shape (batch=2, modalities=3), got (2, 2). "
            "A state from before `add_modality` lacks a column: start anew."
        ),
    ),
    "dtype of a state's presence": (
        lambda: check(state(present=torch.full((2, 3), 2))),
        ShapeError,
        (
            "Who: expected `state.present` to hold only 0 and 1, got values from 2 to 2. "
            "Turn lengths into a mask with `mask_from_lengths`."
        ),
    ),
    "presence without columns": (
        lambda: ModalityDropout(0.5)(torch.ones(2, 0).bool()),
        ShapeError,
        "ModalityDropout: expected `present` to have at least one modality, got (2, 0).",
    ),
    "presence to drop from": (
        lambda: ModalityDropout(0.5)(torch.ones(2).bool()),
        ShapeError,
        (
            "ModalityDropout: expected `present` of shape (batch, modalities), got (2,). "
            "A mask holds one truth value an entry, True = real."
        ),
    ),
    "chance of dropping": (
        lambda: ModalityDropout(1.0),
        ValueError,
        "ModalityDropout: expected `p` to be a probability in [0, 1), got 1.0.",
    ),
    "name": (
        lambda: check_modality("Who", "a.b", 3),
        ValueError,
        (
            "Who: expected `modalities` to name modalities by non-empty strings "
            "without dots, other "
            "than attributes of nn.ModuleDict, got 'a.b'. Choose another name."
        ),
    ),
    "name as the caller wrote it": (
        lambda: check_modality("Who", 3, 3, name_argument="name"),
        ValueError,
        (
            "Who: expected `name` to name modalities by non-empty strings without dots, other "
            "than attributes of nn.ModuleDict, got 3. Choose another name."
        ),
    ),
    "width": (
        lambda: check_modality("Who", "text", 0),
        ValueError,
        "Who: expected `modalities['text']` to be a positive integer, got 0.",
    ),
    "width as the caller wrote it": (
        lambda: check_modality("Who", "text", 0, dim_argument="dim"),
        ValueError,
        "Who: expected `dim` to be a positive integer, got 0.",
    ),
    "modalities": (
        lambda: check_modalities("Who", 3),
        ValueError,
        (
            "Who: expected `modalities` to map names to feature sizes, as a mapping or as pairs, "
            "got int."
        ),
    ),
    "no modalities": (
        lambda: check_modalities("Who", {}),
        ValueError,
        "Who: expected `modalities` to name at least one modality, got none.",
    ),
    "modality twice": (
        lambda: check_modalities("Who", [("text", 3), ("text", 4)]),
        ValueError,
        "Who: expected `modalities` to name each one once, got ['text', 'text'].",
    ),
    "too few modalities": (
        lambda: check_modalities("Who", {"text": 3}, fewest=2),
        ValueError,
        "Who: expected `modalities` to name at least 2 modalities, got ['text'].",
    ),
    "factory": (
        lambda: check_factory("Who", "block", 3),
        ValueError,
        (
            "Who: expected `block` to be a function without arguments that makes a "
            "module, got int. "
            "Write `block=lambda: module`."
        ),
    ),
    "part": (
        lambda: check_part("Who", "block", 3),
        ValueError,
        "Who: expected `block()` to make an nn.Module, got int.",
    ),
    "width of a unit": (
        lambda: GatedFusionUnit(0),
        ValueError,
        "GatedFusionUnit: expected `embed_dim` to be a positive integer, got 0.",
    ),
    "dropout of a unit": (
        lambda: GatedFusionUnit(7, dropout=-0.5),
        ValueError,
        "GatedFusionUnit: expected `dropout` to be a probability in [0, 1), got -0.5.",
    ),
    "bias of a unit": (
        lambda: GatedFusionUnit(7, gate_bias=float("inf")),
        ValueError,
        "GatedFusionUnit: expected `gate_bias` to be a finite number, got inf.",
    ),
    "identity of a unit": (
        lambda: GatedFusionUnit(7, identity_init=True, dropout=0.5),
        ValueError,
        (
            "GatedFusionUnit: expected `identity_init=True` with norm=False and dropout=0, "
            "got norm=True and dropout=0.5. Either would change the state."
        ),
    ),
    "type of a unit's state": (
        lambda: GatedFusionUnit(7)([1], torch.zeros(2, 7)),
        ShapeError,
        "GatedFusionUnit: expected `state` to be a torch.Tensor, got list.",
    ),
    "type of a unit's update": (
        lambda: GatedFusionUnit(7)(torch.zeros(2, 7), [1]),
        ShapeError,
        "GatedFusionUnit: expected `update` to be a torch.Tensor, got list.",
    ),
    "state of a unit": (
        lambda: GatedFusionUnit(7)(torch.zeros(2, 8), torch.zeros(2, 7)),
        ShapeError,
        "GatedFusionUnit: expected `state` of shape (..., dim=7), got (2, 8).",
    ),
    "scalar state of a unit": (
        lambda: GatedFusionUnit(7)(torch.zeros(()), torch.zeros(2, 7)),
        ShapeError,
        "GatedFusionUnit: expected `state` of shape (..., dim=7), got ().",
    ),
    "update of a unit": (
        lambda: GatedFusionUnit(7)(torch.zeros(2, 5, 7), torch.zeros(2, 7)),
        ShapeError,
        "GatedFusionUnit: expected `update` of shape (batch=2, time=5, dim=7), got (2, 7).",
    ),
    "update of a unit without a batch": (
        lambda: GatedFusionUnit(7)(torch.zeros(7), torch.zeros(2, 7)),
        ShapeError,
        "GatedFusionUnit: expected `update` of shape (dim=7), got (2, 7).",
    ),
    "update of a unit with many axes": (
        lambda: GatedFusionUnit(7)(torch.zeros(2, 3, 4, 7), torch.zeros(2, 7)),
        ShapeError,
        (
            "GatedFusionUnit: expected `update` of shape (axis_0=2, axis_1=3, axis_2=4, dim=7), "
            "got (2, 7)."
        ),
    ),
    "dtype of a unit's state": (
        lambda: GatedFusionUnit(7)(torch.zeros(2, 7).double(), torch.zeros(2, 7)),
        ShapeError,
        (
            "GatedFusionUnit: expected `state` of dtype torch.float32, as the parameters, "
            "got torch.float64. Convert one of them with `.to()`."
        ),
    ),
    "dtype of a unit's update": (
        lambda: GatedFusionUnit(7)(torch.zeros(2, 7), torch.zeros(2, 7).double()),
        ShapeError,
        (
            "GatedFusionUnit: expected `update` of dtype torch.float32, as the parameters, "
            "got torch.float64. Convert one of them with `.to()`."
        ),
    ),
    "modules to modulate": (
        lambda: modulate(modules=3),
        ShapeError,
        "modulate_gradients: expected `modules` to map names to modules, got int.",
    ),
    "module to modulate": (
        lambda: modulate(modules={"text": 3}),
        ShapeError,
        "modulate_gradients: expected `modules['text']` to be an nn.Module, got int.",
    ),
    "shared parameter": (
        lambda: modulate(modules=shared()),
        ShapeError,
        (
            "modulate_gradients: expected `modules['audio']` to share no parameter with another, "
            "got '0.weight', which is in 'text' too."
        ),
    ),
    "nothing to modulate": (
        lambda: modulate(modules={"text": nn.Linear(3, 2)}),
        ShapeError,
        (
            "modulate_gradients: expected `modules` to have gradients, got none. "
            "Call it between backward() and the optimiser's step."
        ),
    ),
    "alpha": (
        lambda: modulate(alpha=-1.0),
        ValueError,
        "modulate_gradients: expected `alpha` to be a finite number of at least 0, got -1.0.",
    ),
    "noise": (
        lambda: modulate(noise=1),
        ValueError,
        "modulate_gradients: expected `noise` to be True or False, got 1.",
    ),
    "logits": (
        lambda: modulate(logits=3),
        ShapeError,
        "modulate_gradients: expected `logits` to map names to tensors, got int.",
    ),
    "missing logits": (
        lambda: modulate(logits={"text": torch.zeros(4, 2)}),
        ShapeError,
        (
            "modulate_gradients: expected `logits` to name each of ['text', 'audio'], "
            "missing ['audio']."
        ),
    ),
    "type of logits": (
        lambda: modulate(logits={"text": 3, "audio": torch.zeros(4, 2)}),
        ShapeError,
        "modulate_gradients: expected `logits['text']` to be a torch.Tensor, got int.",
    ),
    "shape of the first logits": (
        lambda: modulate(logits={"text": torch.zeros(4), "audio": torch.zeros(4, 2)}),
        ShapeError,
        "modulate_gradients: expected `logits['text']` of shape (batch, classes), got (4,).",
    ),
    "shape of other logits": (
        lambda: modulate(logits={"text": torch.zeros(4, 2), "audio": torch.zeros(4, 3)}),
        ShapeError,
        "modulate_gradients: expected `logits['audio']` of shape (batch=4, classes=2), got (4, 3).",
    ),
    "dtype of logits": (
        lambda: modulate(logits={"text": torch.zeros(4, 2), "audio": torch.zeros(4, 2).long()}),
        ShapeError,
        (
            "modulate_gradients: expected `logits['audio']` to be floating-point "
            "and of one dtype with "
            "the others, got torch.int64."
        ),
    ),
    "device of logits": (
        lambda: modulate(
            logits={"text": torch.zeros(4, 2), "audio": torch.zeros(4, 2, device="meta")}
        ),
        ShapeError,
        "modulate_gradients: expected `logits['audio']` on device cpu, as the others, got meta.",
    ),
    "type of targets": (
        lambda: modulate(targets=[0]),
        ShapeError,
        "modulate_gradients: expected `targets` to be a torch.Tensor, got list.",
    ),
    "shape of targets": (
        lambda: modulate(targets=torch.zeros(4, 2).long()),
        ShapeError,
        (
            "modulate_gradients: expected `targets` of shape (batch=4), got (4, 2). "
            "Give classes, not one-hot rows."
        ),
    ),
    "dtype of targets": (
        lambda: modulate(targets=torch.zeros(4)),
        ShapeError,
        (
            "modulate_gradients: expected `targets` to hold integers on device cpu, as the logits, "
            "got torch.float32 on cpu."
        ),
    ),
    "range of targets": (
        lambda: modulate(targets=torch.tensor([0, 1, 2, -1])),
        ShapeError,
        "modulate_gradients: expected `targets` between 0 and 1, got -1 to 2.",
    ),
}


@pytest.mark.parametrize("name", SAID)
def test_message(name: str) -> None:
    call, error, message = SAID[name]
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message
    assert caught.type is error


def test_axes_are_described() -> None:
    assert describe_shape({"batch": 4, "time": None, "dim": 8}) == "(batch=4, time, dim=8)"
    assert describe_shape({}) == "()"
