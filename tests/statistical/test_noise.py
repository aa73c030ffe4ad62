"""The noise against the law it claims: independent standard normals (DESIGN §4).

Seeds are fixed, so a test passes or fails for good. The thresholds are set so that a correct
generator would fail a test with probability below FALSE_ALARM, whatever the seeds: with several
statistics in one test, each gets an equal share (Bonferroni).
"""

from __future__ import annotations

import importlib
import itertools
import math
from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray

from nfd_fast import reference

stats = pytest.importorskip("scipy.stats", reason="distribution functions come from SciPy")

FALSE_ALARM = 1e-5
LARGEST = 6.77

# Two from either end of the key, one bit apart: related seeds must give unrelated noise.
SEEDS = (0, 1, 2**32, 2**63)

Array = NDArray[np.float64]


@pytest.fixture(params=["reference", "kernels"], scope="module")
def noise(request: pytest.FixtureRequest) -> ModuleType:
    """Both generators; only the words are bit-equal."""
    return importlib.import_module(f"nfd_fast.{request.param}")


@pytest.fixture(params=["float32", "float64"], scope="module")
def sample(noise: ModuleType, request: pytest.FixtureRequest) -> Array:
    """2²¹ normals of one column: half a million Philox blocks."""
    z = noise.normal(20, "forward_noise", 2**21, layer=3, columns=(17,), dtype=request.param)
    return np.asarray(z[0], dtype=np.float64)


@pytest.fixture(scope="module")
def many(noise: ModuleType) -> Array:
    """128 rows of 2¹⁵ normals: every stream, two layers, two columns, four seeds."""
    return np.concatenate(
        [
            noise.normal(seed, stream, 2**15, layer=layer, columns=(6, 7), dtype="float64")
            for seed in SEEDS
            for stream in reference.STREAMS
            for layer in (1, 2)
        ]
    )


def assert_standard_normal(scores: list[float] | Array) -> None:
    """Fail if the largest of several N(0, 1) scores exceeds its Bonferroni threshold."""
    scores = np.abs(np.asarray(scores))
    threshold = stats.norm.isf(FALSE_ALARM / (2 * scores.size))
    assert scores.max() <= threshold, f"score {scores.max():.2f}, allowed {threshold:.2f}"


def test_moments(sample: Array) -> None:
    """E Z^k for k = 1 … 6 against (k−1)!! or 0; Var Z^k = E Z^2k − (E Z^k)².

    The mean of 2²¹ sixth powers has skewness 32/√2²¹ = 0.02: its score's tail at 5 is Gaussian to
    within a factor of 1.5. The words' grid moves no moment by more than 1e-6.
    """
    moment = {k: math.prod(range(k - 1, 0, -2)) if k % 2 == 0 else 0 for k in range(13)}
    scores = [
        (np.mean(sample**k) - moment[k]) * math.sqrt(sample.size / (moment[2 * k] - moment[k] ** 2))
        for k in range(1, 7)
    ]
    assert_standard_normal(scores)


def test_distribution(sample: Array) -> None:
    """Kolmogorov–Smirnov against N(0, 1) on 2²¹ normals."""
    assert stats.kstest(sample, stats.norm.cdf).pvalue >= FALSE_ALARM


@pytest.mark.parametrize("position", range(4))
def test_distribution_of_each_word(sample: Array, position: int) -> None:
    """The same for each of the four places in a block: 2¹⁹ cosines or sines."""
    assert stats.kstest(sample[position::4], stats.norm.cdf).pvalue >= FALSE_ALARM


def test_tails(sample: Array, many: Array) -> None:
    """|Z| > 3, 4, 5 in either tail: exact binomial counts; and never beyond 6.77."""
    z = np.concatenate([sample, many.ravel()])
    tests = list(itertools.product((3, 4, 5), (1, -1)))
    for threshold, sign in tests:
        count = int(np.count_nonzero(sign * z > threshold))
        test = stats.binomtest(count, z.size, stats.norm.sf(threshold))
        assert test.pvalue >= FALSE_ALARM / len(tests), (threshold, sign, count)
    assert np.abs(z).max() <= LARGEST


