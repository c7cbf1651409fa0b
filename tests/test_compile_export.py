"""One graph serves all lengths, batch sizes, masks and patterns of presence; so does an export."""

import copy
import io
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export

from grf_fusion import (
    FusionState,
    FusionTrace,
    GatedFusionUnit,
    GatedRecurrentFusion,
    ModalityDropout,
    SymmetricCrossAttentionBlock,
)
from grf_fusion.baselines import (
    ConcatFusion,
    ContrastiveAlignment,
    CrossModalAttentionFusion,
    MulT,
    WeightedSumFusion,
)
from hosts import counters
from properties import assert_close

pytestmark = [
    pytest.mark.compile,
    # PyTorch 2.11 on a GPU, at the first `torch.export.load` of a process.
    pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning"),
]

# None of them is a length, a batch size or a number of modalities in any first call below.
WIDTHS = {"text": 19, "image": 21, "audio": 25, "depth": 27}
EMBED, HEADS = 8, 2
# The first call has mutually different sizes of at least 2. PyTorch takes equal sizes to be the
# same one, and 0 and 1 to be special; see `TestSizesThatPyTorchTakesToBeSpecial`.
FIRST = (5, (23, 29, 31, 37))
# Equal lengths, lengths equal to the batch, to a width, to the embedding, to the first call's.
OTHERS = (
    (2, (2, 2, 2, 2)),
    (3, (5, 7, 3, 2)),
    (4, (9, 4, 4, 19)),
    (8, (19, 21, 25, 27)),
    (29, (8, 23, 5, 31)),
)
MODES = {
    "pooled": {},
    "residual": {"form": "residual"},
    "first_sequence": {"context": "first_sequence"},
    "sequence": {"context": "sequence"},
    "learned opening": {"opening": "learned"},
    "unshared weights": {"share_weights": False},
    "dropout": {"dropout": 0.1},
    "linear attention": {"form": "residual", "self_attention": "linear"},
    "checkpointing": {"form": "residual", "checkpoint": True},
}

BASELINES: dict[str, tuple[Callable[..., nn.Module], dict[str, Any]]] = {
    "concatenation": (ConcatFusion, {}),
    "pooled": (ConcatFusion, {"stage": "pooled"}),
    "early": (ConcatFusion, {"stage": "early", "num_heads": HEADS}),
    "sigmoid": (WeightedSumFusion, {}),
    "softmax": (WeightedSumFusion, {"weights": "softmax"}),
    "fixed": (WeightedSumFusion, {"weights": {"text": 1, "image": 2, "audio": 0.5}}),
    "cross-modal": (CrossModalAttentionFusion, {"num_heads": HEADS}),
    "mult": (MulT, {"num_heads": HEADS, "num_layers": 1}),
    "alignment": (ContrastiveAlignment, {}),
}
each_baseline = pytest.mark.parametrize("form", BASELINES)

Sizes = tuple[int, Sequence[int]]


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    """Start without compiled code, and leave none."""
    torch.compiler.reset()
    counters().clear()
    yield
    torch.compiler.reset()


def graphs() -> int:
    """Number of graphs that were compiled since the test began."""
    return counters()["stats"]["unique_graphs"]


def make_fusion(names: Sequence[str], **options: Any) -> GatedRecurrentFusion:
    modalities = {name: WIDTHS[name] for name in names}
    return GatedRecurrentFusion(modalities, embed_dim=EMBED, num_heads=HEADS, **options)


def make_baseline(form: str, names: Sequence[str], **more: Any) -> nn.Module:
    make, options = BASELINES[form]
    return make({name: WIDTHS[name] for name in names}, embed_dim=EMBED, **options, **more)


def make_call(names: Sequence[str], sizes: Sizes, seed: int = 0) -> dict[str, Any]:
    """Random features, masks and presence, with a sample that has nothing in the first row."""
    batch, times = sizes
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    features, masks = {}, {}
    for name, time in zip(names, times, strict=False):
        features[name] = torch.randn(batch, time, WIDTHS[name], generator=generator)
        masks[name] = torch.rand(batch, time, generator=generator) > 0.4
        masks[name][-1] = False
    present = torch.rand(batch, len(names), generator=generator) > 0.4
    present[0] = False
    return {"features": features, "masks": masks, "present": present}


