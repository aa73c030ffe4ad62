"""Normals on a GPU, against the bandwidth of its memory and the instructions that they take."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import gpu
import numpy as np
import pytest

from nfd_fast import kernels

pytestmark = [pytest.mark.gpu, pytest.mark.limits]

CALLS = 10
"""One after the other on a stream: each keeps the device for half a millisecond at least, so that
the host is ahead of it, and its time doesn't count."""

INSTRUCTIONS = {"float32": 146 / 4, "float64": 283 / 4}
"""Per normal, in the loop of csrc/cuda/noise.cu that makes four of them in a turn, as CUDA 13.0
compiles it for sm_90. What a thread does once, and for the end of a column, is not counted."""


@pytest.mark.benchmark(group="normals on a GPU")
@pytest.mark.parametrize(
    ("columns", "neurons"),
    [pytest.param(256, 1_000_000, marks=pytest.mark.quick), (16_384, 16_000)],
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_normals(benchmark: Any, cuda: ModuleType, dtype: str, columns: int, neurons: int) -> None:
    if gpu.emulated(cuda):
        columns, neurons = 16, 100
    out = cuda.OwnedArray(np.zeros((columns, neurons), dtype))
    options: dict[str, Any] = {"columns": range(columns), "dtype": dtype, "out": out}

    def draw() -> None:
        for _ in range(CALLS - 1):
            kernels.normal(1, "hidden", neurons, cuda_stream=1, **options)
        kernels.normal(1, "hidden", neurons, **options)  # waits for them all

    # The clocks of a device that was idle take some rounds to rise.
    rounds, warmup = (1, 0) if gpu.emulated(cuda) else (15, 10)
    benchmark.pedantic(draw, rounds=rounds, warmup_rounds=warmup)
    found = out.numpy()[-1]
    expected = kernels.normal(1, "hidden", neurons, columns=[columns - 1], dtype=dtype)[0]
    np.testing.assert_allclose(found, expected, rtol=15 * np.finfo(dtype).eps)
    limits, rate = gpu.limits(), CALLS * columns * neurons / benchmark.stats["median"]
    most = {
        "memory": limits.write / np.dtype(dtype).itemsize,
        "arithmetic": limits.multiply_add["float32"] / 2 / INSTRUCTIONS[dtype],
    }
    bound = min(most, key=lambda name: most[name])
    benchmark.extra_info |= {
        "normals_per_second": rate,
        "most_per_second": most,
        "bound_by": bound,
        "share_of_write_bandwidth": rate / most["memory"],
        "fraction_of_limit": rate / most[bound],
        "summary": (
            f"{rate / 1e9:.0f} G/s, {rate / most['memory']:.0%} of the write bandwidth, "
            f"{rate / most[bound]:.0%} of the limit ({bound})"
        ),
    }
