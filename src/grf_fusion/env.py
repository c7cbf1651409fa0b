"""Versions and device for bug reports: ``python -m grf_fusion.env``."""

import platform
import sys
from importlib import metadata

import torch

__all__ = ["environment"]


def environment() -> dict[str, str]:
    """Return the versions and the device on which results depend.

    Nothing in it identifies the user.

    Returns:
        The values of ``grf-fusion``, ``torch``, ``einops``, ``typing-extensions``, ``python``,
        ``system`` and ``device``.

    Examples:
        >>> list(environment())[:2]
        ['grf-fusion', 'torch']
    """
    return {
        "grf-fusion": _installed("grf-fusion"),
        # Unlike the version in the metadata, this can name the build, such as "+cu130".
        "torch": torch.__version__,
        "einops": _installed("einops"),
        "typing-extensions": _installed("typing-extensions"),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": platform.platform(),
        "device": _device(),
    }


def _installed(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _device() -> str:
    """Return the name of the device that PyTorch uses."""
    if torch.cuda.is_available():
        names = ", ".join(map(torch.cuda.get_device_name, range(torch.cuda.device_count())))
        built = f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
        return f"{names} ({built})"
    if torch.backends.mps.is_available():
        return f"{platform.machine()} (MPS)"
    return f"CPU, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    sys.stdout.writelines(f"{name}: {value}\n" for name, value in environment().items())
