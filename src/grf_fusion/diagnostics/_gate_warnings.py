"""Warnings about gates that do not work as intended."""

import math
from typing import Literal, NamedTuple

from grf_fusion._chain.state import FusionTrace
from grf_fusion._checks.arguments import expect_number
from grf_fusion.diagnostics._gate_statistics import gate_statistics
from grf_fusion.diagnostics._trace import read_trace

OWNER = "gate_warnings"
Kind = Literal["context collapse", "never let in", "constant gate"]
MESSAGES: dict[Kind, str] = {
    "context collapse": (
        "At {name!r} the gate keeps {measured:.1%} of the context on average (limit {limit:.1%}): "
        "what earlier modalities contributed is overwritten. Try form='residual', "
        "gate_bias='chrono' or a smaller number, another order, or ModalityDropout, with which the "
        "fusion learns to use every modality."
    ),
    "never let in": (
        "The gate of {name!r} stays closed: it is {measured:.2g} on average (limit {limit:.2g}). "
        "Try standardised features, a larger gate_bias, or modulate_gradients if another modality "
        "learns faster. If leave_one_out shows no loss without the modality, remove it."
    ),
    "constant gate": (
        "The gate of {name!r} does not depend on its input: its standard deviation over samples "
        "is {measured:.2g} (limit {limit:.2g}). Try longer training, a larger learning rate or "
        "less weight decay for unit.linear, or a gate_bias nearer to 0. With form='residual' or "
        "form='paper' also try features of larger scale."
    ),
}


class GateWarning(NamedTuple):
    """One finding about one step.

    Attributes:
        kind: The kind of problem.
        modality: The modality of the step.
        measured: The measured number, which is below the limit.
        limit: The limit.
        message: What was measured, and what to try.
    """

    kind: Kind
    modality: str
    measured: float
    limit: float
    message: str


def gate_warnings(
    trace: FusionTrace,
    *,
    erased_below: float = 0.05,
    closed_below: float = 0.01,
    constant_below: float = 0.005,
) -> list[GateWarning]:
    r"""Find gates that do not work as intended.

        context collapse    mean of 1 - z_k  <  erased_below      the context so far is erased
        never let in        mean of z_k      <  closed_below
        constant gate       spread of z_k    <  constant_below    the gate ignores its input

    The means are over the features and the samples that have the modality; for a collapse only over
    samples that had another modality before. The spread is `GateStatistics.between_samples`. It is
    checked if at least two samples have the modality, and if the gate has neither of the other two
    problems. The limits are rules of thumb for a trained model. Use a few hundred samples of a
    validation set.

    Args:
        trace: Trace of a `GatedRecurrentFusion`, from ``return_trace=True``.
        erased_below: Minimal share of the context that a step should keep, in (0, 1).
        closed_below: Minimal mean of a gate, in (0, 1).
        constant_below: Minimal standard deviation of a gate over samples, in (0, 1).

    Returns:
        The findings in the order of fusion; empty if there are none.

    Raises:
        ValueError: If a limit is not in (0, 1).
        ShapeError: If ``trace`` is not a `FusionTrace`, or its tensors are inconsistent.

    Examples:
        >>> import torch
        >>> from grf_fusion import GatedRecurrentFusion
        >>> widths = {"text": 6, "audio": 5}
        >>> fusion = GatedRecurrentFusion(widths, embed_dim=8, gate_bias=9.0)
        >>> features = {"text": torch.randn(4, 7, 6), "audio": torch.randn(4, 11, 5)}
        >>> found = gate_warnings(fusion(features, return_trace=True)[1])
        >>> [(finding.kind, finding.modality) for finding in found]
        [('constant gate', 'text'), ('context collapse', 'audio')]
    """
    rule = "a number in (0, 1)"
    expect_number(OWNER, "erased_below", erased_below, rule, above=0, below=1)
    expect_number(OWNER, "closed_below", closed_below, rule, above=0, below=1)
    expect_number(OWNER, "constant_below", constant_below, rule, above=0, below=1)
    steps = read_trace(OWNER, trace)
    numbers = gate_statistics(trace)
    found: list[GateWarning] = []
    for step, name in enumerate(numbers.steps):
        had_before = steps.applied[:, step] & steps.present[:, : step + steps.first].any(dim=1)
        # A mean over no samples is NaN, which is not below any limit.
        kept = (1 - steps.gates[had_before, step]).mean().item()
        spread = numbers.between_samples[step].item() if numbers.samples[step] > 1 else math.nan
        measures: list[tuple[Kind, float, float]] = [
            ("context collapse", kept, erased_below),
            ("never let in", numbers.mean[step].item(), closed_below),
            ("constant gate", spread, constant_below),
        ]
        for kind, measured, limit in measures:
            if measured < limit:
                message = MESSAGES[kind].format(name=name, measured=measured, limit=limit)
                found.append(GateWarning(kind, name, measured, limit, message))
                break
    return found
