"""Every error that the library raises: who, which argument, what came, and nothing half-done."""

import copy
import itertools
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from grf_fusion import (
    FusionState,
    GatedFusionUnit,
    GatedRecurrentFusion,
    ModalityDropout,
    ShapeError,
    SymmetricCrossAttentionBlock,
    mask_from_lengths,
)
from grf_fusion.baselines import (
    ConcatFusion,
    ContrastiveAlignment,
    CrossModalAttentionFusion,
    MulT,
    WeightedSumFusion,
)
from grf_fusion.checkpoints import load_author_checkpoint
from refusal import NothingComputed, assert_refused

HERE = torch.get_default_device()

FUSION, BLOCK, UNIT = "GatedRecurrentFusion", "SymmetricCrossAttentionBlock", "GatedFusionUnit"
# Mutually different sizes; batch 2, three modalities, embed_dim 15, five heads.
WIDTHS = {"text": 7, "audio": 11, "depth": 13}
TIMES = {"text": 4, "audio": 6, "depth": 8}
EMBED, HEADS = 15, 5

Row = tuple[str, object, str]


def rows(*table: tuple[Any, ...]) -> Any:
    """A parametrised table whose first column is the name of the row."""
    return [pytest.param(*row[1:], id=row[0]) for row in table]


def make_fusion(**options: Any) -> GatedRecurrentFusion:
    return GatedRecurrentFusion(
        WIDTHS, **{"embed_dim": EMBED, "num_heads": HEADS, "form": "residual"} | options
    )


def make_concat(**options: Any) -> ConcatFusion:
    return ConcatFusion(WIDTHS, **{"embed_dim": EMBED} | options)


def make_pooled(**options: Any) -> ConcatFusion:
    return ConcatFusion(WIDTHS, **{"embed_dim": EMBED, "stage": "pooled"} | options)


def make_early(**options: Any) -> ConcatFusion:
    early = {"embed_dim": EMBED, "stage": "early", "num_heads": HEADS}
    return ConcatFusion(WIDTHS, **early | options)


def make_sum(**options: Any) -> WeightedSumFusion:
    return WeightedSumFusion(WIDTHS, **{"embed_dim": EMBED} | options)


def make_cross(**options: Any) -> CrossModalAttentionFusion:
    return CrossModalAttentionFusion(WIDTHS, **{"embed_dim": EMBED, "num_heads": HEADS} | options)


def make_mult(**options: Any) -> MulT:
    small = {"embed_dim": EMBED, "num_heads": HEADS, "num_layers": 1}
    return MulT(WIDTHS, **small | options)


def make_alignment(**options: Any) -> ContrastiveAlignment:
    return ContrastiveAlignment(WIDTHS, **{"embed_dim": EMBED} | options)


MAKERS = (
    make_fusion,
    make_concat,
    make_pooled,
    make_early,
    make_sum,
    make_cross,
    make_mult,
    make_alignment,
)
# Every public method that takes a batch.
CALLS = [(make, method) for make in MAKERS for method in ("forward", "presence")]
CALLS.append((make_alignment, "embed"))
each_call = pytest.mark.parametrize(("make", "method"), CALLS)
Make = Callable[..., nn.Module]


def make_block(**options: Any) -> SymmetricCrossAttentionBlock:
    return SymmetricCrossAttentionBlock(**{"embed_dim": EMBED, "num_heads": HEADS} | options)


def features(**replaced: object) -> dict[str, Any]:
    """One batch of everything, with some of it replaced."""
    given = {name: torch.ones(2, TIMES[name], width) for name, width in WIDTHS.items()}
    return given | replaced


def refused(call: Callable[[], object], who: str, argument: str, got: str, **more: Any) -> str:
    """A call that raises ShapeError."""
    return assert_refused(call, who=who, argument=argument, got=got, error=ShapeError, **more)


# What no sequence of shape (batch=2, time=4, dim=7) may be, and what the message says of it.
WRONG_SEQUENCES: tuple[Row, ...] = (
    ("scalar", torch.ones(()), "(time, dim), got ()"),
    ("one axis", torch.ones(7), "got (7,)"),
    ("no time axis", torch.ones(2, 7), "got (2, 7)"),
    ("four axes", torch.ones(2, 2, 2, 7), "got (2, 2, 2, 7)"),
    ("wide", torch.ones(2, 4, 9), "dim=7), got (2, 4, 9)"),
    ("narrow", torch.ones(2, 4, 5), "dim=7), got (2, 4, 5)"),
    ("transposed", torch.ones(2, 7, 4), "dim=7), got (2, 7, 4)"),
    ("no steps", torch.ones(2, 0, 7), "got time=0"),
    ("integers", torch.ones(2, 4, 7, dtype=torch.int64), "torch.float32, as the parameters, got"),
    ("bool", torch.ones(2, 4, 7, dtype=torch.bool), "got torch.bool"),
    ("float16", torch.ones(2, 4, 7, dtype=torch.float16), "got torch.float16"),
    ("bfloat16", torch.ones(2, 4, 7, dtype=torch.bfloat16), "got torch.bfloat16"),
    ("float64", torch.ones(2, 4, 7, dtype=torch.float64), "torch.float32, as the parameters, got"),
    ("complex", torch.ones(2, 4, 7, dtype=torch.complex64), "got torch.complex64"),
    ("other device", torch.ones(2, 4, 7, device="meta"), f"on device {HERE}"),
    ("sparse", torch.ones(2, 4, 7).to_sparse(), "got"),
    ("array", np.ones((2, 4, 7)), "got ndarray"),
    ("list", [[[1.0] * 7] * 4] * 2, "got list"),
    ("string", "text", "got str"),
    ("number", 3, "got int"),
)

# What no mask of shape (batch=2, time=4) may be.
WRONG_MASKS: tuple[Row, ...] = (
    ("scalar", torch.tensor(True), "got ()"),
    ("one axis", torch.ones(4, dtype=torch.bool), "got (4,)"),
    ("lengths", torch.tensor([4, 2]), "got (2,)"),
    ("three axes", torch.ones(2, 4, 1, dtype=torch.bool), "got (2, 4, 1)"),
    ("long", torch.ones(2, 5, dtype=torch.bool), "=2, time=4), got (2, 5)"),
    ("short", torch.ones(2, 3, dtype=torch.bool), "=2, time=4), got (2, 3)"),
    ("empty", torch.ones(2, 0, dtype=torch.bool), "=2, time=4), got (2, 0)"),
    ("batch", torch.ones(3, 4, dtype=torch.bool), "=2, time=4), got (3, 4)"),
    ("one sample", torch.ones(1, 4, dtype=torch.bool), "=2, time=4), got (1, 4)"),
    ("transposed", torch.ones(4, 2, dtype=torch.bool), "=2, time=4), got (4, 2)"),
    ("float32", torch.ones(2, 4), "got torch.float32. Float values may be weights"),
    ("float16", torch.ones(2, 4, dtype=torch.float16), "got torch.float16"),
    ("complex", torch.ones(2, 4, dtype=torch.complex64), "got torch.complex64"),
    ("two", torch.tensor([[0, 1, 2, 1]] * 2), "to hold only 0 and 1, got values from 0 to 2"),
    ("minus one", torch.tensor([[0, -1, 1, 1]] * 2), "got values from -1 to 1"),
    ("255", torch.full((2, 4), 255, dtype=torch.uint8), "got values from 255 to 255"),
    ("other device", torch.ones(2, 4, dtype=torch.bool, device="meta"), f"device {HERE}, got meta"),
    ("sparse", torch.ones(2, 4, dtype=torch.bool).to_sparse(), "got"),
    ("array", np.ones((2, 4), dtype=bool), "got ndarray"),
    ("list", [[True] * 4] * 2, "got list"),
)

