"""Particles stepped through the layers against the kernels of infinitely many of them."""

from __future__ import annotations

import math

import numpy as np
import pytest

import nfd_fast as nfd
from nfd_fast import kernels

stats = pytest.importorskip("scipy.stats", reason="scipy is in the study extra")

X = np.array([[1.0, 0.4, -0.3], [-0.5, 1.1, 0.8], [0.9, -0.7, 1.2]])


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_kernels_of_the_forward_equation(activation: str) -> None:
    """dh = √T du by 16 steps: HᵀH/n at every layer is the kernel of depth 16 without sampling.

    The mean over 60 seeds of a particle average is within its standard error times the quantile of
    Student's t for a false alarm in 1e-5 of tests, shared by 17 layers and 6 entries, of a value
    that is itself off by O(1/n): by 0.6/n (tanh) and 1.5/n (relu) at most, each ± 1, in 3000
    replicas of 200 particles; 4/n is allowed.
    """
    horizon, depth, particles, replicas = 1.5, 16, 2000, 60
    net = nfd.ResNet(1, 1, 3, horizon=horizon, activation=activation)
    expected = nfd.initial_kernels(net, X, depth=depth).features
    found = np.empty((replicas, depth + 1, 3, 3))
    for seed in range(replicas):
        h = X @ kernels.normal(seed, "input", particles, columns=range(3), dtype="float64")
        h /= math.sqrt(3)
        layers = kernels.euler_maruyama(
            h,
            depth=depth,
            branch_factor=math.sqrt(horizon / depth),
            seed=seed,
            activation=activation,
        )
        found[seed] = layers @ layers.swapaxes(1, 2) / particles
    error = found.std(axis=0, ddof=1) / math.sqrt(replicas)
    quantile = stats.t.isf(1e-5 / (2 * 17 * 6), replicas - 1)
    assert (np.abs(found.mean(axis=0) - expected) < quantile * error + 4 / particles).all()
    assert (quantile * error < 0.1 * np.abs(expected).max()).all()  # and that says something
