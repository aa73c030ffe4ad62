"""The store: lossless, whole cells or none, and only files of its own."""

from __future__ import annotations

import math
import os
import signal
import sqlite3
import subprocess
import sys
import time

import numpy as np
import pytest

from nfd_fast.study.store import SCHEMA_VERSION, Store, StoreError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "study.sqlite"


def test_arrays_come_back_bit_for_bit(path):
    arrays = {
        "losses": np.random.default_rng(0).normal(size=(3, 5)),
        "special": np.array([math.nan, -math.inf, -0.0, 5e-324, np.finfo(float).max]),
        "empty": np.zeros((0, 4)),
        "strided": np.arange(12.0).reshape(3, 4)[:, ::2],
        "big_endian": np.arange(3.0).astype(">f8"),
        "float32": np.float32([0.1, 0.2]),
    }
    with Store(path) as store:
        store.put("a", '{"depth":2}', arrays, 1.5)
    with Store(path) as store:
        record = store.get("a")
        assert store.description("a") == {"depth": 2}
    assert record.seconds == 1.5
    assert record.arrays.keys() == arrays.keys()
    for name, array in arrays.items():
        found = record.arrays[name]
        assert found.dtype == np.float64
        assert found.dtype.isnative
        assert found.shape == array.shape
        assert found.tobytes() == array.astype(np.float64).tobytes()


def test_a_cell_is_never_replaced(path):
    with Store(path) as store:
        store.put("a", "{}", {"x": np.ones(2)}, 1.0)
        store.put("a", "{}", {"x": np.zeros(3), "y": np.zeros(1)}, 2.0)
        assert store.get("a").seconds == 1.0
        assert store.get("a").arrays.keys() == {"x"}
        assert store.get("a").arrays["x"].tolist() == [1.0, 1.0]


def test_missing_keeps_the_order(path):
    with Store(path) as store:
        store.put("b", "{}", {}, 0.0)
        assert store.missing(["c", "b", "a"]) == ["c", "a"]
        assert store.finished() == {"b"}
        for read in (store.get, store.description):
            with pytest.raises(KeyError):
                read("a")


def test_a_failed_put_leaves_nothing(path):
    with Store(path) as store:
        with pytest.raises(ValueError, match="x must be floating point of at most 64 bits"):
            store.put("a", "{}", {"x": np.arange(3)}, 0.0)
        with pytest.raises(sqlite3.IntegrityError):
            store.put("a", "{}", {"x": np.ones(1), None: np.ones(1)}, 0.0)  # type: ignore[dict-item]
        assert store.finished() == frozenset()
        store.put("a", "{}", {"x": np.ones(1)}, 0.0)


@pytest.mark.parametrize("content", [b"not a database", b"SQLite format 3\0" + bytes(200)])
def test_a_file_that_is_no_database_is_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(StoreError, match="which is not an SQLite database"):
        Store(path)
    assert path.read_bytes() == content


def test_a_database_of_another_program_is_refused(path):
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="an SQLite database of another program"):
        Store(path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_another_schema_version_is_refused(path):
    Store(path).close()
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()
    with pytest.raises(StoreError, match=f"version {SCHEMA_VERSION}, got .* {SCHEMA_VERSION + 1}"):
        Store(path)


def _edit(path, *statements):
    connection = sqlite3.connect(path)
    with connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE arrays SET data = x'00'",
        "UPDATE arrays SET data = 'text of some length....'",
        "UPDATE arrays SET data = substr(data, 1, 16)",
        "UPDATE arrays SET data = 7",
        "UPDATE arrays SET shape = '[2'",
        "UPDATE arrays SET shape = '{}'",
        "UPDATE arrays SET shape = '[5]'",
        "UPDATE cells SET seconds = 'soon'",
    ],
)
def test_a_damaged_cell_is_named(path, statement):
    with Store(path) as store:
        store.put("0123456789abcdef", "{}", {"x": np.ones(3)}, 0.0)
    _edit(path, statement)
    with Store(path) as store, pytest.raises(StoreError) as info:
        store.get("0123456789abcdef")
    assert str(info.value) == (
        f"store {path} is damaged (cell 0123456789ab); move it away and run the same command again"
    )


@pytest.mark.parametrize("table", ["cells", "arrays"])
def test_a_missing_table(path, table):
    Store(path).close()
    _edit(path, "PRAGMA foreign_keys = OFF", f"DROP TABLE {table}")
    with pytest.raises(StoreError, match=r"study.sqlite is damaged; move it away"):
        Store(path)


