"""Kernels of infinitely wide networks at initialisation (DESIGN §1, §3.1, §5)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nfd_fast.model import ResNet
from nfd_fast.reference.activations import activation, activation_derivative

Array = NDArray[np.float64]

_END = 9.0  # standard deviations; beyond lie 1e-19 of the weight
_NODES = 96  # per smooth piece


def _rule(split: Array) -> tuple[Array, Array]:
    """Gauss–Legendre nodes and normal weights on [−9, 9], cut where φ may have a kink.

    For cuts (m,) arrays (m, nodes).
    """
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    middle = np.clip(split, -_END, _END)[:, None]
    points, shares = [], []
    for low, high in ((-_END, middle), (middle, _END)):
        x = low + (high - low) * (nodes + 1) / 2
        points.append(x)
        shares.append(weights * (high - low) / 2 * np.exp(-x * x / 2) / np.sqrt(2 * np.pi))
    return np.concatenate(points, axis=1), np.concatenate(shares, axis=1)


def gaussian_moments(name: str, first: float, second: float, covariance: float) -> Array:
    """E[φ(u)φ(v)] and E[φ'(u)φ'(v)] of a centred Gaussian pair, (2,).

    u = √a z and v = (c/√a) z + √(b − c²/a) w with independent normals z and w.
    """
    scale = np.sqrt(first)
    along = covariance / scale if scale > 0 else 0.0
    across = np.sqrt(max(second - along**2, 0.0))
    (z,), (weights,) = _rule(np.zeros(1))
    # The inner kink is where along z + across w = 0.
    w, shares = _rule(-along * z / across if across > 0 else 0 * z)
    inner = along * z[:, None] + across * w
    moments = [
        weights @ (phi(name, scale * z) * (shares * phi(name, inner)).sum(axis=1))
        for phi in (activation, activation_derivative)
    ]
    return np.array(moments)


def initial_kernels(
    net: ResNet, x: ArrayLike, *, train: tuple[str, ...], depth: int
) -> tuple[Array, Array, Array, Array]:
    """Return features (L+1, B, B), adjoints (L+1, B, B), tangent, decoupled tangent (B, B).

    Decoupled: E[G_l G'_l] in place of Γ_l of the last line::

        S_0 = xxᵀ/d    S_l = S_{l-1} + β² E[φφ](S_{l-1})
        Γ_L = 1        Γ_{l-1} = Γ_l + β² Γ_l∘E[φ'φ'](S_{l-1})
        Θ = Γ_0∘S_0 + β² Σ_l Γ_l∘E[φφ](S_{l-1}) + S_L
    """
    samples = np.asarray(x, dtype=np.float64)
    factor = net.horizon / depth if net.parameterization == "depth_mup" else net.horizon
    kernel = samples @ samples.T / net.inputs
    features, products, slopes = [kernel], [], []
    for _ in range(depth):
        variances = np.diagonal(kernel)
        moments = np.empty((len(samples), len(samples), 2))
        for i, j in zip(*np.triu_indices(len(samples)), strict=True):
            pair = variances[i], variances[j], kernel[i, j]
            moments[i, j] = moments[j, i] = gaussian_moments(net.activation, *pair)
        products.append(moments[..., 0])
        slopes.append(moments[..., 1])
        kernel = (kernel if net.skip else 0.0) + factor * products[-1]
        features.append(kernel)
    adjoints = [np.ones_like(kernel)]
    cross = [np.ones_like(kernel)]  # E[G G'], G' of independent backward weights
    for slope in reversed(slopes):
        adjoints.append((adjoints[-1] if net.skip else 0.0) + factor * adjoints[-1] * slope)
        cross.append(cross[-1] if net.skip else np.zeros_like(kernel))
    adjoints.reverse()
    cross.reverse()
    tangents = []
    for above in (adjoints, cross):
        tangent = np.zeros_like(kernel)
        if "input" in train:
            tangent = tangent + above[0] * features[0]
        if "hidden" in train:
            tangent = tangent + factor * sum(
                g * p for g, p in zip(above[1:], products, strict=True)
            )
        if "readout" in train:
            tangent = tangent + features[-1]
        tangents.append(tangent)
    return np.array(features), np.array(adjoints), tangents[0], tangents[1]
