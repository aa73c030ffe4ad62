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

TOLERANCE: dict[DTypeName, float] = {"float32": 1e-6, "float64": 1e-10}
"""A column whose residual norm is at most this share of its own counts as no new direction.

The same sample seen twice by unchanged weights comes back by another route, as a sum of stored
images instead of fresh noise. The two differ by rounding alone: independent errors of relative size
eps·β on each of L layers, a few eps altogether, 3e-7 in float32 (seen: 2e-7 … 6e-7 at L = 1000).
That should count as the same direction, and does at 8 eps = 1e-6. (Where it doesn't, nothing is
lost but a column: an answer to a column as it is stored is exact in law, whatever made it new.)
No more than that may be dropped, since what is dropped is not felt by the reused weights: in
float32, training steps of 1e-5 are, of 1e-6 for the most part. In float64 there is room for deeper
and worse conditioned paths, and 1e-10 is what a residual must keep for its direction, known to
eps/1e-10 = 2e-6, to mean something. The residual is measured, not taken from a difference of
squares, which would be blind below 1e-7. Laws do not depend on it over two decades (tests).
"""


def compiled(problem: Problem) -> task.Task:
    """Return the problem as the compiled engine takes it."""
    return task.compiled(
        problem,
        keep_adjoints="adjoints" in problem.record,
        keep_coupling=any(name in observables.COUPLINGS for name in problem.record),
        tolerance=TOLERANCE[problem.dtype],
    )


def run(problem: Problem, compiled_task: task.Task) -> tuple[dict[str, Array], NDArray[np.int64]]:
    """Train every replica; see :func:`nfd_fast.task.run`."""
    way_out = "take a smaller width, depth or batch, fewer updates or replicas, or record less"
    return task.run(problem, compiled_task, _core.Engine.conditional, way_out)
