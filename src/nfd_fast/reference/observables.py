"""What a run can record, as functions of its features and adjoints (DESIGN §5). All float64.

``features`` (K+1, L+1, B, n) and ``adjoints`` (K, L+1, B, n) are whole trajectories; rows that are
not finite give NaN.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nfd_fast.reference.activations import activation as phi
from nfd_fast.results import MinEigenvalues

Array = NDArray[np.float64]

OBSERVABLES = (
    "outputs",
    "losses",
    "features",
    "adjoints",
    "feature_kernels",
    "adjoint_kernels",
    "feature_movement",
    "min_eigenvalues",
)


def _gram(columns: Array) -> Array:
    """Return the Gram matrices AᵀA/n of (…, B, n) arrays."""
    product: Array = columns @ np.swapaxes(columns, -1, -2) / columns.shape[-1]
    return product


def feature_kernels(features: Array) -> Array:
    """Return H_lᵀH_l/n, (K+1, L+1, B, B)."""
    return _gram(features)


def adjoint_kernels(adjoints: Array) -> Array:
    """Return G_lᵀG_l/n, (K, L+1, B, B)."""
    return _gram(adjoints)


def feature_movement(features: Array) -> Array:
    """Return the mean over neurons and batch 0 of (H_l at row K − H_l at row 0)², (L+1,)."""
    movement: Array = np.mean((features[-1] - features[0]) ** 2, axis=(-2, -1))
    return movement


def min_eigenvalues(features: Array, adjoints: Array, activation: str) -> MinEigenvalues:
    """Return the smallest eigenvalues of φ(H_{l-1})ᵀφ(H_{l-1})/n and of G_lᵀG_l/n, l = 1 … L.

    The first is (K+1, L), the second (K, L).
    """
    return MinEigenvalues(
        features=_smallest_eigenvalue(_gram(phi(activation, features[:, :-1]))),
        adjoints=_smallest_eigenvalue(_gram(adjoints[:, 1:])),
    )


def _smallest_eigenvalue(matrices: Array) -> Array:
    smallest = np.full(matrices.shape[:-2], np.nan)
    finite = np.isfinite(matrices).all(axis=(-2, -1))
    smallest[finite] = np.linalg.eigvalsh(matrices[finite])[:, 0]
    return smallest
