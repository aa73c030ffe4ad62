"""Means and variances of a stream of draws, in one pass and constant memory."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nfd_fast import arguments
from nfd_fast.statistics.intervals import Intervals, student_quantile

Array = NDArray[np.float64]


class Moments:
    """Count, mean and variance of independent draws of arrays of one shape.

    Draws are added in place, in any portions; accumulators of parts are merged into a new one. In
    float64, and accurate whatever the mean: deviations from means are added up, never squares of
    the draws themselves.

    Parameters
    ----------
    shape : tuple of int
        Of one draw; () for numbers.

    Raises
    ------
    ValueError
        For a shape that is not one.

    Notes
    -----
    T. F. Chan, G. H. Golub & R. J. LeVeque, Am. Stat. 37 (1983) 242: of two parts with counts n, m,
    means differing by δ and sums of squared deviations S, the whole has S_1 + S_2 + δ² nm/(n+m).
    The relative error of a variance is of order eps·n·√(1 + mean²/variance).

    Examples
    --------
    >>> import numpy as np, nfd_fast as nfd
    >>> moments = nfd.statistics.Moments(())
    >>> moments.add(1e8 + np.array([1.0, 2.0]))
    >>> moments.add(1e8 + np.array([3.0]))
    >>> moments.count, float(moments.mean), float(moments.variance)
    (3, 100000002.0, 1.0)
    """

    def __init__(self, shape: tuple[int, ...] = ()) -> None:
        if not isinstance(shape, tuple):
            raise ValueError(f"shape must be a tuple of sizes, got {arguments.describe(shape)}")
        self.shape = tuple(arguments.integer("shape", size, low=0) for size in shape)
        self._count = 0
        self._mean = np.zeros(self.shape)
        self._squares = np.zeros(self.shape)  # of deviations from the mean, summed

    @property
    def count(self) -> int:
        """Number of draws so far."""
        return self._count

    @property
    def mean(self) -> Array:
        """Their mean; NaN without any."""
        return self._mean.copy() if self._count else np.full(self.shape, math.nan)

    @property
    def variance(self) -> Array:
        """Their sample variance, with R − 1 in the denominator; NaN for fewer than 2."""
        return self._squares / (self._count - 1) if self._count > 1 else self._mean * math.nan

    @property
    def standard_error(self) -> Array:
        """Standard error of the mean; NaN for fewer than 2 draws."""
        return np.sqrt(self.variance / max(self._count, 1))

    def add(self, rows: ArrayLike) -> None:
        """Add draws (R, *shape), R ≥ 0, in place.

        Raises
        ------
        ValueError
            For another shape, entries that are not finite, or spreads whose squares float64 cannot
            hold; nothing is added then.
        """
        draws = arguments.finite_array("rows", rows, ("replicas", *self.shape), np.float64)
        if not len(draws):
            return
        part = Moments(self.shape)
        with np.errstate(over="ignore", invalid="ignore"):
            part._count = len(draws)
            deviations = draws - draws.mean(axis=0)
            # The first mean is off by its rounding, which the deviations' own mean tells.
            rest = deviations.mean(axis=0)
            part._mean = draws.mean(axis=0) + rest
            part._squares = ((deviations - rest) ** 2).sum(axis=0)
            whole = self.merge(part)
        self._count, self._mean, self._squares = whole._count, whole._mean, whole._squares

    def merge(self, other: Moments) -> Moments:
        """Return the moments of both parts together, as a new accumulator; neither changes.

        Raises
        ------
        ValueError
            If the other is not one of the same shape, or for spreads whose squares float64 cannot
            hold.
        """
        if not isinstance(other, Moments) or other.shape != self.shape:
            raise ValueError(
                f"other must be a Moments of shape {self.shape}, got {arguments.describe(other)}"
            )
        both = Moments(self.shape)
        both._count = self._count + other._count
        if not both._count:
            return both
        share = other._count / both._count
        with np.errstate(over="ignore", invalid="ignore"):
            apart = other._mean - self._mean
            # From the larger part, so that merging with an empty one changes no bit.
            both._mean = (
                self._mean + share * apart if share <= 0.5 else other._mean - (1 - share) * apart
            )
            both._squares = self._squares + other._squares + apart**2 * (share * self._count)
        if not (np.isfinite(both._mean).all() and np.isfinite(both._squares).all()):
            raise ValueError(
                "draws must have a spread whose square is within float64, got a larger one"
            )
        return both

    def intervals(self, confidence: float = 0.95) -> Intervals:
        """Return the mean and its Student t interval.

        Raises
        ------
        ValueError
            Without draws, or for a confidence outside (0, 1). A single draw has NaN bounds.
        """
        if not self._count:
            raise ValueError("an interval needs at least one draw, got none")
        half = student_quantile(confidence, self._count - 1) * self.standard_error
        return Intervals(self.mean, self._mean - half, self._mean + half)

    def __repr__(self) -> str:
        return f"Moments(shape={self.shape}, count={self._count})"
