"""A limit by levels of depth: multilevel Monte Carlo over replicas."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from nfd_fast import arguments, statistics
from nfd_fast import progress as progress_line
from nfd_fast.limit import BACKWARD, solve_limit
from nfd_fast.model import SGD, ResNet
from nfd_fast.observables import COUPLINGS, LAYERLESS
from nfd_fast.statistics import Interval, Intervals, Moments
from nfd_fast.statistics.intervals import Array, confidence_level, student_quantile

NOISE = 0.3
"""Share of its noise in a layer's time, seen to be 0.2 to 0.3 for up to 8 samples and less later.

A coarse layer that shares the noise of several fine ones draws all of theirs.
"""
CHUNK = 1024
"""Replicas of one call, at most: fixed, so that sums have the same shape on every machine."""
CHUNK_BYTES = 2**24
"""Of what they record; few enough to be nothing next to the particles."""
MOST_REPLICAS = 10**7
ORDERS = np.arange(10, 401) / 100
"""Powers of 1/L among which the order of the bias is sought."""
LATEST = 3
"""Levels whose means tell the bias; coarser ones may be far from any power law."""
LEAST_ORDER = 0.5
SLOW = 0.75
"""An order seen to be less is not the first: the next power of 1/L bends less than that."""


class Level(NamedTuple):
    """What was sampled of one level.

    Attributes
    ----------
    depth : int
        L of its finer systems.
    replicas : int
        How many pairs, or single systems on the first level.
    mean, variance : arrays of the statistic's shape
        Of the difference to the next coarser depth on the same noise; of the statistic itself on
        the first level. Sample variance of one replica.
    cost : float
        Of one replica, in steps of a layer.
    """

    depth: int
    replicas: int
    mean: Array
    variance: Array
    cost: float


@dataclass(frozen=True, eq=False)
class LimitEstimate:
    """Result of :func:`multilevel_limit`; arrays have the statistic's shape.

    Attributes
    ----------
    value : Intervals
        The mean of the statistic at the last depth, with its confidence interval.
    standard_error : array
        Of ``value``.
    bias : array
        Estimated distance of ``value`` from L = ∞. An estimate, no bound, and with the chance of
        the level means in it.
    extrapolated : Intervals
        The mean at L = ∞ by a Richardson step with the last level, exact for a bias of order 1/L,
        with its confidence interval.
    extrapolated_error : array
        The standard error of ``extrapolated``.
    extrapolated_bias : array
        Estimated distance of ``extrapolated`` from L = ∞, as a bias of order 1/L².
    order : Interval
        The power of 1/L with which the last three level means fall, which at these depths need not
        be the last word: least squares, weighted by standard errors, over all entries. The interval
        is where the sum of squares exceeds its least value by no more than what would be 95% if all
        entries were one: wide, and up to all of 0.1 … 4 where the means are lost in chance. NaN for
        fewer than 3 depths.
    levels : tuple of Level
        From the first depth to the last.
    cost : float
        Of all that was sampled, in steps of a layer.
    single_level_cost : float
        Of as many systems at the last depth alone as have the same standard error in the worst
        entry.
    statistic, coupling, particles, confidence
        What was asked.
    """

    value: Intervals
    standard_error: Array
    bias: Array
    extrapolated: Intervals
    extrapolated_error: Array
    extrapolated_bias: Array
    order: Interval
    levels: tuple[Level, ...]
    cost: float
    single_level_cost: float
    statistic: str
    coupling: str
    particles: int
    confidence: float

    @property
    def savings(self) -> float:
        """How many times more one level alone would cost; below 1 if levels did not pay."""
        return self.single_level_cost / self.cost

    def __repr__(self) -> str:
        levels = ", ".join(f"{level.depth}: {level.replicas}" for level in self.levels)
        return (
            f"LimitEstimate({self.statistic!r}, coupling={self.coupling!r}, replicas by depth "
            f"{{{levels}}}, standard error {self.standard_error.max():.3g}, "
            f"bias {self.bias.max():.3g}, savings {self.savings:.3g})"
        )


def multilevel_limit(
    net: ResNet,
    sgd: SGD,
    x: ArrayLike,
    y: ArrayLike,
    *,
    batches: ArrayLike,
    error: float,
    particles: int = 10_000,
    coupling: str = "none",
    statistic: str = "outputs",
    depths: Sequence[int] = (8, 16, 32, 64),
    extrapolate: bool = False,
    confidence: float = 0.95,
    seed: int = 0,
    pilot: int = 16,
    dtype: DTypeLike = "float32",
    device: str = "cpu",
    threads: int | None = None,
    progress: bool | progress_line.Callback = False,
) -> LimitEstimate:
    """Estimate the mean of a statistic in a limit, to a standard error, from several depths.

    The mean at the last depth is that at the first one plus the differences between neighbours.
    Most of the chance is settled where layers are few; a difference of two depths on one Brownian
    path varies little, and takes few of the costly systems.

    Parameters
    ----------
    net, sgd, x, y, batches, coupling
        As in :func:`nfd_fast.solve_limit`; neither width nor depth of the network counts.
    error : float
        Standard error to reach in the worst entry of the statistic: of its mean at the last
        depth, or of the extrapolated one.
    particles : int
        N of each system. The chance of a mean goes with 1/√(N·replicas), so that the cost hardly
        depends on it, but what N leaves of the limit of infinite width falls with 1/N.
    statistic : str
        ``"outputs"``, ``"losses"`` or, with reused weights, ``"coupling_accumulated"`` or
        ``"backward_coupling_accumulated"``.
    depths : sequence of int
        At least 2, each a multiple of the one before.
    extrapolate : bool
        Whether ``error`` is asked of the extrapolation to L = ∞. Both values are returned anyway.
    confidence : float
        Coverage of the intervals, below 1.
    seed : int
        The seeds of all replicas follow from it; those of different levels, replicas and ``seed``
        have nothing in common.
    pilot : int
        Replicas of each level, at least 2, from which its first variance is estimated. They count.
    dtype, device, threads
        As in :func:`nfd_fast.solve_limit`. The result has the same bits for any number of threads.
    progress : bool or callable
        As in :func:`nfd_fast.train`; the total number of passes grows as variances become known.

    Returns
    -------
    LimitEstimate

    Raises
    ------
    ValueError
        For depths that are not increasing multiples, an error that would take more than 10⁷
        replicas of a level, and as :func:`nfd_fast.solve_limit`.
    MemoryError, DeviceError, DivergenceError
        As :func:`nfd_fast.solve_limit`.
    MissingExtraError
        Without SciPy.

    Notes
    -----
    M. B. Giles, Acta Numerica 24 (2015) 259. With variances V_l and costs C_l of one replica, the
    cheapest numbers of replicas are R_l = ε⁻² √(V_l/C_l) Σ_k √(V_k C_k), for each entry; the
    largest of any entry is taken. A level at most doubles its replicas before variances are
    estimated anew. Costs are counted in steps of a layer, with 0.3 of one for each layer's noise
    that a coarse system draws beyond its own; they do not depend on the machine.

    Sampling ends when the standard error seen is small enough, which makes it a little too small:
    by 8% with 25 replicas on the first level, 2% with 64. Of a skewed statistic the mean leans the
    same way, by about the skewness over √replicas in standard errors: 0.1 for losses with 46, 0.05
    with 200. Intervals of 95% covered 93.6 to 94.5% in such cases (3000 times each). A smaller
    ``error`` makes all of this vanish.

    Stated are the chance, by a t interval with Satterthwaite's degrees of freedom, and the bias of
    the last depth, from the level means: |m|/(r^α − 1) for depths of ratio r, the largest of the
    last three levels' as carried to the last one. α = 1, the order of the scheme, unless the order
    seen is below ¾ with its whole interval; then what is seen, at least ½.

    Savings are bounded by the ratio of the last depth to the first. How low the first may be shows
    in the variances: they should fall well below the first level's at once, and do from depth 2 or
    4 on in what was tried.

    **Not included is the O(1/N) bias of finitely many particles**, which all levels have in common;
    two values of ``particles`` tell it.

    Two depths share their path only while the conditional engine's rank decisions agree in both
    (DESIGN §2). Where they don't, the estimate stays right and the level's variance shows the loss.

    Examples
    --------
    >>> import numpy as np, nfd_fast as nfd
    >>> net = nfd.ResNet(width=1, depth=1, inputs=1, activation="identity")
    >>> sgd = nfd.SGD(0.5, train=("hidden",))
    >>> found = nfd.multilevel_limit(net, sgd, [[1.0]], [1.0], batches=[[0]], particles=2000,
    ...                              depths=(4, 8, 16, 32), error=2e-3)
    >>> moved = found.extrapolated.estimate[1, 0, 0]
    >>> bool(abs(moved - np.expm1(1) / 2) < 0.02), found.savings > 1
    (True, True)
    """
    arguments.instance("net", net, ResNet)
    target = arguments.real("error", error, positive=True)
    arguments.option("coupling", coupling, tuple(BACKWARD))
    arguments.option("statistic", statistic, LAYERLESS)
    if statistic in COUPLINGS and BACKWARD[coupling] != "reused":
        raise ValueError(f"statistic {statistic!r} needs coupling='reused', got {coupling!r}")
    levels = _depths(depths)
    extrapolate = arguments.flag("extrapolate", extrapolate)
    confidence_level(confidence)
    first_seed = arguments.seed("seed", seed)
    if arguments.integer("pilot", pilot) < 2:
        raise ValueError(f"pilot must be at least 2 replicas, got {pilot}")
    report = progress_line.callback(progress)
    statistics.require()
    x, y = arguments.as_array("x", x), arguments.as_array("y", y)
    index = arguments.as_array("batches", batches)
    options: dict[str, Any] = {
        "batches": index,
        "particles": arguments.integer("particles", particles, high=arguments.MAX_INDEX),
        "coupling": coupling,
        "dtype": dtype,
        "device": device,
        "threads": threads,
        "record": (statistic,),
    }
    samplers = [
        _Sampler(net, sgd, x, y, statistic, options, first_seed, level, pair)
        for level, pair in enumerate(itertools.pairwise((0, *levels)))
    ]
    # In the extrapolation the last level counts for its own difference and for those to come.
    ratio = levels[-1] / levels[-2]
    weights = np.ones(len(samplers))
    stretched = np.append(weights[:-1], ratio / (ratio - 1))
    asked = stretched if extrapolate else weights
    _sample(samplers, asked, target, pilot, report, updates=math.prod(index.shape[:1]))
    return _estimate(
        samplers,
        _Combination(samplers, weights),
        _Combination(samplers, stretched),
        confidence,
        statistic=statistic,
        coupling=coupling,
        particles=options["particles"],
    )


def _depths(depths: object) -> tuple[int, ...]:
    """Return the depths, or raise ValueError."""
    what = "depths must be at least 2 positive integers, each a multiple of the one before"
    if isinstance(depths, (str, bytes)) or not isinstance(depths, (Sequence, np.ndarray)):
        raise ValueError(f"{what}, got {arguments.describe(depths)}")
    checked = tuple(
        arguments.integer(f"depths[{i}]", depth, high=arguments.MAX_NOISE_DEPTH)
        for i, depth in enumerate(depths)
    )
    if len(checked) < 2 or any(b % a or b == a for a, b in itertools.pairwise(checked)):
        raise ValueError(f"{what}, got {arguments.describe(depths)}")
    return checked


class _Sampler:
    """One level: its replicas so far, and how to draw more."""

    def __init__(
        self,
        net: ResNet,
        sgd: SGD,
        x: ArrayLike,
        y: ArrayLike,
        statistic: str,
        options: dict[str, Any],
        seed: int,
        level: int,
        depths: tuple[int, int],
    ) -> None:
        self.problem = (sgd, x, y)
        self.statistic, self.options = statistic, options
        self.seed, self.level = seed, level
        coarse, self.depth = depths
        self.nets = [replace(net, depth=depth) for depth in (self.depth, coarse) if depth]
        self.cost = sum(depths) + (NOISE * (self.depth - coarse) if coarse else 0.0)
        self.difference: Moments | None = None
        self.values: list[Moments] = []  # of the finer systems, and of the coarser ones

    @property
    def count(self) -> int:
        return 0 if self.difference is None else self.difference.count

    @property
    def moments(self) -> Moments:
        assert self.difference is not None
        return self.difference

    def chunk(self) -> int:
        """How many replicas to draw at once."""
        if self.difference is None:  # how large the records are is not known yet
            return 2
        return max(1, min(CHUNK, CHUNK_BYTES // (8 * max(1, self.difference.mean.size))))

    def draw(self, replicas: int) -> None:
        """Draw more replicas, with seeds that follow from the level and their numbers."""
        seeds = [
            int(np.random.SeedSequence(self.seed, spawn_key=(self.level, replica)).generate_state(
                1, np.uint64
            )[0])
            for replica in range(self.count, self.count + replicas)
        ]  # fmt: skip
        rows = [
            np.asarray(
                solve_limit(
                    net, *self.problem, seed=seeds, noise_depth=self.depth, **self.options
                ).observables[self.statistic]
            )
            for net in self.nets
        ]
        if self.difference is None:
            self.difference = Moments(rows[0].shape[1:])
            self.values = [Moments(rows[0].shape[1:]) for _ in rows]
        self.difference.add(rows[0] - rows[1] if len(rows) == 2 else rows[0])
        for moments, array in zip(self.values, rows, strict=True):
            moments.add(array)


class _Combination:
    """Weighted sum of level means, with its standard error and degrees of freedom."""

    def __init__(self, samplers: Sequence[_Sampler], weights: NDArray[np.float64]) -> None:
        moments = [sampler.moments for sampler in samplers]
        self.mean: Array = np.asarray(
            sum(w * m.mean for w, m in zip(weights, moments, strict=True))
        )
        shares = [(w * m.standard_error) ** 2 for w, m in zip(weights, moments, strict=True)]
        variance = np.asarray(sum(shares))
        self.error: Array = np.sqrt(variance)
        squares = sum(s**2 / (m.count - 1) for s, m in zip(shares, moments, strict=True))
        with np.errstate(divide="ignore", invalid="ignore"):
            freedom = variance**2 / squares
        # F. E. Satterthwaite, Biometrics Bull. 2 (1946) 110. Of no variance at all, any will do.
        self.freedom = np.where(np.isfinite(freedom), freedom, 1.0)

    def intervals(self, confidence: float) -> Intervals:
        half = student_quantile(confidence, self.freedom) * self.error
        return Intervals(self.mean, self.mean - half, self.mean + half)


def _sample(
    samplers: Sequence[_Sampler],
    weights: NDArray[np.float64],
    target: float,
    pilot: int,
    report: progress_line.Callback | None,
    *,
    updates: int,
) -> None:
    """Draw replicas of every level until the standard error is reached."""
    passes = [(updates + 1) * len(sampler.nets) for sampler in samplers]

    def total(counts: Sequence[int]) -> int:
        return sum(p * count for p, count in zip(passes, counts, strict=True))

    def draw(wanted: Sequence[int]) -> None:
        # The deepest first: what does not fit shows before time is spent.
        for sampler, goal in reversed(list(zip(samplers, wanted, strict=True))):
            while sampler.count < goal:
                if report is not None:
                    report(total([s.count for s in samplers]), total(wanted))
                sampler.draw(min(goal - sampler.count, sampler.chunk()))

    draw([pilot] * len(samplers))
    while _Combination(samplers, weights).error.max(initial=0.0) > target:
        wanted = _allocation(samplers, weights, target)
        if wanted.max() > MOST_REPLICAS:
            raise ValueError(
                f"error must take at most {MOST_REPLICAS} replicas of a level, got {target}, which "
                f"takes about {wanted.max():.3g}"
            )
        draw(
            [min(max(int(w), s.count), 2 * s.count) for w, s in zip(wanted, samplers, strict=True)]
        )
    if report is not None:
        done = total([s.count for s in samplers])
        report(done, done)


def _allocation(
    samplers: Sequence[_Sampler], weights: NDArray[np.float64], target: float
) -> NDArray[np.float64]:
    """Return the numbers of replicas with which every entry reaches a standard error, rounded up.

    The optimum for each entry alone, and the largest of them: then each entry is reached.
    """
    costs = np.array([sampler.cost for sampler in samplers])[:, None]
    variances = np.array(
        [w**2 * s.moments.variance.ravel() for w, s in zip(weights, samplers, strict=True)]
    )
    with np.errstate(over="ignore", invalid="ignore"):  # of a target beyond all replicas
        numbers = np.sqrt(variances / costs) / target
        numbers *= np.sqrt(variances * costs).sum(axis=0) / target
    return np.asarray(np.ceil(np.where(variances > 0, numbers, 0.0).max(axis=1)))


def _estimate(
    samplers: Sequence[_Sampler],
    plain: _Combination,
    stretched: _Combination,
    confidence: float,
    **asked: Any,
) -> LimitEstimate:
    """Put together what is returned."""
    depths = [sampler.depth for sampler in samplers]
    differences = [sampler.moments for sampler in samplers[1:]]
    means = np.array([moments.mean for moments in differences])
    errors = np.array([moments.standard_error for moments in differences])
    order = _order(depths[-LATEST - 1 :], means[-LATEST:], errors[-LATEST:])
    bias, extrapolated_bias = _biases(depths, means, order)
    last = samplers[-1]
    cost = sum(sampler.count * sampler.cost for sampler in samplers)
    # The variance at the last depth, by levels like the mean: the few replicas there would tell it
    # poorly by themselves.
    variance = np.asarray(
        sum(
            s.values[0].variance - (s.values[1].variance if len(s.values) == 2 else 0.0)
            for s in samplers
        )
    )
    variance = np.where(variance > 0, variance, last.values[0].variance)
    reached = plain.error.max()
    replicas = variance.max() / reached**2 if reached > 0 else 1.0
    return LimitEstimate(
        value=plain.intervals(confidence),
        standard_error=plain.error,
        bias=bias,
        extrapolated=stretched.intervals(confidence),
        extrapolated_error=stretched.error,
        extrapolated_bias=extrapolated_bias,
        order=order,
        levels=tuple(
            Level(s.depth, s.count, s.moments.mean, s.moments.variance, s.cost) for s in samplers
        ),
        cost=cost,
        single_level_cost=float(replicas * last.depth),
        confidence=confidence,
        **asked,
    )


def _order(depths: Sequence[int], means: Array, errors: Array) -> Interval:
    """Return the power α of 1/L with which differences (levels, ...) of means fall.

    For a bias c/L^α each is c (L_{l-1}^-α − L_l^-α): weighted least squares in c for each α of a
    grid.
    """
    if len(means) < 2:
        return Interval(math.nan, math.nan, math.nan)
    means, errors = (array.reshape(len(means), -1) for array in (means, errors))
    known = (errors > 0).all(axis=0)
    if not known.any():
        return Interval(math.nan, math.nan, math.nan)
    scaled = means[:, known] / errors[:, known]
    weights = errors[:, known].min(axis=0) / errors[:, known]
    sizes = np.array(depths, dtype=np.float64)
    falls = -np.diff((sizes / sizes[0]) ** -ORDERS[:, None], axis=1)
    explained = (falls @ (scaled * weights)) ** 2 / (falls**2 @ weights**2)
    excess = (scaled**2).sum() - explained.sum(axis=1)
    # 3.84 is the 95% quantile of χ² with 1 degree of freedom. Entries of one replica go together.
    inside = ORDERS[excess <= excess.min() + 3.84 * known.sum()]
    return Interval(float(ORDERS[excess.argmin()]), float(inside[0]), float(inside[-1]))


def _biases(depths: Sequence[int], means: Array, order: Interval) -> tuple[Array, Array]:
    """Return the estimated distance from L = ∞ at the last depth and after a Richardson step."""
    power = max(order.estimate, LEAST_ORDER) if order.high < SLOW else 1.0
    sizes = np.array(depths, dtype=np.float64)
    shape = (-1,) + (1,) * (means.ndim - 1)
    ratios, shares = (sizes[1:] / sizes[:-1]).reshape(shape), (sizes[1:] / sizes[-1]).reshape(shape)
    ahead = np.abs(means) * shares**power / (ratios**power - 1)
    bias = ahead[-LATEST:].max(axis=0)
    if len(means) == 1:
        return bias, bias
    # Neighbouring Richardson values f_l + m_l/(r_l − 1) differ by m_l r_l/(r_l − 1) − …
    steps = means / (ratios - 1)
    changes = steps[1:] + means[1:] - steps[:-1]
    second = np.abs(changes) * shares[1:] ** 2 / (ratios[1:] ** 2 - 1)
    slower = ahead[-1] - np.abs(steps[-1])  # what a Richardson step misses of a lower order
    return bias, second[-2:].max(axis=0) + slower
