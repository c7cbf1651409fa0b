"""Save and load trained weights, including those of the original GRF and MulT code."""

from grf_fusion.checkpoints._author import load_author_checkpoint
from grf_fusion.checkpoints._files import load_checkpoint, save_checkpoint

__all__ = ["load_author_checkpoint", "load_checkpoint", "save_checkpoint"]
