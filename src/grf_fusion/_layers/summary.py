"""A modality as one vector: a small network per step, then the mean and the maximum over steps."""

from typing import Literal

from torch import Tensor, nn
from typing_extensions import Unpack, override

from grf_fusion._checks.options import Where
from grf_fusion._eager.pooling import PaddedSteps, mean_and_max
from grf_fusion._eager.real_steps import RealSteps
from grf_fusion._eager.rows import Rows
from grf_fusion._layers.decoder import ACTIVATIONS


class ModalitySummary(nn.Module):
    r"""Summarise the projected steps of one modality.

        e_t = act(W_l act(... act(x_t)) + b_l)              a network per step, num_layers deep
        u   = LN([mean_t e_t; max_t e_t] W + b)             over the real steps

    with dropout on the mean and the maximum.
    """

    hidden: nn.ModuleList
    output: nn.Linear
    norm: nn.LayerNorm
    dropout: nn.Dropout
    activation: Literal["gelu", "relu"]

    def __init__(
        self,
        embed_dim: int,
        *,
        num_layers: int,
        dropout: float,
        activation: Literal["gelu", "relu"],
        **where: Unpack[Where],
    ) -> None:
        super().__init__()
        self.activation = activation
        linears = (nn.Linear(embed_dim, embed_dim, **where) for _ in range(num_layers))
        self.hidden = nn.ModuleList(linears)
        self.output = nn.Linear(2 * embed_dim, embed_dim, **where)
        self.norm = nn.LayerNorm(embed_dim, **where)
        self.dropout = nn.Dropout(dropout)

    @override
    def forward(
        self, steps: Tensor, mask: Tensor | None, packed: RealSteps | Rows | None = None
    ) -> Tensor:
        """Return one vector per sample; if the steps are rows, ``packed`` has their positions.

        Shape:
            - steps: ``(batch, time, dim)`` or ``(rows, dim)``, projected, with positions
            - mask: ``(batch, time)`` bool with at least one real step per sample, ``None`` for all
            - output: ``(batch, dim)``
        """
        act = ACTIVATIONS[self.activation]
        for linear in self.hidden:
            steps = linear(act(steps))
        steps = act(steps)
        if packed is None:
            pooled = mean_and_max(steps, PaddedSteps(mask, steps.shape[1]))
        else:
            pooled = packed.pool(steps)
        return self.norm(self.output(self.dropout(pooled)))
