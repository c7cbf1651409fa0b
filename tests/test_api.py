"""The public interface is the one written down: it changes when that is meant, and then visibly."""

import difflib
import json
import pkgutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Optional, Union

import pytest
from torch import Tensor, nn

import api

ADVICE = (
    "The public interface is not the one in tests/api.json. If that is meant: run "
    "`python tests/api.py`, say so in CHANGELOG.md under Unreleased, and see docs/versioning.md "
    "for what may change when."
)


def lines(data: object) -> list[str]:
    return json.dumps(data, indent=1).splitlines()


def difference(known: object, found: object) -> str:
    """Return what was removed and added, a line each, or nothing."""
    change = difflib.unified_diff(lines(known), lines(found), "known", "found", lineterm="")
    return "\n".join(change)


def test_interface_is_the_one_written_down() -> None:
    found = difference(json.loads(api.FILE.read_text("utf-8")), api.interface())
    assert not found, f"{ADVICE}\n{found}"


def test_every_public_module_has_its_weights_written_down() -> None:
    interface = json.loads(api.FILE.read_text("utf-8"))
    modules = {
        name.rpartition(".")[2]
        for name, entry in interface["names"].items()
        if isinstance(entry, dict) and "Module" in entry.get("bases", ())
    }
    assert modules == set(api.INSTANCES)


def test_no_address_and_no_private_path_is_written_down() -> None:
    text = api.FILE.read_text("utf-8")
    assert " at 0x" not in text
    assert "grf_fusion._" not in text


def test_private_modules_are_not_public() -> None:
    found = api.public_modules()
    assert {"grf_fusion", "grf_fusion.baselines", "grf_fusion.checkpoints"} <= set(found)
    assert not any("._" in name for name in found)
    everything = {m.name for m in pkgutil.walk_packages(api.grf_fusion.__path__, "grf_fusion.")}
    assert everything - set(found)


def test_annotations_are_spelled_alike() -> None:
    spellings: list[tuple[Any, str]] = [
        (None, "None"),
        (type(None), "None"),
        (Any, "Any"),
        ("Later", "Later"),
        (Tensor, "Tensor"),
        (Optional[int], "int | None"),  # noqa: UP045 - the other spelling is the point
        (int | None, "int | None"),
        (Union[bool, Literal["linear"]], "bool | Literal['linear']"),  # noqa: UP007 - likewise
        (tuple[int, ...], "tuple[int, ...]"),
        (Mapping[str, Tensor | None], "Mapping[str, Tensor | None]"),
        (Callable[[], nn.Module], "Callable[[], Module]"),
    ]
    assert [api.spelled(annotation) for annotation, _ in spellings] == [s for _, s in spellings]


def test_signatures_are_written_line_by_line() -> None:
    def only(a: int, /) -> None: ...
    def each(a: int, /, b: str = "x", *, c: float | None = None, **d: bool) -> Tensor: ...
    def rest(*a: int, b): ...

    assert api.written(only) == ["a: int", "/", "-> None"]
    assert api.written(each) == [
        "a: int",
        "/",
        "b: str = 'x'",
        "*",
        "c: float | None = None",
        "**d: bool",
        "-> Tensor",
    ]
    assert api.written(rest) == ["*a: int", "b"]


class Base(nn.Module):
    size: int

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def method(self, value: int) -> None: ...

    @property
    def shown(self) -> str:
        return "shown"

    @classmethod
    def made(cls) -> "Base":
        return cls(1)

    def _private(self) -> None: ...


Base.__module__ = "grf_fusion.stand_in"


def test_a_class_is_its_bases_constructor_and_members() -> None:
    assert api.described_class(Base) == {
        "bases": ["Module"],
        "constructor": ["size: int", "-> None"],
        "members": {
            "made": ["cls", "-> Base"],
            "method": ["self", "value: int", "-> None"],
            "shown": ["self", "-> str"],
            "size": "int",
        },
    }


def test_a_mode_is_what_differs_from_the_default() -> None:
    modes = {"default": lambda: nn.Linear(3, 2), "bias=False": lambda: nn.Linear(3, 2, bias=False)}
    assert api.weights_of(modes) == {
        "default": {"weight": "float32 (2, 3)", "bias": "float32 (2,)"},
        "bias=False": {"bias": "none"},
    }


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data["names"].pop("grf_fusion.ShapeError"),
        lambda data: data["names"]["grf_fusion.ShapeError"].update(bases=["Exception"]),
        lambda data: data["names"]["grf_fusion.GatedFusionUnit"]["constructor"].remove("*"),
        lambda data: data["weights"]["GatedFusionUnit"]["default"].pop("linear.bias"),
    ],
    ids=["name", "error", "signature", "weight"],
)
def test_a_change_is_noticed(change: Callable[[Any], object]) -> None:
    known = json.loads(api.FILE.read_text("utf-8"))
    changed = json.loads(api.FILE.read_text("utf-8"))
    change(changed)
    assert difference(changed, known)
    assert difference(known, known) == ""


def test_the_file_is_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = api.FILE.read_text("utf-8")
    monkeypatch.setattr(api, "FILE", tmp_path / "api.json")
    api.main()
    assert (tmp_path / "api.json").read_text("utf-8") == known
