"""What every grid of measurements shares: cells that are computed once, stored as they finish."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from nfd_fast import arguments, memory, threads
from nfd_fast.progress import Callback
from nfd_fast.study import processes
from nfd_fast.study.atomic import prepare_folder
from nfd_fast.study.progress import Meter
from nfd_fast.study.store import Record, Store

Array = NDArray[np.float64]


class Work(Protocol):
    """One cell of a grid: a frozen dataclass that can be pickled and hashed."""

    @property
    def key(self) -> str:
        """The cell's name in a store: sha256 of its description."""

    @property
    def description(self) -> str:
        """Canonical JSON of everything the numbers depend on, the package's version included."""

    @property
    def title(self) -> str:
        """How progress names it."""

    @property
    def weight(self) -> float:
        """What it costs, relative to the other cells of its grid; more than 0."""

    @property
    def device(self) -> str:
        """Where it is computed; a GPU by one process, since a run takes all of its memory."""

    def compute(self, progress: Callback | bool) -> Mapping[str, Array]:
        """Compute it, in any process: it loads its own data. ``progress`` as ``train`` takes it."""

    def accepts(self, arrays: Mapping[str, Array]) -> bool:
        """Whether ``compute`` can have given these arrays; if not, the store is damaged."""

    def bytes(self) -> float:
        """Estimate the memory that ``compute`` takes with the threads it would have here."""


Kind = TypeVar("Kind", bound=Work)


@dataclass(frozen=True, eq=False)
class Finished(Generic[Kind]):
    """All cells of a grid.

    Attributes
    ----------
    records : mapping of cell to Record
        Their arrays, and how long each took.
    computed : int
        How many were computed now; the others were in the store.
    """

    records: Mapping[Kind, Record]
    computed: int

    @property
    def seconds(self) -> float:
        """Time of computing all cells, as if one after the other; those in the store included."""
        return sum({cell.key: record.seconds for cell, record in self.records.items()}.values())


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


class WorkerError(RuntimeError):
    """Processes that computed cells were killed; everything finished is stored.

    ``cells`` are the titles of those that no process survived, if it is known which they are.
    """

    def __init__(self, stored: int, total: int, path: Path, cells: tuple[str, ...] = ()) -> None:
        super().__init__(stored, total, path, cells)
        self.stored = stored
        self.total = total
        self.path = path
        self.cells = cells

    def __str__(self) -> str:
        over = ""
        if self.cells:
            over = f" each of the {processes.ATTEMPTS} times it computed {'; '.join(self.cells)}"
        return (
            f"a worker process was killed{over}, perhaps for want of memory: "
            f"{self.stored} of {self.total} cells are stored in {self.path}; "
            "run the same command again to continue, with fewer workers if it happens again"
        )


@contextmanager
def saying_what_is_stored(path: Path, cells: Callable[[], Sequence[Work]]) -> Iterator[None]:
    """Turn Ctrl-C into :class:`StudyInterrupted` as soon as there is a store."""
    try:
        yield
    except StudyInterrupted:
        raise
    except KeyboardInterrupt:
        try:
            with Store(path, read_only=True) as store:
                keys = {cell.key for cell in cells()}
                stored = len(keys) - len(store.missing(keys))
        except (OSError, ValueError):  # none yet, or none that can be read
            raise KeyboardInterrupt from None
        raise StudyInterrupted(stored, len(keys), path) from None


