"""Text, image, feature-map and audio encoders of `transformers`, fused: real outputs, real masks.

Run `python examples/encoders.py`. The encoders are built from small configurations with random
weights, so that nothing is downloaded; the line that loads a pretrained one stands beside each.
"""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
)

from grf_fusion import GatedRecurrentFusion, mask_from_lengths

SENTENCES = ["a dog barks at the door", "rain", "two people talk while a kettle boils"]
RATE = 16_000
SECONDS = (0.5, 1.0, 0.75)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer of the words above.

    Pretrained: `AutoTokenizer.from_pretrained("bert-base-uncased")`.
    """
    words = Tokenizer(models.WordLevel(unk_token="[UNK]"))  # noqa: S106 (no password)
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["[PAD]", "[UNK]"]
    words.train_from_iterator(SENTENCES, trainers.WordLevelTrainer(special_tokens=special))
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token=special[0], unk_token=special[1]
    )


def encode_text() -> tuple[Tensor, Tensor]:
    """Return token states, and the tokenizer's attention mask as it is: 1 = real.

    Pretrained: `bert = BertModel.from_pretrained("bert-base-uncased")`.
    """
    config = BertConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96
    )
    bert = BertModel(config).eval()
    tokens = make_tokenizer()(SENTENCES, padding=True, return_tensors="pt")
    inputs = {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}
    return bert(**inputs).last_hidden_state, tokens["attention_mask"]


def encode_image(pixels: Tensor) -> Tensor:
    """Return the patches of a vision Transformer; all are real.

    Pretrained: `vit = ViTModel.from_pretrained("google/vit-base-patch16-224")`.
    """
    config = ViTConfig(
        image_size=224, hidden_size=40, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=80,
    )  # fmt: skip
    vit = ViTModel(config, add_pooling_layer=False).eval()
    return vit(pixels).last_hidden_state


def encode_feature_map(pixels: Tensor) -> Tensor:
    """Return the positions of a convolutional network's last map as a sequence.

    Pretrained: `resnet = ResNetModel.from_pretrained("microsoft/resnet-50")`.
    """
    config = ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1])
    resnet = ResNetModel(config).eval()
    # (batch, channels, height, width) to (batch, height * width, channels)
    return resnet(pixels).last_hidden_state.flatten(2).transpose(1, 2)


def encode_audio() -> tuple[Tensor, Tensor]:
    """Return frames, and which of them are real: the network shortens what it reads.

    Pretrained: `wav2vec = Wav2Vec2Model.from_pretrained("facebook/wav2vec2-large-lv60")`, and its
    `Wav2Vec2FeatureExtractor`; or `HubertModel.from_pretrained("facebook/hubert-large-ll60k")`.
    "facebook/wav2vec2-base" takes no attention mask: see docs/how-to/encoders.md.
    """
    config = Wav2Vec2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        conv_dim=(16,) * 7, num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=4,
        # Groups normalise each step by itself, so that padding does not change what is real.
        feat_extract_norm="layer", do_stable_layer_norm=True,
    )  # fmt: skip
    wav2vec = Wav2Vec2Model(config).eval()
    waves = [torch.randn(int(RATE * seconds)).numpy() for seconds in SECONDS]
    extractor = Wav2Vec2FeatureExtractor(return_attention_mask=True)
    batch = extractor(waves, sampling_rate=RATE, padding=True, return_tensors="pt")
    frames = wav2vec(batch["input_values"], attention_mask=batch["attention_mask"])
    # The one way to ask a wav2vec 2 or HuBERT model; its name has been the same since 2021.
    lengths = wav2vec._get_feat_extract_output_lengths(  # noqa: SLF001
        batch["attention_mask"].sum(dim=1)
    )
    hidden = frames.last_hidden_state
    return hidden, mask_from_lengths(lengths, hidden.shape[1])


def main() -> None:
    """Fuse the outputs of four encoders, and once more without sound for one sample."""
    torch.manual_seed(0)
    pixels = torch.randn(len(SENTENCES), 3, 224, 224)
    with torch.inference_mode():
        text, text_mask = encode_text()
        audio, audio_mask = encode_audio()
        features = {
            "text": text,
            "image": encode_image(pixels),
            "map": encode_feature_map(pixels),
            "audio": audio,
        }
        masks = {"text": text_mask, "audio": audio_mask}
        widths = {name: x.shape[2] for name, x in features.items()}
        fusion = GatedRecurrentFusion(widths, embed_dim=64).eval()
        for name, x in features.items():
            lengths = masks[name].sum(dim=1).tolist() if name in masks else "all real"
            print(f"{name:6} (batch, time, dim) = {tuple(x.shape)}, real steps: {lengths}")
        context = fusion(features, masks=masks)
        print(f"fused  {tuple(context.shape)}")
        present = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1]])
        deaf = fusion(features, masks=masks, present=present)
        # More than rounding: what is real is computed together with others of similar length.
        changed = (deaf - context).abs().amax(dim=1) > 1e-5
        samples = changed.nonzero().flatten().tolist()
        print(f"without sound for sample 1, these samples change: {samples}")


if __name__ == "__main__":
    main()
