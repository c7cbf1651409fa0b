"""Hypothesis strategies: sizes, names, masks, presence, orders and whole calls as plain data.

Sizes are small primes (and 1), mutually different in a call, so that no two axes can be mixed up
unnoticed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor, nn

from reference import FusionConfig

BATCHES_AND_TIMES = (1, 2, 3, 5, 7)
WIDTHS = (11, 13, 17, 19)
# Pairs (embed_dim, num_heads): odd and even widths, one head and as many heads as columns.
WIDE_EMBEDDINGS = ((15, 1), (15, 3), (15, 5), (16, 2), (20, 5), (21, 3))
EMBEDDINGS = ((3, 1), (3, 3), (5, 1), (6, 3), (8, 2), (9, 3), (10, 5), *WIDE_EMBEDDINGS)
FEEDFORWARDS = (None, 7, 23, 29)
MASK_PATTERNS = ("full", "right padded", "left padded", "holes", "nothing")
MASK_DTYPES = (torch.bool, torch.int64, torch.int32, torch.uint8)
GARBAGE = (0.0, 1e30, float("nan"), float("inf"), -float("inf"))
FAMILIAR_NAMES = ("text", "image", "audio", "depth", "touch", "radar")
# Forms of the baselines; the classes stand in tests/properties.py.
BASELINES = ("concat", "pooled", "early", "weighted sum", "cross-modal", "mult", "alignment")
# These compare modalities, so that one is too few.
OF_PAIRS = ("mult", "alignment")
_TAKEN = frozenset(dir(nn.ModuleDict()))


def examples(number: int) -> settings:
    """Try so many examples under `--full`, and otherwise a third of them."""
    return settings(max_examples=math.ceil(number * settings.default.max_examples / 100))


@dataclass(frozen=True, kw_only=True)
class FusionCall:
    """A constructor's configuration and one valid call of it."""

    config: FusionConfig
    features: Mapping[str, Tensor | None]
    masks: Mapping[str, Tensor | None] | None
    present: Tensor | None
    order: tuple[str, ...] | None
    dtype: torch.dtype
    seed: int

    def call_kwargs(self) -> dict[str, Any]:
        """The keyword arguments of the call."""
        return {"masks": self.masks, "present": self.present, "order": self.order}


@dataclass(frozen=True, kw_only=True)
class BaselineConfig:
    """Constructor arguments of a baseline (dropout stays 0)."""

    kind: str
    modalities: Mapping[str, int]
    embed_dim: int
    options: Mapping[str, Any]
    # As in every fusion whose result is one vector.
    context: str = "pooled"

    def kwargs(self) -> dict[str, Any]:
        """As keyword arguments for the class."""
        return {"modalities": self.modalities, "embed_dim": self.embed_dim, **self.options}


@dataclass(frozen=True, kw_only=True)
class BaselineCall:
    """A baseline's configuration and one valid call of it."""

    config: BaselineConfig
    features: Mapping[str, Tensor | None]
    masks: Mapping[str, Tensor | None] | None
    present: Tensor | None
    dtype: torch.dtype
    seed: int
    order: None = None


def activations_for(dtype: torch.dtype, *, smooth: bool) -> st.SearchStrategy[str]:
    """The activations; with `smooth` those alone whose gradient the dtype can resolve.

    The gradient of ReLU jumps at 0. float32 rounds some hidden feature across it, once in some
    thousand calls (seen in MulT, 4e-8 from 0), so that two ways to compute it disagree.
    """
    resolved = dtype == torch.float64 or not smooth
    return st.sampled_from(("gelu", "relu") if resolved else ("gelu",))


def sizes(count: int, primes: Sequence[int] = BATCHES_AND_TIMES) -> st.SearchStrategy[list[int]]:
    """`count` mutually different sizes."""
    return st.permutations(primes).map(lambda drawn: list(drawn[:count]))


def embeddings_for(dtype: torch.dtype) -> Sequence[tuple[int, int]]:
    """The pairs whose result a dtype can resolve.

    A LayerNorm over few columns meets, once in some hundred calls, a row that is nearly constant,
    and multiplies what it is given by up to 300; a chain of them takes float32 rounding beyond
    1e-5 whoever computes it (seen at 3 columns, and once at 10). Narrow widths are for
    float64.
    """
    return EMBEDDINGS if dtype == torch.float64 else WIDE_EMBEDDINGS


def dtypes() -> st.SearchStrategy[torch.dtype]:
    """The two dtypes that results are compared in."""
    return st.sampled_from((torch.float64, torch.float32))


def seeds() -> st.SearchStrategy[int]:
    """Seeds for `torch.Generator`, from which all random values come."""
    return st.integers(0, 2**31 - 1)


