"""Plans for PyTorch's tensor parallelism."""

from collections.abc import Iterator
from typing import cast

from torch import nn
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel
from torch.distributed.tensor.parallel.style import ParallelStyle

from grf_fusion._layers.attention import Attention, OneKeyAttention
from grf_fusion._layers.decoder import DecoderLayer
from grf_fusion._layers.linear_attention import LinearAttention

__all__ = ["tensor_parallel_plan"]


def tensor_parallel_plan(module: nn.Module) -> dict[str, ParallelStyle]:
    """Return a plan for `torch.distributed.tensor.parallel.parallelize_module`.

    Attention heads and hidden features of the feed-forward layers are divided among the processes,
    so each layer needs two all-reduces. Everything else (norms, gates, projections of the features)
    is replicated.

    Args:
        module: A `GatedRecurrentFusion`, a `FusionAdapter`, a `SymmetricCrossAttentionBlock`, or a
            model that contains some of them.

    Returns:
        A style for each linear layer that is divided, by its name in ``module``.

    Raises:
        ValueError: If the module contains no `SymmetricCrossAttentionBlock`.

    Examples:
        >>> from grf_fusion import SymmetricCrossAttentionBlock
        >>> block = SymmetricCrossAttentionBlock(8, num_heads=2, self_attention=False)
        >>> plan = tensor_parallel_plan(block)
        >>> len(plan)
        12
        >>> type(plan["context_layers.0.cross_attn.q_proj"]).__name__
        'ColwiseParallel'
        >>> type(plan["context_layers.0.linear2"]).__name__
        'RowwiseParallel'
    """
    plan: dict[str, ParallelStyle] = {}
    for name, part in cast("Iterator[tuple[str, nn.Module]]", module.named_modules()):
        if isinstance(part, Attention | LinearAttention | OneKeyAttention):
            inward = [child for child, _ in part.named_children() if child != "out_proj"]
            outward = "out_proj"
        elif isinstance(part, DecoderLayer):
            inward, outward = ["linear1"], "linear2"
        else:
            continue
        prefix = f"{name}." if name else ""
        plan |= {f"{prefix}{child}": ColwiseParallel() for child in inward}
        plan[f"{prefix}{outward}"] = RowwiseParallel()
    if not plan:
        raise ValueError(
            "tensor_parallel_plan: expected `module` to hold a block of grf_fusion, "
            f"got {type(module).__name__}."
        )
    return plan
