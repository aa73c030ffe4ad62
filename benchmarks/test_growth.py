"""How the time of both engines grows, what a call costs, and what more processors bring.

Exponents are slopes of log time against log size. Sizes are such that the term that grows fastest
has most of the time; "threads" has -1 at best.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
from machine import THREADS
from side_by_side import growth_exponent, seconds_of

import nfd_fast as nfd

SGD = nfd.SGD(0.1)


class Size(NamedTuple):
    width: int
    depth: int
    batch: int
    updates: int
    threads: int = THREADS


def call(engine: str, size: Size, replicas: int = 1) -> Any:
    """Return a call of ``train`` on samples that come once each."""
    rng = np.random.default_rng(0)
    samples = size.batch * size.updates
    return partial(
        nfd.train,
        nfd.ResNet(width=size.width, depth=size.depth, inputs=16),
        SGD,
        rng.normal(size=(samples, 16)),
        rng.normal(size=samples),
        batches=np.arange(samples).reshape(size.updates, size.batch),
        engine=engine,
        seed=range(replicas),
        threads=size.threads,
    )


def powers(start: int, count: int, factor: int = 2) -> list[int]:
    return [start * factor**i for i in range(count)]


# What a size stands at while another one grows, quick or not; then the values of each.
BASES = {
    "dense": (Size(128, 8, 8, 2), Size(1024, 8, 16, 4)),
    "conditional": (Size(512, 8, 4, 2), Size(8192, 16, 4, 4)),
}
VALUES = {
    "dense": {
        "width": (powers(64, 4), powers(256, 4)),
        "depth": (powers(4, 4), powers(4, 4)),
        "batch": (powers(8, 4), powers(16, 5)),
        "updates": (powers(2, 4), powers(4, 4)),
    },
    "conditional": {
        "width": (powers(512, 4), powers(4096, 5)),
        "depth": (powers(4, 4), powers(16, 4)),
        "batch": (powers(2, 4), powers(2, 4)),
        "updates": (powers(2, 4), powers(2, 4)),
    },
}
THREAD_COUNTS = [count for count in powers(1, 7) if count < THREADS] + [THREADS]

PACES = pytest.mark.parametrize(
    "quick",
    [pytest.param(True, id="quick", marks=pytest.mark.quick), pytest.param(False, id="full")],
)


@PACES
@pytest.mark.parametrize("grows", ["width", "depth", "batch", "updates", "threads"])
@pytest.mark.parametrize("engine", ["dense", "conditional"])
def test_exponent(benchmark: Any, engine: str, grows: str, quick: bool) -> None:
    benchmark.group = f"growth, {engine}"
    base = BASES[engine][0 if quick else 1]
    values = THREAD_COUNTS if grows == "threads" else VALUES[engine][grows][0 if quick else 1]
    if len(values) < 2:
        pytest.skip("there is one processor")
    calls = [call(engine, base._replace(**{grows: value})) for value in values]
    assert all(np.isfinite(each().losses).all() for each in calls)
    seconds = [seconds_of(each) for each in calls]
    exponent = growth_exponent(values, seconds)
    benchmark.extra_info |= {"sizes": values, "seconds": seconds, "exponent": exponent}
    benchmark.extra_info["summary"] = f"exponent {exponent:.2f}"
    benchmark.pedantic(calls[0], rounds=3)


@pytest.mark.quick
@pytest.mark.parametrize("engine", ["dense", "conditional"])
def test_overhead(benchmark: Any, engine: str) -> None:
    """A network so small that what is left is the way in and out: at most 100 µs are wanted."""
    benchmark.group = "one call of train, tiny network"
    tiny = call(engine, Size(4, 1, 1, 1, threads=1))
    assert np.isfinite(tiny().losses).all()
    benchmark.pedantic(tiny, rounds=200, warmup_rounds=20)
    benchmark.extra_info["summary"] = f"{1e6 * benchmark.stats['median']:.0f} µs a call"


@PACES
@pytest.mark.parametrize("engine", ["dense", "conditional"])
def test_ensemble(benchmark: Any, engine: str, quick: bool) -> None:
    """Replicas per processor and second on all processors, over those on one; 80% are wanted.

    One processor and all take turns.
    """
    benchmark.group = "ensembles of small networks"
    size = Size(64, 8, 4, 2) if quick else Size(128, 16, 16, 8)
    replicas = 8 * THREADS
    together = call(engine, size, replicas)
    alone = call(engine, size._replace(threads=1), replicas)
    assert np.array_equal(together().losses, alone().losses)
    times = []

    def turn() -> None:
        start = time.perf_counter()
        alone()
        times.append(time.perf_counter() - start)

    benchmark.pedantic(together, setup=turn, rounds=7)
    efficiency = float(np.median(times)) / benchmark.stats["median"] / THREADS
    benchmark.extra_info |= {
        "efficiency": efficiency,
        "summary": f"{efficiency:.0%} of one processor's rate on each of {THREADS}",
    }
