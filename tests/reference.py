"""Slow, loop-based reference of the three modules, written from the formula and from nothing else.

Works sample by sample on the real steps only, so it needs no masks: what is padded is never read.
Takes parameters as a mapping from ``state_dict`` names to tensors and is differentiable in all of
them. Axis names: batch, time, dim, heads, head_dim.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

Params = Mapping[str, Tensor]

ATTENTIONS = (
    ("context_self", "context_layers", "self_attn"),
    ("context_cross", "context_layers", "cross_attn"),
    ("modality_self", "modality_layers", "self_attn"),
    ("modality_cross", "modality_layers", "cross_attn"),
)
EPS = 1e-5


@dataclass(frozen=True, kw_only=True)
class FusionConfig:
    """Constructor arguments of ``GatedRecurrentFusion`` (dropout stays 0)."""

    modalities: Mapping[str, int]
    embed_dim: int
    num_heads: int | None
    num_layers: int = 1
    form: str = "paper"
    dim_feedforward: int | None = None
    activation: str = "gelu"
    norm_first: bool | None = False
    self_attention: bool | str | None = True
    symmetric: bool = True
    # How the same is computed: nothing in this file reads these two.
    packing: bool | str = "auto"
    checkpoint: bool = False
    context: str = "pooled"
    opening: str = "first"
    gate_bias: float | str = 0.0
    share_weights: bool = True

    def kwargs(self) -> dict[str, Any]:
        """As keyword arguments for the library's constructor."""
        return dict(vars(self))

    def block_kwargs(self) -> dict[str, Any]:
        """The options that `reference_block` takes."""
        return {
            "num_heads": self.num_heads,
            "activation": self.activation,
            "norm_first": self.norm_first,
            "self_attention": self.self_attention,
            "symmetric": self.symmetric,
            "pooled_context": self.context == "pooled",
        }


class ReferenceWeights(NamedTuple):
    """Attention weights, each (batch, layers, heads, queries, keys) or None."""

    context_self: Tensor | None
    context_cross: Tensor | None
    modality_self: Tensor | None
    modality_cross: Tensor | None


class ReferenceTrace(NamedTuple):
    """Result of `reference_fusion`; all columns in fusion order."""

    context: Tensor
    contexts: Tensor
    gates: Tensor
    present: Tensor


def reference_positions(t_index: Sequence[int], dim: int) -> Tensor:
    """PE rows for the given step indices, float64 (len(t_index), dim)."""
    rows = [
        [
            math.sin(t / 10000 ** (column / dim))
            if column % 2 == 0
            else math.cos(t / 10000 ** ((column - 1) / dim))
            for column in range(dim)
        ]
        for t in t_index
    ]
    return torch.tensor(rows, dtype=torch.float64).reshape(len(rows), dim)


def under(params: Params, prefix: str) -> dict[str, Tensor]:
    """The parameters whose names start with ``prefix.``, without it."""
    return {
        name.removeprefix(prefix + "."): value
        for name, value in params.items()
        if name.startswith(prefix + ".")
    }


def literal_weights(params: Params, generator: torch.Generator) -> dict[str, Tensor]:
    """Random values for every weight and bias that the formula has and `params` not.

    These are queries and keys, and the norm before queries that nothing asks. Works for a block and
    for a whole fusion: an attention is wherever there is a ``v_proj.weight``.
    """
    extra: dict[str, Tensor] = {}
    for name, value in params.items():
        if not name.endswith(".v_proj.weight"):
            continue
        attention = name.removesuffix(".v_proj.weight")
        for key, shape in {
            f"{attention}.q_proj.weight": value.shape,
            f"{attention}.q_proj.bias": value.shape[:1],
            f"{attention}.k_proj.weight": value.shape,
            f"{attention}.k_proj.bias": value.shape[:1],
            f"{attention}_norm.weight": value.shape[:1],
            f"{attention}_norm.bias": value.shape[:1],
        }.items():
            if key not in params:
                draw = torch.randn(shape, generator=generator, dtype=torch.float64)
                extra[key] = draw.to(value.dtype)
    return extra


