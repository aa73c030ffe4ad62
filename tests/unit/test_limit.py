"""The limits: which network they are in law, their closed forms, and what is refused."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest

import nfd_fast as nfd

NET = nfd.ResNet(width=3, depth=5, inputs=2)
SGD = nfd.SGD(0.2)
X, Y = np.array([[1.0, 0.3], [-0.4, 0.9]]), np.array([1.0, -1.0])
BATCHES = [[0, 1], [1, 0]]


@pytest.mark.parametrize(("coupling", "backward"), [("none", "decoupled"), ("reused", "reused")])
def test_a_system_of_particles_is_a_network(coupling: str, backward: str) -> None:
    options: dict[str, Any] = {
        "batches": BATCHES,
        "seed": [3, 4],
        "noise_depth": 10,
        "dtype": "float64",
        "record": ["features", "adjoints"],
    }
    limit = nfd.solve_limit(NET, SGD, X, Y, particles=40, coupling=coupling, **options)
    wide = nfd.ResNet(width=40, depth=5, inputs=2)
    network = nfd.train(wide, SGD, X, Y, backward=backward, engine="conditional", **options)
    assert (limit.net, limit.engine, limit.backward) == (wide, "conditional", backward)
    for name in ("outputs", "losses", "features", "adjoints"):
        assert np.array_equal(limit.observables[name], network.observables[name])


@pytest.mark.parametrize(("coupling", "expected"), [("none", math.expm1(1.0)), ("reused", math.e)])
def test_the_two_limits_are_two(coupling: str, expected: float) -> None:
    """Identity, hidden weights: exp T − 1 and T exp T (DESIGN §3.4), T = 1, 128 steps.

    The mean of 32 replicas within 5.5 standard errors (31 degrees of freedom: 5e-6) and a bias of
    1/L; which tells the limits, 1 apart, beyond doubt.
    """
    net = nfd.ResNet(1, 128, 1, activation="identity")
    sgd = nfd.SGD(1e-3, train=("hidden",))
    run = nfd.solve_limit(
        net, sgd, [[1.0]], [2.0], batches=[[0]], particles=4000, coupling=coupling,
        seed=range(32), dtype="float64",
    )  # fmt: skip
    before, after = run.outputs[:, 0, 0, 0], run.outputs[:, 1, 0, 0]
    moved = (before - after) / (1e-3 * (before - 2.0))
    error = moved.std(ddof=1) / math.sqrt(32)
    assert error < 0.03
    assert abs(moved.mean() - expected) < 5.5 * error + 2 * expected / 128


def test_standard_errors() -> None:
    run = nfd.solve_limit(NET, SGD, X, Y, batches=BATCHES, particles=50, seed=range(5))
    expected = run.outputs.std(axis=0, ddof=1) / math.sqrt(5)
    np.testing.assert_allclose(run.standard_errors(), expected, rtol=1e-14)
    assert run.standard_errors("losses").shape == (3,)
    with pytest.raises(ValueError, match="name must be one of 'outputs', 'losses', got 'features'"):
        run.standard_errors("features")
    for seed in (0, [0]):
        single = nfd.solve_limit(NET, SGD, X, Y, batches=BATCHES, particles=50, seed=seed)
        with pytest.raises(ValueError, match="an ensemble of at least 2 seeds, got 1"):
            single.standard_errors()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"net": 3}, "net must be an nfd_fast.ResNet, got 3"),
        (
            {"net": nfd.ResNet(1, 1, 2, parameterization="mlp")},
            "net must have parameterization='depth_mup', which has limits of infinite depth",
        ),
        ({"coupling": "decoupled"}, "coupling must be one of 'none', 'reused', got 'decoupled'"),
        ({"particles": 0}, "particles must be a positive integer"),
        ({"particles": 1e5}, "particles must be a positive integer of at most 4294967296, got 100"),
        ({"x": X[:, :1]}, "x must have shape (samples, 2), got (2, 1)"),
        ({"record": ["coupling_per_layer"]}, "needs backward='reused', got 'decoupled'"),
    ],
)
def test_refusals(changes: dict[str, Any], message: str) -> None:
    given = {"net": NET, "sgd": SGD, "x": X, "y": Y, "batches": BATCHES} | changes
    with pytest.raises(ValueError, match=re.escape(message)):
        nfd.solve_limit(**given)
