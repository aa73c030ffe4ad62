"""What memory a run takes, as estimated before it, and which engine that and time choose."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import nfd_fast as nfd
from nfd_fast import engines, memory

NET = nfd.ResNet(width=5, depth=2, inputs=3)
SGD = nfd.SGD(0.1)


def test_the_memory_estimate_is_what_is_taken() -> None:
    """The formula of a dense run: weights, L+1 layers of features, four more, tiles, inputs."""
    from nfd_fast import _core

    width, depth, inputs, batch = 1000, 3, 7, 5
    task = _core.TrainingTask32(
        width=width, depth=depth, branch_factor=1.0, skip=True, activation=0,
        loss=_core.Loss.mse, learning_rate=0.1, train=(True, True, True), decoupled=False, fine=1,
        x=np.zeros((9, inputs), np.float32), targets=np.zeros((9, 1)), labels=None, outputs=1,
        batches=np.zeros((2, batch), np.int64), seeds=np.zeros(4, np.uint64), input=None,
        hidden=None, readout=None, backward_hidden=None, overwrite=False, record_every=1,
        keep_adjoints=False,
        keep_first_features=False, keep_coupling=False, tolerance=0.0,
        last_batch=np.zeros(batch, np.int64), first_update=0, keep_state=False,
    )  # fmt: skip
    one = task.bytes(_core.Engine.dense, 1, False)
    weights = width * inputs + depth * width**2 + width
    state = (depth + 1 + 2 + 2) * batch * width
    assert one == pytest.approx(4 * (weights + state), rel=0.01)
    assert task.bytes(_core.Engine.dense, 2, True) == 2 * one
    assert one < task.bytes(_core.Engine.dense, 2, False) < 1.01 * one


@pytest.mark.subprocess
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "options",
    [
        "engine='dense', record=['adjoints']",
        "engine='dense', record=['min_eigenvalues']",
        "engine='conditional', record=['coupling_accumulated']",
    ],
)
def test_the_memory_estimate_is_what_the_process_grows_by(options: str) -> None:
    """Within 10%, besides 30 MiB for threads and libraries."""
    code = f"""
