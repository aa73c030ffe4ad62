"""Kernels at infinite width: closed forms, the NumPy reference, and networks themselves."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any

import mpmath
import numpy as np
import pytest

import nfd_fast as nfd
from nfd_fast import _core, reference, theory
from nfd_fast.model import TRAINABLE

PAIRS = [
    (1.0, 1.0, 0.3),
    (0.2, 1.7, -0.4),
    (2.5, 0.9, 1.45),  # correlation 0.967
    (1.3, 1.3, 1.3),  # one sample
    (1.3, 1.3, -1.3),  # and its mirror image
    (4.0, 1.0, 2.0),  # parallel
    (1e-3, 9.0, 0.02),
    (0.0, 1.0, 0.0),
    (0.0, 0.0, 0.0),
]


def moments(name: str, pairs: Any, threads: int = 1) -> np.ndarray:
    first, second, covariance = np.array(pairs, dtype=np.float64).T.copy()
    product, slopes = np.empty(len(first)), np.empty(len(first))
    index = nfd.ACTIVATIONS.index(name)
    _core.gaussian_moments(index, first, second, covariance, product, slopes, threads)
    return np.stack([product, slopes], axis=1)


@pytest.mark.parametrize("name", nfd.ACTIVATIONS)
def test_moments_against_the_reference(name: str) -> None:
    """Gauss–Legendre on smooth pieces against closed forms and the trapezoidal rule.

    Both sum terms of the size of the moments' second moments, rounded to a few eps.
    """
    for pair, found in zip(PAIRS, moments(name, PAIRS), strict=True):
        expected = reference.gaussian_moments(name, *pair)
        if name in ("relu", "abs") and 0.0 in pair:
            expected[1] = 0.0  # φ'(0) = 0
        size = 1 + math.sqrt(pair[0] * pair[1])
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-13 * size)


@pytest.mark.parametrize("name", ["tanh", "gelu", "silu", "softplus", "erf", "relu"])
def test_moments_against_arbitrary_precision(name: str) -> None:
    """E[φφ] as a Hermite series Σ_k c_k(a) c_k(b) ρ^k with mpmath's coefficients, ρ = 0.3."""
    phi = {
        "tanh": mpmath.tanh,
        "erf": mpmath.erf,
        "gelu": lambda x: x * mpmath.erfc(-x / mpmath.sqrt(2)) / 2,
        "silu": lambda x: x / (1 + mpmath.exp(-x)),
        "softplus": lambda x: mpmath.log1p(mpmath.exp(x)),
        "relu": lambda x: max(x, mpmath.mpf(0)),
    }[name]
    with mpmath.workdps(20):

        def coefficient(k: int, scale: float) -> Any:
            def integrand(z: Any) -> Any:
                hermite = mpmath.hermite(k, z / mpmath.sqrt(2)) / mpmath.sqrt(2) ** k
                return phi(scale * z) * hermite * mpmath.npdf(z) / mpmath.sqrt(mpmath.factorial(k))

            return mpmath.quad(integrand, [-12, -4, 0, 4, 12])

        expected = sum(
            coefficient(k, 1.0) * coefficient(k, math.sqrt(0.5)) * mpmath.mpf("0.3") ** k
            for k in range(16)
        )  # the rest is below 0.3^16 = 4e-9 of the variance, and far below for all but relu
    found = moments(name, [(1.0, 0.5, 0.3 * math.sqrt(0.5))])[0, 0]
    rest = 1e-10 if name != "relu" else 1e-11  # relu's even coefficients fall as k^-5/4
    assert found == pytest.approx(float(expected), rel=rest)


@pytest.mark.parametrize("name", ["tanh", "softplus", "gelu"])
def test_moments_do_not_depend_on_threads(name: str) -> None:
    assert np.array_equal(moments(name, PAIRS, 1), moments(name, PAIRS, 2))


def test_moments_beyond_the_quadrature_are_no_numbers() -> None:
    found = moments("tanh", [(2e4, 1.0, 0.0), (-1.0, 1.0, 0.0), (math.nan, 1.0, 0.0)])
    assert np.isnan(found).all()


