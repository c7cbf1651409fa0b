"""Where a fusion runs once it is trained: ONNX, int8, ExecuTorch and a package without Python.

`torch.compile` and `torch.export` themselves stand in tests/test_compile_export.py.
"""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export

import properties
from grf_fusion import FusionAdapter, FusionState, GatedRecurrentFusion
from grf_fusion.baselines import ConcatFusion, MulT
from hosts import load

WIDTHS = {"text": 7, "image": 11, "audio": 13}
EMBED, HEADS = 24, 3
TOLERANCE = 1e-5
Sizes = tuple[int, Sequence[int]]
FIRST: Sizes = (5, (23, 29, 31))
# The last two samples of a batch have fully masked rows, the first has nothing at all.
SIZES: tuple[Sizes, ...] = (FIRST, (1, (1, 1, 1)), (3, (2, 50, 7)), (4, (9, 1, 3)))
FORMS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper, two layers": {"form": "paper", "num_layers": 2, "self_attention": False},
    "first_sequence": {"context": "first_sequence", "self_attention": "linear"},
    "sequence, own weights": {"context": "sequence", "share_weights": False},
}

pytestmark = [
    pytest.mark.compile,
    # Of the exporters themselves.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def make_fusion(form: str) -> GatedRecurrentFusion:
    fusion = GatedRecurrentFusion(WIDTHS, embed_dim=EMBED, num_heads=HEADS, **FORMS[form])
    properties.randomise(fusion, seed=2)
    return fusion.eval()


def make_call(sizes: Sizes, seed: int = 0) -> dict[str, Any]:
    batch, times = sizes
    generator = torch.Generator().manual_seed(seed)
    features, masks = {}, {}
    for name, time in zip(WIDTHS, times, strict=True):
        features[name] = torch.randn(batch, time, WIDTHS[name], generator=generator)
        masks[name] = torch.rand(batch, time, generator=generator) > 0.4
        masks[name][-2:] = False
    masks["image"][-1] = True
    present = torch.rand(batch, len(WIDTHS), generator=generator) > 0.3
    if batch > 1:
        present[0] = False
    return {"features": features, "masks": masks, "present": present}


def tensors_of(call: dict[str, Any]) -> list[Tensor]:
    return [*call["features"].values(), *call["masks"].values(), call["present"]]


def dynamic_shapes() -> dict[str, Any]:
    each = {name: {0: Dim.DYNAMIC, 1: Dim.DYNAMIC} for name in WIDTHS}
    return {"features": each, "masks": each, "present": {0: Dim.DYNAMIC}}


def to_onnx(module: nn.Module, path: Path, opset: int) -> None:
    """The call that the docs show."""
    common = load("onnx_ir.passes.common")
    program = torch.onnx.export(
        module,
        kwargs=make_call(FIRST),
        dynamic_shapes=dynamic_shapes(),
        opset_version=opset,
        dynamo=True,
        verbose=False,
    )
    common.DeduplicateInitializersPass(size_limit=2**30)(program.model)
    common.ClearMetadataAndDocStringPass()(program.model)
    program.save(path)


def run_onnx(path: Path, tensors: Sequence[Tensor]) -> list[np.ndarray]:
    session = load("onnxruntime").InferenceSession(path)
    names = [given.name for given in session.get_inputs()]
    return session.run(None, {name: x.numpy() for name, x in zip(names, tensors, strict=True)})


def assert_agrees(
    run: Callable[[list[Tensor]], Any], module: nn.Module, sizes: Any = SIZES
) -> None:
    for seed, size in enumerate(sizes):
        call = make_call(size, seed)
        with torch.inference_mode():
            wanted = module(**call)
        found = torch.as_tensor(run(tensors_of(call)))
        assert found.shape == wanted.shape, f"{size}"
        error = (found - wanted).abs().max().item() / max(1.0, wanted.abs().max().item())
        assert error <= TOLERANCE, f"{size}: off by {error}"


# Every form at the opset that has an Attention of its own, and one form at all.
@pytest.mark.parametrize(
    ("form", "opset"),
    [
        *((form, 23) for form in FORMS),
        ("default", 18),
        # The page docs/how-to/deploy.md exports for this one too.
        ("default", 20),
    ],
)
def test_onnx(form: str, opset: int, tmp_path: Path) -> None:
    fusion = make_fusion(form)
    to_onnx(fusion, tmp_path / "fusion.onnx", opset)
    assert_agrees(lambda x: run_onnx(tmp_path / "fusion.onnx", x)[0], fusion)


@pytest.mark.parametrize("make", [ConcatFusion, MulT], ids=lambda cls: cls.__name__)
def test_onnx_of_a_baseline(make: Any, tmp_path: Path) -> None:
    options = {} if make is ConcatFusion else {"num_heads": HEADS, "num_layers": 1}
    fusion = make(WIDTHS, embed_dim=EMBED, **options).eval()
    to_onnx(fusion, tmp_path / "fusion.onnx", 23)
    assert_agrees(lambda x: run_onnx(tmp_path / "fusion.onnx", x)[0], fusion)


def test_onnx_of_an_adapter(tmp_path: Path) -> None:
    adapter = FusionAdapter(WIDTHS, embed_dim=EMBED, num_heads=HEADS).eval()
    properties.randomise(adapter, seed=2)

    def call(sizes: Sizes, seed: int) -> dict[str, Any]:
        given = make_call(sizes, seed)
        hidden = torch.randn(sizes[0], sizes[1][0], EMBED)
        return {"hidden": hidden} | given | {"mask": given["masks"]["text"]}

    both = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    program = torch.onnx.export(
        adapter,
        kwargs=call(FIRST, 0),
        dynamic_shapes={"hidden": both} | dynamic_shapes() | {"mask": both},
        opset_version=23,
        dynamo=True,
        verbose=False,
    )
    program.save(tmp_path / "adapter.onnx")
    session = load("onnxruntime").InferenceSession(tmp_path / "adapter.onnx")
    for seed, sizes in enumerate(SIZES):
        given = call(sizes, seed)
        leaves = {"hidden": given["hidden"], "mask": given["mask"], "present": given["present"]}
        for name in WIDTHS:
            leaves |= {f"features_{name}": given["features"][name]}
            leaves |= {f"masks_{name}": given["masks"][name]}
        found = session.run(None, {i.name: leaves[i.name].numpy() for i in session.get_inputs()})
        error = (torch.as_tensor(found[0]) - adapter(**given)).abs().max().item()
        assert error <= TOLERANCE


class Step(nn.Module):
    """One step of a stream: state in, state out."""

    def __init__(self, fusion: GatedRecurrentFusion, name: str) -> None:
        super().__init__()
        self.fusion = fusion
        self.name = name

    def forward(self, state: FusionState, features: Tensor, mask: Tensor) -> FusionState:
        return self.fusion.step(state, self.name, features, mask=mask)


@pytest.mark.parametrize("form", ["default", "sequence, own weights"])
def test_onnx_of_a_step(form: str, tmp_path: Path) -> None:
    fusion = make_fusion(form)
    first = make_call(FIRST)
    state = fusion.step(None, "text", first["features"]["text"], mask=first["masks"]["text"])
    both = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    # A context that is one vector is one step by construction.
    mask = both if form != "default" else {0: Dim.DYNAMIC}
    context = both if form != "default" else {0: Dim.DYNAMIC}
    program = torch.onnx.export(
        Step(fusion, "audio"),
        (state, first["features"]["audio"], first["masks"]["audio"]),
        dynamic_shapes=(FusionState(context, mask, {0: Dim.DYNAMIC}), both, both),
        opset_version=20,
        dynamo=True,
        verbose=False,
    )
    program.save(tmp_path / "step.onnx")
    for seed, sizes in enumerate(SIZES):
        call = make_call(sizes, seed)
        features, masks = call["features"], call["masks"]
        state = fusion.step(None, "text", features["text"], mask=masks["text"])
        wanted = fusion.step(state, "audio", features["audio"], mask=masks["audio"])
        given = [x.detach() for x in (*state, features["audio"], masks["audio"])]
        found = run_onnx(tmp_path / "step.onnx", given)
        for got, want in zip(found, wanted, strict=True):
            np.testing.assert_allclose(got, want.detach().numpy(), rtol=0, atol=TOLERANCE)


def to_int8(plain: Path, small: Path) -> None:
    """The call that the docs show."""
    onnx, onnxruntime = load("onnx"), load("onnxruntime")
    quantization = load("onnxruntime.quantization")
    # What onnxruntime makes of constants first; weights that are transposed stay float otherwise.
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(small)
    onnxruntime.InferenceSession(plain, options)
    # The quantiser transposes weights of a head and then trips over shapes noted before.
    folded = onnx.load(small)
    del folded.graph.value_info[:]
    onnx.save(folded, small)
    int8 = quantization.QuantType.QInt8
    quantization.quantize_dynamic(small, small, weight_type=int8, per_channel=True)


class Headed(nn.Module):
    """A fusion with two heads."""

    def __init__(self, fusion: Any) -> None:
        super().__init__()
        self.fusion = fusion
        self.heads = nn.ModuleList(nn.Linear(fusion.embed_dim, size) for size in (4, 3))

    def forward(self, features: Any, masks: Any, present: Tensor) -> Tensor:
        fused = self.fusion(features, masks=masks, present=present)
        return torch.cat([head(fused) for head in self.heads], dim=-1)


@pytest.mark.parametrize("headed", [False, True], ids=["alone", "with heads"])
def test_int8(headed: bool, tmp_path: Path) -> None:
    """Weights that all steps share too: onnxruntime would transpose them once a step.

    The chain has an even number of steps: an odd number of transpositions is one.
    """
    fusion: nn.Module = GatedRecurrentFusion(
        WIDTHS, embed_dim=128, num_heads=4, form="residual", opening="first"
    ).eval()
    if headed:
        fusion = Headed(fusion).eval()
    plain, small = tmp_path / "fusion.onnx", tmp_path / "int8.onnx"
    to_onnx(fusion, plain, 20)
    to_int8(plain, small)
    # The weights once, although every step uses them, and a small graph.
    weights = sum(4 * parameter.numel() for parameter in fusion.parameters())
    assert plain.stat().st_size < 1.2 * weights
    assert small.stat().st_size < 0.45 * plain.stat().st_size
    call = make_call(FIRST)
    call["present"][:] = True
    for mask in call["masks"].values():
        mask[:, 0] = True
    wanted = fusion(**call)
    found = torch.as_tensor(run_onnx(small, tensors_of(call))[0])
    assert (found - wanted).abs().mean() < 0.05 * wanted.abs().mean()


class Positional(nn.Module):
    """The same call without keywords, as ExecuTorch takes it."""

    def __init__(self, fusion: GatedRecurrentFusion) -> None:
        super().__init__()
        self.fusion = fusion

    def forward(self, features: Any, masks: Any, present: Tensor) -> Tensor:
        return self.fusion(features, masks=masks, present=present)


def test_executorch(tmp_path: Path) -> None:
    fusion = make_fusion("default")
    # One sample, as on a phone; ExecuTorch's lowering fixes the batch size, and not the lengths.
    sizes = [(1, times) for _, times in SIZES]
    call = make_call(sizes[0])
    each = {name: {1: Dim(f"time_{name}", min=1, max=64)} for name in WIDTHS}
    program = export(Positional(fusion), tuple(call.values()), dynamic_shapes=(each, each, None))
    xnnpack = load("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    lower = load("executorch.exir").to_edge_transform_and_lower
    lowered = lower(program, partitioner=[xnnpack.XnnpackPartitioner()])
    path = tmp_path / "fusion.pte"
    path.write_bytes(lowered.to_executorch().buffer)
    method = load("executorch.runtime").Runtime.get().load_program(path).load_method("forward")
    assert_agrees(lambda x: method.execute(x)[0], fusion, sizes)


LOADER = """
import sys, torch
package = torch._inductor.aoti_load_package(sys.argv[1])
calls = torch.load(sys.argv[2], weights_only=True)
torch.save([package(**call) for call in calls], sys.argv[3])
assert "grf_fusion" not in sys.modules
"""


def test_package_runs_where_grf_fusion_is_not_imported(tmp_path: Path) -> None:
    fusion = make_fusion("default")
    program = export(fusion, (), make_call(FIRST), dynamic_shapes=dynamic_shapes())
    path = tmp_path / "fusion.pt2"
    torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    calls = [make_call(sizes, seed) for seed, sizes in enumerate(SIZES)]
    torch.save(calls, tmp_path / "calls.pt")
    files = [str(path), str(tmp_path / "calls.pt"), str(tmp_path / "found.pt")]
    subprocess.run([sys.executable, "-c", LOADER, *files], check=True, timeout=300)
    found = iter(torch.load(files[2], weights_only=True))
    assert_agrees(lambda _: next(found), fusion)
