"""Recognise a digit from three damaged parts that share neither width nor length.

* ``image`` (real): a handwritten digit, 8x8 pixels, from scikit-learn, as 9 overlapping patches
  of 4x4 pixels; noise is added and patches are lost.
* ``name`` (generated): its English name as one-hot letters, some wrong, some dropped.
* ``tone`` (generated): the tone of its telephone key (DTMF, two sines) in noise, as frames of a log
  spectrogram; the duration varies.

Any part may be missing. No download: ``pip install '.[examples]'`` in a clone brings everything.
"""

import argparse
import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from grf_fusion import FusionTrace, GatedRecurrentFusion, ModalityDropout, mask_from_lengths

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ALPHABET = "abcdefghijklmnopqrstuvwxyz"
LETTER_WRONG, LETTER_DROPPED = 0.3, 0.15  # probabilities

KEYS = ("123", "456", "789", " 0 ")
ROWS_HZ, COLUMNS_HZ = (697.0, 770.0, 852.0, 941.0), (1209.0, 1336.0, 1477.0)
SAMPLE_RATE_HZ, FRAME_SAMPLES, MIN_FRAMES, MAX_FRAMES = 4000.0, 128, 3, 10
BAND = slice(19, 52)  # spectrum bins of 31.25 Hz: 594 to 1594 Hz, where the tones lie
TONE_NOISE = 3.3  # standard deviation; each of the two sines has amplitude 1
LOG_LEVEL = 3.0  # about the mean of the log spectrogram

PATCH, STRIDE, PATCH_LOST, PIXEL_NOISE = 4, 2, 0.25, 0.7  # pixels; probability; standardised pixels

WIDTHS = {"image": PATCH * PATCH, "name": len(ALPHABET), "tone": BAND.stop - BAND.start}
KINDS = {"image": "real", "name": "generated", "tone": "generated"}
PART_MISSING = 0.15  # in the training data


class Digits(NamedTuple):
    """Digits in three parts, as `GatedRecurrentFusion` takes them.

    Attributes:
        features: By modality, ``(batch, time, width)``.
        masks: By modality, ``(batch, time)``, True = a real step.
        present: ``(batch, 3)``, which digit has which part.
        labels: ``(batch,)``, 0 to 9.
    """

    features: dict[str, Tensor]
    masks: dict[str, Tensor]
    present: Tensor
    labels: Tensor

    def select(self, index: Tensor) -> "Digits":
        """Take some digits out."""
        features = {name: part[index] for name, part in self.features.items()}
        masks = {name: mask[index] for name, mask in self.masks.items()}
        return Digits(features, masks, self.present[index], self.labels[index])


