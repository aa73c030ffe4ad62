"""Both engines on one problem: what ``engine="auto"`` takes next to what it leaves.

On one thread; the sizes lie on both sides of where the choice turns.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import nfd_fast as nfd

SIZES = {
    "n=512 K=15 B=4": (512, 15, 4),
    "n=1024 K=15 B=16": (1024, 15, 16),
    "n=2048 K=3 B=32": (2048, 3, 32),
    "n=2048 K=63 B=4": (2048, 63, 4),
    "n=4096 K=3 B=128": (4096, 3, 128),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("engine", ["dense", "conditional"])
def test_engines(benchmark: Any, engine: str, size: str) -> None:
    benchmark.group = f"engines, {size}, one thread"
    width, updates, batch = SIZES[size]
    net, sgd = nfd.ResNet(width, 2, 16), nfd.SGD(0.05)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(updates * batch, 16)), rng.normal(size=updates * batch)
    batches = np.arange(updates * batch).reshape(updates, batch)
    chosen = nfd.estimate_memory(net, sgd, updates=updates, batch=batch).engine
    benchmark.extra_info["automatic"] = chosen == engine

    def train() -> nfd.Run:
        return nfd.train(net, sgd, x, y, batches=batches, engine=engine, threads=1)

    assert np.isfinite(train().losses).all()
    benchmark.pedantic(train, rounds=3, warmup_rounds=1)
