"""Infinitely wide networks at initialisation: kernels without sampling (DESIGN §3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nfd_fast import _core, arguments, memory
from nfd_fast.extras import MissingExtraError
from nfd_fast.model import ACTIVATIONS, TRAINABLE, ResNet
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
    are the trapezoidal rule in two dimensions otherwise, to about 1e-14.

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
    with np.errstate(over="ignore"):
        found = solve_ivp(
            rates, (0, 1), start, "DOP853", times, rtol=1e-12, atol=1e-14 * np.abs(first).max()
        )
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
        raise ValueError(
            f"{name} must have kernels of moderate size, got one that is {_largest(kernel)}"
        )


def _largest(kernel: Array) -> str:
    return "beyond the reach of the quadrature" if np.isnan(kernel).any() else str(math.inf)
