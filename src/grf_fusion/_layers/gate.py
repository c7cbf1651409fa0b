"""The gated fusion unit decides, for each feature, how much an update overwrites."""

from typing import TypeGuard, cast

import torch
from torch import Tensor, nn
from typing_extensions import override

from grf_fusion._checks.arguments import (
    ShapeError,
    expect_floating,
    expect_number,
    expect_probability,
    expect_shape,
    expect_size,
    expect_tensor,
)
from grf_fusion._checks.tracing import is_untouched

OWNER = "GatedFusionUnit"


def check_unit_options(embed_dim: int, *, dropout: float, gate_bias: float) -> None:
    """Refuse, with ValueError, options that a `GatedFusionUnit` cannot be built from."""
    expect_size(OWNER, "embed_dim", embed_dim)
    expect_probability(OWNER, "dropout", dropout)
    expect_number(OWNER, "gate_bias", gate_bias, "a finite number")


class GatedFusionUnit(nn.Module):
    r"""Blend a state with an update through a learned gate.

        z = sigmoid([s; u] W_z + b_z)          update gate: 0 keeps, 1 overwrites
        c = tanh([s; u] W_c + b_c)             candidate
        h = LayerNorm(dropout((1 - z) * s + z * c))

    with ``s`` = ``state``, ``u`` = ``update`` and ``h`` = the result. ``W_z`` and ``W_c`` are the
    first and the last ``embed_dim`` rows of ``linear.weight``, transposed. Source: GRF, arXiv
    2507.02985.

    Differences from the paper: ``norm``, ``gate_bias`` and ``identity_init`` are options. With
    ``identity_init`` the gate is ``z * gate_scale``, where ``gate_scale`` is a learned scalar that
    starts at 0. A unit in a pretrained model therefore returns exactly its state, also in training
    mode, until ``gate_scale`` has changed. (The state must be finite, and -0.0 may become 0.0.)

    Args:
        embed_dim: Width of state and update.
        dropout: Probability of dropping a feature of the blend before its norm, in training.
        norm: Whether to normalise the blend. Without it every output lies between the state and
            the candidate.
        gate_bias: Initial value of ``b_z``; negative values favour the state.
        identity_init: Start as the identity on the state. Requires ``norm=False`` and
            ``dropout=0``, because both would change the state.
        device: Device of the parameters.
        dtype: Floating-point type of the parameters.

    Raises:
        ValueError: If ``embed_dim`` is not a positive integer, ``dropout`` is not in [0, 1),
            ``gate_bias`` is not finite, or ``identity_init`` is combined with ``norm=True`` or
            dropout.

    Examples:
        >>> unit = GatedFusionUnit(8)
        >>> unit(torch.zeros(4, 8), torch.zeros(4, 8)).shape
        torch.Size([4, 8])
    """

    embed_dim: int
    gate_bias: float
    linear: nn.Linear
    dropout: nn.Dropout
    norm: nn.LayerNorm | None
    gate_scale: nn.Parameter | None

    def __init__(
        self,
        embed_dim: int,
        *,
        dropout: float = 0.0,
        norm: bool = True,
        gate_bias: float = 0.0,
        identity_init: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_unit_options(embed_dim, dropout=dropout, gate_bias=gate_bias)
        if identity_init and (norm or dropout > 0):
            raise ValueError(
                f"{OWNER}: expected `identity_init=True` with norm=False and dropout=0, "
                f"got norm={norm} and dropout={dropout}. Either would change the state."
            )
        super().__init__()
        self.embed_dim = embed_dim
        self.gate_bias = gate_bias
        # Gate and candidate have the same input, so that one matrix product computes both.
        self.linear = nn.Linear(2 * embed_dim, 2 * embed_dim, device=device, dtype=dtype)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(embed_dim, device=device, dtype=dtype) if norm else None
        scale = torch.empty((), device=device, dtype=dtype)
        self.gate_scale = nn.Parameter(scale) if identity_init else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Reinitialise the parameters; the bias of the gate starts at ``gate_bias``."""
        self.linear.reset_parameters()
        with torch.no_grad():
            self.linear.bias[: self.embed_dim].fill_(self.gate_bias)
            if self.gate_scale is not None:
                self.gate_scale.zero_()
        if self.norm is not None:
            self.norm.reset_parameters()

    @override
    def forward(
        self, state: Tensor, update: Tensor, *, return_gate: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Blend ``state`` with ``update``.

        Args:
            state: The current state.
            update: The new information.
            return_gate: Whether to return the gate too: the share of each feature that is
                overwritten, in [0, 1]. With ``identity_init`` it is multiplied by ``gate_scale``,
                which is not bounded.

        Returns:
            The new state, and the gate with ``return_gate=True``.

        Shape:
            - state: ``(..., dim)``
            - update: the shape of ``state``
            - output, gate: the shape of ``state``

        Raises:
            ShapeError: If a width, shape, dtype or device is wrong.
        """
        self._check(state, update)
        fused, gate = blend(self, state, update)
        return (fused, gate) if return_gate else fused

    @override
    def extra_repr(self) -> str:
        """Show the sizes."""
        return (
            f"embed_dim={self.embed_dim}, gate_bias={self.gate_bias}, "
            f"identity_init={self.gate_scale is not None}"
        )

    def _check(self, state: Tensor, update: Tensor) -> None:
        expect_tensor(OWNER, "state", state)
        expect_tensor(OWNER, "update", update)
        if state.ndim == 0 or state.shape[-1] != self.embed_dim:
            raise ShapeError(
                f"{OWNER}: expected `state` of shape (..., dim={self.embed_dim}), "
                f"got {tuple(state.shape)}."
            )
        names = ("batch", "time") if state.ndim <= 3 else [f"axis_{i}" for i in range(state.ndim)]
        axes = dict(zip(names[: state.ndim - 1], state.shape[:-1], strict=True))
        expect_shape(OWNER, "update", update, {**axes, "dim": self.embed_dim})
        expect_floating(OWNER, "state", state, self.linear.weight)
        expect_floating(OWNER, "update", update, self.linear.weight)


def blend(unit: GatedFusionUnit, state: Tensor, update: Tensor) -> tuple[Tensor, Tensor]:
    """Run the unit's ``forward`` without its checks; return the new state and the gate."""
    both = torch.cat((state, update), dim=-1)
    if torch.compiler.is_compiling():
        # A leading axis makes ONNX export a MatMul instead of a Gemm. All steps of a chain share
        # the weight, and onnxruntime's quantiser would transpose it once for each Gemm.
        pair = unit.linear(both.unsqueeze(0)).squeeze(0)
    else:
        pair = unit.linear(both)
    pair = pair if pair.dtype == state.dtype else pair.to(state.dtype)
    gate, candidate = pair.chunk(2, dim=-1)
    gate = gate.sigmoid()
    if unit.gate_scale is not None:
        gate = gate * unit.gate_scale
    # lerp stays between state and candidate; (1 - z) * s + z * c can leave it by rounding.
    blended = unit.dropout(torch.lerp(state, candidate.tanh(), gate))
    return blended if unit.norm is None else unit.norm(blended), gate


def is_own_unit(
    unit: nn.Module, state: Tensor, *, compiled: bool = False
) -> TypeGuard[GatedFusionUnit]:
    """Whether calling the unit only runs our ``forward``, whose checks this state passes.

    With ``compiled=True`` the unit may have been compiled by `torch.nn.Module.compile`.
    """
    if torch.compiler.is_compiling() or type(unit) is not GatedFusionUnit:
        return False
    weight = cast(object, unit.linear.weight)
    if not isinstance(weight, Tensor) or state.shape[-1] != unit.embed_dim:
        return False
    same = weight.dtype == state.dtype and weight.device == state.device
    return same and is_untouched(unit, compiled=compiled)
