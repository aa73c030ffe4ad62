"""What a run would take, before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from nfd_fast import _core, arguments, devices, engines, memory, observables, task
from nfd_fast.model import BACKWARDS, SGD, ResNet
from nfd_fast.problem import MAX_BLAS_SIZE, MAX_REPLICAS, Problem
from nfd_fast.threads import thread_count


class MemoryEstimate(NamedTuple):
    """What a run would take: the engine that would be chosen, and its memory in bytes."""

    engine: str
    bytes: float


def estimate_memory(
    net: ResNet,
    sgd: SGD,
    *,
    updates: int,
    batch: int,
    replicas: int = 1,
    backward: str = "reused",
    engine: str = "auto",
    dtype: DTypeLike = "float32",
    device: str = "cpu",
    threads: int | None = None,
    record: Sequence[str] = ("outputs",),
) -> MemoryEstimate:
    """Return the memory that :func:`nfd_fast.train` would take, besides the data; nothing is run.

    The dense engine stores L n² weights per replica at work (twice that if decoupled). The
    conditional one stores four arrays of n·rank numbers per layer, with room for a rank of
    min(K B, n), and (L+1) B n features; and of small matrices rank² numbers in float64, seven per
    layer, nine if couplings are recorded, five if decoupled: next to nothing while the rank is far
    below n. To that come the records, in float64. On ``device="cuda"`` it is the memory of the
    device that one replica takes; as many train at a time as fit.

    Parameters
    ----------
    net, sgd, backward, engine, dtype, device, threads, record
        As in :func:`nfd_fast.train`.
    updates, batch, replicas : int
        K, B and the number of seeds.

    Returns
    -------
    MemoryEstimate

    Raises
    ------
    ValueError
        For invalid arguments.
    MemoryError
        If the indices of the batches alone don't fit.
    DeviceError
        As :func:`nfd_fast.train`.
    """
    arguments.instance("net", net, ResNet)
    arguments.instance("sgd", sgd, SGD)
    updates = arguments.integer("updates", updates, high=arguments.MAX_INDEX)
    batch = arguments.integer("batch", batch, high=MAX_BLAS_SIZE)
    replicas = arguments.integer("replicas", replicas, high=MAX_REPLICAS)
    if (updates + 1) * batch > arguments.MAX_INDEX:
        raise ValueError(
            f"(updates + 1) * batch must be at most 2**32, got ({updates} + 1) * {batch}"
        )
    memory.require(8.0 * updates * batch, "take fewer updates or a smaller batch")
    classes = sgd.loss == "cross_entropy"
    problem = Problem(
        net=net,
        sgd=sgd,
        x=np.zeros((1, net.inputs), dtype=arguments.dtype_name(dtype)),
        targets=None if classes else np.zeros((1, net.outputs)),
        labels=np.zeros(1, dtype=np.int64) if classes else None,
        batches=np.zeros((updates, batch), dtype=np.int64),  # untouched, so it takes no memory
        seeds=tuple(range(replicas)),
        backward=arguments.option("backward", backward, BACKWARDS),
        fine=1,
        dtype=arguments.dtype_name(dtype),
        threads=thread_count(threads),
        record=observables.names(record),
        device=devices.checked(device),
    )
    chosen = engines.choose(arguments.option("engine", engine, engines.ENGINES), problem)
    compiled = engines.MODULES[chosen].compiled(problem)
    needed = task.bytes_needed(problem, compiled, _core.Engine[chosen])
    return MemoryEstimate(chosen, needed)
