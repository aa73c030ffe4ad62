"""A training step of the dense engine next to the same step written in PyTorch by hand.

The peer has no autograd: in-place products on the same layout, the strongest plain form.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import nfd_fast as nfd

UPDATES = 4
SHAPES = {
    "n=1024 L=16 B=4": (1024, 16, 4),
    "n=1024 L=16 B=32": (1024, 16, 32),
    "n=2048 L=8 B=128": (2048, 8, 128),
    "n=128 L=64 B=128": (128, 64, 128),
}


def torch_losses(torch: Any, weights: nfd.Weights, x: Any, y: Any, rate: float) -> list[float]:
    """Hidden-only SGD with C = 1 and mse on one batch, as in the Python package's formulas."""
    hidden = torch.from_numpy(weights.hidden)
    readout = torch.from_numpy(weights.readout[0])
    depth, width, _ = hidden.shape
    batch = len(x)
    branch = math.sqrt(1 / depth) / math.sqrt(width)
    features = [x @ torch.from_numpy(weights.input).T / math.sqrt(x.shape[1])]
    features += [torch.empty_like(features[0]) for _ in range(depth)]
    losses = []
    for k in range(UPDATES + 1):
        for layer in range(depth):
            torch.addmm(features[layer], features[layer].tanh(), hidden[layer].T, alpha=branch,
                        out=features[layer + 1])  # fmt: skip
        residual = features[depth] @ readout / width - y
        losses.append(0.5 * float((residual * residual).mean()))
        if k == UPDATES:
            return losses
        adjoints = readout.expand(batch, width).clone()
        for layer in reversed(range(depth)):
            activation = features[layer].tanh()
            product = (adjoints @ hidden[layer]).mul_(branch)
            hidden[layer].addmm_((adjoints * residual[:, None]).T, activation,
                                 alpha=-rate * branch / batch)  # fmt: skip
            adjoints.add_(product.mul_(1 - activation * activation))
    return losses


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
        return torch_losses(torch, weights, torch.from_numpy(x), torch.from_numpy(y).float(), rate)

    first = ours()
    weights = nfd.initial_weights(net, 0)
    np.testing.assert_allclose(theirs(), first, rtol=1e-4)
    benchmark.pedantic(ours if peer == "nfd_fast" else theirs, rounds=7, warmup_rounds=1)
