"""The kernels of hidden layers on arrays in the memory of a GPU; see :mod:`nfd_fast.kernels`.

Arguments are checked as there, but for numbers on the device, which nobody looks at before they
are used. Results go to ``out``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nfd_fast import _core, arguments, device_arrays
from nfd_fast.device_arrays import Work


def residual_forward(
    first: Any,
    hidden: Any,
    out: Any,
    cuda_stream: int | None,
    *,
    branch_factor: float,
    skip: bool,
    activation: int,
) -> None:
    """Fill ``out`` (L+1, B, n)."""
    work = device_arrays.work(cuda_stream)
    matrices, depth, width = _matrices(hidden, work)
    start = device_arrays.floats("features_0", first, ("batch", width), work, matrices.dtype)
    shape = (depth + 1, *start.shape)
    there = device_arrays.borrowed("out", out, shape, matrices.dtype, work, filled=True)
    device_arrays.keep_apart("out", there, "hidden", matrices)
    device_arrays.keep_apart("out", there, "features_0", start, place=0)
    work.cuda.residual_forward(
        matrices, start, there, branch_factor, skip, activation, work.stream, work.wait
    )


def residual_backward(
    last: Any,
    features: Any,
    hidden: Any,
    sources: Any,
    out: Any,
    cuda_stream: int | None,
    *,
    branch_factor: float,
    skip: bool,
    activation: int,
) -> None:
    """Fill ``out`` (L+1, B, n)."""
    work = device_arrays.work(cuda_stream)
    matrices, depth, width = _matrices(hidden, work)
    end = device_arrays.floats("adjoints_last", last, ("batch", width), work, matrices.dtype)
    shape = (depth + 1, *end.shape)
    layers = device_arrays.floats("features", features, shape, work, matrices.dtype)
    entering = None
    if sources is not None:
        below = (depth, *end.shape)
        entering = device_arrays.floats("sources", sources, below, work, matrices.dtype)
    there = device_arrays.borrowed("out", out, shape, matrices.dtype, work, filled=True)
    given = {"hidden": matrices, "features": layers, "sources": entering}
    _keep_apart("out", there, given)
    place = there.bytes - end.bytes
    device_arrays.keep_apart("out", there, "adjoints_last", end, place=place)
    work.cuda.residual_backward(
        matrices,
        layers,
        entering,
        end,
        there,
        branch_factor,
        skip,
        activation,
        work.stream,
        work.wait,
    )


def sgd_update(
    hidden: Any,
    features: Any,
    adjoints: Any,
    sample_weights: Any,
    cuda_stream: int | None,
    *,
    step: float,
    activation: int,
) -> None:
    """Move ``hidden`` (L, n, n)."""
    work = device_arrays.work(cuda_stream)
    matrices, depth, width = _matrices(hidden, work, filled=True)
    shape = (depth + 1, "batch", width)
    layers = device_arrays.floats("features", features, shape, work, matrices.dtype)
    above = device_arrays.floats("adjoints", adjoints, layers.shape, work, matrices.dtype)
    weights = device_arrays.borrowed(
        "sample_weights", sample_weights, (layers.shape[1],), "float64", work
    )
    given = {"features": layers, "adjoints": above, "sample_weights": weights}
    _keep_apart("hidden", matrices, given)
    work.cuda.sgd_update(
        matrices, layers, above, weights, step, False, activation, work.stream, work.wait
    )


def hidden_gradient(
    features: Any,
    adjoints: Any,
    out: Any,
    cuda_stream: int | None,
    *,
    branch_factor: float,
    activation: int,
) -> None:
    """Fill ``out`` (L, n, n)."""
    work = device_arrays.work(cuda_stream)
    layers = device_arrays.floats("features", features, ("depth + 1", "batch", "width"), work)
    arguments.check_stack("features", layers)
    above = device_arrays.floats(
        "adjoints", adjoints, layers.shape, work, layers.dtype, of="features"
    )
    shape = (layers.shape[0] - 1, layers.shape[2], layers.shape[2])
    there = device_arrays.borrowed("out", out, shape, layers.dtype, work, filled=True)
    _keep_apart("out", there, {"features": layers, "adjoints": above})
    work.cuda.sgd_update(
        there, layers, above, None, -branch_factor, True, activation, work.stream, work.wait
    )


def euler_maruyama_step(
    state: Any,
    noise_coefficients: Any,
    terms: tuple[Any, Any, Any, Any],
    address: tuple[int, _core.Stream, int],
    columns: NDArray[np.uint32],
    out: Any,
    cuda_stream: int | None,
) -> None:
    """Fill ``out`` (B, n); ``terms`` are images and directions, each with its coefficients."""
    work = device_arrays.work(cuda_stream)
    before = device_arrays.floats("state", state, ("batch", "width"), work)
    batch, width = before.shape
    arguments.integer("width", width, low=0, high=arguments.MAX_INDEX)
    factors = device_arrays.borrowed(
        "noise_coefficients", noise_coefficients, (len(columns), batch), "float64", work
    )
    names = ("images", "image_coefficients", "directions", "direction_coefficients")
    known = (
        *_terms(names[:2], *terms[:2], before, work),
        *_terms(names[2:], *terms[2:], before, work),
    )
    given = dict(zip(names, known, strict=True)) | {"noise_coefficients": factors}
    there = device_arrays.borrowed("out", out, before.shape, before.dtype, work, filled=True)
    _keep_apart("out", there, given)
    device_arrays.keep_apart("out", there, "state", before, place=0)
    work.cuda.euler_maruyama_step(
        before, *known, *address, columns, factors, there, work.stream, work.wait
    )


def _matrices(value: Any, work: Work, *, filled: bool = False) -> tuple[Any, int, int]:
    """Return square matrices (depth, width, width), one or more, and their depth and width."""
    shape = ("depth", "width", "width")
    array = device_arrays.floats("hidden", value, shape, work, filled=filled)
    arguments.check_square("hidden", array)
    return array, array.shape[0], array.shape[1]


def _terms(
    names: tuple[str, str], values: Any, coefficients: Any, state: Any, work: Work
) -> tuple[Any, Any]:
    """Return columns (count, n) and coefficients (count, B) of a sum, or neither."""
    if values is None and coefficients is None:
        return None, None
    arguments.check_pair(names, values, coefficients)
    batch, width = state.shape
    shape = ("count", width)
    array = device_arrays.floats(names[0], values, shape, work, state.dtype, of="state")
    size = (array.shape[0], batch)
    return array, device_arrays.borrowed(names[1], coefficients, size, "float64", work)


def _keep_apart(name: str, array: Any, given: dict[str, Any]) -> None:
    for other, one in given.items():
        if one is not None:
            device_arrays.keep_apart(name, array, other, one)
