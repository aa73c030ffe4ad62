"""The residual stack inside PyTorch and JAX next to the framework's own loop over the layers.

One forward and one backward pass, by inputs and weights. The framework's loop has the strongest
plain form: weights are a list of matrices, so that no gradient is scattered into a stack, and JAX
compiles all of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from machine import THREADS

SHAPES = {
    "n=128 L=64 B=128": (128, 64, 128),
    "n=512 L=16 B=64": (512, 16, 64),
    "n=1024 L=16 B=32": (1024, 16, 32),
}
PEERS = pytest.mark.parametrize("peer", ["nfd_fast", "framework"])


def drawn(shape: str) -> tuple[Any, Any, float]:
    """Return H_0, W and β."""
    width, depth, batch = SHAPES[shape]
    random = np.random.default_rng(0)
    first = random.standard_normal((batch, width), np.float32)
    hidden = random.standard_normal((depth, width, width), np.float32)
    return first, hidden, math.sqrt(1 / depth)


def timed(benchmark: Any, ours: Callable[[], Any], theirs: Callable[[], Any], peer: str) -> None:
    """Time one of two functions that return the loss and its derivatives by H_0 and each W_l.

    Sums in another order, √n eps a layer and L layers: 1e-4 of the largest entry is ample.
    """
    (loss, by_first, by_hidden), (their_loss, by_their_first, by_matrices) = ours(), theirs()
    pairs = [
        (loss, their_loss),
        (by_first, by_their_first),
        *zip(by_hidden, by_matrices, strict=True),
    ]
    for got, want in pairs:
        error = 1e-4 * float(abs(want).max())
        np.testing.assert_allclose(np.asarray(got), np.asarray(want), rtol=0, atol=error)
    benchmark.pedantic(ours if peer == "nfd_fast" else theirs, rounds=7, warmup_rounds=1)


@pytest.mark.parametrize("shape", SHAPES)
@PEERS
def test_torch(benchmark: Any, torch: Any, peer: str, shape: str) -> None:
    from nfd_fast.interop.torch import residual_stack

    benchmark.group = f"residual stack in PyTorch, {shape}, {THREADS} threads"
    first_array, hidden_array, branch_factor = drawn(shape)
    first = torch.from_numpy(first_array).requires_grad_()
    hidden = torch.from_numpy(hidden_array).requires_grad_()
    matrices = [matrix.detach().clone().requires_grad_() for matrix in hidden]
    scale = branch_factor / math.sqrt(len(matrices[0]))

    def ours() -> Any:
        last = residual_stack(first, hidden, branch_factor=branch_factor)
        loss = last.square().mean()
        return loss.detach(), *torch.autograd.grad(loss, (first, hidden))

    def theirs() -> Any:
        last = first
        for matrix in matrices:
            last = torch.addmm(last, last.tanh(), matrix.T, alpha=scale)
        loss = last.square().mean()
        by_first, *by_matrices = torch.autograd.grad(loss, (first, *matrices))
        return loss.detach(), by_first, by_matrices

    timed(benchmark, ours, theirs, peer)


@pytest.mark.parametrize("shape", SHAPES)
@PEERS
def test_jax(benchmark: Any, peer: str, shape: str) -> None:
    jax = pytest.importorskip("jax", reason="the peer JAX is in the extra 'jax'")
    from nfd_fast.interop.jax import residual_stack

    benchmark.group = f"residual stack in JAX, {shape}, {THREADS} threads"
    first_array, hidden_array, branch_factor = drawn(shape)
    first, hidden = jax.numpy.asarray(first_array), jax.numpy.asarray(hidden_array)
    matrices = list(hidden)
    scale = branch_factor / math.sqrt(len(first[0]))

    def our_loss(first: Any, hidden: Any) -> Any:
        return (residual_stack(first, hidden, branch_factor=branch_factor) ** 2).mean()

    def their_loss(first: Any, matrices: Any) -> Any:
        for matrix in matrices:
            first = first + scale * (jax.numpy.tanh(first) @ matrix.T)
        return (first**2).mean()

    def compiled(function: Any, weights: Any) -> Callable[[], Any]:
        both = jax.jit(jax.value_and_grad(function, (0, 1)))

        def run() -> Any:
            loss, (by_first, by_weights) = jax.block_until_ready(both(first, weights))
            return loss, by_first, by_weights

        return run

    timed(benchmark, compiled(our_loss, hidden), compiled(their_loss, matrices), peer)
