"""Drop-in multimodal fusion layers: Gated Recurrent Fusion (arXiv 2507.02985) for PyTorch."""

from grf_fusion._adapted_model import AdaptedModel
from grf_fusion._adapter import FusionAdapter
from grf_fusion._attention import AttentionWeights
from grf_fusion._block import SymmetricCrossAttentionBlock
from grf_fusion._fusion import GatedRecurrentFusion
from grf_fusion._gate import GatedFusionUnit
from grf_fusion._gradient_modulation import modulate_gradients
from grf_fusion._masks import mask_from_lengths
from grf_fusion._modality_dropout import ModalityDropout
from grf_fusion._shapes import ShapeError
from grf_fusion._state import FusionState, FusionTrace

__all__ = [
    "AdaptedModel",
    "AttentionWeights",
    "FusionAdapter",
    "FusionState",
    "FusionTrace",
    "GatedFusionUnit",
    "GatedRecurrentFusion",
    "ModalityDropout",
    "ShapeError",
    "SymmetricCrossAttentionBlock",
    "mask_from_lengths",
    "modulate_gradients",
]
