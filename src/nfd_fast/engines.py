"""The engines, and which of them trains a problem."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from nfd_fast import _core, conditional, dense, memory, observables, task
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
    return "conditional" if needs or _conditional_is_cheaper(problem) else "dense"


def conditional_is_faster(width: int, updates: int, batch: int) -> bool:
    """Whether the conditional engine takes fewer operations than dense, from n = 4(K+1)B on.

    A dense update multiplies by an n×n matrix three times per layer and column, 6n² operations.
    A conditional one compares and combines the column with the (K+1)B others of up to four arrays,
    forward and backward, in float64 where it compares: about 24 n (K+1)B of the same operations.
    """
    return width >= 4 * (updates + 1) * batch


def _conditional_is_cheaper(problem: Problem) -> bool:
    """Whether to prefer the conditional engine to dense: the model behind ``engine="auto"``.

    If it is faster, or when the matrices don't fit the memory but this does.
    """
    updates, batch = problem.batches.shape
    if conditional_is_faster(problem.net.width, updates, batch):
        return True
    available = memory.available_bytes()
    if available is None:
        return False
    engine = _core.Engine
    return (
        dense.compiled(problem).bytes(engine.dense, 1, False) > available
        and conditional.compiled(problem).bytes(engine.conditional, 1, False) <= available
    )
