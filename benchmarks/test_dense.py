"""A training step of the dense engine next to the same step written in PyTorch by hand.

The peer has no autograd: in-place products on the same layout, the strongest plain form.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import peers
import pytest

import nfd_fast as nfd

UPDATES = 4
SHAPES = {
    "n=1024 L=16 B=4": (1024, 16, 4),
    "n=1024 L=16 B=32": (1024, 16, 32),
    "n=2048 L=8 B=128": (2048, 8, 128),
    "n=128 L=64 B=128": (128, 64, 128),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("peer", ["nfd_fast", "torch"])
def test_training(benchmark: Any, torch: Any, peer: str, shape: str) -> None:
    benchmark.group = f"{UPDATES} updates, {shape}"
    width, depth, batch = SHAPES[shape]
    rate = 0.2
    net = nfd.ResNet(width=width, depth=depth, inputs=16)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(batch, 16)).astype(np.float32), rng.normal(size=batch)
    batches = np.tile(np.arange(batch), (UPDATES, 1))
    sgd = nfd.SGD(rate, train=("hidden",))
    weights = nfd.initial_weights(net, 0)

    # Both train a set of weights in place, so that neither pays for drawing or copying them.
    def ours() -> Any:
        return nfd.train(net, sgd, x, y, batches=batches, weights=weights,
                         overwrite_weights=True).losses  # fmt: skip

    def theirs() -> Any:
        return peers.torch_by_hand(peers.Training.of([weights], x, y, UPDATES, rate))()

    first = ours()
    weights = nfd.initial_weights(net, 0)
    np.testing.assert_allclose(theirs(), first, rtol=1e-4)
    benchmark.pedantic(ours if peer == "nfd_fast" else theirs, rounds=7, warmup_rounds=1)
