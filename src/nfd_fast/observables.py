"""What a run can record, and where it is written (DESIGN §5)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from nfd_fast import arguments
from nfd_fast.results import Array, MinEigenvalues, Observed, Ranks

OBSERVABLES = (
    "outputs",
    "losses",
    "features",
    "adjoints",
    "feature_kernels",
    "adjoint_kernels",
    "feature_movement",
    "min_eigenvalues",
    "ranks",
    "coupling_per_layer",
    "coupling_accumulated",
    "backward_coupling_per_layer",
    "backward_coupling_accumulated",
)
COUPLINGS = OBSERVABLES[-4:]
CONDITIONAL = OBSERVABLES[-5:]
"""What only the conditional engine can tell; the couplings only with reused weights."""
LAYERLESS = ("outputs", "losses", "coupling_accumulated", "backward_coupling_accumulated")
"""Arrays of one shape at every depth, which means something to compare between depths."""
EIGENVALUE_WORK = 10**7
"""Multiplications, give or take a factor, that one call of the eigenvalue solver may take."""
ALWAYS = ("outputs", "losses")

OF_ADJOINTS = (
    "adjoints",
    "adjoint_kernels",
    "adjoint_ranks",
    "backward_coupling_per_layer",
    "backward_coupling_accumulated",
)
"""The arrays that a backward pass fills; the others are of a forward pass."""

# The arrays that an engine fills for each observable that isn't one of them itself.
_SOURCES = {
    "min_eigenvalues": ("activation_kernels", "adjoint_kernels"),
    "ranks": ("feature_ranks", "adjoint_ranks"),
}


def names(record: object) -> tuple[str, ...]:
    """Return the observables to record, outputs and losses included, or raise ValueError."""
    chosen = arguments.subset("record", record, OBSERVABLES)
    return tuple(o for o in OBSERVABLES if o in chosen or o in ALWAYS)


def shapes(
    record: Iterable[str],
    *,
    replicas: int,
    updates: int,
    depth: int,
    batch: int,
    width: int,
    outputs: int,
    every: int = 1,
) -> dict[str, tuple[int, ...]]:
    """Return the shape of every array that an engine must fill for ``record``.

    Features and adjoints are those of layers 0, ``every``, … depth.
    """
    rows, layers = updates + 1, depth + 1
    known: dict[str, tuple[int, ...]] = {
        "outputs": (rows, batch, outputs),
        "losses": (rows,),
        "features": (rows, depth // every + 1, batch, width),
        "adjoints": (updates, depth // every + 1, batch, width),
        "feature_kernels": (rows, layers, batch, batch),
        "activation_kernels": (rows, depth, batch, batch),
        "adjoint_kernels": (updates, layers, batch, batch),
        "feature_movement": (layers,),
        "feature_ranks": (updates, depth),
        "adjoint_ranks": (updates, depth),
        "coupling_per_layer": (rows, depth),
        "coupling_accumulated": (rows,),
        "backward_coupling_per_layer": (updates, depth),
        "backward_coupling_accumulated": (updates,),
    }
    wanted = {source for name in record for source in _SOURCES.get(name, (name,))}
    return {name: (replicas, *shape) for name, shape in known.items() if name in wanted}


def observed(
    record: Iterable[str], records: Mapping[str, Array], ensemble: bool
) -> dict[str, Observed]:
    """Return the observables named by ``record`` from the arrays that the engine filled."""
    arrays = {name: array if ensemble else array[0] for name, array in records.items()}
    result: dict[str, Observed] = {}
    for name in record:
        if name == "min_eigenvalues":
            result[name] = MinEigenvalues(
                features=_smallest(arrays["activation_kernels"]),
                adjoints=_smallest(arrays["adjoint_kernels"])[..., 1:],
            )
        elif name == "ranks":
            result[name] = Ranks(arrays["feature_ranks"], arrays["adjoint_ranks"])
        else:
            result[name] = arrays[name]
    return result


def _smallest(matrices: Array) -> Array:
    """Return the smallest eigenvalue of each matrix; NaN where a run had stopped before it."""
    size = matrices.shape[-1]
    stack = matrices.reshape(-1, size, size)
    values = np.full(len(stack), np.nan)
    # A few at a time: no second copy of all of them, and Ctrl-C is heard in between.
    step = max(1, EIGENVALUE_WORK // size**3)
    for first in range(0, len(stack), step):
        part = stack[first : first + step]
        reached = np.isfinite(part).all(axis=(-2, -1))
        values[first : first + step][reached] = np.linalg.eigvalsh(part[reached])[:, 0]
    return values.reshape(matrices.shape[:-2])
