"""Compact strings of the predictions on test samples, for comparisons sample by sample."""

import base64

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.datasets.dataset import Task


def pack(task: Task, scores: NDArray, labels: NDArray) -> str:
    """Pack the values that the primary metric needs.

    For classes: whether each sample is right. For a binary outcome: the ranks of the scores (equal
    scores share a rank). For a number: the errors.
    """
    if task.kind == "classes":
        return np.packbits(scores.argmax(axis=1) == labels).tobytes().hex()
    if task.kind == "binary":
        _, ranks = np.unique(scores, return_inverse=True)
        return base64.b85encode(ranks.astype("<u2").tobytes()).decode()
    return base64.b85encode(np.abs(scores - labels).astype("<f4").tobytes()).decode()


def unpack(task: Task, packed: str, samples: int) -> NDArray:
    """Return the packed values, float64 ``(samples,)``."""
    if task.kind == "classes":
        bits = np.frombuffer(bytes.fromhex(packed), np.uint8)
        return np.unpackbits(bits, count=samples).astype(np.float64)
    kind = "<u2" if task.kind == "binary" else "<f4"
    return np.frombuffer(base64.b85decode(packed), kind).astype(np.float64)


def pack_labels(labels: NDArray) -> str:
    """Pack the class labels of the test part."""
    return base64.b85encode(labels.astype(np.uint8).tobytes()).decode()


def unpack_labels(packed: str) -> NDArray:
    """Return the labels."""
    return np.frombuffer(base64.b85decode(packed), np.uint8)
