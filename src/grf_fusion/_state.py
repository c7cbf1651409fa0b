"""Version 0.1.0 pickled these two classes under the name of this module."""

from grf_fusion._chain.state import FusionState, FusionTrace

__all__ = ["FusionState", "FusionTrace"]