def gradients(module: nn.Module, output: Tensor) -> dict[str, Tensor]:
    """Gradients of all parameters by name, of a direction in which no two entries are alike."""
    module.zero_grad()
    (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def assert_same(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Same names, same values to float32 rounding, relative to the largest entry."""
    assert actual.keys() == expected.keys()
    for name, got in actual.items():
        want = expected[name]
        assert got.shape == want.shape, name
        assert got.dtype == want.dtype, name
        error = (got.double() - want.double()).abs().max().item()
        scale = max(1.0, want.double().abs().max().item())
        assert error <= 1e-5 * scale, f"{name}: off by {error}, largest entry {scale}"


def outputs(answer: tuple[Tensor, FusionTrace]) -> dict[str, Tensor]:
    """The tensors of a context and its trace, by name."""
    context, trace = answer
    fields = {n: value for n, value in trace._asdict().items() if isinstance(value, Tensor)}
    return {"context": context, **fields}


def compiled(function: Callable[..., Any], backend: str = "eager") -> Callable[..., Any]:
    """The promise of the library: whole graphs, dynamic shapes."""
    return torch.compile(function, backend=backend, fullgraph=True, dynamic=True)


class TestOneGraph:
    """Graphs are counted while sizes, masks and presence change."""

    @pytest.mark.parametrize("mode", MODES)
    def test_serves_all_sizes_masks_and_presences(self, mode: str):
        names = ("text", "image", "audio")
        fusion = make_fusion(names, **MODES[mode])
        fast = compiled(fusion)
        for seed, sizes in enumerate((FIRST, *OTHERS)):
            call = make_call(names, sizes, seed) | {"return_trace": True}
            found, expected = outputs(fast(**call)), outputs(fusion(**call))
            slopes = gradients(fusion, found["context"])
            if mode != "dropout":
                assert_same(found, expected)
                assert_same(slopes, gradients(fusion, expected["context"]))
            assert graphs() == 1, sizes

    @each_baseline
    def test_of_a_baseline_serves_all_sizes_masks_and_presences(self, form: str):
        names = ("text", "image", "audio")
        # Eager mode packs and the graph does not: other sums, which float64 holds to 1e-10.
        fusion = make_baseline(form, names, dtype=torch.float64)
        fast = compiled(fusion)
        for seed, sizes in enumerate((FIRST, *OTHERS)):
            call = make_call(names, sizes, seed)
            call["features"] = {name: x.double() for name, x in call["features"].items()}
            found, expected = fast(**call), fusion(**call)
            assert_close({"": found}, {"": expected})
            assert_close(gradients(fusion, found), gradients(fusion, expected))
            assert graphs() == 1, sizes

    @pytest.mark.parametrize(
        ("form", "more"),
        [("pooled", {}), ("early", {}), ("mult", {}), ("mult", {"literal": True})],
    )
    def test_of_a_baseline_serves_all_lengths_without_masks(self, form: str, more: dict[str, Any]):
        names = ("text", "image")
        fusion = make_baseline(form, names, **more)
        fast = compiled(fusion)
        for seed, sizes in enumerate((FIRST, *OTHERS)):
            call = make_call(names, sizes, seed)["features"]
            assert_same({"": fast(call)}, {"": fusion(call)})
            assert graphs() == 1, sizes

    @pytest.mark.parametrize("form", ["chain", *BASELINES])
    def test_serves_all_subsets_of_the_modalities(self, form: str):
        names = tuple(WIDTHS) if form == "chain" else ("text", "image", "audio")
        fusion = make_fusion(names) if form == "chain" else make_baseline(form, names)
        fast = compiled(fusion.eval())
        subsets = [row for row in itertools.product((False, True), repeat=len(names)) if any(row)]
        assert len(subsets) == 2 ** len(names) - 1
        call = make_call(names, FIRST)
        for subset in subsets:
            # Rows of masks that hold nothing would blur what `present` says.
            masks = {name: torch.ones_like(mask) for name, mask in call["masks"].items()}
            present = torch.tensor(subset).expand(FIRST[0], -1).contiguous()
            found = fast(call["features"], masks=masks, present=present)
            here = {name for name, is_in in zip(names, subset, strict=True) if is_in}
            left = {name: call["features"][name] for name in here}
            assert_same({"": found}, {"": fusion(left)})
        assert graphs() == 1

    def test_serves_training_with_backward_graphs(self):
        class Model(nn.Module):
            """What a user trains: presence, modality dropout, fusion, head."""

            def __init__(self):
                super().__init__()
                self.drop = ModalityDropout(0.3)
                self.fusion = make_fusion(("text", "image"))
                self.head = nn.Linear(EMBED, 3)

            def forward(
                self, features: dict[str, Tensor], masks: dict[str, Tensor], present: Tensor
            ) -> tuple[Tensor, Tensor]:
                """Return the head's output and what was left of `present`."""
                present = self.fusion.presence(features, masks=masks, present=present)
                left = self.drop(present)
                return self.head(self.fusion(features, masks=masks, present=left)), left

        model = Model()
        fast = compiled(model, backend="aot_eager")
        dropped = 0
        for seed, sizes in enumerate((FIRST, *OTHERS)):
            call = make_call(("text", "image"), sizes, seed)
            found, left = fast(**call)
            present = model.fusion.presence(**call)
            dropped += int((left != present).sum())
            expected = model.head(model.fusion(**call | {"present": left}))
            assert_same({"": found}, {"": expected})
            assert_same(gradients(model, found), gradients(model, expected))
            assert graphs() == 1, sizes
        assert dropped
        # Traced once, forwards and backwards: no size of these was new to either.
        assert counters()["aot_autograd"]["ok"] == 1

    def test_serves_each_step_of_a_stream(self):
        names = ("text", "image", "audio")
        # Without gradients: torch itself warns of a state that comes from other weights.
        fusion = make_fusion(names).eval().requires_grad_(requires_grad=False)
        fast = compiled(fusion.step)
        for seed, sizes in enumerate((FIRST, *OTHERS)):
            call = make_call(names, sizes, seed)
            state, expected = None, None
            for name in names:
                given = {
                    "features": call["features"][name],
                    "mask": call["masks"][name],
                    "present": call["present"][:, names.index(name)],
                }
                state = fast(state, name, **given)
                expected = fusion.step(expected, name, **given)
                assert isinstance(state, FusionState)
                assert_same(state._asdict(), expected._asdict())
            # One for each modality: its name is a constant of the graph.
            assert graphs() == len(names), sizes

    @pytest.mark.parametrize(
        ("mask_dtype", "need_weights"), [(torch.bool, False), (torch.int64, True)]
    )
    def test_block(self, mask_dtype: torch.dtype, need_weights: bool):
        block = SymmetricCrossAttentionBlock(EMBED, num_heads=HEADS)
        fast = compiled(block)
        for batch, (one, two, *_) in (FIRST, *OTHERS):
            context, modality = torch.randn(batch, one, EMBED), torch.randn(batch, two, EMBED)
            context_mask, modality_mask = torch.rand(batch, one) > 0.4, torch.rand(batch, two) > 0.4
            context_mask[0], modality_mask[-1] = False, False
            call: dict[str, Any] = {
                "context_mask": context_mask.to(mask_dtype),
                "modality_mask": modality_mask.to(mask_dtype),
                "need_weights": need_weights,
            }
            found, expected = fast(context, modality, **call), block(context, modality, **call)
            for got, want in zip(found, expected, strict=True):
                if isinstance(want, Tensor):
                    assert_same({"": got}, {"": want})
                else:
                    assert_same(got._asdict(), want._asdict())
        assert graphs() == 1

    @pytest.mark.parametrize("options", [{}, {"norm": False, "identity_init": True}])
    def test_unit(self, options: dict[str, Any]):
        unit = GatedFusionUnit(EMBED, **options)
        fast = compiled(unit)
        for batch, (time, *_) in (FIRST, *OTHERS):
            state, update = torch.randn(2, batch, time, EMBED).unbind(0)
            found = fast(state, update, return_gate=True)
            expected = unit(state, update, return_gate=True)
            for got, want in zip(found, expected, strict=True):
                assert_same({"": got}, {"": want})
        assert graphs() == 1

    def test_modality_dropout(self):
        drop = ModalityDropout(0.5)
        fast = compiled(drop)
        for batch in (5, 2, 3, 64):
            present = torch.rand(batch, 7) > 0.3
            left = fast(present)
            assert (left <= present).all()
            assert torch.equal(left.any(dim=1), present.any(dim=1))
        assert (left < present).any()
        assert graphs() == 1


class TestSizesThatPyTorchTakesToBeSpecial:
    """What else costs a graph, and how much: PyTorch's doing, bounded here."""

    NAMES = ("text", "image")

    def make(self) -> Callable[..., Any]:
        """A small compiled fusion."""
        small = {"form": "residual", "self_attention": False, "symmetric": False}
        return compiled(make_fusion(self.NAMES, **small).eval())

    def call(self, fast: Callable[..., Any], *many: Sizes) -> None:
        """Call a compiled fusion once for each of some sizes."""
        for sizes in many:
            fast(**make_call(self.NAMES, sizes))

    def test_equal_sizes_in_the_first_call_cost_one_graph(self):
        fast = self.make()
        self.call(fast, (7, (7, 7)))
        assert graphs() == 1
        self.call(fast, *OTHERS)
        assert graphs() == 2

    def test_each_pattern_of_ones_costs_one_graph(self):
        fast = self.make()
        self.call(fast, FIRST, (3, (1, 5)), (2, (1, 9)))
        assert graphs() == 2
        self.call(fast, (3, (4, 1)), *OTHERS, (2, (5, 1)))
        assert graphs() == 3


# What torch 2.6 says of its own settings when it looks for a compiled graph in its cache.
with_inductor = pytest.mark.filterwarnings(
    "ignore:Skipping serialization of skipfiles_inline:UserWarning"
)


@with_inductor
class TestInductor:
    """The default backend computes the same, forwards and backwards."""

    def test_equals_eager(self):
        names = ("text", "image")
        fusion = make_fusion(names)
        fast = compiled(fusion, backend="inductor")
        for seed, sizes in enumerate((FIRST, *OTHERS)):
            call = make_call(names, sizes, seed)
            found, expected = fast(**call), fusion(**call)
            assert_same({"": found}, {"": expected})
            assert_same(gradients(fusion, found), gradients(fusion, expected))
        assert graphs() == 1


@with_inductor
@pytest.mark.parametrize(
    ("make", "autocast"),
    [
        (GatedRecurrentFusion, True),
        (GatedRecurrentFusion, False),
        (partial(ConcatFusion, stage="pooled"), False),
    ],
    ids=["default under autocast", "default", "pooled"],
)
def test_gradients_in_half_precision_are_as_exact_as_in_eager_mode(
    make: Callable[..., nn.Module], autocast: bool
):
    """Inductor keeps more digits inside a kernel than in its result, so that the two may differ."""
    exact = make({"text": WIDTHS["text"]}, embed_dim=16, dtype=torch.float64)
    half = copy.deepcopy(exact).to(torch.float32 if autocast else torch.bfloat16)
    fast = torch.compile(half, fullgraph=True)
    call = make_call(("text",), FIRST)
    found = []
    for module, run in ((exact, exact), (half, half), (half, fast)):
        dtype = next(module.parameters()).dtype
        given = call | {"features": {k: x.to(dtype) for k, x in call["features"].items()}}
        module.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast and module is half):
            loss = run(**given).double().square().sum()
        loss.backward()
        slopes = [p.grad.double().flatten() for p in module.parameters() if p.grad is not None]
        found.append(torch.cat(slopes))
    eager, compiled_too = ((one - found[0]).norm() for one in found[1:])
    assert compiled_too < 2 * eager


def round_trip(program: torch.export.ExportedProgram) -> nn.Module:
    """The module of an exported program after it was saved and loaded."""
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    return torch.export.load(buffer).module()


class Step(nn.Module):
    """One step of a stream by itself, for a runtime that keeps the state."""

    def __init__(self, fusion: GatedRecurrentFusion, name: str):
        super().__init__()
        self.fusion = fusion
        self.name = name

    def forward(
        self, state: FusionState, features: Tensor, mask: Tensor, present: Tensor
    ) -> tuple[FusionState, Tensor]:
        """Let the modality in; return the state and what it says."""
        new = self.fusion.step(state, self.name, features, mask=mask, present=present)
        return new, self.fusion.readout(new)


class TestExport:
    """`torch.export` with every size that may vary left open."""

    # A batch or a length of 1 is served too, although PyTorch's ranges start at 2.
    SIZES = (FIRST, *OTHERS, (1, (3, 5, 7)), (3, (1, 4, 1)), (1, (1, 1, 1)))

    @pytest.mark.parametrize(
        ("mode", "kind"),
        [
            ("pooled", Dim.DYNAMIC),
            ("pooled", Dim.AUTO),
            ("first_sequence", Dim.DYNAMIC),
            ("sequence", Dim.DYNAMIC),
            ("learned opening", Dim.DYNAMIC),
            ("linear attention", Dim.DYNAMIC),
        ],
    )
    def test_fusion(self, mode: str, kind: Any):
        names = ("text", "image", "audio")
        fusion = make_fusion(names, **MODES[mode]).eval()
        call = make_call(names, FIRST)
        features = call.pop("features")
        each = {name: {0: kind, 1: kind} for name in names}
        dynamic = {"features": each, "masks": each, "present": {0: kind}}
        program = export(fusion, (features,), call, dynamic_shapes=dynamic)
        self.assert_all_sizes_are_free(program, len(names))
        module = round_trip(program) if mode == "pooled" else program.module()
        for seed, sizes in enumerate(self.SIZES):
            call = make_call(names, sizes, seed)
            features = call.pop("features")
            assert_same({"": module(features, **call)}, {"": fusion(features, **call)})

    @staticmethod
    def assert_all_sizes_are_free(program: torch.export.ExportedProgram, modalities: int) -> None:
        """The batch size and each length by itself, all without an upper bound."""
        ranges = list(program.range_constraints.values())
        assert len(ranges) == 1 + modalities
        assert all(bounds.lower <= 2 and bounds.upper > 10**9 for bounds in ranges)

    @each_baseline
    def test_baseline(self, form: str):
        names = ("text", "image", "audio")
        fusion = make_baseline(form, names).eval()
        call = make_call(names, FIRST)
        features = call.pop("features")
        each = {name: {0: Dim.DYNAMIC, 1: Dim.DYNAMIC} for name in names}
        dynamic = {"features": each, "masks": each, "present": {0: Dim.DYNAMIC}}
        program = export(fusion, (features,), call, dynamic_shapes=dynamic)
        self.assert_all_sizes_are_free(program, len(names))
        module = round_trip(program) if form in {"mult", "softmax"} else program.module()
        for seed, sizes in enumerate(self.SIZES):
            call = make_call(names, sizes, seed)
            features = call.pop("features")
            assert_same({"": module(features, **call)}, {"": fusion(features, **call)})

    @each_baseline
    def test_baseline_of_which_one_modality_has_a_mask(self, form: str):
        names = ("text", "image", "audio")
        fusion = make_baseline(form, names).eval()

        def arguments(sizes: Sizes, seed: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
            call = make_call(names, sizes, seed)
            return (call["features"],), {"masks": {"image": call["masks"]["image"]}}

        both = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
        dynamic = {"features": dict.fromkeys(names, both), "masks": {"image": both}}
        given, named = arguments(FIRST, 0)
        program = export(fusion, given, named, dynamic_shapes=dynamic)
        self.assert_all_sizes_are_free(program, len(names))
        module = program.module()
        for seed, sizes in enumerate(self.SIZES):
            given, named = arguments(sizes, seed)
            assert_same({"": module(*given, **named)}, {"": fusion(*given, **named)})

    @pytest.mark.parametrize("mode", ["pooled", "sequence"])
    def test_step(self, mode: str):
        names = ("text", "image", "audio")
        fusion = make_fusion(names, **MODES[mode]).eval().requires_grad_(requires_grad=False)

        def arguments(sizes: Sizes, seed: int) -> tuple[FusionState, Tensor, Tensor, Tensor]:
            call = make_call(names, sizes, seed)
            features, masks, present = call["features"], call["masks"], call["present"]
            opened = fusion.step(
                None, "text", features["text"], mask=masks["text"], present=present[:, 0]
            )
            return opened, features["image"], masks["image"], present[:, 1].contiguous()

        step, kind = Step(fusion, "image"), Dim.DYNAMIC
        both = {0: kind, 1: kind}
        context = both if mode == "sequence" else {0: kind}
        mask = both if mode == "sequence" else {0: kind}
        shapes = (FusionState(context, mask, {0: kind}), both, both, {0: kind})
        program = export(step, arguments(FIRST, 0), dynamic_shapes=shapes)
        module = program.module()
        for seed, sizes in enumerate(self.SIZES):
            given = arguments(sizes, seed)
            (state, read), (wanted, expected) = module(*given), step(*given)
            assert_same({"": read}, {"": expected})
            assert_same(FusionState(*state)._asdict(), wanted._asdict())

    def test_states_are_plain_tensors_to_torch(self, tmp_path: Path):
        fusion = make_fusion(("text", "image")).eval()
        call = make_call(("text", "image"), FIRST)
        state = fusion.step(None, "text", call["features"]["text"], mask=call["masks"]["text"])
        leaves, spec = torch.utils._pytree.tree_flatten(state)
        assert all(isinstance(leaf, Tensor) for leaf in leaves)
        again = torch.utils._pytree.tree_unflatten(leaves, spec)
        assert isinstance(again, FusionState)
        torch.save(tuple(state), tmp_path / "state.pt")
        loaded = torch.load(tmp_path / "state.pt", weights_only=True)
        assert_same(FusionState(*loaded)._asdict(), state._asdict())
        image = call["features"]["image"]
        expected = fusion.readout(fusion.step(state, "image", image))
        assert torch.equal(
            fusion.readout(fusion.step(FusionState(*loaded), "image", image)), expected
        )
        assert torch.equal(fusion.readout(fusion.step(again, "image", image)), expected)
