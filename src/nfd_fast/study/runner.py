"""Runs the cells of a study that are not stored yet."""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

import nfd_fast
from nfd_fast import data, memory
from nfd_fast.extras import MissingExtraError
from nfd_fast.model import BACKWARDS
from nfd_fast.study.atomic import prepare_folder
from nfd_fast.study.cells import run_cells, saying_what_is_stored
from nfd_fast.study.grid import StudyConfig
from nfd_fast.study.progress import Meter, choose_meter

if TYPE_CHECKING:
    import xarray as xr

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Study:
    """Training losses of all cells of a study.

    Attributes
    ----------
    config : StudyConfig
        What was run.
    losses : mapping of (parameterization, depth, backward) to (R, K+1)
        Mean loss of each batch before its update; row K is batch 0 again. From the update on at
        which a replica diverged, its row is NaN.
    dataset : DataSet
        What it was trained on.
    computed : int
        How many cells this call computed; the others were in the store.
    seconds : float
        Time of computing all cells, as if one after the other; those in the store included.
    """

    config: StudyConfig
    losses: Mapping[tuple[str, int, str], Array]
    dataset: data.DataSet
    computed: int
    seconds: float

    def pair(self, parameterization: str, depth: int) -> tuple[Array, Array]:
        """Losses (pairs, K) before each update with reused and with decoupled weights.

        A replica that diverged in either cell is left out of both: there is one less pair.
        """
        reused, decoupled = (self.losses[parameterization, depth, name] for name in BACKWARDS)
        complete = np.isfinite(reused).all(axis=1) & np.isfinite(decoupled).all(axis=1)
        return reused[complete, :-1], decoupled[complete, :-1]

    def diverged(self, parameterization: str, depth: int, backward: str) -> int:
        """Count the replicas of one cell that diverged."""
        losses = self.losses[parameterization, depth, backward]
        return int((~np.isfinite(losses).all(axis=1)).sum())

    def to_xarray(self) -> xr.Dataset:
        """Return the losses as one labelled array, for analysis elsewhere.

        Returns
        -------
        xarray.Dataset
            ``losses`` (parameterization, depth, backward, replica, update), NaN from the update on
            at which a replica diverged; replicas are named by their seeds. The attributes say what
            was run, and by which version.

        Raises
        ------
        MissingExtraError
            If xarray is not installed.
        MemoryError
            If a second copy of the losses does not fit the available memory.

        Notes
        -----
        ``to_netcdf`` writes all of it; a NetCDF-3 file (``engine="scipy"``) holds seeds below 2³¹.
        """
        try:
            import xarray as xr
        except ImportError:
            raise MissingExtraError("to_xarray", "xarray", "study") from None
        config = self.config
        names, depths = config.parameterizations, config.depths
        shape = (len(names), len(depths), len(BACKWARDS), config.replicas, config.updates + 1)
        memory.require(8.0 * math.prod(shape), "take the losses of some cells from losses")
        array = np.empty(shape)
        for place in np.ndindex(*shape[:3]):
            name, depth, backward = names[place[0]], depths[place[1]], BACKWARDS[place[2]]
            array[place] = self.losses[name, depth, backward]
        seeds = np.array(config.seeds, dtype=np.int64 if config.seeds[-1] < 2**63 else np.uint64)
        coordinates = {
            "parameterization": (list(names), "scaling of the network"),
            "depth": (list(depths), "number of hidden layers"),
            "backward": (list(BACKWARDS), "weights of the backward pass"),
            "replica": (seeds, "seed of the initial weights"),
            "update": (np.arange(config.updates + 1), "number of SGD updates before"),
        }
        return xr.Dataset(
            {
                "losses": (
                    tuple(coordinates),
                    array,
                    {"long_name": f"training loss ({config.loss}) of the next batch", "units": "1"},
                )
            },
            {
                dimension: (dimension, values, {"long_name": text, "units": "1"})
                for dimension, (values, text) in coordinates.items()
            },
            {
                "title": f"Training losses on {self.dataset.title}",
                "description": config.description,
                "version": nfd_fast.__version__,
            },
        )


def run_study(
    config: StudyConfig, *, executor: Executor | None = None, progress: bool = True
) -> Study:
    """Run every cell that the store does not have yet, and return all of them.

    Parameters
    ----------
    config : StudyConfig
        What to run, and where to store it.
    executor : concurrent.futures.Executor, optional
        Computes the cells instead of ``config.workers`` processes of this machine, for example
        ``dask.distributed.Client(...).get_executor()``. The results are the same bits, wherever
        the processors have the same instruction set. Each cell has all processors of its
        process, unless ``config.threads`` says how many.
    progress : bool
        Show on stderr how far it is: a bar on a terminal, else a line per finished cell.

    Returns
    -------
    Study
        The losses of all cells.

    Raises
    ------
    ValueError
        If a choice does not fit the data, or the store is not one or damaged; before any work.
    MemoryError
        If the estimate exceeds the available memory; finished cells are stored.
    MissingExtraError
        If a dependency is missing; before any work.
    OutputError
        If the output folder is not writable; before any work.
    OSError
        If the store cannot be opened or written.
    StudyInterrupted
        After Ctrl-C. Finished cells are stored, and the same call continues from there.
    WorkerError
        If the processes that computed a cell were killed, one after the other, likewise.

    Notes
    -----
    A cell with replicas that diverged is a result like any other: their rows are NaN, and the
    others are complete.

    The processes are spawned: a script that calls this must guard what it does by
    ``if __name__ == "__main__":``, as always with :mod:`multiprocessing`, or take one worker.
    """
    with saying_what_is_stored(config.store_path, config.cells):
        dataset = config.dataset
        config.check(dataset)
        meter = choose_meter() if progress else Meter()
        prepare_folder(config.output)
        finished = run_cells(
            config.cells(),
            config.store_path,
            executor=executor,
            workers=config.workers,
            meter=meter,
        )
    losses = {
        (cell.parameterization, cell.depth, cell.backward): record.arrays["losses"]
        for cell, record in finished.records.items()
    }
    return Study(config, losses, dataset, finished.computed, finished.seconds)