def _linear(params: Params, name: str, x: Tensor) -> Tensor:
    return x @ params[f"{name}.weight"].T + params[f"{name}.bias"]


def _layer_norm(params: Params, name: str, x: Tensor) -> Tensor:
    rows: list[Tensor] = []
    for row in x:
        centred = row - row.sum() / len(row)
        variance = (centred * centred).sum() / len(row)
        rows.append(centred / torch.sqrt(variance + EPS))
    return torch.stack(rows) * params[f"{name}.weight"] + params[f"{name}.bias"]


def _activate(x: Tensor, activation: str) -> Tensor:
    if activation == "gelu":
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
    if activation == "relu":
        return torch.where(x > 0, x, torch.zeros_like(x))
    raise AssertionError(activation)


def _mean(x: Tensor) -> Tensor:
    return x.sum(dim=0) / len(x)


def _weigh(query: Tensor, keys: Tensor, *, linear: bool) -> Tensor:
    """The weight of each key for one query of one head."""
    if linear:
        features = [torch.where(x > 0, x + 1, torch.exp(x)) for x in (query, keys)]
        products = torch.stack([(features[0] * row).sum() for row in features[1]])
        return products / torch.clamp(products.sum(), min=1e-6)
    scores = torch.stack([(query * row).sum() for row in keys]) / math.sqrt(len(query))
    exponentials = torch.exp(scores - scores.detach().max())
    return exponentials / exponentials.sum()


def _attention(
    params: Params, queries: Tensor, keys: Tensor, num_heads: int, *, linear: bool = False
) -> tuple[Tensor, Tensor]:
    """Attention of each real query over all real keys; weights (heads, queries, keys)."""
    embed_dim = queries.shape[1]
    head_dim = embed_dim // num_heads
    q = _linear(params, "q_proj", queries)
    v = _linear(params, "v_proj", keys)
    k = keys @ params["k_proj.weight"].T
    if "k_proj.bias" in params:
        k = k + params["k_proj.bias"]
    attended: list[Tensor] = []
    weights = queries.new_zeros(num_heads, len(queries), len(keys))
    for i in range(len(queries)):
        parts: list[Tensor] = []
        for head in range(num_heads):
            columns = slice(head * head_dim, (head + 1) * head_dim)
            if len(keys) == 0:
                parts.append(queries.new_zeros(head_dim))
                continue
            weight = _weigh(q[i, columns], k[:, columns], linear=linear)
            weights[head, i] = weight
            parts.append(weight @ v[:, columns])
        attended.append(torch.cat(parts))
    return _linear(params, "out_proj", torch.stack(attended)), weights


class _LayerOptions(NamedTuple):
    num_heads: int
    activation: str
    norm_first: bool
    self_attention: bool | str


def _layer(
    params: Params, x: Tensor, memory: Tensor, options: _LayerOptions
) -> tuple[Tensor, dict[str, Tensor]]:
    """One decoder layer on real steps, and its weights by attention name."""
    weights: dict[str, Tensor] = {}

    def sub_layer(name: str, y: Tensor) -> Tensor:
        if name == "feedforward":
            hidden = _activate(_linear(params, "linear1", y), options.activation)
            return _linear(params, "linear2", hidden)
        keys = y if name == "self_attn" else memory
        linear = name == "self_attn" and options.self_attention == "linear"
        out, weights[name] = _attention(
            under(params, name), y, keys, options.num_heads, linear=linear
        )
        return out

    names = ["self_attn"] if options.self_attention else []
    for name in [*names, "cross_attn", "feedforward"]:
        if options.norm_first:
            x = x + sub_layer(name, _layer_norm(params, f"{name}_norm", x))
        else:
            x = _layer_norm(params, f"{name}_norm", x + sub_layer(name, x))
    return x, weights


