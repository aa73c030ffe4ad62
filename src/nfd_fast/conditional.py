"""The conditional engine: the same network in law without its matrices (DESIGN §2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nfd_fast import _core, observables, task

if TYPE_CHECKING:
    from nfd_fast.arguments import DTypeName
    from nfd_fast.problem import Problem
    from nfd_fast.results import Array

TOLERANCE: dict[DTypeName, float] = {"float32": 3e-8, "float64": 1e-10}
"""A column whose residual norm is at most this share of its own counts as no new direction.

What is dropped is not felt by the weights: a training step that moves the features by less than
this share would seem to do nothing. So no more may be dropped than means nothing. In float32 that
is eps/4: the entries of a column are rounded by up to eps/2 of their own, with a root mean square
of about eps/4, so a shorter residual is rounding. In float64 there is room for deep and badly
conditioned paths, and 1e-10 is what a residual must keep for its direction, known to eps/1e-10 =
2e-6, to mean something. The residual is measured, not taken from a difference of squares, which
would be blind below 1e-7. Laws do not depend on it over two decades (tests).

The same sample seen twice comes back by another route, as a sum of stored images instead of fresh
noise, and off by some eps. In float32 that is a new column, which costs its place and nothing else:
an answer to a column as it is stored is exact in law, whatever made it new.
"""

FROZEN_TOLERANCE: dict[DTypeName, float] = {"float32": 1e-6, "float64": 1e-10}
"""The same where features cannot move: the input and hidden weights don't train.

There are no small steps to feel then, and epochs over few samples would pile up columns of rounding
alone. A sample comes back with independent errors of relative size eps·β on each of L layers, a few
eps altogether (seen: 2e-7 … 6e-7 at L = 1000): 8 eps.
"""


def compiled(problem: Problem) -> task.Task:
    """Return the problem as the compiled engine takes it."""
    sgd = problem.sgd
    frozen = sgd.learning_rate == 0 or not {"input", "hidden"} & set(sgd.train)
    return task.compiled(
        problem,
        keep_adjoints="adjoints" in problem.record,
        keep_coupling=any(name in observables.COUPLINGS for name in problem.record),
        tolerance=(FROZEN_TOLERANCE if frozen else TOLERANCE)[problem.dtype],
    )


def run(problem: Problem, compiled_task: task.Task) -> tuple[dict[str, Array], NDArray[np.int64]]:
    """Train every replica; see :func:`nfd_fast.task.run`."""
    way_out = "take a smaller width, depth or batch, fewer updates or replicas, or record less"
    if problem.batches.size > problem.net.width // 4:  # four arrays of a column each: more than W
        way_out += "; engine='dense' stores less here"
    return task.run(problem, compiled_task, _core.Engine.conditional, way_out)
