"""Losses of single samples and their derivatives χ in the output (DESIGN §1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def mse(outputs: Array, targets: NDArray[Any]) -> tuple[Array, Array]:
    """Return ℓ_b = ½ Σ_c (f_bc − y_bc)² and χ = f − y.

    Parameters
    ----------
    outputs, targets : (B, C)

    Returns
    -------
    losses : (B,)
    residuals : (B, C)
        χ_b = ∂ℓ_b/∂f_b per sample, without the batch's 1/B.
    """
    residuals = outputs - targets
    return 0.5 * np.sum(residuals**2, axis=1), residuals


def cross_entropy(outputs: Array, labels: NDArray[Any]) -> tuple[Array, Array]:
    """Return ℓ_b = −log softmax(f_b)_y and χ_b = softmax(f_b) − e_y.

    Parameters
    ----------
    outputs : (B, C)
    labels : (B,) integers in 0 … C−1

    Returns
    -------
    losses : (B,)
    residuals : (B, C)
        χ_b = ∂ℓ_b/∂f_b per sample, without the batch's 1/B.
    """
    # softmax does not change when a constant is added: shift so that exp cannot overflow.
    shifted = outputs - np.max(outputs, axis=1, keepdims=True)
    log_softmax = shifted - np.log(np.sum(np.exp(shifted), axis=1, keepdims=True))
    one_hot = np.arange(outputs.shape[1]) == labels[:, None]
    return -log_softmax[one_hot], np.exp(log_softmax) - one_hot


LOSSES: dict[str, Callable[[Array, NDArray[Any]], tuple[Array, Array]]] = {
    "mse": mse,
    "cross_entropy": cross_entropy,
}
"""Every loss by name."""
