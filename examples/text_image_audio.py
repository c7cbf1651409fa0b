"""Text, image and audio, some of them missing: from raw samples to a trained classifier.

Run `python examples/text_image_audio.py`; docs/tutorials/text-image-audio.md explains each part.
The encoders have one layer and random weights, so that nothing is downloaded; sizes and calls are
those of the pretrained models; `Encoders` says how to load them.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import (
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
)

from grf_fusion import Batch, GatedRecurrentFusion, ModalityDropout, collate
from grf_fusion.checkpoints import load_checkpoint, save_checkpoint
from grf_fusion.diagnostics import summary

RATE = 16_000
WORDS = ["dog", "rain", "bell"]
MODALITIES = ("text", "image", "audio")


class Samples(Dataset[dict[str, Any]]):
    """Three classes, told by a word, a picture and a tone; a third of all parts is missing."""

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.randint(len(WORDS), (count,), generator=generator).tolist()
        self.has = (torch.rand(count, 3, generator=generator) > 0.33).tolist()

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return a sample with the parts that it has."""
        label, (text, image, audio) = self.labels[index], self.has[index]
        generator = torch.Generator().manual_seed(index)
        sample: dict[str, Any] = {"label": label}
        if text:
            sample["text"] = f"i hear the {WORDS[label]} outside"
        if image:
            picture = torch.rand(3, 240, 320, generator=generator) * 0.5
            picture[label] += 0.4
            sample["image"] = picture
        if audio:
            time = torch.arange(RATE // 2 + 400 * index) / RATE
            sample["audio"] = torch.sin(2 * torch.pi * 200 * (label + 1) * time)
        return sample


class Encoders(nn.Module):
    """Processors and encoders; each returns a sequence `(time, width)` for one sample.

    Pretrained:

    - `AutoTokenizer.from_pretrained("bert-base-uncased")`, and with the same name `BertModel`
    - `ViTModel.from_pretrained("google/vit-base-patch16-224", add_pooling_layer=False)`
    - `Wav2Vec2FeatureExtractor.from_pretrained("facebook/wav2vec2-base")`, and `Wav2Vec2Model`
    """

    def __init__(self) -> None:
        super().__init__()
        known = ["[PAD]", "[UNK]", "i", "hear", "the", "outside", *WORDS]
        vocabulary = {word: number for number, word in enumerate(known)}
        words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))  # noqa: S106 (no password)
        words.pre_tokenizer = pre_tokenizers.Whitespace()
        self.tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=words, pad_token=known[0], unk_token=known[1]
        )
        self.extractor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=False)
        self.text = BertModel(BertConfig(num_hidden_layers=1))
        self.image = ViTModel(ViTConfig(num_hidden_layers=1), add_pooling_layer=False)
        self.audio = Wav2Vec2Model(Wav2Vec2Config(num_hidden_layers=1))
        parts = {"text": self.text, "image": self.image, "audio": self.audio}
        self.widths = {name: part.config.hidden_size for name, part in parts.items()}

    def forward(self, sample: dict[str, Any]) -> dict[str, Tensor]:
        """Encode what the sample has."""
        features: dict[str, Tensor] = {}
        if "text" in sample:
            tokens = self.tokenizer(sample["text"], return_tensors="pt")["input_ids"]
            features["text"] = self.text(input_ids=tokens).last_hidden_state[0]
        if "image" in sample:
            # What the `AutoImageProcessor` of that name does to PIL images.
            picture = sample["image"][None]
            small = F.interpolate(picture, (224, 224), mode="bilinear", antialias=True)
            features["image"] = self.image((small - 0.5) / 0.5).last_hidden_state[0]
        if "audio" in sample:
            wave = sample["audio"].numpy()
            waves = self.extractor(wave, sampling_rate=RATE, return_tensors="pt")
            features["audio"] = self.audio(waves["input_values"]).last_hidden_state[0]
        return features


class Cached(Dataset[dict[str, Tensor]]):
    """Features on disk, one file a sample."""

    def __init__(self, folder: Path) -> None:
        self.files = sorted(folder.glob("*.safetensors"), key=lambda path: int(path.stem))

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return a sample's features and label."""
        return load_file(self.files[index])


