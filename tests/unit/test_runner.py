"""Running a study: every cell once, resumed after any end, never mixed with another."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import process_table
import pytest

import nfd_fast
from nfd_fast import data
from nfd_fast.exceptions import DivergenceError
from nfd_fast.extras import MissingExtraError
from nfd_fast.study import progress
from nfd_fast.study.atomic import OutputError
from nfd_fast.study.cells import StudyInterrupted
from nfd_fast.study.grid import StudyConfig
from nfd_fast.study.runner import Study, run_study
from nfd_fast.study.store import Store, StoreError

for module in ("sklearn", "rich", "scipy"):
    pytest.importorskip(module, reason=f"{module} is in the study extra")


@pytest.fixture
def config(tmp_path):
    return StudyConfig(
        width=8,
        depths=(1, 2),
        parameterizations=("mup", "depth_mup"),
        updates=6,
        batch=4,
        replicas=3,
        workers=1,  # in this process, whose training the tests watch
        output=tmp_path / "deep" / "results",
    )


@pytest.fixture
def calls(monkeypatch):
    """Count calls of the real ``nfd_fast.train``, by what they train."""
    seen = []
    train = nfd_fast.train

    def counted(net, *args, **kwargs):
        seen.append((net.parameterization, net.depth, kwargs["backward"]))
        return train(net, *args, **kwargs)

    monkeypatch.setattr(nfd_fast, "train", counted)
    return seen


def test_results_are_those_of_train(config):
    result = run_study(config, progress=False)
    assert result.computed == 8
    dataset = data.load("digits")
    batches = data.minibatches(dataset.samples, 4, 6)
    for cell in config.cells():
        run = nfd_fast.train(
            cell.net(dataset),
            cell.sgd,
            dataset.inputs,
            dataset.labels,
            batches=batches,
            seed=range(3),
            backward=cell.backward,
        )
        stored = result.losses[cell.parameterization, cell.depth, cell.backward]
        assert stored.tobytes() == run.losses.tobytes()


def test_pairs_start_alike(config):
    """Same forward weights and same batches: equal losses until the first update."""
    reused, decoupled = run_study(config, progress=False).pair("depth_mup", 2)
    assert reused.shape == (3, 6)
    assert (reused[:, 0] == decoupled[:, 0]).all()
    assert (reused[:, 2:] != decoupled[:, 2:]).all()


def test_nothing_is_computed_twice(config, calls):
    first = run_study(config, progress=False)
    again = run_study(dataclasses.replace(config, threads=1, window=2, smooth=1), progress=False)
    assert len(calls) == 8 == len(set(calls))
    assert again.computed == 0
    assert again.seconds == first.seconds
    for name, losses in first.losses.items():
        assert losses.tobytes() == again.losses[name].tobytes()


def test_a_larger_study_computes_only_what_is_new(config, calls):
    run_study(config, progress=False)
    del calls[:]
    result = run_study(dataclasses.replace(config, depths=(1, 2, 3)), progress=False)
    assert result.computed == 4
    assert {depth for _, depth, _ in calls} == {3}


def test_two_sets_of_choices_share_a_store_without_mixing(config):
    other = dataclasses.replace(config, learning_rate=0.1)
    first = run_study(config, progress=False)
    second = run_study(other, progress=False)
    assert second.computed == 8
    again = run_study(config, progress=False)
    for name, losses in first.losses.items():
        assert (losses == again.losses[name]).all()
        assert (losses[:, 1:] != second.losses[name][:, 1:]).all()
    with Store(config.store_path) as store:
        assert len(store.finished()) == 16


_SHARED = """
import sys
from pathlib import Path
from nfd_fast.study import StudyConfig, run_study

if __name__ == "__main__":
    folder, rate = Path(sys.argv[1]), float(sys.argv[2])
    config = StudyConfig(width=8, depths=(1, 2), parameterizations=("mup", "depth_mup"), updates=6,
                         batch=4, replicas=3, learning_rate=rate, workers=1,
                         output=folder / sys.argv[2], store=folder / "shared.sqlite")
    while not (folder / "go").exists():
        pass
    print(run_study(config, progress=False).computed)