@st.composite
def modality_names(draw: st.DrawFn, count: int) -> list[str]:
    """Different names that ``nn.ModuleDict`` can hold: usual ones and odd ones."""
    if draw(st.booleans()):
        return list(draw(st.permutations(FAMILIAR_NAMES))[:count])
    letters = st.characters(categories=("Lu", "Ll", "Nd"), include_characters="_-", codec="utf-8")
    name = st.text(letters, min_size=1, max_size=7).filter(lambda text: text not in _TAKEN)
    return draw(st.lists(name, min_size=count, max_size=count, unique=True))


@st.composite
def mask_rows(draw: st.DrawFn, time: int, patterns: Sequence[str] = MASK_PATTERNS) -> list[bool]:
    """One sample's mask: a pattern at `time` steps."""
    pattern = draw(st.sampled_from(patterns))
    if pattern == "full":
        return [True] * time
    if pattern == "nothing":
        return [False] * time
    if pattern == "holes":
        row = draw(st.lists(st.booleans(), min_size=time, max_size=time))
        return row if any(row) else [True, *row[1:]]
    real = draw(st.integers(1, time))
    row = [True] * real + [False] * (time - real)
    return row if pattern == "right padded" else row[::-1]


@st.composite
def masks(
    draw: st.DrawFn,
    batch: int,
    time: int,
    patterns: Sequence[str] = MASK_PATTERNS,
    mask_dtypes: Sequence[torch.dtype] = MASK_DTYPES,
) -> Tensor:
    """A mask (batch, time) with a pattern of its own for every sample."""
    rows = [draw(mask_rows(time, patterns)) for _ in range(batch)]
    return torch.tensor(rows).to(draw(st.sampled_from(mask_dtypes)))


def presences(batch: int, count: int) -> st.SearchStrategy[Tensor]:
    """Any pattern of whole modalities per sample, bool (batch, count)."""
    row = st.lists(st.booleans(), min_size=count, max_size=count)
    return st.lists(row, min_size=batch, max_size=batch).map(torch.tensor)


