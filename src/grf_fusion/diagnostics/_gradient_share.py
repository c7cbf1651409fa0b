"""The share of the gradient that reaches each modality."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from grf_fusion._checks.arguments import ShapeError, expect_tensor
from grf_fusion.diagnostics._calls import check_call, evaluating
from grf_fusion.diagnostics._trace import mean_where

OWNER = "gradient_share"


class GradientShare(NamedTuple):
    """How the gradient of a loss is divided among the modalities.

    Attributes:
        names: The modalities in declared order, the columns of the other attributes.
        norms: ``(batch, modalities)``: Euclidean norm of the gradient at the projected modality, in
            the unit of the loss; exactly 0 if it is missing.
        shares: ``(batch, modalities)``: the same divided by its sum; a row sums to 1, or is 0 if
            there is no gradient.
        mean: ``(modalities,)``: mean of ``shares`` over the samples that have the modality; NaN
            if none does.
    """

    names: tuple[str, ...]
    norms: Tensor
    shares: Tensor
    mean: Tensor


def gradient_share(
    fusion: nn.Module,
    features: Mapping[str, Tensor | None],
    loss: Callable[[Tensor], Tensor],
    *,
    masks: Mapping[str, Tensor | None] | None = None,
    present: Tensor | None = None,
) -> GradientShare:
    r"""Measure how much of the gradient of a loss reaches each modality.

        g_k     = || d loss / d p_k ||        p_k = x_k W_k + b_k, all steps of a sample
        share_k = g_k / (g_1 + ... + g_n)

    The gradient is taken at the projected modality, not at the weights of the projection. p_k has
    ``embed_dim`` features for every modality, so the result does not depend on the width or scale
    of the modality, and every sample has its own gradient.

    The fusion runs in eval mode. Afterwards each module is in its previous mode, and no ``grad`` of
    a parameter has changed. It works with frozen weights and under `torch.no_grad`.

    Args:
        fusion: A `GatedRecurrentFusion` or a fusion of `grf_fusion.baselines`.
        features: Features of each modality, as in a call of the fusion.
        loss: Function from contexts to the loss of the batch, such as a head with `cross_entropy`.
        masks: Real steps of each modality, as in a call of the fusion.
        present: Which samples have which modality, as in a call of the fusion.

    Returns:
        Norms and shares.

    Shape:
        - loss: ``(batch, dim)`` to ``()``

    Raises:
        ShapeError: If ``fusion`` is not a fusion with projections, ``loss`` does not return one
            number that depends on the context, or the fusion rejects the call.

    Examples:
        >>> from grf_fusion import GatedRecurrentFusion
        >>> fusion = GatedRecurrentFusion({"text": 6, "audio": 5}, embed_dim=8)
        >>> features = {"text": torch.randn(4, 7, 6), "audio": torch.randn(4, 11, 5)}
        >>> share = gradient_share(fusion, features, lambda context: context.square().mean())
        >>> share.names, share.norms.shape
        (('text', 'audio'), torch.Size([4, 2]))
    """
    call = check_call(OWNER, fusion, features, masks, present, loss=loss)
    projections = getattr(fusion, "projections", None)
    if not isinstance(projections, nn.ModuleDict) or set(projections) != set(call.names):
        held = isinstance(projections, nn.ModuleDict)
        raise ShapeError(
            f"{OWNER}: expected `fusion.projections` to hold a module for each of "
            f"{list(call.names)}, got {list(projections) if held else type(projections).__name__}."
        )
    projected: dict[str, Tensor] = {}

    def catch(name: str, _module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        # A leaf ends the backward pass, so that frozen parameters before it do not matter.
        leaf = output.detach().requires_grad_()
        # Only the first call projects the modality. A second one keeps parameters in the graph.
        projected.setdefault(name, leaf)
        return leaf

    with ExitStack() as hooks, evaluating(fusion), torch.enable_grad():
        for name in call.names:
            hooks.enter_context(projections[name].register_forward_hook(partial(catch, name)))
        total = expect_tensor(OWNER, "loss(context)", loss(call.run(call.here)[0]))
        if total.numel() != 1:
            raise ShapeError(
                f"{OWNER}: expected `loss(context)` to be one number, got shape "
                f"{tuple(total.shape)}. Take its mean."
            )
        if not total.requires_grad:
            raise ShapeError(
                f"{OWNER}: expected `loss(context)` to depend on the context, got a tensor without "
                "a gradient. Compute it without `detach` and `torch.no_grad`."
            )
        leaves = [projected[name] for name in call.names]
        gradients = torch.autograd.grad(total, leaves, materialize_grads=True)
    rows = [g.flatten(1).to(torch.promote_types(g.dtype, torch.float32)) for g in gradients]
    columns = [cast(Tensor, torch.linalg.vector_norm(x, dim=1)) for x in rows]  # pyright: ignore[reportUnknownMemberType]
    norms = torch.stack(columns, dim=1).masked_fill(~call.here, 0.0)
    whole = norms.sum(dim=1, keepdim=True)
    shares = norms / whole.masked_fill(whole == 0, 1.0)
    return GradientShare(call.names, norms, shares, mean_where(shares, call.here))
