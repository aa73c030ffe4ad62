"""A training problem after every check: what the front door hands to an engine."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nfd_fast import observables
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
            outputs=self.net.outputs,
        )

    def record_bytes(self) -> float:
        """Return the memory that the records take."""
        return sum(8.0 * math.prod(map(float, s)) for s in self.record_shapes().values())
