"""Other people's libraries, imported when a test first uses them: together they take ten seconds.

PyPI's torchvision, which timm needs, is built for CUDA. Beside a CPU build of PyTorch its operators
do not load, and declaring their shapes fails on import. Nothing here uses an operator of it, so
that file is left out; with a torchvision that fits its PyTorch it changes nothing either.
"""

import importlib
import sys
import warnings
from types import ModuleType
from typing import Any

sys.modules.setdefault(
    "torchvision._meta_registrations", ModuleType("torchvision._meta_registrations")
)


def load(name: str) -> Any:
    """Import a module; what it does on import is its authors' to mend."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


def counters() -> Any:
    """Return what PyTorch's tracer counts, such as graphs."""
    return load("torch._dynamo.utils").counters
