"""A training problem after every check: what the front door hands to an engine."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nfd_fast import arguments, observables
from nfd_fast.arguments import DTypeName
from nfd_fast.checkpoint import Checkpoint
from nfd_fast.model import SGD, ResNet, Weights
from nfd_fast.progress import Callback


@dataclass(frozen=True, eq=False)
class Problem:
    """Checked and complete; see :func:`nfd_fast.train` for the meaning of the names.

    ``x`` (S, d) is in ``dtype``; one of ``targets`` (S, C) and ``labels`` (S,) is present; ``fine``
    counts the fine noise layers that make one layer; ``start`` is what is continued, if anything.
    """

    net: ResNet
    sgd: SGD
    x: NDArray[Any]
    targets: NDArray[np.float64] | None
    labels: NDArray[np.int64] | None
    batches: NDArray[np.int64]
    seeds: tuple[int, ...]
    backward: str
    fine: int
    dtype: DTypeName
    threads: int
    weights: Weights | None
    overwrite_weights: bool
    record: tuple[str, ...]
    record_every: int
    progress: Callback | None
    keep_state: bool = False
    start: Checkpoint | None = None

    @property
    def last_batch(self) -> NDArray[np.int64]:
        """The batch (B,) of the last recorded pass: batch 0 of the whole run."""
        return self.batches[0] if self.start is None else self.start.first_batch

    def record_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every array to be recorded."""
        updates, batch = self.batches.shape
        return observables.shapes(
            self.record,
            replicas=len(self.seeds),
            updates=updates,
            depth=self.net.depth,
            batch=batch,
            width=self.net.width,
            every=self.record_every,
            outputs=self.net.outputs,
        )

    def record_bytes(self) -> float:
        """Return the memory that the records take."""
        return sum(8.0 * math.prod(map(float, s)) for s in self.record_shapes().values())


def answers(
    net: ResNet, sgd: SGD, y: ArrayLike, samples: int
) -> tuple[NDArray[np.float64] | None, NDArray[np.int64] | None]:
    """Return (targets, None) for mse and (None, labels) for cross_entropy."""
    if sgd.loss == "cross_entropy":
        if net.outputs < 2:
            raise ValueError("loss 'cross_entropy' needs outputs of at least 2, got outputs=1")
        labels = arguments.as_array("y", y)
        if labels.dtype.kind not in "iu":
            raise ValueError(
                f"y must be integer labels for loss 'cross_entropy', got dtype {labels.dtype}"
            )
        arguments.check_shape("y", labels, (samples,))
        if samples and (labels.min() < 0 or labels.max() >= net.outputs):
            bad = int(np.argmax((labels < 0) | (labels >= net.outputs)))
            raise ValueError(
                f"y must be labels in 0 ... {net.outputs - 1}, got {labels[bad]} at index {bad}"
            )
        return None, np.array(labels, dtype=np.int64, order="C")  # a copy: it stays as checked
    targets = arguments.as_array("y", y)
    if net.outputs == 1 and targets.ndim == 1:
        targets = targets[:, None]
    return arguments.finite_array("y", targets, (samples, net.outputs), np.float64), None


def batch_indices(batches: ArrayLike, samples: int) -> NDArray[np.int64]:
    """Return batches as a checked (K, B) array of its own."""
    array = arguments.as_array("batches", batches)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(
            f"batches must have shape (updates, batch) with at least one of each, got {array.shape}"
        )
    if array.dtype.kind not in "iu":
        raise ValueError(f"batches must be integer indices, got dtype {array.dtype}")
    if array.min() < 0 or array.max() >= samples:
        bad = array[(array < 0) | (array >= samples)].flat[0]
        raise ValueError(f"batches must be indices in 0 ... {samples - 1}, got {bad}")
    updates, batch = array.shape
    if (updates + 1) * batch > arguments.MAX_INDEX:
        raise ValueError(
            f"batches must have (updates + 1) * batch of at most 2**32, got {array.shape}"
        )
    return np.array(array, dtype=np.int64, order="C")  # a copy: it stays as it was checked