# What no `present` of shape (batch=2, modalities=3) may be.
WRONG_PRESENT: tuple[Row, ...] = (
    ("one axis", torch.ones(2, dtype=torch.bool), "got (2,)"),
    ("few columns", torch.ones(2, 2, dtype=torch.bool), "=2, modalities=3), got (2, 2)"),
    ("many columns", torch.ones(2, 4, dtype=torch.bool), "=2, modalities=3), got (2, 4)"),
    ("batch", torch.ones(5, 3, dtype=torch.bool), "=2, modalities=3), got (5, 3)"),
    ("transposed", torch.ones(3, 2, dtype=torch.bool), "=2, modalities=3), got (3, 2)"),
    ("float", torch.ones(2, 3), "got torch.float32. Float values may be"),
    ("two", torch.full((2, 3), 2), "to hold only 0 and 1, got values from 2 to 2"),
    ("other device", torch.ones(2, 3, dtype=torch.bool, device="meta"), f"device {HERE}, got meta"),
    ("names", ["text"], "got list"),
    ("mapping", {"text": True}, "got dict"),
)


class TestFeatures:
    """One modality's features, in `forward`, `presence` and `step`."""

    @pytest.mark.parametrize(("value", "got"), rows(*WRONG_SEQUENCES))
    @each_call
    def test_wrong_in_a_batch(self, make: Make, method: str, value: object, got: str):
        fusion, given = make(), features(text=value)
        got = got.replace("(time, dim)", "(batch, time, dim=7)")
        who, call = type(fusion).__name__, getattr(fusion, method)
        refused(lambda: call(given), who, "features['text']", got, module=fusion)

    @pytest.mark.parametrize(("value", "got"), rows(*WRONG_SEQUENCES))
    @pytest.mark.parametrize("started", [False, True])
    def test_wrong_in_a_step(self, started: bool, value: object, got: str):
        fusion = make_fusion()
        state = fusion.step(None, "audio", features()["audio"]) if started else None
        axes = "(batch=2, time, dim=7)" if started else "(batch, time, dim=7)"
        got = got.replace("(time, dim)", axes)
        refused(lambda: fusion.step(state, "text", value), FUSION, "features", got, module=fusion)

    def test_two_axes_get_the_hint_to_unsqueeze(self):
        fusion = make_fusion()
        with pytest.raises(ShapeError, match=r"got \(2, 11\)\. .*`x\.unsqueeze\(1\)`\.$"):
            fusion(features(audio=torch.ones(2, 11)))
        with pytest.raises(ShapeError, match=r"got \(2, 7\)\. .*`x\.unsqueeze\(1\)`\.$"):
            fusion.step(None, "text", torch.ones(2, 7))

    def test_four_axes_get_the_hint_to_flatten(self):
        with pytest.raises(ShapeError, match=r"got \(2, 3, 3, 11\)\. .*`x\.flatten\(1, -2\)`\.$"):
            make_fusion()(features(audio=torch.ones(2, 3, 3, 11)))

    @each_call
    def test_batches_that_differ(self, make: Make, method: str):
        fusion, given = make(), features(depth=torch.ones(3, 8, 13))
        got = "of shape (batch=2, time, dim=13), got (3, 8, 13)"
        who, call = type(fusion).__name__, getattr(fusion, method)
        refused(lambda: call(given), who, "features['depth']", got, module=fusion)

    def test_batch_that_differs_from_the_state(self):
        fusion = make_fusion()
        state, audio = fusion.step(None, "text", features()["text"]), torch.ones(3, 6, 11)
        got = "of shape (batch=2, time, dim=11), got (3, 6, 11)"
        refused(lambda: fusion.step(state, "audio", audio), FUSION, "features", got, module=fusion)

    def test_autocast_does_not_accept_float64(self):
        fusion, given = make_fusion(), features(text=torch.ones(2, 4, 7, dtype=torch.float64))
        with torch.autocast(torch.get_default_device().type, dtype=torch.bfloat16):
            refused(lambda: fusion(given), FUSION, "features['text']", "got torch.float64")

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_autocast_accepts_half_precision(self, dtype: torch.dtype):
        fusion, given = make_fusion(), features(text=torch.ones(2, 4, 7, dtype=dtype))
        with torch.autocast(torch.get_default_device().type, dtype=torch.bfloat16):
            assert fusion(given).isfinite().all()

    def test_dtype_on_a_device_without_autocast(self):
        fusion = make_fusion(device="meta")
        given = {"text": torch.ones(2, 4, 7, dtype=torch.float16, device="meta")}
        refused(lambda: fusion(given), FUSION, "features['text']", "got torch.float16")

    def test_features_on_the_cpu_of_a_module_elsewhere(self):
        fusion, given = make_fusion(device="meta"), features()
        refused(lambda: fusion(given), FUSION, "features['text']", "on device meta")

    @pytest.mark.parametrize(
        ("given", "got"),
        rows(
            ("unknown", {"txt": torch.ones(2, 4, 7)}, "unexpected ['txt'], missing ['text', "),
            ("one more", features(smell=torch.ones(2, 4, 7)), "unexpected ['smell'], missing []"),
            ("number", {3: torch.ones(2, 4, 7)}, "unexpected [3], missing ['text', 'audio', "),
            ("None", {None: torch.ones(2, 4, 7)}, "unexpected [None], missing ['text', 'audio', "),
            ("empty", {}, "at least one of ['text', 'audio', 'depth'], got none"),
            ("all None", {"text": None, "depth": None}, "at least one of ['text', 'audio', 'depth"),
            ("tensor", torch.ones(2, 4, 7), "to map names to tensors, got Tensor"),
            ("list", [torch.ones(2, 4, 7)], "to map names to tensors, got list"),
            ("pairs", tuple(features().items()), "to map names to tensors, got tuple"),
            ("nothing", None, "to map names to tensors, got NoneType. Write features={'text': "),
        ),
    )
    @each_call
    def test_wrong_mapping(self, make: Make, method: str, given: object, got: str):
        fusion = make()
        who, call = type(fusion).__name__, getattr(fusion, method)
        refused(lambda: call(given), who, "features", got, module=fusion)

    def test_a_chain_does_not_start_with_nothing(self):
        fusion = make_fusion()
        refused(lambda: fusion.step(None, "text", None), FUSION, "features", "got None")


