"""Activations φ and their derivatives φ'.

Each is computed in float64 and rounded to the dtype of the argument. Limits at ±∞ are exact, NaN
goes in and comes out, and the derivatives of ``relu`` and ``abs`` are 0 at the kink (a convention;
the one of PyTorch). Arguments are clipped only where the value is already that of the limit, so
that 0·∞ never occurs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nfd_fast import arguments

Array = NDArray[np.float64]

_erf = np.vectorize(math.erf, otypes=[np.float64])
_erfc = np.vectorize(math.erfc, otypes=[np.float64])

_GAUSSIAN_END = 40.0  # exp(−40²/2) and erfc(40/√2) are 0 in float64
_LOGISTIC_END = 800.0  # exp(−800) is 0 in float64


class Activation(NamedTuple):
    """φ and φ' as functions of float64 arrays."""

    value: Callable[[Array], Array]
    derivative: Callable[[Array], Array]


def _tanh_derivative(x: Array) -> Array:
    # 1 − tanh² = 1/cosh² = 4e/(1+e)², e = exp(−2|x|): no cancellation, no overflow
    e = np.exp(-2 * np.abs(np.clip(x, -_LOGISTIC_END, _LOGISTIC_END)))
    sech_squared: Array = 4 * e / (1 + e) ** 2
    return sech_squared


def _erf_derivative(x: Array) -> Array:
    # 2/√π exp(−x²)
    x = np.clip(x, -_GAUSSIAN_END, _GAUSSIAN_END)
    return 2 / math.sqrt(math.pi) * np.exp(-x * x)


def _normal_cdf(x: Array) -> Array:
    # Φ(x) = ½ erfc(−x/√2)
    probability: Array = 0.5 * _erfc(-x / math.sqrt(2))
    return probability


def _normal_density(x: Array) -> Array:
    return np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def _gelu(x: Array) -> Array:
    # x Φ(x)
    return np.maximum(x, -_GAUSSIAN_END) * _normal_cdf(x)


def _gelu_derivative(x: Array) -> Array:
    # Φ(x) + x Φ'(x)
    x = np.clip(x, -_GAUSSIAN_END, _GAUSSIAN_END)
    return _normal_cdf(x) + x * _normal_density(x)


def _logistic(x: Array) -> Array:
    # σ(x) = 1/(1 + exp(−x)) = exp(x)/(exp(x) + 1)
    e = np.exp(-np.abs(x))
    value: Array = np.where(x >= 0, 1, e) / (1 + e)
    return value


def _silu(x: Array) -> Array:
    # x σ(x)
    return np.maximum(x, -_LOGISTIC_END) * _logistic(x)


def _silu_derivative(x: Array) -> Array:
    # σ(x) (1 + x σ(−x))
    x = np.clip(x, -_LOGISTIC_END, _LOGISTIC_END)
    return _logistic(x) * (1 + x * _logistic(-x))


def _softplus(x: Array) -> Array:
    # log(1 + exp(x))
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


ACTIVATIONS: dict[str, Activation] = {
    "identity": Activation(lambda x: x.copy(), np.ones_like),
    "relu": Activation(lambda x: np.maximum(x, 0), lambda x: np.heaviside(x, 0)),
    "abs": Activation(np.abs, np.sign),
    "tanh": Activation(np.tanh, _tanh_derivative),
    "erf": Activation(_erf, _erf_derivative),
    "gelu": Activation(_gelu, _gelu_derivative),
    "silu": Activation(_silu, _silu_derivative),
    "softplus": Activation(_softplus, _logistic),
}
"""Every activation by name."""


def activation(name: str, x: ArrayLike) -> NDArray[Any]:
    """Return φ(x) entry by entry, in the dtype of ``x`` (float32 or float64).

    Raises
    ------
    ValueError
        For an unknown name or another dtype.
    """
    return _apply(ACTIVATIONS[arguments.option("name", name, tuple(ACTIVATIONS))].value, x)


def activation_derivative(name: str, x: ArrayLike) -> NDArray[Any]:
    """Return φ'(x) entry by entry, in the dtype of ``x`` (float32 or float64).

    Raises
    ------
    ValueError
        For an unknown name or another dtype.
    """
    return _apply(ACTIVATIONS[arguments.option("name", name, tuple(ACTIVATIONS))].derivative, x)


def _apply(function: Callable[[Array], Array], x: ArrayLike) -> NDArray[Any]:
    x = arguments.as_array("x", x)
    dtype = arguments.dtype_name(x.dtype)
    return np.asarray(function(x.astype(np.float64))).astype(dtype)
