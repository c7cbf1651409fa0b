"""GRF in and behind models that people have: Hugging Face, timm, PyTorch's own, and the hub."""

import copy
import json
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import properties
from grf_fusion import AdaptedModel, FusionAdapter, GatedRecurrentFusion, mask_from_lengths
from hosts import counters, load
from properties import assert_close, assert_same_bits

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
WIDTHS = {"image": 7, "audio": 11}
DIM, HEADS, BATCH = 24, 3, 4

pytestmark = [
    pytest.mark.slow,
    # Of the libraries themselves, not of what is done with them.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


class Case:
    """A host, its arguments, and where in it the adapters go."""

    def __init__(
        self,
        host: nn.Module,
        layers: tuple[str, ...],
        args: tuple[Tensor, ...] = (),
        kwargs: dict[str, Any] | None = None,
        *,
        mask: Tensor | None = None,
    ) -> None:
        self.host = host.eval()
        self.layers = layers
        self.args = args
        self.kwargs = kwargs or {}
        self.mask = mask

    def adapt(self) -> AdaptedModel:
        adapters = {n: FusionAdapter(WIDTHS, embed_dim=DIM, num_heads=HEADS) for n in self.layers}
        return AdaptedModel(copy.deepcopy(self.host), adapters=adapters).eval()


def bert() -> Case:
    transformers = load("transformers")
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=DIM,
        num_hidden_layers=10,
        num_attention_heads=HEADS,
        intermediate_size=31,
    )
    mask = mask_from_lengths(torch.tensor([5, 2, 4, 1]), 5)
    tokens = {"input_ids": torch.randint(50, (BATCH, 5)), "attention_mask": mask.long()}
    layers = ("encoder.layer.4", "encoder.layer.8")
    return Case(transformers.BertModel(config), layers, (), tokens, mask=mask)


def vit() -> Case:
    host = load("timm").create_model(
        "vit_tiny_patch16_224",
        pretrained=False,
        img_size=32,
        embed_dim=DIM,
        num_heads=HEADS,
        depth=4,
        num_classes=5,
    )
    return Case(host, ("blocks.1", "blocks.3"), (torch.randn(BATCH, 3, 32, 32),))


def encoder() -> Case:
    layer = nn.TransformerEncoderLayer(DIM, HEADS, 31, batch_first=True)
    host = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    mask = mask_from_lengths(torch.tensor([5, 2, 4, 1]), 5)
    padding = {"src_key_padding_mask": ~mask}
    return Case(host, ("layers.0", "layers.1"), (torch.randn(BATCH, 5, DIM),), padding, mask=mask)


HOSTS = {"bert": bert, "vit": vit, "encoder": encoder}
each_host = pytest.mark.parametrize("name", HOSTS)


def others(batch: int = BATCH) -> dict[str, Any]:
    features = {"image": torch.randn(batch, 6, 7), "audio": torch.randn(batch, 9, 11)}
    return {"features": features, "masks": {"audio": torch.rand(batch, 9) > 0.4}}


