"""Strong errors and fitted rates: known power laws, coverage, and runs whose rates are known."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import nfd_fast as nfd
from nfd_fast.statistics import fit_rate, mean_intervals, strong_errors, weak_errors

pytest.importorskip("scipy", reason="scipy is in the study extra")

SIZES = np.array([8.0, 16.0, 32.0, 64.0])


def test_an_exact_power_law_is_found() -> None:
    rows = np.array([[1.0], [3.0], [0.5]]) * 2.5 * SIZES**-1.7
    rate = fit_rate(SIZES, rows)
    assert rate.slope == pytest.approx(-1.7, rel=1e-12)
    assert (rate.low, rate.high) == pytest.approx((-1.7, -1.7), rel=1e-12)
    assert rate.constant == pytest.approx(2.5 * 1.5, rel=1e-12)
    assert rate.bend == pytest.approx(0, abs=1e-12)
    shuffled = [2, 0, 3, 1]
    again = fit_rate(SIZES[shuffled], rows[:, shuffled])
    assert again == pytest.approx(rate, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("size", [1e-300, 1e300])
def test_errors_of_any_size(size: float) -> None:
    rows = simulated(np.random.default_rng(0), 200)
    rate, scaled = fit_rate(SIZES, rows), fit_rate(SIZES, size * rows)
    assert scaled.slope == pytest.approx(rate.slope, rel=1e-9)
    assert scaled.constant == pytest.approx(size * rate.constant, rel=1e-9)


def test_the_bend_is_the_change_of_slope_between_halves() -> None:
    """log e = −c − c²/10 about the middle: slopes −1 − c/5; middles are half the range apart."""
    c = np.log(SIZES) - np.log(SIZES).mean()
    rate = fit_rate(SIZES, np.exp(-c - c**2 / 10) * np.ones((5, 1)))
    assert rate.slope == pytest.approx(-1, rel=1e-12)
    assert rate.bend == pytest.approx(-0.2 * (c[-1] - c[0]) / 2, rel=1e-12)
    assert not rate.asymptotic


def test_the_tail_sees_through_a_correction() -> None:
    """Errors (1 − 1/L)² / L are known to lead to the exponent −1; their slope is another."""
    rate = fit_rate(SIZES, (1 - 1 / SIZES) ** 2 / SIZES * np.ones((5, 1)))
    assert rate.slope > -0.93
    assert rate.tail == pytest.approx(-1, abs=0.01)  # exp(−2/L) lacks 1/L² = 1.6 % at L = 8
    pure = fit_rate(SIZES, SIZES**-1.0 * np.exp(-2 / SIZES) * np.ones((5, 1)))
    assert pure.tail == pytest.approx(-1, abs=1e-12)
    assert not pure.asymptotic


def test_errors_of_either_sign() -> None:
    """Their means are fitted, if there is no doubt about their sign."""
    rng = np.random.default_rng(0)
    rows = (1 + 0.6 * rng.normal(size=(200, 4))) / SIZES
    assert (rows < 0).any()
    rate = fit_rate(SIZES, rows, signed=True)
    assert rate.low < -1 < rate.high
    positive = simulated(rng, 50)
    assert fit_rate(SIZES, positive, signed=True) == fit_rate(SIZES, positive)
    for doubtful in (rows - rows.mean(axis=0), rows[:5] - 0.9 * rows[:5].mean(axis=0), -rows):
        with pytest.raises(ValueError, match="means that are positive beyond doubt"):
            fit_rate(SIZES, doubtful, signed=True)


def simulated(rng: np.random.Generator, replicas: int) -> np.ndarray:
    """Errors of slope −1, of which replicas share a factor, as squares of Gaussians on one path."""
    shared = rng.gamma(4.0, size=(replicas, 1))
    return shared * rng.gamma(2.0, size=(replicas, len(SIZES))) / SIZES


@pytest.mark.parametrize("replicas", [12, 30, 100, 400])
def test_coverage_of_slopes_bends_and_tails(replicas: int) -> None:
    """Of 3000 simulations, 93–97 % of the 95 % intervals hold the truth.

    0.02 is 5 standard errors of √(0.95·0.05/3000): 6e-7 were the coverage exact.
    """
    rng = np.random.default_rng(replicas)
    covered = np.zeros(3)
    simulations = 3000
    for _ in range(simulations):
        rate = fit_rate(SIZES, simulated(rng, replicas))
        tail = rate.tail_low <= -1 <= rate.tail_high
        covered += [rate.low <= -1 <= rate.high, rate.asymptotic, tail]
    assert rate.covers
    assert (np.abs(covered / simulations - 0.95) < 0.02).all()


@pytest.mark.parametrize("replicas", [2, 3, 4, 8])
def test_a_rate_of_few_replicas_covers_and_does_not_promise_it(replicas: int) -> None:
    """As the docstring says, 93–98 %, within 0.02: 4 standard errors of √(0.93·0.07/2500)."""
    rng = np.random.default_rng(replicas)
    rates = [fit_rate(SIZES, simulated(rng, replicas)) for _ in range(2500)]
    assert not rates[0].covers
    assert rates[0].replicas == replicas
    assert 0.91 < np.mean([r.low <= -1 <= r.high for r in rates]) < 0.995


@pytest.mark.parametrize("replicas", [12, 24])
def test_a_bend_beyond_doubt_is_rarely_none(replicas: int) -> None:
    """At 99.9%, of which 2000 resamples show too few: 5 in 1000 where 1 is meant, of 4000.

    4 · 4000/1000 = 16 more than meant have a chance of 1e-8 were the coverage exact.
    """
    rng = np.random.default_rng(replicas)
    missed = np.zeros(3)
    for _ in range(4000):
        rate = fit_rate(SIZES, simulated(rng, replicas), 0.999)
        tail = rate.tail_low <= -1 <= rate.tail_high
        missed += [not rate.low <= -1 <= rate.high, not rate.asymptotic, not tail]
    assert (missed <= 20).all()


@pytest.mark.parametrize(
    ("sizes", "errors", "message"),
    [
        (SIZES[:2], np.ones((4, 2)), "sizes must be at least 3, got 2"),
        ([1, 2, 2], np.ones((4, 3)), "sizes must be positive and distinct, got [1.0, 2.0, 2.0]"),
        ([0, 1, 2], np.ones((4, 3)), "sizes must be positive and distinct"),
        (SIZES, np.ones((4, 3)), "errors must have shape (replicas, 4), got (4, 3)"),
        (SIZES, np.ones((1, 4)), "errors must have at least 2 replicas, got 1"),
        (SIZES, np.zeros((3, 4)), "errors must be positive, got 0.0"),
        (SIZES, -np.ones((3, 4)), "errors must be positive, got -1.0"),
        (SIZES, np.full((3, 4), np.nan), "errors must be finite"),
    ],
)
def test_rates_refuse(sizes: Any, errors: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        fit_rate(sizes, errors)


def test_rates_refuse_what_is_no_flag() -> None:
    with pytest.raises(ValueError, match="signed must be"):
        fit_rate(SIZES, np.ones((4, 4)), signed="x")  # type: ignore[arg-type]


@pytest.mark.parametrize("confidence", [0.0, 1.0, 2.0])
def test_rates_refuse_confidences(confidence: float) -> None:
    with pytest.raises(ValueError, match="confidence must be"):
        fit_rate(SIZES, simulated(np.random.default_rng(0), 5), confidence)


X, Y = np.array([[1.0, 0.2], [-0.6, 0.9]]), np.array([1.0, -1.0])
FINE = 128


def trained(depth: int, **changes: Any) -> nfd.Run:
    given: dict[str, Any] = {
        "net": nfd.ResNet(300, depth, 2),
        "sgd": nfd.SGD(0.3),
        "x": X,
        "y": Y,
        "batches": [[0, 1], [1, 0]],
        "seed": range(8),
        "noise_depth": FINE,
        "backward": "decoupled",
        "engine": "conditional",
        "dtype": "float64",
        "record": ["features", "adjoints"],
    } | changes
    return nfd.train(**given)


def test_strong_errors_are_what_they_say() -> None:
    run, reference = trained(4), trained(32)
    found = strong_errors(run, reference)
    for name, errors, layers in (
        ("features", found.features, found.feature_layers),
        ("adjoints", found.adjoints, found.adjoint_layers),
    ):
        ours, theirs = (np.asarray(r.observables[name]) for r in (run, reference))
        squares = np.array(
            [((ours[:, :, at] - theirs[:, :, 8 * at]) ** 2).mean(axis=(2, 3)) for at in range(5)]
        )  # (L+1, R, rows)
        assert errors.shape == squares.shape[1:]
        for row, layer in enumerate(layers):
            assert squares[:, :, row].mean(axis=1).argmax() == layer
            np.testing.assert_allclose(errors[:, row], squares[layer, :, row], rtol=1e-12)
    assert mean_intervals(found.features).estimate.shape == (3,)
    single = strong_errors(trained(4, seed=0), trained(32, seed=0))
    np.testing.assert_allclose(single.features.shape, (1, 3))


def test_strong_errors_of_some_layers() -> None:
    """Layers left out of the records change nothing but which layers are compared."""
    every = strong_errors(trained(4), trained(32))
    same = strong_errors(trained(4), trained(32, record_every=8))
    for name, array in every._asdict().items():
        np.testing.assert_array_equal(getattr(same, name), array)
    some = strong_errors(trained(4, record_every=2), trained(32, record_every=4))
    assert set(some.feature_layers) <= {0, 2, 4}
    with pytest.raises(ValueError, match="recorded every 8 layers, or a divisor of it, got"):
        strong_errors(trained(4), trained(32, record_every=16))


def test_strong_errors_against_nfd() -> None:
    """Networks with reused weights are compared with decoupled ones, and with those only."""
    reused, limit = trained(4, backward="reused"), trained(32)
    found = strong_errors(reused, limit, against_nfd=True)
    own = strong_errors(reused, trained(32, backward="reused"))
    # The first pass meets no adjoints: the networks are the same there.
    np.testing.assert_array_equal(found.features[:, 0], own.features[:, 0])
    assert (found.features[:, 2] != own.features[:, 2]).all()
    with pytest.raises(ValueError, match="the same backward, got 'decoupled' and 'reused'"):
        strong_errors(reused, trained(32, backward="reused"), against_nfd=True)


def test_the_decoupled_network_nears_its_limit_on_shared_noise() -> None:
    """DESIGN §3.2, tanh: adjoints at O(1/L); features about L^-1.8 at initialisation, slower then.

    Wide enough that the chance of kernels at finite width, O(1/(nL)), does not show. The
    reference's own error steepens slopes by up to log(16/(16−2))/log 4 = 0.1.
    """
    depths, width = [4, 8, 16], 2000
    reference = trained(FINE, net=nfd.ResNet(width, FINE, 2))
    errors = [
        strong_errors(trained(depth, net=nfd.ResNet(width, depth, 2)), reference)
        for depth in depths
    ]
    for update in range(2):
        adjoints = fit_rate(depths, np.stack([e.adjoints[:, update] for e in errors], axis=1))
        assert adjoints.low > -1.25
        assert adjoints.high < -0.95
    before, after = (
        fit_rate(depths, np.stack([e.features[:, row] for e in errors], axis=1)) for row in (0, 2)
    )
    assert before.low > -2.2
    assert before.high < -1.6
    assert after.low > before.high


@pytest.mark.parametrize(
    ("run", "reference", "message"),
    [
        (3, {}, "run must be an nfd_fast.Run, got 3"),
        ({"record": ["features"]}, {}, "run must have recorded 'adjoints'"),
        ({}, {"net": nfd.ResNet(300, 16, 2)}, "run's depth 4, at least 8 times it, got 16"),
        (
            {"net": nfd.ResNet(300, 64, 2)},
            {"net": nfd.ResNet(300, 32, 2)},
            "a multiple of run's depth 64",
        ),
        ({}, {"net": nfd.ResNet(200, 32, 2)}, "the same net but for the depth"),
        ({}, {"sgd": nfd.SGD(0.2)}, "the same sgd"),
        ({}, {"seed": range(1, 9)}, "the same seeds"),
        ({}, {"backward": "reused"}, "the same backward, got 'decoupled' and 'reused'"),
        ({"noise_depth": 32}, {}, "the same noise_depth, got 32 and 128"),
        ({}, {"engine": "dense"}, "the same engine, got 'conditional' and 'dense'"),
        ({}, {"batches": [[0, 1]]}, "the same outputs' shape"),
        ({}, {"batches": [[1, 0], [1, 0]]}, "the same data in their batches"),
        ({}, {"x": X + 1e-3}, "the same data in their batches"),
        ({}, {"y": -Y}, "the same data in their batches"),
    ],
)
def test_strong_errors_refuse(run: Any, reference: dict[str, Any], message: str) -> None:
    first = run if run == 3 else trained(**({"depth": 4, "seed": range(8)} | run))
    second = trained(**({"depth": 32, "seed": range(8)} | reference))
    with pytest.raises(ValueError, match=re.escape(message)):
        strong_errors(first, second)


def test_runs_say_their_noise_depth() -> None:
    run = trained(4, seed=0)
    assert run.noise_depth == FINE
    assert trained(4, seed=0, noise_depth=None).noise_depth == 4
    assert replace(run, noise_depth=8).noise_depth == 8


def test_runs_of_the_same_data() -> None:
    """What no batch holds does not matter, nor the dtype, nor where the samples lie."""
    run = trained(4, seed=0)
    assert run.data == trained(4, seed=1).data
    more: dict[str, Any] = {"x": np.vstack([[[7.0, 7.0]], X[::-1]]), "y": np.append(7.0, Y[::-1])}
    moved = trained(4, seed=0, **more, batches=[[2, 1], [1, 2]], dtype="float32")
    assert moved.data == run.data
    assert trained(4, seed=0, **more, batches=[[1, 2], [2, 1]]).data != run.data
    assert trained(4, seed=0, batches=[[0, 1], [0, 1]]).data != run.data


def test_weak_errors_are_unbiased_and_cover() -> None:
    """Gaussian outputs with a known difference of means, in 4000 runs at once.

    The mean of the estimates within 5 standard errors; coverage of at least 93 %, and of no more
    than 97 % where the difference is far from zero (0.02 is 5.8 standard errors).
    """
    base = nfd.train(
        nfd.ResNet(3, 1, 2), nfd.SGD(0.1), X, Y, batches=[[0, 1]], seed=range(10), engine="dense"
    )
    rng = np.random.default_rng(0)
    for shift in (0.0, 0.3, 5.0):
        shared = rng.normal(size=(10, 2, 2000, 1))
        first, second = (
            replace(base, observables={"outputs": shared + rng.normal(size=shared.shape) + mean})
            for mean in (shift, 0.0)
        )
        found = weak_errors(first, second)
        error = found.estimate - shift**2
        assert abs(error.mean()) < 5 * error.std() / np.sqrt(error.size)
        covered = ((found.low <= shift**2) & (shift**2 <= found.high)).mean()
        assert covered > 0.93
        if shift == 5.0:
            assert covered < 0.97
        assert (found.low <= np.maximum(found.estimate, 0)).all()
        assert (found.estimate <= found.high).all()


def test_weak_errors_of_kernels_cover() -> None:
    """Feature kernels of linear networks: E H_lᵀH_l/n is known at every width and depth.

    (1 + T/L)^L at the last layer; the square of the difference of depths 1 and 4 is held by 93–97 %
    of 8000 intervals over 16 pairs each. 0.02 is 8 standard errors: where the skewness of the
    kernels, √(8/n), costs 0.5 %, still a false alarm in 10⁸.
    """
    count, size = 8000, 16
    first, second = (
        nfd.train(
            nfd.ResNet(64, depth, 1, activation="identity"), nfd.SGD(0.1), [[1.0]], [0.0],
            batches=[[0]], seed=range(count * size), engine="conditional", noise_depth=4,
            record=["feature_kernels"],
        )
        for depth in (1, 4)
    )  # fmt: skip
    # Ensembles side by side: the replica axis first, as in a run.
    together = [
        replace(
            run,
            seeds=run.seeds[:size],
            observables={
                "outputs": np.asarray(run.observables["feature_kernels"])[:, 0, -1, 0, 0]
                .reshape(count, size)
                .T
            },
        )
        for run in (first, second)
    ]
    found = weak_errors(together[0], together[1])
    truth = (2 - (1 + 1 / 4) ** 4) ** 2
    covered = ((found.low <= truth) & (truth <= found.high)).mean()
    assert 0.93 < covered < 0.97
    error = found.estimate.std() / np.sqrt(count)
    assert abs(found.estimate.mean() - truth) < 5 * error


def test_strong_errors_cover() -> None:
    """93–97 % of 10,000 intervals over 16 linear networks each hold the mean of all 160,000.

    Which is known 100 times better than an interval says. True coverage is 94 %: 93 % is 4.2
    standard errors away, a false alarm in 10⁵. Student's interval covers 91 %.
    """
    count, size = 10_000, 16
    runs = [
        trained(
            depth, net=nfd.ResNet(32, depth, 1, activation="identity"), x=[[1.0]], y=[1.0],
            batches=[[0]], sgd=nfd.SGD(0.1, train=("hidden",)), seed=range(count * size),
            noise_depth=8, record_every=depth,
        )
        for depth in (1, 8)
    ]  # fmt: skip
    found = strong_errors(*runs)
    for errors in (found.features[:, 1], found.adjoints[:, 0]):
        truth = errors.mean()
        _, low, high = mean_intervals(errors.reshape(count, size).T, skewed=True)
        assert 0.93 < ((low <= truth) & (truth <= high)).mean() < 0.97


def test_weak_errors_fall_with_depth() -> None:
    """Means of outputs after an update of the decoupled network, on shared noise."""
    options: dict[str, Any] = {"record": ["outputs"], "seed": range(100), "dtype": "float32"}
    reference, coarse, fine = (
        trained(depth, net=nfd.ResNet(1000, depth, 2), **options) for depth in (FINE, 2, 16)
    )
    far, near = weak_errors(coarse, reference), weak_errors(fine, reference)
    assert far.estimate.shape == (3, 2, 1)
    assert far.low[1:].min() > near.high[1:].max()


def test_weak_errors_refuse() -> None:
    run = trained(4, record=["features"])
    for call, message in (
        (lambda: weak_errors(3, run), "run must be an nfd_fast.Run, got 3"),  # type: ignore[arg-type]
        (lambda: weak_errors(run, run, "adjoints"), "statistic must be one of 'outputs'"),
        (lambda: weak_errors(run, trained(4, seed=range(1, 9))), "the same seeds, at least 2"),
        (lambda: weak_errors(*[trained(4, seed=0)] * 2), "the same seeds, at least 2"),
        (lambda: weak_errors(run, trained(4, y=-Y)), "the same data in their batches"),
        (lambda: weak_errors(run, trained(8, record=["features"]), "features"), "one shape"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            call()
