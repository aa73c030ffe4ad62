"""Cells of any grid: computed once each, in this process, in others, or wherever one likes."""

from __future__ import annotations

import dataclasses
import hashlib
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import process_table
import pytest

from nfd_fast import memory, threads
from nfd_fast.exceptions import DivergenceError
from nfd_fast.extras import MissingExtraError
from nfd_fast.study import processes
from nfd_fast.study.cells import StudyInterrupted, Work, WorkerError, run_cells
from nfd_fast.study.progress import Meter
from nfd_fast.study.store import Store, StoreError

spawns = pytest.mark.subprocess


@dataclasses.dataclass(frozen=True)
class Count:
    """A cell that says where it was computed; ``action`` is what it does besides."""

    number: int
    action: str = ""
    folder: Path | None = None
    needs: float = 0.0
    device: str = "cpu"

    @property
    def description(self) -> str:
        return f'{{"number":{self.number}}}'

    @property
    def key(self) -> str:
        return hashlib.sha256(self.description.encode()).hexdigest()

    @property
    def title(self) -> str:
        return f"number {self.number}"

    @property
    def weight(self) -> float:
        return self.number + 1.0

    def bytes(self) -> float:
        return self.needs * threads.processors()

    def accepts(self, arrays) -> bool:
        return "number" in arrays and arrays["number"].tolist() == [self.number]

    def compute(self, progress) -> dict[str, np.ndarray]:
        if callable(progress):
            progress(1, 2)
        _ACTIONS.get(self.action, lambda cell: None)(self)
        if callable(progress):
            progress(2, 2)
        place = [float(os.getpid()), float(threads.thread_count(None))]
        return {"number": np.array([float(self.number)]), "place": np.array(place)}


def _fail(error):
    def act(cell):
        raise error

    return act


def _start(cell):
    """Note that the cell is begun; return how often it was before."""
    with (cell.folder / f"started{cell.number}").open("a+") as file:
        file.write("\n")
        file.seek(0)
        return len(file.read()) - 1


def _kill_itself(cell):
    _start(cell)
    os.kill(os.getpid(), signal.SIGKILL)


def _kill_itself_once(cell):
    if _start(cell) == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    (cell.folder / "go").touch()


def _wait_for_a_file(cell):
    """Until the test says so, or for ever."""
    _start(cell)
    while not (cell.folder / "go").exists():
        time.sleep(0.01)


def _report_slowly(cell):
    time.sleep(0.3)


_ACTIONS = {
    "memory": _fail(MemoryError("this needs about 9 GiB")),
    "value": _fail(ValueError("bad value")),
    "divergence": _fail(DivergenceError(3, 2, "adjoints", 7)),
    "extra": _fail(MissingExtraError("data='digits'", "scikit-learn", "study")),
    "interrupt": _fail(KeyboardInterrupt()),
    "die": _kill_itself,
    "die once": _kill_itself_once,
    "wait": _wait_for_a_file,
    "slow": _report_slowly,
}


class Watch(Meter):
    """Notes what it is told."""

    def __init__(self) -> None:
        self.begun, self.finished, self.moved = [], [], []

    def begin(self, total, missing):
        self.begun.append((total, len(missing)))

    def cell(self, cell):
        return lambda done, total: self.moved.append((cell.number, done, total))

    def finish(self, cell, done, seconds):
        self.finished.append((cell.number, done))


@pytest.fixture
def store(tmp_path):
    return tmp_path / "folder" / "cells.sqlite"


def run(cells, store, **options):
    return run_cells(cells, store, **{"meter": Meter(), **options})


def places(finished):
    return [record.arrays["place"].tolist() for record in finished.records.values()]


def stored(store):
    with Store(store) as opened:
        return len(opened.finished())


def test_a_cell_is_work():
    work: Work = Count(3)
    assert work.title == "number 3"


@spawns
@pytest.mark.parametrize("workers", [1, 2])
def test_every_cell_once(store, workers):
    cells = [Count(number) for number in range(5)]
    meter = Watch()
    first = run(cells[:3], store, workers=workers, meter=meter)
    assert first.computed == 3
    assert list(first.records) == cells[:3]
    assert meter.begun == [(3, 3)]
    assert sorted(number for number, _ in meter.finished) == [0, 1, 2]
    assert [done for _, done in meter.finished] == [1, 2, 3]
    second = run(cells, store, workers=workers)
    assert second.computed == 2
    assert all(cell.accepts(record.arrays) for cell, record in second.records.items())
    assert run(cells, store, workers=workers).computed == 0
    here = {pid == os.getpid() for pid, _ in places(second)}
    assert here == {workers == 1}


