"""The signs that a chain of gates does not do what it is there for."""

from typing import Literal, NamedTuple

from torch import Tensor

from grf_fusion._chain.state import FusionTrace
from grf_fusion.diagnostics._gate_statistics import gate_statistics
from grf_fusion.diagnostics._options import expect_fraction
from grf_fusion.diagnostics._trace import read_trace

OWNER = "gate_warnings"


class GateWarning(NamedTuple):
    """One finding about one step.

    Attributes:
        kind: What is wrong.
        modality: At whose step.
        measured: The number that is too small.
        limit: What it is too small for.
        message: What was measured, and what to try.
    """

    kind: Literal["context collapse", "never let in", "constant gate"]
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
    r"""Look for the ways in which gates fail.

        context collapse    mean of 1 - z_k  <  erased_below      what came before is erased
        never let in        mean of z_k      <  closed_below
        constant gate       spread of z_k    <  constant_below    the gate ignores its input

    The means are over features and over the samples that took the step, for the collapse only over
    those that had another modality before. The spread is `GateStatistics.between_samples`; it is
    looked at where two samples or more took the step, and where the gate is not one of the other
    two already, which do not vary either. The limits are ours, and meant for a trained model: look
    at a few hundred samples of a validation set.

    Args:
        trace: What a `GatedRecurrentFusion` returns with ``return_trace=True``.
        erased_below: Share of the context that a step has to keep, in (0, 1).
        closed_below: Mean that a gate has to reach, in (0, 1).
        constant_below: Standard deviation over samples that a gate has to reach, in (0, 1).

    Returns:
        The findings in the order of fusion, none for a sound chain.

    Raises:
        ValueError: If a limit is not in (0, 1).
        ShapeError: If ``trace`` is no `FusionTrace`, or its tensors do not fit each other.

    Examples:
        >>> import torch
        >>> from grf_fusion import GatedRecurrentFusion
        >>> widths = {"text": 6, "audio": 5}
        >>> fusion = GatedRecurrentFusion(widths, embed_dim=8, num_heads=2, gate_bias=9.0)
        >>> features = {"text": torch.randn(4, 7, 6), "audio": torch.randn(4, 11, 5)}
        >>> found = gate_warnings(fusion(features, return_trace=True)[1])
        >>> [(finding.kind, finding.modality) for finding in found]
        [('constant gate', 'text'), ('context collapse', 'audio')]
    """
    limits = {
        "erased_below": erased_below,
        "closed_below": closed_below,
        "constant_below": constant_below,
    }
    for argument, limit in limits.items():
        expect_fraction(OWNER, argument, limit)
    steps = read_trace(OWNER, trace)
    numbers = gate_statistics(trace)
    found: list[GateWarning] = []
    for place, name in enumerate(numbers.steps, start=0 if steps.learned else 1):
        step = place if steps.learned else place - 1
        count, mean = int(numbers.samples[step]), numbers.mean[step].item()
        if count == 0:
            continue
        had_before = steps.applied[:, place] & steps.present[:, :place].any(dim=1)
        kept = _kept(steps.gates[:, place], had_before)
        spread = numbers.between_samples[step].item()
        if kept is not None and kept < erased_below:
            found.append(_collapse(name, kept, erased_below))
        elif mean < closed_below:
            found.append(_shut(name, mean, closed_below))
        elif count > 1 and spread < constant_below:
            found.append(_constant(name, spread, constant_below))
    return found


def _kept(gates: Tensor, samples: Tensor) -> float | None:
    return (1 - gates[samples]).mean().item() if bool(samples.any()) else None


def _collapse(name: str, kept: float, limit: float) -> GateWarning:
    message = (
        f"At {name!r} the gate keeps {kept:.1%} of the context on average (limit {limit:.1%}): "
        "what earlier modalities said is erased. Try form='residual', gate_bias='chrono' or a "
        "smaller number, ModalityDropout so that the earlier ones have to count, or another order."
    )
    return GateWarning("context collapse", name, kept, limit, message)


def _shut(name: str, mean: float, limit: float) -> GateWarning:
    message = (
        f"{name!r} is not let in: its gate is {mean:.2g} on average (limit {limit:.2g}). Try to "
        "standardise its features, a larger gate_bias, modulate_gradients if another modality "
        "learns faster, or leave it out if leave_one_out says that nothing is lost."
    )
    return GateWarning("never let in", name, mean, limit, message)


def _constant(name: str, spread: float, limit: float) -> GateWarning:
    message = (
        f"The gate of {name!r} does not depend on its input: its standard deviation over samples "
        f"is {spread:.2g} (limit {limit:.2g}). Try longer training, a larger learning rate or "
        "less weight decay for unit.linear, a gate_bias nearer to 0, or features of larger scale."
    )
    return GateWarning("constant gate", name, spread, limit, message)
