"""Hands a checked problem to the compiled engines: arrays, memory, threads, records."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nfd_fast import _core, devices, memory, observables
from nfd_fast.model import TRAINABLE

if TYPE_CHECKING:
    from nfd_fast.problem import Problem
    from nfd_fast.results import Array

WIDE = 512
"""Width from which the threads share one replica well enough to prefer that to idle threads."""

QUANTITIES = ("none", "features", "adjoints", "outputs")
"""What may stop being finite, by the number that the engines give it."""

Task = _core.TrainingTask32 | _core.TrainingTask64


def compiled(
    problem: Problem, *, keep_adjoints: bool, keep_coupling: bool = False, tolerance: float = 0.0
) -> Task:
    """Return the compiled description of a problem; nothing large is allocated yet."""
    net, sgd, weights = problem.net, problem.sgd, problem.weights
    task_type = _core.TrainingTask32 if problem.dtype == "float32" else _core.TrainingTask64
    return task_type(
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
        record_every=problem.record_every,
        keep_adjoints=keep_adjoints,
        keep_first_features="feature_movement" in problem.record
        or _started_with(problem, "first_features"),
        keep_coupling=keep_coupling or _started_with(problem, "feature_coupling"),
        tolerance=tolerance,
        last_batch=np.ascontiguousarray(problem.last_batch),
        first_update=0 if problem.start is None else problem.start.updates,
        keep_state=problem.keep_state,
    )


def _started_with(problem: Problem, name: str) -> bool:
    """Whether the run that is continued kept an array of that name; then this one keeps it too."""
    return problem.start is not None and name in problem.start.arrays


def bytes_needed(problem: Problem, task: Task, engine: _core.Engine) -> float:
    """Return the memory that :func:`run` takes: of the device, or with the records of the host."""
    if problem.device != "cpu":
        needed: float = devices.module().bytes(task, engine)
        return needed
    threads = problem.threads
    parallel = _replicas_in_parallel(task, engine, len(problem.seeds), problem.net.width, threads)
    return task.bytes(engine, threads, parallel) + problem.record_bytes()


def run(
    problem: Problem, task: Task, engine: _core.Engine, way_out: str
) -> tuple[dict[str, Array], NDArray[np.int64]]:
    """Train every replica.

    Returns
    -------
    records : dict of str to (R, ...) array
        What the problem asks to be recorded; NaN in rows that were not reached.
    divergences : (R, 3) array of int64
        Update, layer and index of the quantity of each replica.

    Raises
    ------
    MemoryError
        Before any work, if the estimate exceeds what is available.
    """
    on = _run_on_processor if problem.device == "cpu" else _run_on_device
    records, divergences = on(problem, task, engine, way_out)
    _forget_failed_passes(records, divergences)
    return records, divergences


def _run_on_processor(
    problem: Problem, task: Task, engine: _core.Engine, way_out: str
) -> tuple[dict[str, Array], NDArray[np.int64]]:
    threads = problem.threads
    parallel = _replicas_in_parallel(task, engine, len(problem.seeds), problem.net.width, threads)
    memory.require(bytes_needed(problem, task, engine), way_out)
    records = _empty_records(problem)
    state = None if problem.start is None else problem.start.arrays
    try:
        divergences = task.run(engine, threads, parallel, records, problem.progress, state)
    except ValueError as error:
        if problem.start is None:
            raise
        raise ValueError(f"{problem.start.path} is damaged: {error}") from None
    return records, divergences


def _run_on_device(
    problem: Problem, task: Task, engine: _core.Engine, way_out: str
) -> tuple[dict[str, Array], NDArray[np.int64]]:
    memory.require(problem.record_bytes(), "take fewer replicas or updates, or record less")
    needed = bytes_needed(problem, task, engine)
    memory.compare(needed, devices.available_bytes(), way_out, " of the device's memory")
    records = _empty_records(problem)
    divergences = devices.require().run(task, engine, records, problem.progress)
    return records, divergences


def _forget_failed_passes(records: dict[str, Array], divergences: NDArray[np.int64]) -> None:
    """Leave no number of a pass that stopped being finite: some of its layers may be recorded."""
    update, _, quantity = divergences.T
    failed, backward = quantity != 0, quantity == QUANTITIES.index("adjoints")
    if not failed.any():
        return
    for name, array in records.items():
        if name == "feature_movement":  # of the last pass, by runs that reached its end
            continue
        these = failed if name in observables.OF_ADJOINTS else failed & ~backward
        array[these[:, None] & (np.arange(array.shape[1]) >= update[:, None])] = np.nan


def _empty_records(problem: Problem) -> dict[str, Array]:
    return {name: np.full(shape, np.nan) for name, shape in problem.record_shapes.items()}


def _replicas_in_parallel(
    task: Any, engine: _core.Engine, replicas: int, width: int, threads: int
) -> bool:
    """Whether each thread gets replicas of its own, rather than all sharing one at a time.

    Its own replica costs a thread no barriers, but takes memory per thread, and leaves threads idle
    at the end unless the replicas come out even or are many. Results are the same.
    """
    if threads == 1 or replicas < threads:
        return False
    balanced = replicas % threads == 0 or replicas >= 4 * threads
    available = memory.available_bytes()
    fits = available is None or task.bytes(engine, threads, True) <= available / 2
    return fits and (balanced or width < WIDE)
