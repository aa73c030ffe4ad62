"""The conditional representation on given arrays: one layer, or a first pass (DESIGN §2)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nfd_fast import arguments
from nfd_fast.reference.activations import activation as phi
from nfd_fast.reference.conditional import ConditionalMatrix
from nfd_fast.reference.noise import layer_normal, normal
from nfd_fast.tolerance import TOLERANCE


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


def euler_maruyama(
    features_0: ArrayLike,
    *,
    depth: int,
    branch_factor: float,
    seed: int,
    activation: str = "tanh",
    skip: bool = True,
    noise_depth: int | None = None,
    all_layers: bool = True,
) -> NDArray[Any]:
    """Return the features of all layers of a network at initialisation, without its matrices.

    Parameters
    ----------
    features_0 : (B, n)
        H_0.
    depth : int
        L.
    branch_factor : float
        β.
    seed : int
        Of the noise ``"forward_noise"``, as for :func:`~nfd_fast.reference.normal`.
    activation : str
    skip : bool
        False drops the H_{l-1} term.
    noise_depth : int, optional
        A multiple of ``depth``, see :func:`~nfd_fast.reference.layer_normal`.
    all_layers : bool
        False returns H_L alone.

    Returns
    -------
    (L+1, B, n) or (B, n)
        In the dtype of ``features_0``, computed in float64.

    Raises
    ------
    ValueError
        For shapes, dtypes or sizes that don't fit.
    """
    first = arguments.float_array("features_0", features_0, ("batch", "width"))
    arguments.finite_array("features_0", first, first.shape, first.dtype)
    depth = arguments.integer("depth", depth, high=arguments.MAX_NOISE_DEPTH)
    fine = arguments.fine_layers(depth, noise_depth)
    beta, skip = arguments.real("branch_factor", branch_factor), arguments.flag("skip", skip)
    (batch, width), dtype = first.shape, arguments.dtype_name(first.dtype)
    h = np.zeros((depth + 1, batch, width))
    h[0] = first
    for layer in range(1, depth + 1 if first.size else 1):
        xi = layer_normal(
            seed, "forward_noise", width, layer=layer, refinement=fine, columns=range(batch),
            dtype="float64",
        )  # fmt: skip
        matrix = ConditionalMatrix(width, tolerance=TOLERANCE[dtype])
        features = phi(activation, h[layer - 1])
        answers = [matrix.answer("features", a, z)[0] for a, z in zip(features, xi, strict=True)]
        h[layer] = skip * h[layer - 1] + beta * np.stack(answers)
    result: NDArray[Any] = h.astype(dtype)
    return result if arguments.flag("all_layers", all_layers) else result[-1]
