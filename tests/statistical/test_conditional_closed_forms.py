"""The conditional engine against the closed forms of DESIGN §3.4.

Identity activation, hidden weights only, |x|²/d = 1, one sample. The expectation of the output's
movement is exact at every width (``test_identity_network.py``); here also networks far too wide to
store. The coupling after one update is D_l = −ηχβ a_l G_l with a_l = (l−1)(T/L)(1+T/L)^(l−2) as
n → ∞. Read from the last layer to the first the network is the same one with W transposed, so that
the backward coupling has the coefficient a_{L+1−l} at layer l, along a feature of the same norm
as the adjoint's there.

Seeds are fixed; a correct network fails a test with probability 1e-5 (|score| > 4.5 is 7e-6 for a
Gaussian mean; tests of several means widen it as written).
"""

from __future__ import annotations

import math

import numpy as np
import pytest

import nfd_fast as nfd

LARGEST_SCORE = 4.5
TARGET = -3.0  # χ = f + 3 stays away from zero


def train(net: nfd.ResNet, rate: float, updates: int, replicas: int, **options: object) -> nfd.Run:
    return nfd.train(
        net,
        nfd.SGD(rate, train=("hidden",)),
        np.ones((1, net.inputs)),  # |x|²/d = 1
        np.array([TARGET]),
        batches=[[0]] * updates,
        seed=range(replicas),
        engine="conditional",
        **options,  # type: ignore[arg-type]
    )


# Second order in η: ηχ times numbers of order one, relative. Rounding: eps averaged over neurons,
# divided by η. Both stay below a fifth of the standard error of the mean, asserted at > 1e-3.
@pytest.mark.parametrize("backward", ["reused", "decoupled"])
@pytest.mark.parametrize(
    ("width", "depth", "horizon", "replicas", "rate", "dtype"),
    [
        (1, 2, 0.5, 4000, 1e-5, "float64"),
        (3, 3, 0.5, 4000, 1e-5, "float64"),
        (24, 4, 1.0, 2000, 1e-5, "float64"),
        (24, 1, 2.0, 2000, 1e-5, "float64"),
        (20_000, 1, 1.0, 32, 1e-5, "float64"),
        (20_000, 2, 2.0, 32, 1e-5, "float64"),
        (20_000, 16, 1.0, 32, 1e-5, "float64"),
        (20_000, 16, 0.3, 32, 1e-5, "float64"),
        (20_000, 8, 1.0, 32, 3e-4, "float32"),
    ],
)
def test_mean_movement(
    width: int,
    depth: int,
    horizon: float,
    replicas: int,
    rate: float,
    dtype: str,
    backward: str,
    device: str,
) -> None:
    """E (f_0 − f_1)/(ηχ): T(1+T/L)^(L−1) with reused weights, (1+T/L)^L − 1 decoupled."""
    net = nfd.ResNet(width, depth, inputs=2, horizon=horizon, activation="identity")
    run = train(net, rate, 1, replicas, backward=backward, dtype=dtype, device=device)
    before, after = run.outputs[:, 0, 0, 0], run.outputs[:, 1, 0, 0]
    movement = (before - after) / (rate * (before - TARGET))
    growth = 1 + horizon / depth
    expected = growth**depth - 1
    if backward == "reused":
        expected = horizon * growth ** (depth - 1)
    error = movement.std(ddof=1) / math.sqrt(replicas)
    assert error > 1e-3 * expected  # far above the bias
    assert abs(movement.mean() - expected) <= LARGEST_SCORE * error


def expected_couplings(depth: int, horizon: float) -> tuple[np.ndarray, float]:
    """Return the mean squares of βD_l, and of their sum over layers, in units of (ηχ)²."""
    per = horizon / depth
    layers = np.arange(1, depth + 1)
    a = (layers - 1) * per * (1 + per) ** (layers - 2.0)
    lengths = (1 + per) ** (depth - layers.astype(float))  # |G_l|²/n
    mixed = (1 + per) ** (depth - np.maximum.outer(layers, layers).astype(float))
    return per**2 * a**2 * lengths, per**2 * float(a @ mixed @ a)


def score_couplings(
    direction: str,
    run: nfd.Run,
    expected: tuple[np.ndarray, float],
    bias: float,
    floor: float,
    known: float,
) -> None:
    """Compare means at row 1 to ``bias`` (relative), ``floor`` (per layer) and 5.5 errors."""
    replicas = len(run.seeds)
    step = run.sgd.learning_rate * (run.outputs[:, 0, 0, 0] - TARGET)
    depth = run.net.depth
    wanted = np.array([*expected[0], expected[1]])
    floors = floor * np.array([1.0] * depth + [depth])
    found = np.concatenate(
        [
            np.asarray(run.observables[f"{direction}coupling_per_layer"])[:, 1],
            np.asarray(run.observables[f"{direction}coupling_accumulated"])[:, 1:2],
        ],
        axis=1,
    )
    units = found / step[:, None] ** 2
    error = units.std(axis=0, ddof=1) / math.sqrt(replicas)
    slack = bias * wanted + floors / np.mean(step**2)
    assert (np.abs(units.mean(axis=0) - wanted) <= 5.5 * error + slack).all()
    # Sharpness: the share of the accumulated one that it is known to.
    assert 5.5 * error[-1] + slack[-1] < known * wanted[-1]


HORIZONS = [(2, 1.0), (4, 0.5), (8, 1.0), (16, 2.0)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("depth", "horizon"), HORIZONS)
def test_forward_couplings(depth: int, horizon: float, dtype: str, device: str) -> None:
    """Per layer and accumulated, after one update.

    Against the limit the bias is O(L/n), 1e-3, plus O(η|χ|), 3e-3 T, granted several times. What
    the sample's movement shares with its adjoint by chance is of relative square 1/n, hence a floor
    of (ηχ)²(T/L)·(size of the movement)²/n. Bonferroni over 17 means and 8 cases: 5.5, 4e-8 each.
    """
    width, rate = 20_000, 1e-3
    net = nfd.ResNet(width, depth, inputs=2, horizon=horizon, activation="identity")
    names = ["coupling_per_layer", "coupling_accumulated"]
    run = train(net, rate, 2, 24, dtype=dtype, record=names, device=device)
    step = 3 * rate
    size = (math.exp(horizon) * horizon) ** 2
    floor = 5 * step**2 * horizon / depth * size / width
    score_couplings("", run, expected_couplings(depth, horizon), 0.02 * (1 + horizon), floor, 0.2)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("depth", "horizon"), [(8, 1.0), (6, 2.0)])
def test_backward_couplings(depth: int, horizon: float, dtype: str, device: str) -> None:
    """The mirror image, in the pass after one update.

    The first adjoint was itself asked after a feature, so that there is a floor of β²|G|²/n that
    does not shrink with η: a larger step, in wider networks, and a larger bias, O(η|χ|) = 0.03 T.
    """
    width, rate = 100_000, 1e-2
    net = nfd.ResNet(width, depth, inputs=2, horizon=horizon, activation="identity")
    names = ["backward_coupling_per_layer", "backward_coupling_accumulated"]
    run = train(net, rate, 2, 64, dtype=dtype, record=names, device=device)
    per_layer, accumulated = expected_couplings(depth, horizon)
    floor = 3 * horizon / depth * math.exp(horizon) / width
    expected = (per_layer[::-1], accumulated)
    score_couplings("backward_", run, expected, 0.05 * (1 + horizon), floor, 0.6)