@st.composite
def features(
    draw: st.DrawFn, shape: Sequence[int], mask: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Random values (batch, time, width) and garbage, NaN included, at the padded steps."""
    generator = torch.Generator(torch.get_default_device()).manual_seed(draw(seeds()))
    values = torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)
    if mask is not None and not mask.all():
        values[~mask.bool()] = draw(st.sampled_from(GARBAGE))
    return values


# The forms with a block; the summary form has other options.
FORMS = ("residual", "paper")
SELF_ATTENTIONS = (True, False, "linear")
PACKINGS = ("auto", True, False)


@st.composite
def fusion_configs(
    draw: st.DrawFn,
    count: int,
    *,
    contexts: Sequence[str] = ("pooled", "first_sequence", "sequence"),
    ablations: bool = True,
    dtype: torch.dtype = torch.float64,
    smooth: bool = False,
) -> FusionConfig:
    """A configuration of `count` modalities; `ablations` draws one-way blocks too."""
    names = draw(modality_names(count))
    widths = draw(sizes(count, WIDTHS))
    embed_dim, num_heads = draw(st.sampled_from(embeddings_for(dtype)))
    context = draw(st.sampled_from(contexts))
    openings = ("first", "learned") if context == "pooled" else ("first",)
    if ablations and context == "pooled" and draw(st.booleans()):
        return FusionConfig(
            modalities=dict(zip(names, widths, strict=True)),
            embed_dim=embed_dim,
            num_heads=draw(st.sampled_from((None, num_heads))),
            num_layers=draw(st.integers(1, 2)),
            form="summary",
            activation=draw(activations_for(dtype, smooth=smooth)),
            norm_first=None,
            self_attention=None,
            opening=draw(st.sampled_from(openings)),
            gate_bias=draw(st.sampled_from((0.0, -1.5, "chrono"))),
            share_weights=draw(st.booleans()),
        )
    return FusionConfig(
        modalities=dict(zip(names, widths, strict=True)),
        embed_dim=embed_dim,
        num_heads=num_heads,
        num_layers=draw(st.integers(1, 2)),
        form=draw(st.sampled_from(FORMS)) if ablations else "paper",
        dim_feedforward=draw(st.sampled_from(FEEDFORWARDS)),
        activation=draw(activations_for(dtype, smooth=smooth)),
        norm_first=draw(st.booleans()),
        self_attention=draw(st.sampled_from(SELF_ATTENTIONS)) if ablations else True,
        symmetric=draw(st.booleans()) if ablations else True,
        packing=draw(st.sampled_from(PACKINGS)),
        checkpoint=draw(st.booleans()),
        context=context,
        opening=draw(st.sampled_from(openings)),
        gate_bias=draw(st.sampled_from((0.0, -1.5, "chrono"))),
        share_weights=draw(st.booleans()),
    )


@st.composite
def orders(draw: st.DrawFn, config: FusionConfig) -> tuple[str, ...] | None:
    """None or a permutation that the configuration allows."""
    names = list(config.modalities)
    if not draw(st.booleans()):
        return None
    if config.share_weights or config.opening == "learned":
        return tuple(draw(st.permutations(names)))
    # The first-declared modality has no block of its own here, so it has to stay the head.
    return (names[0], *draw(st.permutations(names[1:])))


@st.composite
def fusion_calls(
    draw: st.DrawFn,
    *,
    max_modalities: int = 4,
    contexts: Sequence[str] = ("pooled", "first_sequence", "sequence"),
    dtype: torch.dtype | None = None,
    absence: bool = True,
    ablations: bool = True,
    smooth: bool = False,
) -> FusionCall:
    """A configuration and a valid call; without `absence`, every sample has every modality."""
    count = draw(st.integers(1, max_modalities))
    dtype = draw(dtypes()) if dtype is None else dtype
    options = {"contexts": contexts, "ablations": ablations, "dtype": dtype, "smooth": smooth}
    config = draw(fusion_configs(count, **options))
    given, given_masks, present = draw(arguments(config.modalities, dtype, absence=absence))
    return FusionCall(
        config=config,
        features=given,
        masks=given_masks,
        present=present,
        order=draw(orders(config)),
        dtype=dtype,
        seed=draw(seeds()),
    )


@st.composite
def arguments(
    draw: st.DrawFn, modalities: Mapping[str, int], dtype: torch.dtype, *, absence: bool = True
) -> tuple[dict[str, Tensor | None], dict[str, Tensor | None] | None, Tensor | None]:
    """Features, masks and presence of a batch."""
    count = len(modalities)
    batch, *times = draw(sizes(count + 1))
    patterns = MASK_PATTERNS if absence else MASK_PATTERNS[:-1]
    given: dict[str, Tensor | None] = {}
    given_masks: dict[str, Tensor | None] = {}
    always = draw(st.integers(0, count - 1))
    for place, (name, width) in enumerate(modalities.items()):
        how = "given"
        # One modality is always there: nothing else tells the batch size.
        if absence and place != always:
            how = draw(st.sampled_from(("given", "given", "given", "left out", "None")))
        if how == "None":
            given[name] = None
        if how != "given":
            continue
        mask = draw(st.none() | masks(batch, times[place], patterns))
        if mask is not None or draw(st.booleans()):
            given_masks[name] = mask
        given[name] = draw(features((batch, times[place], width), mask, dtype))
    masks_or_none = given_masks if given_masks or draw(st.booleans()) else None
    present = draw(st.none() | presences(batch, count)) if absence else None
    return given, masks_or_none, present


@st.composite
def baseline_calls(
    draw: st.DrawFn,
    kind: str | None = None,
    *,
    dtype: torch.dtype | None = None,
    max_modalities: int = 3,
) -> BaselineCall:
    """A baseline with any options and a valid call."""
    kind = draw(st.sampled_from(BASELINES)) if kind is None else kind
    dtype = draw(dtypes()) if dtype is None else dtype
    count = draw(st.integers(2 if kind in OF_PAIRS else 1, max_modalities))
    names = draw(modality_names(count))
    widths = draw(sizes(count, WIDTHS))
    # Post-norm layers over few columns are as steep as those of the block.
    embed_dim, num_heads = draw(st.sampled_from(embeddings_for(dtype)))
    feedforward = {"dim_feedforward": draw(st.sampled_from(FEEDFORWARDS))}
    heads = {"num_heads": num_heads}
    depth = {"num_layers": draw(st.integers(1, 2))}
    options: dict[str, Any] = {
        "concat": feedforward,
        "pooled": {"stage": "pooled", **feedforward},
        "early": {"stage": "early", **heads, **depth, **feedforward},
        "weighted sum": {"weights": draw(weights_of(names))},
        "cross-modal": heads,
        "mult": {**heads, **depth, "stack_dim": draw(st.sampled_from((None, embed_dim)))},
        "alignment": {"temperature": draw(st.sampled_from((0.07, 0.5, 3)))},
    }[kind]
    if kind == "mult" and options["stack_dim"] is not None:
        embed_dim = draw(st.sampled_from((1, 4, 9)))
    given, masks, present = draw(arguments(dict(zip(names, widths, strict=True)), dtype))
    return BaselineCall(
        config=BaselineConfig(
            kind=kind,
            modalities=dict(zip(names, widths, strict=True)),
            embed_dim=embed_dim,
            options=options,
        ),
        features=given,
        masks=masks,
        present=present,
        dtype=dtype,
        seed=draw(seeds()),
    )


def weights_of(names: Sequence[str]) -> st.SearchStrategy[str | dict[str, float]]:
    """Learnt weights of either kind, or fixed ones, some of which may be 0."""
    number = st.sampled_from((0, 0.25, 1, 3.5))
    fixed = st.lists(number, min_size=len(names), max_size=len(names)).filter(any)
    return st.sampled_from(("sigmoid", "softmax")) | fixed.map(
        lambda drawn: dict(zip(names, drawn, strict=True))
    )


@dataclass(frozen=True, kw_only=True)
class BlockCall:
    """Options of a block, its embed_dim, and one valid call of it."""

    embed_dim: int
    num_layers: int
    dim_feedforward: int | None
    options: Mapping[str, Any]
    context: Tensor
    modality: Tensor
    context_mask: Tensor | None
    modality_mask: Tensor | None
    seed: int


@st.composite
def block_calls(
    draw: st.DrawFn, *, dtype: torch.dtype | None = None, smooth: bool = False
) -> BlockCall:
    """A block with any options and a call with any masks."""
    dtype = draw(dtypes()) if dtype is None else dtype
    embed_dim, num_heads = draw(st.sampled_from(embeddings_for(dtype)))
    batch, context_time, modality_time = draw(sizes(3))
    pooled_context = draw(st.booleans())
    if pooled_context:
        context_time = 1
    context_mask = draw(st.none() | masks(batch, context_time))
    modality_mask = draw(st.none() | masks(batch, modality_time))
    return BlockCall(
        embed_dim=embed_dim,
        num_layers=draw(st.integers(1, 2)),
        dim_feedforward=draw(st.sampled_from(FEEDFORWARDS)),
        options={
            "num_heads": num_heads,
            "activation": draw(activations_for(dtype, smooth=smooth)),
            "norm_first": draw(st.booleans()),
            "self_attention": draw(st.sampled_from(SELF_ATTENTIONS)),
            "symmetric": draw(st.booleans()),
            "packing": draw(st.sampled_from(PACKINGS)),
            "checkpoint": draw(st.booleans()),
            "pooled_context": pooled_context,
        },
        context=draw(features((batch, context_time, embed_dim), context_mask, dtype)),
        modality=draw(features((batch, modality_time, embed_dim), modality_mask, dtype)),
        context_mask=context_mask,
        modality_mask=modality_mask,
        seed=draw(seeds()),
    )


@dataclass(frozen=True, kw_only=True)
class AdapterCall:
    """Constructor arguments of a `FusionAdapter` and one valid call of it."""

    modalities: Mapping[str, int]
    options: Mapping[str, Any]
    hidden: Tensor
    mask: Tensor | None
    features: Mapping[str, Tensor | None]
    masks: Mapping[str, Tensor | None] | None
    present: Tensor | None
    dtype: torch.dtype
    seed: int


@st.composite
def adapter_calls(
    draw: st.DrawFn, *, dtype: torch.dtype | None = None, smooth: bool = False
) -> AdapterCall:
    """An adapter with any options and a valid call."""
    dtype = draw(dtypes()) if dtype is None else dtype
    count = draw(st.integers(1, 3))
    names = draw(modality_names(count))
    modalities = dict(zip(names, draw(sizes(count, WIDTHS)), strict=True))
    embed_dim, num_heads = draw(st.sampled_from(embeddings_for(dtype)))
    given, given_masks, present = draw(arguments(modalities, dtype))
    batch = next(len(value) for value in given.values() if value is not None)
    time = draw(st.sampled_from((1, 4, 6)))
    mask = draw(st.none() | masks(batch, time))
    options = {
        "embed_dim": embed_dim,
        "num_heads": num_heads,
        "num_layers": draw(st.integers(1, 2)),
        "dim_feedforward": draw(st.sampled_from(FEEDFORWARDS)),
        "activation": draw(activations_for(dtype, smooth=smooth)),
        "norm_first": draw(st.booleans()),
        "self_attention": draw(st.sampled_from(SELF_ATTENTIONS)),
        "symmetric": draw(st.booleans()),
        "packing": draw(st.sampled_from(PACKINGS)),
        "checkpoint": draw(st.booleans()),
    }
    return AdapterCall(
        modalities=modalities,
        options=options,
        hidden=draw(features((batch, time, embed_dim), mask, dtype)),
        mask=mask,
        features=given,
        masks=given_masks,
        present=present,
        dtype=dtype,
        seed=draw(seeds()),
    )
