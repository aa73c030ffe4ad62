"""SGD on the finite network, one replica after another (DESIGN §1, §5)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from nfd_fast import arguments
from nfd_fast.exceptions import DivergenceError
from nfd_fast.model import BACKWARDS, SGD, ResNet, Weights
from nfd_fast.reference import observables
from nfd_fast.reference.network import (
    backward_pass,
    forward_pass,
    initial_weights,
    updated_weights,
)
from nfd_fast.results import MinEigenvalues, Run

Array = NDArray[np.float64]


def train(
    net: ResNet,
    sgd: SGD,
    x: ArrayLike,
    y: ArrayLike,
    *,
    batches: ArrayLike,
    seed: int | Sequence[int] = 0,
    backward: str = "reused",
    noise_depth: int | None = None,
    dtype: DTypeLike = "float32",
    weights: Weights | None = None,
    record: Iterable[str] = ("outputs",),
) -> Run:
    """Train a finite network and record every forward and backward pass.

    Parameters
    ----------
    net, sgd : ResNet, SGD
    x : (S, d)
        Inputs of the data set.
    y : (S,) or (S, C)
        Targets for "mse" (``(S,)`` if C = 1); integer labels (S,) for "cross_entropy".
    batches : (K, B) integers
        Row k holds the samples of update k.
    seed : int or sequence of distinct ints
        A sequence trains one replica per seed and adds a leading axis to every result.
    backward : str
        ``"reused"`` or ``"decoupled"``.
    noise_depth : int, optional
        See :func:`initial_weights`.
    dtype : "float32" or "float64"
        Of weights, features and adjoints; outputs, losses and residuals are float64.
    weights : Weights, optional
        Start from these instead of drawing; they stay unchanged.
    record : iterable of str
        Names from DESIGN §5, without those of the conditional engine.

    Returns
    -------
    Run
        With ``engine="reference"``.

    Raises
    ------
    ValueError
        If an argument has another shape, dtype or range, or an option is unknown.
    DivergenceError
        If features, adjoints or outputs stop being finite.
    """
    arguments.instance("net", net, ResNet)
    arguments.instance("sgd", sgd, SGD)
    if weights is not None:
        arguments.instance("weights", weights, Weights)
    dtype = arguments.dtype_name(dtype)
    record = arguments.subset("record", record, observables.OBSERVABLES)
    inputs = arguments.finite_array("x", x, ("samples", net.inputs), dtype)
    targets = _targets(net, sgd, y, samples=len(inputs))
    rows = _batch_indices(batches, samples=len(inputs))
    ensemble = isinstance(seed, Iterable) and not isinstance(seed, (str, bytes))
    seeds = tuple(arguments.seed("seed", s) for s in (seed if ensemble else [seed]))  # type: ignore[union-attr]
    if len(set(seeds)) != len(seeds) or not seeds:
        raise ValueError(f"seed must be one or more distinct integers, got {seeds}")

    replicas: list[dict[str, Array | MinEigenvalues]] = []
    divergences: list[tuple[_Divergence, int]] = []
    for replica_seed in seeds:
        start = weights
        if start is None:
            start = initial_weights(
                net, replica_seed, backward, noise_depth=noise_depth, dtype=dtype
            )
        else:
            start = _checked_weights(net, start, backward, dtype)
        trajectory = _trajectory(net, sgd, start, inputs, targets, rows)
        replicas.append(_recorded(record, net, trajectory))
        if trajectory.divergence is not None:
            divergences.append((trajectory.divergence, replica_seed))

    recorded = {name: _stacked([r[name] for r in replicas]) for name in replicas[0]}
    if not ensemble:
        recorded = replicas[0]
    run = Run(
        outputs=_array(recorded["outputs"]),
        losses=_array(recorded["losses"]),
        observables=recorded,
        engine="reference",
        net=net,
        sgd=sgd,
        seeds=seeds,
        ensemble=ensemble,
        backward=backward,
        dtype=dtype,
        noise_depth=net.depth if noise_depth is None else noise_depth,
    )
    if divergences:
        where, diverged_seed = divergences[0]
        raise DivergenceError(where.update, where.layer, where.quantity, diverged_seed, run)
    return run


class _Divergence(NamedTuple):
    update: int
    layer: int
    quantity: str


class _Trajectory(NamedTuple):
    """Everything a replica went through; NaN from a divergence onwards."""

    features: Array  # (K+1, L+1, B, n)
    adjoints: Array  # (K, L+1, B, n)
    outputs: Array  # (K+1, B, C)
    losses: Array  # (K+1,)
    divergence: _Divergence | None


def _trajectory(
    net: ResNet,
    sgd: SGD,
    weights: Weights,
    x: NDArray[Any],
    y: NDArray[Any],
    batches: NDArray[np.int64],
) -> _Trajectory:
    update_count, batch_size = batches.shape
    layers = net.depth + 1
    features = np.full((update_count + 1, layers, batch_size, net.width), np.nan)
    adjoints = np.full((update_count, layers, batch_size, net.width), np.nan)
    outputs = np.full((update_count + 1, batch_size, net.outputs), np.nan)
    losses = np.full(update_count + 1, np.nan)

    def stopped(*divergence: Any) -> _Trajectory:
        return _Trajectory(features, adjoints, outputs, losses, _Divergence(*divergence))

    with np.errstate(over="ignore", invalid="ignore"):
        for k in range(update_count + 1):
            batch = batches[k % update_count]  # row K is batch 0 again
            forward = forward_pass(net, sgd, weights, x[batch], y[batch])
            if layer := _nonfinite_layers(forward.features):
                return stopped(k, layer[0], "features")
            if not np.isfinite(forward.losses).all():
                return stopped(k, net.depth + 1, "outputs")
            features[k] = forward.features
            outputs[k] = forward.outputs
            losses[k] = np.mean(forward.losses)
            if k == update_count:
                break
            pass_adjoints = backward_pass(net, weights, forward)
            if layer := _nonfinite_layers(pass_adjoints):
                return stopped(k, layer[-1], "adjoints")  # the pass runs from layer L down
            adjoints[k] = pass_adjoints
            weights = updated_weights(net, sgd, weights, x[batch], forward, pass_adjoints)
    return _Trajectory(features, adjoints, outputs, losses, None)


def _nonfinite_layers(states: NDArray[Any]) -> list[int]:
    """Return the layers of an (L+1, B, n) array that hold an infinite or undefined entry."""
    return [int(layer) for layer in np.flatnonzero(~np.isfinite(states).all(axis=(1, 2)))]


def _recorded(
    record: tuple[str, ...], net: ResNet, trajectory: _Trajectory
) -> dict[str, Array | MinEigenvalues]:
    """Return outputs, losses and whatever else was asked for."""
    features, adjoints = trajectory.features, trajectory.adjoints
    compute: dict[str, Callable[[], Array | MinEigenvalues]] = {
        "outputs": lambda: trajectory.outputs,
        "losses": lambda: trajectory.losses,
        "features": lambda: features,
        "adjoints": lambda: adjoints,
        "feature_kernels": lambda: observables.feature_kernels(features),
        "adjoint_kernels": lambda: observables.adjoint_kernels(adjoints),
        "feature_movement": lambda: observables.feature_movement(features),
        "min_eigenvalues": lambda: observables.min_eigenvalues(features, adjoints, net.activation),
    }
    return {name: compute[name]() for name in dict.fromkeys(("outputs", "losses", *record))}


def _stacked(values: list[Array | MinEigenvalues]) -> Array | MinEigenvalues:
    """Join one observable of all replicas along a new leading axis."""
    first = values[0]
    if isinstance(first, MinEigenvalues):
        return MinEigenvalues(*(np.stack(parts) for parts in zip(*values, strict=True)))
    return np.stack([_array(value) for value in values])


def _array(value: Array | MinEigenvalues) -> Array:
    assert not isinstance(value, MinEigenvalues)
    return value


def _targets(net: ResNet, sgd: SGD, y: ArrayLike, samples: int) -> NDArray[Any]:
    if sgd.loss == "mse":
        targets = arguments.as_array("y", y)
        if net.outputs == 1 and targets.ndim == 1:
            targets = targets[:, None]
        return arguments.finite_array("y", targets, (samples, net.outputs), "float64")
    if net.outputs < 2:
        raise ValueError(f"outputs must be at least 2 for cross_entropy, got {net.outputs}")
    return _indices("y", y, (samples,), net.outputs)


def _batch_indices(batches: ArrayLike, samples: int) -> NDArray[np.int64]:
    array = arguments.as_array("batches", batches)
    arguments.check_shape("batches", array, ("updates", "batch"))
    if array.size == 0:
        raise ValueError(f"batches must hold at least one update, got shape {array.shape}")
    return _indices("batches", array, array.shape, samples)


def _indices(name: str, value: ArrayLike, shape: tuple[int, ...], bound: int) -> NDArray[np.int64]:
    array = arguments.as_array(name, value)
    if array.dtype.kind not in "iu" or array.shape != shape:
        raise ValueError(
            f"{name} must be integers of shape {shape}, got {arguments.describe(array)}"
        )
    if array.min() < 0 or array.max() >= bound:
        raise ValueError(f"{name} must be in 0 ... {bound - 1}, got {array.min()} to {array.max()}")
    return array.astype(np.int64)


def _checked_weights(net: ResNet, weights: Weights, backward: str, dtype: str) -> Weights:
    """Return explicit weights, without W' if the network has no use for it."""
    n, square = net.width, (net.depth, net.width, net.width)
    expected = {"input": (n, net.inputs), "hidden": square, "readout": (net.outputs, n)}
    if arguments.option("backward", backward, BACKWARDS) == "decoupled":
        expected["backward_hidden"] = square
    for name, shape in expected.items():
        array = getattr(weights, name)
        if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != dtype:
            raise ValueError(
                f"weights.{name} must be a {dtype} array of shape {shape}, "
                f"got {arguments.describe(array)}"
            )
    return Weights(**{name: getattr(weights, name) for name in expected})