@pytest.mark.parametrize("name", ["relu", "abs"])
@pytest.mark.parametrize("size", [1e-160, 1e-100, 1e-80, 1e100, 1e160])
def test_homogeneous_activations_have_no_scale(name: str, size: float) -> None:
    """E[φ(u)φ(v)] grows with √(ab), E[φ'(u)φ'(v)] not at all."""
    pairs = [(1.0, 1.0, 0.0), (1.0, 1.0, 0.3), (1.0, 4.0, -1.9), (1.0, 1.0, 1.0), (1.0, 1.0, -1.0)]
    product, slope = moments(name, pairs).T
    far_product, far_slope = moments(name, [(size * a, size * b, size * c) for a, b, c in pairs]).T
    np.testing.assert_allclose(far_product / size, product, rtol=1e-14, atol=1e-15)
    np.testing.assert_allclose(far_slope, slope, rtol=0, atol=1e-7)


X = np.array([[1.0, 0.4, -0.3], [-0.5, 1.1, 0.8], [1.0, 0.4, -0.3], [0.0, 0.0, 0.0]])


@pytest.mark.parametrize("parameterization", ["depth_mup", "mup", "mlp"])
@pytest.mark.parametrize("name", nfd.ACTIVATIONS)
def test_kernels_against_the_reference(name: str, parameterization: str) -> None:
    x = X[:3] if name in ("relu", "abs") else X  # their slope at a zero input is a convention
    net = nfd.ResNet(1, 1, 3, 1, 0.7, name, parameterization)
    found = nfd.initial_kernels(net, x, depth=2)
    expected = reference.initial_kernels(net, x, train=TRAINABLE, depth=2)
    # The angle of a rounded correlation near 1 keeps half of the digits of relu's and abs's slopes.
    limit = 1e-7 if name in ("relu", "abs") else 1e-11
    for ours, theirs in zip(found[1:], expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=limit, atol=1e-12)
    np.testing.assert_array_equal(found.times, [0, 0.5, 1])


