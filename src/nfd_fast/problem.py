"""A training problem after every check: what the front door hands to an engine.

The checks of its parts stand below it: each returns the part as an engine takes it.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nfd_fast import arguments, observables, outputs
from nfd_fast.arguments import DTypeName
from nfd_fast.checkpoint import Checkpoint, digest
from nfd_fast.model import SGD, ResNet, Weights
from nfd_fast.progress import Callback

MAX_REPLICAS = 10_000_000
"""Of one call: what is recorded of more would not fit a memory."""
MAX_BLAS_SIZE = 2**31 - 1
"""Sizes of matrix products are 32-bit integers in the BLAS interface."""


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
    record: tuple[str, ...]
    device: str = "cpu"
    record_every: int = 1
    weights: Weights | None = None
    overwrite_weights: bool = False
    progress: Callback | None = None
    keep_state: bool = False
    start: Checkpoint | None = None

    @property
    def last_batch(self) -> NDArray[np.int64]:
        """The batch (B,) of the last recorded pass: batch 0 of the whole run."""
        return self.batches[0] if self.start is None else self.start.first_batch

    def seen(self) -> str:
        """Return a checksum of what the batches hold, wherever it lies, and of any dtype."""
        rows = np.concatenate((self.batches, self.last_batch[None]))
        given = [array for array in (self.x, self.targets, self.labels) if array is not None]
        # In portions, since a copy of what all batches hold might not fit.
        step = max(1, 2**22 // (rows.shape[1] * self.x.shape[1]))

        def portions() -> Iterator[NDArray[Any]]:
            for first in range(0, len(rows), step):
                for array in given:
                    portion = array[rows[first : first + step]]
                    with np.errstate(over="ignore"):
                        single = portion.astype(np.float32, copy=False)
                    yield single
                    if not np.isfinite(single).all():  # alike there, and maybe not here
                        yield portion

        return digest(portions())

    @cached_property
    def record_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every array to be recorded."""
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
        return sum(8.0 * math.prod(map(float, s)) for s in self.record_shapes.values())


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
    updates, batch = array.shape
    if (updates + 1) * batch > arguments.MAX_INDEX:
        raise ValueError(
            f"batches must have (updates + 1) * batch of at most 2**32, got {array.shape}"
        )
    index = np.array(array, dtype=np.int64, order="C")  # a copy: it stays as it was checked
    if index.view(np.uint64).max() >= samples:  # negative ones are large there
        bad = array[(array < 0) | (array >= samples)].flat[0]
        raise ValueError(f"batches must be indices in 0 ... {samples - 1}, got {bad}")
    return index


def checked_seeds(seed: int | Iterable[int]) -> tuple[tuple[int, ...], bool]:
    """Return the seeds and whether they make an ensemble."""
    if arguments.exports(seed):  # some tensors with one entry pass for an integer
        seed = arguments.as_array("seed", seed)
    try:
        single = operator.index(seed)  # type: ignore[arg-type]
    except TypeError:
        pass
    else:
        return (arguments.seed("seed", single if not isinstance(seed, bool) else seed),), False
    scalar = isinstance(seed, np.ndarray) and seed.ndim == 0
    if scalar or isinstance(seed, (str, bytes)) or not isinstance(seed, Iterable):
        raise ValueError(
            f"seed must be an integer or a sequence of them, got {arguments.describe(seed)}"
        )
    too_many = ValueError(f"seed must hold at most {MAX_REPLICAS} seeds, got more")
    try:
        if isinstance(seed, Sized) and len(seed) > MAX_REPLICAS:
            raise too_many
    except OverflowError:  # a range that is longer than any sequence
        raise too_many from None
    seeds: dict[int, None] = {}  # in order, and distinct
    for i, value in enumerate(seed):
        if i == MAX_REPLICAS:
            raise too_many
        checked = arguments.seed(f"seed[{i}]", value)
        if checked in seeds:
            raise ValueError(f"seed must hold distinct seeds, got {checked} more than once")
        seeds[checked] = None
    if not seeds:
        raise ValueError("seed must hold at least one seed, got none")
    return tuple(seeds), True


def require_finite_hidden(weights: Weights | None) -> None:
    """Raise ValueError if a first pass has not stayed finite because given weights are not."""
    if weights is not None:
        hidden = weights.hidden
        arguments.finite_array("weights.hidden", hidden, hidden.shape, hidden.dtype)


def given_weights(
    net: ResNet, weights: Weights, backward: str, dtype: str, overwrite: bool
) -> Weights:
    """Return explicit weights ready for the engine, or raise ValueError."""
    arguments.instance("weights", weights, Weights)
    square = (net.depth, net.width, net.width)
    shapes: dict[str, tuple[int, ...]] = {
        "input": (net.width, net.inputs),
        "hidden": square,
        "readout": (net.outputs, net.width),
    }
    if backward == "decoupled":
        if weights.backward_hidden is None:
            raise ValueError(
                "weights.backward_hidden must be an array for backward='decoupled', got None"
            )
        shapes["backward_hidden"] = square
    checked: dict[str, NDArray[Any]] = {}
    scale = net.branch_factor / math.sqrt(net.width)
    for name, shape in shapes.items():
        given = getattr(weights, name)
        read = outputs.in_place if overwrite else arguments.as_array
        array = read(f"weights.{name}", given)
        if array.dtype != np.dtype(dtype):
            raise ValueError(
                f"weights.{name} must be an array of dtype {dtype}, got {arguments.describe(array)}"
            )
        # The largest is read by the first pass, which stops at what isn't finite: see
        # `require_finite_hidden`. Reading it here too would be half as much again for one update.
        # A pass that multiplies by 0 need not read it.
        read_by_pass = name == "hidden" and np.dtype(dtype).type(scale) > 0
        check = arguments.float_array if read_by_pass else arguments.finite_array
        checked[name] = check(f"weights.{name}", array, shape, np.dtype(dtype))
    if overwrite:
        arrays = list(checked.items())
        for i, (name, array) in enumerate(arrays):
            for other, second in arrays[:i]:
                if np.may_share_memory(array, second):
                    raise ValueError(
                        f"weights.{name} must not overlap weights.{other} for "
                        "overwrite_weights=True"
                    )
    return Weights(**checked)
