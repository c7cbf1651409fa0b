"""Fusion inside somebody else's layers: the formula, and a host that stays what it is."""

import copy
import pickle
import threading
from collections.abc import Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any

import pytest
import torch
from hypothesis import given
from torch import Tensor, nn
from torch.export import Dim, export

import properties
import strategies
from grf_fusion import AdaptedModel, FusionAdapter, ShapeError
from hosts import counters
from properties import HIDDEN, NAN, assert_close, assert_same_bits
from reference import reference_adapter
from refusal import assert_refused
from strategies import AdapterCall

QUICK = strategies.examples(60)
WIDTHS = {"image": 7, "audio": 11}
DIM, HEADS, BATCH, TIME = 15, 3, 5, 4
Named = dict[str, Tensor]


def make_adapter(modalities: Mapping[str, int] = WIDTHS, **options: Any) -> FusionAdapter:
    return FusionAdapter(modalities, **{"embed_dim": DIM, "num_heads": HEADS} | options)


class Layer(nn.Module):
    """A host's layer, whose output is a tensor or the first of a tuple."""

    def __init__(self, *, several: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(DIM, DIM)
        self.several = several

    def forward(self, x: Tensor, scale: float = 1.0) -> Any:
        x = x + scale * self.linear(x).tanh()
        return (x, "weights") if self.several else x


class Host(nn.Module):
    """Three layers, the second of which returns a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(several=k == 1) for k in range(3))

    def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
        x = self.layers[0](x, scale)
        x, rest = self.layers[1](x, scale)
        assert rest == "weights"
        return self.layers[2](x, scale)


def negated(value: Any) -> Any:
    """Other features of the same shapes; masks and presence as they are."""
    if isinstance(value, dict):
        return {name: negated(part) for name, part in value.items()}
    floating = isinstance(value, Tensor) and value.is_floating_point()
    return -value if floating else value


def make_model(*, opened: bool = False) -> AdaptedModel:
    """Image and audio behind the first layer, audio alone behind the second."""
    torch.manual_seed(1)
    adapters = {
        "layers.0": make_adapter(),
        "layers.1": make_adapter({"audio": WIDTHS["audio"]}),
    }
    model = AdaptedModel(Host(), adapters=adapters)
    if opened:
        properties.randomise(model.adapters, seed=2)
    return model


def make_call(batch: int = BATCH, times: tuple[int, int, int] = (TIME, 3, 2)) -> dict[str, Any]:
    generator = torch.Generator(torch.get_default_device()).manual_seed(batch)
    time, *lengths = times
    features = {
        name: torch.randn(batch, length, width, generator=generator)
        for (name, width), length in zip(WIDTHS.items(), lengths, strict=True)
    }
    masks = {
        name: torch.rand(x.shape[:2], generator=generator) > 0.3 for name, x in features.items()
    }
    mask = torch.rand(batch, time, generator=generator) > 0.3
    return {"features": features, "masks": masks, "hidden_mask": mask}


def host_input(batch: int = BATCH, time: int = TIME) -> Tensor:
    return torch.randn(
        batch, time, DIM, generator=torch.Generator(torch.get_default_device()).manual_seed(7)
    )


def expected(call: AdapterCall, params: Named, inputs: Named) -> Tensor:
    kept = ("num_heads", "activation", "norm_first", "self_attention", "symmetric")
    return reference_adapter(
        params,
        inputs[HIDDEN],
        {name: inputs.get(name) for name in call.features},
        modalities=call.modalities,
        mask=call.mask,
        masks=call.masks,
        present=call.present,
        **{name: call.options[name] for name in kept},
    )


def assert_is_the_formula(call: AdapterCall) -> None:
    # Of padding the reference passes on what it holds, so it holds 0 here.
    case = properties.adapter_case(call).filled(torch.zeros_like)
    actual = {name: value.detach() for name, value in case.outputs().items()} | case.gradients()
    params = {n: p.detach().double().requires_grad_() for n, p in case.module.named_parameters()}
    inputs = {n: x.double().requires_grad_() for n, x in case.values.items()}
    hidden = expected(call, params, inputs)
    if call.mask is not None:
        hidden = hidden * call.mask.bool().unsqueeze(-1)
    leaves = params | inputs
    slopes = torch.autograd.grad(
        properties.weighted_sum({HIDDEN: hidden}), list(leaves.values()), materialize_grads=True
    )
    wanted = {f"gradient of {n}": slope for n, slope in zip(leaves, slopes, strict=True)}
    assert_close(actual, {HIDDEN: hidden.detach()} | wanted)


class TestAdapter:
    @QUICK
    @given(strategies.adapter_calls(smooth=True))
    def test_is_the_formula(self, call: AdapterCall) -> None:
        assert_is_the_formula(call)

    def test_modality_may_be_called_hidden(self) -> None:
        options = dict.fromkeys(("norm_first", "symmetric", "checkpoint"), False)
        call = AdapterCall(
            modalities={"hidden": 7},
            options=options
            | {"embed_dim": 15, "num_heads": 3, "activation": "gelu"}
            | {"self_attention": True},
            hidden=torch.randn(2, 5, 15, dtype=torch.float64),
            mask=torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]]),
            features={"hidden": torch.randn(2, 3, 7, dtype=torch.float64)},
            masks=None,
            present=None,
            dtype=torch.float64,
            seed=0,
        )
        assert_is_the_formula(call)

    @pytest.mark.slow
    @strategies.examples(250)
    @given(strategies.adapter_calls(smooth=True))
    def test_is_the_formula_thoroughly(self, call: AdapterCall) -> None:
        assert_is_the_formula(call)

    @strategies.examples(30)
    @given(strategies.adapter_calls())
    def test_at_the_start_is_the_identity_in_training_too(self, call: AdapterCall) -> None:
        adapter = FusionAdapter(call.modalities, dropout=0.3, **call.options, dtype=call.dtype)
        arguments = {"mask": call.mask, "masks": call.masks, "present": call.present}
        # No row of zeros, whose sign is lost.
        result = adapter.train()(call.hidden, call.features, **arguments)
        assert_same_bits({"": result}, {"": call.hidden})

    @strategies.examples(30)
    @given(strategies.adapter_calls())
    def test_absent_modality_changes_no_bit(self, call: AdapterCall) -> None:
        case = properties.adapter_case(call)
        adapter = case.module
        samples = torch.arange(len(call.hidden)) % 2 == 0
        present = samples.unsqueeze(1).expand(-1, len(call.modalities))
        result = adapter(call.hidden, call.features, mask=call.mask, present=~present)
        assert_same_bits({"": result[samples]}, {"": call.hidden[samples]})
        assert_same_bits({"": adapter(call.hidden, {})}, {"": call.hidden})

    def test_padding_passes_as_it_is(self) -> None:
        adapter = make_adapter()
        properties.randomise(adapter, seed=3)
        call = make_call()
        mask = call.pop("hidden_mask")
        hidden = host_input().masked_fill(~mask.unsqueeze(-1), NAN)
        result = adapter(hidden, **call, mask=mask)
        assert_same_bits({"": result[~mask]}, {"": hidden[~mask]})
        assert (result[mask] != hidden[mask]).any(dim=-1).all()

    def test_gradients_flow_from_the_first_step_and_to_everything_from_the_second(self) -> None:
        adapter = make_adapter()
        optimizer = torch.optim.SGD(adapter.parameters(), lr=0.1)
        call = make_call()
        mask = call.pop("hidden_mask")
        moved = []
        for _ in range(2):
            optimizer.zero_grad()
            adapter(host_input(), **call, mask=mask).pow(3).sum().backward()
            gradients = {n: p.grad for n, p in adapter.named_parameters()}
            assert None not in gradients.values()
            moved.append({n for n, g in gradients.items() if g is not None and g.any()})
            optimizer.step()
        assert moved == [{"unit.gate_scale"}, set(gradients)]

    @pytest.mark.parametrize("how", ["left out", "present", "masked"])
    def test_absence_keeps_every_parameter_in_the_graph(self, how: str) -> None:
        adapter = make_adapter()
        properties.randomise(adapter, seed=3)
        call = make_call()
        del call["hidden_mask"]
        if how == "left out":
            call = {"features": {}}
        elif how == "present":
            call["present"] = torch.zeros(BATCH, 2, dtype=torch.bool)
        else:
            call["masks"] = {name: torch.zeros_like(m) for name, m in call["masks"].items()}
        adapter(host_input(), **call).sum().backward()
        for name, parameter in adapter.named_parameters():
            assert parameter.grad is not None, name
            assert not parameter.grad.any(), name

    @pytest.mark.compile
    def test_one_graph_for_all_sizes_and_absences(self) -> None:
        torch.compiler.reset()
        counters().clear()
        adapter = make_adapter()
        properties.randomise(adapter, seed=3)
        compiled = torch.compile(adapter, fullgraph=True, dynamic=True, backend="aot_eager")
        for batch, times in ((5, (23, 29, 31)), (3, (6, 2, 7)), (2, (3, 5, 4))):
            call = make_call(batch, times)
            call["mask"] = call.pop("hidden_mask")
            call["present"] = torch.tensor([[True, False], [False, True]]).repeat(3, 1)[:batch]
            hidden = host_input(batch, times[0])
            assert_close({"": compiled(hidden, **call)}, {"": adapter(hidden, **call)})
        assert counters()["stats"]["unique_graphs"] == 1

    # Measured, unlike other exports: these lines of ours run nowhere else.
    def test_export(self) -> None:
        adapter = make_adapter().eval()
        properties.randomise(adapter, seed=3)
        both = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
        each = dict.fromkeys(WIDTHS, both)
        call = make_call()
        call["mask"] = call.pop("hidden_mask")
        dynamic = {"hidden": both, "features": each, "masks": each, "mask": both}
        program = export(adapter, (host_input(),), call, dynamic_shapes=dynamic)
        call = make_call(3, (6, 2, 7))
        call["mask"] = call.pop("hidden_mask")
        hidden = host_input(3, 6)
        assert_close({"": program.module()(hidden, **call)}, {"": adapter(hidden, **call)})

    def test_state_dict_keys(self) -> None:
        keys = set(make_adapter(num_layers=1).state_dict())
        outside = {key for key in keys if not key.startswith("block.")}
        assert outside == {
            "norm.bias",
            "norm.weight",
            "projections.audio.bias",
            "projections.audio.weight",
            "projections.image.bias",
            "projections.image.weight",
            "unit.gate_scale",
            "unit.linear.bias",
            "unit.linear.weight",
        }

    @pytest.mark.parametrize(
        ("change", "argument", "got"),
        [
            ({"modalities": {}}, "modalities", "got none"),
            ({"embed_dim": 0}, "embed_dim", "got 0"),
            ({"num_heads": 2}, "num_heads", "got embed_dim=15 and num_heads=2"),
        ],
        ids=str,
    )
    def test_refuses_what_it_cannot_be_built_from(
        self, change: dict[str, Any], argument: str, got: str
    ) -> None:
        assert_refused(
            lambda: make_adapter(**change),
            who="FusionAdapter",
            argument=argument,
            got=got,
            error=ValueError,
        )

    @pytest.mark.parametrize(
        ("change", "argument", "got"),
        [
            ({"hidden": "text"}, "hidden", "got str"),
            ({"hidden": torch.zeros(BATCH, DIM)}, "hidden", f"got ({BATCH}, {DIM})"),
            ({"hidden": torch.zeros(BATCH, TIME, 13)}, "hidden", f"got ({BATCH}, {TIME}, 13)"),
            ({"hidden": torch.zeros(BATCH, 0, DIM)}, "hidden", "got time=0"),
            ({"hidden": torch.zeros(BATCH, TIME, DIM).half()}, "hidden", "got torch.float16"),
            ({"hidden": torch.zeros(2, TIME, DIM)}, "mask", f"got ({BATCH}, {TIME})"),
            (
                {"hidden": torch.zeros(2, TIME, DIM), "mask": None},
                "features['image']",
                f"got ({BATCH}, 3, 7)",
            ),
            ({"mask": torch.ones(BATCH, TIME)}, "mask", "got torch.float32"),
            ({"mask": torch.ones(BATCH, 3).bool()}, "mask", f"got ({BATCH}, 3)"),
            ({"features": {"smell": torch.zeros(1)}}, "features", "unexpected ['smell']"),
            ({"present": torch.ones(BATCH, 3).bool()}, "present", f"got ({BATCH}, 3)"),
        ],
        ids=str,
    )
    def test_refuses_a_wrong_call(self, change: dict[str, Any], argument: str, got: str) -> None:
        adapter = make_adapter()
        call = make_call()
        call = {"hidden": host_input(), "mask": call.pop("hidden_mask")} | call | change
        assert_refused(
            lambda: adapter(**call),
            who="FusionAdapter",
            argument=argument,
            got=got,
            error=ShapeError,
            module=adapter,
        )

    # PyTorch says that nested tensors are a prototype.
    @pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
    def test_refuses_nested_hidden_states(self) -> None:
        nested = torch.nested.nested_tensor([torch.zeros(3, DIM), torch.zeros(2, DIM)])
        with pytest.raises(ShapeError, match=r"`hidden` .* nested .*enable_nested_tensor=False"):
            make_adapter()(nested, {})


class TestAdaptedModel:
    def test_at_the_start_changes_no_bit_of_the_host(self) -> None:
        model = make_model()
        plain = copy.deepcopy(model).remove()
        for training in (False, True):
            result = model.train(training)(host_input(), **make_call(), scale=0.7)
            wanted = plain.train(training)(host_input(), scale=0.7)
            assert_same_bits({"": result}, {"": wanted})

    def test_calls_of_several_threads_are_kept_apart(self) -> None:
        """Each reads its own features, though all are in the same layer at the same time."""
        model = make_model(opened=True).eval()
        inputs = [(host_input(), make_call())]
        inputs.append((inputs[0][0], {k: negated(v) for k, v in inputs[0][1].items()}))
        alone = [model(x, **call) for x, call in inputs]
        assert not torch.allclose(*alone)
        together = threading.Barrier(2, timeout=60)

        def meet(*_: object) -> None:
            together.wait()

        for layer in model.host.layers:
            layer.register_forward_pre_hook(meet)
        device = torch.get_default_device()

        def begin() -> None:
            # The default device is that of a thread. cuBLAS warns in a thread that has not used it.
            torch.set_default_device(device)
            torch.zeros(1)

        with ThreadPoolExecutor(2, initializer=begin) as pool:
            futures = [pool.submit(model, x, **call) for x, call in inputs]
            # The first error; the other thread then fails too, because it waits in vain.
            for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                future.result()
        found = [future.result() for future in futures]
        assert_same_bits(dict(enumerate(found)), dict(enumerate(alone)))

    def test_a_host_has_one_set_of_adapters(self) -> None:
        model = make_model()
        with pytest.raises(
            ValueError, match=r"`host` without adapters, got .* 'layers\.0'"
        ) as said:
            AdaptedModel(model.host, adapters={"layers.2": make_adapter()})
        assert "`remove()`" in str(said.value)
        AdaptedModel(model.remove(), adapters={"layers.2": make_adapter()})

    def test_hosts_checkpoints_load_before_and_after(self) -> None:
        plain, model = Host(), make_model()
        assert list(model.host.state_dict()) == list(plain.state_dict())
        model.host.load_state_dict(plain.state_dict(), strict=True)
        wanted = plain(host_input())
        assert_same_bits({"": model(host_input(), **make_call())}, {"": wanted})
        host = model.remove()
        assert_same_bits({"": host(host_input())}, {"": wanted})
        plain.load_state_dict(host.state_dict(), strict=True)
        assert not any(layer._forward_hooks for layer in host.modules())

    def test_is_the_adapters_between_the_layers(self) -> None:
        model = make_model(opened=True).eval()
        call, (first, second) = make_call(), model.adapters
        mask, features, masks = call["hidden_mask"], call["features"], call["masks"]
        plain = copy.deepcopy(model).remove()
        x = first(plain.layers[0](host_input()), features, mask=mask, masks=masks)
        audio = {"audio": features["audio"]}, {"audio": masks["audio"]}
        x = second(plain.layers[1](x)[0], audio[0], mask=mask, masks=audio[1])
        wanted = plain.layers[2](x)
        assert_same_bits({"": model(host_input(), **call)}, {"": wanted})
        assert (wanted - plain(host_input())).abs().amax(dim=-1)[mask].all()

    def test_presence_reaches_the_adapter_that_declares_the_modality(self) -> None:
        model = make_model(opened=True).eval()
        assert model.modalities == WIDTHS
        call = make_call()
        present = torch.tensor([[True, True], [True, False], [False, True], [False, False]])
        present = present[torch.arange(BATCH) % 4]
        for name, column in zip(WIDTHS, present.unbind(1), strict=True):
            call["masks"][name][:, 0] = True
            call["features"][name][~column] = NAN
        result = model(host_input(), **call, present=present)
        nothing = ~present.any(dim=1)
        plain = copy.deepcopy(model).remove()(host_input())
        assert result.isfinite().all()
        assert_same_bits({"": result[nothing]}, {"": plain[nothing]})
        masks = {
            name: call["masks"][name] & present[:, [column]] for column, name in enumerate(WIDTHS)
        }
        same = model(host_input(), **call | {"masks": masks})
        assert_same_bits({"": same}, {"": result})

    def test_without_features_runs_the_host_and_keeps_every_parameter_in_the_graph(self) -> None:
        model = make_model(opened=True)
        result = model(host_input(), features={})
        result.sum().backward()
        assert_same_bits({"": result}, {"": copy.deepcopy(model).remove()(host_input())})
        for name, parameter in model.adapters.named_parameters():
            assert parameter.grad is not None, name
            assert not parameter.grad.any(), name

    @pytest.mark.parametrize("how", ["deepcopy", "pickle"])
    def test_can_be_copied(self, how: str) -> None:
        model = make_model(opened=True).eval()
        wanted = model(host_input(), **make_call())
        copied = copy.deepcopy if how == "deepcopy" else lambda m: pickle.loads(pickle.dumps(m))  # noqa: S301
        twin = copied(model)
        assert_same_bits({"": twin(host_input(), **make_call())}, {"": wanted})
        with torch.no_grad():
            twin.adapters[0].unit.gate_scale.zero_()
        assert (twin(host_input(), **make_call()) - wanted).abs().max() > 0
        assert_same_bits({"": model(host_input(), **make_call())}, {"": wanted})
        twin.remove()
        assert_same_bits({"": model(host_input(), **make_call())}, {"": wanted})

    @pytest.mark.compile
    def test_one_graph_serves_all_sizes(self) -> None:
        torch.compiler.reset()
        counters().clear()
        model = make_model(opened=True)
        compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
        for batch, times in ((5, (23, 29, 31)), (3, (6, 2, 7)), (2, (3, 5, 4))):
            call = make_call(batch, times)
            x = host_input(batch, times[0])
            present = torch.tensor([[True, False], [False, True]]).repeat(3, 1)[:batch]
            actual = compiled(x, **call, present=present)
            assert_close({"": actual}, {"": model(x, **call, present=present)})
        assert counters()["stats"]["unique_graphs"] == 1

    def test_shows_where_the_adapters_are(self) -> None:
        assert "layers=('layers.0', 'layers.1')" in repr(make_model())

    def test_host_cannot_be_called_around_it(self) -> None:
        model = make_model()
        with pytest.raises(ShapeError, match=r"expected `host` to run .*'layers\.0'.*remove"):
            model.host(host_input())
        # The call that failed leaves nothing behind, nor does one that fails inside.
        with pytest.raises(TypeError, match="unknown"):
            model(host_input(), features={}, unknown=1)
        with pytest.raises(ShapeError, match="expected `host` to run inside"):
            model.host(host_input())

    def test_layer_without_hidden_states(self) -> None:
        class Odd(nn.Module):
            def forward(self, _x: Tensor, output: Any) -> Any:
                return output

        model = AdaptedModel(Odd(), adapters={"": make_adapter()})
        for output, name in ((None, "NoneType"), ((), "tuple"), (("a",), "str")):
            with pytest.raises(ShapeError, match=rf"`adapters\[''\]` .* got {name}\.$"):
                model(host_input(), output, features={})

    @pytest.mark.parametrize(
        ("change", "argument", "got"),
        [
            ({"features": None}, "features", "got NoneType"),
            ({"features": {"smell": torch.zeros(1)}}, "features", "unexpected ['smell']"),
            ({"masks": {"smell": torch.zeros(1)}}, "masks", "unexpected ['smell']"),
        ],
        ids=str,
    )
    def test_refuses_a_wrong_call(self, change: dict[str, Any], argument: str, got: str) -> None:
        model, x, call = make_model(), host_input(), make_call() | change
        assert_refused(
            lambda: model(x, **call),
            who="AdaptedModel",
            argument=argument,
            got=got,
            error=ShapeError,
            module=model,
        )

    def test_refuses_a_wrong_presence(self) -> None:
        with pytest.raises(ShapeError, match=r"AdaptedModel: expected `present` .*modalities=2"):
            make_model()(host_input(), **make_call(), present=torch.ones(BATCH, 1).bool())

    @pytest.mark.parametrize(
        ("host", "adapters", "argument", "got"),
        [
            (lambda x: x, {"": make_adapter()}, "host", "got function"),
            (Host(), {}, "adapters", "got {}"),
            (Host(), [make_adapter()], "adapters", "got [FusionAdapter"),
            (Host(), {"layers.0": nn.Linear(2, 3)}, "adapters['layers.0']", "got Linear"),
            (Host(), {"layers.3": make_adapter()}, "adapters", "got 'layers.3'"),
            (
                Host(),
                {"layers.0": make_adapter(), "layers.1": make_adapter({"audio": 5})},
                "adapters",
                "got 11 and 5",
            ),
        ],
        ids=["function", "none", "list", "linear", "unknown", "widths"],
    )
    def test_refuses_what_it_cannot_be_built_from(
        self, host: Any, adapters: Any, argument: str, got: str
    ) -> None:
        assert_refused(
            lambda: AdaptedModel(host, adapters=adapters),
            who="AdaptedModel",
            argument=argument,
            got=got,
            error=ValueError,
        )
        assert not isinstance(host, Host) or not any(m._forward_hooks for m in host.modules())
