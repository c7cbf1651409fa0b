"""The public interface written down: names, signatures, weights, errors.

tests/test_api.py compares it with tests/api.json. After a change that is meant:

    python tests/api.py

writes the file anew; the change also needs a line in CHANGELOG.md (docs/versioning.md says which
changes are allowed when).
"""

import importlib
import inspect
import json
import pkgutil
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_overloads

from torch import nn

import grf_fusion
from grf_fusion import (
    AdaptedModel,
    FusionAdapter,
    GatedFusionUnit,
    GatedRecurrentFusion,
    ModalityDropout,
    SymmetricCrossAttentionBlock,
)
from grf_fusion.baselines import (
    ConcatFusion,
    ContrastiveAlignment,
    CrossModalAttentionFusion,
    MulT,
    WeightedSumFusion,
)

FILE = Path(__file__).with_name("api.json")

# Mutually different sizes, so that a transposed weight shows.
WIDTHS = {"text": 7, "image": 11, "audio": 13}
SIZES: dict[str, Any] = {"embed_dim": 6, "num_heads": 2}


def fusion(**options: Any) -> GatedRecurrentFusion:
    return GatedRecurrentFusion(WIDTHS, **SIZES | options)


def adapter(**options: Any) -> FusionAdapter:
    return FusionAdapter(WIDTHS, **SIZES | options)


# Each public module in the modes that decide which weights there are.
INSTANCES: dict[str, dict[str, Callable[[], nn.Module]]] = {
    "AdaptedModel": {
        "default": lambda: AdaptedModel(nn.Sequential(nn.Linear(6, 6)), adapters={"0": adapter()})
    },
    "ConcatFusion": {
        "default": lambda: ConcatFusion(WIDTHS, embed_dim=6),
        "stage='pooled'": lambda: ConcatFusion(WIDTHS, embed_dim=6, stage="pooled"),
        "stage='early'": lambda: ConcatFusion(WIDTHS, embed_dim=6, stage="early", num_heads=2),
    },
    "ContrastiveAlignment": {"default": lambda: ContrastiveAlignment(WIDTHS, embed_dim=6)},
    "CrossModalAttentionFusion": {"default": lambda: CrossModalAttentionFusion(WIDTHS, **SIZES)},
    "FusionAdapter": {
        "default": adapter,
        "self_attention=True": lambda: adapter(self_attention=True),
        "symmetric=False": lambda: adapter(symmetric=False),
    },
    "GatedFusionUnit": {
        "default": lambda: GatedFusionUnit(6),
        "norm=False": lambda: GatedFusionUnit(6, norm=False),
        "identity_init=True": lambda: GatedFusionUnit(6, norm=False, identity_init=True),
    },
    "GatedRecurrentFusion": {
        "default": fusion,
        "form='residual'": lambda: fusion(form="residual"),
        "form='paper'": lambda: fusion(form="paper"),
        "opening='first'": lambda: fusion(opening="first"),
        "context='first_sequence'": lambda: fusion(context="first_sequence"),
        "context='sequence'": lambda: fusion(context="sequence"),
        "share_weights=False": lambda: fusion(share_weights=False),
        "num_layers=2": lambda: fusion(num_layers=2),
        "self_attention=True": lambda: fusion(form="residual", self_attention=True),
        "self_attention='linear'": lambda: fusion(context="sequence", self_attention="linear"),
    },
    "ModalityDropout": {"default": lambda: ModalityDropout(0.5)},
    "MulT": {"default": lambda: MulT(WIDTHS, num_layers=1, **SIZES)},
    "SymmetricCrossAttentionBlock": {
        "default": lambda: SymmetricCrossAttentionBlock(6, num_heads=2),
        "self_attention=False": lambda: SymmetricCrossAttentionBlock(
            6, num_heads=2, self_attention=False
        ),
        "pooled_context=True": lambda: SymmetricCrossAttentionBlock(
            6, num_heads=2, pooled_context=True
        ),
    },
    "WeightedSumFusion": {"default": lambda: WeightedSumFusion(WIDTHS, embed_dim=6)},
}


def public_modules() -> list[str]:
    """Return the modules that a user may import: every one without an underscore."""
    found = pkgutil.walk_packages(grf_fusion.__path__, "grf_fusion.")
    names = [module.name for module in found]
    return ["grf_fusion", *(name for name in names if "._" not in name)]


