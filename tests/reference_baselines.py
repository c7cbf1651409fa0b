"""Slow, loop-based reference of the baselines and of gradient modulation.

Written from the formulas in the docstrings, sample by sample on the real steps only, as
tests/reference.py.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reference import (
    Params,
    _activate,
    _attention,
    _layer_norm,
    _linear,
    _mean,
    _positions,
    _real,
    under,
)
from strategies import BaselineCall, BaselineConfig

Named = dict[str, Tensor]


class Given(NamedTuple):
    """The real steps of one modality of one sample, and their places."""

    rows: Tensor
    places: list[int]


Sample = dict[str, Given]


def samples_of(call: BaselineCall, features: Mapping[str, Tensor]) -> list[Sample]:
    """What each sample has, by modality in declared order; what it lacks has no rows."""
    names = list(call.config.modalities)
    batch = len(next(iter(features.values())))
    samples: list[Sample] = []
    for sample in range(batch):
        given: Sample = {}
        for column, name in enumerate(names):
            value = features.get(name)
            places: list[int] = []
            if value is not None and (call.present is None or bool(call.present[sample, column])):
                places = _real((call.masks or {}).get(name), sample, value.shape[1])
            rows = torch.zeros(0) if value is None else value[sample, places]
            given[name] = Given(rows, places)
        samples.append(given)
    return samples


def _project(params: Params, sample: Sample) -> Sample:
    return {
        name: Given(_linear(params, f"projections.{name}", rows), places)
        for name, (rows, places) in sample.items()
        if places
    }


def _pooled(config: BaselineConfig, params: Params, here: Sample) -> list[Tensor]:
    zero = next(iter(params.values())).new_zeros(config.embed_dim)
    return [_mean(here[name].rows) if name in here else zero for name in config.modalities]


def _concat(config: BaselineConfig, params: Params, here: Sample) -> Tensor:
    together = torch.cat(_pooled(config, params, here))
    hidden = _activate(_linear(params, "mix.0", together), "gelu")
    return _linear(params, "mix.3", hidden)


def _pooled_concat(config: BaselineConfig, params: Params, here: Sample) -> Tensor:
    zero = next(iter(params.values())).new_zeros(config.embed_dim)
    vectors: list[Tensor] = []
    for name in config.modalities:
        if name in here:
            steps = [
                _activate(_linear(params, f"encoders.{name}", _activate(row, "gelu")), "gelu")
                for row in here[name].rows
            ]
            vectors += [sum(steps, zero) / len(steps), functools.reduce(torch.maximum, steps)]
        else:
            vectors += [zero, zero]
    hidden = _activate(_linear(params, "mix.0", torch.cat(vectors)), "gelu")
    return _linear(params, "mix.3", hidden)


def _early(config: BaselineConfig, params: Params, here: Sample) -> Tensor:
    x = torch.cat([rows + _positions(places, rows) for rows, places in here.values()])
    for index in range(config.options["num_layers"]):
        layer = under(params, f"layers.{index}")
        read, _ = _attention(under(layer, "attention"), x, x, config.options["num_heads"])
        x = _layer_norm(layer, "attention_norm", x + read)
        hidden = _activate(_linear(layer, "linear1", x), "gelu")
        x = _layer_norm(layer, "feedforward_norm", x + _linear(layer, "linear2", hidden))
    return _mean(x)


def _weighted_sum(config: BaselineConfig, params: Params, here: Sample) -> tuple[Tensor, Tensor]:
    vectors = _pooled(config, params, here)
    weights = config.options["weights"]
    shares: list[Tensor] = []
    if isinstance(weights, str):
        scores = _linear(params, "gate", torch.cat(vectors))
    for place, name in enumerate(config.modalities):
        if name not in here:
            shares.append(vectors[0].new_zeros(()))
        elif weights == "sigmoid":
            shares.append(1 / (1 + torch.exp(-scores[place])))
        elif weights == "softmax":
            shares.append(torch.exp(scores[place]))
        else:
            shares.append(vectors[0].new_tensor(weights[name]))
    stacked = torch.stack(shares)
    if weights == "softmax":
        stacked = stacked / stacked.sum()
    elif weights != "sigmoid" and stacked.sum() > 0:
        stacked = stacked * sum(weights.values()) / stacked.sum()
    fused = sum((w * v for w, v in zip(stacked, vectors, strict=True)), torch.zeros(()))
    return fused, stacked


def _cross_modal(config: BaselineConfig, params: Params, here: Sample) -> Tensor:
    encoded = {name: rows + _positions(places, rows) for name, (rows, places) in here.items()}
    slots: list[Tensor] = []
    for name in config.modalities:
        if name not in here:
            slots.append(next(iter(params.values())).new_zeros(config.embed_dim))
            continue
        query = encoded[name]
        others = [x for other, x in encoded.items() if other != name]
        memory = torch.cat([query[:0], *others])
        attention = under(params, f"attentions.{name}")
        read, _ = _attention(attention, query, memory, config.options["num_heads"])
        slots.append(_mean(_layer_norm(params, f"norms.{name}", query + read)))
    return _linear(params, "mix", torch.cat(slots))


def mult_position(place: int, dim: int) -> list[float]:
    """One row of MulT's positions."""
    half = dim // 2
    rates = [10000 ** (-i / (half - 1)) if half > 1 else 1.0 for i in range(half)]
    sines = [math.sin((place + 1) * rate) for rate in rates]
    return [*sines, *(math.cos((place + 1) * rate) for rate in rates)] + [0.0] * (dim - 2 * half)


