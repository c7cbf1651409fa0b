"""What only a GPU can show; run by `pytest --device cuda`.

Here no device is chosen for the whole process, as in the other tests: every tensor says itself
where it lies, so that what the library makes must follow its input.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn.parallel import DistributedDataParallel

import properties
from forms import BASELINES, DIM, FUSIONS, HEADS, WIDTHS, make, make_call, without_dropout
from grf_fusion import (
    AdaptedModel,
    FusionAdapter,
    FusionState,
    GatedRecurrentFusion,
    ModalityDropout,
    collate,
    modulate_gradients,
)
from grf_fusion._eager import rows
from grf_fusion.checkpoints import load_checkpoint, save_checkpoint
from properties import assert_close, assert_same_bits
from reference import FusionConfig
from strategies import FusionCall

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
NAN = float("nan")
FORMS = [*FUSIONS, *BASELINES]
# Of the forms those that differ in what is computed, for what takes long.
FEW = ["default", "residual", "paper", "sequence", "linear attention", "mult"]
# Compiled, sums are taken in another order.
COMPILED = 2e-5

WAITS: dict[str, Callable[[Tensor], object]] = {
    "a number is read": lambda x: x.sum().item(),
    "a size is asked for": lambda x: x[x > 0],
    "a copy to the host": lambda x: x.cpu(),
    "a list becomes a tensor": lambda x: torch.tensor([1.0], device=x.device),
}

# Inductor warns of its decisions, and of a CUDA graph of its own that is empty.
compiles = pytest.mark.filterwarnings("ignore::UserWarning")
each_form = pytest.mark.parametrize("form", FORMS)
Named = dict[str, Tensor]


@pytest.fixture(autouse=True)
def no_default_device() -> Iterator[None]:
    torch.set_default_device(None)
    yield
    torch.set_default_device("cuda")


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


@contextmanager
def nothing_waits() -> Iterator[None]:
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def result(module: Callable[..., Tensor], call: dict[str, Any]) -> Tensor:
    """A number to minimise that every entry of the output has a say in, each its own."""
    out = module(**call)
    if out.ndim == 0:
        return out
    return (
        out.float() * torch.linspace(-1, 2, out[0].numel(), device=out.device).view_as(out[0])
    ).sum()


def learn(
    module: nn.Module, call: dict[str, Any], run: Callable[..., Tensor] | None = None
) -> Named:
    """The number and all gradients, those of the features among them; the module has none after."""
    leaves = {name: x.detach().clone().requires_grad_() for name, x in call["features"].items()}
    value = result(module if run is None else run, call | {"features": leaves})
    value.backward()
    found = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    found |= {f"features {name}": x.grad for name, x in leaves.items() if x.grad is not None}
    module.zero_grad(set_to_none=True)
    return {"result": value.detach()} | found


def hidden(call: dict[str, Any]) -> dict[str, Tensor]:
    columns = zip(call["masks"].items(), call["present"].unbind(1), strict=True)
    return {name: ~mask | ~column.unsqueeze(1) for (name, mask), column in columns}


class TestNothingWaits:
    """For the device: what tests/test_sync.py refuses, CUDA refuses here."""

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("training", [True, False])
    def test_forward_and_backward(self, form: str, training: bool) -> None:
        dropout = {"dropout": 0.2} if form in FUSIONS else {}
        module = make(form, **dropout, device=CUDA).train(training)
        call = make_call(CUDA)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        with nothing_waits():
            result(module, call).backward()
            optimizer.step()
        assert all(p.grad is not None for p in module.parameters())

    @pytest.mark.parametrize("form", FUSIONS)
    def test_steps(self, form: str) -> None:
        fusion: Any = make(form, device=CUDA)
        call = make_call(CUDA)
        with nothing_waits():
            state = None
            for name, present in zip(WIDTHS, call["present"].unbind(1), strict=True):
                features, mask = call["features"][name], call["masks"][name]
                state = fusion.step(state, name, features, mask=mask, present=present)
            fusion.readout(fusion.step(state, "image", None)).sum().backward()

    def test_adapters(self) -> None:
        host = nn.Sequential(nn.Linear(DIM, DIM), nn.Linear(DIM, DIM))
        adapter = FusionAdapter(WIDTHS, embed_dim=DIM, num_heads=HEADS, dropout=0.2)
        model = AdaptedModel(host, adapters={"0": adapter}).to(CUDA)
        hidden_states = torch.randn(5, 8, DIM, device=CUDA)
        mask = torch.rand(5, 8, device=CUDA) > 0.3
        call = make_call(CUDA)
        with nothing_waits():
            model(hidden_states, **call, hidden_mask=mask).sum().backward()

    def test_training_tools(self) -> None:
        fusion = GatedRecurrentFusion(WIDTHS, embed_dim=DIM, num_heads=HEADS, device=CUDA)
        drop, call = ModalityDropout(0.3), make_call(CUDA)
        logits = {name: torch.randn(5, 4, device=CUDA) for name in WIDTHS}
        targets = torch.zeros(5, dtype=torch.long, device=CUDA)
        with nothing_waits():
            present = drop(fusion.presence(**call))
            fusion(**call | {"present": present}).sum().backward()
            modulate_gradients(fusion.projections, logits, targets, alpha=0.5, present=present)

    @pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
    def test_waiting_is_seen(self, wait: Callable[[Tensor], object]) -> None:
        given = torch.ones(3, 2, device=CUDA)
        with pytest.raises(RuntimeError, match="synchroniz"), nothing_waits():
            wait(given)


@each_form
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gpu_computes_what_the_cpu_computes(form: str, dtype: torch.dtype) -> None:
    module = make(form, **without_dropout(form), dtype=dtype)
    properties.randomise(module, seed=3)
    expected = learn(module, make_call(CPU, dtype=dtype))
    found = learn(copy.deepcopy(module).to(CUDA), make_call(CUDA, dtype=dtype))
    assert_close({name: x.to(CPU) for name, x in found.items()}, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@each_form
def test_what_is_hidden_has_no_influence(form: str, dtype: torch.dtype) -> None:
    module = make(form, **without_dropout(form), device=CUDA, dtype=dtype)
    call = make_call(CUDA, dtype=dtype)
    zeros = {name: x.nan_to_num(0.0) for name, x in call["features"].items()}
    with properties.sums_in_one_order():
        found = learn(module, call)
        assert_same_bits(found, learn(module, call | {"features": zeros}))
    for name, places in hidden(call).items():
        assert call["features"][name][places].isnan().all()
        assert not found[f"features {name}"][places].any()
    assert all(bool(x.isfinite().all()) for x in found.values())


@pytest.mark.parametrize("context", ["pooled", "first_sequence", "sequence"])
@pytest.mark.parametrize("form", ["residual", "paper"])
def test_no_garbage_has_any_influence_in_bfloat16(form: str, context: str) -> None:
    with CUDA:
        config = FusionConfig(
            modalities=WIDTHS, embed_dim=DIM, num_heads=HEADS, form=form, context=context
        )
        fusion_call = FusionCall(
            config=config,
            **make_call(CUDA, dtype=torch.bfloat16),
            order=None,
            dtype=torch.bfloat16,
            seed=5,
        )
        properties.assert_padding_has_no_influence(properties.fusion_case(fusion_call))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@each_form
def test_training_in_half_precision(form: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module = make(form, device=CUDA)
    head = nn.Linear(DIM, 1, device=CUDA)
    parameters = [*module.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    scaler = torch.amp.GradScaler("cuda", enabled=dtype == torch.float16)
    call = make_call(CUDA, batch=16)
    target = torch.linspace(-1, 1, 16, device=CUDA)
    losses: list[float] = []
    for _ in range(40):
        with torch.autocast("cuda", dtype=dtype):
            fused = module(**call)
            if fused.ndim == 3:
                fused = fused.mean(dim=1)
            loss = fused if fused.ndim == 0 else (head(fused).squeeze(1) - target).square().mean()
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss.float()).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert all(bool(p.isfinite().all()) for p in parameters)
    assert all(map(torch.isfinite, map(torch.tensor, losses)))
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


@compiles
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("form", FEW)
def test_compiled_is_eager(form: str) -> None:
    module = make(form, **without_dropout(form), device=CUDA)
    fast = torch.compile(module, fullgraph=True)
    for seed in range(2):
        call = make_call(CUDA, seed=seed)
        assert_close(learn(module, call, fast), learn(module, call), COMPILED)
    assert counters["stats"]["unique_graphs"] == 1


@compiles
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("form", ["default", "residual", "sequence"])
def test_compiled_into_a_graph_of_cuda_is_eager(form: str) -> None:
    module = make(form, **without_dropout(form), device=CUDA)
    fast = torch.compile(module, fullgraph=True, mode="reduce-overhead")
    for seed in range(5):
        call = make_call(CUDA, seed=seed)
        torch.compiler.cudagraph_mark_step_begin()
        assert_close(learn(module, call, fast), learn(module, call), COMPILED)
    assert counters["inductor"]["cudagraph_skips"] == 0


@compiles
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_compiled_training_in_half_precision(dtype: torch.dtype) -> None:
    fusion = make("default", dropout=0.1, device=CUDA)
    fast = torch.compile(fusion, fullgraph=True)
    optimizer = torch.optim.AdamW(fusion.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cuda", enabled=dtype == torch.float16)
    for seed in range(5):
        with torch.autocast("cuda", dtype=dtype):
            loss = fast(**make_call(CUDA, seed=seed)).float().square().mean()
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        assert bool(loss.isfinite())
    assert all(bool(p.isfinite().all()) for p in fusion.parameters())


@pytest.mark.parametrize(
    "form", ["default", "residual", "paper", "sequence", "own weights", "early"]
)
def test_a_captured_step_serves_every_mask(form: str) -> None:
    module = make(form, **without_dropout(form), device=CUDA)
    call = make_call(CUDA)
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            result(module, call).backward()
            module.zero_grad(set_to_none=True)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = result(module, call)
        loss.backward()
        value = loss.detach()
    # With it goes what ties the parameters to the stream of the capture.
    del loss
    held = {name: p.grad for name, p in module.named_parameters()}
    for seed in range(1, 4):
        other = make_call(CUDA, seed=seed)
        for kind in ("features", "masks"):
            for name, tensor in call[kind].items():
                tensor.copy_(other[kind][name])
        call["present"].copy_(other["present"])
        graph.replay()
        found = {name: grad.clone() for name, grad in held.items() if grad is not None}
        found["result"] = value.clone()
        module.zero_grad(set_to_none=True)
        expected = learn(module, other)
        assert_close(found, {name: expected[name] for name in found})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", ["default", "residual", "sequence", "early"])
def test_memory_stays(form: str, dtype: torch.dtype) -> None:
    module = make(form, device=CUDA)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4)
    # The lengths differ from step to step; the longest come first.
    calls = [
        make_call(CUDA, batch=batch, times=dict.fromkeys(WIDTHS, time + more), seed=more)
        for more, (batch, time) in enumerate([(8, 20), (5, 4), (7, 11), (8, 3)])
    ]
    allocated = 0
    for step in range(500):
        with torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32):
            loss = result(module, calls[step % len(calls)])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        del loss
        if step == 19:
            allocated = torch.cuda.memory_allocated()
    assert torch.cuda.memory_allocated() == allocated


def test_one_process_of_nccl(tmp_path: Path) -> None:
    fusion = make("default", device=CUDA)
    dist.init_process_group(
        "nccl", init_method=f"file://{tmp_path}/store", rank=0, world_size=1, device_id=CUDA
    )
    try:
        shared = DistributedDataParallel(copy.deepcopy(fusion), device_ids=[0])
        optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (fusion, shared)]
        for seed in range(3):
            call = make_call(CUDA, seed=seed)
            for module, optimizer in zip((fusion, shared), optimizers, strict=True):
                optimizer.zero_grad()
                result(module, call).backward()
                optimizer.step()
            assert_close(
                {
                    name: p.grad
                    for name, p in shared.module.named_parameters()
                    if p.grad is not None
                },
                {name: p.grad for name, p in fusion.named_parameters() if p.grad is not None},
            )
        assert_close(dict(shared.module.state_dict()), dict(fusion.state_dict()))
    finally:
        dist.destroy_process_group()


def test_a_state_moves_to_the_gpu_and_back() -> None:
    fusion = GatedRecurrentFusion(WIDTHS, embed_dim=DIM, num_heads=HEADS).eval()
    properties.randomise(fusion, seed=2)
    call, twin = make_call(CPU), copy.deepcopy(fusion).to(CUDA)
    expected = fusion(**call)
    state = None
    for k, (name, features) in enumerate(call["features"].items()):
        one, place = ((fusion, CPU), (twin, CUDA))[k % 2]
        if state is not None:
            state = FusionState(*(part.to(place) for part in state))
        mask, present = call["masks"][name].to(place), call["present"][:, k].to(place)
        state = one.step(state, name, features.to(place), mask=mask, present=present)
    assert state is not None
    assert_close({"": fusion.readout(state)}, {"": expected})


def test_a_moved_batch_is_fused_without_padding() -> None:
    generator = torch.Generator("cpu").manual_seed(0)
    samples = [
        {name: torch.randn(time, width, generator=generator, device="cpu")}
        for time in (3, 90, 20, 7)
        for name, width in WIDTHS.items()
    ]
    batch = collate(samples, WIDTHS)
    fusion = GatedRecurrentFusion(WIDTHS, embed_dim=DIM, num_heads=HEADS).eval()
    expected = fusion(batch.features, masks=batch.masks, present=batch.present)
    twin, moved = copy.deepcopy(fusion).to(CUDA), batch.pin_memory().to(CUDA, non_blocking=True)
    torch.cuda.synchronize()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "WORTH_LAUNCHES", 0)
        masks = list(moved.masks.values())
        assert rows.worth_rows(masks, DIM, share=0.1)
        with nothing_waits():
            found = twin(moved.features, masks=moved.masks, present=moved.present)
    assert_close({"": found.to(CPU)}, {"": expected})


@pytest.mark.parametrize(("there", "here"), [(CUDA, CPU), (CPU, CUDA)])
def test_a_checkpoint_moves(there: torch.device, here: torch.device, tmp_path: Path) -> None:
    saved = GatedRecurrentFusion(WIDTHS, embed_dim=DIM, num_heads=HEADS, device=there)
    loaded = GatedRecurrentFusion(WIDTHS, embed_dim=DIM, num_heads=HEADS, device=here)
    save_checkpoint(saved, tmp_path / "fusion.pt")
    load_checkpoint(loaded, tmp_path / "fusion.pt")
    assert {p.device for p in loaded.parameters()} == {here}
    assert_same_bits({n: x.to(here) for n, x in saved.state_dict().items()}, loaded.state_dict())
