"""Attention weights of each step."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import cast

import torch
from torch import Tensor, nn

from grf_fusion._chain.fusion import GatedRecurrentFusion
from grf_fusion._checks.arguments import ShapeError
from grf_fusion._layers.attention import AttentionWeights
from grf_fusion._layers.block import SymmetricCrossAttentionBlock
from grf_fusion.diagnostics._calls import evaluating
from grf_fusion.diagnostics._trace import read_trace

OWNER = "attention_maps"


def attention_maps(
    fusion: GatedRecurrentFusion,
    features: Mapping[str, Tensor | None],
    *,
    masks: Mapping[str, Tensor | None] | None = None,
    present: Tensor | None = None,
    order: Sequence[str] | None = None,
) -> dict[str, AttentionWeights]:
    """Return the attention weights of every step, head and layer.

    The fusion runs once, in eval mode without gradients, and is unchanged afterwards.
    ``context_cross`` shows which steps of the modality the context attends to; it has one query if
    the context is one vector.

    A custom block (``block=``) is supported if its ``forward`` accepts ``need_weights`` and then
    returns `AttentionWeights` as a third value. Otherwise the first `SymmetricCrossAttentionBlock`
    inside it is used, and its last call in a step counts.

    Args:
        fusion: The fusion.
        features: Features of each modality, as in a call of the fusion.
        masks: Real steps of each modality, as in a call of the fusion.
        present: Which samples have which modality, as in a call of the fusion.
        order: Order of fusion, as in a call of the fusion.

    Returns:
        The weights by modality, in the order of fusion, for all modalities that have a step; with
        ``opening="first"`` the first has none. They are 0 for a sample that lacks the modality or
        opens with it.

    Shape:
        - each weight: ``(batch, layers, heads, queries, keys)``

    Raises:
        ShapeError: If ``fusion`` is not a `GatedRecurrentFusion`, if a custom block returns no
            weights, or if the fusion rejects the call.

    Examples:
        >>> fusion = GatedRecurrentFusion(
        ...     {"text": 6, "audio": 5}, embed_dim=8, num_heads=2, form="residual"
        ... )
        >>> features = {"text": torch.randn(4, 7, 6), "audio": torch.randn(4, 11, 5)}
        >>> maps = attention_maps(fusion, features)
        >>> maps["audio"].context_cross.shape
        torch.Size([4, 1, 2, 1, 11])
    """
    if not isinstance(fusion, GatedRecurrentFusion):
        raise ShapeError(
            f"{OWNER}: expected `fusion` to be a GatedRecurrentFusion, "
            f"got {type(fusion).__name__}. Give the fusion inside the model, not compiled."
        )
    if fusion.form == "summary":
        raise ShapeError(
            f"{OWNER}: expected `fusion` with a block, got form='summary', which has no attention. "
            "Write form='residual' or form='paper'."
        )
    caught: list[AttentionWeights | None] = []
    blocks = [fusion.block] if fusion.blocks is None else fusion.blocks.values()
    with ExitStack() as hooks, evaluating(fusion):
        for block in blocks:
            for handle in _watch(cast(nn.Module, block), caught):
                hooks.enter_context(handle)
        _, trace = fusion(features, masks=masks, present=present, order=order, return_trace=True)
    steps = read_trace(OWNER, trace)
    # If a single modality opens the context, the fusion calls the block once without a modality.
    caught = caught[: len(steps.names)]
    maps: dict[str, AttentionWeights] = {}
    for name, weights, applied in zip(steps.names, caught, steps.applied.unbind(1), strict=True):
        if weights is None:
            raise ShapeError(
                f"{OWNER}: expected `block` to call the SymmetricCrossAttentionBlock that it "
                "holds, got a step without a call."
            )
        skipped = ~applied.reshape(-1, 1, 1, 1, 1)
        maps[name] = AttentionWeights(
            *(None if part is None else part.masked_fill(skipped, 0.0) for part in weights)
        )
    return maps


def _watch(
    block: nn.Module, caught: list[AttentionWeights | None]
) -> Iterator[torch.utils.hooks.RemovableHandle]:
    """Register hooks that record the attention weights of every call of a block."""

    def record(module: nn.Module, _inputs: object, output: object) -> object:
        values = cast("tuple[object, ...]", output if isinstance(output, tuple) else (output,))
        weights = values[-1]
        if len(values) != 3 or not isinstance(weights, AttentionWeights):
            kinds = ", ".join(type(value).__name__ for value in values)
            raise ShapeError(
                f"{OWNER}: expected `block()` with need_weights=True to return context, modality "
                f"and AttentionWeights, got {kinds} from {type(module).__name__}."
            )
        caught[-1] = weights
        return values[:2]

    source = _source(block)
    yield block.register_forward_pre_hook(lambda _module, _inputs: caught.append(None))
    yield source.register_forward_pre_hook(
        lambda _module, inputs, options: (inputs, options | {"need_weights": True}),
        with_kwargs=True,
    )
    yield source.register_forward_hook(record)


def _source(block: nn.Module) -> nn.Module:
    """Return the module that computes the weights: the block itself, or our block inside it."""
    if "need_weights" in inspect.signature(block.forward).parameters:
        return block
    for part in block.modules():
        if isinstance(part, SymmetricCrossAttentionBlock):
            return part
    raise ShapeError(
        f"{OWNER}: expected `block` to take `need_weights` or to hold a "
        f"SymmetricCrossAttentionBlock, got {type(block).__name__}."
    )
