"""A description of a batch and a fusion before training: sizes, padding, cost and hints."""

from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from typing_extensions import override

from grf_fusion._checks.options import check_modalities
from grf_fusion.diagnostics._calls import Call, check_call, evaluating
from grf_fusion.diagnostics._hints import hints_of

OWNER = "summary"


class Summary(NamedTuple):
    """A batch and a fusion in numbers; ``print`` shows it as a table with hints below.

    Attributes:
        fusion: Class of the fusion.
        samples: Number of samples.
        modalities: Names in declared order, which is the order of all tuples.
        widths: Feature width of each modality.
        present: Number of samples that have each modality.
        real_steps: Real steps of each, in the samples that have it.
        steps: All steps of each in the batch; 0 if it was omitted.
        parameters: Parameters of each modality alone, such as its projection.
        shared_parameters: The other parameters of the fusion.
        operations: Additional floating-point operations of the batch with each modality: two per
            multiply-add, for all steps, including padded ones.
        total_operations: Operations of the whole batch.
        hints: Possible mistakes, in full sentences.
    """

    fusion: str
    samples: int
    modalities: tuple[str, ...]
    widths: tuple[int, ...]
    present: tuple[int, ...]
    real_steps: tuple[int, ...]
    steps: tuple[int, ...]
    parameters: tuple[int, ...]
    shared_parameters: int
    operations: tuple[int, ...]
    total_operations: int
    hints: tuple[str, ...]

    @override
    def __str__(self) -> str:
        """Write the table and the hints."""
        total = sum(self.parameters) + self.shared_parameters
        steps = list(zip(self.real_steps, self.steps, strict=True))
        columns = [
            ["modality", *self.modalities],
            ["width", *map(str, self.widths)],
            ["present", *(f"{count} of {self.samples}" for count in self.present)],
            ["real steps", *(f"{real} of {every}" for real, every in steps)],
            ["padded", *(_share(every - real, every) for real, every in steps)],
            ["parameters", *(f"{own:,} ({_share(own, total)})" for own in self.parameters)],
            [
                "operations",
                *(f"{cost:,} ({_share(cost, self.total_operations)})" for cost in self.operations),
            ],
        ]
        widest = [max(map(len, column)) for column in columns]
        title = (
            f"{self.fusion}: {self.samples} samples, {total:,} parameters, of which "
            f"{self.shared_parameters:,} are shared, {self.total_operations:,} operations"
        )
        lines = [title]
        for name, *cells in zip(*columns, strict=True):
            numbers = map(str.rjust, cells, widest[1:])
            lines.append("  ".join([name.ljust(widest[0]), *numbers]))
        return "\n".join([*lines, *(f"hint: {hint}" for hint in self.hints)])


def summary(
    fusion: nn.Module,
    features: Mapping[str, Tensor | None],
    *,
    masks: Mapping[str, Tensor | None] | None = None,
    present: Tensor | None = None,
) -> Summary:
    """Describe a fusion and a batch, to find wrong masks before training.

    Hints are given for a mask that looks inverted or left-padded, for zeros that count as real
    steps, for NaN or infinity in real steps, and for a modality that no sample has. They are
    guesses: the batch may be correct. Reading values forces a host-device sync.

    Operations are counted on PyTorch's meta device, which computes nothing. The fusion is
    unchanged afterwards.

    Args:
        fusion: A `GatedRecurrentFusion` or a fusion of `grf_fusion.baselines`.
        features: Features of each modality, as in a call of the fusion.
        masks: Real steps of each modality, as in a call of the fusion.
        present: Which samples have which modality, as in a call of the fusion.

    Returns:
        The summary.

    Raises:
        ShapeError: If ``fusion`` is not a fusion, or rejects the call.

    Examples:
        >>> from grf_fusion import GatedRecurrentFusion
        >>> fusion = GatedRecurrentFusion({"text": 6, "audio": 5}, embed_dim=8)
        >>> features = {"text": torch.randn(4, 7, 6), "audio": torch.randn(4, 11, 5)}
        >>> mask = torch.arange(7) < torch.tensor([[7], [2], [3], [1]])
        >>> found = summary(fusion, features, masks={"text": mask})
        >>> found.real_steps, found.steps, found.hints
        ((13, 44), (28, 44), ())
        >>> print(summary(fusion, features, masks={"text": ~mask}).hints[0])
        Mask of 'text': steps are masked before the first real one in 3 samples. If they are ...
    """
    call = check_call(OWNER, fusion, features, masks, present)
    widths = check_modalities(OWNER, call.fusion.modalities)
    own = _own_parameters(fusion, call.names)
    total = _operations(call)
    real: list[int] = []
    steps: list[int] = []
    for name, here in zip(call.names, call.here.unbind(1), strict=True):
        x, mask = features.get(name), call.masks.get(name)
        time = 0 if x is None else x.shape[1]
        steps.append(time * len(here))
        real.append(time * int(here.sum()) if mask is None else int(mask[here].sum()))
    return Summary(
        type(fusion).__name__,
        len(call.here),
        call.names,
        tuple(widths.values()),
        tuple(int(column.sum()) for column in call.here.unbind(1)),
        tuple(real),
        tuple(steps),
        tuple(own[name] for name in call.names),
        sum(parameter.numel() for parameter in fusion.parameters()) - sum(own.values()),
        tuple(total - _operations(call, without=name) for name in call.names),
        total,
        tuple(hints_of(call)),
    )


def _own_parameters(fusion: nn.Module, names: Collection[str]) -> dict[str, int]:
    """Count the parameters of each modality; in nested dictionaries the outermost key counts."""
    counts = dict.fromkeys(names, 0)
    seen: set[nn.Parameter] = set()
    for module in fusion.modules():
        if isinstance(module, nn.ModuleDict) and set(module) <= set(names):
            for name, part in module.items():
                own = set(part.parameters()) - seen
                counts[name] += sum(parameter.numel() for parameter in own)
                seen |= own
    return counts


def _operations(call: Call, without: str | None = None) -> int:
    """Count the operations of the batch without one modality; 0 if there is no other."""
    features = {n: x.to("meta") for n, x in call.features.items() if x is not None and n != without}
    if not features:
        return 0
    weights = {name: x.to("meta") for name, x in call.fusion.state_dict().items()}
    # No masks are passed, so that the fusion cannot skip padded steps.
    with evaluating(call.fusion), FlopCounterMode(display=False) as counter:
        torch.func.functional_call(call.fusion, weights, (features,))
    return counter.get_total_flops()


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "-"
