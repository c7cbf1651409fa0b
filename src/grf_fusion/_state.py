"""What a chain carries from step to step, and what it can tell about the way."""

from typing import NamedTuple

from torch import Tensor


class FusionState(NamedTuple):
    """What a `GatedRecurrentFusion` knows after some modalities.

    Only tensors: it can be moved, saved, sliced along ``batch``, exported and cached.

    Attributes:
        context: ``(batch, dim)``, or ``(batch, time, dim)`` while the context is a sequence.
        mask: ``(batch, 1)``, or ``(batch, time)`` while the context is a sequence: real steps of
            the context. All False where a sample has had no modality to open with.
        present: ``(batch, modalities)``, columns in declared order: what was let in so far.
    """

    context: Tensor
    mask: Tensor
    present: Tensor


class FusionTrace(NamedTuple):
    """The way of a forward pass. All columns are in the order of fusion.

    Attributes:
        contexts: ``(batch, modalities, dim)``: the context after each modality, averaged over its
            real steps while it is a sequence.
        gates: ``(batch, modalities - 1, dim)`` for ``order[1:]``, with the learnt opening
            ``(batch, modalities, dim)``: the update gate, averaged likewise. 0 where none was
            applied: the sample lacks the modality, or opens with it.
        present: ``(batch, modalities)``: which modality each sample has.
        order: Names of the modalities in the order of fusion.
    """

    contexts: Tensor
    gates: Tensor
    present: Tensor
    order: tuple[str, ...]
