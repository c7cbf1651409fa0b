"""Concatenation of pooled vectors or of all time steps."""

from collections.abc import Mapping
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from grf_fusion._checks.arguments import (
    expect_choice,
    expect_heads,
    expect_probability,
    expect_size,
)
from grf_fusion._checks.options import Modalities, Where, check_modalities
from grf_fusion._checks.tracing import is_plain_call
from grf_fusion._eager.layout import Layout, Padded, lay_out, worth_packing
from grf_fusion._eager.pooling import PaddedSteps, mean_and_max
from grf_fusion._inputs.masks import masked_mean
from grf_fusion._inputs.projections import (
    Received,
    add_positions,
    clear_empty,
    join,
    make_projections,
    weight_of,
)
from grf_fusion.baselines._base import Baseline
from grf_fusion.baselines._encoder import EncoderLayer

OWNER = "ConcatFusion"


class ConcatFusion(Baseline):
    r"""Concatenate the modalities and mix them.

        p_k   = x_k W_k + b_k
        late:    h = Mix([Pool(p_1); ...; Pool(p_n)])
        pooled:  e_k = GELU(GELU(p_k) V_k + a_k)
                 h = Mix([Pool(e_1); Max(e_1); ...; Pool(e_n); Max(e_n)])
        early:   h = Pool(Encoder([p_1 + PE; ...; p_n + PE]))
        Mix(v) = W_2 GELU(W_1 v + c_1) + c_2

    Pool is the mean and Max the maximum over real steps, PE the sinusoidal position encoding of
    each modality. The late form concatenates features. The pooled form does so too, behind a small
    network per modality that is applied to every step; it is the baseline to beat. The early form
    concatenates time steps, and every step attends to the real steps of all modalities, in
    post-norm layers like those of `torch.nn.TransformerEncoderLayer` with GELU.

    If a sample lacks a modality, it is 0 in the late and the pooled form and is not attended to in
    the early form. There are no presence flags and no modality embeddings, because the biases act
    as both: a bias is added only if its modality is present.

    Args:
        modalities: Name and width of each modality: a mapping or a sequence of pairs.
        embed_dim: Width of the projections and of the result.
        stage: ``"late"``, ``"pooled"`` or ``"early"``.
        num_heads: Number of attention heads, required in the early form; must divide ``embed_dim``.
        num_layers: Layers of the early form; ``None`` for 1.
        dim_feedforward: Hidden width of the MLP in the late and the pooled form, or of the
            feed-forward layers in the early form; ``None`` for ``4 * embed_dim``, and for
            ``2 * embed_dim`` in the pooled form.
        dropout: Dropout probability in training: on the hidden features, and in the early form
            also after PE is added, on the attention weights and on each residual branch.
        device: Device of the parameters.
        dtype: Floating-point type of the parameters.

    Raises:
        ValueError: If a name, size, probability or option is invalid, or an option of the early
            form is used with another one.

    Examples:
        >>> fusion = ConcatFusion({"text": 6, "audio": 5}, embed_dim=8)
        >>> fusion({"text": torch.randn(4, 7, 6), "audio": torch.randn(4, 11, 5)}).shape
        torch.Size([4, 8])
    """

    _owner = OWNER
    _shown = ("stage", "num_heads")
    stage: Literal["late", "pooled", "early"]
    num_heads: int | None
    dropout: float
    encoders: nn.ModuleDict | None
    mix: nn.Sequential | None
    layers: nn.ModuleList | None

    def __init__(
        self,
        modalities: Modalities,
        *,
        embed_dim: int,
        stage: Literal["late", "pooled", "early"] = "late",
        num_heads: int | None = None,
        num_layers: int | None = None,
        dim_feedforward: int | None = None,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        declared = check_modalities(OWNER, modalities)
        expect_size(OWNER, "embed_dim", embed_dim)
        expect_choice(OWNER, "stage", stage, ("late", "pooled", "early"))
        if dim_feedforward is None:
            dim_feedforward = (2 if stage == "pooled" else 4) * embed_dim
        expect_size(OWNER, "dim_feedforward", dim_feedforward)
        expect_probability(OWNER, "dropout", dropout)
        depth = 1 if num_layers is None else num_layers
        if stage == "early":
            if num_heads is None:
                raise ValueError(
                    f"{OWNER}: expected `num_heads` with stage='early', got None. "
                    "The early form has attention: say how many heads, a divisor of `embed_dim`."
                )
            expect_heads(OWNER, "embed_dim", embed_dim, num_heads)
            expect_size(OWNER, "num_layers", depth)
        for argument, value in {"num_heads": num_heads, "num_layers": num_layers}.items():
            if stage != "early" and value is not None:
                raise ValueError(
                    f"{OWNER}: expected no `{argument}` with stage={stage!r}, got {value!r}. "
                    f"The {stage} form has no attention: use stage='early'."
                )
        where: Where = {"device": device, "dtype": dtype}
        super().__init__(declared, embed_dim, **where)
        self.stage = stage
        self.num_heads = num_heads
        self.dropout = dropout
        self.encoders = self.mix = self.layers = None
        if stage == "pooled":
            widths = dict.fromkeys(declared, embed_dim)
            self.encoders = make_projections(widths, embed_dim, **where)
        if num_heads is None:
            width = (2 if stage == "pooled" else 1) * len(declared) * embed_dim
            self.mix = nn.Sequential(
                nn.Linear(width, dim_feedforward, **where),
                nn.GELU(),
                nn.Dropout(dropout),
                nn.Linear(dim_feedforward, embed_dim, **where),
            )
        else:
            self.layers = nn.ModuleList(
                EncoderLayer(
                    embed_dim,
                    num_heads=num_heads,
                    dim_feedforward=dim_feedforward,
                    dropout=dropout,
                    **where,
                )
                for _ in range(depth)
            )

    @override
    def _fuse(self, received: dict[str, Received]) -> Tensor:
        parts = list(received.values())
        if self.layers is None:
            vectors = torch.cat(self._pool(received), dim=-1)
            return clear_empty(cast(nn.Sequential, self.mix)(vectors), parts)
        like = weight_of(self.projections)
        encoded = [add_positions(part.steps, like) for part in parts]
        x, real = join(encoded, [part.real for part in parts])
        steps: Layout = Padded(real)
        if is_plain_call(x) and worth_packing([real], packing="auto", width=self.embed_dim):
            (steps,) = lay_out([x], [real])
            x = steps.pack(x)
        x = F.dropout(x, self.dropout, self.training)
        for layer in self.layers:
            x = layer(x, steps)
        return masked_mean(steps.unpack(x), real)

    def _pool(self, received: Mapping[str, Received]) -> list[Tensor]:
        if self.encoders is None:
            return [part.pool() for part in received.values()]
        vectors: list[Tensor] = []
        for name, part in received.items():
            encoded = F.gelu(self.encoders[name](F.gelu(part.steps)))
            vectors.append(mean_and_max(encoded, PaddedSteps(part.real, encoded.shape[1])))
        return vectors
