"""Save and load trained weights, also from the code of the GRF and MulT authors."""

from grf_fusion.checkpoints._author import load_author_checkpoint
from grf_fusion.checkpoints._files import load_checkpoint, save_checkpoint

__all__ = ["load_author_checkpoint", "load_checkpoint", "save_checkpoint"]
