"""Normals: against high precision, reference against kernels, refinement in depth (DESIGN §4)."""

from __future__ import annotations

import itertools
from types import ModuleType
from typing import Any

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import nfd_fast
from nfd_fast import kernels, reference

# Units in the last place by which a normal may differ from Box–Muller in exact arithmetic.
# Roundings in float64, in halves of an ulp: log 2, halved by the root, root 1, angle 2 (π and the
# product; its condition is at most 1 after the quarter turns are gone), cosine 2, product 1: 7 half
# ulps of relative error, at most 7 ulps of a value that sits just below a power of two. The kernels
# may spend one more on a polynomial; float32 ones keep 4 of float32's own and round once.
REFERENCE_ULPS = {"float32": 0.5 + 1e-6, "float64": 7}
KERNEL_ULPS = {"float32": 5, "float64": 8}

LARGEST = 6.77


def ulps(found: NDArray[Any], exact: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return |found − exact| in ulps of ``found``'s dtype at the exact value."""
    one_ulp = np.spacing(np.abs(exact).astype(found.dtype)).astype(np.float64)
    return np.abs(found.astype(np.float64) - exact) / one_ulp


def adversarial_words() -> NDArray[np.uint32]:
    """Return blocks whose radii or angles sit at the ends of their ranges.

    Radius words near 0 (|Z| largest), 2³² − 1 (log u nearly 0) and ½; angle words near multiples of
    an eighth of a turn, 2²⁹, where a cosine or sine vanishes or a quadrant changes.
    """
    near = [0, 1, 2, 3, 1000, 2**20]
    ends = [*near, *(2**32 - 1 - offset for offset in near)]
    radii = [*ends, 2**31 - 1, 2**31, 0x9E3779B9]
    angles = [(k * 2**29 + offset) % 2**32 for k in range(8) for offset in (-2, -1, 0, 1, 12345)]
    pairs = [[*pair] for pair in itertools.product(radii, [*angles, *ends])]
    # each pair once in the first half of a block, once in the second
    return np.array([p + q for p, q in zip(pairs, pairs[::-1], strict=True)], dtype=np.uint32)


def exact_box_muller(words: NDArray[np.uint32]) -> NDArray[np.float64]:
    """Return Box–Muller in 60 digits, rounded once."""
    normals = np.empty(words.shape)
    with mpmath.workdps(60):
        for block, row in zip(words, normals, strict=True):
            for j in (0, 2):
                u, v = ((int(word) + mpmath.mpf("0.5")) / 2**32 for word in block[j : j + 2])
                radius = mpmath.sqrt(-2 * mpmath.log(u))
                row[j] = radius * mpmath.cos(2 * mpmath.pi * v)
                row[j + 1] = radius * mpmath.sin(2 * mpmath.pi * v)
    return normals


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_box_muller_in_high_precision(implementation: ModuleType, dtype: str) -> None:
    """Against mpmath, at the words that are hardest; bounds derived above."""
    words = adversarial_words()
    found = implementation.box_muller(words, dtype)
    assert found.dtype == dtype
    bound = (REFERENCE_ULPS if implementation is reference else KERNEL_ULPS)[dtype]
    assert ulps(found, exact_box_muller(words)).max() <= bound
    assert np.abs(found).max() <= LARGEST


def test_largest_normal() -> None:
    """u = 2⁻³³ gives √(66 log 2) = 6.7637…: the largest radius there is."""
    z = reference.box_muller(np.array([[0, 0, 0, 2**31]], dtype=np.uint32), "float64")
    assert 6.763 < z[0, 0] < LARGEST
    assert -LARGEST < z[0, 2] < -6.763


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_compiled_normals_are_the_reference(dtype: str) -> None:
    """Kernel against reference on 2²¹ words, and on the hardest: stated ulps (plus its own 7)."""
    random = np.random.default_rng(5).integers(2**32, size=(2**19, 4), dtype=np.uint32)
    for words in (random, adversarial_words()):
        expected = reference.box_muller(words, "float64")
        found = kernels.box_muller(words, dtype)
        slack = REFERENCE_ULPS["float64"] if dtype == "float64" else 0
        assert ulps(found, expected).max() <= KERNEL_ULPS[dtype] + slack


@given(
    seed=st.integers(0, 2**64 - 1),
    stream=st.sampled_from(reference.STREAMS),
    size=st.integers(0, 70),
    layer=st.integers(1, 2**24),
    columns=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=3),
)
def test_normals_belong_to_their_words(
    implementation: ModuleType, seed: int, stream: str, size: int, layer: int, columns: list[int]
) -> None:
    """A normal is Box–Muller of its own block of words: equal bits, whatever cuts the block."""
    whole = -(-size // 4) * 4
    words = implementation.words(seed, stream, whole, layer=layer, columns=columns)
    for dtype in ("float32", "float64"):
        expected = implementation.box_muller(words.reshape(-1, 4), dtype).reshape(words.shape)
        found = implementation.normal(seed, stream, size, layer=layer, columns=columns, dtype=dtype)
        np.testing.assert_array_equal(found, expected[:, :size])


@pytest.mark.parametrize("value", ["float16", "int64", None, "double precision"])
def test_dtype_is_checked(implementation: ModuleType, value: Any) -> None:
    """Only float32 and float64 exist."""
    with pytest.raises(ValueError, match="dtype"):
        implementation.normal(0, "hidden", 4, dtype=value)


NETWORK = nfd_fast.ResNet(width=5, depth=2, inputs=3, outputs=2)


def initial_weights(source: str, *arguments: Any, **options: Any) -> nfd_fast.Weights:
    module = reference if source == "reference" else nfd_fast
    weights: nfd_fast.Weights = module.initial_weights(*arguments, **options)
    return weights


@pytest.mark.parametrize("source", ["reference", "package"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_weights_are_their_noise(source: str, dtype: str) -> None:
    """Every weight sits at the neuron, column and layer DESIGN §4 gives it (one normal at a time).

    Exact for the reference. The package draws other blocks of the same function: KERNEL_ULPS.
    """
    weights = initial_weights(source, NETWORK, 9, "decoupled", dtype=dtype)
    bound = (REFERENCE_ULPS if source == "reference" else KERNEL_ULPS)[dtype] + 7

    def one(stream: str, neuron: int, column: int, layer: int = 1) -> float:
        row = reference.normal(
            9, stream, neuron + 1, layer=layer, columns=(column,), dtype="float64"
        )
        return float(row[0, neuron])

    n, depth, d, outputs = 5, 2, 3, 2
    assert weights.input.shape == (n, d)
    assert weights.hidden.shape == (depth, n, n)
    assert weights.readout.shape == (outputs, n)
    assert weights.backward_hidden is not None
    expected = [
        (weights.input, [[one("input", i, a) for a in range(d)] for i in range(n)]),
        (weights.readout, [[one("readout", i, c) for i in range(n)] for c in range(outputs)]),
    ]
    for stream, found in (
        ("hidden", weights.hidden),
        ("backward_hidden", weights.backward_hidden),
    ):
        for layer in (1, 2):
            matrix = [[one(stream, i, j, layer) for j in range(n)] for i in range(n)]
            expected.append((found[layer - 1], matrix))
    for array, values in expected:
        assert array.dtype == dtype
        assert ulps(array, np.array(values)).max() <= bound


@pytest.mark.parametrize("source", ["reference", "package"])
def test_reused_weights_have_no_second_set(source: str) -> None:
    """W' exists only when decoupled, and drawing it leaves W, W_in and V as they were."""
    reused = initial_weights(source, NETWORK, 9)
    decoupled = initial_weights(source, NETWORK, 9, "decoupled")
    assert reused.backward_hidden is None
    for name in ("input", "hidden", "readout"):
        np.testing.assert_array_equal(getattr(reused, name), getattr(decoupled, name))


@pytest.mark.parametrize("source", ["reference", "package"])
@pytest.mark.parametrize("refinement", [1, 2, 3, 5])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_refinement_adds_increments(source: str, refinement: int, dtype: str) -> None:
    """A coarse layer on a finer path is the sum of the fine network's layers times r^-½.

    Identity W_coarse = r^-½ (W_fine,1 + … + W_fine,r), from the weights of an r times deeper net.
    Tolerance: r roundings of terms below 6.77 in the dtype, plus the ulps of a normal: (r + 8) eps
    times the sum of the terms' magnitudes.
    """
    fine_net = nfd_fast.ResNet(width=5, depth=2 * refinement, inputs=3, outputs=2)
    fine = initial_weights(source, fine_net, 4, "decoupled", dtype=dtype)
    coarse = initial_weights(
        source, NETWORK, 4, "decoupled", noise_depth=2 * refinement, dtype=dtype
    )
    eps = np.finfo(dtype).eps
    assert fine.backward_hidden is not None
    for found, layers in (
        (coarse.hidden, fine.hidden),
        (coarse.backward_hidden, fine.backward_hidden),
    ):
        assert found is not None
        terms = layers.astype(np.float64).reshape(2, refinement, 5, 5)
        expected = terms.sum(axis=1) / np.sqrt(refinement)
        scale = np.abs(terms).sum(axis=1) / np.sqrt(refinement)
        assert (np.abs(found - expected) <= (refinement + 8) * eps * scale).all()
    np.testing.assert_array_equal(coarse.input, fine.input)
    np.testing.assert_array_equal(coarse.readout, fine.readout)


@pytest.mark.parametrize("source", ["reference", "package"])
@pytest.mark.parametrize("noise_depth", [0, 1, 3, 2.0, 2**24 + 2])
def test_noise_depth_is_a_multiple_of_the_depth(source: str, noise_depth: Any) -> None:
    """Anything else, and more than 2²⁴ fine layers, is a ValueError."""
    with pytest.raises(ValueError, match="noise_depth"):
        initial_weights(source, NETWORK, 0, noise_depth=noise_depth)


@pytest.mark.parametrize("source", ["reference", "package"])
def test_weight_arguments(source: str) -> None:
    """Unknown options and seeds out of range name the argument."""
    with pytest.raises(ValueError, match=r"backward.*'reused', 'decoupled'"):
        initial_weights(source, NETWORK, 0, "independent")
    with pytest.raises(ValueError, match="seed"):
        initial_weights(source, NETWORK, 2**64)
    with pytest.raises(ValueError, match="dtype"):
        initial_weights(source, NETWORK, 0, dtype="float16")
