"""Messages to the letter: a user reads them, so that no word of them changes by chance.

tests/test_errors.py says who refuses what; here are whole sentences, and what
modules show of themselves.
"""

import itertools
import runpy
import sys
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import ANY, patch

import pytest
import torch
from torch import Tensor, nn

from grf_fusion import (
    AdaptedModel,
    FusionAdapter,
    FusionState,
    FusionTrace,
    GatedFusionUnit,
    GatedRecurrentFusion,
    ModalityDropout,
    ShapeError,
    SymmetricCrossAttentionBlock,
    diagnostics,
    mask_from_lengths,
    modulate_gradients,
    viz,
)
from grf_fusion._chain.state import check_state
from grf_fusion._checks.arguments import (
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
from grf_fusion._checks.options import check_factory, check_modalities, check_modality, check_part
from grf_fusion._inputs.masks import as_mask
from grf_fusion.baselines import (
    ConcatFusion,
    ContrastiveAlignment,
    CrossModalAttentionFusion,
    MulT,
    WeightedSumFusion,
)
from grf_fusion.checkpoints import load_author_checkpoint
from grf_fusion.checkpoints._author_weights import check_shapes
from grf_fusion.parallel import tensor_parallel_plan
from grf_fusion.viz import _canvas

HERE, META = torch.get_default_device(), torch.device("meta")
LIKE = torch.zeros(2)
CONVERT = " Convert it with `torch.as_tensor`."

Said = dict[str, tuple[Callable[[], object], type[Exception], str]]


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


SAID: Said = {
    "tensor": (
        lambda: expect_tensor("Who", "what", [1]),
        ShapeError,
        "Who: expected `what` to be a torch.Tensor, got list." + CONVERT,
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
            f"Who: expected `what` on device {HERE}, where the parameters are, got meta. "
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
        f"Who: expected `what` on device meta, got {HERE}. Move it with `.to()`.",
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
        "mask_from_lengths: expected `lengths` to be a torch.Tensor, got list." + CONVERT,
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
        (
            "mask_from_lengths: expected `max_length` to be an integer, got float. "
            "Of a tensor take `int(lengths.max())`."
        ),
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
        lambda: as_mask("Who", "what", None, HERE, batch=2),
        ShapeError,
        "Who: expected `what` to be a torch.Tensor, got NoneType.",
    ),
    "axes of a mask": (
        lambda: as_mask("Who", "what", torch.ones(2, 1), HERE, batch=2),
        ShapeError,
        (
            "Who: expected `what` of shape (batch=2), got (2, 1). "
            "A mask holds one truth value an entry, True = real."
        ),
    ),
    "device of a mask": (
        lambda: as_mask("Who", "what", torch.ones(2).bool(), META, batch=2),
        ShapeError,
        f"Who: expected `what` on device meta, got {HERE}. Move it with `.to()`.",
    ),
    "dtype of a mask": (
        lambda: as_mask("Who", "what", torch.ones(2), HERE, batch=2),
        ShapeError,
        (
            "Who: expected `what` to be bool or integer 0/1 with True = real, got torch.float32. "
            "Float values may be weights, 0/1 flags or an additive bias of 0/-inf, and the last "
            "two mean opposite things: pass `what > 0.5` or `what == 0`."
        ),
    ),
    "values of a mask": (
        lambda: as_mask("Who", "what", torch.tensor([3, -2]), HERE, batch=2),
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
        f"Who: expected `state.mask` on device {HERE}, got meta. Move it with `.to()`.",
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
            "got int. Write {'text': 768, 'image': 1024}."
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
        "GatedFusionUnit: expected `state` to be a torch.Tensor, got list." + CONVERT,
    ),
    "type of a unit's update": (
        lambda: GatedFusionUnit(7)(torch.zeros(2, 7), [1]),
        ShapeError,
        "GatedFusionUnit: expected `update` to be a torch.Tensor, got list." + CONVERT,
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
        (
            f"modulate_gradients: expected `logits['audio']` on device {HERE}, as the others, "
            "got meta."
        ),
    ),
    "type of targets": (
        lambda: modulate(targets=[0]),
        ShapeError,
        "modulate_gradients: expected `targets` to be a torch.Tensor, got list." + CONVERT,
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
            f"modulate_gradients: expected `targets` to hold integers on device {HERE}, as the "
            f"logits, got torch.float32 on {HERE}."
        ),
    ),
    "range of targets": (
        lambda: modulate(targets=torch.tensor([0, 1, 2, -1])),
        ShapeError,
        "modulate_gradients: expected `targets` between 0 and 1, got -1 to 2.",
    ),
}


WIDTHS = {"text": 3, "audio": 5}
HEADED = {"embed_dim": 4, "num_heads": 2}
# Each module that takes modalities, and what else it is made with here.
MADE: dict[type[nn.Module], dict[str, Any]] = {
    GatedRecurrentFusion: HEADED | {"form": "residual"},
    FusionAdapter: HEADED,
    ConcatFusion: {"embed_dim": 4},
    WeightedSumFusion: {"embed_dim": 4},
    CrossModalAttentionFusion: HEADED,
    MulT: HEADED | {"num_layers": 1},
    ContrastiveAlignment: {"embed_dim": 4},
}
FEEDFORWARD = "fusion_encoders.0.decoder_1.layers.0.linear1.weight"
MATRIX, KERNEL = torch.zeros(4, 3), torch.zeros(4, 3, 1)
LABELS = torch.tensor([0, 1])


class Says(nn.Module):
    """Somebody else's block, unit or layer, which returns what it was told."""

    def __init__(self, value: object, **parts: nn.Module) -> None:
        super().__init__()
        self.value = value
        self.parts = nn.ModuleDict(parts)

    def forward(self, *_: object, **__: object) -> object:
        return self.value


class Asked(Says):
    """A block that can be asked for its weights."""

    def forward(self, *inputs: object, need_weights: bool = False, **options: object) -> object:
        return super().forward(*inputs, need_weights=need_weights, **options)


class Strange(nn.Module):
    """Somebody else's fusion, without projections, and without a result."""

    modalities = WIDTHS

    def presence(self, *_: object, **__: object) -> Tensor:
        return torch.ones(2, 2).bool()

    def forward(self, *_: object, **__: object) -> None:
        return None


def make(kind: type[nn.Module] = GatedRecurrentFusion, **changes: Any) -> Any:
    return kind(**{"modalities": WIDTHS} | MADE[kind] | changes)


def given(**changes: Any) -> dict[str, Any]:
    return {"text": torch.zeros(2, 3, 3), "audio": torch.zeros(2, 4, 5)} | changes


def call(kind: type[nn.Module], method: str) -> object:
    return getattr(make(kind), method)({})


def fuse(features: object = None, **changes: Any) -> Tensor:
    return make()(given() if features is None else features, **changes)


def fuse_by(part: str, value: object, **options: Any) -> Tensor:
    return make(**{part: lambda: Says(value)}, **options)(given())


def step(**changes: Any) -> FusionState:
    fields = {"state": None, "name": "text", "features": torch.zeros(2, 3, 3)}
    return make().step(**fields | changes)


def started(fusion: GatedRecurrentFusion) -> FusionState:
    return fusion.step(None, "audio", torch.zeros(2, 4, 5))


def paper() -> GatedRecurrentFusion:
    return make(form="paper", share_weights=False)


def adapt(**changes: Any) -> Tensor:
    return make(FusionAdapter)(**{"hidden": torch.zeros(2, 6, 4), "features": given()} | changes)


def nested() -> Tensor:
    with warnings.catch_warnings(action="ignore"):
        return torch.nested.nested_tensor([torch.zeros(3, 4), torch.zeros(2, 4)])


def adapted(said: object = None, **changes: Any) -> AdaptedModel:
    host = nn.Sequential(Says(said))
    return AdaptedModel(**{"host": host, "adapters": {"0": make(FusionAdapter)}} | changes)


def called() -> AdaptedModel:
    model = adapted()
    with pytest.raises(ShapeError):
        model(LIKE, features=given())
    return model


def load(weights: Any, model: Any = "grf", **changes: Any) -> nn.Module:
    return load_author_checkpoint(
        weights, **{"order": list(WIDTHS), "num_heads": 2, "model": model} | changes
    )


