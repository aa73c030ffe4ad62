"""Observables of the reference against their definitions in scalar loops (DESIGN §5)."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nfd_fast import reference

ROWS, LAYERS, BATCH, WIDTH = 3, 4, 2, 5


@pytest.fixture
def features() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((ROWS, LAYERS, BATCH, WIDTH))


@pytest.fixture
def adjoints() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((ROWS - 1, LAYERS, BATCH, WIDTH))


def gram(columns: np.ndarray) -> list[list[float]]:
    """Return the 2×2 matrix of ⟨a_b, a_c⟩/n; sums of 5 terms are exact to 5 eps."""
    return [
        [math.fsum(a * b for a, b in zip(left, right, strict=True)) / WIDTH for right in columns]
        for left in columns
    ]


def smallest_eigenvalue(matrix: list[list[float]]) -> float:
    """Return the smaller root of λ² − trace λ + determinant."""
    (a, b), (_, d) = matrix
    return (a + d) / 2 - math.hypot((a - d) / 2, b)


def test_kernels(features: np.ndarray, adjoints: np.ndarray) -> None:
    for states, kernels in (
        (features, reference.feature_kernels(features)),
        (adjoints, reference.adjoint_kernels(adjoints)),
    ):
        assert kernels.shape == (len(states), LAYERS, BATCH, BATCH)
        for k in range(len(states)):
            for layer in range(LAYERS):
                np.testing.assert_allclose(kernels[k, layer], gram(states[k, layer]), atol=1e-14)


def test_feature_movement(features: np.ndarray) -> None:
    movement = reference.feature_movement(features)
    assert movement.shape == (LAYERS,)
    for layer in range(LAYERS):
        squares = [
            (features[-1, layer, b, i] - features[0, layer, b, i]) ** 2
            for b in range(BATCH)
            for i in range(WIDTH)
        ]
        assert movement[layer] == pytest.approx(math.fsum(squares) / len(squares), rel=1e-14)


def test_min_eigenvalues(features: np.ndarray, adjoints: np.ndarray) -> None:
    smallest = reference.min_eigenvalues(features, adjoints, "tanh")
    assert smallest.features.shape == (ROWS, LAYERS - 1)
    assert smallest.adjoints.shape == (ROWS - 1, LAYERS - 1)
    for layer in range(1, LAYERS):
        for k in range(ROWS):
            expected = smallest_eigenvalue(gram(np.tanh(features[k, layer - 1])))
            assert smallest.features[k, layer - 1] == pytest.approx(expected, abs=1e-14)
        for k in range(ROWS - 1):
            expected = smallest_eigenvalue(gram(adjoints[k, layer]))
            assert smallest.adjoints[k, layer - 1] == pytest.approx(expected, abs=1e-14)


def test_rows_after_a_divergence_are_undefined(features: np.ndarray, adjoints: np.ndarray) -> None:
    """NaN in a pass gives NaN in what was made of it, and nothing else."""
    features[2], adjoints[1] = np.nan, np.nan
    smallest = reference.min_eigenvalues(features, adjoints, "tanh")
    assert np.isfinite(smallest.features[:2]).all()
    assert np.isnan(smallest.features[2]).all()
    assert np.isnan(smallest.adjoints[1]).all()
    assert np.isnan(reference.feature_movement(features)).all()