def test_radius(sample: Array) -> None:
    """½(z₀² + z₁²) of a Box–Muller pair is exponential, whatever its angle."""
    radius = 0.5 * np.sum(sample.reshape(-1, 2) ** 2, axis=1)
    assert stats.kstest(radius, stats.expon.cdf).pvalue >= FALSE_ALARM


def test_angle(sample: Array) -> None:
    """The angle of a pair is uniform, and independent of whether the radius is large."""
    pairs = sample.reshape(-1, 2)
    turn = np.arctan2(pairs[:, 1], pairs[:, 0]) / (2 * math.pi) + 0.5
    outside = np.sum(pairs**2, axis=1) > 4
    for part in (turn, turn[outside], turn[~outside]):
        assert stats.kstest(part, stats.uniform.cdf).pvalue >= FALSE_ALARM / 3


def correlations(rows: Array) -> Array:
    """Return the scores √m · r of all pairs of rows with mean 0 and variance 1."""
    products = rows @ rows.T / math.sqrt(rows.shape[1])
    scores: Array = products[np.triu_indices(len(rows), k=1)]
    return scores


# Scores of products of squares: (x²−1)(y²−1)/2 has kurtosis 225, over 2¹⁵ terms 0.007: the tail at
# 6 is Gaussian to within e^(0.007·6⁴/24) = 1.5.
TRANSFORMS = {
    "z": lambda z: z,
    "z²": lambda z: (z**2 - 1) / math.sqrt(2),
    "sign": np.sign,
}


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_streams_layers_columns_and_seeds_are_independent(many: Array, transform: str) -> None:
    """All 8128 pairs of rows that differ in seed, stream, layer or column, neuron by neuron."""
    assert_standard_normal(correlations(TRANSFORMS[transform](many)))


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_shifted_rows_are_independent(many: Array, transform: str) -> None:
    """The same pairs one block apart: neuron i of one against neuron i + 4 of the other."""
    rows = TRANSFORMS[transform](many)
    left, right = rows[:, :-4], rows[:, 4:]
    assert_standard_normal((left @ right.T / math.sqrt(left.shape[1])).ravel())


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_neighbours_are_independent(sample: Array, transform: str) -> None:
    """Neurons 1 … 64 apart, and 2^k apart: inside a pair, a block, a vector register, a chunk."""
    z = TRANSFORMS[transform](sample)
    lags = [*range(1, 65), *(2**k for k in range(7, 17))]
    scores = [z[:-lag] @ z[lag:] / math.sqrt(z.size - lag) for lag in lags]
    assert_standard_normal(scores)


def test_words_of_a_block_are_independent(sample: Array) -> None:
    """The four normals of a block, each as z, z² and z³ − 3z, against each other's."""
    block = sample.reshape(-1, 4).T
    hermite = {
        1: block,
        2: (block**2 - 1) / math.sqrt(2),
        3: (block**3 - 3 * block) / math.sqrt(6),
    }
    scores = [
        hermite[j][a] @ hermite[k][b] / math.sqrt(block.shape[1])
        for a, b in itertools.combinations(range(4), 2)
        for j, k in itertools.product(hermite, hermite)
    ]
    assert_standard_normal(scores)


def test_refined_noise_is_standard_normal() -> None:
    """Sums of r fine layers times r^-½ are N(0, 1), and their first fine layer is in them.

    Against the exact law: KS, and correlation r^-½ with a fine layer; the score of a sample
    correlation of normals has variance 1 + 1/r.
    """
    for r in (2, 7):
        z = reference.layer_normal(4, "hidden", 2**18, layer=3, refinement=r, dtype="float64")[0]
        assert stats.kstest(z, stats.norm.cdf).pvalue >= FALSE_ALARM / 4
        fine = reference.normal(4, "hidden", 2**18, layer=2 * r + 1, dtype="float64")[0]
        score = (np.mean(z * fine) - r**-0.5) * math.sqrt(z.size / (1 + 1 / r))
        assert abs(score) <= stats.norm.isf(FALSE_ALARM / 8)
