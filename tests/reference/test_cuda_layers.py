"""Passes, updates and steps on arrays of a device against the processor's kernels."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from test_cuda_noise import Exported

from nfd_fast import ACTIVATIONS, kernels

Array = np.ndarray
Call = Callable[[Callable[[Array], Any]], Any]

# A layer is a sum of n products per entry, in another order, of which each rounds by half an ulp
# of the largest partial sum; after L layers, errors have added up. Entries are of order one.
ULPS_PER_TERM = 4
STEP_ULPS = 60
"""Of a normal, three times what either side may be off (see test_cuda_noise), times its size."""

SIZES = {
    "one neuron": (1, 1, 1),
    "narrow": (3, 5, 37),
    "several groups of samples": (2, 70, 20),
    "several chunks": (2, 3, 300),
    "whole strips": (3, 70, 24),
    "several chunks of whole strips": (2, 3, 264),
    "by cuBLAS": (2, 130, 9),
}
of_sizes = pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
of_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


class Stack:
    """A stack with arrays of everything."""

    def __init__(self, size: tuple[int, int, int], dtype: str) -> None:
        depth, batch, width = size
        random = np.random.default_rng(5)

        def draw(*shape: int) -> Array:
            return random.standard_normal(shape).astype(dtype)

        self.first, self.last = draw(batch, width), draw(batch, width)
        self.hidden, self.sources = draw(depth, width, width), draw(depth, batch, width)
        self.features, self.adjoints = (draw(depth + 1, batch, width) for _ in range(2))
        self.weights = random.standard_normal(batch)
        terms = (width + batch) * depth
        self.bound = ULPS_PER_TERM * terms * float(np.finfo(dtype).eps)

    def assert_close(self, found: Any, expected: Array) -> None:
        values = found.numpy()
        assert values.dtype == expected.dtype
        largest = float(np.abs(expected).max())
        np.testing.assert_allclose(values, expected, rtol=0, atol=self.bound * largest)


@of_dtypes
@of_sizes
@pytest.mark.parametrize("skip", [True, False])
def test_passes(cuda: ModuleType, size: tuple[int, int, int], dtype: str, skip: bool) -> None:
    s = Stack(size, dtype)
    there = cuda.OwnedArray
    options: dict[str, Any] = {"branch_factor": 0.6, "skip": skip}
    out = there(np.full_like(s.features, np.nan))
    assert kernels.residual_forward(there(s.first), there(s.hidden), out=out, **options) is out
    s.assert_close(out, kernels.residual_forward(s.first, s.hidden, **options))
    for sources in (None, s.sources):
        given = s.last, s.features, s.hidden
        out = there(np.full_like(s.adjoints, np.nan))
        entering = None if sources is None else there(sources)
        kernels.residual_backward(*map(there, given), sources=entering, out=out, **options)
        s.assert_close(out, kernels.residual_backward(*given, sources=sources, **options))


@of_dtypes
@of_sizes
def test_updates(cuda: ModuleType, size: tuple[int, int, int], dtype: str) -> None:
    s = Stack(size, dtype)
    there = cuda.OwnedArray
    given = s.features, s.adjoints
    hidden = there(s.hidden)
    moved = kernels.sgd_update(hidden, *map(there, given), there(s.weights), step=0.3)
    assert moved is hidden
    s.assert_close(hidden, kernels.sgd_update(s.hidden.copy(), *given, s.weights, step=0.3))
    out = there(np.full_like(s.hidden, np.nan))
    assert kernels.hidden_gradient(*map(there, given), branch_factor=0.6, out=out) is out
    s.assert_close(out, kernels.hidden_gradient(*given, branch_factor=0.6))


@pytest.mark.parametrize("size", [SIZES["narrow"], SIZES["by cuBLAS"]])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(cuda: ModuleType, activation: str, size: tuple[int, int, int]) -> None:
    s = Stack(size, "float64")
    there = cuda.OwnedArray
    options: dict[str, Any] = {"branch_factor": 0.6, "activation": activation}
    out = there(np.empty_like(s.features))
    kernels.residual_forward(there(s.first), there(s.hidden), out=out, **options)
    s.assert_close(out, kernels.residual_forward(s.first, s.hidden, **options))
    given = s.last, s.features, s.hidden
    kernels.residual_backward(*map(there, given), out=out, **options)
    s.assert_close(out, kernels.residual_backward(*given, **options))


@pytest.mark.parametrize("size", [SIZES["narrow"], SIZES["by cuBLAS"]])
def test_what_is_not_finite_propagates(cuda: ModuleType, size: tuple[int, int, int]) -> None:
    """As on the processor: here nobody asks whether a run has diverged."""
    s = Stack(size, "float64")
    there = cuda.OwnedArray
    s.features[0, 1, 2] = np.nan
    hidden = there(s.hidden)
    given = s.features, s.adjoints
    kernels.sgd_update(hidden, *map(there, given), there(s.weights), step=0.3)
    expected = kernels.sgd_update(s.hidden.copy(), *given, s.weights, step=0.3)
    assert np.isnan(expected).any()
    np.testing.assert_array_equal(np.isnan(hidden.numpy()), np.isnan(expected))


@of_dtypes
@pytest.mark.parametrize(
    ("batch", "width", "images", "directions", "columns"),
    [(1, 1, 0, 0, 1), (3, 8, 2, 1, 3), (11, 1027, 3, 4, 2), (2, 6, 1, 0, 0), (0, 4, 1, 1, 1)],
)
def test_steps(
    cuda: ModuleType,
    batch: int,
    width: int,
    images: int,
    directions: int,
    columns: int,
    dtype: str,
) -> None:
    random = np.random.default_rng(3)
    state = random.standard_normal((batch, width)).astype(dtype)
    factors = random.standard_normal((columns, batch))
    terms: dict[str, Array] = {}
    for names, count in (("image", images), ("direction", directions)):
        if count:
            terms[f"{names}s"] = random.standard_normal((count, width)).astype(dtype)
            terms[f"{names}_coefficients"] = random.standard_normal((count, batch))
    options: dict[str, Any] = {"seed": 2**40 + 1, "layer": 3, "columns": range(5, 5 + columns)}
    there = cuda.OwnedArray
    out = there(np.full_like(state, np.nan))
    given = {name: there(array) for name, array in terms.items()}
    found = kernels.euler_maruyama_step(there(state), there(factors), out=out, **given, **options)
    assert found is out
    expected = kernels.euler_maruyama_step(state, factors, **terms, **options)
    # Terms are added in the same order: only the normals differ.
    bound = STEP_ULPS * np.finfo(dtype).eps * (1 + np.abs(factors).sum(0, initial=0.0))
    assert (np.abs(out.numpy() - expected) <= bound[:, None] * (1 + np.abs(expected))).all()
    if not columns and cuda.ARCHITECTURES != "emulated":  # which may lack fused operations
        np.testing.assert_array_equal(out.numpy(), expected)


def test_nothing_is_done_for_no_samples(cuda: ModuleType) -> None:
    s = Stack((2, 1, 4), "float32")
    there = cuda.OwnedArray
    empty = np.empty((3, 0, 4), np.float32)
    hidden = there(s.hidden)
    out = there(empty)
    kernels.residual_forward(there(empty[0]), hidden, branch_factor=1, out=out)
    kernels.sgd_update(hidden, there(empty), there(empty), there(np.empty(0)), step=1)
    np.testing.assert_array_equal(hidden.numpy(), s.hidden)
    kernels.hidden_gradient(there(empty), there(empty), branch_factor=1, out=hidden)
    assert not hidden.numpy().any()


def test_inputs_may_lie_in_their_place(cuda: ModuleType) -> None:
    if cuda.ARCHITECTURES != "emulated":
        pytest.skip("arrays of the processor are the device's only where that is emulated")
    s = Stack((2, 3, 4), "float64")
    hidden, features = Exported(s.hidden), np.zeros_like(s.features)
    features[0] = s.first
    expected = kernels.residual_forward(s.first, s.hidden, branch_factor=1)
    there = Exported(features[0]), hidden
    kernels.residual_forward(*there, branch_factor=1, out=Exported(features))
    np.testing.assert_allclose(features, expected, rtol=1e-12)
    adjoints = np.zeros_like(s.adjoints)
    adjoints[2] = s.last
    expected = kernels.residual_backward(s.last, features, s.hidden, branch_factor=1)
    given = Exported(adjoints[2]), Exported(features), hidden
    kernels.residual_backward(*given, branch_factor=1, out=Exported(adjoints))
    np.testing.assert_allclose(adjoints, expected, rtol=1e-12)
    state, factors = s.first.copy(), np.ones((1, 3))
    options: dict[str, Any] = {"seed": 1, "layer": 1, "columns": [0]}
    expected = kernels.euler_maruyama_step(state, factors, **options)
    kernels.euler_maruyama_step(Exported(state), Exported(factors), out=Exported(state), **options)
    np.testing.assert_allclose(state, expected, rtol=1e-12)
    for out in (Exported(features[::-1].copy()[::-1]), Exported(features)):
        with pytest.raises(ValueError, match=r"out must (not overlap features_0|be C-contiguous)"):
            kernels.residual_forward(Exported(features[1]), hidden, branch_factor=1, out=out)
    with pytest.raises(ValueError, match="hidden must not overlap features"):
        kernels.sgd_update(
            Exported(features[:2].reshape(-1)[:16].reshape(1, 4, 4)),
            Exported(features[:2]),
            Exported(adjoints[:2]),
            Exported(np.ones(3)),
            step=1,
        )


S = Stack((2, 3, 4), "float64")
WRONG: dict[str, Call] = {
    "dtype of hidden": lambda at: kernels.residual_forward(
        at(S.first), at(S.hidden.view(np.uint64)), branch_factor=1, out=at(S.features)
    ),
    "hidden not square": lambda at: kernels.residual_forward(
        at(S.first), at(np.zeros((2, 4, 3))), branch_factor=1, out=at(S.features)
    ),
    "another dtype": lambda at: kernels.residual_forward(
        at(S.first.astype(np.float32)), at(S.hidden), branch_factor=1, out=at(S.features)
    ),
    "another shape": lambda at: kernels.residual_forward(
        at(S.first[:, :3].copy()), at(S.hidden), branch_factor=1, out=at(S.features)
    ),
    "features of fewer layers": lambda at: kernels.residual_backward(
        at(S.last), at(S.features[:2]), at(S.hidden), branch_factor=1, out=at(S.adjoints)
    ),
    "sources of more layers": lambda at: kernels.residual_backward(
        *map(at, (S.last, S.features, S.hidden)),
        branch_factor=1,
        sources=at(S.adjoints),
        out=at(S.adjoints),
    ),
    "adjoints of another batch": lambda at: kernels.sgd_update(
        *map(at, (S.hidden, S.features, S.adjoints[:, :2].copy(), S.weights)), step=1
    ),
    "sample weights of another batch": lambda at: kernels.sgd_update(
        *map(at, (S.hidden, S.features, S.adjoints, S.weights[:2])), step=1
    ),
    "no layer": lambda at: kernels.hidden_gradient(
        at(S.features[:1]), at(S.adjoints[:1]), branch_factor=1, out=at(S.hidden)
    ),
    "images without coefficients": lambda at: kernels.euler_maruyama_step(
        at(S.first), at(np.ones((1, 3))), seed=0, layer=1, columns=[0], images=at(S.first),
        out=at(S.last),
    ),
    "coefficients of another batch": lambda at: kernels.euler_maruyama_step(
        at(S.first), at(np.ones((1, 2))), seed=0, layer=1, columns=[0], out=at(S.last)
    ),
    "directions of another dtype": lambda at: kernels.euler_maruyama_step(
        at(S.first), at(np.ones((1, 3))), seed=0, layer=1, columns=[0],
        directions=at(S.first.astype(np.float32)), direction_coefficients=at(np.ones((3, 3))),
        out=at(S.last),
    ),
    "branch factor": lambda at: kernels.residual_forward(
        at(S.first), at(S.hidden), branch_factor=np.nan, out=at(S.features)
    ),
    "activation": lambda at: kernels.residual_forward(
        at(S.first), at(S.hidden), branch_factor=1, activation="no", out=at(S.features)
    ),
}  # fmt: skip


@pytest.mark.parametrize("call", WRONG.values(), ids=WRONG)
def test_errors_are_the_processor_s(cuda: ModuleType, call: Call) -> None:
    with pytest.raises(ValueError, match=r"must") as here:
        call(lambda array: array)
    with pytest.raises(ValueError, match=r"must") as there:
        call(cuda.OwnedArray)
    assert str(there.value) == str(here.value)


def test_all_arrays_are_on_the_device(cuda: ModuleType) -> None:
    with pytest.raises(ValueError, match="features_0 must be in the memory of a GPU"):
        kernels.residual_forward(S.first, cuda.OwnedArray(S.hidden), branch_factor=1)
    with pytest.raises(ValueError, match=r"out must be in the memory of a GPU, .* got None"):
        kernels.residual_forward(*map(cuda.OwnedArray, (S.first, S.hidden)), branch_factor=1)
    given = S.hidden, S.features, S.adjoints, S.weights.astype(np.float32)
    with pytest.raises(ValueError, match="sample_weights must have dtype float64, got float32"):
        kernels.sgd_update(*map(cuda.OwnedArray, given), step=1)
    with pytest.raises(ValueError, match="cuda_stream must be None unless"):
        kernels.residual_forward(S.first, S.hidden, branch_factor=1, cuda_stream=2)


@pytest.mark.gpu
@pytest.mark.parametrize("size", [(4, 3, 256), (2, 150, 64), (2, 4, 1500)])
def test_torch_arrays_on_their_stream(gpu: ModuleType, size: tuple[int, int, int]) -> None:
    """A step of training on a stream, of which nothing waits for the host."""
    torch = pytest.importorskip("torch", reason="the extra 'torch'")
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch is a build without CUDA")
    s = Stack(size, "float64")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        options: dict[str, Any] = {"branch_factor": 0.5, "cuda_stream": stream.cuda_stream}
        hidden, last, weights = (
            torch.from_numpy(array).cuda() for array in (s.hidden, s.last, s.weights)
        )
        features, adjoints = (torch.empty(s.features.shape, dtype=torch.float64, device="cuda")
                              for _ in range(2))  # fmt: skip
        features[0] = torch.from_numpy(s.first)
        kernels.residual_forward(features[0], hidden, out=features, **options)
        kernels.residual_backward(last, features, hidden, out=adjoints, **options)
        kernels.sgd_update(hidden, features, adjoints, weights, step=0.2,
                           cuda_stream=stream.cuda_stream)  # fmt: skip
        moved = hidden.cpu().numpy()
    here = kernels.residual_forward(s.first, s.hidden, branch_factor=0.5)
    above = kernels.residual_backward(s.last, here, s.hidden, branch_factor=0.5)
    expected = kernels.sgd_update(s.hidden.copy(), here, above, s.weights, step=0.2)
    bound = s.bound * float(np.abs(expected).max()) * 10  # of three passes, one after the other
    np.testing.assert_allclose(moved, expected, rtol=0, atol=bound)