def test_a_missing_column(path):
    Store(path).close()
    _edit(path, "ALTER TABLE cells RENAME COLUMN key TO name")
    with Store(path) as store, pytest.raises(StoreError, match="is damaged; move it away"):
        store.finished()


@pytest.mark.parametrize("end", [5000, 8192, 20_000])
def test_a_file_that_was_cut(path, end):
    with Store(path) as store:
        store.put("a", "{}", {"x": np.ones(5000)}, 0.0)
    os.truncate(path, end)
    with pytest.raises(StoreError):
        Store(path)
    assert path.stat().st_size == end


def test_an_empty_file_becomes_a_store(path):
    path.touch()  # what a process killed while it made the store leaves behind
    with Store(path) as store:
        store.put("a", "{}", {}, 0.0)


def test_a_folder_that_does_not_exist(tmp_path):
    with pytest.raises(OSError, match="cannot open the store"):
        Store(tmp_path / "nowhere" / "study.sqlite")
    with pytest.raises(OSError, match="cannot open the store"):
        Store(tmp_path)


def test_read_only(path):
    with pytest.raises(OSError, match="cannot open the store"):
        Store(path, read_only=True)
    assert not path.exists()
    with Store(path) as store:
        store.put("a", "{}", {"x": np.ones(1)}, 0.0)
    path.chmod(0o444)
    before = path.read_bytes()
    with Store(path, read_only=True) as store:
        assert store.get("a").arrays["x"].tolist() == [1.0]
        with pytest.raises(OSError, match="cannot write to the store"):
            store.put("b", "{}", {}, 0.0)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_names_with_characters_that_addresses_quote(tmp_path):
    path = tmp_path / "a b?c#d%20é.sqlite"
    with Store(path) as store:
        store.put("a", "{}", {}, 0.0)
    assert os.listdir(tmp_path) == [path.name]


def test_two_writers(path):
    with Store(path) as one, Store(path) as other:
        one.put("a", "{}", {"x": np.ones(1)}, 0.0)
        other.put("b", "{}", {"x": np.ones(1)}, 0.0)
        other.put("a", "{}", {"x": np.zeros(1)}, 0.0)
        assert one.finished() == other.finished() == {"a", "b"}


_WRITER = """
import sys
import numpy as np
from nfd_fast.study.store import Store
with Store(sys.argv[1]) as store:
    number = len(store.finished())
    while True:
        # Larger than SQLite's page cache writes at once, so a kill finds it half-written.
        arrays = {"x": np.full(50_000, float(number)), "y": np.ones(1)}
        store.put(f"cell{number}", "{}", arrays, 0.0)
        number += 1
"""


def test_kill_leaves_whole_cells(path):
    """Killed at five moments while it writes without pause: every cell there is complete."""
    stored = 0
    for delay in (0.0, 0.011, 0.023, 0.037, 0.051):
        writer = subprocess.Popen([sys.executable, "-c", _WRITER, str(path)])
        try:
            _wait_for_cells(path, stored + 1, writer)
            time.sleep(delay)
        finally:
            writer.send_signal(signal.SIGKILL)
            writer.wait()
        with Store(path) as store:
            keys = store.finished()
            assert keys == {f"cell{number}" for number in range(len(keys))}
            assert len(keys) > stored
            stored = len(keys)
            for number in range(stored):
                arrays = store.get(f"cell{number}").arrays
                assert (arrays["x"] == number).all()
                assert arrays["x"].size == 50_000
                assert arrays["y"].tolist() == [1.0]
        connection = sqlite3.connect(path)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        connection.close()


def _wait_for_cells(path, count, process):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None
        try:
            with Store(path, read_only=True) as store:
                if len(store.finished()) >= count:
                    return
        except (OSError, StoreError, sqlite3.OperationalError):
            pass  # not made yet, or locked by the writer
        time.sleep(0.002)
    raise AssertionError("the process stored nothing within a minute")


def test_arrays_whose_cell_was_deleted_are_replaced(path):
    with Store(path) as store:
        store.put("a", "{}", {"x": np.ones(2)}, 1.0)
    _edit(path, "PRAGMA foreign_keys = OFF", "DELETE FROM cells")
    with Store(path) as store:
        assert store.missing(["a"]) == ["a"]
        store.put("a", "{}", {"x": np.zeros(3)}, 2.0)
        assert store.get("a").arrays["x"].tolist() == [0.0, 0.0, 0.0]
