"""What a run can record, and where it is written (DESIGN §5)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from nfd_fast import arguments
from nfd_fast.results import Array, MinEigenvalues

OBSERVABLES = (
    "outputs",
    "losses",
    "features",
    "adjoints",
    "feature_kernels",
    "adjoint_kernels",
    "feature_movement",
    "min_eigenvalues",
)
ALWAYS = ("outputs", "losses")

# The arrays that an engine fills for each observable that isn't one of them itself.
_SOURCES = {"min_eigenvalues": ("activation_kernels", "adjoint_kernels")}


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
) -> dict[str, tuple[int, ...]]:
    """Return the shape of every array that an engine must fill for ``record``."""
    rows, layers = updates + 1, depth + 1
    every: dict[str, tuple[int, ...]] = {
        "outputs": (rows, batch, outputs),
        "losses": (rows,),
        "features": (rows, layers, batch, width),
        "adjoints": (updates, layers, batch, width),
        "feature_kernels": (rows, layers, batch, batch),
        "activation_kernels": (rows, depth, batch, batch),
        "adjoint_kernels": (updates, layers, batch, batch),
        "feature_movement": (layers,),
    }
    wanted = {source for name in record for source in _SOURCES.get(name, (name,))}
    return {name: (replicas, *shape) for name, shape in every.items() if name in wanted}


def observed(
    record: Iterable[str], records: Mapping[str, Array], ensemble: bool
) -> dict[str, Array | MinEigenvalues]:
    """Return the observables named by ``record`` from the arrays that the engine filled."""
    arrays = {name: array if ensemble else array[0] for name, array in records.items()}
    result: dict[str, Array | MinEigenvalues] = {}
    for name in record:
        if name == "min_eigenvalues":
            result[name] = MinEigenvalues(
                features=_smallest(arrays["activation_kernels"]),
                adjoints=_smallest(arrays["adjoint_kernels"][..., 1:, :, :]),
            )
        else:
            result[name] = arrays[name]
    return result


def _smallest(matrices: Array) -> Array:
    """Return the smallest eigenvalue of each matrix; NaN where a run had stopped before it."""
    reached = np.isfinite(matrices).all(axis=(-2, -1))
    values = np.full(matrices.shape[:-2], np.nan)
    values[reached] = np.linalg.eigvalsh(matrices[reached])[..., 0]
    return values
