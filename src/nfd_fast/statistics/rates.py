"""Power laws fitted to mean errors, with bootstrap intervals."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from nfd_fast import arguments
from nfd_fast.statistics.intervals import Array, confidence_level, exponents_of


class Rate(NamedTuple):
    """A power law error ≈ constant · size^slope, fitted to mean errors.

    Attributes
    ----------
    slope, low, high : float
        The exponent and its confidence interval.
    constant : float
        The fitted error at size 1.
    bend, bend_low, bend_high : float
        Change of the exponent from the smaller half of the sizes' range (in logarithms) to the
        larger, and its confidence interval: zero for a power law.
    """

    slope: float
    low: float
    high: float
    constant: float
    bend: float
    bend_low: float
    bend_high: float

    @property
    def asymptotic(self) -> bool:
        """Whether no bend is seen: the sizes may lie in the range where the rate holds."""
        return self.bend_low <= 0 <= self.bend_high


RESAMPLES = 2000


@functools.lru_cache(maxsize=4)
def _resampling(replicas: int) -> Array:
    """Weights (resamples, R) of the replicas in each bootstrap resample; always the same ones."""
    rng = np.random.default_rng(0)
    counts = rng.multinomial(replicas, np.full(replicas, 1 / replicas), size=RESAMPLES)
    return np.asarray(counts / replicas)


def fit_rate(sizes: ArrayLike, errors: ArrayLike, confidence: float = 0.95) -> Rate:
    """Fit a power law to mean errors at several sizes.

    Parameters
    ----------
    sizes : (S,)
        Distinct positive sizes, at least 3: depths, widths.
    errors : (R, S)
        Positive errors of R ≥ 2 independent replicas. What a replica's errors at different sizes
        share is accounted for.
    confidence : float
        Coverage of the intervals, below 1.

    Returns
    -------
    Rate

    Raises
    ------
    ValueError
        For fewer than 3 sizes or 2 replicas, or entries that are not positive and finite.

    Notes
    -----
    DESIGN §5: least squares of log mean error on log size; percentile bootstrap over replicas
    (2000 resamples, seed 0). B. Efron & R. Tibshirani, An Introduction to the Bootstrap (1993),
    §13.3; the coverage is asymptotic in R, and seen to be 93–97 % from R = 100 on (tests).
    """
    x = arguments.finite_array("sizes", sizes, ("sizes",), np.float64)
    if len(x) < 3:
        raise ValueError(f"sizes must be at least 3, got {len(x)}")
    if (x <= 0).any() or len(np.unique(x)) < len(x):
        raise ValueError(f"sizes must be positive and distinct, got {x.tolist()}")
    rows = arguments.finite_array("errors", errors, ("replicas", len(x)), np.float64)
    if len(rows) < 2:
        raise ValueError(f"errors must have at least 2 replicas, got {len(rows)}")
    if (rows <= 0).any():
        raise ValueError(f"errors must be positive, got {rows.min()}")
    level = confidence_level(confidence)

    # Slopes and bends are linear in the logarithms of the means.
    logs = np.log(x)
    centred = logs - logs.mean()
    half = (logs.max() - logs.min()) / 2
    line = np.vander(centred, 2)
    parabola = np.vander(centred, 3)
    slope_of = np.linalg.pinv(line)[0]
    # The slope of a c² + … changes by 2 a over a unit of c, and half apart lie the halves' middles.
    bend_of = 2 * half * np.linalg.pinv(parabola)[0]

    exponents = exponents_of(rows)
    rows = np.ldexp(rows, -exponents)
    scale = rows.mean(axis=0)
    fitted = np.log(scale) + exponents * math.log(2)
    resampled = np.log(_resampling(len(rows)) @ (rows / scale)) + fitted
    tails = [(1 - level) / 2, (1 + level) / 2]
    low, high = np.quantile(resampled @ slope_of, tails)
    bend_low, bend_high = np.quantile(resampled @ bend_of, tails)
    slope = float(fitted @ slope_of)
    return Rate(
        slope,
        float(low),
        float(high),
        float(np.exp(fitted.mean() - slope * logs.mean())),
        float(fitted @ bend_of),
        float(bend_low),
        float(bend_high),
    )
