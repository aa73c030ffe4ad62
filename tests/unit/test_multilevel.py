"""The multilevel estimator: what it puts together, its bits, and what is refused."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import nfd_fast as nfd
from nfd_fast import multilevel
from nfd_fast.multilevel import LimitEstimate, multilevel_limit
from nfd_fast.statistics import mean_intervals

pytest.importorskip("scipy", reason="scipy is in the study extra")

NET = nfd.ResNet(width=3, depth=5, inputs=2)
SGD = nfd.SGD(0.2)
X, Y = np.array([[1.0, 0.3], [-0.4, 0.9]]), np.array([1.0, -1.0])
BATCHES = [[0, 1], [1, 0]]


def estimated(**changes: Any) -> LimitEstimate:
    given: dict[str, Any] = {
        "net": NET,
        "sgd": SGD,
        "x": X,
        "y": Y,
        "batches": BATCHES,
        "particles": 30,
        "depths": (2, 4, 8),
        "error": 0.03,
    } | changes
    return multilevel_limit(**given)


def same(first: LimitEstimate, second: LimitEstimate) -> bool:
    pairs = zip(first.levels, second.levels, strict=True)
    return np.array_equal(first.value, second.value) and all(
        a.replicas == b.replicas and np.array_equal(a.variance, b.variance) for a, b in pairs
    )


@pytest.mark.parametrize("coupling", ["none", "reused"])
@pytest.mark.parametrize("statistic", ["outputs", "losses"])
def test_the_parts_make_the_whole(coupling: str, statistic: str) -> None:
    found = estimated(coupling=coupling, statistic=statistic)
    shape = {"outputs": (3, 2, 1), "losses": (3,)}[statistic]
    assert found.standard_error.max() <= 0.03
    assert [level.depth for level in found.levels] == [2, 4, 8]
    assert all(level.replicas >= 16 for level in found.levels)
    assert found.levels[0].replicas > 16
    # 0.3 of a step for the noise that a coarse layer draws beyond its own.
    assert [level.cost for level in found.levels] == [2, 4 + 2 + 0.3 * 2, 8 + 4 + 0.3 * 4]
    assert found.cost == sum(level.replicas * level.cost for level in found.levels)
    means = np.array([level.mean for level in found.levels])
    shares = np.array([level.variance / level.replicas for level in found.levels])
    assert means.shape == (3, *shape)
    np.testing.assert_allclose(found.value.estimate, means.sum(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.standard_error**2, shares.sum(axis=0), rtol=1e-12)
    extrapolated = found.extrapolated.estimate
    np.testing.assert_allclose(extrapolated, means.sum(axis=0) + means[-1], rtol=1e-12)
    np.testing.assert_allclose(
        found.extrapolated_error**2, shares[:2].sum(axis=0) + 4 * shares[2], rtol=1e-12
    )
    for interval in (found.value, found.extrapolated):
        assert ((interval.low < interval.estimate) & (interval.estimate < interval.high)).all()
    assert found.bias.shape == found.extrapolated_bias.shape == shape
    assert found.savings == found.single_level_cost / found.cost
    assert "savings" in repr(found)


def test_levels_are_pairs_on_one_path() -> None:
    """Each level's replicas, from their seeds: none is used on two levels, or twice."""
    found = estimated(depths=(2, 6), error=10.0, pilot=4)
    seeds = [
        [
            int(np.random.SeedSequence(0, spawn_key=(at, r)).generate_state(1, np.uint64)[0])
            for r in range(4)
        ]
        for at in range(2)
    ]
    assert len({seed for level in seeds for seed in level}) == 8

    def outputs(depth: int, level: int, noise: int) -> np.ndarray:
        net = nfd.ResNet(1, depth, 2)
        return nfd.solve_limit(
            net, SGD, X, Y, batches=BATCHES, particles=30, seed=seeds[level], noise_depth=noise
        ).outputs

    first, second = outputs(2, 0, 2), outputs(6, 1, 6) - outputs(2, 1, 6)
    for level, rows in zip(found.levels, (first, second), strict=True):
        assert level.replicas == 4
        np.testing.assert_allclose(level.mean, rows.mean(axis=0), rtol=1e-10, atol=1e-15)
        np.testing.assert_allclose(level.variance, rows.var(axis=0, ddof=1), rtol=1e-10)
    # Ratio 3: a bias c/L has fallen by 2c/6 from L = 2 to 6, and c/6 is left.
    np.testing.assert_allclose(found.bias, np.abs(second.mean(axis=0)) / 2, rtol=1e-10)
    extrapolated = found.value.estimate + second.mean(axis=0) / 2
    np.testing.assert_allclose(found.extrapolated.estimate, extrapolated, rtol=1e-10)
    assert np.isnan(found.order.estimate)
    low = mean_intervals(first).low + mean_intervals(second).low
    assert (found.value.low > low).all()


def test_bits_depend_on_the_arguments_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    found = estimated()
    assert same(found, estimated(threads=1))
    assert same(found, estimated(threads=3, progress=lambda done, total: None))
    assert same(found, estimated(net=nfd.ResNet(7, 1, 2)))
    assert not same(found, estimated(seed=1))
    monkeypatch.setattr(multilevel, "CHUNK", 5)
    parts = estimated()
    np.testing.assert_allclose(parts.value, found.value, rtol=1e-9, atol=1e-12)
    assert [level.replicas for level in parts.levels] == [level.replicas for level in found.levels]


def test_the_error_may_be_that_of_the_extrapolation() -> None:
    found = estimated(error=0.01, extrapolate=True)
    assert found.extrapolated_error.max() <= 0.01
    assert found.standard_error.max() < 0.01


