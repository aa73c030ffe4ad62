"""What a run returns."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nfd_fast import arguments
from nfd_fast.model import SGD, ResNet

Array = NDArray[np.float64]


class MinEigenvalues(NamedTuple):
    """Smallest eigenvalues of the feature and adjoint Gram matrices of the current batch.

    ``features`` (K+1, L) belongs to φ(H_{l-1})ᵀφ(H_{l-1})/n and ``adjoints`` (K, L) to G_lᵀG_l/n,
    l = 1 … L (DESIGN §5); an ensemble adds a leading replica axis to each.
    """

    features: Array
    adjoints: Array


class Ranks(NamedTuple):
    """How many directions of each layer have been asked about after each update (DESIGN §2).

    ``features`` and ``adjoints`` are (K, L); an ensemble adds a leading replica axis. Two runs of
    the conditional engine agree path by path, to rounding, only while these agree.
    """

    features: Array
    adjoints: Array


Observed = Array | MinEigenvalues | Ranks


@dataclass(frozen=True, eq=False)
class Run:
    """Result of :func:`nfd_fast.train`; every array is float64.

    With an ensemble of seeds every array gains a leading replica axis R.

    Attributes
    ----------
    outputs : (K+1, B, C)
        Network outputs f of each recorded forward pass: row k < K is batch k after k updates,
        row K is batch 0 again.
    losses : (K+1,)
        Mean loss of the same batches.
    observables : mapping of str to array
        Whatever ``record`` named, ``"outputs"`` and ``"losses"`` included.
    engine : str
        The engine that ran.
    net, sgd : ResNet, SGD
        What was trained and how.
    seeds : tuple of int
        One seed per replica.
    ensemble : bool
        Whether the arrays have a leading replica axis.
    backward : str
        ``"reused"`` or ``"decoupled"``.
    dtype : str
        Floating-point type of the network's state.
    noise_depth : int
        Fine layers of noise: runs of different depth that have it in common share their noise.
    record_every : int
        Recorded features and adjoints are those of layers 0, record_every, … depth.
    data : str
        A checksum of the samples and answers of its batches, in their order: runs of equal
        ``data`` saw the same.
    device : str
        Where it ran: ``"cpu"`` or ``"cuda"``.
    """

    outputs: Array
    losses: Array
    observables: Mapping[str, Observed]
    engine: str
    net: ResNet
    sgd: SGD
    seeds: tuple[int, ...]
    ensemble: bool
    backward: str
    dtype: str
    noise_depth: int
    record_every: int = 1
    data: str = ""
    device: str = "cpu"
    _save: Callable[[Path], None] | None = field(default=None, repr=False)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the trained state to a file, so that :func:`nfd_fast.resume` can go on from there.

        Parameters
        ----------
        path : path
            Written whole or not at all; what a link points to is replaced, not the link.

        Raises
        ------
        ValueError
            If the run kept no state, which takes ``train(..., keep_state=True)``, or diverged; or
            if ``path`` is none.
        MemoryError
            If the copy that is written doesn't fit the memory.
        OSError
            If the file can't be written.
        """
        target = arguments.file_path("path", path)
        if self._save is None:
            raise ValueError("this run kept no state; train with keep_state=True to save it")
        self._save(target)

    def standard_errors(self, name: str = "outputs") -> Array:
        """Return the standard error of the mean over replicas of a recorded array.

        Parameters
        ----------
        name : str
            An observable that is one array.

        Returns
        -------
        array
            The array's shape without the replica axis: s/√R with the sample standard deviation s.

        Raises
        ------
        ValueError
            If the run is not an ensemble of two replicas or more, or has no such array.
        """
        arrays = [k for k, v in self.observables.items() if not isinstance(v, tuple)]
        arguments.option("name", name, arrays)
        if len(self.seeds) < 2:
            raise ValueError(
                f"standard errors need an ensemble of at least 2 seeds, got {len(self.seeds)}"
            )
        values = arguments.as_array(name, self.observables[name])
        return np.asarray(values.std(axis=0, ddof=1) / math.sqrt(len(self.seeds)))

    def __repr__(self) -> str:
        replicas = f"{len(self.seeds)} replicas, " if self.ensemble else ""
        return (
            f"Run({self.net}, {replicas}{self.losses.shape[-1] - 1} updates, "
            f"backward={self.backward!r}, engine={self.engine!r}, dtype={self.dtype!r}"
            + ("" if self.device == "cpu" else f", device={self.device!r}")
            + ")"
        )
