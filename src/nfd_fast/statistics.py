"""Means, ratios of means, and their confidence intervals over independent replicas."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nfd_fast import arguments
from nfd_fast.extras import MissingExtraError

Array = NDArray[np.float64]


class Interval(NamedTuple):
    """An estimate with its confidence interval."""

    estimate: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside [low, high]; False when the bounds are undefined."""
        return self.low > 0 or self.high < 0


class Intervals(NamedTuple):
    """Arrays of estimates with their confidence intervals, all of one shape."""

    estimate: Array
    low: Array
    high: Array


def require() -> None:
    """Raise MissingExtraError unless intervals can be computed; to be called before long work."""
    try:
        import scipy.special  # noqa: F401
    except ImportError:
        raise MissingExtraError("a confidence interval", "scipy", "study") from None


def _student_quantile(confidence: float, freedom: int) -> float:
    """Two-sided quantile t with P(|T| ≤ t) = confidence."""
    confidence = arguments.real("confidence", confidence, positive=True)
    if confidence >= 1:
        raise ValueError(f"confidence must be below 1, got {confidence}")
    if freedom < 1:
        return math.nan
    require()
    from scipy.special import stdtrit

    return -float(stdtrit(freedom, (1 - confidence) / 2))  # the lower tail loses no digits near 1


def _exponents(rows: Array) -> NDArray[np.intc]:
    """Return e with |rows| < 2^e along the first axis.

    Squares of rows·2^-e neither overflow nor vanish, and a power of two costs no digits.
    """
    exponents: NDArray[np.intc] = np.frexp(np.abs(rows).max(axis=0))[1]
    return exponents


def mean_intervals(samples: ArrayLike, confidence: float = 0.95) -> Intervals:
    """Mean over the first axis and its Student t interval, for every entry of the other axes.

    Parameters
    ----------
    samples : (R, ...)
        One row per independent replica, finite.
    confidence : float
        Coverage, below 1.

    Returns
    -------
    Intervals
        Each array has the shape of one row. A single replica has a mean and NaN bounds: one draw
        says nothing about its spread.

    Raises
    ------
    ValueError
        For no replicas, entries that are not finite, a confidence outside (0, 1), or an interval
        that float64 cannot hold.
    """
    rows = arguments.as_array("samples", samples)
    if rows.ndim == 0 or rows.shape[0] == 0:
        raise ValueError(f"samples must have at least one replica, got shape {rows.shape}")
    rows = arguments.finite_array("samples", rows, rows.shape, np.float64)
    count = rows.shape[0]
    quantile = _student_quantile(confidence, count - 1)
    exponents = _exponents(rows)
    rows = np.ldexp(rows, -exponents)
    mean = rows.mean(axis=0)
    half = quantile * rows.std(axis=0, ddof=1) / math.sqrt(count) if count > 1 else mean * math.nan
    with np.errstate(over="ignore"):
        bounds = [np.ldexp(bound, exponents) for bound in (mean, mean - half, mean + half)]
    if np.isinf(bounds).any():
        raise ValueError("samples must have an interval within float64, got one that is infinite")
    return Intervals(*bounds)


def mean_interval(samples: ArrayLike, confidence: float = 0.95) -> Interval:
    """Mean of independent draws (R,) and its Student t interval; see :func:`mean_intervals`."""
    rows = arguments.finite_array("samples", samples, ("replicas",), np.float64)
    mean, low, high = mean_intervals(rows, confidence)
    return Interval(float(mean), float(low), float(high))


def relative_gap_interval(base: ArrayLike, other: ArrayLike, confidence: float = 0.95) -> Interval:
    """Relative gap mean(other)/mean(base) − 1 of paired draws, with Fieller's interval.

    Parameters
    ----------
    base, other : (R,)
        Paired draws: entry r of both belongs to replica r. What the pair shares cancels.
    confidence : float
        Coverage, below 1.

    Returns
    -------
    Interval
        NaN bounds for a single pair. Bounds −inf and inf when the mean of ``base`` is not itself
        distinguishable from zero: then no finite interval has the stated coverage.

    Raises
    ------
    ValueError
        For shapes that differ, no pairs, entries that are not finite, mean(base) = 0, entries of
        ``other`` beyond 10¹⁰⁰ times those of ``base``, or a confidence outside (0, 1).

    Notes
    -----
    E. C. Fieller, J. R. Stat. Soc. B 16 (1954) 175: the ratios r that a paired t-test of
    mean(other − r·base) = 0 does not reject. Exact for jointly normal draws at any R, where the
    delta method (its limit for a small spread of ``base``) is only asymptotic.
    """
    a = arguments.finite_array("base", base, ("replicas",), np.float64)
    b = arguments.finite_array("other", other, ("replicas",), np.float64)
    if a.shape != b.shape:
        raise ValueError(f"base and other must have one shape, got {a.shape} and {b.shape}")
    if a.size == 0:
        raise ValueError("base must have at least one replica, got shape (0,)")
    count = a.size
    exponent = _exponents(a)
    a = np.ldexp(a, -exponent)
    with np.errstate(over="ignore"):
        b = np.ldexp(b, -exponent)
    mean_a, mean_b = float(a.mean()), float(b.mean())
    if mean_a == 0:
        raise ValueError("base must have a nonzero mean, got 0.0")
    gap = mean_b / mean_a - 1
    if np.abs(b).max() > 1e100 or not math.isfinite(gap):
        raise ValueError("other must be at most 1e100 times base, got a larger ratio")
    quantile = _student_quantile(confidence, count - 1)
    if count == 1:
        return Interval(gap, math.nan, math.nan)
    # In terms of the gap γ = r − 1 and the differences δ = b − a, the set is
    # (mean δ − γ mean a)² ≤ q (s_δδ − 2 γ s_aδ + γ² s_aa): a quadratic in γ. Working with δ keeps
    # digits when both draws are nearly equal.
    difference = b - a
    spread = np.cov(a, difference, ddof=1)
    q = quantile**2 / count
    leading = mean_a**2 - q * spread[0, 0]
    if leading <= 0:
        return Interval(gap, -math.inf, math.inf)
    mean_d = float(difference.mean())
    middle = mean_a * mean_d - q * spread[0, 1]
    last = mean_d**2 - q * spread[1, 1]
    # The set holds γ = mean δ / mean a, so the discriminant is nonnegative up to rounding.
    root = math.sqrt(max(middle**2 - leading * last, 0.0))
    return Interval(gap, float((middle - root) / leading), float((middle + root) / leading))
