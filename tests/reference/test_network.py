"""Passes and updates against scalar loops, finite differences and mathematical identities."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import nfd_fast
from nfd_fast import reference

Array = NDArray[Any]
SMOOTH = [name for name in reference.ACTIVATIONS if name not in ("relu", "abs")]
STEEPEST = 1.13  # the largest |φ'| of all activations: that of gelu


def random_arrays(seed: int, dtype: str, *shapes: tuple[int, ...]) -> list[Array]:
    random = np.random.default_rng(seed)
    return [random.standard_normal(shape).astype(dtype) for shape in shapes]


def updated(implementation: ModuleType, hidden: Array, *args: Any, **options: Any) -> Array:
    """Return the hidden weights after an update; the kernel works in place, the reference not."""
    hidden = hidden.copy()
    result: Array = implementation.sgd_update(hidden, *args, **options)
    return result if implementation is reference else hidden


sizes = {
    "depth": st.integers(1, 4),
    "batch": st.integers(1, 4),
    "width": st.sampled_from([1, 2, 3, 4, 7, 16, 17, 33]),
    "seed": st.integers(0, 10**6),
    "name": st.sampled_from(sorted(reference.ACTIVATIONS)),
    "skip": st.booleans(),
    "dtype": st.sampled_from(["float32", "float64"]),
}


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("name", reference.ACTIVATIONS)
def test_scalar_loops(implementation: ModuleType, name: str, skip: bool) -> None:
    """Against DESIGN §1 spelled out in scalar loops: catches any transposed index.

    float64; each entry is a sum of at most n = 5 products after at most L = 3 layers: 100 eps of
    the largest entry is ample.
    """
    depth, batch, n, beta, step = 3, 2, 5, 0.7, 0.3
    h0, g_last, w, chi = random_arrays(
        0, "float64", (batch, n), (batch, n), (depth, n, n), (batch,)
    )

    def phi(value: float) -> float:
        return float(reference.activation(name, np.array([value]))[0])

    def slope(value: float) -> float:
        return float(reference.activation_derivative(name, np.array([value]))[0])

    h = np.zeros((depth + 1, batch, n))
    g = np.zeros((depth + 1, batch, n))
    h[0], g[depth] = h0, g_last
    for b in range(batch):
        for layer in range(1, depth + 1):
            for i in range(n):
                pull = sum(w[layer - 1, i, j] * phi(h[layer - 1, b, j]) for j in range(n))
                h[layer, b, i] = skip * h[layer - 1, b, i] + beta / math.sqrt(n) * pull
        for layer in range(depth, 0, -1):
            for j in range(n):
                pull = sum(w[layer - 1, i, j] * g[layer, b, i] for i in range(n))
                branch = beta / math.sqrt(n) * slope(h[layer - 1, b, j]) * pull
                g[layer - 1, b, j] = skip * g[layer, b, j] + branch
    moved = w.copy()
    for layer in range(1, depth + 1):
        for i in range(n):
            for j in range(n):
                moved[layer - 1, i, j] -= sum(
                    step / math.sqrt(n) * chi[b] * g[layer, b, i] * phi(h[layer - 1, b, j])
                    for b in range(batch)
                )

    options = {"branch_factor": beta, "activation": name, "skip": skip}
    eps = np.finfo(np.float64).eps
    found_h = implementation.residual_forward(h0, w, **options)
    found_g = implementation.residual_backward(g_last, h, w, **options)
    found_w = updated(implementation, w, h, g, chi, step=step, activation=name)
    for found, expected in ((found_h, h), (found_g, g), (found_w, moved)):
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=0, atol=100 * eps * np.abs(expected).max())


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 14, 33])
@pytest.mark.parametrize("width", [1024, 1100])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_matrices_cut_by_rows(batch: int, width: int, dtype: str) -> None:
    """On wide layers a matrix is cut by rows, and by columns for many threads: the reference again.

    A product of n terms of size w is rounded to within γ_n w ≤ n eps w at worst; here they are
    random, and √n times less is usual: 20 eps of the largest entry, and as much for activations.
    """
    depth, beta, step = 2, 0.7, 0.3
    h0, g_last, w = random_arrays(
        batch, dtype, (batch, width), (batch, width), (depth, width, width)
    )
    weights = np.linspace(0.5, 1.5, batch)
    options: dict[str, Any] = {"branch_factor": beta, "activation": "tanh"}
    h = reference.residual_forward(h0, w, **options)
    g = reference.residual_backward(g_last, h, w, **options)
    moved = reference.sgd_update(w, h, g, weights, step=step, activation="tanh")
    eps = np.finfo(dtype).eps
    for threads in (1, 2, 3):
        more = {**options, "threads": threads}
        found = (
            nfd_fast.kernels.residual_forward(h0, w, **more),
            nfd_fast.kernels.residual_backward(g_last, h, w, **more),
            updated(
                nfd_fast.kernels, w, h, g, weights, step=step, activation="tanh", threads=threads
            ),
        )
        for got, want in zip(found, (h, g, moved), strict=True):
            assert np.abs(got - want).max() <= 40 * eps * np.abs(want).max()


@given(**sizes)
def test_backward_is_the_adjoint_of_the_tangent(
    implementation: ModuleType,
    depth: int,
    batch: int,
    width: int,
    seed: int,
    name: str,
    skip: bool,
    dtype: str,
) -> None:
    """⟨J x, y⟩ = ⟨x, Jᵀ y⟩: the tangent is propagated here in float64, J never transposed.

    Tolerance: a layer's branch is a sum of n products, rounded relative to β‖Ŵ‖‖φ'∘dH‖ with
    γ_n ≤ n eps, φ' contributing 8 eps and scaling 4: each layer adds at most
    (n + 12) eps (‖dH_l‖ + 1.13 β‖Ŵ_l‖‖dH_{l-1}‖) ‖G_l‖ to the difference; twice that, for the
    rounding of the features at which φ' is taken (|φ''| ≤ 1.6 for all smooth activations).
    """
    h0, dh0, g_last, w = random_arrays(
        seed, dtype, (batch, width), (batch, width), (batch, width), (depth, width, width)
    )
    beta = 0.8
    options: dict[str, Any] = {"branch_factor": beta, "activation": name, "skip": skip}
    h = implementation.residual_forward(h0, w, **options)
    g = implementation.residual_backward(g_last, h, w, **options).astype(np.float64)

    tangents = [dh0.astype(np.float64)]
    scale = 0.0
    for layer in range(depth):
        slope = reference.activation_derivative(name, h[layer].astype(np.float64))
        matrix = w[layer].astype(np.float64) / math.sqrt(width)
        branch = beta * (slope * tangents[-1]) @ matrix.T
        tangents.append(skip * tangents[-1] + branch)
        size = np.linalg.norm(tangents[-1]) + STEEPEST * beta * np.linalg.norm(
            matrix
        ) * np.linalg.norm(tangents[-2])
        scale += size * np.linalg.norm(g[layer + 1])
    tolerance = 2 * (width + 12) * np.finfo(dtype).eps * scale
    assert abs(np.sum(tangents[-1] * g[-1]) - np.sum(tangents[0] * g[0])) <= tolerance


@given(**sizes)
def test_neurons_can_be_permuted(
    implementation: ModuleType,
    depth: int,
    batch: int,
    width: int,
    seed: int,
    name: str,
    skip: bool,
    dtype: str,
) -> None:
    """Renaming neurons, W → P W Pᵀ, renames features, adjoints and updates, nothing else.

    Only the order of sums of n terms changes: (n + 12) eps of their size per layer, amplified by
    later layers by at most 1 + 1.13·β‖Ŵ‖ each; β‖Ŵ‖₂ ≤ 2 here but for small n, hence the measured
    norm. relu and abs run on features of one sign: a neuron that rounding carries across the kink
    would change its derivative by O(1).
    """
    h0, g_last, w, chi = random_arrays(
        seed, dtype, (batch, width), (batch, width), (depth, width, width), (batch,)
    )
    if name in ("relu", "abs"):
        h0, w = np.abs(h0), np.abs(w)
    order = np.random.default_rng(seed).permutation(width)
    beta = 0.8
    options: dict[str, Any] = {"branch_factor": beta, "activation": name, "skip": skip}

    def run(h_first: Array, g_end: Array, hidden: Array) -> tuple[Array, Array, Array]:
        h = implementation.residual_forward(h_first, hidden, **options)
        g = implementation.residual_backward(g_end, h, hidden, **options)
        return h, g, updated(implementation, hidden, h, g, chi, step=0.1, activation=name)

    plain = run(h0, g_last, w)
    renamed = run(h0[:, order], g_last[:, order], w[:, order][:, :, order])
    expected = (plain[0][..., order], plain[1][..., order], plain[2][:, order][:, :, order])
    growth = 1.0
    for matrix in w:
        growth *= 1 + STEEPEST * beta * float(np.linalg.norm(matrix)) / math.sqrt(width)
    for found, wanted in zip(renamed, expected, strict=True):
        bound = 4 * depth * (width + 12) * np.finfo(dtype).eps * growth**2
        scale = max(1.0, float(np.abs(wanted).max())) * (1 + float(np.abs(g_last).max()))
        np.testing.assert_allclose(found, wanted, rtol=0, atol=bound * scale)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("batch", [0, 1, 2, 3, 4, 5, 8, 12, 13, 16, 40, 70, 1025])
@pytest.mark.parametrize("width", [1, 15, 128, 257, 1030])
def test_kernels_on_batches_of_every_kind(width: int, batch: int, dtype: str) -> None:
    """Kernels and reference agree for few columns and many (each has its own products).

    Both sum the same n (or B) products in another order, n eps of the sum of their sizes; the
    threads don't change a bit. 1030 neurons are more than one run of what stays in the cache.
    """
    h0, g_last, w, chi = random_arrays(
        width, dtype, (batch, width), (batch, width), (2, width, width), (batch,)
    )
    options: dict[str, Any] = {"branch_factor": 0.8, "activation": "tanh"}
    eps = np.finfo(dtype).eps
    h = reference.residual_forward(h0, w, **options)
    g = reference.residual_backward(g_last, h, w, **options)
    moved = reference.sgd_update(w, h, g, chi, step=0.3)
    runs = [
        (
            nfd_fast.kernels.residual_forward(h0, w, threads=threads, **options),
            nfd_fast.kernels.residual_backward(g_last, h, w, threads=threads, **options),
            nfd_fast.kernels.sgd_update(w.copy(), h, g, chi, step=0.3, threads=threads),
        )
        for threads in (1, 2, 3)
    ]
    for found in runs:
        for got, first, wanted in zip(found, runs[0], (h, g, moved), strict=True):
            np.testing.assert_array_equal(got, first)
            bound = 4 * (width + batch + 12) * eps * max(1.0, float(np.abs(wanted).max(initial=0)))
            np.testing.assert_allclose(got, wanted, rtol=0, atol=bound)


@given(
    batch=st.integers(1, 6),
    width=st.sampled_from([1, 3, 17, 33]),
    seed=st.integers(0, 10**6),
    dtype=st.sampled_from(["float32", "float64"]),
)
def test_an_update_is_the_sum_of_its_samples(
    implementation: ModuleType, batch: int, width: int, seed: int, dtype: str
) -> None:
    """One update by a batch equals its samples' updates one after another (same G, H, step).

    At most B + 2 additions per entry, each relative to the entry's largest partial sum.
    """
    w, h, g, chi = random_arrays(
        seed, dtype, (2, width, width), (3, batch, width), (3, batch, width), (batch,)
    )
    together = updated(implementation, w, h, g, chi, step=0.2)
    one_by_one = w
    for b in range(batch):
        one = slice(b, b + 1)
        one_by_one = updated(implementation, one_by_one, h[:, one], g[:, one], chi[one], step=0.2)
    weighted = np.abs(chi[:, None] * g[1:])
    size = np.abs(w) + 0.2 / math.sqrt(width) * np.swapaxes(weighted, 1, 2) @ np.abs(h[:-1])
    assert (np.abs(together - one_by_one) <= 2 * (batch + 12) * np.finfo(dtype).eps * size).all()


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_residuals_are_derivatives_of_the_loss(loss: str) -> None:
    """χ = ∂ℓ/∂f by central differences in float64: error h² + eps/h, h = 1e-5, below 1e-9."""
    random = np.random.default_rng(2)
    outputs = 2 * random.standard_normal((4, 3))
    targets = random.standard_normal((4, 3)) if loss == "mse" else np.array([0, 2, 1, 2])
    function = reference.LOSSES[loss]
    losses, residuals = function(outputs, targets)
    assert losses.shape == (4,)
    for c in range(3):
        shift = 1e-5 * np.eye(3)[c]
        difference = function(outputs + shift, targets)[0] - function(outputs - shift, targets)[0]
        np.testing.assert_allclose(residuals[:, c], difference / 2e-5, rtol=0, atol=1e-9)


def test_cross_entropy_of_large_outputs() -> None:
    """log softmax neither overflows nor loses a small loss: closed forms at f = ±1000."""
    outputs = np.array([[1000.0, -1000.0], [1000.0, -1000.0], [0.0, 0.0]])
    losses, residuals = reference.cross_entropy(outputs, np.array([0, 1, 1]))
    np.testing.assert_allclose(losses, [0, 2000, math.log(2)], rtol=1e-15)
    np.testing.assert_allclose(residuals, [[0, 0], [1, -1], [0.5, -0.5]], atol=1e-15)


@pytest.mark.parametrize(("loss", "outputs"), [("mse", 1), ("mse", 3), ("cross_entropy", 3)])
@pytest.mark.parametrize("parameterization", ["depth_mup", "mup", "mlp"])
@pytest.mark.parametrize("name", SMOOTH)
def test_update_is_the_gradient(
    make_problem: Callable[..., Any], name: str, parameterization: str, loss: str, outputs: int
) -> None:
    """The update is −η n times the gradient of the mean loss, by finite differences.

    Along a random direction D of all weights, (ℓ(θ+hD) − ℓ(θ−hD))/2h = ⟨∇ℓ, D⟩ = −⟨Δθ, D⟩/(η n).
    Extrapolating over h and h/2 (h = 1e-3) leaves h⁴ and eps/h, 1e-12 each times derivatives of
    the loss along D, which is scaled to length 1: 1e-8 of the two lengths' product is ample.
    """
    net = nfd_fast.ResNet(
        width=6,
        depth=3,
        inputs=3,
        outputs=outputs,
        activation=name,
        parameterization=parameterization,
    )
    problem = make_problem(loss=loss, outputs=outputs, samples=4)
    sgd = nfd_fast.SGD(learning_rate=0.3, loss=loss)
    start = reference.initial_weights(net, 1, dtype="float64")

    def passed(weights: nfd_fast.Weights) -> reference.network.ForwardPass:
        return reference.forward_pass(net, sgd, weights, problem.x, problem.y)

    forward = passed(start)
    adjoints = reference.backward_pass(net, start, forward)
    end = reference.updated_weights(net, sgd, start, problem.x, forward, adjoints)

    names = ("input", "hidden", "readout")
    change = {key: getattr(end, key) - getattr(start, key) for key in names}
    random = np.random.default_rng(8)
    direction = {key: random.standard_normal(change[key].shape) for key in names}
    length = math.sqrt(sum(float(np.sum(d**2)) for d in direction.values()))
    direction = {key: d / length for key, d in direction.items()}

    def slope(h: float) -> float:
        up, down = (
            replace(start, **{key: getattr(start, key) + s * h * direction[key] for key in names})
            for s in (1, -1)
        )
        return float(np.mean(passed(up).losses) - np.mean(passed(down).losses)) / (2 * h)

    extrapolated = (4 * slope(5e-4) - slope(1e-3)) / 3
    gradient = {key: -change[key] / (0.3 * net.width) for key in names}
    found = sum(float(np.sum(gradient[key] * direction[key])) for key in names)
    steepness = math.sqrt(sum(float(np.sum(g**2)) for g in gradient.values()))
    assert found == pytest.approx(extrapolated, rel=0, abs=1e-8 * max(steepness, 0.1))


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("name", SMOOTH)
def test_derivatives_of_a_loss_that_reads_every_layer(
    implementation: ModuleType, name: str, skip: bool
) -> None:
    """⟨derivatives, direction⟩ is the slope of Σ_l ⟨C_l, H_l⟩ along random directions.

    Central differences with step ε = 1e-5 are off by ε²/6 times a third derivative of order 10 and
    by eps/ε of the loss: 1e-9 of numbers of order 10, of which 1e-7 leaves room for the steepest.
    """
    depth, batch, n, beta = 3, 2, 5, 0.7
    h0, dh0, w, dw, c = random_arrays(
        1, "float64", (batch, n), (batch, n), (depth, n, n), (depth, n, n), (depth + 1, batch, n)
    )
    options: dict[str, Any] = {"branch_factor": beta, "activation": name, "skip": skip}

    def loss(move: float) -> float:
        features = implementation.residual_forward(h0 + move * dh0, w + move * dw, **options)
        return float((c * features).sum())

    features = implementation.residual_forward(h0, w, **options)
    adjoints = implementation.residual_backward(c[-1], features, w, sources=c[:-1], **options)
    gradient = implementation.hidden_gradient(
        features, adjoints, branch_factor=beta, activation=name
    )
    slope = float((adjoints[0] * dh0).sum() + (gradient * dw).sum())
    assert abs((loss(1e-5) - loss(-1e-5)) / 2e-5 - slope) < 1e-7


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", reference.ACTIVATIONS)
@pytest.mark.parametrize(
    ("depth", "batch", "n"), [(1, 0, 1), (1, 1, 1), (2, 3, 7), (3, 1, 129), (2, 5, 257)]
)
def test_sources_and_gradients_of_awkward_sizes(
    depth: int, batch: int, n: int, name: str, dtype: str
) -> None:
    """Compiled against reference; the same bits for any threads; what is in `out` is never read.

    Sums of n or B products in another order differ by √n eps with random signs, activations by 16
    eps (test_activations.py), through at most three layers, each amplified by 1 + β‖Ŵ‖ ≤ 2.
    """
    h0, c, w = random_arrays(2, dtype, (batch, n), (depth + 1, batch, n), (depth, n, n))
    options: dict[str, Any] = {"branch_factor": 0.5, "activation": name}
    features = reference.residual_forward(h0, w, **options).astype(dtype)
    arguments: Any = (c[-1], features, w)
    expected = reference.residual_backward(*arguments, sources=c[:-1], **options).astype(dtype)
    gradient = reference.hidden_gradient(features, expected, **options).astype(dtype)

    def compiled(threads: int) -> tuple[Array, Array]:
        many: dict[str, Any] = {"threads": threads, **options}
        return (
            nfd_fast.kernels.residual_backward(
                *arguments, sources=c[:-1], out=np.full_like(c, np.nan), **many
            ),
            nfd_fast.kernels.hidden_gradient(
                features, expected, out=np.full_like(w, np.nan), **many
            ),
        )

    for got, again, wanted in zip(compiled(1), compiled(2), (expected, gradient), strict=True):
        assert np.array_equal(got, again)
        tolerance = 8 * (16 + math.sqrt(n)) * np.finfo(dtype).eps
        scale = np.abs(wanted).max(initial=0.0)
        np.testing.assert_allclose(got, wanted, rtol=0, atol=tolerance * scale)


def test_decoupled_updates_are_shared(make_problem: Callable[..., Any]) -> None:
    """W and W' move by the same amount (DESIGN §1); exact up to one rounding of each sum."""
    net = nfd_fast.ResNet(width=6, depth=3, inputs=3)
    problem = make_problem(samples=4)
    sgd = nfd_fast.SGD(learning_rate=0.3)
    start = reference.initial_weights(net, 1, "decoupled", dtype="float64")
    forward = reference.forward_pass(net, sgd, start, problem.x, problem.y)
    adjoints = reference.backward_pass(net, start, forward)
    end = reference.updated_weights(net, sgd, start, problem.x, forward, adjoints)
    assert end.backward_hidden is not None
    assert start.backward_hidden is not None
    change = end.hidden - start.hidden
    assert np.abs(change).max() > 1e-3
    np.testing.assert_allclose(end.backward_hidden - start.backward_hidden, change, atol=4e-15)