SAID_OF_MODULES: Said = {
    "order of one name": (
        lambda: fuse(order="text"),
        ShapeError,
        (
            "GatedRecurrentFusion: expected `order` to be a sequence of names, got 'text'. "
            "Write order=('text', 'audio')."
        ),
    ),
    "order": (
        lambda: fuse(order=3),
        ShapeError,
        (
            "GatedRecurrentFusion: expected `order` to be a sequence of names, got 3. "
            "Write order=('text', 'audio')."
        ),
    ),
    "order of undeclared names": (
        lambda: fuse(order=["text", "smell"]),
        ShapeError,
        (
            "GatedRecurrentFusion: expected `order` to name modalities of ['text', 'audio'], "
            "unexpected ['smell'], missing ['audio']."
        ),
    ),
    "order without a modality": (
        lambda: fuse(order=["audio"]),
        ShapeError,
        (
            "GatedRecurrentFusion: expected `order` to name every modality, missing ['text']. "
            "An absent modality keeps its place."
        ),
    ),
    "order with a modality twice": (
        lambda: fuse(order=["text", "audio", "text"]),
        ShapeError,
        (
            "GatedRecurrentFusion: expected `order` to name each modality once, "
            "got ('text', 'audio', 'text')."
        ),
    ),
    "modality of a step": (
        lambda: step(name="smell"),
        ShapeError,
        (
            "GatedRecurrentFusion: expected `name` to be one of ['text', 'audio'], got 'smell'. "
            "Declare it in `modalities` or with `add_modality`."
        ),
    ),
    "type of a modality of a step": (
        lambda: step(name=3),
        ShapeError,
        (
            "GatedRecurrentFusion: expected `name` to be one of ['text', 'audio'], got 3. "
            "Declare it in `modalities` or with `add_modality`."
        ),
    ),
    "mapping of features": (
        lambda: fuse([1]),
        ShapeError,
        (
            "GatedRecurrentFusion: expected `features` to map names to tensors, got list. "
            "Write features={'text': ...}."
        ),
    ),
    "mapping of masks": (
        lambda: fuse(masks=3),
        ShapeError,
        (
            "GatedRecurrentFusion: expected `masks` to map names to tensors, got int. "
            "Write masks={'text': ...}."
        ),
    ),
    "names of features": (
        lambda: fuse({"txt": LIKE, 3: LIKE, "audio": LIKE}),
        ShapeError,
        (
            "GatedRecurrentFusion: expected `features` to name modalities of ['text', 'audio'], "
            "unexpected ['txt', 3], missing ['text']."
        ),
    ),
    "names of masks": (
        lambda: fuse(masks={"txt": LIKE}),
        ShapeError,
        (
            "GatedRecurrentFusion: expected `masks` to name modalities of ['text', 'audio'], "
            "unexpected ['txt'], missing ['text', 'audio']."
        ),
    ),
    "mask without features": (
        lambda: fuse(given(audio=None), masks={"audio": LIKE}),
        ShapeError,
        (
            "GatedRecurrentFusion: expected no `masks['audio']` where there are no features, "
            "got a mask. Leave the mask out too, or give `features['audio']`."
        ),
    ),
    "mask of a step without features": (
        lambda: step(features=None, mask=LIKE),
        ShapeError,
        (
            "GatedRecurrentFusion: expected no `mask` where there are no features, got a mask. "
            "Leave the mask out too, or give `features`."
        ),
    ),
    "type of features": (
        lambda: fuse(given(text=[1])),
        ShapeError,
        "GatedRecurrentFusion: expected `features['text']` to be a torch.Tensor, got list."
        + CONVERT,
    ),
    "type of features of a step": (
        lambda: step(features=[1]),
        ShapeError,
        "GatedRecurrentFusion: expected `features` to be a torch.Tensor, got list." + CONVERT,
    ),
    "features without time": (
        lambda: fuse(given(text=torch.zeros(2, 3))),
        ShapeError,
        (
            "GatedRecurrentFusion: expected `features['text']` of shape (batch, time, dim=3), "
            "got (2, 3). For one vector a sample add a time axis: `x.unsqueeze(1)`."
        ),
    ),
    "features with many axes": (
        lambda: fuse(given(text=torch.zeros(2, 3, 3, 3))),
        ShapeError,
        (
            "GatedRecurrentFusion: expected `features['text']` of shape (batch, time, dim=3), "
            "got (2, 3, 3, 3). Flatten positions into one time axis: `x.flatten(1, -2)`."
        ),
    ),
    "features of one axis": (
        lambda: fuse(given(text=torch.zeros(3))),
        ShapeError,
        (
            "GatedRecurrentFusion: expected `features['text']` of shape (batch, time, dim=3), "
            "got (3,)."
        ),
    ),
    "width of features of a step": (
        lambda: step(features=torch.zeros(2, 3, 4)),
        ShapeError,
        "GatedRecurrentFusion: expected `features` of shape (batch, time, dim=3), got (2, 3, 4).",
    ),
    "batch of features": (
        lambda: fuse(given(audio=torch.zeros(3, 4, 5))),
        ShapeError,
        (
            "GatedRecurrentFusion: expected `features['audio']` of shape (batch=2, time, dim=5), "
            "got (3, 4, 5)."
        ),
    ),
    "batch of features of a step": (
        lambda: step(state=started(make()), features=torch.zeros(4, 3, 3)),
        ShapeError,
        "GatedRecurrentFusion: expected `features` of shape (batch=2, time, dim=3), got (4, 3, 3).",
    ),
    "features without steps": (
        lambda: fuse(given(text=torch.zeros(2, 0, 3))),
        ShapeError,
        (
            "GatedRecurrentFusion: expected `features['text']` to have at least one step, "
            "got time=0. Give an absent sequence as one masked step."
        ),
    ),
    "dtype of features": (
        lambda: fuse(given(text=torch.zeros(2, 3, 3).double())),
        ShapeError,
        (
            "GatedRecurrentFusion: expected `features['text']` of dtype torch.float32, "
            "as the parameters, got torch.float64. Convert one of them with `.to()`."
        ),
    ),
    "mask of features": (
        lambda: fuse(masks={"text": torch.ones(2, 4).bool()}),
        ShapeError,
        (
            "GatedRecurrentFusion: expected `masks['text']` of shape (batch=2, time=3), "
            "got (2, 4). A mask holds one truth value an entry, True = real."
        ),
    ),
    "mask of features of a step": (
        lambda: step(mask=torch.ones(2, 4).bool()),
        ShapeError,
        (
            "GatedRecurrentFusion: expected `mask` of shape (batch=2, time=3), got (2, 4). "
            "A mask holds one truth value an entry, True = real."
        ),
    ),
    "presence": (
        lambda: fuse(present=torch.ones(2, 3).bool()),
        ShapeError,
        (
            "GatedRecurrentFusion: expected `present` of shape (batch=2, modalities=2), "
            "got (2, 3). A mask holds one truth value an entry, True = real."
        ),
    ),
    "presence of features of a step": (
        lambda: step(present=torch.ones(2, 1).bool()),
        ShapeError,
        (
            "GatedRecurrentFusion: expected `present` of shape (batch=2), got (2, 1). "
            "A mask holds one truth value an entry, True = real."
        ),
    ),
    "start without features": (
        lambda: step(features=None),
        ShapeError,
        (
            "GatedRecurrentFusion: expected `features` with state=None, got None. "
            "Start with a modality that some sample has."
        ),
    ),
    "state of a step": (
        lambda: step(state=(1, 2, 3)),
        ShapeError,
        (
            "GatedRecurrentFusion: expected `state` to be a FusionState, got tuple. "
            "Rebuild one from saved tensors with `FusionState(*tensors)`."
        ),
    ),
    "state to read out": (
        lambda: make().readout(None),
        ShapeError,
        (
            "GatedRecurrentFusion: expected `state` to be a FusionState, got NoneType. "
            "Rebuild one from saved tensors with `FusionState(*tensors)`."
        ),
    ),
    "dropout of a fusion": (
        lambda: make(dropout=1.0),
        ValueError,
        "GatedRecurrentFusion: expected `dropout` to be a probability in [0, 1), got 1.0.",
    ),
    "form": (
        lambda: make(form="recurrent"),
        ValueError,
        (
            "GatedRecurrentFusion: expected `form` to be one of 'summary', 'residual', 'paper', "
            "got 'recurrent'."
        ),
    ),
    "summary of a sequence": (
        lambda: make(form="summary", context="sequence"),
        ValueError,
        (
            "GatedRecurrentFusion: expected `context='pooled'` with form='summary', "
            "got 'sequence'. Write form='residual' or form='paper' for a context that is a "
            "sequence."
        ),
    ),
    "block's options in a summary": (
        lambda: make(form="summary", norm_first=True, block=nn.Identity),
        ValueError,
        (
            "GatedRecurrentFusion: expected no option of the block with form='summary', which has "
            "no block, got norm_first=True, a factory of `block`. Write form='residual' or "
            "form='paper' for a block."
        ),
    ),
    "no number of heads": (
        lambda: make(num_heads=None),
        ValueError,
        (
            "GatedRecurrentFusion: expected `num_heads` with form='residual', got None. "
            "Give a number of attention heads that divides `embed_dim`. "
            "The form without attention is form='summary' with context='pooled'."
        ),
    ),
    "heads of a summary": (
        lambda: make(form="summary", num_heads=0),
        ValueError,
        "GatedRecurrentFusion: expected `num_heads` to be a positive integer, got 0.",
    ),
    "maps of a fusion without attention": (
        lambda: diagnostics.attention_maps(make(form="summary"), given()),
        ShapeError,
        (
            "attention_maps: expected `fusion` with a block, got form='summary', which has no "
            "attention. Write form='residual' or form='paper'."
        ),
    ),
    "context": (
        lambda: make(context="pool"),
        ValueError,
        (
            "GatedRecurrentFusion: expected `context` to be one of 'pooled', 'first_sequence', "
            "'sequence', got 'pool'."
        ),
    ),
    "opening": (
        lambda: make(opening="learnt"),
        ValueError,
        "GatedRecurrentFusion: expected `opening` to be one of 'first', 'learned', got 'learnt'.",
    ),
    "learnt opening of a sequence": (
        lambda: make(context="sequence", opening="learned"),
        ValueError,
        (
            "GatedRecurrentFusion: expected `opening='first'` with context='sequence', "
            "got 'learned'. A learned opening is one vector: use context='pooled'."
        ),
    ),
    "learnt opening of a first sequence": (
        lambda: make(context="first_sequence", opening="learned"),
        ValueError,
        (
            "GatedRecurrentFusion: expected `opening='first'` with context='first_sequence', "
            "got 'learned'. A learned opening is one vector: use context='pooled'."
        ),
    ),
    "word for a gate's bias": (
        lambda: make(gate_bias="time"),
        ValueError,
        "GatedRecurrentFusion: expected `gate_bias` to be one of 'chrono' or a number, got 'time'.",
    ),
    "bias of a fusion's gate": (
        lambda: make(gate_bias=float("nan")),
        ValueError,
        "GatedFusionUnit: expected `gate_bias` to be a finite number, got nan.",
    ),
    "heads of a fusion": (
        lambda: make(num_heads=3),
        ValueError,
        (
            "SymmetricCrossAttentionBlock: expected `num_heads` to divide `embed_dim`, "
            "got embed_dim=4 and num_heads=3."
        ),
    ),
    "sharing of weights": (
        lambda: make(share_weights=1),
        ValueError,
        "GatedRecurrentFusion: expected `share_weights` to be True or False, got 1.",
    ),
    "factory of blocks": (
        lambda: make(block=nn.Identity()),
        ValueError,
        (
            "GatedRecurrentFusion: expected `block` to be a function without arguments that makes "
            "a module, got Identity. Write `block=lambda: module`."
        ),
    ),
    "factory of units": (
        lambda: make(unit=3),
        ValueError,
        (
            "GatedRecurrentFusion: expected `unit` to be a function without arguments that makes a "
            "module, got int. Write `unit=lambda: module`."
        ),
    ),
    "block": (
        lambda: make(block=lambda: 3),
        ValueError,
        "GatedRecurrentFusion: expected `block()` to make an nn.Module, got int.",
    ),
    "unit": (
        lambda: make(unit=lambda: [1], share_weights=False),
        ValueError,
        "GatedRecurrentFusion: expected `unit()` to make an nn.Module, got list.",
    ),
    "new name": (
        lambda: make().add_modality("text", 3),
        ValueError,
        "GatedRecurrentFusion: expected `name` to be new, got 'text'.",
    ),
    "new name that is unusable": (
        lambda: make().add_modality("a.b", 3),
        ValueError,
        (
            "GatedRecurrentFusion: expected `name` to name modalities by non-empty strings without "
            "dots, other than attributes of nn.ModuleDict, got 'a.b'. Choose another name."
        ),
    ),
    "new width": (
        lambda: make().add_modality("smell", 0),
        ValueError,
        "GatedRecurrentFusion: expected `dim` to be a positive integer, got 0.",
    ),
    "config with a block": (
        lambda: make(block=nn.Identity).config(),
        ValueError,
        (
            "GatedRecurrentFusion: expected no `block` or `unit` factory, which no JSON can hold, "
            "got one. Keep the call that built the module instead."
        ),
    ),
    "config with a unit": (
        lambda: make(unit=nn.Identity).config(),
        ValueError,
        (
            "GatedRecurrentFusion: expected no `block` or `unit` factory, which no JSON can hold, "
            "got one. Keep the call that built the module instead."
        ),
    ),
    "first of an order": (
        lambda: paper()(given(), order=["audio", "text"]),
        ShapeError,
        (
            "GatedRecurrentFusion: expected `order` to start with 'text', got ('audio', 'text'). "
            "With share_weights=False and opening='first' the modality declared first has no step "
            "of its own: declare another one first, share the weights, or learn the opening."
        ),
    ),
    "first of the steps": (
        lambda: paper().step(started(paper()), "text", None),
        ShapeError,
        (
            "GatedRecurrentFusion: expected `name` to come first if at all, "
            "got 'text' with a state. "
            "With share_weights=False and opening='first' the modality declared first has no step "
            "of its own: declare another one first, share the weights, or learn the opening."
        ),
    ),
    "one value of a block": (
        lambda: fuse_by("block", 3),
        ShapeError,
        (
            "GatedRecurrentFusion: expected `block()` to return a pair of tensors, "
            "as our own does, got int."
        ),
    ),
    "three values of a block": (
        lambda: fuse_by("block", (1, 2, 3)),
        ShapeError,
        (
            "GatedRecurrentFusion: expected `block()` to return a pair of tensors, "
            "as our own does, got tuple."
        ),
    ),
    "context of a block": (
        lambda: fuse_by("block", (None, LIKE)),
        ShapeError,
        "GatedRecurrentFusion: expected `block()[0]` to be a torch.Tensor, got NoneType.",
    ),
    "modality of a block": (
        lambda: fuse_by("block", (LIKE, [1])),
        ShapeError,
        "GatedRecurrentFusion: expected `block()[1]` to be a torch.Tensor, got list." + CONVERT,
    ),
    "shape of a block's context": (
        lambda: fuse_by("block", (torch.zeros(2, 4), torch.zeros(2, 3, 4))),
        ShapeError,
        (
            "GatedRecurrentFusion: expected `block()[0]` of shape (batch=2, time=1, dim=4), "
            "got (2, 4)."
        ),
    ),
    "shape of a block's modality": (
        lambda: fuse_by("block", (torch.zeros(2, 1, 4), torch.zeros(2, 1, 4))),
        ShapeError,
        (
            "GatedRecurrentFusion: expected `block()[1]` of shape (batch=2, time=3, dim=4), "
            "got (2, 1, 4)."
        ),
    ),
    "dtype of a block's modality": (
        lambda: fuse_by("block", (torch.zeros(2, 1, 4), torch.zeros(2, 3, 4).half())),
        ShapeError,
        (
            "GatedRecurrentFusion: expected `block()[1]` of dtype torch.float32, "
            "as the parameters, got torch.float16. Convert one of them with `.to()`."
        ),
    ),
    "one value of a unit": (
        lambda: fuse_by("unit", LIKE),
        ShapeError,
        (
            "GatedRecurrentFusion: expected `unit()` to return a pair of tensors, as our own does, "
            "got Tensor."
        ),
    ),
    "one value of a unit in a sequence": (
        lambda: fuse_by("unit", None, context="sequence"),
        ShapeError,
        (
            "GatedRecurrentFusion: expected `unit()` to return a pair of tensors, as our own does, "
            "got NoneType."
        ),
    ),
    "gate of a unit": (
        lambda: fuse_by("unit", (torch.zeros(2, 4), None)),
        ShapeError,
        "GatedRecurrentFusion: expected `unit()[1]` to be a torch.Tensor, got NoneType.",
    ),
    "shape of a unit's context": (
        lambda: fuse_by("unit", (torch.zeros(2, 1, 4), torch.zeros(2, 4))),
        ShapeError,
        "GatedRecurrentFusion: expected `unit()[0]` of shape (batch=2, dim=4), got (2, 1, 4).",
    ),
    "shape of a unit's gate": (
        lambda: fuse_by("unit", (torch.zeros(2, 4), torch.zeros(2, 1))),
        ShapeError,
        "GatedRecurrentFusion: expected `unit()[1]` of shape (batch=2, dim=4), got (2, 1).",
    ),
    "shape of a unit's sequence": (
        lambda: fuse_by("unit", (LIKE, LIKE), context="sequence"),
        ShapeError,
        "GatedRecurrentFusion: expected `unit()[0]` of shape (batch=2, time=3, dim=4), got (2,).",
    ),
    "dtype of a unit's gate": (
        lambda: fuse_by("unit", (torch.zeros(2, 4), torch.zeros(2, 4).bool())),
        ShapeError,
        (
            "GatedRecurrentFusion: expected `unit()[1]` of dtype torch.float32, as the parameters, "
            "got torch.bool. Convert one of them with `.to()`."
        ),
    ),
    "hidden states": (
        lambda: adapt(hidden=[1]),
        ShapeError,
        "FusionAdapter: expected `hidden` to be a torch.Tensor, got list." + CONVERT,
    ),
    "nested hidden states": (
        lambda: adapt(hidden=nested()),
        ShapeError,
        (
            "FusionAdapter: expected `hidden` to be a dense tensor, got a nested one. Pad it with "
            "`torch.nested.to_padded_tensor` and give a mask; "
            "`torch.nn.TransformerEncoder` returns none with enable_nested_tensor=False."
        ),
    ),
    "shape of hidden states": (
        lambda: adapt(hidden=torch.zeros(2, 4)),
        ShapeError,
        "FusionAdapter: expected `hidden` of shape (batch, time, dim=4), got (2, 4).",
    ),
    "no hidden states": (
        lambda: adapt(hidden=torch.zeros(2, 0, 4)),
        ShapeError,
        (
            "FusionAdapter: expected `hidden` to have at least one step, got time=0. "
            "Give an absent sequence as one masked step."
        ),
    ),
    "dtype of hidden states": (
        lambda: adapt(hidden=torch.zeros(2, 6, 4).double()),
        ShapeError,
        (
            "FusionAdapter: expected `hidden` of dtype torch.float32, as the parameters, "
            "got torch.float64. Convert one of them with `.to()`."
        ),
    ),
    "mask of hidden states": (
        lambda: adapt(mask=torch.ones(2, 3).bool()),
        ShapeError,
        (
            "FusionAdapter: expected `mask` of shape (batch=2, time=6), got (2, 3). "
            "A mask holds one truth value an entry, True = real."
        ),
    ),
    "features to adapt by": (
        lambda: adapt(features=None),
        ShapeError,
        (
            "FusionAdapter: expected `features` to map names to tensors, got NoneType. "
            "Write features={'text': ...}."
        ),
    ),
    "batch to adapt by": (
        lambda: adapt(hidden=torch.zeros(3, 6, 4)),
        ShapeError,
        (
            "FusionAdapter: expected `features['text']` of shape (batch=3, time, dim=3), "
            "got (2, 3, 3)."
        ),
    ),
    "masks to adapt by": (
        lambda: adapt(masks={"text": torch.ones(2, 4).bool()}),
        ShapeError,
        (
            "FusionAdapter: expected `masks['text']` of shape (batch=2, time=3), got (2, 4). "
            "A mask holds one truth value an entry, True = real."
        ),
    ),
    "presence to adapt by": (
        lambda: adapt(present=torch.ones(2, 3).bool()),
        ShapeError,
        (
            "FusionAdapter: expected `present` of shape (batch=2, modalities=2), got (2, 3). "
            "A mask holds one truth value an entry, True = real."
        ),
    ),
    "host": (
        lambda: adapted(host=3),
        ValueError,
        "AdaptedModel: expected `host` to be an nn.Module, got int.",
    ),
    "no adapters": (
        lambda: adapted(adapters={}),
        ValueError,
        "AdaptedModel: expected `adapters` to map names of layers to adapters, got {}.",
    ),
    "adapters": (
        lambda: adapted(adapters=["0"]),
        ValueError,
        "AdaptedModel: expected `adapters` to map names of layers to adapters, got ['0'].",
    ),
    "adapter": (
        lambda: adapted(adapters={"0": nn.Identity()}),
        ValueError,
        "AdaptedModel: expected `adapters['0']` to be a FusionAdapter, got Identity.",
    ),
    "layer of the host": (
        lambda: adapted(adapters={"1": make(FusionAdapter)}),
        ValueError,
        (
            "AdaptedModel: expected `adapters` to name layers of the host as "
            "`host.named_modules()` does, got '1'."
        ),
    ),
    "width of two adapters": (
        lambda: adapted(
            adapters={"": make(FusionAdapter), "0": make(FusionAdapter, modalities={"text": 4})}
        ),
        ValueError,
        "AdaptedModel: expected `adapters` to declare 'text' with one width, got 3 and 4.",
    ),
    "host by itself": (
        lambda: adapted().host(LIKE),
        ShapeError,
        (
            "AdaptedModel: expected `host` to run inside a call of the AdaptedModel, "
            "got layer '0' called without one. "
            "Call the AdaptedModel, or take the adapters off with `remove()`; "
            "recompute with the adapters' checkpoint=True, not the host's."
        ),
    ),
    "host by itself after a call": (
        lambda: called().host(LIKE),
        ShapeError,
        (
            "AdaptedModel: expected `host` to run inside a call of the AdaptedModel, "
            "got layer '0' called without one. "
            "Call the AdaptedModel, or take the adapters off with `remove()`; "
            "recompute with the adapters' checkpoint=True, not the host's."
        ),
    ),
    "layer without a tensor": (
        lambda: adapted([1])(LIKE, features=given()),
        ShapeError,
        (
            "AdaptedModel: expected `adapters['0']` to stand behind a layer that returns its "
            "hidden states, alone or first in a tuple, got list."
        ),
    ),
    "layer without a tensor in front": (
        lambda: adapted(({}, LIKE))(LIKE, features=given()),
        ShapeError,
        (
            "AdaptedModel: expected `adapters['0']` to stand behind a layer that returns its "
            "hidden states, alone or first in a tuple, got dict."
        ),
    ),
    "layer that returns an empty tuple": (
        lambda: adapted(())(LIKE, features=given()),
        ShapeError,
        (
            "AdaptedModel: expected `adapters['0']` to stand behind a layer that returns its "
            "hidden states, alone or first in a tuple, got tuple."
        ),
    ),
    "features of an adapted model": (
        lambda: adapted()(LIKE, features=3),
        ShapeError,
        (
            "AdaptedModel: expected `features` to map names to tensors, got int. "
            "Write features={'text': ...}."
        ),
    ),
    "name that resembles a layer's": (
        lambda: AdaptedModel(
            nn.ModuleDict({"layers": Says(None)}), adapters={"layer": make(FusionAdapter)}
        ),
        ValueError,
        (
            "AdaptedModel: expected `adapters` to name layers of the host as "
            "`host.named_modules()` does, got 'layer'. The most similar name is 'layers'."
        ),
    ),
    "names of features of an adapted model": (
        lambda: adapted()(LIKE, features={"smell": LIKE}),
        ShapeError,
        (
            "AdaptedModel: expected `features` to name modalities of ['text', 'audio'], "
            "unexpected ['smell'], missing ['text', 'audio']."
        ),
    ),
    "masks of an adapted model": (
        lambda: adapted()(LIKE, features=given(), masks=3),
        ShapeError,
        (
            "AdaptedModel: expected `masks` to map names to tensors, got int. "
            "Write masks={'text': ...}."
        ),
    ),
    "presence of an adapted model": (
        lambda: adapted(torch.zeros(2, 6, 4))(
            LIKE, features=given(), present=torch.ones(2, 3).bool()
        ),
        ShapeError,
        (
            "AdaptedModel: expected `present` of shape (batch=2, modalities=2), got (2, 3). "
            "A mask holds one truth value an entry, True = real."
        ),
    ),
    "stage": (
        lambda: make(ConcatFusion, stage="middle"),
        ValueError,
        "ConcatFusion: expected `stage` to be one of 'late', 'pooled', 'early', got 'middle'.",
    ),
    "feed-forward of a concatenation": (
        lambda: make(ConcatFusion, dim_feedforward=0),
        ValueError,
        "ConcatFusion: expected `dim_feedforward` to be a positive integer, got 0.",
    ),
    "dropout of a concatenation": (
        lambda: make(ConcatFusion, dropout=1.0),
        ValueError,
        "ConcatFusion: expected `dropout` to be a probability in [0, 1), got 1.0.",
    ),
    "heads of a late concatenation": (
        lambda: make(ConcatFusion, num_heads=2),
        ValueError,
        (
            "ConcatFusion: expected no `num_heads` with stage='late', got 2. "
            "The late form has no attention: use stage='early'."
        ),
    ),
    "layers of a late concatenation": (
        lambda: make(ConcatFusion, num_layers=1),
        ValueError,
        (
            "ConcatFusion: expected no `num_layers` with stage='late', got 1. "
            "The late form has no attention: use stage='early'."
        ),
    ),
    "heads of a pooled concatenation": (
        lambda: make(ConcatFusion, stage="pooled", num_heads=2),
        ValueError,
        (
            "ConcatFusion: expected no `num_heads` with stage='pooled', got 2. "
            "The pooled form has no attention: use stage='early'."
        ),
    ),
    "no heads of an early concatenation": (
        lambda: make(ConcatFusion, stage="early"),
        ValueError,
        (
            "ConcatFusion: expected `num_heads` with stage='early', got None. "
            "The early form has attention: say how many heads, a divisor of `embed_dim`."
        ),
    ),
    "heads of an early concatenation": (
        lambda: make(ConcatFusion, stage="early", num_heads=3),
        ValueError,
        (
            "ConcatFusion: expected `num_heads` to divide `embed_dim`, "
            "got embed_dim=4 and num_heads=3."
        ),
    ),
    "layers of an early concatenation": (
        lambda: make(ConcatFusion, stage="early", num_heads=2, num_layers=0),
        ValueError,
        "ConcatFusion: expected `num_layers` to be a positive integer, got 0.",
    ),
    "weights": (
        lambda: make(WeightedSumFusion, weights="sum"),
        ValueError,
        (
            "WeightedSumFusion: expected `weights` to be one of 'sigmoid', 'softmax' or a mapping "
            "of all modalities, got 'sum'."
        ),
    ),
    "names of weights": (
        lambda: make(WeightedSumFusion, weights={"text": 1, "smell": 1}),
        ValueError,
        (
            "WeightedSumFusion: expected `weights` to name each of ['text', 'audio'], "
            "unexpected ['smell'], missing ['audio']."
        ),
    ),
    "negative weight": (
        lambda: make(WeightedSumFusion, weights={"text": 1, "audio": -1}),
        ValueError,
        (
            "WeightedSumFusion: expected `weights['audio']` to be a finite number of at least 0, "
            "got -1."
        ),
    ),
    "infinite weight": (
        lambda: make(WeightedSumFusion, weights={"text": float("inf"), "audio": 1}),
        ValueError,
        (
            "WeightedSumFusion: expected `weights['text']` to be a finite number of at least 0, "
            "got inf."
        ),
    ),
    "type of a weight": (
        lambda: make(WeightedSumFusion, weights={"text": True, "audio": 1}),
        ValueError,
        (
            "WeightedSumFusion: expected `weights['text']` to be a finite number of at least 0, "
            "got True."
        ),
    ),
    "weights of 0": (
        lambda: make(WeightedSumFusion, weights={"text": 0, "audio": 0.0}),
        ValueError,
        "WeightedSumFusion: expected `weights` to hold a number above 0, got only 0.",
    ),
    "heads of a cross-modal fusion": (
        lambda: make(CrossModalAttentionFusion, num_heads=3),
        ValueError,
        (
            "CrossModalAttentionFusion: expected `num_heads` to divide `embed_dim`, "
            "got embed_dim=4 and num_heads=3."
        ),
    ),
    "dropout of a cross-modal fusion": (
        lambda: make(CrossModalAttentionFusion, dropout=1.0),
        ValueError,
        "CrossModalAttentionFusion: expected `dropout` to be a probability in [0, 1), got 1.0.",
    ),
    "one modality of MulT": (
        lambda: make(MulT, modalities={"text": 3}),
        ValueError,
        "MulT: expected `modalities` to name at least 2 modalities, got ['text'].",
    ),
    "heads of MulT": (
        lambda: make(MulT, num_heads=3),
        ValueError,
        "MulT: expected `num_heads` to divide `embed_dim`, got embed_dim=4 and num_heads=3.",
    ),
    "width of a stack": (
        lambda: make(MulT, stack_dim=0),
        ValueError,
        "MulT: expected `stack_dim` to be a positive integer, got 0.",
    ),
    "heads of a stack": (
        lambda: make(MulT, stack_dim=6, num_heads=4),
        ValueError,
        "MulT: expected `num_heads` to divide `stack_dim`, got stack_dim=6 and num_heads=4.",
    ),
    "layers of MulT": (
        lambda: make(MulT, num_layers=0),
        ValueError,
        "MulT: expected `num_layers` to be a positive integer, got 0.",
    ),
    "dropout of MulT": (
        lambda: make(MulT, dropout=1.0),
        ValueError,
        "MulT: expected `dropout` to be a probability in [0, 1), got 1.0.",
    ),
    "literal": (
        lambda: make(MulT, literal=1),
        ValueError,
        "MulT: expected `literal` to be True or False, got 1.",
    ),
    "mask with literal": (
        lambda: make(MulT, literal=True)(given(), masks={}),
        ShapeError,
        (
            "MulT: expected no `masks` with literal=True, got dict. "
            "Build the module with literal=False."
        ),
    ),
    "presence with literal": (
        lambda: make(MulT, literal=True)(given(), present=torch.ones(2, 2).bool()),
        ShapeError,
        (
            "MulT: expected no `present` with literal=True, got Tensor. "
            "Build the module with literal=False."
        ),
    ),
    "absence with literal": (
        lambda: make(MulT, literal=True)(given(audio=None)),
        ShapeError,
        (
            "MulT: expected `features` to hold every modality with literal=True, "
            "missing ['audio']. Build the module with literal=False."
        ),
    ),
    "one modality to align": (
        lambda: make(ContrastiveAlignment, modalities={"text": 3}),
        ValueError,
        "ContrastiveAlignment: expected `modalities` to name at least 2 modalities, got ['text'].",
    ),
    "temperature": (
        lambda: make(ContrastiveAlignment, temperature=0.01),
        ValueError,
        "ContrastiveAlignment: expected `temperature` to be a finite number above 0.01, got 0.01.",
    ),
    "type of temperature": (
        lambda: make(ContrastiveAlignment, temperature="warm"),
        ValueError,
        (
            "ContrastiveAlignment: expected `temperature` to be a finite number above 0.01, "
            "got 'warm'."
        ),
    ),
    "order of a checkpoint": (
        lambda: load({}, order=["text"]),
        ValueError,
        (
            "load_author_checkpoint: expected `order` to name at least two different modalities, "
            "got ['text']."
        ),
    ),
    "order of a checkpoint as one name": (
        lambda: load({}, order="text"),
        ValueError,
        (
            "load_author_checkpoint: expected `order` to name at least two different modalities, "
            "got 'text'."
        ),
    ),
    "type of the order of a checkpoint": (
        lambda: load({}, order=3),
        ValueError,
        (
            "load_author_checkpoint: expected `order` to name at least two different modalities, "
            "got 3."
        ),
    ),
    "names in the order of a checkpoint": (
        lambda: load({}, order=["text", 3]),
        ValueError,
        (
            "load_author_checkpoint: expected `order` to name at least two different modalities, "
            "got ['text', 3]."
        ),
    ),
    "modality of a checkpoint twice": (
        lambda: load({}, order=["text", "text"]),
        ValueError,
        (
            "load_author_checkpoint: expected `order` to name at least two different modalities, "
            "got ['text', 'text']."
        ),
    ),
    "model of a checkpoint": (
        lambda: load({}, "bert"),
        ValueError,
        "load_author_checkpoint: expected `model` to be one of 'grf', 'mult', got 'bert'.",
    ),
    "type of literal of a checkpoint": (
        lambda: load({}, "mult", literal=1),
        ValueError,
        "load_author_checkpoint: expected `literal` to be True or False, got 1.",
    ),
    "literal of another model": (
        lambda: load({}, literal=True),
        ValueError,
        (
            "load_author_checkpoint: expected no `literal` with model='grf', got True. "
            "It is an option of MulT."
        ),
    ),
    "weights of a checkpoint": (
        lambda: load([1]),
        ValueError,
        "load_author_checkpoint: expected `state_dict` to map names to tensors, got list.",
    ),
    "no projection": (
        lambda: load({"projectors.smell.weight": LIKE, 3: LIKE}),
        ValueError,
        (
            "load_author_checkpoint: expected `state_dict` to hold 'projectors.text.weight', "
            "got none. It projects ['projectors.smell.weight']; `order` names the same modalities."
        ),
    ),
    "axes of a projection": (
        lambda: load({"projectors.text.weight": LIKE}),
        ValueError,
        "load_author_checkpoint: expected 'projectors.text.weight' to be a matrix, got (2,).",
    ),
    "projection that is no tensor": (
        lambda: load({"projectors.text.weight": 3}),
        ValueError,
        "load_author_checkpoint: expected 'projectors.text.weight' to be a matrix, got int.",
    ),
    "no feed-forward": (
        lambda: load({"projectors.text.weight": MATRIX}),
        ValueError,
        (
            "load_author_checkpoint: expected `state_dict` to hold "
            "'fusion_encoders.0.decoder_1.layers.0.linear1.weight', got none. "
            "It is all of the authors' model, with their names, and `model` says whose it is."
        ),
    ),
    "weights of another model": (
        lambda: load({"proj_text.weight": LIKE}),
        ValueError,
        (
            "load_author_checkpoint: expected `state_dict` to hold 'projectors.text.weight', "
            "got none. "
            "It is all of the authors' model, with their names, and `model` says whose it is."
        ),
    ),
    "no second projection": (
        lambda: load({"projectors.text.weight": MATRIX, FEEDFORWARD: MATRIX}),
        ValueError,
        (
            "load_author_checkpoint: expected `state_dict` to hold 'projectors.audio.weight', "
            "got none. It projects ['projectors.text.weight']; `order` names the same modalities."
        ),
    ),
    "no projection of MulT": (
        lambda: load({"proj_smell.weight": LIKE}, "mult"),
        ValueError,
        (
            "load_author_checkpoint: expected `state_dict` to hold 'proj_text.weight', got none. "
            "It projects ['proj_smell.weight']; `order` names the same modalities."
        ),
    ),
    "axes of a projection of MulT": (
        lambda: load({"proj_text.weight": MATRIX}, "mult"),
        ValueError,
        "load_author_checkpoint: expected 'proj_text.weight' to be of 3 axes, got (4, 3).",
    ),
    "no second projection of MulT": (
        lambda: load({"proj_text.weight": KERNEL}, "mult"),
        ValueError,
        (
            "load_author_checkpoint: expected `state_dict` to hold 'proj_audio.weight', got none. "
            "It projects ['proj_text.weight']; `order` names the same modalities."
        ),
    ),
    "axes of the second projection of MulT": (
        lambda: load({"proj_text.weight": KERNEL, "proj_audio.weight": MATRIX}, "mult"),
        ValueError,
        "load_author_checkpoint: expected 'proj_audio.weight' to be of 3 axes, got (4, 3).",
    ),
    "no head of MulT": (
        lambda: load({"proj_text.weight": KERNEL, "proj_audio.weight": KERNEL}, "mult"),
        ValueError,
        (
            "load_author_checkpoint: expected `state_dict` to hold 'out_layer.weight', got none. "
            "It is all of the authors' model, with their names, and `model` says whose it is."
        ),
    ),
    "names of weights of a checkpoint": (
        lambda: check_shapes({"a": LIKE, "c": LIKE}, {"a": (2,), "b": (2,)}),
        ValueError,
        (
            "load_author_checkpoint: expected `state_dict` to hold the authors' names, "
            "missing ['b'], unexpected ['c']."
        ),
    ),
    "no weight of a checkpoint": (
        lambda: check_shapes({"a": LIKE}, {"a": (2,), "b": (2,)}),
        ValueError,
        (
            "load_author_checkpoint: expected `state_dict` to hold the authors' names, "
            "missing ['b'], unexpected []."
        ),
    ),
    "another weight of a checkpoint": (
        lambda: check_shapes({"a": LIKE, "c": LIKE}, {"a": (2,)}),
        ValueError,
        (
            "load_author_checkpoint: expected `state_dict` to hold the authors' names, missing [], "
            "unexpected ['c']."
        ),
    ),
    "shape of a weight of a checkpoint": (
        lambda: check_shapes({"a": LIKE}, {"a": (2, 1)}),
        ValueError,
        "load_author_checkpoint: expected 'a' of shape (2, 1), got (2,).",
    ),
    "type of a weight of a checkpoint": (
        lambda: check_shapes({"a": 3}, {"a": ()}),
        ValueError,
        "load_author_checkpoint: expected 'a' of shape (), got int.",
    ),
    "integers in a checkpoint": (
        lambda: check_shapes({"a": LIKE.long()}, {"a": (2,)}),
        ValueError,
        "load_author_checkpoint: expected 'a' to be floating-point, got torch.int64.",
    ),
    "dtypes in a checkpoint": (
        lambda: check_shapes({"a": LIKE, "b": LIKE.double()}, {"a": (2,), "b": (2,)}),
        ValueError,
        (
            f"load_author_checkpoint: expected 'b' to be torch.float32 on {HERE}, as 'a', "
            f"got torch.float64 on {HERE}."
        ),
    ),
    "devices in a checkpoint": (
        lambda: check_shapes({"a": LIKE, "b": LIKE.to("meta")}, {"a": (2,), "b": (2,)}),
        ValueError,
        (
            f"load_author_checkpoint: expected 'b' to be torch.float32 on {HERE}, as 'a', "
            "got torch.float32 on meta."
        ),
    ),
    "module to plan for": (
        lambda: tensor_parallel_plan(nn.Linear(3, 2)),
        ValueError,
        "tensor_parallel_plan: expected `module` to hold a block of grf_fusion, got Linear.",
    ),
}