def spelled(annotation: Any) -> str:
    """Write an annotation the same in every version of Python, which spell unions differently."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if isinstance(annotation, list):
        spelling = f"[{', '.join(map(spelled, annotation))}]"
    elif origin in (Union, types.UnionType):
        spelling = " | ".join(map(spelled, inner))
    elif origin is Literal:
        spelling = f"Literal[{', '.join(map(repr, inner))}]"
    elif origin is not None:
        spelling = f"{origin.__qualname__}[{', '.join(map(spelled, inner))}]"
    else:
        odd = {None: "None", types.NoneType: "None", ...: "...", Any: "Any"}
        spelling = odd.get(annotation) or getattr(annotation, "__qualname__", str(annotation))
    return spelling


def written(function: Callable[..., Any]) -> list[str]:
    """Return a signature line by line, as it would stand in Python."""
    signature = inspect.signature(function)
    kinds = inspect.Parameter
    lines: list[str] = []
    before = None
    for parameter in signature.parameters.values():
        kind = parameter.kind
        if before is kinds.POSITIONAL_ONLY and kind is not before:
            lines.append("/")
        if kind is kinds.KEYWORD_ONLY and before not in (kind, kinds.VAR_POSITIONAL):
            lines.append("*")
        line = {kinds.VAR_POSITIONAL: "*", kinds.VAR_KEYWORD: "**"}.get(kind, "") + parameter.name
        if parameter.annotation is not parameter.empty:
            line += f": {spelled(parameter.annotation)}"
        if parameter.default is not parameter.empty:
            line += f" = {parameter.default!r}"
        lines.append(line)
        before = kind
    if before is kinds.POSITIONAL_ONLY:
        lines.append("/")
    if signature.return_annotation is not signature.empty:
        lines.append(f"-> {spelled(signature.return_annotation)}")
    return lines


def described_function(function: Callable[..., Any]) -> Any:
    """Return a function's signature, and those of its overloads where it has some."""
    overloads = [written(overload) for overload in get_overloads(function)]
    return (
        {"signature": written(function), "overloads": overloads} if overloads else written(function)
    )


def members(cls: type) -> Iterator[tuple[str, Any]]:
    """Yield what a class of ours offers beside its constructor, its bases of ours included."""
    ours = [base for base in reversed(cls.__mro__) if base.__module__.startswith("grf_fusion")]
    for name, value in {n: v for base in ours for n, v in vars(base).items()}.items():
        if name.startswith("_"):
            continue
        if isinstance(value, property):
            yield name, described_function(value.fget)  # type: ignore[arg-type]
        elif isinstance(value, classmethod | staticmethod):
            yield name, described_function(value.__func__)
        elif inspect.isfunction(value):
            yield name, described_function(value)
    for base in ours:
        for name, annotation in inspect.get_annotations(base).items():
            if not name.startswith("_"):
                yield name, spelled(annotation)


def described_class(cls: type) -> dict[str, Any]:
    """Return what a class is, how it is made and what it offers."""
    entry: dict[str, Any] = {"bases": [base.__qualname__ for base in cls.__mro__[1:-1]]}
    if not issubclass(cls, Exception):
        entry["constructor"] = written(cls)
    return entry | {"members": dict(sorted(members(cls)))}


def interface() -> dict[str, Any]:
    """Return the whole public interface as plain data."""
    names: dict[str, Any] = {}
    for module in public_modules():
        loaded = importlib.import_module(module)
        for name in sorted(loaded.__all__):
            value = getattr(loaded, name)
            described = described_class if inspect.isclass(value) else described_function
            names[f"{module}.{name}"] = described(value)
    weights = {name: weights_of(modes) for name, modes in sorted(INSTANCES.items())}
    return {"names": names, "weights": weights}


def weights_of(modes: Mapping[str, Callable[[], nn.Module]]) -> dict[str, dict[str, str]]:
    """Return the weights of a module: all of the default's, and what differs in each other mode."""
    default = shapes(modes["default"]())
    found = {"default": default}
    for mode, make in modes.items():
        own = shapes(make())
        if mode != "default":
            found[mode] = {
                key: own.get(key, "none")
                for key in [*default, *own]
                if own.get(key) != default.get(key)
            }
    return found


def shapes(module: nn.Module) -> dict[str, str]:
    """Return the keys of a state-dict and what lies under each, in order."""
    state = module.state_dict()
    return {
        key: f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
        for key, value in state.items()
    }


def main() -> None:
    """Write the file anew."""
    FILE.write_text(json.dumps(interface(), indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