def _stack(
    params: Params, x: Tensor, memory: Tensor, options: _LayerOptions
) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Decoder layers one after the other; the memory is the same for all of them."""
    num_layers = 1 + max(int(name.split(".")[0]) for name in params)
    weights: list[dict[str, Tensor]] = []
    for index in range(num_layers):
        if len(x) == 0:
            weights.append({})
            continue
        x, layer_weights = _layer(under(params, str(index)), x, memory, options)
        weights.append(layer_weights)
    return x, weights


def _block_sample(
    params: Params, context: Tensor, modality: Tensor, options: _LayerOptions, symmetric: bool
) -> tuple[Tensor, Tensor, dict[str, list[dict[str, Tensor]]]]:
    """Both stacks on the real steps of one sample, each reading the other's input."""
    weights: dict[str, list[dict[str, Tensor]]] = {}
    new_context, weights["context_layers"] = _stack(
        under(params, "context_layers"), context, modality, options
    )
    if not symmetric:
        return new_context, modality, weights
    new_modality, weights["modality_layers"] = _stack(
        under(params, "modality_layers"), modality, context, options
    )
    return new_context, new_modality, weights


def _with_literal(params: Params, extra: Params | None, *, pooled: bool) -> dict[str, Tensor]:
    if not pooled:
        return {**(extra or {}), **params}
    generated = literal_weights(params, torch.Generator(torch.get_default_device()).manual_seed(2))
    generated = {
        name: value for name, value in generated.items() if not name.endswith("k_proj.bias")
    }
    return {**generated, **(extra or {}), **params}


def _real(mask: Tensor | None, sample: int, time: int) -> list[int]:
    if mask is None:
        return list(range(time))
    return [t for t in range(time) if bool(mask[sample, t])]


def _spread(rows: Tensor, index: Sequence[int], time: int) -> Tensor:
    """Rows at their steps, exact zeros elsewhere: (time, dim)."""
    where = {t: i for i, t in enumerate(index)}
    zero = rows.new_zeros(rows.shape[1])
    return torch.stack([rows[where[t]] if t in where else zero for t in range(time)])


def reference_block(
    params: Params,
    context: Tensor,
    modality: Tensor,
    context_mask: Tensor | None = None,
    modality_mask: Tensor | None = None,
    *,
    num_heads: int,
    activation: str = "gelu",
    norm_first: bool = False,
    self_attention: bool | str = True,
    symmetric: bool = True,
    pooled_context: bool = False,
    extra: Params | None = None,
) -> tuple[Tensor, Tensor, ReferenceWeights]:
    """Symmetric cross-attention, literally: the block of a pooled context has queries and keys too.

    `extra` gives values for weights that `params` lacks (``q_proj`` and ``k_proj`` where the
    context is pooled, key biases anywhere); without it, the pooled ones are random.
    """
    params = _with_literal(params, extra, pooled=pooled_context)
    options = _LayerOptions(num_heads, activation, norm_first, self_attention)
    contexts: list[Tensor] = []
    modalities: list[Tensor] = []
    per_sample: list[dict[str, list[dict[str, Tensor]]]] = []
    steps: list[dict[str, list[int]]] = []
    for sample in range(len(context)):
        real_context = _real(context_mask, sample, context.shape[1])
        real_modality = _real(modality_mask, sample, modality.shape[1])
        new_context, new_modality, weights = _block_sample(
            params, context[sample, real_context], modality[sample, real_modality], options,
            symmetric,
        )  # fmt: skip
        contexts.append(_spread(new_context, real_context, context.shape[1]))
        modalities.append(_spread(new_modality, real_modality, modality.shape[1]))
        per_sample.append(weights)
        steps.append({"context_layers": real_context, "modality_layers": real_modality})
    time = {"context_layers": context.shape[1], "modality_layers": modality.shape[1]}
    fields: dict[str, Tensor | None] = dict.fromkeys(ReferenceWeights._fields)
    for field, stack, attention in ATTENTIONS:
        if (stack == "modality_layers" and not symmetric) or (
            attention == "self_attn" and not self_attention
        ):
            continue
        other = "modality_layers" if stack == "context_layers" else "context_layers"
        source = stack if attention == "self_attn" else other
        num_layers = len(per_sample[0][stack])
        full = context.new_zeros(len(context), num_layers, num_heads, time[stack], time[source])
        for sample, weights in enumerate(per_sample):
            for layer, layer_weights in enumerate(weights[stack]):
                for i, query in enumerate(steps[sample][stack]):
                    for j, key in enumerate(steps[sample][source]):
                        full[sample, layer, :, query, key] = layer_weights[attention][:, i, j]
        fields[field] = full
    return torch.stack(contexts), torch.stack(modalities), ReferenceWeights(**fields)


