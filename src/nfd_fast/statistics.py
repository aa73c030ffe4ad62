"""Means, ratios, errors on shared noise and rates, with confidence intervals over replicas."""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nfd_fast import arguments
from nfd_fast.extras import MissingExtraError
from nfd_fast.results import Run

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


class StrongErrors(NamedTuple):
    """Squared errors of each replica against a finer run on the same noise.

    Attributes
    ----------
    features : (R, K+1)
        Mean over neurons and batch of (H_l − H_l^ref)² at each recorded pass, at the layer where
        its mean over replicas is largest.
    adjoints : (R, K)
        The same of the adjoints G_l.
    feature_layers : (K+1,)
    adjoint_layers : (K,)
        Those layers, 0 … L.
    """

    features: Array
    adjoints: Array
    feature_layers: NDArray[np.int64]
    adjoint_layers: NDArray[np.int64]


FINER = 8
"""How many times the depth of a run a reference must have to stand for infinite depth."""


class LayerErrors(NamedTuple):
    """Squared errors of each replica at every layer; see :func:`strong_errors`.

    Attributes
    ----------
    features : (R, K+1, P)
        Mean over neurons and batch of (H_l − H_l^ref)² at each recorded pass.
    adjoints : (R, K, P)
        The same of the adjoints G_l.
    layers : (P,)
        The layers l of the run that are compared.
    """

    features: Array
    adjoints: Array
    layers: NDArray[np.int64]


def layer_errors(run: Run, reference: Run, *, against_nfd: bool = False) -> LayerErrors:
    """Compare an ensemble with one of finer layers on the same noise, layer by layer.

    Parameters
    ----------
    run, reference : Run
        Ensembles of networks that differ in depth alone, L and at least 8 L (a multiple), with the
        same seeds, batches and ``noise_depth``, and ``"features"`` and ``"adjoints"`` recorded;
        the reference's ``record_every`` divides what lies between two of the run's layers.
    against_nfd : bool
        Compare networks with reused weights to decoupled ones: to Neural Feature Dynamics.

    Returns
    -------
    LayerErrors

    Raises
    ------
    ValueError
        If the runs are not such a pair.

    Notes
    -----
    As :func:`strong_errors`, which takes the worst layer.
    """
    for name, given in (("run", run), ("reference", reference)):
        arguments.instance(name, given, Run)
        for observable in ("features", "adjoints"):
            if observable not in given.observables:
                raise ValueError(f"{name} must have recorded {observable!r}")
    coarse, fine = run.net.depth, reference.net.depth
    if fine % coarse or fine < FINER * coarse:
        raise ValueError(
            f"reference must have a multiple of run's depth {coarse}, at least {FINER} times it, "
            f"got {fine}"
        )
    between = fine // coarse * run.record_every
    if between % reference.record_every:
        raise ValueError(
            f"reference must have recorded every {between} layers, or a divisor of it, got "
            f"record_every={reference.record_every}"
        )
    target = "decoupled" if against_nfd else run.backward
    for what, ours, theirs in (
        ("net but for the depth", replace(run.net, depth=1), replace(reference.net, depth=1)),
        ("sgd", run.sgd, reference.sgd),
        ("seeds", run.seeds, reference.seeds),
        ("backward", target, reference.backward),
        ("engine", run.engine, reference.engine),
        ("noise_depth", run.noise_depth, reference.noise_depth),
        ("outputs' shape", run.outputs.shape, reference.outputs.shape),
    ):
        if ours != theirs:
            raise ValueError(
                f"run and reference must have the same {what}, got "
                f"{arguments.describe(ours)} and {arguments.describe(theirs)}"
            )
    step = between // reference.record_every
    features, adjoints = (
        _mean_squares(_states(run, name), _states(reference, name)[:, :, ::step])
        for name in ("features", "adjoints")
    )
    return LayerErrors(features, adjoints, np.arange(0, coarse + 1, run.record_every))


