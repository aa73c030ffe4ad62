"""Errors of runs against references: on shared noise, of means, and of kernels in width."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nfd_fast import arguments
from nfd_fast.problem import answers
from nfd_fast.reference.losses import LOSSES
from nfd_fast.results import Run
from nfd_fast.statistics.intervals import Array, Intervals, mean_intervals, replicas
from nfd_fast.statistics.pairing import require_shared_noise
from nfd_fast.theory import InitialKernels, LinearRun

FINER = 8
"""How many times the depth of a run a reference must have to stand for infinite depth."""


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
    ours = replace(run, backward="decoupled") if against_nfd else run
    require_shared_noise({"run": ours, "reference": reference})
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
        ``mean_intervals(…, skewed=True)`` of its arrays has the means over replicas with their
        intervals; columns of several depths side by side are errors for :func:`fit_rate`.

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
    return replicas(run, np.asarray(run.observables[name]))


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
        Ensembles with the same seeds and data, whose replicas are compared in pairs: what a pair
        shares, as noise under one ``noise_depth``, cancels.
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
    if run.data != reference.data:
        raise ValueError(
            "run and reference must have the same data in their batches, got "
            f"{arguments.describe(run.data)} and {arguments.describe(reference.data)}"
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


class KernelErrors(NamedTuple):
    """Squared errors (R,) of each replica's kernels at initialisation against infinite width."""

    features: Array
    adjoints: Array


def kernel_errors(run: Run, kernels: InitialKernels, y: ArrayLike | None = None) -> KernelErrors:
    """Compare a run's kernels before its first update with those of infinite width.

    Parameters
    ----------
    run : Run
        With ``"feature_kernels"`` and ``"adjoint_kernels"`` recorded.
    kernels : InitialKernels
        ``nfd.initial_kernels(run.net, x, depth=run.net.depth)`` of the samples x of batch 0, in
        its order.
    y : (B,) or (B, C) array, optional
        The answers of batch 0, as :func:`nfd_fast.train` takes them. Needed for several outputs,
        whose adjoints start from V χ: as n → ∞ outputs vanish, so that χ is that of f = 0, and the
        adjoints' kernel is (χ_b·χ_b') Γ. Without effect for one output, whose adjoints start from
        V.

    Returns
    -------
    KernelErrors
        Mean over pairs of samples and layers 0 … L of the squared differences in row 0.
        ``mean_intervals(…, skewed=True)`` has the mean over replicas with its interval; columns of
        several widths side by side are errors for :func:`fit_rate`.

    Raises
    ------
    ValueError
        If something was not recorded, if the kernels are of another depth or batch, or if y is
        missing or does not fit.

    Notes
    -----
    DESIGN §3.1: of order 1/n in the mean.

    Examples
    --------
    >>> import nfd_fast as nfd
    >>> net, x = nfd.ResNet(width=500, depth=8, inputs=2), [[1.0, 0.3], [-0.4, 0.9]]
    >>> run = nfd.train(net, nfd.SGD(0.1), x, [1.0, -1.0], batches=[[0, 1]], seed=range(20),
    ...                 record=["feature_kernels", "adjoint_kernels"])
    >>> errors = nfd.statistics.kernel_errors(run, nfd.initial_kernels(net, x, depth=8))
    >>> bool(errors.features.mean() < 10 / net.width)
    True
    """
    arguments.instance("run", run, Run)
    arguments.instance("kernels", kernels, InitialKernels)
    for name in ("feature_kernels", "adjoint_kernels"):
        if name not in run.observables:
            raise ValueError(f"run must have recorded {name!r}")
    features, adjoints = (
        replicas(run, np.asarray(run.observables[name]))[:, 0]
        for name in ("feature_kernels", "adjoint_kernels")
    )
    batch = features.shape[-1]
    if kernels.features.shape != features.shape[1:]:
        raise ValueError(
            f"kernels must be of run's depth and batch 0, shape {features.shape[1:]}, got "
            f"{kernels.features.shape}"
        )
    expected = kernels.adjoints
    if run.net.outputs > 1:
        if y is None:
            raise ValueError(
                f"y must be the answers of batch 0 for a net of {run.net.outputs} outputs, got None"
            )
        targets, labels = answers(run.net, run.sgd, y, batch)
        truth = targets if targets is not None else labels
        assert truth is not None
        _, seeds = LOSSES[run.sgd.loss](np.zeros((batch, run.net.outputs)), truth)
        expected = expected * (seeds @ seeds.T)
    return KernelErrors(
        features=((features - kernels.features) ** 2).mean(axis=(1, 2, 3)),
        adjoints=((adjoints - expected) ** 2).mean(axis=(1, 2, 3)),
    )


class WidthErrors(NamedTuple):
    """Squared errors of each replica against infinite width, at each recorded pass.

    Attributes
    ----------
    outputs : (R, K+1)
        Mean over the batch and the outputs.
    features : (R, K+1)
        Mean over pairs of samples and layers 0 … L of the features' kernels.
    adjoints : (R, K)
        The same of the adjoints.
    """

    outputs: Array
    features: Array
    adjoints: Array


def width_errors(run: Run, limit: LinearRun) -> WidthErrors:
    """Compare a linear network in training with the same one of infinite width.

    Parameters
    ----------
    run : Run
        With ``"feature_kernels"`` and ``"adjoint_kernels"`` recorded.
    limit : LinearRun
        ``nfd.theory.linear_training`` of the run's net, sgd, data and batches, with
        ``coupling="reused"`` for reused weights and ``"none"`` for decoupled ones.

    Returns
    -------
    WidthErrors
        ``mean_intervals(…, skewed=True)`` has means over replicas with their intervals; columns of
        several widths side by side are errors for :func:`fit_rate`.

    Raises
    ------
    ValueError
        If something was not recorded, or if the limit is of another depth, batch, number of
        updates or outputs.

    Notes
    -----
    Of order 1/n in the mean (DESIGN §3.1 at initialisation; measured after it). Networks with an
    activation have no such limit without sampling: :func:`kernel_errors` takes theirs at
    initialisation.
    """
    arguments.instance("run", run, Run)
    arguments.instance("limit", limit, LinearRun)
    errors = []
    for name in ("outputs", "feature_kernels", "adjoint_kernels"):
        if name not in run.observables:
            raise ValueError(f"run must have recorded {name!r}")
        found, expected = replicas(run, np.asarray(run.observables[name])), getattr(limit, name)
        if found.shape[1:] != expected.shape:
            raise ValueError(
                f"limit must have run's {name}, of shape {found.shape[1:]}, got {expected.shape}"
            )
        squares = (found - expected) ** 2
        errors.append(squares.mean(axis=tuple(range(2, squares.ndim))))
    return WidthErrors(*errors)
