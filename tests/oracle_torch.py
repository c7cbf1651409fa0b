"""Second oracle: the chain composed of PyTorch's own layers, with the same weights.

``torch.nn.TransformerDecoder``, ``nn.Linear`` and ``nn.LayerNorm`` on padded batches with
``key_padding_mask``. It covers what those layers can express: every sample has every modality, with
at least one real step. Nothing here is shared with ``reference.py`` but the names of the options.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from reference import FusionConfig

Params = Mapping[str, Tensor]


class OracleTrace(NamedTuple):
    """Columns in fusion order."""

    context: Tensor
    contexts: Tensor
    gates: Tensor


def sinusoids(time: int, dim: int) -> Tensor:
    """The usual table, float64 (time, dim): even columns sine, odd columns cosine."""
    even = torch.arange(0, dim, 2, dtype=torch.float64)
    angles = torch.arange(time, dtype=torch.float64)[:, None] * torch.exp(
        even * (-math.log(10000.0) / dim)
    )
    table = torch.zeros(time, dim, dtype=torch.float64)
    table[:, 0::2] = angles.sin()
    table[:, 1::2] = angles.cos()[:, : dim // 2]
    return table


def _packed(params: Params, prefix: str, generator: torch.Generator) -> dict[str, Tensor]:
    """``nn.MultiheadAttention``'s names; random numbers for left-out queries and keys."""
    value = params[f"{prefix}.v_proj.weight"]

    def given_or_random(name: str, shape: Sequence[int]) -> Tensor:
        if f"{prefix}.{name}" in params:
            return params[f"{prefix}.{name}"]
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(value.dtype)

    return {
        "in_proj_weight": torch.cat(
            [
                given_or_random("q_proj.weight", value.shape),
                given_or_random("k_proj.weight", value.shape),
                value,
            ]
        ),
        "in_proj_bias": torch.cat(
            [
                given_or_random("q_proj.bias", value.shape[:1]),
                value.new_zeros(len(value)),
                params[f"{prefix}.v_proj.bias"],
            ]
        ),
        "out_proj.weight": params[f"{prefix}.out_proj.weight"],
        "out_proj.bias": params[f"{prefix}.out_proj.bias"],
    }


def _decoder_weights(
    params: Params, stack: str, num_layers: int, generator: torch.Generator
) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for layer in range(num_layers):
        ours, theirs = f"{stack}.{layer}", f"layers.{layer}"
        for attention, name in (("self_attn", "self_attn"), ("cross_attn", "multihead_attn")):
            for key, value in _packed(params, f"{ours}.{attention}", generator).items():
                renamed[f"{theirs}.{name}.{key}"] = value
        for our_name, name in (
            ("self_attn_norm", "norm1"),
            ("cross_attn_norm", "norm2"),
            ("feedforward_norm", "norm3"),
            ("linear1", "linear1"),
            ("linear2", "linear2"),
        ):
            for key in ("weight", "bias"):
                value = params.get(f"{ours}.{our_name}.{key}")
                if value is None:
                    # The norm before left-out queries: it has the size of any other norm.
                    like = params[f"{ours}.feedforward_norm.{key}"]
                    draw = torch.randn(like.shape, generator=generator, dtype=torch.float64)
                    value = draw.to(like.dtype)
                renamed[f"{theirs}.{name}.{key}"] = value
    return renamed


def oracle_block(
    params: Params,
    context: Tensor,
    modality: Tensor,
    context_mask: Tensor,
    modality_mask: Tensor,
    *,
    num_heads: int,
    activation: str = "gelu",
    norm_first: bool = False,
    seed: int = 5,
) -> tuple[Tensor, Tensor]:
    """Both decoders; what they put at padded steps is not defined."""
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    num_layers = 1 + max(int(name.split(".")[1]) for name in params)
    inputs = {
        "context_layers": (context, modality, context_mask, modality_mask),
        "modality_layers": (modality, context, modality_mask, context_mask),
    }
    outputs: list[Tensor] = []
    for stack, (target, memory, target_mask, memory_mask) in inputs.items():
        layer = nn.TransformerDecoderLayer(
            context.shape[-1],
            num_heads,
            dim_feedforward=len(params["context_layers.0.linear1.bias"]),
            dropout=0.0,
            activation=activation,
            batch_first=True,
            norm_first=norm_first,
            dtype=context.dtype,
        )
        decoder = nn.TransformerDecoder(layer, num_layers)
        outputs.append(
            functional_call(
                decoder,
                _decoder_weights(params, stack, num_layers, generator),
                (target, memory),
                {
                    "tgt_key_padding_mask": ~target_mask,
                    "memory_key_padding_mask": ~memory_mask,
                },
                strict=True,
            )
        )
    return outputs[0], outputs[1]