def draw_image(images: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Cut noisy images into patches and lose some: any pattern of masks will do."""
    noisy = images + PIXEL_NOISE * torch.randn(images.shape, generator=rng)
    patches = noisy.unfold(1, PATCH, STRIDE).unfold(2, PATCH, STRIDE).flatten(3).flatten(1, 2)
    return patches, torch.rand(patches.shape[:2], generator=rng) >= PATCH_LOST


def draw_name(labels: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Spell names with wrong and dropped letters, padded to the longest."""
    spelled = [torch.tensor([ALPHABET.index(letter) for letter in name]) for name in NAMES]
    letters = nn.utils.rnn.pad_sequence(spelled, batch_first=True, padding_value=-1)[labels]
    kept = (letters >= 0) & (torch.rand(letters.shape, generator=rng) >= LETTER_DROPPED)
    wrong = torch.rand(letters.shape, generator=rng) < LETTER_WRONG
    guesses = torch.randint(len(ALPHABET), letters.shape, generator=rng)
    closed_up = kept.int().argsort(dim=1, descending=True, stable=True)
    letters = torch.where(wrong, guesses, letters).clamp(min=0).gather(1, closed_up)
    # A name that has lost all its letters has length 0: the fusion takes it as absent.
    mask = mask_from_lengths(kept.sum(dim=1), letters.shape[1])
    return F.one_hot(letters, len(ALPHABET)).float(), mask


def draw_tone(labels: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sound telephone keys of varying duration in white noise."""
    key_hz = {key: (ROWS_HZ[r], COLUMNS_HZ[c]) for r in range(4) for c, key in enumerate(KEYS[r])}
    pitch_hz = torch.tensor([key_hz[str(digit)] for digit in range(10)])[labels]
    seconds = torch.arange(MAX_FRAMES * FRAME_SAMPLES) / SAMPLE_RATE_HZ
    cycles = pitch_hz.unsqueeze(2) * seconds + torch.rand(len(labels), 2, 1, generator=rng)
    sound = torch.sin(2 * torch.pi * cycles).sum(dim=1)
    sound = sound + TONE_NOISE * torch.randn(sound.shape, generator=rng)
    frames = sound.unflatten(1, (MAX_FRAMES, FRAME_SAMPLES)) * torch.hann_window(FRAME_SAMPLES)
    spectrogram = torch.fft.rfft(frames)[..., BAND].abs().log()
    lengths = torch.randint(MIN_FRAMES, MAX_FRAMES + 1, (len(labels),), generator=rng)
    return spectrogram - LOG_LEVEL, mask_from_lengths(lengths, MAX_FRAMES)


def draw(
    images: Tensor, labels: Tensor, rng: torch.Generator, *, missing: float = PART_MISSING
) -> Digits:
    """Damage the images anew, and generate names and tones anew."""
    parts = {
        "image": draw_image(images, rng),
        "name": draw_name(labels, rng),
        "tone": draw_tone(labels, rng),
    }
    features = {name: part[0] for name, part in parts.items()}
    masks = {name: part[1] for name, part in parts.items()}
    present = torch.rand(len(labels), len(parts), generator=rng) >= missing
    return Digits(features, masks, present, labels)


class DigitClassifier(nn.Module):
    """A fusion of the given modalities, and a linear head that reads every intermediate context.

    No encoders: the fusion's own projections take patches, letters and spectra as they are.
    """

    def __init__(self, modalities: Sequence[str], *, opening: str) -> None:
        super().__init__()
        self.columns = [list(WIDTHS).index(name) for name in modalities]
        self.modality_dropout = ModalityDropout(0.5)
        self.fusion = GatedRecurrentFusion(
            {name: WIDTHS[name] for name in modalities}, embed_dim=96, opening=opening
        )
        self.head = nn.Linear(96, len(NAMES))

    def forward(self, digits: Digits) -> tuple[Tensor, FusionTrace]:
        """Return ``(batch, modalities, 10)`` logits after each modality, and the trace."""
        features = {name: digits.features[name] for name in self.fusion.modalities}
        masks = {name: digits.masks[name] for name in self.fusion.modalities}
        given = digits.present[:, self.columns]
        given = self.fusion.presence(features, masks=masks, present=given)
        given = self.modality_dropout(given)
        _, trace = self.fusion(features, masks=masks, present=given, return_trace=True)
        return self.head(trace.contexts), trace


def train(
    models: nn.ModuleDict, images: Tensor, labels: Tensor, rng: torch.Generator, *, epochs: int
) -> None:
    """Train all models at once, on the same draws; no two of them share a parameter."""
    steps_per_epoch = -(-len(labels) // 64)
    optimizer = torch.optim.AdamW(models.parameters(), weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=5e-3, total_steps=epochs * steps_per_epoch
    )
    models.train()
    progress = tqdm(range(epochs), desc="training", unit="epoch")
    for _ in progress:
        digits = draw(images, labels, rng)
        for index in torch.randperm(len(labels), generator=rng).split(64):
            batch = digits.select(index)
            losses = []
            for model in models.values():
                logits, _ = model(batch)
                # A loss after every modality, not only the last, teaches each to stand alone.
                targets = batch.labels.unsqueeze(1).expand(logits.shape[:2])
                losses.append(F.cross_entropy(logits.transpose(1, 2), targets))
            optimizer.zero_grad()
            torch.stack(losses).sum().backward()
            optimizer.step()
            schedule.step()
        progress.set_postfix(fusion_loss=f"{losses[0].item():.2f}")
    models.eval()


@torch.no_grad()
def predict(model: nn.Module, digits: Digits, present: Tensor) -> tuple[Tensor, FusionTrace]:
    """Return the log-probabilities after each modality and the trace, given only some parts."""
    logits, trace = model(digits._replace(present=present.expand_as(digits.present)))
    return logits.log_softmax(dim=2), trace


def report(models: nn.ModuleDict, digits: Digits, rng: torch.Generator) -> None:
    """Print how often the most likely digit is the right one."""

    def row(text: str, *scores: Tensor) -> None:
        right = [(score.argmax(dim=1) == digits.labels).float().mean().item() for score in scores]
        print(f"  {text:32}" + "".join(f"{100 * share:12.1f}" for share in right))

    fusion, everything = models["fusion"], torch.ones_like(digits.present)
    fused, _ = predict(fusion, digits, everything)
    own = [predict(models[name], digits, everything)[0][:, -1] for name in WIDTHS]
    only = torch.eye(len(WIDTHS), dtype=torch.bool)
    print("\nAccuracy in %")
    print(f"{'one part alone':34}{'own model':>12}{'the fusion':>12}")
    for column, (name, kind) in enumerate(KINDS.items()):
        row(f"{name} ({kind})", own[column], predict(fusion, digits, only[column])[0][:, -1])
    print("all three parts")
    row("fusion", fused[:, -1])
    # The parts are drawn independently given the digit: for such parts this rule is the ideal.
    row("own models, scores multiplied", torch.stack(own).sum(dim=0))
    print("fusion as parts arrive")
    for step in range(len(WIDTHS)):
        row(" + ".join(list(WIDTHS)[: step + 1]), fused[:, step])
    print("fusion as parts go missing at random")
    rank = torch.rand(digits.present.shape, generator=rng).argsort(dim=1)
    for missing in range(len(WIDTHS)):
        row(f"{missing} of 3 missing", predict(fusion, digits, rank >= missing)[0][:, -1])


def draw_figure(model: nn.Module, digits: Digits, path: Path) -> None:
    """Draw the mean gate of each step, by feature and by which parts a digit has."""
    patterns = sorted(itertools.product((True, False), repeat=3), key=sum, reverse=True)[:-1]
    traces = [predict(model, digits, torch.tensor(pattern))[1] for pattern in patterns]
    steps = traces[0].order[-traces[0].gates.shape[1] :]
    by_feature = traces[0].gates.mean(dim=0)
    by_feature = by_feature[:, by_feature.mean(dim=0).argsort(descending=True)]
    by_pattern = torch.stack([trace.gates.mean(dim=(0, 2)) for trace in traces], dim=1)
    by_pattern[by_pattern == 0] = torch.nan  # no gate was applied
    low, high = by_feature.min().item(), by_feature.max().item()

    mpl.use("agg")
    figure, (top, bottom) = plt.subplots(2, figsize=(9, 5.4), layout="constrained")
    means = ", ".join(
        f"{name} {gate:.2f}" for name, gate in zip(steps, by_feature.mean(dim=1), strict=True)
    )
    figure.suptitle(f"How much each step overwrites of the context: {means}", fontsize=12)
    for axes, gates in ((top, by_feature), (bottom, by_pattern)):
        drawn = axes.imshow(gates.numpy(), cmap="cividis", vmin=low, vmax=high, aspect="auto")
        axes.set_yticks(range(len(steps)), steps)
        axes.set_ylabel("step (modality)")
    top.set_title("All three parts given", loc="left", fontsize=11)
    top.set_xlabel("feature of the context (index, sorted by mean gate)")
    bottom.set_title("By the parts given (blank: no gate applied)", loc="left", fontsize=11)
    bottom.set_xlabel("parts given")
    named = [" +\n".join(itertools.compress(WIDTHS, pattern)) for pattern in patterns]
    bottom.set_xticks(range(len(named)), named)
    for (row, column), gate in np.ndenumerate(by_pattern.numpy()):
        if np.isfinite(gate):
            colour = "black" if gate > (low + high) / 2 else "white"
            bottom.text(column, row, f"{gate:.2f}", ha="center", va="center", color=colour)
    figure.colorbar(drawn, ax=(top, bottom), label="mean update gate (0 keeps, 1 overwrites)")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    """Train, report, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smoke test: trains too little")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--opening", choices=("learned", "first"), default="learned")
    parser.add_argument("--figure", type=Path, default=Path("quickstart.png"))
    parser.add_argument("--threads", type=int, default=1, help="more rarely pays here")
    options = parser.parse_args()
    start = time.perf_counter()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    rng = torch.Generator().manual_seed(options.seed)

    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)
    labels = torch.tensor(data.target)
    # Unshuffled: neighbours in the file may come from the same hand.
    split = 3 * len(labels) // 4
    images = (images - images[:split].mean()) / images[:split].std()
    draws = 1 if options.quick else 4
    test = draw(images[split:].repeat(draws, 1, 1), labels[split:].repeat(draws), rng, missing=0.0)
    print(f"image: real. name, tone: generated, anew for every use. Trained on {split} images,")
    print(f"tested on {len(labels) - split} others (draws of damage for each: {draws}).")
    for name, part in test.features.items():
        print(f"  {name:6} up to {part.shape[1]} steps of width {part.shape[2]}")

    models = nn.ModuleDict({"fusion": DigitClassifier(list(WIDTHS), opening=options.opening)})
    models.update({name: DigitClassifier([name], opening=options.opening) for name in WIDTHS})
    epochs = 3 if options.quick else 60
    train(models, images[:split], labels[:split], rng, epochs=epochs)
    report(models, test, rng)
    draw_figure(models["fusion"], test, options.figure)
    print(f"\nFigure: {options.figure}. Took {time.perf_counter() - start:.0f} s.")


if __name__ == "__main__":
    main()
