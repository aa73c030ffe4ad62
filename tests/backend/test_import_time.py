"""How long ``import nfd_fast`` takes over NumPy's own; ``pytest -s`` on this file prints it."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROBE = """
import time, numpy
wall, cpu = time.perf_counter(), time.process_time()
import nfd_fast
print(time.process_time() - cpu, time.perf_counter() - wall)
"""
LIMIT = 0.15
"""Seconds of processor time: the clock on the wall also counts what else the machine does."""


@pytest.mark.subprocess
def test_importing_is_quick() -> None:
    runs = [
        subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
        for _ in range(5)
    ]
    times = [[float(seconds) for seconds in run.stdout.split()] for run in runs]
    cpu, wall = map(min, zip(*times, strict=True))
    print(f"\nimport nfd_fast after numpy: {cpu:.3f} s of processor time, {wall:.3f} s")
    assert cpu < LIMIT