def reference_gate(
    params: Params, state: Tensor, update: Tensor, *, norm: bool = True, identity: bool = False
) -> tuple[Tensor, Tensor]:
    """h = LN((1 - z) * s + z * c) for states and updates (..., dim); returns h and z."""
    dim = state.shape[-1]
    w_z, w_c = params["linear.weight"][:dim], params["linear.weight"][dim:]
    b_z, b_c = params["linear.bias"][:dim], params["linear.bias"][dim:]
    hidden: list[Tensor] = []
    gates: list[Tensor] = []
    for s, u in zip(state.reshape(-1, dim), update.reshape(-1, dim), strict=True):
        both = torch.cat([s, u])
        z = 1 / (1 + torch.exp(-(w_z @ both + b_z)))
        c = torch.tanh(w_c @ both + b_c)
        if identity:
            z = params["gate_scale"] * z
        h = (1 - z) * s + z * c
        hidden.append(_layer_norm(params, "norm", h[None])[0] if norm else h)
        gates.append(z)
    return torch.stack(hidden).reshape(state.shape), torch.stack(gates).reshape(state.shape)


def reference_adapter(
    params: Params,
    hidden: Tensor,
    features: Mapping[str, Tensor | None],
    *,
    modalities: Mapping[str, int],
    mask: Tensor | None = None,
    masks: Mapping[str, Tensor | None] | None = None,
    present: Tensor | None = None,
    **block: Any,
) -> Tensor:
    """h = GFU(h, s' + Pool(m')) of one sample after the other, one modality after the other."""
    whole: list[Tensor] = []
    for sample in range(len(hidden)):
        real = _real(mask, sample, hidden.shape[1])
        rows = hidden[sample, real]
        for place, name in enumerate(modalities):
            x = features.get(name)
            if x is None or (present is not None and not present[sample, place]):
                continue
            steps = _real((masks or {}).get(name), sample, x.shape[1])
            if not steps or not real:
                continue
            p = _linear(params, f"projections.{name}", x[sample, steps])
            s, m, _ = reference_block(
                under(params, "block"),
                _layer_norm(params, "norm", rows)[None],
                (p + _positions(steps, p))[None],
                **block,
            )
            rows, _ = reference_gate(
                under(params, "unit"), rows, s[0] + _mean(m[0]), norm=False, identity=True
            )
        own = hidden[sample].clone()
        own[real] = rows
        whole.append(own)
    return torch.stack(whole)


class _State(NamedTuple):
    """The context of one sample: its real steps and their indices."""

    rows: Tensor
    steps: list[int]
    # The head of "first_sequence": p_1, which becomes Pool(p_1 + PE) where it has to be one vector.
    head: bool = False


class _Sample(NamedTuple):
    state: _State | None
    contexts: list[Tensor]
    gates: list[Tensor]
    present: list[bool]


def _positions(index: Sequence[int], like: Tensor) -> Tensor:
    return reference_positions(index, like.shape[-1]).to(like.dtype)


def _pool(state: _State) -> Tensor:
    if state.head:
        return _mean(state.rows + _positions(state.steps, state.rows))
    return _mean(state.rows)


def _open(config: FusionConfig, place: int, projected: Tensor, real: list[int]) -> _State:
    if place == 0 and config.context != "pooled":
        return _State(projected, real, head=config.context == "first_sequence")
    return _State(_mean(projected + _positions(real, projected))[None], [0])


