"""Other common fusion methods, with the interface of `GatedRecurrentFusion`.

Each takes ``(modalities, *, embed_dim, ...)``, is called as ``(features, *, masks=None,
present=None)``, returns ``(batch, embed_dim)`` and keeps the same guarantees: padding and
missing modalities never affect the output, samples are independent, and a sample without any
modality gives 0. `ContrastiveAlignment` instead returns a loss.
"""

from grf_fusion.baselines._alignment import ContrastiveAlignment
from grf_fusion.baselines._concat import ConcatFusion
from grf_fusion.baselines._cross_modal import CrossModalAttentionFusion
from grf_fusion.baselines._mult import MulT
from grf_fusion.baselines._weighted_sum import WeightedSumFusion

__all__ = [
    "ConcatFusion",
    "ContrastiveAlignment",
    "CrossModalAttentionFusion",
    "MulT",
    "WeightedSumFusion",
]
