"""Shared code of all figures: axes, colours, and the only import of matplotlib."""

# pyright: reportUnknownMemberType=false
# (matplotlib does not annotate all keyword arguments.)

from typing import cast

from torch import Tensor

try:
    from matplotlib import colormaps, colors, ticker
    from matplotlib import pyplot as plt
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
except ImportError as error:
    raise ImportError(
        "grf_fusion.viz draws with matplotlib, which is not installed: "
        "pip install 'grf-fusion[viz]'"
    ) from error

OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
BLUE, RED, GREY = OKABE_ITO[0], OKABE_ITO[5], "#999999"
MARKERS = "osD^vP*X<>"


def choose_axes(ax: Axes | None) -> Axes:
    """Return the caller's axes, or those of a new figure."""
    return plt.subplots(layout="constrained")[1] if ax is None else ax


def choose_colours(count: int) -> list[str]:
    """Return colours: from a fixed set if there are few, from a ramp if there are many."""
    if count <= len(OKABE_ITO):
        return list(OKABE_ITO[:count])
    ramp = colormaps["viridis"]
    return [colors.to_hex(ramp(place / (count - 1))) for place in range(count)]


def readable_on(colour: str) -> str:
    """Return black or white, whichever has more contrast with a colour."""
    red, green, blue = colors.to_rgb(colour)
    return "black" if 0.3 * red + 0.59 * green + 0.11 * blue > 0.5 else "white"


def list_of(values: Tensor) -> list[float]:
    """Convert a vector to a list of numbers."""
    return cast("list[float]", values.tolist())


def mark_whole_numbers(axis: Axis) -> None:
    """Put ticks at whole numbers only."""
    axis.set_major_locator(ticker.MaxNLocator(integer=True))