class TestMasks:
    """Masks of a batch, of a step, of a block, and `present`."""

    @pytest.mark.parametrize(("mask", "got"), rows(*WRONG_MASKS))
    @each_call
    def test_wrong_in_a_batch(self, make: Make, method: str, mask: object, got: str):
        fusion, given = make(), features()
        masks = {"audio": None, "text": mask}
        who, call = type(fusion).__name__, getattr(fusion, method)
        refused(lambda: call(given, masks=masks), who, "masks['text']", got, module=fusion)

    @pytest.mark.parametrize(("mask", "got"), rows(*WRONG_MASKS))
    def test_wrong_in_a_step(self, mask: object, got: str):
        fusion, text = make_fusion(), features()["text"]
        refused(
            lambda: fusion.step(None, "text", text, mask=mask), FUSION, "mask", got, module=fusion
        )

    @pytest.mark.parametrize(("mask", "got"), rows(*WRONG_MASKS))
    @pytest.mark.parametrize("argument", ["context_mask", "modality_mask"])
    def test_wrong_in_a_block(self, argument: str, mask: object, got: str):
        block, sequence = make_block(), torch.ones(2, 4, EMBED)
        refused(
            lambda: block(sequence, sequence, **{argument: mask}),
            BLOCK,
            argument,
            got,
            module=block,
        )

    @pytest.mark.parametrize(
        ("masks", "argument", "got"),
        rows(
            ("unknown", {"txt": None}, "masks", "unexpected ['txt'], missing ['text', 'audio', "),
            ("number", {3: None}, "masks", "unexpected [3], missing ['text', 'audio', 'depth']"),
            ("tensor", torch.ones(2, 4), "masks", "to map names to tensors, got Tensor"),
            ("list", [None], "masks", "to map names to tensors, got list. Write masks={'text': "),
            ("left out", {"depth": torch.ones(2, 8).bool()}, "masks['depth']", "got a mask"),
            ("None", {"audio": torch.ones(2, 6).bool()}, "masks['audio']", "`features['audio']`"),
        ),
    )
    @each_call
    def test_wrong_mapping(self, make: Make, method: str, masks: object, argument: str, got: str):
        fusion, given = make(), {"text": torch.ones(2, 4, 7), "audio": None}
        who, call = type(fusion).__name__, getattr(fusion, method)
        refused(lambda: call(given, masks=masks), who, argument, got, module=fusion)

    def test_mask_without_features_in_a_step(self):
        fusion, mask = make_fusion(), torch.ones(2, 6, dtype=torch.bool)
        state = fusion.step(None, "text", features()["text"])
        for start in (None, state):
            refused(
                lambda start=start: fusion.step(start, "audio", None, mask=mask),
                FUSION,
                "mask",
                "got a mask. Leave the mask out too, or give `features`",
                module=fusion,
            )

    @pytest.mark.parametrize(("present", "got"), rows(*WRONG_PRESENT))
    @each_call
    def test_wrong_presence(self, make: Make, method: str, present: object, got: str):
        fusion, given = make(), features()
        who, call = type(fusion).__name__, getattr(fusion, method)
        refused(lambda: call(given, present=present), who, "present", got, module=fusion)

    @pytest.mark.parametrize(
        ("present", "got"),
        rows(
            ("columns", torch.ones(2, 3, dtype=torch.bool), "of shape (batch=2), got (2, 3)"),
            ("batch", torch.ones(5, dtype=torch.bool), "of shape (batch=2), got (5,)"),
            ("scalar", torch.tensor(True), "of shape (batch=2), got ()"),
            ("float", torch.ones(2), "got torch.float32"),
            ("two", torch.tensor([0, 2]), "got values from 0 to 2"),
            ("other device", torch.ones(2, dtype=torch.bool, device="meta"), f"{HERE}, got meta"),
            ("bool", True, "got bool"),
        ),
    )
    def test_wrong_presence_in_a_step(self, present: object, got: str):
        fusion, text = make_fusion(), features()["text"]
        state = fusion.step(None, "audio", features()["audio"])
        for start in (None, state):
            refused(
                lambda start=start: fusion.step(start, "text", text, present=present),
                FUSION,
                "present",
                got,
                module=fusion,
            )

    @pytest.mark.parametrize(
        ("lengths", "max_length", "argument", "got"),
        rows(
            ("list", [1, 2], 3, "lengths", "to be a torch.Tensor, got list"),
            ("two axes", torch.ones(2, 1).long(), 3, "lengths", "(batch), got (2, 1)"),
            ("float", torch.ones(2), 3, "lengths", "to hold integers, got torch.float32"),
            ("bool", torch.ones(2).bool(), 3, "lengths", "to hold integers, got torch.bool"),
            ("long", torch.tensor([1, 4]), 3, "lengths", "max_length=3, got 1 to 4"),
            ("negative", torch.tensor([-1, 2]), 3, "lengths", "max_length=3, got -1 to 2"),
            ("zero", torch.tensor([0]), 0, "max_length", "at least 1, got 0"),
            ("below zero", torch.tensor([0]), -5, "max_length", "at least 1, got -5"),
            ("fraction", torch.tensor([1]), 3.0, "max_length", "to be an integer, got float"),
            ("True", torch.tensor([1]), True, "max_length", "to be an integer, got bool"),
            ("string", torch.tensor([1]), "3", "max_length", "to be an integer, got str"),
        ),
    )
    def test_wrong_lengths(self, lengths: Any, max_length: Any, argument: str, got: str):
        refused(lambda: mask_from_lengths(lengths, max_length), "mask_from_lengths", argument, got)

    @pytest.mark.parametrize(
        ("present", "got"),
        rows(
            ("list", [[True]], "to be a torch.Tensor, got list"),
            ("one axis", torch.ones(3).bool(), "of shape (batch, modalities), got (3,)"),
            ("three axes", torch.ones(2, 3, 1).bool(), "(batch, modalities), got (2, 3, 1)"),
            ("float", torch.ones(2, 3), "got torch.float32"),
            ("two", torch.full((2, 3), 2), "got values from 2 to 2"),
            ("no columns", torch.ones(2, 0).bool(), "(2, 0)"),
        ),
    )
    @pytest.mark.parametrize("training", [True, False])
    def test_wrong_presence_to_drop_from(self, training: bool, present: Any, got: str):
        drop = ModalityDropout(0.5).train(training)
        refused(lambda: drop(present), "ModalityDropout", "present", got)


class TestOrder:
    """The order of fusion and the names in it."""

    @pytest.mark.parametrize(
        ("order", "got"),
        rows(
            ("string", "text", "got 'text'. Write order=('text', 'audio', 'depth')"),
            ("letters", "tad", "to be a sequence of names, got 'tad'"),
            ("set", {"text"}, "to be a sequence of names, got {'text'}"),
            ("mapping", WIDTHS, "to be a sequence of names, got {"),
            ("number", 3, "to be a sequence of names, got 3"),
            ("short", ("audio", "text"), "missing ['depth']"),
            ("empty", (), "missing ['text', 'audio', 'depth']"),
            ("unknown", ["text", "audio", "smell"], "unexpected ['smell'], missing ['depth']"),
            ("one more", [*WIDTHS, "smell"], "unexpected ['smell'], missing []"),
            ("numbers", [0, 1, 2], "unexpected [0, 1, 2], missing ['text', 'audio', 'depth']"),
            ("instead", ["text", "text", "audio"], "missing ['depth']"),
            ("twice", [*WIDTHS, "audio"], "('text', 'audio', 'depth', 'audio')"),
        ),
    )
    def test_wrong(self, order: Any, got: str):
        fusion, given = make_fusion(), features()
        refused(lambda: fusion(given, order=order), FUSION, "order", got, module=fusion)

    @pytest.mark.parametrize("order", [("audio", "text", "depth"), ("depth", "audio", "text")])
    def test_unshared_weights_need_the_first_declared_first(self, order: tuple[str, ...]):
        fusion, given = make_fusion(share_weights=False, opening="first"), features()
        call = lambda: fusion(given, order=order)  # noqa: E731
        message = refused(call, FUSION, "order", f"{order}", module=fusion)
        assert "'text'" in message
        assert "share_weights=False and opening='first'" in message

    @pytest.mark.parametrize("given", [True, False])
    def test_unshared_weights_need_the_first_declared_first_in_a_stream(self, given: bool):
        fusion = make_fusion(share_weights=False, opening="first")
        state = fusion.step(None, "audio", features()["audio"])
        text = features()["text"] if given else None
        call = lambda: fusion.step(state, "text", text)  # noqa: E731
        message = refused(call, FUSION, "name", "got 'text'", module=fusion)
        assert "share_weights=False and opening='first'" in message

    @pytest.mark.parametrize(
        ("name", "got"),
        rows(
            ("unknown", "smell", "got 'smell'"),
            ("empty", "", "got ''"),
            ("None", None, "got None"),
            ("number", 0, "got 0"),
            ("list", ["text"], "got ['text']"),
            ("array", np.array(["text", "audio"]), "got array"),
        ),
    )
    @pytest.mark.parametrize("started", [False, True])
    def test_wrong_name_in_a_step(self, started: bool, name: Any, got: str):
        fusion, given = make_fusion(), features()
        state = fusion.step(None, "audio", given["audio"]) if started else None
        call = lambda: fusion.step(state, name, given["text"])  # noqa: E731
        message = refused(call, FUSION, "name", got, module=fusion)
        assert "one of ['text', 'audio', 'depth']" in message


