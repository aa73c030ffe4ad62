"""Standard normal numbers, one thread: ours next to NumPy's generator, into the same memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nfd_fast import kernels, reference

SIZE = 1 << 22


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("peer", ["nfd_fast", "numpy"])
def test_normals(benchmark: Any, peer: str, dtype: str) -> None:
    benchmark.group = f"{SIZE} normals, {dtype}, one thread"
    out = np.zeros((1, SIZE), dtype)
    if peer == "nfd_fast":

        def draw() -> None:
            kernels.normal(1, "hidden", SIZE, dtype=dtype, out=out, threads=1)

        draw()
        expected = reference.normal(1, "hidden", 1000, dtype=dtype)
        np.testing.assert_allclose(out[:, :1000], expected, rtol=10 * np.finfo(dtype).eps)
    else:
        generator = np.random.Generator(np.random.Philox(1))

        def draw() -> None:
            generator.standard_normal(out=out[0], dtype=np.dtype(dtype).type)

        draw()
    assert abs(out.mean()) < 5 / np.sqrt(SIZE)
    benchmark.pedantic(draw, rounds=7, warmup_rounds=1)
    benchmark.extra_info["normals_per_second"] = SIZE / benchmark.stats["median"]
