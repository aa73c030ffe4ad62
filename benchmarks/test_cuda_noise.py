"""Normals on a GPU, against the bandwidth of its memory and the instructions that they take."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import gpu
import numpy as np
import pytest

from nfd_fast import kernels

pytestmark = pytest.mark.gpu

NEURONS = 1_000_000
CALLS = 10
"""One after the other on a stream: the host is ahead of the device, and its time doesn't count."""

INSTRUCTIONS = {"float32": 54, "float64": 91}
"""Per normal, in the loop of csrc/cuda/noise.cu as CUDA 13.0 compiles it for sm_90, branches that
are hardly ever taken apart: a quarter of what a thread does for four of them."""


@pytest.mark.benchmark(group="normals on a GPU")
@pytest.mark.parametrize("columns", [pytest.param(16, marks=pytest.mark.quick), 64])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_normals(benchmark: Any, cuda: ModuleType, dtype: str, columns: int) -> None:
    neurons = 100 if gpu.emulated(cuda) else NEURONS
    out = cuda.OwnedArray(np.zeros((columns, neurons), dtype))
    options: dict[str, Any] = {"columns": range(columns), "dtype": dtype, "out": out}

    def draw() -> None:
        for _ in range(CALLS - 1):
            kernels.normal(1, "hidden", neurons, cuda_stream=1, **options)
        kernels.normal(1, "hidden", neurons, **options)  # waits for them all

    benchmark.pedantic(draw, rounds=9, warmup_rounds=2)
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
