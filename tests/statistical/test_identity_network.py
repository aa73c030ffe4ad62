"""A network whose training is known in closed form at every finite width and depth.

Identity activation, hidden weights only, |x|²/d = 1, one sample, one update with χ = f − y. To
first order in η the output moves by −η χ Θ with

    Θ = β² Σ_l (|G_l|²/n)(|H_{l-1}|²/n)                      reused
    Θ = β² Σ_l (Vᵀ P_l G'_l/n)(|H_{l-1}|²/n)                 decoupled, P_l = Π_{k>l} (I + β Ŵ_k)

whose factors are independent. E|(I + βŴ)h|² = (1 + β²)|h|², and E P_l P'_lᵀ = I for independent
weights, so with β² = T/L (DESIGN §3.4)

    E Θ = Σ_l (T/L)(1+T/L)^(L-l) (1+T/L)^(l-1) = T (1+T/L)^(L-1)             reused
    E Θ = Σ_l (T/L)(1+T/L)^(l-1)              = (1+T/L)^L − 1                decoupled

exactly, for every n: no limit is taken. Seeds are fixed; a correct network fails a test with
probability 1e-5 (|score| > 4.5 is 7e-6 for a Gaussian mean).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

import nfd_fast
from nfd_fast import reference

REPLICAS = 400
LARGEST_SCORE = 4.5
# Terms of second order in η enter the ratio as η χ times numbers of order 1, and rounding as eps/η:
# both a thousand times below the standard error of about 1e-2.
LEARNING_RATE = 1e-6


def tangent_kernels(
    train: Callable[..., nfd_fast.Run], net: nfd_fast.ResNet, backward: str
) -> np.ndarray:
    """Return Θ of each replica, from the movement of the output."""
    x = np.ones((1, net.inputs))  # |x|²/d = 1
    run = train(
        net,
        nfd_fast.SGD(LEARNING_RATE, train=("hidden",)),
        x,
        np.array([-3.0]),  # χ = f + 3 stays away from zero
        batches=[[0]],
        seed=range(REPLICAS),
        backward=backward,
        dtype="float64",
    )
    before, after = run.outputs[:, 0, 0, 0], run.outputs[:, 1, 0, 0]
    return (before - after) / (LEARNING_RATE * (before + 3))


@pytest.mark.parametrize("source", ["reference", "package"])
@pytest.mark.parametrize("backward", ["reused", "decoupled"])
@pytest.mark.parametrize(("width", "depth", "horizon"), [(24, 4, 1.0), (24, 1, 2.0), (3, 3, 0.5)])
def test_mean_movement(source: str, backward: str, width: int, depth: int, horizon: float) -> None:
    """The mean of Θ over replicas against its exact expectation."""
    train = reference.train if source == "reference" else nfd_fast.train
    net = nfd_fast.ResNet(width, depth, inputs=2, horizon=horizon, activation="identity")
    theta = tangent_kernels(train, net, backward)
    per_layer = horizon / depth
    if backward == "reused":
        expected = horizon * (1 + per_layer) ** (depth - 1)
    else:
        expected = (1 + per_layer) ** depth - 1
    score = (theta.mean() - expected) / (theta.std(ddof=1) / math.sqrt(REPLICAS))
    assert abs(score) <= LARGEST_SCORE


def test_the_two_networks_differ() -> None:
    """Sharpness of this file: on the same weights W, W_in and V the two means are far apart."""
    net = nfd_fast.ResNet(24, 4, inputs=2, activation="identity")
    reused, decoupled = (
        tangent_kernels(nfd_fast.train, net, backward) for backward in ("reused", "decoupled")
    )
    difference = reused - decoupled
    score = difference.mean() / (difference.std(ddof=1) / math.sqrt(REPLICAS))
    assert score > 2 * LARGEST_SCORE