def make_state(fusion: GatedRecurrentFusion) -> FusionState:
    return fusion.step(None, "text", features()["text"])


TRUE = torch.ones(2, 1, dtype=torch.bool)
WRONG_STATES = (
    ("type tuple", tuple, "state", "to be a FusionState", "got tuple"),
    ("type tensor", lambda state: state.context, "state", "to be a FusionState", "got Tensor"),
    ("type dict", lambda state: state._asdict(), "state", "to be a FusionState", "got dict"),
    ("context None", {"context": None}, "state.context", "to be a torch.Tensor", "got NoneType"),
    ("context rank", {"context": torch.ones(2, 1, 15)}, "state.context", "dim=15", "(2, 1, 15)"),
    ("context width", {"context": torch.ones(2, 9)}, "state.context", "dim=15", "got (2, 9)"),
    (
        "context dtype",
        {"context": torch.ones(2, 15).double()},
        "state.context",
        "torch.float32",
        "got torch.float64",
    ),
    (
        "context device",
        {"context": torch.ones(2, 15, device="meta")},
        "state.context",
        f"on device {HERE}",
        "got meta",
    ),
    ("mask None", {"mask": None}, "state.mask", "to be a torch.Tensor", "got NoneType"),
    ("mask batch", {"mask": TRUE[:1]}, "state.mask", "(batch=2, time=1)", "got (1, 1)"),
    ("mask time", {"mask": TRUE.expand(2, 4)}, "state.mask", "(batch=2, time=1)", "got (2, 4)"),
    ("mask float", {"mask": TRUE.float()}, "state.mask", "to be bool", "got torch.float32"),
    ("mask two", {"mask": TRUE.long() * 2}, "state.mask", "only 0 and 1", "from 2 to 2"),
    ("mask device", {"mask": TRUE.to("meta")}, "state.mask", f"on device {HERE}", "got meta"),
    ("present batch", {"present": TRUE.expand(2, 3)[:1]}, "state.present", "=2, mod", "(1, 3)"),
    ("present few", {"present": TRUE.expand(2, 2)}, "state.present", "ies=3", "got (2, 2)"),
    ("present float", {"present": torch.ones(2, 3)}, "state.present", "bool", "got torch.float32"),
    ("present list", {"present": [True]}, "state.present", "torch.Tensor", "got list"),
)


class TestState:
    """A state that was kept."""

    @pytest.mark.parametrize(("wrong", "argument", "wanted", "got"), rows(*WRONG_STATES))
    @pytest.mark.parametrize("method", ["step", "readout"])
    def test_wrong(self, method: str, wrong: Any, argument: str, wanted: str, got: str):
        fusion = make_fusion()
        good = make_state(fusion)
        state = good._replace(**wrong) if isinstance(wrong, dict) else wrong(good)
        audio = features()["audio"]
        calls = {
            "step": lambda: fusion.step(state, "audio", audio),
            "readout": lambda: fusion.readout(state),
        }
        message = refused(calls[method], FUSION, argument, got, module=fusion)
        assert wanted in message

    def test_readout_of_nothing(self):
        fusion = make_fusion()
        message = refused(lambda: fusion.readout(None), FUSION, "state", "got None", module=fusion)
        assert "or None" not in message

    @pytest.mark.parametrize("context", ["pooled", "first_sequence", "sequence"])
    def test_from_another_context_mode(self, context: str):
        vector, sequence = make_fusion(), make_fusion(context="sequence")
        wrong = make_state(sequence if context == "pooled" else vector)
        fusion = make_fusion(context=context)
        if context == "first_sequence":
            # A vector is what it has after its second step, and a sequence what it opens with.
            assert fusion.readout(wrong).shape == (2, EMBED)
            assert fusion.readout(make_state(sequence)).shape == (2, EMBED)
            wrong = wrong._replace(context=torch.ones(2, 1, 4, EMBED))
            got = "of shape (batch, time, dim=15), got (2, 1, 4, 15)"
        elif context == "pooled":
            got = "of shape (batch, dim=15), got (2, 4, 15)"
        else:
            got = "of shape (batch, time, dim=15), got (2, 15)"
        audio = features()["audio"]
        refused(lambda: fusion.readout(wrong), FUSION, "state.context", got, module=fusion)
        refused(
            lambda: fusion.step(wrong, "audio", audio), FUSION, "state.context", got, module=fusion
        )

    def test_sequence_without_steps(self):
        fusion = make_fusion(context="sequence")
        state = make_state(fusion)
        state = FusionState(state.context[:, :0], state.mask[:, :0], state.present)
        refused(lambda: fusion.readout(state), FUSION, "state.context", "got time=0")

    def test_from_before_a_modality_was_added(self):
        fusion = make_fusion()
        state, audio = make_state(fusion), features()["audio"]
        fusion.add_modality("radar", 3)
        got = "of shape (batch=2, modalities=4), got (2, 3)"
        refused(
            lambda: fusion.step(state, "audio", audio), FUSION, "state.present", got, module=fusion
        )
        message = refused(lambda: fusion.readout(state), FUSION, "state.present", got)
        assert "add_modality" in message


class TestBlockCalls:
    """Wrong sequences for the symmetric cross-attention block."""

    @pytest.mark.parametrize(("value", "got"), rows(*WRONG_SEQUENCES))
    @pytest.mark.parametrize("argument", ["context", "modality"])
    def test_wrong_sequence(self, argument: str, value: object, got: str):
        block = make_block(embed_dim=7, num_heads=1)
        batch = "batch" if argument == "context" else "batch=2"
        got = got.replace("(time, dim)", f"({batch}, time, dim=7)")
        given = {name: torch.ones(2, 4, 7) for name in ("context", "modality")} | {argument: value}
        refused(lambda: block(**given), BLOCK, argument, got, module=block)

    def test_batches_that_differ(self):
        block, context, modality = make_block(), torch.ones(2, 4, 15), torch.ones(3, 6, 15)
        got = "of shape (batch=2, time, dim=15), got (3, 6, 15)"
        refused(lambda: block(context, modality), BLOCK, "modality", got, module=block)

    def test_pooled_context_is_one_step(self):
        block, context = make_block(pooled_context=True), torch.ones(2, 4, 15)
        got = "of shape (batch, time=1, dim=15), got (2, 4, 15). With pooled_context=True"
        refused(lambda: block(context, context), BLOCK, "context", got, module=block)


