"""What importing nfd_fast takes, next to NumPy's own; ``pytest -s`` on this file prints it."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROBE = """
import time
start = time.process_time()
import numpy
between = time.process_time()
import nfd_fast
print(between - start, time.process_time() - between)
"""


@pytest.mark.subprocess
def test_importing_takes_less_than_numpy_does() -> None:
    """Of processor time, side by side: a second is another one on a machine that is busy."""
    runs = [
        subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
        for _ in range(5)
    ]
    times = [[float(seconds) for seconds in run.stdout.split()] for run in runs]
    numpy, own = map(min, zip(*times, strict=True))
    print(f"\nimport nfd_fast: {own:.3f} s of processor time, after {numpy:.3f} s of numpy's")
    assert own < numpy
