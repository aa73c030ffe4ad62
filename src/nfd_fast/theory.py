"""Infinitely wide networks without sampling: initial kernels, linear networks in training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nfd_fast import _core, arguments, memory
from nfd_fast.extras import MissingExtraError
from nfd_fast.limit import BACKWARD
from nfd_fast.model import ACTIVATIONS, SGD, TRAINABLE, ResNet
from nfd_fast.problem import answers, batch_indices
from nfd_fast.reference.losses import LOSSES
from nfd_fast.threads import thread_count

Array = NDArray[np.float64]

TIMES = 65
"""How many equally spaced times of the limit L = ∞ are returned."""


class InitialKernels(NamedTuple):
    """Kernels of B samples at initialisation, at infinite width.

    Attributes
    ----------
    times : (P,)
        t = l/L of each row; every layer 0 … L, or ``TIMES`` points of [0, 1] for L = ∞.
    features : (P, B, B)
        E[H_l H_lᵀ] of two samples' features.
    adjoints : (P, B, B)
        E[G_l G_lᵀ] of the adjoints of one output with unit seed, G_L = V.
    tangent : (B, B)
        Θ: the first update moves the outputs by δf = −η m Θ χ, with reused weights.
    decoupled_tangent : (B, B)
        The same for the decoupled network, whose updates use adjoints of independent weights.
    """

    times: Array
    features: Array
    adjoints: Array
    tangent: Array
    decoupled_tangent: Array


def initial_kernels(
    net: ResNet,
    x: ArrayLike,
    *,
    train: Sequence[str] = TRAINABLE,
    depth: int | None = None,
    threads: int | None = None,
) -> InitialKernels:
    """Return the kernels of an infinitely wide network at initialisation, without sampling.

    Parameters
    ----------
    net : ResNet
        Activation, horizon and parameterization count; width, depth and outputs do not.
    x : (B, d) array
        Samples.
    train : sequence of str
        The weights whose share of the tangent kernels is wanted.
    depth : int, optional
        L. None is the limit L = ∞ of ``"depth_mup"``.
    threads : int, optional
        Results don't depend on it. Default: the processors of this process.

    Returns
    -------
    InitialKernels

    Raises
    ------
    ValueError
        For invalid arguments, for L = ∞ of a parameterization without that limit, and for kernels
        that overflow, or grow beyond 10⁴ for an activation whose moments have no closed form.
    MissingExtraError
        For L = ∞ without SciPy.
    MemoryError
        If the kernels of all layers don't fit.

    Notes
    -----
    With S_0 = xxᵀ/d and β² = T/L (DESIGN §1, §3.1; n → ∞, where features and adjoints of a network
    with reused weights are those of independent ones)::

        S_l = S_{l-1} + β² E[φφ](S_{l-1})      Γ_{l-1} = Γ_l + β² Γ_l ∘ E[φ'φ'](S_{l-1}),  Γ_L = 1
        Θ = Γ_0 ∘ xxᵀ/d + β² Σ_l Γ_l ∘ E[φφ](S_{l-1}) + S_L

    whose three terms belong to the input, hidden and readout weights. The decoupled network's
    adjoints G' agree with G in V alone, E[G_l G'_l] = 1, which takes the place of Γ_l in Θ; without
    skip connections E[G_l G'_l] = 0 below the last layer. L = ∞ turns sums into integrals over t,
    here by SciPy's DOP853 to 1e-12. Moments have closed forms for identity, relu, abs and erf, and
    are the trapezoidal rule in two dimensions otherwise, to about 1e-14. Of relu and abs the
    adjoints of two samples an angle θ apart are known to 1e-16/θ: S holds no more of a small angle.
    The slope of relu and abs at 0, where the features of a sample x = 0 stay, is 0.

    Examples
    --------
    >>> import numpy as np, nfd_fast as nfd
    >>> net = nfd.ResNet(width=1, depth=1, inputs=2, activation="identity")
    >>> x = [[1.0, 1.0]]  # |x|²/d = 1
    >>> nfd.initial_kernels(net, x, train=["hidden"], depth=4).tangent  # T (1 + T/L)^(L-1)
    array([[1.953125]])
    >>> np.round(nfd.initial_kernels(net, x, train=["hidden"]).tangent, 10)  # T exp T
    array([[2.71828183]])
    """
    arguments.instance("net", net, ResNet)
    samples = arguments.finite_array("x", x, ("samples", net.inputs), np.float64)
    if not len(samples):
        raise ValueError("x must hold at least one sample, got none")
    trained = arguments.subset("train", train, TRAINABLE)
    count = thread_count(threads)
    memory.require(3 * 8.0 * len(samples) ** 2, "take fewer samples")
    with np.errstate(over="ignore"):
        first = samples @ samples.T / net.inputs
    first = (first + first.T) / 2
    _check("x", first)
    if depth is None:
        if net.parameterization != "depth_mup":
            raise ValueError(
                f"depth=None, the limit L = ∞, needs parameterization='depth_mup', got "
                f"{net.parameterization!r}; give a depth"
            )
        return _infinite(net, first, trained, count)
    layers = arguments.integer("depth", depth, high=arguments.MAX_NOISE_DEPTH)
    return _finite(net, first, trained, layers, count)


def _finite(
    net: ResNet, first: Array, trained: tuple[str, ...], depth: int, threads: int
) -> InitialKernels:
    batch = len(first)
    memory.require(4 * 8.0 * (depth + 1) * batch**2, "take a smaller depth or fewer samples")
    factor = net.horizon / depth if net.parameterization == "depth_mup" else net.horizon
    features, adjoints = (np.empty((depth + 1, batch, batch)) for _ in range(2))
    products = np.empty((depth, batch, batch))
    features[0] = first
    index = ACTIVATIONS.index(net.activation)
    _core.initial_kernels(index, factor, net.skip, features, adjoints, products, threads)
    tangent, decoupled = np.zeros_like(first), np.zeros_like(first)
    with np.errstate(over="ignore", invalid="ignore"):
        if "input" in trained:
            tangent += adjoints[0] * first
            decoupled += first if net.skip else 0.0
        if "hidden" in trained:
            tangent += factor * (adjoints[1:] * products).sum(axis=0)
            decoupled += factor * (products.sum(axis=0) if net.skip else products[-1])
        if "readout" in trained:
            tangent += features[-1]
            decoupled += features[-1]
    for kernel in (features, adjoints, tangent, decoupled):
        _check(f"net of depth {depth}", kernel)
    times = np.arange(depth + 1) / depth
    return InitialKernels(times, features, adjoints, tangent, decoupled)


def _infinite(net: ResNet, first: Array, trained: tuple[str, ...], threads: int) -> InitialKernels:
    try:
        from scipy.integrate import solve_ivp
    except ImportError:
        raise MissingExtraError("the limit L = ∞", "scipy", "study") from None
    batch = len(first)
    upper = np.triu_indices(batch)
    count = len(upper[0])
    # Three numbers of a pair at each time, copied once; the matrices of two of them; and what the
    # integrator has of one time.
    memory.require(
        8.0 * (TIMES * (2 * 3 * count + 2 * batch**2) + 40 * 3 * count), "take fewer samples"
    )
    activation, horizon = ACTIVATIONS.index(net.activation), net.horizon
    diagonal = np.flatnonzero(upper[0] == upper[1])

    def rates(_: float, state: Array) -> Array:
        """Of S, I = ∫ T E[φ'φ'], and ∫ T exp(−I) E[φφ], for each pair of samples."""
        kernel, exponent, _hidden = state.reshape(3, count)
        variances = np.maximum(kernel[diagonal], 0.0)
        product, slopes = np.empty(count), np.empty(count)
        _core.gaussian_moments(
            activation,
            variances[upper[0]],
            variances[upper[1]],
            np.ascontiguousarray(kernel),
            product,
            slopes,
            threads,
        )
        _check("net", product)
        grown = horizon * product
        return np.concatenate([grown, horizon * slopes, np.exp(-exponent) * grown])

    start = np.concatenate([first[upper], np.zeros(2 * count)])
    times = np.linspace(0, 1, TIMES)
    size = np.abs(first).max() or 1.0  # nothing but zeros grows to the size of the activation
    atol = 1e-14 * np.repeat([size, 1.0, size], count)
    with np.errstate(over="ignore"):
        found = solve_ivp(rates, (0, 1), start, "DOP853", times, rtol=1e-12, atol=atol)
    if not found.success:
        raise ValueError(f"net must have kernels of moderate size, got: {found.message}")
    kernels, exponents, hidden = found.y.T.reshape(TIMES, 3, count).transpose(1, 0, 2)

    def full(pairs: Array) -> Array:
        matrix = np.empty((*pairs.shape[:-1], batch, batch))
        matrix[..., upper[0], upper[1]] = matrix[..., upper[1], upper[0]] = pairs
        return matrix

    features, adjoints = full(kernels), full(np.exp(exponents[-1] - exponents))
    tangent, decoupled = np.zeros_like(first), np.zeros_like(first)
    if "input" in trained:
        tangent += adjoints[0] * first
        decoupled += first
    if "hidden" in trained:
        tangent += full(np.exp(exponents[-1]) * hidden[-1])
        decoupled += features[-1] - first
    if "readout" in trained:
        tangent += features[-1]
        decoupled += features[-1]
    return InitialKernels(times, features, adjoints, tangent, decoupled)


def _check(name: str, kernel: Array) -> None:
    if not np.isfinite(kernel).all():
        size = "beyond the reach of the quadrature" if np.isnan(kernel).any() else "inf"
        raise ValueError(f"{name} must have kernels of moderate size, got one that is {size}")


class LinearRun(NamedTuple):
    """An infinitely wide linear network in training; rows as of :func:`nfd_fast.train`.

    Attributes
    ----------
    outputs : (K+1, B, C)
    losses : (K+1,)
    feature_kernels : (K+1, L+1, B, B)
        E[H_l H_lᵀ] of each recorded pass.
    adjoint_kernels : (K, L+1, B, B)
        E[G_l G_lᵀ] of each update.
    """

    outputs: Array
    losses: Array
    feature_kernels: Array
    adjoint_kernels: Array


DEPENDENT = 1e-12
"""A column with a smaller share of its norm left is a combination of earlier ones."""


def linear_training(
    net: ResNet,
    sgd: SGD,
    x: ArrayLike,
    y: ArrayLike,
    *,
    batches: ArrayLike,
    coupling: str = "none",
) -> LinearRun:
    """Return the training run of a network with identity activation at n = ∞ and finite depth.

    Without an activation every feature and adjoint is a linear combination of independent standard
    Gaussians: the embeddings of the inputs, the readouts, and one for each new direction that a
    layer is asked about. Inner products over neurons become those of the coefficients, and the run
    is computed from these alone, with no sampling: an oracle for every sampled engine.

    Parameters
    ----------
    net : ResNet
        ``activation="identity"``; its width does not count.
    sgd, x, y, batches
        As in :func:`nfd_fast.train`.
    coupling : str
        ``"none"``: independent backward weights; ``"reused"``: the same ones.

    Returns
    -------
    LinearRun
        Rows as of :func:`nfd_fast.train`, in float64.

    Raises
    ------
    ValueError
        For another activation, for anything that doesn't fit together, and for a run that
        diverges.
    MemoryError
        If the coefficients don't fit: 64 L² ((K+1) B)² bytes, time alike.

    Notes
    -----
    DESIGN §2 in the space of coefficients: the fresh noise ξ of a direction is a unit vector of its
    own, orthogonal to everything before it.

    Examples
    --------
    >>> import nfd_fast as nfd
    >>> net = nfd.ResNet(width=1, depth=4, inputs=1, activation="identity")
    >>> sgd = nfd.SGD(1.0, train=("hidden",))
    >>> run = nfd.theory.linear_training(net, sgd, [[1.0]], [1.0], batches=[[0]])
    >>> run.outputs[:, 0, 0]  # (1 + T/L)^L − 1 of DESIGN §3.4
    array([0.        , 1.44140625])
    """
    arguments.instance("net", net, ResNet)
    arguments.instance("sgd", sgd, SGD)
    if net.activation != "identity":
        raise ValueError(f"net must have activation='identity', got {net.activation!r}")
    arguments.option("coupling", coupling, tuple(BACKWARD))
    samples = arguments.finite_array("x", x, ("samples", net.inputs), np.float64)
    if not len(samples):
        raise ValueError("x must hold at least one sample, got none")
    targets, labels = answers(net, sgd, y, len(samples))
    index = batch_indices(batches, len(samples))
    truth = targets if targets is not None else labels
    assert truth is not None
    updates, batch = index.shape
    network = _LinearNetwork(net, sgd, (updates + 1) * batch, reused=coupling == "reused")
    outputs, losses = np.empty((updates + 1, batch, net.outputs)), np.empty(updates + 1)
    feature_kernels, adjoint_kernels = [], []
    with np.errstate(over="ignore", invalid="ignore"):
        for k, rows in enumerate([*index, index[0]]):
            features = network.forward(samples[rows])
            feature_kernels.append(_kernels(features))
            outputs[k] = features[-1] @ network.readout.T
            each, residuals = LOSSES[sgd.loss](outputs[k], truth[rows])
            losses[k] = each.mean()
            if not (np.isfinite(outputs[k]).all() and np.isfinite(losses[k])):
                raise ValueError(
                    f"sgd must have a learning rate at which training stays finite, got "
                    f"{sgd.learning_rate}, at which outputs overflow after {k} updates"
                )
            if k < updates:
                adjoints = network.update(samples[rows], features, residuals)
                adjoint_kernels.append(_kernels(adjoints))
    return LinearRun(outputs, losses, np.array(feature_kernels), np.array(adjoint_kernels))


def _kernels(layers: list[Array]) -> Array:
    """Return the inner products (L+1, B, B) of each layer's rows of coefficients."""
    return np.array([rows @ rows.T for rows in layers])


class _Asked:
    """Orthonormal directions that a matrix, or its transpose, was asked about, and its answers."""

    def __init__(self, size: int) -> None:
        self.directions, self.answers = np.empty((0, size)), np.empty((0, size))

    def answer(self, column: Array, source: int, across: _Asked | None) -> Array:
        """Return the initial matrix times a column, whose new direction has a source of its own."""
        along = self.directions @ column
        rest = column - along @ self.directions
        again = self.directions @ rest  # orthogonalised twice
        rest -= again @ self.directions
        along += again
        length = float(np.linalg.norm(rest))
        found = along @ self.answers
        if length > DEPENDENT * float(np.linalg.norm(column)):
            direction = rest / length
            image = np.zeros_like(column)
            image[source] = 1.0
            if across is not None:
                image += (across.answers @ direction) @ across.directions
            self.directions = np.vstack([self.directions, direction])
            self.answers = np.vstack([self.answers, image])
            found = found + length * image
        return np.asarray(found)


class _LinearNetwork:
    """Weights and passes of :func:`linear_training`; vectors are rows of coefficients."""

    def __init__(self, net: ResNet, sgd: SGD, columns: int, *, reused: bool) -> None:
        self.net, self.sgd, self.reused, self.columns = net, sgd, reused, columns
        size = net.inputs + net.outputs + 2 * net.depth * columns
        memory.require(32.0 * net.depth * columns * size, "take a smaller depth or fewer columns")
        self.embedding = np.eye(net.inputs, size)  # (d, size)
        self.readout = np.eye(net.outputs, size, net.inputs)  # (C, size)
        self.asked = [(_Asked(size), _Asked(size)) for _ in range(net.depth)]
        self.learned: list[list[tuple[Array, Array]]] = [[] for _ in range(net.depth)]
        self.passes = [0, 0]  # columns so far, forward and backward

    def _through(self, layer: int, block: Array, direction: int) -> Array:
        """Return Ŵ_l times each row of a block, or its transpose's (direction 1)."""
        own, other = self.asked[layer][direction], self.asked[layer][1 - direction]
        first = self.net.inputs + self.net.outputs
        first += (2 * layer + direction) * self.columns + self.passes[direction]
        across = other if self.reused else None
        found = np.array([own.answer(row, first + i, across) for i, row in enumerate(block)])
        for change in self.learned[layer]:  # −η β m Σ_b w_b G_b A_bᵀ
            left, right = change if direction == 0 else change[::-1]
            found += (block @ right.T) @ left
        return found

    def forward(self, x: Array) -> list[Array]:
        layers = [x @ self.embedding / math.sqrt(self.net.inputs)]
        for layer in range(self.net.depth):
            branch = self.net.branch_factor * self._through(layer, layers[-1], 0)
            layers.append(layers[-1] + branch if self.net.skip else branch)
        self.passes[0] += len(x)
        return layers

    def update(self, x: Array, features: list[Array], residuals: Array) -> list[Array]:
        """Make the backward pass of a batch, change what is trained, return G_0 … G_L."""
        net, batch = self.net, len(x)
        single = net.outputs == 1
        above = np.repeat(self.readout, batch, axis=0) if single else residuals @ self.readout
        weights = residuals if single else np.ones((batch, 1))  # (B, 1)
        step = -self.sgd.learning_rate / batch
        adjoints = [above]
        changes = []
        for layer in reversed(range(net.depth)):
            changes.append((step * net.branch_factor * weights * above, features[layer]))
            branch = net.branch_factor * self._through(layer, above, 1)
            above = above + branch if net.skip else branch
            adjoints.append(above)
        self.passes[1] += batch
        trained = self.sgd.train
        if "hidden" in trained:
            for learned, change in zip(self.learned, reversed(changes), strict=True):
                learned.append(change)
        if "input" in trained:
            self.embedding = self.embedding + step / math.sqrt(net.inputs) * x.T @ (weights * above)
        if "readout" in trained:
            self.readout = self.readout + step * residuals.T @ features[-1]
        return adjoints[::-1]