def strong_errors(run: Run, reference: Run, *, against_nfd: bool = False) -> StrongErrors:
    """Compare an ensemble with one of finer layers on the same noise, neuron by neuron.

    Parameters
    ----------
    run, reference, against_nfd
        As in :func:`layer_errors`.

    Returns
    -------
    StrongErrors
        :func:`mean_intervals` of its arrays has the means over replicas with their intervals;
        columns of several depths side by side are errors for :func:`fit_rate`.

    Raises
    ------
    ValueError
        If the runs are not such a pair.

    Notes
    -----
    DESIGN §5: layer l is compared with layer l·L_ref/L. The share of the reference's own error is
    of order 1/8 to the rate's power. The engines do not share their paths, so that both runs should
    name theirs, and the conditional engine's ranks must agree for its noise to mean the same in
    both (DESIGN §2).
    """
    found = layer_errors(run, reference, against_nfd=against_nfd)
    (features, feature_layers), (adjoints, adjoint_layers) = (
        worst_layers(errors) for errors in (found.features, found.adjoints)
    )
    return StrongErrors(
        features, adjoints, found.layers[feature_layers], found.layers[adjoint_layers]
    )


def worst_layers(errors: Array) -> tuple[Array, NDArray[np.int64]]:
    """Return errors (R, rows) where their mean over replicas is largest, and the places (rows,).

    ``errors`` is (R, rows, P), of places P.
    """
    places = errors.mean(axis=0).argmax(axis=1)
    return errors[:, np.arange(len(places)), places], places


def _states(run: Run, name: str) -> Array:
    """Return what a run recorded of every layer, (R, rows, P, B, n)."""
    states = np.asarray(run.observables[name], dtype=np.float64)
    return states if run.ensemble else states[None]


def _mean_squares(states: Array, others: Array) -> Array:
    """Return mean squares (R, rows, P) of the difference, one replica at a time."""
    return np.array(
        [
            [((a - b) ** 2).mean(axis=(1, 2)) for a, b in zip(ours, theirs, strict=True)]
            for ours, theirs in zip(states, others, strict=True)
        ]
    )


