"""Combine samples with missing modalities into one padded batch."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from grf_fusion._checks.arguments import expect_choice, expect_flag
from grf_fusion._checks.options import Modalities, check_modalities
from grf_fusion._inputs.batch import Batch
from grf_fusion._inputs.samples import (
    OWNER,
    Lengths,
    check_extras,
    check_samples,
    per_modality,
    read,
    stack,
)


def collate(
    samples: Sequence[Mapping[str, Any]],
    modalities: Modalities,
    *,
    extras: Sequence[str] = (),
    dtype: torch.dtype | None = None,
    max_length: Lengths = None,
    too_long: Literal["error", "cut"] = "error",
    pad_to_multiple_of: Lengths = None,
    check_finite: bool = False,
) -> Batch:
    """Pad and stack samples that may lack modalities.

    A sample maps names to sequences ``(time, width)`` or single vectors ``(width,)``, which count
    as one step. A modality is missing if its name is omitted, its value is ``None``, or it has no
    steps. As ``collate_fn`` of a data loader, use
    ``functools.partial(collate, modalities=widths, extras=["label"])``, which can be sent to worker
    processes.

    A modality that no sample of the batch has becomes one masked step (more with
    ``pad_to_multiple_of``) instead of being omitted. All batches then have the same structure,
    as needed for a single compiled graph and for distributed training.

    Tensors and arrays are copied once, into the padded batch. A batch of one sample that needs no
    padding shares its memory with the sample.

    Args:
        samples: Tensors, NumPy arrays or ``None`` by name, one mapping per sample.
        modalities: Name and width of each modality, as in the constructor of the fusion; or
            ``fusion.modalities``.
        extras: Other keys that every sample has, such as labels. Tensors, arrays and numbers are
            stacked; strings are listed.
        dtype: Type to convert the features to, also from integers; ``None`` to keep the type of
            the samples, which must then be a floating-point type.
        max_length: Maximal length, one number or one per modality; ``None`` for no limit.
        too_long: Treatment of longer sequences: ``"error"``, or ``"cut"``, which drops the last
            steps and warns once per modality and process.
        pad_to_multiple_of: Round the padded length up to a multiple of this number, one number or
            one per modality; ``None`` for no rounding. Fewer different shapes mean fewer
            recompilations.
        check_finite: Whether NaN and infinity in the features raise an error.

    Returns:
        The batch, on the device of the samples.

    Shape:
        - features: ``(batch, time_k, d_k)`` each
        - masks: ``(batch, time_k)`` each
        - present: ``(batch, modalities)``

    Raises:
        ShapeError: If a sample does not fit; the message names the sample and the modality.
        ValueError: If ``modalities`` or an option is invalid.

    Examples:
        >>> samples = [
        ...     {"text": torch.randn(7, 6), "audio": torch.randn(11, 5), "label": 2},
        ...     {"text": torch.randn(3, 6), "label": 0},
        ... ]
        >>> batch = collate(samples, {"text": 6, "audio": 5}, extras=["label"])
        >>> batch.features["text"].shape, batch.masks["text"].sum(dim=1)
        (torch.Size([2, 7, 6]), tensor([7, 3]))
        >>> batch.present
        tensor([[ True,  True],
                [ True, False]])
        >>> batch.extras["label"]
        tensor([2, 0])
    """
    declared = check_modalities(OWNER, modalities)
    longest = per_modality("max_length", max_length, declared)
    multiples = per_modality("pad_to_multiple_of", pad_to_multiple_of, declared)
    expect_choice(OWNER, "too_long", too_long, ("error", "cut"))
    expect_flag(OWNER, "check_finite", check_finite)
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(
            f"{OWNER}: expected `dtype` to be a floating-point torch.dtype, got {dtype!r}."
        )
    keys = check_extras(extras, declared)
    check_samples(samples, declared, keys)
    rows: dict[str, list[Tensor | None]] = {}
    like: Tensor | None = None
    for name, dim in declared.items():
        most, cut = longest.get(name), too_long == "cut"
        rows[name], like = read(
            samples, name, dim, longest=most, cut=cut, dtype=dtype, finite=check_finite, like=like
        )
    stacked = {key: stack(key, [sample[key] for sample in samples]) for key in keys}
    like = torch.empty(0) if like is None else like
    counts = [[0 if row is None else row.shape[0] for row in given] for given in rows.values()]
    lengths = torch.tensor(counts, device=like.device).unsqueeze(2)
    features: dict[str, Tensor] = {}
    masks: dict[str, Tensor] = {}
    for (name, given), count, length in zip(rows.items(), counts, lengths, strict=True):
        multiple = multiples.get(name, 1)
        time = -(-max(1, *count) // multiple) * multiple
        none = like.new_empty(0, declared[name])
        empty = next((row[:0] for row in given if row is not None), none)
        features[name] = _pad(given, empty, time, dtype, full=min(count) == time)
        masks[name] = torch.arange(time, device=like.device) < length
    present = (lengths.squeeze(2) > 0).T.contiguous()
    return Batch(features, masks, present, stacked)


def _pad(
    rows: list[Tensor | None], empty: Tensor, time: int, dtype: torch.dtype | None, *, full: bool
) -> Tensor:
    """Return ``(batch, time, dim)``, each row padded with 0; ``empty`` replaces missing rows."""
    there = [empty if row is None else row for row in rows]
    if dtype is not None:
        there = [row.to(dtype) for row in there]
    if full:
        return there[0].unsqueeze(0) if len(there) == 1 else torch.stack(there)
    # `pad_sequence` pads to the longest row, so that an extra row sets the length. It is expanded
    # from one zero and takes no memory.
    longest = there[0].new_zeros(1, 1).expand(time, empty.shape[1])
    return pad_sequence([*there, longest], batch_first=True)[:-1]