def reference_summary(
    params: Params, config: FusionConfig, name: str, rows: Tensor, real: list[int]
) -> Tensor:
    """One modality of one sample as one vector, of its real steps and their indices."""
    scale = params[f"scales.{name}.rms"]
    projected = _linear(params, f"projections.{name}", rows / (scale if scale else 1.0))
    steps: list[Tensor] = []
    for row in projected + 0.3 * _positions(real, projected):
        value = row
        for layer in range(config.num_layers):
            value = _linear(
                params, f"summaries.{name}.hidden.{layer}", _activate(value, config.activation)
            )
        steps.append(_activate(value, config.activation))
    mean = sum(steps[1:], steps[0]) / len(steps)
    largest = steps[0]
    for step in steps[1:]:
        largest = torch.maximum(largest, step)
    both = torch.cat((mean, largest))
    summary = _linear(params, f"summaries.{name}.output", both)
    return _layer_norm(params, f"summaries.{name}.norm", summary[None])[0]


def _summary_step(
    params: Params, config: FusionConfig, name: str, state: _State, summary: Tensor
) -> tuple[_State, Tensor]:
    unit = under(params, "unit" if config.share_weights else f"units.{name}")
    fused, gate = reference_gate(unit, state.rows[0], summary, norm=False)
    return _State(fused[None], [0]), gate


def _step(
    params: Params,
    config: FusionConfig,
    name: str,
    state: _State,
    modality: Tensor,
) -> tuple[_State, Tensor]:
    """One step of the recurrence; `modality` has its positions, the context gets them here."""
    block = under(params, "block" if config.share_weights else f"blocks.{name}")
    unit = under(params, "unit" if config.share_weights else f"units.{name}")
    options = _LayerOptions(
        config.num_heads, config.activation, config.norm_first, config.self_attention
    )
    residual = config.form == "residual"
    context = state.rows
    if not residual or state.head or config.context == "sequence":
        context = context + _positions(state.steps, state.rows)
    new_context, new_modality, _ = _block_sample(
        block, context, modality, options, config.symmetric
    )
    update = _mean(new_modality)
    if residual and config.context == "sequence":
        rows, gates = reference_gate(unit, state.rows, new_context + update, norm=False)
        return _State(rows, state.steps), _mean(gates)
    if residual:
        fused, gate = reference_gate(unit, _pool(state), _mean(new_context) + update, norm=False)
        return _State(fused[None], [0]), gate
    if config.context == "sequence":
        updates = torch.stack([update for _ in state.steps])
        rows, gates = reference_gate(unit, new_context, updates)
        return _State(rows, state.steps), _mean(gates)
    fused, gate = reference_gate(unit, _mean(new_context), update)
    return _State(fused[None], [0]), gate


def read_out_summary(params: Params, context: Tensor) -> Tensor:
    """The result of the summary form for one context."""
    return _layer_norm(params, "norm", context[None])[0]


def _read_out(params: Params, config: FusionConfig, state: _State) -> Tensor:
    pooled = _pool(state)
    return read_out_summary(params, pooled) if config.form == "summary" else pooled


def _fuse_sample(
    params: Params,
    config: FusionConfig,
    inputs: Sequence[tuple[str, Tensor, list[int]]],
) -> _Sample:
    """The chain for one sample; `inputs` are name, real steps and their indices, in order."""
    nothing = next(iter(params.values())).new_zeros(config.embed_dim)
    state: _State | None = None
    if config.opening == "learned":
        state = _State(params["initial_context"][None], [0])
    contexts: list[Tensor] = []
    gates: list[Tensor] = []
    for place, (name, rows, real) in enumerate(inputs):
        gate = nothing
        if real and config.form == "summary":
            summary = reference_summary(params, config, name, rows, real)
            if state is None:
                state = _State(summary[None], [0])
            else:
                state, gate = _summary_step(params, config, name, state, summary)
        elif real:
            projected = _linear(params, f"projections.{name}", rows)
            if state is None:
                state = _open(config, place, projected, real)
            else:
                modality = projected + _positions(real, projected)
                state, gate = _step(params, config, name, state, modality)
        if place == 1 and state is not None and state.head:
            # The second modality is absent: from here on this sample has one vector too.
            state = _State(_pool(state)[None], [0])
        contexts.append(nothing if state is None else _read_out(params, config, state))
        gates.append(gate)
    if state is not None and state.head:
        state = _State(_pool(state)[None], [0])
    if state is not None and config.form == "summary":
        state = _State(_read_out(params, config, state)[None], [0])
    gates = gates if config.opening == "learned" else gates[1:]
    return _Sample(state, contexts, gates, [len(real) > 0 for _, _, real in inputs])