class TestUnitCalls:
    """Wrong states and updates for the gated fusion unit."""

    @pytest.mark.parametrize(
        ("state", "update", "argument", "got"),
        rows(
            ("state list", [1.0] * 7, torch.ones(7), "state", "got list"),
            ("update None", torch.ones(7), None, "update", "got NoneType"),
            ("state scalar", torch.ones(()), torch.ones(7), "state", "(..., dim=7), got ()"),
            ("state wide", torch.ones(2, 9), torch.ones(2, 9), "state", "(..., dim=7), got (2, 9)"),
            ("update wide", torch.ones(2, 7), torch.ones(2, 9), "update", "(batch=2, dim=7), got"),
            ("update batch", torch.ones(2, 7), torch.ones(3, 7), "update", "got (3, 7)"),
            ("update one", torch.ones(2, 7), torch.ones(1, 7), "update", "got (1, 7)"),
            (
                "update rank",
                torch.ones(2, 4, 7),
                torch.ones(2, 7),
                "update",
                "=4, dim=7), got (2, 7)",
            ),
            ("update scalar", torch.ones(7), torch.ones(()), "update", "of shape (dim=7), got ()"),
            ("five axes", torch.ones(2, 3, 4, 5, 7), torch.ones(7), "update", "got (7,)"),
            ("state float64", torch.ones(7).double(), torch.ones(7), "state", "got torch.float64"),
            ("state integers", torch.ones(7).long(), torch.ones(7), "state", "got torch.int64"),
            ("update half", torch.ones(7), torch.ones(7).half(), "update", "got torch.float16"),
            ("state device", torch.ones(7, device="meta"), torch.ones(7), "state", "got meta"),
            ("update device", torch.ones(7), torch.ones(7, device="meta"), "update", "got meta"),
            ("update sparse", torch.ones(2, 7), torch.ones(2, 7).to_sparse(), "update", "got"),
        ),
    )
    def test_wrong(self, state: Any, update: Any, argument: str, got: str):
        unit = GatedFusionUnit(7)
        refused(lambda: unit(state, update), UNIT, argument, got, module=unit)

    def test_every_axis_is_named(self):
        unit = GatedFusionUnit(7)
        with pytest.raises(ShapeError, match=r"`update` of shape \(.*=2, .*=3, .*=4, dim=7\), got"):
            unit(torch.ones(2, 3, 4, 7), torch.ones(2, 3, 5, 7))

    def test_empty_axes_are_fine(self):
        unit = GatedFusionUnit(7)
        for shape in ((0, 7), (2, 0, 7), (2, 0, 3, 7)):
            assert unit(torch.ones(shape), torch.ones(shape)).shape == shape


class Wrong(nn.Module):
    """A user's block or unit that returns what it is told to."""

    def __init__(self, answer: Callable[..., object]):
        super().__init__()
        self.answer = answer

    def forward(self, first: Tensor, second: Tensor, **_options: object) -> object:
        """Return the answer for the two arguments."""
        return self.answer(first, second)


class TestReplacedParts:
    """A user's own block or unit that breaks the contract."""

    @pytest.mark.parametrize(
        ("answer", "argument", "got"),
        rows(
            ("context rank", lambda c, m: (c[:, 0], m), "block()[0]", "got (2, 15)"),
            ("context width", lambda c, m: (c[..., 1:], m), "block()[0]", "got (2, 1, 14)"),
            ("context batch", lambda c, m: (c[:1], m), "block()[0]", "got (1, 1, 15)"),
            ("context type", lambda _, m: (None, m), "block()[0]", "got NoneType"),
            ("context dtype", lambda c, m: (c.double(), m), "block()[0]", "got torch.float64"),
            ("modality time", lambda c, m: (c, m[:, 1:]), "block()[1]", "got (2, 5, 15)"),
            ("modality type", lambda c, _: (c, 3), "block()[1]", "got int"),
            ("one tensor", lambda c, _: c, "block()", "got Tensor"),
            ("three", lambda c, m: (c, m, m), "block()", "got"),
            ("nothing", lambda *_: None, "block()", "got NoneType"),
        ),
    )
    def test_block(self, answer: Any, argument: str, got: str):
        fusion, given = make_fusion(block=lambda: Wrong(answer), opening="first"), features()
        with pytest.raises(ShapeError) as caught:
            fusion(given)
        assert str(caught.value).startswith(f"{FUSION}: expected `{argument}`")
        assert got in str(caught.value)

    @pytest.mark.parametrize(
        ("answer", "argument", "got"),
        rows(
            ("context rank", lambda s, _: (s[0], s), "unit()[0]", "got (15,)"),
            ("context width", lambda s, _: (s[:, 1:], s), "unit()[0]", "got (2, 14)"),
            ("context dtype", lambda s, _: (s.double(), s), "unit()[0]", "got torch.float64"),
            ("gate batch", lambda s, _: (s, s[:1]), "unit()[1]", "got (1, 15)"),
            ("gate type", lambda s, _: (s, None), "unit()[1]", "got NoneType"),
            ("no gate", lambda s, _: s, "unit()", "got Tensor"),
            ("nothing", lambda *_: None, "unit()", "got NoneType"),
        ),
    )
    @pytest.mark.parametrize("context", ["pooled", "sequence"])
    def test_unit(self, context: str, answer: Any, argument: str, got: str):
        fusion, given = make_fusion(context=context, unit=lambda: Wrong(answer)), features()
        with pytest.raises(ShapeError) as caught:
            fusion(given)
        assert str(caught.value).startswith(f"{FUSION}: expected `{argument}`")
        if context == "pooled":
            assert got in str(caught.value)

    def test_no_json_holds_a_factory(self):
        parts = {
            "block": lambda: make_block(pooled_context=True),
            "unit": lambda: GatedFusionUnit(EMBED),
        }
        for given in ({"block": parts["block"]}, {"unit": parts["unit"]}, parts):
            fusion = make_fusion(**given)
            with pytest.raises(ValueError, match=r"expected no `block` or `unit` factory.* got "):
                fusion.config()


SIZES: tuple[tuple[str, object], ...] = (
    ("0", 0),
    ("-3", -3),
    ("2.0", 2.0),
    ("True", True),
    ("'8'", "8"),
    ("None", None),
    ("[8]", [8]),
)
PROBABILITIES = (("1.0", 1.0), ("-0.1", -0.1), ("1.5", 1.5), ("nan", float("nan")))
PROBABILITIES += (("True", True), ("'0'", "0"), ("None", None))


Options = dict[str, Any]
ConstructorRow = tuple[str, Callable[..., Any], Options, tuple[str, str], str]


def make_unit(**options: Any) -> GatedFusionUnit:
    return GatedFusionUnit(**{"embed_dim": 7} | options)


def make_one(size: object) -> GatedRecurrentFusion:
    return GatedRecurrentFusion({"text": size}, embed_dim=EMBED, num_heads=HEADS)


def constructor_rows() -> Iterator[ConstructorRow]:
    """Name, what is called, with what, who refuses which argument, what it got."""

    def row(
        make: Callable[..., Any], who: str, argument: str, got: str, value: object
    ) -> ConstructorRow:
        keyword = "size" if make is make_one else argument
        name = f"{make.__name__} {argument}={got}"
        return name, make, {keyword: value}, (who, argument), got

    for got, size in SIZES:
        yield row(make_unit, UNIT, "embed_dim", got, size)
        yield row(make_block, BLOCK, "embed_dim", got, size)
        yield row(make_fusion, FUSION, "embed_dim", got, size)
        yield row(make_one, FUSION, "modalities['text']", got, size)
        sizes = ("num_heads", "num_layers", *(() if size is None else ("dim_feedforward",)))
        for make, argument in itertools.product((make_block, make_fusion), sizes):
            # Without a number of heads the fusion says that the form needs one.
            if (make, argument, size) != (make_fusion, "num_heads", None):
                yield row(make, BLOCK, argument, got, size)
    for got, chance in PROBABILITIES:
        yield row(make_unit, UNIT, "dropout", got, chance)
        yield row(make_block, BLOCK, "dropout", got, chance)
        yield row(make_fusion, FUSION, "dropout", got, chance)
        yield row(ModalityDropout, "ModalityDropout", "p", got, chance)
    for got, bias in (("inf", float("inf")), ("nan", float("nan")), ("None", None), ("[0]", [0])):
        yield row(make_unit, UNIT, "gate_bias", got, bias)
        if bias is not None:  # left to the form
            yield row(make_fusion, UNIT, "gate_bias", got, bias)
    yield row(make_unit, UNIT, "gate_bias", "'chrono'", "chrono")
    yield row(make_fusion, FUSION, "gate_bias", "'Chrono'", "Chrono")
    choices = (("'other'", "other"), ("None", None), ("2", 2), ("['gelu']", ["gelu"]))
    for got, choice in choices:
        for make, argument in itertools.product(
            (make_block, make_fusion), ("activation", "packing")
        ):
            yield row(make, BLOCK, argument, got, choice)
        yield row(make_block, BLOCK, "self_attention", got, choice)
        yield row(make_fusion, FUSION, "context", got, choice)
        if choice is not None:  # left to the form, and that to the context
            yield row(make_fusion, FUSION, "form", got, choice)
            yield row(make_fusion, BLOCK, "self_attention", got, choice)
            yield row(make_fusion, FUSION, "opening", got, choice)
    for make, heads in itertools.product((make_block, make_fusion), (4, 30)):
        yield row(make, BLOCK, "num_heads", f"embed_dim=15 and num_heads={heads}", heads)
    yield from baseline_rows(row)