def _mult_encode(given: Given) -> Given:
    rows, places = given
    if not places:
        return given
    dim = rows.shape[1]
    positions = torch.tensor([mult_position(place, dim) for place in places], dtype=torch.float64)
    return Given(math.sqrt(dim) * rows + positions.to(rows.dtype), places)


def _mult_read(params: Params, query: Given, memory: Given, num_heads: int) -> Tensor:
    """Each query reads the keys up to its own place plus the difference of the lengths."""
    dim = query.rows.shape[1]
    head_dim = dim // num_heads
    length = max(query.places) + 1
    other = max(memory.places, default=-1) + 1
    q = _linear(params, "q_proj", query.rows)
    if memory.places:
        both = _linear(params, "kv_proj", memory.rows)
        k, v = both[:, :dim], both[:, dim:]
    read: list[Tensor] = []
    for i, place in enumerate(query.places):
        seen = [j for j, key in enumerate(memory.places) if key <= place + abs(length - other)]
        heads: list[Tensor] = []
        for head in range(num_heads):
            columns = slice(head * head_dim, (head + 1) * head_dim)
            if not seen:
                heads.append(q.new_zeros(head_dim))
                continue
            scores = [(q[i, columns] * k[j, columns]).sum() / math.sqrt(head_dim) for j in seen]
            largest = max(score.item() for score in scores)
            weights = [torch.exp(score - largest) for score in scores]
            parts = [w * v[j, columns] for w, j in zip(weights, seen, strict=True)]
            heads.append(sum(parts[1:], parts[0]) / sum(weights[1:], weights[0]))
        read.append(torch.cat(heads))
    return _linear(params, "out_proj", torch.stack(read))


def _mult_stack(
    params: Params, x: Given, memory: Given | None, layers: int, num_heads: int
) -> Given:
    x = _mult_encode(x)
    memory = None if memory is None else _mult_encode(memory)
    for index in range(layers):
        layer = under(params, f"layers.{index}")

        def norm(name: str, rows: Tensor, layer: Params = layer) -> Tensor:
            return _layer_norm(layer, f"{name}_norm", rows) if len(rows) else rows

        query = Given(norm("attention", x.rows), x.places)
        keys = query if memory is None else Given(norm("attention", memory.rows), memory.places)
        rows = x.rows + _mult_read(layer, query, keys, num_heads)
        hidden = _activate(_linear(layer, "linear1", norm("feedforward", rows)), "relu")
        x = Given(rows + _linear(layer, "linear2", hidden), x.places)
    return Given(_layer_norm(params, "norm", x.rows), x.places)


def _mult(config: BaselineConfig, params: Params, sample: Sample) -> tuple[Tensor, Tensor]:
    heads, layers = config.options["num_heads"], config.options["num_layers"]
    width = config.options.get("stack_dim") or config.embed_dim
    projected = {
        name: Given(rows @ params[f"projections.{name}.weight"].T, places)
        for name, (rows, places) in sample.items()
        if places
    }
    zero = next(iter(params.values()))
    absent = Given(zero.new_zeros(0, width), [])
    last: list[Tensor] = []
    for name in config.modalities:
        others = [other for other in config.modalities if other != name]
        if name not in projected:
            last.append(zero.new_zeros(len(others) * width))
            continue
        x = projected[name]
        read = [
            _mult_stack(
                under(params, f"cross_stacks.{name}.{other}"),
                x,
                projected.get(other, absent),
                layers,
                heads,
            ).rows
            for other in others
        ]
        joined = Given(torch.cat(read, dim=1), x.places)
        stack = under(params, f"memory_stacks.{name}")
        last.append(_mult_stack(stack, joined, None, max(3, layers), heads).rows[-1])
    fused = torch.cat(last)
    hidden = _activate(_linear(params, "head_in", fused), "relu")
    return _linear(params, "out_proj", fused + _linear(params, "head_out", hidden)), fused


