"""The conditional engine on networks too wide or too deep to store.

Each timed call must repeat the losses of the first one bit for bit; that these have the right law
is what tests/statistical shows. `extra_info` has the derived figures.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import machine
import numpy as np
import pytest
from side_by_side import growth_exponent, seconds_of
from work import conditional_bytes

import nfd_fast as nfd


def problem(width: int, depth: int, batch: int, updates: int) -> tuple[Any, ...]:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(batch * updates, 16)), rng.normal(size=batch * updates)
    batches = np.arange(batch * updates).reshape(updates, batch)
    return nfd.ResNet(width=width, depth=depth, inputs=16), x, y, batches


def train(setting: tuple[Any, ...], **options: Any) -> nfd.Run:
    net, x, y, batches = setting
    return nfd.train(net, nfd.SGD(0.1), x, y, batches=batches, engine="conditional", **options)


REACH = {
    "n=4096 L=64 B=4 K=4": (4096, 64, 4, 4),
    "n=1000 L=100000 B=1 K=2": (1000, 100_000, 1, 2),
    "n=1000000 L=16 B=4 K=3": (1_000_000, 16, 4, 3),
    "n=1000000 L=16 B=4 K=4": (1_000_000, 16, 4, 4),
}


@pytest.mark.limits
@pytest.mark.parametrize("case", REACH)
def test_reach(benchmark: Any, case: str) -> None:
    benchmark.group = "conditional training"
    setting = problem(*REACH[case])
    start = time.perf_counter()
    first = train(setting)
    benchmark.extra_info["first_call_seconds"] = time.perf_counter() - start
    again = benchmark.pedantic(lambda: train(setting), rounds=3, warmup_rounds=1)
    assert np.array_equal(again.losses, first.losses)
    assert (first.losses[:-1] < 10).all()
    bandwidth = machine.limits().read.all
    share = conditional_bytes(*REACH[case]) / benchmark.stats["median"] / bandwidth
    benchmark.extra_info["read_bandwidth_gb_per_s"] = bandwidth / 1e9
    benchmark.extra_info["share_of_read_bandwidth"] = share
    print(f"\n{case}: {benchmark.stats['median']:.3g} s, {share:.0%} of {bandwidth / 1e9:.1f} GB/s")


GROWTH = {
    "width": [(n, 16, 4, 3) for n in (10_000, 31_623, 100_000, 316_228, 1_000_000)],
    "depth": [(4096, depth, 4, 3) for depth in (64, 200, 640, 2000, 6400)],
}


@pytest.mark.parametrize("size", GROWTH)
def test_growth(benchmark: Any, size: str) -> None:
    """Log-log slope of the time over two decades."""
    benchmark.group = "growth of conditional training"
    medians = [seconds_of(partial(train, problem(*case))) for case in GROWTH[size]]
    sizes = [case[0] if size == "width" else case[1] for case in GROWTH[size]]
    slope = growth_exponent(sizes, medians)
    benchmark.extra_info["slope"] = slope
    print(f"\ntime against {size}: slope {slope:.3f}, seconds {np.round(medians, 4)}")
    setting = problem(*GROWTH[size][0])
    benchmark.pedantic(lambda: train(setting), rounds=3)


def test_small_algebra(benchmark: Any) -> None:
    """What a layer costs besides its neurons: the same run with hardly any, on one thread.

    Of 64 neurons, so that the small matrices are those of the wide network: both reach rank 16.
    """
    benchmark.group = "conditional training"
    narrow, wide = problem(64, 64, 4, 4), problem(4096, 64, 4, 4)
    times = []
    for setting in (narrow, wide):
        train(setting, threads=1)
        rounds = []
        for _ in range(15):
            start = time.perf_counter()
            train(setting, threads=1)
            rounds.append(time.perf_counter() - start)
        times.append(np.median(rounds))
    share = float(times[0] / times[1])
    benchmark.extra_info["share_of_n_4096"] = share
    print(f"\nn=64 takes {share:.1%} of the time of n=4096, L=64 B=4 K=4, one thread")
    benchmark.pedantic(lambda: train(narrow, threads=1), rounds=3, warmup_rounds=1)