def baseline_rows(row: Callable[..., ConstructorRow]) -> Iterator[ConstructorRow]:
    """The same of the baselines."""
    concat, total, cross, mult, alignment = (
        cls.__name__
        for cls in (
            ConcatFusion,
            WeightedSumFusion,
            CrossModalAttentionFusion,
            MulT,
            ContrastiveAlignment,
        )
    )
    with_heads = ((make_early, concat), (make_cross, cross), (make_mult, mult))
    for got, size in SIZES:
        for make, who in (
            *with_heads,
            (make_concat, concat),
            (make_pooled, concat),
            (make_sum, total),
            (make_alignment, alignment),
        ):
            yield row(make, who, "embed_dim", got, size)
        for make, who in with_heads:
            yield row(make, who, "num_heads", got, size)
        yield row(make_mult, mult, "num_layers", got, size)
        if size is not None:
            yield row(make_early, concat, "num_layers", got, size)
            yield row(make_mult, mult, "stack_dim", got, size)
            for make in (make_concat, make_pooled, make_early):
                yield row(make, concat, "dim_feedforward", got, size)
    for got, chance in PROBABILITIES:
        for make, who in (*with_heads, (make_concat, concat), (make_pooled, concat)):
            yield row(make, who, "dropout", got, chance)
    for make, who in with_heads:
        yield row(make, who, "num_heads", "embed_dim=15 and num_heads=4", 4)
    for got, choice in (("'other'", "other"), ("None", None), ("2", 2)):
        yield row(make_concat, concat, "stage", got, choice)
        yield row(make_sum, total, "weights", got, choice)
        yield row(make_mult, mult, "literal", got, choice)
    numbers = (("-1", -1), ("inf", float("inf")), ("nan", float("nan")), ("True", True))
    for got, number in (*numbers, ("None", None), ("'1'", "1")):
        make = make_weight
        name = f"weight {got}"
        yield name, make, {"weight": number}, (total, "weights['depth']"), got
        yield row(make_alignment, alignment, "temperature", got, number)
    yield row(make_alignment, alignment, "temperature", "0.01", 0.01)
    zeros = dict.fromkeys(WIDTHS, 0)
    yield row(make_sum, total, "weights", "only 0", zeros)


def make_weight(weight: object) -> WeightedSumFusion:
    return make_sum(weights={"text": 1, "audio": 2, "depth": weight})


BAD_NAMES = ("", "a.b", ".", "keys", "pop", "type", "training", "forward", "_modules", 3, None, ())