def tensor_of(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output.last_hidden_state


@each_host
def test_host_stays_bit_for_bit_what_it_was(name: str) -> None:
    case = HOSTS[name]()
    model = case.adapt()
    wanted = tensor_of(case.host(*case.args, **case.kwargs))
    result = tensor_of(model(*case.args, **case.kwargs, **others(), hidden_mask=case.mask))
    assert_same_bits({"": result}, {"": wanted})
    assert list(model.host.state_dict()) == list(case.host.state_dict())
    model.host.load_state_dict(case.host.state_dict(), strict=True)
    removed = model.remove()
    assert_same_bits({"": tensor_of(removed(*case.args, **case.kwargs))}, {"": wanted})


@each_host
def test_trained_adapters_change_those_who_have_something_and_nobody_else(name: str) -> None:
    case = HOSTS[name]()
    model = case.adapt()
    properties.randomise(model.adapters, seed=5)
    present = torch.tensor([[True, True], [False, False], [False, True], [False, False]])
    more = others()
    more["masks"]["audio"][:, 0] = True
    more["features"]["audio"][~present[:, 1]] = float("nan")
    given = {**case.kwargs, **more, "hidden_mask": case.mask, "present": present}
    result = tensor_of(model(*case.args, **given))
    wanted = tensor_of(case.host(*case.args, **case.kwargs))
    nothing = ~present.any(dim=1)
    assert result.isfinite().all()
    assert_same_bits({"": result[nothing]}, {"": wanted[nothing]})
    assert (result - wanted)[~nothing].flatten(1).abs().amax(dim=1).all()


@each_host
def test_gradients_reach_the_adapters_from_the_first_step(name: str) -> None:
    case = HOSTS[name]()
    model = case.adapt()
    for at_start in (True, False):
        model.zero_grad()
        output = model(*case.args, **case.kwargs, **others(), hidden_mask=case.mask)
        tensor_of(output).pow(3).sum().backward()
        found = {n: p.grad for n, p in model.adapters.named_parameters()}
        assert all(gradient is not None for gradient in found.values())
        learns = {n for n, gradient in found.items() if gradient is not None and gradient.any()}
        gates = {n for n in found if n.endswith("gate_scale")}
        assert learns == (gates if at_start else set(found))
        properties.randomise(model.adapters, seed=5)


@each_host
def test_compiled_as_one_graph(name: str) -> None:
    torch.compiler.reset()
    counters().clear()
    case = HOSTS[name]()
    model = case.adapt()
    properties.randomise(model.adapters, seed=5)
    given = {**case.kwargs, **others(), "hidden_mask": case.mask}
    present = torch.tensor([[True, True], [False, False], [False, True], [True, False]])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for who in (present, ~present):
        result = tensor_of(compiled(*case.args, **given, present=who))
        wanted = tensor_of(model(*case.args, **given, present=who))
        assert_close({"": result}, {"": wanted}, 1e-4)
    assert counters()["stats"]["unique_graphs"] == 1
    torch.compiler.reset()


def test_saved_for_the_hub(tmp_path: Path) -> None:
    class HubFusion(GatedRecurrentFusion, load("huggingface_hub").PyTorchModelHubMixin):
        """A fusion that can be saved to the hub and loaded from it."""

    # Pairs, because the hub writes a mapping with its keys sorted: the order of fusion.
    pairs = list(WIDTHS.items())
    fusion = HubFusion(
        pairs, embed_dim=DIM, num_heads=HEADS, form="residual", norm_first=True
    ).eval()
    fusion.save_pretrained(tmp_path)
    again = HubFusion.from_pretrained(tmp_path)
    features = others()["features"]
    assert_same_bits({"": again(features)}, {"": fusion(features)})
    stored = load_file(tmp_path / "model.safetensors", device=str(torch.get_default_device()))
    assert_same_bits(stored, dict(fusion.state_dict()))
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert config["modalities"] == [list(pair) for pair in pairs]
    assert list(again.modalities) == list(WIDTHS) != sorted(WIDTHS)
    assert config["norm_first"] is True
    assert not list(tmp_path.glob("*.bin"))


EXPECTED = {
    "encoders.py": ([], ["fused  (3, 64)", "these samples change: [1]"]),
    "insert_into_transformer.py": (
        ["--steps", "2"],
        [
            "as it was, bit for bit: True",
            "keys are unchanged: True",
            "All keys matched",
            "bit for bit the host: True",
            "taken out again, bit for bit: True",
        ],
    ),
    "text_image_audio.py": (
        ["--samples", "9", "--epochs", "1"],
        ["modality", "without audio: ", "the same after loading: True", "by its text alone:"],
    ),
    "streaming.py": (["--ticks", "3"], ["between the two ways: 0\n", "from cached language"]),
}


def test_digits_are_seen_and_heard(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data", str(data_dir), "--epochs", "1", "--seeds", "1"]
    monkeypatch.setattr(sys, "argv", ["digits.py", *arguments])
    module = runpy.run_path(str(EXAMPLES / "digits.py"), run_name="__main__")
    sizes, result = capsys.readouterr().out.splitlines()
    assert sizes == "{'train': 2000, 'valid': 500, 'test': 500}"
    # Chance is 0.1; one epoch is enough to be far from it.
    assert all(float(value) > 0.25 for value in re.findall(r"0\.\d{3}", result))
    assert len(re.findall(r"0\.\d{3}", result)) == 3
    parts = module["read"](data_dir)
    pictures = {
        part: {sample["image"].numpy().tobytes() for sample in samples}
        for part, samples in parts.items()
    }
    assert not pictures["train"] & pictures["test"]
    assert not pictures["valid"] & pictures["test"]


@pytest.mark.cpu_only
@pytest.mark.parametrize("name", EXPECTED)
def test_example_runs(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, lines = EXPECTED[name]
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    printed = capsys.readouterr().out
    for line in lines:
        assert line in printed
