"""One layer of the conditional Gaussian representation on given arrays (DESIGN §2)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nfd_fast import arguments
from nfd_fast.reference.noise import normal


def euler_maruyama_step(
    state: ArrayLike,
    noise_coefficients: ArrayLike,
    *,
    seed: int,
    layer: int,
    columns: Iterable[int],
    stream: str = "forward_noise",
    images: ArrayLike | None = None,
    image_coefficients: ArrayLike | None = None,
    directions: ArrayLike | None = None,
    direction_coefficients: ArrayLike | None = None,
) -> NDArray[Any]:
    """Add to each sample's neurons what the layer's matrix answers, drawn from its past answers.

    Parameters
    ----------
    state : (B, n)
        H_{l-1}.
    noise_coefficients : (m, B)
        β c₃.
    seed, stream, layer, columns
        As for :func:`~nfd_fast.reference.normal`, whose (m, n) numbers are Ξ.
    images, image_coefficients : (p, n) and (p, B), optional
        Y and β c₁.
    directions, direction_coefficients : (q, n) and (q, B), optional
        Q_G and β c₂.

    Returns
    -------
    (B, n)
        In the dtype of ``state``, computed in float64.

    Raises
    ------
    ValueError
        For shapes or dtypes that don't fit.
    """
    state = arguments.float_array("state", state, ("batch", "width"))
    batch, width = state.shape
    indices = arguments.columns(columns)
    c3 = arguments.finite_array(
        "noise_coefficients", noise_coefficients, (len(indices), batch), np.float64
    )
    y, c1 = arguments.terms(("images", "image_coefficients"), images, image_coefficients, state)
    q, c2 = arguments.terms(
        ("directions", "direction_coefficients"), directions, direction_coefficients, state
    )
    xi = normal(seed, stream, width, layer=layer, columns=indices, dtype="float64")
    # H_l = H_{l-1} + β [Y c₁ + Q_G c₂ + Ξ c₃], transposed: samples are rows here
    after: NDArray[np.float64] = state + c1.T @ y + c2.T @ q + c3.T @ xi
    return after.astype(state.dtype)