"""


@pytest.mark.subprocess
def test_two_processes_share_a_store(config, tmp_path):
    """Started at once, before there is a store, and one of them twice: nothing mixes."""
    rates = ["0.3", "0.1", "0.1"]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _SHARED, str(tmp_path), rate],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rate in rates
    ]
    time.sleep(0.5)
    (tmp_path / "go").touch()
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert (process.returncode, err) == (0, "")
        assert 0 <= int(out) <= 8
    with Store(tmp_path / "shared.sqlite") as store:
        assert len(store.finished()) == 16
    for rate in (0.3, 0.1):
        own = dataclasses.replace(config, learning_rate=rate, output=tmp_path / f"own{rate}")
        shared = dataclasses.replace(own, store=tmp_path / "shared.sqlite")
        expected, found = run_study(own, progress=False), run_study(shared, progress=False)
        assert (expected.computed, found.computed) == (8, 0)
        for name, losses in expected.losses.items():
            assert losses.tobytes() == found.losses[name].tobytes()


def test_diverged_replicas_are_a_result(config, monkeypatch):
    train = nfd_fast.train

    def diverging(*args, **kwargs):
        run = train(*args, **kwargs)
        if kwargs["backward"] == "decoupled":
            run.losses[1, 4:] = np.nan
            raise DivergenceError(4, 1, "features", 1, run)
        return run

    monkeypatch.setattr(nfd_fast, "train", diverging)
    result = run_study(config, progress=False)
    assert result.diverged("mup", 2, "reused") == 0
    assert result.diverged("mup", 2, "decoupled") == 1
    reused, decoupled = result.pair("mup", 2)
    assert reused.shape == decoupled.shape == (2, 6)
    assert np.isfinite(decoupled).all()
    expected = result.losses["mup", 2, "reused"][[0, 2], :-1]
    assert (reused == expected).all()
    assert run_study(config, progress=False).computed == 0


def test_a_divergence_without_a_record_is_an_error(config, monkeypatch):
    def broken(*args, **kwargs):
        raise DivergenceError(0, 1, "features", 0)

    monkeypatch.setattr(nfd_fast, "train", broken)
    with pytest.raises(DivergenceError):
        config.cells()[0].compute(False)


def test_interrupt(config, monkeypatch):
    train, count = nfd_fast.train, 0

    def interrupted(*args, **kwargs):
        nonlocal count
        count += 1
        if count == 4:
            raise KeyboardInterrupt
        return train(*args, **kwargs)

    monkeypatch.setattr(nfd_fast, "train", interrupted)
    with pytest.raises(
        StudyInterrupted, match=r"3 of 8 cells are stored in .*study.sqlite"
    ) as info:
        run_study(config, progress=False)
    assert (info.value.stored, info.value.total) == (3, 8)
    assert run_study(config, progress=False).computed == 5


@pytest.mark.parametrize("error", [MemoryError("too large"), ValueError("bad")])
def test_errors_keep_what_is_stored(config, monkeypatch, error):
    train, count = nfd_fast.train, 0

    def failing(*args, **kwargs):
        nonlocal count
        count += 1
        if count == 3:
            raise error
        return train(*args, **kwargs)

    monkeypatch.setattr(nfd_fast, "train", failing)
    with pytest.raises(type(error), match=str(error)):
        run_study(config, progress=False)
    assert run_study(config, progress=False).computed == 6


@pytest.mark.parametrize(
    "damage",
    [
        lambda losses: None,
        lambda losses: losses[:2],
        lambda losses: losses[:, :-1],
        lambda losses: -losses,
        lambda losses: np.where(np.arange(7) == 2, np.nan, losses),
    ],
)
def test_a_cell_that_no_training_can_give(config, calls, damage):
    run_study(config, progress=False)
    del calls[:]
    cell = config.cells()[3]
    with Store(config.store_path) as store:
        losses = damage(store.get(cell.key).arrays["losses"])
    connection = sqlite3.connect(config.store_path)
    with connection:
        connection.execute("DELETE FROM arrays WHERE cell = ?", (cell.key,))
        connection.execute("DELETE FROM cells WHERE key = ?", (cell.key,))
    connection.close()
    with Store(config.store_path) as store:
        arrays = {} if losses is None else {"losses": losses}
        store.put(cell.key, cell.description, arrays, 1.0)
    larger = dataclasses.replace(config, depths=(1, 2, 3))
    with pytest.raises(StoreError, match=rf"is damaged \(cell {cell.key[:12]}\); move it away"):
        run_study(larger, progress=False)
    assert calls == []  # found before any work


def test_a_file_in_the_place_of_the_folder(config, tmp_path, calls):
    (tmp_path / "deep").write_text("in the way")
    with pytest.raises(OutputError, match=r"output folder .*results is not writable: "):
        run_study(config, progress=False)
    assert calls == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(config, tmp_path, calls):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputError, match="Permission denied"):
            run_study(config, progress=False)
    finally:
        tmp_path.chmod(0o700)
    assert calls == []


def test_a_batch_that_does_not_fit_writes_nothing(config, tmp_path):
    with pytest.raises(ValueError, match="batch must be a positive integer of at most 1797"):
        run_study(dataclasses.replace(config, batch=1798), progress=False)
    assert list(tmp_path.iterdir()) == []


def test_without_rich(config, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    with pytest.raises(MissingExtraError, match=r"rich.*nfd_fast\[study\]"):
        run_study(config)
    assert list(tmp_path.iterdir()) == []


def _assert_same(one, other):
    assert one.losses.keys() == other.losses.keys()
    for name, losses in one.losses.items():
        assert losses.tobytes() == other.losses[name].tobytes()


@pytest.mark.subprocess
def test_several_processes_give_the_same_bits(config, tmp_path):
    serial = run_study(config, progress=False)
    for workers in (2, None):
        other = dataclasses.replace(config, workers=workers, output=tmp_path / f"of{workers}")
        parallel = run_study(other, progress=False)
        assert parallel.computed == 8
        _assert_same(serial, parallel)


@pytest.mark.subprocess
@pytest.mark.filterwarnings("default")  # distributed's own, which differ by version
def test_dask_gives_the_same_bits(config, tmp_path):
    distributed = pytest.importorskip("distributed", reason="dask is in the test extra")
    serial = run_study(config, progress=False)
    other = dataclasses.replace(config, workers=None, threads=1, output=tmp_path / "dask")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, processes=True
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        elsewhere = run_study(other, executor=client.get_executor(), progress=False)
    assert elsewhere.computed == 8
    _assert_same(serial, elsewhere)


def test_workers_have_no_place_beside_an_executor(config):
    expected = "workers must be None if there is an executor, got 1"
    with ThreadPoolExecutor() as executor, pytest.raises(ValueError, match=expected):
        run_study(config, executor=executor, progress=False)


def test_to_xarray(config):
    xarray = pytest.importorskip("xarray", reason="xarray is in the study extra")
    study = run_study(config, progress=False)
    losses = study.to_xarray()["losses"]
    assert losses.dims == ("parameterization", "depth", "backward", "replica", "update")
    assert losses.shape == (2, 2, 2, 3, 7)
    assert losses["replica"].values.tolist() == [0, 1, 2]
    assert losses["update"].values.tolist() == list(range(7))
    for (name, depth, backward), array in study.losses.items():
        one = losses.sel(parameterization=name, depth=depth, backward=backward)
        assert one.values.tobytes() == array.tobytes()
    for variable in (losses, *losses.coords.values()):
        assert variable.attrs["long_name"]
        assert variable.attrs["units"] == "1"
    path = config.output / "losses.nc"
    study.to_xarray().to_netcdf(path, engine="scipy")
    with xarray.open_dataset(path, engine="scipy") as found:
        xarray.testing.assert_identical(found.load(), study.to_xarray())
        assert json.loads(found.attrs["description"]) == json.loads(config.description)
        assert found.attrs["version"] == nfd_fast.__version__


def test_to_xarray_of_large_seeds_and_divergence(config):
    pytest.importorskip("xarray", reason="xarray is in the study extra")
    config = dataclasses.replace(config, seed=2**64 - 3)
    names = [(cell.parameterization, cell.depth, cell.backward) for cell in config.cells()]
    array = np.full((3, 7), np.nan)
    study = Study(config, dict.fromkeys(names, array), data.load("digits"), 0, 0.0)
    found = study.to_xarray()
    assert found["replica"].values.tolist() == [2**64 - 3, 2**64 - 2, 2**64 - 1]
    assert found["losses"].isnull().all()


def test_without_xarray(config, monkeypatch):
    study = run_study(config, progress=False)
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(MissingExtraError, match=r"to_xarray requires xarray.*nfd_fast\[study\]"):
        study.to_xarray()


def test_lines_for_logs(config, capsys):
    run_study(config)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 8
    assert lines[0].startswith("[1/8] μP ResNet, L = 1, reused: ")
    run_study(config)
    assert capsys.readouterr().err == "8 of 8 cells are stored already\n"


def test_the_bar_counts_cells_that_run_side_by_side(config):
    """Moved from another thread, and also by a report that comes after the result."""
    from rich.console import Console

    bar = progress.Bar(Console(file=io.StringIO(), force_terminal=True, width=100))
    first, second = config.cells()[2:4]
    with bar:
        bar.begin(2, [first, second])
        one, other = bar.cell(first), bar.cell(second)
        assert callable(one)
        assert callable(other)
        one(1, 2)
        other(1, 4)
        assert bar._progress.tasks[0].completed == first.weight / 2 + second.weight / 4
        bar.finish(second, 1, 0.1)
        other(1, 2)
        assert bar._progress.tasks[0].completed == first.weight / 2 + second.weight
        bar.finish(first, 2, 0.1)
        late = bar.cell(first)
        assert callable(late)
        late(0, 1)
        assert bar._progress.tasks[0].finished


def test_the_bar_moves_within_a_cell_and_ends_full(config):
    from rich.console import Console

    screen = io.StringIO()
    bar = progress.Bar(Console(file=screen, force_terminal=True, width=100))
    cells = config.cells()[2:]
    with bar:
        bar.begin(8, cells)
        for done, cell in enumerate(cells, start=3):
            move = bar.cell(cell)
            before = bar._progress.tasks[0].completed
            assert callable(move)
            move(3, 6)
            assert bar._progress.tasks[0].completed == before + cell.weight / 2
            bar.finish(cell, done, 0.1)
        assert bar._progress.tasks[0].finished
    assert "8/8 cells" in screen.getvalue()


# What happens to a process that is killed or interrupted in the middle. Twelve cells of a few
# tenths of a second each: long enough to be met at work, whatever the machine.
_LONG = ["--width", "64", "--depths", "3,4", "--updates", "400", "--replicas", "16"]


def _start(folder, workers):
    choices = [*_LONG, "--workers", str(workers), "--output", str(folder)]
    return subprocess.Popen(
        [sys.executable, "-m", "nfd_fast", "study", *choices],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _long(folder):
    return StudyConfig(width=64, depths=(3, 4), updates=400, replicas=16, workers=1, output=folder)


def _wait_for_cells(process, store, count):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        try:
            with Store(store, read_only=True) as reader:
                if len(reader.finished()) >= count:
                    return
        except (OSError, ValueError, sqlite3.OperationalError):
            pass  # not made yet, or being written
        time.sleep(0.005)
    raise AssertionError("the study stored nothing within two minutes")


@pytest.mark.subprocess
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_ended_in_the_middle_and_resumed(tmp_path, number, workers, calls):
    config = _long(tmp_path)
    process = _start(tmp_path, workers)
    try:
        _wait_for_cells(process, config.store_path, 2)
        if number == signal.SIGINT:  # as a terminal does: to all processes of the command
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        sent = time.monotonic()
        output, errors = process.communicate(timeout=60)
        waited = time.monotonic() - sent
    finally:
        process.kill()
        process.wait()

    with Store(config.store_path) as store:
        stored = {key: store.get(key) for key in store.finished()}
    assert 2 <= len(stored) < 12
    connection = sqlite3.connect(config.store_path)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
    assert os.listdir(tmp_path) == ["study.sqlite"]
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert output == ""
        assert errors.splitlines()[-1] == (
            f"nfd-fast: interrupted: {len(stored)} of 12 cells are stored in {config.store_path}; "
            "run the same command again to continue"
        )
        assert "Traceback" not in errors
        assert waited < 2  # a second for the kernel, another for Python to end

    result = run_study(config, progress=False)
    assert result.computed == len(calls) == 12 - len(stored)
    for cell in config.cells():
        if cell.key in stored:
            losses = result.losses[cell.parameterization, cell.depth, cell.backward]
            assert losses.tobytes() == stored[cell.key].arrays["losses"].tobytes()
            assert losses.shape == (16, 401)


@pytest.mark.subprocess
def test_a_worker_killed_in_the_middle(tmp_path):
    """kill -9 of one of two: another takes its place, and the command ends as if nothing was."""
    config = _long(tmp_path)
    process = _start(tmp_path, 2)
    try:
        _wait_for_cells(process, config.store_path, 2)
        before = process_table.workers(process.pid)
        os.kill(before[0], signal.SIGKILL)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    assert len(before) == 2
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    with Store(config.store_path) as store:
        assert len(store.finished()) == 12
    assert run_study(config, progress=False).computed == 0