@pytest.mark.parametrize("train", [("input",), ("hidden",), ("readout",), ()])
@pytest.mark.parametrize("parameterization", ["depth_mup", "mup", "mlp"])
def test_shares_of_the_weights(parameterization: str, train: tuple[str, ...]) -> None:
    net = nfd.ResNet(1, 1, 3, 1, 0.7, "tanh", parameterization)
    found = nfd.initial_kernels(net, X[:2], train=train, depth=3)
    expected = reference.initial_kernels(net, X[:2], train=train, depth=3)
    for ours, theirs in zip(found[1:], expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("horizon", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("depth", [1, 2, 7, 1000, 100_000])
def test_closed_forms_at_finite_depth(depth: int, horizon: float) -> None:
    """DESIGN §3.4: T(1+T/L)^(L−1) with reused weights, (1+T/L)^L − 1 decoupled."""
    net = nfd.ResNet(1, 1, 2, horizon=horizon, activation="identity")
    found = nfd.initial_kernels(net, [[1.0, 1.0]], train=["hidden"], depth=depth)
    growth = 1 + horizon / depth
    assert found.tangent[0, 0] == pytest.approx(horizon * growth ** (depth - 1), rel=1e-10)
    assert found.decoupled_tangent[0, 0] == pytest.approx(growth**depth - 1, rel=1e-10)


@pytest.mark.parametrize("horizon", [0.1, 1.0, 3.0])
def test_closed_forms_of_the_limit(horizon: float) -> None:
    """Identity: S_t = exp(Tt) S_0, Γ_t = exp(T(1−t)), hence T exp T and exp T − 1 (DESIGN §3.4)."""
    net = nfd.ResNet(1, 1, 2, horizon=horizon, activation="identity")
    x = np.array([[1.0, 1.0], [0.5, -2.0]])
    first = x @ x.T / 2
    found = nfd.initial_kernels(net, x, train=["hidden"])
    times = found.times[:, None, None]
    exact = {"rtol": 1e-11, "atol": 1e-12}
    np.testing.assert_allclose(found.features, np.exp(horizon * times) * first, **exact)
    np.testing.assert_allclose(found.adjoints, np.exp(horizon * (1 - times)) + 0 * first, **exact)
    np.testing.assert_allclose(found.tangent, horizon * math.exp(horizon) * first, **exact)
    np.testing.assert_allclose(found.decoupled_tangent, math.expm1(horizon) * first, **exact)
    whole = nfd.initial_kernels(net, x)
    np.testing.assert_allclose(whole.tangent, (2 + horizon) * math.exp(horizon) * first, **exact)


def test_one_sample_through_relu() -> None:
    """E[φφ] = S/2 and E[φ'φ'] = 1/2 for one sample: the identity's formulas with T/2."""
    net = nfd.ResNet(1, 1, 2, horizon=2.0, activation="relu")
    found = nfd.initial_kernels(net, [[1.0, 1.0]], train=["hidden"])
    assert found.tangent[0, 0] == pytest.approx(math.e, rel=1e-11)
    assert found.decoupled_tangent[0, 0] == pytest.approx(math.expm1(1.0), rel=1e-11)


@pytest.mark.parametrize("name", ["erf", "relu", "abs", "identity"])
def test_the_limit_is_where_depth_leads(name: str) -> None:
    """Errors of powers 1/L, 1/L², 1/L³ removed by Richardson's extrapolation leave 1/L⁴."""
    net = nfd.ResNet(1, 1, 3, activation=name)
    rows = []
    for depth in (256, 512, 1024, 2048):
        kernels = nfd.initial_kernels(net, X[:2], depth=depth)
        rows.append(np.stack([kernels.tangent, kernels.decoupled_tangent, kernels.adjoints[0]]))
    for power in (2, 4, 8):
        rows = [(power * b - a) / (power - 1) for a, b in itertools.pairwise(rows)]
    limit = nfd.initial_kernels(net, X[:2])
    expected = np.stack([limit.tangent, limit.decoupled_tangent, limit.adjoints[0]])
    np.testing.assert_allclose(rows[0], expected, rtol=1e-9)


@pytest.mark.parametrize("backward", ["reused", "decoupled"])
@pytest.mark.parametrize(
    ("name", "train"), [("tanh", TRAINABLE), ("gelu", ("hidden",)), ("relu", ("input",))]
)
def test_networks_respond_as_the_kernels_say(
    name: str, train: tuple[str, ...], backward: str
) -> None:
    """The first update of wide networks moves each output by −η m Σ Θ χ, of either kind.

    Eight networks of width 20,000: means of movements and of kernels within 5.5 standard errors
    (Student's t with 7 degrees of freedom: 1e-3; a bound on the bias, O(1/n), is far below, and
    seeds are fixed), and errors below 3 %.
    """
    net = nfd.ResNet(20_000, 6, 3, activation=name)
    theory_ = nfd.initial_kernels(net, X[:2], train=train, depth=6)
    tangent = theory_.tangent if backward == "reused" else theory_.decoupled_tangent
    rate, y = 1e-4, np.array([3.0, -2.0])
    run = nfd.train(
        net,
        nfd.SGD(rate, train=train),
        X[:2],
        y,
        batches=[[0, 1]],
        seed=range(8),
        backward=backward,
        dtype="float64",
        engine="conditional",
        record=["feature_kernels", "adjoint_kernels"],
    )
    residuals = run.outputs[:, 0, :, 0] - y
    moved = (run.outputs[:, 1, :, 0] - run.outputs[:, 0, :, 0]) / rate
    expected = -residuals @ tangent / 2
    errors = moved - expected
    standard = errors.std(axis=0, ddof=1) / math.sqrt(8)
    bias = rate * 30 * np.abs(expected).max()
    assert (np.abs(errors.mean(axis=0)) < 5.5 * standard + bias).all()
    assert (standard < 0.03 * np.abs(expected).max()).all()
    for kernel, known in (
        (run.observables["feature_kernels"], theory_.features),
        (run.observables["adjoint_kernels"], theory_.adjoints),
    ):
        found = np.asarray(kernel)[:, 0]
        spread = found.std(axis=0, ddof=1) / math.sqrt(8)
        assert (np.abs(found.mean(axis=0) - known) < 7 * spread + 1e-3).all()


# φ'(0)² of those whose features stay zero.
SLOPES = {"identity": 1, "relu": 0, "abs": 0, "tanh": 1, "erf": 4 / math.pi}
SLOPES |= {"gelu": 1 / 4, "silu": 1 / 4}


@pytest.mark.parametrize("name", nfd.ACTIVATIONS)
@pytest.mark.parametrize("x", [[[0.0, 0.0]], [[0.0, 0.0]] * 2, [[0.0, 0.0], [1.0, 0.5]]])
def test_samples_that_are_zero(name: str, x: list[list[float]]) -> None:
    """At L = ∞ as where finite depths lead, and by exp(φ'(0)² T) where φ(0) = 0.

    Extrapolated from L = 512, 1024, 2048 in 1/L, the rest is of order 1/L³: 1e-8.
    """
    net = nfd.ResNet(1, 1, 2, horizon=1.3, activation=name)
    limit = nfd.initial_kernels(net, x)
    depths = [nfd.initial_kernels(net, x, depth=depth) for depth in (512, 1024, 2048)]
    for part, at in (
        ("features", -1),
        ("adjoints", 0),
        ("tangent", ...),
        ("decoupled_tangent", ...),
    ):
        a, b, c = (getattr(kernels, part)[at] for kernels in depths)
        expected = (4 * (2 * c - b) - (2 * b - a)) / 3
        np.testing.assert_allclose(getattr(limit, part)[at], expected, rtol=1e-7, atol=1e-12)
    if name in SLOPES:
        assert limit.features[-1, 0, 0] == limit.tangent[0, 0] == 0
        assert limit.adjoints[0, 0, 0] == pytest.approx(math.exp(SLOPES[name] * 1.3), rel=1e-11)
    else:  # softplus: ln² 2 at once, and more as it spreads
        assert limit.features[-1, 0, 0] > 1.3 * math.log(2) ** 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"net": 3}, "net must be an nfd_fast.ResNet, got 3"),
        ({"x": X[:, :2]}, "x must have shape (samples, 3), got (4, 2)"),
        ({"x": X[:0]}, "x must hold at least one sample, got none"),
        ({"x": X + np.inf}, "x must be finite in float64"),
        ({"x": X * 1e200}, "x must have kernels of moderate size, got one that is inf"),
        ({"x": X * 1e3}, "got one that is beyond the reach of the quadrature"),
        ({"x": X * 1e3, "depth": 3}, "got one that is beyond the reach of the quadrature"),
        ({"depth": 0}, "depth must be a positive integer of at most 16777216, got 0"),
        ({"depth": 2.5}, "depth must be a positive integer of at most 16777216, got 2.5"),
        ({"train": ["bias"]}, "train must be one of 'input', 'hidden', 'readout', got 'bias'"),
        ({"threads": 0}, "threads must be a positive integer"),
        (
            {"net": nfd.ResNet(1, 1, 3, parameterization="mup")},
            "depth=None, the limit L = ∞, needs parameterization='depth_mup', got 'mup'",
        ),
    ],
)
def test_refusals(changes: dict[str, Any], message: str) -> None:
    given = {"net": nfd.ResNet(1, 1, 3), "x": X} | changes
    with pytest.raises(ValueError, match=re.escape(message)):
        nfd.initial_kernels(**given)


def test_a_limit_that_explodes_is_refused() -> None:
    net = nfd.ResNet(1, 1, 2, horizon=2000.0, activation="identity")
    with pytest.raises(ValueError, match="net must have kernels of moderate size"):
        nfd.initial_kernels(net, [[1.0, 1.0]])


def test_kernels_beyond_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(theory.memory, "available_bytes", lambda: 2**28)
    net = nfd.ResNet(1, 1, 3)
    with pytest.raises(MemoryError, match="take a smaller depth or fewer samples"):
        nfd.initial_kernels(net, X, depth=2**24)
    many = np.ones((1000, 3))
    with pytest.raises(MemoryError, match="take fewer samples"):
        nfd.initial_kernels(net, many)
    monkeypatch.setattr(theory.memory, "available_bytes", lambda: 1)
    with pytest.raises(MemoryError, match="take fewer samples"):
        nfd.initial_kernels(net, np.ones((2000, 3)), depth=1)
