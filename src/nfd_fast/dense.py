"""The dense engine: networks whose weight matrices are stored (DESIGN §1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nfd_fast import _core, task

if TYPE_CHECKING:
    from nfd_fast.problem import Problem
    from nfd_fast.results import Array


def compiled(problem: Problem) -> task.Task:
    """Return the problem as the compiled engine takes it."""
    shapes = problem.record_shapes
    keep_adjoints = "adjoints" in shapes or "adjoint_kernels" in shapes
    return task.compiled(problem, keep_adjoints=keep_adjoints)


def run(problem: Problem, compiled_task: task.Task) -> tuple[dict[str, Array], NDArray[np.int64]]:
    """Train every replica; see :func:`nfd_fast.task.run`."""
    way_out = "take a smaller width, depth or batch, fewer replicas, or record less"
    if problem.weights is None:
        way_out += ", or engine='conditional', which stores no matrices"
    return task.run(problem, compiled_task, _core.Engine.dense, way_out)