def names_of_new_modules(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the class of every module that is made from now on."""
    made: list[str] = []
    original = nn.Module.__init__

    def record(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        made.append(type(self).__name__)
        original(self, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "__init__", record)
    return made


BASELINES = (
    ConcatFusion,
    WeightedSumFusion,
    CrossModalAttentionFusion,
    MulT,
    ContrastiveAlignment,
)
each_class = pytest.mark.parametrize("make", [GatedRecurrentFusion, *BASELINES])


def heads_of(make: Make) -> dict[str, int]:
    """The sizes that a class cannot do without."""
    headless = (ConcatFusion, WeightedSumFusion, ContrastiveAlignment)
    return {"embed_dim": EMBED} | ({} if make in headless else {"num_heads": HEADS})


class TestConstructors:
    """Wrong arguments of constructors: ValueError, before any sub-module is made."""

    @pytest.mark.parametrize(("make", "options", "refusal", "got"), rows(*constructor_rows()))
    def test_wrong_option(
        self,
        make: Callable[..., Any],
        options: dict[str, Any],
        refusal: tuple[str, str],
        got: str,
        monkeypatch: pytest.MonkeyPatch,
    ):
        made = names_of_new_modules(monkeypatch)
        who, argument = refusal
        got = f"got {got}"
        assert_refused(
            lambda: make(**options), who=who, argument=argument, got=got, error=ValueError
        )
        # An empty ModuleDict tells which names are taken.
        assert set(made) <= {"ModuleDict"}

    @pytest.mark.parametrize(
        ("options", "got"),
        rows(
            ("norm", {}, "got norm=True and dropout=0.0"),
            ("dropout", {"norm": False, "dropout": 0.5}, "got norm=False and dropout=0.5"),
        ),
    )
    def test_identity_needs_an_undisturbed_state(self, options: dict[str, Any], got: str):
        with pytest.raises(ValueError, match=r"`identity_init=True`") as caught, NothingComputed():
            GatedFusionUnit(7, identity_init=True, **options)
        assert got in str(caught.value)

    @pytest.mark.parametrize("context", ["first_sequence", "sequence"])
    def test_learned_opening_is_a_vector(self, context: str):
        match = rf"`opening='first'` with context='{context}', got 'learned'\. .*context='pooled'"
        with pytest.raises(ValueError, match=match), NothingComputed():
            make_fusion(opening="learned", context=context)

    @pytest.mark.parametrize(
        ("modalities", "got"),
        rows(
            ("empty", {}, "at least one modality, got none"),
            ("no pairs", [], "at least one modality, got none"),
            ("twice", [("text", 7), ("text", 5)], "once, got"),
            (
                "triples",
                [("text", 7, 5)],
                "to map names to feature sizes, as a mapping or as pairs, got list",
            ),
            ("unhashable name", [(["text"], 7)], "got ['text']"),
            ("names", ("text", "audio"), "as pairs, got tuple"),
            ("string", "text", "as pairs, got str"),
            ("nothing", None, "as pairs, got NoneType"),
        ),
    )
    @each_class
    def test_wrong_modalities(
        self, make: Make, modalities: Any, got: str, monkeypatch: pytest.MonkeyPatch
    ):
        made = names_of_new_modules(monkeypatch)
        assert_refused(
            lambda: make(modalities, **heads_of(make)),
            who=make.__name__,
            argument="modalities",
            got=got,
            error=ValueError,
        )
        assert not made

    @each_class
    @pytest.mark.parametrize("name", BAD_NAMES)
    def test_bad_name(self, make: Make, name: Any):
        modalities = {"text": 7, name: 5}
        assert_refused(
            lambda: make(modalities, **heads_of(make)),
            who=make.__name__,
            argument="modalities",
            got=f"got {name!r}",
            error=ValueError,
        )

    @pytest.mark.parametrize("make", [MulT, ContrastiveAlignment])
    def test_one_modality_is_no_pair(self, make: Make):
        assert_refused(
            lambda: make({"text": 7}, **heads_of(make)),
            who=make.__name__,
            argument="modalities",
            got="to name at least 2 modalities, got ['text']",
            error=ValueError,
        )

    @pytest.mark.parametrize(
        ("weights", "got"),
        rows(
            ("empty", {}, "unexpected [], missing ['text', 'audio', 'depth']"),
            ("one", {"text": 1}, "unexpected [], missing ['audio', 'depth']"),
            ("more", WIDTHS | {3: 1}, "unexpected [3], missing []"),
        ),
    )
    def test_fixed_weights_name_every_modality(self, weights: Any, got: str):
        assert_refused(
            lambda: make_sum(weights=weights),
            who="WeightedSumFusion",
            argument="weights",
            got=got,
            error=ValueError,
        )

    @pytest.mark.parametrize("argument", ["num_heads", "num_layers"])
    @pytest.mark.parametrize("stage", ["late", "pooled"])
    def test_pooled_concatenation_has_no_attention(self, stage: str, argument: str):
        assert_refused(
            lambda: make_concat(stage=stage, **{argument: 5}),
            who="ConcatFusion",
            argument=argument,
            got=f"with stage='{stage}', got 5",
            error=ValueError,
        )

    def test_heads_of_mult_divide_its_stacks(self):
        assert_refused(
            lambda: make_mult(stack_dim=6),
            who="MulT",
            argument="num_heads",
            got="to divide `stack_dim`, got stack_dim=6 and num_heads=5",
            error=ValueError,
        )

    @pytest.mark.parametrize(
        "options",
        [
            {"num_heads": 4},
            {"num_layers": 0},
            {"dim_feedforward": 0},
            {"activation": "other"},
            {"gate_bias": float("nan")},
        ],
    )
    def test_an_option_that_no_step_uses_yet_is_checked(self, options: dict[str, Any]):
        kwargs = {
            "embed_dim": EMBED,
            "num_heads": HEADS,
            "form": "residual",
            "share_weights": False,
        } | options
        with pytest.raises(ValueError, match=f"`{next(iter(options))}`"):
            GatedRecurrentFusion({"text": 7}, **kwargs)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            (name, value)
            for name in ("norm_first", "symmetric", "checkpoint", "share_weights")
            for value in ("linear", None, 1)
            # Left to the form.
            if (name, value) != ("norm_first", None)
        ],
    )
    def test_a_switch_is_true_or_false(self, name: str, value: Any):
        match = rf"`{name}` to be True or False, got {value!r}\."
        with pytest.raises(ValueError, match=match), NothingComputed():
            make_fusion(**{name: value})

    @pytest.mark.parametrize("value", ["yes", None, 1])
    def test_a_pooled_context_is_true_or_false(self, value: Any):
        match = rf"`pooled_context` to be True or False, got {value!r}\."
        with pytest.raises(ValueError, match=match), NothingComputed():
            make_block(pooled_context=value)

    @pytest.mark.parametrize(
        ("options", "argument"),
        rows(
            ("block number", {"block": 3}, "block"),
            ("block module", {"block": make_block(pooled_context=True)}, "block"),
            ("block answer", {"block": lambda: 3}, "block"),
            ("unit number", {"unit": 3}, "unit"),
            ("unit module", {"unit": GatedFusionUnit(EMBED)}, "unit"),
            ("unit answer", {"unit": lambda: None}, "unit"),
        ),
    )
    @pytest.mark.parametrize("share_weights", [True, False])
    def test_factories_make_modules(
        self, share_weights: bool, options: dict[str, Any], argument: str
    ):
        with pytest.raises(ValueError, match=rf"{FUSION}: expected `{argument}.*got .*\."):
            make_fusion(share_weights=share_weights, **options)


class TestAddModality:
    """A modality that cannot be added leaves everything as it was."""

    @pytest.mark.parametrize(
        ("name", "dim", "argument", "got"),
        rows(
            *((f"name {name!r}", name, 3, "name", f"got {name!r}") for name in BAD_NAMES),
            *((f"dim {got}", "radar", dim, "dim", f"got {got}") for got, dim in SIZES),
            ("taken", "audio", 11, "name", "got 'audio'"),
            ("taken first", "text", 7, "name", "got 'text'"),
        ),
    )
    @pytest.mark.parametrize("share_weights", [True, False])
    def test_refused(self, share_weights: bool, name: Any, dim: Any, argument: str, got: str):
        fusion = make_fusion(share_weights=share_weights)
        before, config, shown = copy.deepcopy(fusion.state_dict()), fusion.config(), repr(fusion)
        random = torch.get_rng_state()
        assert_refused(
            lambda: fusion.add_modality(name, dim),
            who=FUSION,
            argument=argument,
            got=got,
            error=ValueError,
        )
        after = fusion.state_dict()
        assert list(after) == list(before)
        assert all(torch.equal(after[key], before[key]) for key in before)
        assert fusion.config() == config
        assert repr(fusion) == shown
        assert torch.equal(torch.get_rng_state(), random)
        assert fusion(features()).shape == (2, EMBED)

    @pytest.mark.parametrize("part", ["block", "unit"])
    def test_a_factory_that_fails_leaves_nothing_half_done(self, part: str):
        good = {
            "block": lambda: make_block(pooled_context=True),
            "unit": lambda: GatedFusionUnit(EMBED),
        }
        working = True

        def make() -> nn.Module:
            if working:
                return good[part]()
            raise RuntimeError("out of memory")

        fusion = make_fusion(share_weights=False, **{part: make})
        keys, working = list(fusion.state_dict()), False
        with pytest.raises(RuntimeError, match="out of memory"):
            fusion.add_modality("radar", 3)
        assert list(fusion.state_dict()) == keys
        assert "radar" not in fusion.modalities
        assert fusion(features()).shape == (2, EMBED)

    @pytest.mark.parametrize("part", ["block", "unit"])
    def test_a_factory_that_stops_making_modules(self, part: str):
        good = {
            "block": lambda: make_block(pooled_context=True),
            "unit": lambda: GatedFusionUnit(EMBED),
        }
        answers = iter([good[part](), good[part](), None])
        fusion = make_fusion(share_weights=False, opening="first", **{part: lambda: next(answers)})
        keys = list(fusion.state_dict())
        with pytest.raises(ValueError, match=rf"{FUSION}: expected `{part}.*got NoneType"):
            fusion.add_modality("radar", 3)
        assert list(fusion.state_dict()) == keys
        assert "radar" not in fusion.modalities


DIM, HIDDEN = 6, 9


def author_weights() -> dict[str, Tensor]:
    """The smallest checkpoint of the authors' kind: two modalities, one layer."""
    shapes: dict[str, tuple[int, ...]] = {
        "projectors.text.weight": (DIM, 7),
        "projectors.text.bias": (DIM,),
        "projectors.audio.weight": (DIM, 5),
        "projectors.audio.bias": (DIM,),
        "gfus.0.linear_gate.weight": (DIM, 2 * DIM),
        "gfus.0.linear_gate.bias": (DIM,),
        "gfus.0.linear_candidate.weight": (DIM, 2 * DIM),
        "gfus.0.linear_candidate.bias": (DIM,),
        "gfus.0.norm.weight": (DIM,),
        "gfus.0.norm.bias": (DIM,),
        "regressor.0.weight": (1, DIM),
    }
    for decoder in ("decoder_1", "decoder_2"):
        prefix = f"fusion_encoders.0.{decoder}.layers.0"
        for attention in ("self_attn", "multihead_attn"):
            shapes[f"{prefix}.{attention}.in_proj_weight"] = (3 * DIM, DIM)
            shapes[f"{prefix}.{attention}.in_proj_bias"] = (3 * DIM,)
            shapes[f"{prefix}.{attention}.out_proj.weight"] = (DIM, DIM)
            shapes[f"{prefix}.{attention}.out_proj.bias"] = (DIM,)
        shapes[f"{prefix}.linear1.weight"] = (HIDDEN, DIM)
        shapes[f"{prefix}.linear1.bias"] = (HIDDEN,)
        shapes[f"{prefix}.linear2.weight"] = (DIM, HIDDEN)
        shapes[f"{prefix}.linear2.bias"] = (DIM,)
        for norm in ("norm1", "norm2", "norm3"):
            shapes[f"{prefix}.{norm}.weight"] = (DIM,)
            shapes[f"{prefix}.{norm}.bias"] = (DIM,)
    return {key: torch.ones(shape) for key, shape in shapes.items()}


PROJECTOR = "projectors.text.weight"
LINEAR = "fusion_encoders.0.decoder_1.layers.0.linear1.weight"
GATE = "gfus.0.linear_gate.bias"


class TestAuthorCheckpoint:
    """A checkpoint that is none, or that does not fit what was said about it."""

    def test_the_unchanged_checkpoint_loads(self):
        fusion = load_author_checkpoint(author_weights(), order=("text", "audio"), num_heads=2)
        assert fusion.modalities == {"text": 7, "audio": 5}

    @pytest.mark.parametrize(
        ("changes", "said", "got"),
        rows(
            ("projector gone", {PROJECTOR: None}, PROJECTOR, "got none"),
            ("first layer gone", {LINEAR: None}, LINEAR, "got none"),
            ("truncated", {GATE: None}, "state_dict", f"missing ['{GATE}'], unexpected []"),
            ("extra", {"head.bias": 0.0}, "state_dict", "missing [], unexpected ['head.bias']"),
            ("third", {"projectors.x.bias": 0.0}, "state_dict", "unexpected ['projectors.x.bias']"),
            ("gate shape", {GATE: torch.ones(5)}, GATE, "of shape (6,), got (5,)"),
            ("gate rank", {GATE: torch.ones(6, 1)}, GATE, "of shape (6,), got (6, 1)"),
            ("gate list", {GATE: [1.0] * 6}, GATE, "of shape (6,), got list"),
            ("projector rank", {PROJECTOR: torch.ones(6)}, PROJECTOR, "a matrix, got (6,)"),
            ("projector list", {PROJECTOR: [[1.0]]}, PROJECTOR, "a matrix, got list"),
            ("linear wide", {LINEAR: torch.ones(9, 7)}, LINEAR, "of shape (9, 6), got (9, 7)"),
            ("integers", {PROJECTOR: torch.ones(6, 7).long()}, PROJECTOR, "torch.int64"),
            ("mixed dtypes", {GATE: torch.ones(6).double()}, GATE, "torch.float64"),
            ("mixed devices", {GATE: torch.ones(6, device="meta")}, GATE, "meta"),
        ),
    )
    def test_wrong_weights(self, changes: dict[str, Any], said: str, got: str):
        weights = {
            key: value for key, value in (author_weights() | changes).items() if value is not None
        }
        with pytest.raises(ValueError, match=r"^load_author_checkpoint: expected ") as caught:
            load_author_checkpoint(weights, order=("text", "audio"), num_heads=2)
        assert caught.type is ValueError
        assert said in str(caught.value)
        assert got in str(caught.value)

    @pytest.mark.parametrize(
        ("weights", "got"),
        rows(("list", [1], "list"), ("None", None, "NoneType"), ("module", nn.Linear(2, 2), "Lin")),
    )
    def test_no_mapping(self, weights: Any, got: str):
        with pytest.raises(ValueError, match=rf"expected `state_dict` to map .*, got {got}"):
            load_author_checkpoint(weights, order=("text", "audio"), num_heads=2)

    def test_keys_that_are_no_names(self):
        with pytest.raises(ValueError, match=r"`state_dict`.*\b3\b"):
            load_author_checkpoint(
                author_weights() | {3: torch.ones(1)}, order=("text", "audio"), num_heads=2
            )

    @pytest.mark.parametrize(
        ("order", "said", "got"),
        rows(
            ("string", "text", "`order`", "got 'text'"),
            ("one", ("text",), "`order`", "got ('text',)"),
            ("empty", (), "`order`", "got ()"),
            ("twice", ("text", "text"), "`order`", "got ('text', 'text')"),
            ("number", 3, "`order`", "got 3"),
            ("None", None, "`order`", "got None"),
            ("lists", [["text"], ["audio"]], "`order`", "got [['text'], ['audio']]"),
            ("unknown", ("text", "smell"), "'projectors.smell.weight'", "got none. It projects"),
            ("unknown first", ("smell", "text"), "'projectors.smell.weight'", "`order` names"),
            ("three", ("text", "audio", "smell"), "'projectors.smell.weight'", "got none"),
        ),
    )
    def test_wrong_order(self, order: Any, said: str, got: str):
        with pytest.raises(ValueError, match=r"^load_author_checkpoint: expected ") as caught:
            load_author_checkpoint(author_weights(), order=order, num_heads=2)
        assert said in str(caught.value)
        assert got in str(caught.value)

    @pytest.mark.parametrize(
        ("heads", "got"),
        rows(
            ("4", 4, "embed_dim=6 and num_heads=4"), ("0", 0, "got 0"), ("None", None, "got None")
        ),
    )
    def test_heads_that_do_not_divide(self, heads: Any, got: str):
        weights = author_weights()
        with pytest.raises(ValueError, match="`num_heads`") as caught, NothingComputed():
            load_author_checkpoint(weights, order=("text", "audio"), num_heads=heads)
        assert got in str(caught.value)


class TestTheTestsThemselves:
    """`assert_refused` notices what it is there for."""

    ARGUMENTS: ClassVar[dict[str, Any]] = {"who": "Who", "argument": "x", "error": ShapeError}

    @staticmethod
    def raising(error: Exception) -> Callable[[], object]:
        def call() -> object:
            raise error

        return call

    def test_it_accepts_a_good_message(self):
        call = self.raising(ShapeError("Who: expected `x` of shape (2), got (3)."))
        assert_refused(call, got="(3)", **self.ARGUMENTS)

    @pytest.mark.parametrize(
        "error",
        [
            ValueError("Who: expected `x` of shape (2), got (3)."),
            ShapeError("Other: expected `x` of shape (2), got (3)."),
            ShapeError("Who: expected `y` of shape (2), got (3)."),
            ShapeError("Who: expected `x` of shape (2), got (4)."),
            ShapeError("Who: expected `x` of shape (2), not (3)."),
            RuntimeError("Who: expected `x` of shape (2), got (3)."),
        ],
    )
    def test_it_notices_another_error(self, error: Exception):
        caught = (AssertionError, pytest.fail.Exception, ValueError, RuntimeError)
        with pytest.raises(caught):
            assert_refused(self.raising(error), got="(3)", **self.ARGUMENTS)

    def test_it_notices_silence(self):
        with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
            assert_refused(lambda: None, **self.ARGUMENTS)

    def test_it_notices_an_error_that_comes_late(self):
        late = self.raising(ShapeError("Who: expected `x`, got 3."))
        module = nn.Sequential(nn.Identity())
        with pytest.raises(pytest.fail.Exception, match="ran Identity before"):
            assert_refused(lambda: (module(3), late()), module=module, **self.ARGUMENTS)
        with pytest.raises(pytest.fail.Exception, match="computed aten"):
            assert_refused(lambda: (torch.ones(2) * 3, late()), **self.ARGUMENTS)
        module(3)

    def test_integers_may_be_read(self):
        refusal = self.raising(ShapeError("Who: expected `x`, got 3."))
        mask = torch.ones(2, dtype=torch.int64)
        assert_refused(lambda: (int((mask != 1).sum()), refusal()), **self.ARGUMENTS)
