"""Options of the chain, and the defaults that depend on the form of the recurrence."""

import dataclasses
from typing import Literal, cast, get_args

from grf_fusion._checks.arguments import expect_choice, expect_flag, expect_probability, expect_size
from grf_fusion._checks.options import check_factory
from grf_fusion._layers.gate import check_unit_options
from grf_fusion._layers.options import ACTIVATIONS, BlockOptions

OWNER = "GatedRecurrentFusion"
Form = Literal["summary", "residual", "paper"]
Mode = Literal["pooled", "first_sequence", "sequence"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChainOptions:
    """Options of `GatedRecurrentFusion`, which describes them.

    `settle` replaces ``None`` by the default of the form. ``repr`` and ``config`` use the order of
    the fields.
    """

    form: Form | None
    embed_dim: int
    num_heads: int | None
    num_layers: int
    dim_feedforward: int | None
    dropout: float
    activation: Literal["gelu", "relu"]
    norm_first: bool | None
    self_attention: bool | Literal["linear"] | None
    symmetric: bool
    packing: bool | Literal["auto"]
    checkpoint: bool
    context: Mode
    opening: Literal["first", "learned"] | None
    gate_bias: float | Literal["chrono"] | None
    share_weights: bool


SETTINGS = tuple(field.name for field in dataclasses.fields(ChainOptions))
# Options of the block, which the summary form does not have, with their defaults.
OF_THE_BLOCK: dict[str, bool | None] = {
    "dim_feedforward": None,
    "norm_first": None,
    "self_attention": None,
    "symmetric": True,
    "checkpoint": False,
}


def settle(given: ChainOptions, *, block: object, unit: object) -> ChainOptions:
    """Check all options, and replace ``None`` by the default of the form.

    ``block`` and ``unit`` are the user's factories, or ``None``.
    """
    expect_size(OWNER, "embed_dim", given.embed_dim)
    expect_probability(OWNER, "dropout", given.dropout)
    given = _settle_form(given)
    expect_flag(OWNER, "share_weights", given.share_weights)
    if given.form == "summary":
        _check_summary(given, own_block=block is not None)
    else:
        given = _settle_block(given, own_block=block is not None)
    if unit is None and not isinstance(given.gate_bias, str):
        bias = cast(float, given.gate_bias)
        check_unit_options(given.embed_dim, dropout=given.dropout, gate_bias=bias)
    for argument, factory in (("block", block), ("unit", unit)):
        if factory is not None:
            check_factory(OWNER, argument, factory)
    return given


def _settle_form(given: ChainOptions) -> ChainOptions:
    form, context, opening, bias = given.form, given.context, given.opening, given.gate_bias
    expect_choice(OWNER, "context", context, get_args(Mode))
    if form is None:
        form = "summary" if context == "pooled" else "residual"
    expect_choice(OWNER, "form", form, get_args(Form))
    if form == "summary" and context != "pooled":
        raise ValueError(
            f"{OWNER}: expected `context='pooled'` with form='summary', got {context!r}. "
            "Write form='residual' or form='paper' for a context that is a sequence."
        )
    if opening is None:
        opening = "learned" if form != "paper" and context == "pooled" else "first"
    expect_choice(OWNER, "opening", opening, ("first", "learned"))
    if opening == "learned" and context != "pooled":
        raise ValueError(
            f"{OWNER}: expected `opening='first'` with context={context!r}, got 'learned'. "
            "A learned opening is one vector: use context='pooled'."
        )
    if bias is None:
        bias = 0.0 if form == "paper" else "chrono"
    if isinstance(bias, str):
        expect_choice(OWNER, "gate_bias", bias, ("chrono",), also="a number")
    return dataclasses.replace(given, form=form, opening=opening, gate_bias=bias)


def _check_summary(given: ChainOptions, *, own_block: bool) -> None:
    expect_size(OWNER, "num_layers", given.num_layers)
    expect_choice(OWNER, "activation", given.activation, ACTIVATIONS)
    expect_flag(OWNER, "packing", given.packing, other="auto")
    if given.num_heads is not None:
        expect_size(OWNER, "num_heads", given.num_heads)
    wrong = [
        f"{name}={getattr(given, name)!r}"
        for name, default in OF_THE_BLOCK.items()
        if getattr(given, name) is not default
    ]
    wrong += ["a factory of `block`"] if own_block else []
    if wrong:
        raise ValueError(
            f"{OWNER}: expected no option of the block with form='summary', which has no block, "
            f"got {', '.join(wrong)}. Write form='residual' or form='paper' for a block."
        )


def _settle_block(given: ChainOptions, *, own_block: bool) -> ChainOptions:
    residual = given.form == "residual"
    norm_first = residual if given.norm_first is None else given.norm_first
    attention = not residual if given.self_attention is None else given.self_attention
    if given.num_heads is None and not own_block:
        raise ValueError(
            f"{OWNER}: expected `num_heads` with form={given.form!r}, got None. "
            "Give a number of attention heads that divides `embed_dim`. The form without attention "
            "is form='summary' with context='pooled'."
        )
    given = dataclasses.replace(given, norm_first=norm_first, self_attention=attention)
    if not own_block:
        block_options(given)
    return given


def block_options(settled: ChainOptions) -> BlockOptions:
    """Check and return the options of the chain's block."""
    names = {field.name for field in dataclasses.fields(BlockOptions)}.intersection(SETTINGS)
    shared = {name: getattr(settled, name) for name in names}
    return BlockOptions(**shared, pooled_context=settled.context == "pooled")
