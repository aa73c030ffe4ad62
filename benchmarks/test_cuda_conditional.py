"""The conditional engine's sweep over the layers on a GPU, against the bandwidth of its memory.

Each timed run must repeat the losses of the first one bit for bit; that these have the right law,
and are the processor's, is what the tests show.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import gpu
import numpy as np
import pytest
from work import conditional_bytes

import nfd_fast as nfd
from nfd_fast import _core, conditional
from nfd_fast.problem import Problem

pytestmark = [pytest.mark.gpu, pytest.mark.limits]

CASES = {
    "n=1000000 L=64 B=4 K=4": (1_000_000, 64, 4, 4, 1),
    "n=10000 L=1000 B=4 K=4": (10_000, 1000, 4, 4, 1),
    "n=10000 L=1000 B=4 K=4, 6 replicas": (10_000, 1000, 4, 4, 6),
    "n=10000 L=1000 B=4 K=4, 24 replicas": (10_000, 1000, 4, 4, 24),
}
INPUTS = 16


def problem(width: int, depth: int, batch: int, updates: int, replicas: int) -> Problem:
    rng = np.random.default_rng(0)
    samples = batch * updates
    return Problem(
        net=nfd.ResNet(width=width, depth=depth, inputs=INPUTS),
        sgd=nfd.SGD(0.1),
        x=rng.normal(size=(samples, INPUTS)).astype(np.float32),
        targets=rng.normal(size=(samples, 1)),
        labels=None,
        batches=np.arange(samples).reshape(updates, batch),
        seeds=tuple(range(replicas)),
        backward="reused",
        fine=1,
        dtype="float32",
        threads=1,
        record=("outputs",),
        device="cuda",
    )


@pytest.mark.benchmark(group="conditional training on a GPU")
@pytest.mark.parametrize("case", [pytest.param(case, marks=pytest.mark.quick) for case in CASES])
def test_sweep(benchmark: Any, cuda: ModuleType, case: str) -> None:
    """Time per layer of the last pass, which is forward with M = K B columns in each basis."""
    sizes = (20, 3, 2, 2, min(CASES[case][-1], 2)) if gpu.emulated(cuda) else CASES[case]
    width, depth, batch, updates, replicas = sizes
    task = conditional.compiled(problem(*sizes))
    times = []

    def train() -> Any:
        losses, milliseconds = np.full((replicas, updates + 1), np.nan), np.zeros((updates + 1, 2))
        cuda.run(task, _core.Engine.conditional, {"losses": losses}, None, milliseconds)
        times.append(milliseconds)
        return losses

    first = train()
    assert (first < 10).all()
    again = benchmark.pedantic(train, rounds=5, warmup_rounds=1)
    assert np.array_equal(again, first)
    passes = np.median(times[1:], axis=0) / 1e3
    last = passes[updates, 0]
    columns, copied = updates * batch, gpu.limits().copy
    layers = depth * replicas
    least = 4.0 * (5 * columns + 7 * batch) * width * layers / copied
    least_of_all = replicas * conditional_bytes(width, depth, batch, updates) / copied
    benchmark.extra_info |= {
        "columns": columns,
        "forward_seconds": passes[:, 0].tolist(),
        "backward_seconds": passes[:-1, 1].tolist(),
        "layer_seconds": last / layers,
        "least_seconds": {"last pass": least, "all passes": least_of_all},
        "share_of_copy_bandwidth": least / last,
        "fraction_of_limit": least_of_all / passes.sum(),
        "summary": (
            f"M={columns}: {last / layers * 1e6:.3g} µs a layer, {least / last:.0%} of the copy "
            f"bandwidth ({last / least:.2f} × its bound); all passes {passes.sum() * 1e3:.3g} ms, "
            f"{least_of_all / passes.sum():.0%}"
        ),
    }
