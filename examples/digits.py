"""Digits that are seen and heard, from real handwriting and real speech, some of them missing.

Run `python examples/digits.py --data FOLDER`, where FOLDER holds `mfeat/mfeat.npz` (UCI Multiple
Features, pixels of 15 x 16) and `fsdd/fsdd.npz` (Free Spoken Digit Dataset, log-mel frames of 40
bands). Pairs of a picture and a recording are made by label; each part is real, and no picture,
recording or speaker is in two parts. Four speakers train, one chooses the epoch, one tests.
"""

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm

from grf_fusion import Batch, GatedRecurrentFusion, ModalityDropout, collate

# A picture is a sequence of 15 rows, a recording one of 10 ms frames.
WIDTHS = {"image": 16, "audio": 40}
SPEAKERS = {"train": range(4), "valid": range(4, 5), "test": range(5, 6)}
FOLDS = {"train": (2,), "valid": (3, 4), "test": (0, 1)}
Sample = dict[str, Tensor | int]


def read(folder: Path) -> dict[str, list[Sample]]:
    """Pair pictures and recordings of the same digit; pictures of a small part are repeated."""
    mfeat, fsdd = (dict(np.load(folder / n / f"{n}.npz")) for n in ("mfeat", "fsdd"))
    ends = np.cumsum(fsdd["length"])
    frames = np.split(fsdd["logmel_db"].astype("float32"), ends[:-1])
    mean, scale = fsdd["logmel_db"].mean(dtype="float64"), fsdd["logmel_db"].astype("float32").std()
    chance = np.random.default_rng(0)
    parts: dict[str, list[Sample]] = {}
    for part, folds in FOLDS.items():
        heard = np.flatnonzero(np.isin(fsdd["speaker"], SPEAKERS[part]))
        parts[part] = []
        for recording in heard:
            label = int(fsdd["label"][recording])
            same = np.isin(mfeat["fold"], folds) & (mfeat["label"] == label)
            picture = mfeat["pix"][chance.choice(np.flatnonzero(same))].reshape(15, 16)
            audio = (frames[recording] - np.float32(mean)) / scale
            parts[part].append(
                {
                    "image": torch.from_numpy(picture.astype("float32") / 6),
                    "audio": torch.from_numpy(audio.astype("float32")),
                    "label": label,
                }
            )
    return parts


class Digits(nn.Module):
    """A convolution over each sequence, a fusion and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(
            {name: nn.Conv1d(width, 64, 5, padding=2) for name, width in WIDTHS.items()}
        )
        self.modality_dropout = ModalityDropout(0.3)
        self.fusion = GatedRecurrentFusion(dict.fromkeys(WIDTHS, 64), embed_dim=64, dropout=0.2)
        self.head = nn.Linear(64, 10)

    def forward(self, batch: Batch, present: Tensor) -> Tensor:
        """Return logits."""
        features: dict[str, Tensor] = {}
        for name, x in batch.features.items():
            features[name] = F.gelu(self.encoders[name](x.transpose(1, 2)).transpose(1, 2))
        present = self.modality_dropout(present)
        return self.head(self.fusion(features, masks=batch.masks, present=present))


@torch.no_grad()
def accuracy(model: Digits, loader: DataLoader[Sample], without: Sequence[str] = ()) -> float:
    """Return the share of right digits while some modalities are taken away."""
    model.eval()
    keep = torch.tensor([name not in without for name in WIDTHS])
    right = total = 0
    for batch in loader:
        logits = model(batch, batch.present & keep)
        right += int((logits.argmax(dim=1) == batch.extras["label"]).sum())
        total += len(logits)
    return right / total


def train(parts: Mapping[str, list[Sample]], epochs: int) -> dict[str, float]:
    """Train, keep the epoch that is best on validation, and return accuracies on test."""
    collate_fn = partial(collate, modalities=WIDTHS, extras=["label"])
    loaders: dict[str, DataLoader[Sample]] = {
        part: DataLoader(samples, 64, shuffle=part == "train", collate_fn=collate_fn)  # type: ignore[arg-type]
        for part, samples in parts.items()
    }
    model = Digits()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    best, kept = -1.0, model.state_dict()
    for _ in tqdm(range(epochs)):
        model.train()
        for batch in loaders["train"]:
            loss = F.cross_entropy(model(batch, batch.present), batch.extras["label"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        # Heard, seen, and both: a model that is good at one of them alone is not what is wanted.
        ways = ((), ("image",), ("audio",))
        found = sum(accuracy(model, loaders["valid"], way) for way in ways)
        if found > best:
            best, kept = found, {key: value.clone() for key, value in model.state_dict().items()}
    model.load_state_dict(kept)
    ways = {"seen and heard": (), "seen": ("audio",), "heard": ("image",)}
    return {way: accuracy(model, loaders["test"], without) for way, without in ways.items()}


def main() -> None:
    """Train with each seed and print test accuracies."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    parts = read(arguments.data)
    print({part: len(samples) for part, samples in parts.items()})
    for seed in range(arguments.seeds):
        torch.manual_seed(seed)
        found = train(parts, arguments.epochs)
        print(seed, {way: f"{value:.3f}" for way, value in found.items()})


if __name__ == "__main__":
    main()