@spawns
def test_workers_share_the_processors(store, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")  # for the workers; this process has read its own
    monkeypatch.setattr(threads, "processors", lambda: 5)
    finished = run([Count(number, "slow") for number in range(4)], store, workers=2)
    assert len({pid for pid, _ in places(finished)}) == 2
    assert {count for _, count in places(finished)} == {2.0}


def test_cells_alike_are_computed_once(store):
    cells = [Count(1), Count(1, "slow"), Count(1, needs=1.0)]
    finished = run(cells, store)
    assert (finished.computed, stored(store), list(finished.records)) == (1, 1, cells)
    assert finished.seconds == finished.records[cells[0]].seconds


@spawns
def test_progress_comes_from_other_processes(store):
    meter = Watch()
    run([Count(number, "slow") for number in range(2)], store, workers=2, meter=meter)
    for number in range(2):
        moves = [move[1:] for move in meter.moved if move[0] == number]
        assert moves[0] == (0, 1)
        assert moves[-1] == (2, 2)


def test_damage_is_found_before_any_work(store):
    run([Count(0)], store, workers=1)
    with Store(store) as opened:
        opened.put(Count(1).key, "{}", {"number": np.zeros(1)}, 0.0)
    with pytest.raises(StoreError, match=f"is damaged \\(cell {Count(1).key[:12]}\\)"):
        run([Count(0), Count(1), Count(2, "value")], store)
    assert stored(store) == 2


@spawns
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("action", "error", "message"),
    [
        ("memory", MemoryError, "this needs about 9 GiB"),
        ("value", ValueError, "bad value"),
        ("divergence", DivergenceError, "adjoints stopped being finite at layer 2 after 3 updates"),
        ("extra", MissingExtraError, r"scikit-learn.*nfd_fast\[study\]"),
        ("interrupt", StudyInterrupted, "1 of 2 cells are stored in .*cells.sqlite; run the same"),
    ],
)
def test_errors_come_through_and_keep_what_is_finished(store, workers, action, error, message):
    run([Count(5)], store, workers=1)
    with pytest.raises(error, match=message):
        run([Count(0, action), Count(5)], store, workers=workers)
    with pytest.raises(error, match=message.replace("1 of 2", r"\d of 3")):
        run([Count(0, action), Count(1), Count(5)], store, workers=workers)
    assert run([Count(0), Count(1), Count(5)], store, workers=1).computed <= 2


@spawns
def test_a_worker_that_is_killed_loses_its_cell_only(store, tmp_path):
    """kill -9 of one of two: its cell is begun again, and the other process never notices."""
    cells = [Count(0, "wait", tmp_path), Count(1, "die once", tmp_path), Count(2), Count(3)]
    finished = run(cells, store, workers=2)
    assert finished.computed == stored(store) == 4
    assert (tmp_path / "started0").read_text().count("\n") == 1
    assert (tmp_path / "started1").read_text().count("\n") == 2


@spawns
def test_a_cell_that_kills_its_workers(store, tmp_path):
    """It is given up at last, by name, after all others are stored."""
    cells = [Count(0, "die", tmp_path), Count(1), Count(2), Count(3)]
    with pytest.raises(WorkerError) as info:
        run(cells, store, workers=2)
    assert (tmp_path / "started0").read_text().count("\n") == processes.ATTEMPTS
    assert (info.value.stored, info.value.total, info.value.cells) == (3, 4, (cells[0].title,))
    assert str(info.value) == (
        f"a worker process was killed each of the 3 times it computed {cells[0].title}, "
        f"perhaps for want of memory: 3 of 4 cells are stored in {store}; "
        "run the same command again to continue, with fewer workers if it happens again"
    )
    assert run([Count(number) for number in range(4)], store, workers=1).computed == 1


@spawns
def test_an_executor_that_breaks(store):
    """It is not ours to mend: what is finished is stored, and the error says so."""
    cells = [Count(number) for number in range(3)]
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        run(cells[:1], store, executor=executor)
        with pytest.raises(
            WorkerError, match=r"^a worker process was killed, perhaps .*1 of 2 cells"
        ):
            run([cells[0], Count(1, "die", store.parent)], store, executor=executor)
    assert run(cells, store, workers=1).computed == 2


@spawns
def test_an_interrupt_ends_the_workers(store, tmp_path, capfd):
    """Ctrl-C while all processes are busy for ever: a second or two, and nothing on stderr."""
    cells = [Count(9), Count(0, "wait", tmp_path), Count(1, "wait", tmp_path)]

    def interrupt():
        while not all((tmp_path / f"started{number}").exists() for number in range(2)):
            time.sleep(0.01)
        nonlocal sent
        sent = time.monotonic()
        os.kill(os.getpid(), signal.SIGINT)

    sent = 0.0
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(StudyInterrupted, match="1 of 3 cells are stored"):
        run(cells, store, workers=2)
    assert time.monotonic() - sent < 2
    thread.join()
    assert capfd.readouterr().err == ""
    (tmp_path / "go").touch()
    assert run(cells, store, workers=1).computed == 2