def trace(**changes: Any) -> FusionTrace:
    ones = torch.ones(2, 2).bool()
    plain = FusionTrace(torch.zeros(2, 2, 4), torch.zeros(2, 1, 4), ones, tuple(WIDTHS))
    return plain._replace(**changes)


def timed(**changes: Any) -> FusionTrace:
    times = {"time_gates": torch.zeros(2, 1, 3, 4), "time_mask": torch.ones(2, 3).bool()}
    return trace(**times | changes)


def lacking() -> GatedRecurrentFusion:
    fusion = make()
    del fusion.projections["audio"]
    return fusion


def total(context: Tensor) -> Tensor:
    return context.sum()


def idle() -> nn.Module:
    pair = torch.zeros(2, 1, 4), torch.zeros(2, 3, 4)
    return Says(pair, inside=SymmetricCrossAttentionBlock(4, num_heads=2))


def maps_by(make_block: Callable[[], nn.Module]) -> object:
    features = given(audio=torch.zeros(2, 3, 5))
    return diagnostics.attention_maps(make(block=make_block), features)


def plot_groups(samples: object) -> object:
    return viz.plot_retention(diagnostics.retention(trace()), groups={"fault": samples})


def without_matplotlib() -> object:
    with patch.dict(sys.modules, {"matplotlib": None}):
        return runpy.run_path(str(_canvas.__file__))


