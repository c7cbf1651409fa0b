"""A pretrained model with adapters behind some of its layers."""

import dataclasses
import difflib
import threading
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from grf_fusion._adapters.adapter import FusionAdapter
from grf_fusion._checks.arguments import ShapeError
from grf_fusion._checks.tracing import forward_hooks
from grf_fusion._inputs.call import check_mapping, check_present

OWNER = "AdaptedModel"


class AdaptedModel(nn.Module):
    r"""Run adapters behind layers of a pretrained model, without changing the model itself.

    The output of each named layer passes through its adapter before the next layer. If the output
    is a tuple, its first entry does. The modules, parameters and ``state_dict`` keys of the host
    stay the same, so its checkpoints load as before. Only forward hooks are added, and `remove`
    removes them.

    The adapted layers must be called through this module, which passes the features to the
    adapters; any other call raises. This includes a host that recomputes its own layers in the
    backward pass (``gradient_checkpointing_enable()``). Use ``checkpoint=True`` of the adapters
    instead, or checkpoint the call of this module as a whole.

    Args:
        host: The pretrained model.
        adapters: Adapters by the name of the layer they follow, as in ``host.named_modules()``.

    Raises:
        ValueError: If there is no adapter, if one is not a `FusionAdapter`, if the host has no
            layer of that name or already has adapters, or if two adapters declare a modality with
            different widths.

    Examples:
        >>> import torch
        >>> layer = nn.TransformerEncoderLayer(8, 2, batch_first=True)
        >>> host = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        >>> adapter = FusionAdapter({"image": 6}, embed_dim=8, num_heads=2)
        >>> model = AdaptedModel(host, adapters={"layers.0": adapter})
        >>> model(torch.randn(4, 7, 8), features={"image": torch.randn(4, 5, 6)}).shape
        torch.Size([4, 7, 8])
        >>> model.remove() is host
        True
    """

    layers: tuple[str, ...]
    modalities: dict[str, int]
    host: nn.Module
    adapters: nn.ModuleList

    def __init__(self, host: nn.Module, *, adapters: Mapping[str, FusionAdapter]) -> None:
        declared = _check_adapters(host, adapters)
        super().__init__()
        self.layers = tuple(adapters)
        self.modalities = declared
        self.host = host
        self.adapters = nn.ModuleList(adapters.values())
        # The keys are thread ids, because a `threading.local` can be neither copied nor saved.
        self._running: dict[int, _Given] = {}
        self._handles: list[RemovableHandle] = []
        for name, adapter in adapters.items():
            hook = _Hook(name, adapter, list(declared), self._running)
            self._handles.append(host.get_submodule(name).register_forward_hook(hook))

    @override
    def forward(
        self,
        *args: Any,
        features: Mapping[str, Tensor | None],
        hidden_mask: Tensor | None = None,
        masks: Mapping[str, Tensor | None] | None = None,
        present: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Call the host, with the adapters behind its layers.

        Args:
            *args: The host's positional arguments.
            features: Features of each modality; each adapter uses those that it declares.
            hidden_mask: Real steps of the hidden states, usually the ``attention_mask`` that the
                host receives; ``None`` if all steps are real.
            masks: Real steps of each modality.
            present: Which samples have which modality, columns in the order of ``modalities``,
                which is the order of declaration, beginning with the first adapter.
            **kwargs: The host's keyword arguments.

        Returns:
            The output of the host.

        Shape:
            - features: ``(batch, time_k, d_k)`` each
            - hidden_mask: ``(batch, time)``
            - masks: ``(batch, time_k)`` each
            - present: ``(batch, modalities)``

        Raises:
            ShapeError: If an argument does not fit an adapter, or a layer returns no tensor.
        """
        given = check_mapping(OWNER, "features", features, self.modalities)
        real = check_mapping(OWNER, "masks", {} if masks is None else masks, self.modalities)
        self._running[_thread()] = _Given(given, hidden_mask, real, present)
        try:
            return self.host(*args, **kwargs)
        finally:
            del self._running[_thread()]

    def remove(self) -> nn.Module:
        """Remove the adapters.

        Returns:
            The host as it was before.
        """
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        return self.host

    @override
    def extra_repr(self) -> str:
        """Show where the adapters are."""
        return f"layers={self.layers}"


class _Given(NamedTuple):
    """The arguments that one call passes to the adapters; threads may call at the same time."""

    features: Mapping[str, Any]
    mask: Tensor | None
    masks: Mapping[str, Any]
    present: Tensor | None


def _thread() -> int:
    # Tracing covers a single call, and the id of a thread must not become part of the graph.
    return 0 if torch.compiler.is_compiling() else threading.get_ident()


@dataclasses.dataclass(eq=False, repr=False)
class _Hook:
    """A hook that applies an adapter to the output of a layer; unlike a closure it is picklable."""

    name: str
    adapter: FusionAdapter
    declared: list[str]
    running: dict[int, _Given]

    def __call__(self, _layer: nn.Module, _args: object, output: object) -> object:
        given = self.running.get(_thread())
        if given is None:
            raise ShapeError(
                f"{OWNER}: expected `host` to run inside a call of the AdaptedModel, got layer "
                f"{self.name!r} called without one. Call the AdaptedModel, or take the adapters "
                "off with `remove()`; recompute with the adapters' checkpoint=True, not the host's."
            )
        parts = cast("tuple[object, ...]", output) if isinstance(output, tuple) else (output,)
        hidden = parts[0] if parts else parts
        if not isinstance(hidden, Tensor):
            raise ShapeError(
                f"{OWNER}: expected `adapters[{self.name!r}]` to stand behind a layer that returns "
                "its hidden states, alone or first in a tuple, "
                f"got {type(hidden).__name__}."
            )
        names, present = list(self.adapter.modalities), given.present
        if present is not None:
            axes = {"batch": len(hidden), "modalities": len(self.declared)}
            present = check_present(OWNER, present, device=hidden.device, **axes)
            # A list as an index would be copied to the device, which forces a host-device sync.
            columns = dict(zip(self.declared, present.unbind(1), strict=True))
            present = torch.stack([columns[name] for name in names], dim=1)
        features, masks = (
            {name: values[name] for name in names if name in values}
            for values in (given.features, given.masks)
        )
        enriched = self.adapter(hidden, features, mask=given.mask, masks=masks, present=present)
        return (enriched, *parts[1:]) if isinstance(output, tuple) else enriched


def _check_adapters(host: object, adapters: object) -> dict[str, int]:
    """Return the modalities of all adapters."""
    if not isinstance(host, nn.Module):
        raise ValueError(f"{OWNER}: expected `host` to be an nn.Module, got {type(host).__name__}.")
    if not isinstance(adapters, Mapping) or not adapters:
        raise ValueError(
            f"{OWNER}: expected `adapters` to map names of layers to adapters, "
            f"got {cast(object, adapters)!r}."
        )
    known = dict(cast("Iterator[tuple[str, nn.Module]]", host.named_modules()))
    for name, layer in known.items():
        if any(isinstance(hook, _Hook) for hook in forward_hooks(layer)):
            raise ValueError(
                f"{OWNER}: expected `host` without adapters, got some behind its layer {name!r}. "
                "Give all adapters to one AdaptedModel, or take the first ones off with `remove()`."
            )
    declared: dict[str, int] = {}
    for name, adapter in cast("Mapping[Any, object]", adapters).items():
        if not isinstance(adapter, FusionAdapter):
            raise ValueError(
                f"{OWNER}: expected `adapters[{name!r}]` to be a FusionAdapter, "
                f"got {type(adapter).__name__}."
            )
        if name not in known:
            similar = difflib.get_close_matches(str(cast(object, name)), known, n=1)
            hint = f" The most similar name is {similar[0]!r}." if similar else ""
            raise ValueError(
                f"{OWNER}: expected `adapters` to name layers of the host as "
                f"`host.named_modules()` does, got {name!r}.{hint}"
            )
        for modality, dim in adapter.modalities.items():
            if declared.setdefault(modality, dim) != dim:
                raise ValueError(
                    f"{OWNER}: expected `adapters` to declare {modality!r} with one width, "
                    f"got {declared[modality]} and {dim}."
                )
    return declared
