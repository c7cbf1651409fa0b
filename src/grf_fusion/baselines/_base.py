"""The base class of all baselines: declared modalities, each with a projection."""

from collections.abc import Callable, Mapping
from typing import ClassVar

from torch import Tensor, nn
from typing_extensions import Unpack, override

from grf_fusion._checks.options import Where
from grf_fusion._inputs.call import Arrival, check_call, presence_matrix
from grf_fusion._inputs.projections import Received, make_projections, project_all, weight_of


class Baseline(nn.Module):
    """Declared modalities, each with a projection.

    ``_owner`` is the name in error messages, and ``_shown`` names the settings that `repr` shows. A
    baseline implements ``_fuse``, or ``forward`` itself if that has options or returns a loss.

    We use a base class, against our own rule, because five copies of this setup would hide how the
    baselines differ.
    """

    _owner: ClassVar[str]
    _shown: ClassVar[tuple[str, ...]]
    _fuse: Callable[..., Tensor]
    modalities: dict[str, int]
    embed_dim: int
    projections: nn.ModuleDict

    def __init__(
        self,
        modalities: dict[str, int],
        embed_dim: int,
        *,
        width: int | None = None,
        bias: bool = True,
        **where: Unpack[Where],
    ) -> None:
        super().__init__()
        self.modalities = modalities
        self.embed_dim = embed_dim
        self.projections = make_projections(modalities, width or embed_dim, bias=bias, **where)

    @override
    def forward(
        self,
        features: Mapping[str, Tensor | None],
        *,
        masks: Mapping[str, Tensor | None] | None = None,
        present: Tensor | None = None,
    ) -> Tensor:
        """Fuse a batch.

        Args:
            features: Features of each modality, as in `GatedRecurrentFusion.forward`.
            masks: Real steps of each modality, as in `GatedRecurrentFusion.forward`.
            present: Which samples have which modality, as in `GatedRecurrentFusion.forward`.

        Returns:
            The fused vector, 0 for a sample without any modality.

        Shape:
            - features: ``(batch, time_k, d_k)`` each, lengths independent
            - masks: ``(batch, time_k)`` each
            - present: ``(batch, modalities)``
            - output: ``(batch, embed_dim)``

        Raises:
            ShapeError: If a name, shape, mask, dtype or device is wrong.
        """
        return self._fuse(self._receive(features, masks, present))

    def presence(
        self,
        features: Mapping[str, Tensor | None],
        *,
        masks: Mapping[str, Tensor | None] | None = None,
        present: Tensor | None = None,
    ) -> Tensor:
        """Return which samples have which modality; see `GatedRecurrentFusion.presence`."""
        return presence_matrix(self._check(features, masks, present))

    @override
    def extra_repr(self) -> str:
        """Show modalities, sizes and settings."""
        shown = ("modalities", "embed_dim", *self._shown)
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in shown)

    def _check(self, features: object, masks: object, present: object) -> dict[str, Arrival]:
        declared, like = self.modalities, weight_of(self.projections)
        return check_call(self._owner, features, masks, present, declared=declared, like=like)

    def _receive(self, features: object, masks: object, present: object) -> dict[str, Received]:
        return project_all(self.projections, self._check(features, masks, present))
