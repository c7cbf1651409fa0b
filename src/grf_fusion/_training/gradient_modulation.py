"""Balance the modalities during training: the stronger one gets smaller gradients."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from grf_fusion._checks.arguments import (
    ShapeError,
    expect_flag,
    expect_number,
    expect_shape,
    expect_tensor,
)
from grf_fusion._inputs.call import check_names, check_present
from grf_fusion._inputs.masks import is_integer

OWNER = "modulate_gradients"


def modulate_gradients(
    modules: Mapping[str, nn.Module] | nn.ModuleDict,
    logits: Mapping[str, Tensor],
    targets: Tensor,
    *,
    alpha: float,
    noise: bool = True,
    present: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    r"""Reduce the gradients of modalities that are ahead of the others.

    Call it between ``backward()`` and the optimiser step:

        s_k   = mean of softmax(logits_k)[target] over the samples that have modality k
        rho_k = s_k / mean of s_j over the other modalities j that some sample has
        c_k   = 1 - tanh(alpha * rho_k) if rho_k > 1, else 1
        g     = c_k * g + e,   e ~ Normal(0, std(g)^2)

    for every gradient ``g`` of ``modules[k]``. ``std(g)`` is the standard deviation of the entries
    of ``g`` before scaling. Source: OGM-GE, Peng et al. 2022, arXiv 2203.15332; with two modalities
    it is their formula.

    Differences from the paper: there may be any number of modalities, each compared with the mean
    of the others; a sample counts for the modalities that it has; a gradient with a single entry
    has no standard deviation and gets no noise.

    ``logits_k`` are the model's logits given only modality k. With a fusion and a head, omit all
    other modalities, as in the example. In distributed training all ranks must use the same
    arguments: gather logits, targets and ``present``, and seed ``generator`` equally.

    Args:
        modules: The module that belongs to each modality alone; no two share a parameter.
        logits: Logits given only this modality, for each modality; only their values are used.
        targets: The true classes; values out of range are refused on the CPU only, because checking
            them on another device would synchronise.
        alpha: Strength of the modulation, at least 0; the OGM-GE paper uses 0.1 to 1.
        noise: Whether to add the noise that compensates for smaller gradients (GE).
        present: Which samples have which modality, columns in the order of ``modules``; ``None`` if
            all samples have all modalities.
        generator: Generator of the noise; ``None`` for the global one.

    Returns:
        The factors ``c_k``, for logging. Gradients are changed in place. A parameter without a
        gradient stays without one, and a gradient of 0 stays 0.

    Shape:
        - logits: ``(batch, classes)`` each
        - targets: ``(batch,)``
        - present: ``(batch, modalities)``
        - output: ``()`` each

    Raises:
        ValueError: If ``alpha`` is not finite and at least 0, or ``noise`` is not a bool.
        ShapeError: If modules, names, shapes, dtypes or devices are wrong, or there is no
            gradient. In this case nothing is changed.

    Examples:
        >>> from grf_fusion.baselines import ConcatFusion
        >>> fusion, head = ConcatFusion({"text": 6, "audio": 5}, embed_dim=8), nn.Linear(8, 3)
        >>> features = {"text": torch.randn(4, 7, 6), "audio": torch.randn(4, 11, 5)}
        >>> targets = torch.tensor([0, 2, 1, 1])
        >>> nn.functional.cross_entropy(head(fusion(features)), targets).backward()
        >>> alone = {name: head(fusion({name: x})) for name, x in features.items()}
        >>> factors = modulate_gradients(fusion.projections, alone, targets, alpha=0.5)
        >>> min(factors.values()) < 1
        tensor(True)
    """
    gradients = _check_modules(modules)
    names = list(gradients)
    expect_number(OWNER, "alpha", alpha, "a finite number of at least 0", at_least=0)
    expect_flag(OWNER, "noise", noise)
    scores = _check_logits(logits, names)
    _check_targets(targets, scores[0])
    batch, count, device = len(targets), len(names), targets.device
    if present is None:
        present = torch.ones(batch, count, dtype=torch.bool, device=device)
    here = check_present(OWNER, present, batch=batch, modalities=count, device=device)
    with torch.no_grad():
        factors = _factors(torch.stack(scores, dim=1), targets, here, alpha)
        for factor, own in zip(factors, gradients.values(), strict=True):
            for gradient in own:
                spread = gradient.std() if noise and gradient.numel() > 1 else None
                gradient.mul_(factor.to(gradient))
                if spread is not None:
                    drawn = torch.empty_like(gradient).normal_(generator=generator)
                    gradient.add_(drawn * spread)
    return dict(zip(names, factors.unbind(), strict=True))


def _factors(logits: Tensor, targets: Tensor, here: Tensor, alpha: float) -> Tensor:
    """Return ``c_k`` from logits ``(batch, modalities, classes)``."""
    index = targets.long()[:, None, None].expand(-1, logits.shape[1], 1)
    exact = torch.promote_types(logits.dtype, torch.float32)
    likelihood = logits.softmax(dim=-1, dtype=exact).gather(-1, index).squeeze(-1)
    means = likelihood.masked_fill(~here, 0.0).sum(dim=0) / here.sum(dim=0).clamp(min=1)
    itself = torch.eye(len(means), dtype=torch.bool, device=means.device)
    others = here.any(dim=0) & ~itself
    rest = (means * others).sum(dim=1) / others.sum(dim=1).clamp(min=1)
    ratio = means / rest.clamp(min=torch.finfo(means.dtype).tiny)
    # A modality is not ahead if no sample has another one.
    ahead = (ratio > 1) & others.any(dim=1)
    return torch.where(ahead, 1 - torch.tanh(alpha * ratio), torch.ones_like(ratio))


def _check_modules(modules: object) -> dict[str, list[Tensor]]:
    """Return the gradients of each module; raise if there are none."""
    # nn.ModuleDict is not a `Mapping`, but it has `items`.
    if not isinstance(modules, Mapping | nn.ModuleDict):
        raise _misfit(f"`modules` to map names to modules, got {type(modules).__name__}.")
    owners: dict[nn.Parameter, str] = {}
    gradients: dict[str, list[Tensor]] = {}
    for name, module in cast("Mapping[Any, object]", modules).items():
        if not isinstance(module, nn.Module):
            raise _misfit(f"`modules[{name!r}]` to be an nn.Module, got {type(module).__name__}.")
        gradients[name] = []
        for key, parameter in module.named_parameters():
            other = owners.setdefault(parameter, name)
            if other != name:
                raise _misfit(
                    f"`modules[{name!r}]` to share no parameter with another, "
                    f"got {key!r}, which is in {other!r} too."
                )
            if parameter.grad is not None:
                expect_tensor(OWNER, f"modules[{name!r}].{key}.grad", parameter.grad)
                gradients[name].append(parameter.grad)
    if not any(gradients.values()):
        raise _misfit(
            "`modules` to have gradients, got none. "
            "Call it between backward() and the optimiser's step."
        )
    return gradients


def _check_logits(logits: object, names: Sequence[str]) -> list[Tensor]:
    if not isinstance(logits, Mapping):
        raise _misfit(f"`logits` to map names to tensors, got {type(logits).__name__}.")
    given = cast("Mapping[Any, object]", logits)
    check_names(OWNER, "logits", tuple(given), names)
    missing = [name for name in names if name not in given]
    if missing:
        raise _misfit(f"`logits` to name each of {list(names)}, missing {missing}.")
    scores: list[Tensor] = []
    axes: dict[str, int | None] = {"batch": None, "classes": None}
    for name in names:
        argument = f"logits[{name!r}]"
        tensor = expect_tensor(OWNER, argument, given[name])
        expect_shape(OWNER, argument, tensor, axes)
        scores.append(tensor)
        dtype, device = scores[0].dtype, scores[0].device
        if not tensor.is_floating_point() or tensor.dtype != dtype:
            raise _misfit(
                f"`{argument}` to be floating-point and of one dtype with the "
                f"others, got {tensor.dtype}."
            )
        if tensor.device != device:
            raise _misfit(f"`{argument}` on device {device}, as the others, got {tensor.device}.")
        axes = dict(zip(axes, tensor.shape, strict=True))
    return scores


def _check_targets(targets: object, logits: Tensor) -> None:
    (batch, classes), device = logits.shape, logits.device
    tensor = expect_tensor(OWNER, "targets", targets)
    expect_shape(OWNER, "targets", tensor, {"batch": batch}, " Give classes, not one-hot rows.")
    if not is_integer(tensor) or tensor.device != device:
        raise _misfit(
            f"`targets` to hold integers on device {device}, as the logits, "
            f"got {tensor.dtype} on {tensor.device}."
        )
    # On other devices this check would force a host-device sync.
    if device.type == "cpu" and bool(((tensor < 0) | (tensor >= classes)).any()):
        raise _misfit(
            f"`targets` between 0 and {classes - 1}, "
            f"got {int(tensor.min())} to {int(tensor.max())}."
        )


def _misfit(expected: str) -> ShapeError:
    return ShapeError(f"{OWNER}: expected {expected}")