SAID_OF_TOOLS: Said = {
    "rows to leave out from": (
        lambda: diagnostics.leave_one_out(make(), given(), total, rows=0),
        ValueError,
        "leave_one_out: expected `rows` to be a positive integer, got 0.",
    ),
    "type of a value": (
        lambda: diagnostics.leave_one_out(make(), given(), len),
        ShapeError,
        "leave_one_out: expected `value(context)` to be a torch.Tensor, got int.",
    ),
    "shape of a value": (
        lambda: diagnostics.leave_one_out(make(), given(), total),
        ShapeError,
        (
            "leave_one_out: expected `value(context)` of shape (batch=2), got (). "
            "Give each sample one number, not their mean."
        ),
    ),
    "result of a fusion": (
        lambda: diagnostics.leave_one_out(Strange(), given(), total),
        ShapeError,
        "Strange: expected `forward()` to be a torch.Tensor, got NoneType.",
    ),
    "rows to divide": (
        lambda: diagnostics.shapley_values(make(), given(), total, rows=0),
        ValueError,
        "shapley_values: expected `rows` to be a positive integer, got 0.",
    ),
    "permutations": (
        lambda: diagnostics.shapley_values(make(), given(), total, permutations=1),
        ValueError,
        "shapley_values: expected `permutations` to be an integer of at least 2, got 1.",
    ),
    "type of permutations": (
        lambda: diagnostics.shapley_values(make(), given(), total, permutations=True),
        ValueError,
        "shapley_values: expected `permutations` to be an integer of at least 2, got True.",
    ),
    "type of a value to divide": (
        lambda: diagnostics.shapley_values(make(), given(), len),
        ShapeError,
        "shapley_values: expected `value(context)` to be a torch.Tensor, got int.",
    ),
    "shape of a value of drawn orders": (
        lambda: diagnostics.shapley_values(make(), given(), total, permutations=2),
        ShapeError,
        (
            "shapley_values: expected `value(context)` of shape (batch=2), got (). "
            "Give each sample one number, not their mean."
        ),
    ),
    "draws": (
        lambda: diagnostics.missing_curve(make(), given(), total, draws=0),
        ValueError,
        "missing_curve: expected `draws` to be a positive integer, got 0.",
    ),
    "type of a metric": (
        lambda: diagnostics.missing_curve(make(), given(), str),
        ShapeError,
        (
            "missing_curve: expected `metric(context)` to be one number, got str. "
            "Give the metric of the whole batch."
        ),
    ),
    "shape of a metric": (
        lambda: diagnostics.missing_curve(make(), given(), torch.exp),
        ShapeError,
        (
            "missing_curve: expected `metric(context)` to be one number, got shape (2, 4). "
            "Give the metric of the whole batch."
        ),
    ),
    "fusion without an order": (
        lambda: diagnostics.order_sensitivity(make(ConcatFusion), given(), total),
        ShapeError,
        (
            "order_sensitivity: expected `fusion` to be a GatedRecurrentFusion, got ConcatFusion. "
            "Other fusions have no order."
        ),
    ),
    "metric of orders": (
        lambda: diagnostics.order_sensitivity(make(), given(), 3),
        ShapeError,
        "order_sensitivity: expected `metric` to be a function of the context, got int.",
    ),
    "orders": (
        lambda: diagnostics.order_sensitivity(make(), given(), total, orders=0),
        ValueError,
        "order_sensitivity: expected `orders` to be a positive integer, got 0.",
    ),
    "truth as a metric": (
        lambda: diagnostics.order_sensitivity(make(), given(), torch.is_tensor),
        ShapeError,
        (
            "order_sensitivity: expected `metric(context)` to be one number, got bool. "
            "Give the metric of the whole batch."
        ),
    ),
    "no projections": (
        lambda: diagnostics.gradient_share(Strange(), given(), total),
        ShapeError,
        (
            "gradient_share: expected `fusion.projections` to hold a module for each of "
            "['text', 'audio'], got NoneType."
        ),
    ),
    "names of projections": (
        lambda: diagnostics.gradient_share(lacking(), given(), total),
        ShapeError,
        (
            "gradient_share: expected `fusion.projections` to hold a module for each of "
            "['text', 'audio'], got ['text']."
        ),
    ),
    "type of a loss": (
        lambda: diagnostics.gradient_share(make(), given(), len),
        ShapeError,
        "gradient_share: expected `loss(context)` to be a torch.Tensor, got int.",
    ),
    "shape of a loss": (
        lambda: diagnostics.gradient_share(make(), given(), torch.exp),
        ShapeError,
        (
            "gradient_share: expected `loss(context)` to be one number, got shape (2, 4). "
            "Take its mean."
        ),
    ),
    "loss without a gradient": (
        lambda: diagnostics.gradient_share(make(), given(), lambda _: LIKE[0]),
        ShapeError,
        (
            "gradient_share: expected `loss(context)` to depend on the context, "
            "got a tensor without a gradient. Compute it without `detach` and `torch.no_grad`."
        ),
    ),
    "fusion without maps": (
        lambda: diagnostics.attention_maps(make(ConcatFusion), given()),
        ShapeError,
        (
            "attention_maps: expected `fusion` to be a GatedRecurrentFusion, got ConcatFusion. "
            "Give the fusion inside the model, not compiled."
        ),
    ),
    "block without weights": (
        lambda: maps_by(lambda: Says(3)),
        ShapeError,
        (
            "attention_maps: expected `block` to take `need_weights` or to hold a "
            "SymmetricCrossAttentionBlock, got Says."
        ),
    ),
    "weights of a block": (
        lambda: maps_by(lambda: Asked((LIKE, LIKE, 3))),
        ShapeError,
        (
            "attention_maps: expected `block()` with need_weights=True to return context, "
            "modality and AttentionWeights, got Tensor, Tensor, int from Asked."
        ),
    ),
    "two values of a block with weights": (
        lambda: maps_by(lambda: Asked((LIKE, LIKE))),
        ShapeError,
        (
            "attention_maps: expected `block()` with need_weights=True to return context, "
            "modality and AttentionWeights, got Tensor, Tensor from Asked."
        ),
    ),
    "one value of a block with weights": (
        lambda: maps_by(lambda: Asked(3)),
        ShapeError,
        (
            "attention_maps: expected `block()` with need_weights=True to return context, "
            "modality and AttentionWeights, got int from Asked."
        ),
    ),
    "block inside that is not called": (
        lambda: maps_by(idle),
        ShapeError,
        (
            "attention_maps: expected `block` to call the SymmetricCrossAttentionBlock that it "
            "holds, got a step without a call."
        ),
    ),
    "type of contexts": (
        lambda: diagnostics.retention(trace(contexts=[1])),
        ShapeError,
        "retention: expected `trace.contexts` to be a torch.Tensor, got list." + CONVERT,
    ),
    "shape of contexts": (
        lambda: diagnostics.retention(trace(contexts=torch.zeros(2, 3, 4))),
        ShapeError,
        "retention: expected `trace.contexts` of shape (batch, modalities=2, dim), got (2, 3, 4).",
    ),
    "type of presence": (
        lambda: diagnostics.retention(trace(present=[1])),
        ShapeError,
        "retention: expected `trace.present` to be a torch.Tensor, got list." + CONVERT,
    ),
    "shape of presence": (
        lambda: diagnostics.retention(trace(present=torch.ones(2, 3))),
        ShapeError,
        "retention: expected `trace.present` of shape (batch=2, modalities=2), got (2, 3).",
    ),
    "type of gates": (
        lambda: diagnostics.retention(trace(gates=[1])),
        ShapeError,
        "retention: expected `trace.gates` to be a torch.Tensor, got list." + CONVERT,
    ),
    "axes of gates": (
        lambda: diagnostics.retention(trace(gates=torch.zeros(2, 2))),
        ShapeError,
        "retention: expected `trace.gates` of shape (batch=2, steps=1, dim=4), got (2, 2).",
    ),
    "steps of gates": (
        lambda: diagnostics.retention(trace(gates=torch.zeros(2, 3, 4))),
        ShapeError,
        "retention: expected `trace.gates` of shape (batch=2, steps=1, dim=4), got (2, 3, 4).",
    ),
    "width of gates from a learnt opening": (
        lambda: diagnostics.retention(trace(gates=torch.zeros(2, 2, 5))),
        ShapeError,
        "retention: expected `trace.gates` of shape (batch=2, steps=2, dim=4), got (2, 2, 5).",
    ),
    "type of gates in time": (
        lambda: diagnostics.retention(timed(time_gates=[1])),
        ShapeError,
        "retention: expected `trace.time_gates` to be a torch.Tensor, got list." + CONVERT,
    ),
    "shape of gates in time": (
        lambda: diagnostics.retention(timed(time_gates=torch.zeros(2, 2, 3, 4))),
        ShapeError,
        (
            "retention: expected `trace.time_gates` of shape (batch=2, steps=1, time, dim=4), "
            "got (2, 2, 3, 4)."
        ),
    ),
    "type of a mask in time": (
        lambda: diagnostics.retention(timed(time_mask=None)),
        ShapeError,
        "retention: expected `trace.time_mask` to be a torch.Tensor, got NoneType.",
    ),
    "shape of a mask in time": (
        lambda: diagnostics.retention(timed(time_mask=torch.ones(2, 2))),
        ShapeError,
        "retention: expected `trace.time_mask` of shape (batch=2, time=3), got (2, 2).",
    ),
    "saturation": (
        lambda: diagnostics.gate_statistics(trace(), saturation=0.5),
        ValueError,
        "gate_statistics: expected `saturation` to be a number in (0, 0.5), got 0.5.",
    ),
    "limit of what is erased": (
        lambda: diagnostics.gate_warnings(trace(), erased_below=0),
        ValueError,
        "gate_warnings: expected `erased_below` to be a number in (0, 1), got 0.",
    ),
    "limit of what is closed": (
        lambda: diagnostics.gate_warnings(trace(), closed_below=1.0),
        ValueError,
        "gate_warnings: expected `closed_below` to be a number in (0, 1), got 1.0.",
    ),
    "limit of what is constant": (
        lambda: diagnostics.gate_warnings(trace(), constant_below="low"),
        ValueError,
        "gate_warnings: expected `constant_below` to be a number in (0, 1), got 'low'.",
    ),
    "type of weights to plot": (
        lambda: viz.plot_attention([1]),
        ShapeError,
        "plot_attention: expected `weights` to be a torch.Tensor, got list." + CONVERT,
    ),
    "shape of weights to plot": (
        lambda: viz.plot_attention(torch.zeros(2, 3, 4)),
        ShapeError,
        (
            "plot_attention: expected `weights` of shape (batch, layers, heads, queries, keys), "
            "got (2, 3, 4)."
        ),
    ),
    "sample to plot": (
        lambda: viz.plot_attention(torch.zeros(2, 3, 4, 5, 6), sample=2),
        ShapeError,
        "plot_attention: expected `sample` from 0 to 1, got 2.",
    ),
    "layer to plot": (
        lambda: viz.plot_attention(torch.zeros(2, 3, 4, 5, 6), layer=-1),
        ShapeError,
        "plot_attention: expected `layer` from 0 to 2, got -1.",
    ),
    "head to plot": (
        lambda: viz.plot_attention(torch.zeros(2, 3, 4, 5, 6), head=4),
        ShapeError,
        "plot_attention: expected `head` from 0 to 3, got 4.",
    ),
    "no layer to plot": (
        lambda: viz.plot_attention(torch.zeros(2, 0, 4, 5, 6)),
        ShapeError,
        (
            "plot_attention: expected `weights` of at least one sample, layer, head, query and "
            "key, got (2, 0, 4, 5, 6)."
        ),
    ),
    "one feature to plot": (
        lambda: viz.plot_context_path(
            trace(contexts=torch.zeros(2, 2, 1), gates=torch.zeros(2, 1, 1)), LABELS
        ),
        ShapeError,
        "plot_context_path: expected `trace.contexts` to have two features or more, got 1.",
    ),
    "type of labels": (
        lambda: viz.plot_context_path(trace(), [0, 1]),
        ShapeError,
        "plot_context_path: expected `labels` to be a torch.Tensor, got list." + CONVERT,
    ),
    "shape of labels": (
        lambda: viz.plot_context_path(trace(), torch.zeros(3)),
        ShapeError,
        "plot_context_path: expected `labels` of shape (batch=2), got (3,).",
    ),
    "step to plot": (
        lambda: viz.plot_context_path(trace(), LABELS, step=2),
        ShapeError,
        "plot_context_path: expected `step` from 0 to 1, got 2.",
    ),
    "no curves": (
        lambda: viz.plot_missing_curve({}, metric="accuracy"),
        ShapeError,
        "plot_missing_curve: expected `curves` to hold a curve, got none.",
    ),
    "columns to plot": (
        lambda: viz.plot_gates(trace(), by="class"),
        ValueError,
        "plot_gates: expected `by` to be one of 'feature', 'sample', got 'class'.",
    ),
    "no gates to plot": (
        lambda: viz.plot_gates(
            make(modalities={"text": 3}, opening="first")(
                {"text": torch.zeros(2, 3, 3)}, return_trace=True
            )[1]
        ),
        ShapeError,
        (
            "plot_gates: expected `trace` to have a step, got none. "
            "An only modality that opens the context has no gate."
        ),
    ),
    "type of a group": (
        lambda: plot_groups([1]),
        ShapeError,
        "plot_retention: expected `groups['fault']` to be a torch.Tensor, got list." + CONVERT,
    ),
    "shape of a group": (
        lambda: plot_groups(torch.ones(3)),
        ShapeError,
        "plot_retention: expected `groups['fault']` of shape (batch=2), got (3,).",
    ),
    "empty group": (
        lambda: plot_groups(torch.zeros(2)),
        ShapeError,
        "plot_retention: expected `groups['fault']` to hold a sample, got none.",
    ),
    "no matplotlib": (
        without_matplotlib,
        ImportError,
        (
            "grf_fusion.viz draws with matplotlib, which is not installed: "
            "pip install 'grf-fusion[viz]'"
        ),
    ),
}

