"""What importing the package takes, next to NumPy's own import, which is a part of it."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np

PROGRAM = """
import time
start = time.thread_time()
import numpy
between = time.thread_time()
import nfd_fast
print(between - start, time.thread_time() - between)
"""


def test_nfd_fast(benchmark: Any) -> None:
    """Processor time of the thread that imports: BLAS libraries start others, which wait busily."""
    benchmark.group = "a program that imports nfd_fast"
    times: list[list[float]] = []

    def start() -> None:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
        )
        times.append([float(seconds) for seconds in done.stdout.split()])

    benchmark.pedantic(start, rounds=9, warmup_rounds=1)
    numpy, own = np.median(times[1:], axis=0)
    benchmark.extra_info |= {
        "numpy_seconds": numpy,
        "seconds": own,
        "summary": f"{own:.3f} s of processor time after {numpy:.3f} s of NumPy's own",
    }
