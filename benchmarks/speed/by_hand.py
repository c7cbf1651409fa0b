"""Our arithmetic written straight down, to see what the library adds to it: nothing is checked."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common.author import sinusoids
from benchmarks.common.peers import LONGEST, Features
from grf_fusion import FusionState, GatedRecurrentFusion


class ByHand:
    """The chain of `context="pooled"` with shared weights, no masks and no dropout.

    Everything that a call can take from the one before is prepared here: the products of query,
    key and value are one, and the positions are a table.
    """

    def __init__(self, fusion: GatedRecurrentFusion) -> None:
        weights = {name: value.detach() for name, value in fusion.state_dict().items()}
        self.heads, self.layers = fusion.num_heads, range(fusion.num_layers)
        self.names, self.weights = list(fusion.modalities), weights
        self.table = sinusoids(LONGEST, fusion.embed_dim).to(weights["unit.linear.weight"])
        for layer in self.layers:
            prefix = f"block.modality_layers.{layer}.self_attn"
            parts = [weights[f"{prefix}.{part}_proj.weight"] for part in "qkv"]
            biases = [weights[f"{prefix}.{part}_proj.bias"] for part in "qv"]
            weights[f"{prefix}.qkv.weight"] = torch.cat(parts)
            weights[f"{prefix}.qkv.bias"] = torch.stack(
                (biases[0], torch.zeros_like(biases[0]), biases[1])
            ).flatten()

    def __call__(self, features: Features) -> Tensor:
        """Fuse."""
        weights = self.weights
        first, *others = self.names
        state = self._sequence(first, features).mean(dim=1)
        for name in others:
            context = (state + self.table[0]).unsqueeze(1)
            modality = self._sequence(name, features)
            state = self._read_modality(context, modality)
            update = self._read_context(modality, context)
            pair = self._linear("unit.linear", torch.cat((state, update), dim=-1))
            gate, candidate = pair.chunk(2, dim=-1)
            blend = torch.lerp(state, candidate.tanh(), gate.sigmoid())
            norm = weights["unit.norm.weight"], weights["unit.norm.bias"]
            state = F.layer_norm(blend, blend.shape[-1:], *norm)
        return state

    def _sequence(self, name: str, features: Features) -> Tensor:
        x = self._linear(f"projections.{name}", features[name])
        return x + self.table[: x.shape[1]]

    def _read_modality(self, x: Tensor, memory: Tensor) -> Tensor:
        for layer in self.layers:
            prefix = f"block.context_layers.{layer}"
            x = self._add(f"{prefix}.self_attn", x, self._read_one(f"{prefix}.self_attn", x))
            cross = f"{prefix}.cross_attn"
            q = self._linear(f"{cross}.q_proj", x)
            k = F.linear(memory, self.weights[f"{cross}.k_proj.weight"])
            v = self._linear(f"{cross}.v_proj", memory)
            x = self._add(cross, x, self._attend(cross, q, k, v))
            x = self._feedforward(prefix, x)
        return x.squeeze(1)

    def _read_context(self, x: Tensor, context: Tensor) -> Tensor:
        for layer in self.layers:
            prefix = f"block.modality_layers.{layer}"
            own = f"{prefix}.self_attn"
            qkv = self._linear(f"{own}.qkv", x).chunk(3, dim=-1)
            x = self._add(own, x, self._attend(own, *qkv))
            cross = f"{prefix}.cross_attn"
            x = self._add(cross, x, self._read_one(cross, context))
            x = self._feedforward(prefix, x)
        return x.mean(dim=1)

    def _read_one(self, name: str, key: Tensor) -> Tensor:
        return self._linear(f"{name}.out_proj", self._linear(f"{name}.v_proj", key))

    def _attend(self, name: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (q, k, v))
        read = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self._linear(f"{name}.out_proj", read)

    def _feedforward(self, prefix: str, x: Tensor) -> Tensor:
        hidden = F.gelu(self._linear(f"{prefix}.linear1", x))
        return self._add(f"{prefix}.feedforward", x, self._linear(f"{prefix}.linear2", hidden))

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _add(self, name: str, x: Tensor, update: Tensor) -> Tensor:
        norm = self.weights[f"{name}_norm.weight"], self.weights[f"{name}_norm.bias"]
        return F.layer_norm(x + update, x.shape[-1:], *norm)


def step_alone(
    fusion: GatedRecurrentFusion, state: FusionState, name: str, features: Tensor
) -> Callable[[], Tensor]:
    """One modality's step on a pooled context as a call of the parts, past `fusion.step`."""
    projection, block, unit = fusion.projections[name], fusion.block, fusion.unit
    table = sinusoids(LONGEST, fusion.embed_dim).to(features)
    context = state.context

    def call() -> Tensor:
        modality = projection(features) + table[: features.shape[1]]
        new_context, new_modality = block((context + table[0]).unsqueeze(1), modality)
        return unit(new_context.squeeze(1), new_modality.mean(dim=1))

    return call
