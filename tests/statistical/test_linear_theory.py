"""Linear networks at infinite width: closed forms, and every sampled engine within its interval."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any

import numpy as np
import pytest

import nfd_fast as nfd
from nfd_fast import theory
from nfd_fast.model import TRAINABLE
from nfd_fast.statistics import WidthErrors, fit_rate, width_errors
from nfd_fast.theory import linear_training

HIDDEN = nfd.SGD(1.0, train=("hidden",))


def moved(depth: int, horizon: float, coupling: str) -> float:
    """Response of the output to the first update of size 1."""
    net = nfd.ResNet(1, depth, 1, horizon=horizon, activation="identity")
    run = linear_training(net, HIDDEN, [[1.0]], [1.0], batches=[[0]], coupling=coupling)
    assert run.outputs[0] == 0
    assert run.losses[0] == 0.5
    return float(run.outputs[1, 0, 0])


@pytest.mark.parametrize("horizon", [0.1, 1.0, 2.0])
@pytest.mark.parametrize("depth", [1, 2, 5, 32])
def test_the_first_update(depth: int, horizon: float) -> None:
    """DESIGN §3.4."""
    growth = 1 + horizon / depth
    assert moved(depth, horizon, "none") == pytest.approx(growth**depth - 1, rel=1e-12)
    expected = horizon * growth ** (depth - 1)
    assert moved(depth, horizon, "reused") == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("horizon", [0.5, 1.0])
def test_the_limit_of_depth(horizon: float) -> None:
    """exp T − 1 and T exp T, by Richardson's extrapolation in 1/L."""
    for coupling, limit in (
        ("none", math.expm1(horizon)),
        ("reused", horizon * math.exp(horizon)),
    ):
        rows = [moved(depth, horizon, coupling) for depth in (8, 16, 32, 64)]
        for power in (2, 4, 8):
            rows = [(power * b - a) / (power - 1) for a, b in itertools.pairwise(rows)]
        assert rows[0] == pytest.approx(limit, rel=1e-4)


X = np.array([[1.0, 0.4, -0.3], [-0.5, 1.1, 0.8], [0.9, -0.7, 1.2], [0.2, 0.3, -1.4]])
BATCHES = [[0, 1], [2, 3], [0, 2], [1, 1]]
CASES: dict[str, tuple[int, Any, str, float]] = {
    "mse": (1, nfd.SGD(0.5), "depth_mup", 0.5),
    "cross entropy": (3, nfd.SGD(0.5, "cross_entropy"), "depth_mup", 1.0),
    "C=2, hidden and readout": (2, nfd.SGD(0.4, train=("hidden", "readout")), "depth_mup", 1.0),
    "input": (1, nfd.SGD(0.4, train=("input",)), "depth_mup", 0.5),
    "hidden": (1, nfd.SGD(0.4, train=("hidden",)), "depth_mup", 1.0),
    "mlp": (2, nfd.SGD(0.1), "mlp", 0.7),
    "mup": (1, nfd.SGD(0.2), "mup", 0.1),
    "nothing": (1, nfd.SGD(0.5, train=()), "depth_mup", 1.0),
}


def case(name: str, width: int) -> tuple[nfd.ResNet, nfd.SGD, np.ndarray]:
    outputs, sgd, parameterization, horizon = CASES[name]
    net = nfd.ResNet(width, 4, 3, outputs, horizon, "identity", parameterization)
    if sgd.loss == "cross_entropy":
        return net, sgd, np.array([0, 2, 1, 2])
    targets = np.outer([1.0, -1.0, 2.0, 0.5], np.linspace(1, -1, outputs) if outputs > 1 else [1])
    return net, sgd, targets


@pytest.mark.parametrize("coupling", ["none", "reused"])
@pytest.mark.parametrize("name", CASES)
def test_sampled_networks_agree(name: str, coupling: str) -> None:
    """Four updates of 24 networks of width 20,000: every mean output within 6.5 standard errors.

    Student's t with 23 degrees of freedom exceeds that with probability 1.2e-6; over at most 30
    outputs in 16 cases, some of one mould, below 1e-3 altogether (seeds are fixed). The bias,
    O(1/n), is granted ten times 1/n.
    """
    net, sgd, y = case(name, 20_000)
    expected = linear_training(net, sgd, X, y, batches=BATCHES, coupling=coupling)
    run = nfd.solve_limit(
        nfd.ResNet(1, 4, 3, net.outputs, net.horizon, "identity"), sgd, X, y, batches=BATCHES,
        particles=20_000, coupling=coupling, seed=range(24), dtype="float64",
    ) if net.parameterization == "depth_mup" else nfd.train(
        net, sgd, X, y, batches=BATCHES, backward=theory.BACKWARD[coupling], seed=range(24),
        dtype="float64", engine="conditional",
    )  # fmt: skip
    errors = run.standard_errors()
    size = 1 + np.abs(expected.outputs).max()
    difference = np.abs(run.outputs.mean(axis=0) - expected.outputs)
    assert (difference <= 6.5 * errors + 1e-3 * size).all()
    assert errors.max() < 0.02 * size
    losses = np.abs(run.losses.mean(axis=0) - expected.losses)
    assert (losses <= 6.5 * run.standard_errors("losses") + 5e-3 * size**2).all()


