"""Where 0.1.0 had these two: what it pickled names this module."""

from grf_fusion._chain.state import FusionState, FusionTrace

__all__ = ["FusionState", "FusionTrace"]