def reference_fusion(
    params: Params,
    config: FusionConfig,
    features: Mapping[str, Tensor | None],
    *,
    masks: Mapping[str, Tensor | None] | None = None,
    present: Tensor | None = None,
    order: Sequence[str] | None = None,
    extra: Params | None = None,
) -> ReferenceTrace:
    """The whole chain, sample by sample; see `reference_block` for `extra`."""
    declared = list(config.modalities)
    chain = declared if order is None else list(order)
    params = _with_literal(params, extra, pooled=config.context == "pooled")
    batch = next(len(value) for value in features.values() if value is not None)
    head = features.get(chain[0])
    time = 1 if head is None else head.shape[1]
    contexts: list[Tensor] = []
    samples: list[_Sample] = []
    for sample in range(batch):
        inputs: list[tuple[str, Tensor, list[int]]] = []
        for name in chain:
            value = features.get(name)
            real: list[int] = []
            if value is not None and (
                present is None or bool(present[sample, declared.index(name)])
            ):
                real = _real((masks or {}).get(name), sample, value.shape[1])
            rows = torch.empty(0) if value is None else value[sample, real]
            inputs.append((name, rows, real))
        fused = _fuse_sample(params, config, inputs)
        samples.append(fused)
        none = fused.contexts[0].new_zeros(0, config.embed_dim)
        rows, index, _ = fused.state or _State(none, [])
        if config.context == "sequence":
            contexts.append(_spread(rows, index, time))
        else:
            contexts.append(_spread(rows, index, 1)[0])
    no_gates = contexts[0].new_zeros(batch, 0, config.embed_dim)
    gates = [torch.stack(fused.gates) for fused in samples if fused.gates]
    return ReferenceTrace(
        context=torch.stack(contexts),
        contexts=torch.stack([torch.stack(fused.contexts) for fused in samples]),
        gates=torch.stack(gates) if gates else no_gates,
        present=torch.tensor([fused.present for fused in samples]),
    )


def _attention_shapes(
    name: str, embed_dim: int, *, one_key: bool, norm_first: bool, linear: bool
) -> dict[str, tuple[int, ...]]:
    projections = ["v_proj", "out_proj"] if one_key else ["q_proj", "k_proj", "v_proj", "out_proj"]
    shapes: dict[str, tuple[int, ...]] = {}
    for projection in projections:
        shapes[f"{name}.{projection}.weight"] = (embed_dim, embed_dim)
        if projection != "k_proj" or linear:
            shapes[f"{name}.{projection}.bias"] = (embed_dim,)
    # A pre-norm of queries alone (the memory is not normalised) goes where the queries go.
    if not (norm_first and one_key and name.endswith("cross_attn")):
        shapes |= _norm_shapes(f"{name}_norm", embed_dim)
    return shapes


def _norm_shapes(name: str, embed_dim: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (embed_dim,), f"{name}.bias": (embed_dim,)}


