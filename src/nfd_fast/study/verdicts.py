"""What measured errors say about a claimed rate.

A claim is an exponent: the quantity falls at least like size^exponent. Its verdict compares that
with the measured exponent's confidence interval, leaving a quarter for what finite sizes add to or
take from an exponent; the alternatives that theory knows are half a power apart or more. What was
not seen, to fall or to stay, is undecided: only zeros to rounding need no fit. A quantity that
falls to a constant looks like one that falls to zero while the constant is small: a claim of decay
holds, and one that something stays fails, only if a constant of some size is excluded next to any
power that might be its fall.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nfd_fast.statistics import (
    ENOUGH,
    Interval,
    Intervals,
    Rate,
    fit_rate,
    mean_interval,
    mean_intervals,
)
from nfd_fast.study.constants import constant_left

Array = NDArray[np.float64]

HOLDS = "holds"
FAILS = "does not hold"
UNDECIDED = "undecided at this size"
MARGIN = 0.25
"""How far above the claimed exponent a measured one may be."""
HIDDEN = 0.2
"""Share of the last mean that a constant may have without being excluded."""
SEEN = 0.999
"""Confidence with which a mean must differ from zero, or a bend from none, to be seen."""
LEAST_SIZES = 3
"""Sizes that a fit needs."""
LEAST_REPLICAS = ENOUGH
"""Replicas that a verdict needs; with fewer, intervals cover less than they say."""


@dataclass(frozen=True)
class Claim:
    """A statement about how a quantity behaves as the width or the depth grows.

    Attributes
    ----------
    name : str
        For files and programs.
    text : str
        The claim, for readers.
    source : str
        Who makes it.
    size : str
        ``"width"`` or ``"depth"``.
    exponent : float
        The quantity is claimed to fall at least like size^exponent; 0 if it is claimed to stay
        away from zero.
    """

    name: str
    text: str
    source: str
    size: str
    exponent: float


@dataclass(frozen=True, eq=False)
class Row:
    """One line of the table of verdicts.

    Attributes
    ----------
    claim : Claim
    sizes : (S,)
        Widths or depths.
    errors : Intervals
        (S,) means over replicas.
    flagged, seen, used : (S,) of bool
        At which sizes the measurement doesn't mean what it should, where it is told from zero, and
        which sizes were fitted.
    rate : Rate or None
        The fit, if there was enough to fit.
    bends : bool
        Whether the fitted points bend beyond doubt.
    exponent : Interval or None
        What the verdict is about: the slope of the fit or, if it bends, where that leads.
    verdict, note : str
    """

    claim: Claim
    sizes: Array
    errors: Intervals
    flagged: NDArray[np.bool_]
    seen: NDArray[np.bool_]
    used: NDArray[np.bool_]
    rate: Rate | None
    bends: bool
    exponent: Interval | None
    verdict: str
    note: str

    @property
    def constant(self) -> float:
        """What size^exponent is multiplied with at large sizes; NaN without a fit."""
        if self.rate is None:
            return math.nan
        return self.rate.tail_constant if self.bends else self.rate.constant

    @property
    def last(self) -> Interval:
        """The quantity at the largest size."""
        return Interval(*(float(bound[-1]) for bound in self.errors))


def judge(
    claim: Claim,
    sizes: Array,
    errors: Array,
    *,
    flagged: NDArray[np.bool_] | None = None,
    resolution: float = 0.0,
    zero: float | None = None,
) -> Row:
    """Return the verdict on a claim.

    Parameters
    ----------
    claim : Claim
    sizes : (S,)
        Increasing.
    errors : (R, S)
        The quantity in each replica; of either sign where something was subtracted.
    flagged : (S,) of bool, optional
        Sizes at which the measurement doesn't mean what it should: shown, not fitted.
    resolution : float
        What rounding can be: a mean below that is not seen.
    zero : float, optional
        What rounding leaves of a zero: what is at most that, interval and all, is zero to rounding.
        ``resolution`` if not given.

    Returns
    -------
    Row
        For a claim of decay: it holds if the whole interval of the exponent lies below the claimed
        one plus :data:`MARGIN`, and a constant below the fall of more than :data:`HIDDEN` of the
        last mean is excluded; it does not hold if the whole interval lies above. Where the
        quantity is zero to rounding, it holds; where it is not seen, or at fewer sizes than a fit
        needs, that is undecided, and the note says what could have been seen. For a claim that
        something stays away from zero (exponent 0), it holds if all means are seen and the interval
        lies above minus :data:`MARGIN`; it does not if some are zero to rounding, or if the
        interval lies below and a constant is excluded as above. Fewer than :data:`LEAST_REPLICAS`
        replicas decide nothing.
    """
    flagged = np.zeros(len(sizes), dtype=bool) if flagged is None else flagged
    enough = len(errors) >= LEAST_REPLICAS
    means, doubted = _means(errors), mean_intervals(errors, SEEN)
    seen = (doubted.low > 0) & (means.estimate > resolution)
    zeros = _zeros(means, resolution if zero is None else zero)
    notes = []
    if flagged.any():
        notes.append(f"{claim.size} {_listed(sizes[flagged])} flagged: n < 30 q L")

    def row(
        verdict: str,
        note: str = "",
        used: NDArray[np.bool_] | None = None,
        rate: Rate | None = None,
        bends: bool = False,
        exponent: Interval | None = None,
    ) -> Row:
        used = np.zeros(len(sizes), dtype=bool) if used is None else used
        text = "; ".join([*notes, note] if note else notes)
        return Row(claim, sizes, means, flagged, seen, used, rate, bends, exponent, verdict, text)

    kept = ~flagged
    if not enough:
        return row(UNDECIDED, f"fewer than {LEAST_REPLICAS} replicas")
    if kept.sum() < LEAST_SIZES:
        return row(UNDECIDED, f"fewer than {LEAST_SIZES} sizes left")
    stays = claim.exponent == 0
    if zeros[kept].all():
        most = max(0.0, -float(means.low[kept].min()), float(means.high[kept].max()))
        return row(FAILS if stays else HOLDS, f"zero to rounding: at most {most:.0e}")
    if stays and (zeros & kept).any():
        return row(FAILS, f"zero to rounding at {claim.size} {_listed(sizes[kept & zeros])}")
    if not (seen & kept).any():
        most = float(means.high[kept].max())
        spreads = (doubted.high - doubted.estimate)[kept & ~zeros]
        visible = max(float(spreads.min()), resolution)
        words = f"none seen: at most {most:.1e}; what is below {visible:.1e} could not be"
        return row(UNDECIDED, words)
    used = kept & seen
    if (kept & ~seen).any():
        notes.append(f"none seen at {claim.size} {_listed(sizes[kept & ~seen])}")
        if stays:
            return row(UNDECIDED, "too close to zero to be told from it")
    if used.sum() < LEAST_SIZES:
        most = float(means.high[kept & ~seen].max())
        return row(UNDECIDED, f"seen at fewer than {LEAST_SIZES} sizes: at most {most:.1e} there")
    try:
        rate = fit_rate(sizes[used], errors[:, used], signed=True)
        sharp = fit_rate(sizes[used], errors[:, used], SEEN, signed=True)
    except ValueError:  # means that are not positive beyond doubt
        return row(UNDECIDED, "too close to zero to be fitted")
    # Where a bend leads is known far worse than a slope: only a bend beyond doubt counts, and what
    # is concluded from it must be, too.
    bends = not sharp.asymptotic
    if bends:
        exponent = Interval(rate.tail, rate.tail_low, rate.tail_high)
        low, high = sharp.tail_low, sharp.tail_high
    else:
        exponent = Interval(rate.slope, rate.low, rate.high)
        low, high = rate.low, rate.high
    note = ""
    if stays:
        verdict = HOLDS if low > -MARGIN else FAILS if high < -MARGIN else UNDECIDED
    else:
        most = claim.exponent + MARGIN
        # A bend that noise hides may still lead to the claimed exponent: (1 − 1/L)² / L.
        above = low > most and rate.tail > most
        verdict = HOLDS if high <= most else FAILS if above else UNDECIDED
    if verdict == (FAILS if stays else HOLDS):  # it falls: but to what?
        left = constant_left(sizes[used], errors[:, used], -MARGIN if stays else claim.exponent)
        last = float(means.estimate[used][-1])
        if not left.high <= HIDDEN * last:
            verdict = UNDECIDED
            note = f"a constant of {left.estimate:.1e}, up to {left.high:.1e}, is not excluded"
            if not left.estimate <= last:
                note = "no fall to a constant fits well enough to exclude one"
    return row(verdict, note, used, rate, bends, exponent)


def worst_place(errors: Array, *, resolution: float, zero: float) -> int:
    """Return where a quantity is largest, so that a verdict on it there is one on all places.

    Parameters
    ----------
    errors : (R, P)
        The quantity in each replica at P places.
    resolution, zero : float
        As in :func:`judge`.

    Returns
    -------
    int
        Where its mean is largest, if it is seen there; else where its upper limit is: that is then
        the limit at all places. A place that is zero to rounding, as by construction, says nothing
        of the others: it is taken if all are.
    """
    means = _means(errors)
    zeros = _zeros(means, zero)
    among = zeros if zeros.all() else ~zeros
    place = int(np.where(among, means.estimate, -np.inf).argmax())
    doubted = mean_interval(errors[:, place], SEEN)
    if doubted.low > 0 and doubted.estimate > resolution:
        return place
    return int(np.where(among, means.high, -np.inf).argmax())


def _means(errors: Array) -> Intervals:
    """Return means (S,) over replicas with 95% intervals, those of squares for their skewness.

    What was subtracted from them leaves differences, of which Student's cover more.
    """
    plain = mean_intervals(errors)
    if len(errors) < LEAST_REPLICAS:
        return plain
    skewed, squares = mean_intervals(errors, skewed=True), (errors >= 0).all(axis=0)
    return Intervals(*(np.where(squares, a, b) for a, b in zip(skewed, plain, strict=True)))


def _zeros(means: Intervals, zero: float) -> NDArray[np.bool_]:
    """Return which means are zero to rounding, interval and all."""
    return np.asarray((np.abs(means.low) <= zero) & (np.abs(means.high) <= zero))


def with_part(row: Row, part: Row, name: str) -> Row:
    """Return a row whose claim needs that of a part of the quantity, measured by itself."""
    verdicts = {row.verdict, part.verdict}
    verdict = FAILS if FAILS in verdicts else UNDECIDED if UNDECIDED in verdicts else HOLDS
    words = f"{name}: {part.last.estimate:.1e} ± {(part.last.high - part.last.low) / 2:.0e}"
    if part.exponent is not None:
        words += f", exponent {interval_text(part.exponent)}{'*' if part.bends else ''}"
    words += f", {part.verdict}"
    if part.note:
        words += f" ({part.note})"
    note = "; ".join([row.note, words] if row.note else [words])
    return replace(row, verdict=verdict, note=note)


def interval_text(interval: Interval) -> str:
    """Return an exponent with its interval, without negative zeros."""
    estimate, low, high = (f"{round(value, 2) + 0.0:.2f}" for value in interval)
    return f"{estimate} [{low}, {high}]"


def _listed(sizes: Array) -> str:
    return ", ".join(f"{size:g}" for size in sizes)
