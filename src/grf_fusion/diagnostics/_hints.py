"""Hints about possible mistakes in a batch."""

from collections.abc import Iterator

from grf_fusion.diagnostics._calls import Call

# A mask is probably inverted if it masks most steps in at least this share of the samples.
NEARLY_ALL = 0.9


def hints_of(call: Call) -> Iterator[str]:
    """Yield a sentence for each possible mistake in a checked call."""
    for name, here in zip(call.names, call.here.unbind(1), strict=True):
        features, mask = call.features.get(name), call.masks.get(name)
        if features is None or not bool(here.any()):
            yield (
                f"No sample has {name!r}. If some should, look for a misspelt key or a mask that "
                "is False throughout."
            )
            continue
        # The masks of samples without the modality may be empty, so they are not checked.
        values = features.detach()[here]
        real = here.new_ones(values.shape[:2]) if mask is None else mask[here].bool()
        fewer = int((2 * real.sum(dim=1) < real.shape[1]).sum())
        if fewer >= NEARLY_ALL * len(real):
            yield (
                f"Mask of {name!r}: fewer steps are kept than masked in {fewer} of {len(real)} "
                "samples. If they are not that short, the mask may be inverted: True = a real step."
            )
        late = int((~real[:, 0]).sum())
        if late:
            yield (
                f"Mask of {name!r}: steps are masked before the first real one in {late} samples. "
                "If they are not left-padded, the mask may be inverted: True = a real step."
            )
        broken = int((real & ~values.isfinite().all(dim=2)).any(dim=1).sum())
        if broken:
            yield f"Features of {name!r}: real steps hold NaN or infinity in {broken} samples."
        zeros = int((real & (values == 0).all(dim=2))[:, -1].sum())
        # A modality with a single step is a vector, which has no padding.
        if zeros and values.shape[1] > 1:
            yield (
                f"Features of {name!r}: the last step is all zeros and counts as real in {zeros} "
                "samples. If it is padding, pass a mask."
            )
