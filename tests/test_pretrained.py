"""The pretrained models that pages and examples name: their real configurations take the calls.

Weights cannot be had in a test. The configurations are those on the hub, written down here; what
depends on shapes, masks and widths is the same with random weights.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from grf_fusion import GatedRecurrentFusion, collate, mask_from_lengths
from hosts import load

REPOSITORY = Path(__file__).resolve().parents[1]
NAMED = re.compile(
    r"""(?:from_pretrained|create_model)\(\s*["']([^"']+)["']|[`"](facebook/[\w.-]+)[`"]"""
)
WAVES = (16_000, 9_000)

pytestmark = [
    pytest.mark.slow,
    # Of the libraries themselves.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

# As `facebook/wav2vec2-large-lv60` and `facebook/hubert-large-ll60k` have them on the hub.
LARGE_SPEECH: dict[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "conv_bias": True,
}


def bert(layers: int | None) -> nn.Module:
    cut = {} if layers is None else {"num_hidden_layers": layers}
    return load("transformers").BertModel(load("transformers").BertConfig(**cut))


def vit(layers: int | None) -> nn.Module:
    cut = {} if layers is None else {"num_hidden_layers": layers}
    return load("transformers").ViTModel(
        load("transformers").ViTConfig(**cut), add_pooling_layer=False
    )


def timm_vit(layers: int | None) -> nn.Module:
    cut = {} if layers is None else {"depth": layers}
    return load("timm").create_model("vit_base_patch16_224", pretrained=False, **cut)


def timm_resnet(_layers: int | None) -> nn.Module:
    return load("timm").create_model("resnet50", pretrained=False, features_only=True)


def resnet(_layers: int | None) -> nn.Module:
    return load("transformers").ResNetModel(load("transformers").ResNetConfig())


def wav2vec_base(layers: int | None) -> nn.Module:
    cut = {} if layers is None else {"num_hidden_layers": layers}
    return load("transformers").Wav2Vec2Model(load("transformers").Wav2Vec2Config(**cut))


def wav2vec_large(layers: int | None) -> nn.Module:
    cut = {} if layers is None else {"num_hidden_layers": layers}
    return load("transformers").Wav2Vec2Model(
        load("transformers").Wav2Vec2Config(**LARGE_SPEECH | cut)
    )


def hubert_large(layers: int | None) -> nn.Module:
    cut = {} if layers is None else {"num_hidden_layers": layers}
    return load("transformers").HubertModel(load("transformers").HubertConfig(**LARGE_SPEECH | cut))


def read_text(model: Any, device: str) -> tuple[Tensor, Tensor | None]:
    mask = mask_from_lengths(torch.tensor([7, 3]), 7).long().to(device)
    tokens = torch.randint(model.config.vocab_size, (2, 7)).to(device)
    return model(input_ids=tokens, attention_mask=mask).last_hidden_state, mask


def read_image(model: Any, device: str) -> tuple[Tensor, Tensor | None]:
    return model(torch.randn(2, 3, 224, 224, device=device)).last_hidden_state, None


def read_timm(model: Any, device: str) -> tuple[Tensor, Tensor | None]:
    return model.forward_features(torch.randn(2, 3, 224, 224, device=device)), None


def read_map(model: Any, device: str) -> tuple[Tensor, Tensor | None]:
    grid = model(torch.randn(2, 3, 224, 224, device=device)).last_hidden_state
    return grid.flatten(2).transpose(1, 2), None


def read_timm_map(model: Any, device: str) -> tuple[Tensor, Tensor | None]:
    grid = model(torch.randn(2, 3, 224, 224, device=device))[-1]
    return grid.flatten(2).transpose(1, 2), None


def read_speech(model: Any, device: str, *, masked: bool) -> tuple[Tensor, Tensor | None]:
    real = mask_from_lengths(torch.tensor(WAVES), max(WAVES)).long()
    waves = (torch.randn(real.shape) * real).to(device)
    options = {"attention_mask": real.to(device)} if masked else {}
    frames = model(waves, **options).last_hidden_state
    lengths = model._get_feat_extract_output_lengths(torch.tensor(WAVES))
    return frames, mask_from_lengths(lengths, frames.shape[1]).to(device)


def read_unmasked(model: Any, device: str) -> tuple[Tensor, Tensor | None]:
    return read_speech(model, device, masked=False)


def read_masked(model: Any, device: str) -> tuple[Tensor, Tensor | None]:
    return read_speech(model, device, masked=True)


Make = Callable[[int | None], nn.Module]
Read = Callable[[Any, str], tuple[Tensor, Tensor | None]]

# How it is built, how a page calls it, and the time and width of the result.
MODELS: dict[str, tuple[Make, Read, int, int]] = {
    "bert-base-uncased": (bert, read_text, 7, 768),
    "google/vit-base-patch16-224": (vit, read_image, 197, 768),
    "vit_base_patch16_224": (timm_vit, read_timm, 197, 768),
    "resnet50": (timm_resnet, read_timm_map, 49, 2048),
    "microsoft/resnet-50": (resnet, read_map, 49, 2048),
    "facebook/wav2vec2-base": (wav2vec_base, read_unmasked, 49, 768),
    "facebook/wav2vec2-large-lv60": (wav2vec_large, read_masked, 49, 1024),
    "facebook/hubert-large-ll60k": (hubert_large, read_masked, 49, 1024),
}
each_model = pytest.mark.parametrize("name", MODELS)


@each_model
def test_one_layer_is_read_and_fused(name: str) -> None:
    make, read, time, width = MODELS[name]
    model = make(1).eval()
    with torch.no_grad():
        features, mask = read(model, str(torch.get_default_device()))
    assert features.shape == (2, time, width)
    fusion = GatedRecurrentFusion({"it": width}, embed_dim=16, num_heads=2).eval()
    masks = None if mask is None else {"it": mask}
    whole = fusion({"it": features}, masks=masks)
    rows = [x if mask is None else x[mask[n].bool()] for n, x in enumerate(features)]
    batch = collate([{"it": row} for row in rows], {"it": width}).to(features.device)
    again = fusion(batch.features, masks=batch.masks, present=batch.present)
    assert torch.allclose(again, whole, atol=1e-5)


@each_model
def test_all_layers_on_the_meta_device(name: str) -> None:
    make, read, time, width = MODELS[name]
    with torch.device("meta"):
        model = make(None).eval()
    weights = sum(parameter.numel() for parameter in model.parameters())
    assert weights > 2e7
    if read in (read_masked, read_text):
        # These read the mask's values, which a meta tensor does not have.
        assert model.config.hidden_size == width
        return
    with torch.no_grad():
        features, _ = read(model, "meta")
    assert features.shape == (2, time, width)


@each_model
def test_feature_extraction_says_whether_there_is_a_mask(name: str) -> None:
    make, read, _, _ = MODELS[name]
    with torch.device("meta"):
        norm = getattr(getattr(make(1), "config", None), "feat_extract_norm", None)
    assert norm == {read_masked: "layer", read_unmasked: "group"}.get(read)


def test_the_pretrained_image_model_refuses_another_size() -> None:
    with pytest.raises(ValueError, match="doesn't match model"):
        vit(1)(torch.randn(1, 3, 64, 64))


def test_padding_matters_to_a_model_without_a_mask_alone() -> None:
    wave = torch.randn(1, 9_000)
    padded = torch.cat([wave, torch.zeros(1, 7_000)], dim=1)
    real = mask_from_lengths(torch.tensor([9_000]), 16_000).long()
    with torch.no_grad():
        base, large = wav2vec_base(1).eval(), wav2vec_large(1).eval()
        frames = base(wave).last_hidden_state
        changed = (base(padded).last_hidden_state[:, : frames.shape[1]] - frames).abs().max()
        frames = large(wave).last_hidden_state
        masked = large(padded, attention_mask=real).last_hidden_state[:, : frames.shape[1]]
        kept = (masked - frames).abs()[:, :-1].max()
    assert changed > 1e-2
    assert kept < 1e-3


def named_models() -> set[str]:
    """Return the pretrained models that pages and examples name."""
    files = [*(REPOSITORY / "docs").rglob("*.md"), *(REPOSITORY / "examples").glob("*.py")]
    files.append(REPOSITORY / "README.md")
    found = (match for path in files for match in NAMED.findall(path.read_text("utf-8")))
    own = {"my-fusion", "fusion-classifier"}
    return {first or second for first, second in found} - own


def test_no_other_model_is_named() -> None:
    assert named_models() - set(MODELS) == set()
    assert {"facebook/wav2vec2-base", "google/vit-base-patch16-224"} <= named_models()
