"""Runs the cells of a study that are not stored yet."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import nfd_fast
from nfd_fast import data
from nfd_fast.exceptions import DivergenceError
from nfd_fast.model import BACKWARDS
from nfd_fast.results import Run
from nfd_fast.study.atomic import prepare_folder
from nfd_fast.study.grid import Cell, StudyConfig
from nfd_fast.study.progress import Callback, Meter, choose_meter
from nfd_fast.study.store import Record, Store

Array = NDArray[np.float64]


class StudyInterrupted(KeyboardInterrupt):
    """Ctrl-C during a study; everything finished before is stored."""

    def __init__(self, stored: int, total: int, path: Path) -> None:
        super().__init__(stored, total, path)
        self.stored = stored
        self.total = total
        self.path = path

    def __str__(self) -> str:
        return (
            f"interrupted: {self.stored} of {self.total} cells are stored in {self.path}; "
            "run the same command again to continue"
        )


@contextmanager
def saying_what_is_stored(config: StudyConfig) -> Iterator[None]:
    """Turn Ctrl-C into :class:`StudyInterrupted` as soon as there is a store."""
    try:
        yield
    except KeyboardInterrupt:
        try:
            with Store(config.store, read_only=True) as store:
                cells = config.cells()
                stored = len(cells) - len(store.missing(cell.key for cell in cells))
        except (OSError, ValueError):  # none yet, or none that can be read
            raise KeyboardInterrupt from None
        raise StudyInterrupted(stored, len(cells), config.store) from None


@dataclass(frozen=True, eq=False)
class StudyResult:
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
        Wall-clock time of computing all cells, those in the store included.
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


def train_cell(
    cell: Cell,
    dataset: data.DataSet,
    batches: NDArray[np.int64],
    progress: bool | Callback = False,
) -> Run:
    """Train one ensemble; see :func:`nfd_fast.train` for what it raises."""
    return nfd_fast.train(
        cell.net(dataset),
        cell.sgd,
        dataset.inputs,
        dataset.targets(cell.loss),
        batches=batches,
        seed=cell.seeds,
        progress=progress,
        **cell.options,
    )


def cell_losses(
    cell: Cell,
    dataset: data.DataSet,
    batches: NDArray[np.int64],
    progress: bool | Callback = False,
) -> Array:
    """Train one ensemble; return its losses (R, K+1), NaN where a replica has diverged."""
    try:
        return train_cell(cell, dataset, batches, progress).losses
    except DivergenceError as error:
        if error.run is None:
            raise
        return error.run.losses


def run_study(config: StudyConfig, *, progress: bool = True) -> StudyResult:
    """Run every cell that the store does not have yet, and return all of them.

    Parameters
    ----------
    config : StudyConfig
        What to run, and where to store it.
    progress : bool
        Show on stderr how far it is: a bar on a terminal, else a line per finished cell.

    Returns
    -------
    StudyResult
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

    Notes
    -----
    A cell with replicas that diverged is a result like any other: their rows are NaN, and the
    others are complete.
    """
    with saying_what_is_stored(config):
        return _run(config, progress)


def _run(config: StudyConfig, progress: bool) -> StudyResult:
    dataset = data.load(config.data)
    config.check(dataset)
    cells = config.cells()
    batches = data.minibatches(dataset.samples, config.batch, config.updates, seed=config.data_seed)
    meter = choose_meter() if progress else Meter()
    prepare_folder(config.output)
    with Store(config.store) as store:
        wanted = set(store.missing(cell.key for cell in cells))
        missing = [cell for cell in cells if cell.key in wanted]
        # Read first: a damaged store is found before any work.
        records = {cell: _stored(store, cell) for cell in cells if cell.key not in wanted}
        with meter:
            meter.begin(len(cells), missing)
            for cell in missing:
                start = time.perf_counter()
                losses = cell_losses(cell, dataset, batches, meter.cell(cell))
                record = Record({"losses": losses}, time.perf_counter() - start)
                store.put(cell.key, cell.description, record.arrays, record.seconds)
                records[cell] = record
                meter.finish(cell, len(records), record.seconds)
    all_losses = {
        (cell.parameterization, cell.depth, cell.backward): records[cell].arrays["losses"]
        for cell in cells
    }
    seconds = sum(record.seconds for record in records.values())
    return StudyResult(config, all_losses, dataset, len(missing), seconds)


def _stored(store: Store, cell: Cell) -> Record:
    """Return a finished cell, or raise StoreError if it holds what no training can give."""
    record = store.get(cell.key)
    losses = record.arrays.get("losses")
    if losses is None or losses.shape != (cell.replicas, cell.updates + 1):
        raise store.damaged(cell.key)
    diverged = np.isnan(losses)  # once, and for good
    if not (diverged | (losses >= 0)).all() or (diverged[:, :-1] & ~diverged[:, 1:]).any():
        raise store.damaged(cell.key)
    return record