def _alignment(config: BaselineConfig, params: Params, samples: Sequence[Sample]) -> Named:
    projected = [_project(params, sample) for sample in samples]
    vectors: list[dict[str, Tensor]] = []
    for here in projected:
        means = {name: _mean(given.rows) for name, given in here.items()}
        vectors.append({name: v / torch.sqrt((v * v).sum()) for name, v in means.items()})
    scale = 100 / (1 + torch.exp(-params["scale"]))
    names = list(config.modalities)
    losses: list[Tensor] = []
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            chosen = [pair for pair in vectors if one in pair and other in pair]
            if len(chosen) < 2:
                continue
            terms: list[Tensor] = []
            for left, right in ((one, other), (other, one)):
                for place, anchor in enumerate(chosen):
                    scores = [scale * (anchor[left] * pair[right]).sum() for pair in chosen]
                    largest = max(score.item() for score in scores)
                    total = sum(torch.exp(score - largest) for score in scores)
                    terms.append(torch.log(total) + largest - scores[place])
            losses.append(sum(terms[1:], terms[0]) / len(terms))
    zero = scale.new_zeros(())
    named: Named = {"loss": sum(losses[1:], losses[0]) / len(losses) if losses else zero}
    for name in names:
        rows = [v.get(name, zero.new_zeros(config.embed_dim)) for v in vectors]
        named[f"vector {name}"] = torch.stack(rows)
    return named


def reference_baseline(call: BaselineCall, params: Params, features: Mapping[str, Tensor]) -> Named:
    """The outputs of `properties.baseline_case`, in the same order."""
    config, kind = call.config, call.config.kind
    samples = samples_of(call, features)
    if kind == "alignment":
        return _alignment(config, params, samples)
    zero = next(iter(params.values()))
    fused: list[Tensor] = []
    more: list[Tensor] = []
    for sample in samples:
        here: Any = {name for name, given in sample.items() if given.places}
        if kind == "mult":
            result, last = _mult(config, params, sample)
            more.append(last)
        else:
            projected = _project(params, sample)
            if kind == "weighted sum" and here:
                result, weights = _weighted_sum(config, params, projected)
                more.append(weights)
            elif kind == "weighted sum":
                more.append(zero.new_zeros(len(config.modalities)))
            elif here:
                formula = {
                    "concat": _concat,
                    "pooled": _pooled_concat,
                    "early": _early,
                    "cross-modal": _cross_modal,
                }[kind]
                result = formula(config, params, projected)
        fused.append(result if here else zero.new_zeros(config.embed_dim))
    named = {"fused": torch.stack(fused)}
    if kind == "weighted sum":
        return named | {"weights": torch.stack(more), "beside": named["fused"]}
    if kind == "mult":
        return named | {"last steps": torch.stack(more), "beside": named["fused"]}
    return named


def reference_ratios(
    logits: Sequence[Tensor], targets: Tensor, present: Tensor
) -> list[float | None]:
    """How far each modality is ahead of the mean of the others, by loops over plain numbers."""
    means: list[float | None] = []
    for column, scores in enumerate(logits):
        found: list[float] = []
        for sample, row in enumerate(scores.tolist()):
            if present[sample, column]:
                exponentials = [math.exp(score - max(row)) for score in row]
                found.append(exponentials[int(targets[sample])] / sum(exponentials))
        means.append(sum(found) / len(found) if found else None)
    ratios: list[float | None] = []
    for column, mean in enumerate(means):
        others = [m for i, m in enumerate(means) if i != column and m is not None]
        alone = mean is None or not others
        ratios.append(None if alone else mean / (sum(others) / len(others)))
    return ratios


def reference_factors(
    logits: Sequence[Tensor], targets: Tensor, present: Tensor, alpha: float
) -> list[float]:
    """How much of its gradient each modality keeps."""
    return [
        1 - math.tanh(alpha * ratio) if ratio is not None and ratio > 1 else 1.0
        for ratio in reference_ratios(logits, targets, present)
    ]
