"""Other people's libraries, imported where they can be.

PyPI's torchvision, which timm needs, is built for CUDA. Beside a CPU build of PyTorch its operators
do not load, and declaring their shapes fails on import. Nothing here uses an operator of it, so
that file is left out; with a torchvision that fits its PyTorch it changes nothing either.
"""

import sys
import warnings
from types import ModuleType

sys.modules.setdefault(
    "torchvision._meta_registrations", ModuleType("torchvision._meta_registrations")
)

with warnings.catch_warnings():
    # What they do when they are imported is theirs to mend.
    warnings.simplefilter("ignore")
    import timm
    import transformers
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime
    from onnxruntime.quantization import QuantType, quantize_dynamic

__all__ = [
    "QuantType",
    "Runtime",
    "XnnpackPartitioner",
    "quantize_dynamic",
    "timm",
    "to_edge_transform_and_lower",
    "transformers",
]
