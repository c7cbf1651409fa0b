"""Other people's libraries, imported where they can be.

PyPI's torchvision, which timm needs, is built for CUDA. Beside a CPU build of PyTorch its operators
do not load, and declaring their shapes fails on import. Nothing here uses an operator of it, so
that file is left out; with a torchvision that fits its PyTorch it changes nothing either.
"""

import sys
from types import ModuleType

sys.modules.setdefault(
    "torchvision._meta_registrations", ModuleType("torchvision._meta_registrations")
)

import timm  # noqa: E402
import transformers  # noqa: E402

__all__ = ["timm", "transformers"]
