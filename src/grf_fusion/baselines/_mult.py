"""MulT, the multimodal transformer, for any number of modalities."""

import functools
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from typing_extensions import override

from grf_fusion._checks.arguments import (
    ShapeError,
    expect_flag,
    expect_heads,
    expect_probability,
    expect_size,
)
from grf_fusion._checks.options import Modalities, Where, check_modalities
from grf_fusion._inputs.call import check_mapping
from grf_fusion._inputs.projections import Received, clear_empty
from grf_fusion.baselines._base import Baseline
from grf_fusion.baselines._mult_stack import MulTStack, extent

OWNER = "MulT"
FEWEST_MEMORY_LAYERS = 3


class MulT(Baseline):
    r"""Pairwise cross-modal Transformers (Tsai et al. 2019), for any number of modalities.

        p_k    = x_k W_k                                           d wide
        c_kj   = Stack_kj(p_k attends to p_j)                      for every j != k
        m_k    = Stack_k([c_kj; j != k])                           (n - 1) d wide, over itself
        f      = [last(m_1); ...; last(m_n)]                       n (n - 1) d wide
        h      = (f + W_b relu(W_a f + a) + b) W_o + o

    with ``d`` = ``stack_dim``. The input of a stack is ``sqrt(width) * input + PE``, also for the
    sequence it attends to. A stack ends with a LayerNorm. Its layers are

        x = x + Attention(LN(x), LN(memory), LN(memory))               the same LN for both
        x = x + W_2 relu(W_1 LN'(x))

    Query i may attend to key j if ``j <= i + |T_query - T_key|``. PE has all sines first, then all
    cosines, and counts from 1. ``Stack_k`` has ``max(num_layers, 3)`` layers, the other stacks have
    ``num_layers``. Source: MulT, arXiv 1906.00295, and the code of its authors; with three
    modalities the number of parameters is the same.

    If a sample lacks a modality, its slot in ``f`` is 0. Attention to a missing modality gives 0
    before the output projection.

    Differences from the paper: padding and missing modalities are supported, where lengths and the
    last step are those of the real steps; there may be any number of modalities from two; the
    result has ``embed_dim`` features instead of one per target. ``literal=True`` undoes the first
    difference and treats zero-padding as the original code does: it accepts no masks, uses the last
    time step, and adds no position to a step whose first projected feature is exactly 0. If every
    step is real, both are the same.

    Args:
        modalities: Name and width of each modality, at least two: a mapping or a sequence of pairs.
        embed_dim: Width of the result.
        num_heads: Number of attention heads of every stack; must divide ``stack_dim``.
        num_layers: Layers of a cross-modal stack.
        stack_dim: Width of the projections; ``None`` for ``embed_dim``.
        dropout: Dropout probability in training: after PE is added, on the attention weights, on
            each residual branch, and on the hidden features of feed-forward and head.
        literal: Whether padding is treated as content, as in the code of the MulT authors.
        device: Device of the parameters.
        dtype: Floating-point type of the parameters.

    Raises:
        ValueError: If a name, size, probability or switch is invalid.

    Examples:
        >>> fusion = MulT({"text": 6, "audio": 5}, embed_dim=8, num_heads=2, num_layers=1)
        >>> features = {"text": torch.randn(4, 7, 6), "audio": torch.randn(4, 11, 5)}
        >>> fusion(features).shape
        torch.Size([4, 8])
    """

    _owner = OWNER
    _shown = ("num_heads", "num_layers", "stack_dim", "literal")
    num_heads: int
    num_layers: int
    stack_dim: int
    literal: bool
    cross_stacks: nn.ModuleDict
    memory_stacks: nn.ModuleDict
    head_in: nn.Linear
    head_out: nn.Linear
    out_proj: nn.Linear
    dropout: nn.Dropout

    def __init__(
        self,
        modalities: Modalities,
        *,
        embed_dim: int,
        num_heads: int,
        num_layers: int = 5,
        stack_dim: int | None = None,
        dropout: float = 0.0,
        literal: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        declared = check_modalities(OWNER, modalities, fewest=2)
        expect_size(OWNER, "embed_dim", embed_dim)
        argument = "embed_dim" if stack_dim is None else "stack_dim"
        width = embed_dim if stack_dim is None else stack_dim
        expect_size(OWNER, argument, width)
        expect_heads(OWNER, argument, width, num_heads)
        expect_size(OWNER, "num_layers", num_layers)
        expect_probability(OWNER, "dropout", dropout)
        expect_flag(OWNER, "literal", literal)
        wide = (len(declared) - 1) * width
        fused = len(declared) * wide
        where: Where = {"device": device, "dtype": dtype}
        super().__init__(declared, embed_dim, width=width, bias=False, **where)
        self.num_heads = num_heads
        self.num_layers = num_layers
        self.stack_dim = width
        self.literal = literal
        stack = functools.partial(
            MulTStack, num_heads=num_heads, dropout=dropout, literal=literal, **where
        )
        self.cross_stacks = nn.ModuleDict()
        for name in declared:
            self.cross_stacks[name] = nn.ModuleDict(
                {other: stack(width, num_layers=num_layers) for other in declared if other != name}
            )
        deep = max(num_layers, FEWEST_MEMORY_LAYERS)
        self.memory_stacks = nn.ModuleDict(
            {name: stack(wide, num_layers=deep) for name in declared}
        )
        self.head_in = nn.Linear(fused, fused, **where)
        self.head_out = nn.Linear(fused, fused, **where)
        self.out_proj = nn.Linear(fused, embed_dim, **where)
        self.dropout = nn.Dropout(dropout)

    @override
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        features: Mapping[str, Tensor | None],
        *,
        masks: Mapping[str, Tensor | None] | None = None,
        present: Tensor | None = None,
        return_fused: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Fuse a batch.

        Args:
            features: Features of each modality, as in `GatedRecurrentFusion.forward`.
            masks: Real steps of each modality, in the same way; not with ``literal=True``.
            present: Which samples have which modality, in the same way; not with ``literal=True``.
            return_fused: Whether to return ``f``, the input of the head, too.

        Returns:
            The fused vector, 0 for a sample without any modality, and, with ``return_fused=True``,
            the last steps of all modalities.

        Shape:
            - features: ``(batch, time_k, d_k)`` each, lengths independent
            - masks: ``(batch, time_k)`` each
            - present: ``(batch, modalities)``
            - output: ``(batch, embed_dim)``
            - fused: ``(batch, modalities * (modalities - 1) * stack_dim)``

        Raises:
            ShapeError: If a name, shape, mask, dtype or device is wrong, or if there is a mask or a
                missing modality with ``literal=True``.
        """
        if self.literal:
            _check_literal(features, masks, present, declared=self.modalities)
        received = self._receive(features, masks, present)
        fused = torch.cat([self._last(name, received) for name in self.modalities], dim=-1)
        hidden = self.dropout(self.head_in(fused).relu())
        mixed = self.out_proj(fused + self.head_out(hidden))
        result = clear_empty(mixed, received.values())
        return (result, fused) if return_fused else result

    def _last(self, name: str, received: Mapping[str, Received]) -> Tensor:
        """Attend from a modality to all others, then to itself; return its last real step."""
        x, real, present = received[name]
        stacks = cast(nn.ModuleDict, self.cross_stacks[name])
        read = [
            stack(x, real, received[other].steps, received[other].real)
            for other, stack in stacks.items()
        ]
        memory = self.memory_stacks[name](torch.cat(read, dim=-1), real)
        if real is None:
            return memory[:, -1]
        place = (extent(real) - 1).clamp(min=0)[:, None, None].expand(-1, 1, memory.shape[-1])
        return memory.gather(1, place).squeeze(1).masked_fill(~present.unsqueeze(1), 0.0)


def _check_literal(
    features: object, masks: object, present: object, *, declared: Mapping[str, int]
) -> None:
    hint = "Build the module with literal=False."
    for argument, value in {"masks": masks, "present": present}.items():
        if value is not None:
            raise ShapeError(
                f"{OWNER}: expected no `{argument}` with literal=True, "
                f"got {type(value).__name__}. {hint}"
            )
    given = check_mapping(OWNER, "features", features, declared)
    missing = [name for name in declared if given.get(name) is None]
    if missing:
        raise ShapeError(
            f"{OWNER}: expected `features` to hold every modality with literal=True, "
            f"missing {missing}. {hint}"
        )