def run_cells(
    cells: Sequence[Kind],
    store: Path,
    *,
    executor: Executor | None = None,
    workers: int | None = None,
    meter: Meter,
) -> Finished[Kind]:
    """Compute every cell that a store does not have yet, and return all of them.

    Parameters
    ----------
    cells : sequence of Work
        The grid. Cells with the same key are computed once.
    store : path
        The file that keeps finished cells; created, with its folder, if there is none. Several
        processes may work on it at the same time.
    executor : concurrent.futures.Executor, optional
        Computes the cells, wherever it likes: it needs this package and the data there. It is left
        open.
    workers : int, optional
        Number of processes, if there is no ``executor``; with 1 it is this one. They share its
        processors, and the results don't depend on how many there are. Default: as many as there
        are processors and cells to compute, and as fit the available memory.
    meter : Meter
        Shows how far it is.

    Returns
    -------
    Finished

    Raises
    ------
    ValueError
        If ``executor`` and ``workers`` contradict each other, if several ``workers`` would share a
        GPU, or (StoreError) if the store is not one or damaged; before any work.
    MemoryError
        If that many ``workers`` don't fit the available memory; before any work.
    OutputError
        If the store's folder is not writable; before any work.
    OSError
        If the store cannot be opened or written.
    StudyInterrupted
        After Ctrl-C.
    WorkerError
        If processes were killed: of ``workers``, over the same cell
        ``processes.ATTEMPTS`` times, and after all other cells are finished.

    Whatever a cell raises comes through. In each of the last cases, and in this one, finished cells
    stay stored and the same call continues from there.

    Notes
    -----
    Each cell is stored the moment it is finished, in one transaction and by this process, so that
    what is lost when a process is killed is never more than the cells that it was running.

    The processes are spawned: a script that comes here must guard what it does by
    ``if __name__ == "__main__":``, as always with :mod:`multiprocessing`.
    """
    if executor is not None and not isinstance(executor, Executor):
        raise ValueError(
            "executor must be a concurrent.futures.Executor, got " + arguments.describe(executor)
        )
    if executor is not None and workers is not None:
        raise ValueError(f"workers must be None if there is an executor, got {workers!r}")
    if workers is not None:
        workers = arguments.integer("workers", workers, high=arguments.MAX_THREADS)
    by_key = {cell.key: cell for cell in cells}
    prepare_folder(store.parent)
    with Store(store) as opened:
        absent = set(opened.missing(by_key))
        # Read first: a damaged store is found before any work.
        records = {key: _read(opened, key, by_key[key]) for key in by_key if key not in absent}
        missing = {key: cell for key, cell in by_key.items() if key in absent}
        count = 1 if executor is not None else _choose_workers(list(missing.values()), workers)

        def keep(key: str, arrays: Mapping[str, Array], seconds: float) -> None:
            opened.put(key, by_key[key].description, arrays, seconds)
            records[key] = Record(arrays, seconds)
            meter.finish(by_key[key], len(records), seconds)

        with meter:
            meter.begin(len(by_key), list(missing.values()))
            lost: list[str] = []
            try:
                if executor is not None:
                    _spread(missing, executor, keep)
                elif count > 1:
                    with processes.pool(count, _mover(meter, missing)) as own:
                        lost = _spread(missing, own, keep)
                else:
                    for key, cell in missing.items():
                        keep(key, *_compute(cell, key, meter.cell(cell)))
            except KeyboardInterrupt:
                raise StudyInterrupted(len(records), len(by_key), store) from None
            except BrokenExecutor:
                raise WorkerError(len(records), len(by_key), store) from None
        if lost:
            titles = tuple(by_key[key].title for key in lost)
            raise WorkerError(len(records), len(by_key), store, titles)
    return Finished({cell: records[cell.key] for cell in cells}, len(missing))


def _choose_workers(missing: Sequence[Work], asked: int | None) -> int:
    """Return how many processes compute these cells: as many as asked for, or as many as fit."""
    on_device = [cell.device for cell in missing if cell.device != "cpu"]
    if on_device and asked not in (None, 1):
        raise ValueError(f"workers must be 1 on device {on_device[0]!r}, got {asked}")
    if on_device:
        return 1
    if asked is None and processes.is_daemon():
        return 1  # which may have no children
    workers = min(len(missing), threads.processors() if asked is None else asked)
    while workers > 1:
        with threads.shared_by(workers):
            most = max(cell.bytes() for cell in missing)
        each = most + processes.BYTES
        if asked is not None:
            memory.require(workers * each, "take fewer workers")
            return workers
        available = memory.available_bytes()
        if available is None or workers * each <= available:
            return workers
        # Fewer have more threads each, and may take more memory for them: look again.
        workers = min(workers - 1, int(available // each))
    return 1


def _spread(
    missing: Mapping[str, Work],
    executor: Executor,
    keep: Callable[[str, Mapping[str, Array], float], None],
) -> list[str]:
    """Let an executor compute cells; each is kept as soon as it is there, whatever comes after.

    Returns the keys of those that were lost with their processes.
    """
    lost = []
    futures: dict[Future[tuple[Mapping[str, Array], float]], str] = {}
    try:
        # The longest first, so that the processes end together.
        for key, cell in sorted(missing.items(), key=lambda item: -item[1].weight):
            futures[executor.submit(_compute, cell, key)] = key
        for future in as_completed(futures):
            if isinstance(future.exception(), processes.Lost):
                lost.append(futures[future])
            else:
                keep(futures[future], *future.result())
            del futures[future]  # only now: an interrupt may come while it is being stored
    except BaseException:
        for future in futures:
            future.cancel()
        for future, key in futures.items():
            if future.done() and not future.cancelled() and future.exception() is None:
                keep(key, *future.result())
        raise
    return lost


def _compute(
    cell: Work, key: str, progress: Callback | bool | None = None
) -> tuple[Mapping[str, Array], float]:
    """Compute a cell in the process that this is called in; return how long it took as well."""
    if progress is None:
        progress = processes.reporter(key)
    if cell.key != key:  # another version or other data there, or files that have changed
        raise ValueError(
            "nfd_fast and the data must be the same in every process and stay as they are, got "
            f"{cell.description} for key {key[:12]}"
        )
    start = time.perf_counter()
    arrays = cell.compute(progress)
    return arrays, time.perf_counter() - start


def _mover(meter: Meter, cells: Mapping[str, Work]) -> Callable[[str, int, int], None]:
    """Return what shows the progress of cells by key; each begins with its first report."""
    moves: dict[str, Callback | bool] = {}

    def report(key: str, done: int, total: int) -> None:
        if key not in moves:
            moves[key] = meter.cell(cells[key])
        move = moves[key]
        if callable(move):
            move(done, total)

    return report


def _read(store: Store, key: str, cell: Work) -> Record:
    """Return a finished cell, or raise StoreError if it holds what it can't have computed."""
    record = store.get(key)
    if not cell.accepts(record.arrays):
        raise store.damaged(key)
    return record