# What several modules or functions say in the same words, each under its own name.
SAID_OF_EACH: Said = {}
for kind in MADE:
    SAID_OF_EACH[f"modalities of {kind.__name__}"] = (
        partial(make, kind, modalities=3),
        ValueError,
        (
            f"{kind.__name__}: expected `modalities` to map names to feature sizes, "
            "as a mapping or as pairs, got int. Write {'text': 768, 'image': 1024}."
        ),
    )
    SAID_OF_EACH[f"width of {kind.__name__}"] = (
        partial(make, kind, embed_dim=0),
        ValueError,
        f"{kind.__name__}: expected `embed_dim` to be a positive integer, got 0.",
    )
for kind, method in itertools.product(MADE, ("forward", "presence", "embed")):
    if kind is FusionAdapter or not hasattr(kind, method):
        continue
    SAID_OF_EACH[f"nothing for {method} of {kind.__name__}"] = (
        partial(call, kind, method),
        ShapeError,
        (
            f"{kind.__name__}: expected `features` to hold at least one of ['text', 'audio'], "
            "got none. A batch that lacks everything is one masked step of any modality."
        ),
    )
for function, argument in {
    diagnostics.leave_one_out: "value",
    diagnostics.shapley_values: "value",
    diagnostics.missing_curve: "metric",
    diagnostics.gradient_share: "loss",
}.items():
    SAID_OF_EACH[f"fusion of {function.__name__}"] = (
        partial(function, nn.Linear(3, 2), given(), total),
        ShapeError,
        (
            f"{function.__name__}: expected `fusion` to be a GatedRecurrentFusion or a fusion of "
            "grf_fusion.baselines, got Linear. Give the fusion inside a model, "
            "and what stands behind it as the function of its context."
        ),
    )
    SAID_OF_EACH[f"function of {function.__name__}"] = (
        partial(function, Strange(), given(), 3),
        ShapeError,
        f"{function.__name__}: expected `{argument}` to be a function of the context, got int.",
    )
