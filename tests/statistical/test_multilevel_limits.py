"""The multilevel estimator against limits known without sampling, and against one level.

Seeds are fixed; each test has a false-alarm budget of 1e-5.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import nfd_fast as nfd
from nfd_fast.multilevel import multilevel_limit
from nfd_fast.theory import linear_training

pytest.importorskip("scipy", reason="scipy is in the study extra")

BUDGET = 1e-5
COUPLINGS = ["none", "reused"]
X = np.array([[1.0, 0.4, -0.3], [-0.5, 1.1, 0.8], [0.9, -0.7, 1.2], [0.2, 0.3, -1.4]])
Y = np.array([1.0, -1.0, 2.0, 0.5])
BATCHES = [[0, 1], [2, 3], [0, 2]]


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_linear_training(coupling: str) -> None:
    """Every output of three updates within its interval of what infinitely wide networks give.

    At L = 32 within the interval, at L = ∞ (Richardson's extrapolation of the exact outputs at 64
    and 128, to 1e-4) within the interval and the stated bias. 16 intervals share the budget, of 5
    standard errors each. The particles' own bias is at most 3/N (seen with N = 50 and 200), 3e-4
    here and a sixth of the standard error, granted on top.
    """
    net = nfd.ResNet(1, 1, 3, horizon=0.5, activation="identity")
    sgd = nfd.SGD(0.3)
    found = multilevel_limit(
        net, sgd, X, Y, batches=BATCHES, coupling=coupling, particles=10_000,
        depths=(4, 8, 16, 32), error=2e-3, confidence=1 - BUDGET / 16, dtype="float64",
    )  # fmt: skip

    def exact(depth: int) -> np.ndarray:
        deep = nfd.ResNet(1, depth, 3, horizon=0.5, activation="identity")
        return linear_training(deep, sgd, X, Y, batches=BATCHES, coupling=coupling).outputs

    expected, width_bias = exact(32), 3e-4
    assert (found.value.low - width_bias <= expected).all()
    assert (expected <= found.value.high + width_bias).all()
    limit = 2 * exact(128) - exact(64)
    for interval, bias in (
        (found.value, found.bias + width_bias),
        (found.extrapolated, found.extrapolated_bias + width_bias + 1e-4),
    ):
        assert (interval.low - bias <= limit).all()
        assert (limit <= interval.high + bias).all()
    # The statements say something: outputs are of order one, and the steps are of order 1/L.
    assert found.standard_error.max() <= 2e-3
    assert (found.value.high - found.value.low).max() < 0.025
    assert np.abs(found.bias - np.abs(limit - expected)).max() < 2e-3
    assert found.extrapolated_bias.max() < 0.25 * found.bias.max()
    assert 0.8 < found.order.estimate < 1.2


@pytest.mark.parametrize(
    ("coupling", "limit"), [("none", math.expm1(1.0)), ("reused", math.exp(1.0))]
)
def test_closed_forms(coupling: str, limit: float) -> None:
    """DESIGN §3.4, T = 1, one update of hidden weights: f moves by η times exp T − 1 or T exp T.

    Outputs start at 0 in the mean, the target is 1, so that E f_1 is η times these, as n → ∞.
    The particles' bias is of second order in η, and less than 1/N = 1e-4 (ηχ = ½).
    """
    found = multilevel_limit(
        nfd.ResNet(1, 1, 1, activation="identity"), nfd.SGD(0.5, train=("hidden",)), [[1.0]],
        [1.0], batches=[[0]], coupling=coupling, particles=10_000, depths=(4, 8, 16, 32),
        error=2e-3, extrapolate=True, confidence=1 - BUDGET / 2, dtype="float64",
    )  # fmt: skip
    steps = 1.0 + 1 / 32
    finite = steps**32 - 1 if coupling == "none" else steps**31
    low, high = (bound[1, 0, 0] for bound in (found.value.low, found.value.high))
    assert low < 0.5 * finite < high
    interval, bias = found.extrapolated, found.extrapolated_bias[1, 0, 0]
    assert interval.low[1, 0, 0] - bias < 0.5 * limit < interval.high[1, 0, 0] + bias
    assert found.extrapolated_error.max() <= 2e-3
    assert bias < 0.01


REPETITIONS = 1000


@pytest.mark.parametrize(
    ("statistic", "coupling", "error"), [("outputs", "reused", 0.025), ("losses", "none", 0.03)]
)
def test_coverage(statistic: str, coupling: str, error: float) -> None:
    """Of 1000 small estimates at 95%, as many hold the mean at L = 4 as should.

    Linear networks of any width n: E f_0 = 0, and E f_1 is the closed form of DESIGN §3.4 times η
    (a learning rate so small that its square, over n, is nothing); E ℓ_0 = (1 + (1+T/L)^L/n)/2. The
    number of replicas depends on what is seen, which costs up to 0.015 of coverage (0.936 to 0.945
    was seen of 3000, elsewhere). Beyond that, 4.42 standard errors √(0.95·0.05/1000).
    """
    net = nfd.ResNet(1, 1, 1, activation="identity")
    sgd = nfd.SGD(1e-2, train=("hidden",))
    width, depth = 64, 4
    growth = 1 + 1 / depth
    truth = {
        "outputs": np.array([0.0, 1e-2 * growth ** (depth - 1)]),
        "losses": np.array([0.5 * (1 + growth**depth / width)]),
    }[statistic]
    covered = np.zeros(len(truth))
    replicas = 0
    for seed in range(REPETITIONS):
        found = multilevel_limit(
            net, sgd, [[1.0]], [1.0], batches=[[0]], coupling=coupling, statistic=statistic,
            particles=width, depths=(1, 2, depth), error=error, seed=seed, threads=1,
        )  # fmt: skip
        low, high = (bound.ravel()[: len(truth)] for bound in found.value[1:])
        covered += (low <= truth) & (truth <= high)
        replicas += found.levels[0].replicas
    assert replicas > 2 * 16 * REPETITIONS  # the first variances decided something
    chance = 4.42 * math.sqrt(0.95 * 0.05 / REPETITIONS)
    assert (covered / REPETITIONS > 0.935 - chance).all()
    assert (covered / REPETITIONS < 0.95 + chance).all()


@pytest.mark.parametrize("activation", ["identity", "tanh"])
@pytest.mark.parametrize("coupling", COUPLINGS)
def test_cheaper_than_one_level(coupling: str, activation: str) -> None:
    """As much work at the last depth alone leaves a larger standard error.

    By a factor √savings, of 1.8 or more here; both errors are known to a few percent from hundreds
    of replicas, so that the factor 1.5 has 4.5 standard deviations to spare. `savings` must agree
    with the variance seen at one level to the same few percent (in variance, 5 times 8%).
    """
    net = nfd.ResNet(1, 1, 3, horizon=0.5, activation=activation)
    problem: tuple[Any, ...] = (nfd.SGD(0.3), X, Y)
    found = multilevel_limit(
        net, *problem, batches=BATCHES, coupling=coupling, particles=500, error=2e-3,
        depths=(4, 8, 16, 32),
    )  # fmt: skip
    deep = nfd.ResNet(1, 32, 3, horizon=0.5, activation=activation)
    replicas = math.ceil(found.cost / 32)
    single = nfd.solve_limit(
        deep, *problem, batches=BATCHES, coupling=coupling, particles=500,
        seed=range(10**6, 10**6 + replicas),
    )  # fmt: skip
    factor = single.standard_errors().max() / found.standard_error.max()
    print(f"{activation} {coupling}: {found.savings:.2f}, one level's error times {factor:.2f}")
    assert factor > 1.5
    assert factor**2 == pytest.approx(found.savings, rel=0.4)


def test_when_it_does_not_pay() -> None:
    """An error that the pilot of every level more than reaches: one level would have been cheaper.

    The result says so.
    """
    found = multilevel_limit(
        nfd.ResNet(1, 1, 3), nfd.SGD(0.3), X, Y, batches=BATCHES, particles=500, error=1.0,
        depths=(16, 32),
    )  # fmt: skip
    assert [level.replicas for level in found.levels] == [16, 16]
    assert found.savings < 1