import numpy as np, nfd_fast as nfd
from nfd_fast import memory
estimates = []
require = memory.require
memory.require = lambda needed, way_out: (estimates.append(needed), require(needed, way_out))
def peak():
    # Not getrusage: its maximum includes the process that started this one.
    (line,) = (l for l in open("/proc/self/status") if l.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
def run(width, depth, batch):
    nfd.train(nfd.ResNet(width, depth, 2), nfd.SGD(0.1), np.zeros((batch, 2)), np.zeros(batch),
              batches=[range(batch)] * 3, {options})
run(16, 2, 2)
before = peak()
run({"60, 100, 200" if "eigen" in options else "2000, 30, 8"})
grown = peak() - before
assert 0.9 * estimates[-1] - 3e7 < grown < 1.1 * estimates[-1] + 3e7, (grown, estimates)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


MEASURED = r"""
import re
import numpy as np
import nfd_fast as nfd

def peak():
    with open("/proc/self/status") as status:
        return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status.read())[1])

net, sgd = nfd.ResNet(200_000, 16, inputs=3), nfd.SGD(0.1)
rng = np.random.default_rng(0)
x, y, batches = rng.normal(size=(12, 3)), rng.normal(size=12), np.arange(12).reshape(3, 4)
nfd.train(nfd.ResNet(64, 2, inputs=3), sgd, x, y, batches=batches, engine="conditional")
before = peak()
nfd.train(net, sgd, x, y, batches=batches, engine="conditional")
estimate = nfd.estimate_memory(net, sgd, updates=3, batch=4)
print(estimate.engine, estimate.bytes, peak() - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads Linux's /proc")
def test_the_memory_estimate_of_a_wide_network_is_what_it_takes() -> None:
    """Within 10 %: the formula of the docstring, the estimate, and what the system counts.

    Measured in a process of its own, whose peak nothing else has raised.
    """
    ran = subprocess.run(
        [sys.executable, "-c", MEASURED], capture_output=True, text=True, check=True
    )
    engine, estimate, taken = ran.stdout.split()
    assert engine == "conditional"
    width, depth, updates, batch = 200_000, 16, 3, 4
    formula = 4 * width * (4 * depth * updates * batch + (depth + 1) * batch)
    assert float(estimate) == pytest.approx(formula, rel=0.1)
    assert float(taken) == pytest.approx(float(estimate), rel=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"net": 1}, "net must be an nfd_fast.ResNet"),
        ({"updates": 0}, "updates must be a positive integer"),
        ({"batch": 2**31}, "batch must be a positive integer of at most 2147483647"),
        ({"replicas": 10**8}, "replicas must be a positive integer of at most 10000000"),
        ({"updates": 2**31, "batch": 8}, "(updates + 1) * batch must be at most 2**32"),
        ({"engine": "fast"}, "engine must be one of 'auto', 'dense', 'conditional'"),
        ({"engine": "dense", "record": ("ranks",)}, "record 'ranks' needs engine='conditional'"),
    ],
)
def test_memory_estimates_refuse(changes: dict[str, Any], message: str) -> None:
    given = {"net": NET, "sgd": SGD, "updates": 3, "batch": 2} | changes
    with pytest.raises(ValueError, match=re.escape(message)):
        nfd.estimate_memory(**given)


def test_memory_estimates_know_the_engines() -> None:
    def estimate(width: int, **options: Any) -> nfd.MemoryEstimate:
        net = nfd.ResNet(width, 8, inputs=3)
        return nfd.estimate_memory(net, SGD, updates=5, batch=2, threads=1, **options)

    assert estimate(32).engine == "dense"
    assert estimate(4096).engine == "conditional"
    dense = estimate(4096, engine="dense")
    assert dense.bytes == pytest.approx(4 * 8 * 4096**2, rel=0.01)
    both = estimate(4096, engine="dense", backward="decoupled")
    assert both.bytes == pytest.approx(2 * dense.bytes, rel=0.01)
    assert estimate(4096, dtype="float64", engine="dense").bytes == pytest.approx(
        2 * dense.bytes, rel=0.01
    )
    records = estimate(4096, engine="dense", replicas=7, record=("features",))
    assert records.bytes - dense.bytes == pytest.approx(8 * 7 * 6 * 9 * 2 * 4096, rel=0.01)


@pytest.mark.parametrize(
    ("width", "updates", "batch"), [(1_000_000, 3, 4), (4096, 50, 4), (1024, 63, 4), (500, 200, 4)]
)
@pytest.mark.parametrize(
    ("options", "matrices"),
    [
        ({}, 7),
        ({"backward": "decoupled"}, 5),
        ({"record": ("coupling_accumulated",)}, 9),
        ({"dtype": "float64"}, 7),
    ],
)
def test_memory_of_the_conditional_engine(
    width: int, updates: int, batch: int, options: dict[str, Any], matrices: int
) -> None:
    """The documented formula holds within a tenth, also where the rank is not far below n."""
    depth = 16
    estimate = nfd.estimate_memory(
        nfd.ResNet(width, depth, inputs=3), SGD, updates=updates, batch=batch,
        engine="conditional", threads=1, **options,
    )  # fmt: skip
    rank = min(updates * batch, width)
    size = 8 if "dtype" in options else 4
    formula = size * width * (4 * depth * rank + (depth + 1) * batch)
    formula += 8 * matrices * depth * rank**2
    assert estimate.bytes == pytest.approx(formula, rel=0.1)


# Seconds per layer that both engines took, on one thread of a processor with AVX-512.
TIMED = [
    # width, updates, batch, dense, conditional
    (128, 3, 32, 2.4e-4, 3.7e-3),
    (128, 63, 1, 1.8e-4, 5.4e-3),
    (512, 1, 8, 7.1e-4, 8.2e-5),
    (512, 15, 16, 5.2e-3, 2.7e-2),
    (512, 63, 1, 3.4e-3, 6.8e-3),
    (1024, 3, 8, 4.6e-3, 5.3e-4),
    (1024, 15, 4, 1.1e-2, 3.2e-3),
    (1024, 15, 16, 2.2e-2, 4.1e-2),
    (1024, 63, 4, 3.9e-2, 1.4e-1),
    (2048, 1, 256, 1.1e-1, 2.0e-1),
    (2048, 3, 32, 5.2e-2, 1.0e-2),
    (2048, 63, 1, 1.2e-1, 1.4e-2),
    (4096, 3, 128, 5.4e-1, 2.4e-1),
    (4096, 63, 4, 6.5e-1, 1.3e-1),
]


@pytest.mark.parametrize("engine", ["dense", "conditional"])
def test_no_problem_is_too_large_to_be_estimated(engine: str) -> None:
    """Numbers of bytes beyond 64 bits are numbers still, and grow with every size."""
    sizes = (2, 2**10, 2**20, 2**30, 2**31 - 1)
    found = np.array([
        [nfd.estimate_memory(nfd.ResNet(width, 2**24, inputs=3), SGD, updates=1, batch=batch,
                             engine=engine).bytes for batch in sizes]
        for width in sizes
    ])  # fmt: skip
    assert (np.diff(found, axis=0) > 0).all()
    assert (np.diff(found, axis=1) > 0).all()
    assert found.min() > 0
    assert found.max() > 2.0**80


@pytest.mark.parametrize(("width", "updates", "batch", "dense", "conditional"), TIMED)
def test_the_automatic_engine_is_the_faster_one(
    width: int, updates: int, batch: int, dense: float, conditional: float
) -> None:
    chosen = nfd.estimate_memory(
        nfd.ResNet(width, 1, inputs=3), SGD, updates=updates, batch=batch
    ).engine
    assert chosen == ("conditional" if conditional < dense else "dense")


@pytest.mark.parametrize("faster", [True, False])
def test_the_automatic_engine_fits_the_memory(
    faster: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The faster one, unless it is too large and the other isn't."""
    monkeypatch.setattr(engines, "conditional_is_faster", lambda *sizes: faster)

    def estimate(engine: str, updates: int) -> nfd.MemoryEstimate:
        return nfd.estimate_memory(
            nfd.ResNet(1024, 64, inputs=3), SGD, updates=updates, batch=4, engine=engine
        )

    first, second = ("conditional", "dense") if faster else ("dense", "conditional")
    updates = 200 if faster else 4  # with which the second is the smaller one
    large, small = (estimate(engine, updates).bytes for engine in (first, second))
    assert small < 0.9 * large
    for available, chosen in ((1.1 * large, first), (1.1 * small, second), (0.5 * small, first)):
        monkeypatch.setattr(memory, "available_bytes", lambda available=available: int(available))
        assert estimate("auto", updates).engine == chosen