@pytest.mark.parametrize("statistic", ["coupling_accumulated", "backward_coupling_accumulated"])
def test_couplings(statistic: str) -> None:
    found = estimated(coupling="reused", statistic=statistic, error=1e-3)
    assert found.value.estimate.shape == {"coupling_accumulated": (3,)}.get(statistic, (2,))
    assert found.standard_error.max() <= 1e-3
    assert found.value.estimate[-1] > 0


def test_progress_grows_to_its_end() -> None:
    seen: list[tuple[int, int]] = []
    found = estimated(progress=lambda done, total: seen.append((done, total)))
    passes = 3 * (found.levels[0].replicas + 2 * sum(lv.replicas for lv in found.levels[1:]))
    assert seen[-1] == (passes, passes)
    assert all(done < total for done, total in seen[:-1])
    assert sorted(done for done, _ in seen) == [done for done, _ in seen]


def test_bias_and_order_of_known_decays() -> None:
    """Level means of exact powers: the order, and what is left, are found."""
    depths = [4, 8, 16, 32]
    sizes = np.array(depths, dtype=float)
    constants = np.array([1.0, -2.0])
    for power in (0.6, 1.0, 2.0):
        means = np.diff(sizes**-power)[:, None] * constants
        order = multilevel._order(depths, means, np.full_like(means, 1e-6))
        assert order.estimate == pytest.approx(power, abs=0.011)
        assert order.low <= power <= order.high
        bias, extrapolated = multilevel._biases(depths, means, order)
        left = np.abs(constants) * 32.0**-power
        if power <= 1:
            np.testing.assert_allclose(bias, left, rtol=0.03)
        else:  # first order is granted, of the largest of three means carried to the last depth
            assert (bias >= left).all()
        if power == 2:  # a step for order 1 goes too far, and says so: f_L + m − f_∞
            after = np.abs(constants * 32.0**-2 + means[-1])
            np.testing.assert_allclose(extrapolated, after, rtol=1e-9)
        if power == 1:
            np.testing.assert_allclose(extrapolated, 0, atol=1e-12)
    noise = np.random.default_rng(0).normal(size=(3, 2))
    lost = multilevel._order(depths, noise, np.ones((3, 2)))
    assert (lost.low, lost.high) == (0.1, 4.0)
    assert np.isnan(multilevel._order(depths, np.zeros((3, 1)), np.zeros((3, 1))).estimate)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"net": 3}, "net must be an nfd_fast.ResNet, got 3"),
        (
            {"net": nfd.ResNet(1, 1, 2, parameterization="mlp")},
            "net must have parameterization='depth_mup'",
        ),
        ({"sgd": 3}, "sgd must be an nfd_fast.SGD, got 3"),
        ({"coupling": "both"}, "coupling must be one of 'none', 'reused', got 'both'"),
        ({"statistic": "features"}, "statistic must be one of 'outputs', 'losses', 'coupling_acc"),
        (
            {"statistic": "coupling_accumulated"},
            "statistic 'coupling_accumulated' needs coupling='reused', got 'none'",
        ),
        ({"error": 0.0}, "error must be a positive finite number, got 0.0"),
        ({"error": float("nan")}, "error must be a positive finite number"),
        ({"error": 1e-9}, "error must take at most 10000000 replicas of a level, got 1e-09"),
        ({"error": 1e-200}, "error must take at most 10000000 replicas of a level, got 1e-200"),
        ({"depths": (8,)}, "depths must be at least 2 positive integers, each a multiple"),
        ({"depths": (8, 12)}, "each a multiple of the one before, got (8, 12)"),
        ({"depths": (8, 8)}, "each a multiple of the one before, got (8, 8)"),
        ({"depths": (16, 8)}, "each a multiple of the one before, got (16, 8)"),
        ({"depths": (0, 8)}, "depths[0] must be a positive integer"),
        ({"depths": (2, 4.0)}, "depths[1] must be a positive integer"),
        ({"depths": 8}, "depths must be at least 2 positive integers"),
        ({"depths": "48"}, "depths must be at least 2 positive integers"),
        ({"extrapolate": 1}, "extrapolate must be True or False, got 1"),
        ({"confidence": 1.0}, "confidence must be below 1, got 1.0"),
        ({"seed": -1}, "seed must be an integer in 0 ... 2**64 - 1, got -1"),
        ({"seed": range(3)}, "seed must be an integer in 0 ... 2**64 - 1, got range(0, 3)"),
        ({"pilot": 1}, "pilot must be at least 2 replicas, got 1"),
        ({"pilot": 2.5}, "pilot must be a positive integer, got 2.5"),
        ({"particles": 0}, "particles must be a positive integer"),
        ({"dtype": "float16"}, "dtype must be one of 'float32', 'float64', got 'float16'"),
        ({"device": "abacus"}, "device must be one of"),
        ({"threads": 0}, "threads must be a positive integer"),
        ({"progress": 3}, "progress must be True, False or a function"),
        ({"x": X[:, :1]}, "x must have shape (samples, 2), got (2, 1)"),
        ({"y": Y[:1]}, "y must have shape (2, 1), got (1, 1)"),
        ({"batches": [[0, 2]]}, "batches must be indices in 0 ... 1, got 2"),
        ({"batches": 0}, "batches must have shape (updates, batch)"),
        ({"batches": [[0, 1], [0]]}, "batches must be an array, got sequences of unequal lengths"),
    ],
)
def test_refusals(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        estimated(**changes)


def test_divergence_is_told() -> None:
    with pytest.raises(nfd.DivergenceError):
        estimated(sgd=nfd.SGD(1e30), net=nfd.ResNet(1, 1, 2, activation="identity"))
