"""The engines, and which of them trains a problem."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from nfd_fast import _core, conditional, dense, devices, memory, observables, task
from nfd_fast.problem import Problem
from nfd_fast.results import Array


class Engine(Protocol):
    """What the module of an engine provides."""

    def compiled(self, problem: Problem) -> task.Task:
        """Return the problem as the compiled engine takes it."""

    def run(
        self, problem: Problem, compiled_task: task.Task
    ) -> tuple[dict[str, Array], NDArray[np.int64]]:
        """Train every replica; see :func:`nfd_fast.task.run`."""


MODULES: dict[str, Engine] = {"dense": dense, "conditional": conditional}
ENGINES = ("auto", *MODULES)


def choose(asked: str, problem: Problem) -> str:
    """Return the engine to use, or raise ValueError if it can't do what is asked."""
    needs = [name for name in problem.record if name in observables.CONDITIONAL]
    couplings = [name for name in needs if name in observables.COUPLINGS]
    if couplings and problem.backward != "reused":
        raise ValueError(
            f"record {couplings[0]!r} needs backward='reused', got {problem.backward!r}"
        )
    if problem.weights is not None:
        if asked == "conditional":
            raise ValueError(
                "engine='conditional' never forms its weights; got weights, which need 'dense'"
            )
        if needs:
            raise ValueError(f"record {needs[0]!r} needs engine='conditional', got weights")
        return "dense"
    if asked == "dense" and needs:
        raise ValueError(f"record {needs[0]!r} needs engine='conditional', got 'dense'")
    if asked != "auto":
        return asked
    return "conditional" if needs else _cheaper(problem)


def conditional_is_faster(width: int, updates: int, batch: int) -> bool:
    """Whether the conditional engine is expected to take less time than dense.

    Nanoseconds per layer on one thread, fitted to both engines at 61 sizes with n from 128 to 4096,
    M = (K+1)B columns from 2 to 512; the engines share out their work among threads alike.
    Dense: drawing a matrix, reading it once for a forward pass and once for a backward one with the
    update, and the arithmetic per column. Conditional: noise and activations per neuron and column;
    inner products and combinations with the columns before; algebra of their number, which is of
    third order in it, and slower per element for small batches; sweeps that begin and end.
    ``benchmarks/test_engines.py`` shows how far off it is.
    """
    n, passes = float(width), updates + 1.0
    columns = passes * batch
    dense = n**2 * (1.7 + 0.18 * passes + 0.057 * columns)
    conditional = (
        n * columns * (10 + 0.14 * columns) + columns**3 * (0.5 + 20 / batch) + 6000 * passes
    )
    return conditional < dense


def conditional_is_faster_on_gpu(width: int, updates: int, batch: int) -> bool:
    """Whether the same is expected on a GPU, of a single replica.

    Seconds per layer on an H100, by its rates; on other devices both engines share what is
    different. A pass takes no less per layer than its blocks need to meet, and otherwise the
    conditional engine what it takes to move 4 (6M + 7B) bytes per neuron, at the share of the
    bandwidth that it reaches, with M = kB columns in pass k forward and half a batch more backward.
    Dense: a matrix is drawn once; a forward pass reads it, a backward one reads and writes it, at
    the bandwidth, or multiplies at the rate of float32.
    """
    n, columns = float(width), batch * np.arange(updates + 1.0)
    moved = 4 * n * (6 * np.concatenate([columns, columns[:-1] + batch / 2]) + 7 * batch)
    conditional = np.maximum(25e-6, moved / (0.6 * 3e12)).sum()
    forward = max(8e-6, 4 * n**2 / 2.5e12, 2 * n**2 * batch / 45e12)
    backward = max(8e-6, 8 * n**2 / 2.5e12, 4 * n**2 * batch / 45e12)
    dense = 4 * n**2 / 0.8e12 + (updates + 1) * forward + updates * backward
    return bool(conditional < dense)


def _cheaper(problem: Problem) -> str:
    """Return the faster engine, or the other where that one doesn't fit the memory but this does.

    The model behind ``engine="auto"``.
    """
    updates, batch = problem.batches.shape
    on_host = problem.device == "cpu"
    is_faster = conditional_is_faster if on_host else conditional_is_faster_on_gpu
    faster = is_faster(problem.net.width, updates, batch)
    first, second = ("conditional", "dense") if faster else ("dense", "conditional")
    if _is_small(problem):
        return first
    available = memory.available_bytes() if on_host else devices.available_bytes()
    if available is None or _bytes(problem, first) <= available:
        return first
    return second if _bytes(problem, second) <= available else first


def _is_small(problem: Problem) -> bool:
    """Whether either engine takes so little that to ask takes as long as to run.

    By a bound on both, in numbers of eight bytes: two matrices a layer, or four bases and images
    and nine small matrices, with the features and whatever belongs to inputs and outputs.
    """
    net, (updates, batch) = problem.net, problem.batches.shape
    rows = net.width + net.inputs + net.outputs + batch
    return bool(64.0 * (net.depth + 1) * rows * (rows + updates * batch) <= memory.SMALL)


def _bytes(problem: Problem, engine: str) -> float:
    compiled = MODULES[engine].compiled(problem)
    if problem.device != "cpu":
        return task.bytes_needed(problem, compiled, _core.Engine[engine])
    return compiled.bytes(_core.Engine[engine], problem.threads, False) + problem.record_bytes()
