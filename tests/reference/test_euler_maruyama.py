"""A layer's step, and all layers, against scalar loops, the reference and the engine."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import nfd_fast as nfd
from nfd_fast import kernels, reference

Array = NDArray[Any]


def step_arguments(
    seed: int, dtype: str, batch: int, width: int, columns: int, images: int, directions: int
) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return {
        "state": random.standard_normal((batch, width)).astype(dtype),
        "noise_coefficients": random.standard_normal((columns, batch)),
        "seed": seed,
        "layer": 1 + seed % 2**24,
        "columns": random.integers(2**32, size=columns),
        "images": random.standard_normal((images, width)).astype(dtype),
        "image_coefficients": random.standard_normal((images, batch)),
        "directions": random.standard_normal((directions, width)).astype(dtype),
        "direction_coefficients": random.standard_normal((directions, batch)),
    }


def size_of_terms(given: dict[str, Any]) -> Array:
    """Return the sum of the absolute values of the terms of every entry."""
    noise = kernels.normal(
        given["seed"],
        given.get("stream", "forward_noise"),
        given["state"].shape[1],
        layer=given["layer"],
        columns=given["columns"],
        dtype="float64",
    )
    size: Array = np.abs(given["state"].astype(np.float64))
    for values, coefficients in (
        (given["images"], given["image_coefficients"]),
        (given["directions"], given["direction_coefficients"]),
        (noise, given["noise_coefficients"]),
    ):
        size = size + np.abs(coefficients).T @ np.abs(values)
    return size


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_scalar_loops(implementation: ModuleType, dtype: str) -> None:
    """DESIGN §2 in scalar loops: catches any transposed index.

    Ten terms: each is off by the dtype's eps for its coefficient, 8 for a normal and at most 10 for
    the additions after it.
    """
    given = step_arguments(5, dtype, 2, 6, 4, 3, 2) | {"stream": "backward_noise"}
    expected = np.zeros((2, 6))
    for b in range(2):
        for i in range(6):
            total = float(given["state"][b, i])
            for j in range(3):
                total += float(given["images"][j, i]) * given["image_coefficients"][j, b]
            for j in range(2):
                total += float(given["directions"][j, i]) * given["direction_coefficients"][j, b]
            for c, column in enumerate(given["columns"]):
                noise = reference.normal(
                    5, "backward_noise", i + 1, layer=6, columns=[column], dtype="float64"
                )
                total += noise[0, i] * given["noise_coefficients"][c, b]
            expected[b, i] = total
    found = implementation.euler_maruyama_step(**given)
    assert found.dtype == dtype
    bound = 19 * np.finfo(dtype).eps * size_of_terms(given)
    assert (np.abs(found - expected) <= bound).all()


@given(
    batch=st.integers(0, 6),
    width=st.sampled_from([0, 1, 3, 4, 31, 33, 255, 256, 257, 512, 513, 1100]),
    columns=st.sampled_from([0, 1, 3, 8, 9, 17]),
    images=st.sampled_from([0, 1, 7, 8]),
    directions=st.sampled_from([0, 2, 11]),
    seed=st.integers(0, 2**64 - 1),
    dtype=st.sampled_from(["float32", "float64"]),
    threads=st.integers(1, 3),
)
def test_the_kernel_is_the_reference(
    batch: int,
    width: int,
    columns: int,
    images: int,
    directions: int,
    seed: int,
    dtype: str,
    threads: int,
) -> None:
    """To 9 eps of a term for its factors and one for each addition after it; both may round.

    Bits do not depend on threads, nor on whether the state is overwritten.
    """
    given = step_arguments(seed, dtype, batch, width, columns, images, directions)
    found = kernels.euler_maruyama_step(**given, threads=threads)
    expected = reference.euler_maruyama_step(**given)
    assert found.dtype == expected.dtype == dtype
    terms = columns + images + directions
    bound = 2 * (9 + terms) * np.finfo(dtype).eps * size_of_terms(given)
    assert (np.abs(found.astype(np.float64) - expected) <= bound).all()

    state = given.pop("state").copy()
    assert kernels.euler_maruyama_step(state, **given, out=state, threads=1) is state
    assert np.array_equal(state, found)


def test_nothing_but_noise_is_needed(implementation: ModuleType) -> None:
    state = np.linspace(-1, 1, 14).reshape(2, 7)
    plain = implementation.euler_maruyama_step(
        state, [[0.5, 0.0], [0.0, 2.0]], seed=1, layer=3, columns=[4, 9]
    )
    noise = implementation.normal(1, "forward_noise", 7, layer=3, columns=[4, 9], dtype="float64")
    np.testing.assert_allclose(plain, state + [[0.5], [2.0]] * noise, rtol=4e-15, atol=4e-15)
    same = implementation.euler_maruyama_step(state, np.zeros((0, 2)), seed=1, layer=3, columns=[])
    assert np.array_equal(same, state)
    assert same is not state


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_two_passes_of_the_conditional_engine(implementation: ModuleType, activation: str) -> None:
    """The coefficients of DESIGN §2 give the decoupled network's features before and after a step.

    Same noise, so the same path. float64: the engine and this test lose a few digits to the
    condition of K (below 1e4 here), each their own way: 1e-9.
    """
    width, depth, batch, rate = 60, 4, 3, 0.4
    net = nfd.ResNet(width, depth, 3, activation=activation)
    x = np.array([[1.0, 0.4, -0.3], [-0.5, 1.1, 0.8], [0.9, -0.7, 1.2]])
    run = nfd.train(
        net,
        nfd.SGD(rate),
        x,
        [1.0, -0.5, 2.0],
        batches=[range(batch), range(batch)],
        seed=7,
        engine="conditional",
        backward="decoupled",
        dtype="float64",
        record=("features", "adjoints"),
    )
    features, adjoints = run.observables["features"], run.observables["adjoints"]
    chi = run.outputs[0, :, 0] - [1.0, -0.5, 2.0]
    beta = math.sqrt(1 / depth)
    first, second = features[0, 0], features[1, 0]
    for layer in range(1, depth + 1):
        phi = reference.activation(activation, features[0, layer - 1])
        factor = np.linalg.cholesky(phi @ phi.T / width)
        noise = {"seed": 7, "layer": layer}
        first = implementation.euler_maruyama_step(
            first, beta * factor.T, columns=range(batch), **noise
        )
        np.testing.assert_allclose(first, features[0, layer], rtol=0, atol=1e-9)

        basis = np.linalg.solve(factor, phi)
        answers = reference.normal(
            7, "forward_noise", width, layer=layer, columns=range(batch), dtype="float64"
        )
        asked = reference.activation(activation, features[1, layer - 1])
        along = basis @ asked.T / width
        rest = asked - along.T @ basis
        learned = -rate * beta / batch * chi[:, None] * (phi @ asked.T / width)
        second = implementation.euler_maruyama_step(
            second,
            beta * np.linalg.cholesky(rest @ rest.T / width).T,
            columns=range(batch, 2 * batch),
            images=answers,
            image_coefficients=beta * along,
            directions=adjoints[0, layer],
            direction_coefficients=beta * learned,
            **noise,
        )
        np.testing.assert_allclose(second, features[1, layer], rtol=0, atol=1e-9)


@given(
    batch=st.integers(0, 6),
    width=st.sampled_from([0, 1, 2, 3, 5, 31, 33, 257, 512, 513, 1100, 2049]),
    depth=st.integers(1, 4),
    fine=st.integers(1, 3),
    activation=st.sampled_from(["tanh", "relu", "gelu"]),
    skip=st.booleans(),
    seed=st.integers(0, 2**64 - 1),
    dtype=st.sampled_from(["float32", "float64"]),
)
def test_all_layers_are_those_of_the_reference(
    batch: int,
    width: int,
    depth: int,
    fine: int,
    activation: str,
    skip: bool,
    seed: int,
    dtype: str,
) -> None:
    """To 20 eps a layer, for a normal's 8 and the terms' rounding, while samples are far from
    dependent; as many of them as neurons may have a condition of 1e4, which each layer feels.
    """
    random = np.random.default_rng(seed)
    first = random.standard_normal((batch, width)).astype(dtype)
    given: dict[str, Any] = {
        "depth": depth,
        "branch_factor": depth**-0.5,
        "seed": seed,
        "activation": activation,
        "skip": skip,
        "noise_depth": fine * depth,
    }
    found = kernels.euler_maruyama(first, **given, threads=1)
    expected = reference.euler_maruyama(first, **given)
    assert found.shape == expected.shape == (depth + 1, batch, width)
    assert found.dtype == expected.dtype == dtype
    scale = max(1.0, float(np.abs(expected).max(initial=0.0)))
    condition = 1.0 if width > 4 * batch else 1e4
    bound = 20 * depth * condition * np.finfo(dtype).eps * scale
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound)
    # Bits do not depend on threads, nor on which layers are kept and where.
    for threads in (2, 3):
        assert np.array_equal(kernels.euler_maruyama(first, **given, threads=threads), found)
        last = kernels.euler_maruyama(first, **given, all_layers=False, threads=threads)
        assert np.array_equal(last, found[-1])
    assert kernels.euler_maruyama(first, **given, all_layers=False, out=first) is first
    assert np.array_equal(first, found[-1])
    last = reference.euler_maruyama(expected[0], **given, all_layers=False)
    assert np.array_equal(last, expected[-1])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("parameterization", ["depth_mup", "mlp"])
@pytest.mark.parametrize("width", [40, 3001])
def test_all_layers_are_the_engine_s_first_pass(
    parameterization: str, width: int, dtype: str
) -> None:
    """Bit for bit, also where a sample comes twice."""
    net = nfd.ResNet(width, 6, 3, parameterization=parameterization)
    x = np.array([[1.0, 0.4, -0.3], [-0.5, 1.1, 0.8], [1.0, 0.4, -0.3], [0.9, -0.7, 1.2]])
    run = nfd.train(
        net,
        nfd.SGD(0.4),
        x,
        np.ones(4),
        batches=[range(4)],
        seed=11,
        engine="conditional",
        noise_depth=12,
        dtype=dtype,
        record=("features",),
    )
    features = run.observables["features"][0]
    found = kernels.euler_maruyama(
        features[0].astype(dtype),
        depth=6,
        branch_factor=net.branch_factor,
        seed=11,
        skip=net.skip,
        noise_depth=12,
    )
    assert np.array_equal(found, features)
    assert np.array_equal(found[:, 0], found[:, 2])


def test_a_layer_that_is_not_finite_is_reported() -> None:
    first = np.full((2, 40), 1e30, np.float32)
    with pytest.raises(nfd.DivergenceError, match="features stopped being finite at layer 2"):
        kernels.euler_maruyama(first, depth=3, branch_factor=1e5, seed=0, activation="relu")
