"""The finite network: weights, forward pass, backward pass, SGD (DESIGN §1).

Arrays have the width last. A matrix equation of DESIGN, written for n×B columns, therefore appears
transposed: Ŵ A there is ``a @ w.T`` here.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from nfd_fast import arguments
from nfd_fast.model import BACKWARDS, SGD, ResNet, Weights
from nfd_fast.reference.activations import activation as phi
from nfd_fast.reference.activations import activation_derivative as phi_derivative
from nfd_fast.reference.losses import LOSSES
from nfd_fast.reference.noise import layer_normal, normal


def initial_weights(
    net: ResNet,
    seed: int,
    backward: str = "reused",
    *,
    noise_depth: int | None = None,
    dtype: DTypeLike = "float32",
) -> Weights:
    """Draw the unscaled weights of a network.

    Parameters
    ----------
    net : ResNet
    seed : int
        0 … 2⁶⁴−1.
    backward : str
        ``"reused"``, or ``"decoupled"`` to draw the independent W' too.
    noise_depth : int, optional
        Depth of the Brownian path, a multiple r·depth; by default the network's depth.
    dtype : "float32" or "float64"

    Returns
    -------
    Weights
        Entries are N(0, 1).

    Raises
    ------
    ValueError
        If an option is unknown or ``noise_depth`` is no multiple of the depth.

    Notes
    -----
    DESIGN §4: the neuron of the noise contract is the output index of W_in, W and W', and the
    column is the input index; for V they are the hidden neuron and the output.
    """
    arguments.instance("net", net, ResNet)
    n, depth = net.width, net.depth
    arguments.option("backward", backward, BACKWARDS)
    noise_depth = arguments.integer(
        "noise_depth",
        depth if noise_depth is None else noise_depth,
        high=arguments.MAX_NOISE_DEPTH,
    )
    if noise_depth % depth:
        raise ValueError(f"noise_depth must be a multiple of the depth {depth}, got {noise_depth}")

    def square_matrices(stream: str) -> NDArray[Any]:
        # normals come as [column, neuron] = [in, out]; weights are stored as [layer, out, in]
        return np.stack(
            [
                layer_normal(
                    seed,
                    stream,
                    n,
                    layer=layer,
                    refinement=noise_depth // depth,
                    columns=range(n),
                    dtype=dtype,
                ).T
                for layer in range(1, depth + 1)
            ]
        )

    input_normals = normal(seed, "input", n, columns=range(net.inputs), dtype=dtype)
    return Weights(
        input=np.ascontiguousarray(input_normals.T),
        hidden=square_matrices("hidden"),
        readout=normal(seed, "readout", n, columns=range(net.outputs), dtype=dtype),
        backward_hidden=square_matrices("backward_hidden") if backward == "decoupled" else None,
    )


def residual_forward(
    features_0: ArrayLike,
    hidden: ArrayLike,
    *,
    branch_factor: float,
    activation: str = "tanh",
    skip: bool = True,
) -> NDArray[Any]:
    """Propagate features through the hidden layers.

    Parameters
    ----------
    features_0 : (B, n)
        H_0.
    hidden : (L, n, n)
        Unscaled weights W, indexed [layer, out, in].
    branch_factor : float
        β.
    activation : str
    skip : bool
        Whether layers have a skip connection.

    Returns
    -------
    (L+1, B, n)
        H_0 … H_L, in the dtype of ``features_0``.

    Raises
    ------
    ValueError
        For shapes or dtypes that don't fit.
    """
    hidden = arguments.square_matrices("hidden", hidden)
    width = hidden.shape[-1]
    scale = arguments.real("branch_factor", branch_factor) / math.sqrt(width)
    skip = arguments.flag("skip", skip)
    features = [arguments.float_array("features_0", features_0, ("batch", width))]
    for weights in hidden:
        # H_l = [H_{l-1} +] β Ŵ_l φ(H_{l-1}),  Ŵ_l = W_l/√n
        branch = scale * (phi(activation, features[-1]) @ weights.T)
        features.append(features[-1] + branch if skip else branch)
    return np.stack(features)


def residual_backward(
    adjoints_last: ArrayLike,
    features: ArrayLike,
    hidden: ArrayLike,
    *,
    branch_factor: float,
    activation: str = "tanh",
    skip: bool = True,
    sources: ArrayLike | None = None,
) -> NDArray[Any]:
    """Propagate adjoints back through the hidden layers.

    Parameters
    ----------
    adjoints_last : (B, n)
        G_L.
    features : (L+1, B, n)
        H_0 … H_L of the forward pass.
    hidden : (L, n, n)
        Unscaled weights of the backward pass, indexed [layer, out, in]: W, or W' if decoupled.
    branch_factor, activation, skip
        As for :func:`residual_forward`.
    sources : (L, B, n), optional
        Derivatives of the loss by H_0 … H_{L-1} where it reads them besides H_L.

    Returns
    -------
    (L+1, B, n)
        G_0 … G_L, in the dtype of ``adjoints_last``.

    Raises
    ------
    ValueError
        For shapes or dtypes that don't fit.
    """
    hidden = arguments.square_matrices("hidden", hidden)
    depth, width = hidden.shape[:2]
    scale = arguments.real("branch_factor", branch_factor) / math.sqrt(width)
    skip = arguments.flag("skip", skip)
    adjoints = [arguments.float_array("adjoints_last", adjoints_last, ("batch", width))]
    layers = arguments.float_array("features", features, (depth + 1, *adjoints[0].shape))
    shape = (depth, *adjoints[0].shape)
    read = np.zeros(shape) if sources is None else arguments.float_array("sources", sources, shape)
    for weights, previous_features, entering in zip(
        hidden[::-1], layers[-2::-1], read[::-1].astype(layers.dtype), strict=True
    ):
        # G_{l-1} = [G_l +] β φ'(H_{l-1}) ∘ (Ŵ_lᵀ G_l) [+ ∂loss/∂H_{l-1}]
        branch = scale * phi_derivative(activation, previous_features) * (adjoints[-1] @ weights)
        adjoints.append((adjoints[-1] + branch if skip else branch) + entering)
    return np.stack(adjoints[::-1])


def sgd_update(
    hidden: ArrayLike,
    features: ArrayLike,
    adjoints: ArrayLike,
    sample_weights: ArrayLike,
    *,
    step: float,
    activation: str = "tanh",
) -> NDArray[Any]:
    """Return hidden weights after one SGD update (the compiled kernel works in place).

    Parameters
    ----------
    hidden : (L, n, n)
        Unscaled weights W, or W' of the decoupled network.
    features, adjoints : (L+1, B, n)
        H_0 … H_L and G_0 … G_L before the update.
    sample_weights : (B,)
        w_b: χ_b if there is one output, else 1.
    step : float
        η β m, m = 1/B.
    activation : str

    Returns
    -------
    (L, n, n)
        In the dtype of ``hidden``.

    Raises
    ------
    ValueError
        For shapes or dtypes that don't fit.
    """
    hidden = arguments.square_matrices("hidden", hidden)
    depth, width = hidden.shape[:2]
    features = arguments.float_array("features", features, (depth + 1, "batch", width))
    adjoints = arguments.float_array("adjoints", adjoints, features.shape)
    sample_weights = arguments.finite_array(
        "sample_weights", sample_weights, (features.shape[1],), np.float64
    )
    scale = arguments.real("step", step) / math.sqrt(width)
    weighted = _as_column(sample_weights, adjoints) * adjoints
    # W_l ← W_l − ηβm/√n Σ_b w_b G_l[b] φ(H_{l-1}[b])ᵀ;  in Ŵ = W/√n this is DESIGN's m/n
    change = np.swapaxes(weighted[1:], 1, 2) @ phi(activation, features[:-1])
    updated: NDArray[Any] = hidden - scale * change
    return updated


def hidden_gradient(
    features: ArrayLike,
    adjoints: ArrayLike,
    *,
    branch_factor: float,
    activation: str = "tanh",
) -> NDArray[Any]:
    """Return the derivative of a loss by the unscaled hidden weights.

    Parameters
    ----------
    features, adjoints : (L+1, B, n)
        H_0 … H_L, and the derivatives of the loss by them.
    branch_factor : float
        β.
    activation : str

    Returns
    -------
    (L, n, n)
        Indexed [layer, out, in].

    Raises
    ------
    ValueError
        For shapes or dtypes that don't fit.
    """
    features = arguments.float_array("features", features, ("depth + 1", "batch", "width"))
    adjoints = arguments.float_array("adjoints", adjoints, features.shape)
    scale = arguments.real("branch_factor", branch_factor) / math.sqrt(features.shape[-1])
    # ∂/∂W_l = β/√n Σ_b G_l[b] φ(H_{l-1}[b])ᵀ
    gradient: NDArray[Any] = scale * (
        np.swapaxes(adjoints[1:], 1, 2) @ phi(activation, features[:-1])
    )
    return gradient


class ForwardPass(NamedTuple):
    """A batch on its way up.

    ``features`` (L+1, B, n) have the network's dtype; ``outputs`` (B, C), ``losses`` (B,) and
    ``residuals`` χ (B, C) are float64.
    """

    features: NDArray[Any]
    outputs: NDArray[np.float64]
    losses: NDArray[np.float64]
    residuals: NDArray[np.float64]


def forward_pass(
    net: ResNet, sgd: SGD, weights: Weights, x: NDArray[Any], y: NDArray[Any]
) -> ForwardPass:
    """Return features, outputs, losses and residuals of a batch x (B, d) with targets y.

    ``y`` is (B, C) for "mse", integer labels (B,) for "cross_entropy".
    """
    # H_0 = W_in X/√d
    features_0 = (x @ weights.input.T) / math.sqrt(net.inputs)
    features = residual_forward(
        features_0,
        weights.hidden,
        branch_factor=net.branch_factor,
        activation=net.activation,
        skip=net.skip,
    )
    # f = Vᵀ H_L/n
    outputs = features[-1].astype(np.float64) @ weights.readout.astype(np.float64).T / net.width
    losses, residuals = LOSSES[sgd.loss](outputs, y)
    return ForwardPass(features, outputs, losses, residuals)


def backward_pass(net: ResNet, weights: Weights, forward: ForwardPass) -> NDArray[Any]:
    """Return the adjoints G_0 … G_L (L+1, B, n) of a batch, scaled by n.

    Of the output itself if there is one, else of the loss.
    """
    seed = np.ones_like(forward.residuals) if net.outputs == 1 else forward.residuals
    hidden = weights.hidden if weights.backward_hidden is None else weights.backward_hidden
    return residual_backward(
        seed.astype(weights.dtype) @ weights.readout,  # G_L = V·seed
        forward.features,
        hidden,
        branch_factor=net.branch_factor,
        activation=net.activation,
        skip=net.skip,
    )


def updated_weights(
    net: ResNet,
    sgd: SGD,
    weights: Weights,
    x: NDArray[Any],
    forward: ForwardPass,
    adjoints: NDArray[Any],
) -> Weights:
    """Return the weights after one SGD update on a batch; all right-hand sides are pre-update."""
    rate, m = sgd.learning_rate, 1 / len(x)
    residuals = forward.residuals.astype(weights.dtype)
    # G belongs to the output if C = 1 and already contains χ otherwise
    sample_weights = residuals[:, 0] if net.outputs == 1 else np.ones(len(x), weights.dtype)
    moved: dict[str, NDArray[Any]] = {}

    if "input" in sgd.train:
        # W_in ← W_in − η m/√d Σ_b w_b G_0[b] x_bᵀ
        weighted = _as_column(sample_weights, adjoints) * adjoints[0]
        moved["input"] = weights.input - rate * m / math.sqrt(net.inputs) * (weighted.T @ x)
    if "hidden" in sgd.train:
        # W and W' receive the same learned update
        for name in ("hidden", "backward_hidden"):
            if getattr(weights, name) is not None:
                moved[name] = sgd_update(
                    getattr(weights, name),
                    forward.features,
                    adjoints,
                    sample_weights,
                    step=rate * net.branch_factor * m,
                    activation=net.activation,
                )
    if "readout" in sgd.train:
        # V ← V − η m Σ_b H_L[b] χ_bᵀ;  stored as Vᵀ
        moved["readout"] = weights.readout - rate * m * (residuals.T @ forward.features[-1])
    return replace(weights, **moved)


def _as_column(sample_weights: ArrayLike, like: NDArray[Any]) -> NDArray[Any]:
    """Return w_b as a (B, 1) column in the dtype of ``like``."""
    return np.asarray(sample_weights, dtype=like.dtype)[:, None]
