"""A training step of the dense engine on a GPU next to PyTorch's with CUDA graphs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import cache
from types import ModuleType
from typing import Any

import gpu
import numpy as np
import peers
import pytest
from side_by_side import Call, Unavailable
from work import training_work

import nfd_fast as nfd
from nfd_fast import devices

pytestmark = [pytest.mark.gpu, pytest.mark.limits]

SHAPES = {"n=4096 L=16 B=128": (4096, 16, 128), "n=256 L=256 B=32": (256, 256, 32)}
INPUTS, RATE = 16, 0.2
FEW, MANY = 2, 42
"""Updates of two runs whose difference is that of steps alone, without what a run begins with."""
ROUNDS = 5
PRODUCTS = {"float32": False, "tf32": True}


@cache
def training(width: int, depth: int, batch: int, updates: int) -> peers.Training:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(batch, INPUTS)).astype(np.float32), rng.normal(size=batch)
    weights = nfd.initial_weights(nfd.ResNet(width=width, depth=depth, inputs=INPUTS), 0)
    return peers.Training.of([weights], x, y, updates, RATE)


def ours(width: int, depth: int, batch: int, updates: int) -> Any:
    """Draw the weights that the peer is given, and train them; return the losses."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(batch, INPUTS)).astype(np.float32), rng.normal(size=batch)
    net = nfd.ResNet(width=width, depth=depth, inputs=INPUTS)
    batches = np.tile(np.arange(batch), (updates, 1))
    sgd = nfd.SGD(RATE, train=("hidden",))
    return nfd.train(net, sgd, x, y, batches=batches, engine="dense", device="cuda").losses


@pytest.fixture(params=PRODUCTS)
def tf32(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether products of float32 round their factors to TensorFloat-32, on both sides."""
    allowed = PRODUCTS[request.param]
    devices.allow_tf32(allowed)
    yield allowed
    devices.allow_tf32(False)


@pytest.mark.parametrize(
    "shape", [pytest.param(shape, marks=pytest.mark.quick) for shape in SHAPES]
)
def test_step(benchmark: Any, cuda: ModuleType, tf32: bool, shape: str) -> None:
    """Marginal time of a step: our weights are drawn in each run, the peer's stay where they are.

    Narrow layers are not multiplied by cuBLAS, so that TensorFloat-32 changes nothing of ours.
    """
    benchmark.group = f"dense training on a GPU, {shape}"
    sizes = (12, 2, 2) if gpu.emulated(cuda) else SHAPES[shape]
    losses = ours(*sizes, MANY)
    assert losses[-1] < losses[0]
    peer, absent = _peer(training(*sizes, FEW), tf32, cuda)
    if peer is not None:
        # Rounded to 10 bits, factors are off by 5e-4 each; their errors average out in the sums.
        np.testing.assert_allclose(peer(), losses[: FEW + 1], rtol=2e-2 if tf32 else 1e-4)
    few, theirs = [], []

    def turn() -> None:
        if peer is not None:
            theirs.append(_seconds(lambda: peer.steps(MANY)) / MANY)
        few.append(_seconds(lambda: ours(*sizes, FEW)))

    benchmark.pedantic(lambda: ours(*sizes, MANY), setup=turn, rounds=ROUNDS)
    step = (benchmark.stats["median"] - float(np.median(few))) / (MANY - FEW)
    work, limits = training_work(*sizes, updates=1), gpu.limits()
    evaluation = training_work(*sizes, updates=0)
    least = {"memory": (work.read - evaluation.read + work.rewritten) / limits.copy}
    if not tf32:  # tensor cores have another limit, which is not measured
        operations = work.operations - evaluation.operations
        least["arithmetic"] = operations / limits.multiply_add["float32"]
    bound = max(least, key=lambda name: least[name])
    benchmark.extra_info |= {
        "tf32": tf32,
        "step_seconds": step,
        "run_seconds": {str(FEW): float(np.median(few)), str(MANY): benchmark.stats["median"]},
        "absent": absent,
        "least_seconds": least,
        "bound_by": bound,
        "fraction_of_limit": least[bound] / step,
    }
    summary = f"{step * 1e3:.3g} ms a step, {least[bound] / step:.0%} of the limit ({bound})"
    if theirs:
        median = float(np.median(theirs))
        benchmark.extra_info |= {
            "peers": {GRAPHS: {"median": median, "minimum": min(theirs), "rounds": len(theirs)}},
            "best_peer": GRAPHS,
            "ratio": median / step,
        }
        summary = f"{median / step:.3g} × {GRAPHS} ({median * 1e3:.3g} ms), {summary}"
    benchmark.extra_info["summary"] = summary


GRAPHS = "torch CUDA graphs"


def _peer(
    of: peers.Training, tf32: bool, cuda: ModuleType
) -> tuple[peers.TorchGraph | None, dict[str, str]]:
    try:
        return peers.TorchGraph(of, tf32, "cpu" if gpu.emulated(cuda) else "cuda"), {}
    except (Unavailable, ImportError) as reason:
        return None, {GRAPHS: str(reason)}


def _seconds(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
