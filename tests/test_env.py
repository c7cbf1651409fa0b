"""What `python -m grf_fusion.env` says: every line is true, and nothing is there without need."""

import platform
import runpy
import sys
from importlib import metadata

import pytest
import torch

from grf_fusion.env import environment

NAMES = ["grf-fusion", "torch", "einops", "typing-extensions", "python", "system", "device"]


@pytest.fixture
def nothing_but_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def test_versions_are_those_that_run() -> None:
    said = environment()
    assert list(said) == NAMES
    assert said["torch"] == torch.__version__
    for package in ("einops", "typing-extensions"):
        assert said[package] == metadata.version(package)
    assert said["python"] == f"{platform.python_implementation()} {platform.python_version()}"
    assert said["system"] == platform.platform()


def test_version_of_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", {name: f"of {name}" for name in NAMES}.__getitem__)
    said = environment()
    assert [said[name] for name in ("grf-fusion", "einops", "typing-extensions")] == [
        "of grf-fusion",
        "of einops",
        "of typing-extensions",
    ]


def test_library_that_runs_from_a_clone(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(package: str) -> str:
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "version", nothing)
    assert environment()["grf-fusion"] == "not installed"


@pytest.mark.usefixtures("nothing_but_cpu")
def test_device_is_the_cpu() -> None:
    assert environment()["device"] == f"CPU, {torch.get_num_threads()} threads"


@pytest.mark.parametrize(
    ("cuda", "hip", "built"),
    [("13.0", None, "CUDA 13.0"), (None, "7.2", "ROCm 7.2")],
    ids=["cuda", "rocm"],
)
def test_device_is_every_gpu(
    monkeypatch: pytest.MonkeyPatch, cuda: str | None, hip: str | None, built: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", ["Large", "Small"].__getitem__)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert environment()["device"] == f"Large, Small ({built})"


@pytest.mark.usefixtures("nothing_but_cpu")
def test_device_is_apples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert environment()["device"] == f"{platform.machine()} (MPS)"


def test_command_prints_a_line_for_each(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # As with `python -m`: the module runs without having been imported.
    monkeypatch.delitem(sys.modules, "grf_fusion.env")
    runpy.run_module("grf_fusion.env", run_name="__main__")
    said = "".join(f"{name}: {value}\n" for name, value in environment().items())
    assert capsys.readouterr().out == said
