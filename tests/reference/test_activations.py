"""Activations and derivatives against mpmath; the derivatives against derivatives of the values."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import mpmath
import numpy as np
import pytest
from numpy.typing import NDArray

import nfd_fast
from nfd_fast import reference

# φ alone is written down here; φ' is mpmath's numerical derivative of it in 60 digits, so the two
# formulas for one activation are independent. relu and abs are differentiated apart.
VALUES: dict[str, Callable[[Any], Any]] = {
    "identity": lambda x: x,
    "relu": lambda x: max(x, mpmath.mpf(0)),
    "abs": abs,
    "tanh": mpmath.tanh,
    "erf": mpmath.erf,
    "gelu": lambda x: x * mpmath.erfc(-x / mpmath.sqrt(2)) / 2,
    "silu": lambda x: x / (1 + mpmath.exp(-x)),
    "softplus": lambda x: mpmath.log1p(mpmath.exp(x)),
}
STEPS: dict[str, Callable[[Any], Any]] = {
    "identity": lambda x: mpmath.mpf(1),
    "relu": lambda x: mpmath.mpf(x > 0),
    "abs": mpmath.sign,
}
# φ(+∞), φ(−∞), φ'(+∞), φ'(−∞), φ'(0)
LIMITS = {
    "identity": (math.inf, -math.inf, 1, 1, 1),
    "relu": (math.inf, 0, 1, 0, 0),
    "abs": (math.inf, math.inf, 1, -1, 0),
    "tanh": (1, -1, 0, 0, 1),
    "erf": (1, -1, 0, 0, 2 / math.sqrt(math.pi)),
    "gelu": (math.inf, 0, 1, 0, 0.5),
    "silu": (math.inf, 0, 1, 0, 0.5),
    "softplus": (math.inf, 0, 1, 0, 0.5),
}
# Ulps of a value; ulps of max(|φ'|, 0.1) of a derivative: 0.1 because φ' of gelu and silu passes
# through zero between terms of that size, where no relative accuracy exists.
VALUE_ULPS = 6
DERIVATIVE_ULPS = 8


@functools.cache
def points(dtype: str) -> NDArray[Any]:
    """Stratified arguments: every binade that matters, both tails, zeros of gelu' and silu'."""
    magnitudes = [
        np.logspace(-30, -2, 60),
        np.linspace(0.01, 12, 200),
        np.linspace(12, 120, 60),
        np.logspace(2, 30, 20),
        [0.7517915246935645, 1.2784645427610738, 0.5, 1.0],
    ]
    x = np.concatenate([sign * np.concatenate(magnitudes) for sign in (1, -1)])
    random = np.random.default_rng(3).standard_normal(200)
    return np.concatenate([x, random]).astype(dtype)


def floor_of(found: NDArray[Any]) -> float:
    """Below the smallest normal number an ulp is that of the smallest normal number."""
    return float(np.finfo(found.dtype).tiny)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", reference.ACTIVATIONS)
def test_values(implementation: ModuleType, name: str, dtype: str) -> None:
    """Against mpmath in 60 digits.

    Φ(x), x < 0, has condition number about x² in x, and the reference rounds −x/√2 first: it loses
    up to x² ulps in gelu's left tail, where gelu is nearly 0. The kernels do not.
    """
    x = points(dtype)
    found = implementation.activation(name, x)
    assert found.dtype == dtype
    with mpmath.workdps(60):
        exact = [VALUES[name](mpmath.mpf(float(v))) for v in x]
        errors = np.array(
            [float(mpmath.mpf(float(f)) - e) for f, e in zip(found, exact, strict=True)]
        )
    size = np.maximum(np.abs(np.array([float(e) for e in exact])), floor_of(found))
    bound = np.full(x.shape, float(VALUE_ULPS))
    if name == "gelu" and implementation is reference:
        bound *= np.where(x < 0, np.maximum(1, x.astype(np.float64) ** 2), 1)
    assert (np.abs(errors) <= bound * np.spacing(size.astype(dtype)).astype(np.float64)).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", reference.ACTIVATIONS)
def test_derivatives(implementation: ModuleType, name: str, dtype: str) -> None:
    """Against mpmath's differentiation of φ (not of our formula) in 60 digits."""
    x = points(dtype)
    x = x[np.abs(x) < 1000]  # beyond, the limits below; mpmath's difference step needs |φ| small
    found = implementation.activation_derivative(name, x)
    assert found.dtype == dtype
    with mpmath.workdps(60):
        differentiate = STEPS.get(name, lambda v: mpmath.diff(VALUES[name], v))
        exact = [differentiate(mpmath.mpf(float(v))) for v in x]
        errors = np.array(
            [float(mpmath.mpf(float(f)) - e) for f, e in zip(found, exact, strict=True)]
        )
    size = np.maximum(np.abs(np.array([float(e) for e in exact])), 0.1).astype(dtype)
    assert (np.abs(errors) <= DERIVATIVE_ULPS * np.spacing(size).astype(np.float64)).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", reference.ACTIVATIONS)
def test_limits(implementation: ModuleType, name: str, dtype: str) -> None:
    """Exact limits at ±∞ (within 1 ulp for finite ones), zeros of both signs, the kinks, NaN."""
    largest = np.finfo(dtype).max
    x = np.array([math.inf, -math.inf, largest, -largest, 0.0, -0.0, math.nan], dtype=dtype)
    value = implementation.activation(name, x)
    slope = implementation.activation_derivative(name, x)
    up, down, slope_up, slope_down, slope_0 = LIMITS[name]
    at_0 = math.log(2) if name == "softplus" else 0
    end, start = (largest if math.isinf(v) else v for v in (up, abs(down)))
    expected = [up, down, end, math.copysign(start, down), at_0, at_0, math.nan]
    ulp = np.finfo(dtype).eps
    np.testing.assert_allclose(value, np.array(expected, dtype=dtype), rtol=ulp, atol=0)
    slopes = [slope_up, slope_down, slope_up, slope_down, slope_0, slope_0]
    np.testing.assert_allclose(slope[:-1], np.array(slopes, dtype=dtype), rtol=ulp, atol=0)
    assert name in STEPS or np.isnan(slope[-1])


def test_names() -> None:
    """The compiled table and the reference list the same activations in the same order."""
    assert tuple(reference.ACTIVATIONS) == nfd_fast.ACTIVATIONS


def test_arguments(implementation: ModuleType) -> None:
    """An unknown name lists the known ones; only float32 and float64 are taken."""
    for function in (implementation.activation, implementation.activation_derivative):
        with pytest.raises(ValueError, match=r"identity.*softplus"):
            function("swish", np.zeros(3))
        with pytest.raises(ValueError, match="float32"):
            function("tanh", np.zeros(3, dtype=np.int64))


def test_shape_is_kept(implementation: ModuleType) -> None:
    """Entry by entry, for any shape; the argument is left as it was."""
    x = np.linspace(-1, 1, 24).reshape(2, 3, 4)
    before = x.copy()
    for name in reference.ACTIVATIONS:
        assert implementation.activation(name, x).shape == x.shape
        assert implementation.activation_derivative(name, x).shape == x.shape
    np.testing.assert_array_equal(x, before)
