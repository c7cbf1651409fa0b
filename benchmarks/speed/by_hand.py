"""Our arithmetic as straight-line code without checks, to measure the library's overhead."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common.author import sinusoids
from benchmarks.common.peers import LONGEST, Features
from grf_fusion import FusionState, GatedRecurrentFusion

# Of the default form; see the formula of `GatedRecurrentFusion`.
POSITION_WEIGHT = 0.3


class ByHand:
    """A chain with shared weights, without masks and dropout.

    Values that do not change between calls are prepared: positions are a table.
    """

    def __init__(self, fusion: GatedRecurrentFusion) -> None:
        self.weights = {name: value.detach() for name, value in fusion.state_dict().items()}
        self.names, self.layers = list(fusion.modalities), range(fusion.num_layers)
        self.table = sinusoids(LONGEST, fusion.embed_dim).to(self.weights["unit.linear.weight"])

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _norm(self, name: str, x: Tensor) -> Tensor:
        norm = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return F.layer_norm(x, x.shape[-1:], *norm)

    def _blend(self, state: Tensor, update: Tensor) -> Tensor:
        pair = self._linear("unit.linear", torch.cat((state, update), dim=-1))
        gate, candidate = pair.chunk(2, dim=-1)
        return torch.lerp(state, candidate.tanh(), gate.sigmoid())


class SummaryByHand(ByHand):
    """The default form."""

    def __init__(self, fusion: GatedRecurrentFusion) -> None:
        super().__init__(fusion)
        self.table = POSITION_WEIGHT * self.table
        measured = {name: float(self.weights[f"scales.{name}.rms"]) for name in self.names}
        self.scales = {name: rms if rms else 1.0 for name, rms in measured.items()}

    def __call__(self, features: Features) -> Tensor:
        """Fuse."""
        state = self.weights["initial_context"].expand(len(features[self.names[0]]), -1)
        for name in self.names:
            x = self._linear(f"projections.{name}", features[name] / self.scales[name])
            x = x + self.table[: x.shape[1]]
            for layer in self.layers:
                x = self._linear(f"summaries.{name}.hidden.{layer}", F.gelu(x))
            x = F.gelu(x)
            both = torch.cat((x.mean(dim=1), x.amax(dim=1)), dim=-1)
            update = self._linear(f"summaries.{name}.output", both)
            state = self._blend(state, self._norm(f"summaries.{name}.norm", update))
        return self._norm("norm", state)


class PaperByHand(ByHand):
    """The paper's form with a pooled context; one product computes query, key and value."""

    def __init__(self, fusion: GatedRecurrentFusion) -> None:
        super().__init__(fusion)
        self.heads, weights = fusion.num_heads, self.weights
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
        first, *others = self.names
        state = self._sequence(first, features).mean(dim=1)
        for name in others:
            context = (state + self.table[0]).unsqueeze(1)
            modality = self._sequence(name, features)
            state = self._read_modality(context, modality)
            update = self._read_context(modality, context)
            state = self._norm("unit.norm", self._blend(state, update))
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

    def _add(self, name: str, x: Tensor, update: Tensor) -> Tensor:
        return self._norm(f"{name}_norm", x + update)


def step_alone(
    fusion: GatedRecurrentFusion, state: FusionState, name: str, features: Tensor
) -> Callable[[], Tensor]:
    """Return a call of one step on a pooled context that calls the parts, not `fusion.step`."""
    projection, block, unit = fusion.projections[name], fusion.block, fusion.unit
    table = sinusoids(LONGEST, fusion.embed_dim).to(features)
    context = state.context

    def call() -> Tensor:
        modality = projection(features) + table[: features.shape[1]]
        new_context, new_modality = block((context + table[0]).unsqueeze(1), modality)
        return unit(new_context.squeeze(1), new_modality.mean(dim=1))

    return call
