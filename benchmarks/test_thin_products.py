"""Products of one matrix with few columns, next to the BLAS of NumPy and of PyTorch.

Our own products read the matrix where it lies, once for all columns; those with more columns than
here are left to BLAS by us too. The training steps are 5 forward passes, and 4 backward ones that
move the weights while they are read.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import peers
import pytest
from side_by_side import Call, compare
from test_workloads import RATE, SGD, problem, same_losses
from work import Work, training_work

import nfd_fast as nfd
from nfd_fast import kernels

pytestmark = pytest.mark.limits

BATCHES = (1, 2, 4, 8, 16, 24)
SIZES = pytest.mark.parametrize(
    ("width", "batch"),
    [pytest.param(512, 4, id="n=512 B=4", marks=pytest.mark.quick)]
    + [pytest.param(4096, batch, id=f"n=4096 B={batch}") for batch in BATCHES],
)
PLAIN = {"branch_factor": 1.0, "activation": "identity"}
"""Of a layer that is a product with W/√n and nothing else."""


def root(matrix: Any) -> float:
    """Return √n, by which the kernels divide W."""
    return math.sqrt(len(matrix))


def forward(matrix: Any, x: Any, _: Any) -> tuple[Call, dict[str, Callable[[], Call]]]:
    """X Wᵀ."""
    layers, product = np.stack([x, x]), np.empty_like(x)

    def ours() -> Any:
        return kernels.residual_forward(layers[0], matrix[None], skip=False, out=layers, **PLAIN)[1]

    def by_numpy() -> Call:
        return lambda: np.matmul(x, matrix.T, out=product)

    def by_torch() -> Call:
        torch = peers.torch_module()
        a, w, out = map(torch.from_numpy, (x, matrix, np.empty_like(x)))
        return lambda: torch.mm(a, w.T, out=out).numpy()

    return ours, {"numpy": by_numpy, "torch": by_torch}


def backward(matrix: Any, x: Any, g: Any) -> tuple[Call, dict[str, Callable[[], Call]]]:
    """G W."""
    layers, adjoints, product = np.stack([x, x]), np.stack([g, g]), np.empty_like(g)

    def ours() -> Any:
        return kernels.residual_backward(adjoints[1], layers, matrix[None], skip=False,
                                         out=adjoints, **PLAIN)[0]  # fmt: skip

    def by_numpy() -> Call:
        return lambda: np.matmul(g, matrix, out=product)

    def by_torch() -> Call:
        torch = peers.torch_module()
        a, w, out = map(torch.from_numpy, (g, matrix, np.empty_like(g)))
        return lambda: torch.mm(a, w, out=out).numpy()

    return ours, {"numpy": by_numpy, "torch": by_torch}


def update(matrix: Any, x: Any, g: Any) -> tuple[Call, dict[str, Callable[[], Call]]]:
    """W −= Gᵀ X, in place; by so little that it stays what it is however often it moves."""
    layers, adjoints, ones = np.stack([x, x]), np.stack([g, g]), np.ones(len(x))
    step = 1e-6
    change = np.empty_like(matrix)

    def ours() -> Any:
        kernels.sgd_update(matrix[None], layers, adjoints, ones, step=step * root(matrix),
                           activation="identity")  # fmt: skip
        return matrix[:8].copy()

    def by_numpy() -> Call:
        weighted = np.float32(step) * g

        def run() -> Any:
            np.matmul(weighted.T, x, out=change)
            np.subtract(matrix, change, out=matrix)
            return matrix[:8].copy()

        return run

    def by_torch() -> Call:
        torch = peers.torch_module()
        a, b, w = map(torch.from_numpy, (g, x, matrix))

        def run() -> Any:
            w.addmm_(a.T, b, alpha=-step)
            return matrix[:8].copy()

        return run

    return ours, {"numpy": by_numpy, "torch": by_torch}


PRODUCTS = {"forward": forward, "backward": backward, "update": update}


@SIZES
@pytest.mark.parametrize("product", PRODUCTS)
def test_product(benchmark: Any, product: str, width: int, batch: int) -> None:
    benchmark.group = f"thin products, {product}"
    random = np.random.default_rng(0)
    start = random.standard_normal((width, width), np.float32)
    x, g = random.standard_normal((2, batch, width), np.float32)
    matrix = start.copy()
    ours, others = PRODUCTS[product](matrix, x, g)
    scale = 1.0 if product == "update" else root(matrix)

    def check(got: Any, want: Any) -> None:
        np.testing.assert_allclose(got, scale * want, rtol=0, atol=1e-4 * np.abs(got).max())

    def reset() -> None:
        matrix[:] = start

    once = 4.0 * width * width
    compare(
        benchmark,
        ours,
        others,
        check,
        Work(
            read=0.0 if product == "update" else once,
            rewritten=2 * once if product == "update" else 0.0,
            resident=once,
            operations=2.0 * batch * width * width,
        ),
        rounds=15,
        reset=reset,
    )


@SIZES
def test_step(benchmark: Any, width: int, batch: int) -> None:
    benchmark.group = "thin products, training steps"
    updates = 4
    net, x, y = problem(width, 1, batch)
    weights, start = (nfd.initial_weights(net, 0) for _ in range(2))
    setting = peers.Training.of([weights], x, y, updates, RATE)

    def reset() -> None:
        weights.hidden[:] = start.hidden

    def ours() -> Any:
        return nfd.train(net, SGD, x, y, batches=[range(batch)] * updates, weights=weights,
                         overwrite_weights=True).losses  # fmt: skip

    names = ("torch by hand", "numpy")
    compare(
        benchmark,
        ours,
        {name: partial(peers.TRAINING[name], setting) for name in names},
        same_losses,
        training_work(width, 1, batch, updates),
        rounds=9,
        reset=reset,
    )
