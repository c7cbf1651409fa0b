"""How much a metric depends on the order of fusion."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from grf_fusion._chain.fusion import GatedRecurrentFusion
from grf_fusion._checks.arguments import ShapeError, expect_size
from grf_fusion.diagnostics._calls import check_call, draw, evaluating, measure

OWNER = "order_sensitivity"
MOST_EXACT = 5
USUAL_ORDERS = math.factorial(MOST_EXACT)


class OrderSensitivity(NamedTuple):
    """A metric under several orders of fusion.

    Attributes:
        orders: The orders, all different, the declared one first.
        values: ``(orders,)`` in the unit of the metric.
        mean: Mean of ``values``.
        spread: Standard deviation of ``values``, without Bessel's correction.
        lowest: Smallest of ``values``.
        highest: Largest of ``values``.
        every: Whether ``orders`` contains all possible orders.
    """

    orders: tuple[tuple[str, ...], ...]
    values: Tensor
    mean: float
    spread: float
    lowest: float
    highest: float
    every: bool


def order_sensitivity(
    fusion: GatedRecurrentFusion,
    features: Mapping[str, Tensor | None],
    metric: Callable[[Tensor], Tensor | float],
    *,
    masks: Mapping[str, Tensor | None] | None = None,
    present: Tensor | None = None,
    orders: int | None = None,
    generator: torch.Generator | None = None,
) -> OrderSensitivity:
    """Compute a metric in several orders of fusion.

    With ``share_weights=False`` and ``opening="first"`` the modality declared first has no step of
    its own, so it stays first. The function measures how a trained model performs in other orders,
    not how a model trained in these orders would perform.

    The fusion runs in eval mode without gradients. Afterwards each module is in its previous mode.

    Args:
        fusion: The fusion.
        features: Features of each modality, as in a call of the fusion.
        metric: Function from contexts to one number for the batch, such as the accuracy of a head.
        masks: Real steps of each modality, as in a call of the fusion.
        present: Which samples have which modality, as in a call of the fusion.
        orders: Number of different orders, including the declared one; ``None`` for all orders of
            up to 5 modalities that can change places, and 120 for more.
        generator: Generator of random orders; ``None`` for the global one.

    Returns:
        Orders and values.

    Shape:
        - metric: ``(batch, dim)`` to ``()``

    Raises:
        ValueError: If ``orders`` is not a positive integer.
        ShapeError: If ``fusion`` is not a `GatedRecurrentFusion`, ``metric`` does not return one
            number, or the fusion rejects the call.

    Examples:
        >>> widths = {"text": 6, "audio": 5, "depth": 7}
        >>> fusion = GatedRecurrentFusion(widths, embed_dim=8)
        >>> features = {name: torch.randn(4, 3, width) for name, width in widths.items()}
        >>> result = order_sensitivity(fusion, features, lambda c: c.square().mean())
        >>> len(result.orders), result.every
        (6, True)
    """
    if not isinstance(fusion, GatedRecurrentFusion):
        raise ShapeError(
            f"{OWNER}: expected `fusion` to be a GatedRecurrentFusion, "
            f"got {type(fusion).__name__}. Other fusions have no order."
        )
    if orders is not None:
        expect_size(OWNER, "orders", orders)
    call = check_call(OWNER, fusion, features, masks, present, metric=metric)
    fixed = 1 if fusion.units is not None and fusion.opening == "first" else 0
    head, free = call.names[:fixed], call.names[fixed:]
    count = math.factorial(len(free))
    orders = min(USUAL_ORDERS if orders is None else orders, count)
    chosen = [head + tail for tail in _permutations(free, orders, generator)]
    values: list[float] = []
    with evaluating(fusion):
        for order in chosen:
            context = fusion(features, masks=masks, present=call.here, order=order)
            values.append(measure(OWNER, metric, context))
    numbers = torch.tensor(values, dtype=torch.float64)
    return OrderSensitivity(
        orders=tuple(chosen),
        values=numbers,
        mean=float(numbers.mean()),
        spread=float(numbers.std(correction=0)),
        lowest=min(values),
        highest=max(values),
        every=orders == count,
    )


def _permutations(
    names: Sequence[str], number: int, generator: torch.Generator | None
) -> list[tuple[str, ...]]:
    """Return ``number`` different permutations, the given one first."""
    if len(names) <= MOST_EXACT:
        every = list(itertools.permutations(names))
        shuffled = draw(generator, len(every) - 1).argsort() + 1
        return [every[0], *(every[int(place)] for place in shuffled[: number - 1])]
    chosen = {tuple(names): None}
    while len(chosen) < number:
        order = draw(generator, len(names)).argsort()
        chosen[tuple(names[int(place)] for place in order)] = None
    return list(chosen)