def test_any_executor(store):
    meter = Watch()
    with ThreadPoolExecutor(2) as executor:
        finished = run(
            [Count(number) for number in range(4)], store, executor=executor, meter=meter
        )
        executor.submit(print).result()  # it is left open
    assert finished.computed == 4
    assert {pid for pid, _ in places(finished)} == {os.getpid()}
    assert meter.moved == []
    with ThreadPoolExecutor(2) as executor, pytest.raises(ValueError, match="bad value"):
        run([Count(8), Count(9, "value")], store, executor=executor)


class _Elsewhere(Executor):
    """Computes with another version of the package, or with other data."""

    def submit(self, function, /, cell, key):
        future: Future = Future()
        try:
            future.set_result(function(dataclasses.replace(cell, number=77), key))
        except ValueError as error:
            future.set_exception(error)
        return future


def test_another_version_elsewhere_is_refused(store):
    with pytest.raises(ValueError, match=r"must be the same in every process .* got .*77"):
        run([Count(0)], store, executor=_Elsewhere())
    assert stored(store) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "workers must be a positive integer"),
        ({"workers": "2"}, "workers must be a positive integer"),
        ({"executor": 3}, "executor must be a concurrent.futures.Executor, got 3"),
        ({"executor": _Elsewhere(), "workers": 2}, "workers must be None if there is an executor"),
    ],
)
def test_wrong_options(store, options, message):
    with pytest.raises(ValueError, match=message):
        run([Count(0)], store, **options)
    assert not store.exists()


@pytest.fixture
def pools(monkeypatch):
    """See how many workers would be started, without starting any."""
    asked = []

    class Stop(Exception):
        pass

    def pool(workers, report):
        asked.append(workers)
        raise Stop

    monkeypatch.setattr(processes, "pool", pool)
    monkeypatch.setattr(threads, "processors", lambda: threads._share.get() or 16)

    def count(cells, store, **options):
        del asked[:]
        try:
            run(cells, store, **options)
        except Stop:
            return asked[0]
        return 1

    return count


def test_one_worker_for_a_gpu(pools, store):
    """A run takes all the memory there."""
    grid = [Count(number, device="cuda") for number in range(3)]
    with pytest.raises(ValueError, match="workers must be 1 on device 'cuda', got 2"):
        pools(grid, store, workers=2)
    assert pools(grid, store) == 1
    assert pools(grid, store, workers=1) == 1


@pytest.mark.parametrize(
    ("cells", "needs", "workers"), [(40, 0.0, 16), (3, 0.0, 3), (1, 0.0, 1), (40, 1.0, 10)]
)
def test_as_many_workers_as_processors_cells_and_memory(
    pools, store, monkeypatch, cells, needs, workers
):
    """The last: memory for twenty, and each takes one for itself and one for its only thread."""
    monkeypatch.setattr(memory, "available_bytes", lambda: int(20 * processes.BYTES))
    grid = [Count(number, needs=needs * processes.BYTES) for number in range(cells)]
    assert pools(grid, store) == workers


def test_workers_that_do_not_fit_the_memory(pools, store, monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: 2**32)
    grid = [Count(number, needs=2.0**29) for number in range(4)]
    # Two would have 8 threads each, of half a GiB.
    with pytest.raises(MemoryError, match=r"needs about 8.5 GiB and 4 GiB are .*; take fewer work"):
        run(grid, store, workers=2)
    assert stored(store) == 0
    assert pools(grid[:1], store, workers=2) == 1
    assert pools(grid, store) == 1


def test_a_process_that_may_not_start_others_works_alone(pools, store, monkeypatch):
    monkeypatch.setattr(processes, "is_daemon", lambda: True)
    assert pools([Count(number) for number in range(4)], store) == 1


_OWNER = """
import sys
from pathlib import Path
from test_cells import Count
from nfd_fast.study.cells import run_cells
from nfd_fast.study.progress import Meter

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    cells = [Count(9), Count(0, "wait", folder), Count(1, "wait", folder)]
    run_cells(cells, folder / "cells.sqlite", workers=2, meter=Meter())
"""


@spawns
def test_the_workers_end_with_their_owner(tmp_path):
    """kill -9 of the process that stores: the workers don't stay behind, and it goes on later."""
    script = tmp_path / "owner.py"
    script.write_text(_OWNER)
    paths = [str(Path(__file__).parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    owner = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 60
        while not all((tmp_path / f"started{number}").exists() for number in range(2)):
            assert owner.poll() is None, owner.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        workers = process_table.workers(owner.pid)
        assert len(workers) == 2
    finally:
        owner.kill()
        owner.wait()
        owner.stderr.close()
    deadline = time.monotonic() + 10
    while any(map(process_table.alive, workers)):
        assert time.monotonic() < deadline, "workers outlive their owner"
        time.sleep(0.01)
    path = tmp_path / "cells.sqlite"
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
    assert stored(path) == 1
    assert run([Count(9), Count(0), Count(1)], path, workers=1).computed == 2
