"""Digits as images and sound: handwriting of mfeat and speech of fsdd, paired by label.

Images and recordings are real; the pairs are artificial, as in AV-MNIST. No image, recording or
speaker is in two parts.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.quality.datasets.dataset import Budget, Dataset, Part, Task
from benchmarks.quality.datasets.prepare import Arrays, few, grid, standardise, summaries_of

# Indices of `speaker_name` (george, jackson, lucas, nicolas; theo; yweweler) and folds of mfeat.
SPEAKERS = {"train": (0, 1, 2, 3), "validation": (4,), "test": (5,)}
IMAGE_FOLDS = {"train": (2, 3, 4, 5, 6, 7), "validation": (8, 9), "test": (0, 1)}
SEED = 10
# Frames of 10 ms that make one step.
FOLD = 4


def digits(arrays: Arrays, most: int | None = None) -> Dataset:
    """Make the data set of an image (one step of 240 pixels) and a recording (steps of 40 ms).

    If a part has fewer images than recordings, images are used more than once; pairs are drawn
    once. Frames are standardised by band, pixels one by one, both with statistics of train.
    """
    length, speaker = arrays["fsdd.length"].astype(np.int64), arrays["fsdd.speaker"]
    spoken = arrays["fsdd.label"].astype(np.int64)
    frames = arrays["fsdd.logmel_db"].astype(np.float64)
    heard = np.repeat(np.isin(speaker, SPEAKERS["train"]), length)
    frames = standardise(frames, heard, axis=0)
    recordings = np.split(frames, np.cumsum(length)[:-1])
    # Six images are in mfeat twice, in different folds: keep the first copy.
    _, first = np.unique(arrays["mfeat.pix"], axis=0, return_index=True)
    first = np.sort(first)
    written, fold_of = arrays["mfeat.label"][first].astype(np.int64), arrays["mfeat.fold"][first]
    pixels = arrays["mfeat.pix"][first].astype(np.float64)
    pixels = standardise(pixels, np.isin(fold_of, IMAGE_FOLDS["train"]), axis=0)
    rng = np.random.default_rng(SEED)
    parts = {}
    for part, who in SPEAKERS.items():
        sounds = np.flatnonzero(np.isin(speaker, who))
        images = np.flatnonzero(np.isin(fold_of, IMAGE_FOLDS[part]))
        pair = np.empty(len(sounds), dtype=np.int64)
        for label in range(10):
            own = np.flatnonzero(spoken[sounds] == label)
            there = rng.permutation(images[written[images] == label])
            pair[own] = np.resize(there, len(own))
        chosen = few(np.arange(len(sounds)), most)
        parts[part] = _part(
            [recordings[k] for k in sounds[chosen]], pixels[pair[chosen]], spoken[sounds[chosen]]
        )
    return Dataset(
        "digits",
        "digits as images (mfeat) and speech (fsdd), paired by label; no image, recording or "
        "speaker in two parts",
        Task("classes", 10, "accuracy"),
        parts,
        Budget(20, 64, grid((1e-3, 4e-3), (64,)), 10),
        (("speech, ridge classifier on summaries, as reported", "accuracy", ".674 to .714"),),
    )


def _part(recordings: list[NDArray], pixels: NDArray, labels: NDArray) -> Part:
    bands = recordings[0].shape[1]
    count = [-(-len(recording) // FOLD) for recording in recordings]
    speech = torch.zeros(len(recordings), max(count), FOLD * bands)
    for k, recording in enumerate(recordings):
        padded = np.pad(recording, ((0, -len(recording) % FOLD), (0, 0)), mode="edge")
        speech[k, : count[k]] = torch.from_numpy(padded.reshape(count[k], -1)).float()
    features = {"image": torch.from_numpy(pixels).float().unsqueeze(1), "speech": speech}
    masks = {
        "image": torch.ones(len(pixels), 1, dtype=torch.bool),
        "speech": torch.arange(max(count)) < torch.tensor(count).unsqueeze(1),
    }
    columns = {"image": pixels, "speech": np.stack([summarise(x) for x in recordings])}
    return Part(features, masks, torch.from_numpy(labels), summaries_of(columns))


def summarise(recording: NDArray) -> NDArray:
    """Return mean and deviation of each band, and its means in three thirds of the time."""
    thirds = [third.mean(axis=0) for third in np.array_split(recording, 3)]
    return np.concatenate((recording.mean(axis=0), recording.std(axis=0), *thirds))
