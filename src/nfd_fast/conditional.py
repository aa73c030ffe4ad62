"""The conditional engine: the same network in law without its matrices (DESIGN §2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nfd_fast import _core, observables, task
from nfd_fast.tolerance import FROZEN_TOLERANCE, TOLERANCE

if TYPE_CHECKING:
    from nfd_fast.problem import Problem
    from nfd_fast.results import Array


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
