"""What a quantity that falls can fall to: a constant, next to any power that might be its fall."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nfd_fast.statistics import Interval
from nfd_fast.statistics.intervals import student_quantile

Array = NDArray[np.float64]

STEEPEST = 2.0
"""How far below the claimed exponent that of a fall to a constant may be."""
STEP = 0.01
"""Between the exponents that are tried for such a fall."""
ROUNDED = 1e-9
"""Relative error of means in which there is no chance."""


def constant_left(sizes: Array, errors: Array, most: float) -> Interval:
    """Return what is left at infinite size of a · size^p + constant, for any p up to ``most``.

    Parameters
    ----------
    sizes : (S,)
    errors : (R, S)
        Of positive means.
    most : float
        The exponent below zero that is claimed. Falls with a correction of relative order 1 / size
        are tried as well, which can look like other powers, or hide a constant: at ``most`` and, of
        more than three sizes, at the multiple of ½ from there that is next to the slope.

    Returns
    -------
    Interval
        All constants of laws that fit no worse, at 95%, than the best of them.

    Notes
    -----
    Profile likelihood: with the covariance C of the means, from R replicas, the misfit
    T² = (m − law)ᵀ C⁻¹ (m − law) of a law may exceed the smallest one T₀² by Student's quantile
    squared, of R − S degrees of freedom, scaled by (R − 1)/(R − S) as Hotelling's T² and by
    1 + T₀²/(R − 1) for how well the best law fits (C. R. Rao, Biometrika 46 (1959) 49).
    """
    # A covariance takes some replicas for each size: of many sizes, some evenly spaced ones.
    count = min(len(sizes), len(errors) // 3)
    some = np.linspace(0, len(sizes) - 1, count).round().astype(int)
    rows, means = errors[:, some], errors[:, some].mean(axis=0)
    replicas, last = len(rows), means[-1]
    scaled = sizes[some] / sizes[-1]
    covariance = np.cov(rows.T / means[:, None]) / replicas
    # Where sizes differ by a factor alone, their differences are known to rounding.
    covariance[np.diag_indices(count)] += np.maximum(ROUNDED**2, 1e-10 * np.diag(covariance))
    weights = np.linalg.inv(covariance) * (replicas - count) / (replicas - 1)
    allowed = float(student_quantile(0.95, replicas - count)) ** 2

    powers = np.arange(most - STEEPEST, most + STEP / 2, STEP)
    flat = np.ones_like(scaled)
    laws = np.stack([scaled ** powers[:, None], np.tile(flat, (len(powers), 1))], axis=2)
    with_correction = [most]
    if count > 3:  # a single one fits three means exactly
        slope = float(np.polyfit(np.log(scaled), np.log(means / last), 1)[0])
        with_correction.append(min(most, most + round(2 * (slope - most)) / 2))
    corrected = np.stack(
        [np.stack([scaled**p, scaled ** (p - 1), flat], axis=1) for p in with_correction]
    )
    found = [_fitted(group * (last / means)[:, None], weights) for group in (laws, corrected)]
    misfits, constants, variances = (np.concatenate(both) for both in zip(*found, strict=True))
    excess = misfits - misfits.min()
    allowed *= 1 + float(misfits.min()) / (replicas - count)
    fits = excess <= allowed
    spread = np.sqrt((allowed - excess[fits]) * variances[fits])
    return Interval(
        last * float(constants[misfits.argmin()]),
        last * float((constants[fits] - spread).min()),
        last * float((constants[fits] + spread).max()),
    )


def _fitted(laws: Array, weights: Array) -> tuple[Array, Array, Array]:
    """Return misfits, last coefficients and their variances of laws (P, S, terms) fitted to 1."""
    weighted = laws.transpose(0, 2, 1) @ weights
    inverse = np.linalg.inv(weighted @ laws)
    coefficients = inverse @ weighted.sum(axis=2)[:, :, None]
    residuals = 1 - (laws @ coefficients)[:, :, 0]
    misfits: Array = np.einsum("ps,st,pt->p", residuals, weights, residuals)
    return misfits, np.asarray(coefficients[:, -1, 0]), np.asarray(inverse[:, -1, -1])
