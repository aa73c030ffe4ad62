"""Means, ratios, errors and rates of runs, with confidence intervals over replicas."""

from __future__ import annotations

from nfd_fast.statistics.errors import (
    FINER,
    KernelErrors,
    LayerErrors,
    StrongErrors,
    WidthErrors,
    kernel_errors,
    layer_errors,
    strong_errors,
    weak_errors,
    width_errors,
    worst_layers,
)
from nfd_fast.statistics.extrapolation import extrapolate
from nfd_fast.statistics.intervals import (
    ENOUGH,
    Interval,
    Intervals,
    mean_interval,
    mean_intervals,
    relative_gap_interval,
    require,
    run_intervals,
)
from nfd_fast.statistics.moments import Moments
from nfd_fast.statistics.rates import RESAMPLES, Rate, fit_rate

__all__ = [
    "ENOUGH",
    "FINER",
    "RESAMPLES",
    "Interval",
    "Intervals",
    "KernelErrors",
    "LayerErrors",
    "Moments",
    "Rate",
    "StrongErrors",
    "WidthErrors",
    "extrapolate",
    "fit_rate",
    "kernel_errors",
    "layer_errors",
    "mean_interval",
    "mean_intervals",
    "relative_gap_interval",
    "require",
    "run_intervals",
    "strong_errors",
    "weak_errors",
    "width_errors",
    "worst_layers",
]