@torch.no_grad()
def cache(data: Samples, encoders: Encoders, folder: Path) -> Cached:
    """Encode every sample once."""
    folder.mkdir(parents=True)
    for index in tqdm(range(len(data)), desc=f"encode {folder.name}"):
        sample = data[index]
        features = encoders(sample) | {"label": torch.tensor(sample["label"])}
        parts = {key: value.contiguous() for key, value in features.items()}
        save_file(parts, folder / f"{index}.safetensors")
    return Cached(folder)


class Classifier(nn.Module):
    """Fusion and head."""

    def __init__(self, widths: dict[str, int]) -> None:
        super().__init__()
        self.fusion = GatedRecurrentFusion(widths, embed_dim=64, dropout=0.1)
        self.modality_dropout = ModalityDropout(0.3)
        self.head = nn.Linear(64, len(WORDS))

    def forward(self, batch: Batch, present: Tensor) -> Tensor:
        """Return logits."""
        present = self.modality_dropout(present)
        return self.head(self.fusion(batch.features, masks=batch.masks, present=present))


@torch.no_grad()
def accuracy(model: Classifier, loader: DataLoader[Any], without: str = "") -> float:
    """Return the share of right classes while one modality is taken away."""
    model.eval()
    keep = torch.tensor([name != without for name in MODALITIES])
    right = total = 0
    for batch in loader:
        logits = model(batch, batch.present & keep)
        right += int((logits.argmax(dim=1) == batch.extras["label"]).sum())
        total += len(logits)
    return right / total


def train(model: Classifier, loader: DataLoader[Any], epochs: int) -> None:
    """Train fusion and head on cached features."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    model.train()
    for _ in tqdm(range(epochs), desc="train"):
        for batch in loader:
            loss = F.cross_entropy(model(batch, batch.present), batch.extras["label"])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()


def fine_tune(model: Classifier, encoders: Encoders, data: Samples) -> float:
    """Make one step of everything, the encoders with a smaller rate; return the loss."""
    rates = [
        {"params": model.parameters(), "lr": 3e-4},
        {"params": encoders.parameters(), "lr": 1e-5},
    ]
    optimizer = torch.optim.AdamW(rates)
    model.train()
    encoders.train()
    raw = [data[index] for index in range(4)]
    batch = collate([encoders(sample) for sample in raw], encoders.widths)
    labels = torch.tensor([sample["label"] for sample in raw])
    loss = F.cross_entropy(model(batch, batch.present), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def main() -> None:
    """Go from raw samples to a prediction."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--samples", type=int, default=24)
    parser.add_argument("--epochs", type=int, default=20)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    encoders = Encoders().eval()
    train_data, test_data = Samples(arguments.samples, seed=1), Samples(9, seed=2)
    collate_fn = partial(collate, modalities=encoders.widths, extras=["label"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cached = [cache(train_data, encoders, folder / "train")]
        cached.append(cache(test_data, encoders, folder / "test"))
        train_loader, test_loader = (
            DataLoader(data, 8, shuffle=data is cached[0], collate_fn=collate_fn) for data in cached
        )
        model = Classifier(encoders.widths)
        batch = next(iter(train_loader))
        print(summary(model.fusion, batch.features, masks=batch.masks, present=batch.present))
        train(model, train_loader, arguments.epochs)
        for without in ("", *MODALITIES):
            print(f"without {without or 'nothing'}: {accuracy(model, test_loader, without):.2f}")
        save_checkpoint(model, folder / "classifier.pt")
        again = Classifier(encoders.widths).eval()
        load_checkpoint(again, folder / "classifier.pt")
    with torch.no_grad():
        batch = collate([encoders({"text": "i hear the rain outside"})], encoders.widths)
        same = torch.equal(again(batch, batch.present), model(batch, batch.present))
        probabilities = again(batch, batch.present).softmax(dim=1)[0].tolist()
    print(f"the same after loading: {same}")
    print("by its text alone:", {w: f"{p:.2f}" for w, p in zip(WORDS, probabilities, strict=True)})
    print(f"loss before a step of everything: {fine_tune(model, encoders, train_data):.2f}")


if __name__ == "__main__":
    main()
