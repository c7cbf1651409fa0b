"""Drop-in multimodal fusion layers: Gated Recurrent Fusion (arXiv 2507.02985) for PyTorch."""

from grf_fusion._adapters.adapted_model import AdaptedModel
from grf_fusion._adapters.adapter import FusionAdapter
from grf_fusion._chain.fusion import GatedRecurrentFusion
from grf_fusion._chain.state import FusionState, FusionTrace
from grf_fusion._checks.arguments import ShapeError
from grf_fusion._inputs.batch import Batch
from grf_fusion._inputs.collate import collate
from grf_fusion._inputs.masks import mask_from_lengths
from grf_fusion._layers.attention import AttentionWeights
from grf_fusion._layers.block import SymmetricCrossAttentionBlock
from grf_fusion._layers.gate import GatedFusionUnit
from grf_fusion._training.gradient_modulation import modulate_gradients
from grf_fusion._training.modality_dropout import ModalityDropout

__all__ = [
    "AdaptedModel",
    "AttentionWeights",
    "Batch",
    "FusionAdapter",
    "FusionState",
    "FusionTrace",
    "GatedFusionUnit",
    "GatedRecurrentFusion",
    "ModalityDropout",
    "ShapeError",
    "SymmetricCrossAttentionBlock",
    "collate",
    "mask_from_lengths",
    "modulate_gradients",
]
