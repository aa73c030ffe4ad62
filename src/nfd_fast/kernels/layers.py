"""Hidden layers with their matrices: forward, backward, update."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nfd_fast import _core, arguments, device_arrays, device_kernels, outputs
from nfd_fast.threads import thread_count

_Filled = TypeVar("_Filled")
"""What the caller gave to be filled, and gets back."""


def activation(name: str, x: ArrayLike, *, out: Any = None) -> NDArray[Any]:
    """Return φ(x) element by element, in the dtype of ``x``.

    Parameters
    ----------
    name : str
        One of ``nfd_fast.ACTIVATIONS``.
    x : array of float32 or float64, any shape
    out : array like ``x``, optional
        May be ``x`` itself.

    Returns
    -------
    array like ``x``

    Raises
    ------
    ValueError
        For an unknown name or another dtype.
    """
    return _apply(name, x, out, derivative=False)


def activation_derivative(name: str, x: ArrayLike, *, out: Any = None) -> NDArray[Any]:
    """Return φ'(x) element by element; arguments as in :func:`activation`.

    The derivatives of relu and abs at 0 are 0.
    """
    return _apply(name, x, out, derivative=True)


def residual_forward(
    features_0: ArrayLike,
    hidden: ArrayLike,
    *,
    branch_factor: float,
    activation: str = "tanh",
    skip: bool = True,
    out: Any = None,
    threads: int | None = None,
    cuda_stream: int | None = None,
) -> NDArray[Any]:
    """Return the features of all layers, H_l = H_{l-1} + (β/√n) W_l φ(H_{l-1}).

    Parameters
    ----------
    features_0 : (B, n) array
        H_0.
    hidden : (L, n, n) array
        Unscaled W, indexed [layer, out, in]; its dtype is the dtype of the computation.
    branch_factor : float
        β.
    activation : str
        One of ``nfd_fast.ACTIVATIONS``.
    skip : bool
        False drops the H_{l-1} term (``mlp``).
    out : (L+1, B, n) array, optional
        ``features_0`` may be its first layer.
    threads : int, optional
    cuda_stream : int, optional
        For arrays on a GPU: the handle of a stream.

    Returns
    -------
    (L+1, B, n) array

    Raises
    ------
    ValueError
        For shapes or dtypes that don't fit.

    Notes
    -----
    DESIGN §1. Non-finite numbers propagate as in NumPy.
    """
    factor, skip = arguments.real("branch_factor", branch_factor), arguments.flag("skip", skip)
    if device_arrays.found(features_0, hidden, out):
        device_kernels.residual_forward(
            features_0,
            hidden,
            out,
            cuda_stream,
            branch_factor=factor,
            skip=skip,
            activation=activation_index(activation),
        )
        return out  # type: ignore[no-any-return]
    device_arrays.without_device(cuda_stream)
    matrices = arguments.square_matrices("hidden", hidden)
    depth, width = matrices.shape[:2]
    first = arguments.float_array("features_0", features_0, ("batch", width), matrices.dtype)
    shape = (depth + 1, *first.shape)
    result = outputs.output("out", out, shape, matrices.dtype, hidden=matrices)
    outputs.keep_apart("out", result, "features_0", first, place=result[0])
    result[0] = first
    _core.residual_forward(
        matrices,
        result,
        factor,
        skip,
        activation_index(activation),
        thread_count(threads),
    )
    return result if out is None else out


def residual_backward(
    adjoints_last: ArrayLike,
    features: ArrayLike,
    hidden: ArrayLike,
    *,
    branch_factor: float,
    activation: str = "tanh",
    skip: bool = True,
    sources: ArrayLike | None = None,
    out: Any = None,
    threads: int | None = None,
    cuda_stream: int | None = None,
) -> NDArray[Any]:
    """Return the adjoints of all layers, G_{l-1} = G_l + (β/√n) φ'(H_{l-1}) ∘ (W_lᵀ G_l).

    Parameters
    ----------
    adjoints_last : (B, n) array
        G_L.
    features : (L+1, B, n) array
        What :func:`residual_forward` returned.
    hidden : (L, n, n) array
        Unscaled W, or the independent W' of the decoupled network.
    branch_factor, activation, skip, threads, cuda_stream
        As in :func:`residual_forward`.
    sources : (L, B, n) array, optional
        Added to G_0 … G_{L-1}: derivatives of a loss that reads the features of those layers too.
    out : (L+1, B, n) array, optional
        ``adjoints_last`` may be its last layer.

    Returns
    -------
    (L+1, B, n) array

    Raises
    ------
    ValueError
        For shapes or dtypes that don't fit.

    Notes
    -----
    DESIGN §1.
    """
    factor, skip = arguments.real("branch_factor", branch_factor), arguments.flag("skip", skip)
    if device_arrays.found(adjoints_last, features, hidden, sources, out):
        device_kernels.residual_backward(
            adjoints_last,
            features,
            hidden,
            sources,
            out,
            cuda_stream,
            branch_factor=factor,
            skip=skip,
            activation=activation_index(activation),
        )
        return out  # type: ignore[no-any-return]
    device_arrays.without_device(cuda_stream)
    matrices = arguments.square_matrices("hidden", hidden)
    depth, width = matrices.shape[:2]
    last = arguments.float_array("adjoints_last", adjoints_last, ("batch", width), matrices.dtype)
    layers = arguments.float_array("features", features, (depth + 1, *last.shape), matrices.dtype)
    given = {"hidden": matrices, "features": layers}
    entering = None
    if sources is not None:
        shape = (depth, *last.shape)
        entering = arguments.float_array("sources", sources, shape, matrices.dtype)
        given["sources"] = entering
    result = outputs.output("out", out, layers.shape, matrices.dtype, **given)
    outputs.keep_apart("out", result, "adjoints_last", last, place=result[depth])
    result[depth] = last
    _core.residual_backward(
        matrices,
        layers,
        entering,
        result,
        factor,
        skip,
        activation_index(activation),
        thread_count(threads),
    )
    return result if out is None else out


def sgd_update(
    hidden: _Filled,
    features: ArrayLike,
    adjoints: ArrayLike,
    sample_weights: ArrayLike,
    *,
    step: float,
    activation: str = "tanh",
    threads: int | None = None,
    cuda_stream: int | None = None,
) -> _Filled:
    """Move the hidden weights in place: W_l −= (step/√n) Σ_b w_b G_l[b] φ(H_{l-1}[b])ᵀ.

    Parameters
    ----------
    hidden : (L, n, n) array
        Unscaled W; changed. Like an ``out`` it must be C-contiguous, aligned and writeable.
    features, adjoints : (L+1, B, n) arrays
    sample_weights : (B,) array
        w_b: χ_b for one output, 1 otherwise.
    step : float
        η β m, with learning rate η, branch factor β and m = 1/B.
    activation, threads, cuda_stream
        As in :func:`residual_forward`.

    Returns
    -------
    (L, n, n) array
        ``hidden`` itself.

    Raises
    ------
    ValueError
        For shapes or dtypes that don't fit, or ``hidden`` that can't be written.

    Notes
    -----
    DESIGN §1.
    """
    factor = arguments.real("step", step)
    if device_arrays.found(hidden, features, adjoints, sample_weights):
        device_kernels.sgd_update(
            hidden,
            features,
            adjoints,
            sample_weights,
            cuda_stream,
            step=factor,
            activation=activation_index(activation),
        )
        return hidden
    device_arrays.without_device(cuda_stream)
    matrices = arguments.square_matrices("hidden", outputs.in_place("hidden", hidden))
    depth, width = matrices.shape[:2]
    layers = arguments.float_array(
        "features", features, (depth + 1, "batch", width), matrices.dtype
    )
    above = arguments.float_array("adjoints", adjoints, layers.shape, matrices.dtype)
    weights = arguments.finite_array("sample_weights", sample_weights, (layers.shape[1],), float)
    given = {"features": layers, "adjoints": above, "sample_weights": weights}
    for name, array in given.items():
        outputs.keep_apart("hidden", matrices, name, array)
    _core.sgd_update(
        matrices,
        layers,
        above,
        weights,
        factor,
        False,
        activation_index(activation),
        thread_count(threads),
    )
    return hidden


def hidden_gradient(
    features: ArrayLike,
    adjoints: ArrayLike,
    *,
    branch_factor: float,
    activation: str = "tanh",
    out: Any = None,
    threads: int | None = None,
    cuda_stream: int | None = None,
) -> NDArray[Any]:
    """Return the derivative by the hidden weights, (β/√n) Σ_b G_l[b] φ(H_{l-1}[b])ᵀ.

    Parameters
    ----------
    features, adjoints : (L+1, B, n) arrays
        H_0 … H_L and G_0 … G_L, the derivatives of the same loss by them, L and n at least 1.
    branch_factor, activation, threads, cuda_stream
        As in :func:`residual_forward`.
    out : (L, n, n) array, optional

    Returns
    -------
    (L, n, n) array
        By the unscaled W, indexed [layer, out, in].

    Raises
    ------
    ValueError
        For shapes or dtypes that don't fit.

    Notes
    -----
    DESIGN §1, whose SGD moves W_l by −η n times this if G is scaled by n.
    """
    factor = arguments.real("branch_factor", branch_factor)
    if device_arrays.found(features, adjoints, out):
        device_kernels.hidden_gradient(
            features,
            adjoints,
            out,
            cuda_stream,
            branch_factor=factor,
            activation=activation_index(activation),
        )
        return out  # type: ignore[no-any-return]
    device_arrays.without_device(cuda_stream)
    layers = arguments.float_array("features", features, ("depth + 1", "batch", "width"))
    arguments.check_stack("features", layers)
    depth, batch, width = layers.shape[0] - 1, *layers.shape[1:]
    above = arguments.float_array("adjoints", adjoints, layers.shape, layers.dtype, of="features")
    shape = (depth, width, width)
    result = outputs.output("out", out, shape, layers.dtype, features=layers, adjoints=above)
    _core.sgd_update(
        result,
        layers,
        above,
        np.ones(batch),
        -factor,
        True,
        activation_index(activation),
        thread_count(threads),
    )
    return result if out is None else out


def activation_index(name: str) -> int:
    """Return the place of an activation in the compiled list."""
    return _core.ACTIVATIONS.index(arguments.option("activation", name, _core.ACTIVATIONS))


def _apply(name: str, x: ArrayLike, out: Any, *, derivative: bool) -> NDArray[Any]:
    index = activation_index(name)
    array = arguments.as_array("x", x)
    if array.dtype not in (np.float32, np.float64):
        raise ValueError(f"x must be float32 or float64, got dtype {array.dtype}")
    array = np.require(array, requirements=["C", "A"])
    result = outputs.output("out", out, array.shape, array.dtype)
    outputs.keep_apart("out", result, "x", array, place=result)
    _core.apply_activation(index, derivative, array.reshape(-1), result.reshape(-1))
    return result if out is None else out