def oracle_gate(params: Params, state: Tensor, update: Tensor) -> tuple[Tensor, Tensor]:
    """The fused state and its gate, from ``nn.Linear`` and ``nn.LayerNorm``."""
    dim = state.shape[-1]
    both = torch.cat([state, update], dim=-1)
    outputs: list[Tensor] = []
    for rows in (slice(0, dim), slice(dim, 2 * dim)):
        linear = nn.Linear(2 * dim, dim, dtype=state.dtype)
        weights = {"weight": params["linear.weight"][rows], "bias": params["linear.bias"][rows]}
        outputs.append(functional_call(linear, weights, (both,)))
    gate, candidate = outputs[0].sigmoid(), outputs[1].tanh()
    norm = nn.LayerNorm(dim, dtype=state.dtype)
    weights = {"weight": params["norm.weight"], "bias": params["norm.bias"]}
    return functional_call(norm, weights, (torch.lerp(state, candidate, gate),)), gate


def _mean(x: Tensor, mask: Tensor) -> Tensor:
    return x.masked_fill(~mask[..., None], 0.0).sum(dim=1) / mask.sum(dim=1, keepdim=True)


def _named(params: Params, prefix: str) -> dict[str, Tensor]:
    return {
        name[len(prefix) + 1 :]: value
        for name, value in params.items()
        if name.startswith(f"{prefix}.")
    }


def oracle_fusion(
    params: Params,
    config: FusionConfig,
    features: Mapping[str, Tensor],
    masks: Mapping[str, Tensor] | None = None,
    order: Sequence[str] | None = None,
    *,
    seed: int = 5,
) -> OracleTrace:
    """The chain on a whole padded batch in which nothing is absent."""
    if config.self_attention is not True or not config.symmetric:
        msg = "nn.TransformerDecoder always has self-attention, and the oracle both stacks"
        raise NotImplementedError(msg)
    chain = list(order or config.modalities)
    tables: dict[str, Tensor] = {}
    projected: dict[str, Tensor] = {}
    real: dict[str, Tensor] = {}
    for name in chain:
        x = features[name]
        mask = (masks or {}).get(name)
        real[name] = torch.ones(x.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
        linear = nn.Linear(x.shape[2], config.embed_dim, dtype=x.dtype)
        x = x.masked_fill(~real[name][..., None], 0.0)
        projected[name] = functional_call(linear, _named(params, f"projections.{name}"), (x,))
        tables[name] = sinusoids(x.shape[1], config.embed_dim).to(x.dtype)

    def pooled_head(name: str) -> Tensor:
        return _mean(projected[name] + tables[name], real[name])

    head = chain[0]
    one = torch.ones(len(features[head]), 1, dtype=torch.bool)
    if config.opening == "learned":
        context = params["initial_context"].expand(len(one), 1, -1)
        mask, steps, contexts = one, chain, []
    elif config.context == "pooled":
        context, mask, steps = pooled_head(head)[:, None], one, chain[1:]
        contexts = [context[:, 0]]
    else:
        context, mask, steps = projected[head], real[head], chain[1:]
        contexts = [
            pooled_head(head) if config.context == "first_sequence" else _mean(context, mask)
        ]
    gates: list[Tensor] = []
    for name in steps:
        block = _named(params, "block" if config.share_weights else f"blocks.{name}")
        unit = _named(params, "unit" if config.share_weights else f"units.{name}")
        new_context, new_modality = oracle_block(
            block,
            context + sinusoids(context.shape[1], config.embed_dim).to(context.dtype),
            projected[name] + tables[name],
            mask,
            real[name],
            num_heads=config.num_heads,
            activation=config.activation,
            norm_first=config.norm_first,
            seed=seed,
        )
        update = _mean(new_modality, real[name])[:, None]
        if config.context == "sequence":
            context, gate = oracle_gate(unit, new_context, update.expand_as(new_context))
            context = context.masked_fill(~mask[..., None], 0.0)
        else:
            context, gate = oracle_gate(unit, _mean(new_context, mask)[:, None], update)
            mask = one
        contexts.append(_mean(context, mask))
        gates.append(_mean(gate, mask))
    if config.context == "sequence":
        result = context.masked_fill(~mask[..., None], 0.0)
    else:
        result = contexts[-1]
    no_gates = result.new_zeros(len(one), 0, config.embed_dim)
    return OracleTrace(
        context=result,
        contexts=torch.stack(contexts, dim=1),
        gates=torch.stack(gates, dim=1) if gates else no_gates,
    )