def test_the_dense_engine_agrees() -> None:
    net, sgd, y = case("mse", 600)
    for coupling, backward in theory.BACKWARD.items():
        expected = linear_training(net, sgd, X, y, batches=BATCHES, coupling=coupling)
        run = nfd.train(
            net, sgd, X, y, batches=BATCHES, backward=backward, seed=range(60), engine="dense"
        )
        difference = np.abs(run.outputs.mean(axis=0) - expected.outputs)
        assert (difference <= 6 * run.standard_errors() + 10 / 600).all()


@pytest.mark.parametrize("coupling", ["none", "reused"])
@pytest.mark.parametrize("name", ["mse", "hidden"])
def test_the_rate_in_width_after_training(name: str, coupling: str) -> None:
    """Outputs and kernels of every pass near those of n = ∞ as 1/n, through four updates.

    Slopes −1 within 4.6 standard errors of the bootstrap (4e-6 each, 14 of them a test: 6e-5), and
    0.06 for the next term, of relative order 1/n with a constant that grows with training. (With
    several outputs adjoints start from χ: as it falls, the square of its error, 1/n², leads.)
    """
    widths = [400, 800, 1600, 3200]
    errors = []
    for width in widths:
        net, sgd, y = case(name, width)
        limit = linear_training(net, sgd, X, y, batches=BATCHES, coupling=coupling)
        run = nfd.train(
            net, sgd, X, y, batches=BATCHES, backward=theory.BACKWARD[coupling],
            seed=range(width, width + 300), engine="conditional", dtype="float64",
            record=["feature_kernels", "adjoint_kernels"],
        )  # fmt: skip
        errors.append(width_errors(run, limit))
    for part in WidthErrors._fields:
        for column in np.stack([getattr(e, part) for e in errors], axis=-1).swapaxes(0, 1):
            rate = fit_rate(widths, column)
            error = (rate.high - rate.low) / (2 * 1.96)
            assert error < 0.08, part
            assert abs(rate.slope + 1) < 4.6 * error + 0.06, part


def test_kernels_of_linear_networks_at_initialisation() -> None:
    """As :func:`nfd.initial_kernels` has them, which knows nothing of the recursion."""
    net, sgd, y = case("mse", 1)
    run = linear_training(net, sgd, X, y, batches=[[2, 0]])
    kernels = nfd.initial_kernels(net, X[[2, 0]], depth=net.depth)
    np.testing.assert_allclose(run.feature_kernels[0], kernels.features, rtol=1e-12)
    np.testing.assert_allclose(run.adjoint_kernels[0], kernels.adjoints, rtol=1e-12)
    assert run.feature_kernels.shape == (2, 5, 2, 2)
    assert run.adjoint_kernels.shape == (1, 5, 2, 2)


def test_width_errors_refuse() -> None:
    net, sgd, y = case("mse", 20)
    limit = linear_training(net, sgd, X, y, batches=BATCHES)
    options: dict[str, Any] = {"batches": BATCHES, "record": ["feature_kernels"]}
    run = nfd.train(net, sgd, X, y, **options)
    other = linear_training(net, sgd, X, y, batches=BATCHES[:2])
    for given, message in (
        ((3, limit), "run must be an nfd_fast.Run, got 3"),
        ((run, 3), "limit must be an nfd_fast.LinearRun, got 3"),
        ((run, limit), "run must have recorded 'adjoint_kernels'"),
        ((run, other), "limit must have run's outputs, of shape (5, 2, 1), got (3, 2, 1)"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            width_errors(*given)  # type: ignore[arg-type]


def test_the_couplings_are_told_apart() -> None:
    net, sgd, y = case("mse", 1)
    none, reused = (
        linear_training(net, sgd, X, y, batches=BATCHES, coupling=c).outputs
        for c in ("none", "reused")
    )
    assert np.abs(none - reused).max() > 0.1


def test_a_gradient_that_is_met_moves_nothing() -> None:
    """Targets 0 are met at n = ∞ from the start."""
    net = nfd.ResNet(1, 3, 3, activation="identity")
    run = linear_training(net, nfd.SGD(3.0, train=TRAINABLE), X, np.zeros(4), batches=BATCHES)
    assert not run.outputs.any()
    assert not run.losses.any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"net": nfd.ResNet(1, 3, 3)}, "net must have activation='identity', got 'tanh'"),
        ({"net": 3}, "net must be an nfd_fast.ResNet"),
        ({"sgd": 3}, "sgd must be an nfd_fast.SGD"),
        ({"coupling": "both"}, "coupling must be one of 'none', 'reused', got 'both'"),
        ({"x": X[:, :2]}, "x must have shape (samples, 3), got (4, 2)"),
        ({"x": X[:0]}, "x must hold at least one sample, got none"),
        ({"y": np.zeros(3)}, "y must have shape (4, 1), got (3, 1)"),
        ({"batches": [[4]]}, "batches must be indices in 0 ... 3, got 4"),
        ({"sgd": nfd.SGD(1e200)}, "sgd must have a learning rate at which training stays finite"),
    ],
)
def test_refusals(changes: dict[str, Any], message: str) -> None:
    given = {
        "net": nfd.ResNet(1, 3, 3, activation="identity"),
        "sgd": nfd.SGD(0.1),
        "x": X,
        "y": np.ones(4),
        "batches": BATCHES,
    } | changes
    with pytest.raises(ValueError, match=re.escape(message)):
        linear_training(**given)


def test_coefficients_beyond_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(theory.memory, "available_bytes", lambda: 2**30)
    net = nfd.ResNet(1, 1000, 3, activation="identity")
    with pytest.raises(MemoryError, match="take a smaller depth or fewer columns"):
        linear_training(net, nfd.SGD(0.1), X, np.ones(4), batches=BATCHES)
