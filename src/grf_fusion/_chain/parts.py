"""Make the block and the unit of a chain, ours or the user's."""

import dataclasses
import math
from collections.abc import Callable
from typing import cast

from torch import nn
from typing_extensions import Unpack

from grf_fusion._chain.options import OWNER, ChainOptions, block_options
from grf_fusion._checks.options import Where, check_part
from grf_fusion._layers.block import SymmetricCrossAttentionBlock
from grf_fusion._layers.gate import GatedFusionUnit

Factory = Callable[[], nn.Module] | None


def make_block(options: ChainOptions, factory: Factory, **where: Unpack[Where]) -> nn.Module | None:
    """Make the block of a step, with the user's factory if there is one."""
    if factory is not None:
        return check_part(OWNER, "block", factory())
    if options.form == "summary":
        return None
    return SymmetricCrossAttentionBlock(**dataclasses.asdict(block_options(options)), **where)


def make_unit(
    options: ChainOptions, factory: Factory, modalities: int, **where: Unpack[Where]
) -> nn.Module:
    """Make the unit of a step, with the user's factory if there is one.

    ``modalities`` is the number of modalities of the chain.
    """
    if factory is not None:
        return check_part(OWNER, "unit", factory())
    bias = cast(float, options.gate_bias)
    if options.gate_bias == "chrono":
        bias = -math.log(max(1, modalities - (options.opening == "first")))
    # In the other forms dropout and norm would change the kept context at every step.
    paper = options.form == "paper"
    return GatedFusionUnit(
        options.embed_dim,
        dropout=options.dropout if paper else 0.0,
        norm=paper,
        gate_bias=bias,
        **where,
    )
