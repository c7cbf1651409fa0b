"""Checkpoints of our own: what fits is loaded, and what does not changes nothing."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from grf_fusion import AdaptedModel, FusionAdapter, GatedRecurrentFusion
from grf_fusion.baselines import MulT
from grf_fusion.checkpoints import load_checkpoint, save_checkpoint
from properties import assert_same_bits, randomise

WIDTHS = {"text": 7, "image": 11, "audio": 13}


def make_fusion(widths: Any = WIDTHS, **options: Any) -> GatedRecurrentFusion:
    return GatedRecurrentFusion(
        widths, **{"embed_dim": 15, "num_heads": 3, "form": "residual"} | options
    )


def make_adapted() -> nn.Module:
    adapter = FusionAdapter(WIDTHS, embed_dim=15, num_heads=3)
    return AdaptedModel(nn.Sequential(nn.Linear(15, 15)), adapters={"0": adapter})


def make_mult() -> nn.Module:
    return MulT(WIDTHS, embed_dim=15, num_heads=3, num_layers=1)


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("make", [make_fusion, make_adapted, make_mult])
def test_what_is_saved_is_loaded(
    make: Callable[[], nn.Module], plain: bool, tmp_path: Path
) -> None:
    module, path = make(), tmp_path / "module.pt"
    randomise(module, seed=1)
    if plain:
        torch.save(module.state_dict(), path)
    else:
        save_checkpoint(module, path)
    twin = make()
    load_checkpoint(twin, path)
    assert_same_bits(state_of(twin), state_of(module))


def test_dtype_of_the_module_stays(tmp_path: Path) -> None:
    module = make_fusion(dtype=torch.float64)
    save_checkpoint(make_fusion(), tmp_path / "fusion.pt")
    load_checkpoint(module, tmp_path / "fusion.pt")
    assert {p.dtype for p in module.parameters()} == {torch.float64}


def damage(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        save_checkpoint(make_fusion(), path)
        content = torch.load(path, weights_only=True)
        torch.save(change(content), path)

    return write


def truncate(share: float) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        save_checkpoint(make_fusion(), path)
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])

    return write


def with_state(**changes: Any) -> Callable[[Path], None]:
    def change(content: dict[str, Any]) -> dict[str, Any]:
        state = content["state_dict"]
        for name, value in changes.items():
            if value is None:
                del state[name.replace("__", ".")]
            else:
                state[name.replace("__", ".")] = value
        return content

    return damage(change)


def run_code(path: Path) -> None:
    path.write_bytes(pickle.dumps(print, protocol=2))


WRONG: dict[str, tuple[Callable[[Path], None], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "which cannot be read"),
    "truncated": (truncate(0.5), "which cannot be read"),
    "a little truncated": (truncate(0.99), "which cannot be read"),
    "text": (lambda path: path.write_text("weights"), "which cannot be read"),
    "code": (run_code, "which cannot be read"),
    "list": (lambda path: torch.save([1], path), "got list"),
    "state is a list": (damage(lambda x: x | {"state_dict": [1]}), "got list"),
    "later format": (damage(lambda x: x | {"format": "grf-fusion 2"}), "got 'grf-fusion 2'"),
    "more inside": (damage(lambda x: x | {"more": 1}), "'state_dict', 'more']."),
    "missing": (with_state(unit__linear__bias=None), "missing ['unit.linear.bias']."),
    "extra": (with_state(more=torch.zeros(1)), "unexpected ['more'], missing []."),
    "no tensor": (with_state(unit__linear__bias=3), "got int"),
    "shape": (with_state(unit__linear__bias=torch.zeros(2)), "got (2,) and torch.float32"),
    "integers": (with_state(unit__linear__bias=torch.zeros(30).long()), "and torch.int64"),
    "nothing": (damage(lambda x: x | {"state_dict": {}}), "and more, "),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_changes_nothing(name: str, tmp_path: Path) -> None:
    write, got = WRONG[name]
    path, module = tmp_path / "fusion.pt", make_fusion()
    randomise(module, seed=1)
    write(path)
    before = state_of(module)
    with pytest.raises(ValueError, match=r"load_checkpoint: expected `path` ") as caught:
        load_checkpoint(module, path)
    assert got in str(caught.value)
    assert_same_bits(state_of(module), before)


def test_another_order_is_another_model(tmp_path: Path) -> None:
    path, module = tmp_path / "fusion.pt", make_fusion(dict(reversed(WIDTHS.items())))
    save_checkpoint(make_fusion(), path)
    before = state_of(module)
    with pytest.raises(ValueError, match=r"expected `module` .* got .*'audio', 'image', 'text'"):
        load_checkpoint(module, path)
    assert_same_bits(state_of(module), before)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_checkpoint(make_fusion(), tmp_path / "nothing.pt")


def test_loading_shares_no_memory(tmp_path: Path) -> None:
    module = make_fusion()
    save_checkpoint(module, tmp_path / "fusion.pt")
    twin = copy.deepcopy(module)
    load_checkpoint(twin, tmp_path / "fusion.pt")
    with torch.no_grad():
        twin.unit.linear.bias.fill_(7.0)
    assert not (module.unit.linear.bias == 7.0).any()


SMALL = {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}
LOADER = "load_checkpoint: expected "


def framed(**changes: Any) -> dict[str, Any]:
    told = {"format": "grf-fusion 1", "orders": {}, "num_heads": {}}
    return told | {"state_dict": SMALL} | changes


SAID: dict[str, tuple[Any, str]] = {
    "format": (
        framed(format="grf-fusion 2"),
        "`path` to be of format 'grf-fusion 1', got 'grf-fusion 2'. Update grf-fusion.",
    ),
    "part too many": (
        framed(optimizer={}),
        (
            "`path` to hold ['format', 'num_heads', 'orders', 'state_dict'], as `save_checkpoint` "
            "writes it, got ['format', 'orders', 'num_heads', 'state_dict', 'optimizer']."
        ),
    ),
    "orders": (
        framed(orders={"": ["text"]}),
        "`module` to declare modalities in the order of the checkpoint, {'': ['text']}, got {}.",
    ),
    "heads": (
        framed(num_heads={"": 8}),
        "`module` to have as many heads as the checkpoint, {'': 8}, got {}.",
    ),
    "names": ([1], "`path` to hold tensors by name, got list."),
    "missing": (
        {"weight": SMALL["weight"]},
        "`path` to hold the parameters of the module, unexpected [], missing ['bias'].",
    ),
    "as many as are shown": (
        SMALL | dict.fromkeys("abcde", 1),
        (
            "`path` to hold the parameters of the module, unexpected ['a', 'b', 'c', 'd', 'e'], "
            "missing []."
        ),
    ),
    "more than are shown": (
        {"weight": SMALL["weight"]} | dict.fromkeys("abcdef", 1),
        (
            "`path` to hold the parameters of the module, unexpected ['a', 'b', 'c', 'd', 'e'], "
            "missing ['bias'] and more, 7 in all."
        ),
    ),
    "tensor": (SMALL | {"bias": 3}, "`path` to hold a tensor 'bias', got int."),
    "shape": (
        SMALL | {"bias": torch.zeros(3)},
        (
            "`path` to hold 'bias' of shape (2,) and a dtype like torch.float32, "
            "got (3,) and torch.float32."
        ),
    ),
    "dtype": (
        SMALL | {"bias": torch.zeros(2).long()},
        (
            "`path` to hold 'bias' of shape (2,) and a dtype like torch.float32, "
            "got (2,) and torch.int64."
        ),
    ),
}


@pytest.mark.parametrize("name", SAID)
def test_message(name: str, tmp_path: Path) -> None:
    content, message = SAID[name]
    torch.save(content, tmp_path / "linear.pt")
    with pytest.raises(ValueError, match="load_checkpoint") as caught:
        load_checkpoint(nn.Linear(3, 2), tmp_path / "linear.pt")
    assert str(caught.value) == LOADER + message


def test_more_missing_than_are_shown(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "empty.pt")
    module = nn.Sequential(*(nn.Linear(1, 1) for _ in range(3)))
    with pytest.raises(ValueError, match="load_checkpoint") as caught:
        load_checkpoint(module, tmp_path / "empty.pt")
    assert str(caught.value) == LOADER + (
        "`path` to hold the parameters of the module, unexpected [], "
        "missing ['0.weight', '0.bias', '1.weight', '1.bias', '2.weight'] and more, 6 in all."
    )


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("no good.\nAnd more."), "no good"),
        (RuntimeError("it ends with an X."), "it ends with an X"),
        (EOFError(), "EOFError"),
        (OSError("a disk"), "a disk"),
        (ValueError("a value"), "a value"),
        (pickle.UnpicklingError("a pickle..."), "a pickle"),
    ],
    ids=["two lines", "an X", "nothing", "file", "value", "pickle"],
)
def test_reason_is_the_first_line_of_what_pytorch_says(
    error: Exception, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "linear.pt"
    torch.save(SMALL, path)
    given: dict[str, Any] = {}

    def load(*_: Any, **options: Any) -> None:
        given.update(options)
        raise error

    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(ValueError, match="load_checkpoint") as caught:
        load_checkpoint(nn.Linear(3, 2), path)
    said = f"`path` to be a checkpoint, got {str(path)!r}, which cannot be read: {reason}."
    assert str(caught.value) == LOADER + said
    assert caught.value.__cause__ is error
    # On the CPU wherever it was saved, and nothing in it runs.
    assert given == {"map_location": "cpu", "weights_only": True}


def test_checkpoints_of_the_first_version_load(tmp_path: Path) -> None:
    """They hold no heads."""
    fusion, other = make_fusion(), make_fusion()
    randomise(fusion, seed=1)
    save_checkpoint(fusion, tmp_path / "fusion.pt")
    content = torch.load(tmp_path / "fusion.pt", weights_only=True)
    del content["num_heads"]
    torch.save(content, tmp_path / "fusion.pt")
    load_checkpoint(other, tmp_path / "fusion.pt")
    assert_same_bits(state_of(other), state_of(fusion))


def test_what_is_saved_is_a_dictionary_of_four(tmp_path: Path) -> None:
    fusion = make_fusion()
    save_checkpoint(fusion, tmp_path / "fusion.pt")
    content = torch.load(tmp_path / "fusion.pt", weights_only=True)
    assert list(content) == ["format", "orders", "num_heads", "state_dict"]
    assert content["format"] == "grf-fusion 1"
    assert content["orders"] == {"": ["text", "image", "audio"]}
    assert content["num_heads"] == dict.fromkeys(("", "block"), fusion.num_heads)
    assert_same_bits(content["state_dict"], state_of(fusion))
