"""Diagnostics of a fusion: its gates, its attention, and the contribution of each modality.

From a `FusionTrace` (``return_trace=True``): `retention`, `gate_statistics`, `gate_warnings`. From
a fusion and a batch: `leave_one_out`, `shapley_values`, `gradient_share`, `missing_curve` (these
also for the fusions of `grf_fusion.baselines`), `order_sensitivity` and `attention_maps`. Before
training: `summary`. `grf_fusion.viz` draws the results, except those of `summary`.
"""

from grf_fusion.diagnostics._attention_maps import attention_maps
from grf_fusion.diagnostics._contribution import (
    LeaveOneOut,
    ShapleyValues,
    leave_one_out,
    shapley_values,
)
from grf_fusion.diagnostics._gate_statistics import GateStatistics, gate_statistics
from grf_fusion.diagnostics._gate_warnings import GateWarning, gate_warnings
from grf_fusion.diagnostics._gradient_share import GradientShare, gradient_share
from grf_fusion.diagnostics._missing_curve import MissingCurve, missing_curve
from grf_fusion.diagnostics._order_sensitivity import OrderSensitivity, order_sensitivity
from grf_fusion.diagnostics._retention import Retention, retention
from grf_fusion.diagnostics._summary import Summary, summary

__all__ = [
    "GateStatistics",
    "GateWarning",
    "GradientShare",
    "LeaveOneOut",
    "MissingCurve",
    "OrderSensitivity",
    "Retention",
    "ShapleyValues",
    "Summary",
    "attention_maps",
    "gate_statistics",
    "gate_warnings",
    "gradient_share",
    "leave_one_out",
    "missing_curve",
    "order_sensitivity",
    "retention",
    "shapley_values",
    "summary",
]
