"""Figures of the results of `grf_fusion.diagnostics`; needs matplotlib: ``grf-fusion[viz]``.

Each function draws into ``ax``, or into a new figure, and returns the `matplotlib.axes.Axes`.
Colours are viridis, cividis and those of Okabe & Ito, which colour-blind readers can tell apart.
"""

from grf_fusion.viz._charts import plot_missing_curve, plot_order_sensitivity, plot_retention
from grf_fusion.viz._context_path import plot_context_path
from grf_fusion.viz._heat_maps import plot_attention, plot_gates

__all__ = [
    "plot_attention",
    "plot_context_path",
    "plot_gates",
    "plot_missing_curve",
    "plot_order_sensitivity",
    "plot_retention",
]
