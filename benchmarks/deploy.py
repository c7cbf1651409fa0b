"""Train the fusion of examples/hydraulic.py, and run it in every runtime it can be deployed to.

    python -m benchmarks.deploy --data FOLDER        prints a table; some minutes

Size is that of the file. Latency is the median of one cycle (17 sensors, batch 1) on one thread,
all runtimes in turns. Difference is the largest difference of a score to eager PyTorch on the test
cycles.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import onnx
import onnxruntime
import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from executorch.runtime import Runtime
from onnx_ir.passes import common
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import Tensor, nn
from torch.export import Dim, export

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import hydraulic

OPSETS = (18, 20, 23)
REPEATS = 200
Run = Callable[[Tensor, Tensor], Tensor]


class Form(NamedTuple):
    """A deployed model: bytes on disk, a callable that runs it, and the largest batch."""

    size: int | None
    run: Run
    batch: int | None = None


class Scores(nn.Module):
    """Both targets' scores in one tensor, without modality dropout."""

    def __init__(self, monitor: hydraulic.Monitor) -> None:
        super().__init__()
        self.fusion, self.heads = monitor.fusion, monitor.heads

    def forward(self, features: Tensor, present: Tensor) -> Tensor:
        """Classify cycles, ``(batch, sensors, time, dim)`` with ``present`` (batch, sensors)."""
        by_name = dict(zip(hydraulic.SENSORS, features.unbind(1), strict=True))
        context = self.fusion(by_name, present=present)
        return torch.cat([head(context) for head in self.heads.values()], dim=1)


def main() -> None:
    """Train, convert, run and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of hydraulic.npz")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cycles = hydraulic.load(options.data)
    model = Scores(hydraulic.train(cycles, 0, options.epochs)).eval()
    test = cycles.parts[2]
    features = cycles.features[test]
    present = torch.ones(len(test), len(hydraulic.SENSORS), dtype=torch.bool)
    present[::5, 3] = False
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        forms = convert(model, Path(folder), (features[:5], present[:5]))
        latency: dict[str, list[float]] = {name: [] for name in forms}
        for repeat in range(options.repeats):
            for name, form in forms.items():
                start = time.perf_counter()
                form.run(features[repeat : repeat + 1], present[repeat : repeat + 1])
                latency[name].append(1000 * (time.perf_counter() - start))
        wanted = model(features, present)
        sys.stdout.write(
            "| where | size, kB | latency, ms | largest difference | accumulator | valve |\n"
        )
        sys.stdout.write("| --- | --- | --- | --- | --- | --- |\n")
        for name, (size, run, most) in forms.items():
            batch = most or len(features)
            parts = zip(features.split(batch), present.split(batch), strict=True)
            found = torch.cat([run(*part) for part in parts])
            scores = dict(zip(hydraulic.TARGETS, found.split(4, dim=1), strict=True))
            accuracy = [
                hydraulic.macro_accuracy(scores[target].argmax(dim=1), labels[test])
                for target, labels in cycles.labels.items()
            ]
            sys.stdout.write(
                f"| {name} | {'' if size is None else f'{size / 1000:.0f}'} "
                f"| {statistics.median(latency[name]):.2f} "
                f"| {(found - wanted).abs().max():.1g} | {accuracy[0]:.3f} | {accuracy[1]:.3f} |\n"
            )


def convert(model: nn.Module, folder: Path, example: tuple[Tensor, Tensor]) -> dict[str, Form]:
    """Return the model in each form."""
    batch = {0: Dim.DYNAMIC}
    compiled = torch.compile(model, fullgraph=True)
    forms = {"PyTorch, eager": Form(None, model), "PyTorch, compiled": Form(None, compiled)}
    with torch.inference_mode(mode=False), torch.no_grad():
        for opset in OPSETS:
            path = folder / f"{opset}.onnx"
            program = torch.onnx.export(
                model, example, dynamic_shapes=(batch, batch), opset_version=opset, dynamo=True,
                verbose=False,
            )  # fmt: skip
            common.DeduplicateInitializersPass(size_limit=2**30)(program.model)
            common.ClearMetadataAndDocStringPass()(program.model)
            program.save(path)
            forms[f"onnxruntime, opset {opset}"] = Form(path.stat().st_size, onnx_session(path))
        small = folder / "int8.onnx"
        settings = onnxruntime.SessionOptions()
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        settings.optimized_model_filepath = str(small)
        onnxruntime.InferenceSession(folder / "20.onnx", settings)
        folded = onnx.load(small)
        del folded.graph.value_info[:]
        onnx.save(folded, small)
        quantize_dynamic(small, small, weight_type=QuantType.QInt8, per_channel=True)
        forms["onnxruntime, int8"] = Form(small.stat().st_size, onnx_session(small))
        one = tuple(x[:1].clone() for x in example)
        lowered = to_edge_transform_and_lower(
            export(model, one), partitioner=[XnnpackPartitioner()]
        ).to_executorch()
        (folder / "fusion.pte").write_bytes(lowered.buffer)
        method = Runtime.get().load_program(folder / "fusion.pte").load_method("forward")
        # Its lowering fixes the batch.
        forms["ExecuTorch, XNNPACK"] = Form(
            len(lowered.buffer),
            lambda x, p: method.execute([x.contiguous(), p.contiguous()])[0].clone(),
            batch=1,
        )
        package = folder / "fusion.pt2"
        torch._inductor.aoti_compile_and_package(  # noqa: SLF001 (its documented name)
            export(model, example, dynamic_shapes=(batch, batch)), package_path=str(package)
        )
        loaded = torch._inductor.aoti_load_package(str(package))  # noqa: SLF001
        forms["AOTInductor"] = Form(package.stat().st_size, loaded)
    return forms


def onnx_session(path: Path) -> Run:
    """Load a file and return a callable that runs it on one thread."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, settings)
    names = [given.name for given in session.get_inputs()]

    def run(*tensors: Tensor) -> Tensor:
        given = {name: x.numpy() for name, x in zip(names, tensors, strict=True)}
        return torch.from_numpy(session.run(None, given)[0])

    return run


if __name__ == "__main__":
    main()