def weak_errors(run: Run, reference: Run, statistic: str = "outputs") -> Intervals:
    """Squared difference of the means over replicas of a recorded array, without sampling bias.

    Parameters
    ----------
    run, reference : Run
        Ensembles with the same seeds, whose replicas are compared in pairs: what a pair shares, as
        noise under one ``noise_depth``, cancels.
    statistic : str
        An observable of both that is one array, of the same shape: it has no layers, or both have
        as many.

    Returns
    -------
    Intervals
        Of the array's shape without the replica axis: the estimate is unbiased, and so may be
        negative where the means differ by less than they are known to; the interval, of at least
        95%, holds the square of every difference that a paired t-test does not reject.

    Raises
    ------
    ValueError
        If the runs are not such a pair, or of fewer than 2 replicas.

    Notes
    -----
    DESIGN §5. With differences δ_r of R pairs, of mean δ and variance s²: δ² − s²/R.
    """
    for name, given in (("run", run), ("reference", reference)):
        arguments.instance(name, given, Run)
        arrays = [k for k, v in given.observables.items() if isinstance(v, np.ndarray)]
        arguments.option("statistic", statistic, arrays)
    if run.seeds != reference.seeds or len(run.seeds) < 2:
        raise ValueError(
            "run and reference must have the same seeds, at least 2, got "
            f"{arguments.describe(run.seeds)} and {arguments.describe(reference.seeds)}"
        )
    ours, theirs = (np.asarray(r.observables[statistic]) for r in (run, reference))
    if ours.shape != theirs.shape:
        raise ValueError(
            f"statistic must have one shape in run and reference, got {ours.shape} and "
            f"{theirs.shape}"
        )
    differences = ours - theirs
    mean, low, high = mean_intervals(differences)
    variance = differences.var(axis=0, ddof=1) / len(differences)
    ends = np.stack([low**2, high**2])
    inside = (low <= 0) & (high >= 0)
    return Intervals(mean**2 - variance, np.where(inside, 0.0, ends.min(axis=0)), ends.max(axis=0))


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
    tail, tail_low, tail_high : float
        The exponent at large sizes of error ≈ constant · size^tail · exp(c / size), and its
        confidence interval: where the bend leads, if it dies out like 1 / size.
    """

    slope: float
    low: float
    high: float
    constant: float
    bend: float
    bend_low: float
    bend_high: float
    tail: float
    tail_low: float
    tail_high: float

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


def _tails(level: float, replicas: int) -> list[float]:
    """Return the percentiles of a bootstrap interval, wider the fewer replicas there are.

    Means of R resampled replicas spread too little by √((R−1)/R), and their spread is itself known
    from R−1 differences: T. Hesterberg, Amer. Statist. 69 (2015) 371, §4.1, "expanded percentiles".
    """
    quantile = _student_quantile(level, replicas - 1)
    from scipy.special import ndtr

    tail = float(ndtr(-math.sqrt(replicas / (replicas - 1)) * quantile))
    return [tail, 1 - tail]


def fit_rate(
    sizes: ArrayLike, errors: ArrayLike, confidence: float = 0.95, *, signed: bool = False
) -> Rate:
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
    signed : bool
        Single errors may have either sign, as after an extrapolation; their means may not.

    Returns
    -------
    Rate

    Raises
    ------
    ValueError
        For fewer than 3 sizes or 2 replicas, or entries that are not finite and positive; if
        ``signed``, for means that are not positive in all but one in 1000 resamples.
    MissingExtraError
        Without SciPy.

    Notes
    -----
    DESIGN §5: least squares of log mean error on log size; percentile bootstrap over replicas
    (2000 resamples, seed 0). B. Efron & R. Tibshirani, An Introduction to the Bootstrap (1993),
    §13.3; the percentiles are expanded for few replicas. The coverage is asymptotic in R, and seen
    to be 93–97 % from R = 12 on (tests).
    """
    x = arguments.finite_array("sizes", sizes, ("sizes",), np.float64)
    if len(x) < 3:
        raise ValueError(f"sizes must be at least 3, got {len(x)}")
    if (x <= 0).any() or len(np.unique(x)) < len(x):
        raise ValueError(f"sizes must be positive and distinct, got {x.tolist()}")
    rows = arguments.finite_array("errors", errors, ("replicas", len(x)), np.float64)
    if len(rows) < 2:
        raise ValueError(f"errors must have at least 2 replicas, got {len(rows)}")
    if not signed and (rows <= 0).any():
        raise ValueError(f"errors must be positive, got {rows.min()}")
    tails = _tails(confidence, len(rows))

    # Slopes, bends and tails are linear in the logarithms of the means.
    logs = np.log(x)
    centred = logs - logs.mean()
    half = (logs.max() - logs.min()) / 2
    slope_of = np.linalg.pinv(np.vander(centred, 2))[0]
    # The slope of a c² + … changes by 2 a over a unit of c, and half apart lie the halves' middles.
    bend_of = 2 * half * np.linalg.pinv(np.vander(centred, 3))[0]
    tail_of = np.linalg.pinv(np.stack([centred, np.ones_like(x), x.min() / x], axis=1))[0]

    exponents = _exponents(rows)
    rows = np.ldexp(rows, -exponents)
    scale = rows.mean(axis=0)
    means = _resampling(len(rows)) @ (rows / np.where(scale > 0, scale, 1.0))
    if signed:
        positive = (means > 0).all(axis=1)
        if (scale <= 0).any() or positive.mean() < 0.999:
            raise ValueError("errors must have means that are positive beyond doubt")
        means = means[positive]
    fitted = np.log(scale) + exponents * math.log(2)
    resampled = np.log(means) + fitted

    def interval(of: Array) -> tuple[float, float, float]:
        low, high = np.quantile(resampled @ of, tails)
        return float(fitted @ of), float(low), float(high)

    slope, low, high = interval(slope_of)
    constant = float(np.exp(fitted.mean() - slope * logs.mean()))
    return Rate(slope, low, high, constant, *interval(bend_of), *interval(tail_of))
