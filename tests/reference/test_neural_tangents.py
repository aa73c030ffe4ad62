"""Kernels of infinite width against the package neural-tangents, whose networks these are too.

Novak et al., arXiv:1912.02803. In its terms DESIGN §1 is: W_in x/√d a dense layer without bias; L
blocks x + √(T/L) Dense(φ(x)); f = V·H_L/√n another dense layer, whose kernel is not scaled by 1/n
once more as ours; the tangent kernel of all weights is Θ.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest

import nfd_fast as nfd

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the libraries it stands on
    jax = pytest.importorskip("jax", reason="the oracle is in the extra 'neural-tangents'")
    stax = pytest.importorskip(
        "neural_tangents.stax", reason="the oracle is in the extra 'neural-tangents'"
    )

ACTIVATIONS = {
    "identity": stax.Identity,
    "relu": stax.Relu,
    "abs": stax.Abs,
    "erf": stax.Erf,
}
X = np.array([[1.0, 0.4, -0.3], [-0.5, 1.1, 0.8], [0.9, -0.7, 1.2], [1.0, 0.4, -0.29]])


def kernels(network: Any, wanted: str) -> np.ndarray:
    _, _, kernel = network
    with jax.experimental.enable_x64(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.array(kernel(jax.numpy.asarray(X), None, wanted))


def layers(activation: str, depth: int, horizon: float, *, skip: bool) -> list[Any]:
    branch = stax.serial(
        ACTIVATIONS[activation](),
        stax.Dense(1, W_std=math.sqrt(horizon / depth if skip else horizon), b_std=None),
    )
    block = (
        stax.serial(stax.FanOut(2), stax.parallel(stax.Identity(), branch), stax.FanInSum())
        if skip
        else branch
    )
    return [stax.Dense(1, W_std=1, b_std=None), *[block] * depth]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("depth", "horizon"), [(1, 1.0), (5, 0.5), (24, 2.0)])
@pytest.mark.parametrize("parameterization", ["depth_mup", "mlp"])
def test_kernels(activation: str, depth: int, horizon: float, parameterization: str) -> None:
    """Both in float64: some tens of roundings for each layer, magnified near parallel samples.

    The last sample is 1e-2 away from the first: 1 minus their correlation, 3e-5, is known to
    1e-16/3e-5. Taken together 1e-10 is ample. A sample and itself are another matter: of relu and
    abs the other package knows the angle 0 to √eps = 1.5e-8 alone, in each layer's φ'φ'. There it
    is compared to that, and ours with q c^L for features and q (2 c^L + L g c^(L-1)) for Θ, where
    g = β² E[φ²]/q and c = 1 + g with the skip connection, g without.
    """
    skip = parameterization == "depth_mup"
    net = nfd.ResNet(1, depth, 3, 1, horizon, activation, parameterization)
    found = nfd.initial_kernels(net, X, depth=depth)
    below = layers(activation, depth, horizon, skip=skip)
    features = kernels(stax.serial(*below), "nngp")
    readout = stax.Dense(1, W_std=1, b_std=None)
    tangent = kernels(stax.serial(*below, readout), "ntk")
    np.testing.assert_allclose(found.features[-1], features, rtol=1e-10)
    if activation in ("relu", "abs"):
        variances = np.diag(X @ X.T) / 3
        growth = net.branch_factor**2 * (0.5 if activation == "relu" else 1.0)
        factor = growth + 1 if skip else growth
        expected = variances * (2 * factor**depth + depth * growth * factor ** (depth - 1))
        np.testing.assert_allclose(np.diag(found.tangent), expected, rtol=1e-13)
        np.testing.assert_allclose(np.diag(tangent), expected, rtol=3e-8 * depth)
        np.fill_diagonal(tangent, expected)
    np.testing.assert_allclose(found.tangent, tangent, rtol=1e-10)
