"""Normals on a GPU, against the bandwidth of its memory."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest

from nfd_fast import devices, kernels

pytestmark = pytest.mark.gpu

NEURONS = 1_000_000


@pytest.fixture(scope="module")
def cuda() -> ModuleType:
    return devices.require()


@pytest.mark.benchmark(group="normals on a GPU")
@pytest.mark.parametrize("columns", [pytest.param(16, marks=pytest.mark.quick), 256])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_normals(benchmark: Any, cuda: ModuleType, dtype: str, columns: int) -> None:
    out = cuda.OwnedArray(np.zeros((columns, NEURONS), dtype))
    options: dict[str, Any] = {"columns": range(columns), "dtype": dtype}
    benchmark(lambda: kernels.normal(1, "hidden", NEURONS, out=out, **options))
    found = out.numpy()[-1]
    expected = kernels.normal(1, "hidden", NEURONS, columns=[columns - 1], dtype=dtype)[0]
    np.testing.assert_allclose(found, expected, rtol=15 * np.finfo(dtype).eps)
    written = columns * NEURONS * np.dtype(dtype).itemsize / benchmark.stats["median"]
    benchmark.extra_info["summary"] = (
        f"{written / 1e9:.0f} GB/s written, {cuda.devices()[0]['name']}"
    )
