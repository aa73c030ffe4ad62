"""The workloads that this package is made for, next to everybody who can do them.

Each case is checked, then timed in alternation with its peers on equal threads. ``extra_info`` has
their medians, the ratio to the best, and how near to this machine's limits we are; see
docs/benchmarks.md. Cases marked quick are small ones of every workload.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import peers
import pytest
from side_by_side import Unavailable, compare, require_memory, skip_unless_it_fits
from work import Work, conditional_work, particle_work, training_work

import nfd_fast as nfd
from nfd_fast import kernels, reference

pytestmark = pytest.mark.limits


def cases(quick: dict[str, tuple[int, ...]], full: dict[str, tuple[int, ...]]) -> Any:
    """Parametrize by sizes; those of the first table are marked quick."""
    marked = [
        pytest.param(sizes, id=name, marks=pytest.mark.quick) for name, sizes in quick.items()
    ]
    return pytest.mark.parametrize(
        "sizes", marked + [pytest.param(sizes, id=name) for name, sizes in full.items()]
    )


@cases({"2^16": (1 << 16,)}, {"2^22": (1 << 22,)})
def test_normals(benchmark: Any, sizes: tuple[int]) -> None:
    benchmark.group = "normals, float32, one thread"
    (size,) = sizes
    out = np.zeros((1, size), np.float32)

    def check(_: Any, drawn: Any) -> None:
        """Ours against double precision on the same words; no two generators draw the same."""
        words = kernels.words(1, "hidden", 4096)
        exact = reference.box_muller(words.reshape(-1, 4), "float64").ravel()
        error = np.abs(drawn[0, :4096] - exact) / np.spacing(np.abs(exact).astype(np.float32))
        assert error.max() <= 5  # ulp
        assert abs(drawn.mean()) < 5 / math.sqrt(size)

    ours = partial(kernels.normal, 1, "hidden", size, out=out, threads=1)
    work = Work(normals=size)
    compare(benchmark, ours, {name: partial(make, size) for name, make in peers.NORMALS.items()},
            check, work, threads=1, rounds=15)  # fmt: skip
    benchmark.extra_info["normals_per_second"] = size / benchmark.stats["median"]


# --- Training -------------------------------------------------------------------------------------

RATE = 0.2
SGD = nfd.SGD(RATE, train=("hidden",))


def problem(width: int, depth: int, batch: int) -> tuple[nfd.ResNet, Any, Any]:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(batch, 16)).astype(np.float32), rng.normal(size=batch)
    return nfd.ResNet(width=width, depth=depth, inputs=16), x, y


def same_losses(got: Any, want: Any) -> None:
    np.testing.assert_allclose(got, want, rtol=2e-4)


DENSE = {
    "n=4096 L=64 B=4": (4096, 64, 4, 1),
    "n=2048 L=32 B=1": (2048, 32, 1, 4),
    "n=1024 L=64 B=32": (1024, 64, 32, 4),
    "n=2048 L=32 B=128": (2048, 32, 128, 2),
    "n=128 L=64 B=128": (128, 64, 128, 4),
}


@cases({"n=256 L=8 B=4": (256, 8, 4, 2)}, DENSE)
def test_dense(benchmark: Any, sizes: tuple[int, int, int, int]) -> None:
    """Hidden weights that exist already are trained in place, by us and by the peers that can."""
    width, depth, batch, updates = sizes
    benchmark.group = f"dense training, {updates} updates"
    skip_unless_it_fits(2.2 * 4 * width * width * depth)
    net, x, y = problem(width, depth, batch)
    weights = nfd.initial_weights(net, 0)
    batches = np.tile(np.arange(batch), (updates, 1))
    setting = peers.Training.of([weights], x, y, updates, RATE)

    def reset() -> None:
        weights.hidden[:] = nfd.initial_weights(net, 0).hidden

    def ours() -> Any:
        return nfd.train(net, SGD, x, y, batches=batches, weights=weights,
                         overwrite_weights=True).losses  # fmt: skip

    compare(
        benchmark,
        ours,
        {name: partial(make, setting) for name, make in peers.TRAINING.items()},
        same_losses,
        training_work(width, depth, batch, updates),
        rounds=3 if width * width * depth > 1e8 else 7,
        reset=reset,
    )


@cases({"R=4 n=64 L=8 B=16": (4, 64, 8, 16, 4)}, {"R=32 n=128 L=64 B=128": (32, 128, 64, 128, 4)})
def test_replicas(benchmark: Any, sizes: tuple[int, int, int, int, int]) -> None:
    """An ensemble, drawn by us in each round; the peers train one that they are given."""
    replicas, width, depth, batch, updates = sizes
    benchmark.group = f"dense training of replicas, {updates} updates"
    net, x, y = problem(width, depth, batch)
    batches = np.tile(np.arange(batch), (updates, 1))

    def drawn() -> list[nfd.Weights]:
        return [nfd.initial_weights(net, seed) for seed in range(replicas)]

    setting = peers.Training.of(drawn(), x, y, updates, RATE)

    def reset() -> None:
        setting.hidden[:] = np.stack([weights.hidden for weights in drawn()])

    def ours() -> Any:
        return nfd.train(net, SGD, x, y, batches=batches, seed=range(replicas),
                         engine="dense").losses  # fmt: skip

    compare(
        benchmark,
        ours,
        {name: partial(make, setting) for name, make in peers.TRAINING_REPLICAS.items()},
        same_losses,
        training_work(width, depth, batch, updates, replicas, drawn=True),
        rounds=5,
        reset=reset,
    )


CONDITIONAL = {
    "n=4096 L=64 B=4 K=4": (4096, 64, 4, 4),
    "n=1000000 L=16 B=4 K=3": (1_000_000, 16, 4, 3),
    "n=1000000 L=16 B=1 K=3": (1_000_000, 16, 1, 3),
}
LARGEST_DENSE = 1 << 31
"""Entries of W, beyond which no peer is asked."""


@cases({"n=512 L=8 B=4 K=3": (512, 8, 4, 3)}, CONDITIONAL)
def test_conditional(benchmark: Any, sizes: tuple[int, int, int, int]) -> None:
    """Next to the same network with its matrices, by hand in PyTorch.

    Ours meets new samples in each update, the hardest case; the peer, whose time does not depend on
    it, the first batch again. The two agree in law: the first loss, whose law is narrow, is
    compared here, and every call must repeat itself bit for bit; tests/statistical has the rest.
    """
    width, depth, batch, updates = sizes
    benchmark.group = f"conditional training, {updates} updates"
    net, x, y = problem(width, depth, batch * updates)
    batches = np.arange(batch * updates).reshape(updates, batch)
    estimate = nfd.estimate_memory(net, SGD, updates=updates, batch=batch, engine="conditional")
    skip_unless_it_fits(estimate.bytes)

    def ours() -> Any:
        return nfd.train(net, SGD, x, y, batches=batches, engine="conditional").losses

    def dense() -> Any:
        entries = width * width * depth
        if entries > LARGEST_DENSE:
            raise Unavailable(f"would store {4 * entries / 2**40:.1f} TiB of matrices")
        require_memory(4.4 * entries)
        weights = nfd.initial_weights(net, 0)
        return peers.torch_by_hand(
            peers.Training.of([weights], x[:batch], y[:batch], updates, RATE)
        )

    def check(got: Any, want: Any) -> None:
        # Outputs are O(1/√n) at the start: the loss is that of zero but for them.
        zero = 0.5 * float((y[:batch] ** 2).mean())
        for loss in (got[0], want[0]):
            assert abs(loss - zero) < 10 / math.sqrt(width)

    compare(benchmark, ours, {"dense torch by hand": dense}, check,
            conditional_work(*sizes), rounds=3)  # fmt: skip
    losses = ours()
    assert np.isfinite(losses).all()
    assert np.array_equal(ours(), losses)


# --- Particles ------------------------------------------------------------------------------------


@cases(
    {"N=1000 S=4 L=32": (1000, 4, 32)},
    {"N=100000 S=8 L=64": (100_000, 8, 64), "N=2000 S=4 L=512": (2000, 4, 512)},
)
def test_particles(benchmark: Any, sizes: tuple[int, int, int]) -> None:
    """Nobody draws the same numbers: all must have the kernel that needs no sampling."""
    count, samples, steps = sizes
    benchmark.group = "Euler–Maruyama, forward"
    net, x, _ = problem(count, steps, samples)
    first = (kernels.normal(0, "input", count, columns=range(16)).T @ x.T / 4).T
    first = np.ascontiguousarray(first, np.float32)
    exact = nfd.initial_kernels(net, x, depth=steps).features[-1]
    last = np.empty_like(first)

    def ours() -> Any:
        kernels.euler_maruyama(first, depth=steps, branch_factor=net.branch_factor, seed=1,
                               all_layers=False, out=last)  # fmt: skip
        return last @ last.T / np.float32(count)

    def check(got: Any, want: Any) -> None:
        # A mean over N particles of products, whose deviation is below twice their size.
        error = 8 * 2 * exact.diagonal().max() / math.sqrt(count)
        np.testing.assert_allclose(got, exact, atol=error, rtol=0)
        np.testing.assert_allclose(want, exact, atol=error, rtol=0)

    compare(
        benchmark,
        ours,
        {name: partial(make, first, steps) for name, make in peers.PARTICLES.items()},
        check,
        particle_work(count, samples, steps),
        rounds=5,
    )