for function, *more in (
    (diagnostics.retention,),
    (diagnostics.gate_statistics,),
    (diagnostics.gate_warnings,),
    (viz.plot_gates,),
    (viz.plot_context_path, LABELS),
):
    SAID_OF_EACH[f"trace of {function.__name__}"] = (
        partial(function, 3, *more),
        ShapeError,
        (
            f"{function.__name__}: expected `trace` to be a FusionTrace, got int. "
            "Call the fusion with return_trace=True and give the second result."
        ),
    )


def warned(*gates: float) -> str:
    filled = torch.tensor(gates)[:, None, None].expand(2, 1, 4)
    (found,) = diagnostics.gate_warnings(trace(gates=filled))
    return found.message


SHOWN: dict[str, tuple[Callable[[], str], str]] = {
    "unit": (
        lambda: GatedFusionUnit(4, gate_bias=-2.0).extra_repr(),
        "embed_dim=4, gate_bias=-2.0, identity_init=False",
    ),
    "block": (
        lambda: SymmetricCrossAttentionBlock(4, num_heads=2, pooled_context=True).extra_repr(),
        "embed_dim=4, num_heads=2, pooled_context=True",
    ),
    "dropout of modalities": (
        lambda: ModalityDropout(0.25).extra_repr(),
        "p=0.25",
    ),
    "fusion": (
        lambda: make(dropout=0.25).extra_repr(),
        (
            "modalities={'text': 3, 'audio': 5}, order=text -> audio, form='residual', "
            "embed_dim=4, num_heads=2, num_layers=1, dim_feedforward=None, dropout=0.25, "
            "activation='gelu', norm_first=True, self_attention=False, symmetric=True, "
            "packing='auto', checkpoint=False, context='pooled', opening='learned', "
            "gate_bias='chrono', share_weights=True"
        ),
    ),
    "summary": (
        lambda: make(form=None).extra_repr(),
        (
            "modalities={'text': 3, 'audio': 5}, order=text -> audio, form='summary', "
            "embed_dim=4, num_heads=2, num_layers=1, dim_feedforward=None, dropout=0.0, "
            "activation='gelu', norm_first=None, self_attention=None, symmetric=True, "
            "packing='auto', checkpoint=False, context='pooled', opening='learned', "
            "gate_bias='chrono', share_weights=True"
        ),
    ),
    "adapter": (
        lambda: make(FusionAdapter).extra_repr(),
        "modalities={'text': 3, 'audio': 5}, embed_dim=4",
    ),
    "adapted model": (
        lambda: adapted().extra_repr(),
        "layers=('0',)",
    ),
    "late concatenation": (
        lambda: make(ConcatFusion).extra_repr(),
        "modalities={'text': 3, 'audio': 5}, embed_dim=4, stage='late', num_heads=None",
    ),
    "early concatenation": (
        lambda: make(ConcatFusion, stage="early", num_heads=2).extra_repr(),
        "modalities={'text': 3, 'audio': 5}, embed_dim=4, stage='early', num_heads=2",
    ),
    "learnt weights": (
        lambda: make(WeightedSumFusion).extra_repr(),
        "modalities={'text': 3, 'audio': 5}, embed_dim=4, weights='sigmoid'",
    ),
    "fixed weights": (
        lambda: make(WeightedSumFusion, weights={"audio": 2, "text": 1}).extra_repr(),
        "modalities={'text': 3, 'audio': 5}, embed_dim=4, weights={'text': 1.0, 'audio': 2.0}",
    ),
    "cross-modal fusion": (
        lambda: make(CrossModalAttentionFusion).extra_repr(),
        "modalities={'text': 3, 'audio': 5}, embed_dim=4, num_heads=2",
    ),
    "MulT": (
        lambda: make(MulT, stack_dim=6).extra_repr(),
        (
            "modalities={'text': 3, 'audio': 5}, embed_dim=4, num_heads=2, num_layers=1, "
            "stack_dim=6, literal=False"
        ),
    ),
    "alignment": (
        lambda: make(ContrastiveAlignment).extra_repr(),
        "modalities={'text': 3, 'audio': 5}, embed_dim=4, temperature=0.07",
    ),
    "collapse": (
        lambda: warned(0.99, 0.98),
        (
            "At 'audio' the gate keeps 1.5% of the context on average (limit 5.0%): "
            "what earlier modalities contributed is overwritten. "
            "Try form='residual', gate_bias='chrono' or a smaller number, another order, "
            "or ModalityDropout, with which the fusion learns to use every modality."
        ),
    ),
    "closed gate": (
        lambda: warned(0.001, 0.002),
        (
            "The gate of 'audio' stays closed: it is 0.0015 on average (limit 0.01). "
            "Try standardised features, a larger gate_bias, "
            "or modulate_gradients if another modality learns faster. "
            "If leave_one_out shows no loss without the modality, remove it."
        ),
    ),
    "constant gate": (
        lambda: warned(0.3, 0.306),
        (
            "The gate of 'audio' does not depend on its input: "
            "its standard deviation over samples is 0.003 (limit 0.005). "
            "Try longer training, a larger learning rate or less weight decay for unit.linear, "
            "or a gate_bias nearer to 0. With form='residual' or form='paper' also try features of "
            "larger scale."
        ),
    ),
}

# Elsewhere values are not read.
OF_THE_CPU = {"range of targets"}
EVERY = [
    pytest.param(*said, id=name, marks=[pytest.mark.cpu_only] if name in OF_THE_CPU else [])
    for group in (SAID, SAID_OF_MODULES, SAID_OF_TOOLS, SAID_OF_EACH)
    for name, said in group.items()
]


@pytest.mark.parametrize(("call", "error", "message"), EVERY)
def test_message(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message
    assert caught.type is error


@pytest.mark.parametrize("name", SHOWN)
def test_text(name: str) -> None:
    tell, text = SHOWN[name]
    assert tell() == text


def test_axes_are_described() -> None:
    assert describe_shape({"batch": 4, "time": None, "dim": 8}) == "(batch=4, time, dim=8)"
    assert describe_shape({}) == "()"
