"""The dense engine: networks whose weight matrices are stored (DESIGN §1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nfd_fast import _core, memory
from nfd_fast.model import TRAINABLE

if TYPE_CHECKING:
    from nfd_fast.problem import Problem
    from nfd_fast.results import Array

WIDE = 512
"""Width from which the threads share one replica well enough to prefer that to idle threads."""


def run(problem: Problem) -> tuple[dict[str, Array], NDArray[np.int64]]:
    """Train every replica.

    Returns
    -------
    records : dict of str to (R, ...) array
        What :func:`nfd_fast.observables.shapes` lists; NaN in rows that were not reached.
    divergences : (R, 3) array of int64
        Update, layer and quantity (0 none, 1 features, 2 adjoints, 3 outputs) of each replica.

    Raises
    ------
    MemoryError
        Before any work, if the estimate exceeds what is available.
    """
    net, sgd, weights = problem.net, problem.sgd, problem.weights
    record_shapes = problem.record_shapes()
    wanted: Mapping[str, object] = record_shapes
    task_type = _core.DenseTask32 if problem.dtype == "float32" else _core.DenseTask64
    task = task_type(
        width=net.width,
        depth=net.depth,
        branch_factor=net.branch_factor,
        skip=net.skip,
        activation=_core.ACTIVATIONS.index(net.activation),
        loss=_core.Loss[sgd.loss],
        learning_rate=sgd.learning_rate,
        train=tuple(part in sgd.train for part in TRAINABLE),
        decoupled=problem.backward == "decoupled",
        fine=problem.fine,
        x=problem.x,
        targets=problem.targets,
        labels=problem.labels,
        outputs=net.outputs,
        batches=problem.batches,
        seeds=np.array(problem.seeds, dtype=np.uint64),
        input=None if weights is None else weights.input,
        hidden=None if weights is None else weights.hidden,
        readout=None if weights is None else weights.readout,
        backward_hidden=None if weights is None else weights.backward_hidden,
        overwrite=problem.overwrite_weights,
        keep_adjoints="adjoints" in wanted or "adjoint_kernels" in wanted,
        keep_first_features="feature_movement" in wanted,
    )
    threads = min(problem.threads, _core.most_threads())
    parallel = _replicas_in_parallel(task, len(problem.seeds), net.width, threads)
    memory.require(
        task.bytes(threads, parallel) + problem.record_bytes(),
        "take a smaller width, depth or batch, fewer replicas, or record less",
    )
    records = {name: np.full(shape, np.nan) for name, shape in record_shapes.items()}
    divergences = task.run(threads, parallel, records, problem.progress)
    return records, divergences


def _replicas_in_parallel(task: Any, replicas: int, width: int, threads: int) -> bool:
    """Whether each thread gets replicas of its own, rather than all sharing one at a time.

    Its own replica costs a thread no barriers, but takes a set of weights per thread, and leaves
    threads idle at the end unless the replicas come out even or are many. Results are the same.
    """
    if threads == 1 or replicas < threads:
        return False
    balanced = replicas % threads == 0 or replicas >= 4 * threads
    available = memory.available_bytes()
    fits = available is None or task.bytes(threads, True) <= available / 2
    return fits and (balanced or width < WIDE)