def block_shapes(
    embed_dim: int,
    *,
    dim_feedforward: int | None = None,
    num_layers: int = 1,
    norm_first: bool = False,
    self_attention: bool | str = True,
    symmetric: bool = True,
    pooled_context: bool = False,
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a block's parameters: what can influence its output and nothing else."""
    hidden = 4 * embed_dim if dim_feedforward is None else dim_feedforward
    one_key_attention = {"context_layers": "self_attn", "modality_layers": "cross_attn"}
    shapes: dict[str, tuple[int, ...]] = {}
    for stack in ["context_layers", "modality_layers"][: 1 + symmetric]:
        for layer in range(num_layers):
            prefix = f"{stack}.{layer}"
            for attention in ["self_attn", "cross_attn"][not self_attention :]:
                shapes |= _attention_shapes(
                    f"{prefix}.{attention}",
                    embed_dim,
                    one_key=pooled_context and attention == one_key_attention[stack],
                    norm_first=norm_first,
                    linear=attention == "self_attn" and self_attention == "linear",
                )
            shapes[f"{prefix}.linear1.weight"] = (hidden, embed_dim)
            shapes[f"{prefix}.linear1.bias"] = (hidden,)
            shapes[f"{prefix}.linear2.weight"] = (embed_dim, hidden)
            shapes[f"{prefix}.linear2.bias"] = (embed_dim,)
            shapes |= _norm_shapes(f"{prefix}.feedforward_norm", embed_dim)
    return shapes


def unit_shapes(
    embed_dim: int, *, norm: bool = True, identity: bool = False
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a gated fusion unit's parameters."""
    shapes: dict[str, tuple[int, ...]] = {
        "linear.weight": (2 * embed_dim, 2 * embed_dim),
        "linear.bias": (2 * embed_dim,),
    }
    if norm:
        shapes |= {"norm.weight": (embed_dim,), "norm.bias": (embed_dim,)}
    if identity:
        shapes["gate_scale"] = ()
    return shapes


def fusion_shapes(config: FusionConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all parameters of a fusion."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, width in config.modalities.items():
        shapes[f"projections.{name}.weight"] = (config.embed_dim, width)
        shapes[f"projections.{name}.bias"] = (config.embed_dim,)
    block: dict[str, tuple[int, ...]] = {}
    if config.form == "summary":
        dim = config.embed_dim
        for name in config.modalities:
            shapes[f"scales.{name}.rms"] = (1,)
            for layer in range(config.num_layers):
                shapes[f"summaries.{name}.hidden.{layer}.weight"] = (dim, dim)
                shapes[f"summaries.{name}.hidden.{layer}.bias"] = (dim,)
            shapes[f"summaries.{name}.output.weight"] = (dim, 2 * dim)
            shapes[f"summaries.{name}.output.bias"] = (dim,)
            shapes |= _norm_shapes(f"summaries.{name}.norm", dim)
        shapes |= _norm_shapes("norm", dim)
    else:
        block = _block_shapes_of(config)
    places = [("block", "unit")]
    if not config.share_weights:
        fused = list(config.modalities)[config.opening == "first" :]
        places = [(f"blocks.{name}", f"units.{name}") for name in fused]
    for block_name, unit_name in places:
        shapes |= {f"{block_name}.{name}": shape for name, shape in block.items()}
        unit = unit_shapes(config.embed_dim, norm=config.form == "paper")
        shapes |= {f"{unit_name}.{name}": shape for name, shape in unit.items()}
    if config.opening == "learned":
        shapes["initial_context"] = (config.embed_dim,)
    return shapes


def _block_shapes_of(config: FusionConfig) -> dict[str, tuple[int, ...]]:
    return block_shapes(
        config.embed_dim,
        dim_feedforward=config.dim_feedforward,
        num_layers=config.num_layers,
        norm_first=config.norm_first,
        self_attention=config.self_attention,
        symmetric=config.symmetric,
        pooled_context=config.context == "pooled",
    )


def random_params(
    shapes: Mapping[str, tuple[int, ...]], seed: int, dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    """Every parameter at random, none at a special value such as 0 or 1."""
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    params: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        value = torch.randn(shape, generator=generator, dtype=torch.float64)
        if name.endswith(".rms"):
            value = value.abs() + 0.5
        elif name.endswith("norm.weight"):
            value = 1 + 0.2 * value
        elif len(shape) == 2:
            value = value / math.sqrt(shape[1])
        else:
            value = 0.3 * value
        # Rounded to float32 at once, so that both dtypes can hold the same weights.
        params[name] = value.float().to(dtype)
    return params
